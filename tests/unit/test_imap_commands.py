"""What goes out is what was meant: encode, cut and parse give the same back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.imap.commands import (
    Burst,
    LargeLiteral,
    Literal,
    LiteralPolicy,
    Word,
    append_words,
    astring,
    buffers,
    date_time,
    encode,
    octet_string,
    uid_sets,
)
from aimport.imap.fragments import FragmentReader
from aimport.imap.responses import Listed, parse, uid_set
from aimport.imap.responses import date_time as parse_date_time

PLUS, MINUS, SYNC = LiteralPolicy.PLUS, LiteralPolicy.MINUS, LiteralPolicy.SYNC
EPOCH = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)


def joined(bursts: list[Burst]) -> list[bytes]:
    return [b"".join(buffers(burst)) for burst in bursts]


def test_strings_are_quoted_when_ascii_and_literals_otherwise() -> None:
    assert astring('a "b" \\c') == b'"a \\"b\\" \\\\c"'
    assert astring("") == b'""'
    assert astring("Entwürfe") == Literal("Entwürfe".encode())
    assert octet_string(b"caf\xe9") == Literal(b"caf\xe9")
    assert octet_string(b"cafe") == b'"cafe"'


@pytest.mark.parametrize("text", ["a\r\nb LOGOUT", "a\nb", "a\rb", "a\0b", "ü\n"])
def test_nothing_that_could_end_a_command_is_encoded(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        astring(text)
    with pytest.raises(ValueError, match="cannot be sent"):
        octet_string(text.encode())


@given(st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"])))
def test_a_string_sent_and_parsed_is_the_same(text: str) -> None:
    [octets] = joined(encode("*", [b"LIST () NIL", astring(text)], PLUS))
    [fragments] = FragmentReader().feed(octets.replace(b"+}\r\n", b"}\r\n", 1))
    listed = parse(fragments)
    assert isinstance(listed, Listed)
    assert listed.name == text.encode()


def test_literals_wait_as_the_policy_says() -> None:
    words: list[Word] = [b"APPEND", b'"x"', b"()", Literal(b"hello"), b"()", Literal(b"y" * 4097)]
    big = b"y" * 4097
    assert joined(encode("a", words, PLUS)) == [b'a APPEND "x" () {5+}\r\nhello () {4097+}\r\n' + big + b"\r\n"]
    assert joined(encode("a", words, MINUS)) == [b'a APPEND "x" () {5+}\r\nhello () {4097}\r\n', big + b"\r\n"]
    assert joined(encode("a", words, SYNC)) == [b'a APPEND "x" () {5}\r\n', b"hello () {4097}\r\n", big + b"\r\n"]
    assert joined(encode("a", [b"NOOP"], SYNC)) == [b"a NOOP\r\n"]
    assert joined(encode("a", [b"X", Literal(b"y" * 4096)], MINUS)) == [b"a X {4096+}\r\n" + b"y" * 4096 + b"\r\n"]


def test_a_large_literal_waits_as_any_other_and_is_never_read_here() -> None:
    def pieces() -> Iterator[bytes]:
        raise AssertionError("read")

    large = LargeLiteral(10**10, pieces)
    words = append_words((), EPOCH, large)
    assert words[2] is large
    head = b'a APPEND () "03-Feb-2001 04:05:06 +0000"'
    assert encode("a", [b"APPEND", *words], PLUS) == [[head + b" {10000000000+}\r\n", large, b"\r\n"]]
    for policy in (MINUS, SYNC):
        assert encode("a", [b"APPEND", *words], policy) == [[head + b" {10000000000}\r\n"], [large, b"\r\n"]]
    assert encode("a", [b"X", LargeLiteral(4096, pieces)], MINUS)[0][0] == b"a X {4096+}\r\n"
    with pytest.raises(TypeError, match="piece by piece"):
        buffers([b"x", large])


def test_the_policy_follows_the_capabilities() -> None:
    assert LiteralPolicy.of(frozenset({"LITERAL+", "LITERAL-"})) is PLUS
    assert LiteralPolicy.of(frozenset({"LITERAL-"})) is MINUS
    assert LiteralPolicy.of(frozenset({"IMAP4REV2"})) is MINUS  # RFC 9051 appendix E
    assert LiteralPolicy.of(frozenset({"IMAP4REV1"})) is SYNC


def test_append_always_has_a_flag_list_and_never_copies_the_body() -> None:
    body = b"x" * 1000
    words = append_words((), EPOCH, body)
    assert words == (b"()", b'"03-Feb-2001 04:05:06 +0000"', Literal(body))
    [burst] = encode("a", [b"APPEND", b'"x"', *words], PLUS)
    assert any(buffer is body for buffer in burst)
    assert append_words(("\\Seen", "$Junk"), EPOCH, body)[0] == b"(\\Seen $Junk)"


@given(st.sets(st.integers(1, 4_294_967_295)), st.integers(10, 60))
def test_sets_hold_every_uid_once_in_lines_of_bounded_length(uids: set[int], limit: int) -> None:
    sets = uid_sets(sorted(uids), octets=limit)
    assert [uid for one in sets for uid in uid_set(one.decode())] == sorted(uids)
    assert all(len(one) <= max(limit, 21) for one in sets)


def test_neighbours_become_ranges() -> None:
    assert uid_sets([1, 2, 3, 5, 7, 8]) == [b"1:3,5,7:8"]
    assert uid_sets([]) == []
    assert uid_sets(range(1, 1_000_000)) == [b"1:999999"]


zones = st.timedeltas(min_value=timedelta(hours=-23, minutes=-59), max_value=timedelta(hours=23, minutes=59)).map(
    lambda offset: timezone(offset)
)
minutes = st.integers(-1439, 1439).map(lambda offset: timezone(timedelta(minutes=offset)))


@given(st.datetimes(timezones=st.one_of(minutes, st.just(UTC))))
def test_a_date_sent_and_parsed_is_the_same_second(moment: datetime) -> None:
    assert parse_date_time(date_time(moment).decode().strip('"')) == moment.replace(microsecond=0)


@given(st.datetimes(), zones)
def test_any_date_and_zone_can_be_sent(moment: datetime, zone: tzinfo) -> None:
    parsed = parse_date_time(date_time(moment.replace(tzinfo=zone)).decode().strip('"'))
    assert parsed is not None
    if datetime(2, 1, 1) < moment < datetime(9998, 12, 31):  # at the edges UTC may have no such year
        assert abs(parsed - moment.replace(tzinfo=zone)) <= timedelta(seconds=1)
