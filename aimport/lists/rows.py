"""What the cells of a list mean, and the row of the canonical list that they make. Pure.

    cells ──the form's columns──▶ {meaning: text} ──compose──▶ UserRow

A meaning is `user`, the name of the row; `password`, of the account on both sides; `parent`; `wanted`, whether the row
counts; `options`, of imapsync; or `source.` or `dest.` with `host`, `port`, `security`, `location`, `user`, `password`,
or `email`, which names an account and is its login unless `user` says another one.

Cells of other tools are taken as they stand: a `%` in a name is no variable. A password may be a reference
(`env:`, `file:`, `cmd:`) as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

PASSED_OVER: Final = "-"
"""Does not concern mail; said once for the list."""
REFUSED: Final = "!"
"""Must be empty: what it asks for cannot be done for one row."""

CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BREAK = re.compile(r"[\0\r\n]")
_HOST = re.compile(
    r"(?:(imaps?|ssl)://)?(\[[0-9A-Fa-f:.]+\]|[^\x00-\x20\x7f/?#@\[\]:%\\,;\"']+)(?::([0-9]{1,5}))?/?", re.IGNORECASE
)
_YES: Final = frozenset({"yes", "true", "1", "y", "on"})
_NO: Final = frozenset({"no", "false", "0", "n", "off"})
_SECURITY: Final = {
    **dict.fromkeys(("ssl", "imaps", "ssl/tls", "ssltls", "implicit", *_YES), "tls"),
    **dict.fromkeys(("starttls", "tls", *_NO), "starttls"),  # MailFerry's `tls`; who has no SSL gets STARTTLS
    **dict.fromkeys(("none", "plain", "unencrypted"), "none"),
}
_URL: Final = {"tls": "imaps://{}/", "starttls": "imap://{}/", "none": "imap://{}/?tls=off"}
_PORTS: Final = {"tls": "993", "starttls": "143", "none": "143"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRow:
    """One user of a list. `cells` holds the cells that are given, by column, without `user`; secrets among them."""

    user: str
    cells: Mapping[str, str] = field(default_factory=dict, repr=False)
    line: int = 0


@dataclass(frozen=True, slots=True)
class Wrong:
    """A line that cannot be used, and why."""

    line: int
    what: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A line that says of itself that it does not count."""

    line: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something of the whole list that a reader should know: said once."""

    what: str


Item = UserRow | Wrong | LeftOut | Note


class Refused(Exception):
    """Why a line cannot be used."""


def compose(given: Mapping[str, str], line: int) -> UserRow | LeftOut:
    """The row that `given` makes: texts by meaning, none of them empty.

    Raises:
        Refused
    """
    if wanted := given.get("wanted"):
        if wanted.lower() in _NO:
            return LeftOut(line)
        if wanted.lower() not in _YES:
            raise Refused("whether it is to be migrated is neither yes nor no")
    if given.get("wanted-mail", "").lower() in _NO:
        return LeftOut(line)
    cells: dict[str, str] = {}
    if options := given.get("options"):
        from aimport.lists.imapsync import translated

        more, cells = translated(options, given)
        given = {**given, **more}
    user = _first(given, "user", "dest.email", "dest.user", "source.email", "source.user")
    if not user:
        raise Refused("no user")
    _check(user, "the name")
    if source := _location(given, "source"):
        cells["source"] = source
    if login := _first(given, "source.user", "source.email"):
        cells["source_user"] = _as_it_stands(login, "source user")
    if password := _first(given, "source.password", "password"):
        cells.setdefault("source_password", _password(password))
    if dest := _location(given, "dest"):
        cells["dest"] = dest
    if login := given.get("dest.user") or ("user" in given and given.get("dest.email")) or "":
        cells["dest_user"] = _as_it_stands(login, "destination user")
    if password := _first(given, "dest.password", "password"):
        cells.setdefault("dest_password", _password(password))
    if parent := given.get("parent"):
        cells["parent"] = _as_it_stands(parent, "parent")
    return UserRow(user=user, cells={column: cell for column, cell in cells.items() if cell}, line=line)


def _first(given: Mapping[str, str], *meanings: str) -> str:
    for meaning in meanings:
        if text := given.get(meaning):
            return text
    return ""


def _check(text: str, what: str) -> None:
    if CONTROL.search(text):
        raise Refused(f"a control character in {what} {text!r}")


def _as_it_stands(text: str, what: str) -> str:
    _check(text, f"the {what}")
    return text.replace("%", "%%")


def _password(text: str) -> str:
    if _BREAK.search(text):
        raise Refused("a line break or NUL in a password")
    if text[:6].lower() == "oauth:":  # MailFerry: a profile of its own configuration
        raise Refused("a password oauth:PROFILE (write cmd:COMMAND that prints a token; set source_auth or dest_auth)")
    return text


def _location(given: Mapping[str, str], side: Literal["source", "dest"]) -> str:
    if location := given.get(f"{side}.location"):
        return location
    host, port, security = (given.get(f"{side}.{what}", "") for what in ("host", "port", "security"))
    of = "source host" if side == "source" else "destination host"
    return imap_location(of, host, port, security) if host or port or security else ""


def imap_location(of: str, host: str, port: str = "", security: str = "") -> str:
    """`imaps://HOST/` and its like. `host` may bring a scheme and a port; where nothing says how it is spoken to, TLS.

    No cell is quoted in an error: in a line with a separator too many it may be a part of a password.

    Raises:
        Refused
    """
    if not host:
        raise Refused(f"the {of} has a port or a kind of security and no host")
    match = _HOST.fullmatch(host)
    if match is None:
        raise Refused(f"the {of} is not a host")
    scheme, name, own_port = (match[1] or "").lower(), match[2], match[3] or ""
    if own_port and port and own_port != port:
        raise Refused(f"the {of} has two ports")
    port = port or own_port
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise Refused(f"the port of the {of} is not a number from 1 to 65535")
    if security:
        kind = _SECURITY.get(security.lower(), "")
        if not kind:
            raise Refused(f"the security of the {of} is none of ssl, starttls, none")
    else:
        kind = "starttls" if scheme == "imap" or (not scheme and port == "143") else "tls"
    return _URL[kind].format(name if port in ("", _PORTS[kind]) else f"{name}:{port}")


def as_path(path: str) -> str:
    """`path` as a location writes it: no character of it is a variable or a separator."""
    return path.replace("%", "%%").replace(":", "::")
