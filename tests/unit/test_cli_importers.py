"""What other schedulers' definitions become: every case by a table, and the times by brute force."""

import json
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from celery import schedules as theirs
from cronsim import CronSim
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import errors
from app import schedules as ours
from cli import celery_beat, crontab, django_beat, drafts

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
ORIGIN = "2000-01-01T00:00:00Z"
derandomized = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150
)


def slots(schedule, start, days):
    """The slots of a schedule as the server computes them."""
    table = ours.Timetable(task_id=UUID(int=7), schedule=ours.parse(schedule, now=NOW))
    return list(table.between(start - timedelta(microseconds=1), start + timedelta(days=days)))


def one(text, **options):
    """The only task of a crontab."""
    found = crontab.convert(text, **options)
    assert found.problems == []
    [draft] = found.drafts
    return draft.fields


def reasons(found):
    return [str(problem) for problem in found.problems]


def test_a_line_becomes_a_task_that_runs_it_in_a_shell():
    assert one(
        "# Rotate the logs\n5 4 * * sun /usr/sbin/logrotate  /etc/logrotate.conf\n", timezone="Europe/Paris"
    ) == {
        "name": "Rotate the logs",
        "description": "From a crontab.",
        "target": "shell.run",
        "kwargs": {"argv": ["/bin/sh", "-c", "/usr/sbin/logrotate  /etc/logrotate.conf"], "env": {}},
        "schedule": {"type": "cron", "expression": "5 4 * * sun", "timezone": "Europe/Paris"},
        "overlap": "allow",
        "timeout": 86_400,
    }


def test_settings_count_for_the_lines_below_them():
    found = crontab.convert(
        "0 1 * * * first\n"
        "SHELL=/bin/bash\n"
        'PATH = "/usr/local/bin:/usr/bin"\n'
        "'GREETING'= hello world \n"
        "HOME=/srv/app\n"
        "CRON_TZ=Europe/Paris\n"
        "0 2 * * * second\n"
        "CRON_TZ=\n"
        "SHELL=\n"
        "0 3 * * * third\n",
        timezone="Asia/Tokyo",
    )
    first, second, third = (draft.fields for draft in found.drafts)
    assert first["kwargs"] == {"argv": ["/bin/sh", "-c", "first"], "env": {}}
    assert second["kwargs"] == {
        "argv": ["/bin/bash", "-c", "second"],
        "env": {"PATH": "/usr/local/bin:/usr/bin", "GREETING": "hello world", "HOME": "/srv/app"},
        "cwd": "/srv/app",
    }
    assert third["kwargs"]["argv"][0] == "/bin/sh"
    zones = [task["schedule"]["timezone"] for task in (first, second, third)]
    assert zones == ["Asia/Tokyo", "Europe/Paris", "Asia/Tokyo"]


def test_what_is_different_from_cron_is_noted():
    found = crontab.convert('MAILTO=root\nMAILTO=""\nTZ=Europe/Paris\n@daily root a\n@daily root b\n', system=True)
    assert [str(note) for note in found.notes] == [
        "crontab:1: no mail is sent to root: a run keeps its output",
        "crontab:3: TZ is the commands' own, as in Debian's cron; their times are UTC's",
        "crontab:4: shell.run runs it as the worker's user, not as root",
    ]
    assert found.drafts[0].fields["kwargs"] == {"argv": ["/bin/sh", "-c", "a"], "env": {"TZ": "Europe/Paris"}}


