"""Why runs would be late, and what would mend it, by the same model: more processes, a jitter, another minute. Pure."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.forecast import loads, model, slots
from app.forecast.loads import PER_MINUTE, Load
from app.forecast.model import GRACE, Loads, Pool, Waits
from app.forecast.outlook import MINUTE, Outlook, Spell
from app.forecast.tasks import Source, Tasks

PATIENCE = 0.25
"""Seconds for looking for causes and mends: the worst times first."""

EARLIER = 3
"""Minutes before a late time that are looked at too: what still runs then may be what makes it late."""

AROUND = 10
"""Minutes of a late time, to both sides of its fullest one, in which a mend must hold."""

MOST = 4096
"""Processes; where more were needed they are no mend."""

JITTERS = (10, 20, 30, 60, 120, 180, 300, 600, 900, 1800, 3600)
MOVES = tuple(sign * by for by in (1, 2, 3, 4, 5, 7, 10, 15, 20, 30) for sign in (1, -1))
"""Minutes."""

CAUSES = 3
OTHERS = "(others)"


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Tasks of one schedule that bring much at a late time."""

    queue: str
    source: Source
    first: int | None
    """The second in which they are due, where they are due once."""
    tasks: int
    runs: float
    work: float


@dataclass(frozen=True, kw_only=True)
class Mend:
    """What would do, each by itself; None: it would not, or it was not found."""

    processes: int | None
    """So many serving the queue."""
    jitter: int | None
    """Seconds, for the tasks of the cause."""
    minutes: int | None
    """So many later, or earlier where negative, for the tasks of the cause."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A late time, why, and what would mend it. None: there was no time to look for it."""

    spell: Spell
    causes: Sequence[Cause]
    mend: Mend | None


def troubles(found: Outlook, spells: Sequence[Spell], limit: int) -> list[Trouble]:
    """The worst of the late times, in their order. What has the same cause is mended alike, and looked at once."""
    worst = sorted(spells, key=lambda spell: (-spell.late, spell.start))[:limit]
    end = time.monotonic() + PATIENCE
    told: list[Trouble] = []
    known: dict[tuple[str, Source], Mend] = {}
    for spell in worst:
        causes = _causes(found, spell) if time.monotonic() < end else []
        mend = None
        if causes:
            key = spell.queue, causes[0].source
            mend = known.get(key)
            if mend is None and time.monotonic() < end:
                mend = known[key] = _mend(found, spell, causes[0], lambda: time.monotonic() > end)
        told.append(Trouble(spell=spell, causes=causes, mend=mend))
    return sorted(told, key=lambda trouble: (trouble.spell.start, trouble.spell.queue))


def processes(found: Loads, pools: Sequence[Pool], queue: str, minutes: slice) -> int | None:
    """The fewest processes serving a queue with which its runs of these minutes are in time; None: no number is."""

    def holds(number: int) -> bool:
        waits = model.simulate(found, _with(pools, queue, number), {OTHERS})[queue]
        return max(waits.longest[minutes], default=0.0) <= GRACE

    low, high = 0, 1
    while not holds(high):
        low, high = high, high * 2
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _with(pools: Sequence[Pool], queue: str, number: int) -> list[Pool]:
    """The pools, so that so many processes serve a queue: those that it has and others of its own, or fewer of them."""
    have = sum(pool.processes for pool in pools if queue in pool.queues)
    if number >= have:
        return [*pools, Pool(queues=frozenset({queue}), processes=number - have)]
    return [replace(pool, processes=pool.processes * number / have) if queue in pool.queues else pool for pool in pools]


def _causes(found: Outlook, spell: Spell) -> list[Cause]:
    """The schedules that bring most work to a late time."""
    tasks = found.slots.tasks
    start, end = max(0, spell.start - EARLIER) * MINUTE, min(spell.end, spell.start + AROUND) * MINUTE
    runs = found.slots.within(start, end) * tasks.tasks
    rows = np.flatnonzero((runs > 0) & (tasks.queue == tasks.queues.index(spell.queue)))
    work = runs[rows] * (tasks.work[rows] + model.SINGLE)
    single = np.isinf(found.slots.steps[rows])
    key = tasks.source[rows] * 2**32 + np.where(single, tasks.first[rows], 2**31)
    keys, place = np.unique(key, return_inverse=True)
    totals = np.bincount(place, work)
    told = []
    for number in np.argsort(-totals)[:CAUSES].tolist():
        mine = rows[place == number]
        first = int(tasks.first[mine[0]]) if np.isinf(found.slots.steps[mine[0]]) else None
        told.append(
            Cause(
                queue=spell.queue,
                source=tasks.sources[int(keys[number]) >> 32],
                first=first,
                tasks=int(tasks.tasks[mine].sum()),
                runs=float(runs[mine].sum()),
                work=float(totals[number]),
            )
        )
    return told


