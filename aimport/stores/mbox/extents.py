"""The messages of one mbox in a few octets each. Pure."""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Iterable

from aimport.model import MessageKey
from aimport.stores.mbox.scan import Extent


class Extents:
    """Where the messages lie: 22 octets each, so that a million of them are 22 MB."""

    def __init__(self, found: Iterable[Extent] = ()) -> None:
        self.starts = array("Q")
        self.stops = array("Q")
        self.identities = array("I")
        self.lines = array("H")
        """Octets of the From_ lines."""
        self.cut = False
        """The last message is not whole."""
        for extent in found:
            self.add(extent)

    def add(self, extent: Extent) -> None:
        self.starts.append(extent.start)
        self.stops.append(extent.stop)
        self.identities.append(extent.identity)
        self.lines.append(extent.content - extent.start)
        self.cut = extent.cut

    def __len__(self) -> int:
        return len(self.starts)

    def key(self, index: int) -> MessageKey:
        """The place and what lies there: after the file was written anew a key is not taken for another message's."""
        return MessageKey(f"{self.starts[index]}-{self.identities[index]:08x}")

    def size(self, index: int) -> int:
        return self.stops[index] - self.starts[index] - self.lines[index]


def align(old: Extents, new: Extents) -> array[int]:
    """For each message of `old` its index in `new`, -1 when it is there no more.

    Messages of one identity are matched in order, those of the same size first.
    """
    matched = array("q", [-1]) * len(old)
    taken = bytearray(len(new))
    for with_size in (True, False):
        free: dict[tuple[int, int], deque[int]] = defaultdict(deque)
        for at, identity in enumerate(new.identities):
            if not taken[at]:
                free[identity, new.size(at) if with_size else 0].append(at)
        for index, identity in enumerate(old.identities):
            same = free.get((identity, old.size(index) if with_size else 0))
            if same and matched[index] < 0:
                matched[index] = at = same.popleft()
                taken[at] = 1
    return matched
