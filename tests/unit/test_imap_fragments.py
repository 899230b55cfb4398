"""Cutting the stream: where responses end does not depend on how the octets came."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import ProtocolError
from aimport.imap.fragments import FragmentReader, Fragments, Sink
from tests.large import Kept

STREAM = (
    b"* OK [CAPABILITY IMAP4rev1] hi {3}\r\n"
    b"* 1 FETCH (UID 7 BODY[] {5}\r\nhello FLAGS (\\Seen))\r\n"
    b"* 2 FETCH (BINARY[] ~{4}\r\n\0\r\n\xff BODY[HEADER] {0}\r\n)\r\n"
    b"+ go on {1}\r\n"
    b"\r\n"
    b"a1 OK done {9}\r\n"
)
CUT: list[Fragments] = [
    (b"* OK [CAPABILITY IMAP4rev1] hi {3}",),
    (b"* 1 FETCH (UID 7 BODY[] ", b"hello", b" FLAGS (\\Seen))"),
    (b"* 2 FETCH (BINARY[] ", b"\0\r\n\xff", b" BODY[HEADER] ", b"", b")"),
    (b"+ go on {1}",),
    (b"",),
    (b"a1 OK done {9}",),
]


def cut(pieces: list[bytes], *, spill_above: int | None = None) -> list[Fragments]:
    reader = FragmentReader() if spill_above is None else FragmentReader(spill=Kept, spill_above=spill_above)
    found = [whole for piece in pieces for whole in reader.feed(piece)]
    assert reader.empty
    return found


def as_held(responses: list[Fragments]) -> list[Fragments]:
    """Sinks as the literals that they took; each has taken what was announced."""
    for response in responses:
        assert all(isinstance(text, bytes) for text in response[::2])
    return [tuple(each.whole() if isinstance(each, Kept) else each for each in response) for response in responses]


def test_lines_and_literals_are_cut_and_human_text_announces_no_literal() -> None:
    assert cut([STREAM]) == CUT


def test_every_single_cut_gives_the_same() -> None:
    for at in range(len(STREAM)):
        assert cut([STREAM[:at], STREAM[at:]]) == CUT
    assert cut([STREAM[at : at + 1] for at in range(len(STREAM))]) == CUT


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_chunks_give_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert cut([STREAM[low:high] for low, high in pairwise(edges)]) == CUT


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.integers(0, 5))
def test_spilt_literals_are_those_that_would_be_held(cuts: list[int], above: int) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    found = cut([STREAM[low:high] for low, high in pairwise(edges)], spill_above=above)
    assert as_held(found) == CUT
    sizes = [each.size for response in found for each in response if isinstance(each, Kept)]
    assert sizes == [size for size in (5, 4) if size > above]


def test_a_literal_goes_to_its_sink_as_it_comes_and_nothing_is_held() -> None:
    sinks: list[Kept] = []

    def spill(size: int) -> Sink:
        sinks.append(Kept(size))
        return sinks[-1]

    reader = FragmentReader(spill=spill, spill_above=10)
    piece = b"x" * 100
    assert reader.feed(b"* 1 FETCH (BODY[] {300}\r\n") == []
    assert [sink.size for sink in sinks] == [300]
    for _ in range(3):
        assert reader.feed(piece) == []
    [sink] = sinks
    assert sink.pieces == [piece] * 3
    assert all(each is piece for each in sink.pieces), "not even copied"
    assert not reader.empty
    assert reader.feed(b" UID {10}\r\n0123456789)\r\n") == [
        (b"* 1 FETCH (BODY[] ", sink, b" UID ", b"0123456789", b")")
    ]
    assert reader.empty


def test_a_spilt_literal_under_way_is_not_empty_between_its_octets() -> None:
    reader = FragmentReader(spill=Kept)
    reader.feed(b"* 1 FETCH (BODY[] {3}\r\n")
    assert not reader.empty
    reader.feed(b"abc")
    assert not reader.empty


def test_nothing_is_taken_for_a_literal_beyond_the_limit() -> None:
    asked: list[int] = []

    def spill(size: int) -> Sink:
        asked.append(size)
        return Kept(size)

    reader = FragmentReader(spill=spill, max_literal=10)
    reader.feed(b"* X {6}\r\n123456")
    with pytest.raises(ProtocolError, match="limit of 10"):
        reader.feed(b" {5}\r\n")
    assert asked == [6]


def test_limit_and_spill_can_be_set_on_a_reader_at_work() -> None:
    reader = FragmentReader()
    reader.feed(b"* OK hi\r\n* 1 FETCH (BODY[] {3}\r\na")
    reader.spill, reader.spill_above, reader.max_literal = Kept, 2, 7
    [held, spilt] = reader.feed(b"bc)\r\n* 2 FETCH (BODY[] {3}\r\ndef)\r\n")
    assert held == (b"* 1 FETCH (BODY[] ", b"abc", b")")
    assert isinstance(spilt[1], Kept)
    with pytest.raises(ProtocolError, match="limit of 7"):
        reader.feed(b"* 3 FETCH (BODY[] {8}\r\n")


@given(
    st.lists(st.one_of(st.sampled_from([b"* ", b"{3}", b"\r\n", b"\r", b"\n", b"{", b"}", b"~{1}\r\n"]), st.binary())),
    st.integers(1, 7),
    st.integers(0, 4),
)
def test_any_octets_are_cut_or_refused_alike_in_any_chunks_spilt_or_not(
    parts: list[bytes], size: int, above: int
) -> None:
    data = b"".join(parts)

    def outcome(pieces: list[bytes], spill: Callable[[int], Sink] | None) -> list[Fragments] | str:
        reader = FragmentReader(max_line=200, max_literal=100, spill=spill, spill_above=above)
        found: list[Fragments] = []
        try:
            for piece in pieces:
                found += reader.feed(piece)
        except ProtocolError as error:
            return error.text
        return as_held(found)

    expected = outcome([data], None)
    for spill in (None, Kept):
        assert outcome([data[at : at + size] for at in range(0, len(data), size)], spill) == expected
    assert outcome([data], Kept) == expected


@pytest.mark.parametrize(
    "line",
    [
        b"* 1 FETCH (BODY[] {4294967296}",
        b"* 1 FETCH (BODY[] {%d}" % 10**30,
        b"* 1 FETCH (BODY[] {" + b"9" * 5000 + b"}",
        b"* 1 FETCH (BODY[] {-5}",
        b"* 1 FETCH (BODY[] {}",
        b"* 1 FETCH (BODY[] {5+}",
        b"* 1 FETCH (BODY[] {0x5}",
        "* 1 FETCH (BODY[] {٣}".encode(),
    ],
)
def test_a_bad_literal_size_is_refused_before_memory_is_taken(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="literal"):
        FragmentReader().feed(line + b"\r\n")


def test_literals_of_one_response_are_limited_together() -> None:
    reader = FragmentReader(max_literal=10)
    reader.feed(b"* X {6}\r\n123456 {4}\r\n1234")
    with pytest.raises(ProtocolError, match="limit of 10"):
        reader.feed(b" {1}\r\n")
    assert FragmentReader(max_literal=10).feed(b"* X {6}\r\n123456\r\n* X {6}\r\n123456\r\n")


@pytest.mark.parametrize("piece", [b"x" * 999, b"x", b"{0}\r\n"])
def test_a_line_without_end_is_refused_at_the_limit(piece: bytes) -> None:
    reader = FragmentReader(max_line=1000)
    reader.feed(b"* X ")

    def flood() -> None:
        for _ in range(1001):
            reader.feed(piece)

    with pytest.raises(ProtocolError, match="1000 octets"):
        flood()


def test_a_line_ending_in_lf_alone_is_refused() -> None:
    with pytest.raises(ProtocolError, match="CR LF"):
        FragmentReader().feed(b"* OK hi\n")


@pytest.mark.parametrize(
    "data", [b"* 1 FETCH (BODY[] {8000000}\r\n" + b"x" * 8_000_000 + b")\r\n", b"* SEARCH" + b" 1234567" * 125_000]
)
def test_time_is_linear_in_small_reads(data: bytes) -> None:
    """A reader that copies its tail for every read takes minutes for this."""
    reader = FragmentReader()
    began = time.process_time()
    for at in range(0, len(data), 1460):
        reader.feed(data[at : at + 1460])
    assert time.process_time() - began < 2


@pytest.mark.parametrize("word", [b"SEARCH", b"search", b"ESEARCH", b"VANISHED"])
@pytest.mark.parametrize("chunk", [1 << 20, 1460])
def test_a_list_of_a_million_numbers_is_one_line_and_has_its_own_limit(word: bytes, chunk: int) -> None:
    line = b"* " + word + b" " + b",".join(b"%d" % number for number in range(300_000)) + b"\r\n"
    assert len(line) > 1 << 20
    reader = FragmentReader()
    whole = [each for at in range(0, len(line), chunk) for each in reader.feed(line[at : at + chunk])]
    assert whole == [(line[:-2],)]
    too_long = b"* " + word + b" " + b"1" * (33 << 20)
    with pytest.raises(ProtocolError, match="a line of more than"):
        [reader.feed(too_long[at : at + chunk]) for at in range(0, len(too_long), chunk)]


def test_no_other_line_is_that_long() -> None:
    with pytest.raises(ProtocolError, match="a line of more than"):
        FragmentReader().feed(b"* SEARCHED " + b"1" * (2 << 20))
    with pytest.raises(ProtocolError, match="a line of more than"):
        FragmentReader().feed(b"* LIST () NIL {1}\r\nx* SEARCH " + b"1" * (2 << 20))
