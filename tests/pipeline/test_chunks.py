"""A run in chunks: the same mail, the same accounts and the same exit code as by one process, whoever dies.

The engine is one of threads of this process; the processes of Dask are in `tests/e2e/test_workers.py`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from aimport.cli import work
from aimport.cli.call import Processes
from aimport.cli.main import main
from aimport.errors import ConfigurationError, JournalError
from aimport.journal import shard_directory
from aimport.limits import Limits
from aimport.model import Endpoint, Secret, UserJob
from aimport.orders import Orders
from aimport.runners import chunks
from aimport.runners.chunks import Chunk, Done, Engine, WorkerLost, chunk_users, import_chunk, refuse_literals
from aimport.stores import Stores
from tests import mail
from tests.faults.jobs import write_maildir
from tests.unit.test_journal import create

pytestmark = pytest.mark.timeout(200)

Report = dict[str, Any]
"""Of `--json`."""
USERS = [f"user{number:02}" for number in range(12)]


@dataclass
class Threads:
    """Workers that are threads. `before` is called with each chunk, `after` before its end is told: both may raise."""

    slots: int = 2
    elsewhere: bool = False
    before: Callable[[Chunk], None] = lambda chunk: None
    after: Callable[[Chunk], None] = lambda chunk: None
    ran: list[Chunk] = field(default_factory=list)

    async def start(self, directory: Path, token: str) -> None:
        assert chunks.greet(directory, token, chunks.versions()) == ""

    async def run(self, chunk: Chunk) -> Done:
        self.ran.append(chunk)
        self.before(chunk)
        packed = chunks.pack(chunk)
        done = await anyio.to_thread.run_sync(lambda: import_chunk(chunks.unpack(packed)))
        self.after(chunk)
        return done

    async def close(self) -> None:
        pass


@dataclass
class Site:
    """Some users' Maildirs, where they go, and the command line."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __post_init__(self) -> None:
        for user in USERS:
            write_maildir(self.root / "from" / user)
        (self.root / "users").write_text("\n".join(USERS) + "\n")

    def __call__(self, engine: Engine | None, *words: str) -> tuple[int, Report]:
        def engine_of(processes: Processes) -> Engine | None:
            return engine

        self.monkeypatch.setattr(work, "engine_of", engine_of)
        self.capsys.readouterr()
        code = main(words)
        out = self.capsys.readouterr().out
        report: Report = json.loads(out) if out else {}
        return code, report

    def import_(
        self, engine: Engine | None, *words: str, to: str = "to", query: Sequence[str] = ("ALL",)
    ) -> tuple[int, Report]:
        return self(
            engine, "import", "-F", f"{self.root}/users", "--to", f"maildir:{self.root}/{to}/%u", "--json",
            "--journal", f"{self.root}/journal-{to}", *words, f"maildir:{self.root}/from/%u", "", *query,
        )  # fmt: skip

    def resume(self, engine: Engine | None, to: str = "to") -> tuple[int, Report]:
        return self(engine, "resume", "--json", "--journal", f"{self.root}/journal-{to}")

    def check(self, to: str = "to") -> None:
        """All mail of all users is there, once."""
        for user in USERS:
            assert mail.in_maildir(self.root / to / user) == mail.in_maildir(self.root / "from" / user), user

    def shards(self, to: str = "to") -> int:
        return len(list(self.root.glob(f"journal-{to}/2*/shards/*")))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Site:
    monkeypatch.setattr(chunks, "LISTEN_S", 0.05)
    return Site(tmp_path, monkeypatch, capsys)


def same(report: Report) -> Report:
    """A report without what differs from run to run."""
    shown: Report = json.loads(json.dumps(report))
    shown.pop("run")
    shown.pop("stages", None)
    for each in (*shown["users"], shown["totals"]):
        each.pop("seconds", None)
    return shown


def spoil(site: Site) -> None:
    """A user without a source, one with a message that cannot be read."""
    (site.root / "from" / USERS[3]).rename(site.root / "away")
    file = next((site.root / "from" / USERS[5] / "cur").iterdir())
    file.unlink()
    file.symlink_to("/etc/passwd")


