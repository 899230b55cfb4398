"""The figures of every round, the ratios within a round, JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One trial as it was measured. `wrong` says why it does not count."""

    round: int
    seconds: float
    client_cpu_s: float
    server_cpu_s: float
    peak_rss_mib: float
    arrived: int
    wrong: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One contender on one route; `left_out` says why there are no rounds."""

    name: str
    left_out: str = ""
    rounds: tuple[Round, ...] = ()

    @property
    def counted(self) -> tuple[Round, ...]:
        return tuple(each for each in self.rounds if not each.wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteResult:
    route: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole run of the bench: all that a reader needs to judge a number, or to take it again."""

    schema: int
    taken: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    settings: dict[str, str | int]
    messages: int
    octets: int
    routes: tuple[RouteResult, ...]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def read_result(path: Path) -> Result:
    """The result in a file.

    Raises:
        msgspec.MsgspecError: it is none of ours.
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
