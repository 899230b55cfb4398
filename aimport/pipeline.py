"""Copy one account: the lanes, their queues, and where each failure stops.

    users ──▶ import_user ──▶ lanes ──▶ (read_mailbox ─▶ queue ─▶ write_mailbox) ──▶ journal

Knows nothing of IMAP or Maildir; sees only `interfaces`. Order inside a mailbox is kept
because one lane copies one mailbox and one writer appends it. Retry, resume after a crash and
a resume next week are one code path: `import_user` runs the same user again and the journal
says what is done.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

import anyio
import anyio.to_thread
import stamina
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aimport import reconcile, seams
from aimport.account import Account, Run, Work
from aimport.auditing import audit
from aimport.copying import COMMIT_GRACE_S, Copy
from aimport.daily import DAY_S
from aimport.errors import (
    AccessRefused,
    AimportError,
    ConnectionLost,
    DailySpent,
    DestinationNotEmpty,
    JournalError,
    LoginRefused,
    MailboxChanged,
    MailboxError,
    MailboxNotFound,
    OverQuota,
    Retry,
    Scope,
    Status,
    Unavailable,
    UserError,
    widest,
)
from aimport.existing import existing, skip_existing
from aimport.interfaces import Destination, DestinationSession, Source, SourceSession
from aimport.journal import LaneLog
from aimport.limits import LOGINS_REFUSED
from aimport.merging import Mails, Outlook, demand_empty, mailboxes_at, outlook, uids_repeat, uids_to_come
from aimport.model import (
    Appended,
    Mailbox,
    MessageKey,
    Order,
    Position,
    Rejected,
    Selection,
    Stored,
    UserJob,
    Wanted,
)
from aimport.names import INBOX
from aimport.query.query import Query
from aimport.results import UserResult
from aimport.seats import another_lane, rest
from aimport.secret import hush
from aimport.tally import shown_time

logger = logging.getLogger(__name__)

UNFINISHED: Final = "unfinished"
VANISHED: Final = "vanished"
UNLISTED: Final = "unlisted"
MAX_RETRY_WAIT_S: Final = 60.0
CONNECTIONS_TO_WAIT: Final = 4
"""Of one user at a host of which nothing is known (Courier's own limit), where each message costs a round trip."""
MAX_OUTLETS: Final = 8  # arbitrary
COPIES: Final = 2
"""How often a message is sent whose loss an audit finds."""
LOST: Final = "lost"
MESSAGES_AN_OUTLET: Final = 32
"""A login is worth so many round trips."""


async def import_user(job: UserJob, run: Run) -> UserResult:
    """Imports one user to its end and records the result; raises only what ends the run.

    Raises:
        JournalError, DestinationFull, RunHeld: the run cannot go on.
    """
    began = seams.monotonic()
    run.counters.user_began(job.user, _host(job))
    account: Account | None = None
    failure: AimportError | None = None
    bug: Exception | None = None
    try:
        if job.error:
            raise unready(job)
        async with run.alone(job.destination.identity):
            with run.stages.holding("journal"):
                log = await run.journal.begin_user(job.user, job.destination.identity)
            account = Account(job, log, run)
            await _try_until_done(account)
    except AimportError as error:
        failure = error
    except anyio.get_cancelled_exc_class():
        # The second signal, the end of the grace time, or a failure of the whole run.
        result = _result(job, account, None, None, run, seams.monotonic() - began, stopped=True)
        with anyio.move_on_after(COMMIT_GRACE_S, shield=True), contextlib.suppress(JournalError):
            await run.journal.finish_user(job.user, result)
        raise
    except Exception as error:  # a bug ends its user only; cancellation is no Exception
        bug = innermost(error)
        logger.error("user ended by a bug user=%s error=%s", job.user, type(bug).__name__)
        ends = (job.source.secret, job.destination.secret)
        hush(error, [secret.text for secret in ends if secret is not None and secret.kind == "literal"])
        logger.debug("trace user=%s", job.user, exc_info=error)
    result = _result(job, account, failure, bug, run, seams.monotonic() - began)
    if _has_more(result, account, run):
        result = replace(result, status="stopped", error="not all is done yet; run `aimport resume`")
        run.counters.user_rests(job.user)
        with anyio.move_on_after(COMMIT_GRACE_S, shield=True):
            await run.journal.finish_user(job.user, result)
        return result
    with anyio.move_on_after(COMMIT_GRACE_S, shield=True), run.stages.holding("journal"):
        await run.journal.finish_user(job.user, result)
    run.hosts.forget(job.user)
    if failure is not None and failure.scope is Scope.RUN:
        run.counters.user_ended(job.user, failed=True)
        raise failure
    run.counters.user_ended(job.user, failed=result.status not in ("done", "rejects"))
    if result.error:
        logger.warning("user %s user=%s error=%s", result.status, job.user, result.error)
    return result


def innermost(error: Exception) -> Exception:
    """The first exception within groups, whose own name says nothing."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _has_more(result: UserResult, account: Account | None, run: Run) -> bool:
    """Whether the user has a further turn (`--first`). A login that was refused is not tried again in it."""
    if run.last_turn or result.status == "stopped":
        return False
    if account is None or result.status not in ("done", "rejects"):
        run.ended.add(result.user)
        return False
    for place, work in account.works.items():
        if work.refused:
            run.refused[(result.user, *place)] = work.refused
    return True


async def _try_until_done(account: Account) -> None:
    """Runs the user again after failures that pass; a try that got further starts the count anew."""
    run = account.run
    limits = run.limits
    known = account.progress()
    idle = 0
    pause_s = 0.0  # here and not in stamina, so that another user has the seat meanwhile
    # What `retry_context` is made of is a cycle: the lists of an account would stay until the collector comes by.
    progress_of = weakref.WeakMethod(account.progress)

    def wait_s(error: Exception) -> bool | float:
        nonlocal known, idle, pause_s
        counted = progress_of()
        assert counted is not None, "the account is in the middle of its try"
        progress = counted()
        idle = 1 if progress > known else idle + 1
        known = progress
        if run.stopping or not worth_retrying(error):
            return False
        assert isinstance(error, AimportError)
        if isinstance(error, DailySpent):
            idle = 0
            pause_s = error.wait_s
            return run.daily_wait and 0.0
        if run.hosts.is_down(error.host):
            idle -= 1  # who waits for its host has not tried
            pause_s = 0.0
        elif idle >= limits.attempts:
            return False
        else:
            doubled = min(limits.retry_wait_s * 2.0 ** (idle - 1), MAX_RETRY_WAIT_S)
            pause_s = max(error.wait_s, doubled * seams.jitter())
        return 0.0

    async for attempt in stamina.retry_context(on=wait_s, attempts=None, timeout=None):
        with attempt:
            if pause_s:
                with run.counters.waits(account.job.user, pause_s):
                    await rest(pause_s)
                pause_s = 0.0
            if run.stopping:
                account.cut_short = True
                return
            if attempt.num > 1:
                logger.warning("user tried again user=%s try=%d", account.job.user, attempt.num)
            await _copy_account(account)


def worth_retrying(error: Exception) -> bool:
    return isinstance(error, AimportError) and error.scope is not Scope.RUN and error.retry is Retry.LATER


async def _copy_account(account: Account) -> None:
    """One try: list, select, settle what is in doubt, copy what is not done.

    Raises:
        MailboxError: the widest failure of a mailbox that a new try may mend.
    """
    job, run = account.job, account.run
    account.failures.clear()
    account.try_began = anyio.current_time()
    source, destination = run.stores.source(job.source), run.stores.destination(job.destination)
    account.source_host, account.destination_host = source.host, destination.host
    began_s = run.stages.clock()
    async with run.hosts.hold((source.host, destination.host)):
        crowded = run.stages.meter("connect", destination.host or source.host)
        crowded.crowded_s += run.stages.clock() - began_s
        async with opened(source, run, job.user) as reader, opened(destination, run, job.user) as writer:
            account.keep_days(reader, writer)
            try:
                await _select_all(account, reader, writer)
                works = [work for work in account.works.values() if not work.complete]
                works.sort(key=lambda work: len(work.selection.keys), reverse=True)
                await _run_lanes(account, works, source, destination, reader, writer)
            finally:
                with anyio.move_on_after(COMMIT_GRACE_S, shield=True):
                    await account.close_days()
    again = [error for _, error in account.failures if error.retry is Retry.LATER]
    if account.spent is not None:
        await _tell_spent(account, account.spent)
        raise account.spent
    if again:
        raise widest(again)


async def _tell_spent(account: Account, spent: DailySpent) -> None:
    """Says until when a user waits whose day is used up, and when all of it will be there."""
    left = await anyio.to_thread.run_sync(account.octets_left)
    again_us = seams.now_us() + int(spent.wait_s * 1e6)
    ends_us = again_us + max(0, (left - 1) // account.spent_limit) * DAY_S * 1_000_000
    spent.hint = f"goes on after {shown_time(again_us)}; for {left} more octets about until {shown_time(ends_us)}"
    account.run.counters.ends[account.job.user] = ends_us
    logger.warning("user has used up today user=%s error=%s", account.job.user, spent)


S = TypeVar("S", SourceSession, DestinationSession)
S_co = TypeVar("S_co", SourceSession, DestinationSession, covariant=True)


class Store(Protocol[S_co]):
    """What source and destination have in common."""

    host: str

    def open(self) -> AbstractAsyncContextManager[S_co]: ...


@asynccontextmanager
async def opened(store: Store[S], run: Run, user: str) -> AsyncGenerator[S]:
    """A session of `user`; what its host refused, allowed or said at the end is learnt for all users.

    Raises:
        LoginRefused: also unasked, when a host has refused many users one after the other.
    """
    hosts, host = run.hosts, store.host
    if hosts.is_closed(host):
        raise LoginRefused(
            f"{host}: not tried, for it refused the last {LOGINS_REFUSED} logins one after the other",
            hint="check the credentials, then resume",
        )
    async with AsyncExitStack() as left, AsyncExitStack() as stack:
        try:
            with run.stages.holding("connect", host):
                session = await stack.enter_async_context(store.open())
        except LoginRefused:
            hosts.refused_login(host)
            raise
        except ConnectionLost as error:
            error.host = host
            hosts.failed(host, user, error)
            raise
        hosts.logged_in(host, user)
        left.callback(hosts.left, host, user)
        if host and session.limits.per_address:
            hosts.allow(host, session.limits.per_address)
        try:
            yield session
        except Unavailable as error:
            hosts.heed(host, user, error)
            raise


@dataclass(frozen=True, slots=True)
class Mapped:
    """Selected source mailboxes with their destinations."""

    targets: Mapping[Mailbox, Mailbox]
    missing: tuple[str, ...]
    """Names in the query that do not exist."""
    excluded: tuple[str, ...]
    """Mailboxes that the query selects and `--exclude` takes away."""


async def map_mailboxes(
    job: UserJob, run: Run, reader: SourceSession, writer: DestinationSession, lanes: Iterable[tuple[str, str]] = ()
) -> Mapped:
    """`lanes`: source and destination names that this run has used.

    Raises:
        NameClash: before anything is written.
    """
    listed = await reader.list_mailboxes()
    selected = [mailbox for mailbox in listed if run.query.selects(mailbox)]
    mailboxes = [mailbox for mailbox in selected if not run.naming.excludes(mailbox)]
    targets = run.naming.targets(
        mailboxes,
        listed=listed,
        there=await mailboxes_at(writer) if run.naming.special_use else (),
        parent=job.parent,
        separator=writer.separator,
        folds_case=writer.folds_case,
        kept=dict(iter(lanes)),  # the pairs, also where they are the keys of a mapping
    )
    excluded = tuple(mailbox.name for mailbox in selected if mailbox not in targets)
    return Mapped(targets, run.query.missing(listed), excluded)


class Selector:
    """Selects from one mailbox after the other."""

    def __init__(self, reader: SourceSession, query: Query, order: Order) -> None:
        self._reader = reader
        self._query = query
        self._order = order

    def in_order(self, mailboxes: Iterable[Mailbox]) -> Sequence[Mailbox]:
        """As listed; the INBOX comes last where doveadm's sequence numbers hang on the order (`Query.after`)."""
        some = [mailbox for mailbox in mailboxes if self._query.selects(mailbox)]
        return sorted(some, key=lambda mailbox: mailbox.path == (INBOX,)) if self._query.counts else some

    async def select(self, mailbox: Mailbox) -> Selection:
        selection = await self._reader.select(mailbox, self._query.of(mailbox), self._order)
        if self._query.counts and (count := len((await self._reader.select(mailbox)).keys)):
            self._query = self._query.after(count)
        return selection


async def _select_all(account: Account, reader: SourceSession, writer: DestinationSession) -> None:
    """Fills `account.works`. Name clashes, and what `--merge` forbids, end the user here, before the first write."""
    job, run = account.job, account.run
    if run.merge is not None and run.merge.way == "require-empty" and not account.log.lanes:  # a lane: mail of ours
        await demand_empty(writer)
    with run.stages.holding("list", account.source_host):
        mapped = await map_mailboxes(job, run, reader, writer, account.log.lanes)
    targets = mapped.targets
    for name in mapped.missing if run.last_turn else ():
        account.mailbox_failed(name, MailboxNotFound("no such mailbox at the source", named=True))
    selector = Selector(reader, run.selected, run.order)
    for mailbox in selector.in_order(targets):
        target = targets[mailbox]
        place = (mailbox.name, target.name)
        known = account.works.get(place)
        if known is not None and known.complete and not run.selected.counts:
            continue
        if run.stopping:
            account.cut_short = True
            return
        try:
            with run.stages.holding("list", account.source_host):
                selection = await selector.select(mailbox)
        except MailboxError as error:
            account.mailbox_failed(mailbox.name, error)
            continue
        if known is not None and known.complete:
            continue
        for note in selection.notes:
            account.damaged(mailbox.name, note)
        work = Work(selection, target, account.log.lanes.get(place))
        if known is not None:
            work.refused = known.refused
            work.suspects = known.suspects
        elif run.turn:
            work.refused |= run.refused.get((job.user, *place), set())
        account.works[place] = work
        if known is None:
            # What an earlier turn has brought is counted already.
            found = work.open_keys() if run.turn else len(selection.keys)
            run.counters.user_found(job.user, found)
            run.counters.settled(job.user, found - work.open_keys(), 0)
    if run.merge is not None and run.merge.way == "new-over-old":
        await _demand_new_uids(account, writer)


async def _demand_new_uids(account: Account, writer: DestinationSession) -> None:
    """Looks at the mailboxes that nothing was sent to yet.

    Raises:
        UidsWouldRepeat: clients would take a new message for another one that they saw.
    """
    run = account.run
    repeated: list[tuple[Mailbox, Position, Position]] = []
    unknown = 0
    for work in account.works.values():
        if work.lane is not None or not work.selection.keys:
            continue
        place = await writer.position(work.target)
        uids = uids_to_come(work.selection, place, whole=_is_whole(run))
        unknown += not uids
        if uids == "repeat" and place is not None and work.selection.position is not None:
            repeated.append((work.target, place, work.selection.position))
    if repeated:
        raise uids_repeat(account.job.user, repeated)
    if unknown:
        logger.warning("uids not compared, one side does not say them user=%s mailboxes=%d", account.job.user, unknown)


def _is_whole(run: Run) -> bool:
    """Whether all that is selected of a mailbox is sent, in stored order."""
    return run.order == "stored" and not run.skip_existing


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
            tasks.start_soon(_run_lane, account, receive.clone(), destination, reader, writer)
            allowed = [each.limits.per_user for each in (reader, writer) if each.limits.per_user]
            for _ in range(min(run.limits.connections_per_user, busy, *allowed) - 1):
                held = run.hosts.try_hold((source.host, destination.host), account.job.user)
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
            await stack.enter_async_context(another_lane())
            try:
                reader = await stack.enter_async_context(opened(source, run, account.job.user))
                writer = await stack.enter_async_context(opened(destination, run, account.job.user))
            except ConnectionLost as error:  # couriertcpd closes one connection too many without a word
                logger.info("lane given up user=%s error=%s", account.job.user, error)
                return
            await _run_lane(account, receive, destination, reader, writer)
    finally:
        run.hosts.release(held)


async def _run_lane(
    account: Account,
    receive: MemoryObjectReceiveStream[Work],
    destination: Destination,
    reader: SourceSession,
    writer: DestinationSession,
) -> None:
    """One source session, one destination session, one mailbox at a time. Mailbox failures end here."""
    async with receive:
        async for work in receive:
            if account.ends:
                return
            try:
                await _copy_mailbox(account, work, destination, reader, writer)
            except MailboxError as error:
                account.mailbox_failed(work.source.name, error)


async def _copy_mailbox(
    account: Account, work: Work, destination: Destination, reader: SourceSession, writer: DestinationSession
) -> None:
    """Copies what the journal does not call done, and looks whether it is there; what is not, once more."""
    looking = account.run.stages.holding
    if work.lane is not None and work.lane.open_batches:
        with looking("look", account.destination_host):
            await _settle(account, work, work.lane, writer)
    if account.run.skip_existing and work.open_keys():
        with looking("look", account.destination_host):
            await skip_existing(account, work, reader, writer)
    for more in range(COPIES - 1, -1, -1):
        if work.open_keys() and not await _copy(account, work, destination, reader, writer):
            return
        if work.lane is None or not account.job.destination.remote:
            break
        if account.run.stopping:
            account.cut_short = True
            return
        with looking("look", account.destination_host):
            lost = await audit(account, work, work.lane, writer)
        if not lost:
            break
        if not more:
            text = f"acknowledged {COPIES} times, and not there"
            await work.lane.reject([Rejected(key=key, code=LOST, text=text) for key in lost])
            work.refused.update(lost)
    work.complete = True
    if account.run.merge is not None and account.run.merge.way == "new-over-old" and work.lane is not None:
        await _tell_moved(account, work, work.lane)


async def _tell_moved(account: Account, work: Work, lane: LaneLog) -> None:
    """Warns where messages were to get the UIDs again that clients saw, and did not: one before them was refused."""
    seen, began = work.selection.position, lane.position
    if seen is None or began.uidvalidity != seen.uidvalidity or began.uidnext >= seen.uidnext:
        return

    def count() -> int:
        stored = ((each.key, each.outcome) for each in lane.entries())
        uids = ((key, outcome.uid) for key, outcome in stored if isinstance(outcome, Appended) and outcome.uid)
        return sum(1 for key, uid in uids if key != f"{seen.uidvalidity}:{uid}")

    if moved := await anyio.to_thread.run_sync(count):
        logger.warning(
            "uids moved, clients that were connected meanwhile may take one message for another user=%s mailbox=%s"
            " messages=%d",
            account.job.user, work.target.name, moved,
        )  # fmt: skip


async def _copy(
    account: Account, work: Work, destination: Destination, reader: SourceSession, writer: DestinationSession
) -> bool:
    """One pass over what is not done; the mailbox is created when the first message is due. False: the run stops."""
    with account.run.stages.holding("look", account.destination_host):
        await writer.create_mailbox(work.target, subscribe=account.run.subscribe)
        position = await writer.position(work.target) if work.lane is None else None
    if work.lane is None:
        if position is None:
            raise MailboxNotFound(f"mailbox {work.target.name!r} is missing right after it was created")
        work.lane = await account.log.lane(work.source.name, work.target.name, position)
    copy = Copy(account=account, work=work, lane=work.lane, wire=destination.wire, host=destination.host)
    async with AsyncExitStack() as stack:
        await copy.run(reader, [writer, *await _more_writers(account, work, destination, writer, stack)])
    return copy.read_to_end and not copy.ended


async def _more_writers(
    account: Account, work: Work, destination: Destination, writer: DestinationSession, stack: AsyncExitStack
) -> list[DestinationSession]:
    """Further sessions for one mailbox where each message costs a round trip, as far as the limits allow now."""
    run = account.run
    writers: list[DestinationSession] = []
    if not writer.waits:
        return writers
    share = (writer.limits.per_user or CONNECTIONS_TO_WAIT) // run.limits.connections_per_user
    wanted = min(share, MAX_OUTLETS, work.open_keys() // MESSAGES_AN_OUTLET) - 1
    user = account.job.user
    while len(writers) < wanted and (held := run.hosts.try_hold((destination.host,), user)) is not None:
        stack.callback(run.hosts.release, held)
        try:
            writers.append(await stack.enter_async_context(opened(destination, run, user)))
        except ConnectionLost as error:
            logger.info("connection given up user=%s error=%s", user, error)
            break
    return writers


async def _settle(account: Account, work: Work, lane: LaneLog, writer: DestinationSession) -> None:
    """Finds out what became of batches without an answer; never sends one again blindly.

    Raises:
        MailboxChanged: its UIDVALIDITY did while it was looked at.
    """
    run = account.run
    if account.job.destination.remote:
        # The server finishes what it had received before our session died: wait that out first. Not from the intent
        # on: a session may die of a deadline minutes after it.
        await anyio.sleep(max(0.0, account.try_began + run.limits.fence_s - anyio.current_time()))
    position = await writer.position(work.target)
    if position is not None and position.uidvalidity != lane.position.uidvalidity:
        # Another mailbox by the same name: all of it may be ours, and the UIDs known so far mean nothing.
        await lane.move(Position(uidvalidity=position.uidvalidity, uidnext=1))
    wanted: list[Wanted] = []
    dates: list[int | None] = []
    places: list[tuple[int, int]] = []
    for batch in lane.open_batches:
        for index, date in enumerate(batch.dates):
            wanted.append(batch.wanted(run.journal.run, index))
            dates.append(date)
            places.append((batch.number, index))
    stored = await writer.find(work.target, wanted, lane.floor)
    position = await writer.position(work.target)
    if position is not None and position.uidvalidity != lane.position.uidvalidity:
        # Meanwhile: the UIDs that are claimed and those that were found may be of two mailboxes (seen in simulation,
        # where a message was taken for another one with the same octets, and lost).
        raise MailboxChanged(f"mailbox {work.target.name!r} got another UIDVALIDITY while it was looked at")
    uids, others = lane.claimed({each.fingerprint for each in wanted})
    matched = reconcile.match(wanted, dates, stored, claimed_uids=uids, claimed_fingerprints=others)
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
    found = imported = present_there = octets_done = unfinished = doubtful = altered = 0
    skipped: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    failures = account.failures if account is not None else []
    if account is not None:
        for place in account.works.keys() | account.log.lanes.keys():
            work = account.works.get(place)
            lane = account.log.lanes.get(place)
            keys: Sequence[MessageKey] = work.selection.keys if work is not None else ()
            ended = sum(1 for key in keys if lane is not None and lane.is_settled(key))
            found += len(keys)
            if work is not None and work.selection.unlisted:
                found += work.selection.unlisted
                skipped[UNLISTED] += work.selection.unlisted
            if lane is not None:
                found += lane.ended - ended  # what is not selected any more
                imported += len(lane.committed)
                present_there += sum(1 for key in lane.present if key not in lane.committed)
                octets_done += lane.octets
                doubtful += lane.maybe_duplicate
                altered += len(lane.repaired)
                for rejection in lane.rejected.values():
                    if rejection.code == VANISHED:
                        skipped[VANISHED] += 1
                    else:
                        rejected[rejection.code or "refused"] += 1
            if work is None or not work.complete:
                unfinished += len(keys) - ended
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
        present=present_there,
        skipped=dict(skipped),
        rejected=dict(rejected),
        altered=altered,
        dates=_dates(account),
        damages=run.journal.damages(job.user),
        maybe_duplicate=doubtful,
        octets=octets_done,
        seconds=round(seconds, 3),
        error=error,
        bug=bug is not None,
        mailbox_missing=missing,
    )


def _dates(account: Account | None) -> Mapping[str, int]:
    """How many dates were guessed, in this process and in those before it that came to an end."""
    if account is None:
        return {}
    before = account.log.result.dates if account.log.result is not None else {}
    return dict(Counter(before) + account.dates)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMailbox:
    """What an import would do with one mailbox."""

    source: str
    dest: str
    messages: int
    octets: int
    keys: tuple[MessageKey, ...]
    use: str = ""
    """What both are for (`--special-use`)."""
    outlook: Outlook | None = None
    """What clients will see (`--merge`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedUser:
    """What an import would do with one user; `failure` is what it would fail with."""

    user: str
    mailboxes: tuple[PlannedMailbox, ...]
    failure: AimportError | None = None
    missing: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    """Mailboxes that `--exclude` leaves out."""


async def plan_user(job: UserJob, run: Run) -> PlannedUser:
    """Looks at one user and writes nothing, neither mail nor journal."""
    planned: list[PlannedMailbox] = []
    failure: AimportError | None = None
    mapped: Mapped | None = None
    try:
        if job.error:
            raise unready(job)
        source, destination = run.stores.source(job.source), run.stores.destination(job.destination)
        async with (
            run.hosts.hold((source.host, destination.host)),
            opened(source, run, job.user) as reader,
            opened(destination, run, job.user) as writer,
        ):
            if run.merge is not None and run.merge.way == "require-empty":
                try:
                    await demand_empty(writer)
                except DestinationNotEmpty as error:
                    failure = error
            repeated: list[tuple[Mailbox, Position, Position]] = []
            mapped = await map_mailboxes(job, run, reader, writer)
            targets = mapped.targets
            selector = Selector(reader, run.query, run.order)
            for mailbox in selector.in_order(targets):
                try:
                    selection = await selector.select(mailbox)
                except MailboxError as error:
                    failure = failure or error
                    continue
                target = targets[mailbox]
                for note in selection.notes:
                    logger.warning("source damaged user=%s mailbox=%s reason=%s", job.user, mailbox.name, note)
                there: Collection[int] = ()
                if run.skip_existing and await writer.position(target) is not None:
                    there = await existing(selection, range(len(selection.keys)), reader, writer, target)
                due = [place for place in range(len(selection.keys)) if place not in there]
                if due:
                    sizes = await anyio.to_thread.run_sync(list, selection.sizes)  # files may be asked
                    mails = Mails(len(due), sum(sizes[place] for place in due))
                    seen = None
                    if run.merge is not None:
                        seen = await outlook(run.merge, selection, mails, writer, target, whole=_is_whole(run))
                        if run.merge.way == "new-over-old" and seen.uids == "repeat":
                            assert seen.place is not None and selection.position is not None, "they were compared"
                            repeated.append((target, seen.place, selection.position))
                    planned.append(
                        PlannedMailbox(
                            source=mailbox.name,
                            dest=target.name,
                            messages=mails.messages,
                            octets=mails.octets,
                            keys=tuple(selection.keys[place] for place in due),
                            use=target.uses[0] if target.uses else "",
                            outlook=seen,
                        )
                    )
            if repeated and failure is None:
                failure = uids_repeat(job.user, repeated)
    except AimportError as error:
        failure = error
    return PlannedUser(
        user=job.user,
        mailboxes=tuple(planned),
        failure=failure,
        missing=mapped.missing if mapped is not None else (),
        excluded=mapped.excluded if mapped is not None else (),
    )


def unready(job: UserJob) -> AimportError:
    """The error of a user who cannot even begin."""
    kinds: dict[Status, type[AimportError]] = {"refused": AccessRefused, "quota": OverQuota}
    return kinds.get(job.status, UserError)(job.error)
