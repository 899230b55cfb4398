"""mbox files: what a real Dovecot wrote is read by us as it reads them itself, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from typing import Final

import pytest

from aimport.model import Endpoint, Mailbox, Message
from aimport.octets import whole
from aimport.stores.mbox import MboxDestination, MboxSource
from tests import servers
from tests.contract.stores import Held, ImapAccount, batch, held, message
from tests.fix_dovecot import Dovecot, run_dovecot
from tests.mail import append_batch, tree

BODIES: Final = (
    b"Subject: plain\nMessage-ID: <1@x>\n\nbody\n",
    b"Subject: from\n\nFrom bob@x  Thu Jan  1 10:00:00 2015\n\nFrom here\n>From there\n",
    b"Subject: no end\n\nbody",
    b"Subject: empty body\n\n",
    b"Subject: eight bit \xe9\xff\n\n\xe9\n",
    b"Subject: long\n\n" + b"x" * 100_000 + b"\n",
)
FLAGS: Final = (
    (),
    ("\\Seen",),
    ("\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen"),
    ("$Forwarded",),
    ("\\Seen", "NonJunk", "Project-X"),
)
PATHS: Final = (("INBOX",), ("Entwürfe",), ("Archive", "2023"), ("a&b c",))


@pytest.fixture(scope="module")
def mbox_dovecot() -> Iterator[Dovecot]:
    try:
        with run_dovecot(mail_location="mbox:~/mail:INBOX=~/spool") as server:
            yield server
    except servers.CannotGet as reason:
        pytest.skip(str(reason))


async def seen(endpoint: Endpoint) -> dict[tuple[str, ...], list[Held]]:
    found: dict[tuple[str, ...], list[Held]] = {}
    async with MboxSource(endpoint).open() as session:
        for mailbox in await session.list_mailboxes():
            found[mailbox.path] = []
            async with aclosing(session.messages(await session.select(mailbox), skip=())) as lists:
                async for each in lists:
                    found[mailbox.path] += [held(one) for one in each if isinstance(one, Message)]
    return found


@pytest.mark.dovecot
async def test_we_read_what_dovecot_wrote_as_it_reads_it(mbox_dovecot: Dovecot, unique_user: str) -> None:
    """Order, octets, flags, keywords, dates, names; after flags were changed and messages expunged."""
    theirs = ImapAccount(mbox_dovecot, unique_user)
    sent = [message(n, *FLAGS[n % len(FLAGS)], body=BODIES[n % len(BODIES)]) for n in range(30)]
    for path in PATHS:
        theirs.put(path, sent)
    mbox_dovecot.doveadm("flags", "add", "\\Flagged Late", "mailbox", "INBOX", "uid", "5:9", user=unique_user)
    mbox_dovecot.doveadm("expunge", "mailbox", "INBOX", "uid", "30", user=unique_user)
    home = mbox_dovecot.home(unique_user)
    expected = {path: theirs.look(path) for path in PATHS}
    before = tree(home)
    endpoint = Endpoint(scheme="mbox", path=str(home / "mail"), options=(("INBOX", str(home / "spool")),))
    assert await seen(endpoint) == expected
    assert tree(home) == before


@pytest.mark.dovecot
async def test_dovecot_and_we_find_the_same_messages_in_odd_files(mbox_dovecot: Dovecot, unique_user: str) -> None:
    """A date in the sender's zone, lines that look like a beginning, a length that lies."""
    line = b"From a@b  Thu Jan  1 10:00:00 2015\n"
    odd = (
        b"From a Thu Jan  1 10:00:00 2015 +0200\nSubject: 1\nStatus: RO\nX-Status: F\n\nFrom bob\n\nx\n\n"
        + line + b"Subject: 2\nContent-Length: 41\n\n" + b"x\n\n" + line + b"ok\n" + b"\n"
        + line + b"Subject: 3\nContent-Length: 3\n\nlonger than that\n\n"
        + line + b"Subject: 4\nX-Keywords: a b\n\n>From x\n\n"
        + line.replace(b"\n", b" remote from relay\n") + b"Subject: 5\n\nlast"
    )  # fmt: skip
    home = mbox_dovecot.home(unique_user)
    (home / "mail").mkdir(parents=True)
    (home / "spool").write_bytes(odd)
    endpoint = Endpoint(scheme="mbox", path=str(home / "spool"))
    ours: list[Message] = []
    async with MboxSource(endpoint).open() as session:
        selection = await session.select(Mailbox(path=("INBOX",), separator="/"))
        async with aclosing(session.messages(selection, skip=())) as lists:
            async for each in lists:
                ours += [one for one in each if isinstance(one, Message)]
    mbox_dovecot.own(home)
    theirs = ImapAccount(mbox_dovecot, unique_user).look(("INBOX",))
    assert [whole(one.body).split(b"\n")[0] for one in ours] == [b"Subject: %d" % number for number in range(1, 6)]
    assert [held(one).digest for one in ours] == [one.digest for one in theirs]
    assert [one.internal_date.timestamp() for one in ours] == [one.internal_date for one in theirs]
    assert [one.flags - {"a", "b"} for one in ours] == [one.flags for one in theirs]


@pytest.mark.dovecot
async def test_dovecot_reads_what_we_wrote(mbox_dovecot: Dovecot, unique_user: str) -> None:
    """Order, octets, flags, keywords, dates, names and subscriptions; its own files are added to as well."""
    home = mbox_dovecot.home(unique_user)
    endpoint = Endpoint(scheme="mbox", path=str(home / "mail"), options=(("INBOX", str(home / "spool")),))
    sent = [message(n, *FLAGS[n % len(FLAGS)], body=BODIES[n % len(BODIES)]) for n in range(30)]
    theirs = ImapAccount(mbox_dovecot, unique_user)
    theirs.put(("Entwürfe",), [message(99, "\\Seen", "$Forwarded", "NonJunk", "Project-X")])
    async with MboxDestination(endpoint).open() as session:
        for path in PATHS:
            mailbox = Mailbox(path=path, separator="/")
            await session.create_mailbox(mailbox, subscribe=path != ("a&b c",))
            for number in range(3):
                await append_batch(session, mailbox, batch(*sent[number * 10 : number * 10 + 10], number=number))
    mbox_dovecot.own(home)
    for path in PATHS:
        found = theirs.look(path)
        if path == ("Entwürfe",):
            assert found.pop(0).flags == {"\\Seen", "$Forwarded", "NonJunk", "Project-X"}
        assert found == [held(each) for each in sent], path
    subscribed = mbox_dovecot.doveadm("mailbox", "list", "-s", user=unique_user).splitlines()
    assert sorted(subscribed) == sorted("/".join(path) for path in PATHS if path != ("a&b c",))
    assert {path: messages[-30:] for path, messages in (await seen(endpoint)).items()} == {
        path: [held(each) for each in sent] for path in PATHS
    }
