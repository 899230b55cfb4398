"""`aimport check`: look at both sides of every user as an import would, and write nothing, neither mail nor journal.

    UserJob ──▶ Checker.look ──▶ Checked ──▶ Checker.add ──▶ hosts, disks, sums
                 log in, once a side · list and map names · ask what is offered and allowed · count

What is in the way is collected, not raised: of one user all of it is told at once. State is that of the hosts and disks
that are met, not of the users.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import anyio
import anyio.to_thread

from aimport import seams
from aimport.account import Run
from aimport.errors import (
    AimportError,
    DestinationFull,
    LoginRefused,
    MailboxError,
    MailboxNotFound,
    NameClash,
    OverQuota,
    Status,
    TooManyConnections,
    UserError,
)
from aimport.estimate import UNBOUNDED, Bound, Estimate, bound_of
from aimport.interfaces import DestinationSession, SourceSession
from aimport.merging import demand_empty
from aimport.model import Mailbox, UserJob
from aimport.pipeline import Selector, Store, innermost, map_mailboxes, opened, unready
from aimport.progress import size
from aimport.query.query import Query
from aimport.query.terms import ALL, Larger
from aimport.results import UserResult
from aimport.secret import hush
from aimport.standing import Allowance, Counting, Inspecting, Server, Standing, Volume

logger = logging.getLogger(__name__)

MAX_HOSTS: Final = 1000  # arbitrary: one a user, say, in a list of a million
MAX_NOTES: Final = 20  # arbitrary
STORAGE_OCTETS: Final = 1024
"""A unit of the resource STORAGE (RFC 9208 §5.1)."""

NOTHING: Final = Standing()
"""Of a store that does not say."""

Role = Literal["source", "destination"]
S = TypeVar("S", SourceSession, DestinationSession)


@dataclass(slots=True)
class Side:
    """One side of one user."""

    role: Role
    host: str = ""
    logged_in: bool = False
    refused: bool = False
    """The login was."""
    untried: bool = False
    """It was not tried any more: its host had refused many."""
    crowded: int = 0
    """So many connections to the host were ours when it refused one more; 0: it did not."""
    standing: Standing = NOTHING


@dataclass(slots=True)
class Checked:
    """What was seen of one user."""

    user: str
    source: Side = field(default_factory=lambda: Side("source"))
    destination: Side = field(default_factory=lambda: Side("destination"))
    mailboxes: int = 0
    messages: int = 0
    octets: int = 0
    too_large: int = 0
    """Messages above the destination's limit, which an import would reject."""
    linkable: bool = False
    """Maildir to Maildir on one file system: files may be linked instead of written."""
    problems: list[AimportError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bound: Bound = UNBOUNDED
    bug: bool = False

    @property
    def status(self) -> Status:
        """The status an import would end with, as far as it shows: the first of the widest failures decides."""
        if self.bug:
            return "failed"
        if self.problems:
            return max(self.problems, key=lambda error: error.scope).status
        return "rejects" if self.too_large else "done"

    @property
    def result(self) -> UserResult:
        named = [each for each in self.problems if isinstance(each, MailboxNotFound) and each.named]
        missing = bool(named) and len(named) == len(self.problems)
        return UserResult(user=self.user, status=self.status, bug=self.bug, mailbox_missing=missing)


@dataclass(slots=True)
class Host:
    """What was seen of one host over all users."""

    roles: set[Role] = field(default_factory=set)
    server: Server | None = None
    logins: int = 0
    refused: int = 0
    untried: int = 0
    crowded: int = 0
    """The fewest connections of ours at which it refused one more; 0: it never did."""
    inside: int = 0
    """Connections of ours that are open, or being opened."""
    octets: int = 0
    """To be fetched from it and appended to it."""
    appended: int = 0
    """Messages."""


@dataclass(slots=True)
class Disk:
    """What users would write to one file system."""

    volume: Volume
    octets: int = 0
    files: int = 0
    linkable_octets: int = 0
    linkable_files: int = 0
    """Of these: may be linked instead, where owner, rights and dates are the same."""

    @property
    def full(self) -> bool:
        """Even if all that may be linked is linked."""
        return self._lacks(self.octets - self.linkable_octets, self.files - self.linkable_files)

    @property
    def tight(self) -> bool:
        return self._lacks(self.octets, self.files)

    def _lacks(self, octets: int, files: int) -> bool:
        free = self.volume.free_files
        return octets > self.volume.free_octets or (free is not None and files > free)


class Checker:
    """Checks users, and adds up what all of them share."""

    def __init__(self, run: Run, *, link: bool = True) -> None:
        self._run = run
        self._link = link
        self.hosts: dict[str, Host] = {}
        self.disks: dict[int, Disk] = {}
        self.estimate = Estimate(users_at_once=run.limits.users)
        self.users = self.to_fix = self.mailboxes = self.too_large = 0

    async def look(self, job: UserJob) -> Checked:
        """Everything that is in the way of one user. A connection too many is tried again; a login never is."""
        run = self._run
        for attempt in range(run.limits.attempts):
            checked = Checked(job.user)
            try:
                await self._look(job, checked)
            except AimportError as error:
                checked.problems.append(error)
            except Exception as error:  # a bug ends its user only; cancellation is no Exception
                bug = innermost(error)
                checked.bug = True
                text = f"internal error: {type(bug).__name__} (please report it; -D shows the trace)"
                checked.problems.append(UserError(text))
                ends = (job.source.secret, job.destination.secret)
                hush(error, [secret.text for secret in ends if secret is not None and secret.kind == "literal"])
                logger.debug("trace user=%s", job.user, exc_info=error)
            crowded = any(isinstance(each, TooManyConnections) for each in checked.problems)
            if not crowded or checked.source.refused or checked.destination.refused:
                break
            self._note_hosts(checked)
            if attempt < run.limits.attempts - 1:
                await anyio.sleep(run.limits.retry_wait_s * 2.0**attempt * seams.jitter())
        return checked

    def add(self, checked: Checked) -> None:
        """Counts a user; once each."""
        self._note_hosts(checked)
        self.users += 1
        self.to_fix += checked.status != "done"
        self.mailboxes += checked.mailboxes
        self.too_large += checked.too_large
        self.estimate.add(checked.messages, checked.octets, checked.bound)
        self._mind_rates(checked)
        volume = checked.destination.standing.volume
        if volume is not None:
            disk = self.disks.setdefault(volume.device, Disk(volume))
            files = checked.messages if volume.file_each else 0
            octets = checked.octets + files * volume.block_octets // 2  # half of each last block, on average
            disk.octets += octets
            disk.files += files
            if checked.linkable:
                disk.linkable_octets += octets
                disk.linkable_files += files

    def _mind_rates(self, checked: Checked) -> None:
        """What the rates that were asked for mean for the time: they hold for each host, over all users."""
        limits = self._run.limits
        for side in filter(lambda side: side.host, (checked.source, checked.destination)):
            host = self._host(side.host)
            host.octets += checked.octets
            host.appended += checked.messages if side.role == "destination" else 0
            if limits.limit_rate:
                reason = f"--limit-rate allows {size(limits.limit_rate)}/s at {side.host}"
                self.estimate.floor(Bound(host.octets / limits.limit_rate, reason))
            if limits.messages_per_second:
                reason = f"--messages-per-second allows {limits.messages_per_second:g} at {side.host}"
                self.estimate.floor(Bound(host.appended / limits.messages_per_second, reason))

    def failures(self) -> Sequence[AimportError]:
        """What is wrong for all users together. With `--skip-existing` nobody knows how much is to come."""
        failures = []
        for disk in self.disks.values():
            if self._run.skip_existing or not disk.full:
                continue
            room = f"about {size(disk.octets)} in {disk.files} files"
            free = f"{size(disk.volume.free_octets)} and {disk.volume.free_files} files are free"
            failures.append(DestinationFull(f"{disk.volume.path}: {room} would be written there, {free}"))
        return failures

    # One user ------------------------------------------------------------------------------------------------

    async def _look(self, job: UserJob, checked: Checked) -> None:
        if job.error:
            raise unready(job)
        run = self._run
        source, destination = run.stores.source(job.source), run.stores.destination(job.destination)
        checked.source.host, checked.destination.host = source.host, destination.host
        if job.source.identity == job.destination.identity:
            checked.notes.append("source and destination are one account: an import doubles what it selects")
        async with run.hosts.hold((source.host, destination.host)), AsyncExitStack() as stack:
            reader = await self._enter(stack, source, checked, checked.source)
            writer = await self._enter(stack, destination, checked, checked.destination)
            mailboxes: Sequence[Mailbox] = ()
            targets: Mapping[Mailbox, Mailbox] = {}
            with _Collecting(checked.problems):
                mailboxes, targets = await self._names(job, checked, reader, writer)
            if writer is not None and isinstance(writer, Inspecting):
                with _Collecting(checked.problems):
                    checked.destination.standing = await writer.inspect(list(targets.values()))
                    checked.problems += checked.destination.standing.problems
            if reader is not None:
                with _Collecting(checked.problems):
                    checked.source.standing = await reader.inspect() if isinstance(reader, Inspecting) else NOTHING
                    await self._count(checked, reader, mailboxes)
        self._judge(job, checked)

    async def _enter(self, stack: AsyncExitStack, store: Store[S], checked: Checked, side: Side) -> S | None:
        """A session; None when there is none, and why is among the problems."""
        host = self._host(store.host)
        side.untried = self._run.hosts.is_closed(store.host)
        host.inside += 1
        stack.callback(_leave, host)
        try:
            session = await stack.enter_async_context(opened(store, self._run, checked.user))
        except AimportError as error:
            side.refused = isinstance(error, LoginRefused) and not side.untried
            if isinstance(error, TooManyConnections):
                side.crowded = max(host.inside - 1, 1)
            checked.problems.append(_at(side, error))
            return None
        side.logged_in = True
        return session

    async def _names(
        self, job: UserJob, checked: Checked, reader: SourceSession | None, writer: DestinationSession | None
    ) -> tuple[Sequence[Mailbox], Mapping[Mailbox, Mailbox]]:
        """Selected mailboxes, and where each would go as far as the destination could be asked."""
        if reader is None:
            return (), {}
        if writer is not None:
            if self._run.merge is not None and self._run.merge.way == "require-empty":
                with _Collecting(checked.problems):
                    await demand_empty(writer)
            try:
                mapped = await map_mailboxes(job, self._run, reader, writer)
            except NameClash as error:  # what there is can still be counted
                checked.problems.append(error)
            else:
                checked.problems += map(_missing, mapped.missing)
                return list(mapped.targets), mapped.targets
        listed = await reader.list_mailboxes()
        checked.problems += map(_missing, self._run.query.missing(listed))
        run = self._run
        return [box for box in listed if run.query.selects(box) and not run.naming.excludes(box)], {}

    async def _count(self, checked: Checked, reader: SourceSession, mailboxes: Sequence[Mailbox]) -> None:
        """Messages and octets; by what the server says of whole mailboxes where all of one is selected."""
        run = self._run
        limit = checked.destination.standing.append_limit
        selector = Selector(reader, run.query, run.order)
        whole = [mailbox for mailbox in mailboxes if run.query.of(mailbox) == ALL]
        counted = await reader.count(whole) if isinstance(reader, Counting) else [None] * len(whole)
        known = {mailbox: counts for mailbox, counts in zip(whole, counted, strict=True) if counts is not None}
        above = run.query.also(Query(term=Larger(limit)))
        for mailbox in selector.in_order(mailboxes):
            counts = known.get(mailbox)
            try:
                if counts is None:
                    selection = await selector.select(mailbox)
                    messages = len(selection.keys)
                    octets, too_large = await anyio.to_thread.run_sync(_added, selection.sizes, limit)
                    checked.notes += [f"{mailbox.name}: {note}" for note in selection.notes]
                    if selection.unlisted:
                        checked.notes.append(f"{mailbox.name}: {selection.unlisted} messages are counted, not listed")
                else:
                    messages, octets = counts.messages, counts.octets
                    # No message is larger than all of its mailbox.
                    some = limit and octets > limit
                    too_large = len((await reader.select(mailbox, above.of(mailbox))).keys) if some else 0
            except MailboxError as error:
                checked.problems.append(MailboxError(f"{mailbox.name}: {error.text}", hint=error.hint, code=error.code))
                continue
            checked.mailboxes += messages > 0
            checked.messages += messages
            checked.octets += octets
            checked.too_large += too_large

    def _judge(self, job: UserJob, checked: Checked) -> None:
        """What follows from both sides together."""
        there = checked.destination.standing
        full = [text for each in there.allowances if (text := _short(each, checked))]
        if full and self._run.skip_existing:
            checked.notes += [f"{text}, unless much of it is there already" for text in full]
        else:
            checked.problems += [OverQuota(text, hint="raise the quota, or select less") for text in full]
        checked.notes += there.notes
        if checked.too_large:
            what = "message is" if checked.too_large == 1 else "messages are"
            limit = size(there.append_limit)
            checked.notes.append(f"{checked.too_large} {what} larger than the {limit} the destination takes")
        volumes = checked.source.standing.volume, there.volume
        if self._link and all(volumes) and job.source.scheme == job.destination.scheme == "maildir":
            checked.linkable = len({volume.device for volume in volumes if volume is not None}) == 1
        checked.bound = bound_of(
            checked.messages, checked.octets, source=checked.source.standing.server, destination=there.server
        )

    # Hosts ---------------------------------------------------------------------------------------------------

    def _host(self, name: str) -> Host:
        """Of hosts beyond the first `MAX_HOSTS` nothing is kept."""
        found = self.hosts.get(name)
        if found is None:
            found = Host()
            if name and len(self.hosts) < MAX_HOSTS:
                self.hosts[name] = found
        return found

    def _note_hosts(self, checked: Checked) -> None:
        for side in (checked.source, checked.destination):
            host = self._host(side.host)
            host.roles.add(side.role)
            host.server = side.standing.server or host.server
            host.logins += side.logged_in
            host.refused += side.refused
            host.untried += side.untried
            if side.crowded:
                host.crowded = min(host.crowded or side.crowded, side.crowded)


def _leave(host: Host) -> None:
    host.inside -= 1


class _Collecting:
    """What ends the block is one of the problems."""

    def __init__(self, problems: list[AimportError]) -> None:
        self._problems = problems

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, AimportError):
            self._problems.append(error)
            return True
        return False


def _at(side: Side, error: AimportError) -> AimportError:
    """Says of which side it is; a source and a destination on one host look alike."""
    error.text = f"{side.role}: {error.text}"
    return error


def _missing(name: str) -> MailboxNotFound:
    return MailboxNotFound(f"{name}: no such mailbox at the source", named=True)


def _added(sizes: Iterable[int], limit: int) -> tuple[int, int]:
    """All octets, and how many are above the limit (0: there is none). In a thread: files may be asked."""
    octets = above = 0
    for each in sizes:
        octets += each
        above += each > limit > 0
    return octets, above


def _short(allowance: Allowance, checked: Checked) -> str:
    """What a quota is too small for; "" when it is not, or is of something else."""
    if allowance.resource == "STORAGE":
        needed, left = checked.octets, allowance.left * STORAGE_OCTETS
        words = f"{size(needed)} are to come, {size(left)} of {size(allowance.limit * STORAGE_OCTETS)} are free"
    elif allowance.resource == "MESSAGE":
        needed, left = checked.messages, allowance.left
        words = f"{needed} messages are to come, {left} of {allowance.limit} are free"
    else:
        return ""
    root = f" {allowance.root}" if allowance.root else ""
    return f"quota{root}: {words}" if needed > left else ""
