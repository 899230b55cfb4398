"""Forms that are more than columns: ImapCopy.cfg, Dovecot's passwd-file, the lists of GAMME. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Final

from aimport.lists.rows import CONTROL, Item, Note, Refused, UserRow, Wrong, compose

_DIRECTIVE = re.compile(r"\s*([A-Za-z]+)(?:\s+(.*))?", re.DOTALL)
_WORDS = re.compile(r'"([^"]*)"|(\S+)')
_SERVERS: Final = {
    "sourceserver": "source.host",
    "sourceport": "source.port",
    "destserver": "dest.host",
    "destport": "dest.port",
    "dstrootfolder": "parent",
}
_QUERY: Final = {
    "skipfolder": 'put NOT MAILBOX "{}" into the query',
    "skipmatch": 'put NOT MAILBOX "{}*" into the query',
    "copyfolder": 'put MAILBOX "{}" into the query',
}
_OF_THE_RUN: Final = frozenset({"concurrency", "threads", "workers", "logfile", "log", "exportlog", "debug"})
_INVALID: Final = frozenset({"allowinvalidcertificates", "allowinvalidcerts", "permitunsignedssl"})
_OTHERS: Final = frozenset(
    {"copy", "sourceprotocol", "denyflags", "allowflags", "converttimezone", "createemptyfolders"}
)
_KNOWN: Final = _SERVERS.keys() | _QUERY.keys() | _OF_THE_RUN | _INVALID | _OTHERS
_ID = re.compile(r"\d*")
_SCHEME = re.compile(r"\{[A-Za-z0-9.-]+\}.*")
_GAMME = re.compile(r"[^#,;\s]+#[^,]*(?:,\s*[^,]+)?")


def looks_like(head: Sequence[str]) -> str:
    """`imapcopy`, `passwd` or nothing, by the first lines."""
    directives = [match[1].lower() for line in head if not _is_comment(line) and (match := _DIRECTIVE.match(line))]
    if {"copy", "sourceserver", "destserver"} & set(directives) and set(directives) <= _KNOWN:
        return "imapcopy"
    return "passwd" if sum(map(_is_passwd, head)) > len(head) / 2 else ""


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(("#", "//"))


def _is_passwd(line: str) -> bool:
    fields = line.split(":", 7)
    if re.search(r"[\s,;]", fields[0]) or len(fields) < 2:
        return False
    if len(fields) >= 7:
        return bool(_ID.fullmatch(fields[2]) and _ID.fullmatch(fields[3]))
    return _SCHEME.fullmatch(fields[1]) is not None


def has_password(line: str) -> bool:
    """Whether a line of a passwd-file holds more in the place of the password than a mark."""
    return "".join(line.split(":")[1:2]).strip() not in ("", "x", "*", "!")


def gamme_share(head: Sequence[str]) -> float:
    """How much of the lines reads `user#password` with a target or without."""
    return sum(_GAMME.fullmatch(line.strip()) is not None for line in head) / len(head)


def gamme_row(line: int, content: str) -> UserRow:
    """`user#password[, target]`; the password ends at the last comma, the user at the first `#`. `domain/admin/user` is
    a login as any other.

    Raises:
        Refused
    """
    login, mark, rest = content.strip().partition("#")
    if not mark:
        raise Refused("no # between user and password")
    password, comma, target = rest.rpartition(",")
    if not comma:
        password, target = rest, ""
    given = {"source.user": login.strip(), "source.password": password, "user": target.strip() or _own_name(login)}
    row = compose({meaning: text for meaning, text in given.items() if text}, line)
    assert isinstance(row, UserRow)  # nothing in it says that it does not count
    return row


def _own_name(login: str) -> str:
    """The user of an admin's login `domain/admin/user`."""
    return re.split(r"[/\\]", login.strip())[-1]


