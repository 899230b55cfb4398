"""IMAP accounts as source and destination: what to say to a server, and what its answers mean for us.

    ImapSource      NAMESPACE, LIST, EXAMINE, UID FETCH (windows, two ahead)
    ImapDestination CREATE, SUBSCRIBE, APPEND (MULTIAPPEND, or pipelined), EXAMINE, UID FETCH

Knows commands and responses; nothing of octets on the wire, TLS or logging in (`imap.client`).
A source is only ever opened with EXAMINE and read with BODY.PEEK.
"""

from __future__ import annotations

import logging
import re
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final, overload

import anyio.to_thread

from aimport import flags, names, octets
from aimport.errors import (
    AimportError,
    ConnectionLost,
    MailboxChanged,
    MailboxError,
    MailboxNameInvalid,
    MailboxNotFound,
    MessageRefused,
    MessageUnreadable,
    ProtocolError,
    Retry,
    UserError,
)
from aimport.imap.answers import BadAnswer, clean, error_for
from aimport.imap.client import connect, where_of
from aimport.imap.commands import LargeLiteral, Word, append_words, octet_string, uid_sets
from aimport.imap.connection import Connection, Deadlines, Exchange, Reply, identify
from aimport.imap.fragments import Sink
from aimport.imap.responses import Exists, Fetch, Listed, Namespace, Tagged, append_uids, date_time
from aimport.model import (
    STREAM_OCTETS,
    Appended,
    Batch,
    Body,
    Endpoint,
    Fingerprint,
    Mailbox,
    Message,
    MessageKey,
    NotStored,
    Outcome,
    Position,
    Rejected,
    Selection,
    Stored,
    Uid,
    Unreadable,
    Wanted,
)
from aimport.spool import Spool

logger = logging.getLogger(__name__)

WINDOW_MESSAGES: Final = 64
WINDOW_OCTETS: Final = 1024 * 1024
WINDOWS_AHEAD: Final = 3
UNSELECTABLE: Final = frozenset({"\\noselect", "\\nonexistent"})
MAX_KEYWORD_OCTETS: Final = 50  # mail_max_keyword_length of Dovecot
HEADER_OCTETS: Final = 64 * 1024
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
KEYWORD_REFUSALS: Final = frozenset({"CANNOT", "LIMIT"})


class UidKeys(Sequence[MessageKey]):
    """`uidvalidity:uid` of ascending UIDs, made when asked for: 8 octets each instead of a text."""

    def __init__(self, validity: int, uids: array[int]) -> None:
        self.validity = validity
        self.uids = uids

    def __len__(self) -> int:
        return len(self.uids)

    @overload
    def __getitem__(self, index: int) -> MessageKey: ...
    @overload
    def __getitem__(self, index: slice) -> UidKeys: ...
    def __getitem__(self, index: int | slice) -> MessageKey | UidKeys:
        if isinstance(index, slice):
            return UidKeys(self.validity, self.uids[index])
        return self.key(self.uids[index])

    def __iter__(self) -> Iterator[MessageKey]:
        return map(self.key, self.uids)

    def __contains__(self, key: object) -> bool:
        validity, _, uid = str(key).partition(":")
        if validity != str(self.validity) or not uid.isdecimal():
            return False
        at = bisect_left(self.uids, int(uid))
        return at < len(self.uids) and self.uids[at] == int(uid)

    def key(self, uid: int) -> MessageKey:
        return MessageKey(f"{self.validity}:{uid}")


class _Account:
    """What source and destination sessions have in common: a connection and the personal namespace."""

    def __init__(self, endpoint: Endpoint, deadlines: Deadlines | None = None) -> None:
        self.endpoint = endpoint
        self.deadlines = deadlines or Deadlines()
        self.host = where_of(endpoint)

    async def _connect(self) -> tuple[Connection, Namespace]:
        """A connection, and where the account's own mailboxes are; asks for both in one round trip."""
        connection = await connect(self.endpoint, deadlines=self.deadlines)
        try:
            if "ID" in connection.capabilities:
                (await connection.start(*identify())).drop()
            if "NAMESPACE" in connection.capabilities:
                for namespace in (await connection.command(b"NAMESPACE")).of(Namespace):
                    if namespace.personal:
                        return connection, namespace
            root = (await connection.command(b"LIST", b'""', b'""')).of(Listed)  # the separator (RFC 9051 §6.3.9)
            separator = root[0].separator if root else ""
            return connection, Namespace(personal=((b"", separator),), others=(), shared=())
        except BaseException:
            await connection.close()
            raise


