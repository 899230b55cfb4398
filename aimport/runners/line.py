"""Users to come: who may begin now, so that no host holds up those of another.

    jobs ──▶ read ahead ──▶ kept, by their hosts ──▶ pick: a host with room, and the fewest at work

Order is that of the list, as far as hosts have room. So many are read ahead that hosts which come one after the
other in the list are used at the same time; more only while nobody who was read may begin.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from aimport.limits import HostLimits
from aimport.model import UserJob

More = Callable[[], Awaitable[Iterable[UserJob] | None]]
"""Waits for further users; None: there will be none."""
Hosts = tuple[str, str]
"""Of source and destination, "" where it is none."""

AHEAD: Final = 1000
MOST_AHEAD: Final = 10_000
"""A job takes about 2 KB."""
PIECE: Final = 100
"""Jobs that are made before others on the loop have their turn, 50 us each."""


class Line:
    """One task at a time picks, within `turn`."""

    def __init__(
        self,
        jobs: Iterable[UserJob],
        limits: HostLimits,
        hosts_of: Callable[[UserJob], Hosts],
        more: More | None = None,
    ) -> None:
        self._jobs = iter(jobs)
        self._more = more
        self._limits = limits
        self._hosts_of = hosts_of
        self._kept: dict[Hosts, deque[UserJob]] = {}
        self._count = 0
        self._at_work: Counter[Hosts] = Counter()
        self._at_end = False
        self.turn = anyio.Lock()

    async def ready(self) -> bool:
        """Waits until somebody may begin. False: nobody is left."""
        while True:
            await self._read(AHEAD)
            if self._best() is not None:
                return True
            while self._count < MOST_AHEAD and await self._read(self._count + PIECE):
                if self._best() is not None:
                    return True
            if not self._at_end or self._more is None:
                if not self._count:
                    return False
                await self._limits.change()
            elif not self._count:
                await self._join(self._more)
            else:
                async with anyio.create_task_group() as tasks:
                    for wait in (self._limits.change, partial(self._join, self._more)):
                        tasks.start_soon(_first_of, wait, tasks.cancel_scope)

    async def _join(self, more: More) -> None:
        """Waits for users behind those of the list."""
        coming = await more()
        if coming is None:
            self._more = None
        else:
            self._jobs, self._at_end = iter(coming), False

    def pick(self) -> tuple[UserJob, Hosts] | None:
        """Who begins; None: meanwhile nobody may."""
        hosts = self._best()
        if hosts is None:
            return None
        kept = self._kept[hosts]
        job = kept.popleft()
        if not kept:
            del self._kept[hosts]
        self._count -= 1
        self._at_work[hosts] += 1
        return job, hosts

    def ended(self, hosts: Hosts) -> None:
        self._at_work[hosts] -= 1
        if not self._at_work[hosts]:
            del self._at_work[hosts]

    def _best(self) -> Hosts | None:
        """The hosts with room of which the fewest users are at work; of two such the one that came first."""
        return min(filter(self._limits.has_room, self._kept), key=lambda hosts: self._at_work[hosts], default=None)

    async def _read(self, wanted: int) -> bool:
        """Reads until so many are kept; False: that was the end of the list."""
        read = 0
        while self._count < wanted and not self._at_end:
            job = next(self._jobs, None)
            if job is None:
                self._at_end = True
                break
            self._kept.setdefault(self._hosts_of(job), deque()).append(job)
            self._count += 1
            read += 1
            if read % PIECE == 0:
                await checkpoint()
        return not self._at_end


async def _first_of(wait: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()
