"""What a refusal means: response codes, and the sentences of servers that give none.

    status, code, words ──▶ error_for() ──▶ an AimportError: how wide, whether to come back, when, why
    an OK's code, words ──▶ warning_in() ──▶ Caution, or None

Pure. One table of codes (RFC 9051 §7.1, RFC 5530, 4315, 4469, 7889, 9208, 9585, 3516 and Dovecot's
THROTTLED), one of sentences. What only one kind of server says stands in its profile
(`imap.profiles`) and comes in as `sentences`. What a *command* makes of a refusal nobody knows
(`default`) is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from aimport.errors import (
    AimportError,
    Cause,
    ConnectionLost,
    LoginRefused,
    MailboxError,
    MailboxNameInvalid,
    MailboxNotFound,
    MessageRefused,
    OverQuota,
    ProtocolError,
    Refusal,
    ServerBug,
    Throttled,
    TooManyConnections,
    Unavailable,
    UserError,
    Whose,
)

MAX_TEXT: Final = 500
RATE_WAIT_S: Final = 60.0  # arbitrary: a server says it is busy, not for how long
CONNECTION_WAIT_S: Final = 5.0  # arbitrary: a connection of ours that has just ended still counts for a moment
DAY_BUDGET_WAIT_S: Final = 3600.0  # Gmail counts by the day, and lets go after an hour at the earliest
MAX_WAIT_S: Final = 86_400.0  # a server that asks for more is not believed

Meaning = Literal[
    "throttled",
    "connections",
    "unavailable",
    "server-bug",
    "quota",
    "login",
    "user",
    "mailbox",
    "missing",
    "name",
    "expunged",
    "message",
    Refusal,
]
"""What a sentence says: what is wrong, or about a message (`message` and each `Refusal`) why it is refused."""


class BadAnswer(ProtocolError):
    """BAD: the command was not executed (RFC 9051 §7.1.3), and the same octets never will be.

    With a `cause` it was about the message, which may be repaired.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """Words of a server that mean something. The first match decides."""

    says: re.Pattern[str]
    """Searched for in the text without its code, of which the first 500 characters count."""
    means: Meaning
    wait_s: float = 0.0
    """Seconds to stay away, where the words name no time; 0: as usual for the meaning."""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Something to mind though the command was carried out."""

    about: Literal["throttled", "quota"]
    wait_s: float
    """Seconds to send nothing more to this account; 0 for a quota, which is only worth a warning."""
    text: str
    """The server's words."""


_CAUSES: Final[dict[Meaning, Cause]] = {cause: cause for cause in get_args(Refusal)}
_KINDS: Final[dict[Meaning, type[AimportError]]] = {
    "throttled": Throttled,
    "connections": TooManyConnections,
    "unavailable": Unavailable,
    "server-bug": ServerBug,
    "quota": OverQuota,
    "login": LoginRefused,
    "user": UserError,
    "mailbox": MailboxError,
    "missing": MailboxNotFound,
    "name": MailboxNameInvalid,
}  # all others: MessageRefused
_CODE_OF: Final[dict[Meaning, str]] = {"quota": "OVERQUOTA", "size": "TOOBIG", "expunged": "EXPUNGEISSUED"}
_NOT_A_REASON: Final = frozenset({"", "ALERT", "WEBALERT"})
_WAITS: Final[dict[type[AimportError], float]] = {Throttled: RATE_WAIT_S, TooManyConnections: CONNECTION_WAIT_S}
_HINTS: Final[dict[type[AimportError], str]] = {
    OverQuota: "raise the quota or make room, then resume",
    LoginRefused: "check user name and password; it was tried once",
}

