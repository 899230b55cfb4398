"""From_ lines: what makes one, and the date in it. Pure.

    From alice@example.org Tue May 20 10:00:00 2025

As Dovecot's `mbox_from_parse()`: a sender without blanks outside quotes, then a date as ctime writes it, with or
without seconds, a zone before or behind the year, anything behind that; or the date of RFC 5322. A `From ` line without
a date is text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"), 1
    )
}
_ZONES: Final = {
    **dict.fromkeys((b"ut", b"utc", b"gmt", b"z", b"wet"), 0),
    **{b"est": -5, b"edt": -4, b"cst": -6, b"cdt": -5, b"mst": -7, b"mdt": -6, b"pst": -8, b"pdt": -7},
    **{b"cet": 1, b"cest": 2, b"met": 1, b"mest": 2, b"eet": 2, b"eest": 3, b"west": 1, b"bst": 1},
}
"""Hours east of Greenwich: RFC 5322 §4.3 and what Unix `date` prints in Europe. Dovecot takes these for local time."""
_ZONE: Final = rb"(?:[+-]\d{4}|[A-Za-z]{1,5})"
_FROM = re.compile(
    rb"From (?:\"[^\"]*\")?[^ ]* +[A-Za-z]{3},? +"
    rb"(?:([A-Za-z]{3}) +(\d{1,2}) +(\d{1,2}):(\d\d)(?::(\d\d))? +(?:("
    + _ZONE
    + rb") +)?(\d{4})(?: +("
    + _ZONE
    + rb")\b)?"
    rb"|(\d{1,2}) +([A-Za-z]{3}) +(\d{4}) +(\d{1,2}):(\d\d)(?::(\d\d))?(?: +(" + _ZONE + rb")\b)?)(?![^ \r])"
)


def date_of(line: bytes) -> datetime | None:
    """The date of a From_ line, aware; without a zone it is local time (as Dovecot). None: it is no From_ line."""
    match = _FROM.match(line)
    if match is None:
        return None
    month, day, hour, minute, second, zone, year, later_zone, *other = match.groups()
    if month is None:
        day, month, year, hour, minute, second, zone = other
    number = _MONTHS.get(month.lower())
    if number is None:
        return None
    try:
        local = datetime(int(year), number, int(day), int(hour), int(minute), min(int(second or 0), 59))
        return _aware(local, zone or later_zone or b"")
    except (ValueError, OverflowError, OSError):
        return None


def is_from(line: bytes) -> bool:
    """Whether a line begins a message."""
    match = _FROM.match(line)
    if match is None:
        return False
    month, day, hour, minute, *_ = match.groups()
    if month is None or len(day) > 2 or int(day) > 28 or int(day) == 0 or int(hour) > 23 or int(minute) > 59:
        return date_of(line) is not None
    return month.lower() in _MONTHS


def _aware(local: datetime, zone: bytes) -> datetime:
    if zone[:1] in (b"+", b"-"):
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:]))
        return local.replace(tzinfo=timezone(-offset if zone[:1] == b"-" else offset))
    hours = _ZONES.get(zone.lower())
    if hours is None:
        return local.astimezone()
    return local.replace(tzinfo=timezone(timedelta(hours=hours)) if hours else UTC)
