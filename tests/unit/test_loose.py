"""Messages that lie one in a file: trees, sequences, archives, and what must not be opened or unpacked."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import AccessRefused, AimportError, ConfigurationError, MailboxError, SourceMissing
from aimport.model import STREAM_OCTETS, Endpoint, Mailbox, Message, Unreadable
from aimport.octets import whole
from aimport.stores import inflate
from aimport.stores.loose import EmlSource, MhSource, TarSource, ZipSource
from aimport.stores.loose.names import is_eml, is_mh, mailbox_path, member_of, parse_sequences, root_of
from aimport.stores.loose.source import LooseSource
from tests.mail import tree

MAIL = b"Received: by x; Wed, 20 May 2020 12:00:00 +0000\nSubject: x\n\nbody\n"
NOON = datetime(2020, 5, 20, 12, tzinfo=UTC)
Found = dict[str, list[Message | Unreadable]]


def source(scheme: str, path: Path, user: str = "", **options: str) -> LooseSource:
    kind = {"eml": EmlSource, "mh": MhSource, "zip": ZipSource, "tar": TarSource}[scheme]
    return kind(Endpoint(scheme=scheme, path=str(path), user=user, options=tuple(options.items())))


async def read(given: LooseSource) -> Found:
    """Every mailbox by its name."""
    found: Found = {}
    async with given.open() as session:
        for mailbox in await session.list_mailboxes():
            selection = await session.select(mailbox)
            found[mailbox.name] = []
            async with aclosing(session.messages(selection, skip=())) as lists:
                async for each in lists:
                    found[mailbox.name] += each
            assert [one.key for one in found[mailbox.name]] == list(selection.keys)
    return found


def put(path: Path, body: bytes = MAIL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def bodies(found: Sequence[Message | Unreadable]) -> list[bytes | str]:
    return [one.code if isinstance(one, Unreadable) else whole(one.body) for one in found]


# Directories


async def test_directories_are_mailboxes_and_dates_are_guessed_and_said(tmp_path: Path) -> None:
    put(tmp_path / "a.eml")
    put(tmp_path / "Sent" / "2020" / "b.EML", b"Date: Wed, 20 May 2020 12:00:00 +0000\n\nx")
    put(tmp_path / "Sent" / "c.eml", b"no header")
    put(tmp_path / "Sent" / "d.eml", b"From a@b Wed May 20 12:00:00 2020 +0000\nSubject: x\n\n")
    put(tmp_path / "Sent" / "notes.txt")
    put(tmp_path / "other" / "x.txt")
    os.utime(tmp_path / "Sent" / "c.eml", (0, NOON.timestamp()))
    found = await read(source("eml", tmp_path))
    assert {name: [one.key for one in messages] for name, messages in found.items()} == {
        "INBOX": ["a.eml"],
        "Sent": ["c.eml", "d.eml"],
        "Sent/2020": ["b.EML"],
    }
    assert [
        (one.internal_date, one.dated) for messages in found.values() for one in messages if isinstance(one, Message)
    ] == [(NOON, "received"), (NOON, "mtime"), (NOON, ""), (NOON, "date")]


async def test_compressed_messages_are_inflated_and_bombs_are_not(tmp_path: Path) -> None:
    put(tmp_path / "a.eml.gz", gzip.compress(MAIL))
    put(tmp_path / "b.eml.gz", gzip.compress(b"\0" * (64 << 20)))
    put(tmp_path / "c.eml.gz", gzip.compress(MAIL)[:-9])
    put(tmp_path / "d.eml", b"x: y\n\n" + b"z" * (STREAM_OCTETS + 5))
    put(tmp_path / "e.eml.gz", gzip.compress(b"x: y\n\n" + os.urandom(STREAM_OCTETS)))
    tracemalloc.start()
    try:
        [found] = (await read(source("eml", tmp_path))).values()
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    assert [type(one) for one in found] == [Message, Unreadable, Unreadable, Message, Message]
    assert "more than 200 times" in str(found[1]) and "ends early" in str(found[2])
    for one in found[3:]:
        assert isinstance(one, Message) and not isinstance(one.body, bytes)
        assert len(whole(one.body)) == len(one.body) > STREAM_OCTETS
        one.body.close()


@pytest.mark.parametrize("scheme", ["eml", "mh"])
async def test_links_and_special_files_are_not_opened(tmp_path: Path, scheme: str) -> None:
    root, outside = tmp_path / "m", put(tmp_path / "outside" / "1", b"secret")
    name = {"eml": "{}.eml", "mh": "{}"}[scheme].format
    put(root / name(1))
    (root / name(2)).symlink_to(outside)
    os.mkfifo(root / name(3))
    (root / name(4)).mkdir()
    (root / "link").symlink_to(outside.parent)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    async with source(scheme, root).open() as session:
        names = [each.name for each in await session.list_mailboxes()]
        inbox = await session.select(Mailbox(path=("INBOX",), separator="/"))
        async with aclosing(session.messages(inbox, skip=())) as lists:
            [found] = [each async for each in lists]
        assert "link" in names
        assert bodies(found) == [MAIL, "unreadable", "unreadable"]
        for native in ("link", "../outside", "/outside", "a//b", "..", "."):
            with pytest.raises(MailboxError):
                await session.select(Mailbox(path=("x",), separator="/", native=native))


@pytest.mark.parametrize("scheme", ["eml", "mh", "zip", "tar"])
async def test_what_is_not_there_or_a_link_fails_the_user(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(SourceMissing):
        await read(source(scheme, tmp_path / "none"))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(AccessRefused, match="symbolic link"):
        await read(source(scheme, tmp_path / "link"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(AimportError):
        await read(source(scheme, tmp_path / "fifo"))
    with pytest.raises(ConfigurationError, match="INDEX"):
        source(scheme, tmp_path, INDEX="MEMORY")


async def test_reading_changes_nothing_and_leaves_nothing_open(tmp_path: Path) -> None:
    put(tmp_path / "m" / "a" / "1")
    put(tmp_path / "m" / "a" / ".mh_sequences", b"unseen: 1\n")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("a.eml", MAIL)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "m" / "a" / "1", "a/1.eml")
    before, descriptors = tree(tmp_path), len(os.listdir("/proc/self/fd"))
    for scheme, path in (("mh", "m"), ("zip", "x.zip"), ("tar", "x.tar")):
        assert [bodies(found) for found in (await read(source(scheme, tmp_path / path))).values()] == [[MAIL]]
    assert tree(tmp_path) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


# MH


async def test_sequences_are_flags_and_numbers_are_the_order(tmp_path: Path) -> None:
    for number in (1, 2, 10, 9):
        put(tmp_path / "inbox" / str(number), b"x: %d\n\n" % number)
    for name in (",3", "#4", "05", "x"):
        put(tmp_path / "inbox" / name)
    put(tmp_path / "lists" / "debian" / "7")
    put(tmp_path / "inbox" / ".mh_sequences", b"cur: 9\nunseen: 2-9\nreplied: 1\nflagged: 10\nwork: 1 99-999999999\n")
    found = await read(source("mh", tmp_path))
    assert list(found) == ["INBOX", "lists/debian"]
    assert [(one.key, one.flags) for one in found["INBOX"] if isinstance(one, Message)] == [
        ("1", {"\\Seen", "\\Answered", "work"}),
        ("2", frozenset()),
        ("9", frozenset()),
        ("10", {"\\Seen", "\\Flagged"}),
    ]


@given(st.text(alphabet="unseenflagd: -0123456789\n\t(", max_size=60), st.sets(st.integers(1, 30), max_size=8))
def test_any_sequence_file_gives_each_message_its_flags(text: str, numbers: set[int]) -> None:
    assert set(parse_sequences(text, numbers)) == numbers


def test_names_of_messages() -> None:
    assert [name for name in ("1", "12", "0", "05", ",1", "1a", "", "1" * 10, "²") if is_mh(name)] == ["1", "12"]
    assert [name for name in ("a.eml", "A.EML", "a.eml.gz", ".eml", "a.txt", "eml", "a.emlx") if is_eml(name)] == [
        "a.eml",
        "A.EML",
        "a.eml.gz",
        "a.emlx",
    ]


# Archives


def tar_of(path: Path, files: dict[str, bytes | tuple[bytes, str]], mode: str = "w:gz") -> Path:
    """Members by path; a pair is a link of that type."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # the stubs want each mode as a literal
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.mtime = int(NOON.timestamp())
            if isinstance(body, tuple):
                info.type, info.linkname = body
                tar.addfile(info)
            else:
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return path


