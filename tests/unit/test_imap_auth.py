"""SASL without a wire: which mechanism is chosen, what it says, and whom it does not believe.

Invariant: nothing weaker than what was asked for, and no exchange goes on for ever.
"""

from __future__ import annotations

import base64
import datetime
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import AimportError, ProtocolError, UserError
from aimport.imap import auth
from aimport.imap.auth import Binding, Credentials, choose, end_point, exchange, saslprep
from tests.fix_sasl import ProofRefused, ScramServer

CANARY = "c4nary-secret"
BOB = Credentials(user="bob", secret=CANARY)
BINDING = Binding(kind="tls-server-end-point", data=b"digest of a certificate")
NONE: frozenset[str] = frozenset()


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def sent(words: list[bytes]) -> bytes:
    """The initial response of a command."""
    return base64.b64decode(words[2])


def answer(each: auth.Exchange, challenge: bytes) -> bytes:
    return base64.b64decode(each.reply(b64(challenge)))


def caps(*names: str) -> frozenset[str]:
    return frozenset({"IMAP4REV1", *names})


# Choice


@pytest.mark.parametrize(
    ("offered", "encrypted", "bound", "master", "chosen"),
    [
        ("AUTH=PLAIN AUTH=LOGIN", True, False, False, "PLAIN"),
        ("AUTH=PLAIN AUTH=SCRAM-SHA-256 AUTH=SCRAM-SHA-256-PLUS", True, True, False, "PLAIN"),
        ("AUTH=PLAIN AUTH=SCRAM-SHA-256", True, False, True, "PLAIN"),
        ("AUTH=SCRAM-SHA-1 AUTH=SCRAM-SHA-256", True, False, False, "SCRAM-SHA-256"),
        ("AUTH=SCRAM-SHA-256 AUTH=SCRAM-SHA-256-PLUS", True, True, False, "SCRAM-SHA-256-PLUS"),
        ("AUTH=SCRAM-SHA-256 AUTH=SCRAM-SHA-256-PLUS", True, False, False, "SCRAM-SHA-256"),
        ("AUTH=PLAIN AUTH=SCRAM-SHA-1 AUTH=SCRAM-SHA-256", False, False, False, "SCRAM-SHA-256"),
        ("AUTH=PLAIN AUTH=SCRAM-SHA-1", False, False, False, "SCRAM-SHA-1"),
        ("AUTH=PLAIN AUTH=SCRAM-SHA-1", False, False, True, "SCRAM-SHA-1"),
        ("AUTH=PLAIN", False, False, True, "PLAIN"),
        ("AUTH=PLAIN LOGINDISABLED", False, False, False, "PLAIN"),
        ("", False, False, False, ""),
        ("", True, False, False, ""),
        ("AUTH=LOGIN AUTH=CRAM-MD5", True, False, False, ""),
        ("AUTH=LOGIN LOGINDISABLED", True, False, False, "LOGIN"),
    ],
)
def test_the_best_of_what_is_offered_is_chosen(
    offered: str, encrypted: bool, bound: bool, master: bool, chosen: str
) -> None:
    assert choose("", caps(*offered.split()), encrypted=encrypted, bound=bound, master=master) == chosen


@pytest.mark.parametrize(
    ("asked", "offered", "bound", "chosen"),
    [
        ("plain", "AUTH=PLAIN AUTH=SCRAM-SHA-256", False, "PLAIN"),
        ("login", "AUTH=PLAIN AUTH=SCRAM-SHA-256", False, ""),
        ("login", "AUTH=LOGIN LOGINDISABLED", False, "LOGIN"),
        ("scram-sha-1", "AUTH=SCRAM-SHA-1 AUTH=SCRAM-SHA-256", False, "SCRAM-SHA-1"),
        ("scram-sha-256", "AUTH=SCRAM-SHA-256 AUTH=SCRAM-SHA-256-PLUS", True, "SCRAM-SHA-256-PLUS"),
        ("scram-sha-256", "AUTH=SCRAM-SHA-256-PLUS", True, "SCRAM-SHA-256-PLUS"),
        ("scram-sha-256", "AUTH=SCRAM-SHA-256", True, "SCRAM-SHA-256"),
        ("xoauth2", "AUTH=XOAUTH2 AUTH=PLAIN", False, "XOAUTH2"),
        ("oauthbearer", "AUTH=OAUTHBEARER", False, "OAUTHBEARER"),
    ],
)
def test_what_was_asked_for_is_used(asked: str, offered: str, bound: bool, chosen: str) -> None:
    assert choose(asked, caps(*offered.split()), encrypted=True, bound=bound) == chosen


