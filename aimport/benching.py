"""`aimport bench`: what an import reaches on this machine, or with the user's own servers.

    loopback:   generated mail ─▶ Maildir ─▶ Maildir, and cp -r beside it
    one account:   memory ─▶ account ─▶ nowhere (read back, compared by hash)
    two accounts:  memory ─▶ first ─▶ nowhere; first ─▶ second ─▶ nowhere

On servers everything lies below one mailbox with a name that nobody can guess (`traces`), and is taken away at the
end, however that comes; nothing else is opened. Rounds go over all scenarios in turn, so that what changes on the
machine meanwhile meets each of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from aimport import octets, sample
from aimport.daily import Ledger
from aimport.errors import AimportError, ConfigurationError, ConnectionLost, SourceMissing
from aimport.interfaces import Destination, Removing
from aimport.model import Endpoint, Fingerprint, Mailbox
from aimport.query.dates import Clock
from aimport.query.parse import parse_query
from aimport.query.query import Query
from aimport.stores import Stores
from aimport.stores.memory import MemorySource, MemoryStore
from aimport.stores.null import NullDestination
from aimport.traces import Trace
from aimport.trial import Kind, Round, Trial, Trip, measure

MOST_OCTETS: Final = 2 * 1024**3
"""Of generated mail that waits in memory."""
ENOUGH: Final = 0.95
"""Of the best rate: the fewest connections that reach it are enough."""
CLEAN_TRIES: Final = 2

CP: Final = "cp -r and sync"
CEILING: Final = "memory to nowhere"
COPY: Final = "Maildir to Maildir"
LINK: Final = "Maildir to Maildir, linked"
READ: Final = "Maildir to nowhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured."""

    messages: int
    median_octets: int
    seed: int
    rounds: int
    connections: tuple[int, ...]

    @property
    def about_octets(self) -> float:
        """Of the mail: the mean of the generated sizes is twice their median, exp(1.2**2 / 2)."""
        return 2.0 * self.messages * self.median_octets


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An account that is measured: how it is shown, and where it lies."""

    name: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Left:
    """What could not be taken away."""

    place: str
    mailbox: str
    why: str


@dataclass(slots=True, kw_only=True)
class Compared:
    """What was read back, against what was sent."""

    messages: int = 0
    missing: int = 0
    unexpected: int = 0
    """Octets that nobody sent: a server altered a message, or gave one twice."""

    @property
    def equal(self) -> bool:
        return not self.missing and not self.unexpected


@dataclass(slots=True, kw_only=True)
class Mail:
    """The generated messages: `boxes` mailboxes, all in memory."""

    scale: Scale
    samples: list[sample.Sample]
    expected: Counter[Fingerprint]
    octets: int

    @classmethod
    def made(cls, scale: Scale) -> Mail:
        samples: list[sample.Sample] = []
        expected: Counter[Fingerprint] = Counter()
        total = 0
        boxes = mailboxes_for(scale)
        for each in sample.account(
            "bench@example.org",
            seed=scale.seed,
            messages=scale.messages,
            mailboxes=[(f"{number:02}",) for number in range(boxes)],
            median_octets=scale.median_octets,
        ):
            body = octets.whole(each.message.body)
            total += len(body)
            # Evenly over the mailboxes, so that as many connections as are asked for have work to the end.
            path = (f"{len(samples) % boxes:02}",)
            samples.append(sample.Sample(path=path, message=each.message))
            expected[octets.fingerprint(octets.wire_form(body))] += 1
        return cls(scale=scale, samples=samples, expected=expected, octets=total)

    def source(self, prefix: str) -> MemorySource:
        """All of it, in mailboxes with that prefix."""
        store = MemoryStore()
        for each in self.samples:
            store.mailbox("bench", (prefix + each.path[0],)).add(
                octets.whole(each.message.body),
                flags=sorted(each.message.flags),
                internal_date=each.message.internal_date,
            )
        return MemorySource(store, "bench")

    def names(self, prefix: str) -> list[str]:
        return sorted({prefix + each.path[0] for each in self.samples})


def mailboxes_for(scale: Scale) -> int:
    """Twice as many as connections, at least 4: a connection works at one mailbox at a time."""
    return min(max(2 * max(scale.connections), 4), scale.messages)


@dataclass(slots=True, kw_only=True)
class Bench:
    """All scenarios with what they took so far."""

    scale: Scale
    tell: Callable[[str], None]
    """Hears of each round."""
    ledger: Ledger
    octets: int = 0
    """Of the generated mail."""
    trials: list[Trial] = field(default_factory=list)
    compared: Compared = field(default_factory=Compared)

    def add(self, number: int, scenario: str, connections: int, took: Round, kind: Kind) -> None:
        """What a scenario took in round `number`, from 0."""
        for trial in self.trials:
            if (trial.scenario, trial.connections) == (scenario, connections):
                break
        else:
            trial = Trial(scenario=scenario, connections=connections, kind=kind)
            self.trials.append(trial)
        trial.rounds.append(took)
        at = f", {connections} connections" if connections > 1 else ""
        rate = took.messages / took.seconds
        self.tell(f"round {number + 1} of {self.scale.rounds}: {scenario}{at}: {rate:.0f} messages/s")

    async def run(self, trip: Trip, number: int, scenario: str, connections: int, journals: Path, kind: Kind) -> None:
        took = await measure(
            trip, connections=connections, messages=self.scale.messages, journals=journals, ledger=self.ledger
        )
        self.add(number, scenario, connections, took, kind)

    def compare(self, expected: Counter[Fingerprint], seen: Counter[Fingerprint]) -> None:
        self.compared.messages += seen.total()
        self.compared.missing += (expected - seen).total()
        self.compared.unexpected += (seen - expected).total()


def all_of(prefix: str = "") -> Query:
    """Everything, or what is in the mailboxes whose names begin so."""
    return parse_query(("MAILBOX", f"{prefix}*") if prefix else ("ALL",), Clock(now=0))


MEMORY: Final = Endpoint(scheme="memory", path="bench")
NOWHERE: Final = Endpoint(scheme="memory", path="nowhere")


async def loopback(bench: Bench, directory: Path) -> None:
    """Maildir to Maildir below `directory`, which is empty and stays so.

    Raises:
        AimportError: an import failed.
        OSError: the directory cannot be written to.
    """
    scale = bench.scale
    mail = await to_thread.run_sync(Mail.made, scale)
    bench.octets = mail.octets
    source = directory / "source"
    await to_thread.run_sync(lambda: sample.write_maildir(source, iter(mail.samples)))
    from_ = Endpoint(scheme="maildir", path=str(source))
    copying = Stores(link=False)
    journals = directory / "runs"
    main: Kind = "main"
    part: Kind = "part"
    for number in range(scale.rounds):
        for connections in scale.connections:
            await _ceiling(bench, mail, number, connections, journals)
            nowhere = NullDestination(wire=False)
            reading = Trip(source=copying.source(from_), destination=nowhere, from_=from_, to=NOWHERE, query=all_of())
            await bench.run(reading, number, READ, connections, journals, "part")
            bench.compare(mail.expected, nowhere.seen)
            for scenario, stores, kind in ((COPY, copying, main), (LINK, Stores(link=True), part)):
                target = directory / f"to-{number}-{connections}-{kind}"
                to = Endpoint(scheme="maildir", path=str(target))
                trip = Trip(
                    source=stores.source(from_), destination=stores.destination(to), from_=from_, to=to, query=all_of()
                )
                await bench.run(trip, number, scenario, connections, journals, kind)
                await to_thread.run_sync(shutil.rmtree, target)
        took = await to_thread.run_sync(_copied, source, directory / f"cp{number}", scale.messages, mail.octets)
        bench.add(number, CP, 1, took, "floor")


async def _ceiling(bench: Bench, mail: Mail, number: int, connections: int, journals: Path) -> None:
    """What this process does with the same mail when neither end costs anything."""
    trip = Trip(source=mail.source(""), destination=NullDestination(), from_=MEMORY, to=NOWHERE, query=all_of())
    await bench.run(trip, number, CEILING, connections, journals, "own")


def _copied(source: Path, target: Path, messages: int, total: int) -> Round:
    """The same octets by cp, durable at the end as an import's are."""
    before = os.times()
    began = time.perf_counter()
    subprocess.run(["cp", "-r", "--", str(source), str(target)], check=True)
    subprocess.run(["sync", "-f", "--", str(target)], check=True)
    seconds, after = time.perf_counter() - began, os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    shutil.rmtree(target)
    return Round(seconds=seconds, messages=messages, octets=total, cpu_s=cpu_s)


