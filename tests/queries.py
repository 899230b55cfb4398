"""Hypothesis: small mailboxes and queries that have something to find in them."""

from __future__ import annotations

import base64
import quopri
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

TEXTS: Final = (
    "apple",
    "Apple pie",
    "two  blanks",
    "Grüße aus Köln",
    "straße",
    "Привет мир",
    "ạ̄ ấ ﬁ ½ ǆ",
    "日本語 text",
    "한국어",
    "line one\nline two",
    'a=b "q" \\back',
)
DATES: Final = (
    "Fri, 10 Jan 2020 12:00:00 +0000",
    "Sat, 15 Feb 2020 23:30 -0500",
    "1 Jan 99 1:02:03 EST",
    "Mon, 1 Jul 2024 00:30:00 +0900 (JST)",
    "31 Dec 2023 23:59:60 GMT",
    "Wed, 31 Feb 2024 10:00:00 +0000",
    "Thu, 1 Jan 1970 00:00:00 +0000",
    "not a date",
    "",
)
ADDRESSES: Final = (
    "alice@example.org",
    "Alice Liddell <alice@example.org>",
    '"Bob, the Builder" <BOB@example.net>, carol@x.example (Carol C.)',
    "=?utf-8?q?J=C3=BCrgen?= <j@example.org>",
    "Jürgen Müller <j@example.org>",
    "undisclosed-recipients:;",
    "Friends: a@b.example, C D <c@d.example>;, x@y.example",
    "just a name",
    "word",
    "<@relay.example:route@example.org>",
    "broken <a@b",
    "a@[192.0.2.1], .dots..in@example.org",
    '"quoted \\"local\\""@example.org',
    "one@a.example two@b.example",
    ", ,a@b.example,",
    "(comment only)",
    "<>",
    "a b c: d",
)
KEYS: Final = (
    "apple",
    "APPLE",
    "pie",
    "two blanks",
    "two  blanks",
    "gru",
    "grüße",
    "köln",
    "koln",
    "STRASSE",
    "straße",
    "мир",
    "ấ",
    "â",
    "fi",
    "½",
    "1",
    "本",
    "한",
    "국어",
    "one\nline",
    "one\r\nline",
    "line two",
    "=C3",
    "a=b",
    '"q"',
    "\\back",
    "example",
    "alice@example.org",
    "Alice",
    '"Bob, the Builder" <bob',
    "Carol C",
    "jürgen",
    "MISSING",
    ">, <",
    "a b",
    ";",
    "report",
    "durian",
    "inner",
    "Subject: ",
    "\r\n",
    "preamble",
    "<b>",
    "",
)
FIELD_NAMES: Final = ("X-Tag", "x-empty", "List-Id", "Message-ID", "X-None", "Received")
KEYWORDS: Final = ("$Forwarded", "Work")
MAILBOXES: Final = ("INBOX", "Sent", "Arch/2023")
MOMENTS: Final = (1578657600, 1581809400, 1614556800, 1672531199, 1709208000, 1709251200, 1719792000)


@dataclass(frozen=True, slots=True)
class Written:
    """A message as it lies in a Maildir."""

    mailbox: str
    base: str
    letters: str
    new: bool
    moment: int
    octets: bytes

    @property
    def name(self) -> str:
        """Of its file."""
        return self.base if self.new else f"{self.base}:2,{self.letters}"


def _encoded_words(text: str) -> SearchStrategy[str]:
    raw = text.replace("\n", " ")
    utf8 = base64.b64encode(raw.encode()).decode()
    quoted = "".join(f"={octet:02X}" if octet > 126 or octet in b"=?_ " else chr(octet) for octet in raw.encode())
    return st.sampled_from(
        [
            raw,
            f"=?utf-8?B?{utf8}?=",
            f"=?UTF-8?q?{quoted}?=",
            f"fold\n  {raw}",
            f"tab\n\t{raw}",
            f"=?x-none?q?{quoted}?= x",
        ]
    )


