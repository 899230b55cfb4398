"""An INTERNALDATE for messages whose store kept none. Pure: no clock.

    what the store says ▶ name of the file ▶ newest Received ▶ Date ▶ mtime of the file

The newest Received field is the first: each host writes its own above the others (RFC 5321 §4.4). Each rung below the
store's own word is a guess, and is counted.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from aimport.model import Dated

YEARS: Final = range(1971, 2106)
"""A year outside is a mistake of whoever wrote the field; what 32 bits of seconds can say."""
HEADER_LIMIT: Final = 64 * 1024
"""So much of a header is searched."""

_FIELD = re.compile(rb"^(received|date):((?:[^\n]|\n[ \t])*)", re.IGNORECASE | re.MULTILINE)
_STAMP = re.compile(r"(\d{8,10})\.[A-Za-z0-9_]*\d[A-Za-z0-9_]*\.[A-Za-z0-9]", re.ASCII)
_EMPTY = re.compile(rb"\n\r?\n")


def guessed(octets: bytes, mtime: float, name: str = "") -> tuple[datetime, Dated]:
    """The date of a message that begins so, aware, and where it comes from. `mtime`: seconds since 1970.

    `name`: of its file, where names may be those that Maildir deliverers give: `SECONDS.UNIQUE.HOST`.
    """
    if (stamp := _STAMP.match(name)) and (date := of_seconds(int(stamp[1]))).year in YEARS:
        return date, "name"
    end = _EMPTY.search(octets, 0, HEADER_LIMIT)
    sent: datetime | None = None
    for match in _FIELD.finditer(octets, 0, end.start() + 1 if end else HEADER_LIMIT):
        if match[1].lower() == b"received":
            if (found := parsed(match[2].rpartition(b";")[2])) is not None:
                return found, "received"
        elif sent is None:
            sent = parsed(match[2])
    if sent is not None:
        return sent, "date"
    return of_seconds(mtime), "mtime"


def parsed(field: bytes) -> datetime | None:
    """A date of RFC 5322 §3.3 and §4.3, aware; None when it is none, or none that can be right."""
    try:
        found = parsedate_to_datetime(b" ".join(field.split()).decode("ascii", "replace"))
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
        return found if found.astimezone(UTC).year in YEARS else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def of_seconds(seconds: float) -> datetime:
    """Seconds since 1970 as a date; years that have no date become the nearest that have one."""
    try:
        return datetime.fromtimestamp(int(seconds // 1), UTC)
    except (ValueError, OverflowError, OSError):
        return (datetime.min if seconds < 0 else datetime.max.replace(microsecond=0)).replace(tzinfo=UTC)
