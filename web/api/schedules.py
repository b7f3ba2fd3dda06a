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

blp = Blueprint("schedules", "When a schedule is due.")


@blp.post("/schedules/preview")
@blp.takes(schemas.PreviewSchema)
@blp.gives(200, schemas.ForecastSchema)
def preview(fields: Fields) -> Fields:
    """Tells what a schedule means and when it is next due."""
    now = clock.now()
    timetable = schedules.Timetable(task_id=NOBODY, schedule=parse(fields["schedule"], now))
    return {
        "description": schedules.describe(timetable.schedule),
        "slots": upcoming(timetable, now, fields["count"]),
        "warnings": schedules.warnings(timetable, now=now),
    }


def parse(schedule: Any, now: datetime) -> schedules.Schedule:
    """The schedule. Raises Invalid that names the fields as the body does."""
    try:
        return schedules.parse(schedule, now=now)
    except errors.Invalid as exc:
        raise errors.Invalid(errors={"schedule": exc.errors}) from exc


def upcoming(timetable: schedules.Timetable, now: datetime, count: int) -> list[datetime]:
    """The slots that a task registered now would have. Raises Invalid where there are none."""
    one_time = isinstance(timetable.schedule, schedules.Now | schedules.Once)
    slots = list(islice(timetable.upcoming(tasks.EPOCH if one_time else now), count))
    if not slots:
        raise errors.Invalid(errors={"schedule": ["This schedule has no slot from now on, so it would never fire."]})
    return slots
