"""Many users at once: bounded, in order, stopped cleanly, each ended by its own result."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from aimport.errors import DestinationFull, JournalError
from aimport.limits import Limits
from aimport.model import UserJob
from aimport.runners.local import plan_all, run_plan
from aimport.stores.memory import Event, Failure
from tests.pipeline.harness import QUICK, World, bodies, job, multiset

USERS = [f"user{number}" for number in range(30)]


def farm(limits: Limits = QUICK) -> World:
    world = World(limits=limits)
    for user in USERS:
        world.fill(user, "INBOX", bodies(5))
    return world


async def test_every_user_is_done_and_no_more_at_once_than_allowed() -> None:
    world = farm(Limits(users=4))
    at_work = most = 0

    async def count(event: Event) -> None:
        nonlocal at_work, most
        if event.verb == "create_mailbox":
            at_work += 1
            most = max(most, at_work)
        elif event.verb == "append":
            await anyio.sleep(0.002)  # long enough for others to come in
            at_work -= 1

    world.new.hook = count
    run = world.run()
    ending = await run_plan(map(job, USERS), run)
    assert not ending.stopped and ending.failure is None
    assert sorted(result.user for result in world.journal.results()) == sorted(USERS)
    assert all(result.status == "done" for result in world.journal.results())
    assert 1 < most <= 4
    assert (run.counters.users_done, run.counters.messages, run.counters.found) == (30, 150, 150)


async def test_a_user_who_cannot_begin_fails_alone() -> None:
    world = farm()
    broken = UserJob(user="x", source=job("x").source, destination=job("x").destination, error="no home")
    await run_plan([broken, job("user1")], world.run())
    assert {result.user: (result.status, result.error) for result in world.journal.results()} == {
        "x": ("failed", "no home"),
        "user1": ("done", None),
    }


@pytest.mark.fault("F32")
async def test_two_lines_with_one_destination_never_run_at_once() -> None:
    world = farm()
    inside: list[str] = []

    async def watch(event: Event) -> None:
        if event.verb == "open_destination":
            inside.append("open")
        if event.verb == "append":
            inside.append(event.mailbox)
            await anyio.lowlevel.checkpoint()

    world.new.hook = watch
    jobs = [
        UserJob(user=f"{parent}", source=job("user1").source, destination=job("user1").destination, parent=parent)
        for parent in ("A", "B")
    ]
    await run_plan(jobs, world.run())
    assert [entry for entry in inside if entry != "open"] == ["A/INBOX", "B/INBOX"]
    assert inside == ["open", "A/INBOX", "open", "B/INBOX"]


async def test_max_errors_takes_no_new_users() -> None:
    world = farm(Limits(users=1, max_errors=2))
    run = world.run()
    await run_plan((job(user) for user in ["no1", "no2", *USERS]), run)
    assert run.gave_up
    assert len(list(world.journal.results())) <= 4


@pytest.mark.parametrize("error", [DestinationFull("disk full"), JournalError("cannot write")])
async def test_a_failure_of_the_whole_run_ends_it_and_is_told(error: JournalError | DestinationFull) -> None:
    world = farm(Limits(users=2))
    world.new.failures = [Failure(nth=3, error=error)]
    ending = await run_plan(map(job, USERS), world.run())
    assert ending.failure is error
    statuses = [result.status for result in world.journal.results()]
    assert statuses.count("done") < len(USERS)
    assert "failed" in statuses


@pytest.mark.fault("F25")
async def test_the_first_signal_lets_batches_finish_and_the_rest_resumes() -> None:
    world = farm(Limits(users=2))
    stopped = False

    async def stop(event: Event) -> None:
        nonlocal stopped
        if event.verb == "append" and not stopped:
            stopped = True
            os.kill(os.getpid(), signal.SIGTERM)
            await anyio.sleep(0.05)

    world.new.hook = stop
    ending = await run_plan(map(job, USERS), world.run())
    assert ending.stopped and ending.failure is None
    done = [result for result in world.journal.results() if result.status == "done"]
    assert 0 < len(done) < len(USERS)
    await run_plan(map(job, USERS), world.run())
    for user in USERS:
        assert multiset(world.new, user) == multiset(world.old, user)


@pytest.mark.fault("F25")
async def test_the_second_signal_ends_at_once() -> None:
    world = farm(Limits(users=2))

    async def stall(event: Event) -> None:
        if event.verb == "append":
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                await anyio.sleep(0.05)
            await anyio.sleep_forever()

    world.new.hook = stall
    with anyio.fail_after(5):
        ending = await run_plan(map(job, USERS), world.run())
    assert ending.stopped
    assert {result.status for result in world.journal.results()} == {"stopped"}


async def test_plans_come_in_the_order_of_the_list_and_write_nothing() -> None:
    world = farm(Limits(users=3))
    planned = [user async for user in plan_all(map(job, [*USERS, "nobody"]), world.run())]
    assert [user.user for user in planned] == [*USERS, "nobody"]
    assert all(user.failure is None and user.mailboxes[0].messages == 5 for user in planned[:-1])
    assert planned[-1].failure is not None
    assert not world.new.accounts
