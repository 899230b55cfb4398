"""Talk to one IMAP server: who we are, and a pipeline of commands over one connection.

    connect() ──▶ Control (aioimaplib): TCP, TLS, greeting, STARTTLS, login
                     │ set_protocol, with what was read and not yet used
                     ▼
                  Connection ── start() ──▶ Exchange ── responses(), result()

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

import aioimaplib
import anyio
import anyio.to_thread

from aimport import __version__
from aimport.errors import AimportError, ConnectionLost, DeadlinePassed, LoginRefused, ProtocolError, UserError
from aimport.imap.answers import clean, error_for
from aimport.imap.commands import Burst, LiteralPolicy, Word, astring, encode
from aimport.imap.fragments import FragmentReader
from aimport.imap.responses import Capability, Continuation, Response, Tagged, Untagged, capabilities, parse
from aimport.model import Endpoint, Secret
from aimport.secret import reveal

logger = logging.getLogger(__name__)

READ_HIGH: Final = 4 * 1024 * 1024
"""Octets of answers that wait for their reader; above, the transport reads no more."""
WRITE_HIGH: Final = 1024 * 1024
WRITE_PIECE: Final = 256 * 1024
RESPONSE_COST: Final = 200
"""What a response counts beside its octets: it is Python objects."""
MAX_COLLECTED: Final = 250_000
"""Responses of one command that is not read as a stream."""
PORTS: Final = {"tls": 993, "starttls": 143, "none": 143}

T = TypeVar("T")
Resolve = Callable[[str, int], Awaitable[Sequence[tuple[int, str]]]]
"""Addresses of a host: (family, address) in the order to try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds. All but `connect_s` and `close_s` count from the last octet that moved."""

    connect_s: float = 30.0
    """From the first packet to the greeting, TLS included; divided among the addresses of a host."""
    command_s: float = 60.0
    append_s: float = 300.0
    """Slow storage commits a batch in minutes."""
    close_s: float = 5.0


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
    return Connection.take_over(control, deadlines)


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
        self._fail(_lost(self.where, exc, self.bye))

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
        self.transport.writelines(self._command.bursts.popleft())

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


def _lost(where: str, exc: Exception | None, bye: Untagged | None) -> AimportError:
    if bye is not None:
        return error_for("BYE", bye.code, bye.text, where=where)
    said = clean(str(exc)) if exc is not None else "the server closed the connection"
    return ConnectionLost(f"{where}: the connection was lost: {said}")


# The data plane -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The end of a command and all untagged data that came with it."""

    tagged: Tagged
    data: Sequence[Response]

    @property
    def ok(self) -> bool:
        return self.tagged.status == "OK"

    def of(self, kind: type[T]) -> list[T]:
        return [response for response in self.data if isinstance(response, kind)]

    def code(self, name: str) -> str | None:
        """Arguments of a response code, from the tagged or an untagged status response."""
        for response in (self.tagged, *self.data):
            if isinstance(response, Tagged | Untagged) and response.code == name:
                return response.args
        return None


class Exchange:
    """One command under way. Its data must be read, or dropped with `result`: it holds up what follows."""

    def __init__(self, connection: Connection, tag: str, idle_s: float, *, keep: bool) -> None:
        self.tag = tag
        self.idle_s = idle_s
        self.keep = keep
        self.tagged: Tagged | None = None
        self.sent = False
        """Every burst was given to the transport."""
        self._connection = connection
        self._data: list[Response] = []
        self._cost = 0
        self._error: AimportError | None = None
        self._dropping = False
        self._waiter: asyncio.Future[None] | None = None

    async def responses(self) -> list[Response]:
        """What has come of its untagged data; waits for some. Empty: the command has ended."""
        while not self._data and self.tagged is None:
            await self._wait()
        taken, self._data = self._data, []
        self._connection.consumed(self._cost)
        self._cost = 0
        return taken

    async def reply(self) -> Reply:
        """Waits for the end and returns everything."""
        data: list[Response] = []
        while part := await self.responses():
            data += part
            if len(data) > MAX_COLLECTED:
                error = ProtocolError(f"{self._connection.where}: more than {MAX_COLLECTED} responses to one command")
                self._connection.fail(error)
                raise error
        return Reply(tagged=await self.result(), data=data)

    async def result(self) -> Tagged:
        """Waits for the end; untagged data is dropped."""
        self.drop()
        while self.tagged is None:
            await self._wait()
        return self.tagged

    def drop(self) -> None:
        """Nobody will read the data of this command."""
        self._dropping = True
        self._data = []
        self._connection.consumed(self._cost)
        self._cost = 0

    # For `Connection` alone.

    @property
    def _ended(self) -> bool:
        return self.tagged is not None or self._error is not None

    def _take(self, response: Response, cost: int) -> int:
        if self._dropping:
            return 0
        self._data.append(response)
        self._cost += cost
        self._wake()
        return cost

    def _end(self, tagged: Tagged | None, error: AimportError | None) -> None:
        self.tagged, self._error = tagged, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        await self._connection.until(self._set_waiter())

    def _set_waiter(self) -> asyncio.Future[None]:
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter


