"""Places of dbox: keys of the location, what must not be followed, what is lost of whole trees."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aimport.errors import ConfigurationError, SourceMissing
from aimport.model import Endpoint, Mailbox
from aimport.stores.dbox.layout import Layout
from tests.dbox import PLACES, listing, recorded, unpacked
from tests.dbox_made import FILE, Made, message, small_mdbox, small_sdbox


def layout(*options: tuple[str, str], scheme: str = "sdbox") -> Layout:
    return Layout.of(Endpoint(scheme=scheme, path="/m", options=options))


@pytest.mark.parametrize(
    ("options", "mail", "index"),
    [
        ((), "mailboxes/a/b/dbox-Mails", "mailboxes/a/b/dbox-Mails"),
        ((("INDEX", "/i"),), "mailboxes/a/b/dbox-Mails", "mailboxes/a/b"),
        ((("INDEX", "/i"), ("FULLDIRNAME", "x")), "mailboxes/a/b/x", "mailboxes/a/b/x"),
        ((("DIRNAME", "x"),), "mailboxes/a/b/x", "mailboxes/a/b/x"),
        ((("DIRNAME", "x"), ("INDEX", "/i")), "mailboxes/a/b/x", "mailboxes/a/b"),
        ((("MAILBOXDIR", "f"),), "f/a/b/dbox-Mails", "f/a/b/dbox-Mails"),
        ((("LAYOUT", "index"),), "mailboxes/a/b", "mailboxes/a/b"),
        ((("LAYOUT", "INDEX"), ("INDEX", "/i")), "mailboxes/a/b", "mailboxes/a/b"),
        ((("CONTROL", "/c"), ("VOLATILEDIR", "/v"), ("NO-NOSELECT", "")), "mailboxes/a/b/dbox-Mails",
         "mailboxes/a/b/dbox-Mails"),
    ],
)  # fmt: skip
def test_keys_say_where_mail_and_indexes_lie(options: tuple[tuple[str, str], ...], mail: str, index: str) -> None:
    found = layout(*options)
    assert "/".join(found.levels("a/b")) == mail
    assert "/".join(found.index_levels("a/b")) == index


@pytest.mark.parametrize(
    ("options", "root", "name"),
    [
        ((), "/m", "dovecot.list.index"),
        ((("INDEX", "/i"),), "/i", "dovecot.list.index"),
        ((("INDEX", "/i"), ("LISTINDEX", "l")), "/i", "l"),
        ((("LISTINDEX", "/x/y/l"),), "/x/y", "l"),
    ],
)
def test_the_list_of_folders_has_its_own_key(options: tuple[tuple[str, str], ...], root: str, name: str) -> None:
    assert (layout(*options).list_root, layout(*options).list_index) == (root, name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((("LAYOUT", "Maildir++"),), "LAYOUT=Maildir++ is not supported"),
        ((("INBOX", "/x"),), "INBOX=/x is not supported"),
        ((("BROKENCHAR", ":"),), "BROKENCHAR=: is not supported"),
        ((("ITERINDEX", ""),), "ITERINDEX needs INDEX"),
        ((("INDEX", "MEMORY"), ("ITERINDEX", "")), "ITERINDEX needs INDEX"),
        ((("DIRNAME", "../x"),), "not the name of a directory"),
    ],
)
def test_a_key_that_would_change_where_mail_lies_is_refused(options: tuple[tuple[str, str], ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words.replace("+", r"\+")):
        layout(*options)


@pytest.mark.parametrize(
    ("directory", "options", "path"),
    [
        ("Entw&APw-rfe", (), ("Entwürfe",)),
        ("Entwürfe", (("UTF-8", ""),), ("Entwürfe",)),
        ("a/&AC8-", (), ("a", "&AC8-")),
        ("R&D", (), ("R&D",)),
        ("inbox/x", (), ("INBOX", "x")),
    ],
)
def test_names_are_decoded_level_by_level(
    directory: str, options: tuple[tuple[str, str], ...], path: tuple[str, ...]
) -> None:
    assert layout(*options).mailbox(directory, directory=directory).path == path


@pytest.mark.parametrize("name", ["", "a//b", "../x", "x/..", "a/dbox-Mails"])
def test_a_name_that_is_no_directory_is_no_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a folder"):
        layout().directory(Mailbox(path=tuple(name.split("/"))))


def inbox(made: Made) -> Path:
    return made.root / "mailboxes" / "INBOX" / "dbox-Mails"


def place(made: Made, **options: Path | str) -> Endpoint:
    given = tuple((key, str(value)) for key, value in options.items())
    return Endpoint(scheme=made.kind, path=str(made.root), options=given)


async def test_nothing_is_followed_and_nothing_blocks(tmp_path: Path) -> None:
    """A link or a FIFO for a message, a folder that is a link: each is told of, and its neighbours are read."""
    made = small_sdbox(tmp_path / "store")
    secret = tmp_path / "secret"
    secret.write_bytes(FILE + message(b"secret\n", R="5a"))
    (inbox(made) / "u.3").unlink()
    (inbox(made) / "u.3").symlink_to(secret)
    shutil.copytree(made.root / "mailboxes" / "INBOX", tmp_path / "elsewhere")
    (inbox(made) / "u.5").unlink()
    os.mkfifo(inbox(made) / "u.5")
    (made.root / "mailboxes" / "Linked").symlink_to(tmp_path / "elsewhere")
    (made.root / "mailboxes" / "Alias").symlink_to("INBOX")
    seen = await listing(place(made))
    assert [each.uid for each in seen.rows] == [8]
    assert [(each.code, "u.3" in each.text or "u.5" in each.text) for each in seen.unreadable] == [
        ("unreadable", True)
    ] * 2
    assert seen.mailboxes == ["INBOX", "Linked"]
    assert "symbolic links are not followed" in seen.failed["Linked"]


async def test_an_index_that_is_a_link_fails_its_folder(tmp_path: Path) -> None:
    made = small_sdbox(tmp_path / "store")
    (inbox(made) / "dovecot.index").rename(tmp_path / "index")
    (inbox(made) / "dovecot.index").symlink_to(tmp_path / "index")
    seen = await listing(place(made))
    assert "symbolic links are not followed" in seen.failed["INBOX"]


async def test_a_message_lies_in_either_storage(tmp_path: Path) -> None:
    for kind in (small_sdbox, small_mdbox):
        made = kind(tmp_path / kind.__name__)
        alt = tmp_path / f"alt-{made.kind}"
        file = made.places[-1][0]
        moved = alt / file.relative_to(made.root)
        moved.parent.mkdir(parents=True)
        file.rename(moved)
        seen = await listing(place(made, ALT=alt))
        assert len(seen.rows) == 3
        assert seen.unreadable == []
        without = await listing(place(made))
        assert [each.code for each in without.unreadable] == ["missing"]


async def test_indexes_lie_apart_and_folders_are_those_of_either_tree(tmp_path: Path) -> None:
    made = small_sdbox(tmp_path / "store")
    index = tmp_path / "index" / "mailboxes"
    (index / "INBOX").mkdir(parents=True)
    for file in inbox(made).glob("dovecot.index*"):
        file.rename(index / "INBOX" / file.name)
    (made.root / "mailboxes" / "New" / "dbox-Mails").mkdir(parents=True)
    (made.root / "mailboxes" / "New" / "dbox-Mails" / "u.1").write_bytes(FILE + message(b"new\n", R="5a", G="1" * 32))
    shutil.copytree(index / "INBOX", index / "Gone")
    seen = await listing(place(made, INDEX=tmp_path / "index", ITERINDEX=""))
    assert seen.mailboxes == ["INBOX", "Gone", "New"]
    assert [row.mailbox for row in seen.rows] == ["INBOX"] * 3
    assert [each.code for each in seen.unreadable] == ["missing"] * 3  # of Gone
    assert "there is no index" in seen.failed["New"]
    salvaged = await listing(place(made, INDEX=tmp_path / "index", ITERINDEX=""), salvage=True)
    assert [row.mailbox for row in salvaged.rows] == ["INBOX"] * 3 + ["New"]
    with pytest.raises(SourceMissing, match=r"nowhere \(INDEX\)"):
        await listing(place(made, INDEX=tmp_path / "nowhere", ITERINDEX=""))


async def test_without_indexes_everything_is_salvage(tmp_path: Path) -> None:
    made = small_sdbox(tmp_path / "store")
    assert "there is no index" in (await listing(place(made, INDEX="MEMORY"))).failed["INBOX"]
    seen = await listing(place(made, INDEX="MEMORY"), salvage=True)
    assert [(row.uid, row.flags) for row in seen.rows] == [(uid, frozenset()) for uid in (3, 5, 8)]


async def test_attachments_are_looked_for_where_the_setting_says_and_nowhere_else(tmp_path: Path) -> None:
    made = small_sdbox(tmp_path / "store")
    (tmp_path / "att").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    text = b"Subject: x\n\n"
    for uid, path in ((3, "a/b"), (5, "../secret"), (8, "a/none")):
        body = FILE + message(text, R="5a", G="1" * 32, Z="12", X=f"12 6 - {path}")  # Z is hexadecimal
        (inbox(made) / f"u.{uid}").write_bytes(body)
    guid = "38c88939f1ac046bf72b000083ecc375"
    (tmp_path / "att" / "a").mkdir()
    (tmp_path / "att" / "a" / f"b-{guid}-3").write_bytes(b"secret")
    nowhere = await listing(place(made))
    assert [each.code for each in nowhere.unreadable] == ["attachment", "damaged", "attachment"]
    assert "mail_attachment_dir" in nowhere.unreadable[0].text
    seen = await listing(place(made, mail_attachment_dir=tmp_path / "att"))
    assert [each.code for each in seen.unreadable] == ["damaged", "attachment"]
    assert seen.digests == [hashlib.sha256(text + b"secret").hexdigest()]
    (tmp_path / "att" / "a" / f"b-{guid}-3").rename(tmp_path / "att" / "a" / f"b-{guid}-4")
    assert len((await listing(place(made, mail_attachment_dir=tmp_path / "att"))).rows) == 0
    assert len((await listing(place(made, mail_attachment_dir=tmp_path / "att"), salvage=True)).rows) == 1


@pytest.mark.parametrize("name", PLACES)
async def test_a_whole_tree_is_salvaged_as_it_is_read(name: str, tmp_path: Path) -> None:
    endpoint = unpacked(name, tmp_path)
    salvaged = await listing(endpoint, salvage=True)
    assert salvaged.rows == (await listing(endpoint)).rows
    assert (salvaged.failed, salvaged.notes, salvaged.unreadable) == ({}, [], [])


def without_indexes(root: Path) -> None:
    for file in root.rglob("dovecot.index*"):
        file.unlink()


def without_map(root: Path) -> None:
    for file in root.rglob("dovecot.map.index*"):
        file.unlink()


@pytest.mark.parametrize("name", ["mdbox-log-only", "mdbox-rotated", "mdbox-alt-zstd", "mdbox-listindex-attach-bz2"])
async def test_without_its_map_nothing_of_mdbox_is_lost(name: str, tmp_path: Path) -> None:
    endpoint = unpacked(name, tmp_path)
    without_map(tmp_path)
    seen = await listing(endpoint)
    assert sorted(seen.rows, key=lambda row: (row.mailbox, row.uid)) == recorded(name)
    assert (seen.failed, seen.unreadable) == ({}, [])
    assert any("messages are found by their GUIDs" in note for note in seen.notes)


@pytest.mark.parametrize("name", [name for name in PLACES if name.startswith("sdbox")])
async def test_without_indexes_sdbox_keeps_everything_but_flags(name: str, tmp_path: Path) -> None:
    endpoint = unpacked(name, tmp_path)
    without_indexes(tmp_path)
    strict = await listing(endpoint)
    assert strict.rows == []
    expected = recorded(name)
    assert set(strict.failed) == {row.mailbox for row in expected}
    seen = await listing(endpoint, salvage=True)
    rows = sorted(seen.rows, key=lambda row: (row.mailbox, row.uid))
    assert [(row.mailbox, row.uid, row.guid, row.received, row.sha256, row.flags) for row in rows] == [
        (row.mailbox, row.uid, row.guid, row.received, row.sha256, frozenset()) for row in expected
    ]


@pytest.mark.parametrize("name", [name for name in PLACES if name.startswith("mdbox")])
async def test_without_indexes_every_message_of_mdbox_is_salvaged_once(name: str, tmp_path: Path) -> None:
    endpoint = unpacked(name, tmp_path)
    without_indexes(tmp_path)
    assert (await listing(endpoint)).rows == []
    seen = await listing(endpoint, salvage=True)
    assert {(row.guid, row.sha256) for row in seen.rows} == {(row.guid, row.sha256) for row in recorded(name)}
    assert len(seen.rows) == len({row.guid for row in seen.rows})


async def test_without_the_list_folders_go_by_their_guids(tmp_path: Path) -> None:
    endpoint = unpacked("mdbox-listindex-attach-bz2", tmp_path)
    for file in (tmp_path / "mdbox").glob("dovecot.list.index*"):
        file.unlink()
    with pytest.raises(SourceMissing, match="it alone has the names of the folders"):
        await listing(endpoint)
    seen = await listing(endpoint, salvage=True)
    assert seen.digests == sorted(row.sha256 for row in recorded("mdbox-listindex-attach-bz2"))
    assert all(len(name) == 32 for name in seen.mailboxes)
    assert all("its name is lost" in note for note in seen.notes)
    assert len(seen.notes) == len(seen.mailboxes)


async def test_a_folder_that_the_list_does_not_name_fails_alone(tmp_path: Path) -> None:
    endpoint = unpacked("mdbox-listindex-attach-bz2", tmp_path)
    folders = tmp_path / "mdbox" / "mailboxes"
    known = len([*folders.iterdir()])
    shutil.copytree(
        next(path for path in folders.iterdir() if (path / "dovecot.index.cache").exists()), folders / ("ab" * 16)
    )
    seen = await listing(endpoint)
    assert list(seen.failed) == ["ab" * 16]
    assert "the list of folders does not name it" in seen.failed["ab" * 16]
    assert len(seen.mailboxes) == known + 1
    assert sorted(seen.rows, key=lambda row: (row.mailbox, row.uid)) == recorded("mdbox-listindex-attach-bz2")


@pytest.mark.parametrize("lose", [without_indexes, without_map])
@pytest.mark.parametrize("make", [small_sdbox, small_mdbox])
async def test_a_lost_index_or_map_is_no_end(
    make: Callable[[Path], Made], lose: Callable[[Path], None], tmp_path: Path
) -> None:
    made = make(tmp_path / "store")
    lose(made.root)
    seen = await listing(place(made), salvage=True)
    assert len(seen.rows) == 3
