"""From_ lines, their dates, flags in headers, labels, quoting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.stores.mbox.headers import (
    Dialect,
    labels_of,
    read_header,
    takeout_flags,
    takeout_mailbox,
    unquoted,
)
from aimport.stores.mbox.lines import date_of, is_from

WALL = datetime(2025, 5, 20, 10, 0, 0)
LOCAL = WALL.astimezone()


@pytest.mark.parametrize(
    ("line", "date"),
    [
        (b"From a@b Tue May 20 10:00:00 2025", LOCAL),
        (b"From a@b  Tue May 20 10:00:00 2025\r", LOCAL),
        (b"From - Tue May 20 10:00:00 2025", LOCAL),
        (b'From "a b"@c Tue May 20 10:00:00 2025', LOCAL),
        (b"From  Tue May 20 10:00:00 2025", LOCAL),
        (b"From a Tue May 20 10:00 2025", LOCAL),
        (b"From a Tue may 20 10:00:00 2025 remote from relay", LOCAL),
        (b"From a Tue May  6 10:00:00 2025", datetime(2025, 5, 6, 10).astimezone()),
        (b"From a Tue May 6 1:00:00 2025", datetime(2025, 5, 6, 1).astimezone()),
        (b"From a Tue May 20 10:00:00 +0200 2025", WALL.replace(tzinfo=timezone(timedelta(hours=2)))),
        (b"From a Tue May 20 10:00:00 2025 -0330", WALL.replace(tzinfo=timezone(-timedelta(hours=3, minutes=30)))),
        (b"From a Tue May 20 10:00:00 CEST 2025", WALL.replace(tzinfo=timezone(timedelta(hours=2)))),
        (b"From a Tue May 20 10:00:00 2025 GMT", WALL.replace(tzinfo=UTC)),
        (b"From a Tue May 20 10:00:00 XYZ 2025", LOCAL),
        (b"From a Tue, 20 May 2025 10:00:00 +0000", WALL.replace(tzinfo=UTC)),
        (b"From a Tue, 20 May 2025 10:00:00", LOCAL),
        (b"From a Tue May 20 10:00:60 2025", datetime(2025, 5, 20, 10, 0, 59).astimezone()),
        (b"From bob", None),
        (b"From bob Tue", None),
        (b"From here to there Tue May 20 10:00:00 2025", None),
        (b"From a Tue Foo 20 10:00:00 2025", None),
        (b"From a Tue Feb 30 10:00:00 2025", None),
        (b"From a Tue May 32 10:00:00 2025", None),
        (b"From a Tue May 20 25:00:00 2025", None),
        (b"From a Tue May 20 10:61:00 2025", None),
        (b"From a Tue May 20 10:00:00 25", None),
        (b"from a Tue May 20 10:00:00 2025", None),
        (b"From: a Tue May 20 10:00:00 2025", None),
    ],
)
def test_a_from_line_has_a_date(line: bytes, date: datetime | None) -> None:
    assert date_of(line) == date
    assert is_from(line) == (date is not None)


@given(st.binary(max_size=80))
def test_any_line_has_a_date_or_none(rest: bytes) -> None:
    assert (date_of(b"From " + rest) is not None) == is_from(b"From " + rest)


@pytest.mark.parametrize(
    ("header", "left", "flags"),
    [
        (b"A: 1\nStatus: RO\nB: 2\n", b"A: 1\nB: 2\n", {"\\Seen"}),
        (b"status: O\nX-STATUS: AFTD\n", b"", {"\\Answered", "\\Flagged", "\\Draft", "\\Deleted"}),
        (b"X-Keywords: $Label1 NonJunk   \nA: 1\n", b"A: 1\n", {"$Label1", "NonJunk"}),
        (b"X-Keywords: a\n\tb\n c\nA: 1\n", b"A: 1\n", {"a", "b", "c"}),
        (b'X-Keywords: a" \xff (b\n', b"", set()),
        (b"X-UID: 5\nX-IMAPbase: 1 2 k\nContent-Length: 5\nX-IMAP: 1 2\n", b"", set()),
        (b"X-Mozilla-Status: 1007\nX-Mozilla-Status2: 0\nX-Mozilla-Keys: $label2   \nA: 1\n", b"A: 1\n",
         {"\\Seen", "\\Answered", "\\Flagged", "$Forwarded", "$label2"}),
        (b"X-Mozilla-Status: zz\nStatus: \n", b"", set()),
        (b"A: x\n Status: R\nXStatus: R\nStatus : R\n", b"A: x\n Status: R\nXStatus: R\nStatus : R\n", set()),
        (b"A: 1\r\nStatus: R\r\nB: 2\r\n", b"A: 1\r\nB: 2\r\n", {"\\Seen"}),
        (b"Status: R", b"", {"\\Seen"}),
        (b"", b"", set()),
    ],
)  # fmt: skip
def test_what_a_header_says_for_its_file_alone_is_taken_out(header: bytes, left: bytes, flags: set[str]) -> None:
    assert read_header(header) == (left, frozenset(flags))


@given(st.lists(st.sampled_from([b"From ", b">From ", b">>From ", b"x\n", b"\n", b">", b"\n>", b"F", b">>>>From z\n"])))
def test_unquoting_does_not_depend_on_how_the_body_is_cut(parts: list[bytes]) -> None:
    body = b"".join(parts)
    for dialect in ("mboxo", "mboxrd", "mboxcl", "mboxcl2"):
        whole = b"".join(unquoted([body], dialect))
        assert b"".join(unquoted(parts, dialect)) == whole
        assert b"".join(unquoted([body[at : at + 1] for at in range(len(body))], dialect)) == whole


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("mboxo", b"From a\n>>From b\nx >From c\n"),
        ("mboxrd", b"From a\n>From b\nx >From c\n"),
        ("mboxcl", b"From a\n>From b\nx >From c\n"),
        ("mboxcl2", b">From a\n>>From b\nx >From c\n"),
    ],
)
def test_each_dialect_undoes_its_own_quoting(dialect: Dialect, body: bytes) -> None:
    assert b"".join(unquoted([b">From a\n>>From b\nx >From c\n"], dialect)) == body


@pytest.mark.parametrize(
    ("raw", "path", "flags"),
    [
        (b"Inbox,Opened", ("INBOX",), {"\\Seen"}),
        (b"Inbox,Unread,Important", ("INBOX",), set()),
        (b"Archived,Starred", ("Archive",), {"\\Seen", "\\Flagged"}),
        (b"", ("Archive",), {"\\Seen"}),
        (b"Sent,Work/2024", ("Sent",), {"\\Seen", "Work/2024"}),
        (b"Inbox,Work/2024,Two Words", ("Work", "2024"), {"\\Seen", "Two_Words"}),
        (b"Trash,Work", ("Trash",), {"\\Seen", "Work"}),
        (b"Drafts", ("Drafts",), {"\\Seen", "\\Draft"}),
        (b"inbox/x", ("INBOX", "x"), {"\\Seen"}),
        (b"=?UTF-8?Q?Inbox,R=C3=A4tsel?=", ("Rätsel",), {"\\Seen"}),
        (b"/,Category Social", ("Archive",), {"\\Seen"}),
        (b"=?bad", ("=?bad",), {"\\Seen"}),
    ],
)
def test_labels_make_one_mailbox_and_flags(raw: bytes, path: tuple[str, ...], flags: set[str]) -> None:
    labels = labels_of(raw)
    assert takeout_mailbox(labels) == path
    assert takeout_flags(labels) == flags
