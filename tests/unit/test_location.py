"""Locations become endpoints; values never become syntax; no password is ever shown."""

from __future__ import annotations

import os
import pwd

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.config import Settings
from aimport.errors import AimportError, ConfigurationError, NoSuchUser, UsageError, UserError
from aimport.location import (
    KEYS,
    OWN_KEYS,
    SETTING_KEYS,
    Side,
    check_password,
    parse_location,
    shown_location,
    split_location,
    with_attachments,
)
from aimport.model import Endpoint, Secret
from aimport.secret import reveal
from aimport.variables import Variables

CANARY = "c4nary"
BOB = Variables(user="bob@example.org", home="/home/bob")
PASSWORDS = Settings(
    source_password=Secret(kind="literal", text="source"), dest_password=Secret(kind="literal", text="dest")
)


def parse(text: str, variables: Variables = BOB, *, side: Side = "source", settings: Settings = PASSWORDS) -> Endpoint:
    return parse_location(text, variables, side=side, settings=settings)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("maildir:/srv/%d/%n/Maildir", "/srv/example.org/bob/Maildir"),
        ("maildir:/srv/mail/", "/srv/mail"),
        ("maildir:/srv//mail", "/srv/mail"),
        ("maildir:/", "/"),
        ("maildir:/srv:", "/srv"),
        ("maildir:/a::b", "/a:b"),
        ("maildir:/a::::b", "/a::b"),
        ("maildir:~/Maildir", "/home/bob/Maildir"),
        ("maildir:~", "/home/bob"),
        ("maildir:%h/Maildir", "/home/bob/Maildir"),
        ("maildir:~root/Maildir", f"{pwd.getpwnam('root').pw_dir}/Maildir"),
        ("maildir:/srv/%{md5;truncate=8:user}/%u", "/srv/10/bob@example.org"),
        ("maildir:/100%%", "/100%"),
        ("maildir:/srv/../mail", "/srv/../mail"),
        ("MAILDIR:/srv", "/srv"),
    ],
)
def test_the_path_of_a_maildir(text: str, path: str) -> None:
    assert parse(text) == Endpoint(scheme="maildir", path=path)


def test_a_relative_path_is_made_absolute() -> None:
    assert parse("maildir:backup/%n").path == f"{os.getcwd()}/backup/bob"


def test_keys_are_kept_in_order_with_their_values() -> None:
    endpoint = parse("maildir:/m:INDEX=MEMORY:CONTROL=~/c/:ITERINDEX:LAYOUT=FS:INBOX=/in/%n:UTF-8:BROKENCHAR=^:")
    assert endpoint.options == (
        ("INDEX", "MEMORY"),
        ("CONTROL", "/home/bob/c"),
        ("ITERINDEX", ""),
        ("LAYOUT", "FS"),
        ("INBOX", "/in/bob"),
        ("UTF-8", ""),
        ("BROKENCHAR", "^"),
    )


@pytest.mark.parametrize(("setting", "key"), sorted(SETTING_KEYS.items()))
def test_every_setting_of_dovecot_2_4_may_stand_for_its_key(setting: str, key: str) -> None:
    values = {"LAYOUT": "fs", "BROKENCHAR": "^", "ESCAPECHAR": "^"}
    value = values.get(key) or ("yes" if key in ("UTF-8", "ITERINDEX", "NO-NOSELECT") else "/x")
    kept = "" if value == "yes" else value
    assert parse(f"maildir:/m:{setting}={value}").options == ((key, kept),)
    assert key in {*KEYS, *OWN_KEYS}
    split = msgspec.structs.replace(Settings(mail_driver="maildir", mail_path="/a:b/%n"), **{setting: value})
    assert parse(split_location(split)) == Endpoint(scheme="maildir", path="/a:b/bob", options=((key, kept),))


