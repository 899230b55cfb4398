"""Bad input: who, where, what, what next; the others are done; the right exit code; never a traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aimport import sample
from tests import mail
from tests.fix_dovecot import Dovecot, run_dovecot

SOURCE = "maildir:{}/%u/Maildir"


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three users with mail, and a list of them."""
    for user in ("ann", "bob", "cyd"):
        sample.write_maildir(tmp_path / user / "Maildir", sample.account(user, seed=5, messages=30))
    (tmp_path / "users").write_text("ann\nbob\ncyd\n")
    return tmp_path


def run(root: Path, *words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = mail.aimport(*words, cwd=root, env={"XDG_STATE_HOME": str(root / "state"), **(env or {})})
    assert "Traceback" not in done.stderr
    return done


def import_all(root: Path, *options: str | Path, query: tuple[str, ...] = ("ALL",)) -> subprocess.CompletedProcess[str]:
    return run(
        root,
        "import",
        "-F",
        "users",
        "--json",
        "--to",
        f"maildir:{root}/to/%u",
        *options,
        SOURCE.format(root),
        "",
        *query,
    )


def statuses(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {user["user"]: user["status"] for user in json.loads(done.stdout)["users"]}


def test_a_missing_source_fails_that_user_alone(three: Path) -> None:
    with (three / "users").open("a") as file:
        file.write("nobody\n")
    done = import_all(three)
    assert done.returncode == 75
    assert statuses(done) == {"ann": "done", "bob": "done", "cyd": "done", "nobody": "failed"}
    assert f"{three}/nobody/Maildir" in done.stderr and "nobody" in done.stderr
    assert not (three / "to" / "nobody").exists()
    assert not (three / "nobody").exists()


def test_an_unreadable_folder_fails_that_user_and_the_rest_of_it_is_done(three: Path) -> None:
    """A folder that is a symlink is not followed; one that cannot be opened fails its mailbox."""
    folder = three / "bob" / "Maildir" / ".Sent" / "cur"
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")
    (three / "bob" / "Maildir" / ".Sent" / "new").rename(folder.with_name("new2"))
    (folder.with_name("new")).write_text("no directory")
    done = import_all(three)
    assert done.returncode == 75, done.stdout
    assert statuses(done)["bob"] == "failed"
    assert statuses(done)["ann"] == "done"
    assert "Sent" in done.stderr
    assert mail.in_maildir(three / "to" / "bob")


def test_an_unknown_user_of_the_list_is_67(three: Path) -> None:
    done = run(three, "import", "-F", "users", "-u", "eve", "--to", "maildir:/tmp/x", SOURCE.format(three), "", "ALL")
    assert done.returncode == 67
    assert "eve" in done.stderr and "users" in done.stderr


def test_a_mask_that_matches_nobody_is_success(three: Path) -> None:
    done = run(
        three, "import", "-F", "users", "-u", "z*", "--to", f"maildir:{three}/to/%u", SOURCE.format(three), "", "ALL"
    )
    assert done.returncode == 0, done.stderr
    assert not (three / "to").exists()


@pytest.mark.fault("F32")
def test_all_bad_lines_of_a_list_are_told_at_once(three: Path) -> None:
    (three / "users").write_text("user,colour\nann,x\n")
    assert "users:1" in import_all(three).stderr
    (three / "users").write_text("ann\nb b\n\n# fine\nann\nc;d\n")
    done = import_all(three)
    assert done.returncode == 64
    for line in (2, 5, 6):
        assert f"users:{line}:" in done.stderr
    assert not (three / "to").exists()


def test_a_mailbox_that_does_not_exist_is_68(three: Path) -> None:
    done = import_all(three, query=("MAILBOX", "Nowhere"))
    assert done.returncode == 68
    assert "Nowhere" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("import",), 64, "SOURCE"),
        (("import", "-u", "bob", "maildir:x", "", "SUBJECT"), 64, "SUBJECT"),
        (("import", "-u", "bob", "maildir:x", "", "SUBJEKT"), 64, "SUBJEKT"),
        (("import", "-u", "bob", "maildir:/x", "", "ALL"), 78, "--to"),
        (("import", "-A", "--to", "maildir:/x/%u", "maildir:/y/%u", "", "ALL"), 78, "-F"),
        (("import", "-u", "bob", "--to", "maildir:/x", "maildir:/y:INDX=1", "", "ALL"), 78, "INDEX"),
        (("import", "-u", "bob", "--to", "maildir:/x", "maildri:/y", "", "ALL"), 78, "maildir"),
        (("import", "-u", "bob", "--to", "maildir:/x", "maildir:/y/%{nope}", "", "ALL"), 78, "nope"),
        (("import", "--map", "a", "-u", "bob", "maildir:x", "", "ALL"), 64, "--map"),
        (("import", "--nonsense", "x", "y", "z"), 64, "--nonsense"),
        (
            ("-o", "dest_password=hunter2", "import", "-u", "bob", "--to", "imap://h/", "maildir:/x", "", "ALL"),
            64,
            "env:",
        ),
        (("-o", "colour=red", "import", "-u", "bob", "--to", "maildir:/x", "maildir:/y", "", "ALL"), 78, "colour"),
        (("verify",), 64, "no run"),
        (("users", "check"), 64, "users"),
        (("report", "--html", "x"), 64, "no run"),
        (("resume",), 64, "run"),
        (("nonsense",), 64, "nonsense"),
    ],
)
def test_usage_and_configuration_say_what_is_wrong(
    tmp_path: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "hunter2" not in done.stderr
    assert not list(tmp_path.iterdir()) or [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.fault("F20")
def test_a_wrong_password_is_tried_once_and_fails_that_user(three: Path) -> None:
    with run_dovecot(extra="auth_failure_delay = 0") as server:
        (three / "users").write_text("user,dest_password\nann,env:GOOD\nbob,env:BAD\n")
        done = run(
            three, "-o", f"dest_tls_ca={server.ca_file}", "import", "-F", "users", "--json",
            "--to", f"imap://localhost:{server.port}/", SOURCE.format(three), "", "ALL",
            env={"GOOD": server.password, "BAD": "canary-secret"},
        )  # fmt: skip
        assert done.returncode == 75
        assert statuses(done) == {"ann": "done", "bob": "refused"}
        assert f"localhost:{server.port}" in done.stderr and "bob" in done.stderr
        assert "canary-secret" not in done.stderr + done.stdout
        (three / "users").write_text("user,dest_password\nbob,env:BAD\n")
        done = run(
            three, "-o", f"dest_tls_ca={server.ca_file}", "import", "-F", "users", "--again",
            "--to", f"imap://localhost:{server.port}/", SOURCE.format(three), "", "ALL",
            env={"BAD": "canary-secret"},
        )  # fmt: skip
        assert done.returncode == 77


def test_a_server_that_is_not_there_names_host_and_port(three: Path) -> None:
    done = run(
        three, "-o", "dest_password=env:PW", "import", "-u", "ann", "--to", "imap://127.0.0.1:1/?tls=off",
        SOURCE.format(three), "", "ALL", env={"PW": "x"},
    )  # fmt: skip
    assert done.returncode == 75
    assert "127.0.0.1:1" in done.stderr


def test_a_message_the_server_refuses_is_named_and_its_neighbours_arrive(three: Path, dovecot: Dovecot) -> None:
    """Dovecot refuses a message of no octets (seen, 2.3.19)."""
    empty = three / "ann" / "Maildir" / "cur" / "1600000000.empty:2,S"
    empty.touch()
    done = run(
        three, "-o", "dest_password=env:PW", "-o", f"dest_tls_ca={dovecot.ca_file}", "import", "-u", "ann", "--json",
        "--to", f"imap://localhost:{dovecot.port}/", SOURCE.format(three), "Refused", "ALL",
        env={"PW": dovecot.password},
    )  # fmt: skip
    assert done.returncode == 65, done.stderr
    report = json.loads(done.stdout)
    assert (report["totals"]["imported"], report["totals"]["rejected"]) == (30, 1)
    [rejects] = three.glob("state/aimport/*/rejects.jsonl")
    [line] = rejects.read_text().splitlines()
    rejected = json.loads(line)
    assert (rejected["user"], rejected["mailbox"], rejected["key"]) == ("ann", "INBOX", "1600000000.empty")
    assert "finished" in run(three, "runs").stdout
    empty.write_bytes(b"Subject: no longer empty\n\n")
    again = run(three, "resume", "--json", env={"PW": dovecot.password})
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["totals"]["imported"] == 31


@pytest.mark.fault("F13")
def test_quota_is_73_and_the_others_are_done(three: Path) -> None:
    with run_dovecot(quota="*:storage=40K") as server:
        sample.write_maildir(three / "tiny" / "Maildir", sample.account("t", seed=1, messages=2, median_octets=500))
        (three / "users").write_text("ann\ntiny\n")
        done = run(
            three, "-o", "dest_password=env:PW", "-o", f"dest_tls_ca={server.ca_file}", "import", "-F", "users",
            "--json", "--to", f"imap://localhost:{server.port}/", SOURCE.format(three), "", "ALL",
            env={"PW": server.password},
        )  # fmt: skip
    assert done.returncode == 73, done.stderr
    assert statuses(done) == {"ann": "quota", "tiny": "done"}


@pytest.mark.fault("F19")
def test_a_certificate_that_is_not_trusted_gets_no_password(three: Path, dovecot: Dovecot) -> None:
    done = run(
        three, "-o", "dest_password=env:PW", "import", "-u", "ann", "--to", f"imaps://localhost:{dovecot.tls_port}/",
        SOURCE.format(three), "", "ALL", env={"PW": "canary-secret"},
    )  # fmt: skip
    assert done.returncode in (75, 77)
    assert "certificate" in done.stderr.lower() and "dest_tls_ca" in done.stderr


@pytest.mark.fault("F26")
def test_a_closed_stdout_ends_without_a_traceback(three: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        command = [
            sys.executable, "-m", "aimport", "import", "-F", "users", "--to", f"maildir:{three}/to/%u",
            SOURCE.format(three), "", "ALL",
        ]  # fmt: skip
        result = subprocess.run(
            command, cwd=three, env=mail.environment({"XDG_STATE_HOME": str(three / "state")}),
            stdout=broken, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr
    assert result.returncode == 0
    assert mail.in_maildir(three / "to" / "ann")


@pytest.mark.fault("F26")
def test_streams_closed_by_the_caller_are_no_error(three: Path) -> None:
    words = ["import", "-F", "users", "--to", f"maildir:{three}/to/%u", SOURCE.format(three), "", "ALL"]
    line = f"exec {shlex.quote(sys.executable)} -m aimport {shlex.join(words)} <&- >&- 2>&-"
    env = mail.environment({"XDG_STATE_HOME": str(three / "state")})
    assert subprocess.run(["sh", "-c", line], cwd=three, env=env, timeout=60, check=False).returncode == 0
    assert mail.in_maildir(three / "to" / "cyd")