class Connection(asyncio.Protocol):
    """Commands in order, answers in order, over one transport; one task uses it at a time.

    Untagged data belongs to the oldest command without an answer. Cancelling a task that
    waits for an answer ends the connection: where the server stands is then unknown.
    """

    def __init__(self, where: str, offered: frozenset[str], reader: FragmentReader, deadlines: Deadlines) -> None:
        self.where = where
        self.capabilities = offered
        self.policy = LiteralPolicy.of(offered)
        self.deadlines = deadlines
        self.read_high = READ_HIGH
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Exchange] = deque()
        self._sending = asyncio.Lock()
        self._go: asyncio.Future[None] | None = None
        """Waits for `+`."""
        self._room: asyncio.Future[None] | None = None
        """Waits until the transport takes more."""
        self._closed = anyio.Event()
        self._error: AimportError | None = None
        self._bad: AimportError | None = None
        """Answers to what is under way are still read; nothing new is sent."""
        self._bye: Untagged | None = None
        self._buffered = 0
        self._paused = False
        self._tag = 0
        self._moved = self._loop.time()
        self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    @classmethod
    def take_over(cls, control: Control, deadlines: Deadlines) -> Connection:
        """The control plane's transport, and its reader with what it has read ahead."""
        if control.lost is not None:
            raise control.lost
        assert control.transport is not None
        connection = cls(control.where, frozenset(control.capabilities), control.reader, deadlines)
        connection._transport = control.transport
        control.transport.set_protocol(connection)
        control.transport.set_write_buffer_limits(high=WRITE_HIGH)
        connection._bye = control.bye
        return connection

    @property
    def refused(self) -> bool:
        """A BAD was answered: nothing new can be sent."""
        return self._bad is not None

    async def start(self, *words: Word, idle_s: float | None = None, keep: bool = False) -> Exchange:
        """Sends one command; returns when the transport has all of it, before the answer is there.

        A synchronising literal is sent when the server asks for it; a NO before that ends
        the command and leaves the connection in step. A BAD ends the connection; `keep`: not
        before the answer to this command was read, when all under way are so.

        Raises:
            ConnectionLost
        """
        async with self._sending:
            if self._error is None and self._bye is not None:
                self.fail(_lost(self.where, None, self._bye))
            if self._error is not None or self._bad is not None:
                raise self._error or self._bad or AssertionError
            self._tag += 1
            exchange = Exchange(self, f"a{self._tag}", idle_s or self.deadlines.command_s, keep=keep)
            self._moved = self._loop.time() if not self._pending else self._moved
            self._pending.append(exchange)
            self._arm()
            bursts = encode(exchange.tag, words, self.policy)
            for left, burst in zip(range(len(bursts) - 1, -1, -1), bursts, strict=True):
                self._go = self._loop.create_future() if left else None
                await self._write(burst)
                exchange.sent = not left
                await self._drain()
                if self._go is not None:
                    await self.until(self._go)  # `+`, or a NO instead of it (RFC 9051 §4.3)
                    if exchange._ended:
                        break
            self._go = None
        return exchange

    async def command(self, *words: Word, idle_s: float | None = None) -> Reply:
        """Sends one command and waits for its end: OK or NO (a BAD ends the connection)."""
        return await (await self.start(*words, idle_s=idle_s)).reply()

    async def close(self, *, fence: bool = False) -> None:
        """Ends the session in good manners, within the deadline, even when cancelled.

        `fence`: with commands under way, close our half and read to the end, so that the
        server has finished what it had received (of an APPEND, all or nothing may be stored).
        """
        if self._closed.is_set():
            return
        orderly = self._error is None and not self._pending
        with anyio.move_on_after(self.deadlines.close_s, shield=True), suppress(AimportError):
            if orderly:
                await (await self.start(b"LOGOUT")).result()
            elif fence:
                await self._fence()
        if orderly:
            self._transport.close()
        self.fail(ConnectionLost(f"{self.where}: the session was closed"), abort=not orderly)
        with anyio.move_on_after(self.deadlines.close_s, shield=True):
            await self._closed.wait()
        self._transport.abort()

    async def _fence(self) -> None:
        self._resume()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        elif all(exchange.sent for exchange in self._pending):  # TLS has no half-close
            self._transport.write(b"z LOGOUT\r\n")
        else:
            return
        await self._closed.wait()

    def consumed(self, cost: int) -> None:
        """An exchange has handed over data of that cost."""
        self._buffered -= cost
        if self._buffered <= self.read_high // 2:
            self._resume()

    def _resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._moved = self._loop.time()
            self._transport.resume_reading()

    def fail(self, error: AimportError, *, abort: bool = True) -> None:
        """Ends everything under way with `error`; what is started later ends with it too."""
        self._error = self._error or error
        for exchange in self._pending:
            exchange._end(None, self._error)
        self._pending.clear()
        for waiter in (self._go, self._room):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if abort:
            self._transport.abort()

    async def until(self, waiter: asyncio.Future[None]) -> None:
        """Waits; to be cancelled here ends the connection, whose state is unknown from then on."""
        try:
            if self._error is None:
                await waiter
        except asyncio.CancelledError:
            # Not aborted yet: `close` may still read to the end (the fence).
            self._error = self._error or ConnectionLost(f"{self.where}: given up with commands under way")
            raise
        if self._error is not None:
            raise self._error

    # Sending

    async def _write(self, burst: Burst) -> None:
        if sum(map(len, burst)) <= WRITE_HIGH:
            self._transport.writelines(burst)
        else:
            for buffer in burst:  # asyncio would join and copy all of it
                view = memoryview(buffer)
                for at in range(0, len(view), WRITE_PIECE):
                    await self._drain()
                    self._transport.write(view[at : at + WRITE_PIECE])

    async def _drain(self) -> None:
        if self._room is not None:
            await self.until(self._room)

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        self._moved = self._loop.time()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    # Receiving

    def data_received(self, data: bytes) -> None:
        if self._error is not None:
            return
        self._moved = self._loop.time()
        try:
            for fragments in self._reader.feed(data):
                self._receive(parse(fragments), RESPONSE_COST + sum(map(len, fragments)))
        except AimportError as error:
            error.text = f"{self.where}: {error.text}"
            self.fail(error)
            return
        if self._buffered >= self.read_high and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(_lost(self.where, exc, self._bye), abort=False)
        self._closed.set()

    def _receive(self, response: Response, cost: int) -> None:
        if isinstance(response, Tagged):
            self._ended(response)
        elif isinstance(response, Continuation):
            if self._go is None or self._go.done():
                # Taken for a later literal's, it would make octets of a message into commands.
                raise ProtocolError("the server waits for octets that were not announced")
            self._go.set_result(None)
        else:
            if isinstance(response, Untagged):
                if response.status == "BYE":
                    self._bye = response
                if response.code == "ALERT":
                    logger.warning("server alert host=%s text=%s", self.where, clean(response.text))
            if self._pending:
                self._buffered += self._pending[0]._take(response, cost)

    def _ended(self, tagged: Tagged) -> None:
        if not self._pending or self._pending[0].tag != tagged.tag:
            raise ProtocolError("the server answered a command that was not sent, or out of order")
        exchange = self._pending[0]
        if not exchange.sent and tagged.status == "OK":
            raise ProtocolError("the server answered OK before it had the whole command")
        self._pending.popleft()
        if tagged.status == "BAD":
            self._bad = error_for("BAD", tagged.code, tagged.text, where=self.where)
            exchange._end(None, self._bad)
            if not self._pending or not all(other.keep for other in self._pending):
                self.fail(self._bad)
        else:
            exchange._end(tagged, None)
        if not exchange.sent and self._go is not None and not self._go.done():
            self._go.set_result(None)
        if self._bad is not None and not self._pending:
            self.fail(self._bad)

    # Deadlines

    def _arm(self) -> None:
        if self._timer is None and self._pending:
            self._timer = self._loop.call_later(min(self._pending[0].idle_s / 4, 5.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        unsent = self._transport.get_write_buffer_size()
        if self._paused or unsent < self._unsent:
            self._moved = now
        self._unsent = unsent
        if self._pending and now - self._moved >= self._pending[0].idle_s:
            waited = self._pending[0].idle_s
            self.fail(DeadlinePassed(f"{self.where}: nothing moved for {waited:g} s"))
        self._arm()


def identify() -> list[Word]:
    """The words of an ID command (RFC 2971)."""
    return [b"ID", b'("name" "aimport" "version" "%s")' % __version__.encode("ascii")]
