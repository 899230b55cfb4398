"""One connection against a server that does as told: pipelining, literals, deadlines, TLS, honest ends.

Invariant of all: a connection is either in step or over, and nothing waits for what cannot come.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import anyio
import pytest

from aimport.errors import (
    AimportError,
    ConnectionLost,
    DeadlinePassed,
    LoginRefused,
    ProtocolError,
    Unavailable,
    UserError,
)
from aimport.imap.client import connect
from aimport.imap.commands import Literal, LiteralPolicy, Word
from aimport.imap.connection import SPOOL_HIGH, TLS_PIECE, Deadlines
from aimport.imap.responses import Exists, Fetch, Listed
from aimport.model import STREAM_OCTETS, Security
from aimport.spool import Spool
from tests.fix_imap import AFTER, BEFORE, LOGIN, PASSWORD, Peer, logout, scripted, then
from tests.fix_imap import login as login_as

QUICK = Deadlines(connect_s=1.0, command_s=0.2, append_s=0.4, close_s=0.5)

pytestmark = pytest.mark.timeout(30)


# Greeting and login


async def test_capabilities_of_the_greeting_and_of_the_login_cost_no_round_trip() -> None:
    async with scripted(then(LOGIN, logout)) as server:
        connection = await connect(server.endpoint())
        assert connection.capabilities == set(AFTER.upper().split())
        assert connection.policy is LiteralPolicy.PLUS
        await connection.close()
    assert [line.split()[1] for line in server.peers[0].lines] == [b"AUTHENTICATE", b"LOGOUT"]


async def test_capabilities_are_asked_for_where_nothing_was_said() -> None:
    script = """
        S: * OK ready
        C: a CAPABILITY
        S: * CAPABILITY IMAP4rev1
        S: a OK
        C: b LOGIN "bob" "canary-secret"
        S: b OK
        C: c CAPABILITY
        S: * CAPABILITY IMAP4rev1 LITERAL-
        S: c OK
    """
    async with scripted(then(script, logout)) as server:
        connection = await connect(server.endpoint())
        assert connection.policy is LiteralPolicy.MINUS
        await connection.close()


async def test_without_sasl_ir_the_response_waits_for_the_challenge() -> None:
    script = """
        S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready
        C: a AUTHENTICATE PLAIN
        S: +
        C| Ym9iAGFkbWluAGNhbmFyeS1zZWNyZXQ=
        S: a OK [CAPABILITY IMAP4rev1] in
    """
    async with scripted(then(script, logout)) as server:
        connection = await connect(server.endpoint(login="admin"))
        await connection.close()


async def test_a_refused_token_is_one_try_and_no_loop() -> None:
    script = """
        S: * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2 SASL-IR] ready
        C: a AUTHENTICATE XOAUTH2 ...
        S: + eyJzdGF0dXMiOiI0MDAifQ==
        C|
        S: a NO [AUTHENTICATIONFAILED] invalid token
    """
    async with scripted(script) as server:
        with pytest.raises(LoginRefused, match=r"login of bob: server said NO .*invalid token"):
            await connect(server.endpoint(auth="xoauth2"))


async def test_a_challenge_that_never_ends_ends() -> None:
    script = f"""
        S: * OK [CAPABILITY {BEFORE}] ready
        C: a AUTHENTICATE PLAIN ...
        S: +
        - eof
    """
    async with scripted(script) as server:
        with pytest.raises(ProtocolError, match="waits for more than PLAIN has to say"):
            await connect(server.endpoint())


@pytest.mark.parametrize("user", ['quo"ted\\', "ü", "a b", "%*()"])
async def test_any_name_and_password_is_sent_so_that_it_arrives(user: str) -> None:
    heard = []

    async def script(peer: Peer) -> None:
        peer.say("* OK [CAPABILITY IMAP4rev1] ready")
        line = await peer.line()
        while line.endswith(b"}"):
            peer.say("+ go")
            size = int(line[line.rindex(b"{") + 1 : -1])
            heard.append((await peer.octets(size)).decode())
            line = await peer.line()
        if not heard:
            quoted = line.partition(b"LOGIN ")[2].removesuffix(b' "canary-secret"')
            heard.append(quoted[1:-1].decode().replace("\\\\", "\0").replace('\\"', '"').replace("\0", "\\"))
        peer.say(peer.lines[0].split()[0] + b" OK [CAPABILITY IMAP4rev1] in")
        await logout(peer)

    async with scripted(script) as server:
        connection = await connect(server.endpoint(user=user))
        await connection.close()
    assert heard == [user]


@pytest.mark.parametrize("user", ["a\r\nb LOGOUT", "a\0b"])
async def test_what_cannot_be_sent_is_refused_unsent(user: str) -> None:
    for offered in ("IMAP4rev1", BEFORE):
        async with scripted(then(f"S: * OK [CAPABILITY {offered}] ready", Peer.until_closed)) as server:
            if offered == "IMAP4rev1" or "\0" in user:
                with pytest.raises(UserError, match="NUL, CR or LF"):
                    await connect(server.endpoint(user=user))
                assert server.heard == b""
            else:
                server.peers.clear()
                with suppress(AimportError):
                    await connect(server.endpoint(user=user), deadlines=QUICK)
                assert b"LOGOUT" not in server.heard  # base64 carries anything


@pytest.mark.parametrize(
    ("offered", "auth", "login", "said"),
    [
        ("IMAP4rev1 LOGINDISABLED", "", "", "allows no login"),
        ("IMAP4rev1 LOGINDISABLED AUTH=CRAM-MD5", "", "", "allows no login"),
        ("IMAP4rev1", "plain", "", "AUTH=PLAIN"),
        ("IMAP4rev1", "", "admin", "AUTH=PLAIN"),
        (BEFORE, "login", "admin", "cannot act"),
        ("IMAP4rev1 AUTH=SCRAM-SHA-1 AUTH=PLAIN", "scram-sha-256", "", "AUTH=SCRAM-SHA-256"),
        ("IMAP4rev1 AUTH=PLAIN AUTH=LOGIN", "scram-sha-1", "", "AUTH=SCRAM-SHA-1"),
        ("IMAP4rev1 AUTH=PLAIN", "oauthbearer", "", "AUTH=OAUTHBEARER"),
        ("IMAP4rev1 AUTH=CRAM-MD5 AUTH=NTLM", "", "", "no mechanism for a password .*AUTH=CRAM-MD5, AUTH=NTLM"),
        ("IMAP4rev1 AUTH=EXTERNAL", "external", "", "client certificate"),
    ],
)
async def test_no_credentials_go_by_a_way_that_was_not_asked_for(
    offered: str, auth: str, login: str, said: str
) -> None:
    async with scripted(then(f"S: * OK [CAPABILITY {offered}] ready", Peer.until_closed)) as server:
        with pytest.raises(UserError, match=said):
            await connect(server.endpoint(auth=auth, login=login))
    assert server.heard == b""


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("NO [AUTHENTICATIONFAILED] no", LoginRefused),
        ("NO sorry", LoginRefused),
        ("BAD sorry", LoginRefused),
        ("NO [REFERRAL imap://other.example/] go there", LoginRefused),
        ("NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded", Unavailable),
        ("BAD Request is throttled. Suggested Backoff Time: 700 milliseconds", Unavailable),
    ],
)
async def test_a_refused_login_is_tried_once_and_never_shows_the_secret(answer: str, kind: type[AimportError]) -> None:
    script = f"""
        S: * OK [CAPABILITY {BEFORE}] ready
        C: a AUTHENTICATE PLAIN ...
        S: a {answer}
        - eof
    """
    async with scripted(script) as server:
        with pytest.raises(kind) as caught:
            await connect(server.endpoint())
    error: BaseException | None = caught.value
    while error is not None:
        assert PASSWORD not in f"{error!r}{error}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [
        ("* BYE [UNAVAILABLE] Too many connections", Unavailable),
        ("* BYE go away", ConnectionLost),
        ("220 mx.example.org ESMTP", ProtocolError),
        ("+ hello", ProtocolError),
        ("* CAPABILITY IMAP4rev1", ProtocolError),
    ],
)
async def test_a_greeting_that_is_none_ends_the_try(greeting: str, kind: type[AimportError]) -> None:
    async with scripted(then(f"S: {greeting}", Peer.until_closed)) as server:
        with pytest.raises(kind, match=f"127.0.0.1:{server.port}"):
            await connect(server.endpoint())
    assert server.heard == b""


# TLS


@pytest.mark.parametrize("security", ["tls", "starttls"])
async def test_tls_carries_the_session(security: str) -> None:
    begin = f"""
        S: * OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] ready
        C: a STARTTLS
        S: a OK begin
        - tls
        C: b CAPABILITY
        S: * CAPABILITY {BEFORE}
        S: b OK
        C: t AUTHENTICATE PLAIN ...
        S: t OK [CAPABILITY {AFTER}] in
    """
    serve = """
        C: c EXAMINE "x"
        S: * 3 EXISTS
        S: c OK
    """
    wrapped = security == "tls"
    script = then(LOGIN if wrapped else begin, serve, logout)
    async with scripted(script, security="tls" if wrapped else "none") as server:
        connection = await connect(server.endpoint(security="tls" if wrapped else "starttls"))
        reply = await connection.command(b"EXAMINE", b'"x"')
        assert reply.of(Exists) == [Exists(number=3)]
        await connection.close()


class Noted:
    """A transport, and how many octets it was given at a time."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def write(self, octets: bytes | memoryview) -> None:
        self.sizes.append(len(octets))
        self._transport.write(octets)

    def writelines(self, parts: Sequence[bytes]) -> None:
        self.sizes.append(sum(map(len, parts)))
        self._transport.writelines(parts)


