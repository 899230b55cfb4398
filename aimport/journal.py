"""What is done: one SQLite file a run, written by one thread, durable before a message leaves.

    lanes ──▶ queue ──▶ writer thread ──▶ one transaction for all that wait ──▶ journal.sqlite
                                                                          └──▶ rejects.jsonl

    DIR/<run>/  journal.sqlite  the truth: users, claims, and a log of records
                mark            the last durable intent, so that a lost end is noticed
                lock            held (flock) while the run's process lives; says who it is
                rejects.jsonl   one line a rejected message
                damages.jsonl   one line a damage of a source that mail was taken from all the same
                stages.jsonl    one line a process that worked: where its time went
                run.json        what `runs` shows; only its `finished` is nowhere else
                shards/NNNNNN/  of a run with several processes: a journal of its own for some users, written by the
                                one process that holds its lock; `places` of the run's own journal says which is whose

The log is append-only. A record is a batch, never a message: INTENT (keys, sizes, dates,
digests) is durable when `intent` returns; OUTCOME (UIDs, rejects) is written behind, since a lost
one only costs a reconcile. Records are numbered without gaps and sealed each: SQLite checks
its write-ahead log, not its pages. Knows no server and no mailbox format.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import fcntl
import itertools
import json
import logging
import math
import os
import queue
import re
import shutil
import socket
import sqlite3
import stat
import threading
import time
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import anyio.to_thread
import msgspec

from aimport import seams
from aimport.errors import AimportError, JournalBusy, JournalDamaged, JournalError, RunHeld, UsageError, UserError
from aimport.keyset import KeySet, KnownKeys, Numbers
from aimport.model import (
    ALIKE_KINDS,
    Alike,
    Appended,
    Batch,
    Fingerprint,
    Message,
    MessageKey,
    NotStored,
    Outcome,
    Position,
    Present,
    Rejected,
    Repaired,
    Uid,
    Wanted,
)
from aimport.results import UserResult

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
_Row = tuple[int, int, int, int, int, bytes]  # seq, kind, user, lane, number, data

SCHEMA: Final = 3
PLACES: Final = (
    "CREATE TABLE places (destination BLOB PRIMARY KEY, shard INTEGER NOT NULL, seal INTEGER NOT NULL) WITHOUT ROWID"
)
MIGRATIONS: Final[Mapping[int, Sequence[str]]] = {1: (), 2: (PLACES,)}
"""Statements that make the next format of each older one. 2: records AMENDED and PRESENT. 3: shards."""
APPLICATION: Final = 0x61696D70  # "aimp"
DDL: Final = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY, data BLOB NOT NULL, seal INTEGER NOT NULL)",
    "CREATE TABLE users (id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, destination BLOB NOT NULL,"
    " seal INTEGER NOT NULL)",
    "CREATE TABLE claims (destination BLOB PRIMARY KEY, seal INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE log (seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, user INTEGER NOT NULL, lane INTEGER NOT NULL,"
    " number INTEGER NOT NULL, data BLOB NOT NULL, seal INTEGER NOT NULL)",
    "CREATE INDEX log_by_user ON log (user)",
    PLACES,
)
OPENED, LANE, MOVED, INTENT, OUTCOME, REJECT, RESULT, AMENDED, PRESENT = range(1, 10)
ENDS: Final = (OUTCOME, REJECT, RESULT, PRESENT)
"""After a message came to its end, an older result of its user tells too little."""

# What an OUTCOME holds for a message beside its UID (which is never below 1).
NO_UID, REFUSED, ABSENT = 0, -1, -2

DATABASE: Final = "journal.sqlite"
REJECTS: Final = "rejects.jsonl"
REPAIRS: Final = "repairs.jsonl"
DAMAGES: Final = "damages.jsonl"
STAGES: Final = "stages.jsonl"
ESCROW: Final = "escrow"
INFO: Final = "run.json"
LOCK: Final = "lock"
MARK: Final = "mark"
SHARDS: Final = "shards"
LOOK_S: Final = 1.0
"""How long who only looks waits for a shard that its worker has for itself alone; there may be many."""
HERE: Final = 0
"""The shard that is none: the run's own journal."""
OPEN_SHARDS: Final = 16  # arbitrary: three files each
COLUMNS: Final = "seq, kind, user, lane, number, data, seal"
SHARD_PAGE: Final = 4096  # an empty shard takes 32 KiB, with pages as below 128
PAGE: Final = 16384  # 54-87 octets a message in batches of 64, against 65-128 with 4096; a fifth fewer commits/s
RUN_NAME: Final = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
GROUP_S: Final = 0.002
"""How long a commit waits for others to join: batches under way hide it, and each sync is one that the disk can
give to somebody else (a mail server on the same disk, say)."""
BEHIND_S: Final = 0.1
"""How long outcomes may wait for a commit: to lose one costs a reconcile, never mail."""
TEXT_LIMIT: Final = 1000  # characters of a server's words kept with a reject
CHUNK: Final = 500  # rows or names a statement takes at once; SQLite allows 999 parameters everywhere
REPAIR: Final = (
    "restore this directory from a backup, or move it away and begin a new run with"
    " `aimport import --again --skip-existing`; messages already imported stay where they are"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments:
    """How a run was called, for `resume`. Secrets are references (`env:`, `file:`, `cmd:`) here."""

    argv: tuple[str, ...]
    cwd: str
    settings: tuple[tuple[str, str], ...] = ()
    moment: int = 0
    """What relative dates of the query count from, seconds since 1970; 0: when the run began."""


NO_ARGUMENTS: Final = RunArguments(argv=(), cwd="")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run as `aimport runs` lists it. `live` says who works on it now, "" when nobody does."""

    run: str
    directory: Path
    job: str
    created: str
    """When it began, ISO 8601 UTC."""
    finished: bool
    arguments: RunArguments
    counts: Mapping[str, int]
    live: str = ""
    damage: str = ""
    """Why it cannot be read; the rest is then a guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBatch:
    """An intent without outcome: its messages may be stored wholly, in part or not at all."""

    number: int
    created_us: int
    keys: tuple[MessageKey, ...]
    fingerprints: tuple[Fingerprint, ...]
    dates: tuple[int, ...]
    """Internal dates, whole seconds since 1970."""
    repaired: Repaired | None = None
    """How its only message was changed before it was sent."""

    def wanted(self, run: str, index: int) -> Wanted:
        """One of its messages, to be looked for."""
        return Wanted(
            run=run,
            number=self.number,
            created_us=self.created_us,
            index=index,
            fingerprint=self.fingerprints[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What was stored of one batch, and when it was handed over: microseconds since 1970."""

    created_us: int
    messages: int
    octets: int
    """In wire form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A source mailbox and where it went. UIDs of the journal are of `position.uidvalidity`."""

    number: int
    source: str
    destination: str
    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message of the journal with an end, for `verify` and manifests; `outcome` None: in doubt.

    `wanted` is None for what never came as far as a batch: unreadable, vanished, present.
    """

    user: str
    lane: Lane
    key: MessageKey
    wanted: Wanted | None
    date: int | None
    outcome: Appended | Rejected | Present | None

    @property
    def sent(self) -> Wanted:
        """`wanted` of one that was in a batch, as every committed one was."""
        assert self.wanted is not None, "it never came as far as a batch"
        return self.wanted

    @property
    def fingerprint(self) -> Fingerprint | None:
        return None if self.wanted is None else self.wanted.fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """What an audit found of a message that the destination had acknowledged."""

    number: int
    index: int
    key: MessageKey
    size: int
    was: Uid | None
    """The UID that it had been given."""
    uid: Uid | None
    lost: bool = False
    """It is not there any more, and is sent again."""
    doubled: bool = False
    """It is there, and so is one more that may be of the same batch."""


def floor_of(position: Position, lowest: int | None) -> Position:
    """Where to look for messages of a lane that began at `position`: there, or everywhere when `lowest`, a UID of one,
    is below it.

    Then the server said UIDNEXT too high, or gave the UID of an equal message that was there before (Gmail).
    """
    truthful = lowest is None or position.uidnext <= lowest
    return position if truthful else Position(uidvalidity=position.uidvalidity, uidnext=1)


class LaneLog:
    """What the journal knows about one source mailbox and its destination. One writer at a time."""

    def __init__(
        self, journal: Journal, user: int, name: str, lane: int, source: str, destination: str, position: Position
    ) -> None:
        self._journal = journal
        self._user = user
        self._name = name
        self._id = lane
        self.source = source
        self.destination = destination
        self.position = position
        """Where the destination mailbox stood before the lane's first message."""
        self.committed = KnownKeys()
        self.octets = 0
        """Of committed messages."""
        self.rejected: dict[str, Rejected] = {}
        self.dropped: dict[str, tuple[str, ...]] = {}
        """Flags that the destination could not hold, of committed messages."""
        self.repaired: set[str] = set()
        """Committed keys of which other octets than the source's were stored."""
        self.uids = Numbers()
        """UIDs of committed messages since the last `move`; one that the server gave twice is there twice."""
        self.settled = False
        """Batches of it were in doubt, or may have been before the run was resumed."""
        self.present = KeySet()
        """Keys of messages that the destination had before (`--skip-existing`)."""
        self.doubtful: set[str] = set()
        """Keys sent again although they may be stored: what of it is committed may be there twice."""
        self._open: dict[int, OpenBatch] = {}

    @property
    def floor(self) -> Position:
        """Where to look for messages of this lane."""
        return floor_of(self.position, self.uids.lowest)

    @property
    def open_batches(self) -> list[OpenBatch]:
        """Intents without outcome, oldest first: of an earlier process or of a session that broke."""
        return [self._open[number] for number in sorted(self._open)]

    @property
    def maybe_duplicate(self) -> int:
        return sum(1 for key in self.doubtful if key in self.committed)

    def is_settled(self, key: str) -> bool:
        return key in self.committed or key in self.rejected or key in self.present

    @property
    def ended(self) -> int:
        """How many messages were committed, rejected or found present."""
        present = sum(1 for key in self.present if key not in self.committed)
        rejected = sum(1 for key in self.rejected if key not in self.committed and key not in self.present)
        return len(self.committed) + present + rejected

    async def intent(
        self, messages: Sequence[Message], fingerprints: Sequence[Fingerprint], *, repaired: Repaired | None = None
    ) -> Batch:
        """A batch of these messages. Durable when it returns: only then may an octet leave.

        `repaired` stands here, beside a batch of one, so that a change is not forgotten with the answer to it.
        """
        journal = self._journal
        number, created_us = journal._next_batch(len(messages))
        opened = OpenBatch(
            number=number,
            created_us=created_us,
            keys=tuple(message.key for message in messages),
            fingerprints=tuple(fingerprints),
            dates=tuple(math.floor(message.internal_date.timestamp()) for message in messages),
            repaired=repaired,
        )
        if repaired is not None and len(messages) != 1:
            raise ValueError("a repaired message is sent alone")
        if len(opened.fingerprints) != len(opened.keys):
            raise ValueError("fingerprints do not stand beside messages")
        self._open[number] = opened
        seq = journal._next_seq()
        # Packed by the writer thread: on the loop each compression, which lets go of the interpreter
        # lock, waited 0.4-1 ms to get it back from the threads that read files (profiled).
        await journal._ask(
            lambda db: _insert(db, seq, INTENT, self._user, self._id, number, _pack_intent(opened)), mark=seq
        )
        return Batch(
            run=journal.run,
            number=number,
            created_us=created_us,
            messages=tuple(messages),
            fingerprints=opened.fingerprints,
        )

    async def commit(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Records what became of each message; what was not stored may be sent again.

        Written behind, a failure surfaces at the next call.
        """
        opened = self._open[batch.number]
        if [outcome.key for outcome in outcomes] != list(opened.keys):
            raise ValueError("outcomes do not stand beside messages")
        ended = [None if isinstance(outcome, NotStored) else outcome for outcome in outcomes]
        lines = self._reject_lines(zip(opened.fingerprints, ended, strict=True))
        repairs = self._repair_lines(opened, ended)
        self._journal._queue_row(OUTCOME, self._user, self._id, batch.number, _pack_outcomes(ended), lines, repairs)
        self._close(batch.number, ended, ())

    async def settle(self, number: int, found: Mapping[int, Uid | None], *, doubtful: Collection[int] = ()) -> None:
        """Ends a batch in doubt: indexes in `found` are committed, the others are to be sent again. Durable.

        `doubtful` are indexes to be sent again of which nobody can say whether they are stored.
        """
        self.settled = True
        opened = self._open[number]
        uids = [(found[index] or NO_UID) if index in found else ABSENT for index in range(len(opened.keys))]
        repaired = [] if opened.repaired is None or 0 not in found else [_packed_repair(0, opened.repaired)]
        blob = _pack_uids(uids, doubtful=sorted(doubtful), repaired=repaired)
        ended, again = _unpack_outcomes(opened.keys, blob)
        repairs = self._repair_lines(opened, ended)
        # Closed first: the writer thread writes what was handed to it, also for a caller that is cancelled here, and a
        # batch has one outcome.
        self._close(number, ended, again)
        await self._journal._write(OUTCOME, self._user, self._id, number, blob, repairs)

    async def reject(self, rejections: Sequence[Rejected]) -> None:
        """Records messages that never came as far as a batch: unreadable, vanished. Written behind."""
        lines = self._reject_lines((None, rejection) for rejection in rejections)
        blob = _json([[item.key, item.code, item.text[:TEXT_LIMIT]] for item in rejections])
        self._journal._queue_row(REJECT, self._user, self._id, 0, blob, lines)
        self._add_rejected(rejections)

    async def keep_present(self, found: Sequence[Present]) -> None:
        """Records messages that are not sent because the destination has them. Written behind."""
        blob = _json([[each.key, each.held] for each in found])
        self._journal._queue_row(PRESENT, self._user, self._id, 0, blob)
        self._add_present(found)

    async def amend(self, amendments: Sequence[Amendment]) -> None:
        """Records what an audit found out. Durable: what is lost is sent again by an intent of its own."""
        self._add_amended(amendments)
        await self._journal._write(AMENDED, self._user, self._id, 0, _pack_amendments(amendments))

    async def escrow(self, original: Fingerprint, body: bytes) -> None:
        """Keeps the octets of a message that will be changed; durable when it returns. A run in memory keeps none."""
        directory = self._journal.directory
        if directory is not None:
            home = _run_directory(directory) if self._journal.is_shard else directory
            name = f"{original.digest.hex()}.eml"
            await anyio.to_thread.run_sync(_keep, home / ESCROW, name, body, directory.name)

    async def move(self, position: Position) -> None:
        """The destination mailbox changed its UIDVALIDITY: UIDs known so far mean nothing now. Durable."""
        await self._journal._write(MOVED, self._user, self._id, 0, _json([position.uidvalidity, position.uidnext]))
        self._move(position)

    def _move(self, position: Position) -> None:
        self.position = position
        self.uids.clear()

    def entries(self) -> Iterator[Entry]:
        """What of this lane has an end, in batch order. Reads the file."""
        return self._journal.entries(self._name, self._id)

    def claimed(self, wanted: Collection[Fingerprint]) -> tuple[Collection[int], Counter[Fingerprint]]:
        """What at the destination belongs to committed and present messages, and is not to be matched again.

        Their UIDs since the last `move`; of those whose UID is not known, or no longer valid, the fingerprints, as far
        as they may be taken for one of `wanted`. Reads the file.
        """
        uids = Numbers()
        others: Counter[Fingerprint] = Counter()
        for entry in self.entries():
            if isinstance(entry.outcome, Present):
                validity, _, uid = entry.outcome.held.partition(":")
                if validity == str(self.position.uidvalidity) and uid.isdecimal():
                    uids.add(Uid(int(uid)))
            elif isinstance(entry.outcome, Appended) and entry.outcome.uid is not None:
                uids.add(entry.outcome.uid)
            elif isinstance(entry.outcome, Appended) and entry.fingerprint is not None:
                if entry.fingerprint in wanted or entry.fingerprint.alike is not None:
                    others[entry.fingerprint] += 1
        return uids, others

    def _reject_lines(self, ended: Iterable[tuple[Fingerprint | None, Appended | Rejected | None]]) -> list[bytes]:
        """Lines for `rejects.jsonl`; a message rejected again in the same words has its line already."""
        return [
            _reject_line(self._name, self.source, outcome, fingerprint.size if fingerprint else None)
            for fingerprint, outcome in ended
            if isinstance(outcome, Rejected) and self.rejected.get(outcome.key) != _cut(outcome)
        ]

    def _repair_lines(self, opened: OpenBatch, ended: Iterable[Appended | Rejected | None]) -> list[bytes]:
        """Lines for `repairs.jsonl`."""
        return [
            _repair_line(self._name, self.source, outcome, outcome.repaired, fingerprint)
            for fingerprint, outcome in zip(opened.fingerprints, ended, strict=True)
            if isinstance(outcome, Appended) and outcome.repaired is not None
        ]

    def _add_rejected(self, rejections: Iterable[Rejected]) -> None:
        for rejection in rejections:
            self.rejected[rejection.key] = _cut(rejection)

    def _add_present(self, found: Iterable[Present]) -> None:
        for each in found:
            self.present.add(each.key)
            if self.rejected.pop(each.key, None) is not None:
                self._journal._stale_rejects = True

    def _add_amended(self, amendments: Iterable[Amendment]) -> None:
        for each in amendments:
            if each.was is not None and each.was in self.uids:
                self.uids.remove(each.was)
            if each.uid is not None:
                self.uids.add(each.uid)
            if each.lost:
                self.committed.remove(each.key)
                self.octets -= each.size
                self.dropped.pop(each.key, None)
                self.repaired.discard(each.key)
            if each.doubled:
                self.doubtful.add(each.key)

    def _end(
        self,
        keys: Sequence[MessageKey],
        sizes: Sequence[int],
        outcomes: Sequence[Appended | Rejected | None],
        doubtful: Collection[int] = (),
    ) -> None:
        """Takes the outcome of a batch into memory."""
        self.doubtful.update(keys[index] for index in doubtful)
        for size, outcome in zip(sizes, outcomes, strict=True):
            if isinstance(outcome, Appended):
                if self.committed.add(outcome.key):
                    self.octets += size
                if outcome.uid is not None:
                    self.uids.add(outcome.uid)
                if outcome.dropped:
                    self.dropped[outcome.key] = outcome.dropped
                if outcome.repaired is not None:
                    self.repaired.add(outcome.key)
                if self.rejected.pop(outcome.key, None) is not None:
                    self._journal._stale_rejects = True
            elif outcome is not None:
                self._add_rejected([outcome])

    def _close(self, number: int, outcomes: Sequence[Appended | Rejected | None], doubtful: Collection[int]) -> None:
        batch = self._open.pop(number)
        self._end(batch.keys, [fingerprint.size for fingerprint in batch.fingerprints], outcomes, doubtful)


class UserLog:
    """What the journal knows about one user; loaded when the user begins."""

    def __init__(self, journal: Journal, user: int, name: str) -> None:
        self._journal = journal
        self._id = user
        self._name = name
        self._lanes: dict[tuple[str, str], LaneLog] = {}
        self.result: UserResult | None = None
        """How the user ended in an earlier process of the run."""

    @property
    def lanes(self) -> Mapping[tuple[str, str], LaneLog]:
        """By source and destination mailbox name."""
        return self._lanes

    async def lane(self, source: str, destination: str, position: Position) -> LaneLog:
        """The lane of these names; a new one is recorded with `position`, durable before its first intent."""
        lane = self._lanes.get((source, destination))
        if lane is None:
            blob = _json([source, destination, position.uidvalidity, position.uidnext])
            seq = self._journal._queue_row(LANE, self._id, 0, 0, blob)
            lane = LaneLog(self._journal, self._id, self._name, seq, source, destination, position)
            self._lanes[source, destination] = lane
        return lane

    def _load(self, rows: Iterable[_Row]) -> None:
        lanes: dict[int, LaneLog] = {}
        opened: dict[int, tuple[int, bytes]] = {}
        for seq, kind, _, at, number, data in rows:
            if kind == LANE:
                source, destination, uidvalidity, uidnext = json.loads(data)
                position = Position(uidvalidity=uidvalidity, uidnext=uidnext)
                lane = LaneLog(self._journal, self._id, self._name, seq, source, destination, position)
                lanes[seq] = self._lanes[source, destination] = lane
            elif kind == MOVED:
                uidvalidity, uidnext = json.loads(data)
                lanes[at]._move(Position(uidvalidity=uidvalidity, uidnext=uidnext))
            elif kind == INTENT:
                opened[number] = (at, data)
            elif kind == OUTCOME:
                keys, sizes = _unpack_keys(opened.pop(number)[1])
                lanes[at]._end(keys, sizes, *_unpack_outcomes(keys, data))
            elif kind == REJECT:
                lanes[at]._add_rejected(_unpack_rejects(data))
            elif kind == PRESENT:
                lanes[at]._add_present(_unpack_present(data))
            elif kind == AMENDED:
                lanes[at]._add_amended(_unpack_amendments(data))
            elif kind == RESULT:
                self.result = _unpack_result(data)
        for number, (at, data) in opened.items():
            lanes[at]._open[number] = _unpack_intent(number, data)
        for lane in lanes.values():
            lane.settled = True


class Journal:
    """The memory of one run. All calls from one event loop, from as many tasks as you like.

    Made by `create`, `reopen`, `in_memory` and `view`; after a `JournalError` every further call
    fails too, because a journal whose sync failed once is not to be trusted again.
    """

    def __init__(
        self, directory: Path | None, db: sqlite3.Connection, meta: _Meta, lock: int = -1, *, is_shard: bool = False
    ) -> None:
        self.directory = directory
        self.is_shard = is_shard
        self.run = meta.run
        self.job = meta.job
        self.arguments = meta.arguments
        self.began_us = meta.created_us
        """The names of two runs that were begun in one second do not tell which is the newer."""
        self.created = _iso(meta.created_us)
        self._db = db
        self._lock = lock
        self._seq = 0
        self._number = 0
        self._created_us = meta.created_us
        self.lost = 0
        """Records known to be lost and accepted (`reopen(cut=True)`), also by an earlier resume: what the
        destination holds of this run has to be found by content."""
        self._stale_rejects = False
        self._damages: dict[str, set[int]] = {}
        """By user: hashes of the lines of `damages.jsonl`."""
        self._writer: _Writer | None = None
        self._failure: JournalError | None = None
        self._told = False
        self._path = directory / DATABASE if directory is not None else Path(":memory:")
        self._inodes: dict[str, int] = {}
        self._mark = self._rejects = -1
        self._kept: list[UserResult] = []
        self._looking = threading.Lock()
        """Held by the one of several threads that reads a run which is only looked at."""
        self._closing = self._closed = False
        self._last_shard = HERE if is_shard else _last_shard(db)
        self._shards: OrderedDict[int, Journal] = OrderedDict()
        """Those that were read last."""
        self._opening = threading.Lock()
        self.keeps_some = False
        """Users of a run with shards have their records here, as far as is known (`open_places`)."""
        self._empty_shard = b""

    # --- begin and end of a run

    @classmethod
    def create(
        cls, root: Path, *, job: str, arguments: RunArguments, again: bool = False, identities: Iterable[str] = ()
    ) -> Journal:
        """A new run under `root`. `identities`: destinations to claim at once; `begin_user` claims the rest.

        Raises:
            RunHeld: the job runs, or is unfinished (without `again`), or an identity is taken.
            JournalError: the directory cannot be used.
        """
        with _root_locked(root, make=True), ExitStack() as undo:
            for info in runs(root):
                if info.job == job and info.live:
                    raise RunHeld(f"run {info.run} of the same job is running ({info.live}); nothing was touched")
                if info.job == job and not info.finished and not again and _has_written(info.directory):
                    raise RunHeld(
                        f"run {info.run} of the same job, begun {info.created}, is unfinished; nothing was touched",
                        hint=f"`aimport resume {info.run}` goes on with it, --again begins a new run",
                    )
            with _translated(root):
                directory, lock = _make_directory(root)
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            undo.callback(os.close, lock)
            meta = _Meta(run=directory.name, job=job, arguments=arguments, created_us=seams.now_us())
            with _translated(directory / DATABASE):
                os.close(_open_file(directory / DATABASE, os.O_EXCL))
                db = undo.enter_context(closing(_connect(directory / DATABASE, new=True)))
                _make_tables(db, meta)
                with _transaction(db):
                    _insert_claims(db, identities)
                journal = cls(directory, db, meta, lock)
                journal._check_claims()
                journal._write_info(finished=False)
                for place in (directory, root):
                    _sync_directory(place)
                journal._start()
            undo.pop_all()
        return journal

    @classmethod
    def reopen(cls, root: Path, run: str | None, *, cut: bool = False) -> Journal:
        """Goes on with a run; None: with the newest unfinished, else the newest. Reads all of it once.

        `cut`: accept that durable records at the end are lost (a damaged write-ahead log). The
        caller then has to look for messages of this run at the destination by content.

        Raises:
            UsageError: no such run.
            RunHeld: it is running, or a live run works on one of its destinations.
            JournalDamaged: a record is missing or not as it was written; says which.
            JournalError: the journal is empty, read-only, newer, or of another run.
        """
        with _root_locked(root, make=False), ExitStack() as undo:
            directory = _find(root, run)
            lock = _take_lock(directory)
            undo.callback(os.close, lock)
            with _translated(directory / DATABASE):
                db = undo.enter_context(closing(_connect(directory / DATABASE)))
                meta = _read_meta(db, directory.name, directory)
                _migrate(db)
                journal = cls(directory, db, meta, lock)
                journal._check_all(cut=cut)
                journal._check_claims()
                journal._write_info(finished=False)
                journal._start()
            undo.pop_all()
        return journal

    @classmethod
    @contextmanager
    def view(cls, root: Path, run: str | None) -> Iterator[Journal]:
        """A run to look at (`results`, `entries`), running or not: takes no lock, writes nothing."""
        directory = _find(root, run)
        with _translated(directory / DATABASE), closing(_connect(directory / DATABASE, write=False)) as db:
            journal = cls(directory, db, _read_meta(db, directory.name, directory))
            try:
                yield journal
            finally:
                journal._look_away(0)

    @classmethod
    def open_shard(cls, run: Path, number: int, *, alone: bool = False) -> Journal:
        """A shard of the run in directory `run`, to write; reads all of it once.

        `alone`: nobody looks at it meanwhile, so that SQLite needs no memory shared with others, which no network file
        system has.

        Raises:
            RunHeld: another process has it.
            JournalDamaged, JournalError
        """
        directory = _present_shard(run, number)
        with ExitStack() as undo:
            lock = _take_lock(directory)
            undo.callback(os.close, lock)
            with _translated(directory / DATABASE):
                db = undo.enter_context(closing(_connect(directory / DATABASE, alone=alone)))
                journal = cls(directory, db, _read_meta(db, run.name, directory), lock, is_shard=True)
                journal._check_all(cut=False)
                journal._start()
            undo.pop_all()
        return journal

    @classmethod
    def in_memory(cls) -> Journal:
        """The same behaviour without a directory: SQLite spills to an unlinked temporary file, nothing survives."""
        meta = _Meta(run=_new_name(), job="", arguments=NO_ARGUMENTS, created_us=seams.now_us())
        db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        _make_tables(db, meta)
        journal = cls(None, db, meta)
        journal._start()
        return journal

    async def close(self, *, finished: bool) -> None:
        """Writes what waits and frees the run. `finished`: nothing is left to do.

        Raises:
            JournalError: something could not be written and nobody was told yet.
        """
        if self._writer is None:
            return
        self._closing = True
        self._writer.close()  # one last sync; not awaited, so that no cancellation can leave the run locked
        self._writer = None
        try:
            if self.directory is None:
                self._kept = list(self.results())
            elif self._failure is None:
                with _translated(self._path):
                    if self._stale_rejects:
                        _rewrite_lines(self.directory / REJECTS, _scan(self._db, self._path).rejects)
                    if self.is_shard:
                        # So that whoever looks at it leaves no files behind, of which there would be thousands.
                        with suppress(sqlite3.OperationalError):  # somebody is just looking
                            self._db.execute("PRAGMA busy_timeout=0")
                            self._db.execute("PRAGMA journal_mode=DELETE")
                    else:
                        if self._last_shard:
                            _gather_lines(self.directory, REJECTS)
                            _gather_lines(self.directory, REPAIRS)
                            _gather_lines(self.directory, DAMAGES)
                        self._write_info(finished=finished)
        finally:
            self._closed = True
            self._look_away(0)
            with suppress(sqlite3.Error):
                self._db.close()
            for handle in (self._mark, self._rejects, self._lock):
                if handle >= 0:
                    os.close(handle)
        if self._failure is not None and not self._told:
            raise _copy(self._failure)

    # --- users

    async def claim(self, identities: Iterable[str]) -> None:
        """Claims destinations for as long as this process lives.

        Raises:
            RunHeld: a live run has one of them; none is claimed.
        """
        if self.directory is None or self.is_shard:  # the run itself has claimed those of its shards
            return
        names = list(identities)
        new = await self._ask(lambda db: _insert_claims(db, names))
        if new:
            try:
                await self._ask(lambda _: self._check_claims(new))
            except AimportError:
                await self._ask(lambda db: db.executemany("DELETE FROM claims WHERE destination=?", _blobs(new)))
                raise

    async def begin_user(self, user: str, destination: str) -> UserLog:
        """All that is known of a user; claims its destination.

        Raises:
            RunHeld: a live run works on this destination.
            UserError: this run imported the user to another destination before.
        """
        await self.claim([destination])

        def load(db: sqlite3.Connection) -> UserLog:
            number, known = _user(db, user, destination)
            if known != destination:
                raise UserError(
                    f"{user}: this run imports to {known}, not to {destination}",
                    hint="begin a new run for another destination",
                )
            log = UserLog(self, number, user)
            log._load(self._select(db, number))
            return log

        return await self._ask(load)

    async def finish_user(self, user: str, result: UserResult) -> None:
        """Records how the user ended, durably; a later result replaces it."""
        values = {item.name: getattr(result, item.name) for item in dataclasses.fields(result)}
        data = _json(values | {"skipped": dict(result.skipped), "rejected": dict(result.rejected)})
        seq = self._next_seq()

        def write(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT id FROM users WHERE name=?", (_blob(user),)).fetchone()
            number = row[0] if row else _user(db, user, "")[0]
            _insert(db, seq, RESULT, number, 0, 0, data)

        await self._ask(write)

    def results(self) -> Iterator[UserResult]:
        """The last recorded result of each user to whom nothing happened since, in the order the users first began."""
        yield from self._kept
        for _, result in self._standings():
            if result is not None:
                yield result

    def begun(self) -> Sequence[str]:
        """Users who began and have no result, or an old one: of a run that works now, or was killed."""
        return [name for name, result in self._standings() if result is None]

    def _standings(self) -> Iterator[tuple[str, UserResult | None]]:
        """Users who began, in that order, each with its result unless something happened to it since."""
        last = 0
        read: int | None = None
        there: dict[str, UserResult | None] | None = {}
        """Of one shard: its users were handed out together, so they stand together here."""
        if self._closed and self.directory is None:
            return
        own = self._read(lambda db: db.execute("SELECT 1 FROM log WHERE user>0").fetchone())
        while last >= 0 and not (self._closed and self.directory is None):
            last, page = self._read(partial(_standings, after=last, path=self._path))
            for number, name, shard, result in page:
                if shard not in (HERE, read):
                    read, there = shard, self._standings_in(shard)
                if shard == HERE:
                    yield name, result
                elif there is None:
                    error = "a worker on another machine has its records now"
                    yield name, UserResult(user=name, status="stopped", error=error)
                elif name in there:
                    yield name, there[name]
                elif own is not None:  # handed out and not begun; before that, it may have had an error
                    before = self._read(partial(_result, user=number, path=self._path))
                    if before is not None:
                        yield name, before

    def _standings_in(self, shard: int) -> dict[str, UserResult | None] | None:
        """None: it cannot be read now."""
        try:
            return dict(self._shard(shard)._standings())
        except JournalBusy:
            return None

    def pace(self) -> Iterator[Handed]:
        """Batches that the destination acknowledged, at least in part; in the order of the answers, shards one by one.

        Of all users; what an audit found out later is not looked at.
        """
        opened: dict[int, tuple[int, list[int]]] = {}
        statement = f"SELECT {COLUMNS} FROM log WHERE kind IN ({INTENT},{OUTCOME}) AND seq>? ORDER BY seq LIMIT {CHUNK}"
        rows: list[_Row] = []
        last = 0
        while last == 0 or len(rows) == CHUNK:
            rows = self._read(partial(_page, statement, (last,), self._path))
            for _, kind, _, _, number, data in rows:
                if kind == INTENT:
                    intent = _read_intent(data)
                    opened[number] = intent.created_us, _read_columns(zlib.decompress(intent.columns))[1]
                else:
                    created_us, sizes = opened.pop(number)
                    uids = _read_outcome(data)[0]
                    uids = uids if len(uids) == len(sizes) else uids * len(sizes)
                    stored = [size for size, uid in zip(sizes, uids, strict=True) if uid >= NO_UID]
                    if stored:
                        yield Handed(created_us=created_us, messages=len(stored), octets=sum(stored))
            last = rows[-1][0] if rows else -1
        for shard in range(1, self._last_shard + 1):
            yield from self._shard(shard).pace()

    def lanes(self, user: str) -> Sequence[Lane]:
        """Which mailboxes of a user went where, in the order they began."""
        if (home := self._home(user)) is not self:
            return home.lanes(user)
        lanes: dict[int, Lane] = {}
        for row in self._rows_of(user, LANE, MOVED):
            _read_lane(row, lanes)
        return list(lanes.values())

    def entries(self, user: str, of_lane: int | None = None) -> Iterator[Entry]:
        """Every message of a user that has an end, or an intent without one; of a message sent again, each.

        In the order of the ends, what is in doubt behind them. `of_lane`: number of the only lane that is asked for.
        """
        if (home := self._home(user)) is not self:
            yield from home.entries(user, of_lane)
            return
        lanes = {lane.number: lane for lane in self.lanes(user)}
        moved = {row[3]: row[0] for row in self._rows_of(user, MOVED, lane=of_lane)}
        amended: dict[tuple[int, int], Amendment] = {}
        for seq, _, _, lane, _, data in self._rows_of(user, AMENDED, lane=of_lane):
            for each in _unpack_amendments(data):
                known = dataclasses.replace(each, uid=None) if seq < moved.get(lane, 0) else each
                amended[each.number, each.index] = known
        opened: dict[int, tuple[int, bytes]] = {}
        for seq, kind, _, lane, number, data in self._rows_of(user, INTENT, OUTCOME, REJECT, PRESENT, lane=of_lane):
            if kind == INTENT:
                opened[number] = (lane, data)
            elif kind == OUTCOME:
                lane, intent = opened.pop(number)
                batch = _unpack_intent(number, intent)
                ended: list[Appended | Rejected | None] = []
                for index, outcome in enumerate(_unpack_outcomes(batch.keys, data)[0]):
                    amendment = amended.get((number, index))
                    if isinstance(outcome, Appended) and amendment is not None:
                        outcome = None if amendment.lost else dataclasses.replace(outcome, uid=amendment.uid)
                    elif isinstance(outcome, Appended) and seq < moved.get(lane, 0):
                        outcome = dataclasses.replace(outcome, uid=None)
                    ended.append(outcome)
                yield from self._entries(user, lanes[lane], batch, ended)
            elif kind == REJECT:
                for rejection in _unpack_rejects(data):
                    yield Entry(
                        user=user, lane=lanes[lane], key=rejection.key, wanted=None, date=None, outcome=rejection
                    )
            else:
                for found in _unpack_present(data):
                    yield Entry(user=user, lane=lanes[lane], key=found.key, wanted=None, date=None, outcome=found)
        for number, (lane, intent) in opened.items():
            yield from self._entries(user, lanes[lane], _unpack_intent(number, intent), None)

    def _entries(
        self, user: str, lane: Lane, batch: OpenBatch, ended: Sequence[Appended | Rejected | None] | None
    ) -> Iterator[Entry]:
        """`ended` None: in doubt."""
        for index, (key, date) in enumerate(zip(batch.keys, batch.dates, strict=True)):
            outcome = None if ended is None else ended[index]
            if ended is None or outcome is not None:
                wanted = batch.wanted(self.run, index)
                yield Entry(user=user, lane=lane, key=key, wanted=wanted, date=date, outcome=outcome)

    def damaged(self, user: str, mailbox: str, key: str, text: str) -> bool:
        """Records a damage of the source that mail was taken from all the same; False: it is known. Written behind.

        `key` "": not of one message. Before an intent that is asked for later is durable, so is this.
        """
        line = {"user": user, "mailbox": mailbox, "key": key or None, "text": text[:TEXT_LIMIT]}
        data = json.dumps(line).encode("ascii") + b"\n"
        if not self._note_damage(user, data):
            return False
        self._check()
        self._put(_Op(lambda _: None, None, damages=(data,)))
        return True

    def _note_damage(self, user: str, line: bytes) -> bool:
        known = self._damages.setdefault(user, set())
        before = len(known)
        known.add(hash(line))
        return len(known) > before

    def keep_stages(self, stages: Mapping[str, object]) -> None:
        """Adds where the time of this process went (`stages.Stages.to_json`). Of no use to a resume.

        Raises:
            JournalError
        """
        if self.directory is not None:
            with _translated(self.directory / STAGES):
                _append(self.directory / STAGES, _json(stages) + b"\n")

    def stages(self) -> Sequence[Mapping[str, object]]:
        """One for each process that worked on the run to its own end; a line that cannot be read is left out."""
        kept = []
        if self.directory is not None:
            with _translated(self.directory / STAGES), suppress(FileNotFoundError):
                for line in (self.directory / STAGES).read_bytes().splitlines():
                    with suppress(ValueError):
                        kept.append(msgspec.json.decode(line, type=dict[str, object]))
        return kept

    def damages(self, user: str) -> int:
        """How many damages of a user's source are recorded."""
        return len(self._damages.get(user, ()))

    # --- shards

    @property
    def has_shards(self) -> bool:
        """Some users' records are in shards."""
        return self._last_shard > HERE

    async def open_places(self) -> int:
        """Makes ready for shards; returns the number of the last one. Who began in this journal stays in it."""
        with self._opening:
            self._look_away(0)  # a worker may want to have them for itself alone
        self.keeps_some = await self._ask(_place_here)
        return self._last_shard

    async def homes(self, users: Sequence[tuple[str, str]]) -> Sequence[int | None]:
        """In which shard the records of these users are, by name and destination; None: they have none yet.

        Whoever shares a destination shares a shard; who was given to another destination before, has that one's.
        """
        return await self._ask(lambda db: _homes(db, users))

    async def hand_out(self, shard: int, users: Sequence[tuple[str, str]]) -> None:
        """Makes `shard` the home of these users (name, destination), durably, and claims their destinations.

        Shards are made in the order of their numbers.

        Raises:
            RunHeld: a live run works on one of these destinations.
        """
        assert self.directory is not None
        await self.claim(dict.fromkeys(destination for _, destination in users))
        if shard > self._last_shard:
            await anyio.to_thread.run_sync(self._make_shard, self.directory, shard)
        await self._ask(lambda db: _place(db, shard, users))
        self._last_shard = max(self._last_shard, shard)

    def _make_shard(self, run: Path, number: int) -> None:
        """An empty one is durable before anybody is placed in it: one that is missing later was lost."""
        directory = shard_directory(run, number)
        with _translated(directory):
            if not self._empty_shard:
                directory.parent.mkdir(mode=0o700, exist_ok=True)
                _sync_directory(run)
                with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
                    db.execute(f"PRAGMA page_size={SHARD_PAGE}")
                    _make_tables(db, _Meta(run=self.run, job="", arguments=NO_ARGUMENTS, created_us=seams.now_us()))
                    octets = bytearray(db.serialize())
                octets[18:20] = b"\2\2"  # it will be written by a write-ahead log (SQLite's file format, section 1.3)
                self._empty_shard = bytes(octets)
            shutil.rmtree(directory, ignore_errors=True)  # of a process that was killed right here
            directory.mkdir(mode=0o700)
            os.close(_open_file(directory / MARK))
            _replace_file(directory / DATABASE, self._empty_shard)
            _sync_directory(directory.parent)

    def _home(self, user: str) -> Journal:
        """The journal that has the records of a user."""
        if not self._last_shard:
            return self
        shard = self._read(partial(_home_of, _blob(user)))
        return self if shard == HERE else self._shard(shard)

    def _shard(self, number: int) -> Journal:
        """To look at, from any thread."""
        assert self.directory is not None
        with self._opening:
            shard = self._shards.pop(number, None)
            if shard is None:
                directory = _present_shard(self.directory, number)
                with _translated(directory / DATABASE), ExitStack() as undo:
                    db = undo.enter_context(closing(_connect(directory / DATABASE, write=False, wait_s=LOOK_S)))
                    shard = Journal(directory, db, _read_meta(db, self.run, directory), is_shard=True)
                    undo.pop_all()
            self._shards[number] = shard
            self._look_away(0 if self._closed else OPEN_SHARDS)
        return shard

    def _look_away(self, keep: int) -> None:
        """Closes the files of shards that were read long ago."""
        while len(self._shards) > keep:
            _, shard = self._shards.popitem(last=False)
            with shard._looking:
                shard._closed = True
                shard._db.close()

    # --- what the logs of users and lanes call

    def _next_batch(self, messages: int) -> tuple[int, int]:
        """Number and time of a new batch. Names of local files count on from `created_us`: leave room."""
        self._number += 1
        self._created_us, now = self._created_us + 1000, seams.now_us()
        created_us = max(self._created_us, now)
        self._created_us = created_us + messages
        return self._number, created_us

    def _next_seq(self) -> int:
        self._check()
        self._seq += 1
        return self._seq

    async def _write(
        self, kind: int, user: int, lane: int, number: int, data: bytes, repairs: Sequence[bytes] = ()
    ) -> None:
        seq = self._next_seq()
        await self._ask(lambda db: _insert(db, seq, kind, user, lane, number, data), mark=seq, repairs=repairs)

    def _queue_row(
        self,
        kind: int,
        user: int,
        lane: int,
        number: int,
        data: bytes,
        lines: Sequence[bytes] = (),
        repairs: Sequence[bytes] = (),
    ) -> int:
        seq = self._next_seq()
        self._put(_Op(lambda db: _insert(db, seq, kind, user, lane, number, data), None, lines, repairs))
        return seq

    def _rows_of(self, user: str, *kinds: int, lane: int | None = None) -> Iterator[_Row]:
        """Records of these kinds, in order; a page at a time, for a user may have a million messages."""
        number = self._read(lambda db: db.execute("SELECT id FROM users WHERE name=?", (_blob(user),)).fetchone())
        among = f"kind IN ({','.join(map(str, kinds))})" + (f" AND lane={lane:d}" if lane is not None else "")
        statement = f"SELECT {COLUMNS} FROM log WHERE user=? AND seq>? AND {among} ORDER BY seq LIMIT {CHUNK}"
        rows: list[_Row] = []
        last = 0
        while number is not None and (last == 0 or len(rows) == CHUNK):
            rows = self._read(partial(_page, statement, (number[0], last), self._path))
            yield from rows
            last = rows[-1][0] if rows else -1

    def _select(self, db: sqlite3.Connection, user: int) -> Iterator[_Row]:
        for row in db.execute(f"SELECT {COLUMNS} FROM log WHERE user=? ORDER BY seq", (user,)):
            yield _unsealed(row, self._path)

    async def _ask(self, work: Work[T], *, mark: int = 0, repairs: Sequence[bytes] = ()) -> T:
        """Runs `work` in the next transaction; its answer comes when that is durable."""
        self._check()
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(_Op(work, waiter, repairs=repairs, mark=mark))
        return await waiter

    def _put(self, op: _Op) -> None:
        assert self._writer is not None, "`_check` was asked"
        self._writer.put(op)

    def _read(self, work: Work[T]) -> T:
        """Runs `work` after all that was asked before and waits; also after `close`."""
        if self._writer is not None:
            self._check()
            waiter: concurrent.futures.Future[T] = concurrent.futures.Future()
            self._put(_Op(work, waiter, at_once=True))
            return waiter.result()
        with _translated(self._path):
            with self._looking:
                if not self._closed:
                    return work(self._db)
            with closing(_connect(self._path, write=False)) as db:
                return work(db)

    def _check(self) -> None:
        if self._failure is not None:
            self._told = True
            raise _copy(self._failure)
        if self._closing or self._writer is None:
            raise RuntimeError("the journal is closed, or only looked at")

    # --- what the writer does

    def _start(self) -> None:
        if self.directory is not None:
            self._mark = _open_file(self.directory / MARK)
            self._rejects = _open_file(self.directory / REJECTS, os.O_APPEND)
            self._read_damages(self.directory / DAMAGES)
        self._writer = self._make_writer()

    def _read_damages(self, path: Path) -> None:
        """What earlier processes of the run have told; a torn last line is cut off, it will be told again."""
        if not path.exists():
            return
        lines = path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            _replace_file(path, b"".join(lines[:-1]))
        for line in lines:
            with suppress(ValueError):
                self._note_damage(str(json.loads(line)["user"]), line)

    def _make_writer(self) -> _Writer:
        return _WriterThread(self)

    def _transact(self, ops: Sequence[_Op]) -> list[object]:
        """One transaction; an answer for each op, an exception where it failed."""
        answers: list[object] = []
        if self._failure is None:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for op in ops:
                    try:
                        answers.append(op.work(self._db))
                    except AimportError as error:
                        answers.append(error)
                self._db.execute("COMMIT")
                if self.directory is not None:
                    self._committed(self.directory, max((op.mark for op in ops), default=0), ops)
            except Exception as error:  # whatever it was, nobody may wait for ever
                self._failure = _failure(error, self._path)
                with suppress(sqlite3.Error):
                    self._db.rollback()
        if self._failure is not None:
            self._told = self._told or any(op.waiter is not None for op in ops)
            return [_copy(self._failure) for _ in ops]
        return answers

    def _committed(self, directory: Path, mark: int, ops: Sequence[_Op]) -> None:
        """After each commit: is the file still there? Then the mark, what was rejected and what was repaired."""
        for name in (DATABASE, DATABASE + "-wal"):
            try:
                inode = os.stat(directory / name).st_ino
            except FileNotFoundError:
                inode = 0
            if self._inodes.setdefault(name, inode) != inode or not inode:
                raise JournalError(f"{directory / name} was deleted or replaced while the run was writing it")
        if mark:
            os.pwrite(self._mark, _mark(mark), 0)
        _write_all(self._rejects, b"".join(line for op in ops for line in op.lines))
        _append(directory / REPAIRS, b"".join(line for op in ops for line in op.repairs))
        _append(directory / DAMAGES, b"".join(line for op in ops for line in op.damages))

    # --- checks

    def _check_all(self, *, cut: bool) -> None:
        """Reads every record once, then writes one, so that a journal that cannot be written is noticed here."""
        assert self.directory is not None
        found = _scan(self._db, self._path)
        marked = _read_mark(self.directory / MARK)
        lost = max(0, marked - found.seq)
        if lost and not cut:
            raise JournalDamaged(
                f"{self._path}: table log: rows {found.seq + 1} to {marked} are lost, the end of {DATABASE}-wal"
                " is damaged or was cut",
                hint=REPAIR,
            )
        self._seq, self._number = found.seq + 1, found.number + lost
        self._created_us = max(self._created_us, found.created_us)
        with _transaction(self._db):
            _insert(self._db, self._seq, OPENED, 0, 0, 0, _json([os.getpid(), seams.now_us(), lost]))
        self.lost = found.lost + lost
        if lost:
            _replace_file(self.directory / MARK, _mark(self._seq))
        _rewrite_lines(self.directory / REJECTS, found.rejects)
        _rewrite_lines(self.directory / REPAIRS, found.repairs)

    def _check_claims(self, names: Sequence[str] | None = None) -> None:
        """No live other run may have one of `names` (None: of all our claims), which are claimed already.

        A run that is just starting and has no tables yet will find our claims itself.
        """
        assert self.directory is not None
        for other, holder in _live_others(self.directory):
            for chunk in _claims(self._db) if names is None else _chunks(_blobs(names)):
                if taken := _first_claimed(other / DATABASE, chunk):
                    raise RunHeld(
                        f"{taken} is being imported by run {other.name} ({holder})",
                        hint="wait for that run, or leave this user out",
                    )

    def _write_info(self, *, finished: bool) -> None:
        assert self.directory is not None
        counts = Counter(result.status for result in self.results())
        info = {
            "run": self.run,
            "job": self.job,
            "created": self.created,
            "finished": finished,
            "arguments": dataclasses.asdict(self.arguments),
            "counts": counts,
        }
        info["seal"] = _seal((), _json(info))
        _replace_file(self.directory / INFO, json.dumps(info, indent=1).encode() + b"\n")


def _run_directory(shard: Path) -> Path:
    return shard.parent.parent


def shard_directory(run: Path, number: int) -> Path:
    return run / SHARDS / f"{number:06d}"


def _present_shard(run: Path, number: int) -> Path:
    """
    Raises:
        JournalDamaged: it was lost, for one in which users have their places was made before.
    """
    directory = shard_directory(run, number)
    if not directory.is_dir():
        raise JournalDamaged(f"{directory} is missing", hint=REPAIR)
    return directory


def runs(root: Path) -> Sequence[RunInfo]:
    """The runs below `root`, newest first. Reads no log; a run that cannot be read is listed with its damage."""
    found = [_info(directory) for directory in _run_directories(root)]
    return sorted((info for info in found if info is not None), key=lambda info: (info.created, info.run), reverse=True)


# --- records


@dataclass(frozen=True, slots=True)
class _Op:
    """What a task asks of the writer thread; `lines`, `repairs` and `damages` go to their files once it is durable."""

    work: Work[Any]
    waiter: asyncio.Future[Any] | concurrent.futures.Future[Any] | None
    lines: Sequence[bytes] = ()
    repairs: Sequence[bytes] = ()
    damages: Sequence[bytes] = ()
    at_once: bool = False
    """Somebody holds up the event loop for it."""
    mark: int = 0
    """Number of a record whose loss would do harm: to forget an outcome only costs a reconcile."""


class _Writer(Protocol):
    """Has what is put transacted in order, and the answers given to who waits."""

    def put(self, op: _Op) -> None: ...

    def close(self) -> None:
        """Returns when all that was put is done."""
        ...


class _WriterThread:
    """Commits all that waits as one transaction, over and over.

    One sync serves all lanes that ask for one within `GROUP_S`; what nobody waits for does not
    ask for one, but is not kept longer than `BEHIND_S`.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        # Not SimpleQueue: up to Python 3.12 its `get(timeout)` waits for ever when the time is over before it looks,
        # as on a busy machine it may be (seen: once in about a hundred thousand commits).
        self._queue: queue.Queue[_Op | None] = queue.Queue()
        self.put = self._queue.put
        self._thread = threading.Thread(target=self._work, name=f"journal {journal.run}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            ops: list[_Op] = []
            item = self._queue.get()
            until = time.monotonic() + BEHIND_S
            with suppress(queue.Empty):
                while item is not None:
                    ops.append(item)
                    now = time.monotonic()
                    if item.waiter is not None:
                        at_once = item.at_once or self._journal.directory is None
                        until = min(until, now + (0.0 if at_once else GROUP_S))
                    item = self._queue.get(timeout=until - now) if until > now else self._queue.get_nowait()
                ended = True
            _answer(ops, self._journal._transact(ops))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meta:
    run: str
    job: str
    arguments: RunArguments
    created_us: int


@dataclass(slots=True)
class _Scan:
    """What a pass over the whole log tells."""

    seq: int = 0
    number: int = 0
    created_us: int = 0
    lost: int = 0
    rejects: dict[tuple[int, str], bytes] = field(default_factory=dict)
    repairs: dict[tuple[int, str], bytes] = field(default_factory=dict)


_PackedRepair = tuple[int, Sequence[str], int, str, str]  # index, steps, size and digest of the original, reason


class _Intent(msgspec.Struct, array_like=True):
    """As it is in the log; most have neither of the last two elements, of earlier versions none has."""

    created_us: int
    columns: bytes
    """Packed `_Columns`."""
    digests: bytes
    repaired: bytes = b""
    """JSON of a `_PackedRepair`."""
    alike: bytes = b""
    """A packed `_Alikes`, for the messages that have one."""


_Alikes = tuple[list[int], bytes, list[int], list[int]]
"""Indexes, digests of reduced forms in a row, octets that the shortest form is shorter by, bits of `ALIKE_KINDS`."""
_Columns = tuple[list[bytes], list[int], list[int]]  # keys, sizes, dates
_OutcomeBlob = tuple[list[int], bytes]  # UID or NO_UID, REFUSED, ABSENT (one for all alike); JSON of the rest
_read_intent = msgspec.msgpack.Decoder(_Intent).decode
_read_alikes = msgspec.msgpack.Decoder(_Alikes).decode
_read_columns = msgspec.msgpack.Decoder(_Columns).decode
_read_outcome = msgspec.msgpack.Decoder(_OutcomeBlob).decode
_packed = msgspec.msgpack.Encoder().encode


def _blob(text: str) -> bytes:
    """Text that may hold octets which are not UTF-8 (file names)."""
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")


def _blobs(names: Iterable[str]) -> list[tuple[bytes]]:
    return [(_blob(name),) for name in names]


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _pack_intent(batch: OpenBatch) -> bytes:
    keys = [_blob(key) for key in batch.keys]
    columns = _packed((keys, [fingerprint.size for fingerprint in batch.fingerprints], batch.dates))
    digests = b"".join(fingerprint.digest for fingerprint in batch.fingerprints)
    repaired = b"" if batch.repaired is None else _json(_packed_repair(0, batch.repaired))
    alike = _pack_alikes(batch.fingerprints)
    rest = (repaired, alike) if alike else (repaired,) if repaired else ()
    return _packed((batch.created_us, zlib.compress(columns, 1), digests, *rest))


def _unpack_intent(number: int, data: bytes) -> OpenBatch:
    intent = _read_intent(data)
    keys, sizes, dates = _read_columns(zlib.decompress(intent.columns))
    digests = intent.digests
    width = len(digests) // len(keys) if keys else 0
    alike = _unpack_alikes(intent.alike, sizes) if intent.alike else {}
    return OpenBatch(
        number=number,
        created_us=intent.created_us,
        keys=tuple(MessageKey(_text(key)) for key in keys),
        fingerprints=tuple(
            Fingerprint(size=size, digest=digests[index * width : (index + 1) * width], alike=alike.get(index))
            for index, size in enumerate(sizes)
        ),
        dates=tuple(dates),
        repaired=_unpacked_repair(json.loads(intent.repaired)) if intent.repaired else None,
    )


def _pack_alikes(fingerprints: Sequence[Fingerprint]) -> bytes:
    odd = [(index, each.size, each.alike) for index, each in enumerate(fingerprints) if each.alike is not None]
    if not odd:
        return b""
    return _packed(
        (
            [index for index, _, _ in odd],
            b"".join(alike.digest for _, _, alike in odd),
            [size - alike.shortest for _, size, alike in odd],
            [sum(1 << ALIKE_KINDS.index(kind) for kind in alike.kinds) for _, _, alike in odd],
        )
    )


def _unpack_alikes(data: bytes, sizes: Sequence[int]) -> dict[int, Alike]:
    indexes, digests, shorter, kinds = _read_alikes(data)
    width = len(digests) // len(indexes)
    return {
        index: Alike(
            digest=digests[place * width : (place + 1) * width],
            shortest=sizes[index] - shorter[place],
            kinds=tuple(kind for bit, kind in enumerate(ALIKE_KINDS) if kinds[place] >> bit & 1),
        )
        for place, index in enumerate(indexes)
    }


def _unpack_keys(data: bytes) -> tuple[list[MessageKey], list[int]]:
    """Keys and sizes alone: a third of the time of `_unpack_intent`."""
    keys, sizes, _ = _read_columns(zlib.decompress(_read_intent(data).columns))
    return [MessageKey(_text(key)) for key in keys], sizes


def _pack_uids(
    uids: Sequence[int],
    rejects: Sequence[tuple[int, str, str]] = (),
    dropped: Sequence[tuple[int, Sequence[str]]] = (),
    doubtful: Sequence[int] = (),
    repaired: Sequence[_PackedRepair] = (),
) -> bytes:
    rest = _json([rejects, dropped, doubtful, repaired]) if rejects or dropped or doubtful or repaired else b""
    return _packed((uids[:1] if len(set(uids)) == 1 else uids, rest))


def _pack_outcomes(outcomes: Sequence[Appended | Rejected | None]) -> bytes:
    return _pack_uids(
        [
            ABSENT if outcome is None else REFUSED if isinstance(outcome, Rejected) else outcome.uid or NO_UID
            for outcome in outcomes
        ],
        [(i, one.code, one.text[:TEXT_LIMIT]) for i, one in enumerate(outcomes) if isinstance(one, Rejected)],
        [(i, one.dropped) for i, one in enumerate(outcomes) if isinstance(one, Appended) and one.dropped],
        repaired=[
            _packed_repair(i, one.repaired)
            for i, one in enumerate(outcomes)
            if isinstance(one, Appended) and one.repaired is not None
        ],
    )


def _unpack_outcomes(keys: Sequence[MessageKey], data: bytes) -> tuple[list[Appended | Rejected | None], Sequence[int]]:
    """One outcome per message, None where it was not stored, and the indexes that are doubtful."""
    uids, rest = _read_outcome(data)
    rejects, dropped, doubtful, repaired = (*json.loads(rest), ())[:4] if rest else ((), (), (), ())
    flags = {index: tuple(names) for index, names in dropped}
    repairs = {each[0]: _unpacked_repair(each) for each in repaired}
    outcomes: list[Appended | Rejected | None] = [
        Appended(
            key=key,
            uid=Uid(uid) if uid > 0 else None,
            dropped=flags.get(index, ()),
            repaired=repairs.get(index),
        )
        if uid >= NO_UID
        else None
        for index, (key, uid) in enumerate(zip(keys, uids if len(uids) == len(keys) else uids * len(keys), strict=True))
    ]
    for index, code, text in rejects:
        outcomes[index] = Rejected(key=keys[index], code=code, text=text)
    return outcomes, doubtful


def _packed_repair(index: int, repaired: Repaired) -> _PackedRepair:
    return index, repaired.steps, repaired.original.size, repaired.original.digest.hex(), repaired.reason


def _unpacked_repair(packed: _PackedRepair) -> Repaired:
    _, steps, size, digest, reason = packed
    return Repaired(steps=tuple(steps), original=Fingerprint(size=size, digest=bytes.fromhex(digest)), reason=reason)


def _unpack_rejects(data: bytes) -> list[Rejected]:
    return [Rejected(key=MessageKey(key), code=code, text=text) for key, code, text in json.loads(data)]


def _unpack_result(data: bytes) -> UserResult:
    """Unknown keys are of a newer aimport of the same schema."""
    names = {item.name for item in dataclasses.fields(UserResult)}
    return UserResult(**{key: value for key, value in json.loads(data).items() if key in names})


def _cut(rejection: Rejected) -> Rejected:
    if len(rejection.text) <= TEXT_LIMIT:
        return rejection
    return dataclasses.replace(rejection, text=rejection.text[:TEXT_LIMIT])


def _reject_line(user: str, mailbox: str, rejection: Rejected, size: int | None) -> bytes:
    line = {
        "user": user,
        "mailbox": mailbox,
        "key": rejection.key,
        "code": rejection.code,
        "text": rejection.text[:TEXT_LIMIT],
        "size": size,
    }
    return json.dumps(line).encode("ascii") + b"\n"


def _repair_line(user: str, mailbox: str, outcome: Appended, repaired: Repaired, sent: Fingerprint) -> bytes:
    line = {
        "user": user,
        "mailbox": mailbox,
        "key": outcome.key,
        "steps": repaired.steps,
        "reason": repaired.reason,
        "original": {"size": repaired.original.size, "sha256": repaired.original.digest.hex()},
        "stored": {"size": sent.size, "sha256": sent.digest.hex()},
        "escrow": f"{ESCROW}/{repaired.original.digest.hex()}.eml",
    }
    return json.dumps(line).encode("ascii") + b"\n"


def _read_lane(row: _Row, lanes: dict[int, Lane]) -> None:
    """Takes a record LANE or MOVED."""
    seq, kind, _, at, _, data = row
    if kind == LANE:
        source, destination, uidvalidity, uidnext = json.loads(data)
        position = Position(uidvalidity=uidvalidity, uidnext=uidnext)
        lanes[seq] = Lane(number=seq, source=source, destination=destination, position=position)
    else:
        uidvalidity, uidnext = json.loads(data)
        lanes[at] = dataclasses.replace(lanes[at], position=Position(uidvalidity=uidvalidity, uidnext=uidnext))


def _unpack_present(data: bytes) -> list[Present]:
    return [Present(key=MessageKey(key), held=MessageKey(held)) for key, held in json.loads(data)]


def _pack_amendments(amendments: Iterable[Amendment]) -> bytes:
    return _json([[getattr(each, item.name) for item in dataclasses.fields(Amendment)] for each in amendments])


def _unpack_amendments(data: bytes) -> list[Amendment]:
    names = [item.name for item in dataclasses.fields(Amendment)]
    return [Amendment(**dict(zip(names, values, strict=False))) for values in json.loads(data)]


# --- tables


def _seal(numbers: Sequence[object], *blobs: bytes) -> int:
    check = zlib.crc32(repr(tuple(numbers)).encode())
    for blob in blobs:
        check = zlib.crc32(blob, zlib.crc32(b"%d:" % len(blob), check))
    return check


def _sealed(seal: object, numbers: Sequence[object], *blobs: object) -> bool:
    """Damage may also have changed the types of columns."""
    octets = [blob for blob in blobs if isinstance(blob, bytes)]
    return len(octets) == len(blobs) and all(isinstance(n, int) for n in numbers) and seal == _seal(numbers, *octets)


def _insert(db: sqlite3.Connection, seq: int, kind: int, user: int, lane: int, number: int, data: bytes) -> None:
    numbers = (seq, kind, user, lane, number)
    db.execute(f"INSERT INTO log ({COLUMNS}) VALUES (?,?,?,?,?,?,?)", (*numbers, data, _seal(numbers, data)))


def _unsealed(row: Sequence[Any], path: Path) -> _Row:
    *numbers, data, seal = row
    if not _sealed(seal, numbers, data):
        raise _damaged(path, "log", row[0])
    seq, kind, user, lane, number = numbers
    return seq, kind, user, lane, number, data


def _page(statement: str, values: Sequence[int], path: Path, db: sqlite3.Connection) -> list[_Row]:
    return [_unsealed(row, path) for row in db.execute(statement, values)]


def _damaged(path: Path, table: str, row: object, text: str = "does not match its checksum") -> JournalDamaged:
    return JournalDamaged(f"{path}: table {table}: row {row} {text}", hint=REPAIR)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise


def _make_tables(db: sqlite3.Connection, meta: _Meta) -> None:
    data = _json(dataclasses.asdict(meta))
    with _transaction(db):
        for statement in DDL:
            db.execute(statement)
        db.execute("INSERT INTO meta VALUES (1,?,?)", (data, _seal((1,), data)))
        db.execute(f"PRAGMA application_id={APPLICATION}")
        db.execute(f"PRAGMA user_version={SCHEMA}")


def _read_meta(db: sqlite3.Connection, run: str, directory: Path) -> _Meta:
    path = directory / DATABASE
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise JournalError(f"{path} is not a journal of aimport", hint=REPAIR)
    if version != SCHEMA and version not in MIGRATIONS:
        raise JournalError(
            f"{path} has format {version}, this aimport knows {SCHEMA}", hint="use the aimport that began the run"
        )
    row = db.execute("SELECT id, data, seal FROM meta").fetchone()
    if row is None or not _sealed(row[2], row[:1], row[1]):
        raise _damaged(path, "meta", 1)
    meta = msgspec.json.decode(row[1], type=_Meta)
    if meta.run != run:
        raise JournalError(f"{path} belongs to run {meta.run}, not to {run}", hint=REPAIR)
    return meta


def _migrate(db: sqlite3.Connection) -> None:
    """Makes the present format of an older one, all steps or none."""
    with _transaction(db):
        while (version := db.execute("PRAGMA user_version").fetchone()[0]) != SCHEMA:
            for statement in MIGRATIONS[version]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version={version + 1}")


def _user(db: sqlite3.Connection, name: str, destination: str) -> tuple[int, str]:
    """Number and destination of a user; a new row when it has none."""
    key, where = _blob(name), _blob(destination)
    row = db.execute("SELECT id, destination FROM users WHERE name=?", (key,)).fetchone()
    if row is not None and row[1]:
        return row[0], _text(row[1])
    number = row[0] if row else (db.execute("SELECT max(id) FROM users").fetchone()[0] or 0) + 1
    db.execute("INSERT OR REPLACE INTO users VALUES (?,?,?,?)", (number, key, where, _seal((number,), key, where)))
    return number, destination


def _insert_claims(db: sqlite3.Connection, names: Iterable[str]) -> list[str]:
    """Claims `names`; returns those that were not claimed before."""
    new: list[str] = []
    rest = iter(names)
    while chunk := {_blob(name): name for name in itertools.islice(rest, CHUNK)}:
        known = _known(db, "SELECT destination, seal FROM claims WHERE destination", list(chunk))
        fresh = {key: name for key, name in chunk.items() if key not in known}
        db.executemany("INSERT INTO claims VALUES (?,?)", [(key, _seal((), key)) for key in fresh])
        new += fresh.values()
    return new


def _claims(db: sqlite3.Connection) -> Iterator[list[tuple[bytes]]]:
    rows = db.execute("SELECT destination FROM claims")
    while chunk := rows.fetchmany(CHUNK):
        yield chunk


def _chunks(names: list[tuple[bytes]]) -> Iterator[list[tuple[bytes]]]:
    return (names[start : start + CHUNK] for start in range(0, len(names), CHUNK))


def _first_claimed(path: Path, names: Sequence[tuple[bytes]]) -> str:
    """One of `names` that the journal of another run claims, or ""."""
    statement = f"SELECT destination FROM claims WHERE destination IN ({','.join('?' * len(names))})"
    try:
        with _translated(path), closing(_connect(path, write=False)) as db:
            taken = db.execute(statement, [name for (name,) in names]).fetchone()
            return _text(taken[0]) if taken else ""
    except JournalError as error:
        logger.warning("claims unreadable journal=%s error=%s", path, error)
        return ""


def _standings(
    db: sqlite3.Connection, *, after: int, path: Path
) -> tuple[int, list[tuple[int, str, int, UserResult | None]]]:
    """The next users after that number: number, name, shard, and result if that is here; and the last number, -1: there
    are no more."""
    place = "(SELECT shard FROM places WHERE places.destination=users.destination)" if _has_places(db) else "NULL"
    statement = f"SELECT id, name, coalesce({place}, {HERE}) FROM users WHERE id>? ORDER BY id LIMIT ?"
    users = db.execute(statement, (after, CHUNK)).fetchall()
    page = [
        (number, _text(name), shard, _result(db, user=number, path=path) if shard == HERE else None)
        for number, name, shard in users
    ]
    return (users[-1][0] if users else -1), page


def _result(db: sqlite3.Connection, *, user: int, path: Path) -> UserResult | None:
    """None: there is none, or more has happened since."""
    statement = f"SELECT {COLUMNS} FROM log WHERE user=? AND kind IN {ENDS} ORDER BY seq DESC LIMIT 1"
    row = db.execute(statement, (user,)).fetchone()
    if row is None:
        return None
    _, kind, _, _, _, data = _unsealed(row, path)
    return _unpack_result(data) if kind == RESULT else None


def _has_places(db: sqlite3.Connection) -> bool:
    """A journal of an older format that is only looked at has none."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name='places'").fetchone() is not None


def _last_shard(db: sqlite3.Connection) -> int:
    return (db.execute("SELECT max(shard) FROM places").fetchone()[0] or HERE) if _has_places(db) else HERE


def _place(db: sqlite3.Connection, shard: int, users: Sequence[tuple[str, str]]) -> None:
    """Many at once, for there may be a million: a third of the time of one after the other."""
    rows = [(_blob(name), _blob(destination)) for name, destination in users]
    known = _known(db, "SELECT name, id FROM users WHERE name", [name for name, _ in rows])
    for name, destination in users:
        if _blob(name) in known:
            _user(db, name, destination)
    last = db.execute("SELECT max(id) FROM users").fetchone()[0] or 0
    new = enumerate((row for row in rows if row[0] not in known), start=last + 1)
    db.executemany(
        "INSERT INTO users VALUES (?,?,?,?)",
        [(number, name, where, _seal((number,), name, where)) for number, (name, where) in new],
    )
    places = [(where, shard, _seal((shard,), where)) for _, where in rows]
    db.executemany("INSERT OR IGNORE INTO places VALUES (?,?,?)", places)


def _place_here(db: sqlite3.Connection) -> bool:
    """Whether there are any."""
    began = "SELECT destination FROM users WHERE destination NOT IN (SELECT destination FROM places)"
    for (destination,) in db.execute(began).fetchall():
        if destination:  # else it never came as far as that
            seal = _seal((HERE,), destination)
            db.execute("INSERT OR IGNORE INTO places VALUES (?,?,?)", (destination, HERE, seal))
    return db.execute("SELECT 1 FROM places WHERE shard=?", (HERE,)).fetchone() is not None


def _homes(db: sqlite3.Connection, users: Sequence[tuple[str, str]]) -> list[int | None]:
    given = _known(db, "SELECT name, destination FROM users WHERE name", [_blob(name) for name, _ in users])
    wanted = [given.get(_blob(name)) or _blob(destination) for name, destination in users]
    places = _known(db, "SELECT destination, shard FROM places WHERE destination", wanted)
    return [places.get(where) for where in wanted]


def _known(db: sqlite3.Connection, select: str, keys: Sequence[bytes]) -> dict[bytes, Any]:
    """By key, what `select` finds of `keys`."""
    found: dict[bytes, Any] = {}
    for start in range(0, len(keys), CHUNK):
        chunk = keys[start : start + CHUNK]
        found.update(db.execute(f"{select} IN ({','.join('?' * len(chunk))})", chunk).fetchall())
    return found


def _home_of(user: bytes, db: sqlite3.Connection) -> int:
    statement = "SELECT shard FROM users JOIN places USING (destination) WHERE name=?"
    row = db.execute(statement, (user,)).fetchone()
    return HERE if row is None else row[0]


def _scan(db: sqlite3.Connection, path: Path) -> _Scan:
    """Reads everything once: pages, seals, numbers without gaps, outcomes with their intents."""
    problem = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if problem != b"ok":
        raise JournalDamaged(f"{path}: {_text(problem)}", hint=REPAIR)
    names: dict[int, bytes] = {}
    users = 0
    for number, name, destination, seal in db.execute("SELECT id, name, destination, seal FROM users ORDER BY id"):
        users += 1
        if number != users or not _sealed(seal, (number,), name, destination):
            raise _damaged(path, "users", number)
    for name, seal in db.execute("SELECT destination, seal FROM claims"):
        if not _sealed(seal, (), name):
            raise _damaged(path, "claims", repr(name))
    for name, shard, seal in db.execute("SELECT destination, shard, seal FROM places"):
        if not _sealed(seal, (shard,), name):
            raise _damaged(path, "places", repr(name))
    scan = _Scan()
    last = b""
    opened: dict[int, bytes] = {}
    lanes: dict[int, str] = {}
    refusing: set[int] = set()
    for row in db.execute(f"SELECT {COLUMNS} FROM log ORDER BY seq"):
        seq, kind, user, lane, number, data = _unsealed(row, path)
        scan.seq += 1
        if seq != scan.seq or user > users:
            raise _damaged(path, "log", scan.seq, "is missing" if seq != scan.seq else "has no user")
        if kind == OPENED:
            scan.lost += json.loads(data)[2]
        elif kind == INTENT:
            opened[number] = last = data
            scan.number = max(scan.number, number)
        elif kind in (OUTCOME, REJECT):
            if kind == OUTCOME and number not in opened:
                raise _damaged(path, "log", seq, "ends a batch that never began")
            intent = opened.pop(number, b"")
            ended: list[tuple[int | None, Appended | Rejected | None]] = []
            if kind == REJECT:
                ended = [(None, rejection) for rejection in _unpack_rejects(data)]
            elif lane in refusing or _read_outcome(data)[1]:
                keys, sizes = _unpack_keys(intent)
                ended = list(zip(sizes, _unpack_outcomes(keys, data)[0], strict=True))
            for index, (size, outcome) in enumerate(ended):
                if outcome is None:
                    continue
                scan.rejects.pop((lane, outcome.key), None)
                repaired = outcome.repaired if isinstance(outcome, Appended) else None
                if repaired is None and isinstance(outcome, Appended):
                    continue
                if user not in names:
                    names[user] = db.execute("SELECT name FROM users WHERE id=?", (user,)).fetchone()[0]
                about = _text(names[user]), _lane_name(db, lane, lanes)
                if isinstance(outcome, Rejected):
                    refusing.add(lane)
                    scan.rejects[lane, outcome.key] = _reject_line(*about, outcome, size)
                elif repaired is not None:
                    sent = _unpack_intent(number, intent).fingerprints[index]
                    scan.repairs[lane, outcome.key] = _repair_line(*about, outcome, repaired, sent)
    if last:
        batch = _unpack_intent(scan.number, last)
        scan.created_us = batch.created_us + len(batch.keys)
    return scan


def _lane_name(db: sqlite3.Connection, lane: int, known: dict[int, str]) -> str:
    if lane not in known:
        known[lane] = json.loads(db.execute("SELECT data FROM log WHERE seq=?", (lane,)).fetchone()[0])[0]
    return known[lane]


def _has_written(directory: Path) -> bool:
    """Whether a run stored a message, or may have."""
    return any(_log_has_written(each, directory.name) for each in (directory, *_shard_directories(directory)))


def _log_has_written(directory: Path, run: str) -> bool:
    path = directory / DATABASE
    opened: set[int] = set()
    with _translated(path), closing(_connect(path, write=False)) as db:
        _read_meta(db, run, directory)
        for row in db.execute(f"SELECT {COLUMNS} FROM log ORDER BY seq"):
            _, kind, _, _, number, data = _unsealed(row, path)
            if kind == INTENT:
                opened.add(number)
            elif kind == OUTCOME:
                opened.discard(number)
                if any(uid >= NO_UID for uid in _read_outcome(data)[0]):
                    return True
    return bool(opened)


# --- the writer's answers and failures


def _answer(ops: Sequence[_Op], answers: Sequence[object]) -> None:
    """Wakes who waits; one call into the loop for all of them."""
    waiting: list[tuple[asyncio.Future[Any], object]] = []
    for op, answer in zip(ops, answers, strict=True):
        if isinstance(op.waiter, concurrent.futures.Future):
            _resolve(op.waiter, answer)
        elif op.waiter is not None:
            waiting.append((op.waiter, answer))
    if waiting:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            waiting[0][0].get_loop().call_soon_threadsafe(_wake, waiting)


def _wake(waiting: Iterable[tuple[asyncio.Future[Any], object]]) -> None:
    for waiter, answer in waiting:
        if not waiter.done():
            _resolve(waiter, answer)


def _resolve(waiter: asyncio.Future[Any] | concurrent.futures.Future[Any], answer: object) -> None:
    if isinstance(answer, AimportError):
        waiter.set_exception(answer)
    else:
        waiter.set_result(answer)


def _copy(error: JournalError) -> JournalError:
    """An exception of its own for everyone who is told, so that traces do not mix."""
    return type(error)(error.text, hint=error.hint)


def _failure(error: Exception, path: Path) -> JournalError:
    if isinstance(error, JournalError):
        return error
    codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_BUSY:
        return JournalBusy(f"{path}: {error}", hint="a worker of its run has it now")
    if isinstance(error, UnicodeError) or code in codes:
        return JournalDamaged(f"{path}: {error}", hint=REPAIR)  # SQLite quotes a damaged schema in its words
    return JournalError(f"{path}: {error}", hint="nothing more is sent; `aimport resume` goes on once that is repaired")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeError, msgspec.MsgspecError) as error:
        raise _failure(error, path) from error


# --- files


def _iso(us: int) -> str:
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _new_name() -> str:
    return f"{datetime.fromtimestamp(seams.now_us() / 1e6, UTC):%Y%m%d-%H%M%S}-{seams.token(2)}"


def _open_file(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_file(path: Path, data: bytes, meanwhile: str = ".new") -> None:
    """Either the old file or the new one, whole, whatever happens."""
    temporary = path.with_name(path.name + meanwhile)
    with open(_open_file(temporary, os.O_TRUNC), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_directory(path.parent)


def _rewrite_lines(path: Path, lines: Mapping[tuple[int, str], bytes]) -> None:
    if lines or path.exists():
        _replace_file(path, b"".join(lines.values()))


def _append(path: Path, lines: bytes) -> None:
    """Behind a file that most runs do not have."""
    if lines:
        handle = _open_file(path, os.O_APPEND)
        try:
            _write_all(handle, lines)
        finally:
            os.close(handle)


def _shard_directories(run: Path) -> Sequence[Path]:
    """Those that are whole, in their order."""
    return sorted(each for each in (run / SHARDS).glob("[0-9]*") if (each / DATABASE).exists())


def _gather_lines(run: Path, name: str) -> None:
    """Puts the lines of all shards behind those of the run's own file, each once however often the run was resumed."""
    parts = [part for each in _shard_directories(run) if (part := each / name).exists() and part.stat().st_size]
    if not parts:
        return
    if (run / name).exists():
        parts.insert(0, run / name)
    temporary = run / f"{name}.new"
    known: set[int] = set()
    with open(_open_file(temporary, os.O_TRUNC), "wb") as file:
        for part in parts:
            with open(part, "rb") as lines:
                for line in lines:
                    if hash(line) not in known:
                        known.add(hash(line))
                        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(run / name)
    _sync_directory(run)


def _write_all(handle: int, octets: bytes) -> None:
    while octets:
        octets = octets[os.write(handle, octets) :]


def _keep(directory: Path, name: str, octets: bytes, writer: str) -> None:
    """A file below `directory`, durable; one of that name is there already when its content is.

    Several processes may keep the same message. What one that is killed leaves behind has the name of its journal, so
    the next to write that replaces it.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    if not (directory / name).exists():
        _replace_file(directory / name, octets, f".{writer}.new")
        _sync_directory(directory.parent)


def _mark(seq: int) -> bytes:
    text = b"%020d" % seq
    return text + b" %08x\n" % zlib.crc32(text)


def _read_mark(path: Path) -> int:
    """The last intent known to be durable; 0 when the mark is missing or unreadable, as it is only a witness."""
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        if data[:20].isdigit() and data == _mark(int(data[:20])):
            return int(data[:20])
        if not data:
            return 0
    logger.warning("journal mark unreadable path=%s", path)
    return 0


def _connect(
    path: Path, *, write: bool = True, new: bool = False, alone: bool = False, wait_s: float = 10
) -> sqlite3.Connection:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise JournalError(f"{path} is not a regular file")
    if not status.st_size and not new:
        raise JournalError(f"{path} is empty", hint=REPAIR)
    uri = f"{path.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
    db = sqlite3.connect(uri, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA cell_size_check=ON")
        db.execute("PRAGMA synchronous=FULL")
        if alone:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")  # before anything is read: its index then lies in our memory
        if new:
            db.execute(f"PRAGMA page_size={PAGE}")
        if write and db.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise JournalError(f"{path}: the file system cannot hold a write-ahead log", hint="see --journal DIR")
        db.text_factory = bytes  # all text is kept in BLOBs; a damaged column type must not fail to decode
    except BaseException:
        db.close()
        raise
    return db


def _check_directory(path: Path) -> None:
    """Ours alone: else somebody could plant files in it, or read who has mail."""
    status = path.lstat()
    mine = (0, os.geteuid())
    if status.st_uid not in mine or path.stat().st_uid not in mine:
        raise JournalError(f"{path} belongs to another user", hint="name another directory with --journal")
    mode = path.stat().st_mode
    if not stat.S_ISDIR(mode):
        raise JournalError(f"{path} is not a directory")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise JournalError(f"{path} can be written by others", hint=f"chmod go-w {path}")


@contextmanager
def _root_locked(root: Path, *, make: bool) -> Iterator[None]:
    """Runs begin one after the other, so that two of one job cannot pass each other."""
    with _translated(root):
        if make:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not root.is_dir():
            raise UsageError(f"no run in {root}")
        _check_directory(root)
        handle = _open_file(root / ".lock")
        try:
            _flock(handle, tries=200)
        except BlockingIOError:
            os.close(handle)
            raise RunHeld(f"another aimport has been starting a run in {root} for 10 seconds") from None
    try:
        yield
    finally:
        os.close(handle)


def _flock(handle: int, *, tries: int) -> None:
    """Takes the lock; someone who only asks who is alive holds it for a moment."""
    for left in range(tries - 1, -1, -1):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(0.05)
    raise AssertionError(tries)


def _make_directory(root: Path) -> tuple[Path, int]:
    while True:
        directory = root / _new_name()
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            return directory, _take_lock(directory)


def _take_lock(directory: Path) -> int:
    """Holds the run until the handle is closed or the process ends, however it ends."""
    with _translated(directory / LOCK):
        _check_directory(directory)
        handle = _open_file(directory / LOCK)
        try:
            _flock(handle, tries=5)
        except BlockingIOError:
            os.close(handle)
            raise RunHeld(f"run {directory.name} is running ({_live(directory)}); nothing was touched") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {_iso(seams.now_us())}".encode(), 0)
    return handle


def _live(directory: Path) -> str:
    """Who works on a run now, "" when nobody does."""
    try:
        handle = os.open(directory / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(handle, 300, 0).decode("utf-8", "replace") or "a process that is just starting"
    finally:
        os.close(handle)
    return ""


def _run_directories(root: Path) -> Iterator[Path]:
    with _translated(root), suppress(FileNotFoundError), os.scandir(root) as entries:
        for entry in entries:
            if RUN_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _live_others(directory: Path) -> Iterator[tuple[Path, str]]:
    for other in _run_directories(directory.parent):
        if other.name != directory.name and (holder := _live(other)):
            yield other, holder


def _find(root: Path, run: str | None) -> Path:
    if run is not None:
        directory = root / run
        if not RUN_NAME.fullmatch(run) or directory.is_symlink() or not directory.is_dir():
            raise UsageError(f"no run {run!r} in {root}", hint="`aimport runs` lists them")
        return directory
    known = runs(root)
    if not known:
        raise UsageError(f"no run in {root}")
    return next((info for info in known if not info.finished), known[0]).directory


def _info(directory: Path) -> RunInfo | None:
    """`run.json`; where it does not read, what the journal itself says. None: a run that never began."""
    live = _live(directory)
    try:
        raw = json.loads((directory / INFO).read_bytes())
        if raw.pop("seal") != _seal((), _json(raw)):
            raise ValueError("does not match its checksum")
        return RunInfo(
            run=directory.name,
            directory=directory,
            job=str(raw["job"]),
            created=str(raw["created"]),
            finished=raw["finished"] is True and not live,
            arguments=msgspec.convert(raw["arguments"], RunArguments),
            counts={str(key): int(value) for key, value in raw["counts"].items()},
            live=live,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
        damage = "" if isinstance(error, FileNotFoundError) else f"{directory / INFO}: {error}"
    meta = _Meta(run=directory.name, job="", arguments=NO_ARGUMENTS, created_us=0)
    try:
        with _translated(directory / DATABASE), closing(_connect(directory / DATABASE, write=False)) as db:
            meta = _read_meta(db, directory.name, directory)
    except JournalError as error:
        if not damage:
            return None
        damage = str(error)
    return RunInfo(
        run=directory.name,
        directory=directory,
        job=meta.job,
        created=_iso(meta.created_us),
        finished=False,
        arguments=meta.arguments,
        counts={},
        live=live,
        damage=damage,
    )