@pytest.mark.parametrize(
    ("line", "expression", "command"),
    [
        ("* * * * * x", "* * * * *", "x"),
        ("*/5\t1-3,7  *  JAN-mar  mon-FRI\tx  --y ", "*/5 1-3,7 * JAN-mar mon-FRI", "x  --y"),
        ("0 0 13 * 5 x", "0 0 13 * 5", "x"),
        ("0 0 * * 7 x", "0 0 * * 7", "x"),
        ("@hourly x y", "@hourly", "x y"),
        ("@Midnight\tx", "@midnight", "x"),
        ("@annually x", "@annually", "x"),
        (r"0 0 * * * date +\%F", "0 0 * * *", "date +%F"),
        (r"0 0 * * * grep '\.py' \\x", "0 0 * * *", r"grep '\.py' \\x"),
        ("  0 0 * * * x", "0 0 * * *", "x"),
        ("0 0 * * * A=b x", "0 0 * * *", "A=b x"),
        ("0 0 * * * x # and more", "0 0 * * *", "x # and more"),
    ],
)
def test_a_line_is_read_as_cron_reads_it(line, expression, command):
    task = one(line)
    assert task["schedule"]["expression"] == expression
    assert task["kwargs"]["argv"] == ["/bin/sh", "-c", command]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("@reboot x", "@reboot: nothing here knows when a machine starts"),
        ("@fortnightly x", "@fortnightly: there is no such nickname"),
        ("0 0 * * * mail -s hi root%Hello", "its command has a %"),
        (r"0 0 * * * x \\%y", "its command has a %"),
        ("0 0 * * *", "it has no command"),
        ("@daily", "it has no command"),
        ("61 0 * * * x", "'61 0 * * *' is no time"),
        ("0 0 30 2 * x", "'0 0 30 2 *' is no time"),
        ("0~30 0 * * * x", "is no time"),
        ("nonsense", "'nonsense' is no time"),
    ],
)
def test_a_line_that_has_no_equal_is_a_problem_with_its_place(line, reason):
    found = crontab.convert(f"\n{line}\n0 5 * * * after\n", path="tab")
    assert len(found.problems) == 1
    assert reasons(found)[0].startswith("tab:2: ")
    assert reason in reasons(found)[0]
    assert [draft.place for draft in found.drafts] == ["tab:3"]


def test_an_unknown_time_zone_is_a_problem_of_each_line_that_needs_it():
    found = crontab.convert("CRON_TZ=Paris\n0 0 * * * x\nCRON_TZ=Europe/Paris\n0 0 * * * y\n")
    assert reasons(found) == ["crontab:2: the time zone 'Paris' is not known"]
    assert len(found.drafts) == 1


def test_a_system_crontab_names_a_user_before_the_command():
    task = one("17 *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly\n", system=True)
    assert task["kwargs"]["argv"][2] == "cd / && run-parts --report /etc/cron.hourly"
    assert task["description"] == "From a crontab, where it ran as root."
    assert reasons(crontab.convert("0 0 * * * root\n", system=True)) == ["crontab:1: it has no command after its user"]


HEADED = """\
# Edit this file to introduce tasks to be run by cron.
# 
# For example, you can run a backup of all your user accounts
# at 5 a.m every week with:
# 0 5 * * 1 tar -zcf /var/backups/home.tgz /home/
# 
# For more information see the manual pages of crontab(5) and cron(8)
# 
# m h  dom mon dow   command
0 1 * * * one
# Example of job definition:
# .---------------- minute (0 - 59)
# |  .------------- hour (0 - 23)
# |  |  .---------- day of month (1 - 31)
# |  |  |  .------- month (1 - 12) OR jan,feb,mar,apr ...
# |  |  |  |  .---- day of week (0 - 6) (Sunday=0 or 7)
# |  |  |  |  |
# *  *  *  *  * user-name command to be executed
0 2 * * * two
# Where it stands
PATH=/usr/bin
0 3 * * * three

# ---- Billing ----
# is sent each night
# 0 3 * * * four --old
# FOO=bar
0 4 * * * four
0 5 * * * five
# far away

0 6 * * * six
"""  # noqa: W291 - as Debian has it


def test_a_name_is_the_first_line_of_the_comment_above_or_the_command():
    names = [draft.fields["name"] for draft in crontab.convert(HEADED).drafts]
    assert names == ["one", "two", "three", "Billing", "five", "six"]


def test_names_are_unique_and_the_same_each_time():
    text = "# Backup\n0 1 * * * a\n# Backup\n0 2 * * * b\n0 3 * * * x\n0 4 * * * x\n0 5 * * * " + 300 * "y"
    names = [draft.fields["name"] for draft in crontab.convert(text).drafts]
    assert names[:4] == ["Backup", "Backup 2", "x", "x 2"]
    assert len(names[4]) == 80
    assert crontab.convert(text) == crontab.convert(text)
    again = drafts.Names()
    assert [again.unique(name) for name in ("a", "a 2", "a", "a", 250 * "b", 250 * "b")] == [
        "a", "a 2", "a 3", "a 4", 200 * "b", 198 * "b" + " 2"
    ]  # fmt: skip


