from __future__ import annotations

import errno
import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import MessageUnreadable, Scope
from aimport.octets import (
    fingerprint,
    formed,
    local_form,
    local_pieces,
    local_size,
    measure,
    pieces_of,
    reduced_digest,
    reduced_pieces,
    whole,
    wire_form,
    wire_pieces,
)
from tests import kept
from tests.large import Chunks, chunked
from tests.strategies import bodies


def test_lone_lf_becomes_crlf_and_nothing_else_changes() -> None:
    assert wire_form(b"a\nb\r\nc\rd\r\r\n\n") == b"a\r\nb\r\nc\rd\r\r\n\r\n"


def test_a_body_in_wire_form_is_not_copied() -> None:
    body = b"a\r\nb\r\n" * 9
    assert wire_form(body) is body


@given(bodies)
def test_wire_form_is_idempotent(body: bytes) -> None:
    assert wire_form(wire_form(body)) == wire_form(body)


@given(bodies)
def test_wire_form_adds_a_cr_before_each_lone_lf(body: bytes) -> None:
    expected = bytearray()
    for index, octet in enumerate(body):
        if octet == 0x0A and body[index - 1 : index] != b"\r":
            expected += b"\r"
        expected.append(octet)
    assert wire_form(body) == expected


@given(bodies)
def test_what_is_stored_locally_has_the_same_wire_form(body: bytes) -> None:
    wire = wire_form(body)
    assert wire_form(local_form(wire)) == wire


@given(bodies)
def test_line_ends_do_not_change_a_fingerprint(body: bytes) -> None:
    wire = wire_form(body)
    assert fingerprint(wire) == fingerprint(wire_form(local_form(wire)))
    assert fingerprint(wire).size == len(wire)
    assert fingerprint(wire).digest == hashlib.sha256(wire).digest()


@given(chunked())
def test_pieces_give_the_same_as_the_whole_however_it_is_cut(cut: tuple[bytes, list[bytes]]) -> None:
    body, pieces = cut
    assert b"".join(wire_pieces(pieces)) == wire_form(body)
    measured, expected = measure(lambda: pieces), fingerprint(wire_form(body))
    assert (measured, measured.alike) == (expected, expected.alike)
    assert fingerprint(formed(body)[0], tidy=formed(body)[1]).alike == expected.alike
    assert b"".join(reduced_pieces(wire_pieces(pieces))) == b"".join(reduced_pieces([wire_form(body)]))
    assert whole(Chunks(pieces)) == b"".join(pieces_of(body)) == body


ODD = [
    (b"Subject: n\0l\n\nx\n", ("nul",)),
    (b"Subject: n\n\n\0\n", ("nul",)),
    (b"Subject: caf\xe9\n\nx\n", ("8-bit header",)),
    (b"\xe9 and no header ends", ("8-bit header", "final line end")),
    (b"Subject: x\n\nold mac\rend\n", ("cr",)),
    (b"Subject: x\n\nx\r\r\n", ("cr",)),
    (b"Subject: x\n\nx\r", ("cr", "final line end")),
    (b"Subject: x\n\nx", ("final line end",)),
    (b"Subject: x\n\n\xe9\xff\n", ()),  # eight bits in a body are kept by all
    (b"\n\xe9\n", ()),  # its header is empty
    (b"\r\n\xe9\r\n", ()),
    (b"", ()),
]


@pytest.mark.parametrize(("body", "kinds"), ODD)
def test_what_servers_do_not_keep_is_known_before_it_is_sent(body: bytes, kinds: tuple[str, ...]) -> None:
    alike = fingerprint(wire_form(body)).alike
    assert (alike.kinds if alike is not None else ()) == kinds


KEEPERS = pytest.mark.parametrize("keeper", [kept.by_dovecot, kept.by_cyrus, kept.by_courier])


@KEEPERS
@given(body=bodies | st.sampled_from([body for body, _ in ODD]))
def test_whatever_a_server_makes_of_a_message_it_is_known_again(keeper: kept.Keeper, body: bytes) -> None:
    wire = wire_form(body)
    served = keeper(body).served
    if served is None or served == wire:
        return
    alike = fingerprint(wire).alike
    assert alike is not None
    assert reduced_digest([served]) == alike.digest
    assert alike.shortest <= len(served) <= len(wire) + 2


@given(st.binary(min_size=1, max_size=40).filter(bytes.isascii))
def test_a_reduced_form_keeps_every_octet_of_ascii_but_cr_and_the_last_line_ends(body: bytes) -> None:
    assert b"".join(reduced_pieces([body])).replace(b"X", b"\0").replace(b"\x80", b"\0") == (
        body.replace(b"\r", b"").rstrip(b"\n").replace(b"X", b"\0")
    )


@given(chunked(), st.booleans())
def test_pieces_are_stored_locally_as_the_whole_is(cut: tuple[bytes, list[bytes]], wire: bool) -> None:
    body, pieces = cut
    if wire:
        body, pieces = wire_form(body), list(wire_pieces(pieces))
    size, crcrlf = local_size(pieces)
    assert size == len(local_form(body))
    assert crcrlf == (b"\r\r\n" in body)
    assert b"".join(local_pieces(pieces, crcrlf=crcrlf)) == local_form(body)


@pytest.mark.parametrize("body", [b"a\r\n" * 3, b"\r\r\r\n\r\n\n\r", b"x\r\r\nx\r\n", b"\r\r", b"\n\n"])
def test_every_cut_gives_the_same(body: bytes) -> None:
    for size in range(1, len(body) + 1):
        for first in range(size):
            pieces = [body[:first], *(body[at : at + size] for at in range(first, len(body), size))]
            local, crcrlf = local_size(pieces)
            assert b"".join(wire_pieces(pieces)) == wire_form(body)
            assert b"".join(local_pieces(pieces, crcrlf=crcrlf)) == local_form(body)
            assert local == len(local_form(body))


@pytest.mark.parametrize("line", [b"\r", b"\n", b"\r\n", b"\r\r\n", b"x"])
@pytest.mark.parametrize("size", [7, 2048])
def test_pieces_never_grow_and_time_is_linear(line: bytes, size: int) -> None:
    body = (line * size)[:size]
    began = time.process_time()
    assert all(len(piece) <= 2 * (size + 1) for piece in wire_pieces(body for _ in range(10_000)))
    local_size(body for _ in range(10_000))
    assert time.process_time() - began < 10


def test_what_cannot_be_read_is_said_to_be_so_with_its_name() -> None:
    pieces = pieces_of(Chunks([b"a", b"b"], failing=errno.EIO))
    assert next(pieces) == b"a"
    with pytest.raises(MessageUnreadable, match="the source: Input/output error") as caught:
        next(pieces)
    assert (caught.value.code, caught.value.scope) == ("unreadable", Scope.MESSAGE)
    with pytest.raises(MessageUnreadable):
        whole(Chunks([b"a"], failing=errno.EIO))
