"""Dates for messages whose store kept none."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport import dates

NOON = datetime(2020, 5, 20, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "date", "where"),
    [
        (b"Received: by a; Wed, 20 May 2020 12:00:00 +0000\nReceived: by b; Tue, 19 May 2020 12:00:00 +0000\n",
         NOON, "received"),
        (b"Received: from x\n\tby a (; q);\n\tWed, 20 May 2020 14:00:00 +0200 (CEST)\nDate: x\n", NOON, "received"),
        (b"Date: Wed, 20 May 2020 12:00:00 GMT\nReceived: by a\nReceived: by b; nonsense\n", NOON, "date"),
        (b"Received: by a; Thu, 32 Foo 2025 25:61:61 +9999\nDATE: 20 May 20 12:00 UT\n", NOON, "date"),
        (b"Date: Wed, 20 May 2020 07:00:00 EST (comment)\n", NOON, "date"),
        (b"Date: Wed, 20 May 2020 12:00:00 -0000\n", NOON, "date"),
        (b"Date: Mon, 01 Jan 1900 00:00:00 +0000\n", None, "mtime"),
        (b"Date: Fri, 31 Dec 9999 23:59:59 +0000\n", None, "mtime"),
        (b"Date: Fri, 31 Dec 9999 23:59:59 -2300\n", None, "mtime"),
        (b"Date: \nSubject: x\n", None, "mtime"),
        (b"Date: 20250520T100000Z\n", None, "mtime"),
        (b"Subject: x\n\nDate: Wed, 20 May 2020 12:00:00 GMT\n", None, "mtime"),
        (b"XDate: Wed, 20 May 2020 12:00:00 GMT\n", None, "mtime"),
        (b"", None, "mtime"),
    ],
)  # fmt: skip
def test_the_newest_received_field_then_the_date_then_the_file(
    header: bytes, date: datetime | None, where: str
) -> None:
    for octets in (header, header + b"\nbody\n", header.replace(b"\n", b"\r\n") + b"\r\nbody\r\n"):
        assert dates.guessed(octets, 1_000_000_000.9) == (date or datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC), where)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("1589976000.M1P2.host", "name"),
        ("1589976000.123_4.host,S=5:2,S", "name"),
        ("1589976000.eml", "mtime"),
        ("2020.05.20.eml", "mtime"),
        ("9999999999.M1.host", "mtime"),
    ],
)
def test_a_name_that_a_deliverer_gave_says_when(name: str, where: str) -> None:
    date, seen = dates.guessed(b"", 5, name)
    assert (seen, date == NOON) == (where, where == "name")


@given(st.binary(max_size=60), st.floats(allow_nan=False, allow_infinity=False))
def test_any_field_and_any_time_gives_a_date(field: bytes, mtime: float) -> None:
    for header in (b"Date: " + field, b"Received: x; " + field):
        date, _ = dates.guessed(header, mtime)
        assert date.utcoffset() is not None


def test_only_so_much_of_a_header_is_searched() -> None:
    header = b"X: " + b"y" * dates.HEADER_LIMIT + b"\nDate: Wed, 20 May 2020 12:00:00 GMT\n"
    assert dates.guessed(header, 0)[1] == "mtime"
