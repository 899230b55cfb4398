"""A tree of `.eml` files is added to; what fails leaves nothing half."""

from __future__ import annotations

import errno
import os
from contextlib import aclosing
from pathlib import Path

import pytest

from aimport.errors import ConfigurationError, DestinationFull, MailboxError, MailboxNameInvalid
from aimport.model import Appended, Endpoint, Mailbox, Message, Position, Rejected
from aimport.octets import whole
from aimport.stores import Fsync
from aimport.stores.loose import EmlDestination, EmlSource
from tests.contract.stores import batch, message, wanted
from tests.mail import append_batch, tree

BOX = Mailbox(path=("a", "b"), separator="/")


def destination(root: Path, fsync: Fsync = "batch") -> EmlDestination:
    return EmlDestination(Endpoint(scheme="eml", path=str(root)), fsync=fsync)


async def write(root: Path, *messages: Message, number: int = 1, fsync: Fsync = "batch") -> list[Appended | Rejected]:
    async with destination(root, fsync).open() as session:
        await session.create_mailbox(BOX, subscribe=True)
        return await append_batch(session, BOX, batch(*messages, number=number))


@pytest.mark.parametrize("fsync", ["never", "batch", "each"])
async def test_what_was_written_is_read_in_order(tmp_path: Path, fsync: Fsync) -> None:
    sent = [message(number) for number in range(12)]
    await write(tmp_path / "m", *sent, fsync=fsync)
    async with EmlSource(Endpoint(scheme="eml", path=str(tmp_path / "m"))).open() as session:
        async with aclosing(session.messages(await session.select(BOX), skip=())) as lists:
            found = [one async for each in lists for one in each if isinstance(one, Message)]
    assert [(whole(one.body), one.internal_date) for one in found] == [
        (whole(one.body), one.internal_date) for one in sent
    ]
    assert {one.dated for one in found} == {"mtime"}
    assert ((tmp_path / "m").stat().st_mode & 0o777, (tmp_path / "m" / "a" / "b").stat().st_mode & 0o777) == (
        0o700,
        0o700,
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_a_failed_write_leaves_no_part_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    await write(tmp_path, message(1))
    before = tree(tmp_path)
    real = os.write
    calls = 0

    def failing(fd: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(code, os.strerror(code))
        return real(fd, data)

    monkeypatch.setattr(os, "write", failing)
    sent = [message(number) for number in range(2, 5)]
    if code == errno.ENOSPC:
        with pytest.raises(DestinationFull):
            await write(tmp_path, *sent, number=2)
        monkeypatch.undo()
        assert {name for name in tree(tmp_path)} == set(before)
    else:
        outcomes = await write(tmp_path, *sent, number=2)
        assert [type(outcome) for outcome in outcomes] == [Appended, Rejected, Appended]
        assert len(list((tmp_path / "a" / "b").iterdir())) == 3


async def test_find_believes_name_and_size_and_a_leftover_is_replaced(tmp_path: Path) -> None:
    sent = batch(message(1), message(2), number=7)
    async with destination(tmp_path).open() as session:
        await session.create_mailbox(BOX, subscribe=False)
        await append_batch(session, BOX, sent)
        first, second = sorted((tmp_path / "a" / "b").iterdir())
        first.write_bytes(b"half")
        second.rename(second.with_name(f".{second.name}.aimport"))
        assert await session.find(BOX, wanted(sent), Position()) == []
        await append_batch(session, BOX, sent)
        assert [each.wanted for each in await session.find(BOX, wanted(sent), Position())] == [0, 1]
        survey = await session.survey(BOX, Position())
        assert survey is not None
        assert list(survey.keys) == sorted(file.name for file in (tmp_path / "a" / "b").iterdir())
        assert [survey.at(session.place(each, None, 0)) for each in wanted(sent)] == [0, 1]
        assert list(survey.sizes) == [each.size for each in sent.fingerprints]


async def test_no_name_and_no_link_leads_out_of_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "m", tmp_path / "outside"
    outside.mkdir()
    root.mkdir()
    (root / "link").symlink_to(outside)
    before = tree(outside)
    async with destination(root).open() as session:
        for path in ((), ("",), ("..",), ("a", ".."), ("a/b",), (".hidden",), ("a\n",), ("x" * 256,), ("\ud800",)):
            with pytest.raises(MailboxNameInvalid):
                await session.create_mailbox(Mailbox(path=path, separator="/"), subscribe=False)
        for path in (("link",), ("link", "x")):
            with pytest.raises(MailboxError):
                await session.create_mailbox(Mailbox(path=path, separator="/"), subscribe=False)
            with pytest.raises(MailboxError):
                await append_batch(session, Mailbox(path=path, separator="/"), batch(message(1)))
    assert tree(outside) == before


def test_keys_say_nothing_here() -> None:
    with pytest.raises(ConfigurationError, match="INDEX"):
        EmlDestination(Endpoint(scheme="eml", path="/m", options=(("INDEX", "MEMORY"),)))
