"""Copy one mailbox: what is read, what is under way, what became of it.

    SourceSession ─▶ Copy.read_mailbox ─▶ lists ─▶ Outlet.write ─▶ under way ─▶ Outlet.settle ─▶ journal

Sees only `interfaces`. Each task of a copy has one end of each queue; every queue has a bound.
A message has its end when the journal has it: appended, rejected, or, after a failure wider than
a message, neither, and then it goes again by the next try.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NamedTuple

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from aimport import octets, seams
from aimport.account import LOSSES_ALONE, Account, Work
from aimport.daily import WORTH
from aimport.errors import AimportError, ConnectionLost, MailboxError, MessageUnreadable, ServerBug, widest
from aimport.interfaces import Appending, DestinationSession, Settled, SourceSession
from aimport.journal import LaneLog
from aimport.limits import Lease, Limits
from aimport.model import (
    STREAM_OCTETS,
    Appended,
    Batch,
    ConnectionLimits,
    Fingerprint,
    Message,
    NotStored,
    Outcome,
    Rejected,
    Repaired,
    Unreadable,
)

logger = logging.getLogger(__name__)

AHEAD_OCTETS: Final = 3 * 1024 * 1024
"""What a source may have been asked for and not have given yet, beside a large message."""
COMMIT_GRACE_S: Final = 5.0
SERVER_BUGS_IN_A_ROW: Final = 10  # arbitrary: so many are no fault of the messages
CULPRITS_IN_A_ROW: Final = 3  # arbitrary: more than so many, of which the server says nothing, are none
TEXT_LIMIT: Final = 1000  # characters of a server's words kept with a repair


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
    at: float
    """When it was handed over."""


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
    """One mailbox between its reader and the destination's sessions.

    read_mailbox ─▶ lists ─▶ Outlet, as a rule one
    """

    def __init__(self, *, account: Account, work: Work, lane: LaneLog, wire: bool, host: str) -> None:
        self.account = account
        self.host = host
        """Of the destination."""
        self.work = work
        self.lane = lane
        self.wire = wire
        self.lease: Lease = account.run.budget.lease()
        self.stages = account.run.stages.lane(account.source_host, account.destination_host)
        self.clock = account.run.stages.clock
        self.read_to_end = False
        self.ended = False
        """Nothing more is handed over; what is under way has its answers read."""
        self.failed_in_a_row = 0
        """Messages rejected one after the other because the server fails."""
        self._failure: AimportError | None = None
        """What ends this mailbox in good order."""
        self._passing_on = anyio.CancelScope()
        """Around the waits of the reader that nobody may end once the writer takes no more."""
        self._large = anyio.Semaphore(1)
        """Taken by a message that is not in memory until it has its outcome: it holds a file, maybe a temporary one."""

    async def run(self, reader: SourceSession, writers: Sequence[DestinationSession]) -> None:
        """Copies what is not done. With several writers the order is that of the source only roughly.

        Raises:
            AimportError: the widest failure; batches without an answer stay open in the journal.
        """
        limits = self.account.run.limits
        send, receive = anyio.create_memory_object_stream[list[Message]](limits.queue_lists)
        outlets = [Outlet(self, writer, receive.clone(), share=len(writers)) for writer in writers]
        receive.close()
        failures: list[BaseException] = []
        self.work.suspects.unsettled = False  # nothing is in doubt yet
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.read_mailbox, reader, send)
                for outlet in outlets:
                    tasks.start_soon(outlet.write)
                    tasks.start_soon(outlet.settle)
        except* AimportError as group:
            failures += group.exceptions
        finally:
            self.lease.close()
        if self._failure is not None:
            failures.append(self._failure)
        if failures:
            raise widest(failures)

    def end(self, error: AimportError) -> None:
        """Ends this mailbox in good order, so that the lane can go on to the next one.

        Tasks that are cancelled in the middle of a command take their connection with them, and the try of the whole
        user with it.
        """
        self._failure = self._failure or error
        self.stop()

    def stop(self) -> None:
        """Hands nothing more over; that is no failure."""
        self.ended = True
        self._passing_on.cancel()

    async def read_mailbox(self, reader: SourceSession, send: MemoryObjectSendStream[list[Message]]) -> None:
        """Reads what is not done and sends it on in lists; message failures of the source end here.

        After a wider failure what was read so far is still written.
        """
        read, clock = self.stages.read, self.clock
        async with send:
            try:
                async with (
                    self._asking_ahead(),
                    aclosing(reader.messages(self.work.selection, skip=self.work)) as lists,
                ):
                    if not await self.account.may("fetch", 0):
                        return
                    began_s = clock()
                    async for items in lists:
                        read_s = clock()
                        taken = await self._pass_on(items, send)
                        if not taken or self.account.ends:
                            return
                        came = sum([len(each.body) for each in items if isinstance(each, Message)])
                        more = await self.account.may("fetch", came)
                        passed_s = clock()
                        read.batches += 1
                        read.busy_s += read_s - began_s
                        read.waiting_s += passed_s - read_s
                        began_s = passed_s
                        if not more:
                            return
            except AimportError as error:
                self._failure = self._failure or error
            else:
                self.read_to_end = True

    @asynccontextmanager
    async def _asking_ahead(self) -> AsyncGenerator[None]:
        """What is asked for ahead comes, whatever is decided meanwhile: of a day that is limited it must be left."""
        day = self.account.days.get("fetch")
        if day is None:
            yield
            return
        largest = await anyio.to_thread.run_sync(partial(max, self.work.selection.sizes, default=0))
        ahead = min(AHEAD_OCTETS + largest, day.limit // WORTH)
        day.margin += ahead
        try:
            yield
        finally:
            day.margin -= ahead

    async def _pass_on(
        self, items: Sequence[Message | Unreadable], send: MemoryObjectSendStream[list[Message]]
    ) -> bool:
        """False: nobody takes messages any more."""
        messages = [item for item in items if isinstance(item, Message)]
        for message in messages:
            if message.note:
                self.account.damaged(self.work.source.name, message.note, key=message.key)
        if len(messages) < len(items):
            await self.unreadable([item for item in items if isinstance(item, Unreadable)])
        if self.ended:
            return False
        self._passing_on = anyio.CancelScope()
        with self._passing_on, contextlib.suppress(anyio.BrokenResourceError):  # the writer ended; its error tells why
            for part in _large_apart(messages):
                if not isinstance(part[0].body, bytes):
                    await self._large.acquire()
                await self.lease.take(_octets_of(part))
                await send.send(part)
            return True
        return False

    async def unreadable(self, items: Sequence[Unreadable]) -> None:
        """Messages that never came as far as a batch have their end."""
        self.work.refused.update(item.key for item in items)
        await self.lane.reject([Rejected(key=item.key, code=item.code, text=item.text) for item in items])
        self.account.run.counters.settled(self.account.job.user, len(items), 0)

    def done_with(self, message: Message, held: int) -> None:
        """Gives back what a message held that came to its end."""
        self.lease.give(held)
        if not isinstance(message.body, bytes):
            message.body.close()
            self._large.release()

    def finish(self, ended: Sequence[tuple[Prepared, Appended | Rejected]]) -> None:
        """Counts and logs what came to its end, and gives back what it held."""
        user, mailbox = self.account.job.user, self.work.source.name
        octets_done = 0
        for (message, fingerprint, _), outcome in ended:
            if isinstance(outcome, Rejected):
                self.work.refused.add(outcome.key)
                logger.warning(
                    "message rejected user=%s mailbox=%s key=%s code=%s text=%s",
                    user, mailbox, outcome.key, outcome.code, outcome.text,
                )  # fmt: skip
            else:
                octets_done += fingerprint.size
                if message.dated:
                    self.account.dates[message.dated] += 1
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
        for prepared, _ in ended:
            self.done_with(prepared.message, prepared.held)


class Outlet:
    """One session of the destination, and what is under way in it.

    write ─▶ batches under way ─▶ settle ─▶ journal
    """

    def __init__(
        self,
        copy: Copy,
        writer: DestinationSession,
        receive: MemoryObjectReceiveStream[list[Message]],
        *,
        share: int,
    ) -> None:
        self._copy = copy
        self._writer = writer
        self._lists = receive
        self._work = copy.work
        self._lane = copy.lane
        self._run = copy.account.run
        limits = _within(self._run.limits, writer.limits)
        if share > 1:  # of several outlets none should wait for what another has taken
            limits = replace(limits, batch_messages=max(limits.batch_messages // share, 1))
        self._limits = limits
        self._room = anyio.Semaphore(limits.batches_ahead)
        self._turn = anyio.Lock()
        """Held while a batch is handed over, so that whoever holds it can let what is under way run out."""
        self._send, self._receive = anyio.create_memory_object_stream[Sent](limits.batches_ahead)
        self._stages = copy.stages
        self._clock = copy.clock
        self._written_s: float | None = None
        """When nothing more was to be handed over."""

    async def write(self) -> None:
        """Takes what the queue holds up to the batch limits, without waiting for more, and hands it over."""
        async with self._lists, self._send:
            began_s = self._clock()
            try:
                async for messages in self._lists:
                    self._stages.read.held_s += self._clock() - began_s
                    for batch in cut(_drain(self._lists, messages, self._limits), self._limits):
                        if not await self._write(batch):
                            return
                    began_s = self._clock()
            except MailboxError as error:
                self._copy.end(error)
            finally:
                self._written_s = self._clock()

    async def _write(self, batch: Sequence[Message]) -> bool:
        """False: nothing more is to be handed over."""
        began_s = self._clock()
        try:
            part = await prepare(batch, wire=self._copy.wire)
            self._stages.prepare.hold(self._clock() - began_s)
        except MessageUnreadable as error:
            [message] = batch
            await self._copy.unreadable([Unreadable(key=message.key, code=error.code, text=str(error))])
            self._copy.done_with(message, _octets_of(batch))
            return True
        with self._work.suspects.watch():
            return await self._write_apart(part)

    async def _write_apart(self, part: Sequence[Prepared]) -> bool:
        """Hands over what may go; each suspect stands alone, and one that cost the connection too often goes not."""
        losses = self._work.suspects.losses
        for suspect, group in itertools.groupby(part, key=lambda each: each.message.key in losses):
            together = list(group)
            for some in [[each] for each in together] if suspect else [together]:
                if suspect and losses[some[0].message.key] >= LOSSES_ALONE:
                    await self._condemn(some[0])
                elif not await self._write_together(some):
                    return False
        return True

    async def _write_together(self, part: Sequence[Prepared]) -> bool:
        began_s = self._clock()
        await self._room.acquire()
        async with self._turn:
            self._stages.wait.held_s += self._clock() - began_s
            # Who reads the answers may have ended; his own error tells why, and what was handed over is in doubt.
            if self._copy.ended or not self._send.statistics().open_receive_streams:
                return False
            if not await self._copy.account.may("append", sum([each.fingerprint.size for each in part])):
                self._copy.stop()
                return False
            sent = await self._hand_over(part)
            try:
                self._send.send_nowait(sent)
            except anyio.BrokenResourceError:
                return False
        return True

    async def settle(self) -> None:
        """Waits for answers in order and commits them; what was refused in company goes again, in halves."""
        wait = self._stages.wait
        async with self._receive:
            began_s = self._clock()
            async for sent in self._receive:
                wait.waiting_s += self._clock() - began_s
                with self._work.suspects.watch():
                    try:
                        left = await self._next(sent)
                        if left and not self._copy.ended:
                            async with self._turn:
                                await self._sort_out(left)
                    except MailboxError as error:
                        self._copy.end(error)
                began_s = self._clock()
                if self._written_s is not None:  # the sender has ended, and only answers are waited for
                    wait.held_s += began_s - self._written_s
                    self._written_s = began_s

    async def _next(self, sent: Sent) -> Left:
        try:
            return await self._settle(sent)
        finally:
            self._room.release()

    async def _sort_out(self, left: Left) -> None:
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
                lefts.append(await self._next(sent))
            except ConnectionLost as error:
                errors.append(error)  # what was said before counts more: it may say for how long to stay away
                break
            errors += lefts[-1].errors
        if errors:
            raise widest(errors)
        # With each part how often the server has failed at it.
        parts = [(half, 0) for left in reversed(lefts) for half in reversed(halves(left.again))]
        parts += [(left.failed, 1) for left in reversed(lefts) if left.failed]
        mend = [each for left in lefts for each in left.mend]
        while parts:
            part, failures = parts.pop()
            wait_s = self._limits.retry_wait_s * min(failures, ServerBug.tries)
            await anyio.sleep(wait_s * seams.jitter())
            self._copy.account.moves("append", sum([each.fingerprint.size for each in part]))
            left = await self._settle(await self._hand_over(part))
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
            await self._mend(prepared, refusal)

    async def _give_up(self, prepared: Prepared, bug: ServerBug | None) -> None:
        """Rejects a message that the server fails at again and again; not all messages, one after the other.

        Raises:
            ServerBug: it fails at each.
        """
        assert bug is not None
        self._copy.failed_in_a_row += 1
        if self._copy.failed_in_a_row > SERVER_BUGS_IN_A_ROW:
            raise bug
        rejection = Rejected(key=prepared.message.key, code=bug.code, text=bug.text)
        await self._reject(prepared, rejection)

    async def _condemn(self, prepared: Prepared) -> None:
        """Rejects a message that costs the connection each time it is sent; not all messages, one after the other.

        Raises:
            ConnectionLost: any message costs it.
        """
        suspects, key = self._work.suspects, prepared.message.key
        error = suspects.error
        assert error is not None
        if not error.cause:
            suspects.rejected_in_a_row += 1
            if suspects.rejected_in_a_row > CULPRITS_IN_A_ROW:
                raise error
        text = f"sent alone it costs the connection: {error.text}"
        rejection = Rejected(key=key, code=error.code, text=text, cause=error.cause)
        # One repair: it may cost the connection as well.
        mendable = self._run.repair and error.cause and isinstance(prepared.message.body, bytes)
        if mendable and suspects.losses[key] < 2 * LOSSES_ALONE:
            for _ in range(self._limits.batches_ahead):  # all that is under way has its answer
                await self._room.acquire()
            async with self._turn:
                await self._mend(prepared, rejection)
            for _ in range(self._limits.batches_ahead):
                self._room.release()
            return
        await self._reject(prepared, rejection)

    async def _mend(self, prepared: Prepared, refusal: Rejected) -> None:
        """Sends changed versions of a refused message until one is taken; then, or when none is, it has its end.

        Raises:
            AimportError: a failure wider than a message.
        """
        message, original, held = prepared
        assert isinstance(message.body, bytes)
        wire = octets.wire_form(message.body)
        from aimport.repair import ladder  # a thousand lines that most runs do not need

        reason = f"[{refusal.code}] {refusal.text}" if refusal.code else refusal.text
        rungs = ladder(wire, refusal.cause)
        while (repair := await anyio.to_thread.run_sync(next, rungs, None)) is not None:
            await self._lane.escrow(original, wire)
            changed = Message(
                key=message.key, flags=message.flags, internal_date=message.internal_date, body=repair.body, wire=True
            )
            repaired = Repaired(steps=repair.steps, original=original, reason=reason[:TEXT_LIMIT])
            self._copy.account.moves("append", len(repair.body))
            sent = await self._hand_over([Prepared(changed, octets.fingerprint(repair.body), held)], repaired)
            [answer] = await sent.appending.outcomes()
            if isinstance(answer, Appended):
                outcome = replace(answer, repaired=repaired)
                await self._record(sent, [outcome])
                self._copy.finish([(prepared, outcome)])
                return
            await self._record(sent, [NotStored(key=message.key)])
            if isinstance(answer, NotStored):
                assert answer.error is not None, "a message alone is never refused in company"
                raise answer.error
        await self._reject(prepared, refusal)

    async def _reject(self, prepared: Prepared, rejection: Rejected) -> None:
        await self._lane.reject([rejection])
        self._copy.finish([(prepared, rejection)])

    async def _hand_over(self, part: Sequence[Prepared], repaired: Repaired | None = None) -> Sent:
        """Intent, then the octets."""
        stages, clock = self._stages, self._clock
        began_s = clock()
        batch = await self._lane.intent(
            [each.message for each in part], [each.fingerprint for each in part], repaired=repaired
        )
        intended_s = clock()
        stages.journal.hold(intended_s - began_s)
        appending = await self._writer.append(self._work.target, batch)
        took_s = clock() - intended_s
        if isinstance(appending, Settled):
            if appending.sync_s:
                stages.sync.hold(appending.sync_s)
            took_s -= appending.sync_s + appending.turn_s
            stages.send.waiting_s += appending.turn_s
            stages.send.held_s += appending.turn_s
        stages.send.hold(took_s)
        return Sent(part=part, batch=batch, appending=appending, at=seams.monotonic())

    async def _settle(self, sent: Sent) -> Left:
        """Records the answer to one batch; returns what has no end yet."""
        began_s = self._clock()
        outcomes = await sent.appending.outcomes()
        self._stages.wait.batches += 1
        self._stages.wait.busy_s += self._clock() - began_s
        self._run.hosts.appended(
            self._copy.host, seams.monotonic() - sent.at, sum([each.size for each in sent.batch.fingerprints])
        )
        left = Left()
        ended: list[tuple[Prepared, Appended | Rejected]] = []
        recorded: list[Outcome] = []
        for prepared, outcome in zip(sent.part, outcomes, strict=True):
            if isinstance(outcome, Rejected) and self._run.repair and isinstance(prepared.message.body, bytes):
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
            self._copy.failed_in_a_row = self._work.suspects.rejected_in_a_row = 0
        self._copy.finish(ended)
        return left

    async def _record(self, sent: Sent, outcomes: Sequence[Outcome]) -> None:
        with anyio.move_on_after(COMMIT_GRACE_S, shield=True):
            await self._lane.commit(sent.batch, outcomes)


def _within(limits: Limits, known: ConnectionLimits) -> Limits:
    """`limits` with batches that the destination takes."""
    return replace(
        limits,
        batch_messages=min(limits.batch_messages, known.batch_messages or limits.batch_messages),
        batch_octets=min(
            limits.batch_octets,
            known.batch_octets or limits.batch_octets,
            known.octets_per_day // WORTH or limits.batch_octets,
        ),
    )


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

    On the loop: a batch takes 1 to 2 ms, and a thread that hashes waits for the interpreter lock at
    each message (a seventh of the time of a whole import, measured).

    Raises:
        MessageUnreadable: a large body, which always stands alone, cannot be read.
    """
    prepared: list[Prepared] = []
    for message in messages:
        body = message.body
        if not isinstance(body, bytes):
            measured = await anyio.to_thread.run_sync(octets.measure, partial(octets.pieces_of, body))
            prepared.append(Prepared(message, measured, _octets_of([message])))
            continue
        if wire or not message.wire:
            sent, tidy = octets.formed(body)
            kept = sent if wire else body
        else:
            sent, kept, tidy = octets.both_forms(body)
        if kept is not body:
            message = Message(  # dataclasses.replace takes 15 us, this 2
                key=message.key, flags=message.flags, internal_date=message.internal_date, body=kept, wire=wire
            )
        prepared.append(Prepared(message, octets.fingerprint(sent, tidy=tidy), len(body)))
    return prepared