@pytest.mark.parametrize("security", ["none", "tls"])
async def test_tls_is_given_little_at_a_time(security: Security) -> None:
    """What OpenSSL encrypts of one call it keeps room for while the connection lives: 1.3 MB after a batch (seen)."""
    body = b"x" * 100_000
    words: list[Word] = [b"APPEND", b'"x"', *[Literal(body[:1000])] * 200, Literal(body)]

    async def serve(peer: Peer) -> None:
        tag = (await peer.line()).split(b" ")[0]
        for size in (*[1000] * 200, len(body)):
            assert await peer.octets(size) == body[:size]
            await peer.line()
        peer.say(tag + b" OK stored")

    async with scripted(then(login_as("IMAP4rev1 LITERAL+"), serve, logout), security=security) as server:
        connection = await connect(server.endpoint())
        noted = Noted(connection._transport)
        connection._transport = noted  # type: ignore[assignment]  # all that is asked of one
        assert (await connection.command(*words)).ok
        await connection.close()
    largest = max(noted.sizes)
    assert largest <= TLS_PIECE if security == "tls" else largest >= 100_000


@pytest.mark.parametrize("security", ["tls", "starttls"])
@pytest.mark.parametrize("fault", ["unknown CA", "wrong name"])
@pytest.mark.fault("F19")
async def test_no_credentials_leave_when_the_certificate_does_not_hold(security: str, fault: str) -> None:
    wrapped = security == "tls"
    script = "S: * OK [CAPABILITY IMAP4rev1 STARTTLS] x\nC: a STARTTLS\nS: a OK\n- tls\n- eof"
    async with scripted(
        Peer.until_closed if wrapped else script,
        security="tls" if wrapped else "none",
        certificate="other.example.org" if fault == "wrong name" else "127.0.0.1",
        check="lenient",
    ) as server:
        endpoint = server.endpoint(security="tls" if wrapped else "starttls", ca=fault == "wrong name")
        with pytest.raises(UserError, match="certificate does not hold"):
            await connect(endpoint)
    assert b"AUTHENTICATE" not in server.heard
    assert b"LOGIN" not in server.heard


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] x", "does not offer STARTTLS"),
        ("S: * OK [CAPABILITY IMAP4rev1 STARTTLS] x\nC: a STARTTLS\nS: a NO not today", "refused STARTTLS"),
        ("S: * PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] x", "PREAUTH"),
    ],
)
async def test_there_is_no_fall_back_to_plain_text(script: str, said: str) -> None:
    async with scripted(then(script, Peer.until_closed)) as server:
        with pytest.raises(UserError, match=said):
            await connect(server.endpoint(security="starttls"))
    assert b"AUTHENTICATE" not in server.heard


