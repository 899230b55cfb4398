"""Read stores whose messages lie one in a file. Nothing is ever created, locked or written at the source.

Holder.mailboxes, Holder.listed ─▶ Listing        messages: up to 64 files a thread hop ─▶ list
                                                     ▲ Reader.read, one by one in listed order
"""

from __future__ import annotations

import errno
import time
from array import array
from collections.abc import AsyncGenerator, Callable, Container, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol

from anyio import from_thread, to_thread

from aimport.dates import guessed
from aimport.model import (
    STREAM_OCTETS,
    Body,
    ConnectionLimits,
    Mailbox,
    Message,
    MessageKey,
    Order,
    Selection,
    Unreadable,
)
from aimport.octets import has_header, pieces_of
from aimport.query.facts import Fact, Facts
from aimport.query.terms import ALL, Term
from aimport.stores import files
from aimport.stores.mbox.lines import date_of
from aimport.stores.shelf import ByReading, selected

HOP_MESSAGES: Final = 64
HOP_OCTETS: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The messages of one mailbox: their keys, and what their store needs to find them again."""

    keys: Sequence[MessageKey]
    sizes: Sequence[int]
    places: Sequence[int] = ()
    """The store's own, beside the keys."""
    flags: Sequence[frozenset[str]] = ()
    dates: Sequence[float] = ()
    """mtime, seconds since 1970, where the listing shows it."""
    kept: bool = False
    """`dates` are what the store keeps as INTERNALDATE."""
    mark: object = None
    """Tells this state of the store from others."""


class Reader(Protocol):
    """One mailbox, open, in worker threads."""

    def read(self, index: int) -> Message | Unreadable:
        """The message of the listing at this index; they are asked for in ascending order.

        Raises:
            OSError: what is wrong is wider than a message.
        """
        ...

    def close(self) -> None: ...


class Holder(Protocol):
    """Where the messages of one account lie. Every call is made in a worker thread."""

    path: str
    """For people."""

    def mailboxes(self) -> list[Mailbox]:
        """Raises as `SourceSession.list_mailboxes`."""
        ...

    def listed(self, mailbox: Mailbox) -> Listing:
        """Raises as `SourceSession.select`."""
        ...

    def reader(self, mailbox: Mailbox, listing: Listing) -> Reader:
        """Raises as `SourceSession.select`."""
        ...


class LooseSource:
    """One account."""

    host = ""

    def __init__(self, make: Callable[[], Holder]) -> None:
        self._make = make

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[LooseSourceSession, None]:
        """A session; it holds nothing open between calls."""
        yield LooseSourceSession(self._make())


@dataclass(frozen=True, slots=True, kw_only=True)
class LooseSelection(Selection):
    """With the listing of the whole mailbox, and which of it was selected."""

    listing: Listing
    indexes: Sequence[int]

    def only(self, places: Sequence[int]) -> LooseSelection:
        """The selected messages at these places."""
        return replace(
            self,
            keys=[self.keys[place] for place in places],
            sizes=[self.sizes[place] for place in places],
            indexes=array("Q", (self.indexes[place] for place in places)),
        )


class LooseSourceSession:
    """Reads one account."""

    limits = ConnectionLimits()

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await to_thread.run_sync(self._holder.mailboxes)

    async def select(self, mailbox: Mailbox, term: Term = ALL, order: Order = "stored") -> Selection:
        listing = await to_thread.run_sync(self._holder.listed, mailbox)
        whole = LooseSelection(
            mailbox=mailbox,
            keys=listing.keys,
            sizes=listing.sizes,
            listing=listing,
            indexes=range(len(listing.keys)),
        )
        return await selected(self, whole, term, order, whole.only)

    def look(self, selection: Selection, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        assert isinstance(selection, LooseSelection), "a selection belongs to the store that made it"
        return ByReading(self, len(selection.keys), selection.only).look(places, facts)

    async def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        assert isinstance(selection, LooseSelection), "a selection belongs to the store that made it"
        keys = selection.listing.keys
        wanted = array("Q", (index for index in selection.indexes if keys[index] not in skip))
        if not wanted:
            return
        reader = await to_thread.run_sync(self._holder.reader, selection.mailbox, selection.listing)
        try:
            at = 0
            while at < len(wanted):
                hop = wanted[at : at + _count(selection.listing.sizes, wanted, at)]
                yield await to_thread.run_sync(self._read, reader, hop)
                at += len(hop)
        finally:
            reader.close()

    def _read(self, reader: Reader, hop: Sequence[int]) -> list[Message | Unreadable]:
        done: list[Message | Unreadable] = []
        try:
            with files.READ_TURNS as turns:
                began = time.monotonic()
                for index in hop:
                    from_thread.check_cancelled()
                    done.append(reader.read(index))
                turns.took(len(hop), time.monotonic() - began)
        except BaseException as error:
            for one in done:
                if isinstance(one, Message) and not isinstance(one.body, bytes):
                    one.body.close()
            if isinstance(error, OSError):
                raise files.translated(error, self._holder.path) from error
            raise
        return done


def _count(sizes: Sequence[int], wanted: Sequence[int], at: int) -> int:
    """How many are read at once; a large one is read alone."""
    octets = 0
    for count in range(min(HOP_MESSAGES, len(wanted) - at)):
        size = sizes[wanted[at + count]]
        if count and (size > STREAM_OCTETS or octets + size > HOP_OCTETS):
            return count
        octets += size
        if octets >= HOP_OCTETS:
            return count + 1
    return min(HOP_MESSAGES, len(wanted) - at)


def dated(key: MessageKey, flags: frozenset[str], body: Body, mtime: float, name: str) -> Message:
    """A message whose store keeps no INTERNALDATE: its From_ line, or a guess.

    Raises:
        MessageUnreadable: a large body cannot be read.
    """
    head = body if isinstance(body, bytes) else b""
    if not isinstance(body, bytes):
        for piece in pieces_of(body):
            head += piece
            if has_header(head):
                break
    if head.startswith(b"From ") and (date := date_of(head[: head.find(b"\n") + 1 or len(head)])) is not None:
        return Message(key=key, flags=flags, internal_date=date, body=body)
    date, where = guessed(head, mtime, name)
    return Message(key=key, flags=flags, internal_date=date, body=body, dated=where)


def narrow(error: Exception, key: MessageKey, path: str) -> Unreadable:
    """A failure of one message.

    Raises:
        OSError: the same, when it is no message's.
    """
    if isinstance(error, OSError):
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise error
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return Unreadable(key=key, code="vanished", text=f"{path} is gone")
        return Unreadable(key=key, code="unreadable", text=str(files.translated(error, path)))
    return Unreadable(key=key, code="unreadable", text=f"{path}: {error}")


def in_order(mailboxes: Iterable[Mailbox]) -> list[Mailbox]:
    """As all stores list them: the INBOX first."""
    return sorted(mailboxes, key=lambda mailbox: (mailbox.path != ("INBOX",), mailbox.path, mailbox.native))
