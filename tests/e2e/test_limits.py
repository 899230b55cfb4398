"""Limits at the command line, against a scripted server: what is accepted, what is told, what outlives the process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

import anyio
import pytest

from aimport import sample
from tests.fix_imap import PASSWORD
from tests.wire.server import Server

pytestmark = pytest.mark.timeout(100)

USERS = ["ann", "bob", "carl"]


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    for user in USERS:
        sample.write_maildir(
            tmp_path / user / "Maildir",
            sample.account(user, seed=3, messages=8, mailboxes=[("INBOX",)], median_octets=800, max_octets=1500),
        )
    (tmp_path / "users").write_text("\n".join(USERS) + "\n")
    return tmp_path


async def aimport(folder: Path, *words: str) -> CompletedProcess[bytes]:
    env = {**os.environ, "PW": PASSWORD, "XDG_STATE_HOME": str(folder / "state")}
    return await anyio.run_process([sys.executable, "-m", "aimport", *words], check=False, env=env)


def words(server: Server, folder: Path, *options: str) -> list[str]:
    assert server.scripted is not None
    to = f"imap://{server.scripted.host}:{server.scripted.port}/?tls=off"
    return [
        *("import", "-F", f"{folder}/users", "--to", to, "--progress", "none", "--json", *options),
        *(f"maildir:{folder}/%u/Maildir", "", "ALL"),
    ]


async def test_what_a_host_allowed_is_told_and_no_part_of_the_json(mail: Path) -> None:
    async with Server(most_logins=1).running() as server:
        done = await aimport(mail, "-o", "dest_password=env:PW", *words(server, mail, "--users", "3"))
        assert done.returncode == 0, done.stderr
        where = f"{server.scripted.host}:{server.scripted.port}" if server.scripted is not None else ""
        assert all(len(server.bodies(user)) == 8 for user in USERS)
    assert f"host {where}: 1 of 50 connections were in use in the end" in done.stderr.decode()
    assert "--connections-per-host 1" in done.stderr.decode()
    assert json.loads(done.stdout)["exit"] == 0
    assert server.most_inside == 1


async def test_a_day_that_is_used_up_ends_with_75_and_is_remembered_by_the_next_process(mail: Path) -> None:
    limits = ("-o", "dest_password=env:PW", "-o", "dest_daily_bytes=4K", "-o", "daily_wait=no")
    async with Server().running() as server:
        done = await aimport(mail, *limits, *words(server, mail, "--journal", str(mail / "journal")))
        assert done.returncode == 75, done.stderr
        stored = [sum(map(len, server.bodies(user))) for user in USERS]
        assert all(0 < octets <= 4096 for octets in stored), stored
        again = await aimport(mail, "resume", "--journal", str(mail / "journal"), "--json", "--progress", "none")
        assert again.returncode == 75, again.stderr
        assert [sum(map(len, server.bodies(user))) for user in USERS] == stored
        for run in (done, again):
            errors = [user["error"] for user in json.loads(run.stdout)["users"]]
            assert all("4096 octets that may be appended in 24 hours are used up" in error for error in errors), errors
            assert all("goes on after" in error and "more octets about until" in error for error in errors)
        assert (mail / "state" / "aimport" / "daily.sqlite").stat().st_mode & 0o777 == 0o600
        more = await aimport(mail, "-o", "dest_daily_bytes=1M", "resume", "--journal", str(mail / "journal"))
        assert more.returncode == 0, more.stderr
        assert all(len(server.bodies(user)) == 8 for user in USERS)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--limit-rate", "100", "less than 1024 octets"),
        ("--limit-rate", "fast", "not a size"),
        ("--messages-per-second", "0", "range"),
    ],
)
async def test_a_rate_that_cannot_be_is_refused(option: str, value: str, says: str, mail: Path) -> None:
    done = await aimport(
        mail, "import", option, value, "-F", f"{mail}/users", "--to", "maildir:/x/%u", "maildir:/y", "", "ALL"
    )
    assert done.returncode == 64 and says in done.stderr.decode()


async def test_rates_are_obeyed_from_the_command_line(mail: Path) -> None:
    options = ("--limit-rate", "20K", "--messages-per-second", "40", "--users", "1")
    async with Server().running() as server:
        began = anyio.current_time()
        done = await aimport(mail, "-o", "dest_password=env:PW", *words(server, mail, *options))
        took_s = anyio.current_time() - began
        octets = sum(len(body) for user in USERS for body in server.bodies(user))
    assert done.returncode == 0, done.stderr
    assert took_s >= octets / 20480 - 0.4 and octets > 15_000
