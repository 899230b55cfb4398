"""Repeats seeds of the simulation: `python -m tests.sim [-v] SEED...`; -v shows all that happens."""

from __future__ import annotations

import sys

from tests.sim.world import run_seed, simulated


def main() -> None:
    arguments = sys.argv[1:]
    told = "-v" in arguments
    with simulated(told=told) as base:
        for seed in map(int, filter(str.isdigit, arguments)):
            print(seed, run_seed(seed, base, told=told))


if __name__ == "__main__":
    main()
