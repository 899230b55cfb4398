"""Who may import what: ARCHITECTURE.md section 2, held by reading the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "aimport"
PURE = {"model", "dates", "flags", "names", "octets", "errors", "repair"}
WITHOUT_IO = {"imap.auth", "imap.fragments", "imap.responses", "imap.commands", "imap.answers", "reconcile"}
WITHOUT_IO |= {"stores.lazy"}
WITHOUT_IO |= {f"stores.dbox.{name}" for name in ("index", "log", "messages", "lists", "layout")}
WITHOUT_IO |= {f"lists.{name}" for name in ("rows", "forms", "imapsync", "special")}
WITHOUT_IO |= {"standing", "estimate", "plots", "page", "benchpage"}
WITHOUT_IO |= {f"query.{file.stem}" for file in (ROOT / "query").glob("*.py")} | {"stores.imap.search"}
ONLY_IN = {
    "aioimaplib": {"imap.client"},
    "click": {"cli"},
    "uvloop": {"runners"},
    "distributed": {"runners.cluster"},
    "dask": {"runners.cluster"},
    "stamina": {"pipeline", "verify", "cli"},
    "sqlite3": {"journal", "daily"},
    "rich": {"progress", "report", "cli"},
}
FORBIDDEN = {
    "stores": {"pipeline", "journal", "runners", "cli", "plan", "config"},
    "imap": {"stores", "pipeline", "journal", "runners", "cli", "plan", "config"},
    "account": {"pipeline", "copying", "stores", "imap", "runners", "cli", "plan", "config", "users", "location"},
    "copying": {"pipeline", "stores", "imap", "runners", "cli", "plan", "config", "users", "location"},
    "existing": {"pipeline", "copying", "stores", "imap", "runners", "cli", "plan", "config", "users", "location"},
    "auditing": {"pipeline", "copying", "stores", "imap", "runners", "cli", "plan", "config", "users", "location"},
    "pipeline": {"stores", "imap", "runners", "cli", "plan", "config", "users", "location"},
    "trial": {"stores", "imap", "runners", "cli", "plan", "config", "users", "location"},
    "benching": {"imap", "runners", "cli", "plan", "config", "users", "location"},
    "traces": {"pipeline", "stores", "imap", "runners", "cli", "plan", "config", "journal"},
    "page": {"pipeline", "stores", "imap", "runners", "cli", "plan", "config", "journal"},
    "checking": {"stores", "imap", "runners", "cli", "plan", "config", "users", "location"},
    "verify": {"stores", "imap", "runners", "cli", "plan", "config", "users", "location"},
    "runners": {"cli", "stores", "imap", "plan", "config"},
    "journal": {"pipeline", "stores", "imap", "runners", "cli"},
    "spool": {"pipeline", "stores", "imap", "runners", "cli", "plan", "config", "journal"},
    "plan": {"pipeline", "stores", "imap", "runners", "cli", "journal"},
    "config": {"pipeline", "stores", "imap", "runners", "cli", "journal"},
    "lists": {"pipeline", "stores", "imap", "runners", "cli", "journal", "plan"},
    "users": {"pipeline", "stores", "imap", "runners", "cli", "journal"},
    "location": {"pipeline", "stores", "imap", "runners", "cli", "journal"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(ROOT.rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(file.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules imported for use; those under TYPE_CHECKING are names only."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module.startswith("aimport"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = dict(modules())


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 15


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name: str) -> None:
    used = set(imports(MODULES[name]))
    ours = {module.removeprefix("aimport.") for module in used if module.startswith("aimport.")}
    for library, places in ONLY_IN.items():
        if any(within(module, library) for module in used):
            assert any(within(name, place) for place in places), f"{name} imports {library}"
    for place, below in FORBIDDEN.items():
        if within(name, place):
            assert not {module for module in ours for low in below if within(module, low)}
    if name in PURE | WITHOUT_IO:
        libraries = {module.split(".")[0] for module in used}
        assert not {"anyio", "asyncio", "socket", "os", "time", "pathlib", "ssl"} & libraries
    if name in PURE:
        assert {module.split(".")[0] for module in ours} <= PURE


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_command_line_prints(name: str) -> None:
    calls = [
        node
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls or within(name, "cli")
