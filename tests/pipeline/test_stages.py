"""The doctor of a run names what was made slow, and nothing else: one part is slowed down, the others are in memory."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from aimport.account import Run
from aimport.interfaces import Destination
from aimport.journal import Journal, LaneLog, RunArguments
from aimport.model import Endpoint
from aimport.results import RunReport
from aimport.runners.local import run_plan
from aimport.stages import ENOUGH_S, MAX_PLACES, Finding, Processor, Stages, summed
from aimport.stores.maildir import MaildirDestination, MaildirSource, disk
from aimport.stores.maildir import source as maildir_source
from aimport.stores.memory import Event
from tests.pipeline.harness import QUICK, World, bodies, job
from tests.wire.server import Call, Server, Wires
from tests.wire.server import job as wire_job

pytestmark = pytest.mark.timeout(100)

SLOW_S = 0.1
"""So much longer than anything else takes for a batch, on a machine that is busy with others, too."""
MESSAGES = 640
USERS = ("bob", "eve")


def idle() -> Processor:
    return Processor(time.perf_counter(), 0.0, 0.0, 0.0)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory whose files cost next to nothing, where there is such a thing."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="aimport-stages-", dir=place) as folder:
        yield Path(folder)


def world() -> World:
    made = World(limits=replace(QUICK, users=2, connections_per_user=1))
    made.old.host, made.new.host = "old.example:993", "new.example:993"
    for user in USERS:
        made.fill(user, "INBOX", bodies(MESSAGES))
    return made


def slow(verb: str) -> Callable[[Event], Awaitable[None]]:
    async def hook(event: Event) -> None:
        if event.verb == verb:
            await anyio.sleep(SLOW_S)

    return hook


async def found(run: Run) -> Finding:
    ending = await run_plan([job(user) for user in USERS], run)
    assert ending.failure is None
    assert [result.status for result in run.journal.results()] == ["done"] * len(USERS)
    finding = run.stages.finding()
    assert finding is not None
    print(finding, *run.stages.rows(), sep="\n")
    return finding


async def test_a_slow_source_is_named() -> None:
    slowed = world()
    slowed.old.hook = slow("messages")
    finding = await found(slowed.run())
    assert (finding.stage, finding.host) == ("read", "old.example:993")
    assert finding.share > 0.6
    told = re.fullmatch(r"the source old\.example:993 takes ([0-9.]+) ms for a batch", finding.what)
    assert told is not None
    assert SLOW_S * 1000 <= float(told[1]) < 5 * SLOW_S * 1000
    assert "--connections-per-user" in finding.advice


async def test_a_slow_listing_is_named() -> None:
    slowed = world()
    for user in USERS:
        for number in range(10):
            slowed.fill(user, f"box{number}", bodies(1))
    slowed.old.hook = slow("select")
    finding = await found(slowed.run())
    assert (finding.stage, finding.host) == ("list", "old.example:993")


async def test_slow_logins_are_named() -> None:
    slowed = World(limits=replace(QUICK, users=2))
    slowed.new.host = "new.example:993"
    for user in USERS:
        slowed.fill(user, "INBOX", bodies(1))

    async def hook(event: Event) -> None:
        if event.verb == "open_destination":
            await anyio.sleep(3 * SLOW_S)

    slowed.new.hook = hook
    finding = await found(slowed.run())
    assert (finding.stage, finding.host) == ("connect", "new.example:993")


async def test_a_destination_that_is_slow_to_take_octets_is_named() -> None:
    slowed = world()
    slowed.new.hook = slow("append")
    finding = await found(slowed.run())
    assert (finding.stage, finding.host) == ("append-send", "new.example:993")


@pytest.mark.parametrize("offered", ["IMAP4rev1 LITERAL+ UIDPLUS MULTIAPPEND", "IMAP4rev1 LITERAL+ UIDPLUS"])
async def test_a_destination_that_is_slow_to_answer_is_named(offered: str) -> None:
    """Though three batches are under way and the sending itself never waits."""
    wires = Wires(limits=replace(QUICK, users=2, connections_per_user=1))
    for user in USERS:
        wires.fill(bodies(MESSAGES), user=user)

    async def hook(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and ("MULTIAPPEND" in offered or call.nth % 64 == 0):
            await anyio.sleep(SLOW_S)
        return False

    server = Server(offered=offered, hook=hook)
    run = wires.run()
    async with server.running():
        await run_plan([wire_job(destination=server.endpoint(user=user)) for user in USERS], run)
        host = f"127.0.0.1:{server.endpoint().port}"
    assert all(server.bodies(user) == bodies(MESSAGES) for user in USERS)
    finding = run.stages.finding()
    assert finding is not None
    print(finding, *run.stages.rows(), sep="\n")
    assert (finding.stage, finding.host) == ("append-wait", host)
    assert "waiting for its disk" in finding.what
    assert "--connections-per-user" in finding.advice


class Local(World):
    """Into Maildirs."""

    root: Path

    def destination(self, endpoint: Endpoint) -> Destination:
        path = str(self.root / "new" / endpoint.user)
        return MaildirDestination(Endpoint(scheme="maildir", path=path), "batch")


async def test_a_disk_that_is_slow_to_sync_is_named(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(group: disk.GroupSync) -> None:
        time.sleep(SLOW_S)

    monkeypatch.setattr(disk.GroupSync, "_sync_now", sync)
    slowed = Local(limits=replace(QUICK, users=2, connections_per_user=1))
    slowed.root = memory
    for user in USERS:
        slowed.fill(user, "INBOX", bodies(MESSAGES))
    finding = await found(slowed.run())
    assert (finding.stage, finding.host) == ("sync", "")
    assert "fsync" in finding.what


async def test_a_disk_that_is_slow_to_read_is_named(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(World):
        def source(self, endpoint: Endpoint) -> MaildirSource:
            return MaildirSource(Endpoint(scheme="maildir", path=str(memory / endpoint.user)))

    read = maildir_source._Reader.read

    def slowly(reader: maildir_source._Reader, wanted: object) -> object:
        time.sleep(SLOW_S)
        return read(reader, wanted)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(maildir_source._Reader, "read", slowly)
    for user in USERS:
        (memory / user / "cur").mkdir(parents=True)
        (memory / user / "new").mkdir()
        for number, body in enumerate(bodies(MESSAGES)):
            (memory / user / "cur" / f"{1500000000 + number}.x.y:2,S").write_bytes(body)
    finding = await found(Old(limits=replace(QUICK, users=2, connections_per_user=1)).run())
    assert (finding.stage, finding.host) == ("read", "")
    assert "reading the source's disk" in finding.what


async def test_a_journal_whose_disk_is_slow_is_named(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intent = LaneLog.intent

    async def slowly(lane: LaneLog, *given: object, **named: object) -> object:
        await anyio.sleep(SLOW_S)
        return await intent(lane, *given, **named)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(LaneLog, "intent", slowly)
    slowed = world()
    slowed.journal = Journal.create(memory, job="slow", arguments=RunArguments(argv=(), cwd="/"))
    finding = await found(slowed.run())
    await slowed.journal.close(finished=True)
    assert finding.stage == "journal"
    assert "--journal" in finding.advice


async def test_a_client_that_is_busy_is_named() -> None:
    """Small messages from memory to memory: nothing is waited for but the processor."""
    busy = World(limits=replace(QUICK, users=2))
    for user in USERS:
        busy.fill(user, "INBOX", bodies(2000))
    finding = await found(busy.run())
    assert finding.stage == "processor"
    assert finding.share > 0.75


async def test_users_who_wait_for_a_connection_are_told_beside_the_stage() -> None:
    slowed = World(limits=replace(QUICK, users=8, connections_per_host=1))
    slowed.new.host = "new.example:993"
    slowed.new.hook = slow("append")
    users = [f"user{number}" for number in range(8)]
    for user in users:
        slowed.fill(user, "INBOX", bodies(64))
    run = slowed.run()
    await run_plan([job(user) for user in users], run)
    finding = run.stages.finding()
    assert finding is not None
    assert finding.stage == "append-send"
    assert "wait for a free connection to new.example:993 (--connections-per-host)" in finding.advice


async def test_the_senders_time_is_divided_without_a_rest() -> None:
    """What is held up adds up to the time of the lanes: so the largest share is the largest part of it."""
    slowed = world()
    slowed.limits = replace(slowed.limits, users=1)
    slowed.old.hook, slowed.new.hook = slow("messages"), slow("append")
    run = slowed.run()
    began = time.perf_counter()
    await found(run)
    passed = time.perf_counter() - began
    held = sum(meter.held_s for meter in run.stages.mark().meters.values())
    assert held == pytest.approx(passed, rel=0.25)


async def test_a_finding_may_be_of_the_time_since_a_mark() -> None:
    slowed = world()
    slowed.old.hook = slow("messages")
    run = slowed.run()
    await found(run)
    since = run.stages.mark()
    assert run.stages.finding(since) is None  # nothing was done since
    slowed.old.hook, slowed.new.hook = None, slow("append")
    slowed.journal = run.journal = Journal.in_memory()
    await run_plan([job(user) for user in USERS], run)
    finding = run.stages.finding(since)
    assert finding is not None
    assert finding.stage == "append-send"


def test_of_little_nothing_is_said() -> None:
    stages = Stages(processor=idle)
    assert stages.finding() is None
    stages.meter("read", "x").hold(ENOUGH_S / 2)
    assert stages.finding() is None
    assert stages.to_json()["limited_by"] is None


def test_hosts_by_the_million_are_summed_up() -> None:
    stages = Stages(processor=idle)
    for number in range(3 * MAX_PLACES):
        stages.meter("read", f"host{number}").hold(1.0)
    mark = stages.mark()
    assert len(mark.meters) <= MAX_PLACES + 1
    assert sum(meter.held_s for meter in mark.meters.values()) == 3 * MAX_PLACES


@pytest.mark.parametrize(
    ("processor", "one", "all_"),
    [
        (Processor(10.0, 1.0, 1.0, 1.0), False, False),
        (Processor(10.0, 8.5, 1.0, 9.0), True, False),  # the loop
        (Processor(10.0, 1.0, 9.5, 9.5), True, False),  # threads that take turns at the interpreter
        (Processor(10.0, 1.0, 1.0, 10.0 * 10_000), False, True),  # all that there are
    ],
)
def test_a_processor_is_full_in_three_ways(processor: Processor, one: bool, all_: bool) -> None:
    assert (processor.one_is_full, processor.all_are_full) == (one, all_)


@pytest.mark.parametrize(
    ("processor", "what"),
    [
        (Processor(10.0, 8.5, 1.0, 8.5), "this process has its processor full, and can use no other"),
        (Processor(10.0, 1.0, 1.0, 1e6), "all processors of this machine are full"),
    ],
)
def test_when_the_processor_is_full_no_stage_is_blamed(processor: Processor, what: str) -> None:
    readings = iter([Processor(0.0, 0.0, 0.0, 0.0), processor])
    stages = Stages(processor=lambda: next(readings))
    stages.meter("read", "old.example:993").hold(9.0)
    finding = stages.finding()
    assert finding is not None
    assert (finding.stage, finding.host, finding.what) == ("processor", "", what)
    assert "old.example" not in str(finding)


def test_the_report_has_the_stages_behind_its_old_keys() -> None:
    stages = Stages(processor=idle)
    stages.meter("read", "old.example:993").hold(1.0)
    document = json.loads(json.dumps(RunReport(run="r", users=[], exit=0, stages=stages.to_json()).to_json()))
    assert list(document) == ["schema", "run", "users", "totals", "exit", "stages"]
    assert document["stages"]["limited_by"] == {
        "stage": "read",
        "host": "old.example:993",
        "share": 1.0,
        "advice": "more --connections-per-user or --users read at the same time, if it lets them",
    }
    [row] = document["stages"]["stages"]
    assert row == {"stage": "read", "host": "old.example:993", "batches": 1, "busy": 1.0, "waiting": 0.0, "held": 1.0}
    assert list(RunReport(run="r", users=[], exit=0).to_json()) == ["schema", "run", "users", "totals", "exit"]


def test_what_several_processes_measured_is_one_breakdown() -> None:
    """What limited is of the one that was held up longest; a line of another version is left out."""
    documents = []
    for seconds in (3.0, 9.0, 1.0):
        stages = Stages(processor=idle)
        stages.meter("read", f"h{seconds:.0f}").hold(seconds)
        stages.meter("journal").hold(0.5)
        documents.append(stages.to_json())
    one = summed([*documents, {"stages": "of tomorrow"}])
    assert one is not None
    assert isinstance(one["limited_by"], dict)
    assert one["limited_by"]["host"] == "h9"
    assert isinstance(one["stages"], list)
    held = {(each["stage"], each["host"]): (each["batches"], each["held"]) for each in one["stages"]}
    assert held["journal", ""] == (3, 1.5)
    assert held["read", "h3"] == (1, 3.0)
    assert summed([]) is summed([{}]) is None
