"""Bags of numbers and sets of keys: as Counter and set would have it, at a fraction of the octets."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.keyset import KeySet, KnownKeys, Numbers

NEAR = st.integers(0, 12)  # so that ranges meet


@given(st.lists(st.tuples(st.sampled_from(("add", "remove")), NEAR), max_size=60))
def test_numbers_are_a_bag_whatever_comes_in_which_order(steps: list[tuple[str, int]]) -> None:
    numbers, model = Numbers(), Counter[int]()
    for what, number in steps:
        if what == "add":
            numbers.add(number)
            model[number] += 1
        elif model[number]:
            numbers.remove(number)
            model[number] -= 1
        else:
            with pytest.raises(KeyError):
                numbers.remove(number)
        held = +model
        assert list(numbers) == sorted(held)
        assert len(numbers) == held.total()
        assert numbers.distinct == len(held)
        assert numbers.lowest == min(held, default=None)
        assert [each in numbers for each in range(14)] == [each in held for each in range(14)]
    numbers.clear()
    assert not numbers
    assert 3 not in numbers


ODD_KEYS = (
    *("", ":", "1:", ":1", "1:07", "1:7", "01:7", "1:\u0663", "1:-1", "1:1:1", "a:7", "7", "1:+7"),
    "1:99999999999999999999",
)
KEYS = st.one_of(st.sampled_from(ODD_KEYS), NEAR.map("1:{}".format), NEAR.map("2:{}".format), st.text(max_size=4))


@pytest.mark.parametrize("kind", [KeySet, KnownKeys])
@given(st.lists(st.tuples(st.sampled_from(("add", "remove")), KEYS), max_size=60))
def test_keys_are_a_set_whatever_they_look_like(kind: type[KnownKeys], steps: list[tuple[str, str]]) -> None:
    keys, model = kind(), set[str]()
    for what, key in steps:
        if what == "add":
            assert keys.add(key) is (key not in model)
            model.add(key)
        elif key in model:
            keys.remove(key)
            model.remove(key)
        else:
            with pytest.raises(KeyError):
                keys.remove(key)
        if isinstance(keys, KeySet):
            assert sorted(keys) == sorted(model)
        assert len(keys) == len(model)
        assert all((each in keys) is (each in model) for each in ODD_KEYS)


def test_a_hundred_thousand_keys_in_order_take_less_than_a_kilobyte() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        keys = KeySet()
        for uid in range(100_000):
            keys.add(f"1700000000:{uid}")
        assert tracemalloc.get_traced_memory()[0] - before < 1500
    finally:
        tracemalloc.stop()
    assert len(keys) == 100_000


def test_a_key_that_is_no_uid_takes_few_octets_where_nobody_lists_it() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        keys = KnownKeys()
        for number in range(100_000):
            keys.add(f"{1_500_000_000 + number}.M{number}P1.host.example.org,S=1234")
        assert tracemalloc.get_traced_memory()[0] - before < 100_000 * 25
    finally:
        tracemalloc.stop()
    assert len(keys) == 100_000
    assert "1500000007.M7P1.host.example.org,S=1234" in keys
    assert "1500000007.M7P1.host.example.org,S=1235" not in keys


def test_every_second_key_takes_sixteen_octets() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        keys = KeySet()
        for uid in range(0, 100_000, 2):
            keys.add(f"1700000000:{uid}")
        assert tracemalloc.get_traced_memory()[0] - before < 50_000 * 20
    finally:
        tracemalloc.stop()
