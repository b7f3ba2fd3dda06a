"""What a person may not expect of a schedule: nights of change, short months, uneven steps, long waits."""

import functools
import itertools
import operator
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from app.schedules import cron, kinds, rules, timetable, words, zones

YEAR = timedelta(days=366)

_SHORT_MONTHS = {
    31: "Day 31: runs only in months with 31 days.",
    30: "Day 30: does not run in February.",
    29: "Day 29: runs in February only in leap years.",
}
_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_STEPPED = (
    ("minutes", 60, "at 0 each hour, so the last gap is shorter"),
    ("hours", 24, "at 0 each day, so the last gap is shorter"),
    ("days of the month", 31, "on day 1 of each month, so the last gap differs"),
    ("months", 12, "in January, so the last gap is shorter"),
    ("weekdays", 7, "on Sunday, so the last gap is shorter"),
)
_MANY = 3


def warnings(table: timetable.Timetable, *, now: datetime) -> list[str]:
    """What may surprise within the next year, one sentence each."""
    return [*_waits(table, now), *_steps(table.schedule), *_short_months(table.schedule), *_nights(table, now)]


def _waits(table: timetable.Timetable, now: datetime) -> Iterator[str]:
    first = table.next_after(now)
    if isinstance(table.schedule, kinds.Now | kinds.Once):
        if first is None and isinstance(table.schedule, kinds.Once):
            yield "This time has passed: it runs at once."
    elif first is None:
        yield "No slot is left from now on."
    elif first > now + YEAR:
        yield f"No slot within a year: the first is on {words.moment(first)} UTC."


def _steps(schedule: kinds.Schedule) -> Iterator[str]:
    """Steps that do not divide their range, which cron counts from its beginning again and again."""
    if not isinstance(schedule, kinds.Cron):
        return
    for field, (name, full, restart) in zip(cron.spelled(schedule.expression).split(), _STEPPED, strict=True):
        found = re.fullmatch(r"\*/([0-9]+)", field)
        step = int(found[1]) if found else 1
        if step >= full:
            yield f"{field} in {name}: the step is longer than the range, so only its first value is left."
        elif full % step:
            yield f"{field} in {name}: restarts {restart}."


def _short_months(schedule: kinds.Schedule) -> Iterator[str]:
    days, months = _days_and_months(schedule)
    for day in sorted(days):
        lacking = any(_LENGTHS[month - 1] < day for month in months)
        if day in _SHORT_MONTHS and day - 1 not in days and lacking:
            yield _SHORT_MONTHS[day]


def _days_and_months(schedule: kinds.Schedule) -> tuple[frozenset[int], frozenset[int]]:
    """The days of a month that are named, and the months that they are named in."""
    match schedule:
        case kinds.Cron():
            found = cron.pattern(schedule.expression)
            starred = cron.spelled(schedule.expression).split()[2].startswith("*")
            return frozenset(() if starred else found.days), frozenset(found.months)
        case kinds.Rrule():
            days, months = rules.compiled(schedule).month_days
            return frozenset(days), frozenset(months)
        case _:
            return frozenset(), frozenset()


def _nights(table: timetable.Timetable, now: datetime) -> Iterator[str]:
    """What becomes, when the clock changes, of times that are read off it."""
    clock = _clock(table.schedule)
    if clock is None:
        return
    walls, zone = clock
    for change in zones.changes(zone, now, now + YEAR):
        low, high = sorted((change.before, change.after))
        times = list(itertools.takewhile(functools.partial(operator.gt, high), walls(low - zones.SECOND)))
        if times and _is_slot(table, zones.instant(times[0], zone)):
            yield _night(times, change, zone)


def _clock(schedule: kinds.Schedule) -> tuple[zones.Walls, ZoneInfo] | None:
    """What the schedule reads off the wall clock, and which clock; None where it follows real time."""
    match schedule:
        case kinds.Cron() if not cron.hourly(schedule.expression):
            return functools.partial(cron.walls, schedule.expression), ZoneInfo(schedule.timezone)
        case kinds.Rrule():
            rule = rules.compiled(schedule)
            return None if rule.every is not None or rule.hourly else (rule.walls, rule.zone)
        case _:
            return None


def _is_slot(table: timetable.Timetable, slot: datetime) -> bool:
    since = slot - timedelta(microseconds=1)
    begun = table.starts_at is None or table.starts_at <= slot
    over = table.ends_at is not None and slot > table.ends_at
    return begun and not over and next(timetable.nominal(table.schedule, since), None) == slot


def _night(times: list[datetime], change: zones.Change, zone: ZoneInfo) -> str:
    more = [f"{len(times) - _MANY} more"] if len(times) > _MANY else []
    shown = words.joined([*(f"{each:%H:%M}" for each in times[:_MANY]), *more])
    night, one = f"{times[0]:%Y-%m-%d}", len(times) == 1
    if change.after > change.before:
        verb, runs = ("does", "it runs once,") if one else ("do", "they run once, together,")
        return f"{night}: {shown} {verb} not exist in {zone.key}; {runs} at {_landing(times[0], change)}."
    first = f"{zones.instant(times[0], zone).astimezone(UTC):%H:%M} UTC"
    verb, runs = ("comes", "it runs once") if one else ("come", "each runs once")
    return f"{night}: {shown} {verb} twice in {zone.key}; {runs}, the first time (from {first})."


def _landing(lost: datetime, change: zones.Change) -> str:
    """The clock's first time after the gap, with its date where that is another."""
    return f"{change.after:%H:%M}" if change.after.date() == lost.date() else f"{change.after:%Y-%m-%d %H:%M}"
