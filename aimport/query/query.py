"""A query as a whole: which mailboxes it can select from, and what is left to decide in each. Pure.

Names are the source's, with its own separator (as doveadm) or with `/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aimport import names
from aimport.model import Mailbox
from aimport.query.terms import NOTHING, Leaf, MailboxName, Term, factors, simplified


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is selected. `warnings` say where it means something else than it seems to, as in doveadm."""

    term: Term
    warnings: tuple[str, ...] = ()

    def of(self, mailbox: Mailbox) -> Term:
        """What a message of `mailbox` must fulfil: no mailbox names are left in it."""

        def known(leaf: Leaf) -> bool | None:
            return _matches(mailbox, leaf) if isinstance(leaf, MailboxName) else None

        return simplified(self.term, known)

    def selects(self, mailbox: Mailbox) -> bool:
        """Whether a message of it may be selected."""
        return self.of(mailbox) != NOTHING

    @property
    def exact_names(self) -> tuple[str, ...]:
        """Mailboxes that everything selected must be in, by their names: these must exist (exit 68)."""
        terms = factors(simplified(self.term))
        return tuple(term.name for term in terms if isinstance(term, MailboxName) and not term.pattern)

    def missing(self, mailboxes: Iterable[Mailbox]) -> tuple[str, ...]:
        """Those of `exact_names` that are none of `mailboxes`."""
        absent = [MailboxName(name, pattern=False) for name in self.exact_names]
        for mailbox in mailboxes:
            absent = [name for name in absent if not _matches(mailbox, name)]
        return tuple(name.name for name in absent)


def _matches(mailbox: Mailbox, wanted: MailboxName) -> bool:
    own, slashed = mailbox.name, "/".join(mailbox.path)
    if wanted.pattern:
        return names.matches(own, wanted.name, mailbox.separator) or names.matches(slashed, wanted.name, "/")
    return wanted.name in (own, slashed) or (mailbox.path == (names.INBOX,) and wanted.name.upper() == names.INBOX)
