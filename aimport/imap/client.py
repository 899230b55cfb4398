"""Connect to one IMAP server and log in.

    connect() ──▶ Control (aioimaplib): TCP and TLS, or a tunnel; greeting, STARTTLS, login (`imap.auth`)
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
from aimport.imap import auth
from aimport.imap.answers import clean, error_for
from aimport.imap.commands import Burst, LiteralPolicy, Word, astring, buffers, encode
from aimport.imap.connection import Connection, Deadlines, lost
from aimport.imap.fragments import FragmentReader
from aimport.imap.responses import Capability, Continuation, Response, Tagged, Untagged, capabilities, parse
from aimport.imap.tokens import Tokens
from aimport.imap.tunnel import CommandEnded, Tunnel
from aimport.model import Endpoint
from aimport.pacing import Throttle
from aimport.secret import check_key, redact, reveal, shapes_of

logger = logging.getLogger(__name__)

PORTS: Final = {"tls": 993, "starttls": 143, "none": 143}
RENEWABLE: Final = frozenset({"", "AUTHENTICATIONFAILED", "EXPIRED"})
"""Codes of a refusal after which another token may do; AUTHORIZATIONFAILED says that it would not."""
CYRUS: Final = ("Cyrus IMAP", "ANNOTATE-EXPERIMENT-1")
"""In the greeting or the capabilities of Cyrus, which knows no channel binding but tls-unique and says so only after
the proof (3.6, seen)."""
REDACTED_FROM: Final = 6
"""Characters of a secret that is taken out of what the server says; a shorter one is in many words."""

_TOKENS: Final = Tokens()
"""For all connections of this process: a command that gives tokens runs once in the life of each."""

CONTROL_LITERAL: Final = 64 * 1024
"""Octets of literals in one response before the login is done: there is no use for any."""

Resolve = Callable[[str, int], Awaitable[Sequence[tuple[int, str]]]]
"""Addresses of a host: (family, address) in the order to try."""


async def connect(
    endpoint: Endpoint,
    *,
    deadlines: Deadlines | None = None,
    resolve: Resolve | None = None,
    tokens: Tokens | None = None,
    throttle: Throttle | None = None,
) -> Connection:
    """A connection logged in to `endpoint`; close it with `Connection.close`.

    Credentials leave only when the endpoint's security holds: certificate and name verified,
    no fall back to plain text.

    Raises:
        UserError: TLS, name or certificate are not as asked; no way to log in; a command that cannot be run.
        LoginRefused
        ConnectionLost: it may work later.
    """
    deadlines = deadlines or Deadlines()
    tokens = tokens or _TOKENS
    where = where_of(endpoint)
    secret = "" if endpoint.command else await _reveal(endpoint, where, tokens)
    reader = FragmentReader(max_literal=CONTROL_LITERAL)
    control = Control(where, reader, deadlines.command_s)
    try:
        with _translated(where, control), anyio.fail_after(deadlines.connect_s):
            if endpoint.command:
                Tunnel.open(endpoint.command, control, where=where)
            else:
                await _open(endpoint, control, deadlines.connect_s, resolve or _resolve)
            greeting = await control.greeting
        await _secure(endpoint, control, greeting, where, deadlines.connect_s)
        if greeting.status != "PREAUTH":
            if endpoint.command:  # it was not known before whether a secret is needed
                secret = await _reveal(endpoint, where, tokens)
            secret = await _log_in(endpoint, control, secret, where, tokens)
        if not control.capabilities:
            await control.ask_capabilities()
    except BaseException:
        await control.abandon()
        raise
    logger.debug("session opened host=%s security=%s", where, endpoint.security)
    connection = _handed_over(control, deadlines, throttle)
    connection.unsaid = shapes_of([secret]) if len(secret) >= REDACTED_FROM else ()
    return connection


def _handed_over(control: Control, deadlines: Deadlines, throttle: Throttle | None) -> Connection:
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
        greeting=control.greeting.result().text,
        throttle=throttle,
    )


def where_of(endpoint: Endpoint) -> str:
    """`host:port`, with the port that goes without saying; of a command its first word."""
    if endpoint.command:
        return f"tunnel:{endpoint.command[0]}"
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port or PORTS[endpoint.security]}"


async def _reveal(endpoint: Endpoint, where: str, tokens: Tokens) -> str:
    """Password or token; "" where a certificate is to do."""
    secret = endpoint.secret
    if endpoint.auth == "external" or (secret is None and endpoint.tls_cert and not endpoint.auth):
        return ""
    if secret is None:
        whose = f" for {endpoint.login or endpoint.user}" if endpoint.login or endpoint.user else ""
        what = f"the server greets without PREAUTH and there is no password{whose}"
        hint = "give one in the user list or the settings"
        raise UserError(f"{where}: {what if endpoint.command else f'no password{whose}'}", hint=hint)
    if endpoint.auth in auth.TOKENS:
        return await tokens.get(secret)
    return secret.text if secret.kind == "literal" else await anyio.to_thread.run_sync(reveal, secret)


# Connect and secure -------------------------------------------------------------------------------------------


@contextmanager
def _translated(where: str, control: Control | None = None) -> Generator[None]:
    """Foreign exceptions of connecting and of the control plane, as ours; with what a tunnel's child has said."""
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
        said = control.transport.said if control is not None and isinstance(control.transport, Tunnel) else ""
        raise DeadlinePassed(f"{where}: no connection within the deadline{said and f': {said}'}") from exc
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
    tls = _trust(endpoint.tls_ca, endpoint.tls_cert) if endpoint.security == "tls" else None
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
    try:
        await loop.create_connection(
            lambda: control, sock=sock, ssl=tls, server_hostname=endpoint.host if tls is not None else None
        )
    except BaseException:  # the server was gone again, say: then nobody owns the socket
        sock.close()
        raise


