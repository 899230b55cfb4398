"""Ten trees of a real Dovecot, read exactly: folders, and of every message all that Dovecot itself told of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.dbox import PLACES, TREES, listing, recorded, unpacked
from tests.mail import tree

PARENTS: Final = {"NewName", "Only", "With Space", "日本語"}
"""Folders of the larger trees that hold no messages (`\\NoSelect`)."""


@pytest.mark.parametrize("name", PLACES)
async def test_a_tree_is_read_as_dovecot_reads_it_and_left_as_it_was(name: str, tmp_path: Path) -> None:
    endpoint = unpacked(name, tmp_path)
    before = tree(tmp_path)
    seen = await listing(endpoint)
    assert (seen.failed, seen.unreadable, seen.notes) == ({}, [], [])
    expected = recorded(name)
    known = {(row.mailbox, row.uid): row.saved for row in expected}
    rows = [replace(row, saved=row.saved if known.get((row.mailbox, row.uid)) else None) for row in seen.rows]
    assert sorted(rows, key=lambda row: (row.mailbox, row.uid)) == expected
    folders = json.loads((TREES / f"{name}.folders.json").read_text(encoding="utf-8"))["mailboxes"]
    assert sorted(seen.mailboxes) == sorted(set(folders) - PARENTS)
    assert tree(tmp_path) == before
