"""aimport verify"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aimport.cli.call import Call, Globals
from aimport.cli.options import JOURNAL

if TYPE_CHECKING:
    from aimport.journal import Journal
    from aimport.model import UserJob
    from aimport.plan import Plan
    from aimport.verify import Verified


class Percent(click.ParamType[float]):
    """A number above 0, up to 100."""

    name = "PERCENT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            percent = float(str(value).removesuffix("%"))
        except ValueError:
            percent = 0.0
        if not 0 < percent <= 100:
            self.fail(f"{value!r} is not a percentage above 0 and up to 100", param, ctx)
        return percent


class _Verify(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--deep` alone means all of it; its value only ever stands behind `=`, so that RUN is not taken for it."""
        return super().parse_args(ctx, ["--deep=100" if each == "--deep" else each for each in args])


@click.command("verify", cls=_Verify)
@click.argument("run", required=False)
@JOURNAL
@click.option(
    "--deep",
    metavar="[=PERCENT]",
    type=Percent(),
    default=None,
    help="Compare every octet, of all messages or of so many in a hundred, always the same ones.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(ctx: click.Context, /, run: str | None, journal: str | None, deep: float | None, as_json: bool) -> int:
    """Re-read the destination and hold it against the journal of RUN (default: the newest). Writes nothing.

    Counts and sizes are compared; what differs in size, and with --deep the rest, octet by octet. Exit code 65: there
    are differences; each is named.
    """
    from aimport.cli.work import journal_root, repeat
    from aimport.journal import Journal

    globals_ = ctx.find_object(Globals)
    assert globals_ is not None  # the group sets it
    with Journal.view(Path(journal_root(journal)).absolute(), run) as seen:
        return repeat(
            seen.arguments, globals_, lambda call, plan: _verify(call, plan, seen, (deep or 0.0) / 100, as_json)
        )


def _verify(call: Call, plan: Plan, journal: Journal, share: float, as_json: bool) -> int:
    from aimport.account import Run
    from aimport.cli.work import print_json, throttles_of
    from aimport.plan import jobs
    from aimport.report import printable, write_verified
    from aimport.runners import local
    from aimport.stores import Stores
    from aimport.verify import Difference, Verified, exit_code, verify_user

    run = Run(
        stores=Stores(salvage=call.salvage, throttles=throttles_of(call.limits, plan.settings)),
        journal=journal,
        query=plan.query,
        limits=call.limits,
    )
    wanted = {result.user for result in journal.results()} | set(journal.begun())
    verified: list[Verified] = []
    differences: list[Difference] = []

    def tell(difference: Difference) -> None:
        if as_json:
            differences.append(difference)
        else:
            print(printable(str(difference)))

    async def main() -> None:
        async def one(job: UserJob) -> None:
            wanted.discard(job.user)
            verified.append(await verify_user(job, run, journal, share=share, tell=tell))

        listed = (job for job in jobs(plan) if job.user in wanted)
        await local.for_each_user(listed, run, one)

    local.run_loop(main)
    for user in sorted(wanted):
        error = "the run has this user, and the user list has not: check it, or name the list of that time with -F"
        verified.append(Verified(user=user, status="failed", error=error))
    code = exit_code(verified)
    totals = Verified(user="")
    for each in verified:
        totals.add(each)
    if as_json:
        print_json(
            {
                "schema": 1,
                "run": journal.run,
                "users": [each.to_json() for each in verified],
                "totals": totals.counts(),
                "differences": [each.to_json() for each in differences],
                "exit": code,
            }
        )
    else:
        write_verified(verified, totals, sys.stdout)
    if totals.in_doubt:
        print(
            f"{totals.in_doubt} messages are in doubt and were not checked: aimport resume {journal.run}",
            file=sys.stderr,
        )
    return code
