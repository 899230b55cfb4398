"""The forms of user lists, as data: what tools that move mail write down, column by column. Pure.

A form with `columns` has a header, whose names are compared without case, blanks and signs; one with `rows` has none,
and is known by the shape of its lines. What needs more than a table (`special`, `structured`, `trees`) is here by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aimport.lists.rows import PASSED_OVER

Meanings = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form. `separator` "" is blanks."""

    name: str
    about: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of a header, bare, to meanings."""
    required: frozenset[str] = frozenset()
    """Meanings whose columns make a header one of this form, where the form is not named."""
    rows: tuple[Meanings, ...] = ()
    """What cells without a header mean, by their number; a last empty cell is none."""
    separator: str = ","
    quoted: bool = True
    """Cells may stand in quotes. imapsync's loop takes a quote as it stands."""
    by_shape: bool = True
    """Lines of this shape are of this form. False: it must be named, since the shape says too little."""


def bare(name: str) -> str:
    """A column's name without case, blanks and signs."""
    return re.sub("[^a-z0-9]", "", name.lower())


def _columns(text: str) -> dict[str, str]:
    """`name=meaning` words; `a,b=meaning` for two names of one."""
    found = {}
    for word in text.split():
        names, _, meaning = word.partition("=")
        for name in names.split(","):
            found[bare(name)] = meaning
    return found


PAIRS: Final = _columns(
    "user,email,emailaddress,mail,mailbox,account,login,username,userid=user password,pass,passwd,pw,pwd=password "
    "parent,folder=parent migrate,enabled,active=wanted"
)
_SIDE_NAMES: Final = {
    "source": ("source", "src", "old", "from", "origin", "left"),
    "dest": ("dest", "dst", "destination", "target", "new", "to", "right"),
}
_FIELD_NAMES: Final = {
    "host": ("host", "server", "hostname", "imaphost", "imapserver", "imap"),
    "port": ("port", "imapport"),
    "security": ("security", "ssl", "tls", "encryption"),
    "email": ("email", "mail", "mailbox", "emailaddress"),
    "user": ("user", "username", "login", "loginname", "userid", "account", "imapuser", "imapuserid"),
    "password": ("password", "pass", "passwd", "pw", "pwd", "imappassword", "imappasswd", "secret"),
}
for _side, _names in _SIDE_NAMES.items():
    for _what, _fields in _FIELD_NAMES.items():
        for _field in _fields:
            PAIRS.update((f"{_name}{_field}", f"{_side}.{_what}") for _name in _names)
            PAIRS[f"{_field}{1 if _side == 'source' else 2}"] = f"{_side}.{_what}"

_SOURCE_AND_DEST: Final = frozenset({"source.user", "dest.user"})

