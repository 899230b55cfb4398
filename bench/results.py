"""The figures of every round, the ratios within a round, JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from bench.appends import Taken

SCHEMA: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One trial as it was measured. `wrong` says why it does not count. Nobody knows the CPU of some servers."""

    round: int
    seconds: float
    client_cpu_s: float
    server_cpu_s: float | None
    peak_rss_mib: float
    arrived: int
    wrong: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is told of a run that was watched, and that is therefore in no round."""

    syscalls: dict[str, int] | None = None
    """System calls of all its processes, by name."""
    appends: Taken | None = None
    """From an APPEND command's beginning on the wire to its answer; a command may have many messages."""
    wrong: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One contender on one route; `left_out` says why there are no rounds."""

    name: str
    role: Literal["ours", "peer", "floor"] = "peer"
    held_against: str = "aimport"
    """The aimport that does the same work."""
    left_out: str = ""
    rounds: tuple[Round, ...] = ()
    watched: Watched | None = None

    @property
    def counted(self) -> tuple[Round, ...]:
        return tuple(each for each in self.rounds if not each.wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteResult:
    """One path of one scenario: `mail` and `between` as they are told."""

    scenario: str
    what: str
    route: str
    mail: str
    between: str
    messages: int
    octets: int
    entries: tuple[Entry, ...]

    def entry(self, name: str) -> Entry:
        """The contender of that name; one without rounds when it had no part."""
        return next((entry for entry in self.entries if entry.name == name), Entry(name=name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole run of the bench: all that a reader needs to judge a number, or to take it again."""

    schema: int
    taken: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    settings: dict[str, str | int | float]
    routes: tuple[RouteResult, ...]

    def route(self, scenario: str, route: str) -> RouteResult | None:
        return next((each for each in self.routes if (each.scenario, each.route) == (scenario, route)), None)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def read_result(path: Path) -> Result:
    """The result in a file.

    Raises:
        msgspec.MsgspecError: it is none of ours, or of another schema.
    """
    return msgspec.json.decode(path.read_bytes(), type=Result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float


def spread(figures: Iterable[float]) -> Spread | None:
    """None of no figures."""
    known = sorted(figures)
    if not known:
        return None
    return Spread(median=statistics.median(known), low=known[0], high=known[-1])


def ratios(ours: Entry, theirs: Entry) -> list[float]:
    """How many times as fast `ours` was, in each round where both count."""
    seconds = {each.round: each.seconds for each in ours.counted}
    return [each.seconds / seconds[each.round] for each in theirs.counted if each.round in seconds]


def standing(route: RouteResult, role: Literal["peer", "floor"]) -> tuple[Entry, Spread] | None:
    """The peer that aimport has least advantage of, or the floor that is nearest: how many times as fast aimport is.

    Nothing is faster than the slowest of its floors.
    """
    known = [
        (entry, found)
        for entry in route.entries
        if entry.role == role and (found := spread(ratios(route.entry(entry.held_against), entry))) is not None
    ]
    choose = min if role == "peer" else max
    return choose(known, key=lambda each: each[1].median) if known else None
