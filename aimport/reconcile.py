"""Which messages in doubt are at the destination: pure matching as a multiset.

wanted (batches without an answer) + stored (what `find` saw) - claimed (committed before) ──▶ matches
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence

from aimport.model import Fingerprint, Stored, Wanted


def match(
    wanted: Sequence[Wanted],
    dates: Sequence[int | None],
    stored: Sequence[Stored],
    *,
    claimed_uids: Collection[int],
    claimed_fingerprints: Counter[Fingerprint],
) -> list[Stored | None]:
    """What is stored of each wanted message, beside `wanted`; None: send it again.

    `dates` stands beside `wanted`: seconds since 1970, None when unknown. No stored message
    serves twice, so k identical wanted consume at most k stored, in order. A store that knows
    places by name (`Stored.wanted`) decides; else size and digest do, an equal date first:
    APPEND carries the source's date, a delivery of the same octets has its own.

    Stored messages with a claimed UID belong to committed messages. A committed message
    without UID takes one stored message of its fingerprint away, first one whose date no
    wanted message asks for: its own date is not kept, and a wanted match needs the rest.
    """
    found: list[Stored | None] = [None] * len(wanted)
    candidates: dict[Fingerprint, list[Stored]] = {}
    for one in stored:
        if one.uid is not None and one.uid in claimed_uids:
            continue
        if one.wanted is not None:
            if found[one.wanted] is None:
                found[one.wanted] = one
        else:
            candidates.setdefault(one.fingerprint, []).append(one)
    asked: dict[Fingerprint, list[int]] = {}
    for place, want in enumerate(wanted):
        if found[place] is None and want.fingerprint in candidates:
            asked.setdefault(want.fingerprint, []).append(place)
    for fingerprint, places in asked.items():
        left = _unclaimed(
            candidates[fingerprint], {dates[place] for place in places}, claimed_fingerprints[fingerprint]
        )
        by_date: dict[int, deque[int]] = {}
        for index, one in enumerate(left):
            if one.internal_date is not None:
                by_date.setdefault(one.internal_date, deque()).append(index)
        rest = dict(enumerate(left))
        for place in places:
            date = dates[place]
            if date is not None and by_date.get(date):
                found[place] = rest.pop(by_date[date].popleft())
        remaining = iter(rest.values())
        for place in places:
            if found[place] is None:
                found[place] = next(remaining, None)
    return found


def _unclaimed(candidates: Sequence[Stored], asked: Collection[int | None], claimed: int) -> list[Stored]:
    """`candidates` without `claimed` of them: foreign dates go first, then the oldest."""
    if not claimed:
        return list(candidates)
    order = sorted(range(len(candidates)), key=lambda place: candidates[place].internal_date in asked)
    gone = set(order[:claimed])
    return [one for place, one in enumerate(candidates) if place not in gone]
