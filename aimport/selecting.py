"""Select from one mailbox: what the store has seen by listing decides first, bodies are read last.

    Shelf ─ flags, sizes ─▶ decide ─ dates ─▶ decide ─ headers ─▶ decide ─ bodies ─▶ decide ─▶ places
                              └─ what is decided is not looked at again

Knows no store: each makes a `Shelf` of a mailbox within its `select` and asks `sift`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, Protocol

from anyio import to_thread

from aimport.model import Order
from aimport.query.facts import ONE_BY_ONE, STAGES, Fact, Facts, asked_by
from aimport.query.judge import decide
from aimport.query.terms import ALL, NOTHING, And, InThread, Leaf, MailboxGuid, Not, Numbers, Or, Term, simplified
from aimport.query.threads import Links, links, whole_threads

INLINE: Final = 1000
"""So many messages are decided on the loop (a millisecond); more, and texts, in a thread."""


class Shelf(Protocol):
    """The messages of one mailbox in stored order. A place is an index into them: the sequence number less one."""

    @property
    def guid(self) -> str:
        """Of the mailbox, 32 lower-case hexadecimal digits; "" when it is not known."""
        ...

    def __len__(self) -> int: ...

    def look(self, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        """The columns asked for, of all of `places` in order. Leave early with `aclosing`.

        All of `ONE_BY_ONE` comes in batches of up to 64 messages and about 1 MiB, as the store finds
        good; of a message that cannot be read it holds None, and whoever asked closes large bodies.
        The rest comes in one batch.

        Raises:
            MailboxError, ConnectionLost
        """
        ...


async def sift(term: Term, shelf: Shelf) -> list[int]:
    """The places of all messages that `term` selects, ascending.

    A message that would have to be read to be judged, and cannot be, is selected: reading it will say why.
    """

    def known(leaf: Leaf) -> bool | None:
        return leaf.guid == shelf.guid if isinstance(leaf, MailboxGuid) else None

    count = len(shelf)
    places: Sequence[int] = range(count)
    term = await _with_threads(simplified(term, known), shelf)
    if term == ALL:
        return list(places)
    selected: list[int] = []
    facts = Facts(places=places)
    asked = asked_by(term)
    if asked & Fact.SIZE and asked & (Fact.HEADER | Fact.BODY):
        asked = asked & ~Fact.SIZE | Fact.BODY  # which tells all three: headers are not kept from stage to stage
    for stage in STAGES:
        wanted = asked & stage
        if not places:
            break
        if wanted:
            undecided: list[int] = []
            async with aclosing(shelf.look(places, wanted)) as batches:
                async for batch in batches:
                    seen = facts.with_(batch)
                    sure, unsure = await _decide(term, seen, count)
                    selected += sure
                    undecided += unsure
                    if not wanted & ONE_BY_ONE:
                        facts = seen
            places = undecided
        elif stage == STAGES[0]:  # sequence numbers, or what is known of all
            sure, places = await _decide(term, facts, count)
            selected += sure
    return sorted([*selected, *places])


async def pick(term: Term, order: Order, shelf: Shelf) -> Sequence[int]:
    """The places of all messages that `term` selects, in that order."""
    places = await sift(term, shelf)
    if order == "stored" or not places:
        return places
    dates: dict[int, int] = {}
    async with aclosing(shelf.look(places, Fact.DATE)) as batches:
        async for batch in batches:
            assert batch.dates is not None
            dates.update((place, batch.dates[place] or 0) for place in batch.places)
    # Of two with one date the later stored is the newer.
    return sorted(places, key=lambda place: (dates[place], place), reverse=order == "newest")


async def _with_threads(term: Term, shelf: Shelf) -> Term:
    """The same with the sequence numbers of whole threads in place of each `InThread`."""
    if isinstance(term, And | Or):
        return simplified(type(term)(tuple([await _with_threads(each, shelf) for each in term.terms])))
    if isinstance(term, Not):
        return simplified(Not(await _with_threads(term.term, shelf)))
    if not isinstance(term, InThread):
        return term
    some = await sift(term.term, shelf)
    if not some:
        return NOTHING
    places = range(len(shelf))
    messages: dict[int, Links] = {}
    async with aclosing(shelf.look(places, Fact.HEADER)) as batches:
        async for batch in batches:
            messages.update(await to_thread.run_sync(_linked, batch))
    async with aclosing(shelf.look(places, Fact.DATE)) as batches:
        async for batch in batches:
            for place, each in messages.items():
                if not each.date and batch.dates is not None:
                    messages[place] = replace(each, date=batch.dates[place] or 0)
    found = await to_thread.run_sync(whole_threads, messages, some, term.algorithm)
    return Numbers(tuple((place + 1, place + 1) for place in found))


def _linked(batch: Facts) -> dict[int, Links]:
    assert batch.headers is not None
    return {place: links(batch.headers[place] or b"") for place in batch.places}


async def _decide(term: Term, facts: Facts, count: int) -> tuple[list[int], list[int]]:
    try:
        if facts.headers is None and facts.bodies is None and len(facts.places) <= INLINE:
            return decide(term, facts, count)
        return await to_thread.run_sync(decide, term, facts, count)
    finally:
        for body in facts.large():
            body.close()
