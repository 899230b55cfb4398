"""One import, measured: how fast it went, what it cost here, how long the destination took to answer.

    source ─▶ pipeline ─▶ Timed(destination) ──▶ Round; several of them ──▶ Trial: median, lowest, highest

The whole of an import is measured, from the first login to the last answer, journal and audit included. Knows no
concrete store.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from aimport.account import Run
from aimport.daily import Ledger
from aimport.errors import AimportError, Status
from aimport.interfaces import Appending, Destination, DestinationSession, Settled, Source, SourceSession
from aimport.journal import Journal, RunArguments
from aimport.limits import Limits
from aimport.model import (
    Batch,
    ConnectionLimits,
    Endpoint,
    Mailbox,
    Outcome,
    Position,
    Stored,
    Survey,
    Uid,
    UserJob,
    Wanted,
)
from aimport.pipeline import import_user
from aimport.query.query import Query

EXITS: Final[dict[Status, int]] = {"rejects": 65, "quota": 73, "refused": 77}


class TrialFailed(AimportError):
    """An import that was measured did not come to its end; `exit_code` is that of its user."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code  # type: ignore[misc]  # of the class for all others


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one import took."""

    seconds: float
    messages: int
    octets: int
    cpu_s: float = 0.0
    """Of this process, over all threads, also within the kernel."""
    peak_octets: int = 0
    """The most memory this process had; generated mail that waits in memory is part of it."""
    connections: int = 1
    """Sessions that wrote at the same time."""
    answers_ms: tuple[float, ...] = field(default=(), repr=False)
    """How long each batch waited from being handed over to its answer."""
    stages: Mapping[str, object] | None = None
    """Where its time went (`stages.Stages.to_json`)."""
    limited: str = ""
    """What held it up, in words; "": too little to tell."""
    advice: str = ""
    """What to try about that."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def to_json(self) -> dict[str, float]:
        return {"median": round(self.median, 3), "min": round(self.low, 3), "max": round(self.high, 3)}


Kind = Literal["main", "part", "own", "floor"]
"""The import as a user would run it; a part of it; what this process does when the stores cost nothing; what no import
can beat."""


