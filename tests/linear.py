"""Is it linear? A statement about growth that holds on a busy machine.

CPU time of this thread alone, without the garbage collector, best of several tries: noise only
ever makes a run slower, so one good pair is proof, and what is quadratic never has one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Final

TRIES: Final = 5
LEAST_S: Final = 0.02
"""Below this the clock and the start of things are all there is."""


def assert_linear(work: Callable[[int], object], small: int, *, factor: int = 8) -> None:
    """`work(factor * small)` takes less than three times `factor` of what `work(small)` takes.

    Raises:
        AssertionError: with the times of the best try.
    """
    best = float("inf")
    said = ""
    for _ in range(TRIES):
        few = _cpu_s(work, small)
        many = _cpu_s(work, small * factor)
        ratio = many / max(few, LEAST_S)
        if ratio < best:
            best, said = ratio, f"{small} units take {few:.4f} s, {small * factor} take {many:.4f} s"
        if best < 3 * factor:
            return
    raise AssertionError(f"not linear: {said}")


def _cpu_s(work: Callable[[int], object], units: int) -> float:
    gc.collect()
    gc.disable()
    try:
        begun = time.thread_time()
        work(units)
        return time.thread_time() - begun
    finally:
        gc.enable()
