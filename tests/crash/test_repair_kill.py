"""Kill -9 at every step of a run that repairs, resume, and count what the destination holds.

Invariant: every message is there once, as itself or repaired; each repair is recorded once and its original kept.

This file is also the program that is killed: `python -m tests.crash.test_repair_kill ROOT`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from aimport.errors import UsageError
from aimport.journal import Journal, RunArguments
from aimport.limits import Limits
from aimport.model import Message, Uid
from aimport.octets import whole
from aimport.stores.memory import MemoryMailbox
from tests.crash.test_journal_kill import run_killed
from tests.pipeline.harness import World, bodies

DATE: Final = datetime(2020, 1, 1, tzinfo=UTC)
HOPELESS: Final = b"Subject: hopeless\r\n\r\n\0no end"
_write = os.write


def bad(number: int) -> bytes:
    """Refused; the second version of it is taken."""
    return b"Subject: %d\0\r\n\r\nno end" % number


def mended(number: int) -> bytes:
    return b"Subject: %d\r\n\r\nno end\r\n" % number


SENT: Final = [*bodies(1), bad(1), bad(1), HOPELESS, bad(2), *bodies(1, start=1)]


class KeptMailbox(MemoryMailbox):
    """A mailbox that outlives its process: one line a message in a file."""

    __slots__ = ("file",)
    file: Path

    def add(self, body: bytes, *, flags: Sequence[str], internal_date: datetime, wire: bool = False) -> Uid:
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND)
        _write(handle, json.dumps(body.decode("latin-1")).encode() + b"\n")
        os.close(handle)
        return super().add(body, flags=flags, internal_date=internal_date, wire=wire)


def destination(root: Path) -> Path:
    return root.parent / "destination"


def stored(root: Path) -> list[bytes]:
    return [json.loads(line).encode("latin-1") for line in destination(root).read_text().splitlines()]


def refuse(message: Message) -> tuple[str, str] | None:
    body = whole(message.body)
    return ("", "no") if b"\0" in body or b"hopeless" in body else None


async def work(root: Path) -> None:
    """Begins the run, or goes on with it, and brings it to its end."""
    mailbox = KeptMailbox(uidvalidity=7)
    mailbox.file = destination(root)
    for body in stored(root):
        MemoryMailbox.add(mailbox, body, flags=(), internal_date=DATE)
    try:
        journal = Journal.reopen(root, None)
    except UsageError:
        assert not mailbox.messages
        journal = Journal.create(root, job="j", arguments=RunArguments(argv=(), cwd="/"))
    world = World(limits=Limits(retry_wait_s=0.001, fence_s=0.0, batch_messages=3, max_memory=1 << 20), journal=journal)
    world.new.accounts["bob"] = {("INBOX",): mailbox}
    world.new.refuse = refuse
    for body in SENT:
        world.old.mailbox("bob", ("INBOX",)).add(body, flags=(), internal_date=DATE)
    run = world.run()
    run.repair = True
    result = await world.import_("bob", run=run)
    assert result.balanced, result
    await journal.close(finished=True)


def check(root: Path) -> None:
    expected = [*bodies(2), mended(1), mended(1), mended(2)]
    assert Counter(stored(root)) == Counter(expected)
    with Journal.view(root, None) as journal:
        [result] = journal.results()
        assert (result.imported, result.altered, dict(result.rejected)) == (5, 3, {"refused": 1}), result
        assert journal.directory is not None
        folder = journal.directory
    repairs = [json.loads(line) for line in (folder / "repairs.jsonl").read_text().splitlines()]
    assert [line["key"] for line in sorted(repairs, key=lambda line: str(line["key"]))] == ["1:2", "1:3", "1:5"]
    for line in repairs:
        original = SENT[int(line["key"].partition(":")[2]) - 1]
        taken = original.replace(b"\0", b"") + b"\r\n"
        assert line["stored"] == {"size": len(taken), "sha256": hashlib.sha256(taken).hexdigest()}
        assert (folder / line["escrow"]).read_bytes() == original
    [reject] = (folder / "rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["key"] == "1:4"
    assert not list((folder / "escrow").glob("*.new"))


def every_step(root: Path) -> Iterator[int]:
    """Kills at each step in turn, then once more during the resume; ends with the first uncut run."""
    draw = random.Random(1)
    for last in itertools.count(1):
        shutil.rmtree(root, ignore_errors=True)
        destination(root).write_text("")
        uncut = run_killed(root, last, work)
        if not uncut and not run_killed(root, draw.randrange(1, 90), work):
            assert run_killed(root, 0, work)
        check(root)
        yield last
        if uncut:
            return


@pytest.mark.timeout(400)
@pytest.mark.fault("F1")
def test_a_kill_at_any_step_of_a_repair_loses_doubles_and_hides_nothing(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else tmp_path) as place:
        command = [sys.executable, "-m", "tests.crash.test_repair_kill", f"{place}/root"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=380)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


if __name__ == "__main__":
    print(max(every_step(Path(sys.argv[1]))))
