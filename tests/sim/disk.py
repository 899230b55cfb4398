"""The journal of a simulation: the real one, on files in memory, written on the loop, that fails and forgets.

Journal ── put ──▶ InlineWriter ── a timer of the loop ──▶ Journal._transact ──▶ real SQLite

A crash leaves an image of the files: what was synced, of the rest as much as the seed likes. The next process
goes on with that image.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from aimport import journal as module
from aimport.errors import JournalError, UsageError
from aimport.journal import (
    BEHIND_S,
    DATABASE,
    GROUP_S,
    MARK,
    REJECTS,
    Journal,
    RunArguments,
    Work,
    _answer,
    _Meta,
    _Op,
)
from tests.sim.faults import Faults

T = TypeVar("T")

JOB: Final = "job"
WAL: Final = DATABASE + "-wal"
SECTOR: Final = 512
FAILURES: Final = (
    "die before", "die in commit", "die after commit", "die after", "full at begin", "full at commit",
    "EIO at commit", "EIO after commit", "full at mark", "EIO at lines",
)  # fmt: skip


class Disk:
    """Where the journals of one seed lie, one directory for each process that died."""

    def __init__(self, base: Path, faults: Faults) -> None:
        self._base = base
        self._generation = 0
        self.faults = faults
        self.before: bytes | None = None
        """The write-ahead log as it was before the commit in which the process was killed."""

    @property
    def root(self) -> Path:
        return self._base / str(self._generation)

    def begin(self, die: Callable[[], None]) -> SimulatedJournal:
        """A new process takes the run up, or begins it."""
        try:
            journal = SimulatedJournal.reopen(self.root, None)
        except UsageError:
            journal = SimulatedJournal.create(self.root, job=JOB, arguments=RunArguments(argv=(), cwd="/"))
        assert isinstance(journal, SimulatedJournal)
        journal.attach(self, die)
        return journal

    def crash(self, directory: Path, *, power: bool) -> None:
        """The process was killed; `power`: the machine was, and what was not synced is lost as far as it likes."""
        chance = self.faults.chance
        self._generation += 1
        image = self.root / directory.name
        image.mkdir(mode=0o700, parents=True)
        self.root.chmod(0o700)
        for name in (DATABASE, WAL, MARK, REJECTS, "repairs.jsonl", "run.json"):
            try:
                octets = (directory / name).read_bytes()
            except FileNotFoundError:
                continue
            if name == WAL and self.before is not None:
                octets = _torn(self.before, octets, chance)
            if power and name == REJECTS:
                octets = octets[: chance.randrange(len(octets) + 1)]
            if power and name == MARK and chance.random() < 0.5:
                octets = b""
            handle = os.open(image / name, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(handle, octets)
            os.close(handle)
        self.before = None


def _torn(before: bytes, after: bytes, chance: random.Random) -> bytes:
    """A file in the middle of being written: each sector that differs is the old one or the new one."""
    size = chance.choice((len(before), len(after), chance.randrange(min(len(before), len(after)), len(after) + 1)))
    old = before.ljust(size, b"\0")
    return b"".join(
        (after if chance.random() < 0.5 else old)[at : min(at + SECTOR, size)] for at in range(0, size, SECTOR)
    )


def _killed(ops: Sequence[_Op]) -> list[object]:
    """What is left of the tasks of a dead process must not wait for ever."""
    return [JournalError("the process was killed") for _ in ops]


class InlineWriter:
    """Does what the writer thread does, by timers of the loop."""

    def __init__(self, journal: SimulatedJournal) -> None:
        self._journal = journal
        self._ops: list[_Op] = []
        self._timer: asyncio.TimerHandle | None = None

    def put(self, op: _Op) -> None:
        if self._journal.dead:
            _answer([op], _killed([op]))
            return
        self._ops.append(op)
        if isinstance(op.waiter, concurrent.futures.Future):
            self.flush()
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + (BEHIND_S if op.waiter is None else GROUP_S)
        if self._timer is None or self._timer.when() > when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(when, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ops, self._ops = self._ops, []
        if ops:
            answers = self._journal._transact(ops)
            _answer(ops, _killed(ops) if self._journal.dead else answers)

    def forget(self) -> None:
        """The process was killed."""
        ops, self._ops = self._ops, []
        _answer(ops, _killed(ops))

    def close(self) -> None:
        self.flush()


class SimulatedJournal(Journal):
    """One process' view of a journal that may fail at each step of writing, or die there."""

    disk: Disk

    def __init__(self, directory: Path | None, db: sqlite3.Connection, meta: _Meta, lock: int = -1) -> None:
        super().__init__(directory, db, meta, lock)
        self.dead = False
        self._fate: str | None = None
        self._die: Callable[[], None] = lambda: None
        self._attached = False

    def attach(self, disk: Disk, die: Callable[[], None]) -> None:
        self.disk, self._die = disk, die
        self._attached = True

    def _make_writer(self) -> InlineWriter:
        return InlineWriter(self)

    def drop(self, *, power: bool) -> None:
        """The process is dead: its image goes to the next, its handles are closed."""
        assert self.directory is not None
        if self.dead:
            return
        self.dead = True
        self.disk.crash(self.directory, power=power)
        if isinstance(self._writer, InlineWriter):
            self._writer.forget()

    @property
    def failed(self) -> bool:
        return self._failure is not None

    def discard(self) -> None:
        """Closes the handles of a dead process."""
        with suppress(sqlite3.Error):
            self._db.close()
        for handle in (self._mark, self._rejects, self._lock):
            if handle >= 0:
                os.close(handle)

    def _read(self, work: Work[T]) -> T:
        if self._attached and self.disk.faults.held_back and isinstance(self._writer, InlineWriter):
            self._writer.flush()  # for the checker: as the product does, in half the time
            return work(self._db)
        return super()._read(work)

    def _transact(self, ops: Sequence[_Op]) -> list[object]:
        fate = self.disk.faults.one_of(FAILURES, 0.2) if self._attached and self._failure is None else None
        if self._attached:
            self.disk.faults.note("journal", len(ops), fate)
        if fate == "die before":
            self._die()
        if self.dead:
            return _killed(ops)
        if fate == "die in commit":
            assert self.directory is not None
            self.disk.before = (self.directory / WAL).read_bytes()
        self._fate = fate
        assert isinstance(self._db, FailingConnection)
        self._db.fate = fate
        answers = super()._transact(ops)
        self._fate = self._db.fate = None
        if fate is not None and fate.startswith("die"):
            self._die()
        return answers

    def _committed(self, directory: Path, mark: int, ops: Sequence[_Op]) -> None:
        if self._fate in ("die in commit", "die after commit"):
            return
        if self._fate == "full at mark":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super()._committed(directory, mark, [] if self._fate == "EIO at lines" else ops)
        if self._fate == "EIO at lines":
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class FailingConnection(sqlite3.Connection):
    """A database on a disk that is full, or breaks, at the step that `fate` names."""

    fate: str | None = None

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if self.fate is not None and sql in ("BEGIN IMMEDIATE", "COMMIT"):
            if (sql, self.fate) == ("BEGIN IMMEDIATE", "full at begin") or (sql, self.fate) == (
                "COMMIT",
                "full at commit",
            ):
                raise sqlite3.OperationalError("database or disk is full")
            if sql == "COMMIT" and self.fate == "EIO at commit":
                raise sqlite3.OperationalError("disk I/O error")
            if sql == "COMMIT" and self.fate == "EIO after commit":
                super().execute(sql, *args)
                raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)


@contextmanager
def files_in_memory() -> Iterator[Path]:
    """A directory of its own on a file system in memory where there is one, gone at the end."""
    import tempfile

    shared = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="aimport-sim-", dir=shared if os.access(shared, os.W_OK) else None))
    connect = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=FailingConnection, **k))
        patch.setattr(module, "PAGE", 1024)
        try:
            yield base
        finally:
            shutil.rmtree(base)
