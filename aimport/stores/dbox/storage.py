"""`storage/` of mdbox: the map, the `m.*` files, and what a scan of all of them finds.

    map UID ─▶ map ─▶ (file, offset)            GUID ─▶ scan of every file ─▶ (file, offset)

The scan is the way out where the map is lost or wrong, and the only one to what no folder points to. For worker
threads.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from anyio import from_thread

from aimport.stores import files
from aimport.stores.dbox import disk
from aimport.stores.dbox.index import Damaged, Table
from aimport.stores.dbox.layout import Layout
from aimport.stores.dbox.messages import MAX_FILE_HEADER, Found, guid_128, parse_file_header, read_message, scan

logger = logging.getLogger(__name__)

OPEN_FILES: Final = 4  # with directories and attachments below `limits.DESCRIPTORS_OF_LANE`
_MAP_RECORD = struct.Struct("<III")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a message is: file, offset, and its octets with header and metadata (0: not known)."""

    file: int
    at: int
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """A whole message that a scan has found."""

    place: Place
    guid: str
    folder: str


class _File:
    """One `m.*` file, open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.octets = disk.FileOctets(fd)
        self.header = 0
        """Octets of the header of each message; 0: not read yet."""


class Storage:
    """The storage of one account, for one session. Files are opened when they are asked for."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._open: OrderedDict[int, _File] = OrderedDict()
        self._dirs: list[int] | None = None
        self._map: Table | None = None
        self._map_read = False
        self._scan: list[Scanned] | None = None
        self._by_guid: dict[bytes, Place] = {}
        self.damage: list[str] = []
        """What the last scan found damaged."""
        self.remarks: list[str] = []
        """What is wrong with it and nobody was told yet."""

    def close(self) -> None:
        for file in self._open.values():
            os.close(file.fd)
        self._open.clear()
        for fd in self._dirs or ():
            os.close(fd)
        self._dirs = None

    # The map.

    @property
    def map(self) -> Table | None:
        """The map; None when it is lost. What is wrong with it is told once."""
        if not self._map_read:
            self.refresh()
            if self._map is None or self._map.damage:
                what = "it is missing" if self._map is None else "; ".join(self._map.damage)
                path = disk.shown(self._layout.index, "storage", disk.MAP)
                self.remarks.append(f"{path}: {what}; messages are found by their GUIDs")
        return self._map

    def refresh(self) -> None:
        """Reads the map again: a purge moves messages to other files."""
        self._map_read = True
        self._map = None
        fd = disk.open_path(self._layout.index, ("storage",)) if self._layout.index else None
        if fd is not None:
            try:
                self._map = disk.load_table(fd, disk.MAP)
            finally:
                os.close(fd)

    def place(self, map_uid: int) -> Place | None:
        """Where the map says that a message is."""
        table = self.map
        extension = table.extension("map") if table is not None else None
        row = table.row(map_uid) if table is not None else -1
        if extension is None or row < 0:
            return None
        file, at, size = _MAP_RECORD.unpack(extension.cell(row))
        return Place(file=file, at=at, size=size) if file else None

    def expunged(self) -> set[tuple[int, int]]:
        """File and offset of what is expunged everywhere and not purged yet; nothing when the map is not whole."""
        table = self.map
        extension, references = (table.extension("map"), table.extension("ref")) if table is not None else (None, None)
        if table is None or table.damage or extension is None or references is None:
            return set()
        return {
            _MAP_RECORD.unpack(extension.cell(row))[:2] for row in range(len(table)) if references.cell(row) == b"\0\0"
        }

    # Files.

    def read(self, place: Place) -> tuple[Found, disk.FileOctets]:
        """The message at a place, and the file it lies in (open until others are read).

        Raises:
            Damaged: it is not whole, or there is none.
            OSError: also when there is no such file.
        """
        file = self._file(place.file)
        if not file.header:
            file.header = parse_file_header(file.octets.at(0, MAX_FILE_HEADER))[1]
        if 0 < place.size <= disk.WHOLE_OCTETS:
            file.octets.load(place.at, place.size)
        return read_message(file.octets, place.at, file.header), file.octets

    def octets(self, place: Place) -> disk.FileOctets:
        """The file a place is in.

        Raises:
            OSError
        """
        return self._file(place.file).octets

    def _file(self, number: int) -> _File:
        if number in self._open:
            self._open.move_to_end(number)
            file = self._open[number]
            if not file.octets.grown():
                return file
            os.close(self._open.pop(number).fd)
        while len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1].fd)
        for fd in self._directories():
            try:
                opened = files.open_file(f"m.{number}", fd)
            except FileNotFoundError:
                continue
            try:
                file = self._open[number] = _File(opened)
            except BaseException:
                os.close(opened)
                raise
            return file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"m.{number}")

    def _directories(self) -> list[int]:
        """`storage` of the primary and of the alternative storage, as far as they are there."""
        if self._dirs is None:
            self._dirs = []
            for root in filter(None, (self._layout.root, self._layout.alt)):
                fd = disk.open_path(root, ("storage",))
                if fd is not None:
                    self._dirs.append(fd)
        return self._dirs

    def numbers(self) -> list[int]:
        """The files that there are, ascending."""
        return sorted({number for fd in self._directories() for number in disk.message_numbers(fd, "m.")})

    # The scan.

    def scanned(self) -> list[Scanned]:
        """Every whole message of every file, once by its GUID where it has one. Reads all headers, once a session."""
        if self._scan is None:
            self._scan = list(self._scan_all())
        return self._scan

    def by_guid(self, guid: bytes) -> Place | None:
        """Where a scan has found the message with these 16 octets for its GUID."""
        self.scanned()
        return self._by_guid.get(guid)

    def _scan_all(self) -> Iterator[Scanned]:
        logger.info("scanning message files path=%s", disk.shown(self._layout.root, "storage"))
        self.damage = []
        for number in self.numbers():
            try:
                octets = self._file(number).octets
                for found in scan(octets):
                    from_thread.check_cancelled()
                    if isinstance(found, str):
                        self.damage.append(f"m.{number}: {found}")
                        continue
                    guid = found.guid
                    place = Place(file=number, at=found.at, size=found.end - found.at)
                    if guid:
                        key = guid_128(guid)
                        if key in self._by_guid:
                            continue  # a purge that was cut off leaves two, with the same octets
                        self._by_guid[key] = place
                    yield Scanned(place=place, guid=guid, folder=found.folder)
            except OSError as error:
                self.damage.append(f"m.{number}: {error.strerror}")

    def found_again(self, place: Place) -> Found:
        """The message that a scan has found at a place; also one that had to be mended.

        Raises:
            Damaged: it is not there any more.
            OSError
        """
        octets = self._file(place.file).octets
        for found in scan(octets, place.at):
            if not isinstance(found, str):
                if found.at == place.at:
                    return found
                break
        raise Damaged("it is not there any more")
