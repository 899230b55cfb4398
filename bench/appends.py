"""How long APPEND commands take on the wire, from their first line to their answer. Pure: told of octets and times.

Both directions are read as lines; what a literal announces is skipped where it lies, so that no message is taken for
a command. Not for TLS or COMPRESS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LITERAL = re.compile(rb"\{(\d+)\+?\}\r?\Z")


class Lines:
    """One direction of a connection: `begun` hears the first line of each command or response."""

    def __init__(self, begun: Callable[[bytes], None]) -> None:
        self._begun = begun
        self._held = b""
        self._missing = 0
        self._first = True

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._missing:
                taken = min(self._missing, len(data) - at)
                self._missing -= taken
                at += taken
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._held += data[at:]
                return
            line, self._held, at = self._held + data[at:end], b"", end + 1
            if self._first:
                self._begun(line)
            literal = _LITERAL.search(line)
            self._missing = int(literal[1]) if literal else 0
            self._first = literal is None


class Appends:
    """Of one connection; `took_s` gets the seconds of each APPEND that was answered."""

    def __init__(self, clock: Callable[[], float], took_s: list[float]) -> None:
        self._clock = clock
        self._took_s = took_s
        self._began: dict[bytes, float] = {}
        self.sent = Lines(self._command)
        self.received = Lines(self._answer)

    def _command(self, line: bytes) -> None:
        tag, _, rest = line.partition(b" ")
        if rest[:7].upper() == b"APPEND ":
            self._began[tag] = self._clock()

    def _answer(self, line: bytes) -> None:
        began = self._began.pop(line.partition(b" ")[0], None)
        if began is not None:
            self._took_s.append(self._clock() - began)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Of so many APPEND commands, in milliseconds."""

    commands: int
    p50_ms: float
    p99_ms: float


def taken(seconds: Sequence[float]) -> Taken | None:
    """The median and the 99th percentile (the nearest rank); None of no commands."""
    if not seconds:
        return None
    known = sorted(seconds)
    ranks = [known[max(0, -(-len(known) * percent // 100) - 1)] * 1000 for percent in (50, 99)]
    return Taken(commands=len(known), p50_ms=round(ranks[0], 2), p99_ms=round(ranks[1], 2))
