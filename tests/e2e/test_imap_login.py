"""Logging in to real servers by every mechanism that they offer: Dovecot and Cyrus, in the clear and under TLS."""

from __future__ import annotations

import base64
import ctypes
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
import trustme

from aimport import sample
from aimport.errors import LoginRefused
from aimport.imap.client import connect
from aimport.imap.tokens import Tokens
from aimport.model import Endpoint, Secret, Security
from tests import mail, servers
from tests.fix_cyrus import Cyrus, run_cyrus
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.processes import server_folder, server_owner

pytestmark = [pytest.mark.timeout(120)]

BOB: Final = "bob@example.org"
PASSWORD: Final = "pass-word"
KEY: Final = b"0123456789abcdef0123456789abcdef"
MORE: Final = """
auth_mechanisms = plain login scram-sha-1 scram-sha-256 external xoauth2 oauthbearer
ssl_ca = <{folder}/clients.pem
ssl_verify_client_cert = yes
ssl_require_crl = no
auth_ssl_username_from_cert = yes
passdb {{
  driver = static
  mechanisms = external
  args = nopassword=y
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {folder}/oauth2.conf
}}
"""
OAUTH2: Final = """
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={folder}/keys/
username_attribute = sub
"""
SECURITIES: Final[tuple[Security, ...]] = ("none", "starttls", "tls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A server and what is there to log in with."""

    server: Dovecot | Cyrus
    certificate: str = ""

    def endpoint(
        self, auth: str, security: Security = "tls", *, user: str = BOB, login: str = "", secret: Secret | str = ""
    ) -> Endpoint:
        server = self.server
        return Endpoint(
            scheme="imap",
            host="localhost",
            port=server.tls_port if security == "tls" else server.port,
            security=security,
            user=user,
            login=login,
            auth=auth,
            secret=secret if isinstance(secret, Secret) else Secret(kind="literal", text=secret or PASSWORD),
            tls_ca=str(server.ca_file),
        )


async def logs_in(endpoint: Endpoint, tokens: Tokens | None = None) -> None:
    connection = await connect(endpoint, tokens=tokens)
    try:
        reply = await connection.command(b"EXAMINE", b"INBOX")
        assert reply.ok, reply.tagged
    finally:
        await connection.close()


# Dovecot


@pytest.fixture(scope="module")
def many() -> Iterator[Place]:
    """A Dovecot with all mechanisms of this release."""
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder("login"))
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "clients.pem"))
        certificate = folder / "bob.pem"
        certificate.touch(mode=0o600)
        authority.issue_cert(common_name=BOB).private_key_and_cert_chain_pem.write_to_path(str(certificate))
        keys = folder / "keys/default/HS256"
        keys.mkdir(parents=True)
        (keys / "default").write_bytes(base64.b64encode(KEY))
        (folder / "oauth2.conf").write_text(OAUTH2.format(folder=folder))
        try:
            server = stack.enter_context(
                run_dovecot(folder / "dovecot", password=PASSWORD, extra=MORE.format(folder=folder))
            )
        except servers.CannotGet as reason:
            pytest.skip(str(reason))
        yield Place(server=server, certificate=str(certificate))


@pytest.mark.dovecot
@pytest.mark.parametrize("security", SECURITIES)
@pytest.mark.parametrize("auth", ["", "plain", "login", "scram-sha-1", "scram-sha-256"])
async def test_dovecot_takes_a_password(many: Place, auth: str, security: Security) -> None:
    await logs_in(many.endpoint(auth, security))


@pytest.mark.dovecot
@pytest.mark.parametrize("auth", ["", "plain", "scram-sha-1", "scram-sha-256"])
@pytest.mark.parametrize("security", ["none", "tls"])
async def test_dovecot_lets_its_master_act_for_a_user(many: Place, auth: str, security: Security) -> None:
    assert isinstance(many.server, Dovecot)
    await logs_in(many.endpoint(auth, security, login=many.server.master_user, secret=many.server.master_password))


