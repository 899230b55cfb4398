"""Queries as they are typed: what is shown, what is refused, exit codes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import mail
from tests.search import make_maildir


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"maildir:{make_maildir(tmp_path / 'old')}"


def typed(home: Path, *words: str, zone: str = "UTC") -> subprocess.CompletedProcess[str]:
    return mail.aimport(*words, cwd=home, env={"XDG_STATE_HOME": str(home / "state"), "TZ": zone})


def keys(home: Path, source: str, *query: str, zone: str = "UTC") -> list[str]:
    """What `plan --keys` says that the query matches, shortened."""
    words = ("plan", "-u", "bob", "--json", "--keys", "--to", f"maildir:{home}/new", source, "", *query)
    done = typed(home, *words, zone=zone)
    assert done.returncode == 0, done.stderr
    return sorted(key.split(".")[1] for mailbox in json.loads(done.stdout)["mailboxes"] for key in mailbox["keys"])


def test_plan_lists_the_keys_of_what_matches_and_warns_once(tmp_path: Path, source: str) -> None:
    assert keys(tmp_path, source, "SUBJECT", "grüße aus köln", "OR", "BODY", "durian") == ["m02", "m05"]
    done = typed(tmp_path, "plan", "-u", "bob", "--to", "maildir:new", source, "", "SEEN", "FLAGGED", "OR", "DELETED")
    assert done.returncode == 0
    assert done.stderr.count("as in doveadm OR joins") == 1


def test_a_query_that_is_refused_is_marked_before_anything_is_opened(tmp_path: Path) -> None:
    done = typed(tmp_path, "import", "-u", "bob", "--to", "maildir:new", "maildir:nowhere", "", "SEEN", "SUBJEKT", "x")
    assert done.returncode == 64
    assert done.stderr.split("\n") == [
        "aimport: query: unknown key SUBJEKT, did you mean SUBJECT?",
        "  SEEN SUBJEKT x",
        "       ^^^^^^^",
        "",
    ]
    assert not (tmp_path / "new").exists() and not (tmp_path / "state").exists()


def test_days_are_those_of_the_zone_but_for_iso_dates_as_in_doveadm(tmp_path: Path, source: str) -> None:
    assert keys(tmp_path, source, "ON", "10-Jan-2020", zone="Asia/Tokyo") == ["m01", "s01"]
    assert keys(tmp_path, source, "ON", "2020-01-10", zone="Asia/Tokyo") == []
    assert keys(tmp_path, source, "SENTON", "15-Feb-2020", zone="Asia/Tokyo") == ["m02"]


def test_import_takes_what_matches_and_a_missing_mailbox_ends_with_68(tmp_path: Path, source: str) -> None:
    done = typed(tmp_path, "import", "-u", "bob", "--order", "newest", "--first", "FLAGGED", "--to", "maildir:new",
                 source, "", "SEEN", "MAILBOX", "INBOX")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "new" / "cur").iterdir())) == 4
    assert typed(tmp_path, "plan", "-u", "bob", "--to", "maildir:new", source, "", "MAILBOX", "Nope").returncode == 68


def test_a_run_keeps_the_moment_that_relative_dates_count_from(tmp_path: Path, source: str) -> None:
    """A resume counts from it too, else a message would leave the selection between the two, in no report."""
    words = ("import", "-u", "bob", "--to", "maildir:new", source, "", "YOUNGER", "100000000")
    assert typed(tmp_path, *words).returncode == 0
    [kept] = (tmp_path / "state" / "aimport").glob("*/run.json")
    assert json.loads(kept.read_text())["arguments"]["moment"] > 1_700_000_000
