"""Copy one account: the lanes, their queues, and where each failure stops.

    users ──▶ import_user ──▶ lanes ──▶ (read_mailbox ─▶ queue ─▶ write_mailbox) ──▶ journal

Knows nothing of IMAP or Maildir; sees only `interfaces`. Order inside a mailbox is kept
because one lane copies one mailbox and one writer appends it. Retry, resume after a crash and
a resume next week are one code path: `import_user` runs the same user again and the journal
says what is done.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol, TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import stamina
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aimport import octets, reconcile
from aimport.errors import (
    AccessRefused,
    AimportError,
    ConnectionLost,
    JournalError,
    LoginRefused,
    MailboxError,
    MailboxNotFound,
    MessageUnreadable,
    OverQuota,
    Retry,
    Scope,
    ServerBug,
    Status,
    TooManyConnections,
    Unavailable,
    UserError,
    widest,
)
from aimport.interfaces import Appending, Destination, DestinationSession, Source, SourceSession
from aimport.journal import Journal, LaneLog, UserLog
from aimport.limits import LOGINS_REFUSED, ByteBudget, HostLimits, Lease, Limits
from aimport.model import (
    STREAM_OCTETS,
    Appended,
    Batch,
    Endpoint,
    Fingerprint,
    Mailbox,
    Message,
    MessageKey,
    NotStored,
    Outcome,
    Position,
    Rejected,
    Repaired,
    Selection,
    Stored,
    Unreadable,
    UserJob,
    Wanted,
)
from aimport.names import map_names
from aimport.query.mailboxes import MailboxQuery
from aimport.results import UserResult
from aimport.tally import Counters

logger = logging.getLogger(__name__)

UNFINISHED: Final = "unfinished"
VANISHED: Final = "vanished"
UNLISTED: Final = "unlisted"
HASH_INLINE_OCTETS: Final = 128 * 1024
"""Up to here hashing a batch costs less than the 60-90 us of a thread hop (measured)."""
COMMIT_GRACE_S: Final = 5.0
MAX_RETRY_WAIT_S: Final = 60.0
SERVER_BUGS_IN_A_ROW: Final = 10  # arbitrary: so many are no fault of the messages
LOSSES_ALONE: Final = 3  # arbitrary: a connection may also be lost by chance, or by what was sent before
CULPRITS_IN_A_ROW: Final = 3  # arbitrary: more than so many, of which the server says nothing, are none
TEXT_LIMIT: Final = 1000  # characters of a server's words kept with a repair


class Stores(Protocol):
    """Where endpoints become stores (`aimport.stores`, or a test's own)."""

    def source(self, endpoint: Endpoint) -> Source: ...

    def destination(self, endpoint: Endpoint) -> Destination: ...


@dataclass(slots=True, kw_only=True)
class Run:
    """What all users of a run share."""

    stores: Stores
    journal: Journal
    query: MailboxQuery
    limits: Limits = field(default_factory=Limits)
    subscribe: bool = False
    repair: bool = False
    """`--repair on-reject`: a message that was refused is changed until it is taken, and that is recorded."""
    counters: Counters = field(default_factory=Counters)
    stopping: bool = False
    """Set by the first SIGINT or SIGTERM: take no new work, let batches in flight finish."""
    gave_up: bool = False
    """Set when `--max-errors` was reached: users remain that were not begun."""
    clock: Callable[[], float] = time.time
    budget: ByteBudget = field(init=False)
    hosts: HostLimits = field(init=False)

    _accounts: WeakValueDictionary[str, anyio.Lock] = field(init=False, default_factory=WeakValueDictionary)

    def alone(self, identity: str) -> anyio.Lock:
        """Held while an account is written: two lines of a list may share one under different parents."""
        return self._accounts.setdefault(identity, anyio.Lock())

    def __post_init__(self) -> None:
        self.budget = ByteBudget(self.limits.max_memory)
        self.hosts = HostLimits(self.limits.connections_per_host)


@dataclass(slots=True)
class Suspects:
    """Messages of one mailbox that a connection was lost at, over all tries of the user.

    Some servers answer a message they do not like with BYE (Gmail, a NUL) or die of it. A server takes what it
    is sent in order, so the culprit is in the oldest batch of which something is missing afterwards.
    """

    losses: dict[MessageKey, int] = field(default_factory=dict)
    """How often each was the whole of that batch. It stands alone from the first loss on."""
    error: ConnectionLost | None = None
    """How the last connection was lost."""
    unsettled: bool = False
    """What was under way then is not settled yet."""
    rejected_in_a_row: int = 0

    @contextmanager
    def watch(self) -> Generator[None]:
        """Notes how the connection was lost, unless the server only asks to come back later."""
        try:
            yield
        except ConnectionLost as error:
            if not isinstance(error, Unavailable):
                self.error, self.unsettled = error, True
            raise

    def accuse(self, keys: Sequence[MessageKey], missing: Sequence[MessageKey]) -> None:
        """`missing` of the batch `keys` were not stored; a server that says why need not be asked thrice."""
        assert self.error is not None
        self.unsettled = False
        for key in missing:
            known = self.losses.setdefault(key, 0)
            if len(keys) == 1:
                self.losses[key] = known + (LOSSES_ALONE if self.error.cause else 1)


@dataclass(slots=True)
class Work:
    """One source mailbox on its way: what was selected, where it goes, how it ended."""

    selection: Selection
    target: Mailbox
    lane: LaneLog | None
    refused: set[str] = field(default_factory=set)
    """Keys rejected since the user began: a retry passes them over, a resume tries them again."""
    suspects: Suspects = field(default_factory=Suspects)
    complete: bool = False

    @property
    def source(self) -> Mailbox:
        return self.selection.mailbox

    def __contains__(self, key: object) -> bool:
        """Whether `key` has come to its end."""
        return key in self.refused or (self.lane is not None and key in self.lane.committed)

    def open_keys(self) -> int:
        """Selected messages that have not come to their end."""
        if not self.refused and (self.lane is None or not self.lane.committed):
            return len(self.selection.keys)
        return sum(1 for key in self.selection.keys if key not in self)


class Account:
    """One user on its way through its tries: what is known, what failed."""

    def __init__(self, job: UserJob, log: UserLog, run: Run) -> None:
        self.job = job
        self.log = log
        self.run = run
        self.works: dict[tuple[str, str], Work] = {}
        self.failures: list[tuple[str, AimportError]] = []
        """Mailbox failures of the current try, with the mailbox name."""
        self.cut_short = False
        """The run was stopped before all its mailboxes were looked at: there may be more than is known."""
        self.announced = False

    def mailbox_failed(self, mailbox: str, error: AimportError) -> None:
        self.failures.append((mailbox, error))
        logger.warning("mailbox failed user=%s mailbox=%s error=%s", self.job.user, mailbox, error)

    def progress(self) -> int:
        """Grows with every message that comes to its end."""
        return sum(len(lane.committed) + len(lane.rejected) for lane in self.log.lanes.values())


async def import_user(job: UserJob, run: Run) -> UserResult:
    """Imports one user to its end and records the result; raises only what ends the run.

    Raises:
        JournalError, DestinationFull, RunHeld: the run cannot go on.
    """
    began = time.monotonic()
    run.counters.user_began(job.user, _host(job))
    account: Account | None = None
    failure: AimportError | None = None
    bug: Exception | None = None
    try:
        if job.error:
            raise _unready(job)
        async with run.alone(job.destination.identity):
            log = await run.journal.begin_user(job.user, job.destination.identity)
            account = Account(job, log, run)
            await _try_until_done(account)
    except AimportError as error:
        failure = error
    except anyio.get_cancelled_exc_class():
        # The second signal, the end of the grace time, or a failure of the whole run.
        result = _result(job, account, None, None, run, time.monotonic() - began, stopped=True)
        with anyio.move_on_after(COMMIT_GRACE_S, shield=True), contextlib.suppress(JournalError):
            await run.journal.finish_user(job.user, result)
        raise
    except Exception as error:  # a bug ends its user only; cancellation is no Exception
        logger.error("user ended by a bug user=%s error=%s", job.user, type(error).__name__)
        logger.debug("trace user=%s", job.user, exc_info=error)
        bug = error
    result = _result(job, account, failure, bug, run, time.monotonic() - began)
    with anyio.move_on_after(COMMIT_GRACE_S, shield=True):
        await run.journal.finish_user(job.user, result)
    if failure is not None and failure.scope is Scope.RUN:
        run.counters.user_ended(job.user, failed=True)
        raise failure
    run.counters.user_ended(job.user, failed=result.status not in ("done", "rejects"))
    if result.error:
        logger.warning("user %s user=%s error=%s", result.status, job.user, result.error)
    return result


async def _try_until_done(account: Account) -> None:
    """Runs the user again after failures that pass; a try that got further starts the count anew."""
    run = account.run
    limits = run.limits
    known = account.progress()
    idle = 0

    def wait_s(error: Exception) -> bool | float:
        nonlocal known, idle
        progress = account.progress()
        idle = 1 if progress > known else idle + 1
        known = progress
        if run.stopping or idle >= limits.attempts or not _worth_retrying(error):
            return False
        assert isinstance(error, AimportError)
        doubled = min(limits.retry_wait_s * 2.0 ** (idle - 1), MAX_RETRY_WAIT_S)
        jitter = random.uniform(0.5, 1.0)  # so that users do not come in step
        return max(error.wait_s, doubled * jitter)

    async for attempt in stamina.retry_context(on=wait_s, attempts=None, timeout=None):
        with attempt:
            if run.stopping:
                account.cut_short = True
                return
            if attempt.num > 1:
                logger.warning("user tried again user=%s try=%d", account.job.user, attempt.num)
            await _copy_account(account)


def _worth_retrying(error: Exception) -> bool:
    return isinstance(error, AimportError) and error.scope is not Scope.RUN and error.retry is Retry.LATER


async def _copy_account(account: Account) -> None:
    """One try: list, select, settle what is in doubt, copy what is not done.

    Raises:
        MailboxError: the widest failure of a mailbox that a new try may mend.
    """
    job, run = account.job, account.run
    account.failures.clear()
    source, destination = run.stores.source(job.source), run.stores.destination(job.destination)
    async with (
        run.hosts.hold((source.host, destination.host)),
        _opened(source, run) as reader,
        _opened(destination, run) as writer,
    ):
        await _select_all(account, reader, writer)
        works = [work for work in account.works.values() if not work.complete]
        works.sort(key=lambda work: len(work.selection.keys), reverse=True)
        await _run_lanes(account, works, source, destination, reader, writer)
    again = [error for _, error in account.failures if error.retry is Retry.LATER]
    if again:
        raise widest(again)


S = TypeVar("S", SourceSession, DestinationSession)
S_co = TypeVar("S_co", SourceSession, DestinationSession, covariant=True)


class _Store(Protocol[S_co]):
    """What source and destination have in common."""

    host: str

    def open(self) -> AbstractAsyncContextManager[S_co]: ...


@asynccontextmanager
async def _opened(store: _Store[S], run: Run) -> AsyncGenerator[S]:
    """A session; what its host refused or allowed is learnt for all users.

    Raises:
        LoginRefused: also unasked, when a host has refused many users one after the other.
    """
    hosts, host = run.hosts, store.host
    if hosts.is_closed(host):
        raise LoginRefused(
            f"{host}: not tried, for it refused the last {LOGINS_REFUSED} logins one after the other",
            hint="check the credentials, then resume",
        )
    async with AsyncExitStack() as stack:
        try:
            session = await stack.enter_async_context(store.open())
        except LoginRefused:
            hosts.refused_login(host)
            raise
        except TooManyConnections:
            logger.warning("connections lowered host=%s connections=%d", host, hosts.refused_connection(host))
            raise
        hosts.logged_in(host)
        if host and session.limits.per_address:
            hosts.allow(host, session.limits.per_address)
        yield session


async def _map_mailboxes(
    job: UserJob, run: Run, reader: SourceSession, writer: DestinationSession
) -> tuple[Mapping[Mailbox, Mailbox], tuple[str, ...]]:
    """Selected source mailboxes with their destinations, and names in the query that do not exist.

    Raises:
        NameClash: before anything is written.
    """
    listed = await reader.list_mailboxes()
    mailboxes = [mailbox for mailbox in listed if run.query.selects(mailbox)]
    mapped = map_names(mailboxes, job.parent, writer.separator, folds_case=writer.folds_case)
    return mapped, run.query.missing(listed)


async def _select_all(account: Account, reader: SourceSession, writer: DestinationSession) -> None:
    """Fills `account.works`. Name clashes end the user here, before the first write."""
    job, run = account.job, account.run
    targets, missing = await _map_mailboxes(job, run, reader, writer)
    for name in missing:
        account.mailbox_failed(name, MailboxNotFound("no such mailbox at the source", named=True))
    for mailbox, target in targets.items():
        place = (mailbox.name, target.name)
        known = account.works.get(place)
        if known is not None and known.complete:
            continue
        if run.stopping:
            account.cut_short = True
            return
        try:
            selection = await reader.select(mailbox)
        except MailboxError as error:
            account.mailbox_failed(mailbox.name, error)
            continue
        work = Work(selection, target, account.log.lanes.get(place))
        if known is not None:
            work.refused = known.refused
            work.suspects = known.suspects
        account.works[place] = work
        if known is None:
            done = len(selection.keys) - work.open_keys()
            run.counters.user_found(job.user, len(selection.keys))
            run.counters.settled(job.user, done, 0)


async def _run_lanes(
    account: Account,
    works: Sequence[Work],
    source: Source,
    destination: Destination,
    reader: SourceSession,
    writer: DestinationSession,
) -> None:
    """Spreads mailboxes over lanes: one with the sessions at hand, more where the host limits allow."""
    run = account.run
    busy = sum(1 for work in works if work.selection.keys)
    send, receive = anyio.create_memory_object_stream[Work](run.limits.connections_per_user)
    failure: AimportError | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_feed_mailboxes, works, send)
            tasks.start_soon(_run_lane, account, receive.clone(), destination.wire, reader, writer)
            allowed = [each.limits.per_user for each in (reader, writer) if each.limits.per_user]
            for _ in range(min(run.limits.connections_per_user, busy, *allowed) - 1):
                held = run.hosts.try_hold((source.host, destination.host))
                if held is None:
                    break
                tasks.start_soon(_run_extra_lane, account, receive.clone(), source, destination, held)
            receive.close()
    except* AimportError as group:
        failure = widest(group.exceptions)
    if failure is not None:
        raise failure


