"""Many tasks at once: those that filters name, and those that come from a file. Each call does a bounded number."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import db, errors, fields, models, queries, schedules, schemas, tasks
from app.models import Task
from app.states import TaskState

Fields = Mapping[str, Any]

MAX_BULK = 1_000
"""Tasks in one transaction: while it lasts, beats pass them over."""

WORK = 2.0
"""Seconds of it in one transaction, about."""

STEP = 5

SCHEMA = schemas.TaskSchema()
GIVEN = tuple(name for name, field in SCHEMA.fields.items() if not field.dump_only)
"""The fields of a task that a client gives."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """With how many tasks it was done, and whether there are more."""

    tasks: int
    more: bool


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What differs of a task that is there: per field what stands and what is to stand."""

    name: str
    fields: dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import does, by the names of the tasks."""

    added: list[str]
    changed: list[Changed]
    left: list[str]


def pause(session: Session, now: datetime, filters: Fields, note: str | None) -> Done:
    """Pauses active tasks."""
    chosen, more = _choose(session, filters, TaskState.ACTIVE)
    tasks.pause_all(session, now, chosen, note)
    return Done(tasks=len(chosen), more=more)


def resume(session: Session, now: datetime, filters: Fields, since: tasks.Since) -> Done:
    """Resumes paused tasks."""
    chosen, more = _choose(session, filters, TaskState.PAUSED)
    end = time.monotonic() + WORK
    for done in range(0, len(chosen), STEP):
        if time.monotonic() > end:  # slots that fell into long pauses take long to pass over
            return Done(tasks=done, more=True)
        tasks.resume_all(session, now, chosen[done : done + STEP], since)
    return Done(tasks=len(chosen), more=more)


def delete(session: Session, now: datetime, filters: Fields) -> Done:
    """Deletes tasks, whatever their state."""
    chosen, more = _choose(session, filters, None)
    tasks.delete_all(session, now, chosen)
    return Done(tasks=len(chosen), more=more)


def _choose(session: Session, filters: Fields, needed: TaskState | None) -> tuple[Sequence[Task], bool]:
    """Locks tasks that the filters name and that are in the state which is needed, and says whether there are more.

    In the order of their ids, so that two of these cannot deadlock.
    """
    wanted = dict(filters)
    state = wanted.pop("state", needed)
    in_state = Task.state == state if state else Task.state != TaskState.DELETED
    if (needed and state != needed) or state == TaskState.DELETED:
        return [], False
    in_state &= ~models.is_system(Task)
    query = select(Task).where(in_state, queries.like(**wanted)).order_by(Task.id).limit(MAX_BULK + 1)
    found = session.scalars(query.with_for_update()).all()
    return found[:MAX_BULK], len(found) > MAX_BULK


def definition(task: Task) -> dict[str, Any]:
    """A task as a client would give it to have the same one."""
    dumped = SCHEMA.dump(task)
    return {name: dumped[name] for name in GIVEN}


def bring(session: Session, now: datetime, items: Sequence[Fields], *, dry_run: bool) -> Imported:
    """Registers those of the named tasks that are not there, and changes those that differ: all or none, or nothing in
    a dry run. Raises Invalid or Conflict, which name the index."""
    names = [item["name"] for item in items]
    query = select(Task).where(Task.name.in_(names), Task.state != TaskState.DELETED).order_by(Task.id)
    there = {task.name: task for task in session.scalars(query.with_for_update())}
    new = [index for index, name in enumerate(names) if name not in there]
    old = [index for index, name in enumerate(names) if name in there]
    with db.undone(session) if dry_run else session.begin_nested():
        found = {names[index]: _change(session, now, index, items[index], there[names[index]]) for index in old}
        if new:  # last: from here on the key's row is locked
            _add(session, now, items, new)
    return Imported(
        added=[names[index] for index in new],
        changed=[Changed(name=name, fields=differing) for name, differing in found.items() if differing],
        left=[name for name, differing in found.items() if not differing],
    )


def _add(session: Session, now: datetime, items: Sequence[Fields], indexes: Sequence[int]) -> None:
    try:
        tasks.create_many(session, now, [items[index] for index in indexes])
    except (errors.Invalid, errors.Conflict) as exc:  # they name the index among the new ones
        by_index = exc.errors.get("items", {})
        problems = {indexes[index]: found for index, found in by_index.items()}
        raise type(exc)(exc.message, errors={"items": problems} if problems else exc.errors) from exc


def _change(session: Session, now: datetime, index: int, item: Fields, task: Task) -> dict[str, dict[str, Any]]:
    """Changes a task where it differs from what was given; returns what differed."""
    kept = {name: value for name, value in task.schedule.items() if name in schedules.OF_ITS_START}
    is_same_kind = item["schedule"].get("type") == task.schedule["type"]
    given = dict(item) | ({"schedule": kept | dict(item["schedule"])} if is_same_kind else {})
    try:
        before, after = definition(task), definition(tasks.draft(session, now, given))
        words = [name for name in GIVEN if not fields.is_same(before[name], after[name])]
        if words:
            tasks.change(session, now, task.id, {name: given[name] for name in words})
    except (errors.Invalid, errors.Conflict) as exc:
        raise type(exc)(exc.message, errors={"items": {index: exc.errors}}) from exc
    return {name: {"before": before[name], "after": after[name]} for name in words}
