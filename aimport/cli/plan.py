"""aimport plan"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from aimport.cli import options
from aimport.cli.call import Globals
from aimport.cli.import_ import limits
from aimport.cli.work import print_json, settings_of
from aimport.errors import MailboxNotFound
from aimport.pipeline import PlannedUser
from aimport.results import UserResult, Verdict


@click.command("plan", context_settings=options.WORDS_AS_THEY_STAND)
@options.with_options(options.SELECTION, options.LIMITS, options.RUNNING, options.LATER)
@click.option("--keys", is_flag=True, help="Also the keys of the messages: source UIDs, Maildir base names.")
@options.with_options(options.ARGUMENTS)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    users: int,
    connections_per_user: int,
    connections_per_host: int,
    max_memory: int,
    max_errors: int | None,
    as_json: bool,
    keys: bool,
    skip_existing: bool,
    fsync: Any,
    link: bool,
    repair: str,
    salvage: bool,
    journal: str | None,
    no_journal: bool,
    again: bool,
    progress: Any,
    **selection: Any,
) -> int:
    """Show what `import` with the same arguments would do: mailboxes, messages, octets, names. Touches nothing."""
    from aimport.account import Run
    from aimport.journal import Journal
    from aimport.plan import jobs, make_plan
    from aimport.runners import local
    from aimport.stores import Stores

    globals_ = ctx.find_object(Globals)
    assert globals_ is not None  # the group sets it
    plan = make_plan(options.request(**selection), settings_of(globals_), stdin=sys.stdin.buffer)
    memory = Journal.in_memory()
    run = Run(
        stores=Stores(salvage=salvage),
        journal=memory,
        query=plan.query,
        skip_existing=skip_existing,
        limits=limits(users, connections_per_user, connections_per_host, max_memory, max_errors),
    )
    show = _Json(keys) if as_json else _Table(keys)

    async def main() -> None:
        async for planned in local.plan_all(jobs(plan), run):
            show.user(planned)
        await memory.close(finished=True)

    local.run_loop(main)
    show.end()
    return show.verdict.code(single_user=plan.selection.single is not None, stopped=False)


class _Shown:
    """Keeps what decides the exit code, and nobody's result: a list may have a million users."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self.failed = 0

    def note(self, planned: PlannedUser) -> str | None:
        """The error of this user, for people; also counts it."""
        failure = planned.failure
        if failure is None and planned.missing:
            failure = MailboxNotFound(f"no such mailbox at the source: {', '.join(planned.missing)}", named=True)
        self.failed += failure is not None
        self.verdict.add(
            UserResult(
                user=planned.user,
                status=failure.status if failure else "done",
                error=str(failure) if failure else None,
                mailbox_missing=isinstance(failure, MailboxNotFound) and failure.named,
            )
        )
        return str(failure) if failure else None


class _Json(_Shown):
    """One JSON line for each user."""

    def __init__(self, keys: bool) -> None:
        super().__init__()
        self._keys = keys

    def user(self, planned: PlannedUser) -> None:
        mailboxes: list[dict[str, object]] = []
        for mailbox in planned.mailboxes:
            row: dict[str, object] = {
                "source": mailbox.source,
                "dest": mailbox.dest,
                "messages": mailbox.messages,
                "octets": mailbox.octets,
            }
            if self._keys:
                row["keys"] = _shown_keys(mailbox.keys)
            mailboxes.append(row)
        line = {"user": planned.user, "mailboxes": mailboxes, "error": self.note(planned)}
        print_json(line)

    def end(self) -> None:
        pass


def _shown_keys(keys: Sequence[str]) -> Sequence[object]:
    """Source UIDs as numbers, Maildir base names as text, ascending."""
    if all(validity.isdigit() and uid.isdigit() for validity, _, uid in (key.partition(":") for key in keys)):
        return sorted(int(key.partition(":")[2]) for key in keys)
    return sorted(keys)


class _Table(_Shown):
    """A line for each mailbox, with its user above and the sums below."""

    def __init__(self, keys: bool) -> None:
        super().__init__()
        self._keys = keys
        self._mailboxes = self._messages = self._octets = 0

    def user(self, planned: PlannedUser) -> None:
        from aimport.progress import size
        from aimport.report import printable

        print(printable(planned.user))
        for mailbox in planned.mailboxes:
            print(
                f"  {printable(mailbox.source)} -> {printable(mailbox.dest)}: "
                f"{mailbox.messages} messages, {size(mailbox.octets)}"
            )
            for key in _shown_keys(mailbox.keys) if self._keys else ():
                print(f"    {printable(str(key))}")
            self._mailboxes += 1
            self._messages += mailbox.messages
            self._octets += mailbox.octets
        error = self.note(planned)
        if error:
            print(f"  would fail: {printable(error)}")

    def end(self) -> None:
        from aimport.progress import size

        print(
            f"{self.verdict.users} users ({self.failed} would fail), {self._mailboxes} mailboxes, "
            f"{self._messages} messages, {size(self._octets)}"
        )
