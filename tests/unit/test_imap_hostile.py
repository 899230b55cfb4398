"""Servers that break the rules, by accident or on purpose, seen from the stores: reliability rows I1 to I9.

| row | here | elsewhere |
|---|---|---|
| I1 literals of absurd size | on the wire | `test_imap_fragments`: before memory is taken |
| I2 literals shorter or longer than said | all | |
| I3 no end of line, of lines, of lists | on the wire, before the login | `test_imap_fragments`, `test_imap_responses` |
| I4 tags wrong, reused, too early | no false receipt | `test_imap_client`: out of step, OK before the literal |
| I5 data that nobody asked for | between and within windows | `test_imap_client`: any time; `test_imap_store`: UIDs |
| I6 RFC822.SIZE unlike the literal | octets win | |
| I7 commands in names, flags, separators | from one server to the next | `test_imap_fuzz`, `test_imap_store` |
| I8 flags that the destination cannot have | all | `test_imap_fuzz`: the grammar; `test_imap_store`: refused |
| I9 INTERNALDATE missing or absurd | years, zones, forms | `test_imap_store`: from the header |
"""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import anyio
import pytest

from aimport.errors import AimportError, ConnectionLost, DeadlinePassed, MailboxNameInvalid, ProtocolError
from aimport.imap.client import connect
from aimport.imap.connection import Deadlines
from aimport.model import Appended, Batch, Mailbox, Message, MessageKey, Rejected, Unreadable
from aimport.octets import fingerprint, whole
from aimport.spool import Spool
from aimport.stores.imap import ImapDestination, ImapDestinationSession, ImapSource, ImapSourceSession
from tests.fix_imap import BEFORE, LOGIN, Peer, Script, Scripted, login, logout, scripted, then
from tests.mail import append_batch

PATIENT = Deadlines(connect_s=20.0, command_s=20.0, append_s=20.0, close_s=0.5)
QUICK = replace(PATIENT, connect_s=2.0, command_s=0.5, append_s=0.5)
BOX = Mailbox(path=("box",), separator="/")
ROOT = 'C: r LIST "" ""\nS: * LIST (\\Noselect) "/" ""\nS: r OK'
EXAMINE = 'C: e EXAMINE "box"\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: e OK'
DATE = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
SAID = '"03-Feb-2001 04:05:06 +0000"'

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def source(
    script: str | Script, *, end: Script = logout, deadlines: Deadlines = PATIENT
) -> AsyncGenerator[ImapSourceSession]:
    async with scripted(then(LOGIN, ROOT, script, end)) as server:
        async with ImapSource(server.endpoint(), deadlines=deadlines).open() as session:
            yield session


@asynccontextmanager
async def destination(
    script: str | Script, *, end: Script = logout, profile: str = "generic", deadlines: Deadlines = PATIENT
) -> AsyncGenerator[tuple[ImapDestinationSession, Scripted]]:
    async with scripted(then(login("IMAP4rev1 LITERAL+"), ROOT, script, end)) as server:
        endpoint = replace(server.endpoint(), profile=profile)
        async with ImapDestination(endpoint, deadlines=deadlines).open() as session:
            yield session, server


def batch(*bodies: str, flags: Sequence[str] = ()) -> Batch:
    messages = tuple(
        Message(key=MessageKey(f"k{at}"), flags=frozenset(flags), internal_date=DATE, body=body.encode(), wire=True)
        for at, body in enumerate(bodies)
    )
    prints = tuple(fingerprint(whole(message.body)) for message in messages)
    return Batch(run="r", number=1, created_us=1, messages=messages, fingerprints=prints)


async def append(session: ImapDestinationSession, messages: Batch) -> list[Appended | Rejected]:
    """The one place where this file hands over a batch."""
    return await append_batch(session, BOX, messages)


def sizes(*uids: int, size: int = 5) -> str:
    """A mailbox is selected, and then opened to be read."""
    lines = [f"S: * {seq} FETCH (UID {uid} RFC822.SIZE {size})" for seq, uid in enumerate(uids, 1)]
    return "\n".join([EXAMINE, "C: s UID FETCH 1:* (UID RFC822.SIZE)", *lines, "S: s OK", EXAMINE])


