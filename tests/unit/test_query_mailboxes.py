"""Which mailboxes a query selects from, and which must exist."""

from __future__ import annotations

import pytest

from aimport.errors import UsageError
from aimport.model import Mailbox
from aimport.query.parse import parse_query

INBOX = Mailbox(path=("INBOX",), separator=".")
SENT = Mailbox(path=("Sent",), separator=".")
ARCH = Mailbox(path=("Arch",), separator=".")
YEAR = Mailbox(path=("Arch", "2023"), separator=".")
DRAFTS = Mailbox(path=("Entwürfe",), separator=".")
ALL = (INBOX, SENT, ARCH, YEAR, DRAFTS)


@pytest.mark.parametrize(
    ("words", "selected"),
    [
        (["ALL"], ALL),
        (["all"], ALL),
        (["MAILBOX", "inbox"], (INBOX,)),
        (["mailbox", "Sent"], (SENT,)),
        (["MAILBOX", "sent"], ()),
        (["MAILBOX", "Arch"], (ARCH,)),
        (["MAILBOX", "Arch.2023"], (YEAR,)),
        (["MAILBOX", "Arch/2023"], (YEAR,)),
        (["MAILBOX", "Arch*"], (ARCH, YEAR)),
        (["MAILBOX", "Arch%"], (ARCH,)),
        (["MAILBOX", "Arch/%"], (YEAR,)),
        (["MAILBOX", "Arch.%"], (YEAR,)),
        (["MAILBOX", "%/%"], (YEAR,)),
        (["MAILBOX", "%"], (INBOX, SENT, ARCH, DRAFTS)),
        (["MAILBOX", "inb*"], (INBOX,)),
        (["MAILBOX", "inbox*"], (INBOX,)),
        (["MAILBOX", "Entwürfe"], (DRAFTS,)),
        (["MAILBOX", "Entw&APw-rfe"], ()),
        (["MAILBOX", "Sent", "ALL"], (SENT,)),
        (["ALL", "ALL", "MAILBOX", "Sent"], (SENT,)),
        (["MAILBOX", "Sent", "MAILBOX", "Arch"], ()),
        (["MAILBOX", "A*", "MAILBOX", "*3"], (YEAR,)),
        (["MAILBOX", "MAILBOX"], ()),
        (["MAILBOX", "("], ()),
        (["MAILBOX", "Sent", "OR", "MAILBOX", "Arch"], (SENT, ARCH)),
        (["NOT", "MAILBOX", "INBOX"], (SENT, ARCH, YEAR, DRAFTS)),
        (["MAILBOX", "Sent", "OR", "SEEN"], ALL),
        (["NOT", "ALL"], ()),
        (["X-MAILBOX", "Entw&APw-rfe"], (DRAFTS,)),
    ],
)
def test_which_mailboxes_a_query_selects(words: list[str], selected: tuple[Mailbox, ...]) -> None:
    query = parse_query(words)
    assert tuple(mailbox for mailbox in ALL if query.selects(mailbox)) == selected


@pytest.mark.parametrize(
    ("words", "exact", "missing"),
    [
        (["ALL"], (), ()),
        (["MAILBOX", "Arch*"], (), ()),
        (["MAILBOX", "Nope"], ("Nope",), ("Nope",)),
        (["MAILBOX", "inbox"], ("inbox",), ()),
        (["MAILBOX", "Arch/2023"], ("Arch/2023",), ()),
        (["MAILBOX", "Sent", "MAILBOX", "Nope", "MAILBOX", "x%"], ("Sent", "Nope"), ("Nope",)),
        (["MAILBOX", "Nope", "OR", "SEEN"], (), ()),
        (["NOT", "MAILBOX", "Nope"], (), ()),
        (["(", "MAILBOX", "Nope", ")", "SEEN"], ("Nope",), ("Nope",)),
    ],
)
def test_plain_names_must_exist(words: list[str], exact: tuple[str, ...], missing: tuple[str, ...]) -> None:
    query = parse_query(words)
    assert query.exact_names == exact
    assert query.missing(ALL) == missing


def test_a_level_may_hold_the_other_separator() -> None:
    query = parse_query(["MAILBOX", "a/b"])
    assert query.selects(Mailbox(path=("a/b",), separator="."))
    assert query.selects(Mailbox(path=("a", "b"), separator="."))
    assert not query.selects(Mailbox(path=("a.b",), separator="/"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["SEENN"], "unknown key SEENN, did you mean SEEN?"),
        (["MAILBX", "x"], "did you mean MAILBOX?"),
        (["(SEEN)"], "unknown key '(SEEN)'"),
        (["xyzzy"], "unknown key xyzzy"),
        ([""], "unknown key ''"),
        (["ALL", "MAILBOX"], "Missing parameter for search key MAILBOX"),
        ([], "the query is empty"),
    ],
)
def test_what_does_not_parse_is_a_usage_error(words: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_query(words)
    assert text in str(caught.value)
    assert caught.value.exit_code == 64
