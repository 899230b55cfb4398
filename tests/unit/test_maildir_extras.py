"""What others put into a Maildir: messages compressed in place, Courier's keywords and UIDs."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from aimport.model import STREAM_OCTETS, Endpoint, Mailbox, Message, Unreadable
from aimport.octets import whole
from aimport.query.parse import parse_query
from aimport.stores import inflate
from aimport.stores.inflate import zstd
from aimport.stores.maildir import MaildirSource
from aimport.stores.maildir.names import courier_words, parse_courier_list
from tests.contract.stores import Held, ImapAccount, held, message
from tests.fix_courier import Courier
from tests.mail import tree

INBOX = Mailbox(path=("INBOX",), separator=".")
BODY = b"Subject: x\n\n" + b"a line of a mail\n" * 100
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
}


def put(root: Path, name: str, body: bytes) -> Path:
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "cur" / name).write_bytes(body)
    os.utime(root / "cur" / name, (0, 1_500_000_000))
    return root / "cur" / name


async def read(root: Path, query: str = "ALL") -> list[Message | Unreadable]:
    async with MaildirSource(Endpoint(scheme="maildir", path=str(root))).open() as session:
        selection = await session.select(INBOX, parse_query(query.split()).term)
        async with aclosing(session.messages(selection, skip=())) as lists:
            return [one async for each in lists for one in each]


@pytest.mark.parametrize("form", PACK)
async def test_messages_compressed_in_place_are_read_and_searched(tmp_path: Path, form: str) -> None:
    """As Dovecot's plug-in leaves them: S= is of what was compressed, and no name says that it was."""
    put(tmp_path, f"1.M1.h,S={len(BODY)}:2,S", PACK[form](BODY))
    put(tmp_path, "2.M2.h:2,", BODY.replace(b"mail", b"letter"))
    before = tree(tmp_path)
    assert [whole(one.body) for one in await read(tmp_path) if isinstance(one, Message)] == [
        BODY,
        BODY.replace(b"mail", b"letter"),
    ]
    for query, count in (("SUBJECT x", 2), ("LARGER 1813", 2), ("LARGER 1814", 1), ("SMALLER 1815", 1)):
        assert len(await read(tmp_path, query)) == count, query
    assert tree(tmp_path) == before


async def test_damage_bombs_and_encryption_cost_one_message(tmp_path: Path) -> None:
    packed = gzip.compress(b"x: y\n\n" + os.urandom(3000))
    put(tmp_path, "1.M1.h:2,", packed[:-100])
    put(tmp_path, "2.M2.h:2,", gzip.compress(b"\0" * (inflate.FREE + (8 << 20))))
    put(tmp_path, "3.M3.h:2,", b"CRYPTED\x03\x07" + b"x" * 100)
    put(tmp_path, "4.M4.h:2,", b"BZh is how this mail begins\n\nx\n")
    put(tmp_path, "5.M5.h:2,", gzip.compress(b"x: y\n\n" + os.urandom(STREAM_OCTETS)))
    found = await read(tmp_path)
    assert [one.code if isinstance(one, Unreadable) else "" for one in found] == [*["unreadable"] * 3, "", ""]
    assert [part in str(one) for part, one in zip(("ends early", "200 times", "encrypted"), found, strict=False)]
    large = found[4]
    assert isinstance(large, Message) and not isinstance(large.body, bytes)
    assert len(whole(large.body)) == len(large.body) == STREAM_OCTETS + 6
    large.body.close()


async def test_keywords_of_courier_are_read_the_newest_first(tmp_path: Path) -> None:
    for number in range(1, 5):
        put(tmp_path, f"{number}.M{number}.h:2,S", BODY)
    folder = tmp_path / "courierimapkeywords"
    folder.mkdir()
    (folder / ":list").write_bytes(b"A\nB\n\n1.M1.h:0 1\n2.M2.h:1\n3.M3.h:7 x\n")
    (folder / ".12.2.M2.h").write_bytes(b"B\nC\n")
    (folder / "1.M1.h").write_bytes(b"D\n")
    (folder / "4.M4.h").symlink_to("/etc/passwd")
    (tmp_path / "courierimapuiddb").write_bytes(b"1 5 9\n2 3.M3.h\n4 1.M1.h\n5 2.M2.h\n")
    found = await read(tmp_path)
    assert [(one.key, one.flags - {"\\Seen"}) for one in found if isinstance(one, Message)] == [
        ("3.M3.h", frozenset()),
        ("1.M1.h", {"D"}),
        ("2.M2.h", {"B", "C"}),
        ("4.M4.h", frozenset()),
    ]
    assert [one.key for one in await read(tmp_path, "KEYWORD C OR KEYWORD D")] == ["1.M1.h", "2.M2.h"]


@pytest.mark.parametrize("data", [b"", b"\n", b"\n\n", b"a\n\n:", b"a\n\nx:-1 99 \xff\n", b"\xff" * 50, b"a\n\nb:0:0"])
def test_any_list_of_courier_is_read(data: bytes) -> None:
    assert all(words <= {"a"} for words in parse_courier_list(data).values())
    assert "" not in courier_words(data)


@pytest.mark.courier
async def test_what_courier_wrote_is_read_as_it_shows_it(courier: Courier, unique_user: str) -> None:
    theirs = ImapAccount(courier, unique_user)
    theirs.put(("INBOX",), [message(1, "kwA", "\\Seen"), message(2, "kwA", "Two"), message(3), message(4, "Three")])
    with theirs._client() as client:
        client.select("INBOX")
        client.store("3", "+FLAGS", "Later")
        client.store("1", "-FLAGS", "kwA")
    root = courier.home(unique_user) / "Maildir"
    expected: list[Held] = theirs.look(("INBOX",))
    before = tree(root)
    assert [held(one) for one in await read(root) if isinstance(one, Message)] == expected
    assert [one.flags for one in expected] == [{"\\Seen"}, {"kwA", "Two"}, {"Later"}, {"Three"}]
    assert tree(root) == before