def _header() -> SearchStrategy[str]:
    texts = st.sampled_from(TEXTS).flatmap(_encoded_words)
    lines = st.one_of(
        texts.map("Subject: {}".format),
        texts.map("X-Tag: {}".format),
        texts.map("X-Tag:{}".format),
        st.sampled_from(ADDRESSES).map("From: {}".format),
        st.sampled_from(ADDRESSES).map("To: {}".format),
        st.sampled_from(ADDRESSES).map("Cc: {}".format),
        st.sampled_from(DATES).map("Date: {}".format),
        st.just("X-Empty:"),
        st.just("List-Id: <dev.list>"),
        st.just("no colon here"),
    )
    return st.lists(lines, max_size=6).map(lambda each: "".join(f"{line}\n" for line in each))


@st.composite
def _part(draw: st.DrawFn, depth: int = 0) -> bytes:
    """A MIME header and body, without what stands before them."""
    kind = draw(st.sampled_from(["plain", "html", "qp", "base64", "latin", "binary", "message", "mixed", "odd"]))
    text = draw(st.sampled_from(TEXTS)) + "\n"
    if depth > 2 and kind in ("mixed", "message"):
        kind = "plain"
    match kind:
        case "plain":
            return b"Content-Type: text/plain; charset=utf-8\n\n" + text.encode()
        case "html":
            return b'Content-Type: text/html; charset="utf-8"\n\n<b>' + text.encode() + b"</b>\n"
        case "qp":
            body = quopri.encodestring((text * 3).encode())
            return b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n" + body
        case "base64":
            body = base64.encodebytes(text.encode())
            return b"Content-Type: TEXT/PLAIN; CHARSET=UTF-8\nContent-Transfer-Encoding: BASE64\n\n" + body
        case "latin":
            return b"Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: 8bit\n\n" + text.encode(
                "latin-1", "replace"
            )
        case "binary":
            return (
                b"Content-Type: application/octet-stream; name=a.bin\n"
                b'Content-Disposition: attachment; filename="report.pdf"\n'
                b"Content-ID: <part@id>\nContent-Description: A report\n"
                b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(text.encode())
            )
        case "message":
            inner = draw(_header()).encode() + b"Subject: inner durian\n"
            body = draw(st.one_of(st.just(b"\n" + text.encode()), _part(depth + 1)))
            return b"Content-Type: message/rfc822\n\n" + inner + body
        case "odd":
            return draw(st.sampled_from([
                b"Content-Type: text\n\nodd " + text.encode(),
                b"Content-Type: text/plain; charset=x-none\n\nodd " + text.encode(),
                b"Content-Type: text/plain\nContent-Transfer-Encoding: x-uu\n\nodd " + text.encode(),
                b"Content-Type: application/x-a\nContent-Type: text/plain\n\nodd " + text.encode(),
                b"X-Tag: part\n\nodd " + text.encode(),
            ]))  # fmt: skip
    boundary = draw(st.sampled_from([b"mix", b"mix2", b"mix--", b"="]))
    subtype = draw(st.sampled_from([b"mixed", b"alternative", b"digest"]))
    inside = draw(st.lists(_part(depth + 1), min_size=0, max_size=3))
    ends = draw(st.sampled_from([b"\n--" + boundary + b"--\nepilogue\n", b"\n", b""]))
    parts = b"".join(b"\n--" + boundary + b"\n" + each for each in inside)
    return b"Content-Type: multipart/" + subtype + b'; boundary="' + boundary + b'"\n\npreamble' + parts + ends


@st.composite
def _octets(draw: st.DrawFn) -> bytes:
    header = draw(_header()).encode()
    body = draw(
        st.one_of(st.sampled_from(TEXTS).map(lambda text: b"\n" + text.encode() + b"\n"), _part(), st.just(b""))
    )
    octets = header + body
    return octets.replace(b"\n", b"\r\n") if draw(st.booleans()) else octets


@st.composite
def mailboxes(draw: st.DrawFn) -> list[Written]:
    """Three to eight messages over three mailboxes; none is empty of octets."""
    written = []
    for number in range(draw(st.integers(3, 8))):
        new = draw(st.booleans())
        letters = "" if new else "".join(sorted(draw(st.sets(st.sampled_from("DFRSTab"), max_size=4))))
        written.append(
            Written(
                mailbox=draw(st.sampled_from((*MAILBOXES, "INBOX", "INBOX"))),
                base=f"150000{number:04}.q.fx",
                letters=letters,
                new=new,
                moment=draw(st.sampled_from(MOMENTS)),
                octets=draw(_octets()) or b"x",
            )
        )
    return written


