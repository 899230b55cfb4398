"""What Maildir names mean: location options, folder directories, message files, small text files. Pure.

    .Arch.2023/cur/1500000000.M42R9fB7N0.host,S=812,W=840:2,FSa
    └─ mailbox     └─ order, identity (base name)          └─ flags, keywords a-z

The rules are those of Dovecot 2.3; Courier and plain readers agree on those of Maildir++.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from aimport.errors import ConfigurationError, MailboxNameInvalid
from aimport.model import Endpoint, Mailbox, MessageKey
from aimport.names import INBOX, decode_utf7, encode_utf7, printable, split

Kind = Literal["maildir++", "fs", "imapdir", "index"]
"""Layout of folders: `P/.a.b`, `P/a/b`, `P/a.b`, `P/GUID` with the names in an index. The INBOX of the last two is a
folder as any other, `P/INBOX` in the third (Dovecot, seen)."""

CONTENTS: Final = frozenset({"cur", "new", "tmp"})
# Where Dovecot keeps indexes and its own locks, and what it checks, changes nothing for us.
_IGNORED: Final = frozenset(
    {"ALT", "ALTNOCHECK", "INDEX", "INDEXCACHE", "INDEXPVT", "ITERINDEX", "LISTINDEX", "NO-FS-VALIDATION"}
    | {"NO-NOSELECT", "VOLATILEDIR"}
)
_VALUES: Final = {
    "INBOX": "inbox",
    "CONTROL": "control",
    "SUBSCRIPTIONS": "subscriptions",
    "MAILBOXDIR": "mailboxdir",
    "DIRNAME": "dirname",
    "FULLDIRNAME": "dirname",
    "BROKENCHAR": "brokenchar",
    "ESCAPECHAR": "escapechar",
}
_NAMES: Final = ("SUBSCRIPTIONS", "DIRNAME", "FULLDIRNAME")
_STORE_FILES = re.compile(
    r"dovecot[.-].*|maildirfolder|maildirsize|courierimap.*|\.\.DOVECOT-.*", re.IGNORECASE | re.DOTALL
)
_GUID = re.compile(r"[0-9a-f]{32}")
_SHIFTED = re.compile(r"&[A-Za-z0-9+,]*-")
_ORDER = re.compile(r"(\d*)(?:\.M(\d+))?", re.ASCII)
_SIZE = re.compile(r",S=(\d+)(?=,|\Z)", re.ASCII)
_WIRE_SIZE = re.compile(r",W=(\d+)(?=,|\Z)", re.ASCII)
UIDLIST_HEADER: Final = re.compile(r"3(?: [A-Z]\S*)*? N(\d{1,10})(?: |\Z)", re.ASCII)
_UIDLIST_GUID = re.compile(r"3(?: [A-Z]\S*)*? G([0-9a-f]{32})(?: |\Z)", re.ASCII)
_GUID_LINE = re.compile(r"\d{1,10}(?: [A-Z][^ ]*)*? G([^ ]+)(?: [A-Z][^ ]*)* :(.+)", re.ASCII)
_STEM = re.compile(r"\d+\.M\d+R[^.]*B\d+N\d+(?=\.)", re.ASCII)
_KEYWORD_LINE = re.compile(r"(\d{1,2}) (.+)", re.ASCII)
_UIDLIST_V3 = re.compile(r"3( [A-Z]\S*)*")
UIDLIST_LINE: Final = re.compile(r"(\d{1,10})(?: [A-Z][^ ]*)* :(.+)", re.ASCII)
_UIDLIST_V1 = re.compile(r"1 \d+ \d+", re.ASCII)
_UIDLIST_V1_LINE = re.compile(r"(\d{1,10}) (.+)", re.ASCII)
_SUBSCRIPTIONS_V2: Final = b"V\t2\n\n"


def is_store_file(name: str) -> bool:
    """Dovecot, Courier or the layout itself keeps it beside the messages of a folder."""
    return _STORE_FILES.fullmatch(name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One `maildir:` location, understood. What is not set is empty.

    A *directory* here is a mailbox as its folder is named below the root: `.a.b`, `a/b`, `a.b`, or "" for the INBOX
    where its messages lie in the root itself or in `inbox`. `steps` leads from there to the messages.
    """

    root: str
    kind: Kind = "maildir++"
    inbox: str = ""
    control: str = ""
    subscriptions: str = "subscriptions"
    dirname: str = ""
    """Messages of folder F lie in F/dirname; `full`: control files too."""
    full: bool = False
    mailboxdir: str = ""
    """All folders lie below it, those of `control` too."""
    list_root: str = ""
    list_index: str = "dovecot.list.index"
    """Where LAYOUT=index has the names of folders."""
    brokenchar: str = ""
    escapechar: str = ""
    """What a level cannot hold stands in it as this and two hex digits (Dovecot's plug-in listescape)."""
    utf8: bool = False

    @classmethod
    def of(cls, endpoint: Endpoint) -> Layout:
        """Read the location's options.

        Raises:
            ConfigurationError: an option would change where mail lies in a way we do not know, or Dovecot does not.
        """
        if not endpoint.path:
            raise ConfigurationError("maildir location without a path")
        kind: Kind = "maildir++"
        found: dict[str, str] = {}
        full = utf8 = False
        for key, value in endpoint.options:
            if key == "LAYOUT":
                kind = _kind(value)
            elif key in _VALUES:
                if key in _NAMES and value and not _is_name(value):
                    raise ConfigurationError(f"maildir location: {key}={value} is not a name of one file")
                full = full or (key == "FULLDIRNAME" and value != "")
                if value:
                    found[_VALUES[key]] = value
            elif key == "UTF-8":
                utf8 = True
            elif key not in _IGNORED:
                raise ConfigurationError(f"maildir location: unknown setting {key}")
        if kind not in ("fs", "index"):
            if "dirname" in found:
                raise ConfigurationError(
                    "maildir location: DIRNAME and FULLDIRNAME are for LAYOUT=fs", hint="add LAYOUT=fs"
                )
            found.pop("mailboxdir", "")  # Dovecot makes the directory and does not use it (seen)
        mailboxdir = found.get("mailboxdir", "").strip("/")
        if mailboxdir and not all(map(_is_name, mailboxdir.split("/"))):
            raise ConfigurationError(f"maildir location: MAILBOXDIR={mailboxdir} leads out of the location")
        if mailboxdir and kind == "fs" and "dirname" not in found and "inbox" not in found:
            hint = "add DIRNAME= or INBOX="  # "Mailbox doesn't exist: INBOX" (Dovecot 2.3.19, seen)
            raise ConfigurationError("maildir location: MAILBOXDIR alone leaves no place for the INBOX", hint=hint)
        found.update({"mailboxdir": mailboxdir} if mailboxdir else {})
        if kind == "index":
            found.pop("dirname", "")  # of no use here (Dovecot, seen)
            options = dict(endpoint.options)
            index = options.get("INDEX", "")
            list_root, slash, name = options.get("LISTINDEX", "").rpartition("/")
            found["list_root"] = (list_root or "/") if slash else endpoint.path if index in ("", "MEMORY") else index
            found.update({"list_index": name} if name else {})
        return cls(root=endpoint.path, kind=kind, full=full, utf8=utf8, **found)

    @property
    def separator(self) -> str:
        return "/" if self.kind in ("fs", "index") else "."

    def mailbox(self, directory: str) -> Mailbox:
        """The mailbox of a directory that was seen on disk."""
        if directory == self._inbox():
            return Mailbox(path=(INBOX,), separator=self.separator)
        shown = printable(directory)
        name = shown[1:] if self.kind == "maildir++" else shown
        levels = split(name, self.separator)
        decoded = tuple(level if self.utf8 else decode_utf7(level) for level in levels)
        path = tuple(
            self._unescaped(self._unbroken(level) if unicode is None else unicode)
            for level, unicode in zip(levels, decoded, strict=True)
        )
        mailbox = Mailbox(path=path, separator=self.separator)
        # `.INBOX` and `.inbox.x` are names of their own; so are those that are not valid modified UTF-7.
        same = shown == directory and None not in decoded and self._derived(mailbox) == directory
        return mailbox if same else Mailbox(path=path, separator=self.separator, native=shown)

    def named(self, levels: tuple[bytes, ...], guid: str) -> Mailbox:
        """The mailbox of a directory that is named by its GUID; `levels` as the index has them."""
        texts = tuple(printable(level.decode("utf-8", "surrogateescape")) for level in levels)
        path = tuple(text if self.utf8 or (name := decode_utf7(text)) is None else name for text in texts)
        path = (INBOX, *path[1:]) if path[0].isascii() and path[0].upper() == INBOX else path
        return Mailbox(path=path, separator=self.separator, native=guid)

    def directory(self, mailbox: Mailbox) -> str:
        """The directory of a source mailbox."""
        return mailbox.native or self._derived(mailbox)

    def leads_out(self, directory: str) -> bool:
        """True for what is no folder below the root; a name that was given by a query or a journal may be anything."""
        if not directory:
            return False
        if self.kind == "fs":
            return not all(map(_is_name, directory.split("/")))
        if self.kind == "index":
            return not is_guid(directory)
        return not _is_name(directory) or (self.kind == "maildir++" and directory[0] != ".")

    def new_directory(self, mailbox: Mailbox) -> str:
        """The directory of a destination mailbox, as Dovecot would accept it.

        Raises:
            MailboxNameInvalid: this layout cannot hold the name.
        """
        wrong = ""
        for level in mailbox.path:
            if not level:
                wrong = "has an empty level"
            elif not self.escapechar and ("/" in level or self.separator in level):
                wrong = "has / inside a level" if self.separator == "/" else "has / or . inside a level"
            elif any(char < " " for char in level):
                wrong = "has a control character"
            elif self.kind == "fs" and (level in CONTENTS or level in (".", "..", self.dirname)):
                wrong = f"has a level {level}, which is a directory of the store"
        if mailbox.path[:1] == () or (mailbox.path[0].startswith("~") and not self.escapechar):
            wrong = "is empty or starts with ~"
        elif self.kind != "maildir++" and (
            _STORE_FILES.fullmatch(mailbox.path[0])
            or mailbox.path[0] in (self.subscriptions, f"{self.subscriptions}.lock")
            or (self.kind == "imapdir" and mailbox.path[0] in CONTENTS)
        ):
            wrong = f"begins with {mailbox.path[0]}, which is a file of the store"
        try:
            directory = self._derived(mailbox)
            longest = directory.split("/") if self.kind == "fs" else (directory,)
            if max(len(name.encode()) for name in longest) > 255:
                wrong = "is longer than 255 octets"
        except ValueError:
            wrong = "is not valid Unicode"
        if wrong:
            raise MailboxNameInvalid(f"mailbox {mailbox.name!r}: the name {wrong}", code="CANNOT")
        return directory

    def steps(self, directory: str) -> tuple[str, ...]:
        """The directories to go through from the root to the messages; none: they lie in the root, or in `inbox`."""
        if not directory:
            return ()
        if self.kind not in ("fs", "index"):
            return (directory,)
        above = tuple(self.mailboxdir.split("/")) if self.mailboxdir else ()
        return (*above, *directory.split("/"), *((self.dirname,) if self.dirname else ()))

    def place(self, directory: str) -> str:
        """The path of a mailbox's messages, for people."""
        if not directory:
            return self.inbox or self.root
        return "/".join((self.root, *self.steps(directory)))

    def control_place(self, directory: str) -> str:
        """Where the control files of a mailbox lie when `control` is set."""
        name = directory or (".INBOX" if self.kind == "maildir++" else INBOX)
        parts = (self.control, self.mailboxdir, name, self.dirname if self.full else "")
        return "/".join(filter(None, parts))

    def _inbox(self) -> str:
        """The directory of the INBOX."""
        in_root = self.kind == "maildir++" or (self.kind == "fs" and not self.dirname and not self.mailboxdir)
        return "" if self.inbox or in_root else INBOX

    def _derived(self, mailbox: Mailbox) -> str:
        if mailbox.path == (INBOX,):
            return self._inbox()
        name = self.separator.join(map(self.level, mailbox.path))
        if self.escapechar and name.startswith("~"):
            name = f"{self._escape(name[0])}{name[1:]}"
        return f".{name}" if self.kind == "maildir++" else name

    def level(self, level: str) -> str:
        """One level of a name as it stands on disk."""
        if self.escapechar:
            odd = {"/", self.separator, self.escapechar}
            level = "".join(self._escape(char) if char in odd else char for char in level)
        return level if self.utf8 else encode_utf7(level)

    def _escape(self, char: str) -> str:
        return f"{self.escapechar}{ord(char):02x}"

    def _unescaped(self, level: str) -> str:
        if not self.escapechar:
            return level
        return re.sub(rf"{re.escape(self.escapechar)}([2-7][0-9a-f])", lambda match: chr(int(match[1], 16)), level)

    def _unbroken(self, level: str) -> str:
        """A level that is no modified UTF-7: as it is, or with what does not decode as BROKENCHAR and hex digits."""
        if not self.brokenchar:
            return level
        parts = []
        at = 0
        while at < len(level):
            shifted = _SHIFTED.match(level, at)
            decoded = decode_utf7(shifted[0]) if shifted else None
            if shifted and decoded is not None:
                parts.append(decoded)
                at = shifted.end()
                continue
            octet = re.match(r"\\x([0-9a-f]{2})", level[at:])
            if octet:
                parts.append(f"{self.brokenchar}{octet[1]}")
                at += 4
                continue
            broken = level[at] in ("&", self.brokenchar)
            parts.append(f"{self.brokenchar}{ord(level[at]):02x}" if broken else level[at])
            at += 1
        return "".join(parts)


