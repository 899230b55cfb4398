"""Directories of `.eml` files, and MH folders."""

from __future__ import annotations

import errno
import logging
import os
import stat
from array import array
from collections.abc import Callable, Iterator
from typing import Final

from anyio import from_thread

from aimport.errors import AccessRefused, ConfigurationError, MessageUnreadable, SourceMissing
from aimport.model import Endpoint, Mailbox, Message, MessageKey, Unreadable
from aimport.names import INBOX, printable
from aimport.stores import content, files
from aimport.stores.loose.names import is_eml, is_mh, parse_sequences
from aimport.stores.loose.source import Listing, LooseSource, dated, in_order, narrow

logger = logging.getLogger(__name__)

SEQUENCES: Final = ".mh_sequences"
MAX_SEQUENCES: Final = 16 << 20
Steps = tuple[str, ...]


class EmlSource(LooseSource):
    """One account in a tree of directories; a file `*.eml`, also compressed, is a message."""

    def __init__(self, endpoint: Endpoint) -> None:
        demand_no_options(endpoint)
        super().__init__(lambda: Folders(endpoint.path, is_eml, sequences=False))


class MhSource(LooseSource):
    """One account in a tree of MH folders; a file whose name is a number is a message."""

    def __init__(self, endpoint: Endpoint) -> None:
        demand_no_options(endpoint)
        super().__init__(lambda: Folders(endpoint.path, is_mh, sequences=True))


def demand_no_options(endpoint: Endpoint) -> None:
    """Raises `ConfigurationError` for a key that would change nothing here."""
    if endpoint.options:
        raise ConfigurationError(f"{endpoint.scheme}: location: {endpoint.options[0][0]} says nothing here")


