"""The read side: what lists, pages and probes ask. Changes nothing."""

import base64
import binascii
import contextlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar
from uuid import UUID

import marshmallow as ma
from sqlalchemy import ColumnElement, Select, Uuid, func, select, true, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from app import db, errors, fields, keys, models, nodes, settings
from app.messages import CALLS_QUEUE, DEAD_LETTERS, DEFAULT_QUEUE, OWN
from app.models import ApiKey, Attempt, AuditEntry, Incident, Node, Run, Target, Task
from app.states import NodeKind, RunState, TaskState

Row = TypeVar("Row", Task, Run, ApiKey, AuditEntry, Incident)

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
    """A task, and whether a live worker offers its target right now; None where that is another app's, or
    Punctual's own, of which nobody has told."""

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


MAX_NUMBER = 2**63 - 1
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
    if settings.load().external_queue(found.target) or found.target.startswith(OWN):
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
    order: str = "newest",
    limit: int,
    after: str | None,
) -> Page[Task]:
    """Tasks in one of ORDERS. Deleted ones only where that state is asked for."""
    query = select(Task).where(Task.state == state if state else Task.state != TaskState.DELETED)
    query = query.where(like(q=q, target=target, label=label))
    if order == "next":  # which only those have that are not at an end
        query = query.where(Task.next_run_at.is_not(None))
        query = query if state else query.where(Task.state == TaskState.ACTIVE)
    return _page(session, query, ORDERS[order], Task.id, limit, after)


def like(
    *, q: str | None = None, target: str | None = None, label: tuple[str, str] | None = None
) -> ColumnElement[bool]:
    """The condition on tasks that these filters mean. System tasks are meant where their target is asked for."""
    wanted: ColumnElement[bool] = true() if target else ~models.is_system(Task)
    if q:
        wanted &= Task.name.icontains(q, autoescape=True) | Task.description.icontains(q, autoescape=True)
    if target:
        wanted &= Task.target == target
    if label:
        wanted &= Task.labels.contains(dict([label]))
    return wanted


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
    target: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int,
    after: str | None,
) -> Page[Run]:
    """Runs, newest slot first; `since` and `until` bound the slot, both included. System tasks have some where they, or
    their target, are asked for."""
    query = select(Run)
    if state:
        query = query.where(Run.state == state)
    if task_id:
        query = query.where(Run.task_id == task_id)
    if target:
        query = query.where(Run.target == target)
    if not (task_id or target):
        query = query.where(~models.is_system(Run))
    if since:
        query = query.where(Run.scheduled_for >= since)
    if until:
        # answers show whole milliseconds: the slot that one shows is within it
        query = query.where(Run.scheduled_for < until + timedelta(milliseconds=1))
    return _page(session, query, NEWEST_SLOT, Run.id, limit, after)


def task_runs(session: Session, task_id: UUID, **filters: Any) -> Page[Run]:
    """The runs of a task, which a deleted one has kept. Raises NotFound where there never was such a task."""
    find_task(session, task_id)
    return runs(session, task_id=task_id, **filters)


def incidents(
    session: Session, *, is_open: bool | None = None, task_id: UUID | None = None, limit: int, after: str | None
) -> Page[Incident]:
    """Incidents, newest first: the open ones, those that are over, or all."""
    query = select(Incident)
    if is_open is not None:
        query = query.where(Incident.closed_at.is_(None) if is_open else Incident.closed_at.is_not(None))
    if task_id:
        query = query.where(Incident.task_id == task_id)
    return _page(session, query, NEWEST_INCIDENT, Incident.id, limit, after)


def api_keys(session: Session, *, limit: int, after: str | None) -> Page[ApiKey]:
    """Keys, newest first; those that were revoked too."""
    return _page(session, select(ApiKey), NEWEST_KEY, ApiKey.id, limit, after)


def audit(
    session: Session,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int,
    after: str | None,
    **equal: str,
) -> Page[AuditEntry]:
    """What people and apps changed, newest first; those entries whose columns are `equal` to what is given."""
    query = select(AuditEntry).filter_by(**{name: value for name, value in equal.items() if value})
    if since:
        query = query.where(AuditEntry.at >= since)
    if until:
        query = query.where(AuditEntry.at < until + timedelta(milliseconds=1))  # as with runs
    return _page(session, query, NEWEST_ENTRY, AuditEntry.id, limit, after)


def targets(session: Session) -> list[TargetDetail]:
    """What the workers have offered, by name."""
    rows = session.execute(select(Target, _AVAILABLE).order_by(Target.name))
    return [TargetDetail(target=target, available=available) for target, available in rows]


