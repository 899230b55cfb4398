"""The values that flow through aimport. Frozen, no I/O, no clock.

    UserJob ──▶ Mailbox ──▶ Selection ──▶ Message ──▶ Batch ──▶ Appended | Rejected ──▶ UserResult

`Message.body` holds octets as the source has them. Its *wire form* (every line end CRLF) is
what IMAP carries and what size and digest of a `Fingerprint` are taken from, so that the same
message has the same fingerprint in every store. A body of more than `STREAM_OCTETS` is a
`LargeBody`: it stays in its file and is read piece by piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NewType, Protocol

from aimport.errors import AimportError, Cause, Status

MessageKey = NewType("MessageKey", str)
"""Identity of a message in its source mailbox, stable over runs: `uidvalidity:uid`, Maildir base name."""

Uid = NewType("Uid", int)
"""A UID at the destination (RFC 9051 §2.3.1.1); not a sequence number."""

Security = Literal["tls", "starttls", "none"]

Dated = Literal["", "name", "received", "date", "mtime"]
"""What an INTERNALDATE was taken from where the source keeps none (`aimport.dates`); "": it is the source's own."""
SPECIAL_USES: Final = ("\\Sent", "\\Trash", "\\Junk", "\\Drafts", "\\Archive", "\\All", "\\Flagged")
"""Attributes that say what a mailbox is for (RFC 6154 §2)."""

Order = Literal["stored", "newest", "oldest"]
"""Of the messages of a mailbox: as the store has them, or by when they were received."""

STREAM_OCTETS: Final = 4 * 1024 * 1024  # arbitrary
"""A body above this is a `LargeBody`."""