FORMS: Final = (
    Form(name="csv", about="the canonical list: a header with the column user"),
    Form(name="plain", about="one name a line (doveadm -F)"),
    Form(
        name="imapsync",
        about="host1;user1;password1;host2;user2;password2; and options for the line",
        rows=(
            ("source.host", "source.user", "source.password", "dest.host", "dest.user", "dest.password"),
            ("source.host", "source.user", "source.password", "dest.host", "dest.user", "dest.password", "options"),
        ),
        separator=";",
        quoted=False,
    ),
    Form(
        name="imapsync-users",
        about="user1;password1;user2;password2 (the hosts are SOURCE and --to)",
        rows=(("source.user", "source.password", "dest.user", "dest.password"),),
        separator=";",
        quoted=False,
    ),
    Form(
        name="blanks",
        about="user1 password1 user2 password2, with blanks between",
        rows=(("source.user", "source.password", "dest.user", "dest.password"),),
        separator="",
    ),
    Form(
        name="imapcp",
        about="server1 user1 password1 root1 server2 user2 password2 root2, with blanks between",
        rows=(
            (
                *("source.host", "source.user", "source.password", "source.root"),
                *("dest.host", "dest.user", "dest.password", "dest.root"),
            ),
        ),
        separator="",
    ),
    Form(
        name="mailferry",
        about="MailFerry: srchost,srcport,srcsecurity,srcuser,...",
        columns=_columns(
            "srchost=source.host srcport=source.port srcsecurity=source.security srcuser=source.user "
            "srcpassword=source.password dsthost=dest.host dstport=dest.port dstsecurity=dest.security "
            "dstuser=dest.user dstpassword=dest.password"
        ),
        required=_SOURCE_AND_DEST | {"source.host", "source.security", "dest.host", "dest.security"},
    ),
    Form(
        name="migrationwiz",
        about="BitTitan MigrationWiz: Source Email,Source Login Name,...",
        columns=_columns(
            "sourceemail=source.email sourceloginname=source.user sourcepassword=source.password "
            "destinationemail=dest.email destinationloginname=dest.user destinationpassword=dest.password flags=!"
        ),
        required=frozenset({"source.email", "dest.email"}),
    ),
    Form(
        name="imap-migrator",
        about="vialink/imap-migrator: source_email,source_user,source_pass,source_host,dest_email,...",
        columns=_columns(
            "source_email=source.email source_user=source.user source_pass=source.password source_host=source.host "
            "dest_email=dest.email dest_user=dest.user dest_pass=dest.password dest_host=dest.host"
        ),
        required=_SOURCE_AND_DEST | {"source.host", "dest.host"},
    ),
    Form(
        name="mundofy",
        about="Mundofy MailMigrator: SourceUser,SourcePassword,DestUser,DestPassword; SourceEmail,DestEmail; Mailbox",
        columns=_columns(
            "SourceUser,SourceEmail,Source,User,Email,Mailbox=source.user "
            "SourcePassword,SourcePass,Password,Pass=source.password "
            "DestUser,DestEmail,Dest,TargetUser,TargetEmail=dest.user "
            "DestPassword,DestPass,TargetPassword,TargetPass=dest.password"
        ),
        required=_SOURCE_AND_DEST,
        rows=(
            ("source.email", "dest.email"),
            ("source.email", "source.password", "dest.email", "dest.password"),
        ),
    ),
    Form(
        name="exchange",
        about="Exchange and Microsoft 365 (IMAP): EmailAddress,UserName,Password",
        columns=_columns("EmailAddress=dest.email UserName=source.user Password=source.password UserRoot=!"),
        required=frozenset({"dest.email", "source.user", "source.password"}),
    ),
    Form(
        name="exchange-old",
        about="the older Exchange wizard: IMAP_Mailbox,IMAP_Password,SMTP_Address,IMAP_Server,...",
        columns=_columns(
            "IMAP_Mailbox=source.user IMAP_Password=source.password SMTP_Address=dest.email IMAP_Server=source.host "
            "Ex_Mailbox=- IMAP_Port=source.port IMAP_SSL=source.security"
        ),
        required=frozenset({"source.user", "dest.email", "source.host"}),
    ),
    Form(
        name="transend",
        about="Transend: name, source e-mail[, password], target e-mail[, password]",
        columns=_columns(
            "name,username=- sourceemail,sourceemailaddress=source.email sourcepw,sourcepassword=source.password "
            "targetemail,targetemailaddress=dest.email targetpw,targetpassword=dest.password"
        ),
        required=frozenset({PASSED_OVER, "source.email", "dest.email"}),
        rows=(
            (PASSED_OVER, "source.email", "dest.email"),
            (PASSED_OVER, "source.email", "source.password", "dest.email", "dest.password"),
        ),
    ),
    Form(
        name="cloudm",
        about="CloudM: Migrate,ExportName,ImportName and what else it has",
        columns=_columns(
            "Migrate=wanted ExportName=source.email ImportName=dest.email Password=source.password "
            "MigrateMail=wanted-mail "
            "ExportObjectType,ImportObjectType,GivenName,FamilyName,ArchivePath,DocumentsPath=- "
            "MigrateContacts,MigrateCalendar,MigrateDrive,MigrateSites,MigrateTasks,ExportObjectRef,ImportObjectRef=-"
        ),
        required=frozenset({"wanted", "source.email", "dest.email"}),
    ),
    Form(
        name="yandex",
        about="Yandex 360: email;password;new_login;new_password, quoted",
        columns=_columns(
            "email,login=source.email password=source.password new_login=dest.user new_password=dest.password "
            "first_name,last_name,middle_name,new_first_name,new_last_name,new_middle_name,gender,birthday,language=-"
        ),
        required=frozenset({"source.email", "source.password", "dest.user"}),
        separator=";",
    ),
    Form(
        name="ispmanager",
        about="ispmanager: email,password",
        columns=_columns("email=user password=password"),
        required=frozenset({"user", "password"}),
        rows=(("account", "password"),),
    ),
    Form(
        name="kerio",
        about="Kerio: user@domain;password;Full Name",
        rows=(("account", "password", PASSED_OVER),),
        separator=";",
    ),
    Form(
        name="hestia",
        about="server;account@domain;password;",
        rows=(("source.host", "source.email", "source.password"),),
        separator=";",
    ),
    Form(
        name="artica",
        about="Artica: account;password;[ssl:]server[;userid]",
        rows=(("dest.user", "source.password", "artica"), ("dest.user", "source.password", "artica", "source.user")),
        separator=";",
    ),
    Form(
        name="apps-migrator",
        about="imap-apps-migrator: login,password,username/label",
        rows=(("source.user", "source.password", "label"),),
        by_shape=False,
    ),
    Form(
        name="virtualmin",
        about="Virtualmin batch: username:realname:password:...",
        rows=tuple(("user", PASSED_OVER, "password", *(PASSED_OVER,) * more) for more in range(7)),
        separator=":",
        quoted=False,
        by_shape=False,
    ),
    Form(name="pairs", about="a header whose names say side and field: oldhost,olduser,oldpwd,...", columns=PAIRS),
    Form(name="gamme", about="GAMME and GWMME: user#password[, target]"),
    Form(name="imapcopy", about="ImapCopy.cfg of Armin Diehl's imapcopy and of Mundofy"),
    Form(name="passwd", about="a Dovecot passwd-file: user:password:uid:gid:(gecos):home:(shell):extra fields"),
    Form(name="json", about="JSON: an object a line, or a list of them, by field names"),
    Form(name="toml", about="TOML: a table [[users]] for each, by field names"),
    Form(name="cpanel", about="a directory: a home of cPanel (etc/DOMAIN/passwd, mail/DOMAIN/NAME), or one of them"),
    Form(name="mbox-tree", about="a directory: USER@DOMAIN/LABEL.mbox, USER@DOMAIN/LABEL/SUB.mbox"),
)
NAMES: Final = tuple(form.name for form in FORMS)
BY_NAME: Final = {form.name: form for form in FORMS}

