"""One user from listing to result: order, failures where they belong, every message once."""

from __future__ import annotations

import gc
import random
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from aimport.account import Account, Work
from aimport.copying import SERVER_BUGS_IN_A_ROW, cut
from aimport.errors import (
    AimportError,
    ConnectionLost,
    LoginRefused,
    MailboxError,
    MailboxNotFound,
    OverQuota,
    ServerBug,
    TooManyConnections,
    Unavailable,
)
from aimport.limits import LOGINS_REFUSED, Limits
from aimport.model import ConnectionLimits, Message, Uid
from aimport.octets import whole
from aimport.pipeline import import_user
from aimport.stores.memory import Event, Failure
from tests.pipeline.harness import QUICK, START, World, bodies, holds, job, multiset


async def test_all_messages_arrive_in_order_with_flags_and_dates() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(150), flags=("\\Seen", "Project-X"))
    world.fill("bob", "Archive/2019", bodies(3, start=500))
    result = await world.import_("bob")
    assert holds(world.new, "bob") == holds(world.old, "bob")
    assert (result.status, result.found, result.imported, result.balanced) == ("done", 153, 153, True)
    assert result.octets == sum(len(body) for body in bodies(150) + bodies(3, start=500))


async def test_line_ends_become_crlf_only_where_the_destination_wants_them() -> None:
    world = World()
    world.fill("bob", "INBOX", [b"Subject: x\n\nlf\n"])
    await world.import_("bob")
    assert world.new.accounts["bob"][("INBOX",)].messages[0].body == b"Subject: x\n\nlf\n"


async def test_no_mailbox_is_made_without_a_message() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(1))
    world.fill("bob", "Empty", [])
    await world.import_("bob", parent="Imported")
    assert list(holds(world.new, "bob")) == ["Imported/INBOX"]


async def test_one_rejected_message_does_not_lose_its_neighbours() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(200))
    bad = {b"Subject: %d\r\n" % number for number in (0, 77, 78, 199)}

    def refuse(message: Message) -> tuple[str, str] | None:
        return ("TOOBIG", "too big for us") if whole(message.body).split(b"\r\n")[0] + b"\r\n" in bad else None

    world.new.refuse = refuse
    result = await world.import_("bob")
    assert (result.status, result.imported, dict(result.rejected)) == ("rejects", 196, {"TOOBIG": 4})
    sent = holds(world.old, "bob")["INBOX"]
    kept = [message for message in sent if message[0].split(b"\r\n")[0] + b"\r\n" not in bad]
    assert holds(world.new, "bob")["INBOX"] == kept


async def test_an_unreadable_message_is_named_and_the_rest_goes_on() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(70))
    world.old.unreadable = lambda message: ("unreadable", "EIO") if b"Subject: 69" in whole(message.body) else None
    result = await world.import_("bob")
    assert (result.status, result.imported, dict(result.rejected)) == ("rejects", 69, {"unreadable": 1})


@pytest.mark.fault("F23")
async def test_a_message_that_vanished_is_skipped_by_that_name() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(3))

    async def expunge(event: Event) -> None:
        if event.verb == "create_mailbox":
            world.old.accounts["bob"][("INBOX",)].messages.pop(1)

    world.new.hook = expunge
    result = await world.import_("bob")
    assert (result.found, result.imported, dict(result.skipped)) == (3, 2, {"vanished": 1})
    assert result.balanced


@pytest.mark.parametrize("stored", [0, 1, 40, 64])
@pytest.mark.fault("F5")
async def test_a_lost_connection_in_an_append_costs_nothing_and_doubles_nothing(stored: int) -> None:
    """Whatever part of the batch the server kept, the result is that of an uncut run."""
    world = World()
    same = [b"Subject: same\r\n\r\nbody\r\n"] * 30
    world.fill("bob", "INBOX", bodies(100) + same)
    world.new.failures = [
        Failure(nth=1, error=ConnectionLost("cut"), stored=stored),
        Failure(nth=3, error=ConnectionLost("cut"), stored=stored),
    ]
    result = await world.import_("bob")
    assert (result.status, result.imported) == ("done", 130)
    assert multiset(world.new, "bob") == multiset(world.old, "bob")


