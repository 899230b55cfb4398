"""Connections per host over all processes of a run: a file for each, locked by the process that has the connection.

    DIR/<run>/hosts/<host>/NNN    locked (flock): this connection is in use
                           most   how many the host allows, where that is less than `--connections-per-host`
                           wait   locked, shared, by those who wait and have none

The kernel frees the locks of a process with its death, so nothing has to time out, and they do not depend on the engine
that started the workers: leases of Dask come back 30 s after a worker died, and all at once when its scheduler dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from aimport import seams
from aimport.hosts import PROBE_S
from aimport.limits import HostLimits, Reached
from aimport.seats import aside

FIRST_WAIT_S: Final = 0.02
LONGEST_WAIT_S: Final = 0.25
"""Nobody tells a process that another gave a connection back: it asks again, first soon, then four times a second."""
YIELD_S: Final = 2 * LONGEST_WAIT_S
"""Who has connections asks for one more only so long after somebody who has none began to wait."""


class Slots:
    """The files. A call takes a few system calls for each connection."""

    def __init__(self, directory: Path, per_host: int) -> None:
        self._directory = directory
        self._per_host = per_host
        self._places: dict[str, Path] = {}
        self._held: dict[str, int] = {}
        self._begin = os.getpid()
        """Processes begin to look at different places: most find a free one at once."""

    def try_take(self, need: Mapping[str, int]) -> list[int] | None:
        """Locks one file for each connection, all or none; the descriptors are given to `give`.

        A limit below `need` lets that need pass alone.
        """
        taken: list[int] = []
        for host, count in need.items():
            limit = min(self._per_host, self.most(host))
            found = self._lock(host, min(count, limit), limit)
            if found is None:
                self._close(taken)
                return None
            taken += found
        for host, count in need.items():
            self._held[host] = self._held.get(host, 0) + count
        return taken

    def give(self, need: Mapping[str, int], taken: Iterable[int]) -> None:
        for host, count in need.items():
            self._held[host] -= count
        self._close(taken)

    def has(self, host: str) -> bool:
        """Whether this process has a connection there."""
        return self._held.get(host, 0) > 0

    def most(self, host: str) -> int:
        """How many connections the host is known to take from all of us; one more each time long after a refusal."""
        path = self._place(host) / "most"
        with suppress(FileNotFoundError, ValueError):
            known = max(1, int(path.read_bytes()))
            if known < self._per_host and seams.now_us() - path.stat().st_mtime_ns // 1000 > PROBE_S * 1_000_000:
                known += 1
                self._keep(path, known)
            return min(known, self._per_host)
        return self._per_host

    def allow(self, host: str, connections: int) -> None:
        """No more than so many from now on."""
        if connections < self.most(host):
            self._keep(self._place(host) / "most", connections)

    def _keep(self, path: Path, connections: int) -> None:
        handle = self._open(path)
        os.pwrite(handle, b"%08d" % connections, 0)
        os.close(handle)

    def in_use(self, host: str) -> int:
        """By all processes."""
        place = self._place(host)
        count = 0
        for number in range(self._per_host):
            if (one := self._try(place / f"{number:03d}")) is None:
                count += 1
            else:
                os.close(one)
        return count

    def begin_to_wait(self, host: str) -> int:
        handle = self._open(self._place(host) / "wait")
        with suppress(BlockingIOError):  # somebody is just looking whether anybody waits
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return handle

    def somebody_waits(self, host: str) -> bool:
        handle = self._open(self._place(host) / "wait")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def _lock(self, host: str, count: int, limit: int) -> list[int] | None:
        place = self._place(host)
        found: list[int] = []
        for step in range(limit):
            if len(found) == count:
                break
            one = self._try(place / f"{(self._begin + step) % limit:03d}")
            if one is not None:
                found.append(one)
        if len(found) == count:
            return found
        self._close(found)
        return None

    def _try(self, path: Path) -> int | None:
        handle = self._open(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _place(self, host: str) -> Path:
        place = self._places.get(host)
        if place is None:
            place = self._directory / hashlib.sha256(host.encode("utf-8", "surrogateescape")).hexdigest()[:16]
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._places[host] = place
        return place

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    @staticmethod
    def _close(descriptors: Iterable[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)


class SharedHosts(HostLimits):
    """As `HostLimits`, over all processes of a run. What a host refuses is learnt by all at once."""

    def __init__(self, per_host: int, slots: Slots, *, first_wait_s: float = 1.0, down_s: float = 600.0) -> None:
        super().__init__(per_host, first_wait_s=first_wait_s, down_s=down_s)
        self._slots = slots
        self._refused: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, hosts: Iterable[str]) -> AsyncGenerator[None, None]:
        need = self._count(hosts)
        async with super().hold([host for host, count in need.items() for _ in range(count)]):
            taken = await self._take_shared(need)
            try:
                yield
            finally:
                self._slots.give(need, taken)

    def try_hold(self, hosts: Iterable[str], user: str = "") -> dict[str, int] | None:
        need = super().try_hold(hosts, user)
        if need is None:
            return None
        taken = None if any(map(self._slots.somebody_waits, need)) else self._slots.try_take(need)
        if taken is None:
            super().release(need)
            return None
        return _Held(need, taken)

    def release(self, need: dict[str, int]) -> None:
        if isinstance(need, _Held):
            self._slots.give(need, need.taken)
        super().release(need)

    def allow(self, host: str, connections: int) -> None:
        super().allow(host, connections)
        self._slots.allow(host, connections)

    def refused_connection(self, host: str, user: str, *, sure: bool) -> int:
        self._refused[host] += 1
        self._slots.allow(host, max(1, self._slots.in_use(host) - 1))
        return self._slots.most(host)

    def hear(self, others: Iterable[Reached]) -> None:
        """What another process has found out."""
        for each in others:
            self._refused[each.host] += each.refused

    def reached(self) -> Iterator[Reached]:
        """Of all processes that were heard of, and of this one."""
        refused = self._refused + Counter({each.host: each.refused for each in super().reached()})
        for host, times in sorted(refused.items()):
            yield Reached(host=host, connections=self._slots.most(host), most=self._per_host, refused=times)

    async def _take_shared(self, need: Mapping[str, int]) -> list[int]:
        if (taken := self._try_shared(need)) is not None:
            return taken
        waiting = [self._slots.begin_to_wait(host) for host in need if not self._slots.has(host)]
        wait_s, began = FIRST_WAIT_S, anyio.current_time()
        try:
            async with aside():
                while True:
                    await anyio.sleep(wait_s * seams.jitter())
                    wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                    if (taken := self._try_shared(need, polite=anyio.current_time() - began < YIELD_S)) is not None:
                        break
        except BaseException:
            if taken is not None:
                self._slots.give(need, taken)
            raise
        finally:
            for handle in waiting:
                os.close(handle)
        return taken

    def _try_shared(self, need: Mapping[str, int], *, polite: bool = True) -> list[int] | None:
        # Who has some lets those go first who have none: else one process could keep a full host to itself.
        if polite and any(self._slots.has(host) and self._slots.somebody_waits(host) for host in need):
            return None
        return self._slots.try_take(need)


class _Held(dict[str, int]):
    """What `try_hold` took, with its locks."""

    def __init__(self, need: Mapping[str, int], taken: list[int]) -> None:
        super().__init__(need)
        self.taken = taken
