"""Whole hosts: one that takes few connections and throttles beside two that are well, counted at the servers."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import anyio
import pytest

from aimport.account import Run
from aimport.hosts import WINDOW_S
from aimport.limits import AT_ONCE
from aimport.model import UserJob
from aimport.runners.local import run_plan
from tests.wire.server import QUICK, Call, Server, Wires, bodies, job

pytestmark = pytest.mark.timeout(100)


class Counted:
    """A server that notes when logins came and went, and may throttle."""

    def __init__(self, most_logins: int = 0, throttled: int = 0, refusal: str = "") -> None:
        self.refused: list[int] = []
        """Logins that had come before each that was refused."""
        self.logins = 0
        self.left = throttled
        """Appends that are still to be throttled, one a user."""
        self.told: set[str] = set()
        self.full = anyio.Event()
        """Somebody was refused; before that nobody is served, so that there is somebody to refuse."""
        if not most_logins:
            self.full.set()
        self.server = Server(most_logins=most_logins, hook=self.hook)
        if refusal:
            self.server.refusal = refusal

    async def hook(self, call: Call) -> bool:
        server = call.server
        if call.name == "AUTHENTICATE":
            if server.most_logins and server.inside >= server.most_logins:
                self.refused.append(self.logins)
                self.full.set()
            else:
                self.logins += 1
        if call.name == "APPEND" and call.literal is None:
            user = call.session.user
            await self.full.wait()
            if self.left and user not in self.told:
                self.left -= 1
                self.told.add(user)
                return call.no("[THROTTLED] Suggested Backoff Time: 1500 milliseconds")
        return False


def users(server: Server, name: str, count: int, wires: Wires, messages: int = 4) -> list[UserJob]:
    made = []
    for number in range(count):
        wires.fill(bodies(messages), user=f"{name}{number}")
        made.append(job(destination=server.endpoint(user=f"{name}{number}")))
    return made


async def test_a_host_that_takes_five_and_throttles_holds_up_no_other_and_is_asked_for_no_more_than_five() -> None:
    """Invariant: who is well is done before the throttled one has waited; what was learnt of that is kept to."""
    wires = Wires(limits=replace(QUICK, users=8, connections_per_user=1))
    slow, one, two = Counted(most_logins=5, throttled=10), Counted(), Counted()
    order: list[str] = []
    async with AsyncExitStack() as stack:
        for each in (slow, one, two):
            await stack.enter_async_context(each.server.running())
        jobs = [
            *users(slow.server, "s", 20, wires),
            *users(one.server, "a", 20, wires),
            *users(two.server, "b", 20, wires),
        ]
        run = wires.run()
        ended = run.counters.user_ended

        def note(user: str, *, failed: bool) -> None:
            order.append(user)
            ended(user, failed=failed)

        run.counters.user_ended = note  # type: ignore[method-assign]  # to see the order
        ending = await run_plan(jobs, run)
    assert ending.failure is None
    results = {result.user: result.status for result in wires.journal.results()}
    assert Counter(results.values()) == {"done": 60}, results
    assert slow.server.most_inside == 5 and slow.left == 0
    # Refused were only those that came with the first window.
    assert len(slow.refused) <= AT_ONCE and all(before <= 5 for before in slow.refused)
    throttled = [place for place, user in enumerate(order) if user in slow.told]
    healthy = [place for place, user in enumerate(order) if user[0] in "ab"]
    assert min(throttled) > healthy[len(healthy) // 2], order
    assert [(each.connections, each.most) for each in run.hosts.reached()] == [(5, 50)]


@pytest.mark.parametrize("refusal", ["", "NO [ALERT] Too many simultaneous connections."])
async def test_two_hundred_users_at_a_server_that_takes_twenty_are_refused_only_until_that_is_learnt(
    refusal: str,
) -> None:
    wires = Wires(limits=replace(QUICK, users=100, connections_per_host=100, connections_per_user=2))
    counted = Counted(most_logins=20, refusal=refusal)
    async with counted.server.running():
        await run_plan(users(counted.server, "u", 200, wires, messages=2), wires.run())
        assert {result.status for result in wires.journal.results()} == {"done"}
    assert counted.server.most_inside == 20
    # By and by: at most as many are refused at once as there are inside; then none for the rest of the run.
    assert len(counted.refused) <= 20 and all(before <= 20 + AT_ONCE for before in counted.refused)


async def test_a_server_that_is_restarted_is_waited_for_by_all_and_comes_back_to_no_herd() -> None:
    """While it is down one connection at a time looks; nobody fails, every message arrives once."""
    wires = Wires(limits=replace(QUICK, users=20, connections_per_user=1))
    down = tried = inside = most = 0
    users_of: list[UserJob] = []

    async def restart(call: Call) -> bool:
        nonlocal down, tried, inside, most
        if call.name == "APPEND" and call.literal is None and call.server.count["APPEND"] == 60 and not down:
            down = 1
            return await call.bye("[UNAVAILABLE] Server shutting down.")
        if call.name == "AUTHENTICATE" and down:
            tried += 1
            if tried <= 12:
                return await call.close()
            inside = call.server.inside
            most = max(most, inside)
        return False

    async with Server(hook=restart).running() as server:
        users_of = users(server, "u", 40, wires, messages=6)
        await run_plan(users_of, wires.run())
        results = {result.user: (result.status, result.imported) for result in wires.journal.results()}
        assert set(results.values()) == {("done", 6)}, results
        assert all(sorted(server.bodies(each.user)) == bodies(6) for each in users_of)


async def test_connections_that_were_cut_grow_again_after_quiet_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that refuses for a while and then takes more is used to the full again."""
    clock = [1000.0]
    monkeypatch.setattr("aimport.seams.monotonic", lambda: clock[0])
    run = Run(
        stores=(wires := Wires(limits=replace(QUICK, users=6, connections_per_user=1))),
        journal=wires.journal,
        query=wires.run().query,
        limits=wires.limits,
    )
    run.hosts._clock = lambda: clock[0]
    waiting = anyio.Event()

    async def hold(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None:
            if call.server.most_inside >= 6:
                waiting.set()
            else:
                clock[0] += WINDOW_S + 1
                with anyio.move_on_after(5):
                    await waiting.wait()
        return False

    async with Server(hook=hold).running() as server:
        made = users(server, "u", 12, wires, messages=1)
        host = f"{server.endpoint().host}:{server.endpoint().port}"
        known = run.hosts._at(host).ceiling
        known.slow_down(clock[0])
        known.allowed = 3
        await run_plan(made, run)
        assert server.most_inside == 6
