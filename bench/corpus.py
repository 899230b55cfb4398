"""The mail that every contender moves: generated once a run, linked afresh for every trial.

A trial's source is a tree of hard links: its own directories and names, the same octets in
the page cache. mbsync renames files and Dovecot writes indexes into a source; neither
reaches the next contender.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aimport import sample
from bench.scenarios import MEDIAN_OCTETS
from tests.processes import Owner

MAX_OCTETS: Final = 2_000_000
FOLDER_MODE: Final = 0o700  # that of Dovecot's own, else doveadm import never links
FILE_MODE: Final = 0o600  # the same of files, for aimport


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Accounts as Maildir++ below `root`, one directory each."""

    root: Path
    accounts: tuple[str, ...]
    messages: int  # of all accounts
    octets: int


def write_corpus(
    root: Path,
    *,
    seed: int,
    accounts: int,
    messages: int,
    owner: Owner | None = None,
    median_octets: int = MEDIAN_OCTETS,
    sigma: float = 1.2,
    mailboxes: tuple[tuple[str, ...], ...] = sample.MAILBOXES,
) -> Corpus:
    """Writes `accounts` with `messages` each; the same octets, names and dates for the same numbers."""
    names = tuple(f"user{number:03}" for number in range(accounts))
    for name in names:
        samples = sample.account(
            name,
            seed=seed,
            messages=messages,
            mailboxes=mailboxes,
            median_octets=median_octets,
            sigma=sigma,
            max_octets=max(MAX_OCTETS, median_octets),
        )
        sample.write_maildir(root / name, samples)
        for part in ("cur", "new", "tmp"):  # an INBOX is always there
            (root / name / part).mkdir(exist_ok=True)
        for file in message_files(root / name):
            file.chmod(FILE_MODE)
    if owner is not None:
        owner.own(root)
    return read_corpus(root)


def read_corpus(root: Path) -> Corpus:
    """A corpus that was written before."""
    names = tuple(sorted(path.name for path in root.iterdir()))
    files = [file for name in names for file in message_files(root / name)]
    return Corpus(root=root, accounts=names, messages=len(files), octets=sum(file.stat().st_size for file in files))


def message_files(maildir: Path) -> list[Path]:
    """The messages of a Maildir++ account, which need not exist."""
    if not maildir.is_dir():
        return []
    folders = [maildir, *(path for path in maildir.iterdir() if path.name.startswith(".") and path.is_dir())]
    parts = [folder / part for folder in folders for part in ("cur", "new")]
    return [file for part in parts if part.is_dir() for file in part.iterdir()]


def link_account(account: Path, target: Path, owner: Owner) -> None:
    """Makes `target` a Maildir of its own with the messages of `account` as hard links, read once."""
    for folder, _, files in os.walk(account):
        made = target / Path(folder).relative_to(account)
        made.mkdir(mode=FOLDER_MODE, parents=True)
        _give(made, owner)
        for name in files:
            origin = os.path.join(folder, name)
            if made.name in ("cur", "new"):
                os.link(origin, made / name)
                with open(origin, "rb") as file:
                    file.read()
            else:
                shutil.copyfile(origin, made / name)
                _give(made / name, owner)
    if target.parent.stat().st_uid != owner.uid:
        _give(target.parent, owner)


def _give(path: Path, owner: Owner) -> None:
    if os.geteuid() == 0:
        os.chown(path, owner.uid, owner.gid)