async def _feed_mailboxes(works: Sequence[Work], send: MemoryObjectSendStream[Work]) -> None:
    async with send:
        for work in works:
            try:
                await send.send(work)
            except anyio.BrokenResourceError:
                return  # the lanes ended; their own error tells why


async def _run_extra_lane(
    account: Account,
    receive: MemoryObjectReceiveStream[Work],
    source: Source,
    destination: Destination,
    held: dict[str, int],
) -> None:
    """A further lane with sessions of its own; one that gets none leaves its work to the others."""
    run = account.run
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(receive)
            try:
                reader = await stack.enter_async_context(_opened(source, run))
                writer = await stack.enter_async_context(_opened(destination, run))
            except TooManyConnections as error:
                logger.info("lane given up user=%s error=%s", account.job.user, error)
                return
            await _run_lane(account, receive, destination.wire, reader, writer)
    finally:
        run.hosts.release(held)


async def _run_lane(
    account: Account,
    receive: MemoryObjectReceiveStream[Work],
    wire: bool,
    reader: SourceSession,
    writer: DestinationSession,
) -> None:
    """One source session, one destination session, one mailbox at a time. Mailbox failures end here."""
    async with receive:
        async for work in receive:
            if account.run.stopping:
                return
            try:
                await _copy_mailbox(account, work, wire, reader, writer)
            except MailboxError as error:
                account.mailbox_failed(work.source.name, error)


