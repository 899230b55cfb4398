"""The bench: its mail is the same each time, its arithmetic is right, what is lost is not counted."""

from __future__ import annotations

import dataclasses
import hashlib
import imaplib
import os
import pstats
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from aimport import octets
from bench import baseline, client_cpu, dbox, floor, growth, journal_cost, plot, selecting, table, workers
from bench.__main__ import main
from bench.answers import KINDS, SELECTION, Answer
from bench.corpus import link_account, message_files, write_corpus
from bench.goals import GOALS, Goal
from bench.growth import Curve
from bench.measure import Command, Measured, measure
from bench.null_server import NullServer, Row, run_null_server
from bench.peers import CONTENDERS
from bench.results import Entry, Result, Round, RouteResult, Spread, ratios, read_result, spread
from bench.scenarios import (
    AIMPORT,
    AIMPORT_4,
    AIMPORT_COPIED,
    AIMPORT_LINKED,
    BY_NAME,
    CP,
    FLOOR,
    FLOOR_LINK,
    FLOOR_WRITE,
    LOOPBACK,
    MBSYNC_1,
    MBSYNC_4,
    Between,
)
from bench.servers import Site
from bench.trials import left_out
from tests import mail, servers
from tests.fix_dovecot import Dovecot
from tests.processes import Owner, server_folder, server_owner

MACHINE: dict[str, str | int] = {
    "cores": 2,
    "cpu": "CPU",
    "memory_gib": 8,
    "kernel": "Linux 6",
    "filesystem": "ext4",
    "load_at_start": "0.10",
}
SETTINGS: dict[str, str | int | float] = {"rounds": 3, "seed": 1, "scale": 1.0, "mail_fsync": "optimized"}


def a_round(number: int, seconds: float, *, wrong: str = "") -> Round:
    return Round(
        round=number,
        seconds=seconds,
        client_cpu_s=0.5,
        server_cpu_s=1.0,
        peak_rss_mib=64.2,
        arrived=1000,
        wrong=wrong,
    )


def a_result(*entries: Entry) -> Result:
    return Result(
        schema=2,
        taken="2026-01-02 03:04 UTC",
        machine=MACHINE,
        versions={"aimport": "1", "dovecot": "2"},
        settings=SETTINGS,
        routes=(
            RouteResult(
                scenario="median",
                what="accounts as they are",
                route="maildir-imap",
                mail="4 users x 250 messages",
                between="loopback, no TLS",
                messages=1000,
                octets=24 * 2**20,
                entries=entries,
            ),
        ),
    )


def a_site(folder: Path, *, no_server: str, no_isync: str, between: Between = LOOPBACK) -> Site:
    """Without servers; empty reasons say that there would be some."""
    return Site(
        work=folder,
        source_root=folder,
        destination_root=folder,
        owner=server_owner(),
        source=None,
        destination=None,
        no_server=no_server,
        isync=None,
        no_isync=no_isync,
        between=between,
        ports={},
    )


def python(code: str, env: dict[str, str] | None = None, *, prepares: bool = False) -> Command:
    here = Owner(name="root", group="root", uid=os.geteuid(), gid=os.getegid())
    return Command(argv=(sys.executable, "-c", code), owner=here, env=env or {}, prepares=prepares)


def test_one_seed_makes_one_corpus(tmp_path: Path) -> None:
    first = write_corpus(tmp_path / "a", seed=3, accounts=2, messages=30)
    again = write_corpus(tmp_path / "b", seed=3, accounts=2, messages=30)
    other = write_corpus(tmp_path / "c", seed=4, accounts=2, messages=30)
    assert first.messages == 60
    assert first.octets == again.octets != other.octets
    for name in first.accounts:
        files = [sorted(file.name for file in message_files(each.root / name)) for each in (first, again)]
        assert files[0] == files[1]
        assert mail.in_maildir(first.root / name) == mail.in_maildir(again.root / name)
        assert mail.in_maildir(first.root / name) != mail.in_maildir(other.root / name)


