"""What can go wrong, how much it affects, and whether trying again helps.

    AimportError
    ├── UsageError              64  arguments, query or user list (before the run)
    ├── ConfigurationError      78  settings (before the run)
    ├── RunHeld                 69  another run holds the job or a destination user
    ├── JournalError                the run cannot remember what it does; run
    │   ├── JournalDamaged          a record in the middle does not match its checksum
    │   └── JournalBusy             a worker on another machine has it open, and no two may
    ├── DestinationFull             no space or read-only below the destination; run
    ├── ClusterLost                 scheduler or workers do not come back; run
    ├── MessageRefused              the destination refused this message; message
    ├── MessageUnreadable           its octets cannot be read, or not be kept on their way; message
    ├── MailboxError                one mailbox cannot be read or written; mailbox
    │   ├── MailboxNotFound     68  named in the query, or vanished
    │   ├── MailboxNameInvalid      the destination cannot hold that name
    │   └── MailboxChanged          UIDVALIDITY changed while it was read; try again
    ├── UserError                   this user cannot go on; user
    │   ├── DailySpent              the account's octets of today are used up; goes on by itself
    │   ├── HostDown                nobody can connect, for a long while now; resume when it is back
    │   ├── NoSuchUser          67
    │   ├── SourceMissing           the source does not exist
    │   ├── AccessRefused           file permissions
    │   ├── LoginRefused        77  wrong credentials; never tried twice
    │   ├── OverQuota           73
    │   ├── NameClash               two source mailboxes, one destination name
    │   ├── DestinationNotEmpty     it has mail, and `--merge require-empty` was given
    │   └── UidsWouldRepeat         new mail would get UIDs that clients saw on other mail
    └── ConnectionLost              outcome of what was under way is unknown; try again
        ├── DeadlinePassed          the server did not answer in time
        ├── ProtocolError           the server broke the protocol, or we did (BAD)
        └── Unavailable             the server asks to come back later
            ├── Throttled           we are too fast; it often says for how long to stay away
            ├── TooManyConnections  the host or the account takes no further connection
            └── ServerBug           an internal error there; a few tries, then a record

An error says who, where, what, what next; secrets never enter it. Where each scope
ends is in ARCHITECTURE.md.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import ClassVar, Literal

Status = Literal["done", "rejects", "quota", "refused", "failed", "stopped"]
Refusal = Literal[
    "nul",
    "8bit-header",
    "bare-newline",
    "header",
    "long-line",
    "flags",
    "keywords",
    "date",
    "size",
    "empty",
    "cte",
]
"""What about a message was refused."""

Cause = Literal["", Refusal]
"""The refusal as far as the server's words tell; "" when they do not."""

Whose = Literal["", "user", "address"]
"""One account's, or that of all who come from our address."""


class Scope(enum.IntEnum):
    """How much stops. Ordered: a wider failure ends what a narrower one would."""

    MESSAGE = 1
    MAILBOX = 2
    USER = 3
    RUN = 4


class Retry(enum.Enum):
    """Whether the same user run again may succeed."""

    NEVER = "never"
    LATER = "later"


