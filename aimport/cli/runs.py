"""aimport runs"""

from __future__ import annotations

import click

from aimport.cli.options import JOURNAL
from aimport.cli.work import journal_root


@click.command("runs")
@JOURNAL
def command(journal: str | None) -> int:
    """The runs this machine knows, newest first: name, when it began, state, command line."""
    import shlex

    from aimport.journal import runs
    from aimport.report import printable

    for info in runs(journal_root(journal)):
        state = f"running ({info.live})" if info.live else "finished" if info.finished else "unfinished"
        if info.damage:
            state = f"damaged: {info.damage}"
        print(f"{info.run}  {info.created}  {state:<10}  {printable(shlex.join(info.arguments.argv))}")
    return 0