PIECE_OCTETS: Final = 256 * 1024
"""A `LargeBody` is read in pieces of this: a thread hop (40 us of CPU) is little beside hashing one (240 us)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A password or token: how to get it, never shown. `kind` "literal" holds the secret itself."""

    kind: Literal["literal", "env", "file", "cmd", "held"]
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """With whose rights local files are opened and made (`mail_uid`, `mail_gid`)."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """All groups, `gid` among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one side of one user's import lies: a location with every variable expanded.

    `identity` names the account for locks and people, without secrets:
    `imap://bob@mail.example.org:993`, `maildir:/srv/mail/bob`, `tunnel:doveadm:5d41402abc4b2a76#bob`.
    """

    scheme: str
    path: str = ""
    options: tuple[tuple[str, str], ...] = ()
    """Location keys as written, in order (`CONTROL`, `INBOX`, ...); a key without a value has ""."""
    host: str = ""
    port: int = 0
    security: Security = "tls"
    user: str = ""
    """Whose mail is opened (SASL authorization identity)."""
    login: str = ""
    """Who logs in when not `user` itself: the master user (SASL authentication identity)."""
    secret: Secret | None = None
    auth: str = ""
    """SASL mechanism asked for; empty: the best that the server offers."""
    tls_ca: str = ""
    """PEM file of trusted roots; empty: the system's."""
    tls_cert: str = ""
    """PEM file of the client's certificate and its key; empty: none is shown."""
    profile: str = ""
    """Server profile by name or file; empty: chosen by what the server says."""
    trust_search: bool = False
    """A server's SEARCH is asked for texts too, though it may compare them otherwise (`trust_server_search`)."""
    compress: Literal["auto", "yes", "no"] = "auto"
    """COMPRESS=DEFLATE (RFC 4978); "auto": when the link proves slow."""
    daily_octets: int = 0
    """What may be fetched from it, or appended to it, in 24 hours; 0: what its server's profile says."""
    command: tuple[str, ...] = field(default=(), repr=False)
    """Words of a `tunnel:`; those after the first may be secrets."""
    rights: Rights | None = None
    """Of local files; None: those of this process."""

    @property
    def remote(self) -> bool:
        """Another process stores what was sent, and may still do so after ours has died."""
        return bool(self.host or self.command)

    @property
    def identity(self) -> str:
        if self.command:
            octets = "\0".join(self.command).encode("utf-8", "surrogateescape")
            digest = hashlib.sha256(octets).hexdigest()[:16]
            return f"{self.scheme}:{self.command[0]}:{digest}" + (f"#{self.user}" if self.user else "")
        if self.host:
            return f"{self.scheme}://{self.user}@{self.host}:{self.port}"
        return f"{self.scheme}:{self.path}" + (f"#{self.user}" if self.user else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserJob:
    """All that is needed to import one user, with nothing left to look up but secrets."""

    user: str
    source: Endpoint
    destination: Endpoint
    parent: str = ""
    """DEST_PARENT as written, variables expanded."""
    error: str = ""
    """Why this user cannot even begin (no home, unknown user); empty when it can."""
    status: Status = "failed"
    """The status `error` ends in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """One named container of messages (RFC 9051 §5.1).

    `path` holds the levels in Unicode; the first is exactly "INBOX" for the INBOX in any case.
    `native` is the name as its store writes it where `path` alone cannot tell (names that are
    not valid modified UTF-7); empty: the store derives it from `path`. `uses`: of `SPECIAL_USES`, what its store says
    that it is for, or, of one that is to be made, what it is to be.
    """

    path: tuple[str, ...]
    separator: str = "/"
    native: str = ""
    uses: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """The name with the store's own separator, for people and queries."""
        return self.separator.join(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What a server is known to take, or may be asked for: connections at a time, batches. 0: not known."""

    per_user: int = 0
    per_address: int = 0
    """From one address, for all users."""
    batch_messages: int = 0
    batch_octets: int = 0
    """Largest batch that is handed over; 0: ours."""
    octets_per_day: int = 0
    """Of this account, in the direction of the session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What an import takes from one source mailbox: keys in stored order, sizes beside them.

    `sizes` are octets as the store counts them, a hint for plans, windows and the byte budget;
    the octets read decide. Both have the same length. `unlisted`: so many more the store says
    it has, and does not name. `notes`: what is wrong with the mailbox though it can be read, a line each.
    `position`: UIDVALIDITY and UIDNEXT that clients of the source saw; None: it does not say.
    """

    mailbox: Mailbox
    keys: Sequence[MessageKey]
    sizes: Sequence[int]
    unlisted: int = 0
    notes: tuple[str, ...] = ()
    position: Position | None = None


class LargeBody(Protocol):
    """A body that is not in memory. Whoever ends with its message closes it."""

    def __len__(self) -> int:
        """Octets as the source has them."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """All octets from the first, `PIECE_OCTETS` at a time; each call begins anew.

        Blocks: ask for each piece in a worker thread.

        Raises:
            OSError: by the iterator, before its last piece: the octets cannot be read, or are
                not those that there were at first.
        """
        ...

    def close(self) -> None:
        """Give up what it lies in; nothing can be read any more. Doing it twice is fine."""
        ...


Body = bytes | LargeBody


@dataclass(frozen=True, slots=True)
class Original:
    """A regular file that held exactly the octets of a message when they were read."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    mode: int
    """Permission bits."""
    uid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, ready to append.

    `flags` holds system flags with their backslash and keywords without; never `\\Recent`
    (RFC 9051 §2.3.2). `internal_date` is aware, whole seconds count. `wire` says that `body`
    already came in wire form, so a local store may turn CRLF to LF without loss. `dated` says
    that `internal_date` is a guess (`aimport.dates`).
    """

    key: MessageKey
    flags: frozenset[str]
    internal_date: datetime
    body: Body = field(repr=False)
    wire: bool = False
    dated: Dated = ""
    original: Original | None = field(default=None, repr=False, compare=False)
    """The file that holds `body`, where a local destination may link it."""
    guid: str = field(default="", compare=False)
    """By what the source knows the message wherever it is copied; "": it does not say. Any text (dbox: mostly hex)."""
    uidl: str = field(default="", compare=False)
    """What POP3 clients know it by (RFC 1939 §7), where the source keeps that with the message."""
    note: str = field(default="", compare=False)
    """What of a damaged source is lost of it though its octets are whole (`--salvage`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A selected message that could not be read: `code` "unreadable", "vanished", ..."""

    key: MessageKey
    code: str
    text: str


ALIKE_KINDS: Final = ("nul", "cr", "8-bit header", "final line end")
"""What about a message servers change."""
REDUCED_OCTETS: Final = 16
"""Of a SHA-256. Where all messages lack their last line end, 16 more each would be a third of the journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """How a message is known again after a server changed it as servers do (`octets.reduced_pieces`)."""

    digest: bytes
    """The first `REDUCED_OCTETS` of the SHA-256 of the reduced form."""
    shortest: int
    """Octets of the shortest form that a server keeps; the longest has one line end more than was sent."""
    kinds: tuple[str, ...]
    """Of `ALIKE_KINDS`, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Content identity: octets and SHA-256 of the wire form.

    `alike` is there for the few messages that some servers do not keep as they are.
    """

    size: int
    digest: bytes
    alike: Alike | None = field(default=None, compare=False)

    @property
    def span(self) -> tuple[int, int]:
        """From and to which size a server may keep it: exactly its own, but for one that has `alike`."""
        return (self.size, self.size) if self.alike is None else (self.alike.shortest, self.size + len(b"\r\n"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Messages sent as one: one journal row, one MULTIAPPEND, one directory sync.

    `run` and `number` are unique together over the life of a journal; `created_us` is the time
    of the intent in microseconds since 1970 and ascends within a lane. Local stores derive file
    names from the three and the index in the batch, so a batch found again is recognised.
    `fingerprints` stands beside `messages`.
    """

    run: str
    number: int
    created_us: int
    messages: tuple[Message, ...]
    fingerprints: tuple[Fingerprint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """How a message was changed so that the destination took it (`--repair on-reject`)."""

    steps: tuple[str, ...]
    """Steps of `aimport.repair`, in order."""
    original: Fingerprint
    reason: str
    """What the destination said of the original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """The destination acknowledged this message (tagged OK, or synced and named)."""

    key: MessageKey
    uid: Uid | None = None
    dropped: tuple[str, ...] = ()
    """Flags and keywords that the destination cannot hold."""
    repaired: Repaired | None = None
    """Set when other octets than the source's were stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """The destination had this message before (`--skip-existing`)."""

    key: MessageKey
    held: MessageKey
    """The key there of the one that stands for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The destination refused this message alone; `code` is its response code, or ""."""

    key: MessageKey
    code: str
    text: str
    cause: Cause = field(default="", compare=False)
    """What is wrong with the message, where the words of the refusal tell (`imap.answers`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStored:
    """Not stored, by the store's own word, though the message itself may be good.

    Without `error` it was refused in company: send it again in a smaller batch, at last alone
    with nothing else under way. `error` is the wider failure that stopped it (quota, mailbox gone).
    """

    key: MessageKey
    error: AimportError | None = None


Outcome = Appended | Rejected | NotStored


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A point in a destination mailbox: everything stored later has `uid >= uidnext`.

    Stores without UIDs use 0 for both.
    """

    uidvalidity: int = 0
    uidnext: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A message in doubt: what `find` looks for. `batch`, `index` as in `Batch`."""

    run: str
    number: int
    created_us: int
    index: int
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A message that `find` saw at the destination.

    `wanted` is its place in the list of wanted when the store knows it by name (local stores);
    None: the caller matches by content, as a multiset. `internal_date` is seconds since
    1970, None when the store did not say.
    """

    fingerprint: Fingerprint
    uid: Uid | None = None
    internal_date: int | None = None
    wanted: int | None = None
    reduced: bytes = b""
    """As `Alike.digest`, where a wanted message may have been altered."""


@dataclass(frozen=True, slots=True)
class Places:
    """`Survey.at` of a store that knows its messages by their names."""

    found: Mapping[str, int]

    def __call__(self, place: str) -> int | None:
        return self.found.get(place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a mailbox holds at or above a position, in the store's order; no octets were read.

    `keys`, `sizes` (octets of the wire form, as the store says) and `dates` (seconds since 1970) stand beside each
    other; the latter two may be empty where nobody asked for them. Keys are those that a source gives which reads the
    same account. `at` finds the index of a place (`DestinationSession.place`), None when nothing is there.
    """

    uidvalidity: int
    keys: Sequence[MessageKey]
    sizes: Sequence[int]
    dates: Sequence[int]
    at: Callable[[str], int | None] = field(repr=False)