@pytest.mark.fault("F5")
async def test_any_sequence_of_cuts_ends_like_an_uncut_run() -> None:
    for seed in range(60):
        chance = random.Random(seed)
        world = World(limits=Limits(retry_wait_s=0.0, fence_s=0.0, batch_messages=7, attempts=50))
        for mailbox in ("INBOX", "A", "B/C"):
            world.fill("bob", mailbox, [chance.choice(bodies(9)) for _ in range(chance.randrange(60))])
        world.new.failures = [
            Failure(nth=nth, error=Unavailable(f"cut {nth}"), stored=chance.randrange(8))
            for nth in range(1, 200)
            if chance.random() < 0.3
        ]
        result = await world.import_("bob")
        assert result.status == "done", seed
        assert multiset(world.new, "bob") == multiset(world.old, "bob"), seed
        assert result.balanced, seed


async def test_as_many_batches_are_under_way_as_the_limit_says_and_no_more() -> None:
    world = World(limits=replace(QUICK, batch_messages=10, batches_ahead=3, connections_per_user=1))
    world.fill("bob", "INBOX", bodies(200))
    under_way = most = 0

    async def count(event: Event) -> None:
        nonlocal under_way, most
        if event.verb == "append":
            under_way += 1
            most = max(most, under_way)
        elif event.verb == "outcomes":
            await anyio.wait_all_tasks_blocked()  # the answer comes when nothing more can be sent
            under_way -= 1

    world.new.hook = count
    assert (await world.import_("bob")).imported == 200
    assert most == 3
    assert holds(world.new, "bob") == holds(world.old, "bob")


async def test_a_refusal_does_not_lose_or_double_what_was_sent_behind_it() -> None:
    """Invariant: every message once, whatever part of which batches under way is refused."""
    for seed in range(40):
        chance = random.Random(seed)
        world = World(limits=replace(QUICK, batch_messages=5, batches_ahead=chance.randrange(1, 5)))
        world.new.atomic = chance.random() < 0.7
        world.fill("bob", "INBOX", bodies(97))
        bad = {b"Subject: %d\r\n" % chance.randrange(97) for _ in range(chance.randrange(1, 12))}
        world.new.refuse = lambda message, bad=bad: ("", "no") if message.body.splitlines(True)[0] in bad else None

        async def wait(event: Event, chance: random.Random = chance) -> None:
            if event.verb == "outcomes" and chance.random() < 0.5:
                await anyio.wait_all_tasks_blocked()

        world.new.hook = wait
        result = await world.import_("bob")
        assert (result.imported, sum(result.rejected.values())) == (97 - len(bad), len(bad)), seed
        stored = multiset(world.new, "bob")
        assert max(stored.values()) == 1 and stored <= multiset(world.old, "bob"), seed


@pytest.mark.fault("F13")
async def test_a_full_account_counts_what_was_under_way_when_it_filled_up() -> None:
    world = World(limits=replace(QUICK, batch_messages=10, batches_ahead=3))
    world.new.atomic = False
    world.fill("bob", "INBOX", bodies(100))
    world.new.quota_octets = 25 * len(bodies(100)[99])
    result = await world.import_("bob")
    stored = sum(multiset(world.new, "bob").values())
    assert (result.status, result.imported) == ("quota", stored)
    assert stored >= 25


async def test_a_batch_handed_over_just_when_the_answers_end_is_in_doubt_and_no_bug() -> None:
    world = World(limits=replace(QUICK, batch_messages=10, connections_per_user=1))
    world.fill("bob", "INBOX", bodies(30))
    handed_over, lost = anyio.Event(), anyio.Event()

    async def meet(event: Event) -> None:
        if event.verb == "append" and world.new.appends == 2:
            handed_over.set()
            await lost.wait()
        elif event.verb == "outcomes" and not lost.is_set():
            await handed_over.wait()
            lost.set()
            raise ConnectionLost("cut")

    world.new.hook = meet
    result = await world.import_("bob")
    assert (result.status, result.imported, result.error) == ("done", 30, None)
    assert multiset(world.new, "bob") == multiset(world.old, "bob")


async def test_the_fence_counts_from_the_end_of_the_session_and_not_from_the_intent() -> None:
    """A session that hung for longer than that may still store what its server had received."""
    world = World(limits=replace(QUICK, fence_s=0.2))
    world.fill("bob", "INBOX", bodies(3))
    remote = replace(job("bob"), destination=replace(job("bob").destination, host="mail.example.org"))
    lost_at = looked_at = 0.0

    async def hang(event: Event) -> None:
        nonlocal lost_at, looked_at
        if event.verb == "append" and not lost_at:
            await anyio.sleep(0.4)  # longer than the fence
            lost_at = anyio.current_time()
            raise ConnectionLost("nothing moved")
        if event.verb == "find":
            looked_at = anyio.current_time()

    world.new.hook = hang
    assert (await import_user(remote, world.run())).imported == 3
    assert looked_at - lost_at >= 0.2


