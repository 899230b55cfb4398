"""Bodies in files: the same octets each time or an error, no descriptor lost, nothing left in TMPDIR."""

from __future__ import annotations

import errno
import gc
import os
import resource
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import MessageUnreadable, Scope
from aimport.model import PIECE_OCTETS
from aimport.spool import FileBody, Spool
from tests.large import is_open

BIG = bytes(range(256)) * 4096  # four pieces


@pytest.fixture
def tmpdir_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def opened(file: Path, octets: bytes) -> FileBody:
    file.write_bytes(octets)
    return FileBody(os.open(file, os.O_RDONLY), name=str(file))


def descriptors(body: object) -> list[int]:
    """What the process has open of what `body` opened."""
    fd = getattr(body, "_fd")  # noqa: B009 - looked into on purpose
    assert isinstance(fd, int)
    return [fd] if fd >= 0 and is_open(fd) else []


@pytest.mark.parametrize("size", [0, 1, PIECE_OCTETS, PIECE_OCTETS + 1, len(BIG)])
def test_a_file_is_read_in_pieces_as_often_as_asked(tmp_path: Path, size: int) -> None:
    body = opened(tmp_path / "x", BIG[:size])
    one, two = body.pieces(), body.pieces()
    pairs = list(zip(one, two, strict=True))
    assert b"".join(first for first, _ in pairs) == b"".join(second for _, second in pairs) == BIG[:size]
    assert all(0 < len(first) <= PIECE_OCTETS for first, _ in pairs)
    assert len(body) == size
    body.close()


def cut_short(file: Path) -> None:
    os.truncate(file, len(BIG) - 1)


def made_longer(file: Path) -> None:
    with file.open("ab") as more:
        more.write(b"x")


def overwritten(file: Path) -> None:
    """As long as before, and another time."""
    file.write_bytes(BIG[::-1])
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize("change", [cut_short, made_longer, overwritten])
def test_a_file_that_changes_is_an_error_before_its_last_piece(tmp_path: Path, change: Callable[[Path], None]) -> None:
    body = opened(tmp_path / "x", BIG)
    pieces = body.pieces()
    read = [next(pieces)]
    change(tmp_path / "x")
    with pytest.raises(OSError, match=r"x'$") as caught:
        read += pieces
    assert caught.value.errno == errno.EIO
    assert sum(map(len, read)) < len(BIG)
    body.close()


def test_a_rename_and_new_rights_change_no_octet(tmp_path: Path) -> None:
    body = opened(tmp_path / "x", BIG)
    (tmp_path / "x").rename(tmp_path / "y")
    (tmp_path / "y").chmod(0)
    (tmp_path / "y").unlink()
    assert b"".join(body.pieces()) == BIG
    body.close()


def test_a_closed_body_reads_nothing_not_even_another_file_of_its_number(tmp_path: Path) -> None:
    body = opened(tmp_path / "x", BIG)
    [fd] = descriptors(body)
    pieces = body.pieces()
    next(pieces)
    body.close()
    body.close()
    other = os.open(tmp_path / "x", os.O_RDONLY)
    assert other == fd, "the number is used again"
    for reading in (pieces, body.pieces()):
        with pytest.raises(OSError, match="closed"):
            next(reading)
    os.close(other)


def test_a_body_that_is_forgotten_closes_its_file_without_a_warning(tmp_path: Path) -> None:
    body = opened(tmp_path / "x", BIG)
    [fd] = descriptors(body)
    del body
    gc.collect()
    assert not is_open(fd)


