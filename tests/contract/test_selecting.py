"""What every source keeps when only some messages are selected: the same term selects the same in each."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from aimport.model import Message, Order
from aimport.query.dates import Clock
from aimport.query.facts import Fact, asked_by
from aimport.query.parse import parse_query
from tests.contract.stores import INBOX, Account, held, message, source_account

__all__ = ["source_account"]

NOON = datetime(2021, 6, 15, 12, tzinfo=UTC)
CLOCK = Clock(now=int((NOON + timedelta(days=30)).timestamp()))


def messages() -> list[Message]:
    """Six, a day apart, each longer than the one before."""
    flags = [
        (),
        ("\\Seen",),
        ("\\Seen", "\\Flagged"),
        ("$Forwarded",),
        ("\\Deleted", "Work"),
        ("\\Answered", "\\Draft"),
    ]
    return [
        Message(
            key=message(number).key,
            flags=frozenset(given),
            internal_date=NOON + timedelta(days=number),
            body=b"Subject: %d\nFrom: a@b.example\n\n" % number + b"line\n" * (10 * number),
        )
        for number, given in enumerate(flags)
    ]


SELECTED: Final = {
    "ALL": {0, 1, 2, 3, 4, 5},
    "NOT ALL": set(),
    "SEEN": {1, 2},
    "UNSEEN": {0, 3, 4, 5},
    "SEEN NOT FLAGGED": {1},
    "NOT ( SEEN FLAGGED )": {0, 1, 3, 4, 5},
    "FLAGGED OR DELETED OR DRAFT": {2, 4, 5},
    "KEYWORD $forwarded": {3},
    "KEYWORD work OR KEYWORD nope": {4},
    "NOT KEYWORD Work UNSEEN": {0, 3, 5},
    "2:3,6": {1, 2, 5},
    "*": {5},
    "99:*": {5},
    "NOT 1:5": {5},
    "UID 2:4": {1, 2, 3},
    "UID 5:*": {4, 5},
    "UID *": set(),
    "UID 99:*": set(),
    "NOT UID 1:5": {5},
    "SINCE 2021-06-18": {3, 4, 5},
    "BEFORE 18-Jun-2021": {0, 1, 2},
    "NOT ON 18-Jun-2021": {0, 1, 2, 4, 5},
    "SINCE 28days": {2, 3, 4, 5},
    "OLDER 2419200": {0, 1, 2},
    "YOUNGER 2419200": {2, 3, 4, 5},
    "LARGER 153": {3, 4, 5},
    "SMALLER 154 SEEN": {1, 2},
    "LARGER 92 SMALLER 94": {1},
    "NOT LARGER 153": {0, 1, 2},
    "SMALLER 60 OR LARGER 300": {0, 5},
}


async def test_a_term_selects_the_same_messages_in_every_store(account: Account) -> None:
    account.put(INBOX, messages())
    keeps_flags = all(account.held(each).flags == each.flags for each in messages())
    async with account.source().open() as session:
        mailbox = account.mailbox(INBOX)
        all_ = await session.select(mailbox)
        found = {}
        for query in SELECTED:
            if not keeps_flags and Fact.FLAGS in asked_by(parse_query(query.split(), CLOCK).term):
                continue
            some = await session.select(mailbox, parse_query(query.split(), CLOCK).term)
            found[query] = {list(all_.keys).index(key) for key in some.keys}
            assert list(some.sizes) == [all_.sizes[place] for place in sorted(found[query])]
    assert found == {query: SELECTED[query] for query in found}
    assert found == SELECTED or not keeps_flags
    assert len(found) > 10


async def test_messages_are_read_in_the_order_that_was_asked_for(account: Account) -> None:
    put = messages()
    moments = [3, 1, 5, 1, 0, 2]
    put = [replace(each, internal_date=NOON + timedelta(days=days)) for each, days in zip(put, moments, strict=True)]
    account.put(INBOX, put)
    orders: dict[Order, list[int]] = {
        "stored": [0, 1, 2, 3, 4, 5],
        "newest": [2, 0, 5, 3, 1, 4],
        "oldest": [4, 1, 3, 5, 0, 2],
    }
    async with account.source().open() as session:
        for order, expected in orders.items():
            some = await session.select(account.mailbox(INBOX), order=order)
            async with aclosing(session.messages(some, skip=())) as lists:
                found = [each async for several in lists for each in several]
            assert [held(each) for each in found if isinstance(each, Message)] == [
                account.held(put[at]) for at in expected
            ]
            assert all(each.key in some.keys for each in found)


async def test_what_is_selected_is_read_and_nothing_else(account: Account) -> None:
    account.put(INBOX, messages())
    async with account.source().open() as session:
        some = await session.select(account.mailbox(INBOX), parse_query(["SEEN"]).term)
        async with aclosing(session.messages(some, skip=())) as lists:
            found = [each async for several in lists for each in several]
    assert [held(each) for each in found if isinstance(each, Message)] == [
        account.held(each) for each in messages() if "\\Seen" in account.held(each).flags
    ]
