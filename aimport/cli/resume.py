"""aimport resume"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import click

from aimport.cli.call import Call, Globals, Start
from aimport.cli.main import cli
from aimport.cli.options import JOURNAL


@click.command("resume")
@click.argument("run", required=False)
@JOURNAL
@click.option("--progress", type=click.Choice(["auto", "bar", "plain", "none"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the final report as one JSON document.")
@click.pass_context
def command(ctx: click.Context, /, run: str | None, journal: str | None, progress: Any, as_json: bool) -> int:
    """Go on with an interrupted or partly failed run; RUN is the newest unfinished one when it is left out.

    Repeats the run's own arguments and settings; -o before `resume` overrides a setting.
    """
    from aimport.cli.work import check_profiles, drive, journal_root
    from aimport.config import load_settings
    from aimport.errors import ConfigurationError, UsageError
    from aimport.journal import Journal
    from aimport.plan import make_plan

    globals_ = ctx.find_object(Globals)
    assert globals_ is not None  # the group sets it
    reopened = Journal.reopen(journal_root(journal).absolute(), run)
    kept = reopened.arguments

    def go_on(call: Call) -> int:
        stored = tuple(f"{name}={value}" for name, value in kept.settings)
        settings = load_settings(file=globals_.config or call.globals.config, options=(*stored, *globals_.overrides))
        check_profiles(settings)
        if call.request.list_file == "-" and sys.stdin.isatty():
            raise UsageError("this run's user list came from standard input", hint="aimport resume < LIST")
        call = dataclasses.replace(call, progress=progress, as_json=as_json, journal=Path(journal_root(journal)))
        return drive(call, make_plan(call.request, settings, stdin=sys.stdin.buffer), reopened, resumed=True)

    try:
        os.chdir(kept.cwd)
    except OSError as error:
        raise ConfigurationError(f"{kept.cwd}: the run was begun there, and it is gone ({error.strerror})") from error
    code = cli.main(
        args=list(kept.argv),
        prog_name="aimport",
        standalone_mode=False,
        obj=Start(typed=kept.argv, resume=go_on),
    )
    return int(code)
