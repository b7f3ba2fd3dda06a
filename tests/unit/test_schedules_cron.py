"""Cron expressions against the brute-force reference, around the nights of change and over whole years."""

import bisect
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import errors, schedules
from tests.unit import reference

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
TICK = timedelta(microseconds=1)

# each zone in a year in which its clock changed, with the odd ones of history
ZONES = [
    ("Africa/Cairo", 2026),
    ("Africa/Casablanca", 2026),
    ("America/Asuncion", 2023),
    ("America/Caracas", 2016),
    ("America/Havana", 2026),
    ("America/Los_Angeles", 2026),
    ("America/New_York", 2026),
    ("America/Nuuk", 2026),
    ("America/Santiago", 2026),
    ("America/Sao_Paulo", 2018),
    ("America/St_Johns", 2006),
    ("Antarctica/Casey", 2020),
    ("Antarctica/Troll", 2026),
    ("Asia/Amman", 2021),
    ("Asia/Beirut", 2026),
    ("Asia/Jerusalem", 2026),
    ("Asia/Kathmandu", 1986),
    ("Asia/Pyongyang", 2015),
    ("Asia/Pyongyang", 2018),
    ("Asia/Tehran", 2021),
    ("Atlantic/Azores", 2026),
    ("Australia/Adelaide", 2026),
    ("Australia/Lord_Howe", 2026),
    ("Europe/Dublin", 2026),
    ("Europe/Istanbul", 2016),
    ("Europe/London", 2026),
    ("Europe/Moscow", 2011),
    ("Europe/Moscow", 2014),
    ("Europe/Paris", 2026),
    ("Pacific/Apia", 2011),
    ("Pacific/Auckland", 2026),
    ("Pacific/Chatham", 2026),
    ("Pacific/Kwajalein", 1993),
    ("UTC", 2026),
]
DAYS = 5

MINUTES = ["0", "30", "15", "59", "*", "*/15", "*/7", "0,30", "5-10", "50-59/3", "20/20", "1", "0-59/1"]
HOURS = [*map(str, range(4)), "23", "*", "*/1", "0-23", "0-22", "1-23", "*/2", "1/2", "0-5", "1,2", "22-23", "0,12"]
MONTH_DAYS = ["*", "*", "*", "*/2", "L", "LW", "1-7", "25-31", "29", "1,15,L", "*/31"]
MONTHS = ["*", "*", "*", "*/2", "3,10", "MAR-NOV", "9-12,1-4", "JAN,DEC"]
WEEKDAYS = ["*", "*", "*", "SUN", "MON-FRI", "6,7", "0#4", "SUN#1", "5L", "7", "*/2", "SAT,SUN", "1#5,3L"]

expressions = st.tuples(*map(st.sampled_from, (MINUTES, HOURS, MONTH_DAYS, MONTHS, WEEKDAYS))).map(" ".join)
derandomized = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def windows():
    for zone, year in ZONES:
        for change in reference.changes(zone, year) or [datetime(year, 3, 29, tzinfo=UTC)]:
            yield zone, change.replace(hour=0) - timedelta(days=2)


WINDOWS = list(windows())


def cron(expression, zone="UTC"):
    return schedules.parse({"type": "cron", "expression": expression, "timezone": zone}, now=NOW)


def table(expression, zone="UTC", **bounds):
    return schedules.Timetable(task_id=UUID(int=7), schedule=cron(expression, zone), **bounds)


def test_the_windows_hold_the_nights_of_change_of_thirty_zones():
    assert len({zone for zone, _ in WINDOWS}) >= 30
    assert len(WINDOWS) >= 55


@settings(derandomized, max_examples=600)
@given(expression=expressions, window=st.sampled_from(WINDOWS), data=st.data())
def test_slots_around_the_nights_of_change_are_those_of_the_reference(expression, window, data):
    zone, start = window
    walked = reference.minutes(zone, start, DAYS)
    try:
        mine = table(expression, zone)
    except errors.Invalid:
        return  # a day that does not exist; the whole-year test sees to it that these are few
    expected = reference.slots(expression, walked[1:])
    # the window's first minute is left out: whether the clock has just jumped cannot be seen there
    assert list(mine.between(walked[0][0], walked[-1][0])) == expected
    instant = start + data.draw(st.integers(1, DAYS * 24 * 3600 - 1)) * timedelta(seconds=1)
    rest = expected[bisect.bisect_right(expected, instant) :]
    found = mine.next_after(instant)
    assert found == rest[0] if rest else found is None or found > walked[-1][0]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("expression", ["30 2 * * *", "*/15 0-3 * * *", "*/20 * * * *", "0 */2 * * *", "0 0 * * *"])
def test_the_usual_expressions_hold_on_every_night_of_change(expression, window):
    zone, start = window
    walked = reference.minutes(zone, start, DAYS)
    expected = reference.slots(expression, walked[1:])
    assert list(table(expression, zone).between(walked[0][0], walked[-1][0])) == expected


