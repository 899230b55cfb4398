"""Which users are known to be big, from this run or from one before it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from aimport.errors import JournalError
from aimport.journal import Journal, runs
from aimport.results import UserResult

USERS: Final = 1000
"""So many are begun by their size, the others as they are listed."""


def biggest(root: Path | None, journal: Journal) -> dict[str, float]:
    """The biggest users with their octets, as far as this run, else the newest of the same job before it, knows."""
    known = _first(_left(journal.results()))
    if known or root is None:
        return known
    for info in runs(root):
        if info.job == journal.job and info.run != journal.run and not info.damage:
            with suppress(JournalError), Journal.view(root, info.run) as before:
                return _first(_all(before.results()))
    return {}


def _first(users: Iterator[tuple[float, str]]) -> dict[str, float]:
    return {user: octets for octets, user in heapq.nlargest(USERS, users)}


def _left(results: Iterable[UserResult]) -> Iterator[tuple[float, str]]:
    """What users still have to bring, as far as their messages are of one size."""
    for each in results:
        left = each.found - each.imported - each.present
        if left > 0 and each.octets:
            yield each.octets / each.imported * left, each.user


def _all(results: Iterable[UserResult]) -> Iterator[tuple[float, str]]:
    return ((float(each.octets), each.user) for each in results if each.octets)
