"""Somebody else works on the same mail: renames, delivers, expunges, deletes folders. F21 to F23, F33."""

from __future__ import annotations

import imaplib
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from aimport.model import Endpoint, Mailbox, Order, Selection
from aimport.query.terms import ALL, Term
from aimport.results import UserResult
from aimport.stores import files
from aimport.stores.maildir.source import MaildirSourceSession
from tests import mail
from tests.faults.forks import Forks
from tests.faults.jobs import Job
from tests.faults.steps import Steps
from tests.fix_dovecot import Dovecot
from tests.fix_faults import before, call, first, run_proxy
from tests.wire.server import QUICK, Wires

pytestmark = pytest.mark.timeout(100)

MESSAGES: Final = 150
"""More than two hops of the reader."""


def body(number: int) -> bytes:
    return b"Subject: %d\n\nbody\n" % number


def write(root: Path, count: int = MESSAGES) -> None:
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True)
    for number in range(count):
        file = (
            root / ("new" if number % 2 else "cur") / f"1500{number:06}.M{number}P1.host{'' if number % 2 else ':2,'}"
        )
        file.write_bytes(body(number))


class Meddling(Wires):
    """From a Maildir into memory; somebody does something when it was listed, or when so many messages were opened."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, root: Path, meddle: Callable[[], None], *, opened: int = 0
    ) -> None:
        super().__init__(limits=replace(QUICK, batch_messages=10))
        self.root = root
        left = opened
        select, open_file = MaildirSourceSession.select, files.open_file
        done = False

        def once() -> None:
            nonlocal done
            if not done:
                done = True
                meddle()

        async def selected(
            session: MaildirSourceSession, mailbox: Mailbox, term: Term = ALL, order: Order = "stored"
        ) -> Selection:
            selection = await select(session, mailbox, term, order)
            if not opened:
                once()
            return selection

        def opening(name: str, dir_fd: int) -> int:
            nonlocal left
            left -= ".host" in name
            if opened and left <= 0:
                once()
            return open_file(name, dir_fd)

        monkeypatch.setattr(MaildirSourceSession, "select", selected)
        monkeypatch.setattr(files, "open_file", opening)

    async def once_more(self) -> UserResult:
        source = Endpoint(scheme="maildir", path=str(self.root), user="bob")
        return await self.import_(source=source)


MOMENTS: Final = [0, 1, 40, 100]
"""After the listing, or after so many messages were opened."""


@pytest.mark.fault("F21")
@pytest.mark.parametrize("opened", MOMENTS)
async def test_messages_renamed_while_they_are_read_arrive_once_with_their_newest_flags(
    opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "from")

    def rename() -> None:
        for file in [*(tmp_path / "from" / "new").iterdir(), *(tmp_path / "from" / "cur").iterdir()]:
            file.rename(tmp_path / "from" / "cur" / f"{file.name.partition(':')[0]}:2,FS")

    wires = Meddling(monkeypatch, tmp_path / "from", rename, opened=opened)
    result = await wires.once_more()
    await wires.journal.close(finished=True)
    assert (result.status, result.imported) == ("done", MESSAGES), result
    arrived = wires.new.accounts["bob"]["INBOX",].messages
    assert Counter(bytes(each.body).replace(b"\r\n", b"\n") for each in arrived) == Counter(map(body, range(MESSAGES)))
    newest = sum(each.flags == {"\\Flagged", "\\Seen"} for each in arrived)
    assert newest >= MESSAGES - opened - 1


@pytest.mark.fault("F22")
@pytest.mark.parametrize("opened", MOMENTS)
async def test_mail_that_comes_while_a_mailbox_is_read_is_whole_or_left_for_the_next_time(
    opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a delivery agent does: into tmp, then by a name. One message is still half when the run ends."""
    write(tmp_path / "from")

    def deliver() -> None:
        for number in range(MESSAGES, MESSAGES + 20):
            half = tmp_path / "from" / "tmp" / f"1600{number:06}.M{number}P1.host"
            half.write_bytes(body(number)[:7] if number == MESSAGES else body(number))
            if number > MESSAGES:
                half.rename(tmp_path / "from" / "new" / half.name)

    wires = Meddling(monkeypatch, tmp_path / "from", deliver, opened=opened)
    result = await wires.once_more()
    first_listing = Counter(map(body, range(MESSAGES)))
    arrived = Counter(text.replace(b"\r\n", b"\n") for text in wires.arrived())
    assert result.status == "done" and result.balanced and result.imported == arrived.total()
    assert first_listing <= arrived <= first_listing + Counter(map(body, range(MESSAGES + 1, MESSAGES + 20)))
    again = await wires.once_more()
    await wires.journal.close(finished=True)
    assert (again.status, again.imported) == ("done", MESSAGES + 19)
    arrived = Counter(text.replace(b"\r\n", b"\n") for text in wires.arrived())
    assert arrived == first_listing + Counter(map(body, range(MESSAGES + 1, MESSAGES + 20)))


