"""Why runs would be late, and what would mend it, by the same model: more processes, a jitter, another minute. Pure."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.forecast import loads, model, slots
from app.forecast.loads import PER_MINUTE, RUNS, Load
from app.forecast.model import GRACE, Loads, Pool, Waits
from app.forecast.outlook import MINUTE, Outlook, Spell
from app.forecast.tasks import Source, Tasks

PATIENCE = 0.2
"""Seconds of processor time for looking for causes, and for mends: the worst times first."""

EARLIER = 3
"""Minutes before a late time that are looked at too: what still runs then may be what makes it late."""

AROUND = 10
"""Minutes of a late time, to both sides of its fullest one, in which a mend must hold."""

MOST = 4096
"""Processes; where more were needed they are no mend."""

JITTERS = (10, 20, 30, 60, 120, 180, 300, 600, 900, 1800, 3600)
MOVES = tuple(sign * by for by in (1, 2, 3, 4, 5, 7, 10, 15, 20, 30) for sign in (1, -1))
"""Minutes."""

USUAL = 30
"""Minutes before and after that say what a schedule always brings."""

NEVER = 2**32
"""A second that is none."""

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
    is_over = _until(PATIENCE)
    causes = {spell: [] if is_over() else _causes(found, spell) for spell in worst}
    is_over = _until(PATIENCE)
    known: dict[tuple[str, Source], Mend] = {}
    for spell, brought in causes.items():
        if brought and (spell.queue, brought[0].source) not in known and not is_over():
            known[spell.queue, brought[0].source] = _mend(found, spell, brought[0], is_over)
    told = [
        Trouble(spell=spell, causes=brought, mend=known.get((spell.queue, brought[0].source)) if brought else None)
        for spell, brought in causes.items()
    ]
    return sorted(told, key=lambda trouble: (trouble.spell.start, trouble.spell.queue))


def _until(seconds: float) -> Callable[[], bool]:
    end = time.thread_time() + seconds
    return lambda: time.thread_time() > end


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
    """The schedules that bring most work to a late time, above all those that bring more than they always do."""
    tasks = found.slots.tasks
    first, last = max(0, spell.start - EARLIER), min(spell.end, spell.start + AROUND)
    runs = found.slots.within(first * MINUTE, last * MINUTE) * tasks.tasks
    wide = max(0, first - USUAL), min(found.minutes, last + USUAL)
    usual = found.slots.within(wide[0] * MINUTE, wide[1] * MINUTE) * tasks.tasks * (last - first) / (wide[1] - wide[0])
    rows = np.flatnonzero((runs > 0) & (tasks.queue == tasks.queues.index(spell.queue)))
    once = np.where(np.isinf(found.slots.steps[rows]), tasks.first[rows], NEVER - 1)
    _, place = np.unique(tasks.source[rows] * NEVER + once, return_inverse=True)
    each = tasks.work[rows] + model.SINGLE
    work, more = np.bincount(place, runs[rows] * each), np.bincount(place, (runs - usual)[rows] * each)
    told = []
    for number in np.argsort(-(work / USUAL + np.maximum(0, more)))[:CAUSES].tolist():
        mine = rows[place == number]
        told.append(
            Cause(
                queue=spell.queue,
                source=tasks.sources[int(tasks.source[mine[0]])],
                first=int(tasks.first[mine[0]]) if np.isinf(found.slots.steps[mine[0]]) else None,
                tasks=round(float(tasks.tasks[mine].sum())),
                runs=float(runs[mine].sum()),
                work=float(work[number]),
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
    split = slots.split(own)
    for seconds in JITTERS:
        if is_over():
            return None
        near = _Near(found=found, spell=spell, after=math.ceil(seconds / MINUTE))
        wider = split.with_columns(jitter=np.maximum(split.jitter, seconds))
        if near.is_better(loads.merged(near.without(own), near.of(wider))):
            return seconds
    return None


def _minutes(found: Outlook, spell: Spell, own: Tasks, is_over: Callable[[], bool]) -> int | None:
    """By how many minutes these tasks would have to be moved. Not out of the forecast: nobody knows what is there."""
    near = _Near(found=found, spell=spell, before=max(MOVES), after=max(MOVES))
    mine, rest = near.of(own), near.without(own)
    due = near.minutes(mine)
    for by in MOVES:
        if is_over():
            return None
        if any(not 0 <= minute + by < found.minutes for minute in due):
            continue
        moved = {queue: _moved(load, by * PER_MINUTE) for queue, load in mine.items()}
        if near.is_better(loads.merged(rest, moved)):
            return by
    return None


@dataclass(frozen=True, kw_only=True)
class _Near:
    """The minutes around a late time, in which a change must make nobody else late."""

    found: Outlook
    spell: Spell
    before: int = 0
    after: int = 0

    @property
    def start(self) -> int:
        return max(0, self.spell.start - EARLIER - self.before)

    @property
    def end(self) -> int:
        return min(self.found.minutes, min(self.spell.end, self.spell.start + AROUND) + self.after)

    def of(self, tasks: Tasks) -> dict[str, Load]:
        """What these tasks bring."""
        widest = int(tasks.jitter.max(initial=0))
        near = slots.Slots(tasks=tasks, length=self.end * MINUTE, since=max(0, self.start * MINUTE - widest))
        part = slice(self.start * PER_MINUTE, self.end * PER_MINUTE)
        return {queue: load[:, :, part] for queue, load in loads.demand(near, self.found.theirs).loads.items()}

    def without(self, tasks: Tasks) -> dict[str, Load]:
        """What all others bring."""
        all_ = _windowed(self.found, self.found.demand.loads, self.spell.queue, self.start, self.end)
        return loads.merged(all_, self.of(tasks), -1)

    def minutes(self, of: Loads) -> set[int]:
        """Those in which something of this falls due, by their numbers in the forecast."""
        return {self.start + int(bin_) // PER_MINUTE for load in of.values() for bin_ in load[RUNS].sum(0).nonzero()[0]}

    def is_better(self, changed: Loads) -> bool:
        """Whether the late time is none any more, and none has come about beside it."""
        waits: Waits = model.simulate(changed, self.found.pools, {OTHERS})[self.spell.queue]
        late = {self.start + minute for minute in waits.late_minutes}
        were = set(self.found.queues[self.spell.queue].waits.late_minutes)
        return late <= were - set(range(self.spell.start, self.spell.end))


def _moved(load: Load, bins: int) -> Load:
    moved = np.roll(load, bins, axis=2)
    if bins > 0:
        moved[:, :, :bins] = 0
    else:
        moved[:, :, bins:] = 0
    return moved


def _window(found: Outlook, queue: str, start: int, end: int) -> dict[str, Load]:
    return _windowed(found, found.demand.loads, queue, max(0, start), end)


def _windowed(found: Outlook, of: Loads, queue: str, start: int, end: int) -> dict[str, Load]:
    """Some minutes of a queue and of those that share its processes; of the others only that they are fired too."""
    part = slice(start * PER_MINUTE, min(end, found.minutes) * PER_MINUTE)
    together = next((each for each in model.parts(of, found.pools) if queue in each), {queue: of[queue]})
    near = {name: load[:, :, part] for name, load in together.items()}
    others = [load[:, :, part] for name, load in of.items() if name not in together]
    return near | ({OTHERS: np.sum(others, axis=0)} if others else {})
