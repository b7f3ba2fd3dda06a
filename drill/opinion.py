"""A second opinion on the witness's log alone, after Jepsen's checker for Chronos: no run ids, no rows.

Each start may stand for any one slot of its task in whose window it lies. The greedy assignment, each start to the
open window that closes first, is a largest one where windows close in the order in which they open.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from drill.oracle import Demand, Slot
from drill.witness import Start

KINDS = frozenset({"once", "now", "interval"})


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the checker found of a task."""

    in_time: int
    """Slots that must run and started in time."""
    starts: int
    """Starts that it has put to some slot, or to none and said so."""


def disagreements(
    slots: Sequence[Slot], starts: Sequence[Start], found: Mapping[str, Found], *, bound: timedelta, early: timedelta
) -> Iterator[str]:
    """Where the assignment and the checker cannot both be right.

    A slot that the checker found started in time has a start in its window, so no fewer can be assigned. More can,
    as a start too many may fill a gap, which the checker has then told; so it must have accounted for all starts.
    """
    by_task: dict[str, list[Slot]] = defaultdict(list)
    for slot in slots:
        if slot.kind in KINDS:
            by_task[slot.task].append(slot)
    seen = Counter(start.task for start in starts)
    times: dict[str, list[datetime]] = defaultdict(list)
    for start in starts:
        times[start.task].append(start.at)
    for task, its_slots in by_task.items():
        must = [(slot.at - early, slot.due + bound) for slot in its_slots if slot.demand == Demand.MUST]
        assigned = len(assign(must, times[task]))
        if assigned < found[task].in_time:
            yield f"{task}: {found[task].in_time} slots were judged on time, only {assigned} have a start to show"
        if seen[task] != found[task].starts:
            yield f"{task}: the witness saw {seen[task]} starts, {found[task].starts} are accounted for"


def assign(windows: Sequence[tuple[datetime, datetime]], times: Sequence[datetime]) -> dict[int, datetime]:
    """Assigns starts to windows, each to one in which it lies; by the window's place in the order of closing."""
    waiting = iter(enumerate(sorted(windows, key=lambda window: (window[1], window[0]))))
    assigned: dict[int, datetime] = {}
    window = next(waiting, None)
    for at in sorted(times):
        while window is not None and window[1][1] < at:
            window = next(waiting, None)
        if window is not None and window[1][0] <= at:
            assigned[window[0]] = at
            window = next(waiting, None)
    return assigned