async def read(session: ImapSourceSession, into: list[Message | Unreadable]) -> None:
    async with aclosing(session.messages(await session.select(BOX), skip=())) as lists:
        async for each in lists:
            into += each


def bodies(found: Sequence[Message | Unreadable]) -> list[bytes]:
    return [whole(each.body) for each in found if isinstance(each, Message)]


def answered_with(octets: bytes, *, close: bool = False) -> Script:
    """The window of two messages is answered with these octets; FOK stands for its tagged OK."""

    async def run(peer: Peer) -> None:
        tag = await peer.hear("f UID FETCH 1:2 ...")
        peer.octets_out(octets.replace(b"FOK", tag.encode() + b" OK done\r\n"))
        if close:
            await peer.flushed()
            peer.close()

    return run


def one(uid: int, literal: bytes = b"{5}\r\nhello") -> bytes:
    return b'* %d FETCH (UID %d FLAGS () INTERNALDATE "03-Feb-2001 04:05:06 +0000" BODY[] %s)\r\n' % (uid, uid, literal)


async def closed(peer: Peer) -> None:
    """The client goes without a word more."""
    assert await peer.until_closed() == b""


# I1, I2: literals


@pytest.mark.parametrize(
    "announced",
    [
        b"{1000000000000}",
        b"{%d}" % 10**30,
        b"{" + b"9" * 5000 + b"}",
        b"{-1}",
        b"{5+}",
        b"{}",
        b"{5",
        b"~{-1}",
    ],
)
async def test_i1_a_literal_of_absurd_size_ends_the_connection(announced: bytes) -> None:
    found: list[Message | Unreadable] = []
    script = answered_with(one(1) + b"* 2 FETCH (UID 2 BODY[] " + announced + b"\r\n" + b"x" * 100_000)
    async with source(then(sizes(1, 2), script), end=closed) as session:
        with pytest.raises(ProtocolError, match=r"literal|no IMAP response"):
            await read(session, found)
    assert bodies(found) in ([b"hello"], [])  # what came whole before it


@pytest.mark.parametrize(
    ("literal", "kind"),
    [
        (b"{3}\r\nhello", ProtocolError),  # longer than said: octets of it stand where attributes do
        (b"{6}\r\nhello", ProtocolError),  # shorter: the parenthesis is taken for its last octet
        (b"{7}\r\nhello", ProtocolError),
        (b"{0}\r\nhello", ProtocolError),
        (b"{20}\r\nhello", DeadlinePassed),  # the answer goes into it, and the rest never comes
    ],
)
async def test_i2_a_literal_that_is_not_as_long_as_said_is_noticed(literal: bytes, kind: type[AimportError]) -> None:
    """Invariant: no message is handed on with octets that are not its own."""
    found: list[Message | Unreadable] = []
    script = answered_with(one(1) + one(2, literal) + b"FOK")
    deadlines = QUICK if kind is DeadlinePassed else PATIENT
    async with source(then(sizes(1, 2), script), end=closed, deadlines=deadlines) as session:
        with pytest.raises(kind):
            await read(session, found)
    assert bodies(found) in ([b"hello"], [])


async def test_i2_a_message_cut_by_the_end_of_the_connection_is_not_handed_on() -> None:
    found: list[Message | Unreadable] = []
    script = answered_with(one(1) + b"* 2 FETCH (UID 2 BODY[] {20}\r\nhello", close=True)
    async with source(then(sizes(1, 2), script), end=closed) as session:
        with pytest.raises(ConnectionLost):
            await read(session, found)
    assert bodies(found) == [b"hello"]


# I3: floods


