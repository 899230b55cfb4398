"""zip and tar archives of mail: streamed, never unpacked. Maildir trees (cPanel's too), `.eml` files, mbox files.

    tar  one pass ─▶ members and their places ─▶ one pass a mailbox, from its first message on
    zip  its directory ─▶ members, each opened by itself
    .mbox in either (Google Takeout) ─▶ scanned on the way ─▶ messages by their places in it

A path in an archive is only a name: nothing is ever opened by it. Hard links (of a Maildir) lead to what stands before
them in the archive; symbolic links lead nowhere, and a message that is one is told.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO, Final, Protocol

from anyio import from_thread

from aimport.dates import of_seconds
from aimport.errors import (
    AccessRefused,
    ConfigurationError,
    MailboxChanged,
    MailboxError,
    MailboxNotFound,
    MessageUnreadable,
    SourceMissing,
)
from aimport.flags import from_letters
from aimport.model import PIECE_OCTETS, STREAM_OCTETS, Body, Endpoint, Mailbox, Message, MessageKey, Unreadable
from aimport.names import printable
from aimport.stores import content, files, inflate
from aimport.stores.loose.names import box_path, is_mbox, mailbox_path, member_of, root_of, steps_of
from aimport.stores.loose.source import Listing, LooseSource, dated, in_order, narrow
from aimport.stores.maildir.names import order, parse_keywords, parse_uidlist, split_name
from aimport.stores.mbox.extents import Extents
from aimport.stores.mbox.headers import labels_of, read_header, takeout_mailbox
from aimport.stores.mbox.lines import date_of
from aimport.stores.mbox.scan import NotMbox, Scanner, head_of
from aimport.stores.mbox.source import labelled_flags, tell

logger = logging.getLogger(__name__)

KEYWORDS: Final = "dovecot-keywords"
UIDLIST: Final = "dovecot-uidlist"
CONTROL: Final = {KEYWORDS: 1 << 20, UIDLIST: 64 << 20}
"""Files that are read with the directory of an archive, and how large they may be."""
_NO_CONTENT: Final = -1
"""The place of a message whose octets are not in the archive."""
_GONE: Final = -2
"""The place of a message that was in the archive as it was listed."""
_FIRST_PART: Final = -3
"""From here down: the place of a message in an mbox, by the number of the mbox and its index there."""
_INDEX_BITS: Final = 40
HEAD_OCTETS: Final = 1 << 20
"""So much of a large message is searched for the end of its header."""


@dataclass(slots=True)
class _Folder:
    """Messages of one directory of an archive; the columns stand beside one another."""

    maildir: bool
    names: list[str] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    places: array[int] = field(default_factory=lambda: array("q"))
    dates: array[float] = field(default_factory=lambda: array("d"))
    keywords: dict[str, str] = field(default_factory=dict)
    uids: dict[str, int] = field(default_factory=dict)

    def in_order(self) -> Sequence[int]:
        """A Maildir's by UID, then by name, as Dovecot; others as they lie in the archive."""
        if not self.maildir:
            return range(len(self.names))

        def place(at: int) -> tuple[int, int, int, str]:
            base = split_name(self.names[at])[0]
            uid = self.uids.get(printable(base))
            return (0, uid, 0, base) if uid is not None else (1, *order(base))

        return sorted(range(len(self.names)), key=place)


@dataclass(frozen=True, slots=True)
class _Box:
    """Messages of one mailbox in one mbox file of an archive."""

    name: str
    place: int
    size: int
    extents: Extents
    labelled: bool
    """Of a file of Google Takeout: labels say the mailbox, and more."""


class _Archive(Protocol):
    """The kinds of archives."""

    def members(self) -> Iterator[tuple[str, int, int, float, bytes | Iterator[bytes] | None]]:
        """Path, octets, place, mtime of each file; the content as well of a small control file and of an mbox.

        That of an mbox is read before the next is asked for, or not at all.

        Raises:
            OSError, MailboxError
        """
        ...

    def body(self, place: int, size: int, path: str) -> Body:
        """Raises as `members`."""
        ...

    def octets(self, place: int, size: int, path: str) -> content.Octets | content.Streamed:
        """A member by place in it, which lasts as long as the archive."""
        ...

    def signature(self) -> content.Signature: ...

    def close(self) -> None: ...


