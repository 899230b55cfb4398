"""The IMAP store against real servers: what goes in comes out, by every way of logging in."""

from __future__ import annotations

import imaplib
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import anyio
import pytest

from aimport import reconcile
from aimport.errors import LoginRefused, MailboxChanged, MailboxNotFound, UserError
from aimport.interfaces import DestinationSession, SourceSession
from aimport.model import (
    Appended,
    Batch,
    Endpoint,
    Mailbox,
    Message,
    MessageKey,
    Position,
    Rejected,
    Secret,
    Security,
    Unreadable,
    Wanted,
)
from aimport.octets import fingerprint, whole, wire_form
from aimport.stores.imap import ImapDestination, ImapSource
from tests.fix_courier import Courier
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.mail import append_batch

INBOX = Mailbox(path=("INBOX",))
NAMES = [
    ("INBOX",),
    ("Entwürfe",),
    ("Archive", "2019", "Ж 日本 😀"),
    ("a&b",),
    ("star* mail",),
    ('quo"te\\d',),
    (" x ",),
]


def endpoint(server: Dovecot, user: str, security: Security = "none", *, login: str = "", auth: str = "") -> Endpoint:
    return Endpoint(
        scheme="imap",
        host=server.host,
        port=server.tls_port if security == "tls" else server.port,
        security=security,
        user=user,
        login=login,
        auth=auth,
        secret=Secret(kind="literal", text=server.master_password if login else server.password),
        tls_ca=str(server.ca_file),
    )


def message(number: int, *flags: str, body: bytes = b"", date: datetime | None = None) -> Message:
    return Message(
        key=MessageKey(f"key{number}"),
        flags=frozenset(flags),
        internal_date=date or datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC) + timedelta(days=number),
        body=body or f"Subject: {number}\r\n\r\nBody of {number}\r\n".encode(),
    )


def batch_of(*messages: Message) -> Batch:
    return Batch(
        run="f00d",
        number=1,
        created_us=1,
        messages=messages,
        fingerprints=tuple(fingerprint(wire_form(whole(each.body))) for each in messages),
    )


def wanted(batch: Batch) -> list[Wanted]:
    return [
        Wanted(run=batch.run, number=1, created_us=1, index=index, fingerprint=each)
        for index, each in enumerate(batch.fingerprints)
    ]


async def append(session: DestinationSession, mailbox: Mailbox, *messages: Message) -> Sequence[Appended | Rejected]:
    return await append_batch(session, mailbox, batch_of(*messages))


async def read(session: SourceSession, mailbox: Mailbox, skip: Sequence[str] = ()) -> list[Message]:
    found: list[Message | Unreadable] = []
    async with aclosing(session.messages(await session.select(mailbox), skip=skip)) as lists:
        async for each in lists:
            found += each
    messages = [each for each in found if isinstance(each, Message)]
    assert len(messages) == len(found)
    return messages


def shown(message: Message) -> tuple[frozenset[str], datetime, bytes]:
    return message.flags, message.internal_date, wire_form(whole(message.body))


LOGINS: list[tuple[Security, bool, str]] = [
    ("none", False, ""),
    ("none", False, "login"),
    ("starttls", False, ""),
    ("tls", False, ""),
    ("tls", True, ""),
]


