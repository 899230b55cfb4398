"""Which file is which mailbox: Dovecot's trees of mbox files, Thunderbird's, and a single file. Pure.

P/inbox            INBOX                     P/Inbox            INBOX
P/Archive/2023     Archive/2023              P/Archive.sbd/2023 Archive/2023
P/Sent             Sent                      P/Sent.msf         (an index, no mailbox)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from aimport.errors import ConfigurationError, MailboxNameInvalid
from aimport.model import Endpoint, Mailbox
from aimport.names import INBOX, decode_utf7, encode_utf7, printable
from aimport.stores.mbox.headers import DIALECTS, Dialect

SBD: Final = ".sbd"
_IGNORED: Final = frozenset(
    {"ALT", "ALTNOCHECK", "CONTROL", "INDEX", "INDEXCACHE", "INDEXPVT", "ITERINDEX", "LISTINDEX", "NO-FS-VALIDATION"}
    | {"NO-NOSELECT", "VOLATILEDIR", "BROKENCHAR"}
)
_COMPRESSED: Final = frozenset({"gz", "bz2", "xz", "zst"})
_PASSED_OVER = re.compile(r"(?is)\..*|.*\.(?:lock|msf|dat|html?)|dovecot[.-].*")
"""Files that are no mailboxes: hidden ones (`.imap`, `.subscriptions`), locks, Thunderbird's indexes and rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One `mbox:` location, understood. What is not set is empty."""

    root: str
    inbox: str = ""
    subscriptions: str = ".subscriptions"
    dirname: str = ""
    """The file of folder F is F/dirname."""
    mailboxdir: str = ""
    suffix: str = ""
    """What the name of each file ends in and its mailbox's does not (`.mbox`)."""
    utf8: bool = False
    dialect: Dialect | None = None
    """Undo the quoting of this dialect; None: take bodies as they are."""

    @classmethod
    def of(cls, endpoint: Endpoint) -> Layout:
        """Read the location's options.

        Raises:
            ConfigurationError: an option would change where mail lies in a way we do not know.
        """
        found: dict[str, str] = {}
        dialect: Dialect | None = None
        for key, value in endpoint.options:
            if key == "LAYOUT":
                if value.lower() != "fs":
                    raise ConfigurationError(f"mbox location: LAYOUT={value} is not yet supported", hint="fs is")
            elif key == "DIALECT":
                if value not in DIALECTS:
                    raise ConfigurationError(f"mbox location: DIALECT={value} is none of {', '.join(DIALECTS)}")
                dialect = value
            elif key in ("INBOX", "SUBSCRIPTIONS", "SUFFIX", "DIRNAME", "FULLDIRNAME", "MAILBOXDIR"):
                if key != "INBOX" and not all(map(is_step, value.split("/"))):
                    raise ConfigurationError(f"mbox location: {key}={value} leads out of the location")
                found[key.lower().removeprefix("full")] = value
            elif key not in _IGNORED and key != "UTF-8":
                raise ConfigurationError(f"mbox location: unknown setting {key}")
        return cls(root=endpoint.path, utf8=("UTF-8", "") in endpoint.options, dialect=dialect, **found)

    def mailbox(self, steps: tuple[str, ...]) -> Mailbox:
        """The mailbox of a file that was seen on disk, by its steps below the root (and below MAILBOXDIR)."""
        above = (step.removesuffix(SBD) for step in steps[:-1])
        last = without_suffix(steps[-1])
        last = last.removesuffix(self.suffix) or last
        path = tuple(self._decoded(printable(step)) for step in (*above, last))
        if path[0].isascii() and path[0].upper() == INBOX:
            path = (INBOX, *path[1:])
        mailbox = Mailbox(path=path, separator="/")
        try:
            same = path != (INBOX,) and self._derived(mailbox) == steps
        except ValueError:
            same = False
        return mailbox if same else Mailbox(path=path, separator="/", native="/".join(map(printable, steps)))

    def steps(self, mailbox: Mailbox) -> tuple[str, ...]:
        """The file of a source mailbox, by its steps below the root; none: it is that of `inbox`, or the root."""
        if mailbox.native:
            return tuple(mailbox.native.split("/"))
        return self._derived(mailbox)

    def new_steps(self, mailbox: Mailbox) -> tuple[str, ...]:
        """The file of a destination mailbox, as Dovecot would accept it.

        Raises:
            MailboxNameInvalid
        """
        wrong = ""
        for level in mailbox.path:
            if not level:
                wrong = "has an empty level"
            elif "/" in level or level in (".", ".."):
                wrong = "has / inside a level" if "/" in level else f"has a level {level}"
            elif any(char < " " for char in level):
                wrong = "has a control character"
            elif level == self.dirname:
                wrong = f"has a level {level}, which is a file of the store"
            elif _PASSED_OVER.fullmatch(level) or level == self.subscriptions:
                wrong = f"has a level {level}, which no reader takes for a mailbox"
        if not mailbox.path or mailbox.path[0].startswith("~"):
            wrong = "is empty or starts with ~"
        try:
            steps = self._derived(mailbox)
            if max((len(step.encode()) for step in steps), default=0) > 250:  # .lock is added
                wrong = "is longer than 250 octets"
        except ValueError:
            wrong = "is not valid Unicode"
        if wrong:
            raise MailboxNameInvalid(f"mailbox {mailbox.name!r}: the name {wrong}", code="CANNOT")
        return steps

    def passes_over(self, name: str) -> bool:
        """Whether a name in a directory is no mailbox and no level."""
        return name == self.subscriptions or _PASSED_OVER.fullmatch(name) is not None

    def _derived(self, mailbox: Mailbox) -> tuple[str, ...]:
        if mailbox.path == (INBOX,):
            return () if self.inbox else (f"inbox{self.suffix}",)
        *above, last = (level if self.utf8 else encode_utf7(level) for level in mailbox.path)
        return (*above, last + self.suffix)

    def _decoded(self, step: str) -> str:
        decoded = None if self.utf8 else decode_utf7(step)
        return step if decoded is None else decoded


def without_suffix(name: str) -> str:
    """The name of a file without what says how it is compressed."""
    base, dot, suffix = name.rpartition(".")
    return base if dot and base and suffix.lower() in _COMPRESSED else name


def is_step(name: str) -> bool:
    """One step of a path, and no way up."""
    return bool(name) and "/" not in name and name not in (".", "..") and "\0" not in name
