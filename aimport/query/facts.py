"""What a term asks of a message, by cost, and what a store has said of many. Pure.

Uids, Flag, Guid, ...  ─▶ what listing shows        Larger ─▶ SPAN, and SIZE where that leaves it open
Dated ─▶ DATE, SAVED                                 Header, Dated "sent" ─▶ HEADER        Content ─▶ BODY
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, TypeVar

from aimport.model import Body, LargeBody
from aimport.query.terms import (
    Content,
    Dated,
    Flag,
    Guid,
    Header,
    InThread,
    Keyword,
    Larger,
    Leaf,
    MimePart,
    ModSeq,
    SaveDateKnown,
    Smaller,
    Term,
    Uids,
    leaves,
)

T = TypeVar("T")


class Fact(enum.Flag):
    """Something about a message."""

    UID = enum.auto()
    FLAGS = enum.auto()
    GUID = enum.auto()
    MODSEQ = enum.auto()
    SPAN = enum.auto()
    """Between which sizes it lies, as far as that costs nothing."""
    DATE = enum.auto()
    SAVED = enum.auto()
    HEADER = enum.auto()
    SIZE = enum.auto()
    """Octets with every line end as CRLF: a store whose lines end in LF counts them."""
    BODY = enum.auto()


NONE: Final = Fact(0)
STAGES: Final = (
    Fact.UID | Fact.FLAGS | Fact.GUID | Fact.MODSEQ | Fact.SPAN,
    Fact.DATE | Fact.SAVED,
    Fact.HEADER,
    Fact.SIZE,
    Fact.BODY,
)
"""From what costs nothing to what costs most: what one decides is not asked in the next."""
ONE_BY_ONE: Final = Fact.HEADER | Fact.SIZE | Fact.BODY
"""A file is opened, or octets cross the wire, for each message."""

Column = Sequence[T] | Mapping[int, T]
"""By place. A sequence covers all places of the mailbox."""


@dataclass(slots=True, kw_only=True)
class Facts:
    """What is known of the messages at `places`; a column that was not asked for is None."""

    places: Sequence[int]
    uids: Column[int] | None = None
    flags: Column[frozenset[str]] | None = None
    """`\\Recent` too."""
    guids: Column[str] | None = None
    """"" where there is none."""
    modseqs: Column[int] | None = None
    least: Column[int] | None = None
    most: Column[int] | None = None
    """The same object as `least` where sizes are known."""
    dates: Column[int | None] | None = None
    """Seconds since 1970; None: the server did not say."""
    saved: Column[int | None] | None = None
    headers: Column[bytes | None] | None = None
    """All octets before the first empty line; more may follow. None: it cannot be read."""
    sizes: Column[int | None] | None = None
    bodies: Column[Body | None] | None = None

    def with_(self, others: Facts) -> Facts:
        """Of the places of `others` what either knows."""
        merged = Facts(places=others.places)
        for each in fields(Facts)[1:]:
            theirs = getattr(others, each.name)
            setattr(merged, each.name, getattr(self, each.name) if theirs is None else theirs)
        return merged

    def large(self) -> list[LargeBody]:
        """Bodies that somebody must close."""
        if self.bodies is None:
            return []
        found = (self.bodies[place] for place in self.places)
        return [body for body in found if body is not None and not isinstance(body, bytes)]


def asked_by(term: Term) -> Fact:
    """All that may have to be known to decide `term`."""
    asked = NONE
    for leaf in leaves(term):
        asked |= _asked_by(leaf)
    return asked


def _asked_by(leaf: Leaf) -> Fact:
    match leaf:
        case Uids():
            return Fact.UID
        case Flag() | Keyword():
            return Fact.FLAGS
        case Guid():
            return Fact.GUID
        case ModSeq():
            return Fact.MODSEQ
        case Larger() | Smaller():
            return Fact.SPAN | Fact.SIZE
        case Dated(what="received"):
            return Fact.DATE
        case Dated(what="saved") | SaveDateKnown():
            return Fact.SAVED
        case Dated() | Header():
            return Fact.HEADER
        case InThread():
            return Fact.HEADER | Fact.DATE
        case Content(""):
            return NONE
        case Content() | MimePart():
            return Fact.BODY
    return NONE
