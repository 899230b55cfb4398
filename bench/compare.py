"""`python -m bench.compare A B`: does B need more than A? Two builds, or two settings of one, pair by pair.

    A, B    a directory with aimport in it, or a git revision; then options of `aimport import`: 'HEAD~1 --users 4'

Each side runs its own code in the same Python, against the same null server on the same mail (`client_cpu`), so that
only the client is compared. In every round both, in turn first. What counts is instructions where the kernel and `perf`
tell them, else CPU time. Two statistics stand against noise, which only ever adds: the ratio of the least of each side,
and the median of the ratios within a round. B is worse when both say so by more than `--limit` percent: exit code 1.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.client_cpu import LANES, Lane, run_empty, run_lane
from bench.corpus import Corpus, write_corpus
from bench.null_server import NullServer, run_null_server
from bench.results import spread
from bench.scenarios import MEDIAN_OCTETS
from bench.servers import machine
from bench.table import columns
from tests import servers

LIMIT_PERCENT: Final = 15.0
ROUNDS: Final = 5
START: Final = "start and end of a run"
HEADINGS: Final = ("what", "unit", "A", "B", "B / A, by round", "B / A, of the least", "")
EVENT: Final = "instructions:u"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two: the folder that holds its package, and its options."""

    name: str
    code: Path
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What A and B needed in each round, for one thing, in one unit."""

    what: str
    unit: str
    pairs: tuple[tuple[float, float], ...]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in self.pairs]

    @property
    def of_least(self) -> float:
        """What is left of each side when nothing disturbed it."""
        return min(b for _, b in self.pairs) / min(a for a, _ in self.pairs)

    def worse(self, limit_percent: float) -> bool:
        """By both statistics: a round that something else disturbed is no reason."""
        limit = 1 + limit_percent / 100
        return self.of_least > limit and statistics.median(self.ratios) > limit

    def row(self, limit_percent: float) -> tuple[str, ...]:
        known = spread(self.ratios)
        assert known is not None, "there is at least one round"
        return (
            self.what,
            self.unit,
            f"{min(a for a, _ in self.pairs):.1f}",
            f"{min(b for _, b in self.pairs):.1f}",
            f"{known.median:.3f} [{known.low:.3f}-{known.high:.3f}]",
            f"{self.of_least:.3f}",
            f"WORSE by more than {limit_percent:g} %" if self.worse(limit_percent) else "",
        )


def side(text: str, place: Path) -> Side:
    """A directory or a git revision, and options behind it; the code of a revision is written below `place`.

    Raises:
        SystemExit: it is neither, or what Python would import lies elsewhere.
    """
    where, *words = shlex.split(text)
    code = Path(where).absolute()
    if not code.is_dir():
        code = place
        _write_revision(where, code)
    found = subprocess.run(
        [sys.executable, "-c", "import aimport; print(aimport.__file__)"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PYTHONPATH": str(code)},
    )
    package = Path(found.stdout.strip())
    if not package.is_relative_to(code):
        raise SystemExit(f"{where}: no package aimport in {code}; {found.stderr.strip() or f'found {package}'}")
    return Side(name=text, code=code, words=tuple(words))


def _write_revision(revision: str, target: Path) -> None:
    archive = subprocess.run(
        ["git", "-C", servers.ROOT, "archive", "--format=tar", revision, "aimport"], capture_output=True, check=False
    )
    if archive.returncode != 0:
        said = archive.stderr.decode(errors="replace").strip()
        raise SystemExit(f"{revision}: neither a directory nor a revision with aimport in it: {said}")
    target.mkdir()
    subprocess.run(["tar", "-x", "-C", target], input=archive.stdout, check=True)


def instructions(text: str) -> int | None:
    """What `perf stat -x,` has counted; None where the kernel or the machine does not tell."""
    for line in text.splitlines():
        figure, _, rest = line.partition(",")
        if EVENT in rest:
            return int(figure) if figure.isdecimal() else None
    return None


def counter(place: Path) -> tuple[tuple[str, ...], str]:
    """Words before a command that count its instructions into the file that is named next; or none, and why not."""
    perf = shutil.which("perf")
    if perf is None:
        return (), "no perf here"
    words = (perf, "stat", "-x,", "-e", EVENT, "-o")
    file = place / "probe"
    done = subprocess.run([*words, file, "--", "true"], capture_output=True, text=True, check=False)
    if done.returncode == 0 and instructions(file.read_text()) is not None:
        return words, ""
    return (), "this kernel or machine counts no instructions" + (f": {done.stderr.strip()}" if done.stderr else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where both sides run: one server, one corpus, one way of counting."""

    server: NullServer
    corpus: Corpus
    place: Path
    counting: tuple[str, ...]

    @property
    def unit(self) -> str:
        return "1000 instructions" if self.counting else "µs of CPU"

    def start(self, of: Side, name: str) -> float:
        """What a run without mail needs, in `unit`."""
        file = self.place / f"{name}.count"
        prefix = (*self.counting, str(file), "--") if self.counting else ()
        cpu_s = run_empty(self.server, self.place / name, of.words, code=of.code, prefix=prefix).cpu_s
        return self._needed(cpu_s, file)

    def run(self, lane: Lane, of: Side, name: str) -> float:
        """What a run with all mail needs, in `unit`."""
        file = self.place / f"{name}.count"
        prefix = (*self.counting, str(file), "--") if self.counting else ()
        folder = self.place / name
        done, _ = run_lane(lane, self.corpus, self.server, folder, of.words, code=of.code, prefix=prefix)
        shutil.rmtree(folder)
        return self._needed(done.cpu_s, file)

    def _needed(self, cpu_s: float, file: Path) -> float:
        if not self.counting:
            return cpu_s * 1e6
        counted = instructions(file.read_text())
        assert counted is not None, "perf has counted before"
        return counted / 1000


