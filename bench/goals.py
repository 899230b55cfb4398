"""What the speed should be, beside what it was: a table, never a verdict on the command.

A goal is a ratio of two contenders of one round, the CPU aimport takes for a message, or to be ahead of every peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.results import Entry, Result, RouteResult, Spread, ratios, spread, standing
from bench.scenarios import (
    AIMPORT,
    AIMPORT_4,
    AIMPORT_COPIED,
    CP,
    DOVEADM_4,
    FLOOR,
    IMAPLIB,
    MBSYNC_1,
    MBSYNC_4,
    OVER_IMAP,
    Route,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`ours` at least `limit` times as fast as `against`; without `against`, client CPU below `limit` us a message."""

    route: Route
    limit: float
    scenario: str = "median"
    ours: str = AIMPORT
    against: str = ""
    words: str = ""

    def __str__(self) -> str:
        if self.words:
            return self.words
        if self.against:
            return f"{self.ours} at least {self.limit:g} times as fast as {self.against}"
        return f"{self.ours}: client CPU below {self.limit:g} µs/message"

    def measured(self, result: Result) -> Spread | None:
        """Over the rounds of a run; None when a part of it was not there or did not count."""
        route = result.route(self.scenario, self.route)
        if route is None:
            return None
        ours = route.entry(self.ours)
        if self.against:
            return spread(ratios(ours, route.entry(self.against)))
        return spread(each.client_cpu_s * 1e6 / route.messages for each in ours.counted)

    def held(self, measured: Spread) -> bool:
        """By the median."""
        return measured.median >= self.limit if self.against else measured.median < self.limit


GOALS: Final = (
    Goal(route="maildir-imap", against=MBSYNC_4, limit=2.5),
    Goal(route="maildir-imap", ours=AIMPORT_4, against=MBSYNC_4, limit=2.5),
    Goal(route="maildir-imap", against=FLOOR, limit=0.9),
    Goal(route="maildir-imap", ours=AIMPORT_4, against=FLOOR, limit=0.9),
    Goal(route="maildir-imap", limit=150),
    Goal(route="imap-maildir", against=DOVEADM_4, limit=1.8),
    Goal(route="imap-imap", against=IMAPLIB, limit=2.5),
    Goal(route="imap-imap", limit=250),
    Goal(
        route="maildir-maildir",
        ours=AIMPORT_COPIED,
        against=CP,
        limit=1 / 1.5,
        words=f"{AIMPORT_COPIED}, at most 1.5 times as long as {CP}",
    ),
    *(
        Goal(scenario="latency-80", route=route, against=against, limit=10)
        for route in OVER_IMAP
        for against in (MBSYNC_1, MBSYNC_4)
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """Whether aimport is ahead of every peer on one path: the one it has least advantage of."""

    route: RouteResult
    peer: Entry
    measured: Spread

    @property
    def held(self) -> bool:
        return self.measured.median >= 1


def ahead(result: Result) -> list[Ahead]:
    """Of all paths that have a peer."""
    found = []
    for route in result.routes:
        least = standing(route, "peer")
        if least is not None:
            found.append(Ahead(route=route, peer=least[0], measured=least[1]))
    return found
