"""The outbox: runs on their way to the broker, as messages.

Whoever takes a run out owns its sending for a while; where that fails, it is taken out again. So a run may be
sent twice, and the claim lets one of the two in.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, DateTime, Integer, Select, Uuid, any_, bindparam, func, literal, select, update
from sqlalchemy.orm import Session, aliased

from app import db, keys, settings
from app.messages import Message, Ticket
from app.models import Run, Task
from app.runs import NewRun
from app.states import RunState, Trigger

SENDING = timedelta(seconds=3)
"""How long a pending run belongs to whoever last set out to send it. A beat marks what the broker took before that."""

BATCH = 500

VANISHED = 2_000
"""Runs whose messages a queue lost that are sent again at once. What was sent lately hides what else is lacking until
the next look, so a few at a time would take long."""

_taken = db.rows("taken", id=Uuid(), slot=DateTime(timezone=True))
_IS_TAKEN = (Run.id == _taken.c.id) & (Run.scheduled_for == _taken.c.slot)

_MESSAGE = func.coalesce(Run.pack_id, Run.id)
"""What tells the messages apart that queued runs were sent in."""


def take_run(session: Session, run_id: UUID) -> list[Message]:
    """One pending run that nobody is sending, as a message; marked as being sent."""
    return _take(session, select(Run.id, Run.scheduled_for).where(Run.id == run_id, _unsent()))


def take_pending(session: Session, limit: int = BATCH) -> list[Message]:
    """Pending runs that nobody has been sending for a while, as messages; marked as being sent."""
    return _taken_out(session, db.execute(session, _LOCK_PENDING, {"limit": limit}))


def take_retries(session: Session, limit: int = BATCH) -> list[Message]:
    """Runs whose next attempt is due: made pending under the next attempt's number, as messages."""
    due = select(Run.id, Run.scheduled_for).where(
        keys.in_state(RunState.RETRYING), Run.retry_at <= func.statement_timestamp()
    )
    # the run shows the attempt to come: what is past stands in `attempts`
    fresh = {"worker": None, "attempt_started_at": None, "error": None, "reason": None, "retry_at": None}
    return _take(session, due.limit(limit), attempt=Run.attempt + 1, **fresh)


def take_held(session: Session, limit: int = BATCH) -> list[Message]:
    """Runs that were held while another one of their task was open, and are not to wait any longer; as messages."""
    other = aliased(Run)
    waits_for = keys.open_runs(other, Run.task_id, other.held.is_(False))
    free = select(Run.id, Run.scheduled_for).where(Run.held, keys.in_state(RunState.PENDING), ~waits_for.exists())
    return _take(session, free.limit(limit), held=False)


def count_queued(session: Session) -> dict[str, int]:
    """Messages per queue that stand queued for longer than a worker's prefetch takes."""
    # what another app has taken stands queued until it answers: its queue says nothing
    ours = Run.queue.not_in(settings.load().external_queues)
    query = select(Run.queue, func.count(_MESSAGE.distinct()).label("messages")).where(
        keys.in_state(RunState.QUEUED), _is_old(), ours
    )
    return {row.queue: row.messages for row in session.execute(query.group_by(Run.queue))}


def take_vanished(session: Session, queue: str, held: int, limit: int = VANISHED) -> list[Message]:
    """Runs of a queue's oldest messages, beyond as many as the broker was seen to have `held`: it may have lost them.
    They are made pending again, as messages.

    A message that was not lost after all finds its runs claimed, or is the first to claim them: either is fine. Two
    beats that saw the same loss take it one after the other, and the second finds it repaired.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"vanished {queue}"))))
    gone = count_queued(session).get(queue, 0) - held
    if gone <= 0:
        return []
    queued = keys.in_state(RunState.QUEUED) & (Run.queue == queue) & _is_old()
    oldest = select(_MESSAGE).where(queued).group_by(_MESSAGE).order_by(func.min(Run.published_at))
    lost = session.scalars(oldest.limit(min(gone, limit))).all()
    chosen = select(Run.id, Run.scheduled_for).where(queued, any_(literal(lost, ARRAY(Uuid()))) == _MESSAGE)
    return _take(session, chosen.limit(limit))


def message(task: Any, run: Run | NewRun, sent_at: datetime | None = None) -> Message:
    """What travels for a run: its own arguments where it has some, or its task's."""
    source: Any
    if isinstance(run, NewRun):
        source, slot, attempt = task, run.slot, 1
    else:  # a change of the task meanwhile must not part the two
        source, slot, attempt = run, run.scheduled_for, run.attempt
    is_backfill = run.trigger == Trigger.BACKFILL
    return Message(
        ticket=Ticket(task=task.id, run=run.id, slot=slot, attempt=attempt, sent_at=sent_at, backfill=is_backfill),
        target=source.target,
        queue=source.queue,
        priority=task.priority,
        args=task.args if run.args is None else run.args,
        kwargs=task.kwargs if run.kwargs is None else run.kwargs,
        timeout=task.timeout,
    )


def _take(session: Session, chosen: Select[UUID, datetime], **values: Any) -> list[Message]:
    """Makes the chosen runs pending and the caller's to send for SENDING seconds; returns their messages."""
    return _taken_out(session, session.execute(chosen.with_for_update(skip_locked=True)), **values)


def _taken_out(session: Session, locked: Iterable[Any], **values: Any) -> list[Message]:
    """The same for runs that are locked already."""
    taken = [(row[0], row[1]) for row in locked]
    if not taken:
        return []
    chosen_ones = db.arrays("taken", id=(row[0] for row in taken), slot=(row[1] for row in taken))
    session.execute(
        update(Run)
        .where(_IS_TAKEN)
        .values({"state": RunState.PENDING, "published_at": func.statement_timestamp()} | values)
        .execution_options(synchronize_session=False),
        chosen_ones,
    )
    rows = session.execute(_TAKEN, chosen_ones)
    return [message(task, run) for run, task in rows]


def _is_old() -> Any:
    """Sent for longer than a worker's prefetch takes."""
    return Run.published_at < func.statement_timestamp() - SENDING


def _unsent(age: timedelta = timedelta(0)) -> Any:
    """Pending, and nobody set out to send it for `age`; one that nobody ever set out with counts from its firing."""
    since = func.coalesce(Run.published_at, Run.fired_at)
    fresh = Run.published_at.is_(None) if not age else since < func.statement_timestamp() - age
    return keys.in_state(RunState.PENDING) & Run.held.is_(False) & fresh


# Built once.
_LOCK_PENDING = (
    select(Run.id, Run.scheduled_for)
    .where(_unsent(SENDING))
    .order_by(Run.fired_at)
    .limit(bindparam("limit", type_=Integer()))
    .with_for_update(skip_locked=True)
)
_TAKEN = (
    select(Run, Task)
    .join(Task, keys.looked_up(Task.id, Run.task_id))
    .where(_IS_TAKEN)
    .execution_options(populate_existing=True)
)
