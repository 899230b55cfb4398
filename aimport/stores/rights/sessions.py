"""Sessions whose store lies in another process, as the pipeline sees them (`aimport.interfaces`).

    RightsSource.open ── Opening ──▶ child        one question at a time; cancelled in the middle, the session is over

When a session is left it waits until its child says that it has ended there too: nothing is written any more when the
next try looks at what there is.
"""

from __future__ import annotations

import logging
import pickle
import socket
from array import array
from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import anyio
from anyio import from_thread, to_thread

from aimport.errors import ConnectionLost
from aimport.interfaces import Destination, DestinationSession, Settled, Source, SourceSession
from aimport.model import (
    Batch,
    ConnectionLimits,
    Endpoint,
    Mailbox,
    Message,
    Order,
    Places,
    Position,
    Rights,
    Selection,
    Stored,
    Survey,
    Uid,
    Unreadable,
    Wanted,
)
from aimport.query.facts import Fact, Facts
from aimport.query.terms import ALL, Term
from aimport.standing import Standing
from aimport.stores import Fsync
from aimport.stores.lazy import Measured
from aimport.stores.rights import wire
from aimport.stores.rights.child import Opening
from aimport.stores.rights.pool import Child, Pool

logger = logging.getLogger(__name__)

_INLINE: Final = 32 * 1024
"""A question of so many octets fits into the socket at once; a longer one is sent by a thread."""

_STUCK_S: Final = 600.0
"""Without a single octet in the midst of a question or an answer."""

A = TypeVar("A", bound=wire.Answer)
T = TypeVar("T")


class ChildBroken(Exception):
    """A bug in a child; its trace is the text."""


class RightsSource:
    """One local account, read with its user's rights. `inner` is the source without them."""

    def __init__(self, pool: Pool, endpoint: Endpoint, inner: Source, *, salvage: bool) -> None:
        self.host = inner.host
        self._pool = pool
        self._endpoint = endpoint
        self._salvage = salvage

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[RightsSourceSession, None]:
        opening = _opening(self._endpoint, destination=False, salvage=self._salvage)
        async with _channel(self._pool, self._endpoint, opening) as (channel, _):
            yield RightsSourceSession(channel)


class RightsDestination:
    """One local account, written with its user's rights. `inner` is the destination without them."""

    def __init__(self, pool: Pool, endpoint: Endpoint, inner: Destination, *, fsync: Fsync, link: bool) -> None:
        self.host = inner.host
        self.wire = inner.wire
        self._inner = inner
        self._pool = pool
        self._endpoint = endpoint
        self._fsync: Fsync = fsync
        self._link = link

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[RightsDestinationSession, None]:
        opening = _opening(self._endpoint, destination=True, fsync=self._fsync, link=self._link)
        # A session of ours opens nothing until it is asked to, and is asked for names alone.
        async with self._inner.open() as names, _channel(self._pool, self._endpoint, opening) as (channel, opened):
            yield RightsDestinationSession(channel, opened, names)


def _opening(
    endpoint: Endpoint, *, destination: bool, fsync: Fsync = "never", link: bool = False, salvage: bool = False
) -> Opening:
    return Opening(
        endpoint=replace(endpoint, rights=None),
        destination=destination,
        fsync=fsync,
        link=link,
        salvage=salvage,
        level=logging.getLogger("aimport").getEffectiveLevel(),
    )


def _rights(endpoint: Endpoint) -> Rights:
    assert endpoint.rights is not None, "an endpoint whose rights are not those of this process"
    return endpoint.rights


@asynccontextmanager
async def _channel(
    pool: Pool, endpoint: Endpoint, opening: Opening
) -> AsyncGenerator[tuple[_Channel, wire.Opened], None]:
    child, sock = await to_thread.run_sync(pool.session, _rights(endpoint))
    channel = _Channel(sock, child)
    try:
        yield channel, await channel.ask(wire.Opened, "open", opening)
    finally:
        await channel.close()
        pool.leave(child)


