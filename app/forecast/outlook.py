"""What is to come, minute by minute, and the times in which runs would start later than promised. Pure."""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.forecast import loads, model
from app.forecast.loads import RUNS, WORK, Demand, Load
from app.forecast.model import Pool, Waits
from app.forecast.slots import Slots, squeezed
from app.forecast.tasks import Tasks

MINUTE = 60
PATIENCE = 2.0
"""Seconds of processor time for computing slots: tasks for which they do not suffice are said to be missing. 100,000 of
all kinds take half a second; a busy machine makes the answer late, not wrong."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What is to come on a queue, by the minute."""

    name: str
    is_theirs: bool
    """It is another app's: nothing is known of its workers, and its work is none of ours."""
    processes: float
    """Of all workers that serve it, also where they serve others too."""
    due: list[float]
    work: list[float]
    """Seconds of a process, with what each run costs beside its target's call."""
    waits: Waits

    @property
    def shares(self) -> list[float]:
        """The part of its processes that the work of each minute takes; above 1 it does not fit."""
        room = self.processes * MINUTE
        return [work / room if room else math.inf if work else 0.0 for work in self.work]


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is to come."""

    slots: Slots
    demand: Demand
    pools: Sequence[Pool]
    theirs: Collection[str]
    queues: dict[str, Queue]

    @property
    def start(self) -> datetime:
        return self.slots.tasks.start

    @property
    def minutes(self) -> int:
        return self.slots.length // MINUTE

    @property
    def unknown(self) -> float | None:
        """The share of runs of which nobody knows how long they take; None where there are no runs."""
        return self.demand.unknown / self.demand.runs if self.demand.runs else None

    @property
    def processes(self) -> float:
        return sum(pool.processes for pool in self.pools)

    def at(self, minute: int) -> datetime:
        return self.start + minute * timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Spell:
    """Minutes of a queue, one after the other, in which runs would start later than promised."""

    queue: str
    start: int
    """The number of its first minute, and below of the one after its last."""
    end: int
    longest: float
    """Seconds from a slot to the start of its run; infinite where nobody serves the queue."""
    late: float
    """Runs that would be late."""


def look(tasks: Tasks, pools: Sequence[Pool], minutes: int, theirs: Collection[str] = ()) -> Outlook:
    """The outlook on what these tasks bring."""
    slots = Slots(tasks=squeezed(tasks), length=minutes * MINUTE, is_over=_until(PATIENCE))
    found = loads.demand(slots, theirs)
    return _outlook(slots, found, pools, theirs)


def changed(before: Outlook, taken: Tasks | None, given: Tasks | None) -> Outlook:
    """The outlook with a task taken away, which it holds, and another one added."""
    found = before.demand
    total = Demand(loads=found.loads, runs=found.runs, unknown=found.unknown, missing=found.missing)
    for tasks, factor in ((taken, -1), (given, 1)):
        if tasks is not None:
            part = loads.demand(Slots(tasks=tasks, length=before.slots.length), before.theirs)
            total.loads = loads.merged(total.loads, part.loads, factor)
            total.runs += factor * part.runs
            total.unknown += factor * part.unknown
    return _outlook(before.slots, total, before.pools, before.theirs)


def spells(found: Outlook) -> list[Spell]:
    """The times in which runs would be late, in their order."""
    told = []
    for queue in found.queues.values():
        late = [*queue.waits.late_minutes, math.inf]
        start = 0
        for place, minute in enumerate(late[:-1]):
            if late[place + 1] == minute + 1:
                continue
            span = slice(int(late[start]), int(minute) + 1)
            longest, number = max(queue.waits.longest[span]), sum(queue.waits.late[span])
            told.append(Spell(queue=queue.name, start=span.start, end=span.stop, longest=longest, late=number))
            start = place + 1
    return sorted(told, key=lambda spell: (spell.start, spell.queue))


def _until(seconds: float) -> Callable[[], bool]:
    end = time.thread_time() + seconds
    return lambda: time.thread_time() > end


def _outlook(slots: Slots, demand: Demand, pools: Sequence[Pool], theirs: Collection[str]) -> Outlook:
    waits = model.simulate(demand.loads, pools, theirs)
    queues = {name: _queue(name, demand.loads[name], pools, waits[name], theirs) for name in sorted(waits)}
    return Outlook(slots=slots, demand=demand, pools=pools, theirs=theirs, queues=queues)


def _queue(name: str, load: Load, pools: Sequence[Pool], waits: Waits, theirs: Collection[str]) -> Queue:
    work = (model.spent(load) * load[RUNS]).sum(0) if name not in theirs else load[WORK].sum(0)
    return Queue(
        name=name,
        is_theirs=name in theirs,
        processes=sum(pool.processes for pool in pools if name in pool.queues),
        due=model.by_minute(load[RUNS].sum(0)).tolist(),
        work=model.by_minute(work).tolist(),
        waits=waits,
    )
