"""`--repair on-reject` by the command as users run it: a Maildir of broken mail into a real Cyrus.

Invariant: what Cyrus takes after a change is stored once, as the record says, with its original kept; the rest is
rejected, and nothing is changed unasked.
"""

from __future__ import annotations

import hashlib
import imaplib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from aimport.octets import wire_form
from tests import mail, servers
from tests.fix_cyrus import Cyrus, run_cyrus
from tests.fix_faults import At, Fault, Link, hold, run_proxy

pytestmark = [pytest.mark.cyrus, pytest.mark.timeout(200)]

SECRETS: Final = {"PW": "any"}
GOOD: Final = [b"Subject: good %d\n\nbody\n" % number for number in range(5)]
BROKEN: Final = {
    "nul": b"Subject: a\0b\n\nt\0ext\n",
    "lone CR in a name": b"Sub\rject: a\nTo: b\n\ntext\n",
    "CR as line end": b"Subject: a\rTo: b\r\rtext\r",
    "quoted From": b">From a@example.org Thu Jan  1\nSubject: a\n\ntext\n",
    "no colon": b"Subject: a\nno colon\nTo: b\n\ntext\n",
    "no header": b"Dear all,\nhello\n",
    "8-bit name": b"S\xfcbject: \xfc\nTo: b\n\ntext\n",
    "8-bit text": b"Subject: \xfcber \xfc\n\ntext\n",
    "8-bit address": b"From: J\xfcrgen <j@example.org>, <\xfc@example.org>\n\ntext\n",
    "all at once": b">From x\nS\xfc : \xfc\0\nCc: \xfc <a@b>\nTo: a\rb\nno colon\n\n" + b"x" * 12_000 + b"\n",
}
EMPTY: Final = b""


def sha256(octets: bytes) -> str:
    return hashlib.sha256(octets).hexdigest()


def write(root: Path, messages: list[bytes]) -> None:
    for name in ("cur", "new", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(messages):
        (root / "cur" / f"1500000{number:03}.M{number}P1.host:2,S").write_bytes(body)


def in_cyrus(cyrus: Cyrus, user: str) -> Counter[str]:
    """Digests of all messages of the INBOX, octets as they are served."""
    found: Counter[str] = Counter()
    with imaplib.IMAP4(cyrus.host, cyrus.port, timeout=60) as client:
        client.login(user, cyrus.password)
        client.select("INBOX", readonly=True)
        for item in client.fetch("1:*", "(BODY.PEEK[])")[1]:
            if isinstance(item, tuple):
                found[sha256(item[1])] += 1
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One user's Maildir on its way into Cyrus."""

    cyrus: Cyrus
    user: str
    folder: Path
    port: int
    words: tuple[str, ...] = ("--repair", "on-reject")
    journal: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "journal", self.folder / "journal")

    def command(self) -> list[str]:
        return [
            "-odest_password=env:PW", f"-odest_master_user={self.cyrus.admin}", "-odest_master_password=env:PW",
            "import", "-u", self.user, "--to", f"imap://localhost:{self.port}/?tls=off", "--json",
            "--journal", str(self.journal), *self.words, f"maildir:{self.folder}/Maildir", "", "ALL",
        ]  # fmt: skip

    def run(self, code: int) -> dict[str, int]:
        return totals(mail.aimport(*self.command(), env=SECRETS), code)

    def resume(self, code: int) -> dict[str, int]:
        return totals(mail.aimport("resume", "--json", "--journal", self.journal, env=SECRETS), code)

    @property
    def directory(self) -> Path:
        [run] = [path for path in self.journal.iterdir() if path.is_dir()]
        return run

    def lines(self, name: str) -> list[dict[str, object]]:
        path = self.directory / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def totals(done: subprocess.CompletedProcess[str], code: int) -> dict[str, int]:
    assert done.returncode == code, (done.stdout, done.stderr)
    report = json.loads(done.stdout)
    found: dict[str, int] = report["totals"]
    assert found["found"] == found["imported"] + found["present"] + found["skipped"] + found["rejected"]
    return {name: found[name] for name in ("found", "imported", "rejected", "altered")}


