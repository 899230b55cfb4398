"""Maildir to Maildir by hard links: the same file, or a copy, never another."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from aimport.model import STREAM_OCTETS, Appended, Endpoint, Mailbox, Message
from aimport.octets import whole
from aimport.stores import Fsync
from aimport.stores.maildir import MaildirDestination, MaildirSource
from tests.contract.stores import batch
from tests.mail import append_batch, in_maildir, tree

INBOX = Mailbox(path=("INBOX",), separator=".")


def made(root: Path, *bodies: bytes) -> Path:
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True)
        (root / part).chmod(0o700)
    root.chmod(0o700)
    for number, body in enumerate(bodies):
        file = root / "cur" / f"150000000{number}.M{number}.h:2,S"
        file.write_bytes(body)
        file.chmod(0o600)
        os.utime(file, ns=(0, 1_500_000_000_123_456_789 + number))
    return root


async def copied(
    source: Path,
    destination: Path,
    *,
    link: bool = True,
    fsync: Fsync = "batch",
    between: Callable[[list[Message]], list[Message]] = lambda messages: messages,
) -> list[Path]:
    """The files at the destination, in order."""
    messages: list[Message] = []
    async with MaildirSource(Endpoint(scheme="maildir", path=str(source))).open() as session:
        async with aclosing(session.messages(await session.select(INBOX), skip=())) as lists:
            async for each in lists:
                messages += [one for one in each if isinstance(one, Message)]
    messages = between(messages)
    async with MaildirDestination(
        Endpoint(scheme="maildir", path=str(destination)), fsync=fsync, link=link
    ).open() as target:
        await target.create_mailbox(INBOX, subscribe=False)
        outcomes = await append_batch(target, INBOX, batch(*messages))
    assert all(isinstance(outcome, Appended) for outcome in outcomes)
    for one in messages:
        if not isinstance(one.body, bytes):
            one.body.close()
    return sorted([*(destination / "cur").iterdir(), *(destination / "new").iterdir()])


def linked(files: list[Path], source: Path) -> list[bool]:
    inodes = {file.stat().st_ino for file in (source / "cur").iterdir()}
    return [file.stat().st_ino in inodes for file in files]


@pytest.mark.parametrize("fsync", ["never", "batch", "each"])
async def test_what_would_be_written_alike_is_linked(tmp_path: Path, fsync: Fsync) -> None:
    """Small and large; octets, dates and flags as a copy has them, and nothing of the source is changed."""
    large = b"a: b\n\n" + b"x" * (STREAM_OCTETS + 1)
    source = made(tmp_path / "s", b"a: b\r\n\r\nx\r\n", b"", large)
    before = tree(source)
    files = await copied(source, tmp_path / "d", fsync=fsync)
    assert linked(files, source) == [True] * 3
    assert in_maildir(tmp_path / "d") == in_maildir(source)
    assert tree(source) == before
    copies = await copied(source, tmp_path / "c", link=False)
    assert linked(copies, source) == [False] * 3
    assert [file.name for file in copies] == [file.name for file in files]
    assert not list((tmp_path / "d" / "tmp").iterdir())


@pytest.mark.parametrize("difference", ["mode", "wire", "date", "folder"])
async def test_what_would_not_be_alike_is_copied(tmp_path: Path, difference: str) -> None:
    source = made(tmp_path / "s", b"a: b\n\nx\n")
    [file] = (source / "cur").iterdir()
    (tmp_path / "d").mkdir(mode=0o700)
    if difference == "mode":
        file.chmod(0o644)
    if difference == "folder":
        (tmp_path / "d").chmod(0o750)

    def changed(messages: list[Message]) -> list[Message]:
        [one] = messages
        if difference == "wire":
            return [replace(one, body=whole(one.body).replace(b"\n", b"\r\n"), wire=True)]
        return [replace(one, internal_date=one.internal_date.replace(year=2001))] if difference == "date" else [one]

    [copy] = await copied(source, tmp_path / "d", between=changed)
    assert linked([copy], source) == [False]
    assert copy.read_bytes() == b"a: b\n\nx\n"


@pytest.mark.parametrize("change", ["other file", "symbolic link", "gone", "longer", "directory", "folder"])
async def test_what_was_exchanged_since_it_was_read_is_never_linked(tmp_path: Path, change: str) -> None:
    """The octets that were read are what arrives, whatever lies behind the path by then."""
    source = made(tmp_path / "s", b"a: b\n\nmine\n")
    [file] = (source / "cur").iterdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"a: b\n\nthat\n")
    secret.chmod(0o600)
    os.utime(secret, ns=(0, file.stat().st_mtime_ns))

    def exchanged(messages: list[Message]) -> list[Message]:
        if change == "longer":
            with file.open("ab") as more:
                more.write(b"more\n")
            return messages
        if change == "folder":
            (source / "cur").rename(source / "old")
            (source / "cur").mkdir()
            secret.rename(source / "cur" / file.name)
            return messages
        file.unlink()
        if change == "other file":
            secret.rename(file)
        elif change == "symbolic link":
            file.symlink_to(secret)
        elif change == "directory":
            file.mkdir()
        return messages

    [copy] = await copied(source, tmp_path / "d", between=exchanged)
    assert copy.read_bytes() == b"a: b\n\nmine\n"
    assert not copy.is_symlink()
    assert copy.stat().st_nlink == 1
    assert not list((tmp_path / "d" / "tmp").iterdir())


async def test_a_leftover_in_tmp_is_replaced(tmp_path: Path) -> None:
    source = made(tmp_path / "s", b"a: b\n\nx\n")
    [first] = await copied(source, tmp_path / "d")
    name = first.name.partition(":")[0]
    first.unlink()
    (tmp_path / "d" / "tmp" / name).write_bytes(b"half")
    [second] = await copied(source, tmp_path / "d")
    assert (second.name, second.read_bytes()) == (first.name, b"a: b\n\nx\n")


async def test_what_was_compressed_is_never_linked(tmp_path: Path) -> None:
    import gzip

    source = made(tmp_path / "s", gzip.compress(b"a: b\n\nx\n"))
    [copy] = await copied(source, tmp_path / "d")
    assert copy.read_bytes() == b"a: b\n\nx\n"


# Octets that are shared


BODY = b"a: b\n\n" + b"mine\n" * 2000


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A file system that clones: what is cloned, by descriptor."""
    made_: list[int] = []

    def ioctl(fd: int, request: int, source: int) -> int:
        assert request == 0x40049409
        made_.append(source)
        return os.sendfile(fd, source, 0, os.fstat(source).st_size) * 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return made_


