"""`tunnel:doveadm exec imap -u %u`, both ways, by the command as users run it and on both loops.

Invariant: every message arrives once, and no process is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvloop

from aimport import sample
from aimport.errors import UserError
from aimport.model import Batch, Endpoint, Mailbox, Message, MessageKey
from aimport.octets import fingerprint, whole, wire_form
from aimport.stores.imap import ImapDestination, ImapSource
from tests import mail
from tests.fix_courier import Courier
from tests.fix_dovecot import Dovecot
from tests.mail import append_batch
from tests.processes import descendants, server_folder

pytestmark = [pytest.mark.timeout(200)]

USERS = ["ann@example.org", "bob@example.org", "o_hara-x@example.org"]
MESSAGES = 150
INBOX = Mailbox(path=("INBOX",))


def account(user: str) -> Iterator[sample.Sample]:
    return sample.account(user, seed=11, messages=MESSAGES, median_octets=2000)


def marked(pid: str, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def left(mark: str) -> list[str]:
    """Processes that have `mark` in their environment."""
    return [pid for pid in filter(str.isdecimal, os.listdir("/proc")) if marked(pid, mark)]


def location(server: Dovecot, user: str, mark: str) -> str:
    """As one would type it; `mark` is in the environment of the child."""
    program, option, *rest = [word.replace("%u", user) for word in server.exec_command]
    return f"tunnel:{shlex.join([program, option, f'MARK={mark}', *rest])}"


@pytest.fixture
def mark() -> Iterator[str]:
    """In the environment of every child; none is left at the end."""
    name = uuid.uuid4().hex
    yield name
    assert left(name) == []


@pytest.fixture(scope="module")
def maildirs() -> Iterator[Path]:
    with server_folder("maildirs") as folder:
        for user in USERS:
            sample.write_maildir(folder / user / "Maildir", account(user))
        yield folder


@pytest.mark.dovecot
def test_users_go_through_tunnels_into_a_server_and_out_of_it(
    dovecot: Dovecot, maildirs: Path, mark: str, tmp_path: Path
) -> None:
    users = tmp_path / "users.csv"
    users.write_text("user\n" + "\n".join(f'"{user}"' for user in USERS) + "\n")
    there, back = location(dovecot, f"{mark}-%u", mark), f"maildir:{tmp_path}/to/%u/Maildir"
    further = location(dovecot, f"{mark}-2-%u", mark)
    for source, to in ((f"maildir:{maildirs}/%u/Maildir", there), (there, further), (further, back)):
        done = mail.aimport(
            "import", "-F", users, "--to", to, "--json", "--journal", tmp_path / "journal", "--users", "3",
            source, "", "ALL",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["totals"]["found"] == report["totals"]["imported"] == len(USERS) * MESSAGES
        assert left(mark) == []
    for user in USERS:
        expected = mail.of_samples(account(user))
        assert mail.in_maildir(tmp_path / "to" / user / "Maildir") == expected


@pytest.mark.dovecot
def test_users_without_a_part_in_the_command_are_not_merged(dovecot: Dovecot, tmp_path: Path, mark: str) -> None:
    users = tmp_path / "users.csv"
    users.write_text("user\nann\nbob\n")
    done = mail.aimport(
        "import", "-F", users, "--to", location(dovecot, "all@example.org", mark), "--journal", tmp_path / "journal",
        f"maildir:{tmp_path}/%u", "", "ALL",
    )  # fmt: skip
    assert done.returncode == 78, done.stderr
    assert "every user would be imported into tunnel:env:" in done.stderr


def test_a_command_that_is_not_there_fails_its_users_and_says_so(maildirs: Path, tmp_path: Path) -> None:
    done = mail.aimport(
        "import", "-u", USERS[0], "--to", "tunnel:/nonexistent/imap c4nary %u", "--journal", tmp_path / "journal",
        f"maildir:{maildirs}/%u/Maildir", "", "ALL",
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "tunnel:/nonexistent/imap: the command cannot be run: No such file or directory" in done.stderr
    assert "c4nary" not in done.stderr + done.stdout


def message(number: int) -> Message:
    body = b"Subject: %d\r\n\r\n" % number + b"Body\r\n" * (50_000 if number == 1 else 1)
    date = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    return Message(key=MessageKey(f"k{number}"), flags=frozenset({"\\Seen"}), internal_date=date, body=body)


async def there_and_back(place: Endpoint) -> None:
    """Messages appended through one tunnel are read through another."""
    messages = tuple(message(number) for number in range(20))
    batch = Batch(
        run="f00d",
        number=1,
        created_us=1,
        messages=messages,
        fingerprints=tuple(fingerprint(wire_form(whole(each.body))) for each in messages),
    )
    async with ImapDestination(place).open() as destination:
        assert len(await append_batch(destination, INBOX, batch)) == len(messages)
    assert ours() == []
    found: list[bytes] = []
    async with ImapSource(place).open() as source:
        async with aclosing(source.messages(await source.select(INBOX), skip=())) as lists:
            async for each in lists:
                found += [whole(one.body) for one in each if isinstance(one, Message)]
    assert [body.rstrip() for body in found] == [whole(each.body).rstrip() for each in messages]
    assert ours() == []


def ours() -> list[int]:
    """Children of this process that are no servers of the fixtures."""
    return [pid for pid in descendants(os.getpid()) if marked(str(pid), "MARK=")]


LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
Loop = Callable[[], asyncio.AbstractEventLoop]


@LOOPS
@pytest.mark.dovecot
def test_dovecot_keeps_mail_that_came_by_pipe(dovecot: Dovecot, unique_user: str, mark: str, loop: Loop) -> None:
    words = shlex.split(location(dovecot, unique_user, mark).removeprefix("tunnel:"))
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(there_and_back(Endpoint(scheme="tunnel", command=tuple(words), security="none")))


@LOOPS
@pytest.mark.courier
def test_courier_keeps_mail_that_came_by_pipe(courier: Courier, unique_user: str, mark: str, loop: Loop) -> None:
    courier.create_user(unique_user)
    words = ("env", f"MARK={mark}", *courier.exec_command(unique_user))
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(there_and_back(Endpoint(scheme="tunnel", command=words, security="none")))


@pytest.mark.courier
async def test_courier_is_known_on_a_pipe_so_a_message_of_many_parts_is_whole(
    courier: Courier, unique_user: str, mark: str
) -> None:
    """It cuts BODY[] after some 300 parts and RFC822 never; on a pipe its greeting does not say who it is."""
    courier.create_user(unique_user)
    parts = b"".join(b"--x\n\npart %d\n" % number for number in range(700))
    body = b"Content-Type: multipart/mixed; boundary=x\n\n" + parts + b"--x--\n"
    (courier.maildir(unique_user) / "cur" / "1500000000.M1P1.host:2,S").write_bytes(body)
    courier.own(courier.home(unique_user))
    words = ("env", f"MARK={mark}", *courier.exec_command(unique_user))
    async with ImapSource(Endpoint(scheme="tunnel", command=words, security="none")).open() as source:
        async with aclosing(source.messages(await source.select(INBOX), skip=())) as lists:
            [[found]] = [each async for each in lists]
    assert isinstance(found, Message) and whole(found.body) == wire_form(body)


@pytest.mark.dovecot
async def test_a_server_that_refuses_the_user_is_quoted(dovecot: Dovecot, mark: str) -> None:
    words = shlex.split(location(dovecot, "a\x7fb", mark).removeprefix("tunnel:"))
    with pytest.raises(UserError, match="tunnel:env: the command ended with status 89: Fatal: Unknown user"):
        async with ImapSource(Endpoint(scheme="tunnel", command=tuple(words), security="none")).open():
            pass


@pytest.mark.dovecot
def test_the_server_keeps_what_the_maildir_had(dovecot: Dovecot, maildirs: Path, mark: str, tmp_path: Path) -> None:
    user = USERS[0]
    shutil.copytree(maildirs / user / "Maildir", tmp_path / "from" / user / "Maildir")
    done = mail.aimport(
        "import", "-u", user, "--to", location(dovecot, f"{mark}%u", mark), "--journal", tmp_path / "journal",
        f"maildir:{tmp_path}/from/%u/Maildir", "", "ALL",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held: Counter[mail.Seen] = mail.in_imap(dovecot.port, f"{mark}{user}", dovecot.password)
    assert held == mail.of_samples(account(user))
