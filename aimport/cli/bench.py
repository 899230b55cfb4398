"""aimport bench"""

from __future__ import annotations

import os
import platform
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import click
from anyio.abc import TaskStatus

from aimport.cli import options
from aimport.cli.call import Globals, tell
from aimport.cli.pages import check_page, write_page
from aimport.cli.work import journal_root, print_json, settings_of
from aimport.errors import AimportError, ConfigurationError, DestinationFull, UsageError
from aimport.report import printable

if TYPE_CHECKING:
    from aimport.benching import Bench, Left, Place, Scale
    from aimport.config import Settings
    from aimport.stores import Stores

CLEAN_S: Final = 120.0
"""How long taking away may last when nobody ends it."""
KINDS: Final = ("main", "part", "own", "floor")


class Numbers(click.ParamType[tuple[int, ...]]):
    """`1,2,4`"""

    name = "LIST"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        if not all(word.strip().isdecimal() and 1 <= int(word) <= 256 for word in words):
            self.fail(f"{value!r} is no list such as 1,2,4 (each at most 256)", param, ctx)
        return tuple(sorted({int(word) for word in words}))


@click.command("bench")
@click.argument("locations", metavar="[LOCATION [LOCATION]]", nargs=-1)
@click.option("-u", "user", metavar="USER", help="Whose account it is (%u); default dest_user, then $USER.")
@click.option("--messages", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="For each round.")
@click.option(
    "--median", type=options.Size(least=400), default=12 * 1024, show_default="12K", help="Of the sizes of messages."
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same number, the same mail.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Median, lowest and highest.")
@click.option("--connections", type=Numbers(), default=(1, 2, 4), show_default="1,2,4", help="To measure one by one.")
@click.option("--yes", is_flag=True, help="Write to the account of LOCATION without asking.")
@click.option("--journal", metavar="DIR", help="Where runs are remembered, and what bench has made on servers.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--html", metavar="FILE", help="Write a page for a browser too: one file that needs nothing else.")
@click.pass_context
def command(
    ctx: click.Context,
    locations: tuple[str, ...],
    user: str | None,
    messages: int,
    median: int,
    seed: int,
    rounds: int,
    connections: tuple[int, ...],
    yes: bool,
    journal: str | None,
    as_json: bool,
    html: str | None,
) -> int:
    """How fast an import is: on this machine, or into LOCATION, or from the first LOCATION into the second.

    Without LOCATION generated mail goes from Maildir to Maildir in a temporary directory, beside cp. With it the mail
    goes into a mailbox of its own in that account, is read back and compared, and taken away again. Take a test
    account; what is there already is not touched.
    """
    from aimport.benching import MOST_OCTETS, Bench, Scale
    from aimport.daily import Ledger
    from aimport.progress import size

    globals_ = ctx.find_object(Globals)
    assert globals_ is not None  # the group sets it
    if len(locations) > 2:
        raise UsageError("bench takes one or two locations")
    if html is not None:
        check_page(Path(html))
    scale = Scale(messages=messages, median_octets=median, seed=seed, rounds=rounds, connections=connections)
    if scale.about_octets > MOST_OCTETS:
        raise UsageError(
            f"{messages} messages are about {size(scale.about_octets)}, and must fit into memory",
            hint=f"take fewer or smaller ones, at most {size(MOST_OCTETS)} in all",
        )
    root = Path(journal_root(journal)).absolute()
    bench = Bench(scale=scale, tell=tell, ledger=Ledger(journal_root(None) / "daily.sqlite"))
    if locations:
        ended = _with_servers(bench, locations, user, settings_of(globals_), root, yes=yes)
    else:
        ended = _loopback(bench)
    return _show(bench, ended, as_json=as_json, html=html)


@dataclass(slots=True)
class _Ended:
    """How it ended, beside what was measured."""

    places: Sequence[Place] = ()
    error: AimportError | None = None
    stopped: bool = False
    cleaned: bool = False
    left: Sequence[Left] = ()

    @property
    def code(self) -> int:
        if self.stopped:
            return 130
        if self.error is not None:
            return self.error.exit_code
        return 75 if self.left else 0


def _loopback(bench: Bench) -> _Ended:
    from aimport.benching import loopback
    from aimport.runners import local

    ended = _Ended()
    with tempfile.TemporaryDirectory(prefix="aimport-bench-") as directory:
        local.run_loop(partial(_until_stopped, partial(loopback, bench, Path(directory)), None, ended))
    return ended


def _with_servers(
    bench: Bench, locations: Sequence[str], user: str | None, settings: Settings, root: Path, *, yes: bool
) -> _Ended:
    from aimport import traces
    from aimport.benching import Left, check_places, clean, with_servers
    from aimport.cli.work import throttles_of
    from aimport.limits import Limits
    from aimport.runners import local
    from aimport.stores import Stores

    if not yes and not sys.stdin.isatty():
        raise UsageError("bench writes to the accounts it is given", hint="--yes says that it may")
    places = _places(locations, user, settings)
    stores = Stores(throttles=throttles_of(Limits(), settings))
    local.run_loop(partial(check_places, places, stores))
    if not yes:
        _ask(bench.scale, places)
    _take_away_old(root, places, stores)
    ended = _Ended(places)
    trace = traces.begin(root, [place.endpoint.identity for place in places])
    work = partial(with_servers, bench, places, trace, stores)
    try:
        local.run_loop(partial(_until_stopped, work, partial(clean, places, trace.top, stores), ended))
    finally:
        if ended.cleaned:
            trace.forget()
        else:
            trace.keep()
    if not ended.cleaned and not ended.left:
        ended.left = [Left(place.name, trace.top, "not taken away before the second signal") for place in places]
    return ended


def _places(locations: Sequence[str], user: str | None, settings: Settings) -> list[Place]:
    """
    Raises:
        UsageError, ConfigurationError, UserError
    """
    from aimport.benching import Place
    from aimport.location import Side, parse_location, shown_location
    from aimport.plan import variables_for
    from aimport.rights import with_rights

    sides: tuple[Side, ...] = ("source", "destination")
    places = []
    for location, side in zip(locations, sides[-len(locations) :], strict=True):
        known = settings.source_user if side == "source" else settings.dest_user
        name = user or (known if "%" not in known else "") or os.environ.get("USER", "")
        if not name and "%" in location:
            raise UsageError(f"{shown_location(location)}: whose account it is is not said", hint="give -u USER")
        variables = variables_for(name, settings)
        endpoint = parse_location(location, variables, side=side, settings=settings)
        if endpoint.host and not endpoint.user:
            raise UsageError(f"{shown_location(location)}: whose account it is is not said", hint="give -u USER")
        endpoint = replace(endpoint, rights=with_rights(endpoint, endpoint, settings, variables, {}))
        name = endpoint.identity if endpoint.host else shown_location(location)
        places.append(Place(name=name, endpoint=endpoint))
    if len({place.endpoint.identity for place in places}) < len(places):
        raise ConfigurationError(f"both locations are {places[0].endpoint.identity}", hint="give one of them")
    return places


def _ask(scale: Scale, places: Sequence[Place]) -> None:
    """
    Raises:
        click.Abort: the answer is no, or none.
    """
    from aimport.progress import size

    names = " and ".join(place.name for place in places)
    each = size(scale.about_octets)
    tell(
        f"bench makes a mailbox of its own in {names},\nappends {scale.messages} generated messages (about {each}) to"
        f" it {scale.rounds * len(scale.connections)} times, reads them back and takes everything away again."
    )
    click.confirm("Go on?", abort=True, err=True)


def _take_away_old(root: Path, places: Sequence[Place], stores: Stores) -> None:
    """What benches of these accounts left that were killed; of other accounts it is told."""
    from aimport import traces
    from aimport.benching import clean
    from aimport.runners import local

    known = {place.endpoint.identity: place for place in places}
    for trace in traces.left_behind(root):
        ended = _Ended()
        ours = [known[place] for place in trace.places if place in known]
        try:
            if not trace.places:
                ended.cleaned = True  # it was killed before it had made anything
            elif len(ours) == len(trace.places):
                tell(f"aimport: takes away {trace.top}, which a bench that was killed has left")
                local.run_loop(partial(_until_stopped, _nothing, partial(clean, ours, trace.top, stores), ended))
                for left in ended.left:
                    tell(f"aimport: {_not_taken(left)}")
            else:
                tell(
                    f"aimport: a bench that was killed has left {trace.top} at {' and '.join(trace.places)}: it goes"
                    " with the next bench of the same locations, or delete it yourself"
                )
        finally:
            if ended.cleaned:
                trace.forget()
            else:
                trace.keep()
        if ended.stopped:
            raise click.Abort


async def _nothing() -> None:
    """There is only something to take away."""


async def _until_stopped(
    work: Callable[[], Awaitable[None]], clean: Callable[[], Awaitable[Sequence[Left]]] | None, ended: _Ended
) -> None:
    """Does the work until it ends, fails or is stopped by a signal; takes away what it made until a second one."""
    working, cleaning = anyio.CancelScope(), anyio.CancelScope(shield=True)
    async with anyio.create_task_group() as tasks:
        await tasks.start(_watch, working, cleaning, ended)
        try:
            with working:
                await work()
        except AimportError as error:
            ended.error = error
        except OSError as error:
            ended.error = DestinationFull(f"{error.filename or 'disk'}: {error.strerror or error}")
        finally:
            cleaning.deadline = anyio.current_time() + CLEAN_S
            with cleaning:
                ended.left = await clean() if clean is not None else ()
                ended.cleaned = not ended.left
        tasks.cancel_scope.cancel()


async def _watch(
    working: anyio.CancelScope,
    cleaning: anyio.CancelScope,
    ended: _Ended,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        with anyio.open_signal_receiver(*heard) as signals:
            task_status.started()
            async for _ in signals:
                if ended.stopped:
                    cleaning.cancel()
                    return
                ended.stopped = True
                tell("aimport: stops, and takes away what it made; a second signal leaves it there")
                working.cancel()
    finally:
        for number in heard:  # the loop leaves SIGTERM deadly
            signal.signal(number, before[number])


def _not_taken(left: Left) -> str:
    return printable(
        f"{left.mailbox} at {left.place} was not taken away: {left.why} (the next bench of it tries again)"
    )


def _show(bench: Bench, ended: _Ended, *, as_json: bool, html: str | None) -> int:
    from aimport.benching import find
    from aimport.benchpage import Findings, bench_page

    code = ended.code or (0 if bench.compared.equal else 65)
    trials = sorted(bench.trials, key=lambda each: (KINDS.index(each.kind), each.scenario, each.connections))
    found = Findings(
        scale=bench.scale,
        octets=bench.octets,
        places=[place.name for place in ended.places],
        machine=_machine(),
        trials=trials,
        compared=bench.compared,
        finding=find(trials),
        left=ended.left,
        error="stopped by a signal" if ended.stopped else str(ended.error or ""),
        exit=code,
    )
    if html is not None:
        write_page(Path(html), bench_page(found))
    if as_json:
        print_json(found.to_json())
    else:
        for line in found.lines():
            print(printable(line))
    for left in ended.left:
        tell(f"aimport: {_not_taken(left)}")
    if found.error:
        tell(f"aimport: {printable(found.error)}")
    return code


def _machine() -> dict[str, str]:
    from aimport import __version__

    return {
        "aimport": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "durability": "fsync batch: stored is durable before the journal says so",
    }
