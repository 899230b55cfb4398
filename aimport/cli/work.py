"""One run from its arguments to its report: what `import`, `resume` and `demo` share."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aimport import progress
from aimport.cli.call import Call, Globals, Start, tell
from aimport.config import Settings, load_settings
from aimport.errors import AimportError, ConfigurationError, JournalError, UsageError
from aimport.journal import Journal, RunArguments
from aimport.limits import DESCRIPTORS_LEAST, Limits, within_descriptors
from aimport.model import Appended, Present, Rejected, UserJob
from aimport.plan import Plan, destination_of, jobs, make_plan
from aimport.results import RunReport, UserResult, exit_code
from aimport.stores import Stores

if TYPE_CHECKING:
    from aimport.account import Run
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


def within_the_machine(limits: Limits) -> Limits:
    """As many users and lanes as this process may have files open for, after it has asked for all that it may have.

    Raises:
        ConfigurationError: not even one user can be imported.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS: no more than the kernel's own limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < DESCRIPTORS_LEAST:
        raise ConfigurationError(f"{allowed} open files are not enough for a run", hint="ulimit -n 1024")
    lowered = limits if allowed == resource.RLIM_INFINITY else within_descriptors(limits, allowed)
    if lowered != limits:
        logger.warning(
            "users lowered users=%d connections_per_user=%d open_files=%d; a higher limit (ulimit -n) allows more",
            lowered.users, lowered.connections_per_user, allowed,
        )  # fmt: skip
    return lowered


def job_identity(call: Call, settings: Settings) -> str:
    """What makes two runs the same job: source, parent, query, destination, users."""
    request = call.request
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
    return hashlib.sha256("\1".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def run_import(call: Call) -> int:
    """`aimport import`: a new run."""
    settings = settings_of(call.globals)
    plan = make_plan(call.request, settings, stdin=sys.stdin.buffer)
    if call.journal is None:
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
            identities=(job.destination.identity for job in jobs(plan) if not job.error),
        )
    return drive(call, plan, journal)


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
        return act(call, make_plan(call.request, settings, stdin=sys.stdin.buffer, now=kept.moment or None))

    try:
        os.chdir(kept.cwd)
    except OSError as error:
        raise ConfigurationError(f"{kept.cwd}: the run was begun there, and it is gone ({error.strerror})") from error
    start = Start(typed=kept.argv, resume=go_on)
    return int(cli.main(args=list(kept.argv), prog_name="aimport", standalone_mode=False, obj=start))


def drive(call: Call, plan: Plan, journal: Journal, *, resumed: bool = False) -> int:
    """Runs the users that are not done, closes the journal, prints the report; returns the exit code."""
    from aimport.account import Run
    from aimport.runners import local

    done = {result.user for result in journal.results() if result.status in DONE} if resumed else set()
    run = Run(
        stores=Stores(fsync=call.fsync, link=call.link, salvage=call.salvage),
        journal=journal,
        query=plan.query,
        first=plan.first,
        order=call.request.order,
        limits=call.limits,
        subscribe=call.request.subscribe,
        skip_existing=call.skip_existing,
        repair=call.repair,
    )

    async def main() -> tuple[Ending, list[UserResult]]:
        ending = await local.run_plan(_Left(plan, done), run, progress=progress.choose(call.progress))
        results = _results(journal)
        finished = (
            not ending.stopped
            and ending.failure is None
            and not run.gave_up
            and all(result.status in FINISHED for result in results)
        )
        try:
            await journal.close(finished=finished)
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


class _Left:
    """Jobs of the users that are not done, as often as asked for. A changed user list is found out here."""

    def __init__(self, plan: Plan, done: set[str]) -> None:
        self._plan = plan
        self._done = done

    def __iter__(self) -> Iterator[UserJob]:
        return (job for job in jobs(self._plan) if job.user not in self._done)


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
    if journal.directory is None:
        return
    if report.totals.rejected:
        tell(f"rejected messages: {journal.directory / 'rejects.jsonl'}")
    if report.totals.altered:
        tell(f"repaired messages: {journal.directory / 'repairs.jsonl'}")
    if report.exit not in (0, 70):
        tell(f"to go on: aimport resume {report.run}")


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
    """Runs as they stand, for `report`; also of one that works now. No name: the newest."""
    results: list[UserResult] = []
    shown: list[str] = []
    for name in names or (None,):
        with Journal.view(root, name) as journal:
            shown.append(journal.run)
            results += _results(journal)
    code = exit_code(results, single_user=False, stopped=False)
    return RunReport(run="+".join(shown), users=results, exit=code)
