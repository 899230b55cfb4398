"""`python -m bench.journal_cost`: what the journal costs, against `--no-journal` in the same run.

Maildir to Dovecot over IMAP, as in `python -m bench`; in every round both, in turn first. Throughput and CPU as
ratios of the two of one round, disk as octets a message. The command never fails for a number.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.corpus import Corpus, write_corpus
from bench.peers import Contender, aimport
from bench.results import Round, Spread, spread
from bench.scenarios import Route
from bench.servers import Site, run_site, workplace
from bench.trials import folder_of, run_trial

ROUTE: Final[Route] = "maildir-imap"
BOTH: Final = (
    Contender(name="with its journal", commands=aimport(), wants=lambda site, route: ""),
    Contender(name="--no-journal", commands=aimport("--no-journal"), wants=lambda site, route: ""),
)
THROUGHPUT: Final = 0.95
DISK_OCTETS: Final = 100.0
"""The goals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both in one round, and the octets of the journal's directory."""

    journal: Round
    bare: Round
    octets: int


def run_pair(site: Site, corpus: Corpus, number: int) -> Pair:
    done: dict[int, Round] = {}
    for place in (0, 1) if number % 2 else (1, 0):
        done[place] = run_trial(site, corpus, ROUTE, BOTH[place], number, place=place)
    state = folder_of(site, ROUTE, number, 0) / "state"
    octets = sum(file.stat().st_size for file in state.rglob("*") if file.is_file())
    return Pair(journal=done[0], bare=done[1], octets=octets)


def told(pairs: Sequence[Pair], messages: int) -> list[str]:
    """The figures, each with its goal; nothing of rounds that did not count."""
    counted = [pair for pair in pairs if not pair.journal.wrong and not pair.bare.wrong]
    speed = spread(pair.bare.seconds / pair.journal.seconds for pair in counted)
    cpu = spread((pair.journal.client_cpu_s - pair.bare.client_cpu_s) * 1e6 / messages for pair in counted)
    disk = spread(pair.octets / messages for pair in counted)
    return [
        f"rounds that count: {len(counted)} of {len(pairs)}, {messages} messages each",
        f"throughput, of that without a journal: {_shown(speed, '.3f')} (goal: {THROUGHPUT} or more)",
        f"client CPU for the journal, us/message: {_shown(cpu, '.1f')}",
        f"disk, octets/message: {_shown(disk, '.1f')} (goal: below {DISK_OCTETS:g})",
    ]


def _shown(of: Spread | None, form: str) -> str:
    return "no figure" if of is None else f"{of.median:{form}} ({of.low:{form}} to {of.high:{form}})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.journal_cost", description="What the journal costs.")
    parser.add_argument("--users", type=int, default=10, metavar="N", help="accounts (default: 10)")
    parser.add_argument("--messages", type=int, default=1000, metavar="N", help="of each account (default: 1000)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="pairs of runs (default: 10)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="a directory on a real disk (default: TMPDIR)")
    options = parser.parse_args(arguments)
    pairs: list[Pair] = []
    with workplace(options.dir) as work, run_site(work, mail_fsync="optimized") as site:
        if site.no_server:
            raise SystemExit(f"no figure without Dovecot: {site.no_server}")
        corpus = write_corpus(
            site.work / "corpus", seed=1, accounts=options.users, messages=options.messages, owner=site.owner
        )
        for number in range(options.rounds):
            pairs.append(run_pair(site, corpus, number))
            for each, place in zip((pairs[-1].journal, pairs[-1].bare), BOTH, strict=True):
                said = each.wrong or f"{corpus.messages / each.seconds:.0f} messages/s"
                print(f"round {number}, {place.name}: {said}", file=sys.stderr, flush=True)
    print("\n".join(told(pairs, corpus.messages)))
    return 1 if any(pair.journal.wrong or pair.bare.wrong for pair in pairs) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # the servers and all mail go as well
    sys.exit(main())
