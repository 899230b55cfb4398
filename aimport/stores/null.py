"""A destination that keeps nothing but the fingerprints of what it is given: what reading costs, and what was read.

It has every UID that it gave, so an import into it is one as any other, up to its audit.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from anyio.lowlevel import checkpoint

from aimport.errors import MailboxNotFound
from aimport.interfaces import Settled, SourceSession
from aimport.model import (
    Appended,
    Batch,
    ConnectionLimits,
    Fingerprint,
    Mailbox,
    Position,
    Stored,
    Survey,
    Uid,
    Wanted,
)
from aimport.stores.keys import UidKeys


class NullDestination:
    """One account; every session of it counts in the same `seen`."""

    host = ""

    def __init__(self, *, wire: bool = True) -> None:
        self.wire = wire
        self.seen: Counter[Fingerprint] = Counter()
        self._held: dict[tuple[str, ...], int] = {}

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[NullSession]:
        yield NullSession(self.seen, self._held)


class NullSession:
    """Takes all and keeps nothing."""

    limits = ConnectionLimits()
    separator = "/"
    waits = False
    folds_case = False

    def __init__(self, seen: Counter[Fingerprint], held: dict[tuple[str, ...], int]) -> None:
        self._seen = seen
        self._held = held

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return [Mailbox(path=path) for path in self._held]

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        self._held.setdefault(mailbox.path, 0)

    async def append(self, mailbox: Mailbox, batch: Batch) -> Settled:
        await checkpoint()
        first = self._held[mailbox.path] + 1
        self._held[mailbox.path] += len(batch.messages)
        self._seen.update(batch.fingerprints)
        return Settled([Appended(key=each.key, uid=Uid(first + at)) for at, each in enumerate(batch.messages)])

    async def position(self, mailbox: Mailbox) -> Position | None:
        held = self._held.get(mailbox.path)
        return None if held is None else Position(uidvalidity=1, uidnext=held + 1)

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        return ()

    async def survey(self, mailbox: Mailbox, since: Position, *, sizes: bool = True) -> Survey | None:
        if mailbox.path not in self._held:
            return None
        keys = UidKeys(1, array("Q", range(max(since.uidnext, 1), self._held[mailbox.path] + 1)))
        return Survey(uidvalidity=1, keys=keys, sizes=(), dates=(), at=keys.at)

    def reading(self, mailbox: Mailbox) -> AbstractAsyncContextManager[tuple[SourceSession, Mailbox]]:
        raise MailboxNotFound(f"mailbox {mailbox.name!r}: nothing is kept", code="NONEXISTENT")

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        return "" if uid is None else f"{uidvalidity}:{uid}"
