"""What an mbox keeps about a message in its header, and how quoted From_ lines become themselves again. Pure.

    Status: RO  X-Status: AF  X-Keywords: $Label1 NonJunk     UW, Dovecot, mutt, pine
    X-Mozilla-Status: 0005    X-Mozilla-Keys: $label1         Thunderbird
    X-Gmail-Labels: Inbox,Starred,Unread                      Google Takeout

The first two say how the message lies in this file; they are taken out, as Dovecot does with its own. Labels stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import Final, Literal, NamedTuple

from aimport.flags import is_keyword, normalise

Dialect = Literal["mboxo", "mboxrd", "mboxcl", "mboxcl2"]
DIALECTS: Final[tuple[Dialect, ...]] = ("mboxo", "mboxrd", "mboxcl", "mboxcl2")

_HIDDEN = re.compile(
    rb"^(status|x-status|x-keywords|x-uid|x-imapbase|x-imap|content-length"
    rb"|x-mozilla-status2?|x-mozilla-keys):([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_STATUS: Final = {"R": "\\Seen"}
_X_STATUS: Final = {"A": "\\Answered", "F": "\\Flagged", "T": "\\Draft", "D": "\\Deleted"}
_MOZILLA: Final = {0x0001: "\\Seen", 0x0002: "\\Answered", 0x0004: "\\Flagged", 0x1000: "$Forwarded"}
_QUOTED: Final = {
    "mboxo": re.compile(rb"^>(?=From )", re.MULTILINE),
    "mboxrd": re.compile(rb"^>(?=>*From )", re.MULTILINE),
}

TAKEOUT_FIRST: Final = (("Trash", ("Trash",)), ("Spam", ("Spam",)), ("Drafts", ("Drafts",)), ("Sent", ("Sent",)))
"""Labels that decide before a user's own, with their mailboxes."""
TAKEOUT_FLAGS: Final = {"Starred": "\\Flagged", "Drafts": "\\Draft"}
_TAKEOUT_OWN: Final = frozenset(
    {"Inbox", "Sent", "Drafts", "Spam", "Trash", "Starred", "Important", "Opened", "Unread", "Archived", "Chat"}
    | {f"Category {name}" for name in ("Personal", "Social", "Promotions", "Updates", "Forums", "Purchases", "Travel")}
    | {f"{name}" for name in ("IMAP_$Forwarded", "IMAP_$MDNSent", "IMAP_NonJunk", "IMAP_NotJunk", "IMAP_Junk")}
)


class Header(NamedTuple):
    """A header without what was for this file alone, and what that said."""

    octets: bytes
    flags: frozenset[str]


def read_header(octets: bytes) -> Header:
    """Takes a header apart: the lines from the first on, without the empty one."""
    flags: set[str] = set()
    left = []
    at = 0
    for match in _HIDDEN.finditer(octets):
        left.append(octets[at : match.start()])
        at = match.end()
        flags.update(_flags(match[1].lower(), match[2].decode("utf-8", "replace")))
    if not left:
        return Header(octets, frozenset())
    left.append(octets[at:])
    return Header(b"".join(left), normalise(flags))


def _flags(name: bytes, value: str) -> Iterable[str]:
    match name:
        case b"status":
            return [flag for letter, flag in _STATUS.items() if letter in value]
        case b"x-status":
            return [flag for letter, flag in _X_STATUS.items() if letter in value]
        case b"x-keywords" | b"x-mozilla-keys":
            return [word for word in value.split() if is_keyword(word)]
        case b"x-mozilla-status":
            try:
                bits = int(value, 16)
            except ValueError:
                return []
            return [flag for bit, flag in _MOZILLA.items() if bits & bit]
    return []


def labels_of(raw: bytes) -> tuple[str, ...]:
    """The labels of Google Takeout, decoded (RFC 2047)."""
    text = raw.decode("utf-8", "replace")
    if "=?" in text:
        try:
            text = str(make_header(decode_header(text)))
        except (HeaderParseError, UnicodeError, LookupError, ValueError):
            pass  # as it stands
    return tuple(label.strip().strip('"') for label in text.split(",") if label.strip())


def takeout_mailbox(labels: Iterable[str]) -> tuple[str, ...]:
    """The one mailbox of a message with these labels.

    Trash, Spam, Drafts, Sent, in this order; then the first label of the user's own, `/` separates its levels; then
    the INBOX; else Archive, where a message without any label lies.
    """
    known = set(labels)
    for label, path in TAKEOUT_FIRST:
        if label in known:
            return path
    for label in labels:
        if label not in _TAKEOUT_OWN and (levels := _levels(label)):
            return levels
    return ("INBOX",) if "Inbox" in known else ("Archive",)


def takeout_flags(labels: Iterable[str]) -> frozenset[str]:
    """Flags of a message with these labels: seen unless Unread, flagged when Starred; the other labels are keywords."""
    labels = tuple(labels)
    flags = {TAKEOUT_FLAGS[label] for label in labels if label in TAKEOUT_FLAGS}
    if "Unread" not in labels:
        flags.add("\\Seen")
    mailbox = takeout_mailbox(labels)
    for label in labels:
        word = label.replace(" ", "_")
        if label not in _TAKEOUT_OWN and _levels(label) not in ((), mailbox) and is_keyword(word):
            flags.add(word)
    return frozenset(flags)


def _levels(label: str) -> tuple[str, ...]:
    levels = tuple(filter(None, label.split("/")))
    return ("INBOX", *levels[1:]) if levels and levels[0].upper() == "INBOX" else levels


def unquoted(pieces: Iterable[bytes], dialect: Dialect) -> Iterator[bytes]:
    """A body with its From_ lines as they were before they were quoted: `>From ` → `From `.

    mboxrd and mboxcl take one `>` from any number of them, mboxo only from `>From `; mboxcl2 quotes nothing.
    """
    if dialect == "mboxcl2":
        yield from pieces
        return
    pattern = _QUOTED["mboxo" if dialect == "mboxo" else "mboxrd"]
    held = b""
    begun = True  # what comes next begins a line
    for piece in pieces:
        data = held + piece
        cut = data.rfind(b"\n") + 1
        if data[cut : cut + 1] == b">" and (cut or begun) and len(data) - cut < 4096:  # may go on as a quoted line
            data, held = data[:cut], data[cut:]
        else:
            held = b""
        if not data:
            continue
        yield pattern.sub(b"", data) if begun else pattern.sub(b"", b"x" + data)[1:]
        begun = data.endswith(b"\n")
    if held:
        yield pattern.sub(b"", held)
