"""The mail volume is lost and comes back: the ways of merging old and new mails, by the lines of the documentation.

    ── breakage ──▶ first snapshot of the indexes     ── deliveries into an empty volume ──▶ second snapshot
    new-over-old: old mails + first snapshot are served again, and `aimport` brings in new mails + second snapshot
    old-over-new: new mails stay where they are, and `aimport` brings in old mails + first snapshot

Invariant: mails that are there keep UIDs, flags and octets, so what clients have cached stays valid; nothing is there
twice and nothing is lost. The steps are those of docs/disaster-recovery.md.
"""

from __future__ import annotations

import imaplib
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests import mail
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.processes import server_folder

USER: Final = "user@example.com"


@dataclass(frozen=True, slots=True)
class Site:
    """A Dovecot whose mail and indexes lie on two volumes, and room for what is taken off them."""

    server: Dovecot
    mail: Path
    index: Path
    aside: Path


@contextmanager
def imap(server: Dovecot) -> Iterator[imaplib.IMAP4]:
    with imaplib.IMAP4(server.host, server.port, timeout=30) as client:
        client.login(USER, server.password)
        yield client


def append(client: imaplib.IMAP4, mailbox: str, subject: str, flags: str = "") -> None:
    date = imaplib.Time2Internaldate(1_500_000_000 + len(subject))
    ok, text = client.append(mailbox, flags, date, f"Subject: {subject}\r\n\r\nBody of {subject}\r\n".encode())
    assert ok == "OK", text


def cached(server: Dovecot, mailbox: str) -> tuple[int, dict[int, tuple[str, frozenset[str]]]]:
    """What a client has of a mailbox: UIDVALIDITY, and by UID the subject and flags."""
    with imap(server) as client:
        ok, _ = client.select(mailbox)
        assert ok == "OK"
        validity = int(client.response("UIDVALIDITY")[1][0] or b"0")
        found = {}
        for item in client.uid("FETCH", "1:*", "(FLAGS BODY.PEEK[])")[1]:
            if isinstance(item, tuple):
                uid = int(item[0].split(b"UID ")[1].split()[0])
                flags = frozenset(flag.decode() for flag in imaplib.ParseFlags(item[0])) - {"\\Recent"}
                found[uid] = (item[1].split(b"\r\n")[0].decode().removeprefix("Subject: "), flags)
        return validity, found


def subjects(seen: Mapping[int, tuple[str, frozenset[str]]]) -> list[str]:
    return [subject for subject, _ in seen.values()]


@pytest.fixture
def site() -> Iterator[Site]:
    with (
        server_folder("volumes") as folder,
        run_dovecot(
            folder / "server",
            mail_root=folder / "home",
            mail_location=f"sdbox:{folder}/mail/%u:INDEX={folder}/index/%u:CONTROL={folder}/index/%u:ITERINDEX",
        ) as server,
    ):
        for name in ("mail", "index", "aside"):
            (folder / name).mkdir()
            server.own(folder / name)
        yield Site(server, folder / "mail", folder / "index", folder / "aside")


def snapshot(site: Site, name: str) -> Path:
    """A copy of the index volume."""
    shutil.copytree(site.index, site.aside / name)
    return site.aside / name