def passwd_row(line: int, content: str) -> UserRow:
    """A line of a passwd-file (Dovecot's documentation, "Passwd-file"). What a server would expand stays a variable.

    Raises:
        Refused
    """
    user, *fields = content.replace("\t", " ").split(":", 7)
    if not user.strip():
        raise Refused("no user")
    if CONTROL.search(content.replace("\t", "")):
        raise Refused("a control character")
    fields += [""] * (7 - len(fields))
    uid, gid, home, extra = fields[1].strip(), fields[2].strip(), fields[4].strip(), fields[6]
    known = dict(_extra(word) for word in extra.split())
    location = known.get("userdb_mail", "")
    if driver := known.get("userdb_mail_driver"):  # Dovecot 2.4
        location = f"{driver}:{known.get('userdb_mail_path', '').replace(':', '::')}"
    cells = {
        "source": location,
        "mail_home": known.get("userdb_home") or home.replace("%", "%%"),
        "mail_uid": known.get("userdb_uid") or uid,
        "mail_gid": known.get("userdb_gid") or gid,
    }
    return UserRow(user=user.strip(), cells={column: cell for column, cell in cells.items() if cell}, line=line)


def _extra(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def imapcopy(lines: Callable[[], Iterable[tuple[int, str] | Wrong]]) -> Generator[Item, None, None]:
    """The rows of an ImapCopy.cfg. Directives hold for all `Copy` lines, wherever they stand; none is passed over."""
    servers: dict[str, str] = {}
    for line in lines():
        if not isinstance(line, Wrong):
            name, words = _words(line[1])
            if name in _SERVERS and words:
                servers.setdefault(_SERVERS[name], words[0])
    for line in lines():
        if isinstance(line, Wrong):
            yield line
            continue
        number, content = line
        if not content.strip() or _is_comment(content):
            continue
        try:
            yield from _directive(number, content, servers)
        except Refused as exc:
            yield Wrong(number, str(exc))


def _words(content: str) -> tuple[str, list[str]]:
    """A directive, in lower case, and what stands behind it; "" where there is none."""
    match = _DIRECTIVE.match(content)
    if match is None:
        return "", []
    return match[1].lower(), [
        found[1] if found[1] is not None else found[2] for found in _WORDS.finditer(match[2] or "")
    ]


def _directive(number: int, content: str, servers: Mapping[str, str]) -> Generator[Item, None, None]:
    name, words = _words(content)
    if not name:
        raise Refused("a line without a directive")
    value = words[0] if words else ""
    if name == "copy":
        yield _copy(number, words, servers)
    elif name in _SERVERS:
        if servers.get(_SERVERS[name]) != value:
            raise Refused(f"{name} stands twice, or without a value")
    elif name in _OF_THE_RUN:
        yield Note(f"{name} {value} is not used: give --users, -v to the run")
    elif name in _QUERY:
        raise Refused(f"{name} {value!r} has no counterpart in a list ({_QUERY[name].format(value)})")
    elif name in _INVALID and value.lower() in ("yes", "true", "1"):
        raise Refused(f"{name}: certificates are always verified (set source_tls_ca or dest_tls_ca)")
    elif name == "sourceprotocol" and value.lower() != "imap":
        raise Refused(f"{name} {value}: only IMAP")
    elif name == "denyflags" and set(" ".join(words).lower().split()) <= {"\\recent"}:
        return  # \Recent is never stored
    elif name == "createemptyfolders" and value.lower() in ("no", "false", "0"):
        return  # as doveadm
    elif name not in _INVALID and name != "sourceprotocol":
        what = "has no counterpart in a list" if name in _KNOWN else "is no directive of ImapCopy.cfg"
        raise Refused(f"{name} {what} (take it out)")


def _copy(number: int, words: Sequence[str], servers: Mapping[str, str]) -> Item:
    if len(words) != 4:
        raise Refused(f"Copy has {len(words)} words and needs 4: user and password, twice (in quotes)")
    login, password, other, other_password = words
    given = {
        **servers,
        "source.user": login,
        "source.password": password,
        "dest.user": login if other == "*" else other,
        "dest.password": password if other_password == "*" else other_password,
    }
    return compose({meaning: text for meaning, text in given.items() if text}, number)
