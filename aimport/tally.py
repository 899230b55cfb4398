"""Live figures of a run: moved by the lanes once a batch, read by the progress display.

What the report says is counted elsewhere, from selections and journal (`pipeline`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aimport import seams


@dataclass(slots=True)
class UserProgress:
    """What the progress display shows of one user."""

    user: str
    host: str
    began: float
    found: int = 0
    settled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Those of one process, to be added to those of others."""

    users_done: int = 0
    users_failed: int = 0
    found: int = 0
    messages: int = 0
    octets: int = 0
    hosts: Mapping[str, int] = field(default_factory=dict)
    running: tuple[tuple[str, str, int, int], ...] = ()
    """User, host, found, settled."""
    stages: tuple[tuple[str, str, int, float, float, float, float], ...] = ()
    """Stage, host and what its meter shows (`aimport.stages`)."""
    processor: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """What `stages.Processor` shows."""

    @classmethod
    def sum(cls, parts: Iterable[Figures]) -> Figures:
        parts = list(parts)
        hosts: Counter[str] = Counter()
        stages: dict[tuple[str, str], list[float]] = {}
        for part in parts:
            hosts.update(part.hosts)
            for stage, host, *shown in part.stages:
                known = stages.setdefault((stage, host), [0.0] * len(shown))
                known[:] = map(sum, zip(known, shown, strict=True))
        return cls(
            users_done=sum(part.users_done for part in parts),
            users_failed=sum(part.users_failed for part in parts),
            found=sum(part.found for part in parts),
            messages=sum(part.messages for part in parts),
            octets=sum(part.octets for part in parts),
            hosts=dict(hosts),
            running=tuple(each for part in parts for each in part.running),
            stages=tuple(
                (stage, host, int(batches), busy_s, waiting_s, held_s, crowded_s)
                for (stage, host), (batches, busy_s, waiting_s, held_s, crowded_s) in stages.items()
            ),
            processor=(
                sum(part.processor[0] for part in parts),
                sum(part.processor[1] for part in parts),
                sum(part.processor[2] for part in parts),
                sum(part.processor[3] for part in parts),
            ),
        )


class Counters:
    """Live figures of a run, moved by the lanes once a batch and read by the progress display."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.began = clock()
        self.users_done = 0
        self.users_failed = 0
        self.found = 0
        self.messages = 0
        self.octets = 0
        self.hosts: Counter[str] = Counter()
        self.running: dict[str, UserProgress] = {}
        self.waiting: dict[str, int] = {}
        """Users who wait for a time, and for which: microseconds since 1970."""
        self.ends: dict[str, int] = {}
        """The same of users who have used up a day: when all of theirs is there, about."""

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self.began

    def user_began(self, user: str, host: str) -> UserProgress:
        progress = UserProgress(user=user, host=host or "local", began=self._clock())
        self.running[user] = progress
        return progress

    def user_found(self, user: str, messages: int) -> None:
        self.found += messages
        self.running[user].found += messages

    def settled(self, user: str, messages: int, octets: int) -> None:
        progress = self.running[user]
        progress.settled += messages
        self.messages += messages
        self.octets += octets
        self.hosts[progress.host] += messages

    @contextmanager
    def waits(self, user: str, seconds: float) -> Generator[None]:
        """While a user waits so long."""
        self.waiting[user] = seams.now_us() + int(seconds * 1e6)
        try:
            yield
        finally:
            del self.waiting[user]

    def user_rests(self, user: str) -> None:
        """Until its next turn."""
        self.running.pop(user, None)

    def passed_over(self, messages: int, octets: int) -> None:
        """A user was done before this process began."""
        self.users_done += 1
        self.found += messages
        self.messages += messages
        self.octets += octets

    def user_ended(self, user: str, *, failed: bool) -> None:
        self.running.pop(user, None)
        self.ends.pop(user, None)
        self.users_done += 1
        self.users_failed += failed

    def figures(self) -> Figures:
        return Figures(
            users_done=self.users_done,
            users_failed=self.users_failed,
            found=self.found,
            messages=self.messages,
            octets=self.octets,
            hosts=dict(self.hosts),
            running=tuple((each.user, each.host, each.found, each.settled) for each in self.running.values()),
        )

    def show(self, figures: Figures) -> None:
        """Becomes what other processes count."""
        self.users_done, self.users_failed = figures.users_done, figures.users_failed
        self.found, self.messages, self.octets = figures.found, figures.messages, figures.octets
        self.hosts = Counter(figures.hosts)
        began = self._clock()
        self.running = {
            user: UserProgress(user=user, host=host, began=began, found=found, settled=settled)
            for user, host, found, settled in figures.running
        }


def shown_time(us: int) -> str:
    """A time for people, of microseconds since 1970."""
    return f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
