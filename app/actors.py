"""Who acts: the holder of a key, or an app that calls over Celery. Carried by the session of what they do.

A key may be confined to queues and labels. Its session then sees nothing else: the condition is added to every query,
so that none can forget it, and what lies outside is as if it were not there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, event, select
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria

from app import errors, models
from app.models import Incident, Run, Task
from app.states import Role, Via


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A person or an app, and what it may see."""

    id: str
    """The key's id; `admin` for the one in the settings; `celery` for an app that calls over Celery."""
    name: str
    """The key's name, or the process that sent the call."""
    role: Role
    via: Via
    key: str | None = None
    """The id of its row, where it is a key that has one."""
    address: str | None = None
    queues: tuple[str, ...] | None = None
    """The queues that it is confined to; None: to none."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The labels of all that it sees."""

    @property
    def is_confined(self) -> bool:
        return bool(self.labels) or self.queues is not None

    def covers(self, queue: str, labels: Mapping[str, str]) -> bool:
        """Whether a task with this queue and these labels is one that it sees."""
        return (self.queues is None or queue in self.queues) and self.labels.items() <= labels.items()


def of(session: Session) -> Actor | None:
    """Who acts in this session; None where it is Punctual itself."""
    actor: Actor | None = session.info.get("by")
    return actor


def require_cover(session: Session, task: Task) -> None:
    """Raises Forbidden where a task, as it is to be, lies outside of what the actor is confined to."""
    actor = of(session)
    if actor is None or actor.covers(task.queue, task.labels):
        return
    bounds = (
        [f"the labels {', '.join(f'{key}:{value}' for key, value in actor.labels.items())}"] if actor.labels else []
    )
    bounds += [f"the queues {', '.join(actor.queues)}"] if actor.queues is not None else []
    raise errors.Forbidden(f"This key is confined to {' and '.join(bounds)}; the task would lie outside.")


@event.listens_for(Session, "do_orm_execute")
def _confine(state: ORMExecuteState) -> None:
    """Adds to a query what its actor is confined to."""
    actor = of(state.session)
    if actor is None or not actor.is_confined or not state.is_select:
        return
    state.statement = state.statement.options(
        with_loader_criteria(Task, _tasks_of(actor), include_aliases=True),
        with_loader_criteria(Run, _those_of(actor, Run.task_id), include_aliases=True),
        with_loader_criteria(Incident, _those_of(actor, Incident.task_id), include_aliases=True),
    )


def _tasks_of(actor: Actor) -> ColumnElement[bool]:
    wanted = ~models.is_system(Task)  # notices name other people's tasks
    wanted = wanted & Task.labels.contains(dict(actor.labels)) if actor.labels else wanted
    return wanted & Task.queue.in_(actor.queues) if actor.queues is not None else wanted


def _those_of(actor: Actor, task_id: Any) -> ColumnElement[bool]:
    """A run or an incident belongs to whoever sees its task as it is now; a deleted one has kept its labels."""
    mine = select(_THEIRS.c.id).where(_THEIRS.c.id == task_id, ~models.is_system(_THEIRS.c))
    if actor.labels:
        mine = mine.where(_THEIRS.c.labels.contains(dict(actor.labels)))
    if actor.queues is not None:
        mine = mine.where(_THEIRS.c.queue.in_(actor.queues))
    return mine.exists()


_THEIRS: Any = Task.__table__.alias("theirs")
"""The tasks of runs: past the ORM, which would add the condition once more, and apart from those of the query."""
