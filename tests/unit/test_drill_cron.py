"""The oracle's own cron, against a second brute force, and against nights worked out by hand."""

from datetime import UTC, datetime, timedelta

import pytest
import reference

from drill import cron


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def dues(expression, zone, since, until):
    return [f"{at:%d %H:%M}" for at in cron.instants(expression, zone, utc(since), utc(until))]


EXPRESSIONS = [
    "* * * * *",
    "*/15 * * * *",
    "*/15 2 * * *",
    "30 2 * * *",
    "0 */2 * * *",
    "5-50/9 0-3,12 * * *",
    "0 9 * * MON-FRI",
]

DAYS = [
    "0 0 13 * FRI",
    "0 12 L * *",
    "0 12 LW * *",
    "0 12 * * 5L",
    "0 12 * * MON#2",
    "0 12 */10 * 0",
    "0 12 * MAR,OCT 0,7",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize(
    ("zone", "start"),
    [
        ("Europe/Paris", "2026-03-27"),
        ("Europe/Paris", "2026-10-23"),
        ("Australia/Lord_Howe", "2026-04-03"),
        ("Australia/Lord_Howe", "2026-10-02"),
        ("Pacific/Apia", "2011-12-28"),
        ("America/Santiago", "2026-09-04"),
    ],
)
def test_it_agrees_with_the_reference_of_the_schedules_around_each_change(expression, zone, start):
    window = reference.minutes(zone, utc(start), 4)
    # the reference knows nothing of the time before its window; the first day is left to it to learn
    begin = utc(start) + timedelta(days=1)
    expected = [at for at in reference.slots(expression, window) if at >= begin]
    assert list(cron.instants(expression, zone, begin, window[-1][0])) == expected


@pytest.mark.parametrize("expression", DAYS)
def test_it_agrees_with_the_reference_on_which_days(expression):
    window = reference.minutes("UTC", utc("2026-02-20"), 45)
    found = list(cron.instants(expression, "UTC", window[0][0], window[-1][0]))
    assert found == reference.slots(expression, window)
    assert found


NIGHTS = [
    # 02:00 becomes 03:00 in Paris: what lies in between is due once, at 03:00
    ("30 2 * * *", "Europe/Paris", "2026-03-28T22:00", "2026-03-29T12:00", ["29 01:00"]),
    ("*/15 2 * * *", "Europe/Paris", "2026-03-28T22:00", "2026-03-29T12:00", ["29 01:00"]),
    ("0 2,3 * * *", "Europe/Paris", "2026-03-28T22:00", "2026-03-29T12:00", ["29 01:00"]),
    # every hour is named: real time goes on
    ("30 * * * *", "Europe/Paris", "2026-03-29T00:00", "2026-03-29T02:59", ["29 00:30", "29 01:30", "29 02:30"]),
    # 03:00 becomes 02:00 in Paris
    ("30 2 * * *", "Europe/Paris", "2026-10-24T22:00", "2026-10-25T12:00", ["25 00:30"]),
    ("30 * * * *", "Europe/Paris", "2026-10-25T00:00", "2026-10-25T02:59", ["25 00:30", "25 01:30", "25 02:30"]),
    # 30 minutes are left out on Lord Howe: 02:00 becomes 02:30 at 15:30 UTC
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", "2026-10-04T12:00", ["03 15:30"]),
    # Samoa left out 30 December 2011 as a whole
    ("0 9 30 12 *", "Pacific/Apia", "2011-12-29T00:00", "2011-12-31T23:00", ["30 10:00"]),
    ("@daily", "UTC", "2026-01-01T00:00", "2026-01-03T00:00", ["01 00:00", "02 00:00", "03 00:00"]),
]


@pytest.mark.parametrize(("expression", "zone", "since", "until", "expected"), NIGHTS)
def test_a_night_is_as_worked_out_by_hand(expression, zone, since, until, expected):
    assert dues(expression, zone, since, until) == expected


def test_the_first_instant_is_not_before_since():
    since = utc("2026-01-01T00:00:30")
    assert next(cron.instants("* * * * *", "UTC", since, utc("2026-01-01T00:05"))) == utc("2026-01-01T00:01")
