"""Users known to be big begin first; the others keep the order of the list."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from aimport import seams
from aimport.cli.biggest import biggest
from aimport.cli.work import _shown
from aimport.config import Settings
from aimport.growing import Growing
from aimport.journal import Journal, RunArguments
from aimport.limits import Reached
from aimport.plan import Request, make_plan
from aimport.results import UserResult

ARGUMENTS = RunArguments(argv=("import",), cwd="/")


def result(user: str, octets: int, found: int, imported: int) -> UserResult:
    skipped = {"unfinished": found - imported} if found > imported else {}
    status = "failed" if skipped else "done"
    return UserResult(user=user, status=status, found=found, imported=imported, skipped=skipped, octets=octets)  # type: ignore[arg-type]  # a Status


async def finished(root: Path, results: list[UserResult], job: str = "job") -> str:
    journal = Journal.create(root, job=job, arguments=ARGUMENTS)
    for each in results:
        await journal.begin_user(each.user, f"memory:{each.user}")
        await journal.finish_user(each.user, each)
    await journal.close(finished=True)
    return journal.run


async def test_a_new_run_knows_sizes_from_the_newest_of_the_same_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count(500_000)
    monkeypatch.setattr(seams, "now_us", lambda: next(hours) * 3_600_000_000)
    await finished(tmp_path, [result("ann", 999, 1, 1)])
    await finished(tmp_path, [result("ann", 10, 1, 1), result("bob", 500, 5, 5), result("none", 0, 0, 0)])
    await finished(tmp_path, [result("carl", 10_000, 1, 1)], job="another")
    journal = Journal.create(tmp_path, job="job", arguments=ARGUMENTS)
    try:
        assert biggest(tmp_path, journal) == {"bob": 500.0, "ann": 10.0}
        assert biggest(None, journal) == {}
    finally:
        await journal.close(finished=True)


async def test_a_resume_knows_what_is_left_of_its_own(tmp_path: Path) -> None:
    run = await finished(tmp_path, [result("ann", 1000, 101, 100), result("bob", 100, 1000, 10), result("c", 9, 9, 9)])
    journal = Journal.reopen(tmp_path, run)
    try:
        assert biggest(tmp_path, journal) == {"bob": 9900.0, "ann": 10.0}
    finally:
        await journal.close(finished=True)


async def test_only_so_many_are_kept_of_a_million(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimport.cli.biggest.USERS", 10)
    run = await finished(tmp_path, [result(f"u{number}", number + 1, 2, 1) for number in range(15)])
    with Journal.view(tmp_path, run) as journal:
        known = biggest(None, journal)
    assert len(known) == 10 and min(known.values()) == 6.0


def test_big_users_come_first_and_each_comes_once(tmp_path: Path) -> None:
    listed = tmp_path / "users"
    listed.write_text("".join(f"u{number}\n" for number in range(10)))
    request = Request(source="memory:%u", parent="", query=("ALL",), to="memory:new-%u", list_file=str(listed))
    plan = make_plan(request, Settings())

    def order(**known: float) -> str:
        return "".join(job.user[1] for job in Growing(plan, {"u3", "u9"}, known))

    assert order() == "01245678"
    assert order(u7=5.0, u2=50.0, u9=500.0, gone=7.0) == "27014568"


def test_what_a_host_allowed_is_told_for_the_next_run() -> None:
    fewer = _shown(Reached(host="mail:993", connections=7, most=20, refused=3))
    assert fewer.startswith("host mail:993: 7 of 20 connections")
    assert "--connections-per-host 7" in fewer and "connections_per_address = 7" in fewer
    again = _shown(Reached(host="mail:993", connections=20, most=20, refused=1))
    assert "next time" not in again
