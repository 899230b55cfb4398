"""Real mail servers, and tools for faults, from Debian packages, unpacked, not installed: `python -m tests.servers`.

    apt-get --download-only ──▶ .venv/servers/NAME/.debs ──dpkg -x──▶ .venv/servers/NAME/usr/…

The packages conflict with each other and with a machine's own mail server, so each set
lives in a folder of its own and runs from there (`fix_dovecot`, `fix_cyrus`, `fix_courier`).
Nothing is installed, configured or started here, and no rights are needed. What cannot be
got is said with its reason; the tests that want it are skipped with the same words.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / ".venv" / "servers"
PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "dovecot": ("dovecot-imapd",),
    "cyrus": ("cyrus-imapd", "cyrus-admin", "libsasl2-modules"),
    "courier": ("courier-imap",),
    "isync": ("isync",),
    # Not servers: what puts faults into processes.
    "strace": ("strace",),
    "faketime": ("libfaketime",),
}
ON_REQUEST: Final[Mapping[str, tuple[str, ...]]] = {
    # A browser for the pages that we write: 100 MB, so only `python -m tests.servers chromium` gets it.
    "chromium": ("chromium-headless-shell", "fonts-dejavu-core"),
}
KNOWN: Final = {**PACKAGES, **ON_REQUEST}
# A machine that has one of these would make apt refuse the others, or believe that nothing is to fetch.
MAIL_PACKAGE: Final = re.compile(r"^(dovecot|courier|cyrus|isync)|^(maildrop|libdovecot)|^(strace|libfaketime)$")
APT_TIMEOUT_S: Final = 300


class CannotGet(Exception):
    """A server is not to be had on this machine; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """One server's files, complete."""

    name: str
    root: Path
    version: str
    libraries: tuple[str, ...] = field(repr=False)

    def path(self, *parts: str) -> Path:
        """A file of the package, by its place in an installed system without the first `/`."""
        return self.root.joinpath(*parts)

    def environment(self, root: Path | None = None) -> dict[str, str]:
        """What the unpacked programs, or those of a copy in `root`, need to find their libraries; nothing else."""
        folders = [str((root or self.root) / folder) for folder in self.libraries]
        return {
            "LD_LIBRARY_PATH": ":".join(folders),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "TZ": os.environ.get("TZ", "UTC"),
        }


def find(name: str) -> Unpacked:
    """The unpacked server of that name.

    Raises:
        CannotGet: it is not there; the reason is the one `make servers` met, where it was run.
    """
    try:
        state = json.loads((FOLDER / name / ".complete").read_text())
    except FileNotFoundError:
        try:
            reason = (FOLDER / f"{name}.reason").read_text().strip()
        except FileNotFoundError:
            reason = f"not unpacked; run `{_command(name)}`"
        raise CannotGet(f"{name}: {reason}") from None
    return Unpacked(
        name=name, root=FOLDER / name, version=str(state["version"]), libraries=tuple(map(str, state["libraries"]))
    )


def _command(name: str) -> str:
    return f"python -m tests.servers {name}" if name in ON_REQUEST else "make servers"


def get(name: str) -> Unpacked:
    """Unpack one server unless it is there already.

    Raises:
        CannotGet: no apt, no network, no such package.
    """
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        lock = _one_at_a_time(FOLDER / f"{name}.lock")
    except OSError as error:
        raise CannotGet(f"no place to unpack it: {error}") from error
    with lock:
        try:
            found = find(name)
        except CannotGet:
            pass
        else:
            if _packages_of(name) == KNOWN[name]:
                return found
        try:
            try:
                _unpack(name)
            except OSError as error:
                raise CannotGet(f"it cannot be unpacked: {error}") from error
        except CannotGet as reason:
            (FOLDER / f"{name}.reason").write_text(f"{reason}\n")
            raise
        (FOLDER / f"{name}.reason").unlink(missing_ok=True)
        return find(name)


def _packages_of(name: str) -> tuple[str, ...]:
    """The packages that were asked for when the folder was made: a longer list makes it again."""
    state = json.loads((FOLDER / name / ".complete").read_text())
    return tuple(state["packages"])


def _one_at_a_time(path: Path) -> TextIO:
    """A lock that the caller holds until the file is closed: several runs may share one clone."""
    lock = path.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _unpack(name: str) -> None:
    for program in ("apt-get", "dpkg", "dpkg-query"):
        if shutil.which(program) is None:
            raise CannotGet(f"no {program} here ({_system()}); servers come from Debian packages")
    target = FOLDER / name
    shutil.rmtree(target, ignore_errors=True)
    debs = _download(name, target / ".debs")
    libraries: set[str] = set()
    for deb in debs:
        _run(["dpkg", "-x", str(deb), str(target)], "dpkg -x")
    for library in target.rglob("*.so*"):
        folder = library.parent.relative_to(target)
        # Plug-ins are loaded by their path; these folders are the ones a linker looks into.
        if folder.parts[-1] in {"lib", "dovecot", "old-stats", "courier-authlib", "cyrus", "pulseaudio", _multiarch()}:
            libraries.add(str(folder))
    if name == "dovecot":
        _let_dovecot_find_its_modules(target)
    version = next(deb.name.split("_")[1] for deb in debs if deb.name.startswith(f"{KNOWN[name][0]}_"))
    shutil.rmtree(target / ".debs")
    state = {
        "packages": KNOWN[name],
        "version": version.replace("%3a", ":").partition(":")[2] or version,
        "libraries": sorted(libraries),
        "debs": sorted(deb.name for deb in debs),
    }
    (target / ".complete").write_text(json.dumps(state, indent=1))


