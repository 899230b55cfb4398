"""What refusals mean, code by code and sentence by sentence."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import (
    AimportError,
    ConnectionLost,
    LoginRefused,
    MailboxError,
    MailboxNameInvalid,
    MailboxNotFound,
    MessageRefused,
    OverQuota,
    Retry,
    ServerBug,
    Throttled,
    TooManyConnections,
    Unavailable,
    UserError,
)
from aimport.imap import answers
from aimport.imap.answers import BadAnswer, Caution, Meaning, Sentence, clean, error_for, warning_in
from aimport.imap.profiles import bundled

Kind = type[AimportError]


@pytest.mark.parametrize(
    ("status", "code", "text", "kind"),
    [
        ("NO", "TRYCREATE", "no such mailbox", MailboxNotFound),
        ("NO", "NONEXISTENT", "gone", MailboxNotFound),
        ("NO", "OVERQUOTA", "Quota exceeded (mailbox for user is full)", OverQuota),
        ("NO", "OVERQUOTA", "Mailbox is full, try again later", OverQuota),
        ("NO", "OVERQUOTA", "Account exceeded command or bandwidth limits", Throttled),  # Gmail
        ("BYE", "OVERQUOTA", "Account exceeded command or bandwidth limits.", Throttled),  # Gmail
        ("NO", "ALERT", "Account exceeded command or bandwidth limits. (Failure)", Throttled),  # Gmail
        ("NO", "TOOBIG", "too big", MessageRefused),
        ("NO", "LIMIT", "too many copies of one message", MessageRefused),
        ("NO", "LIMIT", "too many commands, slow down", Throttled),
        ("NO", "LIMIT", "CAPABILITY Rate limit hit.", Throttled),  # Yahoo
        ("NO", "LIMIT", "Too many connections", TooManyConnections),
        ("NO", "CANNOT", "never", MessageRefused),
        ("NO", "NOPERM", "Permission denied", MailboxError),
        ("NO", "READ-ONLY", "no", MailboxError),
        ("NO", "CORRUPTION", "index broken", MailboxError),
        ("NO", "INUSE", "locked", Unavailable),
        ("NO", "UNAVAILABLE", "subsystem down", Unavailable),
        ("NO", "UNAVAILABLE", "Maximum number of connections from user+IP exceeded", TooManyConnections),  # Dovecot
        ("NO", "SERVERBUG", "Internal error occurred. Refer to server log for more information.", ServerBug),
        ("NO", "SERVERBUG", "Internal error, try again later", ServerBug),
        ("NO", "SERVERBUG", "Request is throttled", Throttled),
        ("NO", "THROTTLED", "", Throttled),
        ("BAD", "THROTTLED", "", Throttled),
        ("BYE", "THROTTLED", "", Throttled),
        ("NO", "CONTACTADMIN", "call us", UserError),
        ("NO", "UNKNOWN-CTE", "", MessageRefused),
        ("NO", "PARSE", "", MessageRefused),
        ("NO", "EXPUNGEISSUED", "some are gone", MessageRefused),
        ("NO", "CLIENTBUG", "", MessageRefused),
        ("NO", "X-NEW", "something", MessageRefused),
        ("NO", "", "Maximum size of appendable message has been exceeded", MessageRefused),  # Exchange
        ("NO", "", "Message contains bare newlines", MessageRefused),  # Cyrus
        ("NO", "", "Over quota", OverQuota),  # Cyrus
        ("NO", "ALERT", "You exceeded your mail quota.", OverQuota),  # Courier
        ("NO", "", "APPEND The 1500 MB storage limit has been exceeded.", OverQuota),  # GroupWise
        ("NO", "", "Server Unavailable. 15", Unavailable),  # Exchange: quota or throttling
        ("NO", "", "Request is throttled. Suggested Backoff Time: 299609 milliseconds", Throttled),  # Exchange
        ("NO", "", "Too many open connections (1 of 1 for u1)", TooManyConnections),  # Cyrus, seen
        ("BAD", "", "Command Argument Error. 11", BadAnswer),
        ("BAD", "CLIENTBUG", "", BadAnswer),
        ("BAD", "SERVERBUG", "", BadAnswer),
        ("BAD", "OVERQUOTA", "", BadAnswer),
        ("BAD", "", "Temporary parse trouble, try again", BadAnswer),
        ("BAD", "", "Request is throttled. Suggested Backoff Time: 2500 milliseconds", Throttled),
        ("BAD", "", "User is authenticated but not connected.", UserError),  # Exchange
        ("NO", "", "User is authenticated but not connected.", UserError),
        ("BYE", "", "Session expired, please login again", ConnectionLost),
        ("BYE", "", "Too many invalid IMAP commands.", ConnectionLost),  # Dovecot
        ("BYE", "", "Connection closed. 14", ConnectionLost),  # Exchange
        ("BYE", "OVERQUOTA", "full", ConnectionLost),
        ("BYE", "UNAVAILABLE", "", Unavailable),
        ("BYE", "", "Temporary problem, please try again later", Unavailable),  # Courier
        ("BYE", "", "Too many connections", TooManyConnections),
        ("BYE", "LIMIT", "", TooManyConnections),
        ("BYE", "AUTHENTICATIONFAILED", "no", LoginRefused),
        ("BYE", "CONTACTADMIN", "no", UserError),
        ("BYE", "", "IMAP access disabled for this account.", UserError),  # Courier
    ],
)
def test_each_answer_has_its_error(status: str, code: str, text: str, kind: Kind) -> None:
    assert type(error_for(status, code, text)) is kind


@pytest.mark.parametrize(
    ("code", "text", "kind", "hint"),
    [
        ("AUTHENTICATIONFAILED", "Authentication failed. Please try again.", LoginRefused, "tried once"),
        ("AUTHENTICATIONFAILED", "Invalid credentials (Failure)", LoginRefused, "tried once"),
        ("AUTHORIZATIONFAILED", "may not", LoginRefused, "may not act for this user"),
        ("EXPIRED", "old", LoginRefused, "expired"),
        ("PRIVACYREQUIRED", "TLS first", LoginRefused, "TLS"),
        ("CONTACTADMIN", "call us", UserError, "administrator"),
        ("ALERT", "Application-specific password required: https://support.google.com/", LoginRefused, "app password"),
        ("ALERT", "Please log in via your web browser: https://support.google.com/", LoginRefused, "browser"),
        ("", "Login failed.", LoginRefused, "tried once"),  # Courier
        ("", "Authentication failed, please try again", LoginRefused, "tried once"),
        ("", "Too many failed logins, try again later", LoginRefused, "tried once"),
        ("", "Your account is temporarily locked", LoginRefused, "tried once"),
        ("", "sorry", LoginRefused, "tried once"),
        ("", "User is authenticated but not connected.", UserError, "licence"),
        ("ALERT", "Your account is not enabled for IMAP use.", UserError, "switched off"),
        ("UNAVAILABLE", "Account is temporarily unavailable.", Unavailable, ""),  # Dovecot
        ("UNAVAILABLE", "Authentication failed", Unavailable, ""),
        ("", "Temporary authentication failure.", Unavailable, ""),
        ("ALERT", "Too many simultaneous connections. (Failure)", TooManyConnections, ""),  # Gmail
        ("UNAVAILABLE", "Maximum number of connections from user+IP exceeded", TooManyConnections, ""),
        ("LIMIT", "no", TooManyConnections, ""),
        ("LIMIT", "Too many requests", Throttled, ""),  # Stalwart
        ("INUSE", "in use", Unavailable, ""),
    ],
)
def test_a_login_that_may_lock_an_account_is_never_called_later(code: str, text: str, kind: Kind, hint: str) -> None:
    """Invariant: only what is no judgement of the credentials is worth another try."""
    error = error_for("NO", code, text, default=LoginRefused)
    assert type(error) is kind
    assert hint in error.hint
    assert (error.retry is Retry.LATER) == issubclass(kind, Unavailable)


@pytest.mark.parametrize(
    ("code", "text", "cause"),
    [
        ("", "Message contains NUL characters", "nul"),  # Cyrus, seen
        ("", "Message contains bare newlines", "bare-newline"),  # Cyrus, seen
        ("", "Message contains invalid header", "header"),  # Cyrus, seen
        ("", "Message has no header/body separator", "header"),  # Cyrus
        ("", "Message contains non-ASCII characters in headers", "8bit-header"),  # Cyrus
        ("", "Zero-length message literal", "empty"),  # Cyrus, seen
        ("", "Can't save a zero byte message (0.001 + 0.000 secs).", "empty"),  # Dovecot, seen
        ("", "Too many user flags in mailbox", "keywords"),  # Cyrus, seen
        ("CANNOT", "Keyword length too long (0.001 + 0.000 secs).", "keywords"),  # Dovecot, seen
        ("CANNOT", "Invalid characters in keyword", "keywords"),  # Dovecot, seen
        ("CANNOT", "never", ""),
        ("LIMIT", "a limit", "keywords"),
        ("LIMIT", "Message size exceeds fixed limit", "size"),
        ("TOOBIG", "no", "size"),
        ("", "Message size exceeds fixed limit", "size"),  # Cyrus
        ("", "Maximum size of appendable message has been exceeded", "size"),  # Exchange
        ("TOOBIG", "Message size exceeding limit", "size"),  # maddy
        ("UNKNOWN-CTE", "no", "cte"),
        ("PARSE", "no", "cte"),
        ("PARSE", "could not parse the message header", "header"),
        ("BADCHARSET", "no", ""),
        ("", "APPEND failed", ""),
        ("BAD", "Error in IMAP command APPEND: Invalid system flag \\FOO", "flags"),  # Dovecot, seen
        ("BAD", "Error in IMAP command APPEND: Flags list contains non-atoms", "flags"),  # Dovecot, seen
        ("BAD", "Error in IMAP command APPEND: Invalid internal date", "date"),  # Dovecot, seen
        ("BAD", "Invalid flag in Append command", "flags"),  # Cyrus, seen
        ("BAD", "Invalid date-time in Append command", "date"),  # Cyrus, seen
        ("BAD", "literal size too large", "size"),  # gromox
        ("BAD", "Command line too long", "long-line"),
        ("BAD", "Error", ""),
    ],
)
def test_a_refused_message_says_what_may_be_repaired(code: str, text: str, cause: str) -> None:
    error = error_for("BAD", "", text) if code == "BAD" else error_for("NO", code, text)
    assert type(error) is (BadAnswer if code == "BAD" else MessageRefused)
    assert error.cause == cause


def test_words_about_messages_mean_nothing_where_no_message_is_at_stake() -> None:
    for kind in (MailboxError, MailboxNameInvalid, UserError):
        error = error_for("NO", "CANNOT", "invalid header in keyword list, size limit", default=kind)
        assert type(error) is kind
        assert error.cause == ""
        assert error_for("NO", "", "size limit of names", default=kind).code == ""
        named = Sentence(says=re.compile("strange"), means="nul")
        assert type(error_for("NO", "", "strange", default=kind, sentences=[named])) is kind


def test_a_lost_connection_keeps_what_was_said_of_the_message() -> None:
    """Invariant: what became of it is not known, so it is never called refused."""
    error = error_for("BYE", "TOOBIG", "literal too big")
    assert type(error) is ConnectionLost
    assert (error.cause, error.code, error.retry) == ("size", "TOOBIG", Retry.LATER)


@pytest.mark.parametrize(
    "code",
    # RFC 9051 §7.1, then RFC 5530, 4315, 4469, 7889, 9585, 3516.
    "ALERT ALREADYEXISTS APPENDUID AUTHENTICATIONFAILED AUTHORIZATIONFAILED BADCHARSET CANNOT CAPABILITY CLIENTBUG"
    " CLOSED CONTACTADMIN COPYUID CORRUPTION EXPIRED EXPUNGEISSUED HASCHILDREN INUSE LIMIT NONEXISTENT NOPERM"
    " OVERQUOTA PARSE PERMANENTFLAGS PRIVACYREQUIRED READ-ONLY READ-WRITE SERVERBUG TRYCREATE UIDNEXT UIDNOTSTICKY"
    " UIDVALIDITY UNAVAILABLE UNKNOWN-CTE TOOBIG BADURL INPROGRESS THROTTLED".split(),
)
def test_every_response_code_is_in_the_table(code: str) -> None:
    assert code in answers._CODES
    assert error_for("NO", code, "").code == code
    assert error_for("NO", code.lower(), "").code == code


def test_the_default_is_for_what_nothing_explains() -> None:
    assert type(error_for("NO", "", "no", default=MailboxError)) is MailboxError
    assert type(error_for("NO", "CANNOT", "no", default=MailboxError)) is MailboxError
    assert type(error_for("NO", "ALREADYEXISTS", "no", default=MailboxNameInvalid)) is MailboxNameInvalid
    assert type(error_for("NO", "TOOBIG", "no", default=MailboxError)) is MessageRefused


def test_words_without_a_code_are_counted_under_the_code_they_stand_for() -> None:
    assert error_for("NO", "", "Over quota").code == "OVERQUOTA"
    assert error_for("NO", "ALERT", "You exceeded your mail quota.").code == "OVERQUOTA"
    assert error_for("NO", "", "message too large").code == "TOOBIG"
    assert error_for("NO", "LIMIT", "message too large").code == "LIMIT"


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("Request is throttled. Suggested Backoff Time: 2500 milliseconds", 2.5),
        ("Request is throttled. Suggested Backoff Time: 299609 milliseconds", 299.609),
        ("rate limit, retry after 30 seconds", 30.0),
        ("throttled: try again in 5 minutes", 300.0),
        ("slow down, wait 1.5s", 1.5),
        ("too many requests; come back again in 2 hours", 7200.0),
        ("throttled for good; wait 999999999 hours", 86400.0),
        ("rate limit of 20 logins in 5 minutes", 60.0),
        ("rate limit; try again (0.001 + 0.000 secs).", 60.0),
        ("Account exceeded command or bandwidth limits", 3600.0),
    ],
)
def test_a_stated_time_is_obeyed_within_reason(text: str, wait_s: float) -> None:
    for status in ("NO", "BAD", "BYE"):
        error = error_for(status, "", text)
        assert type(error) is Throttled
        assert error.wait_s == wait_s


def test_what_is_not_throttling_waits_as_the_caller_likes() -> None:
    assert error_for("NO", "UNAVAILABLE", "").wait_s == 0.0
    assert error_for("NO", "UNAVAILABLE", "temporarily, try again in 7 seconds").wait_s == 7.0
    assert error_for("NO", "UNAVAILABLE", "try again").wait_s == answers.RATE_WAIT_S
    assert error_for("NO", "UNAVAILABLE", "too many connections").wait_s == answers.CONNECTION_WAIT_S
    assert error_for("NO", "OVERQUOTA", "full, wait 3 seconds").wait_s == 0.0


@pytest.mark.parametrize(
    ("code", "text", "about", "wait_s"),
    [
        ("", "Success [THROTTLED]", "throttled", 60.0),  # Gmail
        ("THROTTLED", "done; wait 3 seconds", "throttled", 3.0),
        ("overquota", "80% full", "quota", 0.0),
        ("", "Append completed [OVERQUOTA]", "quota", 0.0),
    ],
)
def test_an_ok_may_carry_a_caution(code: str, text: str, about: str, wait_s: float) -> None:
    caution = warning_in(code, text)
    assert caution is not None
    assert (caution.about, caution.wait_s, caution.text) == (about, wait_s, text)


@pytest.mark.parametrize(("code", "text"), [("", "Success"), ("APPENDUID", "throttled by quota?"), ("ALERT", "hello")])
def test_an_ordinary_ok_has_none(code: str, text: str) -> None:
    assert warning_in(code, text) is None


def test_sentences_of_a_profile_come_first() -> None:
    strange = [Sentence(says=re.compile("odd"), means="throttled", wait_s=7.0, hint="as told")]
    error = error_for("NO", "TOOBIG", "odd", sentences=strange)
    assert (type(error), error.wait_s, error.hint) == (Throttled, 7.0, "as told")
    assert type(error_for("NO", "TOOBIG", "even", sentences=strange)) is MessageRefused


@pytest.mark.parametrize(
    ("means", "kind"),
    [
        ("throttled", Throttled),
        ("connections", TooManyConnections),
        ("unavailable", Unavailable),
        ("server-bug", ServerBug),
        ("quota", OverQuota),
        ("login", LoginRefused),
        ("user", UserError),
        ("mailbox", MailboxError),
        ("missing", MailboxNotFound),
        ("name", MailboxNameInvalid),
        ("expunged", MessageRefused),
        ("message", MessageRefused),
        ("long-line", MessageRefused),
    ],
)
def test_every_meaning_has_its_error(means: Meaning, kind: Kind) -> None:
    error = error_for("NO", "", "x", sentences=[Sentence(says=re.compile("x"), means=means)])
    assert type(error) is kind
    assert error.code == {"quota": "OVERQUOTA", "expunged": "EXPUNGEISSUED"}.get(means, "")


def test_an_error_says_where_what_and_the_servers_words() -> None:
    error = error_for("NO", "X-NEW", "no\x1b[31m way\r\n", where="mx:993", doing="EXAMINE x", default=MailboxError)
    assert str(error) == "mx:993: EXAMINE x: server said NO [X-NEW] no [31m way"
    assert error.code == "X-NEW"


FRAGMENTS = st.sampled_from(["throttled ", "[THROTTLED]", "quota ", "wait 9 s", "header ", "BYE\r\n", "\x1b[2J", "\0"])


@given(
    st.sampled_from(["NO", "BAD", "BYE"]),
    st.text(max_size=20) | st.sampled_from(sorted(answers._CODES)),
    st.lists(st.text() | FRAGMENTS).map("".join),
    st.sampled_from([MessageRefused, LoginRefused, MailboxError, MailboxNameInvalid, UserError]),
    st.sampled_from(sorted(bundled())),
)
def test_any_answer_is_an_error_fit_to_show(status: str, code: str, text: str, default: Kind, profile: str) -> None:
    error = error_for(status, code, text, default=default, sentences=bundled()[profile].refusals)
    for shown in (str(error), error.code):
        assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in shown)
    assert 0 <= error.wait_s <= answers.MAX_WAIT_S
    assert status != "BAD" or isinstance(error, BadAnswer | Throttled | TooManyConnections | UserError)
    assert status != "BYE" or isinstance(error, ConnectionLost | LoginRefused) or type(error) is UserError
    assert not error.cause or isinstance(error, MessageRefused | ConnectionLost)


@given(st.text(max_size=20), st.lists(st.text() | FRAGMENTS).map("".join))
def test_any_ok_has_a_caution_or_none(code: str, text: str) -> None:
    caution = warning_in(code, text)
    assert caution is None or isinstance(caution, Caution)
    assert caution is None or clean(caution.text) == caution.text


def test_words_are_cut_and_cleaned() -> None:
    assert clean("a\0\r\nb" + "c" * 1000) == "a b" + "c" * 495


HOSTILE = [
    "too many ",
    "exceeds ",
    "account ",
    "limit of ",
    "again ",
    "8 bit ",
    "parse a",
    "is over ",
    "back-off 1",
    "max",
]
HOSTILE += ["Cyrus IMAP ", "Dovecot ", "exceed quot", "  ", "99999999"]


def test_hostile_words_cost_in_proportion_to_their_length() -> None:
    """Growth of the processor time of all patterns, on more text than the 500 characters that are ever read."""
    patterns = [each.says for each in (*answers._BUSY_WORDS, *answers._LOGIN_WORDS, *answers._MESSAGE_WORDS)]
    patterns += [each.says for each in answers._WORDS] + [answers._STATED, answers._CONTROL]
    for profile in bundled().values():
        patterns += [each.says for each in profile.refusals] + [*profile.match.id.values()]
        patterns += [profile.match.greeting] if profile.match.greeting else []

    def cost(fragment: str, length: int) -> float:
        text = fragment * (length // len(fragment))
        best = float("inf")
        for _ in range(5):
            begun = time.process_time()
            for pattern in patterns:
                pattern.search(text)
            best = min(best, time.process_time() - begun)
        return best

    for fragment in HOSTILE:
        small, large = cost(fragment, 1_000), cost(fragment, 16_000)
        assert large < small * 40, f"{fragment!r}: 16 times the text cost {large / small:.0f} times the time"
