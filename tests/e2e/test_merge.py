"""`--merge` from the command line, on local stores. With real Dovecot: test_dbox_recovery.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aimport import sample
from tests import mail


def source(root: Path) -> str:
    sample.write_maildir(root / "old", sample.account("bob", seed=5, messages=20))
    return f"maildir:{root}/old"


@pytest.mark.parametrize("kind", ["maildir", "mbox", "eml"])
def test_an_empty_destination_is_filled_and_a_full_one_refused(kind: str, tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    words = ["-u", "bob", "--merge", "require-empty", "--json", "--to", f"{kind}:{tmp_path}/new", source(tmp_path)]
    planned = mail.aimport("plan", *words, "", "ALL", env=env)
    assert planned.returncode == 0, planned.stderr
    done = mail.aimport("import", *words, "", "ALL", env=env)
    assert (done.returncode, json.loads(done.stdout)["totals"]["imported"]) == (0, 20), done.stderr
    before = mail.tree(tmp_path / "new")
    for command in ("plan", "import"):
        refused = mail.aimport(command, *words, "", "ALL", env=env)
        assert refused.returncode == 75
        assert "--merge require-empty was given" in refused.stdout
    assert mail.tree(tmp_path / "new") == before


def test_a_resume_goes_on_in_the_mail_of_its_own_run(tmp_path: Path) -> None:
    """The first process imports what it can; to the second one the destination is not empty, but with its own mail."""
    env = {"XDG_STATE_HOME": str(tmp_path)}
    location = source(tmp_path)
    folder = next(path for path in (tmp_path / "old").iterdir() if path.name.startswith("."))
    shutil.move(folder, tmp_path / "aside")
    folder.symlink_to(tmp_path / "aside")
    words = ["-u", "bob", "--merge", "require-empty", "--json", "--to", f"maildir:{tmp_path}/new", location, "", "ALL"]
    some = mail.aimport("import", *words, env=env)
    imported = json.loads(some.stdout)["totals"]["imported"]
    assert some.returncode == 75 and 0 < imported < 20
    folder.unlink()
    shutil.move(tmp_path / "aside", folder)
    done = mail.aimport("resume", "--json", env=env)
    assert (done.returncode, json.loads(done.stdout)["totals"]["imported"]) == (0, 20), done.stderr


def test_under_is_dest_parent_and_where_uids_are_not_known_the_plan_says_so(tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    location = source(tmp_path)
    words = ["-u", "bob@x", "--to", f"maildir:{tmp_path}/new"]
    under = ["--merge", "under:Recovered/%n"]
    planned = mail.aimport("plan", *words, *under, location, "", "ALL", env=env)
    assert planned.returncode == 0, planned.stderr
    assert "INBOX -> Recovered.bob.INBOX" in planned.stdout
    assert "a new mailbox: UIDs from 1" in planned.stdout
    assert "clients download again: IMAP 20 messages" in planned.stdout and "POP3 nothing" in planned.stdout
    assert mail.aimport("import", *words, *under, location, "", "ALL", env=env).returncode == 0
    seen = mail.in_maildir(tmp_path / "new")
    assert sum(seen.values()) == 20 and all(each.mailbox.startswith("Recovered/bob/") for each in seen)

    more = mail.aimport("plan", *words, "--merge", "old-over-new", location, "Recovered/bob", "ALL", env=env)
    assert "UIDs that the server which reads this store will give" in more.stdout

    for wrong in (["--merge", "under:X", location, "Y", "ALL"], ["--merge", "sideways", location, "", "ALL"]):
        refused = mail.aimport("plan", *words, *wrong, env=env)
        assert refused.returncode == 64 and "--merge" in refused.stderr
