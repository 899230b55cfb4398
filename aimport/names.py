"""Mailbox names: modified UTF-7, separators, how a source name becomes a destination name. Pure.

The mapping is that of `doveadm import`: levels stay levels, and the destination's separator
inside a level becomes `_`. Two sources with one image are a `NameClash`, never a merge.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache

from aimport.errors import NameClash, UsageError
from aimport.model import Mailbox

INBOX = "INBOX"

_SHIFTED = re.compile(r"&([A-Za-z0-9+,]*)-")
_PLAIN_HEAD = re.compile(r"[A-Za-z]{0,5}")
_PRINTABLE = re.compile(r"[\x20-\x25\x27-\x7e]+")


def encode_utf7(name: str) -> str:
    """Modified UTF-7 of a mailbox name (RFC 3501 §5.1.3). A lone surrogate is an error.

    Raises:
        ValueError: the name holds a lone surrogate.
    """
    out = []
    at = 0
    while at < len(name):
        plain = _PRINTABLE.match(name, at)
        if plain:
            out.append(plain.group())
            at = plain.end()
        elif name[at] == "&":
            out.append("&-")
            at += 1
        else:
            end = at
            while end < len(name) and not "\x20" <= name[end] <= "\x7e":
                end += 1
            shifted = base64.b64encode(name[at:end].encode("utf-16-be")).rstrip(b"=").replace(b"/", b",")
            out.append(f"&{shifted.decode('ascii')}-")
            at = end
    return "".join(out)


def decode_utf7(encoded: str) -> str | None:
    """The name that `encoded` stands for; None when it is not valid modified UTF-7.

    Valid means: decoding and encoding again gives the same text, as Dovecot demands before it
    believes a name on disk.
    """

    def unshift(match: re.Match[str]) -> str:
        text = match.group(1)
        if not text:
            return "&"
        padded = text.replace(",", "/") + "=" * (-len(text) % 4)
        return base64.b64decode(padded, validate=True).decode("utf-16-be")

    try:
        name = _SHIFTED.sub(unshift, encoded)
        return name if encode_utf7(name) == encoded else None
    except (binascii.Error, UnicodeError, ValueError):
        return None


def printable(name: str) -> str:
    """A file name as text that can be stored and shown: octets that are not UTF-8 become `\\xNN`."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split(name: str, separator: str) -> tuple[str, ...]:
    """Levels of `name`; the INBOX in any case is `INBOX` (RFC 9051 §5.1)."""
    levels = name.split(separator) if separator else [name]
    if _is_inbox(levels[0]):
        levels[0] = INBOX
    return tuple(levels)


def _is_inbox(level: str) -> bool:
    """In ASCII only: `upper` makes an I of a dotless i (U+0131) too, and would merge two mailboxes."""
    return level.isascii() and level.upper() == INBOX


def parent_path(parent: str, separator: str) -> tuple[str, ...]:
    """Levels of DEST_PARENT; `/` separates as well as the destination's own separator.

    Raises:
        UsageError: a level is empty (`a//b`, a separator at either end).
    """
    if not parent:
        return ()
    levels = split(parent.replace("/", separator) if separator else parent, separator)
    if not all(levels):
        raise UsageError(f"DEST_PARENT {parent!r} has an empty level", hint="remove the doubled or final separator")
    return levels


def destination_path(source: Mailbox, parent: tuple[str, ...], separator: str) -> tuple[str, ...]:
    """Where `source` goes: `parent` before its levels, the destination's separator inside a level as `_`.

    No special case for INBOX: under a parent it is the mailbox PARENT/INBOX, as doveadm makes it.
    """
    levels = source.path
    if separator and separator != source.separator:
        levels = tuple(level.replace(separator, "_") for level in levels)
    return parent + levels


def map_names(
    sources: Iterable[Mailbox],
    parent: str,
    separator: str,
    *,
    folds_case: bool = False,
    named: Mapping[Mailbox, Mailbox] | None = None,
) -> Mapping[Mailbox, Mailbox]:
    """Destination mailbox of each source mailbox, in the order given.

    `named`: where some of them go instead, parent and all (`mapping`). `folds_case`: to the destination, names that
    differ in case or Unicode form only are one.

    Raises:
        NameClash: two source mailboxes have one destination name.
        UsageError: the parent has an empty level.
    """
    above = parent_path(parent, separator)
    mapped: dict[Mailbox, Mailbox] = {}
    taken: dict[tuple[str, ...], Mailbox] = {}
    for source in sources:
        target = named.get(source) if named is not None else None
        if target is None:
            target = Mailbox(path=destination_path(source, above, separator), separator=separator)
        path = target.path
        image = tuple(unicodedata.normalize("NFC", level).casefold() for level in path) if folds_case else path
        other = taken.setdefault(image, source)
        if other is not source:
            raise NameClash(
                f"mailboxes {other.name!r} and {source.name!r} would both become {separator.join(path)!r}",
                hint="give one of them another name with --map, or leave it out with --exclude",
            )
        mapped[source] = target
    return mapped


def matches(name: str, pattern: str, separator: str) -> bool:
    """LIST-style match (RFC 9051 §6.3.9): `*` any text, `%` any text without the separator.

    Case-sensitive but for a leading INBOX. Takes time linear in `name`, which is the server's: a
    regular expression with two wildcards takes hours for a name of a million letters.
    """
    if _is_inbox(name[:5]) and name[5:6] in ("", separator):
        name = INBOX + name[5:]
        head = _PLAIN_HEAD.match(pattern)
        assert head is not None  # it can match nothing at all, but it matches
        if INBOX.startswith(head[0].upper()):
            pattern = head[0].upper() + pattern[head.end() :]
    letters, any_text, any_level, end = _machine(pattern)
    wildcards = any_text | any_level
    places = 1 | (1 & wildcards) << 1  # where in the pattern we may be, a bit each
    for letter in name:
        stay = any_text if letter == separator else wildcards
        places = (places & letters.get(letter, 0)) << 1 | places & stay
        places |= (places & wildcards) << 1
        if not places:
            return False
    return places & end != 0


@lru_cache(maxsize=64)
def _machine(pattern: str) -> tuple[dict[str, int], int, int, int]:
    """For each letter the places of a pattern where it stands, those of `*`, those of `%`, its end."""
    # Of wildcards in a row one is enough: then a single step passes over all.
    pattern = re.sub(r"[*%]+", lambda row: "*" if "*" in row.group() else "%", pattern)
    letters: dict[str, int] = {}
    for place, letter in enumerate(pattern):
        letters[letter] = letters.get(letter, 0) | 1 << place
    return letters, letters.pop("*", 0), letters.pop("%", 0), 1 << len(pattern)
