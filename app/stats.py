"""How the runs of a time went: their outcomes, how late they started, and which stage made the late ones late.

Of all runs the summaries tell, so that a week of millions is a few rows. Of one task, or of what a confined key sees,
the runs themselves do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, Select, func, select
from sqlalchemy.orm import Session

from app import actors, db, errors, models, policies, summaries
from app.models import Run
from app.states import Trigger

STAGES = ("fired", "published", "started")
"""What ends each stage on the way from the slot to the start."""

MAX_LATE = 10_000
MAX_SPANS = 500
"""Runs, and minutes or hours, that are looked at to say why runs were late."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How many runs it made late, as it took longest of all stages, and how long it took of all that were late."""

    runs: int
    p50: timedelta | None
    longest: timedelta | None


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What became of the runs of a time."""

    since: datetime
    until: datetime
    runs: dict[str, int]
    in_time: float | None
    p50: timedelta | None
    p99: timedelta | None
    worst: timedelta | None
    late: int
    stages: dict[str, Stage]


def read(session: Session, now: datetime, since: datetime, task_id: UUID | None = None) -> Stats:
    """Of the slots since then, of all tasks or of one. Raises Invalid where that is too long ago."""
    actor = actors.of(session)
    if since < now - summaries.HOURS_KEPT:
        raise errors.Invalid(errors={"since": [f"May lie {summaries.HOURS_KEPT.days} days back at most."]})
    is_of_all = task_id is None and not (actor and actor.is_confined)
    counted = _of_summaries(session, now, since) if is_of_all else _of_runs(session, now, since, task_id)
    late = _late(
        session, now, since, task_id, summaries.troubled(session, now, since, MAX_SPANS) if is_of_all else None
    )
    return Stats(since=since, until=now, **counted, late=len(late), stages=_stages(late))


def _of_summaries(session: Session, now: datetime, since: datetime) -> dict[str, Any]:
    found = summaries.promise(session, now, now - since)
    return {
        "runs": {state: found.states[state] for state in summaries.STATES},
        "in_time": found.share,
        "p50": found.p50,
        "p99": found.p99,
        "worst": found.worst,
    }


def _of_runs(session: Session, now: datetime, since: datetime, task_id: UUID | None) -> dict[str, Any]:
    started = summaries.CONDITIONS["started"]
    query: Any = select(
        *(func.count().filter(condition).label(name) for name, condition in summaries.CONDITIONS.items()),
        func.percentile_disc(0.5).within_group(summaries.LATENESS).filter(started).label("p50"),
        func.percentile_disc(0.99).within_group(summaries.LATENESS).filter(started).label("p99"),
        func.max(summaries.LATENESS).filter(started).label("worst"),
    )
    query = _within(query.select_from(Run), now, since, task_id)
    row = session.execute(query, summaries.parameters(now)).one()
    to_start = row.started + row.late
    return {
        "runs": {state: getattr(row, state) for state in summaries.STATES},
        "in_time": row.in_time / to_start if to_start else None,
        "p50": row.p50,
        "p99": row.p99,
        "worst": row.worst,
    }


def _late(
    session: Session,
    now: datetime,
    since: datetime,
    task_id: UUID | None,
    spans: Sequence[tuple[datetime, datetime]] | None,
) -> Sequence[Any]:
    """How long each stage took of those that started late: within these spans alone, where they are known."""
    sent = func.least(func.coalesce(Run.published_at, Run.started_at), Run.started_at)  # a later attempt was sent later
    query = select(
        (Run.fired_at - Run.scheduled_for).label("fired"),
        (sent - Run.fired_at).label("published"),
        (Run.started_at - sent).label("started"),
    ).where(summaries.LATENESS > policies.GRACE, Run.trigger != Trigger.BACKFILL)
    parameters: dict[str, Any] = {}
    if spans is not None:
        if not spans:
            return []
        there = db.rows("spans", start=DateTime(timezone=True), end=DateTime(timezone=True))
        query = query.join(there, (Run.scheduled_for >= there.c.start) & (Run.scheduled_for < there.c.end))
        parameters = db.arrays("spans", start=(start for start, _ in spans), end=(end for _, end in spans))
    query = _within(query, now, since, task_id).order_by(Run.scheduled_for.desc()).limit(MAX_LATE)
    return session.execute(query, parameters).all()


def _within(query: Select[Any], now: datetime, since: datetime, task_id: UUID | None) -> Select[Any]:
    query = query.where(Run.scheduled_for >= since, Run.scheduled_for <= now)
    return query.where(~models.is_system(Run) if task_id is None else Run.task_id == task_id)


def _stages(late: Sequence[Any]) -> dict[str, Stage]:
    slowest = [max(STAGES, key=lambda stage: getattr(row, stage)) for row in late]
    found = {}
    for stage in STAGES:
        took = sorted(max(getattr(row, stage), timedelta(0)) for row in late)
        found[stage] = Stage(
            runs=slowest.count(stage), p50=took[len(took) // 2] if took else None, longest=took[-1] if took else None
        )
    return found
