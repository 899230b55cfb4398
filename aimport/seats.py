"""Who works and who only waits: `--users` seats, given back by those who have nothing to do for a while.

    worker ── take() ──▶ seat ── rest(), aside() ──▶ given back, and taken again when the waiting is over

A user waits for a host that is full or down, for the time that a server asked for, or for tomorrow: another one
has its seat meanwhile. The seat is found through a context variable, so that whoever waits, however deep, need not
know of it. A user with several lanes has given its seat back when all of them wait.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final

import anyio

WORTH_S: Final = 0.5  # arbitrary
"""Shorter rests keep the seat."""


class Seats:
    """So many users work at the same time."""

    def __init__(self, users: int) -> None:
        self._free = anyio.Semaphore(users)
        self.at_work = 0
        self._idle = anyio.Event()

    async def take(self) -> None:
        """Waits for a seat, in order."""
        await self._free.acquire()
        self.at_work += 1

    def give(self) -> None:
        self.at_work -= 1
        self._free.release()
        if not self.at_work:
            self._idle.set()

    async def until_nobody_works(self) -> None:
        """Waits until those who are left only wait."""
        while self.at_work:
            self._idle = anyio.Event()
            await self._idle.wait()


class Seat:
    """That of one user. `lanes` of it work; when none does it belongs to somebody else."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._turn = anyio.Lock()
        self._taken = False
        self._lanes = 0

    async def take(self) -> None:
        """One more lane works; the first one waits for the seat."""
        async with self._turn:
            if not self._taken:
                await self._seats.take()
                self._taken = True
            self._lanes += 1

    def leave(self) -> bool:
        """One lane has ended, or waits. False: none was at work, of two that wait within one lane."""
        if not self._lanes:
            return False
        self._lanes -= 1
        if not self._lanes:
            self._taken = False
            self._seats.give()
        return True

    @contextmanager
    def used(self) -> Generator[None]:
        """What this task does is done in this seat, which was taken before."""
        token = _SEAT.set(self)
        try:
            yield
        finally:
            _SEAT.reset(token)
            self.leave()


_SEAT: ContextVar[Seat | None] = ContextVar("seat", default=None)


@asynccontextmanager
async def another_lane() -> AsyncGenerator[None]:
    """One more lane of this user works."""
    seat = _SEAT.get()
    if seat is None:
        yield
        return
    await seat.take()
    try:
        yield
    finally:
        seat.leave()


@asynccontextmanager
async def aside() -> AsyncGenerator[None]:
    """While this lane waits: its seat is another user's. Outside of `Seat.used` there is none to give."""
    seat = _SEAT.get()
    if seat is None or not seat.leave():
        yield
        return
    try:
        yield
    finally:
        await seat.take()


async def rest(seconds: float) -> None:
    """Waits, and lets others work meanwhile when it is worth it."""
    if seconds < WORTH_S:
        await anyio.sleep(seconds)
        return
    async with aside():
        await anyio.sleep(seconds)
