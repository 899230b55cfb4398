"""mbox files in zip and tar archives, as Google Takeout gives them: streamed, never unpacked."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import pytest

from aimport.errors import SourceMissing
from aimport.model import STREAM_OCTETS, Message
from aimport.octets import whole
from tests.unit.test_loose import MAIL, Found, bodies, read, source, tar_of

KINDS = ("zip", "tar", "tar.gz")


def packed(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    path = folder / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, body in files.items():
                archive.writestr(name, body)
        return path
    return tar_of(path, dict(files), "w:gz" if kind == "tar.gz" else "w")


def one(number: int, header: str = "", body: str = "body") -> bytes:
    line = f"From {number}@xxx Wed May 20 12:00:{number % 60:02} +0000 2020\n"
    return (line + header + f"Message-ID: <{number}@x>\nSubject: {number}\n\n{body}\n\n").encode()


def subjects(found: Found, name: str) -> list[str]:
    each = [message for message in found[name] if isinstance(message, Message)]
    return [whole(message.body).split(b"Subject: ")[1].split(b"\n")[0].decode() for message in each]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_labels_of_a_takeout_are_mailboxes(tmp_path: Path, kind: str) -> None:
    box = b"".join(
        [
            one(1, "X-Gmail-Labels: Inbox,Unread\n"),
            one(2, "X-Gmail-Labels: Sent,Starred\n"),
            one(3, "X-Gmail-Labels: Inbox,Work/Reports,Opened\n"),
            one(4, "X-Gmail-Labels: =?UTF-8?Q?Entw=C3=BCrfe?=,Opened\n"),
            one(5),
        ]
    )
    files = {"Takeout/archive_browser.html": b"<p>", "Takeout/Mail/All mail Including Spam and Trash.mbox": box}
    path = packed(tmp_path, kind, files)
    found = await read(source(kind.partition(".")[0], path))
    assert {name: subjects(found, name) for name in found} == {
        "INBOX": ["1"],
        "Sent": ["2"],
        "Work/Reports": ["3"],
        "Entwürfe": ["4"],
        "Archive": ["5"],
    }
    [first], [second] = found["INBOX"], found["Sent"]
    assert isinstance(first, Message) and isinstance(second, Message)
    assert (first.flags, second.flags) == (frozenset(), frozenset({"\\Seen", "\\Flagged"}))
    assert first.internal_date.isoformat() == "2020-05-20T12:00:01+00:00"


@pytest.mark.parametrize("kind", KINDS)
async def test_each_mbox_is_a_mailbox_beside_other_mail(tmp_path: Path, kind: str) -> None:
    files = {
        "me/Inbox.mbox": one(1) + one(2, "Status: RO\n"),
        "me/Work/2020.MBX": one(3),
        "me/Work/2020/a.eml": MAIL,
        "me/Sent.mbox": one(4) + b"From x",  # which is text
        "me/notes.mbox": b"this is none",
        "me/empty.mbox": b"",
        "../up.mbox": one(6),
    }
    found = await read(source(kind.partition(".")[0], packed(tmp_path, kind, files)))
    assert subjects(found, "INBOX") == ["1", "2"]
    assert subjects(found, "Work/2020") == ["x", "3"]
    assert subjects(found, "Sent") == ["4"]
    assert not {name for name in found if "up" in name or "notes" in name}
    seen = found["INBOX"][1]
    assert isinstance(seen, Message) and seen.flags == {"\\Seen"}
    assert b"Status" not in whole(seen.body)


@pytest.mark.parametrize("kind", KINDS)
async def test_many_and_large_messages_come_in_order_within_little_memory(tmp_path: Path, kind: str) -> None:
    large = "x" * 70 + "\n"
    count = STREAM_OCTETS // len(large) + 10
    box = [one(number) for number in range(300)]
    box[150] = one(150, body=large * count)
    data = b"".join(box)
    path = packed(tmp_path, kind, {"a/Big.mbox": data})
    del data, box
    tracemalloc.start()
    given = source(kind.partition(".")[0], path)
    async with given.open() as session:
        [mailbox] = await session.list_mailboxes()
        selection = await session.select(mailbox)
        sizes = []
        async for lists in session.messages(selection, skip=()):
            for each in lists:
                assert isinstance(each, Message)
                sizes.append(len(each.body))
                if not isinstance(each.body, bytes):
                    assert b"".join(each.body.pieces()).count(b"\n") == count + 4
                    each.body.close()
        some = [key for number, key in enumerate(selection.keys) if number not in (2, 299)]
        left = [each async for lists in session.messages(selection, skip=some) for each in lists]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sizes) == 300 and max(sizes) > STREAM_OCTETS
    assert bodies(left) == [b"Message-ID: <2@x>\nSubject: 2\n\nbody\n", b"Message-ID: <299@x>\nSubject: 299\n\nbody\n"]
    assert peak < 12 << 20  # what is asked for and one piece of 4 MiB, with room


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_cut_is_said_and_what_is_no_mail_is_none(tmp_path: Path, kind: str) -> None:
    files = {"a/Cut.mbox": one(1) + one(2)[:66]}
    found = await read(source(kind.partition(".")[0], packed(tmp_path, kind, files)))
    assert bodies(found["Cut"]) == [b"Message-ID: <1@x>\nSubject: 1\n\nbody\n", "unreadable"]
    with pytest.raises(SourceMissing, match="no mail"):
        await read(source(kind.partition(".")[0], packed(tmp_path, kind, {"a/x.mbox": b"none"})))
