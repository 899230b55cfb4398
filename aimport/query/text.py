"""Text as Dovecot compares it: title case, then decomposed; octets to text by charset and transfer encoding. Pure.

    octets ─ charset ─▶ text ─ normal() ─▶ what a key is looked for in

The rules are those of Dovecot 2.3.19 (`uni_utf8_to_decomposed_titlecase()`, `message_header_decode()`,
`message_decode_body()`): one level of decomposition, compatibility included, and no ß to ss.
"""

from __future__ import annotations

import binascii
import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

REPLACEMENT: Final = "\ufffd"
_HANGUL: Final = range(0xAC00, 0xD7A4)
_TITLE_DIGRAPHS: Final = frozenset("\u01c5\u01c8\u01cb\u01f2")
"""Their own title case, for which Dovecot's table forgets that they can be decomposed."""
_NO_CHARSETS: Final = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"})


class _Normal(dict[int, str]):
    """Each letter's normal form, found when it is first met."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        title = letter.title()
        if len(title) != 1:  # a simple mapping has one letter: ß stays
            title = letter
        code_of_title = ord(title)
        if code_of_title in _HANGUL:
            form = unicodedata.normalize("NFD", title)
        else:
            form = title if title in _TITLE_DIGRAPHS else _decomposed(title)
        self[code] = form
        return form


def _decomposed(letter: str) -> str:
    """One level, as UnicodeData.txt has it; beyond U+FFFF only where that is a single letter."""
    codes = [code for code in unicodedata.decomposition(letter).split() if not code.startswith("<")]
    if not codes or (len(codes) > 1 and ord(letter) > 0xFFFF):
        return letter
    return "".join(chr(int(code, 16)) for code in codes)


_NORMAL: Final = _Normal()


def normal(text: str) -> str:
    """The form in which texts are compared."""
    if text.isascii():
        return text.upper()
    text = text.translate(_NORMAL)
    return re.sub(f"{REPLACEMENT}{{2,}}", REPLACEMENT, text) if REPLACEMENT in text else text


@lru_cache(maxsize=256)
def codec(charset: str) -> str | None:
    """Python's name of a charset; None: it is not known. US-ASCII is taken as UTF-8."""
    if charset.lower() in ("us-ascii", "ascii", "utf-8", "utf8"):
        return "utf-8"
    try:
        found = codecs.lookup(charset)
    except (LookupError, ValueError):
        return None
    text = getattr(found, "_is_text_encoding", True)
    return found.name if text and found.name not in _NO_CHARSETS else None


_ENCODED = re.compile(rb"=\?([^?]*)\?([QqBb])[^?]*\?([^?]*)\?=")
_BLANK = re.compile(rb"[ \t\r\n]*")
_HEX = re.compile(rb"=([0-9A-Fa-f]{2})")


def normal_header(value: bytes) -> str:
    """An unfolded header value, its encoded words decoded (RFC 2047), in normal form.

    White space before an encoded word goes where nothing else stands between it and the word, or
    the beginning, before. A word of an unknown charset stays as it is, in the case that it has.
    """
    if b"=?" not in value:
        return normal(value.decode("utf-8", "replace"))
    parts: list[str] = []
    at = 0
    for word in _ENCODED.finditer(value):
        between = value[at : word.start()]
        if not _BLANK.fullmatch(between):
            parts.append(normal(between.decode("utf-8", "replace")))
        octets = _q_decoded(word[3]) if word[2] in b"Qq" else base64_decoded(word[3])
        name = codec(word[1].decode("latin-1"))
        text = octets.decode(name or "utf-8", "replace")
        parts.append(normal(text) if name else text)
        at = word.end()
    parts.append(normal(value[at:].decode("utf-8", "replace")))
    return "".join(parts)


def _q_decoded(text: bytes) -> bytes:
    return _HEX.sub(lambda found: bytes((int(found[1], 16),)), text.replace(b"_", b" "))


_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/\s]")


def base64_decoded(text: bytes) -> bytes:
    """As much as is right: up to the first octet that is none of the alphabet, a last piece that is cut included."""
    end = _NOT_BASE64.search(text)
    text = b"".join((text[: end.start()] if end else text).split())
    cut = len(text) % 4
    if cut:
        text += b"=" * (4 - cut) if cut > 1 else b"A=="
    octets = binascii.a2b_base64(text)
    return octets[:-1] if cut == 1 else octets


def base64_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """`base64_decoded` of what comes in pieces."""
    held = b""
    for piece in pieces:
        end = _NOT_BASE64.search(piece)
        text = held + b"".join((piece[: end.start()] if end else piece).split())
        if end:
            yield base64_decoded(text)
            return
        whole = len(text) - len(text) % 4
        yield binascii.a2b_base64(text[:whole])
        held = text[whole:]
    yield base64_decoded(held)


def quoted_printable_decoded(text: bytes) -> bytes:
    """Decoded (RFC 2045 §6.7); every line end becomes CRLF and blanks before it go, as in Dovecot."""
    *lines, last = text.split(b"\n")
    decoded = []
    for line in lines:
        line = line.removesuffix(b"\r").rstrip(b" \t")
        # A soft line break may have blanks behind its `=`.
        decoded.append(_unquoted(line[:-1]) if line[-1:] == b"=" else _unquoted(line) + b"\r\n")
    decoded.append(_unquoted(last.rstrip(b" \t")))
    return b"".join(decoded)


def _unquoted(line: bytes) -> bytes:
    return _HEX.sub(lambda found: bytes((int(found[1], 16),)), line) if b"=" in line else line


def quoted_printable_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """`quoted_printable_decoded` of what comes in pieces."""
    held = b""
    for piece in pieces:
        text = held + piece
        end = text.rfind(b"\n") + 1
        if end:
            yield quoted_printable_decoded(text[:end])
        held = text[end:]
    yield quoted_printable_decoded(held)


def text_pieces(pieces: Iterable[bytes], charset: str) -> Iterator[str]:
    """Text in normal form of octets that come in pieces; an unknown charset is taken as UTF-8."""
    decoder = codecs.getincrementaldecoder(codec(charset) or "utf-8")("replace")
    for piece in pieces:
        yield normal(decoder.decode(piece))
    yield normal(decoder.decode(b"", True))


def holds(pieces: Iterable[str], key: str) -> bool:
    """Whether a text that comes in pieces holds `key`, also across two of them."""
    tail = ""
    for piece in pieces:
        text = tail + piece
        if key in text:
            return True
        tail = text[-(len(key) - 1) :] if len(key) > 1 else ""
    return False
