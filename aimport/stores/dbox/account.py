"""One account of dbox: its folders, their indexes, what is selected. For worker threads.

A damaged index fails its folder, with what is wrong: its flags are not to be trusted. `--salvage` takes what there
still is, and says what is lost. Messages that are whole and in no index are selected too: as unreadable ones, so
that each is in the report, or with `--salvage` as what they are.
"""

from __future__ import annotations

import logging
import os
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from anyio import from_thread

from aimport.errors import MailboxError, MailboxNotFound, SourceMissing
from aimport.model import Mailbox, MessageKey, Position
from aimport.names import INBOX, printable
from aimport.stores import files
from aimport.stores.dbox import disk
from aimport.stores.dbox.index import Damaged, Table, numbers
from aimport.stores.dbox.layout import Layout
from aimport.stores.dbox.lists import Node, nodes
from aimport.stores.dbox.messages import guid_128
from aimport.stores.dbox.selection import DboxSelection, Extra
from aimport.stores.dbox.storage import Scanned, Storage
from aimport.stores.keys import UidKeys
from aimport.stores.lazy import Measured

logger = logging.getLogger(__name__)

T = TypeVar("T")
_MANY: Final = 64 << 20  # arbitrary: a list of so many octets is a small matter

PAUSES_S: Final = (0.02, 0.1, 0.4)
"""What no index has is looked for again after so long: a mail that comes has its file before its place in the index,
one that goes has it longer, both for some milliseconds."""
MADE_S: Final = 0.25
PATIENCE_S: Final = 2.0
"""So long in all for one session: a store with many leftovers is not waited for in every folder."""
SALVAGE: Final = "--salvage takes what is whole, also with resume"


