"""Schedules in plain English. Says what is usual simply, and leaves the rest of cron to cronsim's own words."""

import calendar
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import explain

from app.schedules import cron, kinds, parts, zones

_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
_NOUNS = {
    "YEARLY": "year",
    "MONTHLY": "month",
    "WEEKLY": "week",
    "DAILY": "day",
    "HOURLY": "hour",
    "MINUTELY": "minute",
    "SECONDLY": "second",
}
_WORKING = frozenset(range(5))
_FULL_WEEK = frozenset(range(7))
_MANY_TIMES = 4
_SUNDAY = 6


def describe(schedule: kinds.Schedule) -> str:
    """One line for a person, such as: Every weekday at 09:00, Europe/Paris time."""
    match schedule:
        case kinds.Now():
            return "Once, at once"
        case kinds.Once():
            return f"Once, on {moment(schedule.at)} UTC"
        case kinds.Interval():
            return _every(schedule.every)
        case kinds.Cron():
            return _cron(schedule.expression) + _place(schedule.timezone)
        case kinds.Rrule():
            return _rule(schedule) + _place(schedule.timezone)


def moment(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M}" + (f":{instant:%S}" if instant.second else "")


def joined(words: Iterable[str]) -> str:
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last


def ordinal(number: int) -> str:
    """1st, 2nd; counted from the end: last, 2nd to last."""
    if number < 0:
        return "last" if number == -1 else f"{ordinal(-number)} to last"
    teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _place(timezone: str) -> str:
    return "" if timezone == "UTC" else f", {timezone} time"


