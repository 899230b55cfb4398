"""What is learnt of a host while it is used: how many connections it takes, whether more help, whether it is there.

    refused, held, throttled ──▶ Ceiling ──▶ allowed          appended ──▶ Gradient ──▶ is one more worth it?
    connected, not connected ──▶ Breaker ──▶ is it down, when is it tried again?

Pure: time comes in as an argument, seconds that never go back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 10.0
"""Refusals within so many seconds are one; after as many without any, one connection more is allowed."""
OVERTAKES_S: Final = 3.0
"""A refusal comes a few round trips before those who were let in are ready. Who is refused asks again later than that:
after five seconds (`imap.answers`)."""
CUT: Final = 0.75
"""What is left of the connections when a host refuses fewer than it has held before: sessions that have ended there
count a little longer than here, and others come and go."""
PROBE_S: Final = 900.0  # arbitrary
"""So long nobody asks for what was refused; twice as long after each time it is refused again."""
DOUBTED_S: Final = 30.0  # arbitrary
"""The same where the words speak of one user's connections, and only one user had that answer."""
LATENCY_RISE: Final = 1.25
"""Appends that take so many times as long, ..."""
RATE_RISE: Final = 1.05
"""... and bring less than so many times as much: the host has all it can do."""
ENOUGH_BATCHES: Final = 5
FAILURES: Final = 5
"""So many times in a row, by two users at least, a host that cannot be connected to is down: one user alone cannot
tell it from his account."""
MOST_WAIT_S: Final = 60.0


class Ceiling:
    """Connections of one host: fewer at a refusal, one more after each quiet window, never above what was asked for.

    A refusal tells the limit: what is inside it has. Only after a long while one more is tried, for limits are shared
    with others, and may be raised.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.allowed = most
        self.refused = 0
        """Times."""
        self._proven = 0
        """Most that were inside at once."""
        self._refused_at = 0
        """One connection more than the host takes, as far as is known; 0: nothing is."""
        self._refused_by = ""
        self._sure = False
        self._patience_s = 0.0
        self._cut = self._changed = self._overtaken = float("-inf")

    @property
    def learnt(self) -> int:
        """What it is known to take; 0: all that was asked for."""
        return self._refused_at - 1 if self._refused_at else 0

    def know(self, most: int) -> None:
        """The host is known to take no more."""
        self.most = min(self.most, most)
        self.allowed = min(self.allowed, self.most)

    def held(self, inside: int, now: float) -> None:
        """So many are logged in now."""
        self._proven = max(self._proven, inside)
        if now - self._overtaken < OVERTAKES_S:
            self._refused_at = inside + 1
            self.allowed = inside
        if self._refused_at and inside >= self._refused_at:
            # Within a window the answers of several connections may have overtaken each other.
            self._refused_at = inside + 1 if now - self._cut < WINDOW_S else 0
            self._patience_s = 0.0
        self.allowed = max(self.allowed, min(inside, self.most))

    def refuse(self, inside: int, now: float, *, who: str = "", sure: bool = True) -> None:
        """One more than those inside was refused, to `who`. `sure`: the words speak of no single user."""
        self.refused += 1
        again = now - self._cut < WINDOW_S
        if not inside:
            if not again:
                self.allowed = max(1, self.allowed // 2)  # others have them all, ...
                self._overtaken = now  # ... or it came before the OK of who has
        elif inside < self._proven:
            if not again:
                self.allowed = max(1, min(self.allowed, max(inside, int(self.allowed * CUT))))
        else:
            self._refused_at = inside + 1
            self.allowed = min(self.allowed, inside)
        self._sure = self._sure or sure or (self._refused_by not in ("", who))
        self._refused_by = who
        least_s = PROBE_S if self._sure else DOUBTED_S
        if not again:
            self._patience_s = max(2 * self._patience_s, least_s)
        else:
            self._patience_s = max(self._patience_s, least_s)
        self._cut = self._changed = now

    def slow_down(self, now: float) -> bool:
        """The host says that we are too fast: half as many, once a window. False: it was just done."""
        if now - self._cut < WINDOW_S:
            return False
        self.refused += 1
        self.allowed = max(1, self.allowed // 2)
        self._cut = self._changed = now
        return True

    def grow(self, used: int, now: float, *, worth: bool) -> None:
        """Allows one more where all that are allowed are in use, and a window has passed. `worth`: more may help."""
        if used < self.allowed or self.allowed >= self.most or not worth or now - self._changed < WINDOW_S:
            return
        if self._refused_at and self.allowed + 1 >= self._refused_at:
            if now - self._cut < self._patience_s:
                return
            self._proven = self.allowed  # so that a refusal of this one counts
        self.allowed += 1
        self._changed = now


@dataclass(slots=True)
class _Level:
    batches: int = 0
    seconds: float = 0.0
    """Latencies added up."""
    octets: int = 0
    spent_s: float = 0.0
    """Time that has passed."""

    @property
    def latency_s(self) -> float:
        return self.seconds / self.batches

    @property
    def rate(self) -> float:
        return self.octets / max(self.spent_s, 0.001)


class Gradient:
    """Appends at each number of connections: how long they took, and how much they brought."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._now = 0
        self._last = 0.0

    def note(self, inside: int, seconds: float, octets: int, now: float) -> None:
        """A batch was answered after so many seconds, while so many connections were logged in."""
        if inside != self._now:
            self._now, self._last = inside, now
            self._levels.pop(inside, None)  # as it was then it need not be now
            return
        level = self._levels.setdefault(inside, _Level())
        level.batches += 1
        level.seconds += seconds
        level.octets += octets
        level.spent_s += now - self._last
        self._last = now

    def worth_more(self) -> bool:
        """False: with the last connection added appends took longer, and brought no more."""
        level = self._levels.get(self._now)
        below = max((number for number in self._levels if number < self._now), default=0)
        if level is None or not below or level.batches < ENOUGH_BATCHES:
            return True
        fewer = self._levels[below]
        if fewer.batches < ENOUGH_BATCHES:
            return True
        return level.latency_s <= LATENCY_RISE * fewer.latency_s or level.rate >= RATE_RISE * fewer.rate


