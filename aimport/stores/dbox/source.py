"""Read sdbox and mdbox without Dovecot. Nothing is created, renamed, locked or written.

select: index + log ─▶ keys by UID        messages: 64 messages a thread hop ─▶ list
                                                  ▲ sdbox: u.<uid>    mdbox: map ─▶ m.<file>, offset
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Container, Sequence
from contextlib import asynccontextmanager
from itertools import islice

from anyio import to_thread

from aimport.model import ConnectionLimits, Endpoint, Mailbox, Message, Order, Selection, Unreadable
from aimport.query.facts import Fact, Facts
from aimport.query.terms import ALL, Term
from aimport.selecting import pick
from aimport.stores.dbox.account import Account
from aimport.stores.dbox.layout import Layout
from aimport.stores.dbox.reader import HOP_MESSAGES, Reader
from aimport.stores.dbox.selection import DboxSelection
from aimport.stores.dbox.shelf import DboxShelf


class DboxSource:
    """One account in an sdbox or mdbox tree."""

    host = ""

    def __init__(self, endpoint: Endpoint, *, salvage: bool = False) -> None:
        self._layout = Layout.of(endpoint)
        self._salvage = salvage

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[DboxSourceSession, None]:
        """A session; it keeps some `m.*` files open."""
        session = DboxSourceSession(self._layout, salvage=self._salvage)
        try:
            yield session
        finally:
            session.close()


class DboxSourceSession:
    """Reads one sdbox or mdbox tree."""

    limits = ConnectionLimits()

    def __init__(self, layout: Layout, *, salvage: bool) -> None:
        self.account = Account(layout, salvage=salvage)

    def close(self) -> None:
        self.account.storage.close()

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await to_thread.run_sync(self.account.mailboxes)

    async def select(self, mailbox: Mailbox, term: Term = ALL, order: Order = "stored") -> Selection:
        selection = await to_thread.run_sync(self.account.select, mailbox)
        if term == ALL and order == "stored":
            return selection
        return selection.only(await pick(term, order, DboxShelf(self.account, selection)))

    def look(self, selection: Selection, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        assert isinstance(selection, DboxSelection), "a selection belongs to the store that made it"
        return DboxShelf(self.account, selection).look(places, facts)

    async def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        assert isinstance(selection, DboxSelection), "a selection belongs to the store that made it"
        places = (one for one in zip(selection.keys, selection.rows, strict=True) if one[0] not in skip)
        wanted = list(islice(places, HOP_MESSAGES))
        if not wanted:
            return
        reader = await to_thread.run_sync(Reader, self.account, selection)
        try:
            while wanted:
                read = await to_thread.run_sync(reader.read, wanted)
                del wanted[: len(read)]
                wanted += islice(places, HOP_MESSAGES - len(wanted))
                yield read
        finally:
            reader.close()
