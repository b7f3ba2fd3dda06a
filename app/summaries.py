"""Summaries: how many runs of each minute and hour ended how, and how late they started. So that a page about millions
of runs reads a few rows.

A run counts in the minute of its slot; those of system tasks do not count. A summary is never added to: it is made
again from the runs as long as they may change, so it cannot drift from them.
"""

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Double,
    Integer,
    Text,
    any_,
    bindparam,
    case,
    cast,
    delete,
    extract,
    func,
    literal,
    or_,
    select,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, aliased

from app import db, models, policies, settings
from app.models import Run, Summary
from app.states import OPEN, RunState, Span, Trigger

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

RECENT = MINUTE
"""A run for a slot that is older than this opens its minute again; a younger one finds it open still."""

SETTLED = MINUTE + RECENT + timedelta(seconds=10)
"""A minute that began this long ago gets no run in silence any more: those of its last slot were recorded within
RECENT, by transactions that have ended since, as `db.PATIENCE` has it."""

REST = 4.0
AGES = 20
"""An open minute is made again after a twentieth of its age, at least after REST seconds. Hundreds may be open for the
sake of a few runs that take hours: they would hold up the others."""

BATCH = 60
WORK = 0.25
"""Seconds of a batch. A minute of a burst takes long, and no other chore of the beat has its turn meanwhile."""

MINUTES_FOR = timedelta(hours=3)
"""How far back a promise is read from minutes; beyond it, from hours."""

MINUTES_KEPT = timedelta(days=2)
HOURS_KEPT = timedelta(days=90)
FORGOTTEN = 5_000

BASE = 1.1
"""Bucket n of a histogram holds what was from BASE^n up to BASE^(n + 1) ms late: a percentile is a tenth too high at
most. Bucket 0 also holds what was less late."""

STATES = ("succeeded", "failed", "cancelled", "skipped", "waiting")
"""What runs are counted as by their state; `waiting`: not ended."""

COUNTS = (*STATES, "started", "in_time", "late")


@dataclass(frozen=True, kw_only=True)
class Promise:
    """How well the promise was kept."""

    runs: int
    """That started, or should have by now."""
    in_time: int
    share: float | None
    """Of those in time; None where there was none to start."""
    states: Mapping[str, int]
    """How many ended how; `waiting`: not yet."""
    p50: timedelta | None
    p99: timedelta | None
    worst: timedelta | None


@dataclass(frozen=True, kw_only=True)
class Minute:
    """What became of the runs of a minute, and how late they started."""

    start: datetime
    succeeded: int
    failed: int
    cancelled: int
    skipped: int
    waiting: int
    p50: timedelta | None
    p99: timedelta | None
    worst: timedelta | None


def promise(session: Session, now: datetime, within: timedelta) -> Promise:
    """Of the slots within this time, by whole minutes or hours; the one that has begun is among them."""
    span, _ = _span(within)
    sums = _add(_read(session, span, now - within, now))
    runs = sums["started"] + sums["late"]
    return Promise(
        runs=runs,
        in_time=sums["in_time"],
        share=sums["in_time"] / runs if runs else None,
        states={name: sums[name] for name in STATES},
        **_lateness(sums),
    )


def troubled(session: Session, now: datetime, since: datetime, limit: int) -> list[tuple[datetime, datetime]]:
    """The minutes or hours since then, with their ends, in which a run started later than promised; the newest ones."""
    span, length = _span(now - since)
    rows = _read(session, span, since - length, now)
    starts = sorted((row.start for row in rows if row.started > row.in_time), reverse=True)
    return [(start, start + length) for start in starts[:limit]]


def parameters(now: datetime) -> dict[str, Any]:
    """The parameters of CONDITIONS."""
    return {"now": now, "theirs": sorted(settings.load().external_queues)}


def minutes(session: Session, now: datetime, count: int = 60) -> list[Minute]:
    """The last minutes, oldest first, those without a run too; the last one has just begun."""
    first = _floor(now, MINUTE) - (count - 1) * MINUTE
    there = {row.start: row for row in _read(session, Span.MINUTE, first - MINUTE, now)}
    shown = []
    for start in (first + n * MINUTE for n in range(count)):
        sums = _add([there[start]] if start in there else [])
        counts = {name: sums[name] for name in STATES}
        shown.append(Minute(start=start, **counts, **_lateness(sums)))
    return shown


def reopen(session: Session, slots: Collection[datetime]) -> None:
    """Has the minutes of these slots made again: a run was added to them, or goes on after it had ended.

    Whoever makes one of them at this moment is waited for, and did not see the change.
    """
    if slots:
        starts = sorted({_floor(slot, MINUTE) for slot in slots})  # in one order, so that two cannot deadlock
        db.execute(session, _REOPEN, db.arrays("reopened", start=starts))


