"""A Maildir as found in the wild: strange names, links, damage, and changes while it is read."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from aimport.errors import AccessRefused, MailboxError, MailboxNotFound, SourceMissing, Unavailable
from aimport.model import STREAM_OCTETS, Endpoint, Mailbox, Message, MessageKey, Selection, Unreadable
from aimport.spool import FileBody
from aimport.stores.maildir import MaildirSource, disk
from tests.mail import tree

INBOX = Mailbox(path=("INBOX",), separator=".")
Found = list[Message | Unreadable]


def put(root: Path, name: str, body: bytes = b"Subject: x\n\nhi\n", mtime: float = 1_500_000_000) -> Path:
    """A file in a folder whose three directories are made."""
    file = root / name
    for part in ("cur", "new", "tmp"):
        (file.parent.parent / part).mkdir(parents=True, exist_ok=True)
    file.write_bytes(body)
    os.utime(file, (mtime, mtime))
    return file


def source(root: Path, *options: tuple[str, str]) -> MaildirSource:
    return MaildirSource(Endpoint(scheme="maildir", path=str(root), options=options))


async def mailboxes(root: Path, *options: tuple[str, str]) -> list[Mailbox]:
    async with source(root, *options).open() as session:
        return list(await session.list_mailboxes())


async def read(
    root: Path,
    mailbox: Mailbox = INBOX,
    *options: tuple[str, str],
    between: Callable[[Selection], object] = lambda selection: None,
) -> Found:
    """All of a mailbox; `between` happens after the listing."""
    found: Found = []
    async with source(root, *options).open() as session:
        selection = await session.select(mailbox)
        between(selection)
        async with aclosing(session.messages(selection, skip=())) as lists:
            async for each in lists:
                found += each
    return found


def fail(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Opening anything of that name fails."""
    real = os.open

    def opening(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == name:
            raise OSError(code, os.strerror(code))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", opening)


async def test_order_is_that_of_uids_then_of_names(tmp_path: Path) -> None:
    for name in ("1500000009.M1.a", "1500000001.M1.b:2,S", "1500000005.M10.c:2,", "1500000005.M9.d:2,", "zzz:2,"):
        put(tmp_path, f"cur/{name}")
    (tmp_path / "dovecot-uidlist").write_text("3 V1 N9 G0\n3 :1500000009.M1.a\n8 S1 :zzz\n")
    keys = [each.key for each in await read(tmp_path)]
    assert keys == ["1500000009.M1.a", "zzz", "1500000001.M1.b", "1500000005.M9.d", "1500000005.M10.c"]


async def test_flags_dates_and_octets_are_those_of_the_file(tmp_path: Path) -> None:
    put(tmp_path, "cur/1.a,S=99999:2,FPSabz", b"\r\n\0\xff\n", mtime=-5)
    (tmp_path / "dovecot-keywords").write_text("0 $Forwarded\n1 Work\n")
    [found] = await read(tmp_path)
    assert isinstance(found, Message)
    assert found.flags == {"\\Flagged", "\\Seen", "$Forwarded", "Work", "unknown-25"}
    assert found.internal_date.timestamp() == -5
    assert found.body == b"\r\n\0\xff\n"
    assert not found.wire


@pytest.mark.parametrize(
    "name", ["x", "x;2,S", "x:1,S", "1.a,S=:2,S", "a b\tc:2,ZZ", "\udcff:2,S", "\n:2,", "--:2,TSRFD"]
)
async def test_strange_names_are_messages(tmp_path: Path, name: str) -> None:
    """S4."""
    put(tmp_path, f"cur/{name}")
    [found] = await read(tmp_path)
    assert isinstance(found, Message)
    found.key.encode()


async def test_a_size_that_lies_changes_no_octet(tmp_path: Path) -> None:
    put(tmp_path, "cur/1.a,S=3:2,", b"x" * 100_000)
    put(tmp_path, "cur/2.a,S=99999999999999999999:2,", b"y")
    assert [len(each.body) for each in await read(tmp_path) if isinstance(each, Message)] == [100_000, 1]


async def test_one_base_name_in_new_and_cur_is_two_messages(tmp_path: Path) -> None:
    put(tmp_path, "cur/1.a:2,S", b"cur")
    put(tmp_path, "cur/1.a:2,ST", b"cur again")
    put(tmp_path, "new/1.a", b"new")
    found = await read(tmp_path)
    assert sorted((each.key, each.body) for each in found if isinstance(each, Message)) == [
        ("1.a", b"cur"),
        ("1.a/2", b"cur again"),
        ("1.a/new", b"new"),
    ]


@pytest.mark.fault("F21")
async def test_a_message_renamed_after_the_listing_is_read_once_with_its_newest_flags(tmp_path: Path) -> None:
    """F21."""
    one, two = put(tmp_path, "new/1.a", b"1"), put(tmp_path, "cur/2.a:2,", b"2")

    def rename(_: Selection) -> None:
        one.rename(tmp_path / "cur/1.a:2,S")
        two.rename(tmp_path / "cur/2.a:2,FS")

    found = await read(tmp_path, between=rename)
    assert [(str(each.key), each.flags, each.body) for each in found if isinstance(each, Message)] == [
        ("1.a", frozenset({"\\Seen"}), b"1"),
        ("2.a", frozenset({"\\Flagged", "\\Seen"}), b"2"),
    ]


@pytest.mark.fault("F21")
async def test_messages_renamed_between_two_hops_cost_one_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(130):
        put(tmp_path, f"cur/{1000 + number}.a:2,", b"%d" % number)
    found: Found = []
    async with source(tmp_path).open() as session:
        selection = await session.select(INBOX)
        scans: list[str] = []
        for name in ("scan", "scan_once"):

            def counted(
                folder: disk.Folder,
                *,
                name: str = name,
                real: Callable[[disk.Folder], dict[MessageKey, disk.Place]] = getattr(disk, name),  # noqa: B008
            ) -> dict[MessageKey, disk.Place]:
                scans.append(name)
                return real(folder)

            monkeypatch.setattr(disk, name, counted)
        async with aclosing(session.messages(selection, skip=())) as lists:
            async for each in lists:
                if not found:
                    for file in sorted((tmp_path / "cur").iterdir()):
                        file.rename(file.with_name(file.name + "S"))
                found += each
    assert [each.body for each in found if isinstance(each, Message)] == [b"%d" % number for number in range(130)]
    assert scans == ["scan_once"]


@pytest.mark.fault("F23")
async def test_messages_that_vanish_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    files = [put(tmp_path, f"cur/{number}.a:2,") for number in range(5)]

    def remove(_: Selection) -> None:
        for file in files[1:3]:
            file.unlink()

    found = await read(tmp_path, between=remove)
    assert [each.code if isinstance(each, Unreadable) else "" for each in found] == ["", "vanished", "vanished", "", ""]


@pytest.mark.fault("F21")
async def test_no_rename_by_a_busy_client_hides_a_message(tmp_path: Path) -> None:
    """Flags change all the time while the folder is listed and read: every message comes once."""
    for number in range(200):
        put(tmp_path, f"cur/{1000 + number}.a:2,", b"%d" % number)
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            for name in os.listdir(tmp_path / "cur"):
                if stop.is_set():
                    return
                base, _, letters = name.partition(":2,")
                os.rename(tmp_path / "cur" / name, tmp_path / "cur" / f"{base}:2,{'' if letters else 'S'}")

    thread = threading.Thread(target=client)
    thread.start()
    try:
        for _ in range(5):
            found = await read(tmp_path)
            assert [each.body for each in found if isinstance(each, Message)] == [
                b"%d" % number for number in range(200)
            ]
    finally:
        stop.set()
        thread.join()


async def test_links_and_special_files_are_never_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """S1, S2: a canary outside is not read, nothing blocks, the neighbours are imported, all of it is told."""
    root = tmp_path / "m"
    outside = tmp_path / "outside"
    put(outside, "cur/1.secret:2,", b"secret")
    put(root, "cur/1.good:2,", b"good")
    (root / "cur" / "2.link:2,").symlink_to(outside / "cur" / "1.secret:2,")
    os.mkfifo(root / "cur" / "3.fifo:2,")
    (root / "cur" / "4.directory:2,").mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(root / "cur" / "5.socket"))
    (root / ".link").symlink_to(outside)
    (root / ".alias").symlink_to(".half")
    (root / ".half").mkdir()
    (root / ".half" / "cur").symlink_to(outside / "cur")
    (root / ".half" / "new").mkdir()
    assert [mailbox.name for mailbox in await mailboxes(root)] == ["INBOX", "half", "link"]
    found = await read(root)
    assert [each.body for each in found if isinstance(each, Message)] == [b"good"]
    refused = {str(each.key): each.text for each in found if isinstance(each, Unreadable)}
    assert sorted(refused) == ["2.link", "3.fifo", "5.socket"]
    assert "symbolic link" in refused["2.link"] and "not a regular file" in refused["3.fifo"]
    assert "count=1" in caplog.text
    for folder in ("half", "link"):
        with pytest.raises(MailboxError, match="symbolic links are not followed"):
            await read(root, Mailbox(path=(folder,), separator="."))
    linked = tmp_path / "linked"
    linked.symlink_to(outside)
    with pytest.raises(AccessRefused, match="symbolic link"):
        await read(linked)


