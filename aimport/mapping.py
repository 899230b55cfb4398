"""Which mailbox goes where. The one place where the order is written down:

    1. the source leaves out the prefix of its personal namespace (`INBOX.Sent` is `Sent`)
    2. the query says which mailboxes are looked at (MAILBOX)
    3. `--exclude` takes some of these away
    4. `--map`: the first rule that matches says the name, and nothing else does
    5. `--special-use`: else Sent goes to what is Sent at the destination, and so on, and what is below it follows
    6. else the name stays
    7. the destination's separator inside a level becomes `_`; DEST_PARENT is put in front
    8. the destination adds the prefix of its personal namespace

Rules, masks and MAILBOX all see the name of step 1. Two mailboxes with one name at the end are a `NameClash`: that user
fails before anything is written. Pure but for the table of names, which is read once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from aimport import names
from aimport.errors import UsageError, UserError
from aimport.model import SPECIAL_USES, Mailbox
from aimport.names import INBOX

MAX_NAME: Final = 10_000  # arbitrary
"""Letters of a name that a regular expression is tried on: it may take time that grows with their square, or worse."""
_SUBSTITUTION: Final = re.compile(r"s([/|,#!])")
_ESCAPE_OR_GROUP: Final = re.compile(r"\\(.)|\$(?:(\d{1,2})|\{(\w+)\})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rename:
    """`OLD=NEW`: this mailbox, and what is below it."""

    old: str
    new: str

    def path(self, source: Mailbox, separator: str) -> tuple[str, ...] | None:
        for old in {names.split(self.old, source.separator), names.split(self.old, "/")}:
            if source.path[: len(old)] == old:
                return names.parent_path(self.new, separator) + source.path[len(old) :]
        return None


@dataclass(frozen=True, slots=True)
class Substitution:
    """`s/REGEX/REPLACEMENT/`: names in which the expression is found, levels joined by `/`."""

    pattern: re.Pattern[str]
    replacement: str
    """As `re.sub` takes it."""
    every: bool
    """All places where it is found (`g`), not the first alone."""

    def path(self, source: Mailbox, separator: str) -> tuple[str, ...] | None:
        """Raises:
        UserError: the name is too long to be tried.
        """
        name = "/".join(level.replace("/", "_") for level in source.path)
        if len(name) > MAX_NAME:
            raise UserError(f"mailbox {source.name[:40]!r}...: {len(name)} letters are too many for a --map expression")
        changed, found = self.pattern.subn(self.replacement, name, count=0 if self.every else 1)
        return names.split(changed, "/") if found else None


Rule = Rename | Substitution


def parse_rule(text: str) -> Rule:
    """A `--map` rule.

    Raises:
        UsageError: it is neither of the two forms.
    """
    form = _SUBSTITUTION.match(text)
    if form is not None:
        return _substitution(text, form[1])
    old, equals, new = _cut(text, "=")
    if not equals:
        raise UsageError(f"--map {text!r}: is neither OLD=NEW nor s/REGEX/REPLACEMENT/")
    if not old or not new:
        hint = "to leave a level out: s/^Level\\///"
        raise UsageError(f"--map {text!r}: a name is empty", hint=hint)
    if not all((*names.split(old, "/"), *names.split(new, "/"))):
        raise UsageError(f"--map {text!r}: a level of a name is empty", hint="remove the doubled or final separator")
    return Rename(old, new)


def _cut(text: str, mark: str) -> tuple[str, str, str]:
    """What stands before and behind the first `mark` without a backslash before it; such backslashes are taken out."""
    match = re.fullmatch(rf"((?:[^\\{mark}]|\\.)*+)({mark}?)(.*)", text, re.DOTALL)
    assert match is not None, "all three may be empty, and the last takes anything"
    return match[1].replace(f"\\{mark}", mark), match[2], match[3]


def _substitution(text: str, mark: str) -> Substitution:
    parts = _parts(text[2:], mark)
    if len(parts) != 3:
        raise UsageError(f"--map {text!r}: is not s{mark}REGEX{mark}REPLACEMENT{mark}")
    regex, replacement, flags = parts
    if set(flags) - {"g", "i"}:
        raise UsageError(f"--map {text!r}: behind the last {mark} may stand g (everywhere) and i (any case)")
    template = _ESCAPE_OR_GROUP.sub(_as_python, replacement)
    try:
        pattern = re.compile(regex, re.IGNORECASE if "i" in flags else 0)
        pattern.sub(template, "")  # parses the template, whether it matches or not
    except (re.error, IndexError) as error:
        raise UsageError(f"--map {text!r}: {error}") from None
    return Substitution(pattern, template, "g" in flags)


def _as_python(found: re.Match[str]) -> str:
    """`$1` and `${1}` as in Perl; `\\1` and `\\g<name>` are Python's already."""
    if found[1]:
        return "$" if found[1] == "$" else found[0]
    return rf"\g<{found[2] or found[3]}>"


