"""Collected mail, through every local destination and back, octet for octet."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Final

import pytest

from aimport.interfaces import Destination, Source
from aimport.model import Appended, Endpoint, Mailbox, Message
from aimport.octets import has_header, whole
from aimport.stores import Stores
from tests.contract.stores import batch
from tests.mail import append_batch

KINDS: Final = {
    "maildir": (),
    "maildir-fs": (("LAYOUT", "fs"), ("DIRNAME", "mails")),
    "mbox": (),
    "mboxrd": (("DIALECT", "mboxrd"),),
    "eml": (),
}


@pytest.fixture(scope="module")
def collected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files as `.eml`, but those that are archives of mail or of other things."""
    folder = tmp_path_factory.mktemp("corpus")
    count = 0
    for archive in sorted(corpus.glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            for info in tar:
                if info.isreg() and Path(info.name).suffix.lower() not in (".md", ".json", ".gz"):
                    file = tar.extractfile(info)
                    assert file is not None
                    target = folder / archive.name.partition(".")[0] / f"{count:05}.eml"
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(file.read())
                    os.utime(target, (0, 1_500_000_000 + count))
                    count += 1
    assert count > 3000
    return folder


async def read(source: Source) -> list[Message]:
    found: list[Message] = []
    async with source.open() as session:
        for mailbox in await session.list_mailboxes():
            async with aclosing(session.messages(await session.select(mailbox), skip=())) as lists:
                async for each in lists:
                    found += [one for one in each if isinstance(one, Message)]
    return found


async def write(destination: Destination, messages: list[Message]) -> set[str]:
    """Puts all into one mailbox; the keys of those that lost something."""
    lossy: set[str] = set()
    async with destination.open() as session:
        mailbox = Mailbox(path=("Corpus",), separator=session.separator)
        await session.create_mailbox(mailbox, subscribe=False)
        for at in range(0, len(messages), 64):
            sent = batch(*messages[at : at + 64], number=at)
            for outcome in await append_batch(session, mailbox, sent):
                assert isinstance(outcome, Appended)
                if outcome.dropped:
                    lossy.add(outcome.key)
    return lossy


def digests(bodies: list[bytes]) -> Counter[str]:
    return Counter(hashlib.sha256(body.replace(b"\r\n", b"\n")).hexdigest() for body in bodies)


@pytest.mark.corpus
@pytest.mark.parametrize("kind", KINDS)
async def test_collected_mail_comes_back_as_it_was(collected: Path, tmp_path: Path, kind: str) -> None:
    """An mbox needs an empty line behind a header, and keeps some fields for itself, which it tells; no more."""
    stores = Stores()
    sent = await read(stores.source(Endpoint(scheme="eml", path=str(collected))))
    assert len(sent) > 3000
    scheme = kind.partition("-")[0].removesuffix("rd")
    endpoint = Endpoint(scheme=scheme, path=str(tmp_path / "m"), options=KINDS[kind])
    lossy = await write(stores.destination(endpoint), sent)
    found = await read(stores.source(endpoint))
    assert [one.internal_date for one in found] == [one.internal_date.replace(microsecond=0) for one in sent]
    bodies = {one.key: whole(one.body) for one in sent}
    if kind.startswith("mbox"):
        starts_with_from = {key for key, body in bodies.items() if body.startswith(b"From ")}
        assert len(lossy - starts_with_from) < 100
        bodies = {
            key: body if has_header(body) else body + (b"" if body.endswith(b"\n") or not body else b"\n") + b"\n"
            for key, body in bodies.items()
            if key not in lossy
        }
        missing = digests(list(bodies.values())) - digests([whole(one.body) for one in found])
        assert not missing
        assert len(found) == len(sent)
    else:
        assert not lossy
        assert [whole(one.body) for one in found] == [whole(one.body) for one in sent]