@lru_cache(maxsize=8)
def _trust(tls_ca: str, tls_cert: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls_ca or None)
    except OSError as exc:  # ssl.SSLError is one: no certificate in the file
        raise UserError(f"tls_ca {tls_ca}: no trusted roots can be read: {clean(str(exc))}") from exc
    if tls_cert:
        check_key(tls_cert)
        try:
            context.load_cert_chain(tls_cert, password=_no_passphrase)
        except (OSError, ValueError) as exc:
            raise UserError(
                f"tls_cert {tls_cert}: no certificate with its key can be read: {clean(str(exc))}",
                hint="a PEM file with both, the key without a passphrase",
            ) from exc
    return context


def _no_passphrase() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("the key has a passphrase")


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
    tagged = await control.run(b"STARTTLS")
    if tagged.status != "OK":
        raise UserError(f"{where}: the server refused STARTTLS: {clean(tagged.text)}", hint=hint)
    with _translated(where), anyio.fail_after(deadline_s):
        await control.start_tls(_trust(endpoint.tls_ca, endpoint.tls_cert), endpoint.host)
    await control.ask_capabilities()  # what was said in plain text counts for nothing (RFC 9051 §11.1)


# Log in -------------------------------------------------------------------------------------------------------


async def _log_in(endpoint: Endpoint, control: Control, secret: str, where: str, tokens: Tokens) -> str:
    """Logs in. A password is tried once; a token that was refused once more when there is another one by then.

    Returns what the server has taken.
    """
    if not control.capabilities:
        await control.ask_capabilities()
    offered = frozenset(control.capabilities)
    refusal = await _try(endpoint, control, secret, offered)
    if refusal is not None and endpoint.auth in auth.TOKENS and endpoint.secret is not None:
        if type(refusal) is LoginRefused and refusal.code in RENEWABLE:
            fresh = None
            try:
                fresh = await tokens.renewed(endpoint.secret, secret)
            except UserError as error:
                refusal.text += f"; another token: {error.text}"
            if fresh is not None:
                logger.debug("token renewed host=%s", where)
                secret = fresh
                refusal = await _try(endpoint, control, fresh, offered)
    if refusal is not None:
        raise refusal
    control.state = aioimaplib.AUTH
    return secret


