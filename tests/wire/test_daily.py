"""Daily amounts, as a server counts them: parked before the lock, however many days it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aimport import seams
from aimport.daily import DAY_S, Ledger
from aimport.journal import Journal
from aimport.model import Endpoint
from aimport.progress import line
from tests.wire.server import QUICK, Call, Server, Wires, bodies

pytestmark = pytest.mark.timeout(60)

LIMIT = 10_000
MAIL = bodies(40, octets=1000)


class Days:
    """Time that passes only when somebody waits for it, and what a server has moved meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        self.waited: list[float] = []
        self.moved: list[tuple[float, int]] = []
        self.shown: list[str] = []
        self.run_line: Callable[[], str] = str
        monkeypatch.setattr(seams, "now_us", lambda: int(self.now * 1_000_000))
        monkeypatch.setattr("aimport.pipeline.rest", self.rest)

    async def rest(self, seconds: float) -> None:
        self.shown.append(self.run_line())
        self.waited.append(seconds)
        self.now += seconds

    async def hook(self, call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None:
            self.moved.append((self.now, sum(map(len, call.literals))))
        elif call.name == "UID FETCH" and "BODY" in call.text:
            first, _, last = call.text.split(" ")[2].partition(":")
            self.moved.append((self.now, sum(map(len, MAIL[int(first) - 1 : int(last or first)]))))
        return False

    @property
    def most(self) -> int:
        """Octets of the fullest 24 hours."""
        return max(sum(octets for at, octets in self.moved if begin <= at < begin + DAY_S) for begin, _ in self.moved)


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> Days:
    return Days(monkeypatch)


def limited(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, daily_octets=LIMIT)


async def test_what_is_appended_in_a_day_stays_below_its_limit_and_all_of_it_arrives(days: Days) -> None:
    wires = Wires(limits=replace(QUICK, batch_messages=3))
    for mailbox, mail in (("INBOX", MAIL[:20]), ("Sent", MAIL[20:])):  # two lanes
        wires.fill(mail, mailbox=mailbox)
    run = wires.run()
    days.run_line = lambda: line(run.counters)
    async with Server(hook=days.hook).running() as server:
        result = await wires.import_(destination=limited(server.endpoint()), run=run)
        there = server.bodies() + server.bodies(mailbox="Sent")
    assert (result.status, result.imported) == ("done", 40), result.error
    assert there == MAIL
    assert days.most <= LIMIT
    assert 4 <= len(days.waited) <= 6 and all(seconds >= DAY_S / 2 for seconds in days.waited)
    assert "1 users wait, the first until 2027-01-16" in days.shown[0]
    assert "all is done about 2027-01-19" in days.shown[0]
    assert not run.counters.waiting and not run.counters.ends


async def test_what_is_fetched_in_a_day_stays_below_its_limit_and_all_of_it_arrives(
    days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimport.stores.imap.source.WINDOW_OCTETS", 1100)  # one by one
    monkeypatch.setattr("aimport.stores.imap.source.WINDOWS_AHEAD", 1)
    wires = Wires()
    async with Server(hook=days.hook).running() as server:
        server.fill("bob", "INBOX", MAIL)
        result = await wires.import_(source=limited(server.endpoint()))
    assert (result.status, result.imported) == ("done", 40), result.error
    assert wires.arrived() == MAIL
    assert days.most <= LIMIT
    assert 4 <= len(days.waited) <= 6


async def test_a_profile_knows_the_day_of_its_servers(days: Days, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(f"append_octets_per_day = {LIMIT}\n")
    wires = Wires(limits=replace(QUICK, batch_messages=3))
    wires.fill(MAIL[:15])
    async with Server(hook=days.hook).running() as server:
        result = await wires.import_(destination=server.endpoint(profile=str(mine)))
    assert (result.status, result.imported, len(days.waited)) == ("done", 15, 1), result.error
    assert days.most <= LIMIT


async def test_who_is_not_waited_for_says_when_he_goes_on_and_a_resume_knows_what_was_used(
    days: Days, tmp_path: Path
) -> None:
    journal = Journal.in_memory()
    wires = Wires(limits=replace(QUICK, batch_messages=3), journal=journal)
    wires.fill(MAIL[:15])
    async with Server(hook=days.hook).running() as server:
        for waited, imported, status in ((0, 9, "failed"), (60, 9, "failed"), (DAY_S + 3600, 15, "done")):
            days.now += waited
            run = wires.run()
            run.ledger = Ledger(tmp_path / "daily.sqlite")  # a process of its own
            run.daily_wait = False
            result = await wires.import_(destination=limited(server.endpoint()), run=run)
            assert (result.status, result.imported) == (status, imported), result.error
            if status == "failed":
                assert result.error is not None and "goes on after 2027-01-16" in result.error
                assert result.skipped == {"unfinished": 6}
        assert server.bodies() == MAIL[:15]
    assert days.most <= LIMIT and not days.waited
