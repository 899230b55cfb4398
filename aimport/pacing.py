"""Rates that hold: octets, messages and logins a second, per host and direction.

    Throttles ──of(host)──▶ Throttle ──▶ Pace.reserve() ──▶ seconds to wait

A `Pace` is a timetable: who asks is told when his turn is and goes then, so many connections share it in the
order they asked, without a lock and without a task. Smooth, and never more than ten seconds' worth in any ten
seconds: a leaky bucket (aiolimiter, say) lets through up to twice that, once its burst and once what leaks meanwhile;
it also sleeps on the loop's own clock, where a transport has to ask without waiting.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from aimport import seams

WINDOW_S: Final = 10.0
"""In any so many seconds no more than so many seconds' worth passes."""
SHIFT_S: Final = 0.05  # arbitrary
"""What a network may shift: the window is taken longer by this, the rate is less by half a percent."""
SLACK_S: Final = 0.25
"""So much of what a late wake-up has cost is made up for."""
MERGED_S: Final = 0.01
"""Turns this close together are one line of the timetable, which then has a thousand at most."""
QUANTUM_S: Final = 0.125
"""Octets move in pieces of so many seconds' worth, so that what stands in one window is known to a fraction of it."""
LEAST_QUANTUM: Final = 512
BATCH_S: Final = 0.5
"""A batch is cut so that it is no more than so many seconds' worth."""


class Pace:
    """So many units a second, in the order they are asked for."""

    def __init__(self, per_second: float, clock: Callable[[], float] = seams.monotonic) -> None:
        self.per_second = per_second
        self._clock = clock
        self._due = clock() - SLACK_S
        """When the next unit is due if all that were asked for before went smoothly."""
        self._last = clock()
        self._turns: deque[tuple[float, float]] = deque()
        """Time, in whole `MERGED_S`, and units of what went or is to go in the window of the last turn; ascending."""
        self._in_window = 0.0

    def reserve(self, units: float) -> float:
        """Seconds until these units may go, 0.0: now. They count from then on, whether they go or not.

        More than a whole window's worth passes alone, as if it were one.
        """
        now = self._clock()
        most = self.per_second * WINDOW_S
        counted = min(units, most)
        at = max(self._due, self._last, now)
        span = WINDOW_S + SHIFT_S
        while self._turns and (self._turns[0][0] <= at - span or self._in_window + counted > most + 1e-6):
            gone, had = self._turns.popleft()
            self._in_window -= had
            at = max(at, gone + span)
        self._due = max(self._due, at - SLACK_S) + units / self.per_second
        self._last = at
        line = math.ceil(at / MERGED_S) * MERGED_S  # counted as if it went a little later
        if self._turns and self._turns[-1][0] >= line:
            self._turns[-1] = (self._turns[-1][0], self._turns[-1][1] + counted)
        else:
            self._turns.append((line, counted))
        self._in_window += counted
        return at - now

    @property
    def quantum(self) -> int:
        """Octets that move at once."""
        return max(LEAST_QUANTUM, int(self.per_second * QUANTUM_S))

    @property
    def batch(self) -> int:
        return batch_of(self.per_second)


def batch_of(per_second: float) -> int:
    """Units of a batch at most at this rate; 0: no limit."""
    return max(1, int(per_second * BATCH_S)) if per_second else 0


@dataclass(slots=True)
class Throttle:
    """What one host may be asked for; None: as much as there is."""

    out: Pace | None = None
    """Octets to it."""
    into: Pace | None = None
    """Octets from it."""
    appends: Pace | None = None
    fetches: Pace | None = None
    """Messages."""
    logins: Pace | None = None
    """Connections, each of which logs in."""


class Throttles:
    """The rates of a run by host."""

    def __init__(
        self,
        *,
        octets_per_second: float = 0.0,
        messages_per_second: float = 0.0,
        logins_per_second: float = 0.0,
        clock: Callable[[], float] = seams.monotonic,
    ) -> None:
        """0: no limit."""
        self._rates = (octets_per_second, messages_per_second, logins_per_second)
        self._octets, self._messages, self._logins = self._rates
        self._clock = clock
        self.processes = 1
        """Among so many the rates are shared out (`pickle`)."""
        self._sharing = 1
        """So many have these rates and others like them."""
        self._hosts: dict[str, Throttle] = {}
        self._accounts: WeakValueDictionary[tuple[str, str], Pace] = WeakValueDictionary()
        """Each lives as long as a session of its account does."""

    def __reduce__(self) -> tuple[object, ...]:
        """Each of several processes has its share."""
        return _share, (self.processes, *(rate / self.processes for rate in self._rates))

    def of(self, host: str) -> Throttle:
        throttle = self._hosts.get(host)
        if throttle is None:
            throttle = self._hosts[host] = Throttle(
                out=self._pace(self._octets),
                into=self._pace(self._octets),
                appends=self._pace(self._messages),
                fetches=self._pace(self._messages),
                logins=self._pace(self._logins),
            )
        return throttle

    def appends_of(self, host: str, user: str, per_second: float) -> Pace | None:
        """What one account takes as its server's profile says, over all its sessions; 0: no limit known."""
        if not per_second:
            return None
        pace = self._accounts.get((host, user))
        if pace is None:
            pace = self._accounts[host, user] = Pace(per_second, self._clock)
        return pace

    def know_logins(self, host: str, per_second: float) -> None:
        """A host is known to take so many logins a second; what was asked for holds where it is less."""
        throttle = self.of(host)
        per_second /= self._sharing
        if per_second and (throttle.logins is None or throttle.logins.per_second > per_second):
            throttle.logins = Pace(per_second, self._clock)

    def _pace(self, per_second: float) -> Pace | None:
        return Pace(per_second, self._clock) if per_second else None


def _share(processes: int, octets: float, messages: float, logins: float) -> Throttles:
    throttles = Throttles(octets_per_second=octets, messages_per_second=messages, logins_per_second=logins)
    throttles._sharing = processes
    return throttles
