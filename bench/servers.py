"""Where trials run: two private servers side by side on one disk, what lies before them, and what the machine is."""

from __future__ import annotations

import imaplib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, Protocol

from aimport import __version__
from bench.latency import run_link
from bench.measure import tree_cpu_s
from bench.scenarios import LOOPBACK, Between, Kind, ServerName
from tests import servers
from tests.fix_courier import Courier, run_courier
from tests.fix_cyrus import Cyrus, run_cyrus
from tests.fix_dovecot import WITH_COMPRESS, Dovecot, run_dovecot
from tests.processes import Owner, server_owner

Side = Literal["source", "destination"]
SETTLE_S: Final = 10.0
CONVERT_S: Final = 600.0
_LISTED = re.compile(rb"\((?P<flags>[^)]*)\) (?:NIL|\"[^\"]*\") (?P<name>.*)\Z", re.DOTALL)
_MESSAGES = re.compile(rb"MESSAGES (\d+)")


class Server(Protocol):
    """What Dovecot, Cyrus and Courier have in common."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def tls_port(self) -> int: ...
    @property
    def ca_file(self) -> Path: ...
    @property
    def password(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def owner(self) -> Owner: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How a client comes to a server: its port, or that of what lies between. `ca_file`: TLS from the first octet."""

    host: str
    port: int
    password: str = field(repr=False)
    ca_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The place of all trials of a scenario. Accounts: USER/Maildir below the two roots, also without servers."""

    work: Path
    source_root: Path
    destination_root: Path
    owner: Owner  # of all mail
    source: Dovecot | None
    destination: Server | None
    no_server: str  # why there is none
    isync: servers.Unpacked | None
    no_isync: str
    between: Between
    ports: Mapping[Side, int]  # of the ends of what lies between

    @property
    def dovecot(self) -> Dovecot | None:
        """The destination, where it is one: its mail can be written without IMAP."""
        return self.destination if isinstance(self.destination, Dovecot) else None

    def reach(self, side: Side) -> Reach:
        """How clients come to the server of that side."""
        server = self.source if side == "source" else self.destination
        assert server is not None, "a path with IMAP runs only where its server does"
        host = "localhost" if self.between.tls else server.host  # mbsync knows no address in a certificate
        return Reach(host=host, port=self.ports[side], password=server.password, ca_file=self.ca_file)

    @property
    def ca_file(self) -> Path | None:
        """Of both servers; None without TLS."""
        return self.work / "ca.pem" if self.between.tls else None

    def cpu_s(self) -> float | None:
        """Of both servers so far, after the sessions of the last command have ended. None: of Courier nobody knows."""
        if isinstance(self.destination, Courier):
            return None
        deadline = time.monotonic() + SETTLE_S
        running = [server for server in (self.source, self.destination) if isinstance(server, Dovecot)]
        while any(server.imap_session_pids() for server in running) and time.monotonic() < deadline:
            time.sleep(0.01)
        pids = [server.master_pid for server in running]
        pids += [self.destination.pid] if isinstance(self.destination, Cyrus) else []
        return sum(tree_cpu_s(pid) for pid in pids)


@contextmanager
def run_site(
    work: Path, *, mail_fsync: str, between: Between = LOOPBACK, destination: ServerName = "dovecot"
) -> Iterator[Site]:
    """A site in a folder that its caller removes; servers and what lies between run until the context ends."""
    owner = server_owner()
    work.mkdir(exist_ok=True)
    work.chmod(0o755)
    with ExitStack() as stack:
        roots = [work / "source", work / "destination"]
        for root in roots:
            root.mkdir()
        source, server, no_server = None, None, ""
        extra = WITH_COMPRESS if between.compress else ""
        ports: dict[Side, int] = {}
        try:
            source = stack.enter_context(run_dovecot(mail_root=roots[0], mail_fsync=mail_fsync, extra=extra))
            server = stack.enter_context(_run_destination(destination, roots[1], mail_fsync, extra))
            ends: tuple[tuple[Side, Server], ...] = (("source", source), ("destination", server))
            (work / "ca.pem").write_bytes(source.ca_file.read_bytes() + server.ca_file.read_bytes())
            for side, each in ends:
                ports[side] = each.tls_port if between.tls else each.port
                if between.is_link:
                    ports[side] = stack.enter_context(
                        run_link(
                            ports[side],
                            round_trip_ms=between.round_trip_ms,
                            rate=between.rate,
                            rate_each=between.rate_each,
                        )
                    )
        except servers.CannotGet as reason:
            no_server = str(reason)
        try:
            isync, no_isync = servers.find("isync"), ""
        except servers.CannotGet as reason:
            isync, no_isync = None, str(reason)
        yield Site(
            work=work,
            source_root=roots[0],
            destination_root=roots[1],
            owner=owner,
            source=source if not no_server else None,
            destination=server,
            no_server=no_server,
            isync=isync,
            no_isync=no_isync,
            between=between,
            ports=ports,
        )


@contextmanager
def workplace(directory: Path | None) -> Iterator[Path]:
    """A new folder in `directory` (default: TMPDIR) that servers can enter; gone when the context ends."""
    work = Path(tempfile.mkdtemp(prefix="aimport-bench-", dir=directory))
    work.chmod(0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run_destination(
    name: ServerName, mail_root: Path, mail_fsync: str, extra: str
) -> AbstractContextManager[Dovecot | Cyrus | Courier]:
    match name:
        case "dovecot":
            return run_dovecot(mail_root=mail_root, mail_fsync=mail_fsync, extra=extra)
        case "cyrus":
            return run_cyrus(mail_root.parent / "cyrus")
        case "courier":
            return run_courier(mail_root.parent / "courier")


def prepare_user(site: Site, user: str) -> None:
    """What a destination wants before a user's first login."""
    if isinstance(site.destination, Cyrus):
        site.destination.create_user(user)


