"""A relay between a client and a server on this machine: what it saw, and where it stops.

    client ──▶ Relay ──▶ server      `sent` is the client's, `received` the server's

A test may let it withhold octets from some moment on, and kill the client then.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PIECE = 65536


@dataclass(slots=True)
class RelayedLink:
    """One connection, octets as they came."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


Passes = Callable[[RelayedLink, bool], bool]
"""Whether octets that were just recorded are passed on; True beside the link: they are the client's."""


class Relay:
    """Takes clients until it is closed; two threads a connection, since a test has few."""

    def __init__(self, server_port: int, passes: Passes) -> None:
        self.links: list[RelayedLink] = []
        self.withheld = threading.Event()
        """Set when octets were held back for the first time; from then on that connection is dead."""
        self._server_port = server_port
        self._passes = passes
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Ends all connections, and waits for the last octet."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listening.close()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(("127.0.0.1", self._server_port))
            link = RelayedLink()
            self.links.append(link)
            self._sockets += [client, server]
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for from_, to, is_client in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._copy, args=(link, from_, to, is_client), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _copy(self, link: RelayedLink, from_: socket.socket, to: socket.socket, is_client: bool) -> None:
        passing = True
        with suppress(OSError):  # one of the two ended
            while octets := from_.recv(PIECE):
                with self._lock:
                    (link.sent if is_client else link.received).extend(octets)
                    passing = passing and self._passes(link, is_client)
                if passing:
                    to.sendall(octets)
                else:
                    self.withheld.set()
        with suppress(OSError):
            to.shutdown(socket.SHUT_WR)


@contextmanager
def run_relay(server_port: int, passes: Passes = lambda link, is_client: True) -> Iterator[Relay]:
    """A relay to a port of this machine, for as long as the context lasts; its records stay."""
    relay = Relay(server_port, passes)
    try:
        yield relay
    finally:
        relay.close()
