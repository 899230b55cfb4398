"""What goes wrong between a client and a server of this machine: a proxy that cuts, resets, holds, drips, swallows.

    client ──▶ Proxy ──▶ server      `sent` is the client's, `received` the server's

A `Fault` says at which octet of which direction something happens (`after`, `before`, `behind`), and what (`reset`,
`hang_up`, `hold`, `deaf`, `drip`, `call`). A plan gives each connection its fault, or none.
"""

from __future__ import annotations

import os
import queue
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests import servers

PIECE: Final = 65536
HIGH: Final = 256 * 1024
"""Octets that wait for a slow reader; above, nothing more is read for it."""
CONNECT_S: Final = 20.0


@dataclass(slots=True, eq=False)
class Link:
    """One connection, octets as they came."""

    number: int
    """From 1, in the order of their coming."""
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    octets: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    """How many there were; the client's under True."""

    def seen(self, is_client: bool) -> bytearray:
        return self.sent if is_client else self.received


At = Callable[[Link, bool, int], int | None]
"""Beside the link: whether octets that were just recorded are the client's, and their number. How many of them still
pass before the fault comes; None: all, and none comes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Once for a connection: `at` says when, `then` does it."""

    at: At
    then: Callable[[Wire], None]


Plan = Callable[[Link], Fault | None]
"""The fault of a connection that was just taken."""


# When


def after(count: int, *, client: bool) -> At:
    """When so many octets of one side have passed."""

    def at(link: Link, is_client: bool, new: int) -> int | None:
        seen = link.octets[is_client]
        return max(0, count - (seen - new)) if is_client == client and seen >= count else None

    return at


def before(pattern: bytes, *, client: bool, nth: int = 1, octets: int = 0) -> At:
    """At the nth match of a regular expression; of it and what follows only so many octets pass."""
    return _matched(pattern, client, nth, lambda match: match.start() + octets)


def behind(pattern: bytes, *, client: bool, nth: int = 1) -> At:
    """As `before`, and the match has passed."""
    return _matched(pattern, client, nth, lambda match: match.end())


def _matched(pattern: bytes, client: bool, nth: int, place: Callable[[re.Match[bytes]], int]) -> At:
    wanted = re.compile(pattern, re.MULTILINE)

    def at(link: Link, is_client: bool, new: int) -> int | None:
        if is_client != client:
            return None
        found = list(wanted.finditer(link.seen(client)))
        if len(found) < nth or (there := place(found[nth - 1])) > link.octets[client]:
            return None
        return max(0, there - (link.octets[client] - new))

    return at


# What


def reset(wire: Wire) -> None:
    """RST for the client; the server sees an orderly end, and does what it had received."""
    wire.drop_client(rst=True)
    wire.end_server()


def reset_both(wire: Wire) -> None:
    wire.drop_client(rst=True)
    wire.drop_server(rst=True)


def hang_up(wire: Wire) -> None:
    """FIN for both."""
    wire.drop_client(rst=False)
    wire.end_server()


def hold(wire: Wire) -> None:
    """Half open: nothing passes any more, and nothing is read."""
    wire.held = {True, False}


def deaf(wire: Wire) -> None:
    """Nothing of the client is read any more: its window closes. The server's answers still pass."""
    wire.held = {True}


def drip(seconds: float = 1.0) -> Callable[[Wire], None]:
    """One octet each way in so many seconds."""

    def then(wire: Wire) -> None:
        wire.drip_s = seconds

    return then


def call(work: Callable[[], object]) -> Callable[[Wire], None]:
    """Does something, and everything passes on: a process is ended, a tracer is set upon it."""

    def then(wire: Wire) -> None:
        work()

    return then


def kill_client(pid: Callable[[], int]) -> Callable[[Wire], None]:
    """The client, a process of the test's own, ends here and now by SIGKILL; nothing behind this octet passes."""

    def then(wire: Wire) -> None:
        os.kill(pid(), signal.SIGKILL)
        hang_up(wire)

    return then


# To whom


def first(at: At, then: Callable[[Wire], None], *, links: int = 1) -> Plan:
    """The first connections have this fault, the later ones none."""
    return lambda link: Fault(at, then) if link.number <= links else None


def healthy(link: Link) -> None:
    """A plan without faults."""


