"""The read side: what lists, pages and probes ask. Changes nothing."""

import base64
import binascii
import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from app import errors, settings
from app.models import Attempt, Run, Target, Task
from app.states import RunState, TaskState

Row = TypeVar("Row", Task, Run)


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Row]):
    """Some rows, and the cursor that gives those after them."""

    items: list[Row]
    next: str | None


@dataclass(frozen=True, kw_only=True)
class RunDetail:
    """A run with its past attempts, oldest first; the current one stands in the run."""

    run: Run
    attempts: list[Attempt]


@dataclass(frozen=True, kw_only=True)
class TargetDetail:
    """A target, and whether a live worker offers it right now."""

    target: Target
    available: bool


@dataclass(frozen=True, kw_only=True)
class TaskDetail:
    """A task, and whether a live worker offers its target right now; None where that is another app's, and unknown."""

    task: Task
    target_available: bool | None


OFFERED_FOR = timedelta(seconds=45)
"""How long an offer counts. Workers repeat it every 15 s: the second one that is missed is not yet the end."""


def task(session: Session, task_id: UUID) -> Task:
    """Raises NotFound; a deleted task is not found."""
    found = session.scalars(select(Task).where(Task.id == task_id, Task.state != TaskState.DELETED)).one_or_none()
    if found is None:
        raise errors.NotFound("There is no such task.")
    return found


def task_id(session: Session, key: str) -> UUID:
    """The id of the task that has this id or, else, this name. Raises NotFound."""
    meant: ColumnElement[bool] = Task.name == key
    with contextlib.suppress(ValueError):
        meant |= Task.id == UUID(key)
    query = select(Task.id).where(Task.state != TaskState.DELETED, meant).order_by(Task.name == key).limit(1)
    named = session.scalars(query).one_or_none()
    if named is None:
        raise errors.NotFound("There is no such task.")
    return named


def task_detail(session: Session, task_id: UUID) -> TaskDetail:
    """Raises NotFound; a deleted task is not found."""
    found = task(session, task_id)
    if settings.load().external_queue(found.target):
        return TaskDetail(task=found, target_available=None)
    offer = session.scalars(select(_AVAILABLE).where(Target.name == found.target)).one_or_none()
    return TaskDetail(task=found, target_available=bool(offer))


def tasks(
    session: Session,
    *,
    q: str | None = None,
    state: TaskState | None = None,
    target: str | None = None,
    label: tuple[str, str] | None = None,
    limit: int,
    after: str | None,
) -> Page[Task]:
    """Tasks, newest first. Deleted ones only where that state is asked for."""
    query = select(Task).where(Task.state == state if state else Task.state != TaskState.DELETED)
    if q:
        query = query.where(Task.name.icontains(q, autoescape=True) | Task.description.icontains(q, autoescape=True))
    if target:
        query = query.where(Task.target == target)
    if label:
        query = query.where(Task.labels.contains(dict([label])))
    return _page(session, query, Task.created_at, Task.id, limit, after)


def run(session: Session, run_id: UUID) -> RunDetail:
    """Raises NotFound."""
    found = session.scalars(select(Run).where(Run.id == run_id)).one_or_none()
    if found is None:
        raise errors.NotFound("There is no such run.")
    past = select(Attempt).where(Attempt.run_id == run_id, Attempt.scheduled_for == found.scheduled_for)
    return RunDetail(run=found, attempts=list(session.scalars(past.order_by(Attempt.attempt))))


def runs(
    session: Session,
    *,
    state: RunState | None = None,
    task_id: UUID | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int,
    after: str | None,
) -> Page[Run]:
    """Runs, newest slot first; `since` and `until` bound the slot, both included."""
    query = select(Run)
    if state:
        query = query.where(Run.state == state)
    if task_id:
        query = query.where(Run.task_id == task_id)
    if since:
        query = query.where(Run.scheduled_for >= since)
    if until:
        # answers show whole milliseconds: the slot that one shows is within it
        query = query.where(Run.scheduled_for < until + timedelta(milliseconds=1))
    return _page(session, query, Run.scheduled_for, Run.id, limit, after)


def task_runs(session: Session, task_id: UUID, **filters: Any) -> Page[Run]:
    """The runs of a task, which a deleted one has kept. Raises NotFound where there never was such a task."""
    if session.get(Task, task_id) is None:
        raise errors.NotFound("There is no such task.")
    return runs(session, task_id=task_id, **filters)


def targets(session: Session) -> list[TargetDetail]:
    """What the workers have offered, by name."""
    rows = session.execute(select(Target, _AVAILABLE).order_by(Target.name))
    return [TargetDetail(target=target, available=available) for target, available in rows]


_AVAILABLE = Target.last_seen_at > func.now() - OFFERED_FOR


def _page(
    session: Session,
    query: Select[Row],
    time: InstrumentedAttribute[datetime],
    key: InstrumentedAttribute[UUID],
    limit: int,
    after: str | None,
) -> Page[Row]:
    """A page by keyset: newest first, strictly after the cursor's row, so that new rows shift nothing."""
    if after:
        query = query.where(tuple_(time, key) < _decode(after))
    found = session.scalars(query.order_by(time.desc(), key.desc()).limit(limit + 1)).all()
    items = list(found[:limit])
    if len(found) <= limit:
        return Page(items=items, next=None)
    return Page(items=items, next=_encode(getattr(items[-1], time.key), items[-1].id))


def _encode(time: datetime, key: UUID) -> str:
    return base64.urlsafe_b64encode(json.dumps([time.isoformat(), str(key)]).encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[Any, ...]:
    try:
        time, key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return datetime.fromisoformat(time).astimezone(UTC), UUID(key)
    except (ValueError, TypeError, AttributeError, OverflowError, binascii.Error) as exc:
        raise errors.Invalid(errors={"after": ["Not a cursor that a list gave you as `next`."]}) from exc
