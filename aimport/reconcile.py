"""Which messages in doubt are at the destination: pure matching as a multiset.

wanted (batches without an answer) + stored (what `find` saw) - claimed (committed before) ──▶ matches
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable, Sequence

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
    places by name (`Stored.wanted`) decides; else size and digest do, then, of what is left over, the
    digests of the reduced forms: the store may have altered it. An equal date first:
    APPEND carries the source's date, a delivery of the same octets has its own.

    Stored messages with a claimed UID belong to committed messages. A committed message
    without UID takes one stored message of its fingerprint away, first one whose date no
    wanted message asks for: its own date is not kept, and a wanted match needs the rest.
    """
    found: list[Stored | None] = [None] * len(wanted)
    left: list[Stored] = []
    for one in stored:
        if one.uid is not None and one.uid in claimed_uids:
            continue
        if one.wanted is None:
            left.append(one)
        elif found[one.wanted] is None:
            found[one.wanted] = one
    claims = Counter(claimed_fingerprints)
    for identity, seen in ((_exact, _seen), (_reduced, _seen_reduced)):
        asked: dict[Hashable, list[int]] = {}
        for place, want in enumerate(wanted):
            if found[place] is None and (key := identity(want.fingerprint)) is not None:
                asked.setdefault(key, []).append(place)
        if not asked:
            continue
        claimed: dict[Hashable, list[Fingerprint]] = {}
        for fingerprint in claims.elements():
            if (key := identity(fingerprint)) in asked:
                claimed.setdefault(key, []).append(fingerprint)
        candidates: dict[Hashable, list[Stored]] = {}
        rest: list[Stored] = []
        for one in left:
            key = seen(one)
            (candidates.setdefault(key, []) if key in asked else rest).append(one)
        for key, places in asked.items():
            some = candidates.get(key, [])
            takers = claimed.get(key, [])[: len(some)]
            claims.subtract(takers)
            free = _unclaimed(some, {dates[place] for place in places}, len(takers))
            rest += _assign(found, places, dates, free)
        left = rest
    return found


def _exact(fingerprint: Fingerprint) -> Hashable | None:
    return fingerprint


def _seen(one: Stored) -> Hashable | None:
    return one.fingerprint


def _reduced(fingerprint: Fingerprint) -> Hashable | None:
    return None if fingerprint.alike is None else fingerprint.alike.digest


def _seen_reduced(one: Stored) -> Hashable | None:
    return one.reduced


def _assign(
    found: list[Stored | None], places: Sequence[int], dates: Sequence[int | None], free: Sequence[Stored]
) -> list[Stored]:
    """Gives each place one of `free`, which are all alike, equal dates first; returns those left over."""
    by_date: dict[int, deque[int]] = {}
    for index, one in enumerate(free):
        if one.internal_date is not None:
            by_date.setdefault(one.internal_date, deque()).append(index)
    rest = dict(enumerate(free))
    for place in places:
        date = dates[place]
        if date is not None and by_date.get(date):
            found[place] = rest.pop(by_date[date].popleft())
    for place in places:
        if found[place] is None and rest:
            found[place] = rest.pop(next(iter(rest)))
    return list(rest.values())


def _unclaimed(candidates: Sequence[Stored], asked: Collection[int | None], claimed: int) -> list[Stored]:
    """`candidates` without `claimed` of them: foreign dates go first, then the oldest."""
    if not claimed:
        return list(candidates)
    order = sorted(range(len(candidates)), key=lambda place: candidates[place].internal_date in asked)
    gone = set(order[:claimed])
    return [one for place, one in enumerate(candidates) if place not in gone]
