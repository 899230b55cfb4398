"""An mbox is added to under its locks, and what fails leaves it as it was."""

from __future__ import annotations

import errno
import fcntl
import mailbox as standard
import os
import threading
from contextlib import aclosing, closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import DestinationFull, MailboxError, MailboxNameInvalid, OverQuota
from aimport.model import STREAM_OCTETS, Appended, Endpoint, Mailbox, Message, Position, Rejected
from aimport.octets import whole
from aimport.spool import FileBody
from aimport.stores.mbox import MboxDestination, MboxSource, compose, destination
from aimport.stores.mbox.headers import DIALECTS, Dialect, unquoted
from tests.contract.stores import batch, message, wanted
from tests.mail import append_batch, tree

BOX = Mailbox(path=("box",), separator="/")
OLD = b"From x  Thu Jan  1 10:00:00 2015\nSubject: old\n\nold\n\n"
ODD = (
    b"Subject: odd\nStatus: RO\nReturn-Path: <me@x.org>\n\nFrom a\n\nFrom bob@x  Thu Jan  1 10:00:00 2015\n>From c\nend"
)


def endpoint(root: Path, *options: tuple[str, str]) -> Endpoint:
    return Endpoint(scheme="mbox", path=str(root), options=options)


async def write(
    root: Path, *messages: Message, number: int = 1, options: tuple[tuple[str, str], ...] = ()
) -> list[Appended | Rejected]:
    async with MboxDestination(endpoint(root, *options)).open() as session:
        await session.create_mailbox(BOX, subscribe=False)
        return await append_batch(session, BOX, batch(*messages, number=number))


async def read(root: Path, *options: tuple[str, str], mailbox: Mailbox = BOX) -> list[Message]:
    async with MboxSource(endpoint(root, *options)).open() as session:
        async with aclosing(session.messages(await session.select(mailbox), skip=())) as lists:
            return [one async for each in lists for one in each if isinstance(one, Message)]


@pytest.mark.parametrize("dialect", ["", *DIALECTS])
async def test_every_dialect_gives_back_what_was_written(tmp_path: Path, dialect: str) -> None:
    """But for the fields that an mbox keeps for itself, and what two of them cannot tell from what they quote."""
    options = (("DIALECT", dialect),) if dialect else ()
    sent = [message(1, "\\Seen", "kw"), message(2, body=ODD), message(3, body=b"a: b\n\n\n\n"), message(4)]
    await write(tmp_path, *sent, options=options)
    found = await read(tmp_path, *options)
    assert [one.flags for one in found] == [one.flags for one in sent]
    assert [one.internal_date for one in found] == [one.internal_date for one in sent]
    bodies = [whole(one.body).replace(b"Status: RO\n", b"") for one in sent]
    if dialect in ("mboxo", "mboxcl"):
        bodies[1] = bodies[1].replace(b">From c", b"From c")
    assert [whole(one.body) for one in found] == bodies
    assert ((tmp_path / "box").read_bytes().count(b"\nFrom bob") == 0) == (dialect not in ("", "mboxcl2"))


async def test_what_is_lost_is_told(tmp_path: Path) -> None:
    [outcome] = await write(tmp_path, message(1, "k" * 2000, "ok", body=ODD))
    assert isinstance(outcome, Appended)
    assert outcome.dropped == ("Status:", "k" * 2000)


async def test_the_standard_library_counts_the_same_messages(tmp_path: Path) -> None:
    await write(tmp_path, *(message(number, "\\Seen") for number in range(20)))
    with closing(standard.mbox(tmp_path / "box")) as box:
        assert len(box) == 20
        assert {one.get_flags() for one in box} == {"R"}


async def test_the_sender_is_that_of_the_envelope(tmp_path: Path) -> None:
    await write(tmp_path, message(1, body=ODD), message(2))
    lines = [line for line in (tmp_path / "box").read_bytes().split(b"\n") if b" remote from " in line]
    assert [line.split(b" ")[1] for line in lines] == [b"me@x.org", b"MAILER-DAEMON"]