def summarise(session: Session, now: datetime, limit: int = BATCH) -> tuple[int, bool]:
    """Makes up to `limit` open minutes anew, newest first, and the hours that they belong to. Says how many, and
    whether there may be more. Where another beat is at it, nothing is done."""
    if not db.is_alone(session, db.Lock.SUMMARISE):
        return 0, False
    end = time.monotonic() + WORK
    db.execute(session, _BEGIN, {"now": now})
    # They are locked before they are counted, by a statement of its own: who opens one again from here on waits, and
    # does so after it was made. One that is being opened is passed over, its run could not be seen yet.
    due = db.execute(session, _DUE, {"now": now, "limit": limit}).scalars().all()
    given = parameters(now)
    made = []
    for start in due:
        db.execute(session, _MAKE, given | {"a_start": start})
        made.append(start)
        if time.monotonic() > end:
            break
    for hour in {_floor(start, HOUR) for start in made}:
        _make_hour(session, now, hour)
    return len(made), len(made) == limit or len(made) < len(due)


def forget(session: Session, now: datetime, limit: int = FORGOTTEN) -> int:
    """Deletes old minutes and hours; returns their number.

    The minutes of an hour go together, and not while one is open: the hour is made of all of them.
    """
    if not db.is_alone(session, db.Lock.SUMMARISE):
        return 0
    other = aliased(Summary)
    hour = func.date_trunc("hour", Summary.start)
    is_open = select(other.start).where(
        other.span == Span.MINUTE, other.open, other.start >= hour, other.start < hour + HOUR
    )
    old_minute = (Summary.span == Span.MINUTE) & (Summary.start < _floor(now - MINUTES_KEPT, HOUR)) & ~is_open.exists()
    old_hour = (Summary.span == Span.HOUR) & (Summary.start < now - HOURS_KEPT)
    old = select(Summary.span, Summary.start).where(or_(old_minute, old_hour)).limit(limit)
    old = old.with_for_update(of=Summary, skip_locked=True)
    gone = session.execute(
        delete(Summary)
        .where(tuple_(Summary.span, Summary.start).in_(old))
        .returning(Summary.start)
        .execution_options(synchronize_session=False)
    )
    return len(gone.all())


def _span(within: timedelta) -> tuple[Span, timedelta]:
    """What so long a time is read from, and how long each of them is."""
    return (Span.MINUTE, MINUTE) if within <= MINUTES_FOR else (Span.HOUR, HOUR)


def _make_hour(session: Session, now: datetime, hour: datetime) -> None:
    """Makes an hour from its minutes, once all of them are made."""
    rows = _read(session, Span.MINUTE, hour - MINUTE, hour + HOUR - MINUTE)
    if any(row.made_at is None for row in rows):
        return
    values = _add(rows) | {"open": any(row.open for row in rows), "made_at": now}
    made = upsert(Summary).values(span=Span.HOUR, start=hour, **values)
    session.execute(made.on_conflict_do_update(constraint="pk_summaries", set_=values))


def _read(session: Session, span: Span, after: datetime, until: datetime) -> Sequence[Any]:
    """The summaries that began after the one and until the other."""
    return db.execute(session, _READ, {"span": span, "after": after, "until": until}).all()


def _add(rows: Iterable[Any]) -> dict[str, Any]:
    """The sums of summaries, by their columns."""
    sums: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    histogram: Counter[str] = Counter()
    worst = None
    for row in rows:
        sums.update({name: getattr(row, name) for name in COUNTS})
        histogram.update(row.histogram)
        worst = max((each for each in (worst, row.worst) if each is not None), default=None)
    return dict(sums) | {"histogram": dict(histogram), "worst": worst}


def _lateness(sums: Mapping[str, Any]) -> dict[str, Any]:
    histogram, worst = sums["histogram"], sums["worst"]
    return {"p50": _percentile(histogram, 0.5, worst), "p99": _percentile(histogram, 0.99, worst), "worst": worst}


def _percentile(histogram: Mapping[str, int], share: float, worst: timedelta | None) -> timedelta | None:
    """What this share was at most late: the end of the bucket of the one that stands there in order."""
    left = math.ceil(share * sum(histogram.values()))
    for bucket in sorted(histogram, key=int):
        left -= histogram[bucket]
        if left <= 0 and worst is not None:
            return min(timedelta(milliseconds=BASE ** (int(bucket) + 1)), worst)
    return None


def _floor(moment: datetime, span: timedelta) -> datetime:
    """When the minute or hour of a moment began."""
    return moment.replace(minute=0 if span == HOUR else moment.minute, second=0, microsecond=0)


def _seconds(interval: ColumnElement[Any]) -> ColumnElement[float]:
    return cast(extract("epoch", interval), Double())


# Built once.
_now = bindparam("now", type_=DateTime(timezone=True))
_start = bindparam("a_start", type_=DateTime(timezone=True))

