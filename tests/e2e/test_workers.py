"""`--workers N`: processes of Dask on this machine, killed and stopped in the middle; what arrives, arrives once.

Invariant of the tests that end something: 0 lost, 0 doubled, and the accounts of a run that nothing happened to.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from aimport import sample
from tests import mail
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.fix_faults import Fault, Link, before, call, run_proxy
from tests.processes import descendants, server_folder, wait_until_gone
from tests.wire.server import Server

pytestmark = pytest.mark.timeout(300)

USERS = [f"user{number:02}@example.org" for number in range(12)]
MESSAGES = 60
PW = {"PW": "pass"}


@dataclass(frozen=True)
class Mail:
    """Generated Maildirs, one a user."""

    folder: Path
    expected: Mapping[str, Counter[mail.Seen]]

    @property
    def words(self) -> list[str]:
        return ["-F", f"{self.folder}/users.csv", "--progress", "none", "--json"]

    @property
    def source(self) -> str:
        return f"maildir:{self.folder}/%u/Maildir"


def account(user: str) -> Iterator[sample.Sample]:
    return sample.account(user, seed=7, messages=MESSAGES, median_octets=1500)


@pytest.fixture(scope="module")
def mails() -> Iterator[Mail]:
    with server_folder("maildirs") as folder:
        expected = {}
        for user in USERS:
            sample.write_maildir(folder / user / "Maildir", account(user))
            expected[user] = mail.of_samples(account(user))
        (folder / "users.csv").write_text("user\n" + "\n".join(USERS) + "\n")
        yield Mail(folder, expected)


@pytest.fixture(scope="module")
def destination(dovecot: Dovecot) -> Iterator[Dovecot]:
    with run_dovecot() as server:
        yield server


def workers(driver: int) -> list[int]:
    """The worker processes below a driver, which are its children."""
    found = []
    for pid in descendants(driver):
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@contextmanager
def running(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """The command, in a process group of its own; nothing of it is left when the test ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "aimport", *map(str, command)],
        env=mail.environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            yield run
        finally:
            if run.poll() is None:
                run.kill()


def until(run: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    """Waits for something that a running command does."""
    while not there():
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)  # files tell nobody


def into(port: int, parent: str, journal: Path, mails: Mail) -> list[str]:
    return [
        "-odest_password=env:PW", "import", "--to", f"imap://127.0.0.1:{port}/?tls=off", "--workers", "2",
        "--journal", f"{journal}", *mails.words, mails.source, parent, "ALL",
    ]  # fmt: skip


def in_server(server: Dovecot, user: str, parent: str) -> Counter[mail.Seen]:
    seen = mail.in_imap(server.port, user, "pass")
    mine = {each: count for each, count in seen.items() if each.mailbox.startswith(f"{parent}/")}
    return Counter({each._replace(mailbox=each.mailbox[len(parent) + 1 :]): count for each, count in mine.items()})


def check(out: str, mails: Mail, held: Callable[[str], Counter[mail.Seen]]) -> None:
    report = json.loads(out)
    assert report["totals"]["found"] == report["totals"]["imported"] == len(USERS) * MESSAGES
    assert [each["user"] for each in report["users"]] == USERS
    for user in USERS:
        assert held(user) == mails.expected[user], user


@pytest.mark.dovecot
def test_a_worker_that_is_killed_in_the_middle_of_an_append_is_replaced(
    mails: Mail, destination: Dovecot, tmp_path: Path
) -> None:
    """Twice, by SIGKILL; the run goes on by itself."""
    parent = "worker-killed"
    killed: list[int] = []

    def plan(link: Link) -> Fault | None:
        def kill() -> None:
            if link.number > 1 + 5 * len(killed) and len(killed) < 2:
                killed.append(workers(run.pid)[0])
                os.kill(killed[-1], signal.SIGKILL)

        return Fault(before(rb" APPEND ", client=True), call(kill))

    with (
        run_proxy(destination.port, plan) as proxy,
        running(into(proxy.port, parent, tmp_path, mails), PW) as run,
    ):
        out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    assert len(killed) == 2 and err.count("worker lost") == 2, err
    check(out, mails, lambda user: in_server(destination, user, parent))


@pytest.mark.dovecot
def test_a_driver_that_is_killed_takes_its_workers_along_and_a_resume_goes_on(
    mails: Mail, destination: Dovecot, tmp_path: Path
) -> None:
    """Resumed by more workers than before."""
    parent = "driver-killed"
    killed: list[int] = []

    def plan(link: Link) -> Fault | None:
        def kill() -> None:
            if link.number > 3 and not killed:
                killed.append(run.pid)
                run.kill()

        return Fault(before(rb" APPEND ", client=True), call(kill))

    with run_proxy(destination.port, plan) as proxy:
        with running(into(proxy.port, parent, tmp_path, mails), PW) as run:
            until(run, lambda: len(workers(run.pid)) >= 2)
            family = descendants(run.pid)
            run.communicate(timeout=200)
        assert killed and run.returncode == -signal.SIGKILL
        wait_until_gone(family)
        seen = json.loads(mail.aimport("report", "--json", "--journal", tmp_path).stdout)["totals"]
        assert seen["found"] == seen["imported"] + seen["skipped"]
        last = mail.aimport("resume", "--workers", "3", "--journal", tmp_path, "--json", env=PW)
    assert last.returncode == 0, last.stderr
    check(last.stdout, mails, lambda user: in_server(destination, user, parent))


