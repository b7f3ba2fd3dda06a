"""Schedules: what one means, before a task has it."""

from typing import Any

from app import clock, planning
from web import schemas
from web.blueprint import Blueprint

Fields = dict[str, Any]

blp = Blueprint("schedules", "When a schedule is due.")


@blp.serves("POST", "/schedules/preview")
@blp.takes(schemas.PreviewSchema)
@blp.gives(200, schemas.ForecastSchema)
def preview(fields: Fields) -> planning.Preview:
    """Tells what a schedule means and when it is next due."""
    return planning.preview(clock.now(), fields["schedule"], fields["count"])
