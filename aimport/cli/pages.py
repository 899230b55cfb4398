"""Pages for a browser, written as files."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from aimport.errors import UsageError


def write_page(path: Path, page: str) -> None:
    """Writes the file whole or not at all, in place of a regular file of that name; only its owner reads it.

    It tells who has mail, and where.

    Raises:
        UsageError: something else has the name, or it cannot be written.
    """
    check_page(path)
    try:
        handle, name = tempfile.mkstemp(prefix=".aimport-", suffix=".html", dir=path.parent)  # for its owner alone
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="name another file for the page") from error


def check_page(path: Path) -> None:
    """Looks whether a page may have that name, before it takes long to make one.

    Raises:
        UsageError: something else has it, or there is no such directory.
    """
    try:
        there = path.lstat().st_mode
    except FileNotFoundError:
        if path.parent.is_dir():
            return
        raise UsageError(f"{path}: No such file or directory", hint="name another file for the page") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="name another file for the page") from error
    if not stat.S_ISREG(there):
        what = "a directory" if stat.S_ISDIR(there) else "no regular file"
        raise UsageError(f"{path} is {what}", hint="name a file for the page")
