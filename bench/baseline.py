"""`python -m bench.baseline`: what one writes in an afternoon with the standard library's imaplib.

    source ──UID FETCH (UID FLAGS INTERNALDATE BODY.PEEK[])──▶ process of a user ──APPEND──▶ destination

One connection a user on each side; a window is fetched, then its messages are appended one by one.
All users at once, each in a process (threads were no faster: imaplib is Python and shares one
core). TCP_NODELAY is set, which imaplib leaves out.
"""

from __future__ import annotations

import argparse
import imaplib
import multiprocessing
import os
import re
import socket
import ssl
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

_LISTED = re.compile(rb"\((?P<flags>[^)]*)\) (?:NIL|\"[^\"]*\") (?P<name>.*)\Z", re.DOTALL)
_FLAGS = re.compile(rb"FLAGS \(([^)]*)\)")
_DATE = re.compile(rb'INTERNALDATE ("[^"]*")')
TIMEOUT_S: Final = 300.0
WINDOW_MESSAGES: Final = 64
"""One by one took longer in eight pairs of nine."""


def log_in(port: int, user: str, ca_file: Path | None = None) -> imaplib.IMAP4:
    client: imaplib.IMAP4
    if ca_file is None:
        client = imaplib.IMAP4("127.0.0.1", port, timeout=TIMEOUT_S)
    else:
        context = ssl.create_default_context(cafile=str(ca_file))
        client = imaplib.IMAP4_SSL("127.0.0.1", port, ssl_context=context, timeout=TIMEOUT_S)
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.login(user, os.environ["BENCH_PASSWORD"])
    return client


def copy(source_port: int, destination_port: int, ca_file: Path | None, user: str) -> int:
    """All mailboxes of one user; the messages copied.

    Raises:
        RuntimeError: an answer other than OK.
    """
    copied = 0
    with log_in(source_port, user, ca_file) as source, log_in(destination_port, user, ca_file) as destination:
        for line in source.list()[1]:
            listed = _LISTED.match(line) if isinstance(line, bytes) else None
            if listed is None or b"\\noselect" in listed["flags"].lower():
                continue
            name = listed["name"].decode()
            quoted = name if name.startswith('"') else f'"{name}"'
            _ok(source.select(quoted, readonly=True))
            if name != "INBOX":
                _ok(destination.create(quoted))
            [found] = _ok(source.uid("SEARCH", "ALL"))
            assert isinstance(found, bytes)
            uids = found.split()
            for first in range(0, len(uids), WINDOW_MESSAGES):
                window = b",".join(uids[first : first + WINDOW_MESSAGES]).decode()
                for item in _ok(source.uid("FETCH", window, "(UID FLAGS INTERNALDATE BODY.PEEK[])")):
                    if isinstance(item, tuple):
                        head, body = item
                        flags, date = _FLAGS.search(head), _DATE.search(head)
                        assert flags is not None and date is not None, "Dovecot sends the body last"
                        kept = b" ".join([flag for flag in flags[1].split() if flag != b"\\Recent"])
                        _ok(destination.append(quoted, f"({kept.decode()})", date[1].decode(), body))
                        copied += 1
    return copied


def _ok(answer: tuple[str, Sequence[object]]) -> Sequence[object]:
    if answer[0] != "OK":
        raise RuntimeError(f"{answer[0]} {answer[1]}")
    return answer[1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.baseline", description="The password is in BENCH_PASSWORD.")
    parser.add_argument("source_port", type=int)
    parser.add_argument("destination_port", type=int)
    parser.add_argument("--ca", type=Path, metavar="FILE", help="TLS from the first octet")
    parser.add_argument("users", nargs="+")
    options = parser.parse_args()
    one = partial(copy, options.source_port, options.destination_port, options.ca)
    with ProcessPoolExecutor(len(options.users), multiprocessing.get_context("fork")) as processes:
        print(sum(processes.map(one, options.users)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
