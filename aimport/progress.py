"""What a run shows while it works: live rows on a terminal, a plain line every 10 s elsewhere.

Reads `Counters` alone. Never more than 12 live rows: a thousand cost 428 ms a refresh (measured).
"""

from __future__ import annotations

import sys
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

import anyio

from aimport.report import printable
from aimport.tally import Counters, shown_time

if TYPE_CHECKING:
    from aimport.account import Run
    from aimport.runners.local import Progress

PLAIN_EVERY_S: Final = 10.0
BAR_EVERY_S: Final = 0.5
SLOWEST_USERS: Final = 8
SHOWN_HOSTS: Final = 3

Style = Literal["auto", "bar", "plain", "none"]


def choose(style: Style) -> Progress | None:
    """The display for `--progress`: `auto` is bars on a terminal, lines elsewhere."""
    if style == "none":
        return None
    if style == "bar" or (style == "auto" and sys.stderr.isatty()):
        return show_bars
    return show_lines


async def show_lines(run: Run) -> None:
    """One plain line every 10 s on stderr, until cancelled or nobody is there to read it."""
    since = run.stages.mark()
    with suppress(OSError):
        while True:
            await anyio.sleep(PLAIN_EVERY_S)
            finding, since = run.stages.finding(since), run.stages.mark()
            limited = f", {printable(finding.brief)}" if finding is not None else ""
            sys.stderr.write(f"{line(run.counters)}{limited}\n")
            sys.stderr.flush()


async def show_bars(run: Run) -> None:
    """A total line with rate and ETA, a line a host, the slowest users; until cancelled or the terminal is gone."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    marks = deque([run.stages.mark()], maxlen=round(PLAIN_EVERY_S / BAR_EVERY_S))
    with suppress(OSError), Live(Text(""), console=console, auto_refresh=False, transient=True) as live:
        while True:
            finding = run.stages.finding(marks[0])
            shown = [*rows(run.counters), *([f"  {printable(str(finding))}"] if finding is not None else [])]
            live.update(Text("\n".join(shown), overflow="ellipsis", no_wrap=True), refresh=True)
            await anyio.sleep(BAR_EVERY_S)
            marks.append(run.stages.mark())


def rows(counters: Counters) -> list[str]:
    """The live display: total, hosts by traffic, then the users with most left to do."""
    shown = [line(counters)]
    busiest = counters.hosts.most_common(SHOWN_HOSTS)
    shown += [f"  host {printable(host)}: {count} messages, {_rate(count, counters)}" for host, count in busiest]
    slowest = sorted(counters.running.values(), key=lambda user: user.settled - user.found)[:SLOWEST_USERS]
    shown += [f"  {printable(user.user)}: {user.settled}/{user.found}" for user in slowest]
    return shown


def line(counters: Counters) -> str:
    """The whole run in one line."""
    text = (
        f"{counters.users_done} users done, {len(counters.running)} running, "
        f"{counters.messages}/{counters.found} messages, {size(counters.octets)}, {_rate(counters.messages, counters)}"
    )
    if counters.users_failed:
        text += f", {counters.users_failed} users failed"
    if counters.waiting:
        text += f", {len(counters.waiting)} users wait, the first until {shown_time(min(counters.waiting.values()))}"
    if counters.ends:
        return f"{text}, all is done about {shown_time(max(counters.ends.values()))}"
    left = counters.found - counters.messages
    if counters.messages and left > 0:
        text += f", ETA {duration(left * counters.elapsed_s / counters.messages)} for users begun"
    return text


def _rate(messages: int, counters: Counters) -> str:
    return f"{messages / max(counters.elapsed_s, 0.001):.0f} messages/s"


def size(octets: float) -> str:
    """Octets for people, powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if octets < 1024:
            return f"{octets:.0f} {unit}" if unit == "B" else f"{octets:.1f} {unit}"
        octets /= 1024
    return f"{octets:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3:20, 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
