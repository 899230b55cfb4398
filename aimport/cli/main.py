"""The command group and the one place where failures become exit codes.

Usage errors are 64, our own errors carry theirs, anything else is a bug: 70, one line, the
trace only with -D.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import click

from aimport import __version__
from aimport.cli.call import Globals, Start, tell
from aimport.errors import AimportError, UsageError
from aimport.logs import Form, set_up_logging

COMMANDS: Final = {
    "import": "import_:command",
    "plan": "plan:command",
    "check": "check:command",
    "resume": "resume:command",
    "verify": "verify:command",
    "report": "report:command",
    "runs": "runs:command",
    "users": "users:command",
    "bench": "bench:command",
    "demo": "demo:command",
}

HELP: Final = {
    "import": "Import mail of one, many or all users.",
    "plan": "Show what an import would do; touch nothing.",
    "check": "Log in everywhere and look what an import would stumble over; write nothing.",
    "resume": "Go on with an interrupted or partly failed run.",
    "verify": "Hold the destination against the journal of a run; write nothing.",
    "report": "Summary of a run.",
    "runs": "The runs this machine knows, newest first.",
    "users": "Check a user list, of any form; convert it to the canonical one.",
    "bench": "How fast an import is: on this machine, or with your own servers.",
    "demo": "The main job on generated mail: 20 users, Maildir to Maildir, no server.",
}


class LazyGroup(click.Group):
    """Imports a command's module when it is called, so that `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command = getattr(importlib.import_module(f"aimport.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(HELP.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aimport")
@click.option("-c", "config", metavar="FILE", help="Settings (TOML); default ./aimport.toml, then the XDG directory.")
@click.option("-o", "overrides", metavar="KEY=VALUE", multiple=True, help="One setting; repeatable.")
@click.option("-v", "verbose", is_flag=True, help="Log what is done.")
@click.option("-D", "debug", is_flag=True, help="Log everything, without secrets.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def cli(
    ctx: click.Context,
    config: str | None,
    overrides: tuple[str, ...],
    verbose: bool,
    debug: bool,
    log_format: Form,
) -> None:
    """Batch mail import for many users at once: what doveadm import does, for any server."""
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    if not (isinstance(ctx.obj, Start) and ctx.obj.resume):
        set_up_logging(level, log_format)
    start = ctx.obj if isinstance(ctx.obj, Start) else Start()
    ctx.obj = Globals(config=config, overrides=overrides, start=start, level=level, form=log_format)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its exit code; never a traceback without -D."""
    debug = "-D" in arguments
    _stop_on_signals()
    _open_what_is_closed()
    code = 75  # a plan or list that nobody read to its end
    try:
        code = _run(arguments, debug)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our stdout is gone; point it elsewhere so that the interpreter's flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _stop_on_signals() -> None:
    """SIGTERM and SIGHUP end us as SIGINT does, where nobody has them ignored (nohup); the second one at once.

    While a run works `runners.local` has them.
    """
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    ]

    def stop(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, stop)


def _open_what_is_closed() -> None:
    """Standard streams that the caller closed become the null device: a report to nobody is no error."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
            setattr(sys, name, open(number, mode, closefd=False))


def _run(arguments: Sequence[str], debug: bool) -> int:
    try:
        code = cli.main(
            args=list(arguments), prog_name="aimport", standalone_mode=False, obj=Start(typed=tuple(arguments))
        )
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return UsageError.exit_code
    except (click.Abort, KeyboardInterrupt):
        tell("aimport: stopped")
        return 130
    except AimportError as error:
        tell(f"aimport: {error}")
        return error.exit_code
    except BrokenPipeError:
        raise
    except SystemExit:  # click's word for a pipe that nobody reads, with a code of its own
        raise BrokenPipeError from None
    except Exception as error:
        if debug:
            raise
        tell(f"aimport: internal error: {type(error).__name__}; please report it, -D shows the trace")
        return 70
    return code if isinstance(code, int) else 0
