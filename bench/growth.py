"""`python -m bench.growth`: what is paid for one message, or one line, when there are ten times as many.

    mailbox    mailboxes of 1,000, 10,000 (100,000) messages of 1 KiB through the whole of aimport;
               CPU of its process, less that of a run of as many accounts with nothing to copy
    answer     one answer of n/100, n/10, n lines or numbers through `Connection`; CPU of its process

The IMAP ends are null servers: they cost the client nothing and wait for no disk. CPU(n) ~ n^e is
fitted by least squares in logarithms; e = 1 is linear. The command never fails for a number.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from aimport.model import Message, MessageKey
from aimport.sample import Sample, write_maildir
from bench.answers import KINDS, SELECTION, Answer
from bench.client_cpu import Lane, run_lane, run_start
from bench.corpus import Corpus
from bench.null_server import NullServer, made_account, run_null_server
from bench.servers import machine
from bench.table import columns
from tests import servers

TOLERANCE: Final = 0.15
LANES: Final[tuple[Lane, ...]] = ("maildir-imap", "imap-maildir", "imap-imap")
MAX_REPEATS: Final = 100
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

    def verdict(self) -> str:
        refused = [f"n = {point.count:,} REFUSED: {point.refused}" for point in self.points if point.refused]
        exponent = self.exponent
        if exponent is None:
            return "; ".join(["no exponent: too few sizes", *refused])
        linear = "linear" if exponent <= 1 + TOLERANCE else "NOT LINEAR"
        if exponent < 1 - TOLERANCE:
            linear = "less than linear: fixed costs weigh"
        return "; ".join([f"exponent {exponent:.2f}: {linear}", *refused])

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
        corpora = [_mailboxes(place / f"{size}", size, max(sizes) // size) for size in sizes]
        for lane in LANES:
            points = []
            for size, corpus in zip(sizes, corpora, strict=True):
                net, peaks = [], []
                for number in range(rounds):
                    folder = place / f"{lane}-{size}-{number}"
                    accounts = len(corpus.accounts)
                    empty_s = run_start(server, folder / "empty", ONE_BY_ONE, lane=lane, accounts=accounts)
                    done, _ = run_lane(lane, corpus, server, folder, ONE_BY_ONE)
                    net.append((done.cpu_s - empty_s) / accounts)
                    peaks.append(done.peak_rss_octets / 2**20)
                points.append(Answer(count=size, cpu_s=statistics.median(net), peak_rss_mib=round(max(peaks), 1)))
            yield Curve(what=f"{lane}, one mailbox", points=tuple(points))


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
    sizes = [100, 1000] if options.quick else [1000, 10_000, *([100_000] if options.full else [])]
    rounds = options.rounds or (1 if options.quick else 3)
    curves: list[Curve] = []
    with tempfile.TemporaryDirectory(prefix="aimport-growth-", dir=options.dir) as made:
        about = machine(Path(made))
        for curve in (*mailbox_curves(Path(made), sizes, rounds), *answer_curves(50 if options.quick else 1)):
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
    which.add_argument("--full", action="store_true", help="a mailbox of 100,000 messages as well")
    parser.add_argument("--rounds", type=int, metavar="N", help="runs of each mailbox (default: 3)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where mail is written (default: TMPDIR)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the figures as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
