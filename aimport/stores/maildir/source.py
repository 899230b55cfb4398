"""Read a Maildir. Nothing below the root is ever created, renamed, locked or written.

    select: scan ─▶ keys by UID, then by name        messages: scan ─▶ 64 files a thread hop ─▶ list
                                                                 ▲ renamed meanwhile: found by base name

One file costs a fraction of a thread hop only because a hop reads many (12 us against 190). A
large file is opened alone and read by whoever needs its octets.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import time
from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from anyio import from_thread, to_thread

from aimport.errors import MailboxError
from aimport.flags import from_letters
from aimport.model import (
    STREAM_OCTETS,
    Body,
    ConnectionLimits,
    Endpoint,
    Mailbox,
    Message,
    MessageKey,
    Selection,
    Unreadable,
)
from aimport.names import INBOX
from aimport.spool import FileBody
from aimport.stores import files
from aimport.stores.maildir import disk
from aimport.stores.maildir.names import Layout, order, parse_uidlist, printable, size_in, split_name

logger = logging.getLogger(__name__)

HOP_MESSAGES: Final = 64
HOP_OCTETS: Final = 1 << 20
_TRIES: Final = 20


class MaildirSource:
    """One account in a Maildir++ tree."""

    host = ""

    def __init__(self, endpoint: Endpoint) -> None:
        self._layout = Layout.of(endpoint)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MaildirSourceSession, None]:
        """A session; it holds nothing open between calls."""
        yield MaildirSourceSession(self._layout)


Hint = str
"""Where a file was when it was selected: `n` (new) or `c` (cur), then what follows the key in its name; "": look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaildirSelection(Selection):
    """With `hints` beside the keys, so that the folder need not be listed again to read it."""

    hints: Sequence[Hint]


class MaildirSourceSession:
    """Reads one Maildir++ tree."""

    limits = ConnectionLimits()

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await to_thread.run_sync(_list, self._layout)

    async def select(self, mailbox: Mailbox) -> Selection:
        return await to_thread.run_sync(_select, self._layout, mailbox)

    async def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        assert isinstance(selection, MaildirSelection), "a selection belongs to the store that made it"
        wanted = [one for one in zip(selection.keys, selection.hints, strict=True) if one[0] not in skip]
        if not wanted:
            return
        reader = await to_thread.run_sync(_Reader, self._layout, selection.mailbox)
        try:
            at = 0
            while at < len(wanted):
                read = await to_thread.run_sync(reader.read, wanted[at : at + HOP_MESSAGES])
                at += len(read)
                yield read
        finally:
            reader.close()


def _list(layout: Layout) -> list[Mailbox]:
    root = disk.open_root(layout)
    try:
        directories = [""] if _holds_messages(layout.inbox or ".", root) else []
        with os.scandir(root) as entries:
            for entry in entries:
                if not entry.name.startswith(".") or entry.name == "..DOVECOT-TRASHED":
                    continue
                if entry.is_symlink():
                    # An alias of a sibling brings nothing of its own (as Dovecot); any other is not
                    # followed, and is listed so that `select` fails it: nothing is lost silently.
                    if "/" in os.readlink(entry.name, dir_fd=root).rstrip("/") and _is_mailbox(entry.name, root):
                        directories.append(entry.name)
                elif entry.is_dir(follow_symlinks=False) and _holds_messages(entry.name, root):
                    directories.append(entry.name)
    except OSError as error:
        raise files.translated(error, layout.root, wide=True) from error
    finally:
        os.close(root)
    mailboxes = [layout.mailbox(directory) for directory in directories]
    return sorted(mailboxes, key=lambda mailbox: (mailbox.path != (INBOX,), mailbox.path, mailbox.native))


def _holds_messages(directory: str, root: int) -> bool:
    """True when `cur` or `new` is there, whatever it is, and when we may not look: `select` says what is wrong."""
    for name in ("cur", "new"):
        try:
            os.stat(f"{directory}/{name}", dir_fd=root, follow_symlinks=False)
        except PermissionError:
            return True
        except OSError:
            continue
        return True
    return False


def _is_mailbox(link: str, root: int) -> bool:
    """True when a link leads to a directory: a look at where, never into it."""
    try:
        return stat.S_ISDIR(os.stat(link, dir_fd=root).st_mode)
    except OSError:
        return False


def _open(layout: Layout, mailbox: Mailbox) -> disk.Folder:
    directory = layout.directory(mailbox)
    try:
        if directory and (directory[0] != "." or "/" in directory or directory in (".", "..")):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return disk.open_folder(layout, directory)
    except OSError as error:
        raise files.translated(error, f"{layout.root}/{directory}") from error


def _select(layout: Layout, mailbox: Mailbox) -> Selection:
    folder = _open(layout, mailbox)
    try:
        found = disk.scan(folder, warn=True)
        uids = _uids(folder)

        def place(key: MessageKey) -> tuple[int, int, int, str]:
            base = key.partition("/")[0]
            uid = uids.get(base)
            return (0, uid, 0, key) if uid is not None else (1, *order(base)[:2], key)

        keys = sorted(found, key=place)
        return MaildirSelection(
            mailbox=mailbox,
            keys=keys,
            sizes=[_size(*found[key]) for key in keys],
            hints=[_hint(key, *found[key], folder) for key in keys],
        )
    except OSError as error:
        raise files.translated(error, folder.path) from error
    finally:
        folder.close()


