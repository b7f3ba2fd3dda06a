"""From due tasks to runs to the broker. Both paths, the alarm and the audit, end in `fire`.

1. `record_due`, in one transaction: due tasks are locked, their runs recorded, their next slots set.
2. The runs travel, confirmed as a batch. What was confirmed becomes queued, at once or where it still waits a moment
   later; what was not stays pending, and the chore `publish_pending` sends it again.

No transaction is held while the broker is spoken to. A stale leader, two leaders, an entry that rings twice:
each finds nothing due any more, or a slot that is recorded already.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, DateTime, Integer, Text, Uuid, any_, bindparam, func, select, update
from sqlalchemy.orm import Session

from app import clock, db, errors, failpoints, incidents, keys, outbox, packs, policies, runs, schedules
from app.messages import Message, Parcel
from app.models import Task
from app.policies import Fate
from app.states import Catchup, Overlap, Reason, TaskState, Trigger, Trouble

BATCH = 500

OVERDUE = timedelta(seconds=3)
"""From here on the audit path fires a task: its entry is missing, or nobody rings its bucket."""

PLANNING = 1.0
"""Seconds of planning in one transaction."""

MAX_RUNS = 5_000
"""Runs recorded in one transaction, about."""

INSTANT = timedelta(microseconds=1)

Publish = Callable[[Sequence[Parcel]], list[Parcel]]
"""Sends a batch and returns what was confirmed: `publishing.Publisher.publish`."""

log = logging.getLogger(__name__)

COLUMNS = (
    Task.id,
    Task.bucket,
    Task.name,
    Task.target,
    Task.args,
    Task.kwargs,
    Task.queue,
    Task.priority,
    Task.schedule,
    Task.starts_at,
    Task.ends_at,
    Task.max_runs,
    Task.jitter,
    Task.overlap,
    Task.catchup_policy,
    Task.catchup_window,
    Task.timeout,
    Task.next_run_at,
    Task.run_count,
    Task.last_run_at,
    Task.state,
)

AFTER: dict[str, Any] = {
    "id": Uuid(),
    "next_run_at": DateTime(timezone=True),
    "last_run_at": DateTime(timezone=True),
    "run_count": Integer(),
    "state": Text(),
}


@dataclass(frozen=True, kw_only=True)
class Fired:
    """What one firing did: the runs to send, when each task that was looked at is next due, and what of it the broker
    has confirmed."""

    runs: list[runs.NewRun]
    next_run_at: dict[UUID, datetime | None]
    sent: list[Parcel] = field(default_factory=list)

    def messages(self, sent_at: datetime | None = None) -> list[Message]:
        """What travels for its runs, with the time of their sending where it is to be told."""
        return [outbox.message(run.task, run, sent_at) for run in self.runs]


class _Plan(NamedTuple):
    """What is due of one task, and its next slot."""

    task: Any
    due: list[policies.Due]
    coming: datetime | None

    def next_run_at(self, count: int) -> datetime | None:
        """The next slot that will be fired, when `count` more runs were made; None where none is left."""
        spent = self.task.max_runs is not None and self.task.run_count + count >= self.task.max_runs
        return None if spent else self.coming

    def after(self, count: int) -> tuple[Any, ...]:
        """The task's columns afterwards, in the order of AFTER."""
        next_run_at = self.next_run_at(count)
        last = self.due[-1].slot if self.due else self.task.last_run_at
        state = TaskState.ACTIVE if next_run_at else TaskState.COMPLETED
        return self.task.id, next_run_at, last, self.task.run_count + count, state.value


def fire(publish: Publish, task_ids: Collection[UUID]) -> Fired:
    """The alarm path: fires those of `task_ids` that are due and that nobody else is firing.

    What was confirmed is not marked yet, see `mark_unclaimed`.
    """
    with db.transaction(planned=True) as session:
        rows, read_at = _lock(session, task_ids), clock.monotonic()
        now = rows[0].now if rows else db.now(session)
        fired = _record_due(session, now, task_ids, rows)
    sent_at = now + timedelta(seconds=clock.monotonic() - read_at)
    return replace(fired, sent=publish_all(publish, fired.messages(sent_at)))


def fire_overdue(publish: Publish, overdue: timedelta, limit: int = BATCH) -> Fired:
    """The audit path: fires tasks that stand `overdue`, whoever ought to have rung them.

    They are to be mirrored again, as their entry may be missing.
    """
    with db.transaction() as session:
        now = db.now(session)
        late = db.execute(session, _LOCK_OVERDUE, {"until": now - overdue, "limit": limit})
        task_ids = late.scalars().all()
        fired = record_due(session, now, task_ids)
        if task_ids:
            db.execute(session, _MIRROR_AGAIN, {"task_ids": task_ids})
    send(publish, fired.messages())
    return fired


