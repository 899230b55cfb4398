"""Words to a `Query`, exactly as doveadm 2.3.19 takes them; what it refuses gets a caret under the word.

    item+ ─▶ And        any OR among them ─▶ Or, also of what stood before the first OR

A query is a list of shell words; nothing is split further. Values are taken as they stand.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from aimport import names
from aimport.errors import UsageError
from aimport.query import dates
from aimport.query.dates import Clock
from aimport.query.query import Query
from aimport.query.terms import (
    ALL,
    DAY_S,
    LAST,
    NOTHING,
    Algorithm,
    And,
    Content,
    Date,
    Dated,
    Flag,
    Form,
    Guid,
    Header,
    How,
    InThread,
    Keyword,
    Larger,
    MailboxGuid,
    MailboxName,
    MimePart,
    ModSeq,
    Not,
    Numbers,
    Or,
    PartAll,
    PartAny,
    PartDated,
    PartField,
    PartKey,
    PartNot,
    PartNumber,
    PartParameter,
    PartRelative,
    SaveDateKnown,
    Smaller,
    Term,
    Uids,
)

MAX_DEPTH: Final = 100  # arbitrary: nobody writes so many parentheses or NOTs
SHOWN: Final = 100
"""Characters of a query shown with an error."""

_FLAGS: Final = ("ANSWERED", "DELETED", "DRAFT", "FLAGGED", "SEEN")
_DATE_FORMS: Final = "write 2024-02-29, 29-Feb-2024, a Unix time, or an interval such as 3days"
_SIZE_FORMS: Final = "write octets, or a whole number with k, M, G or T"
_DATES: Final[tuple[tuple[str, Date], ...]] = (
    ("", "received"),
    ("SENT", "sent"),
    ("SAVED", "saved"),
    ("X-SAVED", "saved"),
)
_SAVED_SEARCH: Final = "doveadm has no saved search here"


def parse_query(words: Sequence[str], clock: Clock | None = None) -> Query:
    """The query of these words. Intervals count back from `clock.now`; without a clock from 1970.

    Raises:
        UsageError: doveadm would not take them, or would take them for something that never holds.
    """
    if not words:
        raise UsageError("the query is empty", hint="ALL selects everything")
    parser = _Parser(words, clock or Clock(now=0))
    query = Query(term=parser.query())
    if query.counts and len(query.exact_names) != 1:
        parser.warn(
            "sequence numbers: as in doveadm a set is cut to the size of each mailbox on the way, the INBOX last;"
            " name one MAILBOX"
        )
    return replace(query, warnings=tuple(parser.warnings))


class _List:
    """A list under way: whether the item being read had an OR before it."""

    __slots__ = ("infix",)

    def __init__(self) -> None:
        self.infix = False


class _Parser:
    def __init__(self, words: Sequence[str], clock: Clock) -> None:
        self._words = words
        self._clock = clock
        self._at = 0
        self._depth = 0
        self.warnings: list[str] = []

    # Words

    def error(self, text: str, at: int, hint: str = "") -> UsageError:
        line, column, width = _shown(self._words, at)
        hint = f" ({hint})" if hint else ""
        return UsageError(f"query: {text}{hint}\n  {line}\n  {' ' * column}{'^' * width}")

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _next(self) -> str | None:
        if self._at == len(self._words):
            return None
        self._at += 1
        return self._words[self._at - 1]

    def _value(self, key: str) -> str:
        value = self._next()
        if value is None:
            raise self.error(f"Missing parameter for search key {key}", self._at)
        return value

    def _text(self, key: str) -> str:
        value = self._value(key)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(f"{key}: the value is not valid UTF-8", self._at - 1) from None
        return value

    # Lists

    def query(self) -> Term:
        return self._list(None)

    def _list(self, opened: int | None) -> Term:
        """Items up to the end of the words, or to the `)` of the list that was opened at that word."""
        items: list[Term] = []
        before: int | None = None  # items before the first OR
        began = self._at
        while True:
            at = self._at
            word = self._next()
            if word is None:
                if opened is not None:
                    raise self.error("Missing ')'", opened)
                break
            if word == ")":
                if opened is None:
                    raise self.error("Unexpected ')'", at)
                if not items:
                    raise self.error("No search parameters inside list", at)
                break
            place = _List()
            item = self._item(word, at, place)
            if before is not None and not place.infix:
                raise self.error("Use parenthesis when mixing ANDs and ORs", at, "( A OR B ) C, or A OR ( B C )")
            if before is None and place.infix:
                before = len(items)
            items.append(item)
        if before is not None and before > 1:
            said = _joined(self._words[began : self._at - (opened is not None)])
            self.warn(f"{said}: as in doveadm OR joins all that stands before it too; parentheses change that")
        if len(items) == 1:
            return items[0]
        return And(tuple(items)) if before is None else Or(tuple(items))

    def _argument(self, key: str, place: _List) -> Term:
        """The item that a NOT, OR, FUZZY or INTHREAD belongs to."""
        at = self._at
        word = self._next()
        if word is None:
            raise self.error(f"Missing argument of {key}", at)
        if word == ")":
            raise self.error(f"Missing argument of {key}", at)
        return self._item(word, at, place)

    def _item(self, word: str, at: int, place: _List) -> Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} levels", at)
        term = self._list(at) if word == "(" else self._key(word, at, place)
        self._depth -= 1
        return term

    # Keys

    def _key(self, word: str, at: int, place: _List) -> Term:
        key = _upper(word)
        match key:
            case "ALL":
                return ALL
            case "OLDESTONLY":
                return ALL
            case "NOT":
                return Not(self._argument(key, place))
            case "OR":
                place.infix = True
                return self._argument(key, place)
            case "FUZZY":
                return self._argument(key, place)
            case "INTHREAD":
                return self._thread(key)
            case "MIMEPART":
                return MimePart(self._part_key(key))
            case "MODSEQ":
                return self._modseq(key)
            case "$":
                self.warn(f"$: {_SAVED_SEARCH}, it matches nothing")
                return NOTHING
            case "UID" | "X-REAL-UID":
                return self._uids(key)
            case "RECENT" | "OLD" | "NEW":
                return self._recent(key)
            case "KEYWORD":
                return Keyword(self._value(key))
            case "UNKEYWORD":
                return Not(Keyword(self._value(key)))
            case "OLDER" | "YOUNGER":
                return self._age(key)
            case "SAVEDATESUPPORTED":
                return SaveDateKnown()
            case "LARGER" | "SMALLER":
                return self._size(key)
            case "FROM" | "TO" | "CC" | "BCC":
                return self._header(key, "addresses")
            case "SUBJECT":
                return self._header(key, "squeezed")
            case "HEADER":
                name = self._text(key)
                return Header(_lower(name), self._text(key))
            case "BODY" | "TEXT":
                return Content(self._text(key), headers=key == "TEXT")
            case "GUID" | "X-GUID":
                return Guid(self._value(key))
            case "MAILBOX":
                return self._mailbox(key)
            case "X-MAILBOX":
                return self._encoded_mailbox(key)
            case "MAILBOX-GUID":
                return MailboxGuid(self._value(key))
        if key in _FLAGS:
            return Flag(f"\\{key.capitalize()}")
        if key.startswith("UN") and key[2:] in _FLAGS:
            return Not(Flag(f"\\{key[2:].capitalize()}"))
        if key in _DATE_KEYS:
            return self._date(key)
        if word[:1] == "*" or ("0" <= word[:1] <= "9"):
            ranges = dates.numbers(word)
            if ranges is None:
                raise self.error(f"{word!r} is not a set of sequence numbers", at, "such as 1:5,8")
            return Numbers(ranges)
        raise self._unknown(word, at, KEYS, "key")

    def _unknown(self, word: str, at: int, known: Sequence[str], what: str) -> UsageError:
        key = _upper(word)
        if key == "AND":
            return self.error("unknown key AND: what stands side by side must all hold, leave it out", at)
        if key not in ("(", ")") and (bare := key.strip("()")) != key and (not bare or bare.split(" ")[0] in known):
            return self.error(f"unknown {what} {word!r}: ( and ) are words of their own", at)
        if " " in key and key.split(" ")[0] in known:
            return self.error(f"unknown {what} {word!r}: a key and its value are two words", at)
        import difflib  # 5 ms that a right query does not need

        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        shown = word if word.isprintable() and word and " " not in word else repr(word)
        return self.error(f"unknown {what} {shown}" + (f", did you mean {near[0]}?" if near else ""), at)

    def _thread(self, key: str) -> Term:
        at = self._at
        algorithm = _upper(self._value(key))
        place = _List()
        if algorithm in ("REFERENCES", "REFS", "ORDEREDSUBJECT"):
            term = self._argument(key, place)
            # OR in place of the item makes an OR of the thread itself, as in doveadm.
            return term if place.infix else InThread(_ALGORITHMS[algorithm], term)
        raise self._unknown(algorithm, at, tuple(_ALGORITHMS), "thread algorithm")

    def _modseq(self, key: str) -> Term:
        value = self._value(key)
        if _lower(value).startswith("/flags/"):
            name = value[len("/flags/") :]
            if name.startswith("\\") and name[1:].upper() not in _FLAGS:
                raise self.error(f"MODSEQ: {name} is no system flag", self._at - 1)
            kind = self._value(key)
            if _lower(kind) not in ("all", "priv", "shared"):
                raise self.error(f"MODSEQ: {kind!r} is not all, priv or shared", self._at - 1)
            value = self._value(key)
        if not (value.isascii() and value.isdecimal() and int(value) < 1 << 64):
            raise self.error(f"MODSEQ: {value!r} is not a number", self._at - 1)
        return ModSeq(int(value))

    def _uids(self, key: str) -> Term:
        value = self._value(key)
        if value == "$" and key == "UID":
            self.warn(f"UID $: {_SAVED_SEARCH}, it matches nothing")
            return NOTHING
        ranges = dates.numbers(value)
        if ranges is None:
            raise self.error(f"{key}: {value!r} is not a set of UIDs", self._at - 1, "such as 1:5,8")
        if any(first == LAST for first, _ in ranges):
            self.warn(f"{key} *: as in doveadm this is no message's UID; LAST:* with a number in front works")
        return Uids(ranges)

    def _recent(self, key: str) -> Term:
        self.warn(f"{key}: which messages are recent depends on who opened the mailbox before; of local stores all are")
        recent = Flag("\\Recent")
        if key == "NEW":
            return And((recent, Not(Flag("\\Seen"))))
        return recent if key == "RECENT" else Not(recent)

    def _date(self, key: str) -> Term:
        value = self._value(key)
        found = dates.moment(value, self._clock)
        if found is None:
            raise self.error(f"{key}: {value!r} is not a date", self._at - 1, _DATE_FORMS)
        what, verb = _DATE_KEYS[key]
        if found.zoned and (ahead := self._clock.offset(found.at)):
            clock = f"{abs(ahead) // 3600}:{abs(ahead) // 60 % 60:02}"
            side = "before" if ahead > 0 else "after"
            self.warn(
                f"{key} {value}: as in doveadm its day begins {clock} hours {side} midnight in this zone;"
                " the form 29-Feb-2024 means the day itself"
            )
        since = None if verb == "BEFORE" else found.at
        until = found.at if verb == "BEFORE" else found.at + DAY_S if verb == "ON" else None
        return Dated(what, since, until, by_day=found.by_day, offset=self._clock.offset)

    def _age(self, key: str) -> Term:
        value = self._value(key)
        if not (value.isascii() and value.isdecimal() and 0 < int(value) < 1 << 32):
            raise self.error(f"{key}: {value!r} is not a number of seconds", self._at - 1)
        then = self._clock.now - int(value)
        return Dated("received", since=then) if key == "YOUNGER" else Dated("received", until=then + 1)

    def _size(self, key: str) -> Term:
        value = self._value(key)
        octets = dates.size(value)
        if octets is None:
            raise self.error(f"{key}: {value!r} is not a size", self._at - 1, _SIZE_FORMS)
        return Larger(octets) if key == "LARGER" else Smaller(octets)

    def _header(self, key: str, form: Form) -> Term:
        return Header(_lower(key), self._text(key), form)

    def _mailbox(self, key: str) -> Term:
        name = self._text(key)
        if not name:
            raise self.error("MAILBOX: the name is empty", self._at - 1)
        return MailboxName(name, pattern="*" in name or "%" in name)

    def _encoded_mailbox(self, key: str) -> Term:
        value = self._value(key)
        name = names.decode_utf7(value)
        if name is None:
            raise self.error(f"{key}: {value!r} is not modified UTF-7", self._at - 1)
        return MailboxName(name, pattern=True)

    # MIME parts

    def _part_key(self, key: str) -> PartKey:
        """One key of the MIMEPART language, or a list of them."""
        at = self._at
        word = self._next()
        if word is None or word == ")":
            raise self.error(f"Missing MIMEPART key after {key}", at)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} levels", at)
        found = self._part_list(at) if word == "(" else self._part(word, at)
        self._depth -= 1
        return found

    def _part_list(self, opened: int) -> PartKey:
        keys: list[PartKey] = []
        while True:
            if self._at == len(self._words):
                raise self.error("Missing ')'", opened)
            if self._words[self._at] == ")":
                if not keys:
                    raise self.error("No MIMEPART keys inside list", self._at)
                self._at += 1
                return PartAll(tuple(keys))
            keys.append(self._part_key("("))

    def _part(self, word: str, at: int) -> PartKey:
        key = _upper(word)
        match key:
            case "NOT":
                return PartNot(self._part_key(key))
            case "OR":
                # Prefix, and several: OR A OR B C.
                keys = [self._part_key(key)]
                while self._at < len(self._words) and _upper(self._words[self._at]) == "OR":
                    self._at += 1
                    keys.append(self._part_key(key))
                return PartAny((*keys, self._part_key(key)))
            case "PARENT" | "CHILD":
                return self._relative("PARENT" if key == "PARENT" else "CHILD")
            case "SENTBEFORE" | "SENTON" | "SENTSINCE":
                return self._part_date(key)
            case "SIZE":
                return self._part_size(key)
            case "DEPTH":
                return self._part_depth(key)
            case "INDEX":
                number = self._number(key, self._value(key), 32)
                return PartNumber("INDEX", number, number)
            case "PARAM":
                name = self._text(key)
                return PartParameter("TYPE", _lower(name), self._text(key))
            case "DISPOSITION":
                return self._disposition(key)
            case "FILENAME":
                return self._filename(key)
            case "HEADER" | "BODY" | "TEXT":
                # Dovecot takes them and lets them decide nothing, so that neither they nor their negation holds.
                hint = f"use {key} outside of MIMEPART"
                raise self.error(f"MIMEPART {key} holds for no message", at, hint)
        if key in _PART_TEXTS:
            return PartField(key, _PART_TEXTS[key], self._text(key))
        raise self._unknown(word, at, PART_KEYS, "MIMEPART key")

    def _relative(self, which: str) -> PartKey:
        start, negated = self._at, False
        while self._at < len(self._words) and _upper(self._words[self._at]) == "NOT":
            self._at += 1
            negated = not negated
        parent = which == "PARENT"
        if self._at < len(self._words) and _upper(self._words[self._at]) == "EXISTS":
            self._at += 1
            any_ = PartRelative("PARENT" if parent else "CHILD", None)
            return PartNot(any_) if negated else any_
        self._at = start
        return PartRelative("PARENT" if parent else "CHILD", self._part_key(which))

    def _part_date(self, key: str) -> PartKey:
        value = self._value(key)
        day = dates.imap_date(value)
        if day is None:
            raise self.error(f"MIMEPART {key}: {value!r} is not a date", self._at - 1, "write 29-Feb-2024")
        if key == "SENTBEFORE":
            return PartDated(until=day)
        return PartDated(since=day, until=day + DAY_S if key == "SENTON" else None)

    def _number(self, key: str, value: str, bits: int) -> int:
        if value.isascii() and value.isdecimal() and int(value) < 1 << bits:
            return int(value)
        raise self.error(f"MIMEPART {key}: {value!r} is not a number", self._at - 1)

    def _part_size(self, key: str) -> PartKey:
        value = self._value(key)
        match _upper(value):
            case "LARGER":
                return PartNumber("SIZE", least=self._number(key, self._value(key), 64) + 1)
            case "SMALLER":
                return PartNumber("SIZE", most=self._number(key, self._value(key), 64) - 1)
        octets = self._number(key, value, 64)
        return PartNumber("SIZE", octets, octets)

    def _part_depth(self, key: str) -> PartKey:
        value = self._value(key)
        match _upper(value):
            case "MIN":
                return PartNumber("DEPTH", least=self._number(key, self._value(key), 32))
            case "MAX":
                return PartNumber("DEPTH", most=self._number(key, self._value(key), 32))
        depth = self._number(key, value, 32)
        return PartNumber("DEPTH", depth, depth)

    def _disposition(self, key: str) -> PartKey:
        what = _upper(self._value(key))
        if what == "TYPE":
            return PartField("DISPOSITION", "is", self._text(key))
        if what == "PARAM":
            name = self._text(key)
            return PartParameter("DISPOSITION", _lower(name), self._text(key))
        raise self._unknown(what, self._at - 1, ("TYPE", "PARAM"), "word of MIMEPART DISPOSITION")

    def _filename(self, key: str) -> PartKey:
        how = _upper(self._value(key))
        match how:
            case "IS":
                return PartField(key, "is", self._text(key))
            case "CONTAINS":
                return PartField(key, "contains", self._text(key))
            case "BEGINS":
                return PartField(key, "begins", self._text(key))
            case "ENDS":
                return PartField(key, "ends", self._text(key))
        raise self._unknown(how, self._at - 1, ("IS", "CONTAINS", "BEGINS", "ENDS"), "word of MIMEPART FILENAME")


_ALGORITHMS: Final[dict[str, Algorithm]] = {
    "REFERENCES": "REFERENCES",
    "REFS": "REFS",
    "ORDEREDSUBJECT": "ORDEREDSUBJECT",
}
_DATE_KEYS: Final[dict[str, tuple[Date, str]]] = {
    f"{prefix}{verb}": (what, verb) for prefix, what in _DATES for verb in ("BEFORE", "ON", "SINCE")
}
_PART_TEXTS: Final[dict[str, How]] = {
    **dict.fromkeys(("TYPE", "SUBTYPE", "ENCODING", "ID", "LANGUAGE", "LOCATION", "MD5"), "is"),
    **dict.fromkeys(("DESCRIPTION", "SUBJECT", "FROM", "TO", "CC", "BCC", "SENDER"), "contains"),
    **dict.fromkeys(("REPLY-TO", "IN-REPLY-TO", "MESSAGE-ID"), "contains"),
}
PART_KEYS: Final = (
    *_PART_TEXTS,
    *("NOT", "OR", "SENTBEFORE", "SENTON", "SENTSINCE", "SIZE", "DEPTH", "INDEX", "PARAM", "DISPOSITION", "FILENAME"),
    *("PARENT", "CHILD", "EXISTS", "HEADER", "BODY", "TEXT"),
)
KEYS: Final = (
    *_FLAGS,
    *(f"UN{flag}" for flag in _FLAGS),
    *_DATE_KEYS,
    *("ALL", "UID", "RECENT", "OLD", "NEW", "KEYWORD", "UNKEYWORD", "SAVEDATESUPPORTED", "OLDER", "YOUNGER"),
    *("LARGER", "SMALLER", "FROM", "TO", "CC", "BCC", "SUBJECT", "HEADER", "BODY", "TEXT", "MAILBOX"),
    *("MAILBOX-GUID", "GUID", "OLDESTONLY", "INTHREAD", "MODSEQ", "FUZZY", "MIMEPART", "X-GUID", "X-MAILBOX"),
    *("X-REAL-UID", "OR", "NOT", "(", ")", "$"),
)
"""All keys, in upper case."""


def _upper(word: str) -> str:
    """In ASCII only: a dotless i is no I."""
    return word.upper() if word.isascii() else word


def _lower(word: str) -> str:
    return word.lower() if word.isascii() else word


def _joined(words: Sequence[str]) -> str:
    return " ".join(map(_word, words))


def _word(word: str) -> str:
    """A word as one would type it, without what a terminal would obey."""
    quoted = word if word in ("(", ")", "*") or (word and not set(word) - _PLAIN) else shlex.quote(word)
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in quoted)


_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_$*")


def _shown(words: Sequence[str], at: int) -> tuple[str, int, int]:
    """A line of the query with the word at `at` in it, which may be the one behind the last; its column and width."""
    shown = [_word(word) for word in words]
    marked = shown[at] if at < len(shown) else ""
    if len(marked) > SHOWN:
        marked = marked[:SHOWN] + "..."
    before = " ".join(shown[:at])
    after = " ".join(shown[at + 1 :])
    if len(before) > SHOWN:
        before = "..." + before[-SHOWN:]
    if len(after) > SHOWN:
        after = after[:SHOWN] + "..."
    column = len(before) + bool(before)
    return " ".join(filter(None, (before, marked, after))), column, max(len(marked), 1)
