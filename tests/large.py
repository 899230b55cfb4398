"""Bodies that come in pieces, for tests of those who take them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise

from hypothesis import strategies as st

from tests.strategies import bodies


class Chunks:
    """A `LargeBody` of these pieces; `failing`: an OSError stands before the last of them."""

    def __init__(self, pieces: Sequence[bytes], *, failing: int = 0) -> None:
        self.closed = False
        self._pieces = pieces
        self._failing = failing

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def pieces(self) -> Iterator[bytes]:
        assert not self.closed
        yield from self._pieces[:-1]
        if self._failing:
            raise OSError(self._failing, os.strerror(self._failing), "the source")
        yield from self._pieces[-1:]

    def close(self) -> None:
        self.closed = True


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pieces: list[bytes] = []

    def write(self, piece: bytes, /) -> None:
        assert piece
        self.pieces.append(piece)

    def whole(self) -> bytes:
        octets = b"".join(self.pieces)
        assert len(octets) == self.size
        return octets


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A body, and the same in pieces, of which some may be empty."""
    body = draw(bodies)
    cuts = draw(st.lists(st.integers(0, len(body)), max_size=12))
    return body, [body[low:high] for low, high in pairwise([0, *sorted(cuts), len(body)])]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
