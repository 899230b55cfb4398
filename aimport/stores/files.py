"""Files as all local stores open and read them: nothing is followed, nothing blocks, only so many at once.

Every path is one name relative to a directory descriptor: what lies in a mailbox cannot lead out of it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import ClassVar, Final

from aimport.errors import (
    AccessRefused,
    AimportError,
    DestinationFull,
    MailboxError,
    MailboxNotFound,
    OverQuota,
    Unavailable,
)
from aimport.names import printable

logger = logging.getLogger(__name__)

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
WIDE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
    | {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE}
)
"""These say nothing about one message but about the place it should go to."""
FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_NOATIME: Final = getattr(os, "O_NOATIME", 0)


def open_file(name: str, dir_fd: int) -> int:
    """A file for reading that does not block, follow or (where we may) change its atime."""
    try:
        return os.open(name, FILE | _NOATIME, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, FILE, dir_fd=dir_fd)  # O_NOATIME is for the owner


def open_regular(name: str, dir_fd: int) -> int:
    """As `open_file`.

    Raises:
        OSError: also when it is no regular file.
    """
    fd = open_file(name, dir_fd)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file")


def below(steps: Sequence[str], root: int) -> int:
    """The directory at the end of these steps; -1 when there is none."""
    fd = os.dup(root)
    for step in steps:
        above = fd
        try:
            fd = os.open(step, DIRECTORY, dir_fd=above)
        except FileNotFoundError:
            return -1
        finally:
            os.close(above)
    return fd


def on_disk(step: str, above: int) -> str:
    """The true name of what is shown with `\\xNN` for octets that are not UTF-8."""
    if "\\x" in step:
        for name in os.listdir(above):
            if printable(name) == step:
                return name
    return step


def read_all(fd: int, size: int) -> bytes:
    """All octets of a file; `size` is what stat says and is not believed."""
    body = os.read(fd, size + 1)
    if len(body) == size:
        return body
    parts = [body]
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def date_of(seconds: int, name: str) -> datetime:
    """Received date of the message `name`; years that have no date become the nearest that have one."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        logger.warning("date out of range name=%r seconds=%d", name, seconds)
        return (datetime.min if seconds < 0 else datetime.max.replace(microsecond=0)).replace(tzinfo=UTC)


def read_control(name: str, dir_fd: int, path: str, limit: int) -> bytes | None:
    """A control file; None, with a warning, when it is a link, no file, too large or unreadable.

    `path`: of its directory, for people.

    Raises:
        Unavailable: too many open files, or no memory: without it flags would be lost and order changed.
    """
    try:
        fd = open_file(name, dir_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise translated(error, f"{path}/{name}") from error
        logger.warning("file ignored path=%r reason=%s", f"{path}/{name}", error.strerror)
        return None
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
            return read_all(fd, status.st_size)[: limit + 1]
        logger.warning("file ignored path=%r reason=%s", f"{path}/{name}", "not a file, or too large")
        return None
    except OSError as error:
        logger.warning("file ignored path=%r reason=%s", f"{path}/{name}", error.strerror)
        return None
    finally:
        os.close(fd)


def group_in(directory: int) -> int:
    """The group that is given to what is made in a directory; -1: the one that the kernel chooses is right.

    Dovecot's rule: that of the directory, where it has other rights than everybody (`mailbox_list_get_permissions()`).
    """
    status = os.fstat(directory)
    shared = (status.st_mode >> 3 & 7) != (status.st_mode & 7)
    return status.st_gid if shared and not status.st_mode & stat.S_ISGID and status.st_gid != os.getegid() else -1


def share(fd: int, mode: int, group: int = -1) -> None:
    """Gives what was made its mode, whatever the umask has left of it, and its group; rights go to no other group.

    Raises:
        OSError
    """
    if group >= 0:
        try:
            os.fchown(fd, -1, group)
        except PermissionError:
            logger.warning("group not given gid=%d uid=%d reason=%s", group, os.geteuid(), "not a member of it")
            mode &= ~0o070
    os.fchmod(fd, mode)


def translated(error: OSError, path: str, *, wide: bool = False) -> AimportError:
    """What an operating system error on `path` means; `wide`: on the root, so for the whole user."""
    text = f"{path}: {error.strerror or error}"
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        text += "; symbolic links are not followed"
    match error.errno:
        case errno.ENOSPC | errno.EROFS:
            return DestinationFull(text)
        case errno.EDQUOT:
            return OverQuota(text)
        case errno.EMFILE | errno.ENFILE | errno.ENOMEM:
            return Unavailable(text, hint="fewer users or lanes at once, or a higher limit (ulimit -n)")
        case errno.EACCES | errno.EPERM if wide:
            return AccessRefused(text)
        case errno.ENOENT | errno.ESTALE:
            return MailboxNotFound(text, code="NONEXISTENT")
    return MailboxError(text)


class Turns:
    """How many threads read files at once: one while files come from memory, more while they come slowly.

    Each system call lets go of the interpreter lock, so two threads that read from the page cache
    mostly wait for each other: 2 took 58,000 context switches for 10,000 messages, one 32,000 and a
    tenth less time (measured). A disk or a network that takes its time is asked by many.
    """

    MOST: ClassVar[int] = 32  # arbitrary
    SLOW_S: ClassVar[float] = 0.001
    """A file that takes longer came from no page cache; a wait for the interpreter lock is shorter."""
    FAST_S: ClassVar[float] = 0.0003

    def __init__(self) -> None:
        self._allowed = 1
        self._used = 0
        self._free = threading.Condition()

    def __enter__(self) -> Turns:
        with self._free:
            self._free.wait_for(lambda: self._used < self._allowed)
            self._used += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._free:
            self._used -= 1
            self._free.notify()

    def took(self, files: int, seconds: float) -> None:
        """So many files took so long: one turn more, or one fewer."""
        with self._free:
            if seconds > self.SLOW_S * files:
                self._allowed = min(self._allowed + 1, self.MOST)
                self._free.notify()
            elif seconds < self.FAST_S * files:
                self._allowed = max(self._allowed - 1, 1)


READ_TURNS: Final = Turns()
FILE_TURNS: Final = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))
"""Threads that read, write or rename files at the same time; who waits for a sync gives its turn away.

Each system call lets go of the interpreter lock: with 20 threads at it, 10,000 messages cost 880,000
futex calls and 4.7 s of kernel time, with as many threads as processors 1.9 s, and 1.6 times the
throughput (measured, Maildir to Maildir, 2 processors).
"""
