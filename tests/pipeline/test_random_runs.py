"""One seed drives accounts, limits, faults and crashes; whatever happens, each message arrives once.

Invariants, after every run of a seed: what the journal calls stored is stored, nothing is stored twice, every report
adds up, and no octet of the budget is missing. At the end: all that was not refused is there.

The journal has a thread of its own, so a seed that failed may need a few tries to fail again.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aimport.errors import (
    AimportError,
    ConnectionLost,
    JournalError,
    MailboxChanged,
    MailboxError,
    ServerBug,
    Unavailable,
)
from aimport.interfaces import Destination
from aimport.journal import Journal, Work, _Meta, _Op
from aimport.limits import Limits
from aimport.model import Appended, Batch, Endpoint, Mailbox, NotStored, Outcome
from aimport.octets import fingerprint, whole, wire_form
from aimport.results import UserResult
from aimport.stores import memory
from aimport.stores.memory import Event, MemoryDestination, MemoryDestinationSession, MemoryStore
from tests.pipeline.harness import World, bodies, multiset

SEEDS: Final = 300
DEADLINE_S: Final = 60.0

T = TypeVar("T")


class Faults:
    """What goes wrong, how often, and until when."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.left = chance.choice([0, 3, 10, 40])
        """So many more things go wrong; then nothing does, so that a seed ends."""
        self.odds = chance.choice([0.02, 0.1, 0.3])

    def now(self, odds: float = 1.0) -> bool:
        if self.left > 0 and self.chance.random() < self.odds * odds:
            self.left -= 1
            return True
        return False


class DyingDestination(MemoryDestination):
    """Its connections die with batches under way, of which the server has kept a part."""

    def __init__(self, store: MemoryStore, account: str, faults: Faults) -> None:
        super().__init__(store, account)
        self.faults = faults

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[DyingSession, None]:
        await self._store._event("open_destination", self._account)
        session = DyingSession(self._store, self._account, self.faults)
        try:
            yield session
        finally:
            session.die()


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


class ForgetfulJournal(Journal):
    """Loses what it had not written yet when the process is killed."""

    def __init__(self, directory: Path | None, db: sqlite3.Connection, meta: _Meta, lock: int = -1) -> None:
        super().__init__(directory, db, meta, lock)
        self.killed = False
        self.behind: list[_Op] = []
        """Records that are not written yet."""

    def forget(self) -> None:
        self.killed = True
        self.behind.clear()

    def _put(self, op: _Op) -> None:
        if op.waiter is not None:
            super()._put(op)
        elif not self.killed:
            self.behind.append(op)

    async def _ask(self, work: Work[T], *, mark: int = 0, repairs: Sequence[bytes] = ()) -> T:
        self._write_behind()
        return await super()._ask(work, mark=mark, repairs=repairs)

    def _read(self, work: Work[T]) -> T:
        self._write_behind()
        return super()._read(work)

    def _write_behind(self) -> None:
        if self.killed:
            raise JournalError("the process was killed")
        for op in self.behind:
            super()._put(op)
        self.behind.clear()


class Seed(World):
    """All of one seed: accounts, limits, what is refused, what goes wrong."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        limits = Limits(
            retry_wait_s=0.0,
            fence_s=0.0,
            attempts=200,
            connections_per_user=chance.randrange(1, 4),
            max_memory=chance.choice([10, 500, 5_000, 1 << 20]),
            batch_messages=chance.randrange(1, 9),
            batch_octets=chance.choice([100, 500, 1 << 20]),
            batches_ahead=chance.randrange(1, 5),
            queue_lists=chance.randrange(1, 5),
        )
        super().__init__(limits=limits, journal=ForgetfulJournal.in_memory())
        self.faults = Faults(chance)
        few = bodies(chance.choice([3, 60]))
        for mailbox in ("INBOX", "A", "B/C"):
            self.fill("bob", mailbox, [chance.choice(few) for _ in range(chance.choice([0, 1, 10, 40]))])
        refused = set(chance.sample(few, chance.choice([0, 0, 1, len(few) // 3])))
        self.new.refuse = lambda message: ("", "no") if wire_form(whole(message.body)) in refused else None
        self.new.atomic = chance.random() < 0.6
        self.new.waits = chance.random() < 0.3
        self.due = Counter({each: count for each, count in multiset(self.old, "bob").items() if each[1] not in refused})
        self.rejects = multiset(self.old, "bob").total() - self.due.total()
        self.new.fail = lambda _: ServerBug("internal error") if self.faults.now(0.02) else None
        self.old.hook = self.new.hook = self.event
        self.at = 0
        self.then: Callable[[], None] | None = None

    def destination(self, endpoint: Endpoint) -> Destination:
        return DyingDestination(self.new, endpoint.user, self.faults)

    async def event(self, event: Event) -> None:
        self.at -= 1
        if self.at == 0 and self.then is not None:
            self.then()
        for _ in range(self.chance.randrange(3)):
            await checkpoint()
        if event.verb in ("messages", "select", "open_source") and self.faults.now(0.3):
            failures: list[AimportError] = [ConnectionLost("cut"), Unavailable("later")]
            if event.verb == "messages":
                failures += [MailboxError("the mailbox cannot be read"), MailboxChanged("UIDVALIDITY")]
            raise self.chance.choice(failures)

    async def once(self) -> UserResult | None:
        """One run, that may be stopped, cancelled or killed; None: it left no result."""
        run = self.run()
        journal = self.journal
        assert isinstance(journal, ForgetfulJournal)
        journal.killed = False
        result: UserResult | None = None
        with anyio.CancelScope() as scope:

            def kill() -> None:
                journal.forget()
                scope.cancel()

            def stop() -> None:
                run.stopping = True

            self.at = self.chance.randrange(1, 150) if self.faults.left else 0
            self.then = self.chance.choice([None, kill, stop, scope.cancel])
            self.new.quota_octets = self.chance.choice([0, 0, 2000]) if self.faults.left else 0
            if self.faults.left:
                self.faults.left -= 1
            with suppress(JournalError):
                result = await self.import_("bob", run=run)
        if result is None and not journal.killed:
            [result] = journal.results()
        assert run.budget.free == self.limits.max_memory
        return result

    def check(self, result: UserResult | None) -> None:
        """What must hold after every run."""
        held = multiset(self.new, "bob")
        assert held <= self.due, f"twice, or refused: {held - self.due}"
        if result is None:
            return
        assert result.balanced, result
        assert not result.bug, result
        acknowledged = Counter(
            (entry.lane.destination, entry.fingerprint)
            for entry in self.journal.entries("bob")
            if isinstance(entry.outcome, Appended) and entry.fingerprint is not None
        )
        stored = Counter((mailbox, fingerprint(body)) for mailbox, body, _ in held.elements())
        assert acknowledged <= stored, f"called stored, and not there: {acknowledged - stored}"
        assert acknowledged.total() == result.imported


async def run_seed(seed: int) -> None:
    world = Seed(seed)
    result: UserResult | None = None
    try:
        with anyio.fail_after(DEADLINE_S):
            for _ in range(100):
                over = not world.faults.left
                result = await world.once()
                world.check(result)
                if over and result is not None and result.status in ("done", "rejects"):
                    break
        assert result is not None
        assert result.imported == world.due.total(), result
        assert sum(result.rejected.values()) == world.rejects
        assert multiset(world.new, "bob") == world.due
    finally:
        await world.journal.close(finished=True)


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
async def test_whatever_goes_wrong_each_message_arrives_once(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "HOP_MESSAGES", 5)
    for seed in range(first, first + 50):
        try:
            await run_seed(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
