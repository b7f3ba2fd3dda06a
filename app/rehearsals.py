"""What a new or changed task would mean: it is made or changed, with every check of it, looked at, and undone."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from app import db, forecast, queries, schemas, tasks
from app.forecast.effects import Effect, effect
from app.forecast.outlook import Outlook
from app.forecast.tasks import Tasks
from app.models import Task

Fields = Mapping[str, Any]

SCHEMA = schemas.TaskSchema()


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What came of it."""

    task: dict[str, Any]
    """As it would have been answered."""
    taken: Tasks | None
    given: Tasks

    def effect(self, before: Outlook) -> Effect:
        """What it does to an outlook. Takes a moment: it needs no transaction."""
        return effect(before, self.taken, self.given)


def create(session: Session, now: datetime, fields: Fields, start: datetime) -> Rehearsal:
    """Registers a task, for an outlook that begins at `start`. Raises what `tasks.create` does."""
    with db.undone(session):
        return _seen(session, start, tasks.create(session, now, fields), None)


def change(
    session: Session, now: datetime, task_id: UUID, fields: Fields, start: datetime, *, version: int | None = None
) -> Rehearsal:
    """Changes a task. Raises what `tasks.change` does."""
    before = forecast.one(session, start, queries.task(session, task_id))
    with db.undone(session):
        return _seen(session, start, tasks.change(session, now, task_id, fields, version=version), before)


def _seen(session: Session, start: datetime, task: Task, taken: Tasks | None) -> Rehearsal:
    return Rehearsal(task=dict(SCHEMA.dump(task)), taken=taken, given=forecast.one(session, start, task))