async def with_servers(bench: Bench, places: Sequence[Place], trace: Trace, stores: Stores) -> None:
    """One account, or two: mail goes into the last, and to it from the first where there are two.

    Raises:
        AimportError
    """
    scale = bench.scale
    mail = await to_thread.run_sync(Mail.made, scale)
    bench.octets = mail.octets
    for place in places:
        async with stores.destination(place.endpoint).open() as session:
            await session.create_mailbox(Mailbox(path=(trace.top,), separator=session.separator), subscribe=False)
    first, last = places[0], places[-1]
    if first is not last:
        filling = _filling(mail, first, trace, "from-", stores)
        await bench.run(filling, 0, f"into {first.name}", scale.connections[0], trace.runs, "part")
    for number in range(scale.rounds):
        for connections in scale.connections:
            await _ceiling(bench, mail, number, connections, trace.runs)
            if first is last:
                prefix = f"r{number}c{connections}-"
                trip = _filling(mail, last, trace, prefix, stores)
                scenario = f"into {last.name}"
            else:
                prefix = "from-"
                await _read(bench, mail, first, trace, prefix, number, connections, stores)
                trip = Trip(
                    source=stores.source(first.endpoint),
                    destination=stores.destination(last.endpoint),
                    from_=first.endpoint,
                    to=last.endpoint,
                    query=all_of(f"{trace.top}/{prefix}"),
                )
                scenario = f"{first.name} to {last.name}"
            await bench.run(trip, number, scenario, connections, trace.runs, "main")
            await _read(bench, mail, last, trace, prefix, number, connections, stores)
            async with stores.destination(last.endpoint).open() as session:
                assert isinstance(session, Removing)  # looked at before anything was made
                for name in mail.names(prefix):
                    await session.remove_mailbox(Mailbox(path=(trace.top, name), separator=session.separator))


