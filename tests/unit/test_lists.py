"""Lists of other tools: which form they are in, what their cells mean, what is refused, what nobody gets to see."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimport.config import Settings
from aimport.errors import AimportError, UsageError
from aimport.lists.forms import NAMES
from aimport.model import Secret
from aimport.plan import Request, jobs, make_plan
from aimport.secret import reveal
from aimport.users import UserList, UserRow, check_users, iter_users
from tests.lists import CASES, ODD, Case

VALUES = {
    "A": "terry@old.example.org",
    "B": "ann@old.example.org",
    "C": "terry.adams@new.example.org",
    "D": "ann.beebe@new.example.org",
    "S": "imap.old.example.org",
    "T": "imap.new.example.org",
    "P": "1993",
    "Q": "2993",
    "R": "/srv",
}
CANARY = "c4nary"


def read(content: str | bytes, form: str | None = None) -> UserList:
    octets = content.encode() if isinstance(content, str) else content
    return check_users("-", stdin=io.BytesIO(octets), form=form)


def rows(content: str | bytes, form: str | None = None) -> list[UserRow]:
    return list(iter_users(read(content, form)))


def cells(content: str | bytes, form: str | None = None) -> dict[str, str]:
    (row,) = rows(content, form)
    return {"user": row.user, **row.cells}


def error(content: str | bytes, form: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read(content, form)
    assert caught.value.exit_code == 64
    return str(caught.value)


def filled(text: str) -> str:
    for name, value in VALUES.items():
        text = text.replace(f"${name}", value)
    return text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_every_form_is_known_and_says_who_goes_where(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path, VALUES)
    users = check_users(str(path), form=case.form if case.named else None)
    assert (users.form, users.count, users.left_out) == (case.form, 2, case.left_out)
    given = Settings(
        source_password=Secret(kind="literal", text="pass"), dest_password=Secret(kind="literal", text="pass")
    )
    plan = make_plan(
        Request(
            source=filled(case.source),
            parent="",
            query=("ALL",),
            to=None if case.to is None else filled(case.to),
            list_file=str(path),
            list_format=case.form if case.named else None,
        ),
        given,
    )
    for job, (source, dest) in zip(jobs(plan), case.users, strict=True):
        assert not job.error
        assert job.user == VALUES[dest]
        assert job.parent == case.parent
        assert job.destination.identity == f"imap://{VALUES[dest]}@{VALUES['T']}:{VALUES['Q']}"
        assert (job.destination.security, job.destination.login) == ("tls", "")
        assert job.destination.secret is not None and reveal(job.destination.secret) == "pass"
        if case.local:
            assert job.source.identity == f"maildir:/srv/home/{VALUES[source]}/Maildir"
            continue
        assert job.source.identity == f"imap://{VALUES[source]}@{VALUES['S']}:{VALUES['P']}"
        assert job.source.security == "tls"
        assert job.source.secret is not None and reveal(job.source.secret) == "pass"


def test_every_form_has_a_fixture() -> None:
    assert {case.form for case in CASES} | {"cpanel", "mbox-tree"} == set(NAMES)


def test_every_form_is_in_the_manual() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "user-lists.md").read_text()
    assert {line.split("`")[1] for line in manual.splitlines() if line.startswith("| `")} == set(NAMES)


@pytest.mark.parametrize("case", [case for case in CASES if not case.named], ids=lambda case: case.file)
def test_a_form_that_is_seen_may_also_be_named(case: Case) -> None:
    content = case.render(VALUES)
    assert rows(content) == rows(content, case.form)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "content",
    [
        "user;source\nbjörn;maildir:/x\n",
        'user\tsource\n"björn"\tmaildir:/x\n',
        "user,source\nbjörn,maildir:/x",
        "sep=;\nuser;source\nbjörn;maildir:/x\n",
        '{"user": "björn",\n"source": "maildir:/x"}',
        '[[users]]\nuser = "björn"\nsource = "maildir:/x"\n',
    ],
)
def test_delimiters_quotes_encodings_and_line_ends_do_no_harm(content: str, end: str, encoding: str) -> None:
    assert cells(content.replace("\n", end).encode(encoding)) == {"user": "björn", "source": "maildir:/x"}


@pytest.mark.parametrize("octets", [b"\xff\xfeb\0o", b"\xff\xfeb\0\x00\xd8\n\0"])
def test_broken_utf_16_is_an_error_of_its_line(octets: bytes) -> None:
    assert error(octets).startswith("stdin:1: not UTF-16 text")


def test_a_first_line_with_the_cell_user_is_canonical_whatever_else_it_looks_like() -> None:
    assert "unknown column 'password' (did you mean" in error("user,password\nbob,x\n")
    assert rows("user\nMailbox\n") == [UserRow(user="Mailbox", line=2)]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a@b.org,c@d.org\n", ("mundofy", "ispmanager")),
        ("a@b.org#c\nd@e.org#f\n", ("gamme", "plain")),
        ("bob;pw;mail.example.org;eve\n", ("imapsync-users", "artica")),
    ],
)
def test_what_may_be_of_several_forms_is_refused_and_they_are_named(content: str, names: tuple[str, ...]) -> None:
    told = error(content)
    assert "its form is not clear, say which with --list-format NAME" in told
    assert [line.split()[0] for line in told.splitlines()[1:]] == list(names)
    for name in names:
        assert read(content, name).form == name


def test_an_unknown_form_is_told_with_the_nearest() -> None:
    told = error("bob\n", "mailfery")
    assert "unknown form 'mailfery' (did you mean mailferry?), there are" in told
    assert [line.split()[0] for line in told.splitlines()[1:]] == list(NAMES)


def test_names_alone_stay_a_plain_list() -> None:
    content = "bob\na:b\n{eve\nSourceServer\nuser1#\n"
    assert [row.user for row in rows(content)] == ["bob", "a:b", "{eve", "SourceServer", "user1#"]


@given(st.lists(st.text("abcABC019@.-_+=/\\%*!&|~^$()<>?'", min_size=1), min_size=1, unique=True))
def test_any_names_without_separators_are_a_plain_list(names: list[str]) -> None:
    assert [row.user for row in rows("\n".join(names))] == names


def test_a_header_with_a_slip_is_told_and_nothing_below_it() -> None:
    content = "srchst,srcport,srcsecurity,srcuser,srcpassword,dsthost,dstport,dstsecurity,dstuser,dstpassword\na,b\n"
    assert error(content) == "stdin:1: unknown column 'srchst' (did you mean srchost?)"
    assert "say the same" in error("SourceEmail,SourceUser,DestUser\na,b,c\n")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("", {}),
        ("--nolog --useuid --timeout 30", {}),
        ("--port1 143", {"source": "imap://h.old/"}),
        ("--port1=1143 --tls1", {"source": "imap://h.old:1143/"}),
        ("--port1 993 --ssl1 --ssl2 --port2 7", {"source": "imaps://h.old/", "dest": "imaps://h.new:7/"}),
        ("--nossl1", {"source": "imap://h.old/"}),
        ("--nossl2 --notls2", {"dest": "imap://h.new/?tls=off"}),
        ("--subfolder2 Old/50%", {"parent": "Old/50%%"}),
        ("--authmech1 PLAIN", {"source_auth": "plain"}),
        ("--passfile1 /etc/p%w", {"source_password": "file:/etc/p%%w"}),
        (
            "--authuser2 admin",
            {"dest_master_user": "admin", "dest_master_password": "q", "dest_password": ""},
        ),
    ],
)
def test_the_options_of_imapsync_are_translated(options: str, found: dict[str, str]) -> None:
    expected = {
        "user": "v",
        "source": "imaps://h.old/",
        "source_user": "u",
        "source_password": "p",
        "dest": "imaps://h.new/",
        "dest_user": "v",
        "dest_password": "q",
        **found,
    }
    assert cells(f"h.old;u;p;h.new;v;q;{options};\n") == {name: cell for name, cell in expected.items() if cell}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--delete2", "--delete2 has no counterpart in a list (aimport never deletes)"),
        ("--ssl1 --maxage 3", "--maxage has no counterpart in a list (put it into the query)"),
        ("--regextrans2 s/a/b/", "--regextrans2 has no counterpart"),
        ("--port1", "--port1 lacks its value"),
        ("--port1 x", "the port of the source host is not a number"),
        ("--port2 993 x", "is no option (a password cannot hold ; here)"),
        ("--authmech1 CRAM-MD5", "source_auth: 'cram-md5' is none of"),
    ],
)
def test_an_option_without_counterpart_is_refused(options: str, words: str) -> None:
    assert words in error(f"h.old;u;p;h.new;v;q;{options};\n")


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (f"h.old;u;p;{CANARY};h.new;v;q;\n", "imapsync"),
        (f"h.old;u;p;h.new;v;q;{CANARY};\n", "imapsync"),
        (f"h.old;u;p;h.new;v;q;x;{CANARY};y\n", "imapsync"),
        (f"h.old u p {CANARY} h.new v q x y\n", "imapcp"),
        (f"h.old u {CANARY} p h.new v q x\n", "imapcp"),
        (f"a@b.org;p;{CANARY} x;\n", "artica"),
        (f"srchost,srcport,srcuser,dstuser\nh,{CANARY},u,v\n", "mailferry"),
        (f"srchost,srcsecurity,srcuser,dstuser\nh,{CANARY},u,v\n", "mailferry"),
        (f"Migrate,ExportName,ImportName\n{CANARY},a@b,c@d\n", "cloudm"),
        (f'SourceServer h\nDestServer h\nCopy "u" "a" {CANARY} "v" "b"\n', "imapcopy"),
        (f'{{"email": "a@b", "password": "{CANARY}" x}}', "json"),
        (f'[[users]]\nemail = "a@b"\npassword = "{CANARY}\n', "toml"),
        (f'{{"email": "a@b", "password": ["{CANARY}"]}}', "json"),
    ],
)
def test_no_error_shows_what_may_be_a_piece_of_a_password(content: str, form: str) -> None:
    """A separator too many shifts the cells, and a password stands where a host is looked for."""
    assert CANARY not in error(content, form)


def quoted(password: str) -> str:
    return '"' + password.replace('"', '""') + '"'


WRITTEN = (
    ("user,source_password\nbob,{}\n", quoted, ""),
    ("EmailAddress,UserName,Password\nbob,bob,{}\n", quoted, ""),
    ('[[users]]\nemail = "bob"\nsource_password = {}\n', json.dumps, ""),
    ('{{"email": "bob", "source_password": {}}}', json.dumps, ""),
    ("h.old;u;{};h.new;bob;q;\n", str, ";"),
    ('Copy "u" "{}" "bob" "q"\n', str, '"'),
    ("u#{}, bob\nx#y, eve\n", str, ","),
)
"""Lists with a place for a password, how it is written there, and what no password can hold there."""


@pytest.mark.parametrize(
    ("line", "write", "password"),
    [(line, write, odd) for line, write, without in WRITTEN for odd in ODD if not (without and without in odd)],
)
def test_a_password_of_any_characters_is_taken_as_it_stands(
    line: str, write: Callable[[str], str], password: str
) -> None:
    first = next(row for row in rows(line.format(write(password))) if row.user == "bob")
    assert first.cells["source_password"] == password


def test_names_of_other_tools_hold_no_variables() -> None:
    found = cells("EmailAddress,UserName,Password\nbob,100%u@x,p%w\n")
    assert found["source_user"] == "100%%u@x"
    assert found["source_password"] == "p%w"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("mail.example.org", "imaps://mail.example.org/"),
        ("mail.example.org:993", "imaps://mail.example.org/"),
        ("mail.example.org:143", "imap://mail.example.org/"),
        ("imap://mail.example.org", "imap://mail.example.org/"),
        ("imaps://mail.example.org:7/", "imaps://mail.example.org:7/"),
        ("ssl://mail.example.org", "imaps://mail.example.org/"),
        ("[::1]:993", "imaps://[::1]/"),
    ],
)
def test_a_host_may_bring_its_port_and_how_it_is_spoken_to(host: str, url: str) -> None:
    assert cells(f"source_host,source_user,dest_user\n{host},u,v\n")["source"] == url


def test_directives_of_imapcopy_hold_for_all_lines_wherever_they_stand() -> None:
    servers = 'DstRootFolder "Old"\nSourceServer a.org\nDestServer b.org\n'
    content = f'Copy "u" "p" "*" "*"\n{servers}Copy "v" "p" "w" "q"\n'
    ends = {"source": "imaps://a.org/", "dest": "imaps://b.org/", "parent": "Old"}
    assert [dict(row.cells) for row in rows(content, "imapcopy")] == [
        {"source_user": "u", "source_password": "p", "dest_user": "u", "dest_password": "p", **ends},
        {"source_user": "v", "source_password": "p", "dest_user": "w", "dest_password": "q", **ends},
    ]
    assert error(content + "SourceServer c.org\n") == "stdin:6: sourceserver stands twice, or without a value"


@pytest.mark.parametrize(
    ("directive", "words"),
    [
        ('skipfolder "INBOX.Trash"', 'put NOT MAILBOX "INBOX.Trash" into the query'),
        ('copyfolder "INBOX"', 'put MAILBOX "INBOX" into the query'),
        ("AllowInvalidCertificates Yes", "always verified"),
        ("SourceProtocol POP3", "only IMAP"),
        ('DenyFlags "\\Seen"', "has no counterpart"),
        ("Nonsense 1", "is no directive"),
    ],
)
def test_a_directive_that_changes_what_is_copied_is_refused(directive: str, words: str) -> None:
    assert words in error(f'SourceServer a\nDestServer b\nCopy "u" "p" "v" "q"\n{directive}\n', "imapcopy")


def test_a_directive_that_changes_nothing_of_the_mail_is_told() -> None:
    users = read('SourceServer a\nDestServer b\nConcurrency 4\nDenyFlags "\\Recent"\nCopy "u" "p" "v" "q"\n')
    assert users.notes == ("concurrency 4 is not used: give --users, -v to the run",)


def test_a_passwd_file_brings_home_owner_and_location() -> None:
    content = (
        "bob@a.org:{PLAIN}x:1000:1001::/home/50%/bob:/bin/sh:userdb_mail=mdbox:~/mail:INDEX=/i/%u userdb_uid=7\n"
        "eve:x:5:6::/home/eve::userdb_mail_driver=maildir userdb_mail_path=~/M\n"
    )
    assert [dict(row.cells) for row in rows(content)] == [
        {"source": "mdbox:~/mail:INDEX=/i/%u", "mail_home": "/home/50%%/bob", "mail_uid": "7", "mail_gid": "1001"},
        {"source": "maildir:~/M", "mail_home": "/home/eve", "mail_uid": "5", "mail_gid": "6"},
    ]
    assert read(content).notes == ("passwords of a passwd-file are not used",)


def test_json_and_toml_say_where_they_are_wrong() -> None:
    assert error('[{"user": "bob"},\n\n{"user": "bob"},\n{"sorce_user": "x"}]').splitlines() == [
        "stdin:3: user 'bob' is listed twice",
        "stdin:4: unknown field 'sorce_user' (did you mean sourceuser?)",
    ]
    assert error('[{"user": "bob"}').startswith("stdin:1: the list does not end")
    assert error('[{"user": "bob"}] x').startswith("stdin:1: something behind the end")
    assert error('{"user": "bob", "sorce": "x"}') == "stdin:1: unknown column 'sorce' (did you mean source?)"
    assert error('{"user": "bob"}\n[1]').startswith("stdin:2: not an object")
    told = error('[[users]]\nuser = "bob"\n\n[[users]]\nuser = \n[[users]]\nuser = "bob"\n').splitlines()
    assert told[0].startswith("stdin:4: not TOML") and told[1] == "stdin:6: user 'bob' is listed twice"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('source_host = "x"\n[[users]]\nuser = "bob"\n', "stdin:1: fields before the first table"),
        ('[defaults]\nsource_host = "x"\n[[users]]\nuser = "bob"\n', "stdin:1: a table that is none of the list"),
        ('[[users]]\nuser = "bob"\n[defaults]\nsource_host = "x"\n', "stdin:1: unknown column 'defaults_source_host'"),
        ('[users.bob]\nsource = "x"\n[defaults]\nsource = "x"\n', "stdin:1: unknown column 'defaults_source'"),
    ],
)
def test_what_stands_beside_the_tables_is_no_user(content: str, told: str) -> None:
    assert error(content, "toml").startswith(told)


def test_a_list_within_an_object_is_read_and_what_stands_beside_it_is_told() -> None:
    users = read('{"version": 2, "accounts": [{"email": "a@b"}, {"email": "c@d"}]}')
    assert (users.count, users.notes) == (2, ("fields beside the list are not used: version",))


def test_a_table_for_each_user_may_give_the_name() -> None:
    content = '[users.bob]\nsource = "maildir:/x"\n[users."eve@a.org".source]\nhost = "h.org"\n'
    content += '[users."eve@a.org".dest]\nhost = "i"\n'
    assert [(row.user, dict(row.cells)) for row in rows(content)] == [
        ("bob", {"source": "maildir:/x"}),
        ("eve@a.org", {"source": "imaps://h.org/", "dest": "imaps://i/"}),
    ]


def cpanel_home(root: Path, account: str = "acme") -> Path:
    home = root / account
    for name in ("cur", "new", "tmp"):
        (home / "mail" / name).mkdir(parents=True)
    for box, kind in (("admin", "cur"), ("gone", "cur"), ("info", "mailboxes")):
        (home / "mail" / "a:b.org" / box / kind).mkdir(parents=True)
    (home / "mail" / "a:b.org" / "info" / "storage").mkdir()
    (home / "etc" / "a:b.org").mkdir(parents=True)
    (home / "etc" / "a:b.org" / "passwd").write_text(
        f"admin:x:510:511::/home/{account}/mail/a:b.org/admin:/bin/bash\ninfo:x:510:511::/home/x:/bin/bash\n"
    )
    return home


@pytest.mark.parametrize("of_all", [False, True])
def test_a_home_of_cpanel_lists_its_mailboxes_and_the_default_one(of_all: bool, tmp_path: Path) -> None:
    home = cpanel_home(tmp_path)
    users = check_users(str(tmp_path if of_all else home))
    mail = str(home / "mail").replace(":", "::")
    owner = {"mail_uid": "510", "mail_gid": "511"}
    assert (users.form, [(row.user, dict(row.cells)) for row in iter_users(users)]) == (
        "cpanel",
        [
            ("acme", {"source": f"maildir:{mail}"}),
            ("admin@a:b.org", {"source": f"maildir:{mail}/a::b.org/admin", **owner}),
            ("info@a:b.org", {"source": f"mdbox:{mail}/a::b.org/info", **owner}),
        ],
    )
    assert len(users.notes) == 1 and users.notes[0].endswith("passwd: left out") and "gone" in users.notes[0]
    (home / "mail" / ".admin@a_org").symlink_to("a:b.org/admin")
    told = check_users(str(home)).notes[0]
    assert "links to mailboxes that are users of their own fail acme: .admin@a_org" in told and "--exclude" in told


def test_a_mailbox_of_cpanel_whose_mail_is_missing_is_an_error(tmp_path: Path) -> None:
    home = cpanel_home(tmp_path)
    with (home / "etc" / "a:b.org" / "passwd").open("a") as file:
        file.write("lost:x:510:510::/x:/bin/sh\n../x:x:1:1::/:/\nshort\n")
    with pytest.raises(UsageError) as caught:
        check_users(str(home))
    assert [re.sub(r".*passwd: ", "", line) for line in str(caught.value).splitlines()] == [
        f"lost: there is no mail at {home}/mail/a:b.org/lost",
        "line 4 is none of a passwd file",
        "line 5 is none of a passwd file",
    ]


def test_a_tree_of_mbox_files_is_a_list_of_its_directories(tmp_path: Path) -> None:
    for name in ("bob@a.org", "50%@a.org", "other"):
        (tmp_path / name).mkdir()
    users = check_users(str(tmp_path))
    assert (users.form, users.notes) == ("mbox-tree", ("directories that are no USER@DOMAIN are left out: other",))
    assert [(row.user, row.cells["source"]) for row in iter_users(users)] == [
        ("50%@a.org", f"mbox:{tmp_path}/50%%@a.org:SUFFIX=.mbox"),
        ("bob@a.org", f"mbox:{tmp_path}/bob@a.org:SUFFIX=.mbox"),
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.data())
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
@pytest.mark.fault("F32")
def test_a_list_with_any_octets_in_it_is_read_or_raises_our_errors(case: Case, data: st.DataObject) -> None:
    content = case.render(VALUES)
    at = data.draw(st.integers(0, len(content)))
    cut = data.draw(st.integers(0, 8))
    content = content[:at] + data.draw(st.binary(max_size=8)) + content[at + cut :]
    try:
        users = read(content, data.draw(st.sampled_from([None, case.form])))
    except AimportError:
        return
    assert users.count == len(list(iter_users(users)))
