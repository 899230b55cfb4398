from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import ConfigurationError, MailboxNameInvalid
from aimport.model import Endpoint, Mailbox
from aimport.names import printable
from aimport.stores.maildir import names
from aimport.stores.maildir.names import Layout
from tests.strategies import paths

PLAIN = Layout(root="/m")
FS = Layout(root="/m", kind="fs")
FS_IN_DIRNAME = Layout(root="/m", kind="fs", dirname="d")
UTF8 = Layout(root="/m", utf8=True)


def layout(*options: tuple[str, str]) -> Layout:
    return Layout.of(Endpoint(scheme="maildir", path="/m", options=options))


def test_options_that_say_where_mail_lies_are_understood() -> None:
    options = (("INDEX", "MEMORY"), ("INBOX", "/i"), ("CONTROL", "/c"), ("UTF-8", ""), ("SUBSCRIPTIONS", "subs"))
    assert layout(*options, ("LAYOUT", "maildir++")) == Layout(
        root="/m", inbox="/i", control="/c", subscriptions="subs", utf8=True
    )


@pytest.mark.parametrize(
    "option",
    [("LAYOUT", "none"), ("DIRNAME", "x"), ("FULLDIRNAME", "x"), ("NOPE", "1")]
    + [("SUBSCRIPTIONS", each) for each in ("a/b", "..", ".")],
)
def test_options_that_are_not_understood_are_named(option: tuple[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=option[0]):
        layout(option)


def test_options_that_change_nothing_for_us_are_accepted() -> None:
    options = [("INDEX", "MEMORY"), ("ITERINDEX", ""), ("ALT", "/a"), ("ALTNOCHECK", ""), ("VOLATILEDIR", "/v")]
    options += [("NO-NOSELECT", ""), ("NO-FS-VALIDATION", ""), ("LISTINDEX", "x"), ("MAILBOXDIR", "m")]
    assert layout(*options) == PLAIN


@pytest.mark.parametrize(
    ("options", "inbox", "folder", "control"),
    [
        ([], "/m", "/m/a/b", "/c/a/b"),
        ([("DIRNAME", "d")], "/m/INBOX/d", "/m/a/b/d", "/c/a/b"),
        ([("FULLDIRNAME", "d")], "/m/INBOX/d", "/m/a/b/d", "/c/a/b/d"),
        ([("DIRNAME", "d"), ("MAILBOXDIR", "x")], "/m/x/INBOX/d", "/m/x/a/b/d", "/c/x/a/b"),
        ([("DIRNAME", "d"), ("INBOX", "/i")], "/i", "/m/a/b/d", "/c/a/b"),
        ([("MAILBOXDIR", "x/y"), ("INBOX", "/i")], "/i", "/m/x/y/a/b", "/c/x/y/a/b"),
    ],
)
def test_the_fs_layout_has_a_directory_a_level(
    options: list[tuple[str, str]], inbox: str, folder: str, control: str
) -> None:
    """All of these were seen of Dovecot 2.3.19."""
    fs = layout(("LAYOUT", "fs"), ("CONTROL", "/c"), *options)
    assert fs.place(fs.new_directory(Mailbox(path=("INBOX",)))) == inbox
    assert fs.place(fs.new_directory(Mailbox(path=("a", "b")))) == folder
    assert fs.control_place("a/b") == control
    assert fs.mailbox("a/b") == Mailbox(path=("a", "b"), separator="/")


@pytest.mark.parametrize("value", ["..", "a/../../b", ".", "x/.."])
def test_mailboxdir_cannot_lead_out(value: str) -> None:
    with pytest.raises(ConfigurationError, match="MAILBOXDIR"):
        layout(("LAYOUT", "fs"), ("DIRNAME", "d"), ("MAILBOXDIR", value))


def test_mailboxdir_alone_leaves_no_inbox() -> None:
    with pytest.raises(ConfigurationError, match="INBOX"):
        layout(("LAYOUT", "fs"), ("MAILBOXDIR", "x"))


def test_imapdir_is_flat_without_a_leading_dot() -> None:
    imapdir = layout(("LAYOUT", "imapdir"))
    assert [imapdir.new_directory(Mailbox(path=path)) for path in (("INBOX",), ("a", "ü"))] == ["INBOX", "a.&APw-"]
    assert imapdir.mailbox("a.&APw-") == Mailbox(path=("a", "ü"), separator=".")


@pytest.mark.parametrize("path", [("cur",), ("a", "new"), ("a", "d"), ("subscriptions",), ("dovecot-uidlist",)])
def test_the_fs_layout_refuses_names_of_its_own_files(path: tuple[str, ...]) -> None:
    with pytest.raises(MailboxNameInvalid, match="of the store"):
        layout(("LAYOUT", "fs"), ("DIRNAME", "d")).new_directory(Mailbox(path=path))


@pytest.mark.parametrize(
    ("kind", "directory", "out"),
    [
        ("fs", "a/b", False), ("fs", "../b", True), ("fs", "/etc", True), ("fs", "a//b", True), ("fs", "a/..", True),
        ("maildir++", ".a.b", False), ("maildir++", "a", True), ("maildir++", "..", True), ("maildir++", ".a/b", True),
        ("imapdir", "a.b", False), ("imapdir", "..", True), ("imapdir", "a/b", True),
    ],
)  # fmt: skip
def test_no_name_leads_out_of_the_root(kind: str, directory: str, out: bool) -> None:
    assert layout(("LAYOUT", kind)).leads_out(directory) == out


def test_brokenchar_shows_what_does_not_decode() -> None:
    """`^` and two hex digits stand for each octet that does not decode; what decodes is shown decoded."""
    broken = layout(("BROKENCHAR", "^"))
    for directory, path in (
        (".a&Jj.&APw-", ("a^26Jj", "ü")),
        (".x&APw-&", ("xü^26",)),
        (".r\udce9^&", ("r^e9^5e^26",)),
    ):
        mailbox = broken.mailbox(directory)
        assert mailbox.path == path
        assert broken.directory(mailbox) == printable(directory)


@pytest.mark.parametrize("kind", ["maildir++", "fs"])
def test_what_a_level_cannot_hold_is_escaped(kind: str) -> None:
    """As Dovecot's listescape writes it; any name is one directory, and comes back from it."""
    escaped = layout(("LAYOUT", kind), ("ESCAPECHAR", "\\"))
    expected = {
        ("a.b", "c/d"): ".a\\2eb.c\\2fd" if kind == "maildir++" else "a.b/c\\2fd",
        ("~x",): ".\\7ex" if kind == "maildir++" else "\\7ex",
        ("it\\s",): ".it\\5cs" if kind == "maildir++" else "it\\5cs",
        ("Entwürfe/1",): ".Entw&APw-rfe\\2f1" if kind == "maildir++" else "Entw&APw-rfe\\2f1",
    }
    for path, directory in expected.items():
        assert escaped.new_directory(Mailbox(path=path)) == directory
        assert escaped.mailbox(directory).path == path
    odd = escaped.mailbox(".x\\41" if kind == "maildir++" else "x\\41")  # nobody writes an A like that
    assert odd.path == ("xA",) and odd.native


@given(paths, st.sampled_from(["maildir++", "fs"]))
def test_escaped_names_are_injective(path: tuple[str, ...], kind: str) -> None:
    escaped = layout(("LAYOUT", kind), ("ESCAPECHAR", "^"))
    try:
        directory = escaped.new_directory(Mailbox(path=path))
    except MailboxNameInvalid:
        return
    assert escaped.mailbox(directory).path == path
    assert not escaped.leads_out(directory)


def test_a_location_without_a_path_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Layout.of(Endpoint(scheme="maildir"))


@pytest.mark.parametrize(
    ("directory", "path", "native"),
    [
        ("", ("INBOX",), ""),
        (".a.b", ("a", "b"), ""),
        (".Entw&APw-rfe", ("Entwürfe",), ""),
        (".bad&Jj", ("bad&Jj",), ".bad&Jj"),
        (".Entwürfe", ("Entwürfe",), ".Entwürfe"),
        (".INBOX", ("INBOX",), ".INBOX"),
        (".INBOX.x", ("INBOX", "x"), ""),
        (".inbox.x", ("INBOX", "x"), ".inbox.x"),
        ("..x", ("", "x"), ""),
        (".raw\udce9", ("raw\\xe9",), ".raw\\xe9"),
    ],
)
def test_mailboxes_of_directories(directory: str, path: tuple[str, ...], native: str) -> None:
    assert PLAIN.mailbox(directory) == Mailbox(path=path, separator=".", native=native)
    assert PLAIN.directory(PLAIN.mailbox(directory)) == printable(directory)


def test_with_utf8_names_stand_as_they_are() -> None:
    assert UTF8.mailbox(".Entw&APw-.ü") == Mailbox(path=("Entw&APw-", "ü"), separator=".")
    assert UTF8.new_directory(Mailbox(path=("ü", "&"))) == ".ü.&"


@given(paths, st.sampled_from([PLAIN, UTF8, FS, FS_IN_DIRNAME]))
def test_a_mailbox_made_is_the_mailbox_listed(path: tuple[str, ...], layout: Layout) -> None:
    try:
        directory = layout.new_directory(Mailbox(path=path))
    except MailboxNameInvalid:
        if layout.kind == "fs" and {"d", "cur", "new", "tmp"} & set(path):
            return
        assert len(".".join(path).encode("utf-16-be")) > 120  # only length can be wrong with such a name
        return
    assert not layout.leads_out(directory)
    assert layout.mailbox(directory) == Mailbox(path=path, separator=layout.separator)


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("",),
        ("a", ""),
        (".",),
        ("..",),
        ("a", "..", "b"),
        ("a/b",),
        ("a.b",),
        ("~root",),
        ("a\0",),
        ("a\r\nb",),
        ("\ud800",),
        ("x" * 256,),
        ("ж" * 100,),
        tuple("x" * 200),
    ],
)
def test_names_that_maildir_cannot_hold_are_refused(path: tuple[str, ...]) -> None:
    for each in (PLAIN, UTF8):
        if path != ("ж" * 100,) or not each.utf8:
            with pytest.raises(MailboxNameInvalid):
                each.new_directory(Mailbox(path=path))


