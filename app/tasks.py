"""Use cases on tasks: register, change, pause, resume, delete, run now.

Each takes a session and `now`, and never commits. `fields` are what `schemas.TaskSchema` loads.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, count, islice
from types import SimpleNamespace
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import actors, api_keys, audit, bell, db, dispatch, errors, policies, runs, schedules, settings, signatures
from app.messages import DEFAULT_QUEUE
from app.models import Run, Target, Task
from app.states import Action, Reason, TaskState, Trigger

Fields = Mapping[str, Any]
Since = Literal["now", "last"]

EPOCH = datetime(1900, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
"""How far back a recurring task catches up where nothing is said; a one-time task runs however late."""

TIMING = frozenset({"schedule", "starts_at", "ends_at", "max_runs", "jitter"})
"""The fields that decide when a task is due."""


def create(session: Session, now: datetime, fields: Fields) -> Task:
    """Registers a task. Raises Invalid, or Conflict where its name is taken."""
    _check_targets(session, [_call(fields)], lambda by_index: by_index[0])
    task = Task(**vars(draft(session, now, fields)))
    _insert(session, now, [task], lambda taken: taken[0])
    return task


def create_many(session: Session, now: datetime, items: Sequence[Fields]) -> list[Any]:
    """Registers tasks, all or none; returns what has their attributes, as rows for each would take half of the time.

    Errors name the index: `{"items": {3: {"name": […]}}}`.
    """
    problems: dict[int, Any] = {}
    created: list[Any] = []
    for index, fields in enumerate(items):
        try:
            created.append(draft(session, now, fields))
        except errors.Invalid as exc:
            problems[index] = exc.errors
    if problems:
        raise errors.Invalid(errors={"items": problems})
    _check_targets(session, [_call(fields) for fields in items], lambda by_index: {"items": by_index})
    _insert(session, now, created, lambda taken: {"items": taken})
    return created


def change(session: Session, now: datetime, task_id: UUID, fields: Fields, *, version: int | None = None) -> Task:
    """Changes what `fields` names. Raises NotFound, Stale, Invalid, or Conflict where the name is taken.

    A change of when it is due counts from now, and makes a completed task active again.
    """
    task = _lock(session, task_id, version)
    if fields.keys() & _CALL.keys():
        _check_targets(session, [_call(fields, task)], lambda by_index: by_index[0])
    if fields.keys() & TIMING:
        # slots that are due already are the old definition's; `publish_pending` sends their runs
        dispatch.record_due(session, now, [task.id])
        session.refresh(task)
    with audit.noting(session, now, Action.CHANGE, [task]), session.begin_nested() as savepoint:
        was_one_time = _is_one_time(task.schedule)
        for column, value in _columns(fields, now).items():
            setattr(task, column, value)
        if was_one_time != _is_one_time(task.schedule) and "window" not in fields.get("catchup", {}):
            task.catchup_window = None
        _default_window(task)
        _route(task, fields)
        actors.require_cover(session, task)
        if fields.keys() & TIMING:
            _retime(task, now)
        _touch(session, task, now)
        try:
            session.flush()
        except IntegrityError as exc:
            savepoint.rollback()
            raise _name_taken(exc, {"name": [_TAKEN]}) from exc
    return task


def pause(session: Session, now: datetime, task_id: UUID, note: str | None, *, version: int | None = None) -> Task:
    """Stops firing its slots until it is resumed. Runs that were fired already go on. Raises NotFound, Stale, or
    Conflict where no slot is left."""
    task = _lock(session, task_id, version)
    if task.state == TaskState.COMPLETED:
        raise errors.Conflict("A completed task has no slot left to pause.")
    pause_all(session, now, [task], note)
    return task


def pause_all(session: Session, now: datetime, locked: Sequence[Task], note: str | None) -> None:
    """The same with tasks that this transaction has locked, none of them completed."""
    with audit.noting(session, now, Action.PAUSE, locked):
        for task in locked:
            task.state = TaskState.PAUSED
            task.note = note
            _touch(session, task, now)


def resume(session: Session, now: datetime, task_id: UUID, since: Since, *, version: int | None = None) -> Task:
    """Fires its slots again: those after `now`, or all since the last fired one, as its catch-up policy says. Raises
    NotFound, Stale, or Conflict where no slot is left."""
    task = _lock(session, task_id, version)
    if task.state == TaskState.COMPLETED:
        raise errors.Conflict("A completed task has no slot left to resume.")
    if task.state == TaskState.PAUSED:
        resume_all(session, now, [task], since)
    return task


def resume_all(session: Session, now: datetime, locked: Sequence[Task], since: Since) -> None:
    """The same with paused tasks that this transaction has locked."""
    with audit.noting(session, now, Action.RESUME, locked):
        for task in locked:
            if since == "now":
                _pass_over(session, now, task)
            task.state = TaskState.ACTIVE if task.next_run_at else TaskState.COMPLETED
            task.note = None
            _touch(session, task, now)


def delete(session: Session, now: datetime, task_id: UUID, *, version: int | None = None) -> Task:
    """Deletes a task and cancels what waits of it. Its runs are kept. Raises NotFound or Stale."""
    task = _lock(session, task_id, version)
    delete_all(session, now, [task])
    return task


def delete_all(session: Session, now: datetime, locked: Sequence[Task]) -> None:
    """The same with tasks that this transaction has locked."""
    with audit.noting(session, now, Action.DELETE, locked):
        for task in locked:
            task.state = TaskState.DELETED
            task.next_run_at = None
            _touch(session, task, now)
    runs.cancel_waiting(session, now, [task.id for task in locked], Reason.TASK_DELETED)
    api_keys.uncount(session, Counter(task.created_by for task in locked if task.created_by))


def run(session: Session, now: datetime, task_id: UUID, args: list[Any] | None, kwargs: dict[str, Any] | None) -> Run:
    """A run right now, whatever the schedule says, with the task's arguments or with these.

    Raises Invalid where these do not fit the target.
    """
    task = _lock(session, task_id)
    given = {name: value for name, value in (("args", args), ("kwargs", kwargs)) if value is not None}
    if given:
        _check_targets(session, [_call(given, task)], lambda by_index: by_index[0])
    # off the grid of the schedules, so that no slot of theirs is ever taken
    for slot in (_whole(now) + timedelta(milliseconds=n, microseconds=1) for n in count()):
        new = runs.NewRun(id=uuid4(), task=task, slot=slot, trigger=Trigger.MANUAL, args=args, kwargs=kwargs)
        if runs.record(session, now, [new]):  # else the very millisecond is taken, by a slot or another call
            break
    audit.note(session, now, Action.RUN, [task], [(None, {"run": str(new.id), **given})])
    bell.ring(session, task.bucket, new.id)
    return session.scalars(select(Run).where(Run.id == new.id, Run.scheduled_for == new.slot)).one()


def upcoming(session: Session, now: datetime, task_id: UUID, limit: int) -> list[datetime]:
    """The next slots that will be fired as the task stands."""
    return coming(_find(session, task_id), now, limit)


def coming(task: Task, now: datetime, limit: int) -> list[datetime]:
    """The next slots that will be fired of a task as it stands."""
    if task.next_run_at is None:
        return []
    left = limit if task.max_runs is None else min(limit, task.max_runs - task.run_count)
    after = dispatch.timetable(task, now).upcoming(task.next_run_at)
    return [task.next_run_at, *islice(after, max(left - 1, 0))] if left > 0 else []


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a schedule means, before a task has it."""

    description: str
    slots: list[datetime]
    warnings: list[str]