@pytest.mark.parametrize("injected", [b"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n", b"* OK fine\r\na1 OK", b"x"])
@pytest.mark.parametrize("apart", [False, True])
async def test_plain_text_after_the_starttls_answer_is_never_taken_for_protected(injected: bytes, apart: bool) -> None:
    async def script(peer: Peer) -> None:
        peer.say("* OK [CAPABILITY IMAP4rev1 STARTTLS] ready")
        tag = await peer.hear("a STARTTLS")
        if apart:
            peer.say(f"{tag} OK begin")
            await peer.flushed()
            peer.octets_out(injected)
        else:
            peer.octets_out(f"{tag} OK begin\r\n".encode() + injected)
        assert b"AUTH" not in await peer.until_closed()

    async with scripted(script) as server:
        with pytest.raises(ConnectionLost):  # a ProtocolError of ours, or of TLS when it came later
            await connect(server.endpoint(security="starttls"), deadlines=QUICK)


@pytest.mark.fault("F19")
async def test_a_handshake_that_stalls_or_is_cut_is_a_lost_connection() -> None:
    starttls = "S: * OK [CAPABILITY IMAP4rev1 STARTTLS] x\nC: a STARTTLS\nS: a OK"
    async with scripted(then(starttls, Peer.until_closed), then(starttls, "- reset")) as server:
        with pytest.raises(DeadlinePassed):
            await connect(server.endpoint(security="starttls"), deadlines=QUICK)
        with pytest.raises(ConnectionLost):
            await connect(server.endpoint(security="starttls"), deadlines=QUICK)


