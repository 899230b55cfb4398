"""A query as a whole: which mailboxes it can select from, and what is left to decide in each. Pure.

Names are the source's, with its own separator (as doveadm) or with `/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from aimport import names
from aimport.model import Mailbox
from aimport.query.terms import (
    NOTHING,
    And,
    InThread,
    Leaf,
    MailboxName,
    Not,
    Numbers,
    Or,
    Term,
    factors,
    leaves,
    simplified,
    up_to,
)


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

    def also(self, other: Query) -> Query:
        """What both select."""
        return Query(term=And((self.term, other.term)))

    @property
    def counts(self) -> bool:
        """Sequence numbers are asked for."""
        return any(isinstance(leaf, Numbers) for leaf in leaves(self.term))

    def after(self, count: int) -> Query:
        """The query for the mailboxes behind one of `count` messages.

        doveadm cuts sets of sequence numbers to the size of each mailbox that it looks into, for good.
        """
        return replace(self, term=_cut(self.term, count))

    def missing(self, mailboxes: Iterable[Mailbox]) -> tuple[str, ...]:
        """Those of `exact_names` that are none of `mailboxes`."""
        absent = [MailboxName(name, pattern=False) for name in self.exact_names]
        for mailbox in mailboxes:
            absent = [name for name in absent if not _matches(mailbox, name)]
        return tuple(name.name for name in absent)


def _cut(term: Term, count: int) -> Term:
    if isinstance(term, And | Or):
        return type(term)(tuple(_cut(each, count) for each in term.terms))
    if isinstance(term, Not):
        return Not(_cut(term.term, count))
    if isinstance(term, InThread):
        return InThread(term.algorithm, _cut(term.term, count))
    if isinstance(term, Numbers):
        return Numbers(tuple((first, min(last, count)) for first, last in up_to(term.ranges, count) if first <= count))
    return term


def _matches(mailbox: Mailbox, wanted: MailboxName) -> bool:
    own, slashed = mailbox.name, "/".join(mailbox.path)
    if wanted.pattern:
        return names.matches(own, wanted.name, mailbox.separator) or names.matches(slashed, wanted.name, "/")
    return wanted.name in (own, slashed) or (mailbox.path == (names.INBOX,) and wanted.name.upper() == names.INBOX)