def test_what_cannot_be_looked_at_stays_the_callers(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        FileBody(10**6, name="x")


@given(st.binary(min_size=1), st.lists(st.tuples(st.integers(0, 2**16), st.booleans()), max_size=10))
def test_what_is_written_is_read_again_whenever_it_was_flushed(octets: bytes, steps: list[tuple[int, bool]]) -> None:
    edges = sorted({0, len(octets), *(at % (len(octets) + 1) for at, _ in steps)})

    async def go() -> bytes:
        spool = Spool(len(octets))
        kept = 0
        for (low, high), flush in zip(pairwise(edges), [flush for _, flush in steps] + [False] * 10, strict=False):
            spool.write(octets[low:high])
            kept += high - low
            assert spool.pending == kept
            if flush:
                await spool.flush()
                kept = spool.pending
                assert kept == 0
        body = await spool.body()
        assert len(body) == len(octets)
        read = b"".join(body.pieces())
        body.close()
        return read

    assert anyio.run(go) == octets


async def test_nobody_else_sees_the_file_and_nothing_is_left(tmpdir_only: Path) -> None:
    spool = Spool(3)
    spool.write(b"abc")
    await spool.flush()
    assert list(tmpdir_only.iterdir()) == []
    body = await spool.body()
    [fd] = descriptors(body)
    status = os.fstat(fd)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_nlink == 0
    assert status.st_dev == tmpdir_only.stat().st_dev
    assert not os.get_inheritable(fd)
    body.close()


async def test_a_spool_that_is_given_up_closes_its_file() -> None:
    spool = Spool(4)
    spool.write(b"abc")
    with pytest.raises(ValueError, match="3 of 4"):
        await spool.body()
    [fd] = descriptors(spool)
    del spool
    gc.collect()
    assert not is_open(fd)


async def test_a_body_outlives_its_spool() -> None:
    spool = Spool(3)
    spool.write(b"abc")
    body = await spool.body()
    with pytest.raises(ValueError, match="octets are there"):
        await spool.body()
    del spool
    gc.collect()
    assert b"".join(body.pieces()) == b"abc"
    body.close()


@pytest.mark.fault("F31")
async def test_short_writes_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data[:7]), at))
    spool = Spool(1000)
    spool.write(BIG[:300])
    await spool.flush()
    spool.write(BIG[300:1000])
    body = await spool.body()
    assert b"".join(body.pieces()) == BIG[:1000]
    body.close()


@contextmanager
def largest_file(octets: int) -> Iterator[None]:
    """F31, as `ulimit -f`. Python ignores SIGXFSZ, so that a write fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault("F9", "F31")
async def test_without_room_the_octets_are_dropped_and_the_message_is_told_apart() -> None:
    """F9, F31: the rest of the literal still comes, and must not fill the memory."""
    spool = Spool(len(BIG))
    spool.write(BIG[:50_000])
    await spool.flush()
    [fd] = descriptors(spool)
    spool.write(BIG[50_000:150_000])
    with largest_file(100_000):
        await spool.flush()
    assert not is_open(fd)
    spool.write(BIG[150_000:])
    assert spool.pending == 0
    for _ in range(2):
        with pytest.raises(MessageUnreadable, match=r"no room .*: File too large \(TMPDIR") as caught:
            await spool.body()
    assert (caught.value.code, caught.value.scope) == ("nospace", Scope.MESSAGE)


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "nospace"), (errno.EDQUOT, "nospace"), (errno.EIO, "unreadable")]
)
@pytest.mark.fault("F9")
async def test_a_write_that_fails_is_told_by_its_code(monkeypatch: pytest.MonkeyPatch, code: int, said: str) -> None:
    def fail(fd: int, data: object, at: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fail)
    spool = Spool(3)
    spool.write(b"abc")
    with pytest.raises(MessageUnreadable) as caught:
        await spool.body()
    assert caught.value.code == said
    assert descriptors(spool) == []


async def test_a_tmpdir_that_is_not_there_is_an_error_of_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nope"))
    spool = Spool(3)
    spool.write(b"abc")
    with pytest.raises(MessageUnreadable) as caught:
        await spool.body()
    assert caught.value.code == "unreadable"


async def test_a_cancelled_flush_waits_for_its_thread_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that is closed while a thread writes to its number would write into another file."""
    real, begun, go_on = os.pwrite, threading.Event(), threading.Event()
    done: list[int] = []

    def slow(fd: int, data: bytes, at: int) -> int:
        begun.set()
        assert go_on.wait(10)
        done.append(real(fd, data, at))
        return done[-1]

    monkeypatch.setattr(os, "pwrite", slow)
    spool = Spool(6)
    spool.write(b"abc")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(spool.flush)
        await anyio.to_thread.run_sync(begun.wait, 10)
        tasks.cancel_scope.cancel()
        go_on.set()
    assert done == [3]
    spool.write(b"def")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await spool.flush()
    assert scope.cancelled_caught
    assert spool.pending == 3
    body = await spool.body()
    assert b"".join(body.pieces()) == b"abcdef"
    body.close()
