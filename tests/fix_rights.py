"""Accounts with rights of their own: directories that other users may reach, and what works with their rights.

A test that needs root is skipped where it is not run as root, and says so.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimport.model import Rights
from aimport.stores import Stores

BOB = Rights(uid=23_001, gid=24_001, groups=(24_001,))
EVE = Rights(uid=23_002, gid=24_002, groups=(24_002,))


@pytest.fixture(scope="session")
def as_root() -> None:
    """Skips where this process cannot give up its rights."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to work with the rights of other users")


@pytest.fixture(scope="session")
def rights_stores(as_root: None) -> Stores:
    """Stores whose children serve many tests."""
    return Stores()


@pytest.fixture
def reachable(as_root: None) -> Iterator[Path]:
    """A directory that every user may enter, as pytest's own may not be."""
    path = Path(tempfile.mkdtemp(prefix="aimport-rights-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def give(path: Path, rights: Rights) -> None:
    """Makes all that lies there the user's own, links themselves and not what they lead to."""
    for directory, _, names in os.walk(path):
        for each in (directory, *(os.path.join(directory, name) for name in names)):
            os.chown(each, rights.uid, rights.gid, follow_symlinks=False)
