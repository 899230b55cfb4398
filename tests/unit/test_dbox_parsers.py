"""Any octets give values or `Damaged`: index, log, map, message files, list of folders, cache, references, compression.

Beside octets of any kind these are whole files with some octets changed, cut out or doubled, which get further.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimport.errors import MessageUnreadable
from aimport.model import PIECE_OCTETS, STREAM_OCTETS
from aimport.octets import whole
from aimport.stores.dbox import bodies
from aimport.stores.dbox.bodies import collected, decompressed, parse_references, with_attachments
from aimport.stores.dbox.index import Damaged, Table, header_size, parse_header
from aimport.stores.dbox.lists import Cache, nodes
from aimport.stores.dbox.log import assemble
from aimport.stores.dbox.messages import Found, guid_128, scan
from tests import dbox_made as made
from tests.linear import assert_linear

EXAMPLES: Final = 3000
"""Of each format: about 20 s in all, and 60 on a slow machine."""


class Octets:
    """A file in memory (`messages.Octets`)."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def at(self, place: int, count: int) -> bytes:
        return self._data[place : place + count]


def table_of(data: bytes) -> Table:
    header = parse_header(data[: header_size(data)])
    table = Table(header)
    table.add_records(data[header.size : header.size + header.messages * header.record_size])
    return table


KEYWORDS: Final = made.keyword_extension(["Junk", "$Forwarded"], bytes([3, 0, 0, 0]) * 4, 4)
INDEX: Final = made.index(
    [1, 2, 5, 9],
    bytes([8, 0, 31, 64]),
    [
        made.Extension(name="mdbox-hdr", header=bytes(24)),
        made.Extension(name="mdbox", size=8, records=bytes(range(32))),
        made.Extension(name="guid", size=16, records=bytes(range(64))),
        KEYWORDS,
    ],
    next_uid=12,
)
LOG: Final = made.log(
    made.appended([12, 13, 20], [0, 8, 1])
    + made.record(0x80000, struct.pack("<I", 12))
    + made.intro("mdbox", size=8)
    + made.extension_data({12: bytes(8), 5: b"abcdefgh"})
    + made.intro("ref", size=2)
    + made.record(0x1000, struct.pack("<Ii", 12, 3))
    + made.record(0x4, struct.pack("<IIBB2x", 2, 13, 2, 8))
    + made.record(0x400, struct.pack("<BBH", 0, 0, 3) + b"new\0" + struct.pack("<II", 1, 20))
    + made.record(0x800, struct.pack("<II", 9, 9))
    + made.record(0xCD91, struct.pack("<II", 13, 13))
    + made.record(0xED90, struct.pack("<I", 2) + bytes(16), external=False)
    + made.record(0x20, struct.pack("<HHI", 28, 4, 100))
    + made.record(0x80, struct.pack("<IB3x", 7, 0))
)
LIST_HEADER: Final = b"\0" + struct.pack("<I", 1) + b"Arch\0" + struct.pack("<I", 2) + b"2023\0" + bytes(4)
LIST: Final = made.index(
    [1, 2],
    bytes([0, 0]),
    [
        made.Extension(
            name="list",
            header=LIST_HEADER,
            size=28,
            records=struct.pack("<II16sI", 1, 0, made.GUID, 7) + struct.pack("<II16sI", 2, 1, made.GUID[::-1], 8),
        )
    ],
)
MESSAGES: Final = (
    made.FILE + made.message(b"one\n", R="5a", G="0" * 32) + made.message(b"two\n", R="5b", Z="4", B="x/y")
)


