"""Servers that are busy, or think that we are: reliability rows F16 and F17, over whole imports."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from aimport.model import UserJob
from aimport.runners.local import run_plan
from tests.wire.server import QUICK, Call, Server, Session, Wires, bodies, job

pytestmark = pytest.mark.timeout(60)

USERS = [f"user{number}" for number in range(10)]


def jobs(server: Server, users: list[str]) -> list[UserJob]:
    return [job(destination=server.endpoint(user=user)) for user in users]


@pytest.mark.parametrize(
    "refusal",
    [
        "NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=5)",
        "NO [LIMIT] no more of you",
        "NO [ALERT] Too many simultaneous connections. (Failure)",
        "NO Error, Maximum number of connections from this address exceeded",
    ],
)
@pytest.mark.fault("F17")
async def test_connections_fall_to_what_a_host_takes_and_every_user_is_done(refusal: str, waits: list[float]) -> None:
    wires = Wires(limits=replace(QUICK, users=10, connections_per_user=2))
    for user in USERS:
        for mailbox in ("INBOX", "Sent"):
            wires.fill(bodies(5), user=user, mailbox=mailbox)
    run = wires.run()
    server = Server(most_logins=5, refusal=refusal)
    async with server.running():
        ending = await run_plan(jobs(server, USERS), run)
        first = server.connections
        assert ending.failure is None
        results = {result.user: result for result in wires.journal.results()}
        assert [results[user].status for user in USERS] == ["done"] * 10, results
        assert all(server.bodies(user, box) == bodies(5) for user in USERS for box in ("INBOX", "Sent"))
        # Who knows the limit is not refused any more.
        for user in USERS:
            wires.fill(bodies(5), user=f"{user}b")
        await run_plan(jobs(server, [f"{user}b" for user in USERS]), run)
        assert server.connections == first + 10
    assert server.most_inside == 5


@pytest.mark.fault("F16")
async def test_a_server_that_is_unavailable_for_a_while_gets_every_message_once() -> None:
    async def unavailable(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and 4 <= call.nth < 12:
            return call.no("[UNAVAILABLE] try later")
        return False

    wires = Wires()
    wires.fill(bodies(30))
    async with Server(hook=unavailable).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported, result.maybe_duplicate) == ("done", 30, 0), result.error
    assert sorted(server.bodies()) == sorted(bodies(30))


@pytest.mark.parametrize("greeted", [True, False])
@pytest.mark.fault("F16")
async def test_a_server_that_goes_down_and_comes_back_gets_every_message_once(
    greeted: bool, waits: list[float]
) -> None:
    async def going_down(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and call.nth == 7:
            return await call.bye("[UNAVAILABLE] Server shutting down.")
        if call.name == "AUTHENTICATE" and 1 < call.session.number < 5:
            return call.no("[UNAVAILABLE] Temporary authentication failure") if greeted else await call.close()
        return False

    wires = Wires(limits=replace(QUICK, attempts=6))
    wires.fill(bodies(30))
    async with Server(hook=going_down).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported, result.maybe_duplicate) == ("done", 30, 0), result.error
    assert server.bodies() == bodies(30)
    assert set(waits) == ({60.0} if greeted else set())


@pytest.mark.parametrize("offered", ["IMAP4rev1 LITERAL+ UIDPLUS", "IMAP4rev1", "IMAP4rev1 LITERAL+ MULTIAPPEND"])
@pytest.mark.parametrize("words", ["", "BYE enough", "BYE [UNAVAILABLE] enough"])
@pytest.mark.fault("F6")
async def test_a_server_that_closes_after_each_few_commands_gets_every_message_once(offered: str, words: str) -> None:
    heard: Counter[Session] = Counter()

    async def few(call: Call) -> bool:
        heard[call.session] += call.literal is None
        if heard[call.session] <= 12 or call.literal is not None:
            return False
        return await call.bye(words.removeprefix("BYE ")) if words else await call.close()

    wires = Wires(limits=replace(QUICK, batch_messages=7))
    wires.fill(bodies(60))
    async with Server(offered=offered, hook=few).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported, result.maybe_duplicate) == ("done", 60, 0), (result.error, result.rejected)
    assert server.bodies() == bodies(60)
    assert 2 <= server.connections < 40


async def test_a_source_that_closes_after_each_few_commands_gives_every_message_once() -> None:
    heard: Counter[Session] = Counter()

    async def few(call: Call) -> bool:
        heard[call.session] += 1
        return heard[call.session] > 7 and await call.close()

    wires = Wires()
    async with Server(hook=few).running() as server:
        server.fill("bob", "INBOX", bodies(300, octets=40_000))  # 25 to a window
        result = await wires.import_(source=server.endpoint())
    assert (result.status, result.imported) == ("done", 300), result.error
    assert wires.arrived() == bodies(300, octets=40_000)
    assert server.connections >= 3


@pytest.mark.parametrize("offered", ["IMAP4rev1 LITERAL+ UIDPLUS", "IMAP4rev1", "IMAP4rev1 LITERAL+ MULTIAPPEND"])
@pytest.mark.fault("F17")
async def test_one_of_three_appends_that_meets_a_limit_costs_time_and_no_message(offered: str) -> None:
    async def limit(call: Call) -> bool:
        return call.name == "APPEND" and call.literal is None and call.nth % 3 == 0 and call.no("[LIMIT] not so fast")

    # One connection: with several, every third append of all may be the same message again and again.
    wires = Wires(limits=replace(QUICK, batch_messages=16, connections_per_host=1))
    wires.fill(bodies(100))
    async with Server(offered=offered, hook=limit).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported) == ("done", 100), (result.error, result.rejected)
    assert sorted(server.bodies()) == sorted(bodies(100))


async def test_a_limit_that_stays_is_told_of_each_message_it_hits() -> None:
    async def limit(call: Call) -> bool:
        full = len(call.server.accounts["bob"]["INBOX"].messages) >= 10
        return call.name == "APPEND" and call.literal is None and full and call.no("[LIMIT] mailbox holds 10")

    wires = Wires()
    wires.fill(bodies(40))
    async with Server(hook=limit).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported, result.rejected) == ("rejects", 10, {"LIMIT": 30}), result.error
    assert server.connections == 1
    assert server.count["APPEND"] < 2 * (10 + 30 * 8)  # each line is heard twice by the counter of literals
