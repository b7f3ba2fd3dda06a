"""What is kept, and for how long: which months go as a whole, and which runs and tasks go one by one.

What goes is let go of by functions of the schema's owner, which keep what is young whatever they are asked. Writes no
files: see `app.archive`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    DateTime,
    Integer,
    Uuid,
    bindparam,
    case,
    func,
    literal,
    select,
    text,
    true,
)
from sqlalchemy.orm import Session, aliased

from app import db, models, settings
from app.messages import OWN
from app.models import Run, Task
from app.states import OPEN, TaskState

SYSTEM_KEPT = timedelta(days=2)
"""Runs of system tasks are thousands a day, and of use for as long as somebody looks for a cause."""

MONTH_KEPT = timedelta(days=28)
"""For so long after its end a month stays, whatever is set: `check_old_month` sees to it."""

RUN_KEPT = timedelta(days=1)
"""For so long after its slot a run stays: `forget_runs` sees to it."""

TASKS, RUNS = 200, 1_000
"""Tasks that are looked at, and runs that go, in one transaction."""

FIRST = UUID(int=0)


MONTHS_AHEAD = 3


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What one batch of tasks gave: how many of their runs went, and the task to go on after; None: that was all."""

    runs: int
    after: UUID | None


def coming_months(now: datetime) -> list[date]:
    """The first days of the months that there is to be room for: the present one, and those ahead."""
    months = [now.astimezone(UTC).date().replace(day=1)]
    for _ in range(MONTHS_AHEAD):
        months.append(_next(months[-1]))
    return months


def kept() -> timedelta | None:
    """For how long runs are kept; None: for ever."""
    days = settings.load().PUNCTUAL_KEEP_RUNS_DAYS
    return timedelta(days=days) if days else None


def old_months(session: Session, now: datetime) -> list[date]:
    """The first days of the months that lie wholly before what is kept, and are in use still; the oldest first."""
    return _old(session, now, _ATTACHED)


def detached_months(session: Session, now: datetime) -> list[date]:
    """Those of them that are not in use any more: somebody has begun to let go of them."""
    return _old(session, now, _DETACHED)


def detach(session: Session, month: date) -> bool:
    """Takes a month out of use. False: a run of it has not ended. Raises Unavailable where the tables were in use for
    longer than others may be kept waiting: it may go better in a while."""
    return bool(session.scalar(select(func.detach_month(month))))


def prune_tasks(session: Session, now: datetime, after: UUID) -> Pruned:
    """Lets runs go of the next TASKS tasks, in the order of their ids: what is more than each may have, and what is
    old of system tasks."""
    most = settings.load().PUNCTUAL_KEEP_RUNS_PER_TASK
    given = {"after": after, "most": most, "system_until": now - SYSTEM_KEPT, "until": now - RUN_KEPT}
    looked_at = db.execute(session, _TASKS, given).scalars().all()
    old = db.execute(session, _OLD_OF_TASKS, given | {"tasks": looked_at}).all() if looked_at else []
    gone = _forget(session, [row.id for row in old], [row.scheduled_for for row in old])
    if gone and len(old) == RUNS:
        return Pruned(runs=gone, after=after)  # the same tasks once more
    return Pruned(runs=gone, after=looked_at[-1] if len(looked_at) == TASKS else None)


def prune_old(session: Session, now: datetime) -> int:
    """Lets runs go one by one that are too old, where no month goes in their stead: it lies too near, or their slots
    were recorded so late that they lie in no month of their own. Returns their number, up to RUNS.

    Not where months are archived: what goes so would be in no archive.
    """
    age = kept()
    if age is None or settings.load().PUNCTUAL_ARCHIVE_PATH is not None or old_months(session, now):
        return 0
    until = now - age
    if age >= MONTH_KEPT:
        until = until.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    old = db.execute(session, _OLD, {"until": min(until, now - RUN_KEPT)}).all()
    return _forget(session, [row.id for row in old], [row.scheduled_for for row in old])


def forget_tasks(session: Session, now: datetime) -> int:
    """Lets deleted tasks go that nobody has touched for as long as runs are kept, and that have none left. Returns
    their number."""
    age = kept()
    if age is None:
        return 0
    ids = db.execute(session, _OLD_TASKS, {"until": now - max(age, RUN_KEPT)}).scalars().all()
    return int(session.scalar(select(func.forget_tasks(_array(ids)))) or 0) if ids else 0