@pytest.mark.parametrize(
    ("asked", "offered", "words"),
    [
        ("scram-sha-256", "AUTH=PLAIN AUTH=LOGIN", "does not offer AUTH=SCRAM-SHA-256"),
        ("scram-sha-256", "AUTH=SCRAM-SHA-1 AUTH=PLAIN", "does not offer AUTH=SCRAM-SHA-256"),
        ("scram-sha-256", "AUTH=SCRAM-SHA-256-PLUS AUTH=PLAIN", "does not offer AUTH=SCRAM-SHA-256"),  # unbound
        ("scram-sha-1", "AUTH=PLAIN", "does not offer AUTH=SCRAM-SHA-1"),
        ("xoauth2", "AUTH=PLAIN", "does not offer AUTH=XOAUTH2"),
        ("plain", "AUTH=LOGIN", "does not offer AUTH=PLAIN"),
        ("login", "AUTH=PLAIN LOGINDISABLED", "allows no login"),
        ("external", "AUTH=EXTERNAL AUTH=PLAIN", "client certificate"),
        ("", "AUTH=CRAM-MD5 AUTH=X-UNKNOWN", "AUTH=CRAM-MD5, AUTH=X-UNKNOWN"),
        ("", "AUTH=XOAUTH2", "no mechanism for a password"),
        ("", "LOGINDISABLED", "allows no login"),
        ("", "LOGINDISABLED AUTH=GSSAPI", "allows no login here .it offers AUTH=GSSAPI."),
    ],
)
def test_there_is_no_fall_back_to_something_weaker(asked: str, offered: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(asked, caps(*offered.split()), encrypted=True)


def test_a_certificate_alone_logs_in_by_external_under_tls_only() -> None:
    offered = caps("AUTH=EXTERNAL", "AUTH=PLAIN")
    assert choose("", offered, encrypted=True, certificate=True, secret=False) == "EXTERNAL"
    assert choose("external", offered, encrypted=True, certificate=True) == "EXTERNAL"
    assert choose("", offered, encrypted=True, certificate=True) == "PLAIN"
    with pytest.raises(UserError, match="and TLS"):
        choose("external", offered, encrypted=False, certificate=True)
    with pytest.raises(UserError, match="AUTH=EXTERNAL"):
        choose("", caps("AUTH=PLAIN"), encrypted=True, certificate=True, secret=False)


# What goes over the wire: the RFCs' own examples


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        (Credentials(user="tim", secret="tanstaaftanstaaf"), b"\0tim\0tanstaaftanstaaf"),  # RFC 4616 §4
        (Credentials(user="Ursel", login="Kurt", secret="xipj3plmq"), b"Ursel\0Kurt\0xipj3plmq"),
        (Credentials(user="ü", secret="pässword"), "\0ü\0pässword".encode()),
    ],
)
def test_plain(credentials: Credentials, message: bytes) -> None:
    assert sent(exchange("PLAIN", credentials, NONE).command(initial=True)) == message
    later = exchange("PLAIN", credentials, NONE)
    assert later.command(initial=False) == [b"AUTHENTICATE", b"PLAIN"]
    assert base64.b64decode(later.reply("")) == message
    later.finish()


def test_oauthbearer() -> None:
    """RFC 7628 §4.1 and §4.3."""
    token = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
    credentials = Credentials(user="user@example.com", secret=token, host="server.example.com", port=143)
    each = exchange("OAUTHBEARER", credentials, NONE)
    assert each.command(initial=True)[2] == (
        b"bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9QmVhcmVyI"
        b"HZGOWRmdDRxbVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
    )
    refusal = (
        "eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIiwic2NvcGUiOiJleGFtcGxlX3Njb3BlIiwib3BlbmlkLWNvbmZpZ3VyYXRpb24iOiJodHRw"
        "czovL2V4YW1wbGUuY29tLy53ZWxsLWtub3duL29wZW5pZC1jb25maWd1cmF0aW9uIn0="
    )
    assert each.reply(refusal) == b"AQ=="
    assert each.reason == "status invalid_token, scope example_scope"
    with pytest.raises(ProtocolError, match="more than OAUTHBEARER"):
        each.reply(refusal)
    with pytest.raises(ProtocolError, match="after it had refused"):
        each.finish()


def test_oauthbearer_escapes_the_name_and_needs_no_host() -> None:
    each = exchange("OAUTHBEARER", Credentials(user="a=b,c", secret="t"), NONE)
    assert sent(each.command(initial=True)) == b"n,a=a=3Db=2Cc,\1auth=Bearer t\1\1"


