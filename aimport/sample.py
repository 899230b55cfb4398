"""Generated mail: the same octets from the same seed. For `aimport demo`, tests and bench.

Sizes are log-normal, as real mail is; six mailboxes with nested and international names, all
system flags, three keywords, LF and CRLF line ends, 7-bit and 8-bit text.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.header import Header
from pathlib import Path
from typing import Final

from aimport import flags, names
from aimport.model import Message, MessageKey
from aimport.octets import whole

MAILBOXES: Final[tuple[tuple[str, ...], ...]] = (
    ("INBOX",),
    ("Sent",),
    ("Archive", "2023"),
    ("Entwürfe",),
    ("Проекты", "日本"),
    ("Trash",),
)
KEYWORDS: Final = ("$Forwarded", "NonJunk", "Project-X")
_WORDS: Final = (
    "the mail server moves every message once and says so in its report before anybody asks "
    "für größere Postfächer gibt es einen Bericht письма приходят по порядку 件名 と 本文 budget queue lane"
).split()
_EPOCH: Final = datetime(2015, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One generated message and the mailbox it belongs to."""

    path: tuple[str, ...]
    message: Message


def account(
    user: str,
    *,
    seed: int,
    messages: int,
    mailboxes: Sequence[tuple[str, ...]] = MAILBOXES,
    median_octets: int = 3000,
    sigma: float = 1.2,
    max_octets: int = 2_000_000,
) -> Iterator[Sample]:
    """`messages` of one user, in the order in which they were received."""
    chance = random.Random(f"{seed}:{user}")
    text = _text(chance, 256 * 1024)
    for number in range(messages):
        path = mailboxes[0] if chance.random() < 0.4 else chance.choice(mailboxes)
        received = _EPOCH + timedelta(seconds=number * 4000 + chance.randrange(3000))
        size = min(max_octets, int(median_octets * math.exp(chance.gauss(0.0, sigma))))
        body = _message(user, number, received, size, text, chance)
        if chance.random() < 0.3:
            body = body.replace(b"\n", b"\r\n")
        marks = [flag for flag in sorted(flags.SYSTEM_FLAGS) if chance.random() < 0.3]
        marks += [keyword for keyword in KEYWORDS if chance.random() < 0.15]
        yield Sample(
            path=path,
            message=Message(
                key=MessageKey(f"{int(received.timestamp())}.M{number:06d}P1.sample"),
                flags=frozenset(marks),
                internal_date=received,
                body=body,
            ),
        )


def write_maildir(root: Path, samples: Iterator[Sample]) -> int:
    """Writes `samples` as a Maildir++ account below `root`; returns how many there were.

    Unflagged messages lie in `new`, the others in `cur`; mtime is the received date.
    """
    letters = {keyword: chr(ord("a") + number) for number, keyword in enumerate(KEYWORDS)}
    listing = "".join(f"{number} {keyword}\n" for number, keyword in enumerate(KEYWORDS))
    made: dict[tuple[str, ...], Path] = {}
    count = 0
    for sample in samples:
        folder = made.get(sample.path)
        if folder is None:
            folder = root if sample.path == (names.INBOX,) else root / ("." + names.encode_utf7(".".join(sample.path)))
            for part in ("cur", "new", "tmp"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            if folder != root:
                (folder / "maildirfolder").touch()
            (folder / "dovecot-keywords").write_text(listing)
            made[sample.path] = folder
        message, body = sample.message, whole(sample.message.body)
        info, _ = flags.to_letters(message.flags, letters)
        lone = body.count(b"\n") - body.count(b"\r\n")
        name = f"{message.key},S={len(body)},W={len(body) + lone}"
        file = folder / "cur" / f"{name}:2,{info}" if info else folder / "new" / name
        file.write_bytes(body)
        stamp = message.internal_date.timestamp()
        os.utime(file, (stamp, stamp))
        count += 1
    return count


def _text(chance: random.Random, octets: int) -> bytes:
    lines = []
    size = 0
    while size < octets:
        line = " ".join(chance.choices(_WORDS, k=11)).encode() + b"\n"
        lines.append(line)
        size += len(line)
    return b"".join(lines)


def _message(user: str, number: int, received: datetime, size: int, text: bytes, chance: random.Random) -> bytes:
    subject = Header(" ".join(chance.choices(_WORDS, k=5)), "utf-8").encode()
    head = (
        f"Return-Path: <sender{number % 97}@example.net>\n"
        f"Received: from mx.example.net by mail.example.org; {received:%a, %d %b %Y %H:%M:%S +0000}\n"
        f"Message-ID: <{chance.getrandbits(64):016x}.{number}@example.net>\n"
        f"Date: {received:%a, %d %b %Y %H:%M:%S +0000}\n"
        f"From: Sender {number % 97} <sender{number % 97}@example.net>\n"
        f"To: {user}\n"
        f"Subject: {subject}\n"
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n"
    ).encode()
    parts = [head]
    left = size - len(head)
    while left > 0:
        start = text.find(b"\n", chance.randrange(len(text) // 2)) + 1
        end = min(start + left, len(text))
        end = text.rfind(b"\n", start, end) + 1 or end
        parts.append(text[start:end])
        left -= max(end - start, 64)
    if not parts[-1].endswith(b"\n"):  # as nearly all real mail does; some servers add it
        parts.append(b"\n")
    return b"".join(parts)
