"""Scenarios: every one runs with all its contenders, and what lies between client and server is what was asked for."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Literal

import pytest

from bench import floors, trials
from bench.__main__ import listed, main
from bench.appends import Appends, Taken, taken
from bench.corpus import message_files, write_corpus
from bench.latency import run_link
from bench.null_server import run_null_server
from bench.results import Entry, Round, RouteResult, read_result, standing
from bench.scenarios import AIMPORT, BY_NAME, IMAPLIB, MBSYNC_4, SCENARIOS, Mail, chosen
from tests import servers
from tests.processes import server_folder

TINY = ("--quick", "--scale", "0.01", "--users", "2")


def talk(port: int, octets: int, *, clients: int = 1) -> float:
    """Seconds until so many octets of each client have come back from an echo behind `port`."""

    def one() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            sender = threading.Thread(target=client.sendall, args=(b"x" * octets,))
            sender.start()
            left = octets
            while left:
                came = len(client.recv(65536))
                assert came, "the link has closed"
                left -= came
            sender.join()

    began = time.monotonic()
    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began


class Echo:
    """Sends back what it gets."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client:
            while octets := client.recv(65536):
                client.sendall(octets)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()


def test_a_link_takes_its_round_trip_and_keeps_its_pace() -> None:
    """Lower bounds only: a busy machine adds to both."""
    echo = Echo()
    try:
        with run_link(echo.port, round_trip_ms=60) as port:
            assert talk(port, 1) >= 2 * 0.06 - 0.005  # one for the connection
        with run_link(echo.port, rate=2_000_000) as port:
            assert talk(port, 250_000, clients=2) >= 2 * 250_000 / 2_000_000 - 0.01
        with run_link(echo.port, rate_each=1_000_000) as port:
            assert talk(port, 250_000, clients=2) >= 250_000 / 1_000_000 - 0.01
    finally:
        echo.close()


def test_a_link_whose_server_is_gone_ends_its_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with run_link(port) as linked, socket.create_connection(("127.0.0.1", linked), timeout=60) as client:
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass  # as a server that is not there would


def test_the_fetch_floor_counts_every_message_that_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_PASSWORD", "any")
    corpus = write_corpus(tmp_path / "corpus", seed=2, accounts=1, messages=60)
    with run_null_server(corpus.root) as server:
        assert floors.fetch(server.port, None, "user000") == 60


