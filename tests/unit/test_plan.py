"""Who is imported, from where to where; what stops the run before it starts and what only one user."""

from __future__ import annotations

import dataclasses
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from aimport.config import Settings
from aimport.errors import AimportError, ConfigurationError, NoSuchUser, UsageError, UserError
from aimport.model import Secret, UserJob
from aimport.plan import Plan, Request, Selection, choose_users, jobs, make_plan, variables_for
from aimport.query.terms import Dated
from aimport.variables import expand

CANARY = "c4nary"
REQUEST = Request(source="maildir:/old/%d/%n", parent="", query=("ALL",), to="maildir:/new/%u")
HOMES = Settings(mail_home="/home/%n")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def plan_for(settings: Settings = HOMES, /, **changes: object) -> Plan:
    return make_plan(dataclasses.replace(REQUEST, **changes), settings, environ={})  # type: ignore[arg-type]  # fields


def jobs_for(settings: Settings = HOMES, /, **changes: object) -> list[UserJob]:
    return list(jobs(plan_for(settings, **changes)))


def chosen(selection: Selection) -> list[str]:
    return [row.user for row in selection.rows()]


def choose(settings: Settings = HOMES, environ: dict[str, str] | None = None, /, **changes: object) -> list[str]:
    request = dataclasses.replace(REQUEST, **changes)  # type: ignore[arg-type]  # fields of Request
    return chosen(choose_users(request, settings, environ or {}))


# who


def test_all_users_of_the_list(path: Path) -> None:
    users = write(path, "u1@a.test\nu2@a.test\nother\n")
    everyone = ["u1@a.test", "u2@a.test", "other"]
    assert choose(list_file=users) == everyone
    assert choose(list_file=users, all_users=True) == everyone
    assert choose(Settings(user_list=users), all_users=True) == everyone
    assert choose(list_file=users, all_users=True, user="u1@a.test") == everyone


def test_a_mask_takes_those_that_match_in_any_case(path: Path) -> None:
    users = write(path, "u1@a.test\nu2@a.test\nother\n[x]\n")
    assert choose(list_file=users, user="U?@A.test") == ["u1@a.test", "u2@a.test"]
    assert choose(Settings(user_list=users), user="*") == ["u1@a.test", "u2@a.test", "other", "[x]"]
    assert choose(list_file=users, user="[x*") == ["[x]"]


def test_a_mask_that_matches_nobody_is_an_empty_plan(path: Path) -> None:
    assert jobs_for(list_file=write(path, "bob\n"), user="z*") == []


def test_one_user_of_the_list_with_its_row(path: Path) -> None:
    users = write(path, "user,dest_user\nbob,x\neve,y\n")
    selection = choose_users(dataclasses.replace(REQUEST, list_file=users, user="eve"), HOMES, {})
    assert selection.single is not None
    assert (selection.single.user, selection.single.cells) == ("eve", {"dest_user": "y"})


def test_the_list_of_the_option_wins_over_the_setting(path: Path) -> None:
    assert choose(Settings(user_list="/nonexistent"), list_file=write(path, "bob\n")) == ["bob"]


@pytest.mark.parametrize("user", ["eve", "BOB"])
def test_a_user_who_is_not_in_the_list_is_unknown(path: Path, user: str) -> None:
    users = write(path, "bob\n")
    for settings, changes in ((HOMES, {"list_file": users}), (Settings(user_list=users), {})):
        with pytest.raises(NoSuchUser, match=user) as caught:
            choose(settings, user=user, **changes)
        assert caught.value.exit_code == 67
    with pytest.raises(NoSuchUser):
        choose(Settings(user_list=users), {"USER": user})


def test_without_a_list_any_name_will_do() -> None:
    assert choose(user="anyone@anywhere") == ["anyone@anywhere"]
    assert choose(HOMES, {"USER": "me"}) == ["me"]


@pytest.mark.parametrize("changes", [{"all_users": True}, {"user": "b*"}, {"user": "b?b"}])
def test_all_and_masks_need_a_list(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="user_list") as caught:
        choose(**changes)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("environ", [{}, {"USER": ""}])
