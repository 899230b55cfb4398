"""Indexes as Dovecot writes them, and small stores of them, made without Dovecot: for damage, fuzzing, large sizes."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

INDEXID: Final = 0x6B04ACEE
VALIDITY: Final = 1_795_468_526
GUID: Final = bytes.fromhex("38c88939f1ac046bf72b000083ecc375")


def _padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """An extension with its header and the data of each record, `size` octets each."""

    name: str
    header: bytes = b""
    size: int = 0
    records: bytes = b""


def keyword_extension(names: Sequence[str], bits: bytes, size: int) -> Extension:
    """The extension `keywords`; `bits` are `size` octets a record."""
    area, places = b"", b""
    for name in names:
        places += struct.pack("<II", 0, len(area))
        area += name.encode() + b"\0"
    header = struct.pack("<I", len(names)) + places + area
    return Extension(name="keywords", header=header, size=size, records=bits)


def index(
    uids: Sequence[int],
    flags: bytes,
    extensions: Sequence[Extension] = (),
    *,
    next_uid: int | None = None,
    log_seq: int = 1,
    log_head: int = 40,
) -> bytes:
    """A `dovecot.index` with these messages."""
    headers = b""
    offset = 8
    for each in extensions:
        head = struct.pack("<IIHHHH", len(each.header), 1, offset, each.size, 4, len(each.name)) + each.name.encode()
        headers += _padded(_padded(head, 8) + each.header, 8)
        offset += each.size + -each.size % 4
    size = 120 + len(headers)
    base = bytearray(120)
    struct.pack_into("<BBHIIB", base, 0, 7, 3, 120, size, offset, 1)
    last = uids[-1] if len(uids) else 0
    struct.pack_into("<IIIII", base, 16, INDEXID, 0, VALIDITY, next_uid or last + 1, len(uids))
    struct.pack_into("<III", base, 60, log_seq, log_head, log_head)
    records = bytearray(offset * len(uids))
    if uids:
        octets = array("I", uids).tobytes()
        for number in range(4):
            records[number::offset] = octets[number::4]
        records[4::offset] = flags
    place = 8
    for each in extensions:
        for number in range(each.size):
            if each.records:
                records[place + number :: offset] = each.records[number :: each.size]
        place += each.size + -each.size % 4
    return bytes(base) + headers + bytes(records)


def record(kind: int, body: bytes, *, external: bool = True) -> bytes:
    """One record of a transaction log."""
    size = (8 + len(body)) // 4
    word = 0x80808080
    for place in range(4):
        word |= (size >> 7 * place & 0x7F) << 8 * place
    return struct.pack(">I", word) + struct.pack("<I", kind | (0x10000000 if external else 0)) + body


def log(records: bytes = b"", *, seq: int = 1, prev_seq: int = 0, prev_offset: int = 0) -> bytes:
    """A transaction log."""
    header = struct.pack("<BBHIIIIIQB7x", 1, 3, 40, INDEXID, seq, prev_seq, prev_offset, 0, 1, 1)
    return header + records


def intro(name: str, *, header: int = 0, size: int = 0, reset_id: int = 1) -> bytes:
    """The record that introduces an extension by its name."""
    body = struct.pack("<IIIHHHH", 0xFFFFFFFF, reset_id, header, size, 4, 1, len(name)) + name.encode()
    return record(0x40, _padded(body, 4))


def appended(uids: Sequence[int], flags: Sequence[int]) -> bytes:
    return record(0x2, b"".join(struct.pack("<IB3x", uid, each) for uid, each in zip(uids, flags, strict=True)))


def extension_data(rows: Mapping[int, bytes]) -> bytes:
    """Data of the extension introduced last, by UID."""
    return record(0x200, b"".join(_padded(struct.pack("<I", uid) + data, 4) for uid, data in rows.items()))


def message(body: bytes, **metadata: str) -> bytes:
    """A message as it stands in a file; metadata by their letters."""
    lines = "".join(f"{letter}{value}\n" for letter, value in metadata.items()).encode()
    return b"\x01\x02N          %016X\n" % len(body) + body + b"\n\x01\x03\n" + lines + b"\n"


FILE: Final = b"2 M1e C6b04acee\n"


@dataclass(slots=True, kw_only=True)
class Made:
    """A small store: where it lies, what its messages are, and which octets of which file are theirs."""

    root: Path
    kind: str
    bodies: list[bytes] = field(default_factory=list)
    places: list[tuple[Path, int, int]] = field(default_factory=list)


def small_sdbox(root: Path) -> Made:
    """Two messages in an index, a third in its log; keywords in both."""
    made = Made(root=root, kind="sdbox")
    folder = root / "mailboxes" / "INBOX" / "dbox-Mails"
    folder.mkdir(parents=True)
    for uid in (3, 5, 8):
        body = b"Subject: %d\n\nBody of %d\n" % (uid, uid)
        head = FILE + message(b"")[:30]
        made.bodies.append(body)
        made.places.append((folder / f"u.{uid}", len(head), len(head) + len(body)))
        virtual = len(body) + body.count(b"\n")
        (folder / f"u.{uid}").write_bytes(
            FILE + message(body, R=f"{1_500_000_000 + uid:x}", V=f"{virtual:x}", G=f"{uid:032x}")
        )
    header = Extension(name="dbox-hdr", header=struct.pack("<I", 0) + GUID + bytes(4))
    first = index([3, 5], bytes([8, 0]), [header, keyword_extension(["Junk"], bytes([1, 0, 0, 0, 0, 0, 0, 0]), 4)])
    (folder / "dovecot.index").write_bytes(first)
    flagged = record(0x4, struct.pack("<IIBB2x", 5, 8, 2, 0))
    keyword = record(0x400, struct.pack("<BBH", 0, 0, 4) + b"Work" + struct.pack("<II", 8, 8))
    (folder / "dovecot.index.log").write_bytes(log(appended([8], [0]) + flagged + keyword))
    return made


def small_mdbox(root: Path) -> Made:
    """Two messages in one file, a third in another; the folder in its log alone, the map in index and log."""
    made = Made(root=root, kind="mdbox")
    folder = root / "mailboxes" / "INBOX" / "dbox-Mails"
    storage = root / "storage"
    folder.mkdir(parents=True)
    storage.mkdir()
    content = {1: FILE, 2: FILE}
    places: dict[int, tuple[int, int, int]] = {}
    for uid, file in ((1, 1), (2, 1), (4, 2)):
        body = b"Subject: m%d\n\nBody of %d\n" % (uid, uid)
        at = len(content[file])
        virtual = len(body) + body.count(b"\n")
        content[file] += message(body, R=f"{1_500_000_000 + uid:x}", V=f"{virtual:x}", G=f"{uid:032x}", B="INBOX")
        made.bodies.append(body)
        made.places.append((storage / f"m.{file}", at + 30, at + 30 + len(body)))
        places[uid] = (file, at, len(content[file]) - at)
    for file, octets in content.items():
        (storage / f"m.{file}").write_bytes(octets)
    cells = {uid: struct.pack("<III", *place) for uid, place in places.items()}
    first = index(
        [1, 2],
        bytes(2),
        [
            Extension(name="map", header=struct.pack("<II", 2, 0), size=12, records=cells[1] + cells[2]),
            Extension(name="ref", size=2, records=struct.pack("<HH", 1, 1)),
        ],
        next_uid=4,
    )
    (storage / "dovecot.map.index").write_bytes(first)
    more = appended([4], [0]) + intro("map", header=8, size=12) + extension_data({4: cells[4]})
    more += intro("ref", size=2) + extension_data({4: struct.pack("<H", 1)})
    (storage / "dovecot.map.index.log").write_bytes(log(more))
    validity = record(0x20, struct.pack("<HHI", 24, 4, VALIDITY))
    folder_header = record(0x100, _padded(struct.pack("<HH", 0, 24) + struct.pack("<I", VALIDITY) + GUID + bytes(4), 4))
    rows = validity + appended([1, 2, 4], [8, 0, 2])
    rows += intro("mdbox-hdr", header=24) + folder_header
    rows += intro("mdbox", size=8) + extension_data({uid: struct.pack("<II", uid, 1_600_000_000) for uid in cells})
    rows += intro("guid", size=16) + extension_data({uid: uid.to_bytes(16, "big") for uid in cells})
    rows += record(0x400, struct.pack("<BBH", 0, 0, 4) + b"Work" + struct.pack("<II", 4, 4))
    (folder / "dovecot.index.log").write_bytes(log(rows))
    return made
