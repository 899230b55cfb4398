"""File work below a Maildir, for worker threads: open without following, scan, lock, replace, sync.

Every path is one name relative to a directory descriptor, and no symbolic link is followed
below the location's own parents: what lies in a mailbox cannot lead out of it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import ClassVar, Final

from anyio import from_thread

from aimport.errors import (
    AccessRefused,
    MailboxError,
    SourceMissing,
)
from aimport.model import MessageKey
from aimport.names import printable
from aimport.stores.files import DIRECTORY, FILE, on_disk, read_control, share, translated
from aimport.stores.maildir.columns import Columns
from aimport.stores.maildir.names import Layout, courier_words, key_of, parse_courier_list, parse_keywords, split_name

logger = logging.getLogger(__name__)

UIDLIST: Final = "dovecot-uidlist"
KEYWORDS: Final = "dovecot-keywords"
COURIER_UIDS: Final = "courierimapuiddb"
COURIER_KEYWORDS: Final = "courierimapkeywords"
MAX_UIDLIST: Final = 64 << 20
MAX_SMALL: Final = 1 << 20
LOCK_STALE_S: Final = 120.0
"""A lock this old belongs to nobody (so does Dovecot judge)."""
LOCK_DEADLINE_S: Final = LOCK_STALE_S + 10
_SCANS: Final = 20
_QUIET_SCANS: Final = 5
"""Readings of a changing folder that must find nothing new before it is taken as complete.

A rename hides a message from about one reading in thirty (a client renaming without a pause, 200
messages); three readings in all were seen to miss one.
"""
Place = tuple[int, str]
"""Where a message is now: directory descriptor and file name."""


@dataclass(slots=True, kw_only=True)
class Folder:
    """The open directories of one mailbox; -1 where there is none. `path` is for people."""

    path: str
    fd: int = -1
    cur: int = -1
    new: int = -1
    tmp: int = -1
    control: int = -1
    _stack: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self._stack.close()

    def opened(self, name: str, dir_fd: int | None) -> int:
        """A descriptor of a directory, closed with the folder.

        Raises:
            OSError: also for a symbolic link.
        """
        fd = os.open(name, DIRECTORY, dir_fd=dir_fd)
        self._stack.callback(os.close, fd)
        return fd


def open_root(layout: Layout) -> int:
    """The location's root.

    Raises:
        SourceMissing, AccessRefused
    """
    try:
        return os.open(layout.root, DIRECTORY)
    except OSError as error:
        if os.path.islink(layout.root):
            text = f"{layout.root} is a symbolic link"
            raise AccessRefused(text, hint="give the path that it points to") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise SourceMissing(f"{layout.root}: {error.strerror}") from error
        raise translated(error, layout.root, wide=True) from error


def open_folder(layout: Layout, directory: str) -> Folder:
    """A mailbox by its directory (`Layout.directory`); `cur`, `new`, `tmp` and control where they are.

    Raises:
        OSError: the directory cannot be opened, or one in it for another reason than not being there.
        SourceMissing, AccessRefused: the root.
    """
    folder = Folder(path=layout.place(directory))
    try:
        if not directory and layout.inbox:
            folder.fd = folder.opened(layout.inbox, None)
        else:
            folder.fd = open_root(layout)
            folder._stack.callback(os.close, folder.fd)
            for step in layout.steps(directory):
                folder.fd = folder.opened(on_disk(step, folder.fd), folder.fd)
        for name in ("cur", "new", "tmp"):
            try:
                setattr(folder, name, folder.opened(name, folder.fd))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
        folder.control = folder.fd
        if layout.control:
            try:
                folder.control = folder.opened(layout.control_place(directory), None)
            except OSError:
                folder.control = -1
    except BaseException:
        folder.close()
        raise
    return folder


def read_small(folder: Folder, name: str, limit: int = MAX_SMALL) -> bytes | None:
    """A control file of a folder, as `files.read_control`."""
    return None if folder.control < 0 else read_control(name, folder.control, folder.path, limit)


class Keywords:
    """The letters of a folder's `dovecot-keywords`, read again when the file has changed."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._seen: tuple[int, ...] = ()
        self._letters: dict[str, str] = {}

    def letters(self) -> dict[str, str]:
        """Letter → name."""
        seen: tuple[int, ...]
        try:
            status = os.stat(KEYWORDS, dir_fd=self._folder.control, follow_symlinks=False)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            seen = ()
        if seen != self._seen:
            self._letters = parse_keywords(read_small(self._folder, KEYWORDS) or b"")
            self._seen = seen
        return self._letters


