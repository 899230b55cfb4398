"""What Maildir names mean: location options, folder directories, message files, small text files. Pure.

    .Arch.2023/cur/1500000000.M42R9fB7N0.host,S=812,W=840:2,FSa
    └─ mailbox     └─ order, identity (base name)          └─ flags, keywords a-z

The rules are those of Dovecot 2.3 (Maildir++ layout); Courier and plain readers agree on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aimport.errors import ConfigurationError, MailboxNameInvalid
from aimport.model import Endpoint, Mailbox, MessageKey
from aimport.names import INBOX, decode_utf7, encode_utf7, split

SEPARATOR: Final = "."
# Where Dovecot keeps indexes and its own locks changes nothing for us.
_IGNORED: Final = frozenset({"INDEX", "INDEXPVT", "INDEXCACHE", "LISTINDEX", "VOLATILEDIR", "NO-NOSELECT"})
_KNOWN: Final = frozenset(
    {"ALT", "ALTNOCHECK", "BROKENCHAR", "DIRNAME", "FULLDIRNAME", "ITERINDEX", "MAILBOXDIR", "NO-FS-VALIDATION"}
)
_ORDER = re.compile(r"(\d*)(?:\.M(\d+))?", re.ASCII)
_SIZE = re.compile(r",S=(\d+)(?=,|\Z)", re.ASCII)
_WIRE_SIZE = re.compile(r",W=(\d+)(?=,|\Z)", re.ASCII)
_UIDLIST_NEXT = re.compile(r"3(?: [A-Z]\S*)*? N(\d{1,10})(?: |\Z)", re.ASCII)
_UIDLIST_GUID = re.compile(r"3(?: [A-Z]\S*)*? G([0-9a-f]{32})(?: |\Z)", re.ASCII)
_GUID_LINE = re.compile(r"\d{1,10}(?: [A-Z][^ ]*)*? G([^ ]+)(?: [A-Z][^ ]*)* :(.+)", re.ASCII)
_STEM = re.compile(r"\d+\.M\d+R[^.]*B\d+N\d+(?=\.)", re.ASCII)
_KEYWORD_LINE = re.compile(r"(\d{1,2}) (.+)", re.ASCII)
_UIDLIST_V3 = re.compile(r"3( [A-Z]\S*)*")
_UIDLIST_V3_LINE = re.compile(r"(\d{1,10})(?: [A-Z][^ ]*)* :(.+)", re.ASCII)
_UIDLIST_V1 = re.compile(r"1 \d+ \d+", re.ASCII)
_UIDLIST_V1_LINE = re.compile(r"(\d{1,10}) (.+)", re.ASCII)
_SUBSCRIPTIONS_V2: Final = b"V\t2\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One `maildir:` location, understood. `inbox` and `control` are empty when not set."""

    root: str
    inbox: str = ""
    control: str = ""
    subscriptions: str = "subscriptions"
    utf8: bool = False

    @classmethod
    def of(cls, endpoint: Endpoint) -> Layout:
        """Read the location's options.

        Raises:
            ConfigurationError: an option would change where mail lies in a way we do not know.
        """
        if not endpoint.path:
            raise ConfigurationError("maildir location without a path")
        found: dict[str, str] = {}
        for key, value in endpoint.options:
            if key in _IGNORED or (key == "LAYOUT" and value.lower() == "maildir++"):
                continue
            if key in ("INBOX", "CONTROL", "SUBSCRIPTIONS") and value:
                found[key.lower()] = value
            elif key == "UTF-8":
                continue
            elif key in _KNOWN or key == "LAYOUT":
                raise ConfigurationError(f"maildir location: {key}={value} is not yet supported", hint="leave it out")
            else:
                raise ConfigurationError(f"maildir location: unknown setting {key}")
        if "/" in found.get("subscriptions", ""):
            raise ConfigurationError("maildir location: SUBSCRIPTIONS is a file name without /")
        return cls(root=endpoint.path, utf8=("UTF-8", "") in endpoint.options, **found)

    def mailbox(self, directory: str) -> Mailbox:
        """The mailbox whose messages lie in `directory`: "" is the root, otherwise `.a.b`."""
        if not directory:
            return Mailbox(path=(INBOX,), separator=SEPARATOR)
        shown = printable(directory)
        name = shown[1:] if self.utf8 else decode_utf7(shown[1:])
        mailbox = Mailbox(path=split(shown[1:] if name is None else name, SEPARATOR), separator=SEPARATOR)
        # `.INBOX` and `.inbox.x` are names of their own; so are those that are not valid modified UTF-7.
        same = shown == directory and name is not None and self._derived(mailbox) == directory
        return mailbox if same else Mailbox(path=mailbox.path, separator=SEPARATOR, native=shown)

    def directory(self, mailbox: Mailbox) -> str:
        """The directory of a source mailbox below the root, "" for the INBOX."""
        return mailbox.native or self._derived(mailbox)

    def new_directory(self, mailbox: Mailbox) -> str:
        """The directory of a destination mailbox below the root, as Dovecot would accept it.

        Raises:
            MailboxNameInvalid: Maildir++ cannot hold the name.
        """
        wrong = ""
        for level in mailbox.path:
            if not level:
                wrong = "has an empty level"
            elif "/" in level or SEPARATOR in level:
                wrong = "has / or . inside a level"
            elif any(char < " " for char in level):
                wrong = "has a control character"
        if mailbox.path[:1] == () or mailbox.path[0].startswith("~"):
            wrong = "is empty or starts with ~"
        try:
            directory = self._derived(mailbox)
            if len(directory.encode()) > 255:
                wrong = "is longer than 255 octets"
        except ValueError:
            wrong = "is not valid Unicode"
        if wrong:
            raise MailboxNameInvalid(f"mailbox {mailbox.name!r}: the name {wrong}", code="CANNOT")
        return directory

    def _derived(self, mailbox: Mailbox) -> str:
        return "" if mailbox.path == (INBOX,) else "." + SEPARATOR.join(map(self.level, mailbox.path))

    def level(self, level: str) -> str:
        """One level of a name as it stands on disk."""
        return level if self.utf8 else encode_utf7(level)


