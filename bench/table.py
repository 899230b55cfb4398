"""A result as text: plain columns for a terminal, markdown for pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.goals import GOALS, Goal, ahead
from bench.peers import CARRIES
from bench.results import Entry, Result, RouteResult, Spread, ratios, spread, standing
from bench.scenarios import AIMPORT

NAMES = {
    "maildir": "Maildir",
    "imap": "IMAP",
    "mbox": "mbox",
    "sdbox": "sdbox",
    "mdbox": "mdbox",
}
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADINGS = (
    "contender",
    "messages/s",
    "MiB/s",
    "client CPU µs/message",
    "server CPU µs/message",
    "peak RSS MiB",
    "aimport is … times as fast",
)
SUMMARY_HEADINGS = (
    "scenario",
    "path",
    "aimport, messages/s",
    "MiB/s",
    "best peer",
    "aimport is … times as fast",
    "floor",
    "aimport is … times as fast",
)
GOAL_HEADINGS = ("scenario", "path", "goal", "measured", "held")
CALL_HEADINGS = ("scenario", "path", "contender", "system calls/message", "most of them")
APPEND_HEADINGS = ("scenario", "path", "contender", "APPEND commands", "messages in each", "p50 ms", "p99 ms")
MOST_CALLS = 5

Table = Callable[[Sequence[Sequence[str]]], str]


def plain(result: Result) -> str:
    """Everything, with aligned columns."""
    return _joined([*_whole(result, columns, bullet="  ", title="{}")])


def markdown(result: Result) -> str:
    """Everything, as markdown tables."""
    return _joined([*_whole(result, _markdown_table, bullet="- ", title="### {}")])


def summary(result: Result, plots: Mapping[str, str]) -> str:
    """A row for each path of each scenario, plots (where each lies, and what it shows), and the goals: for README."""
    parts = [*conditions(result), "", *_summary(result, _markdown_table, "### {}")]
    for place, title in plots.items():
        parts += ["", f"![{title}]({place})"]
    return _joined([*parts, *_goals(result, _markdown_table, "### {}")])


def put_into(page: str, tables: str) -> str:
    """`page` with `tables` between its marks.

    Raises:
        ValueError: the marks are missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} and {END} in the page")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def path(route: str) -> str:
    """As a person writes it."""
    source, destination = route.split("-")
    return f"{NAMES[source]} → {NAMES[destination]}"


def conditions(result: Result) -> list[str]:
    """What makes the numbers mean something."""
    machine, settings = result.machine, result.settings
    place = (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {machine['kernel']}, "
        f"{machine['filesystem']}, load at start {machine['load_at_start']}; "
        f"{', '.join(f'{name} {version}' for name, version in result.versions.items())}; {result.taken}."
    )
    how = (
        f"Seed {settings['seed']}, sources warm, mail_fsync={settings['mail_fsync']}; "
        f"rounds: {settings['rounds']}, as median [lowest-highest]; ratios within a round."
    )
    return [place, how, CARRIES]


def _joined(parts: Sequence[str]) -> str:
    return "\n".join(parts) + "\n"


def _whole(result: Result, table: Table, *, bullet: str, title: str) -> Iterator[str]:
    yield from conditions(result)
    for route in result.routes:
        yield from ("", title.format(f"{route.scenario}: {path(route.route)}"), "")
        yield f"{route.what}: {route.mail}, {route.octets / 2**20:.0f} MiB; {route.between}."
        rows = [_row(entry, route) for entry in route.entries if entry.rounds]
        yield from ("", table([HEADINGS, *rows]))
        notes = [*_notes(route)]
        if notes:
            yield from ("", *(f"{bullet}{note}" for note in notes))
    calls = [*_call_rows(result)]
    if calls:
        yield from ("", title.format("System calls"), "", table([CALL_HEADINGS, *calls]))
    appends = [*_append_rows(result)]
    if appends:
        yield from (
            "",
            title.format("APPEND, from its first line to its answer"),
            "",
            table([APPEND_HEADINGS, *appends]),
        )
    yield from ("", *_summary(result, table, title))
    yield from _goals(result, table, title)


def _notes(route: RouteResult) -> Iterator[str]:
    reasons = dict.fromkeys(entry.left_out for entry in route.entries if entry.left_out)
    for reason in reasons:
        names = "; ".join(entry.name for entry in route.entries if entry.left_out == reason)
        yield f"left out: {names}: {reason}"
    for entry in route.entries:
        for each in entry.rounds:
            if each.wrong:
                yield f"WRONG: {entry.name}, round {each.round}: {each.wrong}"
        if entry.watched is not None and entry.watched.wrong:
            yield f"WRONG: {entry.name}, watched: {entry.watched.wrong}"


