"""aimport import"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from aimport.cli import options
from aimport.cli.call import Call, Globals, Processes
from aimport.errors import UsageError


@click.command("import", context_settings=options.WORDS_AS_THEY_STAND)
@options.with_options(options.SELECTION, options.LIMITS, options.RUNNING, options.PROCESSES, options.ARGUMENTS)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Import mail of one, many or all users from SOURCE to below DEST_PARENT ("" for the root).

    QUERY is doveadm's search language: ALL, MAILBOX INBOX SINCE 30days, SUBJECT invoice OR LARGER 1M, ...

    \b
    aimport import -u bob --to imaps://mail.example.com maildir:/backup/bob/Maildir "" ALL
    aimport import -F users.csv --to imaps://mail.example.com 'maildir:/backup/%d/%n/Maildir' "" ALL
    aimport import -u bob --to maildir:/srv/bob/Maildir imapc: "" MAILBOX 'Arch*' SINCE 2020-01-01 NOT DELETED
    """
    from aimport.cli.work import run_import

    call = called(ctx, given)
    resume = call.globals.start.resume
    return resume(call) if resume else run_import(call)


def called(ctx: click.Context, given: dict[str, Any]) -> Call:
    """What stands behind `import`, `plan` and `check`, which take the same words.

    Raises:
        UsageError: words that exclude each other.
        ConfigurationError: this machine allows not even one user.
    """
    from aimport.cli.work import journal_root
    from aimport.runners.machine import within_the_machine

    globals_ = ctx.find_object(Globals)
    assert globals_ is not None  # the group sets it
    take = given.pop
    limits = dataclasses.replace(
        options.DEFAULTS,
        users=take("users"),
        connections_per_user=take("connections_per_user"),
        connections_per_host=take("connections_per_host"),
        max_memory=take("max_memory"),
        limit_rate=take("limit_rate"),
        messages_per_second=take("messages_per_second") or 0.0,
        max_errors=take("max_errors") or 0,
    )
    directory, nowhere = take("journal"), take("no_journal")
    return Call(
        globals=globals_,
        limits=within_the_machine(limits),
        skip_existing=take("skip_existing"),
        fsync=take("fsync"),
        link=take("link"),
        repair=take("repair") == "on-reject",
        salvage=take("salvage"),
        journal=None if nowhere else Path(journal_root(directory)).absolute(),
        again=take("again"),
        progress=take("progress"),
        as_json=take("as_json"),
        processes=processes(take("workers"), take("cluster"), take("cluster_file")),
        request=options.request(**given),
    )


def processes(workers: int | None, cluster: str | None, cluster_file: str | None) -> Processes:
    """
    Raises:
        UsageError: two of them.
    """
    if sum(each is not None for each in (workers, cluster, cluster_file)) > 1:
        raise UsageError("--workers, --cluster and --cluster-file exclude each other")
    return Processes(workers=workers, cluster=cluster, cluster_file=cluster_file)
