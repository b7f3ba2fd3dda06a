"""100,000 tasks of all kinds, and workers that are said to be there: what a forecast has to look through."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from app import db, schemas, tasks
from app.models import Node

TASKS = 100_000
ZONES = ("UTC", "Europe/Paris", "America/New_York", "Asia/Tokyo", "Asia/Kolkata")
QUEUES = {"default": 32, "reports": 16, "mail": 8}
TARGETS = [f"target.{number}" for number in range(20)]
TEAMS = 10


def fill(count: int = TASKS, seed: int = 7) -> None:
    """Makes the tasks, how long their runs take, and the workers."""
    draw = random.Random(seed)
    schema = schemas.TaskSchema()
    with db.transaction() as session:
        session.execute(
            text(
                "INSERT INTO targets (name, queue, signature, documentation, last_seen_at, duration)"
                " SELECT 'target.' || n, 'default', '(*args, **kwargs)', '', now(),"
                " CASE WHEN n % 2 = 0 THEN interval '20 ms' END FROM generate_series(0, 19) n ON CONFLICT DO NOTHING"
            )
        )
    for first in range(0, count, 1000):
        with db.transaction() as session:
            now = db.now(session)
            bodies = [_body(draw, number, now) for number in range(first, min(first + 1000, count))]
            tasks.create_many(session, now, [schema.load(body) for body in bodies])
    with db.transaction() as session:
        _tell(session)


def _tell(session: Session) -> None:
    """Four of five tasks have had runs: most take some milliseconds, few take minutes."""
    session.execute(
        text(
            "INSERT INTO durations SELECT id, target,"
            " 0.004 * power(10, 3.5 * power(hashtext(name) / 4294967296.0 + 0.5, 4)), 8, now(), now()"
            " FROM tasks WHERE abs(hashtext(name)) % 5 > 0"
        )
    )
    now = db.now(session)
    for queue, processes in QUEUES.items():
        details = {"queues": [queue], "processes": processes, "most": processes, "running": 0, "versions": {}}
        node = {"name": f"worker@{queue}", "kind": "worker", "started_at": now, "details": details}
        session.execute(insert(Node).values(seen_at=now + timedelta(days=1), **node))
    session.execute(text("ANALYZE tasks"))
    session.execute(text("ANALYZE durations"))


def _body(draw: random.Random, number: int, now: datetime) -> dict[str, Any]:
    kind = draw.choices(("cron", "interval", "once", "rrule"), (40, 40, 10, 10))[0]
    schedule = dict(_SCHEDULES[kind](draw, now))
    return {
        "name": f"{kind}-{number}",
        "target": draw.choice(TARGETS),
        "queue": draw.choices(tuple(QUEUES), (70, 20, 10))[0],
        "labels": {"team": str(number % TEAMS)},
        "schedule": {"type": kind} | schedule,
        "jitter": draw.choice((0, 0, 30, 300)) if kind != "once" else 0,
    }


def _cron(draw: random.Random, _now: datetime) -> Iterator[tuple[str, Any]]:
    minute, hour = draw.choice((0, 0, 0, 30, draw.randrange(60))), draw.randrange(24)
    shapes = (
        f"{minute} {hour} * * *",
        f"{draw.randrange(60)} {hour} * * MON-FRI",
        f"{draw.randrange(60)} */{draw.choice((2, 3, 4, 6))} * * *",
        f"{draw.randrange(60)} * * * *",
        f"*/{draw.choice((10, 15, 20, 30))} * * * *",
        f"{minute} {hour} 1,15 * *",
    )
    yield "expression", draw.choices(shapes, (30, 20, 15, 25, 5, 5))[0]
    yield "timezone", draw.choice(ZONES)


def _interval(draw: random.Random, now: datetime) -> Iterator[tuple[str, Any]]:
    yield "every", draw.choice((300, 600, 900, 1800, 3600, 3600, 7200, draw.randrange(600, 7200), 86_400))
    yield "anchor", (now - timedelta(seconds=draw.random() * 86_400)).isoformat()


def _once(draw: random.Random, now: datetime) -> Iterator[tuple[str, Any]]:
    yield "at", (now + timedelta(seconds=600 + draw.random() * 172_800)).isoformat()


def _rrule(draw: random.Random, now: datetime) -> Iterator[tuple[str, Any]]:
    yield (
        "rule",
        draw.choice(
            (
                "FREQ=DAILY",
                "FREQ=WEEKLY;BYDAY=MO,WE,FR",
                "FREQ=HOURLY;INTERVAL=2",
                "FREQ=DAILY;BYHOUR=9,12;BYMINUTE=0",
                "FREQ=MONTHLY;BYDAY=-1FR",
            )
        ),
    )
    yield "starts", (now - timedelta(seconds=draw.random() * 86_400)).isoformat()
    yield "timezone", draw.choice(ZONES)


_SCHEDULES = {"cron": _cron, "interval": _interval, "once": _once, "rrule": _rrule}
