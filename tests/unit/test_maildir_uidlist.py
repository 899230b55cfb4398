"""What is added to a `dovecot-uidlist`, and when nothing is."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.model import Endpoint
from aimport.stores.maildir import disk
from aimport.stores.maildir.names import Layout, parse_uidlist
from aimport.stores.maildir.uidlist import Named, Uidlist, kept, lines, next_of

LIST = "3 V1700000000 N3 G0123456789abcdef0123456789abcdef\n1 :1.M1P1.h\n2 Gabc Pxyz :2.M2P1.h,S=5\n"
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
BASES = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":/"), min_size=1, max_size=60)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[disk.Folder]:
    for part in ("cur", "new", "tmp"):
        (tmp_path / part).mkdir()
    opened = disk.open_folder(Layout.of(Endpoint(scheme="maildir", path=str(tmp_path))), "")
    yield opened
    opened.close()


def uidlist(folder: disk.Folder) -> Uidlist:
    return Uidlist(folder, mode=0o600, group=-1, durable=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LIST, 3),
        ("3 V1 N9\n", 9),
        ("3 V1 N2\n1 :a\n2 :b\n", 3),  # the header is not written anew for each line
        ("3 V1 N9\n1 :a\n", 9),
        ("3 V1 N9\n1 :a\n2 :b", None),  # somebody's line is not whole
        ("3 V1 N9", None),
        ("3 V1 N9\nx\n", None),
        ("1 1700000000 3\n1 a\n", None),  # of a version that has no GUIDs
        ("", None),
    ],
)
def test_the_next_uid_is_known_of_a_list_in_order_only(text: str, expected: int | None) -> None:
    data = text.encode()
    assert next_of(data[:4096], data[-64:]) == expected


@given(st.lists(st.tuples(BASES, WORDS, st.one_of(st.just(""), WORDS)), min_size=1, unique_by=lambda each: each[0]))
def test_lines_are_read_as_they_were_written(given_: list[tuple[str, str, str]]) -> None:
    messages = [Named(*each) for each in given_]
    data = f"3 V1 N{7 + len(messages)}\n".encode() + lines(7, messages, set())
    assert list(parse_uidlist(data).values()) == list(range(7, 7 + len(messages)))
    assert kept(data) == {base: (guid, uidl) for base, guid, uidl in given_}
    assert next_of(data, data[-65536:]) == 7 + len(messages)


def test_what_cannot_stand_in_a_line_is_left_out_of_it() -> None:
    odd = [Named("a", "g g", ""), Named("b", "", "u" * 71), Named("c", "gü", "\n"), Named("d", "known", "")]
    assert lines(1, odd, {hash("known")}) == b"1 :a\n2 :b\n3 :c\n4 :d\n"


def test_lines_are_added_behind_what_is_there(folder: disk.Folder, tmp_path: Path) -> None:
    (tmp_path / "dovecot-uidlist").write_text(LIST)
    own = uidlist(folder)
    with own.held():
        assert (tmp_path / "dovecot-uidlist.lock").exists()
        own.add([Named("3.M3P1.h", "abc", ""), Named("4.M4P1.h", "def", "u")])
        own.add([Named("5.M5P1.h", "def", "")])
    assert (tmp_path / "dovecot-uidlist").read_text() == LIST + "3 :3.M3P1.h\n4 Pu Gdef :4.M4P1.h\n5 Gdef :5.M5P1.h\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cur", "dovecot-uidlist", "new", "tmp"]


def test_a_new_list_begins_with_what_is_there_in_dovecots_order(folder: disk.Folder, tmp_path: Path) -> None:
    for name in ("cur/20.M1P1.h:2,S", "new/3.M9P1.h", "new/100.M1R1B1N0.h", "tmp/1.M1P1.h", "cur/.hidden"):
        (tmp_path / name).touch()
    own = uidlist(folder)
    with own.held():
        own.add([Named("100.M1R1B1N0.h", "guid", "")])
    header, *rest = (tmp_path / "dovecot-uidlist").read_text().splitlines()
    assert rest == ["1 :3.M9P1.h", "2 :20.M1P1.h", "3 Gguid :100.M1R1B1N0.h"]
    assert header.startswith("3 V") and " N4 G" in header
    assert (tmp_path / "dovecot-uidlist").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["dovecot.index", "dovecot.index.log", "courierimapuiddb"])
def test_no_list_is_made_where_somebody_else_has_given_out_uids(folder: disk.Folder, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    own = uidlist(folder)
    with own.held():
        own.add([Named("1.M1P1.h", "guid", "")])
    assert not (tmp_path / "dovecot-uidlist").exists()


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "garbage"])
def test_a_list_that_is_none_is_left_as_it_is(folder: disk.Folder, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dovecot-uidlist"
    other = tmp_path / "other"
    other.write_text(LIST)
    match kind:
        case "link":
            path.symlink_to(other)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "garbage":
            path.write_bytes(b"\0" * 100)
    own = uidlist(folder)
    before = path.lstat().st_size
    with own.held():
        own.add([Named("3.M1P1.h", "guid", "")])
    assert (path.lstat().st_size, other.read_text()) == (before, LIST)


def test_a_line_that_has_no_room_leaves_none_behind(
    folder: disk.Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dovecot-uidlist").write_text(LIST)
    own = uidlist(folder)
    real = os.write
    with own.held():
        with monkeypatch.context() as patched:
            calls = iter([5])

            def full(fd: int, data: bytes) -> int:
                for count in calls:
                    return real(fd, data[:count])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patched.setattr(os, "write", full)
            own.add([Named("3.M1P1.h", "guid", "")])
        assert (tmp_path / "dovecot-uidlist").read_text() == LIST
    assert "guids not kept" in caplog.text
