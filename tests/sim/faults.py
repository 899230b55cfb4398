"""What goes wrong in a run, how often, and until when."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

NEVER: Final = 0


class Faults:
    """The plan of one seed. Each kind of fault is on in some seeds and off in others, so that none hides another."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.left = chance.choice((0, 1, 2, 4, 10))
        """So many more things go wrong; then nothing does, so that a seed ends."""
        self.odds = chance.choice((0.02, 0.1, 0.3))
        self.held_back = False
        """Nothing goes wrong while the checker looks."""
        self.trace: list[tuple[object, ...]] = []
        """All that happened, in order, each with its time."""
        self._time: Callable[[], float] = lambda: 0.0
        self._told = False

    def begin(self, clock: Callable[[], float], *, told: bool) -> None:
        """`told`: what happens is printed."""
        self._time, self._told = clock, told

    def note(self, *what: object) -> None:
        """Something that happened. No paths and no addresses of memory: they differ each time."""
        self.trace.append((self._time(), *what))
        if self._told:
            print(f"{self._time():12.6f}", *what)

    def now(self, odds: float = 1.0) -> bool:
        """Whether something goes wrong here."""
        if self.left > 0 and not self.held_back and self.chance.random() < self.odds * odds:
            self.left -= 1
            return True
        return False

    def one_of(self, kinds: Sequence[T], odds: float = 1.0) -> T | None:
        """What goes wrong here, if anything does."""
        return self.chance.choice(kinds) if kinds and self.now(odds) else None

    def cut_at(self) -> int:
        """Octets after which a connection breaks, when it does; 0: it does not."""
        if self.left > 0 and self.chance.random() < 0.5:
            return int(2 ** self.chance.uniform(4, 13))
        return NEVER