def test_a_linked_account_holds_the_same_mail_and_shares_no_directory(tmp_path: Path) -> None:
    """A contender may rename and add files in its source; the corpus stays as it is."""
    corpus = write_corpus(tmp_path / "corpus", seed=1, accounts=1, messages=20)
    account = corpus.root / corpus.accounts[0]
    before = mail.tree(account)
    linked = tmp_path / "user" / "Maildir"
    link_account(account, linked, server_owner())
    assert mail.in_maildir(linked) == mail.in_maildir(account)
    for file in message_files(linked):
        file.rename(file.with_name(f"{file.name},U=1"))
    (linked / "dovecot-keywords").write_text("")
    assert mail.tree(account) == before


def test_a_spread_is_median_and_range() -> None:
    assert spread([3.0, 1.0, 8.0]) == Spread(median=3.0, low=1.0, high=8.0)
    assert spread([4.0, 1.0]) == Spread(median=2.5, low=1.0, high=4.0)
    assert spread([]) is None


def test_ratios_are_taken_within_a_round_and_only_where_both_count() -> None:
    ours = Entry(name=AIMPORT, rounds=(a_round(0, 2.0), a_round(1, 4.0), a_round(2, 1.0, wrong="lost")))
    theirs = Entry(name="peer", rounds=(a_round(0, 6.0), a_round(1, 2.0), a_round(2, 9.0)))
    assert ratios(ours, theirs) == [3.0, 0.5]
    assert ratios(ours, Entry(name="peer", rounds=(a_round(0, 6.0, wrong="lost"),))) == []


def test_the_markdown_names_conditions_figures_and_what_is_missing() -> None:
    result = a_result(
        Entry(name=AIMPORT, role="ours", rounds=(a_round(0, 1.0), a_round(1, 0.5), a_round(2, 0.8))),
        Entry(name="slow", rounds=(a_round(0, 2.0), a_round(1, 2.0), a_round(2, 2.0, wrong="999 of 1000 arrived"))),
        Entry(name="broken", rounds=(a_round(0, 2.0, wrong="exit 1: no"),)),
        Entry(name="absent", left_out="not unpacked"),
    )
    text = table.markdown(result)
    assert "accounts as they are: 4 users x 250 messages, 24 MiB; loopback, no TLS." in text
    assert (
        "2 cores of CPU, 8 GiB, Linux 6, ext4, load at start 0.10; aimport 1, dovecot 2; 2026-01-02 03:04 UTC" in text
    )
    figures, _, rest = text.partition("### Every path")
    lines = [line for line in figures.splitlines() if line.startswith(("|", "#", "- "))]
    assert lines[0] == "### median: Maildir → IMAP"
    assert lines[3:] == [
        "| aimport | 1250 [1000-2000] | 30.0 [24.0-48.0] | 500 | 1000 | 64 |  |",
        "| slow (1 WRONG) | 500 | 12.0 | 500 | 1000 | 64 | 3.00 [2.00-4.00] |",
        "| broken | WRONG |  |  |  |  |  |",
        "- left out: absent: not unpacked",
        "- WRONG: slow, round 2: 999 of 1000 arrived",
        "- WRONG: broken, round 0: exit 1: no",
    ]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "| median | Maildir → IMAP | 1250 [1000-2000] | 30.0 [24.0-48.0] | slow | 3.00 [2.00-4.00] | none" in rest
    assert "| median | Maildir → IMAP | ahead of every peer | 3.00 [2.00-4.00] than slow | held |" in rest


def test_a_result_read_back_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = a_result(Entry(name=AIMPORT, rounds=(a_round(0, 1.0),)), Entry(name="absent", left_out="why"))
    result.write(tmp_path / "new" / "result.json")
    assert read_result(tmp_path / "new" / "result.json") == result
    assert main(["table", str(tmp_path / "new" / "result.json")]) == 0
    assert capsys.readouterr().out == table.markdown(result)


