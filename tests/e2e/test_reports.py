"""`aimport report` as it is typed: several runs as one, and the page for a browser."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from aimport import sample
from tests import mail
from tests.pages import looked_at

MESSAGES = 12
BAD = "<b>bob\"'&"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A journal with two runs of one job: in the first one of the two users has no mail yet."""
    root = tmp_path_factory.mktemp("reports")
    (root / "users").write_text(f"ann\n{BAD}\n")
    names = []
    for user in ("ann", BAD):
        sample.write_maildir(root / "from" / user, sample.account(user, seed=5, messages=MESSAGES))
        done = mail.aimport(
            "import", "-F", root / "users", "--to", f"maildir:{root}/to/%u", "--journal", root / "journal", "--json",
            "--again", "--skip-existing", f"maildir:{root}/from/%u", "", "ALL",
        )  # fmt: skip
        names.append(json.loads(done.stdout)["run"])
    return root / "journal", names


def report(*words: str | Path, code: int = 0) -> tuple[str, str]:
    done = mail.aimport("report", *words)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_runs_are_one_report_with_each_user_once(runs: tuple[Path, list[str]]) -> None:
    """Whatever their order, and however often they are named."""
    journal, (first, second) = runs
    told = json.loads(report("--journal", journal, "--json", second, first, second)[0])
    ann, bob = told["users"]
    assert (ann["user"], ann["status"], ann["imported"], ann["present"], ann["runs"]) == ("ann", "done", 12, 12, 2)
    assert (bob["user"], bob["status"], bob["imported"], bob["error"]) == (BAD, "done", MESSAGES, None)
    assert told["totals"]["found"] == told["totals"]["imported"] + told["totals"]["present"] == 3 * MESSAGES
    assert told["exit"] == 0
    batches = {each["stage"]: each["batches"] for each in told["stages"]["stages"]}
    assert batches["read"] >= 2  # of both runs
    assert json.loads(report("--journal", journal, "--json", first)[0])["exit"] == 75
    lines = report("--journal", journal, first, second)[0].splitlines()
    assert len([line for line in lines if line.startswith("ann ")]) == 1
    assert lines[-1].startswith("2 users")


@pytest.mark.parametrize("which", [slice(0, 1), slice(0, 2)])
def test_the_page_shows_what_the_report_says(runs: tuple[Path, list[str]], which: slice, tmp_path: Path) -> None:
    journal, names = runs
    file = tmp_path / "page.html"
    report("--journal", journal, "--html", file, *names[which])
    page = file.read_text(encoding="utf-8")
    seen = looked_at(page)
    assert not seen.acting
    assert BAD in seen.words
    assert ("No such file" in page) == (which == slice(0, 1))
    assert {"Throughput over the run", "Where the time went"} <= set(seen.words)
    assert all(any(name in word for word in seen.words) for name in names[which])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_page_takes_the_place_of_a_file_and_of_nothing_else(runs: tuple[Path, list[str]], tmp_path: Path) -> None:
    journal, [first, _] = runs
    file = tmp_path / "page.html"
    file.write_text("old")
    report("--journal", journal, "--html", file, first)
    assert file.read_text().startswith("<!DOCTYPE html>")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "folder/closed").mkdir()
    for name, why in (("folder", "a directory"), ("link", "no regular file"), ("none/x", "No such file")):
        said = report("--journal", journal, "--html", tmp_path / name, first, code=64)[1]
        assert why in said, name
        assert str(tmp_path / name) in said
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "page.html"]
