"""User lists: the canonical CSV (a header with the column `user`), plain lists, and those of other tools (`lists`).

    check_users(FILE) ──all errors at once, or──▶ UserList ──iter_users──▶ UserRow, UserRow, ...

A list is read twice, in flat memory: once to check every line, once to use it; what is kept are
a few octets a user, to find duplicates. Its file stays open, so it cannot be replaced in between; a
list that is written to in between is noticed. What cannot be read twice (stdin, a pipe) is copied
to a nameless temporary file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from aimport.config import PER_USER, convert
from aimport.errors import AimportError, ConfigurationError, UsageError
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
    literal: str
    """A column with a literal secret; empty where there is none."""
    left_out: int
    """Rows that say of themselves that they do not count."""
    notes: tuple[str, ...]
    """What the list holds and this program does not use, for people."""
    reading: Reading = field(repr=False)
    held: Held = field(repr=False)
    version: tuple[int, int] = field(repr=False)
    """Size and time of change of the file that was checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A list, and all that is wrong with it."""

    users: UserList
    errors: list[Wrong]
    """As they come: by line."""
    more: int
    """Errors beyond those that were asked for."""
    private: ConfigurationError | None
    """It holds a literal secret and others can read it."""


def check_users(source: str, *, stdin: BinaryIO | None = None, form: str | None = None, copy: bool = False) -> UserList:
    """Reads and checks the whole list. `source` is a path, or `-` for `stdin`; `form` a name of `lists.forms`.

    With `copy` the list stays as it is now, whatever is written to its file.

    Raises:
        UsageError: it cannot be read, its form is not clear, or lines are wrong; each is named as `FILE:LINE: what`.
        ConfigurationError: it holds a literal secret and others can read it.
    """
    found = inspect_users(source, stdin=stdin, form=form, copy=copy, most=MAX_ERRORS_SHOWN)
    if found.errors:
        lines = [f"{found.users.name}:{wrong.line}: {wrong.what}" for wrong in found.errors]
        raise UsageError("\n".join(lines + ([f"... and {found.more} more"] if found.more else [])))
    if found.private:
        raise found.private
    return found.users


def inspect_users(
    source: str,
    *,
    stdin: BinaryIO | None = None,
    form: str | None = None,
    copy: bool = False,
    look: Callable[[UserRow], None] | None = None,
    most: int | None = None,
) -> Inspected:
    """As `check_users`; what is wrong is returned, `most` of it. `look` sees each row.

    Raises:
        UsageError: it cannot be read, or its form is not clear.
    """
    name = "stdin" if source == "-" else source
    held, mode = hold(source, name, stdin, copy=copy)
    version = held.version()
    reading = open_list(held, name, form)
    errors: list[Wrong] = []
    more = 0
    seen = Seen()
    columns: set[str] = set(reading.columns)
    notes: dict[str, None] = {}
    count, left_out, literal = 0, 0, ""
    for item in reading.items():
        wrong: Sequence[Wrong] = ()
        if isinstance(item, UserRow):
            count += 1
            found, wrong = _check_row(item, seen)
            literal = literal or found
            if not columns.issuperset(item.cells):
                columns.update(item.cells)
            if look is not None:
                look(item)
        elif isinstance(item, Wrong):
            wrong = [item]
        elif isinstance(item, LeftOut):
            left_out += 1
        elif len(notes) < MAX_NOTES:
            notes[item.what] = None
        for each in wrong:
            if most is None or len(errors) < most:
                errors.append(each)
            else:
                more += 1
    private = None
    if literal and mode is not None:
        try:
            check_private(source, mode, literal)
        except ConfigurationError as error:
            private = error
    users = UserList(
        name=name,
        path="" if source == "-" else source,
        form=reading.form.name,
        columns=reading.columns or tuple(sorted(columns)),
        count=count,
        literal=literal,
        left_out=left_out,
        notes=tuple(notes),
        reading=reading,
        held=held,
        version=version,
    )
    return Inspected(users=users, errors=errors, more=more, private=private)


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


def _check_row(row: UserRow, seen: Seen) -> tuple[str, list[Wrong]]:
    """The name of the first column with a literal secret, or ""; what is wrong with the row."""
    literal = ""
    errors: list[Wrong] = []
    if not seen.add("user", row.user):
        errors.append(Wrong(row.line, f"user {row.user!r} is listed twice"))
    for column, cell in row.cells.items():
        try:
            if column in PER_USER:
                value = convert(column, cell, column, "list")
                if isinstance(value, Secret) and value.kind == "literal":
                    literal = literal or column
            elif column in ("source", "dest"):
                check_password(cell)
        except AimportError as exc:
            errors.append(Wrong(row.line, str(exc)))
    dest, account = row.cells.get("dest", ""), row.cells.get("dest_user", "")
    if dest and account and "%" not in dest + account:
        if not seen.add("dest", dest, account, row.cells.get("parent", "")):
            errors.append(Wrong(row.line, f"destination user {account!r} at {shown_location(dest)} is listed twice"))
    return literal, errors
