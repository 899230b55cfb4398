"""Whether a local destination could be written, looked at without writing: rights, what is in the way, free space.

    inspected(root, targets) ─▶ Standing: the first obstacle of the account or of each mailbox, and its Volume

The nearest directory that is there decides: what is missing below it would be made in it. What root may do is not
what a file server lets it do (root_squash): that only a write shows.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence

from aimport.errors import AccessRefused, AimportError, DestinationFull, MailboxError, MailboxNameInvalid, UserError
from aimport.model import Mailbox
from aimport.standing import Standing, Volume


def inspected(
    root: str, targets: Sequence[Mailbox], places: Callable[[Mailbox], Sequence[str]], *, file_each: bool
) -> Standing:
    """How the account at `root` stands. Blocks.

    `places`: the paths that an import writes to for a mailbox, directories where each message is a file of its own
    (`file_each`), else files.
    """
    volume, wide = volume_of(root, file_each=file_each)
    if wide is not None:
        return Standing(volume=volume, problems=(wide,))
    problems: list[AimportError] = []
    for mailbox in targets:
        try:
            found = next(filter(None, (_obstacle(path, root, is_file=not file_each) for path in places(mailbox))), None)
        except MailboxNameInvalid as error:
            problems.append(error)
            continue
        if found is not None:
            problems.append(MailboxError(f"{mailbox.name}: {found.text}", hint=found.hint))
    return Standing(volume=volume, problems=tuple(problems))


def volume_of(root: str, *, file_each: bool) -> tuple[Volume | None, AimportError | None]:
    """The file system of an account, and what would keep us from writing there at all. Blocks."""
    if os.path.islink(root):
        return None, AccessRefused(f"{root} is a symbolic link", hint="give the path that it points to")
    error = _obstacle(root, root, is_file=not file_each)
    try:
        there = _nearest(root)
        status, room = os.stat(there), os.statvfs(there)
    except OSError as failed:
        return None, error or AccessRefused(f"{root}: {failed.strerror or failed}")
    blocks = room.f_bfree if os.geteuid() == 0 else room.f_bavail
    volume = Volume(
        device=status.st_dev,
        path=there,
        free_octets=blocks * room.f_frsize,
        free_files=(room.f_ffree if os.geteuid() == 0 else room.f_favail) if room.f_files else None,
        block_octets=room.f_frsize,
        file_each=file_each,
    )
    return volume, error


def _nearest(path: str) -> str:
    """The lowest part of `path` that is there.

    Raises:
        OSError: it cannot be looked for.
    """
    while True:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):  # the latter: one of those above is a file
            path = os.path.dirname(path.rstrip("/")) or "/"
        else:
            return path


def _obstacle(path: str, root: str, *, is_file: bool) -> AimportError | None:
    """What writing to `path` would fail with: a file, or a directory in which files are made."""
    try:
        there = _nearest(path)
        below = there == root or there.startswith(f"{root}/")
        status = os.lstat(there) if below else os.stat(there)
    except OSError as error:
        return AccessRefused(f"{path}: {error.strerror or error}")
    if stat.S_ISLNK(status.st_mode):
        return UserError(f"{there} is a symbolic link; they are not followed")
    if is_file and there == path and not stat.S_ISDIR(status.st_mode):
        if not stat.S_ISREG(status.st_mode):
            return UserError(f"{there} is no regular file")
        return _refusal(there, os.W_OK | os.R_OK)
    if is_file and there == path and path != root:
        return UserError(f"{there} is a directory: a mailbox has no others below it")
    if not stat.S_ISDIR(status.st_mode):
        return UserError(f"{there} is no directory, and one is needed there")
    return _refusal(there, os.W_OK | os.X_OK)


def _refusal(path: str, wanted: int) -> AimportError | None:
    if os.access(path, wanted, effective_ids=os.access in os.supports_effective_ids):
        return None
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return DestinationFull(f"{path}: {os.strerror(errno.EROFS)}")
    return AccessRefused(f"{path}: no permission to write", hint="change its owner or rights, or run as its owner")
