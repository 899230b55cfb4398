"""Accounts in memory: the reference of what a store must do, and a store that fails on demand.

    memory:NAME ─▶ MemoryStore ─▶ account ─▶ mailbox ─▶ messages with UIDs

It behaves like a good IMAP server with UIDPLUS. What a test wants otherwise is a field of
`MemoryStore`; what happened is in `events`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Final

from anyio.lowlevel import checkpoint

from aimport.errors import AimportError, MailboxChanged, MailboxError, MailboxNotFound, OverQuota, SourceMissing
from aimport.flags import normalise
from aimport.interfaces import SourceSession
from aimport.model import (
    Appended,
    Batch,
    ConnectionLimits,
    Endpoint,
    Mailbox,
    Message,
    MessageKey,
    NotStored,
    Order,
    Outcome,
    Position,
    Rejected,
    Selection,
    Stored,
    Survey,
    Uid,
    Unreadable,
    Wanted,
)
from aimport.names import INBOX
from aimport.octets import fingerprint, reduced_digest, whole, wire_form
from aimport.query.facts import ONE_BY_ONE, Fact, Facts
from aimport.query.terms import ALL, Term
from aimport.selecting import pick

HOP_MESSAGES: Final = 64
HOP_OCTETS: Final = 1 << 20

Refusal = tuple[str, str]
"""Response code and text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMessage:
    """A stored message."""

    uid: Uid
    flags: frozenset[str]
    internal_date: datetime
    body: bytes = field(repr=False)
    wire: bool = False


@dataclass(slots=True, kw_only=True)
class MemoryMailbox:
    """A mailbox; `messages` ascend by UID."""

    uidvalidity: int
    uidnext: int = 1
    subscribed: bool = False
    uses: tuple[str, ...] = ()
    messages: list[MemoryMessage] = field(default_factory=list)

    def add(self, body: bytes, *, flags: Sequence[str], internal_date: datetime, wire: bool = False) -> Uid:
        """Store a message at the end."""
        uid = Uid(self.uidnext)
        self.uidnext += 1
        stored = MemoryMessage(uid=uid, flags=normalise(flags), internal_date=internal_date, body=body, wire=wire)
        self.messages.append(stored)
        return uid

    @property
    def octets(self) -> int:
        return sum(len(message.body) for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What the nth append (from 1, over the whole store) raises, and how many messages it stores before."""

    nth: int
    error: BaseException
    stored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a session did: `verb` is the name of its method; `count` of messages."""

    verb: str
    account: str
    mailbox: str = ""
    count: int = 0


Accounts = dict[str, dict[tuple[str, ...], MemoryMailbox]]


@dataclass(slots=True, kw_only=True)
class MemoryStore:
    """Any number of accounts, and the knobs."""

    accounts: Accounts = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    separator: str = "/"
    host: str = ""
    wire: bool = False
    """Destinations want bodies in wire form, as IMAP does."""
    next_uidvalidity: int = 1
    waits: bool = False
    """Each message costs a round trip."""
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    max_batch: int = 0
    """A longer batch is refused whole; 0: no limit."""
    atomic: bool = True
    """A refused message, or quota, refuses its whole batch (MULTIAPPEND); else the others are stored."""
    refuse: Callable[[Message], Refusal | None] | None = None
    fail: Callable[[Message], AimportError | None] | None = None
    """What stops a whole batch that holds the message."""
    unreadable: Callable[[Message], Refusal | None] | None = None
    quota_octets: int = 0
    """Per account; 0: no limit."""
    says: Callable[[MemoryMailbox, Appended], Appended] | None = None
    """What is said of a message that was stored, in place of the truth."""
    drops: frozenset[str] = frozenset()
    """Flags and keywords that this store cannot hold."""
    failures: list[Failure] = field(default_factory=list)
    hook: Callable[[Event], Awaitable[None]] | None = None
    """Awaited before anything is done: may wait, change the store, or raise."""
    appends: int = 0

    _named: ClassVar[dict[str, MemoryStore]] = {}

    @classmethod
    def named(cls, name: str) -> MemoryStore:
        """The store that `memory:NAME` means; made when it is first asked for."""
        return cls._named.setdefault(name, cls())

    @classmethod
    def forget(cls, name: str) -> None:
        """Let the next `named` begin with an empty store."""
        cls._named.pop(name, None)

    def mailbox(self, account: str, path: tuple[str, ...]) -> MemoryMailbox:
        """A mailbox by its levels, made with its account when missing."""
        mailboxes = self.accounts.setdefault(account, {})
        if path not in mailboxes:
            mailboxes[path] = MemoryMailbox(uidvalidity=self.next_uidvalidity)
            self.next_uidvalidity += 1
        return mailboxes[path]

    async def _event(self, verb: str, account: str, mailbox: Mailbox | None = None, count: int = 0) -> None:
        event = Event(verb=verb, account=account, mailbox=mailbox.name if mailbox else "", count=count)
        self.events.append(event)
        await checkpoint()
        if self.hook is not None:
            await self.hook(event)


class MemorySource:
    """One account to read."""

    def __init__(self, store: MemoryStore, account: str) -> None:
        self.host = store.host
        self._store = store
        self._account = account

    @classmethod
    def at(cls, endpoint: Endpoint) -> MemorySource:
        return cls(MemoryStore.named(endpoint.path), endpoint.user)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MemorySourceSession, None]:
        await self._store._event("open_source", self._account)
        yield MemorySourceSession(self._store, self._account)


