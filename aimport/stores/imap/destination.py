"""Write an IMAP account: CREATE, SUBSCRIBE, APPEND (MULTIAPPEND, or pipelined), and look what became of it.

append ──▶ commands on their way ──▶ outcomes: stored, rejected, to be sent again
"""

from __future__ import annotations

import logging
import sys
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import anyio
import anyio.to_thread

from aimport import flags, names, octets, seams
from aimport.errors import (
    AimportError,
    ConnectionLost,
    MailboxError,
    MailboxNameInvalid,
    MailboxNotFound,
    MessageRefused,
    MessageUnreadable,
    OverQuota,
    ProtocolError,
    widest,
)
from aimport.imap.answers import BadAnswer, clean, warning_in
from aimport.imap.commands import LargeLiteral, LiteralPolicy, Word, append_words, octet_string, uid_sets
from aimport.imap.connection import Exchange, Reply
from aimport.imap.fragments import Sink
from aimport.imap.link import link_is_slow
from aimport.imap.profiles import Profile
from aimport.imap.responses import Exists, Fetch, Quota, Tagged, append_uids, date_time
from aimport.interfaces import SourceSession
from aimport.keyset import Spans
from aimport.model import (
    Appended,
    Batch,
    Fingerprint,
    Mailbox,
    Message,
    MessageKey,
    NotStored,
    Outcome,
    Position,
    Rejected,
    Stored,
    Survey,
    Uid,
    Wanted,
)
from aimport.seats import rest
from aimport.spool import Spool
from aimport.standing import Standing
from aimport.stores.imap.account import (
    Account,
    Link,
    Session,
    can_compress,
    decoded,
    native_name,
    uidvalidity_of,
    without,
)
from aimport.stores.imap.source import ImapSourceSession, found_uids, search_words
from aimport.stores.imap.standing import allowances, append_limit, doubt_about, server_of
from aimport.stores.keys import UidKeys

logger = logging.getLogger(__name__)

FIRST_DATE: Final = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)  # second 0 is "now" to Cyrus and Courier (seen)
LAST_DATE: Final = datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC)
"""INTERNALDATEs between these are taken by every server seen."""
LESSER: Final = frozenset({"", "flags", "keywords", "date"})
"""Causes of a refusal for which the same message may be taken with less beside it."""
RESENDS: Final = 3  # arbitrary
"""How often a message that is alone is sent again before its refusal counts."""
LINK_OCTETS: Final = 4 * 1024 * 1024
"""Sent between two looks at what limits the link."""


class ImapDestination(Account):
    """One account to write. Each session is one connection."""

    wire = True

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[ImapDestinationSession]:
        session = ImapDestinationSession(self, await self.link())
        try:
            yield session
        finally:
            await session.close()


