"""Command lines of the documentation, run as they are written there."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from aimport import sample
from tests import mail
from tests.dbox_made import small_sdbox
from tests.fix_dovecot import Dovecot

Line = Callable[..., "subprocess.CompletedProcess[str]"]


def below(parent: str, seen: Counter[mail.Seen]) -> Counter[mail.Seen]:
    return Counter({item._replace(mailbox=f"{parent}/{item.mailbox}"): count for item, count in seen.items()})


def generate(root: Path, user: str = "x", messages: int = 60) -> Counter[mail.Seen]:
    sample.write_maildir(root, sample.account(user, seed=3, messages=messages))
    return mail.of_samples(sample.account(user, seed=3, messages=messages))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with an aimport.toml, as a postmaster has it; commands run there."""
    (tmp_path / "aimport.toml").write_text(f'mail_home = "{tmp_path}/home/%u"\nmail_location = "maildir:~/Maildir"\n')
    return tmp_path


def typed(home: Path, line: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`line` as typed in a shell, with `aimport` the one of this checkout."""
    words = shlex.split(line)
    assert words[0] == "aimport"
    settings = {"XDG_STATE_HOME": str(home / "state"), "XDG_CONFIG_HOME": str(home / "config"), **(env or {})}
    return mail.aimport(*words[1:], cwd=home, env=settings)


def on_root(home: Path, tree: Path, at: str, line: str) -> subprocess.CompletedProcess[str]:
    """As `typed`, in a mount namespace where `tree` stands at the absolute path `at`."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace (unshare -m): the line names an absolute path")
    words = [sys.executable, "-m", "aimport", *shlex.split(line)[1:]]
    script = f"mount --bind {shlex.quote(str(tree))} {at} && exec {shlex.join(words)}"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=home,
        env=mail.environment({"XDG_STATE_HOME": str(home / "state")}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_home_maildir_of_another_user(home: Path) -> None:
    expected = generate(home / "home" / "sourceuser" / "Maildir")
    done = typed(home, "aimport import -U sourceuser -u destuser 'maildir:~/Maildir' Imported ALL")
    assert done.returncode == 0, done.stderr
    assert mail.in_maildir(home / "home" / "destuser" / "Maildir") == below("Imported", expected)


@pytest.mark.parametrize("key", ["", ":INDEX=MEMORY"])
def test_a_backup_into_the_root(home: Path, key: str) -> None:
    expected = generate(home / "opt" / "backup" / "destuser" / "Maildir")
    before = mail.tree(home / "opt")
    done = on_root(
        home, home / "opt", "/opt", f'aimport import -u destuser maildir:/opt/backup/destuser/Maildir{key} "" ALL'
    )
    assert done.returncode == 0, done.stderr
    assert mail.in_maildir(home / "home" / "destuser" / "Maildir") == expected
    assert mail.tree(home / "opt") == before


def test_the_line_that_brings_new_mails_in_on_top_of_recovered_ones(home: Path) -> None:
    made = small_sdbox(home / "mnt" / "temp-mail-storage" / "user")
    index = home / "mnt" / "temp-index-storage" / "user" / "mailboxes" / "INBOX"
    index.mkdir(parents=True)
    for file in (made.root / "mailboxes" / "INBOX" / "dbox-Mails").glob("dovecot.index*"):
        file.rename(index / file.name)
    before = mail.tree(home / "mnt")
    line = (
        "aimport import -u user@example.com sdbox:/mnt/temp-mail-storage/user:INDEX=/mnt/temp-index-storage/user"
        ':CONTROL=/mnt/temp-index-storage/user:ITERINDEX "" all'
    )
    done = on_root(home, home / "mnt", "/mnt", line)
    assert done.returncode == 0, done.stderr
    seen = mail.in_maildir(home / "home" / "user@example.com" / "Maildir")
    assert sorted(each.digest for each in seen.elements()) == sorted(map(mail.digest, made.bodies))
    assert mail.tree(home / "mnt") == before


def test_imapc_takes_its_server_from_the_settings(home: Path, dovecot: Dovecot, unique_user: str) -> None:
    expected = generate(dovecot.maildir(unique_user))
    dovecot.own(dovecot.home(unique_user))
    with (home / "aimport.toml").open("a") as file:
        file.write(
            f'imapc_host = "localhost"\nimapc_port = {dovecot.port}\nimapc_password = "env:IMAPC_PW"\n'
            f'source_tls_ca = "{dovecot.ca_file}"\n'
        )
    line = f"aimport import -U {unique_user} -u destuser imapc: Imported ALL"
    done = typed(home, line, {"IMAPC_PW": dovecot.password})
    assert done.returncode == 0, done.stderr
    assert mail.in_maildir(home / "home" / "destuser" / "Maildir") == below("Imported", expected)


def test_a_whole_list_to_a_server(home: Path, dovecot: Dovecot, unique_user: str) -> None:
    """The mass form; host and port are those of the test's server."""
    users = [f"{unique_user.partition('@')[0]}{number}@example.com" for number in range(3)]
    expected = {}
    for user in users:
        name, _, domain = user.partition("@")
        expected[user] = generate(home / "backup" / domain / name / "Maildir", user)
    (home / "users.csv").write_text("user\n" + "\n".join(users) + "\n")
    with (home / "aimport.toml").open("a") as file:
        file.write(f'dest_password = "env:PW"\ndest_tls_ca = "{dovecot.ca_file}"\n')
    line = (
        f"aimport import -F users.csv --to imaps://localhost:{dovecot.tls_port} "
        f"'maildir:{home}/backup/%d/%n/Maildir' \"\" ALL"
    )
    done = typed(home, line, {"PW": dovecot.password})
    assert done.returncode == 0, done.stderr
    for user in users:
        assert mail.in_imap(dovecot.port, user, dovecot.password) == expected[user]


def test_subscribed_as_asked(home: Path, dovecot: Dovecot, unique_user: str) -> None:
    generate(home / "home" / unique_user / "Maildir")
    done = typed(
        home,
        f"aimport -o dest_password=env:PW -o dest_tls_ca={dovecot.ca_file} import -u {unique_user} -s "
        f"--to imap://localhost:{dovecot.port}/ 'maildir:~/Maildir' P 'MAILBOX' 'Archive*'",
        {"PW": dovecot.password},
    )
    assert done.returncode == 0, done.stderr
    assert dovecot.doveadm("mailbox", "list", "-s", user=unique_user).split() == ["P/Archive/2023"]


def test_plan_prints_and_touches_nothing(home: Path) -> None:
    generate(home / "home" / "bob" / "Maildir", messages=20)
    before = mail.tree(home)
    done = typed(home, "aimport plan -u bob --json --keys --to 'maildir:~/New' 'maildir:~/Maildir' P MAILBOX INBOX")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    [mailbox] = plan["mailboxes"]
    assert (plan["user"], plan["error"]) == ("bob", None)
    assert (mailbox["source"], mailbox["dest"]) == ("INBOX", "P.INBOX")
    assert len(mailbox["keys"]) == mailbox["messages"]
    assert mailbox["keys"] == sorted(mailbox["keys"])
    assert mail.tree(home) == before
    table = typed(home, "aimport plan -u bob --to 'maildir:~/New' 'maildir:~/Maildir' P ALL")
    assert "INBOX -> P.INBOX" in table.stdout and mailbox["keys"][0] not in table.stdout
    with_keys = typed(home, "aimport plan -u bob --keys --to 'maildir:~/New' 'maildir:~/Maildir' P ALL")
    assert mailbox["keys"][0] in with_keys.stdout
    assert mail.tree(home) == before


def test_report_and_runs_tell_what_was_done(home: Path) -> None:
    generate(home / "home" / "bob" / "Maildir")
    assert typed(home, "aimport import -u bob --to 'maildir:~/New' 'maildir:~/Maildir' '' ALL").returncode == 0
    runs = typed(home, "aimport runs").stdout
    assert "finished" in runs and "import -u bob" in runs
    report = json.loads(typed(home, "aimport report --json").stdout)
    assert report["schema"] == 1 and report["exit"] == 0 and report["run"] == runs.split()[0]
    assert set(report["users"][0]) == {
        "user", "status", "found", "imported", "present", "skipped", "rejected", "altered", "maybe_duplicate",
        "octets", "seconds", "reasons", "error",
    }  # fmt: skip
    assert "60" in typed(home, "aimport report").stdout


def test_an_import_repeats_and_an_unfinished_one_is_resumed(home: Path) -> None:
    """A finished job imports again, as doveadm does; an unfinished one refuses, --again begins anew."""
    expected = generate(home / "home" / "bob" / "Maildir")
    line = "aimport import -u bob --to 'maildir:~/New' 'maildir:~/Maildir' '' ALL"
    assert typed(home, line).returncode == typed(home, line).returncode == 0
    assert mail.in_maildir(home / "home" / "bob" / "New") == expected + expected
    (home / "users").write_text("bob\nmissing\n")
    shutil.rmtree(home / "home" / "bob" / "New")
    line = "aimport import {} -F users --to 'maildir:~/New' 'maildir:~/Maildir' '' ALL"
    assert typed(home, line.format("")).returncode == 75
    refused = typed(home, line.format(""))
    assert refused.returncode == 69
    assert "aimport resume" in refused.stderr and "nothing was touched" in refused.stderr
    assert mail.in_maildir(home / "home" / "bob" / "New") == expected
    generate(home / "home" / "missing" / "Maildir")
    assert typed(home, "aimport resume").returncode == 0
    assert mail.in_maildir(home / "home" / "missing" / "New") == expected
    assert mail.in_maildir(home / "home" / "bob" / "New") == expected
    assert typed(home, "aimport resume").returncode == 0


def test_a_list_from_standard_input_is_given_again_to_resume(home: Path) -> None:
    expected = generate(home / "home" / "bob" / "Maildir")
    words = [
        sys.executable,
        "-m",
        "aimport",
        "import",
        "-F",
        "-",
        "--to",
        "maildir:~/New",
        "maildir:~/Maildir",
        "",
        "ALL",
    ]
    env = mail.environment({"XDG_STATE_HOME": str(home / "state")})

    def run(words: list[str]) -> int:
        return subprocess.run(
            words, cwd=home, env=env, input=b"bob\nlate\n", capture_output=True, timeout=60, check=False
        ).returncode

    assert run(words) == 75
    generate(home / "home" / "late" / "Maildir")
    assert run([sys.executable, "-m", "aimport", "resume"]) == 0
    assert mail.in_maildir(home / "home" / "bob" / "New") == expected
    assert mail.in_maildir(home / "home" / "late" / "New") == expected


@pytest.mark.fault("F28")
def test_a_second_run_on_a_user_who_is_being_imported_gives_way(home: Path) -> None:
    """Another job, the same destination: the second says who holds it and touches nothing, the first goes on."""
    expected = generate(home / "home" / "bob" / "Maildir", messages=3000)
    generate(home / "home" / "other" / "Maildir")
    (home / "two").write_text("ann\nbob\n")
    first = [
        sys.executable,
        "-m",
        "aimport",
        "import",
        "-u",
        "bob",
        "--to",
        "maildir:~/New",
        "maildir:~/Maildir",
        "",
        "ALL",
    ]
    env = mail.environment({"XDG_STATE_HOME": str(home / "state")})
    with subprocess.Popen(
        first, cwd=home, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        while not (home / "home" / "bob" / "New").exists():
            assert run.poll() is None
        second = typed(home, "aimport import -F two -U other --to 'maildir:~/New' 'maildir:~/Maildir' '' ALL")
        _, err = run.communicate(timeout=60)
    assert second.returncode == 69
    assert "bob" in second.stderr and "run" in second.stderr
    assert not (home / "home" / "ann" / "New").exists()
    assert run.returncode == 0, err
    assert mail.in_maildir(home / "home" / "bob" / "New") == expected


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    heavy = {"uvloop", "rich", "distributed", "anyio", "aioimaplib", "asyncio"}
    script = (
        "import sys; from aimport.cli.main import main; code = main(['--help']); "
        f"heavy = sorted({heavy!r} & set(sys.modules)); sys.exit(code or (str(heavy) if heavy else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=mail.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout
