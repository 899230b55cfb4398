"""What real servers make of the octets they are given, as far as a mail corpus can show it. Pure.

Measured on Dovecot 2.3.19 (Maildir), Cyrus 3.6.1 and Courier 5.0.13 with their defaults. Nothing here is
aimport's: these rules say which differences between a message sent and a message fetched are the
server's own doing. A difference that they do not say is a fault of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

NO_OCTETS = "the message has no octets"
COURIER_PARTS = 300  # MAXPARTS of its rfc2045 library
CYRUS_LINE = 4095  # octets of one fgets when it looks at headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What becomes of one message: `served` on FETCH BODY[], or None and the words of the refusal.

    `altered` names what the server changed; empty when it serves what was sent.
    """

    served: bytes | None = field(default=None, repr=False)
    refusal: str = ""
    altered: str = ""


Keeper = Callable[[bytes], Kept]


def wire(body: bytes) -> bytes:
    """`body` with CRLF line ends; a lone CR stays."""
    return body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def by_dovecot(body: bytes) -> Kept:
    """Takes all but nothing. NUL becomes 0x80; of CRCRLF, and of a CR at the very end, that CR is lost."""
    sent = wire(body)
    if not sent:
        return Kept(refusal=NO_OCTETS)
    clean = sent.replace(b"\0", b"\x80")
    served = clean.replace(b"\r\r\n", b"\r\n").removesuffix(b"\r")
    return Kept(served=served, altered=_named(("nul", clean != sent), ("cr", served != clean)))


def by_cyrus(body: bytes) -> Kept:
    """Refuses NUL and what does not begin with a header; writes X for each eight-bit octet of the header."""
    sent = wire(body)
    if not sent:
        return Kept(refusal=NO_OCTETS)
    if b"\0" in sent:
        return Kept(refusal="Message contains NUL characters")
    if not _is_header_to_cyrus(sent):
        return Kept(refusal="Message contains invalid header")
    end = re.search(rb"^\r*\n", sent, re.MULTILINE)
    at = end.end() if end else len(sent)
    served = re.sub(rb"[\x80-\xff]", b"X", sent[:at]) + sent[at:]
    return Kept(served=served, altered=_named(("8-bit header", served != sent)))


def _is_header_to_cyrus(sent: bytes) -> bool:
    """`message_copy_strict`: each line up to the one that begins with CR has an end, and a name of visible octets."""
    begins = True
    for line in re.findall(rb"[^\n]{%d}|[^\n]*\n|[^\n]+\Z" % CYRUS_LINE, sent):
        if line.startswith(b"\r"):
            return True
        if begins and not line.startswith((b" ", b"\t")):
            name = line.partition(b":")[0]
            if not name or (not line.startswith(b"From ") and min(name) <= 0x20):
                return False
        begins = line.endswith(b"\n")
    return begins


def by_courier(body: bytes) -> Kept:
    """Leaves every CR out and ends the last line."""
    sent = wire(body)
    if not sent:
        return Kept(refusal=NO_OCTETS)
    stored = sent.replace(b"\r", b"")
    ended = stored if sent.endswith(b"\n") else stored + b"\n"  # it looks before it leaves CRs out
    lost = stored.replace(b"\n", b"\r\n") != sent
    return Kept(
        served=ended.replace(b"\n", b"\r\n"),
        altered=_named(("cr", lost), ("final line end", ended != stored)),
    )


def _named(*changes: tuple[str, bool]) -> str:
    return ", ".join(name for name, happened in changes if happened)
