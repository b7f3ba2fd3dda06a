"""What is to come: how many runs fall into each hour of the next days, and by which schedules.

Tasks of one schedule are counted together, so that 100,000 tasks cost as much as they have schedules.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, case, collate, func, select
from sqlalchemy.orm import Session

from app import errors, schedules
from app.models import Task
from app.states import TaskState

HOUR = timedelta(hours=1)
PATIENCE = 1.0
"""Seconds for computing slots: what does not fit is said to be missing."""

BY_HOUR = ("now", "once", "interval")


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

    @property
    def end(self) -> datetime:
        return self.start + self.count * HOUR

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


def groups(session: Session, now: datetime, days: int, wanted: ColumnElement[bool]) -> Sequence[Any]:
    """The active tasks that are wanted and due within these days, those together that are due at the same hours."""
    among = (Task.state == TaskState.ACTIVE) & (Task.next_run_at < _start(now) + timedelta(days=days)) & wanted
    return session.execute(_groups(among)).all()


def forecast(rows: Sequence[Any], now: datetime, days: int) -> Forecast:
    """The load of the hours ahead."""
    start = _start(now)
    end = start + timedelta(days=days)
    found = []
    missing = 0
    give_up = time.monotonic() + PATIENCE
    for row in rows:
        if time.monotonic() > give_up:
            missing += row.tasks
            continue
        words, hours = _due(row, start, end)
        found.append(Group(words=words, tasks=row.tasks, example=row.example, hours=hours))
    return Forecast(start=start, count=days * 24, groups=found, missing=missing)


def _start(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _groups(among: ColumnElement[bool]) -> Select[Any]:
    """Tasks that are due at the same hours, the largest group first. One look at the table.

    Those that are due once, or at one interval, go by the hour of their next slot; where in it they fall is not asked.
    The others go by their schedule; bounds and jitter of single tasks are left out.
    """
    kind: ColumnElement[str] = Task.schedule["type"].as_string()
    hour = case((kind.in_(BY_HOUR), func.date_trunc("hour", Task.next_run_at))).label("hour")
    every = case((kind == "interval", Task.schedule["every"].as_float())).label("every")
    schedule = case((kind.not_in(BY_HOUR), Task.schedule)).label("schedule")
    # any of them will do: by bytes they are compared in half the time
    example = func.min(collate(Task.name, "C")).label("example")
    query = select(hour, every, schedule, func.count().label("tasks"), example)
    return query.where(among).group_by(hour, every, schedule).order_by(func.count().desc())


def _due(row: Any, start: datetime, end: datetime) -> tuple[str, dict[int, float]]:
    """A group's schedule in words, and the runs of one of its tasks by the number of their hour."""
    if row.schedule is not None:
        return _slots(json.dumps(row.schedule), start, end)
    first = _number(row.hour, start)
    if row.every is None:
        return "once", {first: 1}
    span = timedelta(seconds=row.every)
    words = schedules.describe(schedules.Interval(every=span, anchor=start))
    if span <= HOUR:
        return words, dict.fromkeys(range(first, _number(end, start)), HOUR / span)
    return words, dict.fromkeys((_number(slot, start) for slot in _spaced(row.hour, span, end)), 1)


def _spaced(first: datetime, span: timedelta, end: datetime) -> Iterator[datetime]:
    slot = first
    while slot < end:
        yield slot
        slot += span


@lru_cache(maxsize=4096)
def _slots(schedule: str, start: datetime, end: datetime) -> tuple[str, dict[int, float]]:
    try:
        read = schedules.parse(json.loads(schedule), now=start)
        table = schedules.Timetable(task_id=schedules.NOBODY, schedule=read)
        numbers = Counter(_number(slot, start) for slot in table.between(start - timedelta(microseconds=1), end))
    except (errors.Invalid, ValueError, OverflowError):
        return "a schedule that cannot be read", {}
    return schedules.describe(read), {hour: float(count) for hour, count in numbers.items()}


def _number(slot: datetime, start: datetime) -> int:
    return max(0, (slot - start) // HOUR)
