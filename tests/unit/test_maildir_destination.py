"""What is written to a Maildir: names, times, rights, and what stays when a write fails."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from aimport.errors import AccessRefused, DestinationFull, MailboxError, MailboxNameInvalid, MailboxNotFound, OverQuota
from aimport.model import Appended, Batch, Endpoint, Mailbox, Message, MessageKey, Position, Rejected
from aimport.stores import Fsync
from aimport.stores.maildir import MaildirDestination, disk
from tests.contract.stores import batch, message, wanted
from tests.large import Chunks
from tests.mail import append_batch, tree

INBOX = Mailbox(path=("INBOX",), separator=".")
FOLDER = Mailbox(path=("Archive", "2023"), separator=".")


def destination(root: Path, *options: tuple[str, str], fsync: Fsync = "never") -> MaildirDestination:
    return MaildirDestination(Endpoint(scheme="maildir", path=str(root), options=options), fsync=fsync)


async def append(
    root: Path, *batches: Batch, mailbox: Mailbox = INBOX, fsync: Fsync = "never"
) -> list[Appended | Rejected]:
    """Make the mailbox and append."""
    outcomes: list[Appended | Rejected] = []
    async with destination(root, fsync=fsync).open() as session:
        await session.create_mailbox(mailbox, subscribe=False)
        for each in batches:
            outcomes += await append_batch(session, mailbox, each)
    return outcomes


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def is_mail(data: bytes | memoryview) -> bool:
    return bytes(data).startswith(b"Subject: ")


async def test_a_message_without_flags_is_new_and_others_are_cur(tmp_path: Path) -> None:
    await append(tmp_path, batch(message(0), message(1, "\\Seen", "\\Flagged", "kw"), message(2, "kw"), number=7))
    host = socket.gethostname()
    size = f"{host},S=22,W=25"
    assert names(tmp_path / "new") == [f"1700000007.M0Rf00dB7N0.{size}"]
    assert names(tmp_path / "cur") == [f"1700000007.M1Rf00dB7N1.{size}:2,FSa", f"1700000007.M2Rf00dB7N2.{size}:2,a"]
    assert names(tmp_path / "tmp") == []
    assert (tmp_path / "dovecot-keywords").read_text() == "0 kw\n"
    assert (tmp_path / "new" / names(tmp_path / "new")[0]).stat().st_mtime == 1_500_000_000


@pytest.mark.parametrize(
    ("body", "wire", "stored", "size"),
    [
        (b"a\nb\n", False, b"a\nb\n", 6),
        (b"a\r\nb\r\n", False, b"a\r\nb\r\n", 6),
        (b"a\r\nb\r\n", True, b"a\nb\n", 6),
        (b"a\r\r\nb\r\n", True, b"a\r\r\nb\r\n", 7),
        (b"", True, b"", 0),
        (b"\0\n\r\xff", False, b"\0\n\r\xff", 5),
    ],
)
async def test_octets_are_kept_and_sizes_are_told(
    tmp_path: Path, body: bytes, wire: bool, stored: bytes, size: int
) -> None:
    each = message(1, body=body)
    given = Message(key=each.key, flags=each.flags, internal_date=each.internal_date, body=body, wire=wire)
    await append(tmp_path, batch(given))
    [file] = (tmp_path / "new").iterdir()
    assert file.read_bytes() == stored
    assert file.name.endswith(f",S={len(stored)},W={size}")


async def test_folders_take_the_rights_of_the_root_and_the_root_is_private(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        await append(tmp_path / "a" / "private", batch(message(1, "kw")), mailbox=FOLDER)
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared").chmod(0o2770)
        await append(tmp_path / "shared", batch(message(1, "kw")), mailbox=FOLDER)
    finally:
        os.umask(old)

    def modes(root: Path) -> set[int]:
        return {stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}

    assert modes(tmp_path / "a") == {0o700, 0o600}
    assert modes(tmp_path / "shared") == {0o2770, 0o660}
    assert names(tmp_path / "shared" / ".Archive.2023") == ["cur", "dovecot-keywords", "maildirfolder", "new", "tmp"]


async def test_a_half_made_folder_is_completed_and_foreign_files_stay(tmp_path: Path) -> None:
    (tmp_path / ".Archive.2023" / "cur").mkdir(parents=True)
    for name in ("dovecot-uidlist", "dovecot.index.log", "maildirfolder"):
        (tmp_path / ".Archive.2023" / name).write_text("theirs")
    await append(tmp_path, batch(message(1)), mailbox=FOLDER)
    for name in ("dovecot-uidlist", "dovecot.index.log", "maildirfolder"):
        assert (tmp_path / ".Archive.2023" / name).read_text() == "theirs"


async def test_without_a_folder_nothing_is_appended(tmp_path: Path) -> None:
    async with destination(tmp_path / "m").open() as session:
        with pytest.raises(MailboxNotFound):
            await append_batch(session, FOLDER, batch(message(1)))
        await session.create_mailbox(FOLDER, subscribe=False)
        await append_batch(session, FOLDER, batch(message(1)))
        shutil.rmtree(tmp_path / "m" / ".Archive.2023")
        with pytest.raises(MailboxNotFound):
            await append_batch(session, FOLDER, batch(message(2)))
        await session.create_mailbox(FOLDER, subscribe=False)
        assert await append_batch(session, FOLDER, batch(message(2), number=2)) == [Appended(key=MessageKey("key2"))]


@pytest.mark.parametrize("path", [("..",), ("a", ".."), ("a/../../b",), ("~root",), ("",), ("x" * 300,), ("a\n",)])
async def test_no_name_leads_out_of_the_root(tmp_path: Path, path: tuple[str, ...]) -> None:
    """N1-N3."""
    (tmp_path / "m").mkdir()
    before = tree(tmp_path)
    mailbox = Mailbox(path=path, separator=".")
    async with destination(tmp_path / "m").open() as session:
        for call in (
            session.create_mailbox(mailbox, subscribe=True),
            session.append(mailbox, batch(message(1))),
            session.position(mailbox),
        ):
            with pytest.raises(MailboxNameInvalid):
                await call
    assert tree(tmp_path) == before


@pytest.mark.parametrize("link", ["", ".Archive.2023", ".Archive.2023/cur", ".Archive.2023/new", ".Archive.2023/tmp"])
async def test_no_link_leads_out_of_the_root(tmp_path: Path, link: str) -> None:
    """S1."""
    outside, root = tmp_path / "outside", tmp_path / "m"
    for part in ("cur", "new", "tmp", ".Archive.2023/cur", ".Archive.2023/new", ".Archive.2023/tmp"):
        (outside / part).mkdir(parents=True)
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(outside)
    before = tree(outside)
    async with destination(root).open() as session:
        with suppress(MailboxError, AccessRefused):
            await session.create_mailbox(FOLDER, subscribe=False)
        with pytest.raises((MailboxError, AccessRefused)):
            await append_batch(session, FOLDER, batch(message(1), message(2, "\\Seen")))
    assert tree(outside) == before


async def test_links_instead_of_control_files_are_replaced_not_followed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("canary")
    root = tmp_path / "m"
    await append(root)
    for name in ("dovecot-keywords", "dovecot-keywords.aimport", "subscriptions", "subscriptions.aimport"):
        (root / name).symlink_to(canary)
    async with destination(root).open() as session:
        await session.create_mailbox(INBOX, subscribe=True)
        await append_batch(session, INBOX, batch(message(1, "kw")))
    assert canary.read_text() == "canary"
    assert (root / "dovecot-keywords").read_text() == "0 kw\n"
    assert not (root / "dovecot-keywords").is_symlink()


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, DestinationFull), (errno.EDQUOT, OverQuota), (errno.EROFS, DestinationFull)],
)
@pytest.mark.parametrize("call", ["write", "rename"])
@pytest.mark.fault("F9", "F11", "F12")
async def test_a_full_disk_stops_and_leaves_no_part_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception], call: str
) -> None:
    """F9, F11, F12: what has its name already is found again."""
    calls: list[int] = []
    real_write, real_rename = os.write, os.rename

    def write(fd: int, data: bytes | memoryview) -> int:
        if is_mail(data):
            calls.append(fd)
            if len(calls) == 3:
                real_write(fd, b"part")
                raise OSError(code, os.strerror(code))
        return real_write(fd, data)

    def rename(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        calls.append(dst_dir_fd)
        if len(calls) == 3:
            raise OSError(code, os.strerror(code))
        real_rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    sent = batch(*(message(number, "\\Seen") for number in range(5)))
    async with destination(tmp_path).open() as session:
        await session.create_mailbox(INBOX, subscribe=False)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, write if call == "write" else rename)
            with pytest.raises(error):
                await append_batch(session, INBOX, sent)
        assert names(tmp_path / "tmp") == []
        found = await session.find(INBOX, wanted(sent), Position())
        assert [each.wanted for each in found] == ([0, 1] if call == "rename" else [])
        assert len(await append_batch(session, INBOX, batch(message(9), number=2))) == 1


@pytest.mark.parametrize("limit", ["size=1m", "nr_inodes=40", "read-only"])
@pytest.mark.fault("F9", "F12")
async def test_a_small_file_system_fills_without_loss(tmp_path: Path, limit: str) -> None:
    """F9, F12 on a real one: what was acknowledged is there, nothing is there in part."""
    option = "size=8m" if limit == "read-only" else limit
    mount = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    acknowledged: list[Appended | Rejected] = []
    full = False
    try:
        async with destination(tmp_path, fsync="batch").open() as session:
            await session.create_mailbox(INBOX, subscribe=False)
            for number in range(20):
                if limit == "read-only" and number == 6:
                    subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
                sent = batch(*[message(number, body=b"x" * 30_000)] * 4, number=number)
                try:
                    acknowledged += await append_batch(session, INBOX, sent)
                except DestinationFull:
                    full = True
        assert full
        files = list((tmp_path / "new").iterdir())
        assert len(files) >= len(acknowledged) >= 20
        assert {file.stat().st_size for file in files} == {30_000}
        assert names(tmp_path / "tmp") == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.fault("F10", "F31")
async def test_one_message_that_cannot_be_written_leaves_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F10 (EIO), F31 (EFBIG)."""
    real = os.write

    def write(fd: int, data: bytes | memoryview) -> int:
        if is_mail(data) and b"Body of 1\n" in bytes(data):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    outcomes = await append(tmp_path, batch(message(0), message(1), message(2)))
    assert [type(outcome) for outcome in outcomes] == [Appended, Rejected, Appended]
    assert len(names(tmp_path / "new")) == 2
    assert names(tmp_path / "tmp") == []


