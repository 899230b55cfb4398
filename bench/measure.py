"""Commands measured from outside: wall time, CPU, memory. Knows nothing of mail.

Time is that of all commands, at most `at_once` of them running. A command that `prepares` is
started before the clock: it says `ready` and the CPU seconds it has used, and waits for a line;
what came before is not counted, but the memory it took is. CPU is user and system time
of their process trees. Memory is the sum of the peaks (VmHWM) of what runs at the same time,
looked at every 20 ms; `ru_maxrss` would show this process's own size for a small child.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.processes import Owner, descendants, stop, tail

SAMPLE_S: Final = 0.02
TICKS_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command and whose rights it has. `prepares`: it says `ready CPU_S` and waits for a line."""

    argv: tuple[str | Path, ...]
    owner: Owner
    env: Mapping[str, str]
    prepares: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    seconds: float
    cpu_s: float
    peak_rss_octets: int
    failure: str = ""  # of the first command that did not end with 0, or the time limit


def measure(commands: Sequence[Command], *, at_once: int, log: Path, limit_s: float) -> Measured:
    """Runs all commands and waits for them; whatever happens, none is left running."""
    running: dict[int, tuple[subprocess.Popen[bytes], Path]] = {}
    prepared: dict[int, subprocess.Popen[bytes]] = {}
    cpu_s, peak, failure = 0.0, 0, ""
    start = time.monotonic()
    try:
        for number, command in enumerate(commands):
            if command.prepares:
                said = log.with_suffix(f".{number}.log")
                prepared[number] = command.owner.start(command.argv, env=command.env, log=said, pipes=True)
                before_s = _ready(prepared[number], limit_s)
                if before_s is None:
                    failure = f"not ready after {limit_s:.0f} s"
                    return Measured(seconds=0.0, cpu_s=0.0, peak_rss_octets=0, failure=failure)
                cpu_s -= before_s
        waiting = list(enumerate(commands))
        start = time.monotonic()
        while waiting or running:
            while waiting and len(running) < at_once:
                number, command = waiting.pop(0)
                said = log.with_suffix(f".{number}.log")
                if command.prepares:
                    process = prepared.pop(number)
                    _go(process)
                else:
                    process = command.owner.start(command.argv, env=command.env, log=said)
                running[os.pidfd_open(process.pid)] = process, said
            ready, _, _ = select.select(list(running), [], [], SAMPLE_S)
            peak = max(peak, sum(peak_rss(process.pid) for process, _ in running.values()))
            for ended in ready:
                process, said = running.pop(ended)
                os.close(ended)
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                _close_pipes(process)
                cpu_s += used.ru_utime + used.ru_stime
                if process.returncode != 0:
                    failure = failure or f"exit {process.returncode}: {_last_words(said)}"
            if time.monotonic() - start > limit_s:
                failure = failure or f"not finished after {limit_s:.0f} s"
                break
        seconds = time.monotonic() - start
    finally:
        for ended in running:
            os.close(ended)
        for process in (*prepared.values(), *(process for process, _ in running.values())):
            stop(process.pid)
            process.wait()
            _close_pipes(process)
    return Measured(seconds=seconds, cpu_s=cpu_s, peak_rss_octets=peak, failure=failure)


def _ready(process: subprocess.Popen[bytes], limit_s: float) -> float | None:
    """Waits until a command is ready; the CPU seconds it has used, 0 when it has ended. None: the time is over."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], limit_s)[0]:
        return None
    word, _, figure = process.stdout.readline().partition(b" ")
    return float(figure) if word == b"ready" else 0.0


def _go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(b"\n")
        process.stdin.flush()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # of a line that nobody read
                pipe.close()


def tree_cpu_s(pid: int) -> float:
    """User and system time so far of a process, all below it and all they have waited for."""
    ticks = 0
    for each in (pid, *descendants(pid)):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended just now: its time is its parent's
        ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS_S


def peak_rss(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    return own + sum(peak_rss(int(child)) for child in below)


def _last_words(log: Path) -> str:
    return " ".join(tail([log], lines=3).splitlines()[1:])[-300:]
