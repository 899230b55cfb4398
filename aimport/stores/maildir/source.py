"""Read a Maildir. Nothing below the root is ever created, renamed, locked or written.

    select: scan ─▶ keys by UID, then by name ─▶ sift        messages: scan ─▶ 64 files a thread hop ─▶ list
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
from array import array
from collections.abc import AsyncGenerator, Callable, Container, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from anyio import from_thread, to_thread

from aimport.errors import MailboxError, SourceMissing
from aimport.flags import from_letters
from aimport.model import (
    PIECE_OCTETS,
    ConnectionLimits,
    Endpoint,
    Mailbox,
    Message,
    MessageKey,
    Order,
    Original,
    Selection,
    Unreadable,
)
from aimport.names import INBOX, printable
from aimport.octets import has_header, pieces_of, wire_size
from aimport.query.facts import ONE_BY_ONE, STAGES, Fact, Facts
from aimport.query.terms import ALL, Term
from aimport.selecting import pick
from aimport.standing import Standing
from aimport.stores import content, files, inflate
from aimport.stores.lazy import Measured, Ordered
from aimport.stores.maildir import disk
from aimport.stores.maildir.columns import Columns, Hint
from aimport.stores.maildir.names import (
    CONTENTS,
    Layout,
    is_guid,
    mailbox_guid,
    message_guids,
    next_uid,
    order,
    parse_uidlist,
    size_in,
    split_name,
    wire_size_in,
)
from aimport.stores.maildir.uidlist import kept
from aimport.stores.room import volume_of

logger = logging.getLogger(__name__)

HOP_MESSAGES: Final = 64
HOP_OCTETS: Final = 1 << 20
HEADER_OCTETS: Final = 4096
"""Read at first for a header; nine in ten are shorter."""
LISTED: Final = STAGES[0]
MANY: Final = 10_000  # arbitrary
"""Messages of a folder whose files are not all looked at before the first is read."""
_TRIES: Final = 20
_ANY_SIZE: Final = 1 << 62
"""A name may promise any; no file is larger."""
_ENCRYPTED: Final = b"CRYPTED\x03\x07"

T = TypeVar("T")


class MaildirSource:
    """One account in a tree of Maildir folders."""

    host = ""

    def __init__(self, endpoint: Endpoint) -> None:
        self._layout = Layout.of(endpoint)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MaildirSourceSession, None]:
        """A session; it holds nothing open between calls."""
        yield MaildirSourceSession(self._layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaildirSelection(Selection):
    """With `hints` beside the keys, so that the folder need not be listed again to read it."""

    hints: Sequence[Hint]


class MaildirSourceSession:
    """Reads one tree of Maildir folders."""

    limits = ConnectionLimits()

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await to_thread.run_sync(_list, self._layout)

    async def select(self, mailbox: Mailbox, term: Term = ALL, order: Order = "stored") -> Selection:
        listing = await to_thread.run_sync(_listed, self._layout, mailbox)
        if term == ALL and order == "stored":
            return listing.selection
        return listing.only(await pick(term, order, MaildirShelf(self._layout, listing)))

    async def inspect(self, targets: Sequence[Mailbox] = ()) -> Standing:
        """Which file system it lies on: files may be linked within one."""
        volume, _ = await to_thread.run_sync(partial(volume_of, self._layout.root, file_each=True))
        return Standing(volume=volume)

    def look(self, selection: Selection, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        assert isinstance(selection, MaildirSelection), "a selection belongs to the store that made it"
        return MaildirShelf(self._layout, Listing(selection=selection, uids={}, uidlist=b"")).look(places, facts)

    async def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        assert isinstance(selection, MaildirSelection), "a selection belongs to the store that made it"
        left = (one for one in zip(selection.keys, selection.hints, strict=True) if one[0] not in skip)
        wanted = list(islice(left, HOP_MESSAGES))
        if not wanted:
            return
        reader = await to_thread.run_sync(_Reader, self._layout, selection.mailbox)
        try:
            while wanted:
                read = await to_thread.run_sync(reader.read, wanted)
                del wanted[: len(read)]
                wanted += islice(left, HOP_MESSAGES - len(wanted))
                yield read
        finally:
            reader.close()


def _list(layout: Layout) -> list[Mailbox]:
    root = disk.open_root(layout)
    try:
        if layout.kind == "index":
            return _in_order(_indexed(layout, root))
        inbox = layout.mailbox("")
        directories = [""] if inbox.path == (INBOX,) and _holds_messages(layout.inbox or ".", root) else []
        if layout.kind == "fs":
            directories += _tree(layout, root)
        else:
            directories += _flat(layout, root)
    except OSError as error:
        raise files.translated(error, layout.root, wide=True) from error
    finally:
        os.close(root)
    return _in_order(layout.mailbox(directory) for directory in directories)


def _in_order(mailboxes: Iterable[Mailbox]) -> list[Mailbox]:
    return sorted(mailboxes, key=lambda mailbox: (mailbox.path != (INBOX,), mailbox.path, mailbox.native))


def _indexed(layout: Layout, root: int) -> Iterator[Mailbox]:
    """Folders of LAYOUT=index that hold messages. One that the index does not name goes by its GUID, and is told.

    Raises:
        SourceMissing: there are no names.
        OSError
    """
    from aimport.stores.dbox.disk import load_table  # most Maildirs have no list index
    from aimport.stores.dbox.index import Damaged
    from aimport.stores.dbox.lists import nodes

    path = f"{layout.list_root}/{layout.list_index}"
    fd = os.open(layout.list_root, files.DIRECTORY)
    try:
        table = load_table(fd, layout.list_index)
        if table is None or table.damage:
            raise Damaged("; ".join(table.damage) if table else "it is missing")
        names = {node.guid: node.levels for node in nodes(table)}
    except Damaged as error:
        raise SourceMissing(f"{path}: {error}; it alone has the names of the folders") from error
    finally:
        os.close(fd)
    above = files.below(layout.mailboxdir.split("/"), root) if layout.mailboxdir else os.dup(root)
    if above < 0:
        return
    try:
        for guid in _names(above):
            if is_guid(guid) and _holds_messages(guid, above):
                if guid not in names:
                    logger.warning("folder without a name path=%r guid=%s", path, guid)
                yield layout.named(names.get(guid, (guid.encode(),)), guid)
    finally:
        os.close(above)


def _flat(layout: Layout, root: int) -> Iterator[str]:
    """Folders of a layout that has all of them side by side."""
    with os.scandir(root) as entries:
        for entry in entries:
            if (layout.kind == "maildir++") != entry.name.startswith(".") or entry.name == "..DOVECOT-TRASHED":
                continue
            if layout.kind == "imapdir" and entry.name in CONTENTS:
                continue
            if entry.is_symlink():
                if _is_foreign(entry.name, root):
                    yield entry.name
            elif entry.is_dir(follow_symlinks=False) and _holds_messages(entry.name, root):
                yield entry.name


def _tree(layout: Layout, root: int) -> Iterator[str]:
    """Folders of LAYOUT=fs, however deep; one whose turn has come is open, with those above it."""
    above = files.below(layout.mailboxdir.split("/"), root) if layout.mailboxdir else os.dup(root)
    if above < 0:
        return
    stack: list[tuple[int, str, Iterator[str]]] = [(above, "", iter(_names(above)))]
    try:
        while stack:
            fd, directory, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            if name in CONTENTS or name == layout.dirname or name.upper().startswith("..DOVECOT-TRASH"):
                continue
            deeper = f"{directory}/{name}" if directory else name
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                if _is_foreign(name, fd):
                    yield deeper
                continue
            if not stat.S_ISDIR(status.st_mode):
                continue
            if _holds_messages(f"{name}/{layout.dirname}" if layout.dirname else name, fd):
                yield deeper
            try:
                below = os.open(name, files.DIRECTORY, dir_fd=fd)
            except PermissionError:
                continue  # listed above: `select` says so
            stack.append((below, deeper, iter(_names(below))))
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _names(fd: int) -> list[str]:
    """Names in a directory, closed again: a deep tree has one descriptor a level and no more."""
    from_thread.check_cancelled()
    with os.scandir(fd) as entries:
        return sorted(entry.name for entry in entries if entry.is_symlink() or entry.is_dir(follow_symlinks=False))


def _is_foreign(link: str, above: int) -> bool:
    """Whether a link is to be listed: an alias of a sibling brings nothing of its own (as Dovecot).

    Any other is not followed, and is listed so that `select` fails it: nothing is lost silently.
    """
    return "/" in os.readlink(link, dir_fd=above).rstrip("/") and _is_mailbox(link, above)


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
        if layout.leads_out(directory):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return disk.open_folder(layout, directory)
    except OSError as error:
        raise files.translated(error, layout.place(directory)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All messages of a folder, and the uidlist as it was then (empty: there is none)."""

    selection: MaildirSelection
    uids: dict[str, int]
    uidlist: bytes

    def only(self, places: Sequence[int]) -> MaildirSelection:
        all_ = self.selection
        return MaildirSelection(
            mailbox=all_.mailbox,
            keys=[all_.keys[place] for place in places],
            sizes=[all_.sizes[place] for place in places],
            hints=[all_.hints[place] for place in places],
        )


