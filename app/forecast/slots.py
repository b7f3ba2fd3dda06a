"""When tasks are due within a span: all their slots, as columns. Pure."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

import numpy as np

from app import errors, schedules
from app.forecast.tasks import BEGUN, Column, Source, Tasks
from app.schedules import parts

DAY = 86_400
DAYS = 2**24
"""More seconds than any span has."""
SECOND = timedelta(seconds=1)

CHUNK = 1_000_000
"""Slots that are computed at once."""

LONG = 60
"""Seconds: what takes less never falls into a run of its own, at intervals of whole minutes."""

GOLDEN, SILVER = 0.6180339887498949, 0.7548776662466927
"""Multiples of these lie evenly between whole numbers, and neighbours far apart."""

POINTS = 60
"""Tasks of one expression, queue and size whose jitter is drawn apart; more of them are taken to share it."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Slots: the row of the task, and the second from the start."""

    row: Column
    second: Column


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Slots of the schedules that have to be asked, one after the other."""

    rows: Column
    """The rows whose schedules they are, those of one schedule together; the last may be missing."""
    key: Column
    """By these rows the number of the schedule."""
    second: Column
    start: Column
    """By schedule where its slots begin in `second`, how many they are, and the least seconds between two of them."""
    count: Column
    gap: Column


@dataclass(kw_only=True)
class Slots:
    """The slots of tasks within so many seconds from their start."""

    tasks: Tasks
    length: int
    since: int = 0
    """The second from which on slots are given, jitter aside."""
    is_over: Callable[[], bool] = lambda: False
    """No more is computed then."""

    @cached_property
    def steps(self) -> Column:
        """By row the seconds from slot to slot; infinite where there is one alone, 0 where the schedule is asked."""
        used, place = np.unique(self.tasks.source, return_inverse=True)
        steps = np.array([_step(self.tasks.sources[number], self.length) for number in used.tolist()])
        # of a rule that has one slot a day, and that one before the start, the next one is asked for
        return np.where(np.isinf(steps[place]) & (self.tasks.first < 0), 0.0, steps[place])

    @cached_property
    def spaced(self) -> Column:
        """The rows that need not be asked."""
        return np.flatnonzero(self.steps)

    @cached_property
    def asked(self) -> Asked:
        """What schedules say of rows."""
        rows = np.flatnonzero(self.steps == 0)
        mixed = self.tasks.source[rows] * DAYS + self.tasks.first[rows] + BEGUN  # so that none is negative
        keys, key, count = np.unique(mixed, return_inverse=True, return_counts=True)
        most = np.argsort(-count, kind="stable")  # should time run out, it is the few that are left out
        keys, key = keys[most], np.argsort(most)[key]
        rows, key = rows[np.argsort(key, kind="stable")], np.sort(key)
        found: list[Column] = []
        for place, each in enumerate(keys.tolist()):
            if place % 64 == 0 and self.is_over():
                break
            source, first = divmod(each, DAYS)
            found.append(self._ask(source, first - BEGUN))
        rows, key = rows[key < len(found)], key[key < len(found)]
        count = np.array([len(slots) for slots in found], dtype=np.int64)
        gap = np.array([np.diff(slots[:POINTS]).min() if len(slots) > 1 else math.inf for slots in found])
        second = np.concatenate([np.array([], np.int64), *found])
        return Asked(rows=rows, key=key, second=second, start=np.cumsum(count) - count, count=count, gap=gap)

    def chunks(self) -> Iterator[Chunk]:
        """All slots, in no order, until it is over."""
        before = self._before(self.spaced, self.since)
        count = self._before(self.spaced, self.length) - before
        for part in _parts(count):
            if self.is_over():
                return
            row, number = _repeated(self.spaced[part], count[part])
            number = number + np.repeat(before[part], count[part])
            step = np.where(np.isinf(self.steps), 0, self.steps)[row]
            second = (self.tasks.first[row] + number * step).astype(np.int64)
            yield self._bounded(row, number, second, self.steps[row])
        asked = self.asked
        count = asked.count[asked.key]
        for part in _parts(count):
            if self.is_over():
                return
            key, number = _repeated(asked.key[part], count[part])
            row = np.repeat(asked.rows[part], count[part])
            yield self._bounded(row, number, asked.second[asked.start[key] + number], asked.gap[key])

    def within(self, start: int, end: int) -> Column:
        """How many slots each row has from one second to another, jitter aside."""
        found = np.zeros(len(self.tasks), np.int64)
        found[self.spaced] = self._before(self.spaced, end) - self._before(self.spaced, start)
        asked = self.asked
        inside = np.flatnonzero((asked.second >= start) & (asked.second < end))
        key = np.searchsorted(asked.start + asked.count, inside, side="right")
        found[asked.rows] = np.bincount(key, minlength=len(asked.count))[asked.key]
        return found

    def _ask(self, source: int, first: int) -> Column:
        """The nominal slots of a schedule from a second on."""
        begins = self.tasks.start + first * SECOND
        try:
            slots = schedules.offsets(
                self.tasks.sources[source].schedule(begins), begins, self.tasks.start + self.length * SECOND
            )
        except (errors.Invalid, ValueError, OverflowError):
            slots = ()
        return np.array(slots, dtype=np.int64) + first

    def _before(self, rows: Column, end: int) -> Column:
        """How many slots rows have before a second, that are at one interval or alone."""
        left = end - self.tasks.first[rows]
        return np.where(left > 0, np.maximum(1, np.ceil(left / self.steps[rows])), 0).astype(np.int64)

    def _bounded(self, row: Column, number: Column, second: Column, gap: Column) -> Chunk:
        """Without those before the start or past a bound, or that fall into the run of an earlier one; with jitter."""
        tasks = self.tasks
        if tasks.jitter.any():
            # each slot has its own by chance: here they are spread, and the same each time
            drawn = (row * GOLDEN + second * SILVER) % 1
            second = second + (np.minimum(tasks.jitter[row], gap) * drawn).astype(np.int64)
        kept = (second >= 0) & (second < self.length)
        if (tasks.until < self.length).any() or (tasks.left < self.length).any():
            kept &= (second <= tasks.until[row]) & (number < tasks.left[row])
        if (tasks.strides & (tasks.work > LONG)).any() or (tasks.strides & (tasks.work > self.steps)).any():
            stride = np.ceil(tasks.work[row] / gap)
            kept &= ~tasks.strides[row] | (number % np.maximum(1, stride) == 0)
        return Chunk(row=row[kept], second=second[kept])


def squeezed(tasks: Tasks) -> Tasks:
    """Rows that are due at the same times and take about as long as one: more tasks cost no more then."""
    point = np.where(tasks.jitter > 0, np.arange(len(tasks)) % POINTS, 0)
    mixed = np.zeros(len(tasks), np.uint64)
    columns = (
        tasks.queue,
        tasks.source,
        tasks.first,
        tasks.until,
        tasks.left,
        tasks.jitter * 1000,
        tasks.strides,
        tasks.size,
    )
    for column in (*columns, point, tasks.known):
        # by chance two that differ become one, of 100,000 rows once in a billion times
        mixed = (mixed ^ column.astype(np.int64).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    _, one, place = np.unique(mixed, return_index=True, return_inverse=True)
    count = np.bincount(place, weights=tasks.tasks, minlength=len(one))
    total = np.bincount(place, weights=tasks.work * tasks.tasks, minlength=len(one))
    less = tasks.take(one)
    return less.with_columns(tasks=count, work=total / np.maximum(count, 1))


def split(tasks: Tasks) -> Tasks:
    """The opposite, as far as a jitter asks for it: so that tasks of one row can be due apart."""
    count = np.minimum(np.ceil(tasks.tasks), POINTS).astype(np.int64)
    rows = np.repeat(np.arange(len(tasks)), count)
    apart = tasks.take(rows)
    return apart.with_columns(tasks=apart.tasks / count[rows])


def _parts(count: Column) -> Iterator[slice]:
    """Rows that have CHUNK slots together, or one that has more."""
    ends = np.cumsum(count)
    start = 0
    while start < len(count):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
        yield slice(start, end)
        start = end


def _repeated(rows: Column, count: Column) -> tuple[Column, Column]:
    """Each row as often as it has slots, and the number of each slot."""
    ends = np.cumsum(count)
    row = np.repeat(rows, count)
    return row, np.arange(len(row)) - np.repeat(ends - count, count)


def _step(source: Source, length: int) -> float:
    """See `Slots.steps`."""
    if source.kind == "cron":
        return 0.0
    if source.kind != "rrule":
        return float(source.every) if source.every is not None else math.inf
    try:
        rule = parts.read(source.rule or "")
    except errors.Invalid:
        return math.inf
    if rule.hour or rule.minute or rule.second or (rule.fine and rule.named):
        return 0.0
    once_a_day_at_most = math.inf if length <= DAY else 0.0
    return rule.interval * rule.unit.total_seconds() if rule.fine else once_a_day_at_most
