"""`python -m bench.floors fetch|write|link`: what the source's server, or the disk, takes when nothing is done to mail.

    fetch    connect, LOGIN, EXAMINE, UID FETCH of everything a client needs ──▶ dropped; by blocking sockets
    write    octets that were ready in memory before the clock ran ──▶ files, one syncfs at the end
    link     a second name for each file, one syncfs at the end

None keeps flags, dates or order; each says in the end how many messages there were. Threads, at most four users at a
time: they wait in the kernel with the interpreter lock released.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from bench.corpus import message_files

AT_ONCE: Final = 4
PIECE: Final = 1024 * 1024
_FETCHED = re.compile(rb"\* \d+ FETCH .*?\{(\d+)\}\r\n\Z", re.DOTALL)
_LISTED = re.compile(rb"\* LIST \((?P<flags>[^)]*)\) (?:NIL|\"[^\"]*\") (?P<name>.*)\r\n\Z", re.DOTALL)


def fetch(port: int, ca_file: Path | None, user: str) -> int:
    """All mailboxes of one user over one connection; the messages that came.

    Raises:
        RuntimeError: an answer other than OK.
    """
    count = 0
    with reached(port, ca_file) as connection, connection.makefile("rb", buffering=PIECE) as answers:
        answers.readline()

        def said(command: bytes) -> Iterator[bytes]:
            connection.sendall(b"c %s\r\n" % command)
            while not (line := answers.readline()).startswith(b"c "):
                if not line:
                    raise RuntimeError("the server closed the connection")
                yield line
                if literal := _FETCHED.match(line):
                    left = int(literal[1])
                    while left:
                        left -= len(answers.read(min(left, PIECE)))
            if not line.startswith(b"c OK"):
                raise RuntimeError(line.decode(errors="replace").strip())

        list(said(b'LOGIN "%s" "%s"' % (user.encode(), os.environ["BENCH_PASSWORD"].encode())))
        listed = [match for line in said(b'LIST "" "*"') if (match := _LISTED.match(line))]
        for box in listed:
            if b"\\noselect" in box["flags"].lower():
                continue
            exists = [line for line in said(b"EXAMINE %s" % box["name"]) if line.endswith(b" EXISTS\r\n")]
            if exists and int(exists[0].split()[1]):
                fetched = said(b"UID FETCH 1:* (UID FLAGS INTERNALDATE BODY.PEEK[])")
                count += sum(_FETCHED.match(line) is not None for line in fetched)
        list(said(b"LOGOUT"))
    return count


def reached(port: int, ca_file: Path | None) -> socket.socket:
    """A connection without delay, and with TLS where there is a CA."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if ca_file is None:
        return connection
    return ssl.create_default_context(cafile=str(ca_file)).wrap_socket(connection, server_hostname="localhost")


def folders(maildir: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each message of a Maildir and its name below `target`, whose folders are made."""
    named = [(file, target / file.relative_to(maildir)) for file in message_files(maildir)]
    for folder in {new.parent.parent for _, new in named} | {target}:
        for part in ("cur", "new", "tmp"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    return named


def write(ready: Sequence[tuple[str, bytes]]) -> int:
    for name, body in ready:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        left = memoryview(body)
        while left:
            left = left[os.write(file, left) :]
        os.close(file)
    return len(ready)


def link(named: Sequence[tuple[Path, Path]]) -> int:
    for old, new in named:
        os.link(old, new)
    return len(named)


def sync_filesystem(place: Path) -> None:
    """syncfs(2), which Python does not have.

    Raises:
        OSError: it failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs", str(place))
    finally:
        os.close(fd)


def go(works: Sequence[Callable[[], int]]) -> int:
    """Says that all is ready, waits for a line, and does all of it."""
    print(f"ready {time.process_time()}", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return sum(threads.map(lambda work: work(), works))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.floors", description="A password is in BENCH_PASSWORD.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    fetching = kinds.add_parser("fetch")
    fetching.add_argument("--port", type=int, required=True)
    fetching.add_argument("--ca", type=Path, metavar="FILE")
    fetching.add_argument("users", nargs="+")
    for name in ("write", "link"):
        local = kinds.add_parser(name)
        local.add_argument("--into", type=Path, required=True, metavar="DIR", help="gets USER/Maildir")
        local.add_argument("pairs", nargs="+", metavar="USER=MAILDIR")
    given = parser.parse_args()
    if given.kind == "fetch":
        count = go([partial(fetch, given.port, given.ca, user) for user in given.users])
    else:
        named = []
        for pair in given.pairs:
            user, _, maildir = pair.partition("=")
            named.append(folders(Path(maildir), given.into / user / "Maildir"))
        if given.kind == "link":
            works = [partial(link, each) for each in named]
        else:
            ready = [[(str(new), old.read_bytes()) for old, new in each] for each in named]
            works = [partial(write, each) for each in ready]

        count = go(works)
        sync_filesystem(given.into)
    print(f"messages={count}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
