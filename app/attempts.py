"""What becomes of an attempt that fails, or ends otherwise than by a result: the next one follows, or the run has
ended.

The row of the run is locked first, and each move names the attempt that it speaks for: of a rescue and a worker that
comes back from the dead, the second to come finds nothing.
"""

import logging
import math
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Text, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from app import audit, db, errors, incidents, keys, moves, retry, summaries
from app.incidents import Sign
from app.messages import OWN, Ticket
from app.models import Attempt, Run, Task
from app.states import Action, Reason, RunState, TaskState, Trouble

LOST_AFTER = timedelta(seconds=3)
"""Without a heartbeat for this long a running run counts as lost. Workers renew twice a second."""

LOST = {"type": "WorkerLost", "message": "The worker that ran it is gone.", "traceback": None}

GIVEN_BACK = "given_back"
"""The outcome of an attempt that ended with its worker's stop: nobody's failure, and not counted as one."""

BATCH = 500

log = logging.getLogger(__name__)


def fail(
    session: Session,
    ticket: Ticket,
    reason: Reason,
    error: dict[str, Any],
    draw: float,
    states: Collection[RunState] = (RunState.RUNNING,),
    after: float | None = None,
) -> RunState | None:
    """Records a failed attempt: the run waits for the next one, or has failed for good where none is left.

    `draw` in [0, 1) is the jitter's. `after` is what the target said itself: in how many seconds the next attempt is to
    be, or that none is to be where it is infinite. Returns the new state; None: this attempt was superseded.
    """
    # the row is locked first: a rescue that took the run away meanwhile leaves no row to see
    task = session.scalars(
        select(Task)
        .join(Run, keys.looked_up(Task.id, Run.task_id))
        .where(*keys.fence(ticket), Run.state.in_(states))
        .with_for_update(of=Run)
    ).one_or_none()
    if task is None:
        return None
    if reason == Reason.LOST:  # it never came to its end by its own doing
        after = 0.0
    if after is None:
        delay: timedelta | None = retry.delay(
            ticket.attempt,
            backoff=task.backoff,
            backoff_max=task.backoff_max,
            jitter=task.backoff_jitter,
            draw=draw,
        )
    else:
        delay = timedelta(seconds=after) if after < math.inf else None
    return end_attempt(session, ticket, task, reason, error, delay=delay)


def end_attempt(
    session: Session,
    ticket: Ticket,
    task: Task,
    reason: Reason,
    error: dict[str, Any],
    *,
    delay: timedelta | None,
) -> RunState:
    """Ends an attempt whose row this transaction has locked: after `delay` the next one follows, where the task allows
    it. Else the run has failed, or is cancelled where that is wished."""
    values: dict[str, Any] = {"error": error, "reason": reason}
    wish = session.scalars(select(Run.cancel_reason).where(*keys.fence(ticket))).one()
    if wish is not None:
        values |= {"state": RunState.CANCELLED, "reason": wish, "finished_at": func.statement_timestamp()}
    elif delay is not None and _has_another(session, ticket, task):
        _keep(session, [ticket], error, _outcome(reason))
        values |= {"state": RunState.RETRYING, "retry_at": func.statement_timestamp() + delay}
    else:
        values |= {"state": RunState.FAILED, "finished_at": func.statement_timestamp()}
    session.execute(update(Run).where(*keys.fence(ticket)).values(values).execution_options(synchronize_session=False))
    moves.tell_after(session, [ticket], values["state"], values["reason"])
    if values["state"] == RunState.FAILED:
        _note_failure(session, ticket, task)
    return RunState(values["state"])


