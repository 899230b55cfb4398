"""What private servers have in common: a folder they can reach, a user without rights, a port, an end.

Knows nothing of mail. Servers are stopped by the process id they wrote, never by name, so
a machine's own mail server and the runs of others are left alone.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

START_S: Final = 20.0
STOP_S: Final = 10.0


class ServerDidNotStart(Exception):
    """Carries the end of the server's logs, which is all there is to find the cause."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The user a server runs as: `nobody` for root, else whoever runs the tests."""

    name: str
    group: str
    uid: int
    gid: int

    def own(self, path: Path) -> None:
        """Give files that root has written to the server; nothing to do for anyone else."""
        if os.geteuid() != 0:
            return
        os.chown(path, self.uid, self.gid)
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(os.path.join(folder, name), self.uid, self.gid, follow_symlinks=False)

    def run(
        self, command: Sequence[str | Path], *, env: Mapping[str, str], stdin: bytes = b"", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program of the server as its user and wait for it."""
        user = self.name if os.geteuid() == 0 else None
        return subprocess.run(
            [str(word) for word in command],
            env=dict(env),
            cwd="/",
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            user=user,
            group=self.gid if user else None,
            extra_groups=[] if user else None,
            umask=0o022,
        )

    def start(
        self, command: Sequence[str | Path], *, env: Mapping[str, str], log: Path | None = None, pipes: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a program of the server as its user, in a session of its own."""
        user = self.name if os.geteuid() == 0 else None
        with log.open("ab") if log else open(os.devnull, "ab") as said:
            return subprocess.Popen(
                [str(word) for word in command],
                env=dict(env),
                cwd="/",
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else said,
                stderr=said,
                user=user,
                group=self.gid if user else None,
                extra_groups=[] if user else None,
                start_new_session=True,
                umask=0o022,
            )

    def reachable(self, folder: Path, program: str, stack: ExitStack) -> Path:
        """The folder itself, or a temporary copy where a folder above it is closed to the server's user."""
        if self.can_run(folder / program):
            return folder
        copy = stack.enter_context(server_folder("files")) / folder.name
        shutil.copytree(folder, copy, symlinks=True)
        return copy

    def can_run(self, program: Path) -> bool:
        """Whether the server's user reaches an unpacked program; in a closed home it does not."""
        try:
            return self.run(["test", "-x", program], env=os.environ).returncode == 0
        except OSError:
            return False


def server_owner() -> Owner:
    """Servers never run as root: what they would refuse to, and what their bugs could reach, stays as in production."""
    entry = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    try:
        group = grp.getgrgid(entry.pw_gid).gr_name
    except KeyError:
        group = str(entry.pw_gid)
    return Owner(name=entry.pw_name, group=group, uid=entry.pw_uid, gid=entry.pw_gid)


@contextmanager
def server_folder(name: str) -> Iterator[Path]:
    """A temporary folder that the server's user can enter, with a path short enough for its sockets.

    pytest's own `tmp_path` is closed to others and, with a long test name, too long for a
    socket (108 octets).
    """
    path = Path(tempfile.mkdtemp(prefix=f"aimport-{name}-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for_greeting(port: int, logs: Sequence[Path], still_runs: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a server greets on a loopback port.

    Raises:
        ServerDidNotStart: it died or the time is over; carries the logs.
    """
    deadline = time.monotonic() + START_S
    reason = "no time"
    while time.monotonic() < deadline:
        if still_runs is not None and still_runs.poll() not in (None, 0):
            reason = f"it ended with {still_runs.returncode}"
            break
        if "startup failed" in (reason := tail(logs)):
            break
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_S) as connection:
                if connection.recv(64).startswith((b"* OK", b"* PREAUTH")):
                    return
                reason = "a connection without a greeting"
        except OSError as error:
            reason = str(error)
        time.sleep(0.02)  # nothing tells when a listener is ready but a connection that works
    raise ServerDidNotStart(f"port {port}: {reason}\n{tail(logs)}")


def tail(logs: Sequence[Path], lines: int = 40) -> str:
    """The end of some logs, for a person."""
    parts = []
    for log in logs:
        try:
            text = log.read_text(errors="replace")
        except FileNotFoundError:
            continue
        parts.append(f"--- {log.name}\n" + "\n".join(text.splitlines()[-lines:]))
    return "\n".join(parts)


def stop(pid: int, *, children: bool = True) -> None:
    """End a server by its process id and wait until it and its children are gone."""
    family = [pid, *(descendants(pid) if children else ())]
    _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while any(_runs(each) for each in family):
        if time.monotonic() > deadline:
            for each in family:
                _signal(each, signal.SIGKILL)
            deadline += STOP_S
        _reap(pid)
        time.sleep(0.01)


def wait_until_gone(pids: Sequence[int]) -> None:
    """Wait for processes that are not ours to end.

    Raises:
        TimeoutError: one still runs after ten seconds.
    """
    deadline = time.monotonic() + STOP_S
    while left := [pid for pid in pids if _runs(pid)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"still running: {left}")
        time.sleep(0.005)


def descendants(pid: int) -> list[int]:
    """All processes below one, from /proc."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = parents.get(queue.pop(), [])
        found += below
        queue += below
    return found


def program_name(pid: int) -> str:
    """The name of a process as the kernel has it (15 octets at most); empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
