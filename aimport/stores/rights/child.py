"""The process that has a user's rights: it takes them on, then serves sessions of local stores until nobody wants any.

    server ── fork ──▶ `run`: setgroups, setgid, setuid ──▶ Ready ──▶ a socket a session ──▶ `_Session`

The rights are taken before anything of the user's is touched, and there is no way back. A session answers one question
after the other; when its socket is closed while it works it is cancelled, and says that it has ended by closing too.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import resource
import socket
import traceback
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Final, NoReturn

import anyio
from anyio import to_thread

from aimport.errors import AccessRefused, AimportError, ConnectionLost
from aimport.interfaces import DestinationSession, Settled, SourceSession
from aimport.model import (
    Batch,
    Endpoint,
    Mailbox,
    Message,
    MessageKey,
    Order,
    Places,
    Position,
    Rights,
    Selection,
    Wanted,
)
from aimport.query.facts import Fact, Facts
from aimport.query.terms import Term
from aimport.standing import Inspecting, Standing
from aimport.stores import Fsync, Stores
from aimport.stores.lazy import Measured
from aimport.stores.rights import wire

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The first question of a session: what is to be opened, and how."""

    endpoint: Endpoint
    destination: bool
    fsync: Fsync
    link: bool
    salvage: bool
    level: int
    """Of what is worth logging."""


def run(control: socket.socket, rights: Rights) -> NoReturn:
    """Takes on `rights` and serves sessions until `control` ends. Never returns."""
    code = 1
    try:
        try:
            take_on(rights)
        except (OSError, AimportError) as error:
            text = f"uid {rights.uid}, gid {rights.gid} cannot be taken on: {error}"
            refused = AccessRefused(text, hint="the run needs CAP_SETUID and CAP_SETGID")
            wire.send(control, wire.encode(wire.Reply(wire.failed(refused), [])))
        else:
            wire.send(control, wire.encode(wire.Reply(wire.Ready(), [])))
            anyio.run(_Child(control).serve)
        code = 0
    except BrokenPipeError:
        code = 0  # nobody listens any more
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def take_on(rights: Rights) -> None:
    """Makes these the rights of this process, for good.

    Raises:
        OSError: it may not.
        AccessRefused: it has others, or could take back what it had.
    """
    os.umask(0o077)
    os.chdir("/")
    os.setgroups(rights.groups)
    os.setresgid(rights.gid, rights.gid, rights.gid)
    os.setresuid(rights.uid, rights.uid, rights.uid)
    if (
        os.getresuid() != (rights.uid,) * 3
        or os.getresgid() != (rights.gid,) * 3
        or set(os.getgroups()) != set(rights.groups)
    ):
        raise AccessRefused("the kernel gave other rights")
    if rights.uid:
        with suppress(PermissionError):
            os.setresuid(0, 0, 0)
            raise AccessRefused("the way back is open")
    # Not even a process of the same user may look into this one, and nothing that it starts gets more rights.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hasattr(os, "pidfd_open"):  # Linux
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


class _Child:
    """All sessions of this process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self.selections: dict[int, Selection] = {}
        """Of every session: lanes read what another has selected."""
        self.number = 0

    async def serve(self) -> None:
        async with anyio.create_task_group() as sessions:
            while True:
                await anyio.wait_readable(self._control)
                frame = await to_thread.run_sync(_frame, self._control)
                if frame is None:
                    break
                for fd in frame[1]:
                    sessions.start_soon(self._session, socket.socket(fileno=fd))
            sessions.cancel_scope.cancel()

    async def _session(self, sock: socket.socket) -> None:
        with sock:
            session = _Session(self, sock)
            try:
                await session.serve()
            except OSError:
                return  # the other side is gone
            finally:
                for number in session.own:
                    del self.selections[number]


def _frame(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """A frame; also None where the other side ended within one."""
    try:
        return wire.receive(sock)
    except ConnectionResetError:
        return None


class _Told(logging.Handler):
    """Keeps what is logged until the next answer takes it along."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[wire.Told] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(wire.Told(record.name, record.levelno, record.getMessage()))


_TOLD: Final = _Told(logging.NOTSET)


