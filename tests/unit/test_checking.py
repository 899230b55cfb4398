"""What `aimport check` adds up over users: disks that all of them share, hosts, the exit code."""

from __future__ import annotations

import pytest

from aimport.account import Run
from aimport.checking import MAX_HOSTS, Checked, Checker
from aimport.journal import Journal
from aimport.limits import Limits
from aimport.query.parse import parse_query
from aimport.standing import Standing, Volume
from aimport.stores import Stores

KIB = 1024
VOLUME = Volume(device=7, path="/srv", free_octets=100 * KIB, free_files=10, block_octets=4 * KIB, file_each=True)


def checker(*, skip_existing: bool = False, limits: Limits | None = None) -> Checker:
    query = parse_query(("ALL",))
    run = Run(
        stores=Stores(),
        journal=Journal.in_memory(),
        query=query,
        skip_existing=skip_existing,
        limits=limits or Limits(),
    )
    return Checker(run)


def user(
    name: str, *, messages: int = 0, octets: int = 0, volume: Volume | None = VOLUME, linkable: bool = False
) -> Checked:
    checked = Checked(name, messages=messages, octets=octets, linkable=linkable)
    checked.destination.standing = Standing(volume=volume)
    return checked


def test_a_disk_is_too_small_for_all_though_it_has_room_for_each() -> None:
    checks = checker()
    for name in ("a", "b", "c"):
        checks.add(user(name, messages=1, octets=40 * KIB))
    [failure] = checks.failures()
    assert str(failure) == (
        "/srv: about 126.0 KiB in 3 files would be written there, 100.0 KiB and 10 files are free"
    )  # 3 x 40 KiB, and half a block each
    assert (checks.users, checks.to_fix) == (3, 0)  # it is no user's fault


def test_a_disk_runs_out_of_files_before_it_runs_out_of_octets() -> None:
    checks = checker()
    checks.add(user("a", messages=11, octets=KIB))
    assert "11 files" in str(checks.failures()[0])
    roomy = checker()
    unlimited = Volume(
        device=7, path="/srv", free_octets=100 * KIB, free_files=None, block_octets=4 * KIB, file_each=True
    )
    roomy.add(user("a", messages=11, octets=KIB, volume=unlimited))
    assert roomy.failures() == []


def test_what_may_be_linked_or_is_there_already_fails_nobody() -> None:
    linked = checker()
    linked.add(user("a", messages=20, octets=400 * KIB, linkable=True))
    assert linked.failures() == []
    assert linked.disks[7].tight
    there = checker(skip_existing=True)
    there.add(user("a", messages=20, octets=400 * KIB))
    assert there.failures() == []
    assert there.disks[7].tight


def test_two_file_systems_are_two_sums() -> None:
    other = Volume(device=8, path="/home", free_octets=100 * KIB, free_files=None, block_octets=KIB, file_each=False)
    checks = checker()
    checks.add(user("a", messages=1, octets=60 * KIB))
    checks.add(user("b", messages=1000, octets=90 * KIB, volume=other))
    assert checks.failures() == []
    assert checks.disks[8].files == 0  # one file a mailbox


@pytest.mark.parametrize(
    ("limits", "both", "seconds", "reason"),
    [
        (Limits(limit_rate=KIB), False, 200, "--limit-rate allows 1.0 KiB/s at new.example:993"),
        (Limits(limit_rate=KIB), True, 400, "--limit-rate allows 1.0 KiB/s at new.example:993"),  # out and in
        (Limits(messages_per_second=2.0), True, 500, "--messages-per-second allows 2 at new.example:993"),
    ],
)
def test_the_rates_that_were_asked_for_hold_for_a_host_over_all_users(
    limits: Limits, both: bool, seconds: float, reason: str
) -> None:
    checks = checker(limits=limits)
    for name in ("a", "b"):
        checked = user(name, messages=500, octets=100 * KIB, volume=None)
        checked.destination.host = "new.example:993"
        checked.source.host = "new.example:993" if both else ""
        checks.add(checked)
    assert checks.estimate.seconds == seconds
    assert checks.estimate.reasons()[0] == reason


@pytest.mark.parametrize("hosts", [MAX_HOSTS * 3])
def test_hosts_by_the_million_take_no_memory(hosts: int) -> None:
    checks = checker()
    for number in range(hosts):
        checked = user("a", volume=None)
        checked.source.host = f"host{number}.example.org:993"
        checks.add(checked)
    assert len(checks.hosts) == MAX_HOSTS
    assert checks.users == hosts