@pytest.mark.parametrize(
    ("name", "base", "letters"),
    [
        ("1.a.h", "1.a.h", ""),
        ("1.a.h:2,", "1.a.h", ""),
        ("1.a.h,S=5,W=6:2,FSa", "1.a.h,S=5,W=6", "FSa"),
        ("1.a.h:2,S,junk", "1.a.h", "S"),
        ("1.a:b:2,S", "1.a:b", "S"),
        ("1.a:2,S:1,x", "1.a:2,S:1,x", ""),
        ("1.a;2,S", "1.a;2,S", ""),
        ("1.a:1,S", "1.a:1,S", ""),
        (":2,S", ":2,S", ""),
    ],
)
def test_names_split_at_the_last_info_part(name: str, base: str, letters: str) -> None:
    assert names.split_name(name) == (base, letters)


def test_the_order_of_names_is_that_of_dovecot() -> None:
    ordered = ["x", "9.M5.a", "10", "10.M9.b", "10.M10.a", "10.M10.b", "11.M1.a"]
    assert sorted(reversed(ordered), key=names.order) == ordered


@pytest.mark.parametrize(
    ("base", "size"), [("1.a,S=12,W=13", 12), ("1.a,W=13,S=12", 12), ("1.a,S=x", None), ("1.a,S=1x", None), ("1", None)]
)
def test_size_promised_by_a_name(base: str, size: int | None) -> None:
    assert names.size_in(base) == size


