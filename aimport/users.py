"""User lists: the canonical CSV (a header with the column `user`), plain lists, and those of other tools (`lists`).

    check_users(FILE) ──all errors at once, or──▶ UserList ──iter_users──▶ UserRow, UserRow, ...

A list is read twice, in flat memory: once to check every line, once to use it; what is kept are
a few octets a user, to find duplicates. Its file stays open, so it cannot be replaced in between; a
list that is written to in between is noticed. What cannot be read twice (stdin, a pipe) is copied
to a nameless temporary file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from aimport.config import PER_USER, convert
from aimport.errors import AimportError, UsageError
from aimport.lists.reading import Reading, open_list
from aimport.lists.rows import LeftOut, Wrong
from aimport.lists.rows import UserRow as UserRow
from aimport.lists.text import Held, hold
from aimport.location import check_password, shown_location
from aimport.model import Secret
from aimport.secret import check_private
from aimport.seen import Seen

MAX_ERRORS_SHOWN: Final = 100
MAX_NOTES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class UserList:
    """A list whose every line is right. `columns` are those of a canonical list, else all that its rows make use of."""

    name: str
    path: str
    """The file, as given; empty for one that cannot be read again (stdin)."""
    form: str
    columns: tuple[str, ...]
    count: int
    left_out: int
    """Rows that say of themselves that they do not count."""
    notes: tuple[str, ...]
    """What the list holds and this program does not use, for people."""
    reading: Reading = field(repr=False)
    held: Held = field(repr=False)
    version: tuple[int, int] = field(repr=False)
    """Size and time of change of the file that was checked."""


def check_users(
    source: str,
    *,
    stdin: BinaryIO | None = None,
    form: str | None = None,
    copy: bool = False,
    most: int = MAX_ERRORS_SHOWN,
) -> UserList:
    """Reads and checks the whole list. `source` is a path, or `-` for `stdin`; `form` a name of `lists.forms`.

    With `copy` the list stays as it is now, whatever is written to its file. At most `most` errors are told.

    Raises:
        UsageError: it cannot be read, its form is not clear, or lines are wrong; each is named as `FILE:LINE: what`.
        ConfigurationError: it holds a literal secret and others can read it.
    """
    name = "stdin" if source == "-" else source
    held, mode = hold(source, name, stdin, copy=copy)
    version = held.version()
    reading = open_list(held, name, form)
    errors = _Errors(name, most)
    seen = Seen()
    columns: set[str] = set(reading.columns)
    notes: dict[str, None] = {}
    count, left_out, literal = 0, 0, ""
    for item in reading.items():
        if isinstance(item, UserRow):
            count += 1
            literal = _check_row(item, seen, errors) or literal
            if not columns.issuperset(item.cells):
                columns.update(item.cells)
        elif isinstance(item, Wrong):
            errors.add(item)
        elif isinstance(item, LeftOut):
            left_out += 1
        elif len(notes) < MAX_NOTES:
            notes[item.what] = None
    errors.check()
    if literal and mode is not None:
        check_private(source, mode, literal)
    return UserList(
        name=name,
        path="" if source == "-" else source,
        form=reading.form.name,
        columns=reading.columns or tuple(sorted(columns)),
        count=count,
        left_out=left_out,
        notes=tuple(notes),
        reading=reading,
        held=held,
        version=version,
    )


def iter_users(users: UserList) -> Iterator[UserRow]:
    """The rows in file order; may be called again, also while another pass is under way.

    Raises:
        UsageError: the file was written to after it was checked.
    """
    changed = UsageError(f"{users.name}: changed while it was in use", hint="run again with a list that keeps still")
    if users.held.version() != users.version:
        raise changed
    for item in users.reading.items():
        if isinstance(item, UserRow):
            yield item
        elif isinstance(item, Wrong):
            raise changed
    if users.held.version() != users.version:
        raise changed


class _Errors:
    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self.most = most
        self.lines: list[str] = []
        self.more = 0

    def add(self, wrong: Wrong) -> None:
        if len(self.lines) < self.most:
            self.lines.append(f"{self.name}:{wrong.line}: {wrong.what}")
        else:
            self.more += 1

    def check(self) -> None:
        if self.lines:
            raise UsageError("\n".join(self.lines + ([f"... and {self.more} more"] if self.more else [])))


def _check_row(row: UserRow, seen: Seen, errors: _Errors) -> str:
    """Checks one row; the name of the first column with a literal secret, or ""."""
    literal = ""
    if not seen.add("user", row.user):
        errors.add(Wrong(row.line, f"user {row.user!r} is listed twice"))
    for column, cell in row.cells.items():
        try:
            if column in PER_USER:
                value = convert(column, cell, column, "list")
                if isinstance(value, Secret) and value.kind == "literal":
                    literal = literal or column
            elif column in ("source", "dest"):
                check_password(cell)
        except AimportError as exc:
            errors.add(Wrong(row.line, str(exc)))
    dest, account = row.cells.get("dest", ""), row.cells.get("dest_user", "")
    if dest and account and "%" not in dest + account:
        if not seen.add("dest", dest, account, row.cells.get("parent", "")):
            errors.add(Wrong(row.line, f"destination user {account!r} at {shown_location(dest)} is listed twice"))
    return literal
