"""Write mbox files that Dovecot and plain readers understand; what fails leaves the file as it was.

    a batch, one thread hop:  lock (dotlock, fcntl) ─▶ all messages behind the last ─▶ sync ─▶ unlock
                                                          └─ any failure: the file is cut back to what it was

A message carries in its From_ line which one it is and how long, so `find` knows it after a crash, and what a killed
process left half is cut off before the next is written.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import time
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Final

from anyio import from_thread, to_thread

from aimport.errors import AimportError, MailboxError, MailboxNameInvalid, MailboxNotFound, MessageUnreadable
from aimport.flags import SYSTEM_FLAGS
from aimport.interfaces import Settled, SourceSession
from aimport.model import (
    Appended,
    Batch,
    Body,
    ConnectionLimits,
    Endpoint,
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
from aimport.octets import has_header, local_form, local_pieces, local_size, pieces_of, wire_size
from aimport.standing import Standing
from aimport.stores import Fsync, content, files
from aimport.stores.maildir import disk as maildir_disk
from aimport.stores.maildir.names import with_subscription
from aimport.stores.mbox import compose, disk
from aimport.stores.mbox.headers import read_header
from aimport.stores.mbox.lines import date_of
from aimport.stores.mbox.names import Layout
from aimport.stores.mbox.scan import NotMbox, Scanner, head_of
from aimport.stores.mbox.source import MboxSourceSession
from aimport.stores.room import inspected

logger = logging.getLogger(__name__)

LOCK_DEADLINE_S: Final = 130.0
HEAD_OCTETS: Final = 1 << 20
HALF_LINE: Final = 1024
_HALF = re.compile(rb"[\r\n]*(F(?:r(?:o(?:m(?: [^\n]*)?)?)?)?)\Z")
_HALF_OURS = re.compile(rb"\n(From [^\n]* remote from aimport-[^\n]*)\Z")


class MboxDestination:
    """One account in a tree of mbox files, made when missing. `fsync` says what "appended" promises."""

    host = ""
    wire = False

    def __init__(self, endpoint: Endpoint, fsync: Fsync = "batch") -> None:
        self._layout = Layout.of(endpoint)
        self._fsync: Fsync = fsync

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MboxDestinationSession, None]:
        """A session; it holds no lock between calls."""
        yield MboxDestinationSession(self._layout, self._fsync)


class MboxDestinationSession:
    """Writes one tree of mbox files. A position is an octet: what is stored later stands behind it."""

    limits = ConnectionLimits()
    separator = "/"
    folds_case = False
    waits = False

    def __init__(self, layout: Layout, fsync: Fsync) -> None:
        self._layout = layout
        self._fsync: Fsync = fsync
        self._checked: dict[tuple[str, ...], content.Signature] = {}
        """Files whose end was seen to be whole, as they were then."""

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await MboxSourceSession(self._layout).list_mailboxes()

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        steps = self._layout.new_steps(mailbox)
        await to_thread.run_sync(self._create, mailbox, steps, subscribe)

    async def append(self, mailbox: Mailbox, batch: Batch) -> Settled:
        return await to_thread.run_sync(self._append, mailbox, batch)

    async def position(self, mailbox: Mailbox) -> Position | None:
        return await to_thread.run_sync(self._position, mailbox)

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        return await to_thread.run_sync(self._find, mailbox, wanted, since)

    async def survey(self, mailbox: Mailbox, since: Position, *, sizes: bool = True) -> Survey | None:
        return await to_thread.run_sync(self._survey, mailbox, since)

    @asynccontextmanager
    async def reading(self, mailbox: Mailbox) -> AsyncGenerator[tuple[SourceSession, Mailbox]]:
        yield MboxSourceSession(self._layout), mailbox

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        return compose.mark_of(wanted.run, wanted.number, wanted.index)

    async def inspect(self, targets: Sequence[Mailbox] = ()) -> Standing:
        return await to_thread.run_sync(partial(inspected, self._layout.root, targets, self._places, file_each=False))

    def _places(self, mailbox: Mailbox) -> list[str]:
        return [self._path(self._layout.new_steps(mailbox))]

    def _path(self, steps: tuple[str, ...]) -> str:
        layout = self._layout
        if not steps:
            return layout.inbox or layout.root
        return "/".join(filter(None, (layout.root, layout.mailboxdir, *steps, layout.dirname)))

    def _create(self, mailbox: Mailbox, steps: tuple[str, ...], subscribe: bool) -> None:
        layout = self._layout
        path = self._path(steps)
        durable = self._fsync != "never"
        try:
            maildir_disk.make_path(layout.root, durable)
            with self._directory(steps, make=True) as (directory, name):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                mode = stat.S_IMODE(os.fstat(directory).st_mode) & 0o666
                try:
                    fd = os.open(name, flags, mode, dir_fd=directory)
                except FileExistsError:
                    if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                        raise MailboxNameInvalid(f"{path}: is a directory: a mailbox has no others below it") from None
                else:
                    files.share(fd, mode, files.group_in(directory))
                    os.close(fd)
                    if durable:
                        os.fsync(directory)
        except NotADirectoryError as error:
            text = f"{path}: one of the levels above is a file: a mailbox has no others below it"
            raise MailboxNameInvalid(text, hint="DIRNAME= gives each a directory of its own") from error
        except OSError as error:
            raise files.translated(error, path, wide=not os.access(layout.root, os.W_OK)) from error
        if subscribe:
            try:
                self._subscribe(mailbox)
            except (OSError, ValueError, AimportError) as error:
                logger.warning("subscribe failed mailbox=%r reason=%s", mailbox.name, error)

    def _subscribe(self, mailbox: Mailbox) -> None:
        layout = self._layout
        levels = layout.new_steps(mailbox) or ("INBOX",)
        if mailbox.path == ("INBOX",):
            levels = ("INBOX",)
        fd = os.open(layout.root, files.DIRECTORY)
        try:
            with maildir_disk.dotlock(fd, f"{layout.subscriptions}.lock"):
                data = files.read_control(layout.subscriptions, fd, layout.root, maildir_disk.MAX_SMALL)
                changed = with_subscription(data, levels, self.separator)
                if changed is not None:
                    mode = stat.S_IMODE(os.fstat(fd).st_mode) & 0o666
                    durable = self._fsync != "never"
                    rights = {"mode": mode, "group": files.group_in(fd)}
                    maildir_disk.replace_file(fd, layout.subscriptions, changed, **rights, durable=durable)
        finally:
            os.close(fd)

    @contextmanager
    def _directory(self, steps: tuple[str, ...], *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The directory of a mailbox's file, and the name of the file in it. No link is followed below the root.

        Raises:
            OSError
        """
        layout = self._layout
        if not steps:
            above, name = os.path.split(layout.inbox)
            if make:
                maildir_disk.make_path(above, self._fsync != "never")
            fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
            way: tuple[str, ...] = ()
        else:
            fd = os.open(layout.root, files.DIRECTORY)
            way = (*filter(None, layout.mailboxdir.split("/")), *steps, *filter(None, (layout.dirname,)))
            *inner, name = way
            way = tuple(inner)
        try:
            for step in way:
                above_fd = fd
                try:
                    if make:
                        mode = stat.S_IMODE(os.fstat(above_fd).st_mode) & 0o2777
                        made = maildir_disk.make_directory(above_fd, step, mode, files.group_in(above_fd))
                        if made and self._fsync != "never":
                            os.fsync(above_fd)
                    fd = os.open(step, files.DIRECTORY, dir_fd=above_fd)
                except BaseException:
                    fd = above_fd
                    raise
                os.close(above_fd)
            yield fd, name
        finally:
            os.close(fd)

    def _append(self, mailbox: Mailbox, batch: Batch) -> Settled:
        steps = self._layout.new_steps(mailbox)
        path = self._path(steps)
        try:
            with self._directory(steps) as (directory, name), _locked(directory, name, path) as fd:
                writer = _Writer(fd, path, self._layout, batch)
                if self._checked.get(steps) != content.signature(fd):
                    writer.cut_off_what_is_half()
                outcomes = writer.append()
                written_s = time.perf_counter()
                if self._fsync != "never":
                    try:
                        os.fdatasync(fd)
                    except OSError:
                        writer.undo()
                        raise
                sync_s = time.perf_counter() - written_s
                self._checked[steps] = content.signature(fd)
                return Settled(outcomes, sync_s)
        except OSError as error:
            raise files.translated(error, path) from error

    def _position(self, mailbox: Mailbox) -> Position | None:
        octets = self._content(mailbox)
        if octets is None:
            return None
        try:
            return Position(uidnext=octets.limit or 0)
        finally:
            octets.close()

    def _content(self, mailbox: Mailbox) -> content.Plain | None:
        """The file of a mailbox; None when there is none."""
        steps = self._layout.new_steps(mailbox)
        try:
            return content.Plain(disk.open_mbox(self._layout, steps))
        except AimportError as error:  # the root is not there
            if os.path.lexists(self._layout.root):
                raise
            logger.debug("no mailbox mailbox=%r reason=%s", mailbox.name, error)
            return None
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise files.translated(error, self._path(steps)) from error

    def _find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> list[Stored]:
        marks = {self.place(each, None, 0): at for at, each in enumerate(wanted)}
        found: dict[int, Stored] = {}
        for _, line, _, date, whole in self._stored(mailbox, since):
            mark = compose.mark_in(line)
            if mark is not None and mark[0] in marks and whole:
                at = marks[mark[0]]
                found[at] = Stored(fingerprint=wanted[at].fingerprint, internal_date=date, wanted=at)
        return [found[at] for at in sorted(found)]

    def _stored(self, mailbox: Mailbox, since: Position) -> Iterator[tuple[MessageKey, bytes, int, int, bool]]:
        """Key, From_ line, octets and date of the messages behind a position, and whether they are whole."""
        octets = self._content(mailbox)
        if octets is None:
            return
        try:
            start = since.uidnext if since.uidnext <= (octets.limit or 0) else 0
            for at, stop, identity, line in _messages(octets, start):
                date = date_of(line)
                seconds = int(date.timestamp()) if date is not None else 0
                start = at + len(line) + 1
                key = MessageKey(f"{at}-{identity:08x}")
                yield key, line, stop - start, seconds, _is_whole(octets, line, start, stop)
        except OSError as error:
            raise files.translated(error, mailbox.name) from error
        finally:
            octets.close()

    def _survey(self, mailbox: Mailbox, since: Position) -> Survey | None:
        octets = self._content(mailbox)
        if octets is None:
            return None
        keys: list[MessageKey] = []
        sizes, dates = array("Q"), array("q")
        places: dict[str, int] = {}
        try:
            for key, line, size, date, whole in self._stored(mailbox, since):
                mark = compose.mark_in(line)
                if mark is not None and whole:
                    places[mark[0]] = len(keys)
                start = int(key.partition("-")[0]) + len(line) + 1
                keys.append(key)
                sizes.append(_wire_size(octets, start, start + size))
                dates.append(date)
        except OSError as error:
            raise files.translated(error, mailbox.name) from error
        finally:
            octets.close()
        return Survey(uidvalidity=0, keys=keys, sizes=sizes, dates=dates, at=Places(places))


