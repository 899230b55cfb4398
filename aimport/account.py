"""What all users of a run share, and one account on its way through its tries. State, no I/O.

Run ──▶ Account ──▶ Work (one mailbox) ──▶ Suspects
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol
from weakref import WeakValueDictionary

import anyio

from aimport.daily import Day, Direction, Ledger
from aimport.errors import AimportError, ConnectionLost, DailySpent, Unavailable
from aimport.interfaces import Destination, DestinationSession, Source, SourceSession
from aimport.journal import Journal, LaneLog, UserLog
from aimport.limits import ByteBudget, HostLimits, Limits
from aimport.mapping import Naming
from aimport.merging import Merge
from aimport.model import Endpoint, Mailbox, MessageKey, Order, Selection, UserJob
from aimport.pacing import Throttles
from aimport.query.query import Query
from aimport.seats import Seats
from aimport.stages import Stages
from aimport.tally import Counters

logger = logging.getLogger(__name__)

LOSSES_ALONE: Final = 3  # arbitrary: a connection may also be lost by chance, or by what was sent before


class Stores(Protocol):
    """Where endpoints become stores (`aimport.stores`, or a test's own)."""

    def source(self, endpoint: Endpoint) -> Source: ...

    def destination(self, endpoint: Endpoint) -> Destination: ...


@dataclass(slots=True, kw_only=True)
class Run:
    """What all users of a run share."""

    stores: Stores
    journal: Journal
    query: Query
    first: Sequence[Query] = ()
    """`--first`: each goes over all users before the next; what else `query` selects comes last."""
    order: Order = "stored"
    limits: Limits = field(default_factory=Limits)
    subscribe: bool = False
    skip_existing: bool = False
    """`--skip-existing`: what the destination has is not sent."""
    merge: Merge | None = None
    """`--merge`: how the mail relates to what the destination has."""
    naming: Naming = field(default_factory=Naming)
    """`--exclude`, `--map`, `--special-use`."""
    repair: bool = False
    """`--repair on-reject`: a message that was refused is changed until it is taken, and that is recorded."""
    throttles: Throttles = field(default_factory=Throttles)
    """The rates that `stores` keep to."""
    ledger: Ledger = field(default_factory=Ledger)
    """Octets that accounts have given and taken today."""
    daily_wait: bool = True
    """Whether users whose day is used up are waited for."""
    counters: Counters = field(default_factory=Counters)
    stages: Stages = field(init=False, default_factory=Stages)
    stopping: bool = False
    """Set by the first SIGINT or SIGTERM: take no new work, let batches in flight finish."""
    gave_up: bool = False
    """Set when `--max-errors` was reached: users remain that were not begun."""
    turn: int = field(init=False, default=0)
    """Which of `first` is under way; their number: the rest."""
    ended: set[str] = field(init=False, default_factory=set)
    """Users who are not worth a further turn."""
    refused: dict[tuple[str, str, str], set[str]] = field(init=False, default_factory=dict)
    """By user, source and destination mailbox: keys that were rejected in an earlier turn."""
    budget: ByteBudget = field(init=False)
    hosts: HostLimits = field(init=False)
    seats: Seats = field(init=False)

    _accounts: WeakValueDictionary[str, anyio.Lock] = field(init=False, default_factory=WeakValueDictionary)

    def alone(self, identity: str) -> anyio.Lock:
        """Held while an account is written: two lines of a list may share one under different parents."""
        return self._accounts.setdefault(identity, anyio.Lock())

    @property
    def last_turn(self) -> bool:
        return self.turn == len(self.first)

    @property
    def selected(self) -> Query:
        """What this turn is about."""
        return self.query if self.last_turn else self.query.also(self.first[self.turn])

    def __post_init__(self) -> None:
        self.budget = ByteBudget(self.limits.max_memory)
        limits = self.limits
        self.seats = Seats(limits.users)
        self.hosts = HostLimits(
            limits.connections_per_host, first_wait_s=limits.retry_wait_s, down_s=limits.host_down_s
        )


@dataclass(slots=True)
class Suspects:
    """Messages of one mailbox that a connection was lost at, over all tries of the user.

    Some servers answer a message they do not like with BYE (Gmail, a NUL) or die of it. A server takes what it
    is sent in order, so the culprit is in the oldest batch of which something is missing afterwards.
    """

    losses: dict[MessageKey, int] = field(default_factory=dict)
    """How often each was the whole of that batch. It stands alone from the first loss on."""
    error: ConnectionLost | None = None
    """How the last connection was lost."""
    unsettled: bool = False
    """What was under way then is not settled yet."""
    rejected_in_a_row: int = 0

    @contextmanager
    def watch(self) -> Generator[None]:
        """Notes how the connection was lost, unless the server only asks to come back later."""
        try:
            yield
        except ConnectionLost as error:
            if not isinstance(error, Unavailable):
                self.error, self.unsettled = error, True
            raise

    def accuse(self, keys: Sequence[MessageKey], missing: Sequence[MessageKey]) -> None:
        """`missing` of the batch `keys` were not stored; a server that says why need not be asked thrice."""
        assert self.error is not None
        self.unsettled = False
        for key in missing:
            known = self.losses.setdefault(key, 0)
            if len(keys) == 1:
                self.losses[key] = known + (LOSSES_ALONE if self.error.cause else 1)


@dataclass(slots=True)
class Work:
    """One source mailbox on its way: what was selected, where it goes, how it ended."""

    selection: Selection
    target: Mailbox
    lane: LaneLog | None
    refused: set[str] = field(default_factory=set)
    """Keys rejected since the user began: a retry passes them over, a resume tries them again."""
    suspects: Suspects = field(default_factory=Suspects)
    complete: bool = False

    @property
    def source(self) -> Mailbox:
        return self.selection.mailbox

    def __contains__(self, key: object) -> bool:
        """Whether `key` has come to its end."""
        lane = self.lane
        return key in self.refused or (lane is not None and (key in lane.committed or key in lane.present))

    def open_keys(self) -> int:
        """Selected messages that have not come to their end."""
        if not self.refused and (self.lane is None or not (self.lane.committed or self.lane.present)):
            return len(self.selection.keys)
        return sum(1 for key in self.selection.keys if key not in self)


class Account:
    """One user on its way through its tries: what is known, what failed."""

    def __init__(self, job: UserJob, log: UserLog, run: Run) -> None:
        self.job = job
        self.log = log
        self.run = run
        self.works: dict[tuple[str, str], Work] = {}
        self.failures: list[tuple[str, AimportError]] = []
        """Mailbox failures of the current try, with the mailbox name."""
        self.try_began = 0.0
        """Time of the loop. All sessions of earlier tries, and of earlier processes, had ended before."""
        self.cut_short = False
        """The run was stopped before all its mailboxes were looked at: there may be more than is known."""
        self.announced = False
        self.source_host = self.destination_host = ""
        """As the stores name them; "" for local ones."""
        self.dates: Counter[str] = Counter()
        """Messages stored with an INTERNALDATE that is a guess, by what it was taken from."""
        self.days: dict[Direction, Day] = {}
        """Where octets of a day are limited."""
        self.spent: DailySpent | None = None
        """A day is used up: this try ends in good order."""
        self.spent_limit = 0
        """Octets of that day."""

    def mailbox_failed(self, mailbox: str, error: AimportError) -> None:
        # Its trace would keep the messages that were under way, and their open files, until the user ends.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self.failures.append((mailbox, error))
        logger.warning("mailbox failed user=%s mailbox=%s error=%s", self.job.user, mailbox, error)

    @property
    def ends(self) -> bool:
        """No new work is to be taken."""
        return self.run.stopping or self.spent is not None

    def keep_days(self, reader: SourceSession, writer: DestinationSession) -> None:
        """Minds the octets of a day from now on, where a side has a limit."""
        self.spent = None
        sides: tuple[tuple[Direction, int, str], ...] = (
            ("fetch", reader.limits.octets_per_day, self.job.source.identity),
            ("append", writer.limits.octets_per_day, self.job.destination.identity),
        )
        for direction, limit, identity in sides:
            if limit and direction not in self.days:
                self.days[direction] = Day(self.run.ledger, identity, direction, limit)

    async def may(self, direction: Direction, octets: int) -> bool:
        """Whether so many may move today, and then they do; else `spent` says so.

        Raises:
            JournalError: it cannot be looked up.
        """
        day = self.days.get(direction)
        if day is None or self.spent is not None:
            return self.spent is None
        wait_s = await day.take(octets)
        if wait_s:
            verb = "fetched" if direction == "fetch" else "appended"
            self.spent = DailySpent(f"the {day.limit} octets that may be {verb} in 24 hours are used up", wait_s=wait_s)
            self.spent_limit = day.limit
        return not wait_s

    def moves(self, direction: Direction, octets: int) -> None:
        """So many move, whatever is left."""
        if direction in self.days:
            self.days[direction].use(octets)

    def octets_left(self) -> int:
        """Of what was selected and has not come to its end. Files may be asked for their sizes."""
        return sum(
            size
            for work in self.works.values()
            if not work.complete
            for key, size in zip(work.selection.keys, work.selection.sizes, strict=True)
            if key not in work
        )

    async def close_days(self) -> None:
        """Gives back what of today was not used.

        Raises:
            JournalError
        """
        days, self.days = self.days, {}
        for direction, day in days.items():
            await day.close(under_way=direction == "fetch" and self.spent is not None)

    def damaged(self, mailbox: str, text: str, *, key: str = "") -> None:
        """Records a damage of the source that mail is taken from all the same, and tells it once."""
        if self.run.journal.damaged(self.job.user, mailbox, key, text):
            logger.warning("source damaged user=%s mailbox=%s reason=%s", self.job.user, mailbox, text)

    def progress(self) -> int:
        """Grows with every message that comes to its end."""
        return sum(len(lane.committed) + len(lane.rejected) for lane in self.log.lanes.values())
