"""A real Courier imapd, on a pipe or behind a listener of ours, private to the test run.

    client ──▶ Listener: greeting, CAPABILITY, LOGIN ──the socket──▶ courier's imapd, as USER
    client ──TLS──▶ couriertls ──▶ Listener ──▶ imapd, after STARTTLS or from the first octet

Courier's own login program asks an authdaemon whose socket is compiled in below /run, where
a test has no business. The listener does that program's part the way it does: it answers
LOGIN itself, then gives socket, user and tag to imapd and is out of the way. Everything
after the login, the TLS, and the INBOX prefix that everything has, is Courier's.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import trustme

from tests import servers
from tests.processes import Owner, server_folder, server_owner, stop, tail

# As in the package's own configuration.
CAPABILITY: Final = "IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=ORDEREDSUBJECT THREAD=REFERENCES SORT QUOTA IDLE"
LONGEST_LINE: Final = 8192
ARGUMENT: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"|\{(\d+)(\+?)\}\r\n|([^ "{]+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Courier:
    """A running Courier: where it listens, who may log in, where it keeps mail."""

    host: str
    port: int  # plain, offers STARTTLS
    tls_port: int  # TLS from the first octet
    ca_file: Path
    password: str = field(repr=False)
    mail_root: Path
    owner: Owner
    version: str
    log: Path
    program: Path = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    sessions: list[subprocess.Popen[bytes]] = field(repr=False, default_factory=list)
    relays: list[subprocess.Popen[bytes]] = field(repr=False, default_factory=list)  # couriertls, one a TLS client
    at_once: list[int] = field(repr=False, default_factory=list)
    """How many clients there were when each was accepted, itself counted."""
    refusals: list[int] = field(repr=False, default_factory=list)
    """The same of those that `max_per_ip` refused, itself not counted."""

    def home(self, user: str) -> Path:
        """A user's home, which need not exist."""
        return self.mail_root / user

    def maildir(self, user: str) -> Path:
        """A user's Maildir, which need not exist."""
        return self.home(user) / "Maildir"

    def create_user(self, user: str) -> str:
        """Make the empty Maildir that Courier asks for; a login does it, a pipe does not. Hands the name back."""
        for name in ("cur", "new", "tmp"):
            (self.maildir(user) / name).mkdir(parents=True, exist_ok=True)
        self.owner.own(self.home(user))
        return user

    def exec_command(self, user: str) -> list[str]:
        """PREAUTH IMAP on a pipe for a user made before: the command of a `tunnel:` location."""
        settings = [f"{name}={value}" for name, value in self.session_env(user).items()]
        drop = ["setpriv", f"--reuid={self.owner.uid}", f"--regid={self.owner.gid}", "--clear-groups"]
        as_owner = drop if os.geteuid() == 0 else []
        return ["env", "-i", "-C", str(self.home(user)), *settings, *as_owner, str(self.program), "Maildir"]

    def session_env(self, user: str, tag: str | None = None) -> dict[str, str]:
        """What imapd wants to know; with a tag it answers the LOGIN, without it greets with PREAUTH."""
        env = {**self.env, "AUTHENTICATED": user, "HOME": str(self.home(user)), "MAILDIR": "Maildir"}
        if tag is None:
            return env
        return {**env, "IMAPLOGINTAG": tag, "TCPREMOTEIP": "127.0.0.1", "TCPREMOTEPORT": "1"}

    def imap_session_pids(self) -> list[int]:
        """The processes that serve logged-in clients."""
        return [session.pid for session in self.sessions if session.poll() is None]

    def own(self, path: Path) -> None:
        """Let this server write what a test, as root, has put into `mail_root`."""
        self.owner.own(path)


