"""A compressed transport is a transport: order, flow control, ends. The other side is asyncio's streams and zlib.

Invariant of all: the protocol sees what it would see on the transport below, `connection_lost` once and last.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimport.errors import ConnectionLost, ProtocolError
from aimport.imap.client import connect
from aimport.imap.commands import Literal
from aimport.imap.connection import Connection, Deadlines
from aimport.imap.deflate import INLINE_OCTETS, JOB_OCTETS, READ_PIECE, READ_TURN, DeflateTransport, Octets
from aimport.imap.fragments import FragmentReader
from aimport.imap.responses import Fetch, Listed
from aimport.model import Endpoint, Secret
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import WITH_COMPRESS, run_dovecot
from tests.fix_imap import authority, server_context

MIB: Final = 1024 * 1024
KINDS: Final = ("tcp", "tls")

pytestmark = pytest.mark.timeout(60)


class Near(asyncio.Protocol):
    """Notes what a protocol is told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.calls: list[str] = []
        """In order; a row of `data` once."""
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()
        self.on_data: Callable[[bytes], None] | None = None
        self.stays = False
        """The answer to `eof_received`."""
        self._arrived = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        assert 0 < len(data) <= READ_PIECE
        self._called("data")
        if self.on_data is not None:
            self.on_data(data)
        else:
            self.received += data
        self._arrived.set()

    def eof_received(self) -> bool:
        self._called("eof")
        self._arrived.set()
        return self.stays

    def connection_lost(self, exc: Exception | None) -> None:
        self._called("lost")
        assert self.calls.count("lost") == 1
        self.lost.set_result(exc)
        self._arrived.set()

    def pause_writing(self) -> None:
        assert self.writable.is_set()
        self.writable.clear()

    def resume_writing(self) -> None:
        assert not self.writable.is_set()
        self.writable.set()

    def _called(self, name: str) -> None:
        assert "lost" not in self.calls
        if self.calls[-1:] != [name]:
            self.calls.append(name)

    async def until(self, octets: int) -> None:
        """Until that much has come."""
        while len(self.received) < octets:
            assert "lost" not in self.calls
            self._arrived.clear()
            await self._arrived.wait()

    async def called(self, name: str) -> None:
        while name not in self.calls:
            self._arrived.clear()
            await self._arrived.wait()


class Far:
    """The server's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
        self._inflater = zlib.decompressobj(-15)
        self._plain = bytearray()

    async def send(self, data: bytes, mode: int = zlib.Z_SYNC_FLUSH) -> None:
        self.writer.write(self._deflater.compress(data) + self._deflater.flush(mode))
        await self.writer.drain()

    async def read(self, octets: int) -> bytes:
        """So many octets as the client wrote them."""
        while len(self._plain) < octets:
            wire = await self.reader.read(65536)
            assert wire, f"the client closed, {octets - len(self._plain)} octets early"
            self._plain += self._inflater.decompress(wire)
        taken = bytes(self._plain[:octets])
        del self._plain[:octets]
        return taken

    async def read_to_end(self) -> bytes:
        while wire := await self.reader.read(65536):
            self._plain += self._inflater.decompress(wire)
        return bytes(self._plain)

    def reset(self) -> None:
        """RST instead of FIN."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def joined(kind: str = "tcp", *, already: bytes = b"") -> AsyncGenerator[tuple[DeflateTransport, Near, Far]]:
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = loop.create_future()
    trust = None
    if kind == "tls":
        trust = ssl.create_default_context()
        authority().configure_trust(trust)
    listener = await asyncio.start_server(
        lambda reader, writer: accepted.set_result((reader, writer)),
        "127.0.0.1",
        0,
        ssl=server_context() if trust is not None else None,
    )
    port = listener.sockets[0].getsockname()[1]
    near = Near()
    inner, _ = await loop.create_connection(
        lambda: near, "127.0.0.1", port, ssl=trust, server_hostname="127.0.0.1" if trust is not None else None
    )
    far = Far(*await accepted)
    transport = DeflateTransport.over(inner, near, already=already)
    try:
        yield transport, near, far
    finally:
        transport.abort()
        await near.lost
        far.writer.transport.abort()
        with suppress(OSError):
            await far.writer.wait_closed()
        listener.close()
        await listener.wait_closed()