async def test_a_file_of_roots_that_cannot_be_read_is_named() -> None:
    async with scripted(Peer.until_closed, security="tls") as server:
        with pytest.raises(UserError, match="tls_ca /nowhere: no trusted roots"):
            await connect(replace(server.endpoint(), tls_ca="/nowhere"))


# Reaching the host


async def test_the_second_address_serves_when_the_first_is_dead() -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.2", 0))  # bound and not listening: refused

        async def resolve(host: str, port: int) -> list[tuple[int, str]]:
            return [(socket.AF_INET, "127.0.0.2"), (socket.AF_INET, "127.0.0.1")]

        async with scripted(then(LOGIN, logout)) as server:
            connection = await connect(server.endpoint(), resolve=resolve)
            await connection.close()


@pytest.mark.parametrize(
    ("errno", "kind"), [(socket.EAI_NONAME, UserError), (socket.EAI_AGAIN, ConnectionLost)], ids=["unknown", "later"]
)
async def test_a_name_that_does_not_resolve_says_so(errno: int, kind: type[AimportError]) -> None:
    async def resolve(host: str, port: int) -> list[tuple[int, str]]:
        raise socket.gaierror(errno, "resolver's words")

    async with scripted() as server:
        with pytest.raises(kind, match=f"127.0.0.1:{server.port}: .*host"):
            await connect(server.endpoint(), resolve=resolve)


