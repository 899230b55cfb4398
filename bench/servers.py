"""Where trials run: two private Dovecots side by side on one disk, and what the machine is."""

from __future__ import annotations

import imaplib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from aimport import __version__
from bench.measure import tree_cpu_s
from tests import servers
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.processes import Owner, server_owner

SETTLE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The place of all trials of a run. Accounts lie at USER/Maildir below the two roots, with or without a server."""

    work: Path
    source_root: Path
    destination_root: Path
    owner: Owner  # of all mail
    source: Dovecot | None
    destination: Dovecot | None
    no_dovecot: str  # why there is none
    isync: servers.Unpacked | None
    no_isync: str

    def cpu_s(self) -> float:
        """Of both servers so far, after the sessions of the last command have ended."""
        deadline = time.monotonic() + SETTLE_S
        running = [server for server in (self.source, self.destination) if server is not None]
        while any(server.imap_session_pids() for server in running) and time.monotonic() < deadline:
            time.sleep(0.01)
        return sum(tree_cpu_s(server.master_pid) for server in running)


@contextmanager
def run_site(directory: Path | None, *, mail_fsync: str) -> Iterator[Site]:
    """A site in a new folder of `directory` (default: TMPDIR), gone with all mail when the context ends."""
    owner = server_owner()
    work = Path(tempfile.mkdtemp(prefix="aimport-bench-", dir=directory))
    work.chmod(0o755)
    try:
        with ExitStack() as stack:
            roots = [work / "source", work / "destination"]
            for root in roots:
                root.mkdir()
            source, destination, no_dovecot = None, None, ""
            try:
                source = stack.enter_context(run_dovecot(mail_root=roots[0], mail_fsync=mail_fsync))
                destination = stack.enter_context(run_dovecot(mail_root=roots[1], mail_fsync=mail_fsync))
            except servers.CannotGet as reason:
                no_dovecot = str(reason)
            try:
                isync, no_isync = servers.find("isync"), ""
            except servers.CannotGet as reason:
                isync, no_isync = None, str(reason)
            yield Site(
                work=work,
                source_root=roots[0],
                destination_root=roots[1],
                owner=owner,
                source=source,
                destination=destination,
                no_dovecot=no_dovecot,
                isync=isync,
                no_isync=no_isync,
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)


def warm(server: Dovecot, user: str) -> int:
    """Lists and reads a whole account, so that indexes and caches are there for every contender; the messages seen."""
    seen = 0
    with imaplib.IMAP4(server.host, server.port, timeout=60) as client:
        client.login(user, server.password)
        for line in client.list()[1]:
            name = line.rpartition(b' "/" ')[2].decode() if isinstance(line, bytes) else ""
            if client.select(name if name.startswith('"') else f'"{name}"', readonly=True)[0] == "OK":
                fetched = client.fetch("1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])")[1]
                seen += sum(isinstance(item, tuple) for item in fetched)
    return seen


def count(server: Dovecot, user: str) -> int:
    """The messages of an account by the server's own word."""
    return int(server.doveadm("mailbox", "status", "-t", "messages", "*", user=user).strip().removeprefix("messages="))


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
    if site.source is not None:
        found["dovecot"] = site.source.version
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
