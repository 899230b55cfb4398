"""`mail_uid` and `mail_gid`: whose rights a user's files are opened with, and what is refused."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import msgspec
import pytest

from aimport import rights
from aimport.config import Settings
from aimport.errors import AccessRefused, AimportError, ConfigurationError, SourceMissing, UserError
from aimport.model import Endpoint, Rights
from aimport.stores import files
from aimport.variables import Variables

SOURCE = Endpoint(scheme="maildir", path="/nonexistent/mail")
IMAP = Endpoint(scheme="imap", host="mail.example.org", user="bob")


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)


def wanted(
    uid: str = "",
    gid: str = "",
    *,
    user: str = "bob",
    listed: tuple[str, ...] = (),
    source: Endpoint = SOURCE,
    endpoint: Endpoint | None = None,
    first: int = 500,
) -> Rights | None:
    settings = msgspec.structs.replace(Settings(), mail_uid=uid, mail_gid=gid, first_valid_uid=first)
    return rights.with_rights(endpoint or source, source, settings, Variables(user=user), listed)


def test_without_the_settings_files_are_opened_with_the_rights_of_the_process() -> None:
    assert wanted() is None
    assert wanted("root", "0") is None


def test_names_and_numbers_are_taken_with_the_groups_that_the_system_knows() -> None:
    nobody = pwd.getpwnam("nobody")
    groups = tuple(sorted({nobody.pw_gid, *os.getgrouplist("nobody", nobody.pw_gid)}))
    assert wanted("nobody") == Rights(uid=nobody.pw_uid, gid=nobody.pw_gid, groups=groups)
    assert wanted(str(nobody.pw_uid)) == Rights(uid=nobody.pw_uid, gid=nobody.pw_gid, groups=(nobody.pw_gid,))
    assert wanted("23001", "24001") == Rights(uid=23001, gid=24001, groups=(24001,))
    assert wanted("%n", user="nobody@example.org") == wanted("nobody")


def test_the_group_of_a_user_whom_the_system_does_not_know_is_not_that_of_root() -> None:
    assert wanted("23001") == Rights(uid=23001, gid=23001, groups=(23001,))


@pytest.mark.parametrize(
    "endpoint", [IMAP, Endpoint(scheme="memory", path="x"), Endpoint(scheme="tunnel", command=("x",))]
)
def test_where_there_are_no_files_there_are_no_rights(endpoint: Endpoint) -> None:
    assert wanted("owner", "owner", endpoint=endpoint) is None


@pytest.mark.parametrize("uid", ["0", "root", "8", "499"])
def test_root_and_users_of_the_system_are_refused_from_a_list_and_from_variables(uid: str) -> None:
    with pytest.raises(UserError, match="first_valid_uid"):
        wanted(uid, "24001", listed=("mail_uid",))
    with pytest.raises(UserError, match="first_valid_uid"):
        wanted("%n", "24001", user=uid)


@pytest.mark.parametrize("gid", ["0", "root", "8"])
def test_groups_of_the_system_are_refused_from_a_list(gid: str) -> None:
    with pytest.raises(UserError, match="mail_gid"):
        wanted("23001", gid, listed=("mail_gid",))


def test_what_the_administrator_writes_is_obeyed() -> None:
    assert wanted("8", "12") == Rights(uid=8, gid=12, groups=(12,))
    assert wanted("0", "24001") == Rights(uid=0, gid=24001, groups=(24001,))
    assert wanted("", "24001") == Rights(uid=0, gid=24001, groups=(24001,))
    assert wanted("501", "501", listed=("mail_uid", "mail_gid")) is not None
    assert wanted("8", "8", listed=("mail_uid", "mail_gid"), first=8) is not None
    with pytest.raises(UserError):
        wanted("0", "8", listed=("mail_uid",), first=0)


def test_a_name_that_the_system_does_not_know_is_an_error_of_who_wrote_it() -> None:
    with pytest.raises(ConfigurationError, match="no-such-user"):
        wanted("no-such-user")
    with pytest.raises(AccessRefused, match="no-such-user"):
        wanted("no-such-user", listed=("mail_uid",))
    with pytest.raises(ConfigurationError, match="too large"):
        wanted(str(1 << 32))


def test_who_is_not_root_may_only_be_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 23001)
    monkeypatch.setattr(os, "getegid", lambda: 24001)
    assert wanted("23001", "24001") is None
    with pytest.raises(ConfigurationError, match="only root"):
        wanted("23002", "24001")
    with pytest.raises(AccessRefused, match="only root"):
        wanted("23002", "24001", listed=("mail_uid",))
    with pytest.raises(ConfigurationError, match="mail_gid"):
        wanted("23001", "24002")


# owner


@pytest.mark.usefixtures("as_root")
def test_the_owner_is_that_of_the_source(tmp_path: Path) -> None:
    mail = tmp_path / "mail"
    mail.mkdir()
    os.chown(mail, 23001, 24001)
    source = Endpoint(scheme="maildir", path=str(mail))
    assert wanted("owner", "owner", source=source) == Rights(uid=23001, gid=24001, groups=(24001,))
    assert wanted("owner", source=source) == Rights(uid=23001, gid=23001, groups=(23001,))
    os.chown(mail, 0, 24001)
    with pytest.raises(UserError, match="mail_uid 0 of the owner"):
        wanted("owner", source=source)


@pytest.mark.usefixtures("as_root")
def test_an_owner_behind_a_link_that_a_user_has_laid_is_not_believed(tmp_path: Path) -> None:
    """Bob's own directory leads to the mail of eve: read as eve it would be imported as his."""
    theirs = tmp_path / "eve" / "mail"
    theirs.mkdir(parents=True)
    os.chown(theirs, 23002, 24002)
    home = tmp_path / "bob"
    home.symlink_to("eve")
    source = Endpoint(scheme="maildir", path=str(home / "mail"))
    os.chown(home, 23001, 24001, follow_symlinks=False)
    with pytest.raises(AccessRefused, match="symbolic link"):
        wanted("owner", source=source)
    os.chown(home, 0, 0, follow_symlinks=False)
    found = wanted("owner", source=source)
    assert found is not None and found.uid == 23002  # the administrator's own links are his word
    home.unlink()
    home.symlink_to(tmp_path / "eve")
    found = wanted("owner", source=source)
    assert found is not None and found.uid == 23002


