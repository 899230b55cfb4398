"""One account of every kind of store, filled and looked into without the code under test.

A new store is one class here and one parameter of `account`; `test_sources` and
`test_destinations` then say whether it keeps the contract of `aimport.interfaces`. Where a
server by design refuses or changes what it is given, its account says so (`refusal`, `held`,
`seen_as`): the contract is then that this happens to that message and to no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import imaplib
import os
import re
import socket
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

import pytest

from aimport.interfaces import Destination, Source
from aimport.model import STREAM_OCTETS, Batch, Endpoint, Mailbox, Message, MessageKey, Secret, Security, Wanted
from aimport.names import encode_utf7
from aimport.octets import fingerprint, whole, wire_form
from aimport.stores import Stores
from aimport.stores.dbox import DboxSource
from aimport.stores.imap import ImapDestination, ImapSource
from aimport.stores.loose import EmlDestination, EmlSource, MhSource, TarSource, ZipSource
from aimport.stores.maildir import MaildirDestination, MaildirSource
from aimport.stores.mbox import MboxDestination, MboxSource
from aimport.stores.memory import MemoryDestination, MemorySource, MemoryStore
from tests import kept
from tests.fix_courier import Courier
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import Dovecot
from tests.fix_rights import BOB, give
from tests.mail import LETTERS, tree

Path_ = tuple[str, ...]
Link = Security | Literal["compress", "tunnel"]
"""How a server is reached: by TCP with that security, in the clear and compressed, or on a pipe."""
INBOX: Final[Path_] = ("INBOX",)
IMAP: Final = ("dovecot", "cyrus", "courier")
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

    def refusal(self, message: Message) -> str:
        """The words with which this store refuses the message; empty when it takes it."""
        ...

    def held(self, message: Message) -> Held:
        """What is seen of a message that this store has taken."""
        ...

    def seen_as(self, path: Path_) -> Path_:
        """The path under which a source lists the mailbox that was made as `path`."""
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

    def refusal(self, message: Message) -> str:
        return ""

    def held(self, message: Message) -> Held:
        return held(message)

    def seen_as(self, path: Path_) -> Path_:
        return path

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

    def refusal(self, message: Message) -> str:
        return ""

    def held(self, message: Message) -> Held:
        return held(message)

    def seen_as(self, path: Path_) -> Path_:
        return path

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


class MaildirFsAccount(MaildirAccount):
    """A tree of directories, each with its messages in a directory of their own."""

    def _endpoint(self, root: Path) -> Endpoint:
        return Endpoint(scheme="maildir", path=str(root), options=(("LAYOUT", "fs"), ("DIRNAME", "mails")))

    def mailbox(self, path: Path_) -> Mailbox:
        return Mailbox(path=path, separator="/")

    def folder(self, path: Path_) -> Path:
        return self.root.joinpath(*map(encode_utf7, path), "mails")


class MboxAccount:
    """A tree of mbox files, written and read here by a few lines of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._is_destination = False

    def source(self) -> Source:
        return MboxSource(Endpoint(scheme="mbox", path=str(self.root)))

    def destination(self) -> Destination:
        self._is_destination = True
        return MboxDestination(Endpoint(scheme="mbox", path=str(self.root)))

    def missing(self) -> Source:
        return MboxSource(Endpoint(scheme="mbox", path=str(self.root / "not" / "there")))

    def mailbox(self, path: Path_) -> Mailbox:
        return Mailbox(path=path, separator="/")

    def refusal(self, message: Message) -> str:
        return ""

    def held(self, message: Message) -> Held:
        """A header ends in an empty line, and without Content-Length the last line of a body ends."""
        body = whole(message.body)
        if self._is_destination:
            missing = b"" if b"\n\n" in body or b"\n\r\n" in body or body[:1] == b"\n" else b"\n\n"
            return held(replace(message, body=body + missing))
        return held(replace(message, body=body if body.endswith(b"\n") else body + b"\n"))

    def seen_as(self, path: Path_) -> Path_:
        return path

    def file(self, path: Path_) -> Path:
        return self.root / "inbox" if path == INBOX else self.root.joinpath(*map(encode_utf7, path))

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        file = self.file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as mbox:
            for each in messages:
                mbox.write(_in_mbox(each))

    def _parts(self, path: Path_) -> list[bytes]:
        data = self.file(path).read_bytes() if self.file(path).is_file() else b""
        return re.split(rb"(?m)^(?=From test@)", data)[1:]

    def remove(self, path: Path_, index: int) -> None:
        parts = self._parts(path)
        del parts[index]
        self.file(path).write_bytes(b"".join(parts))

    def look(self, path: Path_) -> list[Held]:
        """By Content-Length, which each message of ours has."""
        found = []
        data = self.file(path).read_bytes() if self.file(path).is_file() else b""
        while data:
            line, _, data = data.partition(b"\n")
            stamp = re.findall(rb"  (.*) remote", line)[0].decode()
            date = datetime.strptime(stamp, "%a %b %d %H:%M:%S %Y %z")
            match = re.search(rb"(?:\A|\n)\r?\n", data)
            assert match is not None
            header, data = data[: match.end()], data[match.end() :]
            names = rb"(?m)^(Status|X-Status|X-Keywords|Content-Length|X-IMAPbase): ([^\r\n]*)\r?\n"
            fields = {name: value.decode() for name, value in re.findall(names, header)}
            flags = {flag for letter, flag in MBOX_LETTERS.items() if letter in fields.get(b"X-Status", "")}
            flags |= {SEEN} if "R" in fields.get(b"Status", "") else set()
            flags |= set(fields.get(b"X-Keywords", "").split())
            length = int(fields[b"Content-Length"])
            body = re.sub(names, b"", header) + data[:length]
            assert data[length : length + 1] == b"\n"
            data = data[length + 1 :]
            one = Message(key=MessageKey(""), flags=frozenset(flags), internal_date=date, body=body)
            found.append(held(one))
        return found

    def state(self) -> object:
        return tree(self.root)


