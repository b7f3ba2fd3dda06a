"""Use cases on tasks: register, change, pause, resume, delete, run now.

Each takes a session and `now`, and never commits. `fields` are what `schemas.TaskSchema` loads.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import count, islice
from types import SimpleNamespace
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from app import (
    actors,
    api_keys,
    audit,
    bell,
    calling,
    db,
    dispatch,
    errors,
    planning,
    policies,
    runs,
    schedules,
    settings,
)
from app.messages import DEFAULT_QUEUE, OWN
from app.models import Run, Task
from app.states import Action, Reason, TaskState, Trigger, Trouble

Fields = Mapping[str, Any]
Since = Literal["now", "last"]

DAY = timedelta(days=1)
"""How far back a recurring task catches up where nothing is said; a one-time task runs however late."""

NOBODY_ELSE: Fields = {"on": [str(kind) for kind in Trouble], "webhook": None, "email": []}
"""What is meant where a `notify` says no more."""

TIMING = frozenset({"schedule", "starts_at", "ends_at", "max_runs", "jitter"})
"""The fields that decide when a task is due."""


def create(session: Session, now: datetime, fields: Fields) -> Task:
    """Registers a task. Raises Invalid, or Conflict where its name is taken."""
    calling.check(session, [calling.meant(fields)], lambda by_index: by_index[0])
    task = Task(**vars(new(session, now, fields)))
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
            created.append(new(session, now, fields))
        except errors.Invalid as exc:
            problems[index] = exc.errors
    if problems:
        raise errors.Invalid(errors={"items": problems})
    calling.check(session, [calling.meant(fields) for fields in items], lambda by_index: {"items": by_index})
    _insert(session, now, created, lambda taken: {"items": taken})
    return created


def change(session: Session, now: datetime, task_id: UUID, fields: Fields, *, version: int | None = None) -> Task:
    """Changes what `fields` names. Raises NotFound, Stale, Invalid, or Conflict where the name is taken.

    A change of when it is due counts from now, and makes a completed task active again.
    """
    task = _lock(session, task_id, version)
    if fields.keys() & calling.DEFAULTS.keys():
        calling.check(session, [calling.meant(fields, task)], lambda by_index: by_index[0])
    if fields.keys() & TIMING:
        # slots that are due already are the old definition's; `publish_pending` sends their runs
        dispatch.record_due(session, now, [task.id])
        session.refresh(task)
    with audit.noting(session, now, Action.CHANGE, [task]), session.begin_nested() as savepoint:
        was_one_time = _is_one_time(task.schedule)
        for column, value in _columns(fields, now).items():
            setattr(task, column, value)
            flag_modified(task, column)  # to the ORM {"n": 1} and {"n": true} are equal
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
        calling.check(session, [calling.meant(given, task)], lambda by_index: by_index[0])
    # off the grid of the schedules, so that no slot of theirs is ever taken
    for slot in (planning.whole(now) + timedelta(milliseconds=n, microseconds=1) for n in count()):
        new = runs.NewRun(id=uuid4(), task=task, slot=slot, trigger=Trigger.MANUAL, args=args, kwargs=kwargs)
        if runs.record(session, now, [new]):  # else the very millisecond is taken, by a slot or another call
            break
    audit.note(session, now, Action.RUN, [task], [(None, {"run": str(new.id), **given})])
    bell.ring(session, task.bucket, new.id)
    return session.scalars(select(Run).where(Run.id == new.id, Run.scheduled_for == new.slot)).one()


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


def new(session: Session, now: datetime, fields: Fields) -> Any:
    """The columns of a task that is registered now, with its first slot. Raises Invalid or Forbidden."""
    task = draft(session, now, fields)
    _retime(task, now)
    return task


def draft(session: Session, now: datetime, fields: Fields) -> Any:
    """The columns of a task as it would be registered now, before anybody asked when it is due. Raises Invalid, or
    Forbidden where the actor could not see it."""
    task_id = uuid4()
    actor = actors.of(session)
    columns = _columns(fields, now)
    # a mass of tasks without names must not run into each other: of 32 bits a hundred thousand would
    columns["name"] = columns.get("name") or f"{fields['target']}-{task_id.hex[:16]}"
    task: Any = SimpleNamespace(
        id=task_id,
        bucket=bucket(task_id),
        **columns,
        state=TaskState.ACTIVE,
        note=None,
        next_run_at=None,
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
    return task


_TAKEN = "This name is taken by another task."


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
        columns["schedule"] = schedules.dump(planning.parse(fields["schedule"], now))
    if fields.get("notify"):  # as a whole: a part of it would speak of whom somebody else named
        columns["notify"] = NOBODY_ELSE | fields["notify"]
    columns |= {f"catchup_{name}": value for name, value in fields.get("catchup", {}).items()}
    retry = dict(fields.get("retry", {}))
    if "jitter" in retry:
        columns["backoff_jitter"] = retry.pop("jitter")
    return columns | retry


def _retime(task: Task, now: datetime) -> None:
    """Sets when the task is next due, seen from now. Raises Invalid where it is never due again."""
    slot = next(planning.slots(dispatch.timetable(task, now), now))
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
    """Locks a task that a client is to steer. Raises NotFound, Stale, or Forbidden where it is a system task."""
    task = _find(session, task_id, lock=True)
    if task.target.startswith(OWN):
        raise errors.Forbidden("This task is Punctual's own: it cannot be changed or run by hand.")
    if version is not None and version != task.version:
        raise errors.Stale
    return task


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