FIELDS = (
    ["0", "*", "*/15", "5-10", "0,30", "7-59/13"],
    ["0", "3", "*", "*/6", "8-18", "22,23"],
    ["*", "*", "13", "1-7", "*/2", "31", "1,15"],
    ["*", "*", "2", "JAN,jul", "3-11", "*/4"],
    ["*", "*", "0", "7", "mon-fri", "FRI", "*/2", "5-7"],
)
lines = st.tuples(*map(st.sampled_from, FIELDS)).map(" ".join)


@derandomized
@given(texts=st.lists(lines, min_size=1, max_size=4), day=st.integers(0, 700))
def test_an_imported_crontab_is_due_in_the_minutes_of_its_lines(texts, day):
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
    found = crontab.convert("".join(f"{text} command\n" for text in texts))
    assert len(found.drafts) + len(found.problems) == len(texts)
    for draft in found.drafts:
        number = int(draft.place.rpartition(":")[2])
        expected = []
        for slot in CronSim(texts[number - 1], start - timedelta(seconds=1)):
            if slot > start + timedelta(days=12):
                break
            expected.append(slot)
        assert slots(draft.fields["schedule"], start, 12) == expected


@derandomized
@given(text=st.text(alphabet="01259*/,-@%# \t\n\r\\\"'=ABCTZSHELmonreboot\u2028", max_size=200), system=st.booleans())
def test_each_line_of_whatever_text_is_a_task_a_problem_a_setting_or_a_comment(text, system):
    found = crontab.convert(text, system=system)
    places = [each.place for each in (*found.drafts, *found.problems)]
    assert len(places) == len(set(places))
    said = [number for number, line in enumerate(text.split("\n"), 1) if line.strip() and line.strip()[0] != "#"]
    silent = {f"crontab:{number}" for number in said} - set(places)
    lines = text.split("\n")
    assert all("=" in lines[int(place.rpartition(":")[2]) - 1] for place in silent)
    names = [draft.fields["name"] for draft in found.drafts]
    assert len(names) == len(set(names))
    assert all(0 < len(name) <= drafts.MAX_NAME for name in names)


def test_a_number_of_many_digits_is_a_problem():
    assert len(crontab.convert("9" * 5000 + " * * * * x").problems) == 1


def beat(schedule, timezone="UTC", **entry):
    """What becomes of one entry of a beat_schedule."""
    return celery_beat.convert({"entry": {"task": "billing.charge", "schedule": schedule} | entry}, timezone=timezone)


def test_an_entry_of_celery_becomes_a_task():
    found = beat(
        theirs.crontab(minute="0", hour="7", day_of_week="mon-fri"),
        "Europe/Paris",
        args=(1, ("a", "b")),
        kwargs={"x": {"y": None}},
        options={"queue": "billing", "priority": 9, "expires": 60, "time_limit": 90, "soft_time_limit": 60},
    )
    assert [draft.fields for draft in found.drafts] == [
        {
            "name": "entry",
            "target": "billing.charge",
            "args": [1, ["a", "b"]],
            "kwargs": {"x": {"y": None}},
            "schedule": {"type": "cron", "expression": "0 7 * * mon-fri", "timezone": "Europe/Paris"},
            "overlap": "allow",
            "timeout": 60,
            "queue": "billing",
            "priority": 9,
        }
    ]
    assert [str(note) for note in found.notes] == [
        "entry: the option expires is left out: a run that waits is not thrown away"
    ]


def every(seconds):
    return {"type": "interval", "every": seconds, "anchor": ORIGIN}


MIDNIGHT = "2000-01-01T00:00:00+00:00"


def days(number, zone="UTC", midnight=MIDNIGHT):
    return {"type": "rrule", "rule": f"FREQ=DAILY;INTERVAL={number}", "starts": midnight, "timezone": zone}


def cron(expression, timezone="UTC"):
    return {"type": "cron", "expression": expression, "timezone": timezone}