@pytest.mark.fault("F18")
async def test_a_slow_resolver_and_a_silent_server_meet_the_deadline() -> None:
    async def resolve(host: str, port: int) -> list[tuple[int, str]]:
        await anyio.sleep_forever()
        return []

    async with scripted(Peer.until_closed) as server:
        with pytest.raises(DeadlinePassed):
            await connect(server.endpoint(), deadlines=QUICK, resolve=resolve)
        with pytest.raises(DeadlinePassed):
            await connect(server.endpoint(), deadlines=QUICK)


async def test_a_refused_port_is_a_lost_connection() -> None:
    async with scripted() as server:
        endpoint = server.endpoint()
    with pytest.raises(ConnectionLost, match="refused"):
        await connect(endpoint)


# The pipeline


async def test_commands_are_answered_in_order_and_data_belongs_to_the_oldest() -> None:
    script = """
        C: a UID FETCH 1
        C: b UID FETCH 2
        S: * 1 FETCH (UID 1)
        S: a OK
        S: * 2 FETCH (UID 2)
        S: * 3 EXISTS
        S: b NO [EXPUNGEISSUED] gone
    """
    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint())
        first = await connection.start(b"UID FETCH", b"1")
        second = await connection.start(b"UID FETCH", b"2")
        two = await second.reply()
        one = await first.reply()
        assert (one.ok, one.of(Fetch)) == (True, [Fetch(seq=1, uid=1)])
        assert (two.ok, two.tagged.code, two.of(Fetch)) == (False, "EXPUNGEISSUED", [Fetch(seq=2, uid=2)])
        assert connection.policy is LiteralPolicy.PLUS
        await connection.close()


async def test_literals_follow_each_policy_on_the_wire() -> None:
    words: list[Word] = [b"APPEND", b'"x"', b"()", Literal(b"hello"), b"()", Literal(b"y" * 5000)]
    big = "y" * 5000
    plus = f"C: a APPEND ... {{5+}}\nC| hello () {{5000+}}\nC| {big}\nS: a OK"
    minus = f"C: a APPEND ... {{5+}}\nC| hello () {{5000}}\nS: + go\nC| {big}\nS: a OK"
    sync = f"C: a APPEND ... {{5}}\nS: + go\nC| hello () {{5000}}\nS: + go\nC| {big}\nS: a OK"
    scripts = [then(login_as("IMAP4rev1 LITERAL+"), plus, logout), then(login_as("IMAP4rev1 LITERAL-"), minus, logout)]
    async with scripted(*scripts, then(login_as("IMAP4rev1"), sync, logout)) as server:
        for _ in range(3):
            connection = await connect(server.endpoint())
            assert (await connection.command(*words)).ok
            await connection.close()


@pytest.mark.fault("F15")
async def test_a_no_instead_of_the_continuation_leaves_the_connection_in_step() -> None:
    script = """
        C: a APPEND {5}
        S: a NO [TRYCREATE] no such mailbox
        C: b NOOP
        S: b OK
    """
    async with scripted(then(login_as("IMAP4rev1"), script, logout)) as server:
        connection = await connect(server.endpoint())
        assert (await connection.command(b"APPEND", Literal(b"hello"))).tagged.code == "TRYCREATE"
        assert (await connection.command(b"NOOP")).ok
        await connection.close()
    assert b"hello" not in server.heard


async def test_a_no_in_the_middle_of_a_multiappend_stops_the_rest() -> None:
    script = """
        C: a APPEND {5}
        S: + go
        C| hello {5}
        S: a NO [TOOBIG] enough
        C: b NOOP
        S: b OK
    """
    async with scripted(then(login_as("IMAP4rev1"), script, logout)) as server:
        connection = await connect(server.endpoint())
        reply = await connection.command(b"APPEND", Literal(b"hello"), Literal(b"world"))
        assert reply.tagged.code == "TOOBIG"
        assert (await connection.command(b"NOOP")).ok
        await connection.close()