@pytest.mark.parametrize("lie", [0, 10, 10_000])
@pytest.mark.fault("F11")
async def test_a_write_that_lies_about_its_length_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: int
) -> None:
    """F11."""
    real = os.write
    told: list[int] = []

    def write(fd: int, data: bytes | memoryview) -> int:
        if is_mail(data) and not told:
            told.append(lie)
            return lie
        return 0 if lie == 0 and b"Body" in bytes(data) else real(fd, data)

    monkeypatch.setattr(os, "write", write)
    outcomes = await append(tmp_path, batch(message(0)))
    assert [type(outcome) for outcome in outcomes] == [Rejected]
    assert names(tmp_path / "new") + names(tmp_path / "tmp") == []


@pytest.mark.fault("F11")
async def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]) if len(data) > 7 else real(fd, data))
    await append(tmp_path, batch(message(0)))
    [file] = (tmp_path / "new").iterdir()
    assert file.read_bytes() == message(0).body


async def test_a_leftover_in_tmp_is_replaced(tmp_path: Path) -> None:
    sent = batch(message(0))
    await append(tmp_path, sent)
    [file] = (tmp_path / "new").iterdir()
    leftover = tmp_path / "tmp" / file.name
    file.rename(leftover)
    leftover.write_bytes(b"half")
    await append(tmp_path, sent)
    assert file.read_bytes() == message(0).body
    assert names(tmp_path / "tmp") == []


