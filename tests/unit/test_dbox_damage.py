"""Damaged stores: every octet changed, every file cut short. A clean report, and nothing whole is left behind.

Nothing here may be a bug (any exception but an `AimportError`), and nothing may be silent: what is not read is told
of. With `--salvage` every message whose octets are untouched is read.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import anyio.to_thread
import pytest

from aimport.errors import AimportError, MailboxError
from aimport.model import Endpoint, Message
from aimport.octets import whole
from aimport.stores.dbox import account
from aimport.stores.dbox.account import Account
from aimport.stores.dbox.layout import Layout
from aimport.stores.dbox.reader import Reader
from tests.dbox_made import Made, small_mdbox, small_sdbox

KINDS: Final = {"sdbox": small_sdbox, "mdbox": small_mdbox}


Damage = Callable[[Made, Path, bytes], Iterator[tuple[str, bytes, set[bytes]]]]


class Seen(NamedTuple):
    """What one look at a store has brought: bodies, and how many complaints."""

    bodies: Counter[bytes]
    flags: list[frozenset[str]]
    complaints: list[str]


def look(made: Made, *, salvage: bool) -> Seen:
    """All of a store, in this thread."""
    bodies: Counter[bytes] = Counter()
    flags: list[frozenset[str]] = []
    complaints: list[str] = []
    store = Account(Layout.of(Endpoint(scheme=made.kind, path=str(made.root))), salvage=salvage)
    try:
        for mailbox in store.mailboxes():
            try:
                selection = store.select(mailbox)
                complaints += selection.notes
                reader = Reader(store, selection)
                try:
                    wanted = list(zip(selection.keys, range(len(selection.keys)), strict=True))
                    while wanted:
                        for each in (read := reader.read(wanted)):
                            if isinstance(each, Message):
                                bodies[whole(each.body)] += 1
                                flags.append(each.flags)
                            else:
                                complaints.append(str(each))
                        del wanted[: len(read)]
                finally:
                    reader.close()
            except MailboxError as error:
                complaints.append(str(error))
    except AimportError as error:
        complaints.append(str(error))
    finally:
        store.storage.close()
    return Seen(bodies, flags, complaints)


def files_of(made: Made) -> list[Path]:
    return sorted(path for path in made.root.rglob("*") if path.is_file())


def touched(made: Made, path: Path, begin: int, end: int) -> set[bytes]:
    """Bodies of which octets lie in a part of a file."""
    return {
        body
        for body, (file, first, last) in zip(made.bodies, made.places, strict=True)
        if file == path and first < end and begin < last
    }


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return KINDS[request.param](tmp_path / "store")


async def test_a_whole_store_is_read_without_a_complaint(made: Made) -> None:
    for salvage in (False, True):
        seen = await anyio.to_thread.run_sync(partial(look, made, salvage=salvage))
        assert seen.bodies == Counter(made.bodies)
        assert seen.complaints == []
    if made.kind == "sdbox":
        assert seen.flags == [{"\\Seen", "Junk"}, {"\\Flagged"}, {"\\Flagged", "Work"}]
    else:
        assert seen.flags == [{"\\Seen"}, set(), {"\\Flagged", "Work"}]


def changes(made: Made, path: Path, octets: bytes) -> Iterator[tuple[str, bytes, set[bytes]]]:
    """Every octet of a file changed, in two ways; with the bodies that this changes."""
    for at in range(len(octets)):
        for flip in (0x01, 0xFF):
            changed = bytearray(octets)
            changed[at] ^= flip
            yield f"octet {at} ^ {flip:#x}", bytes(changed), touched(made, path, at, at + 1)


def cuts(made: Made, path: Path, octets: bytes) -> Iterator[tuple[str, bytes, set[bytes]]]:
    """A file cut short behind every octet."""
    for size in range(len(octets)):
        yield f"cut to {size}", octets[:size], touched(made, path, size, len(octets))


@pytest.mark.parametrize("damage", [changes, cuts])
async def test_any_octet_changed_or_lost_is_told_of_and_what_is_whole_is_salvaged(
    made: Made, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "PATIENCE_S", 0.0)  # nobody else writes here
    await anyio.to_thread.run_sync(_damage_all, made, damage)


def _damage_all(made: Made, damage: Damage) -> None:
    wrong: list[str] = []
    logging.disable(logging.WARNING)  # a line for each damage, thousands in all
    try:
        wrong += _all_wrong(made, damage)
    finally:
        logging.disable(logging.NOTSET)
    assert wrong == []


def _all_wrong(made: Made, damage: Damage) -> Iterator[str]:
    for path in files_of(made):
        octets = path.read_bytes()
        for what, changed, lost in damage(made, path, octets):
            path.write_bytes(changed)
            name = f"{path.name}, {what}"
            strict, salvaged = look(made, salvage=False), look(made, salvage=True)
            expected = Counter(made.bodies)
            if expected - strict.bodies and not lost and not strict.complaints:
                yield (f"{name}: silent, {strict.bodies}")
            missing = {body for body in expected - salvaged.bodies if body not in lost}
            if missing:
                yield (f"{name}: not salvaged: {missing}, {salvaged.complaints}")
            twice = {body for body, count in salvaged.bodies.items() if count > 1}
            if twice:
                yield (f"{name}: twice: {twice}")
        path.write_bytes(octets)
