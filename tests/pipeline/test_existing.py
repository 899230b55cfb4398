"""`--skip-existing` leaves out what the destination has, counted, from the destination alone.

Invariant: afterwards the destination holds each message at least as often as the source, and no oftener than it has to.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport import octets
from aimport.errors import ConnectionLost
from aimport.model import UserJob
from aimport.pipeline import import_user, plan_user
from aimport.results import UserResult
from aimport.stores.memory import Failure
from tests.pipeline.harness import START, World, job


def named(number: int, text: bytes = b"text") -> bytes:
    return b"Message-ID: <%d@example.org>\r\nSubject: s\r\n\r\n%s\r\n" % (number, text)


def unnamed(text: bytes) -> bytes:
    return b"Subject: s\r\n\r\n%s\r\n" % text


def world(here: Sequence[bytes], there: Sequence[bytes]) -> World:
    at = World()
    at.fill("bob", "INBOX", here)
    box = at.new.mailbox("bob", ("INBOX",))
    for body in there:
        box.add(body, flags=(), internal_date=START.replace(year=2001))
    return at


async def imported(at: World, of: UserJob | None = None) -> UserResult:
    run = at.run()
    run.skip_existing = True
    return await import_user(of or job("bob"), run)


def held(at: World) -> Counter[bytes]:
    return Counter(octets.wire_form(each.body) for each in at.new.mailbox("bob", ("INBOX",)).messages)


ALL = [named(number) for number in range(6)]
SHORT = unnamed(b"one")

CASES = [
    ("nothing is there", ALL, [], 0),
    ("all is there", ALL, ALL, 6),
    ("in another order", ALL, ALL[::-1], 6),
    ("half is there", ALL, ALL[::2], 3),
    ("others are there", ALL, [named(50), named(51)], 0),
    ("two here and one there", [ALL[0], ALL[0]], [ALL[0]], 1),
    ("one here and two there", [ALL[0]], [ALL[0], ALL[0]], 1),
    ("line ends differ", ALL, [body.replace(b"\r\n", b"\n") for body in ALL], 6),
    ("an equal Message-ID is not enough", [named(1, b"one")], [named(1, b"longer")], 0),
    ("equal headers without a name, other octets", [unnamed(b"one")], [unnamed(b"two")], 0),
    ("equal headers without a name, equal octets", [SHORT, SHORT], [SHORT], 1),
    ("two with one header", [unnamed(b"one"), unnamed(b"two")], [unnamed(b"two"), unnamed(b"one")], 2),
    ("no header", [b"just text\r\n"], [b"just text\r\n"], 1),
    ("NUL became 0x80", [named(1, b"n\0l")], [named(1, b"n\x80l")], 1),
    ("an 8-bit header was masked", [named(1).replace(b": s", b": \xe9")], [named(1).replace(b": s", b": X")], 1),
    ("the last line end was added", [named(1)[:-2]], [named(1)], 1),
    ("CRs are gone", [named(1, b"old mac\rline\rend")], [named(1, b"old maclineend")], 1),
]


@pytest.mark.parametrize(("here", "there", "present"), [each[1:] for each in CASES], ids=[each[0] for each in CASES])
async def test_what_is_there_is_left_out_and_counted(here: list[bytes], there: list[bytes], present: int) -> None:
    at = world(here, there)
    result = await imported(at)
    assert (result.status, result.found) == ("done", len(here))
    assert (result.present, result.imported) == (present, len(here) - present)
    assert held(at).total() == len(there) + len(here) - present


@given(
    here=st.lists(st.sampled_from([*ALL[:3], unnamed(b"one"), unnamed(b"two"), b"text\r\n"]), max_size=8),
    there=st.lists(st.sampled_from([*ALL[:3], unnamed(b"one"), unnamed(b"two"), b"text\r\n"]), max_size=8),
)
async def test_the_union_of_both_as_multisets_is_there(here: list[bytes], there: list[bytes]) -> None:
    at = world(here, there)
    result = await imported(at)
    assert held(at) == Counter(here) | Counter(there)
    assert result.present == (Counter(here) & Counter(there)).total()


async def test_a_second_run_imports_nothing_and_the_plan_says_so() -> None:
    at = world(ALL, [])
    await imported(at)
    again = World(old=at.old, new=at.new)
    run = again.run()
    run.skip_existing = True
    planned = await plan_user(job("bob"), run)
    assert (planned.mailboxes, planned.failure) == ((), None)
    result = await imported(again)
    assert (result.present, result.imported) == (6, 0)


@pytest.mark.parametrize("uids", [True, False])
async def test_what_was_just_imported_is_not_taken_for_another_copy(uids: bool) -> None:
    """Three equal messages, one there; the connection is lost after the first of the two that are missing."""
    at = world([ALL[0]] * 3, [ALL[0]])
    at.limits = replace(at.limits, batch_messages=1, batches_ahead=1)
    if not uids:
        at.new.says = lambda _, told: replace(told, uid=None)
    at.new.failures.append(Failure(nth=2, error=ConnectionLost("reset")))
    result = await imported(at)
    assert (result.status, result.present, result.imported) == ("done", 1, 2)
    assert held(at) == Counter({ALL[0]: 3})


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_breaks_each_message_is_there_as_often_as_it_has_to(seed: int) -> None:
    chance = random.Random(seed)
    here = [chance.choice(ALL) for _ in range(12)]
    there = [chance.choice(ALL) for _ in range(6)]
    at = world(here, there)
    at.limits = replace(at.limits, batch_messages=2, attempts=20)
    for nth in chance.sample(range(1, 8), 3):
        at.new.failures.append(Failure(nth=nth, error=ConnectionLost("reset"), stored=chance.randrange(3)))
    result = await imported(at)
    assert result.status == "done" and result.balanced
    assert held(at) == Counter(here) | Counter(there)


async def test_headers_alone_are_read_of_what_is_there_and_nothing_where_sizes_differ() -> None:
    big = [named(number, b"x" * 100_000) for number in range(3)]
    at = world(big, [*big, *ALL])
    await imported(at)
    assert not [event for event in at.old.events if event.verb == "messages"]
    at = world(ALL, [named(9, b"x" * 5000)])
    await imported(at)
    looked = [event.count for event in at.new.events if event.verb == "look"]
    assert sum(looked) == 1, "its size, and no header"


async def test_a_mailbox_that_is_not_there_yet_is_made_and_filled() -> None:
    at = World()
    at.fill("bob", "Sent", ALL)
    at.new.mailbox("bob", ("INBOX",))
    assert (await imported(at)).imported == 6
