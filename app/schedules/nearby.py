"""The slots of a schedule within a day or so, in whole seconds from its beginning: for many thousand schedules at once.

What `Timetable` gives for one task at a time, without bounds and jitter. A cron expression is not walked through here:
its minutes and hours are read field by field, of which there are few, and laid on the days that it names.
"""

import functools
from bisect import bisect_left
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from app.schedules import cron, kinds, timetable, zones

_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_TICK = timedelta(microseconds=1)


def offsets(schedule: kinds.Schedule, start: datetime, end: datetime) -> Sequence[int]:
    """The slots with start <= slot < end, ascending. Raises Invalid where the schedule cannot be read."""
    if isinstance(schedule, kinds.Cron):
        moved = _offset(schedule.timezone, start, end)
        if moved is not None:
            return _marks(schedule.expression, start, end, moved)
    slots = timetable.Timetable(task_id=timetable.NOBODY, schedule=schedule).between(start - _TICK, end - _TICK)
    return [(slot - start) // _SECOND for slot in slots]


def _marks(expression: str, start: datetime, end: datetime, moved: timedelta) -> list[int]:
    """The seconds of a cron expression on a clock that stays `moved` from UTC."""
    minute, hour, of_day = cron.spelled(expression).split(maxsplit=2)
    length = (end - start) // _SECOND
    times = _times(minute, hour)
    found: list[int] = []
    for ahead in _midnights(of_day, start, end, moved):
        first, last = bisect_left(times, -ahead), bisect_left(times, length - ahead)
        found += [ahead + mark for mark in times[first:last]]
    return found


@functools.lru_cache(maxsize=1024)
def _midnights(of_day: str, start: datetime, end: datetime, moved: timedelta) -> tuple[int, ...]:
    """When the days begin that the three fields for the day name, in seconds from `start`, the first before it."""
    shown, until = start.replace(tzinfo=None) + moved, end.replace(tzinfo=None) + moved
    first = datetime(shown.year, shown.month, shown.day)  # noqa: DTZ001 - a wall-clock time
    days = (first + number * _DAY for number in range((until - first) // _DAY + 1))
    return tuple((day - shown) // _SECOND for day in days if _falls(of_day, day.date()))


@functools.lru_cache(maxsize=4096)
def _times(minute: str, hour: str) -> tuple[int, ...]:
    """The seconds of a day."""
    hours, minutes = cron.pattern(f"* {hour} * * *").hours, cron.pattern(f"{minute} * * * *").minutes
    return tuple(each * 3600 + one * 60 for each in sorted(hours) for one in sorted(minutes))


@functools.lru_cache(maxsize=4096)
def _falls(of_day: str, day: date) -> bool:
    """Whether the three fields for the day name this one."""
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - as above
    return next(cron.walls(f"0 0 {of_day}", midnight - _SECOND), None) == midnight


@functools.lru_cache(maxsize=2048)
def _offset(name: str, start: datetime, end: datetime) -> timedelta | None:
    """How far a zone's clock is from UTC; None where it changes at this time, or nearly so."""
    zone = ZoneInfo(name)
    if next(zones.changes(zone, start - _DAY, end + _DAY), None) is not None:
        return None
    return start.astimezone(zone).utcoffset()
