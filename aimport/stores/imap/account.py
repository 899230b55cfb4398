"""An IMAP account: how to reach it, what kind of server it lies on, how its mailboxes are named.

    connect ──▶ ID, NAMESPACE (one round trip) ──▶ Profile, prefix and separator ──▶ Session

What a server does not say by itself comes from its profile (`imap.profiles`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aimport import names
from aimport.errors import (
    AimportError,
    ConfigurationError,
    MailboxError,
    MailboxNameInvalid,
    MailboxNotFound,
    UserError,
)
from aimport.imap.answers import clean, error_for
from aimport.imap.client import connect, where_of
from aimport.imap.commands import SET_OCTETS, octet_string
from aimport.imap.connection import Connection, Deadlines, Reply, identify
from aimport.imap.profiles import Profile, choose, named
from aimport.imap.responses import Listed, Namespace, ServerId, Tagged
from aimport.model import ConnectionLimits, Endpoint, Mailbox
from aimport.pacing import Pace, Throttle, Throttles, batch_of
from aimport.seats import rest
from aimport.standing import Standing
from aimport.stores.imap.standing import server_of

logger = logging.getLogger(__name__)

UNSELECTABLE: Final = frozenset({"\\noselect", "\\nonexistent"})


@dataclass(frozen=True, slots=True)
class Link:
    """A connection that is logged in, and what is known of the other end."""

    connection: Connection
    namespace: Namespace
    profile: Profile
    throttle: Throttle


class Account:
    """What source and destination have in common. `host` is the key of the connection limit.

    Raises:
        UserError: its row of the user list names a profile that is not there, or not right.
    """

    def __init__(
        self, endpoint: Endpoint, deadlines: Deadlines | None = None, throttles: Throttles | None = None
    ) -> None:
        self.endpoint = endpoint
        self._named = _named(endpoint.profile)
        self.deadlines = deadlines or Deadlines()
        self.host = where_of(endpoint)
        self.throttles = throttles or Throttles()
        self.throttle = self.throttles.of(self.host)

    async def link(self) -> Link:
        """A new connection; asks who the server is and where the account's own mailboxes are in one round trip."""
        if self.throttle.logins is not None:
            await rest(self.throttle.logins.reserve(1))
        connection = await connect(self.endpoint, deadlines=self.deadlines, throttle=self.throttle)
        try:
            offered = connection.capabilities
            self._adopt(connection, {})
            asked = await connection.start(*identify()) if "ID" in offered else None
            spaces = await connection.start(b"NAMESPACE") if "NAMESPACE" in offered else None
            said = (await asked.reply()).of(ServerId) if asked is not None else []
            profile = self._adopt(connection, dict(said[0].items) if said else {})
            namespaces = (await spaces.reply()).of(Namespace) if spaces is not None else []
            namespace = next((each for each in namespaces if each.personal), None)
            if namespace is None:
                namespace = await _guessed(connection, profile)
            self.throttles.know_logins(self.host, profile.logins_per_second)
            if self.endpoint.compress == "yes":
                await self._compress(connection, profile)
            return Link(connection, namespace, profile, self.throttle)
        except BaseException:
            await connection.close()
            raise

    def _adopt(self, connection: Connection, server_id: Mapping[str, str]) -> Profile:
        """The profile of this server, as far as it is known; what is sent and understood follows it."""
        profile = self._named or choose(
            host=self.endpoint.host,
            greeting=connection.greeting,
            server_id=server_id,
            capabilities=connection.capabilities,
        )
        connection.sentences = profile.refusals
        connection.policy = profile.policy(connection.capabilities)
        return profile

    async def _compress(self, connection: Connection, profile: Profile) -> None:
        if can_compress(connection, profile):
            await connection.compress()
        else:
            logger.warning("compression not offered host=%s", connection.where)


def _least(known: int, of_account: int, pace: Pace | None) -> int:
    """The largest batch: what is known of the server, or what the rates let go at once; 0: none says."""
    return min(filter(None, (known, of_account, pace.batch if pace is not None else 0)), default=0)


def _named(profile: str) -> Profile | None:
    """The profile that the settings name; None when they leave it to what the server shows."""
    try:
        return named(profile) if profile else None
    except ConfigurationError as error:  # of one row of the user list: what is for all users was looked at before
        raise UserError(error.text, hint=error.hint) from error


