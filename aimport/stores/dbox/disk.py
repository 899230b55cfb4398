"""Where dbox lies on disk: folders found, indexes read, files opened. For worker threads; nothing is written.

Every directory is opened one level at a time, and no symbolic link is followed below the location's own parents.
Files are read and not mapped: one that is cut short while it is mapped would end the process (SIGBUS).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from anyio import from_thread

from aimport.errors import AccessRefused, SourceMissing
from aimport.model import STREAM_OCTETS
from aimport.names import printable
from aimport.stores import files
from aimport.stores.dbox.index import Damaged, Table, header_size, parse_header
from aimport.stores.dbox.layout import Layout
from aimport.stores.dbox.log import assemble

INDEX: Final = "dovecot.index"
MAP: Final = "dovecot.map.index"
MAX_LOG: Final = 256 << 20
"""Dovecot begins a new one at 1 MiB, or soon after."""
MAX_CACHE: Final = 256 << 20
_LEAST: Final = 16 << 10
"""Read at once, however little is asked for."""
WHOLE_OCTETS: Final = STREAM_OCTETS + (64 << 10)
"""A message of up to so many octets, with header and metadata, is read at once."""
_CHUNK: Final = 1 << 20
_TRIES: Final = 10
_DAMAGED_TRIES: Final = 2
"""What seems damaged may only have been changing: it is read once more."""
_TRASH: Final = ("..DOVECOT-TRASH", "..dovecot-trash")


class FileOctets:
    """A file by position (`messages.Octets`), with what was read last at hand. `fd` stays the caller's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.status = os.fstat(fd)
        """As it was when it was opened."""
        if not stat.S_ISREG(self.status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        self._size = self.status.st_size
        self._place = 0
        self._end = 0
        self._window = b""

    def __len__(self) -> int:
        return self._size

    def at(self, place: int, count: int) -> bytes:
        end = min(place + count, self._size)
        if place < self._place or end > self._end:
            if place >= self._size:
                return b""
            self.load(place, max(end - place, _LEAST))
            end = min(end, self._end)
        return self._window[place - self._place : end - self._place]

    def load(self, place: int, count: int) -> None:
        """Reads what will be asked for in pieces."""
        self._window = _pread(self.fd, count, place)
        self._place, self._end = place, place + len(self._window)

    def grown(self) -> bool:
        return os.fstat(self.fd).st_size != self._size


def _pread(fd: int, count: int, place: int) -> bytes:
    data = os.pread(fd, count, place)
    while data and len(data) < count and (more := os.pread(fd, count - len(data), place + len(data))):
        data += more
    return data


def open_root(path: str, what: str) -> int:
    """A root of a location, `what` to people.

    Raises:
        SourceMissing, AccessRefused
    """
    try:
        return os.open(path, files.DIRECTORY)
    except OSError as error:
        if os.path.islink(path):
            text = f"{path} is a symbolic link"
            raise AccessRefused(text, hint="give the path that it points to") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise SourceMissing(f"{path} ({what}): {error.strerror}") from error
        raise files.translated(error, path, wide=True) from error


def open_below(root: int, levels: Sequence[str]) -> int:
    """A directory some levels below `root`; the caller closes it.

    Raises:
        OSError: also for a symbolic link on the way.
    """
    at = os.dup(root)
    for level in levels:
        try:
            below = os.open(level, files.DIRECTORY, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


def open_path(path: str, levels: Sequence[str]) -> int | None:
    """A directory below the root `path`; None when it, or the root, is not there.

    Raises:
        OSError
    """
    try:
        root = os.open(path, files.DIRECTORY)
        try:
            return open_below(root, levels)
        finally:
            os.close(root)
    except FileNotFoundError:
        return None


def read_file(dir_fd: int, name: str, limit: int) -> bytes | None:
    """A whole file; None when it is not there.

    Raises:
        Damaged: it is larger than `limit`.
        OSError
    """
    try:
        fd = files.open_regular(name, dir_fd)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise Damaged(f"{name} has {size} octets, more than the {limit} that it may have")
        return files.read_all(fd, size)
    finally:
        os.close(fd)


def load_table(dir_fd: int, name: str) -> Table | None:
    """An index with its logs, as it stands now; None when there is neither.

    Dovecot writes a new index and begins a new log while we read: what changed meanwhile is read again.

    Raises:
        OSError
    """
    table: Table | None = None
    for number in range(_TRIES):
        from_thread.check_cancelled()
        before = _identity(dir_fd, name)
        table = _load_once(dir_fd, name)
        if _identity(dir_fd, name) == before and (table is None or not table.damage or number + 1 >= _DAMAGED_TRIES):
            break
    return table


def signature(dir_fd: int, name: str) -> tuple[int, ...]:
    """Another one when an index may have changed."""
    found: list[int] = []
    for each in (name, f"{name}.log"):
        try:
            status = os.stat(each, dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            found += (0, 0, 0)
        else:
            found += (status.st_ino, status.st_size, status.st_mtime_ns)
    return tuple(found)


def _identity(dir_fd: int, name: str) -> tuple[tuple[int, int] | None, ...]:
    """Which files they are, not how long: a log grows, and what it holds before its end stays."""
    found: list[tuple[int, int] | None] = []
    for each in (name, f"{name}.log"):
        try:
            status = os.stat(each, dir_fd=dir_fd, follow_symlinks=False)
            found.append((status.st_dev, status.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


def _load_once(dir_fd: int, name: str) -> Table | None:
    damage: list[str] = []
    table: Table | None = None
    there = False
    try:
        table = _read_index(dir_fd, name)
        there = table is not None
    except Damaged as error:
        there = True
        damage.append(str(error))
    logs: list[bytes | None] = []
    for each in (f"{name}.log", f"{name}.log.2"):
        try:
            logs.append(read_file(dir_fd, each, MAX_LOG))
        except Damaged as error:
            there = True
            damage.append(str(error))
            logs.append(None)
    if not there and logs == [None, None]:
        return None
    table = assemble(table, *logs)
    table.damage[:0] = damage
    return table


def _read_index(dir_fd: int, name: str) -> Table | None:
    try:
        fd = files.open_regular(name, dir_fd)
    except FileNotFoundError:
        return None
    try:
        header = parse_header(_pread(fd, header_size(os.pread(fd, 120, 0)), 0))
        table = Table(header)
        step = max(_CHUNK // header.record_size, 1) * header.record_size
        at, end = header.size, header.size + header.messages * header.record_size
        while at < end and (octets := _pread(fd, min(step, end - at), at)):
            table.add_records(octets)
            at += len(octets)
        return table
    finally:
        os.close(fd)


def message_numbers(dir_fd: int, prefix: str) -> Iterator[int]:
    """N of every `prefix`N in a directory, as they come."""
    start = len(prefix)
    with os.scandir(dir_fd) as entries:
        for count, entry in enumerate(entries):
            if count % 4096 == 0:
                from_thread.check_cancelled()
            name = entry.name
            if name.startswith(prefix) and (digits := name[start:]).isdecimal() and digits.isascii():
                if len(digits) > 10 or (digits[0] == "0" and digits != "0"):
                    continue
                yield int(digits)


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that may be a folder: its path below `mailboxes`, and whether the entry is a link."""

    path: str
    link: bool = False


def walk(root: str, layout: Layout, *, index: bool) -> Iterator[Directory]:
    """Folders below a root: with mail (a `dbox-Mails`), or with an index when `index`.

    A directory that cannot be looked into counts as one, so that reading it says why.

    Raises:
        OSError: `mailboxes` itself cannot be read.
    """
    top = open_path(root, (layout.mailboxes,))
    if top is None:
        return
    marker = layout.index_dirname if index else layout.dirname
    stack = [""]
    try:
        while stack:
            from_thread.check_cancelled()
            path = stack.pop()
            try:
                fd = open_below(top, path.split("/") if path else ())
            except OSError:
                yield Directory(path)
                continue
            try:
                holds = False
                for name, mode in _entries(fd):
                    below = f"{path}/{name}" if path else name
                    if marker and name == marker:
                        holds = True
                    elif not marker and name.startswith((f"{INDEX}.log", INDEX, "u.")) and not stat.S_ISDIR(mode):
                        holds = True
                    elif stat.S_ISLNK(mode):
                        # An alias of a sibling brings nothing of its own (as Dovecot); any other is told of.
                        target = os.readlink(name, dir_fd=fd)
                        if "/" in target.rstrip("/") and _leads_to_directory(name, fd):
                            yield Directory(below, link=True)
                    elif stat.S_ISDIR(mode) and not name.startswith(_TRASH):
                        stack.append(below)
                if holds and path:
                    yield Directory(path)
            finally:
                os.close(fd)
    finally:
        os.close(top)


def _entries(fd: int) -> Iterator[tuple[str, int]]:
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield entry.name, stat.S_IFLNK
            elif entry.is_dir(follow_symlinks=False):
                yield entry.name, stat.S_IFDIR
            else:
                yield entry.name, stat.S_IFREG


def _leads_to_directory(link: str, fd: int) -> bool:
    """A look at where, never into it."""
    try:
        return stat.S_ISDIR(os.stat(link, dir_fd=fd).st_mode)
    except OSError:
        return False


def shown(*parts: str) -> str:
    """A path for people."""
    return printable("/".join(part for part in parts if part))
