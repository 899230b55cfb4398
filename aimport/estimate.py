"""How long an import may take, from what is known before it: a floor with its reasons, never a promise. Pure.

    users ──add──▶ Estimate ──▶ seconds, and what they rest on

Servers state how fast one account may be filled or emptied (their profiles); how fast a disk or a link is nobody says
before it was tried. For that stand the rates of this project's own bench, which nothing that is farther away reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aimport.standing import Server

MESSAGES_A_SECOND: Final = 3000.0
OCTETS_A_SECOND: Final = 75.0 * 1024 * 1024
"""Maildir into Dovecot on the same machine, 2 cores (bench/results: 10,000 messages, 246 MB, in 3.1 s)."""
DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Bound:
    """What one user's import cannot take less than, and why."""

    seconds: float
    reason: str = ""


UNBOUNDED: Final = Bound(0.0)


def bound_of(messages: int, octets: int, *, source: Server | None, destination: Server | None) -> Bound:
    """By what the servers allow one account: budgets of a day (the first is there at once), messages a second."""
    bounds = [UNBOUNDED]
    for server, verb in ((source, "gives"), (destination, "takes for")):
        if server is not None and 0 < server.octets_per_day < octets:
            days = (octets - 1) // server.octets_per_day
            budget = f"{server.octets_per_day / 1e6:.0f} MB a day"
            bounds.append(Bound(days * DAY_S, f"{server.kind or 'a server'} {verb} one account {budget}"))
    if destination is not None and destination.messages_per_second:
        rate = destination.messages_per_second
        bounds.append(Bound(messages / rate, f"{destination.kind} takes {rate:g} messages a second into one account"))
    return max(bounds, key=lambda bound: bound.seconds)


@dataclass(slots=True)
class Estimate:
    """Sums over users, in flat memory."""

    users_at_once: int
    messages: int = 0
    octets: int = 0
    _bounded_s: float = 0.0
    _longest: Bound = UNBOUNDED

    def add(self, messages: int, octets: int, bound: Bound) -> None:
        self.messages += messages
        self.octets += octets
        self._bounded_s += bound.seconds
        self.floor(bound)

    def floor(self, bound: Bound) -> None:
        """All of it takes no less than this."""
        if bound.seconds > self._longest.seconds:
            self._longest = bound

    @property
    def seconds(self) -> float:
        return max(self._bench_s, self._longest.seconds, self._bounded_s / self.users_at_once)

    @property
    def _bench_s(self) -> float:
        return max(self.messages / MESSAGES_A_SECOND, self.octets / OCTETS_A_SECOND)

    def reasons(self) -> Sequence[str]:
        """What the seconds rest on, the weightiest first."""
        rates = f"{MESSAGES_A_SECOND:.0f} messages/s and {OCTETS_A_SECOND / 2**20:.0f} MiB/s"
        bench = f"{rates}, measured with both sides on one machine; a link, a slower disk or server takes longer"
        stated = [f"{self._longest.reason}"] if self._longest.reason else []
        return [bench, *stated] if self._bench_s >= self.seconds else [*stated, bench]