def _summary(result: Result, table: Table, title: str) -> list[str]:
    rows = []
    for route in result.routes:
        counted = route.entry(AIMPORT).counted
        cells = [route.scenario, path(route.route)]
        cells.append(_shown(spread(route.messages / each.seconds for each in counted), 0))
        cells.append(_shown(spread(route.octets / 2**20 / each.seconds for each in counted), 1))
        for role in ("peer", "floor"):
            found = standing(route, role)
            cells += ["none here", ""] if found is None else [found[0].name, _faster(found[1], found[0])]
        rows.append(cells)
    return [title.format("Every path beside its best peer and its floor"), "", table([SUMMARY_HEADINGS, *rows])]


def _call_rows(result: Result) -> Iterator[tuple[str, ...]]:
    for route in result.routes:
        for entry in route.entries:
            if entry.watched is not None and entry.watched.syscalls:
                calls = entry.watched.syscalls
                most = sorted(calls, key=lambda name: -calls[name])[:MOST_CALLS]
                shown = ", ".join(f"{name} {calls[name] / route.messages:.2f}" for name in most)
                total = f"{sum(calls.values()) / route.messages:.1f}"
                yield (route.scenario, path(route.route), entry.name, total, shown)


def _append_rows(result: Result) -> Iterator[tuple[str, ...]]:
    for route in result.routes:
        for entry in route.entries:
            if entry.watched is not None and (taken := entry.watched.appends) is not None:
                cells = (f"{taken.commands}", f"{route.messages / taken.commands:.1f}")
                times = (f"{taken.p50_ms:.1f}", f"{taken.p99_ms:.1f}")
                yield (route.scenario, path(route.route), entry.name, *cells, *times)


def _goals(result: Result, table: Table, title: str) -> Iterator[str]:
    taken = {(route.scenario, route.route) for route in result.routes}
    rows = [_goal_row(goal, result) for goal in GOALS if (goal.scenario, goal.route) in taken]
    rows += [
        (
            each.route.scenario,
            path(each.route.route),
            "ahead of every peer",
            f"{_faster(each.measured, each.peer)} than {each.peer.name}",
            _held(each.held),
        )
        for each in ahead(result)
    ]
    if rows:
        yield from ("", title.format("Goals"), "", table([GOAL_HEADINGS, *rows]))


def _row(entry: Entry, route: RouteResult) -> tuple[str, ...]:
    counted = entry.counted
    if not counted:
        return (entry.name, "WRONG", *[""] * (len(HEADINGS) - 2))
    ours = route.entry(entry.held_against)
    micro = 1e6 / route.messages
    wrong = f" ({len(entry.rounds) - len(counted)} WRONG)" if len(counted) < len(entry.rounds) else ""
    server = [each.server_cpu_s * micro for each in counted if each.server_cpu_s is not None]
    faster = "" if entry.name in (AIMPORT, ours.name) else _faster(spread(ratios(ours, entry)), entry)
    return (
        entry.name + wrong,
        _shown(spread(route.messages / each.seconds for each in counted), 0),
        _shown(spread(route.octets / 2**20 / each.seconds for each in counted), 1),
        _shown(spread(each.client_cpu_s * micro for each in counted), 0),
        _shown(spread(server), 0),
        _shown(spread(each.peak_rss_mib for each in counted), 0),
        faster,
    )


def _faster(times: Spread | None, than: Entry) -> str:
    """How many times as fast aimport is; which, where it is not the plain one."""
    return _shown(times, 2) + ("" if than.held_against == AIMPORT else f" ({than.held_against})")


def _goal_row(goal: Goal, result: Result) -> tuple[str, ...]:
    measured = goal.measured(result)
    if measured is None:
        return (goal.scenario, path(goal.route), str(goal), "not measured", "")
    shown = _shown(measured, 2 if goal.against else 0)
    return (goal.scenario, path(goal.route), str(goal), shown, _held(goal.held(measured)))


def _held(held: bool) -> str:
    return "held" if held else "NOT HELD"


def _shown(figure: Spread | None, digits: int) -> str:
    if figure is None:
        return "?"
    median, low, high = (f"{number:.{digits}f}" for number in (figure.median, figure.low, figure.high))
    return median if low == high else f"{median} [{low}-{high}]"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """`rows` with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
