"""Keys of messages that have a UID. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import lt
from typing import overload

from aimport.model import MessageKey, Selection


class UidKeys(Sequence[MessageKey]):
    """`uidvalidity:uid`, made when asked for: 8 octets each instead of a text.

    UIDs ascend, but for a selection in another order than the stored one (`ascend` is False).
    """

    def __init__(self, validity: int, uids: array[int], *, ascend: bool = True) -> None:
        self.validity = validity
        self.uids = uids
        self.ascend = ascend

    def __len__(self) -> int:
        return len(self.uids)

    @overload
    def __getitem__(self, index: int) -> MessageKey: ...
    @overload
    def __getitem__(self, index: slice) -> UidKeys: ...
    def __getitem__(self, index: int | slice) -> MessageKey | UidKeys:
        if isinstance(index, slice):
            return UidKeys(self.validity, self.uids[index], ascend=self.ascend)
        return self.key(self.uids[index])

    def __iter__(self) -> Iterator[MessageKey]:
        return map(self.key, self.uids)

    def __contains__(self, key: object) -> bool:
        return self.at(str(key)) is not None

    def at(self, key: str) -> int | None:
        """The index of a key, None when it is not there. Takes logarithmic time where UIDs ascend."""
        validity, _, uid = key.partition(":")
        if validity != str(self.validity) or not uid.isdecimal():
            return None
        if not self.ascend:
            return self.uids.index(int(uid)) if int(uid) in self.uids else None
        at = bisect_left(self.uids, int(uid))
        return at if at < len(self.uids) and self.uids[at] == int(uid) else None

    def key(self, uid: int) -> MessageKey:
        return MessageKey(f"{self.validity}:{uid}")


def only(selection: Selection, places: Sequence[int]) -> Selection:
    """Some messages of a selection with `UidKeys`, in this order."""
    keys = selection.keys
    assert isinstance(keys, UidKeys), "a selection belongs to the store that made it"
    uids = array("Q", [keys.uids[place] for place in places])
    return Selection(
        mailbox=selection.mailbox,
        keys=UidKeys(keys.validity, uids, ascend=all(map(lt, uids, uids[1:]))),
        sizes=array("Q", [selection.sizes[place] for place in places]),
        unlisted=selection.unlisted,
        position=selection.position,
    )