class EmlAccount:
    """A tree of directories with a file for each message, which keeps no flags."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._count = 0
        self._is_destination = False

    def source(self) -> Source:
        return EmlSource(Endpoint(scheme="eml", path=str(self.root)))

    def destination(self) -> Destination:
        self._is_destination = True
        return EmlDestination(Endpoint(scheme="eml", path=str(self.root)))

    def missing(self) -> Source:
        return EmlSource(Endpoint(scheme="eml", path=str(self.root / "not" / "there")))

    def mailbox(self, path: Path_) -> Mailbox:
        return Mailbox(path=path, separator="/")

    def refusal(self, message: Message) -> str:
        return ""

    def held(self, message: Message) -> Held:
        return held(replace(message, flags=frozenset()))

    def seen_as(self, path: Path_) -> Path_:
        return path

    def folder(self, path: Path_) -> Path:
        return self.root if path == INBOX and not self._is_destination else self.root.joinpath(*path)

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        self.folder(path).mkdir(parents=True, exist_ok=True)
        for each in messages:
            self._count += 1
            file = self.folder(path) / self._name(self._count)
            file.write_bytes(whole(each.body))
            os.utime(file, (0, each.internal_date.timestamp()))

    def _name(self, number: int) -> str:
        return f"{number:05}.eml"

    def _files(self, path: Path_) -> list[Path]:
        return sorted(file for file in self.folder(path).iterdir() if file.is_file() and file.name[0] != ".")

    def remove(self, path: Path_, index: int) -> None:
        self._files(path)[index].unlink()

    def look(self, path: Path_) -> list[Held]:
        found = []
        for file in self._files(path) if self.folder(path).is_dir() else []:
            digest = hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
            found.append(Held(frozenset(), int(file.stat().st_mtime), digest))
        return found

    def state(self) -> object:
        return tree(self.root)


class MhAccount(EmlAccount):
    """MH folders with sequences. The number of a file is its name."""

    def source(self) -> Source:
        return MhSource(Endpoint(scheme="mh", path=str(self.root)))

    def missing(self) -> Source:
        return MhSource(Endpoint(scheme="mh", path=str(self.root / "not" / "there")))

    def held(self, message: Message) -> Held:
        """There is no sequence of drafts."""
        return held(replace(message, flags=message.flags - {"\\Draft"}))

    def folder(self, path: Path_) -> Path:
        return self.root / "inbox" if path == INBOX else self.root.joinpath(*path)

    def _name(self, number: int) -> str:
        return str(number)

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        sequences: dict[str, list[int]] = {}
        for number, each in enumerate(messages, self._count + 1):
            names = {"\\Answered": "replied", "\\Flagged": "flagged", "\\Deleted": "deleted"}
            for flag in each.flags - {"\\Seen", "\\Draft"}:
                sequences.setdefault(names.get(flag, flag), []).append(number)
            if SEEN not in each.flags:
                sequences.setdefault("unseen", []).append(number)
        super().put(path, messages)
        with (self.folder(path) / ".mh_sequences").open("a") as file:
            file.writelines(f"{name}: {' '.join(map(str, numbers))}\n" for name, numbers in sequences.items())

    def _files(self, path: Path_) -> list[Path]:
        return sorted(super()._files(path), key=lambda file: int(file.name))


class ArchiveAccount(MaildirAccount):
    """A Maildir++ tree within an archive, which is made anew at each change."""

    def __init__(self, root: Path, kind: str) -> None:
        super().__init__(root)
        self.archive = root.with_suffix(f".{kind}")
        self._make = ZipSource if kind == "zip" else TarSource

    def source(self) -> Source:
        return self._make(Endpoint(scheme="tar", path=str(self.archive)))

    def missing(self) -> Source:
        return self._make(Endpoint(scheme="tar", path=str(self.archive / "not" / "there")))

    def destination(self) -> Destination:
        raise NotImplementedError

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        super().put(path, messages)
        self._pack()

    def remove(self, path: Path_, index: int) -> None:
        super().remove(path, index)
        self._pack()

    def _pack(self) -> None:
        files = sorted(self.root.rglob("*"))
        if self._make is ZipSource:
            with zipfile.ZipFile(self.archive, "w", zipfile.ZIP_DEFLATED) as packed:
                for file in files:
                    packed.write(file, f"backup/Maildir/{file.relative_to(self.root)}")
        else:
            with tarfile.open(self.archive, "w:gz") as tar:
                for file in files:
                    tar.add(file, f"backup/Maildir/{file.relative_to(self.root)}", recursive=False)

    def state(self) -> object:
        return tree(self.root.parent)


SEEN: Final = "\\Seen"
MBOX_LETTERS: Final = {"A": "\\Answered", "F": "\\Flagged", "T": "\\Draft", "D": "\\Deleted"}


def _in_mbox(message: Message) -> bytes:
    """A message as UW writes it, with its flags before its own header."""
    body = whole(message.body)
    line = f"From test@example.org  {message.internal_date:%a %b %d %H:%M:%S %Y} +0000\n"
    letters = "".join(letter for letter, flag in MBOX_LETTERS.items() if flag in message.flags)
    words = " ".join(sorted(flag for flag in message.flags if not flag.startswith("\\")))
    fields = f"Status: {'R' if SEEN in message.flags else ''}O\n"
    fields += f"X-Status: {letters}\n" if letters else ""
    fields += f"X-Keywords: {words}\n" if words else ""
    return line.encode() + fields.encode() + body + (b"\n" if body.endswith(b"\n") else b"\n\n")


Server = Dovecot | Cyrus | Courier


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What is a server's own: how it names mailboxes, what it makes of octets."""

    prefix: str = ""
    separator: str = "/"
    keeps: kept.Keeper


