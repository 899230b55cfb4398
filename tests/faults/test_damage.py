"""A journal that is damaged, and bugs of our own: F27, F35."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests import mail
from tests.faults.forks import Forks
from tests.faults.jobs import Job, write_maildir
from tests.faults.steps import CHANGES, READS, Steps

pytestmark = pytest.mark.timeout(200)

PW: Final = {"PW": "pass"}


# F27


def interrupted(job: Job, forks: Forks) -> Path:
    """A run killed in its midst, with its write-ahead log as it was; its directory."""
    steps = Steps(ops=("rename",), at=7, deed="kill", below=str(job.to))
    done = forks.run(job.import_words(), env=PW, batch_messages=2, steps=steps)
    assert done.code == -signal.SIGKILL
    [info] = job.journal.glob("2*/run.json")
    return info.parent


def check_same_or_refused(job: Job, forks: Forks) -> bool:
    """A resume ends as an uncut run, or touches nothing and says where the damage is and what to do; True: as uncut."""
    before = mail.tree(job.to)
    done = forks.run(job.resume_words(), env=PW, batch_messages=2)
    assert "Traceback" not in done.err and "internal error" not in done.err, done.err
    if done.code == 0:
        job.check_same(done)
        return True
    assert done.code == 75, (done.code, done.err)
    assert str(job.journal) in done.err
    assert "aimport import --again --skip-existing" in done.err or "use the aimport that began the run" in done.err
    assert done.out == ""
    assert mail.tree(job.to) == before
    return False


@pytest.mark.fault("F27")
def test_a_bit_anywhere_in_a_journal_leaves_a_resume_that_ends_well_or_touches_nothing(
    forks: Forks, folder: Path
) -> None:
    job = Job(folder=folder)
    directory = interrupted(job, forks)
    shutil.copytree(folder / "to", folder / "to.kept")
    shutil.copytree(folder / "journal", folder / "journal.kept")
    draw = random.Random(27)
    outcomes: list[bool] = []
    for name in ("journal.sqlite", "journal.sqlite-wal", "mark", "run.json"):
        whole = (folder / "journal.kept" / directory.name / name).read_bytes()
        used = [at for at, octet in enumerate(whole) if octet]
        for at in [*draw.sample(used, min(len(used), 9)), *range(0, len(whole), len(whole) // 5 + 1)]:
            shutil.rmtree(folder / "journal")
            shutil.rmtree(folder / "to")
            shutil.copytree(folder / "journal.kept", folder / "journal")
            shutil.copytree(folder / "to.kept", folder / "to")
            octets = bytearray(whole)
            octets[at] ^= 1 << draw.randrange(8)
            (directory / name).write_bytes(octets)
            try:
                outcomes.append(check_same_or_refused(job, forks))
            except AssertionError as error:
                error.add_note(f"{name}, octet {at}")
                raise
    assert outcomes.count(True) > 7 and outcomes.count(False) > 3


def without_log(directory: Path) -> None:
    """As a clean end leaves it: all is in the database. A log that has all would mend it."""
    with sqlite3.connect(directory / "journal.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def emptied(directory: Path) -> None:
    (directory / "journal.sqlite").write_bytes(b"")


def garbage(directory: Path) -> None:
    without_log(directory)
    (directory / "journal.sqlite").write_bytes(random.Random(1).randbytes(100_000))


def newer(directory: Path) -> None:
    with sqlite3.connect(directory / "journal.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    db.close()


def of_another_run(directory: Path) -> None:
    directory.rename(directory.with_name("20200101-000000-abcd"))


def deleted(directory: Path) -> None:
    (directory / "journal.sqlite").unlink()


def cut_in_half(directory: Path) -> None:
    without_log(directory)
    os.truncate(directory / "journal.sqlite", (directory / "journal.sqlite").stat().st_size // 2)


def log_cut_in_half(directory: Path) -> None:
    os.truncate(directory / "journal.sqlite-wal", (directory / "journal.sqlite-wal").stat().st_size // 2)


def log_gone(directory: Path) -> None:
    (directory / "journal.sqlite-wal").unlink()


@pytest.mark.fault("F27")
@pytest.mark.parametrize("damage", [emptied, garbage, newer, of_another_run, cut_in_half, log_cut_in_half, log_gone])
def test_a_damaged_journal_is_refused_with_its_place_and_what_to_do(
    damage: Callable[[Path], None], forks: Forks, folder: Path
) -> None:
    """It never begins afresh by itself: the import is refused as well, for the run is unfinished."""
    job = Job(folder=folder)
    damage(interrupted(job, forks))
    assert not check_same_or_refused(job, forks)
    before = mail.tree(job.to)
    afresh = forks.run(job.import_words(), env=PW)
    assert afresh.code != 0 and mail.tree(job.to) == before, afresh.err


@pytest.mark.fault("F27")
@pytest.mark.parametrize("torn", [b"torn", b"\0" * 3000, b"\xff" * 20_000])
def test_a_torn_tail_is_cut_and_looked_after(torn: bytes, forks: Forks, folder: Path) -> None:
    """What a crash leaves of a transaction that was never acknowledged."""
    job = Job(folder=folder)
    with (interrupted(job, forks) / "journal.sqlite-wal").open("ab") as log:
        log.write(torn)
    assert check_same_or_refused(job, forks)


@pytest.mark.fault("F27")
def test_a_journal_deleted_under_a_run_stops_it(forks: Forks, folder: Path) -> None:
    job = Job(folder=folder)
    mark = folder / "works"
    steps = Steps(ops=("rename",), at=4, deed="wait", below=str(job.to), place=str(mark))
    forks.start(job.import_words(), env=PW, batch_messages=2, steps=steps)
    while not mark.exists():
        assert Path(f"/proc/{forks.pid}").exists()
    [path] = job.journal.glob("2*/journal.sqlite")
    path.unlink()
    mark.unlink()
    done = forks.wait()
    assert done.code == 75, done.err
    assert f"{path} was deleted or replaced" in done.err


# F35


USERS: Final = ("ann", "bob", "cyd")


@pytest.mark.fault("F35")
@pytest.mark.parametrize("place", ["from", "to"])
def test_a_bug_at_any_step_of_a_user_ends_that_user_alone_and_shows_nothing(
    place: str, forks: Forks, folder: Path
) -> None:
    """Nothing hangs, the others are done, what is told holds no words of the exception, and a resume ends well."""
    for user in USERS:
        write_maildir(folder / "from" / user)
    (folder / "users").write_text("".join(f"{user}\n" for user in USERS))
    words = [
        "import", "-F", f"{folder}/users", "--to", f"maildir:{folder}/to/%u", "--json",
        "--journal", f"{folder}/journal", f"maildir:{folder}/from/%u", "", "ALL",
    ]  # fmt: skip
    expected = mail.in_maildir(folder / "from" / "bob")
    codes: dict[int, int] = {}
    for number in itertools.count(1, 4):
        shutil.rmtree(folder / "to", ignore_errors=True)
        shutil.rmtree(folder / "journal", ignore_errors=True)
        # Not `sync`: one serves all users.
        ops = tuple(op for op in CHANGES + READS if op != "sync")
        steps = Steps(ops=ops, at=number, deed="bug", below=str(folder / place / "bob"))
        done = forks.run(words, batch_messages=2, steps=steps)
        if not done.struck:
            break
        codes[done.code] = codes.get(done.code, 0) + 1
        try:
            assert "Traceback" not in done.err and "canary-of-a-bug" not in done.err + done.out
            assert done.totals["found"] >= 20
            statuses = {each["user"]: each["status"] for each in done.report["users"]}
            assert statuses["ann"] == statuses["cyd"] == "done"
            if done.code == 70:
                assert statuses["bob"] == "failed" and "RuntimeError" in done.err
            again = forks.run(["resume", "--json", "--journal", f"{folder}/journal"], batch_messages=2)
            assert again.code == 0 and again.totals["imported"] == 3 * expected.total(), again.err
            for user in USERS:
                assert mail.in_maildir(folder / "to" / user) == expected
            assert not list((folder / "to").rglob("tmp/*"))
        except AssertionError as error:
            error.add_note(f"at step {number}: {done.code} {done.err}")
            raise
    assert codes[70] > 5