class ImapSource(_Account):
    """One account to read. Each session is one connection."""

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[ImapSourceSession]:
        connection, namespace = await self._connect()
        try:
            yield ImapSourceSession(connection, namespace)
        finally:
            await connection.close()


class ImapDestination(_Account):
    """One account to write. Each session is one connection."""

    wire = True

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[ImapDestinationSession]:
        connection, namespace = await self._connect()
        session = ImapDestinationSession(connection, namespace, self._connect)
        try:
            yield session
        finally:
            await session.close()


class _Session:
    """Commands that both sides use."""

    def __init__(self, connection: Connection, namespace: Namespace) -> None:
        self._connection = connection
        self._prefix, self._separator = namespace.personal[0]
        self._namespace = namespace

    async def _examine(self, mailbox: Mailbox, name: bytes) -> Reply:
        """Opens read-only (RFC 9051 §6.3.3).

        Raises:
            MailboxNotFound, MailboxError, ConnectionLost
        """
        reply = await self._connection.command(b"EXAMINE", octet_string(name))
        if reply.ok:
            return reply
        error = self._refusal(reply.tagged, f"EXAMINE {mailbox.name}", MailboxError)
        if not error.code and type(error) is MailboxError and not await self._is_listed(name):  # Dovecot 2.3, Courier
            raise MailboxNotFound(error.text, code=error.code)
        raise error

    async def _is_listed(self, name: bytes) -> bool:
        reply = await self._connection.command(b"LIST", b'""', octet_string(name))
        return any(listed.name == name and not listed.flags & UNSELECTABLE for listed in reply.of(Listed))

    def _refusal(self, tagged: Tagged, doing: str, default: type[AimportError]) -> AimportError:
        return error_for(
            tagged.status, tagged.code, tagged.text, where=self._connection.where, doing=clean(doing), default=default
        )


