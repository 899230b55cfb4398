"""The contenders: each a whole command as an operator would type it, at its best documented settings.

Nobody uses TLS, everybody keeps internal dates (but `cp`), nobody is asked for less
durability than its default. What is not the same for all is in `CARRIES`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

from bench import scenarios as named
from bench.corpus import Corpus, message_files
from bench.measure import Command
from bench.scenarios import Kind, Route
from bench.servers import Reach, Side, Site, count
from tests import servers
from tests.fix_cyrus import Cyrus
from tests.fix_dovecot import Dovecot
from tests.processes import Owner

Role = Literal["ours", "peer", "floor"]
PASSWORDS: Final[tuple[tuple[str, Side], ...]] = (("BENCH_SOURCE", "source"), ("BENCH_DEST", "destination"))
CARRIES: Final = (
    "aimport and doveadm import carry octets, flags, keywords and dates; mbsync adds a header (X-TUID) to each message "
    "and carries dates and system flags, of the keywords only $Forwarded; cp carries octets and file names. aimport "
    "keeps a journal and syncs a batch before it is called committed; doveadm import and mbsync sync each message; cp "
    "syncs once; imaplib and aioimaplib carry all and keep nothing. A floor is no importer: it moves octets that were "
    "ready before the clock ran, or drops them."
)
# What Dovecot's documentation advises for migrations; with the defaults doveadm import takes twice as long.
IMAPC: Final = ("imapc_features=rfc822.size fetch-headers", "mail_prefetch_count=20")
MBSYNC: Final = """\
{far}

{near}

Channel all
Far :far:
Near :near:
Patterns * INBOX
Sync Pull New
Create Near
CopyArrivalDate yes
SyncState {state}/
"""
MAILDIR_STORE: Final = """\
MaildirStore {name}
Inbox {maildir}
SubFolders Maildir++"""
IMAP_STORE: Final = """\
IMAPStore {name}
Host {host}
Port {port}
User {user}
Pass {password}
AuthMechs LOGIN
{tls}
Timeout 300"""
OFFLINEIMAP_RC: Final = """\
[general]
accounts = all
metadata = {state}
ui = quiet
fsync = True
[Account all]
localrepository = near
remoterepository = far
[Repository near]
{near}
[Repository far]
{far}
"""
OFFLINEIMAP_MAILDIR: Final = """\
type = Maildir
localfolders = {maildir}
sep = .
nametrans = lambda name: 'INBOX' if name in ('', '.') else name.removeprefix('.')
"""
"""Maildir++: the INBOX at the root, everything else behind a dot."""
OFFLINEIMAP_SERVER: Final = """\
type = IMAP
remotehost = {host}
remoteport = {port}
remoteuser = {user}
remotepass = {password}
auth_mechanisms = LOGIN
nametrans = lambda name: '' if name == 'INBOX' else '.' + name
{tls}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One contender's turn: its own accounts on both sides and a folder for what it writes beside mail."""

    site: Site
    route: Route
    corpus: Corpus
    users: tuple[str, ...]
    """Names of this trial, one for each account of the corpus."""
    folder: Path
    options: tuple[str, ...] = ()
    """Of aimport, in every contender that is aimport."""

    @property
    def source(self) -> Kind:
        return kinds(self.route)[0]

    @property
    def destination(self) -> Kind:
        return kinds(self.route)[1]

    def kind(self, side: Side) -> Kind:
        return self.source if side == "source" else self.destination

    def maildir(self, side: Side, user: str) -> Path:
        root = self.site.source_root if side == "source" else self.site.destination_root
        return root / user / "Maildir"

    def store(self, user: str) -> Path:
        """The source of a user where it is no server: a Maildir or another local store."""
        name = "Maildir" if self.source in ("maildir", "imap") else self.source
        return self.site.source_root / user / name

    def originals(self) -> list[str]:
        """USER=MAILDIR: the mail as it was generated, whatever the source has made of it."""
        pairs = zip(self.users, self.corpus.accounts, strict=True)
        return [f"{user}={self.corpus.root / account}" for user, account in pairs]

    def arrived(self) -> int:
        """The messages at the destination: files of a Maildir, else what the server says."""
        if self.destination == "maildir":
            return sum(len(message_files(self.maildir("destination", user))) for user in self.users)
        server = self.site.destination
        assert server is not None, "a path with IMAP runs only where its server does"
        return sum(count(server, user) for user in self.users)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A name and how to make its commands, `at_once` of which run at the same time."""

    name: str
    commands: Callable[[Trial], list[Command]]
    at_once: int = 1
    wants: Callable[[Site, Route], str]  # why it cannot take part, or nothing
    role: Role = "peer"
    again: Callable[[Trial], list[Command]] | None = None
    """What is typed for a second run that has nothing to do; None: it would copy everything once more."""
    stores: bool = True
    """False: nothing arrives anywhere, it says itself how many messages it has seen."""

    def left_out(self, site: Site, route: Route, *, again: bool = False) -> str:
        """Why this contender has no part in `route` at `site`; empty when it has."""
        if {"imap", "mbox", "sdbox", "mdbox"} & set(kinds(route)) and site.no_server:
            return site.no_server
        if again and self.again is None:
            return "a second run would copy everything once more"
        return self.wants(site, route)

    def held_against(self, route: Route) -> str:
        """The aimport whose work is the same as this contender's."""
        if route != "maildir-maildir":
            return named.AIMPORT
        links = self.name in (named.DOVEADM_LINKED, named.FLOOR_LINK)
        return named.AIMPORT_LINKED if links else named.AIMPORT_COPIED