@pytest.mark.fault("F5")
async def test_a_delivery_by_others_in_between_is_not_taken_for_ours() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(10))
    world.new.failures = [Failure(nth=1, error=ConnectionLost("cut"), stored=4)]
    delivered = False

    async def deliver(event: Event) -> None:
        nonlocal delivered
        if event.verb == "find" and not delivered:
            delivered = True
            world.new.mailbox("bob", ("INBOX",)).add(b"Subject: new\r\n\r\n", flags=(), internal_date=START)

    world.new.hook = deliver
    assert (await world.import_("bob")).imported == 10
    got = multiset(world.new, "bob")
    assert got - multiset(world.old, "bob") == {("INBOX", b"Subject: new\r\n\r\n", START): 1}
    assert not multiset(world.old, "bob") - got


async def test_a_uidvalidity_that_changes_while_batches_are_settled_loses_no_message() -> None:
    """UIDs claimed in one mailbox say nothing of those found in the next: equal octets would count twice."""
    world = World(limits=replace(QUICK, batch_messages=1, batches_ahead=1))
    world.fill("bob", "INBOX", [b"Subject: twice\r\n\r\n"] * 2)
    world.new.failures = [Failure(nth=2, error=ConnectionLost("cut"), stored=0)]
    looked: list[Event] = []

    async def rebuild(event: Event) -> None:
        if event.verb == "find" and not looked:
            looked.append(event)
            mailbox = world.new.accounts["bob"][("INBOX",)]
            mailbox.uidvalidity += 1
            [message] = mailbox.messages
            mailbox.messages = [replace(message, uid=Uid(9))]
            mailbox.uidnext = 10

    world.new.hook = rebuild
    result = await world.import_("bob")
    assert looked
    assert result.imported == 2
    assert multiset(world.new, "bob") == multiset(world.old, "bob")


async def test_a_failure_that_stays_ends_the_user_with_what_was_done() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(100))
    world.new.failures = [Failure(nth=nth, error=Unavailable("come back later")) for nth in range(2, 100)]
    result = await world.import_("bob")
    assert (result.status, result.found, result.imported) == ("failed", 100, 64)
    assert dict(result.skipped) == {"unfinished": 36}
    assert result.error is not None and "come back later" in result.error
    assert world.new.appends == 1 + world.limits.attempts


@pytest.mark.fault("F13")
async def test_quota_ends_the_user_and_counts_what_fitted() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(100))
    world.new.quota_octets = 70 * len(bodies(1)[0])
    result = await world.import_("bob")
    assert (result.status, result.imported, dict(result.skipped)) == ("quota", 64, {"unfinished": 36})


@pytest.mark.fault("F33")
async def test_a_mailbox_that_fails_does_not_stop_the_others() -> None:
    world = World()
    for mailbox in ("INBOX", "Bad", "Sent"):
        world.fill("bob", mailbox, bodies(5))

    async def fail(event: Event) -> None:
        if event.verb == "append" and event.mailbox == "Bad":
            raise MailboxNotFound("gone", code="NONEXISTENT")

    world.new.hook = fail
    result = await world.import_("bob")
    assert (result.status, result.imported, dict(result.skipped)) == ("failed", 10, {"unfinished": 5})
    assert result.error is not None and result.error.startswith("Bad: ")


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_mailbox_that_fails_leaves_the_sessions_of_both_sides_in_step(side: str) -> None:
    """A command that is cancelled under way takes its connection with it, and then each mailbox to come fails."""
    world = World(limits=replace(QUICK, connections_per_user=1, attempts=1))
    world.fill("bob", "Bad", bodies(400))
    world.fill("bob", "Good", bodies(5, start=400))
    handed_over, failed = anyio.Event(), anyio.Event()
    cancelled: list[Event] = []
    lists = 0

    async def old(event: Event) -> None:
        nonlocal lists
        lists += event.verb == "messages"
        if side == "source" and lists == 2:
            await handed_over.wait()
            raise MailboxError("cannot be read further")
        if side == "destination" and lists == 4:
            await failed.wait()
            await under_way(event, turns=500)

    async def new(event: Event) -> None:
        if event.verb == "append":
            handed_over.set()
        if event.verb in ("append", "outcomes"):
            await under_way(event)

    async def under_way(event: Event, turns: int = 20) -> None:
        try:
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            cancelled.append(event)
            raise

    def refuse(message: Message) -> AimportError | None:
        number = int(whole(message.body).split()[1])
        if side == "source" or number not in range(128, 400):
            return None
        failed.set()
        return MailboxError("NOPERM", code="NOPERM")

    world.old.hook, world.new.hook, world.new.fail = old, new, refuse
    with anyio.fail_after(20):
        result = await world.import_("bob")
    assert not cancelled
    assert (result.status, result.imported) == ("failed", (64 if side == "source" else 128) + 5)
    assert result.balanced
    assert len(holds(world.new, "bob")["Good"]) == 5


