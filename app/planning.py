"""When tasks are due: what a schedule would mean, which slots come, which have passed without a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import dispatch, errors, retention, schedules
from app.fields import instant
from app.models import Run, Task

EPOCH = datetime(1900, 1, 1, tzinfo=UTC)
PASSED = "This time has passed: a task with it runs at once."
NEVER = "This schedule has no slot from now on, so it would never fire."
MAX_BACKFILL = 1_000
"""Runs that one backfill may make."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a schedule means, before a task has it."""

    description: str
    slots: list[datetime]
    warnings: list[str]


def preview(
    now: datetime,
    schedule: Any,
    count: int,
    *,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
) -> Preview:
    """What a schedule would mean for a task that is registered now. Raises Invalid."""
    read = parse(schedule, now)
    table = schedules.Timetable(task_id=schedules.NOBODY, schedule=read, starts_at=starts_at, ends_at=ends_at)
    coming = list(islice(slots(table, now), count))
    warnings = schedules.warnings(table, now=now)
    if coming[0] <= now:  # of a time that has passed only that is to be said: it has no slot from now on to speak of
        warnings = [] if isinstance(table.schedule, schedules.Now) else [PASSED]
    return Preview(description=schedules.describe(table.schedule), slots=coming, warnings=warnings)


def coming(task: Task, now: datetime, limit: int) -> list[datetime]:
    """The next slots that will be fired of a task as it stands."""
    if task.next_run_at is None:
        return []
    left = limit if task.max_runs is None else min(limit, task.max_runs - task.run_count)
    after = dispatch.timetable(task, now).upcoming(task.next_run_at)
    return [task.next_run_at, *islice(after, max(left - 1, 0))] if left > 0 else []


def missing(session: Session, now: datetime, task: Task, since: datetime, until: datetime) -> list[datetime]:
    """The past slots of a task, from `since` to `until`, that have no run. Raises Invalid where they are too many, or
    so old that their runs may be gone: a slot must not be run again for want of its record."""
    table = dispatch.timetable(task, now)
    past = list(islice(table.between(since - dispatch.INSTANT, min(until, now)), MAX_BACKFILL + 1))
    if len(past) > MAX_BACKFILL:
        raise errors.Invalid(errors={"until": [f"These are more than {MAX_BACKFILL:,} slots; take a shorter span."]})
    kept_from = retention.horizon(session, now, task)
    if kept_from is not None and since < kept_from:
        raise errors.Invalid(errors={"since": [f"Runs of this task are kept from {instant(kept_from)} on."]})
    there = select(Run.scheduled_for).where(Run.task_id == task.id, Run.scheduled_for.between(since, until))
    recorded = set(session.scalars(there))
    # what is due and not fired yet is not missing: it is on its way
    return [slot for slot in past if slot not in recorded and (task.next_run_at is None or slot < task.next_run_at)]


def parse(schedule: Any, now: datetime) -> schedules.Schedule:
    """The schedule that a client gave. Raises Invalid that names its fields under `schedule`."""
    try:
        return schedules.parse(schedule, now=whole(now))
    except errors.Invalid as exc:
        raise errors.Invalid(errors={"schedule": exc.errors}) from exc


def slots(table: schedules.Timetable, now: datetime) -> Iterator[datetime]:
    """The slots of a task that is registered now, one at least. Raises Invalid where it would have none."""
    one_time = isinstance(table.schedule, schedules.Now | schedules.Once)
    coming = table.upcoming(EPOCH if one_time else now)  # a one-time slot in the past is due at once
    first = next(coming, None)
    if first is None:
        raise errors.Invalid(errors={"schedule": [NEVER]})
    return chain([first], coming)


def whole(now: datetime) -> datetime:
    """Now in whole milliseconds: a slot is what answers show of it."""
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
