"""Every move of a run. Each is one conditional UPDATE: no row back means that someone else was first.

A move names the run, its slot (which finds the partition) and, from the claim on, the attempt: the number
fences out a worker that comes back from the dead. All stamps are PostgreSQL's clock.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from sqlalchemy import (
    Boolean,
    DateTime,
    Integer,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app import audit, db, errors, keys, metrics, moves, summaries, traces
from app.messages import Pack, Parcel, Ticket
from app.models import Run, Task
from app.states import CLAIMABLE, OPEN, WAITING, Action, Reason, RunState, Trigger


def identify(task_id: UUID, slot: datetime) -> UUID:
    """The id of a task's run for a slot: the same wherever and however often it is computed."""
    return uuid5(task_id, _name(slot))


@lru_cache(maxsize=64)  # many tasks share a slot
def _name(slot: datetime) -> str:
    return f"{slot.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


class NewRun(NamedTuple):
    """A run to be recorded."""

    id: UUID
    task: Any
    slot: datetime
    trigger: Trigger
    missed: int = 0
    skipped: Reason | None = None
    held: bool = False
    """It is to wait for the end of another run of its task: nobody sends it before `outbox.take_held`."""
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None


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
        held=(run.held for run in new),
        args=(_json(run.args) for run in new),
        kwargs=(_json(run.kwargs) for run in new),
    )
    recorded = set(db.execute(session, _RECORD, given | {"at": now}).scalars().all())
    db.after(session, partial(_tell, [run for run in new if run.id in recorded]))
    # a firing in time asks nothing more of PostgreSQL: the minutes of its slots are open
    summaries.reopen(session, [run.slot for run in new if run.slot < now - summaries.RECENT and run.id in recorded])
    return recorded


def _tell(recorded: Sequence[NewRun]) -> None:
    """Counts new runs, which are of few kinds, however many they are, and traces them."""
    for (trigger, skipped), count in Counter((run.trigger, run.skipped) for run in recorded).items():
        if skipped is None:
            metrics.RUNS_FIRED.labels(trigger).inc(count)
        else:
            metrics.moved(RunState.SKIPPED, skipped, count)
    for run in recorded:
        if run.skipped is None:
            traces.fired(run.task.id, run.id, run.slot)


def mark_queued(session: Session, sent: Sequence[Parcel]) -> None:
    """Notes that the broker has taken these, and in which pack. A run that a worker has claimed meanwhile is left
    alone."""
    packs = [parcel.id if isinstance(parcel, Pack) else None for parcel in sent for _ in parcel.messages]
    tickets = [message.ticket for parcel in sent for message in parcel.messages]
    db.execute(session, _MARK_QUEUED, keys.given(tickets, sent_at=[ticket.sent_at for ticket in tickets], pack=packs))


def unclaimed(session: Session, sent: Sequence[Parcel]) -> list[Parcel]:
    """Those that no worker has claimed yet and that nobody has marked. What was claimed and given back has a time of
    its sending: its message is gone, so a mark would hide it from `publish_pending`.

    A pack is claimed as a whole, so its first run tells for all. Where that one alone was cancelled, the others are
    taken for claimed and are sent again, of which the claim lets one in.
    """
    first = [parcel.messages[0].ticket for parcel in sent]
    waiting = set(db.execute(session, _UNCLAIMED, keys.given(first)).scalars())
    return [parcel for parcel, ticket in zip(sent, first, strict=True) if ticket.run in waiting]


def claim(ticket: Ticket, worker: str) -> bool:
    """Takes the run for this worker. False: it was taken, cancelled, or superseded; the message is to be dropped.

    A transaction by itself, as is `succeed`: nothing else belongs with it.
    """
    return _CLAIM(**_key(ticket), a_worker=worker, sent_at=ticket.sent_at) == 1


def succeed(ticket: Ticket, result: str | None) -> bool:
    """Records the outcome of a run that returned, as JSON. False: this attempt was superseded, it is refused."""
    succeeded = _SUCCEED(**_key(ticket), a_result=result) == 1
    if succeeded:
        moves.tell([ticket], RunState.SUCCEEDED)
    return succeeded


