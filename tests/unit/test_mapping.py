from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport import mapping
from aimport.errors import NameClash, UsageError, UserError
from aimport.mapping import Naming, Rename, Substitution, parse_rule
from aimport.model import SPECIAL_USES, Mailbox
from tests.linear import assert_linear
from tests.strategies import paths


def box(name: str, *uses: str, separator: str = "/") -> Mailbox:
    path = tuple(name.split(separator))
    return Mailbox(path=path, separator=separator, uses=tuple(f"\\{use.capitalize()}" for use in uses))


def mapped(
    naming: Naming,
    sources: Sequence[Mailbox],
    there: Sequence[Mailbox] = (),
    *,
    parent: str = "",
    separator: str = "/",
    folds_case: bool = False,
    kept: Mapping[str, str] | None = None,
) -> dict[str, str]:
    some = [source for source in sources if not naming.excludes(source)]
    targets = naming.targets(
        some, listed=sources, there=there, parent=parent, separator=separator, folds_case=folds_case, kept=kept or {}
    )
    assert list(targets) == some, "in the order given"
    return {source.name: target.name for source, target in targets.items()}


def by_rules(*rules: str) -> Naming:
    return Naming(rules=tuple(map(parse_rule, rules)))


# --map


@pytest.mark.parametrize(
    ("rule", "name", "expected"),
    [
        ("Old=New", "Old", "New"),
        ("Old=New", "Old/2020/May", "New/2020/May"),  # what is below follows
        ("Old=New", "Older", "Older"),
        ("Old=New", "a/Old", "a/Old"),
        ("Old=New", "old", "old"),
        ("inbox=Before/Inbox", "INBOX", "Before/Inbox"),
        ("INBOX=Old", "INBOX/x", "Old/x"),
        ("Old=INBOX", "Old", "INBOX"),
        ("a/b=c", "a/b/d", "c/d"),
        ("a\\=b=c=d", "a=b", "c=d"),
        ("s/Old/New/", "Older/Old", "Newer/Old"),
        ("s/Old/New/g", "Older/Old", "Newer/New"),
        ("s/^old$/New/i", "Old", "New"),
        ("s/^INBOX\\/(.+)/$1/", "INBOX/Sent", "Sent"),
        ("s,^INBOX/(.+),$1,", "INBOX/Sent", "Sent"),
        ("s|^mail/(?P<rest>.*)|${rest}|", "mail/a/b", "a/b"),
        (r"s/(\w+) (\w+)/\2 \1/", "Items Sent", "Sent Items"),
        (r"s/x/\$1/", "x", "$1"),
        ("s!/!-!g", "a/b/c", "a-b-c"),
        (r"s|a\|b|c|", "a|b", "c"),
        ("s/nothing//", "x", "x"),
        ("s/^(?i)x/y/", "X", None),
        ("s1=s2", "s1", "s2"),
        ("s=t", "s/x", "t/x"),
    ],
)
def test_rules_say_what_a_mailbox_is_called(rule: str, name: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="--map"):
            parse_rule(rule)
    else:
        assert mapped(by_rules(rule), [box(name)]) == {name: expected}


@pytest.mark.parametrize(
    "rule", ["", "x", "=", "x=", "=x", "a//b=c", "a=b/", "s/a", "s/a/b", "s/a/b/x", "s/(/b/", "s/a/$1/", r"s/a/\2/"]
)
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="--map"):
        parse_rule(rule)


@given(st.text(st.one_of(st.characters(), st.sampled_from("s/=|\\()$12g")), max_size=16))
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    try:
        rule = parse_rule(text)
    except UsageError:
        return
    assert isinstance(rule, Rename | Substitution)
    try:
        mapped(Naming(rules=(rule,)), [box("s/a"), box("1")])
    except (NameClash, UserError):
        pass


def test_the_first_rule_that_matches_decides_alone() -> None:
    naming = by_rules("Sent=A", "s/Sent/B/", "A=C")
    assert mapped(naming, [box("Sent"), box("Sent Items"), box("x")]) == {
        "Sent": "A",
        "Sent Items": "B Items",
        "x": "x",
    }


def test_rules_see_both_separators_and_destinations_get_their_own() -> None:
    for rule in ("Arch.2020=Old/2020", "Arch/2020=Old.2020", "s,Arch/(.*),Old/$1,"):
        seen = mapped(by_rules(rule), [box("Arch.2020.May", separator=".")], separator=".", parent="Top")
        assert seen == {"Arch.2020.May": "Top.Old.2020.May"}
    assert mapped(by_rules("s/x/a.b/"), [box("x")], separator=".") == {"x": "a_b"}
    assert mapped(by_rules("x=y"), [box("x/a.b")], separator=".") == {"x/a.b": "y.a_b"}


def test_a_rule_that_leaves_a_level_empty_fails_the_user() -> None:
    with pytest.raises(UserError, match="a level is empty"):
        mapped(by_rules("s/^Old//"), [box("Old/x")])
    with pytest.raises(UserError, match="too many"):
        mapped(by_rules("s/(a*)*b/x/"), [box("a" * 20_000)])


