"""Every move of a run. Each is one conditional UPDATE: no row back means that someone else was first.

A move names the run, its slot (which finds the partition) and, from the claim on, the attempt: the number
fences out a worker that comes back from the dead. All stamps are PostgreSQL's clock.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import (
    DateTime,
    Integer,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app import db, errors, keys, retry
from app.messages import Ticket
from app.models import Attempt, Run, Task
from app.states import CLAIMABLE, OPEN, WAITING, Reason, RunState, Trigger

LOST_AFTER = timedelta(seconds=4)
"""Without a heartbeat for this long a running run counts as lost. Workers renew each second."""

LOST = {"type": "WorkerLost", "message": "The worker that ran it is gone.", "traceback": None}

GIVEN_BACK = "given_back"
"""The outcome of an attempt that ended with its worker's stop: nobody's failure, and not counted as one."""

BATCH = 500


def identify(task_id: UUID, slot: datetime) -> UUID:
    """The id of a task's run for a slot: the same wherever and however often it is computed."""
    return uuid5(task_id, _name(slot))


@lru_cache(maxsize=64)  # many tasks share a slot
def _name(slot: datetime) -> str:
    return f"{slot.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A run to be recorded."""

    id: UUID
    task: Any
    slot: datetime
    trigger: Trigger
    missed: int = 0
    skipped: Reason | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = field(default=None)


def record(session: Session, now: datetime, new: Sequence[NewRun]) -> set[UUID]:
    """Records runs in bulk; returns the ids of those that were not there before.

    A slot that is there already was recorded by someone else first: by another beat, or by a backfill. What a run has
    of its task is copied there, so that it need not travel.
    """
    if not new:
        return set()
    given = db.arrays(
        "given",
        id=(run.id for run in new),
        task_id=(run.task.id for run in new),
        slot=(run.slot for run in new),
        trigger=(run.trigger for run in new),
        missed=(run.missed for run in new),
        skipped=(run.skipped for run in new),
        args=(_json(run.args) for run in new),
        kwargs=(_json(run.kwargs) for run in new),
    )
    return set(db.execute(session, _RECORD, given | {"at": now}).scalars())


def mark_queued(session: Session, tickets: Sequence[Ticket]) -> None:
    """Notes that the broker has taken these. A run that a worker has claimed meanwhile is left alone."""
    sent_at, pack = ([getattr(ticket, name) for ticket in tickets] for name in ("sent_at", "pack"))
    db.execute(session, _MARK_QUEUED, keys.given(tickets, sent_at=sent_at, pack=pack))


def claim(ticket: Ticket, worker: str) -> bool:
    """Takes the run for this worker. False: it was taken, cancelled, or superseded; the message is to be dropped.

    A transaction by itself, as is `succeed`: nothing else belongs with it.
    """
    return _CLAIM(**_key(ticket), a_worker=worker, sent_at=ticket.sent_at) == 1


def succeed(ticket: Ticket, result: str | None) -> bool:
    """Records the outcome of a run that returned, as JSON. False: this attempt was superseded, it is refused."""
    return _SUCCEED(**_key(ticket), a_result=result) == 1


def fail(
    session: Session,
    ticket: Ticket,
    reason: Reason,
    error: dict[str, Any],
    draw: float,
    states: Collection[RunState] = (RunState.RUNNING,),
) -> RunState | None:
    """Records a failed attempt: the run waits for the next one, or has failed for good where none is left.

    `draw` in [0, 1) is the jitter's. Returns the new state; None: this attempt was superseded.
    """
    # the row is locked first: a rescue that took the run away meanwhile leaves no row to see
    task = session.scalars(
        select(Task)
        .join(Run, Task.id == Run.task_id)
        .where(*keys.fence(ticket), Run.state.in_(states))
        .with_for_update(of=Run)
    ).one_or_none()
    if task is None:
        return None
    delay = retry.delay(
        ticket.attempt,
        backoff=task.backoff,
        backoff_max=task.backoff_max,
        jitter=task.backoff_jitter,
        draw=draw,
    )
    # an attempt that never came to its end by its own doing is tried again at once
    return end_attempt(session, ticket, task, reason, error, delay=timedelta(0) if reason == Reason.LOST else delay)