@pytest.mark.parametrize("fsync", ["never", "batch", "each"])
async def test_octets_are_shared_where_the_file_may_not_be(tmp_path: Path, calls: list[int], fsync: Fsync) -> None:
    """Another mode, so no link; a small one is written."""
    source = made(tmp_path / "s", BODY, b"a: b\n\nsmall\n")
    for file in (source / "cur").iterdir():
        file.chmod(0o644)
    before = tree(source)
    copies = await copied(source, tmp_path / "d", fsync=fsync)
    assert len(calls) == 1
    assert in_maildir(tmp_path / "d") == in_maildir(source)
    assert [copy.stat().st_mode & 0o777 for copy in copies] == [0o600] * 2
    assert linked(copies, source) == [False] * 2
    assert tree(source) == before
    assert not list((tmp_path / "d" / "tmp").iterdir())


async def test_a_file_system_that_cannot_share_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    real = fcntl.ioctl

    def ioctl(fd: int, request: int, source: int) -> int:
        nonlocal asked
        asked += 1
        return real(fd, request, source)

    source = made(tmp_path / "s", BODY, BODY, BODY)
    for file in (source / "cur").iterdir():
        file.chmod(0o644)
    probe = os.open(next((source / "cur").iterdir()), os.O_RDONLY)
    other = os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT)
    can = True
    try:
        real(other, 0x40049409, probe)
    except OSError:
        can = False
    finally:
        os.close(probe)
        os.close(other)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    copies = await copied(source, tmp_path / "d")
    assert [copy.read_bytes() for copy in copies] == [BODY] * 3
    assert asked == (3 if can else 1)


@pytest.mark.parametrize("change", ["other file", "symbolic link", "gone", "longer", "fifo", "at the same moment"])
async def test_what_was_exchanged_since_it_was_read_is_never_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int], change: str
) -> None:
    source = made(tmp_path / "s", BODY)
    [file] = (source / "cur").iterdir()
    file.chmod(0o644)
    secret = tmp_path / "secret"
    secret.write_bytes(BODY.replace(b"mine", b"that"))
    os.utime(secret, ns=(0, file.stat().st_mtime_ns))

    def exchanged(messages: list[Message]) -> list[Message]:
        match change:
            case "longer":
                with file.open("ab") as more:
                    more.write(b"more\n")
            case "at the same moment":
                real = fcntl.ioctl

                def ioctl(fd: int, request: int, source: int) -> int:
                    file.write_bytes(BODY.replace(b"mine", b"that"))
                    return int(real(fd, request, source))

                monkeypatch.setattr(fcntl, "ioctl", ioctl)
            case _:
                file.unlink()
                if change == "other file":
                    secret.rename(file)
                elif change == "symbolic link":
                    file.symlink_to(secret)
                elif change == "fifo":
                    os.mkfifo(file)
        return messages

    [copy] = await copied(source, tmp_path / "d", between=exchanged)
    assert copy.read_bytes() == BODY
    assert len(calls) == (change == "at the same moment")
    assert not list((tmp_path / "d" / "tmp").iterdir())


async def test_octets_are_shared_on_a_file_system_that_can(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Btrfs, where its tools are installed and we may mount: the copy takes no room."""
    if os.geteuid() != 0 or shutil.which("mkfs.btrfs") is None:
        pytest.skip("needs root and mkfs.btrfs")
    image, place = tmp_path / "image", tmp_path / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(200 << 20)
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True).returncode:
        pytest.skip("no loop device may be mounted here")
    request.addfinalizer(lambda: subprocess.run(["umount", str(place)], check=True))
    source = made(place / "s", *[b"a: b\n\n" + os.urandom(1 << 20).hex().encode() for _ in range(20)])
    for each in (source / "cur").iterdir():
        each.chmod(0o644)
    os.sync()
    before = os.statvfs(place).f_bfree
    copies = await copied(source, place / "d")
    assert in_maildir(place / "d") == in_maildir(source)
    assert linked(copies, source) == [False] * 20
    assert (before - os.statvfs(place).f_bfree) * os.statvfs(place).f_bsize < 8 << 20
