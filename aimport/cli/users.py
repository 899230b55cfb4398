"""aimport users check, aimport users convert"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from aimport.cli.call import Globals, tell
from aimport.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from aimport.lists.lint import Finding
    from aimport.users import Inspected, UserRow

SHOWN = 5
FORMAT = click.option("--list-format", metavar="NAME", help="The form of the list, where it is not clear.")


@click.group("users", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Check a user list, of any form; convert it to the canonical one."""


@command.command("check")
@click.argument("file")
@FORMAT
@click.option("--show", metavar="N", type=click.IntRange(0), default=SHOWN, show_default=True,
              help="So many rows are shown as they were read, passwords masked.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def check(ctx: click.Context, /, file: str, list_format: str | None, show: int, as_json: bool) -> int:
    """Say all that is wrong with the list FILE (- is stdin), and how it was read. Logs in nowhere.

    Exits 64 when lines are wrong, 78 when others can read passwords in it, 75 when some users could not be imported.
    """
    from aimport.cli.work import settings_of
    from aimport.lists.lint import Lint
    from aimport.plan import variables_for
    from aimport.users import inspect_users

    globals_ = ctx.find_object(Globals)
    assert globals_ is not None  # the group sets it
    lint = Lint(settings_of(globals_), variables_for)
    rows: list[UserRow] = []

    def look(row: UserRow) -> None:
        lint.look(row)
        if len(rows) < show:
            rows.append(row)

    found = inspect_users(file, stdin=sys.stdin.buffer, form=list_format, look=look)
    code = UsageError.exit_code if found.errors else ConfigurationError.exit_code if found.private else 0
    if not code and any(finding.severity == "error" for finding in lint.findings):
        code = 75
    if as_json:
        _print_json(found, lint.findings, rows, code)
    else:
        _print_text(found, lint.findings, rows)
    return code


def _print_text(found: Inspected, findings: list[Finding], rows: list[UserRow]) -> None:
    from aimport.lists.lint import shown_cells
    from aimport.report import printable

    users = found.users
    lines = [(wrong.line, f"{users.name}:{wrong.line}: {wrong.what}") for wrong in found.errors]
    for finding in findings:
        place = f"{users.name}:{finding.line}" if finding.line else users.name
        word = "warning: " if finding.severity == "warning" else ""
        lines.append((finding.line, f"{place}: {word}user {finding.user!r}: {finding.what}"))
    for _, line in sorted(lines, key=lambda each: each[0]):
        print(printable(line))
    if found.private:
        print(printable(str(found.private)))
    for note in users.notes:
        print(printable(f"{users.name}: {note}"))
    for row in rows:
        cells = " ".join(f"{column}={cell}" for column, cell in shown_cells(row).items())
        print(printable(f"  {row.user}  {cells}".rstrip()))
    left_out = f", {users.left_out} left out by the list itself" if users.left_out else ""
    wrong = len(found.errors) + sum(finding.severity == "error" for finding in findings)
    print(f"{users.count} users in the form {users.form}{left_out}; {wrong} errors")


def _print_json(found: Inspected, findings: list[Finding], rows: list[UserRow], code: int) -> None:
    from aimport.cli.work import print_json
    from aimport.lists.lint import shown_cells

    users = found.users
    told: list[dict[str, object]] = [
        {"line": wrong.line, "user": None, "severity": "error", "what": wrong.what} for wrong in found.errors
    ]
    if found.private:
        told.append({"line": 0, "user": None, "severity": "error", "what": str(found.private)})
    told += [
        {"line": finding.line, "user": finding.user, "severity": finding.severity, "what": finding.what}
        for finding in findings
    ]
    print_json(
        {
            "schema": 1,
            "file": users.name,
            "format": users.form,
            "users": users.count,
            "left_out": users.left_out,
            "findings": sorted(told, key=lambda each: str(each["line"]).zfill(12)),
            "notes": users.notes,
            "rows": [{"line": row.line, "user": row.user, "cells": shown_cells(row)} for row in rows],
            "exit": code,
        }
    )


@command.command("convert")
@click.argument("file")
@click.option("-o", "out", metavar="OUT", help="The canonical list, a new file; default: stdout.")
@FORMAT
@click.option(
    "--secrets", metavar="DIR", help="A new directory for literal passwords, a file each; default: OUT.secrets."
)
@click.option("--env", "environment", metavar="FILE", help="In its place a new file of assignments for a shell.")
def convert(file: str, out: str | None, list_format: str | None, secrets: str | None, environment: str | None) -> int:
    """Write the list FILE (- is stdin), of any form, as the canonical CSV, with passwords by reference.

    Nothing that is there is overwritten.
    """
    from aimport.lists.convert import convert as write
    from aimport.users import check_users

    if secrets is not None and environment is not None:
        raise UsageError("--secrets and --env: there is one place for passwords", hint="leave one of them out")
    users = check_users(file, stdin=sys.stdin.buffer, form=list_format)
    for note in users.notes:
        tell(f"{users.name}: {note}")
    done = write(users, out, sys.stdout, secrets=secrets, environment=environment)
    text = f"{done.users} users"
    if users.left_out:
        text += f", {users.left_out} left out by the list itself"
    if done.secrets:
        text += f", {done.secrets} passwords in {environment or secrets or f'{out}.secrets'}"
    tell(text)
    if environment is not None and done.secrets:
        import shlex

        tell(f"before an import, type: set -a; . {shlex.quote(os.path.abspath(environment))}; set +a")
    return 0
