"""IMAP on the pipes of a program: `tunnel:doveadm exec imap -u bob`, `tunnel:ssh host ...`.

    Tunnel (an asyncio.Transport) ── write ──▶ pipe ──▶ stdin  ┐
                                  ◀── read ─── pipe ◀── stdout ├ the child, in a session of its own
                                  (last lines) pipe ◀── stderr ┘

Pipes, since Dovecot as root refuses to speak on the sockets that asyncio and uvloop give a child.
Descriptors are watched with `add_reader` and `add_writer` and belong to this module alone: uvloop's
pipe transports close theirs twice, and between the two another thread may have opened a file of
that number. `connection_lost` comes when the child was reaped: who has seen it knows that the
other end has finished what it had received. Knows nothing of IMAP.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from typing import Final

import anyio

from aimport.errors import AimportError, ConnectionLost, UserError
from aimport.imap.answers import clean

EXIT_S: Final = 2.0
"""How long a child may take to end when its input has ended; then SIGTERM."""
TERM_S: Final = 1.0
"""How long it may take after SIGTERM; then SIGKILL. Both together stay below `Deadlines.close_s`."""
LINGER_S: Final = 0.2
"""How long its output is still read when it has ended and another process holds the pipe."""
POLL_S: Final = (0.001, 0.05)
"""Shortest and longest pause between two looks whether an ending child has ended. Only Linux could tell without one."""
READ_OCTETS: Final = 256 * 1024
WRITE_BUFFERS: Final = 64  # arbitrary, below IOV_MAX
STDERR_OCTETS: Final = 4096
STDERR_LINES: Final = 3
TEMPORARY: Final = frozenset({75, 255})  # EX_TEMPFAIL; ssh when it cannot connect
TEMPORARY_ERRNO: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})

Buffer = bytes | bytearray | memoryview


class CommandEnded(ConnectionError):
    """The program ended without being asked to. `status` is negative for a signal."""

    def __init__(self, status: int, said: str) -> None:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__(f"the command {how}" + (f": {said}" if said else ""))
        self.status = status

    def before_greeting(self, where: str) -> AimportError:
        """What it means when no server was heard. Nothing but a status tells whether it helps to try again."""
        kind = ConnectionLost if self.status in TEMPORARY or self.status < 0 else UserError
        return kind(f"{where}: {self}")


class Tunnel(asyncio.Transport):
    """A child's stdin and stdout as one transport."""

    def __init__(self, process: subprocess.Popen[bytes], protocol: asyncio.Protocol, pipes: tuple[int, int, int]):
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._protocol: asyncio.Protocol = protocol
        self._stdin, self._stdout, self._stderr = pipes
        """Our ends; -1: closed."""
        self._unsent: deque[memoryview] = deque()
        self._unsent_octets = 0
        self._high, self._low = 64 * 1024, 16 * 1024
        self._watching = False
        """Waits for room in the pipe to stdin."""
        self._full = False
        """The protocol was told to pause."""
        self._ends = False
        """Nothing more will be written: stdin is closed after what is unsent."""
        self._said = bytearray()
        self._closing = False
        self._asked = False
        """The end is ours, not the child's."""
        self._term_at = self._kill_at = self._quit_at = float("inf")
        self._pause_s = POLL_S[0]
        self._timer: asyncio.Handle | None = None
        self._over = anyio.Event()

    @classmethod
    def open(cls, words: Sequence[str], protocol: asyncio.Protocol, *, where: str) -> Tunnel:
        """Starts the program and connects `protocol` to it. Its environment is ours: ssh needs it.

        Raises:
            UserError: there is no such program, or it may not be run.
            ConnectionLost: this machine has no room for one more now.
        """
        ours: list[int] = []
        with ExitStack() as theirs, ExitStack() as undo:
            try:
                pairs = []
                for _ in range(3):
                    reader, writer = os.pipe()
                    pairs.append((reader, writer))
                    mine, other = (writer, reader) if not ours else (reader, writer)
                    ours.append(mine)
                    undo.callback(os.close, mine)
                    theirs.callback(os.close, other)
                    os.set_blocking(mine, False)
                process = subprocess.Popen(
                    words, stdin=pairs[0][0], stdout=pairs[1][1], stderr=pairs[2][1], start_new_session=True
                )
            except OSError as exc:
                kind = ConnectionLost if exc.errno in TEMPORARY_ERRNO else UserError
                raise kind(f"{where}: the command cannot be run: {exc.strerror}") from exc
            undo.pop_all()
        tunnel = cls(process, protocol, (ours[0], ours[1], ours[2]))
        tunnel._loop.add_reader(tunnel._stderr, tunnel._listen)
        protocol.connection_made(tunnel)
        tunnel.resume_reading()
        return tunnel

    async def wait_closed(self) -> None:
        """Waits until the child was reaped and `connection_lost` called."""
        await self._over.wait()

    @property
    def said(self) -> str:
        """The last lines of its stderr, fit to be shown."""
        lines = [line for line in map(clean, self._said.decode("utf-8", "replace").splitlines()) if line]
        return clean("; ".join(lines[-STDERR_LINES:]))

    # Transport: both directions

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """What is unsent is still sent; the child has `EXIT_S` to end by itself."""
        if not self._closing:
            self._asked = True
            self.write_eof()
            self.resume_reading()  # what it still says is passed over, so that it can end
            self._end(EXIT_S)

    def abort(self) -> None:
        """SIGTERM at once."""
        self._asked = self._asked or not self._closing
        self._drop_stdin()
        self._stdout = self._close(self._stdout)
        self._end(0.0)

    # Transport: reading

    def is_reading(self) -> bool:
        return self._stdout >= 0 and not self._closing

    def pause_reading(self) -> None:
        if self._stdout >= 0:
            self._loop.remove_reader(self._stdout)

    def resume_reading(self) -> None:
        if self._stdout >= 0:
            self._loop.add_reader(self._stdout, self._receive)

    def _receive(self) -> None:
        data = _read(self._stdout)
        if data is None:
            return
        if not data:
            self._stdout = self._close(self._stdout)
            self._drop_stdin()
            self._end(EXIT_S)
        elif not self._asked:
            try:
                self._protocol.data_received(data)
            except BaseException:
                self.abort()
                raise

    def _listen(self) -> None:
        data = _read(self._stderr)
        if data:
            self._said += data
            del self._said[:-STDERR_OCTETS]
        elif data is not None:
            self._stderr = self._close(self._stderr)

    # Transport: writing

    def write(self, data: Buffer) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        if self._stdin < 0 or self._ends:
            return
        for data in list_of_data:
            if len(data):
                self._unsent.append(memoryview(bytes(data) if isinstance(data, bytearray) else data))
                self._unsent_octets += len(data)
        if not self._watching:
            self._send()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._ends = True
        if self._stdin >= 0 and not self._watching:
            self._send()

    def get_write_buffer_size(self) -> int:
        return self._unsent_octets

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low
        self._tell()

    def _send(self) -> None:
        try:
            while self._unsent:
                self._forget(os.writev(self._stdin, list(islice(self._unsent, WRITE_BUFFERS))))
        except BlockingIOError:
            pass
        except OSError:  # it reads no more; what it has to say about that is still to come on stdout
            self._drop_stdin()
            return
        if self._unsent and not self._watching:
            self._watching = True
            self._loop.add_writer(self._stdin, self._send)
        elif not self._unsent and self._watching:
            self._watching = False
            self._loop.remove_writer(self._stdin)
        self._tell()
        if self._ends and not self._unsent:
            self._drop_stdin()

    def _forget(self, octets: int) -> None:
        self._unsent_octets -= octets
        while octets:
            first = self._unsent[0]
            if len(first) > octets:
                self._unsent[0] = first[octets:]
                return
            octets -= len(first)
            self._unsent.popleft()

    def _tell(self) -> None:
        """Flow control. A protocol that was told to pause is told to go on, also when nobody reads any more."""
        if not self._full and self._unsent_octets > self._high:
            self._full = True
            self._protocol.pause_writing()
        elif self._full and self._unsent_octets <= self._low:
            self._full = False
            self._protocol.resume_writing()

    def _drop_stdin(self) -> None:
        if self._stdin < 0:
            return
        if self._watching:
            self._watching = False
            self._loop.remove_writer(self._stdin)
        os.close(self._stdin)
        self._stdin = -1
        self._unsent.clear()
        self._unsent_octets = 0
        self._tell()

    def _close(self, descriptor: int) -> int:
        """Closes one that is read; returns what stands for a closed one."""
        if descriptor >= 0:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        return -1

    # The end of the child

    def _end(self, grace_s: float) -> None:
        self._closing = True
        self._term_at = min(self._term_at, self._loop.time() + grace_s)
        if self._timer is not None:
            self._timer.cancel()
        if not self._over.is_set():
            self._pause_s = POLL_S[0]
            self._timer = self._loop.call_soon(self._look) if not grace_s else self._later()

    def _later(self) -> asyncio.TimerHandle:
        self._pause_s = min(2 * self._pause_s, POLL_S[1])
        return self._loop.call_later(self._pause_s, self._look)

    def _look(self) -> None:
        """One look at a child that is to end."""
        now = self._loop.time()
        running = self._process.returncode is None
        if running and self._process.poll() is not None:
            running, self._quit_at = False, now + LINGER_S
        if not running:
            if self._heard_out() or now >= self._quit_at:
                self._finish()
                return
        elif now >= self._kill_at:
            self._signal(signal.SIGKILL)
        elif now >= self._term_at:
            self._term_at, self._kill_at = float("inf"), now + TERM_S
            self._signal(signal.SIGTERM)
        self._timer = self._later()

    def _heard_out(self) -> bool:
        return self._stdout < 0 and (self._stderr < 0 or self._asked)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # gone, or it runs as another user
            os.killpg(self._process.pid, number)

    def _finish(self) -> None:
        if self._stdout >= 0:
            self._signal(signal.SIGKILL)  # those it started and left behind with our pipe
        self._drop_stdin()
        self._stdout = self._close(self._stdout)
        self._stderr = self._close(self._stderr)
        self._timer = None
        try:
            self._protocol.connection_lost(None if self._asked else CommandEnded(self._process.returncode, self.said))
        finally:
            self._over.set()


def _read(descriptor: int) -> bytes | None:
    """Octets, none at the end, None when there is nothing to read now."""
    try:
        return os.read(descriptor, READ_OCTETS)
    except BlockingIOError:
        return None
    except OSError:
        return b""
