"""What the destination acknowledged is looked for at the end of each mailbox.

Invariant: what is not there is sent once more and never more often; what is there under another UID is not sent again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from aimport.errors import ConnectionLost
from aimport.model import Appended, Uid
from aimport.pipeline import import_user
from aimport.results import UserResult
from aimport.stores.memory import Event, Failure, MemoryMailbox, MemoryStore
from tests.pipeline.harness import World, bodies, holds, job


class Far(World):
    """The destination is a server's: it may lose what it acknowledged."""

    async def imported(self) -> UserResult:
        here = job("bob")
        return await import_user(replace(here, destination=replace(here.destination, host="mail")), self.run())

    @property
    def inbox(self) -> MemoryMailbox:
        return self.new.mailbox("bob", ("INBOX",))

    def verbs(self, verb: str) -> int:
        return sum(event.verb == verb for event in self.new.events)


def world(count: int = 10) -> Far:
    at = Far()
    at.fill("bob", "INBOX", bodies(count))
    return at


def at_first(store: MemoryStore, verb: str, act: Callable[[], None], *, times: int = 1) -> None:
    """Does `act` when `verb` is first called, before it is done."""
    left = times

    async def hook(event: Event) -> None:
        nonlocal left
        if event.verb == verb and left:
            left -= 1
            act()

    store.hook = hook


def kept(at: Far) -> list[bytes]:
    return sorted(body for body, _, _ in holds(at.new, "bob")["INBOX"])


async def test_a_mailbox_in_order_is_looked_at_once_and_no_octets_are_read() -> None:
    at = world()
    result = await at.imported()
    assert (result.status, result.imported) == ("done", 10)
    assert (at.verbs("survey"), at.verbs("find")) == (1, 0)


async def test_a_local_store_is_not_asked() -> None:
    at = world()
    assert (await at.import_("bob")).status == "done"
    assert at.verbs("survey") == 0


@pytest.mark.parametrize("lost", [1, 4, 10])
@pytest.mark.fault("F34")
async def test_what_the_server_acknowledged_and_lost_is_sent_once_more(lost: int) -> None:
    at = world()
    at_first(at.new, "survey", lambda: at.inbox.messages.__delitem__(slice(2, 2 + lost)))
    result = await at.imported()
    assert (result.status, result.found, result.imported) == ("done", 10, 10)
    assert kept(at) == sorted(bodies(10))
    assert result.octets == sum(map(len, bodies(10)))


@pytest.mark.fault("F34")
async def test_what_is_lost_again_and_again_is_told_and_its_neighbours_arrive() -> None:
    at = world()
    poison = bodies(10)[3]

    def lose() -> None:
        at.inbox.messages[:] = [each for each in at.inbox.messages if each.body != poison]

    at_first(at.new, "survey", lose, times=9)
    result = await at.imported()
    assert (result.status, result.imported, dict(result.rejected)) == ("rejects", 9, {"lost": 1})
    assert kept(at) == sorted(set(bodies(10)) - {poison})
    assert sum(event.count for event in at.new.events if event.verb == "append") == 11, "once more, and no oftener"


async def test_a_wrong_uid_costs_a_look_and_no_second_copy() -> None:
    at = world()
    at.new.says = lambda _, told: replace(told, uid=Uid((told.uid or 0) + 5))
    result = await at.imported()
    assert (result.status, result.imported) == ("done", 10)
    assert kept(at) == sorted(bodies(10))
    uids = {entry.outcome.uid for entry in at.journal.entries("bob") if isinstance(entry.outcome, Appended)}
    assert uids == {each.uid for each in at.inbox.messages}


async def test_a_server_that_keeps_one_of_equal_messages_is_not_sent_the_others_again() -> None:
    """Gmail answers the second with the UID of the first."""
    at = Far()
    at.fill("bob", "INBOX", [bodies(1)[0]] * 3)

    def one_is_enough(stored: MemoryMailbox, told: Appended) -> Appended:
        del stored.messages[1:]
        return replace(told, uid=stored.messages[0].uid)

    at.new.says = one_is_enough
    result = await at.imported()
    assert (result.status, result.imported) == ("done", 3)
    assert len(at.inbox.messages) == 1


async def test_without_uids_too_few_messages_are_noticed_and_found_by_content() -> None:
    at = world()
    at.new.says = lambda _, told: replace(told, uid=None)
    at_first(at.new, "survey", lambda: at.inbox.messages.__delitem__(slice(0, 3)))
    result = await at.imported()
    assert (result.status, result.imported) == ("done", 10)
    assert kept(at) == sorted(bodies(10))


async def test_another_uidvalidity_makes_the_uids_unknown_and_sends_nothing_again() -> None:
    at = world()

    def renumber() -> None:
        at.inbox.uidvalidity += 100

    at_first(at.new, "survey", renumber)
    result = await at.imported()
    assert (result.status, result.imported) == ("done", 10)
    assert kept(at) == sorted(bodies(10))


async def test_a_mailbox_that_was_made_anew_meanwhile_gets_its_mail_again() -> None:
    at = world()

    def replace_it() -> None:
        del at.new.accounts["bob"]["INBOX",]
        at.new.mailbox("bob", ("INBOX",))

    at_first(at.new, "survey", replace_it)
    result = await at.imported()
    assert (result.status, result.imported) == ("done", 10)
    assert kept(at) == sorted(bodies(10))


@pytest.mark.fault("F33")
async def test_a_mailbox_that_is_gone_fails_with_the_number_of_messages_that_went_with_it() -> None:
    at = world()
    at_first(at.new, "survey", lambda: at.new.accounts["bob"].clear())
    result = await at.imported()
    assert result.status == "failed"
    assert result.error is not None and "is gone, and with it 10 messages" in result.error


def in_doubt(at: Far) -> Callable[[Event], Awaitable[None]]:
    """The receipt of the first batch is lost; its message is not there yet when it is looked for, and is later."""
    late: list[bytes] = []

    async def hook(event: Event) -> None:
        box = at.new.accounts.get("bob", {}).get(("INBOX",))
        if box is None:
            return
        if event.verb == "find" and not late:
            late.append(box.messages.pop().body)
        elif event.verb == "survey" and len(late) == 1:
            date = at.old.mailbox("bob", ("INBOX",)).messages[0].internal_date
            box.add(late[0], flags=["\\Seen"], internal_date=date)
            late.append(b"")

    return hook


async def test_a_batch_that_was_stored_after_all_is_told_as_a_possible_duplicate() -> None:
    at = world(1)
    at.new.failures.append(Failure(nth=1, error=ConnectionLost("reset"), stored=1))
    at.new.hook = in_doubt(at)
    result = await at.imported()
    assert (result.status, result.imported, result.maybe_duplicate) == ("done", 1, 1)
    assert len(at.inbox.messages) == 2


async def test_a_copy_that_somebody_else_delivers_is_no_duplicate_of_ours() -> None:
    """It has a date of its own."""
    at = world(1)
    at.new.failures.append(Failure(nth=1, error=ConnectionLost("reset"), stored=1))

    def deliver() -> None:
        first = at.inbox.messages[0]
        at.inbox.add(first.body, flags=[], internal_date=first.internal_date.replace(year=2031))

    at_first(at.new, "survey", deliver)
    result = await at.imported()
    assert (result.status, result.imported, result.maybe_duplicate) == ("done", 1, 0)
    assert len(at.inbox.messages) == 2
