"""Tokens of XOAUTH2 and OAUTHBEARER: asked for once in their life, by however many connections.

    get() ──▶ known and good for a minute? ──no──▶ ask (one at a time for each reference) ──▶ token

How long a token lives is read from what comes with it: `expires_in=SECONDS` or an RFC 3339 time
in the second line, or the `exp` of a JWT. It is believed for this alone; a server that refuses the
token earlier has the last word (`renewed`). A token is never logged and in no repr.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import anyio
import anyio.to_thread

from aimport.errors import UserError
from aimport.model import Secret
from aimport.secret import reveal_lines

MARGIN_S: Final = 60.0
"""A token is asked for again so long before it expires."""
UNKNOWN_LIFE_S: Final = 60.0
"""How long a token is used that does not say when it expires."""
MAX_LIFE_S: Final = 86_400.0  # arbitrary: what is believed at most; Exchange gives up to 28 hours
MAX_KEPT: Final = 1000  # arbitrary: with a reference for each user, the oldest go; a token takes a few KiB


@dataclass(slots=True)
class _Entry:
    """What is known of one reference. Times are of the monotonic clock."""

    one: anyio.Lock = field(default_factory=anyio.Lock)
    value: str = field(default="", repr=False)
    good_until: float = -math.inf
    failure: UserError | None = None
    asked: int = 0
    """Times an answer came, or a failure."""


class Tokens:
    """Tokens by their reference, shared by all connections of a process. Clocks are for tests."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._entries: dict[Secret, _Entry] = {}

    async def get(self, secret: Secret) -> str:
        """A token that is good for a while. Who comes while it is asked for waits for that answer.

        Raises:
            UserError: there is none.
        """
        entry = self._entry(secret)
        if self._clock() < entry.good_until:
            return entry.value
        await self._ask(entry, secret)
        return entry.value

    async def renewed(self, secret: Secret, refused: str) -> str | None:
        """Another token in the place of one that a server `refused`; None when there is no other.

        Raises:
            UserError: it cannot be asked for.
        """
        entry = self._entry(secret)
        if entry.value in ("", refused):  # else someone was faster
            await self._ask(entry, secret)
        return entry.value if entry.value != refused else None

    def _entry(self, secret: Secret) -> _Entry:
        entry = self._entries.pop(secret, None) or _Entry()
        self._entries[secret] = entry  # the newest is last
        if len(self._entries) > MAX_KEPT:
            self._entries.pop(next(iter(self._entries)))
        return entry

    async def _ask(self, entry: _Entry, secret: Secret) -> None:
        seen = entry.asked
        async with entry.one:
            if entry.asked == seen:  # else an answer came while we waited
                entry.failure = None
                try:
                    line, second = await anyio.to_thread.run_sync(reveal_lines, secret)
                except UserError as error:
                    entry.value, entry.good_until, entry.failure = "", -math.inf, error
                else:
                    entry.value = line
                    entry.good_until = self._clock() + self._use_s(line, second)
                entry.asked += 1
            if entry.failure is not None:
                raise UserError(entry.failure.text, hint=entry.failure.hint)

    def _use_s(self, token: str, second: str) -> float:
        """Seconds that `token` may be used from now."""
        lives = [life for life in (self._stated_s(second), self._jwt_s(token)) if life is not None]
        return min(*lives, MAX_LIFE_S) - MARGIN_S if lives else UNKNOWN_LIFE_S

    def _stated_s(self, second: str) -> float | None:
        if match := re.fullmatch(r"expires_in=([0-9]{1,9})", second.strip(), re.ASCII):
            return float(match[1])
        try:
            moment = datetime.fromisoformat(second.strip())
        except ValueError:
            return None
        return None if moment.tzinfo is None else moment.timestamp() - self._wall_clock()

    def _jwt_s(self, token: str) -> float | None:
        """By `exp` of a JSON Web Token (RFC 7519 §4.1.4), whose signature nobody checks here."""
        parts = token.split(".")
        if len(parts) != 3:
            return None
        try:
            claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
            expires = claims.get("exp") if isinstance(claims, dict) else None
        except (ValueError, RecursionError):
            return None
        if isinstance(expires, bool) or not isinstance(expires, int | float) or not abs(expires) < 1e12:
            return None
        return expires - self._wall_clock()
