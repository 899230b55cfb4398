"""`python -m bench.answers KIND COUNT REPEATS PORT`: one client, one command, COUNT lines or numbers of answer.

Says as JSON what reading an answer takes: CPU seconds of this process, its peak memory, or
the client's refusal. Peak memory is of this process alone, so every size has one of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from aimport.errors import ProtocolError
from aimport.imap.client import connect
from aimport.imap.connection import Connection
from aimport.imap.responses import Esearch, Fetch, Listed, Search, uid_set
from aimport.model import Endpoint, Mailbox, Secret
from aimport.stores.imap import ImapSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of `count` lines or numbers. `refused` says why it was not taken."""

    count: int
    cpu_s: float = 0.0
    idle_rss_mib: float = 0.0
    peak_rss_mib: float = 0.0
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A command, the account of the null server that answers it, and who counts what came."""

    account: str
    what: str
    count: int  # that the goal names
    read: Callable[[Connection], Awaitable[int]]


async def _list(connection: Connection) -> int:
    return len((await connection.command(b"LIST", b'""', b'"*"')).of(Listed)) - 1  # INBOX


async def _search(connection: Connection) -> int:
    [found] = (await connection.command(b"UID SEARCH", b"ALL")).of(Search)
    return len(found.numbers)


async def _esearch(connection: Connection) -> int:
    [found] = (await connection.command(b"UID SEARCH", b"RETURN (ALL)", b"ALL")).of(Esearch)
    return len(uid_set(dict(found.items)["ALL"], limit=1 << 30))


async def _flags(connection: Connection) -> int:
    seen = 0
    exchange = await connection.start(b"UID FETCH", b"1:*", b"(UID FLAGS)")
    while responses := await exchange.responses():
        seen += sum(isinstance(fetch, Fetch) and fetch.flags is not None for fetch in responses)
    return seen


KINDS: Final = {
    "list": Kind(account="folders", what="LIST lines", count=20_000, read=_list),
    "search": Kind(account="sparse", what="UIDs of a SEARCH", count=1_000_000, read=_search),
    "esearch": Kind(account="runs", what="UIDs of an ESEARCH in ranges of three", count=1_000_000, read=_esearch),
    "flags": Kind(account="messages", what="FLAGS of messages", count=1_000_000, read=_flags),
}
SELECTION: Final = "selection"
"""UIDs and sizes through the store: what begins every mailbox."""


async def read(kind: str, count: int, repeats: int, port: int) -> Answer:
    """The mean of `repeats` answers on one connection."""
    account = "messages" if kind == SELECTION else KINDS[kind].account
    endpoint = Endpoint(
        scheme="imap",
        host="127.0.0.1",
        port=port,
        security="none",
        user=f"{account}-{count}",
        secret=Secret(kind="literal", text="any"),
    )
    if kind == SELECTION:
        return await _read_selection(endpoint, count, repeats)
    connection = await connect(endpoint)
    try:
        await connection.command(b"EXAMINE", b"INBOX")
        return await _measured(lambda: KINDS[kind].read(connection), count, repeats)
    finally:
        await connection.close()


async def _read_selection(endpoint: Endpoint, count: int, repeats: int) -> Answer:
    async with ImapSource(endpoint).open() as session:
        inbox = Mailbox(path=("INBOX",), separator=".")

        async def once() -> int:
            return len((await session.select(inbox)).keys)

        return await _measured(once, count, repeats)


async def _measured(once: Callable[[], Awaitable[int]], count: int, repeats: int) -> Answer:
    idle, before_s = _rss_mib("VmRSS"), time.process_time()
    try:
        for _ in range(repeats):
            seen = await once()
            assert seen == count, f"{seen} of {count} came"
    except ProtocolError as error:
        return Answer(count=count, idle_rss_mib=idle, peak_rss_mib=_rss_mib("VmHWM"), refused=str(error))
    cpu_s = (time.process_time() - before_s) / repeats
    return Answer(count=count, cpu_s=cpu_s, idle_rss_mib=idle, peak_rss_mib=_rss_mib("VmHWM"))


def _rss_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return round(int(line.split()[1]) / 1024, 1)
    raise LookupError(name)


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    count, repeats, port = map(int, numbers)
    print(msgspec.json.encode(uvloop.run(read(kind, count, repeats, port))).decode())
