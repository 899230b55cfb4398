"""`python -m bench.latency --to PORT`: a link to a server of this machine that is as far away, or as narrow, as asked.

    client ──▶ half a round trip, the link's pace ──▶ server      and the same back

Octets leave in the order in which they came, never before they are due: when the pace lets them through and half the
round trip is over. As much may be on its way as the link holds, and a little more waits: then nothing is read, as on a
real link whose window is full. The pace is that of all connections together (`--rate`) or of each (`--rate-each`), as
providers throttle. In a process of its own, in asyncio's own loop: uvloop's stalled (0.23, a transport that was paused
as soon as it was made). Both directions have the same pace.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.appends import Appends, Lines

WINDOW_OCTETS: Final = 8 * 2**20
"""On its way on a link whose pace is not limited."""
BURST_S: Final = 0.05
"""Of a limited link's octets so many seconds wait; more would be a buffer that no real link has."""
LEAST_WAITING: Final = 128 * 1024


class Pace:
    """When octets are through that share one link, or one direction of it."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free = 0.0

    def through(self, now: float, octets: int) -> float:
        """The moment at which `octets` more have passed, in the loop's time."""
        if self._rate is None:
            return now
        self._free = max(self._free, now) + octets / self._rate
        return self._free


class End(asyncio.Protocol):
    """One side of a connection: what it reads goes to its `peer` when it is due."""

    def __init__(self, delay_s: float, paces: tuple[Pace, ...], room: int, watched: Lines | None) -> None:
        self.peer: End
        self._watched = watched
        self.transport: asyncio.Transport | None = None
        self._delay_s, self._paces, self._room = delay_s, paces, room
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        """Octets and when they are due; None: the end."""
        self._octets = 0
        self._timer: asyncio.TimerHandle | None = None
        self._full = self._peer_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._watched is not None:
            self._watched.feed(data)
        now = self._loop.time()
        due = max(pace.through(now, len(data)) for pace in self._paces) + self._delay_s
        self._octets += len(data)
        self._put(due, data)

    def eof_received(self) -> bool:
        self._put(self._loop.time() + self._delay_s, None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._put(self._loop.time() + self._delay_s, None)

    def pause_writing(self) -> None:
        self.peer.hold(True)

    def resume_writing(self) -> None:
        self.peer.hold(False)

    def hold(self, full: bool) -> None:
        """Whoever takes our octets has had enough of them, or takes more."""
        self._peer_full = full
        self._read()

    def _put(self, due: float, data: bytes | None) -> None:
        self._waiting.append((due, data))
        self._full = self._octets >= self._room
        self._read()
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._send)

    def _send(self) -> None:
        now, out = self._loop.time() + 1e-4, self.peer.transport
        parts = []
        ended = False
        while self._waiting and self._waiting[0][0] <= now:
            _, data = self._waiting.popleft()
            if data is None:
                ended = True
            else:
                self._octets -= len(data)
                parts.append(data)
        if out is not None and not out.is_closing():
            if parts:
                out.write(b"".join(parts))
            if ended:
                out.close()
        self._timer = self._loop.call_at(self._waiting[0][0], self._send) if self._waiting else None
        self._full = self._octets >= self._room
        self._read()

    def _read(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        wanted = not (self._full or self._peer_full)
        if wanted and not self.transport.is_reading():
            self.transport.resume_reading()
        elif not wanted and self.transport.is_reading():
            self.transport.pause_reading()


class Client(End):
    """The side that a client connects to; reads nothing before the server is reached."""

    def __init__(self, link: Link, shared: tuple[Pace, Pace], tasks: set[asyncio.Task[None]]) -> None:
        self._link, self._shared, self._tasks = link, shared, tasks
        self._appends = None if link.took_s is None else Appends(time.monotonic, link.took_s)
        watched = None if self._appends is None else self._appends.sent
        super().__init__(link.delay_s, (shared[0], Pace(link.rate_each)), link.room, watched)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        task = asyncio.ensure_future(self._reach())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reach(self) -> None:
        link = self._link
        await asyncio.sleep(2 * link.delay_s)  # of the handshake, which the kernel has done at once
        watched = None if self._appends is None else self._appends.received
        server = End(link.delay_s, (self._shared[1], Pace(link.rate_each)), link.room, watched)
        server.peer, self.peer = self, server
        try:
            await self._loop.create_connection(lambda: server, "127.0.0.1", link.port)
        except OSError:
            if self.transport is not None:
                self.transport.abort()
            return
        self._read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What lies between. `rate` and `rate_each` in octets a second, of all connections and of each."""

    port: int
    delay_s: float = 0.0  # one way
    rate: float | None = None
    rate_each: float | None = None
    took_s: list[float] | None = None
    """Gets what each APPEND took; None: nobody looks."""

    @property
    def room(self) -> int:
        """Octets of one connection and direction that are on their way or wait."""
        rate = min((each for each in (self.rate, self.rate_each) if each is not None), default=None)
        if rate is None:
            return WINDOW_OCTETS
        return max(LEAST_WAITING, int(rate * (self.delay_s + BURST_S)))


async def serve(link: Link) -> None:
    """Until standard input ends. Says its port first."""
    loop = asyncio.get_running_loop()
    shared = Pace(link.rate), Pace(link.rate)
    tasks: set[asyncio.Task[None]] = set()
    listener = await loop.create_server(lambda: Client(link, shared, tasks), "127.0.0.1", 0, backlog=1000)
    print(listener.sockets[0].getsockname()[1], flush=True)
    ended = loop.create_future()

    def heard() -> None:
        if not os.read(sys.stdin.fileno(), 100) and not ended.done():
            ended.set_result(None)

    loop.add_reader(sys.stdin.fileno(), heard)
    await ended
    listener.close()


@contextmanager
def run_link(
    port: int,
    *,
    round_trip_ms: float = 0.0,
    rate: float | None = None,
    rate_each: float | None = None,
    appends: Path | None = None,
) -> Iterator[int]:
    """A link to `port` for as long as the context lasts: the port that clients connect to. It ends with us.

    `appends` is a file that gets, when the context ends, the seconds of each APPEND command as a JSON list.
    """
    words = [sys.executable, "-m", "bench.latency", "--to", str(port), "--round-trip-ms", str(round_trip_ms)]
    words += ["--rate", str(rate)] if rate is not None else []
    words += ["--rate-each", str(rate_each)] if rate_each is not None else []
    words += ["--appends", str(appends)] if appends is not None else []
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": "."}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=env
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            said = process.stdout.readline()
            if not said:
                raise RuntimeError("the link did not start")
            yield int(said)
        finally:
            process.stdin.close()  # it ends by itself
            process.wait(timeout=10)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description="Prints its port.")
    parser.add_argument("--to", type=int, required=True, metavar="PORT")
    parser.add_argument("--round-trip-ms", type=float, default=0.0, metavar="MS")
    parser.add_argument("--rate", type=float, metavar="OCTETS", help="a second, of all connections")
    parser.add_argument("--rate-each", type=float, metavar="OCTETS", help="a second, of each connection")
    parser.add_argument("--appends", type=Path, metavar="FILE", help="gets what each APPEND took, in the end")
    given = parser.parse_args()
    took_s: list[float] | None = None if given.appends is None else []
    delay_s = given.round_trip_ms / 2000
    link = Link(port=given.to, delay_s=delay_s, rate=given.rate, rate_each=given.rate_each, took_s=took_s)
    asyncio.run(serve(link))
    if given.appends is not None:
        given.appends.write_text(json.dumps(took_s))


if __name__ == "__main__":
    main()
