"""GUIDs and POP3 UIDLs of messages, kept in a folder's `dovecot-uidlist` as Dovecot keeps them.

    lock ─▶ files get their names ─▶ a line each: "7 G<guid> P<uidl> :<base name>" ─▶ unlock

As Dovecot's own saving does (`maildir_transaction_save_commit()`): whoever else gives out UIDs waits for the lock, and
reads what was added before he does. Lines are only ever added behind a list that is in order. A list is made only where
no Dovecot has been: its indexes would hold UIDs of their own.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from aimport.names import printable
from aimport.stores.maildir import disk
from aimport.stores.maildir.names import UIDLIST_HEADER, UIDLIST_LINE, message_guids, order, split_name

logger = logging.getLogger(__name__)

_WORD: Final = re.compile(r"[!-~]{1,255}")
_UIDL: Final = re.compile(r"[!-~]{1,70}")  # RFC 1939 §7
_TAIL: Final = 64 * 1024
_MAX_UID: Final = (1 << 32) - 2
_OF_OTHERS: Final = ("dovecot.index", "dovecot.index.log", disk.COURIER_UIDS)
"""Where one of these lies somebody else has given out UIDs."""


class Named(NamedTuple):
    """A message that got its name; `guid` and `uidl` are "" where it has none to keep."""

    base: str
    guid: str
    uidl: str


class Uidlist:
    """The list of one open folder, in worker threads."""

    def __init__(self, folder: disk.Folder, *, mode: int, group: int, durable: bool) -> None:
        self._folder = folder
        self._mode = mode
        self._group = group
        self._durable = durable
        self._there: set[int] | None = None
        """Hashes of the GUIDs that were in the list before us: no two messages of a folder have one."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """The lock that everybody takes who gives out UIDs.

        Raises:
            MailboxError: somebody holds it for minutes.
            OSError
        """
        with disk.dotlock(self._folder.control, f"{disk.UIDLIST}.lock"):
            yield

    def add(self, messages: Sequence[Named]) -> None:
        """Gives UIDs to messages that have their names now. The caller holds the lock.

        What fails is only told: the messages are stored, and Dovecot gives them UIDs and GUIDs of its own.
        """
        try:
            if not self._add(messages):
                logger.info("guids not kept path=%r messages=%d", self._folder.path, len(messages))
        except OSError as error:
            path = f"{self._folder.path}/{disk.UIDLIST}"
            logger.warning("guids not kept path=%r messages=%d reason=%s", path, len(messages), error.strerror)

    def _add(self, messages: Sequence[Named]) -> bool:
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(disk.UIDLIST, flags, dir_fd=self._folder.control)
        except FileNotFoundError:
            return self._make(messages)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return False
            size = os.fstat(fd).st_size
            following = next_of(os.pread(fd, 4096, 0), os.pread(fd, _TAIL, max(0, size - _TAIL)))
            if following is None or following + len(messages) > _MAX_UID:
                return False
            if self._there is None:
                self._there = self._guids(fd, size)
            self._write(fd, size, lines(following, messages, self._there))
        finally:
            os.close(fd)
        return True

    def _write(self, fd: int, size: int, data: bytes) -> None:
        """All of it behind what is there, or nothing."""
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if self._durable:
                os.fdatasync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise

    def _guids(self, fd: int, size: int) -> set[int]:
        if size > disk.MAX_UIDLIST:
            raise OSError(errno.EFBIG, "too large")
        return set(map(hash, message_guids(os.pread(fd, size, 0)).values()))

    def _make(self, messages: Sequence[Named]) -> bool:
        """A new list, which begins with what is in the folder already, in Dovecot's order."""
        folder = self._folder
        if any(disk.exists(fd, name) for fd in {folder.fd, folder.control} for name in _OF_OTHERS):
            return False
        new = {message.base for message in messages}
        before = sorted(
            {base for fd in (folder.new, folder.cur) for base in _bases(fd) if base not in new and "\n" not in base},
            key=order,
        )
        if len(before) + len(messages) > disk.MAX_UIDLIST // 256:
            return False
        self._there = set()
        known = [*(Named(base, "", "") for base in before), *messages]
        header = f"3 V{int(time.time())} N{len(known) + 1} G{secrets.token_hex(16)}\n"
        data = header.encode() + lines(1, known, self._there)
        rights = {"mode": self._mode, "group": self._group}
        disk.replace_file(folder.control, disk.UIDLIST, data, **rights, durable=self._durable)
        if self._durable:
            disk.sync_directories([folder.control])
        return True


def _bases(fd: int) -> Iterator[str]:
    with os.scandir(fd) as entries:
        yield from (split_name(entry.name)[0] for entry in entries if entry.name[0] != "." and entry.is_file())


def next_of(head: bytes, tail: bytes) -> int | None:
    """The UID that comes next in a list with this beginning and this end; None: the list is not in order."""
    first, end, _ = head.partition(b"\n")
    header = UIDLIST_HEADER.match(first.decode("utf-8", "replace"))
    if header is None or not end or not tail.endswith(b"\n"):
        return None
    following = int(header[1])
    last = tail[:-1].rpartition(b"\n")[2]
    if last == first and len(head) == len(first) + 1:
        return following
    line = UIDLIST_LINE.fullmatch(last.decode("utf-8", "backslashreplace"))
    return None if line is None else max(following, int(line[1]) + 1)


def lines(following: int, messages: Iterable[Named], there: set[int]) -> bytes:
    """The lines of messages that get these UIDs; a GUID that is `there` is not given twice."""
    parts = []
    for uid, message in enumerate(messages, following):
        words = [str(uid)]
        if _UIDL.fullmatch(message.uidl):
            words.append(f"P{message.uidl}")
        if _WORD.fullmatch(message.guid) and hash(message.guid) not in there:
            words.append(f"G{message.guid}")
        parts.append(f"{' '.join(words)} :{message.base}\n")
    return "".join(parts).encode("utf-8", "surrogateescape")


def kept(data: bytes) -> dict[str, tuple[str, str]]:
    """Base name (printable) → GUID and POP3 UIDL, where a list says one of them.

    Otherwise the GUID is the base name, and so is a UIDL that is empty in the list.
    """
    found = {}
    for raw in data.split(b"\n")[1:-1]:
        if b" G" not in raw and b" P" not in raw:
            continue
        line = raw.decode("utf-8", "backslashreplace")
        head, colon, base = line.partition(" :")
        if not colon or UIDLIST_LINE.fullmatch(line) is None:
            continue
        base = split_name(base)[0]
        words = {word[0]: word[1:] for word in head.split(" ")[1:]}
        uidl = words["P"] or base if "P" in words else ""
        found[printable(base)] = words.get("G") or base, uidl
    return found