class _Channel:
    """Questions to one session of a child, and its answers."""

    def __init__(self, sock: socket.socket, child: Child) -> None:
        self._sock = sock
        sock.settimeout(_STUCK_S)  # not blocking: uvloop takes that from a socket that it watches
        self._child = child
        self._rights = child.rights
        self._turn = anyio.Lock()
        self._in_step = True
        """No answer is outstanding."""

    async def ask(self, kind: type[A], verb: str, *arguments: object) -> A:
        """The answer to a question, which is of this kind.

        Raises:
            AimportError: what the store there raised.
            ConnectionLost: the child has ended, or does not keep to what was agreed.
        """

        def take(answer: wire.Answer, _: Sequence[int]) -> A:
            if not isinstance(answer, kind):
                raise ConnectionLost(
                    f"the process with the rights of uid {self._rights.uid} answers beside the question"
                )
            return answer

        return await self.ask_and(take, verb, *arguments)

    async def ask_and(
        self,
        take: Callable[[wire.Answer, Sequence[int]], T],
        verb: str,
        *arguments: object,
        descriptors: Sequence[int] = (),
        large: bool = False,
    ) -> T:
        """As `ask`: what a thread makes of the answer and its descriptors. `large`: the question is."""
        async with self._turn:
            if not self._in_step:
                raise ConnectionLost("the session was given up")
            self._in_step = False
            try:
                if large:
                    await to_thread.run_sync(self._send, (verb, *arguments), descriptors)
                else:
                    question = pickle.dumps((verb, *arguments))
                    if len(question) > _INLINE:
                        await to_thread.run_sync(wire.send, self._sock, question, descriptors)
                    else:
                        wire.send(self._sock, question, descriptors)
                await anyio.wait_readable(self._sock)
                return await to_thread.run_sync(self._take, take)
            except OSError as error:
                raise self._lost(error.strerror or str(error)) from error

    def _send(self, question: tuple[object, ...], descriptors: Sequence[int]) -> None:
        wire.send(self._sock, pickle.dumps(question, 5), descriptors)

    def _take(self, take: Callable[[wire.Answer, Sequence[int]], T]) -> T:
        frame = wire.receive(self._sock)
        if frame is None:
            raise self._lost("it was killed, or ran out of memory")
        payload, descriptors = frame
        try:
            reply = wire.decode(payload)
            self._in_step = True
            for told in reply.told:
                _tell(told)
            if isinstance(reply.answer, wire.Failed):
                raise wire.error_of(reply.answer)
            if isinstance(reply.answer, wire.Broken):
                raise ChildBroken(f"{reply.answer.kind}\n{reply.answer.trace}")
            return take(reply.answer, descriptors)
        finally:
            wire.close_all(descriptors)

    def _lost(self, why: str) -> ConnectionLost:
        self._child.ended = True
        return ConnectionLost(f"the process with the rights of uid {self._rights.uid} has ended: {why}")

    async def close(self) -> None:
        """Ends the session, and waits until it has ended there as well."""
        with anyio.CancelScope(shield=True):
            try:
                self._sock.shutdown(socket.SHUT_WR)
                while True:
                    await anyio.wait_readable(self._sock)
                    frame = await to_thread.run_sync(wire.receive, self._sock)
                    if frame is None:
                        break
                    wire.close_all(frame[1])
            except OSError as error:
                logger.debug("session ended uid=%d reason=%s", self._rights.uid, error)
            finally:
                self._sock.close()


