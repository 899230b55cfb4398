"""The command as users run it, by fork from an interpreter that has imported it already: a tenth of a second each.

    with run_forks() as forks:
        done = forks.run(["import", …], steps=Steps(ops=…, at=7, deed="kill"))

One command at a time. The program that forks is this file; it may live in a mount namespace of its own.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.steps import Steps

ALREADY: Final = (
    *(f"aimport.cli.{name}" for name in ("import_", "main", "resume", "verify", "work")),
    *(
        f"aimport.{name}"
        for name in ("repair", "report", "runners.local", "stores.imap", "stores.maildir", "imap.client")
    ),
    *(
        "anyio._backends._asyncio",
        "msgspec",
        "rich.table",
        "stringprep",
        "unicodedata",
        "uvloop",
        "anyio._core._signals",
    ),
)
"""What a command imports sooner or later."""
HANGS_S: Final = 40.0
"""A command that takes longer ends with the places where its threads are."""
CLONE_NEWNS: Final = 0x00020000
MS_REC_PRIVATE: Final = (1 << 14) | (1 << 18)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a command ended; `code` below 0: by that signal."""

    code: int
    out: str = field(repr=False)
    err: str
    struck: bool
    """The deed of its steps was done."""

    @property
    def report(self) -> dict[str, Any]:
        """Of `--json`."""
        report: dict[str, Any] = json.loads(self.out)
        return report

    @property
    def totals(self) -> dict[str, int]:
        """They add up, for each user and for the run (P11)."""
        report = self.report
        for each in (*report["users"], report["totals"]):
            assert each["found"] == each["imported"] + each["present"] + each["skipped"] + each["rejected"], each
        assert report["exit"] == self.code
        totals: dict[str, int] = report["totals"]
        return totals


class Forks:
    """The interpreter that forks, from here."""

    def __init__(self, folder: Path, *, mounts: bool) -> None:
        self._folder = folder
        self._mark = folder / "struck"
        command = [sys.executable, "-m", "tests.faults.forks", *(["mounts"] if mounts else [])]
        env = {key: value for key, value in os.environ.items() if not key.startswith(("AIMPORT_", "COVERAGE_", "XDG_"))}
        self._server = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = 0
        """Of the command that runs."""
        self.server_pid = self._server.pid
        assert self._heard() == "ready"

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        steps: Steps | None = None,
        fence_s: float = 0.0,
        batch_messages: int = 0,
        limits: Mapping[str, int] | None = None,
        then: str = "",
        hangs_s: float = HANGS_S,
    ) -> None:
        """Starts `aimport` with these arguments. `fence_s` 0: no session of before can still store anything.

        `limits` are names of RLIMIT_*; `then` is what the child runs first, as `module:function`.
        """
        changed: dict[str, float] = {"fence_s": fence_s, "retry_wait_s": 0.01}
        if batch_messages:
            changed["batch_messages"] = batch_messages
        request = {
            "argv": [str(word) for word in argv],
            "env": dict(env or {}),
            "steps": dataclasses.asdict(dataclasses.replace(steps, mark=str(self._mark))) if steps else None,
            "limits": changed,
            "rlimits": dict(limits or {}),
            "then": then,
            "hangs_s": hangs_s,
            "out": str(self._folder / "out"),
            "err": str(self._folder / "err"),
        }
        self._mark.unlink(missing_ok=True)
        self._say(request)
        self.pid = int(self._heard())

    def wait(self) -> Done:
        code = int(self._heard())
        return Done(
            code=code,
            out=(self._folder / "out").read_text(errors="replace"),
            err=(self._folder / "err").read_text(errors="replace"),
            struck=self._mark.exists(),
        )

    def run(self, argv: Sequence[str | Path], **how: Any) -> Done:
        self.start(argv, **how)
        return self.wait()

    def shell(self, *words: str | Path) -> str:
        """Runs a program beside the commands, in their mount namespace; "" when it did well, else what it said."""
        self._say({"shell": [str(word) for word in words]})
        return str(json.loads(self._heard()))

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def _say(self, request: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()

    def _heard(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the interpreter that forks has ended"
        return line.rstrip("\n")


@contextmanager
def run_forks(*, mounts: bool = False) -> Iterator[Forks]:
    """`mounts`: in a mount namespace of its own, for who may have one."""
    with tempfile.TemporaryDirectory(prefix="aimport-forks-") as folder:
        forks = Forks(Path(folder), mounts=mounts)
        try:
            yield forks
        finally:
            forks.close()


# What runs on the other side


def own_mounts() -> None:
    """Mounts made from here on are seen by nobody else, and go with the process.

    Raises:
        OSError
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def serve() -> None:
    for module in ALREADY:
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "shell" in request:
            done = subprocess.run(
                request["shell"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            said = (done.stdout + done.stderr).strip() or f"exit {done.returncode}"
            print(json.dumps(said if done.returncode else ""), flush=True)
            continue
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os._exit(run(request))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)


def run(request: dict[str, Any]) -> int:
    """In the child: what `python -m aimport` does."""
    from aimport.cli import options
    from aimport.cli.main import main

    code = 99
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number, name in ((1, "out"), (2, "err")):
            handle = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, number)
        faulthandler.dump_traceback_later(request["hangs_s"], exit=True, file=2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(request["env"])
        object.__setattr__(options, "DEFAULTS", dataclasses.replace(options.DEFAULTS, **request["limits"]))
        for name, value in request["rlimits"].items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        if request["then"]:
            module, _, function = request["then"].partition(":")
            getattr(importlib.import_module(module), function)()
        if request["steps"] is not None:
            steps = request["steps"]
            Steps(**(steps | {"ops": tuple(steps["ops"])})).install()
        code = main(request["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    if sys.argv[1:] == ["mounts"]:
        own_mounts()
    serve()