class ImapDestinationSession(Session):
    """Writes one account over one connection."""

    def __init__(self, account: ImapDestination, link: Link) -> None:
        super().__init__(link, account.endpoint.daily_octets or link.profile.append_octets_per_day)
        self._account = account
        self.rules = Rules.of(link.profile)
        self.limit = _append_limit(link.connection.capabilities) or link.profile.append_limit
        self.multiple = link.profile.multiappend and "MULTIAPPEND" in link.connection.capabilities
        self.too_big = 0
        """Size of the smallest message that was answered TOOBIG; 0: none was."""
        self.under_way = 0
        """Batches that were handed over and whose outcomes nobody has yet."""
        account_ = account.endpoint.user or account.endpoint.login
        self._appends = [
            pace
            for pace in (
                link.throttle.appends,
                account.throttles.appends_of(account.host, account_, link.profile.messages_per_second),
            )
            if pace is not None
        ]
        self._rest_until = 0.0
        """Time of the loop before which nothing more is appended: the server asked for it."""
        self._sent_octets = 0
        self._look_at_link = LINK_OCTETS
        self._told_quota = self._asked_quota = False

    @property
    def waits(self) -> bool:
        return self._connection.policy is not LiteralPolicy.PLUS

    @property
    def folds_case(self) -> bool:
        return not self._profile.names.case_sensitive

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
        self._connection = (await self._account.link()).connection

    async def _in_step(self) -> None:
        """After a BAD with nothing under way any more: a new connection."""
        if self._connection.refused and not self.under_way:
            await self.reconnect()

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        await self._in_step()
        name = self._name(mailbox)
        if mailbox.path != (names.INBOX,):  # always there (RFC 9051 §6.3.4)
            tagged = await self._create(name, mailbox.uses)
            # Not every server has the code ALREADYEXISTS, so after any other NO we look.
            if tagged.status != "OK" and tagged.code != "ALREADYEXISTS" and not await self._exists(name):
                error = self._refusal(tagged, f"CREATE {mailbox.name}", MailboxNameInvalid)
                raise MailboxNameInvalid(error.text, code=error.code) if type(error) is MailboxNotFound else error
        if subscribe:
            tagged = (await self._connection.command(b"SUBSCRIBE", octet_string(name))).tagged
            if tagged.status != "OK":
                logger.warning("subscribe failed mailbox=%s text=%s", clean(mailbox.name), clean(tagged.text))

    async def _create(self, name: bytes, uses: Sequence[str]) -> Tagged:
        """With its uses where that can be asked for; what is refused so may be taken without (USEATTR, RFC 6154)."""
        if uses and "CREATE-SPECIAL-USE" in self._connection.capabilities:
            words = (b"CREATE", octet_string(name), b"(USE (%s))" % " ".join(uses).encode("ascii"))
            tagged = (await self._connection.command(*words)).tagged
            if tagged.status == "OK" or tagged.code == "ALREADYEXISTS":
                return tagged
            logger.info("mailbox made without its use name=%s text=%s", clean(decoded(name)), clean(tagged.text))
        return (await self._connection.command(b"CREATE", octet_string(name))).tagged

    async def remove_mailbox(self, mailbox: Mailbox) -> None:
        """DELETE (RFC 9051 §6.3.5)."""
        await self._in_step()
        if mailbox.path == (names.INBOX,):
            raise MailboxError("the INBOX is not removed")
        name = self._name(mailbox)
        tagged = (await self._connection.command(b"DELETE", octet_string(name))).tagged
        if tagged.status != "OK" and tagged.code != "NONEXISTENT" and await self._is_listed(name):
            raise self._refusal(tagged, f"DELETE {mailbox.name}", MailboxError)

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
            above = names.split(decoded(without(self._prefix, self._separator)), self._separator)
            if path[: len(above)] == above and len(path) > len(above):
                path = path[len(above) :]
        else:
            prefix = ""
        return native_name(replace(mailbox, path=path, separator=self._separator), prefix)

    async def append(self, mailbox: Mailbox, batch: Batch) -> _Appending:
        await self._in_step()
        if (rest_s := self._rest_until - anyio.current_time()) > 0:
            await rest(rest_s)
        self._sent_octets += sum([each.size for each in batch.fingerprints])
        if self._sent_octets >= self._look_at_link:
            await self._consider_compression()
        appending = _Appending(self, mailbox, octet_string(self._name(mailbox)), batch)
        self.under_way += 1
        await appending.send()
        return appending

    async def _consider_compression(self) -> None:
        """Compresses from here on when the link is what limits, and that is allowed."""
        self._look_at_link = self._sent_octets + LINK_OCTETS
        sock = self._connection.socket
        if (
            self._account.endpoint.compress != "auto"
            or sock is None
            or not can_compress(self._connection, self._profile)
        ):
            self._look_at_link = sys.maxsize
        elif link_is_slow(sock):
            logger.info("link is slow, compressing host=%s", self._connection.where)
            await self._connection.compress()
            self._look_at_link = sys.maxsize

    async def turn(self, messages: int) -> None:
        """Waits until so many messages may be appended."""
        if (wait_s := max([pace.reserve(messages) for pace in self._appends], default=0.0)) > 0:
            await rest(wait_s)

    async def start_append(self, name: Word, words: Sequence[Word]) -> Exchange | None:
        """Sends one APPEND. None: a BAD was answered before, so nothing of this one was sent."""
        connection = self._connection
        try:
            return await connection.start(b"APPEND", name, *words, idle_s=connection.deadlines.append_s, keep=True)
        except BadAnswer:
            return None

    def heed(self, tagged: Tagged) -> None:
        """What an OK asks us to mind."""
        caution = warning_in(tagged.code, tagged.text)
        if caution is None:
            return
        if caution.about == "throttled":
            logger.warning("throttled host=%s seconds=%g text=%s", self._connection.where, caution.wait_s, caution.text)
            self._rest_until = anyio.current_time() + caution.wait_s
        elif not self._told_quota:
            self._told_quota = True
            logger.warning("quota nearly used host=%s text=%s", self._connection.where, caution.text)

    async def room_left(self, name: Word) -> str:
        """What the account's quota says of itself (GETQUOTAROOT, RFC 9208), for a person; "" when it says nothing."""
        if "QUOTA" not in {each.partition("=")[0] for each in self._connection.capabilities} or self.refused:
            return ""
        if self._asked_quota:
            return ""
        self._asked_quota = True
        try:
            quotas = (await self._connection.command(b"GETQUOTAROOT", name)).of(Quota)
        except ConnectionLost:  # a BAD, say: that the account is full is known all the same
            return ""
        return ", ".join(
            f"{resource} {used} of {limit}" for quota in quotas for resource, used, limit in quota.resources
        )

    async def flag(self, mailbox: Mailbox, uids: Sequence[Uid]) -> None:
        """Sets \\Flagged once more on what was just appended with it, for servers that half forget it.

        The mailbox is left without CLOSE, which would expunge what others have marked.
        """
        connection, name = self._connection, octet_string(self._name(mailbox))
        if not (await connection.command(b"SELECT", name)).ok:
            logger.warning("flagged not set again mailbox=%s", clean(mailbox.name))
            return
        for some in uid_sets(sorted(uids), octets=self.set_octets):
            (await connection.start(b"UID STORE", some, b"+FLAGS.SILENT", b"(\\Flagged)")).drop()
        leave = (b"UNSELECT",) if "UNSELECT" in connection.capabilities else (b"EXAMINE", name)
        (await connection.start(*leave)).drop()

    def refusal_of_append(self, tagged: Tagged, mailbox: Mailbox) -> AimportError:
        return self._refusal(tagged, f"APPEND to {mailbox.name}", MessageRefused)

    @asynccontextmanager
    async def _looked_at(self, mailbox: Mailbox) -> AsyncGenerator[Reply]:
        """Opened read-only, and left again: Courier takes no APPEND while a mailbox is open so."""
        await self._in_step()
        reply = await self._examine(mailbox, self._name(mailbox))
        try:
            yield reply
        finally:
            await self._leave()

    async def _leave(self) -> None:
        """CLOSE expunges nothing of a mailbox opened by EXAMINE (RFC 9051 §6.4.1)."""
        with suppress(ConnectionLost):
            leave = b"UNSELECT" if "UNSELECT" in self._connection.capabilities else b"CLOSE"
            (await self._connection.start(leave)).drop()

    async def position(self, mailbox: Mailbox) -> Position | None:
        try:
            # Not STATUS: right after a server was killed it may lag (seen, Dovecot).
            async with self._looked_at(mailbox) as reply:
                return Position(uidvalidity=uidvalidity_of(reply), uidnext=await self._next_uid(reply))
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
                    return await self._find(mailbox, wanted, since, uidvalidity_of(reply))
        except MailboxNotFound:
            pass
        return ()

    async def _find(
        self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position, validity: int
    ) -> Sequence[Stored]:
        floor = since.uidnext if validity == since.uidvalidity else 1
        sizes = Spans(one.fingerprint.span for one in wanted)
        altered = any(one.fingerprint.alike is not None for one in wanted)
        candidates: dict[int, Fetch] = {}
        exchange = await self._connection.start(
            b"UID FETCH", b"%d:*" % max(floor, 1), b"(UID RFC822.SIZE INTERNALDATE)"
        )
        while responses := await exchange.responses():
            for fetch in responses:
                # n:* always has the last message, whatever its UID (RFC 9051 §6.4.9).
                if isinstance(fetch, Fetch) and fetch.uid is not None and fetch.uid >= floor:
                    # The sizes of what is read by RFC822 are not of the whole.
                    if fetch.size is None or self._profile.fetch_whole == "RFC822" or fetch.size in sizes:
                        candidates[fetch.uid] = fetch
        self._demand(await exchange.result(), mailbox)
        stored: list[Stored] = []
        for uids in uid_sets(sorted(candidates), octets=self.set_octets):
            exchange = await self._connection.start(b"UID FETCH", uids, b"(UID %s)" % self.fetch_whole)
            while responses := await exchange.responses():
                for fetch in responses:
                    if isinstance(fetch, Fetch) and fetch.body is not None and fetch.uid in candidates:
                        listed = candidates.pop(fetch.uid)
                        moment = date_time(listed.internal_date or "")
                        found, reduced = await _identities(fetch.body, mailbox, altered=altered)
                        stored.append(
                            Stored(
                                fingerprint=found,
                                uid=Uid(fetch.uid),
                                internal_date=None if moment is None else int(moment.timestamp()),
                                reduced=reduced,
                            )
                        )
            self._demand(await exchange.result(), mailbox)
        return stored

    async def survey(self, mailbox: Mailbox, since: Position, *, sizes: bool = True) -> Survey | None:
        try:
            async with self._looked_at(mailbox) as reply:
                validity = uidvalidity_of(reply)
                uids, octets_, dates = array("Q"), array("Q"), array("q")
                held = next((exists.number for exists in reversed(reply.of(Exists))), 0)
                floor = max(since.uidnext if validity == since.uidvalidity else 1, 1)
                found = None if sizes or not held else await self._uids(floor, held)
                if found is not None:
                    uids = found
                elif held:
                    exchange = await self._connection.start(
                        b"UID FETCH", b"%d:*" % floor, b"(UID RFC822.SIZE INTERNALDATE)"
                    )
                    while responses := await exchange.responses():
                        for fetch in responses:
                            if not isinstance(fetch, Fetch) or fetch.uid is None or fetch.uid < floor:
                                continue
                            if fetch.size is None:  # flags that changed just now
                                continue
                            if uids and fetch.uid <= uids[-1]:
                                raise ProtocolError(f"{self._connection.where}: UIDs do not ascend")
                            moment = date_time(fetch.internal_date or "")
                            uids.append(fetch.uid)
                            octets_.append(fetch.size)
                            dates.append(0 if moment is None else int(moment.timestamp()))
                    self._demand(await exchange.result(), mailbox)
                keys = UidKeys(validity, uids)
                return Survey(uidvalidity=validity, keys=keys, sizes=octets_, dates=dates, at=keys.at)
        except MailboxNotFound:
            return None

    async def _uids(self, floor: int, held: int) -> array[int] | None:
        """UIDs at or above `floor` in the mailbox that is open; None: the server does not search.

        For sizes and dates Dovecot looks at each file: 30 us a message there, 10 here (measured).
        """
        if self._profile.search_unreliable:
            return None
        words = search_words(self._connection.capabilities, (b"UID", b"%d:*" % floor))
        reply = await (await self._connection.start(*words, refusable=True)).reply()
        if not reply.ok:
            return None
        # n:* always has the last message, whatever its UID (RFC 9051 §6.4.8).
        return array("Q", [uid for uid in found_uids(reply, held) if uid >= floor])

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        await self._in_step()
        return await self._as_source().list_mailboxes()

    def _as_source(self) -> ImapSourceSession:
        """The same account, over this connection: some accounts have no second one."""
        return ImapSourceSession(Link(self._connection, self._namespace, self._profile, self._throttle))

    @asynccontextmanager
    async def reading(self, mailbox: Mailbox) -> AsyncGenerator[tuple[SourceSession, Mailbox]]:
        await self._in_step()
        name = self._name(mailbox)
        try:
            yield self._as_source(), replace(mailbox, native=name.decode("latin-1"))
        finally:
            await self._leave()

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        return "" if uid is None else f"{uidvalidity}:{uid}"

    async def inspect(self, targets: Sequence[Mailbox] = ()) -> Standing:
        problems: list[AimportError] = []
        notes: list[str] = []
        for mailbox in targets:
            try:
                name = self._name(mailbox)
            except MailboxNameInvalid as error:
                problems.append(error)
            else:
                doubt = doubt_about(name.removeprefix(self._prefix), mailbox.path, self._profile)
                notes += [f"{mailbox.name}: {doubt}"] if doubt else []
        return Standing(
            server=server_of(self._connection, self._profile, self.limits),
            append_limit=await append_limit(self._connection) or self.limit,
            allowances=await allowances(self._connection),
            problems=tuple(problems),
            notes=tuple(notes),
        )

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
        self._lost: ConnectionLost | None = None
        self._made = False
        """The mailbox was missing, and made."""
        self._flagged: list[Uid] = []
        """Stored with \\Flagged on a server that half forgets it."""
        for index, (message, print_) in enumerate(zip(batch.messages, batch.fingerprints, strict=True)):
            if session.limit and print_.size > session.limit:
                text = f"{print_.size} octets, the server takes {session.limit}"
                self._outcomes[index] = Rejected(key=message.key, code="TOOBIG", text=text, cause="size")
            elif session.too_big and print_.size >= session.too_big:
                text = f"{print_.size} octets, and the server called {session.too_big} too big"
                self._outcomes[index] = Rejected(key=message.key, code="TOOBIG", text=text, cause="size")
            elif not print_.size:
                # Cancels a MULTIAPPEND (RFC 3502 §6.3.11), and every server seen refuses it alone.
                text = "the message has no octets"
                self._outcomes[index] = Rejected(key=message.key, code="", text=text, cause="empty")
            else:
                self._items[index] = _Item(message, print_.size, session.rules)

    async def send(self) -> None:
        """Hands over what has no outcome yet; that the connection was lost is told by `outcomes`, after the answers."""
        places = list(self._items)
        await self._session.turn(len(places))
        together = [places] if self._session.multiple and places else [[place] for place in places]
        for group in together:
            words = [word for place in group for word in self._items[place].words()]
            try:
                self._sent.append((group, await self._session.start_append(self._name, words)))
            except ConnectionLost as error:
                self._lost = error
                return

    async def outcomes(self) -> Sequence[Outcome]:
        session = self._session
        try:
            missing = await self._answers(last=False)
            for left in range(RESENDS - 1, -1, -1):
                # Again: what may be taken with less, what had no mailbox, what met a limit.
                if self._items and session.refused and session.under_way == 1:
                    await session.reconnect()
                if not self._items or session.refused:
                    break
                if missing:
                    await session.create_mailbox(self._mailbox, subscribe=False)
                    self._made = True
                await self.send()
                missing = await self._answers(last=not left)
            for place in self._items:
                self._outcomes[place] = NotStored(key=self._messages[place].key)
            if self._flagged and not session.refused:
                await session.flag(self._mailbox, self._flagged)
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
            except ConnectionLost as lost:
                if not exchange.bad or not isinstance(lost, BadAnswer):
                    self._lost = lost
                    break
                words = Rejected(key=MessageKey(""), code="BAD", text=lost.text, cause=lost.cause)
                self._refused(places, words, last=last)
                continue
            if tagged.status == "OK":
                self._stored(places, tagged)
                continue
            refusal = self._session.refusal_of_append(tagged, self._mailbox)
            if isinstance(refusal, MessageRefused):
                words = Rejected(key=MessageKey(""), code=refusal.code, text=clean(tagged.text), cause=refusal.cause)
                self._refused(places, words, last=last)
            elif isinstance(refusal, MailboxNotFound) and not (last or self._made):
                missing = True
            else:
                self._none_stored(places, refusal)
        if self._lost is not None:
            # What was said before the end counts more than the end: it may say for how long to stay away.
            raise widest([*self._errors(), self._lost])
        for error in self._errors():
            if isinstance(error, OverQuota) and (left := await self._session.room_left(self._name)):
                error.text += f" ({left})"
                break
        return missing

    def _errors(self) -> list[AimportError]:
        """What stopped messages, wider than they are."""
        return [each.error for each in self._outcomes.values() if isinstance(each, NotStored) and each.error]

    def _stored(self, places: Sequence[int], tagged: Tagged) -> None:
        self._session.heed(tagged)
        for place, uid in zip(places, _uids(tagged, len(places)), strict=True):
            item = self._items.pop(place)
            self._outcomes[place] = Appended(key=item.message.key, uid=uid, dropped=item.dropped)
            if self._session.rules.flagged_by_store and uid is not None and "\\Flagged" in item.flags:
                self._flagged.append(uid)

    def _refused(self, places: Sequence[int], refusal: Rejected, *, last: bool) -> None:
        """The message alone is at fault, or one of several is."""
        if len(places) > 1:
            self._none_stored(places, None)
            return
        [place] = places
        item = self._items.pop(place)
        if refusal.code == "TOOBIG":
            self._session.too_big = min(self._session.too_big or item.size, item.size)
        lesser = None if last else item.lesser(refusal.cause)
        if refusal.code == "LIMIT" and lesser is None:
            # Of which limit it speaks nobody knows: maybe one of speed, so once more, at last alone.
            if len(self._messages) > 1:
                self._outcomes[place] = NotStored(key=item.message.key)
                return
            lesser = None if last else item
        if lesser is None:
            self._outcomes[place] = replace(refusal, key=item.message.key)
        else:
            self._items[place] = lesser

    def _none_stored(self, places: Sequence[int], error: AimportError | None) -> None:
        for place in places:
            self._outcomes[place] = NotStored(key=self._items.pop(place).message.key, error=error)


