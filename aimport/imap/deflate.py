"""COMPRESS=DEFLATE (RFC 4978) as a transport over a transport.

    protocol ◀──▶ DeflateTransport ◀──▶ TCP, TLS or a pipe
      plain         raw DEFLATE           compressed

To its protocol it is a plain asyncio transport: flow control both ways, half-close, one
`connection_lost`. Knows nothing of IMAP; who negotiates hands over the octets that came after the OK.

Sending: whatever is written is flushed at once (Z_SYNC_FLUSH, about 6 octets), so no command waits for
the next. Above `INLINE_OCTETS` a worker thread compresses (zlib lets go of the interpreter lock), one
piece at a time and in order; what waits for it counts as write buffer. Level 1 costs 7 ms of
processor a MiB of text (0.38 of it is left) and 21 ms a MiB of base64 (0.78); level 6 costs 24 and 25 (0.33
and 0.76). Octets that cannot be compressed are compressed as well (15 ms a MiB for nothing):
mail is text and base64, and zlib of the standard library cannot change its level in the middle.

Receiving: in steps of `READ_PIECE`, none while the protocol has paused reading, and the
transport below reads nothing while one of its reads is not used up. So a peer that sends 1 octet for a
thousand (a "bomb") costs us one read (256 KiB), one piece and the 32 KiB window, never what it
unpacks to; a limit on the ratio would add nothing and hit honest mail (long runs of one octet).
It costs 3 ms of processor a MiB. A connection's compressor holds about 256 KiB.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from aimport.errors import ProtocolError

LEVEL: Final = 1
INLINE_OCTETS: Final = 16 * 1024
"""As much is compressed on the loop, in 0.2 ms. A thread's trip costs 0.04 ms of the loop and 0.05 ms in all, whatever
the size: from here on that is a fifth of what the loop would spend and at most a fifth more processor (at 4 KiB:
half, and a third more)."""
JOB_OCTETS: Final = 256 * 1024
"""As much goes to a thread at a time: 2 to 5 ms."""
READ_PIECE: Final = 256 * 1024
"""Octets that are handed to the protocol at a time."""
READ_TURN: Final = 1024 * 1024
"""Octets that are handed on before others on the loop have their turn: about 4 ms."""
WRITE_HIGH: Final = 64 * 1024  # asyncio's

Octets = bytes | bytearray | memoryview


class DeflateTransport(asyncio.Transport):
    """The plain side of a compressed connection; made with `over`."""

    def __init__(self, inner: asyncio.Transport, protocol: asyncio.Protocol, level: int) -> None:
        super().__init__()
        self._inner = inner
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._lost = False
        """The transport below is gone; the protocol may not know yet."""
        self._told = False
        """`connection_lost` was called."""
        self._reason: Exception | None = None

        self._deflater = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = 0
        """Octets in `_queue` and in the job."""
        self._job: asyncio.Future[Sequence[bytes]] | None = None
        self._job_octets = 0
        self._high = self._low = 0
        self._held_up = False
        """`pause_writing` was called."""
        self._eof = False

        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._rest = b""
        """Read and not yet decompressed."""
        self._more = False
        """zlib may hold octets that had no room in the last piece."""
        self._paused = False
        self._inner_paused = False
        self._feeding = False
        self._turn: asyncio.Handle | None = None
        self._eof_read = False
        self._eof_told = False

    @classmethod
    def over(
        cls, transport: asyncio.Transport, protocol: asyncio.Protocol, *, level: int = LEVEL, already: bytes = b""
    ) -> DeflateTransport:
        """Compresses both ways from here on (RFC 4978 §3: from the CRLF of the tagged OK).

        `already`: octets that were read behind that CRLF; they reach the protocol with the next turn of
        the loop. `protocol.connection_made` is not called. Whoever had `transport` uses the
        result instead.
        """
        deflate = cls(transport, protocol, level)
        deflate._inner_paused = not transport.is_reading()
        transport.set_protocol(_Below(deflate))
        deflate.set_write_buffer_limits()
        deflate._rest = already
        if already:
            deflate._soon()
        deflate._steer_reading()
        return deflate

    # asyncio.BaseTransport

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._inner.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not isinstance(protocol, asyncio.Protocol):
            raise TypeError(f"a protocol with data_received is needed, not {type(protocol).__name__}")
        self._protocol = protocol

    def get_protocol(self) -> asyncio.Protocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing or self._lost or self._inner.is_closing()

    def close(self) -> None:
        """Sends what was written, then closes. Nothing more is received."""
        if self._closing:
            return
        self._closing = True
        self._forget_read()
        self._pump()

    def abort(self) -> None:
        """Closes at once; what was written and not sent is lost, a compression under way too."""
        self._closing = True
        self._forget_read()
        self._forget_written()
        if not self._lost:
            self._inner.abort()

    # asyncio.WriteTransport

    def write(self, data: Octets) -> None:
        """Octets that can change (a bytearray) are copied; others must not."""
        self._put((data,))

    def writelines(self, list_of_data: Iterable[Octets]) -> None:
        self._put(list_of_data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio's. Both count octets before compression, and compressed ones not yet sent."""
        if high is None:
            high = WRITE_HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self._high, self._low = high, low
        if not self._lost and not self._inner.is_closing():
            # At or below our own low mark: when we are held up and have nothing left to compress, then the
            # transport below is held up too and will say when it is not.
            self._inner.set_write_buffer_limits(high=low, low=low // 2)
        self._steer_writing()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Octets not yet compressed, and compressed octets not yet sent."""
        return self._queued + (0 if self._lost else self._inner.get_write_buffer_size())

    def can_write_eof(self) -> bool:
        return self._inner.can_write_eof()

    def write_eof(self) -> None:
        if not self.can_write_eof():
            raise NotImplementedError("the transport below has no half-close")
        if self._eof or self.is_closing():
            return
        self._eof = True
        self._pump()

    # asyncio.ReadTransport

    def is_reading(self) -> bool:
        return not self._paused and not self.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        self._steer_reading()

    def resume_reading(self) -> None:
        if not self._paused or self._closing:
            return
        self._paused = False
        if self._unread:
            self._soon()
        self._steer_reading()

    # Writing

    def _put(self, parts: Iterable[Octets]) -> None:
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.is_closing():
            return
        for part in map(_unchanging, parts):
            if part:
                self._queue.append(part)
                self._queued += len(part)
        self._pump()
        self._steer_writing()

    def _pump(self) -> None:
        """Compresses what is queued, here or by a thread, and ends the sending when that is asked for."""
        if self._job is not None or self._lost or self._inner.is_closing():
            return
        while self._queue:
            parts = self._take()
            octets = sum(map(len, parts))
            if octets > INLINE_OCTETS:
                self._job_octets = octets
                self._job = self._loop.run_in_executor(None, _deflated, self._deflater, parts)
                self._job.add_done_callback(self._compressed)
                return
            self._queued -= octets
            self._send(_deflated(self._deflater, parts))
        if self._closing:
            self._inner.close()
        elif self._eof:
            self._inner.write_eof()

    def _take(self) -> list[bytes | memoryview]:
        """The next octets to compress, as they were written, without a copy."""
        parts: list[bytes | memoryview] = []
        room = JOB_OCTETS
        while self._queue and room:
            part = self._queue.popleft()
            if len(part) > room:
                view = memoryview(part)
                self._queue.appendleft(view[room:])
                part = view[:room]
            parts.append(part)
            room -= len(part)
        return parts

    def _compressed(self, job: asyncio.Future[Sequence[bytes]]) -> None:
        if job is not self._job:  # given up by `abort`, or the connection was lost
            return
        self._job = None
        self._queued -= self._job_octets
        try:
            self._send(job.result())
            self._pump()
        except Exception as error:  # where asyncio ends a connection for the same reason
            self._end_by(error)
        self._steer_writing()

    def _send(self, octets: Sequence[bytes]) -> None:
        if self._inner.is_closing():
            return
        if len(octets) == 1:
            self._inner.write(octets[0])
        else:
            self._inner.writelines(octets)

    def _forget_written(self) -> None:
        self._queue.clear()
        self._queued = 0
        if self._job is not None:
            job, self._job = self._job, None
            job.cancel()  # one that runs already ends by itself; nobody looks at what it made

    def _steer_writing(self) -> None:
        octets = self.get_write_buffer_size()
        if not self._held_up and octets > self._high and not self._lost:
            self._held_up = True
            self._protocol.pause_writing()
        elif self._held_up and octets <= self._low:
            self._held_up = False
            self._protocol.resume_writing()

    # Reading

    @property
    def _unread(self) -> bool:
        return bool(self._rest) or self._more

    def _forget_read(self) -> None:
        self._rest, self._more = b"", False
        if self._lost and not self._told:  # it was to be told when it had read this
            self._soon()

    def _feed(self) -> None:
        """Hands on what was read, and the end behind it, as far as that may be now."""
        if self._feeding:
            return
        self._feeding = True
        try:
            self._hand_on()
        except Exception as error:  # the protocol's: asyncio ends a connection for it too
            self._end_by(error)
        finally:
            self._feeding = False
        self._steer_reading()

    def _hand_on(self) -> None:
        room = READ_TURN
        while self._unread and not self._paused and not self._closing:
            if room <= 0:
                self._soon()
                break
            piece = self._inflated()
            room -= len(piece)
            if piece:
                self._protocol.data_received(piece)
            if self._inflater.unused_data:
                self._fail(ProtocolError("the server sent octets after the end of its compressed stream"))
        if not self._unread:
            self._tell_end()

    def _inflated(self) -> bytes:
        try:
            piece = self._inflater.decompress(self._rest, READ_PIECE)
        except zlib.error as error:
            self._fail(ProtocolError(f"the server's compressed stream is damaged: {error}"))
            return b""
        self._rest = self._inflater.unconsumed_tail
        # A full piece: there may be more even if all input is used (a long match goes on in the next).
        self._more = len(piece) == READ_PIECE and not self._inflater.eof
        return piece

    def _tell_end(self) -> None:
        if self._eof_read and not self._eof_told and not self._closing:
            self._eof_told = True
            if not self._protocol.eof_received():
                self.close()
        if self._lost and not self._told:
            self._told = True
            self._protocol.connection_lost(self._reason)

    def _soon(self) -> None:
        if self._turn is None:
            self._turn = self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        self._feed()

    def _steer_reading(self) -> None:
        pause = self._paused or self._unread
        if pause == self._inner_paused or self._lost or self._inner.is_closing():
            return
        self._inner_paused = pause
        if pause:
            self._inner.pause_reading()
        else:
            self._inner.resume_reading()

    # Ends

    def _fail(self, error: Exception) -> None:
        self._reason = self._reason or error
        self.abort()

    def _end_by(self, error: Exception) -> None:
        """An exception of the protocol, or one of ours that nobody foresaw."""
        self._loop.call_exception_handler(
            {"message": "Fatal error on a compressed transport", "exception": error, "transport": self}
        )
        self._fail(error)

    # What the transport below reports

    def _below_read(self, data: bytes) -> None:
        if self._closing:
            return
        self._rest = self._rest + data if self._rest else data
        self._feed()

    def _below_ended(self) -> bool:
        self._eof_read = True
        self._feed()
        # We close when all is handed on and sent; TLS, which has no half-close, goes its own way.
        return self._inner.can_write_eof()

    def _below_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._reason = self._reason or exc
        self._forget_written()
        if self._unread and not self._closing:
            # What came before the end is still handed on. Who waits to write must not wait for that.
            self._steer_writing()
            if not self._paused:
                self._soon()
        else:
            self._tell_end()


class _Below(asyncio.Protocol):
    """The protocol of the transport below."""

    def __init__(self, above: DeflateTransport) -> None:
        self._above = above

    def data_received(self, data: bytes) -> None:
        self._above._below_read(data)

    def eof_received(self) -> bool:
        return self._above._below_ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._above._below_lost(exc)

    def pause_writing(self) -> None:
        self._above._steer_writing()

    def resume_writing(self) -> None:
        self._above._steer_writing()


def _unchanging(data: Octets) -> bytes | memoryview:
    """`data` itself if nobody can change it before it is compressed, else a copy."""
    if isinstance(data, bytes):
        return data
    view = memoryview(data)
    plain = view.format == "B" and view.ndim == 1 and view.contiguous
    return view if plain and isinstance(view.obj, bytes) else bytes(view)


def _deflated(deflater: zlib._Compress, parts: Sequence[Octets]) -> list[bytes]:
    """All of `parts`, and the flush that lets the other side read them (RFC 4978 §4)."""
    octets = [piece for part in parts if (piece := deflater.compress(part))]
    octets.append(deflater.flush(zlib.Z_SYNC_FLUSH))
    return octets
