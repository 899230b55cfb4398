"""Which messages a term selects, as far as what is known of them tells. Pure.

    decide(term, facts) ─▶ those that are selected whatever else is asked, those that may be

Works on columns: one pass over many messages for each leaf. A leaf of which nothing is known yet
holds for no message when the sure are looked for and for all when the possible are; under a NOT
the two change places, so neither is ever wrong.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, Protocol, assert_never, runtime_checkable

from aimport.errors import MessageUnreadable
from aimport.octets import pieces_of, whole, wire_size
from aimport.query import mime, mimeparts
from aimport.query.facts import Facts
from aimport.query.headers import Fields, Octets, addresses, header_of, sent
from aimport.query.mime import Part
from aimport.query.terms import (
    DAY_S,
    And,
    Content,
    Dated,
    Flag,
    Form,
    Guid,
    Header,
    InThread,
    Keyword,
    Larger,
    Leaf,
    MailboxGuid,
    MailboxName,
    MimePart,
    ModSeq,
    Not,
    Numbers,
    Or,
    Ranges,
    SaveDateKnown,
    Smaller,
    Term,
    Uids,
    up_to,
)
from aimport.query.text import normal, normal_header

_LEAST: Final = -(1 << 63)
_MOST: Final = 1 << 64

Places = Sequence[int]
"""Ascending."""


def decide(term: Term, facts: Facts, count: int) -> tuple[list[int], list[int]]:
    """Of `facts.places` those that are selected, and those of which too little is known.

    `count` is how many messages the mailbox has: the last one's sequence number.
    """
    read = _Read(facts)
    possible = _Judge(facts, read, count, sure=False).passes(term, facts.places)
    sure = _Judge(facts, read, count, sure=True).passes(term, possible)
    if len(sure) == len(possible):
        return sure, []
    known = set(sure)
    return sure, [place for place in possible if place not in known]


class _Judge:
    """Passes places that are sure to be selected, or that may be."""

    def __init__(self, facts: Facts, read: _Read, count: int, *, sure: bool) -> None:
        self._facts = facts
        self._read = read
        self._count = count
        self._sure = sure

    def passes(self, term: Term, places: Places) -> list[int]:
        if isinstance(term, And):
            for each in term.terms:
                places = self.passes(each, places)
            return list(places)
        if isinstance(term, Or):
            found: list[int] = []
            rest = places
            for each in term.terms:
                some = self.passes(each, rest)
                if some:
                    found += some
                    rest = _without(rest, some)
            return sorted(found)
        if isinstance(term, Not):
            other = _Judge(self._facts, self._read, self._count, sure=not self._sure)
            return _without(places, other.passes(term.term, places))
        return self._leaf(term, places)

    def _unknown(self, places: Places) -> list[int]:
        return [] if self._sure else list(places)

    def _leaf(self, leaf: Leaf, places: Places) -> list[int]:
        facts = self._facts
        match leaf:
            case Numbers(ranges):
                return _within(up_to(ranges, self._count), [place + 1 for place in places], places)
            case Uids(ranges):
                uids = facts.uids
                return self._unknown(places) if uids is None else _within(ranges, [uids[at] for at in places], places)
            case Flag(name):
                flags = facts.flags
                return self._unknown(places) if flags is None else [at for at in places if name in flags[at]]
            case Keyword(name):
                return self._keyword(name, places)
            case Guid(text):
                guids = facts.guids
                return self._unknown(places) if guids is None else [at for at in places if text and guids[at] == text]
            case ModSeq(least):
                modseqs = facts.modseqs
                return self._unknown(places) if modseqs is None else [at for at in places if modseqs[at] >= least]
            case Larger(octets):
                return self._larger(octets, places)
            case Smaller(octets):
                return self._smaller(octets, places)
            case Dated():
                return self._dated(leaf, places)
            case SaveDateKnown():
                saved = facts.saved
                return self._unknown(places) if saved is None else [at for at in places if saved[at] is not None]
            case Header():
                return self._header(leaf, places)
            case Content(""):
                return list(places)
            case Content(text, headers):
                key = normal(text)
                return self._parts(places, lambda message, parts: mime.holds(message, parts, key, with_headers=headers))
            case MimePart(key):
                return self._parts(places, lambda message, parts: mimeparts.selects(key, message, parts))
            case MailboxGuid() | MailboxName() | InThread():
                raise AssertionError(f"{leaf} is decided before messages are looked at")
        assert_never(leaf)

    def _keyword(self, name: str, places: Places) -> list[int]:
        """In any case; `KEYWORD \\Seen` names no keyword."""
        flags = self._facts.flags
        if flags is None:
            return self._unknown(places)
        wanted = name.lower()
        known: dict[frozenset[str], bool] = {}
        found = []
        for at in places:
            given = flags[at]
            holds = known.get(given)
            if holds is None:
                holds = any(flag.lower() == wanted for flag in given if not flag.startswith("\\"))
                known[given] = holds
            if holds:
                found.append(at)
        return found

    def _larger(self, octets: int, places: Places) -> list[int]:
        if self._facts.sizes is not None or self._facts.bodies is not None:
            return self._each(places, lambda at: None if (size := self._size(at)) is None else size > octets)
        bound = self._facts.least if self._sure else self._facts.most
        return self._unknown(places) if bound is None else [at for at in places if bound[at] > octets]

    def _smaller(self, octets: int, places: Places) -> list[int]:
        if self._facts.sizes is not None or self._facts.bodies is not None:
            return self._each(places, lambda at: None if (size := self._size(at)) is None else size < octets)
        bound = self._facts.most if self._sure else self._facts.least
        return self._unknown(places) if bound is None else [at for at in places if bound[at] < octets]

    def _size(self, at: int) -> int | None:
        if self._facts.sizes is not None:
            return self._facts.sizes[at]
        assert self._facts.bodies is not None
        body = self._facts.bodies[at]
        return None if body is None else wire_size(pieces_of(body))

    def _each(self, places: Places, holds: Callable[[int], bool | None]) -> list[int]:
        """`holds` says None of a message that cannot be read: it is selected, so that reading it says why."""
        found = []
        for at in places:
            try:
                held = holds(at)
            except (OSError, MessageUnreadable):
                held = None
            if held or (held is None and not self._sure):
                found.append(at)
        return found

    def _dated(self, leaf: Dated, places: Places) -> list[int]:
        if leaf.what == "sent":
            return self._sent(leaf, places)
        column = self._facts.dates if leaf.what == "received" else self._facts.saved
        if column is None:
            return self._unknown(places)
        moments: list[int] = []
        dated: list[int] = []
        unknown: list[int] = []
        for at in places:
            moment = column[at]
            if moment is not None:
                moments.append(moment)
                dated.append(at)
            elif leaf.what == "received":  # every message has one: this is not told
                unknown.append(at)
        if leaf.by_day and leaf.offset is not None:
            moments = _shifted(moments, leaf)
        since = _LEAST if leaf.since is None else leaf.since
        until = _MOST if leaf.until is None else leaf.until
        found = [at for at, moment in zip(dated, moments, strict=True) if since <= moment < until]
        return sorted(found + self._unknown(unknown)) if unknown else found

    def _sent(self, leaf: Dated, places: Places) -> list[int]:
        if not self._read.headers_known:
            return self._unknown(places)
        since = _LEAST if leaf.since is None else leaf.since
        until = _MOST if leaf.until is None else leaf.until

        def within(at: int) -> bool | None:
            fields = self._read.fields(at)
            if fields is None:
                return None
            found = sent(fields.first("date"))
            return since <= (found.at + found.ahead if leaf.by_day else found.at) < until

        return self._each(places, within)

    def _header(self, leaf: Header, places: Places) -> list[int]:
        if not self._read.headers_known:
            return self._unknown(places)
        key = normal(leaf.text)

        def held(at: int) -> bool | None:
            fields = self._read.fields(at)
            if fields is None:
                return None
            values = fields.values(leaf.name)
            return bool(values) if not key else any(key in _searched(value, leaf.form) for value in values)

        return self._each(places, held)

    def _parts(self, places: Places, holds: Callable[[Octets, Sequence[Part]], bool]) -> list[int]:
        if self._facts.bodies is None:
            return self._unknown(places)

        def held(at: int) -> bool | None:
            message = self._read.message(at)
            return None if message is None else holds(message, self._read.parts(at, message))

        return self._each(places, held)


def _searched(value: bytes, form: Form) -> str:
    """What of a field's value a key is looked for in."""
    if form == "squeezed":
        value = _BLANKS.sub(b" ", value).removeprefix(b" ")
    elif form == "addresses":
        value = addresses(value)
    return normal_header(value) + "\r\n"  # as in Dovecot the end of the line counts


