"""Run as root, users' files are opened and made with the users' own rights, and with no others (C4, S1-S3)."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import aclosing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final, TypedDict

import anyio
import pytest

from aimport import sample
from aimport.errors import AccessRefused, ConnectionLost
from aimport.model import Endpoint, Mailbox, Message, Rights
from aimport.stores import Stores
from aimport.stores.rights.pool import KEPT, PASSED_ON
from tests import mail
from tests.fix_rights import BOB, EVE, give
from tests.processes import descendants

pytestmark = [pytest.mark.usefixtures("as_root"), pytest.mark.timeout(120)]

CANARY: Final = b"only eve may read this"
INBOX: Final = Mailbox(path=("INBOX",), separator=".")


def of(user: str) -> Rights:
    return {"bob": BOB, "eve": EVE}[user]


def import_command(root: Path, *words: str, users: Path | None = None) -> list[str]:
    """An import of both users from `src` to `dst`, each with its own rights."""
    listed = users or root / "users.csv"
    if users is None:
        rows = [f"{name},{of(name).uid},{of(name).gid}\n" for name in ("bob", "eve")]
        listed.write_text("user,mail_uid,mail_gid\n" + "".join(rows))
    return [
        *(sys.executable, "-m", "aimport", "import", "-F", str(listed), "--journal", str(root / "journal")),
        *("--progress", "none", "--json", "--to", f"maildir:{root}/dst/%u/Maildir", *words),
        *(f"maildir:{root}/src/%u/Maildir", "", "ALL"),
    ]


class Result(TypedDict):
    """As much of a report as is looked at."""

    user: str
    status: str
    imported: int
    error: str


def run(command: list[str], *, code: int = 0) -> list[Result]:
    """The users of the report, by name."""
    done = subprocess.run(command, env=mail.environment(), capture_output=True, timeout=100)
    assert done.returncode == code, done.stderr.decode()
    users: list[Result] = json.loads(done.stdout)["users"]
    return sorted(users, key=lambda user: user["user"])


def fill(root: Path, user: str, messages: int) -> None:
    """A home with generated mail, closed to everybody else, and a place for what is imported."""
    sample.write_maildir(root / "src" / user / "Maildir", sample.account(user, seed=5, messages=messages))
    (root / "dst" / user).mkdir(parents=True)
    for each in (root / "src" / user, root / "dst" / user):
        give(each, of(user))
        each.chmod(0o700)


def expected(user: str, messages: int) -> object:
    return mail.of_samples(sample.account(user, seed=5, messages=messages))


def test_each_user_of_a_list_is_imported_with_its_own_rights(reachable: Path) -> None:
    for user in ("bob", "eve"):
        fill(reachable, user, 60)
    for again in ("--no-link", "--link"):
        run(import_command(reachable, again))
        for user in ("bob", "eve"):
            assert mail.in_maildir(reachable / "dst" / user / "Maildir") == expected(user, 60)
            for directory, _, names in os.walk(reachable / "dst" / user):
                for each in (directory, *(os.path.join(directory, name) for name in names)):
                    status = os.lstat(each)
                    assert (status.st_uid, status.st_gid, status.st_mode & 0o077) == (of(user).uid, of(user).gid, 0)
            subprocess.run(["rm", "-r", str(reachable / "dst" / user / "Maildir")], check=True)
    verify = [sys.executable, "-m", "aimport", "verify", "--journal", str(reachable / "journal")]
    verified = subprocess.run(verify, env=mail.environment(), capture_output=True, timeout=60)
    assert verified.returncode == 65, verified.stderr  # looked at with their rights: all of it is gone


def test_a_check_looks_with_the_rights_of_each_user_and_makes_nothing(reachable: Path) -> None:
    """Root may write anywhere, and would see nothing wrong with a home that is not the user's own."""
    for user in ("bob", "eve"):
        fill(reachable, user, 5)
    give(reachable / "dst" / "eve", BOB)
    before = mail.tree(reachable)
    command = import_command(reachable)
    command[command.index("import")] = "check"
    done = subprocess.run(command, env=mail.environment(), capture_output=True, timeout=60)
    bob, eve, last = (json.loads(line) for line in done.stdout.splitlines())
    assert (bob["status"], bob["messages"], bob["problems"]) == ("done", 5, [])
    assert (eve["status"], eve["messages"], done.returncode) == ("refused", 5, 75)
    assert "dst/eve" in eve["problems"][0]
    assert last["disks"][0]["octets"] > bob["octets"]
    (reachable / "users.csv").unlink()  # written by the test itself
    after = mail.tree(reachable)
    assert {path: seen for path, seen in after.items() if path != "."} == {
        path: seen for path, seen in before.items() if path not in (".", "users.csv")
    }


