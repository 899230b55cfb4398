"""A run of any number of messages from a simulated source to a simulated destination:
`python -m tests.pipeline.scale MESSAGES USERS`.

Each message is real to the pipeline, the journal and the audit; neither side keeps one. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from array import array
from collections.abc import AsyncGenerator, Container, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aimport.account import Run
from aimport.interfaces import Settled, SourceSession
from aimport.journal import Journal, RunArguments
from aimport.limits import Limits
from aimport.model import (
    Appended,
    Batch,
    ConnectionLimits,
    Endpoint,
    Mailbox,
    Message,
    Order,
    Position,
    Selection,
    Stored,
    Survey,
    Uid,
    UserJob,
    Wanted,
)
from aimport.query.facts import Fact, Facts
from aimport.query.parse import parse_query
from aimport.query.terms import ALL, Term
from aimport.runners.local import run_loop, run_plan
from aimport.stores.keys import UidKeys

DATE: Final = datetime(2020, 1, 1, tzinfo=UTC)
LIST: Final = 64
VALIDITY: Final = 1700000000
SOURCE_FIRST, DESTINATION_FIRST = 1, 1001
"""UIDs of the first message."""


def body_of(uid: int) -> bytes:
    return b"Subject: %d\r\n\r\nx\r\n" % uid


class Reader:
    """A mailbox of `count` messages, made when they are asked for."""

    limits = ConnectionLimits()

    def __init__(self, count: int) -> None:
        self._count = count

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        return [Mailbox(path=("INBOX",), separator="/")]

    async def select(self, mailbox: Mailbox, term: Term = ALL, order: Order = "stored") -> Selection:
        uids = array("Q", range(SOURCE_FIRST, SOURCE_FIRST + self._count))
        sizes = array("Q", (len(body_of(uid)) for uid in uids))
        return Selection(mailbox=mailbox, keys=UidKeys(VALIDITY, uids), sizes=sizes)

    def look(self, selection: Selection, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        raise AssertionError("nothing is selected by what it holds")

    async def messages(self, selection: Selection, *, skip: Container[str]) -> AsyncGenerator[Sequence[Message], None]:
        assert isinstance(selection.keys, UidKeys)
        hop: list[Message] = []
        for uid in selection.keys.uids:
            key = selection.keys.key(uid)
            if key not in skip:
                hop.append(Message(key=key, flags=frozenset(), internal_date=DATE, body=body_of(uid), wire=True))
            if len(hop) == LIST:
                yield hop
                hop = []
        if hop:
            yield hop


class Writer:
    """Takes everything, gives UIDs as they come, and remembers how many."""

    limits = ConnectionLimits()
    separator = "/"
    waits = folds_case = False

    def __init__(self) -> None:
        self._sizes = array("Q")

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        raise AssertionError("nobody asks what was there before")

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None: ...

    async def append(self, mailbox: Mailbox, batch: Batch) -> Settled:
        first = DESTINATION_FIRST + len(self._sizes)
        self._sizes.extend(each.size for each in batch.fingerprints)
        return Settled([Appended(key=each.key, uid=Uid(uid)) for uid, each in enumerate(batch.messages, start=first)])

    async def position(self, mailbox: Mailbox) -> Position:
        return Position(uidvalidity=VALIDITY, uidnext=DESTINATION_FIRST + len(self._sizes))

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        raise AssertionError("nothing is in doubt")

    async def survey(self, mailbox: Mailbox, since: Position, *, sizes: bool = True) -> Survey:
        count = len(self._sizes)
        keys = UidKeys(VALIDITY, array("Q", range(DESTINATION_FIRST, DESTINATION_FIRST + count)))
        dates = array("q", [int(DATE.timestamp())]) * count
        return Survey(uidvalidity=VALIDITY, keys=keys, sizes=self._sizes, dates=dates, at=keys.at)

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        return f"{uidvalidity}:{uid}"

    def reading(self, mailbox: Mailbox) -> AbstractAsyncContextManager[tuple[SourceSession, Mailbox]]:
        raise AssertionError("nothing is compared")


class Old:
    """The source of one user."""

    host = ""

    def __init__(self, count: int) -> None:
        self._count = count

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Reader]:
        yield Reader(self._count)


class New:
    """The destination of one user."""

    host = "new"
    wire = True

    def __init__(self, resident: list[int]) -> None:
        self._resident = resident

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Writer]:
        yield Writer()
        self._resident.append(_resident())


class Stores:
    """Both sides; `resident` tells the octets of memory at the end of each user."""

    def __init__(self, each: int) -> None:
        self._each = each
        self.resident: list[int] = []

    def source(self, endpoint: Endpoint) -> Old:
        return Old(self._each)

    def destination(self, endpoint: Endpoint) -> New:
        return New(self.resident)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """Not `getrusage`, which begins with what the parent had."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _jobs(users: int) -> Iterator[UserJob]:
    for number in range(users):
        name = f"u{number}"
        yield UserJob(
            user=name,
            source=Endpoint(scheme="memory", path="old", user=name),
            destination=Endpoint(scheme="imap", host="new", user=name),
        )


def main(messages: int, users: int, root: Path) -> dict[str, object]:
    """Imports `messages` messages of so many users; the journal lies in `root`."""
    stores = Stores(messages // users)

    async def work() -> dict[str, object]:
        journal = Journal.create(root, job="scale", arguments=RunArguments(argv=(), cwd="/"))
        assert journal.directory is not None
        limits = Limits(users=1, connections_per_user=1)
        run = Run(stores=stores, journal=journal, query=parse_query(("ALL",)), limits=limits)
        before = _resident()
        ending = await run_plan(_jobs(users), run)
        imported = sum(result.imported for result in journal.results())
        await journal.close(finished=True)
        if ending.failure is not None:
            raise ending.failure
        return {
            "imported": imported,
            "journal": sum(file.stat().st_size for file in journal.directory.iterdir()),
            "before": before,
            "resident": stores.resident,
            "peak": _peak(),
        }

    return run_loop(work)


if __name__ == "__main__":
    # In memory where that can be: each batch waits for the disk, and the disk is not what is looked at.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="aimport-scale-", dir=place) as directory:
        print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(directory) / "journal")))