def convert(site: Site, maildir: Path, kind: Kind, target: Path) -> None:
    """A Maildir as mbox, sdbox or mdbox, written by Dovecot."""
    server = site.source
    assert server is not None, "other stores are made by Dovecot"
    target.parent.mkdir(parents=True, exist_ok=True)
    server.own(target.parent)
    words = ("-o", f"mail_location={kind}:{target}", "import", "-u", "anyone", f"maildir:{maildir}", "", "ALL")
    server.try_doveadm(*words, timeout_s=CONVERT_S).check_returncode()


def warm(server: Dovecot, user: str) -> int:
    """Lists and reads a whole account, so that indexes and caches are there for every contender; the messages seen."""
    seen = 0
    with logged_in(server, user) as client:
        for name in mailboxes(client):
            status, exists = client.select(name, readonly=True)
            if status == "OK" and exists != [b"0"]:
                fetched = client.fetch("1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])")[1]
                seen += sum(isinstance(item, tuple) for item in fetched)
    return seen


def count(server: Server, user: str) -> int:
    """The messages of an account by the server's own word."""
    total = 0
    with logged_in(server, user) as client:
        for name in mailboxes(client):
            status, words = client.status(name, "(MESSAGES)")
            if status == "OK" and (found := _MESSAGES.search(words[-1] or b"")):
                total += int(found[1])
    return total


def logged_in(server: Server, user: str) -> imaplib.IMAP4:
    """A connection to the server itself, whatever lies before it."""
    client = imaplib.IMAP4(server.host, server.port, timeout=60)
    client.login(user, server.password)
    return client


def mailboxes(client: imaplib.IMAP4) -> list[str]:
    """Their names, quoted as they are sent."""
    lines = [line for line in client.list()[1] if isinstance(line, bytes)]
    found = [listed for line in lines if (listed := _LISTED.match(line))]
    names = [listed["name"].decode() for listed in found if b"\\noselect" not in listed["flags"].lower()]
    return [name if name.startswith('"') else f'"{name}"' for name in names]


def machine(place: Path) -> dict[str, str | int]:
    """What the figures depend on and a reader cannot see."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": f"{platform.system()} {platform.release()}",
        "filesystem": _filesystem(place),
        "load_at_start": f"{os.getloadavg()[0]:.2f}",
    }


def versions(site: Site) -> dict[str, str]:
    """Of everything measured."""
    found = {"aimport": __version__, "python": platform.python_version(), "uvloop": version("uvloop")}
    described = subprocess.run(
        ["git", "-C", servers.ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    if described.returncode == 0:
        found["commit"] = described.stdout.strip()
    for server in (site.source, site.destination):
        if server is not None:
            found[type(server).__name__.lower()] = server.version
    if site.isync is not None:
        found["isync"] = site.isync.version
    return found


def _filesystem(place: Path) -> str:
    """The type of the file system that holds `place`."""
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        if place.resolve().is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]
