"""`users convert` writes what `users check` reads; passwords move, nothing is overwritten, nothing is half there."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimport.config import Settings
from aimport.errors import UsageError
from aimport.lists.convert import convert
from aimport.lists.lint import Lint, shown_cells
from aimport.model import Secret, UserJob
from aimport.plan import Request, jobs, make_plan, variables_for
from aimport.secret import reveal
from aimport.users import UserRow, check_users, inspect_users
from tests.lists import CASES, ODD, Case
from tests.unit.test_lists import VALUES, cpanel_home, filled

PASSWORDS = Settings(
    source_password=Secret(kind="literal", text="pass"), dest_password=Secret(kind="literal", text="pass")
)


def planned(path: Path, case: Case, form: str | None) -> Iterator[tuple[UserJob, str, str]]:
    """Jobs with their secrets revealed."""
    request = Request(
        source=filled(case.source),
        parent="",
        query=("ALL",),
        to=None if case.to is None else filled(case.to),
        list_file=str(path),
        list_format=form,
    )
    for job in jobs(make_plan(request, PASSWORDS)):
        source, dest = (reveal(end.secret) if end.secret else "" for end in (job.source, job.destination))
        yield job, source, dest


def same(one: tuple[UserJob, str, str], other: tuple[UserJob, str, str]) -> bool:
    jobs_ = one[0], other[0]
    assert all(not job.error for job in jobs_)
    ends = [(job.user, job.parent, job.source.identity, job.destination.identity, job.source.security) for job in jobs_]
    return ends[0] == ends[1] and one[1:] == other[1:]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_a_converted_list_means_what_the_original_means(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path, VALUES)
    form = case.form if case.named else None
    out = tmp_path / "out.csv"
    users = check_users(str(path), form=form)
    done = convert(users, str(out), io.StringIO())
    assert done.users == 2
    assert "pass," not in out.read_text() and ",pass" not in out.read_text()
    before, after = list(planned(path, case, form)), list(planned(out, case, None))
    assert len(before) == len(after) == 2
    assert all(same(one, other) for one, other in zip(before, after, strict=True))
    again = tmp_path / "again.csv"
    convert(check_users(str(out)), str(again), io.StringIO())
    assert again.read_bytes() == out.read_bytes()


def write(path: Path, content: str, mode: int = 0o600) -> str:
    path.write_text(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("to_environment", [False, True])
def test_passwords_of_any_characters_come_back_from_where_they_went(
    to_environment: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quoted = [password.replace('"', '""') for password in ODD]
    content = "user,source_password,dest_password\n"
    content += "".join(f'u{number},"{password}",env:X\n' for number, password in enumerate(quoted))
    folder = tmp_path / "100% mine"
    folder.mkdir()
    out, place = folder / "out.csv", folder / "place"
    users = check_users(write(tmp_path / "users", content))
    where = {"environment": str(place)} if to_environment else {"secrets": str(place)}
    done = convert(users, str(out), io.StringIO(), **where)
    assert (done.users, done.secrets) == (len(ODD), len(ODD))
    for file in (out, *(place.iterdir() if place.is_dir() else [place])):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == (0o600 if to_environment else 0o700)
    text = out.read_text()
    assert not [password for password in ODD if len(password) > 3 and password in text]
    if to_environment:
        shell = shutil.which("sh")
        assert shell is not None
        script = [shell, "-c", f"set -a; . '{place}'; env -0"]
        ended = subprocess.run(script, env={"PATH": os.environ["PATH"]}, capture_output=True, check=True)
        said = ended.stdout.decode()
        for name, _, value in (each.partition("=") for each in said.split("\0")):
            if name.startswith("PW"):
                monkeypatch.setenv(name, value)
    out.chmod(0o644)  # references may be seen
    request = Request(source="imaps://h/", parent="", query=("ALL",), to="maildir:/x/%u", list_file=str(out))
    found = [reveal(job.source.secret) for job in jobs(make_plan(request, Settings())) if job.source.secret]
    assert found == list(ODD)


@pytest.mark.parametrize("there", ["out.csv", "out.csv.secrets", "env"])
def test_what_is_there_is_never_overwritten(there: str, tmp_path: Path) -> None:
    users = check_users(write(tmp_path / "users", "user,source_password\nbob,pw\n"))
    (tmp_path / there).mkdir()
    before = sorted(tmp_path.iterdir())
    environment = str(tmp_path / "env") if there == "env" else None
    with pytest.raises(UsageError, match=f"{there}: is there already") as caught:
        convert(users, str(tmp_path / "out.csv"), io.StringIO(), environment=environment)
    assert caught.value.exit_code == 64
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("environment", [None, "env"])
def test_a_conversion_that_fails_leaves_nothing(environment: str | None, tmp_path: Path) -> None:
    users = check_users(write(tmp_path / "users", f"user,source_password\nbob,pw\neve,{'x' * 70_000}\n"))
    place = str(tmp_path / environment) if environment else None
    with pytest.raises(UsageError, match="line 3: source_password: a line break, or more than 60 KiB"):
        convert(users, str(tmp_path / "out"), io.StringIO(), environment=place)
    assert [path.name for path in tmp_path.iterdir()] == ["users"]
    with pytest.raises(UsageError, match="cannot be written"):
        convert(users, str(tmp_path / "no" / "out"), io.StringIO())


def test_a_list_without_passwords_may_go_to_stdout_and_one_with_them_may_not(tmp_path: Path) -> None:
    shown = io.StringIO()
    convert(check_users(write(tmp_path / "users", "#c\nbob\n  eve@a.org\n")), None, shown)
    assert shown.getvalue() == "user\nbob\neve@a.org\n"
    shown = io.StringIO()
    with pytest.raises(UsageError, match="source_password is a literal password"):
        convert(check_users(write(tmp_path / "users", "user,source_password\nbob,pw\n")), None, shown)
    assert shown.getvalue() == ""


def test_names_that_need_quotes_get_them(tmp_path: Path) -> None:
    content = 'source,user\nmaildir:/x,"#bob"\n"maildir:/a,b","q""x"\n'
    out = tmp_path / "out"
    convert(check_users(write(tmp_path / "users", content)), str(out), io.StringIO())
    assert out.read_text() == 'user,source\n"#bob",maildir:/x\n"q""x","maildir:/a,b"\n'


def test_a_directory_becomes_a_list(tmp_path: Path) -> None:
    cpanel_home(tmp_path)
    out = io.StringIO()
    convert(check_users(str(tmp_path)), None, out)
    assert out.getvalue().splitlines()[0] == "user,source,mail_gid,mail_uid"
    assert len(out.getvalue().splitlines()) == 4


def lint(content: str, tmp_path: Path) -> list[tuple[str, str]]:
    found = Lint(Settings(), variables_for)
    inspect_users(write(tmp_path / "users", content), look=found.look)
    return [(f"{each.line}: {each.severity}", each.what) for each in found.findings]


def test_what_will_not_work_is_said_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOPE", raising=False)
    for name, text in (("full", "x\n"), ("empty", "")):
        write(tmp_path / name, text, 0o644)
    content = (
        "user,source,source_password,dest,mail_home\n"
        "a,imaps://h/,env:NOPE,,\n"
        "b,imaps://h/,,,\n"
        f"c,,file:{tmp_path}/none,,\n"
        f"d,,file:{tmp_path}/empty,,\n"
        "e,,file:full,,home\n"
        "f,maildir:x,,,\n"
        "g,mialdir:/x,,,\n"
        "h,maildir:/y,,maildir:/z,\n"
        "i,maildir:/y,,maildir:/z,\n"
        "j,imaps://h:x/,lit,,\n"
        "k,maildir:/fine,cmd:pass show,,/home/%u\n"
    )
    found = lint(content, tmp_path)
    words = [
        ("2: error", "env:NOPE: this environment variable is not set"),
        ("3: error", "no password to log in 'b' (set source_password)"),
        ("4: error", "No such file or directory"),
        ("5: error", "the file is empty"),
        ("5: warning", "others can read this file"),
        ("6: warning", "a relative path"),
        ("6: warning", "others can read this file"),
        ("6: error", "mail_home: does not begin with /"),
        ("7: warning", "source: a relative path"),
        ("8: error", "unknown scheme mialdir: (did you mean maildir?)"),
        ("10: warning", "source account maildir:/y is listed twice"),
        ("10: error", "destination maildir:/z is listed twice"),
        ("11: error", "the port is not a number"),
    ]
    assert [place for place, _ in found] == [place for place, _ in words]
    for (_, what), (_, expected) in zip(found, words, strict=True):
        assert expected in what


def test_a_row_is_shown_without_its_secrets() -> None:
    cells = {
        "source": "imaps://bob:env:PW@h/",
        "source_password": " c4nary",
        "dest_password": "cmd:show c4nary",
        "imapc_password": "env:PW",
        "parent": "Old",
    }
    shown = shown_cells(UserRow(user="bob", cells=cells))
    assert "c4nary" not in repr(shown)
    assert shown == {
        "source": "imaps://...@h/",
        "source_password": "*** (7 characters, with blanks around)",
        "dest_password": "cmd:...",
        "imapc_password": "env:PW",
        "parent": "Old",
    }