def end_attempt(
    session: Session,
    ticket: Ticket,
    task: Task,
    reason: Reason,
    error: dict[str, Any],
    *,
    delay: timedelta,
    again: bool = False,
) -> RunState:
    """Ends an attempt whose row this transaction has locked: the next one follows where the task allows it or `again`
    says so, or the run has failed."""
    values: dict[str, Any] = {"error": error, "reason": reason}
    within = again or ticket.attempt < task.max_attempts
    if within or ticket.attempt - _given_back(session, ticket) < task.max_attempts:
        _keep_attempt(session, ticket, error, RunState.FAILED if reason == Reason.ERROR else reason)
        values |= {"state": RunState.RETRYING, "retry_at": func.statement_timestamp() + delay}
    else:
        values |= {"state": RunState.FAILED, "finished_at": func.statement_timestamp()}
    session.execute(update(Run).where(*keys.fence(ticket)).values(values).execution_options(synchronize_session=False))
    return RunState(values["state"])


def cancel(session: Session, now: datetime, run_id: UUID) -> Run:
    """Cancels a waiting run: it never starts. Raises NotFound, or Conflict where it waits no more."""
    run = session.scalars(
        update(Run)
        .where(Run.id == run_id, Run.state.in_(WAITING))
        .values(state=RunState.CANCELLED, reason=Reason.BY_USER, finished_at=now)
        .returning(Run)
    ).one_or_none()
    if run is not None:
        return run
    state = session.scalars(select(Run.state).where(Run.id == run_id)).one_or_none()
    if state is None:
        raise errors.NotFound("There is no such run.")
    raise errors.Conflict(f"Only a waiting run can be cancelled; this one is {state}.")


def cancel_waiting(session: Session, now: datetime, task_id: UUID, reason: Reason) -> None:
    """Cancels what waits of a task."""
    session.execute(
        update(Run)
        .where(Run.task_id == task_id, Run.state.in_(WAITING))
        .values(state=RunState.CANCELLED, reason=reason, finished_at=now)
    )


def renew(session: Session, tickets: Sequence[Ticket]) -> None:
    """Renews the heartbeats of all runs of a worker with one statement."""
    db.execute(session, _RENEW, keys.given(tickets))


def rescue_lost(session: Session, limit: int = BATCH) -> tuple[int, int]:
    """Takes runs whose worker is gone away from it. Returns how many are tried again, and how many failed for good."""
    lost = session.execute(
        select(Run, Task)
        .join(Task, Task.id == Run.task_id)
        .where(Run.state == RunState.RUNNING, Run.heartbeat_at < func.statement_timestamp() - LOST_AFTER)
        .limit(limit)
        .with_for_update(of=Run, skip_locked=True)
    ).all()
    # one that was claimed in a pack may never have begun: it must be tried, however few attempts its task allows
    ended = [
        end_attempt(
            session,
            keys.ticket(run),
            task,
            Reason.LOST,
            LOST,
            delay=timedelta(0),
            again=run.attempt_started_at is None,
        )
        for run, task in lost
    ]
    return ended.count(RunState.RETRYING), ended.count(RunState.FAILED)


def give_back(session: Session, tickets: Iterable[Ticket]) -> int:
    """Takes runs from a worker that stops: each goes on at once, with a further attempt that does not count as one.

    Returns how many there were. One that has ended meanwhile, or was taken from the worker before, is left alone.
    """
    taken = 0
    for ticket in tickets:
        moved = session.execute(
            update(Run)
            .where(*keys.fence(ticket), Run.state == RunState.RUNNING)
            .values(state=RunState.RETRYING, retry_at=func.statement_timestamp())
            .returning(Run.id)
        ).all()
        if moved:
            _keep_attempt(session, ticket, None, GIVEN_BACK)
            taken += 1
    return taken


def open_tasks(session: Session, task_ids: Collection[UUID]) -> set[UUID]:
    """Which of these tasks have a run that is not ended."""
    if not task_ids:
        return set()
    return set(db.execute(session, _OPEN_TASKS, db.arrays("asked", id=task_ids)).scalars())


def _given_back(session: Session, ticket: Ticket) -> int:
    """How many past attempts of a run were given back, and so do not count."""
    mine = (Attempt.run_id == ticket.run, Attempt.scheduled_for == ticket.slot)
    return session.scalars(select(func.count()).where(*mine, Attempt.outcome == GIVEN_BACK)).one()