def test_a_switch_of_dovecot_2_4_can_be_off() -> None:
    assert parse("maildir:/m:mailbox_list_utf8=no").options == ()
    with pytest.raises(ConfigurationError, match="yes or no"):
        parse("maildir:/m:mailbox_list_utf8=x")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(mail_driver="maildir"), "without mail_path"),
        (Settings(mail_path="/m"), "without mail_driver"),
        (Settings(mail_inbox_path="/m"), "without mail_driver"),
        (Settings(mail_driver="maildir", mail_path="/m", mail_location="maildir:/n"), "both set"),
    ],
)
def test_half_of_a_split_location_is_refused(settings: Settings, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        split_location(settings)


def test_no_split_location_is_none() -> None:
    assert split_location(Settings(mail_location="maildir:/m")) == ""


@pytest.mark.parametrize("key", sorted(KEYS - {"LAYOUT", "BROKENCHAR"}))
def test_every_key_of_dovecot_is_known(key: str) -> None:
    assert parse(f"maildir:/m:{key}=/x").options == ((key, "/x"),)


@pytest.mark.parametrize("layout", ["Maildir++", "maildir++", "fs", "imapdir", "index", "none"])
def test_every_layout_is_accepted(layout: str) -> None:
    assert parse(f"maildir:/m:LAYOUT={layout}").options == (("LAYOUT", layout),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("maildir:/m:INDX=/i", "unknown key 'INDX' (did you mean INDEX?)"),
        ("maildir:/m:index=/i", "unknown key 'index' (did you mean INDEX?)"),
        ("maildir:/m:x", "unknown key 'x'"),
        ("maildir:/m:LAYOUT=maildir+", "unknown LAYOUT 'maildir+' (did you mean Maildir++?)"),
        ("maildir:/m:mail_inbox_pth=/i", "(did you mean mail_inbox_path?)"),
        ("maildir:/m:BROKENCHAR=ab", "one character"),
        ("maildir:/m:BROKENCHAR", "one character"),
        ("maildir:/m:LAYOUT=zzz", "there are Maildir++, fs"),
        ("maildir:", "has no path"),
        ("maildir::x", "has no path"),
        ("memory:", "has no name"),
        ("maildri:/m", "unknown scheme maildri: (did you mean maildir?)"),
        ("http://example.org/", "unknown scheme http:"),
        ("/srv/mail", "such as maildir:/srv/mail"),
        ("~/Maildir", "such as maildir:~/Maildir"),
        ("%h/Maildir", "such as maildir:"),
        ("maildir", "such as maildir:"),
        ("", "a location begins with its scheme"),
        ("maildir:/m\0", "NUL"),
        ("maildir:/%q", "unknown variable %q"),
        ("imap:host", "a URL has //"),
        ("imap:///", "has no host"),
        ("imap://h/INBOX", "names a mailbox"),
        ("imap://h/#x", "#"),
        ("imap://h/?tls=on", "unknown option 'tls' after the ?"),
        ("imaps://h/?tls=off", "unknown option"),
        ("imap://h:0/", "port"),
        ("imap://h:65536/", "port"),
        ("imap://h:x/", "port"),
        ("imap://[::1/", "host"),
        ("imap://a b/", "host"),
        ("imap://bob%%4@h/", "bad % sequence"),
        ("imap://bob%%FF@h/", "bad % sequence"),
        ("imap://bob;AUTH=magic@h/", "unknown mechanism"),
    ],
)
def test_a_wrong_location_is_a_configuration_error_that_says_what_to_write(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "host", "port", "security", "user"),
    [
        ("imaps://mail.example.org", "mail.example.org", 993, "tls", "bob@example.org"),
        ("imaps://mail.example.org/", "mail.example.org", 993, "tls", "bob@example.org"),
        ("imap://Mail.Example.ORG/", "mail.example.org", 143, "starttls", "bob@example.org"),
        ("imap://h?tls=off", "h", 143, "none", "bob@example.org"),
        ("imap://h:1143/?tls=off", "h", 1143, "none", "bob@example.org"),
        ("imap://eve@h/", "h", 143, "starttls", "eve"),
        ("imap://eve%%40example.net@h/", "h", 143, "starttls", "eve@example.net"),
        ("imap://eve@example.net@h/", "h", 143, "starttls", "eve@example.net"),
        ("imaps://%u@h", "h", 993, "tls", "bob@example.org"),
        ("imaps://%n@mail.%d:1993", "mail.example.org", 1993, "tls", "bob"),
        ("imap://[2001:db8::1]/", "2001:db8::1", 143, "starttls", "bob@example.org"),
        ("imap://[::1]:1143/", "::1", 1143, "starttls", "bob@example.org"),
        ("IMAPS://h/", "h", 993, "tls", "bob@example.org"),
    ],
)
def test_imap_urls(text: str, host: str, port: int, security: str, user: str) -> None:
    endpoint = parse(text)
    assert (endpoint.scheme, endpoint.host, endpoint.port) == ("imap", host, port)
    assert (endpoint.security, endpoint.user, endpoint.login) == (security, user, "")
    assert endpoint.path == ""


