"""`aimport bench` as it is typed: it measures, it compares what it reads back, it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from aimport import sample
from tests import mail
from tests.fix_courier import Courier
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import Dovecot
from tests.pages import looked_at

pytestmark = [pytest.mark.timeout(200)]

SMALL: Final = ("--messages", "40", "--median", "1K", "--rounds", "1", "--connections", "1,2")
ONE: Final = (*SMALL[:-1], "1")
LONG: Final = ("--messages", "300", "--median", "1K", "--rounds", "100")
PW: Final = {"PW": "pass", "USER": ""}


def bench(*words: str | Path, state: Path, settings: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return mail.aimport(*settings, "bench", "--journal", state, *words, env=PW, timeout_s=150)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def settings_for(server: Dovecot | Cyrus | Courier, user: str, side: str = "dest") -> tuple[str, ...]:
    return (f"-o{side}_tls_ca={server.ca_file}", f"-o{side}_user={user}", f"-o{side}_password=env:PW")


def left_in(state: Path) -> list[str]:
    """Notes of what was made and not taken away."""
    folder = state / "bench"
    return sorted(os.listdir(folder)) if folder.is_dir() else []


@pytest.fixture
def account(dovecot: Dovecot, unique_user: str) -> str:
    """A user with mail of its own, in two mailboxes, one of them with a name that bench's begin like."""
    sample.write_maildir(
        dovecot.maildir(unique_user),
        sample.account(unique_user, seed=3, messages=9, mailboxes=(("INBOX",), ("aimport-bench-mine",))),
    )
    dovecot.own(dovecot.home(unique_user))
    return unique_user


def mailboxes(server: Dovecot, user: str) -> bytes:
    """The list of mailboxes with what each holds, as the server says it."""
    said = server.doveadm("mailbox", "status", "messages uidvalidity uidnext vsize guid", "*", user=user)
    return "\n".join(sorted(said.splitlines())).encode()


