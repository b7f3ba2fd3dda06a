"""Incidents: that a task is not well in one way, from when until when. Of a task and a kind at most one is open.

Trouble is reported in the transaction that records it, where that is a move of its own: a run that failed for good, a
slot that was missed, a task that was paused. What shows itself only by the time that passes, a run that is late, and
that a task is well again, is found by chores: a run that succeeds in time pays nothing for all this.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    DateTime,
    Integer,
    Text,
    Uuid,
    bindparam,
    delete,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, aliased

from app import db, keys, models, policies, summaries
from app.models import Incident, Run, Summary, Task
from app.states import Reason, Span, TaskState, Told, Trouble

QUIET = timedelta(minutes=10)
"""What comes back so soon after it was over is the same incident, which from then on is over only when it was quiet for
as long: a task that fails every other minute is told of once, and once again."""

KEPT = timedelta(days=90)
FORGOTTEN = 5_000

MINUTES = 20
LATE = 2_000
WORK = 0.25
"""Minutes that are looked through for late runs in one transaction, tasks of which are reported at once, and seconds of
it: see `summaries.WORK`."""

TIME = DateTime(timezone=True)


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Something that shows that a task is not well: a run or a slot, or several of them."""

    task_id: UUID
    run_id: UUID | None = None
    slot: datetime | None = None
    last_slot: datetime | None = None
    """Where it is not the same."""
    count: int = 1
    note: str | None = None


def report(session: Session, kind: Trouble, signs: Sequence[Sign]) -> None:
    """Opens an incident for each of these tasks, or adds to the one that is open, or that was until a moment ago. One
    sign for each task. System tasks and deleted ones have none.

    Two that report the same at once: the second waits for the first, and adds to its incident. One that is closed at
    this moment is waited for too, and another one opens.
    """
    if signs:
        found = db.arrays(
            "found",
            task_id=(sign.task_id for sign in signs),
            run_id=(sign.run_id for sign in signs),
            slot=(sign.slot for sign in signs),
            last_slot=(sign.last_slot or sign.slot for sign in signs),
            count=(sign.count for sign in signs),
            note=(sign.note for sign in signs),
        )
        # there are a handful of incidents, or as many as tasks
        db.execute_anew(session, _REPORT, found | {"a_kind": kind})


def report_missed(session: Session, missed: Iterable[Any]) -> None:
    """The same for runs, in the order of their slots, that were recorded as missed, or that stand for missed slots."""
    by_task: dict[UUID, list[Any]] = {}
    for run in missed:
        by_task.setdefault(run.task.id, []).append(run)
    signs = [
        Sign(
            task_id=task_id,
            run_id=runs[0].id,
            slot=runs[0].slot,
            last_slot=runs[-1].slot,
            count=sum(run.missed + (run.skipped == Reason.MISSED) for run in runs),
        )
        for task_id, runs in by_task.items()
    ]
    report(session, Trouble.MISSED, signs)


def find_late(session: Session, now: datetime, limit: int = MINUTES) -> tuple[int, bool]:
    """Reports tasks with runs that started late, or should have started by now: in the minutes whose summaries say that
    there are some, each time that these were made anew. Returns how many tasks it found, and whether there may be more.
    One beat at a time."""
    if not db.is_alone(session, db.Lock.FIND_LATE):
        return 0, False
    end = time.monotonic() + WORK
    due = db.execute(session, _TROUBLED, {"limit": limit}).all()
    looked, late = [], 0
    for minute in sorted(due, key=lambda each: each.start):  # a run before the last one that is counted never is
        found = _report_late(session, now, minute.start)
        late += found
        if found == LATE:
            break
        looked.append(minute)
        if time.monotonic() > end:
            break
    for minute in looked:  # in the order of `summaries.reopen`, so that they cannot deadlock
        db.execute(session, _LOOKED, {"a_start": minute.start, "seen": minute.made_at})
    return late, len(looked) < len(due) or len(due) == limit


def _report_late(session: Session, now: datetime, minute: datetime) -> int:
    """Reports up to LATE tasks with late runs in this minute that are in no incident yet; returns their number."""
    rows = db.execute(session, _FIND_LATE, summaries.parameters(now) | {"a_start": minute, "limit": LATE}).all()
    signs = [
        Sign(task_id=row.task_id, run_id=row.run_id, slot=row.slot, last_slot=row.last_slot, count=row.number)
        for row in rows
    ]
    report(session, Trouble.LATE, signs)
    return len(signs)


def counts(session: Session) -> dict[Trouble, int]:
    """How many incidents of each kind are open."""
    query = select(Incident.kind, func.count().label("open")).where(Incident.closed_at.is_(None))
    found = {row.kind: row.open for row in session.execute(query.group_by(Incident.kind))}
    return {kind: found.get(kind, 0) for kind in Trouble}


def forget(session: Session, now: datetime, limit: int = FORGOTTEN) -> int:
    """Deletes incidents that were over long ago; returns their number."""
    old = select(Incident.id).where(Incident.closed_at < now - KEPT).limit(limit).with_for_update(skip_locked=True)
    gone = delete(Incident).where(Incident.id.in_(old)).returning(Incident.id)
    return len(session.execute(gone.execution_options(synchronize_session=False)).all())


