"""Connections per host over several processes: never more than allowed, and none is lost with its process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import pytest

from aimport.slots import SharedHosts, Slots


def hosts(directory: Path, per_host: int) -> SharedHosts:
    """As of one process of several: locks of one process are as apart from each other as those of two."""
    return SharedHosts(per_host, Slots(directory, per_host))


async def test_two_processes_hold_no_more_than_the_limit_together(tmp_path: Path) -> None:
    processes = [hosts(tmp_path, 3), hosts(tmp_path, 3)]
    now = most = done = 0

    async def connect(process: SharedHosts) -> None:
        nonlocal now, most, done
        async with process.hold(["imap.example.org", ""]):
            now += 1
            most = max(most, now)
            await anyio.sleep(0.005)
            now -= 1
        done += 1

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(connect, processes[number % 2])
    assert (most, done, now) == (3, 40, 0)
    assert Slots(tmp_path, 3).in_use("imap.example.org") == 0


async def test_source_and_destination_are_taken_together_or_not_at_all(tmp_path: Path) -> None:
    one, other = hosts(tmp_path, 1), hosts(tmp_path, 1)
    held = one.try_hold(["a", ""])
    assert held is not None
    assert other.try_hold(["b", "a"]) is None
    assert Slots(tmp_path, 1).in_use("b") == 0
    one.release(held)
    both = other.try_hold(["b", "a"])
    assert both is not None
    other.release(both)


async def test_a_limit_below_one_pair_lets_one_pair_pass_at_a_time(tmp_path: Path) -> None:
    """Source and destination are one host that allows one connection: two would wait for ever."""
    one, other = hosts(tmp_path, 1), hosts(tmp_path, 1)
    async with one.hold(["a", "a"]):
        assert other.try_hold(["a", "a"]) is None
        assert other.try_hold(["a"]) is None
    async with other.hold(["a", "a"]):
        pass


async def test_who_has_none_goes_before_who_has_some(tmp_path: Path) -> None:
    greedy, modest = hosts(tmp_path, 2), hosts(tmp_path, 2)
    order: list[str] = []

    async def wait(process: SharedHosts, name: str, release: anyio.Event) -> None:
        async with process.hold(["a"]):
            order.append(name)
            await release.wait()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            first, second, rest = anyio.Event(), anyio.Event(), anyio.Event()
            tasks.start_soon(wait, greedy, "greedy", first)
            tasks.start_soon(wait, greedy, "greedy", rest)
            await anyio.wait_all_tasks_blocked()
            assert order == ["greedy", "greedy"]
            tasks.start_soon(wait, modest, "modest", second)
            while not greedy._slots.somebody_waits("a"):  # noqa: ASYNC110 # nobody tells: it may be another process
                await anyio.sleep(0.01)
            assert greedy.try_hold(["a"]) is None, "a further lane is for who needs nobody else's"
            tasks.start_soon(wait, greedy, "greedy", second)
            await anyio.wait_all_tasks_blocked()
            first.set()
            while len(order) < 3:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            assert order[2] == "modest"
            second.set()
            rest.set()


async def test_what_a_host_refused_one_process_no_process_asks_for_again(tmp_path: Path) -> None:
    one, other = hosts(tmp_path, 5), hosts(tmp_path, 5)
    with ExitStack() as stack:
        for process in (one, one, other, other):
            held = process.try_hold(["a"])
            assert held is not None
            stack.callback(process.release, held)
        assert other.refused_connection("a", "bob", sure=True) == 3
    with ExitStack() as stack:
        for process in (one, other, one):
            held = process.try_hold(["a"])
            assert held is not None
            stack.callback(process.release, held)
        assert one.try_hold(["a"]) is other.try_hold(["a"]) is None
    one.allow("a", 4)
    assert Slots(tmp_path, 5).most("a") == 3, "no better knowledge than that of a refusal"
    one.hear(other.reached())
    assert [(each.host, each.connections, each.most, each.refused) for each in one.reached()] == [("a", 3, 5, 1)]


def test_long_after_a_refusal_one_more_is_tried(tmp_path: Path) -> None:
    slots = Slots(tmp_path, 5)
    slots.allow("a", 3)
    [most] = tmp_path.glob("*/most")
    for allowed in (4, 5, 5):
        os.utime(most, (0, 0))
        assert slots.most("a") == allowed
        assert slots.most("a") == allowed, "not at once one more"


HOLD = """
import sys
from pathlib import Path
from aimport.slots import Slots
assert Slots(Path(sys.argv[1]), 2).try_take({"a": 2}) is not None
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


async def test_connections_of_a_killed_process_are_free_at_once(tmp_path: Path) -> None:
    ours = hosts(tmp_path, 2)
    with holder(tmp_path) as process:
        assert ours.try_hold(["a"]) is None
        process.kill()
        process.wait()
        held = ours.try_hold(["a", "a"])
        assert held is not None
        ours.release(held)


async def test_who_is_cancelled_while_it_waits_leaves_nothing_behind(tmp_path: Path) -> None:
    ours, theirs = hosts(tmp_path, 1), hosts(tmp_path, 1)
    async with theirs.hold(["a"]):
        with anyio.move_on_after(0.1):
            async with ours.hold(["a"]):
                pytest.fail("there is none")
        assert not theirs._slots.somebody_waits("a")
    async with ours.hold(["a"]):
        pass
