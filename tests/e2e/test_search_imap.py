"""The measured rows over IMAP, and what is left to a server against what is decided here."""

from __future__ import annotations

import contextlib
import imaplib
import socket
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import anyio
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from aimport.errors import UsageError
from aimport.model import Endpoint, Mailbox, Secret
from aimport.names import encode_utf7
from aimport.query.dates import Clock
from aimport.query.parse import parse_query
from aimport.query.query import Query
from aimport.query.terms import Term
from aimport.stores.imap import ImapSource, ImapSourceSession
from tests.e2e.test_search_doveadm import ALL_CHECKS, write
from tests.fix_courier import Courier, courier
from tests.fix_cyrus import Cyrus, cyrus
from tests.fix_dovecot import Dovecot, dovecot
from tests.queries import Node, Written, mailboxes, queries
from tests.search import TAKEN_AT, Row, base, make_maildir, rows

__all__ = ["courier", "cyrus", "dovecot"]

CLOCK: Final = Clock(now=TAKEN_AT)


class Server(Protocol):
    """What the fixtures have in common."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def password(self) -> str: ...


def source(server: Server, user: str, *, trust: bool = False) -> ImapSource:
    return ImapSource(
        Endpoint(
            scheme="imap",
            host=server.host,
            port=server.port,
            security="none",
            user=user,
            secret=Secret(kind="literal", text=server.password),
            trust_search=trust,
        )
    )


@contextlib.contextmanager
def client(server: Server, user: str) -> Iterator[imaplib.IMAP4]:
    with imaplib.IMAP4(server.host, server.port, timeout=30) as connection:
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.login(user, server.password)
        yield connection


def put(server: Server, user: str, root: Path, prefix: str, separator: str) -> dict[str, str]:
    """Appends the fixture; gives the name of each message by mailbox and UID."""
    letters = {"D": "\\Draft", "F": "\\Flagged", "R": "\\Answered", "S": "\\Seen", "T": "\\Deleted"}
    keywords = {"a": "$Forwarded", "b": "Work"}
    known: dict[str, str] = {}
    with client(server, user) as connection:
        for folder in (root, *sorted(root.glob(".*"))):
            levels = folder.name[1:].replace("&APw-", "ü").split(".") if folder != root else ["INBOX"]
            name = "INBOX" if folder == root else prefix + separator.join(map(encode_utf7, levels))
            if folder != root:
                connection.create(f'"{name}"')
            files = sorted((*folder.glob("cur/*"), *folder.glob("new/*")), key=lambda file: file.name)
            for number, file in enumerate(files, 1):
                info = file.name.partition(":2,")[2]
                flags = [{**letters, **keywords}[letter] for letter in info if letter in letters or letter in keywords]
                date = imaplib.Time2Internaldate(datetime.fromtimestamp(int(file.stat().st_mtime), UTC))
                octets = file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                ok, text = connection.append(f'"{name}"', f"({' '.join(flags)})", date, octets)
                assert ok == "OK", text
                known[f"{'/'.join(levels)}:{number}"] = base(file.name)
    return known


async def selected(
    reader: ImapSourceSession, listed: Sequence[Mailbox], query: Query, known: dict[str, str]
) -> frozenset[str]:
    """Names of the messages that are selected; sequence numbers are cut as the pipeline does."""
    if query.counts:
        listed = sorted(listed, key=lambda mailbox: mailbox.path == ("INBOX",))
    found: set[str] = set()
    for mailbox in listed:
        if not query.selects(mailbox):
            continue
        some = await reader.select(mailbox, query.of(mailbox))
        found |= {known["/".join(mailbox.path) + ":" + key.partition(":")[2]] for key in some.keys}
        if query.counts and (count := len((await reader.select(mailbox)).keys)):
            query = query.after(count)
    return frozenset(found)


def over_imap(row: Row, separator: str) -> str:
    """Why the row cannot be the same over IMAP; "": it is."""
    words = [word.upper() for word in row.words]
    if row.words == ("MAILBOX", "Arch.2023") and separator != ".":
        return "the source has no such separator"
    if "GUID" in words or "X-GUID" in words:
        return "the GUID of a message is its own in each server"
    if any("\n" in word for word in row.words) and ("BODY" in words or "TEXT" in words):
        return "lines end in CRLF on the wire, in LF in the Maildir"
    return ""


async def compare_rows(
    server: Server, user: str, known: dict[str, str], *, separator: str = "/", trust: bool = False
) -> None:
    wrong = {}
    async with source(server, user, trust=trust).open() as reader:
        listed = await reader.list_mailboxes()
        for row in rows():
            try:
                query = parse_query(row.words, CLOCK)
            except UsageError:
                assert row.refused
                continue
            if (
                not over_imap(row, separator)
                and (found := await selected(reader, listed, query, known)) != row.selected
            ):
                wrong[str(row)] = f"{sorted(found)} is not {sorted(row.selected)}"
    assert wrong == {}


@pytest.mark.dovecot
@pytest.mark.parametrize("trust", [False, True])
async def test_every_row_selects_the_same_over_dovecot(
    dovecot: Dovecot, unique_user: str, tmp_path: Path, trust: bool
) -> None:
    known = put(dovecot, unique_user, make_maildir(tmp_path / "Maildir"), "", "/")
    await compare_rows(dovecot, unique_user, known, trust=trust)


@pytest.mark.cyrus
async def test_every_row_selects_the_same_over_cyrus(cyrus: Cyrus, unique_user: str, tmp_path: Path) -> None:
    cyrus.create_user(unique_user)
    known = put(cyrus, unique_user, make_maildir(tmp_path / "Maildir"), "", "/")
    await compare_rows(cyrus, unique_user, known)


@pytest.mark.courier
async def test_every_row_selects_the_same_over_courier(courier: Courier, unique_user: str, tmp_path: Path) -> None:
    courier.create_user(unique_user)
    known = put(courier, unique_user, make_maildir(tmp_path / "Maildir"), "INBOX.", ".")
    await compare_rows(courier, unique_user, known, separator=".")


@pytest.mark.dovecot
def test_random_queries_select_the_same_whoever_decides(dovecot: Dovecot) -> None:
    """With what Dovecot can decide left to it, and with nothing."""

    @settings(max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate], suppress_health_check=ALL_CHECKS)
    @given(mailboxes(), st.lists(queries(sequences=True), min_size=25, max_size=25))
    def compare(messages: list[Written], several: list[Node]) -> None:
        user = f"q{uuid.uuid4().hex[:12]}"
        write(dovecot.maildir(user), messages)
        dovecot.own(dovecot.home(user))
        terms: dict[str, Term] = {}
        for query in several:
            with contextlib.suppress(UsageError):
                terms[" ".join(query.listed())] = parse_query(query.listed(), CLOCK).term
        pushed = anyio.run(all_selected, dovecot, user, terms, True)
        assert pushed == anyio.run(all_selected, dovecot, user, terms, False)

    compare()


async def all_selected(server: Server, user: str, terms: dict[str, Term], push: bool) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    async with source(server, user).open() as reader:
        if not push:
            reader._search_level = 0
        listed = await reader.list_mailboxes()
        for words, term in terms.items():
            query = Query(term=term)
            found[words] = set()
            for mailbox in listed:
                if query.selects(mailbox):
                    some = await reader.select(mailbox, query.of(mailbox))
                    found[words] |= {f"{mailbox.name}:{key}" for key in some.keys}
    return found