HABITS: Final = {
    Dovecot: Habits(keeps=kept.by_dovecot),
    Cyrus: Habits(keeps=kept.by_cyrus),
    Courier: Habits(prefix="INBOX.", separator=".", keeps=kept.by_courier),
}


class ImapAccount:
    """An account of a real server, seen by Python's own imaplib. On Cyrus an admin acts for the user."""

    def __init__(self, server: Server, user: str, link: Link = "none") -> None:
        self._server = server
        self._user = user
        self._link = link
        self._habits = HABITS[type(server)]
        if not isinstance(server, Dovecot):
            server.create_user(user)

    def endpoint(self) -> Endpoint:
        place = Endpoint(
            scheme="imap",
            host=self._server.host,
            port=self._server.port,
            security="none",
            user=self._user,
            login=self._server.admin if isinstance(self._server, Cyrus) else "",
            secret=Secret(kind="literal", text=self._server.password),
        )
        match self._link:
            case "compress":
                return replace(place, compress="yes")
            case "tunnel":
                return replace(place, scheme="tunnel", host="", port=0, command=self._command())
            case security:
                port = self._server.tls_port if security == "tls" else self._server.port
                return replace(place, port=port, security=security, tls_ca=str(self._server.ca_file))

    def _command(self) -> tuple[str, ...]:
        if isinstance(self._server, Courier):
            return tuple(self._server.exec_command(self._user))
        return tuple(word.replace("%u", self._user) for word in self._server.exec_command)

    def source(self) -> Source:
        return ImapSource(self.endpoint())

    def destination(self) -> Destination:
        return ImapDestination(self.endpoint())

    def missing(self) -> Source:
        wrong = replace(self.endpoint(), secret=Secret(kind="literal", text="wrong"))
        if isinstance(self._server, Cyrus):  # which takes any password, but not from everyone for everyone
            wrong = replace(wrong, login="no-admin")
        return ImapSource(wrong)

    def mailbox(self, path: Path_) -> Mailbox:
        return Mailbox(path=path, separator=self._habits.separator)

    def refusal(self, message: Message) -> str:
        return self._habits.keeps(whole(message.body)).refusal

    def held(self, message: Message) -> Held:
        served = self._habits.keeps(whole(message.body)).served
        assert served is not None, "it is refused"
        return held(replace(message, body=served))

    def seen_as(self, path: Path_) -> Path_:
        return path[1:] if self._habits.prefix and len(path) > 1 and path[:1] == INBOX else path

    def _name(self, path: Path_) -> str:
        path = self.seen_as(path)
        name = self._habits.separator.join(map(encode_utf7, path))
        return '"' + (name if path == INBOX else self._habits.prefix + name) + '"'

    @contextlib.contextmanager
    def _client(self) -> Iterator[imaplib.IMAP4]:
        with imaplib.IMAP4(self._server.host, self._server.port, timeout=30) as client:
            # A literal and the line after it are two packets; the second would wait 40 ms for the server.
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.login(self._user, self._server.password)
            yield client

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        with self._client() as client:
            client.create(self._name(path))
            for each in messages:
                flags = " ".join(sorted(each.flags))
                date = imaplib.Time2Internaldate(each.internal_date)
                ok, text = client.append(self._name(path), f"({flags})", date, wire_form(whole(each.body)))
                assert ok == "OK", text

    def remove(self, path: Path_, index: int) -> None:
        with self._client() as client:
            client.select(self._name(path))
            client.store(str(index + 1), "+FLAGS", "\\Deleted")
            client.expunge()

    def look(self, path: Path_) -> list[Held]:
        found = []
        with self._client() as client:
            ok, count = client.select(self._name(path), readonly=True)
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
        """Mailboxes, their counts (RECENT and UNSEEN too) and what the INBOX holds."""
        with self._client() as client:
            names = [_listed_name(line) for line in client.list()[1] if isinstance(line, bytes)]
            counts = {name: client.status(name, "(MESSAGES RECENT UNSEEN UIDNEXT UIDVALIDITY)") for name in names}
        return counts, self.look(INBOX)


