"""A run by several processes: chunks of users, each with a journal shard of its own.

    jobs ──▶ groups (one host, or one shard) ──▶ Chunk ──▶ engine ──▶ worker: `import_chunk` ──▶ Done
                                                  │                       │
                     the run's own journal ◀──────┘       shards/NNNNNN ◀─┘  (its lock: one process at a time)

The driver says in its journal whose records are in which shard before a worker sees the chunk, and the worker opens
nothing but that shard. So a user finds all that was done for it whoever takes it, this time or at a resume with another
number of workers; and what the engine believes of its workers does not matter: who does not get the lock of the shard
does nothing.

Knows no engine: `cluster` has those of Dask.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import pickle
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aimport import __version__, orders
from aimport.account import Run
from aimport.daily import Ledger
from aimport.errors import AimportError, ConfigurationError, JournalBusy, JournalError, RunHeld, widest
from aimport.journal import HERE, LOCK, Journal, shard_directory
from aimport.limits import Limits, Reached
from aimport.logs import Form
from aimport.model import Endpoint, UserJob
from aimport.orders import Orders
from aimport.pipeline import import_user
from aimport.results import UserResult
from aimport.runners import local
from aimport.runners.local import Ending, Progress, run_loop
from aimport.runners.machine import within_the_machine
from aimport.secret import Vault
from aimport.slots import SharedHosts, Slots
from aimport.tally import Counters, Figures

logger = logging.getLogger(__name__)

MOST_USERS: Final = 500
"""Of a chunk. A million users are then 2,000 tasks and shards."""
CHUNKS_A_WORKER: Final = 8
"""At least, where there are users enough: the last ones to end are then an eighth of a worker's time."""
BLOCK: Final = 500
"""Users looked up in the journal at once."""
MOST_WAITING: Final = 20 * MOST_USERS
"""Users of known shards who wait for others of theirs, so that a shard is opened once."""
LISTEN_S: Final = 1.0
"""How often a worker asks for its orders and tells how far it is."""
LOST_TRIES: Final = 3
"""How often in a row a worker may die of the same users before they are left out."""
NOT_BEGUN_TRIES: Final = 10
"""How often a chunk is handed out before its worker's death is taken for its own doing though it never began."""
HELD_S: Final = 120.0
"""How long a shard may be locked by a worker that nobody waits for any more: it hears of it within a second, and has
the grace time to end; one that hangs in its file system has more."""
END_S: Final = 10.0
"""How long workers may take to record how their users ended, after the grace time."""
HOSTS: Final = "hosts"
DAILY: Final = "daily.sqlite"
PROGRESS: Final = "progress"
_STATE: Final = frozenset({"journal", "counters", "stopping", "gave_up"})
"""Fields of a `Run` that each process has its own of."""

Versions = tuple[str, str]
"""Of aimport, of Python."""


class WorkerFailed(Exception):
    """A bug of ours, in a worker and outside of all users."""


class WorkerLost(Exception):
    """The process that worked on a chunk has died, or the engine with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some users of one shard, and all that a worker needs to import them. Secrets in it are references."""

    directory: Path
    """Of the run."""
    shard: int
    jobs: tuple[UserJob, ...] = field(repr=False)
    settings: Mapping[str, object] = field(repr=False)
    """Fields of the `Run`."""
    token: str
    """Whose orders are obeyed."""
    turn: int = 0
    refused: Mapping[tuple[str, str, str], set[str]] = field(default_factory=dict, repr=False)
    """As `Run.refused`."""
    alone: bool = False
    """Workers may be on other machines."""
    level: int = logging.WARNING
    form: Form = "text"
    """Of log lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a chunk; the results are in its shard."""

    figures: Figures = field(default_factory=Figures)
    failure: AimportError | None = None
    """Of scope run."""
    held: bool = False
    """Another process has the shard: nothing was done."""
    reached: tuple[Reached, ...] = ()
    """As `HostLimits.reached`."""
    bug: str = ""
    """Name of an unforeseen exception."""
    ended: frozenset[str] = frozenset()
    """As `Run.ended`."""
    refused: Mapping[tuple[str, str, str], set[str]] = field(default_factory=dict)


