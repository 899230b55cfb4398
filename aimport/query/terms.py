"""A query as a tree of values. Pure: what each term means for a message is `query.judge`'s.

    And(Flag \\Seen, Not(Header subject "x"))     ALL = And(), which lacks nothing; NOTHING = Or(), which has no way

Every relative date is already a moment, every size octets: a term means the same however long a
run takes. Moments are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

LAST: Final = 0xFFFF_FFFF
"""`*`: of sequence numbers the last message; of UIDs this very number, which none has (as doveadm)."""

DAY_S: Final = 86_400

Offset = Callable[[int], int]
"""Seconds that local time is ahead of UTC at a moment."""

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class And:
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Or:
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Not:
    term: Term


@dataclass(frozen=True, slots=True)
class Numbers:
    """Sequence numbers within the mailbox, from 1; ranges ascend."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Uids:
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Flag:
    """A system flag with its backslash, `\\Recent` among them."""

    name: str


@dataclass(frozen=True, slots=True)
class Keyword:
    """In any case."""

    name: str


Date = Literal["received", "sent", "saved"]


@dataclass(frozen=True, slots=True)
class Dated:
    """`since` <= date < `until`, None: no bound.

    `by_day`: the date is first shifted to the clock of its place, so that midnight in UTC of the
    bounds is midnight there: of the header's own zone for "sent", of `offset` for the others.
    """

    what: Date
    since: int | None = None
    until: int | None = None
    by_day: bool = False
    offset: Offset | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SaveDateKnown:
    pass


@dataclass(frozen=True, slots=True)
class Larger:
    """Octets with every line end as CRLF, whatever the storage."""

    octets: int


@dataclass(frozen=True, slots=True)
class Smaller:
    octets: int


Form = Literal["value", "squeezed", "addresses"]


@dataclass(frozen=True, slots=True)
class Header:
    """A field of the top header. `form`: its value, that with single blanks, or its addresses as written again.

    `text` "" is held by every field that is there.
    """

    name: str
    text: str
    form: Form = "value"


@dataclass(frozen=True, slots=True)
class Content:
    """Decoded text of all parts; `headers`: theirs too (TEXT, else BODY)."""

    text: str
    headers: bool


@dataclass(frozen=True, slots=True)
class Guid:
    text: str


@dataclass(frozen=True, slots=True)
class ModSeq:
    least: int


@dataclass(frozen=True, slots=True)
class MailboxName:
    """`pattern`: `*` and `%` are wildcards."""

    name: str
    pattern: bool


@dataclass(frozen=True, slots=True)
class MailboxGuid:
    guid: str


Algorithm = Literal["REFERENCES", "REFS", "ORDEREDSUBJECT"]


@dataclass(frozen=True, slots=True)
class InThread:
    """Messages of every thread that holds one that `term` selects."""

    algorithm: Algorithm
    term: Term


@dataclass(frozen=True, slots=True)
class MimePart:
    """A message with a part that `key` selects."""

    key: PartKey


@dataclass(frozen=True, slots=True)
class PartAll:
    keys: tuple[PartKey, ...]


@dataclass(frozen=True, slots=True)
class PartAny:
    keys: tuple[PartKey, ...]


@dataclass(frozen=True, slots=True)
class PartNot:
    key: PartKey


How = Literal["is", "contains", "begins", "ends"]


@dataclass(frozen=True, slots=True)
class PartField:
    """What a part says of itself: `name` in upper case as the key's, `how` its value is compared."""

    name: str
    how: How
    text: str


@dataclass(frozen=True, slots=True)
class PartParameter:
    """A parameter of Content-Type or, `of` "DISPOSITION", of Content-Disposition; "" is held by any value."""

    of: Literal["TYPE", "DISPOSITION"]
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class PartNumber:
    """`least` <= number <= `most`, None: no bound."""

    what: Literal["SIZE", "DEPTH", "INDEX"]
    least: int | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class PartDated:
    """The `Date:` of an embedded message, by the day of its own zone."""

    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class PartRelative:
    """The part has a parent, or a part below it, that `key` selects; None: any."""

    which: Literal["PARENT", "CHILD"]
    key: PartKey | None


PartKey = PartAll | PartAny | PartNot | PartField | PartParameter | PartNumber | PartDated | PartRelative

Leaf = (
    Numbers
    | Uids
    | Flag
    | Keyword
    | Dated
    | SaveDateKnown
    | Larger
    | Smaller
    | Header
    | Content
    | Guid
    | ModSeq
    | MailboxName
    | MailboxGuid
    | InThread
    | MimePart
)
Term = And | Or | Not | Leaf

ALL: Final = And()
NOTHING: Final = Or()


def simplified(term: Term, known: Callable[[Leaf], bool | None] = lambda leaf: None) -> Term:
    """The same with flat lists and without what decides nothing.

    `known` says of a leaf that it always holds, or never; None: that hangs on the message.
    """
    if isinstance(term, Not):
        inner = simplified(term.term, known)
        if isinstance(inner, Not):
            return inner.term
        return NOTHING if inner == ALL else ALL if inner == NOTHING else Not(inner)
    if isinstance(term, And | Or):
        same = type(term)
        neutral, final = (ALL, NOTHING) if same is And else (NOTHING, ALL)
        kept: list[Term] = []
        for each in term.terms:
            inner = simplified(each, known)
            if inner == final:
                return final
            if inner != neutral:
                kept += inner.terms if isinstance(inner, same) else (inner,)
        return kept[0] if len(kept) == 1 else same(tuple(kept))
    decided = known(term)
    if decided is not None:
        return ALL if decided else NOTHING
    if isinstance(term, InThread):
        inner = simplified(term.term, known)
        # Every message is in a thread of its own at least.
        return inner if inner in (ALL, NOTHING) else InThread(term.algorithm, inner)
    return term


def leaves(term: Term) -> Iterator[Leaf]:
    """All of them; of an `InThread` itself too, and what is within."""
    if isinstance(term, Not):
        yield from leaves(term.term)
    elif isinstance(term, And | Or):
        for each in term.terms:
            yield from leaves(each)
    else:
        yield term
        if isinstance(term, InThread):
            yield from leaves(term.term)


def factors(term: Term) -> tuple[Term, ...]:
    """Terms that must all hold."""
    return term.terms if isinstance(term, And) else (term,)


def up_to(ranges: Ranges, last: int) -> Ranges:
    """Sequence numbers with `*` as the last message: 99:* of ten messages is the tenth (RFC 9051 §9)."""
    if not ranges or ranges[-1][1] != LAST:
        return ranges
    return (*ranges[:-1], (min(ranges[-1][0], last), last))