CPANEL = {
    "backup/homedir/mail/cur/1.M1.h:2,S": b"a: default\n\n",
    "backup/homedir/mail/.Sent/cur/1.M1.h:2,": b"a: default sent\n\n",
    "backup/homedir/mail/example.org/bob/cur/2.M1.h:2,RSa": b"a: second\n\n",
    "backup/homedir/mail/example.org/bob/new/1.M1.h": b"a: first\n\n",
    "backup/homedir/mail/example.org/bob/dovecot-keywords": b"0 Work\n",
    "backup/homedir/mail/example.org/bob/.Entw&APw-rfe.x/cur/1.M1.h:2,": b"a: draft\n\n",
    "backup/homedir/mail/example.org/bob/tmp/1.M1.h": b"a: half\n\n",
    "backup/homedir/mail/example.org/eve/cur/1.M1.h:2,": b"a: eve\n\n",
    "backup/homedir/etc/passwd": b"x",
}


@pytest.mark.parametrize("kind", ["tar.gz", "tar", "tar.xz", "zip"])
async def test_each_user_of_a_backup_of_cpanel_gets_what_is_theirs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, body in CPANEL.items():
                packed.writestr(name, body)
    else:
        tar_of(path, dict(CPANEL), {"tar": "w"}.get(kind, f"w:{kind[4:]}"))
    scheme = kind.partition(".")[0]
    bob = await read(source(scheme, path, "bob@example.org"))
    assert {name: bodies(found) for name, found in bob.items()} == {
        "INBOX": [b"a: first\n\n", b"a: second\n\n"],
        "Entwürfe/x": [b"a: draft\n\n"],
    }
    assert [one.flags for one in bob["INBOX"] if isinstance(one, Message)] == [
        frozenset(),
        {"\\Answered", "\\Seen", "Work"},
    ]
    assert all(isinstance(one, Message) and not one.dated for one in bob["INBOX"])
    default = await read(source(scheme, path, "account"))
    assert {name: bodies(default[name]) for name in ("INBOX", "Sent")} == {
        "INBOX": [b"a: default\n\n"],
        "Sent": [b"a: default sent\n\n"],
    }
    eve = await read(source(scheme, path, "x", ROOT="backup/homedir/mail/example.org/eve"))
    assert {name: bodies(found) for name, found in eve.items()} == {"INBOX": [b"a: eve\n\n"]}
    with pytest.raises(SourceMissing, match="below nowhere"):
        await read(source(scheme, path, ROOT="nowhere"))


