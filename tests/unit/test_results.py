"""Results: they add up, the exit code follows from them, and the JSON is what the documentation says."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import Status
from aimport.report import write_table
from aimport.results import PastRun, RunReport, Totals, UserResult, exit_code, together

BOB = UserResult(
    user="bob@example.org",
    status="rejects",
    found=10,
    imported=5,
    present=1,
    skipped={"unfinished": 1, "vanished": 1},
    rejected={"TOOBIG": 2},
    altered=3,
    maybe_duplicate=1,
    octets=12345,
    seconds=1.23456,
)
EVE = UserResult(user="eve\x1b[2J\n", status="refused", error="login refused: [AUTHENTICATIONFAILED] \x07no\u202e")


def of(*statuses: Status) -> list[UserResult]:
    return [UserResult(user=f"user{index}", status=status) for index, status in enumerate(statuses)]


def code(
    results: list[UserResult],
    *,
    single_user: bool = False,
    stopped: bool = False,
    bug: bool = False,
    mailbox_missing: bool = False,
) -> int:
    return exit_code(results, single_user=single_user, stopped=stopped, bug=bug, mailbox_missing=mailbox_missing)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((), 0),
        (("done",), 0),
        (("done", "rejects"), 65),
        (("refused",), 77),
        (("refused", "refused"), 77),
        (("refused", "done"), 75),
        (("refused", "quota"), 75),
        (("refused", "rejects"), 75),
        (("quota",), 73),
        (("quota", "rejects", "done"), 73),
        (("quota", "failed"), 75),
        (("failed", "refused"), 75),
        (("stopped", "done"), 75),
        (("failed", "rejects"), 75),
    ],
)
def test_the_exit_code_follows_from_the_users(statuses: tuple[Status, ...], expected: int) -> None:
    assert code(of(*statuses)) == expected
    assert code(of(*reversed(statuses))) == expected


def test_the_order_of_exit_codes_is_that_of_the_documentation() -> None:
    failed, quota, rejects = of("failed", "quota", "rejects")
    unbalanced = UserResult(user="odd", status="done", found=1)
    everything = [failed, quota, rejects, unbalanced]
    assert code(everything, stopped=True, mailbox_missing=True) == 70
    assert code(of("done"), bug=True, stopped=True) == 70
    assert code([UserResult(user="odd", status="failed", bug=True)], stopped=True) == 70
    assert code(everything[:3], stopped=True, mailbox_missing=True) == 130
    assert code(everything[:3], mailbox_missing=True) == 75
    assert code(everything[1:3], mailbox_missing=True) == 73
    assert code(of("refused"), mailbox_missing=True) == 77
    assert code([rejects], mailbox_missing=True) == 68
    assert code([rejects]) == 65
    assert code([BOB]) == 65


def test_a_user_whose_only_fault_is_a_missing_mailbox_counts_under_68() -> None:
    missing = UserResult(user="bob", status="failed", mailbox_missing=True)
    assert code([missing]) == 68
    assert code([missing, *of("failed")]) == 75
    assert code([missing, *of("quota")]) == 73


def test_an_unknown_user_is_67_only_when_it_is_the_one_asked_for() -> None:
    unknown = UserResult(user="nobody", status="failed", unknown=True)
    assert code([unknown], single_user=True) == 67
    assert code([unknown]) == 75
    assert code(of("failed"), single_user=True) == 75
    assert code([unknown, *of("done")], single_user=True) == 75


def test_the_report_is_the_documented_json() -> None:
    report = RunReport(run="20261123-231501-4f3a", users=[BOB, EVE], exit=75)
    document = json.loads(json.dumps(report.to_json()))
    assert list(document) == ["schema", "run", "users", "totals", "exit"]
    keys = (
        "found", "imported", "present", "skipped", "rejected", "altered", "maybe_duplicate",
        "octets", "seconds", "reasons",
    )  # fmt: skip
    assert document == {
        "schema": 1,
        "run": "20261123-231501-4f3a",
        "users": [
            {
                "user": "bob@example.org",
                "status": "rejects",
                "found": 10,
                "imported": 5,
                "present": 1,
                "skipped": 2,
                "rejected": 2,
                "altered": 3,
                "maybe_duplicate": 1,
                "octets": 12345,
                "seconds": 1.235,
                "reasons": {"skipped": {"unfinished": 1, "vanished": 1}, "rejected": {"TOOBIG": 2}},
                "error": None,
            },
            {
                "user": EVE.user,
                "status": "refused",
                **dict.fromkeys(keys[:-2], 0),
                "seconds": 0.0,
                "reasons": {"skipped": {}, "rejected": {}},
                "error": EVE.error,
            },
        ],
        "totals": {
            "found": 10,
            "imported": 5,
            "present": 1,
            "skipped": 2,
            "rejected": 2,
            "altered": 3,
            "maybe_duplicate": 1,
            "octets": 12345,
            "seconds": 1.235,
            "reasons": {"skipped": {"unfinished": 1, "vanished": 1}, "rejected": {"TOOBIG": 2}},
        },
        "exit": 75,
    }
    assert list(document["users"][0]) == ["user", "status", *keys, "error"]
    assert list(document["totals"]) == list(keys)


COUNTS = st.dictionaries(st.sampled_from(["TOOBIG", "vanished", "unfinished", ""]), st.integers(0, 1000))


@given(
    st.lists(
        st.builds(
            UserResult,
            user=st.text(),
            status=st.just("done"),
            found=st.integers(0, 9),
            imported=st.integers(0, 9),
            present=st.integers(0, 9),
            skipped=COUNTS,
            rejected=COUNTS,
            octets=st.integers(0, 2**60),
        )
    )
)
def test_totals_are_the_sums_of_the_users(results: list[UserResult]) -> None:
    totals = Totals.of(results)
    assert totals.users == len(results)
    assert totals.octets == sum(result.octets for result in results)
    assert sum(totals.skipped.values()) == sum(sum(result.skipped.values()) for result in results)
    if all(result.balanced for result in results):
        assert totals.balanced
        assert code(results) != 70
    else:
        assert code(results) == 70


def test_the_identity_counts_every_reason() -> None:
    assert BOB.balanced
    assert not UserResult(user="bob", status="done", found=2, imported=1).balanced
    assert not UserResult(user="bob", status="done", imported=1).balanced


def table(report: RunReport, *, limit: int = 50, terminal: bool = False) -> list[str]:
    out = io.StringIO()
    write_table(report, out, limit=limit, terminal=terminal)
    return out.getvalue().splitlines()


def test_the_plain_table_has_a_line_for_each_user_and_the_totals() -> None:
    lines = table(RunReport(run="r", users=[*of("done"), BOB], exit=65))
    assert [line.split() for line in lines] == [
        ["user", "status", "found", "imported", "present", "skipped", "rejected", "octets", "seconds", "error"],
        ["bob@example.org", "rejects", "10", "5", "1", "2", "2", "12345", "1.2"],
        ["user0", "done", "0", "0", "0", "0", "0", "0", "0.0"],
        ["2", "users", "10", "5", "1", "2", "2", "12345", "1.2"],
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_table_is_cut_and_says_so(terminal: bool) -> None:
    report = RunReport(run="r", users=[*(of("done") * 70), BOB], exit=65)
    text = "\n".join(table(report, limit=5, terminal=terminal))
    assert "... and 66 more" in text
    assert "bob@example.org" in text  # users that need a look come first
    assert text.count("user") < 12


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_in_the_table_moves_the_terminal(terminal: bool) -> None:
    lines = table(RunReport(run="r", users=[EVE], exit=77), terminal=terminal)
    text = "".join(lines)
    assert text.replace("\n", "").isprintable()
    assert "[AUTHENTICATIONFAILED]" in text


def test_a_narrow_encoding_gets_codes_instead_of_an_error() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    write_table(RunReport(run="r", users=[UserResult(user="jürgen\udcff", status="done")], exit=0), out)
    out.flush()
    assert b"j\\xfcrgen\\udcff" in raw.getvalue()


def past(run: str, job: str, *users: UserResult) -> PastRun:
    return PastRun(run=run, job=job, users=users)


def test_a_user_of_several_runs_is_one_line_with_the_sums_of_all() -> None:
    first = UserResult(
        user="bob", status="failed", found=3, imported=1, skipped={"unfinished": 2}, octets=5, error="lost"
    )
    second = UserResult(user="bob", status="done", found=3, imported=2, present=1, octets=7)
    other = UserResult(user="ann", status="done", found=1, imported=1)
    bob, ann = together([past("A", "job", first), past("B", "job", second, other)])
    assert (bob.found, bob.imported, bob.present, bob.octets, bob.runs) == (6, 3, 1, 12, 2)
    assert bob.skipped == {"unfinished": 2}
    assert bob.balanced
    assert ann == other
    assert Totals.of([bob, ann]).users == 2
    assert bob.to_json()["runs"] == 2
    assert "runs" not in ann.to_json()


@pytest.mark.parametrize(
    ("jobs", "status", "error"),
    [
        (("one", "one"), "done", None),  # the later run of a job mends what failed in the earlier one
        (("one", "two"), "failed", "run A: lost"),  # another job does not
    ],
)
def test_how_a_user_stands_is_what_the_newest_run_of_each_job_says(
    jobs: tuple[str, str], status: str, error: str | None
) -> None:
    runs = [
        past("A", jobs[0], UserResult(user="bob", status="failed", error="lost")),
        past("B", jobs[1], UserResult(user="bob", status="done")),
    ]
    [bob] = together(runs)
    assert (bob.status, bob.error) == (status, error)


def test_a_bug_in_any_of_several_runs_stays_one() -> None:
    lost = UserResult(user="bob", status="done", found=1)
    twice = UserResult(user="bob", status="done", imported=1)
    [bob] = together([past("A", "job", lost), past("B", "job", twice)])
    assert bob.balanced  # the sums hide it
    assert exit_code([bob], single_user=False, stopped=False) == 70
