"""The floor of the time an import takes: what servers state, else the rates of our own bench, and its reasons."""

from __future__ import annotations

import pytest

from aimport.estimate import DAY_S, MESSAGES_A_SECOND, OCTETS_A_SECOND, Estimate, bound_of
from aimport.standing import Server

GMAIL = Server(kind="gmail", octets_per_day=2_500_000_000)
GMAIL_IN = Server(kind="gmail", octets_per_day=500_000_000)
EXCHANGE = Server(kind="exchange-online", messages_per_second=4.0)
PLAIN = Server(kind="dovecot")


@pytest.mark.parametrize(
    ("messages", "octets", "source", "destination", "seconds", "reason"),
    [
        (1000, 10**9, PLAIN, None, 0, ""),
        (1000, 2_500_000_000, GMAIL, PLAIN, 0, ""),  # what a day allows is there at once
        (1000, 2_500_000_001, GMAIL, PLAIN, DAY_S, "gmail gives one account 2500 MB a day"),
        (1000, 7_400_000_000, GMAIL, PLAIN, 2 * DAY_S, "gmail gives one account 2500 MB a day"),
        (1000, 2_400_000_000, None, GMAIL_IN, 4 * DAY_S, "gmail takes for one account 500 MB a day"),
        (4000, 10**6, PLAIN, EXCHANGE, 1000, "exchange-online takes 4 messages a second into one account"),
        (4000, 10**9, GMAIL, GMAIL_IN, DAY_S, "gmail takes for one account 500 MB a day"),
    ],
)
def test_a_user_cannot_take_less_than_its_servers_state(
    messages: int, octets: int, source: Server | None, destination: Server | None, seconds: float, reason: str
) -> None:
    bound = bound_of(messages, octets, source=source, destination=destination)
    assert (bound.seconds, bound.reason) == (seconds, reason)


def test_without_anything_stated_the_bench_is_the_floor_and_says_so() -> None:
    estimate = Estimate(users_at_once=10)
    for _ in range(100):
        estimate.add(3000, 10**6, bound_of(3000, 10**6, source=None, destination=PLAIN))
    assert estimate.seconds == pytest.approx(300_000 / MESSAGES_A_SECOND)
    assert estimate.reasons()[0].startswith("3000 messages/s")
    large = Estimate(users_at_once=10)
    large.add(1, 10 * int(OCTETS_A_SECOND), bound_of(1, 1, source=None, destination=None))
    assert large.seconds == pytest.approx(10)


def test_limits_of_accounts_count_for_the_longest_user_and_for_all_in_turn() -> None:
    estimate = Estimate(users_at_once=2)
    for messages in (400, 4000):
        estimate.add(messages, 0, bound_of(messages, 0, source=None, destination=EXCHANGE))
    assert estimate.seconds == 1000
    assert "exchange-online" in estimate.reasons()[0]
    for _ in range(10):
        estimate.add(4000, 0, bound_of(4000, 0, source=None, destination=EXCHANGE))
    assert estimate.seconds == (100 + 11 * 1000) / 2