@pytest.mark.fault("F23")
@pytest.mark.parametrize("opened", MOMENTS)
async def test_messages_expunged_while_they_are_read_are_told_as_vanished(
    opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "from")

    def expunge() -> None:
        for file in (tmp_path / "from" / "new").iterdir():
            file.unlink()

    wires = Meddling(monkeypatch, tmp_path / "from", expunge, opened=opened)
    result = await wires.once_more()
    await wires.journal.close(finished=True)
    assert result.status == "rejects" and result.balanced
    assert result.found == MESSAGES and result.imported == len(wires.arrived())
    assert result.skipped == {"vanished": MESSAGES - result.imported}
    assert MESSAGES // 2 <= result.imported <= MESSAGES // 2 + opened


@pytest.mark.fault("F33")
@pytest.mark.parametrize("how", ["deleted", "renamed"])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_folder_that_goes_away_under_a_run_is_made_again_or_fails_alone(
    at: int, how: str, forks: Forks, folder: Path
) -> None:
    """A Maildir's folder, at a rename into it. What had arrived went with it, by somebody else's will."""
    job = Job(folder=folder)
    mark = folder / "works"
    steps = Steps(ops=("rename",), at=at, deed="wait", below=str(job.to / ".Sent"), place=str(mark))
    forks.start(job.import_words(), env={"PW": "pass"}, batch_messages=2, steps=steps)
    while not mark.exists():
        assert Path(f"/proc/{forks.pid}").exists()
    if how == "deleted":
        shutil.rmtree(job.to / ".Sent")
    else:
        (job.to / ".Sent").rename(job.to / ".Other")
    mark.unlink()
    done = forks.wait()
    assert "Traceback" not in done.err and "internal error" not in done.err
    assert done.totals["found"] == job.expected.total()
    assert done.code in (0, 65, 75), done.err
    inbox = Counter({seen: count for seen, count in job.expected.items() if seen.mailbox == "INBOX"})
    assert inbox <= job.held()
    again = job.go_on(forks)
    assert again.code == 0, again.err
    assert job.held() - Counter({s: n for s, n in job.held().items() if s.mailbox == "Other"}) <= job.expected


@pytest.mark.fault("F33")
@pytest.mark.dovecot
@pytest.mark.parametrize("how", ["delete", "rename"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_mailbox_that_goes_away_on_the_server_is_made_again(
    nth: int, how: str, forks: Forks, folder: Path, dovecot: Dovecot, unique_user: str
) -> None:
    """A second client takes it away before the nth APPEND: `[TRYCREATE]`, and the user's other mailboxes are whole."""
    job = Job(folder=folder, user=unique_user)

    def take_away() -> None:
        with imaplib.IMAP4("127.0.0.1", dovecot.port, timeout=20) as client:
            client.login(unique_user, "pass")
            status, words = client.delete("Sent") if how == "delete" else client.rename("Sent", "Other")
            assert status == "OK", words

    at = before(rb'^a\d+ APPEND "?Sent', client=True, nth=nth)
    with run_proxy(dovecot.port, first(at, call(take_away), links=9)) as proxy:
        job.port = proxy.port
        done = forks.run(job.import_words(), env={"PW": "pass"}, batch_messages=2)
        assert proxy.faults == 1
    assert done.code == 0, done.err
    assert done.totals["imported"] == job.expected.total()
    held = mail.in_imap(dovecot.port, unique_user, "pass")
    lost = job.expected - held
    assert held - Counter({s: n for s, n in held.items() if s.mailbox == "Other"}) <= job.expected
    assert {seen.mailbox for seen in lost} <= {"Sent"}
    assert lost.total() <= 2 * (nth - 1) + 2 * 2  # two batches more may have been under way
