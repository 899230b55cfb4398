"""Numbers and message keys by the million: what comes in order costs next to nothing. Pure.

A lane commits UIDs as they ascend, so all that is done is one range, or a few. In a `set` each key of ten million
costs 100 octets; here each range costs 16, and each key that is no UID 18 where nobody asks which they are.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Final


class Numbers(Collection[int]):
    """A bag of numbers (0 to 2**64 - 1), kept as ranges; what is in it more than once is counted apart."""

    __slots__ = ("_first", "_last", "_more", "distinct")

    def __init__(self) -> None:
        self._first = array("Q")
        self._last = array("Q")
        """Ascending; range by range, with a gap between each and the next."""
        self._more: Counter[int] = Counter()
        """How often beyond the first time."""
        self.distinct = 0

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        at = bisect_right(self._first, number) - 1
        return at >= 0 and number <= self._last[at]

    def __iter__(self) -> Iterator[int]:
        """Each once, ascending."""
        for first, last in zip(self._first, self._last, strict=True):
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return self.distinct + self._more.total()

    @property
    def lowest(self) -> int | None:
        return self._first[0] if self._first else None

    def add(self, number: int) -> None:
        first, last = self._first, self._last
        at = bisect_right(first, number)  # the next range
        if at and number <= last[at - 1]:
            self._more[number] += 1
            return
        self.distinct += 1
        behind = bool(at) and last[at - 1] + 1 == number
        before = at < len(first) and number + 1 == first[at]
        if behind and before:
            last[at - 1] = last[at]
            del first[at], last[at]
        elif behind:
            last[at - 1] = number
        elif before:
            first[at] = number
        else:
            first.insert(at, number)
            last.insert(at, number)

    def remove(self, number: int) -> None:
        """Once.

        Raises:
            KeyError: it is not there.
        """
        if number not in self:
            raise KeyError(number)
        if self._more[number]:
            self._more[number] -= 1
            return
        del self._more[number]
        self.distinct -= 1
        first, last = self._first, self._last
        at = bisect_right(first, number) - 1
        if first[at] == last[at]:
            del first[at], last[at]
        elif number == first[at]:
            first[at] += 1
        elif number == last[at]:
            last[at] -= 1
        else:
            first.insert(at + 1, number + 1)
            last.insert(at, number - 1)

    def clear(self) -> None:
        del self._first[:], self._last[:]
        self._more.clear()
        self.distinct = 0


class Spans:
    """Numbers from and to, joined where they touch; whether one is among them takes logarithmic time."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted(spans):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(last, self._lasts[-1])
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._lasts, number)
        return at < len(self._firsts) and self._firsts[at] <= number


class Marks:
    """Texts of which is only known that they are there, by 128 bits of a hash: two of 10**12 alike are no chance."""

    __slots__ = ("_buckets", "_count")
    _OCTETS: Final = 16

    def __init__(self) -> None:
        self._buckets: dict[int, bytearray] = {}
        """Marks behind one another, by their first 12 bits."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: str) -> bool:
        return self._find(text)[2] >= 0

    def add(self, text: str) -> None:
        bucket, mark, at = self._find(text)
        if at < 0:
            bucket += mark
            self._count += 1

    def remove(self, text: str) -> None:
        bucket, _, at = self._find(text)
        if at < 0:
            raise KeyError(text)
        del bucket[at : at + self._OCTETS]
        self._count -= 1

    def _find(self, text: str) -> tuple[bytearray, bytes, int]:
        """Where a text would be: its bucket, its mark, the place of that there (-1: it is not)."""
        mark = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=self._OCTETS).digest()
        bucket = self._buckets.setdefault(mark[0] << 4 | mark[1] >> 4, bytearray())
        at = bucket.find(mark)
        while at % self._OCTETS and at >= 0:
            at = bucket.find(mark, at + 1)
        return bucket, mark, at


class KnownKeys:
    """A set of message keys that are asked for and never listed; `uidvalidity:uid` is kept as a number."""

    __slots__ = ("_numbers", "_texts")

    def __init__(self) -> None:
        self._numbers: dict[str, Numbers] = {}
        """By what stands before the last colon."""
        self._texts: set[str] | Marks = Marks()

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        place, colon, number = key.rpartition(":")
        if not colon or place not in self._numbers or not _is_number(number):
            return key in self._texts
        return int(number) in self._numbers[place]

    def __len__(self) -> int:
        return len(self._texts) + sum(len(numbers) for numbers in self._numbers.values())

    def add(self, key: str) -> bool:
        """False: it was there before."""
        if key in self:
            return False
        place, colon, number = key.rpartition(":")
        if not colon or not _is_number(number):
            self._texts.add(key)
        else:
            if place not in self._numbers:
                self._numbers[place] = Numbers()
            self._numbers[place].add(int(number))
        return True

    def remove(self, key: str) -> None:
        """
        Raises:
            KeyError: it is not there.
        """
        place, colon, number = key.rpartition(":")
        if not colon or not _is_number(number):
            self._texts.remove(key)
        else:
            self._numbers[place].remove(int(number))


class KeySet(KnownKeys, Collection[str]):
    """The same, and they are listed: a key that is no UID takes what it takes in a set."""

    __slots__ = ("_listed",)

    def __init__(self) -> None:
        super().__init__()
        self._texts = self._listed = set[str]()

    def __iter__(self) -> Iterator[str]:
        for place, numbers in self._numbers.items():
            for number in numbers:
                yield f"{place}:{number}"
        yield from self._listed


def _is_number(text: str) -> bool:
    """Whether `text` is a number in the one way that it is written back."""
    return text.isdecimal() and text.isascii() and len(text) < 19 and (text[0] != "0" or text == "0")
