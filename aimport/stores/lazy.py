"""Sequences of many messages that are made when they are asked for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

T_co = TypeVar("T_co", covariant=True)


class Ordered(Sequence[T_co]):
    """Something of each message in order: `make` takes what `order` holds of it."""

    def __init__(self, order: Sequence[int], make: Callable[[int], T_co]) -> None:
        self._order = order
        self._make = make

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> list[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | list[T_co]:
        if isinstance(index, slice):
            return [self._make(each) for each in self._order[index]]
        return self._make(self._order[index])

    def __iter__(self) -> Iterator[T_co]:
        return map(self._make, self._order)


class Measured(Sequence[int]):
    """Sizes that files must be read for, all of them when the first is asked for: an import never asks."""

    def __init__(self, count: int, measure: Callable[[], Sequence[int]]) -> None:
        self._count = count
        self._measure = measure
        self._known: Sequence[int] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        return self._all()[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    def _all(self) -> Sequence[int]:
        if self._known is None:
            self._known = self._measure()
        return self._known
