"""What a person reads: the words of a schedule, and what it may surprise with."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app import schedules

NOW = datetime(2026, 9, 1, tzinfo=UTC)


def parse(fields):
    return schedules.parse(fields, now=NOW)


def cron(expression, zone="UTC"):
    return {"type": "cron", "expression": expression, "timezone": zone}


def rule(text, starts="2026-03-31T09:00:00+02:00", zone="Europe/Paris"):
    return {"type": "rrule", "rule": text, "starts": starts, "timezone": zone}


def warned(fields, **bounds):
    table = schedules.Timetable(task_id=UUID(int=7), schedule=parse(fields), **bounds)
    return schedules.warnings(table, now=NOW)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": "now"}, "Once, at once"),
        ({"type": "once", "at": "2026-12-24T18:00:00+01:00"}, "Once, on 2026-12-24 17:00 UTC"),
        ({"type": "interval", "every": 1}, "Every second"),
        ({"type": "interval", "every": 90}, "Every 90 seconds"),
        ({"type": "interval", "every": 1.5}, "Every 1.5 seconds"),
        ({"type": "interval", "every": 300}, "Every 5 minutes"),
        ({"type": "interval", "every": 7200}, "Every 2 hours"),
        (cron("0 9 * * MON-FRI", "Europe/Paris"), "Every weekday at 09:00, Europe/Paris time"),
        (cron("0 8,20 * * SAT,SUN"), "Every Saturday and Sunday at 08:00 and 20:00"),
        (cron("@daily"), "Every day at 00:00"),
        (cron("* * * * *"), "Every minute"),
        (cron("*/5 * * * *"), "Every 5 minutes"),
        (cron("@hourly"), "Every hour"),
        (cron("0 */6 * * *"), "Every 6 hours"),
        (cron("0 9 * * 1#2"), "At 09:00 on the second Monday of the month"),
        (cron("0 0 L * *"), "At 00:00 on the last day of every month"),
        (cron("0 9 22 * *"), "At 09:00 on the 22nd day of every month"),
        (rule("FREQ=DAILY"), "Every day at 09:00, Europe/Paris time"),
        (rule("FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR"), "Every weekday at 09:00, Europe/Paris time"),
        (rule("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,FR"), "Every 2 weeks on Monday and Friday at 09:00, Europe/Paris time"),
        (rule("FREQ=MONTHLY;BYDAY=-1FR"), "Every month on the last Friday at 09:00, Europe/Paris time"),
        (rule("FREQ=MONTHLY;BYMONTHDAY=1,-1"), "Every month on day 1 and the last day at 09:00, Europe/Paris time"),
        (rule("FREQ=YEARLY;COUNT=3"), "Every year on day 31 of March at 09:00, 3 times, Europe/Paris time"),
        (rule("FREQ=HOURLY;INTERVAL=3", zone="UTC"), "Every 3 hours"),
        (
            rule("FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;UNTIL=20270101T000000Z", zone="UTC"),
            "Every month on the last weekday at 07:00, until 2027-01-01 00:00 UTC",
        ),
    ],
)
def test_a_schedule_is_said_in_plain_words(fields, words):
    assert schedules.describe(parse(fields)) == words


def test_the_nights_of_change_are_told():
    assert warned(cron("30 2 * * *", "Europe/Paris")) == [
        "2026-10-25: 02:30 comes twice in Europe/Paris; it runs once, the first time (from 00:30 UTC).",
        "2027-03-28: 02:30 does not exist in Europe/Paris; it runs once, at 03:00.",
    ]
    assert warned(cron("*/15 2 * * *", "Europe/Paris"))[1] == (
        "2027-03-28: 02:00, 02:15, 02:30 and 1 more do not exist in Europe/Paris; they run once, together, at 03:00."
    )
    assert warned(rule("FREQ=WEEKLY;BYDAY=SU;BYHOUR=2")) != []


def test_the_nights_of_change_are_not_told_where_they_change_nothing():
    assert warned(cron("*/15 * * * *", "Europe/Paris")) == []
    assert warned(cron("30 4 * * *", "Europe/Paris")) == []
    assert warned(cron("30 2 * * *")) == []
    assert warned(rule("FREQ=HOURLY")) == []
    assert warned(cron("30 2 * * *", "Europe/Paris"), ends_at=NOW + timedelta(days=9)) == []


def test_days_that_months_lack_are_told():
    assert warned(cron("0 0 31 * *")) == ["Day 31: runs only in months with 31 days."]
    assert warned(cron("0 0 30 * *")) == ["Day 30: does not run in February."]
    assert warned(cron("0 0 29 * *")) == ["Day 29: runs in February only in leap years."]
    assert warned(rule("FREQ=MONTHLY", zone="UTC")) == ["Day 31: runs only in months with 31 days."]
    assert warned(cron("0 0 31 1,3 *")) == warned(cron("0 0 1-31 * *")) == warned(cron("0 0 L * *")) == []


def test_steps_that_do_not_divide_are_told():
    assert warned(cron("*/7 * * * *")) == ["*/7 in minutes: restarts at 0 each hour, so the last gap is shorter."]
    assert warned(cron("0 */5 * * *")) == ["*/5 in hours: restarts at 0 each day, so the last gap is shorter."]
    assert warned(cron("*/90 * * * *"))[0].startswith("*/90 in minutes: the step is longer")
    assert warned(cron("*/15 */6 * */3 *")) == []


def test_a_long_wait_is_told():
    assert warned(cron("0 0 29 2 *"))[0] == "No slot within a year: the first is on 2028-02-29 00:00 UTC."
    assert warned(cron("0 0 * * *"), ends_at=NOW) == ["No slot is left from now on."]
    assert warned({"type": "once", "at": "2020-01-01T00:00:00Z"}) == ["This time has passed: it runs at once."]
    assert warned({"type": "now"}) == []
