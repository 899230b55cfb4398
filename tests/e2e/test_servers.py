"""The servers of the fixtures are real and whole: what was appended over the wire is fetched back.

Invariant: a failure here is one of the test bench, not of aimport.
"""

from __future__ import annotations

import imaplib
import shlex
import ssl
import subprocess
from collections.abc import Sequence

import pytest

from tests.fix_courier import Courier
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import Dovecot, run_dovecot

MESSAGE = b"From: a@example.org\r\nSubject: one\r\nMessage-Id: <1@example.org>\r\n\r\nbody\r\n"


def append_and_fetch(session: imaplib.IMAP4) -> None:
    status, words = session.append("INBOX", r"(\Flagged)", '"11-Feb-2003 04:05:06 +0000"', MESSAGE)
    assert status == "OK", words
    assert session.select("INBOX")[0] == "OK"
    status, parts = session.fetch("1", "(FLAGS INTERNALDATE BODY.PEEK[])")
    assert status == "OK", parts
    [(head, body)] = [part for part in parts if isinstance(part, tuple)]
    said = head + b"".join(part for part in parts if isinstance(part, bytes))
    assert body == MESSAGE
    assert rb"\Flagged" in said
    assert b"11-Feb-2003 04:05:06 +0000" in said


def trusting(ca_file: object) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file))


