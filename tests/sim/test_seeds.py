"""Thousands of short runs, each driven by one seed: whatever goes wrong, each message arrives once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.sim.world import run_seed, simulated

SEEDS: Final = 10_000
SHARDS: Final = 20
FOUND_A_FAULT: Final[tuple[tuple[int, str], ...]] = (
    (257, "a UIDVALIDITY that changed between two looks: equal octets were taken for those in doubt"),
)
"""Seeds that failed once, and what they found."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_whatever_goes_wrong_each_message_arrives_once(shard: int) -> None:
    share = SEEDS // SHARDS
    # Without coverage, which would double the time and sees nothing here that other tests do not show it.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--range", str(shard * share), str((shard + 1) * share)],
        env=plain,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=590,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("seed", "fault"), FOUND_A_FAULT)
def test_a_seed_that_found_a_fault_finds_none_any_more(seed: int, fault: str) -> None:
    with simulated() as base:
        run_seed(seed, base)


def test_a_seed_does_the_same_in_every_process() -> None:
    """Sets of text have another order in each process."""
    seeds = [*map(str, range(15))]
    with simulated() as base:
        here = [f"{seed} {run_seed(int(seed), base)}" for seed in seeds]
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-m", "tests.sim", *seeds],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        assert there.stdout.splitlines() == here
