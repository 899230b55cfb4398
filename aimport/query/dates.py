"""Moments, intervals, sizes and sets of numbers as doveadm reads them. Pure: the clock is an argument.

The forms are those of Dovecot 2.3.19 (`mail_parse_human_timestamp()`, `settings_get_size()`,
`imap_seq_set_parse()`); what they do not take is None or a ValueError, never a guess.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aimport.query.terms import LAST, Offset, Ranges

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
_IMAP = re.compile(r" ?(\d{1,2})-([A-Za-z]{3})-(\d{4})", re.ASCII)
_INTERVAL = re.compile(r"(\d+) *([A-Za-z]*)", re.ASCII)
_SIZE = re.compile(r"(\d+) *(?:(B?)|([KMGT])I?B?)", re.ASCII | re.IGNORECASE)
_UNITS: Final = (
    (1, ("secs", "seconds")),
    (60, ("mins", "minutes")),
    (3600, ("hours",)),
    (86_400, ("days",)),
    (604_800, ("weeks",)),
)
_MILLISECONDS: Final = ("msecs", "mseconds", "millisecs", "milliseconds")
_MAX_INTERVAL_S: Final = 2**32 - 1
_MAX_MOMENT: Final = 2**63 - 1
_MIN_MOMENT: Final = -(2**31)
"""What a day that is in no calendar becomes: later than all, or, until 2000, earlier (`imap_mktime()`)."""
_MAX_OCTETS: Final = 2**64 - 1


def _utc(_: int) -> int:
    return 0


def _utc_midnight(year: int, month: int, day: int) -> int:
    years, month = divmod(month - 1, 12)
    return timegm((year + years, month + 1, 1, 0, 0, 0)) + (day - 1) * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """When a run began, and the zone it runs in.

    `midnight` is that of local time; months and days beyond their end are carried over.
    """

    now: int
    offset: Offset = _utc
    midnight: Callable[[int, int, int], int] = _utc_midnight


@dataclass(frozen=True, slots=True)
class Moment:
    """`by_day`: to be compared with what the clock showed at the place, not with a moment in UTC."""

    at: int
    by_day: bool = False
    zoned: bool = False
    """A day that began at local midnight and is compared as if that were UTC (doveadm's YYYY-MM-DD)."""


def moment(text: str, clock: Clock) -> Moment | None:
    """A date, Unix time or interval back from now; None: none of these.

    An IMAP date that is in no calendar (31-Feb-2023) is taken, as doveadm takes it, for one that never comes.
    """
    if found := _ISO.fullmatch(text):
        year, month, day = map(int, found.groups())
        try:
            return Moment(clock.midnight(year, month, day), by_day=True, zoned=True)
        except (OverflowError, ValueError):
            return None
    if found := _IMAP.fullmatch(text):
        if found[2].lower() not in _MONTHS:
            return None
        return Moment(imap_date(text) or 0, by_day=True)
    if text.isascii() and text.isdecimal():
        return Moment(int(text)) if int(text) <= _MAX_MOMENT else None
    if (seconds := interval(text)) is not None:
        return Moment(clock.now - seconds)
    return None


def imap_date(text: str) -> int | None:
    """Midnight in UTC of `d-mon-yyyy`; None: not of that form."""
    found = _IMAP.fullmatch(text)
    if found is None or found[2].lower() not in _MONTHS:
        return None
    day, month, year = int(found[1]), _MONTHS.index(found[2].lower()) + 1, int(found[3])
    if not 1 <= day <= _days(year, month):
        return _MAX_MOMENT if year > 2000 else _MIN_MOMENT
    return _utc_midnight(year, month, day)


def _days(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def interval(text: str) -> int | None:
    """Seconds of `3 days`, `2w`, `5000ms`; a unit is any beginning of its name."""
    found = _INTERVAL.fullmatch(text)
    if found is None:
        return None
    number, unit = int(found[1]), found[2].lower()
    if not unit:
        return 0 if number == 0 else None
    for seconds, names in _UNITS:
        if any(name.startswith(unit) for name in names):
            return number * seconds if number * seconds <= _MAX_INTERVAL_S else None
    if any(name.startswith(unit) for name in _MILLISECONDS) and number % 1000 == 0:
        return number // 1000 if number // 1000 <= _MAX_INTERVAL_S else None
    return None


def size(text: str) -> int | None:
    """Octets of `4096`, `2k`, `1 MiB`; None: no size."""
    found = _SIZE.fullmatch(text)
    if found is None:
        return None
    octets = int(found[1]) << (10 * (" KMGT".index(found[3].upper()) if found[3] else 0))
    return octets if octets <= _MAX_OCTETS else None


_RANGE = re.compile(r"(\*|\d{1,10})(?::(\*|\d{1,10}))?(?:,|\Z)", re.ASCII)


def numbers(text: str) -> Ranges | None:
    """The ranges of a set, merged and ascending; None: not a set.

    As in Dovecot "" is one, and a comma at the end is nothing.
    """
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(text):
        match = _RANGE.match(text, at)
        if match is None:
            return None
        first, last = _number(match[1]), _number(match[2] or match[1])
        if first is None or last is None:
            return None
        found.append((min(first, last), max(first, last)))
        at = match.end()
    return _merged(found)


def _number(text: str) -> int | None:
    if text == "*":
        return LAST
    # The number that stands for `*` is the one before, as in Dovecot.
    return min(int(text), LAST - 1) if 0 < int(text) <= LAST else None


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
