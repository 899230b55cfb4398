"""From stored octets to the message: decompress, put attachments back. Streams; blocks.

    stored ─▶ decompressed ─▶ attachments put back at their places ─▶ as long as the metadata say

The first octets say how a body is compressed. What comes out is held against the size that the metadata
promise while it comes, and against what may be: a bomb ends at its limit.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from aimport.errors import MessageUnreadable
from aimport.model import PIECE_OCTETS, STREAM_OCTETS, Body
from aimport.spool import NO_SPACE, FileBody
from aimport.stores import files, inflate
from aimport.stores.dbox.index import Damaged

MAX_RATIO: Final = 2000  # arbitrary; deflate reaches 1032, and a mail of one letter more by the others
FREE_OCTETS: Final = 64 << 20
"""So much may come out at any ratio."""
_ENCRYPTED: Final = b"CRYPTED\x03\x07"
MAGIC_OCTETS: Final = 16


def is_compressed(start: bytes) -> bool:
    """By the first `MAGIC_OCTETS` of a stored body."""
    return start.startswith(_ENCRYPTED) or inflate.format_of(start) is not None


def decompressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The octets that were compressed; those of a body that is not compressed as they are.

    Raises:
        Damaged: by the iterator; also when more comes out than may.
        MessageUnreadable: it is encrypted, or a package is missing.
    """
    pieces = iter(pieces)
    start = next(pieces, b"")
    for piece in pieces:
        start += piece
        if len(start) >= MAGIC_OCTETS:
            break
    if start.startswith(_ENCRYPTED):
        text = "it is encrypted (mail_crypt)"
        raise MessageUnreadable(text, code="encrypted", hint="import it through a Dovecot that has the key")
    form = inflate.format_of(start)
    if form is None:
        yield from _chained(start, pieces)
        return
    if need := inflate.missing(form):
        raise MessageUnreadable("it is compressed with LZ4", hint=f"{need} brings what reads it", code="lz4")
    try:
        yield from inflate.inflated(_chained(start, pieces), form, ratio=MAX_RATIO, free=FREE_OCTETS)
    except (inflate.TooMuch, inflate.Damaged) as error:
        raise Damaged(f"it cannot be decompressed: {error}") from error


