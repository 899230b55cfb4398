"""`aimport check` as it is typed, on real servers: what is wrong is told, what is there is as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from aimport import sample
from tests import mail
from tests.fix_courier import Courier
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import Dovecot, run_dovecot

pytestmark = [pytest.mark.timeout(200)]

MESSAGES: Final = 40
SECRETS: Final = {"PW": "pass", "WRONG": "not-it"}


def typed(*words: str | Path, env: Mapping[str, str] | None = None) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the JSON lines by user and the last one, what was said on stderr."""
    done = mail.aimport(*words, env={**SECRETS, **(env or {})}, timeout_s=150)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("server", ["dovecot", "cyrus", "courier"])
def test_a_destination_is_looked_at_and_left_as_it_was(
    server: str, request: pytest.FixtureRequest, unique_user: str, tmp_path: Path
) -> None:
    """One user is right, one has a wrong password (Cyrus takes any), one has no mail. Then an import finds as much."""
    there: Dovecot | Cyrus | Courier = request.getfixturevalue(server)
    users = [f"{name}{unique_user}" for name in ("a", "b", "c")]
    for user in users:
        if not isinstance(there, Dovecot):
            there.create_user(user)
    for user in users[:2]:
        sample.write_maildir(tmp_path / user, sample.account(user, seed=3, messages=MESSAGES, median_octets=800))
    password = there.password if isinstance(there, Cyrus) else "pass"
    rows = [f"{users[0]},env:PW", f"{users[1]},env:WRONG", f"{users[2]},env:PW"]
    (tmp_path / "users.csv").write_text("\n".join(["user,dest_password", *rows, ""]))
    words = ("-F", tmp_path / "users.csv", "--to", f"imap://localhost:{there.port}/", "--json",
             f"maildir:{tmp_path}/%u", "Old", "ALL")  # fmt: skip
    settings = (f"-odest_tls_ca={there.ca_file}",)
    before = mail.tree(tmp_path)
    folders = sorted(os.listdir(there.mail_root)) if not isinstance(there, Cyrus) else []
    code, [first, second, third, last], said = typed(*settings, "check", *words, env={"PW": password})
    assert code == last["exit"] == 75, said
    assert mail.tree(tmp_path) == before
    assert [line["user"] for line in (first, second, third)] == users
    assert (first["status"], first["messages"], first["problems"]) == ("done", MESSAGES, [])
    if isinstance(there, Cyrus):
        assert second["status"] == "done"
    else:
        assert second["status"] == "refused"
        assert f"login of {users[1]}" in second["problems"][0]
        assert f"localhost:{there.port}" in second["problems"][0]
    assert "No such file" in third["problems"][0]
    assert (second["messages"], third["messages"]) == (MESSAGES, 0)
    assert last["totals"]["messages"] == 2 * MESSAGES
    assert last["totals"]["to_fix"] == (1 if isinstance(there, Cyrus) else 2)
    [host] = last["hosts"].values()
    assert (host["server"], host["roles"]) == (server, ["destination"])
    assert (host["logins"], host["refused"]) == ((3, 0) if isinstance(there, Cyrus) else (2, 1))
    assert "IMAP4REV1" in host["capabilities"]
    for user in users:
        if isinstance(there, Dovecot):
            assert there.doveadm("mailbox", "list", user=user).split() == ["INBOX"]
        elif isinstance(there, Courier):
            assert not [name for name in os.listdir(there.maildir(user)) if name.startswith(".Old")]
    if isinstance(there, Courier):
        assert sorted(os.listdir(there.mail_root)) == folders
    done = mail.aimport(*settings, "import", "--no-journal", *words, env={**SECRETS, "PW": password}, timeout_s=150)
    found = {each["user"]: each["found"] for each in json.loads(done.stdout)["users"]}
    assert found[users[0]] == first["messages"]
    assert done.returncode == code


