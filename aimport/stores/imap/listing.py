"""What an IMAP server has said of the messages of a mailbox: their keys, and what decides a term (`selecting.sift`).

UID FETCH 1:* (UID RFC822.SIZE FLAGS ...) ─▶ Listing ─▶ ImapShelf ─ headers, bodies ─▶ session
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Container, Mapping, Sequence
from contextlib import aclosing
from functools import lru_cache
from typing import Final, Protocol

from aimport import flags
from aimport.imap.responses import Fetch, date_time
from aimport.model import Message, Selection, Unreadable
from aimport.query.facts import Fact, Facts
from aimport.stores.keys import only

_ITEMS: Final = {
    Fact.FLAGS: b"FLAGS",
    Fact.DATE: b"INTERNALDATE",
    Fact.SAVED: b"SAVEDATE",
    Fact.MODSEQ: b"MODSEQ",
    Fact.GUID: b"X-GUID",
}


def listable(offered: frozenset[str], *, dovecot: bool) -> Fact:
    """What this server can be asked of a message beside UID and size."""
    facts = Fact.FLAGS | Fact.DATE
    if "SAVEDATE" in offered:
        facts |= Fact.SAVED
    if "CONDSTORE" in offered:
        facts |= Fact.MODSEQ
    return facts | Fact.GUID if dovecot else facts


class Listing:
    """UIDs, sizes and what else was `wanted`, side by side."""

    def __init__(self, wanted: Fact) -> None:
        self.wanted = wanted
        self.uids = array("Q")
        self.sizes = array("Q")
        self.flags: list[frozenset[str]] = []
        self.dates: list[int | None] = []
        self.saved: list[int | None] = []
        self.modseqs: list[int] = []
        self.guids: list[str] = []

    @property
    def items(self) -> bytes:
        """What to FETCH for it."""
        more = [item for fact, item in _ITEMS.items() if fact in self.wanted]
        return b"(%s)" % b" ".join([b"UID RFC822.SIZE", *more])

    def note(self, at: int, fetch: Fetch) -> None:
        """What else is known of the message at a place that has just been made."""
        if Fact.FLAGS in self.wanted:
            self.flags.insert(at, _flags(fetch.flags or ()))
        if Fact.DATE in self.wanted:
            self.dates.insert(at, _seconds(fetch.internal_date))
        if Fact.SAVED in self.wanted:
            self.saved.insert(at, _seconds(fetch.extended.save_date))
        if Fact.MODSEQ in self.wanted:
            self.modseqs.insert(at, fetch.extended.modseq or 1)  # 1 is the least there is (RFC 7162 §3.1)
        if Fact.GUID in self.wanted:
            self.guids.insert(at, fetch.extended.guid or "")


@lru_cache(maxsize=1024)
def _flags(given: tuple[str, ...]) -> frozenset[str]:
    recent = any(flag.lower() == "\\recent" for flag in given)
    return flags.normalise(given) | ({"\\Recent"} if recent else frozenset())


def _seconds(text: str | None) -> int | None:
    moment = date_time(text) if text else None
    return None if moment is None else int(moment.timestamp())


class Reading(Protocol):
    """What of a source session reads messages."""

    def headers(self, uids: Sequence[int]) -> AsyncGenerator[Mapping[int, bytes | None]]: ...

    def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]: ...


class ImapShelf:
    """The messages of `selection`, which were listed."""

    guid = ""

    def __init__(self, session: Reading, selection: Selection, listing: Listing) -> None:
        self._session = session
        self._selection = selection
        self._listing = listing

    def __len__(self) -> int:
        return len(self._listing.uids)

    async def look(self, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        at = 0
        if Fact.HEADER in facts:
            uids = [self._listing.uids[place] for place in places]
            async with aclosing(self._session.headers(uids)) as batches:
                async for headers in batches:
                    some = places[at : at + len(headers)]
                    at += len(headers)
                    yield Facts(places=some, headers=dict(zip(some, headers.values(), strict=True)))
        elif Fact.BODY in facts:
            async with aclosing(self._session.messages(only(self._selection, places), skip=())) as lists:
                async for messages in lists:
                    some = places[at : at + len(messages)]
                    at += len(messages)
                    bodies = [each.body if isinstance(each, Message) else None for each in messages]
                    yield Facts(places=some, bodies=dict(zip(some, bodies, strict=True)))
        else:
            yield self._listed(places)

    def _listed(self, places: Sequence[int]) -> Facts:
        """Of what the server does not say nothing is true of any message."""
        listing = self._listing
        wanted, count = listing.wanted, len(self)
        return Facts(
            places=places,
            uids=listing.uids,
            least=listing.sizes,
            most=listing.sizes,
            flags=listing.flags if Fact.FLAGS in wanted else None,
            dates=listing.dates if Fact.DATE in wanted else None,
            saved=listing.saved if Fact.SAVED in wanted else [None] * count,
            modseqs=listing.modseqs if Fact.MODSEQ in wanted else [1] * count,
            guids=listing.guids if Fact.GUID in wanted else [""] * count,
        )
