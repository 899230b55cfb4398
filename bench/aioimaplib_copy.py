"""`python -m bench.aioimaplib_copy`: aioimaplib's own fetch and append, all users at once in one loop.

    source ──UID FETCH, one window──▶ task of a user ──append, one by one──▶ destination

What one writes with it in an afternoon, as `bench.baseline` with imaplib.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import ssl
import sys
from pathlib import Path
from typing import Final

import aioimaplib
import uvloop

from bench.baseline import WINDOW_MESSAGES

TIMEOUT_S: Final = 300.0
_LISTED = re.compile(rb"\((?P<flags>[^)]*)\) (?:NIL|\"[^\"]*\") (?P<name>.*)\Z", re.DOTALL)
_HEAD = re.compile(rb"\d+ FETCH .*\{\d+\}\Z", re.DOTALL)
_FLAGS = re.compile(rb"FLAGS \(([^)]*)\)")
_DATE = re.compile(rb'INTERNALDATE ("[^"]*")')


async def log_in(port: int, ca_file: Path | None, user: str) -> aioimaplib.IMAP4:
    client: aioimaplib.IMAP4
    if ca_file is None:
        client = aioimaplib.IMAP4("127.0.0.1", port, timeout=TIMEOUT_S)
    else:
        context = ssl.create_default_context(cafile=str(ca_file))
        client = aioimaplib.IMAP4_SSL("127.0.0.1", port, timeout=TIMEOUT_S, ssl_context=context)
    await client.wait_hello_from_server()
    _ok(await client.login(user, os.environ["BENCH_PASSWORD"]))
    return client


async def copy(source_port: int, destination_port: int, ca_file: Path | None, user: str) -> int:
    """All mailboxes of one user; the messages copied.

    Raises:
        RuntimeError: an answer other than OK.
    """
    source = await log_in(source_port, ca_file, user)
    destination = await log_in(destination_port, ca_file, user)
    copied = 0
    for line in _ok(await source.list('""', '"*"')):
        listed = _LISTED.match(line)
        if listed is None or b"\\noselect" in listed["flags"].lower():
            continue
        name = listed["name"].decode()
        quoted = name if name.startswith('"') else f'"{name}"'
        _ok(await source.select(quoted))
        if name != "INBOX":
            _ok(await destination.create(quoted))
        uids = _ok(await source.uid_search("ALL", charset=None))[0].split()
        for first in range(0, len(uids), WINDOW_MESSAGES):
            window = b",".join(uids[first : first + WINDOW_MESSAGES]).decode()
            lines = _ok(await source.uid("fetch", window, "(UID FLAGS INTERNALDATE BODY.PEEK[])"))
            rest = iter(lines)
            for head in rest:
                if not _HEAD.match(head):
                    continue
                body, flags, date = next(rest), _FLAGS.search(head), _DATE.search(head)
                assert flags is not None and date is not None, "Dovecot sends the body last"
                kept = b" ".join([flag for flag in flags[1].split() if flag != b"\\Recent"])
                _ok(await destination.append(bytes(body), quoted, f"({kept.decode()})", date[1].decode()))
                copied += 1
    for client in (source, destination):
        await client.logout()
    return copied


def _ok(answer: aioimaplib.Response) -> list[bytes]:
    if answer.result != "OK":
        raise RuntimeError(f"{answer.result} {answer.lines}")
    return answer.lines


async def copy_all(source_port: int, destination_port: int, ca_file: Path | None, users: list[str]) -> int:
    return sum(await asyncio.gather(*(copy(source_port, destination_port, ca_file, user) for user in users)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.aioimaplib_copy", description="A password: BENCH_PASSWORD.")
    parser.add_argument("source_port", type=int)
    parser.add_argument("destination_port", type=int)
    parser.add_argument("--ca", type=Path, metavar="FILE", help="TLS from the first octet")
    parser.add_argument("users", nargs="+")
    given = parser.parse_args()
    print(uvloop.run(copy_all(given.source_port, given.destination_port, given.ca, given.users)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