def aimport(*options: str) -> Callable[[Trial], list[Command]]:
    """One process for all users, everything but `options` at its defaults."""
    return lambda trial: _aimport_commands(trial, options)


def _aimport_linked(trial: Trial) -> list[Command]:
    """As an operator who is root would: with the rights of the owner of the mail, so that links may be made."""
    owner = trial.site.owner
    named_owner = ("-o", f"mail_uid={owner.uid}", "-o", f"mail_gid={owner.gid}")
    rights = named_owner if os.geteuid() == 0 else ()
    return _aimport_commands(trial, (), before=rights)


def _aimport_plain(trial: Trial) -> list[Command]:
    """Without the COMPRESS of the scenario."""
    return _aimport_commands(trial, (), compress="no")


def _aimport_commands(
    trial: Trial, options: Sequence[str], *, before: Sequence[str] = (), compress: str = "yes"
) -> list[Command]:
    site, words = trial.site, [sys.executable, "-m", "aimport", *before]
    user_list = trial.folder / "users.csv"
    user_list.write_text("user\n" + "".join(f"{user}\n" for user in trial.users))
    locations = {}
    sides: tuple[tuple[str, Side, Path], ...] = (
        ("source", "source", site.source_root),
        ("dest", "destination", site.destination_root),
    )
    for setting, side, root in sides:
        kind = trial.kind(side)
        if kind != "imap":
            locations[side] = f"{kind}:{root}/%u/{'Maildir' if kind == 'maildir' else kind}"
            continue
        reach = site.reach(side)
        words += ["-o", f"{setting}_password=env:BENCH_{setting.upper()}"]
        locations[side] = f"imap://{reach.host}:{reach.port}/?tls=off"
        if reach.ca_file is not None:
            locations[side] = f"imaps://{reach.host}:{reach.port}/"
            words += ["-o", f"{setting}_tls_ca={reach.ca_file}"]
        if site.between.compress:
            words += ["-o", f"{setting}_compress={compress}"]
    words += ["import", "-F", str(user_list), "--to", locations["destination"], "--progress", "none", "--json"]
    words += [*trial.options, *options, locations["source"], "", "ALL"]
    return [Command(argv=tuple(words), owner=us(), env=_aimport_env(trial))]


def _aimport_env(trial: Trial) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(servers.ROOT),
        "HOME": str(trial.folder),
        "XDG_STATE_HOME": str(trial.folder / "state"),
        **{name: trial.site.reach(side).password for name, side in PASSWORDS if trial.kind(side) == "imap"},
    }


def _aimport_again(trial: Trial) -> list[Command]:
    """`resume` of the one run there is."""
    [run] = [path.name for path in (trial.folder / "state" / "aimport").iterdir() if (path / "run.json").exists()]
    argv = (sys.executable, "-m", "aimport", "resume", "--progress", "none", "--json", run)
    return [Command(argv=argv, owner=us(), env=_aimport_env(trial))]


