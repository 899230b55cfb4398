"""The mail volume is lost and comes back: new mails go on top of the old ones, by the line of the documentation.

    ── breakage ──▶ first snapshot of the indexes     ── deliveries into an empty volume ──▶ second snapshot
    old mails + first snapshot are served again, and `aimport` brings in new mails + second snapshot

Invariant: old mails keep UIDs, flags and octets, so what clients have cached stays valid; nothing is there twice and
nothing is lost. The steps are those of docs/disaster-recovery.md.
"""

from __future__ import annotations

import imaplib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
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


@pytest.mark.dovecot
@pytest.mark.parametrize(("way", "emptied"), [("tunnel", False), ("imap", True)])
def test_new_mails_go_on_top_of_the_old_ones_that_came_back(
    site: Site, way: str, emptied: bool, tmp_path: Path
) -> None:
    """`emptied`: before the second snapshot Dovecot was made to notice that the old mails are not there."""
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
    between = cached(server, "INBOX")[1]
    assert subjects(between) == ["new 0", "new 1", "new 2"]
    if emptied:
        server.doveadm("force-resync", "*", user=USER)

    # The old volume is back, with the indexes as they were.
    second = snapshot(site, "second")
    newer = site.aside / "newer"
    site.mail.rename(newer)
    lost.rename(site.mail)
    shutil.rmtree(site.index)
    first.rename(site.index)
    server.own(site.index)
    assert {name: cached(server, name) for name in before} == before
    untouched = mail.tree(newer), mail.tree(second)

    location = f"sdbox:{newer}/{USER}:INDEX={second}/{USER}:CONTROL={second}/{USER}:ITERINDEX"
    if way == "tunnel":
        to = ["--to", f"tunnel:{shlex.join(server.exec_command)}"]
        options = []
    else:
        to = ["--to", f"imap://localhost:{server.port}/"]
        options = ["-o", "dest_password=env:DST_PW", "-o", f"dest_tls_ca={server.ca_file}"]
    line = [*options, "import", "-u", USER, "--json", *to, location, "", "all"]
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