def talk(command: Sequence[str], *lines: str) -> str:
    done = subprocess.run(command, input="".join(f"{line}\r\n" for line in lines).encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_dovecot_keeps_a_message_sent_in_the_clear(dovecot: Dovecot, unique_user: str) -> None:
    with imaplib.IMAP4(dovecot.host, dovecot.port) as session:
        session.login(unique_user, dovecot.password)
        append_and_fetch(session)
    assert len(list((dovecot.maildir(unique_user) / "cur").iterdir())) == 1


def test_dovecot_keeps_a_message_sent_after_starttls(dovecot: Dovecot, unique_user: str) -> None:
    with imaplib.IMAP4("localhost", dovecot.port) as session:
        session.starttls(trusting(dovecot.ca_file))
        session.login(unique_user, dovecot.password)
        append_and_fetch(session)


def test_dovecot_keeps_a_message_sent_over_tls(dovecot: Dovecot, unique_user: str) -> None:
    with imaplib.IMAP4_SSL(dovecot.host, dovecot.tls_port, ssl_context=trusting(dovecot.ca_file)) as session:
        session.login(unique_user, dovecot.password)
        append_and_fetch(session)


def test_dovecot_refuses_a_wrong_password(dovecot: Dovecot, unique_user: str) -> None:
    with (
        imaplib.IMAP4(dovecot.host, dovecot.port) as session,
        pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"),
    ):
        session.login(unique_user, "wrong")


def test_dovecot_lets_its_master_act_for_a_user(dovecot: Dovecot, unique_user: str) -> None:
    with imaplib.IMAP4(dovecot.host, dovecot.port) as session:
        session.login(dovecot.master_login(unique_user), dovecot.master_password)
        append_and_fetch(session)
    assert dovecot.maildir(unique_user).is_dir()


def test_dovecot_refuses_a_user_the_masters_password(dovecot: Dovecot, unique_user: str) -> None:
    with (
        imaplib.IMAP4(dovecot.host, dovecot.port) as session,
        pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"),
    ):
        session.login(unique_user, dovecot.master_password)


def test_doveadm_sees_what_imap_has_stored(dovecot: Dovecot, unique_user: str) -> None:
    with imaplib.IMAP4(dovecot.host, dovecot.port) as session:
        session.login(unique_user, dovecot.password)
        append_and_fetch(session)
        session.create("Archive/2019")
    assert set(dovecot.doveadm("mailbox", "list", user=unique_user).split()) == {"INBOX", "Archive", "Archive/2019"}
    assert "Subject: one" in dovecot.doveadm("fetch", "text", "ALL", user=unique_user)
    dovecot.doveadm("save", "-m", "Archive/2019", user=unique_user, stdin=MESSAGE)
    assert dovecot.doveadm("search", "mailbox", "Archive/2019", user=unique_user)


def test_doveadm_imports_from_a_maildir(dovecot: Dovecot, unique_user: str) -> None:
    dovecot.doveadm("save", user=unique_user, stdin=MESSAGE)
    other = f"to-{unique_user}"
    dovecot.doveadm("import", f"maildir:{dovecot.maildir(unique_user)}", "Imported", "ALL", user=other)
    assert "Subject: one" in dovecot.doveadm("fetch", "text", "mailbox", "Imported/INBOX", user=other)


def test_dovecot_speaks_on_a_pipe(dovecot: Dovecot, unique_user: str) -> None:
    dovecot.doveadm("save", user=unique_user, stdin=MESSAGE)
    command = [word.replace("%u", unique_user) for word in shlex.split(shlex.join(dovecot.exec_command))]
    said = talk(command, "a STATUS INBOX (MESSAGES)", "b LOGOUT")
    assert said.startswith("* PREAUTH")
    assert "* STATUS INBOX (MESSAGES 1)" in said


def test_a_killed_session_is_a_lost_connection(dovecot: Dovecot, unique_user: str) -> None:
    session = imaplib.IMAP4(dovecot.host, dovecot.port)
    before = set(dovecot.imap_session_pids())
    session.login(unique_user, dovecot.password)
    [pid] = set(dovecot.imap_session_pids()) - before
    dovecot.kill_session(pid)
    with pytest.raises((imaplib.IMAP4.abort, OSError)):
        session.noop()
    session.shutdown()


def test_two_dovecots_run_side_by_side(dovecot: Dovecot) -> None:
    with run_dovecot(separator=None, mail_location="mdbox:~/mdbox", quota="*:storage=1K") as other:
        assert {other.port, other.tls_port}.isdisjoint({dovecot.port, dovecot.tls_port})
        with imaplib.IMAP4(other.host, other.port) as session:
            session.login("anyone", other.password)
            append_and_fetch(session)
            status, [words, *_] = session.append("INBOX", "", "", MESSAGE + b"x" * 2000 + b"\r\n")
            assert status == "NO"
            assert b"OVERQUOTA" in words


def test_cyrus_keeps_a_message(cyrus: Cyrus, unique_user: str) -> None:
    cyrus.create_user(unique_user, "Archive")
    with imaplib.IMAP4(cyrus.host, cyrus.port) as session:
        session.login(unique_user, cyrus.password)
        append_and_fetch(session)
        assert session.status("Archive", "(MESSAGES)")[1] == [b"Archive (MESSAGES 0)"]


def test_cyrus_lets_its_admin_act_for_a_user_over_tls(cyrus: Cyrus, unique_user: str) -> None:
    cyrus.create_user(unique_user)
    with imaplib.IMAP4_SSL(cyrus.host, cyrus.tls_port, ssl_context=trusting(cyrus.ca_file)) as session:
        session.authenticate("PLAIN", lambda _: f"{unique_user}\0{cyrus.admin}\0{cyrus.password}".encode())
        append_and_fetch(session)


def test_cyrus_keeps_a_message_sent_after_starttls(cyrus: Cyrus, unique_user: str) -> None:
    cyrus.create_user(unique_user)
    with imaplib.IMAP4("localhost", cyrus.port) as session:
        session.starttls(trusting(cyrus.ca_file))
        session.login(unique_user, cyrus.password)
        append_and_fetch(session)


def test_courier_keeps_a_message(courier: Courier, unique_user: str) -> None:
    with imaplib.IMAP4(courier.host, courier.port) as session:
        session.login(unique_user, courier.password)
        append_and_fetch(session)
        assert session.create("Archive")[0] == "NO"
        assert session.create("INBOX.Archive")[0] == "OK"


def test_courier_keeps_a_message_sent_after_starttls(courier: Courier, unique_user: str) -> None:
    with imaplib.IMAP4("localhost", courier.port) as session:
        session.starttls(trusting(courier.ca_file))
        session.login(unique_user, courier.password)
        append_and_fetch(session)


def test_courier_keeps_a_message_sent_over_tls(courier: Courier, unique_user: str) -> None:
    with imaplib.IMAP4_SSL("localhost", courier.tls_port, ssl_context=trusting(courier.ca_file)) as session:
        session.login(unique_user, courier.password)
        append_and_fetch(session)


def test_courier_refuses_a_wrong_password(courier: Courier, unique_user: str) -> None:
    with (
        imaplib.IMAP4(courier.host, courier.port) as session,
        pytest.raises(imaplib.IMAP4.error, match="Login failed"),
    ):
        session.login(unique_user, "wrong")


def test_courier_speaks_on_a_pipe(courier: Courier, unique_user: str) -> None:
    courier.create_user(unique_user)
    said = talk(courier.exec_command(unique_user), 'a STATUS "INBOX" (MESSAGES)', "b LOGOUT")
    assert "* PREAUTH" in said
    assert '* STATUS "INBOX" (MESSAGES 0)' in said


async def test_async_tests_run_on_the_loop_that_was_asked_for(pytestconfig: pytest.Config) -> None:
    import asyncio

    module = type(asyncio.get_running_loop()).__module__
    assert module.partition(".")[0] == pytestconfig.getoption("--loop")