@pytest.mark.dovecot
@pytest.mark.parametrize("auth", ["plain", "login", "scram-sha-1", "scram-sha-256"])
async def test_dovecot_refuses_a_wrong_password(many: Place, auth: str) -> None:
    with pytest.raises(LoginRefused, match=f"login of {BOB}"):
        await logs_in(many.endpoint(auth, secret="another"))


@pytest.mark.dovecot
@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.parametrize("auth", ["", "external"])
async def test_dovecot_takes_a_certificate(many: Place, auth: str, security: Security) -> None:
    await logs_in(replace(many.endpoint(auth, security), tls_cert=many.certificate, secret=None))


def jwt(user: str, life_s: int) -> str:
    """A token that Dovecot validates by itself."""

    def part(octets: bytes) -> str:
        return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

    now = int(time.time())
    head = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    text = f"{head}.{part(json.dumps({'sub': user, 'iat': now - 10, 'exp': now + life_s}).encode())}"
    return f"{text}.{part(hmac.digest(KEY, text.encode(), 'sha256'))}"


@pytest.mark.dovecot
@pytest.mark.parametrize("auth", ["xoauth2", "oauthbearer"])
async def test_dovecot_takes_a_token_and_says_what_it_misses(many: Place, auth: str) -> None:
    await logs_in(many.endpoint(auth, secret=jwt(BOB, 3600)))
    refused = jwt(BOB, 3600)[:-6] + "AAAAAA"
    with pytest.raises(LoginRefused, match=r"status (401|invalid_token)") as caught:
        await logs_in(many.endpoint(auth, secret=refused))
    assert refused not in f"{caught.value}{caught.value!r}"


@pytest.mark.dovecot
async def test_an_expired_token_is_replaced_in_the_middle_of_a_run(many: Place, tmp_path: Path) -> None:
    """The command first gives a token that the server finds expired, then a good one."""
    (tmp_path / "1").write_text(f"{jwt(BOB, -5)}\nexpires_in=3600\n")
    (tmp_path / "2").write_text(f"{jwt(BOB, 3600)}\n")
    script = tmp_path / "token.sh"
    script.write_text(f"cd {tmp_path}; cat 1 2>/dev/null || cat 2; echo x >> calls; rm -f 1\n")
    endpoint = many.endpoint("xoauth2", secret=Secret(kind="cmd", text=f"sh {script}"))
    tokens = Tokens()
    for _ in range(3):
        await logs_in(endpoint, tokens)
    assert len((tmp_path / "calls").read_text().split()) == 2


@pytest.mark.dovecot
@pytest.mark.parametrize("auth", ["oauthbearer", "external", "scram-sha-256"])
def test_the_command_logs_in_by_what_the_settings_say(many: Place, tmp_path: Path, auth: str) -> None:
    user = f"{auth}@example.org" if auth != "external" else BOB
    sample.write_maildir(tmp_path / "from", sample.account(user, seed=3, messages=5, median_octets=500))
    settings = {
        "oauthbearer": ["-o", f"dest_password=cmd:echo {jwt(user, 3600)}"],
        "external": ["-o", f"dest_tls_cert={many.certificate}"],
        "scram-sha-256": ["-o", "dest_password=env:PW"],
    }[auth]
    done = mail.aimport(
        *settings, "-o", f"dest_auth={auth}", "-o", f"dest_tls_ca={many.server.ca_file}", "import", "-u", user,
        "--to", f"imaps://localhost:{many.server.tls_port}/", "--journal", tmp_path / "journal",
        f"maildir:{tmp_path}/from", auth, "ALL", env={"PW": PASSWORD},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sum(mail.in_imap(many.server.port, user, PASSWORD).values()) >= 5


# Cyrus

SASL: Final = """\
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {database}
sasl_mech_list: PLAIN LOGIN SCRAM-SHA-1 SCRAM-SHA-1-PLUS SCRAM-SHA-256 SCRAM-SHA-256-PLUS"""
GETOPT: Final = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_char_p),
    ctypes.POINTER(ctypes.c_uint),
)


