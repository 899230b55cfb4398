"""The server's side of SCRAM (RFC 5802), written for tests and from the RFC alone.

    server = ScramServer("sha256", "pass")
    server.first(client_first) -> server-first; server.final(client_final) -> server-final

It checks what a server must check: nonce, channel binding, proof. What it learns (names, flag) is kept.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field

from tests.fix_imap import Peer


class ProofRefused(AssertionError):
    """The client's final message does not hold."""


def keyed(key: bytes, text: bytes, name: str) -> bytes:
    return hmac.new(key, text, name).digest()


@dataclass(slots=True, kw_only=True)
class ScramServer:
    """One exchange. `binding` is what the server sees of its TLS channel."""

    hash_name: str
    password: str
    iterations: int = 4096
    salt: bytes = b"0123456789abcdef"
    nonce: str = "server-part"
    binding: bytes = b""
    flag: str = ""
    authzid: str = ""
    user: str = ""
    _said: list[str] = field(default_factory=list)
    _header: str = ""

    def first(self, message: bytes) -> bytes:
        self.flag, authzid, bare = message.decode().split(",", 2)
        self._header = f"{self.flag},{authzid},"
        self.authzid = authzid.removeprefix("a=")
        user, nonce = bare.split(",")
        assert user.startswith("n=") and nonce.startswith("r=")
        self.user = user[2:]
        said = f"{nonce}{self.nonce},s={base64.b64encode(self.salt).decode()},i={self.iterations}"
        self._said = [bare, said]
        return said.encode()

    def final(self, message: bytes) -> bytes:
        without_proof, _, proof = message.decode().rpartition(",p=")
        channel, nonce = without_proof.split(",")
        expected = self._header.encode() + (self.binding if self.flag.startswith("p=") else b"")
        if base64.b64decode(channel.removeprefix("c=")) != expected:
            raise ProofRefused("channel binding")
        if nonce != self._said[1].split(",")[0]:
            raise ProofRefused("nonce")
        signed = ",".join([*self._said, without_proof]).encode()
        salted = hashlib.pbkdf2_hmac(self.hash_name, self.password.encode(), self.salt, self.iterations)
        client_key = keyed(salted, b"Client Key", self.hash_name)
        stored = hashlib.new(self.hash_name, client_key).digest()
        signature = keyed(stored, signed, self.hash_name)
        if bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True)) != client_key:
            raise ProofRefused("proof")
        verifier = keyed(keyed(salted, b"Server Key", self.hash_name), signed, self.hash_name)
        return b"v=" + base64.b64encode(verifier)

    async def serve(self, peer: Peer, tag: str, initial: bytes) -> str:
        """The exchange over IMAP, of the client's initial response up to the tagged answer; returns the tag."""
        peer.say(b"+ " + base64.b64encode(self.first(base64.b64decode(initial))))
        verifier = self.final(base64.b64decode(await peer.line()))
        peer.say(b"+ " + base64.b64encode(verifier))
        assert await peer.line() == b""
        peer.say(f"{tag} OK [CAPABILITY IMAP4rev1] in")
        return tag
