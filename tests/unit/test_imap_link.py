"""Only a link that is slow is called slow: not a fast one, not a slow server, not too little to tell."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

from aimport.imap.link import ENOUGH_US, SLOW_OCTETS_PER_S, link_is_slow

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="struct tcp_info as Linux has it"),
]

S: Final = 1_000_000
MB: Final = 1_000_000


class Counted:
    """A socket whose kernel counted this."""

    def __init__(self, answer: bytes | OSError) -> None:
        self.answer = answer

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer[:buflen]


def tcp_info(
    *, acked: int, rate: int, busy: int, receiver: int = 0, buffer: int = 0, app_limited: bool = False
) -> bytes:
    """struct tcp_info of linux/tcp.h, field by field."""
    flag = int(app_limited) if sys.byteorder == "little" else int(app_limited) << 7
    octets = struct.pack("=7xB", flag)
    octets += struct.pack("=24I", *range(24))  # rto ... total_retrans
    octets += struct.pack("=4Q", 1, 2, acked, 3)  # pacing_rate, max_pacing_rate, bytes_acked, bytes_received
    octets += struct.pack("=6I", *range(6))  # segs_out ... data_segs_out
    octets += struct.pack("=4Q", rate, busy, receiver, buffer)
    return octets + bytes(40)


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        (tcp_info(acked=5 * MB, rate=2 * MB, busy=2 * S), True),
        (tcp_info(acked=5 * MB, rate=2 * MB, busy=2 * S, receiver=S // 10, buffer=S // 10), True),
        # fast, on the whole or of late
        (tcp_info(acked=500 * MB, rate=200 * MB, busy=2 * S), False),
        (tcp_info(acked=5 * MB, rate=SLOW_OCTETS_PER_S, busy=2 * S), False),
        (tcp_info(acked=2 * SLOW_OCTETS_PER_S, rate=2 * MB, busy=2 * S), False),
        # the server does not read; our buffer is small
        (tcp_info(acked=5 * MB, rate=2 * MB, busy=2 * S, receiver=S), False),
        (tcp_info(acked=5 * MB, rate=2 * MB, busy=2 * S, buffer=S), False),
        (tcp_info(acked=5 * MB, rate=2 * MB, busy=2 * S, receiver=S // 3, buffer=S // 3), False),
        # nothing can be said
        (tcp_info(acked=2 * MB, rate=2 * MB, busy=ENOUGH_US - 1), None),
        (tcp_info(acked=0, rate=0, busy=0), None),
        (tcp_info(acked=MB // 100, rate=MB // 100, busy=2 * S, app_limited=True), None),
        (tcp_info(acked=5 * MB, rate=2 * MB, busy=2 * S)[:104], None),  # before Linux 4.9
        (b"", None),
        (OSError(95, "Operation not supported"), None),
    ],
)
def test_the_counters_decide(counted: bytes | OSError, expected: bool | None) -> None:
    assert link_is_slow(Counted(counted)) is expected


def test_the_system_that_counts_in_another_form_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert link_is_slow(Counted(tcp_info(acked=5 * MB, rate=2 * MB, busy=2 * S))) is None


def test_what_is_no_open_tcp_socket_gives_no_answer() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert link_is_slow(left) is None
    assert link_is_slow(left) is None


class Upload(asyncio.Protocol):
    """Writes as much as the transport takes."""

    def __init__(self) -> None:
        self.sent = 0
        self.lost = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.room.set()
        self.lost.set()

    async def run(self, transport: asyncio.Transport) -> None:
        while not self.lost.is_set():
            transport.write(bytes(65536))
            self.sent += 65536
            await self.room.wait()
            await asyncio.sleep(0)  # else, with room, nobody else has a turn


async def _upload(octets_a_read: int, wait_s: float, window: int | None, until: int) -> tuple[bool | None, int]:
    """The answer for a server on loopback that reads so fast: the first there is, or that after `until` octets."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.setblocking(False)
        if window is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        connected, upload = await loop.create_connection(Upload, *listener.getsockname())
        server, _ = await loop.sock_accept(listener)
        writing = asyncio.create_task(upload.run(connected))
        slow = None
        with server:
            server.setblocking(False)
            while slow is None and upload.sent < until:
                await loop.sock_recv(server, octets_a_read)
                await asyncio.sleep(wait_s)
                slow = link_is_slow(connected.get_extra_info("socket"))
        connected.abort()
        await upload.lost.wait()
        await writing
        return slow, upload.sent


@pytest.mark.parametrize(
    ("octets_a_read", "wait_s", "window"), [(65536, 0.02, None), (4096, 0.004, None), (65536, 0.02, 32768)]
)
async def test_a_server_that_reads_slowly_is_no_slow_link(
    octets_a_read: int, wait_s: float, window: int | None
) -> None:
    slow, sent = await _upload(octets_a_read, wait_s, window, 1 << 40)
    assert slow is False
    assert sent < 2 * SLOW_OCTETS_PER_S


async def test_loopback_is_no_slow_link() -> None:
    slow, _ = await _upload(1 << 20, 0, None, 1 << 28)
    assert slow is not True


SHAPED: Final = """
    import socket, sys, threading, time
    from aimport.imap.link import link_is_slow

    def read(sock, wait_s):
        with sock:
            while sock.recv(65536):
                time.sleep(wait_s)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        thread = threading.Thread(target=read, args=(listener.accept()[0], float(sys.argv[1])))
    thread.start()
    with sock:
        while (slow := link_is_slow(sock)) is None:
            sock.sendall(bytes(65536))
        print(slow)
        sock.shutdown(socket.SHUT_RDWR)
    thread.join()
"""


@pytest.mark.parametrize(("wait_s", "expected"), [("0", "True"), ("0.1", "False")])
def test_a_link_of_20_mbit_is_slow_unless_the_server_is_slower(wait_s: str, expected: str) -> None:
    unshare, tc, ip = (shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") for name in ("unshare", "tc", "ip"))
    if unshare is None or tc is None or ip is None:
        pytest.skip("no unshare, ip or tc to make a slow link with")
    slow = f"{ip} link set lo up && {ip} link set lo mtu 1500 && "
    slow += f"{tc} qdisc add dev lo root tbf rate 20mbit burst 64kb latency 50ms"
    alone = [unshare, "--net", "--map-root-user", "--", "sh", "-c"]
    if (tried := subprocess.run([*alone, slow], capture_output=True, timeout=20, check=False)).returncode != 0:
        pytest.skip(f"no network namespace with a slow link here: {tried.stderr.decode(errors='replace').strip()}")
    done = subprocess.run(
        [*alone, f'{slow} && exec "$@"', "sh", sys.executable, "-c", textwrap.dedent(SHAPED), wait_s],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == (expected, "", 0)
