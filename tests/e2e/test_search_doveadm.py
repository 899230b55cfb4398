"""Random queries over random small mailboxes: what we select is what `doveadm` selects from the same Maildir."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from aimport.errors import UsageError
from aimport.model import Endpoint
from aimport.plan import local_clock
from aimport.query.parse import parse_query
from aimport.stores.maildir.source import MaildirSource
from tests.fix_dovecot import Dovecot, dovecot
from tests.queries import KEYWORDS, MAILBOXES, Node, Written, mailboxes, queries
from tests.search import select_all

__all__ = ["dovecot"]

ALL_CHECKS = list(HealthCheck)
pytestmark = pytest.mark.dovecot


def write(root: Path, messages: Sequence[Written]) -> None:
    """A Maildir with these messages."""
    keywords = "".join(f"{number} {name}\n" for number, name in enumerate(KEYWORDS))
    for mailbox in MAILBOXES if any(each.mailbox != "INBOX" for each in messages) else ["INBOX"]:
        folder = root if mailbox == "INBOX" else root / ("." + mailbox.replace("/", "."))
        for name in ("cur", "new", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "dovecot-keywords").write_text(keywords)
        for each in messages:
            if each.mailbox == mailbox:
                place = (
                    folder / ("new" if each.new else "cur") / (each.base + ("" if each.new else f":2,{each.letters}"))
                )
                place.write_bytes(each.octets)
                os.utime(place, (each.moment, each.moment))


class Crashed(Exception):
    """doveadm died of the query (2.3.19 does of some with FILENAME BEGINS or NOT INTHREAD): it says nothing."""


def by_doveadm(server: Dovecot, user: str, words: Sequence[str]) -> set[str] | None:
    """Base names; None: it was refused."""
    done = server.try_doveadm("fetch", "guid", "--", *words, user=user)
    if done.returncode < 0:
        raise Crashed
    if done.returncode:
        assert done.returncode in (64, 75), done.stderr
        return None
    return {line.partition(b": ")[2].decode() for line in done.stdout.splitlines() if line.startswith(b"guid: ")}


async def by_us(root: Path, words: Sequence[str]) -> set[str] | None:
    try:
        query = parse_query(words, local_clock(int(time.time())))
    except UsageError:
        return None
    return await select_all(MaildirSource(Endpoint(scheme="maildir", path=str(root))), query)


@pytest.mark.parametrize("sequences", [False, True])
def test_random_queries_select_what_doveadm_selects(dovecot: Dovecot, sequences: bool) -> None:
    # To shrink a counterexample takes doveadm ten minutes: the query that failed is short enough.
    @settings(max_examples=10, phases=[Phase.explicit, Phase.reuse, Phase.generate], suppress_health_check=ALL_CHECKS)
    @given(mailboxes(), st.lists(queries(sequences=sequences), min_size=25, max_size=25))
    def compare(messages: list[Written], several: list[Node]) -> None:
        if sequences:  # of several mailboxes a set means what readdir makes of it
            messages = [replace(each, mailbox="INBOX") for each in messages]
        user = f"q{uuid.uuid4().hex[:12]}"
        root = dovecot.maildir(user)
        write(root, messages)
        dovecot.own(dovecot.home(user))
        for query in several:
            words = query.listed()
            ours = anyio.run(by_us, root, words)
            with contextlib.suppress(Crashed):
                assert ours == by_doveadm(dovecot, user, words), " ".join(words)

    compare()
