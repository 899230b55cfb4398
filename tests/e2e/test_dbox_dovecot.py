"""A real Dovecot is driven through random changes of sdbox and mdbox; after every step we read what it wrote.

We read before Dovecot looks again, and must then have shown what `doveadm fetch` shows: mailbox, UID, GUID, flags,
keywords, dates, size and octets. Indexes are rewritten and logs begun anew every few hundred octets. Where a session
was killed, files may be left that no index has: those are told of, and nothing else.
"""

from __future__ import annotations

import hashlib
import imaplib
import json
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from aimport.model import Endpoint
from tests.dbox import Row, listing
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.mail import tree
from tests.processes import wait_until_gone

STEPS: Final = 8
USERS: Final = 25
GROUPS: Final = 8
KINDS: Final = ("sdbox", "mdbox")
NAMES: Final = ("INBOX", "Sent", "Arch/2023", "Entw&APw-rfe", "&ZeVnLIqe-", "R&-D")
KEYWORDS: Final = ("$Forwarded", "Junk", "NonJunk", "Work", *(f"k{number}" for number in range(12)))
SYSTEM: Final = ("\\Seen", "\\Answered", "\\Flagged", "\\Draft", "\\Deleted")
SETTINGS: Final = """
mail_index_rewrite_min_log_bytes = 200
mail_index_rewrite_max_log_bytes = 800
mail_index_log_rotate_min_size = 400
mail_index_log_rotate_max_size = 1600
mail_index_log_rotate_min_age = 0
mdbox_rotate_size = 2k
"""
FIELDS: Final = "mailbox uid guid flags date.received.unixtime date.saved.unixtime size.physical pop3.uidl text"


class User:
    """One user on the way through random changes, over one IMAP session."""

    def __init__(self, server: Dovecot, name: str, seed: int) -> None:
        self.server = server
        self.name = name
        self.random = random.Random(seed)
        self.mailboxes = {"INBOX"}
        self.killed = False
        self._count = 0
        self._client: imaplib.IMAP4 | None = None
        self._session = 0
        """The process that serves it."""

    @property
    def root(self) -> Path:
        return self.server.home(self.name)

    @property
    def endpoint(self) -> Endpoint:
        kind = self.name.partition("@")[2]
        return Endpoint(scheme=kind, path=str(self.root / kind), options=(("ALT", str(self.root / "alt")),))

    def client(self) -> imaplib.IMAP4:
        if self._client is None:
            before = set(self.server.imap_session_pids())
            self._client = imaplib.IMAP4(self.server.host, self.server.port, timeout=60)
            self._client.login(self.name, self.server.password)
            [self._session] = set(self.server.imap_session_pids()) - before
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.logout()
            self._client = None
            wait_until_gone([self._session])

    def drop(self) -> None:
        """Leaves a session that was lost."""
        if self._client is not None:
            self._client.shutdown()
            wait_until_gone([self._session])
        self._client = None
        self.killed = True
        for lock in self.root.rglob(
            "*lock"
        ):  # also .newlock: nobody has them, and Dovecot waits two minutes to be sure
            lock.unlink()

    def step(self) -> None:
        """Some changes, in no order that anybody has thought of."""
        if not self._count:
            self.append()
        try:
            self.change()
        except imaplib.IMAP4.abort:
            # "IMAP session state is inconsistent": Dovecot itself gives up, mdbox now and then after a kill or a purge.
            self.drop()

    def change(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            change = self.random.choices(
                (self.append, self.store, self.expunge, self.copy, self.move, self.create, self.rename, self.delete),
                (6, 6, 2, 3, 2, 2, 1, 1),
            )[0]
            change()
        if self.random.random() < 0.1:
            self.kill()

    def append(self) -> None:
        name = self.any_name()
        for _ in range(self.random.randint(1, 3)):
            self._count += 1
            body = f"Subject: {self.name} {self._count}\r\n\r\n" + "line\r\n" * self.random.randint(0, 40)
            date = imaplib.Time2Internaldate(self.random.randint(0, 2**31 - 1))
            self.client().append(name, f"({' '.join(self.any_flags())})", date, body.encode())

    def store(self) -> None:
        if chosen := self.chosen():
            what = self.random.choice(("+FLAGS.SILENT", "-FLAGS.SILENT", "FLAGS.SILENT"))
            self.client().store(chosen, what, f"({' '.join(self.any_flags())})")

    def expunge(self) -> None:
        if chosen := self.chosen():
            self.client().store(chosen, "+FLAGS.SILENT", "(\\Deleted)")
            self.client().expunge()

    def copy(self) -> None:
        if chosen := self.chosen():
            self.client().copy(chosen, self.any_name())

    def move(self) -> None:
        if chosen := self.chosen():
            self.client().xatom("MOVE", chosen, self.any_name())

    def create(self) -> None:
        name = self.random.choice(NAMES)
        if name not in self.mailboxes:
            self.client().create(name)
            self.mailboxes.add(name)

    def rename(self) -> None:
        old, new = self.any_name()[1:-1], f"New{self._count}"
        if old != "INBOX":
            self.client().select("INBOX")
            if self.client().rename(f'"{old}"', new)[0] == "OK":
                self.mailboxes = {new if name == old else name for name in self.mailboxes}

    def delete(self) -> None:
        name = self.any_name()[1:-1]
        if name != "INBOX":
            self.client().select("INBOX")
            if self.client().delete(f'"{name}"')[0] == "OK":
                self.mailboxes.discard(name)

    def kill(self) -> None:
        """Its session process, while it has work to do."""
        client = self.client()
        client.select(self.any_name())
        body = b"Subject: half\r\n\r\n" + b"x" * self.random.randint(1, 3000)
        work = b"x1 STORE 1:* +FLAGS (\\Seen killed)\r\n"
        work += b"x2 APPEND INBOX {%d+}\r\n%s\r\n" % (len(body), body)
        work += b"x3 STORE 1:* +FLAGS (\\Deleted)\r\nx4 EXPUNGE\r\n"
        client.send(work[: self.random.randint(1, len(work))])
        self.server.kill_session(self._session)
        self.drop()

    def any_name(self) -> str:
        return f'"{self.random.choice(sorted(self.mailboxes))}"'

    def any_flags(self) -> Sequence[str]:
        return self.random.sample((*SYSTEM, *KEYWORDS), self.random.randint(0, 4))

    def chosen(self) -> str:
        """Some messages of a mailbox that is selected now; "" when it has none."""
        ok, count = self.client().select(self.any_name())
        held = int(count[0] or 0) if ok == "OK" else 0
        numbers = self.random.sample(range(1, held + 1), min(held, self.random.randint(1, 4)))
        return ",".join(map(str, sorted(numbers)))


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with run_dovecot(mail_location="%d:~/%d:ALT=~/alt", extra=SETTINGS) as started:
        yield started


@pytest.mark.parametrize("group", range(GROUPS))
async def test_what_dovecot_wrote_is_read_as_it_reads_it_itself(server: Dovecot, group: int) -> None:
    with ExitStack() as stack:
        users = [
            User(server, f"g{group}n{number}@{KINDS[number % 2]}", 1000 * group + number) for number in range(USERS)
        ]
        for user in users:
            stack.callback(user.close)
        chance = random.Random(group)
        listed = server.config.parent / f"users-{group}"
        for step in range(STEPS):
            for user in users:
                user.step()
            if step:
                some = [user.name for user in users if chance.random() < 0.4]
                for words in chance.sample((["purge"], ["altmove"], ["index"], ["altmove", "-r"]), 2):
                    listed.write_text("".join(f"{name}\n" for name in some))
                    last = [] if words == ["purge"] else ["*"] if words == ["index"] else ["mailbox", "INBOX"]
                    server.try_doveadm(*words, "-F", str(listed), *last)
            seen = {}
            for user in users:
                before = written_by_nobody_else(user.root)
                seen[user.name] = await listing(user.endpoint)
                assert written_by_nobody_else(user.root) == before
            listed.write_text("".join(f"{user.name}\n" for user in users))
            expected = _fetched(server.doveadm("-f", "json", "fetch", "-F", str(listed), FIELDS, "ALL"))
            for user in users:
                found = seen[user.name]
                name = f"{user.name}, step {step}"
                assert _sorted(found.rows) == _sorted(expected.get(user.name, [])), name
                assert (found.failed, found.notes) == ({}, []), name
                codes = {each.code for each in found.unreadable}
                assert codes <= ({"unindexed"} if user.killed else set()), (name, found.unreadable)
        for pattern in ("dovecot.index", "dovecot.index.log.2", "alt/**/[um].[0-9]*"):
            assert any(any(user.root.rglob(pattern)) for user in users), f"none has come to a {pattern}"


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.mailbox, row.uid))