def test_xoauth2() -> None:
    """The example of developers.google.com/workspace/gmail/imap/xoauth2-protocol."""
    token = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"
    each = exchange("XOAUTH2", Credentials(user="someuser@example.com", secret=token), NONE)
    assert each.command(initial=True)[2] == (
        b"dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSFJoZG1semRHRXVZ"
        b"Mjl0Q2cBAQ=="
    )
    said = {"status": "400", "schemes": "Bearer", "scope": "https://mail.google.com/"}
    assert each.reply(b64(json.dumps(said).encode())) == b""
    assert each.reason == "status 400, scope https://mail.google.com/"


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        (b"", ""),
        (b"not json", ""),
        (b"[1]", ""),
        (b'{"status":1,"scope":["a"]}', ""),
        (b'{"status":"a\\u001b[2J\\r\\nb"}', "status a [2J b"),
        (b'{"status":"%s"}' % (b"x" * 10_000), "status " + "x" * 200),
        (b"[" * 100_000, ""),
    ],
)
def test_the_reason_of_a_refused_token_is_shown_only_as_far_as_it_is_fit(challenge: bytes, reason: str) -> None:
    each = exchange("XOAUTH2", Credentials(user="bob", secret="t"), NONE)
    each.command(initial=True)
    assert answer(each, challenge) == b""
    assert each.reason == reason


def test_login_answers_two_prompts_whatever_they_are_called() -> None:
    each = exchange("LOGIN", BOB, NONE)
    assert each.command(initial=True) == [b"AUTHENTICATE", b"LOGIN"]
    assert answer(each, b"User Name\0") == b"bob"
    with pytest.raises(ProtocolError, match="before it had the password"):
        each.finish()
    assert answer(each, b"") == CANARY.encode()
    each.finish()
    with pytest.raises(ProtocolError):
        answer(each, b"Password:")


def test_external_names_the_user_and_an_empty_response_is_written_as_one() -> None:
    assert sent(exchange("EXTERNAL", BOB, NONE).command(initial=True)) == b"bob"
    assert exchange("EXTERNAL", Credentials(user=""), NONE).command(initial=True)[2] == b"="  # RFC 4959 §3
    assert CANARY.encode() not in sent(exchange("EXTERNAL", BOB, NONE).command(initial=True))


