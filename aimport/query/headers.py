"""A header block: its fields as Dovecot reads them, dates, address lists written again. Pure.

    octets ─▶ Fields ─▶ values, unfolded          Date: ─▶ sent()          From: ─▶ addresses()

Any octets give a value; what is broken gives what Dovecot 2.3.19 makes of it (`message-header-parser.c`,
`message-date.c`, `message-address.c`), because searches hang on it.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, overload

MAX_NAME: Final = 1000
"""Octets; a longer name is none."""
_LINE = re.compile(rb"([^\n]*?)\r?(?:\n|\Z)")


class Octets(Protocol):
    """A message, in memory or in a file."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> bytes: ...
    def __getitem__(self, place: int | slice) -> int | bytes: ...

    def find(self, wanted: bytes, start: int = 0, end: int | None = None, /) -> int: ...


def header_of(message: Octets) -> bytes:
    """The octets before the first empty line."""
    if message[:1] == b"\n" or message[:2] == b"\r\n":
        return b""
    end = message.find(b"\n\n")
    crlf = message.find(b"\n\r\n", 0, None if end < 0 else end)
    end = crlf if crlf >= 0 else end
    return message[: None if end < 0 else end + 1]


def fields(block: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, what stands between it and the value, and the unfolded value of each field, in order.

    A line without a colon has no name and is all value. Of a line that goes on the white space stays
    with which it does, a tab at its beginning as a blank.
    """
    lines = block.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    at = 0
    while at < len(lines):
        line = lines[at].removesuffix(b"\r")
        if not line:
            return
        at += 1
        folded = []
        while at < len(lines) and lines[at][:1] in (b" ", b"\t"):
            more = lines[at].removesuffix(b"\r")
            folded.append(b" " + more[1:] if more[:1] == b"\t" else more)
            at += 1
        name, colon, value = line.partition(b":")
        shown = name.rstrip(b" \t")
        if not colon or len(shown) > MAX_NAME:
            yield b"", b"", b"".join((line, *folded))
            continue
        blank = value[:1] if value[:1] in (b" ", b"\t") else b""
        yield shown, name[len(shown) :] + b":" + blank, b"".join((value[len(blank) :], *folded))


class Fields:
    """Values by name."""

    def __init__(self, block: bytes) -> None:
        self._values: dict[bytes, list[bytes]] = {}
        for name, _, value in fields(block):
            if name:
                self._values.setdefault(name.lower(), []).append(value)

    def values(self, name: str) -> Sequence[bytes]:
        """Of all fields of that name, which is in lower case."""
        return self._values.get(name.encode("utf-8", "surrogateescape"), ())

    def first(self, name: str) -> bytes | None:
        found = self.values(name)
        return found[0] if found else None


# Octets an atom may have: no controls, blanks and specials; 8 bit ones count as letters.
_ATEXT: Final = rb"[^\x00-\x20()<>@,;:\\\"\[\].\x7f]"
_ATOM = re.compile(_ATEXT + rb"+")
_ATOM_OR_DOT = re.compile(rb"(?:%s|\.)*" % _ATEXT)
_TOKEN = re.compile(rb"[^\x00-\x20()<>@,;:\\\"\[\]/?=\x7f]*")
_BLANKS = re.compile(rb"[ \t\r\n]*")


class Broken(Exception):
    """The value does not go on as its grammar wants."""


class Scanner:
    """RFC 5322 tokens of a value. After each token blanks and comments are passed over."""

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.at = 0
        self.comment = b""
        """The last that was passed over."""

    def more(self) -> bool:
        """Whether anything is left."""
        return self.at < len(self.value)

    def peek(self) -> bytes:
        return self.value[self.at : self.at + 1]

    def skip(self) -> None:
        """Over blanks and comments.

        Raises:
            Broken: a comment has no end.
        """
        while True:
            blanks = _BLANKS.match(self.value, self.at)
            assert blanks is not None
            self.at = blanks.end()
            if self.peek() != b"(":
                return
            self._comment()

    def _comment(self) -> None:
        self.at += 1
        level = 1
        text = bytearray()
        self.comment = b""
        while self.more():
            octet = self.peek()
            self.at += 1
            if octet == b"(":
                level += 1
            elif octet == b")":
                level -= 1
                if level == 0:
                    self.comment = bytes(text)
                    return
            elif octet == b"\\":
                if not self.more():
                    break
                if self.peek() not in (b"\r", b"\n", b"\0"):
                    octet = self.peek()
                    self.at += 1
            text += octet
        raise Broken

    def atom(self) -> bytes:
        found = _ATOM.match(self.value, self.at)
        if found is None:
            raise Broken
        self.at = found.end()
        self.skip()
        return found[0]

    def token(self) -> bytes:
        """Of MIME: no `/`, `?` or `=`; it may be empty."""
        found = _TOKEN.match(self.value, self.at)
        assert found is not None
        self.at = found.end()
        self.skip()
        return found[0]

    def quoted(self) -> bytes:
        """A quoted string, whose first octet is here."""
        self.at += 1
        text = bytearray()
        while self.more():
            octet = self.peek()
            self.at += 1
            if octet == b'"':
                self.skip()
                return bytes(text)
            if octet == b"\\":
                if not self.more():
                    break
                if self.peek() not in (b"\r", b"\n", b"\0"):
                    octet = self.peek()
                    self.at += 1
            text += octet
        raise Broken

    def dot_atom(self) -> bytes:
        """Atoms with single dots between them, blanks around the dots allowed."""
        atoms = [self.atom()]
        while self.peek() == b".":
            self.at += 1
            self.skip()
            atoms.append(self.atom())
        return b".".join(atoms)


_MONTHS: Final = (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec")
_ZONES: Final = {b"E": -5, b"C": -6, b"M": -7, b"P": -8}


@dataclass(frozen=True, slots=True)
class Sent:
    """When a message says that it was sent: seconds since 1970, and how far its zone is ahead of UTC, in seconds."""

    at: int
    ahead: int


NEVER_SENT: Final = Sent(0, 0)
"""What a message without a date, or with one that cannot be read, counts as."""


def sent(value: bytes | None) -> Sent:
    """The date of a `Date:` value. One before 1970 or after 2106 is taken modulo 2^32, as Dovecot keeps it."""
    if value is None:
        return NEVER_SENT
    try:
        found = _date(Scanner(value))
    except (Broken, ValueError):
        return NEVER_SENT
    return Sent(found.at & 0xFFFF_FFFF, found.ahead)


def _date(scanner: Scanner) -> Sent:
    """[weekday ","] day month year hour:minute[:second] [zone]"""
    scanner.skip()
    word = scanner.atom()
    if len(word) == 3:
        if scanner.peek() != b",":
            raise Broken
        scanner.at += 1
        scanner.skip()
        word = scanner.atom()
    day = _digits(word, 1, 2)
    word = scanner.atom()
    if len(word) < 3 or word[:3].lower() not in _MONTHS:
        raise Broken
    month = _MONTHS.index(word[:3].lower()) + 1
    word = scanner.atom()
    year = _digits(word, 2, 4)
    if len(word) == 3:
        raise Broken
    if len(word) == 2:
        year += 1900 if year >= 70 else 2000
    elif year < 1900:
        raise Broken
    hour = _digits(scanner.atom(), 1, 2)
    minute = _after_colon(scanner)
    second = _after_colon(scanner) if scanner.peek() in (b":", b".") and scanner.more() else 0
    ahead = _zone(scanner.atom()) if scanner.more() else 0
    if not (1 <= day <= _days(year, month) and hour < 24 and minute < 60 and second <= 60):
        raise Broken
    return Sent(timegm((year, month, day, hour, minute, min(second, 59))) - ahead, ahead)


def _after_colon(scanner: Scanner) -> int:
    if scanner.peek() not in (b":", b"."):
        raise Broken
    scanner.at += 1
    scanner.skip()
    return _digits(scanner.atom(), 2, 2)


def _digits(word: bytes, least: int, most: int) -> int:
    if not (least <= len(word) <= most and word.isdigit()):
        raise Broken
    return int(word)


def _days(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def _zone(word: bytes) -> int:
    """Seconds ahead of UTC; of a zone that nobody knows 0."""
    if len(word) == 5 and word[:1] in b"+-":
        if not word[1:].isdigit():
            return 0
        seconds = (int(word[1:3]) * 60 + int(word[3:])) * 60
        return -seconds if word[:1] == b"-" else seconds
    if len(word) == 1:  # a military zone, A to Z without J
        octet, upper = word[0], word.upper()
        if upper < b"J":
            return (octet - ord("A") + 1) * 3600
        if upper == b"J" or upper >= b"Z":
            return 0
        return ((octet - ord("A")) if upper <= b"M" else (ord("M") - octet)) * 3600
    upper = word.upper()
    if len(word) == 3 and word[2:] == b"T" and upper[:1] in _ZONES and upper[1:2] in b"DS":
        return (_ZONES[upper[:1]] + (upper[1:2] == b"D")) * 3600
    return 0


@dataclass(slots=True)
class _Address:
    """`domain` None: the beginning of a group, or its end when `mailbox` is None as well."""

    name: bytes | None = None
    route: bytes | None = None
    mailbox: bytes | None = None
    domain: bytes | None = None


_PLAIN = re.compile(_ATEXT + rb"*")
_DOTTED = re.compile(rb"(?:%s|\.)*" % _ATEXT)
_TO_ESCAPE = re.compile(rb"[\"\\']")


def addresses(value: bytes) -> bytes:
    """The addresses of a value, written again: `"Name, A." <local@domain>, group: a, b;`."""
    scanner = Scanner(value)
    found: list[_Address] = []
    try:
        scanner.skip()
        if scanner.more():
            _Addresses(scanner, found).list()
    except Broken:
        pass  # what was read so far
    return _written(found)


class _Addresses:
    """Reads addresses into a list, and goes on behind what is broken as long as a comma follows."""

    def __init__(self, scanner: Scanner, found: list[_Address]) -> None:
        self._scanner = scanner
        self._found = found

    def list(self) -> None:
        scanner = self._scanner
        while True:
            self._address()
            if not scanner.more() or scanner.peek() != b",":
                return
            scanner.at += 1
            try:
                scanner.skip()
            except Broken:
                self._add(_Address())  # ends in garbage
                return
            if not scanner.more():
                return

    def _address(self) -> None:
        start = self._scanner.at
        if not self._group():
            self._scanner.at = start
            self._mailbox()

    def _add(self, address: _Address) -> None:
        """With words in place of what is missing, as Dovecot writes it."""
        address.mailbox = b"MISSING_MAILBOX" if address.mailbox is None else address.mailbox
        address.domain = address.domain or b"MISSING_DOMAIN"
        self._found.append(address)

    def _group(self) -> bool:
        """name ":" [mailbox *("," mailbox)] ";"; False: it is none."""
        scanner = self._scanner
        try:
            name, more = self._phrase()
        except Broken:
            return False
        if not more or scanner.peek() != b":":
            return False
        scanner.at += 1
        self._found.append(_Address(mailbox=name))
        try:
            scanner.skip()
            if scanner.more() and scanner.peek() != b";":
                while True:
                    self._mailbox()
                    if scanner.peek() != b",":
                        break
                    scanner.at += 1
                    scanner.skip()
                    if not scanner.more():
                        break
            if scanner.peek() == b";":
                scanner.at += 1
                scanner.skip()
        except Broken:
            pass  # a broken group is one all the same
        self._found.append(_Address())
        return True

    def _phrase(self) -> tuple[bytes, bool]:
        """Words with one blank between them, and whether anything follows."""
        scanner = self._scanner
        if not scanner.more():
            return b"", False
        if scanner.peek() == b".":
            raise Broken
        words = []
        while True:
            if scanner.peek() == b'"':
                words.append(scanner.quoted())
            else:
                found = _ATOM_OR_DOT.match(scanner.value, scanner.at)
                assert found is not None
                scanner.at = found.end()
                words.append(found[0])
                scanner.skip()
            if not scanner.more():
                return b" ".join(words), False
            if scanner.peek() not in (b'"', b".") and not _ATOM.match(scanner.value, scanner.at):
                return b" ".join(words), True

    def _mailbox(self) -> None:
        """name "<" address ">", or an address with perhaps a comment as its name."""
        scanner = self._scanner
        start = scanner.at
        address = _Address()
        try:
            name, more = self._phrase()
            if not more or scanner.peek() != b"<":
                raise Broken
        except Broken:
            scanner.at = start
            self._bare()
            return
        address.name = name or None
        try:
            self._angle(address)
        except Broken:
            address.domain = b"SYNTAX_ERROR"
        self._add(address)

    def _angle(self, address: _Address) -> None:
        scanner = self._scanner
        scanner.at += 1
        self._skip_to_more()
        if scanner.peek() == b"@":
            self._route(address)
        if scanner.peek() != b">":
            address.mailbox = self._local()
            if not scanner.more():
                raise Broken
            if scanner.peek() == b"@":
                address.domain = self._domain()
                if not scanner.more():
                    raise Broken
        if scanner.peek() != b">":
            raise Broken
        scanner.at += 1
        scanner.skip()

    def _skip_to_more(self) -> None:
        self._scanner.skip()
        if not self._scanner.more():
            raise Broken

    def _route(self, address: _Address) -> None:
        """ "@" domain *("," "@" domain) ":" """
        scanner = self._scanner
        hosts: list[bytes] = []
        try:
            while scanner.peek() == b"@":
                hosts.append(b"@" + self._domain())
                if not scanner.more():
                    raise Broken
                while scanner.peek() == b",":
                    scanner.at += 1
                    self._skip_to_more()
            if scanner.peek() != b":":
                raise Broken
            address.route = b",".join(hosts)
            scanner.at += 1
        except Broken:
            address.route = b"INVALID_ROUTE"
            if not scanner.more():
                raise
        self._skip_to_more()

    def _local(self) -> bytes:
        """A quoted string, or atoms and dots in any order."""
        scanner = self._scanner
        if scanner.peek() == b'"':
            return scanner.quoted()
        text = bytearray()
        while True:
            while scanner.peek() == b".":
                text += b"."
                scanner.at += 1
                if not scanner.more():
                    return bytes(text)
            if scanner.peek() == b"@" and text:
                return bytes(text)
            text += scanner.atom()
            if scanner.peek() != b".":
                return bytes(text)

    def _domain(self) -> bytes:
        scanner = self._scanner
        scanner.at += 1
        self._skip_to_more()
        if scanner.peek() != b"[":
            return scanner.dot_atom()
        end = scanner.value.find(b"]", scanner.at)
        if end < 0 or b"[" in scanner.value[scanner.at + 1 : end]:
            raise Broken
        text = scanner.value[scanner.at : end + 1].replace(b"\r\n", b"").replace(b"\n", b"")
        scanner.at = end + 1
        scanner.skip()
        return text

    def _bare(self) -> None:
        """local@domain; its name is the comment behind it. A lone word is one without a domain, several are a name."""
        scanner = self._scanner
        address = _Address()
        scanner.comment = b""
        quoted = scanner.peek() == b'"'
        domain_tried = False
        try:
            if scanner.more():
                address.mailbox = self._local()
        except Broken:
            pass  # a domain may follow all the same
        if scanner.peek() == b"@":
            domain_tried = True
            try:
                address.domain = self._domain()
            except Broken:
                pass  # what was read stands
        if scanner.comment:
            address.name = scanner.comment
        elif not domain_tried:
            word = address.mailbox or b""
            try:
                more, _ = self._phrase()
            except Broken:
                more = b""
            if more:
                address.mailbox, address.name = None, word + b" " + more
            elif not quoted:
                address.domain = b""
        if address.name is None and address.mailbox is not None and address.domain is None:
            address.name, address.mailbox = address.mailbox, None
        self._add(address)


def _written(found: Sequence[_Address]) -> bytes:
    text = bytearray()
    first = True
    in_group = False
    for address in found:
        if not first:
            text += b", "
        first = False
        if address.domain is None:
            if in_group:
                del text[-2 if text.endswith(b", ") else -1 :]
                text += b";"
            else:
                text += (_phrase_written(address.mailbox) if address.mailbox else b'""') + b": "
                first = True
            in_group = not in_group
            continue
        if address.name is not None:
            text += _phrase_written(address.name)
        if address.name:
            text += b" "
        mailbox = address.mailbox or b""
        text += b"<" + (address.route + b":" if address.route is not None else b"")
        text += _quoted_unless(_DOTTED, mailbox) if mailbox else b'""'
        text += b"@" + address.domain + b">"
    return bytes(text)


def _phrase_written(phrase: bytes) -> bytes:
    """Quoted where it must be; one with encoded words never is."""
    return phrase if b"=?" in phrase else _quoted_unless(_PLAIN, phrase)


def _quoted_unless(plain: re.Pattern[bytes], text: bytes) -> bytes:
    if plain.fullmatch(text):
        return text
    return b'"' + _TO_ESCAPE.sub(rb"\\\g<0>", text) + b'"'
