"""Whose rights a user's local files are opened and made with: `mail_uid` and `mail_gid`.

    mail_uid, mail_gid ── name, number, owner ──▶ checked ──▶ Rights, or None: those of this process

What the administrator wrote is obeyed; what comes from a user list, from a file's owner or from a variable may not be
root or a user of the system. `owner` is only believed of a path on which no symbolic link was laid by anybody but root:
whoever may write a directory on it could lead us to the mail of another user, and have it read with that one's rights.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from typing import Final, Literal

from aimport.config import Settings
from aimport.errors import AccessRefused, AimportError, ConfigurationError, SourceMissing, UserError
from aimport.model import Endpoint, Rights
from aimport.variables import Variables, expand

OWNER: Final = "owner"
_LINKS: Final = 40  # as the kernel
_LOOK: Final = os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)

Setting = Literal["mail_uid", "mail_gid"]


def with_rights(
    endpoint: Endpoint, source: Endpoint, settings: Settings, variables: Variables, listed: Collection[str]
) -> Rights | None:
    """The rights of the files of `endpoint`, whose user these settings and variables are.

    `source`: whose owner is meant by `owner`. `listed`: settings that come from the user's row of a list.

    Raises:
        ConfigurationError: the settings are wrong for every user.
        UserError, AccessRefused, SourceMissing: they are for this one.
    """
    if endpoint.remote or endpoint.scheme == "memory" or not (settings.mail_uid or settings.mail_gid):
        return None
    uid, gid = (_Asked(setting, source, settings, variables, listed) for setting in ("mail_uid", "mail_gid"))
    wanted = _rights(uid, gid)
    if (wanted.uid, wanted.gid) == (os.geteuid(), os.getegid()):
        return None
    if os.geteuid() != 0:
        wrong = uid if wanted.uid != os.geteuid() else gid
        raise wrong.error(
            f"this process has uid {os.geteuid()} and gid {os.getegid()}, not {wanted.uid} and {wanted.gid}",
            hint="only root can take on the rights of another user",
        )
    return wanted


def named_id(setting: Setting, text: str) -> int | None:
    """The number of a user or group by its name or number; None: the system does not know the name."""
    if text.isascii() and text.isdecimal():
        return int(text)
    import grp
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid if setting == "mail_uid" else grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        return None


class _Asked:
    """One of the two settings for one user: what it says, and who says so."""

    def __init__(
        self, setting: Setting, source: Endpoint, settings: Settings, variables: Variables, listed: Collection[str]
    ) -> None:
        written = settings.mail_uid if setting == "mail_uid" else settings.mail_gid
        self.setting: Setting = setting
        self.text = expand(written, variables)
        self._user = variables.user
        self._of_user = setting in listed or self.text != written
        self._first = settings.first_valid_uid
        self._source = source

    def number(self) -> int:
        """What it stands for.

        Raises:
            AimportError: nothing, or what it may not.
        """
        if self.text == OWNER:
            status = owner_of(self._source)
            found = status.st_uid if self.setting == "mail_uid" else status.st_gid
            self.check(found, f"of the owner of {self._source.path}")
            return found
        known = named_id(self.setting, self.text)
        if known is None:
            raise self.error(f"the system does not know {self.text!r}")
        if known >= 1 << 32:
            raise self.error(f"{self.text} is too large")
        if self._of_user:
            self.check(known, "from a user list or a variable")
        return known

    def check(self, number: int, whence: str) -> None:
        """Refuses root and the system's own users and groups.

        Raises:
            UserError
        """
        if number == 0 or number < self._first:
            raise UserError(
                f"user {self._user!r}: {self.setting} {number} {whence} is refused",
                hint=f"it must be {max(self._first, 1)} (first_valid_uid) or more",
            )

    def error(self, text: str, *, hint: str = "") -> AimportError:
        if self._of_user:
            return AccessRefused(f"user {self._user!r}: {self.setting}: {text}", hint=hint)
        return ConfigurationError(f"{self.setting}: {text}", hint=hint)


def _rights(uid: _Asked, gid: _Asked) -> Rights:
    """Both in numbers. Without `mail_gid` the group is the user's own, never one of root's."""
    import pwd

    user = uid.number() if uid.text else os.geteuid()
    named = uid.text if uid.text != OWNER and not uid.text.isdecimal() else ""
    if gid.text:
        group = gid.number()
    elif user == os.geteuid():
        group = os.getegid()
    else:
        try:
            group = pwd.getpwuid(user).pw_gid
        except KeyError:
            group = user  # nobody's, as a rule: the number of a user's private group
    groups = {group, *os.getgrouplist(named, group)} if named else {group}
    return Rights(uid=user, gid=group, groups=tuple(sorted(groups)))


def owner_of(source: Endpoint) -> os.stat_result:
    """The status of a source's directory or file.

    Raises:
        ConfigurationError: the source is no file.
        SourceMissing: there is none.
        AccessRefused: a symbolic link on the way is not root's.
    """
    if source.remote or not source.path:
        raise ConfigurationError(
            f"{source.scheme}: a source that is no file has no owner", hint="write a name or a number"
        )
    at = os.open("/", _LOOK | os.O_DIRECTORY)
    steps = source.path.strip("/").split("/")
    links = 0
    try:
        while steps:
            step = steps.pop(0)
            if step in ("", "."):
                continue
            below = os.open(step, _LOOK, dir_fd=at)
            status = os.fstat(below)
            if not stat.S_ISLNK(status.st_mode) or not steps:
                os.close(at)
                at = below
                continue
            target = os.readlink("", dir_fd=below)  # of the link that was looked at, whatever has its name by now
            os.close(below)
            links += 1
            if status.st_uid != 0 or links > _LINKS:
                raise AccessRefused(
                    f"{source.path}: {step} is a symbolic link of uid {status.st_uid}, so whose it is cannot be told",
                    hint="give the path that it points to, or write mail_uid for this user",
                )
            if target.startswith("/"):
                os.close(at)
                at = os.open("/", _LOOK | os.O_DIRECTORY)
            steps[:0] = target.strip("/").split("/")
        return os.fstat(at)
    except OSError as error:
        raise SourceMissing(f"{source.path}: {error.strerror}; its owner is not known") from error
    finally:
        os.close(at)