_ALL: Final = frozenset(get_args(Meaning))
_BUSY: Final = frozenset[Meaning]({"throttled", "connections"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What a response code says by itself, and which sentences say it better."""

    kind: type[AimportError] | None = None
    """None: what the command makes of it."""
    hint: str = ""
    cause: Cause = ""
    wait_s: float = 0.0
    refined: frozenset[Meaning] = frozenset()


_UNKNOWN: Final = _Row(refined=_ALL)
_CODES: Final[dict[str, _Row]] = {
    # It comes back later.
    "UNAVAILABLE": _Row(kind=Unavailable, refined=_BUSY | {"unavailable"}),  # Dovecot's connection limit, too
    "INUSE": _Row(kind=Unavailable, refined=_BUSY | {"unavailable"}),
    "SERVERBUG": _Row(kind=ServerBug, refined=_BUSY),
    "THROTTLED": _Row(kind=Throttled, refined=_BUSY),  # no RFC: Dovecot; Gmail in the words of an OK
    # The user cannot go on.
    "OVERQUOTA": _Row(kind=OverQuota, refined=_BUSY),  # RFC 9208 §4.3.1; Gmail says it of its rates
    "AUTHENTICATIONFAILED": _Row(kind=LoginRefused),
    "AUTHORIZATIONFAILED": _Row(kind=LoginRefused, hint="the admin login may not act for this user"),
    "EXPIRED": _Row(kind=LoginRefused, hint="the password or token has expired"),
    "PRIVACYREQUIRED": _Row(kind=LoginRefused, hint="the server wants TLS: use imaps:// or STARTTLS"),
    "CONTACTADMIN": _Row(kind=UserError, hint="ask the server's administrator", refined=_BUSY),
    # The mailbox.
    "TRYCREATE": _Row(kind=MailboxNotFound, hint="the mailbox does not exist"),
    "NONEXISTENT": _Row(kind=MailboxNotFound),
    "NOPERM": _Row(kind=MailboxError, hint="an access list (ACL) does not allow it"),
    "READ-ONLY": _Row(kind=MailboxError, hint="the mailbox is read-only"),
    "CORRUPTION": _Row(kind=MailboxError, hint="the server's data of this mailbox is damaged: tell its administrator"),
    # The message.
    "TOOBIG": _Row(kind=MessageRefused, cause="size"),  # RFC 4469, RFC 7889
    "UNKNOWN-CTE": _Row(kind=MessageRefused, cause="cte"),  # RFC 3516: send it as a plain literal
    "PARSE": _Row(kind=MessageRefused, cause="cte", refined=_ALL),
    "EXPUNGEISSUED": _Row(kind=MessageRefused),  # not an error at a source: vanished
    # What the command makes of it; sentences may know more.
    "LIMIT": _Row(cause="keywords", refined=_ALL),  # of flags, most of all (RFC 5530)
    "CANNOT": _Row(refined=_ALL),
    "CLIENTBUG": _Row(refined=_ALL),
    "ALERT": _Row(refined=_ALL),
    "WEBALERT": _Row(refined=_ALL),  # Gmail
    "ALREADYEXISTS": _Row(),  # success of a CREATE
    "HASCHILDREN": _Row(),
    "BADCHARSET": _Row(),
    "BADURL": _Row(),  # RFC 4469
    "UIDNOTSTICKY": _Row(),  # RFC 4315
    # These come with an OK. In a refusal they explain nothing.
    "INPROGRESS": _UNKNOWN,  # RFC 9585: untagged, so each is a sign of life to the deadlines
    "APPENDUID": _UNKNOWN,  # RFC 4315
    "COPYUID": _UNKNOWN,
    "CAPABILITY": _UNKNOWN,
    "CLOSED": _UNKNOWN,
    "PERMANENTFLAGS": _UNKNOWN,
    "READ-WRITE": _UNKNOWN,
    "UIDNEXT": _UNKNOWN,
    "UIDVALIDITY": _UNKNOWN,
}


def _sentence(means: Meaning, *says: str, wait_s: float = 0.0, hint: str = "") -> Sentence:
    return Sentence(says=re.compile("|".join(says), re.IGNORECASE), means=means, wait_s=wait_s, hint=hint)


# Repeats are bounded everywhere: a search is linear in the text.

_BUSY_WORDS: Final = (
    _sentence("throttled", r"exceeded command or bandwidth limits", wait_s=DAY_BUDGET_WAIT_S),  # Gmail, also at login
    _sentence(
        "connections",
        r"(?:max(?:imum|\.)?|too many|limit (?:of|on)) .{0,40}\b(?:connections|sessions)\b",  # Dovecot, Cyrus, Gmail
        r"\bconnections? (?:limit|count|quota)",  # Courier
    ),
    _sentence(
        "throttled",
        r"throttl|\brate.?limit|\bback-?off time",  # Exchange, Yahoo
        r"too many (?:commands|requests|logins)\b|slow down|too (?:fast|quickly)\b",  # Stalwart
    ),
)
_LOGIN_WORDS: Final = (
    _sentence(
        "login",
        r"application.specific password",  # Gmail
        hint="this account needs an app password, or XOAUTH2",
    ),
    _sentence(
        "login",
        r"web login required|log in via your web browser",  # Gmail
        hint="sign in once with a browser, or use an app password or XOAUTH2",
    ),
    # Before all that says "later": trying again is what locks accounts.
    _sentence("login", r"account .{0,30}\b(?:locked|blocked|disabled|suspended)", r"too many (?:failed|invalid|bad) "),
    _sentence("unavailable", r"temporar", wait_s=RATE_WAIT_S),  # Dovecot: Temporary authentication failure
    _sentence(
        "login",
        r"(?:auth\w{0,12}|log.?[io]n) (?:failed|failure|incorrect|denied|error)",
        r"(?:invalid|bad|wrong|incorrect|unknown) (?:credentials|user|login|password|mailbox)",
        r"user.?name (?:or|and) password|\bpassword (?:is )?(?:invalid|wrong|incorrect)",
    ),
)
_MESSAGE_WORDS: Final = (
    _sentence("nul", r"\bnul{1,2}s? (?:char|octet|byte)"),  # Cyrus
    _sentence("bare-newline", r"\bbare (?:newline|line.?feed|lf|cr)"),  # Cyrus
    _sentence("8bit-header", r"(?:non-ascii|8.?bit) .{0,30}\bheader"),  # Cyrus
    _sentence("header", r"(?:invalid|bad|malformed|missing|no) header", r"parse .{0,20}\b(?:message|header)"),  # Cyrus
    _sentence("long-line", r"\bline (?:is )?too long|too long (?:a )?line|\bline length"),  # James
    _sentence("empty", r"zero.?(?:byte|length)|empty message"),  # Dovecot, Cyrus
    _sentence("date", r"(?:invalid|bad|illegal|malformed) (?:internal )?date"),  # Dovecot, Cyrus
    _sentence("keywords", r"\bkeywords?\b|user flags?\b|too many flags"),  # Dovecot, Cyrus, Courier
    _sentence("flags", r"(?:invalid|unknown|illegal|unsupported) (?:system )?flag|flags? list"),  # Dovecot, Cyrus
    _sentence(
        "size",
        r"maximum (?:message )?size|(?:message|literal) (?:size )?(?:is )?too (?:large|big|long)",  # gromox
        r"exceeds? .{0,40}message size|(?:message|literal) size exceed|size limit",  # Cyrus, maddy
    ),
)
_WORDS: Final = (
    _sentence(
        "user",
        r"authenticated but not connected",  # Exchange, which says BAD as well as NO
        hint="no licence, IMAP switched off for this mailbox, or the wrong form of a shared mailbox's login",
    ),
    _sentence(
        "user",
        r"imap (?:access )?(?:is )?(?:disabled|not enabled)|not enabled for imap|login disabled for this user",
        hint="IMAP is switched off for this account",
    ),
    _sentence(
        "quota",
        r"over ?quota|quota (?:is |has been )?exceeded|exceed\w{0,3} .{0,20}quota|mailbox (?:is )?full",
        r"storage (?:limit )?(?:has been |is )?exceeded",  # GroupWise, Cyrus
    ),
    _sentence(
        "unavailable",
        r"server\(?s?\)? unavailable|temporar|try (?:it )?again|\bbusy\b|retry operation",
        wait_s=RATE_WAIT_S,
    ),
)
_LIMIT_OF_CONNECTIONS: Final = _sentence("connections", "")  # what LIMIT means at login, and with a BYE
_STATED = re.compile(
    r"(?:back-?off|retry|again|wait|after|delay)[^0-9]{0,40}(\d{1,9}(?:\.\d{1,3})?) {0,2}"
    r"(?:(ms|msecs?|milliseconds?)|(s|secs?|seconds?)|(m|mins?|minutes?)|(h|hrs?|hours?))\b",
    re.IGNORECASE,
)
_OF_USER: Final = re.compile(r"\b(?:users?|accounts?|mailbox(?:es)?|this login)\b", re.IGNORECASE)
_OF_ADDRESS: Final = re.compile(r"\b(?:address(?:es)?|ips?|hosts?|networks?)\b", re.IGNORECASE)
_UNITS_MS: Final = (1, 1000, 60_000, 3_600_000)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


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
    sentences: Sequence[Sentence] = (),
) -> AimportError:
    """The error that a NO, BAD or BYE stands for.

    `where` is the server, `doing` what was asked; `default` is what a NO means that neither its
    code nor its words explain: LoginRefused for a login, MessageRefused where a message is at stake.
    `sentences` are those of the server's profile: they come before codes and general sentences.

    A BAD is a `BadAnswer` unless it speaks of speed, of connections or of the account as a whole. A BYE
    is a lost connection whatever it says of a message: what became of the command is not known. Its
    `cause` then tells what to look for in what was under way.
    """
    code, text = code[:MAX_TEXT], text[:MAX_TEXT]  # not every pattern is linear, and a line may have a megabyte
    words = clean(f"[{code}] {text}" if code else text) or "no reason given"
    before = "".join(f"{part}: " for part in (where, doing) if part)
    said = f"{before}server said {status} {words}"
    code, text = clean(code).upper(), text[:MAX_TEXT]
    row = _CODES.get(code, _UNKNOWN)
    sentence = _first(sentences, text) or _first(_general(row, default), text)
    if sentence is None and code == "LIMIT" and (status == "BYE" or issubclass(default, LoginRefused)):
        sentence = _LIMIT_OF_CONNECTIONS
    if sentence is None:
        kind, cause = row.kind or default, row.cause
        hint, wait_s = row.hint, row.wait_s
    else:
        # What is said of a message is a refusal of one only where one is at stake.
        kind = _KINDS.get(sentence.means) or (default if row.kind is None else MessageRefused)
        cause = _CAUSES.get(sentence.means, "")
        hint, wait_s = sentence.hint, sentence.wait_s
        if code in _NOT_A_REASON:
            code = _CODE_OF.get(sentence.means, code)
    if status == "BAD" and not _holds_for_bad(kind, by_words=sentence is not None):
        kind = BadAnswer
    elif status == "BYE" and not issubclass(kind, (Unavailable, LoginRefused)) and kind is not UserError:
        kind = ConnectionLost
    if issubclass(kind, Unavailable):
        wait_s = _stated_s(text, wait_s or _WAITS.get(kind, 0.0))
    if not issubclass(kind, (MessageRefused, BadAnswer, ConnectionLost)):
        cause = ""
    error = kind(said, code=code, hint=hint or _HINTS.get(kind, ""), wait_s=wait_s, cause=cause)
    error.host = where
    error.whose = _whose(text)
    return error


def _whose(text: str) -> Whose:
    """Dovecot counts by user and address at once, so for us by user."""
    if _OF_USER.search(text):
        return "user"
    return "address" if _OF_ADDRESS.search(text) else ""


def warning_in(code: str, text: str) -> Caution | None:
    """What a tagged OK asks us to mind: throttling (Gmail, Dovecot) or a soft quota (RFC 5530, OVERQUOTA).

    Gmail puts its `[THROTTLED]` behind the words: `OK Success [THROTTLED]` (seen by others).
    """
    code, words = code.upper(), text[:MAX_TEXT].upper()
    if code == "THROTTLED" or "[THROTTLED]" in words:
        return Caution(about="throttled", wait_s=_stated_s(text[:MAX_TEXT], RATE_WAIT_S), text=clean(text))
    if code == "OVERQUOTA" or "[OVERQUOTA]" in words:
        return Caution(about="quota", wait_s=0.0, text=clean(text))
    return None


def _general(row: _Row, default: type[AimportError]) -> Iterator[Sentence]:
    """The sentences that may say more than this code, for this command."""
    of_command: Sequence[Sentence] = ()
    if issubclass(default, LoginRefused):
        of_command = _LOGIN_WORDS
    elif issubclass(default, MessageRefused):
        of_command = _MESSAGE_WORDS
    return (each for each in (*_BUSY_WORDS, *of_command, *_WORDS) if each.means in row.refined)


def _first(sentences: Iterable[Sentence], text: str) -> Sentence | None:
    return next((sentence for sentence in sentences if sentence.says.search(text)), None)


def _holds_for_bad(kind: type[AimportError], *, by_words: bool) -> bool:
    """Exchange says BAD when it throttles, and when IMAP is switched off for the account."""
    if issubclass(kind, (Throttled, TooManyConnections)):
        return True
    return by_words and (kind is UserError or issubclass(kind, LoginRefused))


def _stated_s(text: str, otherwise: float) -> float:
    """Seconds that the words ask us to stay away, within reason."""
    stated = _STATED.search(text)
    if stated is None:
        return min(otherwise, MAX_WAIT_S)
    number, *units = stated.groups()
    unit_ms = next(each for each, name in zip(_UNITS_MS, units, strict=True) if name)
    return min(float(number) * unit_ms / 1000, MAX_WAIT_S)
