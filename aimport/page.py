"""A report as one HTML file for a browser that is offline: no script, nothing from outside. Pure.

    RunReport, Origin of each run, Handed... ──▶ run_page ──▶ text of the file

The file is also well-formed XML. Its policy (CSP) forbids everything but its own style, so that even a text that came
through here unescaped could not act; none does: `plots.text` is the one way for a text into the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from aimport import __version__
from aimport.plots import Bar, Tone, bars, clock, legend, rate, text
from aimport.progress import size
from aimport.results import RunReport, Totals, UserResult

SHOWN_USERS: Final = 1000
"""Rows of the table of users: a browser is slow with 100,000."""
SHOWN_REASONS: Final = 20
PARTS: Final = 120
PART_S: Final = 0.25
"""Of a plot over time: so many parts, or fewer that are so long."""
PAUSE_S: Final = 300.0  # arbitrary
"""When nothing was handed over for longer than this, and than a tenth of the rest, the time is left out of the plot."""
EXITS: Final[Mapping[int, str]] = {
    0: "every selected message is at its destination",
    65: "done, but some messages were rejected",
    67: "the user is not known",
    68: "a mailbox named in the query does not exist",
    70: "a bug: please report it",
    73: "quota full for some users",
    75: "some users are unfinished: aimport resume",
    77: "permission or login refused for every user",
    130: "stopped",
}
TONES: Final[Mapping[str, Tone]] = {
    "done": "good",
    "rejects": "warn",
    "stopped": "warn",
    "quota": "bad",
    "refused": "bad",
    "failed": "bad",
}

STYLE: Final = """
:root { --ink: #1d2433; --soft: #5b6475; --line: #d9dee7; --paper: #fff; --card: #f5f7fa;
  --main: #2f6fde; --good: #23875a; --warn: #b7791f; --bad: #c8372d; --dim: #a3adbd; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #323a48; --paper: #151a22;
  --card: #1e2530; --main: #6fa0f5; --good: #4fb985; --warn: #dba54a; --bad: #ef7268; --dim: #5d6878; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.25rem 0 .75rem; }
p { margin: .25rem 0 .75rem; } .soft { color: var(--soft); }
code { font: .87em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0 .75rem; padding: 0; list-style: none; }
.tiles li { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.35rem; font-weight: 600; line-height: 1.3; white-space: nowrap; }
.tiles span { color: var(--soft); font-size: .85rem; }
.verdict { border-left: .3rem solid var(--dim); background: var(--card); border-radius: .25rem; padding: .6rem .9rem; }
.verdict.good { border-color: var(--good); } .verdict.warn { border-color: var(--warn); }
.verdict.bad { border-color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } td.number, th.number { text-align: right;
  white-space: nowrap; }
tfoot td { font-weight: 600; border-bottom: 0; } td.words { overflow-wrap: anywhere; min-width: 12rem; }
tr.note td { padding: 0 .6rem .4rem 1.4rem; color: var(--soft); overflow-wrap: anywhere; }
tr:has(+ tr.note) td { border-bottom: 0; }
td.good { color: var(--good); } td.warn { color: var(--warn); } td.bad { color: var(--bad); }
svg.plot { display: block; width: 100%; height: auto; font-size: 12px; overflow: visible; }
svg text { fill: var(--ink); } svg text.tick { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--line); } svg .break { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
svg .area { fill: var(--main); opacity: .8; } svg .curve { fill: none; stroke-width: 2; }
svg rect.main, svg circle.main { fill: var(--main); } svg path.main { stroke: var(--main); }
svg rect.good, svg circle.good { fill: var(--good); } svg path.good { stroke: var(--good); }
svg rect.warn, svg circle.warn { fill: var(--warn); } svg path.warn { stroke: var(--warn); }
svg rect.bad, svg circle.bad { fill: var(--bad); } svg path.bad { stroke: var(--bad); }
svg rect.dim, svg circle.dim { fill: var(--dim); } svg path.dim { stroke: var(--dim); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: .5rem 0;
  font-size: .87rem; }
.swatch { display: inline-block; width: .75rem; height: .75rem; border-radius: .15rem; margin-right: .4rem; }
.swatch.main { background: var(--main); } .swatch.good { background: var(--good); }
.swatch.warn { background: var(--warn); } .swatch.bad { background: var(--bad); }
.swatch.dim { background: var(--dim); }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media print { body { max-width: none; padding: 0; } .tiles li, .verdict { border: 1px solid var(--line); } }
"""
POLICY: Final = (
    "default-src 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode("ascii")
    + "'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How one run of a report was begun."""

    run: str
    created: str
    """ISO 8601 UTC."""
    command: str
    """As it was typed, without secrets; "": not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How messages went out over time, in equal parts; long pauses are left out."""

    span_s: float
    messages: Sequence[int]
    octets: Sequence[int]
    pauses: Sequence[tuple[float, float]]
    """Where, in seconds from the beginning without pauses, and how long."""

    @classmethod
    def of(cls, moments: Iterable[tuple[int, int, int]]) -> Pace | None:
        """From microseconds, messages and octets of batches in any order; None: there were too few to tell."""
        ordered = sorted(moments)
        if len(ordered) < 2 or ordered[0][0] == ordered[-1][0]:
            return None
        gaps = [later[0] - earlier[0] for earlier, later in pairwise(ordered)]
        work_us = sum(gap for gap in gaps if gap <= PAUSE_S * 1e6)
        least_us = max(PAUSE_S * 1e6, work_us / 10)
        at_us, left_out, pauses = 0, 0, []
        places = [0]
        for gap in gaps:
            if gap > least_us:
                pauses.append((at_us / 1e6, gap / 1e6))
                left_out += gap
            else:
                at_us += gap
            places.append(at_us)
        if not at_us:
            return None
        parts = min(PARTS, max(2, int(at_us / 1e6 / PART_S)))
        counts, sums = [0] * parts, [0] * parts
        for place, (_, messages, octets) in zip(places, ordered, strict=True):
            part = min(place * parts // at_us, parts - 1)
            counts[part] += messages
            sums[part] += octets
        return cls(span_s=at_us / 1e6, messages=counts, octets=sums, pauses=pauses)


def run_page(report: RunReport, origins: Sequence[Origin], pace: Pace | None) -> str:
    """The page of a run, or of several as one."""
    totals = report.totals
    title = f"aimport report: {', '.join(each.run for each in origins)}"
    body = [
        f"<h1>{text('Import report' if len(origins) == 1 else f'Import report over {len(origins)} runs')}</h1>",
        _origins(origins),
        _verdict(report, totals),
        _tiles(report, totals),
        _statuses(report),
        _over_time(pace),
        stage_breakdown(report.stages),
        _reasons(totals),
        _users(report, totals),
    ]
    return document(title, body)


def document(title: str, body: Sequence[str]) -> str:
    """A whole page; `body` is markup."""
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en">\n<head>\n<meta charset="utf-8" />\n'
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        '<meta name="referrer" content="no-referrer" />\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<footer>{text(f'aimport {__version__}')}</footer>\n</body>\n</html>\n"
    )


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """Figures with what they count."""
    return f'<ul class="tiles">{"".join(f"<li><b>{text(b)}</b><span>{text(a)}</span></li>" for a, b in items)}</ul>'


def verdict(words: str, tone: Tone) -> str:
    return f'<p class="verdict {tone}">{text(words)}</p>'


Cell = str | tuple[str, str]


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, numbers: range, last: Sequence[str] = ()) -> str:
    """Rows of texts, or of texts with their class; the columns in `numbers` stand on the right.

    A row of one text is a note to the row above it, as wide as the table.
    """

    def cell(column: int, word: Cell, kind: str = "td") -> str:
        said, class_ = word if isinstance(word, tuple) else (word, "number" if column in numbers else "")
        return f'<{kind} class="{class_}">{text(said)}</{kind}>' if class_ else f"<{kind}>{text(said)}</{kind}>"

    head = "".join(cell(column, heading, "th") for column, heading in enumerate(headings))

    def line(row: Sequence[Cell]) -> str:
        if len(row) == 1 < len(headings):
            return f'<tr class="note"><td colspan="{len(headings)}">{text(str(row[0]))}</td></tr>\n'
        return f"<tr>{''.join(cell(*pair) for pair in enumerate(row))}</tr>\n"

    body = "".join(map(line, rows))
    foot = f"<tfoot><tr>{''.join(cell(*pair) for pair in enumerate(last))}</tr></tfoot>" if last else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>{foot}</table></div>'


