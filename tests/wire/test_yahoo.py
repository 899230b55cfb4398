"""Yahoo in its own words; nothing of it can be tried on the live service.

Sentences: `aimport/profiles/yahoo.toml` names where each was seen.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.wire.server import Call, Hook, Server, Wires, bodies, in_set

OFFERED: Final = "IMAP4rev1 ID NAMESPACE UIDPLUS LITERAL+ XYMHIGHESTMODSEQ"

pytestmark = pytest.mark.timeout(60)


def yahoo(hook: Hook) -> Server:
    return Server(offered=OFFERED, greeting="IMAP4rev1 imapgate-1.8.0 imap1.example", hook=hook)


def asks_for(call: Call, uid: int) -> bool:
    """A FETCH of bodies that has this UID in its set."""
    return call.name == "UID FETCH" and "BODY" in call.text and in_set(uid, call.text.split(" ")[2], 0)


async def test_a_message_that_it_fails_to_give_is_named_and_the_others_arrive() -> None:
    async def failing(call: Call) -> bool:
        return asks_for(call, 3) and call.no("UID FETCH Server error - Please try again later")

    wires = Wires()
    async with yahoo(failing).running() as server:
        server.fill("bob", "INBOX", bodies(6))
        result = await wires.import_(source=server.endpoint())
    good = bodies(6)
    assert wires.arrived() == good[:2] + good[3:]
    assert (result.status, result.rejected, server.connections) == ("rejects", {"unreadable": 1}, 1), result.error


async def test_a_fetch_that_is_unavailable_is_asked_for_again_later() -> None:
    async def failing(call: Call) -> bool:
        return asks_for(call, 3) and call.session.number < 3 and call.no("[UNAVAILABLE] UID FETCH Server error")

    wires = Wires()
    async with yahoo(failing).running() as server:
        server.fill("bob", "INBOX", bodies(6))
        result = await wires.import_(source=server.endpoint())
    assert wires.arrived() == bodies(6)
    assert (result.status, result.imported) == ("done", 6), result.error


async def test_a_message_without_a_final_crlf_is_refused_by_a_bad_and_costs_itself_only() -> None:
    """Seen by others: imapsync#209."""

    async def clientbug(call: Call) -> bool:
        if call.name == "APPEND" and any(not body.endswith(b"\r\n") for body in call.literals):
            return call.bad("[CLIENTBUG] Additional arguments found after last expected argument")
        return False

    good = bodies(5)
    wires = Wires()
    wires.fill([*good[:2], b"Subject: open\r\n\r\nend", *good[2:]])
    async with yahoo(clientbug).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert sorted(server.bodies()) == good
    assert (result.imported, result.status) == (5, "rejects"), result.error
    assert server.connections <= 5


async def test_a_uidnext_far_above_the_last_uid_confuses_nothing() -> None:
    """bichon#342. The connection is lost in the middle, so that what is stored must be looked for."""

    async def cut(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and call.nth == 4:
            await call.carry_out()
            await call.bye("going down")
        return False

    wires = Wires()
    wires.fill(bodies(6))
    async with yahoo(cut).running() as server:
        server.accounts["bob"]["INBOX"].next_uid = 50_000
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported) == ("done", 6), result.error
    assert server.bodies() == bodies(6)
