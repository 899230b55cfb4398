"""What the IMAP store makes of answers: a scripted server says them, transcripts show both sides."""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from aimport.errors import (
    AimportError,
    ConnectionLost,
    MailboxChanged,
    MailboxError,
    MailboxNameInvalid,
    MailboxNotFound,
    OverQuota,
    ProtocolError,
    ServerBug,
    Unavailable,
)
from aimport.imap.client import connect
from aimport.imap.commands import LiteralPolicy
from aimport.model import (
    STREAM_OCTETS,
    Appended,
    Batch,
    Mailbox,
    Message,
    MessageKey,
    NotStored,
    Position,
    Rejected,
    Uid,
    Unreadable,
    Wanted,
)
from aimport.octets import fingerprint, reduced_digest, whole
from aimport.stores.imap import ImapDestination, ImapDestinationSession, ImapSource, ImapSourceSession
from aimport.stores.keys import UidKeys
from tests.fix_imap import LOGIN, Peer, Script, login, logout, scripted, then
from tests.mail import RefusedTogether, append_batch

BOX = Mailbox(path=("box",), separator="/")
ROOT = 'C: r LIST "" ""\nS: * LIST (\\Noselect) "/" ""\nS: r OK'
DATE = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
SAID_DATE = '"03-Feb-2001 04:05:06 +0000"'
EXAMINE = 'C: e EXAMINE "box"\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: * OK [UIDNEXT 10] x\nS: e OK'

pytestmark = pytest.mark.timeout(30)


@asynccontextmanager
async def source(
    script: str | Script, *, first: str = ROOT, offered: str = "IMAP4rev1"
) -> AsyncGenerator[ImapSourceSession]:
    async with scripted(then(login(offered), first, script, logout)) as server:
        async with ImapSource(server.endpoint()).open() as session:
            yield session


@asynccontextmanager
async def destination(
    script: str | Script, *, offered: str = "IMAP4rev1 LITERAL+", first: str = ROOT
) -> AsyncGenerator[ImapDestinationSession]:
    async with scripted(then(login(offered), first, script, logout)) as server:
        async with ImapDestination(server.endpoint()).open() as session:
            yield session


def batch(*bodies: str, flags: Sequence[str] = ()) -> Batch:
    messages = tuple(
        Message(key=MessageKey(f"k{number}"), flags=frozenset(flags), internal_date=DATE, body=body.encode(), wire=True)
        for number, body in enumerate(bodies)
    )
    prints = tuple(fingerprint(whole(message.body)) for message in messages)
    return Batch(run="r", number=1, created_us=1, messages=messages, fingerprints=prints)


async def read(session: ImapSourceSession, *, skip: Sequence[str] = ()) -> list[Message | Unreadable]:
    found: list[Message | Unreadable] = []
    async with aclosing(session.messages(await session.select(BOX), skip=skip)) as lists:
        async for each in lists:
            assert each
            found += each
    return found


def sizes(*uids: int) -> str:
    lines = [f"S: * {seq} FETCH (UID {uid} RFC822.SIZE 1)" for seq, uid in enumerate(uids, 1)]
    return "\n".join([EXAMINE, "C: s UID FETCH 1:* (UID RFC822.SIZE)", *lines, "S: s OK", EXAMINE])


# Source


async def test_names_of_the_account_are_listed_and_those_of_others_are_not() -> None:
    namespace = r"""
        C: n NAMESPACE
        S: * NAMESPACE (("INBOX." ".")) (("user." ".")) (("#shared." ".") ("Public" NIL))
        S: n OK
    """
    listing = r"""
        C: l LIST "" "*"
        S: * LIST () "." INBOX.Sent
        S: * LIST () "." inbox
        S: * LIST (\Noselect) "." INBOX.Parent
        S: * LIST (\NonExistent) "." INBOX.Ghost
        S: * LIST () "." user.ann
        S: * LIST () "." "#shared.news"
        S: * LIST () "." Public
        S: * LIST () "." INBOX.a&b
        S: * LIST () "." INBOX.&AOQ-.x
        S: l OK
    """

    async def eight_bit(peer: Peer) -> None:
        await peer.hear('l LIST "" "*"')
        peer.say(b'* LIST () "." "INBOX.caf\xe9"', "l OK")
        line = await peer.line()
        assert line.endswith(b"EXAMINE {10+}")
        assert await peer.line() == b"INBOX.caf\xe9"
        peer.say(line.split()[0] + b" OK")

    async with source(then(listing, eight_bit), first=namespace, offered="IMAP4rev1 NAMESPACE LITERAL+") as session:
        mailboxes = await session.list_mailboxes()
        assert [mailbox.path for mailbox in mailboxes] == [("INBOX",), ("Sent",), ("a&b",), ("ä", "x")]
        assert {mailbox.separator for mailbox in mailboxes} == {"."}
        [odd] = await session.list_mailboxes()
        assert odd.path == ("café",)
        assert len((await session.select(odd)).keys) == 0


