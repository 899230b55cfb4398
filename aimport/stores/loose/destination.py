"""Write a tree of `.eml` files: a directory a mailbox, a file a message, its mtime the INTERNALDATE.

    a batch, one thread hop:  hidden files ─▶ one syncfs (shared) ─▶ rename in order ─▶ fsync of the directory

Names say which batch of which run a file comes from, and sort as they were appended. Flags and keywords have no place
here: they are dropped, and told.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from array import array
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial

from anyio import from_thread, to_thread

from aimport.errors import MailboxNameInvalid, MailboxNotFound, MessageUnreadable, SourceMissing
from aimport.interfaces import Settled, SourceSession
from aimport.model import (
    Appended,
    Batch,
    ConnectionLimits,
    Endpoint,
    Fingerprint,
    Mailbox,
    Message,
    MessageKey,
    Places,
    Position,
    Rejected,
    Stored,
    Survey,
    Uid,
    Wanted,
)
from aimport.octets import wire_size
from aimport.standing import Standing
from aimport.stores import Fsync, content, files
from aimport.stores.loose.folders import Folders, demand_no_options
from aimport.stores.loose.names import is_eml
from aimport.stores.loose.source import LooseSourceSession
from aimport.stores.maildir import disk
from aimport.stores.maildir.destination import as_stored
from aimport.stores.room import inspected

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(\d+R[^.,]*B\d+N\d+),S=(\d+),W=(\d+)\.eml", re.ASCII)


class EmlDestination:
    """One account in a tree of directories, made when missing. `fsync` says what "appended" promises."""

    host = ""
    wire = False

    def __init__(self, endpoint: Endpoint, fsync: Fsync = "batch") -> None:
        demand_no_options(endpoint)
        self._root = endpoint.path
        self._fsync: Fsync = fsync

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[EmlDestinationSession, None]:
        """A session; it holds nothing open between calls."""
        yield EmlDestinationSession(self._root, self._fsync)


class EmlDestinationSession:
    """Writes one tree of directories."""

    limits = ConnectionLimits()
    separator = "/"
    folds_case = False
    waits = False

    def __init__(self, root: str, fsync: Fsync) -> None:
        self._root = root
        self._fsync: Fsync = fsync
        self._folders = Folders(root, is_eml, sequences=False)

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await LooseSourceSession(self._folders).list_mailboxes()

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        await to_thread.run_sync(self._create, mailbox)

    async def append(self, mailbox: Mailbox, batch: Batch) -> Settled:
        return await to_thread.run_sync(self._append, mailbox, batch)

    async def position(self, mailbox: Mailbox) -> Position | None:
        return await to_thread.run_sync(self._position, mailbox)

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        return await to_thread.run_sync(self._find, mailbox, wanted)

    async def survey(self, mailbox: Mailbox, since: Position, *, sizes: bool = True) -> Survey | None:
        return await to_thread.run_sync(self._survey, mailbox)

    @asynccontextmanager
    async def reading(self, mailbox: Mailbox) -> AsyncGenerator[tuple[SourceSession, Mailbox]]:
        yield LooseSourceSession(self._folders), replace(mailbox, native="/".join(self._steps(mailbox)))

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        return stem(wanted, wanted.index)

    async def inspect(self, targets: Sequence[Mailbox] = ()) -> Standing:
        return await to_thread.run_sync(partial(inspected, self._root, targets, self._places, file_each=True))

    def _places(self, mailbox: Mailbox) -> list[str]:
        return [self._path(self._steps(mailbox))]

    def _steps(self, mailbox: Mailbox) -> tuple[str, ...]:
        """The directories of a mailbox.

        Raises:
            MailboxNameInvalid
        """
        wrong = ""
        for level in mailbox.path:
            if not level or level.startswith("."):
                wrong = "has an empty level" if not level else f"has a level {level}, which would be hidden"
            elif "/" in level or any(char < " " for char in level):
                wrong = "has / or a control character inside a level"
            elif len(level.encode("utf-8", "surrogatepass")) > 255:
                wrong = "has a level of more than 255 octets"
            elif any("\ud800" <= char <= "\udfff" for char in level):
                wrong = "is not valid Unicode"
        if wrong or not mailbox.path:
            raise MailboxNameInvalid(f"mailbox {mailbox.name!r}: the name {wrong or 'is empty'}", code="CANNOT")
        return mailbox.path

    def _path(self, steps: tuple[str, ...]) -> str:
        return "/".join((self._root, *steps))

    def _create(self, mailbox: Mailbox) -> None:
        steps = self._steps(mailbox)
        durable = self._fsync != "never"
        try:
            disk.make_path(self._root, durable)
            fd = os.open(self._root, files.DIRECTORY)
            try:
                for step in steps:
                    mode = stat.S_IMODE(os.fstat(fd).st_mode) & 0o2777
                    made = disk.make_directory(fd, step, mode, files.group_in(fd))
                    if made and durable:
                        os.fsync(fd)
                    below = os.open(step, files.DIRECTORY, dir_fd=fd)
                    os.close(fd)
                    fd = below
            finally:
                os.close(fd)
        except OSError as error:
            raise files.translated(error, self._path(steps), wide=not os.access(self._root, os.W_OK)) from error

    @contextmanager
    def _opened(self, mailbox: Mailbox) -> Iterator[tuple[int, str]]:
        """The directory of a mailbox, and its path.

        Raises:
            MailboxNotFound
            MailboxError: whatever is done with it fails.
        """
        steps = self._steps(mailbox)
        path = self._path(steps)
        try:
            fd = self._folders.opened(steps)
        except SourceMissing as error:
            raise MailboxNotFound(error.text, code="NONEXISTENT") from error
        except OSError as error:
            raise files.translated(error, path) from error
        try:
            yield fd, path
        except OSError as error:
            raise files.translated(error, path) from error
        finally:
            os.close(fd)

    def _append(self, mailbox: Mailbox, batch: Batch) -> Settled:
        with self._opened(mailbox) as (fd, path):
            group = disk.GroupSync.of(fd) if self._fsync == "batch" else None
            written: list[str] = []
            try:
                outcomes = self._write_all(fd, path, batch, written)
                written_s = time.perf_counter()
                if group is not None:
                    group.sync()
                sync_s = time.perf_counter() - written_s
                with files.FILE_TURNS:
                    while written:
                        os.rename(_hidden(written[0]), written[0], src_dir_fd=fd, dst_dir_fd=fd)
                        written.pop(0)
            except BaseException:
                for name in written:
                    with suppress(OSError):
                        os.unlink(_hidden(name), dir_fd=fd)
                raise
            finally:
                if group is not None:
                    group.release()
            if self._fsync != "never":
                renamed_s = time.perf_counter()
                disk.sync_directories([fd])
                sync_s += time.perf_counter() - renamed_s
            return Settled(outcomes, sync_s)

    def _write_all(self, fd: int, path: str, batch: Batch, written: list[str]) -> list[Appended | Rejected]:
        mode = stat.S_IMODE(os.fstat(fd).st_mode) & 0o666
        outcomes: list[Appended | Rejected] = []
        for index, (message, fingerprint) in enumerate(zip(batch.messages, batch.fingerprints, strict=True)):
            from_thread.check_cancelled()
            try:
                written.append(self._write(fd, mode, stem(batch, index), message, fingerprint))
            except OSError as error:
                if error.errno in files.WIDE:
                    raise
                text = f"{path}: {error.strerror or error}"
                outcomes.append(Rejected(key=message.key, code="", text=text))
            except MessageUnreadable as error:
                outcomes.append(Rejected(key=message.key, code=error.code, text=error.text))
            else:
                outcomes.append(Appended(key=message.key, dropped=tuple(sorted(message.flags))))
        return outcomes

    def _write(self, fd: int, mode: int, start: str, message: Message, fingerprint: Fingerprint) -> str:
        size, pieces = as_stored(message.body, wire=message.wire)
        name = f"{start},S={size},W={fingerprint.size}.eml"
        seconds = int(message.internal_date.timestamp() // 1)
        durable = self._fsync == "each"
        rights = {"mode": mode, "group": files.group_in(fd)}
        mtime_ns = seconds * 1_000_000_000
        kept = disk.write_file(fd, _hidden(name), pieces, **rights, mtime_ns=mtime_ns, durable=durable)
        if kept // 1_000_000_000 != seconds:
            logger.warning("date not kept key=%r date=%s", message.key, message.internal_date.isoformat())
        return name

    def _position(self, mailbox: Mailbox) -> Position | None:
        try:
            with self._opened(mailbox):
                return Position()
        except MailboxNotFound:
            return None

    def _find(self, mailbox: Mailbox, wanted: Sequence[Wanted]) -> list[Stored]:
        stems = {self.place(each, None, 0): at for at, each in enumerate(wanted)}
        found: dict[int, Stored] = {}
        try:
            with self._opened(mailbox) as (fd, _):
                for name in os.listdir(fd):
                    match = _NAME.fullmatch(name)
                    at = stems.get(match[1]) if match else None
                    if match is None or at is None or int(match[3]) != wanted[at].fingerprint.size:
                        continue
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if status.st_size == int(match[2]):
                        date = status.st_mtime_ns // 1_000_000_000
                        found[at] = Stored(fingerprint=wanted[at].fingerprint, internal_date=date, wanted=at)
        except MailboxNotFound:
            return []
        return [found[at] for at in sorted(found)]

    def _survey(self, mailbox: Mailbox) -> Survey | None:
        keys: list[MessageKey] = []
        sizes, dates = array("Q"), array("q")
        places: dict[str, int] = {}
        try:
            with self._opened(mailbox) as (fd, _):
                for name in sorted(filter(is_eml, os.listdir(fd))):
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    match = _NAME.fullmatch(name)
                    if match is not None and status.st_size == int(match[2]):
                        places[match[1]] = len(keys)
                        sizes.append(int(match[3]))
                    else:
                        sizes.append(_wire_size(fd, name))
                    keys.append(MessageKey(name))
                    dates.append(status.st_mtime_ns // 1_000_000_000)
        except MailboxNotFound:
            return None
        return Survey(uidvalidity=0, keys=keys, sizes=sizes, dates=dates, at=Places(places))


def stem(of: Batch | Wanted, index: int) -> str:
    """What a name of ours begins with. Sorted as text, names come in the order of append."""
    run = re.sub(r"[^0-9A-Za-z-]", "_", of.run)
    return f"{of.created_us + index:017}R{run}B{of.number}N{index}"


def _hidden(name: str) -> str:
    """The name of a file until it is whole."""
    return f".{name}.aimport"


def _wire_size(fd: int, name: str) -> int:
    octets = content.Plain(files.open_regular(name, fd))
    try:
        return wire_size(octets.pieces())
    finally:
        octets.close()
