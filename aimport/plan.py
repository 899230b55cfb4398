"""From arguments, settings and user list to a stream of `UserJob`.

    Request + Settings ──make_plan──▶ Plan ──jobs──▶ UserJob, UserJob, ...

What is wrong for every user stops here, before anything starts; what is wrong for one user
becomes the `error` of its job. Jobs are made one at a time, in the order of the list.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import msgspec

from aimport.config import Settings
from aimport.errors import AimportError, ConfigurationError, NoSuchUser, UsageError, UserError
from aimport.location import parse_location, split_location, system_home, with_attachments
from aimport.mapping import Naming, parse_rule
from aimport.merging import Merge, parse_merge
from aimport.model import Endpoint, Order, UserJob
from aimport.query.dates import Clock
from aimport.query.parse import parse_query
from aimport.query.query import Query
from aimport.rights import OWNER, Setting, named_id, with_rights
from aimport.seen import Seen
from aimport.users import UserList, UserRow, check_users, iter_users
from aimport.variables import Variables, expand, wildcard

logger = logging.getLogger(__name__)

_SAMPLES: Final = ("sample1@one.example.org", "sample2@two.example.org")
"""Users that stand for all when templates are tried out."""
_SAMPLE_CELLS: Final = {
    "source": "memory:sample",
    "dest": "memory:sample",
    "mail_location": "memory:sample",
    "mail_path": "/nonexistent",
    "mail_home": "/nonexistent",
}
"""Cells that let every location parse, so that only what the list does not bring is missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of import, plan and check, as given."""

    source: str
    parent: str
    query: tuple[str, ...]
    to: str | None = None
    user: str | None = None
    all_users: bool = False
    list_file: str | None = None
    list_format: str | None = None
    """The form of the list (`lists.forms`); None: detected."""
    watch_list: bool = False
    """Users who are added to the list while the run works are imported too."""
    source_user: str | None = None
    subscribe: bool = False
    first: tuple[str, ...] = ()
    """Queries, each as one text that a shell would split."""
    order: Order = "stored"
    merge: str | None = None
    rules: tuple[str, ...] = ()
    """Of `--map`."""
    exclude: tuple[str, ...] = ()
    special_use: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The users chosen: one row, or those of a list that match `mask` (None: all)."""

    single: UserRow | None = None
    users: UserList | None = None
    mask: re.Pattern[str] | None = None

    def rows(self) -> Iterator[UserRow]:
        """The rows in list order."""
        if self.single is not None:
            yield self.single
        elif self.users is not None:
            for row in iter_users(self.users):
                if self.mask is None or self.mask.fullmatch(row.user):
                    yield row


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is to do. `source_row` is the row of SRCUSER (`-U`); None: every user's own."""

    request: Request
    settings: Settings
    query: Query
    first: tuple[Query, ...]
    selection: Selection
    source_row: UserRow | None = None
    moment: int = 0
    """What relative dates of the query count from, seconds since 1970."""
    merge: Merge | None = None
    naming: Naming = field(default_factory=Naming)


def make_plan(
    request: Request,
    settings: Settings,
    *,
    environ: Mapping[str, str] = os.environ,
    stdin: BinaryIO | None = None,
    now: int | None = None,
    copy_list: bool = False,
) -> Plan:
    """Reads and checks all that can be checked without touching mail.

    Relative dates count from `now`, seconds since 1970; None: from this moment. With `copy_list` the user list may be
    written to while the plan is used.

    Raises:
        UsageError: the query, the user list or a literal password in a location; no user at all.
        ConfigurationError: no destination, a location that is wrong for every user.
        NoSuchUser: the single user is not in the list, or has no home.
        UserError: the single user cannot be imported.
    """
    moment = int(time.time()) if now is None else now
    query = parse_query(request.query, local_clock(moment))
    request, merge = merged(request)
    naming = Naming(
        exclude=request.exclude, rules=tuple(map(parse_rule, request.rules)), special_use=request.special_use
    )
    selection = choose_users(request, settings, environ, stdin=stdin, copy_list=copy_list)
    source_row = None
    if request.source_user is not None:
        if not request.source_user:
            raise UsageError("-U: the name is empty")
        row = _find(selection.users, request.source_user) if selection.users else None
        source_row = row or UserRow(user=request.source_user)
    first = tuple(_first(text, moment) for text in request.first)
    for warning in dict.fromkeys(warning for each in (query, *first) for warning in each.warnings):
        logger.warning("query: %s", warning)
    plan = Plan(
        request=request,
        settings=settings,
        query=query,
        first=first,
        selection=selection,
        source_row=source_row,
        moment=moment,
        merge=merge,
        naming=naming,
    )
    if selection.single is not None:
        _make_job(plan, selection.single)
    else:
        _try_out(plan)
    return plan