async def test_the_answer_for_a_uid_is_only_taken_for_that_uid() -> None:
    script = f"""
        {sizes(1, 2, 3)}
        C: f UID FETCH 1:3 (UID FLAGS INTERNALDATE BODY.PEEK[])
        S: * 1 FETCH (FLAGS (\\Deleted))
        S: * 9 FETCH (UID 99 INTERNALDATE {SAID_DATE} BODY[] "other")
        S: * 3 FETCH (UID 3 INTERNALDATE {SAID_DATE} BODY[] "three" FLAGS (\\Seen \\Recent k))
        S: * 2 FETCH (UID 2 FLAGS ())
        S: * 1 FETCH (UID 1 INTERNALDATE {SAID_DATE} BODY[] "one" FLAGS ())
        S: * 1 FETCH (UID 1 INTERNALDATE {SAID_DATE} BODY[] "again" FLAGS ())
        S: f OK
    """
    async with source(script) as session:
        one, two, three = await read(session)
    assert isinstance(one, Message)
    assert isinstance(two, Unreadable)
    assert isinstance(three, Message)
    assert (one.key, one.body, one.internal_date, one.wire) == ("7:1", b"one", DATE, True)
    assert (two.key, two.code) == ("7:2", "vanished")
    assert (three.key, three.body) == ("7:3", b"three")
    assert three.flags == {"\\Seen", "k"}


async def test_a_refused_window_is_asked_for_one_by_one() -> None:
    script = f"""
        {sizes(1, 2, 5, 6)}
        C: f UID FETCH 1:2,5:6 ...
        S: * 1 FETCH (UID 1 INTERNALDATE {SAID_DATE} BODY[] "one" FLAGS ())
        S: f NO [SERVERBUG] Internal error occurred
        C: g UID FETCH 2 ...
        S: g NO [SERVERBUG] Internal error occurred
        C: h UID FETCH 5 ...
        S: * 3 FETCH (UID 5 INTERNALDATE {SAID_DATE} BODY[] "five" FLAGS ())
        S: h OK
        C: i UID FETCH 6 ...
        S: i NO [EXPUNGEISSUED] gone
    """
    async with source(script) as session:
        found = await read(session)
    assert [(each.key, getattr(each, "code", "read")) for each in found] == [
        ("7:1", "read"),
        ("7:2", "unreadable"),
        ("7:5", "read"),
        ("7:6", "vanished"),
    ]


@pytest.mark.parametrize("size", [STREAM_OCTETS - 1, STREAM_OCTETS + 1])
async def test_what_comes_for_the_windows_behind_does_not_hold_up_a_refused_one(size: int) -> None:
    """More than is read ahead, in memory or in a file, that nobody would take: reading stopped, with no deadline."""
    listed = f"""
        {EXAMINE}
        C: s UID FETCH 1:* (UID RFC822.SIZE)
        S: * 1 FETCH (UID 1 RFC822.SIZE 1)
        S: * 2 FETCH (UID 2 RFC822.SIZE {size})
        S: * 3 FETCH (UID 3 RFC822.SIZE {size})
        S: s OK
        {EXAMINE}
    """
    ahead = (2, 3) if size < STREAM_OCTETS else (2,)

    async def refuse_the_first(peer: Peer) -> None:
        for uid in (1, *ahead):
            await peer.hear(f"{uid} UID FETCH {uid} ...")
        peer.say("1 NO [SERVERBUG] once")
        for uid in ahead:
            await large(peer, uid)
        await peer.hear("4 UID FETCH 1 ...")
        peer.say(f'* 1 FETCH (UID 1 FLAGS () INTERNALDATE {SAID_DATE} BODY[] "one")', "4 OK")
        if 3 not in ahead:
            await peer.hear("3 UID FETCH 3 ...")
            await large(peer, 3)

    async def large(peer: Peer, uid: int) -> None:
        peer.octets_out(b"* %d FETCH (UID %d FLAGS () INTERNALDATE NIL BODY[] {%d}\r\n" % (uid, uid, size))
        peer.octets_out(b"x" * size)
        peer.say(b")")
        peer.say(f"{uid} OK")
        await peer.flushed()

    async with source(then(listed, refuse_the_first)) as session:
        with anyio.fail_after(20):
            found = await read(session)
    assert [each.key for each in found if isinstance(each, Message)] == ["7:1", "7:2", "7:3"]
    for each in found:
        if isinstance(each, Message) and not isinstance(each.body, bytes):
            each.body.close()


async def test_a_throttled_window_ends_the_session_instead_of_losing_messages() -> None:
    script = f"""
        {sizes(1)}
        C: f UID FETCH 1 ...
        S: f NO [THROTTLED] slow down
        C: g UID FETCH 1 ...
        S: g NO [THROTTLED] slow down
    """
    async with source(script) as session:
        with pytest.raises(Unavailable):
            await read(session)


async def test_windows_are_asked_for_ahead_and_skipped_keys_not_at_all() -> None:
    heard: list[bytes] = []

    async def three_windows(peer: Peer) -> None:
        heard.extend([await peer.line() for _ in range(3)])  # before any answer
        for line in heard:
            tag, _, rest = line.partition(b" ")
            for part in rest.split()[2].split(b","):
                low, _, high = part.partition(b":")
                for uid in range(int(low), int(high or low) + 1):
                    peer.say(b'* %d FETCH (UID %d FLAGS () INTERNALDATE NIL BODY[] "x")' % (uid, uid))
            peer.say(tag + b" OK")

    uids = [uid for uid in range(1, 191)]
    async with source(then(sizes(*uids), three_windows)) as session:
        found = await read(session, skip={"7:2", "7:190"})  # type: ignore[arg-type]  # a Container will do
    assert [each.key for each in found] == [f"7:{uid}" for uid in uids if uid not in (2, 190)]
    assert [line.split()[3] for line in heard] == [b"1,3:65", b"66:129", b"130:189"]