def _filling(mail: Mail, place: Place, trace: Trace, prefix: str, stores: Stores) -> Trip:
    return Trip(
        source=mail.source(prefix),
        destination=stores.destination(place.endpoint),
        from_=MEMORY,
        to=place.endpoint,
        query=all_of(),
        parent=trace.top,
    )


async def _read(
    bench: Bench, mail: Mail, place: Place, trace: Trace, prefix: str, number: int, connections: int, stores: Stores
) -> None:
    """Reads back what is there under that prefix, and compares it by size and SHA-256."""
    nowhere = NullDestination()
    trip = Trip(
        source=stores.source(place.endpoint),
        destination=nowhere,
        from_=place.endpoint,
        to=NOWHERE,
        query=all_of(f"{trace.top}/{prefix}"),
    )
    await bench.run(trip, number, f"out of {place.name}", connections, trace.runs, "part")
    bench.compare(mail.expected, nowhere.seen)


async def check_places(places: Iterable[Place], stores: Stores) -> None:
    """Looks whether what would be made can be taken away again; writes nothing.

    Raises:
        ConfigurationError: it cannot, or there is no such directory.
        AimportError: a login is refused, ...
    """
    for place in places:
        endpoint = place.endpoint
        if endpoint.rights is not None:
            raise ConfigurationError(
                "mail_uid and mail_gid: bench works with the rights of this process", hint="leave them out"
            )
        if not endpoint.remote and not await anyio.Path(endpoint.path).is_dir():
            raise ConfigurationError(
                f"{place.name}: there is no directory {endpoint.path}", hint="bench makes no account; make it before"
            )
        async with stores.destination(endpoint).open() as session:
            if not isinstance(session, Removing):
                raise ConfigurationError(
                    f"{place.name}: bench cannot take away there what it makes", hint="imap:, tunnel: or maildir:"
                )
            await session.list_mailboxes()


async def clean(places: Iterable[Place], top: str, stores: Stores) -> list[Left]:
    """Takes away the mailbox `top` and all below it, in each place; what cannot be is returned."""
    left: list[Left] = []
    for place in places:
        for attempt in range(CLEAN_TRIES):
            try:
                left += await _clean(place, top, stores.destination(place.endpoint))
            except AimportError as error:
                if isinstance(error, ConnectionLost) and attempt + 1 < CLEAN_TRIES:
                    continue
                left.append(Left(place.name, top, str(error)))
            break
    return left


async def _clean(place: Place, top: str, destination: Destination) -> list[Left]:
    left: list[Left] = []
    async with destination.open() as session:
        assert isinstance(session, Removing)
        try:
            there = [mailbox for mailbox in await session.list_mailboxes() if mailbox.path[0] == top]
        except SourceMissing:
            return []
        for mailbox in sorted(there, key=lambda mailbox: len(mailbox.path), reverse=True):
            try:
                await session.remove_mailbox(mailbox)
            except ConnectionLost:
                raise
            except AimportError as error:
                left.append(Left(place.name, mailbox.name, str(error)))
    return left


@dataclass(frozen=True, slots=True)
class Finding:
    """What limits the main scenario, and what to set."""

    scenario: str
    connections: int
    limit: str
    advice: tuple[str, ...]


def find(trials: Sequence[Trial]) -> Finding | None:
    """From the scaling curve of the main scenario; None: nothing was measured."""
    curve = sorted((each for each in trials if each.kind == "main"), key=lambda each: each.connections)
    if not curve:
        return None
    best = max(each.rate.median for each in curve)
    enough = next(each for each in curve if each.rate.median >= ENOUGH * best)
    most = curve[-1]
    got = f" (it got {enough.used})" if enough.used < enough.connections else ""
    rate = enough.rate.median
    advice = [f"set --connections-per-user {enough.connections}{got}: one account takes {rate:.0f} messages/s so"]
    if len(curve) > 1 and enough is most:
        advice.append(f"more connections may bring more: --connections {most.connections * 2},{most.connections * 4}")
    elif len(curve) > 1:
        advice.append("more connections to one account bring no more; other users may lie on other disks or servers")
    elif enough.middle.advice:
        advice.append(enough.middle.advice)
    limit = enough.middle.limited or "nothing that shows: it was over too soon, so take more --messages"
    return Finding(enough.scenario, enough.connections, limit, tuple(advice))
