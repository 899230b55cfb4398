"""A corpus of real and broken mail goes Maildir to IMAP to Maildir; every file of it is accounted for.

    files of the archives ──▶ Maildir ──aimport──▶ server ──aimport──▶ Maildir
                                                     └─imaplib (the witness)

Every file is one message, octets as they are; mbox files, a gzip bomb and a JSON file are taken so too: a
postmaster's Maildirs hold stranger things. What must come back follows from `tests.kept`, octet by octet.
Files are known again by their INTERNALDATE, a minute apart from file to file, and must be in their order.
"""

from __future__ import annotations

import imaplib
import json
import os
import re
import ssl
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from aimport.stores import inflate
from tests import kept, mail
from tests.fix_courier import Courier
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import Dovecot
from tests.processes import server_folder

pytestmark = [pytest.mark.corpus, pytest.mark.timeout(600)]

ARCHIVES: Final = ("crafted", "mime-fixtures", "real-spamassassin")
MANY: Final = "spamassassin"  # the sample takes one of ten of its files
FIRST_DATE: Final = 1_000_000_000  # seconds; the files follow a minute apart
LETTERS: Final = ("", "S", "RS", "FSa", "ST", "DF")
KEYWORD: Final = "NonJunk"
KEEPERS: Final[Mapping[str, kept.Keeper]] = {
    "dovecot": kept.by_dovecot,
    "cyrus": kept.by_cyrus,
    "courier": kept.by_courier,
}
COUNTS: Final[Mapping[str, Mapping[str, tuple[int, int]]]] = {
    # how many files of the sample, and of the whole
    "dovecot": {
        "equal": (608, 3533),
        "equal but for line ends": (247, 247),
        "altered: nul": (6, 6),
        "altered: cr": (2, 2),
        "rejected: the message has no octets": (2, 2),
    },
    "cyrus": {
        "equal": (581, 3489),
        "equal but for line ends": (213, 213),
        "altered: 8-bit header": (38, 55),
        "rejected: Message contains invalid header": (25, 25),
        "rejected: Message contains NUL characters": (6, 6),
        "rejected: the message has no octets": (2, 2),
    },
    "courier": {
        "equal": (588, 3512),
        "equal but for line ends": (227, 227),
        "altered: final line end": (43, 44),
        "altered: cr, final line end": (3, 3),
        "altered: cr": (2, 2),
        "rejected: the message has no octets": (2, 2),
    },
}


class File(NamedTuple):
    """One file of the corpus, its place among them, and its octets."""

    name: str
    number: int
    body: bytes

    @property
    def key(self) -> str:
        """Its base name in the Maildir."""
        return f"{FIRST_DATE + self.number}.M{self.number}P1.corpus"

    @property
    def date(self) -> int:
        return FIRST_DATE + 60 * self.number

    @property
    def letters(self) -> str:
        return LETTERS[self.number % len(LETTERS)]


class Came(NamedTuple):
    """One message as it was found at the end of a way."""

    date: int
    flags: frozenset[str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What becomes of a file by the rules: its class, and what a local Maildir holds of it at the end."""

    kind: str
    served: bytes | None
    final: bytes | None


@pytest.fixture(scope="module")
def unpacked(corpus: Path) -> Iterator[Path]:
    with server_folder("corpus") as folder:
        for archive in ARCHIVES:
            path = corpus / f"{archive}.tar.xz"
            if not path.exists():
                pytest.skip(f"no {path.name} in the mail corpus")
            with tarfile.open(path) as tar:
                tar.extractall(folder, filter="data")
        yield folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for some 100 MB that pytest would keep for three runs."""
    with server_folder("corpus") as path:
        yield path


def files_of(folder: Path, share: str) -> list[File]:
    """All files but the licences, and what is compressed (in a Maildir, that means what comes out); of the sample,
    all of the odd ones."""
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.relative_to(folder).parts[0] != "LICENSES"
    ]
    chosen = []
    for number, path in enumerate(paths):
        if share == "whole" or path.relative_to(folder).parts[0] != MANY or number % 10 == 0:
            if inflate.format_of(path.read_bytes()[: inflate.HEAD]) is None:
                chosen.append(path)
    return [File(str(path.relative_to(folder)), index, path.read_bytes()) for index, path in enumerate(chosen)]


def write_maildir(root: Path, files: Sequence[File]) -> None:
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True)
    (root / "dovecot-keywords").write_text(f"0 {KEYWORD}\n")
    for file in files:
        path = root / "cur" / f"{file.key}:2,{file.letters}"
        path.write_bytes(file.body)
        os.utime(path, (file.date, file.date))


def flags_of(letters: str) -> frozenset[str]:
    return frozenset(mail.LETTERS.get(letter, KEYWORD) for letter in letters)


def in_maildir(root: Path) -> list[Came]:
    """The messages of an INBOX in the order of their names."""
    paths = [path for part in ("cur", "new") for path in (root / part).iterdir()]
    stems = {path: [int(number) for number in re.findall(r"^(\d+)\.M(\d+)", path.name)[0]] for path in paths}
    return [
        Came(int(path.stat().st_mtime), flags_of(path.name.partition(":2,")[2]), path.read_bytes())
        for path in sorted(paths, key=lambda path: stems[path])
    ]


def on_server(server: Dovecot | Cyrus | Courier, user: str) -> list[Came]:
    """The messages of an INBOX in the order of their UIDs; RFC822, since Courier cuts BODY[] short."""
    came = []
    with imaplib.IMAP4("localhost", server.port, timeout=60) as client:
        client.starttls(ssl.create_default_context(cafile=str(server.ca_file)))
        client.login(user, server.password)
        client.select("INBOX", readonly=True)
        for item in client.fetch("1:*", "(FLAGS INTERNALDATE RFC822)")[1]:
            if isinstance(item, tuple):
                date = imaplib.Internaldate2tuple(item[0])
                assert date is not None
                flags = frozenset(flag.decode() for flag in imaplib.ParseFlags(item[0])) - {"\\Recent"}
                came.append(Came(int(time.mktime(date)), flags, item[1]))
    return came


