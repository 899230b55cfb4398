"""What may be changed on a message that a server has refused, smallest change first. Pure.

    refused ──▶ ladder(wire, cause) ──▶ Repair ──▶ sent ──▶ refused ──▶ next(Repair) ──▶ … ──▶ nothing left: rejected

Each `Repair` is the message with one more step applied than the one before. A step that
changes nothing is left out, so a message in order has an empty ladder. Steps work on the
octets in wire form (CRLF): what they do not mend stays octet for octet, and nothing is
parsed and printed again. None raises on any octets; each is linear in the size; MIME
structure is walked with a stack of its own, so depth is bounded by the size alone.

| step | what | who refuses without it |
|---|---|---|
| final-crlf | the last line gets its CRLF | Yahoo; Cyrus, inside a header |
| nul | NUL octets removed | Cyrus, Gmail |
| header-lines | the header block is one block of fields, and a blank line ends it | Cyrus |
| 8bit-header | octets above 127 in the header become encoded words | Cyrus with reject8bit |
| line-ends | lone CR, lone LF, CRCRLF become CRLF; a lone CR in the header a blank | Cyrus, lone LF |
| long-lines | when a line has more than 9,900 octets, none has more than 998 | Exchange |

A message of zero octets cannot be mended, nor one that is too large. Octets that a step
moves out of sight are in `X-Broken-…` fields. Any step spoils a DKIM signature over what it
changes; one inside the message (S/MIME, PGP/MIME) is told of in `breaks_signature`.
"""

from __future__ import annotations

import binascii
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

Step: TypeAlias = Literal["final-crlf", "nul", "header-lines", "8bit-header", "line-ends", "long-lines"]

CRLF: Final = b"\r\n"
LONGEST_TAKEN: Final = 9_900
"""Octets of a line, CRLF apart, that Exchange takes (imapsync's FAQ.Exchange)."""
LONGEST_LINE: Final = 998
"""Octets of a line, CRLF apart (RFC 5322 §2.1.1)."""
CODED_LINE: Final = 76
"""Characters of a line that holds an encoded word (RFC 2047 §2), or of one that we fold."""
ENCODED_WORD: Final = 75
"""Characters of an encoded word (RFC 2047 §2)."""

LONGEST_WORD: Final = 800
LONGEST_GAP: Final = 90
"""Octets of a word, and of blanks in a row, above which folding does not mend a line; two gaps and a word fit one."""

_WIDE_GAP: Final = 20  # blanks in a row that would push an encoded word off its line
_ROOM: Final = 40  # characters: an encoded word is not begun in less, it would say next to nothing

# RFC 5322 §2.2; blanks before the colon are the obsolete form of the same field (§4.5)
_FIELD: Final = re.compile(rb"([!-9;-~]{1,900}+)([ \t]*+):")
_NUMBERED: Final = re.compile(rb"x-broken-(\d{1,6}):", re.IGNORECASE)
_MBOX_LEFTOVER: Final = re.compile(rb">*From ")
_BOM: Final = re.compile(rb"\xef\xbb\xbf|\xff\xfe|\xfe\xff")
_LINE_END: Final = re.compile(rb"(?<!\r)\r*+\n")
_LONE_CR: Final = re.compile(rb"\r(?!\n)")
_NO_HEADER: Final = b"X-Broken-Header: missing"

_WORD: Final = re.compile(rb"((?:[ \t]|\r\n(?=[ \t]))*+)((?:[^ \t\r]|\r(?!\n[ \t]))*+)")
_CODED_WORD: Final = re.compile(rb"=\?[!->@-~]+\?[bBqQ]\?[!->@-~]*\?=")
_LITERAL_IN_Q: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/"
)  # RFC 2047 §5(3)
_Q: Final = tuple(
    bytes([octet]) if octet in _LITERAL_IN_Q else b"_" if octet == 0x20 else b"=%02X" % octet for octet in range(256)
)
_Q_SIZE: Final = tuple(map(len, _Q))

_OPEN: Final = ord("(")
_QUOTE: Final = ord('"')
_TOKEN: Final = re.compile(
    rb'(?P<gap>(?:[ \t]|\r\n(?=[ \t]))++)|(?P<quoted>"(?:[^"\\]|\\.)*+")|(?P<angle><[^<>]*+>)|(?P<special>[,;:@])'
    rb'|(?P<atom>(?:[^ \t\r"(<,;:@]|\r(?!\n[ \t]))++)',
    re.DOTALL,
)
_TOKEN_WITHOUT_QUOTES: Final = re.compile(_TOKEN.pattern.replace(b'(?P<quoted>"', b'(?P<quoted>(?!)"'), re.DOTALL)
_PAREN: Final = re.compile(rb"\\.|[()]", re.DOTALL)
_UNMATCHED: Final = re.compile(rb'["()]')
_IN_COMMENT: Final = re.compile(
    rb"(?P<gap>(?:[ \t]|\r\n(?=[ \t]))++)|(?P<paren>[()])|(?P<word>(?:\\.|[^ \t\r()\\]|\r(?!\n[ \t])|\\)++)", re.DOTALL
)
_PARAMETER: Final = re.compile(
    rb"\s*+(?P<name>[!#$&*+\-.^_`{}|~0-9A-Za-z]++)\s*+=\s*+(?P<value>.*+)", re.DOTALL
)  # RFC 2231 §7

