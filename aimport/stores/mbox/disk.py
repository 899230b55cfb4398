"""Files of an mbox store, for worker threads: found without following links."""

from __future__ import annotations

import errno
import os
import stat

from aimport.errors import AccessRefused, SourceMissing
from aimport.stores import files
from aimport.stores.content import regular
from aimport.stores.mbox.names import Layout


def open_root(layout: Layout) -> int:
    """The location's root, a directory or a single file.

    Raises:
        SourceMissing, AccessRefused
    """
    try:
        fd = os.open(layout.root, files.FILE)
    except OSError as error:
        if os.path.islink(layout.root):
            text = f"{layout.root} is a symbolic link"
            raise AccessRefused(text, hint="give the path that it points to") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise SourceMissing(f"{layout.root}: {error.strerror}") from error
        raise files.translated(error, layout.root, wide=True) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        os.close(fd)
        raise AccessRefused(f"{layout.root} is neither a file nor a directory")
    return fd


def open_mbox(layout: Layout, steps: tuple[str, ...]) -> int:
    """The file of a mailbox.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        SourceMissing, AccessRefused: the root.
    """
    if not steps and layout.inbox:
        return regular(os.open(layout.inbox, files.FILE))
    fd = open_root(layout)
    way = (*filter(None, layout.mailboxdir.split("/")), *steps, *filter(None, (layout.dirname,))) if steps else ()
    for number, step in enumerate(way, 1):
        above = fd
        try:
            name = files.on_disk(step, above)
            fd = files.open_file(name, above) if number == len(way) else os.open(name, files.DIRECTORY, dir_fd=above)
        finally:
            os.close(above)
    return regular(fd)