# --exclude


@pytest.mark.parametrize(
    ("mask", "left"),
    [
        ("Trash", ["INBOX", "Trash/old", "a/Trash"]),
        ("Trash*", ["INBOX", "a/Trash"]),
        ("%", ["Trash/old", "a/Trash"]),
        ("%/Trash", ["INBOX", "Trash", "Trash/old"]),
        ("inbox", ["Trash", "Trash/old", "a/Trash"]),
        ("*", []),
        ("Trash/old", ["INBOX", "Trash", "a/Trash"]),
    ],
)
def test_masks_leave_out_what_list_would_list(mask: str, left: list[str]) -> None:
    for separator in ("/", "."):
        names = [name.replace("/", separator) for name in ("INBOX", "Trash", "Trash/old", "a/Trash")]
        seen = mapped(Naming(exclude=("nothing", mask)), [box(name, separator=separator) for name in names])
        assert [name.replace(separator, "/") for name in seen] == left


# --special-use

SPECIAL = Naming(special_use=True)
SERVER = [box("INBOX"), box("Gesendet", "sent"), box("Papierkorb", "trash"), box("Spam", "junk")]


@pytest.mark.parametrize(
    ("sources", "there", "expected"),
    [
        (["Sent+sent"], SERVER, {"Sent": "Gesendet"}),
        (["Sent+sent", "Sent/2020", "Sent/a/b"], SERVER, {"Sent/2020": "Gesendet/2020", "Sent/a/b": "Gesendet/a/b"}),
        (["Sent/2020", "Sent+sent"], SERVER, {"Sent/2020": "Gesendet/2020"}),
        (["X+sent", "Sent Items"], SERVER, {"X": "Gesendet", "Sent Items": "Sent Items"}),  # the attribute says which
        (["Éléments envoyés", "Corbeille"], SERVER, {"Éléments envoyés": "Gesendet", "Corbeille": "Papierkorb"}),
        (["E\u0301le\u0301ments envoye\u0301s"], SERVER, {"E\u0301le\u0301ments envoye\u0301s": "Gesendet"}),
        (["SENT ITEMS"], SERVER, {"SENT ITEMS": "Gesendet"}),
        (["INBOX/Sent", "Projects/Sent"], SERVER, {"INBOX/Sent": "Gesendet", "Projects/Sent": "Projects/Sent"}),
        (["[Gmail]/Sent Mail+sent", "[Gmail]/Starred+flagged"], SERVER, {"[Gmail]/Starred": "[Gmail]/Starred"}),
        (["Sent", "Sent Items", "Sent Messages"], SERVER, {"Sent": "Gesendet", "Sent Items": "Sent Items"}),
        (["Sent", "Gesendet"], SERVER, {"Sent": "Sent", "Gesendet": "Gesendet"}),  # the one of that name is it
        (["Drafts+drafts"], SERVER, {"Drafts": "Drafts"}),  # the destination has none
        (["Sent+sent"], [box("INBOX"), box("Sent Items")], {"Sent": "Sent Items"}),  # no attributes there
        (["Sent+sent"], [box("Sent Items"), box("Sent")], {"Sent": "Sent"}),
        (["Sent+sent"], [], {"Sent": "Sent"}),
        (["INBOX+sent", "INBOX/x"], SERVER, {"INBOX": "INBOX", "INBOX/x": "INBOX/x"}),
        (["All+all+archive"], [box("Archiv", "archive")], {"All": "Archiv"}),
    ],
)
def test_mailboxes_go_to_what_has_their_use(sources: list[str], there: list[Mailbox], expected: dict[str, str]) -> None:
    seen = mapped(SPECIAL, [box(*source.split("+")) for source in sources], there)
    assert {name: seen[name] for name in expected} == expected


def test_two_that_say_they_are_the_same_are_refused_and_a_rule_settles_it() -> None:
    sources = [box("Sent", "sent"), box("Sent Items", "sent"), box("x")]
    with pytest.raises(NameClash, match="'Sent' and 'Sent Items' would both become 'Gesendet'") as error:
        mapped(SPECIAL, sources, SERVER)
    assert "--map" in error.value.hint
    settled = Naming(special_use=True, rules=(parse_rule("Sent Items=Sent Items"),))
    assert mapped(settled, sources, SERVER) == {"Sent": "Gesendet", "Sent Items": "Sent Items", "x": "x"}
    left_out = Naming(special_use=True, exclude=("Sent Items",))
    assert mapped(left_out, sources, SERVER) == {"Sent": "Gesendet", "x": "x"}


def test_what_is_excluded_or_has_a_rule_is_not_taken_for_the_special_one() -> None:
    sources = [box("Sent"), box("Sent Items")]
    left_out = Naming(special_use=True, exclude=("Sent",))
    assert mapped(left_out, sources, SERVER) == {"Sent Items": "Gesendet"}
    ruled = Naming(special_use=True, rules=(parse_rule("Sent=Old/Sent"),))
    assert mapped(ruled, sources, SERVER) == {"Sent": "Old/Sent", "Sent Items": "Gesendet"}


