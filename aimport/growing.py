"""The users of a plan, whose list may grow while its run works.

    list ──read again──▶ users that are new ──▶ jobs, behind those that are known

What is known stays as it was read: users that are taken out go on, rows that are changed do not change; both are said.
Nothing is kept of the list in memory: it is a copy without a name, read once more for each comparison.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Final

from aimport.errors import AimportError
from aimport.model import UserJob
from aimport.plan import Plan, jobs
from aimport.seen import Seen
from aimport.users import UserRow, check_users, iter_users

logger = logging.getLogger(__name__)

_SHOWN: Final = 5

Version = tuple[int, int, int]


class Growing:
    """Jobs of the users that are not `done`; iterated anew, it begins anew, with all that is known by then.

    `biggest`: users who begin first, with their octets.
    """

    def __init__(
        self, plan: Plan, done: Container[str] = frozenset(), biggest: Mapping[str, float] | None = None
    ) -> None:
        self._plan = plan
        self._done = done
        self._biggest = biggest or {}
        self._readings: list[Callable[[], Iterator[UserRow]]] = [plan.selection.rows]
        self._given = 0
        self._taken = Seen()
        self._joined: set[str] = set()
        users = plan.selection.users
        self._path = users.path if users is not None and plan.selection.single is None else ""
        self._read = self.version()

    @property
    def can_grow(self) -> bool:
        """Whether its list lies in a file, which can be read again."""
        return self._read is not None

    def __iter__(self) -> Iterator[UserJob]:
        self._given, self._taken = 0, Seen()
        return self._more()

    def take(self) -> Iterator[UserJob] | None:
        """The jobs of users who have joined since this pass was through with all others; None: there are none."""
        return self._more() if self._given < len(self._readings) else None

    def has_joined(self, user: str) -> bool:
        """Whether a user was not in the list when the run began."""
        return user in self._joined

    def _more(self) -> Iterator[UserJob]:
        while self._given < len(self._readings):
            reading = self._readings[self._given]
            self._given += 1
            for job in jobs(self._plan, rows=self._in_order(reading), taken=self._taken):
                if job.user not in self._done:
                    yield job

    def _in_order(self, reading: Callable[[], Iterator[UserRow]]) -> Iterator[UserRow]:
        """As listed, but the biggest first, so that none of them is the only one at work in the end."""
        big = self._biggest
        if big:
            yield from sorted((row for row in reading() if row.user in big), key=lambda row: -big[row.user])
        yield from (row for row in reading() if row.user not in big)

    def version(self) -> Version | None:
        """Which file it is now, its size and when it was changed; None: it cannot be read again, or is not there."""
        try:
            state = os.stat(self._path)
        except (OSError, ValueError):
            return None
        return (state.st_ino, state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else None

    def differs(self) -> bool:
        """Whether the file is there and is not as it was read."""
        now = self.version()
        return now is not None and now != self._read

    def read(self) -> int:
        """Reads the list again; how many users joined. A list that is wrong is told, and nobody joins. Blocks."""
        self._read = self.version() or self._read
        try:
            users = check_users(self._path, form=self._plan.request.list_format, copy=True)
        except (AimportError, OSError) as error:
            logger.warning("user list read again and not taken: %s", error)
            return 0
        mask = self._plan.selection.mask

        def rows() -> Iterator[UserRow]:
            return (row for row in iter_users(users) if mask is None or mask.fullmatch(row.user))

        names, whole = Seen(), Seen()
        known = list(self._readings)
        for reading in known:
            for row in reading():
                names.add(row.user)
                whole.add(*_text(row))
        new: set[str] = set()
        changed: list[str] = []
        kept = Seen()
        for row in rows():
            kept.add(row.user)
            if not names.holds(row.user):
                new.add(row.user)
            elif not whole.holds(*_text(row)):
                changed.append(row.user)
        removed = [row.user for reading in known for row in reading() if not kept.holds(row.user)]
        if removed:
            logger.warning("user list: taken out while the run works, and imported all the same: %s", _some(removed))
        if changed:
            logger.warning("user list: changed while the run works, and imported as it was: %s", _some(changed))
        if new:
            self._joined |= new
            self._readings.append(lambda: (row for row in rows() if row.user in new))
        logger.warning("user list read again joined=%d", len(new))
        return len(new)


def _text(row: UserRow) -> tuple[str, ...]:
    return row.user, *(text for cell in sorted(row.cells.items()) for text in cell)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
