"""What an IMAP server says of an account to someone who only looks: GETQUOTAROOT and STATUS; nothing is opened.

Each command may be one that the server does not know after all: its BAD leaves the connection in step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from aimport.imap.commands import octet_string
from aimport.imap.connection import Connection, Exchange
from aimport.imap.profiles import GENERIC, Profile
from aimport.imap.responses import MailboxStatus, Quota
from aimport.model import ConnectionLimits
from aimport.standing import Allowance, Counts, Server

INBOX: Final = b"INBOX"
STATUS_AHEAD: Final = 16  # arbitrary
"""STATUS commands without an answer: some servers walk through a mailbox for each."""


def server_of(connection: Connection, profile: Profile, limits: ConnectionLimits) -> Server:
    return Server(
        kind="" if profile.name == GENERIC else profile.name,
        capabilities=connection.capabilities,
        connections_per_user=profile.connections_per_user,
        connections_per_address=profile.connections_per_address,
        messages_per_second=profile.messages_per_second,
        octets_per_day=limits.octets_per_day,
        notes=profile.notes,
    )


async def allowances(connection: Connection) -> tuple[Allowance, ...]:
    """Quotas that the INBOX counts towards (RFC 9208 §4.1.2); none where the server does not tell."""
    if not any(each.partition("=")[0] == "QUOTA" for each in connection.capabilities):
        return ()
    exchange = await connection.start(b"GETQUOTAROOT", octet_string(INBOX), refusable=True)
    found: dict[tuple[str, str], Allowance] = {}
    for quota in (await exchange.reply()).of(Quota):
        root = quota.root.decode("utf-8", "backslashreplace")
        for resource, used, limit in quota.resources:
            found[root, resource] = Allowance(root=root, resource=resource, used=used, limit=limit)
    return tuple(found.values())


async def append_limit(connection: Connection) -> int:
    """The limit of the INBOX where the server has one for each mailbox (RFC 7889 §4); 0: not known."""
    if "APPENDLIMIT" not in connection.capabilities:
        return 0
    exchange = await connection.start(b"STATUS", octet_string(INBOX), b"(APPENDLIMIT)", refusable=True)
    for status in (await exchange.reply()).of(MailboxStatus):
        return dict(status.items).get("APPENDLIMIT", 0)
    return 0


async def counts(connection: Connection, names: Sequence[bytes]) -> list[Counts | None]:
    """Of each mailbox, where the server tells sizes by STATUS (RFC 8438); of one that it refuses None."""
    if not {"STATUS=SIZE", "IMAP4REV2"} & connection.capabilities:
        return [None] * len(names)
    found: list[Counts | None] = []
    under_way: deque[Exchange] = deque()
    waiting = iter(names)
    while len(found) < len(names):
        while len(under_way) < STATUS_AHEAD and (name := next(waiting, None)) is not None:
            words = (b"STATUS", octet_string(name), b"(MESSAGES SIZE)")
            under_way.append(await connection.start(*words, refusable=True))
        items = [dict(status.items) for status in (await under_way.popleft().reply()).of(MailboxStatus)]
        known = next((each for each in items if {"MESSAGES", "SIZE"} <= each.keys()), None)
        found.append(None if known is None else Counts(messages=known["MESSAGES"], octets=known["SIZE"]))
    return found


def doubt_about(name: bytes, path: tuple[str, ...], profile: Profile) -> str:
    """Why this kind of server may not take a mailbox of this name on the wire (without the prefix); "": no reason."""
    rules = profile.names
    for level in path:
        if held := [char for char in rules.forbidden if char in level]:
            return f"{profile.name} servers may refuse {' and '.join(map(repr, held))} in a name"
        if rules.blanks == "squeezed" and level != " ".join(filter(None, level.split(" "))):
            return f"{profile.name} servers refuse blanks at the ends of a name, or two in a row"
    if rules.octets and len(name) > rules.octets:
        return f"{profile.name} servers may refuse a name of {len(name)} octets (more than {rules.octets})"
    if any(path[0].casefold() == each.casefold() for each in rules.reserved):
        return f"{profile.name} servers make another mailbox of the name {path[0]}"
    return ""