class Account:
    """One account, for worker threads; one at a time."""

    def __init__(self, layout: Layout, *, salvage: bool) -> None:
        self.layout = layout
        self.salvage = salvage
        self.storage = Storage(layout)
        self._by_name: dict[tuple[str, ...], str] | None = None
        self._patience_s = PATIENCE_S
        self._nameless: Sequence[str] = ()
        """Directories of LAYOUT=index that the list does not name."""
        self._lost: dict[str, list[Scanned]] | None = None
        self._tables: dict[str, tuple[tuple[int, ...], Table | None]] = {}
        """mdbox: indexes of folders, which are all needed to know what no folder has."""

    # Folders.

    def mailboxes(self) -> list[Mailbox]:
        """Every folder of every tree: one that is only in one of them is told of when it is selected.

        Raises:
            SourceMissing, AccessRefused, AimportError
        """
        layout = self.layout
        os.close(disk.open_root(layout.root, "mail"))
        if layout.index_apart and layout.index and not self.salvage:
            os.close(disk.open_root(layout.index, "INDEX"))
        # An account without its root of ALT may be whole; if it is not, each message that is missing is told of.
        directories = self._directories()
        if not directories and not self._has_tree():
            raise SourceMissing(
                f"{layout.root}/{layout.mailboxes}: there is no such directory, so this is no {layout.kind}"
            )
        if layout.by_guid:
            mailboxes = self._named(directories)
        else:
            mailboxes = [layout.mailbox(printable(each), directory=each) for each in directories]
        if layout.kind == "mdbox":
            known = {mailbox.native for mailbox in mailboxes}
            new = [directory for directory in self.lost(mailboxes) if directory not in known]
            mailboxes += [layout.mailbox(printable(each), directory=each) for each in new]
        mailboxes.sort(key=lambda mailbox: (mailbox.path != (INBOX,), mailbox.path, mailbox.native))
        if not mailboxes and layout.kind == "mdbox" and self.storage.numbers():
            text = f"{layout.root}/{layout.mailboxes}: there is no folder, and there are messages in storage"
            raise SourceMissing(text, hint=SALVAGE)
        return mailboxes

    def _has_tree(self) -> bool:
        for path in filter(None, (self.layout.root, self.layout.index)):
            fd = disk.open_path(path, (self.layout.mailboxes,))
            if fd is not None:
                os.close(fd)
                return True
        return False

    def _directories(self) -> list[str]:
        layout = self.layout
        found: dict[str, None] = {}
        try:
            for root, index in ((layout.root, False), (layout.index, True), (layout.alt, False)):
                if root and not (index and not layout.index_apart):
                    found.update(dict.fromkeys(each.path for each in disk.walk(root, layout, index=index)))
        except OSError as error:
            raise files.translated(error, f"{root}/{layout.mailboxes}", wide=True) from error
        return list(found)

    def _named(self, directories: Sequence[str]) -> list[Mailbox]:
        """LAYOUT=index: directories are GUIDs, names come from the list. One without a name goes by its GUID.

        Raises:
            SourceMissing: the list is missing or damaged, and without it there are no names.
        """
        layout = self.layout
        found: dict[str, Mailbox] = {}
        for node in self._nodes():
            if node.selectable and node.guid not in found:
                name = "/".join(level.decode("utf-8", "surrogateescape") for level in node.levels)
                found[node.guid] = layout.mailbox(name, directory=node.guid)
        self._nameless = [directory for directory in directories if directory not in found]
        return [*found.values(), *(layout.mailbox(each, directory=each) for each in self._nameless)]

    def _nodes(self) -> list[Node]:
        layout = self.layout
        path = disk.shown(layout.list_root, layout.list_index)
        try:
            fd = disk.open_path(layout.list_root, ())
            table = None
            if fd is not None:
                try:
                    table = disk.load_table(fd, layout.list_index)
                finally:
                    os.close(fd)
            if table is None:
                raise Damaged("it is missing")
            if table.damage and not self.salvage:
                raise Damaged("; ".join(table.damage))
            return list(nodes(table))
        except OSError as error:
            raise files.translated(error, path, wide=True) from error
        except Damaged as error:
            if self.salvage:
                logger.warning("names of folders are lost path=%s reason=%s", path, error)
                return []
            hint = f"{SALVAGE}, under the GUIDs of the folders"
            raise SourceMissing(f"{path}: {error}; it alone has the names of the folders", hint=hint) from error

    def directory(self, mailbox: Mailbox) -> str:
        """The directory of a mailbox below `mailboxes`.

        Raises:
            MailboxNotFound
        """
        try:
            if mailbox.native or not self.layout.by_guid:
                return self.layout.directory(mailbox)
        except ValueError as error:
            raise MailboxNotFound(str(error), code="NONEXISTENT") from error
        if self._by_name is None:
            self._by_name = {each.path: each.native for each in self._named(self._directories())}
        if mailbox.path not in self._by_name:
            raise MailboxNotFound(f"there is no folder {mailbox.name!r}", code="NONEXISTENT")
        return self._by_name[mailbox.path]

    def table(self, directory: str) -> Table | None:
        """The index of a folder as it is now; None: there is none.

        Raises:
            MailboxError
        """
        return self._at_index(directory, disk.load_table, None)

    def signature(self, directory: str) -> tuple[int, ...]:
        """Another one when the index of a folder may have changed.

        Raises:
            MailboxError
        """
        return self._at_index(directory, disk.signature, ())

    def _known(self, directory: str) -> tuple[tuple[int, ...], Table | None]:
        """The index of a folder, read again when it may have changed, with its signature."""
        signature = self.signature(directory)
        known = self._tables.get(directory)
        if known is None or known[0] != signature:
            known = (signature, self.table(directory))
            if self.layout.kind == "mdbox":
                self._tables[directory] = known
        return known

    def _at_index(self, directory: str, look: Callable[[int, str], T], missing: T) -> T:
        if not self.layout.index:
            return missing
        try:
            fd = disk.open_path(self.layout.index, self.layout.index_levels(directory))
            if fd is None:
                return missing
            try:
                return look(fd, disk.INDEX)
            finally:
                os.close(fd)
        except OSError as error:
            raise files.translated(error, self.index_path(directory)) from error

    def index_path(self, directory: str) -> str:
        return disk.shown(self.layout.index, *self.layout.index_levels(directory))

    # Selecting.

    def select(self, mailbox: Mailbox) -> DboxSelection:
        """Raises:
        MailboxNotFound
        MailboxError: the index is damaged, or missing, and nothing is to be salvaged.
        """
        directory = self.directory(mailbox)
        notes: list[str] = []
        path = self.index_path(directory) or disk.shown(self.layout.root, directory)
        if directory in self._nameless:
            if not self.salvage:
                raise MailboxError(f"{path}: the list of folders does not name it", hint=SALVAGE)
            notes.append(f"{path}: its name is lost")
        signature, table = self._known(directory)
        if table is None:
            if not self._exists(directory) and directory not in (self._lost or ()):
                raise MailboxNotFound(f"{path}: there is no such folder", code="NONEXISTENT")
            table = Table()
            extras = self._extras(directory, table, indexed=False)
            if (extras or self._may_hold(directory)) and not self.salvage:
                if self._pause(MADE_S):  # a folder that is just being made has its index last
                    return self.select(mailbox)
                raise MailboxError(f"{path}: there is no index, which alone has UIDs and flags", hint=SALVAGE)
            if extras:
                notes.append(f"{path}: there is no index: flags and keywords of {len(extras)} messages are lost")
        else:
            if table.damage and not self.salvage:
                text = "; ".join(table.damage)
                raise MailboxError(f"{path}/{disk.INDEX}: {text}", hint=SALVAGE)
            notes += [f"{path}/{disk.INDEX}: {each}" for each in table.damage]
            extras = self._extras(directory, table)
            if extras and self.salvage:
                notes.append(f"{path}: flags and keywords of {len(extras)} messages are lost: no index has them")
        if self.layout.kind == "mdbox":
            _ = self.storage.map  # sizes may be asked for outside of a thread, and need it
            notes += self.storage.remarks
            self.storage.remarks.clear()
        uids = array("Q", table.uids)
        keys: Sequence[MessageKey] = UidKeys(table.uidvalidity, uids)
        if extras:
            keys = [*keys, *(each.key for each in extras)]
        return DboxSelection(
            mailbox=mailbox,
            keys=keys,
            sizes=Measured(len(keys), lambda: self._measure(directory, table, extras)),
            notes=tuple(notes),
            position=Position(uidvalidity=table.uidvalidity, uidnext=table.next_uid) if table.uidvalidity else None,
            rows=range(len(keys)),
            table=table,
            signature=signature,
            directory=directory,
            extras=extras,
        )

    def _exists(self, directory: str) -> bool:
        for root in filter(None, (self.layout.root, self.layout.alt)):
            try:
                fd = disk.open_path(root, self.layout.levels(directory))
            except OSError as error:
                raise files.translated(error, disk.shown(root, directory)) from error
            if fd is not None:
                os.close(fd)
                return True
        return False

    def _may_hold(self, directory: str) -> bool:
        """Whether a folder of mdbox without an index may have had messages."""
        return self.layout.kind == "mdbox" and bool(self.storage.numbers())

    def _extras(self, directory: str, table: Table, *, indexed: bool = True) -> list[Extra]:
        if self.layout.kind == "mdbox":
            return [Extra(key=_lost_key(each), scanned=each) for each in self.lost(None).get(directory, ())]
        found = self._unindexed(directory, table)
        for pause_s in PAUSES_S:
            if not found or not indexed or not self._pause(pause_s):
                break
            fresh = self.table(directory) or table
            there = set(self._unindexed(directory, fresh))
            found = [uid for uid in found if uid in there]
        return [Extra(key=MessageKey(f"u.{uid}"), uid=uid) for uid in sorted(found)]

    def _unindexed(self, directory: str, table: Table) -> list[int]:
        """UIDs of message files that the index does not have."""
        uids, count = table.uids, len(table.uids)
        found: set[int] = set()
        for root in filter(None, (self.layout.root, self.layout.alt)):
            path = disk.shown(root, *self.layout.levels(directory))
            try:
                fd = disk.open_path(root, self.layout.levels(directory))
                if fd is None:
                    continue
                try:
                    for uid in disk.message_numbers(fd, "u."):
                        at = bisect_left(uids, uid)
                        if at == count or uids[at] != uid:
                            found.add(uid)
                finally:
                    os.close(fd)
            except OSError as error:
                raise files.translated(error, path) from error
        return sorted(found)

    def _measure(self, directory: str, table: Table, extras: Sequence[Extra]) -> array[int]:
        """Octets as they lie on disk, at least 1: what cannot be measured says why when it is read."""
        sizes = array("Q")
        if self.layout.kind == "mdbox":
            extension = table.extension("mdbox")
            for row in range(len(table)):
                map_uid = int.from_bytes(extension.cell(row)[:4], "little") if extension is not None else 0
                place = self.storage.place(map_uid)
                sizes.append(max(place.size, 1) if place else 1)
            sizes.extend(max(each.scanned.place.size, 1) if each.scanned else 1 for each in extras)
            return sizes
        fds = []
        try:
            for root in filter(None, (self.layout.root, self.layout.alt)):
                fd = disk.open_path(root, self.layout.levels(directory))
                if fd is not None:
                    fds.append(fd)
            for uids in (table.uids, [each.uid for each in extras]):
                for uid in uids:
                    sizes.append(_size_of(f"u.{uid}", fds))
        except OSError:
            sizes.extend([1] * (len(table) + len(extras) - len(sizes)))
        finally:
            for fd in fds:
                os.close(fd)
        return sizes

    # What no folder points to.

    def _unreferenced(self, directories: Sequence[str]) -> list[int]:
        """Map UIDs that no folder has, though the map says that one does."""
        found: list[int] = []
        for pause_s in (0.0, *PAUSES_S):
            if pause_s:
                if not self._pause(pause_s):
                    break
                self.storage.refresh()
            table = self.storage.map
            references = table.extension("ref") if table is not None else None
            if table is None or references is None or not table.uids or table.damage:
                return []
            seen: bytearray | set[int] = bytearray(table.uids[-1] + 1) if table.uids[-1] < _MANY else set()
            for directory in directories:
                try:
                    folder = self._known(directory)[1]
                except MailboxError:
                    return []  # it fails, and says so
                if folder is None or folder.damage:
                    return []
                extension = folder.extension("mdbox")
                for uid in numbers(extension.cells)[::2] if extension is not None else ():
                    if isinstance(seen, set):
                        seen.add(uid)
                    elif uid < len(seen):
                        seen[uid] = 1
            cells = references.cells
            before = set(found) if pause_s else None
            found = [
                uid
                for row, uid in enumerate(table.uids)
                if not (uid in seen if isinstance(seen, set) else seen[uid]) and (cells[2 * row] or cells[2 * row + 1])
                if before is None or uid in before
            ]
            if not found:
                break
        return found

    def _pause(self, seconds: float) -> bool:
        """False: there is no patience left."""
        from_thread.check_cancelled()
        if self._patience_s < seconds:
            return False
        self._patience_s -= seconds
        time.sleep(seconds)
        return True

    def lost(self, mailboxes: Sequence[Mailbox] | None) -> dict[str, list[Scanned]]:
        """mdbox: whole messages that no folder has, by the directory where the first of their folders was.

        Without `--salvage` those that the map knows; with it those that a scan finds, but for what the map knows as
        expunged.
        """
        if self._lost is None:
            if mailboxes is None:
                directories = self._directories()
            else:
                directories = [mailbox.native for mailbox in mailboxes]
            self._lost = {}
            for each in self._lost_scanned(directories) if self.salvage else self._lost_mapped(directories):
                self._lost.setdefault(self._home(each.folder), []).append(each)
        return self._lost

    def _lost_mapped(self, directories: Sequence[str]) -> Iterator[Scanned]:
        for uid in self._unreferenced(directories):
            place = self.storage.place(uid)
            if place is None:
                continue
            try:
                found, _ = self.storage.read(place)
            except (Damaged, OSError):
                yield Scanned(place=place, guid="", folder="")
            else:
                yield Scanned(place=place, guid=found.guid, folder=found.folder)

    def _lost_scanned(self, directories: Sequence[str]) -> Iterator[Scanned]:
        guids, places = self._referenced(directories)
        expunged = self.storage.expunged()
        left_out = 0
        for each in self.storage.scanned():
            place = (each.place.file, each.place.at)
            if place in places or (each.guid and guid_128(each.guid) in guids):
                continue
            if place in expunged:
                left_out += 1
                continue
            yield each
        path = disk.shown(self.layout.root, "storage")
        self.storage.remarks += (f"{path}/{text}" for text in self.storage.damage)
        if left_out:
            logger.warning("expunged messages left out path=%s count=%d", path, left_out)

    def _referenced(self, directories: Sequence[str]) -> tuple[set[bytes], set[tuple[int, int]]]:
        guids: set[bytes] = set()
        places: set[tuple[int, int]] = set()
        for directory in directories:
            try:
                table = self._known(directory)[1]
            except MailboxError as error:
                logger.warning("index passed over directory=%s error=%s", printable(directory), error)
                continue
            mdbox, guid = (table.extension("mdbox"), table.extension("guid")) if table else (None, None)
            for row in range(len(table) if table else 0):
                if guid is not None and any(cell := guid.cell(row)):
                    guids.add(cell)
                if mdbox is not None and (place := self.storage.place(int.from_bytes(mdbox.cell(row)[:4], "little"))):
                    places.add((place.file, place.at))
        return guids, places

    def _home(self, folder: str) -> str:
        """The directory for what was first saved in `folder` (as the name stands on disk)."""
        if not self.layout.by_guid:
            levels = folder.split("/")
            wrong = any(level in ("", ".", "..", self.layout.dirname) or "\0" in level for level in levels)
            return INBOX if wrong else folder
        if self._by_name is None:
            self._by_name = {each.path: each.native for each in self._named(self._directories())}
        path = self.layout.mailbox(folder or INBOX, directory="").path
        return self._by_name.get(path, folder or INBOX)


def _lost_key(each: Scanned) -> MessageKey:
    return MessageKey(f"g:{printable(each.guid)}" if each.guid else f"m.{each.place.file}:{each.place.at}")


def _size_of(name: str, fds: Sequence[int]) -> int:
    for fd in fds:
        try:
            return max(os.stat(name, dir_fd=fd, follow_symlinks=False).st_size, 1)
        except OSError:
            continue
    return 1
