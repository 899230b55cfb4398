"""The contenders: each a whole command as an operator would type it, at its best documented settings.

Nobody uses TLS, everybody keeps internal dates (but `cp`), nobody is asked for less
durability than its default. What is not the same for all is in `CARRIES`.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from bench.corpus import message_files
from bench.measure import Command
from bench.servers import Site, count
from tests import servers
from tests.fix_dovecot import Dovecot
from tests.processes import Owner

Kind = Literal["maildir", "imap"]
Route = Literal["maildir-imap", "imap-maildir", "imap-imap", "maildir-maildir"]
ROUTES: Final[tuple[Route, ...]] = get_args(Route)

AIMPORT: Final = "aimport"
AIMPORT_4: Final = "aimport, --users 4"
FLOOR: Final = "floor: prebuilt MULTIAPPEND, 4 users at a time"
DOVEADM_4: Final = "doveadm import, 4 at a time"
MBSYNC_4: Final = "mbsync, 4 at a time"
IMAPLIB: Final = "imaplib, one connection a user"
CARRIES: Final = (
    "aimport and doveadm import carry octets, flags, keywords and dates; mbsync adds a header (X-TUID) to each message "
    "and carries dates and system flags, of the keywords only $Forwarded; cp carries octets and file names. aimport "
    "keeps a journal and syncs a batch before it is called committed; doveadm import and mbsync sync each message; cp "
    "syncs once; the floor and imaplib carry all and keep nothing."
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
{tls} None
Timeout 300"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One contender's turn: its own accounts on both sides and a folder for what it writes beside mail."""

    site: Site
    route: Route
    users: tuple[str, ...]
    folder: Path

    @property
    def source(self) -> Kind:
        return "maildir" if self.route.startswith("maildir-") else "imap"

    @property
    def destination(self) -> Kind:
        return "maildir" if self.route.endswith("-maildir") else "imap"

    def maildir(self, side: Literal["source", "destination"], user: str) -> Path:
        root = self.site.source_root if side == "source" else self.site.destination_root
        return root / user / "Maildir"

    def arrived(self) -> int:
        """The messages at the destination: files of a Maildir, else what the server says."""
        if self.destination == "maildir":
            return sum(len(message_files(self.maildir("destination", user))) for user in self.users)
        server = _running(self.site.destination)
        return sum(count(server, user) for user in self.users)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A name and how to make its commands, `at_once` of which run at the same time."""

    name: str
    commands: Callable[[Trial], list[Command]]
    at_once: int = 1
    wants: Callable[[Site, Route], str]  # why it cannot take part, or nothing

    def left_out(self, site: Site, route: Route) -> str:
        """Why this contender has no part in `route` at `site`; empty when it has."""
        if "imap" in route and site.no_dovecot:
            return site.no_dovecot
        return self.wants(site, route)


def aimport(*options: str) -> Callable[[Trial], list[Command]]:
    """One process for all users, everything but `options` at its defaults."""
    return lambda trial: _aimport_commands(trial, options)


def _aimport_commands(trial: Trial, options: Sequence[str]) -> list[Command]:
    site, words = trial.site, [sys.executable, "-m", "aimport"]
    user_list = trial.folder / "users.csv"
    user_list.write_text("user\n" + "".join(f"{user}\n" for user in trial.users))
    locations = {}
    for side, kind, server, root in (
        ("source", trial.source, site.source, site.source_root),
        ("dest", trial.destination, site.destination, site.destination_root),
    ):
        locations[side] = f"maildir:{root}/%u/Maildir"
        if kind == "imap":
            locations[side] = f"imap://127.0.0.1:{_running(server).port}/?tls=off"
            words += ["-o", f"{side}_password=env:BENCH_PASSWORD"]
    words += ["import", "-F", str(user_list), "--to", locations["dest"], "--progress", "none", "--json", *options]
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(servers.ROOT),
        "HOME": str(trial.folder),
        "XDG_STATE_HOME": str(trial.folder / "state"),
        "BENCH_PASSWORD": site.source.password if site.source else "",
    }
    return [Command(argv=(*words, locations["source"], "", "ALL"), owner=us(), env=env)]


def _doveadm(*options: str) -> Callable[[Trial], list[Command]]:
    """One process for each user: it opens one source a process and expands no variables in it."""

    def commands(trial: Trial) -> list[Command]:
        site = trial.site
        server = _running(site.destination)
        settings = list(options)
        if trial.source == "imap":
            origin = _running(site.source)
            settings += [*IMAPC, f"imapc_host={origin.host}", f"imapc_port={origin.port}"]
            settings += [f"imapc_password={origin.password}"]
        # The running server's settings: reading its file would take an installed `doveconf`.
        base = [str(server.program), "-c", str(server.config.parent / "run" / "config")]
        made = []
        for user in trial.users:
            location = "imapc:" if trial.source == "imap" else f"maildir:{trial.maildir('source', user)}"
            own = [*settings, f"imapc_user={user}"] if trial.source == "imap" else settings
            words = [word for setting in own for word in ("-o", setting)]
            argv = (*base, *words, "import", "-u", user, location, "", "ALL")
            made.append(Command(argv=argv, owner=server.owner, env=server.env))
        return made

    return commands


def _mbsync(trial: Trial) -> list[Command]:
    """One process for each user, each with a configuration of its own."""
    site = trial.site
    isync = site.isync
    assert isync is not None
    tls = "SSLType" if isync.version.startswith(("1.3", "1.4")) else "TLSType"

    def store(name: str, kind: Kind, user: str) -> str:
        side: Literal["source", "destination"] = "source" if name == "far" else "destination"
        if kind == "maildir":
            return MAILDIR_STORE.format(name=name, maildir=trial.maildir(side, user))
        server = _running(site.source if side == "source" else site.destination)
        return IMAP_STORE.format(
            name=name, host=server.host, port=server.port, user=user, password=server.password, tls=tls
        )

    made = []
    for user in trial.users:
        state = trial.folder / user
        state.mkdir()
        if trial.destination == "maildir":
            trial.maildir("destination", user).parent.mkdir()
        config = trial.folder / f"{user}.rc"
        far, near = store("far", trial.source, user), store("near", trial.destination, user)
        config.write_text(MBSYNC.format(far=far, near=near, state=state))
        env = {**isync.environment(), "HOME": str(trial.folder)}
        argv = (isync.path("usr/bin/mbsync"), "-c", config, "-q", "-a")
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
    server = _running(trial.site.destination)
    words = ("-m", "bench.floor", "--port", str(server.port), "--at-once", "4", str(trial.site.source_root))
    return [_python(*words, *trial.users, password=server.password, prepares=True)]


def _imaplib(trial: Trial) -> list[Command]:
    """One command, in it a process for each user."""
    source, destination = _running(trial.site.source), _running(trial.site.destination)
    words = ("-m", "bench.baseline", str(source.port), str(destination.port))
    return [_python(*words, *trial.users, password=source.password)]


def _python(*words: str, password: str, prepares: bool = False) -> Command:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(servers.ROOT), "BENCH_PASSWORD": password}
    return Command(argv=(sys.executable, *words), owner=us(), env=env, prepares=prepares)


def _takes_part(_: Site, __: Route) -> str:
    return ""


def _wants_doveadm(site: Site, route: Route) -> str:
    if route.endswith("-imap"):
        return "writes into local storage only, it has no remote destination"
    return site.no_dovecot


def _wants_links(site: Site, route: Route) -> str:
    return _wants_two_maildirs(site, route) or site.no_dovecot


def _wants_two_maildirs(_: Site, route: Route) -> str:
    return "" if route == "maildir-maildir" else "links or copies files, so Maildir to Maildir only"


def _wants_maildir_to_imap(_: Site, route: Route) -> str:
    return "" if route == "maildir-imap" else "Maildir to IMAP only"


def _wants_two_servers(_: Site, route: Route) -> str:
    return "" if route == "imap-imap" else "IMAP to IMAP only"


def _wants_isync(site: Site, _: Route) -> str:
    return site.no_isync


_COPIED: Final = _doveadm("maildir_copy_with_hardlinks=no")
CONTENDERS: Final = (
    Contender(name=AIMPORT, commands=aimport(), wants=_takes_part),
    Contender(name=AIMPORT_4, commands=aimport("--users", "4"), wants=_wants_maildir_to_imap),
    Contender(name=FLOOR, commands=_floor, wants=_wants_maildir_to_imap),
    Contender(name="doveadm import, 1 at a time", commands=_COPIED, wants=_wants_doveadm),
    Contender(name="doveadm import, 2 at a time", commands=_COPIED, at_once=2, wants=_wants_doveadm),
    Contender(name=DOVEADM_4, commands=_COPIED, at_once=4, wants=_wants_doveadm),
    Contender(name="doveadm import, 2 at a time, hard links", commands=_doveadm(), at_once=2, wants=_wants_links),
    Contender(name="mbsync, 1 at a time", commands=_mbsync, wants=_wants_isync),
    Contender(name=MBSYNC_4, commands=_mbsync, at_once=4, wants=_wants_isync),
    Contender(name=IMAPLIB, commands=_imaplib, wants=_wants_two_servers),
    Contender(name="cp -r and sync", commands=_cp, wants=_wants_two_maildirs),
)


def us() -> Owner:
    """Whoever runs the bench, root too: as an operator would."""
    entry = pwd.getpwuid(os.geteuid())
    return Owner(name=entry.pw_name, group=str(entry.pw_gid), uid=entry.pw_uid, gid=entry.pw_gid)


def _running(server: Dovecot | None) -> Dovecot:
    assert server is not None, "a route with IMAP runs only where Dovecot does"
    return server