Cache = tuple[int, dict[int, tuple[str, frozenset[str]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What clients saw, and where the parts of the account lie by then."""

    before: Mapping[str, Cache]
    """Before the breakage."""
    between: Mapping[str, Cache]
    """While the account had only new mails."""
    first: Path
    lost: Path
    """The old mail volume, and the indexes as they were when it broke."""


def until_it_is_back(site: Site, *, emptied: bool = False, deleted: int = 0) -> Story:
    """Breakage and the time after it, until the old volume can be mounted again.

    `emptied`: Dovecot was made to notice in every folder that the old mails are not there. `deleted`: UID of a new mail
    that a client deletes when it has seen all.
    """
    server = site.server
    with imap(server) as client:
        for number in range(5):
            append(
                client,
                "INBOX",
                f"old {number}",
                "(\\Seen Work)" if number == 1 else "(\\Flagged)" if number == 2 else "",
            )
        client.create("Archive/2023")
        for number in range(2):
            append(client, "Archive/2023", f"archived {number}", "(\\Seen)")
    before = {name: cached(server, name) for name in ("INBOX", "Archive/2023")}

    # The mail volume is lost; clients find an empty account and get new mail.
    first = snapshot(site, "first")
    lost = site.aside / "mail"
    site.mail.rename(lost)
    site.mail.mkdir()
    server.own(site.mail)
    with pytest.raises(imaplib.IMAP4.abort, match="Internal error"):
        cached(server, "INBOX")  # Dovecot notices that the mails are gone
    assert subjects(cached(server, "INBOX")[1]) == []
    with imap(server) as client:
        for number in range(3):
            append(client, "INBOX", f"new {number}", "(\\Answered $Forwarded)" if number == 0 else "")
        client.create("Later")
        append(client, "Later", "later", "(\\Draft)")
    between = {name: cached(server, name) for name in ("INBOX", "Later")}
    assert subjects(between["INBOX"][1]) == ["new 0", "new 1", "new 2"]
    if deleted:
        with imap(server) as client:
            client.select("INBOX")
            client.uid("STORE", str(deleted), "+FLAGS", "(\\Deleted)")
            client.expunge()
    if emptied:
        server.doveadm("force-resync", "*", user=USER)
    return Story(before=before, between=between, first=first, lost=lost)


def put_back(site: Site, story: Story) -> tuple[Path, Path]:
    """The old volume and its indexes are served again; where the newer ones are now."""
    second = snapshot(site, "second")
    newer = site.aside / "newer"
    site.mail.rename(newer)
    story.lost.rename(site.mail)
    shutil.rmtree(site.index)
    story.first.rename(site.index)
    site.server.own(site.index)
    assert {name: cached(site.server, name) for name in story.before} == story.before
    return newer, second


def sdbox(mails: Path, indexes: Path) -> str:
    return f"sdbox:{mails}/{USER}:INDEX={indexes}/{USER}:CONTROL={indexes}/{USER}:ITERINDEX"


def to(server: Dovecot, way: str = "tunnel") -> tuple[list[str], list[str]]:
    """Settings and options of a destination that is this server."""
    if way == "tunnel":
        return [], ["--to", f"tunnel:{shlex.join(server.exec_command)}"]
    settings = ["-o", "dest_password=env:DST_PW", "-o", f"dest_tls_ca={server.ca_file}"]
    return settings, ["--to", f"imap://localhost:{server.port}/"]


def plan(site: Site, tmp_path: Path, words: Sequence[str], location: str) -> tuple[int, dict[str, object]]:
    """The exit code, and what the plan says of the user."""
    env = {"XDG_STATE_HOME": str(tmp_path)}
    done = mail.aimport("plan", "-u", USER, "--json", *to(site.server)[1], *words, location, "", "all", env=env)
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return done.returncode, said


def outlook(planned: Mapping[str, object], mailbox: str) -> dict[str, object]:
    """What a plan says of the merging of one mailbox, `again.imap.messages` and its like."""
    mailboxes = planned["mailboxes"]
    assert isinstance(mailboxes, list)
    [row] = [each for each in mailboxes if each["source"] == mailbox]
    flat: dict[str, object] = {}

    def put(value: object, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                put(inner, f"{name}.{key}" if name else key)
        else:
            flat[name] = value

    put(row["merge"], "")
    return flat


@pytest.mark.dovecot
@pytest.mark.parametrize(
    ("way", "emptied", "merge"), [("tunnel", False, []), ("imap", True, ["--merge", "new-over-old"])]
)
def test_new_mails_go_on_top_of_the_old_ones_that_came_back(
    site: Site, way: str, emptied: bool, merge: list[str], tmp_path: Path
) -> None:
    server = site.server
    story = until_it_is_back(site, emptied=emptied)
    before, between = story.before, story.between["INBOX"][1]
    newer, second = put_back(site, story)
    untouched = mail.tree(newer), mail.tree(second)

    if merge:
        code, planned = plan(site, tmp_path, merge, sdbox(newer, second))
        assert (code, planned["error"]) == (0, None)
        seen = outlook(planned, "INBOX")
        assert (seen["existing.messages"], seen["existing.uids"]) == (5, "1:5")
        assert (seen["imported.messages"], seen["imported.uids"], seen["imported.seen"]) == (3, "6:8", "same")
        assert (seen["again.imap.messages"], seen["again.emptied.messages"]) == (0, 5)
        assert (seen["uidvalidity"], seen["uidnext"]) == (before["INBOX"][0], 6)
    options, destination = to(server, way)
    line = [*options, "import", "-u", USER, "--json", *destination, *merge, sdbox(newer, second), "", "all"]
    done = mail.aimport(*line, env={"XDG_STATE_HOME": str(tmp_path), "DST_PW": server.password})
    report = json.loads(done.stdout)["totals"]

    # Of a folder that nobody opened meanwhile the second snapshot still has the old mails: each is told of.
    lost_lines = 0 if emptied else 2
    assert done.returncode == (65 if lost_lines else 0), done.stderr
    assert (report["found"], report["imported"]) == (4 + lost_lines, 4)
    assert report["rejected"] == lost_lines
    assert report["reasons"]["rejected"] == ({"missing": 2} if lost_lines else {})
    assert (mail.tree(newer), mail.tree(second)) == untouched

    validity, inbox = cached(server, "INBOX")
    assert validity == before["INBOX"][0]
    assert {uid: inbox[uid] for uid in before["INBOX"][1]} == before["INBOX"][1]
    assert subjects(inbox) == [*(f"old {number}" for number in range(5)), "new 0", "new 1", "new 2"]
    new = {uid: inbox[uid] for uid in inbox if uid not in before["INBOX"][1]}
    assert new == between  # nobody had deleted any: what clients have cached of the new ones is right too
    assert cached(server, "Archive/2023") == before["Archive/2023"]
    assert list(cached(server, "Later")[1].values()) == [("later", frozenset({"\\Draft"}))]


@pytest.mark.dovecot
def test_no_client_takes_one_new_mail_for_another_when_some_were_deleted_meanwhile(site: Site, tmp_path: Path) -> None:
    """`new-over-old` refuses, and what it says to do is enough."""
    server = site.server
    story = until_it_is_back(site, emptied=True, deleted=6)
    newer, second = put_back(site, story)
    merge = ["--merge", "new-over-old"]
    code, planned = plan(site, tmp_path, merge, sdbox(newer, second))
    assert code == 75 and "clients saw on other mail" in str(planned["error"])
    assert outlook(planned, "INBOX")["imported.seen"] == "repeat"
    line = ["import", "-u", USER, *to(server)[1], *merge, sdbox(newer, second), "", "all"]
    env = {"XDG_STATE_HOME": str(tmp_path)}
    refused = mail.aimport(*line, env=env)
    assert refused.returncode == 75, refused.stderr
    assert cached(server, "INBOX") == story.before["INBOX"]

    commands = re.findall(r"doveadm (mailbox update [^;)]*)", str(planned["error"]))
    assert commands == [f"mailbox update --min-next-uid 9 -u {USER} INBOX"]
    words = shlex.split(commands[0])
    assert words[4:6] == ["-u", USER]
    server.doveadm(*words[:4], *words[6:], user=USER)
    code, planned = plan(site, tmp_path, merge, sdbox(newer, second))
    assert (code, planned["error"]) == (0, None)
    assert outlook(planned, "INBOX")["again.imap.messages"] == 2
    done = mail.aimport(*line, env=env)
    assert done.returncode == 0, done.stderr
    validity, inbox = cached(server, "INBOX")
    assert validity == story.between["INBOX"][0]
    assert subjects(inbox) == [*(f"old {number}" for number in range(5)), "new 1", "new 2"]
    seen = story.before["INBOX"][1] | story.between["INBOX"][1]
    assert all(inbox[uid] == seen[uid] for uid in inbox if uid in seen), "a UID means one mail for ever"


@pytest.mark.dovecot
def test_old_mails_go_on_top_of_the_new_ones_or_below_a_parent_of_their_own(site: Site, tmp_path: Path) -> None:
    """The account stays as it is by now: its mails keep UIDs and flags, recovered ones come behind or apart."""
    server = site.server
    story = until_it_is_back(site, emptied=True)
    location = sdbox(story.lost, story.first)
    env = {"XDG_STATE_HOME": str(tmp_path)}
    now = cached(server, "INBOX")

    line = ["import", "-u", USER, "--json", *to(server)[1]]
    refused = mail.aimport(*line, "--merge", "require-empty", location, "", "all", env=env)
    assert refused.returncode == 75, refused.stderr
    assert "--merge require-empty" in json.loads(refused.stdout)["users"][0]["error"]
    assert cached(server, "INBOX") == now

    words = ["--merge", "under:Recovered/%d"]
    seen = outlook(plan(site, tmp_path, words, location)[1], "INBOX")
    assert (seen["again.pop3.messages"], seen["again.pop3.uidls"]) == (0, None)
    done = mail.aimport(*line, *words, location, "", "all", env=env)
    assert done.returncode == 0, done.stderr
    assert cached(server, "INBOX") == now
    old = list(story.before["INBOX"][1].values())
    assert list(cached(server, "Recovered/example.com/INBOX")[1].values()) == old
    assert subjects(cached(server, "Recovered/example.com/Archive/2023")[1]) == ["archived 0", "archived 1"]

    words = ["--merge", "old-over-new"]
    text = mail.aimport("plan", "-u", USER, *to(server)[1], *words, location, "", "all", env=env)
    assert text.returncode == 0, text.stderr
    seen = outlook(plan(site, tmp_path, words, location)[1], "INBOX")
    assert (seen["existing.uids"], seen["imported.uids"]) == ("6:8", "9:13")
    assert (seen["again.imap.messages"], seen["again.pop3.messages"]) == (5, 5)
    assert seen["again.imap.octets"] == seen["again.pop3.octets"] == seen["imported.octets"]
    assert seen["again.pop3.uidls"] == "new"
    assert f"behind them: UIDs 9:13 (UIDVALIDITY {now[0]}, UIDNEXT 9)" in text.stdout
    done = mail.aimport(*line, *words, "--again", location, "", "all", env=env)
    assert done.returncode == 0, done.stderr
    validity, inbox = cached(server, "INBOX")
    assert validity == now[0]
    assert {uid: inbox[uid] for uid in now[1]} == now[1]
    assert [inbox[uid] for uid in range(9, 14)] == old
