"""`verify` finds every difference between the journal and the destination, and none that is none.

Invariant: `checked = equal + line_ends + altered + missing`, and nothing is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest

from aimport.errors import ConnectionLost, LoginRefused
from aimport.model import UserJob
from aimport.stores.memory import Failure, MemoryMailbox
from aimport.verify import Difference, Verified, exit_code, verify_user
from tests.pipeline.harness import START, World, bodies, job

NUL = b"Subject: n\0l\r\n\r\n\0\r\n"
BODIES = [*bodies(6), NUL, bodies(1)[0]]  # the last is a second first


async def verified(at: World, *, share: float = 0.0, of: UserJob | None = None) -> tuple[Verified, list[Difference]]:
    before = copy.deepcopy(at.new.accounts)
    differences: list[Difference] = []
    found = await verify_user(of or job("bob"), at.run(), at.journal, share=share, tell=differences.append)
    assert at.new.accounts == before
    if found.status == "done":
        assert found.checked == found.equal + found.line_ends + found.altered.total() + found.missing
        assert len(differences) == found.altered.total() + found.missing + found.doubled
    return found, differences


async def imported() -> World:
    at = World()
    at.fill("bob", "INBOX", BODIES)
    at.fill("bob", "Sent/2019", bodies(3, start=10))
    at.new.mailbox("bob", ("INBOX",)).add(b"was there before\r\n", flags=(), internal_date=START)
    result = await at.import_("bob")
    assert result.status == "done"
    return at


def inbox(at: World) -> MemoryMailbox:
    return at.new.mailbox("bob", ("INBOX",))


def body_of(at: World, place: int, body: bytes) -> None:
    messages = inbox(at).messages
    messages[place] = replace(messages[place], body=body)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
async def test_what_is_as_it_was_acknowledged_is_equal(share: float) -> None:
    found, _ = await verified(await imported(), share=share)
    assert (found.checked, found.equal, found.extra, found.differs) == (11, 11, 0, False)
    assert found.read == {0.0: 0, 1.0: 11}.get(share, found.read)
    assert exit_code([found]) == 0


async def test_sizes_alone_read_no_octets_and_a_share_is_always_the_same() -> None:
    at = await imported()
    reads = [(await verified(at, share=0.4))[0].read for _ in range(2)]
    assert reads[0] == reads[1] and 0 < reads[0] < 11


CASES: list[tuple[str, Callable[[World], object], float, tuple[int, dict[str, int], int, int]]] = [
    ("one is gone", lambda at: inbox(at).messages.__delitem__(3), 0, (1, {}, 0, 0)),
    ("all are gone", lambda at: inbox(at).messages.clear(), 0, (8, {}, 0, 0)),
    ("the mailbox is gone", lambda at: at.new.accounts["bob"].pop(("INBOX",)), 0, (8, {}, 0, 0)),
    ("one has other octets of another number", lambda at: body_of(at, 3, b"x\r\n"), 0, (0, {"other": 1}, 0, 0)),
    ("one has other octets", lambda at: body_of(at, 3, BODIES[2].swapcase()), 1, (0, {"other": 1}, 0, 0)),
    ("one has other octets, and none are read", lambda at: body_of(at, 3, BODIES[2].swapcase()), 0, (0, {}, 0, 0)),
    ("NUL became 0x80", lambda at: body_of(at, 7, NUL.replace(b"\0", b"\x80")), 1, (0, {"nul": 1}, 0, 0)),
    ("somebody delivers", lambda at: add(at, b"new\r\n", 2030), 0, (0, {}, 0, 1)),
    ("somebody delivers a copy", lambda at: add(at, BODIES[2], 2030), 1, (0, {}, 0, 1)),
    ("one came twice", lambda at: add(at, BODIES[2], 2020), 0, (0, {}, 1, 1)),
    ("two changed places", lambda at: swap(at, 2, 3), 1, (0, {}, 0, 0)),
    ("all have new UIDs", lambda at: renumber(at), 0, (0, {}, 0, 0)),
]


def add(at: World, body: bytes, year: int) -> None:
    """With the date of the third message, in another year."""
    date = at.old.mailbox("bob", ("INBOX",)).messages[2].internal_date
    inbox(at).add(body, flags=(), internal_date=date.replace(year=year))


def swap(at: World, one: int, other: int) -> None:
    first, second = inbox(at).messages[one], inbox(at).messages[other]
    inbox(at).messages[one] = replace(second, uid=first.uid)
    inbox(at).messages[other] = replace(first, uid=second.uid)


def renumber(at: World) -> None:
    inbox(at).uidvalidity += 1
    messages = inbox(at).messages
    messages[:] = [replace(each, uid=type(each.uid)(each.uid + 50)) for each in messages[1:]]


@pytest.mark.parametrize(("change", "share", "expected"), [each[1:] for each in CASES], ids=[each[0] for each in CASES])
@pytest.mark.fault("F34")
async def test_every_difference_is_found_and_named(
    change: Callable[[World], object], share: float, expected: tuple[int, dict[str, int], int, int]
) -> None:
    at = await imported()
    change(at)
    found, differences = await verified(at, share=share)
    assert (found.missing, dict(found.altered), found.doubled, found.extra) == expected
    assert exit_code([found]) == (65 if differences else 0)
    for each in differences:
        assert str(each).startswith("bob: INBOX: message ") and each.sent.digest.hex() in str(each)
        if each.what == "altered":
            assert each.found is not None and each.found.digest.hex() in str(each)


async def test_without_uids_octets_decide() -> None:
    at = World()
    at.new.says = lambda _, told: replace(told, uid=None)
    at.fill("bob", "INBOX", BODIES)
    await at.import_("bob")
    assert (await verified(at))[0].equal == len(BODIES)
    del inbox(at).messages[0]  # one of two equal ones
    found, [difference] = await verified(at)
    assert (found.missing, difference.what) == (1, "missing")


async def test_one_of_equal_messages_that_a_server_keeps_stands_for_all() -> None:
    at = World()
    at.new.says = lambda stored, told: replace(told, uid=stored.messages[0].uid)
    at.fill("bob", "INBOX", [BODIES[0]] * 3)
    await at.import_("bob")
    del inbox(at).messages[1:]
    assert (await verified(at))[0].equal == 3


async def test_what_is_in_doubt_is_counted_and_not_checked() -> None:
    at = World(limits=replace(World().limits, attempts=1))
    at.fill("bob", "INBOX", bodies(3))
    at.new.failures.append(Failure(nth=1, error=ConnectionLost("reset"), stored=1))
    await at.import_("bob")
    found, differences = await verified(at)
    assert (found.in_doubt, found.checked, differences) == (3, 0, [])


async def test_a_connection_that_is_lost_is_made_again_and_nothing_is_told_twice() -> None:
    at = await imported()
    del inbox(at).messages[3]
    left = 1

    async def hook(event: object) -> None:
        nonlocal left
        if getattr(event, "verb", "") == "survey" and getattr(event, "mailbox", "") == "Sent/2019" and left:
            left -= 1
            raise ConnectionLost("reset")

    at.new.hook = hook
    found, differences = await verified(at)
    assert (found.status, found.checked, len(differences)) == ("done", 11, 1)


async def test_a_user_who_cannot_be_looked_at_is_told_and_the_code_says_so() -> None:
    at = await imported()

    async def hook(event: object) -> None:
        raise LoginRefused("no")

    at.new.hook = hook
    found, _ = await verified(at)
    assert (found.status, found.error) == ("refused", "no")
    done = Verified(user="x")
    assert exit_code([found]) == 77
    assert exit_code([found, done]) == 75
    assert exit_code([Verified(user="x", missing=1), done]) == 65
    assert exit_code([]) == 0


async def test_a_user_of_whom_nothing_was_sent_has_nothing_to_check() -> None:
    found, _ = await verified(World(), of=job("nobody"))
    assert (found.status, found.checked) == ("done", 0)