def _listed(layout: Layout, mailbox: Mailbox) -> Listing:
    folder = _open(layout, mailbox)
    try:
        columns = disk.gather(folder)
        uidlist, uids = _uids(folder)
        in_order = columns.order(uids) if columns is not None else None
        if columns is not None and in_order is not None:
            selection = MaildirSelection(
                mailbox=mailbox,
                keys=Ordered(in_order, columns.key),
                sizes=_sizes(layout, mailbox, folder, columns, in_order),
                hints=Ordered(in_order, columns.hint),
            )
            return Listing(selection=selection, uids=uids, uidlist=uidlist)
        found = disk.scan(folder, warn=True)
        uidlist, uids = _uids(folder)

        def place(key: MessageKey) -> tuple[int, int, int, str]:
            base = key.partition("/")[0]
            uid = uids.get(base)
            return (0, uid, 0, key) if uid is not None else (1, *order(base)[:2], key)

        keys = sorted(found, key=place)
        selection = MaildirSelection(
            mailbox=mailbox,
            keys=keys,
            sizes=[_size(*found[key]) for key in keys],
            hints=[_hint(key, *found[key], folder) for key in keys],
        )
        return Listing(selection=selection, uids=uids, uidlist=uidlist)
    except OSError as error:
        raise files.translated(error, folder.path) from error
    finally:
        folder.close()


