"""MIMEPART: whether a message has a part that a key selects. Pure.

Values are compared as Dovecot 2.3.19 does (`index-search-mime.c`): names and types in any case, file
names in normal form, the rest as it stands in the header, octet for octet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

from aimport.octets import wire_size
from aimport.query import headers, text
from aimport.query.headers import Broken, Octets, Scanner
from aimport.query.mime import CHUNK_OCTETS, Part, parameters
from aimport.query.terms import (
    PartAll,
    PartAny,
    PartDated,
    PartField,
    PartKey,
    PartNot,
    PartNumber,
    PartParameter,
    PartRelative,
)


def selects(key: PartKey, message: Octets, all_parts: Sequence[Part]) -> bool:
    """Whether `key` holds for one of all parts. A multipart without any has an empty text, as in BODYSTRUCTURE."""
    known = set(map(id, all_parts))
    shown = list(all_parts)
    for part in all_parts:
        if part.multipart and not part.children:
            part.children.append(Part(part, media_type="text/plain"))
        if part.multipart:  # the text that an earlier key has made is in no list
            shown += [child for child in part.children if id(child) not in known]
    return any(_Match(message, 0).holds(key, part) for part in shown)


class _Match:
    """One part at a time. Depths count from the part that is `base` levels down."""

    def __init__(self, message: Octets, base: int) -> None:
        self._message = message
        self._base = base

    def holds(self, key: PartKey, part: Part) -> bool:
        match key:
            case PartAll(keys):
                return all(self.holds(each, part) for each in keys)
            case PartAny(keys):
                return any(self.holds(each, part) for each in keys)
            case PartNot(inner):
                return not self.holds(inner, part)
            case PartNumber(what, least, most):
                number = self._number(what, part)
                return (least is None or number >= least) and (most is None or number <= most)
            case PartRelative("PARENT", inner):
                return part.parent is not None and (inner is None or self.holds(inner, part.parent))
            case PartRelative(_, inner):
                if inner is None:
                    return bool(part.children)
                below = _Match(self._message, _depth(part))
                return any(below.holds(inner, each) for each in _descendants(part))
            case PartParameter(of, name, wanted):
                found = parameters_of(part) if of == "TYPE" else _disposition(part)[1]
                value = next((value for known, value in found if known == name), None)
                return value is not None and wanted in _utf8(value)
            case PartDated(since, until):
                return _sent_within(part, since, until)
            case PartField():
                return _field_holds(key, part)
        assert_never(key)

    def _number(self, what: str, part: Part) -> int:
        if what == "DEPTH":
            return _depth(part) - self._base
        if what == "INDEX":
            return 1 if part.parent is None else part.parent.children.index(part) + 1
        if part.multipart and part.children:
            return 0  # BODYSTRUCTURE has no size of it (RFC 9051 §7.5.2)
        return wire_size(
            self._message[at : min(at + CHUNK_OCTETS, part.stop)] for at in range(part.start, part.stop, CHUNK_OCTETS)
        )


def _depth(part: Part) -> int:
    depth = 0
    above = part.parent
    while above is not None:
        depth, above = depth + 1, above.parent
    return depth


def _descendants(part: Part) -> Iterator[Part]:
    waiting = list(reversed(part.children))
    while waiting:
        each = waiting.pop()
        yield each
        waiting += reversed(each.children)


def _utf8(value: str) -> str:
    """Octets that were read as Latin-1, as the UTF-8 that they may be."""
    return value.encode("latin-1").decode("utf-8", "replace")


def _shown(value: bytes | None) -> str | None:
    return None if value is None else value.strip(b" \t").decode("utf-8", "replace")


def parameters_of(part: Part) -> Sequence[tuple[str, str]]:
    """Those of Content-Type; text without a charset has the default one, as in BODYSTRUCTURE."""
    found = part.parameters
    if part.media_type.partition("/")[0] == "text" and all(name != "charset" for name, _ in found):
        return (*found, ("charset", "us-ascii"))
    return found


def _disposition(part: Part) -> tuple[str | None, Sequence[tuple[str, str]]]:
    value = part.first("content-disposition")
    if value is None:
        return None, ()
    scanner = Scanner(value)
    try:
        scanner.skip()
        kind = scanner.token()
    except Broken:
        return None, ()
    return kind.decode("latin-1"), parameters(scanner)


def _languages(part: Part) -> list[str]:
    scanner = Scanner(part.first("content-language") or b"")
    found: list[str] = []
    try:
        scanner.skip()
        while scanner.more():
            found.append(scanner.atom().decode("latin-1"))
            if scanner.peek() != b",":
                break
            scanner.at += 1
            scanner.skip()
    except Broken:
        pass  # those before it count
    return found


def _sent_within(part: Part, since: int | None, until: int | None) -> bool:
    """Of an embedded message, by its own zone; one without a date is never."""
    dates = part.values("date") if _is_embedded(part) else []
    if not dates:
        return False
    found = headers.sent(dates[-1])
    if found == headers.NEVER_SENT:
        return False
    at = found.at + found.ahead
    return (since is None or at >= since) and (until is None or at < until)


def _is_embedded(part: Part) -> bool:
    return part.parent is not None and part.parent.embedded


def _field_holds(key: PartField, part: Part) -> bool:
    wanted = key.text
    match key.name:
        case "TYPE":
            return (part.media_type or "/").partition("/")[0] == wanted.lower()
        case "SUBTYPE":
            return (part.media_type or "/").partition("/")[2] == wanted.lower()
        case "ENCODING":
            return not part.multipart and (_encoding(part) or "7bit") == wanted.lower()
        case "DISPOSITION":
            kind = _disposition(part)[0]
            return kind is not None and kind.lower() == wanted.lower()
        case "LANGUAGE":
            return any(language.lower() == wanted.lower() for language in _languages(part))
        case "FILENAME":
            return _filename_holds(key, part)
        case "ID" | "LOCATION":
            value = None if part.multipart and key.name == "ID" else _shown(part.first(f"content-{key.name.lower()}"))
            return value is not None and value.lower() == wanted.lower()
        case "MD5":
            return not part.multipart and _shown(part.first("content-md5")) == wanted
        case "DESCRIPTION":
            value = None if part.multipart else _shown(part.first("content-description"))
            return value is not None and wanted in value
    return _is_embedded(part) and _envelope_holds(key.name, wanted, part)


def _encoding(part: Part) -> str:
    scanner = Scanner(part.first("content-transfer-encoding") or b"")
    try:
        scanner.skip()
        token = scanner.token()
    except Broken:
        return ""
    return "" if scanner.more() else token.decode("latin-1").lower()


def _filename_holds(key: PartField, part: Part) -> bool:
    """Of an attachment, the `filename` of its Content-Disposition."""
    kind, found = _disposition(part)
    if kind is None or kind.lower() != "attachment":
        return False
    name = next((value for known, value in found if known == "filename"), None)
    if name is None:
        return False
    value, wanted = text.normal(_utf8(name)), text.normal(key.text)
    match key.how:
        case "is":
            return value == wanted
        case "begins":
            return value.startswith(wanted)
        case "ends":
            return value.endswith(wanted)
        case "contains":
            return wanted in value
    assert_never(key.how)


def _envelope_holds(name: str, wanted: str, part: Part) -> bool:
    """As ENVELOPE shows it (RFC 9051 §7.5.2): a missing Sender or Reply-To is From."""
    field = name.lower()
    values = part.values(field)
    if field in ("sender", "reply-to") and not values:
        field, values = "from", part.values("from")
    if field in ("from", "to", "cc", "bcc", "sender", "reply-to"):
        shown = b", ".join(map(headers.addresses, values))
        return bool(values) and wanted in shown.decode("utf-8", "replace")
    return bool(values) and wanted in (_shown(values[-1]) or "")
