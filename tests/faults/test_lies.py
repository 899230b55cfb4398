"""A server that says OK and stores nothing, or other octets: F34, by the command.

Invariant: what is not there is never success: the import tells it, or `verify` does, and neither says 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import anyio.to_thread
import pytest

from tests.faults.forks import Done, Forks
from tests.faults.jobs import Job
from tests.fix_imap import PASSWORD
from tests.wire.server import Call, Hook, Server

pytestmark = pytest.mark.timeout(100)

OFFERED: Final = ["IMAP4rev1 LITERAL+ UIDPLUS", "IMAP4rev1 LITERAL+ UIDPLUS MULTIAPPEND", "IMAP4rev1 LITERAL+"]


def lying(change: Callable[[bytes], bytes | None]) -> Hook:
    """Stores something else in the place of one kind of message, or nothing, and says OK; always."""

    async def hook(call: Call) -> bool:
        if call.name == "APPEND" and call.literal is None:
            last = call.server.accounts["bob"]
            changed = [change(body) for body in call.literals[-1:]]
            if changed == [None]:
                box = last["Sent" if "Sent" in call.text else "INBOX"]
                box.next_uid += 1
                code = f"[APPENDUID {box.validity} {box.next_uid - 1}] " if "UIDPLUS" in call.server.offered else ""
                return call.ok(f"{code}stored")
            call.literals[-1:] = [body for body in changed if body is not None]
        return False

    return hook


def is_chosen(body: bytes) -> bool:
    return b"\r\n1\r\n" in body


LIES: Final[dict[str, Callable[[bytes], bytes | None]]] = {
    "nothing": lambda body: None if is_chosen(body) else body,
    "other octets": lambda body: body.replace(b"\r\n1\r\n", b"\r\n7\r\n"),
    "fewer octets": lambda body: body[:-3] if is_chosen(body) else body,
    "more octets": lambda body: body + b"more\r\n" if is_chosen(body) else body,
}


@pytest.mark.fault("F34")
@pytest.mark.parametrize("offered", OFFERED)
@pytest.mark.parametrize("lie", list(LIES))
async def test_a_server_that_lies_about_what_it_stored_is_found_out(
    lie: str, offered: str, forks: Forks, folder: Path
) -> None:
    """One message of each mailbox, alone in its batch."""
    async with Server(offered=offered, hook=lying(LIES[lie])).running() as server:
        assert server.scripted is not None
        job = Job(folder=folder, port=server.scripted.port)

        async def run(words: list[str]) -> Done:
            how = partial(forks.run, words, env={"PW": PASSWORD}, batch_messages=1)
            return await anyio.to_thread.run_sync(how)

        imported = await run(job.import_words())
        assert "Traceback" not in imported.err and "internal error" not in imported.err, imported.err
        totals = imported.totals
        verified = await run(["verify", "--deep", "--json", "--journal", str(job.journal)])
    found = verified.report["totals"]
    if lie == "nothing":  # looked for at the end of each mailbox, sent once more, and told
        assert (imported.code, totals["imported"], totals["rejected"]) == (65, 8, 2), imported.out
        assert (verified.code, found["checked"], found["equal"]) == (0, 8, 8), verified.out
    else:
        assert verified.code == 65, (verified.out, verified.err)
        assert totals["imported"] == job.expected.total()
        assert sum(found["kinds"].values()) + found["missing"] == 2, found
        whose = {(each["mailbox"], each["key"].partition(".")[2]) for each in verified.report["differences"]}
        assert whose == {("INBOX", "M1P1.host"), ("Sent", "M1P1.host")}
