"""`python -m bench.workers`: what several processes bring, and what they cost.

    speed     Maildir ──▶ aimport ──▶ a destination that stores nothing: by one process and by two, in turn, in this run
    engine    a million users of whom there is nothing to do: jobs ──▶ chunks ──▶ workers that only open their shard

The first is nothing but our own processor time, so it shows what a second processor is worth; the time it takes to
start workers is told beside it. The second is all that it costs to hand users out, to record where they are, and to
take what became of them; users themselves cost what they cost in one process. The command never fails for a number.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aimport import sample
from aimport.account import Run
from aimport.interfaces import Destination, Settled, Source
from aimport.journal import Journal, RunArguments
from aimport.limits import Limits
from aimport.model import Appended, Batch, Endpoint, Mailbox, Position, Stored, UserJob, Wanted
from aimport.query.parse import parse_query
from aimport.runners import chunks, local
from aimport.runners.chunks import Done, Versions
from aimport.runners.cluster import LocalWorkers, Packed, packed
from aimport.stores import Stores
from aimport.stores.memory import MemoryDestination, MemoryDestinationSession, MemoryStore
from aimport.tally import Figures
from bench.results import Spread, spread

SPEED: Final = 1.6
ENGINE_S: Final = 30.0
"""The goals."""


class NullSession(MemoryDestinationSession):
    """Acknowledges everything and keeps nothing."""

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        """There is every mailbox."""

    async def position(self, mailbox: Mailbox) -> Position:
        return Position()

    async def append(self, mailbox: Mailbox, batch: Batch) -> Settled:  # type: ignore[override] # nothing to wait for
        return Settled([Appended(key=message.key) for message in batch.messages])

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        return ()


class NullDestination(MemoryDestination):
    """An account that takes all."""

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MemoryDestinationSession, None]:
        yield NullSession(self._store, self._account)


class NullStores:
    """Maildirs to read, and nothing to write."""

    def source(self, endpoint: Endpoint) -> Source:
        return Stores().source(endpoint)

    def destination(self, endpoint: Endpoint) -> Destination:
        return NullDestination(MemoryStore(), endpoint.user)


def passed_over(driver: Versions, chunk: Packed) -> Packed:
    """The task of a chunk whose users have nothing to do."""
    task = chunks.unpack(chunk.octets)
    journal = Journal.open_shard(task.directory, task.shard)
    local.run_loop(lambda: journal.close(finished=False))
    return packed(Done(figures=Figures(users_done=len(task.jobs))))


class EngineAlone(LocalWorkers):
    task = staticmethod(passed_over)


def some_jobs(users: int, source: str) -> Iterator[UserJob]:
    for number in range(users):
        name = f"user{number:07}@example.org"
        yield UserJob(
            user=name,
            source=Endpoint(scheme="maildir", path=f"{source}/{name}"),
            destination=Endpoint(scheme="memory", path="null", user=name),
        )


class Jobs:
    """As often as they are asked for."""

    def __init__(self, users: int, source: str = "/nonexistent") -> None:
        self.users = users
        self._source = source

    def __iter__(self) -> Iterator[UserJob]:
        return some_jobs(self.users, self._source)


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of one run: of all of it, and from when its workers were ready."""

    whole: float
    working: float


def a_run(folder: Path, jobs: Jobs, engine: LocalWorkers | None) -> Took:
    """One run with a journal of its own; all users must have been done."""
    journal = Journal.create(folder, job="bench", arguments=RunArguments(argv=(), cwd=""), again=True)
    run = Run(stores=NullStores(), journal=journal, query=parse_query(("ALL",)), limits=Limits(users=10))
    ready = began = time.perf_counter()

    async def main() -> None:
        nonlocal ready
        if engine is None:
            ending = await local.run_plan(jobs, run)
        else:
            start = engine.start

            async def started(directory: Path, token: str) -> None:
                nonlocal ready
                await start(directory, token)
                ready = time.perf_counter()

            engine.start = started  # type: ignore[method-assign] # to know when
            ending = await chunks.run_chunks(jobs, run, engine, users=jobs.users)
        if ending.failure is not None:
            raise ending.failure
        await journal.close(finished=True)

    local.run_loop(main)
    ended = time.perf_counter()
    assert run.counters.users_done == jobs.users, run.counters.users_done
    return Took(ended - began, ended - ready)


