"""Live figures of a run: moved by the lanes once a batch, read by the progress display.

What the report says is counted elsewhere, from selections and journal (`pipeline`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
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

    def user_ended(self, user: str, *, failed: bool) -> None:
        self.running.pop(user, None)
        self.ends.pop(user, None)
        self.users_done += 1
        self.users_failed += failed


def shown_time(us: int) -> str:
    """A time for people, of microseconds since 1970."""
    return f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
