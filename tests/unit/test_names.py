from __future__ import annotations

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


def test_a_lone_surrogate_has_no_encoding() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        names.encode_utf7("a\ud800")


def test_inbox_is_inbox_in_any_case_and_only_as_first_level() -> None:
    assert names.split("inbox.Inbox", ".") == ("INBOX", "Inbox")
    assert names.split("inboxes", ".") == ("inboxes",)
    assert names.split("a.b", "") == ("a.b",)


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
