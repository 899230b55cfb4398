"""What is measured, as a table: mail, paths, what lies between client and servers, who takes part, about how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from aimport import sample

Kind = Literal["maildir", "imap", "mbox", "sdbox", "mdbox"]
Route = Literal[
    "maildir-imap",
    "imap-maildir",
    "imap-imap",
    "maildir-maildir",
    "mbox-imap",
    "sdbox-imap",
    "mdbox-imap",
    "mbox-maildir",
    "sdbox-maildir",
    "mdbox-maildir",
]
ROUTES: Final[tuple[Route, ...]] = get_args(Route)
FOUR: Final[tuple[Route, ...]] = ("maildir-imap", "imap-maildir", "imap-imap", "maildir-maildir")
OVER_IMAP: Final[tuple[Route, ...]] = ("maildir-imap", "imap-maildir", "imap-imap")
ServerName = Literal["dovecot", "cyrus", "courier"]

KIB: Final = 1024
MIB: Final = 1024 * KIB
MEDIAN_OCTETS: Final = 12 * KIB  # sigma 1.2 makes the mean about twice that, as in real accounts

AIMPORT: Final = "aimport"
AIMPORT_4: Final = "aimport, --users 4"
AIMPORT_COPIED: Final = "aimport, --no-link"
AIMPORT_LINKED: Final = "aimport, hard links"
AIMPORT_PLAIN: Final = "aimport, no COMPRESS"
FLOOR: Final = "floor: prebuilt MULTIAPPEND, 4 users at a time"
FLOOR_FETCH: Final = "floor: FETCH to a sink, 4 users at a time"
FLOOR_WRITE: Final = "floor: write and syncfs"
FLOOR_LINK: Final = "floor: hard links and syncfs"
DOVEADM_1: Final = "doveadm import, 1 at a time"
DOVEADM_2: Final = "doveadm import, 2 at a time"
DOVEADM_4: Final = "doveadm import, 4 at a time"
DOVEADM_NEVER: Final = "doveadm import, 4 at a time, fsync never"
DOVEADM_LINKED: Final = "doveadm import, 2 at a time, hard links"
BACKUP_4: Final = "doveadm backup, 4 at a time"
MBSYNC_1: Final = "mbsync, 1 at a time"
MBSYNC_4: Final = "mbsync, 4 at a time"
OFFLINEIMAP: Final = "offlineimap3, 1 at a time"
IMAPSYNC: Final = "imapsync, 4 at a time"
IMAPLIB: Final = "imaplib, one connection a user"
AIOIMAPLIB: Final = "aioimaplib, one connection a user"
CP: Final = "cp -r and sync"

OURS: Final = (AIMPORT, AIMPORT_4, AIMPORT_COPIED, AIMPORT_LINKED)
FLOORS: Final = (FLOOR, FLOOR_FETCH, FLOOR_WRITE, FLOOR_LINK)
FAST: Final = (*OURS, *FLOORS, DOVEADM_4, DOVEADM_LINKED, MBSYNC_4, IMAPLIB, CP)
"""The best of each kind: what a scenario is held against that is not `median`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """What is generated: so many accounts with so many messages each, log-normal in size."""

    users: int
    messages: int
    median_octets: int = MEDIAN_OCTETS
    sigma: float = 1.2
    mailboxes: tuple[tuple[str, ...], ...] = sample.MAILBOXES

    def scaled(self, by: float) -> Mail:
        """The same kind of mail, less or more of it: fewer messages first, then fewer users."""
        messages = max(1, round(self.messages * by))
        users = max(2, round(self.users * by)) if self.users > 20 else self.users
        return Mail(
            users=users,
            messages=messages,
            median_octets=self.median_octets,
            sigma=self.sigma,
            mailboxes=self.mailboxes[: max(2, round(len(self.mailboxes) * min(1.0, by * 4)))],
        )

    def __str__(self) -> str:
        size = f"{self.median_octets // MIB} MiB" if self.median_octets >= MIB else f"{self.median_octets // KIB} KiB"
        spread = f"log-normal with a median of {size}" if self.sigma else f"of {size} each"
        return f"{self.users} users x {self.messages} messages, {spread}, {len(self.mailboxes)} mailboxes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """What lies between the client and each server. Rates in octets a second."""

    round_trip_ms: float = 0.0
    rate: float | None = None
    rate_each: float | None = None
    tls: bool = False
    compress: bool = False

    @property
    def is_link(self) -> bool:
        """There is more than the loopback device."""
        return bool(self.round_trip_ms or self.rate or self.rate_each)

    @property
    def is_closed(self) -> bool:
        """What passes cannot be read."""
        return self.tls or self.compress

    def __str__(self) -> str:
        parts = [
            f"round trip {self.round_trip_ms:g} ms" if self.round_trip_ms else "",
            f"{self.rate / MIB:g} MiB/s in all" if self.rate else "",
            f"{self.rate_each / MIB:g} MiB/s a connection" if self.rate_each else "",
            "TLS" if self.tls else "no TLS",
            "COMPRESS" if self.compress else "",
        ]
        return ", ".join(filter(None, parts if self.is_link else ["loopback", *parts]))


LOOPBACK: Final = Between()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row. `contenders`: only these take part; none named: all that can. `again`: timed is a second, idle run."""

    name: str
    what: str
    mail: Mail
    routes: tuple[Route, ...] = FOUR
    between: Between = LOOPBACK
    server: ServerName = "dovecot"
    contenders: tuple[str, ...] = FAST
    again: bool = False
    core: bool = False  # of `make bench`
    minutes: float = 1.0  # about, for three rounds on two quiet cores