def count(number: int) -> str:
    """For people: digits in groups of three."""
    return f"{number:,}"


def stage_breakdown(stages: Mapping[str, object] | None) -> str:
    """What the stages of a run held up, from `"stages"` of a report; "" where nobody measured them."""
    if stages is None:
        return ""
    listed = stages.get("stages")
    rows = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    seconds_of = {f"{each['stage']} {each['host']}".strip(): float(each["held"]) for each in rows}
    held = sorted(((name, held_s) for name, held_s in seconds_of.items() if held_s >= 0.005), key=lambda item: -item[1])
    total = sum(seconds for _, seconds in held)
    if not total:
        return ""
    found = stages.get("limited_by")
    said = ""
    if isinstance(found, dict):
        place = f" {found['host']}" if found["host"] else ""
        words = f"Limited by {found['stage']}{place} ({float(found['share']):.0%}): {found['advice']}"
        said = verdict(words, "warn")
    plot = bars(
        [
            Bar(label=name, value=seconds, shown=f"{seconds:.{1 if seconds >= 1 else 2}f} s, {seconds / total:.0%}")
            for name, seconds in held[:SHOWN_REASONS]
        ],
        title="Seconds that the senders stood still for each stage, over all lanes",
    )
    return (
        "<h2>Where the time went</h2>"
        '<p class="soft">Seconds that the senders stood still for each stage, over all connections.</p>'
        f"{plot}{said}"
    )