def test_without_a_location_this_machine_is_measured_beside_cp(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    (tmp_path / "tmp").mkdir()
    places = {"TMPDIR": str(tmp_path / "tmp"), "XDG_STATE_HOME": str(tmp_path / "state")}
    done = mail.aimport("bench", *SMALL, "--json", "--html", page, env=places, timeout_s=100)
    assert done.returncode == 0, done.stderr
    found = told(done)
    trials = {(each["scenario"], each["connections"]): each for each in found["trials"]}
    assert {("Maildir to Maildir", 1), ("Maildir to Maildir", 2), ("cp -r and sync", 1)} < set(trials)
    for each in trials.values():
        rate = each["messages_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert each["of_floor"] == pytest.approx(
            rate["median"] / trials["cp -r and sync", 1]["messages_per_second"]["median"], rel=0.01
        )
    best = trials["Maildir to Maildir", 1]
    assert 0 < best["append_ms"]["p50"] <= best["append_ms"]["p99"]
    assert best["cpu_us_per_message"]["median"] > 0
    assert best["peak_rss"] > 10 << 20
    assert trials["Maildir to nowhere", 1]["append_ms"] is None
    assert found["compared"] == {"messages": 80, "missing": 0, "unexpected": 0}
    assert found["limited_by"]["advice"][0].startswith("set --connections-per-user ")
    seen = looked_at(page.read_text(encoding="utf-8"))
    assert not seen.acting
    assert {"Throughput", "With more connections", "Answers", "All figures"} <= set(seen.words)
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize(
    "server", ["dovecot", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cyrus", "courier"))]
)
def test_an_account_is_as_it_was_when_bench_has_ended(
    server: str, request: pytest.FixtureRequest, unique_user: str, tmp_path: Path
) -> None:
    there: Dovecot | Cyrus | Courier = request.getfixturevalue(server)
    if isinstance(there, Dovecot):
        user = request.getfixturevalue("account")
        before = mailboxes(there, user)
    else:
        user = unique_user
        there.create_user(user)
    before_mail = mail.in_imap(there.port, user, "pass")
    location = f"imap://localhost:{there.port}/"
    done = bench(location, "--yes", "--json", *SMALL, state=tmp_path, settings=settings_for(there, user))
    assert done.returncode == 0, done.stderr
    found = told(done)
    assert found["compared"] == {"messages": 80, "missing": 0, "unexpected": 0}
    name = f"imap://{user}@localhost:{there.port}"
    assert {(each["scenario"], each["connections"]) for each in found["trials"]} >= {
        (f"into {name}", 1), (f"into {name}", 2), (f"out of {name}", 2),
    }  # fmt: skip
    assert [each["used"] for each in found["trials"] if each["kind"] == "main"] == [1, 2]
    assert (found["left"], left_in(tmp_path)) == ([], [])
    assert mail.in_imap(there.port, user, "pass") == before_mail
    if isinstance(there, Dovecot):
        assert mailboxes(there, user) == before


def test_from_one_account_into_another_both_are_as_they_were(
    dovecot: Dovecot, account: str, unique_user: str, tmp_path: Path
) -> None:
    target = tmp_path / "Maildir"
    sample.write_maildir(target, sample.account("x", seed=4, messages=5))
    before = mailboxes(dovecot, account), mail.in_maildir(target), sorted(os.listdir(target))
    done = bench(
        f"imap://localhost:{dovecot.port}/", f"maildir:{target}", "--yes", "--json", *ONE,
        state=tmp_path / "state", settings=settings_for(dovecot, account, "source"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = told(done)
    main = [each for each in found["trials"] if each["kind"] == "main"]
    assert [each["scenario"] for each in main] == [f"imap://{account}@localhost:{dovecot.port} to maildir:{target}"]
    assert found["compared"]["messages"] == 2 * 40
    assert found["compared"]["missing"] == found["compared"]["unexpected"] == 0
    assert (mailboxes(dovecot, account), mail.in_maildir(target), sorted(os.listdir(target))) == before
    assert left_in(tmp_path / "state") == []


def started(dovecot: Dovecot, user: str, state: Path) -> subprocess.Popen[str]:
    """A bench that goes on for long, in the middle of its first rounds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aimport", *settings_for(dovecot, user), "bench", "--journal", str(state),
         f"imap://localhost:{dovecot.port}/", "--yes", *LONG],
        env=mail.environment(PW), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if ": into imap" in line:
            return process
    raise AssertionError(process.wait())


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_who_stops_a_bench_finds_the_account_as_it_was(
    dovecot: Dovecot, account: str, tmp_path: Path, number: signal.Signals
) -> None:
    before = mailboxes(dovecot, account)
    process = started(dovecot, account, tmp_path)
    assert mailboxes(dovecot, account) != before
    process.send_signal(number)
    out, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "takes away what it made" in said
    assert "into imap" in out  # what was measured is told
    assert mailboxes(dovecot, account) == before
    assert left_in(tmp_path) == []


def test_what_a_killed_bench_has_left_goes_with_the_next_one(
    dovecot: Dovecot, account: str, unique_user: str, tmp_path: Path
) -> None:
    """A bench of another account only tells of it."""
    before = mailboxes(dovecot, account)
    process = started(dovecot, account, tmp_path)
    process.kill()
    process.communicate()
    assert mailboxes(dovecot, account) != before
    [token] = left_in(tmp_path)
    location = f"imap://localhost:{dovecot.port}/"
    done = bench(location, "--yes", *ONE, state=tmp_path, settings=settings_for(dovecot, f"other{unique_user}"))
    assert done.returncode == 0, done.stderr
    assert f"left aimport-bench-{token}" in done.stderr
    assert mailboxes(dovecot, account) != before
    assert left_in(tmp_path) == [token]
    done = bench(location, "--yes", *ONE, state=tmp_path, settings=settings_for(dovecot, account))
    assert done.returncode == 0, done.stderr
    assert f"takes away aimport-bench-{token}" in done.stderr
    assert mailboxes(dovecot, account) == before
    assert left_in(tmp_path) == []


def test_what_a_failure_leaves_is_told_and_taken_away_later(dovecot: Dovecot, account: str, tmp_path: Path) -> None:
    """The connection is lost for good in the middle: the server's word is told, the note stays."""
    before = mailboxes(dovecot, account)
    location = f"tunnel:sh -c 'test -e {tmp_path}/closed && exit 1; exec \"$@\"' x {' '.join(dovecot.exec_command)}"
    process = subprocess.Popen(
        [sys.executable, "-m", "aimport", "bench", "-u", account, "--journal", str(tmp_path / "state"), location,
         "--yes", "--json", *LONG],
        env=mail.environment(PW), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if ": into tunnel" in line:
            break
    (tmp_path / "closed").touch()
    for pid in dovecot.imap_session_pids():
        with contextlib.suppress(ValueError):
            dovecot.kill_session(pid)
    out, said = process.communicate(timeout=150)
    assert process.returncode == 75, said
    [left] = json.loads(out)["left"]
    assert left["mailbox"].startswith("aimport-bench-")
    assert left["mailbox"] in said
    (tmp_path / "closed").unlink()
    done = bench("-u", account, location, "--yes", *ONE, state=tmp_path / "state")
    assert done.returncode == 0, done.stderr
    assert mailboxes(dovecot, account) == before


@pytest.mark.slow
def test_a_second_signal_ends_the_taking_away_and_what_is_left_is_told(
    dovecot: Dovecot, account: str, tmp_path: Path
) -> None:
    """The server does not answer any more when everything is to be taken away."""
    before = mailboxes(dovecot, account)
    location = f"tunnel:sh -c 'test -e {tmp_path}/hangs && exec cat; exec \"$@\"' x {' '.join(dovecot.exec_command)}"
    process = subprocess.Popen(
        [sys.executable, "-m", "aimport", "bench", "-u", account, "--journal", str(tmp_path / "state"), location,
         "--yes", *LONG],
        env=mail.environment(PW), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        if ": into tunnel" in line and ": into tunnel" not in said:
            (tmp_path / "hangs").touch()
            process.send_signal(signal.SIGINT)
        said += line
        if "a second signal leaves it there" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    process.communicate()
    [token] = left_in(tmp_path / "state")
    assert f"aimport-bench-{token}" in said
    (tmp_path / "hangs").unlink()
    done = bench("-u", account, location, "--yes", *ONE, state=tmp_path / "state")
    assert done.returncode == 0, done.stderr
    assert mailboxes(dovecot, account) == before


def asked(words: list[str], answer: str, env: dict[str, str]) -> tuple[int, str]:
    """The command with a terminal as its standard input; exit code and what it said on stderr."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "aimport", *words],
            env=mail.environment(env), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.write(ours, answer.encode())
        said = process.communicate(timeout=100)[1]
        return process.returncode, said
    finally:
        os.close(ours)
        os.close(theirs)


def test_nothing_is_written_before_the_answer_is_yes(tmp_path: Path) -> None:
    target = tmp_path / "Maildir"
    sample.write_maildir(target, sample.account("x", seed=4, messages=5))
    before = mail.tree(target)
    words = ["bench", "--journal", str(tmp_path / "state"), f"maildir:{target}", *ONE]
    done = mail.aimport(*words)
    assert done.returncode == 64
    assert "--yes" in done.stderr
    code, said = asked(words, "n\n", {})
    assert code == 130
    assert f"maildir:{target}" in said
    assert "40 generated messages" in said
    assert mail.tree(target) == before
    assert left_in(tmp_path / "state") == []
    code, said = asked(words, "y\n", {})
    assert code == 0, said
    assert mail.in_maildir(target).total() == 5
    assert sorted(os.listdir(target)) == sorted({path.split("/")[0] for path in before} - {"."})


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("maildir:{0}/none",), 78, "no directory"),
        (("mbox:{0}",), 78, "cannot take away"),
        (("maildir:{0}", "maildir:{0}"), 78, "both locations are"),
        (("--connections", "0"), 64, "no list"),
        (("--messages", "1000000", "--median", "1M"), 64, "fit into memory"),
        (("--html", "{0}"), 64, "a directory"),
        (("imap://bob@localhost:1/?tls=off",), 75, "localhost:1"),
        (("imap://localhost:1/?tls=off",), 64, "-u USER"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    words: tuple[str, ...], code: int, why: str, tmp_path: Path
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    shown = (word.format(folder) for word in words)
    done = bench("--yes", *shown, state=tmp_path / "state", settings=("-odest_password=env:PW",))
    assert done.returncode == code, done.stderr
    assert why in done.stderr
    assert os.listdir(folder) == []
    assert left_in(tmp_path / "state") == []
