"""Disks that fill, fail, lie or become read-only, below a whole run: F9 to F12, F31, and a power cut, F3.

Invariant: what is called stored is stored, the report adds up, nothing is left in part; and a resume, once the disk is
well, ends as an uncut run.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.faults.forks import Done, Forks, run_forks
from tests.faults.jobs import Job, write_maildir
from tests.faults.steps import CHANGES, READS, Steps
from tests.fix_dovecot import Dovecot

pytestmark = pytest.mark.timeout(400)

PW: Final = {"PW": "pass"}


@pytest.fixture(scope="module")
def mounts() -> Iterator[Forks]:
    """Commands in a mount namespace of their own."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(run_forks(mounts=True))
        except AssertionError:
            pytest.skip("no mount namespace of one's own here: that takes root")


def check_in_between(job: Job, done: Done) -> None:
    """After a failure: told without a trace, nothing twice, nothing in part, no more called stored than is."""
    assert "Traceback" not in done.err, done.err
    assert "internal error" not in done.err, done.err
    held = job.held()
    assert held <= job.expected
    if done.out:
        assert done.totals["imported"] <= held.total()
    if not job.port:
        assert not list(job.to.rglob("tmp/*")), "a part was left"


def fail_at_each(job: Job, forks: Forks, steps: Steps, *, codes: frozenset[int], every: int = 1) -> dict[int, int]:
    """Fails each step in turn and goes on; how often each exit code was seen."""
    seen: dict[int, int] = {}
    for number in itertools.count(1, every):
        job.fresh()
        done = forks.run(job.import_words(), env=PW, batch_messages=2, steps=replace(steps, at=number))
        try:
            if done.code != 0:
                check_in_between(job, done)
            assert done.code in codes | {0}, done.err
            if done.code == 0:
                job.check_same(done)
            else:
                job.check_same(job.go_on(forks))
        except AssertionError as error:
            error.add_note(f"{steps.deed} at step {number}: {done.code} {done.err}")
            raise
        if not done.struck:
            return seen
        seen[done.code] = seen.get(done.code, 0) + 1
    raise AssertionError


WRITES: Final = tuple(op for op in CHANGES if op != "unlink")
JOURNAL: Final = ("mkdir", "write", "pwrite", "fsync", "replace", "ftruncate", "create", "commit")
FULL: Final = frozenset({75})
ONE: Final = frozenset({65, 75})


@pytest.mark.fault("F9", "F11", "F12")
@pytest.mark.parametrize(("error", "every"), [("ENOSPC", 2), ("EROFS", 7), ("EDQUOT", 5)])
def test_a_destination_that_fails_from_any_write_on_loses_nothing(
    error: str, every: int, forks: Forks, folder: Path
) -> None:
    job = Job(folder=folder)
    steps = Steps(ops=WRITES, at=0, deed=error, below=str(job.to), lasts=True)
    seen = fail_at_each(job, forks, steps, codes=FULL | {73}, every=every)
    assert seen.get(73, 0) > 3 if error == "EDQUOT" else seen.get(75, 0) > 3


@pytest.mark.fault("F9")
@pytest.mark.parametrize(("error", "every"), [("ENOSPC", 2), ("EIO", 4)])
def test_a_journal_that_fails_from_any_write_on_stops_the_run(
    error: str, every: int, forks: Forks, folder: Path
) -> None:
    job = Job(folder=folder)
    steps = Steps(ops=JOURNAL, at=0, deed=error, below=str(job.journal), lasts=True)
    assert fail_at_each(job, forks, steps, codes=FULL, every=every)[75] > 10


@pytest.mark.fault("F10")
def test_one_write_that_fails_costs_its_message_or_its_mailbox(forks: Forks, folder: Path) -> None:
    """Also a sync: what was written before it is not trusted."""
    job = Job(folder=folder)
    steps = Steps(ops=WRITES, at=0, deed="EIO", below=str(job.to))
    assert fail_at_each(job, forks, steps, codes=ONE, every=3)[65] > 2


@pytest.mark.fault("F10")
def test_one_look_at_the_source_that_fails_costs_its_message_or_its_mailbox(forks: Forks, folder: Path) -> None:
    job = Job(folder=folder)
    before = sorted((folder / "from").rglob("*"))
    steps = Steps(ops=tuple(READS), at=0, deed="EIO", below=str(folder / "from"))
    seen = fail_at_each(job, forks, steps, codes=ONE, every=2)
    assert seen[65] >= job.expected.total() // 2
    assert sorted((folder / "from").rglob("*")) == before


