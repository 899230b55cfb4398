"""User lists in every form that is known, for the same two users; see `fixtures/lists/README.md`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

FIXTURES: Final = Path(__file__).parent / "fixtures" / "lists"
SOURCE: Final = "imaps://$S:$P/"
TO: Final = "imaps://$T:$Q/"
ODD: Final = (
    *("pass word", " lead", "trail ", 'quo"te', '"whole"', "semi;colon", "com,ma", "back\\slash", "100%u", "it's"),
    *("#hash", "a:b", "p\u00e4ss\u4e2d", "{SSHA}x", "$HOME", "`id`", "=cmd", "a\tb", "(a)", "*", "a]b", "{5}", "\\"),
)
"""Passwords with characters that mean something to a shell, a CSV, a URL or IMAP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A list, and what stands beside it on the command line. `source` "" and `to` None: the list says it."""

    file: str
    form: str
    source: str = ""
    to: str | None = None
    named: bool = False
    """Its form cannot be seen, and is named."""
    one_sided: bool = False
    """Users have one name, `$A` and `$B`, at both ends."""
    local: bool = False
    """The source is local: `$R/home/$A/Maildir`."""
    left_out: int = 0
    parent: str = ""
    """A DEST_PARENT that the list brings."""

    def write(self, folder: Path, values: Mapping[str, str]) -> Path:
        path = folder / self.file
        path.write_bytes(self.render(values))
        path.chmod(0o600)
        return path

    def render(self, values: Mapping[str, str]) -> bytes:
        return Template((FIXTURES / self.file).read_bytes().decode()).substitute(values).encode()

    @property
    def users(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Names of the accounts, source and destination."""
        return (("A", "A"), ("B", "B")) if self.one_sided else (("A", "C"), ("B", "D"))


CASES: Final = (
    Case(file="csv.csv", form="csv"),
    Case(file="imapsync.txt", form="imapsync"),
    Case(file="imapcp.txt", form="imapcp"),
    Case(file="pairs-hosts.csv", form="pairs", left_out=1),
    Case(file="mailferry.csv", form="mailferry"),
    Case(file="imap-migrator.csv", form="imap-migrator"),
    Case(file="imapcopy.cfg", form="imapcopy"),
    Case(file="json-list.json", form="json"),
    Case(file="toml.toml", form="toml"),
    Case(file="exchange-old.csv", form="exchange-old", to=TO),
    Case(file="artica.txt", form="artica", to=TO),
    Case(file="imapsync-users.txt", form="imapsync-users", source=SOURCE, to=TO),
    Case(file="blanks.txt", form="blanks", source=SOURCE, to=TO),
    Case(file="pairs-emails.csv", form="pairs", source=SOURCE, to=TO),
    Case(file="migrationwiz.csv", form="migrationwiz", source=SOURCE, to=TO),
    Case(file="mundofy-passwords.csv", form="mundofy", source=SOURCE, to=TO),
    Case(file="mundofy-emails.csv", form="mundofy", source=SOURCE, to=TO),
    Case(file="exchange.csv", form="exchange", source=SOURCE, to=TO),
    Case(file="transend.csv", form="transend", source=SOURCE, to=TO),
    Case(file="transend-passwords.csv", form="transend", source=SOURCE, to=TO),
    Case(file="cloudm.csv", form="cloudm", source=SOURCE, to=TO, left_out=1),
    Case(file="cloudm-short.csv", form="cloudm", source=SOURCE, to=TO),
    Case(file="yandex.csv", form="yandex", source=SOURCE, to=TO),
    Case(file="gamme.csv", form="gamme", source=SOURCE, to=TO),
    Case(file="apps-migrator.csv", form="apps-migrator", source=SOURCE, to=TO, named=True, parent="Old"),
    Case(file="mundofy-mailbox.csv", form="mundofy", source=SOURCE, to=TO, one_sided=True),
    Case(file="ispmanager.csv", form="ispmanager", source=SOURCE, to=TO, one_sided=True),
    Case(file="kerio.csv", form="kerio", source=SOURCE, to=TO, one_sided=True),
    Case(file="virtualmin.txt", form="virtualmin", source=SOURCE, to=TO, one_sided=True, named=True),
    Case(file="plain.txt", form="plain", source=SOURCE, to=TO, one_sided=True),
    Case(file="json-lines.json", form="json", source=SOURCE, to=TO, one_sided=True),
    Case(file="hestia.txt", form="hestia", to=TO, one_sided=True),
    Case(file="passwd.txt", form="passwd", to=TO, one_sided=True, local=True),
)