def _uids(folder: disk.Folder) -> tuple[bytes, dict[str, int]]:
    data = disk.read_small(folder, disk.UIDLIST, disk.MAX_UIDLIST)
    if data is None:
        data = disk.read_small(folder, disk.COURIER_UIDS, disk.MAX_UIDLIST)
    if data is None:
        return b"", {}
    try:
        return data, parse_uidlist(data)
    except ValueError as error:
        logger.warning("file ignored path=%r reason=%s", f"{folder.path}/{disk.UIDLIST}", error)
        return b"", {}


def _hint(key: MessageKey, fd: int, name: str, folder: disk.Folder) -> Hint:
    if not name.startswith(key):  # the key of a name that is no UTF-8, or of one of two files of one base
        return ""
    return sys.intern(("n" if fd == folder.new else "c") + name[len(key) :])


def _sizes(
    layout: Layout, mailbox: Mailbox, folder: disk.Folder, columns: Columns, in_order: Sequence[int]
) -> Sequence[int]:
    """Sizes in that order; of many messages when the first is asked for, which an import never does."""

    def measured(opened: disk.Folder) -> array[int]:
        return array(
            "Q",
            (
                min(_size(opened.new if columns.is_new(at) else opened.cur, columns.name(at)), _ANY_SIZE)
                for at in in_order
            ),
        )

    def measured_later() -> array[int]:
        opened = _open(layout, mailbox)
        try:
            return measured(opened)
        finally:
            opened.close()

    return measured(folder) if len(in_order) <= MANY else Measured(len(in_order), measured_later)


def _size(fd: int, name: str) -> int:
    promised = size_in(split_name(name)[0])
    if promised is not None:
        return promised
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
    except OSError:
        return 0  # reading it will say why


