"""What every destination keeps (`aimport.interfaces.DestinationSession`)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from anyio import create_task_group

from aimport.errors import MailboxError, SourceMissing
from aimport.interfaces import DestinationSession, Removing
from aimport.model import Appended, Mailbox, Message, Position, Rejected, Uid
from aimport.spool import FileBody
from tests.contract.stores import INBOX, Account, Path_, account, batch, large_octets, message, wanted
from tests.mail import RefusedTogether, append_batch

__all__ = ["account"]


@asynccontextmanager
async def opened(account: Account, *paths: Path_) -> AsyncGenerator[DestinationSession, None]:
    """A session with these mailboxes made."""
    async with account.destination().open() as session:
        for path in paths:
            await session.create_mailbox(account.mailbox(path), subscribe=False)
        yield session


async def append(session: DestinationSession, mailbox: Mailbox, *sent: Message) -> list[Appended | Rejected]:
    """As the pipeline does: a batch that is refused as a whole is halved."""
    try:
        return await append_batch(session, mailbox, batch(*sent))
    except RefusedTogether:
        assert len(sent) > 1, "never said of a batch of one"
        half = len(sent) // 2
        return [*await append(session, mailbox, *sent[:half]), *await append(session, mailbox, *sent[half:])]


async def test_what_is_appended_is_held_in_order_as_it_was(account: Account) -> None:
    """What a store must refuse costs only that message, and its words are handed on."""
    sent = [
        message(0),
        message(1, "\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft"),
        message(2, "\\Seen", "$Forwarded", "Project-X"),
        message(3, "NonJunk", body=b"Subject: crlf\r\n\r\nline\r\n"),
        message(4, body=b"no header\n" + bytes(range(1, 256)) + b"\nend without newline"),
        message(5, "\\Flagged"),
        message(6, body=b"Subject: n\0l\n\n\0\n"),
        message(7, body=b"Subject: \xe9\n\n\xe9\n"),
        message(8),
    ]
    async with opened(account, INBOX) as session:
        outcomes = await append(session, account.mailbox(INBOX), *sent)
    assert [outcome.key for outcome in outcomes] == [each.key for each in sent]
    assert [outcome.text if isinstance(outcome, Rejected) else "" for outcome in outcomes] == [
        account.refusal(each) for each in sent
    ]
    assert account.look(INBOX) == [account.held(each) for each in sent if not account.refusal(each)]
    for outcome, each in zip(outcomes, sent, strict=True):
        if isinstance(outcome, Appended):
            assert set(outcome.dropped) == each.flags - account.held(each).flags


async def test_what_is_there_is_listed_by_the_names_it_was_made_with(account: Account) -> None:
    """A destination that nobody has made yet has nothing, or says so."""
    paths = [INBOX, ("Entwürfe",), ("a", "b")]
    try:
        async with account.destination().open() as session:
            assert {each.path for each in await session.list_mailboxes()} <= {INBOX}
    except SourceMissing:
        pass
    async with opened(account, *paths) as session:
        listed = await session.list_mailboxes()
        assert {each.path for each in listed} >= set(paths)
        for mailbox in listed:
            survey = await session.survey(mailbox, Position(), sizes=False)
            assert survey is None or not survey.keys
            await session.create_mailbox(mailbox, subscribe=False)  # as the store itself names it
        assert {each.path for each in await session.list_mailboxes()} == {each.path for each in listed}


async def test_a_mailbox_that_is_removed_is_gone_with_its_mail_and_nothing_else(account: Account) -> None:
    """Above and beside it all stays; twice is as good as once; the INBOX stays whatever is asked."""
    top, gone = ("Top",), ("Top", "Gone")
    async with opened(account, INBOX) as session:
        if not isinstance(session, Removing):
            pytest.skip("this store takes nothing away")
        for path in (top, gone):
            mailbox = account.mailbox(path)
            await session.create_mailbox(mailbox, subscribe=False)
            await append_batch(session, mailbox, batch(message(0), message(1, "\\Seen", "Project-X")))
        before = account.look(top)
        await session.remove_mailbox(account.mailbox(gone))
        await session.remove_mailbox(account.mailbox(gone))
        with pytest.raises(MailboxError):
            await session.remove_mailbox(account.mailbox(INBOX))
    async with account.destination().open() as session:
        assert {mailbox.path for mailbox in await session.list_mailboxes()} == {INBOX, top}
        assert account.look(top) == before
        assert isinstance(session, Removing)
        await session.remove_mailbox(account.mailbox(top))
        assert {mailbox.path for mailbox in await session.list_mailboxes()} == {INBOX}


async def test_order_holds_over_a_second_and_over_many_messages(account: Account) -> None:
    sent = [message(number, *["\\Seen"][: number % 2]) for number in range(120)]
    async with opened(account, INBOX) as session:
        for number in range(3):
            await append_batch(
                session, account.mailbox(INBOX), batch(*sent[number * 40 : number * 40 + 40], number=number)
            )
    assert account.look(INBOX) == [account.held(each) for each in sent]


async def test_mailboxes_of_any_language_are_made_once_and_hold_mail(account: Account) -> None:
    paths = [INBOX, ("Entwürfe",), ("Archive", "2023"), ("Проекты", "日本"), ("a&b c",), ("INBOX", "x")]
    async with opened(account, *paths, *paths) as session:
        for number, path in enumerate(paths):
            await append_batch(session, account.mailbox(path), batch(message(number), number=number))
    for number, path in enumerate(paths):
        assert account.look(path) == [account.held(message(number))], path


async def test_subscribing_twice_is_fine(account: Account) -> None:
    async with account.destination().open() as session:
        for _ in range(2):
            await session.create_mailbox(account.mailbox(("Archive", "2023")), subscribe=True)


async def test_identical_messages_stay_two(account: Account) -> None:
    async with opened(account, INBOX) as session:
        outcomes = await append_batch(session, account.mailbox(INBOX), batch(message(1), message(1)))
    assert len(outcomes) == 2
    assert account.look(INBOX) == [account.held(message(1))] * 2


async def test_a_batch_of_one_has_one_outcome(account: Account) -> None:
    async with opened(account, INBOX) as session:
        for number, body in enumerate([b"x", b"", b"\n"]):
            one = message(1, body=body)
            [outcome] = await append_batch(session, account.mailbox(INBOX), batch(one, number=number))
            assert isinstance(outcome, Rejected) == bool(account.refusal(one))


async def test_position_of_an_unknown_mailbox_is_none(account: Account) -> None:
    async with opened(account, INBOX) as session:
        assert await session.position(account.mailbox(("Nope",))) is None
        assert await session.position(account.mailbox(INBOX)) is not None


async def test_find_sees_exactly_what_was_appended(account: Account) -> None:
    old, sent = batch(message(1), number=1), batch(message(1), message(2, "\\Seen"), message(2), number=2)
    never = batch(message(3), number=3)
    async with opened(account, INBOX) as session:
        await append_batch(session, account.mailbox(INBOX), old)
        since = await session.position(account.mailbox(INBOX))
        assert since is not None
        await append_batch(session, account.mailbox(INBOX), sent)
    async with account.destination().open() as session:
        asked = wanted(sent) + wanted(never)
        found = await session.find(account.mailbox(INBOX), asked, since)
        assert Counter(each.fingerprint for each in found if each.fingerprint in sent.fingerprints) == Counter(
            sent.fingerprints
        )
        assert not [each for each in found if each.fingerprint == never.fingerprints[0]]
        for each in found:
            assert each.wanted is None or asked[each.wanted].fingerprint == each.fingerprint


async def test_find_in_an_unknown_mailbox_sees_nothing(account: Account) -> None:
    async with account.destination().open() as session:
        assert not await session.find(account.mailbox(("Nope",)), wanted(batch(message(1))), Position())


async def test_a_survey_recognises_what_was_appended_and_reads_no_octets(account: Account) -> None:
    """Its keys are those of a source that reads the same account."""
    old, sent = batch(message(1), number=1), batch(message(1), message(2, "\\Seen"), message(2), number=2)
    mailbox = account.mailbox(INBOX)
    async with opened(account, INBOX) as session:
        await append_batch(session, mailbox, old)
        since = await session.position(mailbox)
        assert since is not None
        outcomes = await append_batch(session, mailbox, sent)
    async with account.destination().open() as session:
        survey = await session.survey(mailbox, since)
        assert survey is not None
        uids = [outcome.uid if isinstance(outcome, Appended) else None for outcome in outcomes]
        places = [session.place(*known, survey.uidvalidity) for known in zip(wanted(sent), uids, strict=True)]
        at = [survey.at(place) for place in places]
        assert None not in at and len(set(at)) == 3
        assert [survey.sizes[index] for index in at if index is not None] == [one.size for one in sent.fingerprints]
        assert [survey.dates[index] for index in at if index is not None] == [
            int(one.internal_date.timestamp()) for one in sent.messages
        ]
        never = wanted(batch(message(3), number=3))[0]
        assert survey.at(session.place(never, Uid(4_000_000), survey.uidvalidity)) is None
        assert await session.survey(account.mailbox(("Nope",)), Position()) is None
    async with account.source().open() as source:
        keys = (await source.select(mailbox)).keys
    assert {survey.keys[index] for index in at if index is not None} <= set(keys)


async def test_two_sessions_may_make_and_fill_at_once(account: Account) -> None:
    async def fill(lane: int) -> None:
        async with opened(account, ("Shared",), (f"Own{lane}",)) as session:
            for number in range(3):
                sent = batch(message(number, f"kw{lane}"), message(number, "\\Seen"), number=number, run=f"lane{lane}")
                await append_batch(session, account.mailbox(("Shared",)), sent)
                await append_batch(session, account.mailbox((f"Own{lane}",)), sent)

    async with create_task_group() as tasks:
        for lane in range(3):
            tasks.start_soon(fill, lane)
    assert len(account.look(("Shared",))) == 18
    for lane in range(3):
        kept = [account.held(message(0, f"kw{lane}")).flags, account.held(message(0, "\\Seen")).flags]
        assert [each.flags for each in account.look((f"Own{lane}",))] == kept * 3


async def test_a_body_that_lies_in_a_file_is_held_as_it_was_between_its_neighbours(
    account: Account, tmp_path: Path
) -> None:
    (tmp_path / "body").write_bytes(large_octets())
    body = FileBody(os.open(tmp_path / "body", os.O_RDONLY), name="body")
    sent = [message(0), replace(message(1, "\\Seen"), body=body), message(2)]
    async with opened(account, INBOX) as session:
        outcomes = await append_batch(session, account.mailbox(INBOX), batch(*sent, number=1))
        outcomes += await append_batch(session, account.mailbox(INBOX), batch(sent[1], number=2))
    assert [type(outcome) for outcome in outcomes] == [Appended] * 4
    assert account.look(INBOX) == [account.held(each) for each in [*sent, sent[1]]]
    body.close()


async def test_a_body_that_lies_in_a_file_is_found_again(account: Account, tmp_path: Path) -> None:
    """After an OK that was lost, `find` alone stands between a large message and its double."""
    (tmp_path / "body").write_bytes(large_octets())
    body = FileBody(os.open(tmp_path / "body", os.O_RDONLY), name="body")
    sent = batch(replace(message(1), body=body))
    async with opened(account, INBOX) as session:
        since = await session.position(account.mailbox(INBOX))
        assert since is not None
        await append_batch(session, account.mailbox(INBOX), sent)
    async with account.destination().open() as session:
        found = await session.find(account.mailbox(INBOX), wanted(sent), since)
    assert [each.wanted == 0 or each.fingerprint == sent.fingerprints[0] for each in found] == [True]
    body.close()