class Breaker:
    """Whether a host can be connected to. While it is down one user at a time looks, at growing intervals."""

    def __init__(self, first_wait_s: float, deadline_s: float) -> None:
        self._first_wait_s = first_wait_s
        self._deadline_s = deadline_s
        self._failures = 0
        self._users: set[str] = set()
        self._wait_s = 0.0
        self.down_since: float | None = None
        self.next_try = 0.0
        self.trying = False
        self.last = ""
        """How the last try failed."""

    @property
    def is_down(self) -> bool:
        return self.down_since is not None

    def lets_in(self, now: float) -> bool:
        """Whether somebody may connect now; when the host is down only one, to look."""
        return self.down_since is None or (not self.trying and now >= self.next_try)

    def given_up(self, now: float) -> bool:
        """It has been down for too long to be waited for."""
        return self.down_since is not None and now - self.down_since >= self._deadline_s

    def let_in(self) -> None:
        self.trying = self.is_down

    def failed(self, who: str, said: str, now: float, *, wait_s: float = 0.0, jitter: float = 1.0) -> bool:
        """Nobody could connect; `wait_s`: the server asked for it. True: it is down from now on."""
        self.last = said
        self._failures += 1
        if len(self._users) < 2:
            self._users.add(who)
        if self.down_since is None:
            if self._failures < FAILURES or len(self._users) < 2:
                return False
            self.down_since = now
            self._wait_s = self._first_wait_s
        elif self.trying:
            self._wait_s = min(2 * self._wait_s, max(MOST_WAIT_S, self._first_wait_s))
        else:
            return False  # it was begun before
        began, self.trying = not self.trying, False
        self.next_try = now + max(wait_s, self._wait_s * jitter)
        return began

    def connected(self) -> bool:
        """True: it was down until now."""
        was_down = self.is_down
        self._failures = 0
        self._users.clear()
        self.down_since = None
        self.trying = False
        return was_down

    def left(self) -> None:
        """Who was to look has gone without an answer."""
        self.trying = False