def fate(file: File, keep: kept.Keeper) -> Fate:
    """A local Maildir has LF line ends, unless that would lose a CR."""
    become = keep(file.body)
    if become.served is None:
        return Fate(kind=f"rejected: {become.refusal}", served=None, final=None)
    final = become.served if b"\r\r\n" in become.served else become.served.replace(b"\r\n", b"\n")
    if become.altered:
        kind = f"altered: {become.altered}"
    else:
        assert kept.wire(final) == kept.wire(file.body)
        kind = "equal" if final == file.body else "equal but for line ends"
    return Fate(kind=kind, served=become.served, final=final)


def seen_kind(fate: Fate, final: bytes) -> str:
    """The class that a file is in by what came back: that of the rules, unless the octets are others."""
    return fate.kind if final == fate.final else "other"


def run(*words: str | Path, password: str) -> tuple[int, dict[str, object], str]:
    """The real command: exit code, report, words on stderr."""
    done = mail.aimport(*words, env={"PW": password}, timeout_s=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def balanced(report: Mapping[str, object]) -> Mapping[str, int]:
    """The totals of a report that adds up."""
    totals = report["totals"]
    assert isinstance(totals, dict)
    assert totals["found"] == sum(totals[each] for each in ("imported", "present", "skipped", "rejected"))
    return totals


def rejects(journal: Path) -> dict[str, str]:
    """Key and words of each message in `rejects.jsonl`."""
    [path] = journal.glob("*/rejects.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = {row["key"]: row["text"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("share", ["sample", pytest.param("whole", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in KEEPERS])
def test_every_file_of_the_corpus_comes_back_or_is_accounted_for(
    name: str,
    share: str,
    unpacked: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    unique_user: str,
) -> None:
    """Equal, altered by the server in a way that is known, or rejected in its words: nothing else, in order."""
    server: Dovecot | Cyrus | Courier = request.getfixturevalue(name)
    if not isinstance(server, Dovecot):
        server.create_user(unique_user)
    files = files_of(unpacked, share)
    fates = [fate(file, KEEPERS[name]) for file in files]
    stored = [(file, fate) for file, fate in zip(files, fates, strict=True) if fate.final is not None]
    source, final = folder / "source", folder / "final"
    write_maildir(source, files)
    before = mail.tree(source)
    location = f"imap://localhost:{server.port}/"
    logins = [f"-o{side}_{what}" for side in ("source", "dest") for what in login(server)]

    code, report, said = run(
        *logins, "import", "-u", unique_user, "--to", location, "--json", "--journal", folder / "there",
        f"maildir:{source}", "", "ALL", password=server.password,
    )  # fmt: skip
    totals = balanced(report)
    assert code == 65, said
    assert (totals["found"], totals["imported"]) == (len(files), len(stored))
    assert rejects(folder / "there") == {
        file.key: fate.kind.removeprefix("rejected: ")
        for file, fate in zip(files, fates, strict=True)
        if fate.final is None
    }
    assert mail.tree(source) == before
    arrived = on_server(server, unique_user)
    held = sorted(arrived, key=lambda came: came.date)
    # What was refused in company goes again behind the batches that were under way (Cyrus); where literals wait for
    # the server, several connections append (Courier).
    if name == "dovecot":
        assert arrived == held
    assert [(came.date, came.flags) for came in held] == [(file.date, flags_of(file.letters)) for file, _ in stored]
    assert [file.name for (file, fate), came in zip(stored, held, strict=True) if came.body != fate.served] == []

    code, report, said = run(
        *logins, "import", "-u", unique_user, "--to", f"maildir:{final}", "--json", "--journal", folder / "back",
        location, "", "ALL", password=server.password,
    )  # fmt: skip
    totals = balanced(report)
    assert code == 0, said
    assert totals["found"] == totals["imported"] == len(stored)
    assert on_server(server, unique_user) == arrived
    back = sorted(in_maildir(final), key=lambda came: came.date)
    assert [(came.date, came.flags) for came in back] == [(file.date, flags_of(file.letters)) for file, _ in stored]
    kinds = {file.name: fate.kind for file, fate in zip(files, fates, strict=True)}
    seen = kinds | {file.name: seen_kind(fate, came.body) for (file, fate), came in zip(stored, back, strict=True)}
    with capsys.disabled():
        show(f"{name} {server.version}, {share}: {len(files)} files", seen, names=request.config.get_verbosity() > 0)
    assert {file: kind for file, kind in seen.items() if kind != kinds[file]} == {}
    assert Counter(seen.values()) == {kind: counts[share == "whole"] for kind, counts in COUNTS[name].items()}


def login(server: Dovecot | Cyrus | Courier) -> list[str]:
    """The settings of one side, without its name."""
    settings = ["password=env:PW", f"tls_ca={server.ca_file}"]
    if isinstance(server, Cyrus):  # its admin acts for the user
        settings = [f"master_user={server.admin}", "master_password=env:PW", *settings[1:]]
    return settings


def show(title: str, kinds: Mapping[str, str], *, names: bool) -> None:
    """The table of classes; with `names` each file that is not equal, below its reason."""
    print(f"\n{title}")
    for kind, count in sorted(Counter(kinds.values()).items(), key=lambda item: -item[1]):
        print(f"{count:6d}  {kind}")
        if names and not kind.startswith("equal"):
            for name in sorted(name for name, each in kinds.items() if each == kind):
                print(f"        {name}")