@pytest.fixture(scope="module")
def strict() -> Iterator[Cyrus]:
    """A Cyrus that refuses 8-bit headers; by default it makes an X of each such octet."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(run_cyrus(extra="reject8bit: yes"))
        except servers.CannotGet as reason:
            pytest.skip(str(reason))
        yield server


@pytest.fixture
def job(strict: Cyrus, unique_user: str, tmp_path: Path) -> Job:
    strict.create_user(unique_user)
    return Job(cyrus=strict, user=unique_user, folder=tmp_path, port=strict.port)


def check_records(job: Job, originals: list[bytes]) -> Counter[str]:
    """One line for each repair, one original for each content; hands back the digests of what was stored."""
    lines = job.lines("repairs.jsonl")
    wires = [wire_form(body) for body in originals]
    assert Counter(str(line["key"]) for line in lines).most_common(1)[0][1] == 1
    told = Counter(json.dumps(line["original"], sort_keys=True) for line in lines)
    assert told == Counter(json.dumps({"sha256": sha256(wire), "size": len(wire)}) for wire in wires)
    assert all(line["steps"] and line["reason"] and line["user"] == job.user for line in lines)
    escrow = job.directory / "escrow"
    assert escrow.stat().st_mode & 0o7777 == 0o700
    kept = {file.stem: file for file in escrow.iterdir()}
    for wire in wires:
        assert kept[sha256(wire)].read_bytes() == wire
    assert all(file.suffix == ".eml" and file.stat().st_mode & 0o7777 == 0o600 for file in kept.values())
    assert all((job.directory / str(line["escrow"])).is_file() for line in lines)
    stored: Counter[str] = Counter()
    for line in lines:
        assert isinstance(line["stored"], dict)
        stored[str(line["stored"]["sha256"])] += 1
    return stored


def test_broken_mail_is_repaired_and_only_what_cannot_be_is_rejected(job: Job) -> None:
    write(job.folder / "Maildir", [*GOOD[:2], *BROKEN.values(), EMPTY, *GOOD[2:]])
    before = mail.tree(job.folder / "Maildir")
    count = len(GOOD) + len(BROKEN)
    expected = {"found": count + 1, "imported": count, "rejected": 1, "altered": len(BROKEN)}
    assert job.run(65) == expected
    stored = check_records(job, list(BROKEN.values()))
    assert in_cyrus(job.cyrus, job.user) == stored + Counter(sha256(wire_form(body)) for body in GOOD)
    [reject] = job.lines("rejects.jsonl")
    assert str(reject["key"]).startswith(f"1500000{2 + len(BROKEN):03}.")
    held, repairs = in_cyrus(job.cyrus, job.user), job.lines("repairs.jsonl")
    assert job.resume(65) == expected
    assert in_cyrus(job.cyrus, job.user) == held
    assert job.lines("repairs.jsonl") == repairs and len(job.lines("rejects.jsonl")) == 1
    assert mail.tree(job.folder / "Maildir") == before


def test_a_run_whose_messages_can_all_be_repaired_ends_well(job: Job) -> None:
    write(job.folder / "Maildir", [*BROKEN.values(), *BROKEN.values()])
    count = 2 * len(BROKEN)
    assert job.run(0) == {"found": count, "imported": count, "rejected": 0, "altered": count}
    assert in_cyrus(job.cyrus, job.user) == check_records(job, [*BROKEN.values(), *BROKEN.values()])


@pytest.mark.parametrize("words", [(), ("--repair", "never")], ids=["default", "never"])
def test_nothing_is_changed_unasked(words: tuple[str, ...], job: Job) -> None:
    job = Job(cyrus=job.cyrus, user=job.user, folder=job.folder, port=job.port, words=words)
    write(job.folder / "Maildir", [*GOOD, *BROKEN.values(), EMPTY])
    broken = len(BROKEN) + 1
    assert job.run(65) == {"found": len(GOOD) + broken, "imported": len(GOOD), "rejected": broken, "altered": 0}
    assert in_cyrus(job.cyrus, job.user) == Counter(sha256(wire_form(body)) for body in GOOD)
    assert len(job.lines("rejects.jsonl")) == broken
    assert not (job.directory / "repairs.jsonl").exists() and not (job.directory / "escrow").exists()


def before_the_repaired(link: Link, is_client: bool, new: int) -> int | None:
    """At the first octet of the client after it heard that a message was refused alone, for the second time."""
    return 0 if is_client and link.received.count(b" NO Message contains NUL") >= 3 else None


def after_the_repaired(link: Link, is_client: bool, new: int) -> int | None:
    """At the answer to the first message that was taken: the first one that was repaired."""
    return 0 if not is_client and b"APPENDUID" in link.received else None


@pytest.mark.parametrize(
    ("at", "there"), [(before_the_repaired, 0), (after_the_repaired, 1)], ids=["unsent", "unanswered"]
)
@pytest.mark.fault("F5")
def test_killed_between_the_original_and_the_answer_it_is_repaired_once(at: At, there: int, job: Job) -> None:
    """Two messages that are refused together, then each alone; the kill comes at the first that is repaired."""
    originals = [BROKEN["nul"], b"Subject: two\0\n\nbody\n"]
    write(job.folder / "Maildir", originals)
    cut = True
    with run_proxy(job.cyrus.port, lambda link: Fault(at, hold) if cut else None) as proxy:
        job = Job(cyrus=job.cyrus, user=job.user, folder=job.folder, port=proxy.port)
        command = [sys.executable, "-m", "aimport", *job.command()]
        with subprocess.Popen(
            command, env=mail.environment(SECRETS), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as run:
            try:
                assert proxy.faulty.wait(60), run.poll()
            finally:
                os.kill(run.pid, signal.SIGKILL)
            run.communicate()
        assert run.returncode == -signal.SIGKILL
        assert in_cyrus(job.cyrus, job.user).total() == there
        assert list((job.directory / "escrow").iterdir())
        cut = False
        assert job.resume(0) == {"found": 2, "imported": 2, "rejected": 0, "altered": 2}
    assert in_cyrus(job.cyrus, job.user) == check_records(job, originals)
    assert job.lines("rejects.jsonl") == []
