"""`--skip-existing` on real servers: after our own run, after another client's, and after what servers do to mail."""

from __future__ import annotations

import imaplib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from aimport import sample
from aimport.octets import whole, wire_form
from tests import mail
from tests.fix_courier import Courier
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import Dovecot

pytestmark = [pytest.mark.timeout(300)]

MESSAGES: Final = 30
SECRETS: Final = {"PW": "pass"}
ODD: Final = (
    b"Message-ID: <1@odd>\nSubject: caf\xe9\n\nx\n",
    b"Message-ID: <2@odd>\nSubject: cr\n\nCRCRLF\r\r\nend\n",
    b"Message-ID: <3@odd>\nSubject: mac\n\nold mac\rline\n",
    b"Message-ID: <4@odd>\nSubject: no end\n\nx",
    b"Subject: no name\n\none\n",
    b"Subject: no name\n\none\n",
    b"Subject: no name\n\ntwo\n",
)


def counts(words: Sequence[str | Path], command: str = "import") -> dict[str, int]:
    done = mail.aimport("-odest_password=env:PW", command, *words, env=SECRETS, timeout_s=200)
    assert done.returncode == 0, (done.stdout, done.stderr)
    found: dict[str, int] = json.loads(done.stdout)["totals"]
    return found


@pytest.mark.parametrize("server", ["dovecot", "cyrus", "courier"])
def test_a_second_run_finds_everything_there_and_another_clients_mail_counts(
    server: str, request: pytest.FixtureRequest, unique_user: str, tmp_path: Path
) -> None:
    there: Dovecot | Cyrus | Courier = request.getfixturevalue(server)
    if not isinstance(there, Dovecot):
        there.create_user(unique_user)
    samples = list(sample.account(unique_user, seed=9, messages=MESSAGES, median_octets=2000))
    sample.write_maildir(tmp_path / "Maildir", iter(samples))
    for number, body in enumerate(ODD):
        (tmp_path / "Maildir" / "cur" / f"170000000{number}.odd:2,").write_bytes(body)
    count = len(samples) + len(ODD)
    with imaplib.IMAP4(there.host, there.port, timeout=30) as client:
        client.login(unique_user, there.password)
        inbox = [each for each in samples if each.path == ("INBOX",)]
        for each in inbox[:5]:  # another tool's, with dates of its own
            client.append("INBOX", "", "", wire_form(whole(each.message.body)))
        client.append("INBOX", "", "", wire_form(ODD[4]))
    words = (
        "-u", unique_user, "--to", f"imap://127.0.0.1:{there.port}/?tls=off", "--journal", tmp_path / "journal",
        "--json", "--skip-existing", f"maildir:{tmp_path}/Maildir", "", "ALL",
    )  # fmt: skip
    first = counts(words)
    assert (first["present"], first["imported"]) == (6, count - 6)
    second = counts(words)
    assert (second["present"], second["imported"]) == (count, 0)
    done = mail.aimport("-odest_password=env:PW", "plan", *words, env=SECRETS, timeout_s=200)
    assert json.loads(done.stdout)["mailboxes"] == []


def test_a_maildir_is_filled_up_from_a_server_and_back_without_a_double(
    dovecot: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    sample.write_maildir(tmp_path / "old", sample.account(unique_user, seed=9, messages=MESSAGES, median_octets=2000))
    server = f"imap://127.0.0.1:{dovecot.port}/?tls=off"
    rest = ("--journal", tmp_path / "journal", "--json", "--skip-existing")
    counts(("-u", unique_user, "--to", server, *rest, f"maildir:{tmp_path}/old", "", "ALL"))
    source = ("-osource_password=env:PW", "import", "-u", unique_user, "--to", f"maildir:{tmp_path}/old", *rest)
    done = mail.aimport(*source, server, "", "ALL", env=SECRETS, timeout_s=200)
    found = json.loads(done.stdout)["totals"]
    assert (found["present"], found["imported"]) == (MESSAGES, 0)
    assert mail.in_maildir(tmp_path / "old").total() == MESSAGES
