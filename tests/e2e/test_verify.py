"""`aimport verify` and the manifest as users run them, against a real Dovecot and a local Maildir.

Invariant: nothing is written at the destination, and a run in order ends with 0.
"""

from __future__ import annotations

import imaplib
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Final

import pytest

from aimport import sample
from tests import mail
from tests.fix_dovecot import Dovecot
from tests.unit.test_manifest import holds

pytestmark = [pytest.mark.timeout(300)]

MESSAGES: Final = 40
SECRETS: Final = {"PW": "pass"}
ODD: Final = {
    b"Subject: n\0l\n\nx\n": "nul",
    b"Subject: cr\n\nCRCRLF\r\r\nend\n": "cr",
}


def run(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = mail.aimport(*words, env=SECRETS, timeout_s=200)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def verify(journal: Path, *words: str, code: int = 0) -> dict[str, object]:
    found: dict[str, object] = json.loads(run("verify", "--json", "--journal", journal, *words, code=code).stdout)
    return found


def totals(found: dict[str, object]) -> dict[str, int]:
    counts = found["totals"]
    assert isinstance(counts, dict)
    return counts


def kinds(found: dict[str, object]) -> object:
    return dict[str, object](totals(found))["kinds"]


def maildir(folder: Path, user: str) -> Path:
    sample.write_maildir(folder / "Maildir", sample.account(user, seed=7, messages=MESSAGES, median_octets=2000))
    return folder / "Maildir"


@pytest.mark.dovecot
@pytest.mark.fault("F34")
def test_what_a_server_altered_lost_and_holds_twice_is_named(
    dovecot: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    source = maildir(tmp_path, unique_user)
    for number, body in enumerate(ODD):
        (source / "cur" / f"170000000{number}.odd:2,S").write_bytes(body)
    journal = tmp_path / "journal"
    count = MESSAGES + len(ODD)
    run(
        "-odest_password=env:PW", "import", "-u", unique_user, "--to", f"imap://127.0.0.1:{dovecot.port}/?tls=off",
        "--journal", journal, f"maildir:{source}", "", "ALL",
    )  # fmt: skip
    found = verify(journal, code=65)
    # Of the two that Dovecot alters one has another size: it is read, and named.
    assert (totals(found)["checked"], totals(found)["read"], kinds(found)) == (count, 1, {"cr": 1})
    deep = verify(journal, "--deep", code=65)
    assert (totals(deep)["read"], totals(deep)["missing"], kinds(deep)) == (count, 0, {"cr": 1, "nul": 1})
    assert totals(deep)["equal"] == count - 2
    with imaplib.IMAP4(dovecot.host, dovecot.port, timeout=30) as client:
        client.login(unique_user, dovecot.password)
        client.select("INBOX")
        [fetched] = [each for each in client.fetch("2", "(INTERNALDATE RFC822)")[1] if isinstance(each, tuple)]
        date = fetched[0].partition(b'INTERNALDATE "')[2].partition(b'"')[0].decode()
        client.append("INBOX", "", f'"{date}"', fetched[1])
        client.append("INBOX", "", "", b"Subject: delivered since\r\n\r\n")
        client.store("1", "+FLAGS.SILENT", "\\Deleted")
        client.uid("EXPUNGE", "1")  # others may be marked as well
    changed = verify(journal, "--deep", code=65)
    counts = totals(changed)
    assert (counts["missing"], counts["doubled"], counts["extra"]) == (1, 1, 2)
    differences = changed["differences"]
    assert isinstance(differences, list)
    assert sorted(each["what"] for each in differences) == ["altered", "altered", "doubled", "missing"]
    text = run("verify", "--journal", journal, code=65).stdout
    assert f"{unique_user}: INBOX: message " in text and "is missing" in text


@pytest.mark.dovecot
def test_octets_from_a_server_are_equal_but_for_line_ends_in_a_maildir(
    dovecot: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    with imaplib.IMAP4(dovecot.host, dovecot.port, timeout=30) as client:
        client.login(unique_user, dovecot.password)
        for number in range(5):
            client.append("INBOX", "", "", b"Subject: %d\r\n\r\ntext\r\n" % number)
    run(
        "-osource_password=env:PW", "import", "-u", unique_user, "--to", f"maildir:{tmp_path}/new",
        "--journal", tmp_path / "journal", f"imap://127.0.0.1:{dovecot.port}/?tls=off", "", "ALL",
    )  # fmt: skip
    before = mail.tree(tmp_path / "new")
    counts = totals(verify(tmp_path / "journal", "--deep"))
    assert (counts["checked"], counts["line_ends"], counts["equal"]) == (5, 5, 0)
    assert mail.tree(tmp_path / "new") == before


def test_a_share_is_read_and_a_run_of_several_users_is_verified_whatever_the_directory(tmp_path: Path) -> None:
    users = [f"user{number}" for number in range(5)]
    for user in users:
        maildir(tmp_path / user, user)
    (tmp_path / "users").write_text("\n".join(users) + "\n")
    run(
        "import", "-F", tmp_path / "users", "--to", f"maildir:{tmp_path}/new/%u", "--journal", tmp_path / "journal",
        f"maildir:{tmp_path}/%u/Maildir", "", "ALL",
    )  # fmt: skip
    assert totals(verify(tmp_path / "journal"))["read"] == 0
    counts = totals(verify(tmp_path / "journal", "--deep=30"))
    assert 0 < counts["read"] < counts["checked"] == counts["equal"] == MESSAGES * len(users)
    (tmp_path / "users").write_text("\n".join(users[1:]) + "\n")
    found = verify(tmp_path / "journal", code=75)
    [gone] = [each for each in found["users"] if each["status"] == "failed"]  # type: ignore[attr-defined]  # JSON
    assert gone["user"] == users[0] and "user list" in gone["error"]


@pytest.mark.parametrize("percent", ["0", "101", "-5", "half", ""])
def test_a_share_that_is_none_is_refused(percent: str, tmp_path: Path) -> None:
    done = run("verify", "--journal", tmp_path, f"--deep={percent}", code=64)
    assert "--deep" in done.stderr


def test_a_manifest_is_written_once_for_its_owner_alone_and_names_every_message(tmp_path: Path) -> None:
    maildir(tmp_path, "bob")
    for _ in range(2):
        run(
            "import", "--again", "-u", "bob", "--to", f"maildir:{tmp_path}/new", "--journal", tmp_path / "journal",
            f"maildir:{tmp_path}/Maildir", "", "ALL",
        )  # fmt: skip
    file = tmp_path / "manifest.jsonl"
    run("report", "--manifest", file, "--journal", tmp_path / "journal")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = file.read_text().splitlines()
    assert holds(written)
    assert sum(json.loads(line).get("decision") == "imported" for line in written) == MESSAGES
    done = run("report", "--manifest", file, "--journal", tmp_path / "journal", code=64)
    assert "is there already" in done.stderr and file.read_text().splitlines() == written
    os.symlink("elsewhere", tmp_path / "link")
    run("report", "--manifest", tmp_path / "link", "--journal", tmp_path / "journal", code=64)
    assert not (tmp_path / "elsewhere").exists()
    runs = [path.name for path in (tmp_path / "journal").iterdir() if path.is_dir()]
    both = tmp_path / "both.jsonl"
    run("report", *runs, "--manifest", both, "--journal", tmp_path / "journal")
    assert holds(both.read_text().splitlines())
    assert sum("n" in json.loads(line) for line in both.read_text().splitlines()) == 2 * MESSAGES
