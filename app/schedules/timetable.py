"""The slots of one task: its schedule, its bounds and its jitter."""

import functools
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from app.schedules import cron, kinds, rules, zones

NOBODY = UUID(int=0)
"""Stands in for a task that is not there: a schedule alone is looked at."""

_TICK = timedelta(microseconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """A schedule with the bounds of one task.

    The bounds hold for the nominal slot, the one before jitter; so a slot may lie up to `jitter` after `ends_at`.
    """

    task_id: UUID
    schedule: kinds.Schedule
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    jitter: timedelta = timedelta(0)

    def next_after(self, instant: datetime) -> datetime | None:
        """The first slot strictly after `instant`, None where none is left."""
        return next(self.upcoming(instant), None)

    def between(self, since: datetime, until: datetime) -> Iterator[datetime]:
        """The slots with since < slot <= until, ascending."""
        return itertools.takewhile(lambda slot: slot <= until, self.upcoming(since))

    def upcoming(self, instant: datetime) -> Iterator[datetime]:
        """All slots after `instant`, ascending, computed one by one."""
        return itertools.dropwhile(lambda slot: slot <= instant, self._jittered(instant))

    def _jittered(self, instant: datetime) -> Iterator[datetime]:
        if not self.jitter:
            yield from self._within_bounds(self._nominal(instant))
            return
        # A nominal slot before `instant` may have its slot after it, so the walk begins further back.
        nominal = self._nominal(max(instant, zones.FLOOR) - self._look_back())
        here, ahead = itertools.tee(nominal)
        following = itertools.chain(itertools.islice(ahead, 1, None), itertools.repeat(None))
        pairs = zip(here, following, strict=False)
        for slot, after in itertools.takewhile(lambda pair: self._has_begun(pair[0]), pairs):
            yield slot + self._offset(slot, after)

    def _nominal(self, since: datetime) -> Iterator[datetime]:
        if self.starts_at is not None:
            since = max(since, max(self.starts_at, zones.FLOOR) - _TICK)
        return nominal(self.schedule, since)

    def _within_bounds(self, slots: Iterator[datetime]) -> Iterator[datetime]:
        return itertools.takewhile(self._has_begun, slots)

    def _has_begun(self, slot: datetime) -> bool:
        return self.ends_at is None or slot <= self.ends_at

    def _look_back(self) -> timedelta:
        """How far before its slot a nominal slot may lie: less than the jitter, and than the gap after it."""
        gap = every(self.schedule)
        return self.jitter if gap is None else min(self.jitter, gap)

    def _offset(self, slot: datetime, following: datetime | None) -> timedelta:
        """A fixed fraction of the jitter, in whole milliseconds, and less than the gap to the next slot.

        Drawn from the task and the nominal slot, so it is the same in every process. The gap is the schedule's
        own, not cut by `ends_at`: a change of the bounds moves no slot.
        """
        span = self.jitter if following is None else min(self.jitter, following - slot)
        seed = self.task_id.bytes + ((slot - _EPOCH) // _TICK).to_bytes(8, "big", signed=True)
        fraction = int.from_bytes(hashlib.sha256(seed).digest()[:8], "big")
        return (span // _MILLISECOND * fraction >> 64) * _MILLISECOND


def nominal(schedule: kinds.Schedule, since: datetime) -> Iterator[datetime]:
    """The slots of a schedule strictly after `since`, without bounds and jitter."""
    since = max(since, zones.FLOOR - _TICK)
    slots = _slots(schedule, since) if since < zones.HORIZON else iter(())
    return itertools.takewhile(lambda slot: slot < zones.HORIZON, slots)


def every(schedule: kinds.Schedule) -> timedelta | None:
    """The gap between all its slots, where it is always the same."""
    match schedule:
        case kinds.Interval():
            return schedule.every
        case kinds.Rrule():
            return rules.compiled(schedule).every
        case _:
            return None


def _slots(schedule: kinds.Schedule, since: datetime) -> Iterator[datetime]:
    match schedule:
        case kinds.Now() | kinds.Once():
            return iter((schedule.at,) if schedule.at > since else ())
        case kinds.Interval():
            return rules.spaced(schedule.anchor, schedule.every, since)
        case kinds.Rrule():
            return rules.compiled(schedule).slots(since)
        case kinds.Cron():
            return _cron(schedule, since)


def _cron(schedule: kinds.Cron, since: datetime) -> Iterator[datetime]:
    zone = ZoneInfo(schedule.timezone)
    walls = functools.partial(cron.walls, schedule.expression)
    if cron.hourly(schedule.expression):
        return zones.real(walls, zone, since)
    return zones.fixed(walls(zones.wall(since, zone)), zone, since)