def courier_keywords(folder: Folder) -> dict[str, frozenset[str]]:
    """Base name (printable) → keywords that Courier keeps in a directory of its own.

    `:list` holds what was gathered, files named as the message what came since (seen of Courier 5.0).
    """
    try:
        fd = os.open(COURIER_KEYWORDS, DIRECTORY, dir_fd=folder.fd)
    except OSError:
        return {}
    path = f"{folder.path}/{COURIER_KEYWORDS}"
    try:
        found = parse_courier_list(read_control(":list", fd, path, MAX_UIDLIST) or b"")
        # `.NUMBER.BASE` are of before `BASE`.
        for name in sorted(os.listdir(fd), key=lambda name: (not name.startswith("."), name)):
            base = name[1:].partition(".")[2] if name.startswith(".") else name
            if name != ":list" and base:
                data = read_control(name, fd, path, MAX_SMALL)
                if data is not None:
                    found[printable(base)] = courier_words(data)
        return found
    except OSError as error:
        logger.warning("file ignored path=%r reason=%s", path, error.strerror)
        return {}
    finally:
        os.close(fd)


def scan_once(folder: Folder) -> dict[MessageKey, Place]:
    """As `scan`, in one reading: fast, and while the folder changes it may lack a message."""
    return {
        key_of(split_name(name)[0]): (fd, name)
        for fd in (folder.new, folder.cur)
        if fd >= 0
        for name in _entries(fd, [])
    }


def scan(folder: Folder, *, warn: bool = False) -> dict[MessageKey, Place]:
    """Every message of a folder: key → where it is now.

    `new` is read before `cur`, so that a message on its way is seen at least once; and both
    again while they change, because a renamed file may escape one reading. One base in two
    files is two messages: the second key ends in `/new` (or `/2`), which no file name holds.

    Raises:
        OSError: a directory cannot be read.
    """
    found: dict[MessageKey, Place] = {}
    twins: dict[MessageKey, set[Place]] = {}
    odd: list[str] = []
    directories = [fd for fd in (folder.new, folder.cur) if fd >= 0]
    quiet = 0
    for _ in range(_SCANS):
        before = [os.fstat(fd).st_mtime_ns for fd in directories]
        now: dict[MessageKey, Place] = {}
        twins_now: dict[MessageKey, set[Place]] = {}
        odd.clear()
        for fd in directories:
            for name in _entries(fd, odd):
                key = key_of(split_name(name)[0])
                place = (fd, name)
                first = now.setdefault(key, place)
                if first is not place:
                    twins_now.setdefault(key, {first}).add(place)
        if [os.fstat(fd).st_mtime_ns for fd in directories] == before:
            found, twins = now, twins_now
            break
        quiet = quiet + 1 if found.keys() >= now.keys() else 0
        for key, place in now.items():
            places = {place, *twins_now.get(key, ())}
            before_that = found.get(key, place)
            if before_that not in places or len(places) > 1:
                twins.setdefault(key, {before_that}).update(places)
            found[key] = place
        if quiet == _QUIET_SCANS:
            break
    if odd and warn:
        logger.warning("entries skipped path=%r count=%d first=%r", folder.path, len(odd), odd[0])
    for key, places in twins.items():
        alive = sorted((place for place in places if exists(*place)), key=lambda place: (place[0] == folder.new, place))
        for index, place in enumerate(alive):
            suffix = "" if index == 0 else "/new" if place[0] == folder.new else f"/{index + 1}"
            found[MessageKey(key + suffix)] = place
    return found