def test_the_owner_of_the_source_lends_its_rights(reachable: Path) -> None:
    fill(reachable, "bob", 5)
    fill(reachable, "eve", 5)
    os.chown(reachable / "src" / "eve" / "Maildir", 0, 0)
    users = reachable / "names"
    users.write_text("bob\neve\n")
    command = import_command(reachable, users=users)
    command[3:3] = ["-o", "mail_uid=owner", "-o", "mail_gid=owner"]
    users_ = run(command, code=75)
    assert [user["status"] for user in users_] == ["done", "failed"]
    assert "first_valid_uid" in users_[1]["error"]
    assert mail.in_maildir(reachable / "dst" / "bob" / "Maildir") == expected("bob", 5)
    assert not (reachable / "dst" / "eve" / "Maildir").exists()


async def test_sessions_of_one_owner_do_not_take_each_others_selections(reachable: Path) -> None:
    """Twenty lanes select at the same time in one child (a hosting company's `vmail` owns all mail)."""
    fill(reachable, "bob", 200)
    account = endpoint(reachable / "src" / "bob" / "Maildir")
    stores = Stores()
    names: dict[str, list[str]] = {}
    async with stores.source(account).open() as session:
        for mailbox in await session.list_mailboxes():
            names[mailbox.name] = list((await session.select(mailbox)).keys)

    async def select_all() -> None:
        async with stores.source(account).open() as session:
            for mailbox in await session.list_mailboxes():
                selection = await session.select(mailbox)
                async with aclosing(session.messages(selection, skip=())) as lists:
                    read = [message.key async for some in lists for message in some if isinstance(message, Message)]
                assert read == names[mailbox.name]

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(select_all)


def test_check_looks_with_the_rights_of_the_user(reachable: Path) -> None:
    """What root could write, and bob cannot, is in the way of bob."""
    fill(reachable, "bob", 3)
    fill(reachable, "eve", 3)
    command = import_command(reachable)
    words = ["check" if word == "import" else word for word in command if word not in ("--progress", "none", "--json")]
    assert subprocess.run(words, env=mail.environment(), capture_output=True, timeout=60).returncode == 0
    os.chown(reachable / "dst" / "bob", 0, 0)
    done = subprocess.run(words, env=mail.environment(), capture_output=True, timeout=60)
    assert done.returncode == 75, done.stderr
    assert b"Permission denied" in done.stdout + done.stderr or b"no permission" in done.stdout + done.stderr


