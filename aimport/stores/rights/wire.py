"""What passes between a session and its child: frames with descriptors; questions as pickles, answers as typed values.

    length, descriptors | payload                question: pickle, from who has more rights     answer: msgspec

A child could be made to say anything by who has its rights, so nothing that it says is unpickled: an answer is one of
the types below or the end of the session. No I/O but that of the socket.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final, Literal, TypeVar, get_args, overload

import msgspec

from aimport import errors
from aimport.errors import AimportError, Cause, ConnectionLost, MailboxNotFound
from aimport.model import (
    Appended,
    Body,
    Dated,
    Fingerprint,
    Mailbox,
    Message,
    MessageKey,
    NotStored,
    Original,
    Outcome,
    Position,
    Rejected,
    Stored,
    Uid,
    Unreadable,
)
from aimport.query.facts import Facts
from aimport.spool import FileBody
from aimport.standing import Volume
from aimport.stores import content
from aimport.stores.mbox.headers import Dialect, unquoted

MOST_DESCRIPTORS: Final = 250
"""Of one frame (SCM_MAX_FD is 253)."""
_HEAD: Final = struct.Struct("!QH")
_PIECE: Final = 1 << 20
_MOST_OCTETS: Final = 1 << 32
_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

T = TypeVar("T")


class Told(msgspec.Struct, array_like=True):
    """A line of the log."""

    logger: str
    level: int
    text: str


class OpenFile(msgspec.Struct, array_like=True, tag="file"):
    """`FileBody`: the number of its descriptor among those of the frame."""

    at: int
    name: str
    private: bool
    part: tuple[int, int] | None


class OpenSpan(msgspec.Struct, array_like=True, tag="span"):
    """`content.SpanBody`; `dialect` is that of the From_ lines to be undone, "" none."""

    at: int
    name: str
    head: bytes
    start: int
    stop: int
    size: int
    dialect: str


class ReadMessage(msgspec.Struct, array_like=True, tag="message"):
    """`Message`; its octets are in `body` or in an open file."""

    key: str
    flags: frozenset[str]
    date: str
    body: bytes
    large: OpenFile | OpenSpan | None
    wire: bool
    dated: Dated
    original: tuple[str, int, int, int, int, int, int] | None
    guid: str
    uidl: str
    note: str


class NotRead(msgspec.Struct, array_like=True, tag="unreadable"):
    """`Unreadable`."""

    key: str
    code: str
    text: str


class Failed(msgspec.Struct, array_like=True, tag="failed"):
    """An `AimportError`, by the name of its class."""

    kind: str
    text: str
    hint: str
    code: str
    wait_s: float
    cause: Cause
    named: bool


class Broken(msgspec.Struct, array_like=True, tag="broken"):
    """A bug: what was raised, and its trace."""

    kind: str
    trace: str


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """A child has its rights, and no way back."""


class Done(msgspec.Struct, array_like=True, tag="done"):
    """Nothing to say; of a stream, its end."""


class Opened(msgspec.Struct, array_like=True, tag="opened"):
    """What a session says of itself; the separator and what follows is a destination's."""

    separator: str
    folds_case: bool


class Listed(msgspec.Struct, array_like=True, tag="listed"):
    mailboxes: list[Mailbox]


class Selected(msgspec.Struct, array_like=True, tag="selected"):
    """A selection that stays with the child: its number; its keys behind one another, and where each ends; sizes.

    `sizes` None: files would have to be read for them.
    """

    number: int
    keys: bytes
    ends: bytes
    sizes: bytes | None
    unlisted: int
    notes: tuple[str, ...]
    position: Position | None


class Numbers(msgspec.Struct, array_like=True, tag="numbers"):
    """Unsigned, 64 bits each."""

    octets: bytes


class Read(msgspec.Struct, array_like=True, tag="read"):
    messages: list[ReadMessage | NotRead]


class Seen(msgspec.Struct, array_like=True, tag="seen"):
    """`Facts`: sizes or headers."""

    places: list[int]
    sizes: list[int | None] | None
    headers: list[bytes | None] | None