@pytest.mark.dovecot
def test_a_source_counts_as_an_import_finds_and_each_row_has_its_own_trouble(
    dovecot: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    sample.write_maildir(
        dovecot.maildir(unique_user), sample.account(unique_user, seed=4, messages=MESSAGES, median_octets=900)
    )
    dovecot.own(dovecot.home(unique_user))
    here = f"imap://localhost:{dovecot.port}/"
    rows = (
        ("good", here, unique_user, "env:PW", str(dovecot.ca_file)),
        ("wrong", here, unique_user, "env:WRONG", str(dovecot.ca_file)),
        ("nohost", "imaps://no-such-host.invalid/", unique_user, "env:PW", ""),
        ("nocert", f"imaps://localhost:{dovecot.tls_port}/", unique_user, "env:PW", ""),
        ("closed", "imap://localhost:1/", unique_user, "env:PW", ""),
        ("nosecret", here, unique_user, "env:NOT_SET", str(dovecot.ca_file)),
    )
    lines = ["user,source,source_user,source_password,source_tls_ca", *(",".join(row) for row in rows), ""]
    (tmp_path / "users.csv").write_text("\n".join(lines))
    words = ("-F", tmp_path / "users.csv", "--to", f"maildir:{tmp_path}/new/%u", "--json", here, "", "ALL")
    code, [good, wrong, nohost, nocert, closed, nosecret, last], said = typed("check", *words)
    assert code == 75, said
    assert not (tmp_path / "new").exists()
    assert good["status"] == "done"
    assert wrong["status"] == "refused"
    assert "no such host" in nohost["problems"][0]
    assert "certificate does not hold" in nocert["problems"][0]
    assert "refused" in closed["problems"][0]
    assert "NOT_SET" in nosecret["problems"][0]
    assert last["totals"]["ok"] == 1
    assert "not-it" not in json.dumps([wrong, last]) + said
    [disk] = last["disks"]
    assert disk["path"] == str(tmp_path)
    assert disk["octets"] >= good["octets"]
    done = mail.aimport("import", "-u", "good", "--no-journal", *words, env=SECRETS, timeout_s=100)
    report = json.loads(done.stdout)
    assert (report["totals"]["found"], report["totals"]["octets"]) == (good["messages"], good["octets"])


@pytest.mark.dovecot
def test_a_quota_of_a_real_server_is_compared_with_what_is_to_come(tmp_path: Path) -> None:
    for user in ("small", "large"):
        samples = sample.account(user, seed=5, messages=4 if user == "small" else 60, median_octets=1500)
        sample.write_maildir(tmp_path / user, samples)
    (tmp_path / "users").write_text("small\nlarge\n")
    with run_dovecot(quota="*:storage=40K") as server:
        words = (
            "-F",
            tmp_path / "users",
            "--to",
            f"imap://localhost:{server.port}/",
            f"maildir:{tmp_path}/%u",
            "",
            "ALL",
        )
        settings = ("-odest_password=env:PW", f"-odest_tls_ca={server.ca_file}")
        code, [large, last], _ = typed(*settings, "check", "-u", "large", "--json", *words)
        assert code == 73
        assert large["status"] == "quota"
        assert large["problems"][0].startswith("quota User quota: ")
        assert large["quota"] == [{"root": "User quota", "resource": "STORAGE", "used": 0, "limit": 40}]
        assert last["totals"]["to_fix"] == 1
        code, [small, *_], _ = typed(*settings, "check", "-u", "small", "--json", *words)
        assert (code, small["status"]) == (0, "done")
        shown = mail.aimport(*settings, "check", *words, env=SECRETS)
        assert shown.returncode == 73
        first, second, host, *_, sums, time = shown.stdout.splitlines()
        assert first.startswith("small: ok, ")
        assert second.startswith("large: to fix: quota User quota: ")
        assert host.startswith(f"host localhost:{server.port}: destination, dovecot, 2 logins")
        assert sums.startswith("2 users: 1 ok, 1 to fix; ")
        assert time.startswith("at least 0 s: 3000 messages/s")
        imported = mail.aimport(*settings, "import", "--no-journal", *words, env=SECRETS)
        assert imported.returncode == 73  # check has told


def test_max_errors_ends_a_check_early_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("".join(f"user{number}\n" for number in range(50)))
    words = ("-F", tmp_path / "users", "--to", f"maildir:{tmp_path}/new/%u", f"maildir:{tmp_path}/old/%u", "", "ALL")
    code, [*users, last], _ = typed("check", "--users", "1", "--max-errors", "3", "--json", *words)
    assert (code, last["gave_up"]) == (75, True)
    assert 3 <= len(users) < 50
    shown = mail.aimport("check", "--users", "1", "--max-errors", "3", *words)
    assert "the others were not looked at (--max-errors)" in shown.stdout


def test_a_user_who_cannot_begin_has_a_line_like_the_others(tmp_path: Path) -> None:
    sample.write_maildir(tmp_path / "old" / "bob", sample.account("bob", seed=1, messages=3, median_octets=100))
    (tmp_path / "users.csv").write_text("user,dest\nbob,\neve,maildir:~/new\n")
    words = (
        "-F",
        tmp_path / "users.csv",
        "--to",
        f"maildir:{tmp_path}/new/%u",
        f"maildir:{tmp_path}/old/%u",
        "",
        "ALL",
    )
    code, [bob, eve, _], _ = typed("check", "--json", *words)
    assert code == 75
    assert (bob["status"], eve["status"]) == ("done", "failed")
    assert "mail_home" in eve["problems"][0]


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_reader_who_has_seen_enough_is_no_bug(command: str, tmp_path: Path) -> None:
    """`aimport check ... | head -1`: the rest is unfinished, and click's own code for it is none of ours."""
    sample.write_maildir(tmp_path / "one", sample.account("bob", seed=1, messages=1, median_octets=100))
    (tmp_path / "users").write_text("".join(f"user{number}\n" for number in range(2000)))
    words = ("-F", tmp_path / "users", "--to", f"maildir:{tmp_path}/new/%u", f"maildir:{tmp_path}/one", "", "ALL")
    with subprocess.Popen(
        [sys.executable, "-m", "aimport", command, *map(str, words)],
        env=mail.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("user0")
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 75
    assert "internal error" not in said and "Traceback" not in said
