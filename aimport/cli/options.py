"""Options of `import` and `plan`, and the values they become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from aimport.config import parse_size
from aimport.limits import Limits
from aimport.model import Order
from aimport.plan import Request

Command = TypeVar("Command", bound=Callable[..., Any])
DEFAULTS: Final = Limits()
LEAST_RATE: Final = 1024
"""Octets a second; below, a large message takes longer than any server waits."""


class Size(click.ParamType[int]):
    """Octets with an optional suffix, powers of 1024: 256M, 1GiB, 4096."""

    name = "SIZE"

    def __init__(self, least: int = 0) -> None:
        self._least = least

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            octets = parse_size(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a size such as 64M or 1G", param, ctx)
        if octets < self._least:
            self.fail(f"{value!r} is less than {self._least} octets", param, ctx)
        return octets


JOURNAL: Final = click.option(
    "--journal", metavar="DIR", help="Where runs are remembered; default aimport/ in the XDG state directory."
)
SELECTION: Final = (
    click.option("-u", "user", metavar="USER|MASK", help="One user, or those that match a mask (* and ?)."),
    click.option("-A", "all_users", is_flag=True, help="All users of the list (-F, else the setting user_list)."),
    click.option(
        "-F",
        "list_file",
        metavar="FILE",
        help="The user list: names, CSV, or another tool's; - is stdin.",
    ),
    click.option("--list-format", metavar="NAME", help="The form of the user list, where it is not clear."),
    click.option("--watch-list", is_flag=True, help="Take up users who are added to the list while the run works."),
    click.option("-U", "source_user", metavar="SRCUSER", help="Whose identity opens the source; default: the user's."),
    click.option("-s", "subscribe", is_flag=True, help="Subscribe each mailbox that is imported into."),
    click.option("--to", metavar="LOCATION", help="The destination; default the setting mail_location."),
    click.option(
        "--first",
        multiple=True,
        metavar="QUERY",
        help="A pass over all users for what this selects too, then the rest; several: one after the other.",
    ),
    click.option(
        "--map",
        "rules",
        multiple=True,
        metavar="RULE",
        help="Another name for a mailbox: OLD=NEW (what is below it follows), or s/REGEX/REPLACEMENT/ with $1, i and g;"
        " levels are joined by /. Several: the first that matches.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Leave out the mailboxes that match: * any text, % within a level, as LIST. Repeatable.",
    ),
    click.option(
        "--special-use",
        is_flag=True,
        help="Sent, Trash, Junk, Drafts, Archive go to what is that at the destination, whatever it is called there;"
        " what is below them follows.",
    ),
    click.option(
        "--merge",
        metavar="WAY",
        help="How the mail goes together with what is there: old-over-new, new-over-old, under:NAME or require-empty;"
        " `plan` shows what clients will see.",
    ),
    click.option(
        "--order",
        type=click.Choice(["stored", "newest", "oldest"]),
        default="stored",
        show_default=True,
        help="Order within a mailbox: as stored, or by when messages were received.",
    ),
)
LIMITS: Final = (
    click.option("--users", type=click.IntRange(1), default=DEFAULTS.users, show_default=True,
                 help="Users imported at the same time."),
    click.option("--connections-per-user", type=click.IntRange(1), default=DEFAULTS.connections_per_user,
                 show_default=True, help="Mailboxes of one user copied at the same time."),
    click.option("--connections-per-host", type=click.IntRange(1), default=DEFAULTS.connections_per_host,
                 show_default=True, help="Connections to one host over all users."),
    click.option("--max-memory", type=Size(), default=DEFAULTS.max_memory, show_default="256M",
                 help="Message octets in flight over all users."),
    click.option("--limit-rate", type=Size(least=LEAST_RATE), default=DEFAULTS.limit_rate, show_default="none",
                 help="Octets a second to one host, and from it, in any ten seconds."),
    click.option("--messages-per-second", type=click.FloatRange(0.01), default=None, show_default="none",
                 help="Messages a second appended to one host, and fetched from it."),
    click.option("--max-errors", type=click.IntRange(1), default=None,
                 help="Take no new users once N have failed."),
)  # fmt: skip
RUNNING: Final = (
    click.option("--skip-existing", is_flag=True,
                 help="Leave out what the destination already has; two at the source are two at the destination."),
    click.option("--fsync", type=click.Choice(["never", "batch", "each"]), default="batch", show_default=True,
                 help="Durability of local destinations; batch: durable before the journal says so."),
    click.option("--link/--no-link", default=True, show_default=True,
                 help="Hard links from Maildir to Maildir on one file system, where owner and rights are the same."),
    JOURNAL,
    click.option("--no-journal", is_flag=True, help="Remember nothing: a run that is cut cannot be resumed."),
    click.option("--salvage", is_flag=True,
                 help="Take what a damaged sdbox or mdbox still holds; say what is lost."),
    click.option("--repair", type=click.Choice(["on-reject", "never"]), default="never", show_default=True,
                 help="Change a message that was refused until it is taken, and record the change."),
    click.option("--again", is_flag=True, help="Begin a new run beside an unfinished one of the same job."),
    click.option("--progress", type=click.Choice(["auto", "bar", "plain", "none"]), default="auto", show_default=True),
    click.option("--json", "as_json", is_flag=True, help="Print the final report as one JSON document."),
)  # fmt: skip
PROCESSES: Final = (
    click.option("--workers", metavar="N", type=click.IntRange(1), default=None,
                 help="Processes on this machine; 1, as by default, is this one alone. Needs aimport[cluster]."),
    click.option("--cluster", metavar="ADDRESS", help="The workers of a Dask scheduler, tls://HOST:PORT."),
    click.option("--cluster-file", metavar="FILE", help="The same, by the file that the scheduler writes."),
)  # fmt: skip
ARGUMENTS: Final = (
    click.argument("source"),
    click.argument("parent", metavar="DEST_PARENT"),
    click.argument("query", nargs=-1, required=True, type=click.UNPROCESSED),
)


def with_options(*groups: tuple[Callable[[Any], Any], ...]) -> Callable[[Command], Command]:
    """Adds groups of options in the order written."""

    def add(command: Command) -> Command:
        for group in reversed(groups):
            for option in reversed(group):
                command = option(command)
        return command

    return add


WORDS_AS_THEY_STAND: Final = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}
"""Nothing after SOURCE is an option: `-1` and `NOT` are query words."""


def request(
    *,
    source: str,
    parent: str,
    query: tuple[str, ...],
    to: str | None,
    user: str | None,
    all_users: bool,
    list_file: str | None,
    list_format: str | None,
    watch_list: bool,
    source_user: str | None,
    subscribe: bool,
    first: tuple[str, ...],
    order: Order,
    merge: str | None,
    rules: tuple[str, ...],
    exclude: tuple[str, ...],
    special_use: bool,
) -> Request:
    """The selection options and arguments as the planner takes them; one `--` before the query is dropped."""
    if query[:1] == ("--",):
        query = query[1:]
    return Request(
        source=source,
        parent=parent,
        query=query,
        to=to,
        user=user,
        all_users=all_users,
        list_file=list_file,
        list_format=list_format,
        watch_list=watch_list,
        source_user=source_user,
        subscribe=subscribe,
        first=first,
        order=order,
        merge=merge,
        rules=rules,
        exclude=exclude,
        special_use=special_use,
    )