class Listener:
    """Accepts clients until they have logged in; a thread for each, since a test has few."""

    def __init__(self, server: Courier, listening: socket.socket, max_per_ip: int, *, tls: bool = False) -> None:
        self._server = server
        self._tls = tls
        self._listening = listening
        self._max_per_ip = max_per_ip
        self._waiting: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="courier-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more clients and end those that are there."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        for client in list(self._waiting):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for process in (*self._server.sessions, *self._server.relays):
            if process.poll() is None:
                stop(process.pid)
            process.wait()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return  # closed
            there = len(self._waiting) + len(self._server.imap_session_pids())
            if there >= self._max_per_ip:
                self._server.refusals.append(there)
                client.close()  # as couriertcpd: no greeting, no reason
                continue
            self._server.at_once.append(there + 1)
            self._waiting.add(client)
            threading.Thread(target=self._serve, args=(client,), name="courier-login", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, ValueError):
            try:
                if self._tls:
                    with self._behind_tls(client) as plain:
                        self._greet(plain, CAPABILITY)
                        self._log_in(plain, CAPABILITY)
                else:
                    self._greet(client, f"{CAPABILITY} STARTTLS")
                    self._log_in(client, f"{CAPABILITY} STARTTLS")
            finally:
                self._waiting.discard(client)

    def _greet(self, client: socket.socket, capability: str) -> None:
        client.sendall(f"* OK [CAPABILITY {capability}] Courier-IMAP ready.\r\n".encode())

    def _behind_tls(self, client: socket.socket) -> socket.socket:
        """The plain side of a couriertls that has the client's socket, as courier's own login program makes it."""
        server = self._server
        ours, theirs = socket.socketpair()
        drop = os.geteuid() == 0
        with theirs, server.log.open("ab") as log:
            relay = subprocess.Popen(
                [
                    *(str(server.program.with_name("couriertls")), "-server"),
                    *(f"-localfd={theirs.fileno()}", f"-remotefd={client.fileno()}"),
                ],
                env=dict(server.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(), client.fileno()),
                user=server.owner.uid if drop else None,
                group=server.owner.gid if drop else None,
                extra_groups=[] if drop else None,
            )
        server.relays.append(relay)
        return ours

    def _log_in(self, client: socket.socket, capability: str) -> None:
        while True:
            words = _read_command(client)
            tag, verb = words[0].decode("ascii"), words[1].upper() if len(words) > 1 else b""
            if verb == b"LOGOUT":
                client.sendall(f"* BYE Courier-IMAP server shutting down\r\n{tag} OK LOGOUT completed\r\n".encode())
                return
            if verb in (b"CAPABILITY", b"NOOP"):
                listed = f"* CAPABILITY {capability}\r\n" if verb == b"CAPABILITY" else ""
                client.sendall(f"{listed}{tag} OK {verb.decode()} completed\r\n".encode())
            elif verb == b"STARTTLS" and "STARTTLS" in capability:
                client.sendall(f"{tag} OK Begin SSL/TLS negotiation now.\r\n".encode())
                with self._behind_tls(client) as plain:
                    self._log_in(plain, CAPABILITY)
                return
            elif verb == b"LOGIN" and len(words) == 4:
                user = words[2].decode()
                if words[3].decode() != self._server.password or "/" in user or user.startswith("."):
                    client.sendall(f"{tag} NO Login failed.\r\n".encode())
                    continue
                self._hand_over(client, user, tag)
                return
            else:
                client.sendall(f"{tag} NO Error in IMAP command received by server.\r\n".encode())

    def _hand_over(self, client: socket.socket, user: str, tag: str) -> None:
        server = self._server
        server.create_user(user)
        drop = os.geteuid() == 0
        with server.log.open("ab") as log:
            session = subprocess.Popen(
                [str(server.program), "Maildir"],
                env=server.session_env(user, tag),
                cwd=server.home(user),
                stdin=client.fileno(),
                stdout=client.fileno(),
                stderr=log,
                user=server.owner.uid if drop else None,
                group=server.owner.gid if drop else None,
                extra_groups=[] if drop else None,
                umask=0o022,
            )
        server.sessions.append(session)