_BLANKS = re.compile(rb"[ \t]+")


@runtime_checkable
class _Viewable(Protocol):
    """A large body that need not be whole in memory."""

    def view(self) -> Octets: ...


class _Read:
    """Headers and bodies of a batch, each parsed once, whatever terms ask. None: it cannot be read."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._fields: dict[int, Fields | None] = {}
        self._messages: dict[int, Octets | None] = {}
        self._parts: dict[int, list[Part]] = {}

    @property
    def headers_known(self) -> bool:
        return self._facts.headers is not None or self._facts.bodies is not None

    def fields(self, at: int) -> Fields | None:
        if at not in self._fields:
            block = self._header(at)
            self._fields[at] = None if block is None else Fields(block)
        return self._fields[at]

    def _header(self, at: int) -> bytes | None:
        if self._facts.bodies is None:
            assert self._facts.headers is not None
            return self._facts.headers[at]
        message = self.message(at)
        return None if message is None else header_of(message)

    def message(self, at: int) -> Octets | None:
        if at not in self._messages:
            assert self._facts.bodies is not None
            body = self._facts.bodies[at]
            if body is None or isinstance(body, bytes):
                self._messages[at] = body
            else:
                self._messages[at] = body.view() if isinstance(body, _Viewable) else whole(body)
        return self._messages[at]

    def parts(self, at: int, message: Octets) -> list[Part]:
        if at not in self._parts:
            self._parts[at] = mime.parts(message)
        return self._parts[at]


def _shifted(moments: list[int], leaf: Dated) -> list[int]:
    """What the clocks showed; only near the bounds is the zone asked."""
    assert leaf.offset is not None
    bounds = [bound for bound in (leaf.since, leaf.until) if bound is not None]
    low, high = min(bounds) - 2 * DAY_S, max(bounds) + 2 * DAY_S
    offset = leaf.offset
    return [moment + offset(moment) if low < moment < high else moment for moment in moments]


def _within(ranges: Ranges, numbers: Sequence[int], places: Places) -> list[int]:
    """Places whose number is in one of the ranges."""
    if len(ranges) == 1:
        first, last = ranges[0]
        return [at for at, number in zip(places, numbers, strict=True) if first <= number <= last]
    starts = [first for first, _ in ranges]
    found = []
    for at, number in zip(places, numbers, strict=True):
        index = bisect_right(starts, number) - 1
        if index >= 0 and number <= ranges[index][1]:
            found.append(at)
    return found


def _without(places: Places, others: Sequence[int]) -> list[int]:
    gone = set(others)
    return [at for at in places if at not in gone]
