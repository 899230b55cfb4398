"""One small import that is cut in every way, and what must be there in the end."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import mail
from tests.faults.forks import Done, Forks

MESSAGES = ((b"", "S"), (b"1", "FRS"), (b"", "S"), (b"2", ""), (b"3" * 100, "T"))
"""Bodies and flags of each mailbox; two are the same in every octet."""
DATE = 1_500_000_000


@contextmanager
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a place: kill -9 does not ask what was synced."""
    shm = Path("/dev/shm")
    with TemporaryDirectory(prefix="aimport-", dir=shm if os.access(shm, os.W_OK) else tmp_path) as place:
        yield Path(place)


def write_maildir(root: Path, *, mailboxes: tuple[str, ...] = ("", ".Sent"), pieces: int = 5) -> None:
    for mailbox in mailboxes:
        for part in ("cur", "new", "tmp"):
            (root / mailbox / part).mkdir(parents=True, exist_ok=True)
        for number, (text, flags) in enumerate(MESSAGES[:pieces]):
            name = f"{DATE + number}.M{number}P1.host"
            file = root / mailbox / ("cur" if flags else "new") / (f"{name}:2,{flags}" if flags else name)
            file.write_bytes(b"Subject: x\n\n" + text + b"\n")
            date = DATE if not text else DATE + number
            os.utime(file, (date, date))


@dataclass(slots=True, kw_only=True)
class Job:
    """A Maildir of two mailboxes on its way; `port` 0: into another Maildir."""

    folder: Path
    user: str = "bob"
    port: int = 0
    inner: Path | None = None
    """The folder as the command sees it, where that lives in another mount namespace."""
    source: Path | None = None
    """Where that is not below the folder."""
    then: str = ""
    """What each process of it runs first (`Forks.start`)."""
    journal: Path = field(init=False)
    expected: Counter[mail.Seen] = field(default_factory=Counter)
    """What the source holds, read here where it is not given."""

    def __post_init__(self) -> None:
        self.journal = self.folder / "journal"
        source = self.source or self.folder / "from"
        if not source.exists():
            write_maildir(source)
        self.expected = self.expected or mail.in_maildir(source)

    @property
    def to(self) -> Path:
        return self.folder / "to"

    def fresh(self) -> None:
        """As if nothing had been done; a server's accounts are not looked after."""
        shutil.rmtree(self.to, ignore_errors=True)
        shutil.rmtree(self.journal, ignore_errors=True)

    def import_words(self) -> list[str]:
        folder = self.inner or self.folder
        to = f"imap://127.0.0.1:{self.port}/?tls=off" if self.port else f"maildir:{folder}/to"
        return [
            "-odest_password=env:PW", "import", "-u", self.user, "--to", to, "--json", "--journal", f"{folder}/journal",
            f"maildir:{self.source or folder / 'from'}", "", "ALL",
        ]  # fmt: skip

    def resume_words(self) -> list[str]:
        return ["resume", "--json", "--journal", f"{self.inner or self.folder}/journal"]

    def begun(self) -> bool:
        """A run that can be resumed: it has written its first record."""
        return any(self.journal.glob("2*/run.json"))

    def go_on(self, forks: Forks) -> Done:
        """What a person would type next: `resume`, or the import again where no run had come into being."""
        words = self.resume_words() if self.begun() else self.import_words()
        return forks.run(words, env={"PW": "pass"}, batch_messages=2, then=self.then)

    def check_same(self, done: Done) -> None:
        """The destination equals that of an uncut run: count, octets, flags, dates; the report adds up."""
        assert done.code == 0, done.err
        assert done.totals["found"] == done.totals["imported"] == self.expected.total(), done.out
        assert self.held() == self.expected
        if not self.port:
            assert not [file for file in self.to.rglob("tmp/*")]

    def held(self) -> Counter[mail.Seen]:
        if self.port:
            return mail.in_imap(self.port, self.user, "pass")
        return mail.in_maildir(self.to) if self.to.exists() else Counter()