@pytest.mark.parametrize(("security", "master", "auth"), LOGINS)
async def test_messages_come_back_as_they_were_sent(
    dovecot: Dovecot, unique_user: str, security: Security, master: bool, auth: str
) -> None:
    account = endpoint(dovecot, unique_user, security, login=dovecot.master_user if master else "", auth=auth)
    messages = [
        message(0),
        message(1, "\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft"),
        message(2, "$Forwarded", "Project-X", "\\Seen"),
        message(3, date=datetime(1999, 1, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
        message(4, date=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
        message(5, body=b"no header, lone LF\nand \rCR and 8-bit \xff\xfe" + b"x" * 100_000),
        message(6, body=b"{5}\r\na OK not ours\r\n)"),
    ]
    async with ImapDestination(account).open() as session:
        outcomes = await append(session, INBOX, *messages)
        assert all(isinstance(outcome, Appended) and not outcome.dropped for outcome in outcomes)
    async with ImapSource(account).open() as source:
        assert [shown(each) for each in await read(source, INBOX)] == [shown(each) for each in messages]


async def test_names_of_every_kind_are_made_subscribed_listed_and_read(dovecot: Dovecot, unique_user: str) -> None:
    account = endpoint(dovecot, unique_user)
    async with ImapDestination(account).open() as session:
        for number, path in enumerate(NAMES):
            mailbox = Mailbox(path=path, separator=session.separator)
            await session.create_mailbox(mailbox, subscribe=True)
            await session.create_mailbox(mailbox, subscribe=True)
            await append(session, mailbox, message(number))
    async with ImapSource(account).open() as source:
        listed = {mailbox.path: mailbox for mailbox in await source.list_mailboxes()}
        for number, path in enumerate(NAMES):
            assert [shown(each) for each in await read(source, listed[path])] == [shown(message(number))]
    assert set(dovecot.doveadm("mailbox", "list", "-s", user=unique_user).splitlines()) == {"/".join(p) for p in NAMES}


async def test_a_thousand_messages_go_in_and_come_out_in_order(dovecot: Dovecot, unique_user: str) -> None:
    account = endpoint(dovecot, unique_user)
    messages = [
        message(number, body=b"Subject: %d\r\n\r\n" % number + b"x" * (number * 37 % 9000)) for number in range(1000)
    ]
    async with ImapDestination(account).open() as session:
        await session.create_mailbox(Mailbox(path=("many",)), subscribe=False)
        assert await session.position(Mailbox(path=("many",))) is not None
        outcomes: list[Appended | Rejected] = []
        for at in range(0, 1000, 250):
            outcomes += await append(session, Mailbox(path=("many",)), *messages[at : at + 250])
        assert [outcome.uid for outcome in outcomes if isinstance(outcome, Appended)] == list(range(1, 1001))
        position = await session.position(Mailbox(path=("many",)))
        assert position is not None
        assert position.uidnext == 1001
    async with ImapSource(account).open() as source:
        [mailbox] = [each for each in await source.list_mailboxes() if each.path == ("many",)]
        selection = await source.select(mailbox)
        assert selection.sizes == type(selection.sizes)("Q", [len(each.body) for each in messages])  # type: ignore[call-arg]
        found = await read(source, mailbox)
        assert [each.body for each in found] == [each.body for each in messages]
        assert [each.key for each in found] == list(selection.keys)
        skip = {str(key) for key in selection.keys if not key.endswith("7")}
        assert [each.key for each in await read(source, mailbox, list(skip))] == [
            k for k in selection.keys if k not in skip
        ]


async def test_an_empty_mailbox_is_an_empty_selection(dovecot: Dovecot, unique_user: str) -> None:
    async with ImapSource(endpoint(dovecot, unique_user)).open() as source:
        selection = await source.select(INBOX)
        assert (len(selection.keys), len(selection.sizes)) == (0, 0)
        assert await read(source, INBOX) == []


async def test_reading_leaves_recent_and_seen_alone(dovecot: Dovecot, unique_user: str) -> None:
    account = endpoint(dovecot, unique_user)
    async with ImapDestination(account).open() as session:
        await append(session, INBOX, message(0), message(1))
        await session.position(INBOX)
        await session.find(INBOX, wanted(batch_of(message(0))), Position())
    async with ImapSource(account).open() as source:
        await read(source, INBOX)
    with imaplib.IMAP4(dovecot.host, dovecot.port, timeout=30) as client:
        client.login(unique_user, dovecot.password)
        client.select("INBOX")
        [one, two] = client.fetch("1:2", "(FLAGS)")[1]
    assert isinstance(one, bytes)
    assert isinstance(two, bytes)
    assert imaplib.ParseFlags(one) == imaplib.ParseFlags(two) == (b"\\Recent",)


async def test_find_sees_what_was_stored_since_and_nothing_else(dovecot: Dovecot, unique_user: str) -> None:
    account = endpoint(dovecot, unique_user)
    old, twin, other = message(1), message(2), message(3, body=whole(message(2).body).replace(b"2", b"7"))
    async with ImapDestination(account).open() as session:
        assert await session.position(Mailbox(path=("x",))) is None
        assert await session.find(Mailbox(path=("x",)), wanted(batch_of(old)), Position()) == ()
        await append(session, INBOX, old)
        since = await session.position(INBOX)
        assert since is not None
        assert await session.find(INBOX, wanted(batch_of(old)), since) == []  # n:* has the last message always
        batch = batch_of(twin, twin, other)
        await append_batch(session, INBOX, batch)
        stored = await session.find(INBOX, wanted(batch), since)
        assert [(each.uid, each.fingerprint) for each in stored] == [
            (since.uidnext + index, batch.fingerprints[index]) for index in range(3)
        ]
        assert {each.internal_date for each in stored[:2]} == {int(twin.internal_date.timestamp())}
        everything = await session.find(INBOX, wanted(batch_of(old)), Position(uidvalidity=1, uidnext=99))
        assert [each.uid for each in everything] == [1, 2, 3, 4]  # another UIDVALIDITY: all of that size


@pytest.mark.fault("F33")
async def test_the_mailbox_is_made_when_it_vanished_before_the_append(dovecot: Dovecot, unique_user: str) -> None:
    async with ImapDestination(endpoint(dovecot, unique_user)).open() as session:
        for messages in ([message(0), message(1)], [message(2)]):
            mailbox = Mailbox(path=("gone", str(len(messages))))
            assert all(isinstance(each, Appended) for each in await append(session, mailbox, *messages))


async def test_a_message_without_octets_is_rejected_and_its_neighbours_stored(
    dovecot: Dovecot, unique_user: str
) -> None:
    async with ImapDestination(endpoint(dovecot, unique_user)).open() as session:
        empty = replace(message(1), body=b"")
        first, second, third = await append(session, INBOX, message(0), empty, message(2))
        assert (type(first), type(second), type(third)) == (Appended, Rejected, Appended)


async def test_what_the_server_cannot_hold_is_dropped_and_named(dovecot: Dovecot, unique_user: str) -> None:
    account = endpoint(dovecot, unique_user)
    flags = ["\\Seen", "\\Recent", "\\Odd", "ok", "a]b", "b" * 51, "ü", 'q"', ""]
    async with ImapDestination(account).open() as session:
        [outcome] = await append(session, INBOX, message(0, *flags))
        assert isinstance(outcome, Appended)
        assert set(outcome.dropped) == {"\\Odd", "a]b", "b" * 51, "ü", 'q"', ""}
    async with ImapSource(account).open() as source:
        assert [each.flags for each in await read(source, INBOX)] == [{"\\Seen", "ok"}]


@pytest.mark.parametrize("year", [1, 1969, 2038, 9999])
async def test_a_date_of_any_year_does_not_cost_the_message(dovecot: Dovecot, unique_user: str, year: int) -> None:
    async with ImapDestination(endpoint(dovecot, unique_user)).open() as session:
        zone = timezone(timedelta(hours=14 if year > 9000 else -12))
        [outcome] = await append(session, INBOX, message(0, date=datetime(year, 6, 1, tzinfo=zone)))
        assert isinstance(outcome, Appended), outcome


async def test_the_inbox_prefix_is_put_on_and_taken_off() -> None:
    extra = "namespace inbox {\n inbox = yes\n prefix = INBOX.\n separator = .\n}"
    with run_dovecot(separator=None, extra=extra) as server:
        account = endpoint(server, "bob")
        paths = [("INBOX",), ("Sent",), ("INBOX", "x"), ("Old", "INBOX")]
        async with ImapDestination(account).open() as session:
            assert session.separator == "."
            for number, path in enumerate(paths):
                await session.create_mailbox(Mailbox(path=path, separator="."), subscribe=False)
                await append(session, Mailbox(path=path, separator="."), message(number))
        names = set(server.doveadm("mailbox", "list", user="bob").split())
        assert names == {"INBOX", "INBOX.Sent", "INBOX.x", "INBOX.Old", "INBOX.Old.INBOX"}
        async with ImapSource(account).open() as source:
            listed = {mailbox.path: mailbox for mailbox in await source.list_mailboxes()}
            assert set(listed) == {("INBOX",), ("Sent",), ("x",), ("Old",), ("Old", "INBOX")} or set(listed) == {
                ("INBOX",), ("Sent",), ("x",), ("Old", "INBOX")
            }  # fmt: skip
            assert [each.body for each in await read(source, listed[("Sent",)])] == [message(1).body]


async def test_a_mailbox_that_was_made_anew_is_changed(dovecot: Dovecot, unique_user: str) -> None:
    account = endpoint(dovecot, unique_user)
    box = Mailbox(path=("x",))
    async with ImapDestination(account).open() as session, ImapSource(account).open() as source:
        await append(session, box, message(0))
        selection = await source.select(box)
        dovecot.doveadm("mailbox", "delete", "x", user=unique_user)
        with pytest.raises(MailboxNotFound):
            await anext(source.messages(selection, skip=()))
        await anyio.sleep(1.1)  # Dovecot makes UIDVALIDITY from the second
        await append(session, box, message(0))
        with pytest.raises(MailboxChanged):
            await anext(source.messages(selection, skip=()))


@pytest.mark.fault("F23")
async def test_expunged_messages_are_vanished_and_the_others_come(dovecot: Dovecot, unique_user: str) -> None:
    account = endpoint(dovecot, unique_user)
    async with ImapDestination(account).open() as session, ImapSource(account).open() as source:
        await append(session, INBOX, *(message(number) for number in range(5)))
        selection = await source.select(INBOX)
        dovecot.doveadm("expunge", "mailbox", "INBOX", "uid", "2,5", user=unique_user)
        found: list[Message | Unreadable] = []
        async with aclosing(source.messages(selection, skip=())) as lists:
            async for each in lists:
                found += each
        assert [each.key for each in found] == list(selection.keys)
        assert [each.code for each in found if isinstance(each, Unreadable)] == ["vanished", "vanished"]


async def test_leaving_early_leaves_the_session_usable(dovecot: Dovecot, unique_user: str) -> None:
    account = endpoint(dovecot, unique_user)
    async with ImapDestination(account).open() as session, ImapSource(account).open() as source:
        await append(session, INBOX, *(message(number, body=b"x" * 100_000) for number in range(60)))
        async with aclosing(source.messages(await source.select(INBOX), skip=())) as lists:
            await anext(lists)
        assert len(await read(source, INBOX)) == 60


async def test_a_wrong_password_is_refused(dovecot: Dovecot, unique_user: str) -> None:
    account = replace(endpoint(dovecot, unique_user), secret=Secret(kind="literal", text="wrong"))
    with pytest.raises(LoginRefused, match=f"login of {unique_user}"):
        async with ImapSource(account).open():
            pass


@pytest.mark.parametrize("security", ["tls", "starttls"])
async def test_an_unknown_authority_is_refused(dovecot: Dovecot, unique_user: str, security: Security) -> None:
    account = replace(endpoint(dovecot, unique_user, security), tls_ca="")
    with pytest.raises(UserError, match="certificate does not hold"):
        async with ImapSource(account).open():
            pass


async def keeps_mail(account: Endpoint) -> None:
    """What every server must do for us, with the extensions it has."""
    boxes = [INBOX, Mailbox(path=("Entw\u00fcrfe",)), Mailbox(path=("Archive", "2019"))]
    messages = [
        message(number, *("\\Seen", "$Forwarded")[: number % 3], body=HEADER % number + b"x" * 5000 * number)
        for number in range(5)
    ]
    async with ImapDestination(account).open() as session:
        for box in boxes:
            await session.create_mailbox(box, subscribe=True)
            since = await session.position(box)
            assert since is not None
            batch = batch_of(*messages)
            outcomes = await append_batch(session, box, batch)
            uids = [outcome.uid for outcome in outcomes if isinstance(outcome, Appended)]
            assert uids == list(range(since.uidnext, since.uidnext + 5))
            stored = await session.find(box, wanted(batch), since)
            matched = reconcile.match(
                wanted(batch), [None] * len(uids), stored, claimed_uids=(), claimed_fingerprints=Counter()
            )
            assert [one.uid for one in matched if one is not None] == uids
        made = await append(session, Mailbox(path=("made",)), message(0), message(1))
        assert all(isinstance(outcome, Appended) for outcome in made)
    async with ImapSource(account).open() as source:
        listed = {mailbox.path: mailbox for mailbox in await source.list_mailboxes()}
        for box in boxes:
            found = await read(source, listed[box.path])
            assert [each.flags for each in found] == [each.flags for each in messages]
            assert [each.internal_date for each in found] == [each.internal_date for each in messages]
            # Courier puts a line end where the last one lacks it.
            assert [whole(each.body).rstrip() for each in found] == [whole(each.body).rstrip() for each in messages]


HEADER = b"From: a@example.org\r\nDate: Sat, 03 Feb 2001 04:05:06 +0000\r\nSubject: %d\r\n\r\n"


@pytest.mark.parametrize("admin", [False, True])
@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
async def test_cyrus_keeps_mail(cyrus: Cyrus, unique_user: str, security: Security, admin: bool) -> None:
    await keeps_mail(
        Endpoint(
            scheme="imap",
            host=cyrus.host,
            port=cyrus.tls_port if security == "tls" else cyrus.port,
            security=security,
            user=cyrus.create_user(unique_user),
            login=cyrus.admin if admin else "",
            secret=Secret(kind="literal", text=cyrus.password),
            tls_ca=str(cyrus.ca_file),
        )
    )


async def test_courier_keeps_mail(courier: Courier, unique_user: str) -> None:
    await keeps_mail(
        Endpoint(
            scheme="imap",
            host=courier.host,
            port=courier.port,
            security="none",
            user=courier.create_user(unique_user),
            secret=Secret(kind="literal", text=courier.password),
        )
    )