def test_what_a_command_uses_is_measured_and_at_most_so_many_run(tmp_path: Path) -> None:
    busy = "import time; a = bytearray(40_000_000)\nwhile time.process_time() < 0.3: pass"
    done = measure([python(busy), python(busy)], at_once=1, log=tmp_path / "log", limit_s=60)
    assert done.failure == ""
    assert 0.5 < done.cpu_s <= done.seconds + 0.1
    assert 40e6 < done.peak_rss_octets < 120e6  # of one at a time


def test_a_failed_command_is_told_with_its_last_words(tmp_path: Path) -> None:
    done = measure([python("raise SystemExit('no mail')")], at_once=2, log=tmp_path / "log", limit_s=60)
    assert done.failure == "exit 1: no mail"


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    waits = "import os, time; open(os.environ['PID_FILE'], 'w').write(str(os.getpid())); time.sleep(600)"
    pid_file = tmp_path / "pid"
    done = measure([python(waits, {"PID_FILE": str(pid_file)})], at_once=1, log=tmp_path / "log", limit_s=2)
    assert done == Measured(
        seconds=done.seconds,
        cpu_s=done.cpu_s,
        peak_rss_octets=done.peak_rss_octets,
        failure="not finished after 2 s",
    )
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


def test_what_a_command_does_before_it_is_ready_is_not_counted(tmp_path: Path) -> None:
    spin = "while time.process_time() < {}: pass\n"
    code = (
        "import sys, time\n" + spin.format(1.0) + "print(f'ready {time.process_time()}', flush=True)\n"
        "assert sys.stdin.readline() == '\\n'\n" + spin.format(1.2)
    )
    done = measure([python(code, prepares=True)], at_once=1, log=tmp_path / "log", limit_s=60)
    assert done.failure == ""
    assert 0.15 < done.cpu_s < 0.6
    assert done.cpu_s <= done.seconds + 0.1


def test_a_command_that_fails_before_it_is_ready_is_told(tmp_path: Path) -> None:
    done = measure([python("raise SystemExit('no')", prepares=True)], at_once=1, log=tmp_path / "log", limit_s=60)
    assert done.failure == "exit 1: no"


def test_a_command_that_is_never_ready_is_ended(tmp_path: Path) -> None:
    waits = "import os, time; open(os.environ['PID_FILE'], 'w').write(str(os.getpid())); time.sleep(600)"
    pid_file = tmp_path / "pid"
    command = python(waits, {"PID_FILE": str(pid_file)}, prepares=True)
    done = measure([command], at_once=1, log=tmp_path / "log", limit_s=2)
    assert done.failure == "not ready after 2 s"
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


@pytest.mark.parametrize(
    ("ours", "theirs", "goal", "median", "held"),
    [
        ([1.0, 1.0, 1.0], [2.0, 2.5, 3.0], Goal(route="maildir-imap", against="peer", limit=2.5), 2.5, True),
        ([1.0, 1.0, 1.0], [2.0, 2.4, 3.0], Goal(route="maildir-imap", against="peer", limit=2.5), 2.4, False),
        ([1.0], [1.0], Goal(route="maildir-imap", limit=500.1), 500.0, True),
        ([1.0], [1.0], Goal(route="maildir-imap", limit=500), 500.0, False),
    ],
)
def test_a_goal_holds_by_the_median(
    ours: list[float], theirs: list[float], goal: Goal, median: float, held: bool
) -> None:
    entries = [
        Entry(name=name, rounds=tuple(a_round(number, each) for number, each in enumerate(seconds)))
        for name, seconds in ((AIMPORT, ours), ("peer", theirs))
    ]
    measured = goal.measured(a_result(*entries))
    assert measured is not None
    assert measured.median == pytest.approx(median)
    assert goal.held(measured) is held


def test_a_goal_is_not_measured_when_its_peer_lost_mail_or_was_not_there() -> None:
    ours = Entry(name=AIMPORT, rounds=(a_round(0, 1.0),))
    goal = Goal(route="maildir-imap", against="peer", limit=2.5)
    assert goal.measured(a_result(ours)) is None
    assert goal.measured(a_result(ours, Entry(name="peer", rounds=(a_round(0, 9.0, wrong="lost"),)))) is None
    row = "| median | Maildir → IMAP | aimport: client CPU below 150 µs/message | 500 | NOT HELD |"
    assert row in table.markdown(a_result(ours))


