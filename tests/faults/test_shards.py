"""Kill -9 at every step of a run in chunks, whose records are in shards; processes that die for themselves are in
`tests/e2e/test_workers.py`.

Invariant: as in `test_kills`, `Job.check_same`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.forks import Forks
from tests.faults.jobs import Job
from tests.faults.steps import CHANGES, Steps
from tests.faults.test_kills import kill_at_each
from tests.faults.test_signals import IN_CHUNKS

pytestmark = pytest.mark.timeout(400)


@pytest.mark.fault("F1")
def test_a_kill_at_records_of_a_run_in_shards_loses_and_doubles_nothing(forks: Forks, folder: Path) -> None:
    job = Job(folder=folder, then=IN_CHUNKS)
    steps = Steps(ops=("commit",), at=0, deed="kill", below=str(job.journal))
    assert kill_at_each(job, forks, steps, every=2) > 40
    assert list(job.journal.glob("2*/shards/*"))


@pytest.mark.slow
@pytest.mark.fault("F1")
def test_a_kill_at_any_change_of_any_file_of_a_run_in_shards_loses_and_doubles_nothing(
    forks: Forks, folder: Path
) -> None:
    job = Job(folder=folder, then=IN_CHUNKS)
    assert kill_at_each(job, forks, Steps(ops=tuple(CHANGES), at=0, deed="kill", below=str(folder))) > 100
