"""Octets of a day: never more than the limit in any 24 hours, over all processes, whatever ends them."""

from __future__ import annotations

import os
import pickle
import sqlite3
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimport import seams
from aimport.daily import DAY_S, HOUR_S, SHARE, Day, Ledger
from aimport.errors import JournalError

BEGAN = 1_800_000_123


class Time:
    """Seconds since 1970, that a test decides over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = float(BEGAN)
        monkeypatch.setattr(seams, "now_us", lambda: int(self.now * 1_000_000))


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def day(ledger: Ledger, limit: int, account: str = "imap://bob@mail:993") -> Day:
    return Day(ledger, account, "fetch", limit)


async def test_a_day_is_any_24_hours_and_the_next_octets_wait_for_them(time: Time, tmp_path: Path) -> None:
    one = day(Ledger(tmp_path / "daily.sqlite"), 1000)
    for _ in range(10):
        assert await one.take(100) == 0.0
        time.now += 60
    wait_s = await one.take(1)
    assert DAY_S - 600 <= wait_s <= DAY_S + HOUR_S
    time.now += wait_s - 1
    assert await one.take(1) == 1.0
    time.now += 1
    assert await one.take(1) == 0.0


async def test_nobody_is_woken_for_less_than_a_tenth(time: Time) -> None:
    one = day(Ledger(), 1000)
    for octets in (50, 50, 900):
        assert await one.take(octets) == 0.0
        time.now += HOUR_S
    wait_s = await one.take(10)
    time.now += wait_s
    assert await one.take(100) == 0.0
    assert BEGAN + DAY_S + HOUR_S <= time.now <= BEGAN + DAY_S + 2 * HOUR_S


async def test_what_was_reserved_and_not_used_is_given_back_and_what_a_dead_process_had_is_not(
    time: Time, tmp_path: Path
) -> None:
    limit = 100 * SHARE
    path = tmp_path / "state" / "daily.sqlite"
    orderly, dead = day(Ledger(path), limit), day(Ledger(path), limit)
    for each in (orderly, dead):
        assert await each.take(10) == 0.0
    await orderly.close(under_way=False)
    after = day(Ledger(path), limit)
    assert await after.take(limit - SHARE - 10) == 0.0
    await after.close(under_way=False)
    assert await after.take(limit - SHARE - 9) > 0


@pytest.mark.parametrize(("under_way", "left"), [(True, 9900), (False, 9990)])
async def test_what_may_be_under_way_is_not_given_back(under_way: bool, left: int, time: Time) -> None:
    ledger = Ledger()
    one = day(ledger, 10_000)
    assert await one.take(10) == 0.0
    await one.close(under_way=under_way)
    assert await day(ledger, 10_000).take(left + 1) > 0
    assert await day(ledger, 10_000).take(left) == 0.0


async def test_what_moved_all_the_same_counts(time: Time) -> None:
    ledger = Ledger()
    one = day(ledger, 10_000)
    assert await one.take(10) == 0.0
    one.use(500)
    await one.close(under_way=True)
    assert await day(ledger, 10_000).take(9491) > 0
    assert await day(ledger, 10_000).take(9490) == 0.0


async def test_accounts_and_directions_have_days_of_their_own(time: Time, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "daily.sqlite")
    assert await day(ledger, 1000).take(1000) == 0.0
    assert await day(ledger, 1000, "imap://ann@mail:993").take(1000) == 0.0
    assert await Day(ledger, "imap://bob@mail:993", "append", 1000).take(1000) == 0.0
    assert await day(ledger, 1000).take(1) > 0


async def test_a_message_larger_than_a_day_passes_on_a_day_of_its_own(time: Time) -> None:
    ledger = Ledger()
    one = day(ledger, 1000)
    assert await one.take(5000) == 0.0
    await one.close(under_way=False)
    assert await day(ledger, 1000).take(1) > DAY_S - HOUR_S


@given(
    moves=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 8 * HOUR_S), st.booleans()), max_size=60),
)
@settings(deadline=None, max_examples=50)
def test_no_24_hours_have_more_than_the_limit(moves: list[tuple[int, int, bool]]) -> None:
    """Two users of one account, in processes that end between two moves or are killed."""
    with pytest.MonkeyPatch.context() as patched:
        time = Time(patched)
        ledger = Ledger()
        went: list[tuple[float, int]] = []

        async def main() -> None:
            one = day(ledger, 1000)
            for octets, later, ends in moves:
                time.now += later
                if wait_s := await one.take(octets):
                    time.now += wait_s
                    if await one.take(octets):
                        continue
                went.append((time.now, octets))
                if ends:
                    await one.close(under_way=False)
                    one = day(ledger, 1000)

        anyio.run(main)
        for begin, _ in went:
            assert sum(octets for at, octets in went if begin <= at < begin + DAY_S) <= 1000


async def test_a_clock_that_is_put_back_gives_nothing_away(time: Time) -> None:
    ledger = Ledger()
    assert await day(ledger, 1000).take(1000) == 0.0
    time.now -= 7 * DAY_S
    assert await day(ledger, 1000).take(1) > 7 * DAY_S


async def test_hours_that_are_gone_are_forgotten(time: Time, tmp_path: Path) -> None:
    path = tmp_path / "daily.sqlite"
    ledger = Ledger(path)
    for _ in range(3):
        ledger.add("a", "fetch", 5, int(time.now) // HOUR_S)
        time.now += 2 * DAY_S
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM spent").fetchone() == (1,)
    db.close()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_process_of_the_same_run_has_the_same_file(time: Time, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "daily.sqlite")
    assert await day(ledger, 1000).take(1000) == 0.0
    assert await day(pickle.loads(pickle.dumps(ledger)), 1000).take(1) > 0


def planted(path: Path) -> None:
    os.symlink("/dev/null", path)


def shared(path: Path) -> None:
    path.parent.chmod(0o777)


def broken(path: Path) -> None:
    path.write_bytes(b"no database at all, " * 100)


@pytest.mark.parametrize("spoil", [planted, shared, broken])
async def test_a_file_that_cannot_be_trusted_ends_the_run_and_says_so(
    spoil: object, time: Time, tmp_path: Path
) -> None:
    path = tmp_path / "state" / "daily.sqlite"
    path.parent.mkdir(mode=0o700)
    assert callable(spoil)
    spoil(path)
    with pytest.raises(JournalError, match="state"):
        await day(Ledger(path), 1000).take(1)
