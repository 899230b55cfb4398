"""What a server says, as frozen values. Sans I/O; knows the grammar of RFC 9051 §7, not what to do about it.

    fragments ──▶ parse() ──▶ Fetch | Listed | Tagged | ... | Unknown

Any octets give a value or `ProtocolError`, nothing else; no input makes us recurse. Inside a
response, atoms are `str` (NIL is one of them), strings are `bytes`, parenthesised lists are lists.
Codes, attributes and capabilities are in upper case whatever the server wrote, mailbox attributes
in lower case; spaces too many are passed over. What else is tolerated has its server's name beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Final

from aimport.errors import ProtocolError
from aimport.imap.fragments import Fragments, Sink

MAX_DEPTH: Final = 50
MAX_DIGITS: Final = 20  # of 2^64
MAX_UIDS: Final = 100_000
NIL: Final = "NIL"

Value = str | bytes | Sink | list["Value"]
"""A `Sink` has taken a string that is too large to be held; only a body may be one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """The end of a command: `status` OK, NO or BAD, `code` and its raw `args` (§7.1), human `text`."""

    tag: str
    status: str
    code: str = ""
    args: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Untagged:
    """A status response of no command: OK, NO, BAD, and PREAUTH, BYE."""

    status: str
    code: str = ""
    args: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """`+`: the server waits for octets (§7.5)."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extended:
    """Data of one message that only extensions have. What was not said, or was NIL, is None."""

    modseq: int | None = None
    """RFC 7162 §7."""
    save_date: str | None = None
    """Raw (RFC 8514 §4.3)."""
    email_id: str | None = None
    """RFC 8474 §5.1."""
    thread_id: str | None = None
    guid: str | None = None
    """X-GUID of Dovecot."""
    gm_msgid: str | None = None
    """X-GM-MSGID: the same in every label of Gmail."""
    gm_labels: tuple[bytes, ...] | None = None
    """X-GM-LABELS, raw: modified UTF-7."""


_NOTHING: Final = Extended()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Data of one message (§7.5.2). What was not said is None.

    `body` is that of `BODY[]`, or of `RFC822` or `BINARY[]`, which are the same octets, or the
    sink that took it, `header` that of `BODY[HEADER]`; other parts of a message are passed over.
    `internal_date` is raw.
    """

    seq: int
    uid: int | None = None
    flags: tuple[str, ...] | None = None
    internal_date: str | None = None
    size: int | None = None
    body: bytes | Sink | None = field(default=None, repr=False)
    has_body: bool = False
    """`BODY[]` was said, perhaps NIL."""
    header: bytes | None = field(default=None, repr=False)
    extended: Extended = _NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A line of LIST or LSUB. `name` is as sent: modified UTF-7, or whatever the server made of it."""

    flags: frozenset[str]
    """Attributes, lower case: those of SPECIAL-USE among them (RFC 6154)."""
    separator: str
    name: bytes
    child_info: tuple[str, ...] = ()
    """Which selection options mailboxes below fulfil, upper case (CHILDINFO, RFC 5258 §3.5)."""
    old_name: bytes | None = None
    """What the client called it (OLDNAME, RFC 9051 §6.3.9.7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxStatus:
    name: bytes
    items: tuple[tuple[str, int], ...]
    """Numbers. APPENDLIMIT is left out where it is NIL: there is no limit (RFC 7889 §3)."""
    mailbox_id: str = ""
    """RFC 8474 §4.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Esearch:
    """RFC 4731. `items` has values as sent: a set stays a set, a list (RFC 5267) its text without parentheses."""

    tag: str
    uid: bool
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exists:
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expunge:
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanished:
    """RFC 7162 §3.2.10; `uids` is the set as sent."""

    earlier: bool
    uids: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Upper case."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enabled:
    names: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """RFC 2342: (prefix, separator) of each; a separator NIL is ""."""

    personal: tuple[tuple[bytes, str], ...]
    others: tuple[tuple[bytes, str], ...]
    shared: tuple[tuple[bytes, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerId:
    """RFC 2971."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """RFC 9208: (resource, usage, limit) of each."""

    root: bytes
    resources: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRoots:
    """RFC 9208 §5.2: the quota roots of a mailbox."""

    name: bytes
    roots: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """Anything else, untouched."""

    name: str
    fragments: Fragments = field(repr=False)


Response = (
    Tagged
    | Untagged
    | Continuation
    | Fetch
    | Listed
    | MailboxStatus
    | Search
    | Esearch
    | Flags
    | Exists
    | Recent
    | Expunge
    | Vanished
    | Capability
    | Enabled
    | Namespace
    | ServerId
    | Quota
    | QuotaRoots
    | Unknown
)

# One token. Quoted strings may hold 8-bit octets (UTF8=ACCEPT, and servers that just send them). A section such
# as BODY[HEADER.FIELDS (A "B")]<0> is one atom, spaces and parentheses included (§6.4.5). It has no other "[" in
# it: else what begins many and ends none would be searched to its end for each.
_TOKEN = re.compile(
    rb"""\x20*+(?:
        (?P<open>\()
      | (?P<close>\))
      | "(?P<quoted>[^"\\]*+(?:\\.[^"\\]*+)*+)"
      | (?P<atom>
            (?i:BODY|BINARY|BINARY\.SIZE)\[[^\[\]{"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^\[\]{"]*+)*+\](?:<\d++>)?+
          | [^\x00-\x20(){"\x7f]++
        )
    )""",
    re.VERBOSE | re.DOTALL,
)
_OPEN, _CLOSE, _QUOTED, _ATOM = 1, 2, 3, 4
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_STATUS = re.compile(rb"(\*|[^\s*+]++) (OK|NO|BAD|BYE|PREAUTH)(?: ++(.*))?\Z", re.IGNORECASE | re.DOTALL)
_CODE = re.compile(rb'\[([^\s\]"]++)(?: ++((?:"(?:[^"\\]|\\.)*+"|[^\]"])*+))?\] ?(.*)\Z', re.DOTALL)
_NUMBERED = re.compile(rb"\* (\d{1,20}) ++([A-Z]++)", re.IGNORECASE)
_NAMED = re.compile(rb"\* ([!-~]++)")

# The lines that come by the million, as servers write them; what differs takes the long way to the same value.
_SIZES = re.compile(rb"\* (\d{1,10}) FETCH \(UID (\d{1,10}) RFC822\.SIZE (\d{1,20})\)\Z")
_ITEMS: Final = (
    rb"\* (\d{1,10}) FETCH \("
    rb'(?:(?:UID (\d{1,10})|FLAGS \(([^\x00-\x1f()\["{\x7f]*+)\)|INTERNALDATE "([^"\\]*+)"|RFC822\.SIZE (\d{1,20}))'
    rb"(?: |(?=\))))*+"
)
_PLAIN = re.compile(_ITEMS + rb"\)\Z")
_BODY = re.compile(_ITEMS + rb"BODY\[\] \Z")
_NUMBERS = re.compile(rb"\* SEARCH((?: \d{1,20})*+) *+\Z")

# A name that is not quoted goes to the end of the line: Exchange does not quote one with control
# characters in it (seen by others, MailKit issue 945).
_LISTED = re.compile(
    rb"""\*\ (?:LIST|LSUB|XLIST)\ \(([^\x00-\x1f()\["{\x7f]*+)\)
        \ (?:"(\\["\\]|[!#-\[\]-~])"|NIL)
        \ (?:"([^"\\]*+)"|([^"(){\x20][^"(){]*+))\Z""",
    re.VERBOSE,
)
_ROUNDED = re.compile(r"\d{1,20}(?:\.\d{1,20})?e\+?\d{1,2}", re.ASCII | re.IGNORECASE)


def parse(fragments: Fragments) -> Response:
    """The value of one response.

    Raises:
        ProtocolError: it breaks the grammar.
    """
    line = _line(fragments[0])
    if line[:2] != b"* ":
        if line[:1] == b"+":
            return Continuation(text=_text(line[1:].lstrip(b" ")))
        return _tagged(line)
    if len(fragments) == 1:
        if line[-1:] == b")":
            sizes = _SIZES.match(line)
            if sizes:
                return Fetch(seq=int(sizes[1]), uid=int(sizes[2]), size=int(sizes[3]))
            items = _PLAIN.match(line)
            if items:
                return _plain(items, None)
    elif len(fragments) == 3 and fragments[2] == b")":
        items = _BODY.match(line)
        if items:
            return _plain(items, fragments[1])
    numbered = _NUMBERED.match(line)
    if numbered:
        number = int(numbered[1])
        match numbered.group(2).upper():
            case b"FETCH":
                return _fetch(number, _values(fragments, numbered.end()))
            case b"EXISTS":
                return Exists(number=number)
            case b"RECENT":
                return Recent(number=number)
            case b"EXPUNGE":
                return Expunge(number=number)
            case name:
                return Unknown(name=name.decode(), fragments=fragments)
    status = _STATUS.match(line)
    if status:
        code, args, text = _resp_text(status.group(3) or b"")
        return Untagged(status=status.group(2).decode().upper(), code=code, args=args, text=text)
    named = _NAMED.match(line)
    if not named:
        raise _broken(line)
    name = named.group(1).decode("ascii").upper()
    reader = _READERS.get(name)
    if reader is None:
        return Unknown(name=name, fragments=fragments)
    if reader is _search:
        numbers = _NUMBERS.match(line)
        if numbers and len(fragments) == 1:
            return Search(numbers=tuple(map(int, numbers[1].split())))
    elif reader is _listed:
        listed = _LISTED.match(line)
        if listed and len(fragments) == 1:
            return _listed_line(listed)
    return reader(_values(fragments, named.end()))


def capabilities(args: str) -> frozenset[str]:
    """Names of a CAPABILITY response or response code, upper case."""
    return frozenset(args.upper().split())


def append_uids(args: str, *, limit: int = MAX_UIDS) -> tuple[int, tuple[int, ...]]:
    """UIDVALIDITY and UIDs of an APPENDUID response code (RFC 4315 §3), in the order of the set.

    Raises:
        ProtocolError: not of that form, or more than `limit` UIDs.
    """
    validity, _, uids = args.partition(" ")
    return _number(validity), uid_set(uids, limit=limit)


def uid_set(text: str, *, limit: int = MAX_UIDS) -> tuple[int, ...]:
    """The UIDs of a set without `*`, in its order; a range ascends however it is written (RFC 9051 §9).

    Raises:
        ProtocolError: not a set, or more than `limit` UIDs.
    """
    uids: list[int] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        low = _number(first)
        high = _number(last) if colon else low
        low, high = min(low, high), max(low, high)
        if len(uids) + high - low >= limit:
            raise ProtocolError(f"the server sent a set of more than {limit} UIDs")
        uids.extend(range(low, high + 1))
    return tuple(uids)


_MONTHS: Final = {
    month: number
    for number, month in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
_DATE_TIME = re.compile(r" ?(\d{1,2})-([A-Za-z]{3})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)", re.ASCII)


def date_time(text: str) -> datetime | None:
    """An INTERNALDATE (date-time, RFC 9051 §9), aware; None when there is no such moment or zone."""
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        return None
    day, month, year, hour, minute, second, sign, zone_hours, zone_minutes = match.groups()
    try:
        zone = _zone(sign, zone_hours, zone_minutes)
        return datetime(
            int(year), _MONTHS[month.lower()], int(day), int(hour), int(minute), min(int(second), 59), 0, zone
        )
    except (KeyError, ValueError):
        return None


@lru_cache(maxsize=256)
def _zone(sign: str, hours: str, minutes: str) -> timezone:
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(-offset if sign == "-" else offset)


def _tagged(line: bytes) -> Tagged:
    status = _STATUS.match(line)
    if not status or status.group(2).upper() in (b"BYE", b"PREAUTH") or status.group(1) == b"*":
        raise _broken(line)
    code, args, text = _resp_text(status.group(3) or b"")
    return Tagged(tag=_text(status.group(1)), status=status.group(2).decode().upper(), code=code, args=args, text=text)


def _resp_text(text: bytes) -> tuple[str, str, str]:
    """Response code, its raw arguments, human text."""
    code = _CODE.match(text) if text[:1] == b"[" else None
    if code is None:
        return "", "", _text(text)
    return _text(code.group(1)).upper(), _text((code.group(2) or b"").strip(b" ")), _text(code.group(3))


def _values(fragments: Fragments, start: int) -> list[Value]:
    """The values of a response from `start` in its first line: tokens, nested by a stack of our own."""
    top: list[Value] = []
    current = top
    outer: list[list[Value]] = []
    match = _TOKEN.match
    last = len(fragments) - 1
    for index in range(0, last + 1, 2):
        text = _line(fragments[index])
        at, end = (start if index == 0 else 0), len(text)
        while at < end:
            token = match(text, at)
            if token is None:
                if text[at:].strip(b" "):
                    raise _broken(text)
                break
            at = token.end()
            kind = token.lastindex
            if kind == _ATOM:
                current.append(token.group(_ATOM).decode("utf-8", "surrogateescape"))
            elif kind == _QUOTED:
                quoted = token.group(_QUOTED)
                current.append(_ESCAPED.sub(rb"\1", quoted) if b"\\" in quoted else quoted)
            elif kind == _OPEN:
                if len(outer) == MAX_DEPTH:
                    raise ProtocolError(f"the server nested lists deeper than {MAX_DEPTH}")
                inner: list[Value] = []
                current.append(inner)
                outer.append(current)
                current = inner
            elif outer:
                current = outer.pop()
            else:
                raise _broken(text)
        if index < last:
            current.append(fragments[index + 1])
    if outer:
        raise ProtocolError("the server sent a response that ends within a list")
    return top


def _plain(line: re.Match[bytes], body: bytes | Sink | None) -> Fetch:
    seq, uid, flags, date, size = line.groups()
    return Fetch(
        seq=int(seq),
        uid=None if uid is None else int(uid),
        flags=None if flags is None else _flags(flags),
        internal_date=None if date is None else date.decode("ascii", "replace"),
        size=None if size is None else int(size),
        body=body,
        has_body=body is not None,
    )


@lru_cache(maxsize=1024)
def _flags(text: bytes) -> tuple[str, ...]:
    return tuple(flag.decode("utf-8", "surrogateescape") for flag in text.split())


def _fetch(seq: int, values: list[Value]) -> Fetch:
    if len(values) != 1:
        raise ProtocolError("the server sent FETCH data that is no list")
    items = _list(values[0])
    if len(items) % 2:
        if items[-1] not in ("BODY[]", "body[]"):
            raise ProtocolError("the server sent a FETCH attribute without a value")
        items = [*items, NIL]  # Yandex, of what it has no content for (seen by others, MailKit's tests)
    extended: dict[str, Value] = {}
    uid = size = internal_date = flags = body = header = None
    has_body = False
    for at in range(0, len(items), 2):
        name, value = items[at], items[at + 1]
        if not isinstance(name, str):
            raise ProtocolError("the server sent a FETCH attribute without a name")
        match name.upper():
            case "UID":
                uid = _number(value)
            case "FLAGS":
                flags = tuple(_words(value))
            case "INTERNALDATE":
                if isinstance(value, bytes):
                    internal_date = value.decode("ascii", "replace")
                elif not isinstance(value, str | list):
                    raise ProtocolError("the server sent a literal where a date belongs")
            case "RFC822.SIZE":
                size = _size(value)
            case "BODY[]" | "RFC822" | "BINARY[]":
                if isinstance(value, str | list) and not _is_nil(value):
                    raise ProtocolError("the server sent a message that is no string")
                body, has_body = None if isinstance(value, str | list) else value, True
            case "BODY[HEADER]":
                header = value if isinstance(value, bytes) else None
            case "MODSEQ" | "SAVEDATE" | "EMAILID" | "THREADID" | "X-GUID" | "X-GM-MSGID" | "X-GM-LABELS" as key:
                extended[key] = value
    return Fetch(
        seq=seq,
        uid=uid,
        flags=flags,
        internal_date=internal_date,
        size=size,
        body=body,
        has_body=has_body,
        header=header,
        extended=_extended(extended) if extended else _NOTHING,
    )


def _extended(items: dict[str, Value]) -> Extended:
    save_date, message, labels = items.get("SAVEDATE"), items.get("X-GM-MSGID"), items.get("X-GM-LABELS")
    return Extended(
        modseq=_modseq(items["MODSEQ"]) if "MODSEQ" in items else None,
        save_date=save_date.decode("ascii", "replace") if isinstance(save_date, bytes) else None,
        email_id=_object_id(items.get("EMAILID", NIL)),
        thread_id=_object_id(items.get("THREADID", NIL)),
        guid=None if (guid := items.get("X-GUID", NIL)) == NIL else _text(_astring(guid)),
        gm_msgid=message if isinstance(message, str) else None,
        gm_labels=None if labels is None else tuple(map(_astring, _list(labels))),
    )


def _modseq(value: Value) -> int | None:
    """Zoho sends negative numbers (seen by others, MailKit's tests): they say nothing."""
    match value:
        case [str(number)] if number.startswith("-"):
            return None
        case [number]:
            return _number(number)
    raise ProtocolError("the server sent something else where a mod-sequence belongs")


def _object_id(value: Value) -> str | None:
    """RFC 8474 §7; NIL, or the `(NIL)` of Cyrus 3.6 (seen), is None."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return None if _is_nil(value) else _text(_astring(value))


def _size(value: Value) -> int:
    # mail.ru rounds: 9.3736e+06 (MailKit issue 1838). The octets decide, not what is said of them.
    if isinstance(value, str) and _ROUNDED.fullmatch(value):
        return min(int(float(value)), 1 << 63)
    return _number(value)


def _listed(values: list[Value]) -> Listed:
    if len(values) < 3:
        raise ProtocolError("the server sent a LIST response without a name")
    child_info: tuple[str, ...] = ()
    old_name = None
    if len(values) > 3:  # RFC 5258 §3.5; of data that we do not know no form is demanded
        items = _list(values[3])
        for key, value in zip(items[::2], items[1::2], strict=False):
            match _text(key if isinstance(key, bytes) else _astring(key)).upper():
                case "CHILDINFO":
                    child_info = tuple(word.upper() for word in _words(value))
                case "OLDNAME":
                    old_name = _astring(value[0]) if isinstance(value, list) and value else None
    return Listed(
        flags=frozenset(flag.lower() for flag in _words(values[0])),
        separator=_separator(values[1]),
        name=_astring(values[2]),
        child_info=child_info,
        old_name=old_name,
    )


def _listed_line(line: re.Match[bytes]) -> Listed:
    name = line[4].rstrip(b" ") if line[3] is None else line[3]
    return Listed(flags=_attributes(line[1]), separator=(line[2] or b"")[-1:].decode("ascii"), name=name)


@lru_cache(maxsize=256)
def _attributes(text: bytes) -> frozenset[str]:
    return frozenset(flag.lower() for flag in _flags(text))


_COUNTED: Final = frozenset(
    {
        "MESSAGES",
        "RECENT",
        "UIDNEXT",
        "UIDVALIDITY",
        "UNSEEN",
        "DELETED",
        "DELETED-STORAGE",
        "SIZE",
        "APPENDLIMIT",
        "HIGHESTMODSEQ",
    }
)


def _status(values: list[Value]) -> MailboxStatus:
    if len(values) != 2:
        raise ProtocolError("the server sent a STATUS response without items")
    items = _list(values[1])
    if len(items) % 2:
        raise ProtocolError("the server sent a STATUS item without a value")
    counts: list[tuple[str, int]] = []
    mailbox_id = ""
    for key, value in zip(items[::2], items[1::2], strict=True):
        name = _text(_astring(key)).upper()
        if name == "MAILBOXID":
            mailbox_id = _object_id(value) or ""
        elif name in _COUNTED and not (name == "APPENDLIMIT" and _is_nil(value)):
            counts.append((name, _number(value)))
    return MailboxStatus(name=_astring(values[0]), items=tuple(counts), mailbox_id=mailbox_id)


def _search(values: list[Value]) -> Search:
    return Search(numbers=tuple(_number(value) for value in values if not isinstance(value, list)))  # (MODSEQ n)


def _esearch(values: list[Value]) -> Esearch:
    tag, uid = "", False
    if values and isinstance(values[0], list):
        about = _words(values[0])  # TAG, and the MAILBOX and UIDVALIDITY of RFC 7377 §2.1
        tag = next((value for key, value in zip(about[::2], about[1::2], strict=False) if key.upper() == "TAG"), "")
        values = values[1:]
    if values and isinstance(values[0], str) and values[0].upper() == "UID":
        uid, values = True, values[1:]
    if len(values) % 2:
        raise ProtocolError("the server sent an ESEARCH item without a value")
    words = [" ".join(_words(value)) if isinstance(value, list) else _text(_astring(value)) for value in values]
    return Esearch(tag=tag, uid=uid, items=tuple((words[at].upper(), words[at + 1]) for at in range(0, len(words), 2)))


def _vanished(values: list[Value]) -> Vanished:
    earlier = bool(values) and isinstance(values[0], list)
    if len(values) != 1 + earlier:
        raise ProtocolError("the server sent VANISHED without a set")
    return Vanished(earlier=earlier, uids=_text(_astring(values[-1])))


def _namespace(values: list[Value]) -> Namespace:
    if len(values) != 3:
        raise ProtocolError("the server sent NAMESPACE without its three parts")
    kinds: list[tuple[tuple[bytes, str], ...]] = []
    for kind in values:
        pairs = []
        for one in () if _is_nil(kind) else _list(kind):
            pair = _list(one)
            if len(pair) < 2:
                raise ProtocolError("the server sent a namespace without a separator")
            pairs.append((_astring(pair[0]), _separator(pair[1])))
        kinds.append(tuple(pairs))
    return Namespace(personal=kinds[0], others=kinds[1], shared=kinds[2])


def _server_id(values: list[Value]) -> ServerId:
    items = _list(values[0]) if values and not _is_nil(values[0]) else []
    texts = ["" if _is_nil(item) else _text(_astring(item)) for item in items]
    return ServerId(items=tuple(zip(texts[::2], texts[1::2], strict=False)))


def _quota(values: list[Value]) -> Quota:
    if not values:
        raise ProtocolError("the server sent QUOTA without a root")
    items = _words(values[1]) if len(values) > 1 else ()  # Courier has no list where there is no quota (seen)
    if len(items) % 3:
        raise ProtocolError("the server sent a quota resource without usage and limit")
    return Quota(
        root=_astring(values[0]),
        resources=tuple(
            (items[at].upper(), _number(items[at + 1]), _number(items[at + 2])) for at in range(0, len(items), 3)
        ),
    )


def _quota_roots(values: list[Value]) -> QuotaRoots:
    if not values:
        raise ProtocolError("the server sent QUOTAROOT without a mailbox")
    name, *roots = map(_astring, values)
    return QuotaRoots(name=name, roots=tuple(roots))


def _defined_flags(values: list[Value]) -> Flags:
    if not values:
        raise ProtocolError("the server sent FLAGS without a list")
    return Flags(flags=tuple(_words(values[0])))


_READERS: Final[dict[str, Callable[[list[Value]], Response]]] = {
    "LIST": _listed,
    "LSUB": _listed,
    "XLIST": _listed,
    "STATUS": _status,
    "SEARCH": _search,
    "ESEARCH": _esearch,
    "FLAGS": _defined_flags,
    "VANISHED": _vanished,
    "CAPABILITY": lambda values: Capability(names=frozenset(word.upper() for word in _words(values))),
    "ENABLED": lambda values: Enabled(names=frozenset(word.upper() for word in _words(values))),
    "NAMESPACE": _namespace,
    "ID": _server_id,
    "QUOTA": _quota,
    "QUOTAROOT": _quota_roots,
}


def _number(value: Value) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS:
        return int(value)
    raise ProtocolError("the server sent something else where a number belongs")


def _is_nil(value: Value) -> bool:
    """Whether it is NIL where NIL means nothing; where a name belongs it is a name."""
    return isinstance(value, str) and value.upper() == "NIL"


def _list(value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise ProtocolError("the server sent something else where a list belongs")
    return value


def _words(value: Value) -> Sequence[str]:
    """A list of atoms, or of strings in their place."""
    words = []
    for word in _list(value):
        if isinstance(word, str):
            words.append(word)
        elif isinstance(word, bytes):
            words.append(_text(word))
        else:
            raise ProtocolError("the server sent something else where an atom belongs")
    return words


def _astring(value: Value) -> bytes:
    """RFC 9051 §9 astring."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    raise ProtocolError("the server sent something else where a string belongs")


def _line(fragment: bytes | Sink) -> bytes:
    if isinstance(fragment, bytes):
        return fragment
    raise ProtocolError("a literal stands where a line belongs")


def _separator(value: Value) -> str:
    separator = "" if _is_nil(value) else _text(_astring(value))
    if len(separator) > 1:
        raise ProtocolError("the server sent a hierarchy separator of several characters")
    return separator


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "replace")


def _broken(line: bytes) -> ProtocolError:
    return ProtocolError(f"the server sent what is no IMAP response: {line[:80]!r}")
