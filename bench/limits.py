"""`python -m bench.limits`: many connections to one server, and a server with limits beside two without.

    many      N users into one Dovecot that takes fewer connections than it is asked for, against 10 users at a time;
              logins that were refused, and when                                         goal 0.85 of the messages/s
    beside    users of two Dovecots alone, and beside a scripted server that takes five connections and throttles
              each of its users once                                                     goal 1.10 of the time

Sources are in memory; the scripted server runs in this process. Rounds alternate, ratios are those of medians. The
command never fails for a number.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from aimport import sample
from aimport.account import Run
from aimport.errors import ConnectionLost, TooManyConnections
from aimport.journal import Journal, RunArguments
from aimport.limits import HostLimits, Limits
from aimport.model import Endpoint, Secret, UserJob
from aimport.runners.local import run_loop, run_plan
from bench.servers import machine
from bench.table import columns
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.wire.server import Call, Server, Wires

GOAL_MANY: Final = 0.85
GOAL_BESIDE: Final = 1.10
BACKOFF_MS: Final = 2000


class Watched(HostLimits):
    """Notes when logins were refused."""

    def __init__(self, per_host: int, first_wait_s: float) -> None:
        super().__init__(per_host, first_wait_s=first_wait_s)
        self.refused: list[float] = []

    def failed(self, host: str, user: str, error: ConnectionLost) -> None:
        if isinstance(error, TooManyConnections):
            self.refused.append(time.monotonic())
        super().failed(host, user, error)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    what: str
    users: int
    messages: int
    seconds: float
    failed: int
    refused: int
    refused_for_s: float
    """From the first refusal to the last."""
    allowed: str

    @property
    def rate(self) -> float:
        return self.messages / self.seconds


@contextmanager
def journal() -> Iterator[Journal]:
    with tempfile.TemporaryDirectory(prefix="aimport-bench-") as folder:
        yield Journal.create(Path(folder), job="bench", arguments=RunArguments(argv=(), cwd="/"))


def at(server: Dovecot, user: str) -> Endpoint:
    return Endpoint(
        scheme="imap",
        host=server.host,
        port=server.port,
        security="none",
        user=user,
        secret=Secret(kind="literal", text=server.password),
    )


def fill(wires: Wires, users: Sequence[str], messages: int) -> None:
    for user in users:
        for each in sample.account(user, seed=1, messages=messages, mailboxes=[("INBOX",)], max_octets=100_000):
            assert isinstance(each.message.body, bytes)
            wires.old.mailbox(user, each.path).add(
                each.message.body, flags=sorted(each.message.flags), internal_date=each.message.internal_date
            )


def jobs(users: Sequence[str], endpoints: Sequence[Endpoint], parent: str) -> list[UserJob]:
    return [
        UserJob(user=user, source=Endpoint(scheme="memory", path="old", user=user), destination=endpoint, parent=parent)
        for user, endpoint in zip(users, endpoints, strict=True)
    ]


async def imported(what: str, wires: Wires, todo: Sequence[UserJob], limits: Limits) -> Row:
    """One run, timed until the last user of a real server has ended."""
    with journal() as kept:
        run = Run(stores=wires, journal=kept, query=wires.run().query, limits=limits)
        hosts = run.hosts = Watched(limits.connections_per_host, limits.retry_wait_s)
        ended: dict[str, float] = {}
        end = run.counters.user_ended

        def note(user: str, *, failed: bool) -> None:
            ended[user] = time.monotonic()
            end(user, failed=failed)

        run.counters.user_ended = note  # type: ignore[method-assign]  # to time users
        began = time.monotonic()
        await run_plan(todo, run)
        results = {result.user: result for result in kept.results()}
        await kept.close(finished=True)
    timed = [job.user for job in todo if not job.user.startswith("slow")]
    refused = hosts.refused
    reached = ", ".join(f"{each.connections} of {each.most}" for each in hosts.reached())
    return Row(
        what=what,
        users=len(timed),
        messages=sum(results[user].imported for user in timed),
        seconds=max(ended[user] for user in timed) - began,
        failed=sum(result.status != "done" for result in results.values()),
        refused=len(refused),
        refused_for_s=refused[-1] - refused[0] if refused else 0.0,
        allowed=reached or "all",
    )


async def many(users: int, messages: int, connections: int, allowed: int, rounds: int) -> list[Row]:
    rows: list[Row] = []
    names = [f"many{number:05}" for number in range(users)]
    wires = Wires()
    fill(wires, names, messages)
    with run_dovecot(extra=f"service imap {{\n  process_limit = {allowed}\n}}") as server:
        endpoints = [at(server, name) for name in names]
        for number in range(rounds):
            for what, at_once, per_host in (
                ("10 users at a time", 10, 50),
                (f"{connections}", connections, connections),
            ):
                limits = Limits(users=at_once, connections_per_host=per_host, connections_per_user=1)
                parent = f"run{number}-{at_once}"
                rows.append(await imported(f"many: {what}", wires, jobs(names, endpoints, parent), limits))
    return rows


class Slow:
    """Five connections, and each user is told once to stay away."""

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.server = Server(most_logins=5, hook=self.hook)

    async def hook(self, call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and call.session.user not in self.told:
            self.told.add(call.session.user)
            return call.no(f"[THROTTLED] Suggested Backoff Time: {BACKOFF_MS} milliseconds")
        return False


async def beside(users: int, messages: int, rounds: int) -> list[Row]:
    rows: list[Row] = []
    names = [f"well{number:04}" for number in range(users)]
    slow = [f"slow{number:02}" for number in range(20)]
    wires = Wires()
    fill(wires, names, messages)
    fill(wires, slow, 3)
    limits = Limits(users=20, connections_per_user=1)
    with run_dovecot() as one, run_dovecot() as other:
        ends = [at(one if number % 2 else other, name) for number, name in enumerate(names)]
        for number in range(rounds):
            rows.append(await imported("alone", wires, jobs(names, ends, f"alone{number}"), limits))
            throttled = Slow()
            async with throttled.server.running() as server:
                # First in the list: who comes first is in the way of the others, if anybody is.
                todo = [
                    *jobs(slow, [server.endpoint(user=name) for name in slow], f"run{number}"),
                    *jobs(names, ends, f"beside{number}"),
                ]
                row = await imported("beside", wires, todo, limits)
                rows.append(msgspec.structs.replace(row, allowed=f"{row.allowed}, {server.most_inside} seen there"))
    return rows


def ratio(rows: Sequence[Row], above: str, below: str) -> float:
    """Of the medians of seconds a message."""

    def median(what: str) -> float:
        return statistics.median(row.seconds / row.messages for row in rows if what in row.what)

    return median(above) / median(below)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--messages", type=int, default=20)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--allowed", type=int, default=150, help="connections that the Dovecot takes")
    parser.add_argument("--beside", type=int, default=200, help="users of the two Dovecots")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if given.quick:
        given = replace_all(given, users=100, messages=5, connections=40, allowed=30, beside=30, rounds=1)

    async def run() -> list[Row]:
        rows = await many(given.users, given.messages, given.connections, given.allowed, given.rounds)
        return rows + await beside(given.beside, given.messages * 5, given.rounds)

    logging.getLogger("aimport").setLevel(logging.ERROR)
    logging.getLogger("stamina").setLevel(logging.ERROR)
    rows = run_loop(run)
    cells = [
        (
            row.what, str(row.users), str(row.messages), f"{row.seconds:.1f}", f"{row.rate:.0f}", str(row.failed),
            str(row.refused), f"{row.refused_for_s:.1f}", row.allowed,
        )
        for row in rows
    ]  # fmt: skip
    headings = ("what", "users", "messages", "s", "messages/s", "failed", "refused", "for s", "connections")
    print(columns([headings, *cells]))
    rate = ratio(rows, "10 users", f"many: {given.connections}")
    slower = ratio(rows, "beside", "alone")
    print(f"{given.connections} connections: {rate:.2f} of 10 users at a time (goal {GOAL_MANY})")
    print(f"beside a server that throttles: {slower:.2f} of the time alone (goal {GOAL_BESIDE})")
    if given.json is not None:
        document = {"machine": machine(Path.cwd()), "rows": rows, "many": rate, "beside": slower}
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    return 0


def replace_all(given: argparse.Namespace, **values: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(given), **values})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
