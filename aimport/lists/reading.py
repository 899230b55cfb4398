"""Which form a list is in, and its rows: one pass, in flat memory.

    Held ──head──▶ detect ──▶ Reading ──items──▶ UserRow | Wrong | LeftOut | Note, ...

A first line with a cell `user` makes a list canonical, whatever else it looks like. After that a header decides, then
the shape of the first lines; what may be of several forms is refused, and they are named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from aimport.config import PER_USER, nearest
from aimport.errors import UsageError
from aimport.lists import text
from aimport.lists.forms import BY_NAME, FORMS, NAMES, Form, bare, fits, of_header
from aimport.lists.rows import CONTROL, PASSED_OVER, REFUSED, Item, LeftOut, Note, Refused, UserRow, Wrong, compose

COLUMNS: Final = frozenset({"user", "source", "dest", "parent"}) | PER_USER
_SEPARATORS: Final = (",", ";", "\t")
_SAMPLE: Final = 50
"""So many lines are looked at."""
_MOST: Final = 0.7
"""A form fits when so much of the sample does: a wrong line is to be named, not to hide the form."""
_NOT_A_NAME = re.compile(r"[\s,;]")
_ADDRESS = re.compile(r"[^\s@,;]+@[^\s@,;]+")
_LIKE_A_NAME = re.compile("[A-Za-z][A-Za-z0-9 _-]*")
_EXCEL = re.compile("sep=[,;\t]")
"""Its first line may say the separator."""
_WORDS = re.compile(r'"([^"]*)"(?=\s|$)|(\S+)')


@dataclass(frozen=True, slots=True)
class Reading:
    """A list in its form. `columns`: of a canonical list; empty for any other."""

    form: Form
    columns: tuple[str, ...]
    items: Callable[[], Iterator[Item]]


def open_list(held: text.Held, name: str, form: str | None) -> Reading:
    """`form` None: detected.

    Raises:
        UsageError: there is no such form; the shape is that of several.
    """
    if form is not None and form not in BY_NAME:
        hint = nearest(form, NAMES)
        text_ = f"--list-format: unknown form {form!r}" + (f" ({hint})" if hint else "")
        raise UsageError(f"{text_}, there are\n{_described(FORMS)}")
    if held.is_directory:
        from aimport.lists import trees

        return Reading(*trees.open_tree(held.path, name, form))
    head = _head(held)
    chosen, separator = _canonical(head) if form in (None, "csv") else (None, ",")
    if form is None:
        found = [chosen] if chosen else detect(head)
        if len(found) > 1:
            raise UsageError(f"{name}: its form is not clear, say which with --list-format NAME:\n{_described(found)}")
        chosen = found[0] if found else BY_NAME["plain"]
    else:
        chosen = BY_NAME[form]
    if chosen.name in ("cpanel", "mbox-tree"):
        raise UsageError(f"{name}: a list of the form {chosen.name} is a directory")
    if chosen.name == "csv":
        columns = tuple(_header_of(head[0], separator)) if head else ()
        row = _canonical_reader(columns, separator)
        return Reading(chosen, columns, lambda: _table(held, row, header=True, strict=False))
    return Reading(chosen, (), lambda: _foreign(held, chosen, head))


def _described(forms: Sequence[Form]) -> str:
    return "\n".join(f"  {form.name:<15} {form.about}" for form in forms)


def _head(held: text.Held) -> list[str]:
    """The first lines that hold something."""
    found: list[str] = []
    for line in text.lines(held):
        if not isinstance(line, Wrong) and _counts(line[1]):
            found.append(line[1])
            if len(found) == _SAMPLE:
                break
    return found


def _counts(line: str) -> bool:
    return bool(line) and not line.startswith("#") and not line.isspace() and not _EXCEL.fullmatch(line)


def cells_of(line: str, separator: str, *, quoted: bool = True) -> list[str]:
    """Cells of one line; a cell never spans lines. `separator` "" is blanks.

    Raises:
        Refused
    """
    if not separator:
        return [match[1] if match[1] is not None else match[2] for match in _WORDS.finditer(line)]
    if not quoted or ('"' not in line and "\r" not in line):
        return line.split(separator)
    import csv

    try:
        return next(csv.reader([line], strict=True, delimiter=separator))
    except csv.Error as exc:
        raise Refused("a quote without its end" if "unexpected end" in str(exc) else f"not CSV: {exc}") from None


def _header_of(line: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in cells_of(line, separator)]
    except Refused:
        return []


def _canonical(head: Sequence[str]) -> tuple[Form | None, str]:
    for separator in _SEPARATORS:
        if head and "user" in _header_of(head[0], separator):
            return BY_NAME["csv"], separator
    return None, ","


def detect(head: Sequence[str]) -> list[Form]:
    """The forms that the first lines may be of; none: a plain list, or nothing that is known."""
    if not head:
        return []
    from aimport.lists import special, structured

    if form := structured.looks_like(head) or special.looks_like(head):
        return [BY_NAME[form]]
    for separator in _SEPARATORS:
        names = _header_of(head[0], separator)
        if len(names) > 1 and (found := of_header(names, separator)):
            return found if len(found) == 1 else [form for form in found if form.name != "pairs"]
    if head[0].strip() == "Mailbox" and len(head) > 1 and all(_ADDRESS.fullmatch(line.strip()) for line in head[1:]):
        return [BY_NAME["mundofy"]]
    if almost := _almost(head[0]):
        return [almost]
    found = [form for form in FORMS if form.rows and form.by_shape and _share(head, form) >= _MOST]
    if special.gamme_share(head) >= _MOST:
        found.append(BY_NAME["gamme"])
        if not any("," in line for line in head):
            found.append(BY_NAME["plain"])
    return found


def _almost(line: str) -> Form | None:
    """The form whose header this would be but for a few names, so that those can be told."""
    best: tuple[int, Form] | None = None
    for separator in _SEPARATORS:
        names = _header_of(line, separator)
        for form in FORMS if all(map(_LIKE_A_NAME.fullmatch, names)) else ():
            known = sum(bare(name) in form.columns for name in names)
            if known >= 2 and known > len(names) / 2 and (best is None or known > best[0]):
                best = known, form
    return best[1] if best else None


def _share(head: Sequence[str], form: Form) -> float:
    fitting = 0
    for line in head:
        try:
            cells = _trimmed(cells_of(line, form.separator, quoted=form.quoted), form)
        except Refused:
            continue
        fitting += any(len(cells) == len(row) and fits(row, cells) for row in form.rows)
    return fitting / len(head)


def _trimmed(cells: list[str], form: Form) -> list[str]:
    """Without the empty cell behind a last separator, where it is one too many."""
    lengths = {len(row) for row in form.rows}
    if len(cells) > 1 and not cells[-1].strip() and len(cells) - 1 in lengths:
        return cells[:-1]
    return cells


Row = Callable[[int, str], UserRow | LeftOut]


def _table(held: text.Held, row: Row, *, header: bool, strict: bool = True) -> Generator[Item, None, None]:
    """A row a line; a `Wrong` for each that cannot be used. `strict`: under a wrong header no row means anything."""
    for line in text.lines(held):
        if isinstance(line, Wrong):
            yield line
            continue
        number, content = line
        if not _counts(content):
            continue
        try:
            if header:
                row(0, content)
            else:
                yield row(number, content)
        except Refused as exc:
            yield Wrong(number, str(exc))
            if header and strict:
                return
        header = False


def _canonical_reader(columns: tuple[str, ...], separator: str) -> Row:
    def row(number: int, content: str) -> UserRow:
        if number == 0:
            cells_of(content, separator)  # says what is wrong with a header that has no columns
            _check_columns(columns)
            return UserRow(user="")
        return _csv_row(number, cells_of(content, separator), columns)

    return row


def _check_columns(columns: tuple[str, ...]) -> None:
    wrong = []
    if "user" not in columns:
        raise Refused("no column user")
    for at, column in enumerate(columns):
        if column not in COLUMNS:
            hint = nearest(column, COLUMNS)
            wrong.append(f"unknown column {column!r}" + (f" ({hint})" if hint else ""))
        elif column in columns[:at]:
            wrong.append(f"column {column!r} stands twice")
    if wrong:
        raise Refused("; ".join(wrong))


def _csv_row(number: int, cells: list[str], columns: tuple[str, ...]) -> UserRow:
    if len(cells) > len(columns):
        raise Refused(f"{len(cells)} cells under {len(columns)} columns")
    given = {
        column: cell if column.endswith("_password") else cell.strip()
        for column, cell in zip(columns, cells, strict=False)
    }
    return canonical_row(number, given)


def canonical_row(number: int, given: dict[str, str]) -> UserRow:
    """A row of cells that stand under the canonical columns.

    Raises:
        Refused
    """
    user = given.pop("user", "")
    if not user:
        raise Refused("no user")
    if CONTROL.search(user):
        raise Refused(f"a control character in the name {user!r}")
    for column, cell in given.items():
        if CONTROL.search(cell) and not column.endswith("_password"):
            raise Refused(f"a control character in {column!r}")
    return UserRow(user=user, cells={column: cell for column, cell in given.items() if cell}, line=number)


def _plain_row(first: str) -> Row:
    def row(number: int, content: str) -> UserRow:
        name = content.strip()
        if _NOT_A_NAME.search(name):
            hint = ""
            if content == first:
                hint = " (a CSV list begins with a header line that has the column user; other forms: --list-format)"
            raise Refused(f"a name with a blank, comma or semicolon inside{hint}")
        if CONTROL.search(name):
            raise Refused(f"a control character in the name {name!r}")
        return UserRow(user=name, line=number)

    return row


def _foreign(held: text.Held, form: Form, head: Sequence[str]) -> Generator[Item, None, None]:
    from aimport.lists import special, structured

    match form.name:
        case "plain":
            yield from _table(held, _plain_row(head[0] if head else ""), header=False)
        case "json":
            yield from structured.json_items(held)
        case "toml":
            yield from structured.toml_items(held)
        case "imapcopy":
            yield from special.imapcopy(lambda: text.lines(held))
        case "passwd":
            if any(special.has_password(line) for line in head):
                yield Note("passwords of a passwd-file are not used")
            yield from _table(held, special.passwd_row, header=False)
        case "gamme":
            yield from _table(held, special.gamme_row, header=False)
        case _:
            yield from _columned(held, form, head)


def _columned(held: text.Held, form: Form, head: Sequence[str]) -> Generator[Item, None, None]:
    """A form that is a table row: with a header if its first line is one, else by position."""
    separators = dict.fromkeys((form.separator, *_SEPARATORS)) if form.columns else ()
    for separator in separators:
        names = _header_of(head[0], separator) if head else []
        known = [form.columns.get(bare(name)) for name in names]
        if sum(meaning is not None for meaning in known) > len(known) / 2:
            idle = [name for name, meaning in zip(names, known, strict=True) if meaning == PASSED_OVER]
            if idle:
                yield Note(f"columns that are not used: {', '.join(idle)}")
            yield from _table(held, _header_reader(form, names, separator), header=True)
            return
    if form.rows:
        yield from _table(held, _position_reader(form), header=False)
    else:
        yield from _table(held, _no_header(form), header=True)


def _no_header(form: Form) -> Row:
    def row(number: int, content: str) -> UserRow:
        raise Refused(f"this is not the header of {form.name}")

    return row


def _header_reader(form: Form, names: Sequence[str], separator: str) -> Row:
    meanings = [form.columns.get(bare(name)) for name in names]

    def row(number: int, content: str) -> UserRow | LeftOut:
        if number == 0:
            _check_names(form, names, meanings)
            return UserRow(user="")
        cells = cells_of(content, separator)
        if len(cells) > len(names):
            if any(cell.strip() for cell in cells[len(names) :]):
                raise Refused(f"{len(cells)} cells under {len(names)} columns")
        given: dict[str, str] = {}
        for name, meaning, cell in zip(names, meanings, cells, strict=False):
            if meaning == REFUSED and cell.strip() not in ("", "0"):
                raise Refused(f"{name} has no counterpart in a list (empty it; the query chooses mailboxes)")
            if meaning is not None and cell:
                given[meaning] = cell if meaning.endswith("password") else cell.strip()
        return compose(given, number)

    return row


def _check_names(form: Form, names: Sequence[str], meanings: Sequence[str | None]) -> None:
    wrong = []
    taken: dict[str, str] = {}
    for name, meaning in zip(names, meanings, strict=True):
        if meaning is None:
            hint = nearest(bare(name), form.columns)
            wrong.append(f"unknown column {name!r}" + (f" ({hint})" if hint else ""))
        elif meaning not in (PASSED_OVER, REFUSED) and meaning in taken:
            wrong.append(f"columns {taken[meaning]!r} and {name!r} say the same")
        elif meaning is not None:
            taken[meaning] = name
    if wrong:
        raise Refused("; ".join(wrong))


def _position_reader(form: Form) -> Row:
    by_length = {len(row): row for row in form.rows}
    lengths = " or ".join(map(str, sorted(by_length)))

    def row(number: int, content: str) -> UserRow | LeftOut:
        cells = _trimmed(cells_of(content, form.separator, quoted=form.quoted), form)
        if form.name == "imapsync" and len(cells) == 8 and not cells[7].strip():
            cells = cells[:7]
        meanings = by_length.get(len(cells))
        if meanings is None:
            hint = f"; a password cannot hold {form.separator!r} here" if len(cells) > max(by_length) else ""
            raise Refused(f"{len(cells)} cells where {form.name} has {lengths}{hint}")
        given = {
            meaning: cell if meaning.endswith("password") else cell.strip()
            for meaning, cell in zip(meanings, cells, strict=True)
            if cell
        }
        return compose(derived(given), number)

    return row


def derived(given: dict[str, str]) -> dict[str, str]:
    """Meanings that only one form has, as those that all have.

    Raises:
        Refused
    """
    if account := given.pop("account", ""):
        given["user"] = account
    if server := given.pop("artica", ""):
        rest = server.removeprefix("ssl:")
        given["source.host"] = rest
        given["source.security"] = "ssl" if rest != server else "starttls"
        given.setdefault("source.user", given.get("dest.user", ""))
    if label := given.pop("label", ""):
        given["dest.user"], _, given["parent"] = label.partition("/")
    root = given.pop("source.root", "")
    if root not in ("", "INBOX"):
        raise Refused("a root of the source other than INBOX (choose mailboxes with MAILBOX in the query)")
    root = given.pop("dest.root", "")
    if root not in ("", "INBOX"):
        given["parent"] = root
    return given
