"""What cron expressions mean, by brute force: walk every real minute and look at the wall clock.

It shares nothing with `app.schedules`, and reads expressions by itself. Slow and plain on purpose.
"""

import calendar
import functools
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
NAMES = {name: k for k, name in enumerate(MONTHS, start=1)} | {name: k for k, name in enumerate(WEEKDAYS)}


@functools.cache
def minutes(zone: str, start: datetime, days: int) -> list[tuple[datetime, datetime]]:
    """Each real minute of the window with what the wall clock shows."""
    place, count = ZoneInfo(zone), days * 24 * 60
    instants = (start + step * MINUTE for step in range(count))
    return [(instant, instant.astimezone(place).replace(tzinfo=None, fold=0)) for instant in instants]


@functools.cache
def changes(zone: str, year: int) -> list[datetime]:
    """The hours of a year in which the clock of a zone changes."""
    place = ZoneInfo(zone)
    start = datetime(year, 1, 1, tzinfo=UTC)
    hours = [start + step * HOUR for step in range(366 * 24)]
    offsets = [hour.astimezone(place).utcoffset() for hour in hours]
    return [hours[k] for k in range(1, len(hours)) if offsets[k] != offsets[k - 1]]


def slots(expression: str, window: Iterable[tuple[datetime, datetime]]) -> list[datetime]:
    """The contract, minute by minute."""
    hours = _values(expression.split()[1], 0, 23)
    return walk(matcher(expression), window, real=hours == set(range(24)))


def walk(
    match: Callable[[datetime], bool], window: Iterable[tuple[datetime, datetime]], *, real: bool
) -> list[datetime]:
    """Real: each minute whose wall clock matches. Otherwise each wall-clock time once, a lost one after the gap."""
    found: list[datetime] = []
    latest: datetime | None = None  # the latest time that the clock has ever shown
    for instant, shown in window:
        if real or latest is None:
            due = match(shown)
        elif shown <= latest:
            due = False
        else:
            new = (latest + step * MINUTE for step in range(1, (shown - latest) // MINUTE + 1))
            due = any(map(match, new))
        if due:
            found.append(instant)
        latest = shown if latest is None else max(latest, shown)
    return found


def matcher(expression: str) -> Callable[[datetime], bool]:
    minute, hour, day, month, weekday = expression.upper().split()
    at_minutes, at_hours, in_months = _values(minute, 0, 59), _values(hour, 0, 23), _values(month, 1, 12)

    @functools.cache
    def on(when: date) -> bool:
        by_day, by_weekday = _matches_day(day, when), _matches_weekday(weekday, when)
        either = not (day.startswith("*") or weekday.startswith("*"))
        return when.month in in_months and ((by_day or by_weekday) if either else (by_day and by_weekday))

    return lambda shown: shown.minute in at_minutes and shown.hour in at_hours and on(shown.date())


def _matches_day(field: str, when: date) -> bool:
    last = calendar.monthrange(when.year, when.month)[1]
    for term in field.split(","):
        if term == "L":
            matches = when.day == last
        elif term == "LW":
            working = [d for d in range(1, last + 1) if date(when.year, when.month, d).weekday() < 5]
            matches = when.day == working[-1]
        else:
            matches = when.day in _values(term, 1, 31)
        if matches:
            return True
    return False


def _matches_weekday(field: str, when: date) -> bool:
    today = when.isoweekday() % 7
    last = calendar.monthrange(when.year, when.month)[1]
    for term in field.split(","):
        if "#" in term:
            name, nth = term.split("#")
            matches = today == _number(name) % 7 and (when.day - 1) // 7 + 1 == int(nth)
        elif term.endswith("L"):
            matches = today == _number(term[:-1]) % 7 and when.day > last - 7
        else:
            matches = today in {value % 7 for value in _values(term, 0, 7)}
        if matches:
            return True
    return False


def _values(field: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        first, dash, end = span.partition("-")
        if span == "*":
            values = range(low, high + 1)
        elif dash:
            values = range(_number(first), _number(end) + 1)
        elif step:
            values = range(_number(first), high + 1)
        else:
            values = range(_number(first), _number(first) + 1)
        found |= set(values[:: int(step or 1)])
    return found


def _number(text: str) -> int:
    return int(NAMES.get(text, text))