def _parts(text: str, mark: str) -> list[str]:
    """What stands between marks; one behind a backslash is a letter."""
    parts = [""]
    for token in re.findall(r"\\.|.", text, re.DOTALL):
        if token == mark:
            parts.append("")
        elif token == f"\\{mark}" and not (mark == "|" and len(parts) == 1):  # in the expression it would mean "or"
            parts[-1] += mark
        else:
            parts[-1] += token
    return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """`--exclude`, `--map` and `--special-use` of a run."""

    exclude: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    special_use: bool = False

    def excludes(self, mailbox: Mailbox) -> bool:
        """Whether a mask matches, as LIST does (`*`, `%`), by the source's own separator or by `/`."""
        own, slashed = mailbox.name, "/".join(mailbox.path)
        return any(
            names.matches(own, mask, mailbox.separator) or names.matches(slashed, mask, "/") for mask in self.exclude
        )

    def targets(
        self,
        mailboxes: Iterable[Mailbox],
        *,
        listed: Sequence[Mailbox],
        there: Sequence[Mailbox],
        parent: str,
        separator: str,
        folds_case: bool,
        kept: Mapping[str, str],
    ) -> Mapping[Mailbox, Mailbox]:
        """Destination of each of `mailboxes`.

        `listed`: all that the source has; `there`: all that the destination has (asked for by `special_use` only).
        `kept`: where mailboxes of the source went before in this run: what a use points to may have changed since.

        Raises:
            NameClash: two of them have one destination name.
            UserError: a rule makes an empty level.
            UsageError: DEST_PARENT has one.
        """
        above = names.parent_path(parent, separator)
        special = None
        if self.special_use:
            asked = [box for box in listed if not self.excludes(box) and self._by_rule(box, separator) is None]
            special = _Special(asked, there)
        named: dict[Mailbox, Mailbox] = {}
        for source in mailboxes:
            path = self._by_rule(source, separator)
            if path is not None:
                named[source] = Mailbox(path=above + path, separator=separator)
            elif special is not None:
                if source.name in kept:
                    named[source] = Mailbox(path=names.split(kept[source.name], separator), separator=separator)
                elif (target := special.target(source)) is not None:
                    # Below a parent it is an ordinary mailbox: an account has its uses at the top.
                    path, use = target
                    uses = (use,) if use and not above else ()
                    named[source] = Mailbox(path=above + _tamed(path, separator), separator=separator, uses=uses)
        return names.map_names(mailboxes, parent, separator, folds_case=folds_case, named=named)

    def _by_rule(self, source: Mailbox, separator: str) -> tuple[str, ...] | None:
        for rule in self.rules:
            path = rule.path(source, separator)
            if path is not None:
                if not all(path):
                    raise UserError(f"--map makes {'/'.join(path)!r} of mailbox {source.name!r}: a level is empty")
                return _tamed(path, separator)
        return None


def _tamed(path: tuple[str, ...], separator: str) -> tuple[str, ...]:
    return tuple(level.replace(separator, "_") for level in path) if separator else path


class _Special:
    """Uses of the mailboxes of both sides: by attribute, or by name where no mailbox of a side has the attribute."""

    def __init__(self, listed: Sequence[Mailbox], there: Sequence[Mailbox]) -> None:
        self._targets: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {}
        """By the path of a special mailbox of the source: where it goes, and its use."""
        for use in SPECIAL_USES:
            held = [box.path for box in there if use in box.uses] or [box.path for box in by_name(there, use)]
            sources = [box.path for box in listed if use in box.uses]
            if not sources:
                # Several may be called so, and one is it: that which has the destination's name, else the likeliest.
                named = [box.path for box in by_name(listed, use)]
                sources = [path for path in named if path in held][:1] or named[:1]
            for path in sources:
                if path != (INBOX,):
                    target = path if path in held or not held else held[0]
                    self._targets.setdefault(path, (target, use))

    def target(self, source: Mailbox) -> tuple[tuple[str, ...], str] | None:
        """The path of a mailbox and its use, "" for what is below one; None: it is neither."""
        for length in range(len(source.path), 0, -1):
            found = self._targets.get(source.path[:length])
            if found is not None:
                path, use = found
                return path + source.path[length:], use if length == len(source.path) else ""
        return None


def by_name(mailboxes: Iterable[Mailbox], use: str) -> list[Mailbox]:
    """Those whose name tells of a use, the likeliest first."""
    ranks = _table()[use]
    found: list[tuple[int, int, Mailbox]] = []
    for mailbox in mailboxes:
        *above, last = mailbox.path
        rank = ranks.get(_folded(last))
        if rank is not None and tuple(above) in _roots():
            found.append((len(above), rank, mailbox))
    return [mailbox for *_, mailbox in sorted(found, key=lambda one: one[:2])]


def _folded(level: str) -> str:
    return unicodedata.normalize("NFC", level).casefold()


@lru_cache(maxsize=1)
def _data() -> Mapping[str, object]:
    import tomllib
    from importlib import resources

    octets = (resources.files("aimport") / "data" / "special_use.toml").read_bytes()
    return tomllib.loads(octets.decode("utf-8"))


@lru_cache(maxsize=1)
def _table() -> Mapping[str, Mapping[str, int]]:
    """By use: folded names, and where in the row of its language each stands."""
    found: dict[str, dict[str, int]] = {}
    for use in SPECIAL_USES:
        rows = _data()[use.removeprefix("\\").lower()]
        assert isinstance(rows, dict), "a table of the package"
        ranks = found[use] = {}
        for row in rows.values():
            for rank, name in enumerate(row):
                ranks.setdefault(_folded(name), rank)
    return found


@lru_cache(maxsize=1)
def _roots() -> frozenset[tuple[str, ...]]:
    roots = _data()["roots"]
    assert isinstance(roots, list), "a list of the package"
    return frozenset({(), (INBOX,), *((root,) for root in roots)})
