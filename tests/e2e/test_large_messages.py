"""A message of any size moves over IMAP in flat memory (P7): from file to socket, from socket to file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fix_dovecot import Dovecot

pytestmark = [pytest.mark.dovecot, pytest.mark.timeout(300)]

MIB = 1 << 20
LIMIT_MIB = 64
"""Above a client that moves one small message; measured: 6 to 10."""

# The peak (VmHWM) of the whole command in KiB goes to stderr last. Not ru_maxrss: a child's begins with its parent's.
PROGRAM = """
import sys
from aimport.__main__ import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM:")), file=sys.stderr)
"""


def peak_kib(*words: str, temporary: Path) -> int:
    """Runs `aimport import` with these words to its good end; returns its peak memory."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, "PW": "pass", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert not list(temporary.iterdir()), "a temporary file was left behind"
    return int(done.stderr.split()[-1])


def put(maildir: Path, octets: int) -> str:
    """One message of about `octets` in a Maildir; returns the digest of the file."""
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    block = b"".join(b"%07d %s\n" % (number, b"x" * 63) for number in range(10_000))
    digest = hashlib.sha256()
    with open(maildir / "cur" / "1000000000.M1.host:2,S", "wb") as file:
        for piece in (b"Subject: large\n\n", *[block] * (octets // len(block)), b"end"):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def digests(maildir: Path) -> list[str]:
    found = []
    for path in sorted([*(maildir / "cur").iterdir(), *(maildir / "new").iterdir()]):
        with open(path, "rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


@pytest.mark.parametrize("size_mib", [96, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.fault("F30")
def test_a_large_message_goes_there_and_back_in_flat_memory(
    dovecot: Dovecot, unique_user: str, tmp_path: Path, size_mib: int
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    small = tmp_path / "small"
    put(small, 1000)
    digest = put(tmp_path / "large", size_mib * MIB)
    server = f"imap://localhost:{dovecot.port}/"
    journal = ("--journal", str(tmp_path / "journal"), "--progress", "none")

    def there(maildir: Path, parent: str) -> int:
        options = (f"-odest_tls_ca={dovecot.ca_file}", "-odest_password=env:PW")
        words = (*options, "import", "-u", unique_user, *journal, "--to", server, f"maildir:{maildir}", parent, "ALL")
        return peak_kib(*words, temporary=temporary)

    def back(maildir: Path, mailbox: str) -> int:
        options = (f"-osource_tls_ca={dovecot.ca_file}", "-osource_password=env:PW")
        words = ("import", "-u", unique_user, *journal, "--to", f"maildir:{maildir}", server, "", "MAILBOX", mailbox)
        return peak_kib(*options, *words, temporary=temporary)

    idle = there(small, "small")
    up = there(tmp_path / "large", "large") - idle
    assert up < LIMIT_MIB * 1024
    idle = back(tmp_path / "small-back", "small/INBOX")
    down = back(tmp_path / "large-back", "large/INBOX") - idle
    assert down < LIMIT_MIB * 1024
    print(f"{size_mib} MiB: {up / 1024:.1f} MiB above an idle client there, {down / 1024:.1f} back")
    assert digests(tmp_path / "large-back" / ".large.INBOX") == [digest]