def compare(bench: Bench, a: Side, b: Side, lanes: Sequence[Lane], rounds: int) -> Iterator[Compared]:
    """The start of a run, then the messages of each lane: what a run needed above the least start of its side."""
    for each in (a, b):
        bench.start(each, f"warm-{each is b}")  # the first run of a build compiles it
    starts = _pairs(bench.start, a, b, rounds, "start")
    yield Compared(what=START, unit=bench.unit, pairs=starts)
    least_a, least_b = min(one for one, _ in starts), min(two for _, two in starts)
    messages = bench.corpus.messages
    for lane in lanes:
        whole = _pairs(partial(bench.run, lane), a, b, rounds, lane)
        pairs = tuple(((one - least_a) / messages, (two - least_b) / messages) for one, two in whole)
        yield Compared(what=f"{lane}, a message", unit=bench.unit, pairs=pairs)


def _pairs(
    needed: Callable[[Side, str], float], a: Side, b: Side, rounds: int, name: str
) -> tuple[tuple[float, float], ...]:
    """Both in every round, in turn first."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            two = needed(b, f"{name}-{number}-b")
            one = needed(a, f"{name}-{number}-a")
        else:
            one = needed(a, f"{name}-{number}-a")
            two = needed(b, f"{name}-{number}-b")
        pairs.append((one, two))
    return tuple(pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="aimport-compare-", dir=options.dir) as made:
        place = Path(made)
        a, b = side(options.a, place / "a"), side(options.b, place / "b")
        counting, why_not = counter(place)
        print(", ".join(f"{name} {value}" for name, value in machine(place).items()))
        print(f"A: {a.name} ({a.code}); B: {b.name} ({b.code})")
        print(f"counted: {'instructions in user mode' if counting else f'CPU time, for {why_not}'}", flush=True)
        corpus = write_corpus(
            place / "corpus",
            seed=options.seed,
            accounts=options.accounts,
            messages=options.messages,
            median_octets=options.median_octets,
        )
        with run_null_server(corpus.root) as server:
            bench = Bench(server=server, corpus=corpus, place=place, counting=counting)
            compared = list(compare(bench, a, b, options.lanes, options.rounds))
    print(columns([HEADINGS, *(each.row(options.limit) for each in compared)]))
    worse = [each.what for each in compared if each.worse(options.limit)]
    if worse:
        print(f"B needs more than {options.limit:g} % more than A: {'; '.join(worse)}", file=sys.stderr)
    return 1 if worse else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description="Whether B needs more than A: a directory or a git revision, then options of `aimport import`.",
    )
    parser.add_argument("a", metavar="A", help="e.g. HEAD~1, ../other, '. --users 4'")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--limit", type=float, default=LIMIT_PERCENT, metavar="PERCENT", help="(default: 15)")
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=LANES, metavar="LANE", help=", ".join(LANES))
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="of both (default: 5)")
    parser.add_argument("--accounts", type=int, default=10, metavar="N")
    parser.add_argument("--messages", type=int, default=1000, metavar="N", help="of each account (default: 1000)")
    parser.add_argument("--median-octets", type=int, default=MEDIAN_OCTETS, metavar="N", help="of a message")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the generated mail (default: 1)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where mail is written (default: TMPDIR)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
