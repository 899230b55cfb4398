r"""Dovecot's %-variables, as version 2.3 expands them in `mail_location` and its like.

    %[OFFSET.][0]WIDTH MODIFIERS VARIABLE       VARIABLE: one letter, or {name}
    maildir:/srv/%d/%2.256Nu/%n  ──▶  text "maildir:/srv/\ud800/\ud801/\ud802" + values

An expanded template stays in two parts until the end: what the template's author wrote, and what
variables brought. So a colon or an `@` in a user name never becomes location syntax, and
percent-decoding of a URL never touches a value. Knows nothing of locations.

Work on values is done on octets, as Dovecot does: `%1n` of a name in UTF-8 may be half a character.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from aimport.errors import ConfigurationError, NoSuchUser, UserError

_VARIABLE = re.compile(
    r"%(?P<sign>-?)(?P<zero>0?)(?P<first>\d{0,9})(?P<dot>\.(?P<zero2>0?)(?P<sign2>-?)(?P<second>\d{0,9}))?"
    r"(?P<modifiers>[LUEXRHNMDT]{0,10})(?P<letter>.?)",
    re.DOTALL | re.ASCII,
)
_MARKER = re.compile("([\ud800-\udbff])")  # high surrogates: in no decoded text, not even from surrogateescape
_MAX_VALUES: Final = 1024
_MAX_DEPTH: Final = 16
_MAX_WIDTH: Final = 4096  # arbitrary; bounds the memory that zero padding can ask for
_MAX_ROUNDS: Final = 1_000_000
_HASHES: Final = frozenset({"md5", "sha1", "sha256", "sha384", "sha512"})
_LETTERS: Final = {
    "u": "user",
    "n": "username",
    "d": "domain",
    "h": "home",
    "i": "uid",
    "s": "service",
    "p": "pid",
    "l": "lip",
    "r": "rip",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """What the variables of one user stand for. `home` and the ids are asked for when first used.

    `home` None: the user has none. `fields` are the values of `%{userdb:NAME}`.
    """

    user: str
    home: str | Callable[[], str] | None = None
    uid: int | Callable[[], int] | None = None
    gid: int | Callable[[], int] | None = None
    service: str = "aimport"
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    fields: Mapping[str, str] = field(default_factory=dict, repr=False)

    def find_home(self) -> str:
        """The home.

        Raises:
            NoSuchUser: there is none.
        """
        if self.home is None:
            raise NoSuchUser(f"user {self.user!r} has no home", hint="set mail_home")
        return self.home() if callable(self.home) else self.home

    def value(self, name: str) -> str | None:
        """The plain variable with this long name; None when there is none."""
        match name:
            case "user" | "auth_user":
                return self.user
            case "username" | "auth_username":
                return self.user.partition("@")[0]
            case "domain" | "auth_domain":
                return self.user.partition("@")[2]
            case "home":
                return self.find_home()
            case "uid":
                return str(_number(self.uid, os.geteuid))
            case "gid":
                return str(_number(self.gid, os.getegid))
            case "service":
                return self.service
            case "pid":
                return str(os.getpid())
            case "hostname":
                return os.uname().nodename
            case "lip" | "rip" | "session":
                return ""
            case _:
                return None


def _number(number: int | Callable[[], int] | None, default: Callable[[], int]) -> int:
    if number is None:
        return default()
    return number() if callable(number) else number


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """A template's own text with one marker for each value; take `text` apart, then `fill` the parts."""

    text: str
    values: tuple[str, ...]

    def fill(self, part: str, literal: Callable[[str], str] = str) -> str:
        """`part` with its values put in; `literal` is applied to what is not a value."""
        pieces = _MARKER.split(part)
        pieces[0::2] = (literal(piece) if piece else piece for piece in pieces[0::2])
        pieces[1::2] = (self.values[ord(marker) - 0xD800] for marker in pieces[1::2])
        return "".join(pieces)

    def is_literal(self, part: str) -> bool:
        """True when no variable has a share in `part`."""
        return _MARKER.search(part) is None

    def shape(self, part: str) -> str:
        """`part` with an x for each value: what the template alone says."""
        return _MARKER.sub("x", part)


def expand(template: str, variables: Variables, *, shown: str | None = None) -> str:
    """`template` with its variables. `shown` stands for it in errors when it may hold what they must not.

    Raises:
        ConfigurationError: an unknown variable, or one that is badly written.
        UserError: it cannot be expanded for this user (no home).
    """
    expanded = expand_parts(template, variables, shown=shown)
    return expanded.fill(expanded.text)


def expand_parts(template: str, variables: Variables, *, shown: str | None = None) -> Expanded:
    """As `expand`, with literal text and values still apart."""
    if "%" not in template and not _MARKER.search(template):
        return Expanded(text=template, values=())
    work = _Expansion(variables, template if shown is None else shown)
    if _MARKER.search(template):
        raise work.error("a character that is not text (a lone surrogate)")
    text = work.run(template, 0)
    return Expanded(text=text, values=tuple(work.values))