class Callback(ctypes.Structure):
    _fields_ = (("id", ctypes.c_ulong), ("proc", GETOPT), ("context", ctypes.c_void_p))


def set_passwords(database: Path, *names: tuple[str, str]) -> None:
    """What `saslpasswd2` does, which is in a package of its own: PASSWORD for users of realms in a sasldb.

    Raises:
        servers.CannotGet: this machine has no libsasl2 with its sasldb.
    """
    options = {b"sasldb_path": str(database).encode(), b"auxprop_plugin": b"sasldb"}

    def getopt(context: object, plugin: object, option: bytes, result: object, length: object) -> int:
        value = options.get(option)
        if value is None:
            return -1
        result[0] = value  # type: ignore[index]  # a pointer, which ctypes cannot say
        return 0

    try:
        sasl = ctypes.CDLL("libsasl2.so.2")
    except OSError:
        raise servers.CannotGet("cyrus: no libsasl2 to make passwords with") from None
    callbacks = (Callback * 2)(Callback(1, GETOPT(getopt), None), Callback(0, GETOPT(), None))
    assert sasl.sasl_server_init(callbacks, b"aimport") == 0
    try:
        for user, realm in names:
            session = ctypes.c_void_p()
            new = sasl.sasl_server_new(
                b"aimport", b"localhost", realm.encode(), None, None, None, 0, ctypes.byref(session)
            )
            assert new == 0
            if sasl.sasl_setpass(session, user.encode(), PASSWORD.encode(), len(PASSWORD), None, 0, 1) != 0:
                raise servers.CannotGet("cyrus: libsasl2 keeps no passwords here (libsasl2-modules-db)")
            sasl.sasl_dispose(ctypes.byref(session))
    finally:
        sasl.sasl_done()


@pytest.fixture(scope="module")
def scram_cyrus() -> Iterator[Place]:
    """A Cyrus that knows passwords, and SCRAM with them."""
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder("sasl"))
        database = folder / "sasldb2"
        try:
            set_passwords(database, ("bob", "example.org"), ("admin", "localhost.localdomain"), ("admin", "localhost"))
            server_owner().own(database)
            server = stack.enter_context(run_cyrus(folder / "cyrus", sasl=SASL.format(database=database)))
        except servers.CannotGet as reason:
            pytest.skip(str(reason))
        server = replace(server, password=PASSWORD)
        server.create_user(BOB)
        yield Place(server=server)


@pytest.mark.cyrus
@pytest.mark.parametrize("security", SECURITIES)
@pytest.mark.parametrize("auth", ["", "plain", "login", "scram-sha-1", "scram-sha-256"])
async def test_cyrus_takes_a_password(scram_cyrus: Place, auth: str, security: Security) -> None:
    """Under TLS it offers -PLUS too, and that is what SCRAM then is."""
    await logs_in(scram_cyrus.endpoint(auth, security))


@pytest.mark.cyrus
@pytest.mark.parametrize("security", ["none", "tls"])
@pytest.mark.parametrize("auth", ["plain", "scram-sha-1", "scram-sha-256"])
async def test_cyrus_lets_its_admin_act_for_a_user(scram_cyrus: Place, auth: str, security: Security) -> None:
    await logs_in(scram_cyrus.endpoint(auth, security, login="admin"))


@pytest.mark.cyrus
@pytest.mark.parametrize("auth", ["plain", "scram-sha-256"])
async def test_cyrus_refuses_a_wrong_password(scram_cyrus: Place, auth: str) -> None:
    with pytest.raises(LoginRefused, match=f"login of {BOB}"):
        await logs_in(scram_cyrus.endpoint(auth, secret="another"))
