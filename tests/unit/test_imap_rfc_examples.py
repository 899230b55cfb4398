"""Every example of the RFCs, and what real servers were seen to send, has the value it stands for."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass

import pytest

from aimport.imap.fragments import FragmentReader
from aimport.imap.responses import Continuation, Response, Tagged, Unknown, Untagged, parse
from tests.examples import Example, examples, spaced

CODES = {
    "RFC 9051 §7.1": "ALERT ALREADYEXISTS APPENDUID AUTHENTICATIONFAILED AUTHORIZATIONFAILED BADCHARSET CANNOT"
    " CAPABILITY CLIENTBUG CLOSED CONTACTADMIN COPYUID CORRUPTION EXPIRED EXPUNGEISSUED HASCHILDREN INUSE LIMIT"
    " NONEXISTENT NOPERM NOTSAVED OVERQUOTA PARSE PERMANENTFLAGS PRIVACYREQUIRED READ-ONLY READ-WRITE SERVERBUG"
    " TRYCREATE UIDNEXT UIDNOTSTICKY UIDVALIDITY UNAVAILABLE UNKNOWN-CTE",
    "RFC 3501 §7.1": "UNSEEN",
    "RFC 2060": "NEWNAME",
    "RFC 2221": "REFERRAL",
    "RFC 4467": "URLMECH",
    "RFC 4469": "BADURL TOOBIG",
    "RFC 4978": "COMPRESSIONACTIVE",
    "RFC 5255": "BADCOMPARATOR",
    "RFC 5257": "ANNOTATE ANNOTATIONS",
    "RFC 5259": "MAXCONVERTPARTS TEMPFAIL",
    "RFC 5267": "NOUPDATE",
    "RFC 5464": "METADATA",
    "RFC 5465": "BADEVENT NOTIFICATIONOVERFLOW",
    "RFC 5466": "UNDEFINED-FILTER",
    "RFC 6154": "USEATTR",
    "RFC 7162": "HIGHESTMODSEQ MODIFIED NOMODSEQ",
    "RFC 8474": "MAILBOXID",
    "RFC 9585": "INPROGRESS",
    "RFC 9586": "UIDREQUIRED",
    "Dovecot, Gmail": "THROTTLED",
}
"""The codes of IANA's registry and where they come from."""

each = pytest.mark.parametrize("example", examples(), ids=str)


def read(octets: bytes) -> tuple[bytes, ...]:
    [fragments] = FragmentReader().feed(octets)
    return tuple(fragment for fragment in fragments if isinstance(fragment, bytes))


def lowered(value: object) -> object:
    """`value` with every text of it in lower case."""
    if isinstance(value, str | bytes):
        return value.lower()
    if isinstance(value, tuple | frozenset):
        return type(value)(map(lowered, value))
    if is_dataclass(value):
        return type(value).__name__, {one.name: lowered(getattr(value, one.name)) for one in fields(value)}
    return value


@each
def test_each_example_has_its_value(example: Example) -> None:
    assert parse(read(example.octets)) == example.value


@each
def test_case_makes_no_difference(example: Example) -> None:
    assert lowered(parse(read(example.octets.lower()))) == lowered(example.value)


@each
def test_spaces_too_many_make_no_difference(example: Example) -> None:
    fragments = read(example.octets)
    match example.value:
        case Unknown() | Continuation():
            pass  # as sent
        case Tagged() | Untagged():
            before, status, after = re.split(rb"(?<= )(OK|NO|BAD|BYE|PREAUTH)", fragments[0], maxsplit=1, flags=re.I)
            line = before + status + after.replace(b" ", b"   ", 1)
            line = re.sub(rb"^(\S+ \w+ +\[[^\] ]+) ([^\]]*)\]", rb"\1  \2 ]", line)
            assert parse((line,)) == example.value
        case _:
            assert parse(spaced(fragments)) == example.value


def test_every_registered_code_has_an_example() -> None:
    shown = {example.value.code for example in examples() if isinstance(example.value, Tagged | Untagged)}
    assert {code for codes in CODES.values() for code in codes.split()} == shown - {"MYRIGHTS", ""}  # Courier's own


def test_every_kind_of_value_has_an_example() -> None:
    kinds: set[type] = {type(example.value) for example in examples()}
    assert kinds == set(Response.__args__)
