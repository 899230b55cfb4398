"""What the processes of one run are told to do, and by whom: a file of one record beside the lock of the run.

    driver ── writes DIR/<run>/orders, holds DIR/<run>/lock ──▶ workers ask once a second

Nothing here needs the engine that started the workers, which may be dead or out of reach. A worker whose driver is gone
sees its lock free, or another driver's token: both mean to stop. Written in place, never replaced: over a network file
system another machine sees a new name late, and new content as soon as it opens the file.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path
from typing import Final, Literal, get_args

from aimport import seams
from aimport.errors import JournalError
from aimport.journal import LOCK

Word = Literal["work", "enough", "stop", "end"]
"""Go on; take no new users; let batches in flight finish; end at once."""

ORDERS: Final = "orders"
TOKEN_OCTETS: Final = 8
_LENGTH: Final = 2 * TOKEN_OCTETS + 1 + 8 + 1 + 8
"""Token, word, checksum."""


class Orders:
    """The driver's side. Whoever makes one holds the lock of the run."""

    def __init__(self, run: Path) -> None:
        self.token = seams.token(TOKEN_OCTETS)
        self.word: Word = "work"
        self._path = run / ORDERS
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._handle = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error
        self.give("work")

    def give(self, word: Word) -> None:
        """Tells all workers; they hear it within about a second."""
        self.word = word
        try:
            os.pwrite(self._handle, _record(self.token, word), 0)
            os.fsync(self._handle)
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._handle)


def ask(run: Path, token: str) -> Word:
    """What the driver with this token wants of its workers; "stop" when it has died, or another has taken over.

    Blocks for as long as the file system takes.
    """
    try:
        if not locked(run / LOCK):
            return "stop"
        given, word = _read(run / ORDERS)
    except FileNotFoundError:
        return "stop"
    return word if given == token else "stop"


def locked(path: Path) -> bool:
    """Whether a process holds this lock; also one of another machine, if the file system carries locks.

    Raises:
        OSError: there is no such file, or it cannot be locked at all.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def token_of(run: Path) -> str:
    """Whose orders they are.

    Raises:
        OSError
    """
    return _read(run / ORDERS)[0]


def _record(token: str, word: Word) -> bytes:
    text = f"{token} {word:<8} ".encode("ascii")
    return text + b"%08x" % zlib.crc32(text)


def _read(path: Path) -> tuple[str, Word]:
    for _ in range(10):  # one that is just being written
        with open(path, "rb") as file:
            record = file.read(_LENGTH)
        words = record.decode("ascii", "replace").split()
        for word in get_args(Word):
            if len(words) == 3 and words[1] == word and record == _record(words[0], word):
                return words[0], word
    return "", "stop"
