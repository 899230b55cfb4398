"""Pages for a browser: well-formed, offline, and no text that comes into them acts."""

from __future__ import annotations

import html
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimport import page, plots
from aimport.page import Origin, Pace, run_page
from aimport.results import RunReport, UserResult
from tests.pages import Seen, looked_at

HOSTILE = (
    "</title></style></svg><script>alert(1)</script>",
    "\"onload='x'",
    "<img src=x onerror=y>",
    "a&lt;b]]>--><!--",
    "\x1b[31m\x00\ufffe\udcff‮bob",
)
COMMAND = "aimport import -u bob maildir:/x '' ALL"
ORIGIN = Origin(run="20260101-000000-abcd", created="2026-01-01T00:00:00Z", command=COMMAND)


def report(*users: UserResult, exit: int = 0) -> RunReport:
    return RunReport(run=ORIGIN.run, users=users, exit=exit)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_users_and_servers_becomes_markup(text: str) -> None:
    def failed(text: str) -> UserResult:
        reasons = {text: 1}
        return UserResult(
            user=text, status="failed", found=2, skipped=reasons, rejected=reasons, error=text, dates=reasons
        )

    origins = [Origin(run=text, created=text, command=text)]
    pace = Pace.of([(0, 1, 1), (10**6, 1, 1)])
    seen = looked_at(run_page(report(failed(text), exit=75), origins, pace))
    usual = looked_at(run_page(report(failed("x"), exit=75), [Origin(run="x", created="x", command="x")], pace))
    assert seen.tags == usual.tags
    assert seen.attributes == usual.attributes
    assert "alert(1)" not in "".join(seen.acting)


@given(st.text(), st.text())
def test_any_text_makes_a_page_that_an_xml_parser_takes(name: str, words: str) -> None:
    user = UserResult(user=name, status="rejects", found=1, rejected={words: 1}, error=words)
    looked_at(run_page(report(user, exit=65), [Origin(run=name, created="", command=words)], None))


def test_a_page_needs_nothing_from_outside_and_forbids_it() -> None:
    made = run_page(report(UserResult(user="bob", status="done")), [ORIGIN], Pace.of([(0, 5, 10), (9 * 10**6, 5, 10)]))
    seen = looked_at(made)
    assert not seen.acting
    assert "default-src 'none'" in html.unescape(made)
    # The hash is that of the style as it stands: else the browser shows the page without it.
    [style] = re.findall(r"<style>(.*?)</style>", made, re.DOTALL)
    assert style == page.STYLE
    assert not re.search(r"url\(|@import|expression", style)


def test_a_page_shows_totals_users_reasons_and_why_a_run_ended_so() -> None:
    users = [
        UserResult(user="ann", status="done", found=1200, imported=1200, octets=5 << 20, seconds=2.0),
        UserResult(
            user="bob",
            status="rejects",
            found=9,
            imported=4,
            rejected={"TOOBIG": 3},
            skipped={"vanished": 2},
            error="why",
        ),
    ]
    words = looked_at(run_page(report(*users, exit=65), [ORIGIN], None)).words
    for each in (
        "1,209",
        "1,204",
        "5.0 MiB",
        "TOOBIG",
        "vanished",
        "why",
        "Exit code 65",
        "ann",
        "bob",
        COMMAND,
    ):
        assert any(each in word for word in words), each
    assert words.index("bob") < words.index("ann")  # who needs a look comes first
    assert "Throughput over the run" not in words


def test_a_run_that_does_not_add_up_says_so() -> None:
    lost = UserResult(user="bob", status="done", found=2, imported=1)
    assert "does not add up" in run_page(report(lost, exit=70), [ORIGIN], None)


def test_of_many_users_those_that_need_a_look_are_shown_and_the_others_counted() -> None:
    many = [UserResult(user=f"u{number}", status="done") for number in range(page.SHOWN_USERS + 5)]
    made = run_page(report(*many, UserResult(user="late", status="failed", error="no"), exit=75), [ORIGIN], None)
    assert "late" in looked_at(made).words
    assert "... and 6 more users" in made


