"""What becomes of slots that are due: fired, fired late, or recorded as missed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.states import Catchup

GRACE = timedelta(seconds=10)
"""The promise: a slot that is older than this cannot start in time any more, so it was missed."""

MAX_CATCHUP = 100
"""How many missed slots of a task are recorded one by one; the oldest of them stands for those before it."""

MAX_COUNT = 10_000
"""How many missed slots are counted at most."""


@dataclass(frozen=True, kw_only=True)
class Due:
    """A slot to be recorded: as a run or, where it was missed and is not wanted any more, as skipped.

    `missed` is the number of earlier slots that it stands for.
    """

    slot: datetime
    missed: int = 0
    skipped: bool = False


def bound(due: Sequence[Due], left: float) -> tuple[list[Due], float]:
    """The first of them that `max_runs` leaves room for, and how much room is left. Skipped ones take none."""
    kept = []
    for each in due:
        if not each.skipped and left <= 0:
            break
        kept.append(each)
        left -= not each.skipped
    return kept, left


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
