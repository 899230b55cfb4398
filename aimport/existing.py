"""`--skip-existing`: which messages of a selection the destination has already. Counted: two here are two there.

    sizes here ─▶ which there may be one of them ─▶ headers of both ─▶ equal header and size: present
                                                                  └─▶ unsure ─▶ octets of both

From the destination alone, without any journal, also after another tool's import. A header with a Message-ID, equal in
every octet that no server changes, and the size decide; a header without one, or another size, and the octets do.
Sees only `interfaces`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from anyio import to_thread

from aimport import octets
from aimport.account import Account, Work
from aimport.interfaces import DestinationSession, SourceSession
from aimport.journal import LaneLog
from aimport.keyset import Spans
from aimport.model import Appended, Mailbox, MessageKey, Position, Present, Selection
from aimport.query.facts import Fact
from aimport.reading import seen_of

T = TypeVar("T")

PRESENT_ROW: Final = 500
"""Messages of one record of the journal."""
SHRUNK: Final = 20
"""A server that leaves out bare CRs makes a message smaller, by one a line, and a line has so many octets as a rule."""
_MESSAGE_ID = re.compile(rb"^message-id[ \t]*:[ \t\r\n]*[^ \t\r\n]", re.IGNORECASE | re.MULTILINE)


async def skip_existing(account: Account, work: Work, reader: SourceSession, writer: DestinationSession) -> None:
    """Records which open messages of a mailbox the destination has; they come to their end so.

    Raises:
        MailboxError, ConnectionLost
    """
    selection, target, lane = work.selection, work.target, work.lane
    position = await writer.position(target)
    if position is None:
        return
    taken: set[MessageKey] = set()
    if lane is not None:
        taken, unknown = await _stand_ins(lane, target, writer)
        places = [place for place, key in enumerate(selection.keys) if key in unknown]
        taken |= set((await existing(selection, places, reader, writer, target, taken=taken)).values())
    asking = [place for place, key in enumerate(selection.keys) if key not in work]
    found = await existing(selection, asking, reader, writer, target, taken=taken)
    if not found:
        return
    lane = work.lane = lane or await account.log.lane(work.source.name, target.name, position)
    present = [Present(key=selection.keys[place], held=held) for place, held in sorted(found.items())]
    for first in range(0, len(present), PRESENT_ROW):
        await lane.keep_present(present[first : first + PRESENT_ROW])
    account.run.counters.settled(account.job.user, len(present), 0)


async def _stand_ins(
    lane: LaneLog, target: Mailbox, writer: DestinationSession
) -> tuple[set[MessageKey], set[MessageKey]]:
    """Keys at the destination that stand for messages of this lane; source keys of those whose place is not known."""
    taken: set[MessageKey] = set()
    unknown: set[MessageKey] = set()
    survey = await writer.survey(target, Position())
    assert survey is not None, "it has a position"
    for entry in await to_thread.run_sync(lambda: list(lane.entries())):
        if isinstance(entry.outcome, Present):
            taken.add(entry.outcome.held)
        elif isinstance(entry.outcome, Appended) and entry.wanted is not None:
            at = survey.at(writer.place(entry.wanted, entry.outcome.uid, lane.position.uidvalidity))
            if at is None:
                unknown.add(entry.key)
            else:
                taken.add(survey.keys[at])
    return taken, unknown


async def existing(
    selection: Selection,
    asking: Sequence[int],
    reader: SourceSession,
    writer: DestinationSession,
    target: Mailbox,
    *,
    taken: Collection[MessageKey] = (),
) -> dict[int, MessageKey]:
    """Places of `asking`, which ascend, whose message is at the destination, with its key there.

    `taken`: keys there that stand for other messages already.

    Raises:
        MailboxError, ConnectionLost
    """
    if not asking:
        return {}
    async with writer.reading(target) as (there, mailbox):
        held = await there.select(mailbox)
        free = [place for place, key in enumerate(held.keys) if key not in taken]
        if not free:
            return {}
        sizes = await _sizes(reader, selection, asking)
        sizes_there = await _sizes(there, held, free)
        spans = Spans((size - size // SHRUNK, size + 2) for size in sizes.values())
        free = [place for place in free if (size := sizes_there.get(place)) is not None and size in spans]
        spans = Spans((sizes_there[place] - 2, sizes_there[place] * SHRUNK // (SHRUNK - 1) + 1) for place in free)
        asking = [place for place in asking if (size := sizes.get(place)) is not None and size in spans]
        headers_there: dict[bytes, deque[int]] = {}
        async for place, (digest, _) in _headers(there, held, free):
            headers_there.setdefault(digest, deque()).append(place)
        found: dict[int, MessageKey] = {}
        unsure: list[int] = []
        candidates: set[int] = set()
        async for place, (digest, named) in _headers(reader, selection, asking):
            alike = headers_there.get(digest, ())
            same = next((each for each in alike if sizes_there[each] == sizes[place]), None)
            if named and same is not None:
                headers_there[digest].remove(same)
                found[place] = held.keys[same]
            elif alike:
                unsure.append(place)
                candidates.update(alike)
        used = set(found.values())
        candidates = {place for place in candidates if held.keys[place] not in used}
        if not unsure or not candidates:
            return found
        bodies_there = await seen_of(there, held, [held.keys[place] for place in sorted(candidates)], reduced=True)
        bodies = await seen_of(reader, selection, [selection.keys[place] for place in unsure], reduced=True)
        by_content: dict[bytes, deque[MessageKey]] = {}
        for key, seen in bodies_there.items():
            by_content.setdefault(seen.reduced, deque()).append(key)
        for place in unsure:
            body = bodies.get(selection.keys[place])
            if body is not None and (keys := by_content.get(body.reduced)):
                found[place] = keys.popleft()
        return found


async def _sizes(session: SourceSession, selection: Selection, places: Sequence[int]) -> dict[int, int]:
    """Octets of the wire form, of those that can be read."""
    found: dict[int, int] = {}
    async with aclosing(session.look(selection, places, Fact.SIZE)) as batches:
        async for batch in batches:
            found.update(_column(batch.sizes, batch.places))
    return found


async def _headers(
    session: SourceSession, selection: Selection, places: Sequence[int]
) -> AsyncGenerator[tuple[int, tuple[bytes, bool]], None]:
    """Of each message that can be read what no server changes of its header, and whether it has a name of its own."""
    async with aclosing(session.look(selection, places, Fact.HEADER)) as batches:
        async for batch in batches:
            for place, header in _column(batch.headers, batch.places):
                block = octets.header_block(header)
                yield place, (octets.reduced_header(block), _MESSAGE_ID.search(block) is not None)


def _column(
    column: Sequence[T | None] | Mapping[int, T | None] | None, places: Sequence[int]
) -> Iterable[tuple[int, T]]:
    assert column is not None, "a column that was asked for"
    return ((place, value) for place in places if (value := column[place]) is not None)
