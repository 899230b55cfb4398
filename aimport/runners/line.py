"""Users to come: who may begin now, so that no host holds up those of another.

    jobs ──▶ read ahead ──▶ kept, by their hosts ──▶ pick: a host with room, and the fewest at work

Order is that of the list, as far as hosts have room. So many are read ahead that hosts which come one after the
other in the list are used at the same time; more only while nobody who was read may begin.
"""

from __future__ import annotations

import heapq
import itertools
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

_Place = tuple[int, int, Hosts]
"""Users at work, a number that grows, whose it is."""

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
        self._order: list[_Place] = []
        """A heap: hosts with users to come, the fewest at work first. Entries that are no host's place are old."""
        self._places: dict[Hosts, _Place] = {}
        self._number = itertools.count()
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
        self._count -= 1
        self._at_work[hosts] += 1
        if kept:
            self._put(hosts)
        else:
            del self._kept[hosts], self._places[hosts]
        return job, hosts

    def ended(self, hosts: Hosts) -> None:
        self._at_work[hosts] -= 1
        if not self._at_work[hosts]:
            del self._at_work[hosts]
        if hosts in self._kept:
            self._put(hosts)

    def _put(self, hosts: Hosts) -> None:
        place = self._places[hosts] = (self._at_work[hosts], next(self._number), hosts)
        heapq.heappush(self._order, place)
        if len(self._order) > 4 * len(self._places) + PIECE:
            self._order = sorted(self._places.values())

    def _best(self) -> Hosts | None:
        """The hosts with room of which the fewest users are at work; of two such the one that waits longer.

        A thousand hosts would cost milliseconds a user, were all of them asked each time.
        """
        full: list[_Place] = []
        best = None
        while self._order and best is None:
            place = self._order[0]
            hosts = place[2]
            if self._places.get(hosts) != place:
                heapq.heappop(self._order)
            elif self._limits.has_room(hosts):
                best = hosts
            else:
                full.append(heapq.heappop(self._order))
        for place in full:
            heapq.heappush(self._order, place)
        return best

    async def _read(self, wanted: int) -> bool:
        """Reads until so many are kept; False: that was the end of the list."""
        read = 0
        while self._count < wanted and not self._at_end:
            job = next(self._jobs, None)
            if job is None:
                self._at_end = True
                break
            hosts = self._hosts_of(job)
            self._kept.setdefault(hosts, deque()).append(job)
            if hosts not in self._places:
                self._put(hosts)
            self._count += 1
            read += 1
            if read % PIECE == 0:
                await checkpoint()
        return not self._at_end


async def _first_of(wait: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()