async def test_a_link_swapped_in_after_the_check_is_not_followed(tmp_path: Path) -> None:
    """S1: another process exchanges a message and its folder for links all the time."""
    root = tmp_path / "m"
    put(tmp_path / "outside", "cur/1.a:2,", b"secret")
    put(root, ".f/cur/1.a:2,", b"good")
    stop = threading.Event()

    def swap() -> None:
        file, kept = root / ".f/cur/1.a:2,", root / ".f/tmp/kept"
        folder, aside = root / ".f", root / "aside"
        while not stop.is_set():
            file.rename(kept)
            file.symlink_to(tmp_path / "outside/cur/1.a:2,")
            file.unlink()
            kept.rename(file)
            folder.rename(aside)
            folder.symlink_to(tmp_path / "outside")
            folder.unlink()
            aside.rename(folder)

    thread = threading.Thread(target=swap)
    thread.start()
    bodies = set()
    try:
        for _ in range(300):
            try:
                found = await read(root, Mailbox(path=("f",), separator="."))
            except MailboxError:
                continue
            bodies |= {each.body for each in found if isinstance(each, Message)}
    finally:
        stop.set()
        thread.join()
    assert bodies <= {b"good"}


async def test_a_message_exchanged_for_something_else_is_unreadable(tmp_path: Path) -> None:
    one, two = put(tmp_path, "cur/1.a:2,"), put(tmp_path, "cur/2.a:2,")

    def exchange(_: Selection) -> None:
        one.unlink()
        one.symlink_to("/etc/hostname")
        two.unlink()
        os.mkfifo(two)

    async with source(tmp_path).open() as session:
        selection = await session.select(INBOX)
        lists = session.messages(selection, skip=())
        exchange(selection)
        found = [each async for several in lists for each in several]
    assert [type(each) for each in found] == [Unreadable, Unreadable]


