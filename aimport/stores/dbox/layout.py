"""What an `sdbox:` or `mdbox:` location means: where mail, indexes and attachments lie, what folders are called. Pure.

    ROOT/mailboxes/<a>/<b>/dbox-Mails/    messages (sdbox), and the index of the folder
    INDEX/mailboxes/<a>/<b>/              the index, when it lies apart
    ALT/mailboxes/<a>/<b>/dbox-Mails/     messages that were moved to cheaper storage
    ROOT/storage/, ALT/storage/           messages (mdbox), INDEX/storage/ their map

With LAYOUT=index a folder is `mailboxes/<GUID>/`, and names are in `dovecot.list.index` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from aimport.errors import ConfigurationError
from aimport.model import Endpoint, Mailbox
from aimport.names import decode_utf7, encode_utf7, printable, split

SEPARATOR: Final = "/"
Kind = Literal["sdbox", "mdbox"]
ATTACHMENTS: Final = "mail_attachment_dir"
"""The option by which the setting of that name comes; no key of a location."""
LIST_INDEX: Final = "dovecot.list.index"
# Subscriptions, locks and private or cached indexes change nothing of what messages there are.
_IGNORED: Final = frozenset(
    {"CONTROL", "INDEXPVT", "INDEXCACHE", "VOLATILEDIR", "SUBSCRIPTIONS"}
    | {"NO-NOSELECT", "NO-FS-VALIDATION", "ALTNOCHECK"}
)
_PATHS: Final = frozenset({"INDEX", "ALT", ATTACHMENTS})
_LEVELS: Final = frozenset({"DIRNAME", "FULLDIRNAME", "MAILBOXDIR"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One location, understood. Paths that are not set are empty."""

    kind: Kind
    root: str
    index: str
    """Root of the indexes; `root` when they lie with the mail, "" when there are none (INDEX=MEMORY)."""
    alt: str = ""
    attachments: str = ""
    dirname: str = "dbox-Mails"
    index_dirname: str = ""
    """The last level of a folder's index when it lies apart."""
    mailboxes: str = "mailboxes"
    by_guid: bool = False
    """LAYOUT=index."""
    utf8: bool = False
    list_root: str = ""
    list_index: str = LIST_INDEX

    @classmethod
    def of(cls, endpoint: Endpoint) -> Layout:
        """Read the location's options.

        Raises:
            ConfigurationError: an option would change where mail lies in a way we do not know.
        """
        kind: Kind = "mdbox" if endpoint.scheme == "mdbox" else "sdbox"
        if not endpoint.path:
            raise ConfigurationError(f"{kind} location without a path")
        found: dict[str, str] = {}
        for key, value in endpoint.options:
            if key in _IGNORED:
                continue
            if key in _LEVELS and ("/" in value or value in ("", ".", "..")):
                raise ConfigurationError(f"{kind} location: {key}={value} is not the name of a directory")
            if key in _LEVELS or (key in _PATHS and value) or key in ("LISTINDEX", "ITERINDEX", "UTF-8"):
                found[key] = value
            elif key == "LAYOUT" and value.lower() in ("fs", "index"):
                found[key] = value.lower()
            else:
                shown = f"{key}={value}" if value else key
                raise ConfigurationError(f"{kind} location: {shown} is not supported", hint="leave it out")
        if "ITERINDEX" in found and found.get("INDEX", "MEMORY") == "MEMORY":
            raise ConfigurationError(f"{kind} location: ITERINDEX needs INDEX", hint="say where the indexes lie")
        by_guid = found.get("LAYOUT") == "index"
        dirname = found.get("FULLDIRNAME") or found.get("DIRNAME") or ("" if by_guid else "dbox-Mails")
        index = found.get("INDEX", endpoint.path)
        index = "" if index == "MEMORY" else index
        list_root, slash, list_index = found.get("LISTINDEX", LIST_INDEX).rpartition("/")
        return cls(
            kind=kind,
            root=endpoint.path,
            index=index,
            alt=found.get("ALT", ""),
            attachments=found.get(ATTACHMENTS, ""),
            dirname=dirname,
            index_dirname=found.get("FULLDIRNAME", ""),
            mailboxes=found.get("MAILBOXDIR", "mailboxes"),
            by_guid=by_guid,
            utf8="UTF-8" in found,
            list_root=(list_root or "/") if slash else index or endpoint.path,
            list_index=list_index,
        )

    @property
    def index_apart(self) -> bool:
        """The indexes lie elsewhere than the mail."""
        return self.index != self.root

    def levels(self, directory: str) -> tuple[str, ...]:
        """Directories from a mail root down to the messages of a folder; `directory` is that of the folder."""
        below = (self.mailboxes, *directory.split("/"))
        return (*below, self.dirname) if self.dirname else below

    def index_levels(self, directory: str) -> tuple[str, ...]:
        """Directories from the index root down to the index of a folder."""
        if not self.index_apart:
            return self.levels(directory)
        below = (self.mailboxes, *directory.split("/"))
        return (*below, self.index_dirname) if self.index_dirname else below

    def mailbox(self, name: str, *, directory: str) -> Mailbox:
        """The mailbox whose name stands on disk as `name` and whose directory is `directory`."""
        levels = [self._decoded(level) for level in name.split(SEPARATOR)]
        path = split(SEPARATOR.join(levels), SEPARATOR)
        return Mailbox(path=path, separator=SEPARATOR, native=directory)

    def directory(self, mailbox: Mailbox) -> str:
        """The directory of a mailbox below `mailboxes`; for LAYOUT=index the list of folders must be asked.

        Raises:
            ValueError: the name cannot be one of a directory.
        """
        if mailbox.native:
            return mailbox.native
        levels = [level if self.utf8 else encode_utf7(level) for level in mailbox.path]
        if any(level in ("", ".", "..", self.dirname) or "/" in level or "\0" in level for level in levels):
            raise ValueError(f"{mailbox.name!r} is no name of a folder")
        return SEPARATOR.join(levels)

    def _decoded(self, level: str) -> str:
        if self.utf8:
            return printable(level)
        name = decode_utf7(level) if level.isascii() else None
        # A `/` inside a level is no separator, and not valid in a name: such a level is shown as it stands.
        return printable(level) if name is None or SEPARATOR in name else name
