"""Exchange Online in its own words; nothing of it can be tried on the live service.

Sentences: `aimport/profiles/exchange-online.toml` names where each was seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Final

import anyio
import msgspec
import pytest

from aimport.imap import profiles
from aimport.imap.profiles import bundled
from aimport.model import Rejected
from aimport.results import UserResult
from tests.wire.server import QUICK, Call, Hook, Server, Session, Wires, bodies

OFFERED: Final = "IMAP4rev1 SASL-IR UIDPLUS ID UNSELECT CHILDREN NAMESPACE LITERAL+"
BAD: Final = b"Subject: bad\r\n\r\n"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the rate that its profile advises these tests would take a minute; `test_rates` has that."""
    quick = msgspec.structs.replace(bundled()["exchange-online"], messages_per_second=0.0)
    monkeypatch.setattr(profiles, "bundled", lambda: {**bundled(), "exchange-online": quick})


def exchange(hook: Hook) -> Server:
    greeting = "The Microsoft Exchange IMAP4 service is ready. [QQBNADUA]"
    return Server(offered=OFFERED, greeting=greeting, hook=hook)


def complete(call: Call, name: str = "APPEND") -> bool:
    return call.name == name and call.literal is None


async def test_ten_errors_cost_the_connection_and_no_message_that_is_good() -> None:
    """Invariant: who is refused is refused by a word of its own, and is not taken for what ended the session."""
    errors: Counter[Session] = Counter()

    async def ten(call: Call) -> bool:
        if not complete(call) or call.literals != [BAD]:
            return False
        errors[call.session] += 1
        call.no("APPEND failed.")
        return await call.bye("Connection closed. 14") if errors[call.session] == 10 else True

    good = bodies(70)
    wires = Wires()
    wires.fill([each for body in good for each in ([BAD, body] if good.index(body) < 25 else [body])])
    async with exchange(ten).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert sorted(server.bodies()) == sorted(good)
    assert (result.status, result.imported, result.rejected) == ("rejects", 70, {"refused": 25}), result.error
    rejected = [entry.outcome for entry in wires.journal.entries("bob") if isinstance(entry.outcome, Rejected)]
    assert {each.text for each in rejected} == {"APPEND failed."}
    assert server.connections < 10


@pytest.mark.parametrize("places", [[0], [5, 6, 7], list(range(0, 40, 3))], ids=str)
async def test_a_line_that_is_too_long_is_a_bad_and_costs_its_message_only(places: list[int]) -> None:
    async def too_long(call: Call) -> bool:
        long = max((len(line) for body in call.literals for line in body.split(b"\r\n")), default=0) > 9900
        return complete(call) and long and call.bad("Command Argument Error. 11")

    sent = [b"Subject: long\r\n\r\n" + b"y" * 9901 if at in places else body for at, body in enumerate(bodies(40))]
    wires = Wires()
    wires.fill(sent)
    async with exchange(too_long).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert sorted(server.bodies()) == sorted(body for body in sent if len(body) < 9900)
    assert (result.imported, result.rejected) == (40 - len(places), {"BAD": len(places)}), result.error
    # A BAD is never sent again as it was, but once alone; each costs a connection.
    assert server.connections <= 1 + 8 * len(places)


@pytest.mark.parametrize("status", ["BAD", "NO"])
async def test_a_stated_time_is_obeyed_to_the_millisecond_while_the_others_go_on(
    status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection is allowed: the others only go on when who waits has given his back."""
    others = anyio.Event()
    waits: list[float] = []
    sleep = anyio.sleep

    async def clock(seconds: float) -> None:
        if seconds > 1:
            waits.append(seconds)
            await others.wait()  # the time passes
            seconds = 0
        await sleep(seconds)

    async def throttle(call: Call) -> bool:
        if complete(call) and call.session.user == "bob" and not waits and call.nth == 3:
            call.say(f"{call.tag} {status} Request is throttled. Suggested Backoff Time: 299961 milliseconds")
            return await call.bye("Connection closed. 14")
        return False

    monkeypatch.setattr("anyio.sleep", clock)
    wires = Wires(limits=replace(QUICK, connections_per_host=1))
    users = ["bob", "ann", "carl"]
    for user in users:
        wires.fill(bodies(6), user=user)
    results: dict[str, UserResult] = {}
    run = wires.run()
    async with exchange(throttle).running() as server:

        async def import_(user: str) -> None:
            results[user] = await wires.import_(destination=server.endpoint(user=user), run=run)
            if results.keys() >= {"ann", "carl"}:
                others.set()

        async with anyio.create_task_group() as tasks:
            for user in users:
                tasks.start_soon(import_, user)
    assert waits == [299.961]
    assert list(results) == ["ann", "carl", "bob"]
    assert {result.status for result in results.values()} == {"done"}, results
    assert all(sorted(server.bodies(user)) == bodies(6) for user in users)
    assert server.connections == 4


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize("answer", ["BAD", "NO"])
@pytest.mark.parametrize("name", ["NAMESPACE", "LIST"])
async def test_a_mailbox_without_imap_fails_its_user_once_and_says_why(side: str, answer: str, name: str) -> None:
    async def not_connected(call: Call) -> bool:
        if call.session.user == "bob" and call.name in ("NAMESPACE", "LIST", "CREATE", "EXAMINE"):
            if call.name == name or answer == "NO":
                return call.say(f"{call.tag} {answer} User is authenticated but not connected.")
        return False

    wires = Wires()
    for user in ("bob", "ann"):
        wires.fill(bodies(2), user=user)
    async with exchange(not_connected).running() as server:
        server.fill("ann", "INBOX", bodies(2))
        if side == "source":
            bob, ann = [await wires.import_(source=server.endpoint(user=user)) for user in ("bob", "ann")]
        else:
            bob, ann = [await wires.import_(destination=server.endpoint(user=user)) for user in ("bob", "ann")]
    if side == "destination" and answer == "BAD" and name == "LIST":
        assert bob.status == "done"  # nobody asked
        return
    assert (bob.status, bob.imported, ann.status) == ("failed", 0, "done")
    assert "no licence, IMAP switched off" in (bob.error or "")
    assert server.connections == 2


async def test_a_server_that_is_unavailable_is_left_alone_for_a_while(waits: list[float]) -> None:
    async def unavailable(call: Call) -> bool:
        return complete(call) and call.nth in (2, 5) and call.no("Server Unavailable. 15")

    wires = Wires()
    wires.fill(bodies(6))
    async with exchange(unavailable).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported) == ("done", 6), result.error
    assert sorted(server.bodies()) == bodies(6)
    assert waits and set(waits) == {60.0}


async def test_flagged_is_set_once_more_and_keywords_are_told(caplog: pytest.LogCaptureFixture) -> None:
    stored: list[str] = []

    async def note(call: Call) -> bool:
        if call.name == "UID STORE":
            stored.append(call.text)
        return False

    wires = Wires()
    wires.fill(bodies(2), flags=["\\Flagged", "$Forwarded"])
    async with exchange(note).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert result.status == "done"
    assert stored == ["UID STORE 1:2 +FLAGS.SILENT (\\Flagged)"]
    assert {message.flags for message in server.accounts["bob"]["INBOX"].messages} == {"\\Flagged"}
    assert caplog.text.count("flags dropped user=bob mailbox=INBOX") == 2
