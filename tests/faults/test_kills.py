"""Kill -9, and what else ends a process, at every step; resume; the destination is that of an uncut run.

Invariant of each test here: `Job.check_same`.
"""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests import mail
from tests.faults.forks import Forks, run_forks
from tests.faults.jobs import Job, write_maildir
from tests.faults.steps import CHANGES, Steps
from tests.fix_dovecot import Dovecot
from tests.fix_faults import before, first, kill_client, run_proxy

pytestmark = pytest.mark.timeout(400)

PW = {"PW": "pass"}


def kill_at_each(job: Job, forks: Forks, steps: Steps, *, every: int = 1, server: int = 0) -> int:
    """Kills at each step in turn and goes on; how many steps there were. `server`: the port to look at what is held."""
    killed = 0
    for number in itertools.count(1, every):
        job.fresh()
        if job.port:
            job.user = f"{number}-{os.path.basename(job.folder)}"
        done = forks.run(job.import_words(), env=PW, batch_messages=2, steps=replace(steps, at=number), then=job.then)
        if not done.struck:
            assert killed and done.code == 0, done.err
            return number
        assert done.code == -signal.SIGKILL, (number, done.err)
        killed += 1
        again = job.go_on(forks)
        try:
            assert again.code == 0, again.err
            assert again.totals["imported"] == again.totals["found"] == job.expected.total(), again.out
            held = mail.in_imap(server, job.user, "pass") if server else job.held()
            assert held == job.expected
            assert not list(job.to.rglob("tmp/*"))
        except AssertionError as error:
            error.add_note(f"killed at step {number}")
            raise
    raise AssertionError


@pytest.mark.fault("F1")
def test_a_kill_at_any_journal_record_of_an_import_loses_and_doubles_nothing(forks: Forks, folder: Path) -> None:
    job = Job(folder=folder)
    steps = Steps(ops=("commit",), at=0, deed="kill", below=str(job.journal))
    assert kill_at_each(job, forks, steps) > 40


def killed_on_the_way_into_a_server(forks: Forks, folder: Path, dovecot: Dovecot, *, every: int) -> None:
    """The proxy lets a resume through when the server has ended the session of the one that was killed."""
    with run_proxy(dovecot.port, orderly=True) as proxy:
        job = Job(folder=folder, port=proxy.port)
        steps = Steps(ops=("commit",), at=0, deed="kill", below=str(job.journal))
        assert kill_at_each(job, forks, steps, every=every, server=dovecot.port) > 30


@pytest.mark.fault("F1")
@pytest.mark.dovecot
def test_a_kill_at_a_journal_record_of_an_import_into_a_server_loses_and_doubles_nothing(
    forks: Forks, folder: Path, dovecot: Dovecot
) -> None:
    killed_on_the_way_into_a_server(forks, folder, dovecot, every=3)


@pytest.mark.slow
@pytest.mark.fault("F1")
@pytest.mark.dovecot
def test_a_kill_at_any_journal_record_of_an_import_into_a_server_loses_and_doubles_nothing(
    forks: Forks, folder: Path, dovecot: Dovecot
) -> None:
    killed_on_the_way_into_a_server(forks, folder, dovecot, every=1)


@pytest.mark.slow
@pytest.mark.fault("F1")
def test_a_kill_at_any_change_of_any_file_loses_and_doubles_nothing(forks: Forks, folder: Path) -> None:
    job = Job(folder=folder)
    assert kill_at_each(job, forks, Steps(ops=tuple(CHANGES), at=0, deed="kill", below=str(folder))) > 100


@pytest.mark.fault("F1")
def test_a_kill_at_changes_of_files_loses_and_doubles_nothing(forks: Forks, folder: Path) -> None:
    job = Job(folder=folder)
    assert kill_at_each(job, forks, Steps(ops=tuple(CHANGES), at=0, deed="kill", below=str(folder)), every=8) > 100