def can_compress(connection: Connection, profile: Profile) -> bool:
    return profile.compress and not connection.compressed and "COMPRESS=DEFLATE" in connection.capabilities


async def _guessed(connection: Connection, profile: Profile) -> Namespace:
    """Where the account's own mailboxes are when the server has no NAMESPACE."""
    prefix, separator = profile.names.prefix.encode(), profile.names.separator
    if not separator:
        root = (await connection.command(b"LIST", b'""', b'""')).of(Listed)  # the separator (RFC 9051 §6.3.9)
        prefix, separator = b"", root[0].separator if root else ""
    return Namespace(personal=((prefix, separator),), others=(), shared=())


class Session:
    """Commands that both sides use."""

    def __init__(self, link: Link, per_day: int) -> None:
        self._connection = link.connection
        self._namespace = link.namespace
        self._profile = link.profile
        self.fetch_whole = link.profile.fetch_whole.encode("ascii")
        self.set_octets = min(SET_OCTETS, link.profile.line_octets - 200)
        self._prefix, self._separator = link.namespace.personal[0]
        self._throttle = link.throttle
        self.limits = ConnectionLimits(
            per_user=link.profile.connections_per_user,
            per_address=link.profile.connections_per_address if link.connection.socket is not None else 0,
            batch_messages=_least(
                link.profile.batch_messages, batch_of(link.profile.messages_per_second), link.throttle.appends
            ),
            batch_octets=_least(link.profile.batch_octets, 0, link.throttle.out),
            octets_per_day=per_day,
        )

    async def inspect(self, targets: Sequence[Mailbox] = ()) -> Standing:
        """What the server says of itself; where it keeps `targets`, and whether it could, a destination tells."""
        return Standing(server=server_of(self._connection, self._profile, self.limits))

    async def _examine(self, mailbox: Mailbox, name: bytes) -> Reply:
        """Opens read-only (RFC 9051 §6.3.3).

        Raises:
            MailboxNotFound, MailboxError, ConnectionLost
        """
        reply = await self._connection.command(b"EXAMINE", octet_string(name))
        if reply.ok:
            return reply
        error = self._refusal(reply.tagged, f"EXAMINE {mailbox.name}", MailboxError)
        if not error.code and type(error) is MailboxError and not await self._is_listed(name):  # Dovecot 2.3, Courier
            raise MailboxNotFound(error.text, code=error.code)
        raise error

    async def _is_listed(self, name: bytes) -> bool:
        reply = await self._connection.command(b"LIST", b'""', octet_string(name))
        return any(listed.name == name and not listed.flags & UNSELECTABLE for listed in reply.of(Listed))

    def _refusal(self, tagged: Tagged, doing: str, default: type[AimportError]) -> AimportError:
        return error_for(
            tagged.status,
            tagged.code,
            tagged.text,
            where=self._connection.where,
            doing=clean(doing),
            default=default,
            sentences=self._profile.refusals,
        )


def uidvalidity_of(reply: Reply) -> int:
    said = reply.code("UIDVALIDITY")
    return int(said) if said is not None and said.isdecimal() else 0


def native_name(mailbox: Mailbox, prefix: str = "") -> bytes:
    """The name on the wire, as the server gave it or made from the path.

    Raises:
        MailboxNameInvalid: it cannot be sent.
    """
    try:
        if mailbox.native:
            name = mailbox.native.encode("latin-1")
        else:
            levels = [names.encode_utf7(level) for level in mailbox.path]
            name = (prefix + mailbox.separator.join(levels)).encode("latin-1")
        octet_string(name)
    except ValueError:
        raise MailboxNameInvalid(f"mailbox name {mailbox.name!r} cannot be sent over IMAP") from None
    return name


def decoded(name: bytes) -> str:
    """Unicode of a name: modified UTF-7 where it is valid, else what it looks like."""
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        try:
            return name.decode("utf-8")
        except UnicodeDecodeError:
            return name.decode("latin-1")
    return names.decode_utf7(text) or text


def without(prefix: bytes, separator: str) -> bytes:
    return prefix.removesuffix(separator.encode()) if separator else prefix