@pytest.mark.parametrize(
    ("head", "moment"),
    [
        (
            "Received: a; Sat, 03 Feb 2001 05:05:06 +0100\r\nReceived: b; Fri, 02 Feb 2001 04:05:06 +0000\r\n"
            "Date: Mon, 01 Jan 1990 00:00:00 +0000\r\n",
            DATE,
        ),
        ("Received: garbage\r\ndate: Sat, 03 Feb 2001\r\n 04:05:06 +0000\r\n", DATE),
        ("Subject: none\r\n\r\nDate: Mon, 01 Jan 1990 00:00:00 +0000\r\n", None),
        ("Date: Sat, 99 Foo 99999999 04:05:06 +9999\r\n", None),
    ],
)
async def test_a_missing_internaldate_is_taken_from_the_header(
    head: str, moment: datetime | None, caplog: pytest.LogCaptureFixture
) -> None:
    body = f"{head}\r\ntext"

    async def answer(peer: Peer) -> None:
        await peer.hear("f UID FETCH ...")
        octets = b'* 1 FETCH (UID 1 FLAGS () INTERNALDATE "99-Foo-0000 00:00:00 +9999" BODY[] {%d}\r\n' % len(body)
        peer.say(octets + body.encode() + b")", "f OK")

    async with source(then(sizes(1), answer)) as session:
        [message] = await read(session)
    assert isinstance(message, Message)
    if moment is None:
        assert abs((datetime.now(UTC) - message.internal_date).total_seconds()) < 60
    else:
        assert message.internal_date == moment
    assert "internaldate missing key=7:1" in caplog.text


async def test_another_uidvalidity_is_a_changed_mailbox() -> None:
    script = sizes(1).replace("UIDVALIDITY 7", "UIDVALIDITY 6", 1)
    async with source(script) as session:
        with pytest.raises(MailboxChanged):
            await read(session)


async def test_uids_that_do_not_ascend_are_a_broken_server() -> None:
    script = sizes(5, 4).partition("S: s OK")[0]
    async with source(script) as session:
        with pytest.raises(ProtocolError):
            await session.select(BOX)


async def test_a_message_whose_size_is_not_told_is_selected_all_the_same() -> None:
    """What is not selected is in no report: it would be lost without a word."""
    script = f"""
        {EXAMINE}
        C: s UID FETCH 1:* (UID RFC822.SIZE)
        S: * 1 FETCH (UID 4 RFC822.SIZE 1)
        S: * 3 FETCH (UID 6 FLAGS (\\Seen))
        S: * 2 FETCH (UID 5)
        S: * 3 FETCH (UID 6 RFC822.SIZE 3)
        S: s OK
    """
    async with source(script) as session:
        selection = await session.select(BOX)
    assert (list(selection.keys), list(selection.sizes)) == (["7:4", "7:5", "7:6"], [1, 0, 3])


async def test_a_refused_examine_is_an_error_of_the_mailbox() -> None:
    script = """
        C: a EXAMINE "box"
        S: a NO [NOPERM] no
        C: b EXAMINE "box"
        S: b NO what
        C: l LIST "" "box"
        S: l OK
        C: c EXAMINE "box"
        S: c NO what
        C: m LIST "" "box"
        S: * LIST () "/" box
        S: m OK
    """
    async with source(script) as session:
        for kind in (MailboxError, MailboxNotFound, MailboxError):
            with pytest.raises(MailboxError) as caught:
                await session.select(BOX)
            assert type(caught.value) is kind


def test_keys_are_a_sequence_that_takes_no_room() -> None:
    from array import array

    keys = UidKeys(7, array("Q", [1, 5, 9]))
    assert list(keys) == ["7:1", "7:5", "7:9"]
    assert (keys[1], keys[-1], list(keys[1:]), len(keys)) == ("7:5", "7:9", ["7:5", "7:9"], 3)
    assert "7:5" in keys
    assert not any(key in keys for key in ("7:4", "8:5", "7:", "7:x", "5", ""))


# Destination


def appended(outcomes: Sequence[Appended | Rejected]) -> list[int | str | None]:
    return [outcome.uid if isinstance(outcome, Appended) else outcome.code for outcome in outcomes]


async def test_single_appends_are_sent_ahead_and_each_has_its_outcome() -> None:
    script = f"""
        C: a APPEND "box" () {SAID_DATE} {{3+}}
        C| one
        C: b APPEND "box" () {SAID_DATE} {{3+}}
        C| two
        C: c APPEND "box" () {SAID_DATE} {{5+}}
        C| three
        S: a OK [APPENDUID 7 4] stored
        S: b NO [TOOBIG] no
        S: c OK [APPENDUID 7 6] stored
    """
    async with destination(script) as session:
        assert appended(await append_batch(session, BOX, batch("one", "two", "three"))) == [4, "TOOBIG", 6]


@pytest.mark.fault("F13")
async def test_a_full_account_is_raised_after_all_answers_were_read() -> None:
    script = f"""
        C: a APPEND "box" () {SAID_DATE} {{3+}}
        C| one
        C: b APPEND "box" () {SAID_DATE} {{3+}}
        C| two
        S: a NO [OVERQUOTA] full
        S: b OK
        C: s STATUS ...
        S: s OK
    """
    async with destination(script) as session:
        with pytest.raises(OverQuota):
            await append_batch(session, BOX, batch("one", "two"))
        assert await session._exists(b"box")  # in step


