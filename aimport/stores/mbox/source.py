"""Read mbox files. Nothing is ever created, locked or written at the source.

    select: one pass ─▶ extents        messages: up to 64 messages a thread hop ─▶ list
                                                  ▲ written anew meanwhile: found again by From_ line and Message-ID

No lock is taken, so the file may change at any time: messages count when the file was the same before and after they
were read, and each begins with the From_ line and the Message-ID that were seen at the listing.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from array import array
from collections.abc import AsyncGenerator, Container, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from anyio import from_thread, to_thread

from aimport.errors import MailboxError, MailboxNotFound, SourceMissing
from aimport.model import (
    STREAM_OCTETS,
    Body,
    ConnectionLimits,
    Endpoint,
    Mailbox,
    Message,
    Order,
    Selection,
    Unreadable,
)
from aimport.names import INBOX, printable
from aimport.query.facts import Fact, Facts
from aimport.query.terms import ALL, Term
from aimport.stores import content, files
from aimport.stores.lazy import Ordered
from aimport.stores.mbox import disk
from aimport.stores.mbox.extents import Extents, align
from aimport.stores.mbox.headers import Dialect, labels_of, read_header, takeout_flags, takeout_mailbox, unquoted
from aimport.stores.mbox.lines import date_of
from aimport.stores.mbox.names import Layout, is_step, without_suffix
from aimport.stores.mbox.scan import Findings, NotMbox, Scanner, head_of
from aimport.stores.shelf import ByReading, selected

logger = logging.getLogger(__name__)

HOP_MESSAGES: Final = 64
HOP_OCTETS: Final = 1 << 20
HEAD_OCTETS: Final = 1 << 20
"""So much of a large message is searched for the end of its header."""
SNIFFED: Final = 64 * 1024
_TRIES: Final = 5
_LABELS: Final = "//"
"""Between the file and the label of a mailbox that exists by its label only: no path holds it."""

Steps = tuple[str, ...]


class MboxSource:
    """One account: a tree of mbox files, or one file."""

    host = ""

    def __init__(self, endpoint: Endpoint) -> None:
        self._layout = Layout.of(endpoint)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MboxSourceSession, None]:
        """A session; it holds nothing open between calls."""
        yield MboxSourceSession(self._layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class MboxSelection(Selection):
    """With the places of all messages in the file as it was, and which of them were selected."""

    steps: Steps
    extents: Extents
    indexes: Sequence[int]
    signature: content.Signature
    label: Steps = ()
    """The mailbox that labels make of a part of the file; empty: all of it."""

    def only(self, places: Sequence[int]) -> MboxSelection:
        """The selected messages at these places."""
        indexes = array("Q", (self.indexes[place] for place in places))
        keys, sizes = Ordered(indexes, self.extents.key), Ordered(indexes, self.extents.size)
        return replace(self, keys=keys, sizes=sizes, indexes=indexes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labelled:
    """A file of Google Takeout, seen once for all its mailboxes."""

    signature: content.Signature
    mailboxes: dict[Steps, Extents]


class MboxSourceSession:
    """Reads one account."""

    limits = ConnectionLimits()

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._labelled: dict[Steps, _Labelled] = {}

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await to_thread.run_sync(self._list)

    async def select(self, mailbox: Mailbox, term: Term = ALL, order: Order = "stored") -> Selection:
        whole = await to_thread.run_sync(self._select, mailbox)
        return await selected(self, whole, term, order, whole.only)

    def look(self, selection: Selection, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        assert isinstance(selection, MboxSelection), "a selection belongs to the store that made it"
        return ByReading(self, len(selection.keys), selection.only).look(places, facts)

    async def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        assert isinstance(selection, MboxSelection), "a selection belongs to the store that made it"
        key = selection.extents.key
        wanted = array("Q", (index for index in selection.indexes if key(index) not in skip))
        if not wanted:
            return
        reader = await to_thread.run_sync(_Reader, self._layout, selection)
        try:
            at = 0
            while at < len(wanted):
                hop = _hop(selection.extents, wanted, at)
                yield await to_thread.run_sync(reader.read, hop)
                at += len(hop)
        finally:
            reader.close()

    def _list(self) -> list[Mailbox]:
        layout = self._layout
        found: list[Mailbox] = []
        try:
            root = disk.open_root(layout)
            try:
                if stat.S_ISREG(os.fstat(root).st_mode):
                    return self._mailboxes_of((), os.dup(root), layout.root)
                if layout.inbox:
                    found += self._inbox()
                found += self._tree(root)
            finally:
                os.close(root)
        except OSError as error:
            raise files.translated(error, layout.root, wide=True) from error
        return sorted(found, key=lambda mailbox: (mailbox.path != (INBOX,), mailbox.path, mailbox.native))

    def _inbox(self) -> list[Mailbox]:
        try:
            fd = disk.open_mbox(self._layout, ())
        except FileNotFoundError:
            return []
        except OSError:
            return [Mailbox(path=(INBOX,), separator="/")]  # `select` says what is wrong
        return self._mailboxes_of((), fd, self._layout.inbox)

    def _mailboxes_of(self, steps: Steps, fd: int, path: str) -> list[Mailbox]:
        """The mailboxes of one file, whose descriptor is taken: one, or one a label."""
        octets = content.opened(fd, path)
        try:
            kind = _sniff(octets)
        except MailboxError:
            kind = "mbox"  # `select` says what is wrong
        finally:
            octets.close()
        mailbox = self._layout.mailbox(steps) if steps else Mailbox(path=(INBOX,), separator="/")
        if kind == "mbox":
            return [mailbox]
        if kind == "other":
            if not steps:
                return [mailbox]
            logger.warning("file passed over path=%r reason=%s", path, "it does not begin with a From_ line")
            return []
        native = "/".join(map(printable, steps)) + _LABELS
        labelled = self._labels(steps).mailboxes
        return [Mailbox(path=label, separator="/", native=native + "/".join(label)) for label in labelled]

    def _tree(self, root: int) -> Iterator[Mailbox]:
        """Mailboxes of a tree of files, however deep; one directory a level is open."""
        layout = self._layout
        above = files.below(layout.mailboxdir.split("/"), root) if layout.mailboxdir else os.dup(root)
        if above < 0:
            return
        stack: list[tuple[int, Steps, Iterator[str]]] = [(above, (), iter(sorted(os.listdir(above))))]
        try:
            while stack:
                from_thread.check_cancelled()
                fd, steps, names = stack[-1]
                name = next(names, None)
                if name is None:
                    os.close(stack.pop()[0])
                    continue
                deeper = (*steps, name)
                if layout.passes_over(name) or (layout.inbox and deeper == ("inbox",)):
                    continue
                path = "/".join((layout.root, *map(printable, deeper)))
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    try:
                        below = os.open(name, files.DIRECTORY, dir_fd=fd)
                    except PermissionError:
                        yield layout.mailbox(deeper)  # `select` says so
                        continue
                    if layout.dirname:
                        yield from self._in_dirname(deeper, below, path)
                    stack.append((below, deeper, iter(sorted(os.listdir(below)))))
                elif stat.S_ISLNK(status.st_mode):
                    if "/" in os.readlink(name, dir_fd=fd).rstrip("/"):
                        yield layout.mailbox(deeper)  # not followed, and not passed over in silence: `select` fails it
                elif not layout.dirname:
                    try:
                        file = files.open_regular(name, fd)
                    except OSError:
                        yield layout.mailbox(deeper)
                        continue
                    yield from self._mailboxes_of(deeper, file, path)
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _in_dirname(self, steps: Steps, directory: int, path: str) -> list[Mailbox]:
        try:
            file = files.open_regular(self._layout.dirname, directory)
        except FileNotFoundError:
            return []
        except OSError:
            return [self._layout.mailbox(steps)]
        return self._mailboxes_of(steps, file, f"{path}/{self._layout.dirname}")

    def _labels(self, steps: Steps) -> _Labelled:
        """The mailboxes of a file of Google Takeout, from one pass over it."""
        fd = disk.open_mbox(self._layout, steps)
        known = self._labelled.get(steps)
        if known is not None and known.signature == content.signature(fd):
            os.close(fd)
            return known
        path = _path(self._layout, steps)
        octets = content.opened(fd, path)
        try:
            seen = octets.signature()
            mailboxes: dict[Steps, Extents] = {}
            scanner = Scanner(octets.pieces(), limit=octets.limit)
            for extent in scanner.extents():
                label = takeout_mailbox(labels_of(extent.labels))
                mailboxes.setdefault(label, Extents()).add(extent)
        finally:
            octets.close()
        tell(path, scanner.findings, self._layout.dialect)
        logger.info("labels became mailboxes path=%r mailboxes=%d", path, len(mailboxes))
        self._labelled[steps] = known = _Labelled(signature=seen, mailboxes=mailboxes)
        return known

    def _select(self, mailbox: Mailbox) -> MboxSelection:
        layout = self._layout
        native, labels, label_text = mailbox.native.partition(_LABELS)
        label = tuple(label_text.split("/")) if labels else ()
        steps = (tuple(native.split("/")) if native else ()) if labels else self._steps(mailbox)
        path = _path(layout, steps)
        try:
            if not all(map(is_step, steps)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if label:
                labelled = self._labels(steps)
                if label not in labelled.mailboxes:
                    raise MailboxNotFound(f"{path}: no message with this label", code="NONEXISTENT")
                extents, seen = labelled.mailboxes[label], labelled.signature
            else:
                octets = content.opened(disk.open_mbox(layout, steps), path)
                try:
                    seen = octets.signature()
                    extents = _scan(octets, path, layout)
                finally:
                    octets.close()
        except NotMbox:
            raise MailboxError(
                f"{path}: it does not begin with a From_ line", hint="nothing in it was taken for mail"
            ) from None
        except OSError as error:
            raise files.translated(error, path) from error
        everything = range(len(extents))
        return MboxSelection(
            mailbox=mailbox,
            keys=Ordered(everything, extents.key),
            sizes=Ordered(everything, extents.size),
            steps=steps,
            extents=extents,
            indexes=everything,
            signature=seen,
            label=label,
        )

    def _steps(self, mailbox: Mailbox) -> Steps:
        """The file of a mailbox; that of the INBOX may be written in any case, and the root may be one file itself."""
        layout = self._layout
        if mailbox.native or mailbox.path != (INBOX,) or layout.inbox:
            return layout.steps(mailbox)
        root = disk.open_root(layout)
        try:
            if stat.S_ISREG(os.fstat(root).st_mode):
                return ()
            above = files.below(layout.mailboxdir.split("/"), root) if layout.mailboxdir else os.dup(root)
            names = sorted(os.listdir(above), reverse=True) if above >= 0 else []
            if above >= 0:
                os.close(above)
        except OSError as error:
            raise files.translated(error, layout.root) from error
        finally:
            os.close(root)
        return next(((name,) for name in names if without_suffix(name).upper() == INBOX), layout.steps(mailbox))


def _path(layout: Layout, steps: Steps) -> str:
    """The path of a mailbox's file, for people."""
    if not steps:
        return layout.inbox or layout.root
    return "/".join(filter(None, (layout.root, layout.mailboxdir, *steps, layout.dirname)))