def _chained(start: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    if start:
        yield start
    yield from pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An attachment that is stored apart: where it goes in the message, how long it is there, where it lies."""

    start: int
    size: int
    line: int
    """Characters a line of base64; 0: stored as it is in the message."""
    crlf: bool
    path: str


def parse_references(value: bytes) -> list[Reference]:
    """The metadata value `X`: groups of start, size, options and path.

    Raises:
        Damaged
    """
    words = value.split(b" ")
    if len(words) % 4:
        raise Damaged("references of attachments that are not right")
    found = []
    end = 0
    for number in range(0, len(words), 4):
        start, size, options, path = words[number : number + 4]
        line, crlf = 0, False
        if options != b"-":
            crlf = options.endswith(b"C")
            digits = options[1 : len(options) - crlf]
            if options[:1] != b"B" or not digits.isdigit() or len(digits) > 6 or int(digits) % 4 or not int(digits):
                raise Damaged(f"an attachment with the options {options.decode('ascii', 'backslashreplace')}")
            line = int(digits)
        if not (start.isdigit() and size.isdigit() and len(start) <= 12 and len(size) <= 12) or int(start) < end:
            raise Damaged("references of attachments that are not right")
        end = int(start) + int(size)
        text = path.decode("utf-8", "surrogateescape")
        if not all(level not in ("", ".", "..") for level in text.split("/")) or "\0" in text:
            raise Damaged("an attachment whose path leads elsewhere")
        found.append(Reference(start=int(start), size=int(size), line=line, crlf=crlf, path=text))
    return found


def open_attachment(root: int, path: str) -> int:
    """A descriptor of a file some levels below `root`; no link is followed on the way.

    Raises:
        OSError
    """
    *above, name = path.split("/")
    at = root
    try:
        for level in above:
            below = os.open(level, files.DIRECTORY, dir_fd=at)
            if at != root:
                os.close(at)
            at = below
        return files.open_regular(name, at)
    finally:
        if at != root:
            os.close(at)


def with_attachments(
    pieces: Iterator[bytes], references: Iterable[Reference], opened: Callable[[str], int]
) -> Iterator[bytes]:
    """A message with its attachments put back; `opened` gives the descriptor of one by its path.

    Raises:
        Damaged: by the iterator: the octets do not fit each other.
        OSError: by the iterator: an attachment cannot be read.
    """
    place = 0
    held = b""
    for reference in references:
        while place < reference.start:
            if not held:
                held = next(pieces, b"")
                if not held:
                    raise Damaged(f"it ends before the attachment at {reference.start}")
            part, held = held[: reference.start - place], held[reference.start - place :]
            place += len(part)
            yield part
        came = 0
        for part in _attachment(reference, opened(reference.path)):
            came += len(part)
            if came > reference.size:
                break
            yield part
        if came != reference.size:
            raise Damaged(f"the attachment {reference.path} has not the {reference.size} octets it should have")
        place += came
    if held:
        yield held
    yield from pieces


def _attachment(reference: Reference, fd: int) -> Iterator[bytes]:
    """The octets of one in the message; base64 made again as it was."""
    try:
        line_octets = reference.line // 4 * 3
        count = PIECE_OCTETS // line_octets * line_octets if line_octets else PIECE_OCTETS
        count = count or line_octets
        end = b"\r\n" if reference.crlf else b"\n"
        first = True
        while data := _read(fd, count):
            if not line_octets:
                yield data
                continue
            text = base64.b64encode(data)
            size = reference.line
            lines = end.join([text[at : at + size] for at in range(0, len(text), size)])
            yield lines if first else end + lines
            first = False
    finally:
        os.close(fd)


def _read(fd: int, count: int) -> bytes:
    """So many octets, fewer only at the end: a file of a network may give less at a time."""
    data = os.read(fd, count)
    while data and len(data) < count and (more := os.read(fd, count - len(data))):
        data += more
    return data


def collected(pieces: Iterator[bytes], size: int | None, name: str) -> Body:
    """A body of exactly `size` octets (None: however many): in memory, or above `STREAM_OCTETS` in an unlinked file.

    Raises:
        Damaged: more or fewer octets come.
        MessageUnreadable: there is no room in TMPDIR.
    """
    parts: list[bytes] = []
    came = 0
    for part in pieces:
        came += len(part)
        if size is not None and came > size:
            _demand_size(came, size)
        parts.append(part)
        if came > STREAM_OCTETS:
            return _spilt(_chained(b"".join(parts), pieces), size, name)
    _demand_size(came, size)
    return b"".join(parts)


def _spilt(pieces: Iterator[bytes], size: int | None, name: str) -> Body:
    came = 0
    with tempfile.TemporaryFile(buffering=0) as file:
        for part in pieces:
            came += len(part)
            if size is not None and came > size:
                _demand_size(came, size)
            view = memoryview(part)
            while view:
                try:
                    view = view[file.write(view) :]
                except OSError as error:
                    raise MessageUnreadable(
                        f"{name}: no room in a temporary file: {error.strerror}",
                        hint="TMPDIR says where such files are made",
                        code="nospace" if error.errno in NO_SPACE else "unreadable",
                    ) from error
        _demand_size(came, size)
        fd = os.dup(file.fileno())
    try:
        return FileBody(fd, name=name, private=True)
    except BaseException:
        os.close(fd)
        raise


def _demand_size(came: int, size: int | None) -> None:
    if size is not None and came != size:
        raise Damaged(f"it has {'more than' if came > size else f'{came} of'} {size} octets")
