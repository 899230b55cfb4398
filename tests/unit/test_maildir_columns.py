"""A folder of any size in columns: the same order, keys and hints as by objects, in a few octets a message."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

from aimport.model import Endpoint
from aimport.stores.lazy import Ordered
from aimport.stores.maildir import columns, disk
from aimport.stores.maildir.columns import Columns
from aimport.stores.maildir.names import Layout, key_of, order, split_name

NAMES = st.one_of(
    st.builds(
        "{}.M{}P{}.h{}".format,
        st.integers(0, 20),
        st.one_of(st.integers(0, 20), st.integers(0, 1 << 22)),
        st.integers(0, 2),
        st.sampled_from(["", ",S=5", ":2,", ":2,S", ":2,Fa", ":1,x", "é", "\udcff"]),
    ),
    st.text(st.characters(exclude_characters="/\0.", exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from(["007.x", "7.x", ".M5", "5.M", "1" * 30, "12345678901234567890.M1P1.h"]),
)


def of(new: list[str], cur: list[str]) -> Columns:
    found = Columns()
    found.extend(new)
    found.new_ends()
    found.extend(cur)
    return found


@given(st.lists(NAMES, max_size=30, unique=True), st.lists(NAMES, max_size=30, unique=True), st.data())
def test_the_order_is_that_of_uids_and_then_of_names(new: list[str], cur: list[str], data: st.DataObject) -> None:
    found = of(new, cur)
    names = [*new, *cur]
    keys = [key_of(split_name(name)[0]) for name in names]
    listed = data.draw(st.lists(st.sampled_from(keys), unique=True)) if keys else []
    uids: dict[str, int] = {key: number * 3 + 1 for number, key in enumerate(listed)}
    in_order = found.order(uids)
    if in_order is None:
        numbers = [order(key)[:2] for key in keys if key not in uids]
        assert len(set(keys)) < len(keys) or any(one >= 1 << 40 or other >= 1 << 21 for one, other in numbers)
        return

    def place(index: int) -> tuple[int, int, int, str]:
        uid = uids.get(keys[index])
        return (0, uid, 0, keys[index]) if uid is not None else (1, *order(keys[index])[:2], keys[index])

    assert list(in_order) == sorted(range(len(names)), key=place)
    assert list(Ordered(in_order, found.key)) == [keys[index] for index in in_order]
    for index, name in enumerate(names):
        assert (found.name(index), found.is_new(index)) == (name, index < len(new))
        hint = found.hint(index)
        assert hint == "" or keys[index] + hint[1:] == name


def test_the_order_of_many_is_that_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the parts that are sorted one after the other."""
    names = [f"{number * 7919 % 1000}.M{number % 3}P{number}.h:2,S" for number in range(5000)]
    found = of(names[:100], names[100:])
    expected = found.order({})
    monkeypatch.setattr(columns, "_SMALL", 10)
    assert found.order({}) == expected
    assert found.order({names[7].partition(":")[0]: 5}) is not None


@pytest.mark.parametrize("count", [20_000])
async def test_a_large_folder_takes_its_names_and_little_more(tmp_path: Path, count: int) -> None:
    for part in ("cur", "new"):
        (tmp_path / part).mkdir()
    (tmp_path / "new" / "1600000000.M1P1.host").touch()
    for number in range(count):
        if number % 500 == 0:
            first = tmp_path / "cur" / f"15000{number:05}.M{number}P1.host:2,S"
            first.touch()
        else:
            (tmp_path / "cur" / f"15000{number:05}.M{number}P1.host:2,S").hardlink_to(first)
    folder = disk.open_folder(Layout.of(Endpoint(scheme="maildir", path=str(tmp_path))), "")
    try:
        tracemalloc.start()
        found = await to_thread.run_sync(disk.gather, folder)
        assert found is not None
        in_order = found.order({})
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    finally:
        folder.close()
    assert in_order is not None
    keys = Ordered(in_order, found.key)
    assert (len(keys), keys[0], keys[-1]) == (count + 1, "1500000000.M0P1.host", "1600000000.M1P1.host")
    assert list(keys) == sorted(keys)
    # The names have 28 octets, their text grows by an eighth; a thread and its loop take a megabyte.
    assert held < 60 * count + (1 << 20)
