"""On a busy machine a run stood still for ever: the writer thread held an intent and waited for another.

`queue.SimpleQueue.get(timeout)` of CPython 3.11 and 3.12 waits without limit when its time is over before it comes to
wait. Here the time is over almost at once, each time.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from pathlib import Path

import pytest

from aimport import journal as module
from aimport.journal import Journal, RunArguments


async def test_who_asks_is_answered_though_the_time_to_wait_for_others_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(journal: Journal, ops: Sequence[module._Op]) -> list[object]:
        return [None] * len(ops)

    monkeypatch.setattr(module, "GROUP_S", 1e-9)
    journal = Journal.create(tmp_path, job="", arguments=RunArguments(argv=(), cwd=""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_transact", nothing)
        for _ in range(20_000):
            waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
            journal._put(module._Op(lambda _: None, waiter))
            waiter.result(timeout=30)
    await journal.close(finished=True)