def hostile(root: Path) -> tuple[Path, Path]:
    """Bob's Maildir, full of ways to the one message of eve, and that message."""
    theirs = root / "src" / "eve" / "Maildir"
    for part in ("cur", "new", "tmp", ".Secret/cur", ".Secret/new", ".Secret/tmp"):
        (theirs / part).mkdir(parents=True)
    secret = theirs / "cur" / "1600000000.M1P1.host:2,S"
    for file in (secret, theirs / ".Secret" / "cur" / "1600000000.M2P1.host:2,S"):
        file.write_bytes(b"Subject: to eve\n\n" + CANARY + b"\n")
        file.chmod(0o600)
    (theirs / "dovecot-keywords").write_bytes(b"0 " + CANARY.replace(b" ", b"-") + b"\n")
    give(root / "src" / "eve", EVE)
    (root / "src" / "eve").chmod(0o711)  # names below can be reached, as in many a /home
    (root / "dst" / "eve").mkdir(parents=True)
    give(root / "dst" / "eve", EVE)

    ours = root / "src" / "bob" / "Maildir"
    for part in ("cur", "new", "tmp", ".Half/cur", ".Half/tmp"):
        (ours / part).mkdir(parents=True)
    for number in range(20):
        (ours / "cur" / f"16000000{number:02}.M{number}P2.host:2,Sa").write_bytes(b"Subject: %d\n\nmine\n" % number)
    cur = ours / "cur"
    (cur / "1700000001.M1P3.host:2,S").symlink_to(secret)
    (cur / "1700000002.M1P3.host:2,S").symlink_to("../../../eve/Maildir/cur/1600000000.M1P1.host:2,S")
    os.mkfifo(cur / "1700000003.M1P3.host:2,S")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(cur / "s"))
    (cur / "s").rename(cur / "1700000004.M1P3.host:2,S")
    os.mknod(cur / "1700000005.M1P3.host:2,S", stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    (ours / ".Half" / "new").symlink_to(theirs / "cur")
    (ours / ".Whole").symlink_to(theirs / ".Secret")
    (ours / "dovecot-keywords").symlink_to(theirs / "dovecot-keywords")
    (ours / "dovecot-uidlist").symlink_to(theirs / "cur" / secret.name)
    (ours / ".Linked" / "cur").mkdir(parents=True)
    (ours / ".Linked" / "dovecot-keywords").hardlink_to(theirs / "dovecot-keywords")
    (ours / ".Linked" / "cur" / "1700000006.M1P3.host:2,Sa").write_bytes(b"Subject: keyword\n\nmine\n")
    give(root / "src" / "bob", BOB)
    # Links share owner and mode with what they lead to.
    (cur / "1700000007.M1P3.host:2,S").hardlink_to(secret)
    os.chown(secret, EVE.uid, EVE.gid)
    os.chown(theirs / "dovecot-keywords", EVE.uid, EVE.gid)
    (theirs / "dovecot-keywords").chmod(0o600)
    closed = cur / "1700000008.M1P3.host:2,S"
    closed.write_bytes(b"Subject: closed\n\n")
    os.chown(closed, BOB.uid, BOB.gid)
    closed.chmod(0)
    (root / "dst" / "bob").mkdir(parents=True)
    give(root / "dst" / "bob", BOB)
    return ours, secret


@contextmanager
def swapping(folder: Path, secret: Path) -> Iterator[list[int]]:
    """Messages of bob that are now a file of his, now a link to eve's message, until the end; how often it was so."""
    ended = threading.Event()
    rounds = [0]
    names = [folder / "cur" / f"1650000000.M{number}P4.host:2,S" for number in range(8)]

    def swap() -> None:
        for number in count():
            if ended.is_set():
                return
            for name in names:
                other = folder / "tmp" / "other"
                with suppress(FileNotFoundError):
                    other.unlink()
                match number % 3:
                    case 0:
                        other.write_bytes(b"Subject: swapped\n\nmine\n")
                        os.chown(other, BOB.uid, BOB.gid)
                    case 1:
                        other.symlink_to(secret)
                    case 2:
                        other.hardlink_to(secret)
                other.rename(name)
            rounds[0] += 1

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield rounds
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("link", ["--link", "--no-link"])
def test_a_hostile_maildir_gives_no_octet_of_another_user(reachable: Path, link: str) -> None:
    ours, secret = hostile(reachable)
    before = secret.stat().st_mtime_ns, secret.read_bytes()
    command = import_command(reachable, link)
    with swapping(ours, secret) as rounds:
        for turn in range(3):
            while rounds[0] < 10 * (turn + 1):
                time.sleep(0.01)
            [bob, eve] = run([*command[:-3], "--again", *command[-3:]] if turn else command, code=75)
    assert rounds[0] > 30
    assert (eve["status"], eve["imported"]) == ("done", 2)
    assert bob["status"] == "failed"
    assert "Half" in bob["error"] and "1 more" in bob["error"]  # two folders that are links; the others were imported:
    arrived = [file for file in (reachable / "dst" / "bob").rglob("*") if file.is_file()]
    mine = [file for file in arrived if b"\nmine\n" in file.read_bytes()]
    assert len([file for file in mine if file.parent.parent.name == "Maildir"]) >= 3 * 20
    assert [file for file in mine if ".Linked" in str(file)]
    for file in arrived:
        assert CANARY not in file.read_bytes() and file.stat().st_ino != secret.stat().st_ino
        assert CANARY.replace(b" ", b"-") not in file.read_bytes()
    rejects = b"".join(file.read_bytes() for file in (reachable / "journal").rglob("rejects.jsonl"))
    for number in (1, 2, 3, 4, 5, 7, 8):
        assert b"170000000%d.M1P3" % number in rejects
    assert CANARY not in rejects
    assert (secret.stat().st_mtime_ns, secret.read_bytes()) == before


# the process


def children(but: Collection[int] = ()) -> dict[int, dict[str, str]]:
    """What the system says of our descendants that have another user's rights; not of those known before."""
    found = {}
    for pid in set(descendants(os.getpid())).difference(but):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if status["Uid"].split()[0] in (str(BOB.uid), str(EVE.uid)):
                found[pid] = status
    return found


def endpoint(path: Path, rights: Rights = BOB) -> Endpoint:
    return Endpoint(scheme="maildir", path=str(path), rights=rights)


async def test_a_child_has_no_rights_but_those_of_its_user(reachable: Path) -> None:
    fill(reachable, "bob", 3)
    others = children()
    stores = Stores()
    source = stores.source(endpoint(reachable / "src" / "bob" / "Maildir"))
    async with source.open() as session:
        await session.list_mailboxes()
        [(pid, status)] = children(others).items()
        assert status["Uid"].split() == [str(BOB.uid)] * 4  # real, effective, saved, of files
        assert status["Gid"].split() == [str(BOB.gid)] * 4
        assert status["Groups"].split() == [str(BOB.gid)]
        assert [int(status[each], 16) for each in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [0, 0, 0, 0]
        assert status["NoNewPrivs"] == "1"
        assert os.stat(f"/proc/{pid}/mem").st_uid == 0  # nobody but root may look into it
        names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert all(name.split(b"=")[0].decode() in PASSED_ON for name in names if name)
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2]
        assert not [each for each in opened if each.startswith("/") and not each.startswith(("/dev/", str(reachable)))]


async def test_rights_that_are_not_to_be_had_fail_their_user_alone() -> None:
    before = children()
    stores = Stores()
    impossible = Rights(uid=(1 << 32) - 1, gid=24_001, groups=(24_001,))
    with pytest.raises(AccessRefused, match="cannot be taken on"):
        async with stores.source(Endpoint(scheme="maildir", path="/nonexistent", rights=impossible)).open():
            pass
    async with stores.source(Endpoint(scheme="maildir", path="/nonexistent", rights=BOB)).open():
        assert children(before)


async def test_nothing_is_left_when_stores_go(reachable: Path) -> None:
    fill(reachable, "bob", 3)
    gc.collect()  # what earlier tests have left
    fds, pids = set(os.listdir("/proc/self/fd")), set(descendants(os.getpid()))
    stores = Stores()
    for _ in range(3):
        async with stores.source(endpoint(reachable / "src" / "bob" / "Maildir")).open() as session:
            selection = await session.select(INBOX)
            async with aclosing(session.messages(selection, skip=())) as lists:
                await anext(lists)
    for number in range(12):  # idle ones are not kept for ever
        rights = Rights(uid=BOB.uid, gid=BOB.gid + number, groups=(BOB.gid + number,))
        async with stores.source(endpoint(reachable, rights)).open():
            pass
    await gone(lambda: len(children(pids)) <= KEPT)
    del stores
    gc.collect()
    await gone(lambda: set(descendants(os.getpid())) <= pids)
    assert set(os.listdir("/proc/self/fd")) <= fds


async def gone(is_so: Callable[[], bool]) -> None:
    """Waits for what other processes are about to do."""
    with anyio.fail_after(20):
        while not is_so():  # noqa: ASYNC110  # no event of ours tells it
            await anyio.sleep(0.02)


async def test_a_killed_child_ends_its_sessions_and_the_next_has_a_new_one(reachable: Path) -> None:
    fill(reachable, "bob", 200)
    fill(reachable, "eve", 3)
    before = children()
    stores = Stores()
    source = stores.source(endpoint(reachable / "src" / "bob" / "Maildir"))
    other = stores.source(endpoint(reachable / "src" / "eve" / "Maildir", EVE))
    async with other.open() as others:
        async with source.open() as session:
            selection = await session.select(INBOX)
            for pid, status in children(before).items():
                if status["Uid"].split()[0] == str(BOB.uid):
                    os.kill(pid, signal.SIGKILL)
            with pytest.raises(ConnectionLost, match=f"uid {BOB.uid} has ended"):
                async for _ in session.messages(selection, skip=()):
                    pass
            with pytest.raises(ConnectionLost):
                await session.list_mailboxes()
        async with source.open() as session:
            with pytest.raises(ConnectionLost, match="selected"):
                async for _ in session.messages(selection, skip=()):
                    pass
            assert len((await session.select(INBOX)).keys) == len(selection.keys)
        assert await others.list_mailboxes()


async def test_a_killed_server_is_started_again(reachable: Path) -> None:
    fill(reachable, "bob", 3)
    stores = Stores()
    before = set(descendants(os.getpid()))
    async with stores.source(endpoint(reachable / "src" / "bob" / "Maildir")).open():
        made = set(descendants(os.getpid())) - before
        [server] = made - children(before).keys()
        os.kill(server, signal.SIGKILL)
        async with stores.source(endpoint(reachable / "src" / "bob" / "Maildir", EVE)).open():
            pass


async def test_sessions_with_the_same_rights_read_what_each_has_selected(reachable: Path) -> None:
    """All mailboxes of a system with one owner lie in the hands of few children, many users at a time."""
    stores = Stores()
    names = [f"bob{number}" for number in range(6)]
    for number, name in enumerate(names):
        samples = sample.account(name, seed=5, messages=20 + number, mailboxes=(("INBOX",),))
        sample.write_maildir(reachable / name, samples)
        give(reachable / name, BOB)

    async def select_and_read(name: str) -> None:
        async with stores.source(endpoint(reachable / name)).open() as session:
            for _ in range(10):
                selection = await session.select(INBOX)
                read = [item.key async for items in session.messages(selection, skip=()) for item in items]
                assert sorted(read) == sorted(selection.keys)
                assert len(read) == 20 + names.index(name)

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(select_and_read, name)


async def test_a_session_that_is_cancelled_has_ended_there_as_well(reachable: Path) -> None:
    fill(reachable, "bob", 400)
    others = children()
    stores = Stores()
    source = stores.source(endpoint(reachable / "src" / "bob" / "Maildir"))
    async with source.open() as kept:
        for _ in range(5):
            with anyio.move_on_after(0.01):
                async with source.open() as session:
                    while True:
                        selection = await session.select(INBOX)
                        async for _ in session.messages(selection, skip=()):
                            pass
        assert len((await kept.select(INBOX)).keys) > 0
        [pid] = children(others)
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [each for each in held if str(reachable) in each]


@pytest.mark.fault("F1")
def test_whoever_is_killed_nothing_is_lost_or_doubled(reachable: Path) -> None:
    """Children die again and again in the midst of an import; in the end each message is there once."""
    for user in ("bob", "eve"):
        fill(reachable, user, 1500)
    process = subprocess.Popen(
        import_command(reachable, "--no-link"),
        env=mail.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    killed = 0
    with process:
        deadline = time.monotonic() + 60
        while process.poll() is None and killed < 4 and time.monotonic() < deadline:
            time.sleep(0.15)
            for pid in children_of(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err.decode()
    assert killed >= 2
    for user in ("bob", "eve"):
        assert mail.in_maildir(reachable / "dst" / user / "Maildir") == expected(user, 1500)
    assert json.loads(out)["totals"]["imported"] == 3000


def children_of(pid: int) -> list[int]:
    return [each for each in descendants(pid) if _uid(each) in (BOB.uid, EVE.uid)]


def _uid(pid: int) -> int:
    with suppress(OSError, StopIteration, ValueError):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1])
    return -1


def test_no_process_outlives_a_run_that_is_killed(reachable: Path) -> None:
    fill(reachable, "bob", 3000)
    fill(reachable, "eve", 1)
    process = subprocess.Popen(
        import_command(reachable, "--no-link"),
        env=mail.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        deadline = time.monotonic() + 60
        while not (pids := [each for each in descendants(process.pid)]) or not any(_uid(p) == BOB.uid for p in pids):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
