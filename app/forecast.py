"""What is to come: how many runs fall into each hour of the next days, and by which schedules.

Tasks of one schedule are counted together, so that 100,000 tasks cost as much as they have schedules.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, cast, func, select
from sqlalchemy.orm import Session

from app import errors, schedules
from app.models import Task
from app.states import TaskState

HOUR = timedelta(hours=1)
PATIENCE = 1.0
"""Seconds for computing slots: what does not fit is said to be missing."""

NOBODY = UUID(int=0)
ONE_TIME = ("now", "once")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tasks that are due at the same hours."""

    words: str
    tasks: int
    example: str
    """The name of one of them."""
    hours: dict[int, float]
    """Runs of one of them, by the number of the hour from the first."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The hours ahead."""

    start: datetime
    count: int
    groups: list[Group]
    missing: int
    """Tasks that are not counted, as there was no time for their slots."""

    def loads(self) -> list[int]:
        """Runs per hour."""
        total: Counter[int] = Counter()
        for group in self.groups:
            for hour, number in group.hours.items():
                total[hour] += number * group.tasks  # type: ignore[assignment]
        return [round(total[hour]) for hour in range(self.count)]

    def at(self, hour: int) -> list[Group]:
        """The groups that are due in an hour, the heaviest first."""
        due = [group for group in self.groups if group.hours.get(hour)]
        return sorted(due, key=lambda group: group.tasks * group.hours[hour], reverse=True)


def forecast(session: Session, now: datetime, days: int, wanted: ColumnElement[bool]) -> Forecast:
    """The load of the hours ahead, of the active tasks that are wanted."""
    start = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    end = start + timedelta(days=days)
    among = (Task.state == TaskState.ACTIVE) & (Task.next_run_at < end) & wanted
    groups = [*_once(session, among, start), *_intervals(session, among, start, end)]
    missing = 0
    give_up = time.monotonic() + PATIENCE
    for row in session.execute(_by_schedule(among)):
        if time.monotonic() > give_up:
            missing += row.tasks
            continue
        words, hours = _slots(json.dumps(row.schedule), start, end)
        groups.append(Group(words=words, tasks=row.tasks, example=row.example, hours=hours))
    return Forecast(start=start, count=days * 24, groups=groups, missing=missing)


def _once(session: Session, among: ColumnElement[bool], start: datetime) -> Iterator[Group]:
    hour = func.date_trunc("hour", Task.next_run_at).label("hour")
    query = select(hour, func.count().label("tasks"), func.min(Task.name).label("example"))
    for row in session.execute(query.where(among, _kind().in_(ONE_TIME)).group_by(hour)):
        yield Group(words="once", tasks=row.tasks, example=row.example, hours={_number(row.hour, start): 1})


def _intervals(session: Session, among: ColumnElement[bool], start: datetime, end: datetime) -> Iterator[Group]:
    """Those of one length that are next due in one hour go together; where they fall within it is not asked."""
    hour = func.date_trunc("hour", Task.next_run_at).label("hour")
    every = Task.schedule["every"].as_float().label("every")
    query = select(hour, every, func.count().label("tasks"), func.min(Task.name).label("example"))
    for row in session.execute(query.where(among, _kind() == "interval").group_by(hour, every)):
        span = timedelta(seconds=row.every)
        words = schedules.describe(schedules.Interval(every=span, anchor=start))
        first = _number(row.hour, start)
        count = round((end - start) / HOUR)
        if span <= HOUR:
            hours: dict[int, float] = dict.fromkeys(range(first, count), HOUR / span)
        else:
            hours = dict.fromkeys((_number(slot, start) for slot in _spaced(row.hour, span, end)), 1)
        yield Group(words=words, tasks=row.tasks, example=row.example, hours=hours)


def _spaced(first: datetime, span: timedelta, end: datetime) -> Iterator[datetime]:
    slot = first
    while slot < end:
        yield slot
        slot += span


def _by_schedule(among: ColumnElement[bool]) -> Select[Any, int, str]:
    """Cron and RRULE: bounds and jitter of single tasks are left out."""
    query = select(Task.schedule, func.count().label("tasks"), func.min(Task.name).label("example"))
    others = among & _kind().not_in((*ONE_TIME, "interval"))
    return query.where(others).group_by(Task.schedule).order_by(func.count().desc(), cast(Task.schedule, Text))


@lru_cache(maxsize=4096)
def _slots(schedule: str, start: datetime, end: datetime) -> tuple[str, dict[int, float]]:
    try:
        read = schedules.parse(json.loads(schedule), now=start)
        table = schedules.Timetable(task_id=NOBODY, schedule=read)
        numbers = Counter(_number(slot, start) for slot in table.between(start - timedelta(microseconds=1), end))
    except (errors.Invalid, ValueError, OverflowError):
        return "a schedule that cannot be read", {}
    return schedules.describe(read), {hour: float(count) for hour, count in numbers.items()}


def _number(slot: datetime, start: datetime) -> int:
    return max(0, (slot - start) // HOUR)


def _kind() -> ColumnElement[str]:
    kind: ColumnElement[str] = Task.schedule["type"].as_string()
    return kind