class TarSource(LooseSource):
    """One account in a tar archive, compressed or not."""

    def __init__(self, endpoint: Endpoint) -> None:
        root = _root(endpoint)
        super().__init__(lambda: ArchiveHolder(endpoint.path, _Tar, endpoint.user, root))


class ZipSource(LooseSource):
    """One account in a zip archive."""

    def __init__(self, endpoint: Endpoint) -> None:
        root = _root(endpoint)
        super().__init__(lambda: ArchiveHolder(endpoint.path, _Zip, endpoint.user, root))


def _root(endpoint: Endpoint) -> str:
    for key, _ in endpoint.options:
        if key != "ROOT":
            raise ConfigurationError(f"{endpoint.scheme}: location: {key} says nothing here")
    return dict(endpoint.options).get("ROOT", "")


class ArchiveHolder:
    """An archive file (`aimport.stores.loose.source.Holder`). What a pass finds is kept while the file is the same."""

    def __init__(self, path: str, kind: type[_Tar] | type[_Zip], user: str, root: str) -> None:
        self.path = path
        self._kind = kind
        self._user = user
        self._root = root
        self._seen: content.Signature | None = None
        self._found: dict[tuple[str, ...], list[tuple[tuple[str, ...], _Folder | _Box]]] = {}

    def mailboxes(self) -> list[Mailbox]:
        self._look()
        return in_order(Mailbox(path=path, separator="/") for path in self._found)

    def listed(self, mailbox: Mailbox) -> ArchiveListing:
        self._look()
        return self._listing(mailbox)

    def _listing(self, mailbox: Mailbox) -> ArchiveListing:
        folders = self._found.get(mailbox.path)
        if folders is None:
            raise MailboxNotFound(f"{self.path}: no messages of {mailbox.name!r}", code="NONEXISTENT")
        keys: list[MessageKey] = []
        flags: list[frozenset[str]] = []
        sizes, places, dates = array("Q"), array("q"), array("d")
        parts: list[_Box] = []
        for directory, folder in folders:
            if isinstance(folder, _Box):
                path = printable("/".join((*directory, folder.name)))
                for index in range(len(folder.extents)):
                    keys.append(MessageKey(f"{path}:{folder.extents.key(index)}"))
                    flags.append(frozenset())
                    sizes.append(folder.extents.size(index))
                    places.append(_FIRST_PART - (len(parts) << _INDEX_BITS | index))
                    dates.append(0)
                parts.append(folder)
                continue
            for at in folder.in_order():
                name = folder.names[at]
                base, letters = split_name(name) if folder.maildir else (name, "")
                keys.append(MessageKey(printable("/".join((*directory, base)))))
                flags.append(from_letters(letters, folder.keywords))
                sizes.append(folder.sizes[at])
                places.append(folder.places[at])
                dates.append(folder.dates[at])
        kept = all(isinstance(folder, _Folder) and folder.maildir for _, folder in folders)
        return ArchiveListing(
            keys=_distinct(keys),
            sizes=sizes,
            places=places,
            flags=flags,
            dates=dates,
            kept=kept,
            mark=self._seen,
            boxes=parts,
        )

    def reader(self, mailbox: Mailbox, listing: Listing) -> _Reader:
        """A reader of the archive as it is now; when that is another than the one listed, messages go by their keys."""
        assert isinstance(listing, ArchiveListing), "a listing belongs to the store that made it"
        archive, seen = self._look(keep=True)
        try:
            if listing.mark != seen:
                listing = _moved(listing, self._listing(mailbox))
            return _Reader(archive, self.path, listing, seen)
        except BaseException:
            archive.close()
            raise

    def _opened(self) -> tuple[_Archive, content.Signature]:
        try:
            fd = os.open(self.path, files.FILE)
        except OSError as error:
            if os.path.islink(self.path):
                text = f"{self.path} is a symbolic link"
                raise AccessRefused(text, hint="give the path that it points to") from error
            if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise SourceMissing(f"{self.path}: {error.strerror}") from error
            raise files.translated(error, self.path, wide=True) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise AccessRefused(f"{self.path} is no regular file")
        seen = content.signature(fd)
        return self._kind(fd, self.path), seen

    def _look(self, *, keep: bool = False) -> tuple[_Archive, content.Signature]:
        """One pass over the archive, or none when it is as it was. It is closed unless it is to be kept."""
        archive, seen = self._opened()
        try:
            if seen != self._seen:
                self._found = self._gathered(archive)
                self._seen = seen
        except BaseException as error:
            archive.close()
            if isinstance(error, OSError):
                raise files.translated(error, self.path, wide=True) from error
            raise
        if not keep:
            archive.close()
        return archive, seen

    def _gathered(self, archive: _Archive) -> dict[tuple[str, ...], list[tuple[tuple[str, ...], _Folder | _Box]]]:
        boxes: list[tuple[tuple[str, ...], str, tuple[str, ...] | None, _Box]] = []
        folders: dict[tuple[tuple[str, ...], bool], _Folder] = {}
        controls: dict[tuple[str, ...], dict[str, bytes]] = {}
        odd = 0
        first = ""
        for count, (path, size, place, mtime, data) in enumerate(archive.members()):
            if count % 1024 == 0:
                from_thread.check_cancelled()
            if is_mbox(path.rpartition("/")[2]) and place != _NO_CONTENT and (steps := steps_of(path)):
                found_there = list(self._boxes(path, size, place, data)) if data is not None else []
                boxes += [(steps[:-1], steps[-1], label, box) for label, box in found_there]
                if found_there:
                    continue
            elif isinstance(data, bytes):
                controls.setdefault(_steps(path)[:-1], {})[path.rpartition("/")[2]] = data
                continue
            if path.endswith(("/cur/", "/new/")):
                folders.setdefault((_steps(path)[:-1], True), _Folder(True))
                continue
            member = member_of(path)
            if member is None:
                odd += not _is_store_file(path)
                first = first or path
                continue
            folder = folders.setdefault((member.folder, member.maildir), _Folder(member.maildir))
            folder.names.append(member.name)
            folder.sizes.append(size)
            folder.places.append(place)
            folder.dates.append(mtime)
        if odd:
            logger.warning("files passed over path=%r count=%d first=%r", self.path, odd, printable(first))
        root = root_of([*folders, *((directory, False) for directory, *_ in boxes)], self._user, self._root)
        found: dict[tuple[str, ...], list[tuple[tuple[str, ...], _Folder | _Box]]] = {}
        for (directory, maildir), folder in sorted(folders.items()):
            mailbox = mailbox_path(directory, root, maildir=maildir)
            if mailbox is not None:
                control = controls.get(directory, {})
                folder.keywords = parse_keywords(control.get(KEYWORDS, b""))
                with suppress(ValueError):  # without it messages go by their names
                    folder.uids = parse_uidlist(control.get(UIDLIST, b""))
                found.setdefault(mailbox, []).append((directory[len(root) :], folder))
        for directory, name, label, box in boxes:
            mailbox = box_path(directory, name, root)
            if mailbox is not None:
                found.setdefault(label or mailbox, []).append((directory[len(root) :], box))
        if not found:
            raise SourceMissing(
                f"{self.path}: no mail in it" + (f" below {'/'.join(root)}" if root else ""),
                hint="ROOT= says which directory is this user's" if folders else "",
            )
        return found

    def _boxes(
        self, path: str, size: int, place: int, data: bytes | Iterator[bytes]
    ) -> Iterator[tuple[tuple[str, ...] | None, _Box]]:
        """The mailboxes in an mbox file: one, or with their names those of the labels of Google Takeout."""
        pieces = iter((data,)) if isinstance(data, bytes) else data
        scanner = Scanner(pieces, limit=size)
        whole = Extents()
        labels: dict[tuple[str, ...], Extents] = {}
        try:
            for extent in scanner.extents():
                if labels or (extent.labels and not whole):
                    labels.setdefault(takeout_mailbox(labels_of(extent.labels)), Extents()).add(extent)
                else:
                    whole.add(extent)
        except NotMbox:
            return
        tell(f"{self.path}: {printable(path)}", scanner.findings, None)
        name = path.rpartition("/")[2]
        for label, extents in labels.items():
            yield label, _Box(name, place, size, extents, True)
        if not labels:
            yield None, _Box(name, place, size, whole, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveListing(Listing):
    """With the mbox files that some of its places lead into."""

    boxes: Sequence[_Box]

    def part(self, place: int) -> tuple[_Box, int]:
        """The mbox that such a place leads into, and the index of the message there."""
        number = _FIRST_PART - place
        return self.boxes[number >> _INDEX_BITS], number & ((1 << _INDEX_BITS) - 1)


def _moved(listing: ArchiveListing, now: ArchiveListing) -> ArchiveListing:
    """The listing with the places that its messages have now."""
    places = dict(zip(now.keys, now.places, strict=True))
    sizes = dict(zip(now.keys, now.sizes, strict=True))
    return replace(
        listing,
        places=array("q", (places.get(key, _GONE) for key in listing.keys)),
        sizes=array("Q", (sizes.get(key, 0) for key in listing.keys)),
        boxes=now.boxes,
    )


def _steps(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _is_store_file(path: str) -> bool:
    """Directories, and files that stand beside mail and are none."""
    if path.endswith("/"):
        return True
    name = path.rpartition("/")[2]
    return name.startswith((".", "dovecot", "maildir", "courier", "subscriptions")) or name.endswith(".json")


def _distinct(keys: list[MessageKey]) -> list[MessageKey]:
    """Keys of which none is twice: an archive may hold one path more than once."""
    seen: dict[str, int] = {}
    distinct = []
    for key in keys:
        count = seen[key] = seen.get(key, 0) + 1
        distinct.append(key if count == 1 else MessageKey(f"{key}//{count}"))
    return distinct


class _Reader:
    """An open archive."""

    def __init__(self, archive: _Archive, path: str, listing: ArchiveListing, seen: content.Signature) -> None:
        self._archive = archive
        self._octets: dict[int, content.Octets | content.Streamed] = {}
        """The mbox that was read last, by its place."""
        self._path = path
        self._listing = listing
        self._seen = seen

    def close(self) -> None:
        self._archive.close()

    def read(self, index: int) -> Message | Unreadable:
        listing = self._listing
        key, place = listing.keys[index], listing.places[index]
        path = f"{self._path}: {key}"
        if self._archive.signature() != self._seen:
            raise MailboxChanged(f"{self._path}: it was changed while it was read")
        if place == _GONE:
            return Unreadable(key=key, code="vanished", text=f"{path} is gone")
        if place == _NO_CONTENT:
            return Unreadable(key=key, code="unreadable", text=f"{path}: a link to what is not in the archive")
        try:
            if place <= _FIRST_PART:
                return self._part(key, *listing.part(place))
            body = self._archive.body(place, listing.sizes[index], path)
            if listing.kept:
                date = of_seconds(listing.dates[index])
                return Message(key=key, flags=listing.flags[index], internal_date=date, body=body)
            return dated(key, listing.flags[index], body, listing.dates[index], key.rpartition("/")[2])
        except (OSError, MessageUnreadable, MailboxError) as error:
            return narrow(error, key, path)

    def _part(self, key: MessageKey, box: _Box, index: int) -> Message | Unreadable:
        """A message of an mbox. Raises as `_Archive.body`."""
        octets = self._octets.get(box.place)
        if octets is None:
            octets = self._archive.octets(box.place, box.size, f"{self._path}: {box.name}")
            self._octets = {box.place: octets}
        extents = box.extents
        start, stop = extents.starts[index], extents.stops[index]
        path = f"{self._path}: {key}"
        if extents.cut and index == len(extents) - 1:
            return Unreadable(key=key, code="unreadable", text=f"{path}: the file ends in its midst")
        large = stop - start > STREAM_OCTETS
        data = octets.read(start, min(stop, start + HEAD_OCTETS) if large else stop)
        head = head_of(data)
        date = date_of(head.line)
        if head.identity != extents.identities[index] or date is None or (len(data) < stop - start and not large):
            return Unreadable(key=key, code="unreadable", text=f"{path}: other octets than before are in its place")
        header_end = min(head.header_end + 1, len(data))
        header = read_header(data[head.content : header_end])
        flags = header.flags | (labelled_flags(data[head.content : header_end]) if box.labelled else frozenset())
        body: Body = header.octets + data[header_end:]
        if large:
            body = octets.body(header.octets, start + header_end, stop, None, path)
        return Message(key=key, flags=flags, internal_date=date, body=body)


def _plain(body: Body, path: str) -> Body:
    """A body that may have been compressed before it came into the archive.

    Raises:
        MailboxError
    """
    if not isinstance(body, bytes) or (form := inflate.format_of(body[: inflate.HEAD])) is None:
        return body
    if need := inflate.missing(form):
        raise MailboxError(f"{path}: {form} cannot be read here", hint=need)
    try:
        return b"".join(inflate.inflated((body,), form))
    except (inflate.TooMuch, inflate.Damaged) as error:
        raise MailboxError(f"{path}: {error}") from error


class _Tar:
    """A tar archive, compressed or not. A place is where the octets begin."""

    def __init__(self, fd: int, path: str) -> None:
        self._octets = content.opened(fd, path)
        self._path = path

    def members(self) -> Iterator[tuple[str, int, int, float, bytes | Iterator[bytes] | None]]:
        files_before: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(fileobj=_Stream(self._octets.pieces()), mode="r|") as tar:
                for info in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all; the stubs do not know it
                    place, size = info.offset_data, info.size
                    if info.islnk():
                        place, size = files_before.get(info.linkname, (_NO_CONTENT, 0))
                    elif info.issparse() or info.issym():
                        place = _NO_CONTENT
                    elif info.isdir():
                        yield f"{info.name}/", 0, _NO_CONTENT, info.mtime, None
                        continue
                    elif not info.isreg():
                        continue
                    data: bytes | Iterator[bytes] | None = None
                    name = info.name.rpartition("/")[2]
                    if info.isreg() and (is_mbox(name) or size <= CONTROL.get(name, -1)):
                        file = tar.extractfile(info)
                        assert file is not None, "a regular file"
                        data = iter(partial(file.read, content.SCAN_OCTETS), b"") if is_mbox(name) else file.read()
                    files_before[info.name] = place, size
                    yield info.name, size, place, info.mtime, data
        except tarfile.TarError as error:
            raise MailboxError(f"{self._path}: damaged tar: {error}") from error

    def body(self, place: int, size: int, path: str) -> Body:
        if size > STREAM_OCTETS:
            return self._octets.body(b"", place, place + size, None, path)
        body = self._octets.read(place, place + size)
        if len(body) < size:
            raise MailboxError(f"{path}: the archive ends after {len(body)} of its {size} octets")
        return _plain(body, path)

    def octets(self, place: int, size: int, path: str) -> content.Octets:
        return _Within(self._octets, place, size)

    def signature(self) -> content.Signature:
        return self._octets.signature()

    def close(self) -> None:
        self._octets.close()


class _Within:
    """A part of a file by place in it (`content.Octets`)."""

    def __init__(self, octets: content.Octets, at: int, size: int) -> None:
        self._octets = octets
        self._at = at
        self.limit = size

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        left = self.limit - start
        for piece in self._octets.pieces(self._at + start):
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    def read(self, start: int, stop: int) -> bytes:
        return self._octets.read(self._at + start, self._at + min(stop, self.limit))

    def body(self, head: bytes, start: int, stop: int, change: content.Change | None, name: str) -> content.SpanBody:
        return self._octets.body(head, self._at + start, self._at + stop, change, name)

    def signature(self) -> content.Signature:
        return self._octets.signature()

    def close(self) -> None:
        """The archive is closed by who has opened it."""


class _Stream(io.RawIOBase):
    """Pieces as a file that can only be read on."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        parts = []
        while size != 0:
            data = self._left or next(self._pieces, b"")
            if not data:
                break
            part, self._left = (data, b"") if size < 0 else (data[:size], data[size:])
            parts.append(part)
            size -= len(part) if size > 0 else 0
        return b"".join(parts)


class _Zip:
    """A zip archive. A place is an index into its directory."""

    def __init__(self, fd: int, path: str) -> None:
        self._path = path
        self._file: IO[bytes] = os.fdopen(fd, "rb")
        try:
            self._zip = zipfile.ZipFile(self._file)
        except BaseException as error:
            self._file.close()
            if isinstance(error, (zipfile.BadZipFile, NotImplementedError, ValueError)):
                raise MailboxError(f"{path}: damaged zip: {error}") from error
            raise

    def members(self) -> Iterator[tuple[str, int, int, float, bytes | Iterator[bytes] | None]]:
        for index, info in enumerate(self._zip.infolist()):
            if info.is_dir():
                yield info.filename, 0, _NO_CONTENT, 0.0, None
                continue
            place = _NO_CONTENT if stat.S_ISLNK(info.external_attr >> 16) else index
            data: bytes | Iterator[bytes] | None = None
            name = info.filename.rpartition("/")[2]
            if is_mbox(name) or info.file_size <= CONTROL.get(name, -1):
                pieces = self._pieces(info, f"{self._path}: {info.filename}")
                data = pieces if is_mbox(name) else b"".join(pieces)
            yield info.filename, info.file_size, place, _zip_mtime(info), data

    def body(self, place: int, size: int, path: str) -> Body:
        info = self._zip.infolist()[place]
        if info.file_size > STREAM_OCTETS:
            return content.spooled(self._pieces(info, path), path)
        return _plain(b"".join(self._pieces(info, path)), path)

    def octets(self, place: int, size: int, path: str) -> content.Streamed:
        info = self._zip.infolist()[place]
        return content.Streamed(lambda: self._pieces(info, path))

    def signature(self) -> content.Signature:
        return content.signature(self._file.fileno())

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def _pieces(self, info: zipfile.ZipInfo, path: str) -> Iterator[bytes]:
        """The octets of a member, with a limit on how many may come of how few.

        Raises:
            MailboxError
        """
        if info.flag_bits & 1:
            raise MailboxError(f"{path}: encrypted")
        given = 0
        try:
            with self._zip.open(info) as file:
                while piece := file.read(PIECE_OCTETS):
                    given += len(piece)
                    if given > inflate.FREE and given > inflate.RATIO * max(info.compress_size, 1):
                        raise MailboxError(f"{path}: more than {inflate.RATIO} times as many octets as in the archive")
                    yield piece
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
            raise MailboxError(f"{path}: {error}") from error


def _zip_mtime(info: zipfile.ZipInfo) -> float:
    """mtime of a member, seconds since 1970: its extended timestamp when it has one, else DOS time, which is local."""
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 0x5455 and length >= 5 and extra[4] & 1 and len(extra) >= 9:
            return float(struct.unpack("<i", extra[5:9])[0])
        extra = extra[4 + length :]
    try:
        return time.mktime((*info.date_time, 0, 0, -1))
    except (ValueError, OverflowError):
        return 0.0
