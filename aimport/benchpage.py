"""What a bench found: as a table, as JSON (schema 1), as a page for a browser. Pure.

Trials, Compared, Finding ──▶ Findings ──▶ lines, to_json, bench_page
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aimport import __version__
from aimport.benching import Compared, Finding, Left, Scale
from aimport.page import count, document, stage_breakdown, table, tiles, verdict
from aimport.plots import Bar, Curve, Point, Tone, bars, curves, legend, text
from aimport.progress import size
from aimport.report import printable
from aimport.trial import Kind, Spread, Trial

SCHEMA: Final = 1
HEADINGS: Final = (
    *("scenario", "connections", "messages/s", "min-max", "MiB/s", "of floor"),
    *("p50 ms", "p99 ms", "CPU us", "peak RSS"),
)
TONES: Final[Mapping[Kind, Tone]] = {"main": "main", "part": "good", "own": "dim", "floor": "warn"}
MEANINGS: Final[Mapping[Kind, str]] = {
    "main": "an import",
    "part": "a part of it, or another way",
    "own": "this process alone",
    "floor": "the floor: no import",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that a bench has to say. `machine` is shown as it stands."""

    scale: Scale
    octets: int
    places: Sequence[str]
    machine: Mapping[str, str]
    trials: Sequence[Trial]
    compared: Compared
    finding: Finding | None
    left: Sequence[Left]
    error: str
    exit: int

    @property
    def floor(self) -> float | None:
        """Messages a second of the floor."""
        return next((each.rate.median for each in self.trials if each.kind == "floor"), None)

    def to_json(self) -> dict[str, object]:
        """The document of `--json`."""
        scale, found = self.scale, self.finding
        return {
            "schema": SCHEMA,
            "version": __version__,
            "machine": dict(self.machine),
            "places": list(self.places),
            "settings": {
                "messages": scale.messages,
                "octets": self.octets,
                "median": scale.median_octets,
                "seed": scale.seed,
                "rounds": scale.rounds,
                "connections": list(scale.connections),
            },
            "trials": [_trial(each, self.floor) for each in self.trials],
            "compared": {
                "messages": self.compared.messages,
                "missing": self.compared.missing,
                "unexpected": self.compared.unexpected,
            },
            "limited_by": None
            if found is None
            else {
                "scenario": found.scenario,
                "connections": found.connections,
                "limit": found.limit,
                "advice": list(found.advice),
            },
            "left": [{"place": each.place, "mailbox": each.mailbox, "error": each.why} for each in self.left],
            "error": self.error or None,
            "exit": self.exit,
        }

    def lines(self) -> list[str]:
        """For a terminal: a table, what was compared, what limits, what to set."""
        rows = [HEADINGS, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return [*lines, self.said, *self.conclusions()] if self.trials else []

    def conclusions(self) -> list[str]:
        if self.finding is None:
            return []
        return [self.finding.limit, *self.finding.advice]

    @property
    def said(self) -> str:
        """Of what was read back."""
        compared = self.compared
        if compared.equal:
            return f"{count(compared.messages)} messages were read back: each is there once, by size and SHA-256"
        return (
            f"{count(compared.messages)} messages were read back: {count(compared.missing)} of those that were sent are"
            f" missing, {count(compared.unexpected)} are there that nobody sent so"
        )

    def rows(self) -> list[tuple[str, ...]]:
        return [_row(each, self.floor) for each in self.trials]


def bench_page(found: Findings) -> str:
    """The page: how fast what was, how it grows with connections, all figures, how they came about."""
    scale = found.scale
    title = "aimport bench" + (f": {', '.join(found.places)}" if found.places else ": this machine")
    mean = found.octets // max(scale.messages, 1)
    mail = f"{count(scale.messages)} generated messages, {size(found.octets)}, {size(mean)} each in the mean"
    rounds = f"{scale.rounds} round{'s' if scale.rounds > 1 else ''}, seed {scale.seed}"
    body = [f"<h1>{text(title)}</h1>", f'<p class="soft">{text(f"{mail}; {rounds}")}</p>']
    if found.error:
        body.append(verdict(f"It ended early: {found.error}", "bad"))
    body += [verdict(f"Not taken away: {each.mailbox} at {each.place}: {each.why}", "bad") for each in found.left]
    main = [each for each in found.trials if each.kind == "main"]
    if found.finding is not None and main:
        best = next(each for each in main if each.connections == found.finding.connections)
        body.append(_tiles(best, found))
        body.append(verdict(". ".join(_sentence(each) for each in found.conclusions()) + ".", "good"))
        body += [_throughput(found.trials), _growth(found.trials), _stages(best), _answers(main)]
    if found.trials:
        body.append("<h2>All figures</h2>" + table(HEADINGS, found.rows(), numbers=range(1, len(HEADINGS))))
        body.append(verdict(f"{found.said}.", "good" if found.compared.equal else "bad"))
    machine = [(name, value) for name, value in found.machine.items()]
    body.append("<h2>Measured on</h2>" + table(("", ""), machine, numbers=range(0)))
    return document(title, body)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _tiles(best: Trial, found: Findings) -> str:
    items = [
        ("messages/s", _number(best.rate.median)),
        ("MiB/s", _number(best.mib.median)),
        ("connections", str(best.connections)),
        ("CPU us a message", _number(best.cpu_us.median)),
        ("of one processor", f"{best.busy:.0%}"),
        ("peak memory", size(best.peak_octets)),
    ]
    if found.floor:
        items.insert(2, ("of the floor", f"{best.rate.median / found.floor:.2f}"))
    p99 = best.answer_ms(0.99)
    if p99 is not None:
        items.append(("p99 of a batch, ms", _number(p99)))
    return tiles(items)


def _throughput(trials: Sequence[Trial]) -> str:
    items = [
        Bar(
            label=_name(each),
            value=each.rate.median,
            shown=f"{_number(each.rate.median)} messages/s",
            tone=TONES[each.kind],
            low=each.rate.low,
            high=each.rate.high,
        )
        for each in trials
    ]
    kinds = list(dict.fromkeys(each.kind for each in trials))
    return (
        '<h2>Throughput</h2><p class="soft">Messages a second, median of the rounds; lines from the slowest to the '
        f"fastest.</p>{bars(items, title='Messages a second by scenario')}"
        + legend([(MEANINGS[kind], TONES[kind]) for kind in kinds])
    )


def _growth(trials: Sequence[Trial]) -> str:
    """How throughput grows with connections, where there are several numbers of them."""
    lines: list[Curve] = []
    for scenario in dict.fromkeys(each.scenario for each in trials):
        of_it = sorted((each for each in trials if each.scenario == scenario), key=lambda each: each.connections)
        if len(of_it) > 1 and of_it[0].kind != "own":
            tones: tuple[Tone, ...] = ("good", "warn", "bad", "dim")
            tone: Tone = "main" if of_it[0].kind == "main" else tones[len(lines) % len(tones)]
            points = [_point(each.connections, each.rate) for each in of_it]
            lines.append(Curve(name=scenario, points=points, tone=tone))
    if not lines:
        return ""
    title = "Messages a second by connections"
    plot = curves(lines, title=title, across="connections to one account", unit="messages/s")
    return f"<h2>With more connections</h2>{plot}"


def _stages(best: Trial) -> str:
    """Without the word on what limits: the curve knows more about that than one of its points."""
    stages = best.middle.stages
    return "" if stages is None else stage_breakdown({**stages, "limited_by": None})


def _answers(main: Sequence[Trial]) -> str:
    """How long batches waited for their answers."""
    items = []
    for each in main:
        half, late = each.answer_ms(0.5), each.answer_ms(0.99)
        if half is not None and late is not None:
            shown = f"{_number(half)} ms, p99 {_number(late)} ms"
            items.append(Bar(label=_name(each), value=half, shown=shown, low=half, high=late))
    if not items:
        return ""
    return (
        '<h2>Answers</h2><p class="soft">How long a batch waits from being handed over until it is stored: the half of '
        f"them, and 99 of 100 at the end of the line.</p>{bars(items, title='Milliseconds until a batch is stored')}"
    )


def _point(x: int, spread: Spread) -> Point:
    return Point(x=x, y=spread.median, low=spread.low, high=spread.high)


def _name(trial: Trial) -> str:
    return trial.scenario if trial.kind == "floor" else f"{trial.scenario}, {trial.connections}"


def _row(trial: Trial, floor: float | None) -> tuple[str, ...]:
    rate = trial.rate
    half, late = trial.answer_ms(0.5), trial.answer_ms(0.99)
    connections = str(trial.connections) + (f" (got {trial.used})" if trial.used < trial.connections else "")
    return (
        printable(trial.scenario),
        "" if trial.kind == "floor" else connections,
        _number(rate.median),
        f"{_number(rate.low)}-{_number(rate.high)}",
        _number(trial.mib.median),
        f"{rate.median / floor:.2f}" if floor else "",
        "" if half is None or trial.kind in ("own", "floor") else _number(half),
        "" if late is None or trial.kind in ("own", "floor") else _number(late),
        _number(trial.cpu_us.median),
        size(trial.peak_octets) if trial.peak_octets else "",
    )


def _trial(trial: Trial, floor: float | None) -> dict[str, object]:
    half, late = trial.answer_ms(0.5), trial.answer_ms(0.99)
    return {
        "scenario": trial.scenario,
        "kind": trial.kind,
        "connections": trial.connections,
        "used": trial.used,
        "rounds": len(trial.rounds),
        "messages_per_second": trial.rate.to_json(),
        "mib_per_second": trial.mib.to_json(),
        "append_ms": None if half is None or late is None else {"p50": round(half, 3), "p99": round(late, 3)},
        "cpu_us_per_message": trial.cpu_us.to_json(),
        "processor": round(trial.busy, 3),
        "stages": None if trial.middle.stages is None else dict(trial.middle.stages),
        "peak_rss": trial.peak_octets or None,
        "of_floor": round(trial.rate.median / floor, 3) if floor else None,
    }


def _number(value: float) -> str:
    """For people."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
