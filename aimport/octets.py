"""Work on message octets: one pass each. Pure.

For bodies that are whole in memory, and for those that come in pieces; however a body was cut,
both give the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from aimport.errors import MessageUnreadable
from aimport.model import Body, Fingerprint


def wire_form(body: bytes) -> bytes:
    """`body` with every line end CRLF (RFC 9051 §4.3); the same object when it already is.

    A lone LF becomes CRLF; lone CR and CRCRLF stay as they are. Replacing single octets is ten
    times as fast as finding pairs: 32 KB cost 6 us with LF, 12 us with CRLF, 60 us when mixed.
    """
    if b"\r" not in body:
        return body.replace(b"\n", b"\r\n")
    if body.replace(b"\r", b"").replace(b"\n", b"\r\n") == body:
        return body
    mended = body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return body if mended == body else mended


def local_form(body: bytes) -> bytes:
    """A body in wire form as local stores keep it: LF line ends (Dovecot without mail_save_crlf).

    The wire form of the result is `body` again. CRCRLF would come back a CR short (CRLF is no
    lone LF), so a body that holds one stays as it is.
    """
    stripped = body.replace(b"\r", b"")
    if stripped.replace(b"\n", b"\r\n") == body:
        return stripped
    return body if b"\r\r\n" in body else body.replace(b"\r\n", b"\n")


def both_forms(body: bytes) -> tuple[bytes, bytes]:
    """`wire_form` of a body that came over IMAP and the `local_form` of that, in one pass when all is in order."""
    stripped = body.replace(b"\r", b"")
    if stripped.replace(b"\n", b"\r\n") == body:
        return body, stripped
    wire = wire_form(body)
    return wire, local_form(wire)


def fingerprint(wire: bytes) -> Fingerprint:
    """Size and SHA-256 of a body that is in wire form."""
    return Fingerprint(size=len(wire), digest=hashlib.sha256(wire).digest())


def pieces_of(body: Body) -> Iterator[bytes]:
    """The octets of any body, in order. Blocks for a `LargeBody`.

    Raises:
        MessageUnreadable: it cannot be read, which is no fault of whoever it is read for.
    """
    if isinstance(body, bytes):
        yield body
        return
    try:
        yield from body.pieces()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise MessageUnreadable(f"{where}{error.strerror or error}", code="unreadable") from error


def whole(body: Body) -> bytes:
    """All octets in memory. Raises as `pieces_of`."""
    return body if isinstance(body, bytes) else b"".join(pieces_of(body))


def wire_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """`wire_form` of a body that comes in pieces."""
    return map(wire_form, _lines_kept(pieces))


def local_pieces(pieces: Iterable[bytes], *, crcrlf: bool) -> Iterator[bytes]:
    """`local_form` of a body in wire form that comes in pieces; `local_size` tells whether it holds CRCRLF."""
    return iter(pieces) if crcrlf else map(local_form, _lines_kept(pieces))


def local_size(pieces: Iterable[bytes]) -> tuple[int, bool]:
    """Octets of the `local_form` of a body in wire form that comes in pieces, and whether it holds CRCRLF."""
    size = local = 0
    tail = b""
    crcrlf = False
    for piece in _lines_kept(pieces):
        form = local_form(piece)
        size += len(piece)
        local += len(form)
        # A piece that holds CRCRLF stays as it is; CRLF is never cut, so one CR may be in the piece before.
        crcrlf = crcrlf or (len(form) == len(piece) and b"\r\r\n" in piece) or (tail == b"\r" and piece[:2] == b"\r\n")
        tail = piece[-1:]
    return (size, True) if crcrlf else (local, False)


def without_last_line_end(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same octets but for a CRLF at their very end."""
    held = b""
    for piece in _lines_kept(pieces):
        if held:
            yield held
        held = piece
    yield held.removesuffix(b"\r\n")


def measure(pieces: Iterable[bytes]) -> Fingerprint:
    """`fingerprint` of the wire form of a body that comes in pieces, in whatever form."""
    digest = hashlib.sha256()
    size = 0
    for piece in wire_pieces(pieces):
        digest.update(piece)
        size += len(piece)
    return Fingerprint(size=size, digest=digest.digest())


def _lines_kept(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same octets in pieces that are not empty and not cut between CR and LF."""
    held = b""
    for piece in pieces:
        if held:
            piece = held + piece
            held = b""
        if piece[-1:] == b"\r":
            held = b"\r"
            piece = piece[:-1]
        if piece:
            yield piece
    if held:
        yield held