_HOST = re.compile(
    r"(?:(?:imaps?|ssl)://)?(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|localhost|\[[0-9A-Fa-f:.]+\])(?::\d+)?/?"
)
_ADDRESS = re.compile(r"[^\s@#,;:]+@[^\s@#,;:]+")
_SHAPES: Final = {
    "host": _HOST,
    "email": _ADDRESS,
    "account": _ADDRESS,
    "user": re.compile(r"(?!ssl:)[^\s,;]+(?: [^\s,;]+)*"),
    "artica": re.compile(rf"(?:ssl:)?{_HOST.pattern}"),
}


def fits(meanings: Sequence[str], cells: Sequence[str]) -> bool:
    """Whether cells look like what they would mean."""
    for meaning, cell in zip(meanings, cells, strict=True):
        what = meaning.rpartition(".")[2]
        # So many cells are of no other form; a host of the documentation has no dot.
        shape = _SHAPES.get("user" if what == "host" and len(cells) >= 6 else what)
        if shape is not None and shape.fullmatch(cell.strip()) is None:
            return False
        if what == "password" and not cell and len(cells) == 4:
            return False
        if meaning == "options" and cell.strip() and not cell.strip().startswith("-"):
            return False
    return True


def of_header(names: Sequence[str], separator: str) -> list[Form]:
    """The forms that have such a header."""
    found = []
    bares = [bare(name) for name in names]
    for form in FORMS:
        meanings = [form.columns.get(name) for name in bares]
        known = form.columns and None not in meanings and form.required <= set(meanings)
        if known and (form.name != "yandex" or separator == form.separator):
            found.append(form)
    return found
