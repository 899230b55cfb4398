"""The audit at the end of a mailbox: is all that the destination acknowledged there, and there once?

    committed UIDs ── survey ──▶ missing ── find by content ──▶ amended: elsewhere, or lost and sent again

Sees only `interfaces`. A mailbox in order costs one look at its UIDs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence

from anyio import to_thread

from aimport import reconcile
from aimport.account import Account, Work
from aimport.errors import MailboxNotFound
from aimport.interfaces import DestinationSession
from aimport.journal import Amendment, Entry, LaneLog
from aimport.model import Appended, Fingerprint, MessageKey, Position, Stored, Survey, Uid

logger = logging.getLogger(__name__)


async def audit(account: Account, work: Work, lane: LaneLog, writer: DestinationSession) -> Sequence[MessageKey]:
    """Keys of messages that were acknowledged and are not there: the journal calls them committed no more.

    Raises:
        MailboxNotFound: the mailbox is gone, with all that was acknowledged.
        ConnectionLost
    """
    if not lane.committed:
        return ()
    survey = await writer.survey(work.target, lane.floor, sizes=bool(lane.settled))
    if survey is None:
        raise MailboxNotFound(
            f"mailbox {work.target.name!r} is gone, and with it {len(lane.committed)} messages that were acknowledged:"
            " another client has deleted or renamed it",
            hint="`aimport import --again` imports them once more",
        )
    if survey.uidvalidity != lane.position.uidvalidity:
        await lane.move(Position(uidvalidity=survey.uidvalidity, uidnext=1))
    missing = {uid for uid in lane.uids if survey.at(f"{survey.uidvalidity}:{uid}") is None}
    without_uid = len(lane.committed) - len(lane.uids)
    known = lane.uids.distinct - len(missing)
    short = len(survey.keys) - known < without_uid
    amendments: list[Amendment] = []
    if missing or short:
        amendments += await _look_for(lane, writer, work, missing, short=short)
    if lane.settled and len(survey.keys) > known + without_uid:
        amendments += await _late(lane, writer, work, survey)
    if amendments:
        await lane.amend(amendments)
    lost = [each.key for each in amendments if each.lost]
    if lost:
        logger.warning(
            "acknowledged messages are not there user=%s mailbox=%s messages=%d first=%s",
            account.job.user, work.target.name, len(lost), lost[0],
        )  # fmt: skip
        account.run.counters.settled(account.job.user, -len(lost), -sum(each.size for each in amendments if each.lost))
    return lost


async def _look_for(
    lane: LaneLog, writer: DestinationSession, work: Work, missing: Collection[int], *, short: bool
) -> list[Amendment]:
    """What became of messages whose UIDs are not there, and, where there are too few, of those without.

    What the others hold is counted by content as well: a server that gave one wrong UID may have given more.
    """
    asked: list[Entry] = []
    others: Counter[Fingerprint] = Counter()
    for entry in await to_thread.run_sync(_committed, lane):
        given = _given(entry)
        if given in missing or (given is None and short):
            asked.append(entry)
        else:
            others[entry.sent.fingerprint] += 1
    matched = reconcile.match(
        [entry.sent for entry in asked],
        [entry.date for entry in asked],
        await writer.find(work.target, [entry.sent for entry in asked], lane.floor),
        claimed_uids=(),
        claimed_fingerprints=others,
    )
    found = list(zip(asked, matched, strict=True))
    if others and any(match is not None and _given(entry) is not None for entry, match in found):
        logger.info("uids of the server are not true mailbox=%s", work.target.name)
        return await _look_for(lane, writer, work, lane.uids, short=True)
    return [_amendment(entry, match) for entry, match in found if match is None or match.uid != _given(entry)]


async def _late(lane: LaneLog, writer: DestinationSession, work: Work, survey: Survey) -> list[Amendment]:
    """Committed messages of which one more is there, with our date: a batch in doubt was stored after we had looked."""
    floor = lane.floor.uidnext
    others = {
        (size, date)
        for key, size, date in zip(survey.keys, survey.sizes, survey.dates, strict=True)
        if (uid := int(key.rpartition(":")[2])) >= floor and uid not in lane.uids
    }
    entries = await to_thread.run_sync(_committed, lane)
    asked = [entry for entry in entries if (entry.sent.fingerprint.size, entry.date) in others]
    if not asked:
        return []
    there: Counter[tuple[Fingerprint, int | None]] = Counter(
        (one.fingerprint, one.internal_date)
        for one in await writer.find(work.target, [entry.sent for entry in asked], lane.floor)
    )
    there.subtract((entry.sent.fingerprint, entry.date) for entry in asked)
    doubled = []
    for entry in asked:
        content = (entry.sent.fingerprint, entry.date)
        if there[content] > 0 and entry.key not in lane.doubtful:
            there[content] -= 1
            doubled.append(_amendment(entry, None, doubled=True))
    return doubled


def _committed(lane: LaneLog) -> list[Entry]:
    return [entry for entry in lane.entries() if isinstance(entry.outcome, Appended)]


def _given(entry: Entry) -> Uid | None:
    """The UID that the destination said."""
    assert isinstance(entry.outcome, Appended)
    return entry.outcome.uid


def _amendment(entry: Entry, match: Stored | None, *, doubled: bool = False) -> Amendment:
    wanted, given = entry.sent, _given(entry)
    return Amendment(
        number=wanted.number,
        index=wanted.index,
        key=entry.key,
        size=wanted.fingerprint.size,
        was=given,
        uid=given if doubled else match.uid if match is not None else None,
        lost=match is None and not doubled,
        doubled=doubled,
    )