async def _copy_mailbox(
    account: Account, work: Work, wire: bool, reader: SourceSession, writer: DestinationSession
) -> None:
    """Copies what the journal does not call done; creates the mailbox when the first message is due."""
    run = account.run
    if work.lane is not None and work.lane.open_batches:
        await _settle(account, work, work.lane, writer)
    if not work.open_keys():
        work.complete = True
        return
    await writer.create_mailbox(work.target, subscribe=run.subscribe)
    if work.lane is None:
        position = await writer.position(work.target)
        if position is None:
            raise MailboxNotFound(f"mailbox {work.target.name!r} is missing right after it was created")
        work.lane = await account.log.lane(work.source.name, work.target.name, position)
    copy = Copy(account=account, work=work, lane=work.lane, wire=wire)
    await copy.run(reader, writer)
    work.complete = copy.read_to_end


async def _settle(account: Account, work: Work, lane: LaneLog, writer: DestinationSession) -> None:
    """Finds out what became of batches without an answer; never sends one again blindly."""
    run = account.run
    newest = max(batch.created_us for batch in lane.open_batches) / 1e6
    if account.job.destination.remote:
        # The server finishes what it had received before our session died: wait that out first.
        await anyio.sleep(min(max(0.0, newest + run.limits.fence_s - run.clock()), run.limits.fence_s))
    position = await writer.position(work.target)
    if position is not None and position.uidvalidity != lane.position.uidvalidity:
        # Another mailbox by the same name: all of it may be ours, and the UIDs known so far mean nothing.
        await lane.move(Position(uidvalidity=position.uidvalidity, uidnext=1))
    wanted: list[Wanted] = []
    dates: list[int | None] = []
    places: list[tuple[int, int]] = []
    for batch in lane.open_batches:
        for index, (fingerprint, date) in enumerate(zip(batch.fingerprints, batch.dates, strict=True)):
            wanted.append(
                Wanted(
                    run=run.journal.run,
                    number=batch.number,
                    created_us=batch.created_us,
                    index=index,
                    fingerprint=fingerprint,
                )
            )
            dates.append(date)
            places.append((batch.number, index))
    stored = await writer.find(work.target, wanted, lane.position)
    matched = reconcile.match(
        wanted,
        dates,
        stored,
        claimed_uids=lane.committed_uids(),
        claimed_fingerprints=lane.committed_fingerprints_without_uid(),
    )
    found: dict[int, dict[int, Stored]] = {batch.number: {} for batch in lane.open_batches}
    for (number, index), match in zip(places, matched, strict=True):
        if match is not None:
            found[number][index] = match
    if work.suspects.unsettled:
        for batch in lane.open_batches:
            if missing := [key for index, key in enumerate(batch.keys) if index not in found[batch.number]]:
                work.suspects.accuse(batch.keys, missing)
                break
    for number, indexes in found.items():
        await lane.settle(number, {index: match.uid for index, match in indexes.items()})
    logger.info(
        "batches settled user=%s mailbox=%s messages=%d found=%d",
        account.job.user,
        work.target.name,
        len(wanted),
        sum(map(len, found.values())),
    )


