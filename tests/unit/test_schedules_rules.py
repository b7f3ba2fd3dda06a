"""RRULEs: against dateutil walking all the way from DTSTART, and on the nights of change."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from dateutil import rrule
from hypothesis import given, settings
from hypothesis import strategies as st

from app import errors, schedules
from tests.unit import reference

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
TICK = timedelta(microseconds=1)
derandomized = settings(derandomize=True, deadline=None, database=None)


def rule(text, starts="2026-03-02T09:00:00Z", zone="UTC"):
    return schedules.parse({"type": "rrule", "rule": text, "starts": starts, "timezone": zone}, now=NOW)


def table(text, starts="2026-03-02T09:00:00Z", zone="UTC", **bounds):
    return schedules.Timetable(task_id=UUID(int=7), schedule=rule(text, starts, zone), **bounds)


def shown(text, count, starts="2026-03-02T09:00:00Z", zone="UTC"):
    """The first slots on the wall clock of the zone."""
    slots = islice(table(text, starts, zone).upcoming(datetime(1900, 1, 1, tzinfo=UTC)), count)
    return [f"{slot.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M}" for slot in slots]


def some(values, most=3):
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True).map(
        lambda found: ",".join(map(str, found))
    )


WEEKDAYS = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"]
PART = {
    "BYMONTH": some(range(1, 13)),
    "BYMONTHDAY": some([1, 2, 15, 28, 29, 30, 31, -1, -3, -31]),
    "BYDAY": some(WEEKDAYS, 5),
    "BYHOUR": some(range(24)),
    "BYMINUTE": some(range(60)),
    "BYSECOND": some(range(60)),
    "BYYEARDAY": some([1, 60, 200, 366, -1, -366, -100]),
    "WKST": st.sampled_from(WEEKDAYS),
    "NTH": some([f"{n}{day}" for n in (1, 2, 5, -1, -5) for day in WEEKDAYS]),
    "BYWEEKNO": some([1, 2, 20, 52, 53, -1]),
    "BYSETPOS": some([1, 2, 5, -1, -2]),
}
ALLOWED = {
    "YEARLY": ["BYMONTH", "BYMONTHDAY", "BYDAY", "NTH", "BYYEARDAY", "BYWEEKNO", "WKST", "BYSETPOS", "BYHOUR"],
    "MONTHLY": ["BYMONTH", "BYMONTHDAY", "BYDAY", "NTH", "BYSETPOS", "BYHOUR", "BYMINUTE"],
    "WEEKLY": ["BYMONTH", "BYDAY", "WKST", "BYHOUR", "BYMINUTE"],
    "DAILY": ["BYMONTH", "BYMONTHDAY", "BYDAY", "BYHOUR", "BYMINUTE", "BYSECOND"],
    "HOURLY": ["BYMONTH", "BYMONTHDAY", "BYDAY", "BYYEARDAY", "BYHOUR", "BYMINUTE", "BYSECOND"],
    "MINUTELY": ["BYMONTHDAY", "BYDAY", "BYHOUR", "BYMINUTE", "BYSECOND"],
    "SECONDLY": ["BYDAY", "BYHOUR", "BYMINUTE", "BYSECOND"],
}
PLACES = [("Europe/Paris", 2026), ("Australia/Lord_Howe", 2026), ("Asia/Beirut", 2026), ("Pacific/Apia", 2011)]
SPAN = {"SECONDLY": 2, "MINUTELY": 30, "HOURLY": 300}


@st.composite
def rules(draw):
    freq = draw(st.sampled_from(sorted(ALLOWED)))
    names = draw(st.lists(st.sampled_from(ALLOWED[freq]), max_size=3, unique=True))
    parts = [f"FREQ={freq}", f"INTERVAL={draw(st.sampled_from([1, 1, 2, 3, 4, 6, 5, 7]))}"]
    if "NTH" in names and "BYDAY" in names:
        names.remove("BYDAY")
    if "BYWEEKNO" in names:
        names = [name for name in names if name != "NTH"]
        names += [] if "BYDAY" in names else ["BYDAY"]  # alone it means other days to dateutil than to RFC 5545
    parts += [f"{'BYDAY' if name == 'NTH' else name}={draw(PART[name])}" for name in names]
    return ";".join(parts)


@settings(derandomized, max_examples=500)
@given(text=rules(), back=st.integers(0, 1200), seconds=st.integers(0, 86_399), ahead=st.integers(0, 3000))
def test_a_rule_yields_what_dateutil_yields_however_long_ago_it_began(text, back, seconds, ahead):
    freq = text.split(";")[0].removeprefix("FREQ=")
    span = SPAN.get(freq, 3000)
    starts = datetime(2024, 6, 1, tzinfo=UTC).replace(tzinfo=None) - timedelta(
        days=back * span // 3000, seconds=seconds
    )
    try:
        mine = table(text, f"{starts.isoformat()}Z")
    except errors.Invalid:
        return
    since = starts + timedelta(days=ahead * span // 3000)
    until = since + timedelta(days=span / 10 if freq in SPAN else span)
    expected = rrule.rrulestr(text, dtstart=starts).between(since, until)
    aware = [each.replace(tzinfo=UTC) for each in expected]
    found = list(mine.between(since.replace(tzinfo=UTC), until.replace(tzinfo=UTC) - TICK))
    assert found == aware


@settings(derandomized, max_examples=150)
@given(
    freq=st.sampled_from(["DAILY", "WEEKLY;BYDAY=SA,SU,MO", "HOURLY;INTERVAL=2", "MINUTELY;INTERVAL=30"]),
    hours=some([0, 1, 2, 3, 22, 23]),
    minutes=some([0, 15, 30, 59]),
    place=st.sampled_from(
        [("Europe/Paris", 2026), ("Australia/Lord_Howe", 2026), ("Asia/Beirut", 2026), ("Pacific/Apia", 2011)]
    ),
    which=st.integers(0, 1),
)
def test_a_rule_that_names_its_hours_holds_on_the_nights_of_change(freq, hours, minutes, place, which):
    zone, year = place
    start = reference.changes(zone, year)[which].replace(hour=0) - timedelta(days=2)
    begins = datetime(year, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    text = f"FREQ={freq};BYHOUR={hours};BYMINUTE={minutes}"
    starts = begins.replace(tzinfo=ZoneInfo(zone)).isoformat()
    walked = reference.minutes(zone, start, 5)
    try:
        mine = table(text, starts, zone)
    except errors.Invalid:
        return
    times = rrule.rrulestr(text, dtstart=begins).between(walked[0][1] - timedelta(1), walked[-1][1] + timedelta(1))
    expected = reference.walk(set(times).__contains__, walked[1:], real=False)
    assert list(mine.between(walked[0][0], walked[-1][0])) == expected


def test_the_time_of_day_stays_when_the_clock_changes():
    assert shown("FREQ=WEEKLY", 5, "2026-03-16T09:00:00+01:00", "Europe/Paris") == [
        "2026-03-16 09:00",
        "2026-03-23 09:00",
        "2026-03-30 09:00",
        "2026-04-06 09:00",
        "2026-04-13 09:00",
    ]


@pytest.mark.parametrize(
    "text", ["FREQ=HOURLY;INTERVAL=2", "FREQ=MINUTELY;INTERVAL=45", "FREQ=MINUTELY;INTERVAL=20;BYDAY=SU"]
)
def test_a_rule_of_hours_or_less_follows_real_time(text):
    for day in ("2026-03-29", "2026-10-25"):
        start = datetime.fromisoformat(f"{day}T00:00:00+00:00") - timedelta(minutes=30)
        slots = list(islice(table(text, start.isoformat(), "Europe/Paris").upcoming(start), 9))
        assert len({after - before for before, after in pairwise(slots)}) == 1


def test_months_without_the_day_are_left_out():
    assert shown("FREQ=MONTHLY", 3, "2026-01-31T08:00:00Z") == [
        "2026-01-31 08:00",
        "2026-03-31 08:00",
        "2026-05-31 08:00",
    ]


def test_the_last_friday_and_the_last_weekday_of_the_month():
    assert shown("FREQ=MONTHLY;BYDAY=-1FR", 2) == ["2026-03-27 09:00", "2026-04-24 09:00"]
    assert shown("RRULE:FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1", 3)[-1] == "2026-05-29 09:00"


def test_the_first_day_of_the_week_decides_which_weeks_are_skipped():
    # RFC 5545, 3.8.5.3
    text, starts = "FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU;WKST=", "1997-08-05T09:00:00Z"
    assert [day[5:10] for day in shown(f"{text}MO", 9, starts)] == ["08-05", "08-10", "08-19", "08-24"]
    assert [day[5:10] for day in shown(f"{text}SU", 9, starts)] == ["08-05", "08-17", "08-19", "08-31"]


def test_a_week_number_alone_means_the_weekday_of_the_start():
    assert shown("FREQ=YEARLY;BYWEEKNO=20", 2) == ["2026-05-11 09:00", "2027-05-17 09:00"]


def test_the_start_counts_only_where_the_rule_yields_it():
    assert shown("FREQ=DAILY", 1) == ["2026-03-02 09:00"]
    assert shown("FREQ=WEEKLY;BYDAY=FR", 1) == ["2026-03-06 09:00"]


def test_count_counts_slots():
    assert len(shown("FREQ=DAILY;COUNT=7", 99)) == 7
    assert len(shown("FREQ=SECONDLY;COUNT=1000", 9999)) == 1000
    # the times of the lost hour are one slot
    assert shown("FREQ=DAILY;BYHOUR=2;BYMINUTE=0,30;COUNT=3", 9, "2026-03-29T00:00:00+01:00", "Europe/Paris") == [
        "2026-03-29 03:00",
        "2026-03-30 02:00",
        "2026-03-30 02:30",
    ]


@pytest.mark.parametrize(
    ("until", "last"),
    [
        ("20260305", "2026-03-05 09:00"),
        ("20260305T090000", "2026-03-05 09:00"),
        ("20260305T085959", "2026-03-04 09:00"),
        ("20260305T080000Z", "2026-03-05 09:00"),
        ("20260305T075959Z", "2026-03-04 09:00"),
    ],
)
def test_until_is_included_as_a_day_a_local_time_or_a_utc_time(until, last):
    assert shown(f"FREQ=DAILY;UNTIL={until}", 99, "2026-03-02T08:00:00Z", "Europe/Paris")[-1] == last


def test_a_start_in_the_second_pass_of_an_hour_is_the_first_slot():
    starts = datetime(2026, 10, 25, 1, 0, tzinfo=UTC)  # 02:00 in Paris, for the second time
    slots = list(islice(table("FREQ=DAILY", starts.isoformat(), "Europe/Paris").upcoming(NOW - timedelta(99)), 2))
    assert slots == [starts, datetime(2026, 10, 26, 1, 0, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FREQ=DAILY;DTSTART=20260101", "DTSTART goes into"),
        ("DTSTART:20260101T000000Z\nRRULE:FREQ=DAILY", "one line"),
        ("FREQ=DAILY\nEXRULE:FREQ=DAILY", "one line"),
        ("FREQ=FORTNIGHTLY", "FREQ is one of"),
        ("INTERVAL=2", "FREQ is missing"),
        ("FREQ=DAILY;FREQ=DAILY", "twice"),
        ("FREQ=DAILY;BYEASTER=0", "BYEASTER=0"),
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL is a whole number"),
        ("FREQ=DAILY;COUNT=100000", "max_runs"),
        ("FREQ=DAILY;COUNT=2;UNTIL=20270101", "exclude"),
        ("FREQ=DAILY;UNTIL=tomorrow", "UNTIL looks like"),
        ("FREQ=DAILY;UNTIL=20261301", "UNTIL looks like"),
        ("FREQ=DAILY;BYMONTH=13", "1 to 12"),
        ("FREQ=DAILY;BYDAY=1MO", "numbered day"),
        ("FREQ=MONTHLY;BYDAY=XX", "weekdays"),
        ("FREQ=WEEKLY;BYSETPOS=1;BYDAY=MO", "BYSETPOS needs"),
        ("FREQ=MONTHLY;BYSETPOS=1;BYDAY=MO;BYHOUR=1,2", "one time of the day"),
        ("FREQ=MONTHLY;BYWEEKNO=3", "BYWEEKNO needs"),
        ("FREQ=HOURLY;INTERVAL=5;BYDAY=MO", "divide a day"),
        ("FREQ=SECONDLY;BYDAY=MO", "10,000 times"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never"),
        ("FREQ=DAILY;INTERVAL=7;BYDAY=TU", "never"),
        ("FREQ=SECONDLY;INTERVAL=86400;BYHOUR=3", "never"),
        ("FREQ=DAILY;UNTIL=20250101", "never"),
    ],
)
def test_a_refusal_says_what_is_wrong(text, words):
    with pytest.raises(errors.Invalid) as refused:
        rule(text)
    assert words in refused.value.errors["rule"][0]