@pytest.mark.fault("F15")
async def test_a_no_after_a_literal_that_did_not_wait_leaves_the_connection_in_step() -> None:
    script = """
        C: a APPEND {5+}
        S: a NO early
        C| hello
        C: b NOOP
        S: b OK
    """
    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint())
        assert not (await connection.command(b"APPEND", Literal(b"hello"))).ok
        assert (await connection.command(b"NOOP")).ok
        await connection.close()


@pytest.mark.parametrize(
    "lines",
    [
        ["S: a BAD what"],
        ["S: wrong OK"],
        ["S: b OK"],
        ["S: a OK", "S: a OK"],
        ["S: + go"],
        ["S: * 1 FETCH (UID"],
        ["S: garbage"],
        ["S: * 1 FETCH (BODY[] {99999999999}"],
    ],
    ids=str,
)
async def test_a_server_out_of_step_ends_the_connection(lines: list[str]) -> None:
    script = "\n".join(["C: a FIRST", "C: b SECOND", *lines, "- eof"])
    async with scripted(then(LOGIN, script)) as server:
        connection = await connect(server.endpoint())
        first = await connection.start(b"FIRST")
        second = await connection.start(b"SECOND")
        with pytest.raises(ProtocolError, match=f"127.0.0.1:{server.port}"):
            await second.result()
        if "S: a OK" not in lines:
            with pytest.raises(ProtocolError):
                await first.result()
        with pytest.raises(ProtocolError):
            await connection.command(b"THIRD")
        await connection.close()
    assert b"THIRD" not in server.heard


async def test_ok_before_the_literal_was_sent_is_no_receipt() -> None:
    script = "C: a APPEND {5}\nS: a OK [APPENDUID 1 1] stored\n- eof"
    async with scripted(then(login_as("IMAP4rev1"), script)) as server:
        connection = await connect(server.endpoint())
        with pytest.raises(ProtocolError, match="before it had"):
            await connection.command(b"APPEND", Literal(b"hello"))
        await connection.close()


@pytest.mark.parametrize("end", ["- close", "- reset", "S: * BYE [UNAVAILABLE] shutting down\n- close"])
async def test_a_cut_connection_wakes_everything(end: str) -> None:
    script = f"C: a ONE\nC: b TWO\nS: * 1 FETCH (UID 1)\n{end}"
    async with scripted(then(LOGIN, script)) as server:
        connection = await connect(server.endpoint())
        exchanges = [await connection.start(word) for word in (b"ONE", b"TWO")]
        outcomes = await asyncio.gather(*(exchange.result() for exchange in exchanges), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable if "BYE" in end else ConnectionLost] * 2
        with pytest.raises(ConnectionLost):
            await connection.start(b"THREE")
        await connection.close()


async def test_a_cut_while_a_literal_waits_wakes_the_sender() -> None:
    async with scripted(then(login_as("IMAP4rev1"), "C: a APPEND {5}\n- close")) as server:
        connection = await connect(server.endpoint())
        with pytest.raises(ConnectionLost):
            await connection.command(b"APPEND", Literal(b"hello"))
        await connection.close()


async def test_unasked_data_at_any_time_does_no_harm() -> None:
    unasked = "\n".join(
        ["S: * 5 EXISTS", "S: * 1 EXPUNGE", "S: * 1 FETCH (FLAGS ())", "S: * OK [ALERT] x", "S: * CAPABILITY IMAP4rev1"]
    )
    async with scripted(then(LOGIN, unasked, f"C: a NOOP\n{unasked}\nS: a OK\n{unasked}", logout)) as server:
        connection = await connect(server.endpoint())
        assert (await connection.command(b"NOOP")).ok
        await connection.close()


async def test_a_hundred_thousand_lines_are_read_without_recursion() -> None:
    async def script(peer: Peer) -> None:
        await peer.hear("a LIST")
        for number in range(100):
            peer.octets_out(b"".join(b'* LIST () "/" "m%d"\r\n' % (number * 1000 + each) for each in range(1000)))
            await peer.flushed()
        peer.say("a OK")

    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint())
        listed = (await connection.command(b"LIST")).of(Listed)
        assert [listed[0].name, listed[-1].name, len(listed)] == [b"m0", b"m99999", 100_000]
        await connection.close()