class AimportError(Exception):
    """Base of every failure that aimport foresees. Anything else is a bug."""

    scope: ClassVar[Scope] = Scope.USER
    retry: ClassVar[Retry] = Retry.NEVER
    status: ClassVar[Status] = "failed"
    exit_code: ClassVar[int] = 75

    def __init__(self, text: str, *, hint: str = "", code: str = "", wait_s: float = 0.0, cause: Cause = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        """What the reader can do next; empty when the text says it."""
        self.code = code
        """The server's response code (RFC 9051 §7.1), upper case, or empty."""
        self.wait_s = wait_s
        """Seconds the server asked us to wait before the next try."""
        self.cause: Cause = cause
        """What about the message was refused; also of a lost connection that a message brought about."""
        self.host = ""
        """The host that said so, or could not be reached, as its connection limit is called."""
        self.whose: Whose = ""
        """Of a limit that was met: whose it is, as far as the server's words tell."""

    def __str__(self) -> str:
        return f"{self.text} ({self.hint})" if self.hint else self.text


class UsageError(AimportError):
    """Arguments, a query or a user list do not parse."""

    scope = Scope.RUN
    exit_code = 64


class ConfigurationError(AimportError):
    """A setting is missing, unknown or contradicts another."""

    scope = Scope.RUN
    exit_code = 78


class RunHeld(AimportError):
    """Another run works on this job or on one of its destination users."""

    scope = Scope.RUN
    exit_code = 69


class JournalError(AimportError):
    """The journal cannot be read or written: without it nothing is sent."""

    scope = Scope.RUN


class JournalDamaged(JournalError):
    """A record does not match its checksum. The place and the repair are in the text."""


class JournalBusy(JournalError):
    """Another process has it open for itself alone."""


class DestinationFull(AimportError):
    """No space left, or read-only, below a local destination."""

    scope = Scope.RUN
    retry = Retry.LATER


class ClusterLost(AimportError):
    """The processes that import are out of reach for good; what they did is in their shards of the journal."""

    scope = Scope.RUN
    retry = Retry.LATER


class MessageRefused(AimportError):
    """One message was refused; its neighbours are not affected."""

    scope = Scope.MESSAGE


class MessageUnreadable(AimportError):
    """The octets of one message cannot be had, or there is no room for them on their way (TMPDIR).

    `code` and `text` are those of the `Unreadable` that it ends as.
    """

    scope = Scope.MESSAGE


class MailboxError(AimportError):
    """One mailbox cannot be read or written; the user's others may be."""

    scope = Scope.MAILBOX


class MailboxNotFound(MailboxError):
    """The mailbox does not exist (NONEXISTENT, RFC 5530). `named`: the query names it (exit 68)."""

    exit_code = 68

    def __init__(
        self,
        text: str,
        *,
        named: bool = False,
        hint: str = "",
        code: str = "",
        wait_s: float = 0.0,
        cause: Cause = "",
    ) -> None:
        super().__init__(text, hint=hint, code=code, wait_s=wait_s, cause=cause)
        self.named = named


class MailboxNameInvalid(MailboxError):
    """The destination cannot hold a mailbox of this name."""


class MailboxChanged(MailboxError):
    """UIDVALIDITY changed under us: keys of the first listing mean nothing now."""

    retry = Retry.LATER


class UserError(AimportError):
    """This user cannot go on; the others can."""


class DailySpent(UserError):
    """What this account may give or take in a day is used up; `wait_s` is always set."""

    retry = Retry.LATER


class HostDown(UserError):
    """The host of this user cannot be connected to, and was waited for as long as is reasonable."""


class NoSuchUser(UserError):
    """The user is not in the list, or has no home where one is needed."""

    exit_code = 67


class SourceMissing(UserError):
    """There is nothing at the source location."""


class AccessRefused(UserError):
    """File permissions, or an ACL, keep us out."""

    status = "refused"
    exit_code = 77


class LoginRefused(UserError):
    """AUTHENTICATIONFAILED and its kin (RFC 5530): tried once, so that nobody is locked out."""

    status = "refused"
    exit_code = 77


class OverQuota(UserError):
    """The account has no room (OVERQUOTA, RFC 9208 §4.3.1). Later messages would be refused too."""

    status = "quota"
    exit_code = 73


class NameClash(UserError):
    """Two source mailboxes map to one destination name; they are never merged silently."""


class DestinationNotEmpty(UserError):
    """The destination has mail, and `--merge require-empty` was given."""


class UidsWouldRepeat(UserError):
    """`--merge new-over-old`: UIDNEXT of the destination is below what clients saw."""


class ConnectionLost(AimportError):
    """The session is over. What was under way may or may not have been stored."""

    retry = Retry.LATER


class DeadlinePassed(ConnectionLost):
    """No progress within the deadline."""


class ProtocolError(ConnectionLost):
    """The peer sent what the protocol does not allow, or answered BAD; sync is in doubt."""


class Unavailable(ConnectionLost):
    """UNAVAILABLE, INUSE (RFC 5530) and the errors below: come back later."""


class Throttled(Unavailable):
    """We are too fast for this account or host. `wait_s` is always set: what the server said, else a guess."""


class TooManyConnections(Unavailable):
    """No further connection for this account or from this address: the host's budget is one too large."""


class ServerBug(Unavailable):
    """SERVERBUG (RFC 5530): Dovecot says it of passing failures, others of one message they cannot handle."""

    tries: ClassVar[int] = 3
    """How often one message may be sent in all before that is recorded."""


def widest(errors: Iterable[BaseException]) -> AimportError:
    """The one failure that decides: the widest scope, then the one not worth retrying.

    Raises:
        ValueError: `errors` holds no `AimportError`.
    """
    flat: list[AimportError] = []
    stack = list(errors)
    while stack:
        error = stack.pop(0)
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        elif isinstance(error, AimportError):
            flat.append(error)
    if not flat:
        raise ValueError("no AimportError among the errors")
    return max(flat, key=lambda error: (error.scope, error.retry is Retry.NEVER))
