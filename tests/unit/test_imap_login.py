"""Logging in over the wire: every mechanism, and servers that refuse, lie or never end.

Invariant: what is secret leaves only in the mechanism that was chosen, once, and is shown nowhere.
"""

from __future__ import annotations

import base64
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from aimport.errors import AimportError, ConnectionLost, DeadlinePassed, LoginRefused, ProtocolError, UserError
from aimport.imap.auth import end_point
from aimport.imap.client import connect
from aimport.imap.connection import Deadlines
from aimport.imap.tokens import Tokens
from aimport.model import Endpoint, Secret
from tests import fix_imap
from tests.fix_imap import PASSWORD, Peer, Scripted, logout, scripted, then
from tests.fix_sasl import ScramServer

QUICK = Deadlines(connect_s=2.0, command_s=0.3, append_s=0.4, close_s=0.5)
IN = "OK [CAPABILITY IMAP4rev1] in"

pytestmark = pytest.mark.timeout(30)


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode("ascii")


def greeting(offered: str) -> str:
    return f"S: * OK [CAPABILITY IMAP4rev1 {offered}] ready"


async def open_and_close(endpoint: Endpoint, tokens: Tokens | None = None) -> None:
    connection = await connect(endpoint, deadlines=QUICK, tokens=tokens)
    await connection.close()


# Every mechanism, with an initial response (SASL-IR) and without


async def respond(peer: Peer, mechanism: str, ir: bool) -> tuple[str, bytes]:
    """Hears AUTHENTICATE; returns the tag and the initial response, asked for when there is no SASL-IR."""
    tag, command, name, *initial = (await peer.line()).decode().split(" ")
    assert (command, name) == ("AUTHENTICATE", mechanism)
    assert bool(initial) == ir
    if ir:
        return tag, initial[0].encode()
    peer.say(b"+ ")
    return tag, await peer.line()


MESSAGES = [
    ("plain", "PLAIN", "", f"\0bob\0{PASSWORD}"),
    ("plain", "PLAIN", "admin", f"bob\0admin\0{PASSWORD}"),
    ("", "PLAIN", "admin", f"bob\0admin\0{PASSWORD}"),
    ("xoauth2", "XOAUTH2", "", f"user=bob\1auth=Bearer {PASSWORD}\1\1"),
    ("oauthbearer", "OAUTHBEARER", "", f"n,a=bob,\1host=127.0.0.1\1port=PORT\1auth=Bearer {PASSWORD}\1\1"),
]


@pytest.mark.parametrize("ir", [True, False])
@pytest.mark.parametrize(("auth", "mechanism", "login", "message"), MESSAGES)
async def test_a_mechanism_of_one_message(auth: str, mechanism: str, login: str, message: str, ir: bool) -> None:
    heard = b""

    async def script(peer: Peer) -> None:
        nonlocal heard
        tag, heard = await respond(peer, mechanism, ir)
        peer.say(f"{tag} {IN}")

    offered = f"AUTH={mechanism}{' SASL-IR' if ir else ''}"
    async with scripted(then(greeting(offered), script, logout)) as server:
        await open_and_close(server.endpoint(auth=auth, login=login))
        assert base64.b64decode(heard).decode() == message.replace("PORT", str(server.port))


@pytest.mark.parametrize("ir", [True, False])
@pytest.mark.parametrize("login", ["", "admin"])
@pytest.mark.parametrize(("auth", "hash_name"), [("scram-sha-1", "sha1"), ("scram-sha-256", "sha256")])
async def test_scram_proves_the_password_and_does_not_send_it(auth: str, hash_name: str, login: str, ir: bool) -> None:
    exchange = ScramServer(hash_name=hash_name, password=PASSWORD)

    async def script(peer: Peer) -> None:
        await exchange.serve(peer, *await respond(peer, auth.upper(), ir))

    offered = f"AUTH=PLAIN AUTH={auth.upper()}{' SASL-IR' if ir else ''}"
    async with scripted(then(greeting(offered), script, logout)) as server:
        await open_and_close(server.endpoint(auth=auth, login=login))
    assert (exchange.flag, exchange.authzid, exchange.user) == ("n", "bob" if login else "", login or "bob")
    assert PASSWORD.encode() not in server.heard
    assert b64(PASSWORD)[:12].encode() not in server.heard


