"""Words of a query: what they are taken for, what is refused and how that is shown."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import UsageError
from aimport.plan import local_clock
from aimport.query.dates import Clock
from aimport.query.parse import KEYS, PART_KEYS, parse_query
from aimport.query.terms import (
    ALL,
    NOTHING,
    And,
    Content,
    Dated,
    Flag,
    Header,
    InThread,
    Keyword,
    MimePart,
    Not,
    Numbers,
    Or,
    PartAll,
    PartAny,
    PartField,
    PartNot,
    PartRelative,
    Term,
    Uids,
    simplified,
)
from tests.search import rows

SEEN, FLAGGED, DELETED = Flag("\\Seen"), Flag("\\Flagged"), Flag("\\Deleted")
CLOCK = Clock(now=1_000_000_000)


def term(*words: str) -> Term:
    return parse_query(words, CLOCK).term


@pytest.mark.parametrize(
    ("query", "meaning"),
    [
        ("SEEN", SEEN),
        ("seen FLAGGED", And((SEEN, FLAGGED))),
        ("SEEN OR FLAGGED OR DELETED", Or((SEEN, FLAGGED, DELETED))),
        ("OR SEEN", SEEN),
        ("OR SEEN OR FLAGGED", Or((SEEN, FLAGGED))),
        ("SEEN FLAGGED OR DELETED", Or((SEEN, FLAGGED, DELETED))),
        ("NOT SEEN FLAGGED", And((Not(SEEN), FLAGGED))),
        ("NOT SEEN OR FLAGGED", Or((Not(SEEN), FLAGGED))),
        ("NOT ( SEEN OR FLAGGED )", Not(Or((SEEN, FLAGGED)))),
        ("NOT NOT SEEN", Not(Not(SEEN))),
        ("( ( SEEN ) )", SEEN),
        ("UNSEEN", Not(SEEN)),
        ("NEW", And((Flag("\\Recent"), Not(SEEN)))),
        ("FUZZY SUBJECT x", Header("subject", "x", "squeezed")),
        ("SUBJECT ( BODY )", And((Header("subject", "(", "squeezed"), Content(")", headers=False)))),
        ("HEADER X-A OR", Header("x-a", "OR")),
        ("UNKEYWORD x", Not(Keyword("x"))),
        ("2,4:3 UID 7:*", And((Numbers(((2, 4),)), Uids(((7, 0xFFFFFFFF),))))),
        ("OLDER 10", Dated("received", until=999_999_991)),
        ("YOUNGER 10", Dated("received", since=999_999_990)),
        ("INTHREAD refs SEEN", InThread("REFS", SEEN)),
        ("INTHREAD REFS OR SEEN", SEEN),
        ("$ OR UID $", Or((NOTHING, NOTHING))),
        ("MIMEPART TYPE text SEEN", And((MimePart(PartField("TYPE", "is", "text")), SEEN))),
        (
            "MIMEPART ( TYPE a NOT SUBTYPE b )",
            MimePart(PartAll((PartField("TYPE", "is", "a"), PartNot(PartField("SUBTYPE", "is", "b"))))),
        ),
        (
            "MIMEPART OR TYPE a OR TYPE b TYPE c",
            MimePart(PartAny(tuple(PartField("TYPE", "is", each) for each in "abc"))),
        ),
        ("MIMEPART PARENT NOT EXISTS", MimePart(PartNot(PartRelative("PARENT", None)))),
    ],
)
def test_words_mean_what_doveadm_takes_them_for(query: str, meaning: Term) -> None:
    words = query.replace("BODY )", "BODY\0)").split(" ")
    assert term(*(part for word in words for part in word.split("\0"))) == meaning


@pytest.mark.parametrize(
    ("query", "text", "under"),
    [
        ("SEEN SUBJEKT x", "unknown key SUBJEKT, did you mean SUBJECT?", "SUBJEKT"),
        ("AND SEEN", "leave it out", "AND"),
        ("SINCE now", "'now' is not a date (write 2024-02-29", "now"),
        ("SEEN OR FLAGGED DELETED", "Use parenthesis when mixing ANDs and ORs", "DELETED"),
        ("SEEN ( FLAGGED", "Missing ')'", "("),
        ("SEEN ) FLAGGED", "Unexpected ')'", ")"),
        ("( )", "No search parameters inside list", ")"),
        ("LARGER 0.5k", "'0.5k' is not a size", "0.5k"),
        ("YOUNGER 1w", "'1w' is not a number of seconds", "1w"),
        ("UID abc", "'abc' is not a set of UIDs", "abc"),
        ("1:x", "'1:x' is not a set of sequence numbers", "1:x"),
        ("INTHREAD REFZ SEEN", "unknown thread algorithm REFZ, did you mean REFS?", "REFZ"),
        ("MODSEQ x", "'x' is not a number", "x"),
        ("MODSEQ /flags/x al 5", "'al' is not all, priv or shared", "al"),
        ("X-MAILBOX a&b", "is not modified UTF-7", "'a&b'"),
        ("MIMEPART TIPE x", "unknown MIMEPART key TIPE, did you mean TYPE?", "TIPE"),
        ("MIMEPART BODY x", "MIMEPART BODY holds for no message (use BODY outside of MIMEPART)", "BODY"),
        ("MIMEPART FILENAME HAS x", "unknown word of MIMEPART FILENAME HAS", "HAS"),
        ("MIMEPART EXISTS", "unknown MIMEPART key EXISTS", "EXISTS"),
    ],
)
def test_what_is_refused_is_marked_with_a_caret(query: str, text: str, under: str) -> None:
    with pytest.raises(UsageError) as caught:
        term(*query.split())
    message, line, mark = str(caught.value).split("\n")
    assert message.startswith("query: ") and text in message
    assert line[mark.index("^") : len(mark)] == under
    assert caught.value.exit_code == 64


@pytest.mark.parametrize(
    "query", ["SUBJECT", "HEADER a", "NOT", "SEEN OR", "MIMEPART", "MIMEPART FILENAME", "INTHREAD REFS"]
)
def test_what_is_missing_at_the_end_is_marked_behind_it(query: str) -> None:
    with pytest.raises(UsageError, match=r"[Mm]issing") as caught:
        term(*query.split())
    _, line, mark = str(caught.value).split("\n")
    assert mark.index("^") == len(line) + 1


def test_control_characters_and_long_queries_are_shown_in_one_short_line() -> None:
    with pytest.raises(UsageError) as caught:
        term(*["SEEN"] * 100, "\x1b[31mred\n", *["SEEN"] * 100)
    _, line, mark = str(caught.value).split("\n")
    assert line[mark.index("^") : len(mark)] == "'\\x1b[31mred\\n'"
    assert len(line) < 250 and line.isprintable()


@pytest.mark.parametrize("query", [["("] * 5000 + ["SEEN"], ["NOT"] * 5000 + ["SEEN"], ["MIMEPART"] + ["NOT"] * 5000])
def test_deep_nesting_is_refused_and_overflows_nothing(query: list[str]) -> None:
    with pytest.raises(UsageError, match="levels"):
        term(*query)


WORDS = st.one_of(
    st.sampled_from((*KEYS, *PART_KEYS, "refs", "1:3", "*", "5", "2020-01-01", "3d", "1k", "IS")), st.text(max_size=6)
)


@given(st.lists(WORDS, max_size=12))
def test_any_words_are_taken_or_refused_and_nothing_else(words: list[str]) -> None:
    try:
        parse_query(words, CLOCK)
    except UsageError:
        pass


def test_the_measured_rows_are_taken_and_refused_as_by_doveadm() -> None:
    wrong = []
    for row in rows():
        try:
            parse_query(row.words, CLOCK)
        except UsageError:
            if not row.refused:
                wrong.append(row)
        else:
            if row.refused:
                wrong.append(row)
    assert wrong == []


@pytest.mark.parametrize(
    ("query", "warning"),
    [
        ("SEEN FLAGGED OR DELETED", "SEEN FLAGGED OR DELETED: as in doveadm OR joins all that stands before it too"),
        ("RECENT", "RECENT: which messages are recent"),
        ("UID *", "UID *: as in doveadm this is no message's UID"),
        ("$", "it matches nothing"),
        ("1:3", "cut to the size of each mailbox"),
    ],
)
def test_what_means_something_else_than_it_seems_is_told_once(query: str, warning: str) -> None:
    [told] = parse_query(query.split(), CLOCK).warnings
    assert warning in told


@pytest.mark.parametrize("query", ["SEEN OR FLAGGED", "NOT SEEN OR FLAGGED", "1:3 MAILBOX INBOX", "UID 5:*", "ALL"])
def test_what_is_plain_is_not_commented(query: str) -> None:
    assert parse_query(query.split(), CLOCK).warnings == ()


def test_iso_dates_are_off_by_the_zone_as_in_doveadm_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        clock = local_clock(CLOCK.now)
        iso, imap = (parse_query(["ON", date], clock) for date in ("2020-01-10", "10-Jan-2020"))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert isinstance(iso.term, Dated) and isinstance(imap.term, Dated)
    assert (imap.term.since, imap.term.by_day) == (1578614400, True)
    assert iso.term.since == 1578614400 - 9 * 3600
    assert re.search(r"9:00 hours before midnight", iso.warnings[0])
    assert imap.warnings == ()


@pytest.mark.parametrize(
    ("query", "plain"),
    [
        ("ALL ALL", ALL),
        ("SEEN ALL", SEEN),
        ("SEEN OR ALL", ALL),
        ("NOT ALL", NOTHING),
        ("SEEN NOT ALL", NOTHING),
        ("SEEN OR NOT ALL", SEEN),
        ("( SEEN FLAGGED ) DELETED", And((SEEN, FLAGGED, DELETED))),
        ("NOT NOT SEEN", SEEN),
        ("INTHREAD REFS ALL", ALL),
    ],
)
def test_what_decides_nothing_is_left_out(query: str, plain: Term) -> None:
    assert simplified(term(*query.split())) == plain
