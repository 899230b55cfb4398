"""aimport resume"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aimport.cli.call import Call, Globals
from aimport.cli.import_ import processes
from aimport.cli.options import JOURNAL, PROCESSES, with_options

if TYPE_CHECKING:
    from aimport.plan import Plan


@click.command("resume")
@click.argument("run", required=False)
@JOURNAL
@click.option("--progress", type=click.Choice(["auto", "bar", "plain", "none"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the final report as one JSON document.")
@click.option("--salvage", is_flag=True, help="As for `import`, also where the run was begun without it.")
@with_options(PROCESSES)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    run: str | None,
    journal: str | None,
    progress: Any,
    as_json: bool,
    salvage: bool,
    workers: int | None,
    cluster: str | None,
    cluster_file: str | None,
) -> int:
    """Go on with an interrupted or partly failed run; RUN is the newest unfinished one when it is left out.

    Repeats the run's own arguments and settings; -o before `resume` overrides a setting. It may have more processes, or
    fewer, than before.
    """
    from aimport.cli.work import drive, engine_of, journal_root, repeat
    from aimport.journal import Journal

    globals_ = ctx.find_object(Globals)
    assert globals_ is not None  # the group sets it
    root = Path(journal_root(journal)).absolute()
    others = processes(workers, cluster, cluster_file)
    reopened = Journal.reopen(root, run)

    def go_on(call: Call, plan: Plan) -> int:
        salvaged = call.salvage or salvage
        call = dataclasses.replace(
            call,
            progress=progress,
            as_json=as_json,
            journal=root,
            salvage=salvaged,
            processes=others if others.given else call.processes,
        )
        return drive(call, plan, reopened, engine_of(call.processes), resumed=True)

    return repeat(reopened.arguments, globals_, go_on)