async def test_without_tls_a_proof_is_better_than_a_password() -> None:
    exchange = ScramServer(hash_name="sha256", password=PASSWORD)

    async def script(peer: Peer) -> None:
        await exchange.serve(peer, *await respond(peer, "SCRAM-SHA-256", True))

    offered = "AUTH=PLAIN AUTH=LOGIN AUTH=SCRAM-SHA-1 AUTH=SCRAM-SHA-256 SASL-IR"
    async with scripted(then(greeting(offered), script, logout)) as server:
        await open_and_close(server.endpoint())


async def test_login_as_a_mechanism_is_for_servers_without_the_command() -> None:
    script = f"""
        {greeting("AUTH=LOGIN LOGINDISABLED SASL-IR")}
        C: a AUTHENTICATE LOGIN
        S: + {b64("Username:")}
        C| {b64("bob")}
        S: + {b64("Password:")}
        C| {b64(PASSWORD)}
        S: a {IN}
    """
    async with scripted(then(script, logout)) as server:
        await open_and_close(server.endpoint(auth="login"))


async def test_a_referral_is_not_followed() -> None:
    script = f"""
        {greeting("AUTH=PLAIN SASL-IR")}
        C: a AUTHENTICATE PLAIN ...
        S: a OK [REFERRAL imap://bob;AUTH=*@other.example/] in
        C: b CAPABILITY
        S: * CAPABILITY IMAP4rev1
        S: b OK
    """
    async with scripted(then(script, logout)) as server:
        await open_and_close(server.endpoint())


# Channel binding


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What the scripted server's certificate binds to."""
    issued = fix_imap.authority().issue_cert("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    monkeypatch.setattr(fix_imap, "server_context", lambda name: context)
    binding = end_point(ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode()))
    assert binding is not None
    return binding.data


PLUS = "AUTH=SCRAM-SHA-256 AUTH=SCRAM-SHA-256-PLUS SASL-IR"


@pytest.mark.parametrize("security", ["tls", "starttls"])
async def test_under_tls_scram_is_bound_to_the_channel(security: str, bound: bytes) -> None:
    exchange = ScramServer(hash_name="sha256", password=PASSWORD, binding=bound)

    async def script(peer: Peer) -> None:
        await exchange.serve(peer, *await respond(peer, "SCRAM-SHA-256-PLUS", True))

    begin = f"""
        {greeting("STARTTLS")}
        C: a STARTTLS
        S: a OK
        - tls
        C: b CAPABILITY
        S: * CAPABILITY IMAP4rev1 {PLUS}
        S: b OK
    """
    wrapped = security == "tls"
    async with scripted(
        then(greeting(PLUS) if wrapped else begin, script, logout), security="tls" if wrapped else "none"
    ) as server:
        await open_and_close(server.endpoint(auth="scram-sha-256", security="tls" if wrapped else "starttls"))
    assert exchange.flag == "p=tls-server-end-point"


async def test_a_kind_of_binding_refused_before_any_proof_is_followed_by_another(bound: bytes) -> None:
    exchange = ScramServer(hash_name="sha256", password=PASSWORD)

    async def script(peer: Peer) -> None:
        tag, initial = await respond(peer, "SCRAM-SHA-256-PLUS", True)
        assert base64.b64decode(initial).startswith(b"p=tls-server-end-point,")
        peer.say(f"{tag} NO [AUTHENTICATIONFAILED] unsupported-channel-binding-type")
        tls: ssl.SSLObject = peer._writer.get_extra_info("ssl_object")
        exchange.binding = tls.get_channel_binding("tls-unique") or b""
        await exchange.serve(peer, *await respond(peer, "SCRAM-SHA-256-PLUS", True))

    async with scripted(then(greeting(PLUS), script, logout), security="tls") as server:
        await open_and_close(server.endpoint(auth="scram-sha-256"))
    assert exchange.flag == "p=tls-unique"