_CONTENT_FIELD: Final = re.compile(rb"content-(type|transfer-encoding)[ \t]*+:", re.IGNORECASE)
_FIRST_WORD: Final = re.compile(rb"[ \t]*+([^ \t;(]++)")
_BOUNDARY: Final = re.compile(
    rb';[ \t]*+boundary[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^ \t;"]++))', re.IGNORECASE | re.DOTALL
)
_MESSAGES: Final = frozenset({b"message/rfc822", b"message/global"})
_IDENTITY: Final = frozenset({b"", b"7bit", b"8bit", b"binary"})
_SEALING: Final = frozenset(
    {b"multipart/signed", b"multipart/encrypted", b"application/pkcs7-mime", b"application/x-pkcs7-mime"}
)
_QUOTED_PRINTABLE: Final = b"Content-Transfer-Encoding: quoted-printable"
_SECOND_HYPHEN: Final = re.compile(rb"(?<=-)-")  # or a piece could begin as a delimiter does
_NOT_IN_QP: Final = re.compile(rb"[^\t !-<>-~]|(?<=-)-|[\t ]\Z")  # RFC 2045 §6.7, rules 1 to 3

_Grammar: TypeAlias = Literal["text", "phrases", "parameters", "comments"]
_GRAMMARS: Final[Mapping[bytes, _Grammar]] = {
    # Encoded words may stand for words of a phrase (a display name) and in comments (RFC 2047 §5).
    **dict.fromkeys(
        b"from sender reply-to to cc bcc resent-from resent-sender resent-reply-to resent-to resent-cc resent-bcc"
        b" apparently-to errors-to return-receipt-to disposition-notification-to mail-followup-to mail-reply-to"
        b" in-reply-to references keywords list-id".split(),
        "phrases",
    ),
    # Parameter values by RFC 2231.
    **dict.fromkeys(b"content-type content-disposition".split(), "parameters"),
    # Structured, without phrases: encoded words in comments only.
    **dict.fromkeys(
        b"date resent-date message-id resent-message-id received return-path mime-version content-transfer-encoding"
        b" content-id content-md5 content-location content-language content-base dkim-signature domainkey-signature"
        b" authentication-results arc-authentication-results arc-message-signature arc-seal received-spf list-help"
        b" list-post list-owner list-subscribe list-unsubscribe list-unsubscribe-post list-archive".split(),
        "comments",
    ),
}


@dataclass(frozen=True, slots=True)
class Repair:
    """One version of a refused message.

    `steps` are those applied, in order; `body` is in wire form. `breaks_signature`: a signed or
    encrypted part (RFC 1847, RFC 8551) is not octet for octet what it was.
    """

    steps: tuple[Step, ...]
    body: bytes = field(repr=False)
    breaks_signature: bool = False


def ladder(wire: bytes, cause: str = "") -> Iterator[Repair]:
    """Versions of `wire` to try one after the other, each with one more step; made when asked for.

    `cause` is what the server's words told: "nul", "8bit-header", "bare-newline", "header" or
    "long-line" bring their step to the front (one that works field by field comes after
    "header-lines"); "size" ends the ladder, for no step makes a message much smaller; anything else
    leaves the order of the table above.
    """
    if not wire or cause == "size":
        return
    sealed: list[_Part] | None = None
    steps: tuple[Step, ...] = ()
    body = wire
    # A step late in the order can uncover work for an earlier one: line ends show where lines begin.
    for step in _order(cause) * 2:
        after = _STEPS[step](body)
        if after == body:
            continue
        body = after
        steps = steps if step in steps else (*steps, step)
        if sealed is None:
            sealed = [part for part in _parts(wire) if part.kind == "sealed"]
        yield Repair(steps, body, not _all_in(body, (wire[part.body : part.end] for part in sealed)))


def _all_in(body: bytes, pieces: Iterable[bytes]) -> bool:
    """True when `pieces` are in `body`, one after the other."""
    at = 0
    for piece in pieces:
        at = body.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def end_with_crlf(wire: bytes) -> bytes:
    """`final-crlf`: a last line without its end gets one (RFC 5322 §2.1); zero octets stay zero."""
    if not wire or wire.endswith(CRLF):
        return wire
    return wire.removesuffix(b"\n").removesuffix(b"\r") + CRLF


def remove_nul(wire: bytes) -> bytes:
    """`nul`: no NUL octets in header and body: obsolete in RFC 5322 §4, not in a literal of RFC 9051 §9.

    Removed and not made blanks: most come from a hole in a file or from UTF-16, and a blank would
    cut words, field names and encoded text where readers show nothing.
    """
    return wire.replace(b"\0", b"")


def mend_line_ends(wire: bytes) -> bytes:
    """`line-ends`: CR and LF occur together only (RFC 5322 §2.2, §2.3).

    CRs before an LF are one line end (CRCRLF is CRLF written in text mode), and so is a lone CR
    in the body or in a message that has no other line ends. In a header with LFs a lone CR becomes a blank: a
    line break there would make new fields out of somebody's Subject. Late in the ladder, because Cyrus
    and Dovecot take a lone CR in a body.
    """
    mended = _LINE_END.sub(CRLF, wire)
    if b"\r" not in mended.replace(CRLF, b""):
        return mended
    if _has_only_cr(mended):
        return _LONE_CR.sub(CRLF, mended)
    lines, rest = _split(mended)
    return _join([_LONE_CR.sub(b" ", line) for line in lines], _LONE_CR.sub(CRLF, rest))