def horizon(session: Session, now: datetime, task: Task) -> datetime | None:
    """The slot from which on all runs of a task are on record: one before it may have run. None: all are."""
    config = settings.load()
    found = []
    if (age := kept()) is not None:
        found.append(now - max(age, RUN_KEPT))
    if task.target.startswith(OWN):
        found.append(now - SYSTEM_KEPT)
    if config.PUNCTUAL_KEEP_RUNS_PER_TASK:
        most = max(config.PUNCTUAL_KEEP_RUNS_PER_TASK, task.pause_after_failures or 0)
        slots = select(Run.scheduled_for).where(Run.task_id == task.id).order_by(Run.scheduled_for.desc())
        oldest = session.scalar(slots.offset(most - 1).limit(1))
        if oldest is not None:
            found.append(min(oldest, now - RUN_KEPT))
    return max(found, default=None)


def _old(session: Session, now: datetime, query: str) -> list[date]:
    """The months of a query that lie wholly before what is kept."""
    age = kept()
    if age is None:
        return []
    until = (now - max(age, MONTH_KEPT)).astimezone(UTC).date()
    found = (date.fromisoformat(f"{name}-01") for name in session.scalars(text(query)))
    return [month for month in found if _next(month) <= until]


def _next(month: date) -> date:
    return (month + timedelta(days=32)).replace(day=1)


def _forget(session: Session, ids: Sequence[UUID], slots: Sequence[datetime]) -> int:
    if not ids:
        return 0
    given = func.forget_runs(_array(ids), literal(list(slots), ARRAY(DateTime(timezone=True))))
    return int(session.scalar(select(given)) or 0)


def _array(ids: Sequence[UUID]) -> object:
    return literal(list(ids), ARRAY(Uuid()))


_ATTACHED = """
    SELECT replace(right(relname, 7), '_', '-') FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'runs'::regclass AND relname ~ '^runs_\\d{4}_\\d{2}$' ORDER BY relname
"""
_DETACHED = """
    SELECT DISTINCT replace(right(relname, 7), '_', '-') FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND NOT relispartition
        AND relname ~ '^(runs|attempts)_\\d{4}_\\d{2}$' ORDER BY 1
"""

# Built once.
_most = bindparam("most", type_=Integer())
_until = bindparam("until", type_=DateTime(timezone=True))
_is_ended = Run.state.not_in(sorted(OPEN))
_is_system = models.is_system(Task)

_TASKS = (
    select(Task.id)
    .where(Task.id > bindparam("after", type_=Uuid()), _is_system | (_most > 0))
    .order_by(Task.id)
    .limit(TASKS)
)

_newer = aliased(Run)
_kept_most = func.greatest(_most, func.coalesce(Task.pause_after_failures, 0))
_oldest = (
    select(_newer.scheduled_for)
    .where(_newer.task_id == Task.id)
    .order_by(_newer.scheduled_for.desc())
    .offset(func.greatest(_kept_most - 1, 0))
    .limit(1)
    .scalar_subquery()
)
_forgotten = func.greatest(  # passes over what is null, and is null where both are: then all is kept
    case((_is_system, bindparam("system_until", type_=DateTime(timezone=True)))),
    case((_most > 0, _oldest)),
)
_bounds = (
    select(Task.id, _forgotten.label("until"))
    .where(Task.id == func.any(bindparam("tasks", type_=ARRAY(Uuid()))))
    .cte("bounds")
)
_each = (
    select(Run.id, Run.scheduled_for)
    .where(Run.task_id == _bounds.c.id, Run.scheduled_for < _bounds.c.until, Run.scheduled_for < _until, _is_ended)
    .order_by(Run.scheduled_for)
    .limit(RUNS)
    .lateral("old")
)
_OLD_OF_TASKS = select(_each).select_from(_bounds).join(_each, true()).limit(RUNS)

_OLD = (
    select(Run.id, Run.scheduled_for)
    .where(Run.scheduled_for < _until, _is_ended)
    .order_by(Run.scheduled_for)
    .limit(RUNS)
    .with_for_update(skip_locked=True)
)

_any = aliased(Run)
_OLD_TASKS = (
    select(Task.id)
    .where(
        Task.state == TaskState.DELETED,
        Task.updated_at < _until,
        ~select(_any.id).where(_any.task_id == Task.id).exists(),
    )
    .limit(TASKS)
)
