"""`--repair on-reject`: a refused message is changed until it is taken; all others arrive as they are.

Invariant: every message once, as itself or as the version that is recorded; what was changed is told and its
original kept.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio
import pytest

from aimport.errors import AimportError, ConnectionLost, OverQuota, ServerBug
from aimport.journal import Journal, RunArguments
from aimport.model import Appended, Message
from aimport.octets import whole
from aimport.results import UserResult
from aimport.stores.memory import Event, Failure
from tests.pipeline.harness import QUICK, World, bodies, holds, multiset

NUL: Final = ("", "Message contains NUL characters")
INVALID: Final = ("BADHEADER", "Message contains invalid header")


def refuse(message: Message) -> tuple[str, str] | None:
    """As Cyrus: no NUL, and all of the first line is a field; one message is never good enough."""
    body = whole(message.body)
    if b"hopeless" in body:
        return ("", "not this one")
    if b"\0" in body:
        return NUL
    return INVALID if b":" not in body.partition(b"\r\n")[0] else None


def bad(number: int) -> bytes:
    """Refused; the second rung has no NUL left and is taken."""
    return b"Subject: %d\0\r\n\r\nno end" % number


def mended(number: int) -> bytes:
    return b"Subject: %d\r\n\r\nno end\r\n" % number


HOPELESS: Final = b"Subject: hopeless\r\n\r\n\0no end"


def world(*, atomic: bool = True, journal: Journal | None = None) -> World:
    made = World(limits=replace(QUICK, batch_messages=5), journal=journal or Journal.in_memory())
    made.new.refuse = refuse
    made.new.atomic = atomic
    return made


async def repaired(at: World) -> UserResult:
    run = at.run()
    run.repair = True
    return await at.import_("bob", run=run)


def stored(at: World) -> list[bytes]:
    return [body for body, _, _ in holds(at.new, "bob").get("INBOX", [])]


def ends(result: UserResult) -> tuple[str, int, int, int]:
    assert result.balanced
    return result.status, result.imported, result.altered, sum(result.rejected.values())


ATOMIC = pytest.mark.parametrize("atomic", [True, False], ids=["multiappend", "one-by-one"])


@ATOMIC
async def test_a_message_is_taken_at_the_second_rung_and_its_neighbours_as_they_are(atomic: bool) -> None:
    at = world(atomic=atomic)
    at.fill("bob", "INBOX", [*bodies(3), bad(7), *bodies(3, start=3)])
    result = await repaired(at)
    assert ends(result) == ("done", 7, 1, 0)
    assert Counter(stored(at)) == Counter([*bodies(6), mended(7)])
    [entry] = [
        entry
        for entry in at.journal.entries("bob")
        if isinstance(entry.outcome, Appended) and entry.outcome.repaired is not None
    ]
    assert isinstance(entry.outcome, Appended) and entry.outcome.repaired is not None
    kept = entry.outcome.repaired
    assert (kept.steps, kept.reason) == (("final-crlf", "nul"), "Message contains NUL characters")
    assert (kept.original.size, kept.original.digest) == (len(bad(7)), hashlib.sha256(bad(7)).digest())
    assert entry.fingerprint is not None
    assert entry.fingerprint.digest == hashlib.sha256(mended(7)).digest()
    assert result.octets == sum(map(len, [*bodies(6), mended(7)]))


async def test_a_repaired_message_keeps_its_flags_and_its_date() -> None:
    at = world()
    at.fill("bob", "INBOX", [bad(1), bad(2)], flags=("\\Seen", "Project-X"))
    await repaired(at)
    expected = [(mended(n), date, flags) for n, (_, date, flags) in enumerate(holds(at.old, "bob")["INBOX"], 1)]
    assert holds(at.new, "bob")["INBOX"] == expected


@ATOMIC
async def test_a_message_that_is_never_taken_is_rejected_once_in_the_first_words(atomic: bool) -> None:
    at = world(atomic=atomic)
    said = iter([*["in company"] * (2 if atomic else 0), "first words", *["later words"] * 50])
    at.new.refuse = lambda message: ("CODE", next(said)) if b"hopeless" in whole(message.body) else None
    at.fill("bob", "INBOX", [*bodies(1), HOPELESS, *bodies(2, start=1)])
    result = await repaired(at)
    assert ends(result) == ("rejects", 3, 0, 1)
    assert dict(result.rejected) == {"CODE": 1}
    assert Counter(stored(at)) == Counter(bodies(3))
    log = await at.journal.begin_user("bob", "memory:new#bob")
    [rejection] = log.lanes["INBOX", "INBOX"].rejected.values()
    assert rejection.text == "first words"


async def test_nothing_is_changed_unasked() -> None:
    at = world()
    at.fill("bob", "INBOX", [*bodies(2), bad(7), HOPELESS])
    result = await at.import_("bob")
    assert ends(result) == ("rejects", 2, 0, 2)
    assert stored(at) == bodies(2)


async def test_a_message_without_anything_to_change_is_rejected() -> None:
    at = world()
    at.new.refuse = lambda message: ("", "the message has no octets") if not message.body else None
    at.fill("bob", "INBOX", [*bodies(1), b""])
    assert ends(await repaired(at)) == ("rejects", 1, 0, 1)


@ATOMIC
async def test_many_in_many_batches_are_repaired_and_none_is_doubled(atomic: bool) -> None:
    at = world(atomic=atomic)
    sent = [bad(n) if n % 3 == 0 else HOPELESS + b"%d" % n if n % 11 == 0 else bodies(1, start=n)[0] for n in range(60)]
    at.fill("bob", "INBOX", sent)
    at.fill("bob", "Other", [bad(n) for n in range(100, 107)])
    result = await repaired(at)
    hopeless = sum(body.startswith(HOPELESS) for body in sent)
    assert ends(result) == ("rejects", 67 - hopeless, 27, hopeless)
    expected = [mended(n) if n % 3 == 0 else sent[n] for n in range(60) if not sent[n].startswith(HOPELESS)]
    assert Counter(stored(at)) == Counter(expected)
    assert [body for body, _, _ in holds(at.new, "bob")["Other"]] == [mended(n) for n in range(100, 107)]


@pytest.mark.parametrize("error", [ConnectionLost("cut"), ServerBug("oops"), OverQuota("full")])
async def test_a_wider_failure_within_a_rung_is_no_verdict_on_the_message(error: AimportError) -> None:
    at = world()
    at.fill("bob", "INBOX", [*bodies(2), bad(7)])
    failed: list[bytes] = []

    def fail(message: Message) -> AimportError | None:
        if whole(message.body) == mended(7) and not failed:
            failed.append(mended(7))
            return error
        return None

    at.new.fail = fail
    result = await repaired(at)
    if isinstance(error, OverQuota):  # which is not tried again before a resume
        assert ends(result)[:3] == ("quota", 2, 0)
        result = await repaired(at)
    assert failed
    assert ends(result) == ("done", 3, 1, 0)
    assert Counter(stored(at)) == Counter([*bodies(2), mended(7)])


@pytest.mark.parametrize("kept", [0, 1])
async def test_a_rung_without_an_answer_is_found_again_and_told_as_a_repair(kept: int) -> None:
    at = world()
    at.fill("bob", "INBOX", [bad(7)])
    # 1 is the original, 2 the first rung, 3 the one that is taken.
    at.new.failures = [Failure(nth=3, error=ConnectionLost("cut"), stored=kept)]
    result = await repaired(at)
    assert ends(result) == ("done", 1, 1, 0)
    assert stored(at) == [mended(7)]


async def test_any_sequence_of_cuts_repairs_like_an_uncut_run() -> None:
    for seed in range(60):
        chance = random.Random(seed)
        at = world(atomic=chance.random() < 0.5)
        at.limits = replace(
            QUICK,
            batch_messages=chance.randrange(1, 7),
            batches_ahead=chance.randrange(1, 4),
            attempts=80,
            retry_wait_s=0,
        )
        sent = [chance.choice([*bodies(3), bad(1), bad(2), HOPELESS]) for _ in range(chance.randrange(1, 25))]
        at.fill("bob", "INBOX", sent)

        async def cut(event: Event, chance: random.Random = chance) -> None:
            """Before a batch came to the server, or before its answer came to us."""
            # So rarely that no message is lost alone three times, which would be held against it.
            if event.verb in ("append", "outcomes") and chance.random() < 0.03:
                raise ConnectionLost(f"cut at {event.verb}")
            if event.verb == "outcomes" and chance.random() < 0.3:
                await anyio.wait_all_tasks_blocked()

        at.new.hook = cut
        result = await repaired(at)
        hopeless, changed = sent.count(HOPELESS), sent.count(bad(1)) + sent.count(bad(2))
        assert ends(result)[1:] == (len(sent) - hopeless, changed, hopeless), seed
        expected = [{bad(1): mended(1), bad(2): mended(2)}.get(body, body) for body in sent if body != HOPELESS]
        assert Counter(stored(at)) == Counter(expected), seed


async def test_a_second_run_of_the_journal_repairs_nothing_again(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, job="j", arguments=RunArguments(argv=(), cwd="/"))
    at = world(journal=journal)
    at.fill("bob", "INBOX", [*bodies(2), bad(7), bad(8)])
    assert ends(await repaired(at)) == ("done", 4, 2, 0)
    appends = at.new.appends
    assert ends(await repaired(at)) == ("done", 4, 2, 0)
    await journal.close(finished=True)
    at.journal = Journal.reopen(tmp_path, None)
    assert ends(await repaired(at)) == ("done", 4, 2, 0)
    await at.journal.close(finished=True)
    assert at.new.appends == appends
    assert multiset(at.new, "bob").total() == 4


async def test_a_resume_with_repair_mends_what_was_rejected_without(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, job="j", arguments=RunArguments(argv=(), cwd="/"))
    at = world(journal=journal)
    at.fill("bob", "INBOX", [*bodies(2), bad(7)])
    assert ends(await at.import_("bob")) == ("rejects", 2, 0, 1)
    assert ends(await repaired(at)) == ("done", 3, 1, 0)
    await journal.close(finished=True)
    assert journal.directory is not None
    assert (journal.directory / "rejects.jsonl").read_bytes() == b""


@pytest.mark.parametrize("wire", [True, False])
async def test_the_original_is_kept_under_the_name_of_its_digest(wire: bool, tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, job="j", arguments=RunArguments(argv=(), cwd="/"))
    at = world(journal=journal)
    at.new.wire = wire
    at.fill("bob", "INBOX", [bad(7).replace(b"\r\n", b"\n"), HOPELESS])
    await repaired(at)
    await journal.close(finished=True)
    assert journal.directory is not None
    [line] = [json.loads(line) for line in (journal.directory / "repairs.jsonl").read_text().splitlines()]
    assert (journal.directory / line["escrow"]).read_bytes() == bad(7)
    digests = {hashlib.sha256(body).hexdigest() for body in (bad(7), HOPELESS)}
    kept = list((journal.directory / "escrow").iterdir())
    assert {file.name for file in kept} == {f"{digest}.eml" for digest in digests}
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in kept)
    assert [hashlib.sha256(body).hexdigest() for body in stored(at)] == [line["stored"]["sha256"]]


async def test_octets_in_flight_are_given_back_after_a_repair() -> None:
    at = world()
    at.fill("bob", "INBOX", [bad(n) if n % 2 else HOPELESS for n in range(40)])
    run = at.run()
    run.repair = True
    assert (await at.import_("bob", run=run)).balanced
    assert run.budget.free == at.limits.max_memory