def _has_only_cr(wire: bytes) -> bool:
    """True for a message of the old Macintosh: it has CRs and, but for its end, no LF."""
    end = wire.rstrip(CRLF)
    return b"\r" in end and b"\n" not in end


def mend_header(wire: bytes) -> bytes:
    """`header-lines`: fields (RFC 5322 §2.2) with their folded lines, then a blank line.

    - Where every line end is a CR, all of them become CRLF first.
    - Blanks before a colon go (§4.5). A byte order mark before the first field gets an
      `X-Broken-N` of its own.
    - A stray line is the first line of the text, and a blank line is put before it, when it
      follows a line of blanks, begins with `--` (a delimiter, RFC 2046 §5.1.1), or no field
      comes after it: text that is seen by mistake is better than text that is not. A stray
      line before base64 or a multipart would spoil it or vanish, so there it counts as the next kind.
    - Any other (`>From `, an mbox `From ` line, no colon, blanks or illegal octets in the name) becomes
      the field `X-Broken-N`, its folded lines with it: octets as they are if ASCII, else as
      encoded words.
    - Without any field all is text: it gets the header `X-Broken-Header: missing`.
    - A header without its blank line gets one; Cyrus 2.2 wants it (cyrus-imapd#681).

    A message that begins with a blank line has an empty header, which is one.
    """
    if _has_only_cr(wire):
        wire = mend_line_ends(wire)
    lines, rest = _split(wire)
    if not lines:
        return wire
    mark = _BOM.match(lines[0])
    if mark is not None and _FIELD.match(lines[0], mark.end()):
        lines[:1] = [mark[0], lines[0][mark.end() :]]
    fields = [_FIELD.match(line) for line in lines]
    if not any(fields):
        return _NO_HEADER + CRLF + CRLF + wire
    end = _text_begins(lines, fields, rest)
    if end < len(lines):
        lines, rest = lines[:end], CRLF + CRLF + CRLF.join(lines[end:]) + rest
    elif not rest.startswith(CRLF + CRLF):
        rest = CRLF + CRLF
    return _join(_without_strays(lines) or [_NO_HEADER], rest)


def _text_begins(lines: Sequence[bytes], fields: Sequence[re.Match[bytes] | None], rest: bytes) -> int:
    """The index of the stray line that is text, else the number of lines."""
    content = _content(lines)
    spoilt = rest.startswith(CRLF + CRLF) and (content.multipart or content.encoding == b"base64")
    last = max(index for index, match in enumerate(fields) if match)
    for index, line in enumerate(lines):
        if fields[index] is not None:
            continue
        if line.startswith(b"--"):
            return index
        if index:
            _, folded, above = lines[index - 1].rpartition(CRLF)
            if folded and not above.strip(b" \t"):
                return index
        if index > last and not spoilt and not _MBOX_LEFTOVER.match(line):
            return index
    return len(lines)


def _without_strays(lines: Sequence[bytes]) -> list[bytes]:
    """Header lines, each with its folded lines, as fields: what is none becomes X-Broken-N."""
    number = max((int(match[1]) for match in map(_NUMBERED.match, lines) if match), default=0)
    mended = []
    for line in lines:
        match = _FIELD.match(line)
        if match is None:
            number += 1
            name = b"X-Broken-%d" % number
            mended.append(name + b": " + line if line.isascii() else _as_text(name, b" " + line))
        else:
            mended.append(match[1] + line[match.end() - 1 :] if match[2] else line)
    return mended


def encode_header(wire: bytes) -> bytes:
    """`8bit-header`: octets above 127 in the header of the message become ASCII.

    The charset of a field is utf-8 when all of it is valid UTF-8, else unknown-8bit (RFC 1428):
    the octets come back by decoding, and nobody's charset is guessed. Folds stay; a line that holds an encoded word
    has at most 76 characters (RFC 2047 §2). By the grammar of the field:

    - text: runs of words with such octets become encoded words, blanks between them included;
    - addresses and other phrases: display names, quoted strings and comments likewise;
    - parameters of Content-Type and Content-Disposition: RFC 2231; one that cannot be is left
      out, and the whole old field is kept as X-Broken-NAME beside the new one;
    - other structured fields: comments.

    A field with such octets where none of these may stand (`<ü@example.org>`) becomes X-Broken-NAME,
    which is text. A header that is not made of fields is mended first, as by `mend_header`. Headers of
    parts stay as they are: Cyrus looks at the first header alone.
    """
    lines, rest = _split(wire)
    if all(line.isascii() for line in lines):
        return wire
    if not all(map(_FIELD.match, lines)):
        lines, rest = _split(mend_header(wire))
    encoded: list[bytes] = []
    for line in lines:
        encoded += [line] if line.isascii() else _encoded_field(line)
    return _join(encoded, rest)


