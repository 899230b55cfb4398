"""Tokens are asked for once in their life, by however many; what they say of themselves is believed for that alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from aimport.errors import UserError
from aimport.imap.tokens import MAX_KEPT, Tokens
from aimport.model import Secret

NOW = 1_800_000_000.0


class Clock:
    """Both clocks of a cache; tests move them."""

    def __init__(self) -> None:
        self.passed = 0.0

    def monotonic(self) -> float:
        return 5.0 + self.passed

    def wall(self) -> float:
        return NOW + self.passed

    def tokens(self) -> Tokens:
        return Tokens(clock=self.monotonic, wall_clock=self.wall)


def jwt(**claims: object) -> str:
    parts = (json.dumps({"alg": "none"}), json.dumps(claims))
    return ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts) + ".c2ln"


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], tuple[Secret, Callable[[], int]]]:
    """Makes a command that prints what is given (`@`: the number of the call), and says how often it ran."""

    def make(text: str) -> tuple[Secret, Callable[[], int]]:
        calls, said, script = tmp_path / "calls", tmp_path / "said", tmp_path / "token.sh"
        said.write_text(text)
        script.write_text(f"echo x >> {calls}\nn=$(wc -l < {calls})\nsed s/@/$n/ {said}\n")
        return Secret(kind="cmd", text=f"sh {script}"), lambda: len(calls.read_text().split())

    return make


@pytest.mark.parametrize(
    ("said", "life_s"),
    [
        ("token@", 60),
        ("token@\nexpires_in=3600", 3540),
        ("token@\n  expires_in=3600 \r\nmore", 3540),
        ("token@\n2027-01-15T09:00:00Z", 3540),
        ("token@\n2027-01-15T10:00:00+01:00", 3540),
        ("token@\n2027-01-15T09:00:00", 60),  # without a zone it is no moment
        ("token@\nexpires_in=soon", 60),
        ("token@\nexpires_in=999999999", 86_340),
        (jwt(exp=NOW + 3600) + "@", 3540),
        (jwt(exp=NOW + 3600) + "@\nexpires_in=600", 540),
        (jwt(exp=NOW + 1e11) + "@", 86_340),
        (jwt(exp=True) + "@", 60),
        (jwt(exp="tomorrow") + "@", 60),
        (jwt(sub="x") + "@", 60),
        ("a.b.@", 60),
        ("a.Kg==.@", 60),
    ],
)
async def test_a_token_is_used_until_a_minute_before_its_end(
    said: str, life_s: int, command: Callable[[str], tuple[Secret, Callable[[], int]]]
) -> None:
    secret, calls = command(said)
    clock = Clock()
    tokens = clock.tokens()
    first = await tokens.get(secret)
    clock.passed = life_s - 1
    assert await tokens.get(secret) == first
    assert calls() == 1
    clock.passed = life_s
    second = await tokens.get(secret)
    assert calls() == 2
    assert second == first[:-1] + "2"


@pytest.mark.parametrize("said", ["token@\nexpires_in=60", "token@\nexpires_in=0", jwt(exp=NOW - 5) + "@"])
async def test_a_token_about_to_end_is_used_once(
    said: str, command: Callable[[str], tuple[Secret, Callable[[], int]]]
) -> None:
    secret, calls = command(said)
    tokens = Clock().tokens()
    assert (await tokens.get(secret)).endswith("1")
    assert (await tokens.get(secret)).endswith("2")
    assert calls() == 2


async def test_a_hundred_at_once_ask_once(command: Callable[[str], tuple[Secret, Callable[[], int]]]) -> None:
    secret, calls = command("token@\nexpires_in=60")  # good for these alone
    tokens = Tokens()
    taken: list[str] = []

    async def take() -> None:
        taken.append(await tokens.get(secret))

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(take)
    assert taken == ["token1"] * 100
    assert calls() == 1


async def test_a_command_that_fails_is_run_once_for_all_who_wait_and_again_for_the_next(
    command: Callable[[str], tuple[Secret, Callable[[], int]]],
) -> None:
    secret, calls = command("")
    tokens = Tokens()
    failures: list[UserError] = []

    async def take() -> None:
        with pytest.raises(UserError, match="first line is empty") as caught:
            await tokens.get(secret)
        failures.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(take)
    assert calls() == 1
    assert len({id(failure) for failure in failures}) == 20  # each with a traceback of its own
    await take()
    assert calls() == 2


async def test_one_who_gives_up_does_not_take_the_token_from_the_others(
    command: Callable[[str], tuple[Secret, Callable[[], int]]],
) -> None:
    secret, _ = command("token@")
    tokens = Tokens()
    taken: list[str] = []

    async def take() -> None:
        taken.append(await tokens.get(secret))

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as impatient:
                impatient.start_soon(tokens.get, secret)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(take)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    assert taken == ["token1"]


async def test_a_refused_token_is_replaced_once_for_all(
    command: Callable[[str], tuple[Secret, Callable[[], int]]],
) -> None:
    secret, calls = command("token@\nexpires_in=3600")
    tokens = Tokens()
    refused = await tokens.get(secret)
    renewed: list[str | None] = []

    async def renew() -> None:
        renewed.append(await tokens.renewed(secret, refused))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(renew)
    assert renewed == ["token2"] * 20
    assert await tokens.renewed(secret, refused) == "token2"  # late: someone was faster
    assert await tokens.get(secret) == "token2"
    assert calls() == 2


@pytest.mark.parametrize("kind", ["cmd", "env", "literal"])
async def test_the_same_token_is_no_other_one(
    kind: str, command: Callable[[str], tuple[Secret, Callable[[], int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "token")
    secret = {
        "cmd": command("token")[0],
        "env": Secret(kind="env", text="TOKEN"),
        "literal": Secret(kind="literal", text="token"),
    }[kind]
    tokens = Tokens()
    assert await tokens.renewed(secret, await tokens.get(secret)) is None


async def test_what_is_kept_is_bounded() -> None:
    tokens = Tokens()
    for number in range(MAX_KEPT + 50):
        await tokens.get(Secret(kind="literal", text=f"token{number}"))
    assert len(tokens._entries) == MAX_KEPT
    assert Secret(kind="literal", text="token0") not in tokens._entries


async def test_no_token_is_shown(
    command: Callable[[str], tuple[Secret, Callable[[], int]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret, _ = command("c4nary-token")
    tokens = Tokens()
    assert await tokens.get(secret) == "c4nary-token"
    assert "c4nary" not in caplog.text + repr(tokens) + repr(tokens._entries)