@pytest.mark.parametrize("words", [(), ("--first", "FLAGGED"), ("--users", "1", "--skip-existing")])
def test_a_run_in_chunks_reports_what_a_run_of_one_process_does(words: tuple[str, ...], site: Site) -> None:
    spoil(site)
    one, report = site.import_(None, *words, to="one")
    engine = Threads()
    several, other = site.import_(engine, *words, to="several")
    assert (several, same(other)) == (one, same(report))
    assert one == 75 and site.shards("several") == len({chunk.shard for chunk in engine.ran}) > 1
    for user in USERS:
        if user != USERS[3]:
            assert mail.in_maildir(site.root / "several" / user) == mail.in_maildir(site.root / "one" / user)

    def rejects(to: str) -> list[str]:
        [file] = site.root.glob(f"journal-{to}/2*/rejects.jsonl")
        return sorted(file.read_text().splitlines())

    assert rejects("one") == rejects("several") != []
    for command in (("report",), ("verify", "--deep")):
        ended = []
        for to in ("one", "several"):
            code, shown = site(None, *command, "--json", "--journal", f"{site.root}/journal-{to}")
            ended.append((code, sorted(map(str, same(shown)["users"]))))
        assert ended[0] == ended[1]


def test_what_held_up_the_workers_is_added_up(site: Site) -> None:
    _, one = site.import_(None, to="one")
    _, several = site.import_(Threads(), to="several")

    def batches(report: Report) -> dict[str, int]:
        return {row["stage"]: row["batches"] for row in report["stages"]["stages"] if row["stage"] in ("read", "list")}

    assert batches(several) == batches(one)
    assert min(batches(one).values()) >= len(USERS)
    assert all(row["busy"] >= 0 for row in several["stages"]["stages"])
    assert 0 < several["stages"]["processor"] <= 1


@pytest.mark.parametrize(("begins", "goes_on"), [(None, 3), (2, None), (3, 1), (1, 3)])
def test_a_run_is_resumed_by_more_processes_or_fewer(begins: int | None, goes_on: int | None, site: Site) -> None:
    """None: by this process alone. Users are where they were begun: nothing is imported twice."""
    (site.root / "from" / USERS[3]).rename(site.root / "away")
    engines = [None if slots is None else Threads(slots) for slots in (begins, goes_on)]
    code, _ = site.import_(engines[0])
    assert code == 75
    (site.root / "away").rename(site.root / "from" / USERS[3])
    write_maildir(site.root / "from" / USERS[7], mailboxes=(".More",))
    code, report = site.resume(engines[1])
    assert code == 0
    assert report["totals"]["imported"] == report["totals"]["found"] == 10 * len(USERS)
    assert site.resume(engines[0])[0] == 0


def test_workers_elsewhere_have_their_shards_for_themselves_alone(site: Site) -> None:
    """The driver of a resume has read them just before."""
    (site.root / "from" / USERS[3]).rename(site.root / "away")
    assert site.import_(Threads(elsewhere=True))[0] == 75
    (site.root / "away").rename(site.root / "from" / USERS[3])
    seen: list[float] = []
    code, report = site.resume(Threads(elsewhere=True, after=lambda chunk: seen.append(len(chunk.jobs))))
    assert code == 0 and sum(seen) == 1 and report["totals"]["imported"] == 10 * len(USERS)
    site.check()


def test_a_worker_that_dies_costs_nothing(site: Site) -> None:
    """Before it began, and when all was done but told: each chunk once."""
    died: Counter[int] = Counter()

    def die(chunk: Chunk) -> None:
        died[chunk.shard] += 1
        if died[chunk.shard] == 1:
            raise WorkerLost("killed")

    for at in ("before", "after"):
        died.clear()
        code, report = site.import_(Threads(3, **{at: die}), to=at)  # type: ignore[arg-type] # a field's name
        assert code == 0 and report["totals"]["imported"] == 10 * len(USERS)
        site.check(at)


def test_a_user_of_whom_workers_die_costs_the_others_nothing(site: Site) -> None:
    """It is found out by halving: the others are imported, it is named, and tried again by a resume."""
    bad = USERS[4]

    def has_it(chunk: Chunk) -> bool:
        return any(job.user == bad for job in chunk.jobs)

    def die(chunk: Chunk) -> None:
        if has_it(chunk):
            (shard_directory(chunk.directory, chunk.shard) / chunks.PROGRESS).touch()
            raise WorkerLost("killed")

    engine = Threads(before=die)
    code, report = site.import_(engine)
    assert code == 75
    assert [len(chunk.jobs) for chunk in engine.ran if has_it(chunk)] == [5, 5, 3, 2, 1, 1, 1]
    ended = {each["user"]: each["status"] for each in report["users"]}
    assert ended == {user: "failed" if user == bad else "done" for user in USERS}
    [error] = [each["error"] for each in report["users"] if each["error"]]
    assert "worker processes died" in error
    assert site.resume(Threads())[0] == 0
    site.check()