def _encoded_field(line: bytes) -> list[bytes]:
    """A field without octets above 127; two fields when one part of it could not stay."""
    name, _, body = line.partition(b":")
    name = name.rstrip(b" \t")
    grammar = _GRAMMARS.get(name.lower(), "text")
    if grammar == "text":
        return [_as_text(name, body)]
    if grammar == "parameters":
        kept, complete = _parameters(body)
        made = [_filled(name, kept, _charset(body))] if kept else []
        return made if complete else [*made, _as_text(b"X-Broken-" + name, body)]
    pieces = _phrases(body, words=grammar == "phrases")
    return [_as_text(b"X-Broken-" + name, body) if pieces is None else _filled(name, pieces, _charset(body))]


def mend_long_lines(wire: bytes) -> bytes:
    """`long-lines`: no line above 998 octets (RFC 5322 §2.1.1), when there is one above 9,900.

    - The body of a part, text or not, that has a line above 998 octets and is 7bit, 8bit or binary becomes
      quoted-printable (RFC 2045 §6.7), its Content-Transfer-Encoding with it, and so does one of unknown
      encoding, whose old field stays as X-Broken-Content-Transfer-Encoding. Quoted-printable and base64 are
      wrapped anew, such lines only. All of these decode to the same octets.
    - Header lines are folded at their blanks (RFC 5322 §2.2.3); structured fields after commas
      and semicolons too. Where that is not enough, words of text become encoded words, and a
      structured field becomes X-Broken-NAME, which is text.
    - What is read by nobody (before the first and after the last part) is cut.

    A header that is not made of fields is mended first, as by `mend_header`. What has no such line, and every other
    part, stays octet for octet.
    """
    if not _has_line_above(wire, LONGEST_TAKEN):
        return wire
    wire = mend_header(wire)
    out: list[bytes] = []
    done = 0
    for part in _parts(wire):
        head, body = wire[part.start : part.body], wire[part.body : part.end]
        in_body = _has_line_above(body, LONGEST_LINE)
        if part.kind == "sealed" or not (in_body or _has_line_above(head, LONGEST_LINE)):
            continue
        lines = [_folded(line) for line in _without_strays(part.lines)]
        if in_body and part.kind == "leaf":
            lines, body = _recoded(lines, body, part)
        elif in_body:
            body = _cut(body, LONGEST_LINE)
        out += [wire[done : part.start], CRLF.join((*lines, b"", b"")) if lines else head, body]
        done = part.end
    return b"".join(out) + wire[done:]


_STEPS: Final[Mapping[Step, Callable[[bytes], bytes]]] = {
    "final-crlf": end_with_crlf,
    "nul": remove_nul,
    "header-lines": mend_header,
    "8bit-header": encode_header,
    "line-ends": mend_line_ends,
    "long-lines": mend_long_lines,
}
_FIRST: Final[Mapping[str, tuple[Step, ...]]] = {
    "nul": ("nul",),
    "bare-newline": ("line-ends",),
    "header": ("header-lines", "8bit-header"),
    "8bit-header": ("header-lines", "8bit-header"),
    "long-line": ("header-lines", "long-lines"),
}


def _order(cause: str) -> tuple[Step, ...]:
    first = _FIRST.get(cause, ())
    return (*first, *(step for step in _STEPS if step not in first))


# Header blocks


def _split(wire: bytes) -> tuple[list[bytes], bytes]:
    """Header lines, each with its folded lines and without the last CRLF, and what follows them.

    What follows begins with two CRLFs, or it is one CRLF or nothing where no blank line ends
    the header. `_join` is the inverse.
    """
    if wire.startswith(CRLF):
        return [], CRLF + wire
    end = wire.find(CRLF + CRLF)
    if end < 0:
        end = len(wire.removesuffix(CRLF))
    return _lines(wire[:end]), wire[end:]


def _lines(block: bytes) -> list[bytes]:
    """The lines of a block, each with its folded ones (RFC 5322 §2.2.3)."""
    groups: list[list[bytes]] = []
    for line in block.split(CRLF) if block else ():
        if groups and line.startswith((b" ", b"\t")):
            groups[-1].append(line)
        else:
            groups.append([line])
    return [CRLF.join(group) for group in groups]


def _join(lines: Sequence[bytes], rest: bytes) -> bytes:
    return CRLF.join(lines) + rest if lines else rest[len(CRLF) :]


# Words, gaps and encoded words


@dataclass(frozen=True, slots=True)
class _Piece:
    """A word and the blanks before it.

    The octets of one to `encode` are what encoded words shall say. One that is `made` is ours and
    begins a line of its own where it would make one too long. One without a word is the blanks at the end.
    """

    gap: bytes
    word: bytes
    encode: bool = False
    made: bool = False


@dataclass(slots=True)
class _Run:
    """Pieces that go out as one: said by encoded words, or as they are."""

    gap: bytes
    octets: bytearray
    encode: bool
    made: bool = False
    ends_coded: bool = False  # its last word was an encoded word before we came


def _charset(body: bytes) -> bytes:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return b"unknown-8bit"
    return b"utf-8"


def _unfolded(octets: bytes) -> bytes:
    return octets.replace(CRLF, b"")


def _words(body: bytes) -> list[_Piece]:
    """A field body cut at its blanks."""
    return [_Piece(match[1], match[2]) for match in _WORD.finditer(body) if match[0]]


def _fits(piece: _Piece) -> bool:
    return len(piece.word) <= LONGEST_WORD and len(piece.gap) <= LONGEST_GAP


