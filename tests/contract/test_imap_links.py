"""The core of the contract over every way to reach every server, on both event loops.

The whole contract runs once for each server, in the clear (`stores.account`).
"""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from aimport.imap.tunnel import Tunnel
from aimport.stores.imap import account as imap
from tests.contract.stores import ImapAccount, Link, imap_account
from tests.contract.test_destinations import (
    test_find_sees_exactly_what_was_appended,
    test_mailboxes_of_any_language_are_made_once_and_hold_mail,
    test_what_is_appended_is_held_in_order_as_it_was,
)
from tests.contract.test_sources import (
    test_every_mailbox_is_listed_once_under_its_unicode_name,
    test_leaving_early_leaves_the_session_usable,
    test_messages_come_in_stored_order_as_they_were_put,
)

__all__ = [
    "test_every_mailbox_is_listed_once_under_its_unicode_name",
    "test_find_sees_exactly_what_was_appended",
    "test_leaving_early_leaves_the_session_usable",
    "test_mailboxes_of_any_language_are_made_once_and_hold_mail",
    "test_messages_come_in_stored_order_as_they_were_put",
    "test_what_is_appended_is_held_in_order_as_it_was",
]

LINKS: Final[dict[str, tuple[Link, ...]]] = {
    "dovecot": ("none", "starttls", "tls", "compress", "tunnel"),
    "cyrus": ("none", "starttls", "tls", "compress", "tunnel"),
    "courier": ("none", "starttls", "tls", "tunnel"),  # it has no COMPRESS
}
"""What each server has; another way is a word here and what `ImapAccount.endpoint` makes of it."""
SERVERS: Final[dict[tuple[str, Link], str]] = {("dovecot", "compress"): "dovecot_with_compress"}
"""Fixtures of their own; else that of the server's name."""

pytestmark = pytest.mark.asyncio(loop_factories=("asyncio", "uvloop"))


@pytest.fixture(
    params=[
        pytest.param((name, link), marks=getattr(pytest.mark, name)) for name, links in LINKS.items() for link in links
    ],
    ids=lambda param: "-".join(param),
)
def link(request: pytest.FixtureRequest) -> tuple[str, Link]:
    """Which server, and how it is reached."""
    name, way = request.param
    return name, way


@pytest.fixture
def account(request: pytest.FixtureRequest, link: tuple[str, Link], unique_user: str) -> ImapAccount:
    """An empty account of each server, reached in each way."""
    name, way = link
    return imap_account(request, SERVERS.get(link, name), unique_user, way)


async def test_the_loop_is_the_one_of_the_name(request: pytest.FixtureRequest) -> None:
    [loop] = [name for name in ("asyncio", "uvloop") if f"[{name}" in request.node.name]
    assert type(asyncio.get_running_loop()).__module__.partition(".")[0] == loop


async def test_the_link_is_the_one_of_the_name(account: ImapAccount, link: tuple[str, Link]) -> None:
    opened = await imap.Account(account.endpoint()).link()
    connection = opened.connection
    try:
        _, way = link
        transport = connection._transport
        assert connection.compressed == (way == "compress")
        assert isinstance(transport, Tunnel) == (way == "tunnel")
        assert (transport.get_extra_info("ssl_object") is not None) == (way in ("starttls", "tls"))
        assert opened.profile.name == link[0]
    finally:
        await connection.close()
