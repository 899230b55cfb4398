from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport import names
from aimport.errors import NameClash, UsageError
from aimport.model import Mailbox
from tests.strategies import paths, unicode_text


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("Entwürfe", "Entw&APw-rfe"),
        ("~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # RFC 3501 §5.1.3
        ("a&b", "a&-b"),
        ("&", "&-"),
        ("😀", "&2D3eAA-"),
        ("", ""),
    ],
)
def test_modified_utf7_of_known_names(name: str, encoded: str) -> None:
    assert names.encode_utf7(name) == encoded
    assert names.decode_utf7(encoded) == name


@given(unicode_text)
def test_modified_utf7_round_trips(name: str) -> None:
    assert names.decode_utf7(names.encode_utf7(name)) == name
    assert names.encode_utf7(name).isascii()


@given(st.one_of(st.text(), st.text("&-ABJjGQ,+", max_size=12)))
def test_what_decodes_encodes_to_the_same_and_the_rest_is_refused(encoded: str) -> None:
    name = names.decode_utf7(encoded)
    assert name is None or names.encode_utf7(name) == encoded


@pytest.mark.parametrize("encoded", ["&Jj", "&AGEA-", "&2D0-", "Entwürfe", "&AGE-", "&&-", "&AGE-&AGI-", "a\n"])
def test_bad_modified_utf7_is_none(encoded: str) -> None:
    assert names.decode_utf7(encoded) is None


@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from('\0\r\n\t\x7f&-~*%"\\/. '))))
def test_what_is_encoded_is_printable_ascii_and_no_other_name_has_it(name: str) -> None:
    """N2: CR, LF and NUL never reach a command line; encoding has an inverse, so it is injective."""
    encoded = names.encode_utf7(name)
    assert encoded == "" or (encoded.isascii() and encoded.isprintable())
    assert names.decode_utf7(encoded) == name


@given(st.binary(max_size=40))
def test_any_octets_decode_or_are_refused(octets: bytes) -> None:
    """N5: never a crash, and never a name that would not be written back octet for octet."""
    name = names.decode_utf7(octets.decode("latin-1"))
    assert name is None or names.encode_utf7(name).encode("latin-1") == octets


def test_a_lone_surrogate_has_no_encoding() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        names.encode_utf7("a\ud800")


def test_inbox_is_inbox_in_any_case_and_only_as_first_level() -> None:
    assert names.split("inbox.Inbox", ".") == ("INBOX", "Inbox")
    assert names.split("inboxes", ".") == ("inboxes",)
    assert names.split("a.b", "") == ("a.b",)


@pytest.mark.parametrize("name", ["\u0131nbox", "\u0130nbox", "\uff29NBOX", "inbo\u0445"])
def test_what_only_looks_like_inbox_is_another_mailbox(name: str) -> None:
    """N4: `"\u0131".upper()` is `"I"`; mail of that mailbox must not land in the INBOX."""
    assert names.split(name, "/") == (name,)
    assert not names.matches(name, "inbox", "/")


@given(st.text(), st.sampled_from(["/", ".", "\\", ""]))
def test_splitting_loses_nothing(name: str, separator: str) -> None:
    """N1: empty levels, `.` and `..` stay what they are; only the INBOX changes its case."""
    joined = separator.join(names.split(name, separator))
    assert joined == name or (joined[:5] == name[:5].upper() == "INBOX" and joined[5:] == name[5:])


@given(paths, st.sampled_from(["/", "."]))
def test_splitting_what_was_joined_is_identity(path: tuple[str, ...], separator: str) -> None:
    assert names.split(separator.join(path), separator) == path


@pytest.mark.parametrize(
    ("path", "source", "parent", "destination", "expected"),
    [
        (("a", "b.c"), "/", "", ".", ("a", "b_c")),  # as doveadm import does
        (("a", "b"), ".", "", "/", ("a", "b")),
        (("INBOX",), ".", "", "/", ("INBOX",)),
        (("INBOX",), ".", "Imported", "/", ("Imported", "INBOX")),
        (("x",), ".", "a/b", ".", ("a", "b", "x")),
        (("x",), ".", "inbox.b", ".", ("INBOX", "b", "x")),
        (("a.b",), ".", "", ".", ("a.b",)),
        (("a/b",), ".", "", "/", ("a_b",)),
    ],
)
def test_destination_names_are_those_of_doveadm(
    path: tuple[str, ...], source: str, parent: str, destination: str, expected: tuple[str, ...]
) -> None:
    mailbox = Mailbox(path=path, separator=source)
    [mapped] = names.map_names([mailbox], parent, destination).values()
    assert mapped == Mailbox(path=expected, separator=destination)


