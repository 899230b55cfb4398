"""One account of every kind of store, filled and looked into without the code under test.

A new store is one class here and one parameter of `account`; `test_sources` and
`test_destinations` then say whether it keeps the contract of `aimport.interfaces`.
"""

from __future__ import annotations

import contextlib
import hashlib
import imaplib
import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import pytest

from aimport.interfaces import Destination, Source
from aimport.model import STREAM_OCTETS, Batch, Endpoint, Mailbox, Message, MessageKey, Secret, Wanted
from aimport.names import encode_utf7
from aimport.octets import fingerprint, whole, wire_form
from aimport.stores.imap import ImapDestination, ImapSource
from aimport.stores.maildir import MaildirDestination, MaildirSource
from aimport.stores.memory import MemoryDestination, MemorySource, MemoryStore
from tests.fix_dovecot import Dovecot
from tests.mail import LETTERS, tree

Path_ = tuple[str, ...]
INBOX: Final[Path_] = ("INBOX",)
LETTER_OF: Final = {flag: letter for letter, flag in LETTERS.items()}


class Held(NamedTuple):
    """One message as a client sees it; `digest` with LF line ends."""

    flags: frozenset[str]
    internal_date: int
    digest: str


def held(message: Message) -> Held:
    """What must be seen of a message."""
    digest = hashlib.sha256(wire_form(whole(message.body)).replace(b"\r\n", b"\n")).hexdigest()
    return Held(message.flags, int(message.internal_date.timestamp()), digest)


def message(number: int, *flags: str, body: bytes | None = None) -> Message:
    """The message of that number: always the same."""
    return Message(
        key=MessageKey(f"key{number}"),
        flags=frozenset(flags),
        internal_date=datetime.fromtimestamp(1_500_000_000 + 86_400 * number, UTC),
        body=f"Subject: {number}\n\nBody of {number}\n".encode() if body is None else body,
    )


