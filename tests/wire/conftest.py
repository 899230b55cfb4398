"""Time that a test decides over."""

from __future__ import annotations

from typing import Final

import anyio
import pytest

A_WAIT_S: Final = 1.0
"""What sleeps longer is a wait that a server asked for; shorter are the jittered tries of these tests."""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds between two tries of a user that the servers asked for; none of them passes."""
    waits: list[float] = []
    sleep = anyio.sleep

    async def at_once(seconds: float) -> None:
        if seconds >= A_WAIT_S:
            waits.append(seconds)
            seconds = 0.0
        await sleep(seconds)

    monkeypatch.setattr("anyio.sleep", at_once)
    return waits
