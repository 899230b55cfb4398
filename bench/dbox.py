"""`python -m bench.dbox`: sdbox and mdbox as sources, beside Maildir and `doveadm import` in the same run.

    open      a folder with 1,000,000 records: seconds and peak memory of a process that selects all of it
    import    the same mail as Maildir, sdbox and mdbox into a Maildir by aimport; sdbox by `doveadm import`

The goals: 3 s and 200 MB; no slower than from Maildir; at least 2 times as fast as doveadm. They are shown beside the
figures; the command never fails for a number. What is opened is made here: an index with 1,000,000 messages, and with
sdbox as many empty files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import msgspec

from aimport.model import Endpoint
from aimport.stores.dbox import DboxSource
from bench.corpus import Corpus, message_files, write_corpus
from bench.measure import Command, Measured, measure, peak_rss
from bench.peers import us
from bench.scenarios import MEDIAN_OCTETS
from bench.servers import machine
from bench.table import columns
from tests import dbox_made, servers
from tests.fix_dovecot import Dovecot, run_dovecot

KINDS: Final = ("sdbox", "mdbox")
OPEN_S: Final = 3.0
OPEN_MB: Final = 200
DOVEADM_TIMES: Final = 2.0
AT_ONCE: Final = 4
DOVEADM: Final = "doveadm import, sdbox"
DOVEADM_4: Final = f"doveadm import, sdbox, {AT_ONCE} at a time"
TIMEOUT_S: Final = 900.0


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """One folder opened in a process of its own."""

    kind: str
    messages: int
    seconds: float
    peak_rss_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One contender over all rounds."""

    name: str
    rounds: tuple[Measured, ...]
    messages: int

    @property
    def seconds(self) -> float:
        return statistics.median(each.seconds for each in self.rounds)

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds


