"""One run from its arguments to its report: what `import`, `resume` and `demo` share."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aimport import progress
from aimport.cli.biggest import biggest
from aimport.cli.call import Call, Globals, Start, tell
from aimport.config import Settings, load_settings
from aimport.daily import Ledger
from aimport.errors import AimportError, ConfigurationError, JournalError, UsageError
from aimport.journal import Journal, RunArguments
from aimport.limits import Limits, Reached
from aimport.model import Appended, Present, Rejected, UserJob
from aimport.pacing import Throttles
from aimport.plan import Plan, destination_of, jobs, make_plan, merged
from aimport.results import PastRun, RunReport, UserResult, exit_code, together
from aimport.stages import summed
from aimport.stores import Stores

if TYPE_CHECKING:
    from aimport.account import Run
    from aimport.cli.call import Processes
    from aimport.runners.chunks import Engine
    from aimport.runners.local import Ending

logger = logging.getLogger(__name__)

DONE = frozenset({"done"})
"""Statuses of users whom a resume passes over: what was rejected it tries again, the reason may be gone."""
FINISHED = frozenset({"done", "rejects"})
"""Statuses of users who let a run be finished."""

STAGES_SHOWN_S: Final = 5.0
"""Of a shorter run nobody asks why it took so long."""


def journal_root(given: str | None) -> Path:
    """`--journal`, else `aimport/` in the XDG state directory."""
    if given:
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "aimport"


def _ledger_file(root: Path | None) -> Path | None:
    """Where the octets of a day are kept: one place for all runs, whatever `--journal` says."""
    try:
        return journal_root(None) / "daily.sqlite"
    except RuntimeError:  # nobody knows our home
        return None if root is None else root / "daily.sqlite"


def settings_of(globals_: Globals) -> Settings:
    settings = load_settings(file=globals_.config, options=globals_.overrides)
    check_profiles(settings)
    return settings


def check_profiles(settings: Settings) -> None:
    """Looks at the server profiles that are named for all users; one in a row of the user list is its user's affair.

    Raises:
        ConfigurationError: there is none of this name, or the file is not right.
    """
    names = [name for name in (settings.profile, settings.source_profile, settings.dest_profile) if name]
    if names:
        from aimport.imap.profiles import named

        for name in names:
            named(name)


def throttles_of(limits: Limits, settings: Settings) -> Throttles:
    """The rates of a run."""
    return Throttles(
        octets_per_second=limits.limit_rate,
        messages_per_second=limits.messages_per_second,
        logins_per_second=settings.logins_per_second,
    )


def looking(call: Call, plan: Plan) -> Run:
    """For `plan` and `check`: what an import would be, with a journal in memory that nothing is written to."""
    from aimport.account import Run

    return Run(
        stores=Stores(salvage=call.salvage, throttles=throttles_of(call.limits, plan.settings)),
        journal=Journal.in_memory(),
        query=plan.query,
        order=plan.request.order,
        merge=plan.merge,
        naming=plan.naming,
        skip_existing=call.skip_existing,
        limits=call.limits,
    )


def job_identity(call: Call, settings: Settings) -> str:
    """What makes two runs the same job: source, parent, query, destination, users, and what names mailboxes.

    Not the way of merging, but for the parent that it may be: it changes nothing about what goes where, and a second
    run beside an unfinished one would import everything twice.
    """
    request, _ = merged(call.request)
    users = request.list_file if request.list_file is not None else settings.user_list
    parts = [
        request.source,
        request.parent,
        "\0".join(request.query),
        request.to or destination_of(settings),
        request.user or ("" if request.all_users or request.list_file else os.environ.get("USER", "")),
        "all" if request.all_users else "",
        os.path.abspath(users) if users not in ("", "-") else users,
        request.source_user or "",
        settings.imapc_host,
    ]
    if request.rules or request.exclude or request.special_use:
        parts += [*request.rules, "exclude", *request.exclude, "special" if request.special_use else ""]
    return hashlib.sha256("\1".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def run_import(call: Call) -> int:
    """`aimport import`: a new run."""
    settings = settings_of(call.globals)
    plan = make_plan(call.request, settings, stdin=sys.stdin.buffer, copy_list=True)
    check_watched(plan, call.processes)
    engine = engine_of(call.processes)
    if call.journal is None:
        if engine is not None:
            raise UsageError("--no-journal: several processes need a journal")
        journal = Journal.in_memory()
    else:
        arguments = RunArguments(
            argv=call.globals.start.typed,
            cwd=os.getcwd(),
            settings=tuple((name, str(value)) for name, value in settings.public().items()),
            moment=plan.moment,
        )
        # All destinations are claimed before the first is touched: the later of two runs gives way, not the earlier.
        journal = Journal.create(
            call.journal,
            job=job_identity(call, settings),
            arguments=arguments,
            again=call.again,
            identities=(job.destination.identity for job in _handed_out(plan, engine) if not job.error),
        )
    return drive(call, plan, journal, engine)


def _handed_out(plan: Plan, engine: Engine | None) -> Iterator[UserJob]:
    """All jobs, before any is begun.

    Raises:
        ConfigurationError: one holds what cannot be handed to workers elsewhere.
    """
    if engine is None or not engine.elsewhere:
        return jobs(plan)
    from aimport.runners.chunks import refuse_literals

    def checked(job: UserJob) -> UserJob:
        refuse_literals(job)
        return job

    return map(checked, jobs(plan))


def engine_of(processes: Processes) -> Engine | None:
    """Where other processes are asked for, what starts or finds them.

    Raises:
        ConfigurationError: its library is not installed; the address is wrong, or open to everybody.
    """
    if not processes.several:
        return None
    try:
        from aimport.runners import cluster
    except ModuleNotFoundError as error:
        missing = error.name or "distributed"
        raise ConfigurationError(
            f"several processes need the package {missing}, which is not installed",
            hint="pip install 'aimport[cluster]'",
        ) from None
    if processes.workers is not None:
        return cluster.LocalWorkers(processes.workers)
    return cluster.ClusterWorkers(cluster.scheduler_of(processes.cluster, processes.cluster_file))


def check_watched(plan: Plan, processes: Processes) -> None:
    """Looks whether the list can be watched, where that is asked for.

    Raises:
        UsageError: there is none in a file, or it is read for one user; several processes work on it.
    """
    from aimport.growing import Growing

    if plan.request.watch_list and processes.several:
        hint = "a resume takes up who was added"
        raise UsageError("--watch-list: several processes divide the list before they begin", hint=hint)
    if plan.request.watch_list and not Growing(plan).can_grow:
        raise UsageError("--watch-list: only a list in a file grows", hint="give it with -F FILE, and no single user")


def repeat(kept: RunArguments, globals_: Globals, act: Callable[[Call, Plan], int]) -> int:
    """Takes the command line of a run as if it were typed again, where it was typed, and does `act` with it.

    Settings are those that the run kept; `-o` of this command line overrides them.
    """
    from aimport.cli.main import cli

    def go_on(call: Call) -> int:
        stored = tuple(f"{name}={value}" for name, value in kept.settings)
        settings = load_settings(file=globals_.config or call.globals.config, options=(*stored, *globals_.overrides))
        check_profiles(settings)
        if call.request.list_file == "-" and sys.stdin.isatty():
            raise UsageError("this run's user list came from standard input", hint="give it once more: < LIST")
        # Relative dates mean what they meant when the run began, or it would lose messages on the way.
        request, moment = call.request, kept.moment or None
        return act(call, make_plan(request, settings, stdin=sys.stdin.buffer, now=moment, copy_list=True))

    try:
        os.chdir(kept.cwd)
    except OSError as error:
        raise ConfigurationError(f"{kept.cwd}: the run was begun there, and it is gone ({error.strerror})") from error
    start = Start(typed=kept.argv, resume=go_on)
    return int(cli.main(args=list(kept.argv), prog_name="aimport", standalone_mode=False, obj=start))


def drive(call: Call, plan: Plan, journal: Journal, engine: Engine | None, *, resumed: bool = False) -> int:
    """Runs the users that are not done, closes the journal, prints the report; returns the exit code."""
    from aimport.account import Run
    from aimport.growing import Growing
    from aimport.runners import local
    from aimport.runners.joining import Joining

    sizes = biggest(call.journal, journal)
    done = {result.user for result in journal.results() if result.status in DONE} if resumed else set()
    throttles = throttles_of(call.limits, plan.settings)
    run = Run(
        stores=Stores(
            fsync=call.fsync,
            link=call.link,
            salvage=call.salvage,
            throttles=throttles,
        ),
        throttles=throttles,
        journal=journal,
        query=plan.query,
        first=plan.first,
        order=call.request.order,
        limits=call.limits,
        subscribe=call.request.subscribe,
        merge=plan.merge,
        naming=plan.naming,
        skip_existing=call.skip_existing,
        repair=call.repair,
        ledger=Ledger(_ledger_file(call.journal)),
        daily_wait=plan.settings.daily_wait,
    )

    async def main() -> tuple[Ending, list[UserResult]]:
        left, shown = Growing(plan, done, sizes), progress.choose(call.progress)
        if engine is None and not journal.has_shards:
            joining = Joining(left, watch=plan.request.watch_list) if left.can_grow else None
            ending = await local.run_plan(left, run, progress=shown, joining=joining)
        else:
            from aimport.runners import chunks

            listed = plan.selection.users
            users = 1 if plan.selection.single is not None or listed is None else listed.count
            ending = await chunks.run_chunks(
                left,
                run,
                engine or chunks.Here(),
                users=users,
                progress=shown,
                level=call.globals.level,
                form=call.globals.form,
            )
        results = _results(journal)
        finished = (
            not ending.stopped
            and ending.failure is None
            and not run.gave_up
            and all(result.status in FINISHED for result in results)
        )
        try:
            await journal.close(finished=finished)
            journal.keep_stages(run.stages.to_json())
        except JournalError as failure:
            ending.failure = ending.failure or failure
        return ending, results

    ending, results = local.run_loop(main)
    code = exit_code(
        results,
        single_user=plan.selection.single is not None,
        stopped=ending.stopped,
    )
    if ending.failure is not None:
        tell(f"aimport: {ending.failure}")
        code = _with_failure(code, ending.failure)
    elif run.gave_up and code != 130:
        code = 75
    with suppress(BrokenPipeError):  # the run ended as it did, whoever listens
        report = RunReport(run=journal.run, users=results, exit=code, stages=run.stages.to_json())
        _print_report(call, report, journal, run)
        sys.stdout.flush()
    return code


def _with_failure(code: int, failure: AimportError) -> int:
    """A failure of the whole run is told by its own code unless a stronger one applies."""
    return code if code in (70, 130) else failure.exit_code


def _print_report(call: Call, report: RunReport, journal: Journal, run: Run) -> None:
    if call.as_json:
        print_json(report.to_json())
    else:
        from aimport.report import printable, write_stages, write_table

        write_table(report, sys.stdout)
        print(f"{progress.line(run.counters)}, {progress.duration(run.counters.elapsed_s)}")
        finding = run.stages.finding()
        if finding is not None and run.counters.elapsed_s >= STAGES_SHOWN_S:
            write_stages(run.stages.rows(), sys.stdout)
            print(printable(str(finding)))
    if report.totals.dates:
        guesses = ", ".join(f"{count} from {what}" for what, count in sorted(report.totals.dates.items()))
        print(f"dates guessed, for the source keeps none: {guesses}", file=sys.stderr)
    for reached in run.hosts.reached():
        tell(_shown(reached))
    if journal.directory is None:
        return
    if report.totals.rejected:
        tell(f"rejected messages: {journal.directory / 'rejects.jsonl'}")
    if report.totals.altered:
        tell(f"repaired messages: {journal.directory / 'repairs.jsonl'}")
    if report.totals.damages:
        tell(f"damages of sources: {journal.directory / 'damages.jsonl'}")
    if report.exit not in (0, 70):
        tell(f"to go on: aimport resume {report.run}")


def _shown(reached: Reached) -> str:
    """What a run has found out of a host, for the next one."""
    name = f"host {reached.host}: {reached.connections} of {reached.most} connections were in use in the end"
    if reached.connections < reached.most:
        only = f"connections_per_address = {reached.connections} in a profile of its own"
        name += f"; next time: --connections-per-host {reached.connections}, or {only}"
    return f"{name} ({reached.refused} refusals)"


def _results(journal: Journal) -> list[UserResult]:
    """Of all who began, also in an earlier process of the run."""
    return [*journal.results(), *(_so_far(journal, user) for user in journal.begun())]


def _so_far(journal: Journal, user: str) -> UserResult:
    """A user without a recorded end: what batches held so far."""
    ends = {(entry.lane.number, entry.key): entry for entry in journal.entries(user)}
    imported = [entry.fingerprint for entry in ends.values() if isinstance(entry.outcome, Appended)]
    present = sum(isinstance(entry.outcome, Present) for entry in ends.values())
    rejected = Counter(
        entry.outcome.code or "refused" for entry in ends.values() if isinstance(entry.outcome, Rejected)
    )
    unfinished = len(ends) - len(imported) - present - rejected.total()
    return UserResult(
        user=user,
        status="stopped",
        found=len(ends),
        imported=len(imported),
        present=present,
        skipped={"unfinished": unfinished} if unfinished else {},
        rejected=dict(rejected),
        octets=sum(fingerprint.size for fingerprint in imported if fingerprint is not None),
        error="no end was recorded: the run works now, or was killed (aimport resume)",
    )


def print_json(document: object) -> None:
    """One JSON document or line on stdout."""
    import msgspec

    print(msgspec.json.encode(document).decode(), flush=True)


def read_run(root: Path, names: Sequence[str]) -> RunReport:
    """Runs as they stand, for `report`; also of one that works now. No name: the newest; a name twice counts once."""
    past: list[tuple[int, PastRun]] = []
    stages: list[Mapping[str, object]] = []
    for name in dict.fromkeys(names) or (None,):
        with Journal.view(root, name) as journal:
            past.append((journal.began_us, PastRun(run=journal.run, job=journal.job, users=_results(journal))))
            stages += journal.stages()
    runs = [run for _, run in sorted(past, key=lambda each: each[0])]
    results = together(runs) if len(runs) > 1 else runs[0].users
    code = exit_code(results, single_user=False, stopped=False)
    return RunReport(run="+".join(run.run for _, run in past), users=results, exit=code, stages=summed(stages))
