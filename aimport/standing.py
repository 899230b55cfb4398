"""How an account stands before anything is written to it: what `aimport check` asks of a store. Pure.

    session ──inspect──▶ Standing: what the server offers, quotas, limits; room on a disk; what is in the way
            ──count────▶ Counts: messages and octets of mailboxes, without a list of either

Both are optional abilities of a session, so they are Protocols of their own: what a store does not say is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from aimport.errors import AimportError
from aimport.model import Mailbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a mailbox holds; octets as the store counts them, with CRLF over IMAP (RFC 8438 §1)."""

    messages: int
    octets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """One resource of one quota root (RFC 9208 §5.1): STORAGE in units of 1024 octets, MESSAGE in messages."""

    root: str
    resource: str
    used: int
    limit: int

    @property
    def left(self) -> int:
        return max(self.limit - self.used, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """The file system that a local account lies on, or would: `path` is the nearest directory that is there."""

    device: int
    path: str
    free_octets: int
    """Free for this process: what is kept for root counts only when it is root's."""
    free_files: int | None
    """None: the file system has no number of files that it can hold (btrfs)."""
    block_octets: int
    """A file takes whole blocks of this."""
    file_each: bool
    """Each message is a file of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is known of a server: its own words, and its profile (0: not known)."""

    kind: str
    """The profile."""
    capabilities: frozenset[str] = frozenset()
    connections_per_user: int = 0
    connections_per_address: int = 0
    messages_per_second: float = 0.0
    """Into one account."""
    octets_per_day: int = 0
    """What one account gives, as a source, or takes."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one account stands; what is not known is empty, 0 or None."""

    server: Server | None = None
    append_limit: int = 0
    """Octets of the largest message it takes (RFC 7889)."""
    allowances: tuple[Allowance, ...] = ()
    volume: Volume | None = None
    problems: tuple[AimportError, ...] = ()
    """What an import would fail with."""
    notes: tuple[str, ...] = ()
    """What it may fail with."""


@runtime_checkable
class Inspecting(Protocol):
    """A session that can say how its account stands."""

    async def inspect(self, targets: Sequence[Mailbox] = ()) -> Standing:
        """Looks, and changes nothing. `targets`: mailboxes that an import would write to, there or not.

        Raises:
            UserError, ConnectionLost
        """
        ...


@runtime_checkable
class Counting(Protocol):
    """A source session that may know what a mailbox holds without listing it."""

    async def count(self, mailboxes: Sequence[Mailbox]) -> Sequence[Counts | None]:
        """One for each, in the same order; None: only a list of it (`select`) would tell.

        Raises:
            ConnectionLost
        """
        ...