def make_large(root: Path, kind: str, messages: int) -> None:
    """A store whose INBOX has so many messages in its index; their octets are not there."""
    folder = root / "mailboxes" / "INBOX" / "dbox-Mails"
    folder.mkdir(parents=True)
    uids = range(1, messages + 1)
    common = [
        dbox_made.keyword_extension(["Junk"], bytes(4 * messages), 4),
        dbox_made.Extension(name="cache", size=4, records=bytes(4 * messages)),
    ]
    if kind == "sdbox":
        index = dbox_made.index(uids, bytes([8]) * messages, common)
        for uid in uids:
            os.close(os.open(folder / f"u.{uid}", os.O_CREAT | os.O_WRONLY))
    else:
        references = b"".join(struct.pack("<II", uid, 1_600_000_000) for uid in uids)
        places = b"".join(struct.pack("<III", 1 + uid // 2000, 16 + uid % 2000 * 5000, 5000) for uid in uids)
        mdbox = dbox_made.Extension(name="mdbox", size=8, records=references)
        guid = dbox_made.Extension(name="guid", size=16, records=os.urandom(16 * messages))
        index = dbox_made.index(uids, bytes([8]) * messages, [mdbox, guid, *common])
        storage = root / "storage"
        storage.mkdir()
        where = dbox_made.Extension(name="map", header=bytes(8), size=12, records=places)
        count = dbox_made.Extension(name="ref", size=2, records=b"\1\0" * messages)
        (storage / "dovecot.map.index").write_bytes(dbox_made.index(uids, bytes(messages), [where, count]))
        (storage / "dovecot.map.index.log").write_bytes(dbox_made.log())
    (folder / "dovecot.index").write_bytes(index)
    (folder / "dovecot.index.log").write_bytes(dbox_made.log())


async def open_now(root: str, kind: str) -> Opened:
    """Lists and selects, in this process."""
    began = time.monotonic()
    async with DboxSource(Endpoint(scheme=kind, path=root)).open() as session:
        [mailbox] = await session.list_mailboxes()
        selection = await session.select(mailbox)
        seconds = time.monotonic() - began
        return Opened(
            kind=kind,
            messages=len(selection.keys),
            seconds=round(seconds, 3),
            peak_rss_mb=round(peak_rss(os.getpid()) / 1e6, 1),
        )


def opened(place: Path, kind: str, messages: int) -> Opened:
    """A large folder, opened by a process that has just begun."""
    root = place / f"large-{kind}"
    make_large(root, kind, messages)
    words = [sys.executable, "-m", "bench.dbox", "--open", kind, str(root)]
    env = {**os.environ, "PYTHONPATH": str(servers.ROOT)}
    done = subprocess.run(words, capture_output=True, check=True, env=env, cwd=servers.ROOT, timeout=TIMEOUT_S)
    return msgspec.json.decode(done.stdout, type=Opened)


def rates(server: Dovecot, place: Path, corpus: Corpus, rounds: int) -> list[Rate]:
    """All contenders in turn, every round another one first."""
    names = ["aimport, maildir", "aimport, sdbox", "aimport, mdbox", DOVEADM, DOVEADM_4]
    figures: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(rounds):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            folder = place / f"trial-{number}-{names.index(name)}"
            folder.mkdir()
            done, arrived = (_doveadm if name.startswith("doveadm") else _aimport)(server, corpus, folder, name)
            if done.failure or arrived != corpus.messages:
                raise RuntimeError(f"{name}: {arrived} of {corpus.messages} messages arrived; {done.failure}")
            rate = corpus.messages / done.seconds
            print(f"round {number}, {name}: {rate:.0f} messages/s", file=sys.stderr, flush=True)
            figures[name].append(done)
    return [Rate(name=name, rounds=tuple(done), messages=corpus.messages) for name, done in figures.items()]


def _aimport(server: Dovecot, corpus: Corpus, folder: Path, name: str) -> tuple[Measured, int]:
    kind = name.rpartition(" ")[2]
    (folder / "users").write_text("".join(f"{user}\n" for user in corpus.accounts))
    source = f"maildir:{corpus.root}/%u" if kind == "maildir" else f"{kind}:{server.mail_root}/%u@{kind}/{kind}"
    argv = (
        *(sys.executable, "-m", "aimport", "import", "-F", str(folder / "users"), "--progress", "none", "--json"),
        *("--to", f"maildir:{folder}/mail/%u", source, "", "ALL"),
    )
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(servers.ROOT),
        "HOME": str(folder),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    os.sync()
    done = measure([Command(argv=argv, owner=us(), env=env)], at_once=1, log=folder / "command", limit_s=TIMEOUT_S)
    return done, sum(len(message_files(folder / "mail" / user)) for user in corpus.accounts)


def _doveadm(server: Dovecot, corpus: Corpus, folder: Path, name: str) -> tuple[Measured, int]:
    commands, homes = [], []
    for user in corpus.accounts:
        target = f"{folder.name}-{user}@maildir"
        homes.append(server.home(target) / "maildir")
        source = f"sdbox:{server.mail_root}/{user}@sdbox/sdbox"
        settings = server.config.parent / "run" / "config"
        words = (server.program, "-c", settings, "import", "-u", target, source, "", "ALL")
        commands.append(Command(argv=words, owner=server.owner, env=server.env))
    os.sync()
    server.own(folder)
    done = measure(commands, at_once=AT_ONCE if name == DOVEADM_4 else 1, log=folder / "command", limit_s=TIMEOUT_S)
    return done, sum(len(message_files(home)) for home in homes)


def fill(server: Dovecot, corpus: Corpus) -> None:
    """The same accounts as sdbox and mdbox, written by Dovecot."""
    for kind in KINDS:
        for user in corpus.accounts:
            words = ("import", "-u", f"{user}@{kind}", f"maildir:{corpus.root / user}", "", "ALL")
            server.try_doveadm(*words, timeout_s=TIMEOUT_S).check_returncode()


def table(large: Sequence[Opened], imported: Sequence[Rate]) -> str:
    rows: list[tuple[str, ...]] = [("what", "figure", "goal", "")]
    for each in large:
        goal = f"{OPEN_S:.0f} s, {OPEN_MB} MB"
        held = each.seconds < OPEN_S and each.peak_rss_mb < OPEN_MB
        figure = f"{each.seconds:.2f} s, {each.peak_rss_mb:.0f} MB"
        rows.append((f"{each.kind}, open {each.messages:,}", figure, goal, _said(held)))
    by_name = {rate.name: rate for rate in imported}
    rows += [(rate.name, f"{rate.per_second:.0f} messages/s", "", "") for rate in imported]
    if imported:
        maildir, sdbox, _, doveadm, _ = by_name.values()
        for other, least in ((maildir, 1.0), (doveadm, DOVEADM_TIMES)):
            ratios = [one.seconds / two.seconds for one, two in zip(other.rounds, sdbox.rounds, strict=True)]
            ratio = statistics.median(ratios)
            figure = f"{ratio:.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
            rows.append((f"sdbox against {other.name}", figure, f"{least:.1f}", _said(ratio >= least)))
    return columns(rows)


def _said(held: bool) -> str:
    return "held" if held else "MISSED"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.open:
        kind, root = options.open
        print(msgspec.json.encode(anyio.run(open_now, root, kind)).decode())
        return 0
    messages = options.records or (10_000 if options.quick else 1_000_000)
    with tempfile.TemporaryDirectory(prefix="aimport-dbox-", dir=options.dir) as made:
        place = Path(made)
        place.chmod(0o755)
        about = machine(place)
        large = [opened(place, kind, messages) for kind in KINDS]
        with run_dovecot(place / "server", mail_location="%d:~/%d") as server:
            corpus = write_corpus(
                place / "corpus",
                seed=1,
                accounts=4,
                messages=options.messages or (50 if options.quick else 2500),
                owner=server.owner,
                median_octets=MEDIAN_OCTETS,
            )
            fill(server, corpus)
            imported = rates(server, place, corpus, options.rounds or (1 if options.quick else 3))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(table(large, imported))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.dbox", description="sdbox and mdbox as sources.")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: does everything run?")
    parser.add_argument("--records", type=int, metavar="N", help="of the folder opened (default: 1,000,000)")
    parser.add_argument("--messages", type=int, metavar="N", help="of each of 4 accounts (default: 2500)")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contender (default: 3)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where mail is written (default: TMPDIR)")
    parser.add_argument("--open", nargs=2, metavar=("KIND", "ROOT"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