class ImapSourceSession(_Session):
    """Reads one account over one connection."""

    async def list_mailboxes(self) -> Sequence[Mailbox]:
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
            prefix and prefix != self._prefix and (name.startswith(prefix) or name == _without(prefix, separator))
            for prefix, separator in foreign
        )

    def _mailbox(self, listed: Listed) -> Mailbox:
        name = listed.name
        if self._prefix and name.startswith(self._prefix) and len(name) > len(self._prefix):
            name = name[len(self._prefix) :]
        path = names.split(_decoded(name), listed.separator)
        return Mailbox(path=path, separator=listed.separator, native=listed.name.decode("latin-1"))

    async def select(self, mailbox: Mailbox) -> Selection:
        reply = await self._examine(mailbox, _native(mailbox))
        validity = _validity(reply)
        uids, sizes = array("Q"), array("Q")
        # A range of sequence numbers must not be empty: Dovecot answers BAD to 1:* of an empty mailbox.
        if any(exists.number for exists in reply.of(Exists)[-1:]):
            exchange = await self._connection.start(b"UID FETCH", b"1:*", b"(UID RFC822.SIZE)")
            last = 0
            while responses := await exchange.responses():
                for fetch in responses:
                    if isinstance(fetch, Fetch) and fetch.uid is not None and fetch.size is not None:
                        if fetch.uid <= last:
                            raise ProtocolError(f"{self._connection.where}: UIDs do not ascend")
                        last = fetch.uid
                        uids.append(last)
                        sizes.append(fetch.size)
            tagged = await exchange.result()
            if tagged.status != "OK":
                raise self._refusal(tagged, f"FETCH sizes of {mailbox.name}", MailboxError)
        return Selection(mailbox=mailbox, keys=UidKeys(validity, uids), sizes=sizes)

    async def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        keys = selection.keys
        assert isinstance(keys, UidKeys), "a selection belongs to the store that made it"
        reply = await self._examine(selection.mailbox, _native(selection.mailbox))
        if _validity(reply) != keys.validity:
            raise MailboxChanged(
                f"{self._connection.where}: {selection.mailbox.name}: UIDVALIDITY changed while it was read"
            )
        windows = _windows(keys, selection.sizes, skip)
        under_way: deque[tuple[_Window, Exchange]] = deque()
        expected: dict[int, _Window] = {}
        try:
            while True:
                while _room_for_another(under_way) and (window := next(windows, None)) is not None:
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
                for rest in await self._finish(window, tagged, selection.mailbox):
                    yield (rest,)
                for uid in window.uids:
                    expected.pop(uid, None)
        finally:
            for _, exchange in under_way:  # left early: the answers to come are nobody's
                exchange.drop()

    async def _fetch(self, uids: Sequence[int]) -> Exchange:
        words = b",".join(uid_sets(uids, octets=1 << 30))  # 64 UIDs at most
        return await self._connection.start(b"UID FETCH", words, b"(UID FLAGS INTERNALDATE BODY.PEEK[])")

    async def _finish(self, window: _Window, tagged: Tagged, mailbox: Mailbox) -> Sequence[Message | Unreadable]:
        """What of a window was not yielded yet; after a NO its messages are asked for one by one."""
        left: list[Message | Unreadable] = []
        for uid in window.left():
            message = window.ahead.get(uid)
            if message is None and uid in window.without_body:
                message = window.without_body[uid]
            if message is None and tagged.status == "OK":
                message = _unreadable(window.keys.key(uid), "vanished", "expunged since it was listed")
            left.append(message or await self._fetch_alone(window.keys, uid, mailbox))
        return left

    async def _fetch_alone(self, keys: UidKeys, uid: int, mailbox: Mailbox) -> Message | Unreadable:
        window = _Window(keys, [uid], 0)
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
        # SERVERBUG is what Dovecot says of a message it cannot read; asking again would not end.
        if error.retry is Retry.LATER and error.code != "SERVERBUG":
            raise error
        gone = error.code == "EXPUNGEISSUED"
        return _unreadable(keys.key(uid), "vanished" if gone else "unreadable", clean(tagged.text))


def _room_for_another(under_way: Sequence[tuple[_Window, Exchange]]) -> bool:
    """Whether one more window may be asked for; a large message is awaited before more is asked for."""
    return not under_way or (len(under_way) < WINDOWS_AHEAD and not under_way[-1][0].large)


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
    """Messages of one FETCH, handed on in the order of UIDs; `octets` as the server counts them."""

    def __init__(self, keys: UidKeys, uids: Sequence[int], octets: int) -> None:
        self.keys = keys
        self.uids = uids
        self.large = octets > STREAM_OCTETS
        self.ahead: dict[int, Message | Unreadable] = {}
        """Came before its turn."""
        self.without_body: dict[int, Unreadable] = {}
        self._next = 0

    def left(self) -> Sequence[int]:
        return self.uids[self._next :]

    def take(self, uid: int, fetch: Fetch, body: Body) -> None:
        self.ahead[uid] = _message(self.keys.key(uid), fetch, body)

    def ready(self) -> list[Message | Unreadable]:
        """The messages whose turn it is now."""
        ready: list[Message | Unreadable] = []
        while self._next < len(self.uids) and (message := self.ahead.pop(self.uids[self._next], None)) is not None:
            ready.append(message)
            self._next += 1
        return ready


