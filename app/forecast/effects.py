"""What a new or changed task would do to the outlook. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from app.forecast import outlook
from app.forecast.outlook import Outlook
from app.forecast.tasks import Tasks

SHOWN = 60
"""Minutes that are named at most."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """An outlook in three numbers."""

    late_minutes: int
    """In how many minutes a run of any queue would be late."""
    longest: float
    """Seconds from a slot to the start of its run; infinite where nobody serves its queue."""
    share: float | None
    """The fullest minute of the task's queue: which part of its processes the work takes. None: there are none."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a task would do."""

    start: datetime
    minutes: int
    runs: float
    """Of the task itself in this time."""
    work: float | None
    """Seconds of a process that they would take; None where nobody knows."""
    before: Figures
    after: Figures
    added: list[datetime]
    """Minutes in which runs would be late and are not without it, the first ones."""


def effect(before: Outlook, taken: Tasks | None, given: Tasks) -> Effect:
    """What the outlook becomes where a task takes the place of another one, or of none."""
    after = outlook.changed(before, taken, given)
    alone = outlook.look(given, before.pools, before.minutes, before.theirs)
    queues = list(given.queues)
    new = sorted(_late(after) - _late(before))
    known = not alone.demand.unknown
    return Effect(
        start=before.start,
        minutes=before.minutes,
        runs=alone.demand.runs,
        work=sum(sum(queue.work) for queue in alone.queues.values()) if known else None,
        before=_figures(before, queues),
        after=_figures(after, queues),
        added=[before.at(minute) for minute in new[:SHOWN]],
    )


def _late(found: Outlook) -> set[int]:
    return {minute for queue in found.queues.values() for minute in queue.waits.late_minutes}


def _figures(found: Outlook, queues: Iterable[str]) -> Figures:
    mine = [found.queues[name] for name in queues if name in found.queues and found.queues[name].processes]
    return Figures(
        late_minutes=len(_late(found)),
        longest=max((max(queue.waits.longest, default=0.0) for queue in found.queues.values()), default=0.0),
        share=max((max(queue.shares, default=0.0) for queue in mine), default=None),
    )
