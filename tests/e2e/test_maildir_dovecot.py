"""Dovecot reads what we write as it was meant, and we read what Dovecot wrote."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from aimport.config import Settings
from aimport.errors import ConfigurationError, MailboxError, SourceMissing
from aimport.interfaces import Destination
from aimport.location import parse_location
from aimport.model import Endpoint, Mailbox, Message
from aimport.octets import whole, wire_form
from aimport.stores.maildir import MaildirDestination, MaildirSource
from aimport.stores.maildir.names import Layout
from aimport.variables import Variables
from tests import servers
from tests.contract.stores import Held, ImapAccount, batch, held, message
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.mail import append_batch, tree

PATHS: Final = (("INBOX",), ("Entwürfe",), ("Archive", "2023"), ("Проекты", "日本"), ("a&b c",), ("INBOX", "x"))
BODIES: Final = (
    b"Subject: lf\n\nbody\n",
    b"Subject: crlf\r\n\r\nbody\r\n",
    b"Subject: no end\n\nbody",
    b"no header at all",
    b"Subject: eight bit \xe9\xff\n\n" + bytes(range(1, 128)) + b"\n",
    b"Subject: long\n\n" + b"x" * 100_000 + b"\n",
)
FLAGS: Final = (
    (),
    ("\\Seen",),
    ("\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen"),
    ("$Forwarded",),
    ("\\Seen", "NonJunk", "Project-X"),
)


def mailbox(path: tuple[str, ...]) -> Mailbox:
    return Mailbox(path=path, separator=".")


def several(count: int) -> list[Message]:
    """Every body with every set of flags, and on."""
    return [
        message(number, *FLAGS[number % len(FLAGS)], body=BODIES[number % len(BODIES)] + b"%d" % number)
        for number in range(count)
    ]


def maildir(server: Dovecot, user: str) -> Endpoint:
    return Endpoint(scheme="maildir", path=str(server.maildir(user)))


async def write(
    destination: Destination, paths: tuple[tuple[str, ...], ...], messages: list[Message], separator: str = "."
) -> None:
    """All messages into each mailbox, in batches of 16."""
    start = int(time.time() * 1_000_000)
    async with destination.open() as session:
        for path in paths:
            target = Mailbox(path=path, separator=separator)
            await session.create_mailbox(target, subscribe=path != ("a&b c",))
            for at in range(0, len(messages), 16):
                made = replace(batch(*messages[at : at + 16], number=at), created_us=start + at * 1000)
                await append_batch(session, target, made)


async def test_dovecot_reads_what_we_wrote(dovecot: Dovecot, unique_user: str) -> None:
    """Order, octets, flags, keywords, dates, sizes, names and subscriptions."""
    sent = several(60)
    await write(MaildirDestination(maildir(dovecot, unique_user)), PATHS, sent)
    dovecot.own(dovecot.home(unique_user))
    seen = ImapAccount(dovecot, unique_user)
    for path in PATHS:
        assert seen.look(path) == [held(each) for each in sent], path
        name = "/".join(path)
        rows = dovecot.doveadm(
            *("-f", "tab", "fetch", "-u", unique_user, "uid size.physical size.virtual date.received", "mailbox", name)
        )
        found = [row.split("\t") for row in rows.splitlines()[1:]]
        assert [row[0] for row in found] == [str(number) for number in range(1, 61)]
        assert [int(row[1]) for row in found] == [len(each.body) for each in sent]
        assert [int(row[2]) for row in found] == [len(wire_form(whole(each.body))) for each in sent]
        assert [row[3] for row in found] == [each.internal_date.strftime("%Y-%m-%d %H:%M:%S") for each in sent]
    subscribed = dovecot.doveadm("mailbox", "list", "-s", user=unique_user).splitlines()
    assert sorted(subscribed) == sorted("/".join(path) for path in PATHS if path != ("a&b c",))
    assert "rror" not in dovecot.doveadm("force-resync", "*", user=unique_user)
    trouble = [line for line in dovecot.logs().splitlines() if unique_user in line and ": Info: " not in line]
    assert trouble == []


async def test_dovecot_sees_keywords_added_to_a_folder_that_it_knows(dovecot: Dovecot, unique_user: str) -> None:
    """Its own letters stay, ours are found though it read the old file a moment ago."""
    seen = ImapAccount(dovecot, unique_user)
    theirs = message(0, "Theirs", "\\Seen")
    seen.put(("INBOX",), [theirs])
    ours = [message(1, "Ours"), message(2, "theirs", "\\Seen")]
    await write(MaildirDestination(maildir(dovecot, unique_user)), (("INBOX",),), ours)
    dovecot.own(dovecot.home(unique_user))
    assert [each.flags for each in seen.look(("INBOX",))] == [{"Theirs", "\\Seen"}, {"Ours"}, {"Theirs", "\\Seen"}]


LOCATIONS: Final = {
    "control": "maildir:{home}/m:INBOX={home}/inbox:CONTROL={home}/control:UTF-8",
    "fs": "maildir:{home}/m:LAYOUT=fs",
    "fs-dirname": "maildir:{home}/m:LAYOUT=fs:DIRNAME=mails:MAILBOXDIR=boxes",
    "fs-fulldirname": "maildir:{home}/m:LAYOUT=fs:FULLDIRNAME=mails:CONTROL={home}/control",
    "fs-inbox": "maildir:{home}/m:LAYOUT=fs:INBOX={home}/inbox:CONTROL={home}/control:SUBSCRIPTIONS=subs",
    "imapdir": "maildir:{home}/m:LAYOUT=imapdir:UTF-8",
}


@pytest.mark.parametrize("name", LOCATIONS)
async def test_dovecot_and_we_understand_a_location_alike(dovecot: Dovecot, unique_user: str, name: str) -> None:
    """It finds what we wrote: mailboxes, flags and keywords, dates, subscriptions. We find what it wrote."""
    home = dovecot.home(unique_user)
    text = LOCATIONS[name].format(home=home)
    endpoint = parse_location(text, Variables(user=unique_user), side="source", settings=Settings())
    override = ("-o", f"mail_location={text}")
    separator = Layout.of(endpoint).separator
    sent = several(10)
    await write(MaildirDestination(endpoint), PATHS, sent, separator=separator)
    dovecot.own(home)
    for path in PATHS:
        rows = dovecot.doveadm(
            *(*override, "-f", "tab", "fetch", "-u", unique_user, "flags date.received", "mailbox", "/".join(path))
        )
        seen = [row.split("\t") for row in rows.splitlines()[1:]]
        assert [frozenset(row[0].split()) - {"\\Recent"} for row in seen] == [each.flags for each in sent], path
        assert [row[1] for row in seen] == [each.internal_date.strftime("%Y-%m-%d %H:%M:%S") for each in sent]
    listed = dovecot.doveadm(*override, "mailbox", "list", "-s", "-u", unique_user).splitlines()
    assert sorted(listed) == sorted("/".join(path) for path in PATHS if path != ("a&b c",))

    dovecot.doveadm(*override, "mailbox", "create", "-u", unique_user, "Theirs/deep")
    for flag in ("\\Flagged", "Theirs"):
        dovecot.doveadm(*override, "flags", "add", "-u", unique_user, flag, "mailbox", "Archive/2023", "uid", "3")
    dovecot.doveadm(*override, "copy", "-u", unique_user, "Theirs/deep", "mailbox", "Archive/2023", "uid", "3")
    before = tree(home)
    async with MaildirSource(endpoint).open() as session:
        mailboxes = {each.path: each for each in await session.list_mailboxes()}
        assert {path for path in mailboxes if path != ("Theirs",)} == {*PATHS, ("Theirs", "deep")}
        async with aclosing(session.messages(await session.select(mailboxes["Theirs", "deep"]), skip=())) as lists:
            [copied] = [one async for each in lists for one in each]
    assert isinstance(copied, Message)
    assert copied.flags == sent[2].flags | {"\\Flagged", "Theirs"}
    assert held(copied).digest == held(sent[2]).digest
    assert tree(home) == before


async def test_we_read_what_dovecot_wrote_in_its_order(dovecot: Dovecot, unique_user: str) -> None:
    """UIDs beat names; flags changed later count; the source stays as it was, octet by octet."""
    theirs = ImapAccount(dovecot, unique_user)
    sent = several(40)
    for path in PATHS:
        theirs.put(path, sent)
    dovecot.doveadm("flags", "add", "\\Flagged Late", "mailbox", "INBOX", "uid", "5:9", user=unique_user)
    dovecot.doveadm("expunge", "mailbox", "INBOX", "uid", "2", user=unique_user)
    dovecot.doveadm("move", "INBOX", "mailbox", "Archive/2023", "uid", "3", user=unique_user)
    root = dovecot.maildir(unique_user)
    expected: dict[tuple[str, ...], list[Held]] = {path: theirs.look(path) for path in PATHS}
    before = tree(root)
    async with MaildirSource(maildir(dovecot, unique_user)).open() as session:
        mailboxes = await session.list_mailboxes()
        assert {each.path for each in mailboxes} == set(PATHS)
        for each in mailboxes:
            found: list[Held] = []
            async with aclosing(session.messages(await session.select(each), skip=())) as lists:
                async for several_ in lists:
                    found += [held(one) for one in several_ if isinstance(one, Message)]
            assert found == expected[each.path], each.path
    assert tree(root) == before


async def test_dovecot_and_we_read_a_maildir_of_unusual_names_alike(dovecot: Dovecot, unique_user: str) -> None:
    root = dovecot.maildir(unique_user)
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True)
    names = [
        "1500000009.M1.a",
        "1500000001.x:2,S",
        "1500000005.M10.c:2,",
        "1500000005.M9.d:2,Fa",
        "zzz:2,PT",
        "1:2,S,junk",
    ]
    for number, name in enumerate(names):
        file = root / ("cur" if ":" in name else "new") / name
        file.write_bytes(b"Subject: %d\n\n%s\n" % (number, name.encode()))
        os.utime(file, (datetime(2020, 1, 1 + number, tzinfo=UTC).timestamp(),) * 2)
    found: list[Held] = []
    async with MaildirSource(maildir(dovecot, unique_user)).open() as session:
        async with aclosing(session.messages(await session.select(mailbox(("INBOX",))), skip=())) as lists:
            async for each in lists:
                found += [held(one) for one in each if isinstance(one, Message)]
    dovecot.own(dovecot.home(unique_user))
    assert ImapAccount(dovecot, unique_user).look(("INBOX",)) == found


@pytest.mark.parametrize("fsync", ["never", "each"])
async def test_how_we_sync_does_not_change_what_is_read(dovecot: Dovecot, unique_user: str, fsync: str) -> None:
    sent = several(20)
    destination = MaildirDestination(maildir(dovecot, unique_user), fsync="never" if fsync == "never" else "each")
    await write(destination, (("INBOX",),), sent)
    dovecot.own(dovecot.home(unique_user))
    seen = ImapAccount(dovecot, unique_user)
    assert Counter(seen.look(("INBOX",))) == Counter(held(each) for each in sent)


@pytest.mark.dovecot
async def test_names_that_listescape_has_escaped_are_read_and_written(unique_user: str) -> None:
    """Separators, tildes and backslashes in names, which Maildir++ cannot hold as they are."""
    wanted = [("a.b", "c"), ("~x",), ("it\\s",), ("Entwürfe v1.2",)]
    try:
        with run_dovecot(plugins="listescape") as server:
            for path in wanted:
                server.doveadm("mailbox", "create", "/".join(path), user=unique_user)
            endpoint = replace(maildir(server, unique_user), options=(("ESCAPECHAR", "\\"),))
            async with MaildirSource(endpoint).open() as session:
                found = [each.path for each in await session.list_mailboxes()]
            assert sorted(found) == sorted([("INBOX",), *wanted])
            other = f"{unique_user}-2"
            endpoint = replace(maildir(server, other), options=(("ESCAPECHAR", "\\"),))
            await write(MaildirDestination(endpoint), tuple(wanted), [message(1)])
            server.own(server.home(other))
            listed = server.doveadm("mailbox", "list", user=other).splitlines()
            assert sorted({*listed} - {"INBOX", "a.b"}) == sorted("/".join(path) for path in wanted)
            for path in wanted:
                assert "messages=1" in server.doveadm("mailbox", "status", "messages", "/".join(path), user=other)
    except servers.CannotGet as reason:
        pytest.skip(str(reason))


@pytest.mark.dovecot
@pytest.mark.parametrize(
    "options", ["", ":FULLDIRNAME=mails:MAILBOXDIR=boxes", ":INDEX=~/index:CONTROL=~/control:UTF-8"]
)
async def test_folders_that_only_an_index_names_are_read(unique_user: str, options: str) -> None:
    """LAYOUT=index, as the server made it: names, order, flags, keywords; renamed and deleted folders."""
    sent = several(6)
    try:
        with run_dovecot(mail_location=f"maildir:~/Maildir:LAYOUT=index{options}") as server:
            account = ImapAccount(server, unique_user)
            for path in PATHS:
                account.put(path, sent)
            for name in ("old", "gone"):
                account.put((name,), [message(1)])
            server.doveadm("mailbox", "rename", "old", "new/name", user=unique_user)
            server.doveadm("mailbox", "delete", "gone", user=unique_user)
            text = f"maildir:~/Maildir:LAYOUT=index{options}"
            home = server.home(unique_user)
            endpoint = parse_location(
                text, Variables(user=unique_user, home=str(home)), side="source", settings=Settings()
            )
            before = tree(home)
            found: dict[tuple[str, ...], list[Held]] = {}
            async with MaildirSource(endpoint).open() as session:
                for each in await session.list_mailboxes():
                    found[each.path] = []
                    async with aclosing(session.messages(await session.select(each), skip=())) as lists:
                        async for items in lists:
                            found[each.path] += [held(item) for item in items if isinstance(item, Message)]
            assert tree(home) == before
            assert found.keys() == {*PATHS, ("new", "name")}
            assert found == {path: account.look(path) for path in found}
    except servers.CannotGet as reason:
        pytest.skip(str(reason))


async def test_an_index_layout_is_not_written_and_needs_its_index(tmp_path: Path) -> None:
    endpoint = Endpoint(scheme="maildir", path=str(tmp_path), options=(("LAYOUT", "index"),))
    with pytest.raises(ConfigurationError, match="can only be read"):
        MaildirDestination(endpoint)
    folder = tmp_path / ("0a" * 16) / "cur"
    folder.mkdir(parents=True)
    async with MaildirSource(endpoint).open() as session:
        with pytest.raises(SourceMissing, match="names of the folders"):
            await session.list_mailboxes()
        with pytest.raises(MailboxError):
            await session.select(Mailbox(path=("x",), separator="/", native="../x"))
