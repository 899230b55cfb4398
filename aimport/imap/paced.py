"""A transport that keeps to a rate in both directions: `--limit-rate` obeyed on the wire.

    Connection or COMPRESS ──write──▶ queue ──a piece at its turn──▶ transport below
                           ◀─────────── read; beyond what was asked for in time, paused until its turn

Pieces are a fraction of a second's worth, so nobody waits for each message, and all connections of a host share one
timetable (`pacing.Pace`). What is asked for (FETCH) is waited for before it is asked for; what comes beyond that, a
large message say, stops the reading until its turn has come. Octets are counted above TLS and below COMPRESS; what is
asked for counts as it would come plain.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol

from aimport.pacing import Throttle

Octets = bytes | bytearray | memoryview
HIGH: Final = 1024 * 1024
HOLDS_UP: Final = "holds_up"
"""The extra info that tells whether this transport makes somebody wait now: no deadline counts meanwhile."""
KEPT: Final = 4  # windows that may be on their way
LEAST_BUFFER: Final = 16 * 1024


class _Receiver(Protocol):
    """What a socket is asked for here."""

    def setsockopt(self, level: int, optname: int, value: int, /) -> None: ...


class PacedTransport(asyncio.Transport):
    """Over a transport whose protocol it takes the place of."""

    def __init__(self, below: asyncio.Transport, above: asyncio.Protocol, throttle: Throttle) -> None:
        super().__init__()
        self._below = below
        self._above = above
        self._out, self._into = throttle.out, throttle.into
        self._loop = asyncio.get_running_loop()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._next = 0
        """Octets whose turn is reserved; 0: none is."""
        self._sending: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._expected = 0
        """Octets that were waited for before they were asked for."""
        self._paused_above = False
        """Nobody above wants to read."""
        self._high, self._low = HIGH, HIGH // 4
        self._full = False
        self._full_below = False
        self._closing = False
        self._eof = False

    @classmethod
    def over(cls, below: asyncio.Transport, above: asyncio.Protocol, throttle: Throttle) -> PacedTransport:
        """Takes the transport; what the kernel holds of what comes is bounded as well, as far as it lets us."""
        paced = cls(below, above, throttle)
        below.set_protocol(_Below(paced))
        sock: _Receiver | None = below.get_extra_info("socket")
        if sock is not None and throttle.into is not None:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(LEAST_BUFFER, throttle.into.quantum))
        return paced

    def expect(self, octets: int) -> float:
        """Seconds to wait before so many octets are asked for; of more than a piece only that is waited for."""
        if self._into is None:
            return 0.0
        octets = min(octets, self._into.quantum)
        # Not for ever more: what is compressed comes as fewer octets than it was announced with.
        self._expected = min(self._expected, KEPT * self._into.quantum) + octets
        return self._into.reserve(octets)

    # What a transport is asked.

    def get_extra_info(self, name: str, default: object = None) -> object:
        if name == HOLDS_UP:
            return self._sending is not None or self._reading is not None
        return self._below.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._above = protocol

    def get_protocol(self) -> asyncio.Protocol:
        return self._above

    def is_closing(self) -> bool:
        return self._closing or self._below.is_closing()

    def close(self) -> None:
        """Ends the connection when all that waits has had its turn."""
        self._closing = True
        if not self._queue:
            self._below.close()

    def abort(self) -> None:
        self._closing = True
        self._forget()
        self._below.abort()

    def can_write_eof(self) -> bool:
        return self._below.can_write_eof()

    def write_eof(self) -> None:
        self._eof = True
        if not self._queue:
            self._below.write_eof()

    # Sending

    def write(self, data: Octets) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Octets]) -> None:
        if self._out is None:
            self._below.writelines(list_of_data)
            return
        for data in list_of_data:
            if data:
                self._queue.append(memoryview(bytes(data) if isinstance(data, bytearray) else data))
                self._queued += len(data)
        if self._sending is None:
            self._send()
        self._steer_writing()

    def _send(self) -> None:
        """Hands on what has its turn now, and waits for the turn of the next piece."""
        self._sending = None
        assert self._out is not None
        while self._queue and not self._below.is_closing() and not self._full_below:
            if not self._next:
                self._next = min(self._queued, self._out.quantum)
                wait_s = self._out.reserve(self._next)
                if wait_s > 0:
                    self._sending = self._loop.call_later(wait_s, self._send)
                    break
            self._below.writelines(self._piece(self._next))
            self._next = 0
        if not self._queue and not self._below.is_closing():
            if self._closing:
                self._below.close()
            elif self._eof:
                self._below.write_eof()
        self._steer_writing()

    def _piece(self, octets: int) -> list[memoryview]:
        """The first octets of the queue."""
        self._queued -= octets
        parts: list[memoryview] = []
        while octets:
            first = self._queue.popleft()
            if len(first) > octets:
                self._queue.appendleft(first[octets:])
                first = first[:octets]
            octets -= len(first)
            parts.append(first)
        return parts

    def get_write_buffer_size(self) -> int:
        return self._queued + self._below.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH if low is None else 4 * low
        self._high, self._low = high, high // 4 if low is None else low
        if self._out is None:
            self._below.set_write_buffer_limits(high, low)
        self._steer_writing()

    def _steer_writing(self) -> None:
        if self._out is None:
            return
        if not self._full and self._queued > self._high:
            self._full = True
            self._above.pause_writing()
        elif self._full and self._queued <= self._low:
            self._full = False
            self._above.resume_writing()

    # Reading

    def is_reading(self) -> bool:
        return not self._paused_above

    def pause_reading(self) -> None:
        self._paused_above = True
        if self._reading is None:
            self._below.pause_reading()

    def resume_reading(self) -> None:
        self._paused_above = False
        if self._reading is None and not self._below.is_closing():
            self._below.resume_reading()

    def _go_on_reading(self) -> None:
        self._reading = None
        if not self._paused_above and not self._below.is_closing():
            self._below.resume_reading()

    def below_read(self, data: bytes) -> None:
        self._expected -= len(data)
        if self._expected < 0 and self._into is not None:
            # What has come cannot be sent back: the next piece waits for it, and for its own turn.
            more = self._into.quantum
            wait_s = self._into.reserve(more - self._expected)
            self._expected = more
            if wait_s > 0 and self._reading is None:
                if not self._paused_above:
                    self._below.pause_reading()
                self._reading = self._loop.call_later(wait_s, self._go_on_reading)
        self._above.data_received(data)

    def below_paused_writing(self) -> None:
        self._full_below = True
        if self._out is None:
            self._above.pause_writing()

    def below_resumed_writing(self) -> None:
        self._full_below = False
        if self._out is None:
            self._above.resume_writing()
        elif self._sending is None:
            self._send()

    def below_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._above.connection_lost(exc)

    def _forget(self) -> None:
        for timer in (self._sending, self._reading):
            if timer is not None:
                timer.cancel()
        self._sending = self._reading = None
        self._queue.clear()
        self._queued = self._next = 0


class _Below(asyncio.Protocol):
    """What the transport below speaks to."""

    def __init__(self, above: PacedTransport) -> None:
        self._above = above

    def data_received(self, data: bytes) -> None:
        self._above.below_read(data)

    def eof_received(self) -> bool | None:
        return self._above.get_protocol().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._above.below_lost(exc)

    def pause_writing(self) -> None:
        self._above.below_paused_writing()

    def resume_writing(self) -> None:
        self._above.below_resumed_writing()