class Engine(Protocol):
    """Where chunks are worked on."""

    slots: int
    """How many at the same time."""
    elsewhere: bool
    """Workers may be on other machines: they get no literal secrets, and their memory is theirs."""

    async def start(self, directory: Path, token: str) -> None:
        """Makes ready for a run.

        Raises:
            ConfigurationError: workers that cannot work on it.
        """
        ...

    async def run(self, chunk: Chunk) -> Done:
        """Has it imported by one worker.

        Raises:
            WorkerLost: nobody knows how far it came.
            AimportError: nothing can be imported any more.
        """
        ...

    async def close(self) -> None: ...


class Here:
    """An engine without workers: one chunk after the other in a thread of this process."""

    slots = 1
    elsewhere = False

    async def start(self, directory: Path, token: str) -> None:
        """Nothing to do."""

    async def run(self, chunk: Chunk) -> Done:
        return await anyio.to_thread.run_sync(import_chunk, chunk)

    async def close(self) -> None:
        """Nothing to do."""


_read_jobs = msgspec.msgpack.Decoder(tuple[UserJob, ...]).decode


def pack(chunk: Chunk) -> bytes:
    """For another process of the same version. For a user it takes a tenth of the time of pickle (measured)."""
    try:
        jobs = msgspec.msgpack.encode(chunk.jobs)
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return pickle.dumps((chunk, b""))
    return pickle.dumps((dataclasses.replace(chunk, jobs=()), jobs))


def unpack(octets: bytes) -> Chunk:
    chunk, jobs = pickle.loads(octets)
    assert isinstance(chunk, Chunk) and isinstance(jobs, bytes)
    return dataclasses.replace(chunk, jobs=_read_jobs(jobs)) if jobs else chunk


# --- the worker


def versions() -> Versions:
    return __version__, ".".join(platform.python_version_tuple()[:2])


def unlike(driver: Versions) -> str:
    """What is wrong with this process as a worker of a driver of these versions; "" when nothing is."""
    for what, theirs, ours in zip(("aimport", "Python"), driver, versions(), strict=True):
        if theirs != ours:
            return f"worker {os.getpid()} on {platform.node()} has {what} {ours}, the run {theirs}"
    return ""


def greet(directory: Path, token: str, driver: Versions) -> str:
    """What keeps this process from being a worker of the run; "" when nothing does."""
    if problem := unlike(driver):
        return problem
    here = f"worker {os.getpid()} on {platform.node()}"
    probe = directory / f"probe-{platform.node()}-{os.getpid()}"
    try:
        if orders.token_of(directory) != token:
            return f"{here}: what is in {directory} is not what the driver wrote there"
        if not orders.locked(directory / LOCK):
            return f"{here}: the file system of {directory} carries no locks between machines"
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, b"aimport\n")
            os.fsync(handle)
        finally:
            os.close(handle)
            probe.unlink()
    except OSError as error:
        return f"{here}: {error.filename or directory}: {error.strerror}"
    return ""


def import_chunk(chunk: Chunk) -> Done:
    """Imports the users of a chunk on a loop of its own; returns when they have ended, or the orders are to stop."""
    if orders.ask(chunk.directory, chunk.token) != "work":
        return Done()
    try:
        journal = Journal.open_shard(chunk.directory, chunk.shard, alone=chunk.alone)
    except (RunHeld, JournalBusy):  # a worker that was given up, or somebody who looks
        return Done(held=True)
    except AimportError as error:
        return Done(failure=error)
    return run_loop(partial(_import_chunk, chunk, journal))


async def _import_chunk(chunk: Chunk, journal: Journal) -> Done:
    _tell(_progress(chunk.directory, chunk.shard), Figures())  # it has begun
    run = Run(journal=journal, **chunk.settings)  # type: ignore[arg-type]  # they are fields of a Run
    run.limits = within_the_machine(run.limits)
    run.hosts = _shared_hosts(chunk.directory, run.limits)
    run.turn = chunk.turn
    run.refused.update(chunk.refused)
    failure: AimportError | None = None
    try:
        mine = {job.user for job in chunk.jobs}
        done = {each.user: each for each in journal.results() if each.user in mine and each.status == "done"}
        for result in done.values():  # by a worker that died
            run.counters.passed_over(result.found, result.octets)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_listen, chunk, run, tasks)
            jobs = (job for job in chunk.jobs if job.user not in done)
            await local.import_users(local.wanted(jobs, run), run)
            tasks.cancel_scope.cancel()
    except* AimportError as group:
        failure = widest(group.exceptions)
    try:
        await journal.close(finished=False)
    except JournalError as error:
        failure = failure or error
    return Done(
        figures=dataclasses.replace(_figures(run), running=()),
        failure=failure,
        ended=frozenset(run.ended),
        refused=run.refused if run.first else {},
        reached=tuple(run.hosts.reached()),
    )


