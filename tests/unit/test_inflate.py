"""Compressed octets in any pieces; damage and bombs are said, never passed on."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.stores import inflate
from aimport.stores.inflate import Damaged, Format, TooMuch, format_of, inflated

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = b"".join(b"line %d of a mail\n" % number for number in range(5000))


def dovecot_lz4(data: bytes) -> bytes:
    """Blocks that hold literals only, as a writer may make them of what does not compress."""
    out = [b"Dovecot-LZ4\x0d\x2a\x9b\xc5", struct.pack(">I", 65536)]
    for at in range(0, len(data), 60000):
        part = data[at : at + 60000]
        rest = len(part) - 15
        block = b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + part
        out.append(struct.pack(">I", len(block)) + block)
    return b"".join(out)


MAKERS: dict[Format, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
    "dovecot-lz4": dovecot_lz4,
}
HERE = [form for form in MAKERS if not inflate.missing(form)]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("form", HERE)
@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_every_format_comes_out_as_it_went_in(form: Format, size: int) -> None:
    packed = MAKERS[form](DATA)
    assert format_of(packed[: inflate.HEAD]) == form
    found = list(inflated(pieces(packed, size), form))
    assert b"".join(found) == DATA
    assert max(map(len, found)) <= inflate.PIECE


@pytest.mark.parametrize("form", [form for form in HERE if form != "dovecot-lz4"])
def test_members_that_follow_one_another_are_one_content(form: Format) -> None:
    packed = MAKERS[form](b"one ") + MAKERS[form](b"two")
    for size in (1, 1 << 20):
        assert b"".join(inflated(pieces(packed, size), form)) == b"one two"
        assert b"".join(inflated(pieces(packed + b"\0" * 600, size), form)) == b"one two"


@pytest.mark.parametrize("form", HERE)
def test_an_early_end_and_damage_are_said_after_what_is_good(form: Format) -> None:
    packed = MAKERS[form](DATA)
    damaged = [packed[: len(packed) // 2], packed[:-1]]
    if form != "dovecot-lz4":  # which has no checksum, nor anything else to damage among letters
        damaged.append(packed[:30] + b"\xff" * 40 + packed[70:])
    for broken in damaged:
        with pytest.raises(Damaged):
            list(inflated(pieces(broken, 4096), form))


@pytest.mark.parametrize("form", [form for form in HERE if form != "dovecot-lz4"])
def test_a_bomb_stops_before_it_bursts(form: Format) -> None:
    packed = MAKERS[form](b"\0" * (8 << 20))
    out: list[int] = []
    with pytest.raises(TooMuch, match="more than 50 times"):
        out.extend(map(len, inflated(pieces(packed, 100), form, ratio=50, free=1 << 20)))
    assert sum(out) <= (1 << 20) + inflate.PIECE
    assert sum(map(len, inflated([packed], form, ratio=50, free=8 << 20))) == 8 << 20


@pytest.mark.parametrize("head", [b"", b"\x1f", b"BZh", b"BZh0", b"From a", b"Dovecot-LZ4", b"\xfd7zXZ"])
def test_other_beginnings_are_no_format(head: bytes) -> None:
    assert format_of(head) is None


@pytest.mark.parametrize("form", HERE)
@given(st.binary(max_size=200))
def test_any_octets_come_to_an_end(form: Format, data: bytes) -> None:
    try:
        list(inflated([data], form))
    except Damaged:
        pass


@pytest.mark.parametrize(
    "data",
    [b"\0" * 4, struct.pack(">I", 1 << 30), struct.pack(">II", 65536, 1 << 30), struct.pack(">II", 65536, 0)],
)
def test_an_lz4_header_that_announces_too_much_is_damage(data: bytes) -> None:
    if inflate.missing("dovecot-lz4"):
        pytest.skip("lz4 is not installed")
    with pytest.raises(Damaged):
        list(inflated([b"Dovecot-LZ4\x0d\x2a\x9b\xc5" + data], "dovecot-lz4"))
