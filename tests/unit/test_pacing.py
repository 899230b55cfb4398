"""Rates hold over any ten seconds, and cost no more than they must."""

from __future__ import annotations

import asyncio
import pickle
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimport.imap.paced import HOLDS_UP, PacedTransport
from aimport.pacing import SLACK_S, WINDOW_S, Pace, Throttle, Throttles
from tests.sim.loop import SimulatedLoop

SECOND = 1.0


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def most_in_a_window(went: Sequence[tuple[float, float]]) -> float:
    """Units in the fullest ten seconds, both ends counted."""
    return max(
        (sum(units for at, units in went if begin <= at <= begin + WINDOW_S) for begin, _ in went),
        default=0.0,
    )


@given(
    rate=st.floats(0.1, 1e6),
    asked=st.lists(st.tuples(st.floats(0, 0.4), st.floats(0, 3)), max_size=60),
)
@settings(deadline=None)
def test_no_ten_seconds_have_more_than_ten_seconds_worth(rate: float, asked: list[tuple[float, float]]) -> None:
    """Whatever is asked for, whenever, in parts of up to 0.4 s' worth."""
    clock = Clock()
    pace = Pace(rate, clock)
    went: list[tuple[float, float]] = []
    for share, later in asked:
        clock.now += later
        wait_s = pace.reserve(share * rate)
        assert wait_s >= 0
        went.append((clock.now + wait_s, share * rate))
    assert most_in_a_window(went) <= WINDOW_S * rate * (1 + 1e-6)
    assert [at for at, _ in went] == sorted(at for at, _ in went)


@pytest.mark.parametrize(("rate", "part"), [(1.0, 1), (4.0, 2), (100.0, 7), (1e6, 125_000.0), (0.05, 1)])
def test_a_rate_is_used_to_within_two_per_cent(rate: float, part: float) -> None:
    clock = Clock()
    pace = Pace(rate, clock)
    began = clock.now
    sent = 0.0
    while sent < rate * 300 or sent < 20 * part:
        clock.now += pace.reserve(part)
        sent += part
    assert sent / (clock.now - began) == pytest.approx(rate, rel=0.06 if part == 1 else 0.02)


def test_time_that_nobody_used_is_not_made_up_for() -> None:
    clock = Clock()
    pace = Pace(10.0, clock)
    clock.now += 3600
    waits = []
    for _ in range(20):
        waits.append(pace.reserve(1))
        clock.now += waits[-1]
    assert sum(waits) == pytest.approx(2 - SLACK_S, abs=0.11)


def test_more_than_a_window_holds_passes_alone() -> None:
    clock = Clock()
    pace = Pace(1.0, clock)
    assert pace.reserve(100) == 0.0
    assert pace.reserve(1) == pytest.approx(100, abs=1)


def test_hosts_have_paces_of_their_own_and_accounts_share_theirs() -> None:
    throttles = Throttles(messages_per_second=2.0, clock=Clock())
    one, other = throttles.of("a"), throttles.of("b")
    assert one is throttles.of("a") and one.appends is not other.appends and one.appends is not one.fetches
    assert one.out is None and one.logins is None
    assert throttles.appends_of("a", "bob", 0.0) is None
    pace = throttles.appends_of("a", "bob", 4.0)
    assert pace is throttles.appends_of("a", "bob", 4.0)
    assert pace is not throttles.appends_of("a", "ann", 4.0)


def test_several_processes_have_the_rates_of_a_run_together() -> None:
    """Each its share, also of what a host is known to take; an account is one process's. It travels as rates alone."""
    run = Throttles(octets_per_second=900, messages_per_second=3.0, logins_per_second=6.0)
    run.of("a")
    run.processes = 3
    share = pickle.loads(pickle.dumps(run))
    one = share.of("a")
    assert [pace.per_second for pace in (one.out, one.into, one.appends, one.fetches)] == [300, 300, 1, 1]
    share.know_logins("a", 3.0)
    assert share.of("a").logins.per_second == 1.0
    assert share.appends_of("a", "bob", 4.0).per_second == 4.0


@pytest.mark.parametrize(
    ("asked", "known", "holds"), [(0.0, 0.0, None), (0.0, 3.0, 3.0), (5.0, 3.0, 3.0), (2.0, 3.0, 2.0)]
)
def test_the_lesser_rate_of_logins_holds(asked: float, known: float, holds: float | None) -> None:
    throttles = Throttles(logins_per_second=asked, clock=Clock())
    throttles.know_logins("a", known)
    logins = throttles.of("a").logins
    assert (logins.per_second if logins is not None else None) == holds


# On the wire. Time is that of a simulated loop.


class Below(asyncio.Transport):
    """Takes what is written, and brings `source` octets in pieces as long as somebody reads."""

    def __init__(self, source: int = 0, piece: int = 3000) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.sent: list[tuple[float, float]] = []
        self.brought: list[tuple[float, float]] = []
        self.data = bytearray()
        self.left, self.piece = source, piece
        self.reading = True
        self.closed = self.eof = False
        self.protocol: asyncio.Protocol

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        assert not self.closed and not self.eof
        size = 0
        for each in list_of_data:
            self.data += each
            size += len(each)
        self.sent.append((self.loop.time(), size))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True
        self.loop.call_soon(self.bring)

    def bring(self) -> None:
        while self.reading and self.left:
            piece = min(self.piece, self.left)
            self.left -= piece
            self.brought.append((self.loop.time(), piece))
            self.protocol.data_received(b"x" * piece)


