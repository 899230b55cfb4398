"""What of a query an IMAP server is asked, and what is done when it will not."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from aimport.errors import ProtocolError, Unavailable
from aimport.imap.commands import Literal
from aimport.query.dates import Clock
from aimport.query.parse import parse_query
from aimport.query.terms import ALL, Term
from aimport.stores.imap import ImapSource, ImapSourceSession
from aimport.stores.imap.search import Server, program
from tests.fix_imap import login, logout, scripted, then
from tests.unit.test_imap_store import BOX, EXAMINE, ROOT, source

pytestmark = pytest.mark.timeout(30)

NOW = 1_795_467_800
SERVER = Server(keywords=("Work", "$Forwarded"), uidnext=100, now=NOW)
FULL = replace(SERVER, offered=frozenset({"WITHIN", "SAVEDATE", "CONDSTORE", "ESEARCH"}), guids=True, trusted=True)


def term(query: str) -> Term:
    return parse_query(query.split(), Clock(now=NOW)).term


def asked(query: str, server: Server = SERVER) -> tuple[str, Term] | None:
    """The words of the search, literals in braces, and what is left."""
    found = program(term(query), server)
    if found is None:
        return None
    words = []
    for word in found.words:
        assert isinstance(word, bytes | Literal)
        words.append(f"{{{word.octets.decode()}}}" if isinstance(word, Literal) else word.decode())
    return " ".join(words), found.left


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SEEN", "SEEN"),
        ("UNSEEN FLAGGED", "NOT SEEN FLAGGED"),
        ("SEEN OR FLAGGED OR DELETED", "OR SEEN OR FLAGGED DELETED"),
        ("NOT ( SEEN FLAGGED )", "NOT (SEEN FLAGGED)"),
        ("NOT ( SEEN OR FLAGGED )", "NOT OR SEEN FLAGGED"),
        ("( SEEN FLAGGED ) OR ( DRAFT NOT DELETED )", "OR (SEEN FLAGGED) (DRAFT NOT DELETED)"),
        ("NOT NOT SEEN", "SEEN"),
        ("KEYWORD work", "KEYWORD Work"),
        ("UNKEYWORD $FORWARDED", "NOT KEYWORD $Forwarded"),
        ("UID 3,5:7", "UID 3,5:7"),
        ("UID 8:*", "UID 8:99"),
        ("NOT UID 8:*", "NOT UID 8:99"),
        ("UID *", "NOT ALL"),
        ("UID 200:300", "NOT ALL"),
        ("LARGER 2k SMALLER 1M", "LARGER 2048 SMALLER 1048576"),
        ("NOT LARGER 5", "NOT LARGER 5"),
    ],
)
def test_exact_keys_are_pushed_and_nothing_is_left(query: str, words: str) -> None:
    assert asked(query) == (words, ALL)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SINCE 10-Jan-2020", "SINCE 8-Jan-2020"),
        ("BEFORE 10-Jan-2020", "BEFORE 13-Jan-2020"),
        ("ON 1578657600", "(SINCE 9-Jan-2020 BEFORE 13-Jan-2020)"),
        ("SENTSINCE 10-Jan-2020", "SENTSINCE 8-Jan-2020"),
    ],
)
def test_dates_are_pushed_wider_and_decided_here(query: str, words: str) -> None:
    assert asked(query) == (words, term(query))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("NOT SINCE 10-Jan-2020", "NOT SINCE 13-Jan-2020"),
        ("NOT BEFORE 10-Jan-2020", "NOT BEFORE 8-Jan-2020"),
        ("NOT ( SEEN OR SINCE 10-Jan-2020 )", "NOT OR SEEN SINCE 13-Jan-2020"),
    ],
)
def test_under_not_dates_are_pushed_narrower(query: str, words: str) -> None:
    assert asked(query) == (words, term(query))


@pytest.mark.parametrize(
    "query",
    [
        "SUBJECT x", "BODY x", "HEADER a b", "SENTBEFORE 2020-01-01", "NOT SENTSINCE 2020-01-01", "RECENT", "OLD",
        "KEYWORD unheard", "SEEN OR TEXT x", "NOT ( SEEN TEXT x )", "1:3", "SEEN 1:3", "INTHREAD REFS SEEN",
        "SEEN OR INTHREAD REFS SEEN", "SAVEDSINCE 2020-01-01", "SAVEDATESUPPORTED", "MODSEQ 5", "GUID x",
        "MIMEPART TYPE text", "LARGER 5G", "SINCE 31-Feb-2023", "SINCE 0", "ALL",
    ],
)  # fmt: skip
def test_what_no_server_can_decide_asks_none(query: str) -> None:
    assert asked(query) is None


@pytest.mark.parametrize(
    ("query", "words", "left"),
    [
        ("SEEN SUBJECT x", "SEEN", "SUBJECT x"),
        ("SEEN SINCE 10-Jan-2020", "SEEN SINCE 8-Jan-2020", "SINCE 10-Jan-2020"),
        ("( SEEN SUBJECT x ) OR FLAGGED", "OR SEEN FLAGGED", "( SEEN SUBJECT x ) OR FLAGGED"),
        ("NOT ( SEEN OR SUBJECT x )", "NOT SEEN", "NOT ( SEEN OR SUBJECT x )"),
    ],
)
def test_what_is_not_exact_is_left_to_decide(query: str, words: str, left: str) -> None:
    assert asked(query) == (words, term(left))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SAVEDSINCE 1578657600", "SAVEDSINCE 9-Jan-2020"),
        ("SAVEDATESUPPORTED", "SAVEDATESUPPORTED"),
        ("SINCE 3h", "YOUNGER 97200"),
        ("MODSEQ 5", "MODSEQ 5"),
        ("GUID a.b", 'X-GUID "a.b"'),
        ("SUBJECT x", 'SUBJECT "x"'),
        ("HEADER X-Tag y", 'HEADER "x-tag" "y"'),
        ("FROM ü", "FROM {ü}"),
        ("NOT ( FROM ü BODY ö )", "NOT (FROM {ü} BODY {ö} ALL)"),
    ],
)
def test_extensions_that_are_offered_and_texts_for_a_trusted_server_are_pushed(query: str, words: str) -> None:
    found = asked(query, FULL)
    assert found is not None
    assert found[0] == words
    assert asked(query, replace(FULL, extensions=False)) in (None, ("SINCE 22-Nov-2026", term(query)))


def test_sizes_of_a_server_that_counts_lf_are_pushed_wider() -> None:
    server = replace(SERVER, sizes=False)
    assert asked("LARGER 100", server) == ("LARGER 50", term("LARGER 100"))
    assert asked("NOT LARGER 100", server) == ("NOT LARGER 100", term("NOT LARGER 100"))
    assert asked("SMALLER 100", server) == ("SMALLER 100", term("SMALLER 100"))
    assert asked("NOT SMALLER 100", server) == ("NOT SMALLER 50", term("NOT SMALLER 100"))


def test_only_texts_beyond_ascii_name_a_charset() -> None:
    plain, umlaut = program(term("SUBJECT x"), FULL), program(term("SUBJECT ü"), FULL)
    assert plain is not None and not plain.charset
    assert umlaut is not None and umlaut.charset


# The exchange


@asynccontextmanager
async def trusted(script: str, *, offered: str = "IMAP4rev1 LITERAL+") -> AsyncGenerator[ImapSourceSession]:
    async with scripted(then(login(offered), ROOT, script, logout)) as server:
        async with ImapSource(replace(server.endpoint(), trust_search=True)).open() as session:
            yield session


async def test_only_what_a_search_has_found_is_listed() -> None:
    script = f"""
        {EXAMINE}
        C: s UID SEARCH SEEN NOT DELETED
        S: * SEARCH 9 4
        S: s OK
        C: f UID FETCH 4,9 (UID RFC822.SIZE)
        S: * 1 FETCH (UID 4 RFC822.SIZE 10)
        S: * 3 FETCH (UID 9 RFC822.SIZE 30)
        S: f OK
    """
    async with source(script) as session:
        selection = await session.select(BOX, term("SEEN UNDELETED"))
    assert (list(selection.keys), list(selection.sizes), selection.unlisted) == (["7:4", "7:9"], [10, 30], 0)


async def test_esearch_answers_with_a_set() -> None:
    script = f"""
        {EXAMINE}
        C: s UID SEARCH RETURN (ALL) SEEN
        S: * ESEARCH (TAG "s") UID ALL 4:5,9
        S: s OK
        C: f UID FETCH 4:5,9 (UID RFC822.SIZE)
        S: * 1 FETCH (UID 4 RFC822.SIZE 10)
        S: * 2 FETCH (UID 5 RFC822.SIZE 20)
        S: * 3 FETCH (UID 9 RFC822.SIZE 30)
        S: f OK
    """
    async with source(script, offered="IMAP4rev1 ESEARCH") as session:
        assert list((await session.select(BOX, term("SEEN"))).keys) == ["7:4", "7:5", "7:9"]


async def test_a_search_that_finds_nothing_lists_nothing() -> None:
    script = f"""
        {EXAMINE}
        C: s UID SEARCH SEEN
        S: * SEARCH
        S: s OK
    """
    async with source(script) as session:
        assert len((await session.select(BOX, term("SEEN"))).keys) == 0


async def test_a_server_that_finds_more_than_it_has_is_not_believed() -> None:
    script = f"""
        {EXAMINE}
        C: s UID SEARCH SEEN
        S: * SEARCH 1 2 3 4
        S: s OK
    """
    async with source(script) as session:
        with pytest.raises(ProtocolError):
            await session.select(BOX, term("SEEN"))


REFUSALS = ("NO [BADCHARSET (US-ASCII)] no", "NO I do not search so", "BAD unknown key SUBJECT")


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_what_a_server_refuses_is_decided_here_and_not_asked_again(refusal: str) -> None:
    """First without texts and extensions; a BAD leaves the connection as it is."""
    listed = """
        C: f UID FETCH 4:5 (UID RFC822.SIZE)
        S: * 1 FETCH (UID 4 RFC822.SIZE 10)
        S: * 2 FETCH (UID 5 RFC822.SIZE 20)
        S: f OK
        C: h UID FETCH 4:5 (UID BODY.PEEK[HEADER])
        S: * 1 FETCH (UID 4 BODY[HEADER] "Subject: b")
        S: * 2 FETCH (UID 5 BODY[HEADER] "Subject: a")
        S: h OK
    """
    again = """
        C: t UID SEARCH SEEN
        S: * SEARCH 4 5
        S: t OK
    """
    script = f"""
        {EXAMINE}
        C: s UID SEARCH SEEN SUBJECT "a"
        S: s {refusal}
        {again}
        {listed}
        {EXAMINE}
        {again}
        {listed}
    """
    async with trusted(script) as session:
        for _ in range(2):
            assert list((await session.select(BOX, term("SEEN SUBJECT a"))).keys) == ["7:5"]


async def test_a_server_that_searches_for_nothing_has_all_listed() -> None:
    script = f"""
        {EXAMINE}
        C: s UID SEARCH SEEN
        S: s BAD what
        C: t UID SEARCH SEEN
        S: t NO no
        C: f UID FETCH 1:* (UID RFC822.SIZE FLAGS)
        S: * 1 FETCH (UID 4 RFC822.SIZE 10 FLAGS (\\Seen))
        S: * 2 FETCH (UID 5 RFC822.SIZE 20 FLAGS ())
        S: * 3 FETCH (UID 9 RFC822.SIZE 20 FLAGS (\\Seen))
        S: f OK
    """
    async with source(script) as session:
        assert list((await session.select(BOX, term("SEEN"))).keys) == ["7:4", "7:9"]


async def test_a_server_that_is_busy_is_no_server_that_refuses() -> None:
    script = f"""
        {EXAMINE}
        C: s UID SEARCH SEEN
        S: s NO [UNAVAILABLE] later
    """
    async with source(script) as session:
        with pytest.raises(Unavailable):
            await session.select(BOX, term("SEEN"))


async def test_a_header_that_cannot_be_read_selects_its_message() -> None:
    """Reading it will say why: it is not lost without a word."""
    script = f"""
        {EXAMINE}
        C: f UID FETCH 1:* (UID RFC822.SIZE)
        S: * 1 FETCH (UID 4 RFC822.SIZE 10)
        S: * 2 FETCH (UID 5 RFC822.SIZE 20)
        S: * 3 FETCH (UID 9 RFC822.SIZE 20)
        S: f OK
        C: h UID FETCH 4:5,9 (UID BODY.PEEK[HEADER])
        S: * 1 FETCH (UID 4 BODY[HEADER] "Subject: b")
        S: h NO [SERVERBUG] broken
        C: i UID FETCH 5 (UID BODY.PEEK[HEADER])
        S: i NO [SERVERBUG] broken
        C: j UID FETCH 9 (UID BODY.PEEK[HEADER])
        S: * 3 FETCH (UID 9 BODY[HEADER] "Subject: c")
        S: j OK
    """
    async with source(script) as session:
        assert list((await session.select(BOX, term("SUBJECT c"))).keys) == ["7:5", "7:9"]