# Backpressure and deadlines


async def test_reading_pauses_above_the_mark_and_goes_on_when_data_was_taken() -> None:
    """Invariant: a consumer that does not take data stops the server, not our memory."""
    count, size = 200, 100_000
    written = 0
    done = anyio.Event()

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.hear("a FETCH")
        for number in range(1, count + 1):
            peer.octets_out(b"* %d FETCH (UID %d BODY[] {%d}\r\n%s)\r\n" % (number, number, size, b"x" * size))
            await peer.flushed()
            written = number
        done.set()
        peer.say("a OK")

    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint())
        connection.read_high = 500_000
        exchange = await connection.start(b"FETCH")
        with anyio.move_on_after(0.3):  # for all that can be written
            await done.wait()
        assert written < count
        assert connection._buffered < 500_000 + 600_000  # the mark, and one read beyond it
        uids = []
        while responses := await exchange.responses():
            uids += [fetch.uid for fetch in responses if isinstance(fetch, Fetch)]
        assert uids == list(range(1, count + 1))
        assert (await exchange.result()).status == "OK"
        assert connection._buffered == 0
        await connection.close()


async def test_what_waits_behind_a_command_that_was_given_up_ends_too() -> None:
    """It went round and round without a pause, so that nothing else in the process went on."""
    async with scripted(then(LOGIN, "C: a NOOP\nC: b NOOP\n- eof")) as server:
        connection = await connect(server.endpoint())
        first, second = [await connection.start(b"NOOP") for _ in range(2)]
        with anyio.move_on_after(0.01):
            await first.result()
        with pytest.raises(ConnectionLost, match="given up"):
            await second.result()
        with pytest.raises(ConnectionLost, match="given up"):
            await first.responses()
        await connection.close()


async def test_a_large_literal_that_came_while_nobody_waited_is_moved_to_its_file() -> None:
    """Reading has stopped for it and no deadline counts then: whoever waits next has to find out by himself."""
    size = STREAM_OCTETS + 1
    came = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.hear("a FETCH")
        await came.wait()
        peer.octets_out(b"x" * (size - SPOOL_HIGH) + b")\r\n")
        peer.say("a OK")

    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint())
        exchange = await connection.start(b"FETCH")
        connection.data_received(b"* 1 FETCH (UID 1 BODY[] {%d}\r\n" % size + b"x" * SPOOL_HIGH)
        assert connection._paused
        came.set()
        with anyio.fail_after(20):
            [fetch] = await exchange.responses()
        assert isinstance(fetch, Fetch)
        assert isinstance(fetch.body, Spool)
        (await fetch.body.body()).close()
        await exchange.result()
        await connection.close()


async def test_dropped_data_holds_up_nothing() -> None:
    async def script(peer: Peer) -> None:
        await peer.hear("a FETCH")
        await peer.hear("b NOOP")
        peer.octets_out(b"* 1 FETCH (UID 1 BODY[] {1000000}\r\n" + b"x" * 1_000_000 + b")\r\n")
        peer.octets_out(b"* 2 FETCH (UID 2 BODY[] {1000000}\r\n" + b"x" * 1_000_000 + b")\r\n")
        peer.say("a OK", "b OK")

    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint())
        connection.read_high = 1000
        (await connection.start(b"FETCH")).drop()
        assert (await connection.command(b"NOOP")).ok
        await connection.close()


@pytest.mark.fault("F8")
async def test_a_big_upload_waits_for_a_slow_server_and_arrives_whole() -> None:
    body = bytes(range(256)) * 40_000

    async def script(peer: Peer) -> None:
        line = await peer.line()
        assert line.endswith(b"{%d+}" % len(body))
        assert await peer.octets(len(body)) == body
        assert await peer.line() == b""
        peer.say(line.split()[0] + b" OK")

    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint())
        assert (await connection.command(b"APPEND", Literal(body))).ok
        await connection.close()


