"""Bounds hold, nobody starves, nothing leaks."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aimport.errors import ConnectionLost, HostDown, Throttled, TooManyConnections, Whose
from aimport.limits import AT_ONCE, LOGINS_REFUSED, ByteBudget, HostLimits, Limits, within_descriptors
from tests.unit.test_pacing import Clock


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


def inside(hosts: HostLimits, host: str, users: int) -> list[dict[str, int]]:
    """So many users, each with one connection that is logged in."""
    places = []
    for number in range(users):
        held = hosts.try_hold([host])
        assert held is not None, number
        hosts.logged_in(host, f"user{number}")
        places.append(held)
    return places


def leave(hosts: HostLimits, held: dict[str, int], user: str) -> None:
    for host in held:
        hosts.left(host, user)
    hosts.release(held)


async def test_a_host_that_refuses_a_connection_is_asked_for_no_more_and_others_as_before() -> None:
    hosts = HostLimits(50)
    held = inside(hosts, "a", 4)
    refused = hosts.try_hold(["a"])
    assert refused is not None
    hosts.failed("a", "user4", TooManyConnections("too many"))
    hosts.release(refused)
    assert hosts.try_hold(["a"]) is None
    assert hosts.try_hold(["b"]) is not None
    leave(hosts, held[0], "user0")
    assert hosts.try_hold(["a"]) is not None  # four again
    assert hosts.try_hold(["a"]) is None
    [reached] = hosts.reached()
    assert (reached.host, reached.connections, reached.most, reached.refused) == ("a", 4, 50, 1)


async def test_what_is_known_of_a_host_is_never_raised_and_never_below_one() -> None:
    hosts = HostLimits(50)
    hosts.allow("a", 4)
    hosts.allow("a", 15)
    inside(hosts, "a", 4)
    assert hosts.try_hold(["a"]) is None
    assert list(hosts.reached()) == []


@pytest.mark.parametrize(("whose", "of_user"), [("", True), ("user", True), ("address", False)])
def test_a_second_connection_that_is_refused_is_a_limit_of_that_user_unless_it_is_that_of_the_address(
    whose: Whose, of_user: bool
) -> None:
    hosts = HostLimits(50)
    inside(hosts, "a", 2)
    error = TooManyConnections("too many")
    error.whose = whose
    hosts.failed("a", "user0", error)
    assert hosts.try_hold(["a"], "user0") is None
    assert (hosts.try_hold(["a"], "ann") is not None) is of_user
    if of_user:
        hosts.forget("user0")
        assert hosts.try_hold(["a"], "user0") is not None


def test_a_session_that_expires_costs_its_user_a_connection_and_one_that_was_his_only_one_the_host() -> None:
    hosts = HostLimits(50, clock=Clock())
    places = inside(hosts, "a", 10)
    hosts.logged_in("a", "user0")
    error = TooManyConnections("Session expired")
    hosts.heed("a", "user0", error)  # of another host
    assert hosts.try_hold(["a"], "user0") is not None
    error.host = "a"
    hosts.heed("a", "user0", error)
    hosts.left("a", "user0")
    assert hosts.try_hold(["a"], "user0") is None
    assert list(hosts.reached()) == []
    hosts.heed("a", "user1", error)
    assert [each.connections for each in hosts.reached()] == [25]
    assert len(places) == 10


async def test_a_host_is_asked_for_a_lot_by_and_by() -> None:
    """No herd, neither at the beginning nor when it has just come back."""
    hosts = HostLimits(50)
    arriving = [hosts.try_hold(["a"]) for _ in range(AT_ONCE + 1)]
    assert [each is not None for each in arriving] == [True] * AT_ONCE + [False]
    for number in range(AT_ONCE):
        hosts.logged_in("a", f"user{number}")
    more = [hosts.try_hold(["a"]) for _ in range(AT_ONCE + 1)]
    assert [each is not None for each in more] == [True] * AT_ONCE + [False]


async def test_users_of_a_host_that_is_down_wait_and_one_at_a_time_looks() -> None:
    clock = Clock()
    hosts = HostLimits(50, first_wait_s=1.0, down_s=600.0, clock=clock)
    for name in ("ann", "bob") * 3:
        hosts.failed("a", name, ConnectionLost("refused"))
    assert hosts.is_down("a") and hosts.try_hold(["a"]) is None
    came: list[int] = []

    async def user(number: int) -> None:
        async with hosts.hold(["a"]):
            came.append(number)
            if len(came) < 3:
                hosts.failed("a", f"user{number}", ConnectionLost("refused"))
            else:
                hosts.logged_in("a", f"user{number}")
                await checkpoint()
                hosts.left("a", f"user{number}")

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(user, number)
        await anyio.wait_all_tasks_blocked()
        assert came == []
        for looked in (1, 2):
            clock.now += 4
            hosts.release({})  # any change wakes
            await anyio.wait_all_tasks_blocked()
            assert came == list(range(looked))
            async with hosts.hold(["b"]):  # others go on
                pass
        clock.now += 10
        hosts.release({})
    assert sorted(came) == list(range(6)) and not hosts.is_down("a")


async def test_a_host_that_stays_down_is_given_up_and_says_why() -> None:
    clock = Clock()
    hosts = HostLimits(50, first_wait_s=1.0, down_s=30.0, clock=clock)
    for user in ("ann", "bob") * 3:
        hosts.failed("a", user, ConnectionLost("a: Connection refused"))
    clock.now += 31
    assert hosts.has_room(["a"])  # to be told
    looker = hosts.try_hold(["a"])
    assert looker is not None
    with pytest.raises(HostDown, match=r"nobody could connect for 31 s: a: Connection refused"):
        async with hosts.hold(["a"]):
            pass


async def test_an_address_that_is_too_fast_logs_nobody_in_for_the_time_it_was_told() -> None:
    clock = Clock()
    hosts = HostLimits(50, clock=clock)
    inside(hosts, "a", 1)
    error = Throttled("too many logins from this address", wait_s=30.25)
    error.whose = "address"
    hosts.failed("a", "bob", error)
    clock.now += 30.249
    assert hosts.try_hold(["a"]) is None and hosts.try_hold(["b"]) is not None
    clock.now += 0.001
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
