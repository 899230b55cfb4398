"""Any list as the canonical CSV, its literal passwords moved where only their owner reads them: `users convert`.

    rows ──▶ OUT                    user,source,source_password     bob,imaps://...,file:/x/OUT.secrets/0000001-bob.source
         └─▶ OUT.secrets/  (0700)   a file (0600) for each password, or
         └─▶ FILE          (0600)   NAME='password' lines for a shell, and `env:NAME` in the list

Nothing that is there is overwritten. Each result has its name only when it is whole; the secrets come first, so a list
never points to what is not there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from aimport.errors import UsageError
from aimport.lists.rows import UserRow
from aimport.secret import parse_secret
from aimport.users import UserList, iter_users

ORDER: Final = ("user", "source", "source_user", "source_password", "dest", "dest_user", "dest_password", "parent")
MAX_ENVIRONMENT: Final = 1024 * 1024
"""Octets; a program can be given about 2 MB with its arguments (Linux, a stack of 8 MiB)."""
MAX_SECRET: Final = 60 * 1024
"""Octets of a secret that is read from a file (`aimport.secret`)."""
_UNSAFE = re.compile(r"[^A-Za-z0-9@._+=-]")
_QUOTED = re.compile(r'[",\r\n]|^[\s#]|\s$')


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was written."""

    users: int
    secrets: int


def convert(
    users: UserList, out: str | None, stdout: TextIO, *, secrets: str | None = None, environment: str | None = None
) -> Converted:
    """Writes `users` to the file `out`, None: to `stdout`.

    Literal passwords go into the directory `secrets`, or into the file `environment` for a shell; where neither is
    named, into `out` + `.secrets`.

    Raises:
        UsageError: one of them is there already or cannot be written; a password would be kept nowhere.
    """
    if environment is None and secrets is None and out is not None:
        secrets = f"{out}.secrets"
    if users.literal and environment is None and secrets is None:
        raise UsageError(
            f"{users.name}: {users.literal} is a literal password",
            hint="say where it goes with -o OUT, --secrets DIR or --env FILE",
        )
    for path in filter(None, (out, *((secrets, environment) if users.literal else ()))):
        if os.path.lexists(path):
            raise _failed(path, FileExistsError())
    columns = _columns(users)
    with contextlib.ExitStack() as stack:
        store: _Files | _Environment = (
            _Environment(environment, stack) if environment is not None else _Files(secrets or "", stack)
        )
        with _new_file(out) if out is not None else contextlib.nullcontext(stdout) as csv:
            csv.write(",".join(columns) + "\n")
            count = 0
            for count, row in enumerate(iter_users(users), 1):
                cells = {column: store.moved(count, row, column, cell) for column, cell in row.cells.items()}
                cells["user"] = row.user
                csv.write(",".join(_cell(cells.get(column, "")) for column in columns) + "\n")
            store.finish()
    return Converted(users=count, secrets=store.count)


def _columns(users: UserList) -> Sequence[str]:
    used = {"user", *users.columns}
    return [column for column in ORDER if column in used] + sorted(used - set(ORDER))


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _failed(path: str, error: OSError) -> UsageError:
    if isinstance(error, FileExistsError):
        return UsageError(f"{path}: is there already", hint="remove it, or name another one")
    return UsageError(f"{path}: cannot be written ({error.strerror})")


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[TextIO]:
    """A file that only its owner reads; it gets its name at the end, unless there is one of that name by then."""
    folder, name = os.path.split(os.path.abspath(path))
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    except OSError as error:
        raise _failed(path, error) from error
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _literal(row: UserRow, column: str, cell: str) -> bool:
    """Whether this is a password in the list itself.

    Raises:
        UsageError: it cannot be kept elsewhere.
    """
    if not column.endswith("_password") or parse_secret(cell, "list", name=column).kind != "literal":
        return False
    if re.search("[\0\r\n]", cell) or len(cell.encode("utf-8", "surrogateescape")) > MAX_SECRET:
        raise UsageError(f"line {row.line}: {column}: a line break, or more than 60 KiB, cannot be kept in a file")
    return True


class _Files:
    """A file for each secret, in a directory that is made when there is the first."""

    def __init__(self, path: str, stack: contextlib.ExitStack) -> None:
        self.count = 0
        self._path = os.path.abspath(path)
        self._stack = stack
        self._temporary = ""

    def moved(self, number: int, row: UserRow, column: str, cell: str) -> str:
        if not _literal(row, column, cell):
            return cell
        if not self._temporary:
            try:
                folder, base = os.path.split(self._path)
                self._temporary = tempfile.mkdtemp(prefix=f".{base}.", dir=folder)
            except OSError as error:
                raise _failed(self._path, error) from error
            self._stack.callback(shutil.rmtree, self._temporary, ignore_errors=True)
        side = column.removesuffix("_password")
        name = f"{number:07}-{_UNSAFE.sub('_', row.user)[:100]}.{side}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(f"{self._temporary}/{name}", flags, 0o600), "w", encoding="utf-8", newline="\n") as file:
                file.write(cell + "\n")
        except OSError as error:
            raise _failed(self._path, error) from error
        self.count += 1
        return f"file:{self._path}/{name}".replace("%", "%%")

    def finish(self) -> None:
        if not self._temporary:
            return
        os.sync()  # one for all: a million files would each wait for the disk
        try:
            os.rename(self._temporary, self._path)  # an empty directory may be there
            _sync_folder(os.path.dirname(self._path))
        except OSError as error:
            raise _failed(self._path, error) from error


class _Environment:
    """A file of assignments for a shell."""

    def __init__(self, path: str, stack: contextlib.ExitStack) -> None:
        self.count = 0
        self._path = os.path.abspath(path)
        self._octets = 0
        self._stack = stack.enter_context(contextlib.ExitStack())
        self._file: TextIO | None = None

    def moved(self, number: int, row: UserRow, column: str, cell: str) -> str:
        if not _literal(row, column, cell):
            return cell
        if self._file is None:
            self._file = self._stack.enter_context(_new_file(self._path))
            self._file.write(f"# set -a; . {shlex.quote(self._path)}; set +a\n")
        name = f"PW{number:07}_{column.removesuffix('_password').upper()}"
        line = f"{name}={shlex.quote(cell)}\n"
        self._octets += len(line.encode())
        if self._octets > MAX_ENVIRONMENT:
            raise UsageError(f"{self._path}: too many passwords for an environment", hint="use --secrets DIR")
        self._file.write(line)
        self.count += 1
        return f"env:{name}"

    def finish(self) -> None:
        self._stack.close()  # the file gets its name
