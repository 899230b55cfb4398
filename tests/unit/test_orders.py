"""Orders of a driver: heard by its workers, and by no others; their silence means to stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from aimport import orders
from aimport.orders import Orders, Word
from tests.unit.test_journal import create


async def test_each_word_is_heard_by_who_has_the_token(tmp_path: Path) -> None:
    journal = create(tmp_path)
    given = Orders(tmp_path / journal.run)
    for word in get_args(Word):
        given.give(word)
        assert orders.ask(tmp_path / journal.run, given.token) == word
    given.close()
    await journal.close(finished=False)


async def test_who_belongs_to_another_driver_stops(tmp_path: Path) -> None:
    """The run was resumed elsewhere while a worker of the first driver was out of reach."""
    journal = create(tmp_path)
    directory = tmp_path / journal.run
    first = Orders(directory)
    second = Orders(directory)
    assert orders.ask(directory, first.token) == "stop"
    assert orders.ask(directory, second.token) == "work"
    for each in (first, second):
        each.close()
    await journal.close(finished=False)


DRIVER = """
import sys
from pathlib import Path
from aimport.journal import Journal, RunArguments
from aimport.orders import Orders
journal = Journal.create(Path(sys.argv[1]), job="job", arguments=RunArguments(argv=(), cwd=""))
print(journal.run, Orders(journal.directory).token, flush=True)
sys.stdin.read()
"""


def test_a_worker_whose_driver_was_killed_stops(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        run, token = driver.stdout.readline().split()
        assert orders.ask(tmp_path / run, token) == "work"
        driver.kill()
        driver.wait()
    assert orders.ask(tmp_path / run, token) == "stop"


@pytest.mark.parametrize("damage", ["", "x", "00" * 8 + " work     00000000", "\xff" * 40])
async def test_orders_that_do_not_read_mean_to_stop(damage: str, tmp_path: Path) -> None:
    journal = create(tmp_path)
    directory = tmp_path / journal.run
    given = Orders(directory)
    (directory / orders.ORDERS).write_bytes(damage.encode("latin-1"))
    assert orders.ask(directory, given.token) == "stop"
    given.close()
    await journal.close(finished=False)


def test_a_run_that_is_gone_means_to_stop(tmp_path: Path) -> None:
    assert orders.ask(tmp_path / "gone", "token") == "stop"
