"""What is known of each kind of server, as data: `aimport/profiles/*.toml`, or a file of the user's own.

    ID, greeting, CAPABILITY, host ──▶ choose() ──▶ Profile ◀── named() ◀── -o profile=NAME

Server limits change, so they stand in files, each value with its source beside it. A profile knows
what a server does not say by itself; what it does say (CAPABILITY, APPENDLIMIT, NAMESPACE) is
believed first. Nothing here acts: the stores and the scheduler read these values.

Short forms of sources in the files: `FAQ.X` is imapsync's FAQ file of that name, `name#N` a GitHub
thread, "seen" was tried on the version that the file names at its top.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime
from functools import lru_cache
from importlib import resources
from typing import Annotated, Final, Literal

import msgspec

from aimport.errors import ConfigurationError
from aimport.imap.answers import Sentence
from aimport.imap.commands import SET_OCTETS, LiteralPolicy

GENERIC: Final = "generic"

Count = Annotated[int, msgspec.Meta(ge=0)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """How a server of this kind is recognised. What is not given recognises nothing."""

    id: dict[str, re.Pattern[str]] = msgspec.field(default_factory=dict)
    """Fields of its ID response (RFC 2971) and what is found in each; all of them."""
    greeting: re.Pattern[str] | None = None
    """Found in the greeting's text."""
    capability: tuple[str, ...] = ()
    """Offered, all of them."""
    host: tuple[str, ...] = ()
    """The host's name or the last labels of it."""


