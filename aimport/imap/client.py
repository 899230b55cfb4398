"""Connect to one IMAP server and log in.

    connect() ──▶ Control (aioimaplib): TCP, TLS, greeting, STARTTLS, login
                     │ set_protocol, with what was read and not yet used
                     ▼
                  Connection (`imap.connection`)

aioimaplib gives the command table, tags, states and `execute` of the first part; reading,
writing and waking are replaced by our own (it recurses per line, changes lines, forgets
commands of a lost connection). Only this module imports it. No octet of a command or an answer
is logged here.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

import aioimaplib
import anyio
import anyio.to_thread

from aimport.errors import AimportError, ConnectionLost, DeadlinePassed, LoginRefused, ProtocolError, UserError
from aimport.imap.answers import clean, error_for
from aimport.imap.commands import Burst, LiteralPolicy, Word, astring, buffers, encode
from aimport.imap.connection import Connection, Deadlines, lost
from aimport.imap.fragments import FragmentReader
from aimport.imap.responses import Capability, Continuation, Response, Tagged, Untagged, capabilities, parse
from aimport.model import Endpoint, Secret
from aimport.secret import reveal

logger = logging.getLogger(__name__)

PORTS: Final = {"tls": 993, "starttls": 143, "none": 143}

Resolve = Callable[[str, int], Awaitable[Sequence[tuple[int, str]]]]
"""Addresses of a host: (family, address) in the order to try."""


async def connect(
    endpoint: Endpoint, *, deadlines: Deadlines | None = None, resolve: Resolve | None = None
) -> Connection:
    """A connection logged in to `endpoint`; close it with `Connection.close`.

    Credentials leave only when the endpoint's security holds: certificate and name verified,
    no fall back to plain text.

    Raises:
        UserError: TLS, name or certificate are not as asked; no way to log in.
        LoginRefused
        ConnectionLost: it may work later.
    """
    deadlines = deadlines or Deadlines()
    where = where_of(endpoint)
    password = await _reveal(endpoint, where)
    reader = FragmentReader()
    control = Control(where, reader, deadlines.command_s)
    try:
        with _translated(where), anyio.fail_after(deadlines.connect_s):
            await _open(endpoint, control, deadlines.connect_s, resolve or _resolve)
            greeting = await control.greeting
        await _secure(endpoint, control, greeting, where, deadlines.connect_s)
        if greeting.status != "PREAUTH":
            await _log_in(endpoint, control, password, where)
        if not control.capabilities:
            await control.ask_capabilities()
    except BaseException:
        control.abort()
        raise
    logger.debug("session opened host=%s security=%s", where, endpoint.security)
    return _handed_over(control, deadlines)


def _handed_over(control: Control, deadlines: Deadlines) -> Connection:
    """The data plane on the control plane's transport."""
    if control.lost is not None:
        raise control.lost
    assert control.transport is not None
    return Connection.over(
        control.transport,
        where=control.where,
        offered=frozenset(control.capabilities),
        reader=control.reader,
        deadlines=deadlines,
        bye=control.bye,
    )