def test_a_chunk_that_never_began_is_not_to_blame_for_its_worker(site: Site) -> None:
    """A worker that dies of one chunk takes along those that wait behind it."""
    tries: Counter[int] = Counter()

    def die(chunk: Chunk) -> None:
        tries[chunk.shard] += 1
        if tries[chunk.shard] < 6:
            raise WorkerLost("killed")

    engine = Threads(before=die)
    assert site.import_(engine)[0] == 0
    assert {len(chunk.jobs) for chunk in engine.ran} == {5, 2}, "none was cut"
    site.check()


def test_a_shard_that_is_held_by_a_worker_that_was_given_up_is_waited_for(site: Site) -> None:
    """The engine took it for dead; it was not. It is never joined by another."""
    held: dict[int, int] = {}

    def hold(chunk: Chunk) -> None:
        if chunk.shard not in held:
            lock = shard_directory(chunk.directory, chunk.shard) / "lock"
            held[chunk.shard] = os.open(lock, os.O_RDWR | os.O_CREAT)
            fcntl.flock(held[chunk.shard], fcntl.LOCK_EX)
        elif held[chunk.shard] >= 0:
            os.close(held[chunk.shard])
            held[chunk.shard] = -1

    engine = Threads(before=hold)
    assert site.import_(engine)[0] == 0
    assert len(engine.ran) == 2 * len(held)
    site.check()


def test_users_of_one_account_are_never_in_two_shards(site: Site, tmp_path: Path) -> None:
    """An archive of all: they would otherwise be two writers of one account."""
    rows = [f"{user},maildir:{site.root}/from/{user},Old/{user}" for user in USERS]
    (tmp_path / "list.csv").write_text("user,source,parent\n" + "\n".join(rows) + "\n")
    engine = Threads()
    code, _ = site(
        engine, "import", "-F", str(tmp_path / "list.csv"), "--to", f"maildir:{site.root}/archive", "--json",
        "--users", "2", "--journal", f"{site.root}/journal", "maildir:/nowhere", "", "ALL",
    )  # fmt: skip
    assert code == 0 and {chunk.shard for chunk in engine.ran} == {1} and len(engine.ran) > 2
    assert mail.in_maildir(site.root / "archive").total() == 10 * len(USERS)


def test_a_failure_of_the_run_in_one_worker_ends_it(site: Site) -> None:
    def fail(chunk: Chunk) -> None:
        raise JournalError("disk full")

    code, report = site.import_(Threads(before=fail))
    assert code == 75 and report["users"] == []
    assert site.resume(Threads())[0] == 0
    site.check()


def test_the_first_signal_stops_all_workers_and_a_resume_goes_on(site: Site) -> None:
    def stop(chunk: Chunk) -> None:
        if chunk.shard == 2:
            signal.raise_signal(signal.SIGTERM)

    code, report = site.import_(Threads(2, after=stop), "--users", "1")
    assert code == 130 and 0 < len(report["users"]) < len(USERS)
    assert site.resume(Threads(3))[0] == 0
    site.check()


def test_max_errors_holds_over_all_workers(site: Site) -> None:
    for user in USERS:
        (site.root / "from" / user).rename(site.root / f"away-{user}")
    code, report = site.import_(Threads(), "--max-errors", "2", "--users", "1")
    assert code == 75 and 2 <= len(report["users"]) < len(USERS)


def test_a_literal_secret_stays_with_the_driver(site: Site, tmp_path: Path) -> None:
    """It is in nothing that an engine is given; elsewhere it is refused before anything begins."""
    secret = "canary-4711"
    file = tmp_path / "list.csv"
    file.write_text(f"user,dest_password\nbob,{secret}\n")
    file.chmod(0o600)
    seen: list[bytes] = []

    def look(chunk: Chunk) -> None:
        seen.append(chunks.pack(chunk) + repr(chunk).encode())

    words = (
        "import", "-F", str(file), "--to", "imap://127.0.0.1:1/?tls=off", "--json", "--journal", f"{tmp_path}/journal",
        f"maildir:{site.root}/from/user01", "", "ALL",
    )  # fmt: skip
    assert site(Threads(before=look, elsewhere=True), *words)[0] == 78
    assert not seen and not list((tmp_path / "journal").glob("2*"))
    site.monkeypatch.setattr("aimport.cli.options.DEFAULTS", Limits(attempts=1, retry_wait_s=0.01))
    assert site(Threads(before=look), *words)[0] == 75
    assert seen and all(secret.encode() not in each and b"held" in each for each in seen)


