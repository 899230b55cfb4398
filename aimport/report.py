"""A run's results as a table: `rich` on a terminal, errors below it; plain columns anywhere else.

Text that came from mail, servers or lists is shown without control characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TextIO

from aimport.results import RunReport, Totals, UserResult

HEADINGS = ("user", "status", "found", "imported", "present", "skipped", "rejected", "octets", "seconds", "error")
NUMBERS = range(2, 9)
HIDDEN = range(4, 7)  # on a terminal present, skipped and rejected are shown when there are any


def write_table(report: RunReport, out: TextIO, *, limit: int = 50, terminal: bool | None = None) -> None:
    """Shows at most `limit` users, those that need a look first, and the totals.

    `terminal` None: ask `out`. Plain columns are as wide as their longest cell, whatever the width of the screen.
    """
    users = sorted(report.users, key=lambda result: result.status == "done")
    rows = [_row(result) for result in users[:limit]]
    totals = report.totals
    last = _cells(f"{totals.users} users", "", totals, "")
    more = f"... and {len(users) - limit} more (aimport report --json)" if len(users) > limit else ""
    if out.isatty() if terminal is None else terminal:
        _write_rich(rows, last, more, out)
    else:
        _write_plain(rows, last, more, out)


def _row(result: UserResult) -> tuple[str, ...]:
    return _cells(printable(result.user), result.status, result, printable(result.error or ""))


def _cells(name: str, status: str, counts: UserResult | Totals, error: str) -> tuple[str, ...]:
    return (
        name,
        status,
        str(counts.found),
        str(counts.imported),
        str(counts.present),
        str(sum(counts.skipped.values())),
        str(sum(counts.rejected.values())),
        str(counts.octets),
        f"{counts.seconds:.1f}",
        error,
    )


def printable(text: str) -> str:
    """`text` on one line and without terminal escapes: what does not print is shown as its code."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def _write_plain(rows: Sequence[Sequence[str]], last: Sequence[str], more: str, out: TextIO) -> None:
    table = [HEADINGS, *rows, last]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if column in NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if more:
        lines.insert(-1, more)
    encoding = out.encoding or "utf-8"
    out.write("".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace").decode(encoding))


def _write_rich(rows: Sequence[Sequence[str]], last: Sequence[str], more: str, out: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [column for column in range(len(HEADINGS) - 1) if column not in HIDDEN or last[column] != "0"]
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    for column in shown:
        justify: Literal["left", "right"] = "right" if column in NUMBERS else "left"
        table.add_column(HEADINGS[column], footer=Text(last[column]), justify=justify, no_wrap=column > 0)
    styles = {"done": "green", "rejects": "yellow", "stopped": "yellow"}
    for row in rows:
        cells = [Text(row[column]) for column in shown]
        cells[1].stylize(styles.get(row[1], "red"))
        table.add_row(*cells)
    console = Console(file=out)
    wide = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(table, options=wide).maximum)  # wrapped beats cut off
    console.print(table)
    for line in [f"{row[0]}: {row[-1]}" for row in rows if row[-1]] + ([more] if more else []):
        console.print(Text(line))
