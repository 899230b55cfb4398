"""aimport demo"""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from pathlib import Path

import click

from aimport.cli.call import Start, tell
from aimport.cli.main import cli

USERS = 20
MESSAGES = 500


@click.command("demo")
@click.option("--directory", metavar="DIR", help="Keep the generated mail, the result and the journal here.")
@click.option("--json", "as_json", is_flag=True, help="Print the final report as one JSON document.")
def command(directory: str | None, as_json: bool) -> int:
    """The main job on generated mail: 20 users, Maildir to Maildir, no server needed."""
    from aimport.sample import account, write_maildir

    root = Path(directory).absolute() if directory else Path(tempfile.mkdtemp(prefix="aimport-demo-"))
    try:
        began = time.monotonic()
        users = [f"user{number:02}@example.org" for number in range(1, USERS + 1)]
        for user in users:
            write_maildir(root / "source" / user / "Maildir", account(user, seed=1, messages=MESSAGES))
        (root / "users.csv").write_text("user\n" + "\n".join(users) + "\n", encoding="utf-8")
        words = [
            *("import", "-F", f"{root}/users.csv", "--to", f"maildir:{root}/destination/%u/Maildir"),
            *("--journal", f"{root}/journal", *(("--json",) if as_json else ())),
            *(f"maildir:{root}/source/%u/Maildir", "Imported", "ALL"),
        ]
        tell(
            f"generated {USERS} users with {MESSAGES} messages each in {time.monotonic() - began:.1f} s\n"
            f"aimport {shlex.join(words)}"
        )
        return int(cli.main(args=words, prog_name="aimport", standalone_mode=False, obj=Start(typed=tuple(words))))
    finally:
        if directory is None:
            shutil.rmtree(root, ignore_errors=True)