async def test_a_tree_of_eml_files_loses_what_all_paths_have_in_common(tmp_path: Path) -> None:
    files: dict[str, bytes | tuple[bytes, str]] = {"e/Inbox/1.eml": MAIL, "e/Sent/a/2.eml.gz": gzip.compress(MAIL)}
    found = await read(source("tar", tar_of(tmp_path / "x.tar.gz", files)))
    assert {name: bodies(messages) for name, messages in found.items()} == {"INBOX": [MAIL], "Sent/a": [MAIL]}


async def test_no_path_in_an_archive_is_a_path_on_disk(tmp_path: Path) -> None:
    (tmp_path / "secret.eml").write_bytes(b"secret")
    files: dict[str, bytes | tuple[bytes, str]] = {
        "a/1.eml": MAIL,
        "../secret.eml": b"x",
        f"{tmp_path}/secret.eml": b"absolute\n",
        "a/../../x.eml": b"x",
        "a/2.eml": (tarfile.SYMTYPE, str(tmp_path / "secret.eml")),
        "a/3.eml": (tarfile.LNKTYPE, "/etc/passwd"),
        "a/4.eml": (tarfile.LNKTYPE, "a/1.eml"),
        "a/5.eml": (tarfile.FIFOTYPE, ""),
    }
    before = tree(tmp_path)
    found = await read(source("tar", tar_of(tmp_path / "x.tar.gz", files), ROOT="a"))
    assert {name: bodies(messages) for name, messages in found.items()} == {
        "INBOX": [MAIL, "unreadable", "unreadable", MAIL]
    }
    assert {name: state for name, state in tree(tmp_path).items() if name not in (".", "x.tar.gz")} == {
        name: state for name, state in before.items() if name != "."
    }