def large_octets() -> bytes:
    """A body above `STREAM_OCTETS`; its lines end in LF."""
    return b"Subject: large\n\n" + (b"%070d\n" % 7) * (STREAM_OCTETS // 71 + 1)


def batch(*messages: Message, number: int = 1, run: str = "f00d") -> Batch:
    """A batch as the pipeline makes it; successive numbers ascend in time."""
    return Batch(
        run=run,
        number=number,
        created_us=1_700_000_000_000_000 + number * 1_000_000,
        messages=messages,
        fingerprints=tuple(fingerprint(wire_form(whole(each.body))) for each in messages),
    )


def wanted(batch: Batch) -> list[Wanted]:
    """The messages of a batch that is in doubt."""
    return [
        Wanted(run=batch.run, number=batch.number, created_us=batch.created_us, index=index, fingerprint=each)
        for index, each in enumerate(batch.fingerprints)
    ]


class Account(Protocol):
    """One account: the store's own sessions, and another way in."""

    def source(self) -> Source: ...

    def destination(self) -> Destination: ...

    def mailbox(self, path: Path_) -> Mailbox:
        """The mailbox as this store names it."""
        ...

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        """Make the mailbox and store messages, behind the back of any session."""
        ...

    def remove(self, path: Path_, index: int) -> None:
        """Expunge one message, behind the back of any session."""
        ...

    def look(self, path: Path_) -> list[Held]:
        """What the mailbox holds, in order; nothing when it does not exist."""
        ...

    def state(self) -> object:
        """Equal before and after when nothing was changed."""
        ...

    def missing(self) -> Source:
        """An account that does not exist."""
        ...


class MemoryAccount:
    """An account of `MemoryStore`."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def source(self) -> Source:
        return MemorySource(self.store, "bob")

    def destination(self) -> Destination:
        return MemoryDestination(self.store, "bob")

    def missing(self) -> Source:
        return MemorySource(self.store, "nobody")

    def mailbox(self, path: Path_) -> Mailbox:
        return Mailbox(path=path, separator=self.store.separator)

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        mailbox = self.store.mailbox("bob", path)
        for each in messages:
            mailbox.add(whole(each.body), flags=sorted(each.flags), internal_date=each.internal_date)

    def remove(self, path: Path_, index: int) -> None:
        del self.store.mailbox("bob", path).messages[index]

    def look(self, path: Path_) -> list[Held]:
        mailbox = self.store.accounts.get("bob", {}).get(path)
        if mailbox is None:
            return []
        return [
            held(Message(key=MessageKey(""), flags=each.flags, internal_date=each.internal_date, body=each.body))
            for each in mailbox.messages
        ]

    def state(self) -> object:
        return {path: (box.uidnext, list(box.messages)) for path, box in self.store.accounts.get("bob", {}).items()}


class MaildirAccount:
    """A Maildir++ tree, written and read here with a few lines of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._count = 0

    def _endpoint(self, root: Path) -> Endpoint:
        return Endpoint(scheme="maildir", path=str(root))

    def source(self) -> Source:
        return MaildirSource(self._endpoint(self.root))

    def destination(self) -> Destination:
        return MaildirDestination(self._endpoint(self.root))

    def missing(self) -> Source:
        return MaildirSource(self._endpoint(self.root / "not" / "there"))

    def mailbox(self, path: Path_) -> Mailbox:
        return Mailbox(path=path, separator=".")

    def folder(self, path: Path_) -> Path:
        return self.root if path == INBOX else self.root / ("." + ".".join(map(encode_utf7, path)))

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        folder = self.folder(path)
        for name in ("cur", "new", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        known = sorted({flag for each in messages for flag in each.flags if not flag.startswith("\\")})
        if known:
            lines = [f"{number} {name}\n" for number, name in enumerate(known)]
            (folder / "dovecot-keywords").write_text("".join(lines))
        for each in messages:
            self._count += 1
            letters = sorted(LETTER_OF.get(flag) or chr(ord("a") + known.index(flag)) for flag in each.flags)
            name = f"15000000{self._count:02}.M{self._count}P1.host,S={len(each.body)}"
            file = folder / "cur" / f"{name}:2,{''.join(letters)}" if letters else folder / "new" / name
            file.write_bytes(whole(each.body))
            os.utime(file, (0, each.internal_date.timestamp()))

    def files(self, path: Path_) -> list[Path]:
        """Message files in the order of their names as Dovecot sorts them."""
        folder = self.folder(path)
        files = [file for part in ("cur", "new") if (folder / part).is_dir() for file in (folder / part).iterdir()]
        return sorted(files, key=lambda file: [int(part) for part in re.findall(r"^(\d+)\.M(\d+)", file.name)[0]])

    def remove(self, path: Path_, index: int) -> None:
        self.files(path)[index].unlink()

    def look(self, path: Path_) -> list[Held]:
        keywords = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder(path) / "dovecot-keywords").read_text().splitlines():
                number, _, name = line.partition(" ")
                keywords[chr(ord("a") + int(number))] = name
        found = []
        for file in self.files(path):
            info = file.name.rpartition(":2,")[2] if ":2," in file.name else ""
            flags = frozenset(LETTERS.get(letter) or keywords[letter] for letter in info)
            digest = hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
            found.append(Held(flags, int(file.stat().st_mtime), digest))
        return found

    def state(self) -> object:
        return tree(self.root)


class ImapAccount:
    """An account of a real Dovecot, seen by Python's own imaplib."""

    def __init__(self, server: Dovecot, user: str) -> None:
        self._server = server
        self._user = user

    def _endpoint(self, password: str) -> Endpoint:
        return Endpoint(
            scheme="imap",
            host=self._server.host,
            port=self._server.tls_port,
            user=self._user,
            secret=Secret(kind="literal", text=password),
            tls_ca=str(self._server.ca_file),
        )

    def source(self) -> Source:
        return ImapSource(self._endpoint(self._server.password))

    def destination(self) -> Destination:
        return ImapDestination(self._endpoint(self._server.password))

    def missing(self) -> Source:
        return ImapSource(self._endpoint("wrong"))

    def mailbox(self, path: Path_) -> Mailbox:
        return Mailbox(path=path, separator="/")

    @contextlib.contextmanager
    def _client(self) -> Iterator[imaplib.IMAP4]:
        with imaplib.IMAP4(self._server.host, self._server.port, timeout=30) as client:
            client.login(self._user, self._server.password)
            yield client

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        with self._client() as client:
            client.create(_quoted(path))
            for each in messages:
                flags = " ".join(sorted(each.flags))
                date = imaplib.Time2Internaldate(each.internal_date)
                ok, text = client.append(_quoted(path), f"({flags})", date, wire_form(whole(each.body)))
                assert ok == "OK", text

    def remove(self, path: Path_, index: int) -> None:
        with self._client() as client:
            client.select(_quoted(path))
            client.store(str(index + 1), "+FLAGS", "\\Deleted")
            client.expunge()

    def look(self, path: Path_) -> list[Held]:
        found = []
        with self._client() as client:
            ok, count = client.select(_quoted(path), readonly=True)
            if ok != "OK" or not int(count[0] or 0):
                return []
            for item in client.fetch("1:*", "(FLAGS INTERNALDATE BODY.PEEK[])")[1]:
                if isinstance(item, tuple):
                    flags = frozenset(flag.decode() for flag in imaplib.ParseFlags(item[0])) - {"\\Recent"}
                    date = imaplib.Internaldate2tuple(item[0])
                    assert date is not None
                    digest = hashlib.sha256(item[1].replace(b"\r\n", b"\n")).hexdigest()
                    found.append(Held(flags, int(time.mktime(date)), digest))
        return found

    def state(self) -> object:
        with self._client() as client:
            names = client.list()[1]
        return sorted(map(str, names)), self.look(INBOX)


def _quoted(path: Path_) -> str:
    return '"' + "/".join(map(encode_utf7, path)) + '"'


@pytest.fixture(params=["memory", "maildir", pytest.param("imap", marks=pytest.mark.dovecot)])
def account(request: pytest.FixtureRequest, tmp_path: Path, unique_user: str) -> Account:
    """An empty account of each store."""
    if request.param == "memory":
        return MemoryAccount()
    if request.param == "maildir":
        return MaildirAccount(tmp_path / "Maildir")
    server: Dovecot = request.getfixturevalue("dovecot")
    return ImapAccount(server, unique_user)
