"""What holds up a run: how long each stage was at work, and how long the sending stood still for it.

    list ─▶ read ─▶ queue ─▶ prepare ─▶ journal ─▶ append-send ─▶ under way ─▶ append-wait
                        └──────── one sender a lane: what it stands still for is held_s ───────┘

Everything of a lane goes through its sender, so its time is divided without a rest: what takes most of it limits the
lane, and the sums over all lanes limit the run. Only when the processor is full nothing of that counts: then each
stage waits for it. Measured a batch at a time, on the loop's thread; a message never costs anything.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, cast

import msgspec

Stage = Literal["connect", "list", "look", "read", "prepare", "journal", "append-send", "sync", "append-wait"]
"""`connect`: connection and login; `look`: at the destination, for what is there; `prepare`: wire form and hash."""

MAX_PLACES: Final = 1000  # arbitrary
"""Stages at hosts that are kept apart; what comes later is summed up."""
LOOP_FULL: Final = 0.8
"""Of its time that the loop has run, or was ready to run and the processor was another's. A loop that does nothing but
hash reaches 0.95, one that waits for a server 0.6 (measured, 2 cores)."""
INTERPRETER_FULL: Final = 0.9
"""Of one processor, over all threads, outside the kernel: they take turns at the interpreter."""
MACHINE_FULL: Final = 0.9
"""Of all processors that are ours: threads that ran, or were ready to."""
ENOUGH_S: Final = 0.2  # arbitrary
"""Of the senders' time; with less nothing is said."""
AT_ONCE: Final = "more --users"


@dataclass(slots=True)
class Meter:
    """One stage at one host, over all lanes."""

    batches: int = 0
    busy_s: float = 0.0
    waiting_s: float = 0.0
    """It could have gone on: nothing had come, or nobody took what it had."""
    held_s: float = 0.0
    """The sender stood still for it."""
    crowded_s: float = 0.0
    """Users waited until a connection to the host was free."""

    def hold(self, seconds: float) -> None:
        """A piece of its work that the sender waited for."""
        self.batches += 1
        self.busy_s += seconds
        self.held_s += seconds

    def less(self, other: Meter) -> Meter:
        return Meter(
            self.batches - other.batches,
            self.busy_s - other.busy_s,
            self.waiting_s - other.waiting_s,
            self.held_s - other.held_s,
            self.crowded_s - other.crowded_s,
        )


Shown = tuple[str, str, int, float, float, float, float]
"""Stage, host and the fields of its meter."""


@dataclass(slots=True)
class Lane:
    """The meters that one copy of a mailbox moves."""

    read: Meter
    prepare: Meter
    journal: Meter
    send: Meter
    sync: Meter
    wait: Meter


@dataclass(frozen=True, slots=True)
class Processor:
    """Seconds so far. Ready is who runs, and who would if the processor were not another's."""

    passed_s: float
    loop_s: float
    """The loop's thread was ready."""
    interpreter_s: float
    """All threads ran, outside the kernel."""
    threads_s: float
    """Threads were ready; their sum."""

    def since(self, before: Processor) -> Processor:
        return Processor(
            max(self.passed_s - before.passed_s, 1e-9),
            self.loop_s - before.loop_s,
            self.interpreter_s - before.interpreter_s,
            self.threads_s - before.threads_s,
        )

    @property
    def share(self) -> float:
        """How full the fullest of them is, 1: nothing more goes."""
        of_machine = self.threads_s / _processors()
        return min(max(self.loop_s, self.interpreter_s, of_machine) / self.passed_s, 1.0)

    @property
    def one_is_full(self) -> bool:
        """The one that this process can use: a second process would help."""
        return self.loop_s >= LOOP_FULL * self.passed_s or self.interpreter_s >= INTERPRETER_FULL * self.passed_s

    @property
    def all_are_full(self) -> bool:
        return self.threads_s >= MACHINE_FULL * self.passed_s * _processors()


@dataclass(frozen=True, slots=True)
class Mark:
    """All figures at one moment."""

    meters: Mapping[tuple[Stage, str], Meter]
    processor: Processor


@dataclass(frozen=True, slots=True)
class Finding:
    """What limits a run: where, how much of the senders' time it took, what to try."""

    stage: Stage | Literal["processor"]
    host: str
    share: float
    what: str
    advice: str

    @property
    def brief(self) -> str:
        place = f" {self.host}" if self.host else ""
        return f"limited by {self.stage}{place} ({self.share:.0%})"

    def __str__(self) -> str:
        return f"{self.brief}: {self.what}; {self.advice}"