@pytest.mark.parametrize(
    ("schedule", "entry", "expected"),
    [
        (30, {}, every(30)),
        (30.0, {}, every(30)),
        (1.5, {}, every(1.5)),
        (timedelta(hours=2), {}, every(7200)),
        (theirs.schedule(90), {}, every(90)),
        (theirs.schedule(timedelta(minutes=5), relative=True), {}, every(300) | {"anchor": MIDNIGHT}),
        (30, {"relative": True}, every(30)),
        (timedelta(days=1), {"relative": True}, days(1)),
        (timedelta(days=14), {"relative": True}, days(14)),
        (theirs.crontab(), {}, cron("* * * * *")),
        (theirs.crontab(minute="*/15"), {}, cron("*/15 * * * *")),
        (theirs.crontab(minute=5, hour={3, 4, 5, 9}), {}, cron("5 3-5,9 * * *")),
        (theirs.crontab(minute=[0, 20, 40], hour="22-2"), {}, cron("*/20 0-2,22-23 * * *")),
        (theirs.crontab(minute=0, hour=0, day_of_week="sunday"), {}, cron("0 0 * * 0")),
        (theirs.crontab(minute=0, hour=0, day_of_week="sat-mon"), {}, cron("0 0 * * 0-1,6")),
        (theirs.crontab(minute=0, hour=0, day_of_month=15, day_of_week="0-6"), {}, cron("0 0 15 * *")),
        (theirs.crontab(minute=0, hour=0, day_of_month="1-31", day_of_week=1), {}, cron("0 0 * * 1")),
        (theirs.crontab(minute=0, hour=0, day_of_month="*/2", day_of_week=1), {}, cron("0 0 */2 * 1")),
        (theirs.crontab(minute=0, hour=0, day_of_month="8-14", day_of_week="tue"), {}, cron("0 0 * * 2#2")),
        (
            theirs.crontab(minute=0, hour=0, day_of_month="1-7,15-21", day_of_week="mon,fri"),
            {},
            cron("0 0 * * 1#1,1#3,5#1,5#3"),
        ),
        (
            theirs.crontab(minute=30, hour=9, day_of_month="13", day_of_week="fri", month_of_year="3-5"),
            {},
            {
                "type": "rrule",
                "rule": "FREQ=DAILY;BYMONTH=3,4,5;BYMONTHDAY=13;BYDAY=FR;BYHOUR=9;BYMINUTE=30;BYSECOND=0",
                "starts": ORIGIN,
                "timezone": "UTC",
            },
        ),
    ],
)
def test_a_schedule_of_celery_as_one_of_ours(schedule, entry, expected):
    found = beat(schedule, **entry)
    assert found.problems == []
    assert found.drafts[0].fields["schedule"] == expected
    ours.parse(expected, now=NOW)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"schedule": object.__new__(theirs.solar)}, "a solar schedule"),  # made without what computes the sun
        ({"schedule": 0.5}, "an interval of 0.5 s"),
        ({"schedule": timedelta(days=4000)}, "an interval of"),
        ({"schedule": 1.0005}, "three decimals"),
        ({"schedule": timedelta(minutes=90), "relative": True}, "no whole number of its unit"),
        ({"schedule": theirs.crontab(nowfun=lambda: NOW)}, "a clock of its own"),
        ({"schedule": "daily"}, "a schedule of the type str"),
        ({"schedule": True}, "a schedule of the type bool"),
        ({"schedule": None}, "a schedule of the type NoneType"),
        ({"task": None}, "it names no task"),
        ({"args": [object()]}, "its arguments are no JSON"),
        ({"kwargs": {"x": float("nan")}}, "its arguments are no JSON"),
        ({"options": {"priority": 255}}, "a priority of 255: it may be from 0 to 9"),
        ({"options": {"priority": "high"}}, "a priority of 'high'"),
        ({"options": {"countdown": 5}}, "the option countdown"),
    ],
)
def test_an_entry_that_has_no_equal_is_a_problem(entry, reason):
    found = celery_beat.convert({"entry": {"task": "x", "schedule": 60} | entry, "good": {"task": "x", "schedule": 60}})
    assert reasons(found)[0].startswith("entry: ")
    assert reason in reasons(found)[0]
    assert [draft.place for draft in found.drafts] == ["good"]


def test_a_relative_interval_follows_the_wall_clock_of_its_app():
    found = beat(timedelta(days=2), "Europe/Paris", relative=True).drafts[0].fields["schedule"]
    assert found == days(2, "Europe/Paris", "2000-01-01T00:00:00+01:00")
    start = datetime(2026, 3, 26, tzinfo=UTC)  # the clock goes forward on the 29th
    assert [f"{slot:%d %H}" for slot in slots(found, start, 7)] == ["26 23", "28 23", "30 22", "01 22"]
    hours = beat(timedelta(hours=2), "Asia/Kolkata", relative=True).drafts[0].fields["schedule"]
    assert hours["anchor"] == "2000-01-01T00:00:00+05:30"