def _read_command(client: socket.socket) -> list[bytes]:
    """The words of one command; not an octet further, the rest is for imapd.

    Raises:
        ValueError: the client is gone, or what it sends is no command.
    """
    words: list[bytes] = []
    line = _read_line(client)
    at = 0
    while at < len(line):
        match = ARGUMENT.match(line, at)
        if match is None:
            at += 1  # a blank or the end of the line
            continue
        quoted, size, no_wait, atom = match.groups()
        at = match.end()
        if size is not None:
            if not no_wait:
                client.sendall(b"+ OK\r\n")
            words.append(_read_exactly(client, int(size)))
            line, at = _read_line(client), 0
        elif quoted is not None:
            words.append(re.sub(rb"\\(.)", rb"\1", quoted))
        else:
            words.append(atom.strip())
    words = [word for word in words if word]
    if not words:
        raise ValueError("an empty line")
    return words


def _read_line(client: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        line += _read_exactly(client, 1)
        if len(line) > LONGEST_LINE:
            raise ValueError("a line without an end")
    return bytes(line)


def _read_exactly(client: socket.socket, size: int) -> bytes:
    if size > LONGEST_LINE:
        raise ValueError("too long for a name or a password")
    octets = client.recv(size, socket.MSG_WAITALL)
    if len(octets) < size:
        raise ValueError("the client has gone")
    return octets


@contextmanager
def run_courier(
    directory: Path | None = None,
    *,
    password: str = "pass",
    max_per_ip: int = 1000,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Courier]:
    """Run a Courier for as long as the context lasts.

    `max_per_ip` as in Courier's own configuration, where 4 and 20 are usual; one client more
    is closed without a greeting. `settings` are variables of Courier's `imapd` file.

    Raises:
        servers.CannotGet: it is not unpacked here.
    """
    unpacked = servers.find("courier")
    owner = server_owner()
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder("courier")) if directory is None else directory
        root = owner.reachable(unpacked.root, "usr/bin/imapd", stack)
        mail_root = folder / "mail"
        mail_root.mkdir(parents=True, exist_ok=True)
        owner.own(mail_root)
        log = folder / "courier.log"
        authority = trustme.CA()
        ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        certificate = folder / "server.pem"
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        certificate.chmod(0o600)
        os.chown(certificate, owner.uid, owner.gid)
        monitor = f"aimport-{uuid.uuid4().hex}"
        env = {
            **unpacked.environment(root),
            "IMAP_CAPABILITY": CAPABILITY,
            "IMAP_KEYWORDS": "1",
            "IMAP_ACL": "1",
            "IMAP_UMASK": "022",
            "IMAP_USELOCKS": "1",
            # Each session waits seconds for its file monitor, which it starts where Debian installs it, or here.
            "GAMIN_DEBUG_SERVER": str(root / "usr/libexec/gam_server"),
            "GAM_CLIENT_ID": monitor,
            "IMAP_MAILBOX_SANITY_CHECK": "0",
            "IMAP_EMPTYTRASH": "",
            "IMAP_IDLE_TIMEOUT": "60",
            "TLS_CERTFILE": str(certificate),
            "TLS_VERIFYPEER": "NONE",
            **(settings or {}),
        }
        listening, tls_listening = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        server = Courier(
            host="127.0.0.1",
            port=listening.getsockname()[1],
            tls_port=tls_listening.getsockname()[1],
            ca_file=ca_file,
            password=password,
            mail_root=mail_root,
            owner=owner,
            version=unpacked.version,
            log=log,
            program=root / "usr/bin/imapd",
            env=env,
        )
        listeners = [Listener(server, listening, max_per_ip), Listener(server, tls_listening, max_per_ip, tls=True)]
        try:
            yield server
        except BaseException as failure:
            failure.add_note(tail([log]))
            raise
        finally:
            for listener in listeners:
                listener.close()
            _stop_monitor(monitor)


def _stop_monitor(name: str) -> None:
    """End the file monitor of our sessions, which has cut itself loose; its environment has the name we gave it."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"GAM_CLIENT_ID={name}".encode() in path.read_bytes().split(b"\0"):
                stop(int(path.parent.name))


@pytest.fixture(scope="session")
def courier() -> Iterator[Courier]:
    """One Courier for all tests; any user name exists (`unique_user`)."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(run_courier())
        except servers.CannotGet as reason:
            pytest.skip(str(reason))
        yield server
