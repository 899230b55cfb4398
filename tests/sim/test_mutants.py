"""Faults planted in aimport: the simulation finds each of them, or it would find none of ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from aimport import copying, pipeline, reconcile
from aimport.account import Account, Work
from aimport.interfaces import DestinationSession
from aimport.journal import Journal, LaneLog, _Op
from aimport.limits import Lease
from aimport.model import Appended, Batch, Mailbox, Outcome, Position, Stored, Wanted
from aimport.stores.imap import destination
from tests.sim.loop import Stuck
from tests.sim.world import run_seed, simulated

SEEDS: Final = 600
"""Each fault is found within so many; most within thirty."""

Patch = pytest.MonkeyPatch


def commit_before_the_answer(patch: Patch) -> None:
    hand_over = copying.Outlet._hand_over

    async def committed(outlet: copying.Outlet, part: Sequence[copying.Prepared], *rest: Any) -> copying.Sent:
        sent = await hand_over(outlet, part, *rest)
        await outlet._lane.commit(sent.batch, [Appended(key=each.message.key) for each in part])
        return sent

    async def nothing(outlet: copying.Outlet, sent: copying.Sent, outcomes: Sequence[Outcome]) -> None: ...

    patch.setattr(copying.Outlet, "_hand_over", committed)
    patch.setattr(copying.Outlet, "_record", nothing)


def no_fence(patch: Patch) -> None:
    settle = pipeline._settle

    async def at_once(account: Account, work: Work, lane: LaneLog, writer: DestinationSession) -> None:
        account.try_began = -1e9
        await settle(account, work, lane, writer)

    patch.setattr(pipeline, "_settle", at_once)


def send_again_without_looking(patch: Patch) -> None:
    def nothing(wanted: Sequence[Wanted], *_: object, **__: object) -> list[Stored | None]:
        return [None] * len(wanted)

    patch.setattr(reconcile, "match", nothing)


def in_doubt_is_stored(patch: Patch) -> None:
    def all_of_it(wanted: Sequence[Wanted], *_: object, **__: object) -> list[Stored | None]:
        return [Stored(fingerprint=each.fingerprint) for each in wanted]

    patch.setattr(reconcile, "match", all_of_it)


def outcomes_of_a_batch_swapped(patch: Patch) -> None:
    outcomes = destination._Appending.outcomes

    async def swapped(appending: destination._Appending) -> Sequence[Outcome]:
        first, *rest = await outcomes(appending)
        if not rest or type(first) is type(rest[-1]):
            return [first, *rest]
        return [replace(rest[-1], key=first.key), *rest[:-1], replace(first, key=rest[-1].key)]

    patch.setattr(destination._Appending, "outcomes", swapped)


def octets_leave_before_the_intent_is_durable(patch: Patch) -> None:
    intent, ask = LaneLog.intent, Journal._ask

    async def hasty(lane: LaneLog, *args: Any, **options: Any) -> Batch:
        async def behind(journal: Journal, work: Any, *, mark: int = 0, repairs: Sequence[bytes] = ()) -> None:
            journal._put(_Op(work, None, repairs=repairs, mark=mark))

        patch.setattr(Journal, "_ask", behind)
        try:
            return await intent(lane, *args, **options)  # which waits nowhere but there
        finally:
            patch.setattr(Journal, "_ask", ask)

    patch.setattr(LaneLog, "intent", hasty)


def one_stored_message_serves_twice(patch: Patch) -> None:
    match = reconcile.match

    def unclaimed(*args: Any, **_: object) -> list[Stored | None]:
        return match(*args, claimed_uids=(), claimed_fingerprints=Counter())

    patch.setattr(reconcile, "match", unclaimed)


def uids_of_another_uidvalidity_count(patch: Patch) -> None:
    async def unrecorded(lane: LaneLog, position: Position) -> None:
        lane.position = position

    async def trusting(*_: object) -> Sequence[str]:
        return ()

    patch.setattr(LaneLog, "move", unrecorded)
    patch.setattr(pipeline, "audit", trusting)  # which finds what is lost so, and mends it


def what_is_held_of_the_budget_is_kept(patch: Patch) -> None:
    patch.setattr(Lease, "close", lambda lease: None)


def half_of_a_refused_batch_is_forgotten(patch: Patch) -> None:
    patch.setattr(copying, "halves", lambda part: [part[: (len(part) + 1) // 2]] if part else [])


def the_floor_is_one_too_high(patch: Patch) -> None:
    position = destination.ImapDestinationSession.position

    async def higher(session: destination.ImapDestinationSession, mailbox: Mailbox) -> Position | None:
        found = await position(session, mailbox)
        return found and replace(found, uidnext=found.uidnext + 1)

    patch.setattr(destination.ImapDestinationSession, "position", higher)


MUTANTS: Final[Sequence[Callable[[Patch], None]]] = (
    commit_before_the_answer,
    no_fence,
    send_again_without_looking,
    in_doubt_is_stored,
    outcomes_of_a_batch_swapped,
    octets_leave_before_the_intent_is_durable,
    one_stored_message_serves_twice,
    uids_of_another_uidvalidity_count,
    what_is_held_of_the_budget_is_kept,
    half_of_a_refused_batch_is_forgotten,
    the_floor_is_one_too_high,
)


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant: Callable[[Patch], None]) -> None:
    with simulated() as base, pytest.MonkeyPatch.context() as patch:
        plant(patch)
        for seed in range(SEEDS):
            try:
                run_seed(seed, base)
            except (AssertionError, Stuck) as found:
                print(f"found by seed {seed}: {found}")
                return
    pytest.fail(f"not found by {SEEDS} seeds")