def test_a_url_may_name_a_mechanism() -> None:
    assert parse("imap://eve;AUTH=SCRAM-SHA-256@h/").auth == "scram-sha-256"
    assert parse("imap://eve;AUTH=scram-sha-1@h/").auth == "scram-sha-1"
    assert parse("imap://eve;AUTH=*@h/").auth == ""


@pytest.mark.parametrize("user", ["a%40b", "a%2", "a:b", "a/b", "a@b@c", "a?tls=off", "%u", "%%40", "a b"])
def test_a_value_in_a_url_needs_no_escape_and_is_never_syntax(user: str) -> None:
    endpoint = parse("imap://%u@h:1143/", Variables(user=user))
    assert (endpoint.user, endpoint.host, endpoint.port, endpoint.security) == (user, "h", 1143, "starttls")


@pytest.mark.parametrize("user", ["a:INDEX=MEMORY", "a:", "::", "a:b::c"])
def test_a_colon_in_a_value_does_not_end_the_path(user: str) -> None:
    endpoint = parse("maildir:/srv/%u:INDEX=MEMORY", Variables(user=user))
    assert endpoint == Endpoint(scheme="maildir", path=f"/srv/{user}", options=(("INDEX", "MEMORY"),))


@pytest.mark.parametrize(("template", "user"), [("/srv/%u", ".."), ("/srv/%d/x", "a@../b"), ("/srv/%1n%1n", ".")])
def test_a_value_cannot_lead_out_of_its_directory(template: str, user: str) -> None:
    for text in (f"maildir:{template}", f"maildir:/m:INDEX={template}"):
        with pytest.raises(UserError, match=r"'\.\.'"):
            parse(text, Variables(user=user))


@pytest.mark.parametrize("text", ["imap://%d/", "imap://h:%n/", "maildir:/srv/%{env:NUL}", "imap://%{env:NUL}@h/"])
def test_what_is_wrong_with_the_values_of_one_user_fails_that_user_alone(text: str) -> None:
    with pytest.raises(UserError):
        parse(text, Variables(user="bob", environ={"NUL": "a\0b"}))


def test_a_user_without_home_fails_only_where_a_home_is_used() -> None:
    homeless = Variables(user="bob")
    assert parse("maildir:/srv/%u", homeless).path == "/srv/bob"
    for text in ("maildir:~/Maildir", "maildir:%h", "maildir:/m:INDEX=~/i"):
        with pytest.raises(NoSuchUser, match="mail_home"):
            parse(text, homeless)
    with pytest.raises(NoSuchUser, match="no system user 'no-such-user'"):
        parse("maildir:~no-such-user/Maildir")


def test_each_side_logs_in_with_its_own_settings() -> None:
    settings = Settings(
        source_user="%n",
        source_password=Secret(kind="env", text="PASS_%n"),
        source_auth="plain",
        source_tls_ca="/ca/%d.pem",
        dest_user="%d-%n",
        dest_password=Secret(kind="literal", text="100%u"),
        dest_auth="xoauth2",
    )
    source = parse("imaps://h", settings=settings)
    assert (source.user, source.auth, source.tls_ca) == ("bob", "plain", "/ca/example.org.pem")
    assert source.secret == Secret(kind="env", text="PASS_bob")
    destination = parse("imaps://h", side="destination", settings=settings)
    assert (destination.user, destination.auth, destination.tls_ca) == ("example.org-bob", "xoauth2", "")
    assert destination.secret == Secret(kind="literal", text="100%u")


def test_a_master_user_logs_in_and_the_user_is_opened() -> None:
    settings = Settings(
        source_password=Secret(kind="literal", text="users"),
        source_master_user="admin@%d",
        source_master_password=Secret(kind="literal", text="masters"),
    )
    endpoint = parse("imaps://h", settings=settings)
    assert (endpoint.user, endpoint.login) == ("bob@example.org", "admin@example.org")
    assert endpoint.secret == Secret(kind="literal", text="masters")
    assert parse("imaps://h", side="destination").login == ""