def printable(name: str) -> str:
    """A file name as text that can be stored and shown: octets that are not UTF-8 become `\\xNN`."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_name(name: str) -> tuple[str, str]:
    """Base name and flag letters. Only a last `:2,` starts flags and a second `,` ends them (as Dovecot)."""
    at = name.rfind(":")
    if at > 0 and name[at : at + 3] == ":2,":
        return name[:at], name[at + 3 :].partition(",")[0]
    return name, ""


def order(base: str) -> tuple[int, int, str]:
    """Sort key of messages without UID: leading digits, then `M<usec>`, then text (`maildir_filename_sort_cmp()`)."""
    found = _ORDER.match(base)
    assert found is not None  # it can match nothing at all, but it matches
    return int(found[1] or 0), int(found[2] or 0), base


def size_in(base: str) -> int | None:
    """The size that `,S=` promises; the octets decide."""
    found = _SIZE.search(base)
    return int(found[1]) if found else None


def wire_size_in(base: str) -> int | None:
    """The size with CRLF line ends that `,W=` promises."""
    found = _WIRE_SIZE.search(base)
    return int(found[1]) if found else None


def stem(run: str, number: int, created_us: int, index: int) -> str:
    """What a base name of ours starts with. Sorted as Dovecot sorts, stems come in the order of append."""
    seconds, micros = divmod(created_us + index, 1_000_000)
    return f"{seconds}.M{micros}R{re.sub(r'[^0-9A-Za-z-]', '_', run)}B{number}N{index}"


def stem_in(base: str) -> str | None:
    """The stem of a base name, None when it is not one of ours."""
    found = _STEM.match(base)
    return found[0] if found else None


def escape_host(host: str) -> str:
    """A host name that can stand in a file name (Maildir: `/` and `:` as octal)."""
    return host.replace("/", "\\057").replace(":", "\\072")


def parse_keywords(data: bytes) -> dict[str, str]:
    """Letter → name of a `dovecot-keywords` file; lines that say nothing are passed over."""
    found = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        match = _KEYWORD_LINE.fullmatch(line)
        if match and int(match[1]) < 26:
            found[chr(ord("a") + int(match[1]))] = match[2]
    return found


def format_keywords(letters: Mapping[str, str]) -> bytes:
    """A `dovecot-keywords` file; `letters` maps letters to names."""
    return "".join(f"{ord(letter) - ord('a')} {letters[letter]}\n" for letter in sorted(letters)).encode()


def parse_uidlist(data: bytes) -> dict[str, int]:
    """Base name (printable) → UID of a `dovecot-uidlist` of version 3 or 1. A torn last line is not there.

    Raises:
        ValueError: it is not one, or UIDs do not ascend.
    """
    header, *lines = data.decode("utf-8", "backslashreplace").split("\n")[:-1] or [""]
    if _UIDLIST_V3.fullmatch(header):
        pattern = _UIDLIST_V3_LINE
    elif _UIDLIST_V1.fullmatch(header):
        pattern = _UIDLIST_V1_LINE
    else:
        raise ValueError("the first line is not that of a uidlist")
    uids: dict[str, int] = {}
    last = 0
    for number, line in enumerate(lines, 2):
        match = pattern.fullmatch(line)
        if match is None or int(match[1]) <= last:
            raise ValueError(f"line {number} is damaged or out of order")
        last = int(match[1])
        uids[split_name(match[2])[0]] = last
    return uids


def next_uid(data: bytes) -> int:
    """The UID that the first message without one will get; 0: the uidlist does not say."""
    found = _UIDLIST_NEXT.match(data.partition(b"\n")[0].decode("utf-8", "replace"))
    return int(found[1]) if found else 0


def mailbox_guid(data: bytes) -> str:
    """The GUID of the mailbox in a `dovecot-uidlist`, else ""."""
    found = _UIDLIST_GUID.match(data.partition(b"\n")[0].decode("utf-8", "replace"))
    return found[1] if found else ""


def message_guids(data: bytes) -> dict[str, str]:
    """Base name (printable) → GUID where a `dovecot-uidlist` says one; of the others it is the base name."""
    found = {}
    for line in data.decode("utf-8", "backslashreplace").split("\n")[1:-1]:
        match = _GUID_LINE.fullmatch(line)
        if match:
            found[split_name(match[2])[0]] = match[1]
    return found


def with_subscription(data: bytes | None, levels: tuple[str, ...]) -> bytes | None:
    """The `subscriptions` file with one more mailbox, None when it is there already.

    A new file is written as Dovecot writes it today (version 2: levels separated by TAB); an
    old one keeps version 1 (levels separated by `.`).

    Raises:
        ValueError: a version that we do not know.
    """
    if not data:
        data = _SUBSCRIPTIONS_V2
    if data.startswith(b"V\t") and not data.startswith(b"V\t2\n"):
        raise ValueError("unknown version of the subscriptions file")
    line = ("\t" if data.startswith(b"V\t2\n") else SEPARATOR).join(levels).encode()
    if line in data.split(b"\n"):
        return None
    return data + (b"" if data.endswith(b"\n") else b"\n") + line + b"\n"


def key_of(base: str) -> MessageKey:
    """Identity of the message with that base name."""
    return MessageKey(printable(base))
