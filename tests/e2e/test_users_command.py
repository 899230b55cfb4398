"""`aimport users check` and `users convert`, as they are typed: what they say, where, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forks import Forks, run_forks

GOOD = "h.old;ann;c4nary1;h.new;ann;c4nary2;\n"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with run_forks() as server:
        yield server


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(GOOD)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("more", "mode", "code", "said"),
    [
        ("", 0o600, 0, "1 users in the form imapsync; 0 errors"),
        ("h.old;bob;x;h.new;bob;y;--delete2;\n", 0o600, 64, "users:2: option --delete2 has no counterpart"),
        ("h.old;ann;x;h.new;ann;y;\n", 0o600, 64, "users:2: user 'ann' is listed twice"),
        ("", 0o644, 78, "chmod 600"),
        (
            "h.old;bob;x;h.new;bob;env:NO_SUCH_THING;\n",
            0o600,
            75,
            "user 'bob': dest_password: env:NO_SUCH_THING",
        ),
        ("h.old;bob;x;h.new;bob;y;--passfile1 rel;\n", 0o600, 75, "No such file"),
    ],
)
def test_a_check_says_what_is_wrong_on_stdout_and_by_its_code(
    more: str, mode: int, code: int, said: str, users: Path, forks: Forks
) -> None:
    users.write_text(GOOD + more)
    users.chmod(mode)
    done = forks.run(["users", "check", users])
    assert done.code == code, done.out
    assert said in done.out and done.err == ""
    assert "source=imaps://h.old/ source_user=ann source_password=*** (7 characters)" in done.out
    as_json = forks.run(["users", "check", "--json", "--show", "1", users])
    assert as_json.code == as_json.report["exit"] == code
    assert len(as_json.report["rows"]) == 1
    assert any(each["severity"] == "error" for each in as_json.report["findings"]) == (code > 0)
    assert "c4nary" not in done.out + as_json.out


def test_all_wrong_lines_of_a_long_list_are_said(users: Path, forks: Forks) -> None:
    users.write_text(GOOD + "h.old;bob\n" * 500)
    done = forks.run(["users", "check", "--list-format", "imapsync", users])
    assert done.code == 64
    assert [line.partition(" ")[0] for line in done.out.splitlines()[:500]] == [
        f"{users}:{number}:" for number in range(2, 502)
    ]


def test_what_cannot_be_read_or_is_not_clear_ends_with_64(users: Path, forks: Forks, tmp_path: Path) -> None:
    assert forks.run(["users", "check", tmp_path / "none"]).code == 64
    users.write_text("a@b.org,c@d.org\n")
    done = forks.run(["users", "check", users])
    assert done.code == 64 and "mundofy" in done.err and "ispmanager" in done.err
    assert forks.run(["users", "check", "--list-format", "mundofy", users]).code == 0


def test_a_conversion_tells_on_stderr_what_it_did(users: Path, forks: Forks, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    done = forks.run(["users", "convert", users, "-o", out])
    assert (done.code, done.out) == (0, "")
    assert f"1 users, 2 passwords in {out}.secrets" in done.err
    again = forks.run(["users", "convert", users, "-o", out])
    assert again.code == 64 and f"{out}: is there already" in again.err
    shown = forks.run(["users", "convert", users, "--env", tmp_path / "env"])
    assert shown.code == 0 and "env:PW0000001_SOURCE" in shown.out and "set -a; ." in shown.err
    refused = forks.run(["users", "convert", users])
    assert refused.code == 64 and refused.out == "" and "literal password" in refused.err
    both = forks.run(["users", "convert", users, "--env", "a", "--secrets", "b"])
    assert both.code == 64
    assert "c4nary" not in "".join(each.out + each.err for each in (done, again, shown, refused, both))


@pytest.mark.parametrize("command", ["import", "plan"])
def test_passwords_that_others_can_read_are_refused_in_every_form(command: str, users: Path, forks: Forks) -> None:
    users.chmod(0o640)
    done = forks.run([command, "-F", users, "", "", "ALL"])
    assert done.code == 78 and f"chmod 600 {users}" in done.err and "c4nary" not in done.err


def test_a_row_without_a_source_says_so(users: Path, forks: Forks, tmp_path: Path) -> None:
    users.write_text("user\nann\n")
    done = forks.run(["plan", "-F", users, "--to", f"maildir:{tmp_path}/to/%u", "", "", "ALL"])
    assert done.code == 78 and "no source (give SOURCE, or a column source in the user list)" in done.err
    users.write_text("user,source\nann,\n")
    done = forks.run(["plan", "-F", users, "--to", f"maildir:{tmp_path}/to/%u", "", "", "ALL"])
    assert done.code == 75 and "no source" in done.out
