"""Users who are added to the list while a run works: when the list is read again, and how long a run waits for them.

    SIGHUP ──────────────────────────▶ read again, once ──▶ new users, behind those that are known
    --watch-list: the file is another ─▶ two looks the same ┘

SIGHUP that comes because the terminal is gone is no wish for a reading: it stops the run as ever. A watched list is
looked at until all users are done, and once more then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import anyio
from anyio import to_thread

from aimport.account import Run
from aimport.model import UserJob

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 2.0  # arbitrary: nobody waits for it, and a stat costs nothing


class Listed(Protocol):
    """The users of a run (`aimport.growing`)."""

    def take(self) -> Iterator[UserJob] | None: ...

    def has_joined(self, user: str) -> bool: ...

    def version(self) -> tuple[int, ...] | None: ...

    def differs(self) -> bool: ...

    def read(self) -> int: ...


class Joining:
    """Reads the list again when asked to, or when it is another and stays so for two looks."""

    def __init__(self, listed: Listed, *, watch: bool) -> None:
        self.listed = listed
        self._watch = watch
        self._busy = 0
        self._asked = anyio.Event()
        self._moved = anyio.Event()
        self._reading = False
        self._at_terminal = _has_terminal()

    def ask(self) -> bool:
        """What SIGHUP does; False: the terminal is gone, and it means the end."""
        if self._at_terminal and not _has_terminal():
            return False
        self._asked.set()
        return True

    async def keep_reading(self) -> None:
        """Until cancelled."""
        seen: tuple[int, ...] | None = None
        while True:
            with anyio.move_on_after(LOOK_EVERY_S if self._watch else None):
                await self._asked.wait()
            now = self.listed.version()
            if self._asked.is_set() or (now == seen and self.listed.differs()):
                # Not before the reading: a SIGHUP that comes while it is under way asks for another one.
                self._asked, self._reading = anyio.Event(), True
                try:
                    await to_thread.run_sync(self.listed.read)
                finally:
                    self._reading = False
            seen = now
            self._move()

    def counted(self, jobs: Iterable[UserJob]) -> Iterator[UserJob]:
        """Those that are handed out are waited for."""
        for job in jobs:
            self._busy += 1
            yield job

    def user_ended(self) -> None:
        self._busy -= 1
        self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()

    async def more(self, run: Run) -> Iterator[UserJob] | None:
        """Users who joined; waits for them while there is somebody who may. None: nobody will."""
        while not (run.stopping or run.gave_up):
            moved = self._moved
            fresh = self.listed.take()
            if fresh is not None:
                return fresh
            pending = self._asked.is_set() or self._reading or (self._watch and self.listed.differs())
            if not self._busy and not pending:
                return None
            await moved.wait()
        return None


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