async def _identities(body: bytes | Sink, mailbox: Mailbox, *, altered: bool) -> tuple[Fingerprint, bytes]:
    """Fingerprint of a body, and the digest of its reduced form when `altered` ones are looked for.

    Raises:
        MailboxError: it cannot be kept on its way, and what is not known is not to be sent again.
    """
    if isinstance(body, bytes):
        wire = octets.wire_form(body)
        return octets.fingerprint(wire), octets.reduced_digest((wire,)) if altered else b""
    assert isinstance(body, Spool)
    try:
        large = await body.body()
    except MessageUnreadable as error:
        raise MailboxError(
            f"{mailbox.name}: what became of a message is unknown: {error.text}", hint=error.hint
        ) from error
    try:
        whole = await anyio.to_thread.run_sync(octets.measure, large.pieces)
        if not altered:
            return whole, b""
        return whole, await anyio.to_thread.run_sync(octets.reduced_digest, octets.wire_pieces(large.pieces()))
    finally:
        large.close()


def _literal(message: Message, size: int) -> bytes | LargeLiteral:
    """The wire form of a body, of `size` octets."""
    body = message.body
    if isinstance(body, bytes):
        return body if message.wire else octets.wire_form(body)
    return LargeLiteral(size, lambda: octets.wire_pieces(octets.pieces_of(body)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a kind of server does to dates and flags (`imap.profiles`)."""

    earliest: datetime | None = None
    latest: datetime | None = None
    future_s: int = 0
    keywords: bool = True
    keyword_octets: int = 0
    flagged_by_store: bool = False

    @classmethod
    def of(cls, profile: Profile) -> Rules:
        return cls(
            earliest=profile.earliest_date,
            latest=profile.latest_date,
            future_s=profile.future_s,
            keywords=profile.keywords.allowed,
            keyword_octets=profile.keywords.octets,
            flagged_by_store=profile.flagged_by_store,
        )

    def date(self, moment: datetime) -> tuple[datetime, bool]:
        """The date to send, and whether the server will keep the one of the message."""
        if self.earliest is not None and moment < self.earliest:
            return self.earliest, False
        if self.latest is not None and moment > self.latest:
            return self.latest, False
        if self.future_s and moment.timestamp() > seams.now_us() / 1e6 + self.future_s:
            return moment, False
        return moment, True


class _Item:
    """One message as it is sent."""

    def __init__(
        self, message: Message, size: int, rules: Rules, *, keep_keywords: bool = True, keep_date: bool = True
    ) -> None:
        self.message = message
        self.size = size
        self._rules = rules
        keywords = keep_keywords and rules.keywords
        self.keywords, self.flags, self.dropped = _sendable(message.flags, keywords, rules.keyword_octets)
        self.date, kept = rules.date(message.internal_date)
        if not keep_date:
            self.date, kept = min(max(self.date, FIRST_DATE), LAST_DATE), False
        if not kept:
            self.dropped = (*self.dropped, "INTERNALDATE")

    def words(self) -> tuple[Word, Word, Word]:
        return append_words(self.flags, self.date, _literal(self.message, self.size))

    def lesser(self, cause: str) -> _Item | None:
        """What may be taken when this was refused alone; None: nothing less, or something else is wrong.

        Without keywords, with a date that every server takes, or both where the words do not tell which
        (Courier has one sentence for both).
        """
        if cause not in LESSER:
            return None
        odd = not FIRST_DATE <= self.date <= LAST_DATE
        keep_keywords = not self.keywords or cause == "date"
        keep_date = not odd or cause in ("keywords", "flags")
        if keep_keywords and keep_date:
            return None
        return _Item(self.message, self.size, self._rules, keep_keywords=keep_keywords, keep_date=keep_date)


@lru_cache(maxsize=1024)
def _sendable(
    given: frozenset[str], keep_keywords: bool, keyword_octets: int
) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    """Whether keywords are sent, the flags to send, and those that cannot be."""
    known = flags.normalise(given)
    keywords = {flag for flag in known if not flag.startswith("\\")}
    good = {flag for flag in keywords if flags.is_keyword(flag) and len(flag) <= (keyword_octets or len(flag))}
    sent = (known - keywords) | (good if keep_keywords else set())
    dropped = {flag for flag in given if not flags.normalise((flag,)) & sent and flag.lower() != "\\recent"}
    return bool(good) and keep_keywords, tuple(sorted(sent)), tuple(sorted(dropped))


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


def _append_limit(offered: frozenset[str]) -> int:
    """RFC 7889; 0: not known (maddy says 0 and means none)."""
    for name in offered:
        if name.startswith("APPENDLIMIT=") and name[12:].isdecimal():
            return int(name[12:])
    return 0