def test_an_ordinary_mailbox_that_is_called_as_the_target_clashes() -> None:
    with pytest.raises(NameClash):
        mapped(SPECIAL, [box("Out", "sent"), box("Gesendet")], SERVER)


def test_new_mailboxes_get_their_use_and_what_is_below_or_has_a_parent_gets_none() -> None:
    sources = [box("Raus", "sent"), box("Raus/x"), box("y")]
    targets = SPECIAL.targets(sources, listed=sources, there=[], parent="", separator="/", folds_case=False, kept={})
    assert [target.uses for target in targets.values()] == [("\\Sent",), (), ()]
    below = SPECIAL.targets(
        sources, listed=sources, there=SERVER, parent="Old", separator="/", folds_case=False, kept={}
    )
    assert [(each.name, each.uses) for each in below.values()] == [
        ("Old/Gesendet", ()), ("Old/Gesendet/x", ()), ("Old/y", ())
    ]  # fmt: skip


def test_a_resume_goes_where_the_run_went_before_whatever_is_special_by_now() -> None:
    kept = {"Sent": "Gesendet", "x": "x"}
    now = [box("Gesendet"), box("Neu", "sent")]
    assert mapped(SPECIAL, [box("Sent", "sent"), box("x")], now, kept=kept) == {"Sent": "Gesendet", "x": "x"}
    assert mapped(Naming(), [box("Sent", "sent")], now, kept=kept) == {"Sent": "Sent"}


def test_no_name_of_the_table_tells_of_two_uses_and_every_use_has_some() -> None:
    found: dict[str, str] = {}
    for use in SPECIAL_USES:
        names = mapping._table()[use]
        assert names
        for name in names:
            assert found.setdefault(name, use) == use, name
            assert name == unicodedata.normalize("NFC", name).strip()
    assert len(found) > 300


def test_the_table_costs_nothing_where_it_is_not_asked_for() -> None:
    mapping._data.cache_clear()
    mapped(by_rules("a=b"), [box("a"), box("Sent", "sent")])
    assert mapping._data.cache_info().misses == 0


# All together

rules = st.sampled_from(
    ["INBOX=Old", "a=b", "b=a", "a=b/c", "s/a/b/", "s/a/b/g", "s,/,-,g", "s/(.)$/$1$1/", "Sent=Gone", "s/.*/x/"]
)
some_names = st.sampled_from(
    [
        "INBOX",
        "a",
        "b",
        "a/b",
        "b/a",
        "a-b",
        "aa",
        "Sent",
        "Sent Items",
        "Sent/a",
        "Gesendet",
        "Trash",
        "x",
        "Gone",
        "A",
    ]
)


@given(
    sources=st.lists(some_names, unique=True, max_size=8),
    uses=st.lists(st.sampled_from(["", "sent", "trash"]), min_size=8, max_size=8),
    there=st.lists(some_names, unique=True, max_size=4),
    chosen=st.lists(rules, max_size=3),
    exclude=st.lists(st.sampled_from(["a*", "%", "Sent"]), max_size=1),
    special=st.booleans(),
    parent=st.sampled_from(["", "Top"]),
    separators=st.tuples(st.sampled_from("/."), st.sampled_from("/.")),
    folds=st.booleans(),
)
def test_whatever_is_asked_for_names_stay_apart_or_the_user_is_refused(
    sources: list[str],
    uses: list[str],
    there: list[str],
    chosen: list[str],
    exclude: list[str],
    special: bool,
    parent: str,
    separators: tuple[str, str],
    folds: bool,
) -> None:
    """Injective, or a clash before anything is written; what is excluded is gone, all else is there."""
    here, other = separators
    boxes = [
        box(name.replace("/", here), *filter(None, [use]), separator=here)
        for name, use in zip(sources, uses, strict=False)
    ]
    naming = Naming(exclude=tuple(exclude), rules=tuple(map(parse_rule, chosen)), special_use=special)
    try:
        seen = mapped(
            naming,
            boxes,
            [box(name.replace("/", other), "sent", separator=other) for name in there],
            parent=parent,
            separator=other,
            folds_case=folds,
        )
    except NameClash:
        return
    images = [name.casefold() if folds else name for name in seen.values()]
    assert len(set(images)) == len(images)
    assert set(seen) == {each.name for each in boxes if not naming.excludes(each)}
    assert all(name.startswith(f"Top{other}") for name in seen.values()) or not parent


@given(st.lists(paths, max_size=6, unique=True))
def test_without_options_names_are_those_of_doveadm(sources: list[tuple[str, ...]]) -> None:
    boxes = [Mailbox(path=path) for path in sources]
    assert mapped(Naming(), boxes) == {each.name: each.name for each in boxes}


def test_many_mailboxes_are_mapped_in_linear_time() -> None:
    def work(count: int) -> None:
        boxes = [box(f"Sent/{number}") for number in range(count)] + [box("Sent", "sent")]
        assert len(mapped(Naming(special_use=True, rules=(parse_rule("s/x/y/"),)), boxes, SERVER)) == count + 1

    assert_linear(work, 2000)
