"""One event loop, N users at a time.

    jobs ──▶ line ──▶ N at work, each in `pipeline.import_user` ──▶ results

Owns the loop, the signals and the end of the run: the first SIGINT, SIGTERM or SIGHUP lets batches in
flight finish within a grace time, the second cancels. Where users may join (`joining`), SIGHUP has the list read again.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

import anyio
from anyio.abc import TaskGroup, TaskStatus

from aimport.account import Run
from aimport.errors import AimportError, RunHeld, widest
from aimport.model import UserJob
from aimport.pipeline import PlannedUser, import_user, plan_user
from aimport.runners.joining import Joining
from aimport.runners.line import Hosts, Line, More
from aimport.seats import Seat

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAITING: Final = 100  # arbitrary
"""So many users may wait beside those at work: for a host that is full or down, for the time that a server has asked
for, or for tomorrow. Each keeps what it knows of its mailboxes."""

Progress = Callable[[Run], Coroutine[Any, Any, None]]
"""Shows a run until it is cancelled."""


@dataclass(slots=True)
class Ending:
    """How a run ended, beside the results of its users."""

    stopped: bool = False
    failure: AimportError | None = None


class Stop(Protocol):
    """What the signals do to a run beside setting its `stopping`."""

    def begin(self) -> None:
        """The first signal: batches in flight may finish."""
        ...

    def end(self) -> None:
        """The second."""
        ...


@dataclass(frozen=True, slots=True)
class _Stop:
    run: Run
    tasks: TaskGroup

    def begin(self) -> None:
        self.tasks.cancel_scope.deadline = anyio.current_time() + self.run.limits.grace_s
        self.tasks.start_soon(end_when_idle, self.run, self.tasks.cancel_scope)

    def end(self) -> None:
        self.tasks.cancel_scope.cancel()


async def end_when_idle(run: Run, scope: anyio.CancelScope) -> None:
    """Nobody is waited for who only waits, for a host or for tomorrow."""
    await run.seats.until_nobody_works()
    scope.cancel()


async def run_plan(
    jobs: Iterable[UserJob], run: Run, *, progress: Progress | None = None, joining: Joining | None = None
) -> Ending:
    """Imports all users of `jobs`; each result is in the journal when this returns.

    With `run.first` several turns go over all of them, so `jobs` must begin anew each time. Those who are `joining`
    come behind them in the last turn, and in `jobs` of a turn that begins later.

    A failure of scope run cancels everything and is in the `Ending`, not raised: what was
    done before stands and is reported.
    """
    ending = Ending()
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(watch_signals, run, ending, _Stop(run, tasks), joining)
            if joining is not None:
                tasks.start_soon(joining.keep_reading)
            if progress is not None:
                tasks.start_soon(progress, run)
            for turn in range(len(run.first) + 1):
                run.turn = turn
                await _work(jobs, run, joining if run.last_turn else None)
            tasks.cancel_scope.cancel()
    except* AimportError as group:
        ending.failure = widest(group.exceptions)
    return ending


async def _work(jobs: Iterable[UserJob], run: Run, joining: Joining | None) -> None:
    if joining is None:
        await import_users(wanted(jobs, run), run)
        return

    async def one_of_many(job: UserJob) -> None:
        try:
            if joining.listed.has_joined(job.user):
                job = await _claimed(job, run)
            if may_begin(run):
                await import_user(job, run)
        finally:
            joining.user_ended()

    async def more() -> Iterator[UserJob] | None:
        fresh = await joining.more(run)
        return None if fresh is None else joining.counted(wanted(fresh, run))

    await for_each_user(joining.counted(wanted(jobs, run)), run, one_of_many, more)


async def _claimed(job: UserJob, run: Run) -> UserJob:
    """Of all others the destination was claimed before the run began. One that is taken fails its user, not the run."""
    if job.error:
        return job
    try:
        await run.journal.claim([job.destination.identity])
    except RunHeld as error:
        return replace(job, error=str(error))
    return job


async def import_users(jobs: Iterable[UserJob], run: Run) -> None:
    """Those that are to be begun in this turn, `limits.users` at work at the same time."""

    async def one(job: UserJob) -> None:
        if may_begin(run):
            await import_user(job, run)

    await for_each_user(jobs, run, one)


def wanted(jobs: Iterable[UserJob], run: Run) -> Iterator[UserJob]:
    """The users that are to be begun, as far as is known when they are asked for."""
    for job in jobs:
        if run.stopping or run.gave_up:
            return
        if job.user in run.ended:
            continue
        if not may_begin(run):
            return
        yield job


def may_begin(run: Run) -> bool:
    """Whether one more user is to be begun."""
    limit = run.limits.max_errors
    if limit and run.counters.users_failed >= limit and not run.gave_up:
        logger.error("run takes no new users errors=%d limit=%d", run.counters.users_failed, limit)
        run.gave_up = True
    return not run.stopping and not run.gave_up


async def for_each_user(
    jobs: Iterable[UserJob], run: Run, act: Callable[[UserJob], Awaitable[None]], more: More | None = None
) -> None:
    """Does `act` for each, `limits.users` at work at the same time, in the order of the list as far as hosts have room.

    Users who only wait have no seat (`seats`), so there are more workers than seats.
    """

    def hosts_of(job: UserJob) -> Hosts:
        if job.error:
            return "", ""
        try:
            source = run.stores.source(job.source).host if job.source.remote else ""
            return source, run.stores.destination(job.destination).host if job.destination.remote else ""
        except AimportError:  # `act` will tell
            return "", ""

    line = Line(jobs, run.hosts, hosts_of, more)
    workers = 1

    async def work() -> None:
        """Takes one user after the other. With its first it lets in the next worker: there are as few as are needed."""
        nonlocal workers
        first = True
        while (picked := await _pick(line, run)) is not None:
            if first and workers < run.limits.users + WAITING:
                workers += 1
                tasks.start_soon(work)
            first = False
            job, hosts, seat = picked
            with seat.used():
                try:
                    await act(job)
                finally:
                    line.ended(hosts)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)


async def _pick(line: Line, run: Run) -> tuple[UserJob, Hosts, Seat] | None:
    """The next user who may begin, with a seat; None: nobody more is to begin."""
    seat = Seat(run.seats)
    async with line.turn:
        while not run.stopping and not run.gave_up and await line.ready():
            await seat.take()
            picked = line.pick()
            if picked is not None:
                return *picked, seat
            seat.leave()
    return None


async def watch_signals(
    run: Run,
    ending: Ending,
    stop: Stop,
    joining: Joining | None = None,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Until cancelled."""
    # What is ignored stays so: SIGHUP below nohup, SIGINT of a job in the background.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        await _obey_signals(heard, run, ending, stop, joining, task_status)
    finally:
        for number in heard:  # the loop leaves SIGTERM deadly
            signal.signal(number, before[number])


