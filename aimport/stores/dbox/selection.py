"""What is selected of one folder of dbox: the rows of its index, and what no index has. Pure but for sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aimport.model import MessageKey, Selection
from aimport.stores.dbox.index import Table
from aimport.stores.dbox.storage import Scanned
from aimport.stores.lazy import Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """A message that no index names: `uid` is that of its file (sdbox), `scanned` where it is (mdbox)."""

    key: MessageKey
    uid: int = 0
    scanned: Scanned | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DboxSelection(Selection):
    """With the index as it was and, row by row, what is in it, then what is in no index.

    `rows` stands beside `keys`.
    """

    rows: Sequence[int]
    table: Table
    signature: tuple[int, ...]
    """Of the index that `table` was read from."""
    directory: str
    extras: Sequence[Extra] = ()

    @property
    def guid(self) -> str:
        """Of the folder, in hex; "" when it is not known."""
        for name in ("dbox-hdr", "mdbox-hdr"):
            if (extension := self.table.extension(name)) is not None:
                return bytes(extension.header[4:20]).hex()
        return ""

    def only(self, places: Sequence[int]) -> DboxSelection:
        """Those at some places of the keys."""
        sizes = self.sizes
        return replace(
            self,
            keys=[self.keys[place] for place in places],
            sizes=Measured(len(places), lambda: [sizes[place] for place in places]),
            rows=[self.rows[place] for place in places],
        )