async def test_damaged_and_foreign_archives_are_said(tmp_path: Path) -> None:
    whole_tar = tar_of(tmp_path / "x.tar.gz", {f"{n}.eml": os.urandom(2000) for n in range(50)}).read_bytes()
    for name, data in (("a.tar.gz", whole_tar[:-4000]), ("b.tar", b"hello" * 1000), ("c.tar.gz", gzip.compress(b"x"))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AimportError):
            await read(source("tar", tmp_path / name))
    (tmp_path / "d.zip").write_bytes(b"PK\3\4" + b"x" * 100)
    with pytest.raises(MailboxError, match="damaged zip"):
        await read(source("zip", tmp_path / "d.zip"))
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as packed:
        packed.writestr("a.eml", MAIL)
        packed.writestr("b.eml", MAIL.replace(b"body", b"b0dy"))
    data = (tmp_path / "e.zip").read_bytes()
    (tmp_path / "e.zip").write_bytes(data.replace(b"b0dy", b"bxdy"))
    [found] = (await read(source("zip", tmp_path / "e.zip"))).values()
    assert bodies(found) == [MAIL, "unreadable"]


async def test_a_bomb_in_an_archive_is_one_unreadable_message(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.eml", MAIL)
        packed.writestr("b.eml", b"\0" * (inflate.FREE + (8 << 20)))
        packed.writestr("c.eml", b"x: y\n\n" + os.urandom(STREAM_OCTETS + 5))
    [found] = (await read(source("zip", tmp_path / "x.zip"))).values()
    assert [type(one) for one in found] == [Message, Unreadable, Message]
    assert isinstance(found[2], Message) and not isinstance(found[2].body, bytes)
    found[2].body.close()


async def test_an_archive_that_is_exchanged_while_it_is_read_ends_its_mailbox(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", {f"a/{n:03}.eml": b"%d" % n for n in range(100)}, "w")
    async with source("tar", path).open() as session:
        [mailbox] = await session.list_mailboxes()
        lists = session.messages(await session.select(mailbox), skip=())
        async with aclosing(lists):
            await anext(lists)
            with path.open("ab") as more:
                more.write(b"x")
            with pytest.raises(MailboxError, match="changed"):
                await anext(lists)


async def test_two_members_of_one_path_are_two_messages(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for body in (b"1", b"2"):
            info = tarfile.TarInfo("a.eml")
            info.size = 1
            tar.addfile(info, io.BytesIO(body))
    [found] = (await read(source("tar", tmp_path / "x.tar"))).values()
    assert bodies(found) == [b"1", b"2"]
    assert [one.key for one in found] == ["a.eml", "a.eml//2"]


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [
        ("a/cur/1:2,S", ("a",), "1:2,S"),
        ("./a/new/1", ("a",), "1"),
        ("/a/b.eml", ("a",), "b.eml"),
        ("cur/1", (), "1"),
        ("a/tmp/1", None, ""),
        ("a/tmp/1.eml", None, ""),
        ("a/cur/.x", None, ""),
        ("a/../b.eml", None, ""),
        ("a//b.eml", None, ""),
        ("a/b.txt", None, ""),
        ("", None, ""),
    ],
)
def test_members_of_archives(path: str, folder: tuple[str, ...] | None, name: str) -> None:
    member = member_of(path)
    assert (member.folder, member.name) == (folder, name) if member else folder is None


@given(st.lists(st.sampled_from(["a", "mail", "x.org", "bob", ".Sent", ".", "..", "", "&Jj", "inbox"]), max_size=5))
def test_every_folder_is_a_mailbox_or_lies_elsewhere(parts: list[str]) -> None:
    folder = tuple(part for part in parts if part not in ("", ".", ".."))
    for maildir in (True, False):
        root = root_of([(folder, maildir)], "bob@x.org", "")
        path = mailbox_path(folder, root, maildir=maildir)
        assert path is None or all(path)
