"""`--limit-rate` and `--messages-per-second`, as a server sees them. A busy machine makes nothing faster."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import pytest

from aimport.limits import Limits
from tests.wire.server import QUICK, Call, Server, Wires, bodies, nothing

pytestmark = pytest.mark.timeout(60)

EARLY_S: Final = 0.4
"""So much may pass ahead of its time: the slack, and a piece."""


class Seen:
    """When commands came, and how many messages each was about."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.came: list[tuple[float, int]] = []

    async def hook(self, call: Call) -> bool:
        if call.name == self.name and call.literal is None:
            wanted = call.text.split(" ")[2] if self.name == "UID FETCH" else ""
            if not wanted.startswith("1:*") or "BODY" in call.text:
                self.came.append((time.monotonic(), _count(wanted) if wanted else len(call.literals)))
        return await nothing(call)

    def too_fast(self, rate: float) -> float:
        """Messages above the rate, in the worst stretch from the first."""
        began = self.came[0][0]
        done, worst = 0, 0.0
        for at, messages in self.came:
            done += messages
            worst = max(worst, done - rate * (at - began))
        return worst


def _count(wanted: str) -> int:
    parts = [part.partition(":") for part in wanted.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in parts)


@pytest.mark.parametrize("offered", ["IMAP4rev1 LITERAL+ UIDPLUS", "IMAP4rev1 LITERAL+ MULTIAPPEND", "IMAP4rev1"])
async def test_no_more_messages_a_second_are_appended_than_was_asked_for(offered: str) -> None:
    seen = Seen("APPEND")
    limits = replace(QUICK, messages_per_second=40.0)
    wires = Wires(limits=limits)
    for mailbox in ("INBOX", "Sent"):  # two lanes share the rate
        wires.fill(bodies(40), mailbox=mailbox)
    async with Server(offered=offered, hook=seen.hook).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported) == ("done", 80), result.error
    assert seen.too_fast(40.0) <= 40 * EARLY_S + 20  # and one batch
    assert len(seen.came) <= 80
    if "MULTIAPPEND" in offered:
        assert max(messages for _, messages in seen.came) == 20  # half a second's worth, not one by one


async def test_no_more_messages_a_second_are_fetched_than_was_asked_for() -> None:
    seen = Seen("UID FETCH")
    wires = Wires(limits=replace(QUICK, messages_per_second=40.0))
    async with Server(hook=seen.hook).running() as server:
        server.fill("bob", "INBOX", bodies(80))
        result = await wires.import_(source=server.endpoint())
    assert (result.status, result.imported) == ("done", 80), result.error
    assert sum(messages for _, messages in seen.came) == 80
    assert seen.too_fast(40.0) <= 40 * EARLY_S + 20


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("to", ["destination", "source"])
async def test_octets_keep_to_the_rate_on_the_wire(to: str, large: bool) -> None:
    """Also those of one message that is larger than a second's worth."""
    rate = 300_000
    limits: Limits = replace(QUICK, limit_rate=rate)
    mail = bodies(1, octets=500_000) if large else bodies(50, octets=10_000)
    wires = Wires(limits=limits)
    async with Server().running() as server:
        began = time.monotonic()
        if to == "destination":
            wires.fill(mail)
            result = await wires.import_(destination=server.endpoint())
        else:
            server.fill("bob", "INBOX", mail)
            result = await wires.import_(source=server.endpoint())
        took_s = time.monotonic() - began
        there = server.bodies() if to == "destination" else wires.arrived()
    assert (result.status, there) == ("done", mail), result.error
    assert took_s >= 500_000 / rate - EARLY_S - (0.25 if to == "source" else 0.0)  # what the kernel held meanwhile


async def test_a_profile_knows_how_many_messages_a_second_one_account_takes() -> None:
    """Exchange: four. Another account is none of its business."""
    seen = Seen("APPEND")
    wires = Wires()
    for user in ("ann", "bob"):
        wires.fill(bodies(6), user=user)
    async with Server(hook=seen.hook).running() as server:
        run = wires.run()
        for user in ("ann", "bob"):
            began = len(seen.came)
            result = await wires.import_(destination=server.endpoint(user, profile="exchange-online"), run=run)
            assert (result.status, result.imported) == ("done", 6), result.error
            mine = Seen("APPEND")
            mine.came = seen.came[began:]
            assert mine.too_fast(4.0) <= 4 * EARLY_S + 2
            assert mine.came[-1][0] - mine.came[0][0] >= 0.7  # three batches, the second in time that was left
