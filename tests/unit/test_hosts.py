"""What is learnt of a host: connections, whether more help, whether it is there."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimport.hosts import DOUBTED_S, FAILURES, PROBE_S, WINDOW_S, Breaker, Ceiling, Gradient


class Host:
    """A host that holds so many connections, and a client that always wants one more."""

    def __init__(self, limit: int, most: int = 50) -> None:
        self.limit = limit
        self.ceiling = Ceiling(most)
        self.inside = 0
        self.refusals: list[float] = []

    def connect(self, now: float) -> None:
        while self.inside < self.ceiling.allowed:
            if self.inside < self.limit:
                self.inside += 1
                self.ceiling.held(self.inside, now)
            else:
                self.refusals.append(now)
                self.ceiling.refuse(self.inside, now)

    def wait(self, seconds: float, now: float) -> float:
        """Asks for more as often as may be."""
        for _ in range(int(seconds)):
            now += 1
            self.ceiling.grow(self.inside, now, worth=True)
            self.connect(now)
        return now


@pytest.mark.parametrize("limit", [1, 5, 49])
def test_a_limit_is_learnt_at_the_first_refusal_and_not_asked_about_for_a_long_while(limit: int) -> None:
    host = Host(limit)
    host.connect(0.0)
    assert host.ceiling.allowed == host.ceiling.learnt == limit
    now = host.wait(PROBE_S - 1, 0.0)
    assert host.refusals == [0.0]
    now = host.wait(10, now)
    assert len(host.refusals) == 2 and host.ceiling.allowed == limit
    host.wait(2 * PROBE_S - 20, now)
    assert len(host.refusals) == 2  # twice as long


def test_a_limit_that_is_raised_is_found_and_then_used() -> None:
    host = Host(5)
    host.connect(0.0)
    host.limit = 50
    host.wait(PROBE_S + 60 * WINDOW_S, 0.0)
    assert host.inside == host.ceiling.allowed == 50
    assert len(host.refusals) == 1 and host.ceiling.learnt == 0


def test_a_refusal_that_only_one_user_had_and_that_speaks_of_him_is_soon_doubted() -> None:
    ceiling = Ceiling(50)
    ceiling.held(1, 0.0)
    ceiling.refuse(1, 0.0, who="bob", sure=False)
    assert ceiling.allowed == 1
    ceiling.grow(1, DOUBTED_S + 1, worth=True)
    assert ceiling.allowed == 2
    ceiling.refuse(1, DOUBTED_S + 2, who="ann", sure=False)
    ceiling.grow(1, 10 * DOUBTED_S, worth=True)
    assert ceiling.allowed == 1  # two users: it is the host's


def test_a_host_that_holds_fewer_than_before_is_cut_and_slowly_gets_them_back() -> None:
    ceiling = Ceiling(40)
    ceiling.held(40, 0.0)
    for inside in (39, 38, 37):  # of one moment: sessions that have just ended still count there
        ceiling.refuse(inside, 1.0)
    assert ceiling.allowed == 39
    ceiling.refuse(20, 20.0)
    assert ceiling.allowed == 29  # three quarters
    now = 20.0
    for _ in range(20):
        now += WINDOW_S
        ceiling.grow(ceiling.allowed, now, worth=True)
    assert ceiling.allowed == 40


def test_answers_that_overtake_each_other_teach_the_same() -> None:
    ceiling = Ceiling(50)
    for inside in (1, 2, 3, 4):
        ceiling.held(inside, 0.0)
    ceiling.refuse(4, 0.1)  # of the sixth, before the OK of the fifth
    assert ceiling.allowed == 4
    ceiling.held(5, 0.2)
    assert ceiling.allowed == ceiling.learnt == 5


def test_a_host_of_which_others_have_every_connection_is_asked_for_half() -> None:
    ceiling = Ceiling(50)
    for _ in range(8):
        ceiling.refuse(0, 0.0)
    assert ceiling.allowed == 25 and ceiling.learnt == 0
    ceiling.held(1, 5.0)  # who asked again
    assert ceiling.allowed == 25 and ceiling.learnt == 0


def test_too_fast_means_half_once_a_window_and_one_more_after_each_quiet_one() -> None:
    ceiling = Ceiling(20)
    assert ceiling.slow_down(0.0) and not ceiling.slow_down(1.0)
    assert ceiling.allowed == 10
    ceiling.grow(10, 5.0, worth=True)
    ceiling.grow(9, 50.0, worth=True)  # nobody needs it
    ceiling.grow(10, 50.0, worth=False)
    assert ceiling.allowed == 10
    ceiling.grow(10, 50.0, worth=True)
    ceiling.grow(11, 51.0, worth=True)
    assert ceiling.allowed == 11


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["held", "refuse", "slow", "grow", "know"]), st.integers(0, 60), st.floats(0, 2 * PROBE_S)
        ),
        max_size=60,
    ),
    most=st.integers(1, 50),
)
@settings(deadline=None)
def test_whatever_happens_at_least_one_and_never_more_than_asked_for(
    events: list[tuple[str, int, float]], most: int
) -> None:
    ceiling = Ceiling(most)
    now = 0.0
    for event, number, later in events:
        now += later
        before = ceiling.allowed
        match event:
            case "held":
                ceiling.held(number, now)
            case "refuse":
                ceiling.refuse(number, now)
                assert ceiling.allowed <= before
            case "slow":
                ceiling.slow_down(now)
                assert ceiling.allowed <= before
            case "grow":
                ceiling.grow(number, now, worth=True)
                assert ceiling.allowed <= before + 1
            case _:
                ceiling.know(max(number, 1))
        assert 1 <= ceiling.allowed <= ceiling.most <= most


@pytest.mark.parametrize(
    ("latency_s", "octets", "worth"),
    [(0.1, 1000, True), (0.1, 1200, True), (0.2, 1000, False), (0.2, 1500, True), (0.12, 900, True), (0.2, 500, False)],
)
def test_one_more_is_worth_it_until_appends_take_longer_and_bring_no_more(
    latency_s: float, octets: int, worth: bool
) -> None:
    gradient = Gradient()
    assert gradient.worth_more()
    now = 0.0
    for inside, seconds, size in ((4, 0.1, 1000), (5, latency_s, octets)):
        for _ in range(10):
            now += 0.1
            gradient.note(inside, seconds, size, now)
    assert gradient.worth_more() is worth


def test_a_few_batches_say_nothing() -> None:
    gradient = Gradient()
    for number, inside in enumerate([4] * 10 + [5] * 4):
        gradient.note(inside, 0.1 if inside == 4 else 9.0, 1, number * 0.1)
    assert gradient.worth_more()


def failed(breaker: Breaker, users: str, now: float = 0.0) -> list[bool]:
    return [breaker.failed(user, "no answer", now) for user in users]


def test_a_host_is_down_when_several_users_have_failed_in_a_row() -> None:
    breaker = Breaker(1.0, 600.0)
    assert failed(breaker, "aaaaaaaa") == [False] * 8  # it may be his account
    assert not breaker.connected()
    assert failed(breaker, "abab" + "a") == [False] * (FAILURES - 1) + [True]
    assert breaker.is_down and not breaker.lets_in(0.9) and breaker.lets_in(1.0)
    assert breaker.connected()
    assert [breaker.is_down, breaker.lets_in(0.0)] == [False, True]


def test_one_at_a_time_looks_whether_it_is_back_at_growing_intervals() -> None:
    breaker = Breaker(1.0, 600.0)
    failed(breaker, "ababa")
    now, waits = 0.0, []
    for _ in range(9):
        began, now = now, breaker.next_try
        waits.append(now - began)
        assert breaker.lets_in(now)
        breaker.let_in()
        assert not breaker.lets_in(now + 1000)
        failed(breaker, "c", now)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert not breaker.given_up(599.0) and breaker.given_up(600.0)
    breaker.let_in()
    breaker.left()
    assert breaker.lets_in(breaker.next_try)


def test_what_was_begun_before_it_was_down_makes_nobody_wait_longer() -> None:
    breaker = Breaker(1.0, 600.0)
    failed(breaker, "ababa")
    failed(breaker, "cdefg", 0.5)
    assert breaker.next_try == 1.0


def test_a_server_that_says_when_to_come_back_is_not_asked_before() -> None:
    breaker = Breaker(1.0, 600.0)
    failed(breaker, "abab")
    breaker.failed("a", "UNAVAILABLE", 0.0, wait_s=30.0, jitter=0.5)
    assert breaker.next_try == 30.0


def test_the_first_refusal_of_many_that_come_at_once_is_enough() -> None:
    """Connections begun at once: some get in, the others are refused; their answers come in any order."""
    for order in range(8):
        answers = deque(["OK"] * 5 + ["NO"] * 3)
        answers.rotate(order)
        ceiling, inside = Ceiling(50), 0
        for answer in answers:
            if answer == "OK":
                inside += 1
                ceiling.held(inside, 0.0)
            else:
                ceiling.refuse(inside, 0.0)
        assert ceiling.allowed == 5, list(answers)
