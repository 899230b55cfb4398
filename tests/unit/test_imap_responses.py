"""Values of responses: the RFCs' examples, what servers really send, and any octets at all."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import ProtocolError
from aimport.imap.fragments import FragmentReader
from aimport.imap.responses import (
    Capability,
    Continuation,
    Enabled,
    Esearch,
    Exists,
    Expunge,
    Extended,
    Fetch,
    Flags,
    Listed,
    MailboxStatus,
    Namespace,
    Quota,
    Recent,
    Response,
    Search,
    ServerId,
    Tagged,
    Unknown,
    Untagged,
    Vanished,
    append_uids,
    capabilities,
    date_time,
    parse,
    uid_set,
)
from tests.large import Kept


def read(data: bytes) -> Response:
    [fragments] = FragmentReader().feed(data + b"\r\n")
    return parse(fragments)


EXAMPLES: list[tuple[bytes, Response]] = [
    # RFC 3501, 9051
    (b"* OK IMAP4rev1 Service Ready", Untagged(status="OK", text="IMAP4rev1 Service Ready")),
    (
        b"* PREAUTH [CAPABILITY IMAP4rev1] hi",
        Untagged(status="PREAUTH", code="CAPABILITY", args="IMAP4rev1", text="hi"),
    ),
    (b"* bye Autologout; idle for too long", Untagged(status="BYE", text="Autologout; idle for too long")),
    (b"* OK", Untagged(status="OK")),
    (
        b"* OK [UIDVALIDITY 3857529045] UIDs valid",
        Untagged(status="OK", code="UIDVALIDITY", args="3857529045", text="UIDs valid"),
    ),
    (
        rb"* OK [PERMANENTFLAGS (\Deleted \Seen \*)] Limited",
        Untagged(status="OK", code="PERMANENTFLAGS", args=r"(\Deleted \Seen \*)", text="Limited"),
    ),
    (
        b"* OK [HIGHESTMODSEQ 715194045007] x",
        Untagged(status="OK", code="HIGHESTMODSEQ", args="715194045007", text="x"),
    ),
    (b"a1 NO [ALERT] System shutdown", Tagged(tag="a1", status="NO", code="ALERT", text="System shutdown")),
    (
        b"A003 OK [APPENDUID 38505 3955] APPEND completed",
        Tagged(tag="A003", status="OK", code="APPENDUID", args="38505 3955", text="APPEND completed"),
    ),
    (
        b'a NO [BADCHARSET ("a]b" UTF-8)] x',
        Tagged(tag="a", status="NO", code="BADCHARSET", args='("a]b" UTF-8)', text="x"),
    ),
    (b"a BAD [oops text", Tagged(tag="a", status="BAD", text="[oops text")),
    (b"+ Ready for additional command text", Continuation(text="Ready for additional command text")),
    (b"+", Continuation(text="")),
    (b"* 23 EXISTS", Exists(number=23)),
    (b"* 5 RECENT", Recent(number=5)),
    (b"* 44 EXPUNGE", Expunge(number=44)),
    (
        b"* CAPABILITY IMAP4rev1 starttls AUTH=PLAIN",
        Capability(names=frozenset({"IMAP4REV1", "STARTTLS", "AUTH=PLAIN"})),
    ),
    (b"* ENABLED CONDSTORE X-GOOD", Enabled(names=frozenset({"CONDSTORE", "X-GOOD"}))),
    (rb"* FLAGS (\Answered NonJunk NIL)", Flags(flags=("\\Answered", "NonJunk", "NIL"))),
    (rb'* LIST (\Noselect) "/" ~/Mail/foo', Listed(flags=frozenset({"\\noselect"}), separator="/", name=b"~/Mail/foo")),
    (rb'* LIST () "\\" "a\"b\\c"', Listed(flags=frozenset(), separator="\\", name=b'a"b\\c')),
    (b"* LIST () NIL NIL", Listed(flags=frozenset(), separator="", name=b"NIL")),
    (b'* LIST () "." "star* mail"', Listed(flags=frozenset(), separator=".", name=b"star* mail")),
    (b'* LIST () "/" {7}\r\nfoo"\r\nx', Listed(flags=frozenset(), separator="/", name=b'foo"\r\nx')),
    (
        b'* LIST () "/" caf\xe9 ("CHILDINFO" ("SUBSCRIBED"))',
        Listed(flags=frozenset(), separator="/", name=b"caf\xe9", child_info=("SUBSCRIBED",)),
    ),
    # Exchange: control characters unquoted (MailKit issue 945), a space at the end (imap-codec pull 468)
    (b'* LIST () "/" \tTab\tand space', Listed(flags=frozenset(), separator="/", name=b"\tTab\tand space")),
    (b'* LIST () "/" INBOX ', Listed(flags=frozenset(), separator="/", name=b"INBOX")),
    (b"* STATUS INBOX (MESSAGES 0 UNSEEN 0 ) ", MailboxStatus(name=b"INBOX", items=(("MESSAGES", 0), ("UNSEEN", 0)))),
    (b"* SEARCH 1 2 3 ", Search(numbers=(1, 2, 3))),
    (b'* LSUB () "/" "&ZeVnLIqe-"', Listed(flags=frozenset(), separator="/", name=b"&ZeVnLIqe-")),
    (
        b"* STATUS blurdybloop (MESSAGES 231 UIDNEXT 44292)",
        MailboxStatus(name=b"blurdybloop", items=(("MESSAGES", 231), ("UIDNEXT", 44292))),
    ),
    (b"* SEARCH 2 84 882", Search(numbers=(2, 84, 882))),
    (b"* SEARCH", Search(numbers=())),
    (
        b'* ESEARCH (TAG "A285") UID MIN 7 MAX 3800 ALL 7,9:11',
        Esearch(tag="A285", uid=True, items=(("MIN", "7"), ("MAX", "3800"), ("ALL", "7,9:11"))),
    ),
    (b"* VANISHED (EARLIER) 41,43:116", Vanished(earlier=True, uids="41,43:116")),
    (b"* VANISHED 5", Vanished(earlier=False, uids="5")),
    (
        b'* NAMESPACE (("INBOX." ".")) (("user." ".") ("~" NIL)) NIL',
        Namespace(personal=((b"INBOX.", "."),), others=((b"user.", "."), (b"~", "")), shared=()),
    ),
    (b'* ID ("name" "Dovecot" "version" NIL)', ServerId(items=(("name", "Dovecot"), ("version", "")))),
    (b"* ID NIL", ServerId(items=())),
    (b'* QUOTA "" (STORAGE 10 512)', Quota(root=b"", resources=(("STORAGE", 10, 512),))),
    (b"* XYZZY {3}\r\nabc (((", Unknown(name="XYZZY", fragments=(b"* XYZZY ", b"abc", b" ((("))),
    (b"* 3 FROB (", Unknown(name="FROB", fragments=(b"* 3 FROB (",))),
    # FETCH as Dovecot, Cyrus, Courier and Gmail send it
    (b"* 12 FETCH (UID 7 RFC822.SIZE 4286)", Fetch(seq=12, uid=7, size=4286)),
    (b"* 12 FETCH (RFC822.SIZE 4286 UID 7)", Fetch(seq=12, uid=7, size=4286)),
    (
        b'* 12 FETCH (FLAGS (\\Seen $Forwarded) INTERNALDATE "17-Jul-1996 02:44:25 -0700" UID 7 BODY[] {3}\r\na\r\n)',
        Fetch(
            seq=12,
            uid=7,
            flags=("\\Seen", "$Forwarded"),
            internal_date="17-Jul-1996 02:44:25 -0700",
            body=b"a\r\n",
            has_body=True,
        ),
    ),
    (
        b'* 1 FETCH (X-GM-LABELS ("\\\\Inbox" foo) BODY[] "q\\"" MODSEQ (12))',
        Fetch(seq=1, body=b'q"', has_body=True, extended=Extended(modseq=12, gm_labels=(b"\\Inbox", b"foo"))),
    ),
    (b"* 1 FETCH (UID 3 BODY[] NIL FLAGS ())", Fetch(seq=1, uid=3, flags=(), body=None, has_body=True)),
    (b"* 1 FETCH (BODY[HEADER.FIELDS (DATE FROM)] {2}\r\nxx BODY[]<0> {1}\r\ny)", Fetch(seq=1)),
    (b'* 1 FETCH (BODY ("TEXT" "PLAIN" ("CHARSET" "x") NIL NIL "7BIT" 3 1) UID 5)', Fetch(seq=1, uid=5)),
    (b"* 1 FETCH (INTERNALDATE NIL UID 5)", Fetch(seq=1, uid=5)),
    (b"* 1 fetch (uid 5 body[] {1}\r\nx)", Fetch(seq=1, uid=5, body=b"x", has_body=True)),
]


@pytest.mark.parametrize(
    ("data", "value"), EXAMPLES, ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else ""
)
def test_responses_have_these_values(data: bytes, value: Response) -> None:
    assert read(data) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"*",
        b"* ",
        b"a1",
        b"a1 OKAY",
        b"a1 BYE x",
        b"*  OK",
        b"* \xff x",
        b"* 1 FETCH",
        b"* 1 FETCH UID 3",
        b"* 1 FETCH (UID)",
        b"* 1 FETCH (UID -3)",
        b"* 1 FETCH (UID \xd9\xa3)",
        b"* 1 FETCH (UID 123456789012345678901)",
        b"* 1 FETCH (UID 3",
        b"* 1 FETCH (UID 3))",
        b'* 1 FETCH (UID "3)',
        b"* 1 FETCH ((UID) 3)",
        b"* 1 FETCH (FLAGS \\Seen)",
        b"* 1 FETCH (FLAGS ((a)))",
        b"* 1 FETCH (BODY[] (a))",
        b"* 1 FETCH (BODY[] {5)",
        b"* LIST",
        b"* LIST () /",
        b'* LIST () "//" x',
        b'* LIST () "/" (x)',
        b"* STATUS x",
        b"* STATUS x (MESSAGES)",
        b"* STATUS x (MESSAGES y)",
        b"* SEARCH x",
        b"* NAMESPACE NIL",
        b'* NAMESPACE (("")) NIL NIL',
        b"* VANISHED",
        b"* ESEARCH MIN",
        b'* QUOTA "" (STORAGE 10)',
        b"* QUOTA",
        b"* QUOTAROOT",
        b"* FLAGS",
        b"* 1 FETCH (MODSEQ 3)",
        b"* 1 FETCH (MODSEQ ())",
        b"* 1 FETCH (EMAILID ((x)))",
        b"* 1 FETCH (X-GM-LABELS x)",
        b"* 1 FETCH (RFC822.SIZE 9.3e)",
        b"* 1 FETCH (RFC822 x)",
        b'* LIST () "/" x y (z)',
        b'* LIST () "/" \tx (CHILDINFO ("SUBSCRIBED"))',
        b"* CAPABILITY (a)",
    ],
)
def test_what_breaks_the_grammar_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(data)


def spilt(data: bytes) -> Response:
    """As `read`; no literal is held."""
    [fragments] = FragmentReader(spill=Kept).feed(data + b"\r\n")
    return parse(fragments)


def test_a_body_may_be_a_sink_and_so_may_what_nobody_reads() -> None:
    fetch = spilt(b"* 1 FETCH (UID 7 BODY[] {5}\r\nhello X-A {1}\r\na X-B ({2}\r\nbc) FLAGS (\\Seen))")
    assert isinstance(fetch, Fetch)
    assert isinstance(fetch.body, Kept)
    assert fetch.body.whole() == b"hello"
    assert (fetch.uid, fetch.has_body, fetch.flags) == (7, True, ("\\Seen",))
    unknown = spilt(b"* XYZ {3}\r\nabc")
    assert isinstance(unknown, Unknown)
    assert isinstance(unknown.fragments[1], Kept)
    assert unknown.fragments[1].whole() == b"abc"


@pytest.mark.parametrize(
    "data",
    [
        b"* 1 FETCH ({3}\r\nUID 3)",
        b"* 1 FETCH (UID {1}\r\n3)",
        b"* 1 FETCH (RFC822.SIZE {1}\r\n3)",
        b"* 1 FETCH (FLAGS ({1}\r\na))",
        b"* 1 FETCH (FLAGS {1}\r\na)",
        b"* 1 FETCH (INTERNALDATE {26}\r\n17-Jul-1996 02:44:25 -0700)",
        b"* 1 FETCH {8}\r\n(UID 3) ",
        b'* LIST () "/" {1}\r\na',
        b"* LIST () {1}\r\n/ a",
        b"* LIST ({1}\r\na) NIL a",
        b"* STATUS {1}\r\na (MESSAGES 1)",
        b"* STATUS a (MESSAGES {1}\r\n1)",
        b"* SEARCH {1}\r\n3",
        b"* ESEARCH (TAG {1}\r\na) UID",
        b"* ESEARCH MIN {1}\r\n3",
        b'* NAMESPACE (({1}\r\na "/")) NIL NIL',
        b'* NAMESPACE (("" {1}\r\n/)) NIL NIL',
        b"* VANISHED {1}\r\n3",
        b"* FLAGS ({1}\r\na)",
        b"* CAPABILITY {1}\r\na",
        b"* ID ({1}\r\na NIL)",
        b"* QUOTA {1}\r\na (STORAGE 1 2)",
    ],
)
def test_a_sink_is_no_string_number_or_list(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        spilt(data)


def test_fragments_in_the_wrong_places_are_a_protocol_error() -> None:
    for fragments in ((Kept(0),), (b"* 1 FETCH (X ", b"", Kept(0))):
        with pytest.raises(ProtocolError, match="a literal stands"):
            parse(fragments)


def test_deep_nesting_is_refused_without_recursion() -> None:
    assert read(b"* 1 FETCH (X " + b"(" * 49 + b")" * 49 + b")") == Fetch(seq=1)
    with pytest.raises(ProtocolError, match="deeper than 50"):
        read(b"* 1 FETCH (X " + b"(" * 400_000)


TOKENS = [b"* ", b"1 ", b"FETCH ", b"LIST ", b"STATUS ", b"ESEARCH ", b"NAMESPACE ", b"ID ", b"QUOTA ", b"a1 ", b"OK "]
TOKENS += [
    b"(",
    b")",
    b'"',
    b"\\",
    b"NIL",
    b" ",
    b"[",
    b"]",
    b"{2}\r\nab",
    b"BODY[] ",
    b"UID 1",
    b"FLAGS ",
    b"x",
    b"<0>",
]


@given(st.one_of(st.binary(), st.lists(st.sampled_from(TOKENS)).map(b"".join)))
def test_any_octets_give_a_value_or_a_protocol_error(data: bytes) -> None:
    """Spilt literals change no value; they are refused in more places."""

    def values(reader: FragmentReader) -> tuple[list[Response], bool]:
        found: list[Response] = []
        try:
            found.extend(map(as_held, map(parse, reader.feed(data + b"\r\n"))))
        except ProtocolError:
            return found, False
        return found, True

    held, whole = values(FragmentReader(max_line=10_000, max_literal=10_000))
    spilt, also_whole = values(FragmentReader(max_line=10_000, max_literal=10_000, spill=Kept))
    assert spilt == held if also_whole else spilt == held[: len(spilt)]
    assert whole or not also_whole


def as_held(response: Response) -> Response:
    """Sinks as what they took."""
    match response:
        case Fetch(body=Kept() as sink):
            return replace(response, body=sink.whole())
        case Unknown(fragments=fragments):
            return replace(
                response, fragments=tuple(each.whole() if isinstance(each, Kept) else each for each in fragments)
            )
    return response


@pytest.mark.parametrize(
    "data", [b'* 1 FETCH (X "' + b'\\"' * 400_000, b"* OK [A " + b'"a' * 400_000, b"* 1 FETCH (" + b"BODY[" * 200_000]
)
@pytest.mark.timeout(20)
def test_hostile_lines_take_linear_time(data: bytes) -> None:
    try:
        read(data)
    except ProtocolError:
        pass


def test_sets_of_uids_keep_their_order_and_are_bounded() -> None:
    assert append_uids("38505 3955,7:9,2") == (38505, (3955, 7, 8, 9, 2))
    assert uid_set("9:7") == (7, 8, 9)
    assert len(uid_set("1:64", limit=64)) == 64
    for bad in ("1:65", "1:4294967295", "4294967295:1,5"):
        with pytest.raises(ProtocolError, match="more than 64"):
            uid_set(bad, limit=64)
    for bad in ("", "*", "1:*", "1,", "a", "1:2:3", "-1"):
        with pytest.raises(ProtocolError):
            uid_set(bad)
    with pytest.raises(ProtocolError):
        append_uids("38505")


def test_capabilities_are_upper_case() -> None:
    assert capabilities("IMAP4rev1 Literal+") == {"IMAP4REV1", "LITERAL+"}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("17-Jul-1996 02:44:25 -0700", datetime(1996, 7, 17, 2, 44, 25, tzinfo=timezone(timedelta(hours=-7)))),
        (" 7-jul-1996 02:44:25 +0530", datetime(1996, 7, 7, 2, 44, 25, tzinfo=timezone(timedelta(minutes=330)))),
        ("01-Jan-0001 00:00:00 +0000", datetime(1, 1, 1, tzinfo=timezone.utc)),  # noqa: UP017
        ("31-Dec-9999 23:59:60 +0000", datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)),  # noqa: UP017
        ("17-Jul-1996 02:44:25 +9999", None),
        ("31-Feb-1996 02:44:25 +0000", None),
        ("17-Jux-1996 02:44:25 +0000", None),
        ("17-Jul-0000 02:44:25 +0000", None),
        ("17-Jul-1996 25:44:25 +0000", None),
        ("\u0661\u0667-Jul-1996 02:44:25 +0000", None),
        ("", None),
    ],
)
def test_internal_dates_are_moments_or_nothing(text: str, moment: datetime | None) -> None:
    assert date_time(text) == moment
