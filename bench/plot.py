"""A result as SVG files for pages: how far aimport is ahead of its best peer, and how near its floor. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from aimport.plots import WIDTH, Bar, bars
from bench.results import Result, standing
from bench.table import path

STYLE: Final = (
    "svg{font:12px system-ui,'DejaVu Sans',sans-serif;background:#fff}text{fill:#1d2433}"
    "rect.main{fill:#2f6fde}rect.good{fill:#23875a}rect.bad{fill:#c8372d}rect.dim{fill:#a3adbd}"
    ".whisker{stroke:#1d2433;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){svg{background:#151a22}text{fill:#e6e9ef}.whisker{stroke:#e6e9ef}}"
)
NAMES: Final = 200
PEERS: Final = "bench-peers.svg"
FLOORS: Final = "bench-floors.svg"
TITLES: Final = {
    PEERS: "aimport beside its best peer: how many times as fast, by path",
    FLOORS: "aimport beside its nearest floor: how many times as fast, by path",
}


def drawn(result: Result) -> Iterator[tuple[str, str]]:
    """Names of files and what they hold; a plot without a bar is none."""
    for name, role in ((PEERS, "peer"), (FLOORS, "floor")):
        svg = bars([*_bars(result, "peer" if role == "peer" else "floor")], title=TITLES[name])
        if svg:
            yield name, _alone(svg)


def _bars(result: Result, role: Literal["peer", "floor"]) -> Iterator[Bar]:
    for route in result.routes:
        found = standing(route, role)
        if found is None:
            continue
        entry, times = found
        ahead: Literal["good", "bad"] = "good" if times.median >= 1 else "bad"
        yield Bar(
            label=f"{route.scenario}: {path(route.route)}",
            value=times.median,
            shown=f"{times.median:.2f} {entry.name.removeprefix('floor: ')}",
            tone=ahead if role == "peer" else "main",
            low=times.low,
            high=times.high,
        )


def _alone(svg: str) -> str:
    """With its own style, as an image of a page has none of the page's, and room for the names of contenders."""
    head, end, rest = svg.partition(">")
    head = head.replace(f'viewBox="0 0 {WIDTH} ', f'viewBox="0 0 {WIDTH + NAMES} ')
    return f"{head}{end}<style>{STYLE}</style>{rest}\n"