@dataclass
class Above(asyncio.Protocol):
    taken: int = 0
    full: bool = False
    turns: list[bool] = field(default_factory=list)

    def data_received(self, data: bytes) -> None:
        self.taken += len(data)

    def pause_writing(self) -> None:
        self.turns.append(True)

    def resume_writing(self) -> None:
        self.turns.append(False)


class Nobody:
    def connect(self, *_: Any) -> asyncio.Transport:
        raise OSError


def simulated(main: Any) -> None:
    loop = SimulatedLoop(random.Random(1), Nobody(), shuffled=False)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def throttle(rate: float) -> Throttle:
    clock = asyncio.get_running_loop().time
    return Throttles(octets_per_second=rate, clock=clock).of("host")


@pytest.mark.parametrize("size", [10, 1000, 70_000])
def test_what_is_sent_keeps_to_the_rate_over_all_connections(size: int) -> None:
    """Three connections of one host, two megabytes in writes of any size: order and octets stay."""
    rate = 100_000

    async def main() -> None:
        shared = throttle(rate)
        below = [Below() for _ in range(3)]
        above = [Above() for _ in range(3)]
        transports = [PacedTransport.over(one, two, shared) for one, two in zip(below, above, strict=True)]
        whole = random.Random(2).randbytes(700_000)
        for transport in transports:
            for at in range(0, len(whole), size):
                transport.write(whole[at : at + size])
            assert transport.get_extra_info(HOLDS_UP)
            transport.close()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(60)
        assert all(each.closed for each in below)
        assert 20.5 <= max(each.sent[-1][0] for each in below) - began <= 22.5
        assert [bytes(each.data) for each in below] == [whole] * 3
        went = sorted(turn for each in below for turn in each.sent)
        assert most_in_a_window(went) <= WINDOW_S * rate
        for each in below:  # each has its share all the time
            assert each.sent[0][0] - began < 1 and each.sent[-1][0] - began > 19

    simulated(main)


def test_writers_wait_while_much_is_queued_and_go_on_when_little_is() -> None:
    async def main() -> None:
        below, above = Below(), Above()
        transport = PacedTransport.over(below, above, throttle(1000))
        transport.set_write_buffer_limits(high=2000)
        transport.write(b"x" * 1500)
        assert above.turns == []
        transport.write(b"x" * 1500)
        assert above.turns == [True] and transport.get_write_buffer_size() > 2000
        await asyncio.sleep(3.5)
        assert above.turns == [True, False]
        assert transport.get_write_buffer_size() == 0 and not transport.get_extra_info(HOLDS_UP)
        transport.write(b"x" * 600)
        transport.write_eof()
        eof_too_early = below.eof
        assert not eof_too_early
        await asyncio.sleep(2)
        assert len(below.data) == 3600
        assert below.eof

    simulated(main)


@pytest.mark.parametrize("piece", [500, 3000, 12_000])
def test_what_comes_unasked_keeps_to_the_rate_over_all_connections(piece: int) -> None:
    rate = 100_000

    async def main() -> None:
        shared = throttle(rate)
        below = [Below(700_000, piece) for _ in range(3)]
        above = [Above() for _ in range(3)]
        for one, two in zip(below, above, strict=True):
            PacedTransport.over(one, two, shared)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for each in below:
            loop.call_soon(each.bring)
        await asyncio.sleep(60)
        assert 20 <= max(each.brought[-1][0] for each in below) - began <= 23
        assert [each.taken for each in above] == [700_000] * 3
        went = sorted(turn for each in below for turn in each.brought)
        # What had come before its turn was known, of each connection once.
        assert most_in_a_window(went) <= WINDOW_S * rate + 3 * (piece + shared_quantum(shared))

    simulated(main)


def shared_quantum(shared: Throttle) -> int:
    assert shared.into is not None
    return shared.into.quantum


def test_what_was_waited_for_before_it_was_asked_for_is_not_paid_twice() -> None:
    async def main() -> None:
        rate = 100_000
        below, above = Below(), Above()
        transport = PacedTransport.over(below, above, throttle(rate))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(200):
            await asyncio.sleep(transport.expect(10_000))
            below.left = 10_000
            below.bring()
            assert below.reading
        assert loop.time() - began == pytest.approx(20, abs=0.5)
        assert most_in_a_window(below.brought) <= WINDOW_S * rate

    simulated(main)


def test_who_stops_reading_is_not_woken_by_his_turn() -> None:
    async def main() -> None:
        below, above = Below(50_000, 1000), Above()
        transport = PacedTransport.over(below, above, throttle(10_000))
        below.bring()
        assert not below.reading and transport.get_extra_info(HOLDS_UP)
        transport.pause_reading()
        await asyncio.sleep(10)
        assert [below.reading, transport.is_reading()] == [False, False] and above.taken <= 5000
        transport.resume_reading()
        await asyncio.sleep(10)
        assert above.taken == 50_000

    simulated(main)


def test_a_connection_that_ends_is_told_at_once_and_forgets_what_waits() -> None:
    async def main() -> None:
        below = Below()

        class Ended(Above):
            ended = False

            def connection_lost(self, exc: Exception | None) -> None:
                self.ended = True

        above = Ended()
        transport = PacedTransport.over(below, above, throttle(1000))
        transport.write(b"x" * 5000)
        sent = len(below.data)
        below.protocol.connection_lost(None)
        assert above.ended and transport.get_write_buffer_size() == 0
        await asyncio.sleep(10)
        assert len(below.data) == sent

    simulated(main)
