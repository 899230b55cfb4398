"""What a bench has made on servers, remembered so that it is taken away even when the process is killed.

    DIR/bench/<token>/  made.json  the mailbox that is the top of all, and the accounts that have it
                        lock       held (flock) while the process lives
                        runs/      journals of what is measured

The note is durable before anything is made. A name has 64 random bits, and stands in a directory that only its owner
writes to: what bears it is ours.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aimport import seams
from aimport.errors import JournalError

FOLDER: Final = "bench"
PREFIX: Final = "aimport-bench-"
_TOKEN: Final = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One bench: `places` are identities of accounts (`Endpoint.identity`)."""

    directory: Path
    places: tuple[str, ...]
    lock: int

    @property
    def top(self) -> str:
        """The mailbox that all others are below of."""
        return PREFIX + self.directory.name

    @property
    def runs(self) -> Path:
        return self.directory / "runs"

    def forget(self) -> None:
        """Nothing of it is left anywhere."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self.lock)

    def keep(self) -> None:
        """For the next bench to take away: this process does nothing more about it."""
        shutil.rmtree(self.runs, ignore_errors=True)
        os.close(self.lock)


def begin(root: Path, places: Sequence[str]) -> Trace:
    """
    Raises:
        JournalError: it cannot be written down.
    """
    directory = root / FOLDER / seams.token(8)
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (directory / "made.json").open("x", encoding="ascii") as file:
            json.dump({"places": list(places)}, file)
            file.flush()
            os.fsync(file.fileno())
        for path in (directory, directory.parent):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as error:
        raise JournalError(f"{directory}: {error.strerror}", hint="give another --journal DIR") from error
    return Trace(directory=directory, places=tuple(places), lock=lock)


def left_behind(root: Path) -> list[Trace]:
    """Benches whose process is gone, each held now; one that never came as far as its note has made nothing."""
    found = []
    with suppress(FileNotFoundError):
        for directory in sorted((root / FOLDER).iterdir()):
            if not _TOKEN.fullmatch(directory.name) or directory.is_symlink():
                continue
            try:
                lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                places = tuple(map(str, json.loads((directory / "made.json").read_bytes())["places"]))
            except BlockingIOError:
                os.close(lock)
                continue
            except (OSError, ValueError, KeyError, TypeError):
                places = ()
            found.append(Trace(directory=directory, places=places, lock=lock))
    return found
