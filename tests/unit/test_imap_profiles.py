"""Which server is which, what is known of it, and that a profile's file is read strictly."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import (
    AimportError,
    ConfigurationError,
    ConnectionLost,
    LoginRefused,
    MailboxError,
    MailboxNameInvalid,
    MailboxNotFound,
    MessageRefused,
    OverQuota,
    ServerBug,
    Throttled,
    TooManyConnections,
    Unavailable,
)
from aimport.imap.answers import BadAnswer, error_for
from aimport.imap.commands import LiteralPolicy
from aimport.imap.profiles import Names, Profile, bundled, choose, named, parse

NAMES = "courier cyrus dovecot exchange-online generic gmail james stalwart yahoo zimbra".split()
FOLDER = Path(__file__).parents[2] / "aimport" / "profiles"


def test_the_first_set_is_there() -> None:
    assert sorted(bundled()) == NAMES
    assert [profile.name for profile in bundled().values()] == NAMES


def test_generic_knows_nothing() -> None:
    assert named("generic") == Profile()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "generic"])
def test_every_other_profile_says_something_and_is_recognised_somehow(name: str) -> None:
    profile = named(name)
    assert profile != Profile(name=name, match=profile.match)
    assert profile.match != Profile().match


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_its_source_beside_it(name: str) -> None:
    """`means` and `hint` belong to their `says`; the lines of `notes` have one above or beside them."""
    for line in (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines():
        key, equals, rest = line.partition(" = ")
        if equals and key.isidentifier() and key not in {"means", "hint", "notes"}:
            assert "  # " in rest, f"{name}.toml: {line}"


class Seen(NamedTuple):
    """What a server showed of itself. Greetings as their text, without the code."""

    profile: str
    greeting: str = ""
    server_id: dict[str, str] | None = None
    capabilities: str = ""
    host: str = ""


SEEN = [
    Seen("dovecot", "Dovecot (Debian) ready."),
    Seen("dovecot", "Dovecot ready."),
    Seen("dovecot", server_id={"name": "Dovecot"}),
    Seen("cyrus", "localhost Cyrus IMAP 3.6.1-Debian-3.6.1-4+deb12u4 server ready"),
    Seen("cyrus", "IMAP4 ready", {"name": "Cyrus IMAPD", "version": "3.6.1", "vendor": "Project Cyrus"}),
    Seen(
        "courier",
        "Courier-IMAP ready. Copyright 1998-2019 Double Precision, Inc.  See COPYING for distribution information.",
    ),
    Seen(
        "courier", "Ready.", capabilities="IMAP4rev1 UIDPLUS CHILDREN NAMESPACE SORT QUOTA IDLE ACL ACL2=UNION ENABLE"
    ),
    Seen("generic", "Ready.", capabilities="IMAP4rev1 UIDPLUS CHILDREN NAMESPACE QUOTA IDLE ACL ENABLE"),
    Seen("gmail", "Gimap ready for requests from 192.0.2.10 q13mb189540682pjq"),
    Seen("gmail", server_id={"name": "GImap", "vendor": "Google, Inc."}),
    Seen("gmail", capabilities="IMAP4rev1 UNSELECT IDLE NAMESPACE QUOTA ID XLIST CHILDREN X-GM-EXT-1 UIDPLUS"),
    Seen("gmail", host="imap.gmail.com"),
    Seen("exchange-online", "The Microsoft Exchange IMAP4 service is ready. [UwBJADIAUABSADAANABDAEEAMAAwADAANQA=]"),
    Seen("exchange-online", server_id={"name": "Microsoft.Exchange.Imap4.Imap4Server", "version": "15.20"}),
    Seen("exchange-online", host="outlook.office365.com"),
    Seen("stalwart", "Stalwart IMAP4rev2 at your service."),
    Seen("stalwart", server_id={"name": "Stalwart IMAP", "version": "0.9.4", "vendor": "Stalwart Labs Ltd."}),
    Seen("james", "JAMES IMAP4rev1 Server james.example.org is ready."),
    Seen("zimbra", "zimbra.example.org Zimbra IMAP4rev1 server ready"),
    Seen("zimbra", server_id={"NAME": "Zimbra", "VERSION": "8.6.0_GA_1153", "RELEASE": "20141215151116"}),
    Seen("yahoo", "IMAP4rev1 imapgate-1.8.1_01.20166"),
    Seen("yahoo", capabilities="IMAP4rev1 ID MOVE NAMESPACE X-ID-ACLID UIDPLUS LITERAL+ XYMHIGHESTMODSEQ"),
    Seen("yahoo", host="imap.mail.yahoo.com"),
    Seen("generic", "mx.example.org IMAP4rev1 ready", {"name": "Other"}, "IMAP4rev1 IDLE", "mx.example.org"),
    Seen("generic"),
]


@pytest.mark.parametrize("seen", SEEN, ids=lambda seen: seen.profile)
def test_each_server_is_recognised_by_what_it_shows(seen: Seen) -> None:
    chosen = choose(
        host=seen.host, greeting=seen.greeting, server_id=seen.server_id, capabilities=seen.capabilities.split()
    )
    assert chosen.name == seen.profile


@pytest.mark.parametrize("seen", [seen for seen in SEEN if seen.greeting and seen.profile != "generic"])
def test_a_greeting_belongs_to_one_profile(seen: Seen) -> None:
    greetings = {profile.name: profile.match.greeting for profile in bundled().values()}
    fitting = [name for name, greeting in greetings.items() if greeting is not None and greeting.search(seen.greeting)]
    assert fitting in ([seen.profile], [])


def test_id_counts_before_greeting_before_capability_before_host() -> None:
    evidence = {
        "server_id": {"name": "Dovecot"},
        "greeting": "Stalwart IMAP4rev2 at your service.",
        "capabilities": ["X-GM-EXT-1"],
        "host": "outlook.office365.com",
    }
    chosen = []
    while evidence:
        chosen.append(choose(**evidence).name)  # type: ignore[arg-type]  # the keys are the parameters
        del evidence[next(iter(evidence))]
    assert chosen == ["dovecot", "stalwart", "gmail", "exchange-online"]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("OUTLOOK.office365.com.", "exchange-online"),
        ("eu.outlook.office365.com", "exchange-online"),
        ("notoutlook.office365.com", "generic"),
        ("imap.gmail.com.example.org", "generic"),
        ("", "generic"),
    ],
)
def test_a_host_fits_by_whole_labels(host: str, name: str) -> None:
    assert choose(host=host).name == name


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_whatever_a_server_shows_there_is_a_profile(
    host: str, greeting: str, server_id: dict[str, str], capabilities: list[str]
) -> None:
    chosen = choose(host=host, greeting=greeting, server_id=server_id, capabilities=capabilities)
    assert chosen.name in NAMES


def test_an_unknown_name_is_told_with_the_nearest_and_the_list() -> None:
    with pytest.raises(ConfigurationError) as caught:
        named("exchange")
    assert "'exchange'" in caught.value.text
    assert "exchange-online" in caught.value.hint
    with pytest.raises(ConfigurationError) as caught:
        named("dovcot")
    assert caught.value.hint.startswith("did you mean dovecot?; known are courier, cyrus,")


def test_a_profile_may_be_a_file_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('batch_messages = 8\n[[refusals]]\nsays = "Nope"\nmeans = "message"\n', encoding="utf-8")
    profile = named(str(file))
    assert (profile.name, profile.batch_messages) == (str(file), 8)
    assert [(sentence.says.pattern, sentence.means) for sentence in profile.refusals] == [("Nope", "message")]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml: cannot be read \(No such file"):
        named(str(tmp_path / "gone.toml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch = 3", r"mine\.toml: batch: no such key"),
        ('name = "x"', r"mine\.toml: name: no such key"),
        ("apend_limit = 3", r"apend_limit: no such key \(did you mean append_limit\?\)"),
        ('[match]\ngreetin = "x"', r"match\.greetin: no such key \(did you mean greeting\?\)"),
        ('[names]\nforbiden = "x"', r"names\.forbiden: no such key"),
        ("[keywords]\nalowed = true", r"keywords\.alowed: no such key"),
        ('[[refusals]]\nsays = "x"\nmeans = "nul"\nwait = 3', r"refusals\.wait: no such key"),
        ('[[refusals]]\nmeans = "nul"', r"refusals\[0\]: .*`says`"),
        ('[[refusals]]\nsays = "("\nmeans = "nul"', r"refusals\[0\]\.says: Not a regular expression"),
        ('[[refusals]]\nsays = 3\nmeans = "nul"', r"refusals\[0\]\.says: Expected a regular expression"),
        ('[[refusals]]\nsays = "x"\nmeans = "nil"', r"refusals\[0\]\.means: Invalid enum value 'nil'"),
        ("refusals = [1]", r"refusals\[0\]: Expected"),
        ("match = 3", r"match: Expected"),
        ("append_limit = -1", r"append_limit: "),
        ('append_limit = "3"', r"append_limit: Expected `int`, got `str`"),
        ("line_octets = 0", r"line_octets: "),
        ('literals = "LITERAL"', r"literals: Invalid enum value"),
        ("earliest_date = 1970-01-01T00:00:00", r"earliest_date: "),
        ('[names]\nseparator = "//"', r"names\.separator: "),
        ("a = = 3", r"mine\.toml: Invalid value"),
    ],
)
def test_a_file_that_is_not_right_says_where(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse(text.encode(), name="mine", place="mine.toml")


def test_a_file_that_is_no_text_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"mine\.toml: is not UTF-8 text"):
        parse(b'a = "\xff"', name="mine", place="mine.toml")


@given(st.binary() | st.text().map(str.encode))
def test_any_file_is_a_profile_or_a_complaint(octets: bytes) -> None:
    try:
        said = parse(octets, name="mine", place="mine.toml").name
    except ConfigurationError as error:
        said = error.text
    assert said == "mine" or said.startswith("mine.toml: ")


@pytest.mark.parametrize(
    ("name", "status", "code", "text", "kind", "cause"),
    [
        ("gmail", "BYE", "", "Session expired, please login again", TooManyConnections, ""),
        ("gmail", "BYE", "", "Invalid character in literal", ConnectionLost, "nul"),
        ("gmail", "BAD", "", "invalid argument: unable to parse message", BadAnswer, "header"),
        ("gmail", "NO", "OVERQUOTA", "Account exceeded command or bandwidth limits", Throttled, ""),
        ("gmail", "NO", "CANNOT", "Folder contains excess whitespace (Failure)", MailboxNameInvalid, ""),
        ("gmail", "NO", "", "Folder name is not allowed. (Failure)", MailboxNameInvalid, ""),
        ("gmail", "BYE", "", "System Error", ServerBug, ""),
        ("gmail", "NO", "", "System Error (Failure)", ServerBug, ""),
        ("gmail", "NO", "NONEXISTENT", "Invalid folder: [Gmail] (Failure)", MailboxNotFound, ""),
        ("exchange-online", "BAD", "", "Request is throttled. Suggested Backoff Time: 5 milliseconds", Throttled, ""),
        ("exchange-online", "BAD", "", "Command Argument Error. 11", BadAnswer, "long-line"),
        ("exchange-online", "BAD", "", "Command Error. 10", BadAnswer, "long-line"),
        ("exchange-online", "BYE", "", "Connection closed. 14", ConnectionLost, ""),
        ("exchange-online", "NO", "", "Maximum size of appendable message has been exceeded", MessageRefused, "size"),
        ("exchange-online", "NO", "", "Folder name is reserved", MailboxNameInvalid, ""),
        ("exchange-online", "NO", "", "Server Unavailable. 15", Unavailable, ""),
        ("dovecot", "NO", "", "Can't save a zero byte message.", MessageRefused, "empty"),
        ("dovecot", "BYE", "TOOBIG", "Literal too large", ConnectionLost, "size"),
        ("dovecot", "NO", "TOOBIG", "Message too large", MessageRefused, "size"),
        ("dovecot", "NO", "UNKNOWN-CTE", "Binary input allowed only when ...", MessageRefused, "cte"),
        ("dovecot", "BAD", "", "Error in IMAP command APPEND: Invalid internal date.", BadAnswer, "date"),
        ("dovecot", "BAD", "", "Error in IMAP command APPEND: Invalid system flag \\FOO", BadAnswer, "flags"),
        ("dovecot", "NO", "SERVERBUG", "Internal error occurred.", ServerBug, ""),
        ("dovecot", "NO", "", "Mailbox doesn't exist: Gone (0.001 + 0.000 secs).", MailboxNotFound, ""),
        ("dovecot", "NO", "", "Not enough disk quota", OverQuota, ""),
        ("dovecot", "NO", "", "Timeout while waiting for lock", Unavailable, ""),
        (
            "dovecot",
            "NO",
            "",
            "Client tried to access nonexistent namespace. (Mailbox name should probably be prefixed with: INBOX.)",
            MailboxNameInvalid,
            "",
        ),
        ("cyrus", "NO", "", "Message contains NUL characters", MessageRefused, "nul"),
        ("cyrus", "NO", "", "Message contains bare newlines", MessageRefused, "bare-newline"),
        ("cyrus", "NO", "", "Message contains invalid header", MessageRefused, "header"),
        ("cyrus", "NO", "LIMIT", "Too many identical emails", MessageRefused, ""),
        ("cyrus", "NO", "", "Mailbox does not exist", MailboxNotFound, ""),
        ("cyrus", "NO", "", "Mailbox is over 100% quota", OverQuota, ""),
        ("cyrus", "NO", "", "Mailbox is locked", Unavailable, ""),
        ("cyrus", "NO", "", "Mailbox format corruption detected", MailboxError, ""),
        ("stalwart", "NO", "LIMIT", "Too many requests", Throttled, ""),
        ("stalwart", "NO", "LIMIT", "Too many concurrent IMAP connections", TooManyConnections, ""),
        ("james", "NO", "", "Maximum line length limit (1000) exceeded", MessageRefused, "long-line"),
        ("zimbra", "NO", "", "APPEND failed", MessageRefused, "flags"),
        ("zimbra", "BYE", "", "mail.example.org IMAP4rev1 server terminating connection", Unavailable, ""),
        ("courier", "NO", "ALERT", "You exceeded your mail quota.", OverQuota, ""),
        (
            "courier",
            "NO",
            "ALERT",
            "COPY failed - no write permission or out of disk space.",
            MailboxError,
            "",
        ),
        ("courier", "NO", "", "Mailbox does not exist, or must be subscribed to.", MailboxNotFound, ""),
        ("courier", "NO", "", "Error in IMAP command received by server.", MessageRefused, ""),
        ("courier", "BYE", "", "IMAP access disabled via insecure connection.", LoginRefused, ""),
        ("yahoo", "BAD", "CLIENTBUG", "Additional arguments found after last expected argument", BadAnswer, ""),
        ("yahoo", "NO", "UNAVAILABLE", "UID FETCH Server error", ServerBug, ""),
        ("yahoo", "NO", "LIMIT", "CAPABILITY Rate limit hit.", Throttled, ""),
        ("generic", "NO", "SERVERBUG", "internal", ServerBug, ""),
    ],
)
def test_what_each_server_is_known_to_say(
    name: str, status: str, code: str, text: str, kind: type[AimportError], cause: str
) -> None:
    error = error_for(status, code, text, sentences=named(name).refusals)
    assert (type(error), error.cause) == (kind, cause)


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("gmail", "Invalid credentials (Failure)", "app password"),
        ("yahoo", "AUTHENTICATE Invalid credentials", "app password"),
        ("exchange-online", "LOGIN failed.", "xoauth2"),
        ("exchange-online", "AUTHENTICATE failed.", "xoauth2"),
    ],
)
def test_a_refused_login_says_what_that_service_wants(name: str, text: str, hint: str) -> None:
    error = error_for("NO", "AUTHENTICATIONFAILED", text, default=LoginRefused, sentences=named(name).refusals)
    assert type(error) is LoginRefused
    assert hint in error.hint


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("gmail", {"append_limit": 35651584, "connections_per_user": 15, "merges_identical": True}),
        ("exchange-online", {"bad_ends_after": 10, "flagged_by_store": True, "messages_per_second": 4.0}),
        ("yahoo", {"final_crlf": True}),
        ("courier", {"connections_per_address": 4, "stores_final_crlf": True}),
        ("stalwart", {"connections_per_user": 16, "login_failures": 3}),
        ("dovecot", {"connections_per_user": 10, "line_octets": 65536}),
    ],
)
def test_what_is_known_of_limits(name: str, values: dict[str, object]) -> None:
    profile = named(name)
    assert {key: getattr(profile, key) for key in values} == values


def test_dates_of_a_profile_have_a_zone() -> None:
    assert named("cyrus").earliest_date == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert named("dovecot").latest_date == datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "level", "tamed"),
    [
        ("gmail", " two   blanks ", "two blanks"),
        ("gmail", "a^b", "a_b"),
        ("gmail", "  ", "_"),
        ("cyrus", 'a!b"c', "a_b_c"),
        ("dovecot", "a.b", "a_b"),
        ("generic", " as  it^is ", " as  it^is "),
    ],
)
def test_a_refused_name_has_a_form_that_the_server_takes(name: str, level: str, tamed: str) -> None:
    assert named(name).names.tamed(level) == tamed


@given(st.text(min_size=1), st.text(max_size=5).filter(lambda text: "_" not in text), st.booleans())
def test_a_tamed_name_needs_no_more_taming(level: str, forbidden: str, squeezed: bool) -> None:
    names = Names(forbidden=forbidden, blanks="squeezed" if squeezed else "kept")
    tamed = names.tamed(level)
    assert tamed
    assert names.tamed(tamed) == tamed


@pytest.mark.parametrize(
    ("literals", "offered", "policy"),
    [
        ("", "LITERAL+", LiteralPolicy.PLUS),
        ("", "", LiteralPolicy.SYNC),
        ("LITERAL-", "LITERAL+", LiteralPolicy.MINUS),
        ("LITERAL+", "", LiteralPolicy.PLUS),
        ("SYNC", "LITERAL+", LiteralPolicy.SYNC),
    ],
)
def test_a_profile_may_overrule_how_literals_are_sent(literals: str, offered: str, policy: LiteralPolicy) -> None:
    profile = parse(f'literals = "{literals}"'.encode(), name="mine", place="mine.toml")
    assert profile.policy(frozenset(offered.split())) is policy
