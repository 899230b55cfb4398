"""Dates, sizes, sets; text, headers, addresses, MIME parts and threads as Dovecot reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.model import PIECE_OCTETS
from aimport.query import dates, headers, mime, text
from aimport.query.dates import Clock, Moment
from aimport.query.headers import addresses, fields, sent
from aimport.query.mime import content_type, holds, parts
from aimport.query.terms import LAST
from aimport.query.threads import base_subject, links, whole_threads
from aimport.spool import FileBody

CLOCK = Clock(now=1_000_000_000)


@pytest.mark.parametrize(
    ("written", "at", "by_day"),
    [
        ("2020-01-10", 1578614400, True),
        ("10-Jan-2020", 1578614400, True),
        (" 1-jan-1970", 0, True),
        ("1578657600", 1578657600, False),
        ("0", 0, False),
        ("1w", CLOCK.now - 604800, False),
        ("2 days", CLOCK.now - 172800, False),
        ("3minut", CLOCK.now - 180, False),
        ("5000ms", CLOCK.now - 5, False),
        ("2020-13-45", 1613260800, True),
        ("31-Feb-2023", 2**63 - 1, True),
        ("31-Feb-1999", -(2**31), True),
    ],
)
def test_a_moment_is_read_as_doveadm_reads_it(written: str, at: int, by_day: bool) -> None:
    found = dates.moment(written, CLOCK)
    assert found is not None
    assert (found.at, found.by_day) == (at, by_day)


@pytest.mark.parametrize(
    "written",
    ["", "now", "3y", "2020-1-1", "01-Mar-21", "1-Foo-2020", "1501ms", "5 x", "99999999999999999999", "\u0661"],
)
def test_what_is_no_moment_is_none(written: str) -> None:
    assert dates.moment(written, CLOCK) is None


@pytest.mark.parametrize(
    ("written", "octets"),
    [("7", 7), ("2k", 2048), ("2 KiB", 2048), ("1b", 1), ("1T", 1 << 40), ("3mb", 3 << 20)],
)
def test_a_size_has_one_suffix(written: str, octets: int) -> None:
    assert dates.size(written) == octets


@pytest.mark.parametrize("written", ["", "0.5k", "1P", "1bb", "-1", "k", "99999999T"])
def test_what_is_no_size_is_none(written: str) -> None:
    assert dates.size(written) is None


@pytest.mark.parametrize(
    ("written", "ranges"),
    [
        ("1:3,2:5,9", ((1, 5), (9, 9))),
        ("5:2", ((2, 5),)),
        ("3,4", ((3, 4),)),
        ("8:*", ((8, LAST),)),
        ("*", ((LAST, LAST),)),
        ("4294967295", ((LAST - 1, LAST - 1),)),
        ("", ()),
        ("1,", ((1, 1),)),
    ],
)
def test_a_set_is_merged_and_ascends(written: str, ranges: tuple[tuple[int, int], ...]) -> None:
    assert dates.numbers(written) == ranges


@pytest.mark.parametrize("written", ["0", "1:", ",1", "a", "1:2:3", "4294967296", "1 2"])
def test_what_is_no_set_is_none(written: str) -> None:
    assert dates.numbers(written) is None


@given(st.text())
def test_any_text_is_a_moment_or_none(written: str) -> None:
    assert isinstance(dates.moment(written, CLOCK), Moment | None)
    assert isinstance(dates.size(written), int | None)
    assert isinstance(dates.numbers(written), tuple | None)


# Text


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("Hello", "HELLO"),
        ("straße", "STRAßE"),
        ("grü", "GRU\u0308"),
        ("ấ", "Â\u0301"),  # one level of decomposition only
        ("ﬁ", "fi"),  # of compatibility too, and not in title case again
        ("ǆ", "ǅ"),
        ("한", "\u1112\u1161\u11ab"),
        ("мир", "МИР"),
    ],
)
def test_text_is_compared_in_title_case_and_decomposed(written: str, form: str) -> None:
    assert text.normal(written) == form


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"plain", "PLAIN"),
        (b"=?utf-8?Q?gr=C3=BC=C3=9F_x?=", "GRU\u0308ß X"),
        (b"a =?utf-8?b?Yg==?=  =?utf-8?b?Yw==?= d", "A BC D"),
        (b"  =?iso-8859-1?q?=e9?=", "E\u0301"),
        (b"=?x-none?q?ab?= c", "ab C"),  # an unknown charset stays as it is
        (b"=?broken?=", "=?BROKEN?="),
        (b"=?utf-8?b?!!!?=", ""),
        (b"=?rot13?q?ab?=", "ab"),
        (b"\xff\xfe x", "\ufffd X"),
    ],
)
def test_encoded_words_are_decoded(value: bytes, shown: str) -> None:
    assert text.normal_header(value) == shown


@given(st.binary(max_size=60), st.integers(1, 7))
def test_transfer_encodings_decode_the_same_however_they_are_cut(octets: bytes, step: int) -> None:
    cut = [octets[at : at + step] for at in range(0, len(octets), step)]
    assert b"".join(text.base64_pieces(cut)) == text.base64_decoded(octets)
    assert b"".join(text.quoted_printable_pieces(cut)) == text.quoted_printable_decoded(octets)


@pytest.mark.parametrize(
    ("encoded", "decoded"),
    [
        (b"a=3Db=\nc \t\nd", b"a=bc\r\nd"),
        (b"x =  \r\ny\r\n", b"x y\r\n"),
        (b"=zz=4", b"=zz=4"),
    ],
)
def test_quoted_printable_has_crlf_line_ends(encoded: bytes, decoded: bytes) -> None:
    assert text.quoted_printable_decoded(encoded) == decoded


def test_a_key_is_found_across_two_pieces() -> None:
    assert text.holds(iter(["xAB", "C", "Dx"]), "ABCD")
    assert not text.holds(iter(["AB", "xCD"]), "ABCD")


# Headers


def test_fields_are_unfolded_and_lines_without_a_colon_have_no_name() -> None:
    block = b"A: one\r\n two\r\n\tthree\r\nB :x\r\nnothing here\r\nC:\r\n"
    assert list(fields(block)) == [
        (b"A", b": ", b"one two three"),
        (b"B", b" :", b"x"),
        (b"", b"", b"nothing here"),
        (b"C", b":", b""),
    ]


@pytest.mark.parametrize(
    ("value", "at", "ahead"),
    [
        (b"Fri, 10 Jan 2020 12:00:00 +0000", 1578657600, 0),
        (b"Sat, 15 Feb 2020 23:30 -0500", 1581827400, -18000),
        (b"1 Jan 99 1:02:03 EST (x)", 915170523, -18000),
        (b"31 Dec 1969 23:59:00 +0000", 2**32 - 60, 0),  # kept in 32 bits
        (b"Mon, 31 Feb 2020 10:00:00 +0000", 0, 0),
        (b"Monday, 1 Jan 2020 10:00:00", 0, 0),
        (b"", 0, 0),
        (b"(unclosed", 0, 0),
    ],
)
def test_a_sent_date_has_its_own_zone(value: bytes, at: int, ahead: int) -> None:
    assert (sent(value).at, sent(value).ahead) == (at, ahead)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (b"alice@x", b"<alice@x>"),
        (b"Alice L <alice@x>", b'"Alice L" <alice@x>'),
        (b"carol@y (Carol C.)", b'"Carol C." <carol@y>'),
        (b"undisclosed-recipients:;", b"undisclosed-recipients:;"),
        (b"g: a@b, C <c@d>;, x@y", b"g: <a@b>, C <c@d>;, <x@y>"),
        (b"word", b"<word@MISSING_DOMAIN>"),
        (b"two words", b'"two words" <MISSING_MAILBOX@MISSING_DOMAIN>'),
        (b"=?utf-8?q?J=C3=BC?= x <j@x>", b"=?utf-8?q?J=C3=BC?= x <j@x>"),
        (b"", b""),
    ],
)
def test_addresses_are_written_again(value: bytes, written: bytes) -> None:
    assert addresses(value) == written


@given(st.binary(max_size=80))
def test_any_octets_give_addresses_dates_and_types(value: bytes) -> None:
    addresses(value)
    sent(value)
    content_type(value)
    text.normal_header(value)


# MIME


MIXED = (
    b"Content-Type: multipart/mixed; boundary=mix\n\npreamble\n--mix\nContent-Type: text/plain\n\nfirst\n"
    b"--mix\nContent-Type: message/rfc822\n\nSubject: inner\n\nembedded\n--mix--\nepilogue\n"
)


def test_parts_are_cut_at_their_boundaries() -> None:
    found = parts(MIXED)
    assert [(part.media_type, MIXED[part.start : part.end]) for part in found] == [
        ("multipart/mixed", b"preamble"),
        ("text/plain", b"first"),
        ("message/rfc822", b""),
        ("text/plain", b"embedded"),
    ]


@pytest.mark.parametrize(
    ("key", "body", "everywhere"),
    [
        ("FIRST", True, True),
        ("EMBEDDED", True, True),
        ("INNER", False, True),
        ("PREAMBLE", False, False),
        ("EPILOGUE", False, False),
        ("--MIX", False, False),
        ("FIRST\nEMB", False, False),
    ],
)
def test_only_text_is_searched_and_headers_when_asked(key: str, body: bool, everywhere: bool) -> None:
    found = parts(MIXED)
    assert holds(MIXED, found, key, with_headers=False) is body
    assert holds(MIXED, found, key, with_headers=True) is everywhere


def depth(part: mime.Part) -> int:
    return 0 if part.parent is None else 1 + depth(part.parent)


def test_hostile_nesting_ends_at_a_limit_and_in_time() -> None:
    nested = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(3000))
    flat = b"Content-Type: multipart/mixed; boundary=x\n\n" + b"--x\n\n" * 30_000
    assert max(depth(part) for part in parts(nested)) < mime.MAX_NESTED
    assert len(parts(flat)) <= mime.MAX_PARTS
    for octets in (nested, flat):
        assert not holds(octets, parts(octets), "NEEDLE", with_headers=True)


KIND = b"Content-Type: "
LINES = (
    *(b"--b\n", b"--b--\n", b"\n", b"\r\n", b"x\n", b"--"),
    *(KIND + b"multipart/mixed; boundary=b\n", KIND + b"message/rfc822\n", KIND + b"text\n"),
)


@given(st.lists(st.sampled_from(LINES)))
def test_any_lines_have_parts_within_the_message(lines: list[bytes]) -> None:
    octets = b"".join(lines)
    for part in parts(octets):
        assert 0 <= part.start <= part.end <= len(octets)
        assert part.end <= part.stop <= len(octets) or part.children


def test_a_message_in_a_file_has_the_same_parts_as_in_memory(tmp_path: Path) -> None:
    octets = MIXED.replace(b"first", b"first\n" + b"x" * 70 * (PIECE_OCTETS // 60) + b" needle")
    (tmp_path / "m").write_bytes(octets)
    body = FileBody(os.open(tmp_path / "m", os.O_RDONLY), name="m")
    try:
        view = body.view()
        assert [(part.start, part.end) for part in parts(view)] == [(part.start, part.end) for part in parts(octets)]
        assert holds(view, parts(view), "X NEEDLE", with_headers=False)
        assert [view.find(each) for each in (b"needle", b"\n--mix--", b"nowhere")] == [
            octets.find(each) for each in (b"needle", b"\n--mix--", b"nowhere")
        ]
        border = octets[PIECE_OCTETS - 3 : PIECE_OCTETS + 3]
        assert view.find(border, PIECE_OCTETS - 3) == PIECE_OCTETS - 3
        assert view[PIECE_OCTETS - 3 : PIECE_OCTETS + 3] == border
    finally:
        body.close()


# Threads


@pytest.mark.parametrize(
    ("subject", "base"),
    [
        ("RE: HELLO", "HELLO"),
        ("[LIST] RE: FWD: HELLO (FWD)", "HELLO"),
        ("RE[2]: X", "X"),
        ("[FWD: X]", "X"),
        ("[ONLY]", "[ONLY]"),
        ("RE:", ""),
    ],
)
def test_a_base_subject_has_no_reply_marks(subject: str, base: str) -> None:
    assert base_subject(subject) == base


def test_threads_hang_together_by_references_and_for_one_algorithm_by_subject() -> None:
    written = {
        0: b"Message-ID: <a@x>\nSubject: one\n",
        1: b"Message-ID: <b@x>\nIn-Reply-To: <a@x>\nSubject: two\n",
        2: b"Message-ID: <c@x>\nReferences: <a@x> <b@x>\n",
        3: b"Message-ID: <d@x>\nReferences: <gone@x>\nSubject: Re: one\n",
        4: b"Message-ID: <e@x>\nReferences: <gone@x>\n",
        5: b"Subject: three\n",
        6: b"Message-ID: <a@x>\nSubject: other\n",
        7: b"Message-ID: <l@x>\nReferences: <m@x>\n",
        8: b"Message-ID: <m@x>\nReferences: <l@x>\n",
    }
    messages = {place: links(header) for place, header in written.items()}
    assert whole_threads(messages, [2], "REFS") == [0, 1, 2]
    assert whole_threads(messages, [4], "REFS") == [3, 4]
    assert whole_threads(messages, [2], "REFERENCES") == [0, 1, 2, 3, 4]
    assert whole_threads(messages, [5], "REFERENCES") == [5]
    assert whole_threads(messages, [7], "REFS") == [7, 8]
    assert whole_threads(messages, [0], "ORDEREDSUBJECT") == [0, 3]


def test_the_header_of_a_message_ends_at_the_first_empty_line() -> None:
    assert headers.header_of(b"A: b\r\n\r\nbody") == b"A: b\r\n"
    assert headers.header_of(b"\nbody") == b""
    assert headers.header_of(b"A: b") == b"A: b"
