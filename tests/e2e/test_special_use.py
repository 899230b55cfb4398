"""`--special-use`, `--map` and `--exclude` from the command line, with real servers.

Invariant: what the plan shows is what is there afterwards, and a second command of the run (resume, verify) finds it.
"""

from __future__ import annotations

import imaplib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aimport.names import encode_utf7
from tests import mail, servers
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import Dovecot, run_dovecot

GERMAN = """
namespace inbox {
  mailbox Gesendet {
    special_use = \\Sent
    auto = create
  }
  mailbox Papierkorb {
    special_use = \\Trash
    auto = create
  }
  mailbox Archiv {
    special_use = \\Archive
  }
}
"""
"""Lines for a server whose special mailboxes have German names; there is no `Archiv` before somebody makes one."""


@pytest.fixture(scope="module")
def german() -> Iterator[Dovecot]:
    try:
        with run_dovecot(extra=GERMAN) as server:
            yield server
    except servers.CannotGet as reason:
        pytest.skip(str(reason))


def maildir(root: Path, *names: str) -> str:
    """A Maildir with a message in each mailbox, which says the mailbox's name."""
    for name in names:
        folder = root if name == "INBOX" else root / f".{name}"
        for part in ("cur", "new", "tmp"):
            (folder / part).mkdir(parents=True)
        (folder / "cur" / f"1500000000.M1P1.{len(name)}:2,S").write_bytes(f"Subject: {name}\n\nbody\n".encode())
    return f"maildir:{root}"


@contextmanager
def imap(server: Dovecot | Cyrus, user: str) -> Iterator[imaplib.IMAP4]:
    with imaplib.IMAP4(server.host, server.port, timeout=30) as client:
        client.login(user, server.password)
        yield client


def subjects(server: Dovecot | Cyrus, user: str) -> dict[str, list[str]]:
    """Of the messages of each mailbox that has some."""
    found = {}
    with imap(server, user) as client:
        for line in client.list()[1]:
            assert isinstance(line, bytes)
            name = line.rpartition(b'"/" ')[2].decode().strip('"')
            if b"\\Noselect" in line or client.select(f'"{name}"', readonly=True)[0] != "OK":
                continue
            if not client.search(None, "ALL")[1][0]:
                continue
            items = client.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1]
            texts = [item[1].decode().strip().removeprefix("Subject: ") for item in items if isinstance(item, tuple)]
            if texts:
                found[name] = texts
    return found


