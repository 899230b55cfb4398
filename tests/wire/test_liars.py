"""Servers that say what is not so. Invariant: nothing counts as stored that was not, and what is lost is told.

What can be shown with a session alone is in `tests/unit/test_imap_hostile.py` (rows I1 to I9) and
`tests/unit/test_imap_client.py`; here whole imports go through it, with reconnecting and looking after.
"""

from __future__ import annotations

import tracemalloc
import zlib
from dataclasses import replace
from typing import Final

import pytest

from aimport.results import UserResult, exit_code
from tests.wire.server import HASTY, QUICK, Call, Hook, Server, Wires, bodies, facts

SYNC: Final = "IMAP4rev1 UIDPLUS"
MULTI: Final = "IMAP4rev1 LITERAL+ UIDPLUS MULTIAPPEND"

pytestmark = pytest.mark.timeout(100)


def whole(result: UserResult) -> tuple[str, int, int]:
    return result.status, result.imported, result.maybe_duplicate


# Receipts


async def early_ok(call: Call) -> bool:
    """OK before the literal was sent."""
    return call.literal is not None and call.answers and call.session.number == 1 and call.ok("[APPENDUID 7 1] stored")


async def other_tag(call: Call) -> bool:
    return call.name == "APPEND" and call.literal is None and call.session.number == 1 and call.say("zz9 OK stored")


async def next_tag(call: Call) -> bool:
    """OK for a command that was not sent yet, or is behind this one."""
    if call.name == "APPEND" and call.literal is None and call.session.number == 1:
        return call.say(f"a{int(call.tag[1:]) + 1} OK stored")
    return False


async def two_oks(call: Call) -> bool:
    if call.name == "APPEND" and call.literal is None and call.session.number == 1:
        await call.carry_out()
        return call.ok()
    return False


async def untagged_ok(call: Call) -> bool:
    if call.name == "APPEND" and call.literal is None and call.session.number == 1:
        call.say("* OK [APPENDUID 7 1] stored")
        return await call.close()
    return False


async def plus_unasked(call: Call) -> bool:
    """`+` where no literal was announced: the next literal must not be sent on it."""
    if call.name in ("CREATE", "EXAMINE", "APPEND") and call.literal is None and call.session.number == 1:
        return call.say("+ go on")
    return False


async def plus_twice(call: Call) -> bool:
    if call.literal is not None and call.answers and call.session.number == 1:
        call.say("+ go on", "+ go on")
        return await call.close()
    return False


@pytest.mark.parametrize("offered", [SYNC, "IMAP4rev1 LITERAL+ UIDPLUS", MULTI])
@pytest.mark.parametrize(
    "lie", [early_ok, other_tag, next_tag, two_oks, untagged_ok, plus_unasked, plus_twice], ids=lambda lie: lie.__name__
)
async def test_no_lie_of_a_receipt_loses_or_doubles_a_message(lie: Hook, offered: str) -> None:
    """The server stores nothing when it lies, or says it twice, and does so on its first connection only."""
    wires = Wires(limits=replace(QUICK, batch_messages=4))
    wires.fill(bodies(12))
    async with Server(offered=offered, hook=lie).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert server.bodies() == bodies(12), result.error
    assert whole(result) == ("done", 12, 0)


@pytest.mark.parametrize("offered", [SYNC, MULTI])
async def test_a_server_that_always_lies_is_never_believed(offered: str) -> None:
    async def lies(call: Call) -> bool:
        return call.name == "APPEND" and call.literal is None and call.say("zz9 OK stored")

    wires = Wires()
    wires.fill(bodies(30))
    async with Server(offered=offered, hook=lies).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.imported, server.bodies()) == (0, [])
    assert result.status == "failed"
    assert "was not sent, or out of order" in (result.error or "")
    assert sum(result.rejected.values()) <= 3  # what costs the connection each time is no message's fault