def test_two_sources_of_one_name_are_a_clash() -> None:
    sources = [Mailbox(path=("a.b",), separator="/"), Mailbox(path=("a_b",), separator="/")]
    with pytest.raises(NameClash, match="a_b"):
        names.map_names(sources, "", ".")


@given(st.lists(paths, max_size=6, unique=True), st.sampled_from(["", "Old", "x/y"]), st.sampled_from(["/", "."]))
def test_mapping_is_injective_or_reports_the_clash(sources: list[tuple[str, ...]], parent: str, separator: str) -> None:
    try:
        mapped = names.map_names([Mailbox(path=path, separator="\t") for path in sources], parent, separator)
    except NameClash:
        return
    assert len({mailbox.path for mailbox in mapped.values()}) == len(sources)
    assert all(separator not in level for mailbox in mapped.values() for level in mailbox.path)


any_names = st.text(st.one_of(st.characters(), st.sampled_from("._/\0\r\n~&")), max_size=8)


@given(st.lists(any_names, max_size=5, unique=True), st.sampled_from(["", "/", "."]), st.sampled_from(["", "/", "."]))
def test_any_names_at_all_map_to_names_of_their_own_or_clash(given_names: list[str], here: str, there: str) -> None:
    """N1, N2, N4: two mailboxes are never merged silently, whatever they are called."""
    sources = [Mailbox(path=names.split(name, here), separator=here, native=name) for name in given_names]
    try:
        mapped = names.map_names(sources, "", there)
    except NameClash:
        return
    assert len({mailbox.path for mailbox in mapped.values()}) == len(sources)


def test_names_that_differ_in_case_or_unicode_form_stay_apart() -> None:
    """N4; a destination that folds them answers ALREADYEXISTS, which is its own to say."""
    spellings = ["Sent", "sent", "SENT", "Caf\u00e9", "Cafe\u0301", "\u212b", "\u00c5"]
    mapped = names.map_names([Mailbox(path=(name,)) for name in spellings], "", "/")
    assert [mailbox.path for mailbox in mapped.values()] == [(name,) for name in spellings]


@pytest.mark.parametrize("parent", ["a//b", "/a", "a/", "."])
def test_an_empty_level_in_the_parent_is_refused(parent: str) -> None:
    with pytest.raises(UsageError):
        names.parent_path(parent, ".")


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("Archive/2023", "*", True),
        ("Archive/2023", "%", False),
        ("Archive/2023", "Archive/%", True),
        ("Archive/2023/x", "Archive/%", False),
        ("Archive/2023/x", "Archive/*", True),
        ("archive", "Archive", False),
        ("INBOX", "inbox", True),
        ("INBOX/x", "inbox/*", True),
        ("INBOXES", "inboxes", False),
        ("a.b", "a?b", False),
        ("a\nb", "a%b", True),
    ],
)
def test_patterns_match_as_in_list(name: str, pattern: str, expected: bool) -> None:
    assert names.matches(name, pattern, "/") is expected


def test_without_a_separator_percent_matches_everything() -> None:
    assert names.matches("a/b", "%", "")


def by_backtracking(name: str, pattern: str, separator: str) -> bool:
    """The same by a regular expression, which takes exponential time."""
    level = f"[^{re.escape(separator)}]*" if separator else ".*"
    parts = {"*": ".*", "%": level}
    return re.fullmatch("".join(parts.get(char) or re.escape(char) for char in pattern), name, re.DOTALL) is not None


@given(st.text("ab/*%\n", max_size=9), st.text("ab/*%\n", max_size=7), st.sampled_from(["/", ".", ""]))
def test_matching_is_that_of_the_plain_definition(name: str, pattern: str, separator: str) -> None:
    assert names.matches(name, pattern, separator) is by_backtracking(name, pattern, separator)


def test_a_hostile_name_takes_linear_time_to_match() -> None:
    assert not names.matches("a" * 1_000_000, "*a*a*a*a%a%b", "/")  # backtracking never ends
