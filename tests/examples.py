"""Lines of servers with the values they stand for: the RFCs' own examples, and what real servers send.

    # RFC 9051 §7.4          where the lines below it come from
    S: * 23 EXISTS           a response, line by line: CRLF between them and after the last
    V: Exists(number=23)     its value

Facts of a protocol, written down; `aimport.imap.responses` has the classes of the values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aimport.imap import responses
from aimport.imap.responses import Response

FOLDER = Path(__file__).parent / "fixtures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One response."""

    where: str
    octets: bytes
    """CRLF included."""
    value: Response

    def __str__(self) -> str:
        return f"{self.where.partition(':')[0]}: {self.octets.decode()[:40].strip()}"


@cache
def examples() -> tuple[Example, ...]:
    """All of them, in the order of the files."""
    found: list[Example] = []
    for file in (*sorted((FOLDER / "rfc").glob("*.txt")), FOLDER / "servers.txt"):
        where, lines = "", list[str]()
        for line in file.read_text(encoding="utf-8").splitlines():
            kind, text = line[:2], line[3:]
            if kind == "S:":
                lines.append(text)
            elif kind == "V:":
                octets = "".join(f"{one}\r\n" for one in lines).encode()
                found.append(Example(where=where, octets=octets, value=eval(text, vars(responses))))
                lines.clear()
            elif kind == "# " and not lines:
                where = line[2:]
            else:
                raise ValueError(f"{file.name}: no such line: {line}")
    return tuple(found)


def seeds() -> tuple[bytes, ...]:
    """Their octets, for fuzzing."""
    return tuple(dict.fromkeys(example.octets for example in examples()))


def spaced(fragments: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Two spaces for each one outside quoted strings, and one at the end of the line."""
    wide = [
        b"".join(
            part if part.startswith(b'"') else part.replace(b" ", b"  ")
            for part in re.split(rb'("(?:[^"\\]|\\.)*")', text)
        )
        if place % 2 == 0
        else text
        for place, text in enumerate(fragments)
    ]
    wide[0] = wide[0].replace(b"*  ", b"* ", 1)
    wide[-1] += b" "
    return tuple(wide)
