"""Matching what is in doubt with what is stored: nothing serves twice, nothing that fits is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from aimport.model import Alike, Fingerprint, Stored, Uid, Wanted
from aimport.reconcile import match

PRINTS = [Fingerprint(size=size, digest=digest) for size in (1, 2) for digest in (b"a", b"b")]
DATES = st.none() | st.integers(0, 3)


def want(fingerprint: Fingerprint, index: int = 0) -> Wanted:
    return Wanted(run="r", number=1, created_us=0, index=index, fingerprint=fingerprint)


def run(
    wanted: Sequence[tuple[Fingerprint, int | None]],
    stored: Sequence[Stored],
    uids: Sequence[int] = (),
    fingerprints: Counter[Fingerprint] | None = None,
) -> list[Stored | None]:
    return match(
        [want(fingerprint, index) for index, (fingerprint, _) in enumerate(wanted)],
        [date for _, date in wanted],
        stored,
        claimed_uids=set(uids),
        claimed_fingerprints=fingerprints if fingerprints is not None else Counter(),
    )


def mail(fingerprint: Fingerprint, uid: int | None = None, date: int | None = None, place: int | None = None) -> Stored:
    return Stored(fingerprint=fingerprint, uid=Uid(uid) if uid is not None else None, internal_date=date, wanted=place)


A, B = PRINTS[0], PRINTS[1]


def test_a_prefix_of_a_batch_is_found_and_the_rest_is_not() -> None:
    found = run([(A, 1), (B, 1), (A, 1)], [mail(A, 10, 1), mail(B, 11, 1)])
    assert [one.uid if one else None for one in found] == [10, 11, None]


def test_identical_messages_consume_one_stored_each_in_order() -> None:
    found = run([(A, 1)] * 3, [mail(A, 10, 1), mail(A, 12, 1)])
    assert [one.uid if one else None for one in found] == [10, 12, None]


def test_an_equal_date_is_preferred_to_an_earlier_place() -> None:
    found = run([(A, 5), (A, 6)], [mail(A, 10, 9), mail(A, 11, 6), mail(A, 12, 5)])
    assert [one.uid if one else None for one in found] == [12, 11]


def test_a_date_that_the_server_changed_is_still_a_match() -> None:
    assert run([(A, 5)], [mail(A, 10, 9)]) == [mail(A, 10, 9)]


def test_claimed_uids_match_nothing() -> None:
    assert run([(A, 5), (A, 5)], [mail(A, 10, 5), mail(A, 11, 5)], uids=[10]) == [mail(A, 11, 5), None]


def test_committed_messages_without_uid_take_theirs_first() -> None:
    claimed = Counter({A: 1})
    assert run([(A, 5), (A, 5)], [mail(A, 10, 5), mail(A, 11, 5)], fingerprints=claimed) == [mail(A, 11, 5), None]
    assert run([(A, 5)], [mail(A, 10, 5), mail(A, 11, 7)], fingerprints=claimed) == [mail(A, 10, 5)]
    assert run([(A, 5)], [mail(A, 10, 5)], fingerprints=claimed) == [None]
    assert claimed == Counter({A: 1})


def test_a_store_that_knows_places_by_name_decides() -> None:
    stored = [mail(A, place=1), mail(A, place=1)]
    assert run([(A, None), (A, None)], stored) == [None, stored[0]]


def test_the_same_object_twice_is_two_messages() -> None:
    one = mail(A, date=1)
    assert run([(A, 1), (A, 1), (A, 1)], [one, one]) == [one, one, None]


STORED = st.builds(mail, st.sampled_from(PRINTS), st.none() | st.integers(1, 12), DATES, st.none())
WANTED = st.tuples(st.sampled_from(PRINTS), DATES)


@given(
    st.lists(WANTED, max_size=12),
    st.lists(STORED, max_size=12),
    st.sets(st.integers(1, 12), max_size=4),
    st.lists(st.sampled_from(PRINTS), max_size=4).map(Counter),
)
def test_matching_is_a_multiset_by_content(
    wanted: list[tuple[Fingerprint, int | None]],
    stored: list[Stored],
    uids: set[int],
    claimed: Counter[Fingerprint],
) -> None:
    found = run(wanted, stored, sorted(uids), claimed)
    free = [one for one in stored if one.uid is None or one.uid not in uids]
    assert len(found) == len(wanted)
    for (fingerprint, _), one in zip(wanted, found, strict=True):
        assert one is None or one.fingerprint == fingerprint
    # No stored message serves twice, and as many are matched as content allows.
    assert not Counter(one for one in found if one is not None) - Counter(free)
    for fingerprint in PRINTS:
        asked = sum(1 for other, _ in wanted if other == fingerprint)
        there = sum(1 for one in free if one.fingerprint == fingerprint)
        matched = sum(1 for one in found if one is not None and one.fingerprint == fingerprint)
        assert matched == min(asked, max(0, there - claimed[fingerprint]))
    # An equal date is never passed over: no pair left has one, unless claims took from the candidates.
    if not claimed:
        rest = Counter(free)
        rest.subtract(one for one in found if one is not None)
        for (fingerprint, date), one in zip(wanted, found, strict=True):
            if date is not None and (one is None or one.internal_date != date):
                assert not any(
                    n > 0 and s.fingerprint == fingerprint and s.internal_date == date for s, n in rest.items()
                )


@given(st.lists(WANTED, max_size=8), st.lists(STORED, max_size=8))
def test_places_known_by_name_go_before_content(
    wanted: list[tuple[Fingerprint, int | None]], stored: list[Stored]
) -> None:
    named = [mail(fingerprint, place=place) for place, (fingerprint, _) in enumerate(wanted) if place % 2]
    found = run(wanted, [*stored, *named])
    for one in named:
        assert one.wanted is not None
        assert found[one.wanted] is one


# --- messages that a server altered

NULL = Fingerprint(size=9, digest=b"n", alike=Alike(digest=b"~", shortest=9, kinds=("nul",)))
OTHER = Fingerprint(size=9, digest=b"m", alike=Alike(digest=b"~", shortest=9, kinds=("nul",)))
CHANGED = Fingerprint(size=9, digest=b"s")


def changed(uid: int, date: int | None = None) -> Stored:
    return Stored(fingerprint=CHANGED, uid=Uid(uid), internal_date=date, reduced=b"~")


def test_a_message_that_the_server_altered_is_found_by_its_reduced_form() -> None:
    assert run([(NULL, 5), (A, 5)], [changed(1), mail(A, 2)]) == [changed(1), mail(A, 2)]


def test_what_is_there_unaltered_is_not_taken_for_an_altered_message() -> None:
    """The octets that the server makes of NULL are another message's own."""
    assert run([(NULL, 5), (CHANGED, 5)], [changed(1)]) == [None, changed(1)]
    assert run([(NULL, 5), (CHANGED, 5)], [changed(1), changed(2)]) == [changed(2), changed(1)]


def test_messages_that_became_alike_consume_one_stored_each() -> None:
    assert run([(NULL, 5), (OTHER, 6), (NULL, 7)], [changed(1, 6), changed(2, 5)]) == [
        changed(2, 5),
        changed(1, 6),
        None,
    ]


def test_committed_altered_messages_without_uid_take_theirs_first() -> None:
    assert run([(NULL, 5)], [changed(1)], fingerprints=Counter({OTHER: 1})) == [None]
    assert run([(NULL, 5)], [changed(1), changed(2)], fingerprints=Counter({NULL: 1})) == [changed(2)]