def _doveadm(*options: str, verb: Sequence[str] = ("import",)) -> Callable[[Trial], list[Command]]:
    """One process for each user: it opens one source a process and expands no variables in it."""

    def commands(trial: Trial) -> list[Command]:
        site = trial.site
        server = site.dovecot
        assert server is not None, "it takes part only where Dovecot does"
        settings = list(options)
        # The running server's settings: reading its file would take an installed `doveconf`.
        base = [str(server.program), "-c", str(server.config.parent / "run" / "config")]
        if trial.source == "imap":
            reach = site.reach("source")
            settings += [*IMAPC, f"imapc_host={reach.host}", f"imapc_port={reach.port}"]
            settings += [f"imapc_password={reach.password}"]
            if reach.ca_file is not None:
                settings += ["imapc_ssl=imaps", f"ssl_client_ca_file={reach.ca_file}"]
                _lend_modules(server, trial)
        made = []
        for user in trial.users:
            location = "imapc:" if trial.source == "imap" else f"{trial.source}:{trial.store(user)}"
            own = [*settings, f"imapc_user={user}"] if trial.source == "imap" else settings
            words = [word for setting in own for word in ("-o", setting)]
            query = ("", "ALL") if verb[0] == "import" else ()
            argv = (*base, *words, verb[0], "-u", user, *verb[1:], location, *query)
            made.append(Command(argv=argv, owner=server.owner, env=server.env))
        return made

    return commands


def _lend_modules(server: Dovecot, trial: Trial) -> None:
    """Unpacked, doveadm looks for its TLS where it stands: in the user's home."""
    for user in trial.users:
        home = server.home(user)
        home.mkdir()
        (home / "modules").symlink_to(server.config.parent / "run" / "modules")
        server.own(home)


def _mbsync(trial: Trial) -> list[Command]:
    """One process for each user, each with a configuration of its own."""
    isync = trial.site.isync
    assert isync is not None
    word = "SSLType" if isync.version.startswith(("1.3", "1.4")) else "TLSType"

    def store(name: str, side: Side, user: str) -> str:
        if trial.kind(side) == "maildir":
            return MAILDIR_STORE.format(name=name, maildir=trial.maildir(side, user))
        reach = trial.site.reach(side)
        tls = f"{word} None" if reach.ca_file is None else f"{word} IMAPS\nCertificateFile {reach.ca_file}"
        return IMAP_STORE.format(
            name=name, host=reach.host, port=reach.port, user=user, password=reach.password, tls=tls
        )

    made = []
    for user in trial.users:
        state = trial.folder / user
        state.mkdir(exist_ok=True)
        if trial.destination == "maildir":
            trial.maildir("destination", user).parent.mkdir(exist_ok=True)
        config = trial.folder / f"{user}.rc"
        far, near = store("far", "source", user), store("near", "destination", user)
        config.write_text(MBSYNC.format(far=far, near=near, state=state))
        env = {**isync.environment(), "HOME": str(trial.folder)}
        argv = (isync.path("usr/bin/mbsync"), "-c", config, "-q", "-a")
        made.append(Command(argv=argv, owner=us(), env=env))
    return made


def _offlineimap(trial: Trial) -> list[Command]:
    """One process for each user. It knows a local side and a server, and synchronises both ways."""
    program = _offlineimap_program()
    assert program is not None
    server: Side = "source" if trial.source == "imap" else "destination"
    local: Side = "destination" if server == "source" else "source"
    reach = trial.site.reach(server)
    tls = "ssl = no\nstarttls = no" if reach.ca_file is None else f"ssl = yes\nsslcacertfile = {reach.ca_file}"
    made = []
    for user in trial.users:
        if local == "destination":
            trial.maildir(local, user).parent.mkdir(exist_ok=True)
        far = OFFLINEIMAP_SERVER.format(host=reach.host, port=reach.port, user=user, password=reach.password, tls=tls)
        near = OFFLINEIMAP_MAILDIR.format(maildir=trial.maildir(local, user))
        config = trial.folder / f"{user}.offlineimaprc"
        config.write_text(OFFLINEIMAP_RC.format(state=trial.folder / user, near=near, far=far))
        env = {"PATH": os.environ["PATH"], "HOME": str(trial.folder)}
        made.append(Command(argv=(program, "-o", "-c", str(config)), owner=us(), env=env))
    return made


