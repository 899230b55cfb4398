"""A real Cyrus on a free loopback port, private to the test run.

Any name logs in with any password (`alwaystrue`), and `admin` may act for everyone by SASL
PLAIN with an authorization identity. A user needs an INBOX before the first login is of
use: `create_user`, through an admin session. Cyrus is the strict server of the three: it
refuses NUL octets, bare newlines and headers with eight-bit octets.
"""

from __future__ import annotations

import imaplib
import os
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
    descendants,
    free_ports,
    program_name,
    server_folder,
    server_owner,
    stop,
    tail,
    wait_for_greeting,
)

IMAPD_CONF: Final = """\
configdirectory: {base}
partition-default: {mail_root}
defaultpartition: default
proc_path: {base}/proc
mboxname_lockpath: {base}/lock
lmtpsocket: {base}/socket/lmtp
idlesocket: {base}/socket/idle
notifysocket: {base}/socket/notify
cyrus_user: {user}
cyrus_group: {group}
servername: localhost
admins: {admin}
allowplaintext: yes
{sasl}
failedloginpause: 0
virtdomains: userid
defaultdomain: localhost.localdomain
unixhierarchysep: {slash}
altnamespace: {altnamespace}
autocreate_quota: -1
tls_server_cert: {base}/server.pem
tls_server_key: {base}/server.pem
tls_session_timeout: 0
sync_log: 0
{extra}
"""

ANY_PASSWORD: Final = "sasl_pwcheck_method: alwaystrue\nsasl_mech_list: PLAIN LOGIN"

CYRUS_CONF: Final = """\
START {{
  recover cmd="{bin}/ctl_cyrusdb -C {config} -r"
}}
SERVICES {{
  imap cmd="{bin}/imapd -C {config}" listen="127.0.0.1:{port}" prefork=0
  imaps cmd="{bin}/imapd -C {config} -s" listen="127.0.0.1:{tls_port}" prefork=0
}}
EVENTS {{
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cyrus:
    """A running Cyrus: where it listens and who may log in."""

    host: str
    port: int  # plain, offers STARTTLS
    tls_port: int  # TLS from the first octet
    ca_file: Path
    password: str = field(repr=False)  # any other would do
    admin: str  # may act for every user: SASL PLAIN with an authorization identity
    separator: str
    mail_root: Path
    pid: int
    owner: Owner
    version: str
    log: Path
    program: Path = field(repr=False)
    config: Path = field(repr=False)
    env: Mapping[str, str] = field(repr=False)

    @property
    def exec_command(self) -> list[str]:
        """IMAP on a pipe, the command of a `tunnel:` location. It greets as on a port: one has to log in.

        `-X` is undocumented; the two variables are what the master would set (3.6, seen).
        """
        settings = {**self.env, "CYRUS_SERVICE": "imap", "CYRUS_ID": "1"}
        drop = ["setpriv", f"--reuid={self.owner.uid}", f"--regid={self.owner.gid}", "--clear-groups"]
        as_owner = drop if os.geteuid() == 0 else []
        words = [f"{name}={value}" for name, value in settings.items()]
        return ["env", "-i", *words, *as_owner, str(self.program), "-C", str(self.config), "-X"]

    def create_user(self, user: str, *mailboxes: str) -> str:
        """Give a user an INBOX, and more mailboxes below it; hands the name back."""
        name, at, domain = user.partition("@")
        with imaplib.IMAP4(self.host, self.port) as session:
            session.login(self.admin, self.password)
            for mailbox in ("", *mailboxes):
                path = self.separator.join(filter(None, ("user", name, mailbox)))
                status, words = session.create(f'"{path}{at}{domain}"')
                if status != "OK":
                    raise AssertionError(f"CREATE {path}{at}{domain}: {words!r}")
        return user

    def imap_session_pids(self) -> list[int]:
        """The processes that serve clients, some of them idle."""
        return [pid for pid in descendants(self.pid) if program_name(pid) == "imapd"]


@contextmanager
def run_cyrus(
    directory: Path | None = None,
    *,
    separator: str = "/",
    altnamespace: bool = True,
    sasl: str = ANY_PASSWORD,
    extra: str = "",
) -> Iterator[Cyrus]:
    """Run a Cyrus for as long as the context lasts.

    `altnamespace` False puts mailboxes below INBOX. `sasl` and `extra` are lines of imapd.conf,
    which may hold no setting twice.

    Raises:
        servers.CannotGet: it is not unpacked here.
        ServerDidNotStart: it does not answer; Cyrus tells its reasons to syslog only.
    """
    unpacked = servers.find("cyrus")
    owner = server_owner()
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder("cyrus")) if directory is None else directory
        root = owner.reachable(unpacked.root, "usr/lib/cyrus/bin/master", stack)
        base, mail_root = folder / "run", folder / "mail"
        for path in (folder, base, mail_root, *(base / name for name in ("proc", "lock", "socket", "db", "log"))):
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, owner.uid, owner.gid)
        authority = trustme.CA()
        ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        certificate = base / "server.pem"
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        certificate.chmod(0o600)
        os.chown(certificate, owner.uid, owner.gid)
        plugins = next(root.glob("usr/lib/*/sasl2"), None)
        env = {**unpacked.environment(root), "HOME": str(folder), **({"SASL_PATH": str(plugins)} if plugins else {})}
        log = folder / "cyrus.log"
        port, tls_port = free_ports(2)
        config = folder / "imapd.conf"
        config.write_text(
            IMAPD_CONF.format(
                base=base,
                mail_root=mail_root,
                user=owner.name,
                group=owner.group,
                admin="admin",
                slash="yes" if separator == "/" else "no",
                altnamespace="yes" if altnamespace else "no",
                sasl=sasl,
                extra=extra,
            )
        )
        services = folder / "cyrus.conf"
        binaries = root / "usr/lib/cyrus/bin"
        services.write_text(CYRUS_CONF.format(bin=binaries, config=config, port=port, tls_port=tls_port))
        process = owner.start(
            [binaries / "master", "-C", config, "-M", services, "-p", base / "master.pid", "-D"], env=env, log=log
        )
        try:
            wait_for_greeting(port, [log], process)
            yield Cyrus(
                host="127.0.0.1",
                port=port,
                tls_port=tls_port,
                ca_file=ca_file,
                password="any",
                admin="admin",
                separator=separator,
                mail_root=mail_root,
                pid=process.pid,
                owner=owner,
                version=unpacked.version,
                log=log,
                program=binaries / "imapd",
                config=config,
                env=env,
            )
        except BaseException as failure:
            failure.add_note(tail([log]))
            raise
        finally:
            stop(process.pid)
            process.wait()


@pytest.fixture(scope="session")
def cyrus() -> Iterator[Cyrus]:
    """One Cyrus for all tests; a user of its own (`unique_user`, `create_user`) keeps each apart."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(run_cyrus())
        except servers.CannotGet as reason:
            pytest.skip(str(reason))
        yield server
