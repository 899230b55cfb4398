"""The 305 measured rows of the search fixture, over each kind of source."""

from __future__ import annotations

from pathlib import Path

from aimport.account import Run
from aimport.errors import UsageError
from aimport.journal import Journal
from aimport.model import Endpoint, UserJob
from aimport.pipeline import plan_user
from aimport.query.dates import Clock
from aimport.query.parse import parse_query
from aimport.stores import Stores
from aimport.stores.memory import MemoryStore
from tests.search import TAKEN_AT, make_maildir, rows

CLOCK = Clock(now=TAKEN_AT)


async def test_every_row_selects_what_doveadm_selected_from_the_maildir(tmp_path: Path) -> None:
    source = Endpoint(scheme="maildir", path=str(make_maildir(tmp_path / "Maildir")))
    destination = Endpoint(scheme="memory", path="search-rows", user="bob")
    MemoryStore.forget("search-rows")
    job = UserJob(user="bob", source=source, destination=destination)
    wrong = {}
    for row in rows():
        try:
            query = parse_query(row.words, CLOCK)
        except UsageError as error:
            if not row.refused:
                wrong[row.words] = str(error)
            continue
        planned = await plan_user(job, Run(stores=Stores(), journal=Journal.in_memory(), query=query))
        selected = {key for mailbox in planned.mailboxes for key in mailbox.keys}
        if row.refused or planned.failure or selected != row.selected:
            wrong[row.words] = f"{sorted(selected)} is not {sorted(row.selected)} ({planned.failure})"
    assert wrong == {}
    assert len(rows()) == 305