_AVAILABLE = Target.last_seen_at > func.now() - OFFERED_FOR


def cluster(session: Session, now: datetime) -> Cluster:
    """Beats and workers by their start, queues by name."""
    there = session.scalars(select(Node).order_by(Node.started_at, Node.name)).all()
    consumed = nodes.processes(session)
    waiting = select(Run.queue, func.count().label("waiting"), func.min(Run.fired_at).label("since"))
    unclaimed = waiting.where(keys.in_state(RunState.PENDING, RunState.QUEUED)).group_by(Run.queue)
    waits = {row.queue: row for row in session.execute(unclaimed)}
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


def find_task(session: Session, task_id: UUID) -> Task:
    """Raises NotFound; a deleted task is found, for its runs' sake."""
    found = session.get(Task, task_id)
    if found is None:
        raise errors.NotFound("There is no such task.")
    return found


def has_tasks(session: Session) -> bool:
    """Whether a client ever registered a task."""
    return bool(session.scalar(select(select(Task.id).where(~models.is_system(Task)).exists())))


def outcomes(session: Session, task_ids: Collection[UUID], count: int) -> dict[UUID, list[str]]:
    """The states of the last runs of each task, oldest first. One statement for all of them."""
    if not task_ids:
        return {}
    wanted = db.rows("wanted", id=Uuid())
    last = (
        select(Run.task_id, Run.state, Run.scheduled_for)
        .where(Run.task_id == wanted.c.id)
        .order_by(Run.scheduled_for.desc())
        .limit(count)
        .lateral("last")
    )
    query = select(last.c.task_id, last.c.state).select_from(wanted).join(last, true())
    found: dict[UUID, list[str]] = {task_id: [] for task_id in task_ids}
    for row in db.execute(session, query.order_by(last.c.scheduled_for), db.arrays("wanted", id=task_ids)):
        found[row.task_id].append(row.state)
    return found


@dataclass(frozen=True, kw_only=True)
class Order:
    """By what a list is sorted, and then by id, so that no two rows are equal."""

    column: InstrumentedAttribute[Any]
    ascending: bool
    read: Callable[[str], Any]
    """Makes a value of the column from its text in a cursor."""


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


ORDERS = {
    "newest": Order(column=Task.created_at, ascending=False, read=_instant),
    "next": Order(column=Task.next_run_at, ascending=True, read=_instant),
    "name": Order(column=Task.name, ascending=True, read=str),
}
NEWEST_SLOT = Order(column=Run.scheduled_for, ascending=False, read=_instant)
NEWEST_INCIDENT = Order(column=Incident.opened_at, ascending=False, read=_instant)
NEWEST_KEY = Order(column=ApiKey.created_at, ascending=False, read=_instant)
NEWEST_ENTRY = Order(column=AuditEntry.id, ascending=False, read=lambda text: _bounded(int(text)))


def _page(
    session: Session,
    query: Select[Row],
    order: Order,
    key: InstrumentedAttribute[Any],
    limit: int,
    after: str | None,
) -> Page[Row]:
    """A page by keyset: strictly after the cursor's row, so that new rows shift nothing."""
    if after:
        here, there = tuple_(order.column, key), _decode(after, order, key)
        query = query.where(here > there if order.ascending else here < there)
    by = (order.column, key) if order.ascending else (order.column.desc(), key.desc())
    found = session.scalars(query.order_by(*by).limit(limit + 1)).all()
    items = list(found[:limit])
    if len(found) <= limit:
        return Page(items=items, next=None)
    return Page(items=items, next=_encode(getattr(items[-1], order.column.key), items[-1].id))


def _bounded(value: Any) -> Any:
    """Raises ValueError where a number is larger than PostgreSQL's."""
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError(value)
    return value


def _encode(value: Any, key: Any) -> str:
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return base64.urlsafe_b64encode(json.dumps([text, str(key)], ensure_ascii=False).encode()).decode().rstrip("=")


def _decode(cursor: str, order: Order, key: InstrumentedAttribute[Any]) -> tuple[Any, ...]:
    try:
        value, last = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        fields.check_text(value)
        fields.check_text(last)
        return order.read(value), _bounded(key.type.python_type(last))
    except (ValueError, TypeError, AttributeError, OverflowError, binascii.Error, ma.ValidationError) as exc:
        raise errors.Invalid(errors={"after": ["Not a cursor that a list gave you as `next`."]}) from exc
