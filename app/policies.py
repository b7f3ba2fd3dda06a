"""What becomes of slots that are due: fired, fired late, or recorded as missed. Pure."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import NamedTuple, Protocol

from app.states import Catchup, Overlap

GRACE = timedelta(seconds=10)
"""The promise: a slot that is older than this cannot start in time any more, so it was missed."""

MAX_CATCHUP = 100
"""How many missed slots of a task are recorded one by one; the oldest of them stands for those before it."""

MAX_COUNT = 10_000
"""How many missed slots are counted at most."""


class Due(NamedTuple):
    """A slot to be recorded: as a run or, where it was missed and is not wanted any more, as skipped.

    `missed` is the number of earlier slots that it stands for.
    """

    slot: datetime
    missed: int = 0
    skipped: bool = False


class Fate(Enum):
    """What becomes of a due slot."""

    RUN = auto()
    HOLD = auto()
    """It is recorded, and waits for the end of another run of its task."""
    SKIP = auto()
    """It is recorded as skipped, as another run of its task is open."""
    MISS = auto()
    """It is recorded as missed."""


class Slots(Protocol):
    """What gives the slots after an instant, ascending: `schedules.Timetable`."""

    def upcoming(self, instant: datetime) -> Iterator[datetime]: ...


def newest(table: Slots, since: datetime, now: datetime) -> tuple[list[datetime], datetime | None]:
    """The slots in (since, now] or, where there are more than MAX_COUNT, about the newest half of that number. And the
    first one after now, None where none is left.

    A jump goes by the average gap of MAX_COUNT slots that were really seen: one gap alone may mislead.
    """
    slots, coming = _walk(table, since, now)
    while len(slots) > MAX_COUNT:
        gap = (slots[-1] - slots[0]) / MAX_COUNT
        slots, coming = _walk(table, max(slots[-1], now - gap * (MAX_COUNT // 2)), now)
    return slots, coming


def _walk(table: Slots, since: datetime, now: datetime) -> tuple[list[datetime], datetime | None]:
    """The slots in (since, now], no more than MAX_COUNT and one, and the next one."""
    slots: list[datetime] = []
    for slot in table.upcoming(since):
        if slot > now or len(slots) > MAX_COUNT:
            return slots, slot
        slots.append(slot)
    return slots, None


def bound(due: Sequence[Due], left: float) -> list[Due]:
    """The first of them that `max_runs` leaves room for. Those that are only recorded take none."""
    kept = []
    for each in due:
        if not each.skipped and left <= 0:
            break
        kept.append(each)
        left -= not each.skipped
    return kept


def overlap(due: Sequence[Due], policy: Overlap, *, is_open: bool, has_held: bool) -> list[Fate]:
    """What becomes of each slot of a task that is due, in their order, where a run of it is open already or not, and
    another one is held or not. Where the newest is to cancel the others, those of this batch never come to be."""
    is_cancelling = policy == Overlap.CANCEL
    last = max((position for position, each in enumerate(due) if is_cancelling and not each.skipped), default=-1)
    fates = []
    for position, each in enumerate(due):
        if each.skipped:
            fates.append(Fate.MISS)
        elif position < last:
            fates.append(Fate.SKIP)
        elif policy == Overlap.ALLOW or not is_open:
            fates.append(Fate.RUN)
            is_open = True
        elif policy == Overlap.CANCEL or (policy == Overlap.QUEUE and not has_held):
            fates.append(Fate.HOLD)
            has_held = True
        else:
            fates.append(Fate.SKIP)
    return fates


def settle(slots: Sequence[datetime], now: datetime, policy: Catchup) -> list[Due]:
    """What is to be recorded for the due `slots`, which ascend and end at `now`.

    Slots that can still start in time are fired, whatever the policy. Of the missed ones `latest` fires the
    newest for all of them, `all` fires each, and `none` records each as skipped.
    """
    missed = [slot for slot in slots if slot < now - GRACE]
    fresh = [Due(slot=slot) for slot in slots[len(missed) :]]
    if not missed:
        return fresh
    if policy == Catchup.LATEST:
        return [Due(slot=missed[-1], missed=len(missed) - 1), *fresh]
    kept = missed[-MAX_CATCHUP:]
    skipped = policy == Catchup.NONE
    first = Due(slot=kept[0], missed=len(missed) - len(kept), skipped=skipped)
    return [first, *(Due(slot=slot, skipped=skipped) for slot in kept[1:]), *fresh]