def _every(span: timedelta) -> str:
    seconds = span / zones.SECOND
    if seconds.is_integer():
        noun, size = next(unit for unit in _UNITS if seconds % unit[1] == 0)
        return _each(int(seconds) // size, noun)
    return f"Every {seconds:.3f}".rstrip("0") + " seconds"


def _each(number: int, noun: str) -> str:
    return f"Every {noun}" if number == 1 else f"Every {number:,} {noun}s"


def _cron(expression: str) -> str:
    spelled = cron.spelled(expression)
    minute, hour, day, month, weekday = spelled.split()
    if (day, month) == ("*", "*"):
        often = _often(minute, hour) if weekday == "*" else None
        dates = _weekdays_of(weekday)
        times = _clock_times(minute, hour)
        if often or (dates and times):
            return often or f"{dates} at {times}"
    return _plain(explain.explain(spelled))


def _plain(words: str) -> str:
    """cronsim counts 2nd, 3rd and 21st with “th” where they are figures."""
    return re.sub(r"\b(\d+)th\b", lambda found: ordinal(int(found[1])), words)


def _often(minute: str, hour: str) -> str | None:
    """Every so many minutes or hours, where the step divides the clock evenly."""
    if hour == "*" and (step := _step(minute, 60)):
        return _each(step, "minute")
    if minute == "0" and (step := _step(hour, 24)):
        return _each(step, "hour")
    return None


def _step(field: str, full: int) -> int | None:
    if field == "*":
        return 1
    found = re.fullmatch(r"\*/([0-9]{1,2})", field)
    step = int(found[1]) if found else 0
    return step if step and step < full and full % step == 0 else None


def _clock_times(minute: str, hour: str) -> str | None:
    fields = (*hour.split(","), *minute.split(","))
    if not all(field.isdigit() for field in fields):
        return None
    times = sorted({f"{int(h):02}:{int(m):02}" for h in hour.split(",") for m in minute.split(",")})
    return joined(times) if len(times) <= _MANY_TIMES else None


def _weekdays_of(field: str) -> str | None:
    """cron's weekday field; None where it names a week of the month as well."""
    if "#" in field or "L" in field:
        return None
    # cronsim counts from Sunday, as 0 and as 7; Python from Monday
    days = cron.pattern(f"0 0 * * {field}").weekdays
    return _each_weekday(frozenset((day - 1) % 7 for day in days if isinstance(day, int)))


def _each_weekday(days: frozenset[int]) -> str:
    if days == _FULL_WEEK:
        return "Every day"
    if days == _WORKING:
        return "Every weekday"
    return "Every " + joined(calendar.day_name[day] for day in sorted(days))


def _rule(schedule: kinds.Rrule) -> str:
    rule = parts.read(schedule.rule)
    starts = zones.wall(schedule.starts, ZoneInfo(schedule.timezone))
    return " ".join((_rhythm(rule, starts), *_picks(rule), *_months(rule), *_at(rule, starts))) + _end(rule)


def _rhythm(rule: parts.Parts, starts: datetime) -> str:
    """How often, and the days, taken from DTSTART where the rule names none."""
    week = frozenset(day for day, nth in rule.day if not nth)
    days = week or (frozenset((starts.weekday(),)) if rule.freq == "WEEKLY" else frozenset())
    if rule.interval == 1 and rule.freq in ("WEEKLY", "DAILY") and days and not rule.setpos:
        return _each_weekday(days)
    return " ".join((_each(rule.interval, _NOUNS[rule.freq]), *_days(rule, days, starts)))


def _days(rule: parts.Parts, days: frozenset[int], starts: datetime) -> list[str]:
    if rule.setpos:
        which = joined(map(ordinal, _from_the_front(rule.setpos)))
        if days == _WORKING:
            return [f"on the {which} weekday"]
        return [f"on the {which} of", joined(_named_days(rule, days))] if rule.day else [f"on the {which} of"]
    if rule.day or days:
        return ["on", joined(_named_days(rule, days))]
    if rule.freq in ("MONTHLY", "YEARLY") and not (rule.monthday or rule.yearday or rule.weekno):
        month = f" of {calendar.month_name[starts.month]}" if rule.freq == "YEARLY" and not rule.month else ""
        return [f"on day {starts.day}{month}"]
    return []


def _named_days(rule: parts.Parts, plain: frozenset[int]) -> list[str]:
    if plain in (_WORKING, _FULL_WEEK) and len(plain) == len(rule.day):
        return ["weekdays" if plain == _WORKING else "any day"]
    nth = [f"the {ordinal(n)} {calendar.day_name[day]}" for day, n in rule.day if n]
    return [*(calendar.day_name[day] for day in sorted(plain)), *nth]


def _picks(rule: parts.Parts) -> list[str]:
    found = []
    if rule.monthday:
        found.append(f"on {joined(_days_of_month(rule.monthday))}")
    if rule.yearday:
        found.append(f"on the {joined(map(ordinal, rule.yearday))} day of the year")
    if rule.weekno:
        found.append(f"in week {joined(map(str, rule.weekno))}")
    return found


def _days_of_month(days: Sequence[int]) -> list[str]:
    return [f"day {day}" if day > 0 else f"the {ordinal(day)} day" for day in _from_the_front(days)]


def _from_the_front(numbers: Sequence[int]) -> list[int]:
    """Those counted from the end come last."""
    return sorted(numbers, key=lambda number: (number < 0, number))


def _months(rule: parts.Parts) -> list[str]:
    return [f"in {joined(calendar.month_name[month] for month in rule.month)}"] if rule.month else []


def _at(rule: parts.Parts, starts: datetime) -> list[str]:
    if rule.fine:
        named = (("hours", rule.hour), ("minutes", rule.minute), ("seconds", rule.second))
        return [f"in {name} {joined(map(str, values))}" for name, values in named if values]
    hours, minutes = rule.hour or (starts.hour,), rule.minute or (starts.minute,)
    seconds = rule.second or (starts.second,)
    shown = "{:02}:{:02}" if seconds == (0,) else "{:02}:{:02}:{:02}"
    times = [shown.format(h, m, s) for h in hours for m in minutes for s in seconds]
    if len(times) > _MANY_TIMES:
        return [f"at {times[0]}, {times[1]} … {times[-1]}"]
    return [f"at {joined(times)}"]


def _end(rule: parts.Parts) -> str:
    if rule.count is not None:
        return ", once" if rule.count == 1 else f", {rule.count} times"
    if rule.until is not None:
        return f", until {moment(rule.until)}{' UTC' if rule.until.tzinfo else ''}"
    return ""
