"""aimport report"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aimport.cli.options import JOURNAL
from aimport.cli.pages import write_page
from aimport.cli.work import journal_root, print_json, read_run

if TYPE_CHECKING:
    from aimport.results import RunReport


@click.command("report")
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@JOURNAL
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--html", metavar="FILE", help="Write a page for a browser too: one file that needs nothing else.")
@click.option("--manifest", metavar="FILE", help="Write a line for each message to a new file, chained by hashes.")
def command(runs: tuple[str, ...], journal: str | None, as_json: bool, html: str | None, manifest: str | None) -> int:
    """Summary of a run (default: the newest), or of several runs as one. Exits 0 whatever the run ended with.

    Of several runs each user is one line: counts are summed, the status is what the newest run of each job says.
    """
    from aimport.report import write_table

    root = Path(journal_root(journal))
    page = _page(root, runs) if html is not None else None
    report = read_run(root, runs)
    if manifest is not None:
        _write_manifest(root, runs, Path(manifest))
    if html is not None and page is not None:
        write_page(Path(html), page(report))
    if as_json:
        print_json(report.to_json())
    else:
        write_table(report, sys.stdout)
    return 0


def _page(root: Path, runs: Sequence[str]) -> Callable[[RunReport], str]:
    """What a page shows beside the report, from the same runs."""
    import shlex

    from aimport.journal import Journal
    from aimport.page import Origin, Pace, run_page

    origins: list[Origin] = []
    moments: list[tuple[int, int, int]] = []
    for name in dict.fromkeys(runs) or (None,):
        with Journal.view(root, name) as journal:
            argv = journal.arguments.argv
            command = shlex.join(("aimport", *argv)) if argv else ""
            origins.append(Origin(run=journal.run, created=journal.created, command=command))
            moments += [(each.created_us, each.messages, each.octets) for each in journal.pace()]
    origins.sort(key=lambda each: each.run)
    return lambda report: run_page(report, origins, Pace.of(moments))


def _write_manifest(root: Path, runs: Sequence[str], path: Path) -> None:
    """A new file that only its owner reads: it tells who has mail. It is whole, or not there.

    Raises:
        UsageError: there is one of that name already, or it cannot be made.
        JournalDamaged
    """
    from aimport.errors import UsageError
    from aimport.journal import Journal
    from aimport.manifest import lines

    made = False
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
            made = True
            chain = ""
            for name in runs or (None,):
                with Journal.view(root, name) as journal:
                    for line, last in lines(journal, chain):
                        file.write(line + "\n")
                        chain = last
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise UsageError(f"{path} is there already", hint="name a new file for the manifest") from error
    except BaseException as error:
        if made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"{path}: {error.strerror}") from error
        raise