def record_due(session: Session, now: datetime, task_ids: Collection[UUID]) -> Fired:
    """Records the runs of those tasks that are due, sets what is next, and says what to send.

    Tasks that somebody else holds are passed over and missing in the answer; those that are not due are in it
    with their next slot.
    """
    return _record_due(session, now, task_ids, _lock(session, task_ids))


def _lock(session: Session, task_ids: Collection[UUID]) -> Sequence[Any]:
    """Locks those that nobody else holds. Each row has PostgreSQL's clock too, which saves a round trip."""
    return db.execute(session, _LOCK, {"task_ids": list(task_ids)}).all() if task_ids else []


def _record_due(session: Session, now: datetime, task_ids: Collection[UUID], rows: Sequence[Any]) -> Fired:
    due = [row for row in rows if row.state == TaskState.ACTIVE and row.next_run_at <= now]
    plans, poisoned = _plans(due, now)
    _set_aside(session, now, poisoned)
    new = _runs(session, now, plans)
    recorded = runs.record(session, now, new)
    missed = [run for run in new if (run.missed or run.skipped == Reason.MISSED) and run.id in recorded]
    incidents.report_missed(session, missed)
    wanted = [run for run in new if run.id in recorded and not run.skipped]
    made = Counter(run.task.id for run in wanted)
    _advance(session, plans, made)
    next_run_at = {row.id: row.next_run_at if row.state == TaskState.ACTIVE else None for row in rows}
    next_run_at |= dict.fromkeys(poisoned)
    next_run_at |= {plan.task.id: plan.next_run_at(made[plan.task.id]) for plan in plans}
    next_run_at |= dict.fromkeys(_missing(session, [task_id for task_id in task_ids if task_id not in next_run_at]))
    return Fired(runs=[run for run in wanted if not run.held], next_run_at=next_run_at)


def send(publish: Publish, batch: Sequence[Message]) -> int:
    """Sends messages whose runs are committed, and marks the confirmed ones queued. Returns their number."""
    confirmed = publish_all(publish, batch)
    mark_queued(confirmed)
    return sum(len(parcel.messages) for parcel in confirmed)


def publish_all(publish: Publish, batch: Sequence[Message]) -> list[Parcel]:
    """Sends messages whose runs are committed, in packs where they may; returns what of it was confirmed."""
    if not batch:
        return []
    failpoints.reached("fired")
    confirmed = publish(packs.pack(batch, packs.pace()) if packs.is_worth_it(batch) else batch)
    failpoints.reached("confirmed")
    return confirmed


def mark_queued(sent: Sequence[Parcel]) -> None:
    """Notes what the broker has taken, so that nobody sends it again."""
    if sent:
        with db.statement() as session:
            runs.mark_queued(session, sent)


def mark_unclaimed(sent: Sequence[Parcel]) -> None:
    """The same a while later: most of it has been claimed by then, and needs no mark."""
    if sent:
        with db.statement() as session:
            waiting = runs.unclaimed(session, sent)
        mark_queued(waiting)


def timetable(task: Any, now: datetime) -> schedules.Timetable:
    """The pure view of when a task, or a row of its columns, is due."""
    return schedules.Timetable(
        task_id=task.id,
        schedule=schedules.parse(task.schedule, now=now),
        starts_at=task.starts_at,
        ends_at=task.ends_at,
        jitter=task.jitter,
    )


def _plans(due: Sequence[Any], now: datetime) -> tuple[list[_Plan], dict[UUID, str]]:
    """The plans, and the tasks whose slots cannot be computed: they must not hold up their neighbours.

    After a long absence the slots of many tasks take long to count: what does not fit stays due, for the next
    batch, as this one's transaction must end in time.
    """
    plans: list[_Plan] = []
    poisoned: dict[UUID, str] = {}
    count = 0
    end = clock.monotonic() + PLANNING
    for task in due:
        if clock.monotonic() > end or count > MAX_RUNS:
            break
        try:
            plans.append(_plan(task, now))
            count += len(plans[-1].due)
        except (errors.Invalid, ValueError, OverflowError) as exc:
            log.exception("task %s cannot be planned, it is paused", task.id)
            poisoned[task.id] = f"its slots cannot be computed: {exc}"
    return plans, poisoned


