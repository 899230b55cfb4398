"""All of one seed: accounts, servers, limits, faults, crashes, and what must hold whatever happens.

After every run of a seed: what the journal calls stored is stored, nothing is stored that nobody sent, every report
adds up, no task, connection or octet of the budget is left over. At the end: the destination holds what an uncut
run would have left there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import pytest
from anyio._backends._asyncio import CancelScope as AsyncioScope
from anyio.lowlevel import checkpoint

from aimport import pipeline, seams
from aimport.account import Run
from aimport.errors import (
    AimportError,
    ConnectionLost,
    JournalError,
    MailboxChanged,
    MailboxError,
    ServerBug,
    Unavailable,
)
from aimport.imap.commands import date_time
from aimport.interfaces import Destination, Source
from aimport.journal import Journal
from aimport.limits import Limits
from aimport.model import Appended, Endpoint, Fingerprint, Secret, UserJob
from aimport.octets import fingerprint, reduced_pieces, whole, wire_form
from aimport.query.parse import parse_query
from aimport.runners.local import run_plan
from aimport.stores import memory
from aimport.stores.imap import ImapDestination, ImapSource, source
from aimport.stores.memory import Event, MemorySource, MemoryStore
from tests.sim.disk import Disk, SimulatedJournal, files_in_memory
from tests.sim.faults import Faults
from tests.sim.loop import Ordered, SimulatedLoop
from tests.sim.memory import DyingDestination, DyingSession
from tests.sim.network import Network
from tests.sim.server import ImapServer, seconds_of

START: Final = datetime(2020, 1, 1, tzinfo=UTC)
MOST_RUNS: Final = 80
OFFERS: Final = ("LITERAL+", "UIDPLUS", "MULTIAPPEND", "NAMESPACE", "UNSELECT", "ID")
MAILBOXES: Final = (("INBOX",), ("A",), ("B", "C"))

T = TypeVar("T")
Held = Counter[tuple[str, str, bytes, int]]
"""User, mailbox, canonical body, INTERNALDATE in seconds."""

ODD: Final = (
    b"Subject: nul\r\n\r\n\0\r\n",
    b"Subject: cr\r\n\r\nx\r\r\n",
    b"Subject: end\r\n\r\nx",
    b"Subject: \xe4\r\n\r\nx\r\n",
)
"""What some servers do not keep as it is."""


@lru_cache(maxsize=1024)
def canonical(body: bytes) -> bytes:
    """What is left of a body by all that servers do to it."""
    return b"".join(reduced_pieces((wire_form(body),)))


class World:
    """The stores of a seed, the process that imports, and the checks."""

    def __init__(self, seed: int, base: Path, *, told: bool) -> None:
        self.chance = chance = random.Random(seed)
        self.faults = faults = Faults(chance)
        self.network = Network(faults)
        self.disk = Disk(base, faults)
        self.loop = SimulatedLoop(chance, self.network, shuffled=chance.random() < 0.7)
        faults.begin(self.loop.time, told=told)
        self.old, self.new = MemoryStore(), MemoryStore()
        self.from_imap, self.to_imap = chance.choice(((False, True), (False, True), (True, False), (False, False)))
        self.old_server, self.new_server = self.server("old"), self.server("new")
        self.limits = Limits(
            users=chance.choice((1, 2)),
            connections_per_user=chance.randrange(1, 3),
            connections_per_host=chance.choice((1, 2, 50)),
            max_memory=chance.choice((10, 500, 5_000, 1 << 20)),
            batch_messages=chance.randrange(1, 9),
            batch_octets=chance.choice((100, 500, 1 << 20)),
            batches_ahead=chance.randrange(1, 5),
            queue_lists=chance.randrange(1, 5),
        )
        self.users = [f"u{number}" for number in range(chance.choice((1, 1, 2)))]
        self.foreign: Held = Counter()
        """What others delivered."""
        self.vanished: Held = Counter()
        """What left the source meanwhile."""
        self.sent: Held = Counter()
        """All that ever was at the source, and may be at the destination."""
        self.refused: frozenset[bytes] = frozenset()
        """What is never taken, in canonical form."""
        self.known: dict[Fingerprint, bytes] = {}
        """The canonical form of all that may be sent."""
        self.echoes = chance.random() < 0.1
        """Others deliver octets that are also at the source."""
        self.busy = chance.choice((0.0, 0.0, 0.05, 0.3))
        """How often others do something between two commands."""
        self.fill()
        self.journal: SimulatedJournal | None = None
        self.sessions: list[DyingSession] = []
        self.scope: anyio.CancelScope | None = None
        self.killed = False

    def server(self, name: str) -> ImapServer:
        chance = self.chance
        server = ImapServer(
            faults=self.faults,
            offered=frozenset({"IMAP4rev1", *(offer for offer in OFFERS if chance.random() < 0.6)}),
            separator=chance.choice("//."),
            most_inside=chance.choice((0, 0, 0, 1, 2)),
            slow=chance.random() < 0.3,
            rebuilds=chance.choice((0.0, 0.0, 0.8)),
        )
        if "NAMESPACE" in server.offered and chance.random() < 0.3:
            server.prefix = f"INBOX{server.separator}"
        self.network.servers[name] = server
        return server

    def fill(self) -> None:
        """Fills the source; says what the destination refuses, alters and forgets."""
        chance = self.chance
        pool = [b"Subject: %d\r\n\r\n%s\r\n" % (number, b"x" * 30) for number in range(chance.choice((3, 60)))]
        if chance.random() < 0.3:
            pool += ODD
        minutes = count()
        for user in self.users:
            self.old.accounts[user] = {}
            for path in MAILBOXES[: chance.randrange(1, 4)]:
                for _ in range(chance.choice((0, 1, 4, 8, 20))):
                    body, date = chance.choice(pool), START + timedelta(minutes=next(minutes))
                    if self.from_imap:
                        words = date_time(date).decode("ascii")
                        self.old_server.box(user, path).add(body, "\\Seen", words)
                    else:
                        self.old.mailbox(user, path).add(body, flags=("\\Seen",), internal_date=date)
                    self.sent[user, "/".join(path), canonical(body), int(date.timestamp())] += 1
        refused = frozenset(chance.sample(pool, chance.choice((0, 0, 1, len(pool) // 3))))
        self.refused = frozenset(map(canonical, refused))
        self.known = {fingerprint(body): canonical(body) for body in pool}
        self.new_server.refused = refused
        self.new_server.alters = chance.random() < 0.5
        self.new_server.forgets = chance.random() < 0.05
        self.new_server.before = self.others
        self.old_server.before = self.expunges
        self.old.hook = self.new.hook = self.event
        self.new.refuse = lambda message: ("", "no") if wire_form(whole(message.body)) in refused else None
        self.new.atomic = chance.random() < 0.6
        self.new.waits = chance.random() < 0.3
        self.new.fail = lambda _: ServerBug("internal error") if self.faults.now(0.02) else None

    # The stores.

    def source(self, endpoint: Endpoint) -> Source:
        return ImapSource(endpoint) if endpoint.scheme == "imap" else MemorySource(self.old, endpoint.user)

    def destination(self, endpoint: Endpoint) -> Destination:
        if endpoint.scheme == "imap":
            return ImapDestination(endpoint)
        return DyingDestination(self.new, endpoint.user, self.faults, self.sessions)

    def jobs(self) -> Iterator[UserJob]:
        for user in self.users:
            yield UserJob(
                user=user,
                source=_endpoint("old", user, imap=self.from_imap),
                destination=_endpoint("new", user, imap=self.to_imap),
            )

    async def event(self, event: Event) -> None:
        """What a store in memory does on its way."""
        for _ in range(self.chance.randrange(3)):
            await checkpoint()
        if self.killed:
            raise ConnectionLost("the process was killed")
        self.faults.note(event.verb, event.account, event.mailbox, event.count)
        if event.verb in ("messages", "select", "open_source") and self.faults.now(0.3):
            failures: list[AimportError] = [ConnectionLost("cut"), Unavailable("later")]
            if event.verb == "messages":
                failures += [MailboxError("the mailbox cannot be read"), MailboxChanged("UIDVALIDITY")]
            raise self.chance.choice(failures)

    def others(self, _: str) -> None:
        """Other clients of the destination deliver, and administrators rebuild mailboxes."""
        chance = self.chance
        if not self.busy or chance.random() >= self.busy:
            return
        user = chance.choice(self.users)
        path = chance.choice(MAILBOXES)
        box = self.new_server.accounts.get(user, {}).get(self.new_server.name(path))
        if box is None:
            return
        if chance.random() < 0.3:
            self.faults.note("renumbered", user, path)
            self.new_server.renumber(box)
            return
        body = b"Subject: other\r\n\r\n%d\r\n" % chance.randrange(3)
        if self.echoes and self.sent:
            body = chance.choice(sorted(self.sent))[2].replace(b"\n", b"\r\n")
        date = START - timedelta(minutes=1 + chance.randrange(1000))
        box.add(body, "", date_time(date).decode("ascii"))
        self.foreign[user, "/".join(path), canonical(body), int(date.timestamp())] += 1
        self.faults.note("delivered", user, path)

    def expunges(self, name: str) -> None:
        """Another client of the source deletes a message."""
        chance = self.chance
        if self.busy and name.startswith("UID") and chance.random() < self.busy * 0.2:
            user = chance.choice(self.users)
            boxes = [(name, box) for name, box in self.old_server.accounts.get(user, {}).items() if box.messages]
            if boxes:
                name, box = chance.choice(boxes)
                gone = box.messages.pop(chance.randrange(len(box.messages)))
                self.vanished[user, self.old_server.path(name), canonical(gone.body), seconds_of(gone)] += 1
                self.faults.note("expunged", user, name)

    # One run.

    def kill(self) -> None:
        """kill -9 of the process that imports, or of its machine."""
        if self.killed or self.journal is None:
            return
        self.killed = True
        power = self.chance.random() < 0.5
        self.faults.note("killed", power)
        self.journal.drop(power=power)
        self.network.kill_client()
        for session in list(self.sessions):
            session.die()
        if self.scope is not None:
            self.scope.cancel()

    def stop(self) -> None:
        self.faults.note("SIGTERM")
        self.loop.signal(signal.SIGTERM)

    async def once(self) -> bool:
        """One process of the run, that may be stopped or killed. True: nothing is left to do."""
        was_killed, self.killed = self.killed, False
        self.scope = scope = anyio.CancelScope()
        calm = not self.faults.left
        self.faults.held_back = True
        self.journal = journal = self.disk.begin(self.kill)
        try:
            if was_killed:
                self.check_acknowledged(journal)
            self.choose_end()
            self.faults.held_back = False
            run = Run(stores=self, journal=journal, query=parse_query(("ALL",)), limits=self.limits)
            with scope:
                await run_plan(self.jobs(), run)
            self.loop.then = None
            if self.killed:
                return False
            self.faults.held_back = True
            self.check_left(run)
            finished = self.check_results(journal, calm) and calm
        finally:
            if self.killed:
                journal.discard()
            else:
                try:
                    await journal.close(finished=False)
                except JournalError:
                    if calm:
                        raise
        self.faults.note("ended", finished)
        return finished

    def choose_end(self) -> None:
        """What happens to the process, and at which step of it."""
        if not self.faults.left:
            return
        self.faults.left -= 1
        ends: list[Callable[[], None] | None] = [None, self.kill, self.kill, self.stop, self.stop_twice]
        self.loop.then = self.chance.choice(ends)
        self.loop.at_step = self.loop.steps + int(2 ** self.chance.uniform(2, 12))

    def stop_twice(self) -> None:
        self.stop()
        self.stop()

    # What must hold.

    def holds(self) -> Held:
        held: Held = Counter()
        for user in self.users:
            if self.to_imap:
                held.update((user, path, canonical(body), date) for path, body, date in self.new_server.holds(user))
                continue
            for levels, mailbox in self.new.accounts.get(user, {}).items():
                for message in mailbox.messages:
                    date = int(message.internal_date.timestamp())
                    held[user, "/".join(levels), canonical(message.body), date] += 1
        return held

    def forgotten(self) -> Held:
        """What the destination has acknowledged and not kept."""
        server = self.new_server
        return Counter(
            (user, server.path(name), canonical(message.body), seconds_of(message))
            for user, name, message in server.forgotten
        )

    def check_left(self, run: Run) -> None:
        assert asyncio.all_tasks() == {asyncio.current_task()}, f"tasks are left: {asyncio.all_tasks()}"
        assert not self.network.open, "connections are left"
        assert run.budget.free == self.limits.max_memory, "octets of the budget are left"
        assert not run.hosts.used, "places at hosts are left"
        assert not self.loop.unhandled, self.loop.unhandled

    def check_acknowledged(self, journal: Journal) -> Counter[str]:
        """What the journal calls stored is stored, and nothing is there that nobody sent; how much of each user is."""
        there = undated(self.holds())
        strange = there - undated(self.sent + self.foreign)
        assert not strange, f"stored twice, or never sent: {strange}"
        acknowledged: Counter[tuple[str, str, bytes]] = Counter()
        for user in self.users:
            for entry in journal.entries(user):
                if isinstance(entry.outcome, Appended):
                    assert entry.fingerprint is not None
                    mailbox = entry.lane.destination
                    mailbox = self.new_server.path(mailbox) if self.to_imap else mailbox
                    acknowledged[user, mailbox, self.known[entry.fingerprint]] += 1
        lost = acknowledged - there - undated(self.forgotten())
        assert not lost, f"called stored, and not there: {lost}"
        by_user: Counter[str] = Counter()
        for (user, _, _), number in acknowledged.items():
            by_user[user] += number
        return by_user

    def check_results(self, journal: SimulatedJournal, calm: bool) -> bool:
        """Every report adds up; whether all users are done."""
        if journal.failed:
            return False
        acknowledged = self.check_acknowledged(journal)
        results = {result.user: result for result in journal.results()}
        finished = True
        for user in self.users:
            result = results.get(user)
            if result is None:
                finished = False
                continue
            assert result.balanced, result
            assert not result.bug, result
            assert result.imported == acknowledged[user] or not result.found, (result, acknowledged)
            refused = sum(n for (whose, _, body, _), n in self.sent.items() if whose == user and body in self.refused)
            rejected = sum(result.rejected.values())
            if result.status not in ("done", "rejects") or rejected > refused:
                finished = False
                continue
            assert result.found == result.imported + rejected + sum(result.skipped.values())
        return finished

    def check_end(self) -> None:
        """The destination holds what an uncut run would have left there."""
        due: Held = Counter({held: n for held, n in self.sent.items() if held[2] not in self.refused})
        held = self.holds()
        there = held + self.forgotten()
        if self.echoes:  # a copy that somebody else delivered may have been taken for ours
            missing = undated(due - self.vanished) - undated(there)
        else:
            missing = undated(due - self.vanished - there)
        assert not missing, f"lost: {missing}"
        more = undated(held) - undated(due + self.foreign)
        assert not more, f"twice: {more}"

    async def main(self) -> None:
        for _ in range(MOST_RUNS):
            if await self.once():
                break
            await asyncio.sleep(self.chance.choice((0.0, 0.0, 1.0, 100.0)))
        else:
            raise AssertionError(f"not done after {MOST_RUNS} runs")
        await asyncio.sleep(100.0)  # what servers still had to do
        self.check_end()


def undated(held: Held) -> Counter[tuple[str, str, bytes]]:
    counted: Counter[tuple[str, str, bytes]] = Counter()
    for (user, mailbox, body, _), number in held.items():
        counted[user, mailbox, body] += number
    return counted


def _endpoint(host: str, user: str, *, imap: bool) -> Endpoint:
    if not imap:
        return Endpoint(scheme="memory", path=host, user=user)
    return Endpoint(scheme="imap", host=host, user=user, secret=Secret(kind="literal", text="secret"), security="none")


async def _inline(call: Callable[..., T], *args: Any, **_: Any) -> T:
    """What a thread would do, after a while."""
    await checkpoint()
    return call(*args)


def _ordered_scope(init: Callable[..., None]) -> Callable[..., None]:
    """Cancels the tasks of a scope in the order they came."""

    def ordered(scope: Any, *args: Any, **options: Any) -> None:
        init(scope, *args, **options)
        scope._tasks, scope._child_scopes = Ordered(), Ordered()

    return ordered


@contextmanager
def simulated(*, told: bool = False) -> Iterator[Path]:
    """Threads, files and the log as a simulation has them; yields where its files lie. `told`: the log is shown."""
    state = random.getstate()
    level = logging.root.manager.disable
    if told:
        logging.basicConfig(level=logging.DEBUG, format="    %(message)s", stream=sys.stdout)
    else:
        logging.disable(logging.ERROR)
    with files_in_memory() as base, pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio.to_thread, "run_sync", _inline)
        patch.setattr(memory, "HOP_MESSAGES", 5)
        patch.setattr(source, "WINDOW_MESSAGES", 3)
        patch.setattr(pipeline, "MESSAGES_AN_OUTLET", 3)
        patch.setattr(AsyncioScope, "__init__", _ordered_scope(AsyncioScope.__init__))
        try:
            yield base
        finally:
            random.setstate(state)
            logging.disable(level)


def run_seed(seed: int, base: Path, *, told: bool = False) -> str:
    """All of one seed; raises when something does not hold. Returns a digest of all that happened."""
    random.seed(seed)
    place = base / str(seed)
    place.mkdir(mode=0o700)
    world = World(seed, place, told=told)
    tokens = count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seams, "monotonic", world.loop.time)
        patch.setattr(seams, "now_us", lambda: int((START.timestamp() + world.loop.time()) * 1_000_000))
        patch.setattr(seams, "token", lambda octets: f"{next(tokens):0{2 * octets}x}")
        try:
            world.loop.run_until_complete(world.main())
        except BaseException as error:
            error.add_note(f"repeat it with: python -m tests.sim -v {seed}")
            raise
        finally:
            world.loop.close()
            shutil.rmtree(place)
    return hashlib.sha256(repr(world.faults.trace).encode()).hexdigest()