async def test_mailboxes_that_failed_keep_no_messages_in_memory() -> None:
    """An account of thousands of bad mailboxes would hold what was under way in each, with open files."""
    world = World(limits=replace(QUICK, connections_per_user=1))
    sent = bodies(2, start=987_000)
    for number in range(20):
        world.fill("bob", f"Bad{number}", sent)
    world.fill("bob", "Last", bodies(1))
    left = -1

    async def look(event: Event) -> None:
        nonlocal left
        if event.verb == "create_mailbox" and event.mailbox == "Last":
            world.new.fail = None
            gc.collect()
            left = sum(isinstance(each, Message) and each.body in sent for each in gc.get_objects())

    world.new.fail = lambda _: MailboxError("NOPERM")
    world.new.hook = look
    assert (await world.import_("bob")).imported == 1
    assert left == 0


async def test_the_lists_of_a_user_who_has_ended_are_gone_before_the_collector_comes() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(3))
    gc.collect()
    gc.disable()
    try:
        await world.import_("bob")
        assert not [each for each in gc.get_objects() if type(each) in (Account, Work)]
    finally:
        gc.enable()


async def test_two_mailboxes_with_one_name_fail_the_user_before_the_first_write() -> None:
    world = World()
    world.new.separator = "."
    world.fill("bob", "a.b", bodies(1))
    world.fill("bob", "a_b", bodies(1))
    result = await world.import_("bob")
    assert result.status == "failed"
    assert result.error is not None and "'a.b'" in result.error and "'a_b'" in result.error
    assert not world.new.accounts


async def test_a_missing_account_fails_that_user_only() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(1))
    run = world.run()
    missing = await world.import_("nobody", run=run)
    assert missing.status == "failed" and missing.error is not None
    assert (await world.import_("bob", run=run)).status == "done"


@pytest.mark.fault("F35")
async def test_a_bug_ends_its_user_and_is_called_one() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(1))

    async def bug(event: Event) -> None:
        if event.verb == "append":
            raise ZeroDivisionError("secret detail")

    world.new.hook = bug
    result = await world.import_("bob")
    assert result.status == "failed" and result.bug
    assert result.error is not None and "internal error" in result.error and "secret" not in result.error


async def test_a_budget_smaller_than_any_message_still_moves_all() -> None:
    world = World(limits=Limits(max_memory=10))
    world.fill("bob", "INBOX", bodies(300))
    run = world.run()
    with anyio.fail_after(20):
        assert (await world.import_("bob", run=run)).imported == 300
    assert run.budget.free == 10


async def test_octets_in_flight_stay_within_the_budget() -> None:
    """A stalled destination stops the reader: no more than the budget and one list is read ahead."""
    world = World(limits=Limits(max_memory=20_000, connections_per_user=1))
    world.fill("bob", "INBOX", bodies(2000, octets_each=1000))
    read = 0
    stalled = anyio.Event()

    async def count(event: Event) -> None:
        nonlocal read
        if event.verb == "messages":
            read += event.count

    async def stall(event: Event) -> None:
        if event.verb == "append":
            stalled.set()
            await anyio.sleep_forever()

    world.old.hook, world.new.hook = count, stall
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(import_user, job("bob"), world.run())
        with anyio.fail_after(10):
            await stalled.wait()
        await anyio.wait_all_tasks_blocked()
        assert read <= 2 * 64
        tasks.cancel_scope.cancel()


