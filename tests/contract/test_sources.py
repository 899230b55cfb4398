"""What every source keeps (`aimport.interfaces.SourceSession`)."""

from __future__ import annotations

from collections.abc import Container
from contextlib import aclosing

import pytest

from aimport.errors import AimportError, MailboxError
from aimport.interfaces import SourceSession
from aimport.model import Mailbox, Message, Unreadable
from tests.contract.stores import INBOX, Account, held, large_octets, message, source_account

__all__ = ["source_account"]


async def read(session: SourceSession, mailbox: Mailbox, skip: Container[str] = ()) -> list[Message | Unreadable]:
    """All of a mailbox in one list."""
    selection = await session.select(mailbox)
    found: list[Message | Unreadable] = []
    async with aclosing(session.messages(selection, skip=skip)) as lists:
        async for each in lists:
            assert 1 <= len(each) <= 64
            found += each
    return found


async def test_messages_come_in_stored_order_as_they_were_put(account: Account) -> None:
    given = [
        message(0),
        message(1, "\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft"),
        message(2, "\\Seen", "$Forwarded", "Project-X"),
        message(3, "NonJunk", body=b"Subject: crlf\r\n\r\nline\r\n"),
        message(4, body=b"no header\n" + bytes({*range(1, 256)} - {13}) + b"\nend without newline"),
        message(5, "\\Flagged"),
    ]
    put = [each for each in given if not account.refusal(each)]
    account.put(INBOX, put)
    async with account.source().open() as session:
        found = await read(session, account.mailbox(INBOX))
    assert [held(each) for each in found if isinstance(each, Message)] == [account.held(each) for each in put]


async def test_flags_never_hold_recent_and_dates_are_aware(account: Account) -> None:
    account.put(INBOX, [message(0), message(1, "\\Seen")])
    async with account.source().open() as session:
        for each in await read(session, account.mailbox(INBOX)):
            assert isinstance(each, Message)
            assert "\\Recent" not in each.flags
            assert each.internal_date.utcoffset() is not None


async def test_keys_and_sizes_stand_side_by_side_and_every_key_comes_once(account: Account) -> None:
    account.put(INBOX, [message(number) for number in range(70)])
    async with account.source().open() as session:
        selection = await session.select(account.mailbox(INBOX))
        found = await read(session, account.mailbox(INBOX))
    assert len(selection.keys) == len(selection.sizes) == len(set(selection.keys)) == 70
    assert all(size > 0 for size in selection.sizes)
    assert [each.key for each in found] == list(selection.keys)


async def test_keys_are_the_same_in_another_session(account: Account) -> None:
    account.put(INBOX, [message(number) for number in range(3)])
    async with account.source().open() as session:
        first = await session.select(account.mailbox(INBOX))
    async with account.source().open() as session:
        second = await session.select(account.mailbox(INBOX))
    assert list(first.keys) == list(second.keys)


async def test_skipped_messages_are_not_even_looked_at(account: Account) -> None:
    account.put(INBOX, [message(number) for number in range(4)])
    async with account.source().open() as session:
        selection = await session.select(account.mailbox(INBOX))
        account.remove(INBOX, 1)
        async with aclosing(session.messages(selection, skip={selection.keys[1], selection.keys[3]})) as lists:
            found = [each async for several in lists for each in several]
    assert [held(each) for each in found if isinstance(each, Message)] == [
        account.held(message(0)),
        account.held(message(2)),
    ]
    assert len(found) == 2


async def test_a_message_that_went_away_is_said_to_be_unreadable(account: Account) -> None:
    account.put(INBOX, [message(number) for number in range(4)])
    async with account.source().open() as session:
        selection = await session.select(account.mailbox(INBOX))
        account.remove(INBOX, 1)
        async with aclosing(session.messages(selection, skip=())) as lists:
            found = [each async for several in lists for each in several]
    assert [each.key for each in found] == list(selection.keys)
    assert [type(each) for each in found] == [Message, Unreadable, Message, Message]
    assert isinstance(found[1], Unreadable)
    assert found[1].code == "vanished"


