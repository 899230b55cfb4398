"""Both pages in a real browser that has no network: no complaint, all of it shown."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from aimport import sample
from tests import mail, servers
from tests.pages import looked_at

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def browse(page: Path, folder: Path, *words: str) -> tuple[str, list[str]]:
    """What the browser writes, and what its console says of the page.

    Raises:
        servers.CannotGet: there is no browser here.
    """
    unpacked = servers.find("chromium")
    alone = ["unshare", "--net"] if os.geteuid() == 0 and shutil.which("unshare") else []
    done = subprocess.run(
        [*alone, unpacked.path("usr/lib/chromium/chromium-headless-shell"), "--no-sandbox", "--disable-gpu",
         "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr", "--window-size=1000,3000",
         f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", *words, page.as_uri()],
        env={**unpacked.environment(), "HOME": str(folder)}, capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of a run with an odd user and one without mail, one of a bench."""
    try:
        servers.find("chromium")
    except servers.CannotGet as reason:
        pytest.skip(str(reason))
    root = tmp_path_factory.mktemp("pages")
    odd = '<script>document.title="x"</script>'.replace("/", "&")
    (root / "users").write_text(f"ann\n{odd}\nnobody\n")
    for user in ("ann", odd):
        sample.write_maildir(root / "from" / user, sample.account(user, seed=5, messages=40))
    journal = ("--journal", root / "journal")
    mail.aimport(
        "import", "-F", root / "users", "--to", f"maildir:{root}/to/%u", *journal, f"maildir:{root}/from/%u", "", "ALL"
    )
    done = mail.aimport("report", *journal, "--html", root / "report.html")
    assert done.returncode == 0, done.stderr
    words = ("--messages", "60", "--median", "2K", "--rounds", "2", "--connections", "1,2")
    done = mail.aimport("bench", *words, "--html", root / "bench.html", env={"XDG_STATE_HOME": str(root / "state")})
    assert done.returncode == 0, done.stderr
    return {name: root / f"{name}.html" for name in ("report", "bench")}


@pytest.mark.parametrize("name", ["report", "bench"])
def test_a_page_opens_offline_without_a_complaint_and_as_it_was_written(
    name: str, pages: dict[str, Path], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    _, complaints = browse(pages[name], tmp_path, f"--screenshot={picture}")
    assert complaints == []
    octets = picture.read_bytes()
    assert struct.unpack(">II", octets[16:24]) == (1000, 3000)
    assert len(octets) > 30_000  # an empty page has 10,000
    # Its own style is allowed by its policy: what the style says is what the browser reckons with.
    shown, complaints = browse(pages[name], tmp_path, "--dump-dom")
    assert complaints == []
    written = looked_at(pages[name].read_text(encoding="utf-8"))
    elements = re.sub(r"<style>.*?</style>", "<style>", shown, flags=re.DOTALL)
    assert re.findall(r"<([a-z][a-z0-9]*)", elements) == written.tags


def test_the_browser_of_these_tests_complains_where_a_policy_is_broken(tmp_path: Path) -> None:
    """The check itself can fail."""
    page = tmp_path / "page.html"
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    page.write_text(f"<!DOCTYPE html><html><head>{policy}<style>p {{ color: red }}</style></head><body>x</body></html>")
    _, complaints = browse(page, tmp_path, "--dump-dom")
    assert any("Content Security Policy" in line for line in complaints)