def _uids(folder: disk.Folder) -> dict[str, int]:
    data = disk.read_small(folder, disk.UIDLIST, disk.MAX_UIDLIST)
    if data is None:
        return {}
    try:
        return parse_uidlist(data)
    except ValueError as error:
        logger.warning("file ignored path=%r reason=%s", f"{folder.path}/{disk.UIDLIST}", error)
        return {}


def _hint(key: MessageKey, fd: int, name: str, folder: disk.Folder) -> Hint:
    if not name.startswith(key):  # the key of a name that is no UTF-8, or of one of two files of one base
        return ""
    return sys.intern(("n" if fd == folder.new else "c") + name[len(key) :])


def _size(fd: int, name: str) -> int:
    promised = size_in(split_name(name)[0])
    if promised is not None:
        return promised
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
    except OSError:
        return 0  # reading it will say why


class _Reader:
    """Reads the messages of one folder, hop by hop, in worker threads."""

    def __init__(self, layout: Layout, mailbox: Mailbox) -> None:
        self._folder = _open(layout, mailbox)
        self._ahead: Message | None = None
        """A large message that was opened when its turn had not come."""
        try:
            self._keywords = disk.Keywords(self._folder)
            self._places: dict[MessageKey, disk.Place] | None = None
            """Where the files are, once a hint was wrong."""
            self._fresh = False  # scanned in this hop
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._folder.close()
        if self._ahead is not None and not isinstance(self._ahead.body, bytes):
            self._ahead.body.close()

    def read(self, wanted: Sequence[tuple[MessageKey, Hint]]) -> list[Message | Unreadable]:
        """The first of `wanted`, one at least, up to about HOP_OCTETS; a large one stands alone.

        Raises:
            MailboxError: the folder cannot be read any more.
            Unavailable: too many open files.
        """
        with files.READ_TURNS as turns:
            began = time.monotonic()
            done = self._read_some(wanted)
            turns.took(len(done), time.monotonic() - began)
            return done

    def _read_some(self, wanted: Sequence[tuple[MessageKey, Hint]]) -> list[Message | Unreadable]:
        letters = self._keywords.letters()
        done: list[Message | Unreadable] = []
        octets = 0
        for key, hint in wanted:
            if self._ahead is not None and self._ahead.key == key:
                result: Message | Unreadable = self._ahead
                self._ahead = None
            else:
                result = self._read(key, hint, letters)
            if isinstance(result, Message):
                if done and not isinstance(result.body, bytes):
                    self._ahead = result
                    break
                octets += len(result.body)
            done.append(result)
            if octets >= HOP_OCTETS:
                break
            if len(done) % 16 == 0:
                from_thread.check_cancelled()
        self._fresh = False
        return done

    def _read(self, key: MessageKey, hint: Hint, letters: dict[str, str]) -> Message | Unreadable:
        """One message under the name that it has now.

        A quick reading finds a renamed one; what that lacks is gone only when a careful one lacks
        it too, and that is made once a hop, however many are gone.
        """
        for _ in range(_TRIES):
            if self._places is not None:
                place = self._places.get(key)
            elif hint:
                place = (self._folder.new if hint[0] == "n" else self._folder.cur, key + hint[1:])
            else:
                place = None
            if place is not None:
                try:
                    return _read_file(key, *place, letters, self._folder.path)
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                        raise files.translated(error, self._folder.path) from error
                    if error.errno not in (errno.ENOENT, errno.ESTALE):
                        path = f"{self._folder.path}/{printable(place[1])}"
                        return Unreadable(key=key, code="unreadable", text=str(files.translated(error, path)))
                if self._places is None:
                    self._places = {}
                self._places.pop(key, None)
                self._places.update(self._scan(disk.scan_once))
            elif self._fresh:
                break
            else:
                self._places = self._scan(disk.scan)
                self._fresh = True
        return Unreadable(key=key, code="vanished", text=f"{self._folder.path}: {key} is gone")

    def _scan(self, scan: Callable[[disk.Folder], dict[MessageKey, disk.Place]]) -> dict[MessageKey, disk.Place]:
        try:
            return scan(self._folder)
        except OSError as error:
            raise MailboxError(f"{self._folder.path}: {error.strerror}") from error


def _read_file(key: MessageKey, dir_fd: int, name: str, letters: dict[str, str], path: str) -> Message:
    """A message; one above `STREAM_OCTETS` keeps its file open. `path` is that of the folder."""
    fd = files.open_file(name, dir_fd)
    body: Body | None = None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > STREAM_OCTETS:
            body = FileBody(fd, name=f"{path}/{printable(name)}")
        else:
            body = files.read_all(fd, status.st_size)
    finally:
        if not isinstance(body, FileBody):  # which owns it now
            os.close(fd)
    return Message(
        key=key,
        flags=from_letters(split_name(name)[1], letters),
        internal_date=_date(status.st_mtime_ns // 1_000_000_000, name),
        body=body,
    )


def _date(seconds: int, name: str) -> datetime:
    """Received date from an mtime; years that have no date become the nearest that have one."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        logger.warning("date out of range name=%r mtime=%d", name, seconds)
        return (datetime.min if seconds < 0 else datetime.max.replace(microsecond=0)).replace(tzinfo=UTC)
