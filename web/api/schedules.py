"""Schedules: what one means, before a task has it."""

from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from app import clock, schedules, tasks
from web import schemas
from web.blueprint import Blueprint

Fields = dict[str, Any]

NOBODY = UUID(int=0)
"""Stands in for the task that is not there yet."""

PASSED = "This time has passed: a task with it runs at once."

blp = Blueprint("schedules", "When a schedule is due.")


@blp.serves("POST", "/schedules/preview")
@blp.takes(schemas.PreviewSchema)
@blp.gives(200, schemas.ForecastSchema)
def preview(fields: Fields) -> Fields:
    """Tells what a schedule means and when it is next due."""
    now = clock.now()
    table = schedules.Timetable(task_id=NOBODY, schedule=tasks.parse(fields["schedule"], now))
    slots = list(islice(tasks.slots(table, now), fields["count"]))
    return {
        "description": schedules.describe(table.schedule),
        "slots": slots,
        "warnings": warnings(table, now, slots[0]),
    }


def warnings(table: schedules.Timetable, now: datetime, first: datetime) -> list[str]:
    """What may surprise. Of a time that has passed only that: it has no slot from now on to speak of."""
    if first > now:
        return schedules.warnings(table, now=now)
    return [] if isinstance(table.schedule, schedules.Now) else [PASSED]
