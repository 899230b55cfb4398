"""Messages of one folder of dbox, from its files. For worker threads.

    row of the index ─▶ u.<uid>, or map ─▶ m.<file> ─▶ header, metadata ─▶ body: plain, decompressed, attachments in

What the index has and the files have not is `missing`; what is there and not whole is `damaged`; what went away since
it was listed is `vanished`.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from anyio import from_thread

from aimport.errors import MessageUnreadable
from aimport.model import PIECE_OCTETS, STREAM_OCTETS, Body, Message, MessageKey, Unreadable
from aimport.octets import has_header, pieces_of, wire_size
from aimport.spool import FileBody
from aimport.stores import files
from aimport.stores.dbox import disk
from aimport.stores.dbox.account import Account
from aimport.stores.dbox.bodies import (
    MAGIC_OCTETS,
    collected,
    decompressed,
    is_compressed,
    open_attachment,
    parse_references,
    with_attachments,
)
from aimport.stores.dbox.index import Damaged, Table
from aimport.stores.dbox.lists import Cache
from aimport.stores.dbox.messages import MAX_FILE_HEADER, Found, guid_128, parse_file_header, read_message, scan
from aimport.stores.dbox.selection import DboxSelection, Extra
from aimport.stores.dbox.storage import Place

T = TypeVar("T")

logger = logging.getLogger(__name__)

HOP_MESSAGES: Final = 64
HOP_OCTETS: Final = 1 << 20
_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_NO_GUID: Final = bytes(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What is known of a message that a `Message` does not say. Dates are seconds since 1970."""

    uid: int
    saved: int | None
    """None: the file system does not say either."""
    size: int
    """Octets, as the store has them."""


class Located(NamedTuple):
    """A message and the file it lies in, which stays open while it is looked at."""

    found: Found
    octets: disk.FileOctets
    note: str = ""
    """What is wrong with it all the same."""


