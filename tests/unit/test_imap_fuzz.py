"""Any octets of a server give values or `ProtocolError`; what we say to one is read back as it was meant.

Seeds are the RFCs' own examples and lines of real servers, changed as a broken or hostile server
would; commands are read by a small tokenizer of this file, which knows nothing of the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport import flags, names
from aimport.errors import ProtocolError
from aimport.imap import answers
from aimport.imap.commands import (
    MINUS_OCTETS,
    Burst,
    LargeLiteral,
    LiteralPolicy,
    Word,
    append_words,
    astring,
    encode,
    octet_string,
    uid_sets,
)
from aimport.imap.fragments import FragmentReader
from aimport.imap.responses import Fetch, Response, append_uids, capabilities, date_time, parse, uid_set
from tests.examples import seeds, spaced
from tests.linear import assert_linear
from tests.strategies import keywords, system_flags

MAX_LINE, MAX_LITERAL = 5_000, 20_000

# What a server says


def outcome(pieces: Iterable[bytes]) -> tuple[list[Response], str]:
    """The values of a stream up to where it breaks the protocol, and how."""
    reader = FragmentReader(max_line=MAX_LINE, max_literal=MAX_LITERAL)
    found: list[Response] = []
    try:
        for piece in pieces:
            found += [parse(fragments) for fragments in reader.feed(piece)]
    except ProtocolError as error:
        return found, error.text
    return found, ""


_NUMBER = re.compile(rb"\d+")
NUMBERS = [b"0", b"-1", b"00000000001", b"4294967295", b"4294967296", b"18446744073709551616", b"9" * 30, b"9" * 4000]
NUMBERS += [b"1e9", b"0x10", "\u0663".encode(), b"1:*", b""]
TOKENS = [b"(", b")", b'"', b"\\", b"{5}\r\n", b"{0}\r\n", b"~{3}\r\nabc", b"\r\n", b"\r", b"\n", b"\0", b"\xff", b" "]
TOKENS += [b"NIL", b"BODY[]", b"BODY[HEADER.FIELDS (", b"[", b"]", b"* ", b"+ ", b"UID 7 ", b"FLAGS (\\Seen)", b"<0>"]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A few responses, damaged."""
    data = b"".join(draw(st.lists(st.sampled_from(seeds()), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 6))):
        low, high = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.sampled_from(["splice", "cut", "repeat", "insert", "octets", "number", "nest", "case"])):
            case "splice":
                other = draw(st.sampled_from(seeds()))
                data = data[:low] + other[draw(st.integers(0, len(other))) :]
            case "cut":
                data = data[:low] + data[high:]
            case "repeat":
                data = data[:low] + data[low:high][:200] * draw(st.integers(2, 40)) + data[high:]
            case "insert":
                data = data[:low] + draw(st.sampled_from(TOKENS)) + data[low:]
            case "octets":
                data = data[:low] + draw(st.binary(max_size=8)) + data[low:]
            case "number":
                spans = [match.span() for match in _NUMBER.finditer(data)]
                if spans:
                    low, high = draw(st.sampled_from(spans))
                    data = data[:low] + draw(st.sampled_from(NUMBERS)) + data[high:]
            case "nest":
                depth = draw(st.sampled_from([1, 10, 49, 50, 51, 2000]))
                data = data[:low] + b"(" * depth + data[low:high] + b")" * depth + data[high:]
            case _:
                data = data[:low] + data[low:high].swapcase() + data[high:]
    return data


cuts = st.lists(st.integers(0, 10_000), max_size=12)


def chunks(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({min(place, len(data)) for place in places}), len(data)]
    return [data[low:high] for low, high in pairwise(edges)]


@given(mutated(), cuts)
def test_damaged_responses_give_values_or_a_protocol_error_in_any_chunks(data: bytes, places: list[int]) -> None:
    """What fails within a chunk takes the values of that chunk with it, and no others."""
    alone, error = outcome([data[at : at + 1] for at in range(len(data))])
    for pieces in ([data], chunks(data, places)):
        values, said = outcome(pieces)
        assert values == alone[: len(values)]
        assert bool(said) == bool(error)
        assert said or len(values) == len(alone)
    for value in alone:
        assert repr(value)


@given(st.text(max_size=40), st.binary(max_size=40))
def test_arguments_of_codes_are_read_or_refused(text: str, octets: bytes) -> None:
    for args in (text, octets.decode("latin-1")):
        assert all(name == name.upper() for name in capabilities(args))
        moment = date_time(args)
        assert moment is None or moment.tzinfo is not None
        for read in (uid_set, append_uids):
            try:
                read(args)
            except ProtocolError:
                pass