@pytest.mark.parametrize("said", ["7 900", "7 1:4", "0 0", "7 0", "7 99999999999", "7 3,2,1", "8 1", "x y", "7"])
@pytest.mark.parametrize("offered", ["IMAP4rev1 LITERAL+ UIDPLUS", MULTI])
async def test_strange_uids_of_a_receipt_cost_nothing(said: str, offered: str) -> None:
    """The OK alone is the receipt. The connection is lost afterwards, so what is stored must be looked for."""

    async def strange(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and call.session.number == 1:
            if call.nth > 4:
                return await call.close()
            call.session.store(call)
            return call.ok(f"[APPENDUID {said}] stored")
        return False

    wires = Wires(limits=replace(QUICK, batch_messages=3, batches_ahead=1))
    wires.fill(bodies(20))
    async with Server(offered=offered, hook=strange).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert server.bodies() == bodies(20), result.error
    assert whole(result) == ("done", 20, 0)


async def test_a_no_for_what_was_stored_is_a_duplicate_rather_than_a_loss() -> None:
    async def stores_and_says_no(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and call.nth == 2:
            call.session.store(call)
            return call.no("[SERVERBUG] oh")
        return False

    wires = Wires()
    wires.fill(bodies(5))
    async with Server(hook=stores_and_says_no).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.status, result.imported) == ("done", 5)
    assert set(server.bodies()) == set(bodies(5))


# What a mailbox is said to hold


@pytest.mark.parametrize(
    ("exists", "unlisted"),
    [(6, 0), (1, 0), (1000, 994), (4294967295, 4294967289)],
)
async def test_messages_that_are_counted_and_not_listed_are_told(exists: int, unlisted: int) -> None:
    """Invariant: success promises that all messages arrived, those too that the server only counts."""

    async def counts(call: Call) -> bool:
        if call.name == "EXAMINE":
            call.say(f"* {exists} EXISTS", "* OK [UIDVALIDITY 7] x")
            call.session.box = call.server.accounts["bob"]["INBOX"]
            return call.ok()
        return False

    wires = Wires()
    async with Server(hook=counts).running() as server:
        server.fill("bob", "INBOX", bodies(6))
        result = await wires.import_(source=server.endpoint())
    assert wires.arrived() == bodies(6)
    assert result.balanced
    assert (result.status, result.found) == ("rejects" if unlisted else "done", 6 + unlisted)
    assert result.skipped == ({"unlisted": unlisted} if unlisted else {})


@pytest.mark.parametrize("answer", ["OK", "NO [EXPUNGEISSUED] Some of the requested messages no longer exist."])
@pytest.mark.fault("F23")
async def test_a_message_expunged_while_the_mailbox_is_listed_is_no_failure(answer: str) -> None:
    async def expunge(call: Call) -> bool:
        if call.name != "UID FETCH" or "RFC822.SIZE" not in call.text:
            return False
        gone = call.session.box.messages.pop(1)
        for seq, message in enumerate(call.session.box.messages, 1):
            call.peer.octets_out(b"* %d FETCH (%s)\r\n" % (seq, b" ".join(facts(message, call.text))))
        assert gone.uid == 2
        return call.say(*["* 2 EXPUNGE"] * (answer == "OK"), f"{call.tag} {answer}")

    wires = Wires()
    async with Server(hook=expunge).running() as server:
        server.fill("bob", "INBOX", bodies(4))
        result = await wires.import_(source=server.endpoint())
    good = bodies(4)
    assert wires.arrived() == good[:1] + good[2:]
    assert (result.status, result.found) == ("done", 3), result.error


async def test_messages_of_other_uids_are_never_taken_for_those_asked_for() -> None:
    async def others(call: Call) -> bool:
        if call.name == "UID FETCH" and "BODY" in call.text:
            for seq, message in enumerate(call.session.box.messages, 1):
                call.peer.octets_out(
                    b"* %d FETCH (%s)\r\n" % (seq, b" ".join(facts(replace(message, uid=message.uid + 100), call.text)))
                )
            return call.ok()
        return False

    wires = Wires()
    async with Server(hook=others).running() as server:
        server.fill("bob", "INBOX", bodies(6))
        result = await wires.import_(source=server.endpoint())
    assert wires.arrived() == []
    assert (result.status, result.imported, result.skipped) == ("rejects", 0, {"vanished": 6})


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, 1e6])
async def test_sizes_that_lie_change_no_octet_and_are_told_once(
    factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Row I6: the octets win."""

    async def sizes(call: Call) -> bool:
        if call.name == "UID FETCH" and "RFC822.SIZE" in call.text:
            for seq, message in enumerate(call.session.box.messages, 1):
                size = int(len(message.body) * (factor if message.uid % 2 else 1.0))
                call.say(f"* {seq} FETCH (UID {message.uid} RFC822.SIZE {size})")
            return call.ok()
        return False

    wires = Wires()
    async with Server(hook=sizes).running() as server:
        server.fill("bob", "INBOX", bodies(10))
        result = await wires.import_(source=server.endpoint())
    assert wires.arrived() == bodies(10)
    assert result.status == "done", result.error
    assert [line.message for line in caplog.records if "size-mismatch" in line.message] == [
        "size-mismatch mailbox=INBOX messages=5"
    ]


async def test_sizes_that_are_right_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    wires = Wires()
    async with Server().running() as server:
        server.fill("bob", "INBOX", bodies(10), flags="\\Seen \\Recent $Forwarded")
        await wires.import_(source=server.endpoint())
    assert "size-mismatch" not in caplog.text
    assert "dropped" not in caplog.text


async def test_system_flags_that_nobody_knows_are_dropped_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Row I8 at the source: the destination never hears of them, so that is where it must be told."""
    wires = Wires()
    async with Server().running() as server:
        server.fill("bob", "INBOX", bodies(3), flags="\\Seen \\Foo \\XList")
        server.fill("bob", "INBOX", bodies(2, start=3), flags="\\Seen \\Foo")
        result = await wires.import_(source=server.endpoint())
    assert result.status == "done"
    flags = [message.flags for message in wires.new.accounts["bob"][("INBOX",)].messages]
    assert flags == [frozenset({"\\Seen"})] * 5
    assert [line.message for line in caplog.records if "system flags" in line.message] == [
        "unknown system flags dropped mailbox=INBOX flags=\\Foo:5 \\XList:3"
    ]


# UIDs


@pytest.mark.fault("F23")
async def test_a_source_whose_uidvalidity_changes_midway_is_read_from_the_beginning() -> None:
    async def changing(call: Call) -> bool:
        if call.name == "EXAMINE" and call.nth == 2:
            call.server.accounts["bob"]["INBOX"].validity = 8
        return False

    wires = Wires()
    async with Server(hook=changing).running() as server:
        server.fill("bob", "INBOX", bodies(6))
        result = await wires.import_(source=server.endpoint())
    assert wires.arrived() == bodies(6)
    assert (result.status, result.imported, result.found) == ("done", 6, 6), result.error


async def test_a_source_whose_uidvalidity_always_changes_ends_and_says_so() -> None:
    async def changing(call: Call) -> bool:
        if call.name == "EXAMINE":
            call.server.accounts["bob"]["INBOX"].validity += 1
        return False

    wires = Wires()
    async with Server(hook=changing).running() as server:
        server.fill("bob", "INBOX", bodies(6))
        server.fill("bob", "INBOX", [])
        result = await wires.import_(source=server.endpoint())
    assert (result.status, result.imported, wires.arrived()) == ("failed", 0, [])
    assert "UIDVALIDITY changed" in (result.error or "")


@pytest.mark.parametrize("stored", [True, False])
async def test_a_destination_whose_uidvalidity_changes_with_the_connection_gets_every_message_once(
    stored: bool,
) -> None:
    async def cut(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and call.nth == 3:
            if stored:
                await call.carry_out()
            box = call.server.accounts["bob"]["INBOX"]
            box.validity = 99
            for uid, message in enumerate(box.messages, 1):
                message.uid = uid + 1000
            box.next_uid = 2000
            return await call.close()
        return False

    wires = Wires()
    wires.fill(bodies(8))
    async with Server(hook=cut).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert server.bodies() == bodies(8), result.error
    assert whole(result) == ("done", 8, 0)


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("uidnext", [1, 2, 3, 1000, 4294967295, None])
async def test_a_uidnext_that_lies_loses_nothing(uidnext: int | None, nth: int) -> None:
    """Too low finds too much, which is compared; too high finds nothing: a duplicate rather than a loss, and told."""

    async def lies(call: Call) -> bool:
        if call.name == "EXAMINE":
            box = call.session.box = call.server.accounts["bob"]["INBOX"]
            said = [f"* OK [UIDNEXT {uidnext}] x"] if uidnext is not None else []
            call.say(f"* {len(box.messages)} EXISTS", f"* OK [UIDVALIDITY {box.validity}] x", *said)
            return call.ok()
        if call.name == "APPEND" and call.literal is None and call.nth == nth:
            await call.carry_out()
            return await call.close()
        return False

    before = b"Subject: was there\r\n\r\n"
    wires = Wires(limits=replace(QUICK, batch_messages=2, batches_ahead=1))
    wires.fill(bodies(8))
    async with Server(hook=lies).running() as server:
        server.fill("bob", "INBOX", [before])
        result = await wires.import_(destination=server.endpoint())
    assert set(server.bodies()) == {before, *bodies(8)}
    assert (result.status, result.imported) == ("done", 8), result.error
    unseen = uidnext == 3 and nth == 1  # of a UID that is too high by one nothing ever tells
    assert len(server.bodies()) == 9 + result.maybe_duplicate + unseen
    if uidnext is None or uidnext <= 2 or nth > 1:  # the UIDs of receipts show what is wrong
        assert not result.maybe_duplicate


@pytest.mark.parametrize("offered", [SYNC, "IMAP4rev1 LITERAL+ UIDPLUS", MULTI])
@pytest.mark.parametrize("again", [False, True])
async def test_an_ok_for_what_was_not_stored_is_found_out(offered: str, again: bool) -> None:
    """Once, and the message is sent once more; `again`: each time, and it is told."""
    lied = 0

    async def ok_and_nothing(call: Call) -> bool:
        nonlocal lied
        if call.name == "APPEND" and call.literal is None and (again or not lied):
            lied += 1
            return call.ok("stored")
        return False

    wires = Wires(limits=replace(QUICK, batch_messages=2))
    wires.fill(bodies(8))
    async with Server(offered=offered, hook=ok_and_nothing).running() as server:
        result = await wires.import_(destination=server.endpoint())
    if again:
        assert (result.status, dict(result.rejected), server.bodies()) == ("rejects", {"lost": 8}, [])
        assert exit_code([result], single_user=True, stopped=False) == 65
    else:
        assert whole(result) == ("done", 8, 0)
        assert sorted(server.bodies()) == sorted(bodies(8))


# Capabilities, data without end, silence


async def test_literals_follow_what_is_offered_after_the_login() -> None:
    waited: list[bool] = []

    async def note(call: Call) -> bool:
        waited.extend([call.answers] * (call.literal is not None))
        return False

    wires = Wires()
    wires.fill(bodies(4))
    before = "IMAP4rev1 AUTH=PLAIN SASL-IR LITERAL+ MULTIAPPEND"
    async with Server(before=before, offered="IMAP4rev1", hook=note).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.imported, server.bodies(), waited) == (4, bodies(4), [True] * 4)


async def test_a_capability_taken_back_later_changes_no_literal_under_way() -> None:
    async def takes_back(call: Call) -> bool:
        if call.name == "APPEND":
            call.say("* CAPABILITY IMAP4rev1")
        return False

    wires = Wires()
    wires.fill(bodies(20))
    async with Server(hook=takes_back).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert (result.imported, server.bodies()) == (20, bodies(20))


@pytest.mark.fault("F8")
async def test_data_without_end_while_a_receipt_is_awaited_takes_no_memory_and_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aimport.imap.connection.MAX_COLLECTED", 100_000)
    line = b"* 9 FETCH (UID 9 FLAGS (a b c d))\r\n* 9 EXISTS\r\n* OK still here\r\n" * 500
    sent = 0

    async def flood(call: Call) -> bool:
        nonlocal sent
        if call.name == "APPEND" and call.literal is None and call.session.number == 1:
            while sent < 1000:
                call.peer.octets_out(line)
                await call.peer.flushed()
                sent += 1
            raise AssertionError("this was to end before")
        return False

    wires = Wires()
    wires.fill(bodies(3))
    async with Server(hook=flood).running() as server:
        tracemalloc.start()
        try:
            result = await wires.import_(destination=server.endpoint())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (result.status, server.bodies()) == ("done", bodies(3)), result.error
    assert 0 < sent < 1000
    assert peak < 20_000_000


@pytest.mark.fault("F7")
async def test_a_server_that_never_answers_fails_its_user_within_the_deadlines_and_no_other() -> None:
    async def silent(call: Call) -> bool:
        if call.session.user == "bob" and call.name == "APPEND":
            await call.peer.until_closed()
            return await call.close()
        return False

    wires = Wires(deadlines=HASTY, limits=replace(QUICK, attempts=2))
    for user in ("bob", "ann"):
        wires.fill(bodies(3), user=user)
    async with Server(offered=SYNC, hook=silent).running() as server:
        results = [await wires.import_(destination=server.endpoint(user=user)) for user in ("bob", "ann")]
    assert [result.status for result in results] == ["failed", "done"]
    assert "nothing moved for 0.5 s" in (results[0].error or "")
    assert results[0].imported == 0


@pytest.mark.parametrize("name", ["AUTHENTICATE", "LIST", "CREATE", "EXAMINE", "UID FETCH"])
@pytest.mark.fault("F7")
async def test_silence_at_any_command_ends(name: str) -> None:
    async def silent(call: Call) -> bool:
        if call.name == name:
            await call.peer.until_closed()
            return await call.close()
        return False

    wires = Wires(deadlines=HASTY, limits=replace(QUICK, attempts=1))
    async with Server(hook=silent).running() as server:
        server.fill("bob", "INBOX", bodies(3))
        wires.fill(bodies(3), mailbox="Sent")
        there = server.endpoint()
        result = await (wires.import_(destination=there) if name == "CREATE" else wires.import_(source=there))
    assert result.status == "failed"
    assert "nothing moved" in (result.error or "") or "deadline" in (result.error or "")


async def test_a_server_that_dies_of_one_message_loses_that_message_only() -> None:
    """It says nothing, so that the message is sent alone a few times before it is given up."""
    sick = b"Subject: sick\r\n\r\n"

    async def dies(call: Call) -> bool:
        return call.name == "APPEND" and call.literal is None and sick in call.literals and await call.close()

    good = bodies(30)
    wires = Wires(limits=replace(QUICK, batch_messages=8))
    wires.fill([*good[:10], sick, *good[10:]])
    async with Server(offered=MULTI, hook=dies).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert sorted(server.bodies()) == sorted(good)
    assert (result.status, result.imported, result.rejected) == ("rejects", 30, {"refused": 1}), result.error
    assert server.connections <= 6


# Compression


async def test_a_bomb_of_compressed_lines_ends_the_connection_and_takes_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row I12. 200 MB of untagged lines in 200 KB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    line = b"* OK " + b"x" * 9_000 + b"\r\n"
    bomb = b"".join(packer.compress(line * 100) for _ in range(220)) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 1_000_000

    async def explode(call: Call) -> bool:
        if call.name == "COMPRESS":
            call.ok()
            call.peer.octets_out(bomb)
            return await call.close()
        return False

    monkeypatch.setattr("aimport.imap.connection.MAX_COLLECTED_COST", 10_000_000)
    wires = Wires(limits=replace(QUICK, attempts=2))
    async with Server(offered="IMAP4rev1 COMPRESS=DEFLATE", hook=explode).running() as server:
        tracemalloc.start()
        try:
            result = await wires.import_(source=replace(server.endpoint(), compress="yes"))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert result.status == "failed"
    assert peak < 40_000_000
