"""A real Cyrus takes every message of the corpus, if not at first then by its ladder.

Invariant: only messages of zero octets are refused in the end, and what the ladder got in is stored as it was sent.
"""

from __future__ import annotations

import imaplib
import socket
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from aimport.octets import wire_form
from aimport.repair import Repair, ladder
from tests.fix_cyrus import Cyrus, run_cyrus

CAUSES: Final = {
    b"Message contains NUL characters": "nul",
    b"Message contains bare newlines": "bare-newline",
    b"Message contains invalid header": "header",
    b"Message contains non-ASCII characters in headers": "8bit-header",
}
REJECT_8BIT: Final = "reject8bit: yes"

MADE: Final = {
    "zero octets": b"",
    "nul": b"Subject: a\0b\r\n\r\nt\0ext\r\n",
    "lone CR in a name": b"Sub\rject: a\r\nTo: b\r\n\r\ntext\r\n",
    "lone LF": b"Subject: a\r\n\r\none\ntwo\r\n",
    "CR as line end": b"Subject: a\rTo: b\r\rtext\r",
    "quoted From": b">From a@example.org Thu Jan  1\r\nSubject: a\r\n\r\ntext\r\n",
    "no colon": b"Subject: a\r\nno colon\r\nTo: b\r\n\r\ntext\r\n",
    "blank before a colon": b"Subject : a\r\n\r\ntext\r\n",
    "no name": b"Subject: a\r\n: b\r\nTo: c\r\n\r\ntext\r\n",
    "no header": b"Dear all,\r\nhello\r\n",
    "no blank line": b"Subject: a\r\nDear all,\r\n\r\nhello\r\n",
    "no final CRLF in the header": b"Subject: a",
    "8-bit text": b"Subject: \xfcber \xfc\r\n\r\ntext\r\n",
    "8-bit address": b"From: J\xfcrgen <j@example.org>, <\xfc@example.org>\r\n\r\ntext\r\n",
    "8-bit parameter": b"Content-Type: text/plain; name=\xfc.txt\r\n\r\ntext\r\n",
    "8-bit name": b"S\xfcbject: a\r\nTo: b\r\n\r\ntext\r\n",
    "mark of UTF-16": "Subject: a\r\n\r\nb\r\n".encode("utf-16"),
    "all at once": b">From x\r\nS\xfc : \xfc\0\r\nCc: \xfc <a@b>\r\nTo: a\rb\r\nno colon\r\n\r\n" + b"x" * 12_000,
}


def messages(archive: Path, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files of one archive of the corpus in wire form, by their names."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "LICENSES" not in path.parts and path.suffix not in (".json", ".gz"):
            yield str(path.relative_to(folder)), wire_form(path.read_bytes())


@contextmanager
def session(cyrus: Cyrus, user: str) -> Iterator[imaplib.IMAP4]:
    cyrus.create_user(user)
    with imaplib.IMAP4(cyrus.host, cyrus.port) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # imaplib sends a literal in two pieces
        client.login(user, cyrus.password)
        yield client


def refusal(client: imaplib.IMAP4, wire: bytes) -> bytes | None:
    """The server's words, None when it took the message."""
    # `append` would make CRLF of every CR and LF; so the octets go as they are.
    client.literal = wire  # type: ignore[assignment]  # typeshed says str; the code sends octets
    status, words = client._simple_command("APPEND", "INBOX", "()", '"11-Feb-2003 04:05:06 +0000"')
    return None if status == "OK" else bytes(words[0])


def stored(client: imaplib.IMAP4) -> bytes:
    """The octets of the last message."""
    _, [count] = client.select("INBOX", readonly=True)
    assert count is not None
    _, [item, *_] = client.fetch(count.decode(), "(BODY.PEEK[])")
    assert isinstance(item, tuple)
    return bytes(item[1])


def kept(wire: bytes) -> bytes:
    """What this server stores: unless it refuses them, it makes an X of each header octet above 127 (munge8bit)."""
    head, blank, text = wire.partition(b"\r\n\r\n")
    return head.translate(bytes(range(128)) + b"X" * 128) + blank + text


def climb(client: imaplib.IMAP4, wire: bytes, words: bytes) -> Repair | None:
    """The first version that is taken."""
    for repair in ladder(wire, CAUSES.get(words, "")):
        if refusal(client, repair.body) is None:
            return repair
    return None


def all_are_taken(client: imaplib.IMAP4, wires: Iterator[tuple[str, bytes]]) -> Counter[str]:
    """Append all; hands back how often each refusal was met and what helped."""
    seen: Counter[str] = Counter()
    lost = []
    for name, wire in wires:
        words = refusal(client, wire)
        if words is None:
            continue
        repair = climb(client, wire, words)
        if repair is None:
            lost.append((name, words))
            assert not wire, lost
            continue
        seen[f"{words.decode()}: {', '.join(repair.steps)}"] += 1
        assert stored(client) == kept(repair.body), name
    return seen


def test_each_kind_of_refusal_has_a_step_that_helps(unique_user: str) -> None:
    with run_cyrus(extra=REJECT_8BIT) as cyrus, session(cyrus, unique_user) as client:
        taken = {}
        for name, wire in MADE.items():
            words = refusal(client, wire)
            assert words is not None, name
            repair = climb(client, wire, words)
            taken[name] = repair.steps if repair is not None else None
            assert repair is None or stored(client) == kept(repair.body), name
    assert taken == {
        "zero octets": None,
        "nul": ("nul",),
        "lone CR in a name": ("header-lines",),
        "lone LF": ("line-ends",),
        "CR as line end": ("header-lines",),
        "quoted From": ("header-lines",),
        "no colon": ("header-lines",),
        "blank before a colon": ("header-lines",),
        "no name": ("header-lines",),
        "no header": ("header-lines",),
        "no blank line": ("header-lines",),
        "no final CRLF in the header": ("header-lines",),
        "8-bit text": ("8bit-header",),
        "8-bit address": ("8bit-header",),
        "8-bit parameter": ("8bit-header",),
        "8-bit name": ("header-lines",),
        "mark of UTF-16": ("nul", "header-lines"),
        "all at once": ("nul", "final-crlf", "header-lines", "8bit-header"),
    }


@pytest.mark.corpus
def test_crafted_mail_is_taken_in_the_end(cyrus: Cyrus, corpus: Path, tmp_path: Path, unique_user: str) -> None:
    with session(cyrus, unique_user) as client:
        seen = all_are_taken(client, messages(corpus / "crafted.tar.xz", tmp_path))
    assert sum(seen.values()) >= 8, seen


@pytest.mark.slow
@pytest.mark.corpus
@pytest.mark.timeout(600)
@pytest.mark.parametrize("extra", ["", REJECT_8BIT])
def test_all_mail_of_the_corpus_is_taken_in_the_end(extra: str, corpus: Path, tmp_path: Path, unique_user: str) -> None:
    seen: Counter[str] = Counter()
    with run_cyrus(extra=extra) as cyrus, session(cyrus, unique_user) as client:
        for archive in sorted(corpus.glob("*.tar.xz")):
            seen += all_are_taken(client, messages(archive, tmp_path / archive.name))
    print(*(f"{count:5d} {what}" for what, count in seen.most_common()), sep="\n")
    assert sum(seen.values()) >= 30, seen
