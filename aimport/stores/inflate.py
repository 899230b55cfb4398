"""Compressed octets become plain ones, piece by piece, with a limit on how many may come of how few.

    pieces ──▶ format_of ──▶ inflated ──▶ pieces of at most PIECE octets

gzip, bzip2, xz, zstd, and the LZ4 of Dovecot's compression plug-in, told by their first octets. Members that follow
one another are one content, as the tools of each format read them. Knows nothing of files or mail.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, Literal, Protocol, cast

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

Format = Literal["gzip", "bzip2", "xz", "zstd", "dovecot-lz4"]

MAGIC: Final[dict[bytes, Format]] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"Dovecot-LZ4\x0d\x2a\x9b\xc5": "dovecot-lz4",
}
HEAD: Final = max(map(len, MAGIC))
"""Octets that `format_of` needs to see."""
PIECE: Final = 256 * 1024
RATIO: Final = 200  # arbitrary; real mail comes to 3-20, the worst log files to about 150
FREE: Final = 32 << 20
"""So many octets may come of anything: a short text that repeats itself is no attack."""
XZ_MEMORY: Final = 256 << 20
"""Octets that a dictionary may take; `xz -9` asks for 65 MiB."""
LZ4_BLOCK: Final = 4 << 20
"""Dovecot's blocks are of 64 KiB; a header that announces more than this is damaged."""


class TooMuch(ValueError):
    """More octets come out than anybody has put in: a bomb, or damage."""


class Damaged(ValueError):
    """It does not decompress, or ends early. What came until then is good."""


class _Step(Protocol):
    """A decompressor of one member."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Block(Protocol):
    """The module `lz4.block`."""

    def decompress(self, data: bytes, *, uncompressed_size: int) -> bytes: ...


def format_of(head: bytes) -> Format | None:
    """The format of a content that begins so; None: it is none of these."""
    for magic, name in MAGIC.items():
        if head.startswith(magic) and (name != "bzip2" or head[3:4] in (b"%d" % level for level in range(1, 10))):
            return name
    return None


def inflated(pieces: Iterable[bytes], form: Format, *, ratio: int = RATIO, free: int = FREE) -> Iterator[bytes]:
    """The content of what comes in `pieces`.

    Raises:
        TooMuch: before the octets beyond the limit are made.
        Damaged
        ModuleNotFoundError: the format needs a package that is not installed; `missing` says which.
    """
    taken = given = 0

    def counted() -> Iterator[bytes]:
        nonlocal taken
        for piece in pieces:
            taken += len(piece)
            yield piece

    inner = _lz4(counted()) if form == "dovecot-lz4" else _members(counted(), _maker(form))
    try:
        for piece in inner:
            given += len(piece)
            if given > free and given > ratio * taken:
                raise TooMuch(f"{given} octets come of {taken}: more than {ratio} times as many")
            yield piece
    except (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, EOFError) as error:
        raise Damaged(f"damaged {form}: {error}") from error


def missing(form: Format) -> str:
    """What to install for this format; "": nothing is missing."""
    if form == "dovecot-lz4":
        try:
            importlib.import_module("lz4.block")
        except ImportError:
            return "pip install 'aimport[lz4]'"
    return ""


def _members(pieces: Iterable[bytes], make: Callable[[], _Step]) -> Iterator[bytes]:
    step = make()
    begun = False
    for data in pieces:
        while True:
            if step.eof:
                data = data.lstrip(b"\0")  # tapes and block devices pad with NUL
                if not data:
                    break
                step = make()
            out = step.decompress(data, PIECE)
            begun = True
            if out:
                yield out
            data = step.unused_data if step.eof else b""
            if not step.eof and len(out) < PIECE:
                break  # it wants more
    if begun and not step.eof:
        raise Damaged("it ends early")


class _Gzip:
    """zlib's decompressor with the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._left = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        out = self._inner.decompress(self._left + data, max_length)
        self._left = self._inner.unconsumed_tail
        return out


def _maker(form: Format) -> Callable[[], _Step]:
    match form:
        case "gzip":
            return _Gzip
        case "bzip2":
            return bz2.BZ2Decompressor
        case "xz":
            return partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    return zstd.ZstdDecompressor


def _lz4(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Dovecot's container: magic, the largest block, then blocks with their lengths (all of them big-endian)."""
    block = cast(_Block, importlib.import_module("lz4.block"))
    data = b""

    def take(count: int, *, may_end: bool = False) -> bytes:
        nonlocal data
        while len(data) < count:
            piece = next(pieces, None)
            if piece is None:
                if may_end and not data:
                    return b""
                raise Damaged("it ends early")
            data += piece
        taken, data = data[:count], data[count:]
        return taken

    (largest,) = struct.unpack(">I", take(HEAD + 4)[HEAD:])
    if not 0 < largest <= LZ4_BLOCK:
        raise Damaged(f"a block of {largest} octets")
    while length := take(4, may_end=True):
        (size,) = struct.unpack(">I", length)
        if not 0 < size <= 2 * largest:
            raise Damaged(f"a compressed block of {size} octets")
        try:
            yield block.decompress(take(size), uncompressed_size=largest)
        except RuntimeError as error:  # its LZ4BlockError is one
            raise Damaged(str(error)) from error
