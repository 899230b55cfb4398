"""A destination in memory whose connections die with batches under way, of which the server has kept a part."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint

from aimport.errors import ConnectionLost
from aimport.model import Batch, Mailbox, NotStored, Outcome
from aimport.stores.memory import MemoryDestination, MemoryDestinationSession, MemoryStore
from tests.sim.faults import Faults


class DyingDestination(MemoryDestination):
    """`sessions` takes up every session, so that all of them can be ended with their process."""

    def __init__(self, store: MemoryStore, account: str, faults: Faults, sessions: list[DyingSession]) -> None:
        super().__init__(store, account)
        self._faults = faults
        self._sessions = sessions

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[DyingSession, None]:
        await self._store._event("open_destination", self._account)
        session = DyingSession(self._store, self._account, self._faults)
        self._sessions.append(session)
        try:
            yield session
        finally:
            session.die()
            self._sessions.remove(session)


class DyingSession(MemoryDestinationSession):
    """Batches are stored in order, some before the next is handed over, the others when an answer is asked for."""

    def __init__(self, store: MemoryStore, account: str, faults: Faults) -> None:
        super().__init__(store, account)
        self.faults = faults
        self.dead = False
        self.waiting: deque[DyingAppending] = deque()
        """Handed over; nothing of them is stored."""
        self.under_way = 0
        self.turn = anyio.Lock()

    def die(self) -> None:
        """What was handed over is stored up to a point that nobody knows."""
        if self.dead:
            return
        self.dead = True
        while self.waiting and self.faults.chance.random() < 0.6:
            handed = self.waiting.popleft()
            stored = self._mailbox(handed.mailbox)
            messages = handed.batch.messages
            kept = self.faults.chance.choice([len(messages), self.faults.chance.randrange(len(messages) + 1)])
            for message in messages[:kept]:
                if stored is not None and (self._store.refuse is None or not self._store.refuse(message)):
                    self._add(stored, message)

    async def fate(self, odds: float = 1.0) -> None:
        for _ in range(self.faults.chance.randrange(3)):
            await checkpoint()
        if self.faults.now(odds):
            self.die()
        if self.dead:
            raise ConnectionLost("cut")

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        await self.fate(0.3)
        await super().create_mailbox(mailbox, subscribe=subscribe)

    async def append(self, mailbox: Mailbox, batch: Batch) -> DyingAppending:  # type: ignore[override]
        await self.fate()
        handed = DyingAppending(self, mailbox, batch)
        self.under_way += 1
        self.waiting.append(handed)
        await self.fate()
        while self.faults.chance.random() < 0.4:
            await self.store_next()
        return handed

    async def store_next(self) -> None:
        async with self.turn:
            if self.waiting and not self.dead:
                await self.answer(self.waiting.popleft())

    async def answer(self, handed: DyingAppending) -> None:
        alone = self.under_way == 1 and len(handed.batch.messages) == 1
        if not alone and self.faults.now():  # as after a BAD: nothing of it was sent
            handed.known = [NotStored(key=message.key) for message in handed.batch.messages]
        else:
            handed.known = await self._append(mailbox=handed.mailbox, batch=handed.batch)


class DyingAppending:
    """The `Appending` of a session that may die."""

    def __init__(self, session: DyingSession, mailbox: Mailbox, batch: Batch) -> None:
        self.session, self.mailbox, self.batch = session, mailbox, batch
        self.known: Sequence[Outcome] | None = None

    async def outcomes(self) -> Sequence[Outcome]:
        await self.session.fate()
        while self.known is None and not self.session.dead:
            await self.session.store_next()
        await self.session.fate()
        assert self.known is not None
        self.session.under_way -= 1
        return self.known