@pytest.mark.parametrize(
    ("text", "side", "settings", "missing"),
    [
        ("imaps://h", "source", Settings(), "source_password"),
        ("imaps://h", "destination", Settings(), "dest_password"),
        ("imaps://h", "source", Settings(source_master_user="m"), "source_master_password"),
        ("imapc:", "source", Settings(imapc_host="h"), "imapc_password"),
        ("imapc:", "source", PASSWORDS, "imapc_host"),
    ],
)
def test_a_missing_setting_is_named(text: str, side: Side, settings: Settings, missing: str) -> None:
    with pytest.raises(ConfigurationError, match=f"set {missing}"):
        parse(text, side=side, settings=settings)


def test_external_needs_no_password() -> None:
    assert parse("imaps://h", settings=Settings(source_auth="external")).secret is None


@pytest.mark.parametrize(
    ("ssl", "port", "expected"),
    [("starttls", 0, (143, "starttls")), ("imaps", 0, (993, "tls")), ("no", 0, (143, "none")), ("no", 9, (9, "none"))],
)
def test_imapc_takes_its_connection_from_the_imapc_settings(ssl: str, port: int, expected: tuple[int, str]) -> None:
    settings = Settings(
        imapc_host="imap.%d",
        imapc_port=port,
        imapc_ssl=ssl,
        imapc_user="%n",
        imapc_password=Secret(kind="env", text="PW"),
        imapc_master_user="master",
    )
    for side in ("source", "destination"):
        endpoint = parse("imapc:", side=side, settings=settings)
        assert (endpoint.port, endpoint.security) == expected
        assert (endpoint.scheme, endpoint.host) == ("imap", "imap.example.org")
        assert (endpoint.user, endpoint.login, endpoint.secret) == ("bob", "master", Secret(kind="env", text="PW"))


def test_imapc_falls_back_to_the_log_in_of_its_side() -> None:
    settings = msgspec.structs.replace(PASSWORDS, imapc_host="h", source_user="%d")
    endpoint = parse("imapc:~/imapc", settings=settings)
    assert (endpoint.user, endpoint.login, endpoint.secret) == ("example.org", "", PASSWORDS.source_password)


@pytest.mark.parametrize("host", ["a b", "h:143", "h/x", ""])
def test_imapc_refuses_what_is_no_host(host: str) -> None:
    with pytest.raises(ConfigurationError, match="imapc_host"):
        parse("imapc:", settings=msgspec.structs.replace(PASSWORDS, imapc_host=host))


def test_a_control_character_never_reaches_the_log_in() -> None:
    for text in ("imap://%u@h/", "imap://h/"):
        with pytest.raises(UserError, match="control character"):
            parse(text, Variables(user="bob\r\nA1 DELETE x"))
    with pytest.raises(UserError):
        parse("imap://a%%0D%%0Ab@h/")


@pytest.mark.parametrize(
    ("text", "kind", "reference"),
    [
        ("imaps://eve:env%%3APW@h", "env", "PW"),
        ("imaps://eve:env:PW_%n@h", "env", "PW_bob"),
        ("imaps://eve:file%%3A%%2Fetc%%2F%d@h", "file", "/etc/example.org"),
        ("imaps://eve:cmd:pass%%20show@h", "cmd", "pass show"),
        ("imaps://%{userdb:x:eve}:env:PW@h", "env", "PW"),
    ],
)
def test_a_url_may_hold_a_reference_to_its_password(text: str, kind: str, reference: str) -> None:
    endpoint = parse(text, settings=Settings())
    assert endpoint.secret is not None
    assert (endpoint.user, endpoint.secret.kind, endpoint.secret.text) == ("eve", kind, reference)


@pytest.mark.parametrize(
    "text",
    [
        f"imap://eve:{CANARY}@h/",
        f"imaps://eve:{CANARY}@h",
        f"IMAPS://eve:%{{env:{CANARY}}}@h",
        f"imap://eve:{CANARY}@x@h:143/?tls=off",
        f"imap://eve:{CANARY}%q@h/",
    ],
)
def test_a_literal_password_in_a_url_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.exit_code == 64
    assert CANARY not in str(caught.value) + repr(caught.value)
    assert "env:NAME" in str(caught.value)
    with pytest.raises(UsageError):
        check_password(text)


