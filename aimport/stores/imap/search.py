"""What of a term an IMAP server can decide: a search that finds at least what the term selects. Pure.

    Term ─▶ Program(words, exact)        not exact: what is found is decided again here (`selecting.sift`)

A key that means the same everywhere is pushed as it is. Of one that is only nearly the same a wider
one is pushed, or under NOT a narrower one, so that nothing that the term selects is ever missed.
Texts are pushed only where the server is trusted: how it decodes and compares is its own affair.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aimport import flags
from aimport.imap.commands import Literal, Word, astring
from aimport.query.terms import (
    DAY_S,
    And,
    Content,
    Dated,
    Flag,
    Guid,
    Header,
    InThread,
    Keyword,
    Larger,
    Leaf,
    ModSeq,
    Not,
    Numbers,
    Or,
    SaveDateKnown,
    Smaller,
    Term,
    Uids,
    factors,
    leaves,
)

MAX_NUMBER: Final = 2**32 - 1  # RFC 9051 §9
_FLAGS: Final = {"\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is known of the other end, and of the mailbox that is open."""

    offered: frozenset[str] = frozenset()
    keywords: Collection[str] = ()
    """As the mailbox has them (FLAGS)."""
    uidnext: int = MAX_NUMBER
    trusted: bool = False
    """Text keys mean to it what they mean here."""
    sizes: bool = True
    """It counts sizes with CRLF, as RFC822.SIZE is meant to."""
    reliable: bool = True
    """False: its SEARCH by dates and texts finds what it likes."""
    guids: bool = False
    """It knows X-GUID."""
    extensions: bool = True
    """False: it has refused a search, so only keys of RFC 3501 without texts are left."""
    now: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """Words of a UID SEARCH, and the terms that are left to decide for what it finds."""

    words: tuple[Word, ...]
    left: Term
    charset: bool
    """Words hold UTF-8."""


Keys = tuple[Word, ...] | bool
"""One search key, or that it always holds, or never."""


def program(term: Term, server: Server) -> Program | None:
    """The search for `term`; None: nothing of it can be left to the server."""
    if any(isinstance(leaf, Numbers | InThread) for leaf in leaves(term)):
        return None  # they hang on the messages that are not found, too
    bounds = _Bounds(server)
    words: list[Word] = []
    left: list[Term] = []
    for factor in factors(term):
        found = bounds.of(factor, wider=True)
        if not bounds.is_exact(factor):
            left.append(factor)
        if found is False:
            words = [b"NOT", b"ALL"]
            break
        if found is not True:
            words += found
    if not words:
        return None
    charset = any(isinstance(word, Literal) and not word.octets.isascii() for word in words)
    return Program(tuple(words), left[0] if len(left) == 1 else And(tuple(left)), charset)