class Prepared(NamedTuple):
    """A message as it will be sent, the fingerprint of its wire form, what it took of the byte budget."""

    message: Message
    fingerprint: Fingerprint
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A batch on its way: its messages, its intent, and who knows what became of it."""

    part: Sequence[Prepared]
    batch: Batch
    appending: Appending


@dataclass(slots=True)
class Left:
    """What of a batch has not come to its end."""

    again: list[Prepared] = field(default_factory=list)
    """Refused in company."""
    mend: list[tuple[Prepared, Rejected]] = field(default_factory=list)
    """To be repaired."""
    failed: list[Prepared] = field(default_factory=list)
    """The server failed within itself."""
    bug: ServerBug | None = None
    errors: list[AimportError] = field(default_factory=list)
    """Wider failures that stopped the rest."""

    def __bool__(self) -> bool:
        return bool(self.again or self.mend or self.failed or self.errors)


class Copy:
    """One mailbox between its reader, its writer and the answers.

    read_mailbox ─▶ lists ─▶ write_mailbox ─▶ batches under way ─▶ settle_mailbox ─▶ journal
    """

    def __init__(self, *, account: Account, work: Work, lane: LaneLog, wire: bool) -> None:
        self.account = account
        self.work = work
        self.lane = lane
        self.wire = wire
        self.lease: Lease = account.run.budget.lease()
        self.read_to_end = False
        self._unread: AimportError | None = None
        """Why the source could not be read to its end."""
        self._failed_in_a_row = 0
        """Messages rejected one after the other because the server fails."""
        ahead = account.run.limits.batches_ahead
        self._room = anyio.Semaphore(ahead)
        self._large = anyio.Semaphore(1)
        """Taken by a message that is not in memory until it has its outcome: it holds a file, maybe a temporary one."""
        self._turn = anyio.Lock()
        """Held while a batch is handed over, so that whoever holds it can let what is under way run out."""
        self._send, self._receive = anyio.create_memory_object_stream[Sent](ahead)

    async def run(self, reader: SourceSession, writer: DestinationSession) -> None:
        """Copies what is not done.

        Raises:
            AimportError: the widest failure; batches without an answer stay open in the journal.
        """
        send, receive = anyio.create_memory_object_stream[list[Message]](self.account.run.limits.queue_lists)
        failure: AimportError | None = None
        self.work.suspects.unsettled = False  # nothing is in doubt yet
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.read_mailbox, reader, send)
                tasks.start_soon(self.write_mailbox, writer, receive)
                tasks.start_soon(self.settle_mailbox, writer)
        except* AimportError as group:
            failure = widest(group.exceptions)
        finally:
            self.lease.close()
        if failures := [error for error in (failure, self._unread) if error is not None]:
            raise widest(failures)

    async def read_mailbox(self, reader: SourceSession, send: MemoryObjectSendStream[list[Message]]) -> None:
        """Reads what is not done and sends it on in lists; message failures of the source end here.

        A wider one waits in `_unread` until what was read is stored: a source that gives little each time it is
        asked comes to its end as well.
        """
        try:
            await self._read_mailbox(reader, send)
        except (ConnectionLost, MailboxError) as error:
            self._unread = error

    async def _read_mailbox(self, reader: SourceSession, send: MemoryObjectSendStream[list[Message]]) -> None:
        run = self.account.run
        async with send, aclosing(reader.messages(self.work.selection, skip=self.work)) as lists:
            async for items in lists:
                messages = [item for item in items if isinstance(item, Message)]
                if len(messages) < len(items):
                    await self._unreadable([item for item in items if isinstance(item, Unreadable)])
                for part in _large_apart(messages):
                    if not isinstance(part[0].body, bytes):
                        await self._large.acquire()
                    await self.lease.take(_octets_of(part))
                    try:
                        await send.send(part)
                    except anyio.BrokenResourceError:
                        return  # the writer ended; its own error tells why
                if run.stopping:
                    return
        self.read_to_end = True

    async def _unreadable(self, items: Sequence[Unreadable]) -> None:
        self.work.refused.update(item.key for item in items)
        await self.lane.reject([Rejected(key=item.key, code=item.code, text=item.text) for item in items])
        self.account.run.counters.settled(self.account.job.user, len(items), 0)

    async def write_mailbox(
        self, writer: DestinationSession, receive: MemoryObjectReceiveStream[list[Message]]
    ) -> None:
        """Takes what the queue holds up to the batch limits, without waiting for more, and hands it over."""
        limits = self.account.run.limits
        async with receive, self._send:
            async for messages in receive:
                for batch in cut(_drain(receive, messages, limits), limits):
                    try:
                        part = await prepare(batch, wire=self.wire)
                    except MessageUnreadable as error:
                        [message] = batch
                        await self._unreadable([Unreadable(key=message.key, code=error.code, text=str(error))])
                        self._done_with(message, _octets_of(batch))
                        continue
                    try:
                        with self.work.suspects.watch():
                            await self._send_apart(writer, part)
                    except anyio.BrokenResourceError:
                        return  # the settling ended; its own error tells why

    async def _send_apart(self, writer: DestinationSession, part: Sequence[Prepared]) -> None:
        """Hands over what may go; each suspect stands alone, and one that cost the connection too often goes not."""
        losses = self.work.suspects.losses
        for suspect, group in itertools.groupby(part, key=lambda each: each.message.key in losses):
            together = list(group)
            for some in [[each] for each in together] if suspect else [together]:
                if suspect and losses[some[0].message.key] >= LOSSES_ALONE:
                    await self._condemn(writer, some[0])
                    continue
                await self._room.acquire()
                async with self._turn:
                    self._send.send_nowait(await self._hand_over(writer, some))

    async def settle_mailbox(self, writer: DestinationSession) -> None:
        """Waits for answers in order and commits them; what was refused in company goes again, in halves."""
        async with self._receive:
            async for sent in self._receive:
                with self.work.suspects.watch():
                    left = await self._settle(sent)
                    self._room.release()
                    if left:
                        async with self._turn:
                            await self._sort_out(writer, left)

    async def _sort_out(self, writer: DestinationSession, left: Left) -> None:
        """Lets what is under way run out, so that every answer counts; then looks for the culprits.

        Raises:
            AimportError: a failure wider than a message.
        """
        lefts = [left]
        errors = [*left.errors]
        while True:
            try:
                sent = self._receive.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream):
                break
            try:
                lefts.append(await self._settle(sent))
            except ConnectionLost as error:
                errors.append(error)  # what was said before counts more: it may say for how long to stay away
                break
            errors += lefts[-1].errors
            self._room.release()
        if errors:
            raise widest(errors)
        # With each part how often the server has failed at it.
        parts = [(half, 0) for left in reversed(lefts) for half in reversed(halves(left.again))]
        parts += [(left.failed, 1) for left in reversed(lefts) if left.failed]
        mend = [each for left in lefts for each in left.mend]
        while parts:
            part, failures = parts.pop()
            wait_s = self.account.run.limits.retry_wait_s * min(failures, ServerBug.tries)
            await anyio.sleep(wait_s * random.uniform(0.5, 1.0))
            left = await self._settle(await self._hand_over(writer, part))
            if left.errors:
                raise widest(left.errors)
            assert not left.again or len(part) > 1, "a message alone is stored or rejected, never refused in company"
            parts += [(half, failures) for half in reversed(halves(left.again))]
            mend += left.mend
            if len(left.failed) == 1 and failures + 1 >= ServerBug.tries:
                await self._give_up(left.failed[0], left.bug)
            else:
                parts += [(half, failures + 1) for half in reversed(halves(left.failed))]
        for prepared, refusal in mend:
            await self._mend(writer, prepared, refusal)

    async def _give_up(self, prepared: Prepared, bug: ServerBug | None) -> None:
        """Rejects a message that the server fails at again and again; not all messages, one after the other.

        Raises:
            ServerBug: it fails at each.
        """
        assert bug is not None
        self._failed_in_a_row += 1
        if self._failed_in_a_row > SERVER_BUGS_IN_A_ROW:
            raise bug
        rejection = Rejected(key=prepared.message.key, code=bug.code, text=bug.text)
        await self.lane.reject([rejection])
        self._tell([(prepared, rejection)])
        self._done_with(prepared.message, prepared.held)

    async def _condemn(self, writer: DestinationSession, prepared: Prepared) -> None:
        """Rejects a message that costs the connection each time it is sent; not all messages, one after the other.

        Raises:
            ConnectionLost: any message costs it.
        """
        suspects, key = self.work.suspects, prepared.message.key
        error = suspects.error
        assert error is not None
        if not error.cause:
            suspects.rejected_in_a_row += 1
            if suspects.rejected_in_a_row > CULPRITS_IN_A_ROW:
                raise error
        text = f"sent alone it costs the connection: {error.text}"
        rejection = Rejected(key=key, code=error.code, text=text, cause=error.cause)
        # One repair: it may cost the connection as well.
        mendable = self.account.run.repair and error.cause and isinstance(prepared.message.body, bytes)
        if mendable and suspects.losses[key] < 2 * LOSSES_ALONE:
            for _ in range(self.account.run.limits.batches_ahead):  # all that is under way has its answer
                await self._room.acquire()
            async with self._turn:
                await self._mend(writer, prepared, rejection)
            for _ in range(self.account.run.limits.batches_ahead):
                self._room.release()
            return
        await self.lane.reject([rejection])
        self._tell([(prepared, rejection)])
        self._done_with(prepared.message, prepared.held)

    async def _mend(self, writer: DestinationSession, prepared: Prepared, refusal: Rejected) -> None:
        """Sends changed versions of a refused message until one is taken; then, or when none is, it has its end.

        Raises:
            AimportError: a failure wider than a message.
        """
        message, original, held = prepared
        assert isinstance(message.body, bytes)
        wire = octets.wire_form(message.body)
        outcome: Appended | Rejected = refusal
        from aimport.repair import ladder  # a thousand lines that most runs do not need

        rungs = ladder(wire, refusal.cause)
        while (repair := await anyio.to_thread.run_sync(next, rungs, None)) is not None:
            if outcome is refusal:
                await self.lane.escrow(original, message.body)
            changed = Message(
                key=message.key, flags=message.flags, internal_date=message.internal_date, body=repair.body, wire=True
            )
            sent = await self._hand_over(writer, [Prepared(changed, octets.fingerprint(repair.body), held)])
            [answer] = await sent.appending.outcomes()
            if isinstance(answer, Appended):
                reason = f"[{refusal.code}] {refusal.text}" if refusal.code else refusal.text
                outcome = replace(
                    answer, repaired=Repaired(steps=repair.steps, original=original, reason=reason[:TEXT_LIMIT])
                )
                await self._record(sent, [outcome])
                break
            await self._record(sent, [NotStored(key=message.key)])
            if isinstance(answer, NotStored):
                assert answer.error is not None, "a message alone is never refused in company"
                raise answer.error
        else:
            await self.lane.reject([refusal])
        self._tell([(prepared, outcome)])
        self._done_with(message, held)

    async def _hand_over(self, writer: DestinationSession, part: Sequence[Prepared]) -> Sent:
        """Intent, then the octets."""
        batch = await self.lane.intent([each.message for each in part], [each.fingerprint for each in part])
        return Sent(part=part, batch=batch, appending=await writer.append(self.work.target, batch))

    async def _settle(self, sent: Sent) -> Left:
        """Records the answer to one batch; returns what has no end yet."""
        outcomes = await sent.appending.outcomes()
        left = Left()
        ended: list[tuple[Prepared, Appended | Rejected]] = []
        recorded: list[Outcome] = []
        for prepared, outcome in zip(sent.part, outcomes, strict=True):
            if isinstance(outcome, Rejected) and self.account.run.repair and isinstance(prepared.message.body, bytes):
                left.mend.append((prepared, outcome))
                outcome = NotStored(key=outcome.key)
            elif not isinstance(outcome, NotStored):
                ended.append((prepared, outcome))
            elif isinstance(outcome.error, ServerBug):
                left.failed.append(prepared)
                left.bug = outcome.error
            elif outcome.error is not None:
                left.errors.append(outcome.error)
            else:
                left.again.append(prepared)
            recorded.append(outcome)
        await self._record(sent, recorded)
        if ended:
            self._failed_in_a_row = self.work.suspects.rejected_in_a_row = 0
        self._tell(ended)
        for prepared, _ in ended:
            self._done_with(prepared.message, prepared.held)
        return left

    async def _record(self, sent: Sent, outcomes: Sequence[Outcome]) -> None:
        with anyio.move_on_after(COMMIT_GRACE_S, shield=True):
            await self.lane.commit(sent.batch, outcomes)

    def _done_with(self, message: Message, held: int) -> None:
        """Gives back what a message held that came to its end."""
        self.lease.give(held)
        if not isinstance(message.body, bytes):
            message.body.close()
            self._large.release()

    def _tell(self, ended: Sequence[tuple[Prepared, Appended | Rejected]]) -> None:
        user, mailbox = self.account.job.user, self.work.source.name
        octets_done = 0
        for (_, fingerprint, _), outcome in ended:
            if isinstance(outcome, Rejected):
                self.work.refused.add(outcome.key)
                logger.warning(
                    "message rejected user=%s mailbox=%s key=%s code=%s text=%s",
                    user, mailbox, outcome.key, outcome.code, outcome.text,
                )  # fmt: skip
            else:
                octets_done += fingerprint.size
                if outcome.repaired is not None:
                    logger.warning(
                        "message repaired user=%s mailbox=%s key=%s steps=%s reason=%s",
                        user, mailbox, outcome.key, ",".join(outcome.repaired.steps), outcome.repaired.reason,
                    )  # fmt: skip
                if outcome.dropped:
                    logger.warning(
                        "flags dropped user=%s mailbox=%s key=%s flags=%s",
                        user, mailbox, outcome.key, ",".join(outcome.dropped),
                    )  # fmt: skip
        self.account.run.counters.settled(user, len(ended), octets_done)


def _octets_of(messages: Sequence[Message]) -> int:
    """What they take of the byte budget: a large body, which stands alone, is never in memory as a whole."""
    octets_ = sum([len(message.body) for message in messages])
    return min(octets_, STREAM_OCTETS) if len(messages) == 1 else octets_


def _large_apart(messages: list[Message]) -> Iterator[list[Message]]:
    """`messages` in order, each that is not in memory in a list of its own."""
    if all(isinstance(message.body, bytes) for message in messages):
        if messages:
            yield messages
        return
    for large, group in itertools.groupby(messages, key=lambda message: not isinstance(message.body, bytes)):
        if large:
            yield from ([message] for message in group)
        else:
            yield list(group)


def _drain(receive: MemoryObjectReceiveStream[list[Message]], messages: list[Message], limits: Limits) -> list[Message]:
    """`messages` and what else waits in the queue, until a batch is full."""
    size = _octets_of(messages)
    while len(messages) < limits.batch_messages and size < limits.batch_octets:
        try:
            more = receive.receive_nowait()
        except (anyio.WouldBlock, anyio.EndOfStream):
            break
        messages = messages + more
        size += _octets_of(more)
    return messages


def cut(messages: Sequence[Message], limits: Limits) -> list[list[Message]]:
    """`messages` in order, in batches within the limits; one bigger than the octet limit stands alone."""
    batches: list[list[Message]] = []
    size = 0
    for message in messages:
        if (
            not batches
            or len(batches[-1]) >= limits.batch_messages
            or (batches[-1] and size + len(message.body) > limits.batch_octets)
        ):
            batches.append([])
            size = 0
        batches[-1].append(message)
        size += len(message.body)
    return batches


def halves(part: list[Prepared]) -> list[list[Prepared]]:
    """Both halves of what was refused in company, in order; one message stands alone already."""
    middle = len(part) // 2
    return [half for half in (part[:middle], part[middle:]) if half]


async def prepare(messages: Sequence[Message], *, wire: bool) -> list[Prepared]:
    """Fingerprints of the wire form, and the body in that form where the destination sends it so, else as it is kept.

    Raises:
        MessageUnreadable: a large body, which always stands alone, cannot be read.
    """

    def work() -> list[Prepared]:
        prepared = []
        for message in messages:
            if not isinstance(message.body, bytes):
                measured = octets.measure(octets.pieces_of(message.body))
                prepared.append(Prepared(message, measured, _octets_of([message])))
                continue
            held = len(message.body)
            if wire or not message.wire:
                sent = octets.wire_form(message.body)
                body = sent if wire else message.body
            else:
                sent, body = octets.both_forms(message.body)
            fingerprint = octets.fingerprint(sent)
            if body is not message.body:
                message = Message(  # dataclasses.replace takes 15 us, this 2
                    key=message.key, flags=message.flags, internal_date=message.internal_date, body=body, wire=wire
                )
            prepared.append(Prepared(message, fingerprint, held))
        return prepared

    if _octets_of(messages) <= HASH_INLINE_OCTETS:
        return work()
    return await anyio.to_thread.run_sync(work)


def _host(job: UserJob) -> str:
    return job.destination.host or job.source.host


def _result(
    job: UserJob,
    account: Account | None,
    failure: AimportError | None,
    bug: Exception | None,
    run: Run,
    seconds: float,
    *,
    stopped: bool = False,
) -> UserResult:
    """Adds up what became of every selected message, over all resumes of the run."""
    found = imported = octets_done = unfinished = doubtful = altered = 0
    skipped: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    failures = account.failures if account is not None else []
    if account is not None:
        for place in account.works.keys() | account.log.lanes.keys():
            work = account.works.get(place)
            lane = account.log.lanes.get(place)
            keys: Sequence[MessageKey] = work.selection.keys if work is not None else ()
            found += len(keys)
            if work is not None and work.selection.unlisted:
                found += work.selection.unlisted
                skipped[UNLISTED] += work.selection.unlisted
            if lane is not None:
                present = set(keys)
                found += sum(1 for key in lane.settled_keys() if key not in present)
                imported += len(lane.committed)
                octets_done += lane.committed.octets
                doubtful += lane.maybe_duplicate
                altered += len(lane.repaired)
                for rejection in lane.rejected.values():
                    if rejection.code == VANISHED:
                        skipped[VANISHED] += 1
                    else:
                        rejected[rejection.code or "refused"] += 1
            if work is None or not work.complete:
                unfinished += sum(1 for key in keys if lane is None or not lane.is_settled(key))
    if unfinished:
        skipped[UNFINISHED] = unfinished
    error: str | None = None
    status: Status = "done"
    missing = False
    if bug is not None:
        status, error = "failed", f"internal error: {type(bug).__name__} (please report it; -D shows the trace)"
    elif failure is not None:
        status, error = failure.status, str(failure)
    elif stopped or (run.stopping and (unfinished or account is None or account.cut_short)):
        status, error = "stopped", "stopped before its end; run `aimport resume`"
    elif failures:
        mailbox, first = failures[0]
        more = f" (and {len(failures) - 1} more mailboxes)" if len(failures) > 1 else ""
        status, error = first.status, f"{mailbox}: {first}{more}"
        missing = all(isinstance(failed, MailboxNotFound) and failed.named for _, failed in failures)
    elif rejected or skipped:
        status = "rejects"
    return UserResult(
        user=job.user,
        status=status,
        found=found,
        imported=imported,
        present=0,
        skipped=dict(skipped),
        rejected=dict(rejected),
        altered=altered,
        maybe_duplicate=doubtful,
        octets=octets_done,
        seconds=round(seconds, 3),
        error=error,
        bug=bug is not None,
        mailbox_missing=missing,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMailbox:
    """What an import would do with one mailbox."""

    source: str
    dest: str
    messages: int
    octets: int
    keys: tuple[MessageKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedUser:
    """What an import would do with one user; `failure` is what it would fail with."""

    user: str
    mailboxes: tuple[PlannedMailbox, ...]
    failure: AimportError | None = None
    missing: tuple[str, ...] = ()


async def plan_user(job: UserJob, run: Run) -> PlannedUser:
    """Looks at one user and writes nothing, neither mail nor journal."""
    planned: list[PlannedMailbox] = []
    failure: AimportError | None = None
    missing: tuple[str, ...] = ()
    try:
        if job.error:
            raise _unready(job)
        source, destination = run.stores.source(job.source), run.stores.destination(job.destination)
        async with (
            run.hosts.hold((source.host, destination.host)),
            _opened(source, run) as reader,
            _opened(destination, run) as writer,
        ):
            targets, missing = await _map_mailboxes(job, run, reader, writer)
            for mailbox, target in targets.items():
                try:
                    selection = await reader.select(mailbox)
                except MailboxError as error:
                    failure = failure or error
                    continue
                if selection.keys:
                    planned.append(
                        PlannedMailbox(
                            source=mailbox.name,
                            dest=target.name,
                            messages=len(selection.keys),
                            octets=sum(selection.sizes),
                            keys=tuple(selection.keys),
                        )
                    )
    except AimportError as error:
        failure = error
    return PlannedUser(user=job.user, mailboxes=tuple(planned), failure=failure, missing=missing)


def _unready(job: UserJob) -> AimportError:
    """The error of a user who cannot even begin."""
    kinds: dict[Status, type[AimportError]] = {"refused": AccessRefused, "quota": OverQuota}
    return kinds.get(job.status, UserError)(job.error)
