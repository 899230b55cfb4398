"""What the pipeline asks of a store. Few verbs; optional abilities are data.

A source session lists, selects and reads; a destination session creates and appends, and
after a crash says where it stands and what it holds (`position`, `find`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Container, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from aimport.model import (
    Batch,
    ConnectionLimits,
    Mailbox,
    Message,
    Order,
    Outcome,
    Position,
    Selection,
    Stored,
    Survey,
    Uid,
    Unreadable,
    Wanted,
)
from aimport.query.facts import Fact, Facts
from aimport.query.terms import ALL, Term


class SourceSession(Protocol):
    """Reads one account. One task uses a session at a time; more speed is more sessions.

    Nothing is ever created, renamed, locked or written at the source.
    """

    @property
    def limits(self) -> ConnectionLimits: ...

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        """Every mailbox that can hold messages.

        Raises:
            SourceMissing: there is no such account, directory or file.
            AccessRefused, ConnectionLost
        """
        ...

    async def select(self, mailbox: Mailbox, term: Term = ALL, order: Order = "stored") -> Selection:
        """Keys and sizes of the messages that `term` selects; stored order is ascending UID for IMAP.

        What the listing shows decides first; headers and bodies are read only where the term asks
        for them and nothing cheaper has decided (`selecting.pick`). `term` names no mailbox (`Query.of`).

        Raises:
            MailboxError: the mailbox cannot be read; others may still be.
            ConnectionLost: the session is over; a new one may continue.
        """
        ...

    def messages(
        self, selection: Selection, *, skip: Container[str]
    ) -> AsyncGenerator[Sequence[Message | Unreadable], None]:
        """The selected messages in the order of the selection, in lists of 1 to 64 and about 1 MiB.

        Keys in `skip` are passed over without reading bodies; every other key of the selection
        comes exactly once, as `Message` or as `Unreadable`. Leave early with `aclosing`.

        Raises:
            MailboxError: the mailbox cannot be read further.
            ConnectionLost: the session is over; a new one may continue.
        """
        ...

    def look(self, selection: Selection, places: Sequence[int], facts: Fact) -> AsyncGenerator[Facts]:
        """`Fact.SIZE` or `Fact.HEADER` of messages at ascending `places` of a selection, as a `selecting.Shelf` does.

        Leave early with `aclosing`.

        Raises:
            MailboxError, ConnectionLost
        """
        ...


class Appending(Protocol):
    """A batch that was handed over."""

    async def outcomes(self) -> Sequence[Outcome]:
        """Waits for the store's answer; one outcome per message, in the order of the batch.

        Asked once, batch after batch in the order they were handed over. Every `Appended`
        message is acknowledged (IMAP) or durable as far as `--fsync` asks. A batch of one with
        nothing else under way is never refused in company (`NotStored` without error).

        Raises:
            ConnectionLost, DestinationFull: what became of the batch is unknown.
        """
        ...


@dataclass(frozen=True, slots=True)
class Settled:
    """The `Appending` of a store that has its answer when `append` returns."""

    known: Sequence[Outcome]
    sync_s: float = 0.0
    """Of the time of `append`: what it waited for the disk to have it for sure."""
    turn_s: float = 0.0
    """What it waited for others that write to the same disk."""

    async def outcomes(self) -> Sequence[Outcome]:
        return self.known


class DestinationSession(Protocol):
    """Writes one account. `separator` is the one names of this destination are shown with."""

    @property
    def limits(self) -> ConnectionLimits: ...

    @property
    def separator(self) -> str: ...

    @property
    def waits(self) -> bool:
        """Each message costs a round trip (synchronising literals, RFC 7888): several sessions at one mailbox help."""
        ...

    @property
    def folds_case(self) -> bool:
        """Names that differ in case, or in the form of a letter with an accent, are one mailbox."""
        ...

    async def list_mailboxes(self) -> Sequence[Mailbox]:
        """Every mailbox of the account that can hold messages.

        Raises:
            SourceMissing: there is no such account yet.
            UserError, ConnectionLost
        """
        ...

    async def create_mailbox(self, mailbox: Mailbox, *, subscribe: bool) -> None:
        """Make `mailbox` exist. Already existing is success (ALREADYEXISTS, RFC 9051 §7.1).

        A failed subscribe is logged, not raised (doveadm does the same).

        Raises:
            MailboxNameInvalid: this store cannot hold the name.
            MailboxError, ConnectionLost
        """
        ...

    async def append(self, mailbox: Mailbox, batch: Batch) -> Appending:
        """Hand `batch` over to be stored behind what was handed over before.

        Returns when the next batch may follow, mostly before the store has answered. One task
        appends; another may wait for the outcomes of earlier batches meanwhile. After
        ConnectionLost or cancellation the outcome is unknown: the journal has an intent
        without commit, and `find` asks the store.

        Raises:
            MailboxError, ConnectionLost, DestinationFull
        """
        ...

    async def position(self, mailbox: Mailbox) -> Position | None:
        """Where the mailbox stands now; None when it does not exist."""
        ...

    async def find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> Sequence[Stored]:
        """Messages stored at or after `since` that may be one of `wanted` (same size at least).

        The caller matches by content as a multiset (`reconcile.match`).
        An unknown mailbox holds nothing. When UIDVALIDITY is not that of `since`, the whole
        mailbox is looked at.
        """
        ...

    async def survey(self, mailbox: Mailbox, since: Position, *, sizes: bool = True) -> Survey | None:
        """What is there at or above `since` (all of it when UIDVALIDITY is another); None: there is no such mailbox.

        Without `sizes` nobody looks at sizes and dates, which may be missing then.
        """
        ...

    def reading(self, mailbox: Mailbox) -> AbstractAsyncContextManager[tuple[SourceSession, Mailbox]]:
        """The same account as a source, and the mailbox as that names it. Nothing is under way meanwhile.

        Raises:
            MailboxError, ConnectionLost
        """
        ...

    def place(self, wanted: Wanted, uid: Uid | None, uidvalidity: int) -> str:
        """By what a stored message is recognised in a `Survey`; "": only its octets tell."""
        ...


@runtime_checkable
class Removing(Protocol):
    """A destination session that can take away what was made for a test (`aimport bench`). No import does."""

    async def remove_mailbox(self, mailbox: Mailbox) -> None:
        """Removes `mailbox` with all its messages for good. One that is not there is success.

        Those below it are removed before: some servers refuse a mailbox that has any.

        Raises:
            MailboxError: it is the INBOX, or the store refuses.
            ConnectionLost
        """
        ...


class Source(Protocol):
    """One account to read. `open` may be called several times: each call is one session."""

    host: str
    """Key of the connection limit, "" for local stores."""

    def open(self) -> AbstractAsyncContextManager[SourceSession]: ...


class Destination(Protocol):
    """One account to write. `wire`: bodies are handed over in wire form (`octets.wire_form`)."""

    host: str
    wire: bool

    def open(self) -> AbstractAsyncContextManager[DestinationSession]: ...