def _sniff(octets: content.Octets) -> str:
    """`mbox`, `labels` (Google Takeout), or `other`."""

    def beginning() -> Iterator[bytes]:
        left = SNIFFED
        for piece in octets.pieces():
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    try:
        first = next(Scanner(beginning()).lines(), None)
    except NotMbox:
        return "other"
    return "labels" if first is not None and first.labels else "mbox"


def _scan(octets: content.Octets, path: str, layout: Layout) -> Extents:
    scanner = Scanner(octets.pieces(), limit=octets.limit)
    extents = Extents(scanner.extents())
    tell(path, scanner.findings, layout.dialect)
    return extents


def tell(path: str, findings: Findings, dialect: Dialect | None) -> None:
    """What a pass over a file has found; a warning where somebody should look."""
    logger.info(
        "mbox scanned path=%r messages=%d dialect=%s lengths=%d wrong=%d quoted=%d internal=%d expunged=%d",
        path,
        findings.messages,
        dialect or "|".join(findings.dialects) or "any",
        findings.lengths_kept,
        findings.lengths_wrong,
        findings.quoted,
        findings.internal,
        findings.expunged,
    )
    for kind, count in findings.doubts.items():
        if count:
            places = " ".join(map(str, findings.places[kind]))
            logger.warning("From_ lines in doubt path=%r kind=%s count=%d places=%s", path, kind, count, places)
    if findings.quoted and dialect is None and findings.dialects != ("mboxcl2",):
        logger.warning(
            "From_ lines left quoted path=%r count=%d hint=%s",
            path,
            findings.quoted,
            f"DIALECT={findings.dialects[0]} undoes it",
        )


