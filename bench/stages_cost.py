"""`python -m bench.stages_cost`: what it costs to know what holds a run up.

Two runs beside each other in one process, from memory to memory with the journal in memory: nothing is waited for, so
all that is spent is the client's CPU. In one each reading of the clock is done `TIMES` times, with the sum that follows
it; the difference, divided, is what the measuring of the other costs. What is done once would drown in noise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from aimport.account import Run
from aimport.runners.local import run_loop, run_plan
from aimport.stages import Meter, Stages
from bench.table import columns
from tests.pipeline.harness import World, bodies, job

TIMES: Final = 200
GOAL: Final = 0.01
HEADINGS: Final = ("messages", "mailboxes", "batches", "readings/batch", "CPU ms", "measuring µs", "share")


class Counted:
    """A clock that counts how often it is read, and can be slow."""

    def __init__(self, times: int) -> None:
        self.readings = 0
        self._more = range(times - 1)
        self._spare = Meter()

    def __call__(self) -> float:
        self.readings += 1
        now, spare = time.perf_counter(), self._spare
        for _ in self._more:
            spare.busy_s += time.perf_counter() - now
        return time.perf_counter()


def once(messages: int, mailboxes: int, clock: Callable[[], float]) -> tuple[float, int]:
    """CPU seconds of one run, and its batches."""
    world = World()
    for number in range(mailboxes):
        world.fill("bob", f"box{number}", bodies(messages // mailboxes, octets_each=4000))
    run: Run = world.run()
    run.stages = Stages(clock=clock)

    async def work() -> float:
        began_s = time.process_time()
        await run_plan([job("bob")], run)
        return time.process_time() - began_s

    spent_s = run_loop(work)
    assert all(result.status == "done" for result in run.journal.results())
    return spent_s, sum(meter.batches for (stage, _), meter in run.stages.mark().meters.items() if stage == "prepare")


def pair(messages: int, mailboxes: int, rounds: int) -> tuple[str, ...]:
    """A row of the table: medians over rounds, the plain run and the slow one in turn."""
    plain_s, extra_s = [], []
    readings = batches = 0
    for _ in range(rounds):
        clock = Counted(1)
        spent_s, batches = once(messages, mailboxes, clock)
        readings = clock.readings
        slow_s, _ = once(messages, mailboxes, Counted(TIMES))
        plain_s.append(spent_s)
        extra_s.append((slow_s - spent_s) / (TIMES - 1))
    cpu_s, cost_s = statistics.median(plain_s), statistics.median(extra_s)
    share = cost_s / cpu_s
    return (
        f"{messages:,}", str(mailboxes), str(batches), f"{readings / batches:.1f}", f"{cpu_s * 1e3:.1f}",
        f"{cost_s * 1e6:.0f}", f"{share:.3%} {'ok' if share < GOAL else 'ABOVE THE GOAL'}",
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stages_cost", description="What measuring stages costs.")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    sizes = ((640, 1), (640, 10), (100, 100))
    print(columns([HEADINGS, *(pair(messages, mailboxes, given.rounds) for messages, mailboxes in sizes)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