def _day(seconds: int) -> SearchStrategy[str]:
    moment = time.gmtime(seconds)
    iso, imap = time.strftime("%Y-%m-%d", moment), time.strftime("%d-%b-%Y", moment)
    return st.sampled_from([iso, imap, imap.lstrip("0"), str(seconds), str(seconds + 1)])


_FLAG_WORDS: Final = ("ANSWERED", "DELETED", "DRAFT", "FLAGGED", "SEEN")
_SENT_DAYS: Final = (
    "2020-01-10",
    "15-Feb-2020",
    "16-Feb-2020",
    "1999-01-01",
    "1-Jul-2024",
    "30-Jun-2024",
    "1970-01-01",
)


def leaves(*, sequences: bool) -> SearchStrategy[list[str]]:
    """The words of one key with its values."""
    keys = st.sampled_from(KEYS)
    days = st.sampled_from(MOMENTS).flatmap(_day)
    sets = st.sampled_from(["1", "2:3", "*", "1,3", "5:*", "9:*", "2,*", "*:2", "1:"])
    parts = st.sampled_from([
        ["TYPE", "text"], ["TYPE", "MULTIPART"], ["SUBTYPE", "html"], ["FILENAME", "CONTAINS", "REPORT"],
        ["FILENAME", "IS", "report.pdf"], ["FILENAME", "BEGINS", "rep"], ["FILENAME", "ENDS", "pdf"],
        ["ENCODING", "base64"], ["ENCODING", "7bit"], ["DEPTH", "1"], ["DEPTH", "MIN", "2"], ["INDEX", "2"],
        ["PARAM", "charset", "utf"], ["PARAM", "charset", "ascii"], ["DISPOSITION", "TYPE", "attachment"],
        ["DISPOSITION", "PARAM", "filename", ""], ["ID", "<part@id>"], ["DESCRIPTION", "report"],
        ["SIZE", "LARGER", "40"], ["SIZE", "SMALLER", "20"], ["CHILD", "EXISTS"], ["PARENT", "NOT", "EXISTS"],
        ["PARENT", "SUBTYPE", "mixed"], ["CHILD", "TYPE", "text"], ["SUBJECT", "durian"], ["FROM", "alice@"],
        ["(", "TYPE", "text", "NOT", "SUBTYPE", "plain", ")"], ["OR", "SUBTYPE", "html", "ENCODING", "base64"],
        ["NOT", "TYPE", "text"],
    ])  # fmt: skip
    choices = [
        st.sampled_from([[word] for flag in _FLAG_WORDS for word in (flag, f"UN{flag}", flag.lower())]),
        st.sampled_from([["ALL"], ["RECENT"], ["OLD"], ["NEW"], ["SAVEDATESUPPORTED"]]),
        st.tuples(st.sampled_from(["KEYWORD", "UNKEYWORD"]), st.sampled_from([*KEYWORDS, "work", "nope"])),
        st.tuples(st.sampled_from(["BEFORE", "ON", "SINCE"]), days),
        st.tuples(st.sampled_from(["SENTBEFORE", "SENTON", "SENTSINCE"]), st.one_of(days, st.sampled_from(_SENT_DAYS))),
        st.tuples(st.sampled_from(["SAVEDBEFORE", "SAVEDSINCE"]), st.sampled_from(["1days", "2020-01-01", "0"])),
        st.tuples(st.sampled_from(["OLDER", "YOUNGER"]), st.sampled_from(["86400", "190000000", "0", "1w"])),
        st.tuples(st.sampled_from(["SINCE", "BEFORE"]), st.sampled_from(["150w", "1000 days", "3y", "5h", "60000ms"])),
        st.tuples(st.sampled_from(["LARGER", "SMALLER"]), st.sampled_from(["0", "60", "150", "200", "300", "1k", "x"])),
        st.tuples(st.sampled_from(["FROM", "TO", "CC", "BCC", "SUBJECT"]), keys),
        st.tuples(st.just("HEADER"), st.sampled_from(FIELD_NAMES), keys),
        st.tuples(st.sampled_from(["BODY", "TEXT"]), keys),
        st.tuples(st.sampled_from(["BODY", "TEXT"]), keys),
        st.tuples(st.just("UID"), sets),
        st.tuples(st.sampled_from(["GUID", "X-GUID"]), st.sampled_from(["1500000001.q.fx", "x"])),
        st.tuples(st.just("MAILBOX"), st.sampled_from(["INBOX", "inb*", "Arch*", "%", "Arch/%", "*"])),
        st.tuples(st.just("INTHREAD"), st.sampled_from(["REFS", "REFERENCES"]), st.sampled_from(["SEEN", "FLAGGED"])),
        parts.map(lambda words: ["MIMEPART", *words]),
    ]
    if sequences:
        choices.append(sets.map(lambda word: [word]))
    return st.one_of([choice.map(list) for choice in choices])


