"""`--cluster`: a scheduler and workers that run already, TLS on all sides; each of them killed in the middle.

Invariant, as of `test_workers`: 0 lost, 0 doubled, and the accounts of a run that nothing happened to.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimport.orders import locked
from tests import mail
from tests.e2e.test_workers import PW, Mail, check, destination, in_server, mails, running, until
from tests.fix_dovecot import Dovecot
from tests.fix_faults import Fault, Link, before, call, run_proxy
from tests.fix_imap import authority
from tests.processes import free_ports

pytestmark = [pytest.mark.timeout(300), pytest.mark.dovecot]
__all__ = ["destination", "mails"]  # fixtures


class Cluster:
    """A scheduler, and workers as they are started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        [self.port] = free_ports(1)
        self.address = f"tls://127.0.0.1:{self.port}"
        self.workers: list[subprocess.Popen[bytes]] = []
        authority().cert_pem.write_to_path(str(folder / "ca.pem"))
        pair = authority().issue_cert("127.0.0.1").private_key_and_cert_chain_pem
        pair.write_to_path(str(folder / "pair.pem"))
        tls = "DASK_DISTRIBUTED__COMM__TLS__"
        keys = [f"{tls}{role}__{what}" for role in ("CLIENT", "WORKER", "SCHEDULER") for what in ("KEY", "CERT")]
        self.env = {f"{tls}CA_FILE": f"{folder}/ca.pem", **dict.fromkeys(keys, f"{folder}/pair.pem")}
        self.scheduler = self.start_scheduler()
        self.start_workers(2)

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        self.scheduler = self._start(
            "scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard",
            "--dashboard-address", "127.0.0.1:0", "--scheduler-file", f"{self.folder}/scheduler.json",
        )  # fmt: skip
        return self.scheduler

    def start_workers(self, count: int) -> None:
        for _ in range(count):
            scratch = str(self.folder / f"scratch{len(self.workers)}")
            words = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", scratch]
            self.workers.append(self._start("worker", self.address, "--host", "127.0.0.1", *words))

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *words], env=mail.environment({**self.env, **PW}), stdout=log, stderr=log
            )

    def close(self) -> None:
        for process in (self.scheduler, *self.workers):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()


def into(port: int, parent: str, cluster: Cluster, mails: Mail) -> list[str]:
    return [
        "-odest_password=env:PW", "import", "--to", f"imap://127.0.0.1:{port}/?tls=off", "--cluster", cluster.address,
        "--journal", f"{cluster.folder}/journal", *mails.words, mails.source, parent, "ALL",
    ]  # fmt: skip


def test_a_worker_of_a_cluster_that_is_killed_is_made_up_for_by_the_others(
    mails: Mail, destination: Dovecot, cluster: Cluster
) -> None:
    killed: list[int] = []

    def kill() -> None:
        if not killed:
            killed.append(cluster.workers[0].pid)
            cluster.workers[0].kill()

    def plan(link: Link) -> Fault | None:
        return Fault(before(rb" APPEND ", client=True), call(kill)) if link.number > 2 else None

    with (
        run_proxy(destination.port, plan) as proxy,
        running(into(proxy.port, "lost-worker", cluster, mails), cluster.env) as run,
    ):
        out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    assert killed
    check(out, mails, lambda user: in_server(destination, user, "lost-worker"))


def test_a_scheduler_that_is_killed_and_comes_back_is_found_again(
    mails: Mail, destination: Dovecot, cluster: Cluster
) -> None:
    """Its workers end with it; it knows nothing of before."""
    killed: list[int] = []

    def kill() -> None:
        if not killed:
            killed.append(cluster.scheduler.pid)
            cluster.scheduler.kill()

    def plan(link: Link) -> Fault | None:
        return Fault(before(rb" APPEND ", client=True), call(kill)) if link.number > 2 else None

    with (
        run_proxy(destination.port, plan) as proxy,
        running(into(proxy.port, "lost-scheduler", cluster, mails), cluster.env) as run,
    ):
        until(run, lambda: bool(killed))
        cluster.scheduler.wait()
        cluster.start_scheduler()
        cluster.start_workers(2)
        out, err = run.communicate(timeout=250)
    assert run.returncode == 0, err
    assert "waiting for it" in err
    check(out, mails, lambda user: in_server(destination, user, "lost-scheduler"))


def test_workers_whose_driver_was_killed_stop_by_themselves(
    mails: Mail, destination: Dovecot, cluster: Cluster
) -> None:
    """They live on, and let go of what they had; a resume has them go on. A rate keeps them from ending before."""
    killed: list[int] = []

    def kill() -> None:
        if not killed:
            killed.append(run.pid)
            run.kill()

    def plan(link: Link) -> Fault | None:
        return Fault(before(rb" APPEND ", client=True), call(kill)) if link.number > 2 else None

    with run_proxy(destination.port, plan) as proxy:
        command = into(proxy.port, "lost-driver", cluster, mails)
        command[2:2] = ["--messages-per-second", "100"]
        with running(command, cluster.env) as run:
            run.wait(200)
        assert run.returncode == -signal.SIGKILL
        locks = list((cluster.folder / "journal").glob("2*/shards/*/lock"))
        assert locks
        deadline = time.monotonic() + 60
        while any(map(locked, locks)):
            assert time.monotonic() < deadline
            time.sleep(0.05)  # a lock tells nobody that it is free
        assert all(worker.poll() is None for worker in cluster.workers)
        so_far = json.loads(mail.aimport("report", "--json", "--journal", cluster.folder / "journal").stdout)["totals"]
        assert so_far["imported"] < so_far["found"] or so_far["found"] < len(mails.expected) * 60
        done = mail.aimport("resume", "--json", "--journal", cluster.folder / "journal", env={**cluster.env, **PW})
    assert done.returncode == 0, done.stderr
    check(done.stdout, mails, lambda user: in_server(destination, user, "lost-driver"))


def test_a_cluster_that_cannot_be_trusted_or_reached_is_refused(mails: Mail, tmp_path: Path) -> None:
    """Before anything is begun: exit 78, and what to do."""
    words = ["--to", f"maildir:{tmp_path}/to/%u", "--journal", f"{tmp_path}/journal", *mails.words]
    for options, told in (
        (["--cluster", "tcp://192.0.2.1:8786"], "use tls://"),
        (["--cluster", "somewhere"], "tls://HOST:PORT"),
        (["--cluster-file", f"{tmp_path}/none"], "No such file"),
        (["--cluster", f"tls://127.0.0.1:{free_ports(1)[0]}"], "certificates"),
    ):
        done = mail.aimport("import", *options, *words, mails.source, "", "ALL")
        assert (done.returncode, told in done.stderr) == (78, True), done.stderr
    assert not (tmp_path / "to").exists()
