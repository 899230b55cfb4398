"""Settings: one TOML file, the environment, `-o KEY=VALUE`, and what a row of the user list overrides.

    -o KEY=VALUE  >  AIMPORT_KEY  >  aimport.toml  >  default           then, for one user: cells of its row

Values keep their %-variables; they are expanded for each user where they are used. Secrets are
`Secret` values from here on, so that no repr shows one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from aimport.errors import ConfigurationError, UsageError
from aimport.model import Secret
from aimport.secret import Origin, check_private, parse_secret

FILE_NAME: Final = "aimport.toml"
AUTH_MECHANISMS: Final = ("plain", "login", "xoauth2", "oauthbearer", "scram-sha-1", "scram-sha-256", "external")
_CHOICES: Final = {
    "imapc_ssl": ("starttls", "imaps", "no"),
    "source_compress": ("auto", "yes", "no"),
    "dest_compress": ("auto", "yes", "no"),
    "source_auth": AUTH_MECHANISMS,
    "dest_auth": AUTH_MECHANISMS,
}
_SIZES: Final = frozenset({"source_daily_bytes", "dest_daily_bytes"})
_BOOLEANS: Final = {"yes": True, "true": True, "no": False, "false": False}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings; "", 0 and None: not given."""

    mail_location: str = ""
    mail_driver: str = ""
    """This and the next: Dovecot 2.4's form of `mail_location` (`location.split_location`)."""
    mail_path: str = ""
    mail_inbox_path: str = ""
    mail_index_path: str = ""
    mail_index_private_path: str = ""
    mail_cache_path: str = ""
    mail_control_path: str = ""
    mail_volatile_path: str = ""
    mail_alt_path: str = ""
    mailbox_list_layout: str = ""
    mailbox_root_directory_name: str = ""
    mailbox_directory_name: str = ""
    mailbox_subscriptions_filename: str = ""
    mailbox_list_index_prefix: str = ""
    mailbox_list_iter_from_index_dir: str = ""
    mailbox_list_drop_noselect: str = ""
    mailbox_list_utf8: str = ""
    mailbox_list_visible_escape_char: str = ""
    mailbox_list_storage_escape_char: str = ""
    user_list: str = ""
    mail_home: str = ""
    mail_uid: str = ""
    mail_gid: str = ""
    first_valid_uid: int = 500
    source_user: str = ""
    source_password: Secret | None = None
    source_master_user: str = ""
    source_master_password: Secret | None = None
    dest_user: str = ""
    dest_password: Secret | None = None
    dest_master_user: str = ""
    dest_master_password: Secret | None = None
    mail_attachment_dir: str = ""
    """Where sdbox and mdbox keep attachments apart, as Dovecot's setting of that name says."""
    imapc_host: str = ""
    imapc_port: int = 0
    imapc_user: str = ""
    imapc_password: Secret | None = None
    imapc_master_user: str = ""
    imapc_ssl: str = "starttls"
    source_auth: str = ""
    dest_auth: str = ""
    source_tls_ca: str = ""
    dest_tls_ca: str = ""
    source_tls_cert: str = ""
    dest_tls_cert: str = ""
    profile: str = ""
    source_profile: str = ""
    dest_profile: str = ""
    source_compress: str = "auto"
    dest_compress: str = "auto"
    trust_server_search: bool = False
    logins_per_second: float = 0.0
    """New connections to one host a second; 0: no limit, or that of its profile."""
    source_daily_bytes: int = 0
    dest_daily_bytes: int = 0
    """Octets a user may fetch, or append, in 24 hours; 0: no limit, or that of the server's profile."""
    daily_wait: bool = True
    """Users whose day is used up are waited for, else they are left to `resume`."""

    def for_user(self, row: Mapping[str, str]) -> Settings:
        """These settings with the cells of one row of the user list over them; other cells are passed over.

        Raises:
            ConfigurationError: a cell does not hold what its setting needs.
        """
        cells = {
            name: convert(name, cell, f"user list, {name}", "list")
            for name, cell in row.items()
            if cell and name in PER_USER
        }
        return msgspec.structs.replace(self, **cells) if cells else self

    def public(self) -> dict[str, str | int | float | bool]:
        """What differs from the defaults, fit for a journal: secrets as references, literal ones left out."""
        shown: dict[str, str | int | float | bool] = {}
        for name, default in DEFAULTS.items():
            value: str | int | float | bool | Secret | None = getattr(self, name)
            if isinstance(value, Secret):
                if value.kind != "literal":
                    shown[name] = f"{value.kind}:{value.text}"
            elif value is not None and value != default:
                shown[name] = value
        return shown


DEFAULTS: Final[dict[str, str | int | float | bool | None]] = dict(
    zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True)
)
PER_USER: Final = frozenset(DEFAULTS) - {"user_list", "first_valid_uid", "logins_per_second", "daily_wait"}
"""Settings that a row of the user list may hold."""


