"""That a task is well again: what shows it, and the end of its incident.

Found by a look at the runs behind the last one that was not well, for the few incidents that are open; a run that
succeeds knows nothing of them.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    exists,
    false,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from app import db, keys, policies, settings, summaries
from app.incidents import QUIET
from app.models import Incident, Run, Task
from app.states import Ending, Reason, RunState, TaskState, Told, Trigger, Trouble

OVER = timedelta(days=1)
"""After so long an incident ends whose task has no slot left that could show that it is well."""

BATCH = 1_000
"""Incidents that are looked at in one transaction."""


def close(session: Session, after: UUID | None = None, limit: int = BATCH) -> tuple[UUID | None, int]:
    """Closes incidents whose task is well again, is deleted, or has no slot left to show it. Looks at the open ones
    behind `after`, by id; returns where to go on, None at the end, and how many it closed.

    What is reported at this very moment is seen: its incident has another count then, and stays open.
    """
    queues = sorted(settings.load().external_queues)
    given = {"after": after or UUID(int=0), "limit": limit, "theirs": queues}
    rows = db.execute(session, _LOOK, given).all()
    ended = [row for row in rows if row.ending is not None]
    closed = 0
    if ended:
        arrays = db.arrays(
            "ended",
            id=(row.id for row in ended),
            count=(row.count for row in ended),
            ending=(row.ending for row in ended),
        )
        closed = db.execute(session, _CLOSE, arrays | {"ids": [row.id for row in ended]}).rowcount
    return rows[-1].id if len(rows) == limit else None, closed


# Built once.
def _run_that(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether the incident's task has such a run for its last slot or a later one."""
    return exists().where(Run.task_id == Incident.task_id, Run.scheduled_for >= Incident.last_slot, *conditions)


_fired_in_time = Run.fired_at - Run.scheduled_for <= policies.GRACE
# when a run of another app started is not known: that it was fired in time is all that can be said
_is_theirs = Run.queue == any_(bindparam("theirs", type_=ARRAY(Text())))
_in_time = or_(summaries.CONDITIONS["in_time"], _is_theirs & _fired_in_time)
_waits = keys.open_runs(Run, Incident.task_id, Run.started_at.is_(None)).exists()
_no_slot_left = Task.next_run_at.is_(None)
_IS_WELL = case(
    (
        Incident.kind == Trouble.FAILED,
        _run_that(Run.state == RunState.SUCCEEDED, Run.finished_at > Incident.last_at),
    ),
    (Incident.kind == Trouble.LATE, or_(_run_that(_in_time), _no_slot_left & ~_waits)),
    (
        Incident.kind == Trouble.MISSED,
        _run_that(
            _fired_in_time,
            Run.trigger == Trigger.SCHEDULE,
            Run.missed == 0,
            Run.reason.is_distinct_from(Reason.MISSED),
        ),
    ),
    (Incident.kind == Trouble.PAUSED, Task.state != TaskState.PAUSED),
    else_=false(),
)
_now = func.statement_timestamp()
_is_quiet = or_(Incident.reopened == 0, Incident.last_at < _now - QUIET)
_ENDING = case(
    (Task.state == TaskState.DELETED, Ending.DELETED.value),
    (and_(_is_quiet, _IS_WELL), Ending.WELL.value),
    (
        and_(Incident.kind != Trouble.PAUSED, Task.state == TaskState.COMPLETED, Incident.last_at < _now - OVER),
        Ending.OVER.value,
    ),
)
_LOOK = (
    select(Incident.id, Incident.count, _ENDING.label("ending"))
    .join(Task, Task.id == Incident.task_id)
    .where(Incident.closed_at.is_(None), Incident.id > bindparam("after", type_=Uuid()))
    .order_by(Incident.id)
    .limit(bindparam("limit", type_=Integer()))
)

_ended = db.rows("ended", id=Uuid(), count=Integer(), ending=Text())
_free = aliased(Incident)
_CLOSE = (
    update(Incident)
    .where(Incident.id == _ended.c.id, Incident.count == _ended.c.count, Incident.closed_at.is_(None))
    # whoever reports holds his own: none is waited for, so that nobody can deadlock
    .where(
        Incident.id.in_(
            select(_free.id)
            .where(_free.id == any_(bindparam("ids", type_=ARRAY(Uuid()))))
            .with_for_update(skip_locked=True)
        )
    )
    .values(
        closed_at=_now,
        ending=_ended.c.ending,
        changed_at=_now,
        untold=and_(_ended.c.ending == Ending.WELL.value, Incident.told.is_distinct_from(Told.NOTHING)),
    )
)