def test_a_zone_without_a_name_is_a_problem_for_what_needs_one():
    zone = timezone(timedelta(hours=1))
    assert "set the app's `timezone`" in reasons(beat(theirs.crontab(), zone))[0]
    assert beat(60, zone).problems == []


CELERY = (
    [0, "*", "*/15", {1, 2, 50}, "50-5"],
    [0, "*", "*/6", [8, 20], "22-3"],
    ["*", 13, "1-7", "*/2", "22-31", {1, 15}, "1-31", "2-30/2"],
    ["*", 2, "3-11", "nov-feb"],
    ["*", 0, "mon-fri", "friday", "*/2", "sat-sun", {1, 3}, "0-6"],
)


@derandomized
@given(fields=st.tuples(*map(st.sampled_from, CELERY)), day=st.integers(0, 700))
def test_an_imported_crontab_of_celerys_is_due_where_all_its_fields_match(fields, day):
    minute, hour, month_day, month, weekday = fields
    written = theirs.crontab(minute=minute, hour=hour, day_of_month=month_day, month_of_year=month, day_of_week=weekday)
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
    made = beat(written).drafts[0].fields["schedule"]
    dates = [start + timedelta(days=number) for number in range(35)]
    expected = [
        date + timedelta(hours=hour, minutes=minute)
        for date in dates
        if date.day in written.day_of_month
        and date.month in written.month_of_year
        and date.isoweekday() % 7 in written.day_of_week
        for hour in sorted(written.hour)
        for minute in sorted(written.minute)
    ]
    try:
        found = slots(made, start, 35)
    except errors.Invalid:
        assert not expected
    else:
        assert [slot for slot in found if slot < dates[-1] + timedelta(days=1)] == expected


def fixture(task, *others):
    """A fixture of django-celery-beat with one task and the usual schedules."""
    rows = [
        ("intervalschedule", 1, {"every": 10, "period": "minutes"}),
        ("intervalschedule", 2, {"every": 10, "period": "microseconds"}),
        ("crontabschedule", 1, crontab_row(minute="0", hour="7", day_of_week="1-5")),
        ("crontabschedule", 2, crontab_row(minute="0, 30", day_of_week="8")),
        ("clockedschedule", 1, {"clocked_time": "2090-01-01T10:00:00Z"}),
        ("clockedschedule", 2, {"clocked_time": "2020-01-01T10:00:00Z"}),
        ("clockedschedule", 3, {"clocked_time": "2090-01-01T10:00:00"}),
        ("solarschedule", 1, {"event": "sunset", "latitude": "48.8", "longitude": "2.3"}),
        ("periodictasks", 1, {"last_update": "2026-01-01T00:00:00Z"}),
        *others,
    ]
    usual = {"name": "charge", "task": "billing.charge", "args": "[]", "kwargs": "{}", "enabled": True, "headers": "{}"}
    rows.append(("periodictask", 9, usual | {"interval": None, "crontab": None, "solar": None, "clocked": None} | task))
    found = [{"model": f"django_celery_beat.{model}", "pk": key, "fields": fields} for model, key, fields in rows]
    return django_beat.convert([*found, {"model": "auth.user", "pk": 1, "fields": {}}], now=NOW)


