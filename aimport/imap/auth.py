"""SASL: which mechanism to log in with, and what it answers to a server. Sans I/O, no clock.

    choose() ──▶ name ──▶ exchange() ──▶ Exchange: command(), reply() for each challenge, finish() after the OK

Knows RFC 4422 and the mechanisms below; nothing of tags, literals or connections. What a
server may ask for is bounded by the mechanism, so no exchange goes on for ever. Texts of errors
do not name the server: the caller does. No secret enters one.

SCRAM is written here because the kept library for it (scramp 1.5) sends no authorization
identity and is neither typed nor able to tell the hash of every certificate.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import stringprep
import unicodedata
from dataclasses import dataclass, field
from typing import Final

from aimport.errors import ProtocolError, UserError
from aimport.imap.answers import clean

TOKENS: Final = frozenset({"xoauth2", "oauthbearer"})
"""Mechanisms, as settings name them, whose secret is a token."""
SCRAM: Final = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-1": "sha1"}
MIN_ITERATIONS: Final = 4096  # RFC 7677 §4: fewer would make a stolen exchange cheap to guess from
MAX_ITERATIONS: Final = 1_000_000  # arbitrary: 0.3 s of our processor; Dovecot and Cyrus ask for 4096
MAX_REASON: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What ties an exchange to the TLS channel it runs in (RFC 5056)."""

    kind: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who opens whose mail, and by what. `login` is "" when users log in themselves."""

    user: str
    login: str = ""
    secret: str = field(default="", repr=False)
    host: str = ""
    port: int = 0
    binding: Binding | None = None


# Choice -------------------------------------------------------------------------------------------------------


def choose(
    asked: str,
    offered: frozenset[str],
    *,
    encrypted: bool,
    bound: bool = False,
    master: bool = False,
    certificate: bool = False,
    secret: bool = True,
) -> str:
    """The mechanism to use, as the server names it; "" is the LOGIN command.

    `asked` is the mechanism of the settings, "" for the best of those offered; `bound`: the
    channel can be bound (-PLUS); `master`: someone logs in for another user; `certificate`: the
    client showed one. Nothing weaker than what was asked for is ever chosen. In the clear a
    password is sent only where the server takes no proof of it; under TLS, PLAIN comes first:
    servers offer SCRAM also to users whose passwords they hold in another form.

    Raises:
        UserError: there is no such way to log in. Nothing was sent.
    """
    mechanisms = {name.removeprefix("AUTH=") for name in offered if name.startswith("AUTH=")}
    command = "LOGINDISABLED" not in offered
    if asked:
        return _asked(asked.upper(), mechanisms, command, encrypted, bound, master, certificate)
    if not secret:
        return _asked("EXTERNAL", mechanisms, command, encrypted, bound, master, certificate)
    scrams = [name for base in SCRAM if (name := _scram(base, mechanisms, bound))]
    plain = [name for name in ("PLAIN",) if name in mechanisms]
    for name in plain + scrams if encrypted else scrams + plain:
        return name
    if master:
        raise UserError("the server does not offer AUTH=PLAIN, which a master user needs", hint="nothing was sent")
    if command and (not mechanisms or "LOGIN" in mechanisms):
        return ""
    if "LOGIN" in mechanisms:
        return "LOGIN"
    said = f" (it offers {_list(mechanisms)})" if mechanisms else ""
    if not command:
        raise UserError(f"the server allows no login here{said}", hint="use TLS, or another mechanism")
    raise UserError(
        f"the server offers no mechanism for a password{said}",
        hint="nothing was sent; source_auth and dest_auth name a mechanism, `login` the LOGIN command",
    )


def _asked(
    asked: str,
    mechanisms: set[str],
    command: bool,
    encrypted: bool,
    bound: bool,
    master: bool,
    certificate: bool,
) -> str:
    if asked == "LOGIN":
        if master:
            raise UserError("LOGIN cannot act for another user", hint="use auth=PLAIN")
        if not command and "LOGIN" not in mechanisms:
            raise UserError("the server allows no login here", hint="use TLS, or another mechanism")
        return "" if command else "LOGIN"
    if asked == "EXTERNAL" and not (encrypted and certificate):
        raise UserError(
            "EXTERNAL needs a client certificate and TLS", hint="set source_tls_cert or dest_tls_cert to a PEM file"
        )
    name = _scram(asked, mechanisms, bound) if asked in SCRAM else asked if asked in mechanisms else ""
    if not name:
        raise UserError(f"the server does not offer AUTH={asked}", hint="nothing was sent")
    return name


def _scram(base: str, mechanisms: set[str], bound: bool) -> str:
    """The form of a SCRAM mechanism to use, with channel binding where both can; "": none."""
    plus = f"{base}-PLUS"
    if bound and plus in mechanisms:
        return plus
    return base if base in mechanisms else ""


def _list(mechanisms: set[str]) -> str:
    return clean(", ".join(f"AUTH={name}" for name in sorted(mechanisms))[:MAX_REASON])


# Exchanges ----------------------------------------------------------------------------------------------------


def exchange(name: str, credentials: Credentials, offered: frozenset[str], *, nonce: str = "") -> Exchange:
    """The exchange of the mechanism that `choose` chose. `nonce` is for tests.

    Raises:
        ValueError: a name or secret holds what the mechanism cannot carry.
    """
    user, login, secret = credentials.user, credentials.login, credentials.secret
    match name:
        case "PLAIN":  # RFC 4616
            fields = (user if login else "", login or user, secret)
            if any("\0" in part for part in fields):
                raise ValueError("NUL")
            return Exchange(name, "\0".join(fields).encode())
        case "LOGIN":
            return _Login(user, secret)
        case "EXTERNAL":  # RFC 4422 appendix A
            if "\0" in user:
                raise ValueError("NUL")
            return Exchange(name, user.encode())
        case "XOAUTH2" | "OAUTHBEARER":
            return _Bearer(name, credentials)
        case _:
            base = name.removesuffix("-PLUS")
            plus_offered = f"AUTH={base}-PLUS" in offered
            return _Scram(name, SCRAM[base], credentials, nonce or secrets.token_urlsafe(24), plus_offered)


class Exchange:
    """One login: an initial response, an answer to each challenge, a check at the end.

    This class itself is for mechanisms of one message; `initial` None: the server speaks first.
    """

    slow = False
    """`reply` takes milliseconds of computing."""

    def __init__(self, name: str, initial: bytes | None) -> None:
        self.name = name
        self.reason = ""
        """What the server said beside its NO, fit to be shown."""
        self.proven = True
        """The secret, or a proof of it, has left (or will with the first message)."""
        self._initial = initial

    def command(self, *, initial: bool) -> list[bytes]:
        """The words of the command; `initial`: the server takes the initial response with it (SASL-IR, RFC 4959)."""
        words = [b"AUTHENTICATE", self.name.encode("ascii")]
        if initial and self._initial is not None:
            words.append(base64.b64encode(self._initial) or b"=")
            self._initial = None
        return words

    def reply(self, text: str) -> bytes:
        """The line that answers the server's `+ text`.

        Raises:
            ProtocolError: a challenge that this mechanism does not have.
            UserError: the server is not who it should be.
        """
        if self._initial is not None:  # its challenge is empty; some servers write a word
            response, self._initial = self._initial, None
            return base64.b64encode(response)
        try:
            challenge = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ProtocolError(f"a challenge of {self.name} that is not base64") from None
        return base64.b64encode(self._answer(challenge))

    def finish(self) -> None:
        """The server said OK.

        Raises:
            ProtocolError: before it could know who we are.
            UserError: it did not prove what it has to.
        """
        if self._initial is not None:
            raise ProtocolError(f"the server said OK before {self.name} had begun")

    def _answer(self, challenge: bytes) -> bytes:
        raise ProtocolError(f"the server waits for more than {self.name} has to say")


class _Login(Exchange):
    """Two prompts whose words differ from server to server (draft-murchison-sasl-login)."""

    def __init__(self, user: str, secret: str) -> None:
        super().__init__("LOGIN", None)
        if "\0" in user + secret:
            raise ValueError("NUL")
        self._answers = [secret.encode(), user.encode()]

    def _answer(self, challenge: bytes) -> bytes:
        return self._answers.pop() if self._answers else super()._answer(challenge)

    def finish(self) -> None:
        if self._answers:
            raise ProtocolError("the server said OK before it had the password")


class _Bearer(Exchange):
    """A token: XOAUTH2 (Google, Microsoft) and OAUTHBEARER (RFC 7628)."""

    def __init__(self, name: str, credentials: Credentials) -> None:
        user, token = credentials.user, credentials.secret
        if re.search(r"[\0\1\r\n]", user) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ValueError("a control character, or a token that is none")
        if name == "XOAUTH2":
            text = f"user={user}\1auth=Bearer {token}\1\1"
        else:
            host, port = credentials.host, credentials.port
            server = f"host={host}\1port={port}\1" if host else ""
            text = f"n,a={_saslname(user)},\1{server}auth=Bearer {token}\1\1"
        super().__init__(name, text.encode())
        self._refused = False

    def _answer(self, challenge: bytes) -> bytes:
        if self._refused:
            return super()._answer(challenge)
        self._refused = True
        self.reason = _reason(challenge)
        return b"" if self.name == "XOAUTH2" else b"\1"  # RFC 7628 §3.2.3; then comes the NO

    def finish(self) -> None:
        super().finish()
        if self._refused:
            raise ProtocolError(f"the server said OK after it had refused the token of {self.name}")


def _reason(challenge: bytes) -> str:
    """`status` and `scope` of an error challenge (RFC 7628 §3.2.2); empty when it says neither."""
    try:
        said = json.loads(challenge)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(said, dict):
        return ""
    parts = ((key, said.get(key)) for key in ("status", "scope"))
    return ", ".join(f"{key} {clean(value[:MAX_REASON])}" for key, value in parts if isinstance(value, str) and value)


class _Scram(Exchange):
    """A proof of the password from both sides (RFC 5802, 7677); the password itself does not leave."""

    slow = True

    def __init__(self, name: str, hash_name: str, credentials: Credentials, nonce: str, plus_offered: bool) -> None:
        self._hash = hash_name
        self._secret = saslprep(credentials.secret).encode()
        self._nonce = nonce
        binding = credentials.binding
        bound = b""
        if name.endswith("-PLUS"):
            assert binding is not None, "`choose` knows whether the channel can be bound"
            flag, bound = f"p={binding.kind}", binding.data
        else:
            # "y": we could; a server that could as well learns that someone took its offer away (RFC 5802 §6).
            flag = "y" if binding is not None and not plus_offered else "n"
        authzid = f"a={_saslname(saslprep(credentials.user))}" if credentials.login else ""
        header = f"{flag},{authzid},"
        self._bare = f"n={_saslname(saslprep(credentials.login or credentials.user))},r={nonce}"
        self._channel = base64.b64encode(header.encode() + bound).decode("ascii")
        self._signature: bytes | None = None
        self._trusted = False
        super().__init__(name, (header + self._bare).encode())
        self.proven = False

    def _answer(self, challenge: bytes) -> bytes:
        try:
            text = challenge.decode()
        except UnicodeDecodeError:
            raise ProtocolError(f"a challenge of {self.name} that is not text") from None
        if self._signature is None:
            return self._prove(text)
        if self._trusted or self.reason:
            return super()._answer(challenge)
        if text.startswith("e="):
            self.reason = clean(text[2:MAX_REASON])
            return b""
        signature = _decoded(_attributes(text, "v")[0])
        if not hmac.compare_digest(signature, self._signature):
            raise _untrusted()
        self._trusted = True
        return b""

    def _prove(self, text: str) -> bytes:
        """The client's final message, of the server's first."""
        if text.startswith("e="):
            raise ProtocolError(f"{self.name}: the server says {clean(text[2:MAX_REASON])}")
        nonce, salt_text, count = _attributes(text, "r", "s", "i")
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise ProtocolError(f"{self.name}: the server does not answer to this exchange (nonce)")
        if not re.fullmatch("[1-9][0-9]{0,9}", count, re.ASCII):
            raise ProtocolError(f"{self.name}: an iteration count that is none")
        iterations = int(count)
        if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise UserError(
                f"{self.name}: the server wants {iterations} iterations",
                hint=f"from {MIN_ITERATIONS} to {MAX_ITERATIONS} are safe; nothing was proven to it",
            )
        salted = hashlib.pbkdf2_hmac(self._hash, self._secret, _decoded(salt_text), iterations)
        client_key = hmac.digest(salted, b"Client Key", self._hash)
        final = f"c={self._channel},r={nonce}"
        signed = f"{self._bare},{text},{final}".encode()
        client_signature = hmac.digest(hashlib.new(self._hash, client_key).digest(), signed, self._hash)
        self.proven = True
        proof = bytes(a ^ b for a, b in zip(client_key, client_signature, strict=True))
        self._signature = hmac.digest(hmac.digest(salted, b"Server Key", self._hash), signed, self._hash)
        return f"{final},p={base64.b64encode(proof).decode('ascii')}".encode()

    def finish(self) -> None:
        super().finish()
        if not self._trusted:
            raise _untrusted()


def _untrusted() -> UserError:
    return UserError(
        "the server did not prove that it knows the password",
        hint="it may not be the one it says it is; the connection was closed and nothing was read or written",
    )


def _attributes(text: str, *names: str) -> list[str]:
    """Values of `name=value,...` in the order that SCRAM prescribes; extensions may follow (RFC 5802 §5.1).

    Raises:
        ProtocolError: another order, or an extension that must be understood (`m=`).
    """
    values = []
    parts = text.split(",")
    for name, part in zip(names, parts, strict=False):
        if not part.startswith(f"{name}="):
            raise ProtocolError("a challenge of SCRAM that is not as RFC 5802 says")
        values.append(part[2:])
    if len(values) < len(names):
        raise ProtocolError("a challenge of SCRAM that is not as RFC 5802 says")
    return values


def _decoded(text: str) -> bytes:
    try:
        octets = base64.b64decode(text, validate=True)
    except ValueError:
        octets = b""
    if not octets:
        raise ProtocolError("a challenge of SCRAM that is not as RFC 5802 says")
    return octets


def _saslname(name: str) -> str:
    """A name as GS2 and SCRAM write it (RFC 5801 §4)."""
    if not name or "\0" in name:
        raise ValueError("an empty name, or a NUL")
    return name.replace("=", "=3D").replace(",", "=2C")


_PROHIBITED: Final = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def saslprep(text: str) -> str:
    """`text` prepared as a query string (RFC 4013): what Unicode 3.2 did not know stays as it is.

    Raises:
        ValueError: characters that are not allowed, or both directions of writing at once.
    """
    if text.isascii() and text.isprintable():
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if any(prohibited(char) for char in prepared for prohibited in _PROHIBITED):
        raise ValueError("a character that SASLprep forbids")
    leftward = [stringprep.in_table_d1(char) for char in prepared]
    if any(leftward) and not (leftward[0] and leftward[-1] and not any(map(stringprep.in_table_d2, prepared))):
        raise ValueError("both directions of writing (RFC 3454 §6)")
    return prepared


# Channel binding ----------------------------------------------------------------------------------------------

_HASH_OF_SIGNATURE: Final = {
    # Object identifiers in DER. MD5 and SHA-1 are bound with SHA-256 (RFC 5929 §4.1).
    "2a864886f70d010104": "sha256",  # md5WithRSAEncryption
    "2a864886f70d010105": "sha256",  # sha1WithRSAEncryption
    "2a864886f70d01010e": "sha224",
    "2a864886f70d01010b": "sha256",
    "2a864886f70d01010c": "sha384",
    "2a864886f70d01010d": "sha512",
    "2a8648ce3d0401": "sha256",  # ecdsa-with-SHA1
    "2a8648ce3d040301": "sha224",
    "2a8648ce3d040302": "sha256",
    "2a8648ce3d040303": "sha384",
    "2a8648ce3d040304": "sha512",
}
_PSS: Final = "2a864886f70d01010a"
_HASH: Final = {
    "2b0e03021a": "sha256",  # SHA-1
    "608648016503040204": "sha224",
    "608648016503040201": "sha256",
    "608648016503040202": "sha384",
    "608648016503040203": "sha512",
}


def end_point(certificate: bytes) -> Binding | None:
    """`tls-server-end-point` (RFC 5929 §4) of the server's certificate in DER.

    None: its signature has no hash of its own (Ed25519), for which the RFC defines nothing. Beside it, Python's ssl
    gives `tls-unique`, and no exporter (RFC 9266).
    """
    try:
        _, body, _ = _der(certificate)  # Certificate: tbsCertificate, signatureAlgorithm, signature
        _, _, rest = _der(body)
        _, algorithm, _ = _der(rest)
        _, oid, parameters = _der(algorithm)
        name = _HASH_OF_SIGNATURE.get(oid.hex())
        if oid.hex() == _PSS:
            name = _hash_of_pss(parameters)
    except ValueError:
        return None
    if name is None:
        return None
    return Binding(kind="tls-server-end-point", data=hashlib.new(name, certificate).digest())


def _hash_of_pss(parameters: bytes) -> str | None:
    """Hash of RSASSA-PSS-params (RFC 4055 §3.1): `[0]`, SHA-1 when left out."""
    _, fields, _ = _der(parameters)
    if fields[:1] != b"\xa0":
        return "sha256"
    _, tagged, _ = _der(fields)
    _, algorithm, _ = _der(tagged)
    _, oid, _ = _der(algorithm)
    return _HASH.get(oid.hex())


def _der(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first element, and what follows it.

    Raises:
        ValueError: it is cut short.
    """
    if len(data) < 2:
        raise ValueError("DER is cut short")
    size, at = data[1], 2
    if size & 0x80:
        at += size & 0x7F
        size = int.from_bytes(data[2:at], "big")
    if at + size > len(data):
        raise ValueError("DER is cut short")
    return data[0], data[at : at + size], data[at + size :]
