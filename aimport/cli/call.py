"""A command line, taken apart: what `main`, the commands and `work` hand to each other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that `--help` imports neither planner nor stores
    from pathlib import Path

    from aimport.limits import Limits
    from aimport.logs import Form
    from aimport.plan import Request
    from aimport.progress import Style
    from aimport.stores import Fsync


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a command line comes from: typed, or kept in a journal and now resumed."""

    typed: tuple[str, ...] = ()
    resume: Callable[[Call], int] | None = None
    """What `resume` does with the call instead of beginning a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Globals:
    """Options that stand before COMMAND."""

    config: str | None
    overrides: tuple[str, ...]
    start: Start
    level: int
    """Of log lines."""
    form: Form


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """Who does the work: `workers` processes on this machine, or those of a cluster."""

    workers: int | None
    cluster: str | None
    cluster_file: str | None

    @property
    def given(self) -> bool:
        return self != Processes(workers=None, cluster=None, cluster_file=None)

    @property
    def several(self) -> bool:
        return (self.workers or 1) > 1 or self.cluster is not None or self.cluster_file is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """An `import` command line."""

    globals: Globals
    request: Request
    limits: Limits
    skip_existing: bool
    fsync: Fsync
    link: bool
    """Hard links where octets do not change (`--link`)."""
    journal: Path | None
    """Where runs are remembered; None: nowhere."""
    repair: bool
    salvage: bool
    again: bool
    progress: Style
    as_json: bool
    processes: Processes


def tell(text: str) -> None:
    """A line on stderr; what is done does not depend on whether somebody hears of it (a terminal that is gone)."""
    with suppress(OSError):
        print(text, file=sys.stderr)
