"""`auto:` says what lies there, or that it cannot tell."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from anyio import to_thread

from aimport.errors import AccessRefused, SourceMissing, UserError
from aimport.model import Endpoint
from aimport.stores import Stores, auto
from tests.mail import tree

MBOX = b"From a@b  Thu Jan  1 10:00:00 2015\nSubject: x\n\nx\n\n"


async def detect(path: Path) -> str:
    return ":".join(await to_thread.run_sync(auto.detect, str(path)))


def put(*names: str, body: bytes = MBOX) -> Callable[[Path], None]:
    """Files by their paths; one that ends in / is a directory."""

    def make(root: Path) -> None:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                (root / name).mkdir(parents=True)
            else:
                (root / name).write_bytes(body)

    return make


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (put("cur/", "new/", "tmp/"), "maildir"),
        (put("cur/", ".Sent/cur/x:2,S"), "maildir"),
        (put(".Sent/cur/"), "maildir"),
        (put("cur/", "new/", "Sent/cur/"), "maildir:fs"),
        (put("Archive/cur/"), "maildir:fs"),
        (put(f"{'0a' * 16}/cur/", "dovecot.list.index.log"), "maildir:index"),
        (put("inbox", "Sent"), "mbox"),
        (put(".imap/"), "mbox"),
        (put("x/", "Inbox.gz", body=gzip.compress(MBOX)), "mbox"),
        (put("mailboxes/INBOX/dbox-Mails/"), "sdbox"),
        (put("mailboxes/INBOX/dbox-Mails/", "storage/m.1"), "mdbox"),
        (put("inbox/1", "inbox/2"), "mh"),
        (put("inbox/.mh_sequences"), "mh"),
        (put("a.eml"), "eml"),
        (put("Sent/a.eml", "notes.txt"), "eml"),
    ],
)
async def test_a_directory_is_known_by_what_is_in_it(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    make(tmp_path)
    before = tree(tmp_path)
    assert await detect(tmp_path) == kind
    assert tree(tmp_path) == before


async def test_a_file_is_known_by_how_it_begins(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(MBOX)
    (tmp_path / "b").write_bytes(gzip.compress(MBOX))
    with zipfile.ZipFile(tmp_path / "c", "w") as packed:
        packed.writestr("a.eml", b"x")
    for name, mode in (("d", "w"), ("e", "w:xz")):
        with tarfile.open(tmp_path / name, mode) as tar:  # type: ignore[call-overload]  # wants a literal
            tar.add(tmp_path / "a", "a.eml")
    assert [await detect(tmp_path / name) for name in "abcde"] == ["mbox", "mbox", "zip", "tar", "tar"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (put("cur/", ".Sent/cur/", "Sent/cur/"), "may be any of maildir, maildir:fs"),
        (put("cur/", "mailboxes/"), "may be any of maildir, sdbox"),
        (put("inbox/1", "inbox/a.eml"), "may be any of eml, mh"),
        (put("x/", "notes.txt", body=b"no mail"), "nothing in it looks like mail"),
        (put("mail.pst", body=b"!BDN\0\0"), "nothing in it looks like mail"),
        (put(), "nothing in it looks like mail"),
    ],
)
async def test_what_is_ambiguous_or_nothing_is_refused(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=words):
        await detect(tmp_path)


async def test_a_data_file_of_outlook_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "mail.pst").write_bytes(b"!BDN" + bytes(1000))
    with pytest.raises(UserError, match="readpst"):
        await detect(tmp_path / "mail.pst")


async def test_links_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing):
        await detect(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(AccessRefused, match="symbolic link"):
        await detect(tmp_path / "link")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "inbox").symlink_to(tmp_path)
    with pytest.raises(UserError):
        await detect(tmp_path / "m")


async def test_what_was_found_is_said_and_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put("Archive/2020/cur/1.M1.h:2,S")(tmp_path)
    put("Archive/cur/")(tmp_path)
    caplog.set_level("INFO")
    async with Stores().source(Endpoint(scheme="auto", path=str(tmp_path))).open() as session:
        assert f"format detected path='{tmp_path}' format=maildir:fs" in caplog.text
        [mailbox] = [each for each in await session.list_mailboxes() if each.name == "Archive/2020"]
        async with aclosing(session.messages(await session.select(mailbox), skip=())) as lists:
            assert len(await anext(lists)) == 1
