"""A message as it is written into an mbox. Pure.

    From bob@example.org  Fri Jan 10 12:00:00 2020 +0000 remote from aimport-RUN-B7N0-S812
    <its header> Status: X-Status: X-Keywords: Content-Length:
                                                              (an empty line)
    <its body>
                                                              (a line end)

As Dovecot writes: with Content-Length and without quoting (mboxcl2), unless a location asks for another dialect. What
stands behind the date is text to every reader (UUCP wrote so); by it we know our own messages again, and whether they
are whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aimport.flags import is_keyword
from aimport.stores.mbox.headers import Dialect, read_header

_SENDER = re.compile(rb"(?im)^return-path:[ \t]*<([^<>\s\x00]{1,200})>[ \t]*\r?$")
_HEADER_END = re.compile(rb"\n(\r?\n)")
_MARK = re.compile(rb" remote from (aimport-[0-9A-Za-z_-]{1,80}-B\d{1,12}N\d{1,9})-S(\d{1,18})\s*\Z")
_LETTERS: Final = {"\\Answered": "A", "\\Flagged": "F", "\\Draft": "T", "\\Deleted": "D"}
_QUOTED: Final = {
    "mboxo": re.compile(rb"^(?=From )", re.MULTILINE),
    "mboxrd": re.compile(rb"^(?=>*From )", re.MULTILINE),
}
BASE: Final = "X-IMAPbase"
BASE_ROOM: Final = 256
"""Octets kept free for keywords to come: what is not announced in the first message no reader believes (Dovecot)."""
_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d{1,18})[ \t]*\r?$")
_BASE = re.compile(rb"(?im)^x-imap(?:base)?:[ \t]*(\d+)[ \t]+(\d+)([^\r\n]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Framed:
    """What goes before a body, and what the message lost."""

    head: bytes
    """The header with its metadata and the empty line."""
    dropped: tuple[str, ...]
    """Header fields that an mbox keeps for itself, and keywords that cannot be announced."""


def split_message(start: bytes) -> tuple[bytes, int]:
    """The header of a message that begins so, its last line ended, and where its body begins (-1: there is none)."""
    if start.startswith((b"\n", b"\r\n")):
        return b"", start.index(b"\n") + 1
    match = _HEADER_END.search(start)
    if match is None:
        return start, -1
    return start[: match.start() + 1], match.end()


def framed(
    header: bytes, flags: Iterable[str], known: Iterable[str], *, length: int | None, base: bytes = b""
) -> Framed:
    """The header as it is written. `known`: keywords that are announced; `length`: of the body, None: not told.

    `base` is the line that announces keywords, for the first message of a file.
    """
    flags = set(flags)
    end = b"\r\n" if header.endswith(b"\r\n") else b"\n"
    lost = set()
    if header.startswith(b"From "):  # left by whoever took it out of another mbox; here it would begin a message
        header = header[header.find(b"\n") + 1 or len(header) :]
        lost.add("From ")
    own = read_header(header).octets
    lost |= {f"{field.decode('latin-1')}:" for field in _lost(header, own)}
    if b"\nFrom " in own:
        own = own.replace(b"\nFrom ", b"\n>From ")
        lost.add("From ")
    if own and not own.endswith(b"\n"):
        own += end
    announced = {name.lower() for name in known}
    words = sorted(flag for flag in flags if not flag.startswith("\\") and flag.lower() in announced)
    lost |= {flag for flag in flags if not flag.startswith("\\") and flag not in words}
    letters = "".join(letter for flag, letter in _LETTERS.items() if flag in flags)
    lines = [base] if base else []
    if "\\Seen" in flags:
        lines.append(b"Status: R")
    if letters:
        lines.append(b"X-Status: " + letters.encode())
    if words:
        lines.append(b"X-Keywords: " + " ".join(words).encode())
    if length is not None:
        lines.append(b"Content-Length: %d" % length)
    return Framed(head=own + b"".join(line + end for line in lines) + end, dropped=tuple(sorted(lost)))


def _lost(header: bytes, own: bytes) -> Iterator[bytes]:
    if len(own) == len(header):
        return
    kept = set(re.findall(rb"(?m)^([^:\s]+):", own))
    for name in re.findall(rb"(?m)^([^:\s]+):", header):
        if name not in kept:
            yield name


def from_line(header: bytes, date: datetime, mark: str, octets: int) -> bytes:
    """The From_ line of a message of so many octets in the file (without this line and the separator)."""
    found = _SENDER.search(header)
    sender = found[1] if found else b"MAILER-DAEMON"
    try:
        when = date.astimezone(UTC)
    except OverflowError:
        when = date.replace(tzinfo=UTC)
    stamp = f"{_DAYS[when.weekday()]} {_MONTHS[when.month - 1]} {when.day:02} {when:%H:%M:%S} {when.year:04} +0000"
    return b"From %s  %s remote from %s-S%d\n" % (sender, stamp.encode(), mark.encode(), octets)


_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def mark_of(run: str, number: int, index: int) -> str:
    """What says which message of which batch of which run it is."""
    return f"aimport-{re.sub(r'[^0-9A-Za-z-]', '_', run)[:80]}-B{number}N{index}"


def mark_in(line: bytes) -> tuple[str, int] | None:
    """The mark in a From_ line and the octets that the message must have; None: it is not one of ours."""
    found = _MARK.search(line)
    return (found[1].decode("ascii"), int(found[2])) if found else None


def length_in(header: bytes) -> int | None:
    """The Content-Length of a header."""
    found = _LENGTH.search(header)
    return int(found[1]) if found else None


def quoted(pieces: Iterable[bytes], dialect: Dialect | None) -> Iterator[bytes]:
    """A body whose lines `From ` cannot be taken for beginnings, as far as the dialect sees to that."""
    if dialect in (None, "mboxcl2"):
        yield from pieces
        return
    pattern = _QUOTED["mboxrd" if dialect == "mboxrd" else "mboxo"]
    held = b""
    begun = True
    for piece in pieces:
        data = held + piece
        cut = data.rfind(b"\n") + 1
        tail = data[cut:]
        if (cut or begun) and len(tail) < 4096 and b"From ".startswith(tail.lstrip(b">")[:5]) and tail[-5:] != b"From ":
            data, held = data[:cut], tail  # may go on as a line to be quoted
        else:
            held = b""
        if not data:
            continue
        yield pattern.sub(b">", data) if begun else pattern.sub(b">", b"x" + data)[1:]
        begun = data.endswith(b"\n")
    if held:
        yield pattern.sub(b">", held)


def base_line(uidvalidity: int, keywords: Sequence[str], room: int = BASE_ROOM) -> bytes:
    """The line that announces keywords, with room for more (spaces, which every reader takes for none)."""
    words = "".join(f" {word}" for word in keywords)
    line = f"{BASE}: {uidvalidity} 0000000000{words}"
    return (line + " " * room).encode()


def parse_base(header: bytes) -> tuple[int, int, list[str]] | None:
    """Where the list of keywords stands in the header of the first message: place, octets, keywords."""
    found = _BASE.search(header)
    if found is None:
        return None
    return found.start(3), len(found[3]), found[3].decode("utf-8", "replace").split()


def announced(known: Sequence[str], wanted: Iterable[str], room: int) -> list[str]:
    """`known` and as many of `wanted` behind them as there are octets for; case does not count."""
    words = list(known)
    seen = {word.lower() for word in words}
    used = sum(len(word.encode()) + 1 for word in words)
    for word in sorted(wanted):
        more = len(word.encode()) + 1
        if word.lower() not in seen and is_keyword(word) and used + more <= room:
            words.append(word)
            seen.add(word.lower())
            used += more
    return words
