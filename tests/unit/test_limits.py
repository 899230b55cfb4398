"""Bounds hold, nobody starves, nothing leaks."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aimport.limits import ByteBudget, HostLimits


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
