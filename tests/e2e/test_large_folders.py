"""A folder of a million messages: the first is written within seconds, in memory that does not grow with the folder.

`AIMPORT_LARGE=1` with `-m slow` runs the full size; without it a tenth. CI runs what `--slow-share` says.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import mail

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

COUNT = 1_000_000 if os.environ.get("AIMPORT_LARGE") else 50_000
LINKS = 60_000
"""ext4 gives a file no more names."""


def fill(root: Path, count: int) -> None:
    """So many messages, most of them further names of one file."""
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True)
    fd = os.open(root / "cur", os.O_RDONLY)
    try:
        first = ""
        for number in range(count):
            name = f"{1_500_000_000 + number}.M{number}P1.host:2,S"
            if number % LINKS == 0:
                first = name
                (root / "cur" / name).write_bytes(b"Subject: %d\n\nbody\n" % number)
            else:
                os.link(first, name, src_dir_fd=fd, dst_dir_fd=fd)
    finally:
        os.close(fd)


def test_a_folder_of_any_size_is_imported_in_flat_memory(tmp_path: Path) -> None:
    fill(tmp_path / "from", COUNT)
    target = tmp_path / "to"
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "aimport", "import", "-u", "bob", "--fsync", "never", "--progress", "none"),
            *("--journal", str(tmp_path / "journal"), "--no-link", "--to", f"maildir:{target}"),
            *(f"maildir:{tmp_path / 'from'}", "", "ALL"),
        ],
        env=mail.environment(),
        stdout=subprocess.DEVNULL,
    )
    first = peak = 0.0
    with process:
        while process.poll() is None:
            time.sleep(0.05)
            if not first and (target / "cur").is_dir() and any((target / "cur").iterdir()):
                first = time.monotonic() - began
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = max(peak, int(line.split()[1]) / 1024)
    assert process.returncode == 0
    assert len(os.listdir(target / "cur")) == COUNT
    print(f"{COUNT} messages: first after {first:.1f} s, all after {time.monotonic() - began:.0f} s, {peak:.0f} MiB")
    assert peak < 150
    assert 0 < first < 30  # 3 on a machine with nothing else to do