def _imapsync(trial: Trial) -> list[Command]:
    """One process for each user, as its documentation advises for two servers of one operator."""
    program = shutil.which("imapsync")
    assert program is not None
    source, destination = trial.site.reach("source"), trial.site.reach("destination")
    made = []
    for user in trial.users:
        words: list[str] = []
        for number, reach in ((1, source), (2, destination)):
            words += [f"--host{number}", reach.host, f"--port{number}", str(reach.port), f"--user{number}", user]
            words += [f"--password{number}", reach.password]
            words += [f"--ssl{number}"] if reach.ca_file else [f"--nossl{number}", f"--notls{number}"]
        env = {"PATH": os.environ["PATH"], "HOME": str(trial.folder)}
        argv = (program, *words, "--nolog", "--noreleasecheck", "--nofoldersizes", "--syncinternaldates")
        made.append(Command(argv=argv, owner=us(), env=env))
    return made


def _cp(trial: Trial) -> list[Command]:
    """What the disk and the kernel take for the same files."""
    homes = [str(trial.maildir("source", user).parent) for user in trial.users]
    script = 'to=$1; shift; cp -r -- "$@" "$to" && sync -f "$to"'
    argv = ("sh", "-c", script, "sh", str(trial.site.destination_root), *homes)
    return [Command(argv=argv, owner=us(), env={"PATH": os.environ["PATH"]})]


def _floor(trial: Trial) -> list[Command]:
    """The same octets, ready in memory before the clock runs."""
    reach = trial.site.reach("destination")
    words = ("-m", "bench.floor", "--port", str(reach.port), "--at-once", "4", *_ca(reach))
    return [_python(*words, *trial.originals(), password=reach.password, prepares=True)]


def _floor_fetch(trial: Trial) -> list[Command]:
    reach = trial.site.reach("source")
    words = ("-m", "bench.floors", "fetch", "--port", str(reach.port), *_ca(reach))
    return [_python(*words, *trial.users, password=reach.password, prepares=True)]


def _floor_write(trial: Trial) -> list[Command]:
    words = ("-m", "bench.floors", "write", "--into", str(trial.site.destination_root))
    return [_python(*words, *trial.originals(), prepares=True)]


def _floor_link(trial: Trial) -> list[Command]:
    words = ("-m", "bench.floors", "link", "--into", str(trial.site.destination_root))
    return [_python(*words, *trial.originals(), prepares=True)]


def _imaplib(trial: Trial) -> list[Command]:
    """One command, in it a process for each user."""
    return _copier(trial, "bench.baseline")


def _aioimaplib(trial: Trial) -> list[Command]:
    """One command, in it a task for each user."""
    return _copier(trial, "bench.aioimaplib_copy")


def _copier(trial: Trial, module: str) -> list[Command]:
    source, destination = trial.site.reach("source"), trial.site.reach("destination")
    words = ("-m", module, str(source.port), str(destination.port), *_ca(source))
    return [_python(*words, *trial.users, password=source.password)]


def _ca(reach: Reach) -> tuple[str, ...]:
    return () if reach.ca_file is None else ("--ca", str(reach.ca_file))


def _python(*words: str, password: str = "", prepares: bool = False) -> Command:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(servers.ROOT), "BENCH_PASSWORD": password}
    return Command(argv=(sys.executable, *words), owner=us(), env=env, prepares=prepares)


def _offlineimap_program() -> str | None:
    return shutil.which("offlineimap") or shutil.which("offlineimap3")


def kinds(route: Route) -> tuple[Kind, Kind]:
    """Of source and destination."""
    source, destination = route.split("-")
    return cast(Kind, source), cast(Kind, destination)


def _takes_part(_: Site, __: Route) -> str:
    return ""


def _wants_compress(site: Site, _: Route) -> str:
    return "" if site.between.compress else "only where aimport compresses"


def _wants_doveadm(site: Site, route: Route) -> str:
    if route.endswith("-imap"):
        return "writes into local storage only, it has no remote destination"
    return "" if site.dovecot is not None else site.no_server or "the destination is no Dovecot"


def _wants_links(site: Site, route: Route) -> str:
    return _wants_two_maildirs(site, route) or _wants_doveadm(site, route)


def _wants_two_maildirs(_: Site, route: Route) -> str:
    return "" if route == "maildir-maildir" else "links or copies files, so Maildir to Maildir only"


def _wants_maildir_to_imap(_: Site, route: Route) -> str:
    return "" if route == "maildir-imap" else "Maildir to IMAP only"


def _wants_to_append(site: Site, route: Route) -> str:
    if not route.endswith("-imap"):
        return "to IMAP only"
    multiappend = isinstance(site.destination, Dovecot | Cyrus)
    return "" if multiappend or site.no_server else "the destination has no MULTIAPPEND and no LITERAL+"


