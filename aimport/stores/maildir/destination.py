"""Write a Maildir so that Dovecot, Courier and plain readers agree on what was meant.

    a batch, one thread hop:  tmp/ all files ─▶ one syncfs (shared) ─▶ rename in order ─▶ fsync new, cur
                                   └─ hard links, where the source's file is what we would write

A name says which batch of which run a file comes from, so `find` knows it after a crash; and
names sort as they were appended, so Dovecot gives UIDs in that order.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import stat
import time
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Final

from anyio import from_thread, to_thread

from aimport.errors import (
    AimportError,
    ConfigurationError,
    MailboxError,
    MailboxNotFound,
    MessageUnreadable,
    SourceMissing,
)
from aimport.flags import MAX_LETTERS, SYSTEM_FLAGS, is_keyword, to_letters
from aimport.interfaces import Settled, SourceSession
from aimport.model import (
    Appended,
    Batch,
    Body,
    ConnectionLimits,
    Endpoint,
    Fingerprint,
    Mailbox,
    Message,
    MessageKey,
    Original,
    Places,
    Position,
    Rejected,
    Stored,
    Survey,
    Uid,
    Wanted,
)
from aimport.names import INBOX
from aimport.octets import local_form, local_pieces, local_size, pieces_of
from aimport.standing import Standing
from aimport.stores import Fsync, content, files
from aimport.stores.maildir import disk
from aimport.stores.maildir.names import (
    CONTENTS,
    Layout,
    escape_host,
    format_keywords,
    is_store_file,
    parse_keywords,
    size_in,
    split_name,
    stem,
    stem_in,
    wire_size_in,
    with_subscription,
)
from aimport.stores.maildir.source import MaildirSourceSession
from aimport.stores.maildir.uidlist import Named, Uidlist
from aimport.stores.room import inspected

logger = logging.getLogger(__name__)

CLONED_OCTETS: Final = 4096
"""A smaller one may lie within its inode. 16 KiB take 58 us to clone and sync, 330 to write (btrfs, measured)."""


class MaildirDestination:
    """One account in a tree of Maildir folders, made when missing. `fsync` says what "appended" promises."""

    host = ""
    wire = False

    def __init__(self, endpoint: Endpoint, fsync: Fsync = "batch", *, link: bool = False) -> None:
        self._layout = Layout.of(endpoint)
        if self._layout.kind == "index":
            hint = "import through its server, with imaps: or tunnel:"
            raise ConfigurationError("maildir location: LAYOUT=index can only be read", hint=hint)
        self._fsync: Fsync = fsync
        self._link = link

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MaildirDestinationSession, None]:
        """A session; it keeps the mailbox it last appended to open."""
        session = MaildirDestinationSession(self._layout, self._fsync, link=self._link)
        try:
            yield session
        finally:
            session.close()


class MaildirDestinationSession:
    """Writes one tree of Maildir folders."""

    limits = ConnectionLimits()
    folds_case = False
    waits = False

    def __init__(self, layout: Layout, fsync: Fsync, *, link: bool) -> None:
        self._link = link
        self.separator = layout.separator
        self._layout = layout
        self._fsync: Fsync = fsync
        self._writer: _Writer | None = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await MaildirSourceSession(self._layout).list_mailboxes()

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        directory = self._layout.new_directory(mailbox)
        await to_thread.run_sync(self._create, mailbox, directory, subscribe)

    async def remove_mailbox(self, mailbox: Mailbox) -> None:
        directory = self._layout.new_directory(mailbox)
        if mailbox.path == (INBOX,) or not directory:
            raise MailboxError("the INBOX is not removed")
        self.close()
        await to_thread.run_sync(self._remove, directory)

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
        yield MaildirSourceSession(self._layout), mailbox

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        return stem(wanted.run, wanted.number, wanted.created_us, wanted.index)

    async def inspect(self, targets: Sequence[Mailbox] = ()) -> Standing:
        return await to_thread.run_sync(partial(inspected, self._layout.root, targets, self._places, file_each=True))

    def _places(self, mailbox: Mailbox) -> list[str]:
        """The directories that are written to for it."""
        directory = self._layout.new_directory(mailbox)
        place = self._layout.place(directory)
        control = [self._layout.control_place(directory)] if self._layout.control else []
        return [*(f"{place}/{name}" for name in ("tmp", "new", "cur")), *control]

    def _open(self, mailbox: Mailbox) -> disk.Folder:
        """The folder, complete.

        Raises:
            MailboxNotFound: it, or one of its three directories, is not there.
        """
        directory = self._layout.new_directory(mailbox)
        path = self._layout.place(directory)
        try:
            folder = disk.open_folder(self._layout, directory)
        except SourceMissing as error:
            raise MailboxNotFound(error.text, code="NONEXISTENT") from error
        except OSError as error:
            raise files.translated(error, path) from error
        if min(folder.cur, folder.new, folder.tmp) < 0:
            folder.close()
            raise MailboxNotFound(f"{path}: cur, new or tmp is missing", code="NONEXISTENT")
        return folder

    def _create(self, mailbox: Mailbox, directory: str, subscribe: bool) -> None:
        layout = self._layout
        durable = self._fsync != "never"
        root_path = layout.inbox if layout.inbox and not directory else layout.root
        try:
            disk.make_path(layout.root, durable)
            disk.make_path(root_path, durable)
            if layout.control:
                disk.make_path(layout.control_place(directory), durable)
            root = disk.open_root(layout) if root_path == layout.root else os.open(root_path, files.DIRECTORY)
            try:
                _make_folder(root, layout.steps(directory), durable, marked=layout.kind == "maildir++")
            finally:
                os.close(root)
        except OSError as error:
            wide = not directory or not os.access(layout.root, os.W_OK)
            raise files.translated(error, layout.place(directory), wide=wide) from error
        if subscribe:
            try:
                self._subscribe(mailbox)
            except (OSError, ValueError, AimportError) as error:
                logger.warning("subscribe failed mailbox=%r reason=%s", mailbox.name, error)

    def _subscribe(self, mailbox: Mailbox) -> None:
        name = self._layout.subscriptions
        levels = tuple(map(self._layout.level, mailbox.path))
        fd = os.open(self._layout.control or self._layout.root, files.DIRECTORY)
        try:
            with disk.dotlock(fd, f"{name}.lock"):
                data = disk.read_small(disk.Folder(path=self._layout.root, control=fd), name)
                changed = with_subscription(data, levels, self._layout.separator)
                if changed is not None:
                    mode = stat.S_IMODE(os.fstat(fd).st_mode) & 0o666
                    group, durable = files.group_in(fd), self._fsync != "never"
                    disk.replace_file(fd, name, changed, mode=mode, group=group, durable=durable)
        finally:
            os.close(fd)

    def _remove(self, directory: str) -> None:
        layout = self._layout
        steps = layout.steps(directory)
        own = len(directory.split("/")) + bool(layout.dirname)
        try:
            with ExitStack() as stack:
                chain = [disk.open_root(layout)]
                stack.callback(os.close, chain[0])
                for step in steps:
                    chain.append(os.open(step, files.DIRECTORY, dir_fd=chain[-1]))
                    stack.callback(os.close, chain[-1])
                count, octets = _empty(chain[-1])
                with suppress(OSError):  # mailboxes below it stay, and so do the directories then
                    for above, step in list(zip(chain, steps, strict=False))[: -own - 1 : -1]:
                        os.rmdir(step, dir_fd=above)
            if layout.control:
                _remove_control(layout.control_place(directory))
        except (FileNotFoundError, SourceMissing):
            return
        except OSError as error:
            raise files.translated(error, layout.place(directory)) from error
        if not layout.inbox and count:
            _count_quota(layout.root, -octets, -count)

    def _append(self, mailbox: Mailbox, batch: Batch) -> Settled:
        if self._writer is None or self._writer.mailbox != mailbox:
            self.close()
            folder = self._open(mailbox)
            try:
                self._writer = _Writer(mailbox, folder, self._fsync, link=self._link)
            except OSError as error:
                folder.close()
                raise files.translated(error, folder.path) from error
        writer = self._writer
        try:
            outcomes = writer.append(batch)
        except OSError as error:
            self.close()
            raise files.translated(error, writer.folder.path) from error
        if not self._layout.inbox:
            _count_quota(self._layout.root, writer.octets, sum(isinstance(each, Appended) for each in outcomes))
        return Settled(outcomes, writer.sync_s, writer.turn_s)

    def _position(self, mailbox: Mailbox) -> Position | None:
        try:
            self._open(mailbox).close()
        except MailboxNotFound:
            return None
        return Position()

    def _find(self, mailbox: Mailbox, wanted: Sequence[Wanted]) -> list[Stored]:
        try:
            folder = self._open(mailbox)
        except MailboxNotFound:
            return []
        stems = {stem(each.run, each.number, each.created_us, each.index): at for at, each in enumerate(wanted)}
        found: dict[int, Stored] = {}
        try:
            for fd, name in disk.scan(folder).values():
                base = split_name(name)[0]
                at = stems.get(stem_in(base) or "")
                if at is None or not base.endswith(f",W={wanted[at].fingerprint.size}"):
                    continue
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if status.st_size == size_in(base):
                    seconds = status.st_mtime_ns // 1_000_000_000
                    found[at] = Stored(fingerprint=wanted[at].fingerprint, internal_date=seconds, wanted=at)
            # What a killed session has left of them: it goes again under another name, and nobody else would miss it.
            for name in os.listdir(folder.tmp):
                if stem_in(name) in stems:
                    os.unlink(name, dir_fd=folder.tmp)
        except OSError as error:
            raise files.translated(error, folder.path) from error
        finally:
            folder.close()
        return [found[at] for at in sorted(found)]

    def _survey(self, mailbox: Mailbox) -> Survey | None:
        try:
            folder = self._open(mailbox)
        except MailboxNotFound:
            return None
        keys: list[MessageKey] = []
        sizes, dates = array("Q"), array("q")
        try:
            for key, (fd, name) in disk.scan(folder).items():
                with suppress(FileNotFoundError):  # gone since, or renamed: a second look would tell no more
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    keys.append(key)
                    sizes.append(_wire_size(name, status.st_size))
                    dates.append(status.st_mtime_ns // 1_000_000_000)
        except OSError as error:
            raise files.translated(error, folder.path) from error
        finally:
            folder.close()
        places = {stem_in(key) or key: index for index, key in enumerate(keys)}
        return Survey(uidvalidity=0, keys=keys, sizes=sizes, dates=dates, at=Places(places))


def _wire_size(name: str, octets: int) -> int:
    """Octets of the wire form as the name promises; those of the file where it does not, or lies of the file."""
    base = split_name(name)[0]
    promised = wire_size_in(base)
    return octets if promised is None or size_in(base) != octets else promised


class _Writer:
    """Appends to one open folder, in a worker thread."""

    def __init__(self, mailbox: Mailbox, folder: disk.Folder, fsync: Fsync, *, link: bool) -> None:
        self.mailbox = mailbox
        self.folder = folder
        self.octets = 0
        """Octets of the last batch as stored."""
        self.sync_s = self.turn_s = 0.0
        """Of the last batch, as in `Settled`."""
        self._fsync: Fsync = fsync
        self._group = disk.GroupSync.of(folder.fd) if fsync == "batch" else None
        self._keywords = disk.Keywords(folder)
        self._mode = stat.S_IMODE(os.fstat(folder.fd).st_mode) & 0o666
        self._gid = files.group_in(folder.fd)
        self._host = escape_host(socket.gethostname())
        self._uidlist = Uidlist(folder, mode=self._mode, group=self._gid, durable=fsync != "never")
        self._lists = False
        """A message had a GUID: from then on all get their UIDs from us, or their order would not be kept."""
        self._link = link
        self._clones = link
        """Until the file system says that it cannot."""
        self._device = os.fstat(folder.fd).st_dev

    def close(self) -> None:
        self.folder.close()
        if self._group is not None:
            self._group.release()

    def append(self, batch: Batch) -> list[Appended | Rejected]:
        """All files, one sync, all renames.

        Raises:
            OSError: nothing more of the batch is there than what already has its final name.
        """
        letters = self._letters({flag for message in batch.messages for flag in message.flags} - SYSTEM_FLAGS)
        outcomes: list[Appended | Rejected] = []
        written: deque[tuple[int, str, str]] = deque()
        self.octets = 0
        # A large body makes few system calls for its octets, and would keep its turn for seconds.
        large = any(not isinstance(message.body, bytes) for message in batch.messages)
        began_s = time.perf_counter()
        try:
            with nullcontext() if large else files.FILE_TURNS:
                self.turn_s = time.perf_counter() - began_s
                for index, (message, fingerprint) in enumerate(zip(batch.messages, batch.fingerprints, strict=True)):
                    start = stem(batch.run, batch.number, batch.created_us, index)
                    info, dropped = to_letters(message.flags, letters)
                    try:
                        base = self._write(start, message, fingerprint)
                    except OSError as error:
                        if error.errno in files.WIDE:
                            raise
                        outcomes.append(self._rejected(message, error))
                        continue
                    except MessageUnreadable as error:
                        outcomes.append(Rejected(key=message.key, code=error.code, text=error.text))
                        continue
                    written.append((index, base, info))
                    outcomes.append(Appended(key=message.key, dropped=dropped))
            written_s = time.perf_counter()
            if self._group is not None:
                self._group.sync()
            self.sync_s = time.perf_counter() - written_s
            self._lists = self._lists or any(message.guid for message in batch.messages)
            touched: set[int] = set()
            if self._lists and self.folder.control >= 0:
                with self._uidlist.held():
                    named = list(self._named(batch, written, outcomes, touched))
                    self._uidlist.add([Named(base, message.guid, message.uidl) for base, message in named])
            else:
                deque(self._named(batch, written, outcomes, touched), maxlen=0)
        except BaseException:
            for _, base, _ in written:
                self._remove(base)
            raise
        renamed_s = time.perf_counter()
        if self._group is not None:
            # All lanes share it; a sync of each directory is as much work for ext4, and nobody shares that.
            self._group.sync()
        elif self._fsync != "never":
            disk.sync_directories(sorted(touched))
        self.sync_s += time.perf_counter() - renamed_s
        return outcomes

    def _named(
        self,
        batch: Batch,
        written: deque[tuple[int, str, str]],
        outcomes: list[Appended | Rejected],
        touched: set[int],
    ) -> Iterator[tuple[str, Message]]:
        """Gives the files their names, in order; those that have theirs are taken from `written`."""
        asked_s = time.perf_counter()
        with files.FILE_TURNS:
            self.turn_s += time.perf_counter() - asked_s
            while written:
                index, base, info = written[0]
                fd, name = (self.folder.cur, f"{base}:2,{info}") if info else (self.folder.new, base)
                try:
                    os.rename(base, name, src_dir_fd=self.folder.tmp, dst_dir_fd=fd)
                except OSError as error:
                    if error.errno in files.WIDE:
                        raise
                    self._remove(base)
                    outcomes[index] = self._rejected(batch.messages[index], error)
                else:
                    yield base, batch.messages[index]
                touched.add(fd)
                written.popleft()

    def _write(self, start: str, message: Message, fingerprint: Fingerprint) -> str:
        """One file in `tmp`; returns its name. W is the size with CRLF line ends, as of the fingerprint."""
        size, pieces = as_stored(message.body, wire=message.wire)
        base = f"{start}.{self._host},S={size},W={fingerprint.size}"
        seconds = int(message.internal_date.timestamp() // 1)
        if self._link and message.original is not None and not message.wire:
            original = message.original
            if self._linked(original, base, size, seconds) or self._cloned(original, base, size, seconds):
                self.octets += size
                return base
        kept = disk.write_file(
            self.folder.tmp,
            base,
            pieces,
            mode=self._mode,
            group=self._gid,
            mtime_ns=seconds * 1_000_000_000,
            durable=self._fsync == "each",
        )
        if kept // 1_000_000_000 != seconds:
            logger.warning("date not kept key=%r date=%s", message.key, message.internal_date.isoformat())
        self.octets += size
        return base

    def _linked(self, original: Original, base: str, size: int, seconds: int) -> bool:
        """Gives the source's file a second name here, where it is what we would write; False: it is not, or cannot be.

        Right are its file system, owner, rights, date and octets. Whatever lies behind the path by now: the name is
        kept only when it is that of the file whose octets were read.
        """
        right = (self._device, self._mode, os.geteuid(), seconds, size)
        its = (original.device, original.mode, original.uid, original.mtime_ns // 1_000_000_000, original.size)
        if right != its:
            return False
        try:
            os.link(original.path, base, dst_dir_fd=self.folder.tmp, follow_symlinks=False)
        except OSError:  # also where a leftover has the name: it is written anew
            return False
        try:
            status = os.stat(base, dir_fd=self.folder.tmp, follow_symlinks=False)
            same = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode) == (
                original.inode,
                original.size,
                original.mtime_ns,
                stat.S_IFREG | original.mode,
            ) and self._gid in (-1, status.st_gid)
            if same and self._fsync == "each":
                disk.sync_file(base, self.folder.tmp)
        except BaseException:
            self._remove(base)
            raise
        if not same:
            self._remove(base)
        return same

    def _cloned(self, original: Original, base: str, size: int, seconds: int) -> bool:
        """Lets a new file share the octets of the source's, where it may not be that file; False: it does not.

        As for a link, only the file counts whose octets were read, and only as it was then.
        """
        if not self._clones or original.device != self._device or not CLONED_OCTETS <= size == original.size:
            return False
        try:
            fd = os.open(original.path, files.FILE)
        except OSError:
            return False
        try:
            if not _is(fd, original):
                return False
            rights = {"mode": self._mode, "group": self._gid}
            durable = self._fsync == "each"
            disk.write_file(self.folder.tmp, base, fd, **rights, mtime_ns=seconds * 1_000_000_000, durable=durable)
            if _is(fd, original):
                return True
            self._remove(base)
        except OSError as error:
            if error.errno not in disk.CANNOT_CLONE:
                raise
            self._clones = False
        finally:
            os.close(fd)
        return False

    def _remove(self, base: str) -> None:
        with suppress(OSError):
            os.unlink(base, dir_fd=self.folder.tmp)

    def _rejected(self, message: Message, error: OSError) -> Rejected:
        return Rejected(key=message.key, code="", text=f"{self.folder.path}: {error.strerror or error}")

    def _letters(self, keywords: Iterable[str]) -> dict[str, str]:
        """Keyword → letter for those that have or get one; case does not count (RFC 9051 §2.3.2)."""
        wanted = sorted(filter(is_keyword, keywords))
        if not wanted or self.folder.control < 0:
            return {}
        known = {name.lower(): letter for letter, name in self._keywords.letters().items()}
        if any(name.lower() not in known for name in wanted):
            known = self._allot(wanted)
        return {name: known[name.lower()] for name in wanted if name.lower() in known}

    def _allot(self, wanted: Sequence[str]) -> dict[str, str]:
        """Give letters to new keywords while there are any; returns lower-case name → letter."""
        with disk.dotlock(self.folder.control, f"{disk.UIDLIST}.lock"):
            letters = parse_keywords(disk.read_small(self.folder, disk.KEYWORDS) or b"")
            known = {name.lower(): letter for letter, name in letters.items()}
            free = [chr(ord("a") + number) for number in range(MAX_LETTERS) if chr(ord("a") + number) not in letters]
            before = len(letters)
            for name in wanted:
                if name.lower() not in known and free:
                    letter = free.pop(0)
                    letters[letter] = name
                    known[name.lower()] = letter
            if len(letters) > before:
                data = format_keywords(letters)
                durable = self._fsync != "never"
                rights = {"mode": self._mode, "group": self._gid}
                disk.replace_file(self.folder.control, disk.KEYWORDS, data, **rights, durable=durable)
        return known


def _is(fd: int, original: Original) -> bool:
    """Whether an open file is the one that was read, as it was then."""
    seen = content.signature(fd)
    return seen == (original.device, original.inode, original.size, original.mtime_ns) and stat.S_ISREG(
        os.fstat(fd).st_mode
    )


def as_stored(body: Body, *, wire: bool) -> tuple[int, Iterable[bytes]]:
    """A body as the file will have it: its octets, and their number.

    Raises:
        MessageUnreadable: here and by the iterable, for a body that lies in a file.
    """
    if isinstance(body, bytes):
        stored = local_form(body) if wire else body
        return len(stored), (stored,)
    if not wire:
        return len(body), _cancellable(pieces_of(body))
    size, crcrlf = local_size(_cancellable(pieces_of(body)))  # the name is needed before the file
    return size, local_pieces(_cancellable(pieces_of(body)), crcrlf=crcrlf)


def _cancellable(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        from_thread.check_cancelled()
        yield piece


def _make_folder(root: int, steps: Sequence[str], durable: bool, *, marked: bool) -> None:
    """What is missing of a mailbox and of the directories above it, with the rights of the root.

    `marked`: a folder gets the file that Maildir++ knows its folders by.
    """
    mode, group = stat.S_IMODE(os.fstat(root).st_mode) & 0o2777, files.group_in(root)
    with ExitStack() as stack:
        fd = root
        for step in steps:
            changed = disk.make_directory(fd, step, mode, group)
            if durable and changed:
                os.fsync(fd)
            fd = os.open(step, files.DIRECTORY, dir_fd=fd)
            stack.callback(os.close, fd)
        made = [disk.make_directory(fd, name, mode, group) for name in ("tmp", "new", "cur")]
        if steps and marked:
            with suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                mark = os.open("maildirfolder", flags, mode & 0o666, dir_fd=fd)
                files.share(mark, mode & 0o666, group)
                os.close(mark)
        if durable and any(made):
            os.fsync(fd)


def _empty(folder: int) -> tuple[int, int]:
    """Removes what makes a directory a mailbox, not the mailboxes below it; how many messages of how many octets.

    Raises:
        OSError
    """
    count = octets = 0
    for part in CONTENTS:
        with suppress(FileNotFoundError):
            fd = os.open(part, files.DIRECTORY, dir_fd=folder)
            try:
                for name in os.listdir(fd):
                    if part != "tmp":
                        count += 1
                        octets += os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
                    os.unlink(name, dir_fd=fd)
            finally:
                os.close(fd)
            os.rmdir(part, dir_fd=folder)
    _remove_store_files(folder)
    return count, octets


def _remove_store_files(folder: int) -> None:
    for name in filter(is_store_file, os.listdir(folder)):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=folder)  # courierimapkeywords
        else:
            os.unlink(name, dir_fd=folder)


def _remove_control(place: str) -> None:
    fd = os.open(place, files.DIRECTORY)
    try:
        _remove_store_files(fd)
    finally:
        os.close(fd)
    with suppress(OSError):
        os.rmdir(place)


def _count_quota(root: str, octets: int, count: int) -> None:
    """Add to Maildir++'s `maildirsize` where there is one; readers that keep quota believe it."""
    with suppress(OSError):
        fd = os.open(f"{root}/maildirsize", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        try:
            os.write(fd, f"{octets} {count}\n".encode())
        finally:
            os.close(fd)
