"""Work for Punctual, and what became of it: registers tasks, waits for their runs, reads their stamps."""

import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from app import bell, clock, db, planning, schedules, schemas, settings, tasks
from app.models import Task
from beat import entries
from bench import stage
from bench.stage import Missing

TARGET = "debug.echo"
WARM_UP = 60
STAMPS = ("fired_at", "published_at", "started_at", "finished_at")
OURS = f"scheduled_for >= :since AND target = '{TARGET}'"
"""Not the canaries' runs, of which one may be under way."""

COPIED = ("id", "bucket", "name", "schedule", "next_run_at", "mirrored_version")
"""What a copy of a registered task has of its own."""

BEAT = "celery -A beat.main:celery_app beat"
WORKER = "celery -A workers.main:celery_app worker --concurrency=2"


@contextmanager
def running(*, beats: int = 2, workers: int = 1, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Runs beats and workers of two processes, and goes on when they share the buckets and offer their targets."""
    lines = {f"beat.{n}": BEAT for n in range(beats)} | {f"worker.{n}": WORKER for n in range(workers)}
    started = clock.now()

    def ready() -> bool:
        return (not beats or _leaders() == beats) and (not workers or _offered(started))

    with stage.running(lines, env):
        stage.wait(ready, within=60, missing=lambda: f"{beats} beats did not lead all buckets, or no worker was up")
        yield


def register(slots: Sequence[datetime]) -> list[UUID]:
    """Registers a one-time `debug.echo` for each slot by the use case of the API."""
    schema = schemas.TaskSchema()
    bodies = [{"target": TARGET, "schedule": {"type": "once", "at": slot.isoformat()}} for slot in slots]
    with db.transaction() as session:
        created = tasks.create_many(session, clock.now(), [schema.load(body) for body in bodies])
    return [task.id for task in created]


def fill(slots: Sequence[datetime], *, mirrored: bool = False) -> None:
    """Registers a task for each slot, as `register` does: the first one by the use case, the rest as copies of its row.

    That is what makes a million of them a matter of a minute. `mirrored`: as if each had its entry in Redis.
    """
    (first,) = register(slots[:1])
    columns = ", ".join(column.name for column in Task.__table__.columns)
    values = ", ".join(f"{'c' if c.name in COPIED else 't'}.{c.name}" for c in Task.__table__.columns)
    with stage.connection() as connection, connection.transaction(), connection.cursor() as cursor:
        kinds = "id uuid, bucket smallint, name text, schedule jsonb, next_run_at timestamptz, mirrored_version int"
        cursor.execute(f"CREATE TEMP TABLE copies ({kinds}) ON COMMIT DROP")
        with cursor.copy("COPY copies FROM STDIN") as copy:
            for slot in slots[1:]:
                task_id = uuid4()
                row = (task_id, tasks.bucket(task_id), f"bench-{task_id.hex}", _once(slot), slot, int(mirrored))
                copy.write_row(row)
        cursor.execute(f"INSERT INTO tasks ({columns}) SELECT {values} FROM copies c, tasks t WHERE t.id = %s", [first])
    for bucket in range(settings.load().PUNCTUAL_BUCKETS):
        bell.ringer().ring(bell.Hint(bucket=bucket))


def wait_until_mirrored(before: datetime) -> None:
    """Waits until each task has its entry. Raises Missing where that was not so a second before the slot."""
    left = (before - clock.now()).total_seconds() - 1
    unmirrored = "SELECT count(*) FROM tasks WHERE version <> mirrored_version"
    stage.wait(
        lambda: scalar(unmirrored) == 0,
        within=left,
        missing=lambda: f"{scalar(unmirrored)} tasks had no entry yet, a second before their slot",
    )


def wait_for(state: str, count: int, *, since: datetime, within: float) -> None:
    """Waits until `count` runs of slots from `since` on are in this state. Raises Missing that tells their states."""
    query = text(f"SELECT state, count(*) FROM runs WHERE {OURS} GROUP BY state")

    def states() -> dict[str, int]:
        with db.statement() as session:
            return {row[0]: row[1] for row in session.execute(query, {"since": since})}

    def missing() -> str:
        seen = states()
        return f"{seen.get(state, 0)} of {count} runs were {state}; there are {seen or 'none'}"

    stage.wait(lambda: states().get(state, 0) >= count, within=within, missing=missing)


def stamps(since: datetime) -> list[Mapping[str, Any]]:
    """Per run of a slot from `since` on, the seconds from its slot to each stamp. Raises Missing where one is early."""
    columns = ", ".join(f"extract(epoch FROM {stamp} - scheduled_for)::float AS {stamp}" for stamp in STAMPS)
    query = text(f"SELECT {columns} FROM runs WHERE {OURS}")
    with db.transaction() as session:
        found: list[Mapping[str, Any]] = [dict(row) for row in session.execute(query, {"since": since}).mappings()]
    early = [run for run in found if run["started_at"] < 0]
    if early:
        raise Missing(f"{len(early)} runs started before their slot, these figures are worth nothing: {early[:3]}")
    return found


def warm_up() -> None:
    """A few dozen runs, so that connections stand and it is known how long the target takes: else nothing is packed."""
    slot = clock.now() + timedelta(seconds=1)
    register([slot] * WARM_UP)
    wait_for("succeeded", WARM_UP, since=slot, within=60)
    stage.wait(lambda: bool(_duration()), within=15, missing=lambda: f"no worker had told how long {TARGET} takes")
    print(f"{TARGET} is known to take {_duration() * 1000:.1f} ms", file=sys.stderr, flush=True)


@functools.lru_cache(maxsize=1)
def _once(slot: datetime) -> str:
    """The schedule as a task's row holds it, as JSON."""
    return json.dumps(schedules.dump(planning.parse({"type": "once", "at": slot.isoformat()}, slot)))


def scalar(query: str, **values: Any) -> Any:
    with db.statement() as session:
        return session.scalar(text(query), values)


def _leaders() -> int:
    """How many beats lead the buckets, once none is without a leader."""
    buckets = range(settings.load().PUNCTUAL_BUCKETS)
    holders = stage.client().mget([entries.lock_key(bucket) for bucket in buckets])
    return len(set(holders)) if all(holders) else 0


def _duration() -> float:
    """Seconds that a run is known to take; 0 where nothing is known yet."""
    query = "SELECT extract(epoch FROM duration)::float FROM targets WHERE name = :name"
    return float(scalar(query, name=TARGET) or 0)


def _offered(since: datetime) -> bool:
    query = "SELECT count(*) FROM targets WHERE name = :name AND last_seen_at >= :since"
    return bool(scalar(query, name=TARGET, since=since))
