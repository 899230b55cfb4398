"""Read an IMAP account: EXAMINE and BODY.PEEK only, window after window asked for ahead.

select: EXAMINE, UID FETCH 1:* (sizes)      messages: windows of 64 messages or 1 MiB, three under way
"""

from __future__ import annotations

import logging
import re
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import AsyncGenerator, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final

from aimport import flags, names, octets
from aimport.errors import (
    MailboxChanged,
    MailboxError,
    MessageRefused,
    MessageUnreadable,
    ProtocolError,
    Retry,
    ServerBug,
    UserError,
)
from aimport.imap.answers import clean
from aimport.imap.commands import Word, uid_sets
from aimport.imap.connection import Exchange, Reply
from aimport.imap.responses import (
    Esearch,
    Exists,
    Expunge,
    Fetch,
    Flags,
    Listed,
    Search,
    Tagged,
    date_time,
    uid_set,
)
from aimport.model import (
    SPECIAL_USES,
    STREAM_OCTETS,
    Body,
    Mailbox,
    Message,
    MessageKey,
    Order,
    Position,
    Selection,
    Unreadable,
)
from aimport.pacing import Throttle
from aimport.query.facts import NONE, Fact, Facts, asked_by
from aimport.query.terms import ALL, Term
from aimport.seats import rest
from aimport.selecting import pick
from aimport.spool import Spool
from aimport.standing import Counts
from aimport.stores.imap.account import (
    UNSELECTABLE,
    Account,
    Link,
    Session,
    decoded,
    native_name,
    uidvalidity_of,
    without,
)
from aimport.stores.imap.listing import ImapShelf, Listing, listable
from aimport.stores.imap.search import MAX_NUMBER, Server, program
from aimport.stores.imap.standing import counts
from aimport.stores.keys import UidKeys, only

logger = logging.getLogger(__name__)

WINDOW_MESSAGES: Final = 64
WINDOW_OCTETS: Final = 1024 * 1024
WINDOWS_AHEAD: Final = 3
HEADER_OCTETS: Final = 64 * 1024
FETCH_OCTETS: Final = 150
"""What a message brings with it on the wire, beside its octets."""
UNKNOWN_TOLD: Final = 10
"""Unknown flags of a mailbox that are counted and told."""


class ImapSource(Account):
    """One account to read. Each session is one connection."""

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[ImapSourceSession]:
        link = await self.link()
        try:
            per_day = self.endpoint.daily_octets or link.profile.fetch_octets_per_day
            yield ImapSourceSession(link, trusted=self.endpoint.trust_search, per_day=per_day)
        finally:
            await link.connection.close()


SEARCH_WITH_EXTENSIONS: Final = 2
"""What the server is asked to search for: with texts and extensions, then keys of RFC 3501, then nothing."""