def cancel(session: Session, now: datetime, run_id: UUID, *, tag: str | None = None) -> Run:
    """Cancels a run: one that waits never starts, one that runs is ended by its worker, or has ended before.

    Raises NotFound, Stale where it is not as `tag` says any more, or Conflict where it has ended.
    """
    # a claim that is under way is waited for, and seen
    run = session.scalars(select(Run).where(Run.id == run_id).with_for_update()).one_or_none()
    if run is None:
        raise errors.NotFound("There is no such run.")
    keys.require(run, tag)
    if run.state not in OPEN:
        raise errors.Conflict(f"Only a run that has not ended can be cancelled; this one is {run.state}.")
    with audit.noting(session, now, Action.CANCEL, [run]):
        if run.state in WAITING:
            run.state, run.reason, run.finished_at, run.held = RunState.CANCELLED, Reason.BY_USER, now, False
            db.after(session, partial(metrics.moved, RunState.CANCELLED, Reason.BY_USER))
        else:
            run.cancel_reason = Reason.BY_USER
    return run


def supersede(session: Session, now: datetime, task_ids: Collection[UUID]) -> set[UUID]:
    """Cancels the open runs of these tasks for a later one. Returns the tasks of which one has yet to end.

    One statement, which sees of each run the state that it has when its row is reached: one that a worker claims, or
    gives up, meanwhile is not passed over.
    """
    running = Run.state == RunState.RUNNING
    moved = session.execute(
        update(Run)
        .where(Run.task_id.in_(task_ids), Run.finished_at.is_(None))
        .values(
            state=case((running, Run.state), else_=RunState.CANCELLED),
            reason=case((running, Run.reason), else_=Reason.OVERLAP),
            finished_at=case((running, Run.finished_at), else_=now),
            cancel_reason=case((running, func.coalesce(Run.cancel_reason, Reason.OVERLAP))),
            held=False,
        )
        .returning(Run.task_id, Run.state)
        .execution_options(synchronize_session=False)
    )
    rows = moved.all()
    ended = sum(row.state == RunState.CANCELLED for row in rows)
    db.after(session, partial(metrics.moved, RunState.CANCELLED, Reason.OVERLAP, ended))
    return {row.task_id for row in rows if row.state == RunState.RUNNING}


def cancel_waiting(session: Session, now: datetime, task_ids: Collection[UUID], reason: Reason) -> None:
    """Cancels what waits of these tasks."""
    moved: Any = session.execute(
        update(Run)
        .where(Run.task_id.in_(task_ids), Run.finished_at.is_(None), Run.state.in_(WAITING))
        .values(state=RunState.CANCELLED, reason=reason, finished_at=now, held=False)
    )
    db.after(session, partial(metrics.moved, RunState.CANCELLED, reason, moved.rowcount))


def renew(session: Session, tickets: Sequence[Ticket]) -> set[UUID]:
    """Renews the heartbeats of all runs of a worker with one statement. Returns those that are to be cancelled."""
    return {row.id for row in db.execute(session, _RENEW, keys.given(tickets)) if row.cancel_reason is not None}


def open_tasks(session: Session, task_ids: Collection[UUID]) -> set[UUID]:
    """Which of these tasks have a run that is not ended."""
    if not task_ids:
        return set()
    return set(db.execute(session, _OPEN_TASKS, db.arrays("asked", id=task_ids)).scalars().all())


def held_tasks(session: Session, task_ids: Collection[UUID]) -> set[UUID]:
    """Which of these tasks have a run that is held."""
    if not task_ids:
        return set()
    held = select(Run.task_id).where(Run.task_id.in_(task_ids), Run.held, Run.state == RunState.PENDING)
    return set(session.scalars(held))


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
    held=Boolean(),
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
    Run.held: _given.c.held,
    Run.attempt: literal(1),
    Run.fired_at: _at,
    Run.finished_at: case((_given.c.skipped.is_not(None), _at)),
}
_RECORD = (
    upsert(Run)
    .from_select(
        [column.key for column in _NEW],
        select(*_NEW.values()).join_from(_given, Task, keys.looked_up(Task.id, _given.c.task_id)),
    )
    .on_conflict_do_nothing(constraint="uq_runs_task_slot")
    .returning(Run.id)
)

_first = keys.attempts()
_published_at = case((_first.c.attempt.is_not(None), Run.published_at))  # asked as `keys.at` asks for the state
_UNCLAIMED = select(Run.id).join_from(_first, Run, keys.at(_first, {RunState.PENDING}) & _published_at.is_(None))

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
_RENEW = (
    update(Run)
    .where(keys.at(keys.attempts(), {RunState.RUNNING}))
    .values(heartbeat_at=func.statement_timestamp())
    .returning(Run.id, Run.cancel_reason)
)

_asked = db.rows("asked", id=Uuid())
_one_open = keys.open_runs(Run, _asked.c.id).limit(literal_column("1")).lateral("one_open")
_OPEN_TASKS = select(_asked.c.id).join_from(_asked, _one_open, true())
