"""What may be in use at once: message octets in flight, connections per host.

Both are FIFO, so that no waiter starves; both take all that is asked for or wait. A waiter
whose cancellation crosses its turn gives back what it was just given. What a host allows is learnt (`hosts`).
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import anyio

from aimport import seams
from aimport.errors import AimportError, ConnectionLost, HostDown, Throttled, TooManyConnections
from aimport.hosts import WINDOW_S, Breaker, Ceiling, Gradient
from aimport.seats import aside

logger = logging.getLogger(__name__)


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
    host_down_s: float = 600.0
    """How long users wait for a host that nobody can connect to."""
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
AT_ONCE: Final = 8  # arbitrary
"""So many connect to a host at the same time, or as many as are inside: it is asked for a lot by and by, also when it
has just come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What a run has found out of one host."""

    host: str
    connections: int
    """Allowed in the end."""
    most: int
    """Asked for, or known before."""
    refused: int
    """How often it refused a connection, or said that we are too fast."""


class _Host:
    """One host as it is known to this run."""

    def __init__(self, most: int, breaker: Breaker) -> None:
        self.ceiling = Ceiling(most)
        self.gradient = Gradient()
        self.breaker = breaker
        self.used = 0
        """Places that were taken: connections, also those on their way in or out."""
        self.inside = 0
        """Connections that are logged in."""
        self.users: Counter[str] = Counter()
        """Whose they are."""
        self.logins_refused = 0
        """One after the other."""
        self.rest_until = float("-inf")
        """Nobody logs in before."""

    def lets_in(self, now: float) -> bool:
        return now >= self.rest_until and self.breaker.lets_in(now)

    def has_room(self, count: int, now: float) -> bool:
        if not self.lets_in(now):
            return False
        if not self.used:
            return True  # a limit below what one pair needs lets that pair pass alone
        arriving = self.used - self.inside
        return self.used + count <= self.ceiling.allowed and arriving + count <= max(AT_ONCE, self.inside)


class HostLimits:
    """Connections per host over all users. A pair of connections is taken at once or not at all,
    so two users who each need two never wait for each other's second one."""

    def __init__(
        self,
        per_host: int,
        *,
        first_wait_s: float = 1.0,
        down_s: float = 600.0,
        clock: Callable[[], float] = seams.monotonic,
    ) -> None:
        self._per_host = per_host
        self._first_wait_s = first_wait_s
        self._down_s = down_s
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._of_users: dict[str, dict[str, int]] = {}
        """By user and host: connections that this one may have, where that is known to be fewer."""
        self._waiting: deque[tuple[dict[str, int], anyio.Event]] = deque()
        self._changed = anyio.Event()

    # Places

    @asynccontextmanager
    async def hold(self, hosts: Iterable[str]) -> AsyncGenerator[None, None]:
        """Holds one connection for each of `hosts` ("" is no host); a limit below what one pair
        needs lets that pair pass alone. Who has to wait has no seat meanwhile.

        Raises:
            HostDown: nobody can connect, for so long that there is no use in waiting.
        """
        need = self._count(hosts)
        await self._wait_for(need)
        try:
            yield
        finally:
            self._release(need)

    async def _wait_for(self, need: dict[str, int]) -> None:
        turn = anyio.Event()
        entry = (need, turn)
        self._waiting.append(entry)
        try:
            self._wake()
            if not turn.is_set():
                async with aside():
                    while not turn.is_set():
                        self._give_up(need)
                        with anyio.move_on_after(self._look_again_s(need)):
                            await turn.wait()
                        self._wake()
        except BaseException:
            if turn.is_set():
                self._release(need)
            else:
                self._waiting.remove(entry)
            raise

    def try_hold(self, hosts: Iterable[str], user: str = "") -> dict[str, int] | None:
        """As `hold` without waiting; the result is given to `release`. None: there is no room, or none for `user`."""
        need = self._count(hosts)
        if self._waiting or not self._fits(need) or not self._may(user, need):
            return None
        self._take(need)
        return need

    def release(self, need: dict[str, int]) -> None:
        """Gives back what `try_hold` took."""
        self._release(need)

    def has_room(self, hosts: Iterable[str]) -> bool:
        """Whether somebody who begins now would not have to wait for these."""
        need = self._count(hosts)
        now = self._clock()
        given_up = any(self._at(host).breaker.given_up(now) for host in need)
        return given_up or self._fits(need)

    async def change(self) -> None:
        """Waits until places were given back, or a while: some things change with time alone."""
        self._changed = self._changed if not self._changed.is_set() else anyio.Event()
        with anyio.move_on_after(1.0):
            await self._changed.wait()

    # What hosts say

    def allow(self, host: str, connections: int) -> None:
        """A host is known to take no more than so many connections from us."""
        self._at(host).ceiling.know(connections)

    def logged_in(self, host: str, user: str = "") -> None:
        """One connection more is inside, until `left`."""
        if not host:
            return
        known = self._at(host)
        known.logins_refused = 0
        if known.breaker.connected():
            logger.warning("host is back host=%s", host)
        known.inside += 1
        known.users[user] += 1
        known.ceiling.held(known.inside, self._clock())
        self._wake()

    def left(self, host: str, user: str = "") -> None:
        if not host:
            return
        known = self._at(host)
        known.inside -= 1
        known.users[user] -= 1
        if not known.users[user]:
            del known.users[user]

    def refused_login(self, host: str) -> None:
        self._at(host).logins_refused += 1
        self._at(host).breaker.connected()

    def is_closed(self, host: str) -> bool:
        """Whether nobody should log in there any more."""
        return host in self._hosts and self._hosts[host].logins_refused >= LOGINS_REFUSED

    def failed(self, host: str, user: str, error: ConnectionLost) -> None:
        """A connection did not come about: what that says of the host, or of this user there."""
        if not host:
            return
        known, now = self._at(host), self._clock()
        if isinstance(error, TooManyConnections):
            known.breaker.connected()
            held = known.users[user]
            if held and error.whose != "address":
                self._of_users.setdefault(user, {})[host] = held
                logger.info("connections of a user lowered host=%s user=%s connections=%d", host, user, held)
                return
            connections = self.refused_connection(host, user, sure=error.whose != "user")
            logger.warning("connections lowered host=%s connections=%d", host, connections)
            return
        if isinstance(error, Throttled):
            if error.whose == "user":
                known.breaker.connected()
                return
            if error.whose == "address":
                known.rest_until = max(known.rest_until, now + error.wait_s)
                self._slow_down(host, known, now)
        if known.breaker.failed(user, str(error), now, wait_s=error.wait_s, jitter=seams.jitter()):
            logger.warning("host is down host=%s error=%s", host, error)

    def refused_connection(self, host: str, user: str, *, sure: bool) -> int:
        """The host refused one more than are inside; returns what it is asked for from now on."""
        known = self._at(host)
        known.ceiling.refuse(known.inside, self._clock(), who=user, sure=sure)
        return known.ceiling.allowed

    def heed(self, host: str, user: str, error: AimportError) -> None:
        """A session was ended: what that says of the host, or of this user there."""
        if not host or error.host != host:
            return
        known, now = self._at(host), self._clock()
        if isinstance(error, TooManyConnections):
            held = known.users[user]
            if held > 1 and error.whose != "address":
                self._of_users.setdefault(user, {})[host] = held - 1
            else:
                self._slow_down(host, known, now)
        elif isinstance(error, Throttled) and error.whose == "address":
            known.rest_until = max(known.rest_until, now + error.wait_s)
            self._slow_down(host, known, now)

    def _slow_down(self, host: str, known: _Host, now: float) -> None:
        if known.ceiling.slow_down(now):
            logger.warning("connections lowered host=%s connections=%d", host, known.ceiling.allowed)

    def appended(self, host: str, seconds: float, octets: int) -> None:
        """A batch was answered after so many seconds."""
        if host:
            known = self._at(host)
            known.gradient.note(known.inside, seconds, octets, self._clock())

    def is_down(self, host: str) -> bool:
        return host in self._hosts and self._hosts[host].breaker.is_down

    def forget(self, user: str) -> None:
        """This user has ended."""
        self._of_users.pop(user, None)

    def reached(self) -> Iterator[Reached]:
        """Hosts that allowed less than they were asked for."""
        for host, known in sorted(self._hosts.items()):
            ceiling = known.ceiling
            if ceiling.refused:
                yield Reached(host=host, connections=ceiling.allowed, most=ceiling.most, refused=ceiling.refused)

    @property
    def used(self) -> dict[str, int]:
        """Places that are taken, by host."""
        return {host: known.used for host, known in self._hosts.items() if known.used}

    # Who fits

    def _at(self, host: str) -> _Host:
        known = self._hosts.get(host)
        if known is None:
            known = self._hosts[host] = _Host(self._per_host, Breaker(self._first_wait_s, self._down_s))
        return known

    @staticmethod
    def _count(hosts: Iterable[str]) -> dict[str, int]:
        need: dict[str, int] = {}
        for host in hosts:
            if host:
                need[host] = need.get(host, 0) + 1
        return need

    def _fits(self, need: dict[str, int]) -> bool:
        now = self._clock()
        for host in need:
            known = self._at(host)
            known.ceiling.grow(known.inside, now, worth=known.gradient.worth_more())
        return all(self._at(host).has_room(count, now) for host, count in need.items())

    def _may(self, user: str, need: dict[str, int]) -> bool:
        known = self._of_users.get(user, {})
        return all(
            host not in known or self._at(host).users[user] + count <= known[host] for host, count in need.items()
        )

    def _take(self, need: dict[str, int]) -> None:
        for host, count in need.items():
            known = self._at(host)
            known.used += count
            known.breaker.let_in()

    def _release(self, need: dict[str, int]) -> None:
        for host, count in need.items():
            known = self._at(host)
            known.used -= count
            if known.breaker.is_down:
                known.breaker.left()
        self._wake()
        self._changed.set()

    def _wake(self) -> None:
        # Strict order would let one full host stop users of other hosts: pass over those who cannot run.
        for entry in list(self._waiting):
            need, turn = entry
            if self._fits(need):
                self._waiting.remove(entry)
                self._take(need)
                turn.set()

    def _give_up(self, need: dict[str, int]) -> None:
        """Ends a wait that leads nowhere.

        Raises:
            HostDown
        """
        now = self._clock()
        for host in need:
            breaker = self._at(host).breaker
            if breaker.given_up(now) and not breaker.lets_in(now):
                raise HostDown(
                    f"{host}: nobody could connect for {now - (breaker.down_since or now):.0f} s: {breaker.last}",
                    hint="resume when it is back",
                )

    def _look_again_s(self, need: dict[str, int]) -> float:
        """Some things change with time alone."""
        now = self._clock()
        times = [WINDOW_S]
        for host in need:
            known = self._at(host)
            times += [at - now for at in (known.rest_until, known.breaker.next_try) if at > now]
        return min(times)
