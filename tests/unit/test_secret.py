"""Secrets come by reference, are revealed in one place and are never shown."""

from __future__ import annotations

import base64
import logging
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport import secret as module
from aimport.errors import ConfigurationError, UsageError, UserError
from aimport.model import Secret
from aimport.secret import check_private, describe, parse_secret, redact, reveal, reveal_lines

CANARY = "c4nary-Pässword+/="


@pytest.mark.parametrize("text", ["env:NAME", "file:/etc/secret", "cmd:pass show 'a b'"])
def test_references_are_taken_from_everywhere(text: str) -> None:
    for origin in ("argument", "environment", "file", "list"):
        secret = parse_secret(text, origin)
        assert f"{secret.kind}:{secret.text}" == text


def test_a_literal_secret_is_refused_on_the_command_line_without_showing_it() -> None:
    with pytest.raises(UsageError) as caught:
        parse_secret(CANARY, "argument", name="dest_password")
    assert caught.value.exit_code == 64
    assert CANARY not in str(caught.value) + repr(caught.value)
    for word in ("dest_password", "env:NAME", "file:PATH", "cmd:COMMAND"):
        assert word in str(caught.value)


def test_a_literal_secret_elsewhere_is_kept_and_not_shown() -> None:
    secret = parse_secret(CANARY, "file")
    assert reveal(secret) == CANARY
    assert CANARY not in repr(secret) + str(secret) + describe(secret)


@pytest.mark.parametrize("text", ["env:", "file: ", "cmd:\t"])
def test_a_reference_to_nothing_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigurationError, match="source_password"):
        parse_secret(text, "file", name="source_password")


def test_a_variable_of_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", CANARY)
    assert reveal(Secret(kind="env", text="PW")) == CANARY
    monkeypatch.delenv("PW")
    with pytest.raises(UserError, match="env:PW"):
        reveal(Secret(kind="env", text="PW"))


def test_the_line_after_a_secret_is_handed_over_beside_it(tmp_path: Path) -> None:
    for octets, second in ((b"x", ""), (b"x\n", ""), (b"x\r\nexpires_in=5\r\nz", "expires_in=5"), (b"x\n\xff\n", "")):
        (tmp_path / "t").write_bytes(octets)
        (tmp_path / "t").chmod(0o600)
        assert reveal_lines(Secret(kind="file", text=str(tmp_path / "t"))) == ("x", second)
        assert reveal_lines(Secret(kind="cmd", text=f"cat {tmp_path / 't'}")) == ("x", second)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nsecond line\n"])
def test_the_first_line_of_a_file_is_read(tmp_path: Path, end: str) -> None:
    file = tmp_path / "pw"
    file.write_bytes(f"{CANARY}{end}".encode())
    file.chmod(0o600)
    assert reveal(Secret(kind="file", text=str(file))) == CANARY


def test_a_file_that_others_can_read_is_warned_about_without_its_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pw"
    file.write_text(CANARY)
    file.chmod(0o644)
    with caplog.at_level(logging.DEBUG):
        reveal(Secret(kind="file", text=str(file)))
    assert str(file) in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize("content", [b"", b"\nx", CANARY.encode("latin-1")])
def test_a_file_without_a_usable_line_fails_without_its_content(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "pw"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(UserError) as caught:
        reveal(Secret(kind="file", text=str(file)))
    assert "c4nary" not in str(caught.value) + repr(caught.value.__cause__)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match="file:/nonexistent/pw"):
        reveal(Secret(kind="file", text="/nonexistent/pw"))
    with pytest.raises(UserError):
        reveal(Secret(kind="file", text="a\0b"))


def test_a_command_is_run_without_a_shell() -> None:
    assert reveal(Secret(kind="cmd", text="printf '%s\\n' 'a b' '$HOME' | cat")) == "a b"
    assert reveal(Secret(kind="cmd", text=f"echo '{CANARY}'")) == CANARY


@pytest.mark.parametrize(
    "command",
    [f"false {CANARY}", f"/nonexistent {CANARY}", f"'{CANARY}", f"true {CANARY}", f"sh -c 'echo {CANARY};exit 3'"],
)
def test_a_command_that_fails_is_named_without_its_arguments(command: str) -> None:
    with pytest.raises(UserError) as caught:
        reveal(Secret(kind="cmd", text=command))
    if not command.startswith("'"):
        assert f"cmd:{command.split()[0]}" in str(caught.value)
        assert CANARY not in str(caught.value)


def test_a_command_that_hangs_is_ended_with_all_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMAND_DEADLINE_S", 0.3)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no answer in 0\.3 s"):
        reveal(Secret(kind="cmd", text="sh -c 'sleep 60 & sleep 60'"))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("mode", "private"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False)])
def test_a_file_with_a_literal_secret_must_be_private(mode: int, private: bool) -> None:
    if private:
        check_private("/etc/a b", mode, "source_password")
        return
    with pytest.raises(ConfigurationError, match="chmod 600 '/etc/a b'"):
        check_private("/etc/a b", mode, "source_password")


def test_secrets_are_redacted_in_every_shape() -> None:
    octets = CANARY.encode()
    shapes = [
        CANARY,
        base64.b64encode(octets).decode(),
        base64.b64encode(b"\0bob\0" + octets).decode(),
        base64.urlsafe_b64encode(b"\0bobby\0" + octets).decode(),
        "c4nary%2DP%C3%A4ssword%2B%2F%3D",
    ]
    for shape in shapes:
        shown = redact(f"before {shape} after", [CANARY, ""])
        assert "***" in shown
        assert "4nary" not in shown
        assert base64.b64encode(octets)[4:20].decode() not in shown
        assert shown.startswith("before ")


@given(st.binary(max_size=12), st.text(min_size=6), st.binary(max_size=12))
def test_no_base64_of_a_message_around_the_secret_survives(before: bytes, secret: str, after: bytes) -> None:
    encoded = base64.b64encode(before + secret.encode("utf-8", "ignore") + after).decode()
    if len(secret.encode("utf-8", "ignore")) >= 6 and secret.encode("utf-8", "ignore").decode() == secret:
        assert "***" in redact(encoded, [secret])
