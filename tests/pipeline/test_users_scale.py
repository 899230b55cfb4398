"""Many users and many connections in one process: what each more of them costs. Reduced forms of `bench.users_scale`.

The full sizes of the goals (10,000 users, 1,000,000 planned, 1,000 connections) run under `slow`; what each costs is
asked for in both, and memory is that of a process of its own, as the system counts it.
"""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import pytest

from aimport.cli.main import main
from bench.users_scale import (
    GOAL_CONNECTION_KB,
    GOAL_LISTED_OCTETS,
    GOAL_PEAK_MIB,
    GOAL_USER_MS,
    connecting,
    importing,
    listing,
    write_users,
)

FULL: Final = [pytest.mark.slow, pytest.mark.timeout(3600)]
BUSY: Final = 2
"""CPU that a user may take more on a machine that is busy with other tests: caches are theirs, too."""
KEPT_OCTETS: Final = 160
"""Of each user of a list, at the moment when most is: what finds lines that stand twice."""
NOISE_OCTETS: Final = 4 << 20
"""By which two processes of the same work differ."""


@pytest.fixture
def place() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="aimport-scale-", dir=memory) as made:
        yield Path(made)


@pytest.mark.parametrize("users", [pytest.param(500, id="a-twentieth"), pytest.param(10_000, id="full", marks=FULL)])
def test_many_small_users_cost_little_more_than_their_messages(users: int, place: Path) -> None:
    """Under 300 MiB at 10,000 users, and 3 ms of CPU for each beside the same messages of a tenth of them."""
    figure = importing(place, users)
    print(figure)
    assert figure.each < GOAL_USER_MS * BUSY
    assert figure.peak_mib[1] < GOAL_PEAK_MIB
    of_users = (figure.peak_mib[1] - figure.peak_mib[0]) * 2**20
    assert of_users < NOISE_OCTETS + 4096 * (figure.counts[1] - figure.counts[0])


@pytest.mark.parametrize("command", ["plan", "check"])
def test_who_was_planned_or_checked_is_let_go(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays of a user tells whether another has the same destination. A result alone would be 500 octets."""
    write_users(place / "one", 1, 1)
    few, many = 300, 1500
    peaks = []
    for count in (10, few, many):  # the first takes what is kept of the code
        (place / "users").write_text("".join(f"u{user}\n" for user in range(count)))
        words = (command, "-F", str(place / "users"), "--json", "--to", f"maildir:{place}/new/%u")
        with open(os.devnull, "w") as nowhere, monkeypatch.context() as patched:
            patched.setattr("sys.stdout", nowhere)
            tracemalloc.start()
            try:
                assert main([*words, f"maildir:{place}/one/u0", "", "ALL"]) == 0
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    print(peaks)
    assert peaks[2] - peaks[1] < KEPT_OCTETS * (many - few)


@pytest.mark.parametrize("command", ["plan", "check"])
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_users_are_planned_and_checked_in_flat_memory(command: Literal["plan", "check"], place: Path) -> None:
    figure = listing(place, command, 10**6)
    print(figure)
    assert figure.each < GOAL_LISTED_OCTETS
    assert figure.peak_mib[1] < GOAL_PEAK_MIB


@pytest.mark.parametrize(
    ("connections", "tls"),
    [
        pytest.param(200, False, id="a-fifth"),
        pytest.param(100, True, id="tls"),
        pytest.param(1000, False, id="full", marks=FULL),
    ],
)
def test_a_connection_that_has_worked_takes_little_memory(connections: int, tls: bool, place: Path) -> None:
    """Half of them have read, half appended. TLS has buffers of its own, which grow to the largest it was given."""
    figure = connecting(place, connections, tls=tls)
    print(figure)
    allowed = 2.5 * GOAL_CONNECTION_KB if tls else GOAL_CONNECTION_KB
    assert figure.each < allowed
