"""System flags, keywords, Maildir letters. Pure.

Maildir info letters as Dovecot reads them: D F R S T in ASCII order, then a-z for the keywords
of `dovecot-keywords`; P (passed) and other capitals are not flags.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

SYSTEM_FLAGS: Final = frozenset({"\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft"})
_CANONICAL: Final = {flag.lower(): flag for flag in SYSTEM_FLAGS}
LETTER_OF: Final = {"\\Draft": "D", "\\Flagged": "F", "\\Answered": "R", "\\Seen": "S", "\\Deleted": "T"}
FLAG_OF: Final = {letter: flag for flag, letter in LETTER_OF.items()}
MAX_LETTERS: Final = 26

# atom without flag-special characters (RFC 9051 §9: atom-specials, and "]" that Dovecot refuses)
_KEYWORD = re.compile(r"[^\x00-\x20\x7f-\U0010ffff(){%*\"\\\]]+\Z")


def normalise(flags: Iterable[str]) -> frozenset[str]:
    """Flags as a `Message` holds them: system flags in their RFC spelling, no `\\Recent`, no `\\*`.

    A system flag that RFC 9051 §2.3.2 does not know is dropped.
    """
    return frozenset(
        _CANONICAL.get(flag.lower(), flag) for flag in flags if not flag.startswith("\\") or flag.lower() in _CANONICAL
    )


def is_keyword(flag: str) -> bool:
    """True when `flag` can go on the wire as a keyword (flag-keyword = atom, RFC 9051 §9)."""
    return _KEYWORD.match(flag) is not None


def from_letters(letters: str, keywords: Mapping[str, str]) -> frozenset[str]:
    """Flags of a Maildir info part `:2,letters`; `keywords` maps letters a-z to names.

    A letter without a name becomes `unknown-N` as in Dovecot (seen, 2.3.19); other letters are
    not flags.
    """
    flags = set()
    for letter in letters:
        if letter in FLAG_OF:
            flags.add(FLAG_OF[letter])
        elif "a" <= letter <= "z":
            flags.add(keywords.get(letter) or f"unknown-{ord(letter) - ord('a')}")
    return frozenset(flags)


def to_letters(flags: Iterable[str], letters: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The Maildir info letters of `flags` in ASCII order, and the keywords that have no letter.

    `letters` maps keyword names to letters a-z; two names of one letter give it once.
    """
    found = set()
    without = []
    for flag in flags:
        letter = LETTER_OF.get(flag) or letters.get(flag)
        if letter:
            found.add(letter)
        elif not flag.startswith("\\"):
            without.append(flag)
    return "".join(sorted(found)), tuple(sorted(without))