def test_every_goal_names_contenders_that_take_part_in_its_route(tmp_path: Path) -> None:
    with_dovecot = dataclasses.replace(
        a_site(tmp_path, no_server="", no_isync=""), destination=object.__new__(Dovecot), source=object.__new__(Dovecot)
    )
    for goal in GOALS:
        scenario = BY_NAME[goal.scenario]
        assert goal.route in scenario.routes
        wanted = {each.name: left_out(with_dovecot, scenario, goal.route, each) for each in CONTENDERS}
        assert wanted[goal.ours] == wanted[goal.against or goal.ours] == ""


def test_the_floor_sends_the_batches_of_aimport_and_all_mail(tmp_path: Path) -> None:
    rows = [Row(b"", b"", b"x" * size) for size in (*[1] * 65, floor.BATCH_OCTETS, 1, floor.BATCH_OCTETS + 1, 2)]
    assert [len(batch) for batch in floor.cut(rows)] == [64, 1, 1, 1, 1, 1]
    corpus = write_corpus(tmp_path / "corpus", seed=2, accounts=3, messages=100)
    streams = [floor.built(name, corpus.root / name) for name in corpus.accounts]
    with run_null_server() as server:
        for stream in streams:
            floor.send(stream, server.port, "any")
        totals = server.totals()
    bodies = [
        octets.wire_form(file.read_bytes()) for name in corpus.accounts for file in message_files(corpus.root / name)
    ]
    assert (totals.messages, totals.octets) == (300, sum(map(len, bodies)))


def test_the_floor_does_not_take_a_refusal_for_an_answer(tmp_path: Path) -> None:
    stream = floor.Stream("anyone", ((floor.append(b'"Missing"', [Row(b"", b'"x"', b"body")]),),))
    with run_null_server() as server, pytest.raises(RuntimeError, match=r"NO \[TRYCREATE\]"):
        floor.send(stream, server.port, "any")


def test_the_imaplib_baseline_copies_all_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_PASSWORD", "any")
    corpus = write_corpus(tmp_path / "corpus", seed=2, accounts=1, messages=100)
    with run_null_server(corpus.root) as source, run_null_server() as destination:
        assert baseline.copy(source.port, destination.port, None, "user000") == 100
        totals = destination.totals()
    bodies = [octets.wire_form(file.read_bytes()) for file in message_files(corpus.root / "user000")]
    assert (totals.messages, totals.octets) == (100, sum(map(len, bodies)))


@pytest.mark.parametrize(
    ("costs", "exponent", "words"),
    [
        ([1.0, 10.0, 100.0], 1.0, "exponent 1.00: linear"),
        ([1.0, 100.0, 10_000.0], 2.0, "exponent 2.00: NOT LINEAR"),
        ([1.0, 1.0, 1.0], 0.0, "exponent 0.00: less than linear: fixed costs weigh"),
        ([1.0], None, "no exponent: too few sizes"),
    ],
)
def test_growth_is_told_by_its_exponent(costs: list[float], exponent: float | None, words: str) -> None:
    points = tuple(Answer(count=10 ** (number + 2), cpu_s=cost) for number, cost in enumerate(costs))
    curve = Curve(what="lines", points=points)
    assert curve.exponent == (None if exponent is None else pytest.approx(exponent))
    assert curve.verdict() == words
    assert curve.memory_exponent is None
    refused = Answer(count=1_000_000, refused="a line too long")
    assert (
        Curve(what="lines", points=(*points, refused)).verdict() == f"{words}; n = 1,000,000 REFUSED: a line too long"
    )


@pytest.mark.parametrize(
    ("peaks", "exponent"), [([50.0, 140.0, 1040.0], 1.0), ([41.0, 42.0, 43.0], 0.0), ([50.0, 50.0, 50.0], 0.0)]
)
def test_memory_grows_by_what_is_above_an_idle_run(peaks: list[float], exponent: float) -> None:
    points = tuple(
        Answer(count=10 ** (number + 2), cpu_s=1.0, idle_rss_mib=40.0, peak_rss_mib=peak)
        for number, peak in enumerate(peaks)
    )
    curve = Curve(what="users", points=points)
    assert curve.memory_exponent == pytest.approx(exponent)
    assert f"; memory {exponent:.2f}" in curve.verdict()