def _keep_attempt(session: Session, ticket: Ticket, error: dict[str, Any] | None, outcome: str) -> None:
    """Keeps the current attempt as a past one, before the next begins."""
    past = select(
        Run.id,
        Run.scheduled_for,
        Run.attempt,
        Run.worker,
        Run.attempt_started_at,
        func.statement_timestamp(),
        literal(str(outcome)),
        literal(error, Attempt.error.type) if error else null(),
    ).where(*keys.fence(ticket))
    columns = [
        "run_id",
        "scheduled_for",
        "attempt",
        "worker",
        "started_at",
        "finished_at",
        "outcome",
        "error",
    ]
    session.execute(insert(Attempt).from_select(columns, past))


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _key(ticket: Ticket) -> dict[str, Any]:
    return {"a_run": ticket.run, "a_slot": ticket.slot, "an_attempt": ticket.attempt}


# Statements that many runs need, built once.
_THIS = (
    Run.id == bindparam("a_run"),
    Run.scheduled_for == bindparam("a_slot"),
    Run.attempt == bindparam("an_attempt"),
)
_CLAIM = db.Direct(
    update(Run)
    .where(*_THIS, or_(*(Run.state == state for state in sorted(CLAIMABLE))))
    .values(
        state=RunState.RUNNING,
        worker=bindparam("a_worker"),
        published_at=func.coalesce(Run.published_at, bindparam("sent_at", type_=DateTime(timezone=True))),
        started_at=func.coalesce(Run.started_at, func.statement_timestamp()),
        attempt_started_at=func.statement_timestamp(),
        heartbeat_at=func.statement_timestamp(),
    )
)
_SUCCEED = db.Direct(
    update(Run)
    .where(*_THIS, Run.state == RunState.RUNNING)
    .values(
        state=RunState.SUCCEEDED,
        result=cast(bindparam("a_result", type_=Text()), JSONB),
        error=null(),
        finished_at=func.statement_timestamp(),
    )
)

_given = db.rows(
    "given",
    id=Uuid(),
    task_id=Uuid(),
    slot=DateTime(timezone=True),
    trigger=Text(),
    missed=Integer(),
    skipped=Text(),
    args=Text(),
    kwargs=Text(),
)
_at = bindparam("at", type_=DateTime(timezone=True))
_NEW = {
    Run.id: _given.c.id,
    Run.task_id: _given.c.task_id,
    Run.scheduled_for: _given.c.slot,
    Run.task_name: Task.name,
    Run.target: Task.target,
    Run.queue: Task.queue,
    Run.trigger: _given.c.trigger,
    Run.missed: _given.c.missed,
    Run.args: cast(_given.c.args, JSONB),
    Run.kwargs: cast(_given.c.kwargs, JSONB),
    Run.state: case((_given.c.skipped.is_(None), RunState.PENDING), else_=RunState.SKIPPED),
    Run.reason: _given.c.skipped,
    Run.attempt: literal(1),
    Run.fired_at: _at,
    Run.finished_at: case((_given.c.skipped.is_not(None), _at)),
}
_RECORD = (
    upsert(Run)
    .from_select(
        [column.key for column in _NEW],
        select(*_NEW.values()).join_from(_given, Task, Task.id == _given.c.task_id),
    )
    .on_conflict_do_nothing(constraint="uq_runs_task_slot")
    .returning(Run.id)
)

_sent = keys.attempts(sent_at=DateTime(timezone=True), pack=Uuid())
_MARK_QUEUED = (
    update(Run)
    .where(keys.at(_sent, {RunState.PENDING}))
    .values(
        state=RunState.QUEUED,
        published_at=func.coalesce(_sent.c.sent_at, func.statement_timestamp()),
        pack_id=_sent.c.pack,
    )
)
_RENEW = update(Run).where(keys.at(keys.attempts(), {RunState.RUNNING})).values(heartbeat_at=func.statement_timestamp())

_asked = db.rows("asked", id=Uuid())
_OPEN_TASKS = select(_asked.c.id).where(
    select(Run.id).where(Run.task_id == _asked.c.id, Run.state.in_(sorted(OPEN))).exists()
)
