"""How long runs wait for a process: a queue model. Pure: knows neither tables nor clock.

Processes are kept as a line of the times at which they come free, those of one time together. Runs that fall due in
one bin and take about as long go there together. Where they come one after the other, and enough processes are idle,
they keep some of these busy, and none waits. Else long ones go each to the process that is free first, and those of
less than a second are poured over the processes like water, which is the same but for less than a second. Of one bin
the longest begin, as nobody knows their order: whoever waits behind them waits so long.
"""

import math
from bisect import insort
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app import policies
from app.forecast.loads import BEGINS, LASTS, PER_MINUTE, RUNS, WORK, Load
from app.forecast.tasks import EASY, QUICK, Column

GRACE = policies.GRACE.total_seconds()

SINGLE = 0.004
"""Seconds of a process that a run costs by itself; measured, see docs/performance.md, as are the two below."""

PACKED = 0.0002
"""The same in a pack."""

FIRED = 4_000
"""Runs that are fired per second."""

FEW = 16
"""Fewer runs than this are not packed: see `packs.FEW`."""

BARELY = 1e-3
"""Runs that are none: what rounding left."""

Entry = tuple[float, float, int]
"""When some processes come free, how many they are, and the number of their pool."""

Batch = tuple[float, float, float, float]
"""Runs that fall due evenly between two instants, in seconds from the beginning: these, their number, and the seconds
of a process that each takes. No class: a day has 100,000 of them."""

Loads = Mapping[str, Load]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Processes that serve the same queues."""

    queues: frozenset[str]
    processes: float


class Waits:
    """How long the runs of a queue wait, by the minute of their slot."""

    def __init__(self, minutes: int) -> None:
        self.longest = [0.0] * minutes
        """Seconds; infinite where nobody serves the queue."""
        self.late = [0.0] * minutes
        """How many wait longer than is promised."""

    def note(self, minute: int, longest: float, late: float) -> None:
        self.longest[minute] = max(self.longest[minute], longest)
        self.late[minute] += late

    @property
    def late_minutes(self) -> list[int]:
        return [minute for minute, longest in enumerate(self.longest) if longest > GRACE]


def simulate(loads: Loads, pools: Sequence[Pool], theirs: Collection[str] = ()) -> dict[str, Waits]:
    """How long the runs of each queue wait, where all processes are free at the beginning. Of `theirs`, the queues of
    other apps, only how long the firing takes is known."""
    waits = {queue: Waits(load.shape[2] // PER_MINUTE) for queue, load in loads.items()}
    served = {queue for pool in pools for queue in pool.queues if pool.processes > 0}
    for queue, load in loads.items():
        if queue not in served and queue not in theirs:
            for minute, runs in enumerate(by_minute(load[RUNS].sum(0)).tolist()):
                if runs > BARELY:
                    waits[queue].note(minute, math.inf, runs)
    for together in parts({queue: loads[queue] for queue in loads if queue in served}, pools):
        _serve(together, pools, waits)
    _fire(loads, waits)
    return waits


def parts(loads: Loads, pools: Sequence[Pool]) -> list[dict[str, Load]]:
    """Queues that share processes together: what falls on one of them makes the others wait."""
    groups: list[set[str]] = []
    for pool in pools:
        linked = [group for group in groups if group & pool.queues]
        groups = [group for group in groups if not group & pool.queues]
        groups.append(set(pool.queues).union(*linked))
    found = ({queue: loads[queue] for queue in sorted(group) if queue in loads} for group in groups)
    return [part for part in found if part]


def spent(load: Load) -> Column:
    """Seconds of a process that each run takes, by size and bin: its target's, and what it costs beside."""
    runs = load[RUNS]
    beside = np.full(runs.shape, SINGLE)
    beside[QUICK] = np.where(runs[QUICK] >= FEW, PACKED, SINGLE)
    each: Column = np.divide(load[WORK], runs, out=np.zeros(runs.shape), where=runs > 0)
    return each + beside


def by_minute(bins: Column) -> Column:
    found: Column = bins.reshape(-1, PER_MINUTE).sum(1)
    return found


def _serve(loads: Loads, pools: Sequence[Pool], waits: Mapping[str, Waits]) -> None:
    """Has queues served that share processes."""
    mine = [pool for pool in pools if pool.queues & loads.keys() and pool.processes > 0]
    lines: list[list[Entry]] = [[(0.0, pool.processes, home)] for home, pool in enumerate(mine)]
    of = {queue: [home for home, pool in enumerate(mine) if queue in pool.queues] for queue in loads}
    for minute, queue, batch, is_easy in _batches(loads):
        if len(lines) == 1:
            longest, late = _take(lines[0], batch, is_easy)
        else:
            line = sorted(entry for home in of[queue] for entry in lines[home])
            longest, late = _take(line, batch, is_easy)
            for home in of[queue]:
                lines[home] = [entry for entry in line if entry[2] == home]
        if longest > 0:
            waits[queue].note(minute, longest, late)