class _Expansion:
    """One template on its way: `run` gives its text, `values` fills up beside it."""

    def __init__(self, variables: Variables, shown: str) -> None:
        self.variables = variables
        self.shown = shown
        self.values: list[str] = []

    def error(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"{what} in {self.shown!r}", hint="a plain % is written %%")

    def run(self, template: str, depth: int) -> str:
        if depth > _MAX_DEPTH:
            raise self.error("variables nested too deep")
        out = []
        at = 0
        while (percent := template.find("%", at)) >= 0:
            out.append(template[at:percent])
            match = _VARIABLE.match(template, percent)
            assert match is not None  # every group may be empty
            at = match.end()
            letter = match["letter"]
            plain = at - percent == 2
            if letter == "%" and plain:
                out.append("%")
                continue
            if letter == "{":
                close = _closing_brace(template, at)
                if close < 0:
                    raise self.error("a variable without its }")
                name, at = template[at:close], close + 1
                if name.startswith("if;") and plain:
                    out.append(self.choose(name, depth))
                    continue
                value = self.long(name, depth)
            elif not letter:
                raise self.error("an unfinished variable")
            else:
                value = "%" if letter == "%" else self.named(_LETTERS.get(letter), f"%{letter}")
            if not plain:
                value = self.cut(value, match)
            if len(self.values) == _MAX_VALUES:
                raise self.error(f"more than {_MAX_VALUES} variables")
            out.append(chr(0xD800 + len(self.values)))
            self.values.append(value)
        out.append(template[at:])
        return "".join(out)

    def text(self, template: str, depth: int) -> str:
        """`template` expanded, values put in."""
        inner = _Expansion(self.variables, self.shown)
        text = inner.run(template, depth)
        return Expanded(text=text, values=tuple(inner.values)).fill(text)

    def named(self, name: str | None, written: str) -> str:
        value = self.variables.value(name) if name else None
        if value is None:
            raise self.error(f"unknown variable {written}")
        return value

    def long(self, name: str, depth: int) -> str:
        """The value of `%{name}`."""
        if name.startswith("if;"):
            return self.text(f"%{{{name}}}", depth + 1)
        head, *rest = _split(name, ":")
        argument = ":".join(rest)
        function, *options = _split(head, ";")
        if rest and function == "env":
            return self.variables.environ.get(argument, "")
        if rest and function == "userdb":
            key, _, default = argument.partition(":")
            return self.variables.fields.get(key, default)
        if rest and function in _HASHES:
            if depth > _MAX_DEPTH:
                raise self.error("variables nested too deep")
            return self.digest(function, options, self.long(argument, depth + 1), depth)
        return self.named(name, f"%{{{name}}}")

    def digest(self, algorithm: str, options: list[str], value: str, depth: int) -> str:
        """`%{ALGORITHM;rounds=N;truncate=BITS;salt=S;format=F:FIELD}`; each round hashes salt + the last."""
        import hashlib

        rounds, bits, salt, style = 1, 0, b"", "hex"
        for option in options:
            key, _, setting = option.partition("=")
            if key == "rounds" and setting.isdecimal() and 1 <= int(setting) <= _MAX_ROUNDS:
                rounds = int(setting)
            elif key == "truncate" and setting.isdecimal():
                bits = int(setting)
            elif key == "salt":
                salt = _octets(self.text(setting, depth + 1))
            elif key == "format" and setting in ("hex", "hexuc", "base64"):
                style = setting
            else:
                raise self.error(f"bad option {option!r} of {algorithm}")
        result = _octets(value)
        for _ in range(rounds):
            result = hashlib.new(algorithm, salt + result, usedforsecurity=False).digest()
        if 0 < bits < 8 * len(result):
            number = int.from_bytes(result, "big") >> (8 * len(result) - bits)
            result = number.to_bytes((bits + 7) // 8, "big")
        if style == "base64":
            import base64

            return base64.b64encode(result).decode("ascii")
        return result.hex().upper() if style == "hexuc" else result.hex()

    def choose(self, name: str, depth: int) -> str:
        """`%{if;A;OP;B;YES;NO}`: text of the branch taken. The other is expanded too, to find its mistakes."""
        parts = _split(name, ";")[1:]
        if len(parts) not in (4, 5):
            raise self.error("an if without its A;OP;B;YES;NO")
        left, operator, right = (self.text(part, depth + 1) for part in parts[:3])
        yes, no = parts[3], parts[4] if len(parts) == 5 else ""
        taken, other = (yes, no) if self.holds(left, operator, right, parts[2]) else (no, yes)
        try:
            self.text(other, depth + 1)
        except UserError:
            pass  # no home: of no concern to a branch that is not taken
        return self.run(taken, depth + 1)

    def holds(self, left: str, operator: str, right: str, right_template: str) -> bool:
        if operator in ("==", "!=", "<", "<=", ">", ">="):
            for number in (left, right):
                if not re.fullmatch(r"-?[0-9]{1,18}", number):
                    raise UserError(f"if: {number!r} is not a number in {self.shown!r}")
            return _compare(int(left), operator, int(right))
        names = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
        if operator in names:
            return _compare(_octets(left), names[operator], _octets(right))
        if operator in ("*", "!*"):
            return (wildcard(right).fullmatch(left) is not None) == (operator == "*")
        if operator in ("~", "!~"):
            try:
                return (re.search(right, left) is not None) == (operator == "~")
            except re.error as exc:
                what = f"if: the expression {right!r} is not right ({exc})"
                raise (UserError(what) if "%" in right_template else self.error(what)) from None
        raise self.error(f"if: unknown operator {operator!r}")

    def cut(self, value: str, match: re.Match[str]) -> str:
        """Modifiers, offset, width of `match` applied to `value`, in this order."""
        if match["dot"] is None:  # a sign without an offset means nothing
            offset, width, padded = 0, int(match["first"] or 0), bool(match["zero"])
        else:
            offset = int(match["first"] or 0) * (-1 if match["sign"] else 1)
            width = int(match["second"] or 0) * (-1 if match["sign2"] else 1)
            padded = bool(match["zero2"])
        octets = _octets(value)
        for modifier in match["modifiers"]:
            if modifier in "HN":  # the width is the modulus, the offset the least number of digits; both are used up
                number = _hash32(octets) if modifier == "H" else _hash_md5(octets)
                number = (number % abs(width) if width else number) & 0xFFFFFFFF
                octets = b"%x" % number
                octets = octets.rjust(self.padding(octets, offset), b"0")
                offset = width = 0
            else:
                octets = _modify(modifier, octets)
        octets = octets[offset:]
        if padded and width:
            octets = octets.rjust(self.padding(octets, width), b"0")
        elif width:
            octets = octets[: width if width > 0 else max(0, len(octets) + width)]
        return octets.decode("utf-8", "surrogateescape")

    def padding(self, octets: bytes, width: int) -> int:
        if width > _MAX_WIDTH:
            raise self.error(f"a width above {_MAX_WIDTH}")
        return max(width, len(octets))


def wildcard(pattern: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """`*` any text, `?` any one character."""
    parts = {"*": ".*", "?": "."}
    squeezed = re.sub(r"\*+", "*", pattern)
    return re.compile("".join(parts.get(char) or re.escape(char) for char in squeezed), flags | re.DOTALL)


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _compare(left: int | bytes, operator: str, right: int | bytes) -> bool:
    order = (left > right) - (left < right)  # type: ignore[operator]  # both are int, or both bytes
    return {"==": order == 0, "!=": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[
        operator
    ]


def _modify(modifier: str, octets: bytes) -> bytes:
    """One modifier other than H and N. Case changes in ASCII only."""
    match modifier:
        case "L":
            return octets.lower()
        case "U":
            return octets.upper()
        case "E":
            return re.sub(rb"([\"'\\])", rb"\\\1", octets)
        case "X":
            return b"%x" % int(octets) if re.fullmatch(rb"[0-9]{1,20}", octets) else b"0"
        case "R":
            return octets[::-1]
        case "D":
            return octets.replace(b".", b",dc=")
        case "T":
            return octets.rstrip(b" \t\r\n\v\f")
        case _:
            import hashlib

            return hashlib.md5(octets, usedforsecurity=False).hexdigest().encode("ascii")


def _hash32(octets: bytes) -> int:
    """`%H`: the PJW hash."""
    value = 0
    for octet in octets:
        value = ((value << 4) + octet) & 0xFFFFFFFF
        if high := value & 0xF0000000:
            value ^= (high >> 24) ^ high
    return value


def _hash_md5(octets: bytes) -> int:
    """`%N`: first 64 bits of the MD5."""
    import hashlib

    return int.from_bytes(hashlib.md5(octets, usedforsecurity=False).digest()[:8], "big")


def _closing_brace(text: str, start: int) -> int:
    """Where the brace that was opened before `start` closes; -1 when it does not."""
    depth = 1
    at = start
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
        elif char in "{}":
            depth += 1 if char == "{" else -1
            if not depth:
                return at
        at += 1
    return -1


def _split(text: str, separator: str) -> list[str]:
    r"""`text` at each `separator` outside inner `%{...}`; `\` makes the next character plain there."""
    parts: list[str] = []
    part: list[str] = []
    depth = 0
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\" and at + 1 < len(text):
            at += 1
            part.append(text[at] if not depth else text[at - 1 : at + 1])
        elif char == separator and not depth:
            parts.append("".join(part))
            part.clear()
        else:
            if char == "{" and (depth or text[at - 1 : at] == "%"):
                depth += 1
            elif char == "}" and depth:
                depth -= 1
            part.append(char)
        at += 1
    return [*parts, "".join(part)]