class ImapDestinationSession(_Session):
    """Writes one account over one connection."""

    def __init__(
        self,
        connection: Connection,
        namespace: Namespace,
        reopen: Callable[[], Awaitable[tuple[Connection, Namespace]]],
    ) -> None:
        super().__init__(connection, namespace)
        self._reopen = reopen
        self.limit = _append_limit(connection.capabilities)
        self.multiple = "MULTIAPPEND" in connection.capabilities
        self.under_way = 0
        """Batches that were handed over and whose outcomes nobody has yet."""

    @property
    def separator(self) -> str:
        return self._separator

    async def close(self) -> None:
        await self._connection.close(fence=True)

    @property
    def refused(self) -> bool:
        """A BAD was answered: nothing goes out before `reconnect`."""
        return self._connection.refused

    async def reconnect(self) -> None:
        """A BAD ends the connection, not the session: only the command that caused it is at fault."""
        await self._connection.close()
        self._connection, _ = await self._reopen()

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        name = self._name(mailbox)
        if mailbox.path != (names.INBOX,):  # always there (RFC 9051 §6.3.4)
            tagged = (await self._connection.command(b"CREATE", octet_string(name))).tagged
            # Not every server has the code ALREADYEXISTS, so after any other NO we look.
            if tagged.status != "OK" and tagged.code != "ALREADYEXISTS" and not await self._exists(name):
                raise self._refusal(tagged, f"CREATE {mailbox.name}", MailboxNameInvalid)
        if subscribe:
            tagged = (await self._connection.command(b"SUBSCRIBE", octet_string(name))).tagged
            if tagged.status != "OK":
                logger.warning("subscribe failed mailbox=%s text=%s", clean(mailbox.name), clean(tagged.text))

    async def _exists(self, name: bytes) -> bool:
        return (await self._connection.command(b"STATUS", octet_string(name), b"(UIDNEXT)")).ok

    def _name(self, mailbox: Mailbox) -> bytes:
        """The name on the wire: the personal prefix, levels in modified UTF-7.

        Raises:
            MailboxNameInvalid: it cannot be sent.
        """
        path = mailbox.path
        prefix = self._prefix.decode("latin-1")
        if prefix and path != (names.INBOX,):
            above = names.split(_decoded(_without(self._prefix, self._separator)), self._separator)
            if path[: len(above)] == above and len(path) > len(above):
                path = path[len(above) :]
        else:
            prefix = ""
        return _native(replace(mailbox, path=path, separator=self._separator), prefix)

    async def append(self, mailbox: Mailbox, batch: Batch) -> _Appending:
        if self._connection.refused and not self.under_way:
            await self.reconnect()
        appending = _Appending(self, mailbox, octet_string(self._name(mailbox)), batch)
        self.under_way += 1
        await appending.send()
        return appending

    async def start_append(self, name: Word, words: Sequence[Word]) -> Exchange | None:
        """Sends one APPEND. None: a BAD was answered before, so nothing of this one was sent."""
        connection = self._connection
        try:
            return await connection.start(b"APPEND", name, *words, idle_s=connection.deadlines.append_s, keep=True)
        except BadAnswer:
            return None

    def refusal_of_append(self, tagged: Tagged, mailbox: Mailbox) -> AimportError:
        return self._refusal(tagged, f"APPEND to {mailbox.name}", MessageRefused)

    @asynccontextmanager
    async def _looked_at(self, mailbox: Mailbox) -> AsyncGenerator[Reply]:
        """Opened read-only, and left again: Courier takes no APPEND while a mailbox is open so."""
        reply = await self._examine(mailbox, self._name(mailbox))
        try:
            yield reply
        finally:
            # CLOSE expunges nothing of a mailbox opened by EXAMINE (RFC 9051 §6.4.1).
            with suppress(ConnectionLost):
                leave = b"UNSELECT" if "UNSELECT" in self._connection.capabilities else b"CLOSE"
                (await self._connection.start(leave)).drop()

    async def position(self, mailbox: Mailbox) -> Position | None:
        try:
            # Not STATUS: right after a server was killed it may lag (seen, Dovecot).
            async with self._looked_at(mailbox) as reply:
                return Position(uidvalidity=_validity(reply), uidnext=await self._next_uid(reply))
        except MailboxNotFound:
            return None

    async def _next_uid(self, reply: Reply) -> int:
        said = reply.code("UIDNEXT")
        if said is not None and said.isdecimal():
            return int(said)
        if not any(exists.number for exists in reply.of(Exists)[-1:]):
            return 1
        newest = (await self._connection.command(b"UID FETCH", b"*", b"(UID)")).of(Fetch)
        return max((fetch.uid or 0 for fetch in newest), default=0) + 1

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        try:
            async with self._looked_at(mailbox) as reply:
                if any(exists.number for exists in reply.of(Exists)[-1:]):
                    return await self._find(mailbox, wanted, since, _validity(reply))
        except MailboxNotFound:
            pass
        return ()

    async def _find(
        self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position, validity: int
    ) -> Sequence[Stored]:
        floor = since.uidnext if validity == since.uidvalidity else 1
        prints = {one.fingerprint for one in wanted}
        # Courier ends a message that has no final line end with one of its own.
        sizes = {one.size + more for one in prints for more in (0, 2)}
        candidates: dict[int, Fetch] = {}
        exchange = await self._connection.start(
            b"UID FETCH", b"%d:*" % max(floor, 1), b"(UID RFC822.SIZE INTERNALDATE)"
        )
        while responses := await exchange.responses():
            for fetch in responses:
                # n:* always has the last message, whatever its UID (RFC 9051 §6.4.9).
                if isinstance(fetch, Fetch) and fetch.uid is not None and fetch.uid >= floor and fetch.size in sizes:
                    candidates[fetch.uid] = fetch
        self._demand(await exchange.result(), mailbox)
        stored: list[Stored] = []
        for uids in uid_sets(sorted(candidates)):
            exchange = await self._connection.start(b"UID FETCH", uids, b"(UID BODY.PEEK[])")
            while responses := await exchange.responses():
                for fetch in responses:
                    if isinstance(fetch, Fetch) and isinstance(fetch.body, bytes) and fetch.uid in candidates:
                        listed = candidates.pop(fetch.uid)
                        moment = date_time(listed.internal_date or "")
                        body = octets.wire_form(fetch.body)
                        found, unended = (octets.fingerprint(each) for each in (body, body.removesuffix(b"\r\n")))
                        stored.append(
                            Stored(
                                fingerprint=unended if unended in prints and found not in prints else found,
                                uid=Uid(fetch.uid),
                                internal_date=None if moment is None else int(moment.timestamp()),
                            )
                        )
            self._demand(await exchange.result(), mailbox)
        return stored

    def _demand(self, tagged: Tagged, mailbox: Mailbox) -> None:
        if tagged.status != "OK":
            raise self._refusal(tagged, f"FETCH in {mailbox.name}", MailboxError)


