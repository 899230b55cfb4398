"""A million users in every kind of form: flat memory, and a rate that is seconds for a million.

`python -m tests.unit.test_lists_scale FORM LINES` prints what it measured.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from aimport.users import check_users, iter_users

FORMS: Final[dict[str, tuple[str, Callable[[int], str]]]] = {
    "csv": (
        "user,source,source_user,source_password,dest,dest_user\n",
        lambda n: f"u{n}@b.org,imaps://h.a/,u{n}@a.org,p{n},imaps://h.b/,u{n}@b.org\n",
    ),
    "plain": ("", lambda n: f"u{n}@b.org\n"),
    "imapsync": ("", lambda n: f"h.a;u{n}@a.org;p{n};h.b;u{n}@b.org;q{n};\n"),
    "blanks": ("", lambda n: f"u{n}@a.org p{n} u{n}@b.org q{n}\n"),
    "mailferry": (
        "srchost,srcport,srcsecurity,srcuser,srcpassword,dsthost,dstport,dstsecurity,dstuser,dstpassword\n",
        lambda n: f"h.a,993,ssl,u{n}@a.org,p{n},h.b,993,ssl,u{n}@b.org,q{n}\n",
    ),
    "json": ("", lambda n: json.dumps({"source": {"host": "h.a", "user": f"u{n}"}, "dest": {"user": f"u{n}"}}) + "\n"),
    "toml": ("", lambda n: f'[[users]]\nuser = "u{n}"\nsource = "maildir:/x/%u"\n'),
    "passwd": ("", lambda n: f"u{n}@b.org:x:1000:1000::/home/u{n}::userdb_mail=maildir:~/Maildir\n"),
    "imapcopy": ("SourceServer h.a\nDestServer h.b\n", lambda n: f'Copy "u{n}" "p" "v{n}" "*"\n'),
    "gamme": ("", lambda n: f"u{n}#p{n}, v{n}\n"),
}
OCTETS_A_USER: Final = 110
"""So much may stay: hashes of names and destinations, at most 36 octets each where their table has just grown."""


def measure(form: str, lines: int, folder: str) -> dict[str, float]:
    """Lines a second of processor time to check and to read, and the growth of the peak of memory, in octets."""
    first, row = FORMS[form]
    path = f"{folder}/users"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(first)
        file.writelines(map(row, range(lines)))
    assert check_users(_short(path, form, folder)).form == form  # everything is imported
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    users = check_users(path)
    checked = time.process_time()
    assert (users.form, users.count) == (form, lines)
    assert sum(1 for _ in iter_users(users)) == lines
    read = time.process_time()
    return {
        "checked_a_second": round(lines / (checked - began)),
        "read_a_second": round(lines / (read - checked)),
        "grown_octets": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
    }


def _short(path: str, form: str, folder: str) -> str:
    with open(path) as file, open(os.open(f"{folder}/short", os.O_WRONLY | os.O_CREAT, 0o600), "w") as short:
        for _ in range(20 if form != "toml" else 18):
            short.write(file.readline())
    return f"{folder}/short"


def in_a_process_of_its_own(form: str, lines: int) -> dict[str, float]:
    """Peaks never fall, so each measurement needs a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_lists_scale", form, str(lines)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


@pytest.mark.parametrize("form", ["csv", "imapsync", "json"])
def test_a_long_list_takes_no_memory(form: str) -> None:
    """Twenty thousand rows, kept, would be 10 MiB and more."""
    assert in_a_process_of_its_own(form, 20_000)["grown_octets"] < 20_000 * OCTETS_A_USER + 2 * 1024 * 1024


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["csv", "imapsync", "json", "toml"])
def test_a_million_users_are_read_in_flat_memory(form: str) -> None:
    measured = in_a_process_of_its_own(form, 1_000_000)
    assert measured["grown_octets"] < 1_000_000 * OCTETS_A_USER, measured
    assert measured["checked_a_second"] > 5_000, measured


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]), place)))
