"""Stock Celery with stock RedBeat, to be judged by the same checker. Reads STOCK_BROKER_URL and STOCK_REDIS_URL.

Its worker and beat are started as `celery -A drill.stock worker` and `celery -A drill.stock beat`, without BROKER_URL
in their environment: Celery's command line would take that before the app's own. The leader's lock
lasts 3 s and beats look each 0.5 s: far quicker than RedBeat's own 1,500 s and 300 s, so what is found is no matter of
settings.
"""

import json
import os
import urllib.request
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.schedules import schedule
from redbeat import RedBeatSchedulerEntry

from drill.ledger import Row
from drill.oracle import Slot
from drill.witness import Start

LOCK_TIMEOUT = 3
MAX_INTERVAL = 0.5
TIMEOUT = 10.0


def make(broker: str | None, redis_url: str | None) -> Celery:
    """The app, on these addresses."""
    made = Celery("stock", broker=broker, set_as_current=False)
    made.conf.update(
        redbeat_redis_url=redis_url,
        redbeat_lock_timeout=LOCK_TIMEOUT,
        beat_max_loop_interval=MAX_INTERVAL,
        beat_scheduler="redbeat.RedBeatScheduler",
        task_default_queue="stock",
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
    )
    return made


app = make(os.environ.get("STOCK_BROKER_URL"), os.environ.get("STOCK_REDIS_URL"))


@app.task(name="stock.call", bind=True)  # type: ignore[untyped-decorator]
def call(self: Any, url: str, name: str) -> None:
    """Tells the witness that it has started."""
    headers = {"Idempotency-Key": self.request.id, "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps({"task": name}).encode(), headers)  # noqa: S310 - the witness's
    urllib.request.urlopen(request, timeout=TIMEOUT).close()  # noqa: S310


def enter(app: Celery, name: str, url: str, first_at: datetime, every: float) -> None:
    """Makes an entry in the app's Redis, due at `first_at` and each `every` seconds from then on, as RedBeat counts."""
    period = schedule(run_every=timedelta(seconds=every), app=app)
    entry = RedBeatSchedulerEntry(name, "stock.call", period, args=[url, name], app=app)
    # RedBeat knows no first time, only a last one
    entry.last_run_at = first_at - timedelta(seconds=every)
    entry.save()


def ledger(slots: Sequence[Slot], starts: Sequence[Start]) -> tuple[list[Row], list[Start]]:
    """Stock keeps no record of slots, so what it started stands for one: a start belongs to the latest slot before.

    Returns a row for each slot that has a start, with one attempt, and the starts under these rows' ids.
    """
    dues: dict[str, list[datetime]] = defaultdict(list)
    for slot in sorted(slots, key=lambda slot: slot.at):
        dues[slot.task].append(slot.at)
    rows: dict[str, Row] = {}
    found = []
    for start in starts:
        place = max(0, bisect_right(dues[start.task], start.at) - 1)
        run = f"{start.task}/{place}"
        at = dues[start.task][place]
        rows[run] = Row(run=run, task=start.task, slot=at, started_at=start.at, attempt_started_at=start.at)
        found.append(replace(start, run=run))
    return list(rows.values()), found