def _messages(octets: content.Plain, start: int = 0) -> Iterator[tuple[int, int, int, bytes]]:
    """Place, end, identity and From_ line of the messages behind a place; of all when none begins there.

    Raises:
        MailboxError: the file is no mbox.
    """
    place = start
    while place < (octets.limit or 0) and octets.read(place, place + 1) in (b"\n", b"\r"):
        place += 1
    try:
        for each in Scanner(octets.pieces(place)).extents():
            at = place + each.start
            yield at, place + each.stop, each.identity, octets.read(at, place + each.content).rstrip(b"\n")
    except NotMbox:
        if not start:
            raise MailboxError("the file is no mbox", hint="look at it before going on") from None
        yield from _messages(octets)


def _is_whole(octets: content.Plain, line: bytes, start: int, stop: int, *, strictly: bool = True) -> bool:
    """Whether a message of ours is all there; of others always.

    Readers write the header anew, so its Content-Length decides. Where it has none the octets do that it had at first,
    but not so that anything is cut off for it (`strictly` False) that ends as a message does.
    """
    mark = compose.mark_in(line)
    if mark is None:
        return True
    if start >= stop:
        return False
    header, body = compose.split_message(octets.read(start, min(stop, start + HEAD_OCTETS)))
    if body < 0 and stop - start < HEAD_OCTETS:
        return False
    length = compose.length_in(header)
    if length is not None and body >= 0:
        return stop - start - body >= length
    if stop - start >= mark[1]:
        return True
    return not strictly and octets.read(stop, stop + 2).startswith(b"\n")