class DboxAccount(ImapAccount):
    """An account of a Dovecot whose mail is sdbox or mdbox: put there by the server, read by us from the files."""

    def __init__(self, server: Dovecot, user: str, kind: str) -> None:
        user = f"{user}@{kind}"  # the domain is the format (`dovecot_with_dbox`)
        super().__init__(server, user)
        self.root = server.home(user) / kind
        self._kind = kind

    def source(self) -> Source:
        return DboxSource(Endpoint(scheme=self._kind, path=str(self.root)))

    def missing(self) -> Source:
        return DboxSource(Endpoint(scheme=self._kind, path=str(self.root / "not" / "there")))

    def mailbox(self, path: Path_) -> Mailbox:
        return Mailbox(path=path, separator="/")

    def held(self, message: Message) -> Held:
        return held(message)

    def state(self) -> object:
        return tree(self.root)


def _listed_name(line: bytes) -> str:
    """The name at the end of a LIST response, as it was sent."""
    match = re.search(r' ("(?:[^"\\\\]|\\\\.)*"|[^ ]+)\Z', line.decode())
    assert match is not None, line
    return match[1]


def imap_account(request: pytest.FixtureRequest, name: str, user: str, link: Link = "none") -> ImapAccount:
    """An account of the server whose fixture has that name."""
    server: Server = request.getfixturevalue(name)
    return ImapAccount(server, user, link)


