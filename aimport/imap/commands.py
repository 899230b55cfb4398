"""What we say to a server, as octets. Sans I/O; knows the grammar of RFC 9051 §9, no state of a connection.

    words ──▶ encode() ──▶ bursts: between two of them the server must say `+` (RFC 9051 §4.3)

A burst is a list of buffers; bodies are never copied here. Where a `LargeLiteral` stands in it,
its pieces are written in its place, one by one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

MINUS_OCTETS: Final = 4096  # RFC 7888 §5
SET_OCTETS: Final = 8000  # Dovecot takes lines of 64 KiB, Exchange fewer (seen at 10,000)

_QUOTABLE = re.compile(r"[\x01-\x09\x0b\x0c\x0e-\x7f]*\Z")
_FORBIDDEN = re.compile(r"[\x00\r\n]")


class LiteralPolicy(enum.Enum):
    """How literals are sent (RFC 7888): without waiting, without waiting when small, waiting."""

    PLUS = "LITERAL+"
    MINUS = "LITERAL-"
    SYNC = ""

    @classmethod
    def of(cls, capabilities: frozenset[str]) -> LiteralPolicy:
        if cls.PLUS.value in capabilities:
            return cls.PLUS
        return cls.MINUS if capabilities & {cls.MINUS.value, "IMAP4REV2"} else cls.SYNC


@dataclass(frozen=True, slots=True)
class Literal:
    """Octets sent with their length before them."""

    octets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LargeLiteral:
    """A literal that is not in memory: `pieces` gives its octets from the first, exactly `size` of them."""

    size: int
    pieces: Callable[[], Iterator[bytes]] = field(repr=False)


Word = bytes | Literal | LargeLiteral
"""What stands between two spaces of a command: octets as they are, or a literal."""

Burst = list[bytes | LargeLiteral]


def astring(text: str) -> Word:
    """`text` as a quoted string where that can hold it, else as a literal of UTF-8.

    Raises:
        ValueError: NUL, CR or LF, which could end the command.
    """
    if _FORBIDDEN.search(text):
        raise ValueError("NUL, CR and LF cannot be sent")
    if _QUOTABLE.match(text):
        return b'"%s"' % text.replace("\\", "\\\\").replace('"', '\\"').encode("ascii")
    return Literal(text.encode("utf-8"))


def octet_string(octets: bytes) -> Word:
    """As `astring`, for a name the server itself gave: its octets, whatever they are."""
    if octets.isascii():
        return astring(octets.decode("ascii"))
    if _FORBIDDEN.search(octets.decode("latin-1")):
        raise ValueError("NUL, CR and LF cannot be sent")
    return Literal(octets)


def encode(tag: str, words: Sequence[Word], policy: LiteralPolicy) -> list[Burst]:
    """One command line with its literals, in bursts.

    Synchronising literals split it; without any there is one burst.
    """
    bursts: list[Burst] = []
    burst: Burst = []
    text = tag.encode("ascii")
    for word in words:
        if isinstance(word, Literal | LargeLiteral):
            octets, size = (word.octets, len(word.octets)) if isinstance(word, Literal) else (word, word.size)
            if policy is LiteralPolicy.PLUS or (policy is LiteralPolicy.MINUS and size <= MINUS_OCTETS):
                burst += (b"%s {%d+}\r\n" % (text, size), octets)
            else:
                burst.append(b"%s {%d}\r\n" % (text, size))
                bursts.append(burst)
                burst = [octets]
            text = b""
        else:
            text = b"%s %s" % (text, word)
    burst.append(text + b"\r\n")
    bursts.append(burst)
    return bursts


def buffers(burst: Burst) -> list[bytes]:
    """A burst as it goes to `writelines`.

    Raises:
        TypeError: it holds a `LargeLiteral`.
    """
    for each in burst:
        if not isinstance(each, bytes):
            raise TypeError("a large literal is written piece by piece")
    return [each for each in burst if isinstance(each, bytes)]


def append_words(flags: Iterable[str], moment: datetime, body: bytes | LargeLiteral) -> tuple[Word, Word, Word]:
    """The words of one message in APPEND or MULTIAPPEND (RFC 9051 §6.3.12, RFC 3502).

    The flag list is sent even when empty: without it gromox refuses literals above 64 KiB.
    `flags` are atoms, backslash included.
    """
    literal = Literal(body) if isinstance(body, bytes) else body
    return b"(%s)" % " ".join(flags).encode("ascii"), date_time(moment), literal


def uid_sets(uids: Iterable[int], *, octets: int = SET_OCTETS) -> list[bytes]:
    """Ascending `uids` as sets of ranges (sequence-set, RFC 9051 §9), each at most about `octets` long."""
    sets: list[bytes] = []
    parts: list[bytes] = []
    size = 0

    def add(first: int, last: int) -> None:
        nonlocal parts, size
        part = b"%d" % first if first == last else b"%d:%d" % (first, last)
        if parts and size + len(part) + 1 > octets:
            sets.append(b",".join(parts))
            parts, size = [], 0
        parts.append(part)
        size += len(part) + 1

    first = last = -1
    for uid in uids:
        if uid == last + 1 and first >= 0:
            last = uid
            continue
        if first >= 0:
            add(first, last)
        first = last = uid
    if first >= 0:
        add(first, last)
    if parts:
        sets.append(b",".join(parts))
    return sets


_MONTHS: Final = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def date_time(moment: datetime) -> bytes:
    """`moment` (aware) as date-time (RFC 9051 §9), quotes included.

    A zone that is not of whole minutes cannot be said: UTC then, as far as the year allows.
    """
    if moment.tzinfo is UTC:
        zone = "+0000"
    else:
        offset = moment.utcoffset()
        seconds = 0 if offset is None else offset.days * 86400 + offset.seconds
        if seconds % 60 or (offset is not None and offset.microseconds):
            try:
                moment = moment.astimezone(UTC)
            except OverflowError:
                moment = moment.replace(tzinfo=UTC)
            seconds = 0
        zone = _zone(seconds // 60)
    return (
        f'"{moment.day:02}-{_MONTHS[moment.month]}-{moment.year:04}'
        f' {moment.hour:02}:{moment.minute:02}:{moment.second:02} {zone}"'
    ).encode("ascii")


@lru_cache(maxsize=256)
def _zone(minutes: int) -> str:
    hours, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02}{rest:02}"
