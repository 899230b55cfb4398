"""`auto:PATH`: what kind of store lies there. Says which, and refuses what may be several.

look ──▶ signs of each kind ──▶ one ──▶ the source of that kind
                            └─▶ none, several: an error that lists what was seen
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from anyio import to_thread

from aimport.errors import AccessRefused, SourceMissing, UserError
from aimport.interfaces import Source, SourceSession
from aimport.model import Endpoint
from aimport.stores import content, files, inflate
from aimport.stores.loose.names import is_eml, is_mh
from aimport.stores.maildir.names import is_guid
from aimport.stores.mbox.scan import NotMbox, Scanner

logger = logging.getLogger(__name__)

_HEAD = 64 * 1024
_PFF = b"!BDN"
_ENTRIES = 2000
"""So many names of a directory are looked at."""


class AutoSource:
    """The account at a path, whatever it is; `make` opens a source of a known kind."""

    host = ""

    def __init__(self, endpoint: Endpoint, make: Callable[[Endpoint], Source]) -> None:
        self._endpoint = endpoint
        self._make = make

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[SourceSession, None]:
        found = await to_thread.run_sync(detect, self._endpoint.path)
        logger.info("format detected path=%r format=%s", self._endpoint.path, ":".join(found))
        scheme, *option = found
        options = (("LAYOUT", option[0]),) if option else ()
        user = self._endpoint.user if scheme in ("zip", "tar") else ""
        endpoint = replace(self._endpoint, scheme=scheme, options=(*options, *self._endpoint.options), user=user)
        async with self._make(endpoint).open() as session:
            yield session


def detect(path: str) -> tuple[str, ...]:
    """The scheme of what lies there, and a layout where the scheme alone does not say.

    Raises:
        SourceMissing: there is nothing.
        AccessRefused: a symbolic link, or no permission.
        UserError: it is of no kind that we know, or of several.
    """
    try:
        fd = os.open(path, files.FILE)
    except OSError as error:
        if os.path.islink(path):
            text = f"{path} is a symbolic link"
            raise AccessRefused(text, hint="give the path that it points to") from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise SourceMissing(f"{path}: {error.strerror}") from error
        raise files.translated(error, path, wide=True) from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            found = _of_directory(fd)
        elif stat.S_ISREG(mode):
            found = _of_file(fd, path)
        else:
            found = set()
    except OSError as error:
        raise files.translated(error, path, wide=True) from error
    finally:
        os.close(fd)
    if len(found) == 1:
        return found.pop()
    if not found:
        raise UserError(f"auto:{path}: nothing in it looks like mail", hint="name the kind, such as maildir: or mbox:")
    kinds = ", ".join(sorted(":".join(kind) for kind in found))
    raise UserError(f"auto:{path}: may be any of {kinds}", hint="name the one that it is")


def _of_file(fd: int, path: str) -> set[tuple[str, ...]]:
    octets = content.opened(os.dup(fd), path)
    try:
        head = octets.read(0, _HEAD)
    finally:
        octets.close()
    if head.startswith(_PFF):
        hint = "convert it with `readpst -e -o DIR FILE` (pst-utils, libpst), then import eml:DIR"
        raise UserError(f"{path}: a data file of Outlook (PST, OST) is not read", hint=hint)
    if os.pread(fd, 4, 0) in (b"PK\3\4", b"PK\5\6"):
        return {("zip",)}
    if head[257:262] == b"ustar":
        return {("tar",)}
    try:
        first = next(Scanner((head,)).lines(), None)
    except NotMbox:
        return set()
    return {("mbox",)} if first is not None else set()


def _of_directory(fd: int) -> set[tuple[str, ...]]:
    """Every kind that something in the directory is a sign of."""
    found: set[tuple[str, ...]] = set()
    names: dict[str, int] = {}
    with os.scandir(fd) as entries:
        for entry in entries:
            names[entry.name] = stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else stat.S_IFREG
            if len(names) == _ENTRIES:
                break
    directories = {name for name, mode in names.items() if mode == stat.S_IFDIR}
    regular = names.keys() - directories
    plus = any(name.startswith(".") and _has(fd, name, "cur") for name in directories)
    others = {name for name in directories if name[0] != "."} - {"cur", "new", "tmp"}
    if {"cur", "new"} & directories or plus:
        below = any(_has(fd, name, "cur") for name in others)
        if plus or not below:
            found.add(("maildir",))
        if below:
            found.add(("maildir", "fs"))
    elif any(_has(fd, name, "cur") for name in others):
        named_by_index = any(name.startswith("dovecot.list.index") for name in regular) and all(map(is_guid, others))
        found.add(("maildir", "index" if named_by_index else "fs"))
    if "mailboxes" in directories:
        found.add(("mdbox",) if "storage" in directories else ("sdbox",))
    if ".mh_sequences" in regular or any(_has(fd, name, ".mh_sequences") for name in directories):
        found.add(("mh",))
    elif any(map(is_mh, regular)) or any(_any(fd, name, is_mh) for name in others):
        found.add(("mh",))
    if any(map(is_eml, regular)) or any(_any(fd, name, is_eml) for name in others):
        found.add(("eml",))
    if not found and (
        ".imap" in directories or any(_is_mbox(fd, name) for name in sorted(regular)[:_ENTRIES] if name[0] != ".")
    ):
        found.add(("mbox",))
    return found


def _has(fd: int, directory: str, name: str) -> bool:
    try:
        below = os.open(directory, files.DIRECTORY, dir_fd=fd)
    except OSError:
        return False
    try:
        os.stat(name, dir_fd=below, follow_symlinks=False)
    except OSError:
        return False
    finally:
        os.close(below)
    return True


def _any(fd: int, directory: str, matches: Callable[[str], bool]) -> bool:
    """Whether a directory below holds a file whose name matches; no link is followed."""
    try:
        below = os.open(directory, files.DIRECTORY, dir_fd=fd)
    except OSError:
        return False
    try:
        with os.scandir(below) as entries:
            return any(entry.is_file(follow_symlinks=False) and matches(entry.name) for entry in entries)
    finally:
        os.close(below)


def _is_mbox(fd: int, name: str) -> bool:
    try:
        file = files.open_regular(name, fd)
    except OSError:
        return False
    try:
        head = os.pread(file, _HEAD, 0)
        if inflate.format_of(head) is not None:
            return ("mbox",) in _of_file(file, name)
        return next(Scanner((head,)).lines(), None) is not None
    except (NotMbox, OSError):
        return False
    finally:
        os.close(file)
