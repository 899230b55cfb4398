"""User lists: the canonical CSV (a header with the column `user`) and plain lists, one name a line.

    check_users(FILE) ──all errors at once, or──▶ UserList ──iter_users──▶ UserRow, UserRow, ...

A list is read twice, in flat memory: once to check every line, once to use it; what is kept are
16 octets a user, to find duplicates. Its file stays open, so it cannot be replaced in between; a
list that is written to in between is noticed. What cannot be read twice (stdin, a pipe) is copied
to a nameless temporary file.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from aimport.config import PER_USER, convert, nearest
from aimport.errors import AimportError, UsageError
from aimport.location import check_password, shown_location
from aimport.model import Secret
from aimport.secret import check_private

COLUMNS: Final = frozenset({"user", "source", "dest", "parent"}) | PER_USER
MAX_LINE: Final = 1024 * 1024
MAX_ERRORS_SHOWN: Final = 100
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_A_NAME = re.compile(r"[\s,;]")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRow:
    """One user of a list. `cells` holds the cells that are given, by column, without `user`; secrets among them."""

    user: str
    cells: Mapping[str, str] = field(default_factory=dict, repr=False)
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UserList:
    """A list whose every line is right. `columns` is empty for a plain list."""

    name: str
    columns: tuple[str, ...]
    count: int
    held: _Held = field(repr=False)
    version: tuple[int, int] = field(repr=False)
    """Size and time of change of the file that was checked."""


@dataclass(frozen=True, slots=True)
class _Wrong:
    """A line that cannot be used, and why."""

    line: int
    what: str


class _Refused(Exception):
    """Why a line cannot be used."""


def check_users(source: str, *, stdin: BinaryIO | None = None) -> UserList:
    """Reads and checks the whole list. `source` is a path, or `-` for `stdin`.

    Raises:
        UsageError: it cannot be read, or lines are wrong; the text names each as `FILE:LINE: what`.
        ConfigurationError: it holds a literal secret and others can read it.
    """
    name = "stdin" if source == "-" else source
    held, mode = _open(source, name, stdin)
    version = held.version()
    errors = _Errors(name)
    seen: set[bytes] = set()
    columns: tuple[str, ...] = ()
    count, literal = 0, ""
    for item in _rows(held):
        if isinstance(item, tuple):
            columns = item
        elif isinstance(item, _Wrong):
            errors.add(item)
        else:
            count += 1
            literal = literal or _check_row(item, seen, errors)
    errors.check()
    if literal and mode is not None:
        check_private(source, mode, literal)
    return UserList(name=name, columns=columns, count=count, held=held, version=version)


def iter_users(users: UserList) -> Iterator[UserRow]:
    """The rows in file order; may be called again, also while another pass is under way.

    Raises:
        UsageError: the file was written to after it was checked.
    """
    changed = UsageError(f"{users.name}: changed while it was in use", hint="run again with a list that keeps still")
    if users.held.version() != users.version:
        raise changed
    for item in _rows(users.held):
        if isinstance(item, UserRow):
            yield item
        elif isinstance(item, _Wrong):
            raise changed
    if users.held.version() != users.version:
        raise changed


class _Errors:
    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self.more = 0

    def add(self, wrong: _Wrong) -> None:
        if len(self.lines) < MAX_ERRORS_SHOWN:
            self.lines.append(f"{self.name}:{wrong.line}: {wrong.what}")
        else:
            self.more += 1

    def check(self) -> None:
        if self.lines:
            raise UsageError("\n".join(self.lines + ([f"... and {self.more} more"] if self.more else [])))


class _Held:
    """An open file that nobody else closes; it is closed when the last one lets go of it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)

    def version(self) -> tuple[int, int]:
        """Changes when the file is written to."""
        state = os.fstat(self.descriptor)
        return state.st_size, state.st_mtime_ns