@pytest.mark.parametrize("content", [b"garbage\n\xff\0", b"3 V1 N1\n9 :x\n1 :y\n", None, b"link"])
async def test_damaged_control_files_are_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    """S5. None: a sparse file of 1 GB."""
    put(tmp_path, "cur/1.a:2,Sa")
    for name in ("dovecot-uidlist", "dovecot-keywords"):
        if content == b"link":
            (tmp_path / name).symlink_to("/etc/passwd")
        elif content is None:
            with (tmp_path / name).open("wb") as file:
                file.truncate(1 << 30)
        else:
            (tmp_path / name).write_bytes(content)
    [found] = await read(tmp_path)
    assert isinstance(found, Message)
    assert found.flags == {"\\Seen", "unknown-0"}
    assert "dovecot-uidlist" in caplog.text


async def test_mailboxes_are_found_by_their_directories(tmp_path: Path) -> None:
    for name in ("", ".b", ".a.b", ".Entw&APw-rfe", ".bad&Jj", ".nfsroot", ".inbox.k", ".~x"):
        put(tmp_path, f"{name}/cur/1.a:2,".lstrip("/"), name.encode())
    os.makedirs(os.fsencode(tmp_path) + b"/.raw\xe9/new")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/.raw\xe9/new")) / "1.a").write_bytes(b"raw")
    put(tmp_path, "..DOVECOT-TRASHED/cur/1.a")
    (tmp_path / ".empty").mkdir()
    (tmp_path / ".nfs0000000000000001").write_text("")
    (tmp_path / "plain" / "cur").mkdir(parents=True)
    found = await mailboxes(tmp_path)
    assert [mailbox.name for mailbox in found] == [
        *("INBOX", "Entwürfe", "INBOX.k", "a.b", "b", "bad&Jj", "nfsroot", "raw\\xe9", "~x")
    ]
    for mailbox in found:
        assert len(await read(tmp_path, mailbox)) == 1


