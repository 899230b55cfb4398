"""`--merge`: how imported mail relates to mail that is there, and what clients will see of it.

    old-over-new     recovered mail comes behind what arrived since
    new-over-old     what arrived meanwhile comes behind the old mail that is back
    under:NAME       recovered mail below a parent of its own (DEST_PARENT)
    require-empty    a user whose destination has mail is refused

An import only ever adds behind what is there, so no way changes a message, a UID or a UIDL that exists: which mail is
the source and which the destination is the administrator's choice. What aimport adds is that it looks before it writes.
Sees only `interfaces`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Final, Literal

from aimport.errors import DestinationNotEmpty, SourceMissing, UidsWouldRepeat, UsageError
from aimport.interfaces import DestinationSession
from aimport.model import Mailbox, MessageKey, Position, Selection
from aimport.names import INBOX

Way = Literal["old-over-new", "new-over-old", "under", "require-empty"]
Uids = Literal["", "new", "same", "repeat"]
"""Of imported mail: not known, never seen by clients, those that clients know it by, those of other mail."""

WAYS: Final = "old-over-new, new-over-old, under:NAME or require-empty"


@dataclass(frozen=True, slots=True)
class Merge:
    """A `--merge` option. `parent` is the NAME of `under:NAME`, variables not expanded yet."""

    way: Way
    parent: str = ""

    def __str__(self) -> str:
        return f"under:{self.parent}" if self.way == "under" else self.way


def parse_merge(text: str) -> Merge:
    """Raises:
    UsageError: it is none of the ways, or `under:` names nothing.
    """
    match text:
        case "old-over-new" | "new-over-old" | "require-empty":
            return Merge(text)
    way, colon, name = text.partition(":")
    if way == "under" and colon:
        if not name:
            raise UsageError("--merge under: names no mailbox", hint="under:Recovered, say")
        return Merge("under", name)
    raise UsageError(f"--merge {text!r}: is not {WAYS}")


async def mailboxes_at(writer: DestinationSession) -> Sequence[Mailbox]:
    """The mailboxes of a destination; none where there is no account yet."""
    try:
        return await writer.list_mailboxes()
    except SourceMissing:
        return ()


async def demand_empty(writer: DestinationSession) -> None:
    """Raises:
    DestinationNotEmpty: one of its mailboxes has a message, also one that the import would not touch.
    """
    for mailbox in await mailboxes_at(writer):
        survey = await writer.survey(mailbox, Position(), sizes=False)
        if survey is not None and survey.keys:
            raise DestinationNotEmpty(
                f"the destination has {len(survey.keys)} messages in {mailbox.name!r}, and --merge require-empty was"
                " given; nothing was written",
                hint="empty it, or say with --merge how the mail is to be merged",
            )


def uids_to_come(selection: Selection, place: Position | None, *, whole: bool = True) -> Uids:
    """What the UIDs of imported mail were to clients of the source (`selection.position`) before.

    `place`: where the destination stands; None: it does not exist, and gets a UIDVALIDITY of its own. `whole`: all
    that is selected is sent, in stored order.

    A UID of the same UIDVALIDITY means one message for ever (RFC 9051 §2.3.1.1). UIDNEXT below what clients saw gives
    out UIDs once more: right if each message gets its own again, wrong if another one does.
    """
    seen = selection.position
    if place is None:
        return "new"
    if seen is None or not seen.uidnext or not place.uidnext:
        return ""
    if place.uidvalidity != seen.uidvalidity or place.uidnext >= seen.uidnext:
        return "new"
    again = whole and len(selection.keys) == seen.uidnext - place.uidnext
    if again and _are(selection.keys, place.uidvalidity, range(place.uidnext, seen.uidnext)):
        return "same"
    return "repeat"


def _are(keys: Iterable[MessageKey], validity: int, uids: range) -> bool:
    return all(key == f"{validity}:{uid}" for key, uid in zip(keys, uids, strict=True))


def uids_repeat(user: str, repeated: Sequence[tuple[Mailbox, Position, Position]]) -> UidsWouldRepeat:
    """The error for mailboxes of the destination, each with where it stands and what clients saw."""
    said = "; ".join(
        f"{mailbox.name}: UIDNEXT is {place.uidnext}, and clients saw UIDs below {seen.uidnext}"
        for mailbox, place, seen in repeated
    )
    commands = "; ".join(
        f"doveadm mailbox update --min-next-uid {seen.uidnext} -u {quote(user)} {quote(mailbox.name)}"
        for mailbox, _, seen in repeated
    )
    return UidsWouldRepeat(
        f"new mail would get UIDs that clients saw on other mail ({said}); nothing was written",
        hint=f"raise UIDNEXT at the destination first, with Dovecot: {commands}",
    )


@dataclass(frozen=True, slots=True)
class Mails:
    """So many messages, of so many octets."""

    messages: int = 0
    octets: int = 0

    def __add__(self, other: Mails) -> Mails:
        return Mails(self.messages + other.messages, self.octets + other.octets)

    def to_json(self) -> dict[str, object]:
        return {"messages": self.messages, "octets": self.octets}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What clients will see of one mailbox, and what they download again.

    `place`: where it stands now; None: it does not exist. UIDs are (lowest, highest), (0, 0): none, or not known.
    """

    place: Position | None
    existing: Mails
    existing_uids: tuple[int, int]
    imported: Mails
    imported_uids: tuple[int, int]
    """As a server gives them out that skips none."""
    uids: Uids
    imap: Mails
    """What a client downloads again of the imported mail: it had it under other UIDs."""
    pop3: Mails
    """The same of a client that leaves mail on the server. POP3 shows the INBOX only (RFC 1939 §3)."""
    uidls: Literal["same", "new", ""]
    """What POP3 clients know imported mail by; "": they do not see it. Servers that make UIDLs of UIDVALIDITY and UID,
    as Dovecot does unless set otherwise, give the same ones to the same UIDs."""
    emptied: Mails
    """What a client besides downloads again that looked while the mail that is there was gone."""

    def to_json(self) -> dict[str, object]:
        known = self.place is not None and self.place.uidnext > 0
        return {
            "uidvalidity": self.place.uidvalidity if known and self.place else None,
            "uidnext": self.place.uidnext if known and self.place else None,
            "order": ["existing", "imported"],
            "existing": {**self.existing.to_json(), "uids": _range(self.existing_uids)},
            "imported": {
                **self.imported.to_json(),
                "uids": _range(self.imported_uids),
                "seen": self.uids or None,
            },
            "again": {
                "imap": self.imap.to_json(),
                "pop3": {**self.pop3.to_json(), "uidls": self.uidls or None},
                "emptied": self.emptied.to_json(),
            },
        }