class _Bounds:
    """Searches that find at least, or at most, what a term selects."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def is_exact(self, term: Term) -> bool:
        return self.of(term, wider=True) == self.of(term, wider=False)

    def of(self, term: Term, *, wider: bool) -> Keys:
        if isinstance(term, Not):
            return _denied(self.of(term.term, wider=not wider))
        if isinstance(term, And):
            return _all(self.of(each, wider=wider) for each in term.terms)
        if isinstance(term, Or):
            return _any(self.of(each, wider=wider) for each in term.terms)
        return self._leaf(term, wider=wider)

    def _leaf(self, leaf: Leaf, *, wider: bool) -> Keys:
        """`wider` where nothing can be said: that it may hold for all, or surely for none."""
        server = self._server
        match leaf:
            case Flag(name) if name in _FLAGS:
                return (name[1:].upper().encode(),)
            case Keyword(name):
                return self._keyword(name, wider=wider)
            case Uids(ranges):
                known = [(first, min(last, server.uidnext - 1)) for first, last in ranges if first < server.uidnext]
                sets = [b"%d" % first if first == last else b"%d:%d" % (first, last) for first, last in known]
                return (b"UID", b",".join(sets)) if sets else False
            case Larger(octets) if octets <= MAX_NUMBER:
                # Stored with LF, it has half the octets at least.
                return (b"LARGER", b"%d" % (octets if server.sizes or not wider else octets // 2))
            case Smaller(octets) if octets <= MAX_NUMBER:
                return (b"SMALLER", b"%d" % (octets if server.sizes or wider else octets // 2))
            case Dated():
                return self._dated(leaf, wider=wider)
        if server.extensions:
            match leaf:
                case SaveDateKnown() if "SAVEDATE" in server.offered:
                    return (b"SAVEDATESUPPORTED",) if wider else False
                case ModSeq(least) if "CONDSTORE" in server.offered and least:
                    return (b"MODSEQ", b"%d" % least)
                case Guid(text) if server.guids and _sendable(text):
                    return (b"X-GUID", _string(text))
                case Header(name, text, form) if server.trusted and name and _sendable(text) and _sendable(name):
                    named = (b"HEADER", _string(name)) if form == "value" else (name.upper().encode(),)
                    return (*named, _string(text))
                case Content(text, headers) if server.trusted and text and _sendable(text):
                    return (b"TEXT" if headers else b"BODY", _string(text))
        return wider

    def _keyword(self, name: str, *, wider: bool) -> Keys:
        """Each spelling that the mailbox has: servers differ in whether case counts."""
        spelt = sorted(known for known in self._server.keywords if known.lower() == name.lower())
        if not spelt or not all(flags.is_keyword(known) for known in spelt):
            return wider
        return _any((b"KEYWORD", known.encode()) for known in spelt)

    def _dated(self, leaf: Dated, *, wider: bool) -> Keys:
        """By days of whatever zone the server thinks in."""
        if not self._server.reliable:
            return wider
        if leaf.what == "sent":
            # Servers differ on a date that is missing or broken: it counts as 1970 here.
            if not wider or leaf.since is None or leaf.since < 4 * DAY_S:
                return wider
            return _by_day(b"SENTSINCE", leaf.since - 2 * DAY_S, wider=True)
        if leaf.what == "saved" and not ("SAVEDATE" in self._server.offered and self._server.extensions and wider):
            return wider  # a message without one is found by its INTERNALDATE (RFC 8514 §4.2)
        prefix = b"SAVED" if leaf.what == "saved" else b""
        slack = 2 * DAY_S if leaf.by_day else DAY_S
        keys: list[Keys] = []
        if leaf.since is not None:
            first = leaf.since - slack if wider else leaf.since + slack + DAY_S
            keys.append(_by_day(prefix + b"SINCE", first, wider=wider))
            if wider and self._within(leaf):
                keys[-1] = (b"YOUNGER", b"%d" % (self._server.now - leaf.since + DAY_S))
        if leaf.until is not None:
            last = leaf.until + slack + DAY_S if wider else leaf.until - slack
            keys.append(_by_day(prefix + b"BEFORE", last, wider=wider))
        return _all(keys)

    def _within(self, leaf: Dated) -> bool:
        """An interval back from now (RFC 5032), with a day for clocks that differ."""
        server = self._server
        if leaf.what != "received" or leaf.by_day or leaf.since is None:
            return False
        age = server.now - leaf.since
        return "WITHIN" in server.offered and server.extensions and 0 < age < 2 * DAY_S


def _by_day(key: bytes, moment: int, *, wider: bool) -> Keys:
    """A key with a date; of one that servers may not know (RFC 3501 has four digits of a year) nothing is said."""
    if not 0 <= moment < _LAST_DAY:
        return wider
    day = datetime.fromtimestamp(moment, UTC)
    return (key, b"%d-%s-%04d" % (day.day, _MONTHS[day.month - 1], day.year))


_LAST_DAY: Final = 253_402_214_400
_MONTHS: Final = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")


def _sendable(text: str) -> bool:
    return "\0" not in text


def _string(text: str) -> Word:
    return Literal(text.encode()) if "\r" in text or "\n" in text else astring(text)


def _denied(keys: Keys) -> Keys:
    if isinstance(keys, bool):
        return not keys
    return keys[1:] if keys[0] == b"NOT" else (b"NOT", *keys)


def _all(several: Iterable[Keys]) -> Keys:
    """One key that holds where all do."""
    kept: list[tuple[Word, ...]] = []
    for keys in several:
        if keys is False:
            return False
        if not isinstance(keys, bool):
            kept.append(keys)
    if len(kept) < 2:
        return kept[0] if kept else True
    first, *words = (word for keys in kept for word in keys)
    last = words[-1]
    # A parenthesis stands at a word, without a blank; behind a literal there is none to stand at.
    closed = [*words, b"ALL)"] if not isinstance(last, bytes) else [*words[:-1], last + b")"]
    assert isinstance(first, bytes), "every key begins with its name"
    return (b"(" + first, *closed)


def _any(several: Iterable[Keys]) -> Keys:
    """One key that holds where one does: OR takes two (RFC 9051 §6.4.4)."""
    kept: list[tuple[Word, ...]] = []
    for keys in several:
        if keys is True:
            return True
        if not isinstance(keys, bool):
            kept.append(keys)
    if not kept:
        return False
    ors: list[Word] = []
    for keys in kept[:-1]:
        ors += (b"OR", *keys)
    return (*ors, *kept[-1])