class Ended(msgspec.Struct, array_like=True):
    """What became of a message: `Appended`, `Rejected` (`refused`) or `NotStored`."""

    key: str
    kind: Literal["appended", "rejected", "not stored"]
    uid: int | None = None
    dropped: tuple[str, ...] = ()
    code: str = ""
    text: str = ""
    cause: Cause = ""
    error: Failed | None = None


class Outcomes(msgspec.Struct, array_like=True, tag="outcomes"):
    """As `Settled`."""

    ended: list[Ended]
    sync_s: float
    turn_s: float


class Stands(msgspec.Struct, array_like=True, tag="stands"):
    position: Position | None


class Found(msgspec.Struct, array_like=True, tag="found"):
    """`Stored`: place in the list of wanted and date of each; what is not known by its name is not found in a file."""

    stored: list[tuple[int, int | None]]


class Stood(msgspec.Struct, array_like=True, tag="stood"):
    """`Standing` of a local account."""

    volume: Volume | None
    problems: list[Failed]
    notes: tuple[str, ...]


class Surveyed(msgspec.Struct, array_like=True, tag="surveyed"):
    """Sizes and dates are empty where nobody asked for them."""

    keys: bytes
    ends: bytes
    sizes: bytes
    dates: bytes
    places: dict[str, int]


Answer = (
    Failed
    | Broken
    | Ready
    | Done
    | Opened
    | Listed
    | Selected
    | Numbers
    | Read
    | Seen
    | Outcomes
    | Stands
    | Found
    | Surveyed
    | Stood
)


class Reply(msgspec.Struct, array_like=True):
    """An answer and what was logged on the way to it."""

    answer: Answer
    told: list[Told]


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Reply)


def send(sock: socket.socket, payload: bytes, descriptors: Sequence[int] = ()) -> None:
    """One frame. Blocks; the descriptors stay the caller's.

    Raises:
        OSError: the other side is gone.
    """
    assert len(descriptors) <= MOST_DESCRIPTORS
    head = _HEAD.pack(len(payload), len(descriptors))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = sock.sendmsg([head], rights)  # the descriptors go with its first octet
    if sent < len(head):
        sock.sendall(head[sent:])
    sock.sendall(payload)