def test_the_write_and_link_floors_make_every_file(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", seed=2, accounts=1, messages=30)
    account = corpus.root / "user000"
    for name in ("written", "linked"):
        named = floors.folders(account, tmp_path / name / "Maildir")
        if name == "written":
            assert floors.write([(str(new), old.read_bytes()) for old, new in named]) == 30
        else:
            assert floors.link(named) == 30
        files = message_files(tmp_path / name / "Maildir")
        assert sorted(file.read_bytes() for file in files) == sorted(
            file.read_bytes() for file in message_files(account)
        )
        assert {file.stat().st_nlink for file in files} == ({1} if name == "written" else {2})
    floors.sync_filesystem(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        floors.sync_filesystem(tmp_path / "missing")


def test_an_append_is_timed_from_its_line_to_its_answer_and_no_message_is_taken_for_one() -> None:
    """However the octets are cut."""
    body = b"b APPEND INBOX {3}\r\n" * 3
    sent = b'a append "x" (\\Seen) {%d+}\r\n%s {%d}\r\n%s\r\nb NOOP\r\nc APPEND y {1+}\r\nz\r\n' % (
        (len(body), body) * 2
    )
    received = b"* 1 FETCH (BODY[] {7}\r\na OK x\n UID 1)\r\na OK [APPENDUID 1 1:2] done\r\nb OK\r\nc NO full\r\n"
    now = [0.0]

    def clock() -> float:
        return now[0]

    for piece in (1, 7, 1000):
        took: list[float] = []
        watched = Appends(clock, took)
        for lines, octets, at in ((watched.sent, sent, 1.0), (watched.received, received, 3.5)):
            now[0] = at
            for start in range(0, len(octets), piece):
                lines.feed(octets[start : start + piece])
        assert took == [2.5, 2.5]


def test_percentiles_are_the_nearest_ranks() -> None:
    assert taken([]) is None
    assert taken([0.5]) == Taken(commands=1, p50_ms=500, p99_ms=500)
    assert taken([number / 1000 for number in range(1, 201)]) == Taken(commands=200, p50_ms=100, p99_ms=198)


def test_scenarios_are_chosen_by_name() -> None:
    assert chosen(("all",)) == list(SCENARIOS)
    core = chosen(("core",))
    assert 0 < len(core) < len(SCENARIOS)
    assert sum(each.minutes for each in core) < 15
    assert [each.name for each in chosen(("tls", "resume"))] == ["tls", "resume"]
    with pytest.raises(ValueError, match=r"no scenario nonsense; there are median, "):
        chosen(("tls", "nonsense"))
    with pytest.raises(SystemExit, match="no scenario nonsense"):
        main(["--scenario", "nonsense"])
    assert all(f"\n{name} " in listed() for name in BY_NAME)


def test_scaled_mail_is_of_the_same_kind_and_never_nothing() -> None:
    mail = Mail(users=200, messages=10)
    assert (mail.scaled(0.001).users, mail.scaled(0.001).messages) == (2, 1)
    assert (mail.scaled(2).users, mail.scaled(2).messages) == (400, 20)
    assert mail.scaled(0.1).median_octets == mail.median_octets


def test_the_calls_of_a_trace_are_counted_by_name() -> None:
    table = (
        "% time     seconds  usecs/call     calls    errors syscall\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        " 80.00    0.000300           3       100         2 openat\n"
        " 20.00    0.000100           1        40           read\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        "100.00    0.000400           2       140         2 total\n"
    )
    assert trials.syscalls(table) == {"openat": 100, "read": 40}


def test_the_best_peer_and_the_nearest_floor_stand_beside_aimport() -> None:
    def entry(name: str, role: Literal["ours", "peer", "floor"], seconds: float, wrong: str = "") -> Entry:
        done = Round(
            round=0, seconds=seconds, client_cpu_s=0.1, server_cpu_s=None, peak_rss_mib=1, arrived=9, wrong=wrong
        )
        return Entry(name=name, role=role, rounds=(done,))

    route = RouteResult(
        scenario="median",
        what="",
        route="imap-imap",
        mail="",
        between="",
        messages=9,
        octets=9,
        entries=(
            entry(AIMPORT, "ours", 2.0),
            entry("slow peer", "peer", 8.0),
            entry("peer", "peer", 4.0),
            entry("wrong peer", "peer", 0.1, "lost"),
            entry("far floor", "floor", 0.5),
            entry("floor", "floor", 1.0),
        ),
    )
    for role, name, times in (("peer", "peer", 2.0), ("floor", "floor", 0.5)):
        found = standing(route, "peer" if role == "peer" else "floor")
        assert found is not None
        assert (found[0].name, found[1].median) == (name, times)


def ready(*names: str) -> None:
    for name in names:
        try:
            servers.find(name)
        except servers.CannotGet as reason:
            pytest.skip(str(reason))


@pytest.mark.dovecot
@pytest.mark.parametrize(
    ("scenario", "path"),
    [
        ("latency-1", "imap-imap"),
        pytest.param("median", "imap-maildir", marks=pytest.mark.slow),
        pytest.param("median", "maildir-maildir", marks=pytest.mark.slow),
        pytest.param("tls", "imap-imap", marks=pytest.mark.slow),
        pytest.param("tls", "imap-maildir", marks=pytest.mark.slow),
        pytest.param("resume", "maildir-maildir", marks=pytest.mark.slow),
        pytest.param("compress", "maildir-imap", marks=pytest.mark.slow),
        pytest.param("throttled-destination", "maildir-imap", marks=pytest.mark.slow),
        pytest.param("local-stores", "mbox-maildir", marks=pytest.mark.slow),
        pytest.param("local-stores", "mdbox-imap", marks=pytest.mark.slow),
        pytest.param("cyrus", "maildir-imap", marks=[pytest.mark.slow, pytest.mark.cyrus]),
        pytest.param("courier", "maildir-imap", marks=[pytest.mark.slow, pytest.mark.courier]),
    ],
)
def test_every_contender_of_a_scenario_moves_all_mail(scenario: str, path: str, tmp_path: Path) -> None:
    ready("dovecot", "isync", *({"cyrus", "courier"} & {scenario}))
    out = tmp_path / "result.json"
    with server_folder("place") as place:
        words = ("--scenario", scenario, "--paths", path, *TINY, "--messages", "10", "--dir", str(place))
        watch = ("--appends",) if scenario == "latency-1" else ()
        assert main([*words, *watch, "--out", str(out)]) == 0
        assert list(place.iterdir()) == []
    [route] = read_result(out).routes
    assert route.messages == 20
    ran = [entry for entry in route.entries if entry.rounds]
    assert len(ran) >= 2
    assert all(each.arrived == 20 and not each.wrong for entry in ran for each in entry.rounds)
    if scenario == "latency-1":
        seen = {entry.name: entry.watched for entry in ran}
        for name, most in ((AIMPORT, 20), (MBSYNC_4, 20), (IMAPLIB, 20)):
            watched = seen[name]
            assert watched is not None
            assert watched.appends is not None
            assert 1 <= watched.appends.commands <= most
            assert 1 <= watched.appends.p50_ms <= watched.appends.p99_ms  # the round trip
    absent = {entry.name for entry in route.entries if not entry.left_out} - {entry.name for entry in ran}
    assert absent == set()