class _Appending:
    """One batch on its way: one command (MULTIAPPEND, RFC 3502), or one APPEND each, sent ahead of the answers."""

    def __init__(self, session: ImapDestinationSession, mailbox: Mailbox, name: Word, batch: Batch) -> None:
        self._session = session
        self._mailbox = mailbox
        self._name = name
        self._messages = batch.messages
        self._outcomes: dict[int, Outcome] = {}
        self._items: dict[int, _Item] = {}
        """What still needs an answer, by its place in the batch."""
        self._sent: list[tuple[list[int], Exchange | None]] = []
        """Commands in order, each with the places it speaks of."""
        for index, (message, print_) in enumerate(zip(batch.messages, batch.fingerprints, strict=True)):
            if session.limit and print_.size > session.limit:
                text = f"{print_.size} octets, the server takes {session.limit}"
                self._outcomes[index] = Rejected(key=message.key, code="TOOBIG", text=text)
            elif not print_.size:
                # Cancels a MULTIAPPEND (RFC 3502 §6.3.11), and every server seen refuses it alone.
                self._outcomes[index] = Rejected(key=message.key, code="", text="the message has no octets")
            else:
                self._items[index] = _Item(message, _literal(message, print_.size))

    async def send(self) -> None:
        """Hands over what has no outcome yet."""
        places = list(self._items)
        together = [places] if self._session.multiple and places else [[place] for place in places]
        for group in together:
            words = [word for place in group for word in self._items[place].words()]
            self._sent.append((group, await self._session.start_append(self._name, words)))

    async def outcomes(self) -> Sequence[Outcome]:
        session = self._session
        try:
            missing = await self._answers(last=False)
            if self._items and session.refused and session.under_way == 1:
                await session.reconnect()
            if self._items and not session.refused:
                # Once more: what may be taken with less, and what had no mailbox.
                if missing:
                    await session.create_mailbox(self._mailbox, subscribe=False)
                await self.send()
                await self._answers(last=True)
            for place in self._items:
                self._outcomes[place] = NotStored(key=self._messages[place].key)
        finally:
            session.under_way -= 1
        return [self._outcomes[place] for place in range(len(self._messages))]

    async def _answers(self, *, last: bool) -> bool:
        """Reads all answers; what may go once more stays in `_items`. True: the mailbox is missing."""
        sent, self._sent = self._sent, []
        missing = False
        for places, exchange in sent:
            if exchange is None:
                continue
            try:
                tagged = await exchange.result()
            except BadAnswer as refusal:
                if not exchange.bad:
                    raise
                self._refused(places, Rejected(key=MessageKey(""), code="BAD", text=refusal.text), last=last)
                continue
            if tagged.status == "OK":
                for place, uid in zip(places, _uids(tagged, len(places)), strict=True):
                    item = self._items.pop(place)
                    self._outcomes[place] = Appended(key=item.message.key, uid=uid, dropped=item.dropped)
                continue
            error = self._session.refusal_of_append(tagged, self._mailbox)
            if isinstance(error, MessageRefused):
                self._refused(places, Rejected(key=MessageKey(""), code=error.code, text=clean(tagged.text)), last=last)
            elif isinstance(error, MailboxNotFound) and not last:
                missing = True
            else:
                self._none_stored(places, error)
        return missing

    def _refused(self, places: Sequence[int], refusal: Rejected, *, last: bool) -> None:
        """The message alone is at fault, or one of several is."""
        if len(places) > 1:
            self._none_stored(places, None)
            return
        [place] = places
        item = self._items.pop(place)
        lesser = None if last else item.lesser(refusal.code)
        if lesser is None:
            self._outcomes[place] = replace(refusal, key=item.message.key)
        else:
            self._items[place] = lesser

    def _none_stored(self, places: Sequence[int], error: AimportError | None) -> None:
        for place in places:
            self._outcomes[place] = NotStored(key=self._items.pop(place).message.key, error=error)