@pytest.mark.fault("F11")
def test_a_short_write_is_continued(forks: Forks, folder: Path) -> None:
    job = Job(folder=folder)
    steps = Steps(ops=("write", "pwrite"), at=0, deed="short", below=str(job.to))
    assert fail_at_each(job, forks, steps, codes=frozenset()) == {0: job.expected.total()}


@pytest.mark.fault("F31")
@pytest.mark.parametrize(
    ("octets", "code"),
    [(2_000, 75), (20_000, 75), (40_000, 75), (80_000, 75), (160_000, 75), (2_000_000, 65), (4_000_000, 0)],
)
def test_a_limit_of_file_sizes_loses_nothing(octets: int, code: int, forks: Forks, folder: Path) -> None:
    """`ulimit -f`: the journal meets it, or one message does."""
    write_maildir(folder / "from")
    big = folder / "from" / "cur" / "1500000900.big:2,S"
    big.write_bytes(b"Subject: big\n\n" + b"x" * 3_000_000 + b"\n")
    os.utime(big, (1_500_000_900, 1_500_000_900))
    job = Job(folder=folder)
    done = forks.run(job.import_words(), env=PW, batch_messages=2, limits={"FSIZE": octets})
    check_in_between(job, done)
    assert done.code == code, done.err
    job.check_same(job.go_on(forks))


@pytest.mark.fault("F9", "F31")
@pytest.mark.dovecot
def test_a_large_message_without_room_for_a_temporary_file_is_named_and_the_others_arrive(
    forks: Forks, folder: Path, dovecot: Dovecot, unique_user: str
) -> None:
    source = Job(folder=folder)
    (folder / "from" / "cur" / "1500000900.big:2,S").write_bytes(b"Subject: big\n\n" + b"x" * 6_000_000 + b"\n")
    shutil.copytree(folder / "from", dovecot.maildir(unique_user))
    dovecot.own(dovecot.home(unique_user))
    words = [
        "-osource_password=env:PW", "import", "-u", unique_user, "--to", f"maildir:{source.to}", "--json",
        "--journal", str(source.journal), f"imap://127.0.0.1:{dovecot.port}/?tls=off", "", "ALL",
    ]  # fmt: skip
    (folder / "tmp").mkdir()
    done = forks.run(words, env={**PW, "TMPDIR": str(folder / "tmp")}, limits={"FSIZE": 5_000_000})
    assert done.code == 65, done.err
    assert done.report["totals"]["reasons"] == {"skipped": {}, "rejected": {"nospace": 1}}
    [rejects] = source.journal.glob("2*/rejects.jsonl")
    assert "temporary file" in json.loads(rejects.read_text())["text"]
    assert source.held() == source.expected
    assert not list((folder / "tmp").iterdir())
    again = forks.run(source.resume_words(), env={**PW, "TMPDIR": str(folder / "tmp")})
    assert again.code == 0 and again.totals["imported"] == source.expected.total() + 1, again.err


# On file systems of the test's own


@pytest.fixture
def loop(mounts: Forks, folder: Path) -> Iterator[Job]:
    """A small ext4 that holds the whole job, as the mount namespace of `mounts` has it."""
    image, inner = folder / "ext4", folder / "mounted"
    inner.mkdir()
    making: tuple[tuple[str | Path, ...], ...] = (
        ("truncate", "-s", "24M", image),
        ("mkfs.ext4", "-q", "-F", image),
        ("mount", "-o", "loop", image, inner),
    )
    for words in making:
        if said := mounts.shell(*words):
            pytest.skip(f"no ext4 of one's own here: {said}")
    try:
        yield Job(folder=Path(f"/proc/{mounts.server_pid}/root{inner}"), inner=inner)
    finally:
        mounts.shell("umount", inner)


@pytest.mark.fault("F3")
def test_a_power_cut_at_changes_of_files_loses_and_doubles_nothing(loop: Job, mounts: Forks, folder: Path) -> None:
    """What was not synced is gone: the journal still loads, and what it calls stored is stored."""
    inner = str(loop.inner)
    cut = 0
    assert not mounts.shell("sync", "-f", inner)
    for number in itertools.count(1, 7):
        steps = Steps(ops=tuple(CHANGES), at=number, deed="power", below=inner, place=inner)
        done = mounts.run(loop.import_words(), env=PW, batch_messages=2, steps=steps)
        if not done.struck:
            assert cut > 10
            return
        cut += 1
        assert not mounts.shell("umount", inner)
        assert not mounts.shell("mount", "-o", "loop", folder / "ext4", inner)
        try:
            held = loop.held()
            again = loop.go_on(mounts)
            assert held <= loop.expected
            loop.check_same(again)
        except AssertionError as error:
            error.add_note(f"cut at step {number}")
            raise
        loop.fresh()
        assert not mounts.shell("sync", "-f", inner)