def where_of(endpoint: Endpoint) -> str:
    """`host:port`, with the port that goes without saying."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port or PORTS[endpoint.security]}"


async def _reveal(endpoint: Endpoint, where: str) -> str:
    secret: Secret | None = endpoint.secret
    if secret is None:
        raise UserError(f"{where}: no password for {endpoint.login or endpoint.user}", hint="give one in the user list")
    return secret.text if secret.kind == "literal" else await anyio.to_thread.run_sync(reveal, secret)


# Connect and secure -------------------------------------------------------------------------------------------


@contextmanager
def _translated(where: str) -> Generator[None]:
    """Foreign exceptions of connecting and of the control plane, as ours."""
    try:
        yield
    except ssl.SSLCertVerificationError as exc:
        raise UserError(
            f"{where}: the certificate does not hold: {clean(exc.verify_message or str(exc))}",
            hint="nothing was sent; name the host as the certificate does, or set source_tls_ca or dest_tls_ca",
        ) from exc
    except ssl.SSLError as exc:
        raise ConnectionLost(f"{where}: TLS failed: {clean(exc.reason or str(exc))}") from exc
    except socket.gaierror as exc:
        if exc.errno == socket.EAI_NONAME:
            raise UserError(f"{where}: no such host", hint="check the host name") from exc
        raise ConnectionLost(f"{where}: the host name cannot be resolved now: {exc.strerror}") from exc
    except TimeoutError as exc:  # of a scope or of the system
        raise DeadlinePassed(f"{where}: no connection within the deadline") from exc
    except OSError as exc:
        raise ConnectionLost(f"{where}: {os.strerror(exc.errno) if exc.errno else exc}") from exc
    except aioimaplib.CommandTimeout as exc:
        raise DeadlinePassed(f"{where}: no answer to {exc.command.name} within the deadline") from exc
    except aioimaplib.AioImapException as exc:
        raise ProtocolError(f"{where}: {clean(str(exc))}") from exc


async def _resolve(host: str, port: int) -> list[tuple[int, str]]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, str(address[0])) for family, _, _, _, address in found]


async def _open(endpoint: Endpoint, control: Control, deadline_s: float, resolve: Resolve) -> None:
    """Tries the addresses of the host in turn; a dead one takes no more than its share of the deadline."""
    loop = asyncio.get_running_loop()
    port = endpoint.port or PORTS[endpoint.security]
    tls = _trust(endpoint.tls_ca) if endpoint.security == "tls" else None
    addresses = await resolve(endpoint.host, port)
    failure: OSError = OSError("no address")
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            with anyio.fail_after(deadline_s / len(addresses)):
                await loop.sock_connect(sock, (address, port))
        except OSError as error:  # TimeoutError is one
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            break
    else:
        raise failure
    await loop.create_connection(
        lambda: control, sock=sock, ssl=tls, server_hostname=endpoint.host if tls is not None else None
    )


@lru_cache(maxsize=8)
def _trust(tls_ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=tls_ca or None)
    except OSError as exc:  # ssl.SSLError is one: no certificate in the file
        raise UserError(f"tls_ca {tls_ca}: no trusted roots can be read: {clean(str(exc))}") from exc


async def _secure(endpoint: Endpoint, control: Control, greeting: Untagged, where: str, deadline_s: float) -> None:
    """STARTTLS where asked for; the rules about greetings."""
    if greeting.status not in ("OK", "PREAUTH"):
        raise error_for("BYE", greeting.code, greeting.text, where=where, doing="greeting")
    if greeting.code == "CAPABILITY":
        control.learn(greeting.args)
    if endpoint.security != "starttls":
        return
    if greeting.status == "PREAUTH":
        # STARTTLS is not allowed any more (RFC 9051 §6.2.1): someone in between may have made this greeting.
        raise UserError(f"{where}: the server greets with PREAUTH, so TLS cannot begin", hint="nothing was sent")
    if not control.capabilities:
        await control.ask_capabilities()
    hint = "nothing was sent; use imaps://, or allow plain text for this host"
    if "STARTTLS" not in control.capabilities:
        raise UserError(f"{where}: the server does not offer STARTTLS", hint=hint)
    tagged = await control.run("STARTTLS")
    if tagged.status != "OK":
        raise UserError(f"{where}: the server refused STARTTLS: {clean(tagged.text)}", hint=hint)
    with _translated(where), anyio.fail_after(deadline_s):
        await control.start_tls(_trust(endpoint.tls_ca), endpoint.host)
    await control.ask_capabilities()  # what was said in plain text counts for nothing (RFC 9051 §11.1)


# Log in -------------------------------------------------------------------------------------------------------


async def _log_in(endpoint: Endpoint, control: Control, password: str, where: str) -> None:
    if not control.capabilities:
        await control.ask_capabilities()
    who = f"{endpoint.login} for {endpoint.user}" if endpoint.login else endpoint.user
    try:
        name, words, replies = _credentials(endpoint, password, frozenset(control.capabilities))
    except ValueError:
        raise UserError(f"{where}: login of {who}: NUL, CR or LF in a name or password") from None
    control.capabilities.clear()  # they change with the login (RFC 9051 §6.2.3)
    tagged = await control.run(name, *words, replies=replies)
    if tagged.status != "OK":
        # A BAD too: the same octets would be refused again, and each try may count against the account.
        raise error_for("NO", tagged.code, tagged.text, where=where, doing=f"login of {who}", default=LoginRefused)
    if tagged.code == "CAPABILITY":
        control.learn(tagged.args)
    control.state = aioimaplib.AUTH


def _credentials(endpoint: Endpoint, password: str, offered: frozenset[str]) -> tuple[str, list[Word], list[bytes]]:
    """Command, its words, and the answers to the server's challenges."""
    where, asked = where_of(endpoint), endpoint.auth.upper()
    identity = endpoint.login or endpoint.user
    if not asked:
        asked = "PLAIN" if "AUTH=PLAIN" in offered or endpoint.login else "LOGIN"
    if asked == "LOGIN":
        if endpoint.login:
            raise UserError(f"{where}: LOGIN cannot act for another user", hint="use auth=PLAIN")
        if "LOGINDISABLED" in offered:
            raise UserError(f"{where}: the server allows no login here", hint="use TLS, or another mechanism")
        return "LOGIN", [astring(identity), astring(password)], []
    if f"AUTH={asked}" not in offered:
        raise UserError(f"{where}: the server does not offer AUTH={asked}", hint="nothing was sent")
    if asked == "PLAIN":  # RFC 4616
        fields = (endpoint.user if endpoint.login else "", identity, password)
        if any("\0" in field for field in fields):
            raise ValueError("NUL")
        first, later = "\0".join(fields), []
    elif asked == "XOAUTH2":
        first, later = f"user={endpoint.user}\1auth=Bearer {password}\1\1", [b""]  # "" takes the reason for a NO
    else:
        raise UserError(f"{where}: AUTH={asked} is not supported", hint="use PLAIN, LOGIN or XOAUTH2")
    response = base64.b64encode(first.encode())
    if "SASL-IR" in offered:
        return "AUTHENTICATE", [asked.encode(), response], later
    return "AUTHENTICATE", [asked.encode()], [response, *later]