async def test_a_file_of_others_is_added_to_and_its_messages_stay(tmp_path: Path) -> None:
    for tail in (b"", b"no end"):
        (tmp_path / "box").write_bytes(OLD + OLD + tail)
        await write(tmp_path, message(1, "\\Seen", "kw"))
        assert (tmp_path / "box").read_bytes().startswith(OLD + OLD + tail)
        found = await read(tmp_path)
        assert len(found) == 3
        assert found[2].flags == {"\\Seen"}  # what the first message does not announce nobody believes


async def test_later_keywords_find_room_in_the_first_message(tmp_path: Path) -> None:
    await write(tmp_path, message(1, "one"))
    size = (tmp_path / "box").read_bytes().index(b"\n\n")
    for number in range(2, 5):
        await write(tmp_path, message(number, f"kw{number}", "One"), number=number)
    data = (tmp_path / "box").read_bytes()
    assert data.index(b"\n\n") == size
    assert compose.parse_base(data[:size])[2] == ["one", "kw2", "kw3", "kw4"]  # type: ignore[index]  # it is there
    assert [one.flags for one in await read(tmp_path)] == [{"one"}, {"kw2", "One"}, {"kw3", "One"}, {"kw4", "One"}]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
async def test_a_failure_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, large: bool
) -> None:
    await write(tmp_path, message(1, "kw"))
    before = (tmp_path / "box").read_bytes()
    real = os.pwrite
    body = b"a: b\n\n" + b"x\n" * STREAM_OCTETS if large else b"a: b\n\nx\n"
    for fail_at in range(1, 5):
        calls = 0

        def failing(fd: int, data: memoryview, at: int, fail_at: int = fail_at) -> int:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                real(fd, data[: len(data) // 2], at)
                raise OSError(code, os.strerror(code))
            return real(fd, data, at)

        monkeypatch.setattr(os, "pwrite", failing)
        with pytest.raises((DestinationFull, MailboxError, OverQuota)):
            await write(tmp_path, message(2, "new", body=body), message(3, "kw"), number=2)
        monkeypatch.undo()
        assert (tmp_path / "box").read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == ["box"]


async def test_a_short_write_is_continued_and_a_failed_sync_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    await write(tmp_path, message(1), message(2))
    monkeypatch.undo()
    assert len(await read(tmp_path)) == 2
    before = (tmp_path / "box").read_bytes()

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "x")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(MailboxError):
        await write(tmp_path, message(3), number=2)
    assert (tmp_path / "box").read_bytes() == before


async def test_what_a_killed_process_left_is_cut_off_and_found_again(tmp_path: Path) -> None:
    """At every octet of the second batch: whole messages are found, the half one goes, nothing is there twice."""
    await write(tmp_path, message(1))
    first = (tmp_path / "box").read_bytes()
    second = batch(message(2, "\\Seen"), message(3, body=b"a: b\n\nFrom x\n"), number=2)
    async with MboxDestination(endpoint(tmp_path)).open() as session:
        since = await session.position(BOX)
        assert since is not None and since.uidnext == len(first)
        await append_batch(session, BOX, second)
        data = (tmp_path / "box").read_bytes()
        for cut in range(len(first), len(data) + 1):
            (tmp_path / "box").write_bytes(data[:cut])
            found = {each.wanted for each in await session.find(BOX, wanted(second), since)}
            left = [one for index, one in enumerate(second.messages) if index not in found]
            if left:
                await append_batch(session, BOX, batch(*left, number=3))
            subjects = [whole(one.body)[:12] for one in await read(tmp_path)]
            assert sorted(subjects) == [b"Subject: 1\n\n", b"Subject: 2\n\n", b"a: b\n\nFrom x"], cut


async def test_the_locks_of_others_are_waited_for(tmp_path: Path) -> None:
    await write(tmp_path, message(1))
    held = threading.Event()
    done: list[str] = []

    def hold() -> None:
        pid = os.fork()
        if pid == 0:  # fcntl locks are those of a process
            fd = os.open(tmp_path / "box", os.O_RDWR)
            fcntl.lockf(fd, fcntl.LOCK_EX)
            os.close(os.open(tmp_path / "held", os.O_CREAT | os.O_WRONLY))
            while not (tmp_path / "asked").exists():
                pass
            with open(tmp_path / "box", "ab") as box:
                box.write(OLD)
            os._exit(0)
        os.waitpid(pid, 0)
        done.append("theirs")
        held.set()

    thread = threading.Thread(target=hold)
    thread.start()
    while not (tmp_path / "held").exists():
        pass
    (tmp_path / "asked").touch()
    await write(tmp_path, message(2), number=2)
    held.wait(30)
    thread.join()
    assert [whole(one.body)[:12] for one in await read(tmp_path)] == [
        b"Subject: 1\n\n",
        b"Subject: old",
        b"Subject: 2\n\n",
    ]


async def test_a_lock_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await write(tmp_path, message(1))
    monkeypatch.setattr(destination, "LOCK_DEADLINE_S", 0.0)

    def busy(fd: int, how: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "lockf", busy)
    with pytest.raises(MailboxError, match="locked by another program"):
        await write(tmp_path, message(2), number=2)
    assert sorted(os.listdir(tmp_path)) == ["box"]


async def test_no_name_and_no_link_leads_out_of_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "m", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(OLD)
    root.mkdir()
    (root / "link").symlink_to(outside / "file")
    (root / "dir").symlink_to(outside)
    os.mkfifo(root / "fifo")
    before = tree(outside)
    async with MboxDestination(endpoint(root)).open() as session:
        for path in (
            ("..", "outside"),
            (".",),
            ("a/b",),
            ("",),
            ("~root",),
            ("x.lock",),
            (".subscriptions",),
            ("a\n",),
        ):
            with pytest.raises(MailboxNameInvalid):
                await session.create_mailbox(Mailbox(path=path, separator="/"), subscribe=True)
        for path in (("link",), ("dir", "file"), ("dir", "new"), ("fifo",)):
            with suppress(MailboxError):
                await session.create_mailbox(Mailbox(path=path, separator="/"), subscribe=False)
            with pytest.raises(MailboxError):
                await append_batch(session, Mailbox(path=path, separator="/"), batch(message(1)))
    assert tree(outside) == before


async def test_a_mailbox_is_no_directory_and_no_directory_is_a_mailbox(tmp_path: Path) -> None:
    async with MboxDestination(endpoint(tmp_path)).open() as session:
        await session.create_mailbox(Mailbox(path=("a",), separator="/"), subscribe=False)
        with pytest.raises(MailboxNameInvalid, match="no others below it"):
            await session.create_mailbox(Mailbox(path=("a", "b"), separator="/"), subscribe=False)
        await session.create_mailbox(Mailbox(path=("c", "d"), separator="/"), subscribe=False)
        with pytest.raises(MailboxNameInvalid, match="no others below it"):
            await session.create_mailbox(Mailbox(path=("c",), separator="/"), subscribe=False)
    async with MboxDestination(endpoint(tmp_path / "x", ("DIRNAME", "mbox"))).open() as session:
        for path in (("a",), ("a", "b")):
            await session.create_mailbox(Mailbox(path=path, separator="/"), subscribe=False)


async def test_files_take_the_rights_of_their_directory_and_the_root_is_private(tmp_path: Path) -> None:
    await write(tmp_path / "m", message(1))
    assert ((tmp_path / "m").stat().st_mode & 0o777, (tmp_path / "m" / "box").stat().st_mode & 0o777) == (0o700, 0o600)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o770)
    await write(tmp_path / "shared", message(1))
    assert (tmp_path / "shared" / "box").stat().st_mode & 0o777 == 0o660


