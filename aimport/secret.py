"""Passwords and tokens: references to them, their values, and keeping both out of sight.

    env:NAME     an environment variable
    file:PATH    the first line of a file
    cmd:COMMAND  the first line that a program prints; split into words as a shell does, no shell runs
    other text   the secret itself ("literal")

A worker on this machine gets the place of a literal one in its driver's memory ("held"), not the secret (`Vault`).

A value leaves this module only through `reveal`. Errors name references, never values; of a
command only its first word, since the others may be tokens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable
from typing import Final, Literal

from aimport.errors import ConfigurationError, UsageError, UserError
from aimport.model import Secret

logger = logging.getLogger(__name__)

Origin = Literal["argument", "environment", "file", "list"]
"""Where the text stood: on the command line only references are accepted."""

REFERENCES: Final[tuple[Literal["env", "file", "cmd"], ...]] = ("env", "file", "cmd")
COMMAND_DEADLINE_S: Final = 30.0
_MAX_OCTETS: Final = 64 * 1024  # arbitrary; OAuth tokens take a few KiB
_FORMS: Final = "write env:NAME, file:PATH or cmd:COMMAND"


def parse_secret(text: str, origin: Origin, *, name: str = "password") -> Secret:
    """The secret that the setting `name` holds.

    Raises:
        UsageError: a literal secret on the command line.
        ConfigurationError: a reference to nothing (`env:`).
    """
    for kind in REFERENCES:
        if text.startswith(f"{kind}:"):
            if not (rest := text[len(kind) + 1 :].strip()):
                raise ConfigurationError(f"{name}: nothing after {kind}:", hint=_FORMS)
            return Secret(kind=kind, text=rest)
    if origin == "argument":
        raise UsageError(f"{name}: a secret on the command line can be seen by every user", hint=_FORMS)
    return Secret(kind="literal", text=text)


def check_private(path: str, mode: int, what: str) -> None:
    """Refuses the file `path`, which holds the literal secret `what`, when others can read it.

    Raises:
        ConfigurationError: `mode` lets group or others read it.
    """
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        import shlex

        command = f"chmod 600 {shlex.quote(path)}"
        raise ConfigurationError(f"{path}: {what} is a secret and others can read this file", hint=f"type: {command}")


def check_key(path: str) -> None:
    """Warns of a file with a private key that others can read. What is not there is for the reader to tell."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("private key readable by others file=%s", path)


def describe(secret: Secret) -> str:
    """How to name `secret` to people."""
    match secret.kind:
        case "literal":
            return "a literal secret"
        case "held":
            return "a literal secret that another process holds"
        case "cmd":
            return f"cmd:{secret.text.strip().partition(' ')[0]} ..."
        case kind:
            return f"{kind}:{secret.text}"


def reveal(secret: Secret) -> str:
    """The secret itself. Blocks: reads a file, or waits up to 30 s for a program.

    Raises:
        UserError: there is nothing at the reference, or it cannot be read.
    """
    return reveal_lines(secret)[0]


