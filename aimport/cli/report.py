"""aimport report"""

from __future__ import annotations

import sys

import click

from aimport.cli.options import JOURNAL, not_yet
from aimport.cli.work import journal_root, print_json, read_run


@click.command("report")
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@JOURNAL
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--html", metavar="FILE", callback=not_yet, expose_value=False, hidden=True)
@click.option("--manifest", metavar="FILE", callback=not_yet, expose_value=False, hidden=True)
def command(runs: tuple[str, ...], journal: str | None, as_json: bool) -> int:
    """Summary of a run (default: the newest), or of several runs together. Exits 0 whatever the run ended with."""
    from aimport.report import write_table

    report = read_run(journal_root(journal), runs)
    if as_json:
        print_json(report.to_json())
    else:
        write_table(report, sys.stdout)
    return 0