def receive(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next frame; its descriptors are the caller's. None: the other side has ended. Blocks.

    Raises:
        OSError: it ended within a frame.
    """
    descriptors: list[int] = []
    try:
        head = b""
        while len(head) < _HEAD.size:
            data, ancillary, flags, _ = sock.recvmsg(
                _HEAD.size - len(head), socket.CMSG_SPACE(4 * MOST_DESCRIPTORS), _CLOEXEC
            )
            for level, kind, octets in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    got = array.array("i")
                    got.frombytes(octets[: len(octets) // got.itemsize * got.itemsize])
                    descriptors += got
            if not data:
                if head:
                    raise ConnectionResetError(errno.ECONNRESET, "the other side ended within a frame")
                return None
            if flags & socket.MSG_CTRUNC:
                raise OSError(errno.EMFILE, "too many open files: a descriptor was lost on its way")
            head += data
        length, count = _HEAD.unpack(head)
        if length > _MOST_OCTETS or count != len(descriptors):
            raise OSError(errno.EPROTO, "a frame that is none")
        payload = bytearray(length)
        view = memoryview(payload)
        while view:
            got_octets = sock.recv_into(view, min(len(view), _PIECE))
            if not got_octets:
                raise ConnectionResetError(errno.ECONNRESET, "the other side ended within a frame")
            view = view[got_octets:]
        return bytes(payload), descriptors
    except BaseException:
        close_all(descriptors)
        raise


def close_all(descriptors: Sequence[int]) -> None:
    for each in descriptors:
        with suppress(OSError):
            os.close(each)


def encode(reply: Reply) -> bytes:
    return _ENCODER.encode(reply)


def decode(payload: bytes) -> Reply:
    """An answer.

    Raises:
        ConnectionLost: it is none; no further one is believed.
    """
    try:
        return _DECODER.decode(payload)
    except msgspec.DecodeError as error:
        raise ConnectionLost(f"an answer that is none from a process with a user's rights: {error}") from None


def failed(error: AimportError) -> Failed:
    named = isinstance(error, MailboxNotFound) and error.named
    return Failed(type(error).__name__, error.text, error.hint, error.code, error.wait_s, error.cause, named)


_KINDS: Final[Mapping[str, type[AimportError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AimportError)
}


def error_of(failed: Failed) -> AimportError:
    kind = _KINDS.get(failed.kind)
    if kind is None:
        return ConnectionLost(f"an unknown failure of a process with a user's rights: {failed.kind}: {failed.text}")
    error = kind(failed.text, hint=failed.hint, code=failed.code, wait_s=failed.wait_s, cause=failed.cause)
    if isinstance(error, MailboxNotFound):
        error.named = failed.named
    return error


def packed(texts: Sequence[str]) -> tuple[bytes, bytes]:
    """Texts behind one another, and where each ends."""
    octets = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = array.array("Q")
    at = 0
    for each in octets:
        at += len(each)
        ends.append(at)
    return b"".join(octets), ends.tobytes()


class Packed(Sequence[MessageKey]):
    """Keys that are made when they are asked for: a million are their octets and 8 more each.

    Raises:
        ConnectionLost: what was packed is not in order.
    """

    def __init__(self, octets: bytes, ends: bytes) -> None:
        self._octets = octets
        self._ends = _unsigned(ends)
        at = 0
        for end in self._ends:
            if end < at:
                raise ConnectionLost("keys that are not in order from a process with a user's rights")
            at = end
        if at != len(octets):
            raise ConnectionLost("keys without their ends from a process with a user's rights")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> MessageKey: ...
    @overload
    def __getitem__(self, index: slice) -> list[MessageKey]: ...
    def __getitem__(self, index: int | slice) -> MessageKey | list[MessageKey]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        end = self._ends[index]
        start = self._ends[index - 1] if index else 0
        return MessageKey(self._octets[start:end].decode("utf-8", "surrogatepass"))

    def __iter__(self) -> Iterator[MessageKey]:
        at = 0
        for end in self._ends:
            yield MessageKey(self._octets[at:end].decode("utf-8", "surrogatepass"))
            at = end


def _unsigned(octets: bytes) -> array.array[int]:
    if len(octets) % 8:
        raise ConnectionLost("numbers that are none from a process with a user's rights")
    numbers = array.array("Q")
    numbers.frombytes(octets)
    return numbers


def numbers_of(octets: bytes, count: int, *, signed: bool = False) -> array.array[int]:
    """So many numbers.

    Raises:
        ConnectionLost: there are others.
    """
    numbers = _unsigned(octets)
    if len(numbers) != count:
        raise ConnectionLost("too many or too few numbers from a process with a user's rights")
    if not signed:
        return numbers
    signed_numbers = array.array("q")
    signed_numbers.frombytes(octets)
    return signed_numbers


def described(body: Body, descriptors: list[int]) -> OpenFile | OpenSpan | None:
    """What a large body lies in; its descriptor is added to the others, and stays the body's own. None: it is small."""
    if isinstance(body, bytes):
        return None
    at = len(descriptors)
    if isinstance(body, FileBody):
        descriptors.append(body.fileno())
        return OpenFile(at, body.name, body.private, body.part)
    assert isinstance(body, content.SpanBody), "there are two kinds of large bodies"
    dialect = ""
    if body.change is not None:
        assert isinstance(body.change, partial) and body.change.func is unquoted, "From_ lines are all that is changed"
        dialect = body.change.keywords["dialect"]
    descriptors.append(body.fileno())
    return OpenSpan(at, body.name, body.head, body.start, body.stop, len(body), dialect)


def body_of(large: OpenFile | OpenSpan, descriptors: Sequence[int]) -> Body:
    """A large body in the file that came with its description; it has a descriptor of its own.

    Raises:
        OSError: it is no regular file, or none came.
    """
    if not 0 <= large.at < len(descriptors):
        raise OSError(errno.EBADF, "no file came with it", large.name)
    fd = os.dup(descriptors[large.at])
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", large.name)
        if isinstance(large, OpenFile):
            return FileBody(fd, name=large.name, private=large.private, part=large.part)
    except BaseException:
        os.close(fd)
        raise
    dialect = next((known for known in get_args(Dialect) if known == large.dialect), None)
    change = None if dialect is None else partial(unquoted, dialect=dialect)
    # It owns the descriptor from here on, whatever comes.
    return content.SpanBody(fd, large.head, large.start, large.stop, change, name=large.name, size=max(large.size, 0))


def read_of(one: Message | Unreadable, descriptors: list[int]) -> ReadMessage | NotRead:
    if isinstance(one, Unreadable):
        return NotRead(one.key, one.code, one.text)
    its = one.original
    return ReadMessage(
        one.key,
        one.flags,
        one.internal_date.isoformat(),
        one.body if isinstance(one.body, bytes) else b"",
        described(one.body, descriptors),
        one.wire,
        one.dated,
        None if its is None else (its.path, its.device, its.inode, its.size, its.mtime_ns, its.mode, its.uid),
        one.guid,
        one.uidl,
        one.note,
    )


def message_of(one: ReadMessage | NotRead, descriptors: Sequence[int]) -> Message | Unreadable:
    key = MessageKey(one.key)
    if isinstance(one, NotRead):
        return Unreadable(key=key, code=one.code, text=one.text)
    try:
        date = datetime.fromisoformat(one.date)
    except ValueError:
        return Unreadable(key=key, code="unreadable", text=f"{one.key}: its date is none: {one.date[:40]}")
    try:
        body: Body = one.body if one.large is None else body_of(one.large, descriptors)
    except OSError as error:
        return Unreadable(key=key, code="unreadable", text=f"{one.key}: {error.strerror or error}")
    return Message(
        key=key,
        flags=one.flags,
        internal_date=date if date.tzinfo is not None else date.replace(tzinfo=UTC),
        body=body,
        wire=one.wire,
        dated=one.dated,
        original=None if one.original is None else Original(*one.original),
        guid=one.guid,
        uidl=one.uidl,
        note=one.note,
    )


def seen_of(facts: Facts) -> Seen:
    sizes = None if facts.sizes is None else [facts.sizes[place] for place in facts.places]
    headers = None if facts.headers is None else [facts.headers[place] for place in facts.places]
    return Seen(list(facts.places), sizes, headers)


def facts_of(seen: Seen) -> Facts:
    """Raises as `numbers_of`."""
    if any(column is not None and len(column) != len(seen.places) for column in (seen.sizes, seen.headers)):
        raise ConnectionLost("facts of other messages from a process with a user's rights")
    facts = Facts(places=seen.places)
    if seen.sizes is not None:
        facts.sizes = dict(zip(seen.places, seen.sizes, strict=True))
    if seen.headers is not None:
        facts.headers = dict(zip(seen.places, seen.headers, strict=True))
    return facts


def ended_of(outcome: Outcome) -> Ended:
    match outcome:
        case Appended():
            assert outcome.repaired is None, "repairs are the pipeline's"
            return Ended(outcome.key, "appended", outcome.uid, outcome.dropped)
        case Rejected():
            return Ended(outcome.key, "rejected", code=outcome.code, text=outcome.text, cause=outcome.cause)
        case NotStored():
            return Ended(outcome.key, "not stored", error=None if outcome.error is None else failed(outcome.error))


def outcome_of(ended: Ended) -> Outcome:
    key = MessageKey(ended.key)
    match ended.kind:
        case "appended":
            return Appended(key=key, uid=None if ended.uid is None else Uid(ended.uid), dropped=ended.dropped)
        case "rejected":
            return Rejected(key=key, code=ended.code, text=ended.text, cause=ended.cause)
        case "not stored":
            return NotStored(key=key, error=None if ended.error is None else error_of(ended.error))


def found_of(stored: Sequence[Stored]) -> Found:
    return Found([(each.wanted, each.internal_date) for each in stored if each.wanted is not None])


def stored_of(found: Found, fingerprints: Sequence[Fingerprint]) -> list[Stored]:
    """What was found of messages with these fingerprints.

    Raises:
        ConnectionLost: others were.
    """
    if any(not 0 <= at < len(fingerprints) for at, _ in found.stored):
        raise ConnectionLost("messages that nobody looks for from a process with a user's rights")
    return [Stored(fingerprint=fingerprints[at], internal_date=date, wanted=at) for at, date in found.stored]
