"""MIME parts of a message, as Dovecot cuts them: whose header, whose body, what of it is text. Pure.

    octets ─▶ parts() ─▶ Part, Part, ... ─▶ text() in normal form

Any octets give parts; nothing recurses on input. A boundary is a line that begins with it, the
longest known one counts, and nesting ends at Dovecot's own limits (`message-parser.c`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from aimport.query import headers, text
from aimport.query.headers import Broken, Octets, Scanner

MAX_NESTED: Final = 100
MAX_PARTS: Final = 10_000
MAX_BOUNDARY: Final = 70 + 10
"""Octets of a boundary that count."""
CHUNK_OCTETS: Final = 1 << 20


@dataclass(slots=True, eq=False)
class Part:
    """One part; the message itself is the first."""

    parent: Part | None
    header: bytes = b""
    start: int = 0
    end: int = 0
    """Of the body: of a part that has parts, of what stands before the first."""
    stop: int = 0
    """Where the last of all its octets is, those of its parts too."""
    children: list[Part] = field(default_factory=list)
    media_type: str = ""
    """Lower case; "" where Content-Type is broken, and of what has none `text/plain`."""
    parameters: Sequence[tuple[str, str]] = ()
    multipart: bool = False
    embedded: bool = False
    """A message in the message: its one child."""
    complete: bool = False
    """An empty line ends the header."""
    fields: Sequence[tuple[bytes, bytes, bytes]] = ()
    """Name, what follows it, value."""

    def values(self, name: str) -> list[bytes]:
        """Of the header fields of that name, which is in lower case."""
        wanted = name.encode()
        return [value for known, _, value in self.fields if known.lower() == wanted]

    def first(self, name: str) -> bytes | None:
        found = self.values(name)
        return found[0] if found else None


def parts(message: Octets) -> list[Part]:
    """All parts in their order, each before its children."""
    return _Walk(message).parts()


@dataclass(frozen=True, slots=True)
class _Boundary:
    text: bytes
    part: Part


class _Walk:
    """Goes through a message once."""

    def __init__(self, message: Octets) -> None:
        self._message = message
        self._at = 0
        self._boundaries: list[_Boundary] = []
        """From the outermost to the innermost."""
        self._found: list[Part] = []

    def parts(self) -> list[Part]:
        part: Part | None = self._new(None)
        while part is not None:
            part = self._part(part)
        return self._found

    def _new(self, parent: Part | None) -> Part:
        part = Part(parent)
        if parent is not None:
            parent.children.append(part)
        self._found.append(part)
        return part

    def _nested(self, part: Part) -> int:
        depth = 0
        at = part.parent
        while at is not None:
            depth, at = depth + 1, at.parent
        return depth

    def _part(self, part: Part) -> Part | None:
        """Reads a header and what of its body is its own; the part that begins next."""
        closed = self._header(part)
        room = self._nested(part) + 1 < MAX_NESTED and len(self._found) < MAX_PARTS
        part.start = part.end = part.stop = self._at
        if part.embedded and room:
            return self._new(part)
        part.embedded = False
        boundary = next((value for name, value in part.parameters if name == "boundary"), "")
        if part.multipart and boundary and room and not closed:
            self._boundaries.append(_Boundary(boundary.encode("latin-1")[:MAX_BOUNDARY], part))
        return self._body(part)

    def _header(self, part: Part) -> bool:
        """Reads it; True when a boundary ended it, whose line is here."""
        message = self._message
        begin = at = self._at
        closed = False
        while at < len(message):
            if self._matching(at) is not None:
                closed = True
                break
            end = message.find(b"\n", at)
            end = len(message) if end < 0 else end + 1
            line_end = end
            if message[at : at + 2] == b"\r\n" or message[at : at + 1] == b"\n":
                part.header = message[begin:at]
                part.complete = True
                self._at = line_end
                break
            at = end
        else:
            part.header = message[begin:at]
            self._at = at
        if closed:
            part.header = message[begin:at]
            self._at = at
        part.fields = list(headers.fields(part.header))
        self._describe(part)
        return closed

    def _describe(self, part: Part) -> None:
        value = part.first("content-type")
        parent = part.parent
        if value is None:
            digest = parent is not None and parent.media_type == "multipart/digest"
            part.media_type = "message/rfc822" if digest else "text/plain"
        else:
            part.media_type, part.parameters = content_type(value)
        part.embedded = part.media_type == "message/rfc822"
        part.multipart = part.media_type.startswith("multipart/")

    def _body(self, part: Part) -> Part | None:
        """Reads on to the next boundary; what stands there is the body of `part`, whose children follow it."""
        message = self._message
        start = at = self._at
        part.end = len(message)
        body_of: Part | None = part
        open_: Part | None = part
        while self._boundaries:
            found = None
            if at == start or message[at - 1 : at] == b"\n":
                found = self._matching(at)
            while found is None:
                line = message.find(b"\n--", at)
                if line < 0:
                    break
                at = line + 1
                found = self._matching(at)
            if found is None:
                break
            end = _before_line(message, at, start)
            if body_of is not None:
                body_of.end, body_of = end, None
            while open_ is not found.part:
                assert open_ is not None, "the part of a boundary is above all that it ends"
                open_.stop, open_ = end, open_.parent
            ended = message[at + 2 + len(found.text) : at + 4 + len(found.text)] == b"--"
            while self._boundaries[-1] is not found:
                self._boundaries.pop()
            if ended:
                self._boundaries.pop()
            line_end = message.find(b"\n", at + 2 + len(found.text))
            at = start = len(message) if line_end < 0 else line_end + 1
            if not ended:
                self._at = at
                return self._new(found.part)
        self._at = len(message)
        while open_ is not None:
            open_.stop, open_ = len(message), open_.parent
        return None

    def _matching(self, at: int) -> _Boundary | None:
        """The boundary that the line at `at` begins with: the longest, and of those alike the innermost."""
        if not self._boundaries or self._message[at : at + 2] != b"--" or len(self._found) >= MAX_PARTS:
            return None
        line = self._message[at + 2 : at + 2 + MAX_BOUNDARY + 4].partition(b"\n")[0].removesuffix(b"\r")
        best: _Boundary | None = None
        for boundary in reversed(self._boundaries):
            if line.startswith(boundary.text) and (best is None or len(boundary.text) > len(best.text)):
                best = boundary
                if line[len(boundary.text) :] in (b"", b"--"):
                    break
        return best


def _before_line(message: Octets, at: int, start: int) -> int:
    """Where a body ends before the boundary line at `at`: its line end belongs to that."""
    if at > start and message[at - 1 : at] == b"\n":
        at -= 1
        if at > start and message[at - 1 : at] == b"\r":
            at -= 1
    return at


def content_type(value: bytes) -> tuple[str, Sequence[tuple[str, str]]]:
    """`type/subtype` in lower case with its parameters; "" when it is broken."""
    scanner = Scanner(value)
    try:
        scanner.skip()
        kind = scanner.token()
        if not scanner.more():
            return kind.decode(
                "latin-1"
            ).lower(), ()  # a lone `text` is no text to search, and has its type all the same
        if not kind or scanner.peek() != b"/":
            return "", ()
        scanner.at += 1
        scanner.skip()
        subtype = scanner.token()
        if not subtype or scanner.peek() not in (b"", b";"):
            return "", ()
    except Broken:
        return "", ()
    return f"{kind.decode('latin-1')}/{subtype.decode('latin-1')}".lower(), parameters(scanner)


def parameters(scanner: Scanner) -> list[tuple[str, str]]:
    """Name, in lower case, and value of what follows; the pieces of RFC 2231 are put together, not decoded."""
    found: list[tuple[str, str]] = []
    pieces: dict[str, list[tuple[int, bool, str]]] = {}
    while scanner.more():
        try:
            name, value = _parameter(scanner)
        except Broken:
            scanner.at += 1  # as far as it can be read
            continue
        base, star, rest = name.partition("*")
        number, _, extended = rest.partition("*")
        if star and (number.isdecimal() or rest == "") and not extended:
            pieces.setdefault(base, []).append((int(number or 0), rest.endswith("*") or rest == "", value))
        else:
            found.append((name, value))
    for base, several in sorted(pieces.items()):
        several.sort(key=lambda piece: piece[0])
        extended_too = any(extended for _, extended, _ in several)
        if [number for number, _, _ in several] == list(range(len(several))):
            escaped = [value if ext or not extended_too else value.replace("%", "%25") for _, ext, value in several]
            quotes = "''" if extended_too and not several[0][1] else ""
            found.append((f"{base}*" if extended_too else base, quotes + "".join(escaped)))
        else:
            found += [(f"{base}*{number}{'*' * ext}", value) for number, ext, value in several]
    return found


def _parameter(scanner: Scanner) -> tuple[str, str]:
    if scanner.peek() != b";":
        raise Broken
    scanner.at += 1
    scanner.skip()
    name = scanner.token()
    if not name or scanner.peek() != b"=":
        raise Broken
    scanner.at += 1
    scanner.skip()
    if scanner.peek() == b'"':
        value = scanner.quoted()
    elif scanner.peek() == b"=":  # name==?utf-8?b?...?=
        end = next((at for at in range(scanner.at, len(scanner.value)) if scanner.value[at] in b"; \t\r\n"), None)
        value = scanner.value[scanner.at : end]
        scanner.at = len(scanner.value) if end is None else end
    else:
        value = scanner.token()
    return name.decode("latin-1").lower(), value.decode("latin-1")


def text_of(message: Octets, part: Part, *, with_header: bool) -> Iterator[str]:
    """What a key is looked for in: the header if asked for, then the body if it is text. In normal form, in pieces."""
    if with_header:
        yield _header_text(part)
    yield from _body_text(message, part)


def _header_text(part: Part) -> str:
    lines = [
        f"{text.normal(name.decode('utf-8', 'replace'))}{between.decode('utf-8', 'replace')}{text.normal_header(value)}"
        for name, between, value in part.fields
    ]
    if not part.header.endswith(b"\n") and lines:
        return "\r\n".join(lines)
    return "".join(f"{line}\r\n" for line in lines) + ("\r\n" if part.complete else "")


def _body_text(message: Octets, part: Part) -> Iterator[str]:
    kinds = part.values("content-type")
    kind = content_type(kinds[-1])[0] if kinds else "text/plain"
    if part.children or part.multipart or not kind.startswith(("text/", "message/")):
        return
    pieces: Iterator[bytes] = (
        message[at : min(at + CHUNK_OCTETS, part.end)] for at in range(part.start, part.end, CHUNK_OCTETS)
    )
    encodings = part.values("content-transfer-encoding")
    match _encoding(encodings[-1]) if encodings else "7bit":
        case "7bit" | "8bit" | "binary":
            pass
        case "base64":
            pieces = text.base64_pieces(pieces)
        case "quoted-printable":
            pieces = text.quoted_printable_pieces(pieces)
        case _:
            return
    # The first Content-Type says the charset, though the last one whether it is text.
    charset = next((value for name, value in part.parameters if name == "charset"), "utf-8")
    yield from text.text_pieces(pieces, charset)


def _encoding(value: bytes) -> str:
    """Of a Content-Transfer-Encoding, lower case; "" when it is broken."""
    scanner = Scanner(value)
    try:
        scanner.skip()
        token = scanner.token()
    except Broken:
        return ""
    return token.decode("latin-1").lower() if scanner.peek() in (b"", b";") else ""


def holds(message: Octets, all_parts: Sequence[Part], key: str, *, with_headers: bool) -> bool:
    """Whether a part holds `key`, which is in normal form and not empty; never across two parts."""
    return any(text.holds(text_of(message, part, with_header=with_headers), key) for part in all_parts)
