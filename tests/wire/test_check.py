"""`aimport check` against scripted servers: what it asks, what it never does, what it makes of the answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from aimport.account import Run
from aimport.checking import Checked, Checker
from aimport.errors import DestinationNotEmpty, LoginRefused, NameClash, OverQuota, UsageError
from aimport.limits import LOGINS_REFUSED
from aimport.merging import Merge
from aimport.model import Endpoint, UserJob
from aimport.query.parse import parse_query
from aimport.results import exit_code
from aimport.runners.ordered import each_in_order
from tests.wire.server import QUICK, Call, Server, Wires, bodies, job

pytestmark = pytest.mark.timeout(60)

HARMLESS = {
    "CAPABILITY", "AUTHENTICATE", "ID", "NAMESPACE", "LIST", "STATUS", "EXAMINE", "GETQUOTAROOT", "UID FETCH",
    "UID SEARCH", "LOGOUT", "CLOSE", "UNSELECT",
}  # fmt: skip
EVERYTHING = "IMAP4rev1 LITERAL+ UIDPLUS QUOTA STATUS=SIZE"


class Told:
    """A hook that answers STATUS=SIZE, quota and search from what the server holds and the test says."""

    def __init__(self, *quotas: str, limit: int = 0) -> None:
        self.quotas = quotas
        self.limit = limit

    async def __call__(self, call: Call) -> bool:
        if call.name == "GETQUOTAROOT":
            call.say(
                f"* QUOTAROOT INBOX {'root' if self.quotas else ''}",
                *(f"* QUOTA root ({each})" for each in self.quotas),
            )
            return call.ok()
        if call.name == "STATUS" and "SIZE" in call.text:
            name, _ = call.session.name(call)
            box = call.server.accounts[call.session.user][name]
            size = sum(len(message.body) for message in box.messages)
            call.say(f'* STATUS "{name}" (MESSAGES {len(box.messages)} SIZE {size})')
            return call.ok()
        if call.name == "UID SEARCH":
            above = int(call.text.split(" LARGER ")[1].split(" ")[0])
            found = [str(message.uid) for message in call.session.box.messages if len(message.body) > above]
            call.say(f"* SEARCH {' '.join(found)}".rstrip())
            return call.ok()
        return False


async def check(jobs: Sequence[UserJob], run: Run) -> tuple[list[Checked], Checker]:
    checker = Checker(run)
    seen: list[Checked] = []

    def note(checked: Checked) -> None:
        checker.add(checked)
        seen.append(checked)

    await each_in_order(jobs, run.limits.users, checker.look, note)
    return seen, checker


def code(seen: Sequence[Checked]) -> int:
    return exit_code((each.result for each in seen), single_user=False, stopped=False)


async def test_both_sides_are_asked_once_and_nothing_is_written() -> None:
    wires = Wires()
    old = Server(offered=EVERYTHING, hook=Told())
    new = Server(offered=f"{EVERYTHING} APPENDLIMIT=150", hook=Told("STORAGE 0 1000", "MESSAGE 0 100"))
    for mailbox in ("INBOX", "Sent"):
        old.fill("bob", mailbox, bodies(5))
    before = dict(new.accounts["bob"])
    async with old.running(), new.running():
        [bob], checker = await check([job(source=old.endpoint(), destination=new.endpoint())], wires.run())
    assert (bob.status, bob.mailboxes, bob.messages) == ("done", 2, 10), bob.problems
    assert bob.octets == sum(map(len, bodies(5))) * 2
    assert bob.destination.standing.append_limit == 150
    assert {each.resource for each in bob.destination.standing.allowances} == {"STORAGE", "MESSAGE"}
    for server in (old, new):
        assert set(server.heard) <= HARMLESS
        assert server.connections == server.count["AUTHENTICATE"] == 1
    assert "UID FETCH" not in old.heard  # the server knows how much there is
    assert new.accounts["bob"] == before
    assert checker.estimate.messages == 10
    assert {name: host.roles for name, host in checker.hosts.items()} == {
        f"127.0.0.1:{old.endpoint().port}": {"source"},
        f"127.0.0.1:{new.endpoint().port}": {"destination"},
    }


async def test_without_sizes_by_status_the_mailboxes_are_listed() -> None:
    wires = Wires()
    old = Server()
    old.fill("bob", "INBOX", bodies(5))
    async with old.running():
        [bob], _ = await check([job(source=old.endpoint())], wires.run())
    assert (bob.status, bob.messages, bob.octets) == ("done", 5, sum(map(len, bodies(5))))
    assert old.count["UID FETCH"] == 1


async def test_messages_above_the_limit_are_looked_for_only_where_one_may_be() -> None:
    """A mailbox whose octets are fewer than the limit holds none, so it is not even opened."""
    wires = Wires()
    old, new = Server(offered=EVERYTHING, hook=Told()), Server(offered="IMAP4rev1 APPENDLIMIT=1000")
    old.fill("bob", "INBOX", [*bodies(2), *bodies(2, octets=2000)])
    old.fill("bob", "Sent", bodies(3))
    async with old.running(), new.running():
        [bob], checker = await check([job(source=old.endpoint(), destination=new.endpoint())], wires.run())
    assert (bob.status, bob.messages, bob.too_large) == ("rejects", 7, 2)
    assert code([bob]) == 65
    assert old.count["EXAMINE"] == 1
    assert checker.too_large == 2
    assert "2 messages are larger than the 1000 B the destination takes" in bob.notes


@pytest.mark.parametrize(
    ("quota", "text"),
    [
        ("STORAGE 9 10", "quota root: 1.5 KiB are to come, 1.0 KiB of 10.0 KiB are free"),
        ("MESSAGE 0 19", "quota root: 20 messages are to come, 19 of 19 are free"),
    ],
)
async def test_a_quota_that_is_too_small_is_told_before_it_is_full(quota: str, text: str) -> None:
    wires = Wires()
    wires.fill(bodies(20))
    server = Server(offered=EVERYTHING, hook=Told(quota))
    async with server.running():
        [bob], _ = await check([job(destination=server.endpoint())], wires.run())
        run = wires.run()
        run.skip_existing = True
        [again], _ = await check([job(destination=server.endpoint())], run)
    [problem] = bob.problems
    assert isinstance(problem, OverQuota)
    assert problem.text == text
    assert code([bob]) == 73
    assert again.status == "done"  # how much of it is there already nobody knows
    assert any(text in note for note in again.notes)


async def test_a_server_that_does_not_know_what_it_offers_costs_nothing() -> None:
    async def bad(call: Call) -> bool:
        return call.bad("what?") if call.name in ("GETQUOTAROOT", "STATUS") else False

    wires = Wires()
    old, new = Server(offered=EVERYTHING, hook=bad), Server(offered=f"{EVERYTHING} APPENDLIMIT", hook=bad)
    old.fill("bob", "INBOX", bodies(3))
    async with old.running(), new.running():
        [bob], _ = await check([job(source=old.endpoint(), destination=new.endpoint())], wires.run())
    assert (bob.status, bob.messages) == ("done", 3), bob.problems
    assert old.connections == new.connections == 1


async def test_a_refused_login_is_tried_once_and_both_sides_are_told() -> None:
    async def refuse(call: Call) -> bool:
        return call.no("[AUTHENTICATIONFAILED] no such luck") if call.name == "AUTHENTICATE" else False

    wires = Wires()
    old, new = Server(hook=refuse), Server(hook=refuse)
    async with old.running(), new.running():
        [bob], _ = await check([job(source=old.endpoint(), destination=new.endpoint())], wires.run())
    assert old.count["AUTHENTICATE"] == new.count["AUTHENTICATE"] == 1
    source, destination = (str(each) for each in bob.problems)
    assert source.startswith("source: 127.0.0.1")
    assert destination.startswith("destination: 127.0.0.1")
    assert "no such luck" in source
    assert code([bob]) == 77


async def test_a_host_that_refuses_many_logins_is_left_alone() -> None:
    async def refuse(call: Call) -> bool:
        return call.no("[AUTHENTICATIONFAILED] no") if call.name == "AUTHENTICATE" else False

    wires = Wires(limits=replace(QUICK, users=1))
    server = Server(hook=refuse)
    users = [f"user{number}" for number in range(LOGINS_REFUSED + 5)]
    for user in users:
        wires.fill(bodies(1), user=user)
    async with server.running():
        seen, checker = await check([job(destination=server.endpoint(user=user)) for user in users], wires.run())
    assert server.count["AUTHENTICATE"] == LOGINS_REFUSED
    assert [each.user for each in seen] == users
    assert all(isinstance(each.problems[0], LoginRefused) for each in seen)
    assert all(each.messages == 1 for each in seen)  # the source is looked at all the same
    [host] = checker.hosts.values()
    assert (host.logins, host.refused, host.untried) == (0, LOGINS_REFUSED, 5)
    assert code(seen) == 77


async def test_a_connection_too_many_is_no_refused_login_and_the_limit_is_told() -> None:
    """Who is refused a connection waits for one; it is no problem of that user."""
    entered = asyncio.Event()

    async def slow(call: Call) -> bool:
        if call.name == "AUTHENTICATE" and call.nth == 5:
            entered.set()
        if call.name == "LIST" and not call.text.endswith('""'):
            await entered.wait()
        return False

    wires = Wires(limits=replace(QUICK, users=10))
    server = Server(most_logins=4, hook=slow)
    users = [f"user{number}" for number in range(10)]
    for user in users:
        server.fill(user, "INBOX", bodies(2))
    async with server.running():
        seen, checker = await check([job(source=server.endpoint(user=user)) for user in users], wires.run())
    assert [each.status for each in seen] == ["done"] * 10, [each.problems for each in seen]
    assert server.most_inside == 4
    [host] = checker.hosts.values()
    assert 4 <= host.crowded < 10
    assert host.refused == 0


async def test_a_throttled_login_is_told_and_not_tried_again() -> None:
    async def throttled(call: Call) -> bool:
        text = "Request is throttled. Suggested Backoff Time: 299961 milliseconds"
        return call.bad(text) if call.name == "AUTHENTICATE" else False

    wires = Wires()
    server = Server(hook=throttled)
    async with server.running():
        [bob], _ = await check([job(source=server.endpoint())], wires.run())
    assert server.count["AUTHENTICATE"] == 1
    assert "throttled" in str(bob.problems[0])
    assert code([bob]) == 75


async def test_one_host_on_both_sides_is_told() -> None:
    server = Server()
    server.fill("old", "INBOX", bodies(2))
    async with server.running():
        both = job(source=server.endpoint(user="old"), destination=server.endpoint(user="new"))
        same = job(source=server.endpoint(user="old"), destination=server.endpoint(user="old"))
        seen, checker = await check([both, same], Wires().run())
    [host] = checker.hosts.values()
    assert host.roles == {"source", "destination"}
    assert [each.status for each in seen] == ["done", "done"]
    assert not seen[0].notes
    assert "are one account" in seen[1].notes[0]


async def test_a_name_clash_is_told_and_what_there_is_is_counted() -> None:
    wires = Wires()
    old, new = Server(), Server(separator=".")
    for mailbox in ("a.b", "a_b"):
        old.fill("bob", mailbox, bodies(2))
    async with old.running(), new.running():
        [bob], _ = await check([job(source=old.endpoint(), destination=new.endpoint())], wires.run())
    assert [type(each) for each in bob.problems] == [NameClash]
    assert bob.messages == 4
    assert "CREATE" not in new.heard


async def test_a_mailbox_that_cannot_be_opened_leaves_the_others_counted() -> None:
    async def closed(call: Call) -> bool:
        return call.no("[NOPERM] not yours") if call.name == "EXAMINE" and "Secret" in call.text else False

    server = Server(hook=closed)
    for mailbox in ("INBOX", "Secret"):
        server.fill("bob", mailbox, bodies(2))
    async with server.running():
        [bob], _ = await check([job(source=server.endpoint())], Wires().run())
    assert bob.messages == 2
    [problem] = bob.problems
    assert str(problem).startswith("Secret: ")
    assert "not yours" in str(problem)
    assert code([bob]) == 75


async def test_only_what_the_query_selects_counts() -> None:
    server = Server(offered=EVERYTHING, hook=Told())
    server.fill("bob", "INBOX", bodies(2))
    server.fill("bob", "Sent", bodies(3))
    wires = Wires()
    run = wires.run()
    run.query = parse_query(("MAILBOX", "Sent"))
    gone = wires.run()
    gone.query = parse_query(("MAILBOX", "Gone"))
    async with server.running():
        [bob], _ = await check([job(source=server.endpoint())], run)
        [lost], _ = await check([job(source=server.endpoint())], gone)
    assert (bob.mailboxes, bob.messages) == (1, 3)
    assert code([lost]) == 68


async def test_a_destination_that_should_be_empty_and_is_not_is_told() -> None:
    wires = Wires()
    wires.fill(bodies(2))
    server = Server()
    server.fill("bob", "Old", bodies(1))
    run = wires.run()
    run.merge = Merge("require-empty")
    async with server.running():
        [bob], _ = await check([job(destination=server.endpoint())], run)
        [eve], _ = await check([job(destination=server.endpoint(user="eve"))], run)
    assert [type(each) for each in bob.problems] == [DestinationNotEmpty]
    assert bob.messages == 2
    assert not any(isinstance(each, DestinationNotEmpty) for each in eve.problems)


async def test_a_bug_ends_its_user_only() -> None:
    class Broken(Wires):
        def source(self, endpoint: Endpoint) -> object:  # type: ignore[override]  # that is what is wrong with it
            if endpoint.user == "eve":
                raise ZeroDivisionError
            return super().source(endpoint)

    wires = Broken()
    wires.fill(bodies(1))
    memory = [job(source=Endpoint(scheme="memory", path="old", user=user)) for user in ("eve", "bob")]
    seen, _ = await check(memory, wires.run())
    assert [each.status for each in seen] == ["failed", "done"]
    assert "ZeroDivisionError" in str(seen[0].problems[0])
    assert code(seen) == 70


async def test_results_come_in_the_order_of_the_list_and_few_wait_for_the_first() -> None:
    """Whoever ends first: shown in order, and while the first takes its time only so many others are begun."""
    begun: Counter[str] = Counter()
    shown: list[str] = []
    first = asyncio.Event()

    async def act(each: UserJob) -> str:
        begun[each.user] += 1
        if each.user == "user0":
            await first.wait()
        if len(begun) >= 16 and not first.is_set():
            assert len(begun) == 16  # two workers, eight users each
            asyncio.get_running_loop().call_soon(first.set)
        return each.user

    users = [f"user{number}" for number in range(100)]
    await each_in_order((job(source=Endpoint(scheme="memory", user=user)) for user in users), 2, act, shown.append)
    assert shown == users


@pytest.mark.parametrize("part", ["jobs", "act", "show"])
async def test_what_ends_it_comes_out_as_it_was_raised(part: str) -> None:
    """A list that was written to is a usage error, a reader of our output who is gone a broken pipe: no bugs."""

    def jobs() -> Iterator[UserJob]:
        for number in range(50):
            if part == "jobs" and number == 20:
                raise UsageError("changed while it was in use")
            yield job(source=Endpoint(scheme="memory", user=f"user{number}"))

    async def act(each: UserJob) -> str:
        if part == "act" and each.user == "user20":
            raise UsageError("changed while it was in use")
        return each.user

    def show(user: str) -> None:
        if part == "show" and user == "user20":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError if part == "show" else UsageError):
        await each_in_order(jobs(), 3, act, show)
