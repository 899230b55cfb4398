"""Who ends a run, and when: F25, F26.

Invariant: no trace, a report that adds up, and a resume that ends as an uncut run.
"""

from __future__ import annotations

import itertools
import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests import mail
from tests.faults.forks import Forks
from tests.faults.jobs import Job
from tests.faults.steps import CHANGES, READS, Steps

pytestmark = pytest.mark.timeout(200)

PW: Final = {"PW": "pass"}
IN_CHUNKS: Final = "tests.faults.hooks:in_chunks"
ANY: Final = tuple(CHANGES + READS)


@pytest.mark.fault("F25", "F26")
@pytest.mark.parametrize(
    ("signals", "every", "then"),
    [
        ("SIGTERM", 5, ""),
        ("SIGINT", 9, ""),
        ("SIGHUP", 13, ""),
        ("SIGTERM SIGTERM", 9, ""),
        ("SIGINT SIGINT", 13, ""),
        ("SIGTERM", 23, IN_CHUNKS),
        ("SIGINT SIGINT", 29, IN_CHUNKS),
    ],
)
def test_a_signal_at_any_step_stops_and_a_resume_goes_on(
    signals: str, every: int, then: str, forks: Forks, folder: Path
) -> None:
    """At any file operation from the first to the last: while it begins, works, ends and reports."""
    job = Job(folder=folder, then=then)
    codes: dict[int, int] = {}
    for number in itertools.count(1, every):
        job.fresh()
        steps = Steps(ops=ANY, at=number, deed=signals, below=str(folder))
        done = forks.run(job.import_words(), env=PW, batch_messages=2, steps=steps, then=job.then)
        if not done.struck:
            assert codes.get(130, 0) > 3
            return
        codes[done.code] = codes.get(done.code, 0) + 1
        try:
            assert "Traceback" not in done.err and "internal error" not in done.err
            # The second signal, where nothing is under way that would have to end.
            assert done.code in (0, 130) or (" " in signals and done.code in (-signal.SIGINT, -signal.SIGTERM))
            if done.out:
                assert done.totals["imported"] <= job.held().total()
            if done.code == 0:
                job.check_same(done)
            else:
                job.check_same(job.go_on(forks))
        except AssertionError as error:
            error.add_note(f"at step {number}: {done.code} {done.err}")
            raise


def words(job: Job, *options: str, progress: str) -> list[str]:
    import_ = job.import_words()
    at = import_.index("import")
    return [sys.executable, "-m", "aimport", *options, *import_[: at + 1], "--progress", progress, *import_[at + 1 :]]


@pytest.mark.fault("F26")
@pytest.mark.parametrize("progress", ["plain", "bar"])
def test_a_terminal_that_goes_away_ends_no_run_in_a_trace(progress: str, folder: Path) -> None:
    """SIGHUP is ignored (nohup), so the run goes on with nobody to tell: every write to the terminal fails."""
    job = Job(folder=folder)
    ours, theirs = pty.openpty()
    log = folder / "log"
    with log.open("wb") as out:
        run = subprocess.Popen(
            words(job, "-v", progress=progress), stdin=theirs, stdout=out, stderr=theirs,
            env=mail.environment(PW), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert run.wait(60) == 0
    assert job.held() == job.expected


@pytest.mark.fault("F25")
def test_a_signal_during_the_report_leaves_a_run_that_can_be_reported_again(forks: Forks, folder: Path) -> None:
    job = Job(folder=folder)
    done = forks.run(job.import_words(), env=PW, then="tests.faults.hooks:stopped_in_the_report")
    assert (done.code, done.err.strip()) == (130, "aimport: stopped")
    assert job.held() == job.expected
    told = forks.run(["report", "--json", "--journal", job.journal])
    assert told.totals["imported"] == job.expected.total()
    job.check_same(job.go_on(forks))


@pytest.mark.fault("F26")
@pytest.mark.parametrize("code", [0, 75])
def test_a_log_that_nobody_reads_any_more_ends_no_run(code: int, folder: Path) -> None:
    """SIGPIPE, or EPIPE where that is ignored: also where what is to be told there is a failure."""
    job = Job(folder=folder)
    read, write = os.pipe()
    os.close(read)
    command = words(job, "-v", progress="plain")
    if code:
        command[command.index(f"maildir:{folder}/from")] = f"maildir:{folder}/missing"
    with os.fdopen(write, "w") as broken:
        done = subprocess.run(
            command, env=mail.environment(PW), stdout=subprocess.PIPE, stderr=broken, timeout=60, check=False
        )
    assert done.returncode == code
    assert job.held() == (Counter() if code else job.expected)
