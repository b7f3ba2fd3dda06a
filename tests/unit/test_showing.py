"""How values look on a page, and how what a person types is read."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from app import errors
from web.ui import charts, reading, showing


@pytest.mark.parametrize(
    ("number", "noun", "shown"),
    [(1, "run", "1 run"), (12_000, "run", "12,000 runs"), (1, "process", "1 process"), (2, "process", "2 processes")],
)
def test_what_is_counted_stands_in_its_number(number, noun, shown):
    assert showing.count(number, noun) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "\N{EN DASH}"),
        (timedelta(0), "0 ms"),
        (timedelta(milliseconds=12.4), "12 ms"),
        (timedelta(seconds=1), "1.0 s"),
        (timedelta(seconds=9.94), "9.9 s"),
        (timedelta(seconds=59.6), "1 min"),
        (timedelta(seconds=200), "3 min 20 s"),
        (timedelta(days=2, hours=4, minutes=9), "2 d 4 h"),
        (timedelta(hours=1), "1 h"),
        (timedelta(seconds=-75), "-1 min 15 s"),
        (250.0, "250 ms"),
    ],
)
def test_durations_are_shown_in_two_units_at_most(value, shown):
    assert showing.duration(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(None, "\N{EN DASH}"), (1.0, "100 %"), (0.99999, "99.99 %"), (0.5, "50 %"), (0.0, "0 %")]
)
def test_a_share_is_never_rounded_up_to_a_kept_promise(share, shown):
    assert showing.percent(share) == shown


def test_every_state_has_a_sign_besides_its_colour():
    assert len(set(showing.SIGNS.values())) == len(showing.SIGNS)
    assert {showing.tone(state) for state in showing.TONES} <= set(showing.SIGNS)


def test_an_icon_that_is_not_there_is_noticed():
    assert "<path" in showing.icon("plus-lg")
    with pytest.raises(LookupError):
        showing.icon("no-such-icon")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("text", "str"),
        ("5", "str | None"),
        (5, "int"),
        (5, None),
        (1.5, "float"),
        ([200, 201], "list[int] | None"),
        ({"a": None}, "dict[str, Any]"),
        (True, "bool"),
        ("text", None),
        ("5", None),
        ('"quoted"', None),
        (None, "Any"),
        (5, "int | str"),
        ("5", "int | str"),
        ({}, "dict[str, str] | None"),
    ],
)
def test_an_argument_is_read_as_it_was_shown(value, annotation):
    assert reading.value(reading.typed(value, annotation), annotation) == value


@pytest.mark.parametrize(("value", "annotation"), [(5, "str"), ("", "str"), (" ", None), (None, "str | None")])
def test_what_no_text_means_has_no_text(value, annotation):
    assert reading.typed(value, annotation) == ""


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_an_empty_time_is_none(text):
    assert reading.instant(text, "UTC", "at") is None


def test_a_time_is_read_by_the_zones_clock_and_shown_by_it():
    at = reading.instant("2026-07-01T12:00", "Europe/Paris", "at")
    assert datetime.fromisoformat(at) == datetime(2026, 7, 1, 10, tzinfo=UTC)
    assert reading.local(datetime.fromisoformat(at), "Europe/Paris") == "2026-07-01T12:00:00"


@pytest.mark.parametrize(("text", "zone", "field"), [("soon", "UTC", "at"), ("2026-07-01", "Nowhere/City", "timezone")])
def test_what_is_no_time_or_no_zone_is_named(text, zone, field):
    with pytest.raises(errors.Invalid) as caught:
        reading.instant(text, zone, "at")
    assert [*caught.value.errors] == [field]


def minute(**given):
    counts = dict.fromkeys(charts.OUTCOMES, 0)
    lateness = dict.fromkeys(("p50", "p99", "worst"))
    return SimpleNamespace(start=datetime(2026, 1, 1, tzinfo=UTC), **counts | lateness | given)


def test_the_bars_of_a_minute_stand_on_each_other_and_fill_the_chart_at_its_top():
    drawn = charts.outcomes([minute(), minute(succeeded=6, failed=4)])
    assert drawn.columns[0].bars == []
    lower, upper = drawn.columns[1].bars
    assert (lower.kind, upper.kind) == ("succeeded", "failed")
    assert upper.y == 0
    assert upper.y + upper.height == lower.y
    assert lower.y + lower.height == charts.HEIGHT


def test_the_worst_of_a_minute_is_marked_where_it_broke_the_promise():
    ms = timedelta(milliseconds=1)
    drawn = charts.latenesses(
        [minute(p50=5 * ms, p99=9 * ms, worst=9_000 * ms), minute(p50=5 * ms, p99=9 * ms, worst=10_001 * ms)]
    )
    assert [column.bars[-1].kind for column in drawn.columns] == ["worst", "late"]
    assert drawn.columns[1].bars[-1].y < drawn.columns[0].bars[-1].y < drawn.columns[0].bars[0].y


@pytest.mark.parametrize(("number", "top"), [(0, 1), (1, 1), (3, 5), (6, 10), (11, 20), (501, 1000)])
def test_an_axis_ends_at_a_round_number(number, top):
    assert charts._round_up(number) == top
