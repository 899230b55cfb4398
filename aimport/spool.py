"""Octets that are too many for memory: bodies in files, and where a literal goes that arrives in pieces.

    server ──▶ write, write, ... ──▶ Spool ── flush ──▶ unlinked file in TMPDIR ── body ──▶ FileBody

A spool's file has no name and goes with its descriptor: nothing is left behind, whatever ends us.
Threads of anyio and not aiofiles: aiofiles gives a cancelled task back while its thread still
writes, and a descriptor that is closed then may already be another file's.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, overload

from anyio import to_thread

from aimport.errors import MessageUnreadable
from aimport.model import PIECE_OCTETS

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FileBody:
    """The content of a file as a body (`aimport.model.LargeBody`); owns the descriptor `fd`.

    Reads by position, so several readings may go on at once. The descriptor is closed by `close`,
    or with this object. `name` is for people. `private`: nobody else changes these octets, whatever the mtime
    says (NFS sets it when it likes, and an mdbox file grows). `part`: place and number of the octets meant, where
    they are not the whole file.

    Raises:
        OSError: the file cannot be looked at; `fd` is then still the caller's.
    """

    def __init__(self, fd: int, *, name: str, private: bool = False, part: tuple[int, int] | None = None) -> None:
        self._fd = fd
        self.part = part
        self.name = name
        self.private = private
        self._seen = _look(fd)
        self._turn = threading.Lock()
        self._finalizer = weakref.finalize(self, os.close, fd)

    def __len__(self) -> int:
        return self.part[1] if self.part else self._seen[0]

    def pieces(self) -> Iterator[bytes]:
        at, size = 0, len(self)
        while at < size:
            piece = self._read(at, min(PIECE_OCTETS, size - at))
            at += len(piece)
            if at == size:
                self._demand_unchanged()
            yield piece

    def view(self) -> FileView:
        """The same octets by position, for whoever looks for something in them."""
        return FileView(self)

    def fileno(self) -> int:
        """The descriptor, which stays the body's.

        Raises:
            OSError: it is closed.
        """
        self._demand_open()
        return self._fd

    def close(self) -> None:
        with self._turn:
            self._finalizer()

    def _read(self, at: int, count: int) -> bytes:
        with self._turn:  # closed in between, the number might be another file's
            self._demand_open()
            try:
                piece = os.pread(self._fd, count, at + (self.part[0] if self.part else 0))
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.name) from error
        if not piece:
            raise OSError(errno.EIO, f"the file ends after {at} of {len(self)} octets", self.name)
        return piece

    def _demand_unchanged(self) -> None:
        """Or what was hashed in one reading is not what is sent in the next."""
        if not self.private:
            with self._turn:
                self._demand_open()
                seen = _look(self._fd)
            if seen != self._seen:
                raise OSError(errno.EIO, "the file was changed while it was read", self.name)

    def _demand_open(self) -> None:
        if not self._finalizer.alive:
            raise OSError(errno.EBADF, "the file was closed", self.name)


class FileView:
    """Octets of a `FileBody` by position, a few pieces of it in memory. Blocks: use it in a worker thread.

    Raises:
        OSError: by everything that reads.
    """

    def __init__(self, body: FileBody) -> None:
        self._body = body
        self._piece = lru_cache(maxsize=4)(self._read)

    def __len__(self) -> int:
        return len(self._body)

    def _read(self, number: int) -> bytes:
        at = number * PIECE_OCTETS
        wanted = min(PIECE_OCTETS, len(self) - at)
        piece = self._body._read(at, wanted)
        while len(piece) < wanted:
            piece += self._body._read(at + len(piece), wanted - len(piece))
        return piece

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> bytes: ...
    def __getitem__(self, place: int | slice) -> int | bytes:
        if isinstance(place, int):
            return self[place : place + 1][0]
        start, stop, _ = place.indices(len(self))
        pieces = []
        while start < stop:
            number, offset = divmod(start, PIECE_OCTETS)
            piece = self._piece(number)[offset : offset + stop - start]
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def find(self, wanted: bytes, start: int = 0, end: int | None = None, /) -> int:
        """As that of bytes; `wanted` is shorter than a piece."""
        last = len(self) if end is None else min(end, len(self))
        while start < last:
            number = start // PIECE_OCTETS
            border = min((number + 1) * PIECE_OCTETS, last)
            found = self._piece(number).find(wanted, start - number * PIECE_OCTETS, border - number * PIECE_OCTETS)
            if found >= 0:
                return number * PIECE_OCTETS + found
            across = self[max(start, border - len(wanted) + 1) : min(border + len(wanted) - 1, last)].find(wanted)
            if across >= 0:
                return max(start, border - len(wanted) + 1) + across
            start = border
        return -1


def _look(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


class Spool:
    """Takes the octets of a literal (`aimport.imap.fragments.Sink`), `size` of them in all.

    When its file cannot be written the octets to come are dropped, so that the connection stays in
    step, and `body` says why. One that is given up needs no end: the file goes with it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.pending = 0
        """Octets that are not in the file yet."""
        self._pieces: list[bytes] = []
        self._stored = 0
        self._fd = -1
        self._finalizer: weakref.finalize[[int], Spool] | None = None
        self._failure: MessageUnreadable | None = None

    def write(self, piece: bytes, /) -> None:
        """Adds octets, in memory."""
        if self._failure is None:
            self._pieces.append(piece)
            self.pending += len(piece)

    def abandon(self) -> None:
        """Nobody wants it any more: what is held is dropped, and so is what comes."""
        self._give_up(MessageUnreadable("a message was given up while it came", code="unreadable"))

    async def flush(self) -> None:
        """Moves what is in memory to the file, in one thread hop. One task at a time."""
        pieces = self._pieces[:]
        if not pieces:
            return
        try:
            # Cancelled before the thread began or when it was done: the same octets go to the same place again.
            stored = await to_thread.run_sync(self._store, pieces)
        except OSError as error:
            self._fail(error)
            return
        del self._pieces[: len(pieces)]
        self.pending -= stored
        self._stored += stored

    async def body(self) -> FileBody:
        """The whole literal, once; flushes first.

        Raises:
            MessageUnreadable: the file could not be written. `code` is "nospace" when there is no
                room in TMPDIR, else "unreadable".
            ValueError: octets are missing.
        """
        await self.flush()
        if self._failure is not None:
            raise self._failure
        if self._stored != self.size or self._finalizer is None:
            raise ValueError(f"{self._stored} of {self.size} octets are there")
        body = FileBody(self._fd, name=f"a temporary file in {tempfile.gettempdir()}", private=True)
        self._finalizer.detach()
        self._finalizer = None
        return body

    def _store(self, pieces: Sequence[bytes]) -> int:
        if self._finalizer is None:
            with tempfile.TemporaryFile(buffering=0) as file:
                self._fd = os.dup(file.fileno())
            self._finalizer = weakref.finalize(self, os.close, self._fd)
        octets = memoryview(b"".join(pieces))
        at = 0
        while at < len(octets):
            written = os.pwrite(self._fd, octets[at:], self._stored + at)
            if written <= 0:
                raise OSError(errno.EIO, "nothing is written any more")
            at += written
        return at

    def _fail(self, error: OSError) -> None:
        self._give_up(
            MessageUnreadable(
                f"a message of {self.size} octets has no room in a temporary file: {error.strerror or error}",
                hint="TMPDIR says where such files are made",
                code="nospace" if error.errno in NO_SPACE else "unreadable",
            )
        )

    def _give_up(self, failure: MessageUnreadable) -> None:
        self._pieces.clear()
        self.pending = 0
        if self._finalizer is not None:
            self._finalizer()
        self._failure = failure