@pytest.mark.dovecot
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_all_processes_stops_the_run_and_not_its_workers(
    number: signal.Signals, mails: Mail, destination: Dovecot, tmp_path: Path
) -> None:
    """As Ctrl-C at a terminal, and systemd: exit 130, a whole report, and a resume brings the rest.

    A rate keeps it from ending before.
    """
    parent = f"stopped-{number.name}"
    command = into(destination.port, parent, tmp_path, mails)
    command[2:2] = ["--messages-per-second", "100"]
    with running(command, PW) as run:
        until(run, lambda: any(map(moved, tmp_path.glob("2*/shards/*/progress"))))
        os.killpg(run.pid, number)
        out, err = run.communicate(timeout=100)
    assert run.returncode == 130, err
    assert "Traceback" not in err and "worker lost" not in err, err
    report = json.loads(out)
    assert report["exit"] == 130 and 0 < report["totals"]["imported"] < len(USERS) * MESSAGES
    done = mail.aimport("resume", "--journal", tmp_path, "--json", env=PW)
    assert done.returncode == 0, done.stderr
    check(done.stdout, mails, lambda user: in_server(destination, user, parent))


def moved(progress: Path) -> bool:
    """Whether a worker has told of messages that it moved; its file may be in the middle of being written."""
    try:
        return bool(json.loads(progress.read_bytes())["messages"])
    except (OSError, ValueError):
        return False


def listening(pids: Sequence[int]) -> set[str]:
    """Addresses, IPv6 ones in hexadecimal, at which these processes listen."""
    sockets = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                sockets.add(os.readlink(handle))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                octets = words[1].partition(":")[0]
                v4 = socket.inet_ntoa(bytes.fromhex(octets)[::-1]) if name == "tcp" else octets
                found.add(v4)
    return found


async def test_connections_of_all_workers_together_are_no_more_than_a_host_may_have(
    mails: Mail, tmp_path: Path
) -> None:
    """Counted where they arrive. Nothing listens but on loopback, and a literal password is where it was and nowhere
    else: not in a command line, an environment, a log at debug, the journal."""
    import asyncio

    secret = "canary-pa55"
    rows = "".join(f"{user},{secret}\n" for user in USERS)
    (tmp_path / "list.csv").write_text("user,dest_password\n" + rows)
    (tmp_path / "list.csv").chmod(0o600)
    server = Server()
    shapes = [secret, *(base64.b64encode(b"\0" * pad + secret.encode()).decode()[4:-4] for pad in (0, 1, 2))]
    seen: set[str] = set()
    async with server.running() as ready:
        port = ready.endpoint().port
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aimport", "-D", "import", "-F", str(tmp_path / "list.csv"), "--workers", "3",
            "--connections-per-host", "2", "--users", "12", "--to", f"imap://127.0.0.1:{port}/?tls=off", "--json",
            "--journal", str(tmp_path / "journal"), "--progress", "none", mails.source, "", "MAILBOX", "INBOX",
            env=mail.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        talk = asyncio.ensure_future(process.communicate())
        while not talk.done():
            family = [process.pid, *workers(process.pid)]
            seen |= listening(family)
            for pid in family:
                with suppress(OSError):
                    for name in ("cmdline", "environ"):
                        assert secret.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
            await asyncio.wait([talk], timeout=0.05)
        out, err = await talk
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["totals"]["imported"] == sum(
        count for user in USERS for each, count in mails.expected[user].items() if each.mailbox == "INBOX"
    )
    assert server.most_inside == 2
    assert not list((tmp_path / "journal").glob("2*/scratch"))
    assert seen == {"127.0.0.1"}
    for shape in shapes:
        assert shape.encode() not in out + err
        for file in (tmp_path / "journal").rglob("*"):
            assert not file.is_file() or shape.encode() not in file.read_bytes(), file


def test_without_the_extra_several_processes_are_refused_and_one_needs_none(tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text("raise ModuleNotFoundError('no', name='distributed')\n")
    words = ["import", "-u", "bob", "--to", f"maildir:{tmp_path}/to", "--journal", str(tmp_path / "journal")]
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = mail.aimport(*words, "--workers", "2", f"maildir:{tmp_path}/from", "", "ALL", env=env)
    assert (done.returncode, "aimport[cluster]" in done.stderr) == (78, True), done.stderr
    assert not (tmp_path / "journal").exists()
    one = mail.aimport(*words, "--workers", "1", f"maildir:{tmp_path}/from", "", "ALL", env=env)
    assert one.returncode == 75, one.stderr  # there is no such Maildir