async def test_a_root_that_holds_folders_only_has_no_inbox(tmp_path: Path) -> None:
    put(tmp_path, ".a/cur/1.a:2,")
    assert [mailbox.path for mailbox in await mailboxes(tmp_path)] == [("a",)]


async def test_inbox_and_control_files_may_lie_elsewhere(tmp_path: Path) -> None:
    root, inbox, control = tmp_path / "m", tmp_path / "i", tmp_path / "c"
    put(root, ".f/cur/1.a:2,a")
    put(inbox, "cur/1.b:2,a")
    for name in (".INBOX", ".f"):
        (control / name).mkdir(parents=True)
        (control / name / "dovecot-keywords").write_text(f"0 {name}\n")
    options = (("INBOX", str(inbox)), ("CONTROL", str(control)))
    flags = [
        (await read(root, mailbox, *options))[0].flags  # type: ignore[union-attr]  # an Unreadable would fail here
        for mailbox in await mailboxes(root, *options)
    ]
    assert flags == [{".INBOX"}, {".f"}]


async def test_with_utf8_folder_names_are_not_decoded(tmp_path: Path) -> None:
    put(tmp_path, ".ü&-/cur/1.a:2,")
    assert [mailbox.path for mailbox in await mailboxes(tmp_path, ("UTF-8", ""))] == [("ü&-",)]


async def test_a_missing_root_is_no_empty_account(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nope", "file", "file/below"):
        with pytest.raises(SourceMissing):
            await mailboxes(tmp_path / name)


async def test_a_closed_root_refuses_the_user_and_a_closed_folder_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "cur/1.a:2,")
    put(tmp_path, ".f/cur/1.a:2,")
    with monkeypatch.context() as patch:
        fail(patch, ".f", errno.EACCES)
        with pytest.raises(MailboxError, match=r"\.f: Permission denied"):
            await read(tmp_path, Mailbox(path=("f",), separator="."))
        assert len(await read(tmp_path)) == 1
    fail(monkeypatch, str(tmp_path), errno.EACCES)
    with pytest.raises(AccessRefused):
        await mailboxes(tmp_path)


@pytest.mark.parametrize("name", ["../m", "..", "/etc", "x/../.."])
async def test_a_native_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    put(tmp_path / "m", "cur/1.a:2,")
    with pytest.raises(MailboxNotFound):
        await read(tmp_path / "m", Mailbox(path=("x",), separator=".", native=name))


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ELOOP])
@pytest.mark.fault("F10")
async def test_one_unreadable_message_leaves_its_neighbours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """F10."""
    for number in range(3):
        put(tmp_path, f"cur/{number}.a:2,")
    fail(monkeypatch, "1.a:2,", code)
    found = await read(tmp_path)
    assert [type(each) for each in found] == [Message, Unreadable, Message]
    assert isinstance(found[1], Unreadable)
    assert found[1].code == "unreadable"
    assert str(tmp_path) in found[1].text
    assert os.strerror(code) in found[1].text