async def test_find_believes_name_and_size_and_no_half_file(tmp_path: Path) -> None:
    sent = batch(*(message(number) for number in range(4)), message(4, "\\Seen"))
    await append(tmp_path, sent)
    files = {file.name.partition("N")[2][0]: file for file in (tmp_path / "new").iterdir()}
    files["0"].write_bytes(b"torn")
    files["1"].rename(files["1"].with_name(files["1"].name.replace(",W=25", ",W=26")))
    files["2"].rename(tmp_path / "cur" / (files["2"].name.replace(socket.gethostname(), "elsewhere") + ":2,S"))
    async with destination(tmp_path).open() as session:
        found = await session.find(INBOX, wanted(sent), Position())
        others = await session.find(INBOX, wanted(batch(message(3), number=2)), Position())
    assert [each.wanted for each in found] == [2, 3, 4]
    assert [each.fingerprint for each in found] == list(sent.fingerprints[2:])
    assert found[0].internal_date == int(message(2).internal_date.timestamp())
    assert others == []


async def test_a_date_that_the_file_system_cannot_hold_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    each = message(1)
    late = Message(key=each.key, flags=each.flags, internal_date=each.internal_date.replace(year=9999), body=each.body)
    await append(tmp_path, batch(late))
    [file] = (tmp_path / "new").iterdir()
    kept = int(file.stat().st_mtime) == int(late.internal_date.timestamp())
    assert kept or "date not kept" in caplog.text


