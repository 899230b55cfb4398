"""An IMAP server that acts: it keeps accounts, notes what it is told, and misbehaves where a test wants it to.

    async with Server(offered="IMAP4rev1 LITERAL-", hook=one_bad).running() as server:
        result = await Wires().import_(server.endpoint(user="bob"))

Built on the scripted server: it knows the commands of an import and no others, and never more than one
connection's worth of what it hears. A hook is asked before a command is carried out (`Call.literal` set: before
that literal of it is taken); True means that it was answered there.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from aimport.account import Run
from aimport.imap.connection import Deadlines
from aimport.interfaces import Destination, Source
from aimport.journal import Journal
from aimport.limits import Limits
from aimport.model import Endpoint, Security, UserJob
from aimport.pacing import Throttles
from aimport.pipeline import import_user
from aimport.query.parse import parse_query
from aimport.results import UserResult
from aimport.stores import Stores
from aimport.stores.imap import ImapDestination, ImapSource
from aimport.stores.memory import MemoryDestination, MemorySource, MemoryStore
from tests.fix_imap import BEFORE, Peer, Scripted, Unexpected, scripted

START: Final = datetime(2020, 1, 1, tzinfo=UTC)
CONNECTIONS: Final = 500
QUICK: Final = Limits(retry_wait_s=0.001, fence_s=0.0)
PATIENT: Final = Deadlines(connect_s=15.0, command_s=15.0, append_s=15.0, close_s=0.5)
HASTY: Final = Deadlines(connect_s=1.0, command_s=0.5, append_s=0.5, close_s=0.2)


@dataclass(slots=True)
class Kept:
    """A message as it was stored; flags and date in the words of the command."""

    uid: int
    flags: str
    date: str
    body: bytes = field(repr=False)


@dataclass(slots=True)
class Box:
    validity: int = 7
    next_uid: int = 1
    messages: list[Kept] = field(default_factory=list)

    def add(self, body: bytes, flags: str = "", date: str = '"01-Jan-2020 00:00:00 +0000"') -> int:
        self.messages.append(Kept(self.next_uid, flags, date, body))
        self.next_uid += 1
        return self.next_uid - 1


@dataclass(slots=True)
class Call:
    """One command, as far as it is there."""

    server: Server
    peer: Peer
    session: Session
    nth: int
    """So many commands of this name have been heard on all connections, with this one."""
    tag: str
    name: str
    text: str
    """The line as it came, after the tag; a NUL for each literal that was taken."""
    literals: list[bytes]
    literal: int | None = None
    """Octets of the literal that is announced; None: the command is complete."""
    answers: bool = True
    """The client waits for `+` before that literal."""

    def ok(self, text: str = "done") -> bool:
        return self.say(f"{self.tag} OK {text}")

    def no(self, text: str) -> bool:
        return self.say(f"{self.tag} NO {text}")

    def bad(self, text: str) -> bool:
        return self.say(f"{self.tag} BAD {text}")

    def say(self, *lines: str) -> bool:
        """True, so that a hook can return it."""
        self.peer.say(*(line.encode("latin-1") for line in lines))
        return True

    async def bye(self, text: str) -> bool:
        """The last word of this connection."""
        self.say(f"* BYE {text}")
        return await self.close()

    async def carry_out(self, text: str = "done") -> None:
        """Does what was asked for and says OK in these words."""
        await self.session.carry_out(self, text)

    async def close(self) -> bool:
        await self.peer.flushed()
        raise Ended


class Ended(Exception):
    """The server has closed the connection."""


Hook = Callable[[Call], Awaitable[bool | None]]


async def nothing(call: Call) -> bool:
    """The hook of a good server."""
    return False


def _string(name: str) -> str:
    """A name as a quoted string where that can hold it, else as a literal."""
    if re.fullmatch(r"[ !#-\[\]-~]*", name):
        return f'"{name}"'
    return f"{{{len(name)}}}\r\n{name}"


_NAME = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\0|[^\s()"]+)')
_MESSAGE = re.compile(r'\(([^)]*)\) ("[^"]*") \0')


@dataclass(slots=True, kw_only=True)
class Server:
    """Accounts, and how the server behaves. Names are octets as latin-1."""

    offered: str = "IMAP4rev1 LITERAL+ UIDPLUS"
    before: str = BEFORE
    greeting: str = "ready"
    server_id: str = ""
    """What ID answers, parentheses included."""
    separator: str = "/"
    hook: Hook = nothing
    most_logins: int = 0
    """More connections at once are refused at login; 0: no limit."""
    refusal: str = "NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded"
    accounts: dict[str, dict[str, Box]] = field(default_factory=lambda: defaultdict(lambda: {"INBOX": Box()}))
    heard: list[str] = field(default_factory=list)
    """The name of every command of every connection; of UID commands both words."""
    count: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    inside: int = 0
    """Connections that are logged in now, and the most there were."""
    most_inside: int = 0
    scripted: Scripted | None = None

    @asynccontextmanager
    async def running(self, security: Security = "none") -> AsyncGenerator[Server]:
        """Serves any number of connections on a free port; what goes wrong in a hook is raised at the end."""
        async with scripted(*[self.serve] * CONNECTIONS, security=security) as running:
            self.scripted = running
            yield self

    def endpoint(self, user: str = "bob", profile: str = "") -> Endpoint:
        assert self.scripted is not None
        return replace(self.scripted.endpoint(user=user), profile=profile)

    def fill(self, user: str, mailbox: str, bodies: Iterable[bytes], flags: str = "\\Seen") -> Box:
        box = self.accounts[user].setdefault(mailbox, Box())
        for body in bodies:
            box.add(body, flags)
        return box

    def bodies(self, user: str = "bob", mailbox: str = "INBOX") -> list[bytes]:
        return [message.body for message in self.accounts[user][mailbox].messages]

    async def serve(self, peer: Peer, *, greet: bool = True) -> None:
        """The script of one connection."""
        session = Session(self, peer)
        try:
            if greet:
                peer.say(f"* OK [CAPABILITY {self.before}] {self.greeting}")
            await session.run()
        except (Ended, Unexpected, ConnectionError, asyncio.IncompleteReadError):
            pass  # either side may go at any time
        finally:
            self.inside -= session.inside


class Session:
    """One connection."""

    def __init__(self, server: Server, peer: Peer) -> None:
        server.connections += 1
        self.server = server
        self.peer = peer
        self.number = server.connections
        self.user = ""
        self.inside = False
        self.box = Box()

    async def run(self) -> None:
        while True:
            tag, _, text = (await self.peer.line()).decode("latin-1").partition(" ")
            words = text.split(" ", 2)
            name = " ".join(words[:2]).upper() if words[0].upper() == "UID" else words[0].upper()
            self.server.heard.append(name)
            self.server.count[name] += 1
            call = Call(self.server, self.peer, self, self.server.count[name], tag, name, text, [])
            if await self._take_literals(call) or await self.server.hook(call):
                continue
            await self.carry_out(call)
            if name == "LOGOUT":
                raise Ended

    async def _take_literals(self, call: Call) -> bool:
        """Takes what a command announces; True: the hook has answered it before."""
        while announced := re.search(r"\{(\d+)(\+?)\}\Z", call.text):
            call.literal, call.answers = int(announced[1]), not announced[2]
            if await self.server.hook(call):
                await self._pass_over(announced[0])
                return True
            if call.answers:
                self.peer.say(b"+ go on")
            call.literals.append(await self.peer.octets(call.literal))
            rest = (await self.peer.line()).decode("latin-1")
            call.text = call.text[: announced.start()] + "\0" + rest
            call.literal = None
        return False

    async def _pass_over(self, line: str) -> None:
        """Reads and forgets what a client that does not wait has sent behind a line that was refused."""
        while announced := re.search(r"\{(\d+)\+\}\Z", line):
            await self.peer.octets(int(announced[1]))
            line = (await self.peer.line()).decode("latin-1")

    async def carry_out(self, call: Call, ok: str = "done") -> None:
        """Does what was asked for."""
        account = self.server.accounts[self.user] if self.inside else {}
        match call.name:
            case "CAPABILITY":
                call.say(f"* CAPABILITY {self.server.offered if self.inside else self.server.before}")
            case "AUTHENTICATE":
                said = b64decode(call.text.split(" ")[2]).decode()
                owner, _, rest = said.partition("\0")  # PLAIN; XOAUTH2 else
                return self.log_in(call, owner.split("\1")[0].removeprefix("user=") or rest.split("\0")[0])
            case "ID":
                call.say(f"* ID {self.server.server_id or 'NIL'}")
            case "NAMESPACE":
                call.say(f'* NAMESPACE (("" "{self.server.separator}")) NIL NIL')
            case "LIST" if call.text.endswith('""'):
                call.say(f'* LIST (\\Noselect) "{self.server.separator}" ""')
            case "LIST":
                separator = self.server.separator
                call.say(*(f'* LIST () "{separator}" {_string(name)}' for name in account))
            case "CREATE":
                name, _ = self.name(call)
                if name in account:
                    return void(call.no("[ALREADYEXISTS] exists"))
                account[name] = Box()
            case "EXAMINE" | "SELECT" | "STATUS":
                name, _ = self.name(call)
                if name not in account:
                    return void(call.no("[NONEXISTENT] no such mailbox"))
                self.box = account[name]
                call.say(
                    f"* {len(self.box.messages)} EXISTS",
                    f"* OK [UIDVALIDITY {self.box.validity}] x",
                    f"* OK [UIDNEXT {self.box.next_uid}] x",
                )
            case "UID FETCH":
                self._fetch(call)
            case "UID SEARCH":
                wanted, uids = call.text.split(" ")[-1], [message.uid for message in self.box.messages]
                call.say(" ".join(["* SEARCH", *(str(uid) for uid in uids if in_set(uid, wanted, uids[-1]))]))
            case "APPEND":
                return self._append(call, ok)
            case "UNSELECT" | "CLOSE" | "SUBSCRIBE" | "NOOP" | "UID STORE":
                pass
            case "LOGOUT":
                call.say("* BYE")
            case _:
                raise AssertionError(f"no such command: {call.text}")
        call.ok(ok)

    def log_in(self, call: Call, user: str) -> None:
        server = self.server
        if server.most_logins and server.inside >= server.most_logins:
            return void(call.no(server.refusal.partition(" ")[2]))
        self.user = user
        self.inside = True
        server.inside += 1
        server.most_inside = max(server.most_inside, server.inside)
        call.ok(f"[CAPABILITY {server.offered}] in")

    def name(self, call: Call) -> tuple[str, str]:
        """The mailbox of a command, and what follows it."""
        found = _NAME.match(call.text, len(call.name))
        assert found is not None, call.text
        name = found[1]
        if name == "\0":
            name = call.literals.pop(0).decode("latin-1")
        elif name.startswith('"'):
            name = re.sub(r"\\(.)", r"\1", name[1:-1])
        return name, call.text[found.end() :]

    def store(self, call: Call) -> str:
        """Stores what an APPEND holds and says nothing; the code for its OK, "" when there is no such mailbox."""
        name, rest = self.name(call)
        box = self.server.accounts[self.user].get(name)
        if box is None:
            return ""
        said = _MESSAGE.findall(rest)
        assert len(said) == len(call.literals), call.text
        uids = [box.add(body, flags, date) for (flags, date), body in zip(said, call.literals, strict=True)]
        return f"[APPENDUID {box.validity} {uids[0]}:{uids[-1]}]"

    def _append(self, call: Call, ok: str) -> None:
        code = self.store(call)
        if not code:
            call.no("[TRYCREATE] no such mailbox")
        else:
            call.ok(f"{code} {ok}" if "UIDPLUS" in self.server.offered else ok)

    def _fetch(self, call: Call) -> None:
        """Answers with exactly what was asked for."""
        _, _, wanted, items = call.text.split(" ", 3)
        uids = [message.uid for message in self.box.messages]
        for seq, message in enumerate(self.box.messages, 1):
            if in_set(message.uid, wanted, max(uids)):
                self.peer.octets_out(b"* %d FETCH (%s)\r\n" % (seq, b" ".join(facts(message, items))))


def void(answered: bool) -> None:
    """The command was answered."""


def facts(message: Kept, items: str) -> list[bytes]:
    """Attributes of a FETCH response, as far as `items` asks for them."""
    found = [b"UID %d" % message.uid]
    if "RFC822.SIZE" in items:
        found.append(b"RFC822.SIZE %d" % len(message.body))
    if "FLAGS" in items:
        found.append(b"FLAGS (%s)" % message.flags.encode("latin-1"))
    if "INTERNALDATE" in items:
        found.append(b"INTERNALDATE " + message.date.encode())
    if "BODY" in items:
        found.append(b"BODY[] {%d}\r\n%s" % (len(message.body), message.body))
    return found


def in_set(uid: int, wanted: str, last: int) -> bool:
    """Whether a sequence-set holds a UID."""
    for part in wanted.split(","):
        first, _, end = part.partition(":")
        low, high = (last if each == "*" else int(each) for each in (first, end or first))
        if min(low, high) <= uid <= max(low, high):
            return True
    return False


def bodies(count: int, *, start: int = 0, octets: int = 60) -> list[bytes]:
    return [b"Subject: %d\r\n\r\n%s\r\n" % (number, b"x" * octets) for number in range(start, start + count)]


class Wires(Stores):
    """Imports between servers of a test and accounts in memory; the IMAP stores are those of the product."""

    def __init__(
        self, *, deadlines: Deadlines = PATIENT, limits: Limits = QUICK, journal: Journal | None = None
    ) -> None:
        super().__init__()
        self.deadlines = deadlines
        self.limits = limits
        self.journal = journal or Journal.in_memory()
        self.throttles = Throttles(octets_per_second=limits.limit_rate, messages_per_second=limits.messages_per_second)
        self.old = MemoryStore()
        self.new = MemoryStore(wire=True)

    def source(self, endpoint: Endpoint) -> Source:
        if endpoint.scheme == "imap":
            return ImapSource(endpoint, self.deadlines, self.throttles)
        if endpoint.scheme == "memory":
            return MemorySource(self.old, endpoint.user)
        return super().source(endpoint)

    def destination(self, endpoint: Endpoint) -> Destination:
        if endpoint.scheme == "imap":
            return ImapDestination(endpoint, self.deadlines, self.throttles)
        return (
            MemoryDestination(self.new, endpoint.user) if endpoint.scheme == "memory" else super().destination(endpoint)
        )

    def fill(
        self, bodies: Iterable[bytes], *, user: str = "bob", mailbox: str = "INBOX", flags: Sequence[str] = ("\\Seen",)
    ) -> None:
        """Puts messages into a source mailbox in memory, a minute apart."""
        stored = self.old.mailbox(user, tuple(mailbox.split("/")))
        for number, body in enumerate(bodies, start=len(stored.messages)):
            stored.add(body, flags=flags, internal_date=START + timedelta(minutes=number))

    def arrived(self, user: str = "bob", mailbox: str = "INBOX") -> list[bytes]:
        """What the account in memory holds."""
        found = self.new.accounts.get(user, {}).get(tuple(mailbox.split("/")))
        return [message.body for message in found.messages] if found is not None else []

    def run(self) -> Run:
        return Run(stores=self, journal=self.journal, query=parse_query(("ALL",)), limits=self.limits)

    async def import_(
        self, *, source: Endpoint | None = None, destination: Endpoint | None = None, run: Run | None = None
    ) -> UserResult:
        """Imports one user; the side that is not given is in memory."""
        return await import_user(job(source=source, destination=destination), run or self.run())


def job(*, source: Endpoint | None = None, destination: Endpoint | None = None) -> UserJob:
    endpoint = destination or source
    assert endpoint is not None
    user = endpoint.user
    return UserJob(
        user=user,
        source=source or Endpoint(scheme="memory", path="old", user=user),
        destination=destination or Endpoint(scheme="memory", path="new", user=user),
    )