@pytest.mark.fault("F29")
async def test_too_many_open_files_is_nobodys_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F29: to be tried later, not rejected."""
    put(tmp_path, "cur/1.a:2,")
    fail(monkeypatch, "1.a:2,", errno.EMFILE)
    with pytest.raises(Unavailable):
        await read(tmp_path)


async def test_lists_hold_64_messages_or_a_mebibyte(tmp_path: Path) -> None:
    for number in range(100):
        put(tmp_path, f"cur/{1000 + number}.a:2,", b"x" * (10 if number < 70 else 300_000))
    async with source(tmp_path).open() as session:
        selection = await session.select(INBOX)
        assert selection.sizes[0] == 10
        async with aclosing(session.messages(selection, skip=())) as lists:
            lengths = [len(each) async for each in lists]
    assert lengths[0] == 64
    assert sum(lengths) == 100
    assert lengths[1:4] == [9, 3, 3]


async def test_dates_without_a_year_are_the_nearest_that_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from aimport.stores.files import date_of

    assert date_of(-(10**12), "x").year == 1
    assert date_of(10**12, "x").year == 9999
    assert date_of(10**30, "x").year == 9999
    assert "date out of range" in caplog.text


async def test_reading_leaves_every_octet_and_time_alone(tmp_path: Path) -> None:
    put(tmp_path, "cur/1.a:2,S")
    put(tmp_path, "new/2.a")
    put(tmp_path, ".f/new/3.a")
    (tmp_path / "dovecot-uidlist").write_text("3 V1 N9 G0\n3 :1.a\n")
    (tmp_path / ".f" / "tmp").rmdir()
    before = tree(tmp_path)
    atimes = {path: path.lstat().st_atime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for mailbox in await mailboxes(tmp_path):
        await read(tmp_path, mailbox)
    assert {path: path.lstat().st_atime_ns for path in atimes} == atimes
    assert tree(tmp_path) == before


async def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    put(tmp_path, "cur/1.a:2,S")
    await read(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await read(tmp_path)
        with pytest.raises(MailboxError):
            await read(tmp_path, Mailbox(path=("nope",), separator="."))
    assert len(os.listdir("/proc/self/fd")) == before


# Large files


def sparse(root: Path, name: str, octets: int) -> Path:
    """A file of that size, all but its first line a hole."""
    file = put(root, name)
    os.truncate(file, octets)
    return file


def open_files(root: Path) -> set[str]:
    """What this process has open below `root`, directories left out."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            target = os.readlink(link)
            if target.startswith(f"{root}/") and not os.path.isdir(target):
                found.add(os.path.basename(target))
    return found


async def test_a_file_above_the_threshold_stays_in_its_file(tmp_path: Path) -> None:
    sparse(tmp_path, "cur/1.a:2,", STREAM_OCTETS)
    file = sparse(tmp_path, "cur/2.b:2,FS", STREAM_OCTETS + 1)
    whole, large = await read(tmp_path)
    assert isinstance(whole, Message)
    assert isinstance(large, Message)
    assert isinstance(whole.body, bytes)
    assert isinstance(large.body, FileBody)
    assert large.key == "2.b"
    assert large.flags == {"\\Flagged", "\\Seen"}
    assert not large.wire
    assert large.internal_date.timestamp() == file.stat().st_mtime // 1
    assert len(large.body) == STREAM_OCTETS + 1
    assert b"".join(large.body.pieces()) == file.read_bytes()
    assert open_files(tmp_path) == {"2.b:2,FS"}
    large.body.close()
    assert open_files(tmp_path) == set()


async def test_a_large_message_stands_alone_in_its_list_and_in_its_place(tmp_path: Path) -> None:
    for name in "1 2 4 7 8 9".split():
        put(tmp_path, f"cur/{name}.a:2,", name.encode())
    for name in "3 5 6".split():
        sparse(tmp_path, f"cur/{name}.a:2,", STREAM_OCTETS + int(name))
    async with source(tmp_path).open() as session:
        lists = session.messages(await session.select(INBOX), skip=())
        found = [[str(each.key)[0] for each in several] async for several in lists]
    assert found == [["1", "2"], ["3"], ["4"], ["5"], ["6"], ["7", "8", "9"]]


async def test_a_large_message_that_nobody_takes_is_closed(tmp_path: Path) -> None:
    """It was opened with the list before its own; then the reader was left."""
    put(tmp_path, "cur/1.a:2,")
    sparse(tmp_path, "cur/2.a:2,", STREAM_OCTETS + 1)
    async with source(tmp_path).open() as session:
        async with aclosing(session.messages(await session.select(INBOX), skip=())) as lists:
            assert len(await anext(lists)) == 1
            assert open_files(tmp_path) == {"2.a:2,"}
        assert open_files(tmp_path) == set()


async def test_a_large_file_renamed_or_removed_after_it_was_opened_is_read_as_it_was(tmp_path: Path) -> None:
    file = sparse(tmp_path, "cur/1.a:2,", STREAM_OCTETS + 1)
    [found] = await read(tmp_path)
    assert isinstance(found, Message) and isinstance(found.body, FileBody)
    file.rename(file.with_name("1.a:2,S"))
    (tmp_path / "cur/1.a:2,S").unlink()
    assert sum(map(len, found.body.pieces())) == STREAM_OCTETS + 1
    found.body.close()
