"""What the speed should be, beside what it was: a table, never a verdict on the command.

A goal is a ratio of two contenders of one round, or the CPU aimport takes for a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.peers import AIMPORT, AIMPORT_4, DOVEADM_4, FLOOR, IMAPLIB, MBSYNC_4, Route
from bench.results import Entry, Result, Spread, ratios, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`ours` at least `limit` times as fast as `against`; without `against`, client CPU below `limit` us a message."""

    route: Route
    limit: float
    ours: str = AIMPORT
    against: str = ""

    def __str__(self) -> str:
        if self.against:
            return f"{self.ours} at least {self.limit:g} times as fast as {self.against}"
        return f"{self.ours}: client CPU below {self.limit:g} µs/message"

    def measured(self, result: Result) -> Spread | None:
        """Over the rounds of a run; None when a part of it was not there or did not count."""
        entries = {entry.name: entry for route in result.routes if route.route == self.route for entry in route.entries}
        ours = entries.get(self.ours, Entry(name=self.ours))
        if self.against:
            return spread(ratios(ours, entries.get(self.against, Entry(name=self.against))))
        return spread(each.client_cpu_s * 1e6 / result.messages for each in ours.counted)

    def held(self, measured: Spread) -> bool:
        """By the median."""
        return measured.median >= self.limit if self.against else measured.median < self.limit


GOALS: Final = (
    Goal(route="maildir-imap", against=MBSYNC_4, limit=2.5),
    Goal(route="maildir-imap", ours=AIMPORT_4, against=MBSYNC_4, limit=2.5),
    Goal(route="maildir-imap", ours=AIMPORT_4, against=FLOOR, limit=0.9),
    Goal(route="maildir-imap", limit=150),
    Goal(route="imap-maildir", against=DOVEADM_4, limit=1.8),
    Goal(route="imap-imap", against=IMAPLIB, limit=2.5),
    Goal(route="imap-imap", limit=250),
)
