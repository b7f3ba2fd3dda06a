"""Whether each slot was recorded once, none was lost, none came early, and how late they were.

The slots that there should be are counted here, from the first slot and the gap of each task: the code that is judged
has no part in it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from uuid import UUID

from simulator.firing import FiringSystem
from simulator.tables import EPOCH

Slot = tuple[UUID, datetime]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of the slots up to some moment."""

    slots: int
    doubled: int
    """Recorded more than once, or by a run of their own and by another that stands for them."""
    lost: int
    early: int
    strange: int
    """Slots of nobody's schedule."""
    unsent: int
    """Recorded, and never taken by the broker."""
    recorded: float
    """Seconds after its slot at which the last one was recorded."""
    sent: float
    """Seconds after its slot at which the last one was first taken by the broker."""

    @property
    def faults(self) -> int:
        """How many there are of all these."""
        return self.doubled + self.lost + self.early + self.strange + self.unsent


def judge(system: FiringSystem, until: float) -> Verdict:
    """Judges all slots up to `until`, by the clock of the world."""
    end = EPOCH + timedelta(seconds=until)
    recorded = list(system.tables.runs.values())
    stood_for = Counter(slot for run in recorded for slot in _stood_for(run, system.tables.tasks[run.task_id].every))
    expected = [(task.id, slot) for task in system.tables.tasks.values() for slot in _slots(task, end)]
    due = [run for run in recorded if run.slot <= end]
    return Verdict(
        slots=len(expected),
        doubled=len(system.tables.doubled) + sum(count > 1 for count in stood_for.values()),
        lost=sum(slot not in stood_for for slot in expected),
        early=sum(run.recorded_at < _time(run) for run in recorded),
        strange=len({slot for slot in stood_for if slot[1] <= end} - set(expected)),
        unsent=sum(not run.skipped and run.id not in system.delivered for run in due),
        recorded=max((run.recorded_at - _time(run) for run in due), default=0.0),
        sent=max((system.delivered[run.id] - _time(run) for run in due if run.id in system.delivered), default=0.0),
    )


def _time(run: SimpleNamespace) -> float:
    """Its slot, by the clock of the world."""
    return float((run.slot - EPOCH).total_seconds())


def _slots(task: SimpleNamespace, end: datetime) -> Iterator[datetime]:
    slot = task.first
    while slot <= end:
        yield slot
        slot += task.every


def _stood_for(run: SimpleNamespace, every: timedelta) -> Iterator[Slot]:
    """The run's own slot, and the missed ones before it that it stands for."""
    return ((run.task_id, run.slot - n * every) for n in range(run.missed + 1))
