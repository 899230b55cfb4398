"""mbox files as found in the wild: trees, links, damage, compression, and changes while they are read."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aimport.errors import AccessRefused, ConfigurationError, MailboxError, SourceMissing
from aimport.model import STREAM_OCTETS, Endpoint, Mailbox, Message, Selection, Unreadable
from aimport.octets import whole
from aimport.stores import content
from aimport.stores.inflate import zstd
from aimport.stores.mbox import MboxSource
from tests.mail import tree

INBOX = Mailbox(path=("INBOX",), separator="/")
Found = list[Message | Unreadable]


def mail(number: int, body: bytes = b"body\n", header: bytes = b"") -> bytes:
    """A message in an mbox, with the empty line that ends it."""
    line = b"From a@b  Thu Jan %2d 10:00:00 2015 +0000\n" % (number % 28 + 1)
    return line + b"Message-ID: <%d@x>\n%s\n%s\n" % (number, header, body)


def endpoint(root: Path, *options: tuple[str, str]) -> Endpoint:
    return Endpoint(scheme="mbox", path=str(root), options=options)


async def mailboxes(root: Path, *options: tuple[str, str]) -> list[Mailbox]:
    async with MboxSource(endpoint(root, *options)).open() as session:
        return list(await session.list_mailboxes())


async def names(root: Path, *options: tuple[str, str]) -> list[str]:
    return [each.name for each in await mailboxes(root, *options)]


async def read(
    root: Path,
    mailbox: Mailbox = INBOX,
    *options: tuple[str, str],
    between: Callable[[Selection], object] = lambda selection: None,
) -> Found:
    """All of a mailbox; `between` happens after the listing."""
    async with MboxSource(endpoint(root, *options)).open() as session:
        selection = await session.select(mailbox)
        between(selection)
        async with aclosing(session.messages(selection, skip=())) as lists:
            return [one async for each in lists for one in each]


def bodies(found: Found) -> list[bytes | str]:
    """The bodies without their headers, or the codes."""
    return [
        one.code if isinstance(one, Unreadable) else whole(one.body).partition(b"\n\n")[2].rstrip(b"\n")
        for one in found
    ]


# Trees


async def test_a_single_file_is_the_inbox(tmp_path: Path) -> None:
    (tmp_path / "x.mbox").write_bytes(mail(1) + mail(2))
    assert await names(tmp_path / "x.mbox") == ["INBOX"]
    assert bodies(await read(tmp_path / "x.mbox")) == [b"body"] * 2


async def test_a_tree_of_files_is_a_tree_of_mailboxes(tmp_path: Path) -> None:
    for name in ("INBOX", "Sent", "Archive/2023", "Entw&APw-rfe", "raw&Jj", "a b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(mail(1, name.encode()))
    (tmp_path / "empty").touch()
    (tmp_path / ".subscriptions").write_text("Sent\n")
    (tmp_path / ".imap").mkdir()
    (tmp_path / ".imap" / "x").write_bytes(mail(1))
    (tmp_path / "Sent.lock").touch()
    (tmp_path / "notes.txt").write_text("no mail\n")
    assert await names(tmp_path) == ["INBOX", "Archive/2023", "Entwürfe", "Sent", "a b", "empty", "raw&Jj"]
    for each in await mailboxes(tmp_path):
        assert len(await read(tmp_path, each)) == (0 if each.name == "empty" else 1)
    assert bodies(await read(tmp_path, INBOX)) == [b"INBOX"]


async def test_the_inbox_may_lie_elsewhere_or_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "mail"
    root.mkdir()
    (root / "Sent").write_bytes(mail(1))
    (tmp_path / "spool").write_bytes(mail(1, b"spool"))
    option = ("INBOX", str(tmp_path / "spool"))
    assert await names(root, option) == ["INBOX", "Sent"]
    assert bodies(await read(root, INBOX, option)) == [b"spool"]
    assert await names(root, ("INBOX", str(tmp_path / "none"))) == ["Sent"]


async def test_dirname_and_mailboxdir_are_obeyed(tmp_path: Path) -> None:
    options = (("DIRNAME", "mbox"), ("MAILBOXDIR", "boxes"), ("UTF-8", ""))
    for name in ("INBOX", "a", "a/b", "ü&-"):
        (tmp_path / "boxes" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "boxes" / name / "mbox").write_bytes(mail(1, name.encode()))
    (tmp_path / "boxes" / "stray").write_bytes(mail(1))
    assert await names(tmp_path, *options) == ["INBOX", "a", "a/b", "ü&-"]
    for each in await mailboxes(tmp_path, *options):
        assert bodies(await read(tmp_path, each, *options)) == [each.name.encode()]


async def test_a_tree_of_thunderbird_is_read_with_its_flags(tmp_path: Path) -> None:
    (tmp_path / "Archive.sbd" / "Sub.sbd").mkdir(parents=True)
    for name in ("Inbox", "Archive", "Archive.sbd/Sub", "Archive.sbd/Sub.sbd/Deep", "Umlaut ü"):
        (tmp_path / name).write_bytes(mail(1, name.encode(), b"X-Mozilla-Status: 0005\nX-Mozilla-Keys: $label1 x\n"))
        (tmp_path / f"{name}.msf").write_text("// <!-- <mdb:mork:z v=")
    (tmp_path / "msgFilterRules.dat").write_text("version=9")
    (tmp_path / "filterlog.html").write_text("<html>")
    assert await names(tmp_path) == ["INBOX", "Archive", "Archive/Sub", "Archive/Sub/Deep", "Umlaut ü"]
    for each in await mailboxes(tmp_path):
        [message] = await read(tmp_path, each)
        assert isinstance(message, Message)
        assert message.flags == {"\\Seen", "\\Flagged", "$label1", "x"}
        assert b"Mozilla" not in whole(message.body)


async def test_labels_of_takeout_are_mailboxes_and_each_message_comes_once(tmp_path: Path) -> None:
    labels = [b"Inbox,Opened", b"Inbox,Unread", b"Work/2024,Starred,Opened,Two", b"Sent,Opened", b"Archived", b"Trash"]
    file = tmp_path / "All mail Including Spam and Trash.mbox"
    file.write_bytes(b"".join(mail(n, b"%d" % n, b"X-Gmail-Labels: %s\n" % each) for n, each in enumerate(labels)))
    before = tree(tmp_path)
    for root in (file, tmp_path):
        found = {}
        for each in await mailboxes(root):
            found[each.name] = await read(root, each)
        assert {name: bodies(messages) for name, messages in found.items()} == {
            "INBOX": [b"0", b"1"], "Work/2024": [b"2"], "Sent": [b"3"], "Archive": [b"4"], "Trash": [b"5"],
        }  # fmt: skip
        assert [one.flags for one in found["INBOX"] if isinstance(one, Message)] == [{"\\Seen"}, frozenset()]
        assert [one.flags for one in found["Work/2024"] if isinstance(one, Message)] == [{"\\Seen", "\\Flagged", "Two"}]
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [
        [("LAYOUT", "maildir++")],
        [("DIALECT", "mbx")],
        [("NOPE", "x")],
        [("DIRNAME", "..")],
        [("MAILBOXDIR", "a/../..")],
        [("SUBSCRIPTIONS", "/x")],
    ],
)
def test_options_that_lead_astray_are_refused(options: list[tuple[str, str]]) -> None:
    with pytest.raises(ConfigurationError, match=options[0][0]):
        MboxSource(endpoint(Path("/m"), *options))


# What is no mailbox, and what must not be followed


async def test_links_and_special_files_are_never_opened(tmp_path: Path) -> None:
    root, outside = tmp_path / "m", tmp_path / "outside"
    root.mkdir()
    outside.write_bytes(mail(1, b"secret"))
    (root / "real").write_bytes(mail(1))
    (root / "link").symlink_to(outside)
    (root / "alias").symlink_to("real")
    (root / "dir").mkdir()
    (root / "dirlink").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    assert await names(root) == ["dirlink", "fifo", "link", "real"]
    for name in ("link", "fifo", "dirlink", "alias"):
        with pytest.raises(MailboxError):
            await read(root, Mailbox(path=(name,), separator="/"))
    with pytest.raises(MailboxError, match="symbolic"):
        await read(root, Mailbox(path=("dirlink", "outside"), separator="/"))
    for option in (("INBOX", str(root / "link")), ("INBOX", str(root / "fifo"))):
        assert "INBOX" in await names(root, option)
        with pytest.raises(MailboxError):
            await read(root, INBOX, option)


@pytest.mark.parametrize("native", ["../outside", "/outside", "a//b", "..", "x/../../outside", "../outside//Label"])
async def test_a_native_name_is_never_a_way_out(tmp_path: Path, native: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "outside").write_bytes(mail(1, b"secret", b"X-Gmail-Labels: Label\n"))
    with pytest.raises(MailboxError):
        await read(tmp_path / "m", Mailbox(path=("x",), separator="/", native=native))


async def test_a_root_that_is_missing_or_a_link_fails_the_user(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing):
        await mailboxes(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(AccessRefused, match="symbolic link"):
        await mailboxes(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(AccessRefused):
        await mailboxes(tmp_path / "fifo")


async def test_what_is_no_mbox_is_said_and_nothing_of_it_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"hello\n" + mail(1))
    assert await names(file) == ["INBOX"]
    with pytest.raises(MailboxError, match="does not begin with a From_ line"):
        await read(file)
    assert await names(tmp_path) == []
    assert "file passed over" in caplog.text


# Octets, flags, dates


async def test_octets_flags_and_dates_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(
        b"From a@b  Fri Jan 10 12:00:00 2020 +0100\nSubject: \xe9\nStatus: RO\nX-Status: A\nX-Keywords: k1 k2   \n"
        b"Content-Length: 6\nX-UID: 7\n\nb\0\xff\r\n\n\n"
    )
    [message] = await read(tmp_path / "x")
    assert isinstance(message, Message)
    assert message.body == b"Subject: \xe9\n\nb\0\xff\r\n\n"
    assert message.flags == {"\\Seen", "\\Answered", "k1", "k2"}
    assert message.internal_date == datetime(2020, 1, 10, 11, tzinfo=UTC)
    assert not message.wire


@pytest.mark.parametrize("dialect", ["", "mboxo", "mboxrd"])
async def test_quoting_is_undone_when_asked_for(tmp_path: Path, dialect: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x").write_bytes(mail(1, b">From a\n>>From b\n"))
    options = (("DIALECT", dialect),) if dialect else ()
    left = {"": b">From a\n>>From b", "mboxo": b"From a\n>>From b", "mboxrd": b"From a\n>From b"}[dialect]
    assert bodies(await read(tmp_path / "x", INBOX, *options)) == [left]
    assert ("DIALECT=mboxrd undoes it" in caplog.text) == (not dialect)


async def test_doubtful_lines_are_counted_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = mail(1)[:-1] + mail(2, b"x\n\nFrom here on\n")
    (tmp_path / "x").write_bytes(data)
    assert len(await read(tmp_path / "x")) == 2
    assert f"kind=unseparated count=1 places={len(mail(1)) - 1}" in caplog.text
    assert f"kind=undated count=1 places={data.index(b'From here')}" in caplog.text


async def test_a_large_message_stays_in_its_file(tmp_path: Path) -> None:
    large = b">From x\n" + b"%075d\n" % 5 * (STREAM_OCTETS // 76 + 10)
    data = mail(0) + mail(1, large, b"Status: R\n") + mail(2)
    (tmp_path / "x").write_bytes(data)
    (tmp_path / "x.gz").write_bytes(gzip.compress(data, 1))
    for name, options in (("x", ()), ("x.gz", ()), ("x", (("DIALECT", "mboxrd"),)), ("x.gz", (("DIALECT", "mboxo"),))):
        found = await read(tmp_path / name, INBOX, *options)
        assert [type(one) for one in found] == [Message] * 3
        [before, one, after] = [each for each in found if isinstance(each, Message)]
        expected = b"Message-ID: <1@x>\n\n" + (large[1:] if options else large)
        assert not isinstance(one.body, bytes)
        assert len(one.body) == len(expected)
        for _ in range(2):
            assert hashlib.sha256(whole(one.body)).digest() == hashlib.sha256(expected).digest()
        assert one.flags == {"\\Seen"}
        assert isinstance(before.body, bytes) and isinstance(after.body, bytes)
        one.body.close()
        with pytest.raises(OSError, match="closed"):
            next(iter(one.body.pieces())), list(one.body.pieces())


# Compression


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
async def test_compressed_files_are_read_as_the_mailbox_they_hold(tmp_path: Path, suffix: str) -> None:
    makers: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zst": zstd.compress,
    }
    data = b"".join(mail(number, b"%d" % number) for number in range(200))
    (tmp_path / f"Old.{suffix}").write_bytes(makers[suffix](data))
    [mailbox] = await mailboxes(tmp_path)
    assert mailbox.name == "Old"
    assert bodies(await read(tmp_path, mailbox)) == [b"%d" % number for number in range(200)]
    async with MboxSource(endpoint(tmp_path)).open() as session:
        selection = await session.select(mailbox)
        async with aclosing(session.messages(selection, skip=set(selection.keys[3:150]))) as lists:
            assert sum([len(each) async for each in lists]) == 53


async def test_a_bomb_and_a_broken_file_fail_their_mailbox(tmp_path: Path) -> None:
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(mail(1, b"\0" * (64 << 20)), 9))
    (tmp_path / "torn.gz").write_bytes(gzip.compress(mail(1, os.urandom(100_000)))[:-500])
    (tmp_path / "fine.gz").write_bytes(gzip.compress(mail(1)))
    tracemalloc.start()
    try:
        boxes = {each.name: each for each in await mailboxes(tmp_path)}
        assert sorted(boxes) == ["bomb", "fine", "torn"]
        with pytest.raises(MailboxError, match="more than 200 times"):
            await read(tmp_path, boxes["bomb"])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(MailboxError, match="ends early"):
        await read(tmp_path, boxes["torn"])
    assert bodies(await read(tmp_path, boxes["fine"])) == [b"body"]


# Changes while it is read


@pytest.mark.fault("F22")
async def test_mail_that_comes_after_the_listing_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(mail(1, b"1") + mail(2, b"2"))

    def deliver(selection: Selection) -> None:
        with file.open("ab") as more:
            more.write(mail(3, b"3"))

    assert bodies(await read(file, between=deliver)) == [b"1", b"2"]
    assert bodies(await read(file)) == [b"1", b"2", b"3"]


@pytest.mark.fault("F22")
async def test_a_message_that_was_half_written_at_the_listing_is_left_out_and_said(tmp_path: Path) -> None:
    file = tmp_path / "x"
    last = mail(2, b"a long body that is not all there\n" * 3)
    file.write_bytes(mail(1, b"1") + last[:-50])

    def deliver(selection: Selection) -> None:
        with file.open("ab") as more:
            more.write(last[-50:])

    assert bodies(await read(file, between=deliver)) == [b"1", "source-changed"]
    assert bodies(await read(file))[0] == b"1"


@pytest.mark.parametrize("cut", [12, 60, 70])
async def test_a_file_that_ends_in_the_midst_of_a_message_loses_no_other(tmp_path: Path, cut: int) -> None:
    """Cut in the From_ line there is no message; in a header, or before the length that it announces, half of one."""
    header = b"Content-Length: 5\n"
    (tmp_path / "x").write_bytes(mail(1, header=header) + mail(2, header=header) + mail(3, header=header)[:cut])
    found = bodies(await read(tmp_path / "x"))
    assert found[:2] == [b"body"] * 2 or cut == 12
    assert found[2:] in ([], ["source-changed"])
    assert [one for one in found if isinstance(one, bytes) and one.startswith(b"body")] == found[:2]


@pytest.mark.parametrize("how", ["in place", "by rename"])
async def test_a_file_that_is_written_anew_is_read_by_what_is_in_it(tmp_path: Path, how: str) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"".join(mail(number, b"%d" % number) for number in range(5)))

    def expunge(selection: Selection) -> None:
        left = mail(0, b"0", b"Status: RO\n") + mail(2, b"2") + mail(4, b"4") + mail(9, b"9")
        if how == "in place":
            file.write_bytes(left)
        else:
            (tmp_path / "new").write_bytes(left)
            (tmp_path / "new").rename(file)

    assert bodies(await read(file, between=expunge)) == [b"0", "vanished", b"2", "vanished", b"4"]


async def test_a_file_written_anew_between_two_lists_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"".join(mail(number, b"%d" % number) for number in range(100)))
    found: Found = []
    async with MboxSource(endpoint(file)).open() as session:
        async with aclosing(session.messages(await session.select(INBOX), skip=())) as lists:
            async for each in lists:
                found += each
                if len(found) == 64:
                    file.write_bytes(b"".join(mail(number, b"%d" % number) for number in range(50, 99)))
    assert bodies(found)[64:] == [b"%d" % number for number in range(64, 99)] + ["vanished"]


async def test_a_file_that_goes_away_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"".join(mail(number) for number in range(100)))
    async with MboxSource(endpoint(file)).open() as session:
        async with aclosing(session.messages(await session.select(INBOX), skip=())) as lists:
            first = await anext(lists)
            file.unlink()
            assert len(first) + sum([len(each) async for each in lists]) == 100


async def test_a_file_that_never_stands_still_gives_its_messages_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x"
    file.write_bytes(mail(1) + mail(2))
    number = 0

    def moving(fd: int) -> tuple[int, int, int, int]:
        nonlocal number
        number += 1
        return (1, 1, 500, number)

    def disturb(selection: Selection) -> None:
        monkeypatch.setattr(content, "signature", moving)

    assert bodies(await read(file, between=disturb)) == ["source-changed"] * 2


async def test_a_large_body_of_a_file_that_was_written_anew_is_no_mail(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(mail(1, b"%075d\n" % 5 * (STREAM_OCTETS // 76 + 10)) + mail(2))
    [one, _] = await read(file)
    assert isinstance(one, Message)
    assert not isinstance(one.body, bytes)
    with file.open("r+b") as changed:
        changed.seek(200)
        changed.write(b"y" * 600)
    with pytest.raises(OSError, match="changed"):
        list(one.body.pieces())
    with file.open("r+b") as changed:
        changed.truncate(1000)
    with pytest.raises(OSError, match=r"shortened|changed"):
        list(one.body.pieces())
    one.body.close()


# Limits


async def test_many_messages_take_little_memory(tmp_path: Path) -> None:
    """Places and checksums; no object a message."""
    with (tmp_path / "x").open("wb") as file:
        for number in range(10_000):
            file.write(mail(number))
    async with MboxSource(endpoint(tmp_path / "x")).open() as session:
        tracemalloc.start()
        try:
            selection = await session.select(INBOX)
            assert tracemalloc.get_traced_memory()[1] < 5 << 20
            async with aclosing(session.messages(selection, skip=())) as lists:
                assert sum([len(each) async for each in lists]) == 10_000
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


async def test_the_first_message_of_a_sparse_file_of_half_a_gigabyte_comes_in_flat_memory(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write(mail(1) + mail(2, b"head\n"))
        file.seek(512 << 20)
        file.write(b"\n\n" + mail(3))
    tracemalloc.start()
    try:
        found = await read(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert [isinstance(one, Message) and len(one.body) > 1 << 28 for one in found] == [False, True, False]
    for one in found:
        if isinstance(one, Message) and not isinstance(one.body, bytes):
            one.body.close()


async def test_reading_leaves_every_octet_and_time_alone_and_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "Archive").mkdir()
    for name in ("inbox", "Archive/x", "y.gz"):
        data = mail(1) + mail(2, header=b"Status: O\n")
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    before, descriptors = tree(tmp_path), len(os.listdir("/proc/self/fd"))
    for each in await mailboxes(tmp_path):
        await read(tmp_path, each)
    with pytest.raises(MailboxError):
        await read(tmp_path, Mailbox(path=("none",), separator="/"))
    assert tree(tmp_path) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("what", ["file", "directory"])
async def test_a_link_swapped_in_while_it_is_read_is_not_followed(tmp_path: Path, what: str) -> None:
    """A file that flickers between the user's own and a link to another's: nothing of the other is ever read."""
    root, outside = tmp_path / "m", tmp_path / "outside"
    for folder in (root / "a", outside):
        folder.mkdir(parents=True)
        (folder / "box").write_bytes(mail(1, b"secret" if folder == outside else b"own"))
    place = root / "a" / "box" if what == "file" else root / "a"
    target = outside / "box" if what == "file" else outside
    stop = threading.Event()

    def flicker() -> None:
        while not stop.wait(0.0005):  # the user's own most of the time
            place.rename(root / "kept")
            place.symlink_to(target)
            place.unlink()
            (root / "kept").rename(place)

    thread = threading.Thread(target=flicker)
    thread.start()
    seen: set[bytes | str] = set()
    try:
        for _ in range(300):
            with suppress(MailboxError):
                seen.update(bodies(await read(root, Mailbox(path=("a", "box"), separator="/"))))
    finally:
        stop.set()
        thread.join()
    assert b"secret" not in seen
    assert b"own" in seen
