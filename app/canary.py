"""The canary: on each queue a task of Punctual's own, whose runs go the whole way as any other run does. Where it falls
silent something on that way is broken, whatever each process says of itself.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, true
from sqlalchemy.orm import Session

from app import models, nodes, settings, system, tasks
from app.messages import CANARY
from app.models import Run, Task
from app.states import RunState, TaskState

EVERY = timedelta(seconds=15)

SILENT = timedelta(seconds=45)
"""So long after its last run a canary counts as silent: the second one that is missed has had its 10 s to start."""

RETIRED = timedelta(hours=1)
"""A queue on which nothing ran for so long, that nobody consumes and no task names, needs no canary any more."""

LOOK_BACK = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Song:
    """What a queue's canary last gave."""

    queue: str
    age: timedelta
    """Since its last run ended well; since it was registered where none has."""
    took: timedelta | None
    """From the slot of that run to its end."""

    @property
    def is_silent(self) -> bool:
        return self.age > SILENT


def keep(session: Session, now: datetime) -> int:
    """Has a canary on each queue that is consumed, and takes it from one that is out of use. Returns how many changed.

    Of two beats that are at it at once one finds the name taken, or the task deleted.
    """
    consumed = nodes.offering(session, CANARY) - settings.load().external_queues
    there = {row.queue: row.id for row in session.execute(select(Task.queue, Task.id).where(*_IS_CANARY))}
    missing = sorted(consumed - there.keys())
    for queue in missing:
        _register(session, now, queue)
    idle = _out_of_use(session, now, there.keys() - consumed)
    gone = select(Task).where(Task.id.in_([there[queue] for queue in idle])).with_for_update(skip_locked=True)
    locked = session.scalars(gone).all() if idle else ()
    tasks.delete_all(session, now, locked)
    return len(missing) + len(locked)


def songs(session: Session, now: datetime) -> list[Song]:
    """What the canaries last gave, by queue."""
    last = (
        select(Run.scheduled_for, Run.finished_at)
        .where(Run.task_id == Task.id, Run.state == RunState.SUCCEEDED, Run.scheduled_for > now - LOOK_BACK)
        .order_by(Run.scheduled_for.desc())
        .limit(1)
        .lateral("last")
    )
    query = select(Task.queue, Task.created_at, last).outerjoin(last, true()).where(*_IS_CANARY).order_by(Task.queue)
    return [
        Song(
            queue=row.queue,
            age=max(now - (row.finished_at or row.created_at), timedelta(0)),
            took=row.finished_at - row.scheduled_for if row.finished_at else None,
        )
        for row in session.execute(query)
    ]


def _register(session: Session, now: datetime, queue: str) -> None:
    system.register(
        session,
        now,
        f"{CANARY}.{queue}",
        description=f"Shows that what is sent to queue {queue} is executed.",
        target=CANARY,
        queue=queue,
        schedule={"type": "interval", "every": EVERY.total_seconds()},
    )


def _out_of_use(session: Session, now: datetime, queues: Collection[str]) -> Sequence[str]:
    """Those of these queues, which nobody consumes, that are not to be consumed again either."""
    rested = {song.queue for song in songs(session, now) if song.age > RETIRED} if queues else set()
    named = select(Task.queue).where(Task.state == TaskState.ACTIVE, ~models.is_system(Task))
    idle = sorted(rested & set(queues))
    return [queue for queue in idle if session.scalars(named.where(Task.queue == queue).limit(1)).first() is None]


_IS_CANARY = (models.is_system(Task), Task.target == CANARY, Task.state == TaskState.ACTIVE)
