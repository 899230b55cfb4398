"""What is shown stays small, true and harmless."""

from __future__ import annotations

from aimport.progress import choose, duration, line, rows, show_lines, size
from aimport.tally import Counters


def counters(users: int) -> Counters:
    now = 0.0
    shown = Counters(clock=lambda: now)
    for number in range(users):
        shown.user_began(f"user{number}", f"host{number % 5}:143")
        shown.user_found(f"user{number}", 100 + number)
        shown.settled(f"user{number}", 50, 5_000)
    now = 10.0
    return shown


def test_there_are_never_more_than_twelve_rows() -> None:
    assert len(rows(counters(1000))) == 12


def test_the_slowest_users_are_those_with_most_left() -> None:
    shown = rows(counters(30))
    assert [row.strip() for row in shown[4:]] == [f"user{number}: 50/{100 + number}" for number in range(29, 21, -1)]


def test_the_line_has_rate_and_estimate() -> None:
    assert line(counters(2)) == (
        "0 users done, 2 running, 100/201 messages, 9.8 KiB, 10 messages/s, ETA 10 s for users begun"
    )


def test_a_user_who_ended_is_not_shown() -> None:
    shown = counters(1)
    shown.user_ended("user0", failed=True)
    assert len(rows(shown)) == 2
    assert "1 users failed" in line(shown)


def test_names_cannot_steer_the_terminal() -> None:
    shown = counters(0)
    shown.user_began("\x1b[2Jevil\n", "h")
    assert not [row for row in rows(shown) if "\x1b" in row or "\n" in row]


def test_sizes_and_durations_are_for_people() -> None:
    assert [size(octets) for octets in (0, 1023, 1536, 5 << 30, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]
    assert [duration(seconds) for seconds in (0.4, 59, 200, 3723)] == ["0 s", "59 s", "3:20", "1:02:03"]


def test_elsewhere_than_on_a_terminal_lines_are_shown() -> None:
    assert choose("plain") is show_lines
    assert choose("none") is None