async def test_maildirsize_is_counted_up_where_there_is_one(tmp_path: Path) -> None:
    await append(tmp_path, batch(message(0)))
    assert not (tmp_path / "maildirsize").exists()
    (tmp_path / "maildirsize").write_text("1000S\n10 1\n")
    await append(tmp_path, batch(message(1), message(2), number=2))
    assert (tmp_path / "maildirsize").read_text() == "1000S\n10 1\n44 2\n"


# Keywords


async def test_letters_given_before_stay_and_case_does_not_count(tmp_path: Path) -> None:
    await append(tmp_path)
    (tmp_path / "dovecot-keywords").write_text("1 Work\n3 Later\n")
    os.utime(tmp_path / "dovecot-keywords", (2_000_000_000, 2_000_000_000))
    await append(tmp_path, batch(message(0, "work", "$New", "Later", "Other")))
    assert (tmp_path / "dovecot-keywords").read_text() == "0 $New\n1 Work\n2 Other\n3 Later\n"
    assert names(tmp_path / "cur")[0].endswith(":2,abcd")
    assert (tmp_path / "dovecot-keywords").stat().st_mtime == 2_000_000_001  # Dovecot looks at whole seconds


async def test_the_27th_keyword_and_invalid_ones_are_dropped_by_name(tmp_path: Path) -> None:
    sent = batch(message(0, *(f"k{number:02}" for number in range(26))), message(1, "k26", "k03", "\\Seen", "no good"))
    [first, second] = await append(tmp_path, sent)
    assert first == Appended(key=MessageKey("key0"))
    assert second == Appended(key=MessageKey("key1"), dropped=("k26", "no good"))
    assert [name.rpartition(",")[2] for name in names(tmp_path / "cur")] == ["abcdefghijklmnopqrstuvwxyz", "Sd"]


async def test_keywords_written_meanwhile_by_another_are_kept(tmp_path: Path) -> None:
    async with destination(tmp_path).open() as one, destination(tmp_path).open() as two:
        await one.create_mailbox(INBOX, subscribe=False)
        await append_batch(one, INBOX, batch(message(0, "one"), number=1))
        await append_batch(two, INBOX, batch(message(1, "two"), number=2))
        await append_batch(one, INBOX, batch(message(2, "two", "three"), number=3))
    assert (tmp_path / "dovecot-keywords").read_text() == "0 one\n1 two\n2 three\n"
    assert [name.rpartition(",")[2] for name in names(tmp_path / "cur")] == ["a", "b", "bc"]


async def test_the_lock_of_another_is_waited_for(tmp_path: Path) -> None:
    await append(tmp_path)
    lock = tmp_path / "dovecot-uidlist.lock"
    lock.write_text("theirs")
    seen = []

    def let_go() -> None:
        seen.append((tmp_path / "dovecot-keywords").exists())
        lock.unlink()

    timer = threading.Timer(0.2, let_go)
    timer.start()
    await append(tmp_path, batch(message(0, "kw")))
    timer.join()
    assert seen == [False]
    assert not lock.exists()


async def test_a_lock_is_not_waited_for_without_end(tmp_path: Path) -> None:
    await append(tmp_path)
    fd = os.open(tmp_path, os.O_RDONLY)
    (tmp_path / "x.lock").write_text("theirs")
    try:
        with pytest.raises(MailboxError, match=r"x\.lock is held"), disk.dotlock(fd, "x.lock", deadline_s=0.05):
            pass
    finally:
        os.close(fd)
    assert (tmp_path / "x.lock").read_text() == "theirs"


