"""What a forked command runs before it begins (`Forks.start(then=…)`): seams that no argument reaches."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # in the child they are there already
    from aimport.account import Run
    from aimport.cli.call import Call
    from aimport.journal import Journal
    from aimport.results import RunReport


def stopped_in_the_report() -> None:
    """SIGTERM comes when the run has ended and its report is about to be printed."""
    from aimport.cli import work

    print_report = work._print_report

    def stopped(call: Call, report: RunReport, journal: Journal, run: Run) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        print_report(call, report, journal, run)

    work._print_report = stopped


def _jumping(by_s: Callable[[int], float]) -> None:
    """The wall clock is off by so many seconds at its nth reading; time that only counts on goes on as it does."""
    clock, readings = time.time_ns, 0

    def time_ns() -> int:
        nonlocal readings
        readings += 1
        return clock() + int(by_s(readings) * 1e9)

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


def clock_jumps_back() -> None:
    _jumping(lambda reading: -86400.0 * (reading // 7))


def clock_jumps_forward() -> None:
    _jumping(lambda reading: 86400.0 * (reading // 7))


def clock_jumps_about() -> None:
    _jumping(lambda reading: 86400.0 * (reading % 5 - 2))


def clock_is_past_2038() -> None:
    now = time.time()
    _jumping(lambda reading: 2**31 - now + reading)


def bug_in_the_login() -> None:
    """What was not foreseen happens at each login, and quotes the password."""
    from aimport.imap import auth

    def broken(name: str, credentials: auth.Credentials, offered: frozenset[str], *, nonce: str = "") -> auth.Exchange:
        raise RuntimeError(f"cannot log in with {credentials.secret} here")

    auth.exchange = broken


def in_chunks() -> None:
    """Each run is one of several processes, whose only worker is a thread of the driver: both die at a counted step."""
    from aimport.cli import work
    from aimport.cli.call import Processes
    from aimport.runners import chunks

    def engine_of(processes: Processes) -> chunks.Engine:
        return chunks.Here()

    work.engine_of = engine_of


def looks_often() -> None:
    """A watched list is looked at every twentieth of a second."""
    from aimport.runners import joining

    joining.LOOK_EVERY_S = 0.05  # type: ignore[misc]