@dataclass(slots=True, kw_only=True)
class Trial:
    """One scenario at a number of connections, over all its rounds so far."""

    scenario: str
    connections: int
    kind: Kind
    rounds: list[Round] = field(default_factory=list)

    @property
    def rate(self) -> Spread:
        """Messages a second."""
        return Spread.of([each.messages / each.seconds for each in self.rounds])

    @property
    def mib(self) -> Spread:
        """MiB a second."""
        return Spread.of([each.octets / each.seconds / 2**20 for each in self.rounds])

    @property
    def cpu_us(self) -> Spread:
        """Microseconds of this process's CPU a message."""
        return Spread.of([each.cpu_s * 1e6 / each.messages for each in self.rounds])

    @property
    def busy(self) -> float:
        """How much of one processor this process took, 1: all of it; the median."""
        return statistics.median(each.cpu_s / each.seconds for each in self.rounds)

    @property
    def peak_octets(self) -> int:
        return max(each.peak_octets for each in self.rounds)

    @property
    def used(self) -> int:
        """Connections that there were: a server, or its profile, may allow fewer."""
        return max(each.connections for each in self.rounds)

    @property
    def middle(self) -> Round:
        """The round that stands for the others: of the median rate, or the next above it."""
        return sorted(self.rounds, key=lambda each: each.messages / each.seconds)[len(self.rounds) // 2]

    def answer_ms(self, share: float) -> float | None:
        """The time within which this share of the batches was answered; None: nobody answers here."""
        waits = sorted(wait for each in self.rounds for wait in each.answers_ms)
        return waits[min(int(len(waits) * share), len(waits) - 1)] if waits else None


@dataclass(slots=True)
class _Watch:
    """What `Timed` sees."""

    answers_ms: list[float] = field(default_factory=list)
    open: int = 0
    most: int = 0


class Timed:
    """A destination whose answers are timed."""

    def __init__(self, inner: Destination) -> None:
        self.host = inner.host
        self.wire = inner.wire
        self.watch = _Watch()
        self._inner = inner

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[DestinationSession]:
        async with self._inner.open() as session:
            self.watch.open += 1
            self.watch.most = max(self.watch.most, self.watch.open)
            try:
                yield _TimedSession(session, self.watch)
            finally:
                self.watch.open -= 1


@dataclass(slots=True)
class _TimedAppending:
    inner: Appending
    began: float
    watch: _Watch

    async def outcomes(self) -> Sequence[Outcome]:
        outcomes = await self.inner.outcomes()
        self.watch.answers_ms.append((time.perf_counter() - self.began) * 1000)
        return outcomes


class _TimedSession:
    """All but `append` is the session's own."""

    def __init__(self, inner: DestinationSession, watch: _Watch) -> None:
        self._inner = inner
        self._watch = watch

    @property
    def limits(self) -> ConnectionLimits:
        return self._inner.limits

    @property
    def separator(self) -> str:
        return self._inner.separator

    @property
    def waits(self) -> bool:
        return self._inner.waits

    @property
    def folds_case(self) -> bool:
        return self._inner.folds_case

    async def append(self, mailbox: Mailbox, batch: Batch) -> Appending:
        began = time.perf_counter()
        timed = _TimedAppending(await self._inner.append(mailbox, batch), began, self._watch)
        if isinstance(timed.inner, Settled):  # it has its answer, and says of itself what took its time
            await timed.outcomes()
            return timed.inner
        return timed

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await self._inner.list_mailboxes()

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        await self._inner.create_mailbox(mailbox, subscribe=subscribe)

    async def position(self, mailbox: Mailbox) -> Position | None:
        return await self._inner.position(mailbox)

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        return await self._inner.find(mailbox, wanted, since)

    async def survey(self, mailbox: Mailbox, since: Position, *, sizes: bool = True) -> Survey | None:
        return await self._inner.survey(mailbox, since, sizes=sizes)

    def reading(self, mailbox: Mailbox) -> AbstractAsyncContextManager[tuple[SourceSession, Mailbox]]:
        return self._inner.reading(mailbox)

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        return self._inner.place(wanted, uid, uidvalidity)


@dataclass(frozen=True, slots=True)
class _Wired:
    """The stores of a run whose two ends are known."""

    from_: Source
    to: Destination

    def source(self, endpoint: Endpoint) -> Source:
        return self.from_

    def destination(self, endpoint: Endpoint) -> Destination:
        return self.to


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """One import: what is selected of a source goes below `parent` of a destination."""

    source: Source
    destination: Destination
    from_: Endpoint
    to: Endpoint
    query: Query
    parent: str = ""


async def measure(trip: Trip, *, connections: int, messages: int, journals: Path, ledger: Ledger) -> Round:
    """Imports, with a journal of its own below `journals`.

    Raises:
        TrialFailed: not all `messages` were imported; says why.
        JournalError, DestinationFull
    """
    journal = Journal.create(journals, job="bench", arguments=RunArguments(argv=(), cwd=""), again=True)
    timed = Timed(trip.destination)
    run = Run(
        stores=_Wired(trip.source, timed),
        journal=journal,
        query=trip.query,
        limits=Limits(users=1, connections_per_user=connections, connections_per_host=2 * connections, attempts=2),
        ledger=ledger,
        daily_wait=False,
    )
    job = UserJob(user="bench", source=trip.from_, destination=trip.to, parent=trip.parent)
    try:
        forget_peak()
        began, cpu_s = time.perf_counter(), time.process_time()
        result = await import_user(job, run)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        found, stages = run.stages.finding(), run.stages.to_json()
    finally:
        await journal.close(finished=True)
    if result.imported != messages or result.status != "done":
        reasons = ", ".join(f"{count} {reason}" for reason, count in {**result.rejected, **result.skipped}.items())
        why = result.error or reasons or f"{result.found} were found"
        raise TrialFailed(f"{result.imported} of {messages} messages arrived: {why}", EXITS.get(result.status, 75))
    return Round(
        seconds=seconds,
        messages=messages,
        octets=result.octets,
        cpu_s=cpu_s,
        peak_octets=peak_octets(),
        connections=timed.watch.most,
        stages=stages,
        limited=f"{found.brief}: {found.what}" if found is not None else "",
        advice=found.advice if found is not None else "",
        answers_ms=() if trip.to.scheme == "memory" else tuple(timed.watch.answers_ms),
    )


def forget_peak() -> None:
    """Lets the peak of this process's memory begin anew, where the kernel can do that (proc(5), clear_refs)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_octets() -> int:
    """The most memory this process had, since `forget_peak` where that works."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
