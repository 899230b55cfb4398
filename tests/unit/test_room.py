"""Whether a local destination could be written, told without writing: by what a real import then does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aimport.errors import AccessRefused, DestinationFull, MailboxError, MailboxNameInvalid, UserError
from aimport.model import Endpoint, Mailbox
from aimport.standing import Inspecting, Standing
from aimport.stores import Stores
from aimport.stores.room import volume_of
from tests import mail
from tests.processes import server_folder, server_owner

SENT = Mailbox(path=("Archive", "Sent"), separator="/")


async def inspected(location: str, path: Path | str, *targets: Mailbox) -> Standing:
    scheme, _, options = location.partition(":")
    pairs = tuple(tuple(each.split("=")) for each in options.split(":") if each)
    endpoint = Endpoint(scheme=scheme, path=str(path), options=pairs)  # type: ignore[arg-type]  # pairs are pairs
    async with Stores().destination(endpoint).open() as session:
        assert isinstance(session, Inspecting)
        return await session.inspect(targets)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that others can get to."""
    with server_folder("room") as folder:
        yield folder


@contextmanager
def as_nobody() -> Iterator[None]:
    """Not as root, whom nothing is refused."""
    if os.geteuid():
        yield
        return
    owner = server_owner()
    os.setegid(owner.gid)
    os.seteuid(owner.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize("location", ["maildir", "maildir:LAYOUT=fs", "mbox", "eml"])
async def test_what_is_missing_would_be_made_and_nothing_is_made(location: str, tmp_path: Path) -> None:
    before = mail.tree(tmp_path)
    standing = await inspected(location, tmp_path / "new" / "bob", SENT)
    assert standing.problems == ()
    assert standing.volume is not None
    assert standing.volume.path == str(tmp_path)
    assert standing.volume.device == tmp_path.stat().st_dev
    assert standing.volume.file_each == (location != "mbox")
    assert mail.tree(tmp_path) == before


@pytest.mark.parametrize("location", ["maildir", "mbox", "eml"])
async def test_a_directory_that_may_not_be_written_is_told(location: str, reachable: Path) -> None:
    reachable.chmod(0o555)
    with as_nobody():
        standing = await inspected(location, reachable / "bob", SENT)
    [problem] = standing.problems
    assert isinstance(problem, AccessRefused)
    assert str(problem).startswith(f"{reachable}: no permission to write")


async def test_one_folder_that_may_not_be_written_is_its_mailboxs_affair(reachable: Path) -> None:
    for name in (".Archive.Sent", ".Other"):
        for part in ("cur", "new", "tmp"):
            (reachable / name / part).mkdir(parents=True)
            (reachable / name / part).chmod(0o777)
        (reachable / name).chmod(0o755)
    reachable.chmod(0o777)
    (reachable / ".Archive.Sent" / "tmp").chmod(0o555)
    with as_nobody():
        standing = await inspected("maildir", reachable, SENT, Mailbox(path=("Other",)))
    [problem] = standing.problems
    assert isinstance(problem, MailboxError)
    assert str(problem).startswith("Archive/Sent: ")


async def test_a_file_where_a_directory_is_needed_is_told(tmp_path: Path) -> None:
    (tmp_path / "bob").write_text("")
    standing = await inspected("maildir", tmp_path / "bob" / "Maildir", SENT)
    assert isinstance(standing.problems[0], UserError)
    assert "is no directory" in str(standing.problems[0])


async def test_a_level_above_that_is_an_mbox_is_told(tmp_path: Path) -> None:
    (tmp_path / "Archive").write_text("")
    standing = await inspected("mbox", tmp_path, SENT, Mailbox(path=("Archive",)))
    [problem] = standing.problems
    assert str(problem).startswith("Archive/Sent: ")


async def test_a_directory_where_an_mbox_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "Archive" / "Sent").mkdir(parents=True)
    [problem] = (await inspected("mbox", tmp_path, SENT)).problems
    assert "is a directory" in str(problem)


@pytest.mark.parametrize("location", ["maildir", "eml"])
async def test_links_are_not_followed(location: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bob").symlink_to(tmp_path / "elsewhere")
    [problem] = (await inspected(location, tmp_path / "bob", SENT)).problems
    assert "symbolic link" in str(problem)
    root = tmp_path / "eve"
    root.mkdir()
    (root / (".Archive.Sent" if location == "maildir" else "Archive")).symlink_to(tmp_path / "elsewhere")
    [problem] = (await inspected(location, root, SENT)).problems
    assert "symbolic link" in str(problem)


async def test_a_name_that_cannot_be_held_is_told_with_the_others(tmp_path: Path) -> None:
    bad = Mailbox(path=("a.b",))
    standing = await inspected("maildir", tmp_path / "bob", bad, SENT, Mailbox(path=("~x",)))
    assert [type(each) for each in standing.problems] == [MailboxNameInvalid, MailboxNameInvalid]


def test_a_file_system_that_is_mounted_read_only_is_full_for_us() -> None:
    places = [
        words[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if "ro" in (words := line.split())[5].split(",") and Path(words[4]).is_dir()
    ]
    if not places:
        pytest.skip("nothing is mounted read-only here")
    _, error = volume_of(f"{places[0]}/new", file_each=True)
    assert isinstance(error, DestinationFull)
    assert "Read-only" in str(error)
