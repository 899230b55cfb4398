"""What stands in `u.*` and `m.*` files: headers, messages, their metadata. Pure.

    file := "2 M1e C6b04acee\n" message*          message := header body "\n\x01\x03\n" metadata "\n"

Flags and UIDs are not here but in the index, and there is no checksum. `Octets` is a file by position, so that
no more of it is in memory than is looked at. Format: Dovecot 2.3 `dbox-file.h`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from aimport.stores.dbox.index import Damaged

METADATA: Final = b"\n\x01\x03\n"
HEADER_SIZE: Final = 30
"""Of a message, as every Dovecot so far writes it."""
MAX_FILE_HEADER: Final = 512
MAX_METADATA: Final = 1 << 20
"""Most of it is references of attachments, about 100 octets each."""
FIRST_METADATA: Final = 512
_WINDOW: Final = 1 << 20
_FILE_HEADER = re.compile(rb"[12](?: [A-Z][0-9a-f]{1,16})* ?\n")
_HEADER_SIZE = re.compile(rb" M([0-9a-f]{1,4})[ \n]")
_MESSAGE = re.compile(rb"\x01\x02N [ 0-9A-Fa-f]{8} ([0-9A-Fa-f]{16})")
_BLOCK = re.compile(rb"[!-~][^\n]*(?:\n[!-~][^\n]*)*")
_LINE = re.compile(rb"[ -~][^\n]*\n")
_KNOWN_LINE = re.compile(rb"[RGZVPOBX][!-~]")
_HEX = re.compile(rb"[0-9A-Fa-f]{1,16}")


class Octets(Protocol):
    """A file by position."""

    def __len__(self) -> int: ...

    def at(self, place: int, count: int) -> bytes:
        """So many octets from `place` on, fewer only where the file ends.

        Raises:
            OSError
        """
        ...


class Found(NamedTuple):
    """A message in a file: where its stored octets lie, and what is said of them."""

    at: int
    """Where its header begins."""
    body: int
    size: int
    """Octets as stored: maybe compressed, maybe without their attachments."""
    metadata: Mapping[bytes, bytes]
    end: int
    note: str = ""
    """What is wrong with it, though its octets are whole."""

    def number(self, key: bytes) -> int | None:
        """A hexadecimal value; None when it is not there, or none."""
        value = self.metadata.get(key, b"")
        return int(value, 16) if _HEX.fullmatch(value) else None

    @property
    def received(self) -> int | None:
        """INTERNALDATE, seconds since 1970."""
        return self.number(b"R")

    @property
    def plain_size(self) -> int:
        """Octets of the message itself."""
        said = self.number(b"Z")
        return self.size if said is None else said

    @property
    def guid(self) -> str:
        return self.metadata.get(b"G", b"").decode("utf-8", "backslashreplace")

    @property
    def uidl(self) -> str:
        """POP3 UIDL, "" when it has none of its own."""
        return self.metadata.get(b"P", b"").decode("utf-8", "backslashreplace")

    @property
    def folder(self) -> str:
        """Where it was first saved (mdbox), as the name stands on disk; "" when that is not said."""
        return self.metadata.get(b"B", b"").decode("utf-8", "surrogateescape")


def guid_128(guid: str) -> bytes:
    """The 16 octets by which the indexes name a GUID (`mail_generate_guid_128_hash()`)."""
    if re.fullmatch("[0-9a-fA-F]{32}", guid):
        return bytes.fromhex(guid)
    return hashlib.sha1(guid.encode("utf-8", "surrogateescape"), usedforsecurity=False).digest()[4:]


def parse_file_header(data: bytes) -> tuple[int, int]:
    """Octets of the header of a file, and of that of each message in it.

    Raises:
        Damaged
    """
    match = _FILE_HEADER.match(data[:MAX_FILE_HEADER])
    size = _HEADER_SIZE.search(match[0]) if match else None
    if match is None or size is None or int(size[1], 16) < HEADER_SIZE:
        raise Damaged("its first line is not that of a dbox file" if data else "the file is empty")
    return len(match[0]), int(size[1], 16)


def parse_message_header(data: bytes, size: int) -> int:
    """Octets of the body behind a message header of `size` octets.

    Raises:
        Damaged
    """
    match = _MESSAGE.match(data)
    if match is None or len(data) < size or data[size - 1] != 0x0A:
        raise Damaged("no message header")
    return int(match[1], 16)


def parse_metadata(data: bytes) -> tuple[dict[bytes, bytes], int] | None:
    """The values of a metadata block without its first four octets, and its octets; None: it has no end here."""
    found: dict[bytes, bytes] = {}
    end = data.find(b"\n\n")
    if end > 0 and _BLOCK.fullmatch(data, 0, end):
        for line in reversed(data[:end].split(b"\n")):  # the first of a key counts
            found[line[:1]] = line[1:]
        return found, end + 2
    at = 0
    while match := _LINE.match(data, at):
        if match[0][:1] == b" ":  # as old files end it
            return found, match.end()
        found.setdefault(match[0][:1], match[0][1:-1])
        at = match.end()
    if data[at : at + 1] == b"\n":
        return found, at + 1
    return None


def read_message(octets: Octets, at: int, header: int) -> Found:
    """The message at `at`; `header` is the size of its header.

    Raises:
        Damaged: it is not whole, or not a message.
        OSError
    """
    size = parse_message_header(octets.at(at, header), header)
    body = at + header
    if body + size > len(octets):
        raise Damaged(f"it has {max(len(octets) - body, 0)} of {size} octets")
    metadata, end = _metadata(octets, body + size)
    return Found(at=at, body=body, size=size, metadata=metadata, end=end)


def _metadata(octets: Octets, at: int) -> tuple[dict[bytes, bytes], int]:
    """The metadata block at `at`, and where it ends."""
    count = FIRST_METADATA
    while True:
        data = octets.at(at, count)
        if data[: len(METADATA)] != METADATA:
            raise Damaged("no metadata behind its octets")
        parsed = parse_metadata(data[len(METADATA) :])
        if parsed is not None:
            return parsed[0], at + len(METADATA) + parsed[1]
        if len(data) < count or count > MAX_METADATA:
            raise Damaged("its metadata has no end")
        count *= 8


def scan(octets: Octets, start: int = 0) -> Iterator[Found | str]:
    """Every message of a file whose octets are whole, in order; a text for each place that is damaged.

    `start` is where one is known to begin, 0 the whole file. What cannot be read is passed over up to the next whole
    message, as `dbox-file-fix.c` does.
    """
    try:
        at, header = parse_file_header(octets.at(0, MAX_FILE_HEADER))
    except Damaged as error:
        yield str(error)
        at, header = _next_header(octets, 0, HEADER_SIZE), HEADER_SIZE
    at = start or at
    while at < len(octets):
        try:
            found = read_message(octets, at, header)
        except Damaged as error:
            mended = mend(octets, at, header)
            if mended is None:
                yield f"octet {at}: {error}"
                at = _next_header(octets, at + 1, header)
                continue
            found = mended
        yield found
        at = found.end


def mend(octets: Octets, at: int, header: int) -> Found | None:
    """A message at `at` whose header or metadata is damaged and whose octets are whole; None: there is none.

    What follows tells: metadata that end where the next message begins, or the file ends, give the size that a
    damaged header hides. Without such, a header that is right gives it, and of its metadata what has their form.
    """
    body = at + header
    stop = _next_header(octets, body, header)
    for end in _places(octets, METADATA, body):
        if end >= stop:
            break
        try:
            metadata, after = _metadata(octets, end)
        except Damaged:
            continue
        if after == stop and (b"R" in metadata or b"G" in metadata):
            note = "its header is damaged"
            return Found(at=at, body=body, size=end - body, metadata=metadata, end=stop, note=note)
    try:
        end = body + parse_message_header(octets.at(at, header), header)
    except Damaged:
        return None
    if end > stop:
        return None
    metadata = {}
    for line in octets.at(end + len(METADATA), min(stop - end, MAX_METADATA)).split(b"\n"):
        if _KNOWN_LINE.match(line):
            metadata.setdefault(line[:1], line[1:])
    return Found(at=at, body=body, size=end - body, metadata=metadata, end=stop, note="its metadata are damaged")


def _is_header(data: bytes, size: int) -> bool:
    try:
        parse_message_header(data, size)
    except Damaged:
        return False
    return True


def _next_header(octets: Octets, at: int, header: int) -> int:
    """Where the next message header begins at or behind `at`; the end of the file when there is none.

    A body that is compressed may hold the two octets of a header by chance, and all thirty only by design.
    """
    for place in _places(octets, b"\x01\x02N ", at):
        if _is_header(octets.at(place, header), header):
            return place
    return len(octets)


def _places(octets: Octets, wanted: bytes, at: int) -> Iterator[int]:
    """Where `wanted` stands at or behind `at`."""
    while at < len(octets):
        window = octets.at(at, _WINDOW)
        place = window.find(wanted)
        while place >= 0:
            yield at + place
            place = window.find(wanted, place + 1)
        if len(window) < _WINDOW:
            return
        at += len(window) - len(wanted) + 1
