"""What became of each user, what it sums up to, and the exit code that follows.

    UserResult... ──▶ Totals, exit_code ──▶ RunReport ──▶ JSON (schema 1), table (`report`)

Pure: knows neither journal nor terminal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aimport.errors import Status

SCHEMA = 1
WORSE: Final[tuple[Status, ...]] = ("done", "rejects", "quota", "refused", "failed", "stopped")
"""From the best to the worst."""


def _balanced(result: UserResult | Totals) -> bool:
    accounted = result.imported + result.present + sum(result.skipped.values()) + sum(result.rejected.values())
    return result.found == accounted


def _counts(result: UserResult | Totals) -> dict[str, object]:
    """The keys that a user and the totals share, in the order of the documentation."""
    dates = {"dates": dict(result.dates)} if result.dates else {}
    damages = {"damages": result.damages} if result.damages else {}
    return {
        "found": result.found,
        "imported": result.imported,
        "present": result.present,
        "skipped": sum(result.skipped.values()),
        "rejected": sum(result.rejected.values()),
        "altered": result.altered,
        "maybe_duplicate": result.maybe_duplicate,
        "octets": result.octets,
        "seconds": round(result.seconds, 3),
        "reasons": {"skipped": dict(result.skipped), "rejected": dict(result.rejected)},
        **dates,
        **damages,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class UserResult:
    """One user over all attempts and resumes of a run: committed earlier counts as imported.

    `skipped` and `rejected` count messages by reason. `octets` are those of the imported. `dates` counts the imported
    whose INTERNALDATE is a guess, by what it was taken from: the source kept none. Of a process that was killed they
    are lost.
    """

    user: str
    status: Status
    found: int = 0
    imported: int = 0
    present: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    altered: int = 0
    maybe_duplicate: int = 0
    octets: int = 0
    seconds: float = 0.0
    error: str | None = None
    dates: Mapping[str, int] = field(default_factory=dict)
    damages: int = 0
    """Damages of the source that mail was taken from all the same: lines of `damages.jsonl`."""
    runs: int = 1
    """Of a report over several runs (`together`): in how many of them the user is."""
    unknown: bool = False
    """The user is not known (`NoSuchUser`): 67 when it is the only one. Not in the JSON, as the next two."""
    bug: bool = False
    """An unforeseen exception ended the user: 70."""
    mailbox_missing: bool = False
    """All that failed are mailboxes named in the query that do not exist: 68 instead of 75."""

    @property
    def balanced(self) -> bool:
        """Whether every message found is accounted for. When not, it is a bug."""
        return _balanced(self)

    def to_json(self) -> dict[str, object]:
        """The user as the report shows it."""
        runs = {"runs": self.runs} if self.runs > 1 else {}
        return {"user": self.user, "status": self.status, **_counts(self), "error": self.error, **runs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over users. `seconds` is the time spent on users, not the time that passed."""

    users: int
    found: int
    imported: int
    present: int
    skipped: Mapping[str, int]
    rejected: Mapping[str, int]
    altered: int
    maybe_duplicate: int
    octets: int
    seconds: float
    dates: Mapping[str, int] = field(default_factory=dict)
    damages: int = 0

    @classmethod
    def of(cls, results: Iterable[UserResult]) -> Totals:
        skipped: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        dates: Counter[str] = Counter()
        users = found = imported = present = altered = maybe_duplicate = octets = damages = 0
        seconds = []
        for result in results:
            users += 1
            found += result.found
            imported += result.imported
            present += result.present
            altered += result.altered
            maybe_duplicate += result.maybe_duplicate
            octets += result.octets
            damages += result.damages
            seconds.append(result.seconds)
            skipped.update(result.skipped)
            rejected.update(result.rejected)
            dates.update(result.dates)
        return cls(
            users=users,
            found=found,
            imported=imported,
            present=present,
            skipped=dict(skipped),
            rejected=dict(rejected),
            altered=altered,
            maybe_duplicate=maybe_duplicate,
            octets=octets,
            seconds=math.fsum(seconds),
            dates=dict(dates),
            damages=damages,
        )

    @property
    def balanced(self) -> bool:
        return _balanced(self)

    def to_json(self) -> dict[str, object]:
        return _counts(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run as it is shown: `exit` is the code the command ends with."""

    run: str
    users: Sequence[UserResult]
    exit: int
    stages: Mapping[str, object] | None = None
    """What held it up (`stages.Stages.to_json`), of all processes that worked; None: nobody knows."""

    @property
    def totals(self) -> Totals:
        return Totals.of(self.users)

    def to_json(self) -> dict[str, object]:
        """The document of `--json`, schema 1."""
        return {
            "schema": SCHEMA,
            "run": self.run,
            "users": [result.to_json() for result in self.users],
            "totals": self.totals.to_json(),
            "exit": self.exit,
            **({} if self.stages is None else {"stages": dict(self.stages)}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """A run that was begun, with its results; runs of one `job` try the same once more."""

    run: str
    job: str
    users: Sequence[UserResult]


def together(runs: Iterable[PastRun]) -> list[UserResult]:
    """Several runs as one, given from the oldest to the newest: each user once, in the order they first appear.

    Counts are summed: a message that two runs imported is at the destination twice. How a user stands is what the
    newest run of each job says, and of several jobs the worst: a later run mends what failed in an earlier one of the
    same job, not what another job left.
    """
    rows: dict[str, dict[str, tuple[str, list[UserResult]]]] = {}
    for each in runs:
        for result in each.users:
            jobs = rows.setdefault(result.user, {})
            _, before = jobs.get(each.job, ("", []))
            jobs[each.job] = each.run, [*before, result]
    return [_one_of(jobs) for jobs in rows.values()]


def _one_of(jobs: Mapping[str, tuple[str, list[UserResult]]]) -> UserResult:
    every = [result for _, results in jobs.values() for result in results]
    if len(every) == 1:
        return every[0]
    newest = [(run, results[-1]) for run, results in jobs.values()]
    errors = [f"run {run}: {result.error}" for run, result in newest if result.error]
    totals = Totals.of(every)
    return UserResult(
        user=every[0].user,
        status=max((result.status for _, result in newest), key=WORSE.index),
        found=totals.found,
        imported=totals.imported,
        present=totals.present,
        skipped=totals.skipped,
        rejected=totals.rejected,
        altered=totals.altered,
        maybe_duplicate=totals.maybe_duplicate,
        octets=totals.octets,
        seconds=totals.seconds,
        error="; ".join(errors) or None,
        dates=totals.dates,
        damages=totals.damages,
        runs=len(every),
        unknown=all(result.unknown for _, result in newest),
        bug=any(result.bug or not result.balanced for result in every),
        mailbox_missing=all(result.mailbox_missing for _, result in newest if result.status == "failed")
        and any(result.mailbox_missing for _, result in newest),
    )


@dataclass(slots=True, kw_only=True)
class Verdict:
    """The exit code of any number of users, of whom none is kept. `bug` and `mailbox_missing` add to what they say."""

    bug: bool = False
    mailbox_missing: bool = False
    users: int = field(init=False, default=0)
    _refused: int = field(init=False, default=0)
    _unfinished: int = field(init=False, default=0)
    _quota: int = field(init=False, default=0)
    _rejects: int = field(init=False, default=0)
    _unknown: bool = field(init=False, default=False)

    def add(self, result: UserResult) -> None:
        self.users += 1
        self.bug = self.bug or result.bug or not result.balanced
        self.mailbox_missing = self.mailbox_missing or result.mailbox_missing
        self._unknown = self._unknown or result.unknown
        self._refused += result.status == "refused"
        self._unfinished += result.status == "stopped" or (result.status == "failed" and not result.mailbox_missing)
        self._quota += result.status == "quota"
        self._rejects += result.status == "rejects" or sum(result.rejected.values()) > 0

    def code(self, *, single_user: bool, stopped: bool) -> int:
        """The code that says what is left to do: 67 (single user), then 70, 130, 75, 73, 77, 68, 65, 0.

        A user counts once: over quota under 73, refused under 77 when all users are and under 75
        when not. `single_user`: the run was asked for one user by name.
        """
        if single_user and self.users == 1 and self._unknown:
            return 67
        if self.bug:
            return 70
        if stopped:
            return 130
        if self._unfinished or 0 < self._refused < self.users:
            return 75
        if self._quota:
            return 73
        if self._refused:
            return 77
        if self.mailbox_missing:
            return 68
        return 65 if self._rejects else 0


def exit_code(
    results: Iterable[UserResult],
    *,
    single_user: bool,
    stopped: bool,
    bug: bool = False,
    mailbox_missing: bool = False,
) -> int:
    """The code of these users (`Verdict`)."""
    verdict = Verdict(bug=bug, mailbox_missing=mailbox_missing)
    for result in results:
        verdict.add(result)
    return verdict.code(single_user=single_user, stopped=stopped)
