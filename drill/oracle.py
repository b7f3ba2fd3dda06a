"""Which slots there must be, may be, and must not be, from what the client asked and was answered.

Shares no code with the product: plain arithmetic, and `drill.cron` for the wall clock.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from drill import cron
from drill.history import Answer, Call, Deed, History, Schedule

MARGIN = timedelta(seconds=1)
"""Around a change of a task either definition may hold: its instant is PostgreSQL's, and only known to lie between
the client's asking and the answer."""

FOREVER = datetime.max.replace(tzinfo=UTC)


class Demand(StrEnum):
    """What is demanded of a slot."""

    MUST = "must"
    MAY = "may"
    """It may have a run or not. A run that it has is judged, but not for being late: since when it holds is unknown."""
    PAUSED = "paused"
    """It may be recorded as skipped, and must not start."""


STRENGTH = {Demand.PAUSED: 0, Demand.MAY: 1, Demand.MUST: 2}


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One slot of one task, which is known by its name."""

    task: str
    at: datetime
    due: datetime
    """From when it can start: the slot itself, or for one that was past when it was registered, the answer."""
    demand: Demand
    kind: str
    """The type of its schedule."""
    overtaken_at: datetime | None = None
    """When the task was paused or deleted afterwards: that cancels what had not started by then."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """While a schedule holds."""

    schedule: Schedule
    known_at: datetime
    """When it was answered: a one-time slot that lies before is due then."""
    since: datetime
    until: datetime
    demand: Demand


def slots(history: History, until: datetime) -> list[Slot]:
    """All slots due until then, the earliest first. `until` lies not before the moment at which rows are read."""
    by_task: dict[str, list[Call]] = defaultdict(list)
    for call in history.calls:
        by_task[call.task].append(call)
    found = [slot for task, calls in by_task.items() for slot in _of_task(task, calls, until)]
    return sorted(found, key=lambda slot: (slot.due, slot.task))


def _of_task(task: str, calls: Iterable[Call], until: datetime) -> list[Slot]:
    """The slots of a task; where two spans name the same, the stronger demand holds."""
    found: dict[datetime, Slot] = {}
    calls = [call for call in calls if call.answer != Answer.REFUSED]
    # what waits is cancelled whatever its task went through in between
    overtakings = [call.asked_at for call in calls if call.deed in {Deed.PAUSE, Deed.DELETE}]
    for span in spans(calls):
        for at, due in _within(span, min(until, span.until)):
            slot = Slot(
                task=task,
                at=at,
                due=due,
                demand=span.demand,
                kind=span.schedule["type"],
                overtaken_at=next((asked_at for asked_at in overtakings if asked_at >= due), None),
            )
            known = found.get(at)
            if known is None or STRENGTH[slot.demand] > STRENGTH[known.demand]:
                found[at] = slot
    return list(found.values())


def spans(calls: Iterable[Call]) -> list[Span]:
    """What holds when, from the calls on one task in their order. The last spans are open, up to FOREVER."""
    found: list[Span] = []
    current: Span | None = None
    for call in calls:
        if call.answer == Answer.UNKNOWN:
            return found + _unknown(current, call)
        before, current = _follow(current, call)
        found += before
    return found + ([current] if current else [])


def _follow(current: Span | None, call: Call) -> tuple[list[Span], Span | None]:
    """The spans that end with an acknowledged call, and the one that it begins."""
    if current is None:
        assert call.schedule is not None, f"{call.task}: {call.deed} of a task that was never registered"
        begun = _begun(call.schedule, call.answered_at, call.answered_at)
        # a slot between asking and answer may have come before the registration
        before = replace(begun, since=call.asked_at - MARGIN, until=call.answered_at, demand=Demand.MAY)
        return [before], begun
    since = call.answered_at + MARGIN
    if call.schedule is not None:
        # a one-time slot is certain from the answer on, wherever it was put
        after = _begun(call.schedule, call.answered_at, call.answered_at if _is_one_time(call.schedule) else since)
    else:
        demand = Demand.PAUSED if call.deed == Deed.PAUSE else Demand.MUST
        after = replace(current, since=since, until=FOREVER, demand=demand)
    between = [_maybe(current, call, since), _maybe(after, call, since)]
    if call.deed == Deed.DELETE:
        return [_cut(current, call), between[0]], None
    return [_cut(current, call), *between], after


def _begun(schedule: Schedule, known_at: datetime, since: datetime) -> Span:
    return Span(schedule=schedule, known_at=known_at, since=since, until=FOREVER, demand=Demand.MUST)


def _maybe(span: Span, call: Call, until: datetime) -> Span:
    return replace(span, since=call.asked_at - MARGIN, until=until, demand=Demand.MAY)


def _unknown(current: Span | None, call: Call) -> list[Span]:
    """The spans from a call on that may hold or not: nothing is demanded of the task any more."""
    found = [_cut(current, call), _maybe(current, call, FOREVER)] if current else []
    if call.schedule is not None:
        found.append(_maybe(_begun(call.schedule, call.asked_at, call.asked_at), call, FOREVER))
    return found


def _cut(current: Span, call: Call) -> Span:
    """The span up to the call."""
    return replace(current, until=call.asked_at - MARGIN)


def _within(span: Span, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The slots in [since, until), each with the instant from which it can start."""
    for at in _instants(span.schedule, span.since, until):
        due = max(at, span.known_at) if _is_one_time(span.schedule) else at
        if span.since <= due < until:
            yield at, due


def _instants(schedule: Schedule, since: datetime, until: datetime) -> Iterator[datetime]:
    match schedule["type"]:
        case "once" | "now":
            yield _time(schedule["at"])
        case "interval":
            yield from _interval(_time(schedule["anchor"]), timedelta(seconds=schedule["every"]), since, until)
        case "cron":
            yield from cron.instants(schedule["expression"], schedule.get("timezone", "UTC"), since, until)
        case other:
            raise ValueError(f"the oracle knows nothing of schedules of type {other}")


def _interval(anchor: datetime, every: timedelta, since: datetime, until: datetime) -> Iterator[datetime]:
    number = max(0, math.floor((since - anchor) / every) - 1)  # one too early: the division is inexact
    while (at := anchor + number * every) <= until:
        yield at
        number += 1


def _is_one_time(schedule: Schedule) -> bool:
    return schedule["type"] in {"once", "now"}


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
