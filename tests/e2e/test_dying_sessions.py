"""Server processes are killed while several batches of each lane are under way: each message arrives once.

Invariant: whatever part of which batches Dovecot had stored when its process died, the destination ends as the source.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import anyio
import anyio.to_thread
import pytest

from aimport.interfaces import Destination
from aimport.limits import Limits
from aimport.model import Endpoint, Secret
from aimport.pipeline import import_user
from aimport.stores.imap import ImapDestination
from tests import mail
from tests.fix_dovecot import Dovecot
from tests.pipeline.harness import World, bodies, job

pytestmark = [pytest.mark.dovecot, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("AIMPORT_KILL_ROUNDS", "2"))
"""More by hand."""


class ToDovecot(World):
    """From memory to one account of a real server."""

    def __init__(self, limits: Limits, dovecot: Dovecot, user: str) -> None:
        super().__init__(limits=limits)
        self.endpoint = Endpoint(
            scheme="imap",
            host="127.0.0.1",
            port=dovecot.port,
            security="none",
            user=user,
            secret=Secret(kind="literal", text=dovecot.password),
        )

    def destination(self, endpoint: Endpoint) -> Destination:
        return ImapDestination(self.endpoint)


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.fault("F4")
async def test_sessions_killed_with_batches_under_way_cost_nothing_and_double_nothing(
    seed: int, dovecot: Dovecot, unique_user: str
) -> None:
    chance = random.Random(seed)
    limits = Limits(
        retry_wait_s=0.01,
        fence_s=0.5,  # a killed process stores nothing more
        attempts=50,
        connections_per_user=chance.randrange(1, 4),
        batch_messages=chance.choice([1, 5, 64]),
        batches_ahead=chance.randrange(2, 6),
    )
    world = ToDovecot(limits, dovecot, unique_user)
    few = bodies(12, octets_each=chance.choice([60, 6000]))
    for name in ("INBOX", "A", "B"):
        world.fill(unique_user, name, [chance.choice(few) for _ in range(600)])
    kills = 0

    async def kill() -> None:
        nonlocal kills
        while kills < 6:
            await anyio.sleep(chance.uniform(0.02, 0.4))
            for pid in dovecot.imap_session_pids()[:1]:
                with suppress(ValueError):  # it ended by itself
                    await anyio.to_thread.run_sync(dovecot.kill_session, pid)
                    kills += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        result = await import_user(replace(job(unique_user), destination=world.endpoint), world.run())
        tasks.cancel_scope.cancel()
    await world.journal.close(finished=True)
    assert (result.status, result.imported, result.balanced) == ("done", 1800, True), result
    there = await anyio.to_thread.run_sync(mail.in_imap, dovecot.port, unique_user, dovecot.password)
    expected = Counter(
        mail.Seen("/".join(path), int(each.internal_date.timestamp()), each.flags, mail.digest(each.body))
        for path, mailbox in world.old.accounts[unique_user].items()
        for each in mailbox.messages
    )
    assert there == expected
    assert kills, "the machine was too fast for this test"
