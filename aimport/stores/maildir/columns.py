"""The messages of a folder in a few octets each: a million of them are their names and 24 MB. Pure.

    names, in the order of reading ──▶ one text, the place where each ends ──▶ rank of each ──▶ order ──▶ keys, hints

A name costs 80 octets as an object of its own, a dictionary of a million 300 MB (measured).
"""

from __future__ import annotations

import re
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from aimport.model import MessageKey
from aimport.stores.maildir.names import key_of, split_name

_ORDER: Final = re.compile(rb"(\d*)(?:\.M(\d+))?")
_LISTED: Final = 1 << 62
"""Ranks of messages with a UID lie below, all others above."""
_PARTS: Final = 64
"""Sorted one after the other, so that objects are there for so small a part of the messages only."""
_SAMPLE: Final = 4096
_SMALL: Final = 10_000

Hint = str
"""Where a file was when it was selected: `n` (new) or `c` (cur), then what follows the key in its name; "": look."""


class Columns:
    """Names of files in `new`, then of those in `cur`."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("Q")
        self._of_new = 0
        """So many lie in `new`."""

    def __len__(self) -> int:
        return len(self._ends)

    def extend(self, names: Iterable[str]) -> None:
        text, ended = self._text, self._ends.append
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            ended(len(text))

    def new_ends(self) -> None:
        """What comes next lies in `cur`."""
        self._of_new = len(self._ends)

    def name(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].decode("utf-8", "surrogateescape")

    def is_new(self, index: int) -> bool:
        return index < self._of_new

    def key(self, index: int) -> MessageKey:
        return key_of(split_name(self.name(index))[0])

    def hint(self, index: int) -> Hint:
        name = self.name(index)
        key = key_of(split_name(name)[0])
        if not name.startswith(key):  # the key of a name that is no UTF-8
            return ""
        return sys.intern(("n" if self.is_new(index) else "c") + name[len(key) :])

    def order(self, uids: Mapping[str, int]) -> array[int] | None:
        """Indexes by UID, the others behind them as Dovecot sorts names (`names.order`).

        None: it takes more to tell, for one base name is there twice, or a number is larger than any time.
        """
        ranks = self._ranks(uids)
        if ranks is None:
            return None
        order = array("Q")
        for part in _parts(ranks):
            found = sorted(part, key=ranks.__getitem__)
            if not self._sort_alike(found, ranks):
                return None
            order.extend(found)
        return order

    def _ranks(self, uids: Mapping[str, int]) -> array[int] | None:
        ranks = array("Q")
        text, matched = self._text, _ORDER.match
        at = 0
        for index, end in enumerate(self._ends):
            if uids and (uid := uids.get(self.key(index))) is not None:
                ranks.append(uid)
            else:
                seconds, micros = matched(text, at, end).groups(b"0")  # type: ignore[union-attr]  # it always matches
                rank = int(seconds or 0) << 21 | (number := int(micros))
                if rank >= _LISTED or number >= 1 << 21:
                    return None
                ranks.append(_LISTED | rank)
            at = end
        return ranks

    def _sort_alike(self, found: list[int], ranks: array[int]) -> bool:
        """Puts those of one rank into the order of their texts; False: two of them have one key."""
        first = 0
        for at in range(1, len(found) + 1):
            if at < len(found) and ranks[found[at]] == ranks[found[first]]:
                continue
            if at - first > 1:
                alike = sorted((self.key(index), index) for index in found[first:at])
                if any(one[0] == other[0] for one, other in pairwise(alike)):
                    return False
                found[first:at] = [index for _, index in alike]
            first = at
        return True


def _parts(ranks: array[int]) -> Iterator[Sequence[int]]:
    """Indexes in parts, of which each holds lower ranks than the next, and equal ones together."""
    if len(ranks) <= _SMALL:
        yield range(len(ranks))
        return
    sample = sorted(ranks[:: max(1, len(ranks) // _SAMPLE)])
    borders = sample[:: max(1, len(sample) // _PARTS)][1:]
    parts = [array("Q") for _ in range(len(borders) + 1)]
    for index, rank in enumerate(ranks):
        parts[bisect_right(borders, rank)].append(index)
    yield from parts
