"""Counts what a process does to files and to its journal, and does something at one step of it. Runs in the victim.

    Steps(ops=CHANGES, below="/…/to", at=17, deed="kill").install()

Step `at` is where the deed is done, before the step itself. Which steps there are depends a little on threads: a test
that goes through all of them counts on until nothing happened.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import itertools
import os
import signal
import sqlite3
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CHANGES: Final = (
    "mkdir write pwrite fsync fdatasync rename replace unlink link ftruncate utime fchmod create commit sync".split()
)
"""What changes a file. `create` is an `open` that may make one, `commit` each statement that changes the journal,
`sync` the syncfs of a local destination."""
READS: Final = "read pread scandir look".split()
"""What looks at files; `look` is an `open` that only reads."""
_CREATES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_open, _close = os.open, os.close  # as they were
EXT4_SHUTDOWN: Final = 0x8004587D  # _IOR('X', 125, __u32), linux/ext4.h
NO_LOG_FLUSH: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """`deed`: kill; a signal's name (twice: `SIGINT SIGINT`); an error's name (ENOSPC); `short` (a write that writes
    half); `bug`; `wait` (until the file `place` is gone); `power` (the file system of `place` loses what is not on
    disk, and the process ends)."""

    ops: tuple[str, ...]
    at: int
    deed: str
    below: str = ""
    """Only steps on files below this place count; of the journal's statements: where its database is."""
    name: str = ""
    """Only files with this in their name."""
    lasts: bool = False
    """From that step on each one fails."""
    place: str = ""
    """Of the deed."""
    mark: str = ""
    """A file that is made when the deed is done."""

    def install(self) -> None:
        counter = itertools.count(1)

        def counted(call: Callable[..., Any], target: Callable[..., str]) -> Callable[..., Any]:
            @functools.wraps(call)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if self._counts(target, args, kwargs):
                    number = next(counter)
                    if number == self.at or (self.lasts and number > self.at > 0):
                        done = self._do(call, args, kwargs)
                        if done is not None:
                            return done
                return call(*args, **kwargs)

            return wrapped

        for name in self.ops:
            if name == "commit":
                self._count_statements(counted)
            elif name == "sync":
                from aimport.stores.maildir import disk

                sync = counted(disk.GroupSync._sync_now, lambda group: _of_descriptor(group._fd))
                disk.GroupSync._sync_now = sync  # type: ignore[method-assign]
            elif name in ("create", "look"):
                self._count_opens(counted, creating=name == "create")
            else:
                setattr(os, name, counted(getattr(os, name), _target))

    def _counts(self, target: Callable[..., str], args: Any, kwargs: Any) -> bool:
        if not self.below and not self.name:
            return True
        path = target(*args, **kwargs)
        return path.startswith(self.below) and self.name in path

    def _count_opens(self, counted: Callable[..., Any], *, creating: bool) -> None:
        def is_one(path: Any, flags: int, *rest: Any, **more: Any) -> str:
            return _target(path, **more) if bool(flags & _CREATES) == creating else "\0"

        if not self.below and not self.name:
            object.__setattr__(self, "below", "/")
        os.open = counted(_open, is_one)

    def _count_statements(self, counted: Callable[..., Any]) -> None:
        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if sql.startswith(("SELECT", "PRAGMA")):
                    return super().execute(sql, *args)
                run = counted(super().execute, lambda *_: places.get(id(self), ""))
                return run(sql, *args)  # type: ignore[no-any-return]

        places: dict[int, str] = {}
        connect = sqlite3.connect

        def connected(database: str, *args: Any, **kwargs: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(database, *args, factory=Connection, **kwargs)
            places[id(connection)] = database.removeprefix("file://").partition("?")[0]
            return connection

        sqlite3.connect = connected  # type: ignore[assignment]

    def _do(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The deed; what it returns stands for the step, None: the step is done as well."""
        if self.mark:
            _close(_open(self.mark, os.O_WRONLY | os.O_CREAT, 0o600))
        if self.deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.deed == "power":
            handle = _open(self.place, os.O_RDONLY)
            fcntl.ioctl(handle, EXT4_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.deed == "bug":
            raise RuntimeError("canary-of-a-bug")
        elif self.deed == "wait":
            Path(self.place).touch()
            while Path(self.place).exists():
                time.sleep(0.01)
        elif self.deed == "short":
            if call.__name__ in ("write", "pwrite"):
                return call(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)], *args[2:])
        elif self.deed.startswith("SIG"):
            for name in self.deed.split():
                os.kill(os.getpid(), getattr(signal, name))
        else:
            code = getattr(errno, self.deed)
            if call.__name__ == "execute":
                raise sqlite3.OperationalError("database or disk is full")
            raise OSError(code, os.strerror(code))
        return None


def _of_descriptor(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def _target(first: Any = "", *rest: Any, **more: Any) -> str:
    """The file that a call of `os` is about."""
    if isinstance(first, int):
        return _of_descriptor(first)
    path = os.fsdecode(first)
    above = more.get("dir_fd", more.get("src_dir_fd"))
    return path if above is None else f"{_of_descriptor(above)}/{path}"
