"""A made-up day, forecast and then really run, compressed: the minutes that were said to be late, and those that were.

The tasks of the day are registered and forecast as any others. Then each of their slots becomes a one-time task, all
times divided by a factor, and runs on real processes: `debug.sleep` for as long as the run would take. So a run that
starts a second late with a factor of 20 stands for one that is 20 s late.
"""

import os
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from app import clock, db, dispatch, forecast, policies, schemas, tasks
from app.models import Duration, Node, Run, Task
from app.states import NodeKind
from bench import load, stage
from bench.figures import Figure

MOMENT = timedelta(microseconds=1)

PROCESSES = 2
"""Of the worker: see `load.WORKER`."""

FACTOR = 20.0
MINUTES = int(os.environ.get("BENCH_MINUTES", "180"))
"""How much of a day is run: the whole of it takes 72 minutes."""

SHAPES: dict[str, tuple[float, int, float, int]] = {
    # how likely in a minute, how many runs at its first second, how long each takes, jitter
    "quiet": (50, 0, 0.0, 0),
    "a few": (20, 3, 4.0, 0),
    "too many": (12, 12, 4.0, 0),
    "too long": (8, 2, 40.0, 0),
    "many, spread": (10, 8, 4.0, 55),
}
STEADY = [(20, 4.0)] * 4
"""Seconds between the runs of tasks that always run, and how long each takes."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run that is to be: when it is due, and how long it takes, in seconds of the day that is simulated."""

    due: float
    takes: float


@dataclass(frozen=True, kw_only=True)
class Day:
    """What was forecast of a day, and the runs that it was forecast of."""

    start: datetime
    minutes: int
    late: frozenset[int]
    pieces: Sequence[Piece]


def simulated(session: Session, minutes: int, seed: int) -> Day:
    """Registers a day's tasks, as if it were known how long they take and two processes were there; forecasts it."""
    now = db.now(session)
    start = now.replace(second=0, microsecond=0) + timedelta(minutes=1)
    draw = random.Random(seed)
    bodies = list(_bodies(draw, start, minutes))
    schema = schemas.TaskSchema()
    made = tasks.create_many(session, now, [schema.load(body) for body, _ in bodies])
    known = {task.id: takes for task, (_, takes) in zip(made, bodies, strict=True)}
    usual = {"runs": 8, "newest": now, "made_at": now}
    rows = [{"task_id": task.id, "target": task.target, "seconds": known[task.id], **usual} for task in made]
    session.execute(insert(Duration), rows)
    details = {"queues": ["default"], "processes": PROCESSES}
    node = {"name": "simulated", "kind": NodeKind.WORKER, "started_at": now, "seen_at": now, "details": details}
    session.execute(insert(Node).values(**node))
    found = forecast.look(forecast.read(session, start), minutes)
    pieces = [
        Piece(due=(slot - start).total_seconds(), takes=known[task.id])
        for task in session.scalars(select(Task).where(Task.id.in_(known)))
        for slot in dispatch.timetable(task, now).between(start - MOMENT, start + timedelta(minutes=minutes) - MOMENT)
    ]
    late = frozenset(found.queues["default"].waits.late_minutes)
    return Day(start=start, minutes=minutes, late=late, pieces=pieces)


def compressed(day: Day, begin: datetime, factor: float = FACTOR) -> list[dict[str, Any]]:
    """The tasks that run a day in a fraction of its time."""
    return [
        {
            "target": "debug.sleep",
            "kwargs": {"seconds": piece.takes / factor},
            "overlap": "allow",
            "schedule": {"type": "once", "at": (begin + timedelta(seconds=piece.due / factor)).isoformat()},
        }
        for piece in day.pieces
    ]


def were_late(begin: datetime, started: Iterable[tuple[datetime, datetime]], factor: float = FACTOR) -> frozenset[int]:
    """The minutes of the day with a run that started late, by slots and starts."""
    bound = policies.GRACE / factor
    return frozenset(int((slot - begin) * factor / timedelta(minutes=1)) for slot, at in started if at - slot > bound)


def score(day: Day, late: frozenset[int]) -> tuple[float, float]:
    """Precision, the part of the minutes that were said to be late which were, and recall, the part of those that were
    late which were said to be."""
    right = len(day.late & late)
    return right / len(day.late) if day.late else 1.0, right / len(late) if late else 1.0


def day() -> list[Figure]:
    """`script/bench day`: BENCH_MINUTES of a day."""
    with load.running(beats=0):
        pass  # its worker says what it offers, and is not needed yet
    with db.transaction() as session:
        told = simulated(session, MINUTES, seed=1)
    stage.clean()
    with db.transaction() as session:
        session.execute(text("DELETE FROM nodes"))
    with load.running():
        load.warm_up()
        begin = clock.now() + timedelta(seconds=20)
        bodies = compressed(told, begin)
        schema = schemas.TaskSchema()
        for first in range(0, len(bodies), 1_000):
            with db.transaction() as session:
                tasks.create_many(session, clock.now(), [schema.load(body) for body in bodies[first : first + 1_000]])
        lasts = told.minutes * 60 / FACTOR
        load.wait_for("succeeded", len(bodies), since=begin, within=lasts * 1.2 + 60)
    with db.transaction() as session:
        rows = session.execute(select(Run.scheduled_for, Run.started_at).where(Run.scheduled_for >= begin)).all()
    late = were_late(begin, [(row.scheduled_for, row.started_at) for row in rows])
    precision, recall = score(told, late)
    print(f"said: {sorted(told.late)}\nwere: {sorted(late)}", file=sys.stderr, flush=True)
    return [
        Figure(what=f"a day's {told.minutes} minutes: said to be late", value=len(told.late), unit="minutes"),
        Figure(what=f"a day's {told.minutes} minutes: were late", value=len(late), unit="minutes"),
        Figure(what="the forecast's precision", value=precision * 100, unit="%"),
        Figure(what="the forecast's recall", value=recall * 100, unit="%"),
    ]


def _bodies(draw: random.Random, start: datetime, minutes: int) -> Iterable[tuple[dict[str, Any], float]]:
    """The tasks of a day, and how long the runs of each take."""
    for number, (every, takes) in enumerate(STEADY):
        anchor = start + timedelta(seconds=number * every / len(STEADY) + 2.5)
        yield _body({"type": "interval", "every": every, "anchor": anchor.isoformat()}, 0), takes
    for minute in range(minutes):
        (name,) = draw.choices(list(SHAPES), [shape[0] for shape in SHAPES.values()])
        _, number, takes, jitter = SHAPES[name]
        due = start + timedelta(minutes=minute)
        for _ in range(number):
            yield _body({"type": "cron", "expression": f"{due.minute} {due.hour} * * *"}, jitter), takes


def _body(schedule: dict[str, Any], jitter: int) -> dict[str, Any]:
    return {
        "target": "debug.sleep",
        "kwargs": {"seconds": 0},
        "overlap": "allow",
        "schedule": schedule,
        "jitter": jitter,
    }