class Reader:
    """Reads the messages of one folder, hop by hop, in worker threads."""

    def __init__(self, account: Account, selection: DboxSelection) -> None:
        self._account = account
        self._layout = account.layout
        self._selection = selection
        self._table = selection.table
        self._ahead: tuple[MessageKey, Message] | None = None
        """A large message that was opened when its turn had not come."""
        self._fresh = selection.table
        """The index as it is by now."""
        self._signature = selection.signature
        self._look_at = 0.0
        """When to look at it again (monotonic)."""
        self._map_asked = False
        """The map was read again in this hop."""
        self._dirs: list[int] = []
        self._attachments: int | None = None
        self._cache: Cache | None = None
        self._guid = selection.guid
        try:
            if self._layout.kind == "sdbox":
                self._open_directories()
        except BaseException:
            self.close()
            raise

    def _open_directories(self) -> None:
        levels = self._layout.levels(self._selection.directory)
        for root in filter(None, (self._layout.root, self._layout.alt)):
            try:
                fd = disk.open_path(root, levels)
            except OSError as error:
                raise files.translated(error, disk.shown(root, *levels)) from error
            if fd is not None:
                self._dirs.append(fd)

    def close(self) -> None:
        for fd in self._dirs:
            os.close(fd)
        self._dirs.clear()
        if self._attachments is not None:
            os.close(self._attachments)
            self._attachments = None
        if self._ahead is not None and not isinstance(self._ahead[1].body, bytes):
            self._ahead[1].body.close()

    def read(self, wanted: Sequence[tuple[MessageKey, int]]) -> list[Message | Unreadable]:
        """The first of `wanted` (key and row), one at least, up to HOP_OCTETS; a larger one stands alone.

        Raises:
            MailboxError: the folder cannot be read any more.
            Unavailable: too many open files.
        """
        with files.READ_TURNS as turns:
            began = time.monotonic()
            done = self._read_some(wanted)
            turns.took(len(done), time.monotonic() - began)
            return done

    def _read_some(self, wanted: Sequence[tuple[MessageKey, int]]) -> list[Message | Unreadable]:
        done: list[Message | Unreadable] = []
        octets = 0
        self._map_asked = False
        self._look_again()
        for key, row in wanted:
            if self._ahead is not None and self._ahead[0] == key:
                result: Message | Unreadable = self._ahead[1]
                self._ahead = None
            else:
                result = self._read_one(key, row)
            if isinstance(result, Message):
                octets += len(result.body)
                # A list just above what a batch may hold would go as two batches, the second of one message.
                if done and (octets > HOP_OCTETS or not isinstance(result.body, bytes)):
                    self._ahead = (key, result)
                    break
            done.append(result)
            if len(done) % 16 == 0:
                from_thread.check_cancelled()
        return done

    def _read_one(self, key: MessageKey, row: int) -> Message | Unreadable:
        try:
            extra = self._extra(row)
            if extra is not None and not self._account.salvage:
                text = f"{self._shown(row)} is in no folder: it was expunged, or the index has lost it"
                raise MessageUnreadable(text, hint="--salvage takes it, also with resume", code="unindexed")
            if self._fresh is not self._table and (gone := self._gone(key, row)):
                return gone
            with self._located(row) as located:
                return self._message(key, row, located)
        except MessageUnreadable as error:
            return Unreadable(key=key, code=error.code, text=str(error))
        except Damaged as error:
            self._look_again(now=True)
            return self._gone(key, row) or Unreadable(key=key, code="damaged", text=f"{self._shown(row)}: {error}")
        except OSError as error:
            if error.errno in _PASSING:
                raise files.translated(error, self._shown(row)) from error
            self._look_again(now=True)
            if gone := self._gone(key, row):
                return gone
            if error.errno in (errno.ENOENT, errno.ESTALE):
                text = f"{self._shown(row)}: the index has it, and its octets are not there"
                return Unreadable(key=key, code="missing", text=text)
            return Unreadable(key=key, code="unreadable", text=str(files.translated(error, self._shown(row))))

    def details(self, row: int) -> Details:
        """What is known of a message, without reading its octets.

        Raises:
            Damaged, OSError: it cannot be found.
        """
        with self._located(row) as located:
            found = located.found
            status = located.octets.status
            return Details(
                uid=self._uid(row),
                saved=self._saved(row, status),
                size=found.plain_size,
            )

    # One thing of a message, None when it cannot be had: reading the message will say why.

    def guid(self, row: int) -> str | None:
        return self._known(row, lambda found, status: found.guid)

    def received(self, row: int) -> int | None:
        return self._known(row, lambda found, status: self._received(row, found, status))

    def saved(self, row: int) -> int | None:
        known = self._save_date(row)
        if known is not None or self._layout.kind == "mdbox":
            return known
        return self._known(row, lambda found, status: self._saved(row, status))

    def wire_size(self, row: int) -> int | None:
        """Octets with every line end as CRLF, as Dovecot has counted them, else counted."""
        said = self._known(row, lambda found, status: found.number(b"V"))
        if said is not None:
            return said
        return self._content(row, wire_size)

    def header(self, row: int) -> bytes | None:
        """The beginning of a message, with all of its header in it."""
        return self._content(row, _header_of)

    def _known(self, row: int, look: Callable[[Found, os.stat_result], T]) -> T | None:
        try:
            with self._located(row) as located:
                return look(located.found, located.octets.status)
        except (Damaged, OSError):
            return None

    def _content(self, row: int, look: Callable[[Iterator[bytes]], T]) -> T | None:
        try:
            with self._located(row) as located:
                body = self._body(row, located.found, located.octets, [])
        except (Damaged, MessageUnreadable, OSError):
            return None
        try:
            return look(iter(pieces_of(body)))
        except OSError:
            return None
        finally:
            if not isinstance(body, bytes):
                body.close()

    def _extra(self, row: int) -> Extra | None:
        return self._selection.extras[row - len(self._table)] if row >= len(self._table) else None

    def _uid(self, row: int) -> int:
        extra = self._extra(row)
        return extra.uid if extra is not None else self._table.uids[row]

    def _shown(self, row: int) -> str:
        """A message for people."""
        levels = self._layout.levels(self._selection.directory)
        extra = self._extra(row)
        if extra is not None and extra.scanned is not None:
            return self._shown_place(extra.scanned.place)
        if self._layout.kind == "sdbox":
            return disk.shown(self._layout.root, *levels, f"u.{self._uid(row)}")
        place = self._account.storage.place(self._map_uid(row))
        where = f"UID {self._uid(row)} of {disk.shown(self._layout.root, *levels)}"
        return f"{where} ({self._shown_place(place)})" if place is not None else where

    def _shown_place(self, place: Place) -> str:
        return f"{disk.shown(self._layout.root, 'storage', f'm.{place.file}')}, octet {place.at}"

    def _gone(self, key: MessageKey, row: int) -> Unreadable | None:
        """Says so when the message was expunged since it was listed, though its octets may still be there."""
        if row >= len(self._table) or self._fresh is self._table or self._fresh.row(self._table.uids[row]) >= 0:
            return None
        return Unreadable(key=key, code="vanished", text=f"{self._shown(row)} was expunged since it was listed")

    def _look_again(self, *, now: bool = False) -> None:
        """Reads the index when it has changed; where that takes long not each time, unless it must be known `now`."""
        began = time.monotonic()
        if began < self._look_at and not now:
            return
        signature = self._account.signature(self._selection.directory)
        if signature == self._signature:
            return
        table = self._account.table(self._selection.directory) or Table()
        if not table.damage and table.uidvalidity in (self._table.uidvalidity, 0):
            self._fresh, self._signature = table, signature
        self._look_at = time.monotonic() + 10 * (time.monotonic() - began)  # arbitrary

    # Where a message is.

    @contextmanager
    def _located(self, row: int) -> Iterator[Located]:
        """Raises:
        Damaged, OSError
        """
        extra = self._extra(row)
        if extra is not None and extra.scanned is not None:
            place = extra.scanned.place
            yield Located(self._account.storage.found_again(place), self._account.storage.octets(place))
        elif self._layout.kind == "mdbox":
            yield self._in_storage(row)
        else:
            fd = self._open_file(f"u.{self._uid(row)}")
            try:
                yield self._in_file(disk.FileOctets(fd))
            finally:
                os.close(fd)

    def _open_file(self, name: str) -> int:
        for dir_fd in self._dirs:
            try:
                return files.open_file(name, dir_fd)
            except FileNotFoundError:
                continue
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def _in_file(self, octets: disk.FileOctets) -> Located:
        """The one message of a file of sdbox."""
        try:
            if len(octets) <= disk.WHOLE_OCTETS:
                octets.load(0, len(octets))
            at, header = parse_file_header(octets.at(0, MAX_FILE_HEADER))
            return Located(read_message(octets, at, header), octets)
        except Damaged:
            if not self._account.salvage:
                raise
            found = next((each for each in scan(octets) if isinstance(each, Found)), None)
            if found is None:
                raise
            return Located(found, octets, found.note or "the file is damaged")

    def _map_uid(self, row: int) -> int:
        extension = self._table.extension("mdbox")
        return int.from_bytes(extension.cell(row)[:4], "little") if extension is not None else 0

    def _in_storage(self, row: int) -> Located:
        """A message of mdbox: where the map says; where it says by now; where a scan finds its GUID."""
        storage, map_uid = self._account.storage, self._map_uid(row)
        extension = self._table.extension("guid")
        guid = extension.cell(row) if extension is not None else _NO_GUID
        problem: Damaged | OSError = FileNotFoundError(errno.ENOENT, "the map does not have it")
        seen: Place | None = None
        other: Located | None = None
        for again in (False, True):
            if again and not self._map_asked:
                self._map_asked = True
                storage.refresh()
            place = storage.place(map_uid)
            if place is None or (again and place == seen):
                continue
            seen = place
            try:
                found, octets = storage.read(place)
            except (Damaged, OSError) as error:
                if isinstance(error, OSError) and error.errno in _PASSING:
                    raise
                problem = error
                continue
            if guid == _NO_GUID or guid_128(found.guid) == guid:
                return Located(found, octets)
            problem = Damaged("another message lies there, by its GUID")
            other = Located(found, octets, "its GUID is not that of the index")
        place = storage.by_guid(guid) if guid != _NO_GUID else None
        if place is not None:
            found = storage.found_again(place)
            if not found.note or self._account.salvage:
                return Located(found, storage.octets(place), found.note)
        elif self._account.salvage:
            if other is not None:
                return other
            if seen is not None:
                try:
                    found = storage.found_again(seen)
                except (Damaged, OSError):
                    raise problem from None
                return Located(found, storage.octets(seen), found.note)
        raise problem

    # What a message is.

    def _message(self, key: MessageKey, row: int, located: Located) -> Message:
        found, octets, note = located
        extra = self._extra(row)
        notes = [note] if note else []
        if extra is not None:
            notes.append("no index has it: flags and keywords are lost")
        if found.received is None:
            notes.append("its received date is lost")
        body = self._body(row, found, octets, notes)
        return Message(
            key=key,
            flags=frozenset() if extra is not None else self._fresh.flags_of(self._fresh.row(self._table.uids[row])),
            internal_date=files.date_of(self._received(row, found, octets.status), key),
            body=body,
            guid=found.guid,
            uidl=found.uidl if self._has_uidls() else "",
            note=f"{self._shown(row)}: {'; '.join(notes)}" if notes else "",
        )

    def _body(self, row: int, found: Found, octets: disk.FileOctets, notes: list[str]) -> Body:
        """`notes` gets what is wrong with it though it can be read."""
        references = found.metadata.get(b"X")
        compressed = is_compressed(octets.at(found.body, min(MAGIC_OCTETS, found.size)))
        if references is None and not compressed:
            if found.plain_size != found.size and not self._account.salvage:
                raise Damaged(f"it has {found.size} octets, and says that they were {found.plain_size}")
            return self._plain(row, found, octets)
        if references is None:
            return self._decompressed(row, found, octets, notes)
        pieces = with_attachments(
            decompressed(_pieces(octets, found)),
            parse_references(references),
            lambda path: self._attachment(row, path),
        )
        return collected(pieces, found.plain_size, self._shown(row))

    def _decompressed(self, row: int, found: Found, octets: disk.FileOctets, notes: list[str]) -> Body:
        try:
            return collected(decompressed(_pieces(octets, found)), found.plain_size, self._shown(row))
        except Damaged:
            if b"Z" not in found.metadata:
                # Dovecot leaves the size out where it is the same; more often such a mail only begins like that.
                return self._plain(row, found, octets)
            if not self._account.salvage:
                raise
        body = collected(decompressed(_pieces(octets, found)), None, self._shown(row))
        notes.append("its size is wrong")
        return body

    def _plain(self, row: int, found: Found, octets: disk.FileOctets) -> Body:
        if found.size > STREAM_OCTETS:
            fd = os.dup(octets.fd)
            try:
                return FileBody(fd, name=self._shown(row), private=True, part=(found.body, found.size))
            except BaseException:
                os.close(fd)
                raise
        body = octets.at(found.body, found.size)
        if len(body) != found.size:
            raise Damaged(f"it has {len(body)} of {found.size} octets")
        return body

    def _attachment(self, row: int, path: str) -> int:
        """The descriptor of an attachment.

        Raises:
            MessageUnreadable: nobody has said where attachments lie.
            OSError
        """
        layout = self._layout
        if not layout.attachments:
            text = f"{self._shown(row)}: its attachments are stored apart"
            hint = "set mail_attachment_dir to the directory that Dovecot has under that name"
            raise MessageUnreadable(text, hint=hint, code="attachment")
        name = path
        try:
            if self._attachments is None:
                self._attachments = os.open(layout.attachments, files.DIRECTORY)
            if layout.kind == "sdbox":
                name = f"{path}-{self._guid}-{self._uid(row)}"
            try:
                return open_attachment(self._attachments, name)
            except FileNotFoundError:
                # Copies of a message have names of their own for the same octets.
                other = self._other_name(path) if self._account.salvage and layout.kind == "sdbox" else None
                if other is None:
                    raise
                return open_attachment(self._attachments, other)
        except OSError as error:
            text = f"{self._shown(row)}: attachment {disk.shown(layout.attachments, name)}: {error.strerror}"
            raise MessageUnreadable(text, code="attachment") from error

    def _other_name(self, path: str) -> str | None:
        assert self._attachments is not None
        *above, name = path.split("/")
        try:
            fd = disk.open_below(self._attachments, above)
        except OSError:
            return None
        try:
            found = sorted(each for each in os.listdir(fd) if each.startswith(f"{name}-"))
        finally:
            os.close(fd)
        return "/".join([*above, found[0]]) if found else None

    def _received(self, row: int, found: Found, status: os.stat_result) -> int:
        """INTERNALDATE; without one in the metadata when it was saved, or when its file was written."""
        if found.received is not None:
            return found.received
        saved = self._saved(row, status) if self._layout.kind == "mdbox" else None
        return saved if saved is not None else int(status.st_mtime)

    def _saved(self, row: int, status: os.stat_result) -> int | None:
        known = self._save_date(row)
        return known if known is not None or self._layout.kind == "mdbox" else int(status.st_ctime)

    def _save_date(self, row: int) -> int | None:
        """By the index: of mdbox always, of sdbox where the cache has it."""
        if self._layout.kind == "sdbox":
            return self._cached_save_date(row)
        extension = self._table.extension("mdbox")
        if extension is None or row >= len(self._table):
            return None
        return int.from_bytes(extension.cell(row)[4:8], "little") or None

    def _cached_save_date(self, row: int) -> int | None:
        extension = self._table.extension("cache")
        if extension is None or row >= len(self._table):
            return None
        if self._cache is None:
            octets = None
            try:
                fd = disk.open_path(self._layout.index, self._layout.index_levels(self._selection.directory))
                if fd is not None:
                    try:
                        octets = disk.read_file(fd, f"{disk.INDEX}.cache", disk.MAX_CACHE)
                    finally:
                        os.close(fd)
            except (OSError, Damaged) as error:
                logger.info("cache passed over directory=%r reason=%s", self._selection.directory, error)
            self._cache = Cache(octets or b"", extension.reset_id)
        return self._cache.saved(int.from_bytes(extension.cell(row), "little"))

    def _has_uidls(self) -> bool:
        """Dovecot shows those of the files only where the folder says that it has some."""
        header = _folder_header(self._table)
        return len(header) > 20 and bool(header[20] & 1)


def _folder_header(table: Table) -> bytes:
    for name in ("dbox-hdr", "mdbox-hdr"):
        extension = table.extension(name)
        if extension is not None:
            return bytes(extension.header)
    return b""


def _header_of(pieces: Iterator[bytes]) -> bytes:
    head = b""
    for piece in pieces:
        head += piece
        if has_header(head):
            break
    return head


def _pieces(octets: disk.FileOctets, found: Found) -> Iterator[bytes]:
    at, end = found.body, found.body + found.size
    while at < end:
        piece = octets.at(at, min(PIECE_OCTETS, end - at))
        if not piece:
            raise Damaged(f"the file ends {end - at} octets before the message")
        yield piece
        at += len(piece)