def _let_dovecot_find_its_modules(target: Path) -> None:
    """Make the TLS module's folder, compiled into libdovecot, relative to the working folder of a process.

    No setting moves it, and without it a login process does not start. The new path has
    the length of the old one; `fix_dovecot` puts a link `modules` into the `base_dir`.
    """
    installed = b"/usr/lib/dovecot/modules\0"
    relative = b"./" * 8 + b"/modules\0"
    library = target / "usr/lib/dovecot/libdovecot.so.0.0.0"
    if library.exists():
        library.write_bytes(library.read_bytes().replace(installed, relative))


def _download(name: str, debs: Path) -> list[Path]:
    """Fetch the packages of one server and what this machine lacks of their libraries."""
    (debs / "partial").mkdir(parents=True)
    private = FOLDER / ".apt"
    (private / "cache").mkdir(parents=True, exist_ok=True)
    status = private / f"status-{name}"
    status.write_text(_status_without_mail_servers())
    base = [
        "apt-get",
        "-qq",
        "--yes",
        *("-o", f"Dir::State={private}"),
        *("-o", f"Dir::State::status={status}"),
        *("-o", f"Dir::Cache={private / 'cache'}"),
        *("-o", f"Dir::Cache::archives={debs}"),
        *("-o", "Debug::NoLocking=true"),
        *("-o", "APT::Sandbox::User="),  # "root" of a sandbox: the files belong to whoever runs this
        *("-o", "Acquire::Retries=2"),
        *("-o", "Acquire::http::Timeout=20"),
        *("-o", "APT::Update::Error-Mode=any"),  # else a missing network is a success
    ]
    install = ["install", "--download-only", "--no-install-recommends", "--allow-downgrades", *KNOWN[name]]
    ours = private / "lists"
    theirs = Path("/var/lib/apt/lists")
    if any(theirs.glob("*_Packages*")):
        try:
            _run([*base, "-o", f"Dir::State::lists={theirs}", *install], "apt-get download")
            return sorted(debs.glob("*.deb"))
        except CannotGet:
            pass  # old lists name packages that are gone: ask with fresh ones
    (ours / "partial").mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(private / "lists.lock"):
        _run([*base, "-o", f"Dir::State::lists={ours}", "update"], "apt-get update")
    _run([*base, "-o", f"Dir::State::lists={ours}", *install], "apt-get download")
    return sorted(debs.glob("*.deb"))


def _status_without_mail_servers() -> str:
    """What dpkg knows of this machine, less every package that the servers would conflict with."""
    try:
        text = Path("/var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CannotGet(f"the package list of this machine cannot be read: {error}") from error
    kept = []
    for entry in text.split("\n\n"):
        match = re.search(r"^Package: (\S+)", entry, re.MULTILINE)
        if match is None or MAIL_PACKAGE.match(match[1]):
            continue
        if re.search(r"^Provides: .*\bimap-server\b", entry, re.MULTILINE):
            continue
        kept.append(entry)
    return "\n\n".join(kept) + "\n"


def _run(command: Sequence[str], what: str) -> None:
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=APT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotGet(f"{what} took longer than {APT_TIMEOUT_S} s") from error
    except OSError as error:
        raise CannotGet(f"{what}: {error}") from error
    if done.returncode != 0:
        said = [
            line for line in done.stdout.splitlines() if line.startswith(("E:", "dpkg"))
        ] or done.stdout.splitlines()
        raise CannotGet(f"{what} failed: {' '.join(said[:2])[:300] or f'exit code {done.returncode}'}")


def _multiarch() -> str:
    return str(getattr(sys.implementation, "_multiarch", f"{platform.machine()}-linux-gnu"))


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def main() -> int:
    """Say in one line each what is there and what is not; a missing server is no failure of this command."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description="Unpack mail servers for the tests.")
    known = f"of {', '.join(KNOWN)}; default: all but {', '.join(ON_REQUEST)}"
    parser.add_argument("names", metavar="NAME", nargs="*", help=known)
    names: list[str] = parser.parse_args().names or list(PACKAGES)
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(KNOWN)}")
    for name in names:
        try:
            print(f"{name}: {get(name).version}", flush=True)
        except CannotGet as reason:
            print(f"{name}: not available: {reason}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
