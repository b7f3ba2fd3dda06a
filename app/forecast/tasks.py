"""The active tasks as columns: by one look at the table, what decides when each is due and how long it takes.

Where a task is due once, or at one interval, it goes by its next slot, which holds its jitter too, and a rule goes on
from there as if it had begun there. A cron expression goes by the expression.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from sqlalchemy import ColumnElement, Double, Integer, Text, case, cast, false, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Session

from app import durations, errors, schedules
from app.models import Duration, Task
from app.states import Overlap, TaskState

Column = np.ndarray[Any, Any]

NONE: Final = 2**31 - 1
"""Stands for a bound that there is not."""

HOUR = 3600

BEGUN = 60
"""Seconds before `start`, in which a task is due on time: they are the minute that has begun."""

BRIEF = 0.1
"""Seconds that runs take at most which travel together: half of `packs.WORK`, so that two fit."""

QUICK = 0
"""The size of runs that may travel in packs."""

EASY = 2
"""Sizes below this take less than a second."""

BIG = 8
"""How much longer the runs of a size take than those of the one below."""

SIZES = 6
"""Sizes from 1 on: below a second, below 8 s, below a minute, below 9 minutes, and more."""


SOMETIME = datetime(2026, 1, 1, tzinfo=UTC)
"""A beginning for a schedule that is only told in words."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A schedule, as far as it is the same for many tasks."""

    text: str
    """Its JSON without what it counts from."""
    kind: str
    rule: str | None
    """A cron expression, or a rule of RFC 5545."""
    zone: str | None
    every: float | None

    @property
    def words(self) -> str:
        if self.kind == "once":
            return "Once"
        try:
            return schedules.describe(self.schedule(SOMETIME))
        except (errors.Invalid, ValueError, OverflowError):
            return "A schedule that cannot be read"

    def schedule(self, begins: datetime) -> schedules.Schedule:
        """The schedule, but that it begins then. Raises Invalid where it cannot be read."""
        # made and not parsed, which would check what was checked when it was given, and takes thrice as long
        match self.kind:
            case "cron":
                return schedules.Cron(expression=self.rule or "", timezone=self.zone or "UTC")
            case "rrule":
                return schedules.Rrule(rule=self.rule or "", starts=begins, timezone=self.zone or "UTC")
            case "interval":
                return schedules.Interval(every=timedelta(seconds=self.every or 1), anchor=begins)
            case _:
                return schedules.Once(at=begins)


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Tasks as columns of one length, their instants in seconds from `start`."""

    start: datetime
    queues: Sequence[str]
    sources: Sequence[Source]
    queue: Column
    """The number of its queue, and below of its schedule."""
    source: Column
    first: Column
    """When it is due next; from within BEGUN seconds before the start it goes on, and what lies there is left out."""
    until: Column
    left: Column
    """How many slots it has left."""
    jitter: Column
    """Of a cron expression: the others have it in their next slot."""
    strides: Column
    """Whether a slot that falls into an earlier run of it is not run."""
    size: Column
    work: Column
    """Seconds of a process that its runs take; 0 where nobody knows."""
    known: Column
    tasks: Column
    """How many tasks a row stands for; `work` is of one of them."""

    def __len__(self) -> int:
        return len(self.queue)

    def take(self, chosen: Column) -> "Tasks":
        """Some of its rows."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in COLUMNS})

    def with_columns(self, **columns: Column) -> "Tasks":
        """The same with other columns."""
        return replace(self, **columns)  # type: ignore[arg-type]


COLUMNS = ("queue", "source", "first", "until", "left", "jitter", "strides", "size", "work", "known", "tasks")


def read(session: Session, start: datetime, span: timedelta, wanted: ColumnElement[bool]) -> Tasks:
    """The active tasks that are wanted and due within a span."""
    # Joins of many rows are rare in Punctual and forbidden: see db.LIBPQ_OPTIONS. This one is of all tasks.
    session.execute(text("SET LOCAL enable_hashjoin = on"))
    paces = durations.paces(session)
    rows = session.execute(_columns(start, start + span, wanted)).all()
    session.execute(text("SET LOCAL enable_hashjoin = off"))
    return _table(start, rows, paces)


def held(found: Tasks) -> Tasks:
    """The same, but what is due once before the start is due as it begins."""
    once = np.array([source.kind == "once" for source in found.sources], dtype=bool)[found.source]
    return found.with_columns(first=np.where(once, np.maximum(0, found.first), found.first))


def by_hour(session: Session, start: datetime, span: timedelta, passed: int, wanted: ColumnElement[bool]) -> Tasks:
    """The same, but only by the hour of their next slots, and without all that has to do with work. Of what goes by a
    cron expression nothing counts before the second `passed`."""
    end = start + span
    alike = _alike().label("schedule")
    is_cron = Task.schedule["type"].as_string() == "cron"
    hour = func.div(_seconds(Task.next_run_at, start), HOUR) * HOUR
    first = case((is_cron & ~func.coalesce(Task.starts_at > start, false()), passed), else_=hour).label("first")
    key = [alike, first, *_bounds(start, end)]
    due = (Task.state == TaskState.ACTIVE) & (Task.next_run_at < end) & wanted
    rows = session.execute(select(*key, func.count().label("tasks")).where(due).group_by(*key)).all()
    numbers = {text: number for number, text in enumerate(sorted({row.schedule for row in rows}))}
    given = np.array([(numbers[row.schedule], *row[1:]) for row in rows], dtype=np.int64).reshape(-1, 5).T
    columns = dict.fromkeys(COLUMNS, np.zeros(len(rows), np.int64))
    columns |= dict(zip(("source", "first", "until", "left", "tasks"), given, strict=True))
    columns["first"], columns["strides"] = np.maximum(0, columns["first"]), np.zeros(len(rows), bool)
    return Tasks(start=start, queues=[""], sources=[_source(text) for text in numbers], **columns)


