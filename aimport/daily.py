"""Octets that accounts may give and take in a day, over all runs of this machine.

    Day.take(), Day.use() ──▶ Ledger: account, direction, hour ──▶ daily.sqlite in the state directory

A day is any 24 hours, for nobody knows when a server's day begins. What is to move is reserved before it does, in
shares that are durable: a process that is killed has counted a share too many, never one too few. Hours count until
the last minute of them is a day ago.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Literal

import anyio.to_thread

from aimport import seams
from aimport.errors import JournalError

Direction = Literal["fetch", "append"]

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
SHARE: Final = 16 * 1024 * 1024
"""Octets that are reserved at a time, or a hundredth of the day's."""
WORTH: Final = 10
"""Who has used up his day is not woken before a tenth of it is free again."""


class Ledger:
    """What was reserved, by hour. `path` None: of this process alone. Blocks: use it in a thread."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._memory: sqlite3.Connection | None = None
        self._alone = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        """Another process has the same file."""
        return Ledger, (self._path,)

    def reserve(
        self, account: str, direction: Direction, octets: int, limit: int, *, least: int, now: int
    ) -> tuple[int, float]:
        """Takes as much of `octets` as the last 24 hours leave of `limit`, if that is `least` or more.

        What was reserved, and 0.0; or 0, and seconds until it is worth asking again.

        Raises:
            JournalError: the file cannot be used.
        """
        with self._opened() as db:
            db.execute("BEGIN IMMEDIATE")
            hours: Sequence[tuple[int, int]] = db.execute(
                "SELECT hour, octets FROM spent WHERE account = ? AND direction = ? AND hour > ? ORDER BY hour",
                (account, direction, _last_gone(now)),
            ).fetchall()
            free = limit - sum(octets for _, octets in hours)
            if free < least:
                db.execute("COMMIT")
                return 0, _until_free(hours, max(least, limit // WORTH) - free, now)
            taken = min(octets, free)
            self._add(db, account, direction, taken, now // HOUR_S)
            db.execute("COMMIT")
        return taken, 0.0

    def add(self, account: str, direction: Direction, octets: int, hour: int) -> None:
        """Octets that moved all the same, or, below 0, that did not, though they were reserved in that hour.

        Raises:
            JournalError: the file cannot be used.
        """
        with self._opened() as db:
            db.execute("BEGIN IMMEDIATE")
            self._add(db, account, direction, octets, hour)
            db.execute("DELETE FROM spent WHERE hour <= ?", (_last_gone(_now()),))
            db.execute("COMMIT")

    @staticmethod
    def _add(db: sqlite3.Connection, account: str, direction: Direction, octets: int, hour: int) -> None:
        db.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?) "
            "ON CONFLICT (account, direction, hour) DO UPDATE SET octets = max(0, octets + excluded.octets)",
            (account, direction, hour, octets),
        )

    @contextmanager
    def _opened(self) -> Generator[sqlite3.Connection]:
        try:
            with self._alone:
                if self._path is None:
                    if self._memory is None:
                        self._memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                        self._memory.execute(_TABLE)
                    yield self._memory
                    return
                _make_private(self._path)
                with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as db:
                    db.execute(_TABLE)
                    yield db
        except (OSError, sqlite3.Error) as exc:
            raise JournalError(f"{self._path}: daily amounts cannot be kept: {exc}") from exc


_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS spent (account TEXT, direction TEXT, hour INTEGER, octets INTEGER, "
    "PRIMARY KEY (account, direction, hour)) WITHOUT ROWID"
)


def _now() -> int:
    """Seconds since 1970."""
    return seams.now_us() // 1_000_000


def _last_gone(now: int) -> int:
    """The last hour that does not count any more."""
    return (now - DAY_S) // HOUR_S - 1


def _until_free(hours: Sequence[tuple[int, int]], wanted: int, now: int) -> float:
    """Seconds until so many octets more are free than now; hours ascend."""
    gone_at = now
    for hour, octets in hours:
        gone_at = (hour + 1) * HOUR_S + DAY_S
        wanted -= octets
        if wanted <= 0:
            break
    return float(max(gone_at - now, 1))


def _make_private(path: Path) -> None:
    """The file, for us alone.

    Raises:
        JournalError: somebody else could write there.
        OSError
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.parent.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise JournalError(f"{path.parent} can be written by others", hint=f"chmod go-w {path.parent}")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


class Day:
    """One account in one direction, as this process uses it."""

    def __init__(self, ledger: Ledger, account: str, direction: Direction, limit: int) -> None:
        self._ledger = ledger
        self._account = account
        self._direction: Direction = direction
        self.limit = limit
        """Octets in 24 hours."""
        self.margin = 0
        """What must be left beside: it may be under way already."""
        self._left = 0
        """Reserved, and not yet used; below 0: used without."""
        self._hour = 0
        """When that was."""

    async def take(self, octets: int) -> float:
        """0.0: so many move now; else seconds until it is worth asking again.

        Raises:
            JournalError
        """
        while True:
            now = _now()
            if self._left > 0 and self._hour != now // HOUR_S:  # it counts from when it moves
                await self._give_back(self._left)
                continue
            wanted = min(octets + self.margin, self.limit)  # a message above it passes alone, on a day of its own
            if self._left >= wanted:
                self._left -= octets
                return 0.0
            taken, wait_s = await anyio.to_thread.run_sync(self._reserve, wanted - self._left, now)
            self._left += taken  # another lane may have had its share meanwhile
            self._hour = now // HOUR_S
            if wait_s and self._left < wanted:
                return wait_s

    def _reserve(self, need: int, now: int) -> tuple[int, float]:
        share = max(need, min(SHARE, self.limit // 100))
        return self._ledger.reserve(
            self._account, self._direction, share, self.limit, least=min(need, self.limit), now=now
        )

    def use(self, octets: int) -> None:
        """So many move, whatever is left."""
        self._left -= octets

    async def close(self, *, under_way: bool) -> None:
        """Gives back what was reserved and not used; nothing where it may be `under_way`.

        Raises:
            JournalError
        """
        if self._left < 0 or not under_way:
            await self._give_back(self._left)
        self._left = 0

    async def _give_back(self, octets: int) -> None:
        self._left -= octets
        if octets:
            hour = self._hour or _now() // HOUR_S
            await anyio.to_thread.run_sync(self._ledger.add, self._account, self._direction, -octets, hour)
