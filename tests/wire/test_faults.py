"""Faults of a network and of its servers, over whole imports: reliability rows F14 to F16, F18, F19 (F17: throttling).

What a single connection shows is in `tests/unit/test_imap_client.py`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import pytest
import trustme

from aimport.imap.connection import Deadlines
from aimport.model import Endpoint
from tests.fix_imap import PASSWORD, authority
from tests.wire.server import HASTY, QUICK, Call, Server, Wires, bodies, facts

PLUS: Final = "IMAP4rev1 LITERAL+ UIDPLUS"
SYNC: Final = "IMAP4rev1 UIDPLUS"
MULTI: Final = "IMAP4rev1 LITERAL+ UIDPLUS MULTIAPPEND"
SYNC_MULTI: Final = "IMAP4rev1 MULTIAPPEND"
EVERY: Final = [PLUS, SYNC, MULTI, SYNC_MULTI]
BAD: Final = b"Subject: bad\r\n\r\n" + b"y" * 100

pytestmark = pytest.mark.timeout(60)


# F14, F15: one message is refused


@pytest.mark.parametrize("offered", EVERY)
@pytest.mark.parametrize("answer", ["NO no", "NO [TOOBIG] no", "NO [CANNOT] no", "BAD no", "BAD [CLIENTBUG] no"])
@pytest.mark.fault("F14")
async def test_a_refused_message_costs_itself_only(answer: str, offered: str) -> None:
    """Invariant: its neighbours arrive once, in order but for those that were sent again; a BAD ends the connection."""

    async def refuse(call: Call) -> bool:
        return (
            call.name == "APPEND" and call.literal is None and BAD in call.literals and call.say(f"{call.tag} {answer}")
        )

    good = bodies(40)
    wires = Wires(limits=replace(QUICK, batch_messages=8))
    wires.fill([*good[:13], BAD, *good[13:]])
    async with Server(offered=offered, hook=refuse).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert sorted(server.bodies()) == sorted(good)
    assert (result.status, result.imported, sum(result.rejected.values())) == ("rejects", 40, 1), result.error
    assert (server.connections > 1) == answer.startswith("BAD")
    assert server.connections <= 6


@pytest.mark.parametrize("offered", EVERY)
@pytest.mark.parametrize("place", [0, 20, 39])
@pytest.mark.fault("F15")
async def test_a_message_refused_before_its_octets_are_sent_leaves_the_connection_in_step(
    place: int, offered: str
) -> None:
    """F15. Where the client waits for `+` the octets never leave; else they are read and thrown away."""

    async def refuse(call: Call) -> bool:
        return call.literal == len(BAD) and call.no("too long for me")

    good = bodies(40)
    wires = Wires(limits=replace(QUICK, batch_messages=8))
    wires.fill([*good[:place], BAD, *good[place:]])
    async with Server(offered=offered, hook=refuse).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert sorted(server.bodies()) == sorted(good)
    assert (result.status, result.imported, server.connections) == ("rejects", 40, 1), result.error


# F16: BYE


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("offered", EVERY)
@pytest.mark.fault("F16")
async def test_a_bye_within_an_append_loses_and_doubles_nothing(offered: str, stored: bool) -> None:
    async def bye(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None and call.nth == 3:
            if stored:
                call.session.store(call)
            return await call.bye("[UNAVAILABLE] Server shutting down.")
        return False

    wires = Wires(limits=replace(QUICK, batch_messages=5))
    wires.fill(bodies(40))
    async with Server(offered=offered, hook=bye).running() as server:
        result = await wires.import_(destination=server.endpoint())
    assert server.bodies() == bodies(40)
    assert (result.status, result.imported, result.maybe_duplicate) == ("done", 40, 0), result.error


@pytest.mark.parametrize("at", [0, 30, 90, 200, 5000])
@pytest.mark.parametrize("words", ["", "[UNAVAILABLE] Server shutting down."])
@pytest.mark.fault("F16")
async def test_a_bye_in_the_middle_of_a_fetch_loses_nothing(words: str, at: int) -> None:
    """`at`: octets of the answer that still come, within a literal or between messages."""

    async def bye(call: Call) -> bool:
        if call.name == "UID FETCH" and "BODY" in call.text and call.session.number == 1:
            messages = enumerate(call.session.box.messages, 1)
            answer = b"".join(
                b"* %d FETCH (%s)\r\n" % (seq, b" ".join(facts(each, call.text))) for seq, each in messages
            )
            call.peer.octets_out(answer[:at])
            return await call.bye(words) if words else await call.close()
        return False

    wires = Wires()
    async with Server(hook=bye).running() as server:
        server.fill("bob", "INBOX", bodies(40, octets=400))
        result = await wires.import_(source=server.endpoint())
    assert wires.arrived() == bodies(40, octets=400)
    assert (result.status, result.imported, server.connections) == ("done", 40, 2), result.error


# F18: names and addresses


@pytest.mark.fault("F18")
async def test_a_host_that_does_not_resolve_fails_its_users_by_name_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[tuple[int, str]]:
        asked.append(host)
        if host == "gone.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host == "slow.example" and asked.count(host) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, "127.0.0.1")]

    monkeypatch.setattr("aimport.imap.client._resolve", resolve)
    wires = Wires()
    async with Server().running() as server:
        results = []
        for user, host in (("bob", "gone.example"), ("ann", "slow.example"), ("carl", "good.example")):
            wires.fill(bodies(3), user=user)
            results.append(await wires.import_(destination=replace(server.endpoint(user=user), host=host)))
    assert [result.status for result in results] == ["failed", "done", "done"]
    assert "gone.example" in (results[0].error or "")
    assert "no such host" in (results[0].error or "")
    assert asked == ["gone.example", "slow.example", "slow.example", "slow.example", "good.example"]


@pytest.mark.fault("F18")
async def test_the_second_address_of_a_host_serves_a_whole_import(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.2", 0))  # bound and not listening: refused

        async def resolve(host: str, port: int) -> Sequence[tuple[int, str]]:
            return [(socket.AF_INET, "127.0.0.2"), (socket.AF_INET, "127.0.0.1")]

        monkeypatch.setattr("aimport.imap.client._resolve", resolve)
        wires = Wires()
        wires.fill(bodies(3))
        async with Server().running() as server:
            result = await wires.import_(destination=replace(server.endpoint(), host="two.example"))
    assert (result.status, result.imported) == ("done", 3), result.error


# F19: TLS


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def _expired() -> ssl.SSLContext:
    then = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    return _context(authority().issue_cert("127.0.0.1", not_before=then, not_after=then + dt.timedelta(days=1)))


def _old_version() -> ssl.SSLContext:
    context = _context(authority().issue_cert("127.0.0.1"))
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


CONTEXTS: Final = {
    "expired": _expired,
    "wrong name": lambda: _context(authority().issue_cert("other.example")),
    "unknown authority": lambda: _context(trustme.CA().issue_cert("127.0.0.1")),
    "old version": _old_version,
}


class Ear:
    """What a TLS server hears after the handshake."""

    def __init__(self, port: int) -> None:
        self.connections = 0
        self.heard = b""
        self._port = port

    def instead_of(self, server: Server) -> Endpoint:
        """Trusts the same authority, by TLS."""
        return replace(server.endpoint(), port=self._port, security="tls")


@asynccontextmanager
async def listening(context: ssl.SSLContext | None, *, cut: bool = False) -> AsyncGenerator[Ear]:
    """A server that greets and only listens; `cut`: it closes on the first octets of a handshake."""
    done: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ear.connections += 1
        try:
            if context is not None:
                writer.write(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready\r\n")
                ear.heard += await reader.read()
            elif cut:
                await reader.read(1)
            else:
                await reader.read()
                while await reader.read(1 << 16):
                    pass
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done.add(asyncio.get_running_loop().create_task(serve(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    ear = Ear(listener.sockets[0].getsockname()[1])
    try:
        yield ear
    finally:
        listener.close()
        for task in done:
            task.cancel()
        await asyncio.gather(*done, return_exceptions=True)


@pytest.mark.parametrize("fault", list(CONTEXTS))
@pytest.mark.fault("F19")
async def test_a_server_that_is_not_who_it_should_be_never_hears_a_word(fault: str) -> None:
    """The connection is closed within the handshake: not one octet of ours comes after it."""
    wires = Wires(limits=replace(QUICK, attempts=2))
    wires.fill(bodies(2))
    async with Server().running() as server, listening(CONTEXTS[fault]()) as ear:
        result = await wires.import_(destination=ear.instead_of(server))
    assert ear.heard == b""
    assert (result.status, result.imported) == ("failed", 0)
    assert ("certificate does not hold" in (result.error or "")) == (fault != "old version"), result.error
    assert PASSWORD not in (result.error or "")


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.fault("F19")
async def test_a_handshake_that_is_cut_or_stalls_ends_within_the_deadline(cut: bool) -> None:
    deadlines: Deadlines = replace(HASTY, connect_s=0.5)
    wires = Wires(deadlines=deadlines, limits=replace(QUICK, attempts=2))
    wires.fill(bodies(2))
    async with Server().running() as server, listening(None, cut=cut) as ear:
        result = await wires.import_(destination=ear.instead_of(server))
        assert ear.connections == 2  # it may be better another time
    assert (result.status, result.imported) == ("failed", 0)