async def test_identical_messages_stay_two(account: Account) -> None:
    account.put(INBOX, [message(7), message(7)])
    async with account.source().open() as session:
        found = await read(session, account.mailbox(INBOX))
    assert len({each.key for each in found}) == 2
    assert [held(each) for each in found if isinstance(each, Message)] == [account.held(message(7))] * 2


async def test_an_empty_mailbox_yields_nothing(account: Account) -> None:
    account.put(("Empty",), [])
    async with account.source().open() as session:
        [mailbox] = [each for each in await session.list_mailboxes() if each.path == ("Empty",)]
        assert await read(session, mailbox) == []


async def test_every_mailbox_is_listed_once_under_its_unicode_name(account: Account) -> None:
    paths = [INBOX, ("Entwürfe",), ("Archive", "2023"), ("Проекты", "日本"), ("a&b c",), ("INBOX", "x")]
    for number, path in enumerate(paths):
        account.put(path, [message(number)])
    async with account.source().open() as session:
        mailboxes = await session.list_mailboxes()
        for number, path in enumerate(paths):
            [mailbox] = [mailbox for mailbox in mailboxes if mailbox.path == account.seen_as(path)]
            [found] = await read(session, mailbox)
            assert isinstance(found, Message)
            assert held(found) == account.held(message(number))
    assert mailboxes[0].path == INBOX


async def test_an_unknown_mailbox_is_an_error_of_that_mailbox(account: Account) -> None:
    account.put(INBOX, [message(0)])
    async with account.source().open() as session:
        with pytest.raises(MailboxError):
            await read(session, account.mailbox(("Nope",)))
        assert len(await read(session, account.mailbox(INBOX))) == 1


async def test_an_account_that_cannot_be_had_is_an_error_of_the_user(account: Account) -> None:
    with pytest.raises(AimportError) as caught:
        async with account.missing().open() as session:
            await session.list_mailboxes()
    assert caught.value.scope.name == "USER"


async def test_leaving_early_leaves_the_session_usable(account: Account) -> None:
    big = [message(number, body=b"x: y\n\n" + b"z" * 500_000 + b"%d\n" % number) for number in range(8)]
    account.put(INBOX, big)
    async with account.source().open() as session:
        selection = await session.select(account.mailbox(INBOX))
        async with aclosing(session.messages(selection, skip=())) as lists:
            first = await anext(lists)
        assert len(first) < 8
        assert len(await read(session, account.mailbox(INBOX))) == 8


async def test_two_sessions_at_once_read_the_same(account: Account) -> None:
    account.put(INBOX, [message(number) for number in range(5)])
    source = account.source()
    async with source.open() as one, source.open() as two:
        assert await read(one, account.mailbox(INBOX)) == await read(two, account.mailbox(INBOX))


async def test_reading_changes_nothing_at_the_source(account: Account) -> None:
    account.put(INBOX, [message(0), message(1, "\\Seen", "kw"), message(2)])
    account.put(("Archive", "2023"), [message(3)])
    before = account.state()
    async with account.source().open() as session:
        for mailbox in await session.list_mailboxes():
            await read(session, mailbox)
    assert account.state() == before


async def test_a_message_above_the_threshold_comes_as_it_was_between_its_neighbours(account: Account) -> None:
    put = [message(0), message(1, "\\Seen", body=large_octets()), message(2, body=large_octets() + b"y\n"), message(3)]
    account.put(INBOX, put)
    async with account.source().open() as session:
        found = await read(session, account.mailbox(INBOX))
    assert [held(each) for each in found if isinstance(each, Message)] == [account.held(each) for each in put]
    for each in found:
        if isinstance(each, Message) and not isinstance(each.body, bytes):
            each.body.close()
