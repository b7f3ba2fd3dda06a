"""Between the wall clock of a zone and UTC: the daylight-saving contract stands here, and only here.

A wall-clock time is a naive datetime of whole seconds. No kind of schedule is known here.
"""

import functools
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

FLOOR = datetime(1900, 1, 1, tzinfo=UTC)
HORIZON = datetime(2200, 1, 1, tzinfo=UTC)
"""No slot is computed at or after it, and no time before FLOOR is accepted."""

SEARCH_YEARS = 50
"""How far ahead a match is looked for; 29 February falls on a given weekday every 40 years at least."""

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)

Walls = Callable[[datetime], Iterator[datetime]]
"""All wall-clock times of a pattern that come strictly after a given one, ascending."""

# what differs from server to server, or counts leap seconds, would not mean the same everywhere
_FOREIGN = frozenset({"localtime", "posixrules", "Factory"})


@functools.cache
def names() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - _FOREIGN


def wall(instant: datetime, zone: ZoneInfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def instant(shown: datetime, zone: ZoneInfo) -> datetime:
    """When the clock first shows `shown`; where it never does, because it was put forward, that very moment."""
    found = shown.replace(tzinfo=zone).astimezone(UTC)
    if wall(found, zone) == shown:
        return found
    # In a gap fold=0 counts with the offset before it, and fold=1 with the one after (PEP 495).
    return _change_between(shown.replace(tzinfo=zone, fold=1).astimezone(UTC), found, zone)


def fixed(shown: Iterator[datetime], zone: ZoneInfo, since: datetime, *, floor: datetime = FLOOR) -> Iterator[datetime]:
    """Each wall-clock time once: those of a gap right after it, those of a repeated hour the first time.

    `instant` never decreases, so slots ascend, and times that fall onto one slot are neighbours.
    """
    last = since
    for each in shown:
        found = max(instant(each, zone), floor)
        if found > last:
            yield found
            last = found


def real(walls: Walls, zone: ZoneInfo, since: datetime) -> Iterator[datetime]:
    """Each real moment whose wall clock matches: twice in a repeated hour, never in a gap."""
    found = _next_real(walls, zone, since)
    while found is not None:
        yield found
        found = _next_real(walls, zone, found)


def _next_real(walls: Walls, zone: ZoneInfo, since: datetime) -> datetime | None:
    found = next(filter(None, (_moment(each, zone, since) for each in walls(wall(since, zone)))), None)
    repeat = _repeat_after(since, zone)
    if repeat is None or (found is not None and found < repeat):
        return found
    again = next(walls(wall(repeat, zone) - SECOND), None)  # what the clock shows once more counts once more
    return again and again.replace(tzinfo=zone, fold=1).astimezone(UTC)


def _moment(shown: datetime, zone: ZoneInfo, since: datetime) -> datetime | None:
    """The first moment after `since` at which the clock shows `shown`."""
    for fold in (0, 1):
        found = shown.replace(tzinfo=zone, fold=fold).astimezone(UTC)
        if found > since and wall(found, zone) == shown:
            return found
    return None


def _repeat_after(since: datetime, zone: ZoneInfo) -> datetime | None:
    """When the clock will be put back to show again what it shows at `since`; None: it will not."""
    local = since.astimezone(zone)
    again = local.replace(fold=1)
    if local.fold or again.utcoffset() == local.utcoffset():
        return None
    return _change_between(since, again.astimezone(UTC), zone)


@dataclass(frozen=True, kw_only=True)
class Change:
    """The clock is put forward or back, at `at`: it would have shown `before`, and shows `after`."""

    at: datetime
    before: datetime
    after: datetime


def changes(zone: ZoneInfo, since: datetime, until: datetime) -> Iterator[Change]:
    """The changes of the clock in (since, until]. Two within a day that undo each other are not seen."""
    day = since
    while day < until:
        end = min(day + DAY, until)
        if _offset(day, zone) != _offset(end, zone):
            at = _change_between(day, end, zone)
            yield Change(at=at, before=wall(at - SECOND, zone) + SECOND, after=wall(at, zone))
        day = end


def _change_between(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The second at which the offset of `before` ends, which it does at `after` at the latest."""
    offset = _offset(before, zone)
    low, high = before.replace(microsecond=0), after
    while high - low > SECOND:
        middle = low + (high - low) // SECOND // 2 * SECOND
        low, high = (middle, high) if _offset(middle, zone) == offset else (low, middle)
    return low + SECOND


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta | None:
    return moment.astimezone(zone).utcoffset()
