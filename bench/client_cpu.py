"""`python -m bench.client_cpu`: aimport against a null server, so that only its own work is left.

    maildir-imap    Maildir ──▶ aimport ──▶ null server
    imap-imap       null server ──▶ aimport ──▶ null server (one process for both ends)
    imap-maildir    null server ──▶ aimport ──▶ Maildir

The command is the operator's, with its journal and its syncs; options that are not ours
(`--users 4`) go to it. `--profile FILE` runs it once
more under cProfile, every thread, by CPU time (waits count nothing; small functions look
dearer than they are), and writes FILE for `python -m pstats` and the tables to stdout.
"""

from __future__ import annotations

import argparse
import io
import os
import pstats
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, get_args

from bench.corpus import Corpus, message_files, read_corpus, write_corpus
from bench.measure import Command, Measured, measure
from bench.null_server import NullServer, run_null_server
from bench.peers import us
from bench.results import spread
from bench.scenarios import MEDIAN_OCTETS
from tests import servers

Lane = Literal["maildir-imap", "imap-imap", "imap-maildir"]
LANES: Final[tuple[Lane, ...]] = get_args(Lane)
SLOWEST: Final = 50  # messages a second below which a round is given up
SHOWN: Final = 45


def main(arguments: Sequence[str] | None = None) -> int:
    options, words = _parser().parse_known_args(arguments)
    with _folder(options.keep) as place:
        root = place / f"corpus-{options.seed}-{options.accounts}-{options.messages}-{options.median_octets}"
        corpus = (
            read_corpus(root)
            if root.is_dir()
            else write_corpus(
                root,
                seed=options.seed,
                accounts=options.accounts,
                messages=options.messages,
                median_octets=options.median_octets,
            )
        )
        print(f"{corpus.messages} messages, {corpus.octets / 2**20:.0f} MiB, {len(corpus.accounts)} users", flush=True)
        with run_null_server(corpus.root) as server, tempfile.TemporaryDirectory(dir=place, prefix="runs-") as runs:
            empty = [run_empty(server, Path(runs) / f"start-{number}", words).cpu_s for number in range(options.rounds)]
            print(f"start and end of a run with one empty account: {_shown(each * 1000 for each in empty)} ms of CPU")
            for lane in options.lanes:
                rounds = [
                    run_lane(lane, corpus, server, Path(runs) / f"{lane}-{number}", words)
                    for number in range(options.rounds)
                ]
                print(line(lane, rounds, corpus.messages), flush=True)
                if options.profile:
                    file = options.profile.with_name(f"{options.profile.name}-{lane}")
                    run_lane(lane, corpus, server, Path(runs) / f"{lane}-profile", words, profile=file)
                    print(profile_table(file), flush=True)
    return 0


def run_empty(
    server: NullServer,
    folder: Path,
    words: Sequence[str] = (),
    *,
    lane: Lane = "imap-imap",
    accounts: int = 1,
    code: Path = servers.ROOT,
    prefix: Sequence[str] = (),
) -> Measured:
    """A run that finds nothing to copy: what every run costs, however much it copies."""
    names = tuple(f"nobody-{number}" for number in range(accounts))
    for name in names:
        for part in ("cur", "new", "tmp"):
            (folder / "empty" / name / part).mkdir(parents=True)
    empty = Corpus(root=folder / "empty", accounts=names, messages=0, octets=0)
    return run_lane(lane, empty, server, folder, words, code=code, prefix=prefix)[0]


def run_lane(
    lane: Lane,
    corpus: Corpus,
    server: NullServer,
    folder: Path,
    words: Sequence[str] = (),
    *,
    profile: Path | None = None,
    code: Path = servers.ROOT,
    prefix: Sequence[str] = (),
) -> tuple[Measured, float]:
    """One run of aimport with `words` added to its import command; beside it the server's CPU seconds.

    `code` holds the package that runs; `prefix` are words before the command, of a program that watches it.

    Raises:
        RuntimeError: it failed, or not every message arrived.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "users.csv").write_text("user\n" + "".join(f"{user}\n" for user in corpus.accounts))
    host = f"127.0.0.1:{server.port}/?tls=off"
    source = f"imap://{host}" if lane.startswith("imap") else f"maildir:{corpus.root}/%u"
    target = f"maildir:{folder}/mail/%u" if lane.endswith("-maildir") else f"imap://to-{folder.name}-%u@{host}"
    python: tuple[str, ...] = (sys.executable, "-m", "aimport")
    if profile is not None:
        python = (sys.executable, "-m", "bench.profiled", str(profile.absolute()))
    argv = (
        *prefix, *python, "-o", "source_password=env:BENCH_PASSWORD", "-o", "dest_password=env:BENCH_PASSWORD",
        "import", "-F", str(folder / "users.csv"), "--to", target, "--progress", "none", *words, source, "", "ALL",
    )  # fmt: skip
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(code),
        "HOME": str(folder),
        "XDG_STATE_HOME": str(folder / "state"),
        "BENCH_PASSWORD": "any",
    }
    before = server.cpu_s()
    command = Command(argv=argv, owner=us(), env=env)
    done = measure([command], at_once=1, log=folder / "command", limit_s=60 + corpus.messages / SLOWEST)
    server_cpu_s = server.cpu_s() - before
    arrived = server.totals().messages
    if lane.endswith("-maildir"):
        arrived = sum(len(message_files(folder / "mail" / user)) for user in corpus.accounts)
    if done.failure or arrived != corpus.messages:
        raise RuntimeError(f"{lane}: {arrived} of {corpus.messages} messages arrived; {done.failure}")
    return done, server_cpu_s


def line(lane: str, rounds: Sequence[tuple[Measured, float]], messages: int) -> str:
    """The figures of some rounds: medians, and the range of the two that matter."""
    micro = 1e6 / messages
    return (
        f"{lane}: {_shown(messages / done.seconds for done, _ in rounds)} messages/s, "
        f"client CPU {_shown(done.cpu_s * micro for done, _ in rounds)} us/message, "
        f"server CPU {_shown(server_cpu_s * micro for _, server_cpu_s in rounds)} us/message, "
        f"peak RSS {_shown(done.peak_rss_octets / 2**20 for done, _ in rounds)} MiB"
    )


def _shown(figures: Iterator[float]) -> str:
    known = spread(figures)
    assert known is not None, "there is at least one round"
    return f"{known.median:.0f} [{known.low:.0f}-{known.high:.0f}]"


def profile_table(file: Path) -> str:
    """The dearest functions by their own time and by all below them."""
    out = io.StringIO()
    stats = pstats.Stats(str(file), stream=out).strip_dirs()
    stats.sort_stats("tottime").print_stats(SHOWN)
    stats.sort_stats("cumulative").print_stats(SHOWN)
    return out.getvalue()


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    made = Path(tempfile.mkdtemp(prefix="aimport-client-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.client_cpu",
        allow_abbrev=False,
        description="aimport against a null server. Other options go to `aimport import`.",
    )
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=LANES, metavar="LANE", help=", ".join(LANES))
    parser.add_argument("--accounts", type=int, default=10, metavar="N")
    parser.add_argument("--messages", type=int, default=1000, metavar="N", help="of each account")
    parser.add_argument("--median-octets", type=int, default=MEDIAN_OCTETS, metavar="N", help="of a message")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the generated mail stays for the next time")
    parser.add_argument("--profile", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
