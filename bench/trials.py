"""One contender, once: fresh names, a warm source, a quiet disk; then what has arrived is counted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from bench.appends import taken
from bench.corpus import Corpus, link_account, write_corpus
from bench.latency import run_link
from bench.measure import Command, Measured, measure
from bench.peers import CONTENDERS, Contender, Trial, kinds
from bench.results import Entry, Round, RouteResult, Watched
from bench.scenarios import AIMPORT, Mail, Route, Scenario
from bench.servers import Site, convert, prepare_user, warm

SLOWEST: Final = 20  # messages a second below which a contender is given up
LEAST_RATE: Final = 256 * 1024  # octets a second, the same
_SEEN = re.compile(r"messages=(\d+)\n\Z")


def write_mail(place: Path, mail: Mail, seed: int, site: Site) -> Corpus:
    """The mail of a scenario below `place`, and what else its sources are made from."""
    return write_corpus(
        place,
        seed=seed,
        accounts=mail.users,
        messages=mail.messages,
        owner=site.owner,
        median_octets=mail.median_octets,
        sigma=mail.sigma,
        mailboxes=mail.mailboxes,
    )


def run_route(
    site: Site,
    corpus: Corpus,
    scenario: Scenario,
    route: Route,
    rounds: int,
    only: str = "",
    *,
    strace: str = "",
    appends: bool = False,
) -> RouteResult:
    """All contenders of one path, in every round another one first; `only` beside aimport those with such a name.

    `strace`: a program; each aimport runs once more under it. `appends`: whoever appends over a line that can be read
    does it once more, watched.
    """
    _prepare_stores(site, corpus, route)
    reasons = {contender.name: left_out(site, scenario, route, contender) for contender in CONTENDERS}
    named = [each for each in CONTENDERS if each.role == "ours" or each.name.startswith(only)]
    shown = [each for each in named if not scenario.contenders or each.name in scenario.contenders]
    taking_part = [contender for contender in shown if not reasons[contender.name]]
    figures: dict[str, list[Round]] = {contender.name: [] for contender in shown}
    for number in range(rounds):
        first = number % max(1, len(taking_part))
        for contender in (*taking_part[first:], *taking_part[:first]):
            place = CONTENDERS.index(contender)
            done = run_trial(site, corpus, route, contender, number, place=place, again=scenario.again)
            figures[contender.name].append(done)
            rate = f"{done.arrived / done.seconds:7.0f} messages/s" if done.seconds else ""
            wrong = f" WRONG: {done.wrong}" if done.wrong else ""
            say(f"{scenario.name}, {route}, round {number}, {contender.name}: {rate}{wrong}")
    watched: dict[str, Watched] = {}
    for contender in taking_part:
        place = CONTENDERS.index(contender)
        seen = []
        if strace and contender.role == "ours":
            seen.append(run_traced(site, corpus, route, contender, rounds, place=place, strace=strace))
        if appends and contender.stores and route.endswith("-imap") and not site.between.is_closed:
            seen.append(run_watched(site, corpus, route, contender, rounds + 1, place=place))
        if seen:
            watched[contender.name] = Watched(
                syscalls=next((each.syscalls for each in seen if each.syscalls is not None), None),
                appends=next((each.appends for each in seen if each.appends is not None), None),
                wrong="; ".join(each.wrong for each in seen if each.wrong),
            )
    return RouteResult(
        scenario=scenario.name,
        what=scenario.what,
        route=route,
        mail=str(scenario.mail),
        between=str(site.between),
        messages=corpus.messages,
        octets=corpus.octets,
        entries=tuple(
            Entry(
                name=contender.name,
                role=contender.role,
                held_against=_held_against(contender, route, taking_part),
                left_out=reasons[contender.name],
                rounds=tuple(figures[contender.name]),
                watched=watched.get(contender.name),
            )
            for contender in shown
        ),
    )


def _held_against(contender: Contender, route: Route, taking_part: Sequence[Contender]) -> str:
    """The aimport that does the same work, where it has part."""
    name = contender.held_against(route)
    return name if name in [each.name for each in taking_part] else AIMPORT


def left_out(site: Site, scenario: Scenario, route: Route, contender: Contender) -> str:
    """Why a contender has no part in a path of a scenario; empty when it has."""
    if scenario.contenders and contender.name not in scenario.contenders:
        return "not in this scenario"
    return contender.left_out(site, route, again=scenario.again)


def folder_of(site: Site, route: Route, number: int, place: int) -> Path:
    """Where a trial writes what is no mail."""
    return site.work / "trials" / f"{route}-{number}-{place}"


def made_trial(site: Site, corpus: Corpus, route: Route, number: int, place: int) -> Trial:
    """A contender's turn with accounts of its own on both sides; `place` is the contender's among all of the round."""
    folder = folder_of(site, route, number, place)
    folder.mkdir(parents=True)
    users = tuple(f"{folder.name}-{account}" for account in corpus.accounts)
    trial = Trial(site=site, route=route, corpus=corpus, users=users, folder=folder)
    for account, user in zip(corpus.accounts, trial.users, strict=True):
        if trial.source in ("maildir", "imap"):
            link_account(corpus.root / account, trial.maildir("source", user), site.owner)
        else:
            trial.store(user).parent.mkdir(parents=True)
            _copy_store(site.work / "stores" / trial.source / account, trial.store(user))
            site.owner.own(trial.store(user).parent)
        if trial.destination == "imap":
            prepare_user(site, user)
    if trial.source == "imap" and site.source is not None:
        seen = sum(warm(site.source, user) for user in trial.users)
        assert seen == corpus.messages, f"the source server shows {seen} of {corpus.messages} messages"
    return trial


def run_trial(
    site: Site, corpus: Corpus, route: Route, contender: Contender, number: int, *, place: int, again: bool = False
) -> Round:
    """Measured is the one run of a contender; with `again` a second one, which has nothing to do."""
    trial = made_trial(site, corpus, route, number, place)
    limit_s = 60 + corpus.messages / SLOWEST + corpus.octets / LEAST_RATE
    log = trial.folder / "command"
    commands = contender.commands(trial)
    if again:
        first = measure(commands, at_once=contender.at_once, log=trial.folder / "first", limit_s=limit_s)
        assert contender.again is not None, "it takes part only where it has a second run"
        if first.failure:
            return _round(number, first, None, trial.arrived(), first.failure)
        commands = contender.again(trial)
    os.sync()
    before = site.cpu_s()
    measured = measure(commands, at_once=contender.at_once, log=log, limit_s=limit_s)
    after = site.cpu_s()
    server_cpu_s = None if before is None or after is None else after - before
    arrived = trial.arrived() if contender.stores else _told(log)
    wrong = measured.failure
    if not wrong and arrived != corpus.messages:
        wrong = f"{arrived} of {corpus.messages} messages arrived"
    return _round(number, measured, server_cpu_s, arrived, wrong)


def run_traced(
    site: Site, corpus: Corpus, route: Route, contender: Contender, number: int, *, place: int, strace: str
) -> Watched:
    """The system calls of one more run, counted by strace; its time means nothing."""
    trial = made_trial(site, corpus, route, number, place)
    file = trial.folder / "strace"
    words = (strace, "-c", "-f", "-o", str(file))
    commands: list[Command] = [replace(each, argv=(*words, *each.argv)) for each in contender.commands(trial)]
    limit_s = 600 + corpus.messages / SLOWEST
    measured = measure(commands, at_once=contender.at_once, log=trial.folder / "command", limit_s=limit_s)
    arrived = trial.arrived()
    if measured.failure or arrived != corpus.messages:
        return Watched(wrong=measured.failure or f"{arrived} of {corpus.messages} messages arrived")
    return Watched(syscalls=syscalls(file.read_text()))


def run_watched(site: Site, corpus: Corpus, route: Route, contender: Contender, number: int, *, place: int) -> Watched:
    """What each APPEND of one more run took, seen by a link that adds nothing else."""
    file = site.work / f"appends-{route}-{place}"
    with run_link(site.ports["destination"], appends=file) as port:
        through = replace(site, ports={**site.ports, "destination": port})
        trial = made_trial(through, corpus, route, number, place)
        limit_s = 60 + corpus.messages / SLOWEST + corpus.octets / LEAST_RATE
        commands = contender.commands(trial)
        measured = measure(commands, at_once=contender.at_once, log=trial.folder / "command", limit_s=limit_s)
        arrived = trial.arrived()
    if measured.failure or arrived != corpus.messages:
        return Watched(wrong=measured.failure or f"{arrived} of {corpus.messages} messages arrived")
    return Watched(appends=taken(msgspec.json.decode(file.read_bytes(), type=list[float])))


def syscalls(table: str) -> dict[str, int]:
    """The calls by name of `strace -c`."""
    counted = {}
    for line in table.splitlines():
        words = line.split()
        if len(words) >= 5 and words[3].isdecimal() and words[-1] != "total":
            counted[words[-1]] = int(words[3])
    return counted


def _round(number: int, measured: Measured, server_cpu_s: float | None, arrived: int, wrong: str) -> Round:
    return Round(
        round=number,
        seconds=round(measured.seconds, 4),
        client_cpu_s=round(measured.cpu_s, 4),
        server_cpu_s=None if server_cpu_s is None else round(server_cpu_s, 2),
        peak_rss_mib=round(measured.peak_rss_octets / 2**20, 1),
        arrived=arrived,
        wrong=wrong,
    )


def _told(log: Path) -> int:
    """How many messages a command says it has seen."""
    said = _SEEN.search(log.with_suffix(".0.log").read_text())
    return int(said[1]) if said else 0


def _prepare_stores(site: Site, corpus: Corpus, route: Route) -> None:
    """The mail of the scenario in the form of the source, once for all trials."""
    kind = kinds(route)[0]
    if kind in ("maildir", "imap") or site.no_server:
        return
    for account in corpus.accounts:
        target = site.work / "stores" / kind / account
        if not target.exists():
            convert(site, corpus.root / account, kind, target)


def _copy_store(origin: Path, target: Path) -> None:
    """With the dates of its files; what is copied is in the page cache."""
    subprocess.run(["cp", "-a", "--", origin, target], check=True)


def room_needed(site: Site, corpus: Corpus, scenario: Scenario, rounds: int) -> int:
    """Octets: nothing is deleted between trials, so all copies must fit."""
    trials = sum(
        not left_out(site, scenario, route, contender) for contender in CONTENDERS for route in scenario.routes
    )
    stores = sum(route.startswith(("mbox", "sdbox", "mdbox")) for route in scenario.routes)
    return int(corpus.octets * rounds * (trials + trials * bool(stores)) * 1.2) + 64 * 2**20


def check_room(site: Site, corpus: Corpus, scenario: Scenario, rounds: int) -> None:
    """Before the first trial of a scenario.

    Raises:
        SystemExit: its copies do not fit.
    """
    needed, free = room_needed(site, corpus, scenario, rounds), shutil.disk_usage(site.work).free
    if needed > free:
        raise SystemExit(
            f"{scenario.name}: {needed >> 20} MiB are needed in {site.work}, {free >> 20} MiB are free; "
            "name another --dir, fewer --rounds or a smaller --scale"
        )


def routes_of(scenario: Scenario, paths: Sequence[Route]) -> tuple[Route, ...]:
    """Those of a scenario that were asked for."""
    return tuple(route for route in scenario.routes if not paths or route in paths)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