@pytest.mark.parametrize(
    ("name", "client_first", "server_first", "client_final", "server_final"),
    [
        (  # RFC 5802 §5
            "SCRAM-SHA-1",
            "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
            "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (  # RFC 7677 §3
            "SCRAM-SHA-256",
            "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
    ],
)
def test_scram(name: str, client_first: str, server_first: str, client_final: str, server_final: str) -> None:
    nonce = client_first.rpartition("=")[2]
    each = exchange(name, Credentials(user="user", secret="pencil"), NONE, nonce=nonce)
    assert sent(each.command(initial=True)).decode() == client_first
    assert answer(each, server_first.encode()).decode() == client_final
    assert answer(each, server_final.encode()) == b""
    each.finish()


def scram(server: ScramServer, credentials: Credentials, name: str, *offered: str) -> auth.Exchange:
    """A whole exchange with a server."""
    each = exchange(name, credentials, frozenset(f"AUTH={each}" for each in offered))
    first = sent(each.command(initial=True))
    assert answer(each, server.final(answer(each, server.first(first)))) == b""
    each.finish()
    return each


@pytest.mark.parametrize(("name", "hash_name"), [("SCRAM-SHA-1", "sha1"), ("SCRAM-SHA-256", "sha256")])
def test_scram_acts_for_another_user_and_escapes_names(name: str, hash_name: str) -> None:
    server = ScramServer(hash_name=hash_name, password="IX")
    scram(server, Credentials(user="a,b=c", login="adm,in", secret="I\u00adX"), name, name)
    assert (server.flag, server.authzid, server.user) == ("n", "a=2Cb=3Dc", "adm=2Cin")


@pytest.mark.parametrize(("name", "hash_name"), [("SCRAM-SHA-1-PLUS", "sha1"), ("SCRAM-SHA-256-PLUS", "sha256")])
def test_scram_plus_is_tied_to_the_channel(name: str, hash_name: str) -> None:
    credentials = Credentials(user="bob", secret="pass", binding=BINDING)
    server = ScramServer(hash_name=hash_name, password="pass", binding=BINDING.data)
    scram(server, credentials, name, name)
    assert server.flag == "p=tls-server-end-point"
    with pytest.raises(ProofRefused, match="channel binding"):
        scram(ScramServer(hash_name=hash_name, password="pass", binding=b"another's"), credentials, name, name)


@pytest.mark.parametrize(
    ("binding", "offered", "flag"), [(None, "", "n"), (BINDING, "", "y"), (BINDING, "SCRAM-SHA-256-PLUS", "n")]
)
def test_a_server_learns_that_its_offer_of_binding_was_taken_away(
    binding: Binding | None, offered: str, flag: str
) -> None:
    """RFC 5802 §6: "y" says that the client could have."""
    server = ScramServer(hash_name="sha256", password="pass")
    credentials = Credentials(user="bob", secret="pass", binding=binding)
    scram(server, credentials, "SCRAM-SHA-256", "SCRAM-SHA-256", offered)
    assert server.flag == flag


def test_every_exchange_has_a_nonce_of_its_own() -> None:
    firsts = {sent(exchange("SCRAM-SHA-256", BOB, NONE).command(initial=True)) for _ in range(20)}
    assert len(firsts) == 20


# Whom it does not believe


def begun() -> auth.Exchange:
    each = exchange("SCRAM-SHA-256", BOB, NONE, nonce="abc")
    each.command(initial=True)
    return each


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("r=abcdef,s=c2FsdA==,i=4095", UserError, "4095 iterations"),
        ("r=abcdef,s=c2FsdA==,i=1", UserError, "1 iterations"),
        ("r=abcdef,s=c2FsdA==,i=1000001", UserError, "1000001 iterations"),
        ("r=abcdef,s=c2FsdA==,i=99999999999999", ProtocolError, "iteration count"),
        ("r=abcdef,s=c2FsdA==,i=-5", ProtocolError, "iteration count"),
        ("r=abcdef,s=c2FsdA==,i=٤٠٩٦", ProtocolError, "iteration count"),
        ("r=abcdef,s=c2FsdA==,i=", ProtocolError, "iteration count"),
        ("r=abc,s=c2FsdA==,i=4096", ProtocolError, "nonce"),
        ("r=xyzabc,s=c2FsdA==,i=4096", ProtocolError, "nonce"),
        ("r=abcdef,s=,i=4096", ProtocolError, "RFC 5802"),
        ("r=abcdef,s=!!!,i=4096", ProtocolError, "RFC 5802"),
        ("s=c2FsdA==,r=abcdef,i=4096", ProtocolError, "RFC 5802"),
        ("m=x,r=abcdef,s=c2FsdA==,i=4096", ProtocolError, "RFC 5802"),
        ("r=abcdef,s=c2FsdA==", ProtocolError, "RFC 5802"),
        ("e=unknown-user", ProtocolError, "unknown-user"),
        ("", ProtocolError, "RFC 5802"),
    ],
)
def test_a_first_message_that_is_not_safe_gets_no_proof(said: str, kind: type[AimportError], words: str) -> None:
    each = begun()
    with pytest.raises(kind, match=words):
        answer(each, said.encode())
    assert not each.proven


def test_a_server_that_does_not_know_the_password_is_not_trusted() -> None:
    each = begun()
    answer(each, b"r=abcdef,s=c2FsdA==,i=4096")
    with pytest.raises(UserError, match="did not prove"):
        answer(each, b"v=" + base64.b64encode(bytes(32)))
    with pytest.raises(UserError, match="did not prove"):
        each.finish()


@pytest.mark.parametrize("challenges", [[], [b"r=abcdef,s=c2FsdA==,i=4096"]])
def test_an_ok_without_a_signature_is_not_trusted(challenges: list[bytes]) -> None:
    each = begun()
    for challenge in challenges:
        answer(each, challenge)
    with pytest.raises(UserError, match="did not prove"):
        each.finish()


def test_a_reason_in_the_last_message_is_told_and_is_no_signature() -> None:
    each = begun()
    answer(each, b"r=abcdef,s=c2FsdA==,i=4096")
    assert answer(each, b"e=invalid-proof") == b""
    assert each.reason == "invalid-proof"
    with pytest.raises(UserError, match="did not prove"):
        each.finish()


@pytest.mark.parametrize("name", ["PLAIN", "XOAUTH2", "OAUTHBEARER", "EXTERNAL", "SCRAM-SHA-256"])
def test_an_ok_before_anything_was_said_is_none(name: str) -> None:
    each = exchange(name, BOB, NONE)
    each.command(initial=False)
    with pytest.raises(ProtocolError, match="before"):
        each.finish()