def examples(
    session: Session, found: Tasks, wanted: Iterable[tuple[Source, int | None]]
) -> dict[tuple[Source, int | None], str]:
    """The name of a task of each schedule, for what is due once with the second in which it is due."""
    told = {}
    for source, first in set(wanted):
        alike = Task.schedule.contains(json.loads(source.text))
        if source.kind == "once" and first is not None:
            due_at = found.start + timedelta(seconds=first)
            alike &= Task.next_run_at.between(due_at, due_at + timedelta(seconds=1))
        # any will do: so the look ends at the first one
        name = session.scalars(select(Task.name).where(Task.state == TaskState.ACTIVE, alike).limit(1)).one_or_none()
        if name is not None:
            told[source, first] = name
    return told


def size(seconds: Column) -> Column:
    """The size of runs that take so long."""
    above = EASY + np.floor(np.log(np.maximum(seconds, 1)) / math.log(BIG))
    return np.where(seconds < 1, 1, np.minimum(SIZES - 1, above)).astype(np.int64)


def _columns(start: datetime, end: datetime, wanted: ColumnElement[bool]) -> Any:
    """A row for each queue and target, with its tasks' columns as arrays: a row for each task costs thrice that, and to
    look into a schedule costs more than all else, so that is done here and not there."""
    by = [Task.queue, Task.target, (Task.overlap != Overlap.ALLOW).label("strides")]
    own = case(((Duration.target == Task.target) & (Duration.runs >= durations.ENOUGH), Duration.seconds))
    columns = {
        "schedule": _alike(),
        "first": _seconds(Task.next_run_at, start),
        "later": func.coalesce(Task.starts_at > start, false()),
        "jitter": func.date_part("epoch", Task.jitter),
        "own": func.coalesce(own, cast("NaN", Double)),
    }
    listed = [func.array_agg(column).label(name) for name, column in columns.items()]
    listed += [func.array_agg(column).label(column.name) for column in _bounds(start, end)]
    due = (Task.state == TaskState.ACTIVE) & (Task.next_run_at < end) & wanted
    return select(*by, *listed).outerjoin(Duration, Duration.task_id == Task.id).where(due).group_by(*by)


def _bounds(start: datetime, end: datetime) -> list[Any]:
    until = case((Task.ends_at < end, _seconds(Task.ends_at, start)), else_=NONE)
    return [until.label("until"), func.coalesce(Task.max_runs - Task.run_count, NONE).label("left")]


def _alike() -> ColumnElement[str]:
    """A schedule's JSON without what it counts from."""
    return cast(Task.schedule.op("-", return_type=JSONB)(cast(list(schedules.OF_ITS_START), ARRAY(Text))), Text)


def _seconds(instant: Any, start: datetime) -> Any:
    return cast(func.floor(func.date_part("epoch", instant - start)), Integer)


def _table(start: datetime, rows: Sequence[Any], paces: Mapping[str, durations.Pace]) -> Tasks:
    queues = sorted({row.queue for row in rows})
    numbers = {text: number for number, text in enumerate(sorted({text for row in rows for text in row.schedule}))}
    sources = [_source(text) for text in numbers]
    follows = np.array([each.kind == "cron" for each in sources], dtype=bool)
    every = np.array([each.every or math.inf for each in sources])
    parts = [_part(row, paces.get(row.target), queues.index(row.queue), numbers, follows, every) for row in rows]
    columns = {name: np.concatenate([part[name] for part in parts] or [np.array([], np.int64)]) for name in COLUMNS}
    return Tasks(start=start, queues=queues, sources=sources, **columns)


def _part(
    row: Any, pace: durations.Pace | None, queue: int, numbers: Mapping[str, int], is_cron: Column, spaced: Column
) -> dict[str, Column]:
    """The columns of the tasks of a queue and a target."""
    count = len(row.first)
    source = np.array([numbers[text] for text in row.schedule])
    follows, every = is_cron[source], spaced[source]
    first = np.array(row.first)
    own = np.array(row.own, dtype=float)  # nan where there is none
    work = np.where(np.isnan(own), math.nan if pace is None or pace.seconds is None else pace.seconds, own)
    known = ~np.isnan(work)
    work = np.nan_to_num(work)
    packs = pace is not None and pace.packable
    return {
        "queue": np.full(count, queue),
        "source": source,
        "first": np.where(follows & ~np.array(row.later), 0, _ahead(first, every)),
        "until": np.array(row.until),
        "left": np.array(row.left),
        "jitter": np.where(follows, np.array(row.jitter), 0.0),
        "strides": np.full(count, row.strides),
        "size": np.where(packs & (work <= BRIEF), QUICK, size(work)),
        "work": work,
        "known": known.astype(np.int64),
        "tasks": np.ones(count, dtype=np.int64),
    }


def _ahead(first: Column, every: Column) -> Column:
    """What is overdue is due at once or, of an interval, at its next slot."""
    again = np.where(np.isinf(every), 0, np.mod(first, np.where(np.isinf(every), 1, every)))
    return np.where(first < -BEGUN, again, first).astype(np.int64)


def _source(text: str) -> Source:
    """A schedule that has lost what it counts from."""
    given = json.loads(text)
    kind = "once" if given.get("type") == "now" else given.get("type")
    rule = given.get("expression") if kind == "cron" else given.get("rule")
    every = given.get("every") if kind == "interval" else None
    return Source(text=text, kind=kind, rule=rule, zone=given.get("timezone"), every=every)
