"""Millions of messages take no more memory than thousands; the journal less than 100 octets of disk for each.

CI takes a fiftieth of the ten million; memory is that of a process of its own, as the system counts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FULL: Final = 10_000_000
FIXED_OCTETS: Final = 16 << 20
"""What caches may take, SQLite's and the allocator's: 11 MB after a million messages, and after ten (seen)."""
LISTED_OCTETS: Final = 60
"""Per message of the mailboxes that are just being copied: UID and size at the source, UID, size and date of the
audit, and what the simulated destination remembers: 48."""

SIZES: Final = (
    pytest.param(FULL // 50, id="a-fiftieth"),
    pytest.param(FULL, id="full", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
)


@pytest.mark.parametrize("messages", SIZES)
@pytest.mark.parametrize("users", [20, 1])
def test_memory_stays_flat_and_the_journal_small(messages: int, users: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.scale", str(messages), str(users)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(ran.stdout)
    print(told)
    assert told["imported"] == messages
    assert told["journal"] < 100 * messages
    allowed = FIXED_OCTETS + LISTED_OCTETS * messages // users
    assert told["peak"] - told["before"] < allowed