def _wire_size(octets: content.Plain, start: int, stop: int) -> int:
    """Octets of a message in wire form, without what is for the file alone."""
    head = octets.read(start, min(stop, start + HEAD_OCTETS))
    header, body = compose.split_message(head)
    own = read_header(header).octets
    rest = octets.pieces(start + body) if body >= 0 else iter(())

    def counted() -> Iterator[bytes]:
        left = stop - start - body
        yield own + (b"\n" if body >= 0 else b"")
        for piece in rest:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    return wire_size(counted())


@contextmanager
def _locked(directory: int, name: str, path: str) -> Iterator[int]:
    """The file, open for writing, under both locks that other programs take for it: dotlock, then fcntl.

    Raises:
        MailboxError: somebody else holds one of them until the deadline.
        MailboxNotFound
        OSError
    """
    with maildir_disk.dotlock(directory, f"{name}.lock"):
        try:
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        except FileNotFoundError as error:
            raise MailboxNotFound(f"{path}: {error.strerror}", code="NONEXISTENT") from error
        content.regular(fd)
        try:
            deadline = time.monotonic() + LOCK_DEADLINE_S
            while True:
                try:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise MailboxError(f"{path} is locked by another program") from None
                    from_thread.check_cancelled()
                    time.sleep(0.05)
            yield fd
        finally:
            os.close(fd)  # and with it the lock


