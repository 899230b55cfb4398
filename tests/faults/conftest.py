"""What the tests of the fault matrix share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forks import Forks, run_forks
from tests.faults.jobs import in_memory


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The command by fork; one for all tests of a process."""
    with run_forks() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place."""
    with in_memory(tmp_path) as place:
        yield place