class Wire:
    """The two sockets of a connection, and what waits between them."""

    def __init__(self, link: Link, fault: Fault | None, client: socket.socket, server: socket.socket) -> None:
        self.link = link
        self.fault = fault
        self.due = False
        """The fault comes as soon as what passed before it is delivered."""
        self.faulty = False
        """The fault has come."""
        self.held: set[bool] = set()
        self.drip_s = 0.0
        self._behind = False, b""
        self._next_drip = {True: 0.0, False: 0.0}
        self._ends: dict[bool, socket.socket | None] = {True: client, False: server}
        """Under True the client's."""
        self._ended = {True: False, False: False}
        """Nothing more comes from there."""
        self._shut = {True: False, False: False}
        """Nothing more goes there."""
        self._waiting = {True: bytearray(), False: bytearray()}
        """From the client under True."""
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def server_open(self) -> bool:
        return self._ends[False] is not None

    @property
    def ending(self) -> bool:
        """Its client is gone, and the server has not ended yet."""
        return self.server_open and not self.held and (self.faulty or self._ended[True])

    @property
    def over(self) -> bool:
        return not any(self._ends.values())

    def events(self, now: float) -> Iterator[tuple[socket.socket, int]]:
        """What each socket is to be watched for."""
        for is_client, end in self._ends.items():
            if end is None:
                continue
            mask = 0
            room = len(self._waiting[is_client]) < HIGH or self._ends[not is_client] is None
            if not self._ended[is_client] and is_client not in self.held and not self.due and room:
                mask |= select.POLLIN
            if self._waiting[not is_client] and now >= self._next_drip[not is_client] and not self._stuck():
                mask |= select.POLLOUT
            yield end, mask

    def timeout_s(self, now: float) -> float | None:
        """Until the next octet of a drip."""
        due = [self._next_drip[side] for side in (True, False) if self.drip_s and self._waiting[side]]
        return max(0.0, min(due) - now) if due else None

    def _stuck(self) -> bool:
        return self.held == {True, False}

    def readable(self, end: socket.socket, record: bool) -> None:
        is_client = end is self._ends[True]
        try:
            octets = end.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._ended[is_client] = True
            return
        link = self.link
        link.octets[is_client] += len(octets)
        if record:
            link.seen(is_client).extend(octets)
        if self._ends[not is_client] is None:
            return  # read to the end, and dropped
        passing: int | None = None
        if self.fault is not None and not self.faulty:
            passing = self.fault.at(link, is_client, len(octets))
        if passing is not None:
            self.due = True
            # What comes behind a fault that ends nothing still goes on its way.
            self._behind = is_client, octets[passing:]
            octets = octets[:passing]
        self._waiting[is_client] += octets

    def writable(self, end: socket.socket, now: float) -> None:
        from_client = end is self._ends[False]
        waiting = self._waiting[from_client]
        try:
            written = end.send(waiting[:1] if self.drip_s else waiting)
        except BlockingIOError:
            return
        except OSError:
            self._lose(end)
            return
        del waiting[:written]
        if self.drip_s:
            self._next_drip[from_client] = now + self.drip_s

    def go_on(self, came: Callable[[], None]) -> None:
        """What follows from what was read and written; `came` when the fault comes."""
        if self.due and not self._waiting[True] and not self._waiting[False]:
            assert self.fault is not None
            self.due, self.faulty = False, True
            is_client, rest = self._behind
            self._waiting[is_client] += rest
            came()
            self.fault.then(self)
        for is_client in (True, False):
            to = self._ends[not is_client]
            if self._ended[is_client] and not self._waiting[is_client] and not self._shut[not is_client]:
                self._shut[not is_client] = True
                if to is not None:
                    with suppress(OSError):
                        to.shutdown(socket.SHUT_WR)
        if all(self._ended[side] or self._ends[side] is None for side in (True, False)) and not any(
            self._waiting[side] and self._ends[not side] is not None for side in (True, False)
        ):
            self.close()

    def drop_client(self, *, rst: bool) -> None:
        self._drop(True, rst)

    def drop_server(self, *, rst: bool) -> None:
        self._drop(False, rst)

    def end_server(self) -> None:
        """It may do what it had received, and is read to its end."""
        server = self._ends[False]
        if server is not None:
            self._shut[False] = True
            self._waiting[True].clear()
            with suppress(OSError):
                server.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for side in (True, False):
            self._drop(side, rst=False)

    def _lose(self, end: socket.socket) -> None:
        is_client = end is self._ends[True]
        self._ended[is_client] = True
        self._waiting[not is_client].clear()

    def _drop(self, side: bool, rst: bool) -> None:
        end = self._ends[side]
        if end is None:
            return
        self._waiting[not side].clear()
        if rst:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()
        self._ends[side], self._ended[side] = None, True