def test_without_any_user_it_is_a_usage_error(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"\$USER") as caught:
        choose(HOMES, environ)
    assert caught.value.exit_code == 64
    with pytest.raises(UsageError):
        choose(user="")


def test_a_list_that_cannot_be_read_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        choose(list_file="/nonexistent")
    with pytest.raises(UsageError):
        choose(list_file="")


# from where, to where


def test_every_user_has_its_own_source_and_destination(path: Path) -> None:
    one, two = jobs_for(list_file=write(path, "bob@a\neve@b\n"), parent="Old/%d")
    assert (one.user, one.source.path, one.destination.path, one.parent) == (
        "bob@a",
        "/old/a/bob",
        "/new/bob@a",
        "Old/a",
    )
    assert (two.user, two.source.path, two.destination.path, two.parent) == (
        "eve@b",
        "/old/b/eve",
        "/new/eve@b",
        "Old/b",
    )
    assert one.error == two.error == ""


def test_a_cell_wins_over_the_argument_which_wins_over_the_setting(path: Path) -> None:
    users = write(path, "user,source,dest,parent\nbob,memory:s,memory:d,P\neve,,,\n")
    settings = Settings(mail_location="maildir:/setting/%u")
    bob, eve = jobs_for(settings, list_file=users)
    assert (bob.source.identity, bob.destination.identity, bob.parent) == ("memory:s", "memory:d", "P")
    assert (eve.source.path, eve.destination.path, eve.parent) == ("/old//eve".replace("//", "/"), "/new/eve", "")
    assert jobs_for(settings, list_file=users, to=None)[1].destination.path == "/setting/eve"


def test_without_a_destination_it_is_a_configuration_error(path: Path) -> None:
    for changes in ({"user": "bob"}, {"list_file": write(path, "bob\neve\n")}):
        with pytest.raises(ConfigurationError, match="mail_location") as caught:
            plan_for(to=None, **changes)
        assert caught.value.exit_code == 78


def test_cells_of_settings_are_those_of_the_row(path: Path) -> None:
    users = write(path, "user,source_password,dest_user,mail_home\nbob,env:PW_%n,b,/h\neve,env:E,e,\n")
    bob, eve = jobs_for(
        Settings(dest_password=Secret(kind="env", text="D"), mail_home="/home/%n"),
        list_file=users,
        source="imaps://h/",
        to="imaps://g/",
        parent="%h",
    )
    assert bob.source.secret == Secret(kind="env", text="PW_bob")
    assert (bob.source.user, bob.destination.user, bob.parent) == ("bob", "b", "/h")
    assert (eve.destination.user, eve.parent) == ("e", "/home/eve")


def test_the_source_user_opens_the_source_and_the_user_the_rest() -> None:
    (job,) = jobs_for(user="bob", source_user="eve", source="maildir:~/Maildir", to="maildir:~/mail", parent="%u")
    assert (job.user, job.source.path) == ("bob", "/home/eve/Maildir")
    assert (job.destination.path, job.parent) == ("/home/bob/mail", "bob")
    settings = Settings(source_password=Secret(kind="env", text="%u"), imapc_host="h")
    (job,) = jobs_for(settings, user="bob", source_user="eve", source="imapc:")
    assert (job.source.user, job.source.secret) == ("eve", Secret(kind="env", text="eve"))


def test_the_row_of_the_source_user_gives_the_source_its_cells(path: Path) -> None:
    users = write(path, "user,source,mail_home\nbob,memory:bob,/b\neve,maildir:%h/eve,/e\n")
    (job,) = jobs_for(list_file=users, user="bob", source_user="eve", to="maildir:%h/new")
    assert (job.source.path, job.destination.path) == ("/e/eve", "/b/new")
    everyone = jobs_for(list_file=users, source_user="stranger", to="maildir:%h/new")
    assert [job.source.path for job in everyone] == ["/old/stranger"] * 2


