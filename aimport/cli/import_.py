"""aimport import"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from aimport.cli import options
from aimport.cli.call import Call, Globals, Processes
from aimport.errors import UsageError
from aimport.limits import Limits


@click.command("import", context_settings=options.WORDS_AS_THEY_STAND)
@options.with_options(options.SELECTION, options.LIMITS, options.RUNNING, options.PROCESSES, options.ARGUMENTS)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    users: int,
    connections_per_user: int,
    connections_per_host: int,
    max_memory: int,
    limit_rate: int,
    messages_per_second: float | None,
    max_errors: int | None,
    skip_existing: bool,
    fsync: Any,
    link: bool,
    repair: str,
    salvage: bool,
    journal: str | None,
    no_journal: bool,
    again: bool,
    progress: Any,
    as_json: bool,
    workers: int | None,
    cluster: str | None,
    cluster_file: str | None,
    **selection: Any,
) -> int:
    """Import mail of one, many or all users from SOURCE to below DEST_PARENT ("" for the root).

    QUERY is doveadm's search language: ALL, MAILBOX INBOX SINCE 30days, SUBJECT invoice OR LARGER 1M, ...

    \b
    aimport import -u bob --to imaps://mail.example.com maildir:/backup/bob/Maildir "" ALL
    aimport import -F users.csv --to imaps://mail.example.com 'maildir:/backup/%d/%n/Maildir' "" ALL
    aimport import -u bob --to maildir:/srv/bob/Maildir imapc: "" MAILBOX 'Arch*' SINCE 2020-01-01 NOT DELETED
    """
    from aimport.cli.work import journal_root, run_import
    from aimport.runners.machine import within_the_machine

    globals_ = ctx.find_object(Globals)
    assert globals_ is not None  # the group sets it
    call = Call(
        globals=globals_,
        request=options.request(**selection),
        limits=within_the_machine(
            limits(
                users=users,
                connections_per_user=connections_per_user,
                connections_per_host=connections_per_host,
                max_memory=max_memory,
                limit_rate=limit_rate,
                messages_per_second=messages_per_second,
                max_errors=max_errors,
            )
        ),
        skip_existing=skip_existing,
        fsync=fsync,
        link=link,
        repair=repair == "on-reject",
        salvage=salvage,
        journal=None if no_journal else Path(journal_root(journal)).absolute(),
        again=again,
        progress=progress,
        as_json=as_json,
        processes=processes(workers, cluster, cluster_file),
    )
    return globals_.start.resume(call) if globals_.start.resume else run_import(call)


def processes(workers: int | None, cluster: str | None, cluster_file: str | None) -> Processes:
    """
    Raises:
        UsageError: two of them.
    """
    if sum(each is not None for each in (workers, cluster, cluster_file)) > 1:
        raise UsageError("--workers, --cluster and --cluster-file exclude each other")
    return Processes(workers=workers, cluster=cluster, cluster_file=cluster_file)


def limits(
    *,
    users: int,
    connections_per_user: int,
    connections_per_host: int,
    max_memory: int,
    limit_rate: int,
    messages_per_second: float | None,
    max_errors: int | None,
) -> Limits:
    return dataclasses.replace(
        options.DEFAULTS,
        users=users,
        connections_per_user=connections_per_user,
        connections_per_host=connections_per_host,
        max_memory=max_memory,
        limit_rate=limit_rate,
        messages_per_second=messages_per_second or 0.0,
        max_errors=max_errors or 0,
    )