async def test_without_literal_plus_one_append_is_under_way() -> None:
    script = f"""
        C: a APPEND "box" () {SAID_DATE} {{3}}
        S: a NO [CANNOT] not this one
        C: b APPEND "box" () {SAID_DATE} {{3}}
        S: + go
        C| two
        S: b OK stored
    """
    async with destination(script, offered="IMAP4rev1") as session:
        assert session._connection.policy is LiteralPolicy.SYNC
        assert appended(await append_batch(session, BOX, batch("one", "two"))) == ["CANNOT", None]


MULTI = "IMAP4rev1 LITERAL+ MULTIAPPEND"
TOGETHER = f"""
    C: a APPEND "box" (\\Seen) {SAID_DATE} {{3+}}
    C| one (\\Seen) {SAID_DATE} {{3+}}
    C| two
"""


@pytest.mark.parametrize(
    ("code", "uids"),
    [
        ("[APPENDUID 7 8:9] ", [8, 9]),
        ("[APPENDUID 7 9,3] ", [9, 3]),
        ("", [None, None]),
        ("[APPENDUID 7 8] ", [None, None]),
        ("[APPENDUID 7 1:4294967295] ", [None, None]),
        ("[APPENDUID x] ", [None, None]),
    ],
)
async def test_a_batch_is_one_command_and_its_ok_the_receipt(code: str, uids: list[int | None]) -> None:
    async with destination(then(TOGETHER, f"S: a OK {code}done"), offered=MULTI) as session:
        assert appended(await append_batch(session, BOX, batch("one", "two", flags=["\\Seen"]))) == uids


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("NO what", RefusedTogether),
        ("NO [TOOBIG] one of them", RefusedTogether),
        ("NO [LIMIT] keywords", RefusedTogether),
        ("NO [OVERQUOTA] full", OverQuota),
        ("NO [UNAVAILABLE] later", Unavailable),
        ("NO [INUSE] later", Unavailable),
        ("NO [SERVERBUG] later", ServerBug),
        ("NO [NOPERM] never", MailboxError),
    ],
)
async def test_a_refused_batch_says_how_far_the_refusal_goes(answer: str, kind: type[Exception]) -> None:
    async with destination(then(TOGETHER, f"S: a {answer}"), offered=MULTI) as session:
        with pytest.raises((AimportError, RefusedTogether)) as caught:
            await append_batch(session, BOX, batch("one", "two", flags=["\\Seen"]))
    assert type(caught.value) is kind


async def test_a_batch_of_one_is_rejected_and_never_a_refused_batch() -> None:
    script = f'C: a APPEND "box" () {SAID_DATE} {{3+}}\nC| one\nS: a NO Message contains bare newlines'
    async with destination(script, offered=MULTI) as session:
        [outcome] = await append_batch(session, BOX, batch("one"))
    assert outcome == Rejected(key=MessageKey("k0"), code="", text="Message contains bare newlines")


@pytest.mark.parametrize("offered", [MULTI, "IMAP4rev1 LITERAL+", "IMAP4rev1"])
async def test_a_bad_costs_the_connection_and_only_the_message_at_fault(offered: str) -> None:
    """Invariant: answers to what was sent before the BAD still count; the session goes on with a new connection."""
    plus = "+" if "LITERAL+" in offered else ""
    one = f'APPEND "box" () {SAID_DATE} {{3{plus}}}'
    go = "" if plus else "S: + go\n"
    if offered == MULTI:
        first = f"C: a {one}\nC| one () {SAID_DATE} {{3+}}\nC| two\nS: a BAD what\n- eof"
    elif plus:
        first = f"C: a {one}\nC| one\nC: b {one}\nC| two\nS: a BAD what\nS: b OK [APPENDUID 7 5]\n- eof"
    else:
        first = f"C: a {one}\n{go}C| one\nC: b {one}\nS: a BAD what\n{go}C| two\nS: b OK [APPENDUID 7 5]\n- eof"
    second = f"C: x {one}\n{go}C| six\nS: x BAD what\n- eof"
    scripts = [then(login(offered), ROOT, part) for part in (first, second)]
    async with scripted(*scripts, then(login(offered), ROOT, logout)) as server:
        async with ImapDestination(server.endpoint()).open() as session:
            if offered == MULTI:
                with pytest.raises(RefusedTogether):
                    await append_batch(session, BOX, batch("one", "two"))
            else:
                assert appended(await append_batch(session, BOX, batch("one", "two"))) == ["BAD", 5]
            assert appended(await append_batch(session, BOX, batch("six"))) == ["BAD"]


@pytest.mark.parametrize(("offered", "size"), [("IMAP4rev1", 3), ("IMAP4rev1 LITERAL+", 9_000_000)])
async def test_a_bad_before_the_literal_was_sent_rejects_its_message(offered: str, size: int) -> None:
    """As a lost connection it would be tried again, with the same end, until the user fails."""

    async def bad(peer: Peer) -> None:
        tag = await peer.hear('a APPEND "box" ...')
        peer.say(f"{tag} BAD what")
        await peer.until_closed()

    scripts = [then(login(offered), ROOT, each) for each in (bad, logout)]
    async with scripted(*scripts) as server:
        async with ImapDestination(server.endpoint()).open() as session:
            assert appended(await append_batch(session, BOX, batch("x" * size))) == ["BAD"]
            assert await append_batch(session, BOX, batch()) == []


