"""Selecting where a store knows a message only by reading it: mbox, and files of one message each.

    Shelf.look ──▶ SourceSession.messages of the places asked for ──▶ flags, dates, headers, bodies

What the first stages ask for is gathered from all messages in one pass; nothing of the octets is kept.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import aclosing
from typing import Final, Protocol

from anyio import to_thread

from aimport.model import Body, Message, Order, Selection, Unreadable
from aimport.octets import has_header, pieces_of, wire_size
from aimport.query.facts import ONE_BY_ONE, Fact, Facts
from aimport.query.terms import ALL, Term
from aimport.selecting import pick

_UNKNOWN: Final = 1 << 62
"""Octets: no message is as large."""


class _Session(Protocol):
    """As much of a `SourceSession` as is needed here."""

    def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]: ...


async def selected(
    session: _Session, selection: Selection, term: Term, order: Order, only: Callable[[Sequence[int]], Selection]
) -> Selection:
    """What `term` selects of all messages of a mailbox, in that order; `only` makes the selection of some places.

    Raises:
        MailboxError: the mailbox cannot be read.
    """
    if term == ALL and order == "stored":
        return selection
    return only(await pick(term, order, ByReading(session, len(selection.keys), only)))


class ByReading:
    """Messages of a mailbox as a `selecting.Shelf`; `only` makes the selection of some places."""

    guid = ""

    def __init__(self, session: _Session, count: int, only: Callable[[Sequence[int]], Selection]) -> None:
        self._session = session
        self._count = count
        self._only = only

    def __len__(self) -> int:
        return self._count

    async def look(self, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        if not facts & ONE_BY_ONE:
            yield await self._gathered(places, facts)
            return
        at = 0
        async with aclosing(self._session.messages(self._only(places), skip=())) as lists:
            async for each in lists:
                yield await to_thread.run_sync(_looked, places[at : at + len(each)], each, facts)
                at += len(each)

    async def _gathered(self, places: Sequence[int], facts: Fact) -> Facts:
        seen = Facts(places=places)
        if Fact.UID in facts:
            seen.uids = range(1, self._count + 1)  # as a server would give them out
        if Fact.GUID in facts:
            seen.guids = [""] * self._count
        if Fact.MODSEQ in facts:
            seen.modseqs = [1] * self._count
        if Fact.SPAN in facts:
            seen.least, seen.most = [0] * self._count, [_UNKNOWN] * self._count
        if Fact.SAVED in facts:
            seen.saved = dict.fromkeys(places)
        if facts & (Fact.FLAGS | Fact.DATE):
            await self._read_all(places, seen)
        return seen

    async def _read_all(self, places: Sequence[int], seen: Facts) -> None:
        flags: dict[int, frozenset[str]] = {}
        dates: dict[int, int | None] = {}
        known: dict[frozenset[str], frozenset[str]] = {}
        at = 0
        async with aclosing(self._session.messages(self._only(places), skip=())) as lists:
            async for each in lists:
                for one in each:
                    place = places[at]
                    at += 1
                    if isinstance(one, Unreadable):
                        flags[place], dates[place] = frozenset({"\\Recent"}), None
                        continue
                    flags[place] = known.setdefault(one.flags, one.flags | {"\\Recent"})
                    dates[place] = int(one.internal_date.timestamp())
                    if not isinstance(one.body, bytes):
                        one.body.close()
        seen.flags, seen.dates = flags, dates


def _looked(places: Sequence[int], read: Sequence[Message | Unreadable], facts: Fact) -> Facts:
    bodies = [one.body if isinstance(one, Message) else None for one in read]
    if Fact.BODY in facts:
        return Facts(places=places, bodies=dict(zip(places, bodies, strict=True)))
    seen = Facts(places=places)
    try:
        if Fact.HEADER in facts:
            seen.headers = {place: _header(body) for place, body in zip(places, bodies, strict=True)}
        else:
            seen.sizes = {place: _size(body) for place, body in zip(places, bodies, strict=True)}
    finally:
        for body in bodies:
            if body is not None and not isinstance(body, bytes):
                body.close()
    return seen


def _header(body: Body | None) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    header = b""
    for piece in pieces_of(body):
        header += piece
        if has_header(header):
            break
    return header


def _size(body: Body | None) -> int | None:
    return None if body is None else wire_size(pieces_of(body))