class MaildirShelf:
    """A folder for a term to be decided: names tell flags, UIDs and sizes, stat tells dates, files the rest."""

    def __init__(self, layout: Layout, listing: Listing) -> None:
        self._layout = layout
        self._listing = listing
        self._selection = listing.selection
        self.guid = mailbox_guid(listing.uidlist)

    def __len__(self) -> int:
        return len(self._selection.keys)

    async def look(self, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        reader = await to_thread.run_sync(_Reader, self._layout, self._selection.mailbox)
        try:
            if facts & LISTED:
                yield await to_thread.run_sync(self._listed, reader, places, facts)
            elif not facts & ONE_BY_ONE:
                yield await to_thread.run_sync(self._dates, reader, places)
            else:
                at = 0
                while at < len(places):
                    batch = await to_thread.run_sync(self._read, reader, places[at : at + HOP_MESSAGES], facts)
                    at += len(batch.places)
                    yield batch
        finally:
            reader.close()

    def _named(self, places: Sequence[int]) -> list[tuple[MessageKey, Hint]]:
        return [(self._selection.keys[place], self._selection.hints[place]) for place in places]

    def _listed(self, reader: _Reader, places: Sequence[int], facts: Fact) -> Facts:
        seen = Facts(places=places)
        if Fact.UID in facts:
            seen.uids = self._uids()
        if Fact.FLAGS in facts:
            seen.flags = self._flags(reader)
        if Fact.GUID in facts:
            guids = message_guids(self._listing.uidlist)
            bases = [key.partition("/")[0] for key in self._selection.keys]
            seen.guids = [guids.get(base, base) for base in bases]
        if Fact.MODSEQ in facts:
            seen.modseqs = [1] * len(self)  # what Dovecot shows of a message that never changed
        if Fact.SPAN in facts:
            # A line end is one octet that may count as two.
            promised = [wire_size_in(key.partition("/")[0]) for key in self._selection.keys]
            sizes = self._selection.sizes
            seen.least = [size if exact is None else exact for exact, size in zip(promised, sizes, strict=True)]
            seen.most = [2 * size if exact is None else exact for exact, size in zip(promised, sizes, strict=True)]
        return seen

    def _uids(self) -> list[int]:
        """Those of the uidlist, then those that Dovecot would give out."""
        known = self._listing.uids
        following = max(next_uid(self._listing.uidlist), max(known.values(), default=0) + 1)
        uids = []
        for key in self._selection.keys:
            uid = known.get(key)
            if uid is None:
                uid, following = following, following + 1
            uids.append(uid)
        return uids

    def _flags(self, reader: _Reader) -> list[frozenset[str]]:
        """Of the names seen by listing. A local store does not know which were seen before: all are recent."""
        letters = reader.letters()
        known: dict[str, frozenset[str]] = {}
        flags = []
        for key, hint in zip(self._selection.keys, self._selection.hints, strict=True):
            given = known.get(hint)
            if given is None:
                given = known[hint] = from_letters(split_name(f"-{hint[1:]}")[1], letters) | {"\\Recent"}
            more = reader.keywords_of(key.partition("/")[0])
            flags.append(given | more if more else given)
        return flags

    def _dates(self, reader: _Reader, places: Sequence[int]) -> Facts:
        seen = dict(zip(places, reader.stats(self._named(places)), strict=True))
        return Facts(
            places=places,
            dates={place: int(status.st_mtime) if status else None for place, status in seen.items()},
            saved={place: int(status.st_ctime) if status else None for place, status in seen.items()},
        )

    def _read(self, reader: _Reader, places: Sequence[int], facts: Fact) -> Facts:
        wanted = self._named(places)
        if Fact.SIZE in facts:
            return Facts(places=places, sizes=dict(zip(places, reader.wire_sizes(wanted), strict=True)))
        if Fact.HEADER in facts:
            return Facts(places=places, headers=dict(zip(places, reader.headers(wanted), strict=True)))
        read = reader.read(wanted)
        some = places[: len(read)]
        bodies = [each.body if isinstance(each, Message) else None for each in read]
        return Facts(places=some, bodies=dict(zip(some, bodies, strict=True)))


class _Reader:
    """Reads the messages of one folder, hop by hop, in worker threads."""

    def __init__(self, layout: Layout, mailbox: Mailbox) -> None:
        self._folder = _open(layout, mailbox)
        self._ahead: Message | None = None
        """A large message that was opened when its turn had not come."""
        try:
            self._keywords = disk.Keywords(self._folder)
            self._courier = disk.courier_keywords(self._folder)
            uidlist = disk.read_small(self._folder, disk.UIDLIST, disk.MAX_UIDLIST)
            self._of_dovecot = uidlist is not None
            """It has given each message a GUID: that of its line, else its base name."""
            self._kept = kept(uidlist or b"")
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
        """The first of `wanted`, one at least, up to HOP_OCTETS; a larger one stands alone.

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
                octets += len(result.body)
                # A list just above what a batch may hold would go as two batches, the second of one message.
                if done and (octets > HOP_OCTETS or not isinstance(result.body, bytes)):
                    self._ahead = result
                    break
            done.append(result)
            if len(done) % 16 == 0:
                from_thread.check_cancelled()
        self._fresh = False
        return done

    def letters(self) -> dict[str, str]:
        return self._keywords.letters()

    def stats(self, wanted: Sequence[tuple[MessageKey, Hint]]) -> list[os.stat_result | None]:
        """Of the files as they are now; None: it is gone, or may not be looked at."""
        return self._each(wanted, lambda fd, name: os.stat(name, dir_fd=fd, follow_symlinks=False))

    def headers(self, wanted: Sequence[tuple[MessageKey, Hint]]) -> list[bytes | None]:
        """The beginnings of messages, with all of the header in them; None: it cannot be read."""
        return self._each(wanted, _read_header)

    def wire_sizes(self, wanted: Sequence[tuple[MessageKey, Hint]]) -> list[int | None]:
        """Octets with every line end as CRLF; None: it cannot be read."""
        return self._each(wanted, _wire_size)

    def keywords_of(self, base: str) -> frozenset[str]:
        """Those that Courier has given the message with this base name."""
        return self._courier.get(base, frozenset()) if self._courier else frozenset()

    def _each(self, wanted: Sequence[tuple[MessageKey, Hint]], act: Callable[[int, str], T]) -> list[T | None]:
        with files.READ_TURNS as turns:
            began = time.monotonic()
            found: list[T | None] = []
            for key, hint in wanted:
                result = self._found(key, hint, act)
                found.append(None if isinstance(result, Unreadable) else result)
                if len(found) % 64 == 0:
                    from_thread.check_cancelled()
            self._fresh = False
            turns.took(len(found), time.monotonic() - began)
            return found

    def _read(self, key: MessageKey, hint: Hint, letters: dict[str, str]) -> Message | Unreadable:
        def act(fd: int, name: str) -> Message:
            base, info = split_name(name)
            flags = from_letters(info, letters) | self.keywords_of(base)
            part = "new" if fd == self._folder.new else "cur"
            guid, uidl = self._kept.get(base) or (base if self._of_dovecot else "", "")
            return _read_file(key, fd, name, flags, f"{self._folder.path}/{part}", guid, uidl)

        return self._found(key, hint, act)

    def _found(self, key: MessageKey, hint: Hint, act: Callable[[int, str], T]) -> T | Unreadable:
        """Does something with one message under the name that it has now.

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
                    return act(*place)
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


def _read_file(
    key: MessageKey, dir_fd: int, name: str, flags: frozenset[str], path: str, guid: str, uidl: str
) -> Message:
    """A message; one above `STREAM_OCTETS` keeps its file open. `path` is that of its directory."""
    path = f"{path}/{name}"
    body, status, compressed = content.read_file(files.open_file(name, dir_fd), printable(path))
    if isinstance(body, bytes) and body.startswith(_ENCRYPTED):
        raise OSError(errno.EIO, "it is encrypted (mail_crypt)")
    original = None
    if not compressed:
        original = Original(
            path,
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
        )
    return Message(
        key=key,
        flags=flags,
        internal_date=files.date_of(status.st_mtime_ns // 1_000_000_000, name),
        body=body,
        original=original,
        guid=guid,
        uidl=uidl,
    )


@contextmanager
def _regular(dir_fd: int, name: str) -> Iterator[int]:
    """An open file.

    Raises:
        OSError: also where it is something else.
    """
    fd = files.open_file(name, dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield fd
    finally:
        os.close(fd)


def _read_header(dir_fd: int, name: str) -> bytes:
    """As much of a message as its header needs."""
    with _regular(dir_fd, name) as fd:
        head = os.read(fd, HEADER_OCTETS)
        if inflate.format_of(head[: inflate.HEAD]) is None:
            while not has_header(head) and (more := os.read(fd, len(head))):
                head += more
            return head
    head = b""
    for piece in _decompressed(dir_fd, name):
        head += piece
        if has_header(head):
            break
    return head


def _decompressed(dir_fd: int, name: str) -> Iterator[bytes]:
    body, _, _ = content.read_file(files.open_file(name, dir_fd), printable(name))
    try:
        yield from pieces_of(body)
    finally:
        if not isinstance(body, bytes):
            body.close()


def _wire_size(dir_fd: int, name: str) -> int:
    with _regular(dir_fd, name) as fd:
        if inflate.format_of(os.pread(fd, inflate.HEAD, 0)) is None:
            return wire_size(iter(lambda: os.read(fd, PIECE_OCTETS), b""))
    return wire_size(_decompressed(dir_fd, name))