async def test_a_password_that_was_proven_and_refused_is_not_proven_again(bound: bytes) -> None:
    async def script(peer: Peer) -> None:
        tag, initial = await respond(peer, "SCRAM-SHA-256-PLUS", True)
        peer.say(b"+ " + base64.b64encode(ScramServer(hash_name="sha256", password="other").first(
            base64.b64decode(initial)
        )))  # fmt: skip
        await peer.line()
        peer.say(f"{tag} NO [AUTHENTICATIONFAILED] no")
        assert await peer.until_closed() == b""

    async with scripted(then(greeting(PLUS), script), security="tls") as server:
        with pytest.raises(LoginRefused, match="not the end of this TLS connection"):
            await connect(server.endpoint(auth="scram-sha-256"))


async def test_who_takes_the_offer_of_binding_away_is_found_out(bound: bytes) -> None:
    exchange = ScramServer(hash_name="sha256", password=PASSWORD)

    async def script(peer: Peer) -> None:
        await exchange.serve(peer, *await respond(peer, "SCRAM-SHA-256", True))

    offered = "AUTH=SCRAM-SHA-256 SASL-IR"
    async with scripted(then(greeting(offered), script, logout), security="tls") as server:
        await open_and_close(server.endpoint(auth="scram-sha-256"))
    assert exchange.flag == "y"


async def test_cyrus_is_offered_the_one_kind_it_knows(bound: bytes) -> None:
    exchange = ScramServer(hash_name="sha256", password=PASSWORD)

    async def script(peer: Peer) -> None:
        tls: ssl.SSLObject = peer._writer.get_extra_info("ssl_object")
        exchange.binding = tls.get_channel_binding("tls-unique") or b""
        await exchange.serve(peer, *await respond(peer, "SCRAM-SHA-256-PLUS", True))

    hello = f"S: * OK [CAPABILITY IMAP4rev1 {PLUS}] mail Cyrus IMAP 3.6.1 server ready"
    async with scripted(then(hello, script, logout), security="tls") as server:
        await open_and_close(server.endpoint(auth="scram-sha-256"))
    assert exchange.flag == "p=tls-unique"


# Servers that lie


async def wrong_signature(peer: Peer, exchange: ScramServer, tag: str, initial: bytes) -> None:
    peer.say(b"+ " + base64.b64encode(exchange.first(base64.b64decode(initial))))
    exchange.final(base64.b64decode(await peer.line()))
    peer.say(b"+ " + base64.b64encode(b"v=" + base64.b64encode(bytes(32))))


async def no_signature(peer: Peer, exchange: ScramServer, tag: str, initial: bytes) -> None:
    peer.say(b"+ " + base64.b64encode(exchange.first(base64.b64decode(initial))))
    await peer.line()
    peer.say(f"{tag} {IN}")


async def no_exchange(peer: Peer, exchange: ScramServer, tag: str, initial: bytes) -> None:
    peer.say(f"{tag} {IN}")


async def reason_instead(peer: Peer, exchange: ScramServer, tag: str, initial: bytes) -> None:
    peer.say(b"+ " + base64.b64encode(exchange.first(base64.b64decode(initial))))
    await peer.line()
    peer.say(b"+ " + base64.b64encode(b"e=other-error"))
    await peer.line()
    peer.say(f"{tag} {IN}")


@pytest.mark.parametrize("lie", [wrong_signature, no_signature, no_exchange, reason_instead])
async def test_a_server_that_does_not_know_the_password_gets_nothing_more(
    lie: Callable[[Peer, ScramServer, str, bytes], Awaitable[None]],
) -> None:
    async def script(peer: Peer) -> None:
        tag, initial = await respond(peer, "SCRAM-SHA-256", True)
        await lie(peer, ScramServer(hash_name="sha256", password=PASSWORD), tag, initial)
        assert await peer.until_closed() == b""

    async with scripted(then(greeting("AUTH=SCRAM-SHA-256 SASL-IR"), script)) as server:
        with pytest.raises(UserError, match=f"127.0.0.1:{server.port}: the server did not prove") as caught:
            await connect(server.endpoint())
    assert type(caught.value) is UserError


