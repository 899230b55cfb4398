"""Kill -9 at every step of the journal, resume, and count what the destination holds.

Invariant: whatever step ends the process, and whatever step ends the resume, the run can be
gone on with, no durable intent is forgotten, and at the end every message is at the
destination exactly once. The destination is a file that is appended to between intent and commit.

This file is also the program that is killed: `python -m tests.crash.test_journal_kill ROOT [STEP]`.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aimport.errors import UsageError
from aimport.journal import Journal, LaneLog, RunArguments
from aimport.model import Appended, Fingerprint, Message, MessageKey, Position, Rejected
from aimport.results import UserResult

USERS = ("bob", "eve")
MAILBOXES = ("INBOX", "Sent")
MESSAGES = 5
REJECTED = MessageKey("3")

_write = os.write
_steps = itertools.count(1)


def step_counted(call: Callable[..., Any], last: int) -> Callable[..., Any]:
    """`call`, but step number `last` of the process kills it first."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(_steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return counted


def install(last: int) -> None:
    """Counts everything that changes a file of the journal."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if not sql.startswith(("SELECT", "PRAGMA")):
                return step_counted(super().execute, last)(sql, *args)  # type: ignore[no-any-return]
            return super().execute(sql, *args)

    sqlite3.connect = functools.partial(sqlite3.connect, factory=Connection)  # type: ignore[assignment]
    for name in ("open", "mkdir", "write", "pwrite", "fsync", "replace", "ftruncate"):
        setattr(os, name, step_counted(getattr(os, name), last))


def some(keys: list[str]) -> tuple[list[Message], list[Fingerprint]]:
    messages = [
        Message(key=MessageKey(key), flags=frozenset(), internal_date=datetime(2020, 1, 1, tzinfo=UTC), body=b"")
        for key in keys
    ]
    return messages, [Fingerprint(size=1, digest=hashlib.sha256(key.encode()).digest()) for key in keys]


def at_destination(root: Path) -> Counter[tuple[str, str, str]]:
    with open(root.parent / "destination") as file:
        return Counter(tuple(json.loads(line)) for line in file)


async def copy(root: Path, user: str, mailbox: str, lane: LaneLog, seen: Counter[tuple[str, str, str]]) -> None:
    """What the pipeline does: settle what is in doubt, send what is not done."""
    for batch in lane.open_batches:
        found = {index: None for index, key in enumerate(batch.keys) if seen[user, mailbox, key]}
        await lane.settle(batch.number, found)
    left = [str(number) for number in range(MESSAGES) if not lane.is_settled(str(number))]
    for start in range(0, len(left), 2):
        messages, prints = some(left[start : start + 2])
        batch_sent = await lane.intent(messages, prints)
        outcomes: list[Appended | Rejected] = []
        for message in messages:
            if message.key == REJECTED:
                outcomes.append(Rejected(key=message.key, code="TOOBIG", text="no"))
                continue
            handle = os.open(root.parent / "destination", os.O_WRONLY | os.O_APPEND)
            _write(handle, json.dumps([user, mailbox, message.key]).encode() + b"\n")
            os.close(handle)
            outcomes.append(Appended(key=message.key))
        await lane.commit(batch_sent, outcomes)


async def work(root: Path) -> None:
    """Begins the run, or goes on with it, and brings it to its end."""
    seen = at_destination(root)
    try:
        journal = Journal.reopen(root, None)
    except UsageError:
        assert not seen
        journal = Journal.create(root, job="j", arguments=RunArguments(argv=(), cwd="/"), identities=USERS)

    async def one(user: str) -> None:
        log = await journal.begin_user(user, user)
        for mailbox in MAILBOXES:
            lane = await log.lane(mailbox, mailbox, Position())
            await copy(root, user, mailbox, lane, seen)
        await journal.finish_user(user, UserResult(user=user, status="rejects"))

    async with asyncio.TaskGroup() as tasks:
        for user in USERS:
            tasks.create_task(one(user))
    await journal.close(finished=True)


def run_killed(root: Path, last: int, work: Callable[[Path], Coroutine[Any, Any, None]] = work) -> bool:
    """Works in a child process that dies at step `last`; whether it came to its end before that."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            install(last)
            asyncio.run(work(root))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"failed at step {last}"
    return not os.WIFSIGNALED(status)


def check(root: Path) -> None:
    expected = {
        (user, mailbox, str(number))
        for user in USERS
        for mailbox in MAILBOXES
        for number in range(MESSAGES)
        if str(number) != REJECTED
    }
    assert at_destination(root) == Counter(expected)
    with Journal.view(root, None) as journal:
        assert [result.user for result in journal.results()] in (list(USERS), list(USERS[::-1]))
        entries = [(user, entry) for user in USERS for entry in journal.entries(user)]
        ended = Counter((user, e.lane.source, e.key) for user, e in entries if isinstance(e.outcome, Appended))
        assert ended == Counter(expected)
        assert journal.directory is not None
        rejects = [json.loads(line) for line in (journal.directory / "rejects.jsonl").read_text().splitlines()]
    assert Counter((line["user"], line["mailbox"]) for line in rejects) == Counter(itertools.product(USERS, MAILBOXES))


def fresh(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    (root.parent / "destination").write_text("")


def every_step(root: Path) -> Iterator[int]:
    """Kills at each step in turn, then once more during the resume; ends with the first uncut run."""
    draw = random.Random(1)
    for last in itertools.count(1):
        fresh(root)
        whole = run_killed(root, last)
        if not whole:
            again = draw.randrange(1, 60)
            if not run_killed(root, again):
                assert run_killed(root, 0)
        check(root)
        yield last
        if whole:
            return


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: kill -9 does not ask what was synced."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else tmp_path) as place:
        yield Path(place) / "root"


@pytest.mark.fault("F1")
def test_a_kill_at_any_step_loses_and_doubles_nothing(root: Path) -> None:
    command = [sys.executable, "-m", "tests.crash.test_journal_kill", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


@pytest.mark.fault("F1")
def test_a_kill_inside_sqlite_loses_and_doubles_nothing(root: Path, strace: Path) -> None:
    trace = root.parent / "trace"
    command = [sys.executable, "-m", "tests.crash.test_journal_kill", str(root), "0"]
    kills = 0
    for when in (1, 2, 3, 5, 8, 13, 21, 34, 55):
        fresh(root)
        inject = ["-e", "trace=pwrite64,fdatasync,fsync", "-e", f"inject=pwrite64:signal=KILL:when={when}"]
        traced = subprocess.run([strace, "-f", "-o", str(trace), *inject, *command], check=False)
        kills += traced.returncode != 0
        subprocess.run(command, check=True)
        check(root)
    assert kills >= 7


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if len(sys.argv) > 2:
        asyncio.run(work(place))
    else:
        print(max(every_step(place)))
