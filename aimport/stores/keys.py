"""Keys of messages that have a UID. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import overload

from aimport.model import MessageKey, Selection


class UidKeys(Sequence[MessageKey]):
    """`uidvalidity:uid` of ascending UIDs, made when asked for: 8 octets each instead of a text."""

    def __init__(self, validity: int, uids: array[int]) -> None:
        self.validity = validity
        self.uids = uids

    def __len__(self) -> int:
        return len(self.uids)

    @overload
    def __getitem__(self, index: int) -> MessageKey: ...
    @overload
    def __getitem__(self, index: slice) -> UidKeys: ...
    def __getitem__(self, index: int | slice) -> MessageKey | UidKeys:
        if isinstance(index, slice):
            return UidKeys(self.validity, self.uids[index])
        return self.key(self.uids[index])

    def __iter__(self) -> Iterator[MessageKey]:
        return map(self.key, self.uids)

    def __contains__(self, key: object) -> bool:
        return self.at(str(key)) is not None

    def at(self, key: str) -> int | None:
        """The index of a key, None when it is not there. Takes logarithmic time."""
        validity, _, uid = key.partition(":")
        if validity != str(self.validity) or not uid.isdecimal():
            return None
        at = bisect_left(self.uids, int(uid))
        return at if at < len(self.uids) and self.uids[at] == int(uid) else None

    def key(self, uid: int) -> MessageKey:
        return MessageKey(f"{self.validity}:{uid}")


def only(selection: Selection, places: Sequence[int]) -> Selection:
    """Some messages of a selection with `UidKeys`; places ascend."""
    keys = selection.keys
    assert isinstance(keys, UidKeys), "a selection belongs to the store that made it"
    return Selection(
        mailbox=selection.mailbox,
        keys=UidKeys(keys.validity, array("Q", [keys.uids[place] for place in places])),
        sizes=array("Q", [selection.sizes[place] for place in places]),
        unlisted=selection.unlisted,
    )
