"""`--merge`: what is looked at before the first write, and what the plan says that clients will see."""

from __future__ import annotations

import pytest

from aimport.account import Run
from aimport.errors import ConnectionLost, DestinationNotEmpty, UidsWouldRepeat
from aimport.merging import Mails, Merge, Way
from aimport.pipeline import import_user, plan_user
from aimport.stores.memory import Failure
from tests.pipeline.harness import START, World, bodies, job


def run_of(at: World, way: Way) -> Run:
    run = at.run()
    run.merge = Merge(way)
    return run


def add(at: World, path: str, count: int) -> None:
    box = at.new.mailbox("bob", tuple(path.split("/")))
    for body in bodies(count, start=1000):
        box.add(body, flags=(), internal_date=START)


def meanwhile(first: int, gone: int = 0) -> World:
    """A source whose INBOX had `first - 1` messages that are gone, then three, of which one may be gone."""
    at = World()
    at.fill("bob", "INBOX", bodies(first + 2))
    box = at.old.mailbox("bob", ("INBOX",))
    box.messages = [each for each in box.messages if each.uid >= first and each.uid != gone]
    at.new.next_uidvalidity = box.uidvalidity
    return at


# require-empty


@pytest.mark.parametrize("path", ["INBOX", "Elsewhere/deep"])
async def test_a_destination_with_mail_anywhere_is_refused_and_not_touched(path: str) -> None:
    at = World()
    at.fill("bob", "INBOX", bodies(3))
    at.new.mailbox("bob", ("INBOX",))
    add(at, path, 1)
    run = run_of(at, "require-empty")
    planned = await plan_user(job("bob"), run)
    assert isinstance(planned.failure, DestinationNotEmpty)
    assert [each.messages for each in planned.mailboxes] == [3], "the plan says all the same what there is"
    result = await import_user(job("bob"), run)
    assert (result.status, result.imported) == ("failed", 0)
    assert f"1 messages in {path!r}" in (result.error or "")
    assert not [event for event in at.new.events if event.verb in ("create_mailbox", "append")]


@pytest.mark.parametrize("there", [False, True])
async def test_an_empty_destination_or_none_is_taken(there: bool) -> None:
    at = World()
    at.fill("bob", "INBOX", bodies(3))
    if there:
        at.new.mailbox("bob", ("INBOX",))
        at.new.mailbox("bob", ("Empty",))
    assert (await plan_user(job("bob"), run_of(at, "require-empty"))).failure is None
    result = await import_user(job("bob"), run_of(at, "require-empty"))
    assert (result.status, result.imported) == ("done", 3)


async def test_its_own_earlier_mail_does_not_make_a_destination_full() -> None:
    """A try after a lost connection, and a resume of the run, find what the first one has sent."""
    at = World()
    at.fill("bob", "INBOX", bodies(200))
    at.new.failures.append(Failure(nth=2, error=ConnectionLost("reset"), stored=1))
    result = await import_user(job("bob"), run_of(at, "require-empty"))
    assert (result.status, result.imported) == ("done", 200)
    at.fill("bob", "Later", bodies(2))
    resumed = await import_user(job("bob"), run_of(at, "require-empty"))
    assert (resumed.status, resumed.imported) == ("done", 202)


# new-over-old


async def test_uids_that_clients_saw_on_other_mail_are_not_given_out_again() -> None:
    at = meanwhile(6, gone=7)
    add(at, "INBOX", 5)
    run = run_of(at, "new-over-old")
    planned = await plan_user(job("bob"), run)
    assert isinstance(planned.failure, UidsWouldRepeat)
    [mailbox] = planned.mailboxes
    assert mailbox.outlook is not None and mailbox.outlook.uids == "repeat"
    result = await import_user(job("bob"), run)
    assert result.status == "failed" and "--min-next-uid 9 -u bob INBOX" in (result.error or "")
    assert len(at.new.mailbox("bob", ("INBOX",)).messages) == 5
    at.new.mailbox("bob", ("INBOX",)).uidnext = 9  # what the error says to do
    assert (await plan_user(job("bob"), run_of(at, "new-over-old"))).failure is None
    assert (await import_user(job("bob"), run_of(at, "new-over-old"))).imported == 2
    assert [each.uid for each in at.new.mailbox("bob", ("INBOX",)).messages] == [1, 2, 3, 4, 5, 9, 10]


