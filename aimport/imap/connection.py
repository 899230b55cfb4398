"""A pipeline of commands over one IMAP connection that is logged in.

    Connection ── start() ──▶ Exchange ── responses(), result()

Commands go out in order, answers come in order; flow control both ways, deadlines that count
from the last octet that moved. Knows no command by name but LOGOUT, nothing of addresses, TLS
or logging in (`imap.client`). No octet of a command or an answer is logged here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from aimport import __version__
from aimport.errors import AimportError, ConnectionLost, DeadlinePassed, MessageUnreadable, ProtocolError
from aimport.imap.answers import Sentence, clean, error_for
from aimport.imap.commands import Burst, LargeLiteral, LiteralPolicy, Word, encode
from aimport.imap.deflate import DeflateTransport
from aimport.imap.fragments import FragmentReader
from aimport.imap.link import Socket
from aimport.imap.paced import HOLDS_UP, PacedTransport
from aimport.imap.responses import Continuation, Response, Tagged, Untagged, parse
from aimport.model import STREAM_OCTETS
from aimport.pacing import Throttle
from aimport.seats import rest
from aimport.secret import without
from aimport.spool import Spool

logger = logging.getLogger(__name__)

READ_HIGH: Final = 4 * 1024 * 1024
"""Octets of answers that wait for their reader; above, the transport reads no more."""
WRITE_HIGH: Final = 1024 * 1024
WRITE_PIECE: Final = 256 * 1024
TLS_PIECE: Final = 32 * 1024
"""Given to TLS at a time: what it encrypts of one call it keeps room for as long as the connection lives."""
MAX_MESSAGE: Final = 1 << 31
"""Octets of one message; the largest seen in the wild has 1.5 GB."""
SPOOL_HIGH: Final = 1024 * 1024
"""Octets of a large literal that are held before they go to its file in one thread hop."""
RESPONSE_COST: Final = 200
"""What a response counts beside its octets: it is Python objects."""
MAX_COLLECTED: Final = 250_000
"""Responses of one command that is not read as a stream."""
MAX_COLLECTED_COST: Final = 128 * 1024 * 1024
"""What those may cost: octets, and `RESPONSE_COST` each."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds. All but `connect_s` and `close_s` count from the last octet that moved."""

    connect_s: float = 30.0
    """From the first packet to the greeting, TLS included; divided among the addresses of a host."""
    command_s: float = 60.0
    append_s: float = 300.0
    """Slow storage commits a batch in minutes."""
    close_s: float = 5.0


