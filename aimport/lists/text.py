"""The file of a list: held open, read from its start as often as needed, line by line, in flat memory.

What cannot be read twice (stdin, a pipe) is copied to a nameless temporary file. UTF-8 and UTF-16, with and without a
byte order mark, LF and CRLF.
"""

from __future__ import annotations

import codecs
import io
import os
import stat
from collections.abc import Generator
from typing import BinaryIO, Final

from aimport.errors import UsageError
from aimport.lists.rows import Wrong

MAX_LINE: Final = 1024 * 1024
_PIECE: Final = 128 * 1024
_MARKS: Final = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class Held:
    """An open file that nobody else closes; it is closed when the last one lets go of it."""

    def __init__(self, descriptor: int, path: str = "") -> None:
        self.descriptor = descriptor
        self.path = path
        """Where it lies; empty for what has no name."""

    def __del__(self) -> None:
        os.close(self.descriptor)

    def version(self) -> tuple[int, int]:
        """Changes when the file is written to. A directory's entries may come and go: its rows are what is there."""
        state = os.fstat(self.descriptor)
        return (0, 0) if stat.S_ISDIR(state.st_mode) else (state.st_size, state.st_mtime_ns)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(os.fstat(self.descriptor).st_mode)


def hold(source: str, name: str, stdin: BinaryIO | None, *, copy: bool) -> tuple[Held, int | None]:
    """The list `source` as a file that can be read twice, and its mode when it lies where others could read it.

    With `copy` it is as it was, whatever is written to it later.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        if source == "-":
            import sys

            return _spooled(stdin or sys.stdin.buffer), None
        held = Held(os.open(source, os.O_RDONLY | os.O_CLOEXEC), source)
        mode = os.fstat(held.descriptor).st_mode
        if stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and not copy):
            return held, mode
        with open(held.descriptor, "rb", closefd=False) as stream:
            return _spooled(stream, source), mode if stat.S_ISREG(mode) else None
    except (OSError, ValueError) as exc:
        raise UsageError(f"{name}: cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc


def _spooled(stream: BinaryIO, path: str = "") -> Held:
    import shutil
    import tempfile

    with tempfile.TemporaryFile() as spool:  # mode 0600, without a name
        shutil.copyfileobj(stream, spool)
        spool.flush()
        return Held(os.dup(spool.fileno()), path)


class _FromStart(io.RawIOBase):
    """Reads a held file from a place on, whoever else reads it."""

    def __init__(self, held: Held, at: int) -> None:
        self._held = held
        self._at = at

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # mypy: any buffer
        octets = os.pread(self._held.descriptor, len(buffer), self._at)
        buffer[: len(octets)] = octets
        self._at += len(octets)
        return len(octets)


class _Utf16(io.RawIOBase):
    """UTF-16 as UTF-8. What is no text stays none: a lone surrogate becomes octets that are not UTF-8."""

    def __init__(self, octets: io.RawIOBase, encoding: str) -> None:
        self._octets = octets
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._rest = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # mypy: any buffer
        while not self._rest and not self._ended:
            piece = self._octets.read(_PIECE) or b""
            self._ended = not piece
            try:
                text = self._decoder.decode(piece, final=self._ended)
            except UnicodeDecodeError:  # half a character at the end
                self._rest = b"\xff"
            else:
                self._rest = text.encode("utf-8", "surrogatepass")
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def reader(held: Held) -> io.BufferedReader[io.RawIOBase]:
    """The text as UTF-8 octets, without a byte order mark."""
    head = os.pread(held.descriptor, 4, 0)
    encoding = _MARKS.get(head[:2], "")
    start = 2 if encoding else 3 if head.startswith(codecs.BOM_UTF8) else 0
    if not start and len(head) == 4 and head[1] == head[3] == 0 and head[0] and head[2]:
        encoding = "utf-16-le"
    elif not start and len(head) == 4 and head[0] == head[2] == 0 and head[1] and head[3]:
        encoding = "utf-16-be"
    octets = _FromStart(held, start)
    return io.BufferedReader(_Utf16(octets, encoding) if encoding else octets, _PIECE)


def lines(held: Held) -> Generator[tuple[int, str] | Wrong, None, None]:
    """Every line with its number, without its end."""
    octets_of = reader(held)
    number = 0
    while octets := octets_of.readline(MAX_LINE + 1):
        number += 1
        if len(octets) > MAX_LINE and not octets.endswith(b"\n"):
            while octets and not octets.endswith(b"\n"):
                octets = octets_of.readline(MAX_LINE)
            yield Wrong(number, "the line is longer than 1 MiB")
            continue
        try:
            yield number, octets.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError as exc:
            what = "not UTF-16 text" if isinstance(octets_of.raw, _Utf16) else "not UTF-8 text"
            yield Wrong(number, f"{what} at octet {exc.start + 1}")
