"""What may be in use at once: message octets in flight, connections per host.

Both are FIFO, so that no waiter starves; both take all that is asked for or wait. A waiter
whose cancellation crosses its turn gives back what it was just given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import anyio


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a run. Defaults marked arbitrary were not measured yet."""

    users: int = 10
    """Users imported at the same time."""
    connections_per_user: int = 2
    """Lanes of one user: each is one source and one destination session."""
    connections_per_host: int = 50  # arbitrary; Courier allows 4 per address, Gmail 15 per account
    max_memory: int = 256 * 1024 * 1024
    """Octets of message bodies in flight, over all users."""
    batch_messages: int = 64
    """Messages of one APPEND; 50 takes most of the gain of MULTIAPPEND, 200 adds little (measured)."""
    batch_octets: int = 1024 * 1024
    batches_ahead: int = 3
    """Batches of one lane that were handed over and not answered yet: what may be in doubt after a crash."""
    queue_lists: int = 4  # arbitrary: lists of up to 64 messages between reader and writer of a lane
    attempts: int = 5
    """Tries of one user without any progress between them."""
    retry_wait_s: float = 1.0
    """First wait between two tries; doubles, with jitter, up to 60 s."""
    fence_s: float = 5.0
    """How long after a lost session its server may still store what it had received (reconcile)."""
    grace_s: float = 10.0
    """How long batches in flight may take after the first SIGINT or SIGTERM."""
    limit_rate: int = 0
    """Octets a second to one host, and from it; 0: no limit."""
    messages_per_second: float = 0.0
    """Messages appended to one host, and fetched from it; 0: no limit."""
    max_errors: int = 0
    """Take no new users once so many have failed; 0: no limit."""


DESCRIPTORS_OF_RUN: Final = 32
"""Standard streams, journal, event loop, and some to spare."""
DESCRIPTORS_OF_LANE: Final = 16
"""Two Maildirs have six directories open each, and a file; a lane to a server less, but maybe several connections."""
DESCRIPTORS_LEAST: Final = DESCRIPTORS_OF_RUN + DESCRIPTORS_OF_LANE


def within_descriptors(limits: Limits, descriptors: int) -> Limits:
    """`limits` with no more users and lanes at once than so many open files are enough for; one user always."""
    lanes = max(1, (descriptors - DESCRIPTORS_OF_RUN) // DESCRIPTORS_OF_LANE)
    of_user = min(limits.connections_per_user, lanes)
    return replace(limits, connections_per_user=of_user, users=min(limits.users, lanes // of_user))


class ByteBudget:
    """Octets in flight over all lanes. More than the whole budget passes alone."""

    def __init__(self, octets: int) -> None:
        self._total = octets
        self._free = octets
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    @property
    def free(self) -> int:
        return self._free

    def lease(self) -> Lease:
        """A share that gives back what it still holds when it is closed."""
        return Lease(self)

    async def take(self, octets: int) -> int:
        """Waits until `octets` are free and takes them; returns what was taken (at most the whole)."""
        share = min(octets, self._total)
        if not self._waiting and share <= self._free:
            self._free -= share
            return share
        turn = anyio.Event()
        entry = (share, turn)
        self._waiting.append(entry)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.give(share)
            else:
                self._waiting.remove(entry)
                self._wake()
            raise
        return share

    def give(self, octets: int) -> None:
        self._free += octets
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            share, turn = self._waiting.popleft()
            self._free -= share
            turn.set()


class Lease:
    """What one lane holds of the budget for one mailbox."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._held = 0

    async def take(self, octets: int) -> int:
        share = await self._budget.take(octets)
        self._held += share
        return share

    def give(self, octets: int) -> None:
        """Gives back `octets`, or what is held when a list larger than the whole budget was clamped."""
        octets = min(octets, self._held)
        self._held -= octets
        self._budget.give(octets)

    def close(self) -> None:
        if self._held:
            self.give(self._held)


LOGINS_REFUSED: Final = 10  # arbitrary
"""So many refused logins one after the other end the tries on a host: the cause is no user's, and each counts there."""


class HostLimits:
    """Connections per host over all users. A pair of connections is taken at once or not at all,
    so two users who each need two never wait for each other's second one."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._learnt: dict[str, int] = {}
        """What a host allows where that is less."""
        self._refused: dict[str, int] = {}
        """Logins refused one after the other."""
        self._used: dict[str, int] = {}
        self._waiting: deque[tuple[dict[str, int], anyio.Event]] = deque()

    @asynccontextmanager
    async def hold(self, hosts: Iterable[str]) -> AsyncGenerator[None, None]:
        """Holds one connection for each of `hosts` ("" is no host); a limit below what one pair
        needs lets that pair pass alone."""
        need = self._count(hosts)
        turn = anyio.Event()
        entry = (need, turn)
        self._waiting.append(entry)
        self._wake()
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.release(need)
            else:
                self._waiting.remove(entry)
            raise
        try:
            yield
        finally:
            self.release(need)

    def try_hold(self, hosts: Iterable[str]) -> dict[str, int] | None:
        """As `hold` without waiting; the result is given to `release`, None when there is no room."""
        need = self._count(hosts)
        if self._waiting or not self._fits(need):
            return None
        self._take(need)
        return need

    def allow(self, host: str, connections: int) -> None:
        """A host is known to take no more than so many connections from us."""
        self._learnt[host] = min(self._learnt.get(host, connections), connections)

    def refused_connection(self, host: str) -> int:
        """A host refused one connection more; returns what it is asked for from now on."""
        self.allow(host, max(1, self._used.get(host, 1) - 1))
        return self._learnt[host]

    def refused_login(self, host: str) -> None:
        self._refused[host] = self._refused.get(host, 0) + 1

    def logged_in(self, host: str) -> None:
        self._refused.pop(host, None)

    def is_closed(self, host: str) -> bool:
        """Whether nobody should log in there any more."""
        return self._refused.get(host, 0) >= LOGINS_REFUSED

    @staticmethod
    def _count(hosts: Iterable[str]) -> dict[str, int]:
        need: dict[str, int] = {}
        for host in hosts:
            if host:
                need[host] = need.get(host, 0) + 1
        return need

    def _fits(self, need: dict[str, int]) -> bool:
        return all(
            self._used.get(host, 0) + count <= min(self._per_host, self._learnt.get(host, self._per_host))
            or not self._used.get(host)
            for host, count in need.items()
        )

    def _take(self, need: dict[str, int]) -> None:
        for host, count in need.items():
            self._used[host] = self._used.get(host, 0) + count

    def release(self, need: dict[str, int]) -> None:
        """Gives back what `try_hold` took."""
        for host, count in need.items():
            self._used[host] -= count
            if not self._used[host]:
                del self._used[host]
        self._wake()

    def _wake(self) -> None:
        # Strict order would let one full host stop users of other hosts: pass over those who cannot run.
        for entry in list(self._waiting):
            need, turn = entry
            if self._fits(need):
                self._waiting.remove(entry)
                self._take(need)
                turn.set()
