"""Gmail as a destination, in its own words; nothing of it can be tried on the live service.

Capabilities and sentences: `aimport/profiles/gmail.toml` names where each was seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from tests.wire.server import QUICK, Call, Hook, Server, Wires, bodies, nothing

OFFERED: Final = "IMAP4rev1 ID NAMESPACE UIDPLUS LITERAL- X-GM-EXT-1"
NUL: Final = b"Subject: nul\r\n\r\na\0b\r\n"

pytestmark = pytest.mark.timeout(60)


def gmail(hook: Hook) -> Server:
    greeting = "Gimap ready for requests from 192.0.2.1 x"
    return Server(offered=OFFERED, greeting=greeting, server_id='("name" "GImap")', hook=hook)


async def test_only_bodies_above_4096_octets_wait_and_each_message_is_a_command() -> None:
    """LITERAL- (RFC 7888 section 5), no MULTIAPPEND."""
    announced: list[tuple[int, bool]] = []

    async def note(call: Call) -> None:
        if call.literal is not None:
            announced.append((call.literal, call.answers))

    wires = Wires()
    wires.fill([b"x" * size for size in (4095, 4096, 4097, 10, 5000)])
    async with gmail(note).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert announced == [(4095, False), (4096, False), (4097, True), (10, False), (5000, True)]
    assert server.count["APPEND"] == result.imported == 5
    assert [len(body) for body in server.bodies()] == [4095, 4096, 4097, 10, 5000]


async def bye_on_nul(call: Call) -> bool:
    """Seen by others: imapsync#124."""
    if call.name == "APPEND" and call.literal is None and any(b"\0" in body for body in call.literals):
        return await call.bye("Invalid character in literal")
    return False


@pytest.mark.parametrize("places", [[0], [69], [10], [0, 1, 2, 3, 40, 63, 64, 69]], ids=str)
async def test_a_message_that_costs_the_connection_is_rejected_and_its_neighbours_arrive(places: list[int]) -> None:
    """Invariant: each good message once; a bad one is sent a few times and no more, however often it is alone."""
    good = bodies(70)
    sent = [NUL if at in places else body for at, body in enumerate(good)]
    wires = Wires()
    wires.fill(sent)
    async with gmail(bye_on_nul).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert sorted(server.bodies()) == sorted(body for body in sent if body is not NUL)
    assert result.status == "rejects", result.error
    assert (result.imported, sum(result.rejected.values())) == (70 - len(places), len(places))
    assert server.connections <= 2 * (1 + 3 * len(places))  # two share the mailbox


async def test_what_the_server_says_of_such_a_message_is_told_and_repaired_when_asked_for() -> None:
    """The BYE names the NUL, so `--repair on-reject` mends it as any other refusal."""
    wires = Wires()
    wires.fill([NUL, *bodies(3)])
    run = wires.run()
    run.repair = True
    async with gmail(bye_on_nul).running() as server:
        result = await wires.import_(destination=server.endpoint(), run=run)
    assert (result.status, result.imported, result.altered) == ("done", 4, 1)
    assert b"\0" not in b"".join(server.bodies())
    assert len(server.bodies()) == 4


async def test_a_repair_that_costs_the_connection_as_well_is_not_tried_for_ever() -> None:
    async def bye(call: Call) -> bool:
        if call.name == "APPEND" and any(b"Subject: nul" in body for body in call.literals):
            return await call.bye("Invalid character in literal")
        return False

    wires = Wires()
    wires.fill([*bodies(3), NUL, *bodies(3, start=3)])
    run = wires.run()
    run.repair = True
    async with gmail(bye).running() as server:
        result = await wires.import_(destination=server.endpoint(), run=run)
    assert server.bodies() == bodies(6)
    assert (result.status, result.imported, result.rejected) == ("rejects", 6, {"refused": 1})


async def test_a_rate_that_is_called_overquota_is_waited_out_and_no_full_account(waits: list[float]) -> None:
    async def slow_down(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and call.nth == 3:
            return call.no("[OVERQUOTA] Account exceeded command or bandwidth limits. x1if4mb")
        return False

    wires = Wires()
    wires.fill(bodies(6))
    async with gmail(slow_down).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported) == ("done", 6), result.error
    assert sorted(server.bodies()) == bodies(6)
    assert waits == [3600.0]  # Gmail lets go after an hour at the earliest


async def test_space_that_is_used_up_is_a_full_account_and_is_not_waited_for(waits: list[float]) -> None:
    async def full(call: Call) -> bool:
        return call.name == "APPEND" and call.literal is None and call.nth > 2 and call.no("[OVERQUOTA] Over quota")

    wires = Wires()
    wires.fill(bodies(6))
    async with gmail(full).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported, result.skipped) == ("quota", 2, {"unfinished": 4})
    assert waits == []


async def test_an_ok_that_throttles_is_success_and_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    async def throttled(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and call.nth == 2:
            await call.carry_out("Success [THROTTLED]")
            return True
        return False

    monkeypatch.setattr("aimport.stores.imap.destination.rest", sleep)
    wires = Wires(limits=replace(QUICK, batch_messages=2, batches_ahead=1))
    wires.fill(bodies(4))
    async with gmail(throttled).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported, server.connections) == ("done", 4, 1)
    assert server.bodies() == bodies(4)
    assert rests and all(0 < seconds <= 60 for seconds in rests)


@pytest.mark.parametrize("when", ["EXAMINE", "APPEND"])
async def test_an_expired_session_is_a_limit_of_connections_and_the_run_goes_on(when: str, waits: list[float]) -> None:
    """The words are those of an old session; what they mean is that there are too many (FAQ.Gmail)."""

    async def expire(call: Call) -> bool:
        if call.name == when and call.literal is None and call.nth == 1:
            return await call.bye("Session expired, please login again.")
        return False

    wires = Wires()
    wires.fill(bodies(5))
    async with gmail(expire).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported, server.connections) == ("done", 5, 2), result.error
    assert server.bodies() == bodies(5)
    assert waits == [5.0]
    assert result.rejected == {}


async def test_copies_of_one_message_that_gmail_merges_are_each_acknowledged() -> None:
    """Both have a UID when the run ends; that the second vanishes later nobody can see here."""
    wires = Wires()
    wires.fill([bodies(1)[0]] * 2)
    async with gmail(nothing).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.imported, len(server.bodies())) == (2, 2)
