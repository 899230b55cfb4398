"""`dovecot.index`: what messages there are, their flags, keywords and extension data. Pure.

    octets of dovecot.index ─▶ Header ─▶ Table ◀─ `log.replay` ── octets of .log.2, .log

The same format holds a folder, the map of mdbox and the list of folders. Columns, not records: a million
messages are a few arrays, filled by strided copies. Anything may stand in the octets: what is not right
raises `Damaged` or is noted in `Table.damage`. Nothing recurses and every size is held against a limit.
Format: Dovecot 2.3 `mail-index.h`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from aimport.flags import SYSTEM_FLAGS

MAX_HEADER: Final = 64 << 20
"""Octets of all headers of an index; names of folders and keywords are the most of them."""
MAX_EXTENSION_HEADER: Final = 16 << 20
MAX_CELLS: Final = 1 << 30
"""Octets of all columns: 16 million messages of mdbox with 64 keywords."""
MAX_KEYWORDS: Final = 16_384
MAX_EXTENSIONS: Final = 1024
KEPT: Final = {"mdbox": 8, "guid": 16, "cache": 4, "map": 12, "ref": 2, "list": 28}
"""Extensions whose record data is kept, with their width in octets."""
KEYWORDS: Final = "keywords"
BITS: Final = {"\\Answered": 1, "\\Flagged": 2, "\\Deleted": 4, "\\Seen": 8, "\\Draft": 16}
assert BITS.keys() == SYSTEM_FLAGS

_BASE = struct.Struct("<BBHIIB3xIIIII")
_EXTENSION = struct.Struct("<IIHHHH")
_PAIR = struct.Struct("<II")
_BASE_SIZE: Final = 120
_NEW: Final = 0xFFFFFFFF


class Damaged(ValueError):
    """Octets that are not what they should be; says what, and where."""


class ExtensionHeader(NamedTuple):
    """One extension as an index file introduces it."""

    name: str
    reset_id: int
    record_offset: int
    record_size: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What stands before the records of an index file."""

    size: int
    """Octets before the first record."""
    record_size: int
    indexid: int
    flags: int
    messages: int
    log_seq: int
    log_tail: int
    log_head: int
    base: bytes
    extensions: tuple[ExtensionHeader, ...]


def header_size(data: bytes) -> int:
    """Octets before the first record, from the first 120 of the file.

    Raises:
        Damaged
    """
    if len(data) < _BASE_SIZE:
        raise Damaged(f"it ends after {len(data)} octets")
    major, _, base_size, size, record_size, compat, *_ = _BASE.unpack_from(data)
    if major != 7:
        raise Damaged(f"version {major} is not 7")
    if compat & 1 == 0:
        raise Damaged("it was written by a big-endian machine")
    if not _BASE_SIZE <= base_size <= size <= MAX_HEADER:
        raise Damaged("sizes of headers that cannot be")
    if record_size < 5:
        raise Damaged(f"records of {record_size} octets")
    return int(size)


def parse_header(data: bytes) -> Header:
    """The header of an index file; `data` holds `header_size` octets at least.

    Raises:
        Damaged
    """
    size = header_size(data)
    if len(data) < size:
        raise Damaged(f"its header ends after {len(data)} of {size} octets")
    _, _, base_size, _, record_size, _, indexid, flags, _, _, messages = _BASE.unpack_from(data)
    log_seq, log_tail, log_head = struct.unpack_from("<III", data, 60)
    extensions: list[ExtensionHeader] = []
    at = aligned(base_size, 8)
    while at + _EXTENSION.size <= size:
        hdr_size, reset_id, offset, width, _, name_size = _EXTENSION.unpack_from(data, at)
        name_at = at + _EXTENSION.size
        data_at = aligned(name_at + name_size, 8)
        if not name_size or data_at + hdr_size > size or len(extensions) == MAX_EXTENSIONS:
            raise Damaged(f"an extension header at octet {at}")
        extensions.append(
            ExtensionHeader(
                name=data[name_at : name_at + name_size].decode("ascii", "backslashreplace"),
                reset_id=reset_id,
                record_offset=offset,
                record_size=width,
                data=data[data_at : data_at + hdr_size],
            )
        )
        at = aligned(data_at + hdr_size, 8)
    return Header(
        size=size,
        record_size=record_size,
        indexid=indexid,
        flags=flags,
        messages=messages,
        log_seq=log_seq,
        log_tail=log_tail,
        log_head=log_head,
        base=data[:_BASE_SIZE],
        extensions=tuple(extensions),
    )