@pytest.mark.parametrize(
    "text",
    [
        f"imap://eve:{CANARY}/x@h/",
        f"imap://eve:{CANARY}",
        f"imap:eve:{CANARY}@h",
        f"imap:/eve:{CANARY}@h/",
        f"imp://eve:{CANARY}@h/",
        f"imap://eve:{CANARY}#@h/",
        f"imap://h/?password={CANARY}",
        f"imap://eve:{CANARY}%q/@h/",
        f"imap://eve:1{CANARY}/",
    ],
)
def test_a_misplaced_password_is_not_shown_either(text: str) -> None:
    with pytest.raises(AimportError) as caught:
        parse(text)
    assert CANARY not in str(caught.value) + repr(caught.value)
    assert CANARY not in shown_location(text)


def test_endpoints_show_no_secret() -> None:
    endpoint = parse("imaps://h", settings=Settings(source_password=Secret(kind="literal", text=CANARY)))
    assert CANARY not in repr(endpoint) + endpoint.identity
    assert endpoint.secret is not None
    assert reveal(endpoint.secret) == CANARY


def test_values_in_a_command_stay_in_their_word() -> None:
    settings = Settings(source_password=Secret(kind="cmd", text="printf %%s '%u'"))
    secret = parse("imaps://h", Variables(user="a'b c; $(x)"), settings=settings).secret
    assert secret is not None
    assert reveal(secret) == "a'b c; $(x)"
    with pytest.raises(ConfigurationError):
        parse("imaps://h", settings=Settings(source_password=Secret(kind="cmd", text="x '%u")))


# Tunnels


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("tunnel:doveadm exec imap -u %u", ("doveadm", "exec", "imap", "-u", "bob@example.org")),
        ("TUNNEL: doveadm  exec\timap", ("doveadm", "exec", "imap")),
        ("tunnel:'/opt/my prog/imap' \"-u %n\" --user=%u a\\ b ''", None),
        ("tunnel:env A=%{env:X} 100%% ~/x $HOME | cat", ("env", "A=1 2'", "100%", "~/x", "$HOME", "|", "cat")),
        ("tunnel:a:b::c:INDEX=MEMORY", ("a:b::c:INDEX=MEMORY",)),
        ("tunnel:%{env:X} x", ("1 2'", "x")),
    ],
)
def test_a_tunnel_is_split_as_a_shell_does_before_values_are_put_in(text: str, command: tuple[str, ...] | None) -> None:
    expected = command or ("/opt/my prog/imap", "-u bob", "--user=bob@example.org", "a b", "")
    variables = Variables(user="bob@example.org", environ={"X": "1 2'"})
    for side in ("source", "destination"):
        endpoint = parse(text, variables, side=side, settings=Settings())
        assert endpoint.command == expected
        assert (endpoint.scheme, endpoint.host, endpoint.security, endpoint.secret) == ("tunnel", "", "none", None)
        assert endpoint.remote


