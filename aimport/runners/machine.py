"""What this machine allows a process."""

from __future__ import annotations

import logging
import resource
from contextlib import suppress

from aimport.errors import ConfigurationError
from aimport.limits import DESCRIPTORS_LEAST, Limits, within_descriptors

logger = logging.getLogger(__name__)


def within_the_machine(limits: Limits) -> Limits:
    """As many users and lanes as this process may have files open for, after it has asked for all that it may have.

    Raises:
        ConfigurationError: not even one user can be imported.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS: no more than the kernel's own limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < DESCRIPTORS_LEAST:
        raise ConfigurationError(f"{allowed} open files are not enough for a run", hint="ulimit -n 1024")
    lowered = limits if allowed == resource.RLIM_INFINITY else within_descriptors(limits, allowed)
    if lowered != limits:
        logger.warning(
            "users lowered users=%d connections_per_user=%d open_files=%d; a higher limit (ulimit -n) allows more",
            lowered.users, lowered.connections_per_user, allowed,
        )  # fmt: skip
    return lowered
