"""Secrets, fall-backs, injection, over whole imports: P13, P14, P16 and rows I7, I10 of the reliability tables."""

from __future__ import annotations

import base64
import itertools
import logging
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from aimport import pipeline
from aimport.imap.tokens import Tokens
from aimport.journal import Journal, RunArguments
from aimport.model import Secret
from aimport.report import write_table
from aimport.results import RunReport
from aimport.secret import redact
from tests.fix_imap import Peer, scripted
from tests.wire.server import HASTY, QUICK, START, Call, Server, Wires, bodies

CANARY: Final = "canary-Zu7x!9q-secret"
LITERALS: Final = ["IMAP4rev1 LITERAL+", "IMAP4rev1 LITERAL-", "IMAP4rev1", "IMAP4rev1 LITERAL+ MULTIAPPEND"]

pytestmark = pytest.mark.timeout(100)


# P13: a canary through every step that may fail

STEPS: Final = ["AUTHENTICATE", "CAPABILITY", "NAMESPACE", "LIST", "CREATE", "EXAMINE", "UID FETCH", "APPEND"]
WAYS: Final = ["NO", "BAD", "BYE", "close", "silence", "garbage", "again"]


def shows(text: str) -> bool:
    """Whether `text` has the canary, plain, quoted, URL-encoded or in base64 at any offset."""
    return CANARY in text or redact(text, [CANARY]) != text


def test_the_canary_is_found_in_every_shape() -> None:
    """This file's own instrument."""
    for before in ("", "x", "xy"):
        octets = f"\0{before}bob\0{CANARY}".encode()
        assert shows(f"text {base64.b64encode(octets).decode()} text")
    assert shows(f"a {CANARY} b")
    assert not shows("nothing of the kind: bob, canary")


class Everything(logging.Handler):
    """Every record as it would be written, with its trace and its arguments."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record) + repr(record.args) + repr(vars(record)))


@pytest.fixture
def everything() -> Iterator[Everything]:
    handler = Everything()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for name in ("aimport", "aioimaplib", "asyncio", "stamina"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
    for name in ("aimport", "aioimaplib", "asyncio", "stamina"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("auth", ["plain", "", "xoauth2"])
async def test_no_failing_step_shows_the_secret(
    auth: str, way: str, tmp_path: Path, everything: Everything, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs at every level, results, report, journal, rejects, traces; the server repeats what it heard at the login."""
    raised: list[str] = []
    worth_retrying = pipeline.worth_retrying

    def keep(error: Exception) -> bool:
        raised.append("".join(traceback.format_exception(error)))
        raised.append(repr(error) + repr(error.__dict__))
        return worth_retrying(error)

    monkeypatch.setattr(pipeline, "worth_retrying", keep)
    monkeypatch.setattr("aimport.imap.client._TOKENS", Tokens())
    secret = Secret(kind="literal", text=CANARY)
    shown: list[str] = []
    for number, (step, side) in enumerate(itertools.product(STEPS, ("source", "destination"))):
        heard = ""

        async def fail(call: Call, step: str = step) -> bool:
            nonlocal heard
            if call.name == "AUTHENTICATE":
                heard = f"{CANARY} {base64.b64decode(call.text.split(' ')[2])!r} {call.text}"
            if call.name != step or call.literal is not None:
                return False
            match way:
                case "NO" | "BAD":
                    return call.say(f"{call.tag} {way} I do not like {heard}")
                case "BYE":
                    return await call.bye(f"I do not like {heard}")
                case "garbage":
                    return call.say(f"{heard} (((")
                case "silence":
                    await call.peer.until_closed()
            if way == "again" and call.nth > 1:
                return False
            return await call.close()

        root = tmp_path / f"{number}"
        root.mkdir()
        arguments = RunArguments(argv=("aimport", "import"), cwd=str(root), settings=())
        journal = Journal.create(root, job="job", arguments=arguments, again=True, identities=())
        deadlines = replace(HASTY, command_s=0.1, append_s=0.1) if way == "silence" else HASTY
        wires = Wires(deadlines=deadlines, limits=replace(QUICK, attempts=2), journal=journal)
        wires.fill(bodies(2))
        before = "IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR"
        offered = "IMAP4rev1 NAMESPACE LITERAL+"
        async with Server(before=before, offered=offered, hook=fail).running() as server:
            server.fill("bob", "INBOX", bodies(2))
            endpoint = replace(server.endpoint(), secret=secret, auth=auth)
            imported = wires.import_(source=endpoint) if side == "source" else wires.import_(destination=endpoint)
            result = await imported
        await journal.close(finished=False)
        report = RunReport(run=journal.run, users=[result], exit=75)
        with (root / "table").open("w") as table:
            write_table(report, table)
        shown.append(f"{result} {report.to_json()}")
        shown += [file.read_bytes().decode("latin-1") for file in sorted(root.rglob("*")) if file.is_file()]
    assert raised or way == "again"
    assert len(everything.lines) > len(STEPS)
    for text in (*shown, *raised, *everything.lines):
        assert not shows(text), text[:2000]


# P14: no fall-back, however often and by whatever way it fails