def _shared_hosts(directory: Path, limits: Limits) -> SharedHosts:
    slots = Slots(directory / HOSTS, limits.connections_per_host)
    return SharedHosts(limits.connections_per_host, slots, first_wait_s=limits.retry_wait_s, down_s=limits.host_down_s)


async def _listen(chunk: Chunk, run: Run, tasks: TaskGroup) -> None:
    """Obeys the orders and tells how far it is, until cancelled."""
    path = _progress(chunk.directory, chunk.shard)
    while True:
        word = await anyio.to_thread.run_sync(orders.ask, chunk.directory, chunk.token)
        if word == "end":
            tasks.cancel_scope.cancel()
        elif word == "stop" and not run.stopping:
            run.stopping = True
            tasks.cancel_scope.deadline = anyio.current_time() + run.limits.grace_s
            tasks.start_soon(local.end_when_idle, run, tasks.cancel_scope)
        elif word == "enough":
            run.gave_up = True
        await anyio.to_thread.run_sync(_tell, path, _figures(run))
        await anyio.sleep(LISTEN_S)


def _figures(run: Run) -> Figures:
    stages, processor = run.stages.figures()
    return dataclasses.replace(run.counters.figures(), stages=stages, processor=processor)


def _progress(run: Path, shard: int) -> Path:
    return shard_directory(run, shard) / PROGRESS


