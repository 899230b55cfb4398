"""The search fixture: a Maildir of 14 messages, and what Dovecot 2.3.19's doveadm selected from it for 305 queries.

`queries.tsv`: the words as JSON, `fixed` or `relative` (hangs on the time), `ok` or `error`, doveadm's
exit code, the base names selected. `mtimes.tsv`: received dates. Facts that were measured.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from aimport.interfaces import Source
from aimport.query.query import Query

FOLDER: Final = Path(__file__).parent / "fixtures" / "search"
TAKEN_AT: Final = 1795467800
"""Seconds since 1970 when the relative rows were measured."""
REFUSED_BY_FETCH: Final = {("MAILBOX", "Arch.2023"): frozenset({"1500000012.a01.fx"})}
"""Names a mailbox with the store's own separator, which `doveadm fetch` refused in a namespace that has another."""
KEPT_BY_INBOX: Final = 10
"""Messages m01 to m10; their UIDs are 1 to 10."""


@dataclass(frozen=True, slots=True)
class Row:
    """One query and its result."""

    words: tuple[str, ...]
    refused: bool
    selected: frozenset[str]

    def __str__(self) -> str:
        return " ".join(self.words)


@cache
def rows() -> tuple[Row, ...]:
    """All 305."""
    found = []
    for line in (FOLDER / "queries.tsv").read_text(encoding="utf-8").split("\n")[1:]:
        if line:
            words, _, status, _, names = line.split("\t")
            key = tuple(json.loads(words))
            selected = REFUSED_BY_FETCH.get(key, frozenset(names.split()))
            found.append(Row(key, status == "error" and key not in REFUSED_BY_FETCH, selected))
    return tuple(found)


def make_maildir(root: Path) -> Path:
    """The fixture below `root`, with its dates."""
    shutil.copytree(FOLDER / "Maildir", root)
    for folder in (root, *root.glob(".*")):
        for name in ("cur", "new", "tmp"):
            (folder / name).mkdir(exist_ok=True)
    for line in (FOLDER / "mtimes.tsv").read_text(encoding="utf-8").split("\n")[1:]:
        if line:
            path, seconds = line.split("\t")
            os.utime(root / path, (int(seconds), int(seconds)))
    return root


def base(name: str) -> str:
    """A key without the letters of its flags."""
    return name.partition(":2,")[0]


async def select_all(source: Source, query: Query) -> set[str]:
    """Keys of all messages that are selected, as an import would."""
    found: set[str] = set()
    async with source.open() as session:
        for mailbox in await session.list_mailboxes():
            if query.selects(mailbox):
                found |= set((await session.select(mailbox, query.of(mailbox))).keys)
    return found
