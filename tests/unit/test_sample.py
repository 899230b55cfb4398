"""Generated mail is the same each time and has what real mail has."""

from __future__ import annotations

from pathlib import Path

from aimport.octets import whole
from aimport.sample import KEYWORDS, MAILBOXES, account, write_maildir
from tests import mail


def test_the_same_seed_gives_the_same_octets_and_another_user_others() -> None:
    first, again = list(account("bob", seed=1, messages=50)), list(account("bob", seed=1, messages=50))
    assert first == again
    assert [sample.message.body for sample in first] != [
        sample.message.body for sample in account("eve", seed=1, messages=50)
    ]


def test_all_mailboxes_flags_keywords_and_line_ends_occur() -> None:
    samples = list(account("bob", seed=1, messages=400))
    assert {sample.path for sample in samples} == set(MAILBOXES)
    marks = frozenset[str]().union(*(sample.message.flags for sample in samples))
    assert marks == {"\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft", *KEYWORDS}
    assert {b"\r\n" in whole(sample.message.body) for sample in samples} == {True, False}
    assert len({sample.message.body for sample in samples}) == 400


def test_a_written_maildir_holds_what_was_generated(tmp_path: Path) -> None:
    assert write_maildir(tmp_path / "m", account("bob", seed=2, messages=80)) == 80
    assert mail.in_maildir(tmp_path / "m") == mail.of_samples(account("bob", seed=2, messages=80))
