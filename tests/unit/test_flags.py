from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport import flags
from tests.strategies import flag_sets, keywords


def test_letters_are_those_of_maildir() -> None:
    assert flags.from_letters("DFRST", {}) == flags.SYSTEM_FLAGS
    assert flags.to_letters(flags.SYSTEM_FLAGS, {}) == ("DFRST", ())


def test_a_letter_without_a_name_is_unknown_and_passed_is_no_flag() -> None:
    assert flags.from_letters("PSac", {"a": "kw"}) == {"\\Seen", "kw", "unknown-2"}


def test_two_spellings_of_a_keyword_give_their_letter_once() -> None:
    assert flags.to_letters(["Work", "work", "\\Seen"], {"Work": "a", "work": "a"}) == ("Sa", ())


@given(flag_sets)
def test_flags_to_letters_and_back_is_identity_while_letters_last(given_flags: frozenset[str]) -> None:
    names = sorted(flag for flag in given_flags if not flag.startswith("\\"))
    letters = dict(zip(names, string.ascii_lowercase, strict=False))
    info, without = flags.to_letters(given_flags, letters)
    assert without == ()
    assert list(info) == sorted(info)
    assert flags.from_letters(info, {letter: name for name, letter in letters.items()}) == given_flags


@given(flag_sets)
def test_keywords_without_letters_are_named(given_flags: frozenset[str]) -> None:
    info, without = flags.to_letters(given_flags, {})
    assert flags.from_letters(info, {}) | set(without) == given_flags


@given(st.text())
def test_any_letters_can_be_read(letters: str) -> None:
    assert "" not in flags.from_letters(letters, {})


@given(flag_sets)
def test_normalising_changes_case_of_system_flags_only(given_flags: frozenset[str]) -> None:
    shouted = [flag.upper() if flag.startswith("\\") else flag for flag in given_flags]
    assert flags.normalise([*shouted, "\\Recent", "\\*", "\\Nope"]) == given_flags
    assert flags.normalise(given_flags) == given_flags


@given(keywords)
def test_generated_keywords_are_keywords(keyword: str) -> None:
    assert flags.is_keyword(keyword)


@pytest.mark.parametrize("keyword", ["", "a b", "a]", "\\Seen", 'a"b', "ä", "a\r", "a\n", "(", "*", "%", "{", "\x7f"])
def test_what_would_break_a_command_is_no_keyword(keyword: str) -> None:
    assert not flags.is_keyword(keyword)
