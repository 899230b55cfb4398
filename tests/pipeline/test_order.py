"""Order within a mailbox, and turns over all users (`--order`, `--first`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from aimport.account import Run
from aimport.model import Message, Order
from aimport.query.parse import parse_query
from aimport.runners.local import run_plan
from aimport.stores.memory import Event
from tests.pipeline.harness import START, World, bodies, holds, job, multiset

USERS = ("ann", "bob", "cid")


def filled() -> World:
    """Three users with two messages each that are flagged and three that are not, in two mailboxes."""
    world = World()
    for user in USERS:
        world.fill(user, "INBOX", bodies(2), flags=("\\Flagged",))
        world.fill(user, "INBOX", bodies(2, start=10))
        world.fill(user, "Archive", bodies(1, start=20))
    return world


def run_of(world: World, *first: str, order: Order = "stored") -> Run:
    queries = [parse_query(query.split()) for query in first]
    return Run(
        stores=world, journal=world.journal, query=parse_query(world.query), first=queries, order=order,
        limits=world.limits,
    )  # fmt: skip


def appends(world: World) -> list[tuple[str, str, int]]:
    return [(event.account, event.mailbox, event.count) for event in world.new.events if event.verb == "append"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("stored", [1, 0, 3, 2, 2]), ("newest", [3, 2, 2, 1, 0]), ("oldest", [0, 1, 2, 2, 3])],
)
async def test_messages_of_a_mailbox_go_in_the_order_asked_for(order: Order, expected: Sequence[int]) -> None:
    world = World()
    stored = world.old.mailbox("bob", ("INBOX",))
    for number, minute in enumerate([1, 0, 3, 2, 2]):
        stored.add(b"x: %d\r\n\r\n" % number, flags=(), internal_date=START + timedelta(minutes=minute))
    await world.import_("bob", run=run_of(world, order=order))
    held = [(date - START) // timedelta(minutes=1) for _, date, _ in holds(world.new, "bob")["INBOX"]]
    assert held == expected


async def test_of_two_messages_with_one_date_the_later_stored_is_the_newer() -> None:
    world = World()
    stored = world.old.mailbox("bob", ("INBOX",))
    for number in range(3):
        stored.add(b"x: %d\r\n\r\n" % number, flags=(), internal_date=START)
    await world.import_("bob", run=run_of(world, order="newest"))
    assert [body[3:4] for body, _, _ in holds(world.new, "bob")["INBOX"]] == [b"2", b"1", b"0"]


async def test_what_goes_first_goes_first_for_all_users_and_everything_once() -> None:
    world = filled()
    await run_plan([job(user) for user in USERS], run_of(world, "FLAGGED"))
    handed = appends(world)
    assert sorted(handed[:3]) == [(user, "INBOX", 2) for user in USERS]
    assert sorted(handed[3:]) == sorted((user, box, n) for user in USERS for box, n in (("INBOX", 2), ("Archive", 1)))
    for user in USERS:
        assert multiset(world.new, user) == multiset(world.old, user)


async def test_the_result_of_a_user_is_that_of_all_turns() -> None:
    world = filled()
    run = run_of(world, "FLAGGED", "MAILBOX INBOX")
    await run_plan([job(user) for user in USERS], run)
    assert [(result.status, result.found, result.imported, result.error) for result in world.journal.results()] == [
        ("done", 5, 5, None)
    ] * 3
    assert (run.counters.users_done, run.counters.users_failed, run.counters.found, run.counters.messages) == (
        3,
        0,
        15,
        15,
    )


async def test_first_is_about_what_the_query_selects_and_nothing_more() -> None:
    world = filled()
    world.query = ("MAILBOX", "INBOX")
    await run_plan([job("ann")], run_of(world, "MAILBOX Archive OR FLAGGED"))
    assert holds(world.new, "ann").keys() == {"INBOX"}


async def test_a_mailbox_that_only_first_names_need_not_exist() -> None:
    world = filled()
    await run_plan([job("ann")], run_of(world, "MAILBOX Nope"))
    assert [result.status for result in world.journal.results()] == ["done"]


async def test_a_message_rejected_in_the_first_turn_is_not_sent_again_in_the_second() -> None:
    world = filled()
    sent: list[bytes] = []

    def refuse(message: Message) -> tuple[str, str] | None:
        assert isinstance(message.body, bytes)
        sent.append(message.body)
        return ("TOOBIG", "no") if message.body.startswith(b"Subject: 1\r") else None

    world.new.refuse = refuse
    await run_plan([job("ann")], run_of(world, "FLAGGED"))
    [result] = world.journal.results()
    assert (result.status, result.imported, dict(result.rejected)) == ("rejects", 4, {"TOOBIG": 1})
    alone = [body for body in sent if body.startswith(b"Subject: 1\r")]
    assert len(alone) == 2, "once in company, once alone"


async def test_a_run_that_stops_between_turns_has_more_to_do_and_does_it_later() -> None:
    world = filled()
    run = run_of(world, "FLAGGED")

    async def stop(event: Event) -> None:
        if event.verb == "append" and event.account == "cid":
            run.stopping = True

    world.new.hook = stop
    await run_plan([job(user) for user in USERS], run)
    assert {result.status for result in world.journal.results()} <= {"stopped"}
    world.new.hook = None
    await run_plan([job(user) for user in USERS], run_of(world, "FLAGGED"))
    assert {result.status for result in world.journal.results()} == {"done"}
    for user in USERS:
        assert multiset(world.new, user) == multiset(world.old, user)


async def test_who_cannot_begin_is_tried_in_one_turn_only() -> None:
    world = filled()
    await run_plan([job("nobody"), job("ann")], run_of(world, "FLAGGED"))
    opened = [event for event in world.old.events if event.verb == "open_source" and event.account == "nobody"]
    assert len(opened) == 1
    assert {result.user: result.status for result in world.journal.results()} == {"nobody": "failed", "ann": "done"}