def test_one_answer_is_measured_whatever_its_kind() -> None:
    with run_null_server() as server:
        for kind in (*KINDS, SELECTION):
            taken = growth.answer(server, kind, 2000, 2)
            assert taken.refused == ""
            assert 0 < taken.cpu_s < 1
            assert 10 < taken.idle_rss_mib <= taken.peak_rss_mib < 200


@pytest.mark.slow
def test_selecting_is_measured_and_selects_what_the_mail_holds(tmp_path: Path) -> None:
    assert selecting.main(["--quick", "--dir", str(tmp_path), "--out", str(tmp_path / "costs.json")]) == 0
    costs = msgspec.json.decode((tmp_path / "costs.json").read_bytes())
    assert {cost["query"]: cost["selected"] for cost in costs} == {
        "ALL": 1000,
        "UNSEEN": 200,
        "FLAGGED NOT DELETED OR ANSWERED": 800,
        "LARGER 10k": 50,
        "SINCE 2021-01-01 BEFORE 2021-02-01": 1000,
        "SUBJECT needle": 1,
    }


def test_growth_is_measured_on_every_lane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.main(["--quick", "--dir", str(tmp_path), "--out", str(tmp_path / "curves.json")]) == 0
    out = capsys.readouterr().out
    for lane in growth.LANES:
        assert f"\n{lane}, one mailbox" in out
    curves = msgspec.json.decode((tmp_path / "curves.json").read_bytes(), type=list[Curve])
    assert "\nusers with 10 messages" in out
    assert len(curves) == len(growth.LANES) + 1 + len(KINDS) + 1
    assert all(curve.memory_exponent is not None for curve in curves)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.json"]


def test_a_peer_that_has_no_part_in_a_route_says_why(tmp_path: Path) -> None:
    site = a_site(tmp_path, no_server="no dovecot", no_isync="no isync")
    for contender in CONTENDERS:
        assert contender.left_out(site, "imap-imap") == contender.left_out(site, "sdbox-maildir") == "no dovecot"
    reasons = {contender.name: contender.left_out(site, "maildir-maildir") for contender in CONTENDERS}
    local = [AIMPORT, AIMPORT_COPIED, AIMPORT_LINKED, FLOOR_WRITE, FLOOR_LINK, CP]
    assert [name for name, reason in reasons.items() if not reason] == local
    assert {"no dovecot", "no isync", "Maildir to IMAP only", "IMAP to IMAP only"} <= set(reasons.values())
    again = [each.name for each in CONTENDERS if not each.left_out(site, "maildir-maildir", again=True)]
    assert again == [AIMPORT]


@pytest.mark.slow
@pytest.mark.dovecot
def test_a_tiny_run_moves_all_mail_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("dovecot", "isync"):
        try:
            servers.find(name)
        except servers.CannotGet as reason:
            pytest.skip(str(reason))
    out = tmp_path / "result.json"
    arguments = ["--users", "2", "--messages", "20", "--rounds", "1", "--paths", "maildir-imap", "--out", str(out)]
    with server_folder("place") as place:
        assert main([*arguments, "--dir", str(place)]) == 0, capsys.readouterr().err
        assert list(place.iterdir()) == []
    result = read_result(out)
    [route] = result.routes
    assert [entry.name for entry in route.entries if entry.counted] == [
        AIMPORT, AIMPORT_4, FLOOR, MBSYNC_1, MBSYNC_4,
    ]  # fmt: skip
    assert route.messages == 40
    for entry in route.entries:
        for each in entry.counted:
            assert each.arrived == 40
            assert each.server_cpu_s is not None
            assert min(each.seconds, each.client_cpu_s, each.server_cpu_s, each.peak_rss_mib) > 0
    assert "Maildir → IMAP" in capsys.readouterr().out