def _reporting(found: CTE) -> Any:
    """The statement that reports what was found, in the order of the tasks: so two that report cannot deadlock."""
    kind = bindparam("a_kind", type_=Text())
    back = _reopening(found, kind)
    new = {
        Incident.id: func.gen_random_uuid(),
        Incident.task_id: found.c.task_id,
        Incident.task_name: Task.name,
        Incident.kind: kind,
        Incident.run_id: found.c.run_id,
        Incident.scheduled_for: found.c.slot,
        Incident.note: found.c.note,
        Incident.count: found.c.count,
        Incident.opened_at: _AT,
        Incident.last_at: _AT,
        Incident.last_slot: found.c.last_slot,
        Incident.changed_at: _AT,
    }
    opening = upsert(Incident).from_select(
        [column.key for column in new],
        select(*new.values())
        .join_from(found, Task, keys.looked_up(Task.id, found.c.task_id))
        .where(~models.is_system(Task), Task.state != TaskState.DELETED)
        .where(found.c.task_id.not_in(select(back.c.task_id)))
        .order_by(found.c.task_id),
    )
    given = opening.excluded
    return opening.on_conflict_do_update(
        index_elements=[Incident.task_id, Incident.kind],
        index_where=Incident.closed_at.is_(None),
        set_={
            "count": Incident.count + given.count,
            "last_at": given.last_at,
            "last_slot": func.greatest(Incident.last_slot, given.last_slot),
            "note": func.coalesce(given.note, Incident.note),
        },
    )


def _reopening(found: CTE, kind: ColumnElement[str]) -> CTE:
    """What was over until a moment ago goes on. Two of these at once: the second finds it open again."""
    newest = aliased(Incident)
    is_newest = (
        select(newest.id)
        .where(newest.task_id == found.c.task_id, newest.kind == kind)
        .order_by(newest.opened_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    return (
        update(Incident)
        .where(Incident.task_id == found.c.task_id, Incident.kind == kind)
        .where(Incident.closed_at > _AT - QUIET, Incident.id == is_newest)
        .values(
            count=Incident.count + found.c.count,
            last_at=_AT,
            last_slot=func.greatest(Incident.last_slot, found.c.last_slot),
            closed_at=null(),
            ending=null(),
            reopened=Incident.reopened + 1,
            changed_at=_AT,
            untold=Incident.told.is_distinct_from(Told.NOTHING),
        )
        .returning(Incident.task_id)
        .cte("back")
    )


# Built once.
_AT = func.statement_timestamp()
_found = db.rows("found", task_id=Uuid(), run_id=Uuid(), slot=TIME, last_slot=TIME, count=Integer(), note=Text())
_REPORT = _reporting(select(_found).cte("found"))

_TROUBLED = (
    select(Summary.start, Summary.made_at)
    .where(Summary.span == Span.MINUTE, or_(Summary.late > 0, Summary.started > Summary.in_time))
    .where(or_(Summary.looked_at.is_(None), Summary.looked_at < Summary.made_at), Summary.made_at.is_not(None))
    .order_by(Summary.start.desc())
    .limit(bindparam("limit", type_=Integer()))
)
_start = bindparam("a_start", type_=TIME)
_LOOKED = (
    update(Summary)
    .where(Summary.span == Span.MINUTE, Summary.start == _start)
    .values(looked_at=bindparam("seen", type_=TIME))
)

# By itself first, so that what follows is done for the few that are late: each a look-up by key, see app/keys.py.
_is_late = or_(summaries.CONDITIONS["late"], summaries.CONDITIONS["started"] & (summaries.LATENESS > policies.GRACE))
_late = (
    select(Run.task_id, Run.id, Run.scheduled_for)
    .where(Run.scheduled_for >= _start, Run.scheduled_for < _start + summaries.MINUTE, _is_late)
    .where(~models.is_system(Run))
    .cte("late")
    .prefix_with("MATERIALIZED")
)
# A minute is looked through again and again while it may change: what is in an incident already is none of another.
_counted = (
    select(Incident.last_slot)
    .where(Incident.task_id == _late.c.task_id, Incident.kind == Trouble.LATE)
    .order_by(Incident.opened_at.desc())
    .limit(1)
    .scalar_subquery()
)
_its_state = select(Task.state).where(Task.id == _late.c.task_id).scalar_subquery()
_FIND_LATE = (
    select(
        _late.c.task_id,
        func.array_agg(aggregate_order_by(_late.c.id, _late.c.scheduled_for), type_=ARRAY(Uuid()))[1].label("run_id"),
        func.min(_late.c.scheduled_for).label("slot"),
        func.max(_late.c.scheduled_for).label("last_slot"),
        func.count().label("number"),
    )
    .where(_late.c.scheduled_for > func.coalesce(_counted, literal_column("'-infinity'::timestamptz")))
    .where(_its_state != TaskState.DELETED)
    .group_by(_late.c.task_id)
    .limit(bindparam("limit", type_=Integer()))
)
