"""aimport check"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from aimport.cli import options
from aimport.cli.import_ import called
from aimport.cli.work import looking, print_json, settings_of
from aimport.results import UserResult, Verdict

if TYPE_CHECKING:
    from aimport.checking import Checked, Checker, Disk, Host
    from aimport.model import UserJob

SHOWN_HOSTS = 20  # arbitrary; --json names all


@click.command("check", context_settings=options.WORDS_AS_THEY_STAND)
@options.with_options(options.SELECTION, options.LIMITS, options.RUNNING, options.PROCESSES, options.ARGUMENTS)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Log in everywhere and look: what would an import with the same arguments stumble over? Writes nothing.

    One line for each user with all that is to be fixed; then hosts, disks, sums and a floor for the time. Each login
    is tried once, so that nobody is locked out.
    """
    from aimport.checking import Checker
    from aimport.plan import jobs, make_plan
    from aimport.runners import local
    from aimport.runners.ordered import each_in_order

    call = called(ctx, given)
    plan = make_plan(call.request, settings_of(call.globals), stdin=sys.stdin.buffer)
    run = looking(call, plan)
    max_errors = call.limits.max_errors
    checker = Checker(run, link=call.link)
    verdict = Verdict()
    show = _Json() if call.as_json else _Lines()

    def note(checked: Checked) -> None:
        checker.add(checked)
        verdict.add(checked.result)
        show.user(checked)

    def wanted() -> Iterator[UserJob]:
        for job in jobs(plan):
            if max_errors and checker.to_fix >= max_errors:
                run.gave_up = True
                return
            yield job

    async def main() -> None:
        await each_in_order(wanted(), run.limits.users, checker.look, note)
        await run.journal.close(finished=True)

    local.run_loop(main)
    single = plan.selection.single is not None
    code = verdict.code(single_user=single, stopped=False)
    failures = checker.failures()
    if (failures or run.gave_up) and code != 70:
        verdict.add(UserResult(user="", status="failed"))
        code = verdict.code(single_user=False, stopped=False)
    show.end(checker, [str(each) for each in failures], code, gave_up=run.gave_up)
    return code


class _Json:
    """One JSON line for each user, a last one for all."""

    def user(self, checked: Checked) -> None:
        there = checked.destination.standing
        print_json(
            {
                "user": checked.user,
                "status": checked.status,
                "mailboxes": checked.mailboxes,
                "messages": checked.messages,
                "octets": checked.octets,
                "too_large": checked.too_large,
                "append_limit": there.append_limit or None,
                "quota": [
                    {"root": each.root, "resource": each.resource, "used": each.used, "limit": each.limit}
                    for each in there.allowances
                ],
                "problems": [str(each) for each in checked.problems],
                "notes": checked.notes,
            }
        )

    def end(self, checker: Checker, failures: list[str], code: int, *, gave_up: bool) -> None:
        estimate = checker.estimate
        print_json(
            {
                "totals": {
                    "users": checker.users,
                    "ok": checker.users - checker.to_fix,
                    "to_fix": checker.to_fix,
                    "mailboxes": checker.mailboxes,
                    "messages": estimate.messages,
                    "octets": estimate.octets,
                    "too_large": checker.too_large,
                    "seconds": round(estimate.seconds, 1),
                },
                "estimate": estimate.reasons(),
                "hosts": {name: _json_host(host) for name, host in checker.hosts.items()},
                "disks": [
                    {"path": disk.volume.path, "octets": disk.octets, "files": disk.files,
                     "free_octets": disk.volume.free_octets, "free_files": disk.volume.free_files}
                    for disk in checker.disks.values()
                ],
                "problems": failures,
                "gave_up": gave_up,
                "exit": code,
            }
        )  # fmt: skip


def _json_host(host: Host) -> dict[str, object]:
    return {
        "roles": sorted(host.roles),
        "server": host.server.kind if host.server else "",
        "capabilities": sorted(host.server.capabilities) if host.server else [],
        "logins": host.logins,
        "refused": host.refused,
        "untried": host.untried,
        "refused_connections_at": host.crowded or None,
        "notes": list(host.server.notes) if host.server else [],
    }


class _Lines:
    """A line for each user; hosts, disks and sums below."""

    def user(self, checked: Checked) -> None:
        from aimport.progress import size
        from aimport.report import printable

        sums = f"{checked.mailboxes} mailboxes, {checked.messages} messages, {size(checked.octets)}"
        told = [*map(str, checked.problems), *checked.notes]
        if checked.status == "done":
            line = f"ok, {sums}{''.join(f'; note: {each}' for each in told)}"
        else:
            line = f"to fix: {'; '.join(told)} ({sums})"
        print(f"{printable(checked.user)}: {printable(line)}")

    def end(self, checker: Checker, failures: list[str], code: int, *, gave_up: bool) -> None:
        from aimport.progress import duration, size
        from aimport.report import printable

        estimate = checker.estimate
        hosts = list(checker.hosts.items())
        for name, host in hosts[:SHOWN_HOSTS]:
            print(f"host {printable(name)}: {printable(_about(host))}")
        if len(hosts) > SHOWN_HOSTS:
            print(f"... and {len(hosts) - SHOWN_HOSTS} more hosts (--json)")
        for disk in checker.disks.values():
            print(f"disk {printable(disk.volume.path)}: {_room(disk)}")
        for failure in failures:
            print(f"to fix: {printable(failure)}")
        print(
            f"{checker.users} users: {checker.users - checker.to_fix} ok, {checker.to_fix} to fix; "
            f"{checker.mailboxes} mailboxes, {estimate.messages} messages, {size(estimate.octets)}"
        )
        if gave_up:
            print("the others were not looked at (--max-errors)")
        if estimate.messages:
            print(f"at least {duration(estimate.seconds)}: {printable('; '.join(estimate.reasons()))}")


def _about(host: Host) -> str:
    """What an administrator wants to know of one host."""
    from aimport.progress import size

    server = host.server
    words = [" and ".join(sorted(host.roles, reverse=True))]
    words += [server.kind] if server is not None and server.kind else []
    words.append(f"{host.logins} logins")
    words += [f"{host.refused} refused"] if host.refused else []
    words += [f"{host.untried} not tried"] if host.untried else []
    if len(host.roles) == 2:
        words.append("serves both sides: each user takes two of its connections")
    if host.crowded:
        words.append(f"refused a connection beside {host.crowded} of ours: try --connections-per-host {host.crowded}")
    if server is not None:
        if server.connections_per_user:
            words.append(f"{server.connections_per_user} connections a user")
        if server.connections_per_address:
            words.append(f"{server.connections_per_address} connections from one address")
        if server.octets_per_day:
            words.append(f"{size(server.octets_per_day)} a day for a user")
        words += server.notes
    return ", ".join(words)


def _room(disk: Disk) -> str:
    from aimport.progress import size

    files = f" in {disk.files} files" if disk.volume.file_each else ""
    text = f"about {size(disk.octets)}{files} to come, {size(disk.volume.free_octets)} free"
    if disk.volume.file_each and disk.volume.free_files is not None:
        text += f", {disk.volume.free_files} files free"
    if disk.tight:
        text += "; too little unless files can be linked or are there already"
    return text