class Keywords(msgspec.Struct, frozen=True, kw_only=True):
    """Flags without a backslash (RFC 9051 §2.3.2)."""

    allowed: bool = True
    """False: none is kept, so none is sent."""
    octets: Count = 0
    """Longest one that is taken; 0: not known."""
    count: Count = 0
    """How many different ones a mailbox holds; 0: not known."""


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """Names of mailboxes. Applied by `tamed` to a level whose CREATE was refused, never before."""

    forbidden: str = ""
    """Characters that no level may hold."""
    blanks: Literal["kept", "squeezed"] = "kept"
    """`squeezed`: none at either end, never two in a row."""
    case_sensitive: bool = True
    """False: names that differ in case only are one mailbox, so they clash."""
    octets: Count = 0
    """Longest name on the wire without the namespace's prefix; 0: not known."""
    reserved: tuple[str, ...] = ()
    """Top-level names, in any case, that the server makes into something else."""
    prefix: str = ""
    separator: Annotated[str, msgspec.Meta(max_length=1)] = ""
    """Of the personal namespace, where the server has no NAMESPACE; no separator: ask with LIST."""

    def tamed(self, level: str) -> str:
        """A form of `level` that the server takes: `_` for forbidden characters, blanks as it wants them.

        The caller looks for clashes: two levels may get one form.
        """
        if self.blanks == "squeezed":
            level = " ".join(part for part in level.split(" ") if part)
        return "".join("_" if char in self.forbidden else char for char in level) or "_"


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of server. The defaults are those of `generic`: nothing is known."""

    name: str = GENERIC
    match: Match = Match()
    refusals: tuple[Sentence, ...] = ()
    """What only this server says, for `answers.error_for`."""
    notes: tuple[str, ...] = ()
    """What a person should know before importing into or from it."""

    literals: Literal["", "LITERAL+", "LITERAL-", "SYNC"] = ""
    """How literals are sent, whatever is offered; empty: as offered (RFC 7888)."""
    multiappend: bool = True
    """False: MULTIAPPEND is not used, though offered."""
    compress: bool = True
    """False: COMPRESS is not used, though offered."""
    batch_messages: Count = 0
    batch_octets: Count = 0
    """Largest batch of one APPEND; 0: ours."""
    append_limit: Count = 0
    """Octets of a message that is never taken, where no APPENDLIMIT is offered (RFC 7889); 0: not known.

    Larger ones are rejected unsent, so only what no administrator can raise stands here.
    """
    line_octets: Annotated[int, msgspec.Meta(ge=200)] = SET_OCTETS
    """Longest command line, literals aside: it bounds sets of UIDs."""

    connections_per_user: Count = 0
    connections_per_address: Count = 0
    """Most connections at a time for one account, and for all accounts from one address; 0: not known."""
    logins_per_second: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Most new connections from us; 0: no limit known."""
    messages_per_second: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Most appends into one account; 0: no limit known."""
    append_octets_per_day: Count = 0
    fetch_octets_per_day: Count = 0
    """What one account may take and give; 0: no limit known."""
    bad_ends_after: Count = 0
    """Refused commands after which the server closes the connection; 0: not known."""
    login_failures: Count = 0
    """Refused logins after which the server bans our address; 0: not known."""

    search_sizes: bool = True
    """False: its SEARCH counts sizes with the line ends of its storage, not as RFC822.SIZE."""
    final_crlf: bool = False
    """A message must end with CRLF."""
    stores_final_crlf: bool = False
    """A message without a final CRLF is stored with one."""
    merges_identical: bool = False
    """Copies of one message become one message, also across mailboxes: the other UIDs vanish."""
    flagged_by_store: bool = False
    """\\Flagged given with an APPEND is half forgotten: STORE it again afterwards."""
    earliest_date: Moment | None = None
    latest_date: Moment | None = None
    """INTERNALDATEs before and after these are refused, or silently replaced."""
    future_s: Count = 0
    """INTERNALDATEs further ahead of now than so many seconds are silently replaced; 0: not known."""
    fetch_whole: Literal["BODY.PEEK[]", "RFC822"] = "BODY.PEEK[]"
    """What to FETCH for all octets of a message, in a mailbox opened by EXAMINE."""
    search_unreliable: bool = False
    """SEARCH by date or text is not to be trusted."""
    keywords: Keywords = Keywords()
    names: Names = Names()

    def policy(self, offered: frozenset[str]) -> LiteralPolicy:
        """How literals are sent to a server that offers these capabilities."""
        match self.literals:
            case "":
                return LiteralPolicy.of(offered)
            case "SYNC":
                return LiteralPolicy.SYNC
            case literals:
                return LiteralPolicy(literals)


def choose(
    *, host: str = "", greeting: str = "", server_id: Mapping[str, str] | None = None, capabilities: Iterable[str] = ()
) -> Profile:
    """The profile that fits a server best, `generic` when none does.

    What a server says of itself with ID counts before its greeting, which a proxy may have said; then
    what it offers; then its name. A host that is not asked yet may be chosen by its name alone.
    """
    given = {name.casefold(): value for name, value in (server_id or {}).items()}
    offered = frozenset(capability.upper() for capability in capabilities)
    labels = f".{host.rstrip('.').lower()}"

    def by_id(match: Match) -> bool:
        return bool(match.id) and all(what.search(given.get(name, "")) for name, what in match.id.items())

    def by_greeting(match: Match) -> bool:
        return match.greeting is not None and match.greeting.search(greeting) is not None

    def by_capability(match: Match) -> bool:
        return bool(match.capability) and offered.issuperset(match.capability)

    def by_host(match: Match) -> bool:
        return any(labels.endswith(f".{suffix}") for suffix in match.host)

    for fits in (by_id, by_greeting, by_capability, by_host):
        for profile in bundled().values():
            if fits(profile.match):
                return profile
    return bundled()[GENERIC]


def named(name: str) -> Profile:
    """The profile of this name, or of a file: `exchange-online`, `./mine.toml`.

    Raises:
        ConfigurationError: there is none of this name, or the file is not right.
    """
    if "/" in name or name.endswith(".toml"):
        try:
            with open(name, "rb") as file:
                octets = file.read()
        except OSError as exc:
            raise ConfigurationError(f"profile {name}: cannot be read ({exc.strerror})") from exc
        return parse(octets, name=name, place=f"profile {name}")
    profiles = bundled()
    if name not in profiles:
        known = f"known are {', '.join(profiles)}; or give the path of a .toml file"
        hint = "; ".join(filter(None, (_nearest(name, profiles), known)))
        raise ConfigurationError(f"profile {name!r}: no such profile", hint=hint)
    return profiles[name]


@lru_cache(maxsize=1)
def bundled() -> Mapping[str, Profile]:
    """The profiles of this package by name, in alphabetical order."""
    folder = resources.files("aimport") / "profiles"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    found: dict[str, Profile] = {}
    for file in files:
        name = file.name.removesuffix(".toml")
        found[name] = parse(file.read_bytes(), name=name, place=f"profiles/{file.name}")
    return found


_TABLES: Final[dict[str, frozenset[str]]] = {
    "": frozenset(Profile.__struct_fields__) - {"name"},
    "match": frozenset(Match.__struct_fields__),
    "keywords": frozenset(Keywords.__struct_fields__),
    "names": frozenset(Names.__struct_fields__),
    "refusals": frozenset(field.name for field in fields(Sentence)),
}


def parse(octets: bytes, *, name: str, place: str) -> Profile:
    """The profile that a TOML file holds; `place` begins each complaint.

    Raises:
        ConfigurationError: no TOML, an unknown key, a wrong value.
    """
    try:
        table = tomllib.loads(octets.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigurationError(f"{place}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError(f"{place}: {exc}") from exc
    for path, known in _TABLES.items():
        inner = table.get(path, {}) if path else table
        for each in inner if isinstance(inner, list) else [inner]:
            for key in each if isinstance(each, dict) else ():
                if key not in known:
                    dotted = f"{path}.{key}" if path else key
                    raise ConfigurationError(f"{place}: {dotted}: no such key", hint=_nearest(key, known))
    try:
        profile = msgspec.convert(table, Profile, dec_hook=_pattern)
    except msgspec.ValidationError as exc:
        what, _, where = str(exc).partition(" - at `$.")
        key = where.rstrip("`")
        raise ConfigurationError(f"{place}: {key}: {what}" if key else f"{place}: {what}") from exc
    return msgspec.structs.replace(profile, name=name)


def _pattern(kind: type, value: object) -> re.Pattern[str]:
    """The only type here that TOML does not have."""
    assert kind is re.Pattern or getattr(kind, "__origin__", None) is re.Pattern
    if not isinstance(value, str):
        raise TypeError(f"Expected a regular expression, got {type(value).__name__}")
    try:
        return re.compile(value, re.IGNORECASE)
    except re.error as exc:
        raise ValueError(f"Not a regular expression: {exc}") from exc


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word.casefold(), list(known), n=1)
    return f"did you mean {found[0]}?" if found else ""