class Stages:
    """The meters of a run. Made on the thread that the loop will run in."""

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, processor: Callable[[], Processor] | None = None
    ) -> None:
        self.clock = clock
        self._meters: dict[tuple[Stage, str], Meter] = {}
        self._processor = processor or partial(_processor_now, threading.get_native_id())
        self._shown: Processor | None = None
        self._began = self.mark()

    def meter(self, stage: Stage, host: str = "") -> Meter:
        """`host` "": this machine."""
        found = self._meters.get((stage, host))
        if found is None:
            place = (stage, host if len(self._meters) < MAX_PLACES else "other hosts")
            found = self._meters.setdefault(place, Meter())
        return found

    def lane(self, source: str, destination: str) -> Lane:
        return Lane(
            read=self.meter("read", source),
            prepare=self.meter("prepare"),
            journal=self.meter("journal"),
            send=self.meter("append-send", destination),
            sync=self.meter("sync"),
            wait=self.meter("append-wait", destination),
        )

    @contextmanager
    def holding(self, stage: Stage, host: str = "") -> Generator[None]:
        """Work that a user waits for."""
        began = self.clock()
        try:
            yield
        finally:
            self.meter(stage, host).hold(self.clock() - began)

    def mark(self) -> Mark:
        processor = self._shown or self._processor()
        return Mark({place: replace(meter) for place, meter in self._meters.items()}, processor)

    def figures(self) -> tuple[tuple[Shown, ...], tuple[float, float, float, float]]:
        """For `tally.Figures`: what another process is to add up."""
        meters = tuple(
            (*place, each.batches, each.busy_s, each.waiting_s, each.held_s, each.crowded_s)
            for place, each in self._meters.items()
        )
        spent = self._processor().since(self._began.processor)
        return meters, (spent.passed_s, spent.loop_s, spent.interpreter_s, spent.threads_s)

    def show(self, meters: Iterable[Shown], processor: tuple[float, float, float, float]) -> None:
        """Becomes what other processes have measured; the processor is then the average of theirs."""
        self._shown = Processor(*processor)
        self._began = Mark({}, Processor(0.0, 0.0, 0.0, 0.0))
        for stage, host, *figures in meters:
            batches, *seconds = figures
            self._meters[cast(Stage, stage), host] = Meter(int(batches), *seconds)

    def finding(self, since: Mark | None = None) -> Finding | None:
        """What limits the run; None: too little was done to tell."""
        since, now = since or self._began, self.mark()
        spent = {place: meter.less(since.meters.get(place, Meter())) for place, meter in now.meters.items()}
        total_s = sum(meter.held_s for meter in spent.values())
        if total_s < ENOUGH_S:
            return None
        processor = now.processor.since(since.processor)
        if processor.all_are_full:
            return Finding("processor", "", processor.share, "all processors of this machine are full", _LARGER)
        if processor.one_is_full:
            what = "this process has its processor full, and can use no other"
            return Finding("processor", "", processor.share, what, _MORE_PROCESSES)
        (stage, host), meter = max(spent.items(), key=lambda item: item[1].held_s)
        what, advice = _say(stage, host, meter.busy_s / meter.batches if meter.batches else 0.0)
        for (_, place), other in spent.items():
            if other.crowded_s > total_s / 2:
                advice += f"; users also wait for a free connection to {place} (--connections-per-host)"
        return Finding(stage, host, meter.held_s / total_s, what, advice)

    def to_json(self) -> dict[str, object]:
        """For the report: seconds over all lanes."""
        found = self.finding()
        return {
            "limited_by": None
            if found is None
            else {"stage": found.stage, "host": found.host, "share": round(found.share, 3), "advice": found.advice},
            "processor": round(self.mark().processor.since(self._began.processor).share, 3),
            "stages": [
                {
                    "stage": stage,
                    "host": host,
                    "batches": meter.batches,
                    "busy": round(meter.busy_s, 3),
                    "waiting": round(meter.waiting_s, 3),
                    "held": round(meter.held_s, 3),
                }
                for (stage, host), meter in self._meters.items()
            ],
        }

    def rows(self) -> list[tuple[str, ...]]:
        """For people: the stages that were at work, those that held up most first."""
        worked = [(place, meter) for place, meter in self._meters.items() if meter.batches]
        worked.sort(key=lambda item: item[1].held_s, reverse=True)
        total_s = sum(meter.held_s for _, meter in worked) or 1.0
        return [
            (
                stage, host or "this machine", str(meter.batches), f"{meter.busy_s:.1f}", f"{meter.waiting_s:.1f}",
                f"{meter.held_s:.1f}", f"{meter.held_s / total_s:.0%}",
            )
            for (stage, host), meter in worked
        ]  # fmt: skip