def written_by_nobody_else(root: Path) -> dict[str, tuple[int, int, str]]:
    """`tree` without what a process of Dovecot that ends later still writes: the list's log (seen, a second later)."""
    return {path: seen for path, seen in tree(root).items() if not path.endswith("dovecot.list.index.log")}


def _fetched(answer: str) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for each in json.loads(answer or "[]"):
        text = each["text"].encode()
        rows.setdefault(each["username"], []).append(
            Row(
                mailbox=each["mailbox"],
                uid=int(each["uid"]),
                guid=each["guid"],
                flags=frozenset(each["flags"].split()) - {"\\Recent"},
                received=int(each["date.received.unixtime"]),
                saved=int(each["date.saved.unixtime"]),
                size=int(each["size.physical"]),
                sha256=hashlib.sha256(text).hexdigest(),
                uidl=each["pop3.uidl"],
            )
        )
    return rows


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_that_is_written_meanwhile_is_never_called_damaged(server: Dovecot, kind: str) -> None:
    """What is listed is read, or has vanished; at the end, in peace, everything is there."""
    user = User(server, f"busy@{kind}", 5)
    user.append()
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            user.change()

    codes: set[str] = set()
    with ThreadPoolExecutor(1) as thread:
        changing = thread.submit(change)
        try:
            for _ in range(40):
                seen = await listing(user.endpoint)
                gone = {name: text for name, text in seen.failed.items() if "no such folder" in text.lower()}
                assert (seen.failed, seen.notes) == (gone, [])
                codes |= {each.code for each in seen.unreadable}
        finally:
            stop.set()
            changing.result(60)
    user.close()
    assert codes <= {"vanished"}
    listed = server.config.parent / f"busy-{kind}"
    listed.write_text(f"{user.name}\n")
    seen = await listing(user.endpoint)
    expected = _fetched(server.doveadm("-f", "json", "fetch", "-F", str(listed), FIELDS, "ALL"))
    assert _sorted(seen.rows) == _sorted(expected.get(user.name, []))