def _tell(path: Path, figures: Figures) -> None:
    """What the driver shows meanwhile; it is written in place and not synced, for nothing hangs on it."""
    octets = msgspec.json.encode(figures)
    with suppress(OSError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(handle, octets, 0)
            os.ftruncate(handle, len(octets))
        finally:
            os.close(handle)


_read_figures = msgspec.json.Decoder(Figures).decode


def _told(path: Path) -> Figures:
    with suppress(OSError, msgspec.MsgspecError):  # none yet, or one that is just being written
        return _read_figures(path.read_bytes())
    return Figures()


# --- the driver


@dataclass(slots=True, eq=False)
class _Group:
    """Users on their way into a chunk."""

    shard: int
    """0: not known before it is handed out."""
    host: str = ""
    jobs: list[UserJob] = field(default_factory=list)


def chunk_users(users: int, slots: int, at_once: int) -> int:
    """How many users a chunk should have, of a list of so many; `at_once`: on one worker."""
    share = -(-users // slots)
    return max(1, min(MOST_USERS, share, max(at_once, -(-users // (slots * CHUNKS_A_WORKER)))))


async def run_chunks(
    jobs: Iterable[UserJob],
    run: Run,
    engine: Engine,
    *,
    users: int,
    progress: Progress | None = None,
    level: int = logging.WARNING,
    form: Form = "text",
) -> Ending:
    """As `local.run_plan`, by the workers of `engine`. `users`: how many there are about, for the size of chunks.

    Users whose records are in the run's own journal, since it was begun by one process, are imported by this one.
    """
    ending = Ending()
    try:
        driver = _Driver(run, engine, users, level, form)
        try:
            await driver.work(jobs, ending, progress)
        finally:
            driver.close()
    except* AimportError as group:
        ending.failure = widest(group.exceptions)
    return ending


class _Driver:
    """Hands out chunks and takes what became of them."""

    def __init__(self, run: Run, engine: Engine, users: int, level: int, form: Form) -> None:
        assert run.journal.directory is not None
        self.run = run
        self.directory = run.journal.directory
        self.orders = Orders(self.directory)
        self._engine = engine
        self._users = users
        self.chunk_users = 1
        self._settings: Mapping[str, object] = {}
        self._own = dataclasses.replace(run, counters=Counters())
        self._own.ended, self._own.refused = run.ended, run.refused
        self._hosts = self._own.hosts = run.hosts = _shared_hosts(self.directory, run.limits)
        self._vault = Vault()
        self._level, self._form = level, form
        self._last = HERE
        """Number of the last shard."""
        self._past = Figures()
        self._live: set[int] = set()
        """Shards that are worked on."""
        self._locks: WeakValueDictionary[int, anyio.Lock] = WeakValueDictionary()
        self._scope = anyio.CancelScope()
        self._failure: AimportError | None = None

    def close(self) -> None:
        self.orders.close()
        self._vault.close()

    async def work(self, jobs: Iterable[UserJob], ending: Ending, progress: Progress | None) -> None:
        run = self.run
        with self._scope:
            try:
                self._last = await run.journal.open_places()
                async with anyio.create_task_group() as tasks:
                    await tasks.start(local.watch_signals, run, ending, self)
                    await self._engine.start(self.directory, self.orders.token)
                    self._share_out()
                    tasks.start_soon(self._look)
                    if progress is not None:
                        tasks.start_soon(progress, run)
                    for turn in range(len(run.first) + 1):
                        run.turn = self._own.turn = turn
                        await self._turn(jobs)
                    tasks.cancel_scope.cancel()
            finally:
                self.orders.give("end")
                with anyio.CancelScope(shield=True):
                    await self._engine.close()
        self._count()
        if self._failure is not None:
            raise self._failure

    def _share_out(self) -> None:
        """What each worker may use of what the run may."""
        run, slots = self.run, self._engine.slots
        limits = run.limits
        if not self._engine.elsewhere:  # there each machine has memory and processors of its own
            users, octets = -(-limits.users // slots), max(1, limits.max_memory // slots)
            limits = dataclasses.replace(limits, users=users, max_memory=octets)
        names = {each.name for each in dataclasses.fields(run) if each.init} - _STATE
        if self._engine.elsewhere:  # days are counted where all machines see it
            run.ledger = self._own.ledger = Ledger(self.directory.parent / DAILY)
        self._settings = {name: getattr(run, name) for name in names} | {"limits": limits}
        run.throttles.processes = slots
        if run.journal.keeps_some:  # this process is one of them
            run.throttles.processes += 1
            self._own.stores, self._own.throttles = pickle.loads(pickle.dumps((run.stores, run.throttles)))
        self.chunk_users = chunk_users(self._users, slots, limits.users)

    # --- what ends it

    def begin(self) -> None:
        """The first signal."""
        self._own.stopping = True
        self.orders.give("stop")
        self._scope.deadline = anyio.current_time() + self.run.limits.grace_s + END_S

    def end(self) -> None:
        """The second."""
        self.orders.give("end")
        self._scope.deadline = anyio.current_time() + END_S

    def fail(self, error: AimportError) -> None:
        """The run cannot go on; what is under way is cancelled and recorded."""
        self._failure = widest([error] if self._failure is None else [self._failure, error])
        self.run.stopping = self._own.stopping = True
        self.end()

    # --- how far it is

    async def _look(self) -> None:
        while True:
            self._count()
            await anyio.sleep(LISTEN_S)

    def _count(self) -> None:
        live = [_told(_progress(self.directory, shard)) for shard in self._live]
        figures = Figures.sum([self._past, _figures(self._own), *live])
        self.run.counters.show(figures)
        self.run.stages.show(figures.stages, figures.processor)
        limit = self.run.limits.max_errors
        if limit and self.run.counters.users_failed >= limit and self.orders.word == "work":
            self.run.gave_up = self._own.gave_up = True
            self.orders.give("enough")

    # --- one pass over the users

    async def _turn(self, jobs: Iterable[UserJob]) -> None:
        send, receive = anyio.create_memory_object_stream[Chunk](0)
        send_own, receive_own = anyio.create_memory_object_stream[UserJob](self._own.limits.users)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._sort, jobs, send, send_own)
            for _ in range(self._own.limits.users):
                tasks.start_soon(self._import_own, receive_own.clone())
            for _ in range(self._engine.slots):  # no more: a worker that dies takes along what waits behind it
                tasks.start_soon(self._hand_over, receive.clone())
            receive.close()
            receive_own.close()

    async def _sort(
        self,
        jobs: Iterable[UserJob],
        send: MemoryObjectSendStream[Chunk],
        send_own: MemoryObjectSendStream[UserJob],
    ) -> None:
        """Users of a shard together, those who are new by their host."""
        sorter = _Sorter(self, send, send_own)
        async with send, send_own:
            try:
                block: list[UserJob] = []
                for job in local.wanted(jobs, self.run):
                    block.append(job)
                    if len(block) == BLOCK:
                        await sorter.take(block)
                        block = []
                await sorter.take(block)
                await sorter.flush()
            except AimportError as error:
                self.fail(error)

    async def _import_own(self, receive: MemoryObjectReceiveStream[UserJob]) -> None:
        """Users of the run's own journal, and those who cannot even begin."""
        async with receive:
            async for job in receive:
                if not self._own.stopping:
                    try:
                        await import_user(job, self._own)
                    except AimportError as error:
                        self.fail(error)

    async def _hand_over(self, receive: MemoryObjectReceiveStream[Chunk]) -> None:
        async with receive:
            async for chunk in receive:
                try:
                    async with self._locks.setdefault(chunk.shard, anyio.Lock()):
                        await self._import(chunk, LOST_TRIES - 1)
                except AimportError as error:
                    self.fail(error)

    async def chunk_of(self, group: _Group) -> Chunk:
        """Records whose users are where; from then on a worker needs nothing but their shard."""
        run = self.run
        if not group.shard:
            self._last += 1
            group.shard = self._last
        if not run.turn:
            await run.journal.hand_out(group.shard, [(job.user, job.destination.identity) for job in group.jobs])
        names = {job.user for job in group.jobs} if run.refused else set[str]()
        return Chunk(
            directory=self.directory,
            shard=group.shard,
            jobs=tuple(map(self._without_literals, group.jobs)),
            settings=self._settings,
            token=self.orders.token,
            turn=run.turn,
            refused={place: keys for place, keys in run.refused.items() if place[0] in names},
            alone=self._engine.elsewhere,
            level=self._level,
            form=self._form,
        )

    def _without_literals(self, job: UserJob) -> UserJob:
        if self._engine.elsewhere:
            refuse_literals(job)
            return job
        source, destination = self._kept(job.source), self._kept(job.destination)
        if source is job.source and destination is job.destination:
            return job
        return dataclasses.replace(job, source=source, destination=destination)

    def _kept(self, endpoint: Endpoint) -> Endpoint:
        if endpoint.secret is None or endpoint.secret.kind != "literal":
            return endpoint
        return dataclasses.replace(endpoint, secret=self._vault.keep(endpoint.secret))

    # --- one chunk

    async def _import(self, chunk: Chunk, tries: int) -> None:
        """Until it is done. Users who cost a worker its life are found out by halving: they cost the others nothing."""
        single = len(chunk.jobs) == 1
        for lost in range(1, (LOST_TRIES if single else tries) + 1):
            if self.run.stopping or self.run.gave_up:
                return
            try:
                return self._take(await self._done(chunk))
            except WorkerLost as error:
                users = len(chunk.jobs)
                logger.warning("worker lost shard=%d users=%d times=%d: %s", chunk.shard, users, lost, error)
        if single:
            await self._leave_out(chunk)
            return
        half = len(chunk.jobs) // 2
        for some in (chunk.jobs[:half], chunk.jobs[half:]):
            await self._import(dataclasses.replace(chunk, jobs=some), 1)

    async def _done(self, chunk: Chunk) -> Done:
        """Has it imported, as soon as nobody else has its shard.

        Raises:
            WorkerLost
            RunHeld: a worker of before does not let go of it.
        """
        progress = _progress(self.directory, chunk.shard)
        progress.unlink(missing_ok=True)
        self._live.add(chunk.shard)
        try:
            until = anyio.current_time() + HELD_S
            for tries in itertools.count(1):
                try:
                    done = await self._engine.run(chunk)
                except WorkerLost:
                    if tries == NOT_BEGUN_TRIES or progress.exists():
                        raise
                    continue  # it had not begun: its worker died of another chunk
                if not done.held or self.run.stopping:
                    return done
                if anyio.current_time() > until:
                    raise RunHeld(
                        f"{shard_directory(self.directory, chunk.shard)} is held by another process",
                        hint="a worker of this run that hangs: end it, then resume",
                    )
                await anyio.sleep(LISTEN_S)
            raise AssertionError(chunk)
        finally:
            self._live.discard(chunk.shard)

    def _take(self, done: Done) -> None:
        if done.bug:
            raise WorkerFailed(done.bug)
        self._past = Figures.sum([self._past, done.figures])
        self._count()
        self.run.ended.update(done.ended)
        self.run.refused.update(done.refused)
        self._hosts.hear(done.reached)
        if done.failure is not None:
            self.fail(done.failure)

    async def _leave_out(self, chunk: Chunk) -> None:
        """Records that a user cannot be imported; of one who has begun, what is known stands and has no end."""
        [job] = chunk.jobs
        error = f"{LOST_TRIES} worker processes died of it one after the other (out of memory?); run `aimport resume`"
        logger.error("user left out user=%s error=%s", job.user, error)
        journal = await anyio.to_thread.run_sync(Journal.open_shard, self.directory, chunk.shard)
        try:
            if job.user not in journal.begun():
                await journal.finish_user(job.user, UserResult(user=job.user, status="failed", error=error))
        finally:
            await journal.close(finished=False)
        self._past = Figures.sum([self._past, Figures(users_done=1, users_failed=1)])


class _Sorter:
    """Groups that are not full yet."""

    def __init__(
        self, driver: _Driver, send: MemoryObjectSendStream[Chunk], send_own: MemoryObjectSendStream[UserJob]
    ) -> None:
        self._driver = driver
        self._send = send
        self._send_own = send_own
        self._known: dict[int, _Group] = {}
        """By shard."""
        self._new: dict[str, _Group] = {}
        """By host."""
        self._accounts: dict[str, _Group] = {}
        """Of the users of `_new` by destination: one account has one shard."""
        self._handed: dict[str, int] = {}
        """Shards of destinations that the journal was asked for too early."""

    async def take(self, jobs: Sequence[UserJob]) -> None:
        self._handed.clear()
        ready = [job for job in jobs if not job.error]
        for job in jobs:
            if job.error:
                await self._send_own.send(job)
        homes = await self._driver.run.journal.homes([(job.user, job.destination.identity) for job in ready])
        for job, home in zip(ready, homes, strict=True):
            account = job.destination.identity
            shard = self._handed.get(account) if home is None else home
            if shard == HERE:
                await self._send_own.send(job)
            elif shard is not None:
                await self._add(job, self._known.setdefault(shard, _Group(shard)))
            else:
                host = job.destination.host or job.source.host
                group = self._accounts.get(account) or self._new.setdefault(host, _Group(HERE, host))
                self._accounts[account] = group
                await self._add(job, group)
        while sum(len(group.jobs) for group in self._known.values()) > MOST_WAITING:
            await self._hand_out(max(self._known.values(), key=lambda group: len(group.jobs)))

    async def flush(self) -> None:
        for group in [*self._new.values(), *self._known.values()]:
            await self._hand_out(group)

    async def _add(self, job: UserJob, group: _Group) -> None:
        group.jobs.append(job)
        if len(group.jobs) >= self._driver.chunk_users:
            await self._hand_out(group)

    async def _hand_out(self, group: _Group) -> None:
        chunk = await self._driver.chunk_of(group)
        if self._known.pop(group.shard, None) is None:
            del self._new[group.host]
            for job in group.jobs:
                self._accounts.pop(job.destination.identity, None)
                self._handed[job.destination.identity] = group.shard
        await self._send.send(chunk)


def refuse_literals(job: UserJob) -> None:
    """
    Raises:
        ConfigurationError: it has a secret that would have to travel to another machine.
    """
    for side, endpoint in (("source", job.source), ("destination", job.destination)):
        if endpoint.secret is not None and endpoint.secret.kind == "literal":
            raise ConfigurationError(
                f"user {job.user!r}: the password of the {side} is a literal one, and secrets do not travel to other"
                " machines",
                hint="give env:NAME, file:PATH or cmd:COMMAND, which each worker looks up for itself",
            )
