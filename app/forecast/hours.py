"""How many runs fall into each hour of the next days, and by which schedules."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from app.forecast import tasks
from app.forecast.slots import Slots
from app.forecast.tasks import Source, Tasks

HOUR = 3600
PATIENCE = 1.0
"""Seconds of processor time for computing slots: what does not fit is said to be missing."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tasks of one schedule that are due in an hour."""

    source: Source
    tasks: int
    runs: int
    first: int | None
    """The second of their slot, where they have that one alone."""


@dataclass(frozen=True, kw_only=True)
class Hours:
    """The hours ahead."""

    slots: Slots
    loads: list[int]
    """Runs per hour."""
    missing: int
    """Tasks that are not counted, as there was no time for their slots."""

    @property
    def start(self) -> datetime:
        return self.slots.tasks.start

    @property
    def end(self) -> datetime:
        return self.start + timedelta(seconds=self.slots.length)

    def at(self, hour: int) -> list[Group]:
        """What is due in an hour, by schedule, the most first."""
        found = self.slots.tasks
        runs = self.slots.within(hour * HOUR, hour * HOUR + HOUR) * found.tasks
        rows = np.flatnonzero(runs)
        _, first, place = np.unique(found.source[rows], return_index=True, return_inverse=True)
        totals, counts = np.bincount(place, runs[rows]), np.bincount(place, found.tasks[rows])
        groups = []
        for number in np.argsort(-totals).tolist():
            row = rows[first[number]]
            source = found.sources[int(found.source[row])]
            second = int(found.first[row]) if source.kind == "once" else None
            groups.append(Group(source=source, tasks=int(counts[number]), runs=round(totals[number]), first=second))
        return groups


def read(session: Session, now: datetime, days: int, wanted: ColumnElement[bool]) -> Tasks:
    """The active tasks that are wanted and due within these days."""
    start = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    passed = math.ceil((now - start).total_seconds())
    return tasks.by_hour(session, start, timedelta(hours=_count(days)), passed, wanted)


def _count(days: int) -> int:
    """How many hours: the one that has begun, of which the rest counts, and those of so many days. The last is the same
    one of the clock: there stands what is due in it each week, or day, once that is over for now."""
    return 1 + days * 24


def look(found: Tasks, days: int) -> Hours:
    """The load of the hours ahead. Jitter is left out."""
    end = time.thread_time() + PATIENCE
    count = _count(days)
    slots = Slots(tasks=found, length=count * HOUR, is_over=lambda: time.thread_time() > end)
    loads, seen = np.zeros(count), np.zeros(len(found), bool)
    for chunk in slots.chunks():
        loads += np.bincount(chunk.second // HOUR, found.tasks[chunk.row], count)
        seen[chunk.row] = True
    missing = int(found.tasks[~seen].sum()) if slots.is_over() else 0
    return Hours(slots=slots, loads=np.rint(loads).astype(int).tolist(), missing=missing)


def examples(session: Session, found: Hours, groups: Sequence[Group]) -> Mapping[tuple[Source, int | None], str]:
    """The name of a task of each group."""
    return tasks.examples(session, found.slots.tasks, {(group.source, group.first) for group in groups})