def _range(uids: tuple[int, int]) -> str | None:
    return f"{uids[0]}:{uids[1]}" if uids[0] else None


async def outlook(
    merge: Merge, selection: Selection, due: Mails, writer: DestinationSession, target: Mailbox, *, whole: bool
) -> Outlook:
    """Looks at a mailbox of the destination. `due`: what of the selection is sent; `whole`: all of it, as it is stored.

    Raises:
        MailboxError, ConnectionLost
    """
    place = await writer.position(target)
    survey = await writer.survey(target, Position()) if place is not None else None
    existing = Mails() if survey is None else Mails(len(survey.keys), sum(survey.sizes))
    keys = survey.keys if survey is not None and survey.uidvalidity else ()
    uids = uids_to_come(selection, place, whole=whole)
    again = Mails() if uids == "same" else due
    inbox = target.path == (INBOX,)
    first = place.uidnext if place is not None else 1
    return Outlook(
        place=place,
        existing=existing,
        existing_uids=(_uid(keys[0]), _uid(keys[-1])) if keys else (0, 0),
        imported=due,
        imported_uids=(first, first + due.messages - 1) if first and due.messages else (0, 0),
        uids=uids,
        imap=again,
        pop3=again if inbox else Mails(),
        uidls="" if not inbox else "same" if uids == "same" else "new",
        emptied=existing if merge.way == "new-over-old" else Mails(),
    )


def _uid(key: MessageKey) -> int:
    return int(key.rpartition(":")[2])