async def test_a_stale_lock_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await append(tmp_path)
    lock = tmp_path / "dovecot-uidlist.lock"
    lock.write_text("theirs")
    os.utime(lock, (time.time() - 1000, time.time() - 1000))
    await append(tmp_path, batch(message(0, "kw")))
    assert not lock.exists()
    assert "stale lock removed" in caplog.text


@pytest.mark.fault("F1")
async def test_the_lock_of_a_killed_process_is_removed_at_once(tmp_path: Path) -> None:
    """F1: what was killed with the lock in its hand is resumed without waiting for the lock to grow old."""
    await append(tmp_path)
    with subprocess.Popen(["true"]) as gone:
        pass
    lock = tmp_path / "dovecot-uidlist.lock"
    lock.write_text(f"{gone.pid}:{socket.gethostname()}")
    with anyio.fail_after(5):
        await append(tmp_path, batch(message(0, "kw")))
    assert not lock.exists()


@pytest.mark.parametrize("owner", ["PID:HOST", "1:elsewhere", "", "99999999999999999:x", "x"])
async def test_a_fresh_lock_whose_owner_may_live_stays(tmp_path: Path, owner: str) -> None:
    owner = owner.replace("PID", str(os.getpid())).replace("HOST", socket.gethostname())
    lock = tmp_path / "x.lock"
    lock.write_text(owner)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(MailboxError), disk.dotlock(fd, "x.lock", deadline_s=0.05):
            pass
    finally:
        os.close(fd)
    assert lock.read_text() == owner


