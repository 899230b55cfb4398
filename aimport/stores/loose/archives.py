"""zip and tar archives of mail: streamed, never unpacked. Maildir trees (cPanel's backups too) and `.eml` files.

    tar  one pass ─▶ members and their places ─▶ one pass a mailbox, from its first message on
    zip  its directory ─▶ members, each opened by itself

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
from aimport.stores.loose.names import mailbox_path, member_of, root_of
from aimport.stores.loose.source import Listing, LooseSource, dated, in_order, narrow
from aimport.stores.maildir.names import order, parse_keywords, parse_uidlist, split_name

logger = logging.getLogger(__name__)

KEYWORDS: Final = "dovecot-keywords"
UIDLIST: Final = "dovecot-uidlist"
CONTROL: Final = {KEYWORDS: 1 << 20, UIDLIST: 64 << 20}
"""Files that are read with the directory of an archive, and how large they may be."""
_NO_CONTENT: Final = -1
"""The place of a message whose octets are not in the archive."""
_GONE: Final = -2
"""The place of a message that was in the archive as it was listed."""


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


class _Archive(Protocol):
    """The kinds of archives."""

    def members(self) -> Iterator[tuple[str, int, int, float, bytes | None]]:
        """Path, octets, place, mtime of each file; the content as well where it is a small control file.

        Raises:
            OSError, MailboxError
        """
        ...

    def body(self, place: int, size: int, path: str) -> Body:
        """Raises as `members`."""
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
        self._found: dict[tuple[str, ...], list[tuple[tuple[str, ...], _Folder]]] = {}

    def mailboxes(self) -> list[Mailbox]:
        self._look()
        return in_order(Mailbox(path=path, separator="/") for path in self._found)

    def listed(self, mailbox: Mailbox) -> Listing:
        self._look()
        return self._listing(mailbox)

    def _listing(self, mailbox: Mailbox) -> Listing:
        folders = self._found.get(mailbox.path)
        if folders is None:
            raise MailboxNotFound(f"{self.path}: no messages of {mailbox.name!r}", code="NONEXISTENT")
        keys: list[MessageKey] = []
        flags: list[frozenset[str]] = []
        sizes, places, dates = array("Q"), array("q"), array("d")
        for directory, folder in folders:
            for at in folder.in_order():
                name = folder.names[at]
                base, letters = split_name(name) if folder.maildir else (name, "")
                keys.append(MessageKey(printable("/".join((*directory, base)))))
                flags.append(from_letters(letters, folder.keywords))
                sizes.append(folder.sizes[at])
                places.append(folder.places[at])
                dates.append(folder.dates[at])
        kept = all(folder.maildir for _, folder in folders)
        return Listing(
            keys=_distinct(keys), sizes=sizes, places=places, flags=flags, dates=dates, kept=kept, mark=self._seen
        )

    def reader(self, mailbox: Mailbox, listing: Listing) -> _Reader:
        """A reader of the archive as it is now; when that is another than the one listed, messages go by their keys."""
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

    def _gathered(self, archive: _Archive) -> dict[tuple[str, ...], list[tuple[tuple[str, ...], _Folder]]]:
        folders: dict[tuple[tuple[str, ...], bool], _Folder] = {}
        controls: dict[tuple[str, ...], dict[str, bytes]] = {}
        odd = 0
        first = ""
        for count, (path, size, place, mtime, data) in enumerate(archive.members()):
            if count % 1024 == 0:
                from_thread.check_cancelled()
            if data is not None:
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
        root = root_of(folders, self._user, self._root)
        found: dict[tuple[str, ...], list[tuple[tuple[str, ...], _Folder]]] = {}
        for (directory, maildir), folder in sorted(folders.items()):
            mailbox = mailbox_path(directory, root, maildir=maildir)
            if mailbox is not None:
                control = controls.get(directory, {})
                folder.keywords = parse_keywords(control.get(KEYWORDS, b""))
                with suppress(ValueError):  # without it messages go by their names
                    folder.uids = parse_uidlist(control.get(UIDLIST, b""))
                found.setdefault(mailbox, []).append((directory[len(root) :], folder))
        if not found:
            raise SourceMissing(
                f"{self.path}: no mail in it" + (f" below {'/'.join(root)}" if root else ""),
                hint="ROOT= says which directory is this user's" if folders else "",
            )
        return found


def _moved(listing: Listing, now: Listing) -> Listing:
    """The listing with the places that its messages have now."""
    places = dict(zip(now.keys, now.places, strict=True))
    sizes = dict(zip(now.keys, now.sizes, strict=True))
    return replace(
        listing,
        places=array("q", (places.get(key, _GONE) for key in listing.keys)),
        sizes=array("Q", (sizes.get(key, 0) for key in listing.keys)),
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

    def __init__(self, archive: _Archive, path: str, listing: Listing, seen: content.Signature) -> None:
        self._archive = archive
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
            body = self._archive.body(place, listing.sizes[index], path)
            if listing.kept:
                date = of_seconds(listing.dates[index])
                return Message(key=key, flags=listing.flags[index], internal_date=date, body=body)
            return dated(key, listing.flags[index], body, listing.dates[index], key.rpartition("/")[2])
        except (OSError, MessageUnreadable, MailboxError) as error:
            return narrow(error, key, path)


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

    def members(self) -> Iterator[tuple[str, int, int, float, bytes | None]]:
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
                    data = None
                    if info.isreg() and size <= CONTROL.get(info.name.rpartition("/")[2], -1):
                        file = tar.extractfile(info)
                        data = file.read() if file is not None else b""
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

    def signature(self) -> content.Signature:
        return self._octets.signature()

    def close(self) -> None:
        self._octets.close()


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

    def members(self) -> Iterator[tuple[str, int, int, float, bytes | None]]:
        for index, info in enumerate(self._zip.infolist()):
            if info.is_dir():
                yield info.filename, 0, _NO_CONTENT, 0.0, None
                continue
            place = _NO_CONTENT if stat.S_ISLNK(info.external_attr >> 16) else index
            data = None
            if info.file_size <= CONTROL.get(info.filename.rpartition("/")[2], -1):
                data = b"".join(self._pieces(info, f"{self._path}: {info.filename}"))
            yield info.filename, info.file_size, place, _zip_mtime(info), data

    def body(self, place: int, size: int, path: str) -> Body:
        info = self._zip.infolist()[place]
        if info.file_size > STREAM_OCTETS:
            return content.spooled(self._pieces(info, path), path)
        return _plain(b"".join(self._pieces(info, path)), path)

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
