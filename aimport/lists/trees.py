"""Lists that are directories: homes of cPanel, and one directory of mbox files a user.

HOME/etc/DOMAIN/passwd  NAME:x:uid:gid::...     HOME/mail/DOMAIN/NAME    NAME@DOMAIN
                                                HOME/mail itself         the account, its default mailbox
TREE/USER@DOMAIN/LABEL.mbox, TREE/USER@DOMAIN/LABEL/SUB.mbox             USER@DOMAIN
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence

from aimport.errors import UsageError
from aimport.lists.forms import BY_NAME, Form
from aimport.lists.rows import Item, Note, UserRow, Wrong, as_path

_ID = re.compile(r"\d+")


def open_tree(path: str, name: str, form: str | None) -> tuple[Form, tuple[str, ...], Callable[[], Iterator[Item]]]:
    """The form of the directory and its rows.

    Raises:
        UsageError: it is of none of these forms, or of several.
    """
    path = os.path.abspath(path)
    found = [form] if form in ("cpanel", "mbox-tree") else _detect(path)
    if form not in (None, *found) or not found:
        what = f"nothing in the directory is of the form {form}" if form else "a directory that is no list"
        raise UsageError(
            f"{name}: cannot be read ({what})",
            hint="a home of cPanel, a directory of such homes, USER@DOMAIN/LABEL.mbox",
        )
    if len(found) > 1:
        raise UsageError(f"{name}: may be any of {', '.join(found)}", hint="say which with --list-format NAME")
    read = _cpanel if found[0] == "cpanel" else _mbox_tree
    return BY_NAME[found[0]], (), lambda: read(path)


def _detect(path: str) -> list[str]:
    found = []
    if _is_home(path) or any(_is_home(os.path.join(path, each)) for each in _directories(path)):
        found.append("cpanel")
    if any("@" in each for each in _directories(path)):
        found.append("mbox-tree")
    return found


def _directories(path: str) -> list[str]:
    """Names of directories in `path`, sorted; no link is followed."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _is_home(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, "etc", each, "passwd")) for each in _directories(f"{path}/etc"))


def _cpanel(path: str) -> Generator[Item, None, None]:
    if _is_home(path):
        yield from _home(path)
        return
    for each in _directories(path):
        if _is_home(os.path.join(path, each)):
            yield from _home(os.path.join(path, each))


def _home(home: str) -> Generator[Item, None, None]:
    """The mailboxes of one account, the default one first: mail to the account itself lies beside the domains."""
    account = os.path.basename(home)
    if account == "homedir":  # of a backup
        account = re.sub(r"^(?:cpmove|backup)-(?:.*_)?", "", os.path.basename(os.path.dirname(home)))
    if kind := _kind(f"{home}/mail"):
        yield UserRow(user=account, cells={"source": f"{kind}:{as_path(f'{home}/mail')}"})
        if linked := _links(f"{home}/mail"):
            what = f"links to mailboxes that are users of their own fail {account}: {_some(linked)}"
            yield Note(f"{what} (leave them out with --exclude '*@*', where no folder has an @)")
    elif os.path.isdir(f"{home}/mail"):
        yield Note(f"{account}: no mail in the default mailbox {home}/mail")
    for domain in _directories(f"{home}/etc"):
        passwd = f"{home}/etc/{domain}/passwd"
        if not os.path.isfile(passwd):
            continue
        names = set()
        with open(passwd, encoding="utf-8", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.startswith("#"):
                    row = _mailbox(home, domain, number, line.rstrip("\r\n"))
                    names.add(line.partition(":")[0])
                    yield row if isinstance(row, UserRow) else Wrong(number, f"{passwd}: {row}")
        for other in _directories(f"{home}/mail/{domain}"):
            if other not in names and _kind(f"{home}/mail/{domain}/{other}"):
                yield Note(f"{home}/mail/{domain}/{other} is not in {passwd}: left out")


def _mailbox(home: str, domain: str, number: int, line: str) -> UserRow | str:
    name, *fields = line.split(":")
    if len(fields) < 5 or not name or "/" in name or name in (".", "..") or not line.isprintable():
        return f"line {number} is none of a passwd file"
    mail = f"{home}/mail/{domain}/{name}"
    kind = _kind(mail)
    if not kind:
        return f"{name}: there is no mail at {mail}"
    cells = {"source": f"{kind}:{as_path(mail)}"}
    cells |= {
        key: number for key, number in zip(("mail_uid", "mail_gid"), fields[1:3], strict=True) if _ID.fullmatch(number)
    }
    return UserRow(user=f"{name}@{domain}", cells=cells, line=number)


def _kind(path: str) -> str:
    """`maildir`, `mdbox` or `sdbox`; "" for what is none of them."""
    within = set(_directories(path))
    if "mailboxes" in within:
        return "mdbox" if "storage" in within else "sdbox"
    return "maildir" if within & {"cur", "new"} else ""


def _links(path: str) -> list[str]:
    """cPanel links each mailbox into the default one, as `.name@domain_org`."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if "@" in entry.name and entry.is_symlink())
    except OSError:
        return []


def _mbox_tree(path: str) -> Generator[Item, None, None]:
    others = []
    for name in _directories(path):
        if not name.isprintable():
            yield Wrong(0, f"{path}: a directory whose name cannot be shown: {name!r}")
        elif "@" in name:
            yield UserRow(user=name, cells={"source": f"mbox:{as_path(os.path.join(path, name))}:SUFFIX=.mbox"})
        else:
            others.append(name)
    if others:
        yield Note(f"directories that are no USER@DOMAIN are left out: {_some(others)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