def _set_aside(session: Session, now: datetime, poisoned: Mapping[UUID, str]) -> None:
    """Pauses tasks, with a note that says why, and marks them: a person could write such a note too."""
    for task_id, why in poisoned.items():
        note = {"note": f"Paused by Punctual: {why}", "set_aside": why}
        values = note | {"state": TaskState.PAUSED, "version": Task.version + 1, "updated_at": now}
        session.execute(update(Task).where(Task.id == task_id).values(values))
    signs = [incidents.Sign(task_id=task_id, note=f"Paused by Punctual: {why}") for task_id, why in poisoned.items()]
    incidents.report(session, Trouble.PAUSED, signs)


def _plan(task: Any, now: datetime) -> _Plan:
    """What is due of a task by its schedule, its bounds and its catch-up policy. Pure."""
    table = timetable(task, now)
    first: datetime = task.next_run_at
    # what can still start in time is always looked at, however narrow the window
    horizon = first if task.catchup_window is None else now - max(task.catchup_window, policies.GRACE)
    # the slot that was promised is recorded as it was, even if the zone's rules have changed since
    slots, coming = policies.newest(table, max(first, horizon - INSTANT), now)
    if first >= horizon:
        slots.insert(0, first)
    due = policies.settle(slots, now, Catchup(task.catchup_policy))
    if first < horizon:
        others = islice(table.between(first, horizon - INSTANT), policies.MAX_COUNT)
        due.insert(0, policies.Due(slot=first, missed=sum(1 for _ in others), skipped=True))
    left = math.inf if task.max_runs is None else task.max_runs - task.run_count
    return _Plan(task=task, due=policies.bound(due, left), coming=coming)


def _runs(session: Session, now: datetime, plans: Sequence[_Plan]) -> list[runs.NewRun]:
    """The runs to record, as the overlap policies have them.

    The tasks' rows are locked, so no other firing adds a run between the look and the insert; one that ends
    in that moment makes the look too careful by a slot, never too bold.
    """
    open_ones = runs.open_tasks(session, [plan.task.id for plan in plans if plan.task.overlap != Overlap.ALLOW])
    among: dict[str, set[UUID]] = {policy: set() for policy in Overlap}
    for plan in plans:
        if plan.task.id in open_ones:
            among[plan.task.overlap].add(plan.task.id)
    with_held = runs.held_tasks(session, among[Overlap.QUEUE])
    if among[Overlap.CANCEL]:
        open_ones = open_ones - among[Overlap.CANCEL] | runs.supersede(session, now, among[Overlap.CANCEL])
    new = []
    for plan in plans:
        is_open, has_held = plan.task.id in open_ones, plan.task.id in with_held
        fates = policies.overlap(plan.due, Overlap(plan.task.overlap), is_open=is_open, has_held=has_held)
        for due, fate in zip(plan.due, fates, strict=True):
            new.append(
                runs.NewRun(
                    id=runs.identify(plan.task.id, due.slot),
                    task=plan.task,
                    slot=due.slot,
                    trigger=Trigger.SCHEDULE,
                    missed=due.missed,
                    skipped=_SKIPPED.get(fate),
                    held=fate == Fate.HOLD,
                )
            )
    return new


def _advance(session: Session, plans: Sequence[_Plan], made: Mapping[UUID, int]) -> None:
    """Sets what is next for all tasks of the batch with one statement."""
    if not plans:
        return
    columns = zip(AFTER, zip(*(plan.after(made[plan.task.id]) for plan in plans), strict=True), strict=True)
    db.execute(session, _ADVANCE, db.arrays("after", **dict(columns)))


def _missing(session: Session, absent: Sequence[UUID]) -> set[UUID]:
    """Those that are no tasks at all, as against those that somebody else holds."""
    return {*absent}.difference(db.execute(session, _THERE, {"task_ids": absent}).scalars()) if absent else set()


_SKIPPED = {Fate.MISS: Reason.MISSED, Fate.SKIP: Reason.OVERLAP}

# Built once.
_AMONG = Task.id == any_(bindparam("task_ids", type_=ARRAY(Uuid())))
_LOCK = select(*COLUMNS, func.clock_timestamp().label("now")).where(_AMONG).with_for_update(skip_locked=True)
_LOCK_OVERDUE = (
    select(Task.id)
    .where(Task.state == TaskState.ACTIVE, Task.next_run_at <= bindparam("until", type_=DateTime(timezone=True)))
    .order_by(Task.next_run_at)
    .limit(bindparam("limit", type_=Integer()))
    .with_for_update(skip_locked=True)
)
_THERE = select(Task.id, Task.version).where(_AMONG)  # no index holds both, or PostgreSQL might read all of that
_MIRROR_AGAIN = update(Task).where(_AMONG).values(mirrored_version=0)

_after = db.rows("after", **AFTER)
_ADVANCE = (
    update(Task)
    .where(keys.looked_up(Task.id, _after.c.id))
    .values({name: _after.c[name] for name in AFTER if name != "id"})
)
