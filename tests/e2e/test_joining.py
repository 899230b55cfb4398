"""Users who are added to the list while a run works join it; nothing else of the list changes what it does."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests import mail
from tests.e2e.test_lists import deliver
from tests.faults.forks import Done, Forks, run_forks
from tests.faults.steps import Steps

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with run_forks() as server:
        yield server


class Held:
    """A run of users `ann` and `bob` that stands still while `bob` is written, until it is let go."""

    def __init__(self, forks: Forks, folder: Path, *options: str, header: str = "") -> None:
        self.forks = forks
        self.folder = folder
        self.users = folder / "users"
        self.place = folder / "held"
        for user in ("ann", "bob", "cyd", "dan"):
            deliver(folder / "from" / user, user)
        self.write(header + "ann\nbob\n")
        steps = Steps(
            ops=("rename", "link"), at=1, deed="wait", below=str(folder / "to" / "bob"), place=str(self.place)
        )
        forks.start(self.words(*options), steps=steps, then="tests.faults.hooks:looks_often")
        self.wait_for(self.place.exists)

    def words(self, *options: str) -> list[str]:
        return [
            "import", "-F", str(self.users), *options, "--to", f"maildir:{self.folder}/to/%u", "--json",
            "--journal", f"{self.folder}/journal", f"maildir:{self.folder}/from/%u", "", "ALL",
        ]  # fmt: skip

    def write(self, content: str) -> None:
        """As an editor does: a new file in the place of the old one."""
        new = self.users.with_name("new")
        new.write_text(content)
        new.chmod(0o600)
        new.rename(self.users)

    def hang_up(self) -> None:
        os.kill(self.forks.pid, signal.SIGHUP)

    def wait_for(self, what: object) -> None:
        """Until a text was logged, or a question is answered with yes; the test's own timeout ends it."""
        while not (what() if callable(what) else str(what) in self.logged()):
            with suppress(ChildProcessError):
                os.sched_yield()

    def logged(self) -> str:
        return (self.forks._folder / "err").read_text(errors="replace")

    def end(self) -> Done:
        self.place.unlink()
        return self.forks.wait()


def statuses(done: Done) -> dict[str, str]:
    return {each["user"]: each["status"] for each in done.report["users"]}


def test_sighup_has_the_list_read_again_and_who_was_added_joins(forks: Forks, tmp_path: Path) -> None:
    held = Held(forks, tmp_path)
    with held.users.open("a") as file:
        file.write("cyd\n")
    held.hang_up()
    held.wait_for("joined=1")
    with held.users.open("a") as file:
        file.write("dan\nnobody\n")
    held.hang_up()
    held.wait_for("joined=2")
    done = held.end()
    assert done.code == 75, done.err
    assert statuses(done) == {"ann": "done", "bob": "done", "cyd": "done", "dan": "done", "nobody": "failed"}
    for user in ("ann", "bob", "cyd", "dan"):
        assert mail.in_maildir(tmp_path / "to" / user) == mail.in_maildir(tmp_path / "from" / user)


def test_who_joins_in_an_earlier_turn_has_all_the_mail_in_the_end(forks: Forks, tmp_path: Path) -> None:
    held = Held(forks, tmp_path, "--first", "SEEN", "--first", "UNSEEN")
    held.write("ann\nbob\ncyd\n")
    held.hang_up()
    held.wait_for("joined=1")
    done = held.end()
    assert (done.code, statuses(done)) == (0, {"ann": "done", "bob": "done", "cyd": "done"}), done.err
    assert done.totals["found"] == done.totals["imported"] == 3


@pytest.mark.parametrize("late", [False, True])
def test_a_watched_list_is_looked_at_until_all_users_are_done(late: bool, forks: Forks, tmp_path: Path) -> None:
    """Late: the last user ends before anybody has looked."""
    held = Held(forks, tmp_path, "--watch-list")
    held.write("ann\nbob\ncyd\n")
    if not late:
        held.wait_for("joined=1")
    done = held.end()
    assert (done.code, statuses(done)) == (0, {"ann": "done", "bob": "done", "cyd": "done"}), done.err


def test_without_being_asked_nobody_looks_but_a_resume_takes_up_who_was_added(forks: Forks, tmp_path: Path) -> None:
    held = Held(forks, tmp_path)
    held.write("ann\nbob\ncyd\n")
    done = held.end()
    assert (done.code, statuses(done)) == (0, {"ann": "done", "bob": "done"})
    again = forks.run(["resume", "--json", "--journal", f"{tmp_path}/journal"])
    assert (again.code, statuses(again)) == (0, {"ann": "done", "bob": "done", "cyd": "done"})