async def _fingerprints(body: bytes | Sink) -> tuple[Fingerprint, Fingerprint]:
    """Of the body as it is, and without its last line end."""
    if isinstance(body, bytes):
        wire = octets.wire_form(body)
        return octets.fingerprint(wire), octets.fingerprint(wire.removesuffix(b"\r\n"))
    assert isinstance(body, Spool)
    large = await body.body()
    try:
        whole = await anyio.to_thread.run_sync(octets.measure, large.pieces())
        return whole, await anyio.to_thread.run_sync(octets.measure, octets.without_last_line_end(large.pieces()))
    finally:
        large.close()


def _literal(message: Message, size: int) -> bytes | LargeLiteral:
    """The wire form of a body, of `size` octets."""
    body = message.body
    if isinstance(body, bytes):
        return body if message.wire else octets.wire_form(body)
    return LargeLiteral(size, lambda: octets.wire_pieces(octets.pieces_of(body)))


class _Item:
    """One message as it is sent."""

    def __init__(
        self, message: Message, body: bytes | LargeLiteral, *, keep_keywords: bool = True, keep_date: bool = True
    ) -> None:
        self.message = message
        self.body = body
        self.keywords, self.flags, self.dropped = _sendable(message.flags, keep_keywords)
        self.date = message.internal_date if keep_date else max(message.internal_date, EPOCH)
        if self.date != message.internal_date:
            self.dropped = (*self.dropped, "INTERNALDATE")

    def words(self) -> tuple[Word, Word, Word]:
        return append_words(self.flags, self.date, self.body)

    def lesser(self, code: str) -> _Item | None:
        """What may be taken when this was refused alone: fewer keywords, a date from 1970 on; None: nothing less.

        Cyrus answers BAD to earlier dates, Courier NO (seen); Dovecot keeps them from 1901 on.
        """
        keep_keywords = not (self.keywords and code in KEYWORD_REFUSALS)
        if keep_keywords and self.date >= EPOCH:
            return None
        return _Item(self.message, self.body, keep_keywords=keep_keywords, keep_date=False)