def preview(
    now: datetime,
    schedule: Any,
    count: int,
    *,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
) -> Preview:
    """What a schedule would mean for a task that is registered now. Raises Invalid."""
    read = parse(schedule, now)
    table = schedules.Timetable(task_id=schedules.NOBODY, schedule=read, starts_at=starts_at, ends_at=ends_at)
    coming = list(islice(slots(table, now), count))
    warnings = schedules.warnings(table, now=now)
    if coming[0] <= now:  # of a time that has passed only that is to be said: it has no slot from now on to speak of
        warnings = [] if isinstance(table.schedule, schedules.Now) else [PASSED]
    return Preview(description=schedules.describe(table.schedule), slots=coming, warnings=warnings)


def missing_slots(session: Session, now: datetime, task_id: UUID, since: datetime, until: datetime) -> list[datetime]:
    """The past slots of a task, from `since` to `until`, that have no run. Raises Invalid where they are too many."""
    task = _find(session, task_id)
    table = dispatch.timetable(task, now)
    past = list(islice(table.between(since - dispatch.INSTANT, min(until, now)), MAX_BACKFILL + 1))
    if len(past) > MAX_BACKFILL:
        raise errors.Invalid(errors={"until": [f"These are more than {MAX_BACKFILL:,} slots; take a shorter span."]})
    there = select(Run.scheduled_for).where(Run.task_id == task_id, Run.scheduled_for.between(since, until))
    recorded = set(session.scalars(there))
    # what is due and not fired yet is not missing: it is on its way
    return [slot for slot in past if slot not in recorded and (task.next_run_at is None or slot < task.next_run_at)]


