from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport import merging
from aimport.errors import UsageError
from aimport.merging import Merge, parse_merge, uids_repeat, uids_to_come
from aimport.model import Mailbox, MessageKey, Position, Selection
from aimport.stores.keys import UidKeys


@pytest.mark.parametrize(
    ("text", "merge"),
    [
        ("old-over-new", Merge("old-over-new")),
        ("new-over-old", Merge("new-over-old")),
        ("require-empty", Merge("require-empty")),
        ("under:Recovered", Merge("under", "Recovered")),
        ("under:a:b/%u", Merge("under", "a:b/%u")),
    ],
)
def test_the_ways_of_merging_parse_and_show_as_they_were_written(text: str, merge: Merge) -> None:
    assert parse_merge(text) == merge
    assert str(merge) == text


@pytest.mark.parametrize("text", ["", "under", "under:", "over", "Old-over-new", "require-empty:x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--merge"):
        parse_merge(text)


def selection(uids: Sequence[int], position: Position | None, validity: int = 7) -> Selection:
    return Selection(
        mailbox=Mailbox(path=("INBOX",)),
        keys=UidKeys(validity, array("Q", uids)),
        sizes=[1] * len(uids),
        position=position,
    )


SEEN = Position(uidvalidity=7, uidnext=9)


@pytest.mark.parametrize(
    ("uids", "seen", "place", "expected"),
    [
        ([6, 7, 8], SEEN, None, "new"),
        ([6, 7, 8], SEEN, Position(uidvalidity=8, uidnext=6), "new"),
        ([6, 7, 8], SEEN, Position(uidvalidity=7, uidnext=9), "new"),
        ([6, 7, 8], SEEN, Position(uidvalidity=7, uidnext=12), "new"),
        ([6, 7, 8], SEEN, Position(uidvalidity=7, uidnext=6), "same"),
        ([6, 8], SEEN, Position(uidvalidity=7, uidnext=6), "repeat"),  # 8 would become 7
        ([7, 8], SEEN, Position(uidvalidity=7, uidnext=6), "repeat"),
        ([6, 7], SEEN, Position(uidvalidity=7, uidnext=6), "repeat"),  # the next delivery would get 8
        ([5, 6, 7, 8], SEEN, Position(uidvalidity=7, uidnext=6), "repeat"),
        ([8, 7, 6], SEEN, Position(uidvalidity=7, uidnext=6), "repeat"),
        ([6, 7, 8], None, Position(uidvalidity=7, uidnext=6), ""),
        ([6, 7, 8], SEEN, Position(), ""),  # a Maildir
    ],
)
def test_uids_are_compared_with_what_clients_saw(
    uids: list[int], seen: Position | None, place: Position | None, expected: str
) -> None:
    assert uids_to_come(selection(uids, seen), place) == expected


def test_what_is_not_sent_whole_and_in_order_cannot_get_its_uids_again() -> None:
    place = Position(uidvalidity=7, uidnext=6)
    assert uids_to_come(selection([6, 7, 8], SEEN), place, whole=False) == "repeat"


def test_a_message_that_no_index_has_had_no_uid_to_get_again() -> None:
    keys = [MessageKey("7:6"), MessageKey("7:7"), MessageKey("u.8")]
    some = Selection(mailbox=Mailbox(path=("INBOX",)), keys=keys, sizes=[1, 1, 1], position=SEEN)
    assert uids_to_come(some, Position(uidvalidity=7, uidnext=6)) == "repeat"


@given(st.sets(st.integers(1, 12)), st.integers(1, 14), st.integers(1, 14))
def test_same_is_said_only_where_each_message_gets_its_own_uid_again(uids: set[int], next_: int, seen: int) -> None:
    """Whoever saw UIDs below `seen` finds the same messages at them, and none at others."""
    before = [uid for uid in sorted(uids) if uid < seen]
    said = uids_to_come(
        selection(before, Position(uidvalidity=7, uidnext=seen)), Position(uidvalidity=7, uidnext=next_)
    )
    after = list(range(next_, next_ + len(before)))
    if next_ >= seen:
        assert said == "new"
    else:
        # With what comes later the UIDs go on from there: none below `seen` may be left to be given to other mail.
        fits = after == before and next_ + len(before) >= seen
        assert said == ("same" if fits else "repeat")


def test_the_error_says_what_to_type_for_each_mailbox() -> None:
    low = Position(uidvalidity=7, uidnext=6)
    error = uids_repeat("o'brien@x", [(Mailbox(path=("INBOX",)), low, SEEN), (Mailbox(path=("a", "b c")), low, SEEN)])
    assert "INBOX: UIDNEXT is 6, and clients saw UIDs below 9" in error.text
    assert "doveadm mailbox update --min-next-uid 9 -u 'o'\"'\"'brien@x' INBOX" in error.hint
    assert error.hint.endswith("'a/b c'")
    assert error.status == "failed"


def test_mails_add_up() -> None:
    assert merging.Mails(1, 10) + merging.Mails(2, 5) == merging.Mails(3, 15)
