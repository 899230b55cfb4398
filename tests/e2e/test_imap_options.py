"""Options of an IMAP store by the command as users run it: COMPRESS, server profiles, connection limits.

Invariant: an option changes how mail travels, never what arrives.
"""

from __future__ import annotations

import imaplib
import json
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from aimport import sample
from aimport.octets import whole
from tests import kept, mail, servers
from tests.fix_courier import Courier, run_courier
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.fix_faults import Proxy, run_proxy

pytestmark = [pytest.mark.timeout(300)]

BOB: Final = "bob@example.org"
MESSAGES: Final = 60
SECRETS: Final = {"PW": "pass"}


def account(user: str) -> Iterator[sample.Sample]:
    return sample.account(user, seed=5, messages=MESSAGES, median_octets=3000)


def octets_of(user: str) -> int:
    return sum(len(whole(each.message.body)) for each in account(user))


def maildir_of(user: str, folder: Path) -> Path:
    """A Maildir of generated mail below `folder`."""
    sample.write_maildir(folder / user / "Maildir", account(user))
    return folder


def import_(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = mail.aimport(*words, env=SECRETS, timeout_s=200)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def totals(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(done.stdout)["totals"]
    return found


# COMPRESS (RFC 4978)


def compressed(proxy: Proxy) -> list[bool]:
    """For each connection: whether it asked for COMPRESS, after which no command can be read on the wire."""
    found = []
    for link in proxy.links:
        before, asked, after = bytes(link.sent).partition(b"COMPRESS DEFLATE\r\n")
        assert b"LOGIN" in before.upper() or b"AUTHENTICATE" in before.upper(), before[:200]
        if asked:
            assert b"LOGOUT" not in after and b"FETCH" not in after and b"Subject: " not in after
        found.append(bool(asked))
    return found


@pytest.mark.dovecot
@pytest.mark.parametrize("setting", ["yes", "no"])
def test_mail_into_a_server_is_compressed_when_asked_for(
    setting: str, dovecot_with_compress: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    with run_proxy(dovecot_with_compress.port) as proxy:
        done = import_(
            f"-odest_compress={setting}", "-odest_password=env:PW", "import", "-u", unique_user,
            "--to", f"imap://localhost:{proxy.port}/?tls=off", "--json", "--journal", tmp_path / "journal",
            f"maildir:{maildir_of(unique_user, tmp_path)}/%u/Maildir", "", "ALL",
        )  # fmt: skip
    assert totals(done)["imported"] == MESSAGES
    assert mail.in_imap(dovecot_with_compress.port, unique_user, dovecot_with_compress.password) == mail.of_samples(
        account(unique_user)
    )
    assert set(compressed(proxy)) == {setting == "yes"}
    sent = sum(len(link.sent) for link in proxy.links)
    assert (sent < octets_of(unique_user) * 0.8) == (setting == "yes")


@pytest.mark.dovecot
@pytest.mark.parametrize("setting", ["yes", "no"])
def test_mail_out_of_a_server_is_compressed_when_asked_for(
    setting: str, dovecot_with_compress: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    shutil.copytree(maildir_of(unique_user, tmp_path) / unique_user, dovecot_with_compress.home(unique_user))
    dovecot_with_compress.own(dovecot_with_compress.home(unique_user))
    with run_proxy(dovecot_with_compress.port) as proxy:
        done = import_(
            f"-osource_compress={setting}", "-osource_password=env:PW", "import", "-u", unique_user,
            "--to", f"maildir:{tmp_path}/to", "--json", "--journal", tmp_path / "journal",
            f"imap://localhost:{proxy.port}/?tls=off", "", "ALL",
        )  # fmt: skip
    assert totals(done)["imported"] == MESSAGES
    assert mail.in_maildir(tmp_path / "to") == mail.of_samples(account(unique_user))
    assert set(compressed(proxy)) == {setting == "yes"}
    received = sum(len(link.received) for link in proxy.links)
    assert (received < octets_of(unique_user) * 0.8) == (setting == "yes")


@pytest.mark.dovecot
@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_both_sides_may_compress_below_tls(
    security: str, dovecot_with_compress: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    shutil.copytree(maildir_of(unique_user, tmp_path) / unique_user, dovecot_with_compress.home(unique_user))
    dovecot_with_compress.own(dovecot_with_compress.home(unique_user))
    tls = f"imaps://localhost:{dovecot_with_compress.tls_port}/"
    place = tls if security == "tls" else f"imap://localhost:{dovecot_with_compress.port}/"
    done = import_(
        "-osource_compress=yes", "-odest_compress=yes", "-osource_password=env:PW", "-odest_password=env:PW",
        f"-osource_tls_ca={dovecot_with_compress.ca_file}", f"-odest_tls_ca={dovecot_with_compress.ca_file}",
        f"-odest_user=2-{unique_user}", "import", "-u", unique_user, "--to", place, "--json",
        "--journal", tmp_path / "journal", place, "", "ALL",
    )  # fmt: skip
    assert totals(done)["imported"] == MESSAGES
    assert "compression not offered" not in done.stderr
    held = mail.in_imap(dovecot_with_compress.port, f"2-{unique_user}", dovecot_with_compress.password)
    assert held == mail.of_samples(account(unique_user))


@pytest.mark.dovecot
@pytest.mark.parametrize("side", ["source", "dest"])
def test_compression_that_is_not_offered_is_told_and_the_run_goes_on(
    side: str, dovecot: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    maildir = maildir_of(unique_user, tmp_path)
    server = f"imap://localhost:{dovecot.port}/?tls=off"
    there, back = f"maildir:{maildir}/%u/Maildir", f"maildir:{tmp_path}/to"
    if side == "source":
        shutil.copytree(maildir / unique_user, dovecot.home(unique_user))
        dovecot.own(dovecot.home(unique_user))
    done = import_(
        f"-o{side}_compress=yes", f"-o{side}_password=env:PW", "import", "-u", unique_user,
        "--to", server if side == "dest" else back, "--json", "--journal", tmp_path / "journal",
        there if side == "dest" else server, "", "ALL",
    )  # fmt: skip
    assert totals(done)["imported"] == MESSAGES
    assert f"compression not offered host=localhost:{dovecot.port}" in done.stderr


# Server profiles


@contextmanager
def unvisited() -> Iterator[int]:
    """A port that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


OWN: Final = "connections_per_user = 1\n[names]\nforbidden = '!'\n"
WRONG: Final = [
    ("dovcot", None, "no such profile", "did you mean dovecot?"),
    ("mine", OWN, "no such profile", "or give the path of a .toml file"),
    ("{dir}/none.toml", None, "cannot be read", "none.toml"),
    ("{dir}/mine.toml", "connection_per_user = 1\n", "no such key", "did you mean connections_per_user?"),
    ("{dir}/mine.toml", "connections_per_user = 'many'\n", "connections_per_user", "Expected `int`"),
    ("{dir}/mine.toml", "connections_per_user\n", "mine.toml", ""),
]


def refused(setting: str, name: str, command: str, folder: Path) -> str:
    """What is said when a profile is wrong; nobody was connected to and no run begun."""
    with unvisited() as port:
        place = f"imap://localhost:{port}/?tls=off"
        done = import_(
            f"-o{setting}={name}", "-osource_password=env:PW", "-odest_password=env:PW",
            command, "-u", BOB, "--to", place, "--journal", folder / "journal", place, "", "ALL", code=78,
        )  # fmt: skip
    assert not (folder / "journal").exists()
    return done.stderr


@pytest.mark.parametrize(("name", "text", "what", "hint"), WRONG)
def test_a_wrong_profile_ends_the_run_before_anything_is_opened(
    name: str, text: str | None, what: str, hint: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "mine.toml").write_text(text)
    said = refused("profile", name.format(dir=tmp_path), "import", tmp_path)
    assert what in said and hint in said, said


@pytest.mark.parametrize("command", ["import", "plan"])
@pytest.mark.parametrize("setting", ["profile", "source_profile", "dest_profile"])
def test_each_setting_of_a_profile_is_looked_at_first(setting: str, command: str, tmp_path: Path) -> None:
    assert "'dovcot': no such profile (did you mean dovecot?" in refused(setting, "dovcot", command, tmp_path)


def test_a_resume_looks_at_the_profile_again(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN)
    words = ["-oprofile=./mine.toml", "import", "-u", BOB, "--to", "maildir:to", "--journal", "journal"]
    first = mail.aimport(*words, "maildir:nowhere", "", "ALL", cwd=tmp_path)
    assert "nowhere" in first.stderr and "profile" not in first.stderr
    (tmp_path / "mine.toml").write_text("odd = 1\n")
    again = mail.aimport("resume", "--journal", tmp_path / "journal")
    assert again.returncode == 78 and "profile ./mine.toml: odd: no such key" in again.stderr, again.stderr


@pytest.mark.dovecot
@pytest.mark.parametrize("setting", ["profile", "source_profile", "dest_profile"])
@pytest.mark.parametrize("name", ["generic", "./mine.toml"])
def test_mail_goes_under_a_profile_that_is_named(
    setting: str, name: str, dovecot: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(OWN)
    shutil.copytree(maildir_of(unique_user, tmp_path) / unique_user, dovecot.home(unique_user))
    dovecot.own(dovecot.home(unique_user))
    place = f"imap://localhost:{dovecot.port}/?tls=off"
    done = mail.aimport(
        f"-o{setting}={name}", "-osource_password=env:PW", "-odest_password=env:PW", f"-odest_user=2-{unique_user}",
        "import", "-u", unique_user, "--to", place, "--json", "--journal", "journal", place, "", "ALL",
        env=SECRETS, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held = mail.in_imap(dovecot.port, f"2-{unique_user}", dovecot.password)
    assert held == mail.of_samples(account(unique_user))


@pytest.mark.dovecot
def test_a_profile_rules_the_connections_of_its_own_side(dovecot: Dovecot, unique_user: str, tmp_path: Path) -> None:
    """Seen by a proxy: one connection under a profile that allows one for each user, more without."""
    (tmp_path / "mine.toml").write_text(OWN)
    maildir = maildir_of(unique_user, tmp_path)
    connections = []
    for number, setting in enumerate(("dest_profile=generic", f"dest_profile={tmp_path}/mine.toml")):
        with run_proxy(dovecot.port) as proxy:
            import_(
                f"-o{setting}", "-odest_password=env:PW", f"-odest_user={number}-{unique_user}", "import",
                "-u", unique_user, "--to", f"imap://localhost:{proxy.port}/?tls=off", "--connections-per-user", "3",
                "--journal", tmp_path / "journal", f"maildir:{maildir}/%u/Maildir", "", "ALL",
            )  # fmt: skip
        connections.append(len(proxy.links))
    assert connections == [3, 1]


@pytest.mark.dovecot
def test_a_wrong_profile_in_a_row_of_the_list_fails_that_user_alone(
    dovecot: Dovecot, unique_user: str, tmp_path: Path
) -> None:
    users = [f"{number}-{unique_user}" for number in range(3)]
    for user in users:
        maildir_of(user, tmp_path)
    rows = zip(users, ("", "dovcot", "dovecot"), strict=True)
    (tmp_path / "users.csv").write_text("user,dest_profile\n" + "".join(f"{user},{name}\n" for user, name in rows))
    with run_proxy(dovecot.port) as proxy:
        done = import_(
            "-odest_password=env:PW", "import", "-F", tmp_path / "users.csv", "--to",
            f"imap://localhost:{proxy.port}/?tls=off", "--json", "--journal", tmp_path / "journal",
            "--connections-per-user", "1", f"maildir:{tmp_path}/%u/Maildir", "", "ALL", code=75,
        )  # fmt: skip
    report = json.loads(done.stdout)
    statuses = {each["user"]: each["status"] for each in report["users"]}
    assert statuses == {users[0]: "done", users[1]: "failed", users[2]: "done"}
    [error] = [each["error"] for each in report["users"] if each["user"] == users[1]]
    assert "'dovcot': no such profile" in error and "did you mean dovecot?" in error
    assert len(proxy.links) == 2, "nobody logs in for that user"
    for user in (users[0], users[2]):
        assert mail.in_imap(dovecot.port, user, dovecot.password) == mail.of_samples(account(user))


# Connection limits of servers


@pytest.mark.courier
@pytest.mark.parametrize("side", ["source", "dest"])
def test_more_users_than_courier_takes_from_one_address_are_imported(side: str, tmp_path: Path) -> None:
    """MAXPERIP=4 and six users at once: it refuses those who came before its profile was known.

    After that nobody, but for those two once more while it still counts who has just left.
    """
    users = [f"user{number}@example.org" for number in range(6)]
    for user in users:
        maildir_of(user, tmp_path)
    (tmp_path / "users").write_text("\n".join(users) + "\n")
    with ExitStack() as stack:
        try:
            courier = stack.enter_context(run_courier(max_per_ip=4))
        except servers.CannotGet as reason:
            pytest.skip(str(reason))
        server = f"imap://localhost:{courier.port}/?tls=off"
        there, to = f"maildir:{tmp_path}/%u/Maildir", f"maildir:{tmp_path}/to/%u"
        if side == "source":
            for user in users:
                shutil.copytree(tmp_path / user, courier.home(user))
                for file in files_in(courier.maildir(user)):  # as if Courier had stored them
                    file.write_bytes(kept_by_courier(file.read_bytes()))
                courier.own(courier.home(user))
                open_all(courier, user)
        done = import_(
            f"-o{side}_password=env:PW", "import", "-F", tmp_path / "users", "--users", "6",
            "--connections-per-user", "2", "--json", "--journal", tmp_path / "journal",
            "--to", server if side == "dest" else to, there if side == "dest" else server, "", "ALL",
        )  # fmt: skip
        assert totals(done)["imported"] == len(users) * MESSAGES
        assert len(courier.refusals) <= 2 * (len(users) - 4), done.stderr
        assert max(courier.at_once) == 4
        for user in users:
            root = courier.maildir(user) if side == "dest" else tmp_path / "to" / user
            held = Counter(file.read_bytes().replace(b"\r\n", b"\n") for file in files_in(root))
            assert held == Counter(kept_by_courier(whole(each.message.body)) for each in account(user))


def files_in(root: Path) -> list[Path]:
    """All messages of a Maildir."""
    return [file for file in root.rglob("*") if file.is_file() and file.parent.name in ("cur", "new")]


def open_all(courier: Courier, user: str) -> None:
    """Opens every mailbox as its user's own client would: only SELECT makes Courier remember a UIDVALIDITY (seen)."""
    with imaplib.IMAP4(courier.host, courier.port, timeout=60) as client:
        client.login(user, courier.password)
        for line in client.list()[1]:
            assert isinstance(line, bytes)
            flags, _, name = line.decode().partition(' "." ')
            if "\\Noselect" not in flags:
                status, words = client.select(name)
                assert status == "OK", (line, words)


def kept_by_courier(body: bytes) -> bytes:
    """With LF line ends."""
    served = kept.by_courier(body).served
    assert served is not None
    return served.replace(b"\r\n", b"\n")


@pytest.mark.dovecot
@pytest.mark.parametrize("side", ["source", "dest"])
@pytest.mark.fault("F17")
def test_a_server_that_takes_one_connection_of_a_user_gets_one_lane(side: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(run_dovecot(extra="mail_max_userip_connections = 1"))
        except servers.CannotGet as reason:
            pytest.skip(str(reason))
        maildir_of(BOB, tmp_path)
        if side == "source":
            shutil.copytree(tmp_path / BOB, server.home(BOB))
            server.own(server.home(BOB))
        proxy = stack.enter_context(run_proxy(server.port))
        place = f"imap://localhost:{proxy.port}/?tls=off"
        there, to = f"maildir:{tmp_path}/%u/Maildir", f"maildir:{tmp_path}/to"
        done = import_(
            f"-o{side}_password=env:PW", "import", "-u", BOB, "--connections-per-user", "2", "--json",
            "--journal", tmp_path / "journal",
            "--to", place if side == "dest" else to, there if side == "dest" else place, "", "ALL",
        )  # fmt: skip
        assert totals(done)["imported"] == MESSAGES
        assert [b"Maximum number of connections" in link.received for link in proxy.links] == [False, True]
        held = mail.in_imap(server.port, BOB, "pass") if side == "dest" else mail.in_maildir(tmp_path / "to")
        assert held == mail.of_samples(account(BOB))
