"""The shards of a journal: a run by several processes is, to whoever reads it, a run like any other."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from aimport import journal as module
from aimport.errors import JournalBusy, JournalDamaged, JournalError, RunHeld, UserError
from aimport.journal import HERE, Entry, Journal, LaneLog, RunArguments, shard_directory
from aimport.manifest import lines
from aimport.model import Appended, Fingerprint, Message, MessageKey, Rejected, Repaired
from aimport.results import UserResult
from tests.unit.test_journal import DEST, begin_lane, create, some, stored

NAMES = ("bob", "änne", "carl", "dora", "emil")


def known(*names: str) -> list[tuple[str, str]]:
    return [(name, DEST.format(name)) for name in names]


async def copy(journal: Journal, user: str, *, base: int = 0) -> LaneLog:
    """Three messages of a user: two stored, one rejected; and an end."""
    lane = await begin_lane(journal, user)
    messages, prints = some(3, base)
    batch = await lane.intent(messages, prints)
    refused = Rejected(key=messages[2].key, code="TOOBIG", text="too big")
    await lane.commit(batch, [*stored(messages[:2]), refused])
    result = UserResult(user=user, status="rejects", found=3, imported=2, rejected={"TOOBIG": 1}, octets=base)
    await journal.finish_user(user, result)
    return lane


def entries(journal: Journal, user: str) -> list[Entry]:
    return list(journal.entries(user))


async def by_one(root: Path) -> Journal:
    journal = create(root)
    for number, user in enumerate(NAMES):
        await copy(journal, user, base=10 * number)
    return journal


async def by_several(root: Path) -> Journal:
    """The same in two shards, whose processes end in another order than they began."""
    journal = create(root)
    assert await journal.open_places() == HERE
    directory = root / journal.run
    await journal.hand_out(1, known("bob", "carl"))
    await journal.hand_out(2, known("änne", "dora", "emil"))
    shards = [Journal.open_shard(directory, number) for number in (2, 1)]
    for shard, names in zip(shards, (("emil", "dora", "änne"), ("carl", "bob")), strict=True):
        for user in names:
            await copy(shard, user, base=10 * NAMES.index(user))
        await shard.close(finished=False)
    return journal


async def test_what_several_processes_wrote_reads_as_if_one_had(tmp_path: Path) -> None:
    """Results, entries, manifest, rejects and what `runs` shows; users in the order they were handed out."""
    one, several = await by_one(tmp_path / "one"), await by_several(tmp_path / "several")
    order = ("bob", "carl", "änne", "dora", "emil")
    assert [result.user for result in several.results()] == list(order)
    assert {each.user: each for each in several.results()} == {each.user: each for each in one.results()}
    assert list(several.begun()) == list(one.begun()) == []

    def seen(journal: Journal, user: str) -> list[tuple[object, ...]]:
        return [
            (each.lane.source, each.lane.destination, each.lane.position, each.key, each.fingerprint, each.outcome)
            for each in journal.entries(user)
        ]

    for user in NAMES:
        assert seen(one, user) == seen(several, user) != []
        assert [lane.source for lane in several.lanes(user)] == ["INBOX"]
    await one.close(finished=True)
    await several.close(finished=True)

    def rejects(journal: Journal) -> list[object]:
        assert journal.directory is not None
        text = (journal.directory / "rejects.jsonl").read_text()
        return sorted((json.loads(line) for line in text.splitlines()), key=lambda line: line["user"])

    assert rejects(one) == rejects(several) != []
    for root, journal in ((tmp_path / "one", one), (tmp_path / "several", several)):
        with Journal.view(root, journal.run) as view:
            written = [json.loads(line) for line, _ in lines(view)]
        assert len(written) == 2 + len(NAMES) * 4
        [info] = module.runs(root)
        assert dict(info.counts) == {"rejects": len(NAMES)}
    assert list(several.results()) == list(several.results()), "also after it was closed"


async def test_who_looks_at_shards_leaves_no_files_there(tmp_path: Path) -> None:
    journal = await by_several(tmp_path)
    shard = shard_directory(tmp_path / journal.run, 1)
    await journal.close(finished=True)
    before = {each.name for each in shard.iterdir()}
    with Journal.view(tmp_path, journal.run) as view:
        assert len(list(view.results())) == len(NAMES)
    assert {each.name for each in shard.iterdir()} == before


async def test_more_shards_than_are_kept_open_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await by_several(tmp_path)
    monkeypatch.setattr(module, "OPEN_SHARDS", 1)
    await journal.close(finished=False)
    with Journal.view(tmp_path, journal.run) as view:
        walks = [view.entries(user) for user in ("bob", "änne", "carl")]
        firsts = [next(walk).key for walk in walks]
        assert [[firsts[place], *(each.key for each in walk)] for place, walk in enumerate(walks)] == [
            [each.key for each in view.entries(user)] for user in ("bob", "änne", "carl")
        ]


async def test_a_user_keeps_its_shard_whoever_goes_on(tmp_path: Path) -> None:
    """By name, also with another destination, which the shard then refuses; by destination, under another name."""
    journal = await by_several(tmp_path)
    await journal.close(finished=False)
    again = Journal.reopen(tmp_path, journal.run)
    assert await again.open_places() == 2
    asked = [
        *known("bob", "änne", "new"),
        ("bob", "imap://elsewhere"),
        ("other", DEST.format("dora")),
    ]
    assert list(await again.homes(asked)) == [1, 2, None, 1, 2]
    shard = Journal.open_shard(tmp_path / journal.run, 1)
    assert len((await shard.begin_user("bob", DEST.format("bob"))).lanes) == 1
    with pytest.raises(UserError, match="this run imports to"):
        await shard.begin_user("bob", "imap://elsewhere")
    await shard.close(finished=False)
    await again.close(finished=False)


async def test_who_began_in_the_runs_own_journal_stays_there(tmp_path: Path) -> None:
    journal = create(tmp_path)
    await copy(journal, "bob")
    await journal.finish_user("nobody", UserResult(user="nobody", status="failed", error="no home"))
    await journal.close(finished=False)
    again = Journal.reopen(tmp_path, journal.run)
    assert await again.open_places() == HERE
    assert list(await again.homes([*known("bob", "new", "nobody"), ("other", DEST.format("bob"))])) == [
        HERE,
        None,
        None,
        HERE,
    ]
    await again.hand_out(1, known("new", "nobody"))
    shard = Journal.open_shard(tmp_path / journal.run, 1)
    await copy(shard, "nobody")
    await shard.close(finished=False)
    assert [(each.user, each.status) for each in again.results()] == [("bob", "rejects"), ("nobody", "rejects")]
    assert again.begun() == [], "who was only handed out did not begin"
    assert len(entries(again, "nobody")) == len(entries(again, "bob")) == 3
    await again.close(finished=False)


async def test_who_is_in_the_middle_of_a_shard_has_begun(tmp_path: Path) -> None:
    journal = create(tmp_path)
    await journal.hand_out(1, known("bob"))
    shard = Journal.open_shard(tmp_path / journal.run, 1)
    lane = await begin_lane(shard, "bob")
    await lane.intent(*some(2))
    assert list(journal.begun()) == ["bob"]
    assert [entry.outcome for entry in journal.entries("bob")] == [None, None]
    with Journal.view(tmp_path, journal.run) as view:
        assert list(view.begun()) == ["bob"]
    await shard.close(finished=False)
    await journal.close(finished=False)
    with pytest.raises(RunHeld, match="unfinished"):
        create(tmp_path)


HOLD = """
import sys
from pathlib import Path
from aimport.journal import Journal
shard = Journal.open_shard(Path(sys.argv[1]), 1)
print("open", flush=True)
sys.stdin.read()
"""


async def test_a_shard_has_one_process_and_is_free_as_soon_as_that_is_dead(tmp_path: Path) -> None:
    journal = create(tmp_path)
    await journal.hand_out(1, known("bob"))
    directory = tmp_path / journal.run
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        with pytest.raises(RunHeld):
            Journal.open_shard(directory, 1)
        holder.kill()
        holder.wait()
    shard = Journal.open_shard(directory, 1, alone=True)
    await copy(shard, "bob")
    await shard.close(finished=False)
    assert [each.user for each in journal.results()] == ["bob"]
    await journal.close(finished=False)


async def test_a_shard_that_another_machine_has_is_told_as_such(tmp_path: Path) -> None:
    """No network file system has the memory that SQLite would share: nobody else can look at it meanwhile."""
    journal = create(tmp_path)
    await journal.hand_out(1, known("bob"))
    await journal.hand_out(2, known("carl"))
    shard = Journal.open_shard(tmp_path / journal.run, 1, alone=True)
    await copy(shard, "bob")
    other = Journal.open_shard(tmp_path / journal.run, 2)
    await copy(other, "carl")
    assert [(each.user, each.status) for each in journal.results()] == [("bob", "stopped"), ("carl", "rejects")]
    assert journal.begun() == []
    with pytest.raises(JournalBusy):
        entries(journal, "bob")
    await shard.close(finished=False)
    await other.close(finished=False)
    assert [each.status for each in journal.results()] == ["rejects", "rejects"]
    await journal.close(finished=False)


async def test_a_shard_that_is_missing_is_told_and_never_begun_anew(tmp_path: Path) -> None:
    journal = await by_several(tmp_path)
    await journal.close(finished=False)
    (shard_directory(tmp_path / journal.run, 2)).rename(tmp_path / "away")
    with Journal.view(tmp_path, journal.run) as view, pytest.raises(JournalDamaged, match="000002 is missing"):
        list(view.results())
    with pytest.raises(JournalDamaged, match="000002 is missing"):
        Journal.open_shard(tmp_path / journal.run, 2)


async def test_a_shard_that_was_never_finished_being_made_is_made_anew(tmp_path: Path) -> None:
    """A process was killed between making it and saying whose it is."""
    journal = create(tmp_path)
    directory = shard_directory(tmp_path / journal.run, 1)
    directory.mkdir(parents=True)
    (directory / "journal.sqlite.new").write_bytes(b"half")
    await journal.hand_out(1, known("bob"))
    shard = Journal.open_shard(tmp_path / journal.run, 1)
    await shard.close(finished=False)
    await journal.close(finished=False)


async def test_a_place_that_was_changed_is_damage(tmp_path: Path) -> None:
    journal = await by_several(tmp_path)
    await journal.close(finished=False)
    with closing(sqlite3.connect(tmp_path / journal.run / "journal.sqlite")) as db:
        db.execute("UPDATE places SET shard=1 WHERE shard=2")
        db.commit()
    with pytest.raises(JournalDamaged, match="table places"):
        Journal.reopen(tmp_path, journal.run)


async def test_a_shard_of_another_run_is_refused(tmp_path: Path) -> None:
    ours, theirs = await by_several(tmp_path / "ours"), await by_several(tmp_path / "theirs")
    for journal in (ours, theirs):
        await journal.close(finished=False)
    mine = shard_directory(tmp_path / "ours" / ours.run, 1) / "journal.sqlite"
    mine.write_bytes((shard_directory(tmp_path / "theirs" / theirs.run, 1) / "journal.sqlite").read_bytes())
    with pytest.raises(JournalError, match="belongs to run"):
        Journal.open_shard(tmp_path / "ours" / ours.run, 1)


async def test_claims_are_made_before_anybody_else_can_work_on_a_destination(tmp_path: Path) -> None:
    journal, other = create(tmp_path), create(tmp_path, "other")
    await other.claim([DEST.format("bob")])
    with pytest.raises(RunHeld):
        await journal.hand_out(1, known("bob"))
    await journal.close(finished=False)
    await other.close(finished=False)
    assert not (tmp_path / journal.run / "shards").exists()


async def test_originals_of_repaired_messages_are_kept_where_those_of_one_process_are(tmp_path: Path) -> None:
    journal = create(tmp_path)
    await journal.hand_out(1, known("bob"))
    shard = Journal.open_shard(tmp_path / journal.run, 1)
    lane = await begin_lane(shard, "bob")
    original = Fingerprint(size=3, digest=b"x" * 32)
    repaired = Repaired(steps=("nul",), original=original, reason="NUL")
    messages: list[Message]
    messages, prints = some(1)
    await lane.escrow(original, b"a\0b")
    batch = await lane.intent(messages, prints, repaired=repaired)
    await lane.commit(batch, [Appended(key=MessageKey(messages[0].key), repaired=repaired)])
    await shard.close(finished=False)
    await journal.close(finished=False)
    [line] = (tmp_path / journal.run / "repairs.jsonl").read_text().splitlines()
    assert (tmp_path / journal.run / json.loads(line)["escrow"]).read_bytes() == b"a\0b"
    assert isinstance(journal.arguments, RunArguments)
