"""aimport plan"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from aimport.cli import options
from aimport.cli.import_ import called
from aimport.cli.work import looking, print_json, settings_of
from aimport.errors import MailboxNotFound
from aimport.merging import Mails, Outlook
from aimport.pipeline import PlannedUser
from aimport.results import UserResult, Verdict


@click.command("plan", context_settings=options.WORDS_AS_THEY_STAND)
@options.with_options(options.SELECTION, options.LIMITS, options.RUNNING, options.PROCESSES)
@click.option("--keys", is_flag=True, help="Also the keys of the messages: source UIDs, Maildir base names.")
@options.with_options(options.ARGUMENTS)
@click.pass_context
def command(ctx: click.Context, /, keys: bool, **given: Any) -> int:
    """Show what `import` with the same arguments would do: mailboxes, messages, octets, names. Touches nothing."""
    from aimport.plan import jobs, make_plan
    from aimport.runners import local

    call = called(ctx, given)
    plan = make_plan(call.request, settings_of(call.globals), stdin=sys.stdin.buffer)
    run = looking(call, plan)
    show = _Json(keys) if call.as_json else _Table(keys)

    async def main() -> None:
        async for planned in local.plan_all(jobs(plan), run):
            show.user(planned)
        await run.journal.close(finished=True)

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
            if mailbox.use:
                row["use"] = mailbox.use
            if mailbox.outlook is not None:
                row["merge"] = mailbox.outlook.to_json()
            mailboxes.append(row)
        line: dict[str, object] = {"user": planned.user, "mailboxes": mailboxes, "error": self.note(planned)}
        if planned.excluded:
            line["excluded"] = planned.excluded
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
        self._imap = self._pop3 = self._emptied = Mails()
        self._merges = False

    def user(self, planned: PlannedUser) -> None:
        from aimport.progress import size
        from aimport.report import printable

        print(printable(planned.user))
        for mailbox in planned.mailboxes:
            use = f" ({mailbox.use})" if mailbox.use else ""
            print(
                f"  {printable(mailbox.source)} -> {printable(mailbox.dest)}{use}: "
                f"{mailbox.messages} messages, {size(mailbox.octets)}"
            )
            if mailbox.outlook is not None:
                for line in _outlook(mailbox.outlook):
                    print(f"    {line}")
                self._note(mailbox.outlook)
            for key in _shown_keys(mailbox.keys) if self._keys else ():
                print(f"    {printable(str(key))}")
            self._mailboxes += 1
            self._messages += mailbox.messages
            self._octets += mailbox.octets
        for excluded in planned.excluded:
            print(f"  {printable(excluded)}: excluded")
        error = self.note(planned)
        if error:
            print(f"  would fail: {printable(error)}")

    def _note(self, seen: Outlook) -> None:
        self._merges = True
        self._imap += seen.imap
        self._pop3 += seen.pop3
        self._emptied += seen.emptied

    def end(self) -> None:
        from aimport.progress import size

        print(
            f"{self.verdict.users} users ({self.failed} would fail), {self._mailboxes} mailboxes, "
            f"{self._messages} messages, {size(self._octets)}"
        )
        if self._merges:
            print(_again(self._imap, self._pop3, self._emptied, ""))


def _outlook(seen: Outlook) -> Iterator[str]:
    """What clients will see of one mailbox, for people."""
    place = seen.place
    if place is None:
        yield "a new mailbox: UIDs from 1"
    else:
        stay = f", UIDs {_span(seen.existing_uids)} stay" if seen.existing_uids[0] else ""
        yield f"there first: {_mails(seen.existing)}{stay}"
        if not place.uidnext:
            yield "behind them: UIDs that the server which reads this store will give"
        else:
            before = {"same": ", those that clients know them by", "repeat": ", which clients saw on other mail"}
            at = f"UIDVALIDITY {place.uidvalidity}, UIDNEXT {place.uidnext}"
            yield f"behind them: UIDs {_span(seen.imported_uids)}{before.get(seen.uids, '')} ({at})"
    uidls = {"same": " (UIDLs of Dovecot's default stay)", "new": " (new UIDLs)", "": ""}
    yield _again(seen.imap, seen.pop3, seen.emptied, uidls[seen.uidls])


def _again(imap: Mails, pop3: Mails, emptied: Mails, uidls: str) -> str:
    text = f"clients download again: IMAP {_mails(imap)}, POP3 {_mails(pop3)}{uidls}"
    if emptied.messages:
        text += f"; those that looked while what is there was gone: {_mails(emptied)} more"
    return text


def _mails(mails: Mails) -> str:
    from aimport.progress import size

    return f"{mails.messages} messages, {size(mails.octets)}" if mails.messages else "nothing"


def _span(uids: tuple[int, int]) -> str:
    return f"{uids[0]}:{uids[1]}"
