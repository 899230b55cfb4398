"""What a row says that will not work, as far as it can be known without a server: `users check`.

An `error` ends its user in an import (a secret that is not there, a location that does not parse); a `warning` is
something that its author may not have meant.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from aimport.config import PER_USER, Settings
from aimport.errors import AimportError
from aimport.lists.rows import UserRow
from aimport.location import parse_location, shown_location
from aimport.model import Secret
from aimport.secret import describe
from aimport.seen import Seen
from aimport.variables import Variables

Severity = Literal["error", "warning"]

_RELATIVE = re.compile(r"(?i)(?!imaps?:|imapc:|tunnel:|memory:)[a-z0-9]+:(?![/~%])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`line` 0: none that the form has."""

    line: int
    user: str
    severity: Severity
    what: str


class Lint:
    """Looks at rows one after the other; `variables` are those of a user by name and settings."""

    def __init__(self, settings: Settings, variables: Callable[[str, Settings], Variables]) -> None:
        self.findings: list[Finding] = []
        self._settings = settings
        self._variables = variables
        self._seen = Seen()

    def look(self, row: UserRow) -> None:
        for severity, what in self._look(row):
            self.findings.append(Finding(line=row.line, user=row.user, severity=severity, what=what))

    def _look(self, row: UserRow) -> Iterator[tuple[Severity, str]]:
        try:
            settings = self._settings.for_user(row.cells)
        except AimportError:
            return  # told by `check_users`
        variables = self._variables(row.user, settings)
        for column in row.cells:
            if column in PER_USER and isinstance(secret := getattr(settings, column), Secret):
                yield from _of_secret(column, secret)
        for side, column in (("source", "source"), ("destination", "dest")):
            location = row.cells.get(column, "")
            if not location:
                continue
            if _RELATIVE.match(location):
                yield "warning", f"{column}: a relative path begins where the import is started"
            try:
                endpoint = parse_location(
                    location, variables, side="source" if side == "source" else "destination", settings=settings
                )
            except AimportError as error:
                yield "error", f"{column}: {error}"
                continue
            parent = row.cells.get("parent", "")
            if not self._seen.add(side, endpoint.identity, parent if side == "destination" else ""):
                shown = (
                    f"{endpoint.user!r} at {shown_location(location)}" if endpoint.host else shown_location(location)
                )
                if side == "source":
                    yield "warning", f"source account {shown} is listed twice"
                elif not row.cells.get("dest_user") or "%" in location + row.cells["dest_user"]:
                    yield "error", f"destination {shown} is listed twice"  # else `check_users` told
        home = row.cells.get("mail_home", "")
        if home and not home.startswith(("/", "%")):
            yield "error", "mail_home: does not begin with /"


def _of_secret(column: str, secret: Secret) -> Iterator[tuple[Severity, str]]:
    """Whether there is something at a reference. Programs are not run."""
    if "%" in secret.text:
        return  # depends on variables that a later run may have
    if secret.kind == "env" and not os.environ.get(secret.text):
        yield "error", f"{column}: {describe(secret)}: this environment variable is not set"
    if secret.kind == "file":
        path = os.path.expanduser(secret.text)
        try:
            state = os.stat(path)
        except (OSError, ValueError) as error:
            yield "error", f"{column}: {describe(secret)}: {getattr(error, 'strerror', None) or 'not a file name'}"
            return
        if not os.path.isabs(path):
            yield "warning", f"{column}: {describe(secret)}: a relative path begins where the import is started"
        if not state.st_size:
            yield "error", f"{column}: {describe(secret)}: the file is empty"
        if state.st_mode & (stat.S_IRGRP | stat.S_IROTH):
            yield "warning", f"{column}: {describe(secret)}: others can read this file"


def shown_cells(row: UserRow) -> dict[str, str]:
    """The cells as people may see them: of a literal secret its length, which tells whether it was read whole."""
    shown = {}
    for column, cell in row.cells.items():
        if column in ("source", "dest"):
            shown[column] = shown_location(cell)
        elif column.endswith("_password") and not cell.startswith(("env:", "file:")):
            shown[column] = "cmd:..." if cell.startswith("cmd:") else f"*** ({_length(cell)})"
        else:
            shown[column] = cell
    return shown


def _length(text: str) -> str:
    length = "1 character" if len(text) == 1 else f"{len(text)} characters"
    return length + (", with blanks around" if text != text.strip() else "")
