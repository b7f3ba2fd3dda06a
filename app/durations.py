"""How long the runs of each task take: read from its last runs by a chore, for the forecast.

Never added to. A task's figure is made again from its runs, so that nothing counts twice and nothing drifts, and a
turn costs the same whether a thousand runs end in a second or none: see docs/decisions/0035.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    DateTime,
    Text,
    Uuid,
    bindparam,
    delete,
    extract,
    func,
    lateral,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app import db, settings
from app.models import Duration, Run, Target, Task
from app.states import RunState, TaskState

WALKED = 1_000
"""Tasks that are looked at in a turn."""

BATCH = 250
"""And of how many of them the runs are read."""

REST = timedelta(minutes=1)
"""A figure younger than this is not made again."""

READ = 100
"""Runs of a task that are read at most, the latest first, in search of some that have ended."""

KEPT = 8
"""Ended runs that a figure is made from, the latest first."""

FADES = 0.7
"""How much a run weighs of what the one after it does."""

BACK = timedelta(days=40)
"""How far back runs are looked for: those of a month, and the last ones of what is due once a month."""

ENOUGH = 3
"""Runs from which a task is judged by itself. With fewer it is taken for one like the others of its target."""

BEGINNING = UUID(int=0)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long runs of a target take."""

    seconds: float | None
    """Null: nobody knows."""
    packable: bool
    """Whether its workers said how long its calls take, without which it is not packed: see `packs.Pace`."""


def learn(session: Session, now: datetime, after: UUID) -> tuple[int, UUID]:
    """Makes the figures of some tasks again, those after this id; returns of how many, and whereafter to go on.

    Where another beat is at it, nothing is done.
    """
    if not db.is_alone(session, db.Lock.LEARN_DURATIONS):
        return 0, after
    walked = db.execute(session, _WALK, {"after": after, "limit": WALKED}).all()
    theirs = settings.load().external_queues
    stale = [row for row in walked if _is_stale(row, now) and row.queue not in theirs][:BATCH]
    gone = [row.id for row in walked if row.state == TaskState.DELETED and row.made_at is not None]
    if gone:
        session.execute(delete(Duration).where(Duration.task_id.in_(gone)))
    if stale:
        given = db.arrays("wanted", id=(row.id for row in stale), target=(row.target for row in stale))
        db.execute(session, _LEARN, given | {"now": now, "since": now - BACK})
    last = stale[-1].id if len(stale) == BATCH else walked[-1].id if len(walked) == WALKED else BEGINNING
    return len(stale), last


def paces(session: Session) -> dict[str, Pace]:
    """How long runs of each target take, in the mean over its tasks."""
    means: dict[str, float] = {name: mean for name, mean in session.execute(_MEANS)}  # noqa: C416 - rows are no tuples
    told = {name for (name,) in session.execute(select(Target.name).where(Target.duration.is_not(None)))}
    return {name: Pace(seconds=means.get(name), packable=name in told) for name in means.keys() | told}


def _is_stale(row: Any, now: datetime) -> bool:
    """Whether a task has had runs since its figure was made."""
    if row.state == TaskState.DELETED or row.last_run_at is None:
        return False
    return row.made_at is None or (row.newest < row.last_run_at and row.made_at < now - REST)


# Built once.
_WALK = (
    select(Task.id, Task.target, Task.queue, Task.state, Task.last_run_at, Duration.newest, Duration.made_at)
    .outerjoin(Duration, Duration.task_id == Task.id)
    .where(Task.id > bindparam("after", type_=Uuid()))
    .order_by(Task.id)
    .limit(bindparam("limit"))
)

_wanted = db.rows("wanted", id=Uuid(), target=Text())
_read = (
    select(Run)
    .where(Run.task_id == _wanted.c.id, Run.scheduled_for > bindparam("since", type_=DateTime(timezone=True)))
    .order_by(Run.scheduled_for.desc())
    .limit(READ)
    .correlate(_wanted)
    .subquery()
)
_ended = lateral(
    select(
        _read.c.scheduled_for.label("slot"),
        (extract("epoch", _read.c.finished_at - _read.c.attempt_started_at) * _read.c.attempt).label("spent"),
        func.power(literal(FADES), func.row_number().over(order_by=_read.c.scheduled_for.desc())).label("weight"),
    )
    .where(_read.c.state.in_([RunState.SUCCEEDED, RunState.FAILED]), _read.c.attempt_started_at.is_not(None))
    .where(_read.c.target == _wanted.c.target)
    .order_by(_read.c.scheduled_for.desc())
    .limit(KEPT)
    .correlate(_wanted)
)
_found = (
    select(
        _wanted.c.id,
        _wanted.c.target,
        (func.sum(_ended.c.spent * _ended.c.weight) / func.sum(_ended.c.weight)).label("seconds"),
        func.count().label("runs"),
        func.max(_ended.c.slot).label("newest"),
        bindparam("now", type_=DateTime(timezone=True)).label("made_at"),
    )
    .join_from(_wanted, _ended, literal(True))  # noqa: FBT003 - a join with no condition
    .group_by(_wanted.c.id, _wanted.c.target)
    .order_by(_wanted.c.id)
)
_made = upsert(Duration).from_select(["task_id", "target", "seconds", "runs", "newest", "made_at"], _found)
_LEARN = _made.on_conflict_do_update(
    index_elements=["task_id"],
    set_={name: _made.excluded[name] for name in ("target", "seconds", "runs", "newest", "made_at")},
)
_MEANS = select(Duration.target, func.avg(Duration.seconds)).group_by(Duration.target)
