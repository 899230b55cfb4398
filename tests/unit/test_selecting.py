"""Cheapest facts first: what is looked at, and for how many messages."""

from __future__ import annotations

import shlex
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from aimport.octets import wire_form
from aimport.query.facts import ONE_BY_ONE, Fact, Facts
from aimport.query.judge import decide
from aimport.query.parse import parse_query
from aimport.selecting import pick, sift

DAY = datetime(2021, 6, 15, 12, tzinfo=UTC)


class Shelf:
    """Ten messages a day apart, the even ones seen, each longer than the one before; counts what is asked."""

    guid = "0123456789abcdef0123456789abcdef"

    def __init__(self, unreadable: Sequence[int] = ()) -> None:
        self.bodies = [b"Subject: m%d\n\nbody %d\n" % (n, n) + b"x\n" * 10 * n for n in range(10)]
        self.unreadable = unreadable
        self.looked: list[tuple[Fact, int]] = []

    def __len__(self) -> int:
        return len(self.bodies)

    async def look(self, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        self.looked.append((facts, len(places)))
        step = 4 if facts & ONE_BY_ONE else len(places)
        for first in range(0, len(places), step):
            some = places[first : first + step]
            bodies = {at: None if at in self.unreadable else self.bodies[at] for at in some}
            batch = Facts(places=some)
            if Fact.FLAGS in facts:
                batch.flags = [frozenset() if n % 2 else frozenset({"\\Seen"}) for n in range(len(self))]
            if Fact.SPAN in facts:
                batch.least = [len(body) for body in self.bodies]
                batch.most = [2 * len(body) for body in self.bodies]
            if Fact.DATE in facts:
                batch.dates = {at: int((DAY + timedelta(days=at)).timestamp()) for at in some}
            if Fact.SIZE in facts:
                batch.sizes = {at: None if body is None else len(wire_form(body)) for at, body in bodies.items()}
            if Fact.HEADER in facts:
                batch.headers = bodies
            if Fact.BODY in facts:
                batch.bodies = dict(bodies)
            yield batch


@pytest.mark.parametrize(
    ("query", "selected", "looked"),
    [
        ("ALL", range(10), []),
        ("NOT ALL", [], []),
        ("2:3", [1, 2], []),
        ("MAILBOX-GUID 0123456789abcdef0123456789abcdef", range(10), []),
        ("MAILBOX-GUID xx", [], []),
        ("SEEN", [0, 2, 4, 6, 8], [(Fact.FLAGS, 10)]),
        ("SEEN SINCE 20-Jun-2021", [6, 8], [(Fact.FLAGS, 10), (Fact.DATE, 5)]),
        ("SEEN OR SINCE 20-Jun-2021", [0, 2, 4, 5, 6, 7, 8, 9], [(Fact.FLAGS, 10), (Fact.DATE, 5)]),
        ("SUBJECT m4 UNSEEN", [], [(Fact.FLAGS, 10), (Fact.HEADER, 5)]),
        ("NOT SUBJECT m4 SEEN", [0, 2, 6, 8], [(Fact.FLAGS, 10), (Fact.HEADER, 5)]),
        ('1:2 BODY "body 1"', [1], [(Fact.BODY, 2)]),
        ("TEXT m3 OR SUBJECT m4 OR 1", [0, 3, 4], [(Fact.HEADER, 9), (Fact.BODY, 8)]),
        ("LARGER 1000", [], [(Fact.SPAN, 10)]),
        ("LARGER 30", range(1, 10), [(Fact.SPAN, 10), (Fact.SIZE, 1)]),
        ("SEEN SMALLER 40", [0], [(Fact.FLAGS | Fact.SPAN, 10), (Fact.SIZE, 1)]),
        ("LARGER 240 SUBJECT m9", [9], [(Fact.SPAN, 10), (Fact.HEADER, 4), (Fact.BODY, 1)]),
        ('BODY ""', range(10), []),
    ],
)
async def test_nothing_is_looked_at_that_is_decided(
    query: str, selected: Sequence[int], looked: list[tuple[Fact, int]]
) -> None:
    shelf = Shelf()
    assert await sift(parse_query(shlex.split(query)).term, shelf) == list(selected)
    assert shelf.looked == looked


@pytest.mark.parametrize(
    ("query", "selected"),
    [
        ("SUBJECT m5", [3, 5]),
        ("NOT SUBJECT m3", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("SUBJECT m5 UNSEEN", [3, 5]),
        ("SUBJECT m5 SEEN", []),
        ("BODY nowhere", [3]),
        ("SMALLER 20", [3]),
    ],
)
async def test_what_cannot_be_read_to_be_judged_is_selected(query: str, selected: list[int]) -> None:
    """Reading it says why: it is not lost without a word. What cheaper facts rule out needs no reading."""
    shelf = Shelf(unreadable=[3])
    if "SMALLER" in query:
        shelf.bodies[3] = b"x" * 12
    assert await sift(parse_query(query.split()).term, shelf) == selected


async def test_order_is_by_date_and_the_later_stored_is_the_newer() -> None:
    term = parse_query(["SEEN"]).term
    assert list(await pick(term, "stored", Shelf())) == [0, 2, 4, 6, 8]
    assert list(await pick(term, "newest", Shelf())) == [8, 6, 4, 2, 0]
    assert list(await pick(term, "oldest", Shelf())) == [0, 2, 4, 6, 8]


def test_what_is_not_known_is_neither_sure_nor_ruled_out_also_under_not() -> None:
    facts = Facts(places=range(2), flags=[frozenset({"\\Seen"}), frozenset()])
    for query, sure, possible in (
        ("SUBJECT x", [], [0, 1]),
        ("NOT SUBJECT x", [], [0, 1]),
        ("SEEN OR SUBJECT x", [0], [1]),
        ("NOT ( SEEN SUBJECT x )", [1], [0]),
        ("NOT ( SEEN OR NOT SUBJECT x )", [], [1]),
    ):
        assert decide(parse_query(query.split()).term, facts, 2) == (sure, possible)