def _origins(origins: Sequence[Origin]) -> str:
    if len(origins) == 1:
        [one] = origins
        command = f"<p><code>{text(one.command)}</code></p>" if one.command else ""
        return f'<p class="soft">{text(f"Run {one.run}, begun {one.created}")}</p>{command}'
    rows = [(each.run, each.created, (each.command, "words")) for each in origins]
    return (
        '<p class="soft">A user who is in several runs is one line: counts are summed, the status is what the newest '
        "run of each job says.</p>" + table(("run", "begun", "command"), rows, numbers=range(0))
    )


def _verdict(report: RunReport, totals: Totals) -> str:
    tone: Tone = "good" if report.exit == 0 else "warn" if report.exit in (65, 130) else "bad"
    words = f"Exit code {report.exit}: {EXITS.get(report.exit, 'see the documentation')}."
    if not totals.balanced:
        words += " The accounting does not add up."
    return verdict(words, tone)


def _tiles(report: RunReport, totals: Totals) -> str:
    done = sum(result.status == "done" for result in report.users)
    items = [
        ("users", count(totals.users)),
        ("users done", count(done)),
        ("messages found", count(totals.found)),
        ("imported", count(totals.imported)),
        ("present before", count(totals.present)),
        ("skipped", count(sum(totals.skipped.values()))),
        ("rejected", count(sum(totals.rejected.values()))),
        ("octets imported", size(totals.octets)),
    ]
    if totals.altered:
        items.append(("repaired", count(totals.altered)))
    if totals.maybe_duplicate:
        items.append(("perhaps twice", count(totals.maybe_duplicate)))
    if totals.damages:
        items.append(("damages of sources", count(totals.damages)))
    return tiles(items)