class Proxy:
    """Takes clients until it is closed; one thread.

    `orderly`: no client is let through to the server before that has ended the sessions whose clients are gone, as if
    the client had waited out its fence. `record` keeps all octets in `links`.
    """

    def __init__(self, server_port: int, plan: Plan = healthy, *, orderly: bool = True, record: bool = True) -> None:
        self.links: list[Link] = []
        self.faulty = threading.Event()
        """Set when the first fault has come."""
        self.faults = 0
        self._server_port = server_port
        self._plan = plan
        self._orderly = orderly
        self._record = record
        self._wires: list[Wire] = []
        self._waiting: list[socket.socket] = []
        """Clients that are not let through yet."""
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._closing = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends all connections.

        Raises:
            Exception: what a fault of the test's own has raised.
        """
        self._do(self._end)
        self._thread.join()
        self._mouth.close()
        if self._failure is not None:
            raise self._failure

    def cut(self, number: int = 0, then: Callable[[Wire], None] = reset) -> None:
        """One of the connections there are now has a fault at once: `number` modulo how many they are."""

        def cut() -> None:
            live = [wire for wire in self._wires if not wire.faulty]
            if live:
                wire = live[number % len(live)]
                wire.faulty = True
                self._came()
                then(wire)

        self._do(cut)

    def _do(self, work: Callable[[], None]) -> None:
        self._asked.put(work)
        with suppress(OSError):
            self._mouth.send(b"x")

    def _end(self) -> None:
        self._closing = True

    def _came(self) -> None:
        self.faults += 1
        self.faulty.set()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._step()
        except Exception as error:  # told by `close`
            self._failure = error
        finally:
            for end in (self._listening, self._ear, *self._waiting):
                end.close()
            for wire in self._wires:
                wire.close()
            self.faulty.set()

    def _step(self) -> None:
        now = time.monotonic()
        poll = select.poll()
        owners: dict[int, tuple[socket.socket, Wire | None]] = {}
        for listener in (self._listening, self._ear):
            owners[listener.fileno()] = listener, None
            poll.register(listener, select.POLLIN)
        waits: list[float] = []
        for wire in self._wires:
            for end, mask in wire.events(now):
                owners[end.fileno()] = end, wire
                if mask:
                    poll.register(end, mask)
            if (wait_s := wire.timeout_s(now)) is not None:
                waits.append(wait_s)
        for number, mask in poll.poll(min(waits) * 1000 if waits else None):
            end, owner = owners[number]
            if owner is not None:
                if mask & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    owner.readable(end, self._record)
                if mask & select.POLLOUT and end.fileno() >= 0:
                    owner.writable(end, now)
            elif end is self._listening:
                self._accept()
            else:
                self._ear.recv(PIECE)
                while not self._asked.empty():
                    self._asked.get()()
        for wire in list(self._wires):
            wire.go_on(self._came)
            if wire.over:
                self._wires.remove(wire)
        self._let_through()

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._waiting.append(self._listening.accept()[0])

    def _let_through(self) -> None:
        if self._orderly and any(wire.ending for wire in self._wires):
            return
        for client in self._waiting:
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port), timeout=CONNECT_S)
            except OSError:
                client.close()
                continue
            link = Link(len(self.links) + 1)
            self.links.append(link)
            self._wires.append(Wire(link, self._plan(link), client, server))
        self._waiting.clear()


@contextmanager
def run_proxy(server_port: int, plan: Plan = healthy, *, orderly: bool = True, record: bool = True) -> Iterator[Proxy]:
    """A proxy to a port of this machine, for as long as the context lasts; its records stay."""
    proxy = Proxy(server_port, plan, orderly=orderly, record=record)
    try:
        yield proxy
    finally:
        proxy.close()


# Tools


@pytest.fixture(scope="session")
def strace() -> Path:
    """The program; skips where it is not to be had or nothing may be traced."""
    try:
        program = servers.find("strace").path("usr/bin/strace")
    except servers.CannotGet as reason:
        installed = shutil.which("strace")
        if installed is None:
            pytest.skip(str(reason))
        program = Path(installed)
    probe = subprocess.run([program, "-f", "-o", os.devnull, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace cannot trace here: {probe.stderr.decode(errors='replace').strip()}")
    return program


@pytest.fixture(scope="session")
def faketime() -> Path:
    """The library that lies about the time to a whole process."""
    try:
        return next(servers.find("faketime").root.rglob("libfaketime.so.1"))
    except servers.CannotGet as reason:
        pytest.skip(str(reason))
