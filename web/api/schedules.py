"""Schedules: what one means, before a task has it."""

from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from app import clock, errors, schedules, tasks
from web import schemas
from web.blueprint import Blueprint

Fields = dict[str, Any]

NOBODY = UUID(int=0)
"""Stands in for the task that is not there yet."""

NEVER = "This schedule has no slot from now on, so it would never fire."
PASSED = "This time has passed: a task with it runs at once."

blp = Blueprint("schedules", "When a schedule is due.")


@blp.serves("POST", "/schedules/preview")
@blp.takes(schemas.PreviewSchema)
@blp.gives(200, schemas.ForecastSchema)
def preview(fields: Fields) -> Fields:
    """Tells what a schedule means and when it is next due."""
    now = clock.now()
    schedule = parse(fields["schedule"], now)
    slots = upcoming(schedule, now, fields["count"])
    return {"description": schedules.describe(schedule), "slots": slots, "warnings": warnings(schedule, now, slots[0])}


def parse(schedule: Any, now: datetime) -> schedules.Schedule:
    """The schedule. Raises Invalid that names the fields as the body does."""
    try:
        return schedules.parse(schedule, now=now)
    except errors.Invalid as exc:
        raise errors.Invalid(errors={"schedule": exc.errors}) from exc


def upcoming(schedule: schedules.Schedule, now: datetime, count: int) -> list[datetime]:
    """The slots that a task registered now would have. Raises Invalid where there are none."""
    one_time = isinstance(schedule, schedules.Now | schedules.Once)
    since = tasks.EPOCH if one_time else now  # a one-time slot in the past is due at once
    slots = list(islice(_timetable(schedule).upcoming(since), count))
    if not slots:
        raise errors.Invalid(errors={"schedule": [NEVER]})
    return slots


def warnings(schedule: schedules.Schedule, now: datetime, first: datetime) -> list[str]:
    """What may surprise. Of a time that has passed only that: it has no slot from now on to speak of."""
    if first > now:
        return schedules.warnings(_timetable(schedule), now=now)
    return [] if isinstance(schedule, schedules.Now) else [PASSED]


def _timetable(schedule: schedules.Schedule) -> schedules.Timetable:
    return schedules.Timetable(task_id=NOBODY, schedule=schedule)