async def test_cancelled_in_an_append_the_user_is_recorded_as_stopped_and_resumes() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(100))
    stalled = anyio.Event()

    async def stall(event: Event) -> None:
        if event.verb == "append" and world.new.appends == 2:
            stalled.set()
            await anyio.sleep_forever()

    world.new.hook = stall
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(import_user, job("bob"), world.run())
        with anyio.fail_after(10):
            await stalled.wait()
        tasks.cancel_scope.cancel()
    [result] = world.journal.results()
    assert (result.status, result.imported, dict(result.skipped)) == ("stopped", 64, {"unfinished": 36})
    world.new.hook = None
    assert (await world.import_("bob")).imported == 100
    assert multiset(world.new, "bob") == multiset(world.old, "bob")


@pytest.mark.parametrize("verb", ["begin", "open_source", "list_mailboxes", "select"])
async def test_a_user_who_was_stopped_before_all_mailboxes_were_looked_at_is_not_done(verb: str) -> None:
    """A user who is done is passed over by `resume`."""
    world = World()
    for mailbox in ("A", "B", "INBOX"):
        world.fill("bob", mailbox, bodies(3) if mailbox != "INBOX" else [])
    run = world.run()
    run.stopping = verb == "begin"

    async def stop(event: Event) -> None:
        run.stopping = run.stopping or event.verb == verb

    world.old.hook = stop
    result = await world.import_("bob", run=run)
    assert (result.status, result.balanced) == ("stopped", True)
    world.old.hook = None
    result = await world.import_("bob")
    assert (result.status, result.imported) == ("done", 6)


async def test_a_user_whose_last_try_was_stopped_before_it_began_is_not_done() -> None:
    world = World()
    world.fill("bob", "A", bodies(3))
    run = world.run()

    failing = anyio.Event()

    async def fail(event: Event) -> None:
        if event.verb == "select":
            failing.set()
            raise ConnectionLost("cut", wait_s=0.3)

    async def stop_while_it_waits() -> None:
        await failing.wait()
        await anyio.wait_all_tasks_blocked()
        run.stopping = True

    world.old.hook = fail
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_while_it_waits)
        result = await world.import_("bob", run=run)
    assert result.status == "stopped"


async def test_a_second_run_of_the_same_journal_sends_nothing_again() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(10))
    await world.import_("bob")
    appends = world.new.appends
    result = await world.import_("bob")
    assert (result.imported, world.new.appends) == (10, appends)


async def test_what_was_rejected_is_tried_again_by_a_resume_but_not_within_a_run() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(2))
    world.new.refuse = lambda message: ("TOOBIG", "no") if b"Subject: 1" in whole(message.body) else None
    assert (await world.import_("bob")).status == "rejects"
    world.new.refuse = None
    result = await world.import_("bob")
    assert (result.status, result.imported, dict(result.rejected)) == ("done", 2, {})


async def test_named_mailboxes_that_are_missing_are_told_and_the_others_are_imported() -> None:
    world = World(query=("MAILBOX", "Nope"))
    world.fill("bob", "INBOX", bodies(1))
    result = await world.import_("bob")
    assert result.mailbox_missing and result.error is not None and "Nope" in result.error


async def test_more_lanes_than_connections_allow_are_not_opened() -> None:
    world = World(limits=Limits(connections_per_user=5, connections_per_host=4))
    world.old.host = world.new.host = "mail:143"
    for number in range(8):
        world.fill("bob", f"box{number}", bodies(20))
    result = await world.import_("bob")
    assert result.imported == 160
    assert sum(event.verb == "open_source" for event in world.old.events) == 2


async def test_over_quota_is_not_tried_again() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(1))
    world.new.failures = [Failure(nth=nth, error=OverQuota("full")) for nth in range(1, 9)]
    assert (await world.import_("bob")).status == "quota"
    assert world.new.appends == 1


def test_batches_keep_order_and_limits() -> None:
    limits = Limits(batch_messages=3, batch_octets=100)
    sizes = [10, 10, 10, 10, 200, 60, 60, 1]
    messages = [
        Message(key=str(number), flags=frozenset(), internal_date=START, body=b"x" * size)  # type: ignore[arg-type]
        for number, size in enumerate(sizes)
    ]
    batches = cut(messages, limits)
    assert [message for batch in batches for message in batch] == messages
    assert [[len(message.body) for message in batch] for batch in batches] == [[10, 10, 10], [10], [200], [60], [60, 1]]


