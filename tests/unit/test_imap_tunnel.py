"""IMAP on the pipes of a program: the child is always reaped, and what it said is told.

Invariant of all: when a connection is over, so is its child, and no descriptor is left.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from aimport.errors import ConnectionLost, DeadlinePassed, LoginRefused, UserError
from aimport.imap import tunnel
from aimport.imap.client import connect
from aimport.imap.commands import Literal
from aimport.imap.connection import Connection, Deadlines
from aimport.imap.tunnel import Tunnel
from aimport.model import Endpoint, Secret
from aimport.stores import Stores
from aimport.stores.imap import ImapDestination, ImapSource
from tests.processes import descendants, wait_until_gone

QUICK = Deadlines(connect_s=5.0, command_s=2.0, append_s=2.0, close_s=5.0)
PREAUTH = "* PREAUTH [CAPABILITY IMAP4rev1 LITERAL+] in"
CANARY = "c4nary-secret"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncGenerator[None]:
    before, descriptors = pids(), len(os.listdir("/proc/self/fd"))
    yield
    assert not pids() - before  # a server kept for other tests may end a child of its own meanwhile
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture(autouse=True)
def _is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "EXIT_S", 0.3)
    monkeypatch.setattr(tunnel, "TERM_S", 0.3)


def endpoint(*words: str, secret: str = "", auth: str = "") -> Endpoint:
    return Endpoint(
        scheme="tunnel",
        command=words,
        security="none",
        user="bob" if secret else "",
        secret=Secret(kind="literal", text=secret) if secret else None,
        auth=auth,
    )


def shell(script: str, *, secret: str = "", auth: str = "") -> Endpoint:
    return endpoint("sh", "-c", script, secret=secret, auth=auth)


def greets(line: str, then: str = "") -> str:
    return f"printf '%s\\r\\n' '{line}'; {then}"


ANSWERS = 'while read tag rest; do printf "%s OK done\\r\\n" "$tag"; case "$rest" in LOGOUT*) exit 0;; esac; done'


@asynccontextmanager
async def session(script: str) -> AsyncGenerator[Connection]:
    connection = await connect(shell(script), deadlines=QUICK)
    try:
        yield connection
    finally:
        await connection.close()


def pids() -> set[int]:
    return set(descendants(os.getpid()))


# A session


async def test_preauth_needs_no_login_and_the_child_ends_with_the_session() -> None:
    async with session(greets(PREAUTH, ANSWERS)) as connection:
        assert connection.where == "tunnel:sh"
        assert connection.capabilities == {"IMAP4REV1", "LITERAL+"}
        assert (await connection.command(b"NOOP")).ok
        assert len(pids()) >= 1


async def test_a_big_upload_arrives_whole_and_waits_for_a_slow_reader() -> None:
    body = os.urandom(1 << 20) * 6
    reader = (
        "import sys,hashlib,time\n"
        "out=sys.stdout.buffer; inp=sys.stdin.buffer\n"
        f"out.write(b'{PREAUTH}\\r\\n'); out.flush()\n"
        "line=inp.readline(); n=int(line[line.index(b'{')+1:line.index(b'+')]); time.sleep(0.2)\n"
        "digest=hashlib.sha256(inp.read(n)).hexdigest().encode(); inp.readline()\n"
        "out.write(line.split()[0]+b' OK '+digest+b'\\r\\n'); out.flush()\n"
        "line=inp.readline(); out.write(line.split()[0]+b' OK bye\\r\\n')\n"
    )
    connection = await connect(endpoint(sys.executable, "-c", reader), deadlines=QUICK)
    try:
        reply = await connection.command(b"APPEND", b"x", Literal(body))
        assert reply.tagged.text == hashlib.sha256(body).hexdigest()
    finally:
        await connection.close()


async def test_reading_pauses_when_nobody_takes_the_data() -> None:
    count, size = 200, 50_000
    script = (
        "import sys\n"
        "out=sys.stdout.buffer; inp=sys.stdin.buffer\n"
        f"out.write(b'{PREAUTH}\\r\\n'); out.flush(); tag=inp.readline().split()[0]\n"
        f"for n in range(1,{count}+1):\n"
        f"  out.write(b'* %d FETCH (UID %d BODY[] {{{size}}}\\r\\n' % (n, n) + b'x'*{size} + b')\\r\\n')\n"
        "out.write(tag+b' OK\\r\\n'); out.flush(); tag=inp.readline().split()[0]; out.write(tag+b' OK\\r\\n')\n"
    )
    connection = await connect(endpoint(sys.executable, "-c", script), deadlines=QUICK)
    try:
        connection.read_high = 500_000
        exchange = await connection.start(b"FETCH")
        first = await exchange.responses()
        await anyio.sleep(0.3)  # for all that can be read
        assert connection._paused
        assert connection._buffered < 500_000 + tunnel.READ_OCTETS + size
        seen = len(first)
        while responses := await exchange.responses():
            seen += len(responses)
        assert seen == count
    finally:
        await connection.close()


async def test_the_fence_waits_until_the_child_has_taken_all(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    script = greets(PREAUTH, f"cat > {taken}.part; mv {taken}.part {taken}")
    connection = await connect(shell(script), deadlines=QUICK)
    with anyio.move_on_after(0.1):
        await connection.command(b"APPEND", Literal(b"hello"))
    await connection.close(fence=True)
    assert taken.read_bytes() == b"a1 APPEND {5+}\r\nhello\r\n"


# Greetings


async def test_a_greeting_without_preauth_logs_in_when_there_are_credentials() -> None:
    script = greets(
        "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=SCRAM-SHA-256 SASL-IR] hi",
        'read tag rest; test "$rest" = "AUTHENTICATE PLAIN AGJvYgBjNG5hcnktc2VjcmV0\r" && '
        f"printf '%s OK [CAPABILITY IMAP4rev1] in\\r\\n' \"$tag\"; {ANSWERS}",
    )
    connection = await connect(shell(script, secret=CANARY), deadlines=QUICK)
    assert (await connection.command(b"NOOP")).ok
    await connection.close()


async def test_a_greeting_without_preauth_and_no_credentials_is_said() -> None:
    with pytest.raises(UserError, match="tunnel:sh: the server greets without PREAUTH and there is no password"):
        await connect(shell(greets("* OK hi", "cat")), deadlines=QUICK)


async def test_a_secret_that_is_not_needed_is_not_asked_for(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    words = ("sh", "-c", greets(PREAUTH, ANSWERS))
    secret = Secret(kind="cmd", text=f"touch {asked}")
    connection = await connect(Endpoint(scheme="tunnel", command=words, security="none", secret=secret))
    await connection.close()
    assert not asked.exists()


async def test_a_refused_login_in_a_tunnel_is_one() -> None:
    script = greets(
        "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi", "read tag rest; printf '%s NO no\\r\\n' $tag; cat"
    )
    with pytest.raises(LoginRefused, match="tunnel:sh: login of bob"):
        await connect(shell(script, secret=CANARY), deadlines=QUICK)


@pytest.mark.parametrize("auth", ["external", "plain"])
async def test_there_is_no_tls_in_a_tunnel(auth: str) -> None:
    script = greets("* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED AUTH=EXTERNAL] hi", "cat >&2")
    with pytest.raises(UserError, match=r"client certificate|does not offer AUTH=PLAIN"):
        await connect(shell(script, secret=CANARY, auth=auth), deadlines=QUICK)


# A child that fails


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["/nonexistent/program", CANARY], UserError, "cannot be run: No such file"),
        (["/etc/passwd", CANARY], UserError, "cannot be run: Permission denied"),
        (["false", CANARY], UserError, "ended with status 1"),
        (["true", CANARY], UserError, "ended with status 0"),
        (["sh", "-c", f"echo user unknown >&2; exit 67 #{CANARY}"], UserError, "ended with status 67: user unknown"),
        (["sh", "-c", "echo ssh: refused >&2; exit 255"], ConnectionLost, "ended with status 255: ssh: refused"),
        (["sh", "-c", "exit 75"], ConnectionLost, "ended with status 75"),
        (["sh", "-c", "kill -9 $$"], ConnectionLost, "ended by signal 9"),
    ],
)
async def test_a_command_that_ends_at_once_says_why(words: list[str], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=f"tunnel:{words[0]}: the command .*{said}") as caught:
        await connect(endpoint(*words), deadlines=QUICK)
    assert type(caught.value) is kind
    assert CANARY not in f"{caught.value}{caught.value!r}{endpoint(*words)!r}"


async def test_stderr_is_shown_by_its_last_lines_and_fit_for_a_terminal() -> None:
    script = (
        "i=0; while [ $i -lt 5000 ]; do echo noise $i; i=$((i+1)); done >&2; printf '\\033[2Jone\\ntwo\\n' >&2; exit 1"
    )
    with pytest.raises(UserError) as caught:
        await connect(shell(script), deadlines=QUICK)
    assert str(caught.value) == "tunnel:sh: the command ended with status 1: noise 4999; [2Jone; two"


async def test_a_child_that_dies_in_the_middle_is_a_lost_connection_with_its_words() -> None:
    script = greets(PREAUTH, "read line; echo Fatal: out of memory >&2; exit 89")
    async with session(script) as connection:
        with pytest.raises(ConnectionLost, match="ended with status 89: Fatal: out of memory"):
            await connection.command(b"NOOP")
        with pytest.raises(ConnectionLost):
            await connection.command(b"NOOP")


async def test_a_bye_before_the_end_says_more_than_a_status() -> None:
    script = greets(PREAUTH, "read line; " + greets("* BYE [UNAVAILABLE] shutting down", "exit 0"))
    async with session(script) as connection:
        with pytest.raises(ConnectionLost, match="shutting down"):
            await connection.command(b"NOOP")


async def test_a_child_that_says_nothing_passes_the_deadline_with_what_it_complained_of() -> None:
    hanging = Deadlines(connect_s=0.3, command_s=2.0, append_s=2.0, close_s=2.0)
    with pytest.raises(DeadlinePassed, match="within the deadline: Password:"):
        await connect(shell("echo Password: >&2; exec sleep 60"), deadlines=hanging)


# The end of a child


@pytest.mark.parametrize(
    "script",
    [
        greets(PREAUTH, "exec sleep 60"),
        f"sleep 60 & {greets(PREAUTH, 'sleep 60')}",  # with children of its own
        f"trap '' TERM; sleep 60 & {greets(PREAUTH, 'wait; sleep 60')}",  # deaf
        greets(PREAUTH, "exec 1>&-; exec sleep 60"),  # closes its output alone
    ],
)
async def test_a_child_that_does_not_end_is_ended_with_all_it_started(script: str) -> None:
    before = pids()
    connection = await connect(shell(script), deadlines=QUICK)
    transport = connection._transport
    assert isinstance(transport, Tunnel)
    started = pids() - before
    assert started
    transport.close()
    with anyio.fail_after(5):
        await transport.wait_closed()
    wait_until_gone(list(started))


async def test_what_a_child_leaves_behind_with_our_pipe_is_ended() -> None:
    before = pids()
    async with session(f"sleep 60 & {greets(PREAUTH, ANSWERS)}"):
        started = pids() - before
        assert len(started) == 2
    wait_until_gone(list(started))


async def test_a_child_is_ended_when_the_connecting_is_cancelled(tmp_path: Path) -> None:
    before, ready = pids(), tmp_path / "ready"
    os.mkfifo(ready)
    script = f"trap '' TERM; sleep 60 & echo > {ready}; wait; sleep 60"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connect, shell(script))
        await anyio.to_thread.run_sync(ready.read_bytes)
        started = pids() - before
        assert len(started) == 2
        tasks.cancel_scope.cancel()
    wait_until_gone(list(started))


async def test_a_child_is_ended_when_a_command_is_cancelled() -> None:
    before = pids()
    async with session(greets(PREAUTH, "exec sleep 60")) as connection:
        started = pids() - before
        with anyio.move_on_after(0.05) as scope:
            await connection.command(b"NOOP")
        assert scope.cancelled_caught
    assert not pids() & started


async def test_aborting_twice_and_after_the_end_does_nothing() -> None:
    class Once(asyncio.Protocol):
        ends = 0

        def connection_lost(self, exc: Exception | None) -> None:
            self.ends += 1

    protocol = Once()
    opened = Tunnel.open(["sleep", "60"], protocol, where="tunnel:sleep")
    opened.abort()
    opened.abort()
    opened.close()
    await opened.wait_closed()
    opened.abort()
    opened.write(b"x")
    opened.pause_reading()
    opened.resume_reading()
    await anyio.lowlevel.checkpoint()
    assert (protocol.ends, opened.is_closing(), opened.get_write_buffer_size()) == (1, True, 0)


async def test_a_reader_that_went_away_wakes_a_writer_that_waits() -> None:
    async with session(greets(PREAUTH, "exec 0<&-; sleep 0.2")) as connection:
        with pytest.raises(ConnectionLost, match="ended with status 0"):
            await connection.command(b"APPEND", Literal(b"x" * 5_000_000))


def test_stores_open_tunnels_as_imap() -> None:
    stores, place = Stores(), endpoint("doveadm", "exec", "imap")
    assert isinstance(stores.source(place), ImapSource)
    destination = stores.destination(place)
    assert isinstance(destination, ImapDestination)
    assert destination.host == "tunnel:doveadm"