@pytest.mark.parametrize(
    ("zone", "year"),
    [("Europe/Paris", 2026), ("Africa/Casablanca", 2025), ("Australia/Lord_Howe", 2027)],
)
def test_slots_over_a_whole_year_are_those_of_the_reference(zone, year):
    start = datetime(year, 1, 5, tzinfo=UTC)
    walked = reference.minutes(zone, start, 364)
    for expression in (
        "30 2 * * *",
        "59 23 L * *",
        "0 0 LW * *",
        "0 9 31 * MON#1",
        "*/31 1 */5 * SUN",
        "15 * 1-7 * */3",
        "0 12 29 2 *",
        "7 3-23/5 15,31 2-11 FRI,0L",
    ):
        expected = reference.slots(expression, walked[1:])
        assert list(table(expression, zone).between(walked[0][0], walked[-1][0])) == expected, expression
    reference.minutes.cache_clear()


def local(text, zone="Europe/Paris"):
    return [f"{slot:%H:%M}" for slot in table(text, zone).between(*NIGHTS[zone])]


NIGHTS = {
    "Europe/Paris": (datetime(2026, 10, 24, 22, tzinfo=UTC) - TICK, datetime(2026, 10, 25, 4, tzinfo=UTC)),
    "Europe/Berlin": (datetime(2026, 3, 28, 23, tzinfo=UTC) - TICK, datetime(2026, 3, 29, 4, tzinfo=UTC)),
}


def test_a_time_that_repeats_runs_once_the_first_time():
    assert local("30 2 * * *") == ["00:30"]
    assert local("*/15 2 * * *") == ["00:00", "00:15", "00:30", "00:45"]
    assert local("0 */2 * * *") == ["22:00", "00:00", "03:00"]


def test_a_time_that_does_not_exist_runs_once_right_after_the_gap():
    assert local("30 2 * * *", "Europe/Berlin") == ["01:00"]
    assert local("*/15 2-3 * * *", "Europe/Berlin") == ["01:00", "01:15", "01:30", "01:45"]
    assert local("15 1-2 * * *", "Europe/Berlin") == ["00:15", "01:00"]


def test_an_hourly_expression_follows_real_time():
    for zone, night in NIGHTS.items():
        slots = list(table("0 * * * *", zone).between(*night))
        assert {after - before for before, after in pairwise(slots)} == {timedelta(hours=1)}


def test_a_day_that_a_zone_skipped_runs_right_after_it():
    # Samoa went from Thursday, 29 December 2011 straight to Saturday
    slots = table("0 9 * * *", "Pacific/Apia").between(*[datetime(2011, 12, day, tzinfo=UTC) for day in (29, 31)])
    assert [slot.isoformat() for slot in slots] == [
        "2011-12-29T19:00:00+00:00",
        "2011-12-30T10:00:00+00:00",
        "2011-12-30T19:00:00+00:00",
    ]


def test_the_29th_of_february_on_a_sunday_is_found_across_decades():
    slots = islice(table("0 0 29 2 */7").upcoming(NOW), 3)
    assert [slot.date().isoformat() for slot in slots] == ["2032-02-29", "2060-02-29", "2088-02-29"]


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 4,6 *", "0 0 */31 2 1#2"])
def test_an_expression_that_never_happens_is_refused_with_the_reason(expression):
    with pytest.raises(errors.Invalid) as refused:
        cron(expression)
    (sentence,) = refused.value.errors["expression"]
    assert sentence.startswith("This never happens")


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("* * * * * *", "six fields"),
        ("@reboot", "nickname"),
        ("0 9 * *", "five fields, this has 4"),
        ("61 * * * *", "minute “61”"),
        ("0 24 * * *", "hour “24”"),
        ("0 0 * FOO *", "month “FOO”"),
        ("0 0 * * FRI-SUN", "day of week “FRI-SUN”"),
        ("0 0 0 * *", "day of month “0”"),
        ("*/0 * * * *", "minute “*/0”"),
        ("0 0 * * \u0661", "day of week"),
    ],
)
def test_a_refusal_names_the_field(expression, words):
    with pytest.raises(errors.Invalid) as refused:
        cron(expression)
    assert words in refused.value.errors["expression"][0]


@pytest.mark.parametrize(
    ("nickname", "expression"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@Midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@ANNUALLY", "0 0 1 1 *"),
    ],
)
def test_a_nickname_stands_for_its_expression(nickname, expression):
    mine, same = (islice(table(each, "Europe/Paris").upcoming(NOW), 30) for each in (nickname, expression))
    assert list(mine) == list(same)


def test_case_and_spaces_do_not_matter():
    assert table(" 0  9 * jan-dec mon-Fri ").next_after(NOW) == table("0 9 * 1-12 1-5").next_after(NOW)
