"""The product's main job: many users, IMAP and Maildir, both ways, between real servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aimport import sample
from tests import mail
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.processes import server_folder

pytestmark = [pytest.mark.dovecot, pytest.mark.timeout(300)]

USERS = [f"user{number:02}@example.org" for number in range(10)]
MESSAGES = 1000
SECRETS = {"SRC_PW": "pass", "DST_PW": "pass"}


@dataclass(frozen=True)
class Farm:
    """Two servers, ten accounts of generated mail on the first and as plain Maildirs, what they hold."""

    source: Dovecot
    destination: Dovecot
    maildirs: Path
    user_list: Path
    expected: dict[str, Counter[mail.Seen]]


def account(user: str) -> Iterator[sample.Sample]:
    return sample.account(user, seed=7, messages=MESSAGES, median_octets=1500)


@pytest.fixture(scope="module")
def farm(dovecot: Dovecot) -> Iterator[Farm]:
    with run_dovecot() as source, run_dovecot() as destination, server_folder("maildirs") as folder:
        expected = {}
        for user in USERS:
            sample.write_maildir(folder / user / "Maildir", account(user))
            shutil.copytree(folder / user / "Maildir", source.maildir(user))
            source.own(source.home(user))
            expected[user] = mail.of_samples(account(user))
            assert expected[user].total() == MESSAGES
        user_list = folder / "users.csv"
        user_list.write_text("user\n" + "\n".join(USERS) + "\n")
        yield Farm(source, destination, folder, user_list, expected)


def location(kind: str, side: str, farm: Farm, root: Path) -> list[str]:
    """A location of `kind` for all users, with the settings that it needs."""
    server = farm.source if side == "source" else farm.destination
    match kind:
        case "maildir":
            return [f"maildir:{farm.maildirs if side == 'source' else root}/%u/Maildir"]
        case "imap":
            return [
                f"imap://localhost:{server.port}/",
                f"-o{side[:6].replace('destin', 'dest')}_password=env:{'SRC' if side == 'source' else 'DST'}_PW",
                f"-o{side[:6].replace('destin', 'dest')}_tls_ca={server.ca_file}",
            ]
    raise AssertionError(kind)


def held(kind: str, farm: Farm, root: Path, user: str, parent: str) -> Counter[mail.Seen]:
    """What a destination holds below `parent`, with names as if there were none."""
    if kind == "maildir":
        seen = mail.in_maildir(root / user / "Maildir")
    else:
        seen = mail.in_imap(farm.destination.port, user, "pass")
    return Counter(
        {
            item._replace(mailbox=item.mailbox.removeprefix(f"{parent}/")): count
            for item, count in seen.items()
            if item.mailbox.startswith(f"{parent}/")
        }
    )


@pytest.mark.parametrize(
    ("source", "destination"), [("maildir", "imap"), ("imap", "maildir"), ("imap", "imap"), ("maildir", "maildir")]
)
def test_every_message_arrives_once_with_all_it_carries(
    source: str, destination: str, farm: Farm, tmp_path: Path
) -> None:
    """Both ends hold the same multiset; the source tree is as it was."""
    root, parent = tmp_path / "to", f"{source}-{destination}"
    from_, *from_settings = location(source, "source", farm, root)
    to, *to_settings = location(destination, "destination", farm, root)
    before = mail.tree(farm.maildirs)
    done = mail.aimport(
        *from_settings, *to_settings, "import", "-F", farm.user_list, "--to", to, "--json",
        "--journal", tmp_path / "journal", from_, parent, "ALL", env=SECRETS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["totals"]["found"] == report["totals"]["imported"] == len(USERS) * MESSAGES
    assert {user["status"] for user in report["users"]} == {"done"}
    for user in USERS:
        assert held(destination, farm, root, user, parent) == farm.expected[user]
    assert mail.tree(farm.maildirs) == before


@pytest.mark.parametrize(("source", "destination"), [("maildir", "imap"), ("imap", "maildir")])
@pytest.mark.fault("F1")
def test_killed_in_the_middle_and_resumed_everything_is_there_once(
    source: str, destination: str, farm: Farm, tmp_path: Path
) -> None:
    """kill -9 several times at different points, then resume to the end: the same multiset, once."""
    root, parent = tmp_path / "to", f"killed-{source}-{destination}"
    from_, *from_settings = location(source, "source", farm, root)
    to, *to_settings = location(destination, "destination", farm, root)
    journal = tmp_path / "journal"
    command = [
        sys.executable, "-m", "aimport", *from_settings, *to_settings, "import", "-F", str(farm.user_list), "--to", to,
        "--journal", str(journal), "--progress", "none", from_, parent, "ALL",
    ]  # fmt: skip
    kills = 0
    for wait_s in (0.9, 1.3, 1.1):
        with subprocess.Popen(
            command, env=mail.environment(SECRETS), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as run:
            while run.poll() is None and not has_begun(journal):
                time.sleep(0.01)
            try:
                run.wait(wait_s)
            except subprocess.TimeoutExpired:
                os.kill(run.pid, signal.SIGKILL)
                kills += 1
            else:
                assert run.stderr is not None
                assert run.returncode == 0, run.stderr.read()
        command = [sys.executable, "-m", "aimport", "resume", "--journal", str(journal), "--progress", "none"]
    assert kills, "the machine was too fast for this test"
    told = mail.aimport("report", "--journal", journal, "--json")
    assert told.returncode == 0, told.stderr
    so_far = json.loads(told.stdout)["totals"]
    assert so_far["found"] == so_far["imported"] + so_far["skipped"] + so_far["rejected"]
    done = mail.aimport("resume", "--journal", journal, "--json", env=SECRETS)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["totals"]["found"] == report["totals"]["imported"] == len(USERS) * MESSAGES
    for user in USERS:
        assert held(destination, farm, root, user, parent) == farm.expected[user]
    again = mail.aimport("resume", "--journal", journal, env=SECRETS)
    assert again.returncode == 0, again.stderr


def has_begun(journal: Path) -> bool:
    """Whether batches are recorded: two dozen pages of them wait in the write-ahead log."""
    return any(log.stat().st_size > 100_000 for log in journal.glob("2*/journal.sqlite-wal"))


@pytest.mark.fault("F25")
def test_a_stopped_run_says_so_and_resumes(farm: Farm, tmp_path: Path) -> None:
    """SIGTERM: batches in flight finish, exit 130, a whole report; resume brings the rest."""
    root = tmp_path / "to"
    from_, *from_settings = location("imap", "source", farm, root)
    command = [
        sys.executable, "-m", "aimport", *from_settings, "import", "-F", str(farm.user_list), "--to",
        f"maildir:{root}/%u/Maildir", "--journal", str(tmp_path / "journal"), "--json", "--users", "2",
        from_, "P", "ALL",
    ]  # fmt: skip
    with subprocess.Popen(
        command, env=mail.environment(SECRETS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 60
        while not any(root.glob("*/Maildir/.P*/*/*")):
            assert time.monotonic() < deadline and run.poll() is None
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    report = json.loads(out)
    assert report["exit"] == 130
    assert report["totals"]["skipped"] > 0
    done = mail.aimport("resume", "--journal", tmp_path / "journal", "--json", env=SECRETS)
    assert done.returncode == 0, done.stderr
    for user in USERS:
        assert held("maildir", farm, root, user, "P") == farm.expected[user]


@pytest.mark.fault("F4")
def test_sessions_that_die_on_the_server_cost_nothing_and_double_nothing(farm: Farm, tmp_path: Path) -> None:
    """Server processes are killed again and again during the import: it goes on by itself, each message once."""
    parent = "server-kills"
    to, *settings = location("imap", "destination", farm, tmp_path)
    from_, *_ = location("maildir", "source", farm, tmp_path)
    command = [
        sys.executable, "-m", "aimport", *settings, "import", "-F", str(farm.user_list), "--to", to, "--json",
        "--journal", str(tmp_path / "journal"), "--progress", "none", "--users", "3", from_, parent, "ALL",
    ]  # fmt: skip
    kills = 0
    with subprocess.Popen(
        command, env=mail.environment(SECRETS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        while run.poll() is None and kills < 6:
            try:
                run.wait(0.7)
            except subprocess.TimeoutExpired:
                for pid in farm.destination.imap_session_pids()[:1]:
                    farm.destination.kill_session(pid)
                    kills += 1
        out, err = run.communicate(timeout=120)
    assert kills, "the machine was too fast for this test"
    assert run.returncode == 0, err
    assert "tried again" in err
    assert json.loads(out)["totals"]["imported"] == len(USERS) * MESSAGES
    for user in USERS:
        there = held("imap", farm, tmp_path, user, parent)
        assert without_keywords(there) == without_keywords(farm.expected[user])


def without_keywords(messages: Counter[mail.Seen]) -> Counter[mail.Seen]:
    """A Dovecot that is killed after its OK may not have written the names of its keywords (seen: 22 messages)."""
    found: Counter[mail.Seen] = Counter()
    for seen, count in messages.items():
        found[seen._replace(flags=frozenset(flag for flag in seen.flags if flag.startswith("\\")))] += count
    return found
