"""What `aimport bench` concludes, writes down and shows, without measuring anything."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aimport import traces
from aimport.benching import (
    Bench,
    Compared,
    Left,
    Mail,
    Place,
    Scale,
    check_places,
    clean,
    find,
    mailboxes_for,
    with_servers,
)
from aimport.benchpage import Findings, bench_page
from aimport.daily import Ledger
from aimport.errors import ConfigurationError, MailboxError
from aimport.model import Endpoint
from aimport.stores import Stores
from aimport.stores.memory import Event, MemoryStore
from aimport.trial import Kind, Round, Trial, TrialFailed
from tests.pages import looked_at

DATE = datetime(2026, 1, 1, tzinfo=UTC)
SCALE = Scale(messages=30, median_octets=1000, seed=1, rounds=2, connections=(1, 2))


def trial(connections: int, *rates: float, scenario: str = "into x", kind: Kind = "main", limited: str = "") -> Trial:
    rounds = [
        Round(seconds=100 / rate, messages=100, octets=1 << 20, cpu_s=0.01, peak_octets=1 << 26,
              connections=connections, answers_ms=(1.0, 2.0, 9.0), limited=limited)
        for rate in rates
    ]  # fmt: skip
    return Trial(scenario=scenario, connections=connections, kind=kind, rounds=rounds)


def findings(trials: Sequence[Trial], **changes: object) -> Findings:
    said: dict[str, object] = {
        "scale": SCALE, "octets": 30_000, "places": ("imap://h/",), "machine": {"python": "3"}, "trials": trials,
        "compared": Compared(messages=60), "finding": find(trials), "left": (), "error": "", "exit": 0,
    }  # fmt: skip
    return Findings(**(said | changes))  # type: ignore[arg-type]  # a test's shorthand


@pytest.mark.parametrize(
    ("rates", "enough", "more"),
    [
        ((100, 101, 99), 1, False),
        ((100, 190, 195), 2, False),
        ((100, 200, 400), 4, True),
        ((100, 50, 20), 1, False),
        ((100,), 1, False),
    ],
)
def test_the_fewest_connections_that_reach_the_best_rate_are_enough(
    rates: tuple[float, ...], enough: int, more: bool
) -> None:
    found = find([trial(2**number, rate) for number, rate in enumerate(rates)])
    assert found is not None
    assert found.connections == enough
    assert found.advice[0].startswith(f"set --connections-per-user {enough}:")
    assert any("--connections 8,16" in each for each in found.advice) == more


def test_what_held_up_the_middle_round_is_what_is_told() -> None:
    rounds = [trial(1, rate, limited=f"limited by {rate}").rounds[0] for rate in (50, 100, 10)]
    found = find([Trial(scenario="into x", connections=1, kind="main", rounds=rounds)])
    assert found is not None
    assert found.limit == "limited by 50"
    assert find([trial(1, 5.0, kind="own")]) is None


def test_a_server_that_allows_fewer_connections_is_named_so() -> None:
    less = trial(4, 400)
    less.rounds = [Round(seconds=1.0, messages=100, octets=1, connections=3)]
    found = find([less])
    assert found is not None
    assert "(it got 3)" in found.advice[0]
    assert "4 (got 3)" in findings([less]).rows()[0]


def test_the_document_has_what_was_measured_and_how() -> None:
    trials = [trial(1, 100, 120), trial(2, 200), trial(1, 400, scenario="cp", kind="floor")]
    document = json.loads(json.dumps(findings(trials).to_json()))
    first, second, floor = document["trials"]
    assert first["messages_per_second"] == {"median": 110.0, "min": 100.0, "max": 120.0}
    assert first["append_ms"] == {"p50": 2.0, "p99": 9.0}
    assert (first["of_floor"], second["of_floor"], floor["kind"]) == (0.275, 0.5, "floor")
    assert document["settings"]["seed"] == 1
    assert document["schema"] == 1


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "\x1b\x00\udcff"])
def test_the_page_of_a_bench_escapes_what_it_is_given(text: str) -> None:
    def page(text: str) -> str:
        trials = [trial(1, 100, scenario=text, limited=text), trial(2, 150, scenario=text), trial(1, 9, kind="own")]
        left = [Left(text, text, text)]
        return bench_page(findings(trials, left=left, error=text, places=[text], machine={text: text}))

    seen, usual = looked_at(page(text)), looked_at(page("x"))
    assert not seen.acting
    assert seen.tags == usual.tags


def test_a_bench_that_ended_early_has_a_page_that_says_so() -> None:
    words = " ".join(looked_at(bench_page(findings([], error="host: no", exit=75))).words)
    assert "host: no" in words
    lost = Compared(messages=9, missing=2, unexpected=1)
    words = " ".join(looked_at(bench_page(findings([trial(1, 9)], compared=lost))).words)
    assert "2 of those that were sent are missing, 1 are there that nobody sent so" in words


def test_generated_mail_is_the_same_for_the_same_seed_and_even_over_mailboxes() -> None:
    one, two = Mail.made(SCALE), Mail.made(SCALE)
    assert one.expected == two.expected
    assert one.expected.total() == SCALE.messages
    held = Counter(each.path for each in one.samples)
    assert len(held) == mailboxes_for(SCALE) == 4
    assert max(held.values()) - min(held.values()) <= 1
    assert (
        Mail.made(Scale(messages=30, median_octets=1000, seed=2, rounds=1, connections=(1,))).expected != one.expected
    )


# Notes of what was made


def test_what_a_dead_process_has_noted_is_found_and_of_a_living_one_it_is_not(tmp_path: Path) -> None:
    assert traces.left_behind(tmp_path) == []
    mine = traces.begin(tmp_path, ["imap://a@h:993"])
    other = traces.begin(tmp_path, ["imap://b@h:993", "maildir:/x"])
    assert traces.left_behind(tmp_path) == []  # both are held by this process
    other.keep()
    [found] = traces.left_behind(tmp_path)
    assert (found.top, found.places) == (other.top, ("imap://b@h:993", "maildir:/x"))
    found.forget()
    assert traces.left_behind(tmp_path) == []
    assert os.listdir(tmp_path / "bench") == [mine.top.removeprefix(traces.PREFIX)]
    mine.forget()


def test_a_note_that_was_not_written_names_no_account_and_what_is_no_note_is_left_alone(tmp_path: Path) -> None:
    begun = traces.begin(tmp_path, ["x"])
    (begun.directory / "made.json").write_text("{")
    begun.keep()
    folder = tmp_path / "bench"
    (folder / "mine").mkdir()
    (folder / ("0" * 16)).symlink_to(tmp_path)
    [found] = traces.left_behind(tmp_path)
    assert found.places == ()
    found.forget()
    assert sorted(os.listdir(folder)) == ["0" * 16, "mine"]


# With a store in memory in place of a server


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    name = f"bench-{request.node.name}"
    MemoryStore.named(name).mailbox("bob", ("INBOX",)).add(b"Subject: x\n\n", flags=(), internal_date=DATE)
    yield Place(name="memory:x", endpoint=Endpoint(scheme="memory", path=name, user="bob"))
    MemoryStore.forget(name)


async def measured(place: Place, tmp_path: Path) -> tuple[Bench, str]:
    bench = Bench(scale=SCALE, tell=lambda _: None, ledger=Ledger())
    trace = traces.begin(tmp_path, [place.endpoint.identity])
    try:
        await with_servers(bench, [place], trace, Stores())
    finally:
        trace.keep()
    return bench, trace.top


async def test_each_scenario_has_its_rounds_and_only_the_top_is_left_to_take_away(place: Place, tmp_path: Path) -> None:
    bench, top = await measured(place, tmp_path)
    assert {(each.scenario, each.connections): len(each.rounds) for each in bench.trials} == {
        (scenario, connections): 2
        for scenario in ("memory to nowhere", "into memory:x", "out of memory:x")
        for connections in (1, 2)
    }
    assert bench.compared == Compared(messages=4 * 30)
    store = MemoryStore.named(place.endpoint.path)
    assert set(store.accounts["bob"]) == {("INBOX",), (top,)}
    assert await clean([place], top, Stores()) == []
    assert set(store.accounts["bob"]) == {("INBOX",)}


async def test_a_message_that_comes_back_otherwise_is_counted(place: Place, tmp_path: Path) -> None:
    store = MemoryStore.named(place.endpoint.path)

    async def alter(event: Event) -> None:
        if event.verb == "select" and event.mailbox.startswith("aimport-bench-"):
            box = next(box for path, box in store.accounts["bob"].items() if "/".join(path) == event.mailbox)
            first = box.messages[0]
            store.hook = None
            box.messages[0] = type(first)(
                uid=first.uid, flags=first.flags, internal_date=first.internal_date, body=first.body + b"more\n"
            )

    store.hook = alter
    bench, _ = await measured(place, tmp_path)
    assert (bench.compared.missing, bench.compared.unexpected) == (1, 1)
    assert not bench.compared.equal


async def test_a_message_that_is_refused_ends_the_bench_with_its_reason(place: Place, tmp_path: Path) -> None:
    store = MemoryStore.named(place.endpoint.path)
    store.refuse = lambda message: ("TOOBIG", "too big") if len(message.body) > 2000 else None
    with pytest.raises(TrialFailed, match="TOOBIG") as failed:
        await measured(place, tmp_path)
    assert failed.value.exit_code == 65


async def test_what_cannot_be_taken_away_is_returned_and_the_rest_is_gone(place: Place, tmp_path: Path) -> None:
    _, top = await measured(place, tmp_path)
    store = MemoryStore.named(place.endpoint.path)
    store.mailbox("bob", (top, "stays"))
    store.mailbox("bob", (top, "goes"))

    async def refuse(event: Event) -> None:
        if event.verb == "remove_mailbox" and event.mailbox.endswith("stays"):
            raise MailboxError("no")

    store.hook = refuse
    left = await clean([place], top, Stores())
    assert [(each.place, each.mailbox, each.why) for each in left] == [("memory:x", f"{top}/stays", "no")]
    assert set(store.accounts["bob"]) == {("INBOX",), (top, "stays")}


async def test_a_place_without_a_directory_or_with_rights_of_its_own_is_refused(tmp_path: Path) -> None:
    missing = Place(name="m", endpoint=Endpoint(scheme="maildir", path=str(tmp_path / "none")))
    with pytest.raises(ConfigurationError, match="no directory"):
        await check_places([missing], Stores())
    boxes = Place(name="m", endpoint=Endpoint(scheme="mbox", path=str(tmp_path)))
    with pytest.raises(ConfigurationError, match="cannot take away"):
        await check_places([boxes], Stores())
    assert os.listdir(tmp_path) == []
