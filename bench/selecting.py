"""`python -m bench.selecting`: what it costs to select some messages of a large Maildir.

    flags, S= sizes    over listing                    goal 2 µs a message
    dates              over listing and one stat each  goal 2 µs a message
    SUBJECT            over listing                    goal 40 µs a message
    ALL                over listing                    nothing

CPU of this process, all threads, the median of some rounds; files are in the page cache after the
first. The command never fails for a number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import msgspec

from aimport.model import Endpoint, Mailbox
from aimport.query.parse import parse_query
from aimport.stores.maildir.source import MaildirSource, MaildirSourceSession
from bench.servers import machine
from bench.table import columns

MESSAGES: Final = 100_000
INBOX: Final = Mailbox(path=("INBOX",), separator=".")
HEADINGS: Final = ("query", "selected", "CPU s", "over", "µs a message", "goal", "")
LISTING, STATS = "listing", "listing and stat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A query, what its cost is held against, and the goal for one message in microseconds."""

    query: str
    over: str
    goal_us: float


CASES: Final = (
    Case(query="ALL", over=LISTING, goal_us=0.2),
    Case(query="UNSEEN", over=LISTING, goal_us=2),
    Case(query="FLAGGED NOT DELETED OR ANSWERED", over=LISTING, goal_us=2),
    Case(query="LARGER 10k", over=LISTING, goal_us=2),
    Case(query="SINCE 2021-01-01 BEFORE 2021-02-01", over=STATS, goal_us=2),
    Case(query="SUBJECT needle", over=LISTING, goal_us=40),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one query took."""

    query: str
    selected: int
    cpu_s: float
    over: str
    each_us: float
    goal_us: float

    def row(self) -> tuple[str, ...]:
        verdict = "" if self.each_us <= self.goal_us else "MISSED"
        return (
            self.query, f"{self.selected:,}", f"{self.cpu_s:.3f}", self.over, f"{self.each_us:.2f}",
            f"{self.goal_us:g}", verdict,
        )  # fmt: skip


def write(root: Path, count: int) -> None:
    """A Maildir as Dovecot leaves it: sizes and flags in the names, dates a minute apart."""
    for name in ("cur", "new", "tmp"):
        (root / name).mkdir(parents=True)
    fd = os.open(root / "cur", os.O_RDONLY | os.O_DIRECTORY)
    letters = ("S", "", "FS", "RS", "ST")
    try:
        for number in range(count):
            subject = "a needle" if number % 1000 == 0 else f"message {number}"
            octets = (
                f"Return-Path: <a{number}@example.org>\nReceived: from a.example.org by b.example.org; today\n"
                f"From: Alice <alice@example.org>\nTo: Bob <bob@example.net>\nSubject: {subject}\n"
                f"Date: Fri, 1 Jan 2021 00:00:00 +0000\nMessage-ID: <{number}@example.org>\n\nHello\n"
            ).encode()
            size = 30_000 if number % 20 == 0 else len(octets)  # the name is believed
            moment = 1_609_459_200 + 60 * number
            name = f"{moment}.M{number}P1.host,S={size}:2,{letters[number % len(letters)]}"
            file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd)
            os.write(file, octets)
            os.utime(file, (moment, moment))
            os.close(file)
    finally:
        os.close(fd)


async def measure(root: Path, count: int, rounds: int) -> list[Cost]:
    """All cases, each beside its baseline in the same round."""
    async with MaildirSource(Endpoint(scheme="maildir", path=str(root))).open() as session:
        took: dict[str, list[float]] = {name: [] for name in (LISTING, STATS, *(case.query for case in CASES))}
        selected: dict[str, int] = {}
        for number in range(rounds + 1):
            spent = {LISTING: await _cpu(lambda: session.select(INBOX)), STATS: 0.0}
            spent[STATS] = spent[LISTING] + await _cpu(lambda: anyio.to_thread.run_sync(_stat_all, root))
            for case in CASES:
                spent[case.query] = await _cpu(partial(_select, session, case, selected))
            if number:  # the first fills the page cache
                for name, seconds in spent.items():
                    took[name].append(seconds)
    costs = []
    for case in CASES:
        pairs = zip(took[case.query], took[case.over], strict=True)
        more = statistics.median(query - base for query, base in pairs)
        costs.append(
            Cost(
                query=case.query,
                selected=selected[case.query],
                cpu_s=statistics.median(took[case.query]),
                over=case.over,
                each_us=round(more / count * 1e6, 2),
                goal_us=case.goal_us,
            )
        )
    return costs


async def _select(session: MaildirSourceSession, case: Case, selected: dict[str, int]) -> None:
    term = parse_query(case.query.split()).of(INBOX)
    selected[case.query] = len((await session.select(INBOX, term)).keys)


async def _cpu(act: Callable[[], Awaitable[object]]) -> float:
    began = time.process_time()
    await act()
    return time.process_time() - began


def _stat_all(root: Path) -> None:
    fd = os.open(root / "cur", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in os.listdir(fd):
            os.stat(name, dir_fd=fd, follow_symlinks=False)
    finally:
        os.close(fd)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    count = 1000 if options.quick else MESSAGES
    rounds = options.rounds or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="aimport-selecting-", dir=options.dir) as made:
        about = machine(Path(made))
        write(Path(made) / "Maildir", count)
        costs = anyio.run(measure, Path(made) / "Maildir", count, rounds)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(columns([HEADINGS, *(cost.row() for cost in costs)]))
    if options.out is not None:
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=1) + b"\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.selecting", description="What selecting costs.")
    parser.add_argument("--quick", action="store_true", help="1,000 messages, one round: does everything run?")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where mail is written (default: TMPDIR)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the figures as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
