"""System tasks: Punctual's own, by which it watches itself and speaks to people. They are fired, executed and recorded
as any other; no client registers, changes or deletes one.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app import schemas, tasks
from app.messages import DEFAULT_QUEUE, OWN
from app.models import Task
from app.states import TaskState

_SCHEMA = schemas.TaskSchema()


def register(
    session: Session, now: datetime, name: str, queue: str = DEFAULT_QUEUE, *, has_slots: bool = True, **fields: Any
) -> UUID:
    """Registers a system task, unless there is one of this name; returns its id. `fields` are as a client gives them,
    who may give neither such a name nor our own queue. One without slots has the runs alone that are made by hand.

    No worker needs to have offered its target yet. Of two that register it at once the second waits for the first. A
    beat does so, which may not ring the bell: its bucket's holder sees the task at its next tick.
    """
    assert name.startswith(OWN), name
    task = tasks.new(session, now, schemas.load(_SCHEMA, fields) | {"name": name, "queue": queue})
    if not has_slots:
        task.state, task.next_run_at = TaskState.COMPLETED, None
    made: UUID | None = session.scalar(insert(Task).values(vars(task)).on_conflict_do_nothing().returning(Task.id))
    there = select(Task.id).where(Task.name == name, Task.state != TaskState.DELETED)
    return made or session.scalars(there).one()