def append_octets(job: Job, forks: Forks, dovecot: Dovecot) -> int:
    """So many octets has the one APPEND of an import."""
    with run_proxy(dovecot.port) as proxy:
        job.port = proxy.port
        done = forks.run(job.import_words(), env=PW)
        job.fresh()
    assert done.code == 0, done.err
    [sent] = [bytes(link.sent) for link in proxy.links if b" APPEND " in link.sent]
    start = sent.rindex(b"\r\n", 0, sent.index(b" APPEND ")) + 2
    return len(sent[start:].partition(b"\r\na")[0]) + 2


def killed_at_octets(job: Job, forks: Forks, dovecot: Dovecot, *, every: int) -> int:
    """Kills the client after every so many octets of its APPEND; the number of kills."""
    name = job.user
    octets = append_octets(job, forks, dovecot)
    for count in range(0, octets + 1, every):
        job.fresh()
        job.user = f"{count}-{name}"
        plan = first(before(rb"^a\d+ APPEND ", client=True, octets=count), kill_client(lambda: forks.pid))
        with run_proxy(dovecot.port, plan) as proxy:
            job.port = proxy.port
            done = forks.run(job.import_words(), env=PW)
            assert done.code == -signal.SIGKILL and proxy.faults, (count, done.err)
            again = job.go_on(forks)
        assert again.code == 0, (count, again.err)
        assert again.totals["imported"] == job.expected.total()
        assert mail.in_imap(dovecot.port, job.user, "pass") == job.expected, count
    return len(range(0, octets + 1, every))


@pytest.fixture
def one_message(folder: Path, unique_user: str) -> Job:
    write_maildir(folder / "from", mailboxes=("",), pieces=1)
    return Job(folder=folder, user=unique_user)


@pytest.mark.fault("F2")
@pytest.mark.dovecot
def test_a_kill_within_the_octets_of_an_append_loses_and_doubles_nothing(
    one_message: Job, forks: Forks, dovecot: Dovecot
) -> None:
    assert killed_at_octets(one_message, forks, dovecot, every=6) > 10


@pytest.mark.slow
@pytest.mark.fault("F2")
@pytest.mark.dovecot
def test_a_kill_at_each_octet_of_an_append_loses_and_doubles_nothing(
    one_message: Job, forks: Forks, dovecot: Dovecot
) -> None:
    assert killed_at_octets(one_message, forks, dovecot, every=1) > 80


@pytest.mark.fault("F28")
def test_a_second_instance_is_refused_at_once_and_the_lock_of_a_killed_one_is_free(folder: Path) -> None:
    """Import, resume and `--again` beside a run that works; after kill -9 each message is still there once."""
    job = Job(folder=folder)
    mark = folder / "works"
    with run_forks() as one, run_forks() as two:
        steps = Steps(ops=("rename",), at=3, deed="wait", below=str(job.to), place=str(mark))
        words = job.import_words()
        at = words.index("--json")
        words[at:at] = ["--connections-per-user", "1"]  # nothing but that step goes on
        one.start(words, env=PW, batch_messages=2, steps=steps)
        while not mark.exists():
            assert Path(f"/proc/{one.pid}").exists()
        before_that = mail.tree(job.to)
        again = job.import_words()
        again.insert(again.index("--json"), "--again")
        for typed in (job.import_words(), job.resume_words(), again):
            refused = two.run(typed, env=PW)
            assert refused.code == 69, refused.err
            assert f"process {one.pid}" in refused.err
            assert refused.out == ""
        assert mail.tree(job.to) == before_that
        os.kill(one.pid, signal.SIGKILL)
        assert one.wait().code == -signal.SIGKILL
        mark.unlink()
        unfinished = two.run(job.import_words(), env=PW)
        assert unfinished.code == 69 and "aimport resume" in unfinished.err, unfinished.err
        job.check_same(job.go_on(two))