def gather(folder: Folder) -> Columns | None:
    """Every message of a folder that keeps still, in one reading; None: it did not, and `scan` is to be asked.

    Raises:
        OSError: a directory cannot be read.
    """
    found = Columns()
    odd: list[str] = []
    directories = [fd for fd in (folder.new, folder.cur) if fd >= 0]
    before = [os.fstat(fd).st_mtime_ns for fd in directories]
    for fd in (folder.new, folder.cur):
        if fd >= 0:
            found.extend(_entries(fd, odd))
        if fd == folder.new:
            found.new_ends()
    if [os.fstat(fd).st_mtime_ns for fd in directories] != before:
        return None
    if odd:
        logger.warning("entries skipped path=%r count=%d first=%r", folder.path, len(odd), odd[0])
    return found


def _entries(fd: int, odd: list[str]) -> Iterator[str]:
    """Names in a directory that are not hidden; directories go to `odd`."""
    with os.scandir(fd) as entries:
        for count, entry in enumerate(entries):
            if count % 1024 == 0:
                from_thread.check_cancelled()
            if entry.name[0] == ".":
                continue
            if entry.is_dir(follow_symlinks=False):
                odd.append(entry.name)
            else:  # a link or a FIFO has a message's name: reading it tells that it is none
                yield entry.name


def exists(fd: int, name: str) -> bool:
    """Whether there is something of this name, whatever it is."""
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def make_path(path: str, durable: bool) -> None:
    """A directory and the ones above it, 0700 where they are missing."""
    if os.path.lexists(path):
        return
    above = os.path.dirname(path.rstrip("/")) or "/"
    make_path(above, durable)
    fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
    try:
        make_directory(fd, os.path.basename(path.rstrip("/")), 0o700)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(dir_fd: int, name: str, mode: int, group: int = -1) -> bool:
    """A directory where there is none; whether it was made."""
    try:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        return False
    if mode != 0o700 or group >= 0:
        fd = os.open(name, DIRECTORY, dir_fd=dir_fd)
        try:
            share(fd, mode, group)
        finally:
            os.close(fd)
    return True


@contextmanager
def dotlock(dir_fd: int, name: str, deadline_s: float = LOCK_DEADLINE_S) -> Iterator[None]:
    """Hold `name`, a lock file that Dovecot respects too. Waits in the thread; stale locks are removed.

    Raises:
        MailboxError: somebody else holds it until the deadline.
        OSError: it cannot be made.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=dir_fd)
            break
        except FileExistsError:
            _remove_stale(dir_fd, name)
        if time.monotonic() > deadline:
            raise MailboxError(f"{name} is held by another program", hint="remove it when none is running")
        time.sleep(0.02)
    try:
        os.write(fd, f"{os.getpid()}:{socket.gethostname()}".encode())  # as Dovecot's file_dotlock_create()
        yield
    finally:
        mine = os.fstat(fd).st_ino
        os.close(fd)
        with suppress(FileNotFoundError):  # held so long that another has called it stale
            if os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino == mine:
                os.unlink(name, dir_fd=dir_fd)


def _remove_stale(dir_fd: int, name: str) -> None:
    """Remove a lock whose owner is gone: a process of this host that was killed, or nobody for long."""
    with suppress(FileNotFoundError):
        fd = os.open(name, FILE, dir_fd=dir_fd)
        try:
            status = os.fstat(fd)
            pid, _, host = os.read(fd, 300).decode("utf-8", "replace").partition(":")
        finally:
            os.close(fd)
        dead = host == socket.gethostname() and pid.isdecimal() and not _lives(int(pid))
        if not dead and time.time() - status.st_mtime <= LOCK_STALE_S:
            return
        if os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino == status.st_ino:
            os.unlink(name, dir_fd=dir_fd)
            logger.warning("stale lock removed name=%r owner=%r", name, pid[:20])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def replace_file(dir_fd: int, name: str, data: bytes, *, mode: int, group: int = -1, durable: bool) -> None:
    """Write a control file beside its old version and rename it into place. The caller holds its lock.

    Its mtime grows by a second at least: Dovecot compares whole seconds to see a change.
    """
    new_name = f"{name}.aimport"
    try:
        now = max(int(time.time()), int(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mtime) + 1)
    except FileNotFoundError:
        now = int(time.time())
    write_file(dir_fd, new_name, (data,), mode=mode, group=group, mtime_ns=now * 1_000_000_000, durable=durable)
    os.rename(new_name, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


_FICLONE: Final = 0x40049409
CANNOT_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EBADF})
"""Said where files cannot share their octets: the file system, the kernel, or one of the two files."""


def write_file(
    dir_fd: int,
    name: str,
    pieces: Iterable[bytes] | int,
    *,
    mode: int,
    group: int = -1,
    mtime_ns: int,
    durable: bool,
) -> int:
    """Write a new file, instead of a leftover of that name, and give it its mtime. Returns the mtime it kept.

    A descriptor in the place of `pieces` is that of a file whose octets the new one shares until one of them is written
    to (FICLONE: btrfs, XFS and others).

    Raises:
        OSError: and whatever `pieces` raises; nothing is left of the file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        fd = os.open(name, flags, mode, dir_fd=dir_fd)
    except FileExistsError:
        os.unlink(name, dir_fd=dir_fd)
        fd = os.open(name, flags, mode, dir_fd=dir_fd)
    try:
        try:
            size = 0
            if isinstance(pieces, int):
                fcntl.ioctl(fd, _FICLONE, pieces)
                size = os.fstat(pieces).st_size
                pieces = ()
            for data in pieces:
                size += len(data)
                at = os.write(fd, data) if data else 0
                while at < len(data):
                    more = os.write(fd, memoryview(data)[at:])
                    if more <= 0:
                        raise OSError(errno.EIO, "nothing is written any more")
                    at += more
            os.utime(fd, ns=(mtime_ns, mtime_ns))
            status = os.fstat(fd)
            if status.st_size != size:
                raise OSError(errno.EIO, f"{status.st_size} of {size} octets were written")
            if mode & 0o077:
                share(fd, mode, group)
            if durable:
                os.fdatasync(fd)
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(name, dir_fd=dir_fd)
        raise
    return status.st_mtime_ns