def speed(place: Path, users: int, messages: int, rounds: int) -> list[str]:
    source = place / "source"
    for job in some_jobs(users, ""):
        sample.write_maildir(source / job.user, sample.account(job.user, seed=1, messages=messages))
    jobs = Jobs(users, str(source))
    ratios: list[tuple[float, float]] = []
    for number in range(rounds):
        took: dict[int, Took] = {}
        for workers in (1, 2) if number % 2 else (2, 1):
            folder = place / f"journal-{number}-{workers}"
            took[workers] = a_run(folder, jobs, LocalWorkers(2) if workers == 2 else None)
            shutil.rmtree(folder)
        ratios.append((took[1].whole / took[2].working, took[1].whole / took[2].whole))
        said = f"round {number}: one process {took[1].whole:.2f} s, two {took[2].working:.2f} s"
        print(f"{said} and {took[2].whole - took[2].working:.2f} s to start them", file=sys.stderr, flush=True)
    working, whole = spread(ratio for ratio, _ in ratios), spread(ratio for _, ratio in ratios)
    return [
        f"{users} users of {messages} messages, {os.cpu_count()} processors, rounds: {rounds}",
        f"--workers 2, times as fast as one process: {_shown(working)} (goal: {SPEED} or more)",
        f"the same with the time that workers take to start: {_shown(whole)}",
    ]


def cpu_s() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def engine(place: Path, users: int) -> list[str]:
    began = time.perf_counter()
    for job in Jobs(users):
        assert job.destination.identity
    making = time.perf_counter() - began
    before = cpu_s()
    took = a_run(place / "journal-engine", Jobs(users), EngineAlone(2))
    cpu = cpu_s() - before
    shards = len(list((place / "journal-engine").glob("2*/shards/*")))
    octets = sum(each.stat().st_size for each in (place / "journal-engine").rglob("*") if each.is_file())
    return [
        f"engine, {users} users in {shards} chunks: {took.working:.1f} s, {took.working / users * 1e6:.0f} us a user"
        f" (goal: below {ENGINE_S:g} s for 1000000), and {took.whole - took.working:.1f} s to start",
        f"of these, to make their jobs, as one process does too: {making:.1f} s",
        f"processor time of all processes, with their start: {cpu:.1f} s, {cpu / users * 1e6:.0f} us a user",
        f"journal with its shards before any message: {octets / users:.0f} octets a user",
    ]


def _shown(of: Spread | None) -> str:
    return "no figure" if of is None else f"{of.median:.2f} ({of.low:.2f} to {of.high:.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.workers", description="What several processes bring and cost."
    )
    parser.add_argument("--users", type=int, default=100, metavar="N", help="with mail (default: 100)")
    parser.add_argument("--messages", type=int, default=1000, metavar="N", help="of each (default: 1000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="pairs of runs (default: 5)")
    parser.add_argument("--empty", type=int, default=1_000_000, metavar="N", help="users without (default: 1000000)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="a directory on a real disk (default: TMPDIR)")
    parser.add_argument("--quick", action="store_true", help="10 users, one round, 5000 empty users")
    options = parser.parse_args(arguments)
    if options.quick:
        options.users, options.messages = min(options.users, 10), min(options.messages, 100)
        options.rounds, options.empty = 1, min(options.empty, 5000)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="aimport-bench-") as folder:
        told: list[str] = []
        if options.users:
            told += speed(Path(folder), options.users, options.messages, options.rounds)
        if options.empty:
            told += engine(Path(folder), options.empty)
    print("\n".join(told))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    sys.exit(main())
