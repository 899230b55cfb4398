"""What a refusal means: response codes (RFC 9051 §7.1, RFC 5530) and the sentences of servers without them.

Pure. The one table from what a server says to the error tree; what a *command* makes of a
refusal nobody knows (`default`) is the caller's.
"""

from __future__ import annotations

import re
from typing import Final

from aimport.errors import (
    AimportError,
    ConnectionLost,
    LoginRefused,
    MailboxError,
    MailboxNotFound,
    MessageRefused,
    OverQuota,
    ProtocolError,
    Unavailable,
    UserError,
)

MAX_TEXT: Final = 500
RATE_WAIT_S: Final = 60.0  # arbitrary: a server says it is busy, not for how long
DAY_BUDGET_WAIT_S: Final = 3600.0  # arbitrary: Gmail counts by the day

_BY_CODE: Final[dict[str, type[AimportError]]] = {
    "OVERQUOTA": OverQuota,
    "TOOBIG": MessageRefused,
    "UNKNOWN-CTE": MessageRefused,
    "PARSE": MessageRefused,
    "EXPUNGEISSUED": MessageRefused,
    "TRYCREATE": MailboxNotFound,
    "NONEXISTENT": MailboxNotFound,
    "NOPERM": MailboxError,
    "CORRUPTION": MailboxError,
    "INUSE": Unavailable,
    "UNAVAILABLE": Unavailable,
    "SERVERBUG": Unavailable,
    "THROTTLED": Unavailable,
    "AUTHENTICATIONFAILED": LoginRefused,
    "AUTHORIZATIONFAILED": LoginRefused,
    "EXPIRED": LoginRefused,
    "PRIVACYREQUIRED": LoginRefused,
    "CONTACTADMIN": UserError,
}
_HINTS: Final = {
    "OVERQUOTA": "raise the quota or make room, then resume",
    "AUTHENTICATIONFAILED": "check user name and password; it was tried once",
    "AUTHORIZATIONFAILED": "the login may not act for this user",
    "EXPIRED": "the password or token has expired",
    "PRIVACYREQUIRED": "the server wants TLS",
    "CONTACTADMIN": "ask the server's administrator",
    "TRYCREATE": "the mailbox does not exist",
}

# Sentences of servers that give no code; the first match decides. Exchange, Gmail, Dovecot, Cyrus, Courier.
_BACKOFF = re.compile(r"Suggested Backoff Time: (\d{1,9}) milliseconds", re.IGNORECASE)  # Exchange
_RATE = re.compile(
    r"exceeded command or bandwidth limits"  # Gmail says this with [OVERQUOTA]
    r"|throttl|rate limit|too many (?:commands|requests|(?:simultaneous )?connections|logins)|slow down"
    r"|(?:maximum|max) (?:number of )?connections|connection limit|server unavailable|temporar|try again"
    r"|\bbusy\b",
    re.IGNORECASE,
)
_TOO_BIG = re.compile(
    r"maximum size of appendable message|message (?:is )?too (?:large|big|long)|exceeds? .{0,40}message size"
    r"|message size exceeds|size limit",
    re.IGNORECASE,
)
_FULL = re.compile(r"over ?quota|quota (?:is )?exceeded|exceed\w* .{0,20}quota|mailbox (?:is )?full", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class BadAnswer(ProtocolError):
    """BAD: the command was not executed (RFC 9051 §7.1.3), and the same octets never will be."""


def clean(text: str) -> str:
    """A server's words, fit for a log line and a terminal."""
    return _CONTROL.sub(" ", text[:MAX_TEXT]).strip()


def error_for(
    status: str,
    code: str,
    text: str,
    *,
    where: str = "",
    doing: str = "",
    default: type[AimportError] = MessageRefused,
) -> AimportError:
    """The error that a NO, BAD or BYE stands for.

    `where` is the server, `doing` what was asked; `default` is what a NO means that neither
    its code nor its words explain (CANNOT and LIMIT among them: they say that, not what).
    """
    words = clean(f"[{code}] {text}" if code else text) or "no reason given"
    before = "".join(f"{part}: " for part in (where, doing) if part)
    said = f"{before}server said {status} {words}"
    code = clean(code).upper()
    backoff = _BACKOFF.search(text)
    if backoff:
        return Unavailable(said, code=code, wait_s=int(backoff.group(1)) / 1000)
    if status != "BAD" and code == "OVERQUOTA" and _RATE.search(text):
        return Unavailable(said, code=code, wait_s=DAY_BUDGET_WAIT_S)
    if status == "BAD" and not _RATE.search(text):
        return BadAnswer(said, code=code)
    kind = _BY_CODE.get(code)
    if status == "BYE":
        if kind is Unavailable or _RATE.search(text):
            return Unavailable(said, code=code, wait_s=RATE_WAIT_S if _RATE.search(text) else 0.0)
        return ConnectionLost(said, code=code)
    if kind is None or kind is MessageRefused:
        if _RATE.search(text):
            kind = Unavailable
        elif _TOO_BIG.search(text):
            kind, code = MessageRefused, code or "TOOBIG"
        elif _FULL.search(text):
            kind, code = OverQuota, code or "OVERQUOTA"
    kind = kind or default
    if kind is MailboxNotFound:
        return MailboxNotFound(said, code=code, hint=_HINTS.get(code, ""))
    wait_s = RATE_WAIT_S if kind is Unavailable and _RATE.search(text) else 0.0
    return kind(said, code=code, hint=_HINTS.get(code, ""), wait_s=wait_s)
