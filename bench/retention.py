"""How late runs start while a month of a million runs is archived, detached and dropped."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import text

from app import clock, db
from bench import lateness, load, stage
from bench.bursts import ahead
from bench.figures import Figure

RUNS = 1_000_000
PER_SECOND = 50
SECONDS = 180
"""The keeper's first turn is a minute after its beat has started."""

MONTH = (datetime.now(UTC) - timedelta(days=15 * 31)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
NAMES = [f"{table}_{MONTH:%Y_%m}" for table in ("runs", "attempts")]

FILL = f"""
    INSERT INTO {NAMES[0]} (id, task_id, scheduled_for, task_name, target, queue, trigger, missed, state, attempt,
        worker, fired_at, published_at, started_at, attempt_started_at, finished_at, result)
    SELECT gen_random_uuid(), gen_random_uuid(), slot, 'bench', 'debug.echo', 'default', 'schedule', 0, 'succeeded', 1,
        'celery@bench', slot, slot, slot, slot, slot, '{{"args": [], "kwargs": {{"hello": "world"}}}}'
    FROM generate_series(%(first)s::timestamptz, %(first)s + interval '27 days', interval '27 days' / {RUNS - 1}) slot
"""


def retention() -> list[Figure]:
    """A steady load, at first alone and then beside a month that goes."""
    with _month(), tempfile.TemporaryDirectory() as folder:
        env = {"PUNCTUAL_KEEP_RUNS_DAYS": "400", "PUNCTUAL_ARCHIVE_PATH": folder}
        with load.running(env=env):
            load.warm_up()
            slots = lateness.instants(ahead(PER_SECOND * SECONDS), PER_SECOND, SECONDS)
            load.fill(slots)
            load.wait_until_mirrored(before=slots[0])
            left = (slots[-1] - clock.now()).total_seconds()
            stage.wait(lambda: not _is_attached(), within=left, missing=lambda: "the month was still in use")
            began, started = clock.now(), time.monotonic()
            stage.wait(lambda: not _is_there(), within=left, missing=lambda: "the month was still there")
            ended, took = clock.now(), time.monotonic() - started
            left = (slots[-1] - clock.now()).total_seconds()
            load.wait_for("succeeded", len(slots), since=slots[0], within=left + 30)
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"the month was gone after {took:.1f} s, its archive has {size:,} bytes", file=sys.stderr, flush=True)
        before, meanwhile = (_late(slots[0], began), _late(began - timedelta(seconds=1), ended))
    name = f"{PER_SECOND}/s while a month of {RUNS:,} runs goes"
    return [
        Figure(what=f"{name}: how long that takes", value=took, unit="s"),
        *lateness.spread(f"{PER_SECOND}/s before", before),
        *lateness.spread(name, meanwhile),
    ]


@contextmanager
def _month() -> Iterator[None]:
    after = (MONTH + timedelta(days=32)).replace(day=1)
    with stage.connection() as server:
        try:
            for table, name in zip(("runs", "attempts"), NAMES, strict=True):
                server.execute(
                    f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES FROM ('{MONTH}') TO ('{after}')".encode()
                )
            server.execute(FILL.encode(), {"first": MONTH})
            server.execute(f"VACUUM (ANALYZE) {NAMES[0]}".encode())
            yield
        finally:
            server.execute(f"DROP TABLE IF EXISTS {', '.join(NAMES)}".encode())


def _late(since: datetime, until: datetime) -> list[float]:
    """The latenesses of the slots in between, in seconds."""
    query = text(
        "SELECT extract(epoch FROM started_at - scheduled_for)::float FROM runs"
        " WHERE scheduled_for >= :since AND scheduled_for < :until"
    )
    with db.transaction() as session:
        return list(session.scalars(query, {"since": since, "until": until}))


def _is_attached() -> bool:
    return bool(load.scalar("SELECT count(*) FROM pg_inherits WHERE inhrelid = to_regclass(:name)", name=NAMES[0]))


def _is_there() -> bool:
    return bool(load.scalar("SELECT to_regclass(:name) IS NOT NULL", name=NAMES[0]))
