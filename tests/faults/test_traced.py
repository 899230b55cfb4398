"""Faults at exact system calls, by strace: of the server that stores (F4), of ours (F10, F11)."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests import mail
from tests.faults.forks import Done, Forks
from tests.faults.jobs import Job, write_maildir
from tests.faults.steps import Steps
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.fix_faults import Fault, Link, before, call, run_proxy

pytestmark = pytest.mark.timeout(200)

PW: Final = {"PW": "pass"}


@pytest.fixture(scope="module")
def quiet() -> Iterator[Dovecot]:
    """With no sessions but those of the test."""
    with run_dovecot() as server:
        yield server


def killed_at(point: str, job: Job, forks: Forks, server: Dovecot, strace: Path) -> tuple[Done, bool]:
    """Imports; the server's session is killed on entering a system call after it was sent APPEND. Whether it was."""
    tracers: list[subprocess.Popen[str]] = []
    name, _, when = point.partition(":")

    def attach() -> None:
        deadline = time.monotonic() + 20
        while len(pids := server.imap_session_pids()) != 1:  # one of before may still be ending
            assert time.monotonic() < deadline, pids
        [pid] = pids
        inject = f"inject={name}:signal=KILL:when={when}"
        command = [strace, "-p", str(pid), "-o", job.folder / "trace", "-e", f"trace={name}", "-e", inject]
        tracer = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
        tracers.append(tracer)
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()

    def plan(link: Link) -> Fault | None:
        if link.number == 1:
            return Fault(before(rb"^a\d+ APPEND ", client=True), call(attach))
        lock = server.maildir(job.user) / "dovecot-uidlist.lock"
        if lock.exists() and not lock.stat().st_size:  # for one that names nobody Dovecot waits two minutes
            lock.unlink()
        return None

    with run_proxy(server.port, plan) as proxy:
        job.port = proxy.port
        done = forks.run(["-v", *job.import_words()], env=PW)
    [tracer] = tracers
    tracer.communicate(timeout=60)
    return done, "killed by SIGKILL" in (job.folder / "trace").read_text()


@pytest.mark.fault("F4")
@pytest.mark.dovecot
@pytest.mark.parametrize(
    ("point", "stored"),
    [("write:1", 0), ("rename:1", 0), ("fdatasync:1", 1), ("rename:2", 1)],
)
def test_a_session_killed_on_its_way_to_store_a_message_costs_and_doubles_nothing(
    point: str, stored: int, forks: Forks, folder: Path, quiet: Dovecot, strace: Path, unique_user: str
) -> None:
    """Before the octets are written; before they are synced; before they have a name; after; and before the OK."""
    write_maildir(folder / "from", mailboxes=("",), pieces=1)
    job = Job(folder=folder, user=unique_user)
    done, killed = killed_at(point, job, forks, quiet, strace)
    assert killed, done.err
    assert f"messages=1 found={stored}" in done.err, done.err
    assert done.code == 0 and done.totals["imported"] == 1
    assert mail.in_imap(quiet.port, unique_user, "pass") == job.expected


@pytest.mark.slow
@pytest.mark.fault("F4")
@pytest.mark.dovecot
@pytest.mark.parametrize("name", ["write", "pwrite64", "openat", "newfstatat", "close", "writev"])
def test_a_session_killed_at_any_system_call_costs_and_doubles_nothing(
    name: str, forks: Forks, folder: Path, quiet: Dovecot, strace: Path, unique_user: str
) -> None:
    """All five messages of a mailbox in one MULTIAPPEND."""
    write_maildir(folder / "from", mailboxes=("",))
    kills = 0
    for when in itertools.count(1, 3):
        job = Job(folder=folder, user=f"{when}-{unique_user}")
        job.fresh()
        done, killed = killed_at(f"{name}:{when}", job, forks, quiet, strace)
        assert done.code == 0, (when, done.err)
        assert done.totals["imported"] == job.expected.total()
        assert mail.in_imap(quiet.port, job.user, "pass") == job.expected, when
        kills += killed
        if not killed:
            break
    assert kills or name == "writev"


def interrupted(job: Job, forks: Forks) -> Path:
    """A run that was killed in its midst; its directory."""
    steps = Steps(ops=("rename",), at=3, deed="kill", below=str(job.to))
    assert forks.run(job.import_words(), env=PW, batch_messages=2, steps=steps).code == -signal.SIGKILL
    [info] = job.journal.glob("2*/run.json")
    return info.parent


def resume_traced(job: Job, strace: Path, *inject: str) -> subprocess.CompletedProcess[str]:
    """A resume of which system calls on the journal's write-ahead log fail."""
    [directory] = [path.parent for path in job.journal.glob("2*/run.json")]
    names = ",".join(sorted({re.split("[:,]", each)[0] for each in inject} | {"write"}))
    words = [
        strace,
        "-f",
        "-qq",
        "-o",
        job.folder / "trace",
        "-P",
        directory / "journal.sqlite-wal",
        "-e",
        f"trace={names}",
    ]
    for each in inject:
        words += ["-e", f"inject={each}"]
    command = [str(word) for word in words] + [sys.executable, "-m", "aimport", *job.resume_words()]
    return subprocess.run(command, env=mail.environment(PW), capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.fault("F10")
@pytest.mark.parametrize("when", [2, 4])  # at the first the run is opened, and SQLite checkpoints what was there
def test_a_sync_of_the_journal_that_fails_ends_the_run_and_is_not_tried_again(
    when: int, forks: Forks, folder: Path, strace: Path
) -> None:
    job = Job(folder=folder)
    interrupted(job, forks)
    done = resume_traced(job, strace, f"fdatasync:error=EIO:when={when}")
    assert done.returncode == 75, done.stderr
    assert "journal.sqlite: disk I/O error" in done.stderr and "resume" in done.stderr
    trace = (folder / "trace").read_text()
    assert trace.count("(INJECTED)") == 1
    assert "fdatasync" not in trace.partition("(INJECTED)")[2], "it was asked again and believed"
    job.check_same(job.go_on(forks))


@pytest.mark.fault("F11")
@pytest.mark.parametrize("error", ["EINTR", "EDQUOT"])
def test_calls_of_the_journal_that_are_interrupted_or_refused_lose_nothing(
    error: str, forks: Forks, folder: Path, strace: Path
) -> None:
    job = Job(folder=folder)
    interrupted(job, forks)
    done = resume_traced(job, strace, f"pwrite64:error={error}:when=3+5")
    assert "(INJECTED)" in (folder / "trace").read_text()
    assert done.returncode == (0 if error == "EINTR" else 75), done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    with suppress(FileNotFoundError):
        (folder / "trace").unlink()
    job.check_same(job.go_on(forks))


@pytest.mark.fault("F11")
def test_writes_of_a_whole_run_that_are_interrupted_are_made_again(folder: Path, strace: Path) -> None:
    """EINTR for every third write, to any file or stream."""
    job = Job(folder=folder)
    names = "write,pwrite64"
    words = [
        strace,
        "-f",
        "-qq",
        "-o",
        folder / "trace",
        "-e",
        f"trace={names}",
        "-e",
        f"inject={names}:error=EINTR:when=3+3",
    ]
    command = [*map(str, words), sys.executable, "-m", "aimport", *job.import_words()]
    done = subprocess.run(command, env=mail.environment(PW), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "trace").read_text().count("(INJECTED)") > 20
    assert job.held() == job.expected
