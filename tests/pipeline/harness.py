"""An import between two memory stores: what every test of the pipeline begins with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from aimport import octets
from aimport.account import Run
from aimport.interfaces import Destination, Source
from aimport.journal import Journal
from aimport.limits import Limits
from aimport.model import Endpoint, UserJob
from aimport.pipeline import import_user
from aimport.query.parse import parse_query
from aimport.results import UserResult
from aimport.stores.memory import MemoryDestination, MemorySource, MemoryStore

START = datetime(2020, 1, 1, tzinfo=UTC)
QUICK = Limits(retry_wait_s=0.001, fence_s=0.0)


@dataclass
class World:
    """A source, a destination, and the runs between them."""

    old: MemoryStore = field(default_factory=MemoryStore)
    new: MemoryStore = field(default_factory=MemoryStore)
    limits: Limits = QUICK
    query: Sequence[str] = ("ALL",)
    journal: Journal = field(default_factory=Journal.in_memory)

    def source(self, endpoint: Endpoint) -> Source:
        return MemorySource(self.new if endpoint.path == "new" else self.old, endpoint.user)

    def destination(self, endpoint: Endpoint) -> Destination:
        return MemoryDestination(self.new, endpoint.user)

    def fill(self, user: str, mailbox: str, bodies: Iterable[bytes], flags: Sequence[str] = ("\\Seen",)) -> None:
        """Puts messages into a source mailbox, a minute apart."""
        stored = self.old.mailbox(user, tuple(mailbox.split("/")))
        for number, body in enumerate(bodies, start=len(stored.messages)):
            stored.add(body, flags=flags, internal_date=START + timedelta(minutes=number))

    def run(self) -> Run:
        return Run(stores=self, journal=self.journal, query=parse_query(tuple(self.query)), limits=self.limits)

    async def import_(self, user: str, *, parent: str = "", run: Run | None = None) -> UserResult:
        return await import_user(job(user, parent), run or self.run())


def job(user: str, parent: str = "") -> UserJob:
    return UserJob(
        user=user,
        source=Endpoint(scheme="memory", path="old", user=user),
        destination=Endpoint(scheme="memory", path="new", user=user),
        parent=parent,
    )


def bodies(count: int, *, start: int = 0, octets_each: int = 60) -> list[bytes]:
    return [b"Subject: %d\r\n\r\n%s\r\n" % (number, b"x" * octets_each) for number in range(start, start + count)]


def holds(store: MemoryStore, user: str) -> dict[str, list[tuple[bytes, datetime, frozenset[str]]]]:
    """What an account holds, in order, in wire form."""
    return {
        "/".join(path): [
            (octets.wire_form(message.body), message.internal_date, message.flags) for message in mailbox.messages
        ]
        for path, mailbox in store.accounts.get(user, {}).items()
    }


def multiset(store: MemoryStore, user: str) -> Counter[tuple[str, bytes, datetime]]:
    return Counter(
        (mailbox, body, date) for mailbox, messages in holds(store, user).items() for body, date, _ in messages
    )
