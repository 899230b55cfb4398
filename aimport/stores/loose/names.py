"""What names mean where each message is a file: MH sequences, `.eml` names, paths in archives. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aimport.flags import is_keyword
from aimport.names import INBOX, decode_utf7

COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst")
_EML = re.compile(r"(?i)[^.].*\.(?:eml|emlx|msg822|rfc822)(?:\.(?:gz|bz2|xz|zst))?\Z|[^.]+\.eml\Z")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
MAX_NUMBER: Final = 10_000_000
"""A range in a sequence file names no more messages than this."""
_SEQUENCES: Final = {"replied": "\\Answered", "answered": "\\Answered", "flagged": "\\Flagged", "deleted": "\\Deleted"}


def is_eml(name: str) -> bool:
    """Whether a file is a message by its name."""
    return _EML.match(name) is not None


def is_mbox(name: str) -> bool:
    """Whether a file in an archive is an mbox by its name, as Google Takeout, Apple Mail and others write it."""
    return name.lower().endswith((".mbox", ".mbx")) and not name.startswith(".")


def is_mh(name: str) -> bool:
    """Whether a file in an MH folder is a message: a number; `,5` and `#5` were deleted."""
    return name.isascii() and name.isdecimal() and not name.startswith("0") and len(name) < 10


def parse_sequences(text: str, numbers: Iterable[int]) -> dict[int, frozenset[str]]:
    """Flags of messages by their numbers, from an `.mh_sequences` file.

    What is not in `unseen` is seen; `cur` says where a reader stood; other sequences are keywords.
    """
    present = set(numbers)
    flags: dict[int, set[str]] = {number: {"\\Seen"} for number in present}
    joined = re.sub(r"\n[ \t]+", " ", text)
    for line in joined.split("\n"):
        name, colon, rest = line.partition(":")
        name = name.strip()
        if not colon or name == "cur":
            continue
        flag = _SEQUENCES.get(name.lower(), name)
        if name.lower() != "unseen" and not flag.startswith("\\") and not is_keyword(flag):
            continue
        for number in _numbers(rest, present):
            if name.lower() == "unseen":
                flags[number].discard("\\Seen")
            else:
                flags[number].add(flag)
    return {number: frozenset(found) for number, found in flags.items()}


def _numbers(text: str, present: set[int]) -> Iterable[int]:
    for word in text.split():
        match = _RANGE.fullmatch(word)
        if match is None:
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first < len(present):
            yield from (number for number in range(first, last + 1) if number in present)
        else:
            yield from (number for number in present if first <= number <= last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A message in an archive, by its path: its folder, and the name of its file there."""

    folder: tuple[str, ...]
    """The directories above it; of a Maildir those above `cur` and `new`."""
    name: str
    maildir: bool


def steps_of(path: str) -> tuple[str, ...]:
    """The steps of a path in an archive; none: it leads anywhere else."""
    parts = path.split("/")
    while parts and parts[0] in ("", "."):
        parts = parts[1:]
    return () if any(part in ("", ".", "..") or "\0" in part for part in parts) else tuple(parts)


def member_of(path: str) -> Member | None:
    """What a path in an archive says; None: it is no message. A path that leads anywhere else is none either."""
    parts = steps_of(path)
    if not parts:
        return None
    *above, name = parts
    if above and above[-1] in ("cur", "new") and not name.startswith("."):
        return Member(folder=tuple(above[:-1]), name=name, maildir=True)
    if is_eml(name) and "tmp" not in above[-1:]:
        return Member(folder=tuple(above), name=name, maildir=False)
    return None


def root_of(folders: Iterable[tuple[tuple[str, ...], bool]], user: str, given: str) -> tuple[str, ...]:
    """The directory within an archive that is this user's mail: each folder comes with whether it is a Maildir.

    `given`; else that of cPanel, `mail/DOMAIN/NAME`, or `mail` for the account's own default mailbox; else the deepest
    that all messages have in common.
    """
    if given:
        return tuple(part for part in given.split("/") if part and part != ".")
    all_ = list(folders)
    name, _, domain = user.partition("@")
    for folder, maildir in all_:
        for at, part in enumerate(folder):
            if part == "mail" and maildir:
                if domain and folder[at + 1 : at + 3] == (domain, name):
                    return folder[: at + 3]
                if not domain and folder[at + 1 : at + 2] == ():
                    return folder
    common: tuple[str, ...] | None = None
    for folder, maildir in all_:
        plain = folder[:-1] if maildir and folder and folder[-1].startswith(".") else folder
        common = plain if common is None else _common(common, plain)
    return common or ()


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return one[:count]


def box_path(folder: tuple[str, ...], name: str, root: tuple[str, ...]) -> tuple[str, ...] | None:
    """The mailbox of an mbox file in an archive; None: it lies elsewhere."""
    above = mailbox_path(folder, root, maildir=False)
    if above is None:
        return None
    path = (*(above if folder != root else ()), name.rpartition(".")[0])
    return (INBOX, *path[1:]) if path[0].isascii() and path[0].upper() == INBOX else path


def mailbox_path(folder: tuple[str, ...], root: tuple[str, ...], *, maildir: bool) -> tuple[str, ...] | None:
    """The mailbox of a folder below the root; None: it lies elsewhere."""
    if folder[: len(root)] != root:
        return None
    below = folder[len(root) :]
    levels: list[str] = []
    for step in below:
        if maildir and step.startswith(".") and len(step) > 1:
            levels += step[1:].split(".")
        else:
            levels.append(step)
    if not levels:
        return (INBOX,)
    if not all(levels):
        return tuple(level or "_" for level in levels)
    decoded = [decode_utf7(level) if maildir else level for level in levels]
    path = tuple(level if name is None else name for level, name in zip(levels, decoded, strict=True))
    return (INBOX, *path[1:]) if path[0].isascii() and path[0].upper() == INBOX else path