class _Command(aioimaplib.Command):
    """A command that carries its octets; its `repr`, as aioimaplib prints it, has the name only."""

    def __init__(self, name: str, tag: str, words: Sequence[Word], replies: Sequence[bytes], timeout_s: float) -> None:
        super().__init__(name, tag, timeout=timeout_s)
        self.bursts: deque[Burst] = deque(encode(tag, [name.encode("ascii"), *words], LiteralPolicy.SYNC))
        self.bursts.extend([reply + b"\r\n"] for reply in replies)
        self.tagged: Tagged | None = None

    def progress(self) -> None:
        """Starts the deadline anew."""
        self.append_to_resp(b"")
        self.response.lines.clear()

    def fail(self, error: AimportError) -> None:
        self._exception = error
        self.close(b"", "KO")


class Control(aioimaplib.IMAP4ClientProtocol):
    """One command at a time until the login is done."""

    def __init__(self, where: str, reader: FragmentReader, command_s: float) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop)
        self.where = where
        self.reader = reader
        self.greeting: asyncio.Future[Untagged] = loop.create_future()
        self.greeting.add_done_callback(lambda greeting: greeting.cancelled() or greeting.exception())  # never "lost"
        self.lost: AimportError | None = None
        self.bye: Untagged | None = None
        self._greeted = False
        self._command: _Command | None = None
        self._command_s = command_s
        self._one = anyio.Lock()
        self._handshake = False

    async def run(self, name: str, *words: Word, replies: Sequence[bytes] = ()) -> Tagged:
        """Sends one command and returns its end. `replies` answer the server's challenges in order."""
        async with self._one:
            if self.lost is not None:
                raise self.lost
            self._command = _Command(name, self.new_tag(), words, replies, self._command_s)
            try:
                with _translated(self.where):
                    await self.execute(self._command)
                tagged = self._command.tagged
                assert tagged is not None, "execute returns when the tagged answer is there"
                return tagged
            finally:
                self._command.close(b"", "KO")  # its timer, when this was cancelled
                self._command = None

    async def ask_capabilities(self) -> None:
        self.capabilities.clear()
        tagged = await self.run("CAPABILITY")
        if tagged.status != "OK" or not self.capabilities:
            raise ProtocolError(f"{self.where}: the server does not say what it can do")

    def learn(self, args: str) -> None:
        self.capabilities = set(capabilities(args))

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        loop, plain = asyncio.get_running_loop(), self.transport
        assert plain is not None
        self._handshake = False
        transport = await loop.start_tls(plain, self, context, server_hostname=host)
        if transport is None or self.lost is not None:
            raise self.lost or ConnectionLost(f"{self.where}: the connection was lost during the TLS handshake")
        self.transport = transport

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # What aioimaplib calls, or calls on us; each replaces one of its own.

    def send(self, line: str, scrub: str | None = None) -> None:
        self._write_next()

    def data_received(self, d: bytes) -> None:
        try:
            for fragments in self.reader.feed(d):
                self._receive(parse(fragments))
            if self._handshake and not self.reader.empty:
                raise _injected()
        except ProtocolError as error:
            error.text = f"{self.where}: {error.text}"
            self._fail(error)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(lost(self.where, exc, self.bye))

    def _receive(self, response: Response) -> None:
        if self._handshake:
            raise _injected()
        command = self._command
        if not self._greeted:
            if not isinstance(response, Untagged):
                raise ProtocolError("the server does not greet as IMAP servers do")
            self._greeted = True
            self.state = aioimaplib.AUTH if response.status == "PREAUTH" else aioimaplib.NONAUTH
            if not self.greeting.done():
                self.greeting.set_result(response)
        elif isinstance(response, Tagged):
            if command is None or command.tag != response.tag or command.tagged is not None:
                raise ProtocolError("the server answered a command that was not sent")
            if response.status == "OK" and command.name == "LOGIN" and command.bursts:
                raise ProtocolError("the server answered before it had the whole command")
            command.tagged = response
            self.pending_sync_command = None
            self.pending_async_commands.clear()
            if command.name == "STARTTLS" and response.status == "OK":
                # Nothing more may be read before the handshake: it would count as said under TLS (CVE-2021-38371).
                self._handshake = True
                assert self.transport is not None
                self.transport.pause_reading()
            command.close(b"", response.status)
        elif isinstance(response, Continuation):
            if command is None or not command.bursts:
                raise ProtocolError("the server waits for octets that were not announced")
            command.progress()
            self._write_next()
        else:
            if isinstance(response, Untagged) and response.status == "BYE":
                self.bye = response
            if isinstance(response, Capability):
                self.capabilities = set(response.names)
            if command is not None:
                command.progress()

    def _write_next(self) -> None:
        assert self._command is not None and self.transport is not None
        self.transport.writelines(buffers(self._command.bursts.popleft()))

    def _fail(self, error: AimportError) -> None:
        self.lost = self.lost or error
        if not self.greeting.done():
            self.greeting.set_exception(self.lost)
        if self._command is not None and self._command.tagged is None:
            self.pending_sync_command = None
            self.pending_async_commands.clear()
            self._command.fail(self.lost)


def _injected() -> ProtocolError:
    return ProtocolError(
        "plain text follows the server's answer to STARTTLS", hint="someone may be in between; nothing was sent"
    )
