"""Repeats seeds of the simulation: `python -m tests.sim [-v] SEED...`; -v shows all that happens.

`python -m tests.sim --range FIRST END` runs many and shows only the first that finds a fault.
"""

from __future__ import annotations

import sys

from tests.sim.world import run_seed, simulated


def main() -> None:
    arguments = sys.argv[1:]
    told = "-v" in arguments
    numbers = [int(each) for each in arguments if each.isdigit()]
    with simulated(told=told) as base:
        if "--range" in arguments:
            for seed in range(*numbers):
                run_seed(seed, base)
            return
        for seed in numbers:
            print(seed, run_seed(seed, base, told=told))


if __name__ == "__main__":
    main()