def test_home_and_ids_are_those_of_the_system_user_by_default() -> None:
    root = pwd.getpwnam("root")
    (job,) = jobs_for(Settings(), user="root", source="maildir:~/%i")
    assert job.source.path == f"{root.pw_dir.rstrip('/')}/{os.geteuid()}"
    assert expand("/%i/%{gid}", variables_for("x", Settings(mail_uid="root", mail_gid="7"))) == "/0/7"
    with pytest.raises(ConfigurationError, match="mail_uid"):
        expand("%i", variables_for("x", Settings(mail_uid="no-such-user")))


def test_a_user_may_have_a_day_of_its_own(path: Path) -> None:
    users = write(path, "user,source_daily_bytes\nbob,7K\nann,\n")
    settings = Settings(source_password=Secret(kind="env", text="PW"), source_daily_bytes=9, dest_daily_bytes=5)
    bob, ann = jobs_for(settings, list_file=users, source="imaps://mail.example.org", to="maildir:/%u")
    assert (bob.source.daily_octets, ann.source.daily_octets) == (7168, 9)
    assert bob.destination.daily_octets == 0  # it has no server


# what stops all, what stops one


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "maildir:/%q"}, "unknown variable %q"),
        ({"source": "maildir:/m:INDX=/x"}, "did you mean INDEX?"),
        ({"source": "nope:/m/%u"}, "unknown scheme nope:"),
        ({"to": "mh:/m/%u"}, "mh: can only be read"),
        ({"source": "/m/%u"}, "maildir:"),
        ({"to": "maildir:/%q"}, "unknown variable %q"),
        ({"parent": "%q"}, "unknown variable %q"),
        ({"source": "imaps://h/"}, "source_password"),
        ({"source": "imapc:"}, "imapc_host"),
        ({"to": "maildir:/new"}, "every user would be imported into maildir:/new"),
    ],
)
def test_what_is_wrong_for_every_user_stops_the_run(path: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan_for(list_file=write(path, "bob\neve\n"), **changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(("home", "words"), [("%h", "the home itself"), ("%u", "begin with /"), ("/%q", "unknown")])
def test_a_wrong_mail_home_stops_the_run(path: Path, home: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        plan_for(Settings(mail_home=home), list_file=write(path, "bob\neve\n"), source="maildir:~/x")


def test_what_the_list_brings_is_not_missed(path: Path) -> None:
    users = write(
        path,
        "user,source,dest,source_password,imapc_host,imapc_password\n"
        "bob,imaps://h/,maildir:/b,env:B,,\n"
        "eve,imapc:,memory:e,,g,env:E\n"
        "ann,,memory:a,,,\n",
    )
    made = jobs_for(list_file=users, to=None)
    assert [job.error for job in made] == ["", "", ""]
    assert [job.source.host for job in made] == ["h", "g", ""]


def test_a_bad_query_stops_the_run() -> None:
    with pytest.raises(UsageError, match="SEENN"):
        plan_for(user="bob", query=("SEENN",))
    assert plan_for(user="bob", query=("MAILBOX", "x")).query.exact_names == ("x",)


def test_a_literal_password_in_a_location_stops_the_run_and_is_not_shown(path: Path) -> None:
    for changes in ({"user": "bob"}, {"list_file": write(path, "bob\n")}):
        for where in ("source", "to"):
            with pytest.raises(UsageError) as caught:
                plan_for(**changes, **{where: f"imaps://x:{CANARY}@h/"})
            assert CANARY not in str(caught.value) + repr(caught.value)


def test_what_is_wrong_for_one_user_is_the_error_of_its_job(path: Path) -> None:
    users = write(
        path,
        "user,source,mail_home\n"
        "bob,maildir:~/Maildir,\n"
        "eve,maildir:~/Maildir,/home/eve\n"
        "..,,\n"
        "ann,nope:/x,\n"
        "zoe,imaps://h/,\n"
        "dan,,\n",
    )
    made = jobs_for(Settings(), list_file=users, source="maildir:/old/%u")
    assert [(job.user, bool(job.error)) for job in made] == [
        ("bob", True),
        ("eve", False),
        ("..", True),
        ("ann", True),
        ("zoe", True),
        ("dan", False),
    ]
    assert "mail_home" in made[0].error
    assert made[0].status == "failed"
    assert made[1].source.path == "/home/eve/Maildir"


def test_the_single_user_without_a_home_is_unknown() -> None:
    with pytest.raises(NoSuchUser, match="mail_home") as caught:
        plan_for(Settings(), user="no-such-user", source="maildir:~/Maildir")
    assert caught.value.exit_code == 67


def test_two_users_with_one_destination_are_not_merged_silently(path: Path) -> None:
    made = jobs_for(list_file=write(path, "bob@a\nbob@b\neve@a\n"), to="maildir:/new/%n")
    assert [bool(job.error) for job in made] == [False, True, False]
    assert "maildir:/new/bob is also the destination of another user" in made[1].error


def test_one_user_alone_may_have_a_destination_without_variables(path: Path) -> None:
    (job,) = jobs_for(list_file=write(path, "bob\n"), to="maildir:/new")
    assert job.destination.path == "/new"
    made = jobs_for(list_file=write(path, "bob\neve\n"), user="b*", to="maildir:/new")
    assert [(job.user, job.error) for job in made] == [("bob", "")]


def test_users_may_share_a_destination_under_parents_of_their_own(path: Path) -> None:
    made = jobs_for(list_file=write(path, "bob\neve\n"), to="maildir:/new", parent="%u")
    assert [(job.destination.path, job.parent, job.error) for job in made] == [("/new", "bob", ""), ("/new", "eve", "")]


def test_jobs_are_made_one_at_a_time(path: Path) -> None:
    stream = jobs(plan_for(list_file=write(path, "bob\neve\n")))
    assert next(stream).user == "bob"
    with path.open("a") as file:
        file.write("late\n")
    with pytest.raises(UsageError, match="changed"):
        list(stream)


def test_plans_and_jobs_show_no_secret(path: Path) -> None:
    users = write(path, f"user,source_password\nbob,{CANARY}\n")
    settings = Settings(dest_password=Secret(kind="literal", text=CANARY), mail_home="/h/%u")
    for changes in ({"list_file": users}, {"list_file": users, "user": "bob", "source_user": "bob"}):
        plan = plan_for(settings, source="imaps://h/", to="imaps://g/", **changes)
        assert CANARY not in repr(plan) + repr(list(jobs(plan)))


def test_a_value_that_is_wrong_for_the_sample_users_alone_stops_nothing(path: Path) -> None:
    made = jobs_for(list_file=write(path, "7\n8\n"), source="maildir:/%{if;%u;>;7;b;a}")
    assert [job.source.path for job in made] == ["/a", "/b"]
    with pytest.raises(UserError):
        plan_for(user="x", source="maildir:/%{if;%u;>;7;b;a}")


def test_importing_the_planner_loads_neither_csv_nor_toml_nor_subprocess() -> None:
    code = (
        "import sys, msgspec; before = set(sys.modules); import aimport.plan; "
        "print(*sorted(set(sys.modules) - before & {'csv', 'tomllib', 'subprocess', 'difflib', 'tempfile', 'anyio'}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"csv", "tomllib", "subprocess", "difflib", "tempfile", "anyio", "asyncio"} & set(loaded)


def test_the_errors_of_this_module_are_all_ours() -> None:
    for changes in ({"user": "a\0b"}, {"user": "a\nb"}, {"user": "~"}, {"user": "%"}):
        try:
            plan_for(**changes)
        except AimportError:
            pass


def test_relative_dates_and_those_of_first_count_from_the_moment_that_is_given() -> None:
    request = dataclasses.replace(REQUEST, user="bob", query=("YOUNGER", "10"), first=('SINCE "20 secs"',))
    plan = make_plan(request, HOMES, environ={}, now=1_000_000_000)
    assert (plan.moment, plan.query.term) == (1_000_000_000, Dated("received", since=999_999_990))
    assert [query.term for query in plan.first] == [Dated("received", since=999_999_980)]


@pytest.mark.parametrize("first", ["SEENN", "'SEEN", ""])
def test_a_bad_first_stops_the_run(first: str) -> None:
    with pytest.raises(UsageError):
        plan_for(user="bob", first=(first,))