def _tell(told: wire.Told) -> None:
    name = told.logger if told.logger.startswith("aimport.") else __name__
    logging.getLogger(name).log(min(max(told.level, logging.DEBUG), logging.ERROR), "%s", told.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class RightsSelection(Selection):
    """With the number that its child knows it by."""

    number: int


class RightsSourceSession:
    """Reads one account in a child."""

    limits = ConnectionLimits()

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return (await self._channel.ask(wire.Listed, "list")).mailboxes

    async def inspect(self, targets: Sequence[Mailbox] = ()) -> Standing:
        return await _standing(self._channel, targets)

    async def select(self, mailbox: Mailbox, term: Term = ALL, order: Order = "stored") -> Selection:
        def take(answer: wire.Answer, _: Sequence[int]) -> tuple[wire.Selected, wire.Packed]:
            if not isinstance(answer, wire.Selected):
                raise ConnectionLost("a selection was asked for")
            return answer, wire.Packed(answer.keys, answer.ends)

        selected, keys = await self._channel.ask_and(take, "select", mailbox, term, order)
        return RightsSelection(
            mailbox=mailbox,
            keys=keys,
            sizes=Measured(len(keys), partial(self._measured, selected.number, len(keys)))
            if selected.sizes is None
            else wire.numbers_of(selected.sizes, len(keys)),
            unlisted=selected.unlisted,
            notes=selected.notes,
            position=selected.position,
            number=selected.number,
        )

    def _measured(self, number: int, count: int) -> Sequence[int]:
        """In a worker thread."""
        return wire.numbers_of(from_thread.run(self._channel.ask, wire.Numbers, "sizes", number).octets, count)

    async def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        assert isinstance(selection, RightsSelection), "a selection belongs to the store that made it"
        skipped = array("Q", (place for place, key in enumerate(selection.keys) if key in skip))
        if len(skipped) == len(selection.keys):
            return
        await self._channel.ask(wire.Done, "messages", selection.number, skipped)
        try:
            while (read := await self._channel.ask_and(_messages, "next")) is not None:
                yield read
        finally:
            await self._stop()

    async def look(self, selection: Selection, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        assert isinstance(selection, RightsSelection), "a selection belongs to the store that made it"
        await self._channel.ask(wire.Done, "look", selection.number, places, facts.value)
        try:
            while (seen := await self._channel.ask_and(_facts, "next")) is not None:
                yield seen
        finally:
            await self._stop()

    async def _stop(self) -> None:
        """Ends what is read; where the session is over, it has."""
        with anyio.CancelScope(shield=True), suppress(ConnectionLost):
            await self._channel.ask(wire.Done, "stop")


def _messages(answer: wire.Answer, descriptors: Sequence[int]) -> list[Message | Unreadable] | None:
    match answer:
        case wire.Read():
            return [wire.message_of(each, descriptors) for each in answer.messages]
        case wire.Done():
            return None
    raise ConnectionLost("messages were asked for")


def _facts(answer: wire.Answer, descriptors: Sequence[int]) -> Facts | None:
    match answer:
        case wire.Seen():
            return wire.facts_of(answer)
        case wire.Done():
            return None
    raise ConnectionLost("facts were asked for")


class RightsDestinationSession:
    """Writes one account in a child. `names`: a session of the store without these rights, which does no work."""

    limits = ConnectionLimits()
    waits = False

    def __init__(self, channel: _Channel, opened: wire.Opened, names: DestinationSession) -> None:
        self.separator = opened.separator
        self.folds_case = opened.folds_case
        self._channel = channel
        self._names = names

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return (await self._channel.ask(wire.Listed, "list")).mailboxes

    async def inspect(self, targets: Sequence[Mailbox] = ()) -> Standing:
        return await _standing(self._channel, targets)

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        await self._channel.ask(wire.Done, "create", mailbox, subscribe)

    async def append(self, mailbox: Mailbox, batch: Batch) -> Settled:
        descriptors: list[int] = []
        large: dict[int, wire.OpenFile | wire.OpenSpan] = {}
        messages = list(batch.messages)
        for index, message in enumerate(messages):
            described = wire.described(message.body, descriptors)
            if described is not None:
                large[index] = described
                messages[index] = replace(message, body=b"")
        return await self._channel.ask_and(
            partial(_outcomes, batch),
            *("append", mailbox, replace(batch, messages=tuple(messages)), large),
            descriptors=descriptors,
            large=True,
        )

    async def position(self, mailbox: Mailbox) -> Position | None:
        return (await self._channel.ask(wire.Stands, "position", mailbox)).position

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        found = await self._channel.ask(wire.Found, "find", mailbox, list(wanted), since)
        return wire.stored_of(found, [each.fingerprint for each in wanted])

    async def survey(self, mailbox: Mailbox, since: Position, *, sizes: bool = True) -> Survey | None:
        return await self._channel.ask_and(partial(_survey, sizes), "survey", mailbox, since, sizes)

    @asynccontextmanager
    async def reading(self, mailbox: Mailbox) -> AsyncGenerator[tuple[SourceSession, Mailbox]]:
        there = await self._channel.ask(wire.Listed, "read", mailbox)
        if len(there.mailboxes) != 1:
            raise ConnectionLost("one mailbox was asked for")
        try:
            yield RightsSourceSession(self._channel), there.mailboxes[0]
        finally:
            with anyio.CancelScope(shield=True), suppress(ConnectionLost):
                await self._channel.ask(wire.Done, "leave")

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        return self._names.place(wanted, uid, uidvalidity)


def _outcomes(batch: Batch, answer: wire.Answer, descriptors: Sequence[int]) -> Settled:
    """What became of a batch; of each of its messages, in their order."""
    if not isinstance(answer, wire.Outcomes) or [each.key for each in answer.ended] != [
        message.key for message in batch.messages
    ]:
        raise ConnectionLost("the outcomes of a batch were asked for")
    return Settled([wire.outcome_of(each) for each in answer.ended], answer.sync_s, answer.turn_s)


async def _standing(channel: _Channel, targets: Sequence[Mailbox]) -> Standing:
    stood = await channel.ask(wire.Stood, "inspect", list(targets))
    problems = tuple(wire.error_of(each) for each in stood.problems)
    return Standing(volume=stood.volume, problems=problems, notes=stood.notes)


def _survey(sizes: bool, answer: wire.Answer, descriptors: Sequence[int]) -> Survey | None:
    match answer:
        case wire.Surveyed():
            keys = wire.Packed(answer.keys, answer.ends)
            return Survey(
                uidvalidity=0,
                keys=keys,
                sizes=wire.numbers_of(answer.sizes, len(keys)) if sizes else (),
                dates=wire.numbers_of(answer.dates, len(keys), signed=True) if sizes else (),
                at=Places({place: at for place, at in answer.places.items() if 0 <= at < len(keys)}),
            )
        case wire.Done():
            return None
    raise ConnectionLost("a survey was asked for")
