"""An IMAP server that says what a test tells it to, and notes every octet it hears.

    async with scripted(LOGIN + '''
        C: a EXAMINE "INBOX"
        S: * 0 EXISTS
        S: a OK done
    ''') as server:
        connection = await connect(server.endpoint())

A script is a transcript or an async function of a `Peer`; each connection runs the next one.
Lines of a transcript:

    C: TAG TEXT   the next line of the client; TAG is any name, `...` in TEXT matches anything
    C| TEXT       the next line as it is (after a literal)
    S: TEXT       a line of ours; a TAG heard before stands for the client's own
    - tls         handshake; - close, - reset, - eof (the client closes)
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
import textwrap
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Literal

import trustme

from aimport.model import Endpoint, Secret, Security

DEADLINE_S: Final = 20.0
BEFORE: Final = "IMAP4rev1 AUTH=PLAIN SASL-IR"
AFTER: Final = "IMAP4rev1 LITERAL+ UIDPLUS"
PASSWORD: Final = "canary-secret"


def login(capabilities: str = AFTER) -> str:
    """A greeting and a login after which the server offers `capabilities`."""
    return f"""
        S: * OK [CAPABILITY {BEFORE}] ready
        C: t AUTHENTICATE PLAIN ...
        S: t OK [CAPABILITY {capabilities}] in
    """


LOGIN: Final = login()


class Unexpected(AssertionError):
    """The client did not do what the script says."""


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self.lines: list[bytes] = []
        """Every line of the client, without CRLF."""
        self.tags: dict[str, str] = {}
        self._reader, self._writer = reader, writer
        self._context = context

    async def line(self) -> bytes:
        """The client's next line."""
        try:
            line = await self._reader.readuntil(b"\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Unexpected(f"the client closed after {getattr(error, 'partial', b'')!r}") from None
        self.lines.append(line[:-2])
        return line[:-2]

    async def octets(self, number: int) -> bytes:
        return await self._reader.readexactly(number)

    async def hear(self, expected: str) -> str:
        """The client's next command is `TAG TEXT`; returns the client's tag."""
        name, _, text = expected.partition(" ")
        line = (await self.line()).decode("latin-1")
        tag, _, said = line.partition(" ")
        pattern = ".*".join(re.escape(part) for part in text.split("..."))
        if not re.fullmatch(pattern, said):
            raise Unexpected(f"expected {text!r}, the client said {said!r}")
        self.tags[name] = tag
        return tag

    def say(self, *lines: str | bytes) -> None:
        """Lines of ours; CRLF is added, a known tag name replaced."""
        for line in lines:
            if isinstance(line, str):
                name, space, rest = line.partition(" ")
                line = f"{self.tags.get(name, name)}{space}{rest}".encode("latin-1")
            self._writer.write(line + b"\r\n")

    def octets_out(self, data: bytes) -> None:
        self._writer.write(data)

    async def flushed(self) -> None:
        await self._writer.drain()

    async def start_tls(self) -> None:
        await self._writer.drain()
        await self._writer.start_tls(self._context)

    async def until_closed(self) -> bytes:
        """What the client still sends before it closes."""
        try:
            return await self._reader.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """RST instead of FIN."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Peer], Awaitable[object]]


def transcript(text: str) -> Script:
    """The script that `text` writes down."""
    steps = [line.strip() for line in textwrap.dedent(text).splitlines() if line.strip()]

    async def run(peer: Peer) -> None:
        for step in steps:
            kind, rest = step[:2], step[3:]
            if kind == "C:":
                await peer.hear(rest)
            elif kind == "C|":
                line = await peer.line()
                if line != rest.encode("latin-1"):
                    raise Unexpected(f"expected {rest!r}, the client said {line!r}")
            elif kind == "S:":
                peer.say(rest)
            elif step == "- tls":
                await peer.start_tls()
            elif step == "- close":
                peer.close()
            elif step == "- reset":
                await peer.flushed()
                peer.reset()
            elif step == "- eof":
                await peer.until_closed()
            else:
                raise ValueError(f"no such step: {step}")

    return run


def then(*scripts: Script | str) -> Script:
    """Scripts one after the other on one connection."""

    async def run(peer: Peer) -> None:
        for script in scripts:
            await (transcript(script) if isinstance(script, str) else script)(peer)

    return run


async def logout(peer: Peer) -> None:
    """The client's orderly end, or its abrupt one."""
    try:
        tag = (await peer.line()).partition(b" ")[0]
    except Unexpected:
        return
    peer.say(b"* BYE", tag + b" OK bye")


@dataclass(slots=True, kw_only=True)
class Scripted:
    """A running scripted server."""

    host: str
    port: int
    ca_file: str
    security: Security
    peers: list[Peer] = field(default_factory=list)

    def endpoint(
        self, *, user: str = "bob", login: str = "", auth: str = "", security: Security | None = None, ca: bool = True
    ) -> Endpoint:
        return Endpoint(
            scheme="imap",
            host=self.host,
            port=self.port,
            security=security or self.security,
            user=user,
            login=login,
            auth=auth,
            secret=Secret(kind="literal", text=PASSWORD),
            tls_ca=self.ca_file if ca else "",
        )

    @property
    def heard(self) -> bytes:
        """Every line of every client."""
        return b"\r\n".join(line for peer in self.peers for line in peer.lines)


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def _ca_file() -> str:
    import atexit
    import tempfile

    folder = tempfile.TemporaryDirectory(prefix="aimport-ca-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "ca.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


def server_context(name: str = "127.0.0.1") -> ssl.SSLContext:
    """A certificate of our own CA for `name`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    return context


@asynccontextmanager
async def scripted(
    *scripts: Script | str,
    security: Security = "none",
    certificate: str = "127.0.0.1",
    check: Literal["strict", "lenient"] = "strict",
) -> AsyncGenerator[Scripted]:
    """Runs the scripts, one a connection, on a free loopback port.

    Raises on leaving what a script raised; with `check` "lenient" not, for clients that are
    expected to go away in the middle.
    """
    context = server_context(certificate)
    waiting = [transcript(script) if isinstance(script, str) else script for script in scripts]
    tasks: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, context)
        server.peers.append(peer)
        try:
            if not waiting:
                raise Unexpected("one connection too many")
            await asyncio.wait_for(waiting.pop(0)(peer), DEADLINE_S)
        except (Exception, asyncio.CancelledError) as error:
            failures.append(error)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        tasks.add(task)

    listener = await asyncio.start_server(
        accept, "127.0.0.1", 0, ssl=context if security == "tls" else None, limit=1 << 16
    )
    port = listener.sockets[0].getsockname()[1]
    server = Scripted(host="127.0.0.1", port=port, ca_file=_ca_file(), security=security)
    try:
        yield server
    finally:
        listener.close()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=DEADLINE_S)
            for task in late:
                task.cancel()
    if check == "strict" and failures:
        raise failures[0]