def backfill(session: Session, now: datetime, task_id: UUID, missing: Sequence[datetime]) -> int:
    """Records a run for each of these slots; `publish_pending` sends them. Returns how many are new.

    The overlap policy is not asked: whoever fills in a day wants all of it.
    """
    task = _lock(session, task_id)
    new = [
        runs.NewRun(id=runs.identify(task.id, slot), task=task, slot=slot, trigger=Trigger.BACKFILL) for slot in missing
    ]
    count = len(runs.record(session, now, new))
    audit.note(session, now, Action.BACKFILL, [task], [(None, {"runs": count})])
    return count


def bucket(task_id: UUID) -> int:
    """The share of the tasks that a task belongs to: its id is random, so its low bits spread evenly."""
    return task_id.int % settings.load().PUNCTUAL_BUCKETS


PASSED = "This time has passed: a task with it runs at once."
MAX_BACKFILL = 1_000
"""Runs that one backfill may make."""

_TAKEN = "This name is taken by another task."
_NEVER = "This schedule has no slot from now on, so it would never fire."


def draft(session: Session, now: datetime, fields: Fields) -> Any:
    """The columns of a task as it would be registered now. Raises Invalid, or Forbidden where the actor could not see
    it."""
    task_id = uuid4()
    actor = actors.of(session)
    columns = _columns(fields, now)
    columns["name"] = columns.get("name") or f"{fields['target']}-{task_id.hex[:8]}"
    task: Any = SimpleNamespace(
        id=task_id,
        bucket=bucket(task_id),
        **columns,
        state=TaskState.ACTIVE,
        note=None,
        last_run_at=None,
        run_count=0,
        created_at=now,
        created_by=actor.key if actor else None,
        updated_at=now,
        version=1,
        mirrored_version=0,
    )
    _default_window(task)
    _route(task, fields)
    actors.require_cover(session, task)
    _retime(task, now)
    return task


def _route(task: Task, fields: Fields) -> None:
    """A target of another app goes to that app's queue, whatever was given; nothing else goes there."""
    config = settings.load()
    theirs = config.external_queue(task.target)
    if theirs:
        task.queue = theirs
    elif task.queue in config.external_queues:
        if "queue" in fields:
            raise errors.Invalid(errors={"queue": ["This queue is another app's: only its own targets go there."]})
        task.queue = DEFAULT_QUEUE


def _default_window(task: Task) -> None:
    if task.catchup_window is None and not _is_one_time(task.schedule):
        task.catchup_window = DAY


def _columns(fields: Fields, now: datetime) -> dict[str, Any]:
    """The columns that the given fields stand for."""
    nested = {"catchup", "retry", "schedule"}
    columns = {name: value for name, value in fields.items() if name not in nested}
    if "schedule" in fields:
        columns["schedule"] = schedules.dump(parse(fields["schedule"], now))
    columns |= {f"catchup_{name}": value for name, value in fields.get("catchup", {}).items()}
    retry = dict(fields.get("retry", {}))
    if "jitter" in retry:
        columns["backoff_jitter"] = retry.pop("jitter")
    return columns | retry


def parse(schedule: Any, now: datetime) -> schedules.Schedule:
    """The schedule that a client gave. Raises Invalid that names its fields under `schedule`."""
    try:
        return schedules.parse(schedule, now=_whole(now))
    except errors.Invalid as exc:
        raise errors.Invalid(errors={"schedule": exc.errors}) from exc


def slots(table: schedules.Timetable, now: datetime) -> Iterator[datetime]:
    """The slots of a task that is registered now, one at least. Raises Invalid where it would have none."""
    one_time = isinstance(table.schedule, schedules.Now | schedules.Once)
    coming = table.upcoming(EPOCH if one_time else now)  # a one-time slot in the past is due at once
    first = next(coming, None)
    if first is None:
        raise errors.Invalid(errors={"schedule": [_NEVER]})
    return chain([first], coming)


def _retime(task: Task, now: datetime) -> None:
    """Sets when the task is next due, seen from now. Raises Invalid where it is never due again."""
    slot = next(slots(dispatch.timetable(task, now), now))
    if task.max_runs is not None and (task.run_count or 0) >= task.max_runs:
        raise errors.Invalid(errors={"max_runs": [f"It has had {task.run_count} runs already."]})
    task.next_run_at = slot
    if task.state == TaskState.COMPLETED:
        task.state = TaskState.ACTIVE


