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

from app import errors, nodes, settings
from app.messages import CALLS_QUEUE, DEAD_LETTERS, DEFAULT_QUEUE
from app.models import Attempt, Node, Run, Target, Task
from app.states import NodeKind, RunState, TaskState

Row = TypeVar("Row", Task, Run)

OWN_QUEUES = (DEFAULT_QUEUE, CALLS_QUEUE, DEAD_LETTERS)


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


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A queue as PostgreSQL sees it."""

    name: str
    processes: int
    """Of the workers that consume it."""
    waiting: int
    """Runs that were fired and that no worker has claimed."""
    oldest: timedelta | None
    """For how long the first of them has waited."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Who is there, what waits, and what was set aside."""

    now: datetime
    beats: list[Node]
    workers: list[Node]
    queues: list[Queue]
    set_aside: list[Task]


MAX_SET_ASIDE = 100
"""Tasks that were set aside and are shown, the latest first."""


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


def cluster(session: Session, now: datetime) -> Cluster:
    """Beats and workers by their start, queues by name."""
    there = session.scalars(select(Node).order_by(Node.started_at, Node.name)).all()
    consumed = nodes.processes(session)
    open_states = (RunState.PENDING, RunState.QUEUED)
    waiting = select(Run.queue, func.count().label("waiting"), func.min(Run.fired_at).label("since"))
    waits = {row.queue: row for row in session.execute(waiting.where(Run.state.in_(open_states)).group_by(Run.queue))}
    queues = []
    for name in sorted({*OWN_QUEUES, *consumed, *waits}):
        row = waits.get(name)
        oldest = max(now - row.since, timedelta(0)) if row else None
        queues.append(
            Queue(name=name, processes=consumed.get(name, 0), waiting=row.waiting if row else 0, oldest=oldest)
        )
    aside = select(Task).where(Task.set_aside.is_not(None)).order_by(Task.updated_at.desc()).limit(MAX_SET_ASIDE)
    return Cluster(
        now=now,
        beats=[node for node in there if node.kind == NodeKind.BEAT],
        workers=[node for node in there if node.kind == NodeKind.WORKER],
        queues=queues,
        set_aside=list(session.scalars(aside)),
    )


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
