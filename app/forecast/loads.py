"""What falls due on each queue, bin by bin. Pure.

A minute has four bins: its first second, where cron expressions fall, and three of about twenty seconds. Of what falls
due in one is known how many runs, how long they take, and how they lie in it: in one second, or spread.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from app.forecast.slots import Slots
from app.forecast.tasks import SIZES, Column

PER_MINUTE: Final = 4
BEGINS: Final = np.array([0, 1, 20, 40])
"""The second within its minute that each bin begins with."""

LASTS: Final = np.array([1, 19, 20, 20])
"""Its seconds."""

_BIN: Final = np.repeat(np.arange(PER_MINUTE), LASTS)
_PLACE: Final = np.arange(60) - BEGINS[_BIN]

RUNS, WORK, PLACE, SQUARE = range(4)
"""Of a size and a bin: how many runs, the seconds of a process that they take, the sum of their seconds within the bin,
and of the squares of these."""

Load = Column
"""The four by size and bin: `load[RUNS, size, bin]`."""


@dataclass(kw_only=True)
class Demand:
    """What falls due."""

    loads: dict[str, Load] = field(default_factory=dict)
    """By queue."""
    runs: float = 0.0
    unknown: float = 0.0
    """Runs of which nobody knows how long they take."""
    missing: int = 0
    """Tasks for some of whose slots there was no time."""


def empty(bins: int) -> Load:
    return np.zeros((4, SIZES, bins), np.float32)


def demand(slots: Slots, theirs: Collection[str] = ()) -> Demand:
    """What tasks bring. Of the queues of other apps, `theirs`, only the runs count."""
    tasks, bins = slots.tasks, slots.length // 60 * PER_MINUTE
    found = Demand()
    shape = len(tasks.queues), SIZES, bins
    size = len(tasks.queues) * SIZES * bins
    sums = np.zeros((4, size))
    work = np.where(np.isin(tasks.queue, [n for n, name in enumerate(tasks.queues) if name in theirs]), 0.0, tasks.work)
    touched = np.zeros(len(tasks), bool)
    for chunk in slots.chunks():
        row = chunk.row
        minute, second = np.divmod(chunk.second, 60)
        where = (tasks.queue[row] * SIZES + tasks.size[row]) * bins + minute * PER_MINUTE + _BIN[second]
        number, place = tasks.tasks[row].astype(float), _PLACE[second]
        for moment, weights in enumerate((number, number * work[row], number * place, number * place * place)):
            sums[moment] += np.bincount(where, weights, size)
        found.runs += float(number.sum())
        found.unknown += float((number * (1 - tasks.known[row])).sum())
        touched[row] = True
    if slots.is_over():
        found.missing = int(tasks.tasks[~touched].sum())
    for queue, name in enumerate(tasks.queues):
        load = sums.reshape(4, *shape)[:, queue].astype(np.float32)
        if load[RUNS].any():
            found.loads[name] = load
    return found


def merged(one: Mapping[str, Load], other: Mapping[str, Load], factor: int = 1) -> dict[str, Load]:
    """Both together; where `factor` is -1, the one without the other."""
    found = dict(one)
    for queue, load in other.items():
        found[queue] = np.maximum(found[queue] + factor * load, 0) if queue in found else load * max(0, factor)
    return found
