"""Runs of other apps' targets: no worker of ours claims them, so their answer, or its absence, ends them.

Such a run stands `queued` from its sending to its answer. When it started is not known and stays null; the
attempt's number fences out the late answer of an earlier attempt.
"""

from collections import defaultdict
from datetime import timedelta
from typing import Any

from sqlalchemy import DateTime, Text, cast, func, literal, null, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from app import attempts, keys, moves, settings
from app.messages import EXTERNAL_GRACE, Ticket
from app.models import Run, Task
from app.states import CLAIMABLE, Reason, RunState

ANSWER_GRACE = timedelta(seconds=10)
"""For the hard limit, and for the answer's way back."""

BATCH = 500


def succeed(session: Session, ticket: Ticket, result: str | None, worker: str | None) -> bool:
    """Records the result that another app returned, as JSON. False: the run is none of its, ended, or superseded."""
    ended = {"state": RunState.SUCCEEDED, "reason": null(), "error": null(), "finished_at": func.statement_timestamp()}
    moved = _move(session, ticket, worker=worker, result=cast(literal(result, Text()), JSONB), **ended)
    if moved:
        moves.tell_after(session, [ticket], RunState.SUCCEEDED)
    return moved


def fail(session: Session, ticket: Ticket, worker: str | None, draw: float) -> RunState | None:
    """Records that another app failed, as `attempts.fail` does. None: the run is none of its, ended, or superseded."""
    if not _move(session, ticket, worker=worker):
        return None
    message = f"It failed in its own app, which does not say why: look there for the message {ticket.run}."
    error = {"type": "FailedElsewhere", "message": message, "traceback": None}
    return attempts.fail(session, ticket, Reason.ERROR, error, draw, states=CLAIMABLE)


def give_up(session: Session, limit: int = BATCH) -> tuple[int, int]:
    """Ends attempts that stand unanswered longer than their timeout and the time to be taken from the queue.

    Returns how many are tried again, and how many failed for good. The message itself has expired by then.
    """
    queues = settings.load().external_queues
    if not queues:
        return 0, 0
    patience = Task.timeout + EXTERNAL_GRACE + ANSWER_GRACE
    silent = session.execute(
        select(Run, Task)
        .join(Task, Task.id == Run.task_id)
        .where(keys.in_state(RunState.QUEUED), Run.queue.in_(queues))
        .where(Run.published_at + patience < func.statement_timestamp())
        .limit(limit)
        .with_for_update(of=Run, skip_locked=True)
    ).all()
    by_queue: dict[str, list[Any]] = defaultdict(list)
    for run, task in silent:
        by_queue[run.queue].append((run, task))
    # in one order in every beat, as within them: two that report or pause cannot deadlock
    ended = [attempts.end_lost(session, lost, _silence(queue)) for queue, lost in sorted(by_queue.items())]
    return sum(again for again, _ in ended), sum(dead for _, dead in ended)


def _silence(queue: str) -> dict[str, Any]:
    message = f"No answer came from the app that owns the queue {queue}."
    return {"type": "NoAnswer", "message": message, "traceback": None}


def _move(session: Session, ticket: Ticket, **values: Any) -> bool:
    """Changes a run of another app that waits for its answer; a ticket of one of our own runs opens nothing."""
    sent_at = literal(ticket.sent_at, DateTime(timezone=True))  # the answer may come before the row says so
    moved = session.execute(
        update(Run)
        .where(*keys.fence(ticket), Run.state.in_(CLAIMABLE), Run.queue.in_(settings.load().external_queues))
        .values(published_at=func.coalesce(Run.published_at, sent_at), **values)
        .returning(Run.id)
        .execution_options(synchronize_session=False)
    )
    return moved.one_or_none() is not None
