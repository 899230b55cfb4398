"""Imports for as long as one likes, while clients, servers and connections are killed and somebody else delivers.

Invariant: of each user every message is there once, as it was, and so is every delivery that was acknowledged.
`make soak` runs it for ten minutes; AIMPORT_SOAK_S is how many seconds, AIMPORT_SOAK_SEED what happens. Now and then it
takes two minutes more: a Dovecot killed between the making of its uid list's lock and the name it writes there leaves
a lock that the others take for a living one so long.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from aimport import sample
from tests import mail, servers
from tests.faults.forks import Done, Forks, run_forks
from tests.faults.jobs import Job
from tests.fix_cyrus import run_cyrus
from tests.fix_dovecot import run_dovecot
from tests.fix_faults import Proxy, hang_up, reset, reset_both, run_proxy

SECONDS: Final = float(os.environ.get("AIMPORT_SOAK_S", "20"))
SEED: Final = int(os.environ.get("AIMPORT_SOAK_SEED", "1"))
LONG: Final = SECONDS >= 120
MESSAGES: Final = 1500
FENCE_S: Final = 5.0 if LONG else 0.2
"""The fence of the product; in the short form the proxy knows when a session has ended."""
KILLS_EVERY_S: Final = (0.5, 6.0) if LONG else (0.1, 0.8)

pytestmark = [pytest.mark.dovecot, pytest.mark.timeout(SECONDS * 2 + 300)]


@dataclass(slots=True, kw_only=True)
class Target:
    """A server, whatever kind it is."""

    name: str
    port: int
    password: str
    make: Callable[[str], object]
    """Makes an account, where that takes something."""
    sessions: Callable[[], list[int]]


@dataclass(slots=True)
class Figures:
    """What was done to one server."""

    users: int = 0
    messages: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    deliveries: int = 0
    lost: Counter[mail.Seen] = field(default_factory=Counter)
    doubled: Counter[mail.Seen] = field(default_factory=Counter)
    deliveries_lost: int = 0
    flags: int = 0
    """Messages with other flags than they were sent with."""
    seconds: float = 0.0

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        return (
            f"{self.users} users, {self.messages} messages, {self.messages / max(self.seconds, 0.1):.0f} messages/s; "
            f"killed: {kills or 'nothing'}; {self.resumes} resumes, {self.deliveries} deliveries by others; "
            f"lost {self.lost.total()}, doubled {self.doubled.total()}, deliveries lost {self.deliveries_lost}, "
            f"other flags {self.flags}"
        )


def _without_flags(messages: Counter[mail.Seen]) -> Counter[mail.Seen]:
    """sdbox has flags in its index alone, and one that a killed process left behind is made anew without (seen)."""
    found: Counter[mail.Seen] = Counter()
    for seen, count in messages.items():
        found[seen._replace(flags=frozenset())] += count
    return found


class Deliveries:
    """Another client, that puts messages of its own into the same INBOX."""

    def __init__(self, target: Target, user: str) -> None:
        self.acknowledged: list[bytes] = []
        self.sent: list[bytes] = []
        self._target, self._user = target, user
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="deliveries")

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()

    def _deliver(self) -> None:
        while not self._over.is_set():
            with suppress(OSError):  # its server may be killed under it at any time
                self._deliver_some()
            self._over.wait(0.1)

    def _deliver_some(self) -> None:
        address = "127.0.0.1", self._target.port
        with socket.create_connection(address, timeout=30) as sock, sock.makefile("rb") as replies:

            def answered(command: bytes, tag: bytes = b"x") -> None:
                """Sends a command, or a part of one, and waits for the line that begins with `tag`."""
                sock.sendall(command + b"\r\n")
                while not (line := replies.readline()).startswith(tag + b" "):
                    if not line:
                        raise ConnectionResetError
                if tag == b"x" and not line.startswith(b"x OK"):
                    raise ConnectionRefusedError(line)

            answered(b"x LOGIN %s %s" % (self._user.encode(), self._target.password.encode()))
            while not self._over.wait(0.05):
                body = b"Subject: delivered %d\r\n\r\nby another\r\n" % len(self.sent)
                self.sent.append(body)
                answered(b"x APPEND INBOX {%d}" % len(body), b"+")
                answered(body)
                self.acknowledged.append(body)


class Soak:
    """One server after the other user, until the time is over."""

    def __init__(
        self, target: Target, *, folder: Path, source: Path, expected: Counter[mail.Seen], until: float
    ) -> None:
        self.target, self.folder, self.until = target, folder, until
        self.source, self.expected = source, expected
        self.figures = Figures()
        self.chance = random.Random(f"{SEED} {target.name}")

    def run(self) -> Figures:
        began = time.monotonic()
        with run_proxy(self.target.port, orderly=not LONG, record=False) as proxy, run_forks() as forks:
            while time.monotonic() < self.until or not self.figures.users:
                self._one_user(proxy, forks)
        self.figures.seconds = time.monotonic() - began
        return self.figures

    def _one_user(self, proxy: Proxy, forks: Forks) -> None:
        user = f"u{self.figures.users}@example.org"
        self.target.make(user)
        job = Job(folder=self.folder, user=user, port=proxy.port, source=self.source, expected=self.expected)
        deliveries = Deliveries(self.target, user)
        with deliveries.running():
            words = job.import_words()
            while (done := self._run_killed(words, proxy, forks)).code != 0:
                assert done.code in (-signal.SIGKILL, 75), (self.target.name, done.code, done.err)
                if job.begun():
                    words = job.resume_words()
                self.figures.resumes += 1
        assert done.totals["imported"] == self.expected.total() and not done.totals["maybe_duplicate"]
        held = mail.in_imap(self.target.port, user, self.target.password)
        theirs = Counter(
            {seen: count for seen, count in held.items() if seen.digest in set(map(mail.digest, deliveries.sent))}
        )
        ours = held - theirs
        there, due = _without_flags(ours), _without_flags(self.expected)
        self.figures.lost += due - there
        self.figures.doubled += there - due
        self.figures.flags += (self.expected - ours).total() - (due - there).total()
        delivered = Counter(seen.digest for seen in theirs.elements())
        self.figures.deliveries += len(deliveries.acknowledged)
        self.figures.deliveries_lost += sum(not delivered[mail.digest(body)] for body in deliveries.acknowledged)
        self.figures.users += 1
        self.figures.messages += ours.total()
        job.fresh()

    def _run_killed(self, words: list[str], proxy: Proxy, forks: Forks) -> Done:
        """One command, and what happens to it meanwhile."""
        ended = threading.Event()
        result: list[Done] = []

        def wait() -> None:
            try:
                result.append(forks.wait())
            finally:
                ended.set()

        forks.start(words, env={"PW": self.target.password}, fence_s=FENCE_S, hangs_s=300.0)
        waiting = threading.Thread(target=wait)
        waiting.start()
        while not ended.wait(self.chance.uniform(*KILLS_EVERY_S)):
            if time.monotonic() < self.until:
                self._kill(self.chance.choice(["client", "server", "server", "connection", "connection"]), proxy, forks)
        waiting.join()
        return result[0]

    def _kill(self, kind: str, proxy: Proxy, forks: Forks) -> None:
        if kind == "client":
            with suppress(ProcessLookupError):
                os.kill(forks.pid, signal.SIGKILL)
                self.figures.kills[kind] += 1
        elif kind == "connection":
            before = proxy.faults
            proxy.cut(self.chance.randrange(100), self.chance.choice([reset, reset_both, hang_up]))
            deadline = time.monotonic() + 1.0
            while proxy.faults == before and time.monotonic() < deadline:
                time.sleep(0.005)
            self.figures.kills[kind] += proxy.faults > before
        elif pids := self.target.sessions():
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), signal.SIGKILL)
                self.figures.kills[kind] += 1


@contextmanager
def targets() -> Iterator[list[Target]]:
    with ExitStack() as stack:
        found = []
        for name, location in (("Dovecot Maildir", "maildir:~/Maildir"), ("Dovecot sdbox", "sdbox:~/sdbox")):
            dovecot = stack.enter_context(run_dovecot(mail_location=location))
            found.append(
                Target(
                    name=name,
                    port=dovecot.port,
                    password=dovecot.password,
                    make=str,
                    sessions=dovecot.imap_session_pids,
                )
            )
        try:
            cyrus = stack.enter_context(run_cyrus())
        except servers.CannotGet as reason:
            print(f"without {reason}")
            yield found
            return
        found.append(
            Target(
                name="Cyrus",
                port=cyrus.port,
                password=cyrus.password,
                make=cyrus.create_user,
                sessions=cyrus.imap_session_pids,
            )
        )
        yield found


@pytest.mark.fault("F1", "F4", "F5", "F6")
def test_nothing_is_lost_or_doubled_whoever_is_killed(folder: Path) -> None:
    sample.write_maildir(folder / "from", sample.account("soak", seed=SEED, messages=MESSAGES, median_octets=1500))
    expected = mail.in_maildir(folder / "from")
    assert expected.total() == MESSAGES
    with targets() as found, ThreadPoolExecutor(len(found)) as pool:
        until = time.monotonic() + SECONDS
        soaks = []
        for number, target in enumerate(found):
            (folder / str(number)).mkdir()
            soaks.append(
                Soak(target, folder=folder / str(number), source=folder / "from", expected=expected, until=until)
            )
        runs = [pool.submit(soak.run) for soak in soaks]
        figures = [run.result() for run in runs]
    print(f"\nseed {SEED}, {SECONDS:g} s, users of {MESSAGES} messages")
    for target, each in zip(found, figures, strict=True):
        print(f"{target.name}: {each}")
    kills = sum((each.kills for each in figures), Counter[str]())
    print(f"killed in all: {kills.total()}")
    assert all(not each.lost and not each.doubled and not each.deliveries_lost for each in figures)
    assert not [each for target, each in zip(found, figures, strict=True) if each.flags and "sdbox" not in target.name]
    assert set(kills) == {"client", "server", "connection"}
    assert kills.total() >= (100 if SECONDS >= 600 else 5)