def test_throughput_is_counted_where_it_was_and_long_pauses_are_left_out() -> None:
    hour = 3600 * 10**6
    moments = [(second * 10**6, 10, 1000) for second in range(11)]
    pace = Pace.of([*moments, *((at + hour, messages, octets) for at, messages, octets in moments)])
    assert pace is not None
    assert pace.span_s == 20.0
    assert pace.pauses == [(10.0, 3590.0)]
    assert (sum(pace.messages), sum(pace.octets)) == (220, 22000)
    assert Pace.of([]) is Pace.of([(5, 1, 1)]) is Pace.of([(5, 1, 1), (5, 1, 1)]) is None


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 64), st.integers(1, 10**6)), max_size=50))
def test_no_message_is_lost_from_the_throughput(moments: list[tuple[int, int, int]]) -> None:
    pace = Pace.of(moments)
    if pace is not None:
        assert sum(pace.messages) == sum(messages for _, messages, _ in moments)
        assert pace.span_s > 0
        made = run_page(report(), [ORIGIN], pace)
        looked_at(made)


def test_where_the_time_went_is_shown_when_somebody_measured_it() -> None:
    stages = {
        "limited_by": {"stage": "append-wait", "host": "h<1>", "share": 0.75, "advice": "more --users"},
        "stages": [
            {"stage": "append-wait", "host": "h<1>", "batches": 3, "busy": 4.0, "waiting": 0.0, "held": 3.0},
            {"stage": "read", "host": "", "batches": 3, "busy": 1.0, "waiting": 0.0, "held": 1.0},
            {"stage": "list", "host": "", "batches": 0, "busy": 0.0, "waiting": 0.0, "held": 0.0},
        ],
    }
    made = page.stage_breakdown(stages)
    words = looked_at(page.document("x", [made])).words
    assert "3.0 s, 75%" in words
    assert "Limited by append-wait h<1> (75%): more --users" in words
    assert "list" not in words
    assert page.stage_breakdown(None) == page.stage_breakdown({"stages": []}) == ""


@given(st.floats(1e-6, 1e9))
def test_axes_reach_the_largest_value_in_few_even_steps(high: float) -> None:
    ticks = plots.nice(high)
    assert ticks[0] == 0.0
    assert ticks[-1] >= high * 0.999
    assert 2 <= len(ticks) <= 7
    assert all(math.isclose(later - earlier, ticks[1], rel_tol=1e-6) for earlier, later in pairwise(ticks))


def test_plots_are_well_formed_and_bars_stand_in_proportion() -> None:
    made = plots.bars(
        [
            plots.Bar(label="a" * 100, value=10.0, shown="10", low=9.0, high=12.0),
            plots.Bar(label="b<", value=5.0, shown="5", tone="dim"),
            plots.Bar(label="nothing", value=0.0, shown="0"),
        ],
        title="t",
    )
    wide = [float(each.attrib["width"]) for each in ElementTree.fromstring(made).iter() if each.tag.endswith("rect")]
    assert math.isclose(wide[0], 2 * wide[1], rel_tol=0.01)
    assert wide[2] == 1.0
    assert plots.bars([], title="t") == plots.rate([], span_s=1.0, breaks=(), title="t", unit="u") == ""


def test_curves_have_a_point_for_each_value_and_a_legend_for_several() -> None:
    def line(name: str) -> plots.Curve:
        points = [plots.Point(x=x, y=100.0 * x, low=90.0 * x, high=110.0 * x) for x in (1, 2, 8)]
        return plots.Curve(name=name, points=points)

    one = plots.curves([line("a")], title="t", across="connections", unit="messages/s")
    assert len(re.findall("<circle", one)) == 3
    assert "legend" not in one
    two = plots.curves([line("a"), line("<b>")], title="t", across="connections", unit="messages/s")
    assert "&lt;b&gt;" in two
    assert "legend" in two
    looked_at(page.document("x", [two]))


def test_the_parser_of_these_tests_sees_what_is_wrong() -> None:
    """The check itself can fail."""
    with pytest.raises(ElementTree.ParseError):
        looked_at("<html><body><p>x</body></html>")
    for bad in ("<script>x</script>", '<img src="http://h/" />', '<p onclick="x">y</p>', '<a href="//h/x">y</a>'):
        assert looked_at(f"<html><body>{bad}</body></html>").acting
    assert issubclass(Seen, HTMLParser)
