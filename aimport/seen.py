"""Which of millions of things were met before: 12 octets of a hash each, in one table. Pure.

A set of digests takes 100 octets and more for each (measured: 1,000,000 users, 110 MiB); this takes 12 to 36. That
two of a million things have the same 96 bits happens once in 10^17 lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

_OCTETS: Final = 12
_FIRST: Final = 1 << 10
_FREE: Final = bytes(_OCTETS)


class Seen:
    """Open addressing with linear steps: a hash needs no better ones."""

    def __init__(self) -> None:
        self._slots = _FIRST
        self._table = bytearray(_FIRST * _OCTETS)
        self._count = 0

    def add(self, *what: str) -> bool:
        """Whether `what` is new."""
        digest = _digest(what)
        if not self._put(digest):
            return False
        self._count += 1
        if self._count * 4 > self._slots * 3:
            self._grow()
        return True

    def holds(self, *what: str) -> bool:
        """Whether `what` was added."""
        return self._find(_digest(what))[1]

    def _find(self, digest: bytes) -> tuple[int, bool]:
        """The slot of a digest, and whether it is in it."""
        table, last = self._table, self._slots - 1
        slot = int.from_bytes(digest[:8], "little") & last
        while (found := table[slot * _OCTETS : slot * _OCTETS + _OCTETS]) != _FREE:
            if found == digest:
                return slot, True
            slot = (slot + 1) & last
        return slot, False

    def _put(self, digest: bytes) -> bool:
        slot, there = self._find(digest)
        if not there:
            self._table[slot * _OCTETS : slot * _OCTETS + _OCTETS] = digest
        return not there

    def _grow(self) -> None:
        old = self._table
        self._slots *= 2
        self._table = bytearray(self._slots * _OCTETS)
        for at in range(0, len(old), _OCTETS):
            if (digest := bytes(old[at : at + _OCTETS])) != _FREE:
                self._put(digest)


def _digest(what: Sequence[str]) -> bytes:
    digest = blake2b("\0".join(what).encode("utf-8", "surrogateescape"), digest_size=_OCTETS).digest()
    return digest if digest != _FREE else b"\1" * _OCTETS
