"""The content of a file by place, compressed or not, for worker threads.

    opened ──▶ Plain | Compressed ── read(start, stop) ──▶ octets
                                  └── body(start, stop) ──▶ LargeBody

A compressed file is read from its start on: places that ascend cost one pass, and nothing of it is unpacked to disk but
a single large message, in a file without a name.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final, Protocol

from anyio import from_thread

from aimport.errors import MailboxError
from aimport.model import PIECE_OCTETS, STREAM_OCTETS, Body
from aimport.spool import FileBody
from aimport.stores import files, inflate

SCAN_OCTETS: Final = 256 * 1024
"""A piece that is searched: it stays in the processor's cache (64 KiB are 0.6, 1 MiB 1.2 times as slow to read)."""

END: Final = 1 << 62
"""A place behind the last octet of any file."""

Signature = tuple[int, int, int, int]
"""Device, inode, octets, mtime in ns: alike before and after, the file is taken for unchanged."""

Change = Callable[[Iterable[bytes]], Iterator[bytes]]
"""What becomes of the octets of a body on their way."""


def regular(fd: int) -> int:
    """The same descriptor; closed, with an `OSError`, when it is that of no regular file."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "not a regular file")
    return fd


def signature(fd: int) -> Signature:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Octets(Protocol):
    """The content of a file, by place."""

    @property
    def limit(self) -> int | None:
        """Octets in all, where that is known before they are read."""
        ...

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """Everything from a place on.

        Raises:
            OSError
            MailboxError: it does not decompress.
        """
        ...

    def read(self, start: int, stop: int) -> bytes:
        """The octets between two places; fewer when the file ends before. Raises as `pieces`."""
        ...

    def body(self, head: bytes, start: int, stop: int, change: Change | None, name: str) -> SpanBody:
        """A large body: `head`, then the octets between two places, changed.

        Raises as `pieces`, or for want of room.
        """
        ...

    def signature(self) -> Signature: ...

    def close(self) -> None: ...


def opened(fd: int, path: str) -> Octets:
    """The content of an open file, which it owns from now on."""
    try:
        form = inflate.format_of(os.pread(fd, inflate.HEAD, 0))
    except BaseException:
        os.close(fd)
        raise
    return Plain(fd) if form is None else Compressed(fd, form, path)


class Plain:
    """A file as it is."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def limit(self) -> int | None:
        return os.fstat(self._fd).st_size

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        at = start
        while piece := os.pread(self._fd, SCAN_OCTETS, at):
            from_thread.check_cancelled()
            at += len(piece)
            yield piece

    def read(self, start: int, stop: int) -> bytes:
        return _pread(self._fd, start, stop)

    def body(self, head: bytes, start: int, stop: int, change: Change | None, name: str) -> SpanBody:
        return SpanBody(os.dup(self._fd), head, start, stop, change, name=name)

    def signature(self) -> Signature:
        return signature(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class Streamed:
    """Octets that come one after the other, each time from the first. Going back begins anew."""

    def __init__(self, begin: Callable[[], Iterator[bytes]]) -> None:
        self._begin = begin
        self._at = 0  # of `_data`
        self._data = b""
        self._coming: Iterator[bytes] | None = None

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        at = 0
        for piece in self._begin():
            if at + len(piece) > start:
                yield piece[max(0, start - at) :]
            at += len(piece)

    def _slices(self, start: int, stop: int) -> Iterator[bytes]:
        """The octets between two places, piece by piece; what lies before them is dropped."""
        if self._coming is None or start < self._at:
            self._at, self._data, self._coming = 0, b"", self._begin()
        while True:
            end = self._at + len(self._data)
            if end > start:
                part = self._data[max(0, start - self._at) : stop - self._at]
                start += len(part)
                if part:
                    yield part
            if start >= stop:
                return
            self._at, self._data = end, next(self._coming, b"")
            if not self._data:
                return

    def read(self, start: int, stop: int) -> bytes:
        return b"".join(self._slices(start, stop))

    def body(self, head: bytes, start: int, stop: int, change: Change | None, name: str) -> SpanBody:
        return spooled(self._slices(start, stop), name, head, change)


class Compressed(Streamed):
    """A file that decompresses on the way."""

    limit = None

    def __init__(self, fd: int, form: inflate.Format, path: str) -> None:
        super().__init__(self._inflated)
        self._fd = fd
        self._form = form
        self._path = path

    def _inflated(self) -> Iterator[bytes]:
        if need := inflate.missing(self._form):
            raise MailboxError(f"{self._path}: {self._form} cannot be read here", hint=need)
        try:
            yield from inflate.inflated(Plain(self._fd).pieces(), self._form)
        except (inflate.TooMuch, inflate.Damaged) as error:
            raise MailboxError(f"{self._path}: {error}") from error

    def signature(self) -> Signature:
        return signature(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def spooled(pieces: Iterable[bytes], name: str, head: bytes = b"", change: Change | None = None) -> SpanBody:
    """A body whose octets come once: they are kept in a file without a name (TMPDIR).

    Raises:
        OSError: there is no room, or whatever `pieces` raises.
    """
    with tempfile.TemporaryFile(buffering=0) as file:
        for part in pieces:
            from_thread.check_cancelled()
            view = memoryview(part)
            while view:
                view = view[file.write(view) :]
        fd = os.dup(file.fileno())
    return SpanBody(fd, head, 0, os.fstat(fd).st_size, change, name=name)


def read_file(fd: int, path: str) -> tuple[Body, os.stat_result, bool]:
    """The content of a message's own file as a body, its status, and whether it was compressed.

    The descriptor is taken. A large body keeps its file open; what was compressed and is large lies in an unnamed one.

    Raises:
        OSError: it cannot be read, is no regular file, or does not decompress.
    """
    body: Body | None = None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size <= STREAM_OCTETS:
            octets = files.read_all(fd, status.st_size)
            form = inflate.format_of(octets[: inflate.HEAD])
            if form is None:
                body = octets
                return body, status, False
            return _inflated((octets,), form, path), status, True
        form = inflate.format_of(os.pread(fd, inflate.HEAD, 0))
        if form is None:
            body = FileBody(fd, name=path)
            return body, status, False
        return _inflated(Plain(fd).pieces(), form, path), status, True
    finally:
        if not isinstance(body, FileBody):  # which owns it now
            os.close(fd)


def _inflated(pieces: Iterable[bytes], form: inflate.Format, path: str) -> Body:
    if need := inflate.missing(form):
        raise OSError(errno.EIO, f"{form} cannot be read here ({need})")
    coming = inflate.inflated(pieces, form)
    parts: list[bytes] = []
    size = 0
    try:
        for piece in coming:
            parts.append(piece)
            size += len(piece)
            if size > STREAM_OCTETS:
                return spooled(chain(parts, coming), path)
    except (inflate.TooMuch, inflate.Damaged) as error:
        raise OSError(errno.EIO, str(error)) from error
    return b"".join(parts)


def _pread(fd: int, start: int, stop: int) -> bytes:
    data = os.pread(fd, stop - start, start)
    if len(data) == stop - start or not data:
        return data
    parts = [data]
    at = start + len(data)
    while at < stop and (part := os.pread(fd, stop - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


class SpanBody:
    """A part of a file as a body (`aimport.model.LargeBody`); owns the descriptor. `head` goes before it.

    What lies around the part may change while it is read, as an mbox grows. `size`: octets in all, where that is known;
    a body that is changed is else read once to count them.
    """

    def __init__(
        self, fd: int, head: bytes, start: int, stop: int, change: Change | None, *, name: str, size: int | None = None
    ) -> None:
        self._fd = fd
        self.head = head
        self.start = start
        self.stop = stop
        self.change = change
        self.name = name
        self._turn = threading.Lock()
        self._finalizer = weakref.finalize(self, os.close, fd)
        self._edges = self._look()
        self._size = len(head) + stop - start if size is None else size
        if change is not None and size is None:
            self._size = sum(map(len, self.pieces()))

    def __len__(self) -> int:
        return self._size

    def pieces(self) -> Iterator[bytes]:
        yield self.head
        if self.change is None:
            yield from self._stored()
        else:
            yield from self.change(self._stored())

    def fileno(self) -> int:
        """The descriptor, which stays the body's.

        Raises:
            OSError: it is closed.
        """
        if not self._finalizer.alive:
            raise OSError(errno.EBADF, "the file was closed", self.name)
        return self._fd

    def close(self) -> None:
        with self._turn:
            self._finalizer()

    def _stored(self) -> Iterator[bytes]:
        at = self.start
        while at < self.stop:
            piece = self._read(at, min(PIECE_OCTETS, self.stop - at))
            if not piece:
                raise OSError(errno.EIO, "the file was shortened while it was read", self.name)
            at += len(piece)
            if at == self.stop and self._look() != self._edges:
                raise OSError(errno.EIO, "the file was changed while it was read", self.name)
            yield piece

    def _look(self) -> tuple[bytes, bytes]:
        """The first and the last octets: where others are, the file was written anew and not only added to."""
        return self._read(self.start, 512), self._read(max(self.start, self.stop - 512), 512)

    def _read(self, at: int, count: int) -> bytes:
        with self._turn:  # closed in between, the number might be another file's
            if not self._finalizer.alive:
                raise OSError(errno.EBADF, "the file was closed", self.name)
            return os.pread(self._fd, count, at)
