"""Maildir to Maildir by hard links: the same file, or a copy, never another."""

from __future__ import annotations

import os
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
