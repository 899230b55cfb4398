"""GUIDs and POP3 UIDLs go with their messages into a Maildir, as Dovecot shows them."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import mail
from tests.contract.stores import ImapAccount, message
from tests.fix_dovecot import Dovecot

pytestmark = [pytest.mark.dovecot, pytest.mark.timeout(120)]

INBOX = ("INBOX",)
ARCHIVE = ("Archive", "2023")


def shown(server: Dovecot, user: str, *, fields: str = "guid pop3.uidl", where: str = "") -> list[tuple[str, ...]]:
    """Folder, subject and these fields of each message, in order of UID."""
    location = ["-o", f"mail_location={where}"] if where else []
    table = server.doveadm(*location, "-f", "tab", "fetch", "-u", user, f"mailbox uid hdr.subject {fields}", "ALL")
    rows = [tuple(row.split("\t")) for row in table.splitlines()[1:]]
    return [(row[0], *row[2:]) for row in sorted(rows, key=lambda row: (row[0], int(row[1])))]


def with_uidls(uidlist: Path) -> None:
    """As another server's POP3 users would have them: one of its own, one that is the base name."""
    head, *lines = uidlist.read_text().splitlines()
    lines[0] = re.sub(r"^(\d+)", r"\1 Pabc123", lines[0])
    lines[1] = re.sub(r"^(\d+)", r"\1 P", lines[1])
    uidlist.write_text("\n".join([head, *lines, ""]))


def imported(server: Dovecot, source: str, user: str, *, code: int = 0, more: tuple[str, ...] = ()) -> None:
    done = mail.aimport(
        *("import", "-u", user, "--no-journal", "--progress", "none", *more, "--to", f"maildir:{server.maildir(user)}"),
        *(source, "", "ALL"),
    )
    assert done.returncode == code, done.stderr
    server.own(server.home(user))


def trouble(server: Dovecot, user: str) -> list[str]:
    return [line for line in server.logs().splitlines() if user in line and ": Info: " not in line]


@pytest.mark.parametrize("kind", ["maildir", "mdbox"])
def test_dovecot_shows_the_guids_and_uidls_of_the_source(
    request: pytest.FixtureRequest, dovecot: Dovecot, unique_user: str, kind: str
) -> None:
    source_user = unique_user
    there = dovecot
    if kind == "mdbox":
        there = request.getfixturevalue("dovecot_with_dbox")
        source_user = f"{unique_user.partition('@')[0]}@mdbox"
    account = ImapAccount(there, source_user)
    account.put(INBOX, [message(number, *["\\Seen"][: number % 2]) for number in range(5)])
    account.put(ARCHIVE, [message(number, "Project-X") for number in range(70)])
    if kind == "maildir":
        with_uidls(there.maildir(source_user) / "dovecot-uidlist")
    before = shown(there, source_user)
    assert len({row[2] for row in before}) == 75
    target = f"{unique_user}-copy"
    path = there.maildir(source_user) if kind == "maildir" else there.home(source_user) / "mdbox"
    imported(dovecot, f"{kind}:{path}", target)
    after = shown(dovecot, target)
    assert [row[:3] for row in after] == [row[:3] for row in before]
    if kind == "maildir":
        uidls, uidls_before = ([row[3] for row in rows if row[0] == "INBOX"][:2] for rows in (after, before))
        guids = [row[2] for row in before if row[0] == "INBOX"]
        assert uidls == uidls_before == ["abc123", guids[1]]
    assert "rror" not in dovecot.doveadm("force-resync", "*", user=target)
    assert shown(dovecot, target) == after
    assert trouble(dovecot, target) == []