@pytest.mark.parametrize("line", [b"* OK " + b"x" * 1_100_000, b"* LIST (" + b"\\a " * 400_000, b"x" * 1_100_000])
async def test_i3_a_line_without_end_ends_the_connection(line: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.hear('l LIST "" "*"')
        peer.octets_out(line)

    async with source(script, end=closed) as session:
        with pytest.raises(ProtocolError, match="line of more than"):
            await session.list_mailboxes()


async def test_i3_lists_within_lists_end_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.hear('l LIST "" "*"')
        peer.say(b"* LIST " + b"(" * 100_000)

    async with source(script, end=closed) as session:
        with pytest.raises(ProtocolError, match="nested lists deeper"):
            await session.list_mailboxes()


async def test_i3_lines_that_nobody_asked_for_take_no_memory_while_messages_are_read() -> None:
    async def flood(peer: Peer) -> None:
        tag = await peer.hear("f UID FETCH 1:2 ...")
        peer.octets_out(one(1))
        for _ in range(50):
            peer.octets_out(b"* 9 FETCH (UID 9 FLAGS (a b c d))\r\n* OK still here\r\n" * 1000)
            await peer.flushed()
        peer.octets_out(one(2))
        peer.say(tag.encode() + b" OK")

    found: list[Message | Unreadable] = []
    async with source(then(sizes(1, 2), flood)) as session:
        tracemalloc.start()
        try:
            await read(session, found)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert bodies(found) == [b"hello", b"hello"]
    assert peak < 20_000_000  # all of them at once are more than 50 MB


@pytest.mark.parametrize(
    ("limit", "lines"),
    [("MAX_COLLECTED", b"* OK x\r\n" * 5000), ("MAX_COLLECTED_COST", b"* OK " + b"x" * 900_000 + b"\r\n")],
)
async def test_i3_an_answer_without_end_is_not_collected_for_ever(
    limit: str, lines: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few long lines fill the memory as well as many short ones do."""
    monkeypatch.setattr(f"aimport.imap.connection.{limit}", {"MAX_COLLECTED": 20_000}.get(limit, 10_000_000))
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.hear('l LIST "" "*"')
        while sent < 200:
            peer.octets_out(lines)
            try:
                await peer.flushed()
            except ConnectionError:
                return
            sent += 1

    async with source(script, end=Peer.until_closed) as session:
        with pytest.raises(ProtocolError, match="no end"):
            await session.list_mailboxes()
    assert sent < 200


async def test_i3_a_large_literal_in_an_answer_that_is_collected_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server fills the disk: EXAMINE answered with message after message."""

    async def flush(spool: Spool) -> None:
        raise AssertionError("nobody wants this literal")

    monkeypatch.setattr(Spool, "flush", flush)

    async def script(peer: Peer) -> None:
        tag = await peer.hear('e EXAMINE "box"')
        for _ in range(2):
            peer.octets_out(b"* 1 FETCH (UID 1 BODY[] {6000000}\r\n")
            for _ in range(60):
                peer.octets_out(b"x" * 100_000)
                await peer.flushed()
            peer.octets_out(b")\r\n")
        peer.say(f"{tag} OK")

    async with source(script) as session:
        assert len((await session.select(BOX)).keys) == 0


@pytest.mark.parametrize("when", ["CAPABILITY", "AUTHENTICATE"])
async def test_i3_a_server_that_never_comes_to_the_point_does_not_hold_up_the_login(when: str) -> None:
    """Each line moves the deadline of a command; there is another that nothing moves."""

    async def talk(peer: Peer) -> None:
        said = "" if when == "CAPABILITY" else f"[CAPABILITY {BEFORE}] "
        peer.say(f"* OK {said}ready")
        assert when.encode() in await peer.line()
        try:
            while True:
                peer.say("* OK one moment")
                await peer.flushed()
                await anyio.sleep(0.02)  # this is the server's pace, not a wait for something
        except ConnectionError:
            pass

    async with scripted(talk, check="lenient") as server:
        with pytest.raises(DeadlinePassed):
            await connect(server.endpoint(), deadlines=QUICK)


@pytest.mark.parametrize("greeted", [False, True])
async def test_i3_nothing_large_is_taken_before_the_login(greeted: bool) -> None:
    script = "S: * OK ready\nC: c CAPABILITY" if greeted else ""

    async def announce(peer: Peer) -> None:
        peer.say("* X {100000000}")
        assert await peer.until_closed() == b""

    async with scripted(then(script, announce)) as server:
        with pytest.raises(ProtocolError, match="limit of 65536"):
            await connect(server.endpoint(), deadlines=QUICK)


# I4: receipts


@pytest.mark.parametrize(
    "answers",
    [
        ["S: zz OK [APPENDUID 7 1] stored"],
        ["S: b OK [APPENDUID 7 1] stored"],
        ["S: r OK [APPENDUID 7 1] stored"],
        ["S: a OK [APPENDUID 7 1] stored", "S: a OK [APPENDUID 7 2] stored"],
        ["S: * OK [APPENDUID 7 1:2] stored"],
        ["S: OK [APPENDUID 7 1] stored"],
        ["S: a OKAY"],
        ["S: a PREAUTH stored"],
        ["S: + stored"],
        ["S: * 1 FETCH (UID 1)", "S: * 2 EXISTS"],
    ],
    ids=str,
)
async def test_i4_only_the_answer_to_the_command_itself_is_a_receipt(answers: list[str]) -> None:
    """Invariant: a batch with anything wrong in its answers is in doubt; nothing of it counts as stored."""
    one = f'APPEND "box" () {SAID} {{3+}}'
    script = "\n".join([f"C: a {one}", "C| one", f"C: b {one}", "C| two", *answers])
    async with destination(script, end=Peer.until_closed, deadlines=QUICK) as (session, _):
        with pytest.raises(ConnectionLost):
            await append(session, batch("one", "two"))


async def test_i4_an_answer_of_a_session_before_is_no_receipt() -> None:
    """The second OK comes when nothing is under way; the message sent after it must not take it for its own."""
    one = f'APPEND "box" () {SAID} {{3+}}'
    script = f"C: a {one}\nC| one\nS: a OK stored\nS: a OK stored"
    async with destination(script, end=Peer.until_closed) as (session, _):
        try:
            await append(session, batch("one"))
        except ConnectionLost:
            return  # both came at once: the first is in doubt as well
        with pytest.raises(ConnectionLost):
            await append(session, batch("two"))


# I5: what nobody asked for

UNASKED = rb"""* 9 EXISTS
* 1 EXPUNGE
* 0 RECENT
* VANISHED (EARLIER) 1:2
* 1 FETCH (FLAGS (\Deleted))
* 1 FETCH (UID 2 FLAGS (\Deleted))
* 9 FETCH (UID 99 BODY[] "other")
* 1 FETCH (BODY[] "of nobody")
* 1 FETCH (UID 1 BODY[HEADER] "part" BODY[1] "part" BODY[]<0> "hel")
* OK [ALERT] the building is on fire
* OK [UIDVALIDITY 9] changed?
* CAPABILITY IMAP4rev1
* FLAGS (\Seen)
* LIST (\Noselect) "." ""
* NO [X-NEW] what
* BAD not you
* XYZZY ((( {3}
abc
* SEARCH 1 2
""".replace(b"\n", b"\r\n")


async def test_i5_unasked_data_changes_no_message() -> None:
    found: list[Message | Unreadable] = []
    script = answered_with(UNASKED + one(2) + UNASKED + one(1) + one(1, b"{5}\r\nagain") + UNASKED + b"FOK" + UNASKED)
    async with source(then(sizes(1, 2), script)) as session:
        await read(session, found)
    assert [(each.key, getattr(each, "flags", None)) for each in found] == [("7:1", frozenset()), ("7:2", frozenset())]
    assert bodies(found) == [b"hello", b"hello"]


async def test_i5_unasked_data_changes_no_receipt() -> None:
    """Nor how the next literal is sent: capabilities count as they were after the login."""
    one = f'APPEND "box" () {SAID} {{3+}}'

    async def unasked(peer: Peer) -> None:
        peer.octets_out(UNASKED)

    script = then(unasked, f"C: a {one}\nC| one\nC: b {one}\nC| two", unasked)
    async with destination(then(script, "S: a OK [APPENDUID 7 4] x\nS: b NO [TOOBIG] no")) as (session, _):
        first, second = await append(session, batch("one", "two"))
    assert isinstance(first, Appended) and first.uid == 4
    assert isinstance(second, Rejected) and second.code == "TOOBIG"


# I6: sizes


@pytest.mark.parametrize("size", [0, 1, 4_000_000_000])
async def test_i6_the_octets_count_and_not_what_was_said_of_their_number(size: int) -> None:
    found: list[Message | Unreadable] = []

    async def script(peer: Peer) -> None:
        for _ in range(1 if size < 1_000_000 else 2):  # large messages are asked for one by one
            line = await peer.line()
            for uid in (1, 2):
                if line.split()[3] in (b"1:2", b"%d" % uid):
                    peer.octets_out(one(uid))
            peer.say(line.split()[0] + b" OK")

    async with source(then(sizes(1, 2, size=size), script)) as session:
        await read(session, found)
    assert bodies(found) == [b"hello", b"hello"]


# I7, I8: from one server to the next

INJECTED = "a\r\nb LOGOUT"


async def test_i7_a_mailbox_with_a_command_in_its_name_costs_itself_only() -> None:
    async def listing(peer: Peer) -> None:
        tag = await peer.hear('l LIST "" "*"')
        peer.octets_out(b'* LIST () "/" {%d}\r\n%s\r\n' % (len(INJECTED), INJECTED.encode()))
        peer.octets_out(b'* LIST () {1}\r\n\n "odd"\r\n* LIST () "/" box\r\n')
        peer.say(f"{tag} OK")

    async with source(then(listing, EXAMINE.replace("3 EXISTS", "0 EXISTS"))) as session:
        hostile, odd, good = await session.list_mailboxes()
        assert (hostile.path, odd.path, odd.separator) == ((INJECTED,), ("odd",), "\n")
        with pytest.raises(MailboxNameInvalid):
            await session.select(hostile)
        assert len((await session.select(good)).keys) == 0

    async with destination('C: c CREATE "a&AA0ACg-b LOGOUT"\nS: c OK') as (target, server):
        await target.create_mailbox(Mailbox(path=(INJECTED,)), subscribe=False)
    assert [line.split()[1] for line in server.peers[0].lines] == [b"AUTHENTICATE", b"LIST", b"CREATE", b"LOGOUT"]


@pytest.mark.parametrize("separator", ["\r", "\n", "\0"])
async def test_i7_a_separator_that_would_end_a_command_is_never_sent(separator: str) -> None:
    async def root(peer: Peer) -> None:
        tag = await peer.hear('r LIST "" ""')
        peer.octets_out(b'* LIST (\\Noselect) {1}\r\n%s ""\r\n' % separator.encode())
        peer.say(f"{tag} OK")

    async with scripted(then(LOGIN, root, logout)) as server:
        async with ImapDestination(server.endpoint()).open() as session:
            with pytest.raises(MailboxNameInvalid):
                await session.create_mailbox(Mailbox(path=("a", "b LOGOUT")), subscribe=False)
    assert len(server.peers[0].lines) == 3


FLAGS = [
    *("\\Seen", "\\SEEN", "$Forwarded", "NIL", "a" * 50),
    *(INJECTED, "a" * 51, "a]b", 'a"b', "caf\u00e9", "", " ", "{3+}", "(", "\\Foo", "\\Recent", "\\*", "\\", "a b"),
]
"""Good ones, then those that a server refuses (seen) or that would be another command."""


async def test_i7_i8_what_a_source_calls_a_flag_is_at_most_dropped_at_the_destination() -> None:
    """Invariant: the message arrives in one command, and what it lost is named."""
    found: list[Message | Unreadable] = []
    strings = b" ".join(b"{%d}\r\n%s" % (len(flag.encode()), flag.encode()) for flag in FLAGS)

    async def answer(peer: Peer) -> None:
        tag = await peer.hear("f UID FETCH 1 ...")
        peer.octets_out(b"* 1 FETCH (UID 1 INTERNALDATE " + SAID.encode() + b" FLAGS (" + strings)
        peer.octets_out(b") BODY[] {5}\r\nhello)\r\n")
        peer.say(f"{tag} OK")

    async with source(then(sizes(1), answer)) as session:
        await read(session, found)
    [message] = found
    assert isinstance(message, Message)
    kept = sorted(FLAGS[:1] + FLAGS[2:5])
    script = f'C: a APPEND "box" ({" ".join(kept)}) {SAID} {{5+}}\nC| hello\nS: a OK'
    prints = (fingerprint(b"hello"),)
    async with destination(script, profile="dovecot") as (target, server):
        [outcome] = await append(
            target, Batch(run="r", number=1, created_us=1, messages=(message,), fingerprints=prints)
        )
    assert isinstance(outcome, Appended)
    assert {INJECTED, "a" * 51, "a]b", 'a"b', "caf\u00e9"} <= set(outcome.dropped)
    commands = [line.split()[1] for line in server.peers[0].lines if line != b"hello"]
    assert commands == [b"AUTHENTICATE", b"LIST", b"APPEND", b"LOGOUT"]


async def test_i8_five_hundred_keywords_cost_the_keywords_and_not_the_message() -> None:
    keywords = sorted(f"k{number}" for number in range(500))
    script = f"""
        C: a APPEND "box" ({" ".join(keywords)}) {SAID} {{5+}}
        C| hello
        S: a NO [LIMIT] at most 32 keywords
        C: b APPEND "box" () {SAID} {{5+}}
        C| hello
        S: b OK
    """
    async with destination(script) as (session, _):
        [outcome] = await append(session, batch("hello", flags=keywords))
    assert isinstance(outcome, Appended)
    assert sorted(outcome.dropped) == keywords


# I9: dates


def zone(minutes: int) -> timezone:
    return timezone(timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("said", "moment"),
    [
        (b'"01-Jan-0001 00:00:00 +0000"', datetime(1, 1, 1, tzinfo=UTC)),
        (
            b'"31-Dec-9999 23:59:59 -2359"',
            datetime(9999, 12, 31, 23, 59, 59, tzinfo=zone(-1439)),
        ),
        (b'" 1-feb-1970 00:00:00 +1400"', datetime(1970, 2, 1, tzinfo=zone(840))),
        (b"{26}\r\n03-Feb-2001 04:05:06 +0000", DATE),
        (b'"03-Feb-2001 04:05:06 +9999"', None),
        (b'"03-Feb-0000 04:05:06 +0000"', None),
        (b'"30-Feb-2001 04:05:06 +0000"', None),
        (b'"03-Feb-2001"', None),
        (b'""', None),
        (b"NIL", None),
        (b"0", None),
        (b"(1)", None),
        (b'"' + b"9" * 100_000 + b'"', None),
    ],
)
async def test_i9_a_date_is_kept_or_taken_from_the_header_and_told(
    said: bytes, moment: datetime | None, caplog: pytest.LogCaptureFixture
) -> None:
    body = b"Date: Mon, 05 Mar 2001 01:02:03 +0000\r\n\r\nx"

    async def answer(peer: Peer) -> None:
        tag = await peer.hear("f UID FETCH 1 ...")
        peer.octets_out(b"* 1 FETCH (UID 1 FLAGS () INTERNALDATE %s BODY[] {%d}\r\n%s)\r\n" % (said, len(body), body))
        peer.say(f"{tag} OK")

    found: list[Message | Unreadable] = []
    async with source(then(sizes(1), answer)) as session:
        await read(session, found)
    [message] = found
    assert isinstance(message, Message)
    assert message.internal_date == (moment or datetime(2001, 3, 5, 1, 2, 3, tzinfo=UTC))
    assert ("internaldate missing key=7:1" in caplog.text) is (moment is None)