_READ = select(Summary.start, Summary.open, Summary.made_at, Summary.worst, Summary.histogram).add_columns(
    *(getattr(Summary, name) for name in COUNTS)
)
_READ = _READ.where(
    Summary.span == bindparam("span"),
    Summary.start > bindparam("after", type_=DateTime(timezone=True)),
    Summary.start <= bindparam("until", type_=DateTime(timezone=True)),
)

_reopened = db.rows("reopened", start=DateTime(timezone=True))
_REOPEN = (
    upsert(Summary)
    .from_select(["span", "start"], select(literal(Span.MINUTE.value), _reopened.c.start).order_by(_reopened.c.start))
    .on_conflict_do_update(constraint="pk_summaries", set_={"open": True, "made_at": None})
)

# Each minute has a row, open until it has settled, from its beginning on or from when somebody looks again. And so has
# each minute of an hour that has an open one: the hour is to be made of all of them, and they may be forgotten.
_newest = select(func.coalesce(func.max(Summary.start), _now)).where(Summary.span == Span.MINUTE).scalar_subquery()
_hours = union(
    select(func.date_trunc("hour", Summary.start).label("start")).where(Summary.span == Span.MINUTE, Summary.open),
    select(func.generate_series(func.date_trunc("hour", _newest), _now, HOUR)),
).subquery()
_last = func.least(_hours.c.start + 59 * MINUTE, func.date_trunc("minute", _now))
_minutes = select(func.generate_series(_hours.c.start, _last, MINUTE).label("start")).subquery()
_there = aliased(Summary)
_BEGIN = (
    upsert(Summary)
    .from_select(
        ["span", "start"],
        select(literal(Span.MINUTE.value), _minutes.c.start)
        .where(~select(_there.start).where(_there.span == Span.MINUTE, _there.start == _minutes.c.start).exists())
        .order_by(_minutes.c.start),
    )
    .on_conflict_do_nothing(constraint="pk_summaries")
)

_DUE = (
    select(Summary.start)
    .where(
        Summary.span == Span.MINUTE,
        Summary.open,
        or_(
            Summary.made_at.is_(None),
            _seconds(_now - Summary.made_at) >= func.greatest(REST, _seconds(_now - Summary.start) / AGES),
        ),
    )
    .order_by(Summary.start.desc())
    .limit(bindparam("limit", type_=Integer()))
    .with_for_update(skip_locked=True)
)

# First by bucket, of which there are few: so the histogram is counted together with all the rest.
LATENESS = Run.started_at - Run.scheduled_for
_is_open = Run.state.in_(sorted(OPEN))
# a slot of a backfill was over when it was asked for: nobody was promised anything
_promised = Run.trigger != Trigger.BACKFILL
_started = Run.started_at.is_not(None) & _promised
# when a run of another app started is not known: it counts neither as started nor as late
_is_late = (
    _promised
    & Run.started_at.is_(None)
    & _is_open
    & (Run.scheduled_for < _now - policies.GRACE)
    & ~(Run.queue == any_(bindparam("theirs", type_=ARRAY(Text()))))
)
CONDITIONS: dict[str, ColumnElement[bool]] = {
    "succeeded": Run.state == RunState.SUCCEEDED,
    "failed": Run.state == RunState.FAILED,
    "cancelled": Run.state == RunState.CANCELLED,
    "skipped": Run.state == RunState.SKIPPED,
    "waiting": _is_open,
    "started": _started,
    "in_time": _started & (LATENESS <= policies.GRACE),
    "late": _is_late,
}
"""When a run counts as what, by the columns of a summary."""

_ms = func.greatest(_seconds(LATENESS) * 1000, 1.0)
_bucket = case((_started, cast(func.floor(func.ln(_ms) / math.log(BASE)), Integer())))
_by_bucket = (
    select(
        _bucket.label("bucket"),
        func.max(LATENESS).filter(_started).label("worst"),
        *(func.count().filter(condition).label(name) for name, condition in CONDITIONS.items()),
    )
    .where(Run.scheduled_for >= _start, Run.scheduled_for < _start + MINUTE, ~models.is_system(Run))
    .group_by("bucket")
    .subquery()
)
_made = select(
    _start.label("start"),
    func.max(_by_bucket.c.worst).label("worst"),
    func.coalesce(
        func.jsonb_object_agg(cast(_by_bucket.c.bucket, Text()), _by_bucket.c.started).filter(
            _by_bucket.c.bucket.is_not(None)
        ),
        literal({}, JSONB()),
    ).label("histogram"),
    *(cast(func.coalesce(func.sum(_by_bucket.c[name]), 0), Integer()).label(name) for name in COUNTS),
).subquery()
_MAKE = (
    update(Summary)
    .where(Summary.span == Span.MINUTE, Summary.start == _made.c.start)
    .values(
        {name: _made.c[name] for name in ("worst", "histogram", *COUNTS)}
        | {"open": or_(_made.c.waiting > 0, _now < _start + SETTLED), "made_at": _now}
    )
)
