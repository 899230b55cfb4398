"""The seventh column of imapsync's lists: options, each translated, known to change nothing, or refused. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aimport.lists.rows import Refused

_SIDES: Final = {"1": "source", "2": "dest"}
_NOTHING: Final = frozenset(
    {"noreleasecheck", "releasecheck", "nolog", "log", "nomodulesversion", "modulesversion", "pidfilelocking"}
    | {"syncinternaldates", "useuid", "usecache", "nousecache", "fastio1", "fastio2", "noauthmd5"}
    | {"foldersizes", "nofoldersizes", "foldersizesatend", "nofoldersizesatend"}
)
"""How imapsync goes about it, or what is always so here."""
_NOTHING_WITH_VALUE: Final = frozenset(
    {"logfile", "logdir", "pidfile", "timeout", "timeout1", "timeout2", "buffersize"}
)
_OPTION = re.compile(r"--?([a-z][a-z0-9]*)(?:=(.*))?", re.IGNORECASE | re.DOTALL)
_HINTS: Final = {
    **dict.fromkeys(("delete", "delete1", "delete2", "delete2duplicates", "delete2folders"), "aimport never deletes"),
    **dict.fromkeys(("folder", "folderrec", "include"), "choose mailboxes with MAILBOX in the query"),
    "exclude": "leave mailboxes out with NOT MAILBOX in the query",
    **dict.fromkeys(("maxage", "minage", "search", "search1", "maxsize", "minsize"), "put it into the query"),
    **dict.fromkeys(("subscribe", "subscribeall", "subscribed"), "give -s to the run"),
    "automap": "give --special-use to the run",
    "dry": "aimport plan shows what an import would do",
    **dict.fromkeys(("gmail1", "gmail2", "office1", "office2"), "write the host into the list"),
    **dict.fromkeys(("oauthaccesstoken1", "oauthaccesstoken2"), "set source_auth, dest_auth; cmd: as the password"),
}


def translated(options: str, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What `options` say: texts by meaning, and cells of the canonical list. Split at blanks, as imapsync's loop does.

    Raises:
        Refused: an option that has no counterpart. None is passed over.
    """
    more: dict[str, str] = {}
    cells: dict[str, str] = {}
    words = iter(options.split())
    for word in words:
        match = _OPTION.fullmatch(word)
        if match is None:  # not quoted: it may be the end of a password that has a semicolon
            raise Refused("what stands behind the password is no option (a password cannot hold ; here)")
        name = match[1].lower()

        def argument(name: str = name, value: str | None = match[2]) -> str:
            text = next(words, "") if value is None else value
            if not text:
                raise Refused(f"option --{name} lacks its value")
            return text

        option, side = name[:-1], _SIDES.get(name[-1:], "")
        if name in _NOTHING or (name in _NOTHING_WITH_VALUE and argument()):
            continue
        if side and option in ("port", "passfile", "authmech", "authuser"):
            text = argument()
            if option == "port":
                more[f"{side}.port"] = text
            elif option == "passfile":
                more[f"{side}.password"] = f"file:{text.replace('%', '%%')}"
            elif option == "authmech":
                cells[f"{side}_auth"] = text.lower()
            else:
                cells[f"{side}_master_user"] = text.replace("%", "%%")
        elif side and option in ("ssl", "tls"):
            more[f"{side}.security"] = "ssl" if option == "ssl" else "starttls"
        elif side and option in ("nossl", "notls"):
            other = {"nossl": "notls", "notls": "nossl"}[option] + name[-1]
            if f"--{other}" in options.lower().split():
                more[f"{side}.security"] = "none"
            elif option == "nossl":
                more.setdefault(f"{side}.security", "starttls")
        elif name == "subfolder2":
            more["parent"] = argument()
        else:
            hint = _HINTS.get(name, "write the canonical list, or take it out")
            raise Refused(f"option --{name} has no counterpart in a list ({hint})")
    for side in _SIDES.values():  # the password of the line is then the admin's
        password = more.get(f"{side}.password") or given.get(f"{side}.password")
        if f"{side}_master_user" in cells and password:
            cells[f"{side}_master_password"] = password
            cells[f"{side}_password"] = ""
    return more, cells