_Inner = MaildirAccount | MboxAccount | EmlAccount


class OwnedAccount:
    """An account whose files are another user's: read and written with that one's rights, looked into with ours."""

    def __init__(self, inner: _Inner, scheme: str, root: Path, stores: Stores) -> None:
        self._inner = inner
        self._scheme = scheme
        self._stores = stores
        self._home = root.parent
        self._root = root
        give(self._home, BOB)

    def _endpoint(self, root: Path) -> Endpoint:
        return Endpoint(scheme=self._scheme, path=str(root), rights=BOB)

    def source(self) -> Source:
        return self._stores.source(self._endpoint(self._root))

    def destination(self) -> Destination:
        self._inner.destination()
        return self._stores.destination(self._endpoint(self._root))

    def missing(self) -> Source:
        return self._stores.source(self._endpoint(self._root / "not" / "there"))

    def mailbox(self, path: Path_) -> Mailbox:
        return self._inner.mailbox(path)

    def refusal(self, message: Message) -> str:
        return self._inner.refusal(message)

    def held(self, message: Message) -> Held:
        return self._inner.held(message)

    def seen_as(self, path: Path_) -> Path_:
        return self._inner.seen_as(path)

    def put(self, path: Path_, messages: Sequence[Message]) -> None:
        self._inner.put(path, messages)
        give(self._home, BOB)

    def remove(self, path: Path_, index: int) -> None:
        self._inner.remove(path, index)
        give(self._home, BOB)

    def look(self, path: Path_) -> list[Held]:
        return self._inner.look(path)

    def state(self) -> object:
        return self._inner.state()


_account_of: Final[dict[str, Callable[[Path], _Inner]]] = {
    "maildir": MaildirAccount,
    "mbox": MboxAccount,
    "eml": EmlAccount,
}
OWNED: Final = ("maildir of a user", "mbox of a user", "eml of a user")
STORES: Final = (
    *("memory", "maildir", "maildir-fs", "mbox", "eml", *OWNED),
    *(pytest.param(each, marks=getattr(pytest.mark, each)) for each in IMAP),
)
ONLY_READ: Final = ("mh", "zip", "tar.gz")
DBOX: Final = tuple(pytest.param(each, marks=pytest.mark.dovecot) for each in ("sdbox", "mdbox"))


@pytest.fixture(params=[*STORES, *ONLY_READ, *DBOX], name="account")
def source_account(request: pytest.FixtureRequest, tmp_path: Path, unique_user: str) -> Account:
    """An empty account of each store that can be read."""
    if request.param in ("sdbox", "mdbox"):
        server: Dovecot = request.getfixturevalue("dovecot_with_dbox")
        return DboxAccount(server, unique_user.partition("@")[0], request.param)
    return _account(request, tmp_path, unique_user)


@pytest.fixture(params=STORES)
def account(request: pytest.FixtureRequest, tmp_path: Path, unique_user: str) -> Account:
    """An empty account of each store; IMAP in the clear (`test_imap_links` has the others)."""
    return _account(request, tmp_path, unique_user)


def _account(request: pytest.FixtureRequest, tmp_path: Path, unique_user: str) -> Account:
    match request.param:
        case "memory":
            return MemoryAccount()
        case "maildir":
            return MaildirAccount(tmp_path / "Maildir")
        case "maildir-fs":
            return MaildirFsAccount(tmp_path / "Maildir")
        case "mbox":
            return MboxAccount(tmp_path / "mail")
        case "eml":
            return EmlAccount(tmp_path / "mail")
        case "mh":
            return MhAccount(tmp_path / "mail")
        case "maildir of a user" | "mbox of a user" | "eml of a user":
            stores: Stores = request.getfixturevalue("rights_stores")
            home: Path = request.getfixturevalue("reachable") / "home"
            home.mkdir()
            scheme = request.param.partition(" ")[0]
            inner = _account_of[scheme](home / "mail")
            return OwnedAccount(inner, scheme, home / "mail", stores)
        case "zip" | "tar.gz":
            return ArchiveAccount(tmp_path / "mail", request.param)
        case name:
            return imap_account(request, name, unique_user)