def _kind(layout: str) -> Kind:
    match layout.lower():
        case "maildir++":
            return "maildir++"
        case "fs":
            return "fs"
        case "imapdir":
            return "imapdir"
        case "index":
            return "index"
    hint = "there are Maildir++, fs, imapdir and index"
    raise ConfigurationError(f"maildir location: LAYOUT={layout} is not supported", hint=hint)


def is_guid(name: str) -> bool:
    """Whether a directory may be that of a folder of LAYOUT=index."""
    return _GUID.fullmatch(name) is not None


def _is_name(name: str) -> bool:
    """One step of a path, and no way up."""
    return bool(name) and "/" not in name and name not in (".", "..") and "\0" not in name


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


def parse_courier_list(data: bytes) -> dict[str, frozenset[str]]:
    """Base name (printable) → keywords of a `courierimapkeywords/:list`: names, an empty line, `BASE:INDEX INDEX`."""
    names, _, lines = data.decode("utf-8", "backslashreplace").partition("\n\n")
    words = names.split("\n")
    found = {}
    for line in lines.split("\n"):
        base, colon, indexes = line.rpartition(":")
        if colon:
            numbers = (int(index) for index in indexes.split() if index.isascii() and index.isdecimal())
            found[base] = frozenset(words[number] for number in numbers if number < len(words) and words[number])
    return found