def _pass_over(session: Session, now: datetime, task: Task) -> None:
    """Moves a paused task past the slots that fell into its pause; the newest is recorded for all of them."""
    if task.next_run_at is None or task.next_run_at > now:
        return
    table = dispatch.timetable(task, now)
    passed = [task.next_run_at, *islice(table.between(task.next_run_at, now), policies.MAX_COUNT)]
    slot = passed[-1]
    skipped = runs.NewRun(
        id=runs.identify(task.id, slot),
        task=task,
        slot=slot,
        trigger=Trigger.SCHEDULE,
        missed=len(passed) - 1,
        skipped=Reason.PAUSED,
    )
    runs.record(session, now, [skipped])
    task.next_run_at = table.next_after(now)


def _is_one_time(schedule: Mapping[str, Any]) -> bool:
    return schedule["type"] in {"now", "once"}


def _whole(now: datetime) -> datetime:
    """Now in whole milliseconds: a slot is what answers show of it."""
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _touch(session: Session, task: Task, now: datetime) -> None:
    task.version += 1
    task.updated_at = now
    task.set_aside = None
    bell.ring(session, task.bucket)


def _find(session: Session, task_id: UUID, *, lock: bool = False) -> Task:
    query = select(Task).where(Task.id == task_id, Task.state != TaskState.DELETED)
    task = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if task is None:
        raise errors.NotFound("There is no such task.")
    return task


def _lock(session: Session, task_id: UUID, version: int | None = None) -> Task:
    task = _find(session, task_id, lock=True)
    if version is not None and version != task.version:
        raise errors.Stale
    return task


_CALL: Fields = {"target": None, "args": [], "kwargs": {}}
"""The fields that say what is called, and what they are where nothing is said."""


def _call(fields: Fields, task: Task | None = None) -> Fields:
    """What is to be called: what is given, and of the rest what the task has."""
    rest = {name: getattr(task, name) for name in _CALL} if task else _CALL
    return {name: fields.get(name, rest[name]) for name in _CALL}


def _check_targets(session: Session, calls: Sequence[Fields], shape: Any) -> None:
    """Raises Invalid where a target is one that no worker has ever offered, or arguments do not fit it."""
    wanted = {call["target"] for call in calls}
    rows = session.execute(select(Target.name, Target.parameters).where(Target.name.in_(wanted)))
    known: dict[str, Any] = dict(rows.all())
    problems = {index: found for index, call in enumerate(calls) if (found := _misfits(known, **call))}
    if problems:
        raise errors.Invalid(errors=shape(problems))


def _misfits(known: Mapping[str, Any], target: str, args: Sequence[Any], kwargs: Fields) -> Mapping[str, Any]:
    if settings.load().external_queue(target):
        return {}  # what another app offers, and what that takes, is known there alone
    if target not in known:
        return {"target": [f"No worker offers {target!r}. GET /targets lists what can be called."]}
    return {} if known[target] is None else signatures.misfits(target, known[target], args, kwargs)


def _insert(session: Session, now: datetime, created: Sequence[Any], shape: Any) -> None:
    """Inserts tasks. Raises Conflict that tells which names are taken, or Forbidden where its key may have no more."""
    try:
        with session.begin_nested():
            if len(created) == 1 and isinstance(created[0], Task):
                session.add(created[0])
                session.flush()
            else:
                db.copy(session, Task.__table__, [vars(task) for task in created])
    except IntegrityError as exc:
        names = [task.name for task in created]
        there = set(session.scalars(select(Task.name).where(Task.name.in_(names), Task.state != TaskState.DELETED)))
        taken = {
            index: {"name": [_TAKEN]} for index, name in enumerate(names) if name in there or name in names[:index]
        }
        raise _name_taken(exc, shape(taken) if taken else {"name": [_TAKEN]}) from exc
    audit.created(session, now, Task, created)
    for each in {task.bucket for task in created}:
        bell.ring(session, each)
    api_keys.count(session, len(created))


def _name_taken(exc: IntegrityError, found: errors.FieldErrors) -> Exception:
    constraint = getattr(getattr(exc.orig, "diag", None), "constraint_name", None)
    return errors.Conflict(_TAKEN, errors=found) if constraint == "uq_tasks_name" else exc