class Commands:
    """The command with the settings of one destination."""

    def __init__(self, server: Dovecot | Cyrus, user: str, state: Path) -> None:
        self._env = {"XDG_STATE_HOME": str(state), "DST_PW": server.password}
        self._settings = ["-o", "dest_password=env:DST_PW", "-o", f"dest_tls_ca={server.ca_file}"]
        self._words = ["-u", user, "--to", f"imap://localhost:{server.port}/"]

    def __call__(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        return mail.aimport(*self._settings, command, *self._words, *words, env=self._env)

    def alone(self, *words: str) -> subprocess.CompletedProcess[str]:
        return mail.aimport(*words, env=self._env)


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What goes where, by a plan with --json."""
    said = json.loads(done.stdout)
    return {mailbox["source"]: mailbox["dest"] for mailbox in said["mailboxes"]}


@pytest.mark.dovecot
def test_a_maildir_finds_the_special_mailboxes_of_a_server_by_their_attributes(german: Dovecot, tmp_path: Path) -> None:
    source = maildir(
        tmp_path / "old", "INBOX", "Sent Items", "Sent Items.2020", "Trash", "Trash.x", "Junk", "Lists.a", "Lists.b"
    )
    run = Commands(german, "attributes", tmp_path)
    names = ["--special-use", "--exclude", "Trash.*", "--map", "Lists=Listen", "--map", "s/^Junk$/Spam/"]
    words = [*names, source, "", "ALL"]
    planned = run("plan", "--json", *words)
    assert planned.returncode == 0, planned.stderr
    expected = {
        "INBOX": "INBOX", "Sent Items": "Gesendet", "Sent Items.2020": "Gesendet/2020", "Trash": "Papierkorb",
        "Junk": "Spam", "Lists.a": "Listen/a", "Lists.b": "Listen/b",
    }  # fmt: skip
    assert shown(planned) == expected
    assert json.loads(planned.stdout)["excluded"] == ["Trash.x"]
    text = run("plan", *words).stdout
    assert "Sent Items -> Gesendet (\\Sent): 1 messages" in text and "  Trash.x: excluded\n" in text
    done = run("import", "--json", *words)
    assert (done.returncode, json.loads(done.stdout)["totals"]["found"]) == (0, 7), done.stderr
    assert subjects(german, "attributes") == {dest: [source] for source, dest in expected.items()}

    # The options are part of the run: `resume` and `verify` need none of them, and another job is another run.
    assert run.alone("resume").returncode == 0
    verified = run.alone("verify", "--deep", "--json")
    assert (verified.returncode, json.loads(verified.stdout)["totals"]["equal"]) == (0, 7), verified.stderr
    assert sum(map(len, subjects(german, "attributes").values())) == 7


@pytest.mark.dovecot
def test_special_mailboxes_of_two_servers_find_each_other_and_a_new_one_is_made(
    german: Dovecot, dovecot: Dovecot, tmp_path: Path
) -> None:
    """IMAP to IMAP: attributes at the source, names at a destination that has none, `Archiv` that nobody made yet."""
    with imap(german, "between") as client:
        client.create("Archiv")
        client.create("Gesendet/2020")
        for name in ("Gesendet", "Gesendet/2020", "Papierkorb", "Archiv"):
            client.append(name, "", '"01-Jan-2020 00:00:00 +0000"', f"Subject: {name}\r\n\r\nx\r\n".encode())
    with imap(dovecot, "between") as client:
        for name in ("Sent Messages", "Trash"):
            client.create(f'"{name}"')
    env = {"XDG_STATE_HOME": str(tmp_path), "PW": german.password}
    settings = [
        "source_password=env:PW", "dest_password=env:PW", f"source_tls_ca={german.ca_file}",
        f"dest_tls_ca={dovecot.ca_file}",
    ]  # fmt: skip
    options = [word for setting in settings for word in ("-o", setting)]
    words = ["-u", "between", "--special-use", "--to", f"imap://localhost:{dovecot.port}/"]
    done = mail.aimport(*options, "import", *words, f"imap://localhost:{german.port}/", "", "ALL", env=env)
    assert done.returncode == 0, done.stderr
    assert subjects(dovecot, "between") == {
        "Sent Messages": ["Gesendet"], "Sent Messages/2020": ["Gesendet/2020"], "Trash": ["Papierkorb"],
        "Archiv": ["Archiv"],
    }  # fmt: skip


@pytest.mark.cyrus
def test_where_a_server_has_create_special_use_new_mailboxes_have_their_attributes(
    cyrus: Cyrus, tmp_path: Path
) -> None:
    user = cyrus.create_user("special")
    source = maildir(tmp_path / "old", "INBOX", "Gesendet", "Papierkorb", "Projekte")
    run = Commands(cyrus, user, tmp_path)
    done = run("import", "--special-use", source, "", "ALL")
    assert done.returncode == 0, done.stderr
    with imap(cyrus, user) as client:
        assert "CREATE-SPECIAL-USE" in client.capabilities
        typ, lines = client._simple_command("LIST", '(SPECIAL-USE) "" "*"')
        assert typ == "OK"
        special = {line for line in client._untagged_response(typ, lines, "LIST")[1] if line}
    attributes = {line.rpartition(b" ")[2]: b"\\Sent" in line or b"\\Trash" in line for line in special}
    assert len(attributes) == 2 and all(attributes.values())

    # A second account's worth of mail, in another language, goes to the same mailboxes by these attributes.
    french = "\u00c9l\u00e9ments envoy\u00e9s"
    more = maildir(tmp_path / "more", encode_utf7(french), "Corbeille")
    places = shown(run("plan", "--special-use", "--json", more, "", "ALL"))
    assert (places[french], places["Corbeille"]) == ("Gesendet", "Papierkorb")


@pytest.mark.dovecot
def test_two_mailboxes_with_one_name_fail_their_user_before_anything_is_written(
    german: Dovecot, tmp_path: Path
) -> None:
    source = maildir(tmp_path / "old", "INBOX", "Sent", "Gesendet.x", "Sent.x")
    run = Commands(german, "clash", tmp_path)
    for command in ("plan", "import"):
        refused = run(command, "--map", "Sent=Gesendet", source, "", "ALL")
        assert refused.returncode == 75
        assert "'Gesendet.x' and 'Sent.x' would both become 'Gesendet/x'" in refused.stdout
    assert subjects(german, "clash") == {}
    for wrong in ("Sent", "s/(/x/"):
        assert run("plan", "--map", wrong, source, "", "ALL").returncode == 64
