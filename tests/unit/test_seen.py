"""What was met before is known, by the million, in little memory."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from aimport.seen import Seen


@given(st.lists(st.lists(st.text(max_size=2), max_size=3)))
def test_it_knows_what_a_set_knows(things: list[list[str]]) -> None:
    seen, known = Seen(), set()
    for what in things:
        joined = "\0".join(what)
        assert seen.add(*what) == (joined not in known)
        known.add(joined)


def test_twenty_thousand_take_less_than_a_megabyte() -> None:
    tracemalloc.start()
    seen = Seen()
    for number in range(20_000):
        assert seen.add("user", f"user{number}@example.org")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not seen.add("user", "user19999@example.org")
    assert peak < 1024 * 1024
