"""A run's results, or what a check of it found, as a table.

`rich` on a terminal, errors below it; plain columns anywhere else.

Text that came from mail, servers or lists is shown without control characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TextIO

from aimport.results import RunReport, Totals, UserResult
from aimport.stages import HEADINGS

if TYPE_CHECKING:
    from aimport.verify import Verified


@dataclass(frozen=True, slots=True)
class Columns:
    """Of a table; the first two are a name and a status, the last is an error, the others are numbers."""

    headings: tuple[str, ...]
    hidden: range
    """On a terminal these are shown when the totals have any."""

    @property
    def numbers(self) -> range:
        return range(2, len(self.headings) - 1)


RESULTS: Final = Columns(
    ("user", "status", "found", "imported", "present", "skipped", "rejected", "octets", "seconds", "error"), range(4, 7)
)
CHECKED: Final = Columns(
    ("user", "status", "checked", "equal", "line ends", "altered", "missing", "doubled", "extra", "read", "error"),
    range(4, 10),
)


def write_table(report: RunReport, out: TextIO, *, limit: int = 50, terminal: bool | None = None) -> None:
    """Shows at most `limit` users, those that need a look first, and the totals.

    `terminal` None: ask `out`. Plain columns are as wide as their longest cell, whatever the width of the screen.
    """
    users = sorted(report.users, key=lambda result: result.status == "done")
    rows = [_row(result) for result in users[:limit]]
    totals = report.totals
    last = _cells(f"{totals.users} users", "", totals, "")
    more = f"... and {len(users) - limit} more (aimport report --json)" if len(users) > limit else ""
    _write(RESULTS, rows, last, more, out, out.isatty() if terminal is None else terminal)
    if totals.damages:
        out.write(f"{totals.damages} damages of sources: damages.jsonl of the run names each\n")


def write_verified(verified: Sequence[Verified], totals: Verified, out: TextIO, *, limit: int = 50) -> None:
    """What `aimport verify` found, those that need a look first."""
    users = sorted(verified, key=lambda each: (each.status == "done", not each.differs))
    rows = [_checked(printable(each.user), each.status, each, printable(each.error or "")) for each in users[:limit]]
    last = _checked(f"{len(verified)} users", "", totals, "")
    more = f"... and {len(users) - limit} more (aimport verify --json)" if len(users) > limit else ""
    _write(CHECKED, rows, last, more, out, out.isatty())


def write_stages(rows: Sequence[Sequence[str]], out: TextIO) -> None:
    """What the stages of a run took, those that held it up most first: names on the left, numbers on the right."""
    lines = [HEADINGS, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    for line in lines:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.write("  ".join(cells).rstrip() + "\n")


def _checked(name: str, status: str, counts: Verified, error: str) -> tuple[str, ...]:
    status = "differs" if status == "done" and counts.differs else status
    numbers = (
        counts.checked, counts.equal, counts.line_ends, counts.altered.total(), counts.missing, counts.doubled,
        counts.extra, counts.read,
    )  # fmt: skip
    return (name, status, *map(str, numbers), error)


def _write(
    columns: Columns, rows: Sequence[Sequence[str]], last: Sequence[str], more: str, out: TextIO, terminal: bool
) -> None:
    if terminal:
        _write_rich(columns, rows, last, more, out)
    else:
        _write_plain(columns, rows, last, more, out)


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


def _write_plain(columns: Columns, rows: Sequence[Sequence[str]], last: Sequence[str], more: str, out: TextIO) -> None:
    table = [columns.headings, *rows, last]
    widths = [max(len(row[column]) for row in table) for column in range(len(columns.headings))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if column in columns.numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if more:
        lines.insert(-1, more)
    encoding = out.encoding or "utf-8"
    out.write("".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace").decode(encoding))


def _write_rich(columns: Columns, rows: Sequence[Sequence[str]], last: Sequence[str], more: str, out: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headings = columns.headings
    shown = [column for column in range(len(headings) - 1) if column not in columns.hidden or last[column] != "0"]
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    for column in shown:
        justify: Literal["left", "right"] = "right" if column in columns.numbers else "left"
        table.add_column(headings[column], footer=Text(last[column]), justify=justify, no_wrap=column > 0)
    styles = {"done": "green", "rejects": "yellow", "stopped": "yellow", "differs": "yellow"}
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