class MemorySourceSession:
    """Reads one account."""

    limits = ConnectionLimits()

    def __init__(self, store: MemoryStore, account: str) -> None:
        self._store = store
        self._account = account

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        await self._store._event("list_mailboxes", self._account)
        if self._account not in self._store.accounts:
            raise SourceMissing(f"memory account {self._account!r} does not exist")
        paths = sorted(self._store.accounts[self._account], key=lambda path: (path != ("INBOX",), path))
        mailboxes = self._store.accounts[self._account]
        separator = self._store.separator
        return [Mailbox(path=path, separator=separator, uses=mailboxes[path].uses) for path in paths]

    async def select(self, mailbox: Mailbox, term: Term = ALL, order: Order = "stored") -> Selection:
        await self._store._event("select", self._account, mailbox)
        stored = self._mailbox(mailbox)
        messages = list(stored.messages)
        if term != ALL or order != "stored":
            messages = [messages[place] for place in await pick(term, order, _Shelf(self._store, messages))]
        return Selection(
            mailbox=mailbox,
            keys=[MessageKey(f"{stored.uidvalidity}:{message.uid}") for message in messages],
            sizes=[len(message.body) for message in messages],
            position=Position(uidvalidity=stored.uidvalidity, uidnext=stored.uidnext),
        )

    def look(self, selection: Selection, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        wanted = set(selection.keys)
        stored = self._mailbox(selection.mailbox)
        messages = [each for each in stored.messages if f"{stored.uidvalidity}:{each.uid}" in wanted]
        return _Shelf(self._store, messages).look(places, facts)

    async def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        hop: list[Message | Unreadable] = []
        octets = 0
        for key, size in zip(selection.keys, selection.sizes, strict=True):
            if key in skip:
                continue
            if hop and (len(hop) >= HOP_MESSAGES or octets + size > HOP_OCTETS):
                await self._store._event("messages", self._account, selection.mailbox, len(hop))
                yield hop
                hop, octets = [], 0
            hop.append(self._read(selection.mailbox, key))
            octets += size
        if hop:
            await self._store._event("messages", self._account, selection.mailbox, len(hop))
            yield hop

    def _mailbox(self, mailbox: Mailbox) -> MemoryMailbox:
        try:
            return self._store.accounts[self._account][mailbox.path]
        except KeyError:
            raise MailboxNotFound(f"mailbox {mailbox.name!r} does not exist", code="NONEXISTENT") from None

    def _read(self, mailbox: Mailbox, key: MessageKey) -> Message | Unreadable:
        stored = self._mailbox(mailbox)
        uidvalidity, _, uid = key.partition(":")
        if int(uidvalidity) != stored.uidvalidity:
            raise MailboxChanged(f"mailbox {mailbox.name!r} has a new UIDVALIDITY")
        at = bisect_left(stored.messages, int(uid), key=lambda message: int(message.uid))
        found = [message for message in stored.messages[at : at + 1] if message.uid == int(uid)]
        if not found:
            return Unreadable(key=key, code="vanished", text=f"{mailbox.name}: {key} is gone")
        message = Message(
            key=key,
            flags=found[0].flags,
            internal_date=found[0].internal_date,
            body=found[0].body,
            wire=found[0].wire,
        )
        trouble = self._store.unreadable(message) if self._store.unreadable else None
        return Unreadable(key=key, code=trouble[0], text=trouble[1]) if trouble else message


class _Shelf:
    """All messages of a mailbox, for a term to be decided."""

    guid = ""

    def __init__(self, store: MemoryStore, messages: Sequence[MemoryMessage]) -> None:
        self._store = store
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    async def look(self, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        step = HOP_MESSAGES if facts & ONE_BY_ONE else max(len(places), 1)
        for first in range(0, len(places), step):
            batch = places[first : first + step]
            messages = {place: self._messages[place] for place in batch}
            await self._store._event("look", "", count=len(batch))
            sizes = {place: len(wire_form(each.body)) for place, each in messages.items()}
            bodies = {place: each.body for place, each in messages.items()}
            yield Facts(
                places=batch,
                uids={place: int(each.uid) for place, each in messages.items()},
                flags={place: each.flags for place, each in messages.items()},
                guids=dict.fromkeys(batch, ""),
                modseqs=dict.fromkeys(batch, 1),
                least=sizes,
                most=sizes,
                dates={place: int(each.internal_date.timestamp()) for place, each in messages.items()},
                saved=dict.fromkeys(batch),
                sizes=sizes,
                headers=bodies if Fact.HEADER in facts else None,
                bodies=bodies if Fact.BODY in facts else None,
            )


class MemoryDestination:
    """One account to write; it comes into being with its first mailbox."""

    def __init__(self, store: MemoryStore, account: str) -> None:
        self.host = store.host
        self.wire = store.wire
        self._store = store
        self._account = account

    @classmethod
    def at(cls, endpoint: Endpoint) -> MemoryDestination:
        return cls(MemoryStore.named(endpoint.path), endpoint.user)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MemoryDestinationSession, None]:
        await self._store._event("open_destination", self._account)
        yield MemoryDestinationSession(self._store, self._account)


class MemoryDestinationSession:
    """Writes one account."""

    folds_case = False

    def __init__(self, store: MemoryStore, account: str) -> None:
        self._store = store
        self._account = account

    @property
    def limits(self) -> ConnectionLimits:
        return self._store.limits

    @property
    def waits(self) -> bool:
        return self._store.waits

    @property
    def separator(self) -> str:
        return self._store.separator

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        await self._store._event("create_mailbox", self._account, mailbox)
        if mailbox.uses and mailbox.path not in self._store.accounts.get(self._account, {}):
            self._store.mailbox(self._account, mailbox.path).uses = mailbox.uses
        stored = self._store.mailbox(self._account, mailbox.path)
        stored.subscribed = stored.subscribed or subscribe

    async def remove_mailbox(self, mailbox: Mailbox) -> None:
        await self._store._event("remove_mailbox", self._account, mailbox)
        if mailbox.path == (INBOX,):
            raise MailboxError("the INBOX is not removed")
        self._store.accounts.get(self._account, {}).pop(mailbox.path, None)

    async def append(self, mailbox: Mailbox, batch: Batch) -> MemoryAppending:
        return MemoryAppending(self._store, self._account, mailbox, await self._append(mailbox, batch))

    async def _append(self, mailbox: Mailbox, batch: Batch) -> list[Outcome]:
        store = self._store
        store.appends += 1
        nth = store.appends
        await store._event("append", self._account, mailbox, len(batch.messages))
        stored = self._mailbox(mailbox)
        if stored is None:
            return _none_stored(batch, MailboxNotFound(f"mailbox {mailbox.name!r} does not exist", code="TRYCREATE"))
        failure = next((failure for failure in store.failures if failure.nth == nth), None)
        if failure is not None:
            for message in batch.messages[: failure.stored]:
                self._add(stored, message)
            raise failure.error
        several = len(batch.messages) > 1
        if store.max_batch and len(batch.messages) > store.max_batch and several:
            return _none_stored(batch)
        for message in batch.messages:
            if store.fail is not None and (error := store.fail(message)) is not None:
                return _none_stored(batch, error)
        refusals = [store.refuse(message) if store.refuse else None for message in batch.messages]
        if several and store.atomic:
            if any(refusals):
                return _none_stored(batch)
            if not self._has_room(sum(len(message.body) for message in batch.messages)):
                return _none_stored(batch, self._full())
        outcomes: list[Outcome] = []
        for message, refusal in zip(batch.messages, refusals, strict=True):
            if refusal is not None:
                outcomes.append(Rejected(key=message.key, code=refusal[0], text=refusal[1]))
            elif not self._has_room(len(message.body)):
                outcomes.append(NotStored(key=message.key, error=self._full()))
            else:
                outcomes.append(self._add(stored, message))
        return outcomes

    async def position(self, mailbox: Mailbox) -> Position | None:
        await self._store._event("position", self._account, mailbox)
        stored = self._mailbox(mailbox)
        return None if stored is None else Position(uidvalidity=stored.uidvalidity, uidnext=stored.uidnext)

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        await self._store._event("find", self._account, mailbox, len(wanted))
        stored = self._mailbox(mailbox)
        if stored is None:
            return []
        first = since.uidnext if since.uidvalidity == stored.uidvalidity else 0
        found = []
        for message in stored.messages:
            if message.uid >= first:
                wire = wire_form(message.body)
                date = int(message.internal_date.timestamp())
                found.append(
                    Stored(
                        fingerprint=fingerprint(wire),
                        uid=message.uid,
                        internal_date=date,
                        reduced=reduced_digest((wire,)),
                    )
                )
        return found

    async def survey(self, mailbox: Mailbox, since: Position, *, sizes: bool = True) -> Survey | None:
        await self._store._event("survey", self._account, mailbox)
        stored = self._mailbox(mailbox)
        if stored is None:
            return None
        first = since.uidnext if since.uidvalidity == stored.uidvalidity else 0
        messages = [message for message in stored.messages if message.uid >= first]
        keys = [MessageKey(f"{stored.uidvalidity}:{message.uid}") for message in messages]
        return Survey(
            uidvalidity=stored.uidvalidity,
            keys=keys,
            sizes=[len(wire_form(message.body)) for message in messages],
            dates=[int(message.internal_date.timestamp()) for message in messages],
            at={str(key): index for index, key in enumerate(keys)}.get,
        )

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return await MemorySourceSession(self._store, self._account).list_mailboxes()

    @asynccontextmanager
    async def reading(self, mailbox: Mailbox) -> AsyncGenerator[tuple[SourceSession, Mailbox]]:
        yield MemorySourceSession(self._store, self._account), mailbox

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        return "" if uid is None else f"{uidvalidity}:{uid}"

    def _mailbox(self, mailbox: Mailbox) -> MemoryMailbox | None:
        return self._store.accounts.get(self._account, {}).get(mailbox.path)

    def _add(self, stored: MemoryMailbox, message: Message) -> Appended:
        flags = normalise(message.flags)
        uid = stored.add(
            whole(message.body),
            flags=sorted(flags - self._store.drops),
            internal_date=message.internal_date.replace(microsecond=0),
            wire=message.wire,
        )
        told = Appended(key=message.key, uid=uid, dropped=tuple(sorted(flags & self._store.drops)))
        return told if self._store.says is None else self._store.says(stored, told)

    def _has_room(self, octets: int) -> bool:
        used = sum(mailbox.octets for mailbox in self._store.accounts[self._account].values())
        return not self._store.quota_octets or used + octets <= self._store.quota_octets

    def _full(self) -> OverQuota:
        return OverQuota(f"quota of {self._account!r} exceeded", code="OVERQUOTA")


@dataclass(frozen=True, slots=True)
class MemoryAppending:
    """A batch that is stored, or not, whose answer a hook may hold up."""

    store: MemoryStore
    account: str
    mailbox: Mailbox
    known: Sequence[Outcome]

    async def outcomes(self) -> Sequence[Outcome]:
        await self.store._event("outcomes", self.account, self.mailbox, len(self.known))
        return self.known


def _none_stored(batch: Batch, error: AimportError | None = None) -> list[Outcome]:
    return [NotStored(key=message.key, error=error) for message in batch.messages]
