"""Connections between the client under test and servers of a simulation: they delay, cut in pieces, and break.

client ── ClientTransport ─▶ Pipe ─▶ Remote.feed        Remote ── Pipe ─▶ Protocol.data_received
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any, Final, Protocol

from tests.sim.faults import Faults

DELAYS_S: Final = (0.0, 0.0, 0.0, 0.001, 0.03)


class Remote(Protocol):
    """The server's side of one connection."""

    def feed(self, data: bytes) -> None: ...

    def eof(self) -> None:
        """The client sends nothing more, and still reads."""
        ...

    def gone(self) -> None:
        """The connection is broken: nobody reads any more."""
        ...


class Server(Protocol):
    """What listens at an address."""

    def accept(
        self, answer: Callable[[bytes], None], close: Callable[[], None], break_off: Callable[[], None]
    ) -> Remote:
        """A new connection."""
        ...


class Pipe:
    """Octets one way, in order: late, in pieces, up to where the connection is cut."""

    def __init__(self, faults: Faults, deliver: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._faults = faults
        self._deliver = deliver
        self._ended = ended
        self.waiting = bytearray()
        self.finished = False
        """Nothing more is put in; the end comes behind what waits."""
        self.dead = False
        self.paused = False
        self._armed = False
        self.passed = 0
        self.cut_at = faults.cut_at()
        """Octets after which the connection breaks; 0: never."""
        self.broken: Callable[[], None] = lambda: None

    def put(self, data: bytes | bytearray | memoryview) -> None:
        if not self.finished and not self.dead:
            self.waiting += data
            self._arm()

    def finish(self) -> None:
        if not self.finished and not self.dead:
            self.finished = True
            self._arm()

    def resume(self) -> None:
        self.paused = False
        if self.waiting or self.finished:
            self._arm()

    def _arm(self) -> None:
        if not self._armed and not self.paused and not self.dead:
            self._armed = True
            delay = self._faults.chance.choice(DELAYS_S)
            loop = asyncio.get_running_loop()
            if delay:
                loop.call_later(delay, self._move)
            else:
                loop.call_soon(self._move)

    def _move(self) -> None:
        self._armed = False
        if self.dead or self.paused:
            return
        count = len(self.waiting)
        if count > 1 and self._faults.chance.random() < 0.1:
            count = self._faults.chance.randrange(1, count)
        if self.cut_at and self.passed + count >= self.cut_at:
            count = self.cut_at - self.passed
        piece = bytes(self.waiting[:count])
        del self.waiting[:count]
        self.passed += count
        if piece:
            self._deliver(piece)
        if self.cut_at and self.passed >= self.cut_at and self._faults.now():
            self.broken()
            return
        self.cut_at = self.cut_at if self.passed < self.cut_at else 0
        if self.waiting:
            self._arm()
        elif self.finished:
            self.dead = True
            self._ended()


class ClientTransport(asyncio.Transport):
    """What the client's loop gives its protocols."""

    def __init__(
        self, network: Network, server: Server, protocol: asyncio.Protocol, begun: asyncio.Future[None]
    ) -> None:
        super().__init__()
        self._network = network
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._high = network.faults.chance.choice((20, 200, 1 << 20))
        self._full = False
        self._closing = False
        self.lost = False
        self.up = Pipe(network.faults, self._to_server, self._to_server_ended)
        self.down = Pipe(network.faults, self._from_server, self._server_closed)
        self.up.broken = self.down.broken = self.break_off
        self.down.paused = True
        self.remote = server.accept(self.down.put, self.down.finish, self.break_off)
        self._loop.call_soon(self._begin, begun)

    def _begin(self, begun: asyncio.Future[None]) -> None:
        if not self.lost:
            self._protocol.connection_made(self)
            self.down.resume()
        if not begun.done():
            begun.set_result(None)

    def _to_server(self, data: bytes) -> None:
        self.remote.feed(data)
        if self._full and not self.up.waiting and not self.lost:
            self._full = False
            self._protocol.resume_writing()

    def _to_server_ended(self) -> None:
        self.remote.eof()

    def _from_server(self, data: bytes) -> None:
        if not self.lost and not self._closing:
            self._protocol.data_received(data)

    def _server_closed(self) -> None:
        self._lose(None)

    def break_off(self) -> None:
        """Neither side hears anything more."""
        self.up.dead = self.down.dead = True
        self.remote.gone()
        self._lose(ConnectionResetError(errno.ECONNRESET, "reset"))

    def orphan(self) -> None:
        """The client's process was killed: what it had handed over may still arrive, and then comes the end."""
        chance = self._network.faults.chance
        del self.up.waiting[chance.choice((0, len(self.up.waiting), chance.randrange(len(self.up.waiting) + 1))) :]
        self.up.finish()
        self.down.dead = True
        self._lose(ConnectionResetError(errno.ECONNRESET, "reset"))

    def _lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = self._closing = True
            self._network.open.discard(self)
            self._loop.call_soon(self._protocol.connection_lost, error)

    # What asyncio's protocols ask of it.

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._closing:
            self.up.put(data)
            if not self._full and len(self.up.waiting) > self._high:
                self._full = True
                self._protocol.pause_writing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.up.finish()
            self.down.dead = True
            self._lose(None)

    def abort(self) -> None:
        if not self.lost:
            self.up.dead = self.down.dead = True
            self.remote.gone()
            self._lose(None)

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.up.finish()

    def pause_reading(self) -> None:
        self.down.paused = True

    def resume_reading(self) -> None:
        self.down.resume()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The simulation has limits of its own, so that small runs meet them."""

    def get_write_buffer_size(self) -> int:
        return len(self.up.waiting)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Network:
    """Addresses, and the connections of the client."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.servers: dict[str, Server] = {}
        self.open: set[ClientTransport] = set()
        self.connected: list[ClientTransport] = []
        """In the order they were opened, for sets have none."""

    def connect(
        self, address: tuple[str, int], protocol: asyncio.Protocol, begun: asyncio.Future[None]
    ) -> asyncio.Transport:
        if self.faults.now(0.3):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        transport = ClientTransport(self, self.servers[address[0]], protocol, begun)
        self.open.add(transport)
        self.connected.append(transport)
        return transport

    def kill_client(self) -> None:
        for transport in self.connected:
            if transport in self.open:
                transport.orphan()
        self.connected.clear()