def _statuses(report: RunReport) -> str:
    counts = Counter(result.status for result in report.users)
    if len(counts) < 2:
        return ""
    items = [
        Bar(label=status, value=users, shown=count(users), tone=TONES[status]) for status, users in counts.most_common()
    ]
    return f"<h2>Users by status</h2>{bars(items, title='Users by status')}"


def _over_time(pace: Pace | None) -> str:
    if pace is None:
        return ""
    part_s = pace.span_s / len(pace.messages)
    breaks = [(at_s, f"{clock(pause_s)} nothing") for at_s, pause_s in pace.pauses]
    messages = rate(
        [number / part_s for number in pace.messages],
        span_s=pace.span_s,
        breaks=breaks,
        title="Messages a second over the run",
        unit="messages/s",
    )
    octets = rate(
        [number / part_s / 2**20 for number in pace.octets],
        span_s=pace.span_s,
        breaks=breaks,
        title="MiB a second over the run",
        unit="MiB/s",
    )
    mean = sum(pace.messages) / pace.span_s
    said = (
        f"{count(sum(pace.messages))} messages in {clock(pace.span_s)}, {mean:,.0f} a second; by when batches of what "
        f"was stored were handed over, in parts of {clock(part_s)}."
    )
    return f'<h2>Throughput over the run</h2><p class="soft">{text(said)}</p>{messages}{octets}'


def _reasons(totals: Totals) -> str:
    parts = []
    kinds: tuple[tuple[str, Mapping[str, int], Tone], ...] = (
        ("rejected", totals.rejected, "bad"),
        ("skipped", totals.skipped, "warn"),
    )
    items = []
    for what, reasons, tone in kinds:
        common = Counter(reasons).most_common()
        items += [
            Bar(label=f"{what}: {reason}", value=messages, shown=count(messages), tone=tone)
            for reason, messages in common[:SHOWN_REASONS]
        ]
        if rest := common[SHOWN_REASONS:]:
            sum_ = sum(messages for _, messages in rest)
            items.append(Bar(label=f"{what}: {len(rest)} more reasons", value=sum_, shown=count(sum_), tone=tone))
    if items:
        parts.append("<h2>Why messages were rejected or skipped</h2>")
        parts.append(bars(items, title="Messages that were rejected or skipped, by reason"))
        parts.append(legend([(what, tone) for what, reasons, tone in kinds if reasons]))
        if totals.rejected:
            parts.append('<p class="soft">Each rejected message stands in the run\'s rejects.jsonl.</p>')
    if totals.dates:
        guesses = ", ".join(f"{count(messages)} from {what}" for what, messages in sorted(totals.dates.items()))
        parts.append(f'<p class="soft">{text(f"Dates guessed, for the source keeps none: {guesses}.")}</p>')
    return "".join(parts)


def _users(report: RunReport, totals: Totals) -> str:
    users = sorted(report.users, key=lambda result: result.status == "done")
    headings = ("user", "status", "found", "imported", "present", "skipped", "rejected", "octets", "seconds")
    rows: list[Sequence[Cell]] = []
    for each in users[:SHOWN_USERS]:
        rows.append((each.user, (each.status, TONES[each.status]), *_counts(each)))
        rows += [(each.error,)] if each.error else []
    shown = table(headings, rows, numbers=range(2, 9), last=("all", "", *_counts(totals)))
    more = len(users) - SHOWN_USERS
    left = (
        f'<p class="soft">{text(f"... and {count(more)} more users, all of them done or less urgent")}: '
        "<code>aimport report --json</code></p>"
        if more > 0
        else ""
    )
    return f"<h2>Users</h2>{shown}{left}"


def _counts(counts: UserResult | Totals) -> Sequence[str]:
    return (
        count(counts.found),
        count(counts.imported),
        count(counts.present),
        count(sum(counts.skipped.values())),
        count(sum(counts.rejected.values())),
        size(counts.octets),
        f"{counts.seconds:,.1f}",
    )