DEEP: Final = (
    ("INBOX",),
    *((*(f"Level {at}" for at in range(depth)), f"Box {number}") for number in range(30) for depth in range(8)),
)
INBOX_ONLY: Final = (("INBOX",),)

SCENARIOS: Final = (
    Scenario(
        name="median",
        what="accounts as they are",
        mail=Mail(users=10, messages=300),
        contenders=(),
        core=True,
        minutes=3,
    ),
    Scenario(
        name="many-small",
        what="messages of 1 KiB",
        mail=Mail(users=10, messages=300, median_octets=KIB, sigma=0),
        core=True,
        minutes=1,
    ),
    Scenario(
        name="few-large",
        what="messages of 20 MiB",
        mail=Mail(users=4, messages=2, median_octets=20 * MIB, sigma=0),
        core=True,
        minutes=1.5,
    ),
    Scenario(
        name="one-huge-mailbox",
        what="one user whose INBOX has everything",
        mail=Mail(users=1, messages=20_000, median_octets=2 * KIB, mailboxes=INBOX_ONLY),
        minutes=4,
    ),
    Scenario(
        name="deep-folders",
        what="240 mailboxes, down to eight levels",
        mail=Mail(users=4, messages=1000, median_octets=2 * KIB, mailboxes=DEEP),
        minutes=3,
    ),
    Scenario(
        name="many-users",
        what="users with little mail",
        mail=Mail(users=60, messages=10),
        core=True,
        minutes=2,
    ),
    *(
        Scenario(
            name=f"latency-{round_trip_ms}",
            what=f"servers that are {round_trip_ms} ms away",
            mail=Mail(users=users, messages=messages),
            routes=OVER_IMAP,
            between=Between(round_trip_ms=round_trip_ms),
            contenders=(*FAST, MBSYNC_1) if round_trip_ms == 80 else FAST,
            core=round_trip_ms == 80,
            minutes=4,
        )
        for round_trip_ms, users, messages in ((1, 4, 500), (20, 4, 100), (80, 2, 80))
    ),
    Scenario(
        name="slow-destination",
        what="a link of 4 MiB/s in all",
        mail=Mail(users=4, messages=150),
        routes=("maildir-imap", "imap-imap"),
        between=Between(round_trip_ms=10, rate=4 * MIB),
        minutes=4,
    ),
    Scenario(
        name="throttled-destination",
        what="a provider that gives each connection 1 MiB/s",
        mail=Mail(users=4, messages=150),
        routes=("maildir-imap", "imap-imap"),
        between=Between(round_trip_ms=10, rate_each=1 * MIB),
        minutes=4,
    ),
    Scenario(
        name="resume",
        what="a finished run once more: nothing to do",
        mail=Mail(users=10, messages=200),
        contenders=(AIMPORT, MBSYNC_1, MBSYNC_4, BACKUP_4, OFFLINEIMAP),
        again=True,
        core=True,
        minutes=1,
    ),
    Scenario(
        name="tls",
        what="TLS from the first octet",
        mail=Mail(users=10, messages=500),
        routes=OVER_IMAP,
        between=Between(tls=True),
        minutes=2,
    ),
    Scenario(
        name="compress",
        what="COMPRESS on a link of 2 MiB/s, and the same without",
        mail=Mail(users=4, messages=100),
        routes=("maildir-imap", "imap-maildir"),
        between=Between(round_trip_ms=20, rate=2 * MIB, compress=True),
        contenders=(*FAST, AIMPORT_PLAIN),
        minutes=3,
    ),
    Scenario(
        name="local-stores",
        what="mbox, sdbox and mdbox",
        mail=Mail(users=4, messages=250),
        routes=("mbox-maildir", "sdbox-maildir", "mdbox-maildir", "mbox-imap", "sdbox-imap", "mdbox-imap"),
        core=True,
        minutes=1,
    ),
    Scenario(
        name="cyrus",
        what="Cyrus takes the mail",
        mail=Mail(users=4, messages=250),
        routes=("maildir-imap",),
        server="cyrus",
        minutes=1,
    ),
    Scenario(
        name="courier",
        what="Courier takes the mail: no LITERAL+, one message a command",
        mail=Mail(users=4, messages=250),
        routes=("maildir-imap",),
        server="courier",
        minutes=1,
    ),
)
BY_NAME: Final = {scenario.name: scenario for scenario in SCENARIOS}


def chosen(names: tuple[str, ...]) -> list[Scenario]:
    """The scenarios of those names, `all` of them, or the `core`.

    Raises:
        ValueError: there is none of that name.
    """
    if names == ("all",):
        return list(SCENARIOS)
    if names == ("core",):
        return [scenario for scenario in SCENARIOS if scenario.core]
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise ValueError(f"no scenario {', '.join(unknown)}; there are {', '.join(BY_NAME)}, all and core")
    return [BY_NAME[name] for name in names]