def run_again(session: Session, now: datetime, run_id: UUID, *, tag: str | None = None) -> Run:
    """Has a failed run tried once more, under the same id. Raises NotFound, Stale where it is not as `tag` says any
    more, or Conflict where it did not fail."""
    found = session.execute(
        select(Run, Task.state).join(Task, Task.id == Run.task_id).where(Run.id == run_id).with_for_update(of=Run)
    ).one_or_none()
    if found is None:
        raise errors.NotFound("There is no such run.")
    run: Run = found[0]
    keys.require(run, tag)
    if run.state != RunState.FAILED:
        raise errors.Conflict(f"Only a failed run can be retried; this one is {run.state}.")
    if found[1] == TaskState.DELETED:
        raise errors.Conflict("Its task is deleted.")
    _keep(session, [keys.ticket(run)], run.error, _outcome(Reason(run.reason or Reason.ERROR)))
    values = {"state": RunState.RETRYING, "retry_at": func.statement_timestamp(), "finished_at": None}
    with audit.noting(session, now, Action.RETRY, [run]):
        session.execute(update(Run).where(*keys.fence(keys.ticket(run))).values(values))
        summaries.reopen(session, [run.scheduled_for])  # it had ended, and so may have its minute
        session.refresh(run)
    return run


def rescue_lost(session: Session, limit: int = BATCH) -> tuple[int, int]:
    """Takes runs whose worker is gone away from it. Returns how many are tried again, and how many failed for good."""
    lost = session.execute(
        select(Run, Task)
        .join(Task, Task.id == Run.task_id)
        .where(keys.in_state(RunState.RUNNING), Run.heartbeat_at < func.statement_timestamp() - LOST_AFTER)
        .limit(limit)
        .with_for_update(of=Run, skip_locked=True)
    ).all()
    return end_lost(session, lost, LOST)


def end_lost(session: Session, lost: Sequence[Any], error: dict[str, Any]) -> tuple[int, int]:
    """Ends attempts, each a locked run with its task, of which nobody will tell how they ended. Returns how many are
    tried again, and how many failed for good."""
    again, others = _parted(lost)
    if again:
        _try_again(session, again, error)
    ended = [
        end_attempt(session, keys.ticket(run), task, Reason.LOST, error, delay=timedelta(0))
        for run, task in sorted(others, key=lambda pair: pair[1].id)  # two beats that report or pause cannot deadlock
    ]
    return len(again) + ended.count(RunState.RETRYING), ended.count(RunState.FAILED)


def give_back(session: Session, tickets: Sequence[Ticket]) -> int:
    """Takes runs from a worker that stops: each goes on at once, with a further attempt that does not count as one.

    Returns how many there were. One that has ended meanwhile, or was taken from the worker before, is left alone.
    """
    moved = {row.id for row in db.execute(session, _GIVE_BACK, keys.given(tickets))}
    _keep(session, [ticket for ticket in tickets if ticket.run in moved], None, GIVEN_BACK)
    return len(moved)


def _parted(lost: Iterable[Any]) -> tuple[list[Ticket], list[Any]]:
    """Of lost runs, each with its task, those that are certain to be tried again, and the others."""
    again, others = [], []
    for run, task in lost:
        # one that was claimed in a pack may never have begun: it must be tried, however few attempts its task allows
        never_begun = run.state == RunState.RUNNING and run.attempt_started_at is None
        if (run.attempt < task.max_attempts or never_begun) and run.cancel_reason is None:
            again.append(keys.ticket(run))
        else:
            others.append((run, task))
    return again, others


def _try_again(session: Session, tickets: Sequence[Ticket], error: dict[str, Any]) -> None:
    """What a worker with packs in its hands has lost, or another app left unanswered, goes on together: one by one it
    would take seconds."""
    _keep(session, tickets, error, _outcome(Reason.LOST))
    db.execute(session, _TRY_AGAIN, keys.given(tickets) | {"an_error": error})
    moves.tell_after(session, tickets, RunState.RETRYING, Reason.LOST)


def _has_another(session: Session, ticket: Ticket, task: Task) -> bool:
    """Whether the task allows a further attempt."""
    if ticket.attempt < task.max_attempts:
        return True
    return ticket.attempt - _given_back(session, ticket) < task.max_attempts


