"""What a process with a user's rights says is data of known types or the end of the session."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import AimportError, ConnectionLost, MailboxNotFound, OverQuota, ServerBug
from aimport.model import Appended, Message, MessageKey, NotStored, Original, Outcome, Rejected, Uid, Unreadable
from aimport.octets import pieces_of, whole
from aimport.spool import FileBody
from aimport.stores import content
from aimport.stores.mbox.headers import unquoted
from aimport.stores.rights import wire
from tests.strategies import messages


def crossed(answer: wire.Answer) -> wire.Answer:
    return wire.decode(wire.encode(wire.Reply(answer, []))).answer


@given(messages())
def test_a_message_crosses_as_it_is(message: Message) -> None:
    descriptors: list[int] = []
    answer = crossed(wire.Read([wire.read_of(message, descriptors)]))
    assert isinstance(answer, wire.Read)
    [back] = [wire.message_of(each, descriptors) for each in answer.messages]
    assert back == message
    assert isinstance(back, Message)
    assert back.internal_date.utcoffset() == message.internal_date.utcoffset()


def test_what_cannot_be_read_and_where_octets_lie_cross_too() -> None:
    lost = Unreadable(key=MessageKey("k"), code="vanished", text="gone")
    assert wire.message_of(wire.read_of(lost, []), []) == lost
    original = Original("/srv/x", 1, 2, 3, 4, 0o600, 7)
    sent = wire.ReadMessage(
        "k", frozenset(), "2020-01-01T00:00:00+00:00", b"", None, False, "", ("/srv/x", 1, 2, 3, 4, 0o600, 7),
        "guid", "uidl", "flags are lost",
    )  # fmt: skip
    back = wire.message_of(sent, [])
    assert isinstance(back, Message) and back.original == original
    assert (back.guid, back.uidl, back.note) == ("guid", "uidl", "flags are lost")
    assert wire.read_of(back, []) == sent


@given(st.lists(st.text()))
def test_keys_are_packed_and_unpacked(texts: list[str]) -> None:
    keys = wire.Packed(*wire.packed(texts))
    assert list(keys) == texts
    assert [keys[at] for at in range(len(keys))] == texts
    assert keys[-2:] == texts[-2:]
    with pytest.raises(IndexError):
        keys[len(texts)]


@given(st.binary())
def test_anything_else_than_an_answer_is_the_end_of_the_session(octets: bytes) -> None:
    for read in (wire.decode, lambda octets: wire.Packed(b"abc", octets), partial(wire.numbers_of, count=3)):
        try:
            read(octets)
        except ConnectionLost:
            continue


def test_nothing_that_is_said_is_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, ("/nonexistent/trap",)

    with pytest.raises(ConnectionLost):
        wire.decode(pickle.dumps(Trap()))


@pytest.mark.parametrize(
    "error",
    [
        OverQuota("full", hint="make room"),
        ServerBug("odd", code="SERVERBUG", wait_s=3.5),
        MailboxNotFound("no such", named=True, code="NONEXISTENT"),
        ConnectionLost("gone", cause="nul"),
    ],
)
def test_errors_arrive_as_they_were_raised(error: AimportError) -> None:
    answer = crossed(wire.failed(error))
    assert isinstance(answer, wire.Failed)
    back = wire.error_of(answer)
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


def test_an_error_that_nobody_knows_ends_the_session() -> None:
    assert type(wire.error_of(wire.Failed("SystemExit", "x", "", "", 0.0, "", False))) is ConnectionLost


@pytest.mark.parametrize(
    "outcome",
    [
        Appended(key=MessageKey("k"), dropped=("a", "b")),
        Appended(key=MessageKey("k"), uid=Uid(7)),
        Rejected(key=MessageKey("k"), code="TOOBIG", text="too big", cause="size"),
        NotStored(key=MessageKey("k")),
    ],
)
def test_outcomes_arrive_as_they_are(outcome: Outcome) -> None:
    answer = crossed(wire.Outcomes([wire.ended_of(outcome)], 0.5, 0.0))
    assert isinstance(answer, wire.Outcomes)
    assert [wire.outcome_of(each) for each in answer.ended] == [outcome]


# files


def test_a_large_body_crosses_as_its_open_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    octets = b"head\n\n>From me\nbody\n" * 100
    file.write_bytes(b"before" + octets + b"after")

    def opened() -> int:
        return os.open(file, os.O_RDONLY)

    part = FileBody(opened(), name="part", private=True, part=(6, len(octets)))
    span = content.SpanBody(opened(), b"X: y\n", 6, 6 + len(octets), partial(unquoted, dialect="mboxrd"), name="span")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for body in (part, span):
            descriptors: list[int] = []
            described = wire.described(body, descriptors)
            assert described is not None
            wire.send(theirs, b"x", descriptors)
            expected = b"".join(pieces_of(body))
            body.close()
            frame = wire.receive(ours)
            assert frame is not None
            payload, received = frame
            back = wire.body_of(described, received)
            wire.close_all(received)
            assert (payload, len(back), whole(back)) == (b"x", len(expected), expected)
            assert not isinstance(back, bytes)
            back.close()


@pytest.mark.parametrize("kind", ["directory", "pipe", "none"])
def test_what_is_no_regular_file_is_no_body(tmp_path: Path, kind: str) -> None:
    held = [os.open(tmp_path, os.O_RDONLY), *os.pipe()]
    try:
        fds = {"directory": held[:1], "pipe": held[1:2], "none": []}[kind]
        for large in (wire.OpenFile(0, "x", False, None), wire.OpenSpan(0, "x", b"", 0, 1, 1, "")):
            with pytest.raises(OSError, match=r"regular|no file"):
                wire.body_of(large, fds)
    finally:
        wire.close_all(held)


def test_a_frame_that_is_cut_short_is_an_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    with ours:
        fd = os.open(tmp_path, os.O_RDONLY)
        wire.send(theirs, b"whole", [fd])
        theirs.sendmsg([wire._HEAD.pack(10, 0)])
        theirs.sendall(b"half")
        theirs.close()
        os.close(fd)
        frame = wire.receive(ours)
        assert frame is not None and frame[0] == b"whole"
        wire.close_all(frame[1])
        with pytest.raises(ConnectionResetError):
            wire.receive(ours)
    assert len(os.listdir("/proc/self/fd")) == before
