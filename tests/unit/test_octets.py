from __future__ import annotations

import hashlib

from hypothesis import given

from aimport.octets import fingerprint, local_form, wire_form
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
