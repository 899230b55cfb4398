"""`python -m bench`: run the contenders in turn; `python -m bench table FILE`: show a result as markdown."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import table
from bench.corpus import MEDIAN_OCTETS, Corpus, link_account, write_corpus
from bench.measure import measure
from bench.peers import AIMPORT, CONTENDERS, ROUTES, Contender, Route, Trial
from bench.results import Entry, Result, Round, RouteResult, read_result
from bench.servers import Site, machine, run_site, versions, warm

RESULTS: Final = Path(__file__).parent / "results"
SLOWEST: Final = 20  # messages a second below which a contender is given up


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["table"]:
        shown = argparse.ArgumentParser(prog="python -m bench table", description="A result as markdown.")
        shown.add_argument("file", type=Path)
        shown.add_argument("--into", type=Path, metavar="README", help="between its bench:begin and bench:end lines")
        given = shown.parse_args(words[1:])
        text = table.markdown(read_result(given.file))
        if given.into is None:
            print(text, end="")
        else:
            given.into.write_text(table.put_into(given.into.read_text(encoding="utf-8"), text), encoding="utf-8")
        return 0
    options = _parser().parse_args(words)
    users = options.users or (4 if options.quick else 10)
    messages = options.messages or (250 if options.quick else 1000)
    rounds = options.rounds or (1 if options.quick else 3)
    taken = datetime.now(UTC)
    with run_site(options.dir, mail_fsync=options.mail_fsync) as site:
        about = machine(site.work)
        _say(f"writing {users} x {messages} messages below {site.work}")
        corpus = write_corpus(
            site.work / "corpus", seed=options.seed, accounts=users, messages=messages, owner=site.owner
        )
        _check_room(site, corpus, options.paths, rounds)
        result = Result(
            schema=1,
            taken=f"{taken:%Y-%m-%d %H:%M} UTC",
            machine=about,
            versions=versions(site),
            settings={
                "users": users,
                "messages": messages,
                "rounds": rounds,
                "seed": options.seed,
                "median_octets": MEDIAN_OCTETS,
                "mail_fsync": options.mail_fsync,
            },
            messages=corpus.messages,
            octets=corpus.octets,
            routes=tuple(run_route(site, corpus, route, rounds, options.only) for route in options.paths),
        )
        _say("removing all mail")
    out: Path = options.out or RESULTS / f"{taken:%Y%m%d-%H%M%S}.json"
    result.write(out)
    print(table.plain(result), end="")
    _say(f"written to {out}")
    return 1 if any(each.wrong for route in result.routes for entry in route.entries for each in entry.rounds) else 0


def run_route(site: Site, corpus: Corpus, route: Route, rounds: int, only: str = "") -> RouteResult:
    """All contenders of one route whose names begin with `only`, and aimport; in every round another one first."""
    reasons = {
        contender.name: contender.left_out(site, route)
        for contender in CONTENDERS
        if contender.name.startswith((AIMPORT, only))
    }
    taking_part = [contender for contender in CONTENDERS if reasons.get(contender.name) == ""]
    figures: dict[str, list[Round]] = {name: [] for name in reasons}
    for number in range(rounds):
        first = number % max(1, len(taking_part))
        for contender in (*taking_part[first:], *taking_part[:first]):
            done = run_trial(site, corpus, route, contender, number, place=CONTENDERS.index(contender))
            figures[contender.name].append(done)
            rate = f"{corpus.messages / done.seconds:7.0f} messages/s"
            _say(f"{route}, round {number}, {contender.name}: {rate}{' WRONG: ' if done.wrong else ''}{done.wrong}")
    return RouteResult(
        route=route,
        entries=tuple(
            Entry(name=name, left_out=reasons[name], rounds=tuple(rounds_of)) for name, rounds_of in figures.items()
        ),
    )


def folder_of(site: Site, route: Route, number: int, place: int) -> Path:
    """Where a trial writes what is no mail."""
    return site.work / "trials" / f"{route}-{number}-{place}"


def run_trial(site: Site, corpus: Corpus, route: Route, contender: Contender, number: int, *, place: int) -> Round:
    """One contender, once: fresh names, a warm source, a quiet disk; then what has arrived is counted.

    `place` is the contender's among all of the round.
    """
    folder = folder_of(site, route, number, place)
    folder.mkdir(parents=True)
    name = folder.name
    trial = Trial(site=site, route=route, users=tuple(f"{name}-{user}" for user in corpus.accounts), folder=folder)
    for account, user in zip(corpus.accounts, trial.users, strict=True):
        link_account(corpus.root / account, trial.maildir("source", user), site.owner)
    if trial.source == "imap" and site.source is not None:
        seen = sum(warm(site.source, user) for user in trial.users)
        assert seen == corpus.messages, f"the source server shows {seen} of {corpus.messages} messages"
    commands = contender.commands(trial)
    os.sync()
    before = site.cpu_s()
    limit_s = 60 + corpus.messages / SLOWEST
    measured = measure(commands, at_once=contender.at_once, log=folder / "command", limit_s=limit_s)
    server_cpu_s = site.cpu_s() - before
    arrived = trial.arrived()
    wrong = measured.failure
    if not wrong and arrived != corpus.messages:
        wrong = f"{arrived} of {corpus.messages} messages arrived"
    return Round(
        round=number,
        seconds=round(measured.seconds, 4),
        client_cpu_s=round(measured.cpu_s, 4),
        server_cpu_s=round(server_cpu_s, 2),
        peak_rss_mib=round(measured.peak_rss_octets / 2**20, 1),
        arrived=arrived,
        wrong=wrong,
    )


def _check_room(site: Site, corpus: Corpus, routes: Sequence[Route], rounds: int) -> None:
    """Nothing is deleted between trials, so all copies must fit."""
    trials = rounds * sum(not contender.left_out(site, route) for contender in CONTENDERS for route in routes)
    needed = int(corpus.octets * trials * 1.2)
    free = shutil.disk_usage(site.work).free
    if needed > free:
        raise SystemExit(f"{needed >> 20} MiB are needed in {site.work}, {free >> 20} MiB are free; name another --dir")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="aimport and its peers on the same mail. `python -m bench table FILE` shows a result as markdown.",
    )
    parser.add_argument("--quick", action="store_true", help="4 users x 250 messages, one round: does everything run?")
    parser.add_argument("--users", type=_positive, metavar="N", help="accounts (default: 10)")
    parser.add_argument("--messages", type=_positive, metavar="N", help="messages of each account (default: 1000)")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="turns of each contender (default: 3)")
    parser.add_argument("--paths", nargs="+", choices=ROUTES, default=ROUTES, metavar="PATH", help=", ".join(ROUTES))
    parser.add_argument("--only", default="", metavar="NAME", help="beside aimport those whose names begin so")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the generated mail (default: 1)")
    parser.add_argument("--mail-fsync", choices=("optimized", "always", "never"), default="optimized")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="a directory on a real disk (default: TMPDIR)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the result (default: bench/results/TIME.json)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # the servers and all mail go as well
    sys.exit(main())