def aligned(number: int, to: int) -> int:
    return number + -number % to


@dataclass(slots=True, kw_only=True)
class Extension:
    """An extension of a table: its header, and the cells of its records where they are kept."""

    name: str
    reset_id: int = 0
    header: bytearray = field(default_factory=bytearray)
    width: int = 0
    """Octets of `cells` for each row; 0: not kept."""
    cells: bytearray = field(default_factory=bytearray)

    def cell(self, row: int) -> bytes:
        return bytes(self.cells[row * self.width : (row + 1) * self.width])


@dataclass(slots=True, kw_only=True)
class Keywords:
    """Names of keywords, and who has which: bit i of a row is name i."""

    names: list[str] = field(default_factory=list)
    width: int = 0
    cells: bytearray = field(default_factory=bytearray)

    def of(self, row: int) -> list[str]:
        found = []
        for byte, bits in enumerate(self.cells[row * self.width : (row + 1) * self.width]):
            if bits:
                found += [name for bit, name in enumerate(self.names[byte * 8 : byte * 8 + 8]) if bits >> bit & 1]
        return found


class Table:
    """The messages of one index, ascending by UID: row i of every column is the same message."""

    def __init__(self, header: Header | None = None) -> None:
        self.base = bytearray(header.base if header else _BASE_SIZE)
        if header is None:
            self._put(28, 1)  # next_uid
        self.uids: array[int] = array("I")
        self.flags = bytearray()
        self.keywords = Keywords()
        self.extensions: list[Extension] = []
        """Their place is the number by which the log names them."""
        self.damage: list[str] = []
        self.gone = bytearray()
        """1 for each row that was expunged since; `compact` takes them out."""
        self.header = header
        self._offsets: list[tuple[Extension, int, int]] = []
        self._keyword_cells: tuple[int, int] = (0, 0)
        for each in header.extensions if header else ():
            self._introduce(each)

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def uidvalidity(self) -> int:
        return self._get(24)

    @property
    def next_uid(self) -> int:
        return self._get(28)

    @property
    def first_recent_uid(self) -> int:
        return self._get(48)

    def row(self, uid: int) -> int:
        """The row of `uid`, -1 when there is none."""
        at = bisect_left(self.uids, uid)
        return at if at < len(self.uids) and self.uids[at] == uid else -1

    def extension(self, name: str) -> Extension | None:
        return next((each for each in self.extensions if each.name == name), None)

    def flags_of(self, row: int) -> frozenset[str]:
        """Flags and keywords of a message."""
        bits = self.flags[row]
        return frozenset([*_FLAGS_OF[bits & 31], *self.keywords.of(row)])

    def add_records(self, octets: bytes) -> None:
        """Whole records of the file that `header` began.

        Raises:
            Damaged: more cells than can be kept.
        """
        assert self.header is not None, "records follow a header"
        size = self.header.record_size
        count = len(octets) // size
        if not count:
            return
        view = memoryview(octets)[: count * size]
        uids = numbers(_strided(view, 0, 4, size))
        last = self.uids[-1] if self.uids else 0
        if uids[0] <= last or uids[-1] >= self.next_uid or not all(one < two for one, two in pairwise(uids)):
            octets, uids = self._in_order(view, uids, last)
            view, count = memoryview(octets), len(uids)
            if not count:
                return
        self._demand_room(count)
        self.uids.extend(uids)
        self.flags += _strided(view, 4, 1, size)
        self.gone += bytes(count)
        for extension, offset, width in self._offsets:
            extension.cells += _widened(_strided(view, offset, width, size), width, extension.width, count)
        offset, width = self._keyword_cells
        if self.keywords.width:
            cells = _strided(view, offset, width, size)
            self.keywords.cells += _widened(cells, width, self.keywords.width, count)
        for extension in self.extensions:  # those without data in this file
            extension.cells += bytes(extension.width * len(self.uids) - len(extension.cells))

    def compact(self) -> None:
        """Takes out what was expunged."""
        if 1 not in self.gone:
            return
        runs: list[tuple[int, int]] = []
        at, end = 0, len(self.gone)
        while (begin := self.gone.find(0, at)) >= 0:
            stop = self.gone.find(1, begin)
            at = end if stop < 0 else stop
            runs.append((begin, at))
        uids = array("I")
        for begin, stop in runs:
            uids.extend(self.uids[begin:stop])
        self.uids = uids
        self.flags = _runs_of(self.flags, runs, 1)
        self.keywords.cells = _runs_of(self.keywords.cells, runs, self.keywords.width)
        for extension in self.extensions:
            extension.cells = _runs_of(extension.cells, runs, extension.width)
        self.gone = bytearray(len(uids))

    # What the log does.

    def append(self, uid: int, flags: int) -> bool:
        """False: the UID is below what was given out before."""
        if uid < self.next_uid:
            return False
        self._demand_room(1)
        self.uids.append(uid)
        self.flags.append(flags)
        self.gone.append(0)
        self.keywords.cells += bytes(self.keywords.width)
        for extension in self.extensions:
            if extension.width:
                extension.cells += bytes(extension.width)
        self._put(28, min(uid + 1, _NEW))
        return True

    def rows(self, first: int, last: int) -> tuple[int, int]:
        """The rows of UIDs from `first` to `last`, as a slice."""
        return bisect_left(self.uids, first), bisect_right(self.uids, last)

    def expunge(self, first: int, last: int) -> None:
        low, high = self.rows(first, last)
        if low < high:
            self.gone[low:high] = b"\1" * (high - low)

    def update_flags(self, first: int, last: int, add: int, remove: int) -> None:
        low, high = self.rows(first, last)
        if low < high:
            self.flags[low:high] = self.flags[low:high].translate(_changed(add, remove))

    def update_keyword(self, name: str, first: int, last: int, *, add: bool) -> None:
        """Raises:
        Damaged: more keywords than can be kept.
        """
        index = self._keyword(name)
        low, high = self.rows(first, last)
        if low < high:
            width, bit = self.keywords.width, 1 << index % 8
            place = slice(low * width + index // 8, high * width, width)
            table = _changed(bit, 0) if add else _changed(0, bit)
            self.keywords.cells[place] = self.keywords.cells[place].translate(table)

    def reset_keywords(self, first: int, last: int) -> None:
        low, high = self.rows(first, last)
        width = self.keywords.width
        if low < high:
            self.keywords.cells[low * width : high * width] = bytes((high - low) * width)

    def update_base(self, offset: int, data: bytes) -> None:
        """Patches the header; the next UID never falls."""
        next_uid = self.next_uid
        end = min(offset + len(data), _BASE_SIZE)
        if offset < end:
            self.base[offset:end] = data[: end - offset]
            self._put(28, max(next_uid, self.next_uid))

    def introduced(self, number: int, name: str) -> Extension | None:
        """The extension that a log introduces by its number or its name; None when it has to be made."""
        if number != _NEW:
            return self.extensions[number] if number < len(self.extensions) else None
        return self.extension(name) if name else None

    def make_extension(self, name: str, reset_id: int) -> Extension:
        """Raises:
        Damaged: too many.
        """
        if len(self.extensions) == MAX_EXTENSIONS:
            raise Damaged("more extensions than can be")
        made = Extension(name=name, reset_id=reset_id, width=KEPT.get(name, 0))
        made.cells = bytearray(made.width * len(self.uids))
        self.extensions.append(made)
        return made

    # Inside.

    def _get(self, offset: int) -> int:
        return int.from_bytes(self.base[offset : offset + 4], "little")

    def _put(self, offset: int, value: int) -> None:
        self.base[offset : offset + 4] = value.to_bytes(4, "little")

    def _demand_room(self, count: int) -> None:
        width = 6 + self.keywords.width + sum(each.width for each in self.extensions)
        if (len(self.uids) + count) * width > MAX_CELLS:
            raise Damaged("more messages, or more of each, than can be kept in memory")

    def _introduce(self, each: ExtensionHeader) -> None:
        assert self.header is not None
        made = self.make_extension(each.name, each.reset_id)
        made.header += each.data
        fits = each.record_offset + each.record_size <= self.header.record_size and each.record_offset >= 4
        if not fits and each.record_size:
            self.damage.append(f"extension {each.name!r} lies outside its records")
        elif each.name == KEYWORDS:
            self._keyword_cells = (each.record_offset, each.record_size)
            try:
                self.keywords.names = parse_keywords(each.data)
            except Damaged as error:
                self.damage.append(str(error))
            self.keywords.width = max(each.record_size, -(-len(self.keywords.names) // 8))
        elif made.width and each.record_size:
            self._offsets.append((made, each.record_offset, min(made.width, each.record_size)))

    def _in_order(self, view: memoryview, uids: array[int], last: int) -> tuple[bytes, array[int]]:
        """The records whose UIDs ascend and were given out."""
        assert self.header is not None
        size = self.header.record_size
        parts: list[memoryview] = []
        kept = array("I")
        for number, uid in enumerate(uids):
            if last < uid < self.next_uid:
                kept.append(uid)
                parts.append(view[number * size : (number + 1) * size])
                last = uid
        self.damage.append(f"{len(uids) - len(kept)} records whose UIDs are out of order")
        return b"".join(parts), kept

    def _keyword(self, name: str) -> int:
        """The number of a keyword; case does not count, and the first spelling stays."""
        folded = name.lower()
        for index, known in enumerate(self.keywords.names):
            if known.lower() == folded:
                return index
        names = self.keywords.names
        if len(names) >= MAX_KEYWORDS:
            raise Damaged("more keywords than can be kept")
        if self.extension(KEYWORDS) is None:  # it takes the next number of an extension
            self.make_extension(KEYWORDS, 0)
        names.append(name)
        needed = -(-len(names) // 8)
        if needed > self.keywords.width:
            old, new = self.keywords.width, max(4, needed, self.keywords.width * 2)
            self.keywords.width = new
            self._demand_room(0)
            self.keywords.cells = bytearray(_widened(self.keywords.cells, old, new, len(self.uids)))
        return len(names) - 1


def numbers(octets: bytes | bytearray) -> array[int]:
    """Numbers of 32 bits, little-endian."""
    found = array("I")
    found.frombytes(octets)
    if sys.byteorder == "big":
        found.byteswap()
    return found


def _runs_of(cells: bytearray, runs: list[tuple[int, int]], width: int) -> bytearray:
    return bytearray().join([cells[begin * width : stop * width] for begin, stop in runs])


def _strided(view: memoryview, offset: int, width: int, stride: int) -> bytearray:
    """Octets `offset` to `offset + width` of each record, one after the other."""
    count = len(view) // stride
    out = bytearray(count * width)
    for number in range(width):
        out[number::width] = view[offset + number :: stride]
    return out


def _widened(cells: bytearray, width: int, new: int, count: int) -> bytearray:
    """`count` cells of `width` octets with zeros behind each, `new` octets wide."""
    if width == new:
        return cells
    out = bytearray(count * new)
    for number in range(min(width, new)):
        out[number::new] = cells[number::width]
    return out


@lru_cache(maxsize=1024)
def _changed(add: int, remove: int) -> bytes:
    return bytes((flags & ~remove & 0xFF) | add for flags in range(256))


_FLAGS_OF: Final = [tuple(name for name, bit in BITS.items() if flags & bit) for flags in range(32)]


def parse_keywords(data: bytes) -> list[str]:
    """Names from the header of the extension `keywords`.

    Raises:
        Damaged
    """
    if len(data) < 4:
        return []
    [count] = struct.unpack_from("<I", data)
    if count > MAX_KEYWORDS or 4 + count * 8 > len(data):
        raise Damaged(f"{count} keywords, more than there is room for")
    names_at = 4 + count * 8
    names = []
    for number in range(count):
        _, offset = _PAIR.unpack_from(data, 4 + number * 8)
        end = data.find(b"\0", names_at + offset)
        if end < 0:
            raise Damaged(f"keyword {number} has no end")
        names.append(data[names_at + offset : end].decode("utf-8", "backslashreplace"))
    return names
