"""Connections that are cut, reset, held, drip or go deaf, on the way to a real Dovecot: F5 to F8, F13, F17, F20.

Invariant: the server holds in the end what an uncut run would have given it, each message once, and the report adds up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio.to_thread
import pytest

from aimport.imap.connection import Deadlines
from aimport.model import Endpoint, Secret
from aimport.results import UserResult
from tests import mail
from tests.faults.forks import Forks
from tests.faults.jobs import Job, write_maildir
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.fix_faults import (
    At,
    Plan,
    Proxy,
    Wire,
    after,
    before,
    deaf,
    drip,
    first,
    hang_up,
    hold,
    reset,
    reset_both,
    run_proxy,
)
from tests.wire.server import QUICK, Wires, bodies

pytestmark = [pytest.mark.timeout(200), pytest.mark.dovecot]

PW: Final = {"PW": "pass"}
OK: Final = rb"^a\d+ OK \[APPENDUID"
HASTY: Final = Deadlines(connect_s=3.0, command_s=1.0, append_s=1.0, close_s=0.5)


def endpoint(port: int, user: str) -> Endpoint:
    secret = Secret(kind="literal", text="pass")
    return Endpoint(scheme="imap", host="127.0.0.1", port=port, security="none", user=user, secret=secret)


async def import_(wires: Wires, dovecot: Dovecot, plan: Plan, user: str) -> tuple[UserResult, Proxy]:
    """Through a proxy; what was done is in `Proxy.links`."""
    with run_proxy(dovecot.port, plan) as proxy:
        result = await wires.import_(destination=endpoint(proxy.port, user))
        assert result.balanced
    return result, proxy


async def check_same(wires: Wires, dovecot: Dovecot, user: str, result: UserResult) -> None:
    stored = wires.old.accounts[next(iter(wires.old.accounts))]
    expected = Counter(
        mail.Seen("/".join(path), int(each.internal_date.timestamp()), each.flags, mail.digest(each.body))
        for path, mailbox in stored.items()
        for each in mailbox.messages
    )
    assert (result.status, result.imported, result.maybe_duplicate) == ("done", expected.total(), 0), result.error
    assert await anyio.to_thread.run_sync(mail.in_imap, dovecot.port, user, "pass") == expected
    await wires.journal.close(finished=True)


# F5


@pytest.mark.fault("F5")
@pytest.mark.parametrize("nth", [1, 2, 4])
@pytest.mark.parametrize("then", [reset, reset_both, hang_up])
async def test_an_ok_that_is_lost_is_no_second_copy(
    then: Callable[[Wire], None], nth: int, dovecot: Dovecot, unique_user: str
) -> None:
    """The server has stored the batch, and the tagged OK never comes."""
    wires = Wires(limits=replace(QUICK, batch_messages=5, fence_s=0.5 if then is reset_both else 0.0))
    wires.fill(bodies(22), user=unique_user)
    result, proxy = await import_(wires, dovecot, first(before(OK, client=False, nth=nth), then), unique_user)
    assert proxy.faults == 1
    await check_same(wires, dovecot, unique_user, result)


@pytest.mark.fault("F5")
async def test_oks_that_are_lost_again_and_again_are_no_second_copies(dovecot: Dovecot, unique_user: str) -> None:
    wires = Wires(limits=replace(QUICK, batch_messages=5))
    wires.fill(bodies(150), user=unique_user)
    plan = first(before(OK, client=False, nth=2), reset, links=100)
    result, proxy = await import_(wires, dovecot, plan, unique_user)
    assert proxy.faults > 2
    await check_same(wires, dovecot, unique_user, result)


@pytest.mark.fault("F5")
def test_the_command_waits_out_its_fence_and_finds_what_was_stored(
    forks: Forks, folder: Path, dovecot: Dovecot, unique_user: str
) -> None:
    """With the fence and the tries as users have them, and no proxy that knows when a session has ended."""
    job = Job(folder=folder, user=unique_user)
    plan = first(before(OK, client=False), reset_both, links=2)
    with run_proxy(dovecot.port, plan, orderly=False) as proxy:
        job.port = proxy.port
        done = forks.run(job.import_words(), env=PW, batch_messages=2, fence_s=5.0)
        assert proxy.faults
    assert done.code == 0 and done.totals["imported"] == job.expected.total(), done.err
    job.port = dovecot.port
    assert job.held() == job.expected


# F6


async def cut_answers(dovecot: Dovecot, user: str, *, every: int) -> int:
    """Resets after every so many octets of the server, from the greeting to the end; how many octets it said."""
    wires = Wires()
    wires.fill(bodies(4), user=user)
    _, proxy = await import_(wires, dovecot, lambda link: None, f"0-{user}")
    await wires.journal.close(finished=True)
    octets = max(link.octets[False] for link in proxy.links)
    for count in range(0, octets, every):
        name = f"{count}{user}"
        wires = Wires(limits=replace(QUICK, batch_messages=2))
        wires.fill(bodies(4), user=name)
        result, proxy = await import_(wires, dovecot, first(after(count, client=False), reset), name)
        assert proxy.faults == 1
        await check_same(wires, dovecot, name, result)
    return octets


@pytest.mark.fault("F6")
async def test_a_reset_after_octets_of_an_answer_loses_and_doubles_nothing(dovecot: Dovecot, unique_user: str) -> None:
    assert await cut_answers(dovecot, unique_user, every=29) > 600


@pytest.mark.slow
@pytest.mark.fault("F6")
async def test_a_reset_after_each_octet_of_an_answer_loses_and_doubles_nothing(
    dovecot: Dovecot, unique_user: str
) -> None:
    assert await cut_answers(dovecot, unique_user, every=1) > 600


@pytest.mark.fault("F6")
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.55, 0.7, 0.85, 0.97])
async def test_a_source_that_is_reset_in_the_middle_gives_every_message_once(
    share: float, dovecot: Dovecot, unique_user: str
) -> None:
    account = Wires()
    account.fill(bodies(30, octets=3000), user=unique_user)
    result, _ = await import_(account, dovecot, lambda link: None, unique_user)
    assert result.imported == 30
    await account.journal.close(finished=True)
    wires = Wires()
    with run_proxy(dovecot.port, first(after(int(share * 97_000), client=False), reset)) as proxy:
        result = await wires.import_(source=endpoint(proxy.port, unique_user))
        assert proxy.faults == 1
    assert (result.status, result.imported) == ("done", 30), result.error
    assert wires.arrived(unique_user) == bodies(30, octets=3000)
    await wires.journal.close(finished=True)


# F7, F8


@pytest.mark.fault("F7")
@pytest.mark.parametrize(
    "at",
    [
        after(0, client=False),
        after(20, client=True),
        before(rb"^a2 ", client=True),
        before(rb"^a\d+ APPEND", client=True),
        before(rb"^a\d+ APPEND", client=True, octets=100),
        before(OK, client=False, nth=2),
    ],
    ids=["greeting", "login", "command", "append", "literal", "ok"],
)
async def test_a_connection_that_falls_silent_ends_by_its_deadline_and_the_run_goes_on(
    at: At, dovecot: Dovecot, unique_user: str
) -> None:
    """Half open: neither end hears of the other again. Its session may live on, and still holds what it was sent."""
    wires = Wires(limits=replace(QUICK, batch_messages=5), deadlines=HASTY)
    wires.fill(bodies(22), user=unique_user)
    with anyio.fail_after(60):
        result, proxy = await import_(wires, dovecot, first(at, hold), unique_user)
    assert proxy.faults == 1
    await check_same(wires, dovecot, unique_user, result)


@pytest.mark.fault("F8")
async def test_a_server_that_reads_no_more_is_left_by_its_deadline_within_the_budget(
    dovecot: Dovecot, unique_user: str
) -> None:
    """The window closes in the middle of 20 MB; octets in flight stay within the budget."""
    wires = Wires(limits=replace(QUICK, max_memory=2 << 20), deadlines=HASTY)
    wires.fill(bodies(200, octets=100_000), user=unique_user)
    run = wires.run()
    with run_proxy(dovecot.port, first(after(3_000_000, client=True), deaf), record=False) as proxy:
        with anyio.fail_after(100):
            result = await wires.import_(destination=endpoint(proxy.port, unique_user), run=run)
        assert proxy.faults == 1
    assert run.budget.free == 2 << 20
    await check_same(wires, dovecot, unique_user, result)


@pytest.mark.fault("F8")
async def test_a_login_that_drips_ends_by_the_deadline_of_connecting(dovecot: Dovecot, unique_user: str) -> None:
    """One octet a second moves and would never end; the next connection is a good one."""
    wires = Wires(deadlines=HASTY)
    wires.fill(bodies(3), user=unique_user)
    with anyio.fail_after(40):
        result, proxy = await import_(wires, dovecot, first(after(5, client=False), drip(1.0)), unique_user)
    assert len(proxy.links) > 1
    await check_same(wires, dovecot, unique_user, result)


@pytest.mark.fault("F8")
async def test_answers_that_drip_are_waited_for_as_long_as_they_move(dovecot: Dovecot, unique_user: str) -> None:
    wires = Wires(deadlines=replace(HASTY, command_s=0.5, append_s=0.5))
    wires.fill(bodies(3), user=unique_user)
    plan = first(before(OK, client=False), drip(0.008), links=9)
    result, proxy = await import_(wires, dovecot, plan, unique_user)
    assert len(proxy.links) == 1 and proxy.faults == 1
    await check_same(wires, dovecot, unique_user, result)


# F13, F17, F20


def users_with(folder: Path, names: list[str], *, octets: int) -> None:
    for name in names:
        write_maildir(folder / name)
        for number in range(octets // 100_000):
            (folder / name / "cur" / f"15000{number:05}.big:2,S").write_bytes(
                b"Subject: y\n\n" + b"y" * 100_000 + b"\n"
            )


def words(folder: Path, server: Dovecot, *more: str) -> list[str]:
    return [
        "-odest_password=env:PW", "import", "-F", f"{folder}/users", "--to", f"imap://127.0.0.1:{server.port}/?tls=off",
        "--json", "--journal", f"{folder}/journal", *more, f"maildir:{folder}/%u", "", "ALL",
    ]  # fmt: skip


@pytest.mark.fault("F13")
@pytest.mark.parametrize("batch", [1, 64], ids=["one by one", "multiappend"])
def test_an_account_that_is_full_ends_its_user_with_a_true_count(batch: int, forks: Forks, folder: Path) -> None:
    """3 MB of room for 5 MB: what was taken is counted as it is, the others are done, nobody tries again."""
    names = ["full@example.org", "ann@example.org", "bob@example.org"]
    users_with(folder, names[:1], octets=5_000_000)
    users_with(folder, names[1:], octets=0)
    (folder / "users").write_text("\n".join(names) + "\n")
    with run_dovecot(quota="*:storage=3M") as server:
        done = forks.run(words(folder, server), env=PW, batch_messages=batch)
        assert done.code == 73, done.err
        assert done.totals["found"] == 60 + 20
        result, *others = done.report["users"]
        assert [each["status"] for each in done.report["users"]] == ["quota", "done", "done"]
        held = mail.in_imap(server.port, names[0], "pass")
        assert 0 < result["imported"] == held.total() < 60
        assert held <= mail.in_maildir(folder / names[0])
        assert all(each["imported"] == 10 for each in others)
        refused = re.findall(r"OVERQUOTA|[Qq]uota exceeded", result["error"])
        assert refused, result["error"]


@pytest.mark.fault("F17")
def test_a_user_who_may_have_few_connections_is_done_with_those(forks: Forks, folder: Path) -> None:
    names = [f"u{number}@example.org" for number in range(4)]
    users_with(folder, names, octets=0)
    (folder / "users").write_text("\n".join(names) + "\n")
    with run_dovecot(extra="mail_max_userip_connections = 1") as server:
        done = forks.run(words(folder, server, "--connections-per-user", "4"), env=PW)
        assert done.code == 0 and done.totals["imported"] == 40, done.err
        for name in names:
            assert mail.in_imap(server.port, name, "pass") == mail.in_maildir(folder / name)


@pytest.fixture(scope="module")
def with_passwords() -> Iterator[Dovecot]:
    """A Dovecot of which only who is in a file may log in."""
    with run_dovecot(password="right") as server:
        yield server


@pytest.mark.fault("F20")
def test_one_wrong_password_fails_its_user_alone_and_is_tried_once(
    forks: Forks, folder: Path, with_passwords: Dovecot
) -> None:
    names = [f"a{number}@example.org" for number in range(6)]
    users_with(folder, names, octets=0)
    rows = "".join(f"{name},env:{'BAD' if number == 3 else 'PW'}\n" for number, name in enumerate(names))
    (folder / "users").write_text(f"user,dest_password\n{rows}")
    done = forks.run(words(folder, with_passwords), env={"PW": "right", "BAD": "canary-secret"})
    assert done.code == 75
    assert [each["status"] for each in done.report["users"]].count("done") == 5
    assert {each["user"]: each["status"] for each in done.report["users"]}[names[3]] == "refused"
    assert "canary-secret" not in done.err + done.out
    assert with_passwords.log.read_text().count("auth failed, 1 attempts") == 1


@pytest.mark.fault("F20")
def test_passwords_that_are_all_wrong_close_the_host_before_everybody_is_locked_out(forks: Forks, folder: Path) -> None:
    names = [f"b{number}@example.org" for number in range(40)]
    users_with(folder, names, octets=0)
    (folder / "users").write_text("\n".join(names) + "\n")
    with run_dovecot(password="right") as server:
        done = forks.run(words(folder, server, "--users", "3"), env={"PW": "wrong"})
        log = server.log.read_text()
    assert done.code == 77, done.err
    assert {each["status"] for each in done.report["users"]} == {"refused"}
    tried = re.findall(r"auth failed, (\d+) attempts.*user=<([^>]*)>", log)
    assert 10 <= len(tried) <= 12
    assert {attempts for attempts, _ in tried} == {"1"}
    assert max(Counter(user for _, user in tried).values()) == 1
