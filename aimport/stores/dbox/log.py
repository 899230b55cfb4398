"""The transaction log of an index: what has changed since the index was written. Pure.

    assemble:  Table of dovecot.index ─▶ .log.2, .log from where it stands ─▶ Table

Format and rules: Dovecot 2.3 `mail-transaction-log.h`, `mail-index-sync-update.c`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from aimport.stores.dbox.index import MAX_EXTENSION_HEADER, Damaged, Extension, Table, aligned

MAX_LOG_HEADER: Final = 128
"""Dovecot 2.3 has 40."""
_INTRO = struct.Struct("<IIIHHHH")
_PAIR = struct.Struct("<II")
_SIZE = struct.Struct(">I")
_NEW: Final = 0xFFFFFFFF
_EXTERNAL: Final = 0x10000000
_KIND: Final = 0x0FFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHeader:
    """What a transaction log says of itself."""

    size: int
    indexid: int
    seq: int
    prev_seq: int
    prev_offset: int


def parse_log_header(data: bytes) -> LogHeader:
    """Raises:
    Damaged
    """
    if len(data) < 24:
        raise Damaged(f"it ends after {len(data)} octets")
    major, _, size = struct.unpack_from("<BBH", data)
    if major != 1 or not 24 <= size <= min(len(data), MAX_LOG_HEADER):
        raise Damaged("its header is not that of a log")
    indexid, seq, prev_seq, prev_offset = struct.unpack_from("<IIII", data, 4)
    return LogHeader(size=size, indexid=indexid, seq=seq, prev_seq=prev_seq, prev_offset=prev_offset)


class Record(NamedTuple):
    """One record of a log: what it does, and where its body lies."""

    kind: int
    external: bool
    begin: int
    end: int


def records(data: bytes, at: int) -> Iterator[Record]:
    """The records of a log from octet `at` on, up to what is not finished yet.

    A writer puts the size of a transaction in its place when all of it is written: four zeros are one that
    is under way, and an end.

    Raises:
        Damaged: octets that are no record, also one that runs past the end.
    """
    length = len(data)
    while at + 8 <= length:
        [word] = _SIZE.unpack_from(data, at)
        if word & 0x80808080 != 0x80808080:
            if not word:
                return
            raise Damaged(f"no record at octet {at} of {length}")
        size = ((word & 0x7F) | (word & 0x7F00) >> 1 | (word & 0x7F0000) >> 2 | (word & 0x7F000000) >> 3) << 2
        kind = int.from_bytes(data[at + 4 : at + 8], "little")
        if size < 8 or at + size > length:
            raise Damaged(f"a record at octet {at} of {length} runs past the end")
        if kind & _KIND == 0x80000 and size >= 12:  # how long the whole transaction is
            total = int.from_bytes(data[at + 8 : at + 12], "little")
            if at + total > length:
                raise Damaged(f"a transaction at octet {at} of {length} runs past the end")
        yield Record(kind & _KIND, bool(kind & _EXTERNAL), at + 8, at + size)
        at += size
    if at < length and any(data[at:]):
        raise Damaged(f"no record at octet {at} of {length}")


def replay(table: Table, data: bytes, at: int) -> None:
    """Does to `table` what a log says from octet `at` on. Rows that are expunged stay until `Table.compact`.

    Raises:
        Damaged: what came before it was done.
    """
    _Replay(table, data).run(at)


def pending_expunges(table: Table, data: bytes, at: int, end: int) -> None:
    """Carries out what was asked for between two octets of a log and not done yet.

    Raises:
        Damaged
    """
    run = _Replay(table, data)
    for record in records(data, at):
        if record.begin - 8 >= end:
            return
        if not record.external and record.kind in (0xCD91, 0xED90):
            run.do(record)


class _Replay:
    """One reading of a log; knows which extension was introduced last."""

    def __init__(self, table: Table, data: bytes) -> None:
        self._table = table
        self._data = data
        self._extension: Extension | None = None
        self._ignored = False
        """The log speaks of the extension with another reset id: what follows is not for it."""
        self._record_size = 0

    def run(self, at: int) -> None:
        for record in records(self._data, at):
            self.do(record)

    def do(self, record: Record) -> None:
        table, data = self._table, self._data
        kind, _, at, end = record
        match kind:
            case 0x2:
                for uid, flags in struct.iter_unpack("<IB3x", self._whole(at, end, 8)):
                    if not table.append(uid, flags):
                        raise Damaged(f"UID {uid} is added again at octet {at}")
            case 0xCD91:
                for first, last in _PAIR.iter_unpack(self._whole(at, end, 8)):
                    table.expunge(first, last)
            case 0xED90:
                for [uid] in struct.iter_unpack("<I16x", self._whole(at, end, 20)):
                    table.expunge(uid, uid)
            case 0x4:
                for first, last, add, remove in struct.iter_unpack("<IIBB2x", self._whole(at, end, 12)):
                    table.update_flags(first, last, add, remove)
            case 0x400:
                self._keyword_update(at, end)
            case 0x800:
                for first, last in _PAIR.iter_unpack(self._whole(at, end, 8)):
                    table.reset_keywords(first, last)
            case 0x20:
                for offset, octets in self._patches(at, end, "<HH"):
                    table.update_base(offset, octets)
            case 0x40:
                self._intro(at, end)
            case 0x80:
                self._reset(at, end)
            case 0x100:
                self._header_update(at, end, "<HH")
            case 0x10000:
                self._header_update(at, end, "<II")
            case 0x200:
                self._record_update(at, end)
            case 0x1000:
                self._increase(at, end)
            case 0x8000 | 0x20000 | 0x40000 | 0x80000 | 0x100000:
                pass  # nothing that a message has
            case _:
                raise Damaged(f"an unknown record of kind {kind:#x} at octet {at - 8} of {len(data)}")

    def _whole(self, at: int, end: int, size: int) -> bytes:
        """The body, which is so many entries of `size` octets."""
        if (end - at) % size:
            raise Damaged(f"a record at octet {at - 8} has an odd size")
        return self._data[at:end]

    def _patches(self, at: int, end: int, form: str) -> Iterator[tuple[int, bytes]]:
        head = struct.Struct(form)
        while at + head.size <= end:
            offset, size = head.unpack_from(self._data, at)
            at += head.size
            if at + size > end:
                raise Damaged(f"a change of a header at octet {at} runs past its record")
            yield offset, self._data[at : at + size]
            at = aligned(at + size, 4)

    def _keyword_update(self, at: int, end: int) -> None:
        data = self._data
        if at + 4 > end:
            raise Damaged(f"a keyword change at octet {at} is too short")
        what, _, name_size = struct.unpack_from("<BBH", data, at)
        begin = at + aligned(4 + name_size, 4)
        if begin > end or what > 1 or not name_size:
            raise Damaged(f"a keyword change at octet {at} is not right")
        name = data[at + 4 : at + 4 + name_size].decode("utf-8", "backslashreplace")
        for first, last in _PAIR.iter_unpack(self._whole(begin, end, 8)):
            self._table.update_keyword(name, first, last, add=what == 0)

    def _intro(self, at: int, end: int) -> None:
        table = self._table
        while at + _INTRO.size <= end:
            number, reset_id, header, size, _, flags, name_size = _INTRO.unpack_from(self._data, at)
            name_at = at + _INTRO.size
            if name_at + name_size > end:
                raise Damaged(f"an extension at octet {at} runs past its record")
            name = self._data[name_at : name_at + name_size].decode("ascii", "backslashreplace")
            at = aligned(name_at + name_size, 4)
            extension = table.introduced(number, name)
            self._record_size = size
            if extension is None:
                if number != _NEW or not name:
                    raise Damaged(f"an extension that was never introduced, at octet {at}")
                extension = table.make_extension(name, reset_id)
            self._extension, self._ignored = extension, extension.reset_id != reset_id
            if self._ignored:
                continue
            if header > MAX_EXTENSION_HEADER:
                raise Damaged(f"an extension header of {header} octets at octet {at}")
            if header > len(extension.header):
                extension.header += bytes(header - len(extension.header))
            elif not flags & 1:
                del extension.header[header:]

    def _reset(self, at: int, end: int) -> None:
        extension = self._current(at)
        if at + 5 > end:
            raise Damaged(f"a reset at octet {at} is too short")
        extension.reset_id = int.from_bytes(self._data[at : at + 4], "little")
        if not self._data[at + 4]:
            extension.header[:] = bytes(len(extension.header))
            extension.cells[:] = bytes(len(extension.cells))
        self._ignored = False

    def _header_update(self, at: int, end: int, form: str) -> None:
        extension = self._current(at)
        for offset, octets in self._patches(at, end, form):
            if not self._ignored:
                stop = offset + len(octets)
                if stop > MAX_EXTENSION_HEADER:
                    raise Damaged(f"an extension header of {stop} octets at octet {at}")
                if stop > len(extension.header):
                    extension.header += bytes(stop - len(extension.header))
                extension.header[offset:stop] = octets

    def _record_update(self, at: int, end: int) -> None:
        extension = self._current(at)
        step = aligned(4 + self._record_size, 4)
        whole = self._whole(at, end, step)
        if self._ignored or not extension.width:
            return
        width = min(extension.width, self._record_size)
        cells, row_of = extension.cells, self._table.row
        for place in range(0, len(whole), step):
            row = row_of(int.from_bytes(whole[place : place + 4], "little"))
            if row >= 0:
                start = row * extension.width
                cells[start : start + extension.width] = whole[place + 4 : place + 4 + width].ljust(
                    extension.width, b"\0"
                )

    def _increase(self, at: int, end: int) -> None:
        extension = self._current(at)
        whole = self._whole(at, end, 8)
        if self._ignored or not extension.width:
            return
        size = min(self._record_size or extension.width, extension.width)
        for uid, change in struct.iter_unpack("<Ii", whole):
            row = self._table.row(uid)
            if row >= 0:
                start = row * extension.width
                value = int.from_bytes(extension.cells[start : start + size], "little") + change
                value = min(max(value, 0), 256**size - 1)
                extension.cells[start : start + size] = value.to_bytes(size, "little")

    def _current(self, at: int) -> Extension:
        if self._extension is None:
            raise Damaged(f"data of an extension that was not introduced, at octet {at}")
        return self._extension


def assemble(table: Table | None, log: bytes | None, log2: bytes | None) -> Table:
    """The state of a mailbox. `table` is what dovecot.index held, None without one; the logs are `.log`, `.log.2`.

    What is wrong is in `damage`; the table then holds what is known all the same. Neither index nor log: empty, and
    that is no damage here.
    """
    known = _headers(table, log, log2)
    if table is None:
        table = _from_logs(known)
    else:
        _from_index(table, known)
    table.compact()
    return table


class _Logs(NamedTuple):
    """The two logs as far as their headers are right, and what is wrong with them."""

    current: tuple[LogHeader, bytes] | None
    older: tuple[LogHeader, bytes] | None
    damage: list[str]


def _headers(table: Table | None, log: bytes | None, log2: bytes | None) -> _Logs:
    damage: list[str] = []
    indexid = table.header.indexid if table is not None and table.header is not None else 0

    def read(data: bytes | None, name: str) -> tuple[LogHeader, bytes] | None:
        nonlocal indexid
        if data is None:
            return None
        try:
            header = parse_log_header(data)
            if not header.indexid:
                raise Damaged("it was marked as corrupted")
            if indexid and header.indexid != indexid:
                raise Damaged("it belongs to another index")
        except Damaged as error:
            damage.append(f"{name}: {error}")
            return None
        indexid = header.indexid
        return header, data

    return _Logs(read(log, ".log"), read(log2, ".log.2"), damage)


def _from_logs(logs: _Logs) -> Table:
    table = Table()
    table.damage += logs.damage
    if logs.current is None:
        if logs.older is not None:
            table.damage.append(".log is missing")
            _replay_noted(table, logs.older, ".log.2", logs.older[0].size)
        return table
    header, _ = logs.current
    if header.prev_seq:
        if logs.older is not None and logs.older[0].seq == header.prev_seq and not logs.older[0].prev_seq:
            _replay_noted(table, logs.older, ".log.2", logs.older[0].size)
        else:
            table.damage.append("the index is missing, and .log begins in the middle of the history")
    _replay_noted(table, logs.current, ".log", header.size)
    return table


def _from_index(table: Table, logs: _Logs) -> None:
    header = table.header
    assert header is not None
    table.damage += logs.damage
    if header.flags & 1:
        table.damage.append("it was marked as corrupted")
    if len(table) < header.messages:
        table.damage.append(f"{len(table)} of {header.messages} records are there")
    if logs.current is not None and logs.current[0].seq == header.log_seq:
        name, log = ".log", logs.current
    elif logs.older is not None and logs.older[0].seq == header.log_seq:
        name, log = ".log.2", logs.older
    else:
        if logs.current is not None or not logs.damage:
            what = "is missing" if logs.current is None else "does not follow the index"
            table.damage.append(f".log {what}: what was changed last is not known")
        return
    if header.log_head > len(log[1]):
        table.damage.append(f"{name} ends after {len(log[1])} of {header.log_head} octets")
    elif header.log_tail >= log[0].size:
        try:
            pending_expunges(table, log[1], header.log_tail, header.log_head)
        except Damaged as error:
            table.damage.append(f"{name}: {error}")
    _replay_noted(table, log, name, max(header.log_head, log[0].size))
    if name == ".log.2":
        if logs.current is None or logs.current[0].prev_seq != header.log_seq:
            table.damage.append(".log does not follow .log.2: what was changed last is not known")
        else:
            _replay_noted(table, logs.current, ".log", logs.current[0].size)


def _replay_noted(table: Table, log: tuple[LogHeader, bytes], name: str, at: int) -> None:
    try:
        replay(table, log[1], at)
    except Damaged as error:
        table.damage.append(f"{name}: {error}")