@given(
    st.text(min_size=1, max_size=20),
    st.integers(0, 10**6),
    st.integers(0, 4_000_000_000_000_000),
    st.lists(st.integers(0, 2_000), min_size=2, max_size=5, unique=True).map(sorted),
)
def test_stems_sort_as_appended_and_are_known_again(run: str, number: int, created: int, indexes: list[int]) -> None:
    stems = [names.stem(run, number, created, index) for index in indexes]
    assert sorted(stems, key=names.order) == stems
    for each in stems:
        assert names.stem_in(f"{each}.{names.escape_host('a/b:c')},S=1,W=2") == each
        assert "/" not in each
        assert ":" not in each


def test_foreign_names_have_no_stem() -> None:
    assert names.stem_in("1500000000.M1P77.host,S=1") is None


def test_a_host_name_is_escaped_as_maildir_says() -> None:
    assert names.escape_host("a/b:c") == "a\\057b\\072c"


@given(st.binary(max_size=200))
def test_any_small_file_parses_or_is_refused(data: bytes) -> None:
    assert all("a" <= letter <= "z" for letter in names.parse_keywords(data))
    try:
        names.parse_uidlist(data)
    except ValueError:
        pass
    try:
        changed = names.with_subscription(data, ("a", "b"), ".")
    except ValueError:
        return
    if changed is not None:
        assert changed.startswith(data)
        assert names.with_subscription(changed, ("a", "b"), ".") is None


def test_keywords_round_trip() -> None:
    assert names.parse_keywords(b"0 $Forwarded\n1 a b\n26 late\nx y\n7\n") == {"a": "$Forwarded", "b": "a b"}
    assert names.format_keywords({"b": "two", "a": "one"}) == b"0 one\n1 two\n"


def test_uidlist_of_both_versions() -> None:
    new = b"3 V1 N9 Gabc\n2 :a,S=1\n5 S12 W13 Pxyz :b\n7 :a,S=1\n9 :torn"
    assert names.parse_uidlist(new) == {"a,S=1": 7, "b": 5}
    assert names.parse_uidlist(b"1 1234 9\n2 a\n5 b\n") == {"a": 2, "b": 5}


@pytest.mark.parametrize("data", [b"", b"hello\n", b"3 V1 N9\nx :a\n", b"3 V1 N9\n5 :a\n4 :b\n", b"\xff" * 100])
def test_a_damaged_uidlist_is_refused_whole(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"uidlist|damaged"):
        names.parse_uidlist(data)


def test_a_subscription_is_added_once_in_the_form_of_the_file() -> None:
    assert names.with_subscription(None, ("INBOX",), ".") == b"V\t2\n\nINBOX\n"
    assert names.with_subscription(b"V\t2\n\na\tb\n", ("a", "b"), ".") is None
    assert names.with_subscription(b"V\t2\n\na\n", ("a", "b"), ".") == b"V\t2\n\na\na\tb\n"
    assert names.with_subscription(b"a.b\nc", ("d", "e"), ".") == b"a.b\nc\nd.e\n"
    assert names.with_subscription(b"a.b\n", ("a", "b"), ".") is None
    with pytest.raises(ValueError, match="version"):
        names.with_subscription(b"V\t3\n", ("a",), ".")
