"""Time and chance, asked for in one place, so that a simulation can replace both. Waiting is the event loop's."""

from __future__ import annotations

import random
import secrets
import time


def monotonic() -> float:
    """Seconds that never go back."""
    return time.monotonic()


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def jitter() -> float:
    """0.5 to 1.0, so that those who wait do not come in step."""
    return random.uniform(0.5, 1.0)


def token(octets: int) -> str:
    """A name that nobody else has: hexadecimal digits of so many random octets."""
    return secrets.token_hex(octets)
