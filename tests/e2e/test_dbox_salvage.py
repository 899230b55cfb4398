"""Damaged stores by the command: what fails says how to go on, and `resume --salvage` takes what is whole, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import mail
from tests.dbox_made import Made, small_mdbox, small_sdbox


def cut_log(made: Made) -> None:
    """The end of the folder's log is lost, in the middle of a record."""
    log = made.root / "mailboxes" / "INBOX" / "dbox-Mails" / "dovecot.index.log"
    log.write_bytes(log.read_bytes()[:60])


def lose_index(made: Made) -> None:
    for file in (made.root / "mailboxes" / "INBOX" / "dbox-Mails").glob("dovecot.index*"):
        file.unlink()


@pytest.mark.parametrize("kind", ["sdbox", "mdbox"])
@pytest.mark.parametrize("damage", [cut_log, lose_index])
def test_a_folder_that_fails_is_salvaged_by_a_resume(kind: str, damage: object, tmp_path: Path) -> None:
    made = (small_sdbox if kind == "sdbox" else small_mdbox)(tmp_path / "store")
    assert callable(damage)
    damage(made)
    before = mail.tree(made.root)
    env = {"XDG_STATE_HOME": str(tmp_path)}
    line = ["import", "-u", "bob", "--json", "--to", f"maildir:{tmp_path}/out", f"{kind}:{made.root}", "", "ALL"]
    failed = mail.aimport(*line, env=env)
    assert failed.returncode == 75, failed.stderr
    assert "--salvage takes what is whole" in json.loads(failed.stdout)["users"][0]["error"]
    done = mail.aimport("resume", "--salvage", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert "source damaged user=bob mailbox=INBOX" in done.stderr
    totals = json.loads(done.stdout)["totals"]
    assert (totals["found"], totals["imported"]) == (3, 3)
    seen = mail.in_maildir(tmp_path / "out")
    assert sorted(each.digest for each in seen.elements()) == sorted(map(mail.digest, made.bodies))
    assert mail.tree(made.root) == before


@pytest.mark.parametrize("kind", ["sdbox", "mdbox"])
def test_what_no_index_has_is_told_of_then_salvaged(kind: str, tmp_path: Path) -> None:
    made = (small_sdbox if kind == "sdbox" else small_mdbox)(tmp_path / "store")
    log = made.root / "mailboxes" / "INBOX" / "dbox-Mails" / "dovecot.index.log"
    log.write_bytes(log.read_bytes()[:40])  # a log with nothing in it, and no sign of damage
    env = {"XDG_STATE_HOME": str(tmp_path)}
    line = ["import", "-u", "bob", "--json", "--to", f"maildir:{tmp_path}/out", f"{kind}:{made.root}", "", "ALL"]
    some = mail.aimport(*line, env=env)
    lost = 1 if kind == "sdbox" else 3  # the log is all that the folder of mdbox has
    assert some.returncode == 65, some.stderr
    report = json.loads(some.stdout)["totals"]
    assert (report["found"], report["imported"]) == (3, 3 - lost)
    assert report["reasons"]["rejected"] == {"unindexed": lost}
    done = mail.aimport("resume", "--salvage", "--json", env=env)
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)["totals"]
    assert (totals["found"], totals["imported"], totals["rejected"]) == (3, 3, 0)
    # What is lost of each is told in a file of the run, with a count, and not once more by another resume.
    assert totals["damages"] == lost + 1
    again = mail.aimport("resume", "--salvage", env=env)
    assert f"{lost + 1} damages of sources" in again.stdout
    [file] = tmp_path.glob("aimport/*/damages.jsonl")
    damages = [json.loads(each) for each in file.read_text().splitlines()]
    assert [each["user"] for each in damages] == ["bob"] * (lost + 1)
    folder, *messages = damages
    assert (folder["mailbox"], folder["key"]) == ("INBOX", None)
    assert f"flags and keywords of {lost} messages are lost" in folder["text"]
    assert all(each["key"] and "flags and keywords are lost" in each["text"] for each in messages)
    assert len({each["key"] for each in messages}) == lost
    assert str(file) in again.stderr


@pytest.mark.parametrize("kind", ["sdbox", "mdbox"])
def test_what_is_there_already_is_known_from_dbox_too(kind: str, tmp_path: Path) -> None:
    made = (small_sdbox if kind == "sdbox" else small_mdbox)(tmp_path / "store")
    env = {"XDG_STATE_HOME": str(tmp_path)}
    line = ["--to", f"maildir:{tmp_path}/out", f"{kind}:{made.root}", "", "ALL"]
    assert mail.aimport("import", "-u", "bob", *line, env=env).returncode == 0
    again = mail.aimport("import", "-u", "bob", "--skip-existing", "--json", *line, env=env)
    assert again.returncode == 0, again.stderr
    totals = json.loads(again.stdout)["totals"]
    assert (totals["found"], totals["imported"], totals["present"]) == (3, 0, 3)