def _note_failure(session: Session, ticket: Ticket, task: Task) -> None:
    """A run failed for good: its task is not well, and may be paused for it."""
    if task.target.startswith(OWN):  # to tell of a notification that failed takes another one
        log.error("run %s of %s failed for good: nobody is told but by this line", ticket.run, task.name)
        return
    incidents.report(session, Trouble.FAILED, [Sign(task_id=task.id, run_id=ticket.run, slot=ticket.slot)])
    if task.pause_after_failures is not None:
        _pause_after(session, ticket, task.id)


def _pause_after(session: Session, ticket: Ticket, task_id: UUID) -> None:
    """Pauses a task whose newest runs have all failed since somebody last had a look at it.

    Its row is locked first: of two runs that fail at the same moment, the second to come sees the first.
    """
    task = session.scalars(
        select(Task).where(Task.id == task_id).with_for_update().execution_options(populate_existing=True)
    ).one()
    if task.state != TaskState.ACTIVE or task.pause_after_failures is None:
        return
    ended = select(Run.state).where(
        Run.task_id == task_id, Run.state.in_([RunState.SUCCEEDED, RunState.FAILED]), Run.finished_at > task.updated_at
    )
    newest = session.scalars(ended.order_by(Run.scheduled_for.desc()).limit(task.pause_after_failures)).all()
    if newest.count(RunState.FAILED) == task.pause_after_failures:
        count = "run" if len(newest) == 1 else f"{len(newest)} runs"
        task.state, task.note = TaskState.PAUSED, f"Paused by Punctual: its last {count} failed."
        task.version += 1
        task.updated_at = func.statement_timestamp()
        sign = Sign(task_id=task_id, run_id=ticket.run, slot=ticket.slot, note=task.note)
        incidents.report(session, Trouble.PAUSED, [sign])


def _outcome(reason: Reason) -> str:
    """What a past attempt is kept with."""
    return str(RunState.FAILED if reason == Reason.ERROR else reason)


def _given_back(session: Session, ticket: Ticket) -> int:
    """How many past attempts of a run were given back, and so do not count."""
    mine = (Attempt.run_id == ticket.run, Attempt.scheduled_for == ticket.slot)
    return session.scalars(select(func.count()).where(*mine, Attempt.outcome == GIVEN_BACK)).one()


def _keep(session: Session, tickets: Sequence[Ticket], error: dict[str, Any] | None, outcome: str) -> None:
    """Keeps current attempts as past ones, before the next begin."""
    db.execute(session, _KEEP, keys.given(tickets) | {"an_error": error, "an_outcome": outcome})


# Built once.
_error = bindparam("an_error", type_=Attempt.error.type)
_wanted = keys.attempts()
_GIVE_BACK = (
    update(Run)
    .where(keys.at(_wanted, {RunState.RUNNING}))
    .values(**keys.released(RunState.RETRYING), retry_at=func.statement_timestamp())
    .returning(Run.id)
)
_TRY_AGAIN = (
    update(Run)
    .where(keys.among(_wanted))
    .values(state=RunState.RETRYING, reason=Reason.LOST, error=_error, retry_at=func.statement_timestamp())
)
_PAST = {
    Attempt.run_id: Run.id,
    Attempt.scheduled_for: Run.scheduled_for,
    Attempt.attempt: Run.attempt,
    Attempt.worker: Run.worker,
    Attempt.started_at: Run.attempt_started_at,
    Attempt.finished_at: func.coalesce(Run.finished_at, func.statement_timestamp()),
    Attempt.outcome: bindparam("an_outcome", type_=Text()),
    Attempt.error: _error,
}
_KEEP = insert(Attempt).from_select(
    [column.key for column in _PAST], select(*_PAST.values()).join_from(_wanted, Run, keys.among(_wanted))
)