async def test_a_bad_to_the_last_message_of_a_mailbox_does_not_fail_the_next_mailbox() -> None:
    refused = f'C: a APPEND "box" () {SAID_DATE} {{3+}}\nC| one\nS: a BAD what\n- eof'
    create = 'C: c CREATE "box"\nS: c OK'
    examine = 'C: e EXAMINE "box"\nS: * OK [UIDVALIDITY 7] x\nS: * OK [UIDNEXT 8] x\nS: e OK\nC: l CLOSE\nS: l OK'
    parts = [refused, f"{create}\n{refused}", f"{examine}\n{refused}", f"{examine}"]
    scripts = [then(login("IMAP4rev1 LITERAL+"), ROOT, part) for part in parts]
    scripts[-1] = then(scripts[-1], logout)
    wanted = [Wanted(run="r", number=1, created_us=1, index=0, fingerprint=fingerprint(b"one"))]
    async with scripted(*scripts) as server:
        async with ImapDestination(server.endpoint()).open() as session:
            assert appended(await append_batch(session, BOX, batch("one"))) == ["BAD"]
            await session.create_mailbox(BOX, subscribe=False)
            assert appended(await append_batch(session, BOX, batch("one"))) == ["BAD"]
            assert await session.position(BOX) == Position(uidvalidity=7, uidnext=8)
            assert appended(await append_batch(session, BOX, batch("one"))) == ["BAD"]
            assert await session.find(BOX, wanted, Position(uidvalidity=7, uidnext=5)) == ()


async def test_after_a_bad_that_throws_the_server_out_of_step_nothing_is_acknowledged() -> None:
    one = f'APPEND "box" () {SAID_DATE} {{3+}}'
    script = f"C: a {one}\nC| one\nC: b {one}\nC| two\nS: a BAD what\nS: * BAD two\nS: two BAD what\n- eof"
    async with scripted(then(login("IMAP4rev1 LITERAL+"), ROOT, script)) as server:
        async with ImapDestination(server.endpoint()).open() as session:
            with pytest.raises(ProtocolError):
                await append_batch(session, BOX, batch("one", "two"))


@pytest.mark.parametrize("offered", [MULTI, "IMAP4rev1 LITERAL+"])
@pytest.mark.fault("F33")
async def test_a_vanished_mailbox_is_made_and_the_messages_sent_once_again(offered: str) -> None:
    one = f'APPEND "box" () {SAID_DATE} {{3+}}'
    sent = f"C| one () {SAID_DATE} {{3+}}\nC| two"
    if offered == MULTI:
        first, again = f"C: a {one}\n{sent}\nS: a NO [TRYCREATE] no", f"C: d {one}\n{sent}\nS: d NO [TRYCREATE] no"
    else:
        first = f"C: a {one}\nC| one\nC: b {one}\nC| two\nS: a NO [TRYCREATE] no\nS: b NO [TRYCREATE] no"
        again = f"C: d {one}\nC| one\nS: d NO [TRYCREATE] no"
    create = 'C: c CREATE "box"\nS: c OK'
    async with destination(then(first, create, again), offered=offered) as session:
        with pytest.raises(MailboxNotFound):
            await append_batch(session, BOX, batch("one", "two"))


async def test_keywords_that_may_be_the_reason_are_left_out_once() -> None:
    script = f"""
        C: a APPEND "box" (Odd \\Seen) {SAID_DATE} {{3+}}
        C| one
        S: a NO [LIMIT] too many keywords
        C: b APPEND "box" (\\Seen) {SAID_DATE} {{3+}}
        C| one
        S: b OK [APPENDUID 7 3] stored
    """
    script = script.replace("(Odd \\Seen)", "(" + " ".join(sorted(["Odd", "\\Seen"])) + ")")
    async with destination(script) as session:
        [outcome] = await append_batch(session, BOX, batch("one", flags=["\\Seen", "Odd"]))
    assert outcome == Appended(key=MessageKey("k0"), uid=outcome.uid, dropped=("Odd",))  # type: ignore[union-attr]


@pytest.mark.parametrize("answer", ["NO date out of range", "BAD invalid date"])
async def test_a_date_before_1970_is_sent_as_it_is_and_changed_only_when_refused_and_told(answer: str) -> None:
    """Dovecot keeps such dates, Cyrus answers BAD, Courier NO (seen): P3, never changed silently."""
    old = batch("one")
    message = replace(old.messages[0], internal_date=datetime(1965, 2, 3, 4, 5, 6, tzinfo=UTC))
    first = f"""
        C: a APPEND "box" () "03-Feb-1965 04:05:06 +0000" {{3+}}
        C| one
        S: a {answer}
    """
    second = """
        C: b APPEND "box" () "01-Jan-1970 00:00:01 +0000" {3+}
        C| one
        S: b OK [APPENDUID 7 3] stored
    """
    begin = then(login("IMAP4rev1 LITERAL+"), ROOT)
    scripts = (
        [then(begin, first, second, logout)]
        if answer.startswith("NO")
        else [then(begin, first, "- eof"), then(begin, second, logout)]
    )
    async with scripted(*scripts) as server, ImapDestination(server.endpoint()).open() as session:
        outcomes = await append_batch(session, BOX, replace(old, messages=(message,)))
    assert outcomes == [Appended(key=MessageKey("k0"), uid=Uid(3), dropped=("INTERNALDATE",))]


async def test_what_is_above_the_limit_of_the_server_is_not_sent() -> None:
    script = f'C: a APPEND "box" () {SAID_DATE} {{3+}}\nC| two\nS: a OK'
    async with destination(script, offered=f"{MULTI} APPENDLIMIT=4") as session:
        assert appended(await append_batch(session, BOX, batch("large", "two", "larger"))) == ["TOOBIG", None, "TOOBIG"]


