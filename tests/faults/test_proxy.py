"""The fault proxy does what its words say: else a test that passes by it shows nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.fix_faults import Plan, after, before, behind, call, deaf, drip, first, healthy, hold, reset, run_proxy


class Echo:
    """A server that says after each line what it heard, and what it heard in all."""

    def __init__(self) -> None:
        self.heard = b""
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self.ended = threading.Semaphore(0)
        """Released at the end of each connection."""

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                with client, suppress(OSError):
                    while octets := client.recv(65536):
                        self.heard += octets
                        client.sendall(octets)
                self.ended.release()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.listening.close()


@contextmanager
def client_of(echo: Echo, plan: Plan) -> Iterator[socket.socket]:
    with run_proxy(echo.port, plan) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        yield client


def read(client: socket.socket, octets: int) -> bytes:
    found = b""
    while len(found) < octets and (more := client.recv(octets - len(found))):
        found += more
    return found


def test_without_a_fault_all_octets_pass_and_are_kept(echo: Echo) -> None:
    much = b"0123456789" * 200_000
    with run_proxy(echo.port) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
            sender = threading.Thread(target=client.sendall, args=(much,))
            sender.start()
            assert read(client, len(much)) == much
            sender.join()
        assert echo.ended.acquire(timeout=20)
        [link] = proxy.links
        assert link.sent == link.received == echo.heard == much
        assert proxy.faults == 0


@pytest.mark.parametrize("count", [0, 1, 5, 9])
@pytest.mark.parametrize("client", [True, False], ids=["client", "server"])
def test_a_reset_comes_after_exactly_so_many_octets(count: int, client: bool, echo: Echo) -> None:
    with client_of(echo, first(after(count, client=client), reset)) as peer:
        peer.sendall(b"0123456789")
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - what came before may have been read or not
            while peer.recv(100):
                pass
        assert echo.ended.acquire(timeout=20)
    assert echo.heard == (b"0123456789"[:count] if client else b"0123456789")


def test_what_matches_is_swallowed_or_passes(echo: Echo) -> None:
    for at, heard in ((before(rb"^b OK", client=True), b"a NO\n"), (behind(rb"^b OK", client=True), b"a NO\nb OK")):
        echo.heard = b""
        with client_of(echo, first(at, reset)) as peer:
            with suppress(ConnectionResetError):
                peer.sendall(b"a NO\nb OK c\nd")
                while peer.recv(100):
                    pass
            assert echo.ended.acquire(timeout=20)
        assert echo.heard == heard


def test_nothing_passes_a_wire_that_is_held(echo: Echo) -> None:
    with client_of(echo, first(after(3, client=False), hold)) as peer:
        peer.sendall(b"0123456789")
        assert read(peer, 3) == b"012"
        peer.settimeout(0.2)
        with pytest.raises(TimeoutError):
            peer.recv(1)


def test_a_deaf_server_closes_the_window_of_its_client(echo: Echo) -> None:
    with client_of(echo, first(after(3, client=True), deaf)) as peer:
        peer.setblocking(False)
        deadline = time.monotonic() + 20
        idle = 0
        while idle < 20 and time.monotonic() < deadline:
            try:
                peer.send(b"x" * 65536)
                idle = 0
            except BlockingIOError:
                idle += 1
                time.sleep(0.01)
        assert idle == 20


def test_a_drip_takes_its_time_for_each_octet(echo: Echo) -> None:
    with client_of(echo, first(after(0, client=True), drip(0.05))) as peer:
        began = time.monotonic()
        peer.sendall(b"01234")
        assert read(peer, 5) == b"01234"
        assert time.monotonic() - began > 4 * 0.05


def test_a_call_holds_up_nothing(echo: Echo) -> None:
    called: list[int] = []
    with client_of(echo, first(after(3, client=True), call(lambda: called.append(1)))) as peer:
        peer.sendall(b"0123456789")
        assert read(peer, 10) == b"0123456789"
    assert called == [1]


def test_the_next_client_waits_for_the_end_of_the_session_at_fault(echo: Echo) -> None:
    with run_proxy(echo.port, first(after(3, client=True), reset)) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as one:
            one.sendall(b"0123456789")
            assert proxy.faulty.wait(20)
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as two:
            two.sendall(b"two")
            assert read(two, 3) == b"two"
    assert echo.heard == b"012two"


def test_a_connection_is_cut_when_asked_for(echo: Echo) -> None:
    with run_proxy(echo.port, healthy) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as peer:
            peer.sendall(b"012")
            assert read(peer, 3) == b"012"
            proxy.cut(7)
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
        assert proxy.faults == 1