class Folders:
    """A tree of directories (`aimport.stores.loose.source.Holder`). Messages in the root are the INBOX.

    `is_message` tells by the name of a file; `sequences`: MH's, and names are numbers.
    """

    def __init__(self, root: str, is_message: Callable[[str], bool], *, sequences: bool) -> None:
        self.path = root
        self._is_message = is_message
        self._sequences = sequences

    def mailboxes(self) -> list[Mailbox]:
        try:
            return in_order(self._mailbox(steps) for steps in self._tree())
        except OSError as error:
            raise files.translated(error, self.path, wide=True) from error

    def listed(self, mailbox: Mailbox) -> Listing:
        steps = self._steps(mailbox)
        path = "/".join((self.path, *steps))
        try:
            fd = self.opened(steps)
        except OSError as error:
            raise files.translated(error, path) from error
        try:
            return self._listing(fd, path)
        except OSError as error:
            raise files.translated(error, path) from error
        finally:
            os.close(fd)

    def reader(self, mailbox: Mailbox, listing: Listing) -> _Reader:
        steps = self._steps(mailbox)
        path = "/".join((self.path, *steps))
        try:
            return _Reader(self.opened(steps), path, listing)
        except OSError as error:
            raise files.translated(error, path) from error

    def _listing(self, fd: int, path: str) -> Listing:
        found: list[tuple[str, int, float]] = []
        odd = 0
        with os.scandir(fd) as entries:
            for count, entry in enumerate(entries):
                if count % 1024 == 0:
                    from_thread.check_cancelled()
                if self._is_message(entry.name) and not entry.is_dir(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append((entry.name, status.st_size, status.st_mtime))
                elif not entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", ",", "#")):
                    odd += 1
        if odd:
            logger.warning(
                "files passed over path=%r count=%d reason=%s", path, odd, "their names are none of messages"
            )
        found.sort(key=lambda one: (int(one[0]), "") if self._sequences else (0, one[0]))
        names = [one[0] for one in found]
        flags: list[frozenset[str]] = []
        if self._sequences:
            data = files.read_control(SEQUENCES, fd, path, MAX_SEQUENCES) or b""
            by_number = parse_sequences(data.decode("utf-8", "replace"), map(int, names))
            flags = [by_number[int(name)] for name in names]
        return Listing(
            keys=[MessageKey(printable(name)) for name in names],
            sizes=array("Q", (one[1] for one in found)),
            dates=array("d", (one[2] for one in found)),
            flags=flags,
        )

    def _tree(self) -> Iterator[Steps]:
        """Directories that hold messages, however deep; one directory a level is open."""
        root = self.opened(())
        stack: list[tuple[int, Steps, Iterator[str]]] = [(root, (), iter(()))]
        try:
            if self._holds_messages(root):
                yield ()
            stack[0] = (root, (), iter(sorted(os.listdir(root))))
            while stack:
                from_thread.check_cancelled()
                fd, steps, names = stack[-1]
                name = next(names, None)
                if name is None:
                    os.close(stack.pop()[0])
                    continue
                if name.startswith("."):
                    continue
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                deeper = (*steps, name)
                if stat.S_ISLNK(status.st_mode):
                    if "/" in os.readlink(name, dir_fd=fd).rstrip("/") and _is_directory(name, fd):
                        yield deeper  # not followed, and not passed over in silence: `select` fails it
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    continue
                try:
                    below = os.open(name, files.DIRECTORY, dir_fd=fd)
                except PermissionError:
                    yield deeper  # `select` says so
                    continue
                stack.append((below, deeper, iter(())))
                names_below = sorted(os.listdir(below))
                stack[-1] = (below, deeper, iter(names_below))
                if all(each.startswith(".") for each in names_below) or any(map(self._is_message, names_below)):
                    yield deeper
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _holds_messages(self, fd: int) -> bool:
        return any(map(self._is_message, os.listdir(fd)))

    def _mailbox(self, steps: Steps) -> Mailbox:
        if not steps:
            return Mailbox(path=(INBOX,), separator="/")
        path = tuple(map(printable, steps))
        if path[0].isascii() and path[0].upper() == INBOX:
            return Mailbox(path=(INBOX, *path[1:]), separator="/", native="/".join(path))
        return Mailbox(path=path, separator="/", native="" if path == steps else "/".join(path))

    def _steps(self, mailbox: Mailbox) -> Steps:
        """The directory of a mailbox. That of the INBOX may be written in any case, or be the root itself."""
        if mailbox.native:
            return tuple(mailbox.native.split("/"))
        if mailbox.path != (INBOX,):
            return mailbox.path
        root = self.opened(())
        try:
            names = sorted(os.listdir(root), reverse=True)
            in_root = any(map(self._is_message, names))
        except OSError as error:
            raise files.translated(error, self.path) from error
        finally:
            os.close(root)
        return () if in_root else next(((name,) for name in names if name.upper() == INBOX), ())

    def opened(self, steps: Steps) -> int:
        """A directory.

        Raises:
            OSError, SourceMissing, AccessRefused
        """
        if not all(step and step not in (".", "..") and "/" not in step and "\0" not in step for step in steps):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            fd = os.open(self.path, files.DIRECTORY)
        except OSError as error:
            if os.path.islink(self.path):
                text = f"{self.path} is a symbolic link"
                raise AccessRefused(text, hint="give the path that it points to") from error
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise SourceMissing(f"{self.path}: {error.strerror}") from error
            raise files.translated(error, self.path, wide=True) from error
        for step in steps:
            above = fd
            try:
                fd = os.open(files.on_disk(step, above), files.DIRECTORY, dir_fd=above)
            finally:
                os.close(above)
        return fd


def _is_directory(link: str, above: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(link, dir_fd=above).st_mode)
    except OSError:
        return False


class _Reader:
    """One open directory."""

    def __init__(self, fd: int, path: str, listing: Listing) -> None:
        self._fd = fd
        self._path = path
        self._listing = listing

    def close(self) -> None:
        os.close(self._fd)

    def read(self, index: int) -> Message | Unreadable:
        key = self._listing.keys[index]
        path = f"{self._path}/{key}"
        try:
            name = files.on_disk(key, self._fd)
            body, status, _ = content.read_file(files.open_file(name, self._fd), path)
            flags = self._listing.flags[index] if self._listing.flags else frozenset()
            return dated(key, flags, body, status.st_mtime, key)
        except (OSError, MessageUnreadable) as error:
            return narrow(error, key, path)