class _Writer:
    """Writes one batch behind what an open and locked file holds."""

    def __init__(self, fd: int, path: str, layout: Layout, batch: Batch) -> None:
        self._fd = fd
        self._path = path
        self._dialect = layout.dialect
        self._batch = batch
        self._size = os.fstat(fd).st_size
        """What the file is cut back to."""
        self._known: list[str] = []
        self._base: tuple[bytes, int] | None = None
        """The list of keywords as it was, and its place, once it was changed."""

    def cut_off_what_is_half(self) -> None:
        """What a killed process left of its last message goes. It is ours, and the journal knows it as not stored."""
        octets = content.Plain(self._fd)
        all_ = deque(_messages(octets), maxlen=1)
        if not all_:
            return
        at, stop, _, line = all_[0]
        mark = compose.mark_in(line)
        start = at + len(line) + 1
        if start > self._size or (mark is not None and not _is_whole(octets, line, start, stop, strictly=False)):
            self._cut(at)  # in the first case there is no more than a part of its From_ line
            return
        # Cut in a From_ line there is no message, but what looks like the end of the one before.
        end = start + mark[1] if mark is not None else max(start, self._size - HALF_LINE)
        rest = os.pread(self._fd, HALF_LINE, end)
        half = _HALF_OURS.search(rest) if mark is None else _HALF.match(rest)
        if half is not None and end + len(rest) == self._size:
            self._cut(end + half.start(1))

    def _cut(self, place: int) -> None:
        logger.warning("half a message cut off path=%r place=%d octets=%d", self._path, place, self._size - place)
        os.ftruncate(self._fd, place)
        self._size = place

    def append(self) -> list[Appended | Rejected]:
        """All messages, or none and the file as it was.

        Raises:
            OSError
        """
        try:
            self._announce()
            outcomes: list[Appended | Rejected] = []
            end = self._size
            for index, message in enumerate(self._batch.messages):
                from_thread.check_cancelled()
                before = end
                try:
                    dropped, end = self._write(index, message, end)
                except MessageUnreadable as error:
                    end = before
                    os.ftruncate(self._fd, end)
                    outcomes.append(Rejected(key=message.key, code=error.code, text=error.text))
                    continue
                outcomes.append(Appended(key=message.key, dropped=dropped))
            if os.fstat(self._fd).st_size != end:
                raise OSError(errno.EIO, f"{os.fstat(self._fd).st_size} of {end} octets were written")
        except BaseException:
            self.undo()
            raise
        return outcomes

    def undo(self) -> None:
        """The file as it was."""
        with suppress(OSError):
            os.ftruncate(self._fd, self._size)
            if self._base is not None:
                _write_all(self._fd, *self._base)

    def _announce(self) -> None:
        """Makes the keywords of the batch known, as far as the first message has room for them."""
        wanted = {flag for message in self._batch.messages for flag in message.flags} - SYSTEM_FLAGS
        if not self._size:
            self._known = compose.announced([], wanted, compose.BASE_ROOM * 4)
            return
        start = os.pread(self._fd, HEAD_OCTETS, 0)
        head = head_of(start)
        base = compose.parse_base(start[: head.header_end + 1])
        if base is None:
            return
        place, room, known = base
        self._known = compose.announced(known, wanted, room)
        if len(self._known) > len(known):
            text = "".join(f" {word}" for word in self._known).encode().ljust(room)
            self._base = start[place : place + room], place
            _write_all(self._fd, text, place)

    def _write(self, index: int, message: Message, end: int) -> tuple[tuple[str, ...], int]:
        """One message; what it lost, and where the file ends now."""
        batch = self._batch
        head, body_start = _head_of_body(message.body, wire=message.wire)
        header = head[:body_start] if body_start >= 0 else head
        header, _ = compose.split_message(header)
        length, parts = self._body(message, body_start)
        base = b""
        if not end:
            uidvalidity = batch.created_us // 1_000_000 & 0x7FFFFFFF
            base = compose.base_line(uidvalidity, self._known)
        told = None if self._dialect in ("mboxo", "mboxrd") else length
        framed = compose.framed(header, message.flags, self._known, length=told, base=base)
        mark = compose.mark_of(batch.run, batch.number, index)
        line = compose.from_line(header, message.internal_date, mark, len(framed.head) + length)
        start = b"" if not end or os.pread(self._fd, 1, end - 1) == b"\n" else b"\n"
        end = _write_all(self._fd, start + line + framed.head, end)
        for part in parts:
            from_thread.check_cancelled()
            end = _write_all(self._fd, part, end)
        if told is None and length and os.pread(self._fd, 1, end - 1) != b"\n":
            end = _write_all(self._fd, b"\n", end)  # an empty line needs one before it that has ended
        return framed.dropped, _write_all(self._fd, b"\n", end)

    def _body(self, message: Message, body_start: int) -> tuple[int, Iterable[bytes]]:
        """The body as the file will have it."""
        if body_start < 0:
            return 0, ()
        if isinstance(message.body, bytes):
            whole = local_form(message.body) if message.wire else message.body
            part = b"".join(compose.quoted((whole[body_start:],), self._dialect))
            return len(part), (part,)

        def parts() -> Iterator[bytes]:
            return compose.quoted(_from(_local(message.body, wire=message.wire), body_start), self._dialect)

        return sum(map(len, parts())), parts()


def _local(body: Body, *, wire: bool) -> Iterator[bytes]:
    if not wire:
        return pieces_of(body)
    _, crcrlf = local_size(pieces_of(body))
    return local_pieces(pieces_of(body), crcrlf=crcrlf)


def _from(pieces: Iterable[bytes], start: int) -> Iterator[bytes]:
    """The octets from a place on."""
    for piece in pieces:
        if len(piece) > start:
            yield piece[start:]
        start = max(0, start - len(piece))


def _head_of_body(body: Body, *, wire: bool) -> tuple[bytes, int]:
    """The beginning of a body in local form, with all of its header, and where the body proper begins (-1: nowhere)."""
    if isinstance(body, bytes):
        head = local_form(body) if wire else body
    else:
        head = b""
        for piece in _local(body, wire=wire):
            head += piece
            if has_header(head):
                break
    return head, compose.split_message(head)[1]


def _write_all(fd: int, data: bytes, at: int) -> int:
    """All octets at a place; returns the place behind them."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        if count <= 0:
            raise OSError(errno.EIO, "nothing is written any more")
        at += count
        view = view[count:]
    return at
