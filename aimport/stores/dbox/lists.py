"""`dovecot.list.index` and `dovecot.index.cache`: names of folders, and dates of saving. Pure.

Formats: Dovecot 2.3 `mailbox-list-index.h`, `mail-cache-private.h`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from aimport.stores.dbox.index import Damaged, Table

_NODE = struct.Struct("<II16sI")
_NON_EXISTENT: Final = 4
_NO_SELECT: Final = 16
MAX_DEPTH: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A folder by the list index: its levels as they stand on disk, and its GUID in hex."""

    levels: tuple[bytes, ...]
    guid: str
    selectable: bool


def nodes(table: Table) -> Iterator[Node]:
    """The folders of a list index.

    Raises:
        Damaged: it does not name them.
    """
    extension = table.extension("list")
    if extension is None:
        if len(table):
            raise Damaged("it does not say what its folders are called")
        return
    names = _names(bytes(extension.header))
    rows = [_NODE.unpack(extension.cell(row)) for row in range(len(table))]
    for row, (_, _, guid, _) in enumerate(rows):
        levels: list[bytes] = []
        at = row
        while at >= 0 and len(levels) < MAX_DEPTH:
            name, parent = rows[at][:2]
            if name not in names:
                raise Damaged(f"a folder whose name {name} it does not know")
            levels.insert(0, names[name])
            at = table.row(parent) if parent else -1
            if parent and at < 0:
                raise Damaged(f"a folder below {parent}, which is not there")
        if len(levels) == MAX_DEPTH:
            raise Damaged("folders that lie in each other")
        flags = table.flags[row]
        selectable = not flags & (_NON_EXISTENT | _NO_SELECT) and any(guid)
        yield Node(levels=tuple(levels), guid=guid.hex(), selectable=selectable)


def _names(data: bytes) -> dict[int, bytes]:
    """The extension header: a number and a name each, ascending by number."""
    found: dict[int, bytes] = {}
    at, last = 1, 0
    while at + 4 <= len(data):
        number = int.from_bytes(data[at : at + 4], "little")
        if number <= last:
            break
        end = data.find(b"\0", at + 4)
        if end < 0:
            raise Damaged("a name of a folder without its end")
        found[number] = data[at + 4 : end]
        last, at = number, end + 1
    return found


class Cache:
    """`dovecot.index.cache`, for the date of saving that sdbox keeps nowhere else.

    `octets` is the whole file. A broken cache knows nothing; it never fails.
    """

    def __init__(self, octets: bytes, reset_id: int) -> None:
        self._octets = octets
        self._sizes: Sequence[int] = ()
        self._saved = -1
        try:
            if len(octets) >= 32 and octets[0] == 1 and self._number(8) == reset_id:
                self._read_fields()
        except (IndexError, struct.error, ValueError):
            self._sizes, self._saved = (), -1

    def saved(self, offset: int) -> int | None:
        """When a message was saved, by its offset in the cache; seconds since 1970."""
        seen = 0
        while self._saved >= 0 and offset and seen < 64:  # arbitrary: records of one message that follow each other
            seen += 1
            if offset + 8 > len(self._octets):
                return None
            before, size = struct.unpack_from("<II", self._octets, offset)
            found = self._field(offset + 8, min(offset + size, len(self._octets)))
            if found is not None:
                return found
            offset = before
        return None

    def _field(self, at: int, end: int) -> int | None:
        while at + 4 <= end:
            number = self._number(at)
            at += 4
            if number >= len(self._sizes):
                return None
            size = self._sizes[number]
            if size < 0:
                size = self._number(at)
                at += 4
            if number == self._saved and at + 4 <= end:
                return self._number(at)
            at += size + -size % 4
        return None

    def _read_fields(self) -> None:
        """The last of the field headers counts."""
        at = _offset(self._octets[28:32])
        for _ in range(64):  # arbitrary
            following = _offset(self._octets[at : at + 4])
            if not following:
                break
            at = following
        if not at:
            return
        size, count = struct.unpack_from("<II", self._octets, at + 4)
        header = self._octets[at : at + size]
        if count * 10 + 12 > len(header):
            return
        sizes = struct.unpack_from(f"<{count}I", header, 12 + 4 * count)
        types = header[12 + 8 * count : 12 + 9 * count]
        names = header[12 + 10 * count :].split(b"\0")
        self._sizes = [size if kind in (0, 3) else -1 for size, kind in zip(sizes, types, strict=True)]
        if b"date.save" in names:
            self._saved = names.index(b"date.save")

    def _number(self, at: int) -> int:
        return int.from_bytes(self._octets[at : at + 4], "little")


def _offset(word: bytes) -> int:
    """An offset in units of 4, big-endian, 7 bits an octet with the high bits set; 0 when it is none."""
    if len(word) < 4 or not all(octet & 0x80 for octet in word):
        return 0
    number = 0
    for octet in word:
        number = number << 7 | octet & 0x7F
    return number << 2
