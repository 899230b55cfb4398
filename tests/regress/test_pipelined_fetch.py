"""Dovecot sends the data of a pipelined FETCH before it ends the FETCH before it (seen, 2.3.19).

Taken for the first command's and thrown away, up to 28 % of an account came out as "vanished".
"""

from __future__ import annotations

from contextlib import aclosing

import pytest

from aimport import sample
from aimport.model import Endpoint, Message, Secret
from aimport.stores.imap import ImapSource
from tests.fix_dovecot import Dovecot
from tests.fix_imap import Peer, login, logout, scripted, then
from tests.unit.test_imap_store import ROOT, read, sizes


async def test_data_is_for_the_window_that_asked_for_it_whatever_command_has_not_ended() -> None:
    async def all_data_then_all_ends(peer: Peer) -> None:
        heard = [await peer.line() for _ in range(3)]
        for uid in range(1, 193):
            peer.say(b'* %d FETCH (UID %d FLAGS () INTERNALDATE NIL BODY[] "x")' % (uid, uid))
        for line in heard:
            peer.say(line.partition(b" ")[0] + b" OK")

    script = then(login(), ROOT, sizes(*range(1, 193)), all_data_then_all_ends, logout)
    async with scripted(script) as server, ImapSource(server.endpoint()).open() as session:
        found = await read(session)
    assert [each.key for each in found] == [f"7:{uid}" for uid in range(1, 193)]
    assert all(isinstance(each, Message) for each in found)


@pytest.mark.dovecot
async def test_a_real_dovecot_loses_none(dovecot: Dovecot, unique_user: str) -> None:
    samples = sample.account(unique_user, seed=7, messages=600, mailboxes=(("INBOX",),), median_octets=1500)
    sample.write_maildir(dovecot.maildir(unique_user), samples)
    dovecot.own(dovecot.home(unique_user))
    endpoint = Endpoint(
        scheme="imap",
        host=dovecot.host,
        port=dovecot.port,
        security="none",
        user=unique_user,
        secret=Secret(kind="literal", text=dovecot.password),
    )
    kinds = []
    async with ImapSource(endpoint).open() as session:
        [mailbox] = await session.list_mailboxes()
        async with aclosing(session.messages(await session.select(mailbox), skip=())) as lists:
            async for each in lists:
                kinds += [type(item) for item in each]
    assert kinds == [Message] * 600