def merged(request: Request) -> tuple[Request, Merge | None]:
    """The request with the DEST_PARENT that `--merge under:NAME` is, and the way of merging.

    Raises:
        UsageError: there is no such way, or a DEST_PARENT stands beside `under:`.
    """
    if request.merge is None:
        return request, None
    merge = parse_merge(request.merge)
    if merge.way != "under":
        return request, merge
    if request.parent:
        raise UsageError(f"--merge {merge} is DEST_PARENT {merge.parent}", hint='write "" for DEST_PARENT')
    return dataclasses.replace(request, parent=merge.parent), merge


def _first(text: str, moment: int) -> Query:
    """The query of one `--first`."""
    try:
        words = shlex.split(text)
    except ValueError:
        raise UsageError(f"--first {text!r}: a quote without its end") from None
    return parse_query(words, local_clock(moment))


def local_clock(now: int) -> Clock:
    """A clock that stands at `now`, in the zone of this process."""
    return Clock(
        now=now,
        offset=lambda moment: time.localtime(moment).tm_gmtoff,
        midnight=lambda year, month, day: int(time.mktime((year, month, day, 0, 0, 0, 0, 0, 0))),
    )


def destination_of(settings: Settings) -> str:
    """The destination that the settings say, "" when they say none.

    Raises:
        ConfigurationError: they say two, or half of one.
    """
    return split_location(settings) or settings.mail_location


def choose_users(
    request: Request,
    settings: Settings,
    environ: Mapping[str, str] = os.environ,
    *,
    stdin: BinaryIO | None = None,
    copy_list: bool = False,
) -> Selection:
    """Whom to import: `-A` or `-F` alone, all of the list; `-u MASK`, those that match; `-u USER`; else `$USER`.

    Raises:
        UsageError: the list is wrong or cannot be read; no user is named and `$USER` is not set.
        NoSuchUser: there is a list and the user is not in it.
        ConfigurationError: `-A` or a mask without a list.
    """
    source = request.list_file if request.list_file is not None else os.path.expanduser(settings.user_list)
    users = None
    if source or request.list_file is not None:
        users = check_users(source, stdin=stdin, form=request.list_format, copy=copy_list)
        for note in users.notes:
            logger.warning("user list: %s: %s", users.name, note)
        if users.left_out:
            logger.warning("user list: %s: %d rows are left out, as it says itself", users.name, users.left_out)
    elif request.list_format is not None:
        raise UsageError("--list-format without a list", hint="give it with -F FILE or set user_list")
    name = request.user
    is_mask = name is not None and ("*" in name or "?" in name)
    if request.all_users or (request.list_file is not None and name is None) or is_mask:
        if users is None:
            what = "-A" if request.all_users else f"-u {name}"
            raise ConfigurationError(f"{what} needs a list of users", hint="give it with -F FILE or set user_list")
        if request.all_users or name is None:
            return Selection(users=users)
        return Selection(users=users, mask=wildcard(name, re.IGNORECASE))
    if name is None and not (name := environ.get("USER")):
        raise UsageError("no user is named and $USER is not set", hint="give -u USER, -A or -F FILE")
    if not name:
        raise UsageError("-u: the name is empty")
    if users is None:
        return Selection(single=UserRow(user=name))
    row = _find(users, name)
    if row is None:
        raise NoSuchUser(f"user {name!r} is not in {users.name}")
    return Selection(single=row, users=users)


def jobs(plan: Plan, *, rows: Iterable[UserRow] | None = None, taken: Seen | None = None) -> Iterator[UserJob]:
    """One job for each user, made when it is asked for. A user who cannot begin has its `error` set.

    `rows` are other users than those of the plan, `taken` the destinations of those before them.

    Two users with the same destination and parent would be merged silently: the second one has an error.

    Raises:
        UsageError: the user list was written to since the plan was made.
    """
    taken = taken or Seen()
    for row in plan.selection.rows() if rows is None else rows:
        try:
            job = _make_job(plan, row)
            if not taken.add(job.destination.identity, job.parent):
                raise UserError(
                    f"user {row.user!r}: {job.destination.identity} is also the destination of another user"
                )
        except AimportError as exc:
            nowhere = Endpoint(scheme="")
            job = UserJob(user=row.user, source=nowhere, destination=nowhere, error=str(exc), status=exc.status)
        yield job


