"""The gate: a build that needs more is found, noise alone is not, and each side runs its own code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench import compare
from tests import servers

SMALL = ("--accounts", "2", "--messages", "150", "--rounds", "2", "--lanes", "imap-imap")


def a_build(folder: Path) -> Path:
    """A copy of the package."""
    shutil.copytree(servers.ROOT / "aimport", folder / "aimport", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize(
    ("pairs", "worse"),
    [
        ([(100, 100), (100, 101), (101, 99)], False),
        ([(100, 116), (100, 117), (120, 140)], True),
        ([(100, 114), (100, 114), (100, 114)], False),
        ([(100, 180), (100, 190), (100, 101)], False),  # two rounds that something else disturbed
        ([(100, 120), (130, 131), (130, 131)], False),  # A had one good round only
    ],
)
def test_b_is_worse_when_the_least_and_the_median_say_so(pairs: list[tuple[float, float]], worse: bool) -> None:
    compared = compare.Compared(what="a message", unit="µs of CPU", pairs=tuple(pairs))
    assert compared.worse(15) is worse
    assert ("WORSE by more than 15 %" in compared.row(15)) is worse


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("# started on Wed\n\n1234567,,instructions:u,1000,100.00,,\n", 1234567),
        ("\n<not supported>,,instructions:u,0,100.00,,\n", None),
        ("", None),
    ],
)
def test_instructions_are_read_where_perf_tells_them(text: str, counted: int | None) -> None:
    assert compare.instructions(text) == counted


def test_a_side_is_a_directory_or_a_revision_with_aimport_in_it(tmp_path: Path) -> None:
    ours = compare.side(f"{servers.ROOT} --users 4", tmp_path / "a")
    assert (ours.code, ours.words) == (servers.ROOT, ("--users", "4"))
    with pytest.raises(SystemExit, match="no package aimport"):
        compare.side(str(tmp_path), tmp_path / "b")
    with pytest.raises(SystemExit, match="neither a directory nor a revision"):
        compare.side("no-such-revision", tmp_path / "c")


def test_a_build_that_does_more_for_each_batch_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slowed = a_build(tmp_path / "slowed")
    file = slowed / "aimport" / "copying.py"
    line = "    prepared: list[Prepared] = []\n"
    busy = "    import time\n    until = time.thread_time() + 0.01\n    while time.thread_time() < until: pass\n"
    text = file.read_text()
    assert text.count(line) == 1
    file.write_text(text.replace(line, line + busy))
    assert compare.main([str(servers.ROOT), str(slowed), *SMALL, "--dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "B needs more than 15 % more than A: imap-imap, a message" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["slowed"]


@pytest.mark.slow
def test_the_same_build_is_not_worse_than_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With room for what other work on this machine adds to so small a run."""
    copied = a_build(tmp_path / "copied")
    assert compare.main([str(servers.ROOT), str(copied), *SMALL, "--limit", "100", "--dir", str(tmp_path)]) == 0
    assert "WORSE" not in capsys.readouterr().out
