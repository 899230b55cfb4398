"""aimport demo"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from aimport.cli.main import Globals, Start

USERS = 20
MESSAGES = 500


@click.command("demo")
@click.option("--directory", metavar="DIR", help="Keep the generated mail, the result and the journal here.")
@click.option("--json", "as_json", is_flag=True, help="Print the final report as one JSON document.")
def command(directory: str | None, as_json: bool) -> int:
    """The main job on generated mail: 20 users, Maildir to Maildir, no server needed."""
    from aimport.cli.work import Call, run_import
    from aimport.plan import Request
    from aimport.sample import account, write_maildir

    root = Path(directory).absolute() if directory else Path(tempfile.mkdtemp(prefix="aimport-demo-"))
    try:
        began = time.monotonic()
        users = [f"user{number:02}@example.org" for number in range(1, USERS + 1)]
        for user in users:
            write_maildir(root / "source" / user / "Maildir", account(user, seed=1, messages=MESSAGES))
        (root / "users.csv").write_text("user\n" + "\n".join(users) + "\n", encoding="utf-8")
        source, destination = f"maildir:{root}/source/%u/Maildir", f"maildir:{root}/destination/%u/Maildir"
        print(
            f"generated {USERS} users with {MESSAGES} messages each in {time.monotonic() - began:.1f} s\n"
            f"aimport import -F users.csv --to {destination} {source} Imported ALL",
            file=sys.stderr,
        )
        return run_import(
            Call(
                globals=Globals(config=None, overrides=(), start=Start()),
                request=Request(
                    source=source,
                    parent="Imported",
                    query=("ALL",),
                    to=destination,
                    list_file=str(root / "users.csv"),
                ),
                journal=root / "journal",
                as_json=as_json,
            )
        )
    finally:
        if directory is None:
            shutil.rmtree(root, ignore_errors=True)