@pytest.mark.usefixtures("as_root")
def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(AimportError):
        wanted("owner", source=Endpoint(scheme="maildir", path=str(tmp_path / "a" / "mail")))


def test_a_source_that_is_not_there_or_is_no_file_has_no_owner() -> None:
    with pytest.raises(SourceMissing, match="owner"):
        wanted("owner")
    with pytest.raises(ConfigurationError, match="no owner"):
        wanted("owner", source=IMAP, endpoint=SOURCE)


# modes


@pytest.mark.parametrize(
    ("mode", "group", "expected"),
    [
        (0o770, 24001, 24001),  # the group has more than others
        (0o707, 24001, 24001),  # or less
        (0o700, 24001, -1),
        (0o755, 24001, -1),
        (0o2770, 24001, -1),  # the kernel does it
        (0o770, 0, -1),
    ],
)
@pytest.mark.usefixtures("as_root")
def test_what_is_made_gets_the_group_of_its_directory_where_that_says_something(
    tmp_path: Path, mode: int, group: int, expected: int
) -> None:
    os.chown(tmp_path, -1, group)
    tmp_path.chmod(mode)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert files.group_in(fd) == expected
    finally:
        os.close(fd)


def test_where_the_group_cannot_be_given_no_other_group_gets_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refused)
    file = tmp_path / "file"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        files.share(fd, 0o660, 24001)
    finally:
        os.close(fd)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "group not given" in caplog.text