@given(
    st.permutations(
        [
            *(b"UID 7", b"FLAGS (\\Seen k)", b"FLAGS ()", b'INTERNALDATE "17-Jul-1996 02:44:25 -0700"'),
            *(b"UID 4294967296", b"FLAGS (\\Seen  NIL caf\xe9)", b"FLAGS (a[b] c)", b'INTERNALDATE ""'),
            *(b"RFC822.SIZE 5", b"INTERNALDATE NIL", b"MODSEQ (3)", b"uid 8", b"BODY[1] NIL", b"RFC822.SIZE 1e3"),
        ]
    ),
    st.integers(0, 6),
    st.sampled_from([b"", b"\r\n", b"x)\r\n* 1 FETCH (UID 9)\r\n"]),
)
def test_the_short_ways_give_what_the_long_way_gives(items: list[bytes], count: int, body: bytes) -> None:
    """Extra spaces take any line past the regular expressions for the usual lines."""
    start = b"* 12 FETCH (" + b" ".join(items[:count])
    for line in ((start + b")",), (start + b" " * (count > 0) + b"BODY[] ", body, b")")):
        short, long = parse(line), parse(spaced(line))
        assert short == long
        assert isinstance(short, Fetch)


@given(
    st.lists(st.sampled_from([b"\\Noselect", b"\\HASCHILDREN", b"\\Sent", b"x"]), max_size=3),
    st.sampled_from([b'"/"', b'"."', b'"\\\\"', b'"\\""', b"NIL", b'""', b'"]"']),
    st.sampled_from([b"INBOX", b'"a b"', b'""', b'"a\\"b\\\\c"', b'"caf\xe9\t"', b"caf\xe9", b"a]b", b"NIL", b"a\\b"]),
)
def test_the_short_way_of_list_is_the_long_one(attributes: list[bytes], separator: bytes, name: bytes) -> None:
    line = b"* LIST (%s) %s %s" % (b" ".join(attributes), separator, name)
    assert parse((line,)) == parse(spaced((line,)))


# Time


def read_all(data: bytes, size: int) -> None:
    reader = FragmentReader()
    try:
        for at in range(0, len(data), size):
            for fragments in reader.feed(data[at : at + size]):
                parse(fragments)
    except ProtocolError:
        pass


FETCH = b"* 1 FETCH ("
LINES: dict[str, tuple[bytes, bytes, bytes]] = {
    "escapes": (FETCH + b'X "', b'\\"', b'")'),
    "escapes, open": (FETCH + b'X "', b'\\"', b""),
    "quotes in a code": (b"* OK [A ", b'"a', b"] x"),
    "brackets": (b"* OK [A", b" [", b"] x"),
    "spaces": (b"* OK [A ", b" ", b"x"),
    "spaces in a list": (FETCH, b" ", b"x"),
    "sections": (FETCH, b"BODY[", b")"),
    "sections apart": (FETCH, b"BODY[ ", b")"),
    "sections with strings": (FETCH, b'BODY["a"', b")"),
    "sections with open strings": (FETCH, b'BODY["a ', b")"),
    "sections that end": (FETCH, b"BODY[1] NIL ", b"x"),
    "lists": (FETCH + b"X ", b"()", b")"),
    "items": (FETCH, b"UID 1 ", b"X)"),
    "flag lists": (FETCH, b"FLAGS () ", b"X)"),
    "flags": (FETCH + b"FLAGS (", b"ab ", b") x"),
    "dates": (FETCH, b'INTERNALDATE "" ', b"X)"),
    "digits": (FETCH + b"UID ", b"9", b")"),
    "zeros": (FETCH + b"RFC822.SIZE 1.", b"0", b"e5)"),
    "labels": (FETCH + b"X-GM-LABELS (", b'"a" ', b"))"),
    "literals": (FETCH + b"X (", b" {1}\r\na", b"))"),
    "empty literals": (b"* X", b" {0}\r\n", b""),
    "numbers": (b"* SEARCH", b" 1", b" x"),
    "names": (b'* LIST () "/" "', b"a\\\\", b'"'),
    "attributes": (b"* LIST (", b"\\a ", b') "/" "" x'),
    "an unquoted name": (b'* LIST () "/" ', b"a ", b'"'),
    "extended data": (b'* LIST () "/" x (', b'"a" "b" ', b")"),
    "status items": (b"* STATUS x (", b"X 1 ", b")"),
    "results": (b"* ESEARCH", b" ALL 1", b""),
    "namespaces": (b"* NAMESPACE (", b'("" "/")', b") NIL NIL"),
    "capabilities": (b"* CAPABILITY", b" X", b""),
    "identity": (b"* ID (", b'"a" NIL ', b")"),
    "a tag": (b"", b"a", b" OK done"),
    "no end": (b"* X ", b"a", b""),
    "empty lines": (b"", b"\r\n", b""),
    "many responses": (b"", b"* 1 EXPUNGE\r\n", b""),
}