async def turns(number: int = 30) -> None:
    """The loop goes round, so that what could happen has happened."""
    for _ in range(number):
        await asyncio.sleep(0)


def octets(number: int, seed: int = 0) -> bytes:
    """Octets that shrink to about 0.8, as base64 does."""
    return random.Random(seed).randbytes(number).translate(bytes(range(64)) * 4)


def deflated(data: bytes, mode: int = zlib.Z_SYNC_FLUSH) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush(mode)


# Sending

sizes = st.one_of(
    st.integers(0, 100), st.integers(INLINE_OCTETS - 2, INLINE_OCTETS + 2), st.integers(0, 2 * JOB_OCTETS)
)
forms: Final[Sequence[Callable[[bytes], Octets]]] = (
    bytes,
    bytearray,
    memoryview,
    lambda data: memoryview(bytearray(data)),
)


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.lists(st.tuples(sizes, st.sampled_from(forms)), min_size=1, max_size=4), max_size=6), st.booleans())
@settings(max_examples=25)
async def test_what_is_written_arrives_in_order_however_it_is_written(
    kind: str, writes: list[list[tuple[int, Callable[[bytes], Octets]]]], breathe: bool
) -> None:
    async with joined(kind) as (transport, _, far):
        expected = bytearray()
        for seed, write in enumerate(writes):
            parts = [octets(size, seed + number) for number, (size, _) in enumerate(write)]
            written = [form(part) for part, (_, form) in zip(parts, write, strict=True)]
            if len(written) == 1:
                transport.write(written[0])
            else:
                transport.writelines(written)
            for part in written:
                view = memoryview(part)
                if not view.readonly:
                    view[:] = bytes(len(view))  # the caller may use its buffer again
            expected += b"".join(parts)
            if breathe:
                await turns(2)
        assert await far.read(len(expected)) == expected
        assert transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 20, INLINE_OCTETS, INLINE_OCTETS + 1, 3 * JOB_OCTETS])
async def test_no_write_waits_for_the_next(kind: str, size: int) -> None:
    async with joined(kind) as (transport, near, far):
        for seed in range(3):
            transport.write(octets(size, seed))
            assert await far.read(size) == octets(size, seed)
            await far.send(b"+")
            await near.until(seed + 1)


async def test_a_small_write_stays_behind_the_big_one_before_it() -> None:
    async with joined() as (transport, _, far):
        transport.write(octets(2 * MIB))
        transport.write(b"a1 NOOP\r\n")
        transport.writelines([b"a2 ", b"NOOP", b"\r\n"])
        assert transport.get_write_buffer_size() >= 2 * MIB
        assert (await far.read(2 * MIB + 18))[2 * MIB :] == b"a1 NOOP\r\na2 NOOP\r\n"


async def test_a_view_that_is_no_row_of_octets_is_sent_as_its_octets() -> None:
    async with joined() as (transport, _, far):
        transport.write(memoryview(b"abcdef")[::2])
        transport.write(memoryview(bytes(range(12))).cast("I"))
        transport.write(memoryview(bytes(range(12))).cast("B", (3, 4)))
        assert await far.read(27) == b"ace" + bytes(range(12)) * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("high", "low"), [(0, 0), (1, 1), (65536, None), (MIB, None), (MIB, MIB), (MIB, 0)])