@dataclass(frozen=True, slots=True)
class Node:
    """A query as a tree: a leaf has words, NOT has one node, AND and OR have some."""

    kind: Literal["leaf", "not", "and", "or"]
    words: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()

    def written(self) -> list[str]:
        """As an item of a list."""
        if self.kind == "leaf":
            return list(self.words)
        if self.kind == "not":
            return ["NOT", *self.nodes[0].written()]
        return ["(", *self.listed(), ")"]

    def listed(self) -> list[str]:
        """Without the parentheses around it."""
        if self.kind in ("leaf", "not"):
            return self.written()
        between = ["OR"] if self.kind == "or" else []
        first, *rest = (node.written() for node in self.nodes)
        return [*first, *(word for words in rest for word in (*between, *words))]

    def all_leaves(self, *, under_not: bool = False) -> Iterator[tuple[tuple[str, ...], bool]]:
        """Words of each leaf, and whether a NOT of a list stands above it."""
        if self.kind == "leaf":
            yield self.words, under_not
        for node in self.nodes:
            below = under_not or (self.kind == "not" and node.kind != "leaf")
            yield from node.all_leaves(under_not=below)


def queries(*, sequences: bool = False) -> SearchStrategy[Node]:
    """Mostly right ones, of up to about six keys."""

    def wider(nodes: SearchStrategy[Node]) -> SearchStrategy[Node]:
        lists = st.lists(nodes, min_size=1, max_size=3).map(tuple)
        return st.one_of(
            nodes.map(lambda node: Node("not", nodes=(node,))),
            lists.map(lambda several: Node("and", nodes=several)),
            lists.map(lambda several: Node("or", nodes=several)),
        )

    leaf = leaves(sequences=sequences).map(lambda words: Node("leaf", words=tuple(words)))
    return st.recursive(leaf, wider, max_leaves=6).filter(fair)


_MERGED: Final = {"OLDER": "BEFORE", "YOUNGER": "SINCE"}


def fair(query: Node) -> bool:
    """False where doveadm 2.3.19 does not do what the words say (each was seen).

    It merges keys of one kind under NOT to the wrong bound (`NOT LARGER 1 NOT LARGER 2`), drops what stands twice in
    lists of an OR, walks only the mailboxes that stand in a list under NOT, and panics at NOT INTHREAD.
    """
    kinds: list[tuple[str, ...]] = []
    for words, under_not in query.all_leaves():
        words = (words[0].upper().removeprefix("X-"), *words[1:])  # X-GUID and GUID are one
        key = words[0]
        if under_not and key in ("MAILBOX", "INTHREAD"):
            return False
        alone = key.endswith(("BEFORE", "ON", "SINCE", "LARGER", "SMALLER", "OLDER", "YOUNGER"))
        kinds.append((_MERGED.get(key, key),) if alone and key != "SAVEDATESUPPORTED" else tuple(map(str.upper, words)))
        if key in ("UID", "INTHREAD") or key[:1] in "0123456789*":
            kinds[-1] = ("a set",)
    inthread_denied = any(
        node.kind == "not" and node.nodes[0].kind == "leaf" and node.nodes[0].words[0] == "INTHREAD"
        for node in _all_nodes(query)
    )
    return len(set(kinds)) == len(kinds) and not inthread_denied


def _all_nodes(query: Node) -> Iterator[Node]:
    yield query
    for node in query.nodes:
        yield from _all_nodes(node)