def load_settings(
    *,
    file: str | None = None,
    options: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Settings of this run. `file` None: `./aimport.toml`, else the one of the XDG configuration directory, else none.

    Raises:
        UsageError: an option that is not KEY=VALUE, or that holds a literal secret.
        ConfigurationError: an unknown key, a wrong value, an unreadable file.
    """
    values: dict[str, Any] = {}
    path = file if file is not None else _find_file(environ)
    if path is not None:
        values.update(_read_file(path))
    for variable, text in environ.items():
        name = variable.removeprefix("AIMPORT_").lower()
        if variable.startswith("AIMPORT_") and text:
            if name in DEFAULTS:
                values[name] = convert(name, text, variable, "environment")
            elif hint := nearest(name, DEFAULTS):  # others may be no settings of ours
                raise ConfigurationError(f"{variable}: no such setting", hint=hint)
    for option in options:
        name, equals, text = option.partition("=")
        name = name.strip()
        if not equals:
            what = f"-o {name}" if name in DEFAULTS else "-o"
            raise UsageError(f"{what}: write it as -o KEY=VALUE")
        _check_key(name, f"-o {name}")
        values[name] = convert(name, text.strip(), f"-o {name}", "argument")
    return Settings(**values)


def convert(name: str, raw: object, place: str, origin: Origin) -> str | int | float | bool | Secret | None:
    """The value of setting `name`, from TOML's types or from text; empty text is the default.

    Raises:
        ConfigurationError: not what this setting needs. `place` says where it stands; a secret is never shown.
        UsageError: a literal secret on the command line.
    """
    default = DEFAULTS[name]
    if raw == "":
        return default
    if name.endswith("_password"):
        if not isinstance(raw, str):
            raise ConfigurationError(f"{place}: must be text in quotes")
        return parse_secret(raw, origin, name=place)
    if isinstance(default, bool):
        if isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and raw.lower() in _BOOLEANS:
            return _BOOLEANS[raw.lower()]
        raise ConfigurationError(f"{place}: {raw!r} is not yes or no")
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float) if isinstance(default, float) else (str, int)):
        raise ConfigurationError(f"{place}: must be text or a number")
    if isinstance(default, float):
        try:
            rate = float(str(raw))
        except ValueError:
            raise ConfigurationError(f"{place}: {raw!r} is not a number", hint="such as 4 or 0.5") from None
        if not 0 <= rate < math.inf:
            raise ConfigurationError(f"{place}: {raw!r} is out of range")
        return rate
    if isinstance(default, int):
        try:
            number = parse_size(str(raw)) if name in _SIZES else int(str(raw), 10)
        except ValueError:
            raise ConfigurationError(
                f"{place}: {raw!r} is not a {'size' if name in _SIZES else 'whole number'}",
                hint="such as 500, 64K, 2500M or 2G" if name in _SIZES else "",
            ) from None
        if number < 0 or (name.endswith("_port") and number > 65535):
            raise ConfigurationError(f"{place}: {raw!r} is out of range")
        return number
    if name in _CHOICES:
        if str(raw).lower() not in _CHOICES[name]:
            raise ConfigurationError(f"{place}: {raw!r} is none of {', '.join(_CHOICES[name])}")
        return str(raw).lower()
    return str(raw)


def parse_size(text: str) -> int:
    """Octets of `500`, `64K`, `2500M`, `2 GiB`: units are powers of 1024, in any case.

    Raises:
        ValueError: anything else; also `0.5K`.
    """
    match = re.fullmatch(r"([0-9]{1,18}) *(?:([kmgt])i?)?b?", text, re.IGNORECASE)
    if match is None:
        raise ValueError("not a size")
    return int(match[1]) << (10 * (" KMGT".index(match[2].upper()) if match[2] else 0))


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the known word most like `word`; empty when none is like it."""
    import difflib

    spelling = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(word.casefold(), spelling, n=1)
    return f"did you mean {spelling[found[0]]}?" if found else ""


def _check_key(name: str, place: str) -> None:
    if name not in DEFAULTS:
        raise ConfigurationError(f"{place}: no such setting", hint=nearest(name, DEFAULTS))


def _find_file(environ: Mapping[str, str]) -> str | None:
    if os.path.lexists(FILE_NAME):
        # A file of someone else in a shared directory may name commands: it is not taken up unasked.
        if os.stat(FILE_NAME, follow_symlinks=False).st_uid not in (0, os.geteuid()):
            raise ConfigurationError(
                f"./{FILE_NAME} belongs to another user", hint=f"name it with -c ./{FILE_NAME} to use it all the same"
            )
        return FILE_NAME
    folder = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "~", ".config")
    path = os.path.join(os.path.expanduser(folder), "aimport", FILE_NAME)
    return path if os.path.lexists(path) else None


def _read_file(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            table = tomllib.loads(file.read().decode("utf-8-sig"))
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read ({exc.strerror})") from exc
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as exc:
        # Without its cause, which keeps the whole text.
        raise ConfigurationError(f"{path}: {exc}") from None
    values: dict[str, Any] = {}
    for name, raw in table.items():
        place = f"{path}:{name}"
        _check_key(name, place)
        values[name] = convert(name, raw, place, "file")
        if isinstance(values[name], Secret) and values[name].kind == "literal":
            check_private(path, mode, name)
    return values