def _mend(found: Outlook, spell: Spell, cause: Cause, is_over: Callable[[], bool]) -> Mend:
    """What would do for a late time."""
    queue = found.queues[spell.queue]
    fullest = spell.start + int(np.argmax(queue.work[spell.start : spell.end]))
    start, end = max(spell.start, fullest - AROUND), min(spell.end, fullest + AROUND)
    near = _window(found, spell.queue, start - EARLIER, end + 1)
    inside = slice(min(EARLIER, start), min(EARLIER, start) + end - start)
    enough = processes(near, found.pools, spell.queue, inside)
    if not queue.processes or is_over():
        return Mend(processes=enough, jitter=None, minutes=None)
    own = _rows(found, cause)
    return Mend(
        processes=enough,
        jitter=_jitter(found, spell, own, is_over),
        minutes=_minutes(found, spell, own, is_over),
    )


def _rows(found: Outlook, cause: Cause) -> Tasks:
    """The tasks of a cause."""
    tasks = found.slots.tasks
    mine = (tasks.queue == tasks.queues.index(cause.queue)) & (tasks.source == tasks.sources.index(cause.source))
    return tasks.take(mine if cause.first is None else mine & (tasks.first == cause.first))


def _jitter(found: Outlook, spell: Spell, own: Tasks, is_over: Callable[[], bool]) -> int | None:
    """The least jitter of these tasks with which nobody is late any more."""
    rest = loads.merged(found.demand.loads, _loads(found, own), -1)
    split = slots.split(own)
    for seconds in JITTERS:
        if is_over():
            return None
        wider = split.with_columns(jitter=np.maximum(split.jitter, seconds))
        ahead = math.ceil(seconds / MINUTE)
        if _is_better(found, loads.merged(rest, _loads(found, wider)), spell, 0, ahead):
            return seconds
    return None


def _minutes(found: Outlook, spell: Spell, own: Tasks, is_over: Callable[[], bool]) -> int | None:
    """By how many minutes these tasks would have to be moved."""
    mine = _loads(found, own)
    rest = loads.merged(found.demand.loads, mine, -1)
    for by in MOVES:
        if is_over():
            return None
        moved = {queue: _moved(load, by * PER_MINUTE) for queue, load in mine.items()}
        if _is_better(found, loads.merged(rest, moved), spell, max(0, -by), max(0, by)):
            return by
    return None


def _loads(found: Outlook, tasks: Tasks) -> dict[str, Load]:
    return loads.demand(slots.Slots(tasks=tasks, length=found.slots.length), found.theirs).loads


def _moved(load: Load, bins: int) -> Load:
    moved = np.roll(load, bins, axis=2)
    if bins > 0:
        moved[:, :, :bins] = 0
    else:
        moved[:, :, bins:] = 0
    return moved


def _is_better(found: Outlook, changed: Loads, spell: Spell, before: int, after: int) -> bool:
    """Whether with these loads a late time is none any more, and none has come about before or after it."""
    start, end = max(0, spell.start - EARLIER - before), min(found.minutes, spell.end, spell.start + AROUND) + after
    near = _windowed(found, changed, spell.queue, start, end)
    waits: Waits = model.simulate(near, found.pools, {OTHERS})[spell.queue]
    late = {start + minute for minute in waits.late_minutes}
    were = set(found.queues[spell.queue].waits.late_minutes) - set(range(spell.start, spell.end))
    return late <= were


def _window(found: Outlook, queue: str, start: int, end: int) -> dict[str, Load]:
    return _windowed(found, found.demand.loads, queue, max(0, start), end)


def _windowed(found: Outlook, of: Loads, queue: str, start: int, end: int) -> dict[str, Load]:
    """Some minutes of a queue and of those that share its processes; of the others only that they are fired too."""
    part = slice(start * PER_MINUTE, min(end, found.minutes) * PER_MINUTE)
    together = next((each for each in model.parts(of, found.pools) if queue in each), {queue: of[queue]})
    near = {name: load[:, :, part] for name, load in together.items()}
    others = [load[:, :, part] for name, load in of.items() if name not in together]
    return near | ({OTHERS: np.sum(others, axis=0)} if others else {})
