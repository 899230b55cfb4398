"""The manifest names every message once, as it ended, and no line can be changed without a trace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from aimport.journal import Journal
from aimport.manifest import lines
from aimport.model import Message, MessageKey, Position, Rejected
from aimport.octets import fingerprint, whole
from tests.pipeline.harness import START, World, bodies

THREE, FOUR = bodies(2, start=3)
KEY = MessageKey("1:1")


def holds(manifest: Sequence[str]) -> bool:
    """What anybody can check with nothing but a SHA-256."""
    before = ""
    for line in manifest:
        text, _, chain = line[:-2].rpartition(',"chain":"')
        if hashlib.sha256((before + text + "}").encode()).hexdigest() != chain:
            return False
        before = chain
    return True


def manifest_of(journal: Journal) -> list[str]:
    return [line for line, _ in lines(journal)]


async def imported() -> World:
    at = World()
    at.fill("bob", "INBOX", bodies(5))
    at.fill("bob", "Sent", bodies(2, start=8))
    at.new.refuse = lambda message: ("TOOBIG", "no more than a kilobyte") if whole(message.body) == THREE else None
    at.old.unreadable = lambda message: ("vanished", "gone") if whole(message.body) == FOUR else None
    await at.import_("bob")
    return at


async def test_each_message_is_named_once_with_its_octets_and_what_became_of_it() -> None:
    at = await imported()
    manifest = [json.loads(line) for line in manifest_of(at.journal)]
    assert manifest[0]["run"] == at.journal.run
    messages = [each for each in manifest if "n" in each]
    assert [each["n"] for each in messages] == [1, 2, 3, 4, 5, 6, 7]
    assert sorted((each["source"], each["decision"]) for each in messages) == [
        *[("INBOX", "imported")] * 3,
        ("INBOX", "rejected"),
        ("INBOX", "skipped"),
        *[("Sent", "imported")] * 2,
    ]
    first = next(each for each in messages if each["key"] == "1:1")
    expected = fingerprint(bodies(1)[0])
    assert (first["size"], first["sha256"], first["uid"]) == (expected.size, expected.digest.hex(), 1)
    [rejected] = [each for each in messages if each["decision"] == "rejected"]
    assert rejected["reason"] == "[TOOBIG] no more than a kilobyte"
    assert manifest[-2]["user"] == "bob" and manifest[-2]["imported"] == 5
    assert manifest[-1]["messages"] == 7


async def test_what_a_later_try_imports_is_no_longer_called_rejected() -> None:
    at = await imported()
    at.new.refuse = None
    await at.import_("bob")
    messages = [json.loads(line) for line in manifest_of(at.journal)]
    assert [each["decision"] for each in messages if each.get("key") == "1:4"] == ["imported"]


async def test_a_message_in_doubt_is_called_so() -> None:
    at = World()
    lane = await (await at.journal.begin_user("bob", "x")).lane("INBOX", "INBOX", Position(uidvalidity=1, uidnext=1))
    message = Message(key=KEY, flags=frozenset(), internal_date=START, body=bodies(1)[0])
    await lane.intent([message], [fingerprint(bodies(1)[0])])
    await lane.reject([Rejected(key=MessageKey("1:2"), code="", text="unreadable")])
    manifest = [json.loads(line) for line in manifest_of(at.journal)]
    assert [each["decision"] for each in manifest if "n" in each] == ["rejected", "in doubt"]
    assert manifest[-2] == {**manifest[-2], "user": "bob", "status": "stopped"}


async def test_a_line_that_is_changed_added_moved_or_left_out_breaks_the_chain() -> None:
    manifest = manifest_of((await imported()).journal)
    assert holds(manifest)
    for place in range(len(manifest) - 1):
        assert not holds([*manifest[:place], *manifest[place + 1 :]])
        assert not holds([*manifest[:place], manifest[place + 1], manifest[place], *manifest[place + 2 :]])
        assert not holds([*manifest[:place], manifest[place].replace('"', "'", 1), *manifest[place + 1 :]])
        assert not holds([*manifest[:place], manifest[place], *manifest[place:]])


async def test_the_chain_of_a_second_run_goes_on_from_the_first() -> None:
    first, second = [list(lines((await imported()).journal)) for _ in range(2)]
    assert holds([line for line, _ in first])
    at = await imported()
    both = [line for line, _ in first] + [line for line, _ in lines(at.journal, first[-1][1])]
    assert holds(both)
    assert not holds([line for line, _ in first + second])
