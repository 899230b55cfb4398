"""Locations: `maildir:/srv/%d/%n:INDEX=MEMORY`, `imaps://%u@mail.example.org/` → `Endpoint`.

    template ──screen──▶ expand ──▶ take apart ──▶ fill in the values ──▶ Endpoint

A location is taken apart with its variables still closed, so that a value never becomes
syntax. What is wrong with the template is a `ConfigurationError` (every user would meet it),
what is wrong with one user's values a `UserError`. No password is ever quoted in an error.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import replace
from typing import Final, Literal

from aimport.config import AUTH_MECHANISMS, Settings, nearest
from aimport.errors import ConfigurationError, NoSuchUser, UsageError, UserError
from aimport.model import Endpoint, Secret, Security
from aimport.secret import parse_secret
from aimport.variables import Expanded, Variables, expand, expand_parts

Side = Literal["source", "destination"]

SCHEMES: Final = (
    *("maildir", "mbox", "sdbox", "mdbox", "dbox", "eml", "mh", "zip", "tar", "auto"),
    *("imap", "imaps", "imapc", "tunnel", "memory"),
)
DBOX: Final = frozenset({"sdbox", "mdbox", "dbox"})
SOURCES: Final = DBOX | {"mh", "zip", "tar", "auto"}
"""Schemes that can only be read."""
LAYOUTS: Final = ("Maildir++", "fs", "imapdir", "index", "none")
PATH_KEYS: Final = frozenset({"INDEX", "INDEXPVT", "INDEXCACHE", "CONTROL", "INBOX", "ALT", "VOLATILEDIR"})
KEYS: Final = PATH_KEYS | {
    "LAYOUT",
    "DIRNAME",
    "FULLDIRNAME",
    "MAILBOXDIR",
    "SUBSCRIPTIONS",
    "ALTNOCHECK",
    "LISTINDEX",
    "ITERINDEX",
    "UTF-8",
    "BROKENCHAR",
    "NO-NOSELECT",
    "NO-FS-VALIDATION",
}
OWN_KEYS: Final = {"DIALECT": ("mbox",), "SUFFIX": ("mbox",), "ROOT": ("zip", "tar"), "ESCAPECHAR": ("maildir",)}
r"""Keys that Dovecot does not have, with their schemes; what is ESCAPECHAR here, its plug-in listescape has as `\`."""
SETTING_KEYS: Final = {
    "mail_inbox_path": "INBOX",
    "mail_index_path": "INDEX",
    "mail_index_private_path": "INDEXPVT",
    "mail_cache_path": "INDEXCACHE",
    "mail_control_path": "CONTROL",
    "mail_volatile_path": "VOLATILEDIR",
    "mail_alt_path": "ALT",
    "mailbox_list_layout": "LAYOUT",
    "mailbox_root_directory_name": "MAILBOXDIR",
    "mailbox_directory_name": "DIRNAME",
    "mailbox_subscriptions_filename": "SUBSCRIPTIONS",
    "mailbox_list_index_prefix": "LISTINDEX",
    "mailbox_list_iter_from_index_dir": "ITERINDEX",
    "mailbox_list_drop_noselect": "NO-NOSELECT",
    "mailbox_list_utf8": "UTF-8",
    "mailbox_list_visible_escape_char": "BROKENCHAR",
    "mailbox_list_storage_escape_char": "ESCAPECHAR",
}
"""The settings that Dovecot 2.4 has in place of keys; they may also stand where a key stands."""
_SWITCHES: Final = frozenset({"ITERINDEX", "NO-NOSELECT", "UTF-8"})
"""Keys without a value, which are yes or no in 2.4."""
REMOTE_SHELLS: Final = frozenset({"ssh", "rsh", "slogin"})
"""Programs that join their words again, for a shell at the other end."""
_PORTS: Final = {"tls": 993, "starttls": 143, "none": 143}
_IMAPC_SECURITY: Final[dict[str, Security]] = {"imaps": "tls", "starttls": "starttls", "no": "none"}
_HOST = re.compile(r"[^\x00-\x20\x7f/?#@\[\]:%\\]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\]")
_REFERENCE = re.compile(r"(?:env|file|cmd)(?::|%%3A).", re.IGNORECASE | re.DOTALL)


def parse_location(text: str, variables: Variables, *, side: Side, settings: Settings) -> Endpoint:
    """The location `text` for the user whose `variables` these are.

    IMAP of every spelling has the scheme "imap"; `security` tells them apart; a tunnel has words of a
    command. Log-in details that the text leaves out come from the settings of its side.

    Raises:
        ConfigurationError: the text is wrong for every user.
        UsageError: it holds a literal password.
        UserError: it cannot be made for this user.
    """
    check_password(text)
    shown = shown_location(text)
    expanded = expand_parts(text, variables, shown=shown)
    scheme, colon, rest = expanded.text.partition(":")
    scheme = scheme.lower()
    _check_scheme(scheme, colon, shown)
    if side == "destination" and scheme in SOURCES:
        hint = "import through its server, with imaps: or tunnel:" if scheme in DBOX else ""
        raise ConfigurationError(f"{shown}: {scheme}: can only be read", hint=hint)
    if scheme == "dbox":
        scheme = "sdbox"  # as in Dovecot
    if scheme in ("imap", "imaps"):
        return _Url(expanded, shown, variables, side, settings).parse(scheme, rest)
    if scheme == "imapc":
        return _imapc(variables, side, settings)
    if scheme == "tunnel":
        return _tunnel(rest, expanded, shown, variables, side, settings)
    if "\0" in rest:
        raise ConfigurationError(f"{shown}: holds a NUL")
    path, *options = (part.replace("\0", ":") for part in rest.replace("::", "\0").split(":"))
    if not path:
        raise ConfigurationError(f"{shown}: has no {'name' if scheme == 'memory' else 'path'}")
    if scheme == "memory":
        return Endpoint(scheme=scheme, path=expanded.fill(path))
    if options and not options[-1]:
        options.pop()
    return Endpoint(
        scheme=scheme,
        path=_path(path, expanded, variables, shown),
        user=variables.user if scheme in ("zip", "tar", "auto") else "",  # one archive may hold many users
        options=tuple(filter(None, (_option(scheme, option, expanded, variables, shown) for option in options))),
    )


def with_attachments(endpoint: Endpoint, variables: Variables, settings: Settings) -> Endpoint:
    """`endpoint` with the directory of `mail_attachment_dir`, where its kind of store has such.

    Raises:
        ConfigurationError, UserError
    """
    if not settings.mail_attachment_dir or endpoint.scheme not in DBOX:
        return endpoint
    name = "mail_attachment_dir"
    expanded = expand_parts(settings.mail_attachment_dir, variables, shown=name)
    path = _path(expanded.text, expanded, variables, name)
    return replace(endpoint, options=(*endpoint.options, (name, path)))


def split_location(settings: Settings) -> str:
    """The location that Dovecot 2.4's settings `mail_driver`, `mail_path`, ... say, as one text; "": they say none.

    Raises:
        ConfigurationError: they are not complete, or `mail_location` says another one.
    """
    given = [name for name in ("mail_driver", "mail_path", *SETTING_KEYS) if getattr(settings, name)]
    if not given:
        return ""
    if settings.mail_location:
        raise ConfigurationError(f"mail_location and {given[0]} are both set", hint="leave one of them out")
    if not settings.mail_driver or not settings.mail_path:
        missing = "mail_path" if settings.mail_driver else "mail_driver"
        raise ConfigurationError(f"{given[0]} is set without {missing}", hint=f"set {missing}")
    parts = [settings.mail_driver, settings.mail_path.replace(":", "::")]
    values = ((name, getattr(settings, name)) for name in SETTING_KEYS)
    parts += [f"{name}={value.replace(':', '::')}" for name, value in values if value]
    return ":".join(parts)


def check_password(text: str) -> None:
    """Refuses an IMAP URL with a literal password.

    Raises:
        UsageError: it has one. The text does not quote it.
    """
    plain = text
    while (masked := re.sub(r"%[-.0-9A-Z]*\{[^{}]*\}", "x", plain)) != plain:
        plain = masked  # a colon within a variable separates nothing
    match = re.match(r"imaps?://([^/?#]*)@", plain, re.IGNORECASE)
    if match is None:
        return
    _, colon, password = match[1].partition(":")
    if colon and not _REFERENCE.match(password):
        raise UsageError(
            f"{shown_location(text)}: a secret in a location can be seen by every user",
            hint="write env:NAME, file:PATH or cmd:COMMAND for the password, or use the password settings",
        )


def shown_location(text: str) -> str:
    """`text` as errors may show it: a URL without its user part, a command without its arguments, no password."""
    shown = re.sub(r"(?is)^(imaps?:/*|[a-z0-9+.-]*://).*@", r"\1...@", text)
    if re.match(r"(?i)imaps?:", shown) and not re.match(
        r"(?i)imaps?://(\.\.\.@)?(\[[^\]]*\]|[^/?#:]*)(:[0-9]{1,5})?([/?#]|$)", shown
    ):
        return f"{shown.partition(':')[0]}:..."
    if match := re.match(r"(?is)(tunnel:\s*[^\s'\"\\]*)(.*)", shown):  # arguments may be secrets
        return match[1] + (" ..." if match[2].strip() else "")
    return re.sub(r"(?is)^(imaps?:[^?]*\?)(?!tls=[a-z]*$).*", r"\1...", shown)


def _check_scheme(scheme: str, colon: str, shown: str) -> None:
    if colon and scheme in SCHEMES:
        return
    if colon and re.fullmatch("[a-z0-9+.-]+", scheme):
        hint = nearest(scheme, SCHEMES) or f"there are {_list(SCHEMES)}"
        raise ConfigurationError(f"{shown}: unknown scheme {scheme}:", hint=hint)
    raise ConfigurationError(f"{shown}: a location begins with its scheme", hint=f"such as maildir:{shown}")


def _list(schemes: tuple[str, ...]) -> str:
    return ", ".join(f"{scheme}:" for scheme in schemes if scheme != "memory")


def _path(part: str, expanded: Expanded, variables: Variables, shown: str) -> str:
    """`part` as an absolute path: `~/` is the home of the user, `~name/` that of a system user."""
    path = expanded.fill(part)
    if "\0" in path:
        raise UserError(f"user {variables.user!r}: a NUL in the path of {shown}")
    # Only the template's author may go up: a user name or domain ".." would reach into others' mail.
    if path.split("/").count("..") > expanded.shape(part).split("/").count(".."):
        raise UserError(f"user {variables.user!r}: a variable puts '..' into the path of {shown}")
    if part.startswith("~"):
        name, slash, below = path[1:].partition("/")
        path = (_system_home(name, shown) if name else variables.find_home()) + slash + below
    path = re.sub("/+", "/", path)
    if not path.startswith("/"):
        path = os.path.join(os.getcwd(), path)
    return path.rstrip("/") or "/"


def _system_home(name: str, shown: str) -> str:
    home = system_home(name)
    if home is None:
        raise NoSuchUser(f"{shown}: there is no system user {name!r}")
    return home


def system_home(name: str) -> str | None:
    """Home of the system user `name`; None when there is none."""
    import pwd

    try:
        return pwd.getpwnam(name).pw_dir
    except (KeyError, ValueError):
        return None


def _option(scheme: str, text: str, expanded: Expanded, variables: Variables, shown: str) -> tuple[str, str] | None:
    """A key with its value, by its name of 2.3; None for a switch of 2.4 that is off."""
    written, _, part = text.partition("=")
    written = expanded.fill(written)
    key = SETTING_KEYS.get(written, written)
    own = tuple(key for key, schemes in OWN_KEYS.items() if scheme in schemes)
    if key not in KEYS and key not in own:
        hint = nearest(written, (*KEYS, *own, *SETTING_KEYS))
        raise ConfigurationError(f"{shown}: unknown key {written!r}", hint=hint)
    value = expanded.fill(part)
    if key in _SWITCHES and written != key:
        if value.lower() not in ("yes", "no"):
            raise ConfigurationError(f"{shown}: {written} is yes or no, not {value!r}")
        return (key, "") if value.lower() == "yes" else None
    if key == "LAYOUT" and value.lower() not in (layout.lower() for layout in LAYOUTS):
        hint = nearest(value, LAYOUTS) or f"there are {', '.join(LAYOUTS)}"
        raise ConfigurationError(f"{shown}: unknown LAYOUT {value!r}", hint=hint)
    if key in ("BROKENCHAR", "ESCAPECHAR") and len(value) != 1:
        raise ConfigurationError(f"{shown}: {written} is one character, not {value!r}")
    if key in PATH_KEYS and value and not (key == "INDEX" and value == "MEMORY"):
        value = _path(part, expanded, variables, shown)
    return key, value


def _percent_decoded(text: str) -> str:
    """RFC 3986 §2.1, octets are UTF-8.

    Raises:
        ValueError: a `%` without two hex digits, or octets that are not UTF-8.
    """
    octets = text.encode("utf-8", "surrogateescape")
    if re.search(rb"%(?![0-9A-Fa-f]{2})", octets):
        raise ValueError("a % without two hex digits")
    return re.sub(rb"%(..)", lambda match: bytes.fromhex(match[1].decode("ascii")), octets).decode("utf-8")


class _Url:
    """An IMAP URL (RFC 5092 §2) of one user, taken apart with its variables closed."""

    def __init__(self, expanded: Expanded, shown: str, variables: Variables, side: Side, settings: Settings) -> None:
        self.expanded = expanded
        self.shown = shown
        self.variables = variables
        self.side = side
        self.settings = settings

    def parse(self, scheme: str, rest: str) -> Endpoint:
        if not rest.startswith("//"):
            raise self.error("a URL has // after its scheme", hint=f"such as {scheme}://mail.example.org/")
        match = re.fullmatch(r"([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?", rest[2:], re.DOTALL)
        if match is None:
            raise self.error("has a # part")
        authority, path, query = match[1], match[2] or "/", match[3] or ""
        if path != "/":
            raise self.error("names a mailbox", hint="choose mailboxes with MAILBOX in the query")
        security = self.security(scheme, query)
        userinfo, _, hostport = authority.rpartition("@")
        host, port = self.host_and_port(hostport, _PORTS[security])
        account, _, password = userinfo.partition(":")
        user, auth = self.user_and_auth(account)
        secret = parse_secret(self.decoded(password), "argument", name=self.shown) if password else None
        endpoint = Endpoint(scheme="imap", host=host, port=port, security=security, auth=auth)
        return _with_login(endpoint, user, secret, self.variables, self.side, self.settings)

    def error(self, what: str, *, hint: str = "", part: str = "") -> ConfigurationError | UserError:
        """A mistake; when variables have a share in `part`, of this user alone."""
        if self.expanded.is_literal(part):
            return ConfigurationError(f"{self.shown}: {what}", hint=hint)
        return UserError(f"user {self.variables.user!r}: {self.shown}: {what}", hint=hint)

    def decoded(self, part: str) -> str:
        try:
            return self.expanded.fill(part, literal=_percent_decoded)
        except ValueError:
            raise self.error("a bad % sequence", hint="%%40 writes an @, %%25 a %") from None

    def security(self, scheme: str, query: str) -> Security:
        for option in filter(None, query.split("&")):
            name, _, value = option.partition("=")
            if name != "tls" or value != "off" or scheme != "imap":
                hint = "imap://HOST/?tls=off is the only one"
                raise self.error(f"unknown option {self.expanded.fill(name)!r} after the ?", hint=hint)
            return "none"
        return "tls" if scheme == "imaps" else "starttls"

    def host_and_port(self, text: str, default: int) -> tuple[str, int]:
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", text, re.DOTALL)
        if match is None:
            raise self.error("a host that is not right", part=text)
        host, port = self.decoded(match[1]), self.decoded(match[2] or "")
        if not _HOST.fullmatch(host):
            raise self.error("a host that is not right" if host else "has no host", part=match[1])
        if port and not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
            raise self.error("the port is not a number from 1 to 65535", part=match[2])
        return host.strip("[]").lower(), int(port) if port else default

    def user_and_auth(self, text: str) -> tuple[str, str]:
        match = re.fullmatch(r"(.*?)(?:;AUTH=(.*))?", text, re.DOTALL | re.IGNORECASE)
        assert match is not None  # every part may be empty
        auth = self.decoded(match[2] or "").lower()
        if auth not in ("", "*", *AUTH_MECHANISMS):
            raise self.error("unknown mechanism after ;AUTH=", hint=f"there are {', '.join(AUTH_MECHANISMS)}")
        return self.decoded(match[1]), auth.replace("*", "")


def _imapc(variables: Variables, side: Side, settings: Settings) -> Endpoint:
    host = expand(settings.imapc_host, variables)
    if not host:
        raise ConfigurationError("imapc: has no host", hint="set imapc_host")
    if not _HOST.fullmatch(host) and not _HOST.fullmatch(f"[{host}]"):
        raise (UserError if "%" in settings.imapc_host else ConfigurationError)(f"imapc_host: {host!r} is not a host")
    security = _IMAPC_SECURITY[settings.imapc_ssl]
    endpoint = Endpoint(
        scheme="imap",
        host=host.strip("[]").lower(),
        port=settings.imapc_port or _PORTS[security],
        security=security,
    )
    user = expand(settings.imapc_user, variables)
    return _with_login(endpoint, user, None, variables, side, settings, imapc=True)


def _tunnel(
    command: str, expanded: Expanded, shown: str, variables: Variables, side: Side, settings: Settings
) -> Endpoint:
    """Words as a shell splits them, before a value is put in: a value stays in its word, whatever it holds."""
    try:
        parts = shlex.split(command)
    except ValueError:
        raise ConfigurationError(f"{shown}: a quote without its end") from None
    words = tuple(map(expanded.fill, parts))
    if not words or not words[0]:
        raise ConfigurationError(f"{shown}: has no command", hint="such as tunnel:doveadm exec imap -u %u")
    for part, word in zip(parts, words, strict=True):
        if "\0" in word:
            raise UserError(f"user {variables.user!r}: a NUL in the command of {shown}")
        # A user name `-oProxyCommand=...` would be an option of ssh.
        if word.startswith("-") and not expanded.shape(part).startswith("-"):
            raise UserError(f"user {variables.user!r}: a variable makes an option in the command of {shown}")
    if any(os.path.basename(word) in REMOTE_SHELLS for word in words):
        for value in expanded.values:
            if shlex.quote(value) != value:
                raise UserError(
                    f"user {variables.user!r}: a variable holds what the remote shell of ssh would take as its own",
                    hint="import this user by another way",
                )
    endpoint = _with_login(
        Endpoint(scheme="tunnel", command=words, security="none"), "", None, variables, side, settings
    )
    if endpoint.secret is None and all(map(expanded.is_literal, parts)):
        return replace(endpoint, user="")  # whatever the user, it is the same account
    return endpoint


def _with_login(
    endpoint: Endpoint,
    user: str,
    secret: Secret | None,
    variables: Variables,
    side: Side,
    settings: Settings,
    *,
    imapc: bool = False,
) -> Endpoint:
    """`endpoint` with who logs in and how; `user` and `secret` as far as the location itself says."""
    prefix = "source" if side == "source" else "dest"
    its_user: str = getattr(settings, f"{prefix}_user")
    password: Secret | None = getattr(settings, f"{prefix}_password")
    master: str = getattr(settings, f"{prefix}_master_user")
    master_password: Secret | None = getattr(settings, f"{prefix}_master_password")
    its_auth: str = getattr(settings, f"{prefix}_auth")
    tunnel = endpoint.scheme == "tunnel"
    its_ca: str = "" if tunnel else getattr(settings, f"{prefix}_tls_ca")
    its_cert: str = "" if tunnel else getattr(settings, f"{prefix}_tls_cert")
    if imapc:  # Dovecot has one password: the master user's when there is one
        password = settings.imapc_password or password
        master, master_password = settings.imapc_master_user or master, settings.imapc_password or master_password
    login = expand(master, variables)
    user = user or expand(its_user, variables) or variables.user
    if re.search(r"[\0\r\n]", user + login):
        raise UserError(f"user {variables.user!r}: a control character in the log-in name")
    secret = secret or (master_password if login else password)
    auth = endpoint.auth or its_auth
    by_certificate = auth == "external" or (its_cert and not auth)
    if secret is None and not by_certificate and not tunnel:
        setting = "imapc_password" if imapc else f"{prefix}_{'master_' if login else ''}password"
        raise ConfigurationError(f"{endpoint.host}: no password to log in {login or user!r}", hint=f"set {setting}")
    return replace(
        endpoint,
        user=user,
        login=login,
        secret=_for_user(secret, variables),
        auth=auth,
        tls_ca=expand(its_ca, variables),
        tls_cert=expand(its_cert, variables),
        profile=getattr(settings, f"{prefix}_profile") or settings.profile,
        compress=getattr(settings, f"{prefix}_compress"),
        daily_octets=getattr(settings, f"{prefix}_daily_bytes"),
        trust_search=side == "source" and settings.trust_server_search,
    )


def _for_user(secret: Secret | None, variables: Variables) -> Secret | None:
    """A reference with its variables expanded; a literal secret is taken as it stands."""
    if secret is None or secret.kind == "literal" or "%" not in secret.text:
        return secret
    expanded = expand_parts(secret.text, variables, shown=f"{secret.kind}: reference")
    text = expanded.text
    if secret.kind != "cmd":
        return Secret(kind=secret.kind, text=expanded.fill(text))
    # Split into words first, then variables: a user name with a blank or a quote stays in its word.
    try:
        words = shlex.split(text)
    except ValueError:
        raise ConfigurationError("cmd: reference: a quote without its end") from None
    return Secret(kind="cmd", text=shlex.join(expanded.fill(word) for word in words))
