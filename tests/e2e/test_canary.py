"""C1: passwords of any characters work, by LOGIN and by SASL, and are nowhere to be seen."""

from __future__ import annotations

import base64
import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aimport.secret import shapes_of
from tests import mail
from tests.e2e.test_lists import deliver
from tests.faults.forks import run_forks
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.lists import ODD
from tests.processes import descendants, server_folder

pytestmark = [pytest.mark.dovecot, pytest.mark.timeout(200)]

CANARY = "c4nary"
PASSWORDS = [
    f"{CANARY}{number}{odd}{CANARY}" if odd.strip() == odd else f"{odd}{CANARY}{number}{odd}"
    for number, odd in enumerate(odd for odd in ODD if "\t" not in odd)  # Dovecot lets nobody in with a tab
]
BROKEN = len(PASSWORDS)
"""Number of the user whose password is wrong, and whose trace would quote it."""


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    """Users `s0@a.org`, ... at the source and `d0@a.org`, ... at the destination, each with a password of its own."""
    with server_folder("canary") as folder:
        users = folder / "users"
        lines = []
        for number, password in enumerate(PASSWORDS):
            encoded = base64.b64encode(password.encode()).decode()
            lines += [f"{side}{number}@a.org:{{PLAIN.b64}}{encoded}\n" for side in "sd"]
        users.write_text("".join(lines))
        users.chmod(0o644)
        passdb = f"passdb {{\n  driver = passwd-file\n  args = username_format=%u {users}\n}}"
        with run_dovecot(extra=passdb, password="of-nobody-else") as dovecot:
            yield dovecot


def listed(server: Dovecot, form: str) -> str:
    """Every second user logs in by the LOGIN command."""
    rows = []
    for number, password in enumerate([*PASSWORDS, f"{CANARY}-wrong"]):
        auth = "login" if number % 2 else "plain"
        rows.append(
            {
                "user": f"d{number}@a.org",
                "source": f"imaps://localhost:{server.tls_port}/",
                "source_user": f"s{number}@a.org",
                "source_password": password,
                "source_auth": auth,
                "dest": f"imap://localhost:{server.port}/",
                "dest_password": password,
                "dest_auth": auth,
            }
        )
    if form == "json":
        return "".join(json.dumps(row) + "\n" for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def shown_in(octets: bytes) -> list[str]:
    """Which canaries are in it, as they are, in base64 at any offset, or as a URL writes them."""
    shapes = {shape for password in PASSWORDS for shape in shapes_of([password])} | set(shapes_of([CANARY]))
    return sorted(shape for shape in shapes if shape.encode() in octets)


def of_processes(pid: int) -> bytes:
    """Arguments and environments of a process and of those below it."""
    seen = b""
    for each in (pid, *descendants(pid)):
        with suppress(OSError):
            seen += Path(f"/proc/{each}/cmdline").read_bytes() + Path(f"/proc/{each}/environ").read_bytes()
    return seen


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_password_of_any_characters_works_and_is_never_visible(form: str, server: Dovecot, tmp_path: Path) -> None:
    for number in range(len(PASSWORDS)):
        maildir = server.maildir(f"s{number}@a.org")
        deliver(maildir, f"mail of {number}")
        server.own(maildir.parent)
    empty = server.maildir("s0@a.org") / "cur" / "1500000009.M1P1.host:2,S"
    empty.touch()  # is rejected: the rejects are looked at, too
    server.own(empty)
    users = tmp_path / "users"
    users.write_text(listed(server, form), encoding="utf-8")
    users.chmod(0o600)
    journal, out, err = tmp_path / "journal", tmp_path / "out", tmp_path / "err"
    ca = server.ca_file
    words = [
        "-D", f"-osource_tls_ca={ca}", f"-odest_tls_ca={ca}", "import", "-F", str(users), "--json",
        "--journal", str(journal), "", form, "ALL",
    ]  # fmt: skip
    processes = b""
    with out.open("wb") as stdout, err.open("wb") as stderr:
        run = subprocess.Popen(
            [sys.executable, "-m", "aimport", *words], env=mail.environment(), stdout=stdout, stderr=stderr
        )
        while run.poll() is None:
            processes += of_processes(run.pid)
            with suppress(subprocess.TimeoutExpired):
                run.wait(0.1)
    report = json.loads(out.read_text())
    statuses = {each["user"]: each["status"] for each in report["users"]}
    assert statuses.pop(f"d{BROKEN}@a.org") == "refused"
    assert statuses.pop("d0@a.org") == "rejects"
    assert set(statuses.values()) == {"done"} and len(statuses) == len(PASSWORDS) - 1, err.read_text()
    assert report["totals"]["imported"] == len(PASSWORDS) and report["totals"]["rejected"] == 1
    assert b"aimport" in processes and b"--journal" in processes
    for octets in (processes, out.read_bytes(), err.read_bytes()):
        assert shown_in(octets) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != users]
    assert any(path.name == "rejects.jsonl" for path in files) and len(files) > 5
    for path in files:
        assert shown_in(path.read_bytes()) == [], path
    told = mail.aimport("report", "--journal", journal)
    checked = mail.aimport("users", "check", users, "--show", "99")
    assert checked.returncode == 0 and "(8 characters" not in checked.stderr
    for said in (told.stdout, told.stderr, checked.stdout, checked.stderr):
        assert shown_in(said.encode()) == []


def test_not_even_a_bug_that_quotes_the_password_shows_it(server: Dovecot, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(listed(server, "json"), encoding="utf-8")
    users.chmod(0o600)
    words = [
        "-D", f"-osource_tls_ca={server.ca_file}", f"-odest_tls_ca={server.ca_file}", "import", "-F", str(users),
        "--json", "--journal", str(tmp_path / "journal"), "", "Bug", "ALL",
    ]  # fmt: skip
    with run_forks() as forks:
        done = forks.run(words, then="tests.faults.hooks:bug_in_the_login")
    assert done.code == 70
    assert "RuntimeError" in done.err and "cannot log in with *** here" in done.err
    assert shown_in((done.err + done.out).encode()) == []