async def _try(endpoint: Endpoint, control: Control, secret: str, offered: frozenset[str]) -> AimportError | None:
    """One login; the refusal of it, or None."""
    bindings: list[auth.Binding | None] = [*control.bindings()]
    if CYRUS[0] in control.greeting.result().text or CYRUS[1] in offered:
        bindings.reverse()
    try:
        name = auth.choose(
            endpoint.auth,
            offered,
            encrypted=endpoint.security != "none" or bool(endpoint.command),
            bound=bool(bindings),
            master=bool(endpoint.login),
            certificate=bool(endpoint.tls_cert),
            secret=endpoint.secret is not None,
        )
    except UserError as error:
        error.text = f"{control.where}: {error.text}"
        raise
    refusal: AimportError | None = None
    # What kinds of binding a server knows it does not say. One that is refused before there was a proof of the
    # password was no try of the password.
    for binding in bindings if name.endswith("-PLUS") else bindings[:1] or [None]:
        refusal, proven = await _exchange(endpoint, control, secret, offered, name, binding)
        if refusal is None or proven or type(refusal) is not LoginRefused:
            break
    return refusal


async def _exchange(
    endpoint: Endpoint,
    control: Control,
    secret: str,
    offered: frozenset[str],
    name: str,
    binding: auth.Binding | None,
) -> tuple[AimportError | None, bool]:
    """One exchange with the server; its refusal or None, and whether the secret or a proof of it has left."""
    where = control.where
    who = f"{endpoint.login} for {endpoint.user}" if endpoint.login else endpoint.user
    credentials = auth.Credentials(
        user=endpoint.user,
        login=endpoint.login,
        secret=secret,
        host=endpoint.host,
        port=endpoint.port or PORTS[endpoint.security],
        binding=binding,
    )
    exchange: auth.Exchange | None = None
    try:
        if name:
            exchange = auth.exchange(name, credentials, offered)
            words: list[Word] = [*exchange.command(initial="SASL-IR" in offered)]
        else:
            words = [b"LOGIN", astring(endpoint.user), astring(secret)]
    except ValueError:
        what = f", or what {name} cannot carry" if name else ""
        raise UserError(f"{where}: login of {who}: NUL, CR or LF in a name or password{what}") from None
    control.capabilities.clear()  # they change with the login (RFC 9051 §6.2.3)
    try:
        tagged = await control.log_in(words, exchange)
    except AimportError as error:
        error.text = _redacted(error.text, secret)
        error.args = (error.text,)
        raise
    if tagged.status == "OK":
        if tagged.code == "CAPABILITY":
            control.learn(tagged.args)
        return None, True
    text = tagged.text + (f" ({exchange.reason})" if exchange is not None and exchange.reason else "")
    # A BAD too: the same octets would be refused again, and each try may count against the account.
    text = _redacted(text, secret)
    refusal = error_for("NO", tagged.code, text, where=where, doing=f"login of {who}", default=LoginRefused)
    if type(refusal) is LoginRefused and endpoint.auth in auth.TOKENS:
        refusal.hint = refusal.hint and "the server does not take this token for this user"
    elif type(refusal) is LoginRefused and name.endswith("-PLUS"):
        refusal.hint = "wrong password; or the server is not the end of this TLS connection, or it binds in another way"
    return refusal, exchange is None or exchange.proven


def _redacted(text: str, secret: str) -> str:
    """`text` without `secret`: some servers repeat what they heard."""
    return redact(text, [secret]) if len(secret) >= REDACTED_FROM else text