class _Session:
    """One session of a store, question by question."""

    def __init__(self, child: _Child, sock: socket.socket) -> None:
        self._child = child
        self._sock = sock
        self.own: list[int] = []
        """Numbers of the selections made here."""
        self._source: SourceSession | None = None
        self._destination: DestinationSession | None = None
        self._reading = AsyncExitStack()
        self._stream: AsyncGenerator[wire.Answer, None] | None = None
        self._descriptors: list[int] = []
        """Of large bodies in the answer, which keep them until it is sent."""
        self._bodies: list[Message] = []

    async def serve(self) -> None:
        async with AsyncExitStack() as stack:
            while (question := await self._ask()) is not None:
                payload, descriptors = question
                try:
                    answer = await self._watched(payload, descriptors, stack)
                finally:
                    wire.close_all(descriptors)
                if answer is None:
                    return
                await to_thread.run_sync(self._send, answer)

    async def _ask(self) -> tuple[bytes, list[int]] | None:
        await anyio.wait_readable(self._sock)
        return await to_thread.run_sync(_frame, self._sock)

    def _send(self, answer: wire.Answer) -> None:
        try:
            told, _TOLD.lines = _TOLD.lines, []
            wire.send(self._sock, wire.encode(wire.Reply(answer, told)), self._descriptors)
        finally:
            self._descriptors = []
            for message in self._bodies:
                if not isinstance(message.body, bytes):
                    message.body.close()
            self._bodies = []

    async def _watched(self, payload: bytes, descriptors: Sequence[int], stack: AsyncExitStack) -> wire.Answer | None:
        """The answer to one question; None: who asked has gone meanwhile."""
        answer: wire.Answer | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, tasks.cancel_scope)
            try:
                answer = await self._answer(payload, descriptors, stack)
            except AimportError as error:
                answer = wire.failed(error)
            except Exception as error:  # a bug of ours: told as such, and it ends its user there
                answer = wire.Broken(type(error).__name__, "".join(traceback.format_exception(error)))
            tasks.cancel_scope.cancel()
        return answer

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Nobody asks before he has his answer: what can be read is the end."""
        await anyio.wait_readable(self._sock)
        scope.cancel()

    async def _answer(self, payload: bytes, descriptors: Sequence[int], stack: AsyncExitStack) -> wire.Answer:
        verb, *arguments = await to_thread.run_sync(pickle.loads, payload)  # from who has more rights than we
        match verb:
            case "open":
                [opening] = arguments
                return await self._open(opening, stack)
            case "append":
                mailbox, batch, large = arguments
                return await self._append(mailbox, batch, large, descriptors)
        act: Callable[..., Awaitable[wire.Answer]] = getattr(self, f"_do_{verb}")
        return await act(*arguments)

    async def _open(self, opening: Opening, stack: AsyncExitStack) -> wire.Answer:
        _log_from(opening.level)
        stores = Stores(fsync=opening.fsync, link=opening.link, salvage=opening.salvage)
        stack.push_async_callback(self._close_stream)
        if not opening.destination:
            self._source = await stack.enter_async_context(stores.source(opening.endpoint).open())
            return wire.Opened("", False)
        self._destination = await stack.enter_async_context(stores.destination(opening.endpoint).open())
        return wire.Opened(self._destination.separator, self._destination.folds_case)

    @property
    def _reader(self) -> SourceSession:
        assert self._source is not None, "a source, or a destination that is being read"
        return self._source

    @property
    def _writer(self) -> DestinationSession:
        assert self._destination is not None, "a destination"
        return self._destination

    async def _do_list(self) -> wire.Answer:
        return wire.Listed(list(await (self._source or self._writer).list_mailboxes()))

    async def _do_select(self, mailbox: Mailbox, term: Term, order: Order) -> wire.Answer:
        selection = await self._reader.select(mailbox, term, order)
        child = self._child
        child.number += 1
        number = child.number  # other sessions select while this one waits
        child.selections[number] = selection
        self.own.append(number)
        keys, ends = await to_thread.run_sync(wire.packed, selection.keys)
        sizes = None if isinstance(selection.sizes, Measured) else array("Q", selection.sizes).tobytes()
        return wire.Selected(number, keys, ends, sizes, selection.unlisted, selection.notes, selection.position)

    def _selection(self, number: int) -> Selection:
        if number not in self._child.selections:
            raise ConnectionLost("the process that selected the messages has ended")
        return self._child.selections[number]

    async def _do_sizes(self, number: int) -> wire.Answer:
        sizes = self._selection(number).sizes
        return wire.Numbers(await to_thread.run_sync(lambda: array("Q", sizes).tobytes()))

    async def _do_messages(self, number: int, skipped: Sequence[int]) -> wire.Answer:
        selection = self._selection(number)
        await self._close_stream()
        keys = selection.keys
        self._stream = self._lists(selection, frozenset([keys[place] for place in skipped]))
        return wire.Done()

    async def _lists(self, selection: Selection, skip: frozenset[MessageKey]) -> AsyncGenerator[wire.Answer, None]:
        lists = self._reader.messages(selection, skip=skip)
        try:
            async for items in lists:
                self._bodies += [
                    item for item in items if isinstance(item, Message) and not isinstance(item.body, bytes)
                ]
                yield wire.Read([wire.read_of(item, self._descriptors) for item in items])
        finally:
            await lists.aclose()

    async def _do_look(self, number: int, places: Sequence[int], facts: int) -> wire.Answer:
        selection = self._selection(number)
        await self._close_stream()
        self._stream = self._facts(selection, places, Fact(facts))
        return wire.Done()

    async def _facts(
        self, selection: Selection, places: Sequence[int], facts: Fact
    ) -> AsyncGenerator[wire.Answer, None]:
        batches: AsyncGenerator[Facts] = self._reader.look(selection, places, facts)
        try:
            async for batch in batches:
                yield wire.seen_of(batch)
        finally:
            await batches.aclose()

    async def _do_next(self) -> wire.Answer:
        if self._stream is None:
            return wire.Done()
        answer = await anext(self._stream, None)
        if answer is None:
            self._stream = None
            return wire.Done()
        return answer

    async def _do_stop(self) -> wire.Answer:
        await self._close_stream()
        return wire.Done()

    async def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    async def _do_create(self, mailbox: Mailbox, subscribe: bool) -> wire.Answer:
        await self._writer.create_mailbox(mailbox, subscribe=subscribe)
        return wire.Done()

    async def _append(
        self,
        mailbox: Mailbox,
        batch: Batch,
        large: dict[int, wire.OpenFile | wire.OpenSpan],
        descriptors: Sequence[int],
    ) -> wire.Answer:
        """`large`: bodies that came as open files, by their index in the batch."""
        messages = list(batch.messages)
        bodies = []
        try:
            for index, described in large.items():
                body = wire.body_of(described, descriptors)
                bodies.append(body)
                messages[index] = replace(messages[index], body=body)
            appending = await self._writer.append(mailbox, replace(batch, messages=tuple(messages)))
            ended = [wire.ended_of(outcome) for outcome in await appending.outcomes()]
            assert isinstance(appending, Settled), "a local store has its answer at once"
            return wire.Outcomes(ended, appending.sync_s, appending.turn_s)
        finally:
            for body in bodies:
                if not isinstance(body, bytes):
                    body.close()

    async def _do_position(self, mailbox: Mailbox) -> wire.Answer:
        return wire.Stands(await self._writer.position(mailbox))

    async def _do_find(self, mailbox: Mailbox, wanted: Sequence[Wanted], since: Position) -> wire.Answer:
        return wire.found_of(await self._writer.find(mailbox, wanted, since))

    async def _do_inspect(self, targets: Sequence[Mailbox]) -> wire.Answer:
        session: object = self._source or self._destination
        standing = await session.inspect(targets) if isinstance(session, Inspecting) else Standing()
        return wire.Stood(standing.volume, [wire.failed(error) for error in standing.problems], standing.notes)

    async def _do_survey(self, mailbox: Mailbox, since: Position, sizes: bool) -> wire.Answer:
        survey = await self._writer.survey(mailbox, since, sizes=sizes)
        if survey is None:
            return wire.Done()
        assert isinstance(survey.at, Places), "a local store knows its messages by name"
        places = survey.at.found
        keys, ends = wire.packed(survey.keys)
        if not sizes:
            return wire.Surveyed(keys, ends, b"", b"", dict(places))
        columns = array("Q", survey.sizes).tobytes(), array("q", survey.dates).tobytes()
        return wire.Surveyed(keys, ends, *columns, dict(places))

    async def _do_read(self, mailbox: Mailbox) -> wire.Answer:
        self._source, there = await self._reading.enter_async_context(self._writer.reading(mailbox))
        return wire.Listed([there])

    async def _do_leave(self) -> wire.Answer:
        await self._close_stream()
        self._source = None
        await self._reading.aclose()
        return wire.Done()


def _log_from(level: int) -> None:
    root = logging.getLogger()
    root.setLevel(level)
    if _TOLD not in root.handlers:
        root.addHandler(_TOLD)
