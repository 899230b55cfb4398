"""`python -m bench`: run scenarios; `python -m bench table FILE`: show a result; `... pages FILE`: write the pages."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import plot, table
from bench.results import SCHEMA, Result, RouteResult, read_result
from bench.scenarios import ROUTES, SCENARIOS, Scenario, chosen
from bench.servers import machine, run_site, versions, workplace
from bench.trials import check_room, routes_of, run_route, say, write_mail
from tests import servers

RESULTS: Final = Path(__file__).parent / "results"
QUICK_SCALE: Final = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["table"]:
        return _show(words[1:])
    if words[:1] == ["pages"]:
        return _write_pages(words[1:])
    options = _parser().parse_args(words)
    if options.list:
        print(listed())
        return 0
    try:
        scenarios = [_sized(each, options) for each in chosen(tuple(options.scenario))]
    except ValueError as error:
        raise SystemExit(str(error)) from error
    rounds = options.rounds or (1 if options.quick else 3)
    strace = _strace() if options.strace else ""
    taken = datetime.now(UTC)
    routes: list[RouteResult] = []
    known: dict[str, str] = {}
    with workplace(options.dir) as work:
        about = machine(work)
        for scenario in scenarios:
            place = work / scenario.name
            with run_site(
                place, mail_fsync=options.mail_fsync, between=scenario.between, destination=scenario.server
            ) as site:
                say(f"{scenario.name}: writing {scenario.mail} below {place}")
                corpus = write_mail(place / "corpus", scenario.mail, options.seed, site)
                check_room(site, corpus, scenario, rounds)
                known |= versions(site)
                routes += [
                    run_route(
                        site, corpus, scenario, route, rounds, options.only, strace=strace, appends=options.appends
                    )
                    for route in scenario.routes
                ]
        say("removing all mail")
    result = Result(
        schema=SCHEMA,
        taken=f"{taken:%Y-%m-%d %H:%M} UTC",
        machine=about,
        versions=known,
        settings={
            "rounds": rounds,
            "seed": options.seed,
            "scale": options.scale or (QUICK_SCALE if options.quick else 1.0),
            "mail_fsync": options.mail_fsync,
        },
        routes=tuple(routes),
    )
    out: Path = options.out or RESULTS / f"{taken:%Y%m%d-%H%M%S}.json"
    result.write(out)
    print(table.plain(result), end="")
    say(f"written to {out}")
    return 1 if any(each.wrong for route in result.routes for entry in route.entries for each in entry.rounds) else 0


def _show(words: Sequence[str]) -> int:
    shown = argparse.ArgumentParser(prog="python -m bench table", description="A result as markdown.")
    shown.add_argument("file", type=Path)
    print(table.markdown(read_result(shown.parse_args(words).file)), end="")
    return 0


def _write_pages(words: Sequence[str]) -> int:
    """Everything that a page of the project says of speed, from one result."""
    parser = argparse.ArgumentParser(
        prog="python -m bench pages", description="README.md and docs/benchmarks.md, tables and plots, from a result."
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--root", type=Path, default=servers.ROOT, metavar="DIR", help="has README.md and docs")
    given = parser.parse_args(words)
    result = read_result(given.file)
    docs: Path = given.root / "docs"
    plots = dict(plot.drawn(result))
    for name, svg in plots.items():
        (docs / name).write_text(svg, encoding="utf-8")
    for page, text in (
        (given.root / "README.md", table.summary(result, {f"docs/{name}": plot.TITLES[name] for name in plots})),
        (docs / "benchmarks.md", table.markdown(result)),
    ):
        page.write_text(table.put_into(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


def listed() -> str:
    """All scenarios as a table."""
    rows = [("scenario", "", "paths", "mail", "minutes", "what")]
    for each in SCENARIOS:
        paths = ", ".join(each.routes)
        core = "core" if each.core else ""
        rows.append((each.name, core, paths, str(each.mail), f"{each.minutes:g}", f"{each.what}; {each.between}"))
    return table.columns(rows)


def _sized(scenario: Scenario, options: argparse.Namespace) -> Scenario:
    """Of the size and the paths that were asked for."""
    mail = scenario.mail.scaled(options.scale or QUICK_SCALE) if options.scale or options.quick else scenario.mail
    users, messages = options.users or mail.users, options.messages or mail.messages
    mail = replace(mail, users=users, messages=messages)
    return replace(scenario, mail=mail, routes=routes_of(scenario, options.paths))


def _strace() -> str:
    """The program.

    Raises:
        SystemExit: it is not here.
    """
    try:
        return str(servers.find("strace").path("usr/bin/strace"))
    except servers.CannotGet as reason:
        installed = shutil.which("strace")
        if installed is None:
            raise SystemExit(str(reason)) from reason
        return installed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="aimport and its peers on the same mail. `python -m bench table FILE` shows a result as markdown.",
    )
    parser.add_argument("--list", action="store_true", help="the scenarios, and about how long they take")
    parser.add_argument(
        "--scenario",
        nargs="+",
        default=["median"],
        metavar="NAME",
        help="of --list, `core` (what `make bench` runs) or `all` (default: median)",
    )
    parser.add_argument("--quick", action="store_true", help=f"--scale {QUICK_SCALE}, one round: does everything run?")
    parser.add_argument("--scale", type=_scale, metavar="X", help="so many times the mail of a scenario (default: 1)")
    parser.add_argument("--users", type=_positive, metavar="N", help="accounts, instead of the scenario's")
    parser.add_argument("--messages", type=_positive, metavar="N", help="messages of each, instead of the scenario's")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="turns of each contender (default: 3)")
    parser.add_argument("--paths", nargs="+", choices=ROUTES, default=(), metavar="PATH", help=", ".join(ROUTES))
    parser.add_argument("--only", default="", metavar="NAME", help="beside aimport those whose names begin so")
    parser.add_argument("--strace", action="store_true", help="count the system calls of aimport in a run of its own")
    parser.add_argument("--appends", action="store_true", help="what APPENDs take on the wire, in a run of its own")
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


def _scale(text: str) -> float:
    number = float(text)
    if not 0 < number <= 100:
        raise argparse.ArgumentTypeError("above 0, at most 100")
    return number


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # the servers and all mail go as well
    sys.exit(main())
