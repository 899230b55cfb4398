"""Whole imports from local stores of other kinds than Maildir."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.mail import aimport, in_maildir

MAIL = b"Received: by x; Wed, 20 May 2020 12:00:00 +0000\nSubject: %d\n\nbody\n"
MBOX = b"From a@b  Wed May 20 12:00:00 2020 +0000\nSubject: %d\nStatus: R\n\nbody\n\n"


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, object]]:
    done = aimport(
        "import", "--journal", str(tmp_path / "journal"), "--json", "-u", "bob", "--to", f"maildir:{tmp_path}/to",
        *arguments,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)["users"][0] if done.stdout else {"error": done.stderr}


def test_guessed_dates_are_counted_in_the_report(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.eml").write_bytes(MAIL % number)
    (tmp_path / "3.eml").write_bytes(b"Subject: 3\n\n")
    code, user = run(tmp_path, f"eml:{tmp_path}", "Old", "ALL")
    assert (code, user["imported"], user["dates"]) == (0, 4, {"mtime": 1, "received": 3})
    assert {seen.mailbox for seen in in_maildir(tmp_path / "to")} == {"Old/INBOX"}


def test_an_mbox_is_imported_with_its_flags_and_dates_and_what_is_cut_is_named(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "inbox").write_bytes(b"".join(MBOX % n for n in range(5)) + (MBOX % 5)[:60])
    code, user = run(tmp_path, f"mbox:{tmp_path}/mail", "", "ALL")
    assert (code, user["found"], user["imported"], user["status"]) == (65, 6, 5, "rejects")
    assert user["reasons"] == {"skipped": {}, "rejected": {"source-changed": 1}}
    assert "dates" not in user
    assert {(seen.internal_date, seen.flags) for seen in in_maildir(tmp_path / "to")} == {
        (1589976000, frozenset({"\\Seen"}))
    }


def test_a_query_chooses_from_an_archive(tmp_path: Path) -> None:
    for name in ("cur", "new"):
        (tmp_path / "m" / name).mkdir(parents=True)
    for number in range(4):
        (tmp_path / "m" / "cur" / f"{number}.M1.h:2,{'S' * (number % 2)}").write_bytes(MAIL % number)
    with tarfile.open(tmp_path / "m.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "m", "m")
    code, user = run(tmp_path, f"tar:{tmp_path}/m.tar.xz", "", "SEEN", "MAILBOX", "INBOX")
    assert (code, user["imported"]) == (0, 2)
    assert {seen.flags for seen in in_maildir(tmp_path / "to")} == {frozenset({"\\Seen"})}


def test_a_source_of_no_mail_fails_its_user(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no mail\n")
    code, user = run(tmp_path, f"mbox:{tmp_path}/x", "", "ALL")
    assert code == 75
    assert "does not begin with a From_ line" in str(user["error"])


@pytest.mark.parametrize("scheme", ["mbox", "eml"])
def test_an_import_is_verified_and_not_made_twice(tmp_path: Path, scheme: str) -> None:
    """From Maildir, with keywords and odd octets; what is there already is left out."""
    for name in ("cur", "new", ".Sent/cur"):
        (tmp_path / "m" / name).mkdir(parents=True)
    for number, body in enumerate(
        [MAIL % 0, b"x: y\r\n\r\nz\r\n", b"x: y\n\nFrom a@b Thu Jan  1 10:00:00 2015\nend", MAIL % 3]
    ):
        (tmp_path / "m" / "cur" / f"150000000{number}.M1.h:2,{'S' * (number % 2)}").write_bytes(body)
    (tmp_path / "m" / ".Sent" / "cur" / "1500000000.M1.h:2,").write_bytes(MAIL % 9)
    journal = ("--journal", str(tmp_path / "journal"))
    to = ("-u", "bob", "--to", f"{scheme}:{tmp_path}/to")
    done = aimport("import", *journal, "--json", *to, f"maildir:{tmp_path}/m", "", "ALL")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["users"][0]["imported"] == 5
    verified = aimport("verify", *journal, "--deep")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    again = aimport("import", *journal, "--json", "--skip-existing", *to, f"maildir:{tmp_path}/m", "", "ALL")
    assert again.returncode == 0, again.stderr
    user = json.loads(again.stdout)["users"][0]
    assert (user["imported"], user["present"]) == (0, 5)
