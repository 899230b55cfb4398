"""A folder of dbox for a term to be decided: the index tells flags and UIDs, metadata tell dates and sizes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final, TypeVar

from anyio import from_thread, to_thread

from aimport.errors import MailboxError
from aimport.model import Message
from aimport.query.facts import ONE_BY_ONE, Fact, Facts
from aimport.stores.dbox.account import Account
from aimport.stores.dbox.reader import HOP_MESSAGES, Reader
from aimport.stores.dbox.selection import DboxSelection

T = TypeVar("T")

_ANY_SIZE: Final = 1 << 62


class DboxShelf:
    """The selected messages of a folder, those that no index has behind the others."""

    def __init__(self, account: Account, selection: DboxSelection) -> None:
        self._account = account
        self._selection = selection
        self._table = selection.table
        self.guid = selection.guid

    def __len__(self) -> int:
        return len(self._selection.keys)

    async def look(self, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        if Fact.MODSEQ in facts:
            text = f"{self._selection.mailbox.name}: MODSEQ is not read from dbox"
            raise MailboxError(text, hint="leave it out of the query")
        reader = await to_thread.run_sync(Reader, self._account, self._selection)
        try:
            if not facts & ONE_BY_ONE:
                yield await to_thread.run_sync(self._listed, reader, places, facts)
                return
            at = 0
            while at < len(places):
                batch = await to_thread.run_sync(self._read, reader, places[at : at + HOP_MESSAGES], facts)
                at += len(batch.places)
                yield batch
        finally:
            reader.close()

    def _listed(self, reader: Reader, places: Sequence[int], facts: Fact) -> Facts:
        seen = Facts(places=places)
        if Fact.UID in facts:
            uids = self._uids()
            seen.uids = [uids[row] for row in self._selection.rows]
        if Fact.FLAGS in facts:
            flags = self._flags()
            seen.flags = [flags[row] for row in self._selection.rows]
        if Fact.GUID in facts:
            seen.guids = {place: guid or "" for place, guid in self._each(reader.guid, places).items()}
        if Fact.SPAN in facts:
            seen.least, seen.most = [0] * len(self), [_ANY_SIZE] * len(self)
        if Fact.DATE in facts:
            seen.dates = self._each(reader.received, places)
        if Fact.SAVED in facts:
            seen.saved = self._each(reader.saved, places)
        return seen

    def _read(self, reader: Reader, places: Sequence[int], facts: Fact) -> Facts:
        if Fact.SIZE in facts:
            return Facts(places=places, sizes=self._each(reader.wire_size, places))
        if Fact.HEADER in facts:
            return Facts(places=places, headers=self._each(reader.header, places))
        read = reader.read([(self._selection.keys[place], self._selection.rows[place]) for place in places])
        some = places[: len(read)]
        bodies = [each.body if isinstance(each, Message) else None for each in read]
        return Facts(places=some, bodies=dict(zip(some, bodies, strict=True)))

    def _each(self, look: Callable[[int], T], places: Sequence[int]) -> dict[int, T]:
        found = {}
        for number, place in enumerate(places):
            if number % 64 == 0:
                from_thread.check_cancelled()
            found[place] = look(self._selection.rows[place])
        return found

    def _uids(self) -> list[int]:
        """Of each row: those of the index, then what would be given out next."""
        following = self._table.next_uid
        return [*self._table.uids, *range(following, following + len(self._selection.extras))]

    def _flags(self) -> list[frozenset[str]]:
        table, first_recent = self._table, self._table.first_recent_uid
        known: dict[tuple[int, bytes, bool], frozenset[str]] = {}
        width = table.keywords.width
        found: list[frozenset[str]] = []
        for row, uid in enumerate(table.uids):
            state = (
                table.flags[row],
                bytes(table.keywords.cells[row * width : (row + 1) * width]),
                uid >= first_recent,
            )
            flags = known.get(state)
            if flags is None:
                flags = table.flags_of(row)
                flags = known[state] = flags | {"\\Recent"} if state[2] else flags
            found.append(flags)
        return found + [frozenset({"\\Recent"})] * len(self._selection.extras)
