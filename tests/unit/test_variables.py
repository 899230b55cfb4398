"""Variables expand as in Dovecot 2.3; the rows marked real were read back from a Dovecot 2.3.19."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport.errors import AimportError, ConfigurationError, NoSuchUser, UserError
from aimport.variables import Variables, expand, expand_parts, wildcard

REAL = Variables(user="src@a.test", home="/h", uid=8, environ={"COLOUR": "red"}, fields={"quota": "5"})

VERIFIED_WITH_DOVECOT = [
    ("%1n", "s"),
    ("%2n", "sr"),
    ("%1.1n", "r"),
    ("%2.2n", "c"),
    ("%-2.2n", "rc"),
    ("%-1.1n", "c"),
    ("%-1n", "s"),
    ("%0.-1n", "sr"),
    ("%06n", "000src"),
    ("%02n", "src"),
    ("%Mu", "b4261c6e6ef7d26fc2dc0bcc125f06bc"),
    ("%1Mu", "b"),
    ("%2.1Mu", "2"),
    ("%Nu", "6ef7d26f"),
    ("%2.256Nu", "6f"),
    ("%4.65536Nu", "d26f"),
    ("%Hu", "64204d4"),
    ("%2.256Hu", "d4"),
    ("%Un", "SRC"),
    ("%Rn", "crs"),
    ("%Dd", "a,dc=test"),
    ("%2{sha256:user}", "67"),
    ("%{md5;truncate=16:user}", "b426"),
    ("%{if;%n;eq;src;A;B}", "A"),
    ("%{userdb:x:def}", "def"),
]

DOCUMENTED = [
    ("%u %n %d %h %i %s", "src@a.test src a.test /h 8 aimport"),
    ("%{user} %{username} %{domain} %{home} %{uid}", "src@a.test src a.test /h 8"),
    ("%{auth_user} %{auth_username} %{auth_domain}", "src@a.test src a.test"),
    ("%l%r%{lip}%{rip}%{session}", ""),
    ("%{env:COLOUR}", "red"),
    ("%{env:NOT_SET}", ""),
    ("%{userdb:quota}", "5"),
    ("%{userdb:none}", ""),
    ("100%%", "100%"),
    ("%Lu", "src@a.test"),
    ("%2.0n", "c"),
    ("%RUn", "CRS"),
    ("%X{uid}", "8"),
    ("%Xn", "0"),
    ("%-9.2n", "sr"),
    ("%9.2n", ""),
    ("%0.-9n", ""),
    ("%{md5:user}", hashlib.md5(b"src@a.test").hexdigest()),
    ("%{sha1:username}", hashlib.sha1(b"src").hexdigest()),
    ("%{sha512:user}", hashlib.sha512(b"src@a.test").hexdigest()),
    ("%{sha256;format=hexuc:user}", hashlib.sha256(b"src@a.test").hexdigest().upper()),
    ("%{md5;rounds=2:username}", hashlib.md5(hashlib.md5(b"src").digest()).hexdigest()),
    ("%{md5;salt=%d:username}", hashlib.md5(b"a.testsrc").hexdigest()),
    ("%{md5;truncate=12:user}", "0b42"),
    ("%{md5;truncate=8;format=base64:user}", "tA=="),
    ("%{md5:md5:username}", hashlib.md5(hashlib.md5(b"src").hexdigest().encode()).hexdigest()),
    ("%{if;%n;ne;src;A;B}", "B"),
    ("%{if;%n;eq;other;A}", ""),
    ("%{if;2;<;10;less;more}", "less"),
    ("%{if;2;lt;10;less;more}", "more"),
    ("%{if;%{uid};>=;8;A;B}", "A"),
    ("%{if;-1;==;-1;A;B}", "A"),
    ("%{if;%u;*;s?c@*;A;B}", "A"),
    ("%{if;%u;!*;s?c@*;A;B}", "B"),
    ("%{if;%u;~;^s.c@;A;B}", "A"),
    ("%{if;%u;!~;^s.c@;A;B}", "B"),
    ("%{if;%d;eq;a.test;/a/%n;/b}", "/a/src"),
    ("%{if;%{if;1;==;1;x;y};eq;x;%{md5;truncate=16:user};B}", "b426"),
    (r"%{if;a\;b;eq;a\;b;A;B}", "A"),
    ("%2{if;1;==;1;long;B}", "lo"),
]


@pytest.mark.parametrize(("template", "value"), VERIFIED_WITH_DOVECOT)
def test_what_a_real_dovecot_gave(template: str, value: str) -> None:
    assert expand(template, REAL) == value


@pytest.mark.parametrize(("template", "value"), DOCUMENTED)
def test_what_the_documentation_says(template: str, value: str) -> None:
    assert expand(template, REAL) == value


def test_quotes_and_backslashes_are_escaped_and_the_end_is_trimmed() -> None:
    assert expand("%Eu", Variables(user="a\"b'c\\")) == "a\\\"b\\'c\\\\"
    assert expand("%Tu|", Variables(user="bob \t")) == "bob|"


def test_process_and_machine_are_known() -> None:
    assert expand("%p %{pid} %{hostname}", REAL) == f"{os.getpid()} {os.getpid()} {os.uname().nodename}"
    assert expand("%{uid} %{gid}", Variables(user="bob")) == f"{os.geteuid()} {os.getegid()}"


def test_a_user_without_domain_has_an_empty_one() -> None:
    assert expand("%n|%d|", Variables(user="bob")) == "bob||"


def test_the_domain_begins_after_the_first_at_sign() -> None:
    assert expand("%n|%d", Variables(user="a@b@c")) == "a|b@c"


def test_widths_count_octets_as_dovecot_does() -> None:
    halves = expand("%1n%1.1n", Variables(user="ü"))
    assert os.fsencode(halves) == "ü".encode()


@pytest.mark.parametrize("template", ["%q", "%{nonsense}", "%{sha3:user}", "%{md5}", "%{md5:nonsense}", "%2.3z"])
def test_an_unknown_variable_is_named_with_its_template(template: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        expand(f"maildir:/srv/{template}", REAL)
    assert "unknown variable %" in str(caught.value)
    assert f"/srv/{template}" in str(caught.value)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    "template",
    [
        "%",
        "a%0",
        "%{user",
        "%{if;1;==}",
        "%{if;a;like;b;A;B}",
        "%{if;a;~;(;A;B}",
        "%{md5;rounds=0:user}",
        "%{md5;rounds=99999999999:user}",
        "%{md5;format=octal:user}",
        "%{md5;truncate=x:user}",
        "%0999999999u",
        "%999999999.2Hu",
        "\ud800%u",
        "%{if;1;==;1;" * 50 + "x" + "}" * 50,
        "%{" + "md5:" * 50 + "user}",
        "%u" * 1025,
    ],
)
def test_a_bad_template_is_a_configuration_error(template: str) -> None:
    with pytest.raises(ConfigurationError):
        expand(template, REAL)


def test_a_mistake_in_the_branch_not_taken_is_found() -> None:
    with pytest.raises(ConfigurationError):
        expand("%{if;1;==;1;A;%q}", REAL)


def test_a_home_is_asked_for_only_where_it_is_used() -> None:
    homeless = Variables(user="bob")
    assert expand("/srv/%u", homeless) == "/srv/bob"
    assert expand("%{if;%d;eq;;/srv/%u;%h}", homeless) == "/srv/bob"
    with pytest.raises(NoSuchUser, match="mail_home"):
        expand("%h/Maildir", homeless)


def test_a_comparison_of_a_value_that_is_no_number_fails_this_user_alone() -> None:
    with pytest.raises(UserError):
        expand("%{if;%n;<;5;A;B}", REAL)


def test_values_are_never_expanded_again() -> None:
    assert expand("%u/%{env:X}", Variables(user="%h", environ={"X": "%%%u"})) == "%h/%%%u"


def test_values_stay_apart_from_the_text_around_them() -> None:
    expanded = expand_parts("a:%u:%%40", Variables(user="b:c%40"))
    _, user, after = expanded.text.split(":")
    assert expanded.fill(user) == "b:c%40"
    assert expanded.fill(after, literal=lambda text: text.replace("%40", "@")) == "@"
    assert expanded.is_literal(after)
    assert not expanded.is_literal(user)


def test_text_of_the_branch_taken_is_still_the_templates_own() -> None:
    expanded = expand_parts("%{if;1;==;1;a:%u;b}", Variables(user="x:y"))
    assert expanded.text.count(":") == 1


def test_what_stands_for_the_template_in_errors_can_be_given() -> None:
    with pytest.raises(ConfigurationError) as caught:
        expand("canary%q", REAL, shown="imap:...")
    assert "canary" not in str(caught.value)


def test_wildcards_match_the_whole_text() -> None:
    assert wildcard("b*b").fullmatch("bob")
    assert not wildcard("b?").fullmatch("bob")
    assert wildcard("[a].*").fullmatch("[a].x")
    assert not wildcard("*" * 50 + "x").fullmatch("y" * 5000)


@given(st.text())
def test_text_without_percent_is_left_alone(text: str) -> None:
    assert expand(text.replace("%", ""), REAL) == text.replace("%", "")


@given(st.text(alphabet="%{}:;-0123456789.LUHNMunhifmd5=\\ ", max_size=40))
def test_any_template_expands_or_raises_our_errors(template: str) -> None:
    try:
        expand(template, REAL)
    except AimportError:
        pass


@given(st.text(max_size=60), st.integers(-9, 9), st.integers(-9, 9))
def test_offset_and_width_only_ever_take_a_part(user: str, offset: int, width: int) -> None:
    taken = expand(f"%{offset}.{width}u", Variables(user=user.replace("\0", "")))
    assert os.fsencode(taken) in os.fsencode(user.replace("\0", ""))
