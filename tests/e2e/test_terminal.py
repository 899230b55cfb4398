"""What a person at a terminal sees."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading

from tests import mail


def test_the_demo_shows_live_progress_on_a_terminal_and_a_plain_report_in_a_pipe() -> None:
    leader, follower = pty.openpty()
    shown: list[bytes] = []

    def collect() -> None:
        try:
            while data := os.read(leader, 65536):
                shown.append(data)
        except OSError:
            pass  # the other end was closed

    reader = threading.Thread(target=collect)
    reader.start()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "aimport", "demo"],
            env=mail.environment({"TERM": "xterm"}),
            stdout=subprocess.PIPE,
            stderr=follower,
            text=True,
            timeout=100,
            check=False,
        )
    finally:
        os.close(follower)
        reader.join(10)
        os.close(leader)
    screen = b"".join(shown).decode()
    assert done.returncode == 0, screen
    assert "messages/s" in screen and "20 users" in screen
    assert "\x1b" in screen and "\x1b" not in done.stdout
    assert ["20", "users", "10000", "10000"] in [line.split()[:4] for line in done.stdout.splitlines()]
