"""A result as text: plain columns for a terminal, markdown for README."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.goals import GOALS, Goal
from bench.peers import AIMPORT, CARRIES
from bench.results import Entry, Result, RouteResult, Spread, ratios, spread

TITLES = {
    "maildir-imap": "Maildir → IMAP",
    "imap-maildir": "IMAP → Maildir",
    "imap-imap": "IMAP → IMAP",
    "maildir-maildir": "Maildir → Maildir",
}
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADINGS = (
    "contender",
    "messages/s",
    "client CPU µs/message",
    "server CPU µs/message",
    "peak RSS MiB",
    "aimport is … times as fast",
)
GOAL_HEADINGS = ("route", "goal", "measured", "held")


def plain(result: Result) -> str:
    """All routes with aligned columns."""
    return _document(result, columns, bullet="  ", title="{}")


def markdown(result: Result) -> str:
    """All routes as markdown tables."""
    return _document(result, _markdown_table, bullet="- ", title="### {}")


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


def _document(result: Result, table: Callable[[Sequence[Sequence[str]]], str], *, bullet: str, title: str) -> str:
    parts = [*conditions(result)]
    for route in result.routes:
        rows = [_row(entry, route, result.messages) for entry in route.entries if entry.rounds]
        parts += ["", title.format(TITLES[route.route]), "", table([HEADINGS, *rows])]
        reasons = dict.fromkeys(entry.left_out for entry in route.entries if entry.left_out)
        notes = [
            f"left out: {'; '.join(entry.name for entry in route.entries if entry.left_out == reason)}: {reason}"
            for reason in reasons
        ]
        notes += [
            f"WRONG: {entry.name}, round {each.round}: {each.wrong}"
            for entry in route.entries
            for each in entry.rounds
            if each.wrong
        ]
        if notes:
            parts += ["", *(f"{bullet}{note}" for note in notes)]
    taken = [route.route for route in result.routes]
    goals = [goal for goal in GOALS if goal.route in taken]
    if goals:
        parts += ["", title.format("Goals"), "", table([GOAL_HEADINGS, *(_goal_row(goal, result) for goal in goals)])]
    return "\n".join(parts) + "\n"


def conditions(result: Result) -> list[str]:
    """What makes the numbers mean something."""
    machine, settings = result.machine, result.settings
    mail = (
        f"{settings['users']} users x {settings['messages']} messages, {result.octets / 2**20:.0f} MiB, log-normal "
        f"with a median of {int(settings['median_octets']) // 1024} KiB, seed {settings['seed']}; loopback, no TLS, "
        f"sources warm, mail_fsync={settings['mail_fsync']}; rounds: {settings['rounds']}, as median [lowest-highest]."
    )
    place = (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {machine['kernel']}, "
        f"{machine['filesystem']}, load at start {machine['load_at_start']}; "
        f"{', '.join(f'{name} {version}' for name, version in result.versions.items())}; {result.taken}."
    )
    return [mail, place, CARRIES]


def _row(entry: Entry, route: RouteResult, messages: int) -> tuple[str, ...]:
    counted = entry.counted
    if not counted:
        return (entry.name, "WRONG", "", "", "", "")
    ours = next(each for each in route.entries if each.name == AIMPORT)
    micro = 1e6 / messages
    wrong = f" ({len(entry.rounds) - len(counted)} WRONG)" if len(counted) < len(entry.rounds) else ""
    return (
        entry.name + wrong,
        _shown(spread(messages / each.seconds for each in counted), 0),
        _shown(spread(each.client_cpu_s * micro for each in counted), 0),
        _shown(spread(each.server_cpu_s * micro for each in counted), 0),
        _shown(spread(each.peak_rss_mib for each in counted), 0),
        "" if entry is ours else _shown(spread(ratios(ours, entry)), 2),
    )


def _goal_row(goal: Goal, result: Result) -> tuple[str, ...]:
    measured = goal.measured(result)
    if measured is None:
        return (TITLES[goal.route], str(goal), "not measured", "")
    held = "yes" if goal.held(measured) else "no"
    return (TITLES[goal.route], str(goal), _shown(measured, 2 if goal.against else 0), held)


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