@pytest.mark.parametrize("user", ["a b", "o'brien", '"', "$(x)", "a;b", "\\", "", "*", "%u"])
def test_a_value_stays_in_its_word_of_a_tunnel(user: str) -> None:
    assert parse("tunnel:imap -u %u", Variables(user=user)).command == ("imap", "-u", user)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tunnel:", "has no command"),
        ("tunnel:  ", "has no command"),
        ("tunnel:'' x", "has no command"),
        (f"tunnel:prog 'a {CANARY}", "tunnel:prog ...: a quote without its end"),
        (f"tunnel:prog {CANARY} %q", "unknown variable %q in 'tunnel:prog ...'"),
    ],
)
def test_a_wrong_tunnel_is_a_configuration_error_without_its_arguments(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "user", "words"),
    [
        ("tunnel:ssh %u imap", "-oProxyCommand=x", "makes an option"),
        ("tunnel:ssh -l %u host", "-x", "makes an option"),
        ("tunnel:%{env:NUL}", "bob", "NUL"),
        ("tunnel:ssh host doveadm exec imap -u %u", "a;reboot", "remote shell"),
        ("tunnel:env -i /usr/bin/ssh host imap %u", "a b", "remote shell"),
        ("tunnel:ssh host imap %u", "$(reboot)", "remote shell"),
    ],
)
def test_a_value_that_would_become_an_option_or_a_command_fails_its_user_alone(
    text: str, user: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        parse(text, Variables(user=user, environ={"NUL": "a\0b"}))
    assert parse(text, Variables(user="bob+x@example.org", environ={"NUL": "a"})).command


def test_a_tunnel_takes_the_log_in_of_its_side_and_needs_none() -> None:
    settings = Settings(
        source_password=Secret(kind="env", text="PW_%n"), source_auth="plain", source_user="%n", source_tls_ca="/ca"
    )
    endpoint = parse("tunnel:nc host 143", settings=settings)
    assert (endpoint.user, endpoint.auth, endpoint.secret) == ("bob", "plain", Secret(kind="env", text="PW_bob"))
    assert (endpoint.tls_ca, endpoint.tls_cert) == ("", "")
    assert parse("tunnel:nc host 143", side="destination", settings=settings).secret is None


def test_the_identity_of_a_tunnel_names_its_account_without_its_arguments() -> None:
    def identity(text: str, user: str = "bob", settings: Settings | None = None) -> str:
        return parse(text, Variables(user=user), settings=settings or Settings()).identity

    one = identity(f"tunnel:doveadm exec imap -u %u -p {CANARY}")
    assert one.startswith("tunnel:doveadm:")
    assert one.endswith("#bob")
    assert CANARY not in one
    assert one == identity(f"tunnel:doveadm  exec imap '-u' %u -p {CANARY}")
    others = {one, identity("tunnel:doveadm exec imap -u %u"), identity("tunnel:ssh a"), identity("tunnel:ssh b")}
    assert len(others) == 4
    assert identity("tunnel:x %u", "ann") != identity("tunnel:x %u", "bob")
    # A command without variables opens one account, whoever it is for; with a password there is another for each.
    assert identity("tunnel:x", "ann") == identity("tunnel:x", "bob")
    assert identity("tunnel:x", "ann", PASSWORDS) != identity("tunnel:x", "bob", PASSWORDS)


def test_a_tunnel_shows_its_first_word_alone() -> None:
    endpoint = parse(f"tunnel:sshpass -p {CANARY} ssh host imap")
    assert CANARY not in repr(endpoint) + endpoint.identity
    assert shown_location(f"tunnel:sshpass -p {CANARY}") == "tunnel:sshpass ..."
    assert shown_location("tunnel:imap") == "tunnel:imap"
    assert CANARY not in shown_location(f"tunnel:'{CANARY}' x")


# Certificates


def test_each_side_shows_its_own_certificate() -> None:
    settings = Settings(source_tls_cert="/certs/%d/%n.pem", dest_auth="external", dest_tls_cert="/dest.pem")
    source = parse("imaps://h", settings=settings)
    assert (source.tls_cert, source.secret, source.auth) == ("/certs/example.org/bob.pem", None, "")
    assert parse("imaps://h", side="destination", settings=settings).tls_cert == "/dest.pem"
    assert parse("imapc:", settings=msgspec.structs.replace(settings, imapc_host="h")).tls_cert == source.tls_cert
    with pytest.raises(ConfigurationError, match="set source_password"):
        parse("imaps://h", settings=msgspec.structs.replace(settings, source_auth="plain"))


@given(st.text(alphabet=":/%@[]?#=;~.abhimpsu0 \0", max_size=30))
def test_any_text_parses_or_raises_our_errors(text: str) -> None:
    for start in ("", "imap://", "maildir:/", "imaps://%u@", "tunnel:", "tunnel:x '%u' "):
        try:
            parse(start + text)
        except AimportError:
            pass


@given(st.text(min_size=1, max_size=30))
def test_any_user_name_is_one_piece_of_a_path(user: str) -> None:
    try:
        endpoint = parse("maildir:/srv/%u:INDEX=/i/%u", Variables(user=user))
    except UserError:
        assert "\0" in user or ".." in user.split("/")
        return
    assert endpoint.path.startswith("/srv")
    assert len(endpoint.options) == 1


@pytest.mark.parametrize(("text", "scheme"), [("sdbox:/m", "sdbox"), ("mdbox:/m", "mdbox"), ("dbox:/m", "sdbox")])
def test_dbox_is_read_and_never_written(text: str, scheme: str) -> None:
    assert parse(text) == Endpoint(scheme=scheme, path="/m")
    with pytest.raises(ConfigurationError, match="can only be read"):
        parse_location(text, BOB, side="destination", settings=Settings())


def test_attachments_of_dbox_lie_where_the_setting_says() -> None:
    settings = Settings(mail_attachment_dir="~/att/%d")
    found = with_attachments(Endpoint(scheme="mdbox", path="/m"), BOB, settings)
    assert found.options == (("mail_attachment_dir", "/home/bob/att/example.org"),)
    other = Endpoint(scheme="maildir", path="/m")
    assert with_attachments(other, BOB, settings) is other
