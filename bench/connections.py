"""`python -m bench.connections PORT N [CA_FILE]`: keeps N connections to a null server; says what memory they take.

Half of them have listed an account, selected and read a mailbox; half have made a mailbox and appended a batch. They
are those of the product, with what it keeps for each. One JSON line.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
import msgspec

from aimport import octets
from aimport.model import Batch, Endpoint, Mailbox, Message, MessageKey, Secret
from aimport.runners.local import run_loop
from aimport.stores.imap import ImapDestination, ImapSource

AT_ONCE: Final = 20
MESSAGES: Final = 100
BATCH, OCTETS = 64, 16_000
"""What is appended: as large as batches get."""


def endpoint(port: int, user: str, ca_file: str) -> Endpoint:
    return Endpoint(
        scheme="imap",
        host="127.0.0.1",
        port=port,
        security="tls" if ca_file else "none",
        user=user,
        secret=Secret(kind="literal", text="any"),
        tls_ca=ca_file,
    )


async def read(stack: AsyncExitStack, where: Endpoint) -> None:
    session = await stack.enter_async_context(ImapSource(where).open())
    [mailbox] = await session.list_mailboxes()
    selection = await session.select(mailbox)
    assert len(selection.keys) == MESSAGES
    async with aclosing(session.messages(selection, skip=())) as lists:
        async for _ in lists:
            pass


async def append(stack: AsyncExitStack, where: Endpoint) -> None:
    session = await stack.enter_async_context(ImapDestination(where).open())
    mailbox = Mailbox(path=("Old",), separator=session.separator)
    await session.create_mailbox(mailbox, subscribe=False)
    body = b"Subject: x\r\n\r\n" + b"x" * OCTETS + b"\r\n"
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    messages = tuple(
        Message(key=MessageKey(str(number)), flags=frozenset(), internal_date=moment, body=body, wire=True)
        for number in range(BATCH)
    )
    batch = Batch(
        run="bench", number=1, created_us=1, messages=messages, fingerprints=(octets.fingerprint(body),) * BATCH
    )
    await (await session.append(mailbox, batch)).outcomes()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def hold(port: int, count: int, ca_file: str) -> dict[str, object]:
    began, spent = time.monotonic(), time.process_time()
    async with AsyncExitStack() as stack:
        room = anyio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with room:
                if number % 2:
                    await append(stack, endpoint(port, f"to-{number}", ca_file))
                else:
                    await read(stack, endpoint(port, f"messages-{MESSAGES}-{number}", ca_file))

        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(one, number)
        gc.collect()
        return {
            "connections": count,
            "resident_octets": resident(),
            "seconds": time.monotonic() - began,
            "cpu_s": time.process_time() - spent,
        }


def main() -> None:
    port, count, *ca_file = sys.argv[1:]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * int(count) + 100)), hard))

    async def work() -> dict[str, object]:
        return await hold(int(port), int(count), "".join(ca_file))

    print(msgspec.json.encode(run_loop(work)).decode())


if __name__ == "__main__":
    main()