async def test_a_body_that_cannot_be_read_costs_only_its_message(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"a: b\n\n" + b"x" * STREAM_OCTETS)
    body = FileBody(os.open(tmp_path / "body", os.O_RDONLY), name="body")
    sent = batch(message(1), replace(message(2), body=body), message(3))
    os.truncate(tmp_path / "body", 100)
    async with MboxDestination(endpoint(tmp_path / "m")).open() as session:
        await session.create_mailbox(BOX, subscribe=False)
        outcomes = await append_batch(session, BOX, sent)
    assert [type(outcome) for outcome in outcomes] == [Appended, Rejected, Appended]
    assert len(await read(tmp_path / "m")) == 2


async def test_a_survey_shows_what_is_there(tmp_path: Path) -> None:
    await write(tmp_path, message(1, "\\Seen", "kw"), message(2, body=b"a: b\r\n\r\nx\r\n"))
    (tmp_path / "box").write_bytes((tmp_path / "box").read_bytes() + OLD)
    async with MboxDestination(endpoint(tmp_path)).open() as session:
        assert await session.position(Mailbox(path=("none",), separator="/")) is None
        assert await session.survey(Mailbox(path=("none",), separator="/"), Position()) is None
        survey = await session.survey(BOX, Position())
        assert survey is not None
        assert list(survey.sizes) == [len(b"Subject: 1\r\n\r\nBody of 1\r\n"), 11, len(b"Subject: old\r\n\r\nold\r\n")]
        places = [session.place(each, None, 0) for each in wanted(batch(message(1), message(2)))]
        assert [survey.at(place) for place in [*places, "none"]] == [0, 1, None]
    async with MboxSource(endpoint(tmp_path)).open() as reader:
        assert list(survey.keys) == list((await reader.select(BOX)).keys)


