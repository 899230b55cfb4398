"""An IMAP server without a socket: a small honest state machine, and what it may do wrong.

Remote.feed ──▶ lines and literals ──▶ one command at a time, each after a while ──▶ answers

What it had received when a connection dies it may still carry out, within the time that a real server takes;
of a MULTIAPPEND it may keep a prefix (Dovecot on a Maildir does, seen).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from aimport.imap.responses import date_time
from tests.sim.faults import Faults
from tests.wire.server import Box, Kept, facts, in_set

AFTER_DEATH_S: Final = 4.0
"""A session that lost its client is at work no longer than this."""
QUICK: Final = (0.0, 0.0, 0.0, 0.01)
APPENDING: Final = (0.0, 0.0, 0.01, 0.3, 2.0)
SLOW: Final = (0.3, 2.0)
AFTER_DEATH: Final = (0.01, 1.0, 3.0)
"""Seconds until a command is carried out."""
_ANNOUNCED: Final = re.compile(rb"\{(\d+)(\+?)\}\Z")
_NAME: Final = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\0|[^\s()"]+)')
_MESSAGE: Final = re.compile(r'\(([^)]*)\) ("[^"]*") \0')
_ALTERED: Final = bytes.maketrans(b"\0", b"\x80")

PASSING: Final = ("[UNAVAILABLE] later", "[INUSE] locked", "[SERVERBUG] internal error")
REFUSALS: Final = {
    "LOGIN": ("[UNAVAILABLE] later", "[AUTHENTICATIONFAILED] wrong password"),
    "APPEND": (*PASSING, "[OVERQUOTA] full", "[LIMIT] too fast", "not this message"),
    "EXAMINE": (*PASSING, "[NOPERM] not yours"),
    "CREATE": (*PASSING, "[NOPERM] not yours"),
    "UID FETCH": (*PASSING, "some messages could not be read"),
    "UID SEARCH": (*PASSING, "no search today"),
}
"""What may be said instead of OK, though the command is a good one."""
DEATHS: Final = ("die before", "die after", "stall before", "stall after", "bye", "no", "no", "bad")


@dataclass(slots=True)
class Command:
    """One command as it came; a NUL in `text` for each literal."""

    tag: str
    name: str
    text: str
    literals: list[bytes]

    def mailbox(self) -> tuple[str, str]:
        """Its first name, and what follows."""
        found = _NAME.match(self.text, len(self.name))
        assert found is not None, self.text
        name = found[1]
        if name == "\0":
            name = self.literals.pop(0).decode("latin-1")
        elif name.startswith('"'):
            name = re.sub(r"\\(.)", r"\1", name[1:-1])
        return name, self.text[found.end() :]


@dataclass(slots=True, kw_only=True)
class ImapServer:
    """Accounts by user, mailboxes by their name on the wire, and how the server behaves."""

    faults: Faults
    offered: frozenset[str] = frozenset({"IMAP4rev1", "LITERAL+", "UIDPLUS", "MULTIAPPEND"})
    prefix: str = ""
    separator: str = "/"
    refused: frozenset[bytes] = frozenset()
    """Bodies that are never taken."""
    alters: bool = False
    """What some servers do not keep is stored otherwise, without a word (Dovecot, seen)."""
    forgets: bool = False
    """Of what was acknowledged some is not there."""
    slow: bool = False
    """Storing takes seconds."""
    rebuilds: float = 0.0
    """How often a mailbox gets another UIDVALIDITY when a session dies that has stored something there."""
    most_inside: int = 0
    """More connections of one user at once are refused at login; 0: no limit."""
    accounts: dict[str, dict[str, Box]] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    forgotten: list[tuple[str, str, Kept]] = field(default_factory=list)
    """User, name and message of what was acknowledged and not kept."""
    before: Callable[[str], None] = lambda name: None
    """Called before a command is carried out: others may change a mailbox meanwhile."""

    def box(self, user: str, path: tuple[str, ...]) -> Box:
        """A mailbox by its levels, made when missing."""
        return self.accounts.setdefault(user, {"INBOX": Box()}).setdefault(self.name(path), Box())

    def name(self, path: tuple[str, ...]) -> str:
        return "INBOX" if path == ("INBOX",) else self.prefix + self.separator.join(path)

    def path(self, name: str) -> str:
        """A name with slashes, as the checker knows it."""
        return name.removeprefix(self.prefix).replace(self.separator, "/")

    def holds(self, user: str) -> Iterator[tuple[str, bytes, int]]:
        """Mailbox, body and date (seconds) of all messages of an account."""
        for name, box in self.accounts.get(user, {}).items():
            for message in box.messages:
                yield self.path(name), message.body, seconds_of(message)

    def renumber(self, box: Box) -> None:
        """The mailbox gets another UIDVALIDITY; who has it open is thrown out."""
        box.validity += 1
        self.faults.chance.shuffle(box.messages)
        box.next_uid = self.faults.chance.randrange(1, 9)
        for message in box.messages:
            message.uid = box.next_uid
            box.next_uid += 1
        for session in self.sessions:
            if session.selected is box:
                session.die()

    def accept(
        self, answer: Callable[[bytes], None], close: Callable[[], None], break_off: Callable[[], None]
    ) -> Session:
        session = Session(self, len(self.sessions), answer, close, break_off)
        self.sessions.append(session)
        return session


class Session:
    """One connection of the server."""

    def __init__(
        self,
        server: ImapServer,
        number: int,
        answer: Callable[[bytes], None],
        close: Callable[[], None],
        break_off: Callable[[], None],
    ) -> None:
        self._server = server
        self._faults = server.faults
        self._number = number
        self._answer = answer
        self._close = close
        self._break_off = break_off
        self._buffer = bytearray()
        self._text = ""
        self._literals: list[bytes] = []
        self._wanted = -1
        """Octets of the literal that was announced; -1: none is."""
        self._pending: Command | None = None
        """What is being done."""
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._over = False
        """Nothing more is carried out."""
        self._deaf = False
        self._until = 0.0
        self.user = ""
        self.selected: Box | None = None
        self._stored_in: Box | None = None
        capabilities = " ".join(sorted(server.offered))
        self.say(f"* OK [CAPABILITY {capabilities}] ready" if self._faults.chance.random() < 0.5 else "* OK ready")

    def say(self, *lines: str) -> None:
        self.octets_out("".join(f"{line}\r\n" for line in lines).encode("latin-1"))

    def octets_out(self, data: bytes) -> None:
        if not self._deaf:
            self._answer(data)

    # What the network tells.

    def feed(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def eof(self) -> None:
        self._finish()

    def gone(self) -> None:
        if self._deaf:
            return
        self._deaf = True
        if self._stored_in is not None and self._faults.chance.random() < self._server.rebuilds:
            self._faults.note(self._number, "rebuilt")
            self._server.renumber(self._stored_in)
        if self._faults.chance.random() < 0.7:
            self._finish()
        else:
            self._stop()

    def _finish(self) -> None:
        """Nothing more comes; what is here is carried out, as far as there is time for it."""
        if not self._ended:
            self._ended = True
            loop = asyncio.get_running_loop()
            self._until = loop.time() + AFTER_DEATH_S
            if self._pending is not None and self._timer is not None:
                self._timer.cancel()
                self._timer = loop.call_later(self._faults.chance.choice(AFTER_DEATH), self._later, self._pending)
            self._advance()

    def die(self) -> None:
        """The process of this session ends; its client hears of it."""
        if not self._over:
            self._stop()
            self._break_off()

    def _stop(self) -> None:
        """In the middle of what is being done: of an APPEND a prefix may be kept."""
        if self._over:
            return
        self._over = True
        command = self._pending
        if command is None and self._text.split(" ")[1:2] == ["APPEND"] and self._literals:
            command = self._command()
        if command is not None and command.name == "APPEND" and self._faults.chance.random() < 0.5:
            self._store(command, self._faults.chance.randrange(len(command.literals) + 1))

    # Commands, one at a time.

    def _advance(self) -> None:
        while self._pending is None and not self._over:
            command = self._next()
            if command is None:
                if self._ended and not self._over:
                    self._over = True
                    self._close()
                return
            self._pending = command
            if delay := self._faults.chance.choice(self._delays(command)):
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(delay, self._later, command)
                if not self._ended and self._faults.now():
                    self._faults.note(self._number, command.tag, "cut while it works")
                    loop.call_later(delay / 2, self._break_off)
                return
            self._carry_out(command)
            self._pending = None

    def _delays(self, command: Command) -> Sequence[float]:
        if self._ended:
            return AFTER_DEATH
        if command.name == "APPEND":
            return SLOW if self._server.slow else APPENDING
        return QUICK

    def _later(self, command: Command) -> None:
        if self._over:
            return
        if self._ended and asyncio.get_running_loop().time() > self._until:
            self._over = True
            self._close()
            return
        self._carry_out(command)
        self._pending = None
        self._advance()

    def _next(self) -> Command | None:
        """The next command that is whole."""
        buffer = self._buffer
        while True:
            if self._wanted >= 0:
                if len(buffer) < self._wanted:
                    return None
                self._literals.append(bytes(buffer[: self._wanted]))
                del buffer[: self._wanted]
                self._wanted = -1
                self._text += "\0"
            end = buffer.find(b"\r\n")
            if end < 0:
                return None
            line = bytes(buffer[:end])
            del buffer[: end + 2]
            announced = _ANNOUNCED.search(line)
            if announced is None:
                self._text += line.decode("latin-1")
                return self._command()
            self._text += line[: announced.start()].decode("latin-1")
            self._wanted = int(announced[1])
            if announced[2]:
                continue
            if self._text.split(" ")[1:2] == ["APPEND"] and self._faults.now(0.2):
                self.say(f"{self._text.split(' ')[0]} NO {self._faults.chance.choice(PASSING)}")
                self._text, self._literals, self._wanted = "", [], -1
            else:
                self.say("+ go on")

    def _command(self) -> Command:
        tag, _, text = self._text.partition(" ")
        words = text.split(" ", 2)
        name = words[0].upper()
        if name == "UID":
            name = f"UID {words[1].upper()}"
        command = Command(tag, name, text, self._literals)
        self._text, self._literals = "", []
        return command

    def _carry_out(self, command: Command) -> None:
        fate = self._faults.one_of(DEATHS, 0.5)
        self._faults.note(self._number, command.tag, command.name, len(command.literals), fate)
        if fate == "bye":
            self.say("* BYE [UNAVAILABLE] shutting down")
            self._over = True
            self._close()
            return
        if fate in ("die before", "stall before"):
            self._stop_at(fate)
            return
        self._server.before(command.name)
        if self._over:  # what others did has ended this session
            return
        if fate == "no" and command.name in REFUSALS:
            self.say(f"{command.tag} NO {self._faults.chance.choice(REFUSALS[command.name])}")
            return
        if fate == "bad" and command.name == "APPEND":
            self.say(f"{command.tag} BAD what")
            return
        muted = fate in ("die after", "stall after")
        said = self._do(command, muted)
        if muted:
            self._stop_at(str(fate))
        elif said:
            self.say(f"{command.tag} {said}")
            if command.name == "LOGOUT":
                self._over = True
                self._close()

    def _stop_at(self, fate: str) -> None:
        self._over = True
        if fate.startswith("die"):
            self._break_off()

    def _do(self, command: Command, muted: bool) -> str:
        """Does what was asked for; the tagged answer without its tag."""
        server = self._server
        account = server.accounts.setdefault(self.user, {"INBOX": Box()}) if self.user else {}
        match command.name:
            case "CAPABILITY":
                self.say(f"* CAPABILITY {' '.join(sorted(server.offered))}")
            case "LOGIN":
                name, _ = command.mailbox()
                inside = sum(1 for each in server.sessions if each.user == name and not each._over)
                if server.most_inside and inside >= server.most_inside:
                    return "NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded"
                self.user = name
                return f"OK [CAPABILITY {' '.join(sorted(server.offered))}] in"
            case "ID":
                self.say("* ID NIL")
            case "NAMESPACE":
                self.say(f'* NAMESPACE (("{server.prefix}" "{server.separator}")) NIL NIL')
            case "LIST" if command.text.endswith('""'):
                self.say(f'* LIST (\\Noselect) "{server.separator}" ""')
            case "LIST":
                self.say(*(f'* LIST () "{server.separator}" "{name}"' for name in account))
            case "CREATE":
                name, _ = command.mailbox()
                if name in account:
                    return "NO [ALREADYEXISTS] exists"
                account[name] = Box()
            case "EXAMINE":
                name, _ = command.mailbox()
                if name not in account:
                    return "NO [NONEXISTENT] no such mailbox"
                self.selected = box = account[name]
                self.say(f"* {len(box.messages)} EXISTS", f"* OK [UIDVALIDITY {box.validity}] x")
                if "UIDPLUS" in server.offered:  # an older server says less
                    self.say(f"* OK [UIDNEXT {box.next_uid}] x")
            case "UID FETCH":
                self._fetch(command, muted)
            case "UID SEARCH":
                return self._search(command)
            case "APPEND":
                return self._append(command)
            case "UNSELECT" | "CLOSE":
                self.selected = None
            case "LOGOUT":
                self.say("* BYE")
            case "STATUS" | "SUBSCRIBE" | "NOOP":
                pass
            case _:
                raise AssertionError(f"no such command: {command.text}")
        return "OK done"

    def _fetch(self, command: Command, muted: bool) -> None:
        assert self.selected is not None
        _, _, wanted, items = command.text.split(" ", 3)
        messages = self.selected.messages
        last = messages[-1].uid if messages else 0
        chosen = [(seq, message) for seq, message in enumerate(messages, 1) if in_set(message.uid, wanted, last)]
        if muted:
            chosen = chosen[: self._faults.chance.randrange(len(chosen) + 1)]
        for seq, message in chosen:
            self.octets_out(b"* %d FETCH (%s)\r\n" % (seq, b" ".join(facts(message, items))))

    def _search(self, command: Command) -> str:
        """By UIDs alone."""
        assert self.selected is not None
        uids = [message.uid for message in self.selected.messages]
        wanted = command.text.split(" ")[-1]
        found = [str(uid) for uid in uids if in_set(uid, wanted, uids[-1])]
        self.say(" ".join(["* SEARCH", *found]))
        return "OK done"

    def _append(self, command: Command) -> str:
        box, stored = self._store(command, len(command.literals))
        if box is None:
            return "NO [TRYCREATE] no such mailbox"
        if stored is None:
            return "NO this message is not taken"
        if self._server.forgets and self._faults.now():
            lost = box.messages.pop()
            [name] = [name for name, each in self._server.accounts[self.user].items() if each is box]
            self._faults.note(self._number, "forgotten", name)
            self._server.forgotten.append((self.user, name, lost))
        if "UIDPLUS" not in self._server.offered:
            return "OK done"
        return f"OK [APPENDUID {box.validity} {stored[0].uid}:{stored[-1].uid}] done"

    def _store(self, command: Command, count: int) -> tuple[Box | None, list[Kept] | None]:
        """Keeps the first messages of an APPEND; None beside a mailbox: one is not taken, so none is."""
        server = self._server
        name, rest = command.mailbox()
        box = server.accounts.get(self.user, {}).get(name)
        if box is None:
            return None, None
        said = _MESSAGE.findall(rest)
        if any(body in server.refused for body in command.literals):
            return box, None
        kept: list[Kept] = []
        for (flags, date), body in list(zip(said, command.literals, strict=False))[:count]:
            box.add(altered(body) if server.alters else body, flags, date)
            kept.append(box.messages[-1])
        self._stored_in = box
        self._faults.note(self._number, "stored", name, len(kept))
        return box, kept


def altered(body: bytes) -> bytes:
    return body.translate(_ALTERED).replace(b"\r\r\n", b"\r\n")


_DATES: dict[str, int] = {}


def seconds_of(message: Kept) -> int:
    """Its INTERNALDATE."""
    date = message.date
    if date not in _DATES:
        moment = date_time(date.strip('"'))
        assert moment is not None, date
        _DATES[date] = int(moment.timestamp())
    return _DATES[date]
