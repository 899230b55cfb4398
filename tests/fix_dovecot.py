"""A real Dovecot on free loopback ports, private to the test run.

    test ──IMAP, STARTTLS──▶ port ┐
         ──IMAP over TLS───▶ tls_port ├─ dovecot (nobody) ─▶ mail_root/USER/Maildir
         ──pipe────────────▶ exec_command ┘

Any user name exists and has the same password; a home comes into being with its first
message. Nothing is shared with an installed Dovecot: no configuration, no user, no port.
Written for the configuration of Dovecot 2.3.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import trustme

from tests import servers
from tests.processes import (
    Owner,
    ServerDidNotStart,
    descendants,
    free_ports,
    program_name,
    server_folder,
    server_owner,
    stop,
    tail,
    wait_for_greeting,
    wait_until_gone,
)

# doveadm wants `-u USER` after the whole name of a command; these names have more than one word.
TWO_WORDS: Final = frozenset({"acl", "auth", "dict", "exec", "flags", "fts", "log", "mailbox", "quota", "service"})
THREE_WORDS: Final = frozenset({("mailbox", "metadata"), ("mailbox", "cache"), ("mailbox", "cryptokey")})

WITH_COMPRESS: Final = "protocol imap {\n  mail_plugins = imap_zlib\n}"
"""Lines for `run_dovecot(extra=...)`: COMPRESS=DEFLATE is offered."""

CONFIGURATION: Final = """
protocols = imap
listen = 127.0.0.1
base_dir = {base}
state_dir = {base}/state
log_path = {log}
log_timestamp = "%Y-%m-%d %H:%M:%S "
libexec_dir = {root}/usr/lib/dovecot
mail_plugin_dir = {root}/usr/lib/dovecot/modules
default_login_user = {user}
default_internal_user = {user}
default_internal_group = {group}
default_client_limit = 5000
default_process_limit = 2000
import_environment = TZ LD_LIBRARY_PATH
first_valid_uid = 1
first_valid_gid = 1
mail_uid = {user}
mail_gid = {group}
mail_location = {mail_location}
mail_fsync = {mail_fsync}
mail_max_userip_connections = 1000
mail_plugins = {plugins}
auth_master_user_separator = *
auth_mechanisms = plain login
auth_failure_delay = 0
disable_plaintext_auth = no
ssl = yes
ssl_cert = <{base}/server.pem
ssl_key = <{base}/server.pem
ssl_dh =
submission_host =
protocol imap {{
  mail_plugins = {imap_plugins}
}}
passdb {{
  driver = static
  master = yes
  args = password={master_password} user={master_user}
  username_filter = {master_user}
}}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={mail_root}/%u allow_all_users=yes
}}
{namespace}
service imap-login {{
  chroot =
  service_count = 0
  process_min_avail = 1
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
    ssl = yes
  }}
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  unix_listener auth-userdb {{
    mode = 0666
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
{quota}
{extra}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dovecot:
    """A running Dovecot: where it listens, who may log in, where it keeps mail."""

    host: str
    port: int  # plain, offers STARTTLS
    tls_port: int  # TLS from the first octet
    ca_file: Path
    names: tuple[str, ...]  # what the certificate says: the name and the address
    password: str = field(repr=False)
    master_user: str
    master_password: str = field(repr=False)
    mail_root: Path
    config: Path
    log: Path
    owner: Owner
    version: str
    program: Path = field(repr=False)
    env: Mapping[str, str] = field(repr=False)

    def home(self, user: str) -> Path:
        """A user's home, which need not exist."""
        return self.mail_root / user

    def maildir(self, user: str) -> Path:
        """A user's Maildir, which need not exist; true for the default `mail_location`."""
        return self.home(user) / "Maildir"

    def master_login(self, user: str) -> str:
        """The name to log in with as `user` by the master's password."""
        return f"{user}*{self.master_user}"

    def doveadm(self, *args: str, user: str | None = None, stdin: bytes = b"", timeout_s: float = 60) -> str:
        """Run this server's doveadm; `user` becomes `-u USER` behind the command's name.

        Raises:
            subprocess.CalledProcessError: it did not end with 0; `stderr` has its words.
        """
        done = self.try_doveadm(*args, user=user, stdin=stdin, timeout_s=timeout_s)
        if done.returncode != 0:
            failure = subprocess.CalledProcessError(done.returncode, ["doveadm", *args], done.stdout, done.stderr)
            failure.add_note(done.stderr.decode(errors="replace"))
            raise failure
        return done.stdout.decode()

    def try_doveadm(
        self, *args: str, user: str | None = None, stdin: bytes = b"", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """As `doveadm`, but any exit code is an answer."""
        words = list(args)
        if user is not None:
            at = 3 if tuple(words[:2]) in THREE_WORDS else 2 if words[0] in TWO_WORDS else 1
            words[at:at] = ["-u", user]
        return self.owner.run(
            [self.program, "-c", self._settings, *words], env=self.env, stdin=stdin, timeout_s=timeout_s
        )

    @property
    def exec_command(self) -> list[str]:
        """PREAUTH IMAP on a pipe, `%u` for the user: the command of a `tunnel:` location."""
        # `doveadm exec` does not pass its -c on.
        settings = [f"{name}={value}" for name, value in {**self.env, "CONFIG_FILE": str(self._settings)}.items()]
        return ["env", "-i", *settings, str(self.program), "-c", str(self._settings), "exec", "imap", "-u", "%u"]

    @property
    def _settings(self) -> Path:
        """The running server's own answer to what is configured: reading a file takes an installed `doveconf`."""
        return self.config.parent / "run" / "config"

    @property
    def master_pid(self) -> int:
        """The process that all others of this instance come from."""
        return int((self.config.parent / "run" / "master.pid").read_text())

    def imap_session_pids(self) -> list[int]:
        """The processes that serve logged-in clients: kill one to lose a connection in the middle."""
        return [pid for pid in descendants(self.master_pid) if program_name(pid) == "imap"]

    def kill_session(self, pid: int, number: int = signal.SIGKILL) -> None:
        """End one session process and wait until it is gone, as a crash of the server would.

        Raises:
            ValueError: it is none of this server's sessions.
        """
        if pid not in self.imap_session_pids():
            raise ValueError(f"{pid} is no session of this server")
        os.kill(pid, number)
        wait_until_gone([pid])

    def own(self, path: Path) -> None:
        """Let this server write what a test, as root, has put into `mail_root`."""
        self.owner.own(path)

    def logs(self) -> str:
        """The end of its log."""
        return tail([self.log])


@contextmanager
def run_dovecot(
    directory: Path | None = None,
    *,
    mail_location: str = "maildir:~/Maildir",
    separator: str | None = "/",
    mail_fsync: str = "optimized",
    quota: str | None = None,
    plugins: str = "",
    extra: str = "",
    password: str = "pass",
    master_user: str = "master",
    master_password: str = "master-pass",
    mail_root: Path | None = None,
) -> Iterator[Dovecot]:
    """Run a Dovecot for as long as the context lasts; any number of them side by side.

    `directory` is kept and must be reachable for `nobody` when root runs this; without one
    it is temporary. `separator` None leaves the namespace to Dovecot's default. `quota` is
    the first rule of a count quota, e.g. `*:storage=1M`. `extra` are configuration lines.

    Raises:
        servers.CannotGet: it is not unpacked here, or not a version that this file knows.
        ServerDidNotStart: with its log.
    """
    unpacked = servers.find("dovecot")
    if not unpacked.version.startswith("2.3."):
        raise servers.CannotGet(f"dovecot: version {unpacked.version} has another form of configuration than 2.3")
    owner = server_owner()
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder("dovecot")) if directory is None else directory
        root = owner.reachable(unpacked.root, "usr/sbin/dovecot", stack)
        base = folder / "run"
        mail = mail_root or folder / "mail"
        for path in (folder, base, mail):
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, owner.uid, owner.gid)
        link = base / "modules"
        link.unlink(missing_ok=True)
        link.symlink_to(root / "usr/lib/dovecot/modules")
        names = ("localhost", "127.0.0.1")
        authority = trustme.CA()
        ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(str(base / "server.pem"))
        (base / "server.pem").chmod(0o600)
        (folder / "tmp").mkdir(exist_ok=True)
        env = {
            **unpacked.environment(root),
            "HOME": str(folder),
        }
        log = folder / "dovecot.log"
        log.touch()
        all_plugins = " ".join(filter(None, (plugins, "quota" if quota else "")))
        for path in (log, base / "server.pem", folder / "tmp"):
            os.chown(path, owner.uid, owner.gid)
        config = folder / "dovecot.conf"
        for attempt in range(3):
            port, tls_port = free_ports(2)
            config.write_text(
                CONFIGURATION.format(
                    base=base,
                    log=log,
                    root=root,
                    user=owner.name,
                    group=owner.group,
                    mail_location=mail_location,
                    mail_fsync=mail_fsync,
                    mail_root=mail,
                    plugins=all_plugins,
                    imap_plugins=f"{all_plugins} imap_quota" if quota else all_plugins,
                    password=password,
                    master_user=master_user,
                    master_password=master_password,
                    port=port,
                    tls_port=tls_port,
                    namespace=_namespace(separator),
                    quota=_quota(quota),
                    extra=extra,
                )
            )
            server = Dovecot(
                host="127.0.0.1",
                port=port,
                tls_port=tls_port,
                ca_file=ca_file,
                names=names,
                password=password,
                master_user=master_user,
                master_password=master_password,
                mail_root=mail,
                config=config,
                log=log,
                owner=owner,
                version=unpacked.version,
                program=root / "usr/bin/doveadm",
                env=env,
            )
            # Alone, dovecot would look for `doveconf` in its installed place.
            doveconf: list[str | Path] = [root / "usr/bin/doveconf", "-c", config, "-m", "master", "-e"]
            process = owner.start([*doveconf, root / "usr/sbin/dovecot", "-F", "-c", config], env=env, log=log)
            try:
                wait_for_greeting(port, [log], process)
            except ServerDidNotStart as failure:
                stop(process.pid)
                process.wait()
                # Another process was faster with one of the ports.
                if "Address already in use" in str(failure) and attempt < 2:
                    continue
                raise
            break
        try:
            yield server
        finally:
            stop(process.pid)
            process.wait()


def _namespace(separator: str | None) -> str:
    if separator is None:
        return ""
    return f"namespace inbox {{\n  inbox = yes\n  prefix =\n  separator = {separator}\n}}"


def _quota(rule: str | None) -> str:
    if rule is None:
        return ""
    return f"plugin {{\n  quota = count:User quota\n  quota_vsizes = yes\n  quota_rule = {rule}\n}}"


@pytest.fixture(scope="session")
def dovecot() -> Iterator[Dovecot]:
    """One Dovecot for all tests; take a user name of your own (`unique_user`) and nothing collides."""
    yield from _or_skip()


@pytest.fixture(scope="module")
def dovecot_with_compress() -> Iterator[Dovecot]:
    """Dovecot offers COMPRESS only with its plug-in."""
    yield from _or_skip(WITH_COMPRESS)


@pytest.fixture(scope="session")
def dovecot_with_dbox() -> Iterator[Dovecot]:
    """Users of the domain `sdbox` have their mail in `sdbox:~/sdbox`, those of `mdbox` in `mdbox:~/mdbox`."""
    yield from _or_skip(mail_location="%d:~/%d")


def _or_skip(extra: str = "", mail_location: str = "maildir:~/Maildir") -> Iterator[Dovecot]:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(run_dovecot(extra=extra, mail_location=mail_location))
        except servers.CannotGet as reason:
            pytest.skip(str(reason))
        yield server