def _batches(loads: Loads) -> Iterator[tuple[int, str, Batch, bool]]:
    """What falls due, in order, the longest first: its minute and queue, and whether it takes less than a second."""
    found = []
    for number, load in enumerate(map(_with_easy_together, loads.values())):
        size, place = np.nonzero(load[RUNS] > BARELY)
        runs, work, middle, square = load[:, size, place].astype(float)
        middle, square = middle / runs, square / runs
        # of what lies evenly between two points, both are so far from the middle
        reach = np.sqrt(3 * np.maximum(square - middle**2, 0))
        minute, bin_ = np.divmod(place, PER_MINUTE)
        begins = minute * 60 + BEGINS[bin_]
        start = begins + np.maximum(middle - reach, 0)
        end = begins + np.minimum(middle + reach, LASTS[bin_] - 1)
        order = np.full(len(size), number)
        found.append(np.stack([start, -size, order, np.maximum(start, end), runs, work / runs]))
    table = np.concatenate(found, axis=1)
    names = list(loads)
    for start, size, number, end, runs, each in table[:, np.lexsort(table[2::-1])].T.tolist():
        yield int(start) // 60, names[int(number)], (start, end, runs, each), -size < EASY


def _with_easy_together(load: Load) -> Load:
    """Runs that take less than a second as one size, and with all that they cost."""
    whole = load.copy()
    whole[WORK] = spent(load) * load[RUNS]
    whole[:, EASY - 1] = whole[:, :EASY].sum(1)
    whole[:, : EASY - 1] = 0
    return whole


def _take(line: list[Entry], batch: Batch, is_easy: bool) -> tuple[float, float]:  # noqa: FBT001 - a hundred thousand times
    """Has runs begin at their slots or as soon as may be. Returns the longest wait, and how many are late."""
    start, end, runs, each = batch
    _settle(line, start)
    first, count, _ = line[0]
    length = end - start + 1
    if each < length and first <= start and runs * each <= count * length:
        _share(line, count - runs * each / length, runs * each / length, length)
        return 0.0, 0.0
    last = _pour(line, runs, each) if is_easy else _place(line, runs, each)
    # they fall due from `start` to `end`, and begin from `first` to `last`
    before, after = first - start, max(0.0, last - end)
    if before <= GRACE >= after:
        return max(before, after), 0.0
    return max(before, after), _late(runs, before, after)


def _share(line: list[Entry], idle: float, busy: float, length: float) -> None:
    """Runs that come one after the other keep some of the idle processes busy for so long, and never all of them."""
    free, _, home = line.pop(0)
    if idle > BARELY:
        line.insert(0, (free, idle, home))
    insort(line, (free + length, busy, home))


def _place(line: list[Entry], runs: float, each: float) -> float:
    """Each to the process that is free first. Returns when the last one begins."""
    while True:
        turns, front = _turns(line, runs, each) if runs > line[0][1] else (0, 0)
        if turns:
            runs -= turns * sum(count for _, count, _ in line[:front])
            last = line[front - 1][0] + (turns - 1) * each
            line[:front] = [(free + turns * each, count, home) for free, count, home in line[:front]]
            line.sort()
        else:
            free, count, home = line.pop(0)
            number = min(runs, count)
            runs, last = runs - number, free
            insort(line, (free + each, number, home))
            if count - number > BARELY:
                insort(line, (free, count - number, home))
        if runs <= BARELY:
            return last


def _turns(line: list[Entry], runs: float, each: float) -> tuple[int, int]:
    """How often the processes in front can all take a run before it is another's turn, and their number of entries."""
    front, width = 0, 0.0
    for free, count, _ in line:
        if free >= line[0][0] + each:
            break
        front += 1
        width += count
    turns = runs // width
    if front < len(line):
        turns = min(turns, (line[front][0] - line[front - 1][0]) // each)
    return int(turns), front


def _pour(line: list[Entry], runs: float, each: float) -> float:
    """Those that are free first come to be free at one time. Returns when the last run begins."""
    left, level, width, passed = runs * each, line[0][0], 0.0, 0
    homes: dict[int, float] = {}
    for free, count, home in line:
        if (free - level) * width >= left and width:
            break
        left -= (free - level) * width
        level = free
        width += count
        homes[home] = homes.get(home, 0.0) + count
        passed += 1
    level += left / width
    line[:passed] = [(level, count, home) for home, count in homes.items()]
    return level - each


def _settle(line: list[Entry], now: float) -> None:
    """Processes that are free by now are one entry."""
    idle: dict[int, float] = {}
    passed = 0
    for free, count, home in line:
        if free > now:
            break
        idle[home] = idle.get(home, 0.0) + count
        passed += 1
    line[:passed] = [(now, count, home) for home, count in idle.items()]


def _late(runs: float, before: float, after: float) -> float:
    """How many of runs that wait evenly between these seconds are late."""
    low, high = min(before, after), max(before, after)
    if high <= GRACE:
        return 0.0
    return runs if low >= GRACE or high <= low else runs * (high - GRACE) / (high - low)


def _fire(loads: Loads, waits: Mapping[str, Waits]) -> None:
    """No run begins before it was fired, and all queues are fired by the same beats."""
    if not loads:
        return
    total = np.sum([load[RUNS].sum(0) for load in loads.values()], axis=0)
    room = FIRED * np.tile(LASTS, len(total) // PER_MINUTE)
    ahead = np.cumsum(total - room)
    # what is left to fire at the end of each bin is never less than nothing
    left = ahead - np.minimum.accumulate(np.minimum(ahead, 0))
    took = (left + room) / FIRED
    for place in np.flatnonzero((left > 0) & (total > 0)).tolist():
        longest = float(took[place])
        for queue, load in loads.items():
            runs = float(load[RUNS, :, place].sum())
            if runs > BARELY and longest > waits[queue].longest[place // PER_MINUTE]:
                waits[queue].longest[place // PER_MINUTE] = longest
                late = _late(runs, max(0.0, longest - total[place] / FIRED), longest)
                waits[queue].late[place // PER_MINUTE] = max(waits[queue].late[place // PER_MINUTE], late)
