"""What the messages of a mailbox are made of, without keeping them: fingerprints of octets that are read and let go."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass

from anyio import to_thread

from aimport import octets
from aimport.interfaces import SourceSession
from aimport.model import Body, Fingerprint, MessageKey, Selection, Unreadable


@dataclass(frozen=True, slots=True)
class Seen:
    """A message whose octets were read."""

    fingerprint: Fingerprint
    reduced: bytes
    """As `Alike.digest`; empty when that was not asked for."""
    wire: bool
    """Its line ends are CRLF."""


async def seen_of(
    session: SourceSession, selection: Selection, keys: Collection[MessageKey], *, reduced: bool
) -> dict[MessageKey, Seen]:
    """What of `keys` can be read.

    Raises:
        MailboxError, ConnectionLost
    """
    seen: dict[MessageKey, Seen] = {}
    async with aclosing(session.messages(selection, skip=_AllBut(keys))) as lists:
        async for items in lists:
            for item in items:
                if isinstance(item, Unreadable):
                    continue
                if isinstance(item.body, bytes):
                    wire, tidy = octets.formed(item.body)
                    digest = octets.reduced_digest((wire,)) if reduced else b""
                    seen[item.key] = Seen(octets.fingerprint(wire, tidy=tidy), digest, wire is item.body)
                else:
                    try:
                        seen[item.key] = await to_thread.run_sync(_large, item.body, reduced)
                    finally:
                        item.body.close()
    return seen


def _large(body: Body, reduced: bool) -> Seen:
    fingerprint = octets.measure(lambda: octets.pieces_of(body))
    digest = octets.reduced_digest(octets.wire_pieces(octets.pieces_of(body))) if reduced else b""
    return Seen(fingerprint, digest, fingerprint.size == len(body))


class _AllBut:
    """Every key that is not one of `keys`."""

    def __init__(self, keys: Collection[MessageKey]) -> None:
        self._keys = keys

    def __contains__(self, key: object) -> bool:
        return key not in self._keys
