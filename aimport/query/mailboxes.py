"""The query of this release: `ALL` and `MAILBOX name|pattern`, all of them true at once.

Decides which mailboxes are read; messages are taken whole. Names are the source's, with its own
separator (as doveadm) or with `/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from aimport import names
from aimport.errors import UsageError
from aimport.model import Mailbox

_FLAGS: Final = ("ANSWERED", "DELETED", "DRAFT", "FLAGGED", "SEEN")
_DATES: Final = ("BEFORE", "ON", "SINCE")
LATER_KEYS: Final = frozenset(
    {
        *_FLAGS,
        *(f"UN{flag}" for flag in _FLAGS),
        *(f"{prefix}{date}" for prefix in ("", "SENT", "SAVED", "X-SAVED") for date in _DATES),
        *("UID", "RECENT", "OLD", "NEW", "KEYWORD", "UNKEYWORD", "SAVEDATESUPPORTED", "OLDER", "YOUNGER", "LARGER"),
        *("SMALLER", "FROM", "TO", "CC", "BCC", "SUBJECT", "HEADER", "BODY", "TEXT", "MAILBOX-GUID", "GUID"),
        *("OLDESTONLY", "INTHREAD", "MODSEQ", "FUZZY", "MIMEPART", "X-GUID", "X-MAILBOX", "X-REAL-UID"),
        *("OR", "NOT", "(", ")", "$"),
    }
)
"""What doveadm knows and this release does not."""
_SEQUENCE: Final = frozenset("0123456789:,*")


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxQuery:
    """Mailboxes that match every one of `patterns`; none: all mailboxes."""

    patterns: tuple[str, ...] = ()

    @property
    def exact_names(self) -> tuple[str, ...]:
        """Names without wildcards: these mailboxes must exist (exit 68)."""
        return tuple(pattern for pattern in self.patterns if not _is_pattern(pattern))

    def selects(self, mailbox: Mailbox) -> bool:
        return all(_matches(mailbox, pattern) for pattern in self.patterns)

    def missing(self, mailboxes: Iterable[Mailbox]) -> tuple[str, ...]:
        """Those of `exact_names` that are none of `mailboxes`."""
        absent = list(self.exact_names)
        for mailbox in mailboxes:
            absent = [name for name in absent if not _matches(mailbox, name)]
        return tuple(absent)


def parse_query(words: Sequence[str]) -> MailboxQuery:
    """The query of these words; keys in any case.

    Raises:
        UsageError: an unknown key, one that is not yet supported, a MAILBOX without its name, no words.
    """
    if not words:
        raise UsageError("the query is empty", hint="ALL selects everything")
    patterns: list[str] = []
    rest = iter(words)
    for word in rest:
        match word.upper():
            case "ALL":
                pass
            case "MAILBOX":
                name = next(rest, None)
                if name is None:
                    raise UsageError("Missing parameter for search key MAILBOX")
                patterns.append(name)
            case key if key in LATER_KEYS or (word and _SEQUENCE.issuperset(word)):
                raise UsageError(f"search key {word} is not yet supported", hint="this release has ALL and MAILBOX")
            case key:
                from aimport.config import nearest

                raise UsageError(f"unknown search key {word!r}", hint=nearest(key, {"ALL", "MAILBOX", *LATER_KEYS}))
    return MailboxQuery(patterns=tuple(patterns))


def _is_pattern(name: str) -> bool:
    return "*" in name or "%" in name


def _matches(mailbox: Mailbox, pattern: str) -> bool:
    own, slashed = mailbox.name, "/".join(mailbox.path)
    if _is_pattern(pattern):
        return names.matches(own, pattern, mailbox.separator) or names.matches(slashed, pattern, "/")
    return pattern in (own, slashed) or (mailbox.path == (names.INBOX,) and pattern.upper() == names.INBOX)
