"""The core of the contract over every way to reach every server, on both event loops.

The whole contract runs once for each server, in the clear (`stores.account`).
"""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from aimport.model import Security
from tests.contract.stores import IMAP, Account, imap_account
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

# Another way is a word here and what `ImapAccount` makes of it: COMPRESS, a tunnel.
LINKS: Final[tuple[Security, ...]] = ("none", "starttls", "tls")

pytestmark = pytest.mark.asyncio(loop_factories=("asyncio", "uvloop"))


@pytest.fixture(
    params=[pytest.param((name, link), marks=getattr(pytest.mark, name)) for name in IMAP for link in LINKS],
    ids=lambda param: "-".join(param),
)
def account(request: pytest.FixtureRequest, unique_user: str) -> Account:
    """An empty account of each server, reached in each way."""
    name, link = request.param
    return imap_account(request, name, unique_user, link)


async def test_the_loop_is_the_one_of_the_name(request: pytest.FixtureRequest) -> None:
    [loop] = [name for name in ("asyncio", "uvloop") if f"[{name}" in request.node.name]
    assert type(asyncio.get_running_loop()).__module__.partition(".")[0] == loop