@st.composite
def damaged(draw: st.DrawFn, *originals: bytes) -> bytes:
    """Octets of any kind, or one of `originals` with up to eight changes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.integers(0, 4)):
            case 0 if data:
                data[at] = draw(st.integers(0, 255))
            case 1:
                data[at : at + 4] = struct.pack(
                    "<I", draw(st.sampled_from([0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
                )
            case 2:
                del data[at : at + draw(st.integers(1, 40))]
            case 3:
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case _:
                data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


def demand_sound(table: Table) -> None:
    """Every column is as long as the others, and UIDs ascend."""
    count = len(table)
    assert len(table.flags) == len(table.gone) == count
    assert len(table.keywords.cells) == count * table.keywords.width
    assert all(len(each.cells) == count * each.width for each in table.extensions)
    uids = list(table.uids)
    assert uids == sorted(set(uids))
    for row in range(count):
        table.flags_of(row)


def test_an_index_with_its_log_is_what_was_written() -> None:
    table = assemble(table_of(INDEX), LOG, None)
    assert table.damage == []
    assert list(table.uids) == [1, 5, 9, 12, 20]
    assert [sorted(table.flags_of(row)) for row in range(5)] == [
        ["$Forwarded", "Junk", "\\Seen", "new"],
        ["$Forwarded", "Junk", "\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "new"],
        ["\\Flagged"],
        ["\\Flagged", "new"],
        ["\\Answered", "new"],
    ]
    assert table.next_uid == 100
    assert table.uidvalidity == made.VALIDITY
    mdbox, guid = table.extension("mdbox"), table.extension("guid")
    assert mdbox is not None and guid is not None
    assert mdbox.cell(1) == b"abcdefgh"
    assert guid.cell(0) == bytes(range(16))
    assert guid.cell(4) == bytes(16)


def test_keywords_that_nobody_has_need_no_room_in_the_records() -> None:
    data = made.index([1, 2], bytes(2), [made.keyword_extension(["Junk"], b"", 0)])
    table = table_of(data)
    demand_sound(table)
    done = assemble(
        table, made.log(made.record(0x400, struct.pack("<BBH", 0, 0, 4) + b"junk" + struct.pack("<II", 2, 2))), None
    )
    assert [done.flags_of(row) for row in range(2)] == [frozenset(), {"Junk"}]


@settings(max_examples=EXAMPLES)
@given(damaged(INDEX, LIST))
def test_an_index_of_any_octets_is_read_or_said_to_be_damaged(data: bytes) -> None:
    try:
        table = table_of(data)
    except Damaged:
        return
    demand_sound(table)


@settings(max_examples=EXAMPLES)
@given(damaged(LOG), st.one_of(st.none(), damaged(LOG)), st.sampled_from([None, INDEX]))
def test_a_log_of_any_octets_is_replayed_as_far_as_it_is_whole(
    log: bytes, log2: bytes | None, index: bytes | None
) -> None:
    table = assemble(table_of(index) if index is not None else None, log, log2)
    demand_sound(table)


@settings(max_examples=EXAMPLES)
@given(damaged(MESSAGES))
def test_a_file_of_any_octets_yields_messages_that_lie_in_it(data: bytes) -> None:
    last = 0
    for each in scan(Octets(data)):
        if isinstance(each, Found):
            assert last <= each.at < each.body <= each.body + each.size <= each.end <= len(data)
            last = each.end
            _ = each.received, each.plain_size, each.guid, each.uidl, each.folder, guid_128(each.guid)


@settings(max_examples=EXAMPLES)
@given(damaged(LIST))
def test_a_list_of_folders_of_any_octets_names_them_or_is_damaged(data: bytes) -> None:
    try:
        for node in nodes(table_of(data)):
            assert node.levels
    except Damaged:
        pass


CACHE_NAMES: Final = b"date.received\0date.save\0"


def _cache() -> bytes:
    header = bytearray(32)
    header[:4] = bytes([1, 4, 1, 0])
    struct.pack_into("<II", header, 4, made.INDEXID, 1)
    fields = struct.pack("<III", 0, 12 + 2 * 10 + len(CACHE_NAMES), 2)
    fields += struct.pack("<IIII", 0, 0, 4, 4) + bytes(2) + bytes([2, 2]) + CACHE_NAMES
    header[28:32] = bytes(0x80 | (8 >> shift & 0x7F) for shift in (21, 14, 7, 0))
    at = 32 + len(fields)
    row = struct.pack("<II", 0, 24) + struct.pack("<IIII", 0, 1000, 1, 2000)
    return bytes(header) + fields + b"\0" * (-at % 4) + row


CACHE: Final = _cache()


def test_a_cache_knows_when_a_message_was_saved() -> None:
    assert Cache(CACHE, 1).saved(len(CACHE) - 24) == 2000
    assert Cache(CACHE, 2).saved(len(CACHE) - 24) is None  # of another life of the index


@settings(max_examples=EXAMPLES)
@given(damaged(CACHE), st.integers(0, 400))
def test_a_cache_of_any_octets_never_fails(data: bytes, offset: int) -> None:
    assert isinstance(Cache(data, 1).saved(offset), int | None)


@settings(max_examples=EXAMPLES)
@given(damaged(b"259 8105 B76 65/f1/abc 8448 4600 - d6/e7/x", b"0 4 B4C a"), st.binary(max_size=400))
def test_references_of_any_octets_are_followed_within_bounds_or_damaged(value: bytes, body: bytes) -> None:
    asked: list[str] = []

    def opened(path: str) -> int:
        asked.append(path)
        raise FileNotFoundError

    try:
        whole_body = b"".join(with_attachments(iter([body]), parse_references(value), opened))
    except (Damaged, FileNotFoundError):
        pass
    else:
        assert whole_body == body
    assert all(level not in ("", ".", "..") for path in asked for level in path.split("/"))


def _zstd(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return bytes(zstd.compress(data))


def _lz4(data: bytes) -> bytes:
    block = pytest.importorskip("lz4.block")
    out = b"Dovecot-LZ4\x0d\x2a\x9b\xc5" + struct.pack(">I", 65536)
    for at in range(0, len(data), 65536):
        part = block.compress(data[at : at + 65536], store_size=False)
        out += struct.pack(">I", len(part)) + part
    return out


COMPRESSORS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": _zstd,
    "lz4": _lz4,
}


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("size", [0, 1, 5000, STREAM_OCTETS + 70_000])
def test_what_was_compressed_comes_back_in_memory_or_from_a_file(name: str, size: int) -> None:
    plain = (b"Subject: x\n\n" + bytes(range(256)) * (size // 256 + 1))[:size]
    stored = COMPRESSORS[name](plain)
    for piece in (7, PIECE_OCTETS) if size < 10_000 else (PIECE_OCTETS,):
        body = collected(decompressed(cut(stored, piece)), size, "x")
        assert isinstance(body, bytes) == (size <= STREAM_OCTETS)
        assert whole(body) == plain
        if not isinstance(body, bytes):
            body.close()


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_octets_that_are_cut_short_are_damaged(name: str) -> None:
    stored = COMPRESSORS[name](b"Subject: x\n\nbody\n" * 50)
    for size in range(20, len(stored)):
        with pytest.raises(Damaged):
            collected(decompressed(iter([stored[:size]])), 50 * 17, "x")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_more_octets_than_promised_end_at_the_promise(name: str) -> None:
    stored = COMPRESSORS[name](bytes(1 << 20))
    with pytest.raises(Damaged, match="more than 100 octets"):
        collected(decompressed(iter([stored])), 100, "x")


@pytest.mark.parametrize("name", ["xz", "zstd", "bzip2"])
def test_a_bomb_ends_at_its_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "FREE_OCTETS", 1 << 20)
    stored = COMPRESSORS[name](bytes(32 << 20))
    pieces: list[int] = []
    with pytest.raises(Damaged, match="times as many"):
        pieces.extend(map(len, decompressed(iter([stored]))))
    assert sum(pieces) <= (1 << 20) + bodies.MAX_RATIO * len(stored) + PIECE_OCTETS


@settings(max_examples=EXAMPLES // 2)
@given(damaged(*(COMPRESSORS[name](b"Subject: x\n\nbody\n" * 9) for name in ("gzip", "bzip2", "xz", "zstd"))))
def test_compressed_octets_of_any_kind_end_or_are_damaged(data: bytes) -> None:
    try:
        collected(decompressed(iter([data])), None, "x")
    except (Damaged, MessageUnreadable):
        pass


def test_a_message_of_mail_crypt_is_said_to_be_encrypted() -> None:
    with pytest.raises(MessageUnreadable, match="encrypted"):
        list(decompressed(iter([b"CRYPTED\x03\x07" + bytes(100)])))


def test_lz4_without_its_package_names_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    with pytest.raises(MessageUnreadable, match=r"aimport\[lz4\]"):
        list(decompressed(iter([b"Dovecot-LZ4\x0d\x2a\x9b\xc5" + bytes(8)])))


def test_an_index_costs_by_its_messages() -> None:
    def work(messages: int) -> None:
        table_of(made.index(range(1, messages + 1), bytes(messages), [made.Extension(name="guid", size=16)]))

    assert_linear(work, 20_000)


def test_flags_of_all_messages_are_changed_at_once() -> None:
    count = 100_000
    table = table_of(made.index(range(1, count + 1), bytes(count)))
    log = made.log(
        made.record(0x4, struct.pack("<IIBB2x", 1, count, 8, 0))
        + made.record(0x400, struct.pack("<BBH", 0, 0, 4) + b"Work" + struct.pack("<II", 1, count))
        + made.record(0xCD91, struct.pack("<II", 2, count - 1))
    )
    done = assemble(table, log, None)
    assert list(done.uids) == [1, count]
    assert done.flags_of(1) == {"\\Seen", "Work"}