async def test_silence_passes_the_deadline_of_the_command() -> None:
    async with scripted(then(LOGIN, "C: a NOOP\n- eof"), then(LOGIN, "C: a APPEND {2+}\nC| xx\n- eof")) as server:
        commands: list[list[Word]] = [[b"NOOP"], [b"APPEND", Literal(b"xx")]]
        for words in commands:
            connection = await connect(server.endpoint(), deadlines=QUICK)
            with pytest.raises(DeadlinePassed, match="nothing moved"):
                await connection.command(*words)
            await connection.close()


@pytest.mark.fault("F8")
async def test_a_stalled_upload_passes_the_deadline() -> None:
    given_up = anyio.Event()

    async def stall(peer: Peer) -> None:
        await given_up.wait()  # nothing is read: the window fills and stays full

    async with scripted(then(LOGIN, stall)) as server:
        connection = await connect(server.endpoint(), deadlines=QUICK)
        with pytest.raises(DeadlinePassed):
            await connection.command(b"APPEND", Literal(b"x" * 50_000_000))
        given_up.set()
        await connection.close()


@pytest.mark.fault("F8")
async def test_a_slow_answer_that_moves_does_not_pass_the_deadline() -> None:
    """Longer than the deadline in all, never silent for so long."""

    async def script(peer: Peer) -> None:
        await peer.hear("a FETCH")
        for octet in b"* 1 FETCH (UID 1)\r\n":
            peer.octets_out(bytes((octet,)))
            await peer.flushed()
            await anyio.sleep(0.03)  # this is the link, not a wait for something
        peer.say("a OK")

    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint(), deadlines=QUICK)
        assert (await connection.command(b"FETCH")).ok
        await connection.close()


async def test_to_be_cancelled_while_waiting_ends_the_connection() -> None:
    async with scripted(then(LOGIN, "C: a NOOP\n- eof")) as server:
        connection = await connect(server.endpoint())
        with anyio.move_on_after(0.05) as scope:
            await connection.command(b"NOOP")
        assert scope.cancelled_caught
        with pytest.raises(ConnectionLost, match="given up"):
            await connection.command(b"NOOP")
        await connection.close()


@pytest.mark.parametrize("security", ["none", "tls"])
async def test_the_fence_reads_to_the_end(security: str) -> None:
    """Invariant: when `close` returns, the server had all that was sent and has ended the session itself."""
    ended = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.hear("a APPEND ...")
        assert await peer.octets(7) == b"hello\r\n"
        if tls:  # no half-close: the end of the queue instead
            await peer.hear("b LOGOUT")
        else:
            assert await peer.until_closed() == b""
        peer.say("a OK [APPENDUID 1 1] stored all the same")
        await peer.flushed()
        ended.set()

    tls = security == "tls"
    async with scripted(then(LOGIN, script), security="tls" if tls else "none") as server:
        connection = await connect(server.endpoint())
        with anyio.move_on_after(0.1):
            await connection.command(b"APPEND", Literal(b"hello"))
        await connection.close(fence=True)
        assert ended.is_set()


async def test_close_does_not_wait_longer_than_its_deadline() -> None:
    async with scripted(then(LOGIN, "C: a LOGOUT\n- eof")) as server:
        connection = await connect(server.endpoint(), deadlines=QUICK)
        with anyio.fail_after(3):
            await connection.close()
            await connection.close()


async def test_nothing_of_a_session_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    script = "C: a NOOP\nS: * 1 FETCH (UID 1 BODY[] {12}\nS: canary-mail!)\nS: a OK"
    async with scripted(then(LOGIN, script, logout)) as server:
        connection = await connect(server.endpoint())
        await connection.command(b"NOOP")
        await connection.close()
    assert "canary" not in caplog.text
    assert "Y2FuYXJ5" not in caplog.text