def lost(where: str, exc: Exception | None, bye: Untagged | None, sentences: Sequence[Sentence] = ()) -> AimportError:
    """What the end of a connection means."""
    if bye is not None:
        return error_for("BYE", bye.code, bye.text, where=where, sentences=sentences)
    if isinstance(exc, AimportError):
        exc.text = f"{where}: {exc.text}"
        return exc
    said = clean(str(exc)) if exc is not None else "the server closed the connection"
    return ConnectionLost(f"{where}: the connection was lost: {said}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The end of a command and all untagged data that came with it."""

    tagged: Tagged
    data: Sequence[Response]

    @property
    def ok(self) -> bool:
        return self.tagged.status == "OK"

    def of(self, kind: type[T]) -> list[T]:
        return [response for response in self.data if isinstance(response, kind)]

    def code(self, name: str) -> str | None:
        """Arguments of a response code, from the tagged or an untagged status response."""
        for response in (self.tagged, *self.data):
            if isinstance(response, Tagged | Untagged) and response.code == name:
                return response.args
        return None


class Exchange:
    """One command under way. Its data must be read, or dropped with `result`: it holds up what follows."""

    def __init__(self, connection: Connection, tag: str, idle_s: float, *, keep: bool, refusable: bool = False) -> None:
        self.tag = tag
        self.idle_s = idle_s
        self.keep = keep
        self.refusable = refusable
        """A BAD says no more than a NO: the server does not know what was asked."""
        self.dropping = False
        """Nobody reads its data."""
        self.collecting = False
        """Its data is kept in memory: large literals are not wanted."""
        self.tagged: Tagged | None = None
        self.sent = False
        """Every burst was given to the transport."""
        self.bad = False
        """This command was answered BAD; its `result` raises that."""
        self._connection = connection
        self._data: list[Response] = []
        self._cost = 0
        self._dropped = 0
        self._taken = 0
        """What the responses that were taken last have cost."""
        self._error: AimportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def responses(self) -> list[Response]:
        """What has come of its untagged data; waits for some. Empty: the command has ended."""
        while not self._data and self.tagged is None:
            await self._connection.flush()  # first: while nobody waited, nobody could be woken for it
            if not self._data and self.tagged is None:
                await self._wait()
        taken, self._data = self._data, []
        self._connection.consumed(self._cost)
        self._taken, self._cost = self._cost, 0
        return taken

    async def reply(self) -> Reply:
        """Waits for the end and returns everything."""
        data: list[Response] = []
        cost = 0
        self.collecting = True
        self._connection.unwanted(self)
        while part := await self.responses():
            data += part
            cost += self._taken
            if len(data) > MAX_COLLECTED or cost > MAX_COLLECTED_COST:
                error = ProtocolError(f"{self._connection.where}: an answer of {len(data)} responses has no end")
                self._connection.fail(error)
                raise error
        return Reply(tagged=await self.result(), data=data)

    async def result(self) -> Tagged:
        """Waits for the end; untagged data is dropped."""
        self.drop()
        while self.tagged is None:
            await self._wait()
        return self.tagged

    def drop(self) -> None:
        """Nobody will read the data of this command."""
        self.dropping = True
        self._connection.unwanted(self)
        self._data = []
        self._connection.consumed(self._cost)
        self._cost = 0

    # For `Connection` alone.

    @property
    def _ended(self) -> bool:
        return self.tagged is not None or self._error is not None

    def _take(self, response: Response, cost: int) -> int:
        if self.dropping:
            self._dropped += 1
            if self._dropped > MAX_COLLECTED:  # each of them moves the deadline
                raise ProtocolError(f"an answer of {self._dropped} responses has no end")
            return 0
        self._data.append(response)
        self._cost += cost
        self.wake()
        return cost

    def _end(self, tagged: Tagged | None, error: AimportError | None) -> None:
        self.tagged, self._error = tagged, error
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._error is None:
            try:
                await self._connection.until(self._set_waiter())
            except AimportError as error:
                if not self._ended:  # another task gave the connection up, which ends no command by itself
                    self._error = error
        if self._error is not None:
            raise self._error

    def _set_waiter(self) -> asyncio.Future[None]:
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter


class Connection(asyncio.Protocol):
    """Commands in order, answers in order, over one transport; one task uses it at a time.

    Untagged data belongs to the oldest command without an answer. Cancelling a task that
    waits for an answer ends the connection: where the server stands is then unknown.
    """

    def __init__(self, where: str, offered: frozenset[str], reader: FragmentReader, deadlines: Deadlines) -> None:
        self.where = where
        self.capabilities = offered
        self.policy = LiteralPolicy.of(offered)
        self.greeting = ""
        """Its text."""
        self.unsaid: Sequence[str] = ()
        """Shapes of the secret that logged in: a server that repeats them does not make us show them."""
        self.sentences: Sequence[Sentence] = ()
        """What only this kind of server says, for `answers.error_for`."""
        self.deadlines = deadlines
        self.read_high = READ_HIGH
        self._reader = reader
        reader.spill, reader.spill_above = self._spill, STREAM_OCTETS
        reader.max_literal = MAX_MESSAGE  # it goes to disk
        self._spool: Spool | None = None
        """Takes the large literal that came last."""
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Exchange] = deque()
        self._sending = asyncio.Lock()
        self.compressed = False
        self._switching: Exchange | None = None
        """A COMPRESS without an answer: what follows its OK is compressed."""
        self._switched = anyio.Event()
        self._switched.set()
        self._already = b""
        """Compressed octets that came with that OK."""
        self._go: asyncio.Future[None] | None = None
        """Waits for `+`."""
        self._room: asyncio.Future[None] | None = None
        """Waits until the transport takes more."""
        self._idle: asyncio.Future[None] | None = None
        """Waits until nothing is under way."""
        self._closed = anyio.Event()
        self._error: AimportError | None = None
        self._bad: AimportError | None = None
        """Answers to what is under way are still read; nothing new is sent."""
        self._bye: Untagged | None = None
        self._buffered = 0
        self._paused = False
        self._tag = 0
        self._moved = self._loop.time()
        self._unsent = 0
        self._together = WRITE_HIGH
        """Octets given to the transport at a time."""
        self._paced: PacedTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    @classmethod
    def over(
        cls,
        transport: asyncio.Transport,
        *,
        where: str,
        offered: frozenset[str],
        reader: FragmentReader,
        deadlines: Deadlines,
        bye: Untagged | None = None,
        greeting: str = "",
        throttle: Throttle | None = None,
    ) -> Connection:
        """Takes a transport that is logged in, and its reader with what that has read ahead."""
        connection = cls(where, offered, reader, deadlines)
        connection.greeting = greeting
        if throttle is not None and (throttle.out is not None or throttle.into is not None):
            transport = connection._paced = PacedTransport.over(transport, connection, throttle)
        else:
            transport.set_protocol(connection)
        connection._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        if transport.get_extra_info("ssl_object") is not None:
            connection._together = TLS_PIECE
        connection._bye = bye
        return connection

    @property
    def socket(self) -> Socket | None:
        """The socket below, None where it is a pipe."""
        sock: Socket | None = self._transport.get_extra_info("socket")
        return sock

    @property
    def refused(self) -> bool:
        """A BAD was answered: nothing new can be sent."""
        return self._bad is not None

    async def start(
        self,
        *words: Word,
        idle_s: float | None = None,
        keep: bool = False,
        switch: bool = False,
        refusable: bool = False,
    ) -> Exchange:
        """Sends one command; returns when the transport has all of it, before the answer is there.

        A synchronising literal is sent when the server asks for it; a NO before that ends
        the command and leaves the connection in step. A BAD ends the connection; `keep`: not
        before the answer to this command was read, when all under way are so. `switch`: nothing
        is sent behind this command before what it switches on is on. `refusable`: it may ask for what
        the server does not know, and a BAD, when the server has all of it, leaves the connection in step.

        Raises:
            ConnectionLost
        """
        async with self._sending:
            await self._switched.wait()
            if self._error is None and self._bye is not None:
                self.fail(lost(self.where, None, self._bye, self.sentences))
            if self._error is not None or self._bad is not None:
                raise self._bad or self._error or AssertionError
            self._tag += 1
            exchange = Exchange(
                self, f"a{self._tag}", idle_s or self.deadlines.command_s, keep=keep, refusable=refusable
            )
            self._moved = self._loop.time() if not self._pending else self._moved
            self._pending.append(exchange)
            if switch:
                self._switching, self._switched = exchange, anyio.Event()
            self._arm()
            bursts = encode(exchange.tag, words, self.policy)
            try:
                for left, burst in zip(range(len(bursts) - 1, -1, -1), bursts, strict=True):
                    self._go = self._loop.create_future() if left else None
                    await self._write(burst)
                    exchange.sent = not left
                    await self._drain()
                    if self._go is not None:
                        await self.until(self._go)  # `+`, or a NO instead of it (RFC 9051 §4.3)
                        if exchange._ended:
                            break
            except AimportError:
                if not exchange.bad:  # a BAD to this very command is for its `result` to tell
                    raise
            self._go = None
        return exchange

    async def compress(self) -> bool:
        """Compresses both ways from here on (COMPRESS=DEFLATE, RFC 4978); False when the server will not.

        First waits for the end of what is under way; whose data, if any, somebody else must read.
        """
        await self._quiet()
        exchange = await self.start(b"COMPRESS", b"DEFLATE", switch=True)
        tagged = await exchange.result()
        if tagged.status != "OK":
            logger.info("compression refused host=%s text=%s", self.where, clean(tagged.text))
            self._switched.set()
            return False
        self._transport = DeflateTransport.over(self._transport, self, already=self._already)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        if self._paused:
            self._transport.pause_reading()
        self._already = b""
        self._switching = None
        self.compressed = True
        self._switched.set()
        return True

    async def turn(self, octets: int) -> None:
        """Waits until so many octets may be asked for (`--limit-rate`)."""
        if self._paced is not None and (wait_s := self._paced.expect(octets)) > 0:
            await rest(wait_s)

    async def command(self, *words: Word, idle_s: float | None = None) -> Reply:
        """Sends one command and waits for its end: OK or NO (a BAD ends the connection)."""
        return await (await self.start(*words, idle_s=idle_s)).reply()

    async def close(self, *, fence: bool = False) -> None:
        """Ends the session in good manners, within the deadline, even when cancelled.

        `fence`: with commands under way, close our half and read to the end, so that the
        server has finished what it had received (of an APPEND, all or nothing may be stored).
        """
        if self._closed.is_set():
            return
        orderly = self._error is None and not self._pending
        with anyio.move_on_after(self.deadlines.close_s, shield=True), suppress(AimportError):
            if orderly:
                await (await self.start(b"LOGOUT")).result()
            elif fence:
                await self._fence()
        if orderly:
            self._transport.close()
        self.fail(ConnectionLost(f"{self.where}: the session was closed"), abort=not orderly)
        with anyio.move_on_after(self.deadlines.close_s, shield=True):
            await self._closed.wait()
        self._transport.abort()

    async def _fence(self) -> None:
        self._resume()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        elif all(exchange.sent for exchange in self._pending):  # TLS has no half-close
            self._transport.write(b"z LOGOUT\r\n")
        else:
            return
        await self._closed.wait()

    def consumed(self, cost: int) -> None:
        """An exchange has handed over data of that cost."""
        self._buffered -= cost
        if self._buffered <= self.read_high // 2:
            self._resume()

    def _resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._moved = self._loop.time()
            self._transport.resume_reading()

    async def flush(self) -> None:
        """Moves what the large literal under way holds in memory to its file. For whoever reads the oldest command."""
        if self._spool is not None and self._spool.pending >= SPOOL_HIGH:
            await self._spool.flush()
            if self._buffered <= self.read_high // 2:
                self._resume()

    def unwanted(self, exchange: Exchange) -> None:
        """Nobody will read the large literals of `exchange`."""
        if self._spool is not None and self._pending and self._pending[0] is exchange:
            self._spool.abandon()
            self._resume()

    async def _quiet(self) -> None:
        """Waits until every command sent has its answer. For whoever alone sends."""
        while self._pending:
            self._idle = self._idle or self._loop.create_future()
            await self.until(self._idle)

    def fail(self, error: AimportError, *, abort: bool = True) -> None:
        """Ends everything under way with `error`; what is started later ends with it too."""
        self._error = self._error or error
        for exchange in self._pending:
            exchange._end(None, self._error)
        self._pending.clear()
        self._switched.set()
        for waiter in (self._go, self._room, self._idle):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if abort:
            self._transport.abort()

    async def until(self, waiter: asyncio.Future[None]) -> None:
        """Waits; to be cancelled here ends the connection, whose state is unknown from then on."""
        try:
            if self._error is None:
                await waiter
        except asyncio.CancelledError:
            # Not aborted yet: `close` may still read to the end (the fence).
            self._error = self._error or ConnectionLost(f"{self.where}: given up with commands under way")
            raise
        if self._error is not None:
            raise self._error

    # Sending

    async def _write(self, burst: Burst) -> None:
        """Gives a burst to the transport; returns when that has all of it."""
        ready: list[bytes] = []
        size = 0
        for each in burst:
            if isinstance(each, bytes) and size + len(each) <= self._together:
                ready.append(each)
                size += len(each)
                continue
            self._transport.writelines(ready)
            ready, size = [], 0
            if isinstance(each, bytes):
                await self._write_pieces(each)
            else:
                await self._write_large(each)
            await self._drain()
        if ready:
            self._transport.writelines(ready)

    async def _write_pieces(self, octets: bytes) -> None:
        """As views: asyncio would join and copy all of it."""
        view = memoryview(octets)
        piece = min(WRITE_PIECE, self._together)
        for at in range(0, len(view), piece):
            await self._drain()
            self._transport.write(view[at : at + piece])

    async def _write_large(self, literal: LargeLiteral) -> None:
        """Reads a literal in a thread and writes it piece by piece; one that cannot be had ends the connection."""
        pieces = literal.pieces()
        left = literal.size
        try:
            while (piece := await anyio.to_thread.run_sync(next, pieces, b"")) and len(piece) <= left:
                left -= len(piece)
                await self._write_pieces(piece)
            if left or piece:
                raise MessageUnreadable("the message is not as long as it was", code="unreadable")
        except MessageUnreadable as error:
            self.fail(ConnectionLost(f"{self.where}: given up within a message that cannot be read: {error}"))
            assert self._error is not None
            raise self._error from error
        except asyncio.CancelledError:
            self._error = self._error or ConnectionLost(f"{self.where}: given up within a message")
            raise

    async def _drain(self) -> None:
        if self._room is not None:
            await self.until(self._room)

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        self._moved = self._loop.time()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    # Receiving

    def data_received(self, data: bytes) -> None:
        if self._error is not None:
            return
        self._moved = self._loop.time()
        try:
            if self._switching is None:
                self._feed(data)
            else:
                self._feed_until_switched(data, self._switching)
        except AimportError as error:
            error.text = without(f"{self.where}: {error.text}", self.unsaid)
            error.args = (error.text,)
            self.fail(error)
            return
        spooling = self._spool is not None and self._spool.pending >= SPOOL_HIGH
        if spooling and self._pending:
            self._pending[0].wake()
        if (spooling or self._buffered >= self.read_high) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _feed(self, data: bytes) -> None:
        for fragments in self._reader.feed(data):
            cost = RESPONSE_COST
            for each in fragments:
                if type(each) is bytes:
                    cost += len(each)
            self._receive(parse(fragments), cost)

    def _feed_until_switched(self, data: bytes, switching: Exchange) -> None:
        """Line by line, so that nothing behind the OK is taken for plain (RFC 4978 §3)."""
        at = 0
        while at < len(data) and switching.tagged is None:
            end = data.find(b"\n", at) + 1 or len(data)
            self._feed(data[at:end])
            at = end
        if switching.tagged is None:
            return
        if switching.tagged.status == "OK":
            self._already += data[at:]
            self._transport.pause_reading()
        else:
            self._switching = None
            self._feed(data[at:])

    def _spill(self, size: int) -> Spool:
        self._spool = Spool(size)
        if not self._pending or self._pending[0].dropping or self._pending[0].collecting:
            self._spool.abandon()
        return self._spool

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(lost(self.where, exc, self._bye, self.sentences), abort=False)
        self._closed.set()

    def _receive(self, response: Response, cost: int) -> None:
        if isinstance(response, Tagged | Untagged) and self.unsaid:
            text, args = without(response.text, self.unsaid), without(response.args, self.unsaid)
            if (text, args) != (response.text, response.args):
                response = replace(response, text=text, args=args)
        if isinstance(response, Tagged):
            self._ended(response)
        elif isinstance(response, Continuation):
            if self._go is None or self._go.done():
                # Taken for a later literal's, it would make octets of a message into commands.
                raise ProtocolError("the server waits for octets that were not announced")
            self._go.set_result(None)
        else:
            if isinstance(response, Untagged):
                if response.status == "BYE":
                    self._bye = response
                if response.code == "ALERT":
                    logger.warning("server alert host=%s text=%s", self.where, clean(response.text))
            if self._pending:
                self._buffered += self._pending[0]._take(response, cost)

    def _ended(self, tagged: Tagged) -> None:
        if not self._pending or self._pending[0].tag != tagged.tag:
            raise ProtocolError("the server answered a command that was not sent, or out of order")
        exchange = self._pending[0]
        if not exchange.sent and tagged.status == "OK":
            raise ProtocolError("the server answered OK before it had the whole command")
        self._pending.popleft()
        if tagged.status == "BAD" and not (exchange.refusable and exchange.sent):
            error = error_for("BAD", tagged.code, tagged.text, where=self.where, sentences=self.sentences)
            self._bad = self._bad or error
            exchange.bad = True
            exchange._end(None, error)
            if not all(other.keep for other in self._pending):
                self.fail(ProtocolError(f"{self.where}: closed, because a command was answered BAD"))
        else:
            exchange._end(tagged, None)
        if not exchange.sent and self._go is not None and not self._go.done():
            self._go.set_result(None)
        if not self._pending and self._idle is not None:
            if not self._idle.done():
                self._idle.set_result(None)
            self._idle = None
        if self._bad is not None and not self._pending:
            self.fail(ProtocolError(f"{self.where}: closed, because a command was answered BAD"))

    # Deadlines

    def _arm(self) -> None:
        if self._timer is None and self._pending:
            self._timer = self._loop.call_later(min(self._pending[0].idle_s / 4, 5.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        unsent = self._transport.get_write_buffer_size()
        if self._paused or unsent < self._unsent or self._transport.get_extra_info(HOLDS_UP):
            self._moved = now
        self._unsent = unsent
        if self._pending and now - self._moved >= self._pending[0].idle_s:
            waited = self._pending[0].idle_s
            self.fail(DeadlinePassed(f"{self.where}: nothing moved for {waited:g} s"))
        self._arm()


def identify() -> list[Word]:
    """The words of an ID command (RFC 2971)."""
    return [b"ID", b'("name" "aimport" "version" "%s")' % __version__.encode("ascii")]