def courier_words(data: bytes) -> frozenset[str]:
    """Keywords of one message, a line each."""
    return frozenset(filter(None, data.decode("utf-8", "backslashreplace").split("\n")))


def parse_uidlist(data: bytes) -> dict[str, int]:
    """Base name (printable) → UID of a `dovecot-uidlist` of version 3 or 1. A torn last line is not there.

    Raises:
        ValueError: it is not one, or UIDs do not ascend.
    """
    header, *lines = data.decode("utf-8", "backslashreplace").split("\n")[:-1] or [""]
    if _UIDLIST_V3.fullmatch(header):
        pattern = UIDLIST_LINE
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
    found = UIDLIST_HEADER.match(data.partition(b"\n")[0].decode("utf-8", "replace"))
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


def with_subscription(data: bytes | None, levels: tuple[str, ...], separator: str) -> bytes | None:
    """The `subscriptions` file with one more mailbox, None when it is there already.

    A new file is written as Dovecot writes it today (version 2: levels separated by TAB); an
    old one keeps version 1 (levels separated by `separator`, the layout's own).

    Raises:
        ValueError: a version that we do not know.
    """
    if not data:
        data = _SUBSCRIPTIONS_V2
    if data.startswith(b"V\t") and not data.startswith(b"V\t2\n"):
        raise ValueError("unknown version of the subscriptions file")
    line = ("\t" if data.startswith(b"V\t2\n") else separator).join(levels).encode()
    if line in data.split(b"\n"):
        return None
    return data + (b"" if data.endswith(b"\n") else b"\n") + line + b"\n"


def key_of(base: str) -> MessageKey:
    """Identity of the message with that base name."""
    return MessageKey(printable(base))
