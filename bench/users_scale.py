"""`python -m bench.users_scale`: many users instead of many messages, in one process.

    import       10,000 users x 20 messages, Maildir to Maildir, beside as many messages of a tenth of the users: what a
                 user costs over its messages, and the peak of memory
    plan, check  a list of many users, and of a tenth of them: what a user leaves in memory
    imap         1,000 connections that have listed, read and appended, and a tenth of them: what each takes in memory

Commands are the operator's, in processes of their own; CPU is theirs, memory their peak (VmHWM). Mail lies in memory
where that can be: the disk is not what is looked at. The command never fails for a number.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec
import trustme

from bench.measure import Command, Measured, measure
from bench.null_server import run_null_server
from bench.peers import us
from bench.table import columns
from tests import servers

Part = Literal["import", "plan", "check", "imap", "imaps"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
MESSAGES: Final = 20
"""Of each user."""
FEWER: Final = 10
"""The run beside has so many times fewer users, connections."""
OCTETS: Final = 600
LIMIT_S: Final = 3600.0
GOAL_PEAK_MIB: Final = 300.0
GOAL_USER_MS: Final = 3.0
GOAL_LISTED_OCTETS: Final = 100.0
"""Of memory for a user who was planned: what tells whether somebody else has the same destination."""
GOAL_CONNECTION_KB: Final = 100.0
HEADINGS: Final = ("what", "n", "seconds", "CPU s", "peak RSS MiB", "each of them", "goal", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing at two sizes, and what each more of it costs."""

    what: str
    counts: tuple[int, int]
    seconds: tuple[float, float]
    cpu_s: tuple[float, float]
    peak_mib: tuple[float, float]
    each: float
    unit: str
    goal: float
    peak_goal_mib: float = 0.0

    @property
    def held(self) -> bool:
        return self.each < self.goal and (not self.peak_goal_mib or self.peak_mib[1] < self.peak_goal_mib)

    def rows(self) -> Iterator[tuple[str, ...]]:
        for at, count in enumerate(self.counts):
            last = at == 1
            goal = f"{self.goal:g} {self.unit}" + (f", {self.peak_goal_mib:g} MiB" if self.peak_goal_mib else "")
            yield (
                self.what, f"{count:,}", f"{self.seconds[at]:.1f}", f"{self.cpu_s[at]:.1f}", f"{self.peak_mib[at]:.0f}",
                f"{self.each:.2f} {self.unit}" if last else "", goal if last else "",
                ("ok" if self.held else "MISSED") if last else "",
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a process that keeps connections open tells of itself."""

    connections: int
    resident_octets: int
    seconds: float
    cpu_s: float


def importing(place: Path, users: int) -> Figure:
    """As many messages for many users, and for few: the difference is what the users cost."""
    done: list[Measured] = []
    counts = users // FEWER, users
    for count in counts:
        folder = place / f"import-{count}"
        write_users(folder / "old", count, MESSAGES * users // count)
        words = ("import", "--no-link", "--journal", folder / "journal")
        done.append(run(folder, words, count, f"maildir:{folder}/old/%u", f"maildir:{folder}/new/%u"))
        arrived = sum(len(names) for _, _, names in os.walk(folder / "new"))
        if arrived != MESSAGES * users:
            raise RuntimeError(f"{arrived} of {MESSAGES * users} messages arrived")
        shutil.rmtree(folder)
    each_ms = (done[1].cpu_s - done[0].cpu_s) / (counts[1] - counts[0]) * 1e3
    what = f"import, {MESSAGES * users:,} messages"
    return figure(what, counts, done, each_ms, "ms of CPU", GOAL_USER_MS, peak_goal_mib=GOAL_PEAK_MIB)


def listing(place: Path, command: Literal["plan", "check"], users: int) -> Figure:
    """All users read one account: what is looked at is what stays of each."""
    done = []
    counts = users // FEWER, users
    write_users(place / "one", 1, 1)
    for count in counts:
        folder = place / f"{command}-{count}"
        folder.mkdir()
        to = f"maildir:{folder}/new/%u"
        done.append(run(folder, (command, "--users", "4"), count, f"maildir:{place}/one/u0", to))
        if not (count == 1 or (folder / "command.0.log").read_text().count('"user"') == count):
            raise RuntimeError(f"{command}: not every user was shown")
        shutil.rmtree(folder)
    shutil.rmtree(place / "one")
    each = (done[1].peak_rss_octets - done[0].peak_rss_octets) / (counts[1] - counts[0])
    return figure(command, counts, done, each, "octets", GOAL_LISTED_OCTETS, peak_goal_mib=GOAL_PEAK_MIB)


def connecting(place: Path, connections: int, *, tls: bool) -> Figure:
    """Half of them read and half of them append; all stay open."""
    certificate = None
    if tls:
        certificate = place / "server.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(place / "ca.pem"))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    counts = connections // FEWER, connections
    held = []
    with run_null_server(certificate=certificate) as server:
        for count in counts:
            words = [sys.executable, "-m", "bench.connections", str(server.port), str(count)]
            words += [str(place / "ca.pem")] if tls else []
            env = {**os.environ, "PYTHONPATH": str(servers.ROOT)}
            said = subprocess.run(words, capture_output=True, check=False, env=env, cwd=servers.ROOT, timeout=LIMIT_S)
            if said.returncode != 0:
                raise RuntimeError(said.stderr.decode(errors="replace")[-2000:])
            held.append(msgspec.json.decode(said.stdout, type=Held))
    each = (held[1].resident_octets - held[0].resident_octets) / (counts[1] - counts[0])
    return Figure(
        what="connections, TLS" if tls else "connections",
        counts=counts,
        seconds=(held[0].seconds, held[1].seconds),
        cpu_s=(held[0].cpu_s, held[1].cpu_s),
        peak_mib=(held[0].resident_octets / 2**20, held[1].resident_octets / 2**20),
        each=each / 1e3,
        unit="kB",
        goal=GOAL_CONNECTION_KB,
    )


def figure(
    what: str, counts: tuple[int, int], done: Sequence[Measured], each: float, unit: str, goal: float, *,
    peak_goal_mib: float,
) -> Figure:  # fmt: skip
    return Figure(
        what=what,
        counts=counts,
        seconds=(done[0].seconds, done[1].seconds),
        cpu_s=(done[0].cpu_s, done[1].cpu_s),
        peak_mib=(done[0].peak_rss_octets / 2**20, done[1].peak_rss_octets / 2**20),
        each=each,
        unit=unit,
        goal=goal,
        peak_goal_mib=peak_goal_mib,
    )


def write_users(root: Path, users: int, messages: int) -> None:
    """Maildirs of equal messages."""
    body = b"Subject: one of many\n\n" + b"x" * (OCTETS - 23) + b"\n"
    assert len(body) == OCTETS
    for user in range(users):
        for part in ("cur", "new", "tmp"):
            os.makedirs(root / f"u{user}" / part)
        cur = f"{root}/u{user}/cur"
        for number in range(messages):
            with open(f"{cur}/{1420070400 + number}.M{number:06d}P1.scale,S={OCTETS}:2,S", "wb") as file:
                file.write(body)


def run(folder: Path, words: Sequence[str | Path], users: int, source: str, to: str) -> Measured:
    """One command of the operator for so many users.

    Raises:
        RuntimeError: it did not end with 0.
    """
    (folder / "users").write_text("".join(f"u{user}\n" for user in range(users)))
    argv = (
        sys.executable, "-m", "aimport", *words, "-F", folder / "users", "--to", to, "--progress", "none", "--json",
        source, "", "ALL",
    )  # fmt: skip
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(servers.ROOT), "HOME": str(folder)}
    done = measure([Command(argv=argv, owner=us(), env=env)], at_once=1, log=folder / "command", limit_s=LIMIT_S)
    if done.failure:
        raise RuntimeError(f"{words[0]}: {done.failure}")
    return done


def figures(parts: Sequence[Part], place: Path, *, users: int, listed: int, connections: int) -> Iterator[Figure]:
    for part in parts:
        match part:
            case "import":
                yield importing(place, users)
            case "plan" | "check":
                yield listing(place, part, listed)
            case "imap" | "imaps":
                yield connecting(place, connections, tls=part == "imaps")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.users_scale", description="Many users in one process.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--users", type=int, default=10_000, help="of import")
    parser.add_argument("--listed", type=int, default=100_000, help="users of plan and check")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="a twentieth of it: does everything run?")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the figures as JSON")
    given = parser.parse_args(arguments)
    part = 20 if given.quick else 1
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    found = []
    with tempfile.TemporaryDirectory(prefix="aimport-users-", dir=memory) as made:
        sizes = {"users": given.users // part, "listed": given.listed // part, "connections": given.connections // part}
        for figure_ in figures(given.parts, Path(made), **sizes):
            print(f"{figure_.what}: {figure_.each:.2f} {figure_.unit} each", file=sys.stderr, flush=True)
            found.append(figure_)
    print(columns([HEADINGS, *(row for each in found for row in each.rows())]))
    if given.out is not None:
        given.out.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