@pytest.mark.parametrize(
    "greeting",
    [
        "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready",  # STARTTLS is not offered
        "* PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] welcome",
        "* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN SASL-IR] ready",  # refused below
    ],
)
async def test_without_tls_no_try_sends_more_than_the_wish_for_it(greeting: str) -> None:
    async def script(peer: Peer) -> None:
        peer.say(greeting.encode())
        if "STARTTLS AUTH" in greeting:
            tag = await peer.hear("a STARTTLS")
            peer.say(f"{tag} NO not today")
        assert await peer.until_closed() == b""

    wires = Wires()
    wires.fill(bodies(2))
    async with scripted(*[script] * 10) as server:
        result = await wires.import_(destination=server.endpoint(security="starttls"))
        tries = len(server.peers)
    assert (result.status, result.imported) == ("failed", 0)
    assert tries == 1  # it is no passing fault
    assert {line.split()[1] for line in server.heard.split(b"\r\n") if line} <= {b"STARTTLS"}


async def test_what_was_offered_in_plain_text_counts_for_nothing_under_tls() -> None:
    """Row I10: LITERAL+, MULTIAPPEND and a weaker mechanism are offered before TLS and not after it."""
    waited: list[bool] = []

    async def note(call: Call) -> bool:
        waited.extend([call.answers] * (call.literal is not None))
        return False

    server = Server(before="IMAP4rev1 AUTH=PLAIN SASL-IR", offered="IMAP4rev1", hook=note)

    async def script(peer: Peer) -> None:
        peer.say("* OK [CAPABILITY IMAP4rev1 STARTTLS LITERAL+ MULTIAPPEND LOGINDISABLED] ready")
        tag = await peer.hear("a STARTTLS")
        peer.say(f"{tag} OK begin")
        await peer.start_tls()
        await server.serve(peer, greet=False)

    wires = Wires()
    wires.fill(bodies(3))
    async with scripted(script) as running:
        result = await wires.import_(destination=running.endpoint(security="starttls"))
    assert (result.status, result.imported, waited) == ("done", 3, [True] * 3), result.error
    assert server.heard[0] == "CAPABILITY"


# P16: what comes from mail, from a source server or from a list never is a command

HOSTILE: Final = [
    "x\r\na1 LOGOUT\r\n",
    'x"\r\na2 DELETE INBOX\r\n"',
    "x {3+}\r\nabc",
    "x {3}",
    "x\\",
    'x"',
    "NIL",
    "*",
    "%",
    "(",
    "x y",
    "\x01\x7f",
    "caf\xe9",
    "x\x00y",
]


@pytest.mark.parametrize("offered", LITERALS)
async def test_hostile_mail_gives_exactly_the_commands_of_harmless_mail(offered: str) -> None:
    """A recording server: bodies, flags and mailbox names that hold commands change no number of commands."""
    texts = [text.encode("latin-1") for text in HOSTILE]
    hostile = [b"\r\n".join([b"Subject: " + text, b"", text * 300]) for text in texts]
    seen: list[Counter[str]] = []
    for names, mail, flags in (
        ([f"box{number}" for number in range(len(HOSTILE))], bodies(len(HOSTILE)), ["\\Seen", "good"]),
        (HOSTILE, hostile, ["\\Seen", "good", *HOSTILE]),
    ):
        wires = Wires(limits=replace(QUICK, connections_per_user=1))
        for name in names:
            wires.old.mailbox("bob", (name,)).add(b"x\r\n", flags=flags, internal_date=START)
        wires.fill(mail, flags=flags)
        async with Server(offered=offered).running() as server:
            result = await wires.import_(destination=server.endpoint())
        assert (result.status, result.imported) == ("done", len(mail) + len(names)), result.error
        stored = [message for box in server.accounts["bob"].values() for message in box.messages]
        assert len(stored) == len(mail) + len(names)
        assert {tuple(sorted(each.flags.split())) for each in stored} <= {("\\Seen", "good"), ("NIL", "\\Seen", "good")}
        seen.append(server.count)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("offered", LITERALS)
async def test_a_hostile_source_server_gives_exactly_the_commands_of_a_harmless_one(offered: str) -> None:
    """From one server to the other: names, flags and bodies as the source says them."""
    names = [name for name in HOSTILE if not set(name) & set("\r\n\0")]
    seen: list[Counter[str]] = []
    for boxes, mail, flags in (
        ([f"box{number}" for number in range(len(names))], bodies(4), "\\Seen good"),
        (names, [b"a\r\n." + text.encode("latin-1") for text in HOSTILE[:4]], '\\Seen good {3} x" a]b caf\xe9'),
    ):
        wires = Wires(limits=replace(QUICK, connections_per_user=1))
        source, destination = Server(offered="IMAP4rev1 LITERAL+"), Server(offered=offered)
        async with source.running(), destination.running():
            for name in boxes:
                source.fill("bob", name, [b"x\r\n"])
            box = source.fill("bob", "INBOX", mail)
            for message in box.messages:
                message.flags = flags.replace('x"', "xx").replace("{3}", "")
            result = await wires.import_(source=source.endpoint(), destination=destination.endpoint())
        assert (result.status, result.imported) == ("done", len(boxes) + 4), result.error
        assert sorted(destination.bodies()) == sorted(mail)
        seen.append(destination.count)
    assert seen[0] == seen[1]
