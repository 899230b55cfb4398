"""`python -m bench.growth`: what is paid for one message, or one line, when there are ten times as many.

    mailbox    mailboxes of 1,000, 10,000 (100,000, 1,000,000) messages of 1 KiB through the whole of aimport;
               CPU of its process, less that of a run of as many accounts with nothing to copy
    users      10, 100, 1,000 (10,000) users with ten messages each, less a run of one that has none
    answer     one answer of n/100, n/10, n lines or numbers through `Connection`; CPU of its process

The IMAP ends are null servers: they cost the client nothing and wait for no disk. CPU(n) ~ n^e is
fitted by least squares in logarithms; e = 1 is linear. So is the memory above that of an idle run: e = 0 is flat,
and less than 4 MiB of it is not told from noise. The command never fails for a number.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from aimport.model import Message, MessageKey
from aimport.sample import Sample, write_maildir
from bench.answers import KINDS, SELECTION, Answer
from bench.client_cpu import Lane, run_empty, run_lane
from bench.corpus import Corpus
from bench.null_server import NullServer, made_account, run_null_server
from bench.servers import machine
from bench.table import columns
from tests import servers

TOLERANCE: Final = 0.15
MEMORY_NOISE_MIB: Final = 4.0
USER_MESSAGES: Final = 10
MOVED: Final = 100_000
"""Messages of each size of mailbox, at most, in so many accounts; a mailbox that is larger stands alone."""
LANES: Final[tuple[Lane, ...]] = ("maildir-imap", "imap-maildir", "imap-imap")
MAX_REPEATS: Final = 100
FILE_OCTETS: Final = 4096 + 512
"""What a message of 1 KiB takes on a disk, with its names."""
ONE_BY_ONE: Final = ("--users", "1")
TIMEOUT_S: Final = 600.0
HEADINGS: Final = ("what", "n", "CPU µs each", "CPU s", "peak RSS MiB", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one thing costs at growing sizes."""

    what: str
    points: tuple[Answer, ...]

    @property
    def exponent(self) -> float | None:
        """Of CPU ~ n^e; None with fewer than two sizes that were taken."""
        places = [(math.log(point.count), math.log(point.cpu_s)) for point in self.points if point.cpu_s > 0]
        if len(places) < 2:
            return None
        counts, costs = zip(*places, strict=True)
        return statistics.linear_regression(counts, costs).slope

    @property
    def memory_exponent(self) -> float | None:
        """Of the peak above what an idle run takes; None where nobody has looked at one."""
        known = [point for point in self.points if point.idle_rss_mib and not point.refused]
        if len(known) < 2:
            return None
        above = [max(MEMORY_NOISE_MIB, point.peak_rss_mib - point.idle_rss_mib) for point in known]
        return statistics.linear_regression(
            [math.log(point.count) for point in known], [math.log(mib) for mib in above]
        ).slope

    def verdict(self) -> str:
        refused = [f"n = {point.count:,} REFUSED: {point.refused}" for point in self.points if point.refused]
        exponent = self.exponent
        if exponent is None:
            return "; ".join(["no exponent: too few sizes", *refused])
        linear = "linear" if exponent <= 1 + TOLERANCE else "NOT LINEAR"
        if exponent < 1 - TOLERANCE:
            linear = "less than linear: fixed costs weigh"
        memory = self.memory_exponent
        grows = [] if memory is None else [f"memory {memory:.2f}"]
        return "; ".join([f"exponent {exponent:.2f}: {linear}", *grows, *refused])

    def rows(self) -> Iterator[tuple[str, ...]]:
        for point in self.points:
            each = "refused" if point.refused else f"{point.cpu_s * 1e6 / point.count:.2f}"
            cpu = "" if point.refused else f"{point.cpu_s:.4f}"
            memory = f"{point.peak_rss_mib:.0f}"
            if point.idle_rss_mib:
                memory += f" (idle {point.idle_rss_mib:.0f})"
            yield (self.what, f"{point.count:,}", each, cpu, memory, "")
        yield (self.what, "", "", "", "", self.verdict())