async def test_a_writer_is_held_up_and_let_go_and_never_forgotten(kind: str, high: int, low: int | None) -> None:
    async with joined(kind) as (transport, near, far):
        transport.set_write_buffer_limits(high, low)
        written = 0
        largest = 0
        while near.writable.is_set():
            transport.write(octets(200_000, written))  # nobody reads
            written += 200_000
            largest = max(largest, transport.get_write_buffer_size())
            if near.writable.is_set():
                await turns(1)
        assert high < largest <= high + 200_000
        reading = asyncio.create_task(far.read(written + 50 * 200_000))
        for _ in range(50):
            await near.writable.wait()
            assert transport.get_write_buffer_size() <= high
            transport.write(octets(200_000))
        got = await reading
        assert got[-200_000:] == octets(200_000)
        await near.writable.wait()


async def test_a_writer_is_let_go_also_when_only_the_transport_below_has_octets_left() -> None:
    """Held up by a write that shrinks to nothing, above our low mark, with less than our high mark to send."""
    async with joined() as (transport, near, far):
        transport.set_write_buffer_limits(high=4 * MIB, low=MIB // 4)
        written = 0
        while transport.get_write_buffer_size() < 3 * MIB:  # nobody reads
            transport.write(octets(INLINE_OCTETS))
            written += INLINE_OCTETS
            await turns(3)
        assert near.writable.is_set()
        transport.write(bytes(4 * MIB))
        assert not near.writable.is_set()
        while transport._job is not None:
            await asyncio.wait([transport._job])
            await turns(3)
        assert not near.writable.is_set()
        await far.read(written + 4 * MIB)
        await near.writable.wait()


@pytest.mark.parametrize(("high", "low"), [(10, 11), (-1, None), (10, -1)])
async def test_limits_that_make_no_sense_are_refused(high: int, low: int | None) -> None:
    async with joined() as (transport, _, _):
        before = transport.get_write_buffer_limits()
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(high, low)
        assert transport.get_write_buffer_limits() == before


async def test_a_write_of_megabytes_is_compressed_in_threads_and_the_loop_goes_on() -> None:
    async with joined() as (transport, _, far):
        transport.write(octets(8 * MIB))
        assert transport.get_write_buffer_size() >= 8 * MIB - JOB_OCTETS
        reading = asyncio.create_task(far.read(8 * MIB))
        round_trips = 0
        while not reading.done():
            await asyncio.sleep(0)
            round_trips += 1
        assert await reading == octets(8 * MIB)
        assert round_trips > 8 * MIB // JOB_OCTETS


# Receiving


class Wire(asyncio.Transport):
    """A transport below whose reads the test makes."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol = asyncio.Protocol()
        self.reading = True
        self.aborted = False
        self.written = bytearray()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.aborted

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Octets) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True
        asyncio.get_running_loop().call_soon(self.lose, None)

    def read(self, data: bytes) -> None:
        assert isinstance(self.protocol, asyncio.Protocol)
        self.protocol.data_received(data)

    def lose(self, exc: Exception | None) -> None:
        self.protocol.connection_lost(exc)


@given(
    st.lists(st.tuples(st.integers(0, 3 * READ_PIECE), st.integers(1, 64)), min_size=1, max_size=5),
    st.lists(st.floats(0, 1), max_size=6),
    st.lists(st.booleans(), min_size=1, max_size=8),
)
@settings(max_examples=60)
async def test_what_is_read_does_not_depend_on_how_the_stream_was_cut(
    responses: list[tuple[int, int]], cuts: list[float], pauses: list[bool]
) -> None:
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    stream, plain = bytearray(), bytearray()
    for seed, (size, symbols) in enumerate(responses):
        data = octets(size, seed).translate(bytes(value % symbols for value in range(256)))
        stream += deflater.compress(data) + deflater.flush((zlib.Z_SYNC_FLUSH, zlib.Z_PARTIAL_FLUSH)[seed % 2])
        plain += data
    at = sorted({0, len(stream), *(int(cut * len(stream)) for cut in cuts)})
    first, *later = [bytes(stream[start:stop]) for start, stop in pairwise(at)] or [b""]
    wire, near = Wire(), Near()
    transport = DeflateTransport.over(wire, near, already=first)

    def take(data: bytes) -> None:
        assert transport.is_reading()
        near.received += data
        if pauses[len(near.received) % len(pauses)]:
            transport.pause_reading()

    near.on_data = take
    for data in later:
        while not wire.reading:
            transport.resume_reading()
            await turns(2)
        wire.read(data)
    while not transport.is_reading() or not wire.reading:
        transport.resume_reading()
        await turns(2)
    assert near.received == plain
    transport.abort()
    assert await near.lost is None


@pytest.mark.parametrize("size", [READ_PIECE - 1, READ_PIECE, READ_PIECE + 1, 2 * READ_PIECE, READ_TURN, READ_TURN + 1])
@pytest.mark.parametrize("mode", [zlib.Z_SYNC_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_FINISH])
async def test_a_full_piece_is_not_the_last(size: int, mode: int) -> None:
    async with joined() as (transport, near, far):
        await far.send(bytes(size), mode)
        await near.until(size)
        assert near.received == bytes(size)
        await turns()
        assert transport.is_reading()


async def test_nothing_stays_in_the_decompressor() -> None:
    """At one place of this stream all input is used up and the first piece is full, but 760 octets are to come."""
    stream = deflated(bytes(2 * READ_PIECE))
    for cut in range(len(stream)):
        inflater = zlib.decompressobj(-15)
        piece = inflater.decompress(stream[:cut], READ_PIECE)
        if len(piece) == READ_PIECE and not inflater.unconsumed_tail and (left := len(inflater.decompress(b"", 9999))):
            break
    wire, near = Wire(), Near()
    transport = DeflateTransport.over(wire, near)
    wire.read(stream[:cut])
    assert len(near.received) == READ_PIECE + left > READ_PIECE
    assert wire.reading
    transport.abort()
    await near.lost


async def test_a_bomb_costs_one_piece_while_the_protocol_pauses() -> None:
    bomb = deflated(bytes(64 * MIB))
    unpacked = 0
    pieces = asyncio.Semaphore(0)
    async with joined() as (transport, near, far):

        def take(data: bytes) -> None:
            nonlocal unpacked
            assert data.count(0) == len(data)
            unpacked += len(data)
            transport.pause_reading()
            pieces.release()

        near.on_data = take
        tracemalloc.start()
        try:
            far.writer.write(bomb)
            await pieces.acquire()
            await turns()
            assert unpacked == READ_PIECE
            while unpacked < 64 * MIB:
                transport.resume_reading()
                await pieces.acquire()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 * MIB
        assert unpacked == 64 * MIB
        near.on_data = None
        transport.resume_reading()
        await far.send(b"")
        far._deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
        await far.send(b"* OK still in step\r\n")
        await near.until(20)


async def test_a_bomb_does_not_keep_the_loop_for_itself() -> None:
    async with joined() as (_, near, far):
        done = asyncio.Event()
        unpacked = round_trips = 0

        def take(data: bytes) -> None:
            nonlocal unpacked
            unpacked += len(data)
            if unpacked == 64 * MIB:
                done.set()

        near.on_data = take
        far.writer.write(deflated(bytes(64 * MIB)))
        while not done.is_set():
            await asyncio.sleep(0)
            round_trips += 1
        assert round_trips >= 64 * MIB // (READ_TURN + READ_PIECE)


async def test_octets_read_behind_the_ok_come_first() -> None:
    stream = deflated(b"* 1 EXISTS\r\n* 2 EXISTS\r\n")
    async with joined(already=stream[:7]) as (_, near, far):
        assert not near.received  # the caller has no transport yet
        far.writer.write(stream[7:])
        await near.until(24)
        assert near.received == b"* 1 EXISTS\r\n* 2 EXISTS\r\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("stream", "before", "says"),
    [
        (b"* BYE this is not compressed\r\n", b"", "damaged"),
        (deflated(b"* OK\r\n") + b"\xff" * 9, b"", "damaged"),  # zlib gives no octet of such a read
        (deflated(b"* OK\r\n", zlib.Z_FINISH) + b"x", b"* OK\r\n", "after the end"),
    ],
)
async def test_a_stream_that_is_none_ends_the_connection(kind: str, stream: bytes, before: bytes, says: str) -> None:
    async with joined(kind) as (transport, near, far):
        far.writer.write(stream)
        with pytest.raises(ProtocolError, match=says):
            raise await near.lost or AssertionError
        assert near.received == before
        assert transport.is_closing()


async def test_a_stream_that_is_none_ends_the_connection_also_when_it_came_with_the_ok() -> None:
    async with joined(already=b"\xff\xff\xff\xff") as (_, near, _):
        assert isinstance(await near.lost, ProtocolError)


async def test_a_server_may_end_its_stream_before_it_closes() -> None:
    async with joined() as (_, near, far):
        await far.send(b"* BYE\r\n", zlib.Z_FINISH)
        far.writer.close()
        assert await near.lost is None
        assert near.received == b"* BYE\r\n"
        assert near.calls == ["data", "eof", "lost"]


async def test_octets_after_the_end_are_noticed_in_a_later_read_too() -> None:
    async with joined() as (_, near, far):
        await far.send(b"* OK\r\n", zlib.Z_FINISH)
        await near.until(6)
        far.writer.write(deflated(b"* OK forged\r\n"))
        assert isinstance(await near.lost, ProtocolError)
        assert near.received == b"* OK\r\n"


@pytest.mark.parametrize("when", ["in the first read", "in a later turn"])
async def test_an_exception_of_the_protocol_ends_the_connection_and_is_reported(when: str) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context.get("exception")))
    async with joined() as (_, near, far):
        bug = ZeroDivisionError("a bug")
        seen = 0

        def take(data: bytes) -> None:
            nonlocal seen
            seen += len(data)
            if when == "in the first read" or seen > READ_TURN:
                raise bug

        near.on_data = take
        await far.send(bytes(2 * READ_TURN))
        assert await near.lost is bug
    assert reported == [bug]


# Ends


@pytest.mark.parametrize("kind", KINDS)
async def test_close_sends_everything_first(kind: str) -> None:
    async with joined(kind) as (transport, near, far):
        for seed in range(5):
            transport.write(octets(MIB, seed))
        transport.close()
        transport.close()
        assert transport.is_closing()
        transport.write(b"too late")
        assert await far.read_to_end() == b"".join(octets(MIB, seed) for seed in range(5))
        far.writer.close()  # TLS: our close_notify
        assert await near.lost is None
        assert transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_abort_does_not_wait_for_a_compression(kind: str) -> None:
    async with joined(kind) as (transport, near, far):
        transport.write(octets(8 * MIB))
        job = transport._job
        assert job is not None and not job.done()
        transport.abort()
        assert transport.is_closing() and transport.get_write_buffer_size() < MIB
        assert await near.lost is None
        assert job.cancelled()
        with suppress(OSError, AssertionError):
            await far.read(8 * MIB)
        transport.abort()
        transport.close()
        transport.write(b"too late")
        transport.writelines([b"too", b"late"])
        transport.pause_reading()
        transport.resume_reading()
        transport.set_write_buffer_limits(high=5)
        await turns()
        assert near.calls == ["lost"]
        assert transport.get_write_buffer_size() == 0 and not transport.is_reading()


async def test_abort_while_close_waits_for_a_server_that_does_not_read() -> None:
    async with joined() as (transport, near, _):
        transport.write(octets(24 * MIB))
        transport.close()
        await turns()
        assert not near.lost.done()
        transport.abort()
        assert await near.lost is None


async def test_the_end_of_our_half_comes_after_what_was_written() -> None:
    async with joined() as (transport, near, far):
        assert transport.can_write_eof()
        transport.write(octets(MIB))
        transport.write_eof()
        transport.write_eof()
        with pytest.raises(RuntimeError, match="write_eof"):
            transport.write(b"more")
        assert await far.read_to_end() == octets(MIB)
        await far.send(b"a1 OK\r\n")
        far.writer.close()
        assert await near.lost is None
        assert near.received == b"a1 OK\r\n"
        assert near.calls == ["data", "eof", "lost"]


async def test_tls_has_no_half_close() -> None:
    async with joined("tls") as (transport, _, _):
        assert not transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            transport.write_eof()
        transport.write(b"more")


async def test_a_protocol_may_go_on_writing_after_the_server_closed_its_half() -> None:
    async with joined() as (transport, near, far):
        near.stays = True
        far.writer.write_eof()
        await near.called("eof")
        transport.write(octets(MIB))
        assert await far.read(MIB) == octets(MIB)
        assert not transport.is_closing()


async def test_what_is_under_way_is_sent_after_the_server_closed_its_half() -> None:
    async with joined() as (transport, near, far):
        transport.write(octets(4 * MIB))
        far.writer.write_eof()
        assert await far.read_to_end() == octets(4 * MIB)
        assert await near.lost is None
        assert transport.is_closing()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_came_before_the_end_is_read_before_the_end(kind: str) -> None:
    async with joined(kind) as (transport, near, far):

        def take(data: bytes) -> None:
            near.received += data
            transport.pause_reading()

        near.on_data = take
        await far.send(bytes(8 * READ_PIECE))
        far.writer.close()
        for number in range(8):
            await near.until((number + 1) * READ_PIECE)
            await turns()
            assert near.calls == ["data"]
            transport.resume_reading()
        assert await near.lost is None
        assert near.received == bytes(8 * READ_PIECE)
        assert near.calls == ["data", "eof", "lost"]


@pytest.mark.parametrize("give_up", [False, True])
async def test_a_lost_connection_frees_the_writer_and_keeps_what_was_read(give_up: bool) -> None:
    wire, near = Wire(), Near()
    transport = DeflateTransport.over(wire, near)
    transport.pause_reading()
    transport.set_write_buffer_limits(high=MIB)
    transport.write(octets(2 * MIB))
    assert not near.writable.is_set()
    wire.read(deflated(b"a1 OK\r\n"))  # it was under way when the pause came
    wire.aborted = True
    wire.lose(ConnectionResetError("reset"))
    assert near.writable.is_set() and transport.is_closing()
    transport.write(b"nobody hears")
    await turns()
    assert near.calls == []
    if give_up:
        transport.abort()
        assert near.calls == []  # not from within
    else:
        transport.resume_reading()
    assert isinstance(await near.lost, ConnectionResetError)
    assert bytes(near.received) == (b"" if give_up else b"a1 OK\r\n")
    transport.abort()
    await turns()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reset_ends_a_compression_and_the_connection_once(kind: str) -> None:
    async with joined(kind) as (transport, near, far):
        transport.write(octets(16 * MIB))
        await far.read(JOB_OCTETS)
        far.reset()
        await near.lost
        await turns()
        assert near.calls[-1] == "lost"
        assert transport.get_write_buffer_size() == 0


async def test_abort_from_within_stops_the_data() -> None:
    async with joined() as (transport, near, far):
        near.on_data = lambda data: transport.abort()
        await far.send(bytes(3 * READ_PIECE))
        assert await near.lost is None
        assert near.calls == ["data", "lost"]


async def test_close_from_within_stops_the_data_and_sends_the_rest() -> None:
    async with joined() as (transport, near, far):
        transport.write(octets(MIB))

        def take(data: bytes) -> None:
            transport.write(b"LOGOUT")
            transport.close()

        near.on_data = take
        await far.send(bytes(3 * READ_PIECE))
        assert await far.read_to_end() == octets(MIB) + b"LOGOUT"
        assert await near.lost is None
        assert near.calls == ["data", "lost"]


# The rest of a transport


async def test_another_protocol_takes_over() -> None:
    async with joined() as (transport, near, far):
        other = Near()
        transport.set_protocol(other)
        assert transport.get_protocol() is other
        await far.send(b"* OK\r\n")
        await other.until(6)
        transport.set_protocol(near)
        with pytest.raises(TypeError, match="BufferedProtocol"):
            transport.set_protocol(asyncio.BufferedProtocol())
        assert not near.received


async def test_what_the_transport_below_knows_is_known() -> None:
    async with joined("tls") as (transport, _, _):
        assert transport.get_extra_info("ssl_object") is not None
        assert transport.get_extra_info("nothing", 5) == 5


async def test_a_transport_that_was_paused_is_resumed() -> None:
    wire, near = Wire(), Near()
    wire.reading = False
    transport = DeflateTransport.over(wire, near)
    assert wire.reading and transport.is_reading()
    transport.abort()
    await near.lost


# Under a connection


def under(connection: Connection) -> None:
    """Compresses `connection`, whose server has said OK to that."""
    connection._transport = DeflateTransport.over(connection._transport, connection)


async def test_giving_up_a_command_in_the_middle_of_a_literal_leaves_nothing_behind() -> None:
    async with joined() as (transport, near, _):
        connection = Connection.over(
            transport,
            where="test",
            offered=frozenset({"LITERAL+"}),
            reader=FragmentReader(),
            deadlines=Deadlines(close_s=0.2),
        )
        sending = asyncio.create_task(connection.start(b"APPEND", b"x", Literal(octets(32 * MIB))))
        await turns(100)
        assert connection._room is not None  # it waits for the transport
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        with pytest.raises(ConnectionLost):
            await connection.command(b"NOOP")
        await connection.close()
        assert transport.get_write_buffer_size() == 0
        near.connection_lost(None)  # `joined` waits for it


BODY: Final = b"Subject: x\r\n\r\n" + octets(700_000).hex().encode() + b"\r\n"


async def converse(connection: Connection) -> None:
    """Big both ways, small both ways."""
    assert (await connection.command(b"COMPRESS", b"DEFLATE")).ok
    under(connection)
    assert (await connection.command(b"NOOP")).ok
    for _ in range(3):
        appended = await connection.command(b"APPEND", b"INBOX", Literal(BODY))
        assert appended.ok, appended.tagged
    assert [listed.name for listed in (await connection.command(b"LIST", b'""', b"INBOX")).of(Listed)] == [b"INBOX"]
    assert (await connection.command(b"EXAMINE", b"INBOX")).ok
    fetched = (await connection.command(b"FETCH", b"1:*", b"(BODY.PEEK[])")).of(Fetch)
    assert [fetch.body for fetch in fetched] == [BODY] * 3
    await connection.close()


@pytest.mark.parametrize("security", ["none", "tls"])
async def test_dovecot_understands_us(security: str, unique_user: str) -> None:
    with run_dovecot(extra=WITH_COMPRESS) as dovecot:
        connection = await connect(
            Endpoint(
                scheme="imap",
                host=dovecot.host,
                port=dovecot.tls_port if security == "tls" else dovecot.port,
                security="tls" if security == "tls" else "none",
                user=unique_user,
                secret=Secret(kind="literal", text=dovecot.password),
                tls_ca=str(dovecot.ca_file),
            )
        )
        assert "COMPRESS=DEFLATE" in connection.capabilities
        await converse(connection)


async def test_cyrus_understands_us(cyrus: Cyrus, unique_user: str) -> None:
    cyrus.create_user(unique_user)
    connection = await connect(
        Endpoint(
            scheme="imap",
            host=cyrus.host,
            port=cyrus.port,
            security="none",
            user=unique_user,
            secret=Secret(kind="literal", text=cyrus.password),
        )
    )
    assert "COMPRESS=DEFLATE" in connection.capabilities
    await converse(connection)