class ImapSourceSession(Session):
    """Reads one account over one connection. `trusted`: its SEARCH compares texts as we would."""

    def __init__(self, link: Link, *, trusted: bool = False, per_day: int = 0) -> None:
        super().__init__(link, per_day)
        self._trusted = trusted
        self._search_level = SEARCH_WITH_EXTENSIONS

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        reply = None
        if {"SPECIAL-USE", "LIST-EXTENDED"} <= self._connection.capabilities:  # RFC 6154 §3, RFC 5258
            exchange = await self._connection.start(b"LIST", b'""', b'"*"', b"RETURN (SPECIAL-USE)", refusable=True)
            reply = await exchange.reply()
        if reply is None or not reply.ok:
            reply = await self._connection.command(b"LIST", b'""', b'"*"')
        if not reply.ok:
            raise self._refusal(reply.tagged, "LIST", UserError)
        found: dict[bytes, Mailbox] = {}
        for listed in reply.of(Listed):
            if listed.flags & UNSELECTABLE or self._is_foreign(listed.name):
                continue
            found.setdefault(listed.name, self._mailbox(listed))
        return sorted(found.values(), key=lambda mailbox: mailbox.path != (names.INBOX,))

    def _is_foreign(self, name: bytes) -> bool:
        """Whether it belongs to other users or to all (RFC 2342)."""
        foreign = (*self._namespace.others, *self._namespace.shared)
        return any(
            prefix and prefix != self._prefix and (name.startswith(prefix) or name == without(prefix, separator))
            for prefix, separator in foreign
        )

    def _mailbox(self, listed: Listed) -> Mailbox:
        name = listed.name
        if self._prefix and name.startswith(self._prefix) and len(name) > len(self._prefix):
            name = name[len(self._prefix) :]
        path = names.split(decoded(name), listed.separator)
        uses = tuple(use for use in SPECIAL_USES if use.lower() in listed.flags)
        return Mailbox(path=path, separator=listed.separator, native=listed.name.decode("latin-1"), uses=uses)

    async def count(self, mailboxes: Sequence[Mailbox]) -> Sequence[Counts | None]:
        return await counts(self._connection, [native_name(mailbox) for mailbox in mailboxes])

    async def select(self, mailbox: Mailbox, term: Term = ALL, order: Order = "stored") -> Selection:
        reply = await self._examine(mailbox, native_name(mailbox))
        validity = uidvalidity_of(reply)
        held = next((exists.number for exists in reversed(reply.of(Exists))), 0)
        found = await self._search(term, reply, held) if held and term != ALL else None
        left, uids = (term, None) if found is None else found
        asked = asked_by(left) | (NONE if order == "stored" else Fact.DATE)
        listing, unlisted = await self._listing(mailbox, held, asked & self._listable(), uids)
        all_ = Selection(
            mailbox=mailbox,
            keys=UidKeys(validity, listing.uids),
            sizes=listing.sizes,
            unlisted=unlisted,
            position=_position(reply),
        )
        if left == ALL and order == "stored":
            return all_
        return only(all_, await pick(left, order, ImapShelf(self, all_, listing)))

    async def _search(self, term: Term, examined: Reply, held: int) -> tuple[Term, Sequence[int]] | None:
        """UIDs that the server finds for as much of `term` as it can decide, and what is left; None: it is not asked.

        A server that refuses is asked once more without texts and extensions, and then no more in this session.
        """
        while self._search_level:
            asked = program(term, self._as_known(examined))
            if asked is None:
                return None
            charset = (b"CHARSET UTF-8",) if asked.charset else ()
            words = search_words(self._connection.capabilities, (*charset, *asked.words))
            exchange = await self._connection.start(*words, refusable=True)
            reply = await exchange.reply()
            if reply.ok:
                return asked.left, found_uids(reply, held)
            error = self._refusal(reply.tagged, "SEARCH", MailboxError)
            if error.retry is Retry.LATER and reply.tagged.status != "BAD":
                raise error
            self._search_level -= 1
            logger.info("search refused host=%s text=%s", self._connection.where, clean(reply.tagged.text))
        return None

    def _as_known(self, examined: Reply) -> Server:
        position = _position(examined)
        return Server(
            offered=self._connection.capabilities,
            keywords=[flag for each in examined.of(Flags) for flag in each.flags if not flag.startswith("\\")],
            uidnext=position.uidnext if position is not None else MAX_NUMBER,
            trusted=self._trusted and not self._profile.search_unreliable,
            reliable=not self._profile.search_unreliable,
            sizes=self._profile.search_sizes,
            guids=self._profile.name == "dovecot",
            extensions=self._search_level == SEARCH_WITH_EXTENSIONS,
            now=int(time.time()),
        )

    def _listable(self) -> Fact:
        return listable(self._connection.capabilities, dovecot=self._profile.name == "dovecot")

    async def _listing(
        self, mailbox: Mailbox, held: int, wanted: Fact, some: Sequence[int] | None = None
    ) -> tuple[Listing, int]:
        """UIDs and sizes of all messages, or of `some`, ascending, with what else is wanted.

        And how many of all are not named.
        """
        if some is not None:
            return await self._listing_of(mailbox, some, wanted), 0
        listing = Listing(wanted)
        # A range of sequence numbers must not be empty: Dovecot answers BAD to 1:* of an empty mailbox.
        if held:
            exchange = await self._connection.start(b"UID FETCH", b"1:*", listing.items)
            uids, sizes = listing.uids, listing.sizes
            last = 0
            unsized: dict[int, Fetch] = {}
            while responses := await exchange.responses():
                for fetch in responses:
                    held -= isinstance(fetch, Expunge)
                    if not isinstance(fetch, Fetch) or fetch.uid is None:
                        continue
                    if fetch.size is None:  # flags that changed just now, or a size that cannot be told
                        unsized[fetch.uid] = fetch
                        continue
                    if fetch.uid <= last:
                        raise ProtocolError(f"{self._connection.where}: UIDs do not ascend")
                    last = fetch.uid
                    uids.append(last)
                    sizes.append(fetch.size)
                    if wanted:
                        listing.note(len(uids) - 1, fetch)
            for uid in sorted(unsized.keys() - set(uids)):
                at = bisect_left(uids, uid)
                uids.insert(at, uid)
                sizes.insert(at, 0)
                listing.note(at, unsized[uid])
            tagged = await exchange.result()
            if tagged.code == "EXPUNGEISSUED":  # what is not listed is gone (Dovecot, RFC 5530)
                held = len(uids)
            elif tagged.status != "OK":
                raise self._refusal(tagged, f"FETCH sizes of {mailbox.name}", MailboxError)
        return listing, max(0, held - len(listing.uids))

    async def _listing_of(self, mailbox: Mailbox, uids: Sequence[int], wanted: Fact) -> Listing:
        """Of messages that a search has found; what is not named is gone."""
        listing = Listing(wanted)
        sets = iter(uid_sets(uids, octets=self.set_octets))
        under_way: deque[Exchange] = deque()
        named: dict[int, Fetch] = {}
        asked_for = set(uids)
        try:
            while True:
                while len(under_way) < WINDOWS_AHEAD and (words := next(sets, None)) is not None:
                    under_way.append(await self._connection.start(b"UID FETCH", words, listing.items))
                if not under_way:
                    break
                while responses := await under_way[0].responses():
                    for fetch in responses:
                        if isinstance(fetch, Fetch) and fetch.uid in asked_for:
                            known = named.get(fetch.uid)
                            if known is None or known.size is None:  # flags that changed just now have no size
                                named[fetch.uid] = fetch
                tagged = await under_way.popleft().result()
                if tagged.status != "OK" and tagged.code != "EXPUNGEISSUED":
                    raise self._refusal(tagged, f"FETCH sizes of {mailbox.name}", MailboxError)
        finally:
            for exchange in under_way:
                exchange.drop()
        for uid in sorted(named):
            listing.uids.append(uid)
            listing.sizes.append(named[uid].size or 0)
            listing.note(len(listing.uids) - 1, named[uid])
        return listing

    async def _open(self, selection: Selection) -> UidKeys:
        """Opens its mailbox, as it was when it was selected."""
        keys = selection.keys
        assert isinstance(keys, UidKeys), "a selection belongs to the store that made it"
        reply = await self._examine(selection.mailbox, native_name(selection.mailbox))
        if uidvalidity_of(reply) != keys.validity:
            raise MailboxChanged(
                f"{self._connection.where}: {selection.mailbox.name}: UIDVALIDITY changed while it was read"
            )
        return keys

    async def look(self, selection: Selection, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        if Fact.SIZE in facts:
            yield Facts(places=places, sizes={place: selection.sizes[place] for place in places})
            return
        listing = Listing(NONE)
        listing.uids = (await self._open(selection)).uids
        async with aclosing(ImapShelf(self, selection, listing).look(places, facts)) as batches:
            async for batch in batches:
                yield batch

    async def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        keys = await self._open(selection)
        seen = _Seen(sizes_count=self._profile.fetch_whole != "RFC822")
        windows = _windows(keys, selection.sizes, skip, seen, self._throttle)
        under_way: deque[tuple[_Window, Exchange]] = deque()
        expected: dict[int, _Window] = {}
        try:
            while True:
                while _room_for_another(under_way) and (window := next(windows, None)) is not None:
                    await self._turn(window)
                    expected.update(dict.fromkeys(window.uids, window))
                    under_way.append((window, await self._fetch(window.uids)))
                if not under_way:
                    return
                window, exchange = under_way[0]
                while responses := await exchange.responses():
                    # Dovecot answers pipelined FETCHes before it ends the first of them (seen, 2.3.19):
                    # the data is for whichever window asked for that UID. Data that nobody asked for
                    # is not ours: servers send it at any time.
                    await _take(responses, expected)
                    if ready := window.ready():
                        yield ready
                if ready := window.ready():
                    yield ready
                tagged = await exchange.result()
                under_way.popleft()
                if tagged.status != "OK":
                    # Messages are now asked for one by one. What the windows behind still bring would hold that up
                    # when it is much, and Dovecot may put the answer among it.
                    for _, ahead in under_way:
                        while responses := await ahead.responses():
                            await _take(responses, expected)
                for rest in await self._finish(window, tagged, selection.mailbox, seen):
                    yield (rest,)
                for uid in window.uids:
                    expected.pop(uid, None)
        finally:
            seen.tell(selection.mailbox)
            for _, exchange in under_way:  # left early: the answers to come are nobody's
                exchange.drop()

    async def headers(self, uids: Sequence[int]) -> AsyncGenerator[Mapping[int, bytes | None]]:
        """Headers by UID, 64 at a time, in order; of a message that cannot be read, or is gone, None."""
        under_way: deque[tuple[Sequence[int], Exchange]] = deque()
        found: dict[int, bytes] = {}  # also of those asked for ahead: Dovecot answers before it ends the first
        at = 0
        try:
            while at < len(uids) or under_way:
                while at < len(uids) and len(under_way) < WINDOWS_AHEAD:
                    some = uids[at : at + WINDOW_MESSAGES]
                    at += len(some)
                    under_way.append((some, await self._fetch_headers(some)))
                some, exchange = under_way[0]
                tagged = await _take_headers(exchange, found)
                under_way.popleft()
                if tagged.status != "OK":
                    for uid in some:
                        if uid not in found:
                            await _take_headers(await self._fetch_headers([uid]), found)
                yield {uid: found.pop(uid, None) for uid in some}
        finally:
            for _, exchange in under_way:
                exchange.drop()

    async def _turn(self, window: _Window) -> None:
        """Waits until a window may be asked for."""
        await self._connection.turn(window.octets + FETCH_OCTETS * len(window.uids))
        if self._throttle.fetches is not None:
            await rest(self._throttle.fetches.reserve(len(window.uids)))

    async def _fetch_headers(self, uids: Sequence[int]) -> Exchange:
        words = b",".join(uid_sets(sorted(uids), octets=1 << 30))
        return await self._connection.start(b"UID FETCH", words, b"(UID BODY.PEEK[HEADER])")

    async def _fetch(self, uids: Sequence[int]) -> Exchange:
        words = b",".join(uid_sets(sorted(uids), octets=1 << 30))  # 64 UIDs at most
        return await self._connection.start(b"UID FETCH", words, b"(UID FLAGS INTERNALDATE %s)" % self.fetch_whole)

    async def _finish(
        self, window: _Window, tagged: Tagged, mailbox: Mailbox, seen: _Seen
    ) -> Sequence[Message | Unreadable]:
        """What of a window was not yielded yet; after a NO its messages are asked for one by one."""
        left: list[Message | Unreadable] = []
        for uid in window.left():
            message = window.ahead.get(uid)
            if message is None and uid in window.without_body:
                message = window.without_body[uid]
            if message is None and tagged.status == "OK":
                message = _unreadable(window.keys.key(uid), "vanished", "expunged since it was listed")
            left.append(message or await self._fetch_alone(window.keys, uid, mailbox, seen))
        return left

    async def _fetch_alone(self, keys: UidKeys, uid: int, mailbox: Mailbox, seen: _Seen) -> Message | Unreadable:
        window = _Window(keys, {uid: None}, seen)
        exchange = await self._fetch([uid])
        while responses := await exchange.responses():
            await _take(responses, {uid: window})
            for message in window.ready():
                await exchange.result()
                return message
        tagged = await exchange.result()
        if tagged.status == "OK":
            return _unreadable(keys.key(uid), "vanished", "expunged since it was listed")
        error = self._refusal(tagged, f"FETCH of {keys.key(uid)} in {mailbox.name}", MessageRefused)
        # What Dovecot (SERVERBUG) and Yahoo (without a code) say of a message they cannot read: no later try would end.
        unreadable = isinstance(error, ServerBug) and error.code != "UNAVAILABLE"
        if error.retry is Retry.LATER and not unreadable:
            raise error
        gone = error.code == "EXPUNGEISSUED"
        return _unreadable(keys.key(uid), "vanished" if gone else "unreadable", clean(tagged.text))


def _room_for_another(under_way: Sequence[tuple[_Window, Exchange]]) -> bool:
    """Whether one more window may be asked for; a large message is awaited before more is asked for."""
    return not under_way or (len(under_way) < WINDOWS_AHEAD and not under_way[-1][0].large)


def search_words(offered: frozenset[str], keys: tuple[Word, ...]) -> tuple[Word, ...]:
    """A UID SEARCH, which says ranges where the server can (ESEARCH, RFC 4731)."""
    return (b"UID SEARCH", b"RETURN (ALL)", *keys) if "ESEARCH" in offered else (b"UID SEARCH", *keys)


def _position(examined: Reply) -> Position | None:
    """What was said of the UIDs of a mailbox when it was opened; None: not enough."""
    uidnext = examined.code("UIDNEXT")
    if uidnext is None or not uidnext.isdecimal():
        return None
    return Position(uidvalidity=uidvalidity_of(examined), uidnext=int(uidnext))


def found_uids(reply: Reply, held: int) -> list[int]:
    """UIDs that a search has found, ascending.

    Raises:
        ProtocolError: more than the mailbox holds.
    """
    found = {number for each in reply.of(Search) for number in each.numbers}
    for each in reply.of(Esearch):
        for name, value in each.items:
            if name == "ALL" and value:
                found.update(uid_set(value, limit=held + 1))
    if len(found) > held:
        raise ProtocolError(f"a search found {len(found)} of {held} messages")
    return sorted(found)


async def _take_headers(exchange: Exchange, found: dict[int, bytes]) -> Tagged:
    while responses := await exchange.responses():
        for fetch in responses:
            if isinstance(fetch, Fetch) and fetch.uid is not None and fetch.header is not None:
                found.setdefault(fetch.uid, fetch.header)
    return await exchange.result()


async def _take(responses: Iterable[object], expected: dict[int, _Window]) -> None:
    """Gives message data to the window that waits for its UID, the first time it comes."""
    for fetch in responses:
        if not isinstance(fetch, Fetch) or not fetch.has_body or fetch.uid is None:
            continue
        window = expected.pop(fetch.uid, None)
        if window is None:
            continue
        if isinstance(fetch.body, bytes):
            window.take(fetch.uid, fetch, fetch.body)
            continue
        key = window.keys.key(fetch.uid)
        if not isinstance(fetch.body, Spool):
            expected[fetch.uid] = window
            window.without_body[fetch.uid] = _unreadable(key, "unreadable", "the server sends no body")
            continue
        try:
            window.take(fetch.uid, fetch, await fetch.body.body())
        except MessageUnreadable as error:
            window.ahead[fetch.uid] = _unreadable(key, error.code, str(error))


class _Window:
    """Messages of one FETCH, handed on in the order of UIDs; `sizes` as the server counts them, None: not known."""

    def __init__(self, keys: UidKeys, sizes: Mapping[int, int | None], seen: _Seen) -> None:
        self.keys = keys
        self.uids = list(sizes)
        self.octets = sum(size or 0 for size in sizes.values())
        self.large = self.octets > STREAM_OCTETS
        self._sizes = sizes
        self._seen = seen
        self.ahead: dict[int, Message | Unreadable] = {}
        """Came before its turn."""
        self.without_body: dict[int, Unreadable] = {}
        self._next = 0

    def left(self) -> Sequence[int]:
        return self.uids[self._next :]

    def take(self, uid: int, fetch: Fetch, body: Body) -> None:
        self.ahead[uid] = _message(self.keys.key(uid), fetch, body)
        self._seen.message(self._sizes[uid], len(body), fetch.flags or ())

    def ready(self) -> list[Message | Unreadable]:
        """The messages whose turn it is now."""
        ready: list[Message | Unreadable] = []
        while self._next < len(self.uids) and (message := self.ahead.pop(self.uids[self._next], None)) is not None:
            ready.append(message)
            self._next += 1
        return ready


def _windows(
    keys: UidKeys, sizes: Sequence[int], skip: Container[str], seen: _Seen, throttle: Throttle
) -> Iterator[_Window]:
    """UIDs in windows of up to 64 messages and 1 MiB, or what a rate lets pass; a bigger message stands alone."""
    most = min(WINDOW_MESSAGES, throttle.fetches.batch) if throttle.fetches is not None else WINDOW_MESSAGES
    most_octets = min(WINDOW_OCTETS, throttle.into.quantum) if throttle.into is not None else WINDOW_OCTETS
    window: dict[int, int | None] = {}
    total = 0
    for uid, size in zip(keys.uids, sizes, strict=True):
        if keys.key(uid) in skip:
            continue
        if window and (len(window) == most or total + size > most_octets):
            yield _Window(keys, window, seen)
            window, total = {}, 0
        window[uid] = size
        total += size
    if window:
        yield _Window(keys, window, seen)


@dataclass(slots=True)
class _Seen:
    """What was odd about the messages of one mailbox, told once: each alone would be a line of the log."""

    sizes_count: bool
    """RFC822.SIZE is meant to be that of the octets we read."""
    sizes: int = 0
    """Messages whose octets are more or fewer than the server said: the octets count."""
    flags: Counter[str] = field(default_factory=Counter)
    """System flags that RFC 9051 §2.3.2 does not know, which no other server takes."""
    more: bool = False

    def message(self, said: int | None, size: int, given: tuple[str, ...]) -> None:
        if said is not None and said != size:
            self.sizes += 1
        for flag in _unknown(given):
            if flag in self.flags or len(self.flags) < UNKNOWN_TOLD:
                self.flags[flag] += 1
            else:
                self.more = True

    def tell(self, mailbox: Mailbox) -> None:
        if self.sizes and self.sizes_count:
            logger.warning("size-mismatch mailbox=%s messages=%d", clean(mailbox.name), self.sizes)
        if self.flags:
            told = " ".join(f"{clean(flag)}:{count}" for flag, count in sorted(self.flags.items()))
            more = " and more" if self.more else ""
            logger.warning("unknown system flags dropped mailbox=%s flags=%s%s", clean(mailbox.name), told, more)


def _message(key: MessageKey, fetch: Fetch, body: Body) -> Message:
    moment = date_time(fetch.internal_date) if fetch.internal_date else None
    if moment is None:
        moment = _date_of(body)
        logger.warning("internaldate missing key=%s used=%s", key, moment.isoformat())
    return Message(key=key, flags=_normal(fetch.flags or ()), internal_date=moment, body=body, wire=True)


@lru_cache(maxsize=1024)
def _unknown(given: tuple[str, ...]) -> frozenset[str]:
    """What `_normal` leaves out, but for `\\Recent`, which is no property of a message (RFC 9051 §2.3.2)."""
    return frozenset(flag for flag in given if flag.startswith("\\") and flag.lower() != "\\recent") - {
        flag for flag in given if flags.normalise((flag,))
    }


@lru_cache(maxsize=1024)
def _normal(given: tuple[str, ...]) -> frozenset[str]:
    return flags.normalise(given)


_RECEIVED = re.compile(rb"^Received:((?:[^\n]|\n[ \t])*)", re.IGNORECASE | re.MULTILINE)
_DATE = re.compile(rb"^Date:((?:[^\n]|\n[ \t])*)", re.IGNORECASE | re.MULTILINE)


def _date_of(body: Body) -> datetime:
    """A date for a message whose server gives none: the newest Received, else Date, else now."""
    head = next(octets.pieces_of(body), b"")[:HEADER_OCTETS].partition(b"\r\n\r\n")[0]
    received = [_header_date(match.group(1).rpartition(b";")[2]) for match in _RECEIVED.finditer(head)]
    moments = [moment for moment in received if moment is not None]
    if moments:
        return max(moments)
    date = _DATE.search(head)
    return (_header_date(date.group(1)) if date else None) or datetime.now(UTC).replace(microsecond=0)


def _header_date(text: bytes) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text.decode("ascii", "replace").strip())
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _unreadable(key: MessageKey, code: str, text: str) -> Unreadable:
    return Unreadable(key=key, code=code, text=text)
