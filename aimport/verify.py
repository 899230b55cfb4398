"""Hold what the journal calls committed against what the destination holds now. Writes nothing.

    entries ── survey ──▶ in its place, of its size? ──▶ equal
                              │ sampled, of another size, of no known place
                              ▼
                        read octets ──▶ equal, line ends, altered (nul, cr, ...), doubled, missing

Sees only `interfaces` and the journal. Sizes decide where places are known (UIDs, names of our files); whatever is odd
about a size is settled by octets, so that no difference is told that is none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import stamina
from anyio import to_thread

from aimport import names, reconcile
from aimport.account import Run
from aimport.errors import AimportError, Status
from aimport.interfaces import DestinationSession
from aimport.journal import Entry, Journal, Lane, floor_of
from aimport.keyset import Spans
from aimport.model import (
    Appended,
    Fingerprint,
    Mailbox,
    MessageKey,
    Stored,
    Survey,
    UserJob,
)
from aimport.pipeline import opened, worth_retrying
from aimport.reading import Seen, seen_of

What = Literal["missing", "altered", "doubled"]
TRIES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A message that is not at the destination as it was acknowledged, or is there once more."""

    user: str
    mailbox: str
    """At the destination."""
    source: str
    key: MessageKey
    uid: int | None
    what: What
    kind: str
    """Of an altered one what is changed: "nul", "cr", "8-bit header", "final line end", or "other"."""
    sent: Fingerprint
    found: Fingerprint | None

    def to_json(self) -> dict[str, object]:
        return {
            "user": self.user,
            "mailbox": self.mailbox,
            "source": self.source,
            "key": self.key,
            "uid": self.uid,
            "what": self.what,
            "kind": self.kind,
            "sent": _print_json(self.sent),
            "found": None if self.found is None else _print_json(self.found),
        }

    def __str__(self) -> str:
        where = f"{self.user}: {self.mailbox}: message {self.key}"
        sent = f"{self.sent.size} octets, sha256 {self.sent.digest.hex()}"
        if self.what == "missing" or self.found is None:
            return f"{where} is missing ({sent})"
        if self.what == "doubled":
            return f"{where} is there once more ({sent})"
        return f"{where} is altered ({self.kind}): {sent}; there {self.found.size}, {self.found.digest.hex()}"


def _print_json(fingerprint: Fingerprint) -> dict[str, object]:
    return {"size": fingerprint.size, "sha256": fingerprint.digest.hex()}