def _as_text(name: bytes, body: bytes) -> bytes:
    """An unstructured field (RFC 5322 §3.2.5) without octets above 127."""
    return _filled(name, _text(body, eight_bit=False), _charset(body))


def _text(body: bytes, *, eight_bit: bool) -> list[_Piece]:
    """An unstructured body; words that no line holds are to be encoded, unless `eight_bit` those above 127 too.

    Too many blanks go with the word after them, or before an encoded word with the word before.
    """
    pieces: list[_Piece] = []
    for piece in _words(body):
        encode = not (_fits(piece) and (eight_bit or piece.word.isascii()))
        if encode and _is_coded(piece.word) and len(piece.word) <= LONGEST_WORD:
            encode = False
            if pieces and not _is_coded(pieces[-1].word):
                pieces[-1] = replace(pieces[-1], encode=True)
            else:  # blanks between encoded words, or before the first, mean nothing
                piece = replace(piece, gap=b" ")
        pieces.append(replace(piece, encode=encode))
    return pieces


def _is_coded(word: bytes) -> bool:
    return _CODED_WORD.fullmatch(word) is not None


def _runs(pieces: Sequence[_Piece]) -> list[_Run]:
    """Pieces put together so that decoding gives them back.

    Readers drop the blanks between two encoded words (RFC 2047 §6.2), so such blanks are said by one of
    them. Where an encoded word meets another octet there must be a blank, but at the ends of a comment (§5).
    """
    runs: list[_Run] = []
    for piece in pieces:
        before = runs[-1] if runs else None
        blanks = _unfolded(piece.gap)
        coded = not piece.encode and _is_coded(piece.word)
        if piece.encode:
            if before is not None and before.encode:
                before.octets += blanks + piece.word
            elif before is not None and before.ends_coded:
                gap = piece.gap if 0 < len(blanks) <= _WIDE_GAP else b" "
                runs.append(_Run(gap, bytearray(blanks + piece.word), encode=True))
            elif len(blanks) > _WIDE_GAP:
                runs.append(_Run(blanks[:1], bytearray(blanks[1:] + piece.word), encode=True))
            else:
                alone = before is None or before.octets.endswith(b"(")
                runs.append(_Run(piece.gap or (b"" if alone else b" "), bytearray(piece.word), encode=True))
        elif before is not None and not piece.word:
            before.octets += blanks if before.encode else piece.gap
        elif before is not None and before.encode and coded:
            before.octets += blanks
            runs.append(_Run(b" ", bytearray(piece.word), encode=False, ends_coded=True))
        elif before is not None and not (before.encode or piece.gap or piece.made):
            before.octets += piece.word
            before.ends_coded = coded
        else:
            apart = before is not None and before.encode and piece.word != b")"
            gap = piece.gap or (b" " if apart else b"")
            runs.append(_Run(gap, bytearray(piece.word), encode=False, made=piece.made, ends_coded=coded))
    return runs


def _filled(name: bytes, pieces: Sequence[_Piece], charset: bytes, *, width: int = LONGEST_LINE) -> bytes:
    """The field `name` with `pieces`. At a gap it is folded where a line with encoded words, or with what is
    `made`, would be above 76 characters, any other above `width`."""
    out = bytearray(name + b":")
    column = len(out)
    ours = False  # the line has something that we made
    for run in _runs(pieces):
        gap = run.gap
        _, folded, indent = gap.rpartition(CRLF)
        if folded:
            column, ours, fold = len(indent), False, False
        elif run.encode:
            room = CODED_LINE - column - len(gap)
            fold = room < _ROOM and room < _coded_size(run.octets, charset)
            column += len(gap)
        else:
            first, _, _ = run.octets.partition(CRLF)
            fold = column + len(gap) + len(first) > (CODED_LINE if ours or run.made else width)
            column += len(gap)
        if fold:
            gap = gap or b" "
            out += CRLF
            column, ours = len(gap), False
        out += gap
        if run.encode:
            words = _encoded_words(bytes(run.octets), charset, CODED_LINE - column)
            out += b"\r\n ".join(words)
            column, ours = len(words[-1]) + (column if len(words) == 1 else 1), True
        else:
            out += run.octets
            line_end = run.octets.rfind(CRLF)
            column = column + len(run.octets) if line_end < 0 else len(run.octets) - line_end - len(CRLF)
            ours = line_end < 0 and (ours or run.made)
    return bytes(out)