def test_workers_have_users_memory_and_rates_of_the_run_together(site: Site) -> None:
    """Not those of a cluster their users and their memory: each of its machines has its own."""
    words = ("--users", "5", "--max-memory", "8M", "--messages-per-second", "1000")
    for elsewhere, users, octets in ((False, 3, 4 << 20), (True, 5, 8 << 20)):
        engine = Threads(2, elsewhere=elsewhere)
        assert site.import_(engine, *words, to=f"to-{elsewhere}")[0] == 0
        for chunk in engine.ran:
            there = chunks.unpack(chunks.pack(chunk)).settings
            limits, stores = there["limits"], there["stores"]
            assert isinstance(limits, Limits) and isinstance(stores, Stores)
            assert (limits.users, limits.max_memory) == (users, octets)
            assert stores._throttles is there["throttles"]
            appends = stores._throttles.of("h").appends if stores._throttles is not None else None
            assert appends is not None and appends.per_second == 500


@pytest.mark.parametrize("kind", ["env", "file", "cmd"])
def test_references_may_travel(kind: str) -> None:
    secret = Secret(kind=kind, text="x")  # type: ignore[arg-type] # one of its kinds
    endpoint = Endpoint(scheme="imap", host="h", secret=secret)
    refuse_literals(UserJob(user="bob", source=endpoint, destination=endpoint))
    literal = Endpoint(scheme="imap", host="h", secret=Secret(kind="literal", text="x"))
    with pytest.raises(ConfigurationError, match="secrets do not travel"):
        refuse_literals(UserJob(user="bob", source=endpoint, destination=literal))


@pytest.mark.parametrize("path", ["/srv/bob", "/srv/b\udcf6b"])
def test_what_is_packed_for_a_worker_is_unpacked_as_it_was(path: str, tmp_path: Path) -> None:
    """Also the name of a file that is not UTF-8."""
    endpoint = Endpoint(scheme="maildir", path=path, secret=Secret(kind="held", text="1:2:3:4"), options=(("a", "b"),))
    job = UserJob(user="bob", source=endpoint, destination=endpoint)
    chunk = Chunk(directory=tmp_path, shard=1, jobs=(job, job), settings={"limits": Limits()}, token="t")
    assert chunks.unpack(chunks.pack(chunk)) == chunk


@pytest.mark.parametrize(
    ("users", "slots", "at_once", "size"),
    [(1, 2, 5, 1), (20, 2, 5, 5), (100, 2, 5, 7), (1_000_000, 2, 5, 500), (10_000, 100, 10, 13), (3, 8, 2, 1)],
)
def test_chunks_are_small_enough_to_share_and_large_enough_to_pay(
    users: int, slots: int, at_once: int, size: int
) -> None:
    assert chunk_users(users, slots, at_once) == size


@pytest.mark.parametrize(("what", "theirs"), [("aimport", ("0", "3.11")), ("Python", (chunks.versions()[0], "2.7"))])
def test_a_worker_of_another_version_is_refused(what: str, theirs: chunks.Versions) -> None:
    problem = chunks.unlike(theirs)
    assert f"has {what} {dict(zip(('aimport', 'Python'), chunks.versions(), strict=True))[what]}, the run " in problem
    assert chunks.unlike(chunks.versions()) == ""


async def test_a_worker_that_does_not_share_the_directory_is_refused(tmp_path: Path) -> None:
    """It is not there, it is another one by the same name, its locks do not pass, or it cannot be written."""
    journal = create(tmp_path)
    directory = tmp_path / journal.run
    given = Orders(directory)
    good = chunks.versions()
    assert chunks.greet(directory, given.token, good) == ""
    assert "No such file" in chunks.greet(tmp_path / "elsewhere", given.token, good)
    assert "is not what the driver wrote" in chunks.greet(directory, "another", good)
    assert "has Python" in chunks.greet(directory, given.token, (good[0], "2.7"))
    assert not list(directory.glob("probe-*"))
    given.close()
    await journal.close(finished=False)  # its lock is free: so it looks where locks are one machine's own
    assert "carries no locks" in chunks.greet(directory, given.token, good)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("tls://scheduler.example.org:8786", ""),
        ("tls://[2001:db8::1]:8786", ""),
        ("tcp://127.0.0.1:8786", ""),
        ("tcp://[::1]:8786", ""),
        ("tcp://localhost:8786", ""),
        ("tcp://scheduler.example.org:8786", "use tls://"),
        ("tcp://192.0.2.1:8786", "use tls://"),
        ("ws://127.0.0.1:8786", "no address"),
        ("scheduler.example.org:8786", "no address"),
        ("tls://scheduler.example.org", "no address"),
        ("tls://h:99999", "no address"),
        ("", "no address"),
    ],
)
def test_only_what_nobody_else_can_reach_is_connected_to_without_certificates(address: str, told: str) -> None:
    from aimport.runners.cluster import check_address

    if not told:
        check_address(address, "scheduler")
        return
    with pytest.raises(ConfigurationError, match=told):
        check_address(address, "scheduler")
