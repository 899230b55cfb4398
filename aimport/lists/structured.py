"""JSON and TOML lists: an object a user, by field names. Read one object at a time.

    {"user": "bob", "source": "maildir:/srv/bob"}                   canonical columns, as in the CSV
    {"source": {"host": "a", "user": "b"}, "destPassword": "c"}     names that say side and field

JSON may be a list, an object that holds one list, or one object after the other; TOML an array of tables
(`[[users]]`), or a table for each (`[users.bob]`).
"""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from collections.abc import Generator, Mapping, Sequence
from typing import Final

from aimport.config import nearest
from aimport.lists import text
from aimport.lists.forms import PAIRS, bare
from aimport.lists.rows import Item, Note, Refused, Wrong, compose

_MAX_ITEM: Final = 1024 * 1024
_MAX_WHOLE: Final = 64 * 1024 * 1024
"""An object that holds the whole list."""
_PIECE: Final = 64 * 1024
_BLANK = re.compile(r"[\s,]*")
_TABLE = re.compile(r"^\s*\[(\[)?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|([A-Za-z0-9_-]+)')
_DEPTH: Final = 4
_NAMING: Final = frozenset({"user", "dest.user", "dest.email", "source.user", "source.email"})
"""Meanings that give a row its name."""


def looks_like(head: Sequence[str]) -> str:
    """`json`, `toml` or nothing, by the first lines."""
    first = head[0].lstrip()
    if first.startswith("{") or re.match(r"\[\s*(?:\{|\]|$)", first):
        return "json"
    return "toml" if _TABLE.match(first) and "=" in "".join(head[1:]) else ""


class _Text:
    """Decoded text from the front on, and which line its front is on."""

    def __init__(self, held: text.Held) -> None:
        self._octets = text.reader(held)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.front = ""
        self.at = 0
        self.ended = False
        self._line = 1
        self._counted = 0

    def more(self, size: int) -> None:
        self.here()
        octets = self._octets.read(size)
        self.ended = not octets
        self.front = self.front[self.at :] + self._decoder.decode(octets, final=self.ended)
        self.at = self._counted = 0

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Passes over what matches; the character behind it, "" at the end."""
        while True:
            match = pattern.match(self.front, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.front) or self.ended:
                return self.front[self.at : self.at + 1]
            self.more(_PIECE)

    def here(self) -> int:
        """The line of the front."""
        self._line += self.front.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line


def json_items(held: text.Held) -> Generator[Item, None, None]:
    """A row for each object. After what is no JSON nothing more can be read."""
    found = _Text(held)
    try:
        first = found.skip(_BLANK)
        within = first == "["
        if within:
            found.at += 1
        while (char := found.skip(_BLANK)) and not (within and char == "]"):
            line = found.here()
            yield from _rows_of(_decode(found), line)
        if within:
            if not char:
                yield Wrong(found.here(), "the list does not end with ]")
                return
            found.at += 1
            if found.skip(_BLANK):
                yield Wrong(found.here(), "something behind the end of the list")
    except UnicodeDecodeError:
        yield Wrong(found.here(), "not UTF-8 text")
    except Refused as exc:
        yield Wrong(found.here(), str(exc))


_DECODER: Final = json.JSONDecoder(parse_constant=lambda name: name)


def _decode(found: _Text) -> object:
    size = _PIECE
    while True:
        try:
            value, end = _DECODER.raw_decode(found.front, found.at)
        except (ValueError, RecursionError) as exc:
            whole = found.front.startswith("{", found.at)
            if found.ended or len(found.front) - found.at > (_MAX_WHOLE if whole else _MAX_ITEM):
                raise Refused(f"not JSON: {getattr(exc, 'msg', 'nested too deeply')}") from None
            found.more(size)
            size *= 2
            continue
        if end == len(found.front) and not found.ended:  # a number may go on
            found.more(size)
            continue
        found.at = end
        return value


def _rows_of(value: object, line: int) -> Generator[Item, None, None]:
    if isinstance(value, dict) and not _flat(value).keys() & ({"user"} | PAIRS.keys()):
        lists = [key for key, each in value.items() if isinstance(each, list) and each]
        if len(lists) == 1 and all(isinstance(each, dict) for each in value[lists[0]]):
            if others := [str(key) for key in value if key != lists[0]]:
                yield Note(f"fields beside the list are not used: {', '.join(others)}")
            for each in value[lists[0]]:
                yield _row(each, line)
            return
    yield _row(value, line)


def _row(value: object, line: int) -> Item:
    try:
        if not isinstance(value, dict):
            raise Refused("not an object")
        return row_of(value, line)
    except Refused as exc:
        return Wrong(line, str(exc))


def row_of(value: Mapping[str, object], line: int) -> Item:
    """The row that the fields of one object make.

    Raises:
        Refused
    """
    if "user" in value:
        return _canonical(value, line)
    given: dict[str, str] = {}
    for name, text_ in _fields(value):
        meaning = PAIRS.get(bare(name))
        if meaning is None:
            hint = nearest(bare(name), PAIRS)
            raise Refused(f"unknown field {name!r}" + (f" ({hint})" if hint else ""))
        if meaning in given:
            raise Refused(f"field {name!r} says once more what another one says")
        if text_:
            given[meaning] = text_ if meaning.endswith("password") else text_.strip()
    return compose(given, line)


def _canonical(value: Mapping[str, object], line: int) -> Item:
    from aimport.lists.reading import COLUMNS, canonical_row

    given: dict[str, str] = {}
    for name, text_ in _fields(value):
        if name not in COLUMNS:
            hint = nearest(name, COLUMNS)
            raise Refused(f"unknown column {name!r}" + (f" ({hint})" if hint else ""))
        given[name] = text_
    return canonical_row(line, given)


def _flat(value: Mapping[str, object]) -> dict[str, object]:
    return {bare(key): each for key, each in value.items()}


def _fields(value: Mapping[str, object], above: str = "", depth: int = 0) -> Generator[tuple[str, str], None, None]:
    """Names with their texts; what is nested has the names above it in front."""
    for key, each in value.items():
        name = f"{above}_{key}" if above else str(key)
        if isinstance(each, dict) and depth < _DEPTH:
            yield from _fields(each, name, depth + 1)
        elif isinstance(each, bool):
            yield name, "yes" if each else "no"
        elif isinstance(each, str):
            yield name, each
        elif isinstance(each, int):
            yield name, str(each)
        elif each is not None:
            raise Refused(f"field {name!r} is neither text nor number")


def toml_items(held: text.Held) -> Generator[Item, None, None]:
    """A row for each table. A table is read with those below it, and alone, so a long list takes no memory."""
    block: list[str] = []
    head: tuple[str, ...] = ()
    arrays, began, octets = False, 0, 0
    for line in text.lines(held):
        if isinstance(line, Wrong):
            yield line
            continue
        number, content = line
        match = _TABLE.match(content)
        keys = _keys(match[2]) if match else ()
        new = match and (not began or (bool(match[1]) if arrays else _other(keys, head)))
        if match and new:
            if match[1] and not arrays and began:
                yield Wrong(began, "a table that is none of the list (say it in each of them)")
            else:
                yield from _toml_row(block, () if arrays else head[-1:], began)
            arrays, began, block, octets = bool(match[1]), number, [], 0
            head = keys if arrays else keys[:2]
            if keys == head:
                continue
        octets += len(content)
        if octets > _MAX_ITEM:
            yield Wrong(began or number, "a table of more than 1 MiB")
            return
        if match and keys[: len(head)] == head:  # [users.bob.source] below [users.bob]
            content = f"[{'.'.join(map(json.dumps, keys[len(head) :]))}]"
        block.append(content)
    yield from _toml_row(block, () if arrays else head[-1:], began)


def _other(keys: tuple[str, ...], head: tuple[str, ...]) -> bool:
    """Whether a table is that of another user, or lies below it: `users.eve.source` after `users.bob`."""
    return len(keys) >= len(head) and keys[: len(head)] != head and keys[: len(head) - 1] == head[:-1]


def _keys(dotted: str) -> tuple[str, ...]:
    return tuple(next(filter(None, match.groups()), "") for match in _KEY.finditer(dotted))


def _toml_row(block: Sequence[str], name: Sequence[str], line: int) -> Generator[Item, None, None]:
    try:
        value = tomllib.loads("\n".join(block))
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        yield Wrong(line, f"not TOML: {exc}")
        return
    if not line:
        if value:
            yield Wrong(1, "fields before the first table (say them in each of them)")
        return
    if name and "user" not in value:
        meanings = {PAIRS.get(bare(key)) for key, _ in _fields(value)}
        if not meanings & _NAMING:  # [users.bob]
            value = {"email" if meanings - {None} else "user": name[0], **value}
    yield _row(value, line)