def _coded_size(octets: bytes | bytearray, charset: bytes) -> int:
    """Characters of one encoded word that says `octets`, if it may be as long as it likes."""
    return len(charset) + 7 + min(sum(map(_Q_SIZE.__getitem__, octets)), (len(octets) + 2) // 3 * 4)


def _encoded_words(octets: bytes, charset: bytes, room: int) -> list[bytes]:
    """`octets` as encoded words (RFC 2047 §2), the first within `room` characters; Q or B, whichever is shorter.

    No character of UTF-8 is cut in two (§5).
    """
    in_b = (len(octets) + 2) // 3 * 4 < sum(map(_Q_SIZE.__getitem__, octets))
    words = []
    at = 0
    while at < len(octets):
        payload = min(room, ENCODED_WORD) - len(charset) - 7
        end = at
        if in_b:
            end = min(at + payload // 4 * 3, len(octets))
        else:
            while end < len(octets) and payload >= _Q_SIZE[octets[end]]:
                payload -= _Q_SIZE[octets[end]]
                end += 1
        while charset == b"utf-8" and end < len(octets) and octets[end] & 0xC0 == 0x80:
            end -= 1
        said = octets[at:end]
        text = binascii.b2a_base64(said, newline=False) if in_b else b"".join(map(_Q.__getitem__, said))
        words.append(b"=?%s?%s?%s?=" % (charset, b"b" if in_b else b"q", text))
        at, room = end, ENCODED_WORD
    return words


# Structured fields


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # gap, comment, quoted, angle, special, atom
    text: bytes
    address: bool = False  # beside an "@": part of an address


def _tokens(body: bytes) -> list[_Token]:
    """A structured body cut as RFC 5322 §3.2 does, but what is opened and never closed is part of an atom."""
    spans: list[tuple[str, int, int]] = []
    at = 0
    quotes = comments = True  # until one is not closed: none after it is looked for, or this would be quadratic
    while at < len(body):
        kind, end = "atom", at + 1
        if body[at] == _OPEN and comments:
            closed = _comment_end(body, at)
            comments = closed is not None
            if closed is not None:
                kind, end = "comment", closed
        elif body[at] != _OPEN and (match := (_TOKEN if quotes else _TOKEN_WITHOUT_QUOTES).match(body, at)):
            kind, end = str(match.lastgroup), match.end()
        elif body[at] == _QUOTE:
            quotes = False
        if kind == "atom" and spans and spans[-1][0] == "atom":
            spans[-1] = ("atom", spans[-1][1], end)
        else:
            spans.append((kind, at, end))
        at = end
    signs = [
        (index, body[start:end] == b"@")
        for index, (kind, start, end) in enumerate(spans)
        if kind not in ("gap", "comment")
    ]
    beside = {
        index
        for (left, left_is), (right, right_is) in itertools.pairwise(signs)
        for index in ((left,) if right_is else ()) + ((right,) if left_is else ())
    }
    return [_Token(kind, body[start:end], index in beside) for index, (kind, start, end) in enumerate(spans)]


def _comment_end(body: bytes, at: int) -> int | None:
    depth = 0
    for match in _PAREN.finditer(body, at):
        depth += {b"(": 1, b")": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


def _phrases(body: bytes, *, words: bool) -> list[_Piece] | None:
    """Pieces of a structured body: comments and, where `words`, atoms and quoted strings of phrases to be encoded.

    None when an octet above 127 stands anywhere else.
    """
    pieces: list[_Piece] = []
    gap = b""
    for token in _tokens(body):
        text = token.text
        if token.kind == "gap":
            gap = text
            continue
        if token.kind == "comment":
            pieces += _comment(gap, text)
        elif token.kind in ("quoted", "atom") and words and not token.address:
            # An unmatched quote or parenthesis in an atom would swallow what follows; encoded it cannot.
            encode = not text.isascii() or (token.kind == "atom" and _UNMATCHED.search(text) is not None)
            quoted = token.kind == "quoted" and encode
            pieces.append(_Piece(gap, _unquoted(text[1:-1]) if quoted else text, encode=encode))
        elif text.isascii():
            pieces.append(_Piece(gap, text))
        else:
            return None
        gap = b""
    return [*pieces, _Piece(gap, b"")] if gap else pieces


def _comment(gap: bytes, text: bytes) -> list[_Piece]:
    """A comment in pieces; its words with octets above 127 are to be encoded (RFC 2047 §5(2))."""
    if text.isascii():
        return [_Piece(gap, text)]
    pieces = []
    for match in _IN_COMMENT.finditer(text):
        if match.lastgroup == "gap":
            gap = match[0]
            continue
        encode = not match[0].isascii()
        pieces.append(_Piece(gap, _unquoted(match[0]) if encode else match[0], encode=encode))
        gap = b""
    return pieces


def _unquoted(text: bytes) -> bytes:
    """What quoted pairs stand for (RFC 5322 §3.2.1), in one line."""
    return re.sub(rb"\\(.)", rb"\1", _unfolded(text), flags=re.DOTALL)


def _parameters(body: bytes) -> tuple[list[_Piece], bool]:
    """Pieces of `value; name=value; …` without octets above 127; and whether all of it is in them."""
    pieces: list[_Piece] = []
    complete = True
    segments: list[list[bytes]] = [[]]
    for token in _tokens(body):
        if token.text == b";":
            segments.append([])
        else:
            segments[-1].append(token.text)
    for number, texts in enumerate(segments):
        segment = b"".join(texts)
        made: list[_Piece] | None
        if segment.isascii():
            made = _words(segment)
        else:
            made = _phrases(segment, words=False)
            match = _PARAMETER.fullmatch(segment)
            if made is None and match is not None and number:
                made = _extended(match["name"], match["value"].rstrip())
        if made is None:
            complete = False
            if not number:
                return [], False
            continue
        pieces += [*([_Piece(b"", b";")] if number else []), *made]
    return pieces, complete


def _extended(name: bytes, value: bytes) -> list[_Piece] | None:
    """A parameter as RFC 2231 §3, §4 has it; None for a part of one, whose charset is said elsewhere."""
    if value.startswith(b'"') and value.endswith(b'"') and len(value) > 1:
        value = value[1:-1]
    value = _unquoted(value)
    if name.endswith(b"*"):  # it was meant to be in this form: what is said by %XX stays
        name, said = name[:-1], re.sub(rb"[^!#$%&'+\-.^_`{}|~0-9A-Za-z]", _percent, value)
        if b"*" in name:
            return [_Piece(b" ", b"%s*=%s" % (name, said), made=True)]
    elif b"*" in name:
        return None
    else:
        said = _charset(value) + b"''" + re.sub(rb"[^!#$&+\-.^_`{}|~0-9A-Za-z]", _percent, value)
    if len(name) + len(said) <= CODED_LINE - 4:
        return [_Piece(b" ", b"%s*=%s" % (name, said), made=True)]
    pieces = []
    for number, part in enumerate(_cuts(said, max(CODED_LINE - 12 - len(name), 12), b"%")):
        pieces += [_Piece(b" ", b"%s*%d*=%s" % (name, number, part), made=True), _Piece(b"", b";")]
    return pieces[:-1]


def _percent(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


# MIME structure


@dataclass(frozen=True, slots=True)
class _Content:
    """What a header says of its body (RFC 2045 §5, §6), in lower case but for the boundary."""

    type: bytes
    boundary: bytes
    encoding: bytes

    @property
    def multipart(self) -> bool:
        return self.type.startswith(b"multipart/")


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a message: its header with the blank line at [start, body), its octets at [body, end).

    "leaf" is a body that may be encoded, "plain" anything else: the header of a message or multipart,
    and the octets before its first and after its last part. "sealed" is told of beside these: the
    octets that a signature or encryption covers, with its wrapping.
    """

    kind: Literal["leaf", "plain", "sealed"]
    start: int
    body: int
    end: int
    lines: Sequence[bytes] = ()
    encoding: bytes = b""
    message: bool = False


def _content(lines: Sequence[bytes], default: bytes = b"text/plain") -> _Content:
    found: dict[bytes, bytes] = {}
    for line in lines:
        match = _CONTENT_FIELD.match(line)
        if match is not None:
            found.setdefault(match[1].lower(), _unfolded(line[match.end() :]))
    body = found.get(b"type", default)
    boundary = _BOUNDARY.search(body)
    encoding = _FIRST_WORD.match(found.get(b"transfer-encoding", b""))
    kind = _FIRST_WORD.match(body)
    return _Content(
        type=kind[1].lower() if kind is not None else default,
        boundary=b"" if boundary is None else boundary[2] or re.sub(rb"\\(.)", rb"\1", boundary[1] or b"").rstrip(),
        encoding=encoding[1].lower() if encoding is not None else b"",
    )


@dataclass(slots=True)
class _Open:
    """A multipart that is not closed yet."""

    boundary: bytes
    default: bytes  # of the type of its parts
    body: int
    sealed: bool


def _parts(wire: bytes) -> Iterator[_Part]:
    """Every piece of a message in wire form, in order; "sealed" ones after those they hold, outermost only.

    A header without any field is none: its lines belong to the body. Only boundaries of
    multiparts that are open count; one that opens under a boundary in use is not followed.
    """
    stack: list[_Open] = []
    depth_of: dict[bytes, int] = {}
    sealed_depth: int | None = None
    blank = -1
    at, message, default = 0, True, b"text/plain"
    while True:
        # A header: to its blank line or, without one, to the next delimiter or the end.
        if wire.startswith(CRLF, at):
            head_end, body = at, at + len(CRLF)
        else:
            if blank < at:
                blank = wire.find(CRLF + CRLF, at)
                blank = len(wire) if blank < 0 else blank
            cut = _delimiter(wire, at - len(CRLF), blank, depth_of)
            head_end = body = max(cut.start, at) if cut is not None else blank
            if cut is None:
                body = min(blank + 2 * len(CRLF), len(wire))
        lines = _lines(wire[at:head_end])
        if lines and not any(map(_FIELD.match, lines)):
            lines, body = [], at
        content = _content(lines, default)
        kind: Literal["leaf", "plain"] = "leaf"
        if content.type in _MESSAGES and content.encoding in _IDENTITY and body < len(wire) and body > at:
            yield _Part("plain", at, body, body, lines, content.encoding, message)
            at, message, default = body, True, b"text/plain"
            continue
        seals = content.type in _SEALING and sealed_depth is None
        sealed_leaf = seals
        if content.multipart:
            kind = "plain"
            if content.boundary and content.boundary not in depth_of:
                part_default = b"message/rfc822" if content.type == b"multipart/digest" else b"text/plain"
                depth_of[content.boundary] = len(stack)
                if seals:
                    sealed_depth = len(stack)
                stack.append(_Open(content.boundary, part_default, body, seals))
                sealed_leaf = False
        # Its octets, then what follows closed multiparts, to the next part or the end.
        start = at
        while True:
            cut = _delimiter(wire, body - len(CRLF), len(wire), depth_of)
            end = len(wire) if cut is None else max(cut.start, body)
            yield _Part(kind, start, body, end, lines, content.encoding, message)
            if sealed_leaf:
                yield _Part("sealed", body, body, end)
            level = 0 if cut is None else cut.depth + (0 if cut.closes else 1)
            while len(stack) > level:
                closed = stack.pop()
                del depth_of[closed.boundary]
                if closed.sealed:
                    sealed_depth = None
                    yield _Part("sealed", closed.body, closed.body, end)
            if cut is None:
                return
            if not cut.closes:
                break
            kind, lines, message, sealed_leaf = "plain", [], False, False
            start = body = cut.end
        at, message, default = min(cut.end + len(CRLF), len(wire)), False, stack[-1].default


@dataclass(frozen=True, slots=True)
class _Delimiter:
    start: int  # of the CRLF before it, which belongs to it (RFC 2046 §5.1.1)
    end: int  # of its line, before its CRLF
    depth: int
    closes: bool


def _delimiter(wire: bytes, at: int, end: int, depth_of: Mapping[bytes, int]) -> _Delimiter | None:
    """The next delimiter of an open multipart whose CRLF is in [at, end)."""
    start = max(at, 0)
    while depth_of and (start := wire.find(b"\r\n--", start, end + 4)) >= 0:
        stop = wire.find(CRLF, start + 4)
        stop = len(wire) if stop < 0 else stop
        if stop - start <= LONGEST_LINE:
            text = wire[start + 4 : stop].rstrip(b" \t")
            for boundary, closes in ((text, False), (text.removesuffix(b"--"), True)):
                if boundary in depth_of and (not closes or text != boundary):
                    return _Delimiter(start, stop, depth_of[boundary], closes)
        start = stop
    return None


# Bodies


def _has_line_above(octets: bytes, limit: int) -> bool:
    at = 0
    while at + limit < len(octets):
        # The last line end that a line of `limit` octets from here may have; most are jumped over.
        end = octets.rfind(CRLF, at, at + limit + len(CRLF))
        if end < 0:
            return True
        at = end + len(CRLF)
    return False


def _folded(line: bytes) -> bytes:
    """A field with lines above 998 octets, folded."""
    if not _has_line_above(line, LONGEST_LINE):
        return line
    name, _, body = line.partition(b":")
    pieces = _words(body)
    if not all(map(_fits, pieces)):
        if _GRAMMARS.get(name.lower(), "text") != "text":
            pieces = _words(b"".join(token.text + b" " * (token.text in (b",", b";")) for token in _tokens(body)))
            name = name if all(map(_fits, pieces)) else b"X-Broken-" + name
        if _GRAMMARS.get(name.lower(), "text") == "text":
            pieces = _text(body, eight_bit=True)
    return _filled(name, pieces, _charset(body), width=CODED_LINE)


def _recoded(lines: Sequence[bytes], body: bytes, part: _Part) -> tuple[list[bytes], bytes]:
    """Header and body of a leaf whose body has lines above 998 octets; it decodes to the same octets."""
    if part.encoding == b"quoted-printable":
        return list(lines), _each_long_line(body, _soft_breaks)
    if part.encoding == b"base64":
        return list(lines), _cut(body, CODED_LINE)
    recoded: list[bytes] = []
    said = False
    for line in lines:
        match = _CONTENT_FIELD.match(line)
        if match is None or match[1].lower() != b"transfer-encoding":
            recoded.append(line)
            continue
        if said or part.encoding not in _IDENTITY:
            recoded.append(b"X-Broken-" + line)
        if not said:
            recoded.append(_QUOTED_PRINTABLE)
        said = True
    if not said:
        recoded.append(_QUOTED_PRINTABLE)
    if part.message and not any(line[:13].lower() == b"mime-version:" for line in recoded):
        recoded.append(b"MIME-Version: 1.0")  # without it the encoding means nothing (RFC 2045 §4)
    return recoded, CRLF.join(map(_quoted_printable, body.split(CRLF)))


def _quoted_printable(line: bytes) -> bytes:
    """A line of text as RFC 2045 §6.7 has it."""
    text = _NOT_IN_QP.sub(lambda match: b"=%02X" % match[0][0], line)
    return b"=\r\n".join(_cuts(text, CODED_LINE - 1, b"="))


def _soft_breaks(line: bytes) -> bytes:
    """A line that is quoted-printable already, with soft breaks. Blanks at its end mean nothing (rule 3) and go:
    before a soft break they would mean something."""
    text = _SECOND_HYPHEN.sub(b"=2D", line.rstrip(b" \t"))
    return b"=\r\n".join(_cuts(text, CODED_LINE - 1, b"="))


def _cut(octets: bytes, width: int) -> bytes:
    """Lines above 998 octets cut to `width`; a blank before a piece that would look like a delimiter."""

    def pieces(line: bytes) -> bytes:
        return re.sub(rb"(\r\n)(?=--)", rb"\1 ", CRLF.join(_cuts(line, width - 1, None)))

    return _each_long_line(octets, pieces)


def _each_long_line(octets: bytes, mend: Callable[[bytes], bytes]) -> bytes:
    return CRLF.join(mend(line) if len(line) > LONGEST_LINE else line for line in octets.split(CRLF))


def _cuts(octets: bytes, width: int, escape: bytes | None) -> Iterator[bytes]:
    """Pieces of at most `width` octets; one that begins with `escape` and has two more is not cut in two."""
    at = 0
    while len(octets) - at > width:
        end = at + width
        if escape is not None:
            begun = octets.rfind(escape, end - 2, end)
            end = begun if begun > at else end
        yield octets[at:end]
        at = end
    yield octets[at:]
