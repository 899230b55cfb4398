"""The faults of aioimaplib 2.0.3 that our client was built around: each is absent from ours.

Tests named `test_aioimaplib_still_...` are documentation: one that fails says that a newer
aioimaplib has lost the fault, and that a reason for code of our own may be gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress

import aioimaplib
import anyio
import pytest

from aimport.errors import ConnectionLost
from aimport.imap.client import Control, connect
from aimport.imap.commands import Literal, astring
from aimport.imap.connection import Connection, Deadlines
from aimport.imap.fragments import FragmentReader
from aimport.imap.responses import Fetch, Listed, MailboxStatus
from aimport.model import Mailbox
from aimport.stores.imap import ImapSource
from tests.fix_imap import LOGIN, Peer, Script, Scripted, login, logout, scripted, then

SYNC = login("IMAP4rev1")
QUICK = Deadlines(command_s=0.5, append_s=0.5, close_s=1)
THEIR_LOGIN = """
    S: * OK [CAPABILITY IMAP4rev1 NAMESPACE] ready
    C: a CAPABILITY
    S: * CAPABILITY IMAP4rev1 NAMESPACE
    S: a OK
    C: b LOGIN ...
    S: b OK
"""

pytestmark = pytest.mark.timeout(30)


@asynccontextmanager
async def theirs(server: Scripted, *, timeout_s: float = 0.5) -> AsyncGenerator[aioimaplib.IMAP4]:
    """Plain aioimaplib, logged in."""
    client = aioimaplib.IMAP4(server.host, server.port, timeout=timeout_s)
    await client.wait_hello_from_server()
    await client.login("bob", "x")
    try:
        yield client
    finally:
        assert client.protocol.transport is not None
        client.protocol.transport.abort()
        await anyio.lowlevel.checkpoint()


class Store:
    """Takes APPENDs with synchronising literals; remembers which command brought which body."""

    def __init__(self) -> None:
        self.bodies: dict[bytes, bytes] = {}

    async def __call__(self, peer: Peer) -> None:
        with suppress(AssertionError, asyncio.IncompleteReadError):
            while True:
                line = await peer.line()
                tag, _, command = line.partition(b" ")
                if command == b"LOGOUT":
                    peer.say(tag + b" OK")
                    return
                name = command.split()[1].strip(b'"')
                peer.say("+ go")
                self.bodies[name] = await peer.octets(int(line[line.rindex(b"{") + 1 : -1]))
                await peer.line()
                peer.say(tag + b" OK stored")


NAMES = ("one", "two", "six", "ten")


async def test_of_concurrent_appends_each_stores_its_own_message() -> None:
    store = Store()
    async with scripted(then(SYNC, store)) as server:
        connection = await connect(server.endpoint())

        async def append(name: str) -> None:
            reply = await connection.command(b"APPEND", astring(name), b"()", Literal(name.encode()))
            assert reply.ok

        async with anyio.create_task_group() as tasks:
            for name in NAMES:
                tasks.start_soon(append, name)
        await connection.close()
    assert store.bodies == {name.encode(): name.encode() for name in NAMES}


async def test_aioimaplib_still_stores_another_message_and_says_ok() -> None:
    store = Store()
    async with scripted(then(THEIR_LOGIN, store), check="lenient") as server, theirs(server) as client:
        results = await asyncio.gather(
            *(client.append(name.encode(), mailbox=name) for name in NAMES), return_exceptions=True
        )
        assert isinstance(results[0], aioimaplib.Response)
        assert results[0].result == "OK"
    assert store.bodies[b"one"] == b"ten"


def lines_of_flags(count: int) -> bytes:
    return b"".join(b"* %d FETCH (UID %d FLAGS (\\Seen))\r\n" % (number, number) for number in range(1, count + 1))


async def our_fetch(count: int) -> float:
    async def answer(peer: Peer) -> None:
        await peer.hear("a FETCH")
        peer.octets_out(lines_of_flags(count))
        peer.say("a OK")

    async with scripted(then(LOGIN, answer, logout)) as server:
        connection = await connect(server.endpoint())
        began = time.process_time()
        assert len((await connection.command(b"FETCH")).of(Fetch)) == count
        taken = time.process_time() - began
        await connection.close()
    return taken


async def test_the_time_of_a_fetch_is_linear_in_its_lines() -> None:
    assert await our_fetch(16_000) < 2.0  # theirs: 4.6 s for 4,000


class Scanned(list[bytes]):
    """Lines of a response that count how often they are gone through."""

    scans = 0

    def __iter__(self) -> Iterator[bytes]:
        Scanned.scans += len(self)
        return super().__iter__()


async def test_aioimaplib_still_goes_through_all_lines_for_every_line() -> None:
    command = aioimaplib.aioimaplib.FetchCommand("a")
    vars(command)["_resp_lines"] = Scanned()
    for _ in range(100):
        command.append_to_resp(b"1 FETCH (UID 1)")
        command.wait_data()
    assert Scanned.scans == 100 * 101 / 2


async def test_thousands_of_lines_in_one_read_do_not_recurse() -> None:
    async def answer(peer: Peer) -> None:
        await peer.hear("a LIST")
        peer.octets_out(b"".join(b'* LIST () "/" "m%d"\r\n' % number for number in range(5000)) + b"* OK\r\n")
        peer.say("a OK")

    async with scripted(then(LOGIN, answer, logout)) as server:
        connection = await connect(server.endpoint())
        assert len((await connection.command(b"LIST")).of(Listed)) == 5000
        await connection.close()


async def test_aioimaplib_still_recurses_once_for_each_line() -> None:
    protocol = aioimaplib.IMAP4ClientProtocol(asyncio.get_running_loop())
    protocol.state = aioimaplib.AUTH
    with pytest.raises(RecursionError):
        protocol.data_received(b"* 1 EXISTS\r\n" * 2000)


async def test_a_closed_connection_wakes_its_commands_at_once() -> None:
    async with scripted(then(LOGIN, "C: a NOOP\n- close")) as server:
        connection = await connect(server.endpoint())
        with anyio.fail_after(5), pytest.raises(ConnectionLost):
            await connection.command(b"NOOP")
        await connection.close()


async def test_a_connection_closed_during_login_wakes_the_login() -> None:
    async with scripted("S: * OK [CAPABILITY IMAP4rev1] x\nC: a LOGIN ...\n- close") as server:
        with anyio.fail_after(5), pytest.raises(ConnectionLost, match="closed the connection"):
            await connect(server.endpoint())


async def test_aioimaplib_still_waits_for_the_timeout_when_the_connection_is_gone() -> None:
    async with scripted(then(THEIR_LOGIN, "C: c APPEND ...\n- close")) as server, theirs(server) as client:
        with pytest.raises(aioimaplib.CommandTimeout):
            await client.append(b"x")


async def drip(peer: Peer) -> None:
    """Takes an upload in slow pieces, longer in all than the deadline."""
    line = await peer.line()
    left = int(line[line.rindex(b"{") + 1 :].strip(b"+}"))
    if not line.endswith(b"+}"):
        peer.say("+ go")
    for _ in range(6):
        await peer.octets(left // 6)
        await anyio.sleep(0.15)  # this is the link, not a wait for something
    await peer.octets(left % 6)
    await peer.line()
    peer.say(line.split()[0] + b" OK")


async def test_an_upload_that_moves_meets_no_deadline() -> None:
    async with scripted(then(LOGIN, drip, logout)) as server:
        connection = await connect(server.endpoint(), deadlines=QUICK)
        assert (await connection.command(b"APPEND", Literal(b"x" * 30_000_000))).ok
        await connection.close()


async def test_aioimaplib_still_ignores_the_progress_of_an_upload() -> None:
    async with scripted(then(THEIR_LOGIN, drip), check="lenient") as server, theirs(server) as client:
        with pytest.raises(aioimaplib.CommandTimeout):
            await client.append(b"x" * 30_000_000)


STAR: Script = then('C: c LIST ...\nS: * LIST () "/" "a* b"\nS: c OK')


async def test_a_name_with_star_and_space_is_kept() -> None:
    async with scripted(then(LOGIN, STAR, logout)) as server:
        connection = await connect(server.endpoint())
        assert [listed.name for listed in (await connection.command(b"LIST", b'""', b'"*"')).of(Listed)] == [b"a* b"]
        await connection.close()


async def test_aioimaplib_still_cuts_star_and_space_out_of_names() -> None:
    async with scripted(then(THEIR_LOGIN, STAR)) as server, theirs(server) as client:
        assert (await client.list('""', '"*"')).lines[0] == b'() "/" "ab"'


LIST_STATUS: Script = then('C: c LIST ...\nS: * LIST () "/" x\nS: * STATUS x (MESSAGES 3)\nS: c OK')


async def test_untagged_data_of_another_name_reaches_the_command() -> None:
    async with scripted(then(LOGIN, LIST_STATUS, logout)) as server:
        connection = await connect(server.endpoint())
        reply = await connection.command(b"LIST", b'""', b'"*"', b"RETURN (STATUS (MESSAGES))")
        assert reply.of(MailboxStatus) == [MailboxStatus(name=b"x", items=(("MESSAGES", 3),))]
        await connection.close()


async def test_aioimaplib_still_drops_untagged_data_of_another_name() -> None:
    async with scripted(then(THEIR_LOGIN, LIST_STATUS)) as server, theirs(server) as client:
        assert (await client.list('""', '"*" RETURN (STATUS (MESSAGES))')).lines[:-1] == [b'() "/" x']


async def test_names_are_quoted_and_in_modified_utf7() -> None:
    script = 'C: r LIST "" ""\nS: * LIST () "/" ""\nS: r OK\nC: a EXAMINE "two words/&AOQ-"\nS: a NO'
    async with scripted(then(login("IMAP4rev1"), script, logout)) as server:
        async with ImapSource(server.endpoint()).open() as session:
            with pytest.raises(Exception, match="server said NO"):
                await session.select(Mailbox(path=("two words", "ä")))


async def test_aioimaplib_still_sends_names_as_they_are() -> None:
    async with scripted(then(THEIR_LOGIN, "C: c SELECT two words\nS: c NO")) as server, theirs(server) as client:
        await client.select("two words")


class Loud(bytes):
    """Octets that notice when they are made into text."""

    shown = 0

    def __str__(self) -> str:
        Loud.shown += 1
        return "shown"

    __repr__ = __str__


async def test_what_is_read_is_never_made_into_text_for_a_log() -> None:
    Loud.shown = 0
    control = Control("host", FragmentReader(), 1.0)
    control.data_received(Loud(b"* OK [CAPABILITY IMAP4rev1] hi\r\n"))
    connection = Connection("host", frozenset(), FragmentReader(), QUICK)
    connection.data_received(Loud(b"* 1 FETCH (BODY[] {2}\r\nab)\r\n"))
    assert Loud.shown == 0


async def test_aioimaplib_still_formats_every_read() -> None:
    Loud.shown = 0
    protocol = aioimaplib.IMAP4ClientProtocol(asyncio.get_running_loop())
    protocol.state = aioimaplib.AUTH
    protocol.data_received(Loud(b"* 1 EXISTS\r\n"))
    assert Loud.shown == 1


LONG_LINE = b"* SEARCH" + b" 1234567" * 125_000 + b"\r\n"


def in_reads(protocol: asyncio.Protocol, data: bytes, size: int = 1460) -> float:
    began = time.process_time()
    for at in range(0, len(data), size):
        protocol.data_received(data[at : at + size])
    return time.process_time() - began


async def test_a_long_line_in_small_reads_is_not_copied_for_each() -> None:
    ours = [Connection("host", frozenset(), FragmentReader(), QUICK) for _ in range(2)]
    whole = in_reads(ours[0], LONG_LINE, size=len(LONG_LINE))  # most of it is the parsing of 125,000 numbers
    assert in_reads(ours[1], LONG_LINE) < 3 * whole + 0.2


async def test_aioimaplib_still_keeps_and_copies_the_tail_of_every_read() -> None:
    protocol = aioimaplib.IMAP4ClientProtocol(asyncio.get_running_loop())
    protocol.state = aioimaplib.AUTH
    protocol.data_received(b"* SEARCH 1")
    protocol.data_received(b" 2")
    assert protocol.incomplete_line == b"* SEARCH 1 2"  # concatenated anew with every read


async def test_aioimaplib_still_asks_for_capabilities_it_was_told() -> None:
    async with scripted(then(THEIR_LOGIN)) as server, theirs(server):
        pass
    assert [line.split()[1] for line in server.peers[0].lines] == [b"CAPABILITY", b"LOGIN"]


async def test_capabilities_that_were_told_are_not_asked_for() -> None:
    async with scripted(then(LOGIN, logout)) as server:
        connection = await connect(server.endpoint())
        await connection.close()
    assert [line.split()[1] for line in server.peers[0].lines] == [b"AUTHENTICATE", b"LOGOUT"]


async def test_sasl_ir_is_used_only_where_offered() -> None:
    script = "S: * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] x\nC: a AUTHENTICATE XOAUTH2\nS: +\nC| dXNlcj1ib2IBYXV0aD1CZWFyZXIgY2FuYXJ5LXNlY3JldAEB\nS: a OK [CAPABILITY IMAP4rev1] in"  # noqa: E501
    async with scripted(then(script, logout)) as server:
        connection = await connect(server.endpoint(auth="xoauth2"))
        await connection.close()


async def test_aioimaplib_still_uses_sasl_ir_unconditionally() -> None:
    script = (
        "S: * OK x\nC: a CAPABILITY\nS: * CAPABILITY IMAP4rev1 AUTH=XOAUTH2\nS: a OK\nC: b AUTHENTICATE XOAUTH2 ..."
    )
    async with scripted(then(script, "S: b NO")) as server:
        client = aioimaplib.IMAP4(server.host, server.port, timeout=0.5)
        await client.wait_hello_from_server()
        await client.xoauth2("bob", "token")  # type: ignore[arg-type]  # octets, as it says itself, end in AttributeError
        assert client.protocol.transport is not None
        client.protocol.transport.abort()
