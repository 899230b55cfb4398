"""Bounds hold, nobody starves, nothing leaks."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aimport.limits import LOGINS_REFUSED, ByteBudget, HostLimits, Limits, within_descriptors


async def test_budget_never_goes_below_zero_and_waiters_are_served_in_order() -> None:
    budget = ByteBudget(100)
    served: list[int] = []

    async def taker(number: int, octets: int) -> None:
        lease = budget.lease()
        await lease.take(octets)
        served.append(number)
        assert budget.free >= 0
        await checkpoint()
        lease.close()

    async with anyio.create_task_group() as tasks:
        for number, octets in enumerate((80, 60, 10, 100, 1)):
            tasks.start_soon(taker, number, octets)
    assert served == [0, 1, 2, 3, 4]
    assert budget.free == 100


async def test_a_message_larger_than_the_budget_passes_alone() -> None:
    budget = ByteBudget(10)
    with anyio.fail_after(5):
        assert await budget.take(1000) == 10
    assert budget.free == 0
    budget.give(10)
    assert budget.free == 10


@pytest.mark.parametrize("early", [True, False])
async def test_a_cancelled_waiter_gives_back_its_turn(early: bool) -> None:
    budget = ByteBudget(10)
    await budget.take(10)
    scope = anyio.CancelScope()

    async def waiter() -> None:
        lease = budget.lease()
        with scope:
            try:
                await lease.take(5)
            finally:
                lease.close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter)
        await anyio.wait_all_tasks_blocked()
        if early:
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            budget.give(10)
        else:
            budget.give(10)  # its turn has come, and in the same moment it is cancelled
            scope.cancel()
    assert budget.free == 10


async def test_a_pair_of_connections_is_taken_at_once_or_not_at_all() -> None:
    """Ten users who each need two connections to one host of three never deadlock."""
    hosts = HostLimits(3)
    done = 0

    async def user() -> None:
        nonlocal done
        async with hosts.hold(("imap:143", "imap:143")):
            await checkpoint()
            done += 1

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(user)
    assert done == 10


async def test_a_full_host_does_not_stop_another() -> None:
    hosts = HostLimits(1)
    release = anyio.Event()

    async def holder() -> None:
        async with hosts.hold(("a",)):
            await release.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(holder)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(holder)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            async with hosts.hold(("b", "")):
                pass
        release.set()


async def test_one_pair_passes_a_limit_that_is_too_small_for_it() -> None:
    hosts = HostLimits(1)
    with anyio.fail_after(5):
        async with hosts.hold(("a", "a")):
            assert hosts.try_hold(("a",)) is None
    held = hosts.try_hold(("a",))
    assert held is not None
    hosts.release(held)


async def test_a_host_that_refuses_a_connection_is_asked_for_one_fewer_and_others_as_before() -> None:
    hosts = HostLimits(50)
    held = [hosts.try_hold(["a"]) for _ in range(5)]
    assert hosts.refused_connection("a") == 4
    assert hosts.try_hold(["a"]) is None
    assert hosts.try_hold(["b"]) is not None
    for each in held[:2]:
        assert each is not None
        hosts.release(each)
    assert hosts.try_hold(["a"]) is not None  # four again
    assert hosts.try_hold(["a"]) is None


def test_what_was_learnt_of_a_host_is_never_raised_and_never_below_one() -> None:
    hosts = HostLimits(50)
    hosts.allow("a", 4)
    hosts.allow("a", 15)
    assert hosts.refused_connection("a") == 1
    assert hosts.try_hold(["a"]) is not None


def test_logins_refused_one_after_the_other_close_a_host() -> None:
    hosts = HostLimits(50)
    for _ in range(LOGINS_REFUSED - 1):
        hosts.refused_login("a")
    hosts.logged_in("a")
    for _ in range(LOGINS_REFUSED - 1):
        hosts.refused_login("a")
    assert not hosts.is_closed("a")
    hosts.refused_login("a")
    assert hosts.is_closed("a") and not hosts.is_closed("b")


@pytest.mark.parametrize(
    ("descriptors", "users", "of_user"),
    [(0, 1, 1), (32, 1, 1), (63, 1, 1), (64, 1, 2), (100, 2, 2), (256, 7, 2), (1024, 10, 2), (1 << 20, 10, 2)],
)
def test_users_and_lanes_fall_to_what_open_files_are_enough_for(descriptors: int, users: int, of_user: int) -> None:
    lowered = within_descriptors(Limits(users=10, connections_per_user=2), descriptors)
    assert (lowered.users, lowered.connections_per_user) == (users, of_user)
