"""No host, no user and no wait holds up the others."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aimport.errors import ConnectionLost, Throttled
from aimport.interfaces import Destination
from aimport.limits import HostLimits
from aimport.model import Endpoint, UserJob
from aimport.runners.line import MOST_AHEAD
from aimport.runners.local import for_each_user, run_plan
from aimport.stores.memory import Event, MemoryDestination, MemoryStore
from tests.pipeline.harness import QUICK, World, bodies

pytestmark = pytest.mark.timeout(60)


@dataclass
class Hosts(World):
    """A destination store for each host; users are named after it: `a1`, `a2`, `b1`."""

    stores: dict[str, MemoryStore] = field(default_factory=dict)
    began: list[str] = field(default_factory=list)
    """Users in the order in which they connected."""

    def at(self, host: str) -> MemoryStore:
        return self.stores.setdefault(host, MemoryStore(host=host))

    def destination(self, endpoint: Endpoint) -> Destination:
        return MemoryDestination(self.at(endpoint.host), endpoint.user)

    def users(self, host: str, count: int, messages: int = 3) -> list[UserJob]:
        names = [f"{host}{number}" for number in range(count)]
        for name in names:
            self.fill(name, "INBOX", bodies(messages))
        return [
            UserJob(
                user=name,
                source=Endpoint(scheme="memory", path="old", user=name),
                destination=Endpoint(scheme="memory", host=host, user=name),
            )
            for name in names
        ]

    def done(self) -> Counter[str]:
        """Users that are done, by host."""
        return Counter(result.user[0] for result in self.journal.results() if result.status == "done")


async def finish(world: Hosts, jobs: Iterable[UserJob]) -> None:
    with anyio.fail_after(30):
        ending = await run_plan(jobs, world.run())
    assert ending.failure is None and not ending.stopped


async def test_users_of_a_full_host_have_no_seat_of_others() -> None:
    """Three seats, a host with one connection and many users first in the list."""
    world = Hosts(limits=replace(QUICK, users=3, connections_per_host=1, connections_per_user=1))
    jobs = [*world.users("a", 20), *world.users("b", 4), *world.users("c", 4)]
    others = anyio.Event()

    async def slow(event: Event) -> None:
        if event.verb == "append":
            await others.wait()

    async def count(event: Event) -> None:
        if event.verb == "append" and world.done()["b"] + world.done()["c"] >= 6:
            others.set()

    world.at("a").hook = slow
    world.at("b").hook = world.at("c").hook = count
    await finish(world, jobs)
    assert world.done() == {"a": 20, "b": 4, "c": 4}


async def test_users_far_down_the_list_are_found_when_nobody_before_them_may_begin() -> None:
    world = Hosts(limits=replace(QUICK, users=2, connections_per_host=1, connections_per_user=1))
    jobs = [*world.users("a", 3000, messages=0), *world.users("b", 2)]
    others = anyio.Event()

    async def wait(event: Event) -> None:
        if event.verb == "open_destination":
            await others.wait()

    async def found(event: Event) -> None:
        others.set()

    world.at("a").hook = wait
    world.at("b").hook = found
    assert len(jobs) < MOST_AHEAD
    await finish(world, jobs)
    assert world.done() == {"a": 3000, "b": 2}


async def test_hosts_one_after_the_other_in_the_list_are_at_work_at_the_same_time() -> None:
    world = Hosts(limits=replace(QUICK, users=2, connections_per_user=1))
    jobs = [*world.users("a", 10), *world.users("b", 10)]
    first: list[str] = []

    async def note(event: Event) -> None:
        if event.verb == "open_destination":
            first.append(event.account[0])

    world.at("a").hook = world.at("b").hook = note
    await finish(world, jobs)
    assert Counter(first[:10]) == {"a": 5, "b": 5}


async def test_within_a_host_the_order_is_that_of_the_list() -> None:
    world = Hosts(limits=replace(QUICK, users=1))
    jobs = world.users("a", 50)
    order: list[str] = []

    async def note(event: Event) -> None:
        if event.verb == "open_destination":
            order.append(event.account)

    world.at("a").hook = note
    await finish(world, jobs)
    assert order == [job.user for job in jobs]


async def test_a_user_who_waits_for_the_time_a_server_asked_for_has_no_seat() -> None:
    world = Hosts(limits=replace(QUICK, users=1))
    jobs = world.users("a", 5)
    done_before: list[int] = []

    async def once(event: Event) -> None:
        if event.verb == "append" and event.account == "a0":
            done_before.append(world.done()["a"])
            if len(done_before) == 1:
                raise Throttled("slow down", wait_s=2.0)

    world.at("a").hook = once
    await finish(world, jobs)
    assert world.done() == {"a": 5}
    assert done_before == [0, 4]


async def test_users_of_a_host_that_is_down_wait_for_it_and_the_others_go_on() -> None:
    """Nobody burns a try."""
    world = Hosts(limits=replace(QUICK, users=4))
    jobs = [*world.users("a", 30), *world.users("b", 20)]
    tried = 0

    async def down(event: Event) -> None:
        nonlocal tried
        if event.verb == "open_destination":
            tried += 1
            if world.done()["b"] < 20:
                raise ConnectionLost("a: Connection refused")

    world.at("a").hook = down
    await finish(world, jobs)
    assert world.done() == {"a": 30, "b": 20}
    assert tried < 30 + 40


async def test_a_host_that_stays_down_fails_its_users_and_no_others() -> None:
    world = Hosts(limits=replace(QUICK, users=4, host_down_s=0.2))
    jobs = [*world.users("a", 30), *world.users("b", 20)]

    async def down(event: Event) -> None:
        if event.verb == "open_destination":
            raise ConnectionLost("a: Connection refused")

    world.at("a").hook = down
    await finish(world, jobs)
    assert world.done() == {"b": 20}
    failed = [result for result in world.journal.results() if result.user[0] == "a"]
    assert {result.status for result in failed} == {"failed"} and len(failed) == 30
    assert sum("nobody could connect" in (result.error or "") for result in failed) >= 25, failed


async def test_a_signal_ends_a_run_in_which_everybody_only_waits_at_once() -> None:
    world = Hosts(limits=replace(QUICK, users=2, grace_s=600.0))
    jobs = world.users("a", 3)
    begun = anyio.Event()

    async def tomorrow(event: Event) -> None:
        if event.verb == "append":
            begun.set()
            raise Throttled("enough for today", wait_s=80_000.0)

    async def stop() -> None:
        await begun.wait()
        await run.seats.until_nobody_works()
        os.kill(os.getpid(), signal.SIGTERM)

    world.at("a").hook = tomorrow
    run = world.run()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop)
            ending = await run_plan(jobs, run)
    assert ending.stopped
    assert {result.status for result in world.journal.results()} == {"stopped"}


async def test_a_thousand_hosts_cost_a_user_no_more_than_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    has_room = HostLimits.has_room

    def counted(limits: HostLimits, hosts: Iterable[str]) -> bool:
        nonlocal asked
        asked += 1
        return has_room(limits, hosts)

    monkeypatch.setattr(HostLimits, "has_room", counted)
    done: list[str] = []

    def jobs() -> Iterable[UserJob]:
        for number in range(3000):
            endpoint = Endpoint(scheme="memory", host=f"h{number % 1000}", user=f"u{number}")
            yield UserJob(user=f"u{number}", source=Endpoint(scheme="memory"), destination=endpoint)

    async def act(job: UserJob) -> None:
        done.append(job.user)
        await checkpoint()

    run = Hosts(limits=replace(QUICK, users=5)).run()
    await for_each_user(jobs(), run, act)
    assert done == [f"u{number}" for number in range(3000)]
    assert asked <= 3 * 3000
