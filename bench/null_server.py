"""An IMAP server that stores nothing and reads no disk: beside it the client's own ceiling shows.

    client ──APPEND (LITERAL+, MULTIAPPEND)──▶ counted, dropped, OK APPENDUID
    client ◀──UID FETCH, LIST, UID SEARCH──── mail held ready in memory

In a process of its own, one uvloop. Any user and password will do; whose account it is
depends on the user's name:

    NAME         that Maildir++ account below `mail`, else an empty one
    messages-N   INBOX with N equal messages of 1 KiB, UIDs 1 2 3 ...
    sparse-N     the same, UIDs 1 3 5 ...: no range is longer than one
    runs-N       the same, UIDs 1 2 3 5 6 7 9 ...: ranges of three
    folders-N    N empty mailboxes

Another `-` and what follows it is not looked at: `messages-5-a` and `messages-5-b` are alike.

It speaks as much IMAP as aimport does; anything else is answered BAD.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import ssl
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, overload

import uvloop

from aimport import flags, octets, sample
from aimport.imap.commands import date_time
from bench.measure import tree_cpu_s

CAPABILITIES: Final = (
    b"IMAP4rev1 AUTH=PLAIN SASL-IR LITERAL+ MULTIAPPEND UIDPLUS NAMESPACE ID UNSELECT CHILDREN ESEARCH"
)
BUFFER_OCTETS: Final = 256 * 1024
CHUNK_OCTETS: Final = 256 * 1024
KEPT_LITERAL: Final = 1000
"""A name or a password is kept, the octets of a message are not."""
RUNS: Final = {"messages": 1 << 32, "sparse": 1, "runs": 3}
WHOLE: Final = (b"UID", b"FLAGS", b"INTERNALDATE", b"BODY.PEEK[]")
"""What is held ready as octets: that which aimport asks for."""

_LITERAL = re.compile(rb"\{(\d+)(\+?)\}\Z")
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"|(\([^)]*\)|[^\s"(]+)')
_PARTIAL = re.compile(rb"BODY\.PEEK\[\]<(\d+)\.(\d+)>\Z")


@dataclass(frozen=True, slots=True)
class Row:
    """One message as FETCH shows it."""

    flags: bytes
    date: bytes
    body: bytes = field(repr=False)

    def item(self, name: bytes, uid: int) -> bytes:
        match name:
            case b"UID":
                return b"UID %d" % uid
            case b"FLAGS":
                return b"FLAGS (%s)" % self.flags
            case b"INTERNALDATE":
                return b"INTERNALDATE " + self.date
            case b"RFC822.SIZE":
                return b"RFC822.SIZE %d" % len(self.body)
            case b"BODY.PEEK[]":
                return b"BODY[] {%d}\r\n%s" % (len(self.body), self.body)
        if partial := _PARTIAL.match(name):
            start, count = int(partial[1]), int(partial[2])
            piece = self.body[start : start + count]
            return b"BODY[]<%d> {%d}\r\n%s" % (start, len(piece), piece)
        raise ValueError(f"unknown FETCH item {name!r}")


NOTHING: Final = Row(b"", b'"01-Jan-1970 00:00:01 +0000"', b"")


class Same(Sequence[Row]):
    """So many messages that are all alike, in the memory of one."""

    def __init__(self, row: Row, count: int) -> None:
        self._row, self._count = row, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Same: ...
    def __getitem__(self, index: int | slice) -> Row | Same:
        if isinstance(index, slice):
            return Same(self._row, len(range(*index.indices(self._count))))
        return self._row


class Box:
    """One mailbox. UIDs count from 1, with a gap of one after every `run`.

    What is appended is counted only: it is listed by UID, for whoever looks whether it is there, without octets.
    """

    def __init__(self, rows: Sequence[Row] = (), *, run: int = 1 << 32, ready: bool = False) -> None:
        self.rows = rows
        self.run = run
        self.appended = 0
        self._ready = [self._line(number, WHOLE) for number in range(1, len(rows) + 1)] if ready else None

    @property
    def exists(self) -> int:
        return len(self.rows) + self.appended

    @property
    def next_uid(self) -> int:
        return self._uid(len(self.rows)) + self.appended + 1

    def append(self, messages: int) -> bytes:
        """Takes messages and gives their UIDs as a set."""
        first = self.next_uid
        self.appended += messages
        return b"%d" % first if messages == 1 else b"%d:%d" % (first, first + messages - 1)

    def fetch(self, uids: bytes, items: tuple[bytes, ...]) -> Iterator[bytes]:
        """FETCH responses in pieces of about `CHUNK_OCTETS`."""
        parts: list[bytes] = []
        size = 0
        for number in self._numbers(uids):
            line = self._ready[number - 1] if self._ready is not None and items == WHOLE else self._line(number, items)
            parts.append(line)
            size += len(line)
            if size >= CHUNK_OCTETS:
                yield b"".join(parts)
                parts, size = [], 0
        for low, high in self._ranges(uids):
            for uid in range(max(low, self._uid(len(self.rows)) + 1), high + 1):
                parts.append(b"* %d FETCH (%s)\r\n" % (uid, b" ".join([NOTHING.item(name, uid) for name in items])))
                if len(parts) >= 1000:
                    yield b"".join(parts)
                    parts = []
        yield b"".join(parts)

    def search(self) -> bytes:
        """All UIDs as SEARCH gives them."""
        uids = [self._uid(number) for number in range(1, len(self.rows) + 1)]
        uids += range(self.next_uid - self.appended, self.next_uid)
        return b" ".join([b"%d" % uid for uid in uids])

    def search_set(self) -> bytes:
        """All UIDs as ESEARCH gives them."""
        last = len(self.rows)
        ends = [(self._uid(at), self._uid(min(at + self.run - 1, last))) for at in range(1, last + 1, self.run)]
        ends += [(self.next_uid - self.appended, self.next_uid - 1)] if self.appended else []
        return b",".join([b"%d" % low if low == high else b"%d:%d" % (low, high) for low, high in ends])

    def _uid(self, number: int) -> int:
        return number + max(0, number - 1) // self.run

    def _below(self, uid: int) -> int:
        """How many messages have a UID of at most `uid`."""
        runs, rest = divmod(uid, self.run + 1)
        return min(len(self.rows), runs * self.run + rest)

    def _ranges(self, uids: bytes) -> Iterator[tuple[int, int]]:
        for part in uids.split(b","):
            low, _, high = part.partition(b":")
            first, last = sorted(self.next_uid - 1 if end == b"*" else int(end) for end in (low, high or low))
            yield first, min(last, self.next_uid - 1)

    def _numbers(self, uids: bytes) -> Iterable[int]:
        for first, last in self._ranges(uids):
            yield from range(self._below(first - 1) + 1, self._below(last) + 1)

    def _line(self, number: int, items: tuple[bytes, ...]) -> bytes:
        row, uid = self.rows[number - 1], self._uid(number)
        return b"* %d FETCH (%s)\r\n" % (number, b" ".join([row.item(name, uid) for name in items]))


Account = dict[bytes, Box]
"""By name on the wire; INBOX is always there."""


def read_account(root: Path) -> Account:
    """A Maildir++ account with everything in memory; messages in the order of their dates."""
    account: Account = {b"INBOX": Box()}
    folders = [root, *sorted(path for path in root.iterdir() if path.name.startswith(".") and path.is_dir())]
    for folder in folders:
        keywords = {chr(ord("a") + number): name for number, name in enumerate(sample.KEYWORDS)}
        rows = []
        files = [file for part in ("cur", "new") for file in (folder / part).iterdir()]
        for file in sorted(files, key=lambda file: file.name):
            info = file.name.rpartition(":2,")[2] if ":2," in file.name else ""
            marks = " ".join(sorted(flags.from_letters(info, keywords))).encode()
            moment = datetime.fromtimestamp(int(file.stat().st_mtime), UTC)
            rows.append(Row(marks, date_time(moment), octets.wire_form(file.read_bytes())))
        name = b"INBOX" if folder == root else folder.name[1:].encode()
        account[name] = Box(rows, ready=True)
    return account


def made_account(name: str) -> Account:
    """The account that a user's name describes; an empty one for any other name."""
    kind, number, *_ = [*name.split("-"), ""]
    count = int(number) if number.isdecimal() else 0
    account: Account = {b"INBOX": Box()}
    if kind in RUNS:
        head = b"From: sender@example.net\r\nSubject: one of many\r\nDate: Thu, 1 Jan 2015 00:00:00 +0000\r\n\r\n"
        line = b"the same line in every message, until there are about a thousand octets of them\r\n"
        row = Row(b"\\Seen", date_time(datetime(2015, 1, 1, tzinfo=UTC)), head + line * 11)
        account[b"INBOX"] = Box(Same(row, count), run=RUNS[kind])
    elif kind == "folders":
        account |= {b"Folder %06d" % number: Box() for number in range(count)}
    return account