def test_pages_are_written_from_a_result_alone(tmp_path: Path) -> None:
    """Twice the same: nothing of them is typed in."""
    (tmp_path / "docs").mkdir()
    for page in (tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"):
        page.write_text(f"before\n{table.BEGIN}\n{table.END}\nbehind\n")
    result = a_result(
        Entry(name=AIMPORT, role="ours", rounds=(a_round(0, 1.0), a_round(1, 1.0))),
        Entry(name="a <peer>", rounds=(a_round(0, 2.0), a_round(1, 3.0))),
        Entry(name="floor: plain", role="floor", rounds=(a_round(0, 0.5), a_round(1, 0.4))),
    )
    result.write(tmp_path / "result.json")
    written = []
    for _ in range(2):
        assert main(["pages", str(tmp_path / "result.json"), "--root", str(tmp_path)]) == 0
        written.append({file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()})
    assert written[0] == written[1]
    readme = (tmp_path / "README.md").read_text()
    assert "| a <peer> | 2.50 [2.00-3.00] | floor: plain | 0.45 [0.40-0.50] |" in readme
    for name, shown in ((plot.PEERS, "2.50 a <peer>"), (plot.FLOORS, "0.45 plain")):
        assert f"](docs/{name})" in readme
        drawn = ElementTree.parse(tmp_path / "docs" / name).getroot()
        assert shown in [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "### median: Maildir → IMAP" in (tmp_path / "docs" / "benchmarks.md").read_text()


def test_tables_go_between_the_marks_of_a_page_and_replace_what_was_there() -> None:
    page = f"a\n{table.BEGIN}\nold\n{table.END}\nb\n"
    once = table.put_into(page, "new\n")
    assert once == f"a\n{table.BEGIN}\n\nnew\n\n{table.END}\nb\n"
    assert table.put_into(once, "new\n") == once
    with pytest.raises(ValueError, match="bench:begin"):
        table.put_into("a page without marks", "new")


def trial(seconds: float, cpu_s: float, wrong: str = "") -> Round:
    return Round(
        round=0, seconds=seconds, client_cpu_s=cpu_s, server_cpu_s=0, peak_rss_mib=0, arrived=1000, wrong=wrong
    )


def test_what_the_journal_costs_is_told_of_the_rounds_that_count() -> None:
    pairs = [
        journal_cost.Pair(journal=trial(1.0, 0.30), bare=trial(0.9, 0.25), octets=60_000),
        journal_cost.Pair(journal=trial(1.0, 0.30), bare=trial(1.0, 0.29), octets=50_000),
        journal_cost.Pair(journal=trial(9.0, 9.0, wrong="lost"), bare=trial(0.1, 0.1), octets=1),
    ]
    assert journal_cost.told(pairs, 1000) == [
        "rounds that count: 2 of 3, 1000 messages each",
        "throughput, of that without a journal: 0.950 (0.900 to 1.000) (goal: 0.95 or more)",
        "client CPU for the journal, us/message: 30.0 (10.0 to 50.0)",
        "disk, octets/message: 55.0 (50.0 to 60.0) (goal: below 100)",
    ]
    assert "no figure" in journal_cost.told(pairs[2:], 1000)[1]


def test_the_cost_of_the_journal_is_measured_on_real_imports(capsys: pytest.CaptureFixture[str]) -> None:
    servers.find("dovecot")
    assert journal_cost.main(["--users", "2", "--messages", "30", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "rounds that count: 1 of 1, 60 messages each" in out
    assert float(out.rpartition("octets/message: ")[2].split()[0]) > 0


def logged_in(server: NullServer, user: str) -> imaplib.IMAP4:
    client = imaplib.IMAP4("127.0.0.1", server.port, timeout=60)
    client.login(user, "any")
    return client


def test_the_null_server_shows_the_mail_it_was_given(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", seed=5, accounts=2, messages=40)
    with run_null_server(corpus.root) as server, logged_in(server, "user001") as client:
        shown: Counter[str] = Counter()
        for line in client.list()[1]:
            assert isinstance(line, bytes)
            client.select(line.rpartition(b' "." ')[2].decode(), readonly=True)
            fetched = client.uid("FETCH", "1:*", "(UID FLAGS INTERNALDATE BODY.PEEK[])")[1]
            shown.update(hashlib.sha256(item[1]).hexdigest() for item in fetched if isinstance(item, tuple))
    files = message_files(corpus.root / "user001")
    assert shown == Counter(hashlib.sha256(octets.wire_form(file.read_bytes())).hexdigest() for file in files)


def test_the_null_server_counts_what_is_appended_and_gives_uids(tmp_path: Path) -> None:
    body = b"Subject: a\r\n\r\n" + b"x" * 70_000
    with run_null_server() as server, logged_in(server, "anyone") as client:
        assert client.append("Missing", "", "", body)[0] == "NO"
        client.create("Sent")
        for uid in (1, 2):
            answer = client.append("Sent", "(\\Seen)", '"01-Jan-2015 00:00:00 +0000"', body)[1]
            assert answer == [b"[APPENDUID 1 %d] taken" % uid]
        client.send(b"z APPEND Sent () {3+}\r\na{9 () {2+}\r\n\r\n\r\n".replace(b"() {", b'() "x" {'))
        assert client.readline() == b"z OK [APPENDUID 1 3:4] taken\r\n"
        totals = server.totals()
        assert (totals.messages, totals.connections) == (4, 1)
        assert totals.octets == 2 * len(body) + 5
        assert server.totals().messages == 0


@pytest.mark.parametrize(
    ("user", "exists", "uids", "ranges"),
    [
        ("messages-5", 5, b"1 2 3 4 5", b"1:5"),
        ("sparse-3", 3, b"1 3 5", b"1,3,5"),
        ("runs-7", 7, b"1 2 3 5 6 7 9", b"1:3,5:7,9"),
        ("bob", 0, b"", b""),
    ],
)
def test_the_null_server_makes_accounts_of_any_size(user: str, exists: int, uids: bytes, ranges: bytes) -> None:
    with run_null_server() as server, logged_in(server, user) as client:
        assert client.select("INBOX", readonly=True)[1] == [b"%d" % exists]
        assert client.uid("SEARCH", "ALL")[1] == [uids]
        client.uid("SEARCH", "RETURN (ALL)", "ALL")
        assert client.response("ESEARCH")[1][0].split()[4:] == ([ranges] if ranges else [])
        last = uids.split()[-1:]
        for asked, numbers in (("2:4", {2, 3, 4}), ("4:2,6", {2, 3, 4, 6}), ("1", {1}), ("*", set(map(int, last)))):
            found = [uid for uid in uids.split() if int(uid) in numbers]
            fetched = client.uid("FETCH", asked, "(UID)")[1]
            assert [item.split()[-1].rstrip(b")") for item in fetched if isinstance(item, bytes)] == found


def test_the_clients_own_cost_is_measured_on_every_lane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--accounts", "2", "--messages", "30", "--rounds", "1", "--keep", str(tmp_path), "--users", "1"]
    assert client_cpu.main([*arguments, "--profile", str(tmp_path / "profile")]) == 0
    out = capsys.readouterr().out
    for lane in client_cpu.LANES:
        assert f"\n{lane}: " in out
        seen = pstats.Stats(str(tmp_path / f"profile-{lane}")).get_stats_profile().func_profiles
        assert {"read_mailbox", "_transact"} <= seen.keys()  # the second is in the journal's own thread


@pytest.mark.dovecot
@pytest.mark.slow
def test_dbox_is_measured_beside_maildir_and_doveadm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server_folder("bench") as folder:
        assert dbox.main(["--quick", "--dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "sdbox, open 10,000" in out
    assert "sdbox against doveadm import" in out


@pytest.mark.slow
def test_two_workers_and_the_engine_alone_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All users are done by each; figures are told, whatever they are."""
    assert workers.main(["--quick", "--users", "4", "--empty", "300", "--dir", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "times as fast as one process" in told and "300 users in" in told and "octets a user" in told