@dataclass(slots=True, kw_only=True)
class Verified:
    """What of one user was checked, in messages: `checked = equal + line_ends + altered + missing`.

    `line_ends`: equal but for LF in the place of CRLF. `read` counts those whose octets were compared. `extra`: others
    that came to the same mailboxes since. `in_doubt`: sent, and nobody knows yet (`aimport resume`).
    """

    user: str
    status: Status = "done"
    checked: int = 0
    equal: int = 0
    line_ends: int = 0
    altered: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    doubled: int = 0
    extra: int = 0
    in_doubt: int = 0
    read: int = 0
    error: str | None = None

    @property
    def differs(self) -> bool:
        return bool(self.missing or self.doubled or self.altered.total())

    def to_json(self) -> dict[str, object]:
        return {"user": self.user, "status": self.status, **self.counts(), "error": self.error}

    def counts(self) -> dict[str, object]:
        """The keys that a user and the totals share."""
        return {
            "checked": self.checked,
            "equal": self.equal,
            "line_ends": self.line_ends,
            "altered": self.altered.total(),
            "missing": self.missing,
            "doubled": self.doubled,
            "extra": self.extra,
            "in_doubt": self.in_doubt,
            "read": self.read,
            "kinds": dict(self.altered),
        }

    def add(self, other: Verified) -> None:
        """Sums up, for totals."""
        for name in ("checked", "equal", "line_ends", "missing", "doubled", "extra", "in_doubt", "read"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.altered.update(other.altered)


def exit_code(verified: Sequence[Verified]) -> int:
    """75 when users could not be checked (77: none, for all were refused), else 65 when something differs, else 0."""
    failed = [each for each in verified if each.status != "done"]
    if failed:
        return 77 if all(each.status == "refused" for each in verified) else 75
    return 65 if any(each.differs for each in verified) else 0


async def verify_user(
    job: UserJob, run: Run, journal: Journal, *, share: float, tell: Callable[[Difference], None]
) -> Verified:
    """Checks all mailboxes of a user.

    `share`, of 1: how many messages have their octets compared, always the same ones. Differences are told when all
    is done, so that a try that failed tells none twice.
    """
    verified = Verified(user=job.user)
    told: list[Difference] = []
    try:
        async for attempt in stamina.retry_context(on=worth_retrying, attempts=TRIES, timeout=None):
            with attempt:
                verified = Verified(user=job.user)
                told.clear()
                await _Check(job, run, journal, share, verified, told.append).check()
    except AimportError as error:
        verified.status, verified.error = error.status, str(error)
    for difference in told:
        tell(difference)
    return verified


class _Check:
    """One try at one user."""

    def __init__(
        self,
        job: UserJob,
        run: Run,
        journal: Journal,
        share: float,
        verified: Verified,
        tell: Callable[[Difference], None],
    ) -> None:
        self.job = job
        self.run = run
        self.journal = journal
        self.share = share
        self.verified = verified
        self.tell = tell

    async def check(self) -> None:
        job, run = self.job, self.run
        if job.error:
            self.verified.status, self.verified.error = job.status, job.error
            return
        lanes = self.journal.lanes(job.user)
        if not lanes:
            return
        destination = run.stores.destination(job.destination)
        async with run.hosts.hold((destination.host,)), opened(destination, run, job.user) as writer:
            for lane in lanes:
                entries = await to_thread.run_sync(self._committed, lane)
                if entries:
                    await _Mailbox(self, lane, entries, writer).check()

    def _committed(self, lane: Lane) -> list[Entry]:
        committed = []
        for entry in self.journal.entries(self.job.user, lane.number):
            self.verified.in_doubt += entry.outcome is None
            if isinstance(entry.outcome, Appended):
                committed.append(entry)
        return committed


class _Mailbox:
    """The messages of one lane at the destination."""

    def __init__(self, check: _Check, lane: Lane, entries: Sequence[Entry], writer: DestinationSession) -> None:
        self._check = check
        self._verified = check.verified
        self._lane = lane
        self._entries = entries
        self._writer = writer
        path = names.split(lane.destination, writer.separator)
        self._mailbox = Mailbox(path=path, separator=writer.separator)

    async def check(self) -> None:
        lane, verified = self._lane, self._verified
        verified.checked += len(self._entries)
        uids = [
            entry.outcome.uid for entry in self._entries if isinstance(entry.outcome, Appended) and entry.outcome.uid
        ]
        survey = await self._writer.survey(self._mailbox, floor_of(lane.position, min(uids, default=None)))
        if survey is None:
            for entry in self._entries:
                self._differs(entry, "missing", "", None)
            return
        placed: dict[int, Entry] = {}
        """Those of `owners` that are to be compared."""
        unplaced: list[Entry] = []
        owners: dict[int, Entry] = {}
        """By place in the survey: which message of ours is there."""
        for entry in self._entries:
            at = survey.at(self._place(entry))
            if at is None:
                unplaced.append(entry)
                continue
            owner = owners.setdefault(at, entry)
            if owner is not entry:
                if _sent(owner) == _sent(entry):  # a server that keeps one of equal messages (Gmail)
                    verified.equal += 1
                else:
                    unplaced.append(entry)
            elif self._sampled(entry) or survey.sizes[at] != _sent(entry).size:
                placed[at] = entry
            else:
                verified.equal += 1
        candidates = [*placed, *self._candidates(survey, owners, unplaced)]
        held = await self._read(survey, candidates) if candidates else {}
        left: list[Entry] = []
        for at, entry in placed.items():
            if (found := held.get(at)) is not None and self._is_equal(entry, found):
                del held[at]
            elif found is not None and _is_altered(entry, found):
                self._differs(entry, "altered", _kinds(entry), found.fingerprint)
                del held[at]
            else:
                left.append(entry)
        self._match(left + unplaced, owners, held, survey)
        self._rest(survey, owners, held)

    def _place(self, entry: Entry) -> str:
        assert isinstance(entry.outcome, Appended)
        return self._writer.place(entry.sent, entry.outcome.uid, self._lane.position.uidvalidity)

    def _sampled(self, entry: Entry) -> bool:
        return int.from_bytes(_sent(entry).digest[:4], "big") < self._check.share * 2**32

    def _candidates(self, survey: Survey, owners: Collection[int], unplaced: Sequence[Entry]) -> Iterator[int]:
        """What nobody claims and may be one of `unplaced`, or one more of a message that is in its place."""
        sizes = Spans(_sent(entry).span for entry in unplaced)
        ours = {(_sent(entry).size, entry.date) for entry in self._entries}
        for at, (size, date) in enumerate(zip(survey.sizes, survey.dates, strict=True)):
            if at not in owners and (size in sizes or (size, date) in ours):
                yield at

    async def _read(self, survey: Survey, places: Sequence[int]) -> dict[int, Seen]:
        at = {survey.keys[place]: place for place in places}
        reduced = any(_sent(entry).alike is not None for entry in self._entries)
        async with self._writer.reading(self._mailbox) as (reader, mailbox):
            read = await seen_of(reader, await reader.select(mailbox), at.keys(), reduced=reduced)
        self._verified.read += len(read)
        return {at[key]: found for key, found in read.items()}

    def _is_equal(self, entry: Entry, found: Seen) -> bool:
        if found.fingerprint != _sent(entry):
            return False
        if found.wire or not self._check.job.source.remote:
            self._verified.equal += 1
        else:
            self._verified.line_ends += 1
        return True

    def _match(self, entries: Sequence[Entry], owners: dict[int, Entry], held: dict[int, Seen], survey: Survey) -> None:
        """What is in no place, or has other octets there than were sent, is looked for among what was read."""
        stored = {
            at: Stored(fingerprint=one.fingerprint, internal_date=survey.dates[at], reduced=one.reduced)
            for at, one in held.items()
        }
        places = {id(one): at for at, one in stored.items()}
        matched = reconcile.match(
            [entry.sent for entry in entries],
            [entry.date for entry in entries],
            list(stored.values()),
            claimed_uids=(),
            claimed_fingerprints=Counter(),
        )
        missing = []
        for entry, match in zip(entries, matched, strict=True):
            if match is None:
                missing.append(entry)
                continue
            at = places[id(match)]
            owners[at] = entry
            found = held.pop(at)
            if not self._is_equal(entry, found):
                self._differs(entry, "altered", _kinds(entry), found.fingerprint)
        for entry in missing:
            own = survey.at(self._place(entry))
            there = None if own is None or owners[own] is not entry else held.pop(own, None)
            if there is not None:
                self._differs(entry, "altered", "other", there.fingerprint)
            else:
                self._differs(entry, "missing", "", None)

    def _rest(self, survey: Survey, owners: Collection[int], held: dict[int, Seen]) -> None:
        """What is there beside: one more of ours with our date, or somebody else's."""
        if not survey.uidvalidity:
            return  # nobody can tell what was there before
        ours = {(_sent(entry), entry.date): entry for entry in self._entries}
        above = self._above(survey)
        for at, one in held.items():
            entry = ours.get((one.fingerprint, survey.dates[at]))
            if entry is not None and at in above and at not in owners:
                self._differs(entry, "doubled", "", one.fingerprint)
        self._verified.extra += sum(at not in owners for at in above)

    def _above(self, survey: Survey) -> range:
        """Places of what came since the lane began."""
        lane = self._lane.position
        count = len(survey.keys)
        if survey.uidvalidity != lane.uidvalidity:
            return range(count)
        return range(bisect_left(range(count), lane.uidnext, key=lambda at: _uid(survey.keys[at])), count)

    def _differs(self, entry: Entry, what: What, kind: str, found: Fingerprint | None) -> None:
        assert isinstance(entry.outcome, Appended)
        verified = self._verified
        if what == "missing":
            verified.missing += 1
        elif what == "doubled":
            verified.doubled += 1
        else:
            verified.altered[kind] += 1
        self._check.tell(
            Difference(
                user=entry.user,
                mailbox=self._lane.destination,
                source=self._lane.source,
                key=entry.key,
                uid=entry.outcome.uid,
                what=what,
                kind=kind,
                sent=_sent(entry),
                found=found,
            )
        )


def _uid(key: MessageKey) -> int:
    return int(key.rpartition(":")[2])


def _sent(entry: Entry) -> Fingerprint:
    return entry.sent.fingerprint


def _is_altered(entry: Entry, found: Seen) -> bool:
    """In a way that is known of servers."""
    alike = _sent(entry).alike
    return alike is not None and found.reduced == alike.digest


def _kinds(entry: Entry) -> str:
    alike = _sent(entry).alike
    return "other" if alike is None else ",".join(alike.kinds)