_libc: Final = ctypes.CDLL(None, use_errno=True)
_HAS_SYNCFS: Final = hasattr(_libc, "syncfs")  # Linux


class GroupSync:
    """One syncfs for all threads that wait for the same file system.

    Who comes while one is running shares the next: its data may be too late for this one. The
    descriptor is older than anything written by those who hold the group, so the kernel
    reports every write-back error since then on it (Linux 5.8), and each failure to all who
    shared the call.
    """

    _groups: ClassVar[dict[int, GroupSync]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def of(cls, fd: int) -> GroupSync:
        """The group of the file system that `fd` lies on: hold it from before the first write to `release`."""
        device = os.fstat(fd).st_dev
        with cls._lock:
            group = cls._groups.get(device)
            if group is None:
                group = cls._groups[device] = cls(device, fd)
            group._holders += 1
            return group

    def __init__(self, device: int, fd: int) -> None:
        self._device = device
        self._fd = os.open(".", DIRECTORY, dir_fd=fd)
        self._holders = 0
        self._turn = threading.Condition()
        self._running = False
        self._started = 0
        self._done = 0
        self._failures: dict[int, int] = {}

    def release(self) -> None:
        """The last holder closes the group."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                del self._groups[self._device]
                os.close(self._fd)

    def sync(self) -> None:
        """Return when all that this thread has written is on disk.

        Raises:
            OSError: it may not be; what was written since the last success is not to be trusted.
        """
        with self._turn:
            ticket = self._started + 1
            while self._running and self._done < ticket:
                self._turn.wait()
            mine = self._done < ticket
            if mine:
                self._running = True
                self._started = ticket
        if mine:
            try:
                self._sync_now()
            except OSError as error:
                self._failures[ticket] = error.errno or errno.EIO
            except BaseException:
                self._failures[ticket] = errno.EIO  # who shared it must not believe that it was done
                raise
            finally:
                with self._turn:
                    self._running = False
                    self._done = ticket
                    self._turn.notify_all()
        failure = self._failures.get(ticket)
        if failure is not None:
            raise OSError(failure, os.strerror(failure))

    def _sync_now(self) -> None:
        if not _HAS_SYNCFS:
            os.sync()
        elif _libc.syncfs(self._fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def sync_file(name: str, dir_fd: int) -> None:
    """Make the octets of a file last."""
    fd = os.open(name, FILE, dir_fd=dir_fd)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def sync_directories(fds: Sequence[int]) -> None:
    """Make renames into these directories last."""
    for fd in fds:
        os.fsync(fd)
