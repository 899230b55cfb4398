"""Children by the rights that they have, and the process that makes them. Blocks: use it in a worker thread.

Pool.session(rights) ──▶ Child ── a socket of a new pair ──▶ its process
      └── none, or ended: Server ── fork ──▶ a new one
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from aimport.errors import Unavailable
from aimport.model import Rights
from aimport.stores.rights import wire

KEPT: Final = 4  # arbitrary: children without a session that wait for another user of theirs
PASSED_ON: Final = frozenset({"PATH", "PYTHONPATH", "TZ", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE"})
"""Of the environment: the rest may hold secrets."""


class Pool:
    """All children of a run."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._server: _Server | None = None
        self._children: OrderedDict[Rights, Child] = OrderedDict()
        """The one whose last session ended first, first."""

    def session(self, rights: Rights) -> tuple[Child, socket.socket]:
        """A socket to a child with these rights, which opens a store there.

        Raises:
            AccessRefused: such rights are not to be had.
            Unavailable: no child could be made.
        """
        with self._turn:
            child = self._children.get(rights)
            sock = child.session() if child is not None and not child.ended else None
            if child is None or sock is None:
                if child is not None:
                    self._forget(child)
                child = Child(rights, self._forked(rights))
                sock = child.session()
                if sock is None:
                    child.close()
                    raise Unavailable(f"the process with the rights of uid {rights.uid} ended as soon as it was made")
                self._children[rights] = child
            child.sessions += 1
            return child, sock

    def leave(self, child: Child) -> None:
        """A session of that child has ended."""
        with self._turn:
            child.sessions -= 1
            if self._children.get(child.rights) is not child:
                return  # it has ended, and another one has its place
            self._children.move_to_end(child.rights)
            idle = [each for each in self._children.values() if not each.sessions]
            for each in idle[: max(0, len(idle) - KEPT)]:
                self._forget(each)

    def close(self) -> None:
        """Ends all of them, once their sessions have."""
        with self._turn:
            for child in list(self._children.values()):
                self._forget(child)
            if self._server is not None:
                self._server.close()
                self._server = None

    def _forget(self, child: Child) -> None:
        del self._children[child.rights]
        child.close()

    def _forked(self, rights: Rights) -> socket.socket:
        for _ in range(2):
            if self._server is None:
                self._server = _Server()
            try:
                control = self._server.fork(rights)
            except OSError:  # somebody has ended it
                control = None
            if control is not None:
                return control
            self._server.close()
            self._server = None
        raise Unavailable(
            f"no process with the rights of uid {rights.uid} can be started", hint="see the limits of processes"
        )


class Child:
    """One process with the rights of a user."""

    def __init__(self, rights: Rights, control: socket.socket) -> None:
        self.rights = rights
        self.sessions = 0
        self.ended = False
        """One of its sessions has seen it: its other sockets may take a moment longer."""
        self._control = control

    def session(self) -> socket.socket | None:
        """A socket for a new session; None: the process has ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                wire.send(self._control, b"", [theirs.fileno()])
            except OSError:
                ours.close()
                return None
        return ours

    def close(self) -> None:
        self._control.close()


class _Server:
    """The process that forks (`aimport.stores.rights.server`)."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            # -P: a file in the directory where somebody stands is no module of ours.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "aimport.stores.rights.server", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name in PASSED_ON},
                start_new_session=True,
            )
        self._finalizer = weakref.finalize(self, _end, self._control, self._process)

    def fork(self, rights: Rights) -> socket.socket | None:
        """The socket of a child that has these rights; None: none could be made.

        Raises:
            AccessRefused
            OSError: the server is gone.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                wire.send(self._control, pickle.dumps(rights), [theirs.fileno()])
            frame = wire.receive(ours)
            if frame is None:
                ours.close()
                return None
            answer = wire.decode(frame[0]).answer
            if isinstance(answer, wire.Failed):
                raise wire.error_of(answer)
            return ours
        except BaseException:
            ours.close()
            raise

    def close(self) -> None:
        self._finalizer()


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)  # it has nothing to do but to see that its socket ended