async def test_mail_that_gets_its_own_uids_again_is_not_downloaded_again() -> None:
    at = meanwhile(6)
    add(at, "INBOX", 5)
    planned = await plan_user(job("bob"), run_of(at, "new-over-old"))
    [mailbox] = planned.mailboxes
    seen = mailbox.outlook
    assert planned.failure is None and seen is not None
    assert (seen.uids, seen.existing_uids, seen.imported_uids, seen.uidls) == ("same", (1, 5), (6, 8), "same")
    assert (seen.imap, seen.pop3) == (Mails(), Mails())
    assert seen.emptied == seen.existing and seen.existing.messages == 5
    result = await import_user(job("bob"), run_of(at, "new-over-old"))
    assert (result.status, result.imported) == ("done", 3)
    assert [each.uid for each in at.new.mailbox("bob", ("INBOX",)).messages] == list(range(1, 9))


@pytest.mark.parametrize("refused", [False, True])
async def test_uids_that_moved_behind_a_refused_message_are_told(
    refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can know before that a message will be refused; the next ones then get UIDs that were others'."""
    at = meanwhile(6)
    add(at, "INBOX", 5)
    if refused:
        at.new.refuse = lambda message: ("", "no") if message.key.endswith(":6") else None
    result = await import_user(job("bob"), run_of(at, "new-over-old"))
    assert result.imported == 3 - refused
    assert ("uids moved" in caplog.text and "messages=2" in caplog.text) is refused


async def test_a_resume_does_not_take_its_own_mail_for_a_uidnext_that_is_wrong() -> None:
    """After the first batch UIDNEXT is 56, below what clients saw, and what is left does not begin there."""
    at = meanwhile(6)
    at.fill("bob", "INBOX", bodies(100, start=50))
    add(at, "INBOX", 5)
    at.new.failures.append(Failure(nth=2, error=ConnectionLost("reset"), stored=1))
    result = await import_user(job("bob"), run_of(at, "new-over-old"))
    assert (result.status, result.imported) == ("done", 103)


async def test_in_another_order_or_with_gaps_uids_cannot_stay_the_same() -> None:
    at = meanwhile(6)
    add(at, "INBOX", 5)
    run = run_of(at, "new-over-old")
    run.order = "newest"
    assert isinstance((await plan_user(job("bob"), run)).failure, UidsWouldRepeat)
    run = run_of(at, "new-over-old")
    run.skip_existing = True
    assert (await import_user(job("bob"), run)).status == "failed"


# What clients see


@pytest.mark.parametrize(
    ("way", "parent", "pop3", "emptied"),
    [("old-over-new", "", 3, 0), ("under", "Recovered", 0, 0), ("require-empty", "", 3, 0), ("new-over-old", "", 3, 2)],
)
async def test_the_plan_says_what_clients_download_again(way: Way, parent: str, pop3: int, emptied: int) -> None:
    """Imported mail has new UIDs, so every client has it to download; POP3 clients see the INBOX alone."""
    at = World()
    at.new.next_uidvalidity = 77
    at.fill("bob", "INBOX", bodies(3))
    at.fill("bob", "Sent", bodies(4))
    if way != "require-empty":
        add(at, "INBOX", 2)
    planned = await plan_user(job("bob", parent), run_of(at, way))
    assert planned.failure is None
    looks = [each.outlook for each in planned.mailboxes]
    inbox, sent = looks
    assert inbox is not None and sent is not None
    assert (inbox.imap.messages, sent.imap.messages) == (3, 4)
    assert (inbox.pop3.messages, sent.pop3.messages, sent.uidls) == (pop3, 0, "")
    assert inbox.emptied.messages == emptied
    assert inbox.imap.octets == sum(map(len, bodies(3)))
    if inbox.place is not None:
        assert (inbox.existing_uids, inbox.imported_uids) == ((1, 2), (3, 5))
    if sent.place is None:
        assert sent.imported_uids == (1, 4)


async def test_without_merge_nothing_is_asked_of_the_destination() -> None:
    at = World()
    at.fill("bob", "INBOX", bodies(3))
    add(at, "INBOX", 2)
    planned = await plan_user(job("bob"), at.run())
    assert planned.mailboxes[0].outlook is None
    assert not [event for event in at.new.events if event.verb in ("survey", "position")]
