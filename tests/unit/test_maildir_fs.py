"""LAYOUT=fs: a tree of directories, read and written without ever leaving it."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path

import pytest

from aimport.errors import MailboxError, MailboxNameInvalid
from aimport.model import Endpoint, Mailbox, Unreadable
from aimport.octets import whole
from aimport.stores.maildir import MaildirDestination, MaildirSource
from tests.contract.stores import batch, message
from tests.mail import append_batch, tree

FS = (("LAYOUT", "fs"),)
IN_DIRNAME = (*FS, ("DIRNAME", "mails"))
DEPTH = 300


def endpoint(root: Path, *options: tuple[str, str]) -> Endpoint:
    return Endpoint(scheme="maildir", path=str(root), options=options or FS)


def folder(path: Path, *bodies: bytes) -> Path:
    for part in ("cur", "new", "tmp"):
        (path / part).mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(bodies):
        (path / "cur" / f"150000000{number}.M{number}.h:2,").write_bytes(body)
    return path


async def listed(root: Path, *options: tuple[str, str]) -> list[str]:
    async with MaildirSource(endpoint(root, *options)).open() as session:
        return [mailbox.name for mailbox in await session.list_mailboxes()]


async def bodies(root: Path, mailbox: Mailbox) -> list[bytes | str]:
    """Bodies of what can be read, codes of what cannot."""
    async with MaildirSource(endpoint(root)).open() as session:
        async with aclosing(session.messages(await session.select(mailbox), skip=())) as lists:
            found = [one async for each in lists for one in each]
    return [one.code if isinstance(one, Unreadable) else whole(one.body) for one in found]


async def test_a_directory_with_messages_is_a_mailbox_and_one_without_is_a_level(tmp_path: Path) -> None:
    folder(tmp_path)
    folder(tmp_path / "a" / "b")
    folder(tmp_path / ".hidden")
    folder(tmp_path / "Entw&APw-rfe")
    folder(tmp_path / "..DOVECOT-TRASHED")
    (tmp_path / "cur" / "not-a-mailbox" / "cur").mkdir(parents=True)
    (tmp_path / "subscriptions").write_text("a\n")
    assert await listed(tmp_path) == ["INBOX", ".hidden", "Entwürfe", "a/b"]


async def test_with_dirname_the_inbox_is_a_folder_and_dirname_no_level(tmp_path: Path) -> None:
    folder(tmp_path / "INBOX" / "mails")
    folder(tmp_path / "a" / "mails")
    folder(tmp_path / "a" / "b" / "mails")
    folder(tmp_path / "plain")
    assert await listed(tmp_path, *IN_DIRNAME) == ["INBOX", "a", "a/b"]


async def test_a_link_in_the_tree_is_not_followed_and_fails_its_mailbox(tmp_path: Path) -> None:
    root, outside = tmp_path / "m", folder(tmp_path / "outside", b"secret")
    folder(root, b"own")
    folder(root / "real")
    (root / "real" / "link").symlink_to(outside)
    (root / "alias").symlink_to("real")
    (root / "sub").mkdir()
    (root / "sub" / "cur").symlink_to(outside / "cur")
    assert await listed(root) == ["INBOX", "real", "real/link", "sub"]
    for path in (("real", "link"), ("sub",)):
        with pytest.raises(MailboxError, match="symbolic links are not followed"):
            await bodies(root, Mailbox(path=path, separator="/"))
    assert await bodies(root, Mailbox(path=("INBOX",), separator="/")) == [b"own"]


@pytest.mark.parametrize("native", ["../outside", "/outside", "a/../../outside", "a//b", "..", "./a"])
async def test_a_native_name_is_never_a_way_out(tmp_path: Path, native: str) -> None:
    folder(tmp_path / "outside", b"secret")
    folder(tmp_path / "m" / "a")
    with pytest.raises(MailboxError):
        await bodies(tmp_path / "m", Mailbox(path=("x",), separator="/", native=native))


async def test_a_tree_of_three_hundred_levels_is_read_with_few_descriptors(tmp_path: Path) -> None:
    root = folder(tmp_path / "m")
    fd = os.open(root, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.mkdir("cur", dir_fd=fd)
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    assert await listed(root) == ["INBOX", "/".join("d" * DEPTH)]
    assert await bodies(root, Mailbox(path=("d",) * DEPTH, separator="/")) == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("path", [("..",), ("a", ".."), (".",), ("a/b",), ("cur",), ("a", "tmp"), ("dovecot-uidlist",)])
async def test_names_that_would_lead_out_or_hit_store_files_are_refused(tmp_path: Path, path: tuple[str, ...]) -> None:
    async with MaildirDestination(endpoint(tmp_path / "m")).open() as session:
        with pytest.raises(MailboxNameInvalid):
            await session.create_mailbox(Mailbox(path=path, separator="/"), subscribe=True)
    assert not (tmp_path / "m").exists()


async def test_a_link_on_the_way_to_a_new_mailbox_is_not_followed(tmp_path: Path) -> None:
    root, outside = folder(tmp_path / "m"), tmp_path / "outside"
    outside.mkdir()
    (root / "a").symlink_to(outside)
    before = tree(outside)
    async with MaildirDestination(endpoint(root)).open() as session:
        for path in (("a",), ("a", "b")):
            with pytest.raises(MailboxError):
                await session.create_mailbox(Mailbox(path=path, separator="/"), subscribe=False)
            with pytest.raises(MailboxError):
                await append_batch(session, Mailbox(path=path, separator="/"), batch(message(1)))
    assert tree(outside) == before


async def test_levels_take_the_rights_of_the_root_and_hold_no_mark(tmp_path: Path) -> None:
    root = tmp_path / "m"
    root.mkdir(mode=0o750)
    root.chmod(0o2750)
    async with MaildirDestination(endpoint(root)).open() as session:
        await session.create_mailbox(Mailbox(path=("a", "b"), separator="/"), subscribe=False)
    assert [(root / each).stat().st_mode & 0o7777 for each in ("a", "a/b", "a/b/cur")] == [0o2750] * 3
    assert not list(root.rglob("maildirfolder"))