async def test_a_bye_during_append_leaves_the_outcome_open() -> None:
    script = f'C: a APPEND "box" () {SAID_DATE} {{3+}}\nC| one\nS: * BYE Invalid character in literal\n- close'
    async with scripted(then(login("IMAP4rev1 LITERAL+"), ROOT, script)) as server:
        async with ImapDestination(server.endpoint()).open() as session:
            with pytest.raises(ConnectionLost, match="BYE Invalid character"):
                await append_batch(session, BOX, batch("one"))


async def test_a_mailbox_that_exists_is_made() -> None:
    script = """
        C: a CREATE "box"
        S: a NO [ALREADYEXISTS] there
        C: b CREATE "box"
        S: b NO Mailbox exists
        C: c STATUS "box" ...
        S: c OK
        C: d CREATE "box"
        S: d NO [CANNOT] never
        C: e STATUS "box" ...
        S: e NO
        C: f SUBSCRIBE "INBOX"
        S: f NO disk trouble
    """
    async with destination(script) as session:
        await session.create_mailbox(BOX, subscribe=False)
        await session.create_mailbox(BOX, subscribe=False)
        with pytest.raises(MailboxNameInvalid, match="CANNOT"):
            await session.create_mailbox(BOX, subscribe=False)
        await session.create_mailbox(Mailbox(path=("INBOX",)), subscribe=True)  # logged, not raised


@pytest.mark.parametrize(
    "mailbox",
    [Mailbox(path=("\udc80",)), Mailbox(path=("x",), native="a\r\nb LOGOUT"), Mailbox(path=("x",), native="a\0")],
)
async def test_a_name_that_cannot_be_sent_is_refused_unsent(mailbox: Mailbox) -> None:
    async with destination("") as session:
        with pytest.raises(MailboxNameInvalid):
            await session.create_mailbox(mailbox, subscribe=False)
    async with source("") as reader:
        with pytest.raises(MailboxNameInvalid):
            await reader.select(mailbox)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("INBOX",), "INBOX"),
        (("Sent",), "INBOX.Sent"),
        (("INBOX", "x"), "INBOX.x"),
        (("Old", "INBOX"), "INBOX.Old.INBOX"),
        (("ä",), "INBOX.&AOQ-"),
        (("a\r\nb LOGOUT",), "INBOX.a&AA0ACg-b LOGOUT"),  # modified UTF-7 carries anything
    ],
)
async def test_the_personal_prefix_is_put_before_names_once(path: tuple[str, ...], name: str) -> None:
    first = 'C: n NAMESPACE\nS: * NAMESPACE (("INBOX." ".")) NIL NIL\nS: n OK'
    script = f'C: s SUBSCRIBE "{name}"\nS: s OK'
    if path != ("INBOX",):
        script = f'C: c CREATE "{name}"\nS: c OK\n{script}'
    async with destination(script, first=first, offered="IMAP4rev1 NAMESPACE") as session:
        assert session.separator == "."
        await session.create_mailbox(Mailbox(path=path, separator="."), subscribe=True)


async def test_without_uidnext_the_highest_uid_counts() -> None:
    script = """
        C: a EXAMINE "box"
        S: * 2 EXISTS
        S: * OK [UIDVALIDITY 7] x
        S: a OK
        C: b UID FETCH * (UID)
        S: * 2 FETCH (UID 41)
        S: b OK
        C: c UNSELECT
        S: c OK
        C: d EXAMINE "box"
        S: * 0 EXISTS
        S: d OK
        C: e UNSELECT
        S: e OK
    """
    async with destination(script, offered="IMAP4rev1 UNSELECT") as session:
        assert await session.position(BOX) == Position(uidvalidity=7, uidnext=42)
        assert await session.position(BOX) == Position(uidvalidity=0, uidnext=1)


async def test_find_reads_only_bodies_of_the_sizes_it_wants() -> None:
    script = f"""
        {EXAMINE}
        C: a UID FETCH 5:* (UID RFC822.SIZE INTERNALDATE)
        S: * 1 FETCH (UID 4 RFC822.SIZE 3 INTERNALDATE {SAID_DATE})
        S: * 2 FETCH (UID 5 RFC822.SIZE 9 INTERNALDATE {SAID_DATE})
        S: * 3 FETCH (UID 6 RFC822.SIZE 3 INTERNALDATE {SAID_DATE})
        S: * 4 FETCH (UID 7 RFC822.SIZE 5 INTERNALDATE NIL)
        S: a OK
        C: b UID FETCH 6:7 (UID BODY.PEEK[])
        S: * 3 FETCH (UID 6 BODY[] "one")
        S: * 4 FETCH (UID 7 BODY[] {{5}}
        S: one
        S: )
        S: b OK
        C: c CLOSE
        S: c OK
    """
    wanted = [
        Wanted(run="r", number=1, created_us=1, index=0, fingerprint=fingerprint(body)) for body in (b"one", b"two")
    ]
    async with destination(script) as session:
        stored = await session.find(BOX, wanted, Position(uidvalidity=7, uidnext=5))
    # UID 7 is the same with the line end that Courier adds.
    assert [(each.uid, each.fingerprint, each.reduced, each.internal_date) for each in stored] == [
        (6, fingerprint(b"one"), reduced_digest([b"one"]), int(DATE.timestamp())),
        (7, fingerprint(b"one\r\n"), reduced_digest([b"one"]), None),
    ]