def reveal_lines(secret: Secret) -> tuple[str, str]:
    """As `reveal`, with the line after the secret: what a program says about a token it gives. Empty: none, or no text.

    Raises:
        UserError
    """
    match secret.kind:
        case "literal":
            return secret.text, ""
        case "env":
            if not (value := os.environ.get(secret.text, "")):
                raise UserError(f"{describe(secret)}: this environment variable is not set")
            return value, ""
        case "held":
            return _read_held(secret), ""
        case "file":
            octets = _read_file(secret)
        case "cmd":
            octets = _run_command(secret)
    first, _, rest = octets.partition(b"\n")
    try:
        line = first.rstrip(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{describe(secret)}: not UTF-8 text") from None  # the cause would hold the octets
    if not line:
        raise UserError(f"{describe(secret)}: the first line is empty")
    return line, rest.partition(b"\n")[0].rstrip(b"\r").decode("utf-8", "ignore")


class Vault:
    """Literal secrets for other processes of this machine and user: in memory, in a file without a name (Linux).

    What such a process is given is a place, worth nothing to anybody else: the kernel opens the file only to whoever
    may trace this process, and it ends with it.
    """

    def __init__(self) -> None:
        self._file = -1
        self._end = 0

    def keep(self, secret: Secret) -> Secret:
        """The place of a literal secret.

        Raises:
            ConfigurationError: this system has no such files.
        """
        if self._file < 0:
            if not hasattr(os, "memfd_create") or not os.path.exists("/proc/self/fd"):
                raise ConfigurationError("a literal secret cannot be handed to other processes here", hint=_FORMS)
            self._file = os.memfd_create("aimport", os.MFD_CLOEXEC)
        octets = secret.text.encode("utf-8", "surrogateescape")
        os.pwrite(self._file, octets, self._end)
        place = f"{os.getpid()}:{self._file}:{self._end}:{len(octets)}"
        self._end += len(octets)
        return Secret(kind="held", text=place)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _read_held(secret: Secret) -> str:
    process, file, start, length = map(int, secret.text.split(":"))
    try:
        handle = os.open(f"/proc/{process}/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise UserError(f"{describe(secret)}: {exc.strerror}", hint="that process has ended, or is not ours") from None
    try:
        return os.pread(handle, length, start).decode("utf-8", "surrogateescape")
    finally:
        os.close(handle)


def _read_file(secret: Secret) -> bytes:
    try:
        with open(os.path.expanduser(secret.text), "rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRGRP | stat.S_IROTH):
                logger.warning("secret readable by others reference=%s", describe(secret))
            return file.read(_MAX_OCTETS)
    except (OSError, ValueError) as exc:
        raise UserError(f"{describe(secret)}: {getattr(exc, 'strerror', None) or 'not a file name'}") from None


def _run_command(secret: Secret) -> bytes:
    import shlex
    import signal
    import subprocess

    def fail(what: str) -> UserError:
        return UserError(f"{describe(secret)}: {what}", hint="run it by hand to see why")

    try:
        words = shlex.split(secret.text)
        # Its errors are not shown: they may quote the secret. A group of its own, so that a deadline ends all of it.
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                octets, _ = process.communicate(timeout=COMMAND_DEADLINE_S)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
    except subprocess.TimeoutExpired:
        raise fail(f"no answer in {COMMAND_DEADLINE_S:g} s") from None
    except OSError as exc:
        raise fail(exc.strerror or "cannot be run") from None
    except ValueError:
        raise fail("not a command") from None
    if process.returncode:
        raise fail(f"ended with status {process.returncode}")
    return octets


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with every secret as `***`, also where it stands in base64 (at any offset) or URL-encoded."""
    return without(text, shapes_of(secrets))


def hush(error: BaseException, secrets: Iterable[str]) -> None:
    """Takes `secrets` out of what `error`, and all that it comes from, would say.

    An exception that was not foreseen may quote anything.
    """
    shapes = shapes_of(secrets)
    waiting: list[BaseException] = [error]
    done: set[int] = set()
    while waiting:
        each = waiting.pop()
        if id(each) in done:
            continue
        done.add(id(each))
        each.args = tuple(without(arg, shapes) if isinstance(arg, str) else arg for arg in each.args)
        waiting += [other for other in (each.__cause__, each.__context__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def without(text: str, shapes: Iterable[str]) -> str:
    """`text` with each of `shapes`, the longest first, as `***`."""
    for shape in shapes:
        if shape in text:
            text = text.replace(shape, "***")
    return text


def shapes_of(secrets: Iterable[str]) -> tuple[str, ...]:
    """All that `redact` takes out, the longest first."""
    import base64

    shapes: set[str] = set()
    for secret in filter(None, secrets):
        octets = secret.encode("utf-8", "surrogateescape")
        shapes.add(secret)
        shapes.add("".join(chr(octet) if chr(octet).isalnum() and octet < 128 else f"%{octet:02X}" for octet in octets))
        for before, start in ((0, 0), (1, 2), (2, 3)):
            encoded = base64.b64encode(bytes(before) + octets).decode("ascii")
            whole = encoded[start : (before + len(octets)) * 8 // 6]
            if len(whole) >= 6:  # shorter ones are in every text
                shapes.update((whole, whole.replace("+", "-").replace("/", "_")))
    return tuple(sorted(shapes, key=len, reverse=True))