@pytest.mark.parametrize("auth", ["plain", "login", "xoauth2", "oauthbearer", "scram-sha-1", "scram-sha-256"])
@pytest.mark.parametrize("challenge", ["", b64('{"status":"401"}'), b64("r=x,s=c2FsdA==,i=4096"), "no base64!"])
async def test_challenges_that_never_end_end(auth: str, challenge: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.line()
        while True:
            peer.say(f"+ {challenge}")
            try:
                await peer.line()
            except AssertionError:  # it has closed
                return

    offered = f"AUTH={auth.upper()} LOGINDISABLED SASL-IR"
    async with scripted(then(greeting(offered), script)) as server:
        with pytest.raises(ProtocolError, match=f"127.0.0.1:{server.port}: "):
            await connect(server.endpoint(auth=auth), deadlines=QUICK)
    assert len(server.peers[0].lines) <= 4


async def test_a_login_that_always_moves_and_never_ends_passes_the_deadline() -> None:
    async def script(peer: Peer) -> None:
        await peer.line()
        with anyio.move_on_after(10):
            while True:
                peer.say("* OK still looking")
                await peer.flushed()
                await anyio.sleep(0.02)  # the server's pace

    async with scripted(then(greeting("AUTH=PLAIN SASL-IR"), script), check="lenient") as server:
        with anyio.fail_after(5), pytest.raises(DeadlinePassed):
            await connect(server.endpoint(), deadlines=QUICK)


async def test_a_connection_cut_in_the_middle_of_a_proof_is_lost() -> None:
    async def script(peer: Peer) -> None:
        _, initial = await respond(peer, "SCRAM-SHA-256", True)
        first = ScramServer(hash_name="sha256", password=PASSWORD, iterations=200_000).first(base64.b64decode(initial))
        peer.say(b"+ " + base64.b64encode(first))
        await peer.flushed()
        peer.reset()

    async with scripted(then(greeting("AUTH=SCRAM-SHA-256 SASL-IR"), script)) as server:
        with pytest.raises(ConnectionLost):
            await connect(server.endpoint())


# Tokens

REFUSED = "NO [AUTHENTICATIONFAILED] invalid"


def counting(tmp_path: Path, text: str) -> tuple[Secret, Callable[[], int]]:
    """A command whose answer is `text` with the number of the call for N; and how often it ran."""
    calls = tmp_path / "calls"
    script = tmp_path / "token.sh"
    script.write_text(f"echo x >> {calls}; n=$(wc -l < {calls}); printf '{text}\\n' $n\n")
    return Secret(kind="cmd", text=f"sh {script}"), lambda: len(calls.read_text().split()) if calls.exists() else 0


def xoauth2(token: str) -> str:
    return b64(f"user=bob\1auth=Bearer {token}\1\1")


def with_secret(server: Scripted, secret: Secret, auth: str = "xoauth2") -> Endpoint:
    return replace(server.endpoint(auth=auth), secret=secret)


async def test_a_refused_token_is_asked_for_again_once(tmp_path: Path) -> None:
    secret, calls = counting(tmp_path, "token-%d")
    script = f"""
        {greeting("AUTH=XOAUTH2 SASL-IR")}
        C: a AUTHENTICATE XOAUTH2 {xoauth2("token-1")}
        S: + {b64('{"status":"401"}')}
        C|
        S: a {REFUSED}
        C: b AUTHENTICATE XOAUTH2 {xoauth2("token-2")}
        S: b ANSWER
    """
    refused = script.replace("ANSWER", REFUSED) + "\n- eof"
    tokens = Tokens()
    async with scripted(then(script.replace("ANSWER", IN), logout)) as server:
        await open_and_close(with_secret(server, secret), tokens=tokens)
    assert calls() == 2
    (tmp_path / "calls").unlink()
    async with scripted(refused) as server:
        with pytest.raises(LoginRefused, match="does not take this token"):
            await connect(with_secret(server, secret), tokens=Tokens())
    assert calls() == 2


async def test_the_same_token_again_is_not_tried_again(tmp_path: Path) -> None:
    secret, calls = counting(tmp_path, "token")
    script = f"""
        {greeting("AUTH=OAUTHBEARER SASL-IR")}
        C: a AUTHENTICATE OAUTHBEARER ...
        S: + {b64('{"status":"invalid_token","scope":"mail"}')}
        C| AQ==
        S: a {REFUSED}
        - eof
    """
    async with scripted(script) as server:
        with pytest.raises(LoginRefused, match=r"invalid \(status invalid_token, scope mail\)"):
            await connect(with_secret(server, secret, "oauthbearer"), tokens=Tokens())
    assert calls() == 2


@pytest.mark.parametrize("answer", ["NO [AUTHORIZATIONFAILED] not yours", "NO [UNAVAILABLE] later"])
async def test_another_token_is_not_asked_for_where_it_would_not_help(tmp_path: Path, answer: str) -> None:
    secret, calls = counting(tmp_path, "token-%d")
    script = f"{greeting('AUTH=XOAUTH2 SASL-IR')}\nC: a AUTHENTICATE XOAUTH2 ...\nS: a {answer}\n- eof"
    async with scripted(script) as server:
        with pytest.raises(AimportError, match=answer.partition("] ")[2]):
            await connect(with_secret(server, secret), tokens=Tokens())
    assert calls() == 1


async def test_a_refused_password_is_never_tried_again(tmp_path: Path) -> None:
    secret, calls = counting(tmp_path, "password-%d")
    script = f"{greeting('AUTH=PLAIN SASL-IR')}\nC: a AUTHENTICATE PLAIN ...\nS: a {REFUSED}\n- eof"
    async with scripted(script) as server:
        with pytest.raises(LoginRefused, match="tried once"):
            await connect(with_secret(server, secret, "plain"), tokens=Tokens())
    assert calls() == 1


async def test_a_command_that_fails_when_asked_again_leaves_the_refusal(tmp_path: Path) -> None:
    once = tmp_path / "once"
    secret = Secret(kind="cmd", text=f"sh -c 'mkdir {once} && echo token'")
    script = f"{greeting('AUTH=XOAUTH2 SASL-IR')}\nC: a AUTHENTICATE XOAUTH2 ...\nS: a {REFUSED}\n- eof"
    async with scripted(script) as server:
        with pytest.raises(LoginRefused, match=r"invalid; another token: cmd:sh .* ended with status"):
            await connect(with_secret(server, secret), tokens=Tokens())


async def test_connections_share_a_token_as_long_as_it_lives(tmp_path: Path) -> None:
    secret, calls = counting(tmp_path, "token-%d\\nexpires_in=3600")
    script = f"""
        {greeting("AUTH=XOAUTH2 SASL-IR")}
        C: a AUTHENTICATE XOAUTH2 {xoauth2("token-1")}
        S: a {IN}
    """
    async with scripted(*[then(script, logout) for _ in range(5)]) as server:
        endpoint = with_secret(server, secret)
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(open_and_close, endpoint)  # by what all connections of a process share
    assert calls() == 1


# Nothing is shown


@pytest.mark.parametrize("auth", ["plain", "login", "xoauth2", "oauthbearer", "scram-sha-256"])
async def test_a_server_that_repeats_what_it_heard_does_not_make_us_show_it(
    auth: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = b64(f"\0bob\0{PASSWORD}")
    said = b64(f'{{"status":"bad {PASSWORD}","scope":"{PASSWORD}"}}')

    async def script(peer: Peer) -> None:
        line = (await peer.line()).decode()
        tag = line.partition(" ")[0]
        if auth in ("xoauth2", "oauthbearer"):
            peer.say(f"+ {said}")
            await peer.line()
        peer.say(f"{tag} NO [AUTHENTICATIONFAILED] {PASSWORD} {secret} {line}")
        await peer.until_closed()

    async with scripted(then(greeting(f"AUTH={auth.upper()} SASL-IR"), script)) as server:
        endpoint = server.endpoint(auth=auth)
        with pytest.raises(LoginRefused) as caught:
            await connect(endpoint)
    shown = caplog.text + repr(endpoint)
    error: BaseException | None = caught.value
    while error is not None:
        shown += f"{error!r}{error}"
        error = error.__cause__ or error.__context__
    assert PASSWORD not in shown
    assert b64(PASSWORD)[:12] not in shown
    assert secret not in shown
    assert "***" in shown


@pytest.mark.parametrize("said", ["* BYE what is ECHO", "ECHO", "* 1 FETCH (ECHO"])
async def test_nor_one_that_repeats_it_when_it_ends(said: str) -> None:
    async def script(peer: Peer) -> None:
        line = (await peer.line()).decode()
        peer.say(said.replace("ECHO", line.partition(" ")[2]))
        peer.close()

    async with scripted(then(greeting(""), script), check="lenient") as server:
        with pytest.raises(ConnectionLost) as caught:
            await connect(server.endpoint())
    assert PASSWORD not in f"{caught.value}{caught.value!r}"


# A client certificate


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "client.pem"
    path.touch(mode=0o600)
    fix_imap.authority().issue_cert(common_name="bob").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@pytest.fixture
def asks_for_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    context = fix_imap.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    fix_imap.authority().configure_trust(context)
    monkeypatch.setattr(fix_imap, "server_context", lambda name: context)


@pytest.mark.parametrize("ir", [True, False])
@pytest.mark.parametrize("auth", ["external", ""])
@pytest.mark.usefixtures("asks_for_certificate")
async def test_external_logs_in_by_the_certificate(key_file: Path, auth: str, ir: bool) -> None:
    async def script(peer: Peer) -> None:
        shown = peer._writer.get_extra_info("peercert")
        assert (("commonName", "bob"),) in shown["subject"]
        tag, initial = await respond(peer, "EXTERNAL", ir)
        assert base64.b64decode(initial) == b"bob"
        peer.say(f"{tag} {IN}")

    offered = f"AUTH=PLAIN AUTH=EXTERNAL{' SASL-IR' if ir else ''}"
    async with scripted(then(greeting(offered), script, logout), security="tls") as server:
        await open_and_close(replace(server.endpoint(auth=auth), tls_cert=str(key_file), secret=None))


async def test_a_certificate_that_cannot_be_used_is_named_and_nobody_is_asked(key_file: Path) -> None:
    pem = key_file.read_bytes()
    key = load_pem_private_key(pem, None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase"))
    broken = {
        "missing.pem": None,
        "locked.pem": locked + pem[pem.index(b"-----BEGIN CERTIFICATE") :],
        "no-key.pem": pem[pem.index(b"-----BEGIN CERTIFICATE") :],
        "garbage.pem": b"x",
    }
    async with scripted(*[Peer.until_closed] * len(broken), security="tls") as server:
        for name, octets in broken.items():
            path = key_file.with_name(name)
            if octets is not None:
                path.write_bytes(octets)
                path.chmod(0o600)
            with pytest.raises(UserError, match=f"tls_cert .*{name}: no certificate with its key"):
                await connect(replace(server.endpoint(auth="external"), tls_cert=str(path)))
    assert server.heard == b""


@pytest.mark.usefixtures("asks_for_certificate")
async def test_a_key_that_others_can_read_is_warned_about(key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key_file.chmod(0o640)
    script = f"{greeting('AUTH=EXTERNAL SASL-IR')}\nC: a AUTHENTICATE EXTERNAL Ym9i\nS: a {IN}"
    async with scripted(then(script, logout), security="tls") as server:
        await open_and_close(replace(server.endpoint(), tls_cert=str(key_file), secret=None))
    assert str(key_file) in caplog.text
