"""Cut what a server sends into responses: lines and literals. Sans I/O.

    octets ──▶ FragmentReader ──▶ (text, literal, text, literal, ..., text)

Knows where a line ends and when its end announces a literal (RFC 9051 §4.3), nothing of what a
response means. Every octet is searched once and copied at most twice, however the stream was
cut into reads. Limits are checked on what is announced, before memory or disk is taken. A large
literal is not held here: it goes to a sink as it comes, and the sink stands in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from aimport.errors import ProtocolError

MAX_LINE: Final = 1024 * 1024
MAX_NUMBERS: Final = 32 * 1024 * 1024
"""Octets of a line that is a list of numbers: 4,000,000 of them."""
MAX_LITERAL: Final = 512 * 1024 * 1024  # arbitrary: above any size limit seen in the wild
MAX_SIZE_DIGITS: Final = 19


class Sink(Protocol):
    """Takes a literal in pieces. Called from within `feed`: it may not block."""

    def write(self, piece: bytes, /) -> None: ...


Fragments = tuple[bytes | Sink, ...]
"""One response: text at even places (no CRLF, no `{n}`), literals, or their sinks, between them."""

_NUMBERS = re.compile(rb"\* (?:E?SEARCH|SORT|VANISHED) ", re.IGNORECASE)
_STATUS = re.compile(rb"\* (?:OK|NO|BAD|BYE|PREAUTH)(?: |\Z)", re.IGNORECASE)


class FragmentReader:
    """Fed with octets as they come, returns the responses that are now whole.

    `max_line` bounds the text of one response, all its lines together; `max_literal` its literals.
    A literal of more than `spill_above` octets goes to the sink that `spill` gives for its size
    when it is announced; without `spill` every literal is held. Changes of the last three count
    from the next literal on.
    """

    def __init__(
        self,
        *,
        max_line: int = MAX_LINE,
        max_literal: int = MAX_LITERAL,
        spill_above: int = 0,
        spill: Callable[[int], Sink] | None = None,
    ) -> None:
        self.max_literal = max_literal
        self.spill_above = spill_above
        self.spill = spill
        self._max_line = max_line
        self._fragments: list[bytes | Sink] = []
        self._sink: Sink | None = None
        """Takes the literal under way."""
        self._held = bytearray()
        """The beginning of the line or literal that is not complete yet."""
        self._missing = 0
        """Octets still to come of a literal; 0: within a line."""
        self._text = 0
        self._literals = 0

    @property
    def empty(self) -> bool:
        """Nothing is held: the stream stands between two responses."""
        return not (self._held or self._fragments)

    def feed(self, data: bytes) -> list[Fragments]:
        """The responses that end within `data`, in order.

        Raises:
            ProtocolError: a limit is passed, or a line does not end in CRLF.
        """
        whole: list[Fragments] = []
        at, end = 0, len(data)
        while at < end:
            if self._missing:
                piece = data[at : at + self._missing]
                at += len(piece)
                self._missing -= len(piece)
                if self._sink is not None:
                    self._sink.write(piece)
                    if not self._missing:
                        self._fragments.append(self._sink)
                        self._sink = None
                elif self._missing:
                    self._held += piece
                else:
                    self._fragments.append(self._complete(piece))
                continue
            newline = data.find(b"\n", at)
            stop = end if newline < 0 else newline
            size = self._text + len(self._held) + stop - at
            if size > self._max_line and not self._may_be_long(size, data[at : at + 16]):
                raise ProtocolError(f"the server sent a line of more than {self._max_line} octets")
            if newline < 0:
                self._held += data[at:]
                break
            line = self._complete(data[at:newline])
            at = newline + 1
            if line[-1:] != b"\r":
                raise ProtocolError("the server sent a line that does not end in CR LF")
            line = line[:-1]
            if line[-1:] == b"}" and self._announces_literal(line):
                continue
            if self._fragments:
                self._fragments.append(line)
                whole.append(tuple(self._fragments))
                self._fragments = []
                self._literals = self._text = 0
            else:
                whole.append((line,))
        return whole

    def _may_be_long(self, size: int, begin: bytes) -> bool:
        """Whether the line under way is a list of numbers: a million UIDs are one line of 8 MB."""
        begin = bytes(self._held[:16]) + begin
        return not self._fragments and size <= MAX_NUMBERS and _NUMBERS.match(begin) is not None

    def _complete(self, piece: bytes) -> bytes:
        if not self._held:
            return piece
        self._held += piece
        held = bytes(self._held)
        self._held = bytearray()
        return held

    def _announces_literal(self, line: bytes) -> bool:
        """Whether a literal follows `line`; human text (RFC 9051 §7.1, §7.5) announces none."""
        if not self._fragments and (line[:2] != b"* " or _STATUS.match(line)):
            return False
        start = line.rfind(b"{")
        if start < 0:
            return False
        digits = line[start + 1 : -1]
        if not digits.isdigit() or len(digits) > MAX_SIZE_DIGITS:
            raise ProtocolError("the server announced a literal without a proper size")
        self._missing = int(digits)
        self._literals += self._missing
        if self._literals > self.max_literal:
            raise ProtocolError(f"the server announced a literal beyond the limit of {self.max_literal} octets")
        if line[start - 1 : start] == b"~":  # literal8 (RFC 3516)
            start -= 1
        self._fragments.append(line[:start])
        self._text += len(line)
        if not self._missing:
            self._fragments.append(b"")
        elif self.spill is not None and self._missing > self.spill_above:
            self._sink = self.spill(self._missing)
        return True