def _wants_to_fetch(_: Site, route: Route) -> str:
    return "" if route.startswith("imap-") else "from IMAP only"


def _wants_to_write(_: Site, route: Route) -> str:
    return "" if route.endswith("-maildir") else "to Maildir only"


def _wants_two_servers(_: Site, route: Route) -> str:
    return "" if route == "imap-imap" else "IMAP to IMAP only"


def _wants_isync(site: Site, route: Route) -> str:
    if not {*kinds(route)} <= {"maildir", "imap"}:
        return "knows Maildir and IMAP"
    return site.no_isync


def _wants_offlineimap(_: Site, route: Route) -> str:
    if route not in ("maildir-imap", "imap-maildir"):
        return "a Maildir on one side, IMAP on the other"
    return "" if _offlineimap_program() else "offlineimap is not installed"


def _wants_imapsync(_: Site, route: Route) -> str:
    if route != "imap-imap":
        return "IMAP to IMAP only"
    return "" if shutil.which("imapsync") else "imapsync is not installed"


_COPIED: Final = _doveadm("maildir_copy_with_hardlinks=no")
_UNSYNCED: Final = _doveadm("maildir_copy_with_hardlinks=no", "mail_fsync=never")
_BACKUP: Final = _doveadm(verb=("backup", "-R"))
CONTENDERS: Final = (
    Contender(name=named.AIMPORT, commands=aimport(), wants=_takes_part, role="ours", again=_aimport_again),
    Contender(name=named.AIMPORT_4, commands=aimport("--users", "4"), wants=_wants_maildir_to_imap, role="ours"),
    Contender(name=named.AIMPORT_COPIED, commands=aimport("--no-link"), wants=_wants_two_maildirs, role="ours"),
    Contender(name=named.AIMPORT_LINKED, commands=_aimport_linked, wants=_wants_two_maildirs, role="ours"),
    Contender(name=named.AIMPORT_PLAIN, commands=_aimport_plain, wants=_wants_compress),
    Contender(name=named.FLOOR, commands=_floor, wants=_wants_to_append, role="floor"),
    Contender(name=named.FLOOR_FETCH, commands=_floor_fetch, wants=_wants_to_fetch, role="floor", stores=False),
    Contender(name=named.FLOOR_WRITE, commands=_floor_write, wants=_wants_to_write, role="floor"),
    Contender(name=named.FLOOR_LINK, commands=_floor_link, wants=_wants_two_maildirs, role="floor"),
    Contender(name=named.CP, commands=_cp, wants=_wants_two_maildirs, role="floor"),
    Contender(name=named.DOVEADM_1, commands=_COPIED, wants=_wants_doveadm),
    Contender(name=named.DOVEADM_2, commands=_COPIED, at_once=2, wants=_wants_doveadm),
    Contender(name=named.DOVEADM_4, commands=_COPIED, at_once=4, wants=_wants_doveadm),
    Contender(name=named.DOVEADM_NEVER, commands=_UNSYNCED, at_once=4, wants=_wants_doveadm),
    Contender(name=named.DOVEADM_LINKED, commands=_doveadm(), at_once=2, wants=_wants_links),
    Contender(name=named.BACKUP_4, commands=_BACKUP, at_once=4, wants=_wants_doveadm, again=_BACKUP),
    Contender(name=named.MBSYNC_1, commands=_mbsync, wants=_wants_isync, again=_mbsync),
    Contender(name=named.MBSYNC_4, commands=_mbsync, at_once=4, wants=_wants_isync, again=_mbsync),
    Contender(name=named.OFFLINEIMAP, commands=_offlineimap, wants=_wants_offlineimap, again=_offlineimap),
    Contender(name=named.IMAPSYNC, commands=_imapsync, at_once=4, wants=_wants_imapsync, again=_imapsync),
    Contender(name=named.IMAPLIB, commands=_imaplib, wants=_wants_two_servers),
    Contender(name=named.AIOIMAPLIB, commands=_aioimaplib, wants=_wants_two_servers),
)


def us() -> Owner:
    """Whoever runs the bench, root too: as an operator would."""
    entry = pwd.getpwuid(os.geteuid())
    return Owner(name=entry.pw_name, group=str(entry.pw_gid), uid=entry.pw_uid, gid=entry.pw_gid)