async def test_a_lock_taken_over_by_another_is_left_to_them(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    fd = os.open(tmp_path, os.O_RDONLY)
    with disk.dotlock(fd, "x.lock"):
        lock.rename(tmp_path / "aside")
        lock.write_text("theirs")
    os.close(fd)
    assert lock.read_text() == "theirs"


# Subscriptions


async def test_subscriptions_are_kept_in_the_form_they_have(tmp_path: Path) -> None:
    async with destination(tmp_path).open() as session:
        for _ in range(2):
            for mailbox in (FOLDER, INBOX, Mailbox(path=("Entwürfe",), separator=".")):
                await session.create_mailbox(mailbox, subscribe=True)
        assert (tmp_path / "subscriptions").read_bytes() == b"V\t2\n\nArchive\t2023\nINBOX\nEntw&APw-rfe\n"
        (tmp_path / "subscriptions").write_bytes(b"Old.one\n")
        await session.create_mailbox(FOLDER, subscribe=True)
        assert (tmp_path / "subscriptions").read_bytes() == b"Old.one\nArchive.2023\n"


async def test_a_failed_subscribe_is_logged_and_the_mailbox_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.joinpath("subscriptions").write_bytes(b"V\t9\n")
    async with destination(tmp_path).open() as session:
        await session.create_mailbox(FOLDER, subscribe=True)
        assert await session.position(FOLDER) == Position()
    assert "subscribe failed" in caplog.text
    assert tmp_path.joinpath("subscriptions").read_bytes() == b"V\t9\n"


async def test_control_files_and_inbox_may_lie_elsewhere(tmp_path: Path) -> None:
    options = (("CONTROL", str(tmp_path / "c")), ("INBOX", str(tmp_path / "i")))
    async with destination(tmp_path / "m", *options).open() as session:
        for number, mailbox in enumerate((INBOX, FOLDER)):
            await session.create_mailbox(mailbox, subscribe=True)
            await append_batch(session, mailbox, batch(message(1, "kw"), number=number))
    assert len(names(tmp_path / "i" / "cur")) == len(names(tmp_path / "m" / ".Archive.2023" / "cur")) == 1
    assert (tmp_path / "c" / "subscriptions").read_bytes() == b"V\t2\n\nINBOX\nArchive\t2023\n"
    for name in (".INBOX", ".Archive.2023"):
        assert (tmp_path / "c" / name / "dovecot-keywords").read_text() == "0 kw\n"
    assert not (tmp_path / "m" / "cur").exists()


# Durability


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the calls that touch files or disk, in order."""
    calls: list[str] = []
    with monkeypatch.context() as patch:
        for module, name in ((os, "fdatasync"), (os, "fsync"), (os, "rename"), (disk.GroupSync, "_sync_now")):
            real = getattr(module, name)

            def call(*args: object, _real: object = real, _name: str = name, **kwargs: object) -> object:
                calls.append(_name)
                assert callable(_real)
                return _real(*args, **kwargs)

            patch.setattr(module, name, call)
        yield calls


@pytest.mark.parametrize(
    ("fsync", "expected"),
    [
        ("never", ["rename", "rename"]),
        ("batch", ["_sync_now", "rename", "rename", "_sync_now"]),
        ("each", ["fdatasync", "fdatasync", "rename", "rename", "fsync", "fsync"]),
    ],
)
async def test_octets_are_durable_before_names_and_names_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync, expected: Sequence[str]
) -> None:
    async with destination(tmp_path, fsync=fsync).open() as session:
        await session.create_mailbox(INBOX, subscribe=False)
        with recorded(monkeypatch) as calls:
            await append_batch(session, INBOX, batch(message(0), message(1, "\\Seen")))
    assert calls == expected


@pytest.mark.fault("F10")
async def test_a_failed_sync_means_nothing_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F10: never trusted after."""

    def sync(self: disk.GroupSync) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with destination(tmp_path, fsync="batch").open() as session:
        await session.create_mailbox(INBOX, subscribe=False)
        with monkeypatch.context() as patch:
            patch.setattr(disk.GroupSync, "_sync_now", sync)
            with pytest.raises(MailboxError, match="Input/output error"):
                await append_batch(session, INBOX, batch(message(0), message(1, "\\Seen")))
        assert names(tmp_path / "new") + names(tmp_path / "cur") + names(tmp_path / "tmp") == []
        assert len(await append_batch(session, INBOX, batch(message(0)))) == 1


def test_who_comes_during_a_sync_shares_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()
    syncs: list[int] = []

    def sync(self: disk.GroupSync) -> None:
        syncs.append(1)
        began.set()
        assert go_on.wait(10)

    monkeypatch.setattr(disk.GroupSync, "_sync_now", sync)
    fd = os.open(tmp_path, os.O_RDONLY)
    group = disk.GroupSync.of(fd)
    assert disk.GroupSync.of(fd) is group
    threads = [threading.Thread(target=group.sync) for _ in range(9)]
    threads[0].start()
    assert began.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(group._turn._waiters) < 8:  # type: ignore[attr-defined]  # no other way to know that they wait
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(10)
    os.close(fd)
    group.release()
    group.release()
    assert len(syncs) == 2


async def test_a_failed_sync_fails_all_who_shared_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(self: disk.GroupSync) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    failed = []

    async def one(number: int) -> None:
        async with destination(tmp_path, fsync="batch").open() as session:
            try:
                await append_batch(session, INBOX, batch(message(number), number=number))
            except DestinationFull:
                failed.append(number)

    await append(tmp_path)
    monkeypatch.setattr(disk.GroupSync, "_sync_now", sync)
    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(one, number)
    assert sorted(failed) == list(range(6))
    assert names(tmp_path / "new") + names(tmp_path / "tmp") == []


async def test_syncfs_of_a_bad_descriptor_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    group = disk.GroupSync.of(fd)
    os.close(fd)
    group.sync()
    kept, group._fd = group._fd, -1
    try:
        with pytest.raises(OSError, match="descriptor"):
            group.sync()
    finally:
        group._fd = kept
        group.release()


async def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    await append(tmp_path, batch(message(0, "kw")), fsync="batch")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        await append(tmp_path, batch(message(1, f"kw{number}"), number=number), fsync="batch")
        await append(tmp_path, batch(message(1), number=number), fsync="batch", mailbox=FOLDER)
    assert len(os.listdir("/proc/self/fd")) == before


# Bodies that come in pieces


@pytest.mark.parametrize("wire", [False, True])
@pytest.mark.parametrize(
    "body", [b"a\r\nb\r\n", b"a\r\nb\nc\r", b"a\r\r\nb\r\n", b"\r\r", b"x" * 1000, b"\n\r\n", b"\r\n\r\r\n"]
)
async def test_pieces_become_the_same_file_as_the_whole(tmp_path: Path, body: bytes, wire: bool) -> None:
    """Name, octets, time and the count in `maildirsize`."""
    for name in ("whole", *map(str, range(1, 4))):
        await append(tmp_path / name)
        (tmp_path / name / "maildirsize").write_text("1000S\n")
        pieces = [] if name == "whole" else [body[at : at + int(name)] for at in range(0, len(body), int(name))]
        sent = replace(message(1, "\\Seen"), body=Chunks(pieces) if pieces else body, wire=wire)
        [outcome] = await append(tmp_path / name, batch(sent))
        assert outcome == Appended(key=sent.key)
        [file] = (tmp_path / name / "cur").iterdir()
        [expected] = (tmp_path / "whole" / "cur").iterdir()
        assert (file.name, file.read_bytes()) == (expected.name, expected.read_bytes())
        assert file.stat().st_size == int(file.name.partition(",S=")[2].partition(",")[0])
        assert file.stat().st_mtime == expected.stat().st_mtime
        assert (tmp_path / name / "maildirsize").read_text() == f"1000S\n{file.stat().st_size} 1\n"
        assert names(tmp_path / name / "tmp") == []


@pytest.mark.parametrize("wire", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EMFILE])
async def test_trouble_at_the_source_rejects_the_message_and_is_not_taken_for_the_destinations(
    tmp_path: Path, code: int, wire: bool
) -> None:
    bad = replace(message(1), body=Chunks([b"a", b"b"], failing=code), wire=wire)
    prints = batch(message(0), message(1), message(2))
    sent = replace(prints, messages=(message(0), bad, message(2)))
    outcomes = await append(tmp_path, sent)
    assert [type(outcome) for outcome in outcomes] == [Appended, Rejected, Appended]
    assert outcomes[1] == Rejected(key=bad.key, code="unreadable", text=f"the source: {os.strerror(code)}")
    assert len(names(tmp_path / "new")) == 2
    assert names(tmp_path / "tmp") == []