def test_who_is_taken_out_or_changed_is_told_and_imported_as_it_was(forks: Forks, tmp_path: Path) -> None:
    held = Held(forks, tmp_path, header="user,parent\n")
    held.write("user,parent\nbob,Elsewhere\ncyd,\n")
    held.hang_up()
    held.wait_for("joined=1")
    done = held.end()
    assert (done.code, statuses(done)) == (0, {"ann": "done", "bob": "done", "cyd": "done"})
    assert "taken out while the run works, and imported all the same: 'ann'" in done.err
    assert "changed while the run works, and imported as it was: 'bob'" in done.err
    assert {item.mailbox for item in mail.in_maildir(tmp_path / "to" / "bob")} == {"INBOX"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("ann\nbob\ncyd\na b\n", "users:4: a name with a blank"),
        ("user,dest_password\nann,x\ncyd,c4nary\n", "chmod 600"),
        (None, "cannot be read"),
    ],
)
def test_a_list_that_is_wrong_is_told_and_the_run_goes_on(
    content: str | None, told: str, forks: Forks, tmp_path: Path
) -> None:
    held = Held(forks, tmp_path)
    held.users.unlink()
    if content is not None:
        held.users.write_text(content)
        held.users.chmod(0o644)
    held.hang_up()
    held.wait_for("not taken")
    done = held.end()
    assert (done.code, statuses(done)) == (0, {"ann": "done", "bob": "done"})
    assert told in done.err and "c4nary" not in done.err


def test_a_destination_that_another_run_works_on_fails_who_joins_alone(forks: Forks, tmp_path: Path) -> None:
    held = Held(forks, tmp_path)
    with run_forks() as others:
        place = tmp_path / "other"
        steps = Steps(ops=("rename", "link"), at=1, deed="wait", below=str(tmp_path / "to" / "cyd"), place=str(place))
        words = held.words()
        words[1:3] = ["-u", "cyd"]
        others.start(words, steps=steps)
        held.wait_for(place.exists)
        held.write("ann\nbob\ncyd\ndan\n")
        held.hang_up()
        held.wait_for("joined=2")
        done = held.end()
        place.unlink()
        assert others.wait().code == 0
    assert statuses(done) == {"ann": "done", "bob": "done", "cyd": "failed", "dan": "done"}
    assert done.code == 75


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("-u bob", "only a list in a file grows"),
        ("-F -", "only a list in a file grows"),
        ("-F users -u ann", "only a list in a file grows"),
        ("-F users --workers 2", "several processes divide the list"),
    ],
)
def test_a_list_that_cannot_grow_is_not_watched(words: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann\n")
    to = ["--watch-list", "--to", f"maildir:{tmp_path}/to/%u", "--no-journal"]
    done = subprocess.run(
        [sys.executable, "-m", "aimport", "import", *words.split(), *to, f"maildir:{tmp_path}/from/%u", "", "ALL"],
        cwd=tmp_path, env=mail.environment(), input="bob\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 64
    assert f"--watch-list: {told}" in done.stderr


def test_a_terminal_that_goes_away_stops_a_run_with_a_list_too(tmp_path: Path) -> None:
    """The kernel sends SIGHUP for it: that is no wish for a reading."""
    for user in ("ann", "bob"):
        deliver(tmp_path / "from" / user, user)
    users = tmp_path / "users"
    users.write_text("ann\nbob\n")
    ours, theirs = pty.openpty()
    where = f"below='{tmp_path}/new', place='{tmp_path}/held'"
    code = "import sys, aimport.cli.import_; from aimport.cli.main import main; from tests.faults.steps import Steps;"
    code += f"Steps(ops=('rename', 'link'), at=1, deed='wait', {where}).install(); sys.exit(main(sys.argv[1:]))"
    words = [
        "-v", "import", "-F", str(users), "--to", f"maildir:{tmp_path}/new/%u", "--journal", f"{tmp_path}/journal",
        f"maildir:{tmp_path}/from/%u", "", "ALL",
    ]  # fmt: skip

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdin=theirs, stdout=log, stderr=log,
            env=mail.environment(), preexec_fn=own_terminal,
        )  # fmt: skip
    os.close(theirs)
    while not (tmp_path / "held").exists():
        assert run.poll() is None, (tmp_path / "log").read_text()
        os.sched_yield()
    os.close(ours)
    while "run stops" not in (tmp_path / "log").read_text():
        assert run.poll() is None, (tmp_path / "log").read_text()
        os.sched_yield()
    (tmp_path / "held").unlink()
    assert run.wait(60) == 130