@lru_cache(maxsize=1024)
def _sendable(given: frozenset[str], keep_keywords: bool) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    """Whether there are keywords, the flags to send, and those that cannot be."""
    known = flags.normalise(given)
    keywords = {flag for flag in known if not flag.startswith("\\")}
    good = {flag for flag in keywords if flags.is_keyword(flag) and len(flag) <= MAX_KEYWORD_OCTETS}
    sent = (known - keywords) | (good if keep_keywords else set())
    dropped = {flag for flag in given if not flags.normalise((flag,)) & sent and flag.lower() != "\\recent"}
    return bool(good), tuple(sorted(sent)), tuple(sorted(dropped))


def _windows(keys: UidKeys, sizes: Sequence[int], skip: Container[str]) -> Iterator[_Window]:
    """UIDs in windows of up to 64 messages and 1 MiB; a bigger message stands alone."""
    uids: list[int] = []
    total = 0
    for uid, size in zip(keys.uids, sizes, strict=True):
        if keys.key(uid) in skip:
            continue
        if uids and (len(uids) == WINDOW_MESSAGES or total + size > WINDOW_OCTETS):
            yield _Window(keys, uids, total)
            uids, total = [], 0
        uids.append(uid)
        total += size
    if uids:
        yield _Window(keys, uids, total)


def _message(key: MessageKey, fetch: Fetch, body: Body) -> Message:
    moment = date_time(fetch.internal_date) if fetch.internal_date else None
    if moment is None:
        moment = _date_of(body)
        logger.warning("internaldate missing key=%s used=%s", key, moment.isoformat())
    return Message(key=key, flags=_normal(fetch.flags or ()), internal_date=moment, body=body, wire=True)


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


def _uids(tagged: Tagged, count: int) -> Sequence[Uid | None]:
    """UIDs of an APPENDUID, in order; the OK alone is the receipt, so a strange one only costs the UIDs."""
    if tagged.code != "APPENDUID":
        return [None] * count
    try:
        _, uids = append_uids(tagged.args, limit=count)
    except ProtocolError:
        uids = ()
    if len(uids) != count:
        logger.warning("appenduid does not fit messages=%d uids=%d", count, len(uids))
        return [None] * count
    return [Uid(uid) for uid in uids]


def _validity(reply: Reply) -> int:
    said = reply.code("UIDVALIDITY")
    return int(said) if said is not None and said.isdecimal() else 0


def _append_limit(offered: frozenset[str]) -> int:
    """RFC 7889; 0: not known (maddy says 0 and means none)."""
    for name in offered:
        if name.startswith("APPENDLIMIT=") and name[12:].isdecimal():
            return int(name[12:])
    return 0


def _native(mailbox: Mailbox, prefix: str = "") -> bytes:
    """The name on the wire, as the server gave it or made from the path.

    Raises:
        MailboxNameInvalid: it cannot be sent.
    """
    try:
        if mailbox.native:
            name = mailbox.native.encode("latin-1")
        else:
            levels = [names.encode_utf7(level) for level in mailbox.path]
            name = (prefix + mailbox.separator.join(levels)).encode("latin-1")
        octet_string(name)
    except ValueError:
        raise MailboxNameInvalid(f"mailbox name {mailbox.name!r} cannot be sent over IMAP") from None
    return name


def _decoded(name: bytes) -> str:
    """Unicode of a name: modified UTF-7 where it is valid, else what it looks like."""
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        try:
            return name.decode("utf-8")
        except UnicodeDecodeError:
            return name.decode("latin-1")
    return names.decode_utf7(text) or text


def _without(prefix: bytes, separator: str) -> bytes:
    return prefix.removesuffix(separator.encode()) if separator else prefix