@given(st.lists(st.binary(max_size=60) | st.just(b"r=abcdef,s=c2FsdA==,i=4096"), min_size=4, max_size=4), st.booleans())
def test_no_exchange_goes_on_for_ever_and_nothing_but_our_errors_comes(said: list[bytes], initial: bool) -> None:
    for name in ("PLAIN", "LOGIN", "EXTERNAL", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-256"):
        each = exchange(name, BOB, NONE, nonce="abc")
        each.command(initial=initial)
        answered = 0
        for challenge in said:
            try:
                answer(each, challenge)
            except AimportError:
                break
            answered += 1
        assert answered < 4


@given(st.text(max_size=40))
def test_a_challenge_that_is_not_base64_is_a_protocol_error(text: str) -> None:
    each = begun()
    try:
        each.reply(text)
    except (ProtocolError, UserError):
        return
    assert base64.b64decode(text, validate=True)


# What cannot be carried


@pytest.mark.parametrize(
    ("name", "credentials"),
    [
        ("PLAIN", Credentials(user="a\0b", secret="x")),
        ("PLAIN", Credentials(user="a", login="b\0", secret="x")),
        ("PLAIN", Credentials(user="a", secret="x\0")),
        ("LOGIN", Credentials(user="a\0", secret="x")),
        ("EXTERNAL", Credentials(user="a\0")),
        ("XOAUTH2", Credentials(user="a\1auth=x", secret="t")),
        ("XOAUTH2", Credentials(user="a", secret="t\1\1")),
        ("XOAUTH2", Credentials(user="a", secret="two words")),
        ("XOAUTH2", Credentials(user="a", secret="")),
        ("OAUTHBEARER", Credentials(user="", secret="t")),
        ("SCRAM-SHA-256", Credentials(user="", secret="x")),
        ("SCRAM-SHA-256", Credentials(user="a\0", secret="x")),
        ("SCRAM-SHA-256", Credentials(user="a", secret="x\x07")),
    ],
)
def test_what_a_mechanism_cannot_carry_is_not_sent(name: str, credentials: Credentials) -> None:
    with pytest.raises(ValueError, match=r"NUL|token|forbids"):
        exchange(name, credentials, NONE)


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("I\u00adX", "IX"),  # RFC 4013 §3
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("😀", "😀"),  # not assigned in Unicode 3.2: allowed in a query
        ("\u0627\u0628", "\u0627\u0628"),
        ("", ""),
    ],
)
def test_saslprep(text: str, prepared: str) -> None:
    assert saslprep(text) == prepared


@pytest.mark.parametrize("text", ["\u0007", "\u0627\u0031", "a\u0627", "\ue000", "\u200e", "\ufdd0", "x\u2028"])
def test_saslprep_forbids(text: str) -> None:
    with pytest.raises(ValueError, match=r"forbids|directions"):
        saslprep(text)


def test_nothing_shows_a_secret() -> None:
    for name in ("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-256"):
        each = exchange(name, BOB, NONE)
        assert CANARY not in repr(BOB) + repr(each) + str(each)
        each.command(initial=True)
        with pytest.raises(ProtocolError) as caught:
            each.reply("no base64")
        assert CANARY not in f"{caught.value}{caught.value!r}{caught.value.__context__!r}"


# Channel binding


def certificate(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    algorithm: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None,
    pss: padding.PSS | None = None,
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.org")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    return builder.sign(key, algorithm, rsa_padding=pss).public_bytes(Encoding.DER)


def digest(algorithm: hashes.HashAlgorithm, octets: bytes) -> bytes:
    made = hashes.Hash(algorithm)
    made.update(octets)
    return made.finalize()


@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda each: each.name)
def test_an_end_point_is_the_certificate_by_the_hash_of_its_signature(
    algorithm: hashes.SHA256 | hashes.SHA384 | hashes.SHA512,
) -> None:
    rsa_key = rsa.generate_private_key(65537, 2048)
    pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
    for der in (
        certificate(rsa_key, algorithm),
        certificate(rsa_key, algorithm, pss),
        certificate(ec.generate_private_key(ec.SECP256R1()), algorithm),
    ):
        assert end_point(der) == Binding(kind="tls-server-end-point", data=digest(algorithm, der))


def test_sha_1_is_bound_with_sha_256() -> None:
    """RFC 5929 §4.1; libraries make no such certificate any more, so the identifier is put in."""
    der = certificate(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    old = der.replace(bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105"))
    assert old != der
    assert end_point(old) == Binding(kind="tls-server-end-point", data=digest(hashes.SHA256(), old))


def test_a_certificate_without_a_hash_of_its_own_binds_nothing() -> None:
    assert end_point(certificate(ed25519.Ed25519PrivateKey.generate(), None)) is None


@given(st.binary(max_size=80))
def test_any_octets_are_a_binding_or_none(octets: bytes) -> None:
    assert end_point(octets) is None or octets