@pytest.mark.parametrize("size", [1 << 30, 100], ids=["whole", "chunks"])
@pytest.mark.parametrize(("before", "unit", "after"), LINES.values(), ids=LINES)
@pytest.mark.timeout(60)
def test_time_is_linear_in_what_a_server_sends(before: bytes, unit: bytes, after: bytes, size: int) -> None:
    assert_linear(lambda octets: read_all(before + unit * (octets // len(unit)) + after + b"\r\n", size), 50_000)


TEXTS = [
    "exceed",
    "exceeds ",
    "maximum number of ",
    "quota",
    "too many ",
    " ",
    "Suggested Backoff Time: 1",
    "&",
    "&AAA-",
]


@pytest.mark.parametrize("unit", [*TEXTS, "\u00fc", "\0", "a", "/"])
@pytest.mark.timeout(60)
def test_time_is_linear_in_a_servers_words_and_names(unit: str) -> None:
    """A `NO` with a megabyte of text held up all users for minutes."""

    def judge(octets: int) -> None:
        text = unit * (octets // len(unit))
        answers.error_for("NO", text, text)
        answers.clean(text)
        names.decode_utf7(text)
        names.decode_utf7(names.encode_utf7(text))
        names.split(text, "/")
        names.matches(text, "*a%/*a", "/")
        capabilities(text)
        flags.normalise([text, "\\" + text])
        flags.is_keyword(text)
        date_time(text)

    assert_linear(judge, 50_000)


# What we say


class Misread(AssertionError):
    """A server would not understand this, or would understand more than one command."""


def written_out(buffer: bytes | LargeLiteral) -> bytes:
    return buffer if isinstance(buffer, bytes) else b"".join(buffer.pieces())


def understand(bursts: Sequence[Burst]) -> list[bytes | list[bytes]]:
    """The one command in `bursts`, as a server reads it: tag, then atoms, strings and lists of atoms.

    A literal that does not wait ends no burst, one that waits does (RFC 7888 §3, §4).
    """
    written = [b"".join(map(written_out, burst)) for burst in bursts]
    data, edges = b"".join(written), set(accumulate(map(len, written[:-1])))
    words: list[bytes | list[bytes]] = []
    inner: list[bytes] | None = None
    at = 0
    word = re.compile(rb'"((?:[^"\\\r\n\0\x80-\xff]|\\["\\])*)"|\{(\d+)(\+?)\}\r\n|([^\x00-\x20(){"\x7f-\xff]+)|([()])')
    while True:
        match = word.match(data, at)
        if match is None:
            raise Misread(f"no word at {data[at : at + 40]!r}")
        quoted, size, plus, atom, bracket = match.groups()
        at = match.end()
        if bracket == b"(":
            if inner is not None:
                raise Misread("a list within a list")
            inner = []
        elif bracket == b")":
            if inner is None:
                raise Misread("a list that did not begin")
            words.append(inner)
            inner = None
        else:
            if size is not None:
                if (at in edges) is (plus == b"+"):
                    raise Misread("a literal that waits ends its burst, no other does")
                edges.discard(at)
                value = data[at : at + int(size)]
                at += len(value)
            elif quoted is not None:
                value = re.sub(rb"\\(.)", rb"\1", quoted)
            else:
                assert atom is not None
                value = atom
            if inner is None:
                words.append(value)
            else:
                inner.append(value)
        if data[at : at + 2] == b"\r\n":
            break
        if data[at : at + 1] == b" ":
            at += 1
        elif not (bracket == b"(" or data[at : at + 1] == b")"):
            raise Misread(f"two words without a space at {data[at : at + 40]!r}")
    if inner is not None or at + 2 != len(data) or edges:
        raise Misread("more, or less, than one command")
    return words


policies = st.sampled_from(LiteralPolicy)
# Whatever a source may call a mailbox or a keyword.
hostile = st.text(st.one_of(st.characters(), st.sampled_from('\r\n\0 "\\(){}%*&~+')), max_size=12)
sizes = st.sampled_from([0, 1, MINUS_OCTETS - 1, MINUS_OCTETS, MINUS_OCTETS + 1])
bodies = st.one_of(st.binary(max_size=40), sizes.map(lambda size: b"x" * size), st.just(b"a {3+}\r\nb LOGOUT\r\n"))
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(timezones=st.one_of(zones, st.just(UTC)))


@given(policies, st.lists(hostile, max_size=4))
def test_strings_are_read_back_as_they_were_meant(policy: LiteralPolicy, texts: list[str]) -> None:
    """I7: a name is a string or refused; nothing in it is a command."""
    words: list[Word] = []
    meant: list[bytes | list[bytes]] = []
    for text in texts:
        try:
            words.append(astring(text))
        except ValueError:
            assert re.search("[\0\r\n\ud800-\udfff]", text), "only what cannot be sent is refused"
        else:
            meant.append(text.encode())
    assert understand(encode("a1", [b"X", *words], policy)) == [b"a1", b"X", *meant]


@given(policies, st.binary(max_size=20))
def test_names_of_a_server_are_sent_back_octet_for_octet(policy: LiteralPolicy, name: bytes) -> None:
    try:
        word = octet_string(name)
    except ValueError:
        assert set(b"\0\r\n") & set(name)
    else:
        assert understand(encode("a1", [b"EXAMINE", word], policy)) == [b"a1", b"EXAMINE", name]


appended = st.tuples(st.frozensets(hostile, max_size=5), moments, bodies, st.booleans())


@given(policies, hostile, st.lists(appended, min_size=1, max_size=3))
def test_what_is_appended_is_read_back(
    policy: LiteralPolicy, name: str, messages: list[tuple[frozenset[str], datetime, bytes, bool]]
) -> None:
    """I7, I8: whatever flags a source has, bodies and dates arrive in one command, and only flags of the RFC."""
    mailbox = names.encode_utf7(name.encode("utf-8", "ignore").decode()).encode("ascii")
    words: list[Word] = [b"APPEND", octet_string(mailbox)]
    meant: list[bytes | list[bytes]] = [b"a1", b"APPEND", mailbox]
    for given_flags, moment, body, large in messages:
        sent = sorted(flag for flag in flags.normalise(given_flags) if flag[:1] == "\\" or flags.is_keyword(flag))
        pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
        words += append_words(sent, moment, LargeLiteral(len(body), partial(iter, pieces)) if large else body)
        meant += ([flag.encode("ascii") for flag in sent], b"", body)
    read = understand(encode("a1", words, policy))
    for place, (_, moment, _, _) in zip(range(4, len(read), 3), messages, strict=True):
        date = read[place]
        assert isinstance(date, bytes)
        assert date_time(date.decode()) == moment.replace(microsecond=0)
        read[place] = b""
    assert read == meant


@given(st.sets(st.one_of(system_flags, keywords, hostile)))
def test_flags_that_pass_are_those_of_the_grammar(given_flags: set[str]) -> None:
    """I8: flag-keyword is an atom, a system flag one of five (RFC 9051 §2.3.2, §9)."""
    for flag in flags.normalise(given_flags):
        if flag in flags.SYSTEM_FLAGS:
            continue
        assert not flag.startswith("\\")
        grammatical = re.fullmatch(r"[^\x00-\x20\x7f-\U0010ffff(){%*\"\\\]]+", flag) is not None
        assert flags.is_keyword(flag) is grammatical


@given(policies, st.sets(st.integers(1, 4_294_967_295), max_size=60), st.integers(20, 80))
def test_sets_of_uids_are_read_back(policy: LiteralPolicy, uids: set[int], octets: int) -> None:
    read: list[int] = []
    for one in uid_sets(sorted(uids), octets=octets):
        tag, uid, fetch, numbers, items = understand(encode("a1", [b"UID FETCH", one, b"(UID BODY.PEEK[])"], policy))
        assert (tag, uid, fetch, items) == (b"a1", b"UID", b"FETCH", [b"UID", b"BODY.PEEK[]"])
        assert isinstance(numbers, bytes)
        read += uid_set(numbers.decode())
    assert read == sorted(uids)


@pytest.mark.parametrize(
    "bursts",
    [
        [[b"a1 X {3}\r\nabc\r\n"]],
        [[b"a1 X {3+}\r\n"], [b"abc\r\n"]],
        [[b"a1 X\r\nb LOGOUT\r\n"]],
        [[b'a1 X "a\nb"\r\n']],
        [[b"a1 X (a\r\n"]],
        [[b"a1 X a)\r\n"]],
        [[b'a1 X"a"\r\n']],
    ],
)
def test_the_reader_of_this_file_refuses_what_a_server_would(bursts: list[Burst]) -> None:
    with pytest.raises(Misread):
        understand(bursts)
