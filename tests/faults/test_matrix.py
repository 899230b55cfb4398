"""Every row of the fault matrix has a test, found by reading the marks."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.faults.matrix import ALWAYS, ROWS, TOOLS

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Marked:
    """A test and what may keep it from running."""

    name: str
    rows: frozenset[str]
    may_not_run: str


def is_name(node: ast.AST, module: str, name: str) -> bool:
    """`module.name`"""
    if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
        return False
    return (node.value.id, node.attr) == (module, name)


def marks(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """`pytest.mark.NAME` anywhere below, with its texts."""
    for each in ast.walk(node):
        call = each if isinstance(each, ast.Call) else None
        mark = call.func if call is not None else each
        if isinstance(mark, ast.Attribute) and is_name(mark.value, "pytest", "mark"):
            texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant)] if call is not None else []
            yield mark.attr, [text for text in texts if isinstance(text, str)]


def marked_in(file: Path) -> Iterator[Marked]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    of_module = [
        mark
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "pytestmark"
        for mark in marks(node.value)
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
            continue
        own = [mark for decorator in node.decorator_list for mark in marks(decorator)] + of_module
        rows = frozenset(row for name, texts in own if name == "fault" for row in texts)
        reasons = {name for name, _ in own if name in ("slow", "skip", "skipif", "corpus", "cyrus", "courier")}
        reasons |= TOOLS & {arg.arg for arg in node.args.args}
        reasons |= {"pytest.skip" for each in ast.walk(node) if is_name(each, "pytest", "skip")}
        yield Marked(f"{file.relative_to(TESTS)}::{node.name}", rows, ", ".join(sorted(reasons)))


@cache
def by_row() -> dict[str, list[Marked]]:
    found: dict[str, list[Marked]] = defaultdict(list)
    for file in sorted(TESTS.rglob("test_*.py")):
        for test in marked_in(file):
            for row in test.rows:
                found[row].append(test)
    return found


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    found = by_row()
    assert set(found) - set(ROWS) == set()
    assert set(ROWS) - set(found) == set(), "rows without a test"


def test_rows_that_must_always_run_have_a_test_that_always_does() -> None:
    found = by_row()
    kept_back = {
        row: [f"{test.name} ({test.may_not_run})" for test in found[row]]
        for row in sorted(ALWAYS)
        if all(test.may_not_run for test in found[row])
    }
    assert kept_back == {}