async def test_a_message_that_the_server_fails_at_is_rejected_after_three_tries_and_the_rest_arrives() -> None:
    world = World()
    world.fill("bob", "INBOX", bodies(20))
    tries: list[int] = []

    def fail(message: Message) -> AimportError | None:
        if b"Subject: 7\r" not in whole(message.body):
            return None
        tries.append(1)
        return ServerBug("internal error", code="SERVERBUG")

    world.new.fail = fail
    result = await world.import_("bob")
    assert (result.status, result.imported, dict(result.rejected)) == ("rejects", 19, {"SERVERBUG": 1})
    assert len(tries) >= 3


async def test_a_server_that_fails_at_everything_rejects_no_mailbox_away() -> None:
    world = World(limits=replace(QUICK, batch_messages=4, attempts=1))
    world.fill("bob", "INBOX", bodies(200))
    world.new.fail = lambda message: ServerBug("internal error", code="SERVERBUG")
    result = await world.import_("bob")
    assert result.status == "failed"
    assert sum(result.rejected.values()) <= SERVER_BUGS_IN_A_ROW
    assert result.balanced


async def test_a_lane_that_gets_no_connection_leaves_its_work_to_the_others() -> None:
    world = World(limits=replace(QUICK, connections_per_user=4))
    world.new.host = "mail:143"
    for number in range(6):
        world.fill("bob", f"box{number}", bodies(5))

    async def refuse(event: Event) -> None:
        if event.verb == "open_destination" and sum(each.verb == event.verb for each in world.new.events) > 1:
            raise TooManyConnections("NO too many")

    world.new.hook = refuse
    run = world.run()
    result = await world.import_("bob", run=run)
    assert (result.status, result.imported) == ("done", 30)
    assert run.hosts.try_hold(["mail:143"] * 4) is not None  # a limit of this user says nothing of others


@pytest.mark.fault("F20")
async def test_a_host_that_refuses_everybody_is_left_alone() -> None:
    """No storm of logins that locks accounts: after ten refusals in a row nobody else is tried."""
    world = World()
    world.new.host = "mail:143"
    run = world.run()

    async def refuse(event: Event) -> None:
        if event.verb == "open_destination":
            raise LoginRefused("wrong password")

    world.new.hook = refuse
    results = []
    for number in range(15):
        world.fill(f"u{number}", "INBOX", bodies(1))
        results.append(await world.import_(f"u{number}", run=run))
    assert {result.status for result in results} == {"refused"}
    assert sum(event.verb == "open_destination" for event in world.new.events) == LOGINS_REFUSED
    assert results[-1].error is not None and "not tried" in results[-1].error


@pytest.mark.parametrize("wire", [False, True])
async def test_the_byte_budget_does_not_shrink_with_line_ends(wire: bool) -> None:
    """What is taken for a body is given back, though it is sent with other line ends than it came with."""
    world = World(limits=replace(QUICK, max_memory=10_000, connections_per_user=1))
    world.new.wire = wire
    box = world.old.mailbox("bob", ("INBOX",))
    end = b"\n" if wire else b"\r\n"
    for number in range(500):
        box.add(b"Subject: %d" % number + end * 200, flags=(), internal_date=START, wire=not wire)
    run = world.run()
    with anyio.fail_after(60):
        assert (await world.import_("bob", run=run)).imported == 500
    assert run.budget.free == 10_000


@pytest.mark.parametrize(("per_user", "per_host", "messages", "used"), [
    (6, 50, 400, 3),  # of two lanes each may have half
    (0, 50, 400, 2),  # nothing is known: four
    (15, 50, 400, 7),
    (15, 50, 70, 2),  # a connection is worth 32 messages
    (15, 4, 400, 4),  # what the host allows
    (1, 50, 400, 1),
])  # fmt: skip
async def test_where_each_message_waits_several_connections_share_a_mailbox(
    per_user: int, per_host: int, messages: int, used: int
) -> None:
    world = World(limits=replace(QUICK, connections_per_host=per_host))
    world.new.waits, world.new.host = True, "mail:143"
    world.new.limits = ConnectionLimits(per_user=per_user)
    world.fill("bob", "INBOX", bodies(messages))
    run = world.run()
    result = await world.import_("bob", run=run)
    assert (result.status, result.imported) == ("done", messages)
    assert multiset(world.new, "bob") == multiset(world.old, "bob")
    assert sum(event.verb == "open_destination" for event in world.new.events) == used
    assert run.hosts.try_hold(["mail:143"] * per_host) is not None  # all were given back
