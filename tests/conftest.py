"""What holds for every test: the loop, the share of slow tests, the servers, and an honest end.

A skip is said with its reason. Where AIMPORT_REQUIRE names a marker (`dovecot,cyrus`), a
skip of a test with that marker is a failure: a machine that must test against it cannot
pass by not having it.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import hypothesis
import pytest

from tests import servers
from tests.processes import tail

pytest_plugins = ("tests.fix_dovecot", "tests.fix_cyrus", "tests.fix_courier", "tests.fix_faults", "tests.fix_rights")

SERVER_MARKERS: Final = ("dovecot", "cyrus", "courier")  # each has a fixture of its name
hypothesis.settings.register_profile("aimport", deadline=None)  # a busy machine is not a counterexample
hypothesis.settings.load_profile("aimport")

SLOW: Final = "aimport_slow"
SLOW_LEFT_OUT = pytest.StashKey[int]()
SLOW_TAKEN = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aimport")
    group.addoption(
        "--loop", choices=("asyncio", "uvloop"), default="uvloop", help="event loop of async tests (default: uvloop)"
    )
    group.addoption(
        "--slow-share",
        default=os.environ.get("AIMPORT_SLOW_SHARE", "0"),
        type=_share,
        help="percent of the tests marked slow that run, or 'all' (default: AIMPORT_SLOW_SHARE or 0); "
        "always the same ones for the same number; a test named with :: runs anyhow",
    )


def _share(text: str) -> int:
    return 100 if text == "all" else int(text)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """One loop for all async tests, chosen by `--loop`."""
    if config.getoption("--loop") == "uvloop" and sys.platform != "win32":
        import uvloop

        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.SelectorEventLoop}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share: int = config.getoption("--slow-share")
    named = any("::" in argument for argument in config.args)
    kept, left_out, taken = [], [], 0
    for item in items:
        for name in SERVER_MARKERS:
            if name in getattr(item, "fixturenames", ()):  # the need is a fact, whether or not it was marked
                item.add_marker(name)
        if item.get_closest_marker("slow") is None:
            kept.append(item)
        elif named or zlib.crc32(item.nodeid.encode()) % 100 < share:
            kept.append(item)
            taken += 1
        else:
            left_out.append(item)
    items[:] = kept
    config.stash[SLOW_TAKEN] = taken
    config.stash[SLOW_LEFT_OUT] = len(left_out)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    if (told := _workeroutput(config)) is not None:
        told[SLOW] = (taken, len(left_out))


def _workeroutput(config: pytest.Config) -> dict[str, object] | None:
    """What a worker of xdist tells the process that began it; None outside of one."""
    output: dict[str, object] | None = getattr(config, "workeroutput", None)
    return output


class FromWorkers:
    """Of the processes that run tests, each has collected all of them."""

    def pytest_testnodedown(self, node: object) -> None:
        told = getattr(node, "workeroutput", {}).get(SLOW)
        if told is not None:
            config: pytest.Config = node.config  # type: ignore[attr-defined]  # xdist is not typed
            config.stash[SLOW_TAKEN], config.stash[SLOW_LEFT_OUT] = told


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        config.pluginmanager.register(FromWorkers())


def _required() -> frozenset[str]:
    names = frozenset(filter(None, os.environ.get("AIMPORT_REQUIRE", "").replace(",", " ").split()))
    unknown = names - {*SERVER_MARKERS, "corpus"}
    if unknown:
        raise pytest.UsageError(f"AIMPORT_REQUIRE: unknown: {', '.join(sorted(unknown))}")
    return names


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A test that starts a server of its own is skipped where there is none, as those that use the fixture are."""
    try:
        yield
    except servers.CannotGet as reason:
        name = str(reason).partition(":")[0]
        if name in SERVER_MARKERS:
            item.add_marker(name)
        pytest.skip(str(reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # A lone surrogate in what a test logged (names from servers) cannot pass from a worker of xdist, and ends it.
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    if report.failed:
        for name in SERVER_MARKERS:
            server = getattr(item, "funcargs", {}).get(name)
            if server is not None:
                report.sections.append((f"end of the log of {name}", tail([server.log], lines=15)))
    if report.skipped and not hasattr(report, "wasxfail"):
        for name in _required():
            if item.get_closest_marker(name) is not None:
                report.outcome = "failed"
                report.longrepr = f"skipped, but AIMPORT_REQUIRE names {name}: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport) -> str:
    """Why a test was skipped, in the words of the one that skipped it."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


def pytest_report_header(config: pytest.Config) -> Sequence[str]:
    found = []
    for name in SERVER_MARKERS:
        try:
            found.append(f"{name} {servers.find(name).version}")
        except servers.CannotGet as reason:
            found.append(f"no {reason}")
    required = ", ".join(sorted(_required()))
    packages = ", ".join(f"{name} {version(name)}" for name in ("anyio", "aioimaplib", "uvloop", "hypothesis"))
    return [
        f"python {platform.python_version()}, {packages}; loop: {config.getoption('--loop')}",
        f"servers: {'; '.join(found)}" + (f"; required: {required}" if required else ""),
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Every reason for a skip with its count, and what share of the slow tests was seen."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", ()))
    if reasons:
        terminalreporter.section("not run")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:4d} {reason}")
    taken, left_out = config.stash.get(SLOW_TAKEN, 0), config.stash.get(SLOW_LEFT_OUT, 0)
    if left_out:
        terminalreporter.line(
            f"slow tests: {taken} of {taken + left_out} (--slow-share; `make test SLOW_SHARE=all` runs all)"
        )


@pytest.fixture
def unique_user() -> str:
    """A user name that no other test has: one server serves all tests of a run."""
    return f"u{uuid.uuid4().hex[:12]}@example.org"


@pytest.fixture(scope="session")
def corpus() -> Path:
    """A folder of collected mail that is too large, or not ours, to be in the repository."""
    named = os.environ.get("AIMPORT_CORPUS")
    path = Path(named) if named else servers.ROOT.parent / "shared" / "corpus"
    if not path.is_dir():
        pytest.skip(
            f"no mail corpus: {f'AIMPORT_CORPUS={named} is no folder' if named else 'AIMPORT_CORPUS is not set'}"
        )
    return path
