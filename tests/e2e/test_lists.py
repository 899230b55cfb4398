"""Every form of user list, imported for real: as it is, and once more from what it was converted to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import mail
from tests.faults.forks import Forks, run_forks
from tests.fix_dovecot import Dovecot
from tests.lists import CASES, Case
from tests.processes import server_folder

pytestmark = [pytest.mark.dovecot, pytest.mark.timeout(200)]

DATE = 1_500_000_000


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with run_forks() as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a server's user can read, too."""
    with server_folder("lists") as place:
        yield place


def deliver(maildir: Path, subject: str) -> Counter[mail.Seen]:
    """One message into a Maildir, which it makes."""
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True, exist_ok=True)
    file = maildir / "cur" / f"{DATE}.M1P1.host:2,S"
    file.write_bytes(f"Subject: {subject}\n\nx\n".encode())
    os.utime(file, (DATE, DATE))
    return mail.in_maildir(maildir)


def within(parent: str, seen: Counter[mail.Seen]) -> Counter[mail.Seen]:
    return Counter({item._replace(mailbox=f"{parent}/{item.mailbox}"): count for item, count in seen.items()})


def import_words(dovecot: Dovecot, folder: Path, where: list[str], source: str, parent: str) -> list[str]:
    return [
        "-osource_password=env:PW", "-odest_password=env:PW", f"-osource_tls_ca={dovecot.ca_file}",
        f"-odest_tls_ca={dovecot.ca_file}", "import", "--json", "--journal", str(folder / "journal"), *where,
        source, parent, "ALL",
    ]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_a_list_of_this_form_is_imported_and_so_is_what_it_is_converted_to(
    case: Case, dovecot: Dovecot, forks: Forks, folder: Path, unique_user: str
) -> None:
    names = {letter: f"{letter.lower()}{unique_user}" for letter in "ABCD"}
    host, port = "localhost", str(dovecot.tls_port)
    values = {**names, "S": host, "T": host, "P": port, "Q": port, "R": str(folder)}
    path = case.write(folder, values)
    expected = {}
    for source, dest in case.users:
        # Where both ends have one name, what is there already is all that there may be beside what comes.
        maildir = folder / "home" / names[source] / "Maildir" if case.local else dovecot.maildir(names[source])
        expected[dest] = deliver(maildir, f"{case.file} {source}")
        dovecot.own(maildir.parent)
    form = ["--list-format", case.form] if case.named else []

    def run(file: Path, parent: str, *form: str) -> None:
        to = [] if case.to is None else ["--to", case.to.replace("$T", host).replace("$Q", port)]
        source = case.source.replace("$S", host).replace("$P", port)
        words = import_words(dovecot, folder, ["-F", str(file), *form, *to], source, parent)
        done = forks.run(words, env={"PW": dovecot.password})
        assert done.code == 0, done.err
        assert done.totals["found"] == done.totals["imported"] == 2

    run(path, "", *form) if not case.one_sided or case.local else run(path, "One", *form)
    out = folder / "out.csv"
    done = forks.run(["users", "convert", str(path), "-o", str(out), *form])
    assert done.code == 0, done.err
    assert "pass" not in {cell for line in out.read_text().splitlines() for cell in line.split(",")}
    if case.one_sided and not case.local:
        assert forks.run(["users", "check", str(out)]).code in (0, 75)
        held = mail.in_maildir(dovecot.maildir(names["A"]))
        assert {item for item in held if item.mailbox.startswith("One/")} == set(within("One", expected["A"]))
        return
    run(out, "Again")
    for _, dest in case.users:
        parent = case.parent or "Again"
        held = mail.in_maildir(dovecot.maildir(names[dest]))
        first = within(case.parent, expected[dest]) if case.parent else expected[dest]
        assert held == first + within(parent, expected[dest])


def test_a_home_of_cpanel_is_imported_with_the_default_mailbox(
    dovecot: Dovecot, forks: Forks, folder: Path, unique_user: str
) -> None:
    """An importer that forgot the default mailbox lost it silently."""
    account, _, domain = unique_user.partition("@")
    domain = f"{account}.{domain}"
    home = folder / "homes" / account
    expected = {
        account: deliver(home / "mail", "default"),
        f"admin@{domain}": deliver(home / "mail" / domain / "admin", "admin"),
    }
    (home / "etc" / domain).mkdir(parents=True)
    owner = f"{dovecot.owner.uid}:{dovecot.owner.gid}"
    (home / "etc" / domain / "passwd").write_text(f"admin:x:{owner}::/home/{account}/mail/{domain}/admin:/bin/bash\n")
    dovecot.own(folder)
    to = f"imaps://localhost:{dovecot.tls_port}/"
    done = forks.run(
        import_words(dovecot, folder, ["-F", str(home.parent), "--to", to], "", ""), env={"PW": dovecot.password}
    )
    assert done.code == 0, done.err
    for user, seen in expected.items():
        assert mail.in_maildir(dovecot.maildir(user)) == seen


def test_a_tree_of_mbox_files_is_imported_under_their_labels(
    dovecot: Dovecot, forks: Forks, folder: Path, unique_user: str
) -> None:
    tree = folder / "tree" / unique_user
    (tree / "Label").mkdir(parents=True)
    for name in ("Label.mbox", "Label/Sub.mbox", "INBOX.mbox"):
        text = f"From bob@example.org Fri Jul 14 02:40:00 2017\nSubject: {name}\n\nx\n"
        (tree / name).write_text(text)
    dovecot.own(folder)
    to = f"imaps://localhost:{dovecot.tls_port}/"
    done = forks.run(
        import_words(dovecot, folder, ["-F", str(folder / "tree"), "--to", to], "", ""), env={"PW": dovecot.password}
    )
    assert done.code == 0, done.err
    held = mail.in_maildir(dovecot.maildir(unique_user))
    assert sorted(item.mailbox for item in held.elements()) == ["INBOX", "Label", "Label/Sub"]
