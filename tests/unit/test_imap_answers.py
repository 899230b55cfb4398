"""What refusals mean, code by code and sentence by sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import (
    AimportError,
    ConnectionLost,
    LoginRefused,
    MailboxError,
    MailboxNotFound,
    MessageRefused,
    OverQuota,
    Unavailable,
    UserError,
)
from aimport.imap.answers import BadAnswer, clean, error_for


@pytest.mark.parametrize(
    ("status", "code", "text", "kind"),
    [
        ("NO", "TRYCREATE", "no such mailbox", MailboxNotFound),
        ("NO", "NONEXISTENT", "gone", MailboxNotFound),
        ("NO", "OVERQUOTA", "Quota exceeded (mailbox for user is full)", OverQuota),
        ("NO", "OVERQUOTA", "Account exceeded command or bandwidth limits", Unavailable),  # Gmail
        ("NO", "TOOBIG", "too big", MessageRefused),
        ("NO", "LIMIT", "too many copies of one message", MessageRefused),
        ("NO", "LIMIT", "too many commands, slow down", Unavailable),
        ("NO", "CANNOT", "never", MessageRefused),
        ("NO", "NOPERM", "Permission denied", MailboxError),
        ("NO", "CORRUPTION", "index broken", MailboxError),
        ("NO", "INUSE", "locked", Unavailable),
        ("NO", "UNAVAILABLE", "Maximum number of connections from user+IP exceeded", Unavailable),  # Dovecot
        ("NO", "SERVERBUG", "Internal error occurred", Unavailable),
        ("NO", "THROTTLED", "", Unavailable),
        ("NO", "AUTHENTICATIONFAILED", "Authentication failed. Please try again.", LoginRefused),
        ("NO", "AUTHORIZATIONFAILED", "may not", LoginRefused),
        ("NO", "EXPIRED", "old", LoginRefused),
        ("NO", "PRIVACYREQUIRED", "TLS first", LoginRefused),
        ("NO", "CONTACTADMIN", "call us", UserError),
        ("NO", "UNKNOWN-CTE", "", MessageRefused),
        ("NO", "", "Maximum size of appendable message has been exceeded", MessageRefused),  # Exchange
        ("NO", "", "Message contains bare newlines", MessageRefused),  # Cyrus
        ("NO", "", "Over quota", OverQuota),  # Cyrus
        ("NO", "", "Server Unavailable. 15", Unavailable),  # Exchange: quota or throttling
        ("NO", "X-NEW", "something", MessageRefused),
        ("BAD", "", "Command Argument Error. 11", BadAnswer),
        ("BAD", "CLIENTBUG", "", BadAnswer),
        ("BAD", "", "Request is throttled. Suggested Backoff Time: 2500 milliseconds", Unavailable),
        ("BYE", "", "Session expired, please login again", ConnectionLost),
        ("BYE", "UNAVAILABLE", "", Unavailable),
        ("BYE", "", "Too many connections", Unavailable),
    ],
)
def test_each_answer_has_its_error(status: str, code: str, text: str, kind: type[AimportError]) -> None:
    assert type(error_for(status, code, text)) is kind


def test_the_default_is_for_what_nothing_explains() -> None:
    assert type(error_for("NO", "", "no", default=MailboxError)) is MailboxError
    assert type(error_for("NO", "CANNOT", "no", default=MailboxError)) is MailboxError
    assert type(error_for("NO", "TOOBIG", "no", default=MailboxError)) is MessageRefused


def test_exchange_is_obeyed_to_the_millisecond() -> None:
    error = error_for("BAD", "", "Request is throttled. Suggested Backoff Time: 2500 milliseconds")
    assert error.wait_s == 2.5


def test_an_error_says_where_what_and_the_servers_words() -> None:
    error = error_for("NO", "NOPERM", "no\x1b[31m way\r\n", where="mx:993", doing="EXAMINE x", default=MailboxError)
    assert str(error) == "mx:993: EXAMINE x: server said NO [NOPERM] no [31m way"
    assert error.code == "NOPERM"


@given(st.sampled_from(["NO", "BAD", "BYE"]), st.text(max_size=20), st.text())
def test_any_answer_is_an_error_fit_to_show(status: str, code: str, text: str) -> None:
    error = error_for(status, code, text)
    assert str(error).isprintable() or not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in str(error))


def test_words_are_cut_and_cleaned() -> None:
    assert clean("a\0\r\nb" + "c" * 1000) == "a b" + "c" * 495