@pytest.mark.parametrize("room", [True, False])
async def test_a_large_message_is_found_again_or_nothing_is_said_of_it(
    room: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is not found is sent again: a message that cannot be looked at must not count as absent."""
    body = b"x" * (STREAM_OCTETS + 1)
    first = f"""
        {EXAMINE}
        C: a UID FETCH 5:* (UID RFC822.SIZE INTERNALDATE)
        S: * 1 FETCH (UID 6 RFC822.SIZE {len(body)} INTERNALDATE {SAID_DATE})
        S: a OK
    """

    async def large(peer: Peer) -> None:
        tag = await peer.hear("b UID FETCH 6 ...")
        if not room:
            monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        peer.octets_out(b"* 1 FETCH (UID 6 BODY[] {%d}\r\n" % len(body) + body + b")\r\n" + tag.encode() + b" OK\r\n")
        await logout(peer)

    wanted = [Wanted(run="r", number=1, created_us=1, index=0, fingerprint=fingerprint(body))]
    async with destination(then(first, large)) as session:
        if room:
            [stored] = await session.find(BOX, wanted, Position(uidvalidity=7, uidnext=5))
            assert stored.fingerprint == fingerprint(body)
        else:
            with pytest.raises(MailboxError, match="unknown"):
                await session.find(BOX, wanted, Position(uidvalidity=7, uidnext=5))


def test_the_transcripts_use_the_date_of_the_batch() -> None:
    assert re.fullmatch(r'"\d\d-Feb-2001 04:05:06 \+0000"', SAID_DATE)


def known(name: str) -> str:
    """A first exchange in which the server says who it is."""
    return (
        f'C: i ID ...\nC: n NAMESPACE\nS: * ID ("name" "{name}")\nS: i OK\nS: * NAMESPACE (("" "/")) NIL NIL\nS: n OK'
    )


WITH_ID = "IMAP4rev1 LITERAL+ ID NAMESPACE UIDPLUS"


@pytest.mark.parametrize(
    ("year", "said", "kept"),
    [
        (1965, '"01-Jan-1970 00:00:00 +0000"', False),
        (2001, '"03-Feb-2001 04:05:06 +0000"', True),
        (2037, '"03-Feb-2037 04:05:06 +0000"', False),  # ahead of the clock: Dovecot writes now
        (2500, '"19-Jan-2038 03:14:07 +0000"', False),
    ],
)
async def test_a_date_that_this_server_would_replace_silently_is_told(year: int, said: str, kept: bool) -> None:
    message = replace(batch("one").messages[0], internal_date=DATE.replace(year=year))
    script = f'C: a APPEND "box" () {said} {{3+}}\nC| one\nS: a OK [APPENDUID 7 3] stored'
    async with destination(script, offered=WITH_ID, first=known("Dovecot")) as session:
        [outcome] = await append_batch(session, BOX, replace(batch("one"), messages=(message,)))
    assert isinstance(outcome, Appended)
    assert outcome.dropped == (() if kept else ("INTERNALDATE",))


async def test_keywords_are_not_sent_where_none_is_kept_and_flagged_is_set_again() -> None:
    script = f"""
        C: a APPEND "box" (\\Flagged) {SAID_DATE} {{3+}}
        C| one
        S: a OK [APPENDUID 7 3] stored
        C: s SELECT "box"
        S: s OK [READ-WRITE] selected
        C: t UID STORE 3 +FLAGS.SILENT (\\Flagged)
        C: e EXAMINE "box"
        S: t OK
        S: e OK
    """
    async with destination(script, offered=WITH_ID, first=known("Microsoft.Exchange.Imap4.Imap4Server")) as session:
        [outcome] = await append_batch(session, BOX, batch("one", flags=["\\Flagged", "Odd"]))
    assert outcome == Appended(key=MessageKey("k0"), uid=Uid(3), dropped=("Odd",))


async def test_a_size_that_was_too_big_is_not_sent_again() -> None:
    script = f"""
        C: a APPEND "box" () {SAID_DATE} {{5+}}
        C| three
        S: a NO [TOOBIG] no
        C: b APPEND "box" () {SAID_DATE} {{3+}}
        C| two
        S: b OK
    """
    async with destination(script) as session:
        assert appended(await append_batch(session, BOX, batch("three"))) == ["TOOBIG"]
        [large, small] = await append_batch(session, BOX, batch("longer", "two"))
    assert isinstance(large, Rejected) and "called 5 too big" in large.text
    assert isinstance(small, Appended)


async def test_an_ok_that_throttles_is_obeyed_before_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    one = f'APPEND "box" () {SAID_DATE} {{3+}}'
    rested: list[float] = []

    async def sleep(seconds: float) -> None:
        rested.append(seconds)

    script = f"C: a {one}\nC| one\nS: a OK Success [THROTTLED]\nC: b {one}\nC| two\nS: b OK"
    async with destination(script) as session:
        assert appended(await append_batch(session, BOX, batch("one"))) == [None]
        monkeypatch.setattr("aimport.stores.imap.destination.rest", sleep)  # others may sleep meanwhile
        assert appended(await append_batch(session, BOX, batch("two"))) == [None]
        monkeypatch.undo()
    [seconds] = rested
    assert 0 < seconds <= 60


async def test_a_full_account_says_how_full_it_is() -> None:
    script = f"""
        C: a APPEND "box" () {SAID_DATE} {{3+}}
        C| one
        S: a NO [OVERQUOTA] full
        C: q GETQUOTAROOT "box"
        S: * QUOTAROOT "box" ""
        S: * QUOTA "" (STORAGE 3000 3072)
        S: q OK
    """
    async with destination(script, offered="IMAP4rev1 LITERAL+ QUOTA") as session:
        with pytest.raises(OverQuota, match="STORAGE 3000 of 3072"):
            await append_batch(session, BOX, batch("one"))


async def test_two_batches_are_under_way_and_a_bad_for_the_first_costs_the_second_nothing() -> None:
    sent = f"C| one () {SAID_DATE} {{3+}}\nC| two"
    one = f'APPEND "box" () {SAID_DATE} {{3+}}'
    first = f"C: a {one}\n{sent}\nC: b {one}\n{sent}\nS: a BAD what\nS: b OK [APPENDUID 7 3:4] stored\n- eof"
    second = f"C: c {one}\nC| one\nS: c OK [APPENDUID 7 5] stored"
    scripts = [then(login(MULTI), ROOT, part) for part in (first, second)]
    async with scripted(scripts[0], then(scripts[1], logout)) as server:
        async with ImapDestination(server.endpoint()).open() as session:
            under_way = [await session.append(BOX, batch("one", "two")) for _ in range(2)]
            assert [type(each) for each in await under_way[0].outcomes()] == [NotStored, NotStored]
            refused = await session.append(BOX, batch("one"))  # nothing goes out while an answer is awaited
            assert [type(each) for each in await under_way[1].outcomes()] == [Appended, Appended]
            assert [type(each) for each in await refused.outcomes()] == [Appended]


async def test_octets_behind_the_answer_to_compress_are_taken_as_compressed() -> None:
    """Invariant: what comes in one packet with the OK, and before it, is read as what it is (RFC 4978 §3)."""

    async def compressing(peer: Peer) -> None:
        tag = await peer.hear("c COMPRESS DEFLATE")
        deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
        data = deflate.compress(b"* 5 EXISTS\r\n") + deflate.flush(zlib.Z_SYNC_FLUSH)
        peer.octets_out(b"* 4 EXISTS\r\n" + tag.encode() + b" OK on\r\n" + data)
        inflate = zlib.decompressobj(-15)
        said = b""
        while b"\r\n" not in said:
            said += inflate.decompress(await peer.octets(1))
        assert said.split(b" ", 1)[1] == b"NOOP\r\n"
        answer = deflate.compress(said.split(b" ")[0] + b" OK\r\n") + deflate.flush(zlib.Z_SYNC_FLUSH)
        peer.octets_out(answer)
        await peer.until_closed()

    async with scripted(then(LOGIN, compressing), check="lenient") as server:
        connection = await connect(server.endpoint())
        assert await connection.compress()
        assert (await connection.command(b"NOOP")).ok
        await connection.close()


async def test_a_server_that_will_not_compress_goes_on_as_before() -> None:
    script = "C: c COMPRESS DEFLATE\nS: c NO [COMPRESSIONACTIVE] TLS does\nC: n NOOP\nS: n OK"
    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint())
        assert not await connection.compress()
        assert (await connection.command(b"NOOP")).ok
        await connection.close()


# Special use

SPECIAL = "IMAP4rev1 LITERAL+ LIST-EXTENDED SPECIAL-USE CREATE-SPECIAL-USE"


@pytest.mark.parametrize("answer", ["OK", "NO", "BAD"])
async def test_uses_are_asked_for_where_they_are_offered_and_a_plain_list_will_do(answer: str) -> None:
    listing = r"""
        S: * LIST (\HasNoChildren \Sent) "/" Gesendet
        S: * LIST (\Trash \Archive \X-Odd) "/" Weg
        S: * LIST () "/" Mehr
    """
    asked = 'C: l LIST "" "*" RETURN (SPECIAL-USE)\n'
    script = (
        f"{asked}{listing}\nS: l OK"
        if answer == "OK"
        else f'{asked}S: l {answer} no\nC: m LIST "" "*"\n{listing}\nS: m OK'
    )
    async with source(script, offered=SPECIAL) as session:
        found = await session.list_mailboxes()
    uses = {mailbox.name: mailbox.uses for mailbox in found}
    assert uses == {"Gesendet": ("\\Sent",), "Weg": ("\\Trash", "\\Archive"), "Mehr": ()}


@pytest.mark.parametrize(
    ("offered", "script"),
    [
        (SPECIAL, 'C: c CREATE "Raus" (USE (\\Sent \\All))\nS: c OK'),
        (SPECIAL, 'C: c CREATE "Raus" (USE (\\Sent \\All))\nS: c NO [ALREADYEXISTS] there'),
        (SPECIAL, 'C: c CREATE "Raus" (USE (\\Sent \\All))\nS: c NO [USEATTR] not two\nC: d CREATE "Raus"\nS: d OK'),
        ("IMAP4rev1 LITERAL+ LIST-EXTENDED SPECIAL-USE", 'C: c CREATE "Raus"\nS: c OK'),
    ],
)
async def test_a_mailbox_is_made_with_its_use_or_without(offered: str, script: str) -> None:
    async with destination(script, offered=offered) as session:
        mailbox = Mailbox(path=("Raus",), separator="/", uses=("\\Sent", "\\All"))
        await session.create_mailbox(mailbox, subscribe=False)
