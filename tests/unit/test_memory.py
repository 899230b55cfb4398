"""The knobs of the memory store: each does what other tests rely on."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

import pytest

from aimport.errors import ConnectionLost, MailboxChanged, MailboxNotFound, OverQuota
from aimport.model import Appended, Endpoint, Mailbox, Message, Position, Rejected, Unreadable
from aimport.octets import whole
from aimport.stores.memory import Event, Failure, MemoryDestination, MemorySource, MemoryStore
from tests.contract.stores import batch, message, wanted
from tests.large import Chunks
from tests.mail import RefusedTogether, append_batch

INBOX = Mailbox(path=("INBOX",))


def bodies(store: MemoryStore) -> list[bytes]:
    return [each.body for each in store.mailbox("bob", ("INBOX",)).messages]


def made(store: MemoryStore) -> MemoryDestination:
    """A destination whose INBOX exists."""
    store.mailbox("bob", ("INBOX",))
    return MemoryDestination(store, "bob")


def refuse_two(each: Message) -> tuple[str, str] | None:
    return ("TOOBIG", "too big") if each.key == "key2" else None


async def test_an_endpoint_finds_its_store_by_name(unique_user: str) -> None:
    endpoint = Endpoint(scheme="memory", path=unique_user, user="bob")
    MemoryStore.named(unique_user).mailbox("bob", ("INBOX",))
    async with MemorySource.at(endpoint).open() as source, MemoryDestination.at(endpoint).open() as destination:
        assert [mailbox.path for mailbox in await source.list_mailboxes()] == [("INBOX",)]
        await append_batch(destination, INBOX, batch(message(1)))
    assert len(bodies(MemoryStore.named(unique_user))) == 1
    MemoryStore.forget(unique_user)
    assert MemoryStore.named(unique_user).accounts == {}
    MemoryStore.forget(unique_user)


async def test_an_atomic_store_refuses_the_whole_batch_and_one_message_alone() -> None:
    store = MemoryStore(refuse=refuse_two)
    async with made(store).open() as session:
        with pytest.raises(RefusedTogether):
            await append_batch(session, INBOX, batch(message(1), message(2)))
        assert bodies(store) == []
        outcomes = await append_batch(session, INBOX, batch(message(2)))
    assert outcomes == [Rejected(key=message(2).key, code="TOOBIG", text="too big")]


async def test_a_store_without_atomic_batches_refuses_the_message_only() -> None:
    store = MemoryStore(refuse=refuse_two, atomic=False)
    async with made(store).open() as session:
        outcomes = await append_batch(session, INBOX, batch(message(1), message(2), message(3)))
    assert [type(outcome) for outcome in outcomes] == [Appended, Rejected, Appended]
    assert bodies(store) == [message(1).body, message(3).body]


async def test_a_long_batch_is_refused_but_never_a_single_message() -> None:
    async with made(MemoryStore(max_batch=1)).open() as session:
        with pytest.raises(RefusedTogether):
            await append_batch(session, INBOX, batch(message(1), message(2)))
        assert len(await append_batch(session, INBOX, batch(message(1)))) == 1


@pytest.mark.parametrize("stored", [0, 1, 2])
async def test_the_nth_append_fails_after_as_many_messages_as_said(stored: int) -> None:
    store = MemoryStore(failures=[Failure(nth=2, error=ConnectionLost("cut"), stored=stored)])
    sent = batch(message(1), message(2), number=2)
    async with made(store).open() as session:
        await append_batch(session, INBOX, batch(message(0)))
        since = await session.position(INBOX)
        assert since == Position(uidvalidity=1, uidnext=2)
        with pytest.raises(ConnectionLost):
            await append_batch(session, INBOX, sent)
        found = await session.find(INBOX, wanted(sent), since)
        assert [each.uid for each in found] == [2, 3][:stored]
        assert len(await append_batch(session, INBOX, batch(message(3)))) == 1


@pytest.mark.parametrize(("atomic", "kept"), [(True, 0), (False, 1)])
async def test_over_quota_keeps_nothing_or_a_prefix(atomic: bool, kept: int) -> None:
    store = MemoryStore(quota_octets=30, atomic=atomic)
    async with made(store).open() as session:
        with pytest.raises(OverQuota):
            await append_batch(session, INBOX, batch(message(1), message(2)))
    assert len(bodies(store)) == kept


async def test_flags_that_cannot_be_held_are_named() -> None:
    store = MemoryStore(drops=frozenset({"kw"}))
    async with made(store).open() as session:
        [outcome] = await append_batch(session, INBOX, batch(message(1, "kw", "\\Seen")))
    assert outcome == Appended(
        key=message(1).key, uid=outcome.uid if isinstance(outcome, Appended) else None, dropped=("kw",)
    )
    assert store.mailbox("bob", ("INBOX",)).messages[0].flags == {"\\Seen"}


async def test_a_changed_uidvalidity_makes_old_keys_void_and_find_look_everywhere() -> None:
    store = MemoryStore()
    store.mailbox("bob", ("INBOX",)).add(whole(message(1).body), flags=[], internal_date=message(1).internal_date)
    async with MemorySource(store, "bob").open() as source, made(store).open() as destination:
        selection = await source.select(INBOX)
        store.mailbox("bob", ("INBOX",)).uidvalidity = 99
        lists = source.messages(selection, skip=())
        async with aclosing(lists):
            with pytest.raises(MailboxChanged):
                await anext(lists)
        since = Position(uidvalidity=1, uidnext=2)
        assert len(await destination.find(INBOX, wanted(batch(message(1))), since)) == 1


async def test_unreadable_messages_are_named() -> None:
    store = MemoryStore(unreadable=lambda each: ("unreadable", "bad disk") if each.key == "1:2" else None)
    for number in range(3):
        store.mailbox("bob", ("INBOX",)).add(b"%d" % number, flags=["\\Recent"], internal_date=message(1).internal_date)
    async with MemorySource(store, "bob").open() as session:
        async with aclosing(session.messages(await session.select(INBOX), skip=())) as lists:
            [found] = [each async for each in lists]
    assert [type(each) for each in found] == [Message, Unreadable, Message]


async def test_a_body_that_comes_in_pieces_is_held_whole_and_counts_whole() -> None:
    store = MemoryStore(quota_octets=5)
    async with made(store).open() as session:
        sent = replace(message(1), body=Chunks([b"ab", b"cde"]))
        assert [type(each) for each in await append_batch(session, INBOX, batch(sent))] == [Appended]
        with pytest.raises(OverQuota):
            await append_batch(session, INBOX, batch(replace(message(2), body=Chunks([b"x"]))))
    assert bodies(store) == [b"abcde"]


async def test_events_tell_what_happened_and_the_hook_comes_first() -> None:
    store = MemoryStore()
    seen: list[tuple[Event, int]] = []

    async def hook(event: Event) -> None:
        seen.append((event, len(bodies(store))))

    store.hook = hook
    async with MemoryDestination(store, "bob").open() as session:
        with pytest.raises(MailboxNotFound):
            await append_batch(session, Mailbox(path=("Nope",)), batch(message(1)))
        await session.create_mailbox(INBOX, subscribe=True)
        await append_batch(session, INBOX, batch(message(1)))
    assert [(event.verb, event.mailbox, event.count) for event in store.events] == [
        ("open_destination", "", 0),
        ("append", "Nope", 1),
        ("outcomes", "Nope", 1),
        ("create_mailbox", "INBOX", 0),
        ("append", "INBOX", 1),
        ("outcomes", "INBOX", 1),
    ]
    assert seen[-2:] == [(store.events[-2], 0), (store.events[-1], 1)]
    assert store.mailbox("bob", ("INBOX",)).subscribed