def variables_for(user: str, settings: Settings) -> Variables:
    """Variables of `user`; `settings` are already those of this user."""

    def home() -> str:
        if not settings.mail_home:
            found = system_home(user)
            if found is None:
                raise NoSuchUser(f"user {user!r} has no home: no system user has this name", hint="set mail_home")
            return found
        path = expand(settings.mail_home, Variables(user=user, home=no_home, uid=uid, gid=gid))
        if not path.startswith("/"):
            raise ConfigurationError(f"mail_home: {settings.mail_home!r} does not begin with /")
        return path

    def no_home() -> str:
        raise ConfigurationError(f"mail_home: {settings.mail_home!r} holds the home itself")

    def uid() -> int:
        return _id_of("mail_uid", expand(settings.mail_uid, Variables(user=user)), os.geteuid())

    def gid() -> int:
        return _id_of("mail_gid", expand(settings.mail_gid, Variables(user=user)), os.getegid())

    return Variables(user=user, home=home, uid=uid, gid=gid)


def _id_of(setting: Setting, text: str, default: int) -> int:
    if not text or text == OWNER:
        return default
    known = named_id(setting, text)
    if known is None:
        raise ConfigurationError(f"{setting}: the system does not know {text!r}")
    return known


def _find(users: UserList, name: str) -> UserRow | None:
    """The row of `name`; reads to the end, so that a list that was changed is noticed."""
    found = None
    for row in iter_users(users):
        if row.user == name:
            found = row
    return found


def _make_job(plan: Plan, row: UserRow) -> UserJob:
    """The job of one user.

    Raises:
        ConfigurationError, UsageError, UserError: it cannot be made.
    """
    request = plan.request
    settings = plan.settings.for_user(row.cells)
    variables = variables_for(row.user, settings)
    source_row = plan.source_row or row
    source_settings, source_variables = settings, variables
    if plan.source_row is not None:
        source_settings = plan.settings.for_user(source_row.cells)
        source_variables = variables_for(source_row.user, source_settings)
    location = source_row.cells.get("source") or request.source
    if not location:
        raise ConfigurationError("no source", hint="give SOURCE, or a column source in the user list")
    source = parse_location(
        location,
        source_variables,
        side="source",
        settings=source_settings,
    )
    source = with_attachments(source, source_variables, source_settings)
    to = row.cells.get("dest") or request.to or destination_of(settings)
    if not to:
        raise ConfigurationError("no destination", hint="give --to LOCATION or set mail_location")
    destination = parse_location(to, variables, side="destination", settings=settings)
    rights = with_rights(destination, source, settings, variables, row.cells)
    destination = dataclasses.replace(destination, rights=rights)
    rights = with_rights(source, source, source_settings, source_variables, source_row.cells)
    source = dataclasses.replace(source, rights=rights)
    parent = expand(row.cells.get("parent") or request.parent, variables)
    return UserJob(user=row.user, source=source, destination=destination, parent=parent)


def _for_all(text: str) -> str:
    """An id as it is written, where it is the same for all users."""
    return "" if text == OWNER or "%" in text else text


def _try_out(plan: Plan) -> None:
    """Tries the templates that all users share with sample users; cells of the list are only known to exist.

    Raises:
        ConfigurationError, UsageError: what every user would meet.
    """
    users = plan.selection.users
    columns = frozenset(users.columns) if users else frozenset()
    cells = {
        column: _SAMPLE_CELLS.get(column, "sample")
        for column in columns
        if column in _SAMPLE_CELLS or column.endswith(("_user", "_password", "_host"))
    }
    settings = msgspec.structs.replace(
        plan.settings,
        mail_home=plan.settings.mail_home or "/nonexistent",
        mail_uid=_for_all(plan.settings.mail_uid),
        mail_gid=_for_all(plan.settings.mail_gid),
    )
    try:
        first, second = (
            _make_job(dataclasses.replace(plan, settings=settings), UserRow(user=name, cells=cells))
            for name in _SAMPLES
        )
    except UserError:
        return  # of sample users alone
    same = (first.destination.identity, first.parent) == (second.destination.identity, second.parent)
    own = columns & {"dest", "dest_user", "parent", "mail_location", "mail_path", "mail_home", "imapc_user"}
    if same and not own and users and users.count > 1 and plan.selection.mask is None:
        raise ConfigurationError(
            f"every user would be imported into {first.destination.identity}",
            hint="put %u, or %d and %n, into the destination or DEST_PARENT",
        )