async def _obey_signals(
    heard: Sequence[signal.Signals],
    run: Run,
    ending: Ending,
    stop: Stop,
    joining: Joining | None,
    task_status: TaskStatus[None],
) -> None:
    with anyio.open_signal_receiver(*heard) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP and joining is not None and not ending.stopped and joining.ask():
                continue
            if ending.stopped:
                logger.warning("run cancelled by second signal signal=%s", signal.Signals(number).name)
                stop.end()
                return
            ending.stopped = run.stopping = True
            logger.warning(
                "run stops: batches in flight may take %g s, a second signal ends at once signal=%s",
                run.limits.grace_s,
                signal.Signals(number).name,
            )
            stop.begin()


async def plan_all(jobs: Iterable[UserJob], run: Run) -> AsyncGenerator[PlannedUser, None]:
    """What an import would do, user by user in the order of the list, `limits.users` at a time."""
    chunk: list[UserJob] = []
    for job in jobs:
        chunk.append(job)
        if len(chunk) >= run.limits.users:
            for planned in await _plan_chunk(chunk, run):
                yield planned
            chunk = []
    for planned in await _plan_chunk(chunk, run):
        yield planned


async def _plan_chunk(chunk: list[UserJob], run: Run) -> list[PlannedUser]:
    planned: dict[int, PlannedUser] = {}

    async def one(index: int, job: UserJob) -> None:
        planned[index] = await plan_user(job, run)

    async with anyio.create_task_group() as tasks:
        for index, job in enumerate(chunk):
            tasks.start_soon(one, index, job)
    return [planned[index] for index in range(len(chunk))]


def run_loop(main: Callable[[], Awaitable[T]]) -> T:
    """Runs `main` on uvloop where it is installed, else on asyncio."""
    try:
        import uvloop  # noqa: F401
    except ImportError:
        uvloop_here = False
    else:
        uvloop_here = True
    return anyio.run(main, backend_options={"use_uvloop": uvloop_here})