def _open(source: str, name: str, stdin: BinaryIO | None) -> tuple[_Held, int | None]:
    """The list as a file that can be read twice, and its mode when it lies where others could read it."""
    try:
        if source == "-":
            import sys

            return _spooled(stdin or sys.stdin.buffer), None
        held = _Held(os.open(source, os.O_RDONLY | os.O_CLOEXEC))
        mode = os.fstat(held.descriptor).st_mode
        if stat.S_ISREG(mode):
            return held, mode
        with open(held.descriptor, "rb", closefd=False) as stream:
            return _spooled(stream), None
    except (OSError, ValueError) as exc:
        raise UsageError(f"{name}: cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc


def _spooled(stream: BinaryIO) -> _Held:
    import shutil
    import tempfile

    with tempfile.TemporaryFile() as spool:  # mode 0600, without a name
        shutil.copyfileobj(stream, spool)
        spool.flush()
        return _Held(os.dup(spool.fileno()))


class _FromStart(io.RawIOBase):
    """Reads a held file from its start, whoever else reads it."""

    def __init__(self, held: _Held) -> None:
        self._held = held
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # mypy: any buffer
        octets = os.pread(self._held.descriptor, len(buffer), self._at)
        buffer[: len(octets)] = octets
        self._at += len(octets)
        return len(octets)


def _lines(held: _Held) -> Generator[tuple[int, str] | _Wrong, None, None]:
    """Every line with its number, without its end."""
    reader = io.BufferedReader(_FromStart(held), 128 * 1024)
    number = 0
    while octets := reader.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            octets = octets.removeprefix(b"\xef\xbb\xbf")
        if len(octets) > MAX_LINE and not octets.endswith(b"\n"):
            while octets and not octets.endswith(b"\n"):
                octets = reader.readline(MAX_LINE)
            yield _Wrong(number, "the line is longer than 1 MiB")
            continue
        try:
            yield number, octets.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError as exc:
            yield _Wrong(number, f"not UTF-8 text at octet {exc.start + 1}")


def _rows(held: _Held) -> Generator[tuple[str, ...] | UserRow | _Wrong, None, None]:
    """The columns of a CSV list, then its rows; a `_Wrong` for each line that cannot be used."""
    columns: tuple[str, ...] | None = None
    for line in _lines(held):
        if isinstance(line, _Wrong):
            yield line
            continue
        number, text = line
        if not text.strip() or text.startswith("#"):
            continue
        try:
            if columns is None:
                columns = _header(text)
                if columns:
                    yield columns
                    _check_columns(columns)
                    continue
            yield _csv_row(number, text, columns) if columns else _plain_row(number, text)
        except _Refused as exc:
            yield _Wrong(number, str(exc))


def _header(text: str) -> tuple[str, ...]:
    """The columns when this first line makes the list a CSV; empty when it does not."""
    try:
        columns = tuple(cell.strip() for cell in _cells(text))
    except _Refused:
        return ()
    return columns if "user" in columns else ()


def _check_columns(columns: tuple[str, ...]) -> None:
    wrong = []
    for at, column in enumerate(columns):
        if column not in COLUMNS:
            hint = nearest(column, COLUMNS)
            wrong.append(f"unknown column {column!r}" + (f" ({hint})" if hint else ""))
        elif column in columns[:at]:
            wrong.append(f"column {column!r} stands twice")
    if wrong:
        raise _Refused("; ".join(wrong))


def _cells(text: str) -> list[str]:
    """Cells of one line; a cell never spans lines."""
    import csv

    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as exc:
        raise _Refused("a quote without its end" if "unexpected end" in str(exc) else f"not CSV: {exc}") from None


def _csv_row(number: int, text: str, columns: tuple[str, ...]) -> UserRow:
    cells = _cells(text)
    if len(cells) > len(columns):
        raise _Refused(f"{len(cells)} cells under {len(columns)} columns")
    given = {
        column: cell if column.endswith("_password") else cell.strip()
        for column, cell in zip(columns, cells, strict=False)
    }
    user = given.pop("user", "")
    if not user:
        raise _Refused("no user")
    if _CONTROL.search(user):
        raise _Refused(f"a control character in the name {user!r}")
    for column, cell in given.items():
        if _CONTROL.search(cell) and not column.endswith("_password"):
            raise _Refused(f"a control character in {column!r}")
    return UserRow(user=user, cells={column: cell for column, cell in given.items() if cell}, line=number)


def _plain_row(number: int, text: str) -> UserRow:
    name = text.strip()
    if _NOT_A_NAME.search(name):
        hint = " (a CSV list begins with a header line that has the column user)" if number == 1 else ""
        raise _Refused(f"a name with a blank, comma or semicolon inside{hint}")
    if _CONTROL.search(name):
        raise _Refused(f"a control character in the name {name!r}")
    return UserRow(user=name, line=number)


def _check_row(row: UserRow, seen: set[bytes], errors: _Errors) -> str:
    """Checks one row; the name of the first column with a literal secret, or ""."""
    literal = ""
    if not _is_new(seen, "user", row.user):
        errors.add(_Wrong(row.line, f"user {row.user!r} is listed twice"))
    for column, cell in row.cells.items():
        try:
            if column in PER_USER:
                value = convert(column, cell, column, "list")
                if isinstance(value, Secret) and value.kind == "literal":
                    literal = literal or column
            elif column in ("source", "dest"):
                check_password(cell)
        except AimportError as exc:
            errors.add(_Wrong(row.line, str(exc)))
    dest, account = row.cells.get("dest", ""), row.cells.get("dest_user", "")
    if dest and account and "%" not in dest + account:
        if not _is_new(seen, "dest", dest, account, row.cells.get("parent", "")):
            errors.add(_Wrong(row.line, f"destination user {account!r} at {shown_location(dest)} is listed twice"))
    return literal


def _is_new(seen: set[bytes], *what: str) -> bool:
    import hashlib

    digest = hashlib.blake2b("\0".join(what).encode("utf-8"), digest_size=16).digest()
    if digest in seen:
        return False
    seen.add(digest)
    return True
