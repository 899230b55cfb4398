"""Habits of real servers that cost mail, dates or certainty unless a store knows them.

Habits that are not met yet are marked `known`, with the reason; when a case holds, its mark must go.
"""

from __future__ import annotations

import email
import imaplib
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from _pytest.mark import ParameterSet

from aimport import reconcile
from aimport.model import Appended, Message, Unreadable
from aimport.octets import wire_form
from tests import kept
from tests.contract.stores import INBOX, ImapAccount, batch, held, imap_account, message, wanted
from tests.contract.test_destinations import append, opened
from tests.fix_courier import Courier
from tests.mail import append_batch

NOW = datetime.now(UTC).replace(microsecond=0)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MANY_PARTS = (
    b"Subject: many\n"
    b"MIME-Version: 1.0\n"  # without it Courier does not look
    b"Content-Type: multipart/mixed; boundary=b\n"
    b"\n" + b"--b\nContent-Type: text/plain\n\nx\n" * kept.COURIER_PARTS + b"--b--\n"
)


def case(server: str, *values: object, known: str = "") -> ParameterSet:
    """A row of a table: the server, the values, and why it fails today."""
    marks = [getattr(pytest.mark, server), *([pytest.mark.xfail(reason=known, strict=True)] if known else [])]
    return pytest.param(server, *values, marks=marks)


DATES = [
    case("dovecot", datetime(1965, 1, 1, tzinfo=UTC), 1970),  # else it comes back as 2101 from the index cache
    case("dovecot", EPOCH, 1970),
    case("dovecot", NOW + timedelta(days=2), None),
    case("dovecot", datetime(2038, 6, 1, tzinfo=UTC), None),
    case("cyrus", datetime(1965, 1, 1, tzinfo=UTC), 1970),
    case("cyrus", EPOCH, 1970),
    case("cyrus", EPOCH + timedelta(seconds=1), 1970),
    case("cyrus", datetime(2038, 6, 1, tzinfo=UTC), 2038),
    case("cyrus", datetime(2107, 1, 1, tzinfo=UTC), None),
    case("courier", datetime(1965, 1, 1, tzinfo=UTC), 1970),
    case("courier", EPOCH, 1970),
    case("courier", EPOCH + timedelta(seconds=1), 1970),
    case("courier", datetime(2038, 6, 1, tzinfo=UTC), 2038),
]


@pytest.mark.parametrize(("server", "date", "year"), DATES)
async def test_a_date_is_kept_or_said_to_be_lost(
    server: str, date: datetime, year: int | None, request: pytest.FixtureRequest, unique_user: str
) -> None:
    """`year` is the nearest that the server can hold; None: any, if only it is said."""
    account = imap_account(request, server, unique_user)
    sent = replace(message(1), internal_date=date)
    async with opened(account, INBOX) as session:
        [outcome] = await append(session, account.mailbox(INBOX), sent)
    [seen] = account.look(INBOX)
    assert isinstance(outcome, Appended)
    assert seen.internal_date == int(date.timestamp()) or outcome.dropped == ("INTERNALDATE",)
    assert year in (None, datetime.fromtimestamp(seen.internal_date, UTC).year)


@pytest.mark.parametrize(
    "server",
    [
        case("dovecot"),
        case("cyrus"),
        case("courier"),
    ],
)
async def test_a_date_that_is_refused_does_not_change_the_order(
    server: str, request: pytest.FixtureRequest, unique_user: str
) -> None:
    account = imap_account(request, server, unique_user)
    early = replace(message(1), internal_date=datetime(1965, 1, 1, tzinfo=UTC))
    async with opened(account, INBOX) as session:
        await append(session, account.mailbox(INBOX), message(0), early, message(2))
    assert [seen.digest for seen in account.look(INBOX)] == [held(message(number)).digest for number in range(3)]


@pytest.mark.parametrize(
    ("server", "body"),
    [
        case("dovecot", b"Subject: n\0l\n\n\0\n"),
        case("dovecot", b"Subject: cr\n\nCRCRLF\r\r\nend\n"),
        case("dovecot", b"Subject: cr\n\nend\r"),
        case("cyrus", b"Subject: caf\xe9\n\nx\n"),
        case("cyrus", b"Subject: cr\n\nCRCRLF\r\r\nend\r"),
        case("courier", b"Subject: n\0l\n\n\0\xe9\n"),
        case("courier", b"Subject: no end\n\nx"),
        case("courier", b"Subject: cr\n\nold mac\rend\n"),
        case("courier", MANY_PARTS),
    ],
)
async def test_what_the_server_altered_is_found_again(
    server: str, body: bytes, request: pytest.FixtureRequest, unique_user: str
) -> None:
    """After an OK that was lost, `find` alone stands between this message and its double."""
    account = imap_account(request, server, unique_user)
    sent = batch(message(1, body=body))
    async with opened(account, INBOX) as session:
        since = await session.position(account.mailbox(INBOX))
        assert since is not None
        [outcome] = await append_batch(session, account.mailbox(INBOX), sent)
        assert isinstance(outcome, Appended)
        found = await session.find(account.mailbox(INBOX), wanted(sent), since)
    asked = wanted(sent)
    [match] = reconcile.match(asked, [None], found, claimed_uids=(), claimed_fingerprints=Counter())
    assert match is not None and match.uid == 1


async def test_a_message_of_many_parts_is_read_whole_from_courier(courier: Courier, unique_user: str) -> None:
    """Nothing but a second item tells that octets are missing: BODY[] has the very size that RFC822.SIZE says."""
    with imaplib.IMAP4(courier.host, courier.port, timeout=30) as client:
        client.login(unique_user, courier.password)
        client.append("INBOX", "", "", wire_form(MANY_PARTS))
        client.select("INBOX", readonly=True)
        [whole] = [item[1] for item in client.fetch("1", "(RFC822)")[1] if isinstance(item, tuple)]
        [flags] = client.fetch("1", "(FLAGS)")[1]
    assert whole == wire_form(MANY_PARTS)
    assert isinstance(flags, bytes)
    assert b"\\Seen" not in flags, "RFC822 sets it, but not where EXAMINE opened the mailbox"
    assert sum(1 for _ in email.message_from_bytes(MANY_PARTS).walk()) == kept.COURIER_PARTS + 1
    found: list[Message | Unreadable] = []
    account = ImapAccount(courier, unique_user)
    async with account.source().open() as source:
        selection = await source.select(account.mailbox(INBOX))
        async with aclosing(source.messages(selection, skip=())) as lists:
            async for each in lists:
                found += each
    assert [each.body for each in found if isinstance(each, Message)] == [wire_form(MANY_PARTS)]
