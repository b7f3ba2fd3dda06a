"""Stock Celery with celery-redbeat, to compare with: as its users run it, with settings in its favour.

Celery's defaults stand (a classic durable queue, acknowledged before the call, four messages fetched ahead per
process, no events), so it does less for each message than Punctual, which acknowledges late from a quorum queue.
"""

import json
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from redbeat import RedBeatSchedulerEntry
from redbeat.decoder import RedBeatJSONEncoder
from redbeat.schedulers import get_redis
from redbeat.schedules import rrule

app = Celery("stock", broker=os.environ["STOCK_BROKER_URL"], backend=os.environ["STOCK_RESULT_BACKEND"])
app.conf.update(
    redbeat_redis_url=os.environ["STOCK_REDIS_URL"],
    redbeat_key_prefix="stock:",
    redbeat_redis_options={},
    # the default is 300 s, in which a new entry would wait unseen; between looks it sleeps to the next entry it knows
    beat_max_loop_interval=1,
    # above what a burst takes: the lock is renewed between bursts only, and a lock that is lost ends beat
    redbeat_lock_timeout=300,
    task_default_queue="stock",
    worker_enable_remote_control=True,
    broker_connection_retry_on_startup=True,
    timezone="UTC",
)


@app.task(name="stock.echo")  # type: ignore[untyped-decorator]
def echo(slot: float | None = None) -> dict[str, Any]:
    """Returns when it was due and when it started, which Celery itself records nowhere."""
    return {"slot": slot, "started_at": time.time()}


def register(slots: Sequence[datetime]) -> None:
    """Writes a one-time entry for each slot, as `RedBeatSchedulerEntry.save` does, in a few round trips.

    They count as last run now: an entry that never ran is due at once for RedBeat, and would be read at each tick.
    """
    redis, now = get_redis(app), datetime.now(UTC)
    meta = json.dumps({"last_run_at": now}, cls=RedBeatJSONEncoder)
    for start in range(0, len(slots), 1000):
        pipe = redis.pipeline(transaction=False)
        for number, slot in enumerate(slots[start : start + 1000], start):
            entry = RedBeatSchedulerEntry(
                name=f"bench-{number}",
                task=echo.name,
                schedule=rrule("SECONDLY", dtstart=slot, count=1, app=app),
                kwargs={"slot": slot.timestamp()},
                last_run_at=now,
                app=app,
            )
            pipe.hset(entry.key, "definition", json.dumps(_definition(entry), cls=RedBeatJSONEncoder))
            pipe.hset(entry.key, "meta", meta)
            pipe.zadd(app.redbeat_conf.schedule_key, {entry.key: entry.score})
        pipe.execute()


def _definition(entry: RedBeatSchedulerEntry) -> dict[str, Any]:
    names = ("name", "task", "args", "kwargs", "options", "schedule", "enabled")
    return {name: getattr(entry, name) for name in names}
