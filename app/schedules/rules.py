"""RRULEs: the days that dateutil yields, one year at a time, and the times of each such day.

dateutil walks from DTSTART and, where nothing matches, on to the year 9999. So it is asked for one month or
year alone; the steps of INTERVAL are counted here, and a rule that began long ago costs no more than a new one.
"""

import bisect
import functools
import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from dateutil import rrule  # type: ignore[import-untyped, unused-ignore]

from app import errors
from app.schedules import kinds, parts, zones

MAX_TIMES = 10_000
"""How many times of a day a rule may name."""

_NEVER = "This rule never yields a time."
_TICK = timedelta(microseconds=1)
_WEEK = 7
_HOURS = 24
_BEYOND = 9_999  # an INTERVAL in years that ends dateutil's walk after its first step


def spaced(anchor: datetime, every: timedelta, since: datetime) -> Iterator[datetime]:
    """anchor + k * every for all k >= 0, strictly after `since`: whole microseconds, so nothing drifts."""
    first = max(0, (since - anchor) // every + 1)
    slots = (anchor + k * every for k in itertools.count(first))
    return itertools.takewhile(lambda slot: slot < zones.HORIZON, slots)


@functools.lru_cache(maxsize=1024)
def compiled(schedule: kinds.Rrule) -> "Rule":
    """The rule, ready to be asked. Raises Invalid with one sentence."""
    rule = parts.read(schedule.rule)
    zone = ZoneInfo(schedule.timezone)
    found = Rule(parts=rule, starts=schedule.starts, zone=zone, times=_times(rule, zones.wall(schedule.starts, zone)))
    if next(found.slots(schedule.starts - _TICK), None) is None:
        raise errors.Invalid(_NEVER)
    return found


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule at work. `times` are the seconds of a day at which it is due on each of its days."""

    parts: parts.Parts
    starts: datetime
    zone: ZoneInfo
    times: Sequence[int]

    @functools.cached_property
    def begins(self) -> datetime:
        """DTSTART as the wall clock shows it."""
        return zones.wall(self.starts, self.zone)

    @functools.cached_property
    def every(self) -> timedelta | None:
        """The gap between all its slots, where it is always the same: hours or less, and nothing else named."""
        if self.parts.fine and not self.parts.named:
            return self.parts.interval * self.parts.unit
        return None

    @functools.cached_property
    def hourly(self) -> bool:
        """Whether it runs in every hour of its days, and so follows real time."""
        return len({second // 3600 for second in self.times}) == _HOURS

    @property
    def month_days(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The days of a month that it names or has from DTSTART, and the months that they are named in."""
        month, monthday, _ = _day_parts(self.parts, self.begins.date())
        return monthday, month or tuple(range(1, 13))

    def slots(self, since: datetime) -> Iterator[datetime]:
        """Its slots strictly after `since`; COUNT counts slots, not the times that daylight saving merged."""
        if self.parts.count is None:
            return self._until(since)
        return iter(self._counted[bisect.bisect_right(self._counted, since) :])

    @functools.cached_property
    def _counted(self) -> tuple[datetime, ...]:
        return tuple(itertools.islice(self._until(self.starts - _TICK), self.parts.count))

    def _until(self, since: datetime) -> Iterator[datetime]:
        slots, until = self._endless(max(since, self.starts - _TICK)), self._last
        return slots if until is None else itertools.takewhile(lambda slot: slot <= until, slots)

    def _endless(self, since: datetime) -> Iterator[datetime]:
        if self.every is not None:
            return spaced(self.starts, self.every, since)
        if self.hourly:
            return zones.real(self.walls, self.zone, since)
        # DTSTART may lie in the second pass of an hour, where the moment before it shows a later time.
        after = self.begins - _TICK if since < self.starts else zones.wall(since, self.zone)
        return zones.fixed(self.walls(after), self.zone, since, floor=self.starts)

    @functools.cached_property
    def _last(self) -> datetime | None:
        until = self.parts.until
        if until is None or until.tzinfo is not None:
            return until
        return zones.instant(until, self.zone)

    def walls(self, after: datetime) -> Iterator[datetime]:
        """The wall-clock times that match, strictly after the given one."""
        for day in self._days(max(after.date(), self.begins.date())):
            midnight = datetime.combine(day, time())
            first = bisect.bisect_right(self.times, (after - midnight) / zones.SECOND)
            for second in itertools.islice(self.times, first, None):
                yield midnight + timedelta(seconds=second)

    def _days(self, since: date) -> Iterator[date]:
        last = since.year
        for year in itertools.count(since.year):
            if year > last + zones.SEARCH_YEARS or year >= zones.HORIZON.year:
                return
            days = _days(self.parts, self.begins.date(), year)
            last = year if days else last
            yield from days[bisect.bisect_left(days, since) :]


@functools.lru_cache(maxsize=2048)
def _days(rule: parts.Parts, start: date, year: int) -> tuple[date, ...]:
    """The days of a year on which the rule is due; those before DTSTART are not yet left out."""
    if rule.freq == "MONTHLY":
        months = (month for month in range(1, 13) if _steps(rule, (year - start.year) * 12 + month - start.month))
        return tuple(itertools.chain.from_iterable(_matching(rule, start, date(year, month, 1)) for month in months))
    if rule.freq == "YEARLY" and not _steps(rule, year - start.year):
        return ()
    days = _matching(rule, start, date(year, 1, 1))
    if rule.freq == "WEEKLY":
        first = _monday(start, rule.week_start)
        return tuple(d for d in days if _steps(rule, (_monday(d, rule.week_start) - first).days // _WEEK))
    if rule.freq == "DAILY":
        return tuple(d for d in days if _steps(rule, (d - start).days))
    return days


def _steps(rule: parts.Parts, distance: int) -> bool:
    return distance % rule.interval == 0


def _monday(day: date, week_start: int) -> date:
    """The first day of its week, whichever weekday that is."""
    return day - timedelta(days=(day.weekday() - week_start) % _WEEK)


def _matching(rule: parts.Parts, start: date, first: date) -> tuple[date, ...]:
    """The days of one month (FREQ=MONTHLY) or year that the BY... parts let through."""
    monthly = rule.freq == "MONTHLY"
    month, monthday, weekdays = _day_parts(rule, start)
    found = rrule.rrule(
        rrule.MONTHLY if monthly else rrule.YEARLY,
        dtstart=datetime.combine(first, time()),
        interval=_BEYOND * 12 if monthly else _BEYOND,
        wkst=rule.week_start,
        bysetpos=rule.setpos or None,
        bymonth=month or None,
        bymonthday=monthday or None,
        byyearday=rule.yearday or None,
        byweekno=rule.weekno or None,
        byweekday=[rrule.weekday(day, nth or None) for day, nth in weekdays] or None,
    )
    return tuple(each.date() for each in found)


def _day_parts(rule: parts.Parts, start: date) -> tuple[tuple[int, ...], tuple[int, ...], parts.Days]:
    """BYMONTH, BYMONTHDAY and BYDAY, taken from DTSTART where the rule leaves them out (RFC 5545, 3.3.10)."""
    if rule.monthday or rule.day or rule.yearday:
        return rule.month, rule.monthday, rule.day
    if rule.freq == "WEEKLY" or rule.weekno:
        return rule.month, (), ((start.weekday(), 0),)
    if rule.freq == "MONTHLY":
        return rule.month, (start.day,), ()
    if rule.freq == "YEARLY":
        return rule.month or (start.month,), (start.day,), ()
    return rule.month, (), tuple((day, 0) for day in range(_WEEK))


def _times(rule: parts.Parts, begins: datetime) -> Sequence[int]:
    """The seconds of each day at which the rule is due. Steps that do not divide a day are refused before."""
    hours = rule.hour or (range(24) if rule.fine else (begins.hour,))
    minutes = rule.minute or (range(60) if rule.freq in ("MINUTELY", "SECONDLY") else (begins.minute,))
    seconds = rule.second or (range(60) if rule.freq == "SECONDLY" else (begins.second,))
    if rule.fine and not rule.named:
        return ()
    times = (h * 3600 + m * 60 + s for h, m, s in itertools.product(hours, minutes, seconds))
    if rule.fine:
        unit = rule.unit // zones.SECOND
        first = begins.hour * 3600 + begins.minute * 60 + begins.second
        times = (t for t in times if _steps(rule, t // unit - first // unit))
    found = array("I", sorted(times))  # compact: many rules are kept, each of up to MAX_TIMES
    if not found:
        raise errors.Invalid(_NEVER)
    if len(found) > MAX_TIMES:
        raise errors.Invalid(f"This rule names more than {MAX_TIMES:,} times of a day: use an interval.")
    return found
