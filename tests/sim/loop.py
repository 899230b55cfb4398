"""An event loop without a clock, a socket or a thread: time jumps to the next timer, a seed chooses who goes first."""

from __future__ import annotations

import asyncio
import heapq
import random
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MOST_STEPS: Final = 2_000_000
"""Callbacks of one seed; a run that needs more turns in a circle."""
MOST_SECONDS: Final = 30 * 86400.0


class Stuck(Exception):
    """Somebody waits for what will never come, or turns in a circle."""


class Network(Protocol):
    """What the loop's sockets are connected to."""

    def connect(
        self, address: tuple[str, int], protocol: asyncio.Protocol, begun: asyncio.Future[None]
    ) -> asyncio.Transport:
        """Sets `begun` once the protocol was told. Raises OSError where nobody listens, or answers."""
        ...


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs what is ready, in an order that `chance` shuffles, then jumps to the next timer.

    `call_soon` promises the order of calls; `shuffled` breaks that promise on purpose: between tasks, nobody should
    rely on it.
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _stopping: bool

    def __init__(self, chance: random.Random, network: Network, *, shuffled: bool) -> None:
        super().__init__()
        self._now = 0.0
        self._chance = chance
        self._network = network
        self._shuffled = shuffled
        self._addresses: dict[int, tuple[str, int]] = {}
        """Of sockets that were connected, by descriptor."""
        self.steps = 0
        self.at_step = 0
        """Before this step `then` is called, once."""
        self.then: Callable[[], None] | None = None
        self.handlers: dict[int, Callable[[], object]] = {}
        """What signals are given to."""
        self.unhandled: list[str] = []
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self._now

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.unhandled.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _run_once(self) -> None:
        scheduled = self._scheduled
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)
        if not self._ready and not self._stopping:
            if not scheduled:
                raise Stuck("nothing is ready, and no timer is set")
            self._now = max(self._now, scheduled[0].when())
            if self._now > MOST_SECONDS:
                raise Stuck(f"still at work after {MOST_SECONDS:g} s")
        while scheduled and scheduled[0].when() <= self._now:
            self._ready.append(heapq.heappop(scheduled))
        turn = list(self._ready)
        self._ready.clear()
        if self._shuffled and len(turn) > 1:
            self._chance.shuffle(turn)
        for handle in turn:
            if handle.cancelled():
                continue
            self.steps += 1
            if self.steps == self.at_step and self.then is not None:
                self.then()
            handle._run()
        if self.steps > MOST_STEPS:
            raise Stuck(f"still at work after {self.steps} steps")

    def _write_to_self(self) -> None:
        """What is called from other threads wakes a real loop; there are none here."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers leave when their time has come."""

    def add_signal_handler(self, sig: int, callback: Callable[[Unpack[Ts]], object], *args: *Ts) -> None:
        self.handlers[sig] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        return self.handlers.pop(sig, None) is not None

    def signal(self, number: signal.Signals) -> None:
        """What the system does when the process gets a signal it has asked for."""
        if number in self.handlers:
            self.handlers[number]()

    # The network, as far as a client asks for it.

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        await asyncio.sleep(self._chance.choice((0.0, 0.0, 0.02)))
        self._addresses[sock.fileno()] = address

    async def create_connection(self, protocol_factory: Any, *args: Any, sock: Any = None, **_: Any) -> Any:
        address = self._addresses.pop(sock.fileno())
        sock.close()
        protocol, begun = protocol_factory(), self.create_future()
        transport = self._network.connect(address, protocol, begun)
        try:
            await begun
        except BaseException:
            transport.abort()
            raise
        return transport, protocol


class Ordered(dict[T, None]):
    """A set that remembers the order; sets of objects have that of their addresses, which differ each time."""

    def add(self, item: T) -> None:
        self[item] = None

    def remove(self, item: T) -> None:
        del self[item]

    def discard(self, item: T) -> None:
        self.pop(item, None)
