"""When a cron expression is due, by brute force: every minute is looked at, on the wall clock of the zone.

Shares no code with the product. The rules are those of docs/schedules.md, daylight saving included.
"""

import calendar
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)

NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MONTHS = {name.upper(): number for number, name in enumerate(calendar.month_abbr) if name}
WEEKDAYS = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}

Matches = Callable[[datetime], bool]


def instants(expression: str, timezone: str, since: datetime, until: datetime) -> Iterator[datetime]:
    """The instants in [since, until] at which the expression is due.

    One that names every hour is due whenever the wall clock matches. Any other is due at each wall-clock time once.
    """
    matches, hourly = read(expression)
    zone = ZoneInfo(timezone)
    minute = since.astimezone(UTC).replace(second=0, microsecond=0)
    before = _shown((minute - MINUTE).astimezone(zone))
    while minute <= until:
        local = minute.astimezone(zone)
        shown = _shown(local)
        if hourly:
            due = matches(shown)
        elif local.fold:  # the clock was put back and shows this for the second time
            due = False
        else:  # where the clock was put forward, what it left out is due right after
            left_out = max(0, (shown - before) // MINUTE - 1)
            due = any(matches(shown - step * MINUTE) for step in range(left_out + 1))
        if due and minute >= since:
            yield minute
        minute, before = minute + MINUTE, shown


def _shown(local: datetime) -> datetime:
    return local.replace(tzinfo=None, fold=0)


def read(expression: str) -> tuple[Matches, bool]:
    """What tells whether a wall-clock minute matches, and whether every hour is named."""
    minute, hour, day, month, weekday = NICKNAMES.get(expression.lower(), expression).upper().split()
    minutes, hours = _numbers(minute, 0, 59), _numbers(hour, 0, 23)
    months = _numbers(month, 1, 12, MONTHS)
    either = not day.startswith("*") and not weekday.startswith("*")

    def on(when: date) -> bool:
        by_day, by_weekday = _on_day(day, when), _on_weekday(weekday, when)
        return (by_day or by_weekday) if either else (by_day and by_weekday)

    def matches(shown: datetime) -> bool:
        return shown.minute in minutes and shown.hour in hours and shown.month in months and on(shown.date())

    return matches, len(hours) == len(range(24))


def _on_day(field: str, when: date) -> bool:
    days = calendar.monthrange(when.year, when.month)[1]
    special = {
        "L": days,
        "LW": max(
            day for day in range(1, days + 1) if calendar.weekday(when.year, when.month, day) < calendar.SATURDAY
        ),
    }
    return any(
        when.day == special[part] if part in special else when.day in _numbers(part, 1, 31) for part in field.split(",")
    )


def _on_weekday(field: str, when: date) -> bool:
    today = when.isoweekday() % 7
    days = calendar.monthrange(when.year, when.month)[1]

    def on(part: str) -> bool:
        name, hash_, nth = part.partition("#")
        if hash_:
            return today == _number(name, WEEKDAYS) % 7 and (when.day + 6) // 7 == int(nth)
        if part.endswith("L"):
            return today == _number(part[:-1], WEEKDAYS) % 7 and when.day + 7 > days
        return today in {number % 7 for number in _numbers(part, 0, 7, WEEKDAYS)}

    return any(map(on, field.split(",")))


def _numbers(field: str, low: int, high: int, names: dict[str, int] | None = None) -> set[int]:
    """What a field of lists, ranges and steps names."""
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            ends = (low, high)
        elif dash:
            ends = (_number(first, names), _number(last, names))
        else:
            ends = (_number(first, names), high if slash else _number(first, names))
        found.update(range(ends[0], ends[1] + 1, int(step) if slash else 1))
    return found


def _number(text: str, names: dict[str, int] | None) -> int:
    return names[text] if names and text in names else int(text)