def _hop(extents: Extents, wanted: array[int], at: int) -> Sequence[int]:
    """The next messages to be read at once; a large one stands alone."""
    octets = 0
    for count in range(min(HOP_MESSAGES, len(wanted) - at)):
        size = extents.size(wanted[at + count])
        if count and (size > STREAM_OCTETS or octets + size > HOP_OCTETS):
            return wanted[at : at + count]
        octets += size
        if octets >= HOP_OCTETS:
            return wanted[at : at + count + 1]
    return wanted[at : at + HOP_MESSAGES]


class _Reader:
    """Reads the messages of one file, hop by hop, in worker threads."""

    def __init__(self, layout: Layout, selection: MboxSelection) -> None:
        self._layout = layout
        self._selection = selection
        self._path = _path(layout, selection.steps)
        dialect = layout.dialect
        self._change = None if dialect is None else partial(unquoted, dialect=dialect)
        self._extents = selection.extents
        """As the file is now."""
        self._index: array[int] | None = None
        """Where the selected messages are among them, once they have moved."""
        self._open()
        self._ended_early = False
        if self._seen != selection.signature:
            self._check_end()

    def _open(self) -> None:
        try:
            self._octets = content.opened(disk.open_mbox(self._layout, self._selection.steps), self._path)
        except OSError as error:
            raise files.translated(error, self._path) from error
        self._seen = self._octets.signature()

    def close(self) -> None:
        self._octets.close()

    def read(self, hop: Sequence[int]) -> list[Message | Unreadable]:
        """These messages of the selection.

        Raises:
            MailboxError: the file cannot be read any more.
            Unavailable: too many open files.
        """
        with files.READ_TURNS as turns:
            began = time.monotonic()
            try:
                done = self._read(hop)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    raise files.translated(error, self._path) from error
                raise MailboxError(f"{self._path}: {error.strerror or error}") from error
            turns.took(len(hop), time.monotonic() - began)
            return done

    def _read(self, hop: Sequence[int]) -> list[Message | Unreadable]:
        for _ in range(_TRIES):
            from_thread.check_cancelled()
            done: list[Message | Unreadable] = []
            known = True
            for index in hop:
                one = self._message(index, hop)
                if one is None:
                    known = False
                    break
                done.append(one)
            now = self._now()
            if known and now == self._seen:
                return done
            _close(done)
            if known and now[:2] == self._seen[:2] and now[2] >= self._seen[2]:
                self._seen = now  # it has grown, or flags were written: read again, and see whether all is in its place
                self._check_end()
                continue
            self._find_again()
        return [
            Unreadable(
                key=self._selection.extents.key(index),
                code="source-changed",
                text=f"{self._path}: it is written to all the time",
            )
            for index in hop
        ]

    def _now(self) -> content.Signature:
        """What the file is now, by its name: whoever writes it anew may put another in its place."""
        try:
            fd = disk.open_mbox(self._layout, self._selection.steps)
        except (OSError, SourceMissing):
            return self._octets.signature()  # its last name went away: what we have open stays as it is
        try:
            return content.signature(fd)
        finally:
            os.close(fd)

    def _message(self, index: int, hop: Sequence[int]) -> Message | Unreadable | None:
        """One message; None: something else is in its place."""
        selected = self._selection.extents
        key = selected.key(index)
        at = index if self._index is None else self._index[index]
        if at < 0:
            return Unreadable(key=key, code="vanished", text=f"{self._path}: the message at {key} is gone")
        extents = self._extents
        start, stop = extents.starts[at], extents.stops[at]
        is_last = at == len(extents) - 1
        large = stop - start > STREAM_OCTETS
        data = self._octets.read(start, min(stop, start + HEAD_OCTETS) if large else stop)
        head = head_of(data)
        date = date_of(head.line)
        if head.identity != selected.identities[index] or date is None:
            return None
        if is_last and (extents.cut or self._ended_early):
            return Unreadable(
                key=key, code="source-changed", text=f"{self._path}: it ends in the midst of the message at {start}"
            )
        if len(data) < stop - start and not large:
            return None
        header_end = min(head.header_end + 1, len(data))
        header = read_header(data[head.content : header_end])
        flags = header.flags
        if self._selection.label:
            flags |= labelled_flags(data[head.content : header_end])
        body: Body
        if large:
            name = f"{self._path} at {start}"
            body = self._octets.body(header.octets, start + header_end, stop, self._change, name)
        else:
            rest = data[header_end:]
            body = header.octets + (b"".join(self._change((rest,))) if self._change else rest)
        return Message(key=key, flags=flags, internal_date=date, body=body)

    def _check_end(self) -> None:
        """Sees whether what was the last message has become longer: it was being written when the file was listed."""
        extents = self._extents
        if not extents:
            return
        start, stop = extents.starts[-1], extents.stops[-1]
        try:
            first = next(Scanner(self._octets.pieces(start)).extents(), None)
        except NotMbox:
            return  # it has moved, which reading it will show
        self._ended_early = first is None or start + first.stop != stop

    def _find_again(self) -> None:
        """The file was written anew: looks where its messages are now."""
        self._octets.close()
        self._open()
        try:
            now = Extents(Scanner(self._octets.pieces(), limit=self._octets.limit).extents())
        except NotMbox:
            now = Extents()
        self._index = align(self._selection.extents, now)
        self._extents = now
        self._ended_early = False
        logger.info("mbox was written anew path=%r messages=%d", self._path, len(now))


def labelled_flags(header: bytes) -> frozenset[str]:
    """Flags that the labels of Google Takeout in a header stand for."""
    line = next(Scanner((b"From x Thu Jan  1 00:00:00 1970\n", header, b"\n")).lines(), None)
    return takeout_flags(labels_of(line.labels if line is not None else b""))


def _close(done: Sequence[Message | Unreadable]) -> None:
    for one in done:
        if isinstance(one, Message) and not isinstance(one.body, bytes):
            one.body.close()