@given(st.lists(st.sampled_from([b"From ", b">From ", b"x\n", b"\n", b">", b"F", b"rom ", b"\r\n", b">>From y\n"])))
def test_quoting_is_undone_by_unquoting_however_it_is_cut(parts: list[bytes]) -> None:
    body = b"".join(parts)
    for dialect in DIALECTS:
        done = b"".join(compose.quoted([body], dialect))
        assert b"".join(compose.quoted(parts, dialect)) == done
        assert b"".join(compose.quoted([body[at : at + 1] for at in range(len(body))], dialect)) == done
        if dialect in ("mboxrd", "mboxcl2"):
            assert b"".join(unquoted([done], dialect)) == body


@given(st.binary(max_size=40), st.sampled_from(DIALECTS))
def test_any_header_is_framed_with_an_empty_line_at_its_end(header: bytes, dialect: Dialect) -> None:
    own, _ = compose.split_message(header)
    head = compose.framed(own, {"\\Seen"}, [], length=5).head
    assert head.endswith((b"\n\n", b"\n\r\n"))
    assert b"Content-Length: 5" in head


@pytest.mark.parametrize("dialect", ["", "mboxrd"])
async def test_what_a_reader_wrote_anew_is_never_cut_off(tmp_path: Path, dialect: str) -> None:
    """Flags taken out make a message shorter than we wrote it, others longer: it is found and it stays."""
    options = (("DIALECT", dialect),) if dialect else ()
    sent = batch(message(1, "\\Seen", "\\Flagged"), message(2, "\\Seen", "\\Flagged", body=ODD), number=2)
    for status in (b"", b"Status: RO\nX-Status: F\nX-UID: 00000000000000000000000000007\n"):
        (tmp_path / "box").unlink(missing_ok=True)
        async with MboxDestination(endpoint(tmp_path, *options)).open() as session:
            await session.create_mailbox(BOX, subscribe=False)
            await append_batch(session, BOX, sent)
            data = (tmp_path / "box").read_bytes().replace(b"Status: R\nX-Status: F\n", status)
            (tmp_path / "box").write_bytes(data)
            await append_batch(session, BOX, batch(message(3), number=3))
            if status or not dialect:
                assert len(await session.find(BOX, wanted(sent), Position())) == 2
        assert (tmp_path / "box").read_bytes().startswith(data)
        assert len(await read(tmp_path, *options)) == 3
