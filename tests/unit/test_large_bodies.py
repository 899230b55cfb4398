"""P7: memory does not grow with the size of a message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

MIB: Final = 1 << 20

# Says how far the peak (VmHWM) rises above the idle process, in KiB. Not ru_maxrss: that of a child begins
# with its parent's size.
PROGRAM: Final = '''
import sys
from dataclasses import replace

import anyio

from aimport.imap.fragments import FragmentReader
from aimport.model import Batch, Endpoint, Mailbox
from aimport.octets import measure, pieces_of
from aimport.spool import Spool
from aimport.stores.maildir import MaildirDestination, MaildirSource

INBOX = Mailbox(path=("INBOX",), separator=".")
way, root, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
line = (b"x" * 70 + b"\\r\\n") * 1000


def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


async def spooled(octets):
    """As a server sends it, in reads of 64 KiB."""
    spools = []

    def spill(announced):
        spools.append(Spool(announced))
        return spools[-1]

    reader = FragmentReader(spill=spill, spill_above=4 << 20, max_literal=1 << 40)
    reader.feed(b"* 1 FETCH (BODY[] {%d}\\r\\n" % octets)
    for at in range(0, octets, len(line)):
        reader.feed(line[: octets - at])
        if spools[0].pending > 1 << 20:
            await spools[0].flush()
    [fragments] = reader.feed(b")\\r\\n")
    assert fragments[1] is spools[0]
    return await spools[0].body()


async def copy(octets):
    with open(f"{root}/from/cur/1.a:2,S", "wb") as file:
        file.truncate(octets)
    source = MaildirSource(Endpoint(scheme="maildir", path=f"{root}/from"))
    destination = MaildirDestination(Endpoint(scheme="maildir", path=f"{root}/to"), fsync="never")
    async with source.open() as reader, destination.open() as writer:
        await writer.create_mailbox(INBOX, subscribe=False)
        selection = await reader.select(INBOX)
        async for [message] in reader.messages(selection, skip=()):
            if way == "spool":
                message.body.close()
                message = replace(message, body=await spooled(octets), wire=True)
            prints = (await anyio.to_thread.run_sync(lambda: measure(lambda: pieces_of(message.body))),)
            batch = Batch(run="f00d", number=1, created_us=1, messages=(message,), fingerprints=prints)
            await writer.append(INBOX, batch)
            message.body.close()


async def main():
    before = peak()
    await copy(size)
    print(peak() - before)


anyio.run(main)
'''


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc: the peak of memory is not known")
@pytest.mark.parametrize("way", ["file", "spool"])
@pytest.mark.parametrize(
    ("size", "limit"),
    [(64 * MIB, 8 * MIB), pytest.param(1024 * MIB, 64 * MIB, marks=pytest.mark.slow)],
    ids=["64MiB", "1GiB"],
)
def test_a_large_message_moves_in_little_memory(tmp_path: Path, way: str, size: int, limit: int) -> None:
    """From a Maildir, or as a literal from a server, to a Maildir."""
    for part in ("cur", "new", "tmp"):
        (tmp_path / "from" / part).mkdir(parents=True)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, way, str(tmp_path), str(size)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    [large] = (tmp_path / "to" / "cur").iterdir()
    assert f",W={size}" in large.name
    assert large.stat().st_size > size * 0.98
    assert int(result.stdout) * 1024 < limit, f"{int(result.stdout)} KiB"
    large.unlink()
