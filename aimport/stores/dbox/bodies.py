"""From stored octets to the message: decompress, put attachments back. Streams; blocks.

    stored ─▶ decompressed ─▶ attachments put back at their places ─▶ as long as the metadata say

The first octets say how a body is compressed. What comes out is held against the size that the metadata
promise while it comes, and against what may be: a bomb ends at its limit.
"""

from __future__ import annotations

import base64
import bz2
import lzma
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from aimport.errors import MessageUnreadable
from aimport.model import PIECE_OCTETS, STREAM_OCTETS, Body
from aimport.spool import NO_SPACE, FileBody
from aimport.stores import files
from aimport.stores.dbox.index import Damaged

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_OCTETS: Final = 4 << 30
"""Of a message; IMAP cannot carry more."""
MAX_RATIO: Final = 2000  # arbitrary; deflate reaches 1032, and a mail of one letter more by the others
FREE_OCTETS: Final = 64 << 20
"""So much may come out at any ratio."""
MAX_CHUNK: Final = 16 << 20
"""Of LZ4, whose blocks come whole; Dovecot writes 64 KiB."""
_LZ4: Final = b"Dovecot-LZ4\x0d\x2a\x9b\xc5"
_ENCRYPTED: Final = b"CRYPTED\x03\x07"
MAGIC_OCTETS: Final = 16


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """zlib's object with the words of the others."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max(max_length, 0))


def _kind(start: bytes) -> Callable[[], _Decompressor] | None:
    if start.startswith(b"\x1f\x8b"):
        return _Gzip
    if start.startswith(b"BZh") and start[3:4] in b"123456789" and len(start) > 3:
        return bz2.BZ2Decompressor
    if start.startswith(b"\xfd7zXZ\0"):
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=256 << 20)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return zstd.ZstdDecompressor
    return None


def is_compressed(start: bytes) -> bool:
    """By the first `MAGIC_OCTETS` of a stored body."""
    return start.startswith((_LZ4, _ENCRYPTED)) or _kind(start) is not None


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
    if start.startswith(_LZ4):
        yield from _lz4(_chained(start[len(_LZ4) :], pieces))
        return
    make = _kind(start)
    if make is None:
        yield from _chained(start, pieces)
        return
    came_in = came_out = 0
    tool = make()
    try:
        for piece in _chained(start, pieces):
            came_in += len(piece)
            while not tool.eof:
                out = tool.decompress(piece, PIECE_OCTETS)
                piece = b""
                came_out += len(out)
                _demand_ratio(came_in, came_out)
                if out:
                    yield out
                elif tool.needs_input:
                    break
            if tool.eof:
                break
    except (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, ValueError, EOFError) as error:
        raise Damaged(f"it cannot be decompressed: {error}") from error
    if not tool.eof:
        raise Damaged("its compressed octets have no end")


def _chained(start: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    if start:
        yield start
    yield from pieces


def _demand_ratio(came_in: int, came_out: int) -> None:
    if came_out > MAX_OCTETS or (came_out > FREE_OCTETS and came_out > MAX_RATIO * came_in):
        raise Damaged(f"{came_in} octets would become more than {came_out}")


def _lz4(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A chunk size, then chunks with their lengths; all lengths 32 bits big-endian."""
    try:
        import lz4.block
    except ImportError:
        raise MessageUnreadable(
            "it is compressed with LZ4", hint="pip install 'aimport[lz4]' brings what reads it", code="lz4"
        ) from None
    held = bytearray()
    most = -1
    wanted = 4
    came_in = came_out = 0
    for piece in pieces:
        held += piece
        came_in += len(piece)
        while len(held) >= wanted:
            if most < 0:
                most = int.from_bytes(held[:4], "big")
                del held[:4]
                if not 0 < most <= MAX_CHUNK:
                    raise Damaged(f"LZ4 chunks of {most} octets")
                continue
            size = int.from_bytes(held[:4], "big")
            if size > MAX_CHUNK + MAX_CHUNK // 255 + 16:
                raise Damaged(f"an LZ4 chunk of {size} octets")
            if len(held) < 4 + size:
                wanted = 4 + size
                break
            block = bytes(held[4 : 4 + size])
            del held[: 4 + size]
            wanted = 4
            try:
                out = lz4.block.decompress(block, uncompressed_size=most)
            except lz4.block.LZ4BlockError as error:
                raise Damaged(f"it cannot be decompressed: {error}") from error
            came_out += len(out)
            _demand_ratio(came_in, came_out)
            yield out
    if held or most < 0:
        raise Damaged("its compressed octets have no end")


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