@pytest.mark.fault("F9")
async def test_no_space_in_the_midst_of_a_body_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F9."""
    real = os.write

    def write(fd: int, data: bytes | memoryview) -> int:
        if bytes(data) == b"third":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    sent = batch(message(0), replace(message(1), body=Chunks([b"first", b"second", b"third", b"fourth"])))
    with pytest.raises(DestinationFull):
        await append(tmp_path, sent)
    assert names(tmp_path / "new") + names(tmp_path / "tmp") == []


async def test_a_copy_that_is_cancelled_ends_with_its_piece_and_leaves_nothing(tmp_path: Path) -> None:
    """A second SIGINT must not wait for a GiB."""
    given: list[int] = []
    begun, cancelled = threading.Event(), threading.Event()

    class Endless(Chunks):
        def pieces(self) -> Iterator[bytes]:
            for number in range(1_000_000):
                given.append(number)
                yield b"x"
                begun.set()
                assert cancelled.wait(10)

    sent = replace(batch(message(1)), messages=(replace(message(1), body=Endless([])),))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append, tmp_path, sent)
        await anyio.to_thread.run_sync(begun.wait, 10)
        tasks.cancel_scope.cancel()
        # The worker learns of it by asking the loop.
        cancelled.set()
    assert len(given) < 10
    assert names(tmp_path / "new") + names(tmp_path / "tmp") == []


async def test_a_large_body_does_not_take_the_turn_of_small_ones(tmp_path: Path) -> None:
    """As many of them as there are turns, all waiting for their source: another batch goes through."""
    waiting = threading.Barrier(max(2, os.cpu_count() or 2) + 1, timeout=10)
    go_on = threading.Event()

    class Slow(Chunks):
        def pieces(self) -> Iterator[bytes]:
            waiting.wait()
            assert go_on.wait(10)
            yield from super().pieces()

    async with anyio.create_task_group() as tasks:
        for number in range(waiting.parties - 1):
            slow = replace(message(number), body=Slow([b"a"]))
            sent = replace(batch(message(number), number=number), messages=(slow,))
            tasks.start_soon(append, tmp_path / str(number), sent)
        await anyio.to_thread.run_sync(waiting.wait)
        with anyio.fail_after(10):
            await append(tmp_path / "small", batch(message(9)))
        assert len(names(tmp_path / "small" / "new")) == 1
        go_on.set()
    assert len(names(tmp_path / "0" / "new")) == 1