def test_a_list_that_dovecot_keeps_is_added_to_and_a_second_import_gives_no_guid_twice(
    dovecot: Dovecot, unique_user: str
) -> None:
    source, target = unique_user, f"{unique_user}-copy"
    ImapAccount(dovecot, source).put(INBOX, [message(number) for number in range(4)])
    ImapAccount(dovecot, target).put(INBOX, [message(number) for number in range(100, 103)])
    theirs = shown(dovecot, target, fields="guid")
    ours = shown(dovecot, source, fields="guid")
    imported(dovecot, f"maildir:{dovecot.maildir(source)}", target)
    assert shown(dovecot, target, fields="guid") == [*theirs, *ours]
    imported(dovecot, f"maildir:{dovecot.maildir(source)}", target)
    twice = shown(dovecot, target, fields="guid")
    assert twice[:7] == [*theirs, *ours]
    assert len({row[2] for row in twice}) == 11
    assert trouble(dovecot, target) == []


def test_a_folder_whose_list_is_lost_or_odd_keeps_what_dovecot_knows(dovecot: Dovecot, unique_user: str) -> None:
    """Indexes without a list, and a list that is not in order: nothing is made, nothing is added."""
    source = unique_user
    ImapAccount(dovecot, source).put(INBOX, [message(number) for number in range(4)])
    for name, change in (("lost", None), ("odd", b"3 V1 N2 Gx\n7 :a\ngarbage"), ("link", b"")):
        target = f"{unique_user}-{name}"
        ImapAccount(dovecot, target).put(INBOX, [message(100)])
        uidlist = dovecot.maildir(target) / "dovecot-uidlist"
        uidlist.unlink()
        if name == "link":
            uidlist.symlink_to("/nonexistent/uidlist")
        elif change is not None:
            uidlist.write_bytes(change)
        imported(dovecot, f"maildir:{dovecot.maildir(source)}", target)
        assert (uidlist.read_bytes() if uidlist.exists() else None) == change or name == "link"
        assert len(list((dovecot.maildir(target) / "new").iterdir())) == 5
        if name == "lost":
            assert len(shown(dovecot, target)) == 5


@contextmanager
def appending(account: ImapAccount) -> Iterator[list[int]]:
    """A client that appends, session after session, until the end; how often it did."""
    ended = threading.Event()
    count = [0]

    def append() -> None:
        while not ended.is_set():
            account.put(INBOX, [message(1000 + count[0])])
            count[0] += 1

    thread = threading.Thread(target=append)
    thread.start()
    try:
        yield count
    finally:
        ended.set()
        thread.join()


def test_a_server_that_saves_at_the_same_time_and_we_give_out_each_uid_once(dovecot: Dovecot, unique_user: str) -> None:
    source, target = unique_user, f"{unique_user}-copy"
    ImapAccount(dovecot, source).put(INBOX, [message(number) for number in range(300)])
    ours = {row[1]: row[2] for row in shown(dovecot, source, fields="guid")}
    account = ImapAccount(dovecot, target)
    account.put(INBOX, [message(999)])
    owner = dovecot.maildir(target).stat()
    # As the user: what we write must be open to the server at once.
    rights = ("-o", f"mail_uid={owner.st_uid}", "-o", f"mail_gid={owner.st_gid}") if os.geteuid() == 0 else ()
    with appending(account) as count:
        for _ in range(3):
            before = count[0]
            done = mail.aimport(
                *(*rights, "import", "-u", target, "--no-journal", "--progress", "none"),
                *("--to", f"maildir:{dovecot.maildir(target)}", f"maildir:{dovecot.maildir(source)}", "", "ALL"),
            )
            assert done.returncode == 0, done.stderr
            assert count[0] > before
    table = dovecot.doveadm("-f", "tab", "fetch", "-u", target, "uid guid hdr.subject", "ALL").splitlines()[1:]
    rows = [row.split("\t") for row in table]
    assert len(rows) == len({row[0] for row in rows}) == len({row[1] for row in rows}) == 1 + count[0] + 3 * 300
    first = {row[2]: row[1] for row in reversed(rows)}
    assert {subject: first[subject] for subject in ours} == ours
    assert trouble(dovecot, target) == []
