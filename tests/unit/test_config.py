"""Settings: where they come from, what wins, what is refused, and that no secret shows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from aimport.config import DEFAULTS, PER_USER, Settings, load_settings, nearest, parse_size
from aimport.errors import AimportError, ConfigurationError, UsageError
from aimport.model import Secret

CANARY = "c4nary"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return str(path)


def load(text: str = "", options: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Settings:
    file = write(Path("settings.toml"), text)
    return load_settings(file=file, options=options, environ=environ or {})


def test_without_anything_all_settings_have_their_defaults(tmp_path: Path) -> None:
    assert load_settings(environ={"HOME": str(tmp_path)}) == Settings()
    assert Settings().first_valid_uid == 500
    assert Settings().imapc_ssl == "starttls"


def test_an_option_wins_over_the_environment_which_wins_over_the_file() -> None:
    text = 'mail_location = "file"\nmail_home = "file"\nmail_uid = "file"'
    settings = load(
        text,
        ["mail_location=option"],
        {"AIMPORT_MAIL_LOCATION": "environment", "AIMPORT_MAIL_HOME": "environment", "OTHER": "x"},
    )
    assert (settings.mail_location, settings.mail_home, settings.mail_uid) == ("option", "environment", "file")


def test_an_empty_option_gives_the_default_back() -> None:
    assert load('imapc_ssl = "no"', ["imapc_ssl="]).imapc_ssl == "starttls"
    assert load('mail_home = "/h"', [], {"AIMPORT_MAIL_HOME": ""}).mail_home == "/h"


def test_the_file_here_wins_over_the_one_of_the_xdg_directory(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    write(tmp_path / "xdg/aimport/aimport.toml", 'mail_home = "xdg"')
    assert load_settings(environ=environ).mail_home == "xdg"
    write(tmp_path / "aimport.toml", 'mail_home = "here"')
    assert load_settings(environ=environ).mail_home == "here"
    assert load_settings(file=str(tmp_path / "xdg/aimport/aimport.toml"), environ=environ).mail_home == "xdg"


def test_the_xdg_directory_is_below_the_home_by_default(tmp_path: Path) -> None:
    write(tmp_path / ".config/aimport/aimport.toml", 'mail_home = "xdg"')
    assert load_settings(environ={"HOME": str(tmp_path)}).mail_home == "xdg"


def test_a_file_of_another_user_is_not_taken_up_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "aimport.toml", 'mail_home = "x"')
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match=r"-c \./aimport\.toml"):
        load_settings(environ={})
    assert load_settings(file="./aimport.toml", environ={}).mail_home == "x"


def test_types_of_toml_and_of_text_are_taken() -> None:
    text = 'imapc_port = 1143\ntrust_server_search = true\nsource_daily_bytes = "2500M"\nmail_uid = 1000'
    settings = load(text, ["first_valid_uid=100", "source_auth=PLAIN"])
    assert (settings.imapc_port, settings.trust_server_search) == (1143, True)
    assert settings.source_daily_bytes == 2500 * 1024 * 1024
    assert (settings.mail_uid, settings.first_valid_uid, settings.source_auth) == ("1000", 100, "plain")


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("TRUE", True), ("no", False), ("False", False)])
def test_booleans_in_words(text: str, value: bool) -> None:
    assert load(options=[f"trust_server_search={text}"]).trust_server_search is value


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        *[("500", 500), ("1b", 1), ("2k", 2048), ("2KiB", 2048), ("2 kb", 2048), ("2ki", 2048), ("3M", 3 << 20)],
        *[("1G", 1 << 30), ("1t", 1 << 40), ("0", 0)],
    ],
)
def test_sizes(text: str, octets: int) -> None:
    assert parse_size(text) == octets


@pytest.mark.parametrize("text", ["", "0.5k", "1P", "k", "-1", "1 k b", "\u0661"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('mail_hom = "x"', ["settings.toml:mail_hom", "did you mean mail_home?"]),
        ("[dest]\nuser = 1", ["settings.toml:dest: no such setting"]),
        ("imapc_port = true", ["settings.toml:imapc_port"]),
        ('imapc_port = "imap"', ["settings.toml:imapc_port", "'imap' is not a whole number"]),
        ("imapc_port = 65536", ["out of range"]),
        ("first_valid_uid = -1", ["out of range"]),
        ("imapc_port = 1.5", ["text or a number"]),
        ("mail_home = [1]", ["settings.toml:mail_home"]),
        ("trust_server_search = 1", ["1 is not yes or no"]),
        ('source_daily_bytes = "much"', ["'much' is not a size", "2500M"]),
        ('imapc_ssl = "ssl"', ["'ssl' is none of starttls, imaps, no"]),
        ('dest_auth = "ntlm"', ["'ntlm' is none of plain"]),
        ("mail_home", ["settings.toml: "]),
        ("source_password = 12345", ["settings.toml:source_password: must be text in quotes"]),
    ],
)
def test_a_mistake_in_the_file_is_a_configuration_error_with_its_place(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    for word in words:
        assert word in str(caught.value)
    assert "12345" not in str(caught.value)
    assert caught.value.exit_code == 78


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"/nonexistent\.toml: cannot be read"):
        load_settings(file="/nonexistent.toml", environ={})
    (tmp_path / "latin.toml").write_bytes(b'mail_home = "\xe4"')
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load_settings(file="latin.toml", environ={})


def test_mistakes_in_the_environment_and_in_options_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"AIMPORT_SORCE_USER: no such setting \(did you mean source_user"):
        load(environ={"AIMPORT_SORCE_USER": "x"})
    with pytest.raises(ConfigurationError, match="AIMPORT_IMAPC_PORT: 'x'"):
        load(environ={"AIMPORT_IMAPC_PORT": "x"})
    with pytest.raises(ConfigurationError, match="-o mail_hom: no such setting"):
        load(options=["mail_hom=x"])
    with pytest.raises(UsageError, match="-o KEY=VALUE"):
        load(options=["mail_home"])


def test_variables_of_other_meaning_are_left_alone() -> None:
    assert load(environ={"AIMPORT_CORPUS": "/corpus"}) == Settings()


def test_a_literal_secret_as_an_option_is_refused_and_a_reference_is_not() -> None:
    with pytest.raises(UsageError, match="dest_password") as caught:
        load(options=[f"dest_password={CANARY}"])
    assert caught.value.exit_code == 64
    assert CANARY not in str(caught.value)
    assert load(options=["dest_password=env:PW"]).dest_password == Secret(kind="env", text="PW")


@pytest.mark.parametrize("options", [[CANARY], ["dest_password", CANARY], [f"dest_pasword={CANARY}"]])
def test_a_secret_in_a_mistyped_option_is_not_shown(options: list[str]) -> None:
    with pytest.raises(AimportError) as caught:
        load(options=options)
    assert CANARY not in str(caught.value)


def test_a_literal_secret_in_the_environment_is_taken() -> None:
    settings = load(environ={"AIMPORT_SOURCE_PASSWORD": CANARY})
    assert settings.source_password == Secret(kind="literal", text=CANARY)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_literal_secret_in_a_file_that_others_can_read_is_refused_with_the_chmod(tmp_path: Path, mode: int) -> None:
    file = write(tmp_path / "my settings.toml", f'source_password = "{CANARY}"', mode)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file=file, environ={})
    assert f"chmod 600 '{file}'" in str(caught.value)
    assert CANARY not in str(caught.value)
    Path(file).chmod(0o600)
    assert load_settings(file=file, environ={}).source_password == Secret(kind="literal", text=CANARY)


def test_references_may_stand_in_a_file_that_others_can_read(tmp_path: Path) -> None:
    file = write(tmp_path / "s.toml", 'source_password = "env:PW"', 0o644)
    assert load_settings(file=file, environ={}).source_password == Secret(kind="env", text="PW")


def test_a_broken_file_does_not_show_its_secrets() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(f'source_password = "{CANARY}"\nmail_home = {CANARY}')
    assert CANARY not in str(caught.value) + repr(caught.value.__cause__)


def test_settings_show_no_secret() -> None:
    settings = load(f'source_password = "{CANARY}"\ndest_password = "env:PW"\nmail_home = "/h"\nimapc_port = 9')
    assert CANARY not in repr(settings) + str(settings) + repr(settings.public())
    assert settings.public() == {"dest_password": "env:PW", "mail_home": "/h", "imapc_port": 9}


def test_what_is_fit_for_a_journal_loads_again() -> None:
    settings = load('dest_password = "env:PW"\ntrust_server_search = true\nsource_daily_bytes = "1K"')
    options = [f"{name}={'yes' if value is True else value}" for name, value in settings.public().items()]
    assert load(options=options) == settings


def test_cells_of_a_row_win_over_the_settings() -> None:
    settings = load('mail_home = "/h"\ndest_user = "x"')
    mine = settings.for_user(
        {"mail_home": "/own", "imapc_port": "99", "dest_password": CANARY, "source": "y", "dest_user": ""}
    )
    assert (mine.mail_home, mine.imapc_port, mine.dest_user) == ("/own", 99, "x")
    assert settings.for_user({"source_tls_cert": "/c.pem", "dest_auth": "SCRAM-SHA-1"}) == msgspec.structs.replace(
        settings, source_tls_cert="/c.pem", dest_auth="scram-sha-1"
    )
    assert mine.dest_password == Secret(kind="literal", text=CANARY)
    assert settings.for_user({"source": "y"}) is settings
    with pytest.raises(ConfigurationError, match="imapc_port"):
        settings.for_user({"imapc_port": "x"})


def test_a_row_cannot_change_what_belongs_to_the_run() -> None:
    assert set(DEFAULTS) - PER_USER == {"user_list", "first_valid_uid", "logins_per_second", "daily_wait"}
    assert Settings().for_user({"first_valid_uid": "0"}).first_valid_uid == 500


def test_the_nearest_known_word_is_offered() -> None:
    assert nearest("mail_hom", DEFAULTS) == "did you mean mail_home?"
    assert nearest("INDX", ["INDEX"]) == "did you mean INDEX?"
    assert nearest("zzzzzz", DEFAULTS) == ""