def crontab_row(**fields):
    names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    return dict.fromkeys(names, "*") | {"timezone": "Europe/Paris"} | fields


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"interval": 1}, {"schedule": every(600)}),
        ({"crontab": 1}, {"schedule": cron("0 7 * * 1-5", "Europe/Paris")}),
        ({"clocked": 1, "one_off": True}, {"schedule": {"type": "once", "at": "2090-01-01T10:00:00Z"}}),
        ({"interval": 1, "one_off": True}, {"schedule": every(600), "max_runs": 1}),
        ({"interval": 1, "queue": "billing", "priority": 3}, {"queue": "billing", "priority": 3}),
        ({"interval": 1, "args": "[1, 2]", "kwargs": '{"a": null}'}, {"args": [1, 2], "kwargs": {"a": None}}),
        ({"interval": 1, "description": "Pays."}, {"description": "Pays."}),
        (
            {"interval": 1, "start_time": "2027-01-01T00:00:00+01:00", "expires": "2028-01-01T00:00:00Z"},
            {"starts_at": "2027-01-01T00:00:00+01:00", "ends_at": "2028-01-01T00:00:00Z"},
        ),
    ],
)
def test_a_periodic_task_of_django_becomes_a_task(given_, expected):
    found = fixture(given_)
    assert found.problems == []
    task = found.drafts[0].fields
    assert (task["name"], task["target"]) == ("charge", "billing.charge")
    assert {name: task[name] for name in expected} == expected
    assert json.loads(json.dumps(task)) == task


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        ({"solar": 1}, "a solar schedule"),
        ({"interval": 2}, "an interval of 1e-05 s"),
        ({"interval": 77}, "the fixture does not hold its interval schedule 77"),
        ({}, "it names no schedule, or several"),
        ({"interval": 1, "crontab": 1}, "it names no schedule, or several"),
        ({"crontab": 2}, "its crontab cannot be read"),
        ({"clocked": 3}, "its clocked_time has no offset"),
        ({"interval": 1, "args": "{}"}, "its args are not JSON of the right kind"),
        ({"interval": 1, "kwargs": "nonsense"}, "its kwargs are not JSON of the right kind"),
        ({"interval": 1, "priority": 200}, "a priority of 200"),
        ({"interval": 1, "start_time": "soon"}, "its start_time is no time"),
        ({"interval": 1, "task": ""}, "it names no task"),
    ],
)
def test_a_periodic_task_that_has_no_equal_is_a_problem(given_, reason):
    found = fixture(given_)
    assert found.drafts == []
    assert reason in reasons(found)[0]


@pytest.mark.parametrize(
    ("given_", "note"),
    [
        ({"enabled": False, "interval": 1}, "it is disabled, and left out"),
        ({"interval": 1, "expires": "2026-01-01T00:00:00Z"}, "it has expired, and is left out"),
        ({"clocked": 2}, "its time has passed, and it is left out"),
        ({"interval": 1, "one_off": True, "total_run_count": 1}, "it has run once"),
    ],
)
def test_a_periodic_task_that_is_over_is_noted_and_left_out(given_, note):
    found = fixture(given_)
    assert (found.drafts, found.problems) == ([], [])
    assert note in str(found.notes[0])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet="0123*/,-monfri2026T:Z", max_size=12),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)
COLUMNS = (
    *("name", "task", "interval", "crontab", "clocked", "solar", "args", "kwargs", "queue", "priority", "one_off"),
    *("start_time", "expires", "enabled", "headers", "description", "every", "period", "clocked_time", "timezone"),
    *("minute", "hour", "day_of_month", "month_of_year", "day_of_week", "total_run_count"),
)


@derandomized
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(("periodictask", "intervalschedule", "crontabschedule", "clockedschedule")),
            st.integers(1, 2),
            st.dictionaries(st.sampled_from(COLUMNS), anything | st.integers(1, 2), max_size=8),
        ),
        max_size=6,
    ),
    other=anything,
)
def test_whatever_a_fixture_holds_each_task_is_one_or_a_problem_or_noted(rows, other):
    objects = [{"model": f"django_celery_beat.{model}", "pk": key, "fields": fields} for model, key, fields in rows]
    found = django_beat.convert([*objects, other], now=NOW)
    json.dumps([draft.fields for draft in found.drafts])
    wanted = len({key for model, key, _ in rows if model == "periodictask"})
    left_out = sum("left out" in note.reason and "equal" not in note.reason for note in found.notes)
    assert len(found.drafts) + len(found.problems) <= wanted <= len(found.drafts) + len(found.problems) + left_out


def test_what_a_message_carried_is_noted():
    found = fixture({"interval": 1, "expire_seconds": 5, "exchange": "x", "headers": '{"a": 1}'})
    assert [note.reason.partition(" is left out")[0] for note in found.notes] == [
        "expire_seconds", "exchange", "headers"
    ]  # fmt: skip
    assert len(found.drafts) == 1


def test_lines_of_json_keep_their_places_and_a_name_stands_once():
    found = drafts.definitions("f", ['{"name": "a"}', "", "nonsense", "[]", "{}", '{"name": "a"}', '{"name": NaN}'])
    drafts.refuse_doubles(found)
    assert [(draft.place, draft.fields) for draft in found.drafts] == [("f:1", {"name": "a"})]
    assert [text.partition(": ")[0] for text in reasons(found)] == ["f:3", "f:4", "f:5", "f:7", "f:6"]
    assert reasons(found)[-1] == "f:6: the name 'a' stands at f:1 already"
