"""`python -m bench.floor`: the server's own pace, under octets that were ready before the clock ran.

    Maildirs ──read, joined──▶ memory ──"ready"──▶ connect, LOGIN, CREATE, MULTIAPPEND ... ──▶ server

Blocking sockets and no thought: what a client adds to this is the client. The batches are those
of aimport (64 messages or 1 MiB, LITERAL+, flags and dates). All batches of a mailbox are sent
before the first answer is read, which is never slower than one by one. Threads: they wait in
the kernel with the interpreter lock released, and processes were no faster (measured).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from bench.floors import reached
from bench.null_server import Row, read_account

BATCH_MESSAGES: Final = 64
BATCH_OCTETS: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stream:
    """All that one user sends after the login: CREATE where needed and APPENDs of each mailbox."""

    user: str
    mailboxes: tuple[tuple[bytes, ...], ...] = field(repr=False)


def built(user: str, maildir: Path) -> Stream:
    """The commands for a Maildir++ account, its mailbox names as on disk with `/` for the separator."""
    mailboxes = []
    for name, box in read_account(maildir).items():
        quoted = b'"%s"' % name.replace(b".", b"/")
        commands = [] if name == b"INBOX" else [b"c CREATE %s\r\n" % quoted]
        mailboxes.append((*commands, *(append(quoted, batch) for batch in cut(box.rows))))
    return Stream(user, tuple(mailboxes))


def cut(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Batches of up to 64 messages and 1 MiB; a bigger message stands alone."""
    first = total = 0
    for at, row in enumerate(rows):
        if at > first and (at - first == BATCH_MESSAGES or total + len(row.body) > BATCH_OCTETS):
            yield rows[first:at]
            first, total = at, 0
        total += len(row.body)
    if first < len(rows):
        yield rows[first:]


def append(quoted: bytes, batch: Sequence[Row]) -> bytes:
    """One MULTIAPPEND (RFC 3502)."""
    messages = b"".join([b" (%s) %s {%d+}\r\n%s" % (row.flags, row.date, len(row.body), row.body) for row in batch])
    return b"c APPEND %s%s\r\n" % (quoted, messages)


def send(stream: Stream, port: int, password: str, ca_file: Path | None = None) -> None:
    """One user, one connection.

    Raises:
        RuntimeError: an answer other than OK.
    """
    with reached(port, ca_file) as connection:
        with connection.makefile("rb") as answers:
            answers.readline()
            connection.sendall(b'c LOGIN "%s" "%s"\r\n' % (stream.user.encode(), password.encode()))
            _expect(answers, 1)
            for commands in stream.mailboxes:
                for command in commands:
                    connection.sendall(command)
                _expect(answers, len(commands))
            connection.sendall(b"c LOGOUT\r\n")
            _expect(answers, 1)


def _expect(answers: Iterator[bytes], count: int) -> None:
    while count:
        line = next(answers, b"the server closed the connection")
        if line.startswith(b"c OK"):
            count -= 1
        elif not line.startswith(b"*"):
            raise RuntimeError(line.decode(errors="replace").strip())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.floor", description="The password is in BENCH_PASSWORD.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="users")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="TLS from the first octet")
    parser.add_argument("pairs", nargs="+", metavar="USER=MAILDIR")
    options = parser.parse_args()
    named = [pair.partition("=") for pair in options.pairs]
    streams = [built(user, Path(maildir)) for user, _, maildir in named]
    one = partial(send, port=options.port, password=os.environ["BENCH_PASSWORD"], ca_file=options.ca)
    print(f"ready {time.process_time()}", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(options.at_once) as threads:
        for _ in threads.map(one, streams):
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
