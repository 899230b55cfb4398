"""`python -m aimport.stores.rights.server FD`: forks a child for each set of rights that is asked for.

A process of its own, begun before a thread or a secret of the run is in it: what a child inherits is this, and it is
safe to fork because it has one thread. It ends when its socket does, and so do its children by theirs.

All that a child may ever import is imported here: with a user's rights it may not be readable (Python below /root).
"""

from __future__ import annotations

import encodings
import importlib
import os
import pickle
import pkgutil
import signal
import socket
import sys
from contextlib import suppress
from typing import Final

from aimport.stores.rights import child, wire

NEEDED: Final = (
    *("asyncio", "concurrent.futures.thread", "anyio._backends._asyncio", "bz2", "gzip", "lzma"),
    *(f"aimport.stores.{name}" for name in ("auto", "dbox", "loose", "maildir", "mbox")),
)
UNHEARD: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The run decides when it ends, and its sockets tell."""


def main(fd: int) -> None:
    """Serves the socket with this number until it ends."""
    for number in UNHEARD:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children: their sockets tell
    for name in NEEDED:
        importlib.import_module(name)
    for codec in pkgutil.iter_modules(encodings.__path__):  # mail comes in any of them
        with suppress(ImportError):  # of another system
            importlib.import_module(f"encodings.{codec.name}")
    with socket.socket(fileno=fd) as control, suppress(ConnectionResetError):
        while (frame := wire.receive(control)) is not None:
            payload, descriptors = frame
            rights = pickle.loads(payload)
            with socket.socket(fileno=descriptors[0]) as theirs, suppress(OSError):  # no fork: the socket says so
                if os.fork() == 0:
                    control.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    child.run(theirs, rights)


if __name__ == "__main__":
    main(int(sys.argv[1]))
