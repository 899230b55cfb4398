"""User lists: both forms, every error with its line at once, and flat memory."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimport.errors import AimportError, ConfigurationError, UsageError
from aimport.users import MAX_ERRORS_SHOWN, UserRow, check_users, iter_users

CANARY = "c4nary"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


def write(path: Path, content: str | bytes, mode: int = 0o600) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return str(path)


def rows(path: Path, content: str | bytes) -> list[UserRow]:
    return list(iter_users(check_users(write(path, content))))


def errors(path: Path, content: str | bytes) -> list[str]:
    with pytest.raises(UsageError) as caught:
        check_users(write(path, content))
    assert caught.value.exit_code == 64
    return str(caught.value).replace(f"{path}:", "").split("\n")


def test_a_plain_list_has_one_name_a_line(path: Path) -> None:
    content = "bob\n\n# a comment\n  eve@example.org  \r\n\t\nlast"
    assert [(row.user, row.line) for row in rows(path, content)] == [("bob", 1), ("eve@example.org", 4), ("last", 6)]
    assert check_users(str(path)).columns == ()


def test_a_header_with_the_cell_user_makes_it_csv(path: Path) -> None:
    content = 'user,source,dest_user,mail_uid\nbob,"maildir:/a,b",,1000\neve\n"q""x",,"a b"\n'
    assert rows(path, content) == [
        UserRow(user="bob", cells={"source": "maildir:/a,b", "mail_uid": "1000"}, line=2),
        UserRow(user="eve", cells={}, line=3),
        UserRow(user='q"x', cells={"dest_user": "a b"}, line=4),
    ]
    users = check_users(str(path))
    assert (users.columns, users.count) == (("user", "source", "dest_user", "mail_uid"), 3)


@pytest.mark.fault("F32")
def test_a_byte_order_mark_crlf_blank_and_comment_lines_do_no_harm(path: Path) -> None:
    content = b"\xef\xbb\xbf# list\r\n\r\nsource , user\r\nmaildir:/a, bob \r\n#x,y\r\n"
    assert rows(path, content) == [UserRow(user="bob", cells={"source": "maildir:/a"}, line=4)]


def test_one_column_is_enough(path: Path) -> None:
    assert [row.user for row in rows(path, "user\nbob\n")] == ["bob"]


def test_an_empty_list_has_no_users(path: Path) -> None:
    assert rows(path, "") == []
    assert rows(path, "user,dest\n") == []


def test_blanks_around_a_password_are_part_of_it(path: Path) -> None:
    assert rows(path, "user,dest_password\nbob, x \n")[0].cells == {"dest_password": " x "}


def test_all_errors_of_a_csv_list_come_at_once_with_their_lines(path: Path) -> None:
    content = (
        b"user,dest,imapc_port\n"
        b"bob,a,b,c\n"
        b",maildir:/x\n"
        b"bob\n"
        b"bob\n"
        b'"eve,x\n'
        b'"eve"x,y\n'
        b"\xff\n"
        b"a\x00b\n"
        b"ann,,imap\n"
        b"dan," + b"imap://x:" + CANARY.encode() + b"@h/\n"
        b"zoe\n"
    )
    found = errors(path, content)
    assert [line.split(":")[0] for line in found] == ["2", "3", "5", "6", "7", "8", "9", "10", "11"]
    for line, words in zip(
        found,
        [
            "4 cells under 3 columns",
            "no user",
            "user 'bob' is listed twice",
            "a quote without its end",
            "not CSV",
            "not UTF-8 text at octet 1",
            "control character",
            "imapc_port: 'imap' is not a whole number",
            "a secret in a location",
        ],
        strict=True,
    ):
        assert words in line
    assert CANARY not in "".join(found)


def test_all_errors_of_a_plain_list_come_at_once_with_their_lines(path: Path) -> None:
    found = errors(path, "bob,pw\nok\na b\nc;d\nok\n\x01\n")
    assert [line.split(":")[0] for line in found] == ["1", "3", "4", "5", "6"]
    assert "header line that has the column user" in found[0]
    assert "header" not in found[1]


def test_control_characters_never_come_through_to_a_terminal(path: Path) -> None:
    found = errors(path, "user,parent\nb\x1b[2Job,x\neve,a\x9bb\n")
    assert [line.split(":")[0] for line in found] == ["2", "3"]
    assert "\x1b" not in "".join(found)


def test_unknown_and_doubled_columns_are_named_with_the_nearest(path: Path) -> None:
    (line,) = errors(path, "user,sorce,dest,dest,first_valid_uid\nbob\n")
    assert line.startswith("1: unknown column 'sorce' (did you mean source?)")
    assert "column 'dest' stands twice" in line
    assert "unknown column 'first_valid_uid'" in line


@pytest.mark.parametrize(
    ("second", "twice"),
    [
        ("eve,imaps://h/,box,", True),
        ("eve,imaps://h/,box,Eve", False),
        ("eve,imaps://h/,other,", False),
        ("eve,imaps://g/,box,", False),
        ("eve,imaps://h/,,", False),
    ],
)
@pytest.mark.fault("F32")
def test_a_destination_given_literally_twice_is_an_error(path: Path, second: str, twice: bool) -> None:
    content = f"user,dest,dest_user,parent\nbob,imaps://h/,box,\n{second}\n"
    if twice:
        assert errors(path, content) == ["3: destination user 'box' at imaps://h/ is listed twice"]
    else:
        assert len(rows(path, content)) == 2


def test_a_destination_with_variables_is_not_the_same_twice(path: Path) -> None:
    assert len(rows(path, "user,dest,dest_user\nbob,imaps://h/,%u\neve,imaps://h/,%u\n")) == 2


def test_the_text_of_many_errors_is_capped(path: Path) -> None:
    found = errors(path, "a b\n" * 250)
    assert len(found) == MAX_ERRORS_SHOWN + 1
    assert found[-1] == "... and 150 more"


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.fault("F32")
def test_an_overlong_line_is_named_and_not_kept(path: Path, end: bytes) -> None:
    content = b"bob\n" + b"x" * (10 * 1024 * 1024) + end
    path.write_bytes(content)
    tracemalloc.start()
    found = errors(path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["2: the line is longer than 1 MiB"]
    assert peak < 8 * 1024 * 1024


def test_a_line_of_one_mebibyte_is_read(path: Path) -> None:
    assert len(rows(path, b"x" * 1024 * 1024 + b"\nbob\n")) == 2


@pytest.mark.fault("F32")
def test_a_missing_list_or_a_directory_is_a_usage_error(tmp_path: Path) -> None:
    for source in ("/nonexistent/users", str(tmp_path), "a\0b"):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            check_users(source)
        assert caught.value.exit_code == 64


@pytest.mark.parametrize("column", ["source_password", "dest_password", "imapc_password", "source_master_password"])
def test_a_literal_secret_in_a_list_that_others_can_read_is_refused(path: Path, column: str) -> None:
    source = write(path, f"user,{column}\nbob,{CANARY}\n", 0o640)
    with pytest.raises(ConfigurationError) as caught:
        check_users(source)
    assert f"chmod 600 {path}" in str(caught.value)
    assert column in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.exit_code == 78
    path.chmod(0o600)
    check_users(source)


def test_references_may_stand_in_a_list_that_others_can_read(path: Path) -> None:
    assert check_users(write(path, "user,dest_password\nbob,env:PW\n", 0o644)).count == 1


def test_rows_and_lists_show_no_secret(path: Path) -> None:
    users = check_users(write(path, f"user,dest_password\nbob,{CANARY}\n"))
    (row,) = iter_users(users)
    assert CANARY not in repr(users) + repr(row) + str(row)
    assert row.cells["dest_password"] == CANARY


def test_stdin_is_read_once_and_used_twice() -> None:
    users = check_users("-", stdin=io.BytesIO(f"user,dest_password\nbob,{CANARY}\n".encode()))
    assert users.name == "stdin"
    for _ in range(2):
        assert [row.user for row in iter_users(users)] == ["bob"]
    with pytest.raises(UsageError, match="stdin:2: a name with a blank"):
        check_users("-", stdin=io.BytesIO(b"bob\na b\n"))


def test_a_pipe_by_name_is_read_once_and_used_twice(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"bob\neve\n")
    os.close(writing)
    users = check_users(f"/dev/fd/{reading}")
    os.close(reading)
    assert [row.user for row in iter_users(users)] == ["bob", "eve"]
    assert [row.user for row in iter_users(users)] == ["bob", "eve"]


def test_two_passes_at_a_time_do_not_disturb_each_other(path: Path) -> None:
    users = check_users(write(path, "a\nb\nc\n"))
    pairs = [(one.user, two.user) for one, two in zip(iter_users(users), iter_users(users), strict=True)]
    assert pairs == [("a", "a"), ("b", "b"), ("c", "c")]


@pytest.mark.fault("F32")
def test_a_list_written_to_after_the_check_is_noticed(path: Path) -> None:
    users = check_users(write(path, "a\nb\n"))
    passing = iter_users(users)
    next(passing)
    with path.open("a") as file:
        file.write("c\n")
    with pytest.raises(UsageError, match="changed"):
        list(passing)
    with pytest.raises(UsageError, match="changed"):
        list(iter_users(users))


@pytest.mark.fault("F32")
def test_a_list_replaced_after_the_check_does_not_matter(path: Path) -> None:
    users = check_users(write(path, "a\nb\n"))
    write(path.with_name("new"), "x\n")
    path.with_name("new").rename(path)
    assert [row.user for row in iter_users(users)] == ["a", "b"]


@pytest.mark.fault("F32")
def test_a_long_list_is_read_in_flat_memory(path: Path) -> None:
    path.write_text("user,dest_user\n" + "".join(f"user{n}@example.org,{'x' * 100}{n}\n" for n in range(50_000)))
    path.chmod(0o600)
    tracemalloc.start()
    users = check_users(str(path))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    assert sum(1 for _ in iter_users(users)) == 50_000
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert held < 1024 * 1024
    assert peak < 1024 * 1024


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80), st.booleans())
@pytest.mark.fault("F32")
def test_any_octets_are_a_list_or_raise_our_errors(path: Path, content: bytes, header: bool) -> None:
    try:
        users = check_users("-", stdin=io.BytesIO((b"user,dest\n" if header else b"") + content))
    except AimportError:
        return
    assert users.count == len(list(iter_users(users)))
