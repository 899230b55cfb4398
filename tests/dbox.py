"""Trees of a real Dovecot, and what is seen in a tree of sdbox or mdbox, for the tests of it."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio.to_thread

from aimport.errors import MailboxError
from aimport.model import Endpoint, Message, Unreadable
from aimport.octets import whole
from aimport.stores.dbox.reader import Details, Reader
from aimport.stores.dbox.selection import DboxSelection
from aimport.stores.dbox.source import DboxSource, DboxSourceSession

TREES: Final = Path(__file__).parent / "fixtures" / "dbox"
_ATTACHMENTS: Final = ("mail_attachment_dir", "att")
PLACES: Final = {
    "sdbox-log-only": ("sdbox", ()),
    "mdbox-log-only": ("mdbox", ()),
    "sdbox-rotated": ("sdbox", ()),
    "mdbox-rotated": ("mdbox", ()),
    "sdbox-alt-gz": ("sdbox", (("ALT", "alt"),)),
    "mdbox-alt-zstd": ("mdbox", (("ALT", "alt"),)),
    "sdbox-attach-iterindex-utf8": ("sdbox", (("INDEX", "idx"), ("ITERINDEX", ""), ("UTF-8", ""), _ATTACHMENTS)),
    "mdbox-listindex-attach-bz2": ("mdbox", (("LAYOUT", "index"), _ATTACHMENTS)),
    "sdbox-lz4-pop3": ("sdbox", ()),
    "mdbox-pop3": ("mdbox", ()),
}
"""The options of each tree; a path is relative to where it is unpacked."""


def unpacked(name: str, place: Path) -> Endpoint:
    """The tree of that name below `place`, and the location that means it."""
    with tarfile.open(TREES / f"{name}.tar.gz") as archive:
        archive.extractall(place, filter="data")
    scheme, options = PLACES[name]
    paths = {"ALT", "INDEX", "mail_attachment_dir"}
    return Endpoint(
        scheme=scheme,
        path=str(place / scheme),
        options=tuple((key, str(place / value) if key in paths else value) for key, value in options),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One message as `doveadm fetch` shows it. Dates are seconds since 1970; `saved` None: not to be compared."""

    mailbox: str
    uid: int
    guid: str
    flags: frozenset[str]
    received: int
    saved: int | None
    size: int
    sha256: str
    uidl: str


def recorded(name: str) -> list[Row]:
    """What Dovecot told of the messages of a tree."""
    rows = []
    for line in (TREES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        each = json.loads(line)
        rows.append(
            Row(
                mailbox=each["mailbox"],
                uid=each["uid"],
                guid=each["guid"],
                flags=frozenset([*each["flags"], *each["keywords"]]),
                received=each["date_received"],
                saved=each["date_saved"],
                size=each["size"],
                sha256=each["sha256"],
                uidl=each["pop3_uidl"],
            )
        )
    return sorted(rows, key=lambda row: (row.mailbox, row.uid))


@dataclass(slots=True, kw_only=True)
class Listing:
    """All that a source has shown of an account."""

    mailboxes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def digests(self) -> list[str]:
        return sorted(row.sha256 for row in self.rows)


async def listing(endpoint: Endpoint, *, salvage: bool = False) -> Listing:
    """Reads everything, with UID and save date beside what a `Message` has.

    Raises:
        AimportError: the account as a whole cannot be read.
    """
    seen = Listing()
    async with DboxSource(endpoint, salvage=salvage).open() as session:
        for mailbox in await session.list_mailboxes():
            seen.mailboxes.append(mailbox.name)
            try:
                selection = await session.select(mailbox)
                assert isinstance(selection, DboxSelection)
                assert len(selection.sizes) == len(selection.keys) == len(set(selection.keys))
                seen.notes += selection.notes
                read: list[Message | Unreadable] = []
                async with aclosing(session.messages(selection, skip=())) as lists:
                    async for several in lists:
                        assert 1 <= len(several) <= 64
                        read += several
            except MailboxError as error:
                seen.failed[mailbox.name] = str(error)
                continue
            assert [each.key for each in read] == list(selection.keys)
            details = await anyio.to_thread.run_sync(_details, session, selection, read)
            for each, known in zip(read, details, strict=True):
                if isinstance(each, Unreadable):
                    seen.unreadable.append(each)
                    continue
                if known is None:  # between the two
                    seen.unreadable.append(Unreadable(key=each.key, code="vanished", text="expunged since it was read"))
                    continue
                body = whole(each.body)
                if not isinstance(each.body, bytes):
                    each.body.close()
                assert known.size == len(body)
                seen.rows.append(
                    Row(
                        mailbox=mailbox.name,
                        uid=known.uid,
                        guid=each.guid,
                        flags=each.flags,
                        received=int(each.internal_date.timestamp()),
                        saved=known.saved,
                        size=len(body),
                        sha256=hashlib.sha256(body).hexdigest(),
                        uidl=each.uidl,
                    )
                )
    return seen


def _details(
    session: DboxSourceSession, selection: DboxSelection, read: Sequence[Message | Unreadable]
) -> list[Details | None]:
    """None: it could not be read, or was expunged since."""
    reader = Reader(session.account, selection)
    details: list[Details | None] = []
    try:
        for row, each in enumerate(read):
            details.append(None)
            with suppress(FileNotFoundError):
                details[-1] = None if isinstance(each, Unreadable) else reader.details(row)
        return details
    finally:
        reader.close()