@dataclass(slots=True, kw_only=True)
class Totals:
    """What clients have appended since the last time somebody asked."""

    messages: int = 0
    octets: int = 0
    commands: int = 0
    connections: int = 0


class Server:
    """All accounts, and what was appended to them."""

    def __init__(self, mail: Path | None) -> None:
        self.totals = Totals()
        self._accounts = {} if mail is None else {path.name: read_account(path) for path in sorted(mail.iterdir())}

    def account(self, user: str) -> Account:
        return self._accounts.setdefault(user, made_account(user))


class Session(asyncio.BufferedProtocol):
    """One connection. Octets of messages are skipped where they lie, never copied."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._account: Account = {}
        self._box = Box()
        self._buffer = bytearray(BUFFER_OCTETS)
        self._held = b""
        """A line that has not ended yet."""
        self._command: list[bytes] = []
        """The lines of a command that goes on after a literal; of an APPEND the first only."""
        self._literals = 0
        self._missing = 0
        self._kept: bytearray | None = None
        self._login = b""
        """The tag of an AUTHENTICATE that waits for its response."""
        self._queue: deque[Iterator[bytes]] = deque()
        self._paused = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "writelines")
        self._transport = transport  # type: ignore[assignment]  # uvloop's derives from no class of asyncio
        self._transport.set_write_buffer_limits(high=4 * CHUNK_OCTETS)
        self._server.totals.connections += 1
        self._say(b"* OK [CAPABILITY %s] ready\r\n" % CAPABILITIES)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        buffer, at = self._buffer, 0
        while at < nbytes:
            if self._missing:
                taken = min(self._missing, nbytes - at)
                if self._kept is not None:
                    self._kept += buffer[at : at + taken]
                at += taken
                self._missing -= taken
                continue
            newline = buffer.find(b"\n", at, nbytes)
            if newline < 0:
                self._held += buffer[at:nbytes]
                break
            line = self._held + buffer[at:newline]
            self._held = b""
            at = newline + 1
            self._line(line.removesuffix(b"\r"))

    def _line(self, line: bytes) -> None:
        if self._kept is not None:
            self._command.append(_quoted(bytes(self._kept)))
            self._kept = None
        if line[-1:] == b"}" and (literal := _LITERAL.search(line)):
            self._missing = int(literal[1])
            appending = bool(self._command) and b" APPEND " in self._command[0][:40]
            if not appending:
                self._command.append(line[: literal.start()])
                appending = b" APPEND " in line[:40] and b'"' in line[-40:]
            if appending:
                self._literals += 1
                self._server.totals.octets += self._missing
            elif self._missing <= KEPT_LITERAL:
                self._kept = bytearray()
            if not literal[2]:
                self._say(b"+ go on\r\n")
            return
        if self._command:
            line = b"".join(self._command) + line
        messages, self._literals, self._command = self._literals, 0, []
        self._server.totals.commands += 1
        if self._login:
            tag, self._login = self._login, b""
            self._log_in(tag, line)
            return
        tag, _, rest = line.partition(b" ")
        try:
            self._do(tag, rest, messages)
        except (ValueError, IndexError, KeyError) as error:
            self._say(b"%s BAD %s\r\n" % (tag, str(error).encode()))

    def _do(self, tag: bytes, line: bytes, messages: int) -> None:
        words = [_unquoted(match[1]) if match[1] is not None else match[2] for match in _WORD.finditer(line)]
        name = words[0].upper()
        if name == b"UID":
            name, words = b"UID " + words[1].upper(), words[1:]
        match name:
            case b"APPEND":
                box = self._account.get(words[1])
                if box is None:
                    self._say(b"%s NO [TRYCREATE] no such mailbox\r\n" % tag)
                    return
                self._server.totals.messages += messages
                self._say(b"%s OK [APPENDUID 1 %s] taken\r\n" % (tag, box.append(messages)))
                return
            case b"UID FETCH":
                items = tuple(b" ".join(words[2:]).strip(b"()").upper().split())
                self._send(self._box.fetch(words[1], items))
            case b"UID SEARCH":
                if b"RETURN" in line.upper():
                    found = self._box.search_set()
                    self._say(b'* ESEARCH (TAG "%s") UID%s\r\n' % (tag, b" ALL " + found if found else b""))
                else:
                    self._say(b"* SEARCH %s\r\n" % self._box.search())
            case b"EXAMINE" | b"SELECT":
                if words[1] not in self._account:
                    self._say(b"%s NO no such mailbox\r\n" % tag)
                    return
                self._box = box = self._account[words[1]]
                self._say(b"* FLAGS ()\r\n* %d EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 1] one\r\n" % box.exists)
                self._say(b"* OK [UIDNEXT %d] next\r\n%s OK [READ-ONLY] opened\r\n" % (box.next_uid, tag))
                return
            case b"LIST":
                self._say(b"".join(self._list(words[2])))
            case b"CREATE":
                self._account.setdefault(words[1], Box())
            case b"SUBSCRIBE" | b"UNSELECT" | b"CLOSE" | b"NOOP":
                pass
            case b"NAMESPACE":
                self._say(b'* NAMESPACE (("" ".")) NIL NIL\r\n')
            case b"ID":
                self._say(b"* ID NIL\r\n")
            case b"CAPABILITY":
                self._say(b"* CAPABILITY %s\r\n" % CAPABILITIES)
            case b"AUTHENTICATE":
                if len(words) > 2:
                    self._log_in(tag, words[2])
                else:
                    self._login = tag
                    self._say(b"+ \r\n")
                return
            case b"LOGIN":
                self._account = self._server.account(words[1].decode())
            case b"LOGOUT":
                self._say(b"* BYE\r\n%s OK bye\r\n" % tag)
                self._transport.close()
                return
            case _:
                raise ValueError("unknown command")
        self._say(b"%s OK done\r\n" % tag)

    def _log_in(self, tag: bytes, response: bytes) -> None:
        authorise, user, _ = base64.b64decode(response).split(b"\0")
        self._account = self._server.account((authorise or user).decode())
        self._say(b"%s OK [CAPABILITY %s] in\r\n" % (tag, CAPABILITIES))

    def _list(self, pattern: bytes) -> Iterator[bytes]:
        if not pattern:
            yield b'* LIST (\\Noselect) "." ""\r\n'
            return
        for name in self._account:
            if pattern in (b"*", name):
                yield b'* LIST (\\HasNoChildren) "." %s\r\n' % _quoted(name)

    def _say(self, answer: bytes) -> None:
        if self._queue or self._paused:
            self._queue.append(iter((answer,)))
        else:
            self._transport.write(answer)

    def _send(self, pieces: Iterator[bytes]) -> None:
        self._queue.append(pieces)
        self._pump()

    def _pump(self) -> None:
        while self._queue and not self._paused:
            piece = next(self._queue[0], None)
            if piece is None:
                self._queue.popleft()
            elif piece:
                self._transport.write(piece)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()


def _quoted(text: bytes) -> bytes:
    return b'"%s"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _unquoted(text: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", text) if b"\\" in text else text


async def serve(mail: Path | None, certificate: Path | None = None) -> None:
    """Serves until standard input ends. Says its port first, then its totals for each line it reads."""
    loop = asyncio.get_running_loop()
    server = Server(mail)
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    listener = await loop.create_server(lambda: Session(server), "127.0.0.1", 0, backlog=1000, ssl=context)
    print(listener.sockets[0].getsockname()[1], flush=True)
    ended = loop.create_future()

    def heard() -> None:
        if os.read(sys.stdin.fileno(), 100):
            totals, server.totals = server.totals, Totals()
            print(json.dumps({name: getattr(totals, name) for name in Totals.__slots__}), flush=True)
        elif not ended.done():
            ended.set_result(None)

    loop.add_reader(sys.stdin.fileno(), heard)
    await ended
    listener.close()


@dataclass(frozen=True, slots=True)
class NullServer:
    """A running one."""

    port: int
    process: subprocess.Popen[str]

    def totals(self) -> Totals:
        """What was appended since the last call."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("totals\n")
        self.process.stdin.flush()
        return Totals(**json.loads(self.process.stdout.readline()))

    def cpu_s(self) -> float:
        return tree_cpu_s(self.process.pid)


@contextmanager
def run_null_server(mail: Path | None = None, *, certificate: Path | None = None) -> Iterator[NullServer]:
    """A null server for as long as the context lasts; it ends with us however we end.

    `certificate`: a PEM file with its key; TLS from the first octet.
    """
    words = [sys.executable, "-m", "bench.null_server", *(() if mail is None else ("--mail", str(mail)))]
    words += [] if certificate is None else ["--certificate", str(certificate)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": "."}
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            port = process.stdout.readline()
            if not port:
                raise RuntimeError("the null server did not start")
            yield NullServer(int(port), process)
        finally:
            process.stdin.close()  # it ends by itself
            process.wait(timeout=10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.null_server", description="Prints its port.")
    parser.add_argument("--mail", type=Path, metavar="DIR", help="Maildir++ accounts to show")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="PEM with its key: TLS")
    options = parser.parse_args()
    uvloop.run(serve(options.mail, options.certificate))
