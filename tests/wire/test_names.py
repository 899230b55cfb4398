"""Mailbox names that other servers have and this one must not trip over: reliability rows N1 to N5, over IMAP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from aimport.model import Endpoint
from tests.wire.server import Server, Wires, bodies

NAMES: Final = {
    "N1": ["..", ".", "../../etc/x", "/", "//", "/a", "a/", "a//b", "./a", "a/../b", "~", "~root/x"],
    "N2": ["a.b", "a\\b", "a*b", "a%b", 'a"b', "a\x01b", "a\x7fb", "a b", " a", "a ", "{3}", "(", "a{3+}", "#news.x"],
    "N3": ["x" * 255, "x" * 1000, "&AOQ-" * 60, "/".join(["d"] * 100)],
    "N4": ["Sent", "sent", "SENT", "inbox/x", "e&AwE-", "&AOk-"],
    "N5": ["&Jj", "&AGEA", "&AGEA-", "&2AA-", "&", "&&", "a&-b", "caf\xe9", "\xff\xfe", "&AOQ", "&AOQ-&AOQ-"],
}
ALL: Final = [name for names in NAMES.values() for name in names]

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("row", list(NAMES))
async def test_any_name_of_a_source_arrives_or_fails_by_name_and_stops_no_other(row: str) -> None:
    """Invariant: each mailbox is there with its message, or the report says why not; the good one always is."""
    wires = Wires()
    source, destination = Server(offered="IMAP4rev1 LITERAL+"), Server(offered="IMAP4rev1 LITERAL+")
    async with source.running(), destination.running():
        source.fill("bob", "good", bodies(3))
        for number, name in enumerate(NAMES[row], 10):
            source.fill("bob", name, bodies(1, start=number))
        result = await wires.import_(source=source.endpoint(), destination=destination.endpoint())
    boxes = destination.accounts["bob"]
    assert destination.bodies(mailbox="good") == bodies(3)
    assert result.balanced
    arrived = [message.body for box in boxes.values() for message in box.messages]
    wanted = [*bodies(3), *bodies(len(NAMES[row]), start=10)]
    assert sorted(arrived) == sorted(wanted) or (result.error and len(arrived) == result.imported), result.error
    assert result.status == "done" or result.error
    # What arrived has a name of its own, and one that could not end a command or a line.
    assert len(arrived) == len(set(arrived))
    assert not [name for name in boxes if re.search(r"[\0\r\n]", name)]


@pytest.mark.parametrize("name", [name for name in ALL if len(name) < 200])
async def test_no_name_of_a_server_leads_out_of_a_local_account(name: str, tmp_path: Path) -> None:
    root = tmp_path / "a" / "b" / "bob"
    root.parent.mkdir(parents=True)
    (tmp_path / "outside").write_text("canary")
    wires = Wires()
    async with Server(offered="IMAP4rev1 LITERAL+").running() as server:
        server.fill("bob", "good", bodies(3))
        server.fill("bob", name, bodies(1, start=10))
        there = Endpoint(scheme="maildir", path=str(root), user="bob")
        result = await wires.import_(source=server.endpoint(), destination=there)
    outside = [path for path in tmp_path.rglob("*") if root not in (path, *path.parents) and path not in root.parents]
    assert outside == [tmp_path / "outside"]
    assert result.balanced
    assert result.imported >= 3, result.error
    assert result.status == "done" or result.error
    assert sum(1 for path in root.rglob("*") if path.parent.name in ("new", "cur")) == result.imported


@pytest.mark.parametrize(
    ("names", "folds"),
    [(["Sent", "sent"], True), (["e&AwE-", "&AOk-"], True), (["Sent", "sent"], False), (["e&AwE-", "&AOk-"], False)],
)
async def test_names_that_a_server_takes_for_one_are_never_merged(names: list[str], folds: bool) -> None:
    """N4: the user fails before its first write; where they are two mailboxes both arrive."""
    wires = Wires()
    source, destination = Server(offered="IMAP4rev1 LITERAL+"), Server(offered="IMAP4rev1 LITERAL+")
    async with source.running(), destination.running():
        for number, name in enumerate(names):
            source.fill("bob", name, bodies(1, start=number))
        there = destination.endpoint(profile="exchange-online" if folds else "generic")
        result = await wires.import_(source=source.endpoint(), destination=there)
    if folds:
        assert (result.status, result.imported) == ("failed", 0)
        assert "would both become" in (result.error or "")
        assert destination.count["CREATE"] == destination.count["APPEND"] == 0
    else:
        assert (result.status, result.imported) == ("done", 2), result.error
        assert [destination.bodies(mailbox=name) for name in names] == [bodies(1), bodies(1, start=1)]