def summed(documents: Sequence[Mapping[str, object]]) -> dict[str, object] | None:
    """Several of `Stages.to_json` as one, limited by what limited the longest of them; None: there is none.

    Of other versions, what is not understood is left out.
    """
    known = []
    for document in documents:
        with suppress(msgspec.ValidationError):
            known.append(msgspec.convert(document, _Document))
    if not known:
        return None
    rows: dict[tuple[str, str], _Row] = {}
    for each in known:
        for row in each.stages:
            before = rows.get((row.stage, row.host))
            rows[row.stage, row.host] = row if before is None else before.with_(row)
    longest = max(known, key=lambda each: sum(row.held for row in each.stages))
    return {
        "limited_by": longest.limited_by,
        "processor": longest.processor,
        "stages": [msgspec.structs.asdict(row) for row in rows.values()],
    }


class _Row(msgspec.Struct, frozen=True):
    stage: str
    host: str
    batches: int
    busy: float
    waiting: float
    held: float

    def with_(self, other: _Row) -> _Row:
        return _Row(
            self.stage,
            self.host,
            self.batches + other.batches,
            round(self.busy + other.busy, 3),
            round(self.waiting + other.waiting, 3),
            round(self.held + other.held, 3),
        )


class _Document(msgspec.Struct, frozen=True):
    limited_by: dict[str, object] | None
    processor: float
    stages: list[_Row]


HEADINGS: Final = ("stage", "where", "batches", "busy s", "waiting s", "held up s", "share")
_MORE_PROCESSES: Final = "more --workers would use more processors"
_LARGER: Final = "what else runs here takes them too; a machine with more of them would help"


def _processor_now(loop: int) -> Processor:
    loop_s, threads_s = _ready_s(loop)
    return Processor(time.perf_counter(), loop_s, os.times().user, threads_s)


def _ready_s(loop: int) -> tuple[float, float]:
    """Seconds that the loop's thread, and all that live now together, ran or were ready to (Linux; elsewhere: ran)."""
    loop_s, all_s = 0.0, 0.0
    try:
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError, ValueError), open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
                ran, waited, *_ = map(int, file.read().split())
                all_s += (ran + waited) / 1e9
                if int(thread) == loop:
                    loop_s = (ran + waited) / 1e9
    except OSError:
        pass
    return (loop_s, all_s) if loop_s else (time.thread_time(), time.process_time())


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(stage: Stage, host: str, each_s: float) -> tuple[str, str]:
    """What a stage is slow at, and what to try."""
    each = f"{each_s * 1e3:.1f} ms"
    match stage:
        case "connect":
            return f"a login takes {each}", f"fewer sessions (--connections-per-user 1), or {AT_ONCE}"
        case "list":
            what = f"the source {host}" if host else "the source's disk"
            return f"{what} takes {each} to list a mailbox", f"{AT_ONCE} list at the same time"
        case "look":
            what = f"the destination {host}" if host else "the destination's disk"
            return f"{what} takes {each} to make a mailbox or to say what is in one", f"{AT_ONCE} wait together"
        case "read" if host:
            advice = "more --connections-per-user or --users read at the same time, if it lets them"
            return f"the source {host} takes {each} for a batch", advice
        case "read":
            return f"reading the source's disk takes {each} a batch", f"{AT_ONCE} read at the same time"
        case "prepare":
            return f"wire form and hash take {each} a batch", _MORE_PROCESSES
        case "journal":
            return f"the journal's disk takes {each} a sync", f"--journal on a faster disk; {AT_ONCE} share each sync"
        case "append-send" if host:
            return f"the destination {host} takes {each} to receive a batch", "is the link full? compress=yes may help"
        case "append-send":
            return f"writing to the destination's disk takes {each} a batch", "a faster disk would help"
        case "sync":
            return f"the destination's disk takes {each} a sync (fsync)", f"{AT_ONCE} share each sync"
        case "append-wait":
            advice = f"more --connections-per-user, or {AT_ONCE}, would help"
            return f"the destination {host} answers {each} a batch: waiting for its disk", advice
