"""`--map`, `--exclude`, `--special-use` between two stores: plan and import agree, a resume stays where it was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aimport.account import Run
from aimport.errors import ConnectionLost, NameClash
from aimport.mapping import Naming, parse_rule
from aimport.model import Mailbox
from aimport.pipeline import import_user, plan_user
from aimport.stores.memory import Event, Failure
from tests.pipeline.harness import World, bodies, holds, job

NAMING = Naming(exclude=("Trash*",), rules=(parse_rule("Old=Older"),), special_use=True)


def world() -> World:
    at = World()
    for number, name in enumerate(("INBOX", "Old", "Old/2020", "Sent Items", "Sent Items/x", "Trash", "Trash/y")):
        at.fill("bob", name, bodies(2, start=10 * number))
    at.new.mailbox("bob", ("Gesendet",)).uses = ("\\Sent",)
    return at


def run_of(at: World, naming: Naming = NAMING) -> Run:
    run = at.run()
    run.naming = naming
    return run


async def test_the_plan_shows_what_the_import_does() -> None:
    at = world()
    planned = await plan_user(job("bob"), run_of(at))
    assert planned.failure is None
    assert planned.excluded == ("Trash", "Trash/y")
    shown = {each.source: each.dest for each in planned.mailboxes}
    assert shown == {
        "INBOX": "INBOX", "Old": "Older", "Old/2020": "Older/2020",
        "Sent Items": "Gesendet", "Sent Items/x": "Gesendet/x",
    }  # fmt: skip
    assert {each.source: each.use for each in planned.mailboxes if each.use} == {"Sent Items": "\\Sent"}
    result = await import_user(job("bob"), run_of(at))
    assert (result.status, result.found, result.imported) == ("done", 10, 10), "what is excluded is not found"
    assert {name for name, messages in holds(at.new, "bob").items() if messages} == set(shown.values())


async def test_a_query_that_does_not_ask_for_it_has_nothing_excluded() -> None:
    at = world()
    at.query = ("MAILBOX", "Old*")
    planned = await plan_user(job("bob"), run_of(at))
    assert (planned.excluded, planned.missing) == ((), ())


async def test_children_follow_also_where_the_query_leaves_the_parent_out() -> None:
    at = world()
    at.query = ("MAILBOX", "Sent Items/*")
    planned = await plan_user(job("bob"), run_of(at))
    assert [each.dest for each in planned.mailboxes] == ["Gesendet/x"]


async def test_a_clash_ends_the_user_before_anything_is_written() -> None:
    at = world()
    naming = Naming(rules=(parse_rule("Old=INBOX"),))
    planned = await plan_user(job("bob"), run_of(at, naming))
    assert isinstance(planned.failure, NameClash)
    result = await import_user(job("bob"), run_of(at, naming))
    assert (result.status, result.imported) == ("failed", 0)
    assert not [event for event in at.new.events if event.verb in ("create_mailbox", "append")]


@pytest.mark.parametrize("resumed", [False, True])
async def test_what_began_in_one_mailbox_ends_there(resumed: bool) -> None:
    """Between two tries, or two processes, another mailbox of the destination becomes the one for sent mail."""
    at = world()
    at.query = ("MAILBOX", "Sent Items")
    at.fill("bob", "Sent Items", bodies(100, start=200))
    at.new.failures.append(Failure(nth=2, error=ConnectionLost("reset"), stored=3))
    at.limits = replace(at.limits, attempts=1 if resumed else 3)

    async def change(event: Event) -> None:
        if event.verb == "append" and at.new.appends == 2:
            at.new.mailbox("bob", ("Gesendet",)).uses = ()
            at.new.mailbox("bob", ("Neu",)).uses = ("\\Sent",)

    at.new.hook = change
    result = await import_user(job("bob"), run_of(at))
    if resumed:
        assert result.status == "failed"
        result = await import_user(job("bob"), run_of(at))
    assert (result.status, result.imported) == ("done", 102)
    assert {name: len(messages) for name, messages in holds(at.new, "bob").items()} == {"Gesendet": 102, "Neu": 0}


async def test_a_new_mailbox_is_made_for_its_use() -> None:
    at = World()
    box = at.old.mailbox("bob", ("Raus",))
    box.uses = ("\\Sent",)
    at.fill("bob", "Raus", bodies(2))
    result = await import_user(job("bob"), run_of(at))
    assert result.status == "done"
    assert at.new.mailbox("bob", ("Raus",)).uses == ("\\Sent",)
    assert Mailbox(path=("Raus",)) == Mailbox(path=("Raus",), uses=("\\Sent",)), "a use is no part of a name"
