"""A machine that has too little, or whose clock jumps: F24, F29, F30."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests import mail
from tests.faults.forks import Forks
from tests.faults.jobs import Job, write_maildir
from tests.faults.steps import Steps
from tests.fix_dovecot import Dovecot

pytestmark = pytest.mark.timeout(300)

PW: Final = {"PW": "pass"}
USERS: Final = 200


# F24: the clock


@pytest.mark.fault("F24")
@pytest.mark.parametrize("jump", ["back", "forward", "about"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_clock_that_jumps_loses_and_doubles_nothing(cut: bool, jump: str, forks: Forks, folder: Path) -> None:
    """Also where the run is killed and the resume lives at another time."""
    job = Job(folder=folder)
    steps = Steps(ops=("rename",), at=4, deed="kill", below=str(job.to)) if cut else None
    done = forks.run(
        job.import_words(), env=PW, batch_messages=2, steps=steps, then=f"tests.faults.hooks:clock_jumps_{jump}"
    )
    if cut:
        assert done.struck
        done = job.go_on(forks)
    job.check_same(done)
    names = [file.name.partition(":")[0] for file in job.to.rglob("cur/*")]
    assert len(set(names)) == len(names)


@pytest.mark.fault("F24")
@pytest.mark.dovecot
def test_a_clock_past_2038_is_no_reason_to_fail(forks: Forks, folder: Path, dovecot: Dovecot, unique_user: str) -> None:
    job = Job(folder=folder, port=dovecot.port, user=unique_user)
    job.check_same(forks.run(job.import_words(), env=PW, then="tests.faults.hooks:clock_is_past_2038"))


@pytest.mark.fault("F24")
@pytest.mark.parametrize("when", ["-1d", "+1d", "@2038-01-19 03:14:05"])
def test_a_process_that_lives_at_another_time_does_its_work(when: str, faketime: Path, folder: Path) -> None:
    """With libfaketime, which lies to C code as well; not about the monotonic clock, as no system does that."""
    job = Job(folder=folder)
    env = mail.environment(
        {
            **PW,
            "LD_PRELOAD": str(faketime),
            "FAKETIME": when,
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }
    )
    command = [sys.executable, "-m", "aimport", *job.import_words()]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert job.held() == job.expected
    assert json.loads(done.stdout)["totals"]["imported"] == job.expected.total()


# F29: file descriptors


def many_users(folder: Path, users: int) -> None:
    for number in range(users):
        write_maildir(folder / f"user{number}")
    (folder / "users").write_text("".join(f"user{number}\n" for number in range(users)))


@pytest.mark.fault("F29")
@pytest.mark.parametrize(("descriptors", "code"), [(48, 0), (47, 78)])
def test_few_file_descriptors_are_enough_or_nothing_is_begun(
    descriptors: int, code: int, forks: Forks, folder: Path
) -> None:
    """`ulimit -n`, 200 users, twenty of them at once, two lanes each: fewer go at once, and none is tried again."""
    many_users(folder, USERS)
    words = [
        "import", "-F", f"{folder}/users", "--to", f"maildir:{folder}/to/%u", "--json",
        "--journal", f"{folder}/journal", "--users", "20", f"maildir:{folder}/%u", "", "ALL",
    ]  # fmt: skip
    before = os.times()
    done = forks.run(words, limits={"NOFILE": descriptors})
    assert "Traceback" not in done.err and "internal error" not in done.err, done.err[:3000]
    assert done.code == code, done.err
    assert "rejected" not in done.err and "file ignored" not in done.err and "tried again" not in done.err
    if done.code:
        assert "ulimit -n" in done.err
        assert not (folder / "to").exists() and not (folder / "journal").exists()
        return
    assert done.totals["imported"] == USERS * 10
    for number in range(USERS):
        assert mail.in_maildir(folder / "to" / f"user{number}") == mail.in_maildir(folder / f"user{number}")
    assert os.times().elapsed - before.elapsed < 100


# F30: memory


@pytest.mark.fault("F30")
def test_one_large_message_and_many_users_go_within_a_limit_of_memory(folder: Path, tmp_path: Path) -> None:
    """The peak of the process itself: 256 MB in one message, 200 users, `--max-memory 32M`, less than 128 MB."""
    many_users(tmp_path, USERS)
    big = tmp_path / "user7" / "cur" / "1500000900.big:2,S"
    with big.open("wb") as file:
        file.write(b"Subject: big\n\n")
        for _ in range(256):
            file.write(b"x" * (1 << 20))
    words = [
        "import", "-F", f"{tmp_path}/users", "--to", f"maildir:{tmp_path}/to/%u", "--json", "--max-memory", "32M",
        "--journal", f"{tmp_path}/journal", f"maildir:{tmp_path}/%u", "", "ALL",
    ]  # fmt: skip
    program = (
        "import re, sys; from aimport.cli.main import main; code = main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=mail.environment(), capture_output=True, text=True, check=False,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < 128 * 1024
    assert json.loads(done.stdout)["totals"]["imported"] == USERS * 10 + 1
    [arrived] = [path for path in (tmp_path / "to" / "user7" / "cur").iterdir() if path.stat().st_size > 1 << 20]
    assert arrived.stat().st_size == big.stat().st_size
    os.unlink(big)
    os.unlink(arrived)