class _Command(aioimaplib.Command):
    """A command that carries its octets; its `repr`, as aioimaplib prints it, has the name only.

    `wait` answers the challenges of an `exchange` until the command ends.
    """

    def __init__(
        self,
        tag: str,
        words: Sequence[Word],
        timeout_s: float,
        exchange: auth.Exchange | None = None,
        answer: Callable[[bytes], None] | None = None,
    ) -> None:
        name = words[0]
        assert isinstance(name, bytes)
        super().__init__(name.decode("ascii"), tag, timeout=timeout_s)
        self.bursts: deque[Burst] = deque(encode(tag, words, LiteralPolicy.SYNC))
        self.tagged: Tagged | None = None
        self.exchange = exchange
        self._answer = answer
        self._challenges: deque[str] = deque()
        self._stirred = asyncio.Event()
        self._ended = False

    def challenge(self, text: str) -> None:
        if self.exchange is None or self._challenges:
            raise ProtocolError("the server waits for octets that were not announced")
        self._challenges.append(text)
        self._stirred.set()

    async def wait(self) -> None:
        while self.exchange is not None and self._answer is not None and not self._ended:
            await self._stirred.wait()
            self._stirred.clear()
            if self._challenges:
                text = self._challenges[0]
                reply = self.exchange.reply
                line = await anyio.to_thread.run_sync(reply, text) if self.exchange.slow else reply(text)
                self._challenges.popleft()
                if not self._ended:
                    self._answer(line)
        await super().wait()

    def close(self, line: bytes, result: str) -> None:
        self._ended = True
        super().close(line, result)
        self._stirred.set()

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
        self.command_s = command_s
        self._one = anyio.Lock()
        self._handshake = False

    async def run(self, *words: Word, exchange: auth.Exchange | None = None) -> Tagged:
        """Sends one command and returns its end. `exchange` answers the server's challenges."""
        async with self._one:
            if self.lost is not None:
                raise self.lost
            self._command = _Command(self.new_tag(), words, self.command_s, exchange, self._write_line)
            try:
                # What comes moves the deadline of the command, and a server may send something for ever.
                with _translated(self.where), anyio.fail_after(2 * self.command_s):
                    await self.execute(self._command)
                tagged = self._command.tagged
                assert tagged is not None, "execute returns when the tagged answer is there"
                return tagged
            finally:
                self._command.close(b"", "KO")  # its timer, when this was cancelled
                self._command = None

    async def log_in(self, words: Sequence[Word], exchange: auth.Exchange | None) -> Tagged:
        """As `run`; an OK of a server that did not do its part of the exchange is an error."""
        try:
            tagged = await self.run(*words, exchange=exchange)
            if exchange is not None and tagged.status == "OK":
                exchange.finish()
        except AimportError as error:
            if not error.text.startswith(self.where):
                error.text = f"{self.where}: {error.text}"
            raise
        return tagged

    def bindings(self) -> list[auth.Binding]:
        """What a login can be bound to in this connection, the best first; nothing without TLS."""
        tls: ssl.SSLObject | None = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        if tls is None:
            return []
        certificate = tls.getpeercert(binary_form=True)
        finished = tls.get_channel_binding("tls-unique")
        found = [auth.end_point(certificate)] if certificate else []
        if finished:
            found.append(auth.Binding(kind="tls-unique", data=finished))
        return [binding for binding in found if binding is not None]

    async def ask_capabilities(self) -> None:
        self.capabilities.clear()
        tagged = await self.run(b"CAPABILITY")
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

    async def abandon(self) -> None:
        """Ends the connection; of a tunnel, its child as well, which takes little more than `TERM_S`."""
        self.abort()
        if isinstance(self.transport, Tunnel):
            with anyio.CancelScope(shield=True):
                await self.transport.wait_closed()

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
        if isinstance(exc, CommandEnded) and not self._greeted:
            self._fail(exc.before_greeting(self.where))
        else:
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
            if command is None:
                raise ProtocolError("the server waits for octets that were not announced")
            command.progress()
            if command.bursts:
                self._write_next()
            else:
                command.challenge(response.text)
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

    def _write_line(self, line: bytes) -> None:
        assert self.transport is not None
        self.transport.write(line + b"\r\n")

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