def mailbox_curves(place: Path, sizes: Sequence[int], rounds: int) -> Iterator[Curve]:
    """One mailbox through aimport. Every size moves as many messages, in so many accounts, one after the other.

    A thousand messages alone cost less than the start of the interpreter varies.
    """
    with run_null_server() as server:
        moved = min(max(sizes), MOVED)
        corpora = [_mailboxes(place / f"{size}", size, max(1, moved // size)) for size in sizes]
        for lane in LANES:
            points = []
            for size, corpus in zip(sizes, corpora, strict=True):
                net, peaks, idle = [], [], []
                for number in range(rounds):
                    folder = place / f"{lane}-{size}-{number}"
                    accounts = len(corpus.accounts)
                    empty = run_empty(server, folder / "empty", ONE_BY_ONE, lane=lane, accounts=accounts)
                    done, _ = run_lane(lane, corpus, server, folder, ONE_BY_ONE)
                    net.append((done.cpu_s - empty.cpu_s) / accounts)
                    peaks.append(done.peak_rss_octets / 2**20)
                    idle.append(empty.peak_rss_octets / 2**20)
                    shutil.rmtree(folder)
                points.append(_point(size, net, idle, peaks))
            yield Curve(what=f"{lane}, one mailbox", points=tuple(points))


def user_curves(place: Path, sizes: Sequence[int], rounds: int) -> Iterator[Curve]:
    """Users with little mail, from one server to another, as many at a time as aimport takes by itself."""
    with run_null_server() as server:
        points = []
        for size in sizes:
            accounts = tuple(f"messages-{USER_MESSAGES}-{number}" for number in range(size))
            corpus = Corpus(root=place, accounts=accounts, messages=size * USER_MESSAGES, octets=0)
            net, peaks, idle = [], [], []
            for number in range(rounds):
                folder = place / f"users-{size}-{number}"
                empty = run_empty(server, folder / "empty")
                done, _ = run_lane("imap-imap", corpus, server, folder)
                net.append(done.cpu_s - empty.cpu_s)
                peaks.append(done.peak_rss_octets / 2**20)
                idle.append(empty.peak_rss_octets / 2**20)
                shutil.rmtree(folder)
            points.append(_point(size, net, idle, peaks))
    yield Curve(what=f"users with {USER_MESSAGES} messages, imap-imap", points=tuple(points))


def _point(count: int, net_s: Sequence[float], idle_mib: Sequence[float], peaks_mib: Sequence[float]) -> Answer:
    return Answer(
        count=count,
        cpu_s=statistics.median(net_s),
        idle_rss_mib=round(max(idle_mib), 1),
        peak_rss_mib=round(max(peaks_mib), 1),
    )


def answer_curves(divisor: int = 1) -> Iterator[Curve]:
    """One answer at a hundredth, a tenth and all of what the goals name, divided by `divisor`."""
    with run_null_server() as server:
        for name, what, goal in (
            *((name, kind.what, kind.count) for name, kind in KINDS.items()),
            (SELECTION, "UIDs and sizes of a mailbox, by the store", 1_000_000),
        ):
            whole = goal // divisor
            points = [answer(server, name, whole // part, min(part, MAX_REPEATS)) for part in (100, 10, 1)]
            yield Curve(what=what, points=tuple(points))


def answer(server: NullServer, kind: str, count: int, repeats: int) -> Answer:
    """One answer, in a process of its own."""
    words = [sys.executable, "-m", "bench.answers", kind, str(count), str(repeats), str(server.port)]
    env = {**os.environ, "PYTHONPATH": str(servers.ROOT)}
    done = subprocess.run(words, capture_output=True, check=False, env=env, cwd=servers.ROOT, timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{kind}, {count}: {done.stderr.decode(errors='replace')[-2000:]}")
    return msgspec.json.decode(done.stdout, type=Answer)


def _mailboxes(root: Path, messages: int, accounts: int) -> Corpus:
    """Maildirs with the same messages that the null server shows for `messages-N`."""
    body = made_account("messages-1")[b"INBOX"].rows[0].body
    moment = datetime(2015, 1, 1, tzinfo=UTC)

    def samples() -> Iterator[Sample]:
        for number in range(messages):
            key = MessageKey(f"{1420070400 + number}.M{number:06d}P1.growth")
            message = Message(key=key, flags=frozenset({"\\Seen"}), internal_date=moment, body=body)
            yield Sample(path=("INBOX",), message=message)

    names = tuple(f"messages-{messages}-{number}" for number in range(accounts))
    for name in names:
        write_maildir(root / name, samples())
    total = messages * accounts
    return Corpus(root=root, accounts=names, messages=total, octets=total * len(body))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    sizes = [100, 1000] if options.quick else [1000, 10_000, *([100_000, 1_000_000] if options.full else [])]
    users = [10, 50] if options.quick else [10, 100, 1000, *([10_000] if options.full else [])]
    rounds = options.rounds or (1 if options.quick or options.full else 3)
    curves: list[Curve] = []
    with tempfile.TemporaryDirectory(prefix="aimport-growth-", dir=options.dir) as made:
        place = Path(made)
        about = machine(place)
        needed, free = 2 * len(LANES) * max(sizes) * FILE_OCTETS, shutil.disk_usage(place).free
        if needed > free:
            raise SystemExit(f"{needed >> 20} MiB are needed in {place}, {free >> 20} MiB are free; name another --dir")
        for curve in chain(
            mailbox_curves(place, sizes, rounds),
            user_curves(place, users, rounds),
            answer_curves(50 if options.quick else 1),
        ):
            print(f"{curve.what}: {curve.verdict()}", file=sys.stderr, flush=True)
            curves.append(curve)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(columns([HEADINGS, *(row for curve in curves for row in curve.rows())]))
    if options.out is not None:
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(curves), indent=1) + b"\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description="What growth costs the client.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="small sizes, one round: does everything run?")
    which.add_argument("--full", action="store_true", help="also 100,000 and 1,000,000 messages, 10,000 users")
    parser.add_argument("--rounds", type=int, metavar="N", help="runs of each size (default: 3, with --full 1)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where mail is written (default: TMPDIR)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the figures as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
